"""How far apart predictions are."""

from __future__ import annotations

import tensorflow as tf


def bernoulli_divergence(
    outputs: tf.Tensor, others: tf.Tensor, weights: tf.Tensor | float = 1.0
) -> tf.Tensor:
    """Return the mean over labels, (B,), of the divergences of yes and no, from (B, labels).

    Each counts as often as `weights`, (B, labels), say.
    """
    yes = tf.math.log_sigmoid(outputs) - tf.math.log_sigmoid(others)
    no = tf.math.log_sigmoid(-outputs) - tf.math.log_sigmoid(-others)
    divergences = tf.sigmoid(outputs) * yes + tf.sigmoid(-outputs) * no
    return tf.reduce_mean(weights * divergences, axis=-1)
