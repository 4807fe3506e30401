"""What adversarial objectives share: moving the token embeddings of each row."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from bertkit.objective import Step


def ascent(
    step: Step, value_at: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]], at: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return a value, what came with it, and the direction in which the value rises.

    Args:
        step: the step.
        value_at: takes embeddings, (B, T, E), and returns a value, (), and logits.
        at: the embeddings.

    Returns:
        The value, the logits, and the gradient by the embeddings, float32 (B, T, E), zero at
        padding, through which nothing is differentiated. In mixed_float16 it is scaled, as the
        loss is; of a row where it is not finite, which the scale may lead to, it is zero.
    """
    with tf.GradientTape() as tape:
        tape.watch(at)
        value, logits = value_at(at)
        scaled = step.model.optimizer.scale_loss(value)
    with step.tape.stop_recording():  # second derivatives are not wanted, and cost a pass
        gradient = masked(tf.cast(tape.gradient(scaled, at), tf.float32), step)
        finite = tf.reduce_all(tf.math.is_finite(gradient), axis=(1, 2), keepdims=True)
        gradient = tf.where(finite, gradient, 0.0)
    return value, logits, tf.stop_gradient(gradient)


def masked(values: tf.Tensor, step: Step) -> tf.Tensor:
    """Return (B, T, E) with zeros where there is padding."""
    return values * tf.cast(step.inputs["padding_mask"], values.dtype)[:, :, None]


def scaled_to(values: tf.Tensor, length: float) -> tf.Tensor:
    """Return (B, T, E) with the 2-norm of each row brought to `length`; zeros stay zeros."""
    # The largest first, since a square may be zero or overflow.
    units = tf.math.divide_no_nan(values, largest(values))
    norms = tf.sqrt(tf.reduce_sum(tf.square(units), axis=(1, 2), keepdims=True))
    return tf.math.divide_no_nan(units, norms) * length


def largest(values: tf.Tensor) -> tf.Tensor:
    """Return the largest absolute value of each row of (B, T, E), (B, 1, 1)."""
    return tf.reduce_max(tf.abs(values), axis=(1, 2), keepdims=True)


def clipped_to(values: tf.Tensor, length: float) -> tf.Tensor:
    """Return (B, T, E) with the 2-norm of each row at most `length`."""
    return tf.clip_by_norm(values, length, axes=(1, 2))
