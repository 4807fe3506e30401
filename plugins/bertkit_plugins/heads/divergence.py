"""How far apart predictions are."""

from __future__ import annotations

import tensorflow as tf


def bernoulli_divergence(outputs: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """Return the mean over labels, (B,), of the divergences of yes and no, from (B, labels)."""
    yes = tf.math.log_sigmoid(outputs) - tf.math.log_sigmoid(others)
    no = tf.math.log_sigmoid(-outputs) - tf.math.log_sigmoid(-others)
    return tf.reduce_mean(tf.sigmoid(outputs) * yes + tf.sigmoid(-outputs) * no, axis=-1)
