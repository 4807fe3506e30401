"""AdamW as BERT is fine-tuned with it."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from bertkit.errors import InputError


@keras.saving.register_keras_serializable("bertkit")
class AdamW(keras.optimizers.AdamW):
    """Keras's AdamW that leaves biases and norms undecayed, and updates in one pass.

    The update is that of Loshchilov and Hutter 2019 (https://arxiv.org/abs/1711.05101). It runs
    as TensorFlow's own kernel, which reads and writes each variable once where Keras's formula
    takes ten passes. Variables with fewer than two axes are not decayed, as in BERT's training.

    Args:
        learning_rate: a number or a schedule.
        **options: what `keras.optimizers.AdamW` takes; `amsgrad` is not supported.
    """

    def build(self, variables: Any) -> None:
        """Make the moments of each variable.

        Raises:
            InputError: `amsgrad` is asked for, which the fused update does not know.
        """
        if self.amsgrad:
            raise InputError("bertkit's AdamW has no amsgrad. Use keras.optimizers.AdamW.")
        super().build(variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable and its moments."""
        momentum, velocity = (
            moments[self._get_variable_index(variable)]
            for moments in (self._momentums, self._velocities)
        )
        dtype = variable.dtype
        step = tf.cast(self.iterations + 1, dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=_handle(variable),
            m=_handle(momentum),
            v=_handle(velocity),
            beta1_power=tf.cast(self.beta_1, dtype) ** step,
            beta2_power=tf.cast(self.beta_2, dtype) ** step,
            lr=tf.cast(learning_rate, dtype),
            beta1=tf.cast(self.beta_1, dtype),
            beta2=tf.cast(self.beta_2, dtype),
            epsilon=tf.cast(self.epsilon, dtype),
            grad=tf.cast(tf.convert_to_tensor(gradient), dtype),
        )

    def _use_weight_decay(self, variable: Any) -> bool:
        return len(variable.shape) > 1 and super()._use_weight_decay(variable)


def _handle(variable: Any) -> tf.Tensor:
    """Return the resource behind a variable of Keras or of TensorFlow."""
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle
