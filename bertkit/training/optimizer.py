"""AdamW as BERT is fine-tuned with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from bertkit.errors import InputError

if TYPE_CHECKING:
    from bertkit.encoder import Encoder


@keras.saving.register_keras_serializable("bertkit")
class AdamW(keras.optimizers.AdamW):
    """Keras's AdamW that leaves biases and norms undecayed, and updates in one pass.

    The update is that of Loshchilov and Hutter 2019 (https://arxiv.org/abs/1711.05101). It runs
    as TensorFlow's own kernel, which reads and writes each variable once where Keras's formula
    takes ten passes. Variables with fewer than two axes are not decayed, as in BERT's training.

    Args:
        learning_rate: a number or a schedule.
        learning_rate_multipliers: regular expressions, and what the learning rate of a variable
            is multiplied with if one is found in its path; the first that is found counts.
            `layer_decay` makes them for the layers of an encoder.
        **options: what `keras.optimizers.AdamW` takes; `amsgrad` is not supported.

    Raises:
        InputError: a multiplier is negative, or an expression is none.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        learning_rate_multipliers: Mapping[str, float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.learning_rate_multipliers = dict(learning_rate_multipliers or {})
        for pattern, factor in self.learning_rate_multipliers.items():
            if not 0 <= factor < float("inf"):
                raise InputError(
                    f"The learning rate multiplier of {pattern!r} is {factor!r}. Give a finite "
                    "number, 0 or more."
                )
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(
                    f"{pattern!r} is no regular expression ({error}). It is searched in the paths "
                    "of variables: give one such as 'layer_0/'."
                ) from None
        self._factors: list[float] = []
        self._powers: list[Any] | None = None  # of the betas, during an update

    def build(self, variables: Any) -> None:
        """Make the moments of each variable.

        Raises:
            InputError: `amsgrad` is asked for, which the fused update does not know, or a
                multiplier's expression is found in no variable's path.
        """
        if self.amsgrad:
            raise InputError("bertkit's AdamW has no amsgrad. Use keras.optimizers.AdamW.")
        self._factors = self._factors_of([variable.path for variable in variables])
        super().build(variables)

    def _factors_of(self, paths: list[str]) -> list[float]:
        multipliers = self.learning_rate_multipliers
        found = [next((p for p in multipliers if re.search(p, path)), None) for path in paths]
        for pattern in multipliers:
            if not any(re.search(pattern, path) for path in paths):
                raise InputError(
                    f"The learning rate multiplier {pattern!r} is found in the path of no "
                    f"variable that is trained. There are: {', '.join(paths[:5])}, …"
                )
        return [1.0 if pattern is None else float(multipliers[pattern]) for pattern in found]

    def _backend_update_step(self, gradients: Any, variables: Any, learning_rate: Any) -> None:
        """Update all variables, with what they share computed once."""
        self._powers = self._beta_powers()
        try:
            super()._backend_update_step(gradients, variables, learning_rate)
        finally:
            self._powers = None

    def _beta_powers(self) -> list[Any]:
        step = tf.cast(self.iterations + 1, tf.float32)
        return [beta**step for beta in (self.beta_1, self.beta_2)]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Decay and update one variable, and update its moments."""
        index = self._get_variable_index(variable)
        dtype = variable.dtype
        rate = tf.cast(learning_rate, dtype)
        if self._factors[index] != 1.0:
            rate *= self._factors[index]
        if self.weight_decay is not None and self._use_weight_decay(variable):
            variable.assign_sub(variable * (tf.cast(self.weight_decay, dtype) * rate))
        powers = self._powers or self._beta_powers()
        tf.raw_ops.ResourceApplyAdam(
            var=_handle(variable),
            m=_handle(self._momentums[index]),
            v=_handle(self._velocities[index]),
            beta1_power=tf.cast(powers[0], dtype),
            beta2_power=tf.cast(powers[1], dtype),
            lr=rate,
            beta1=tf.cast(self.beta_1, dtype),
            beta2=tf.cast(self.beta_2, dtype),
            epsilon=tf.cast(self.epsilon, dtype),
            grad=tf.cast(tf.convert_to_tensor(gradient), dtype),
        )

    def _apply_weight_decay(self, variables: Any) -> None:
        """Do nothing: each variable is decayed in its `update_step`, by its own learning rate."""

    def _use_weight_decay(self, variable: Any) -> bool:
        return len(variable.shape) > 1 and super()._use_weight_decay(variable)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "learning_rate_multipliers": self.learning_rate_multipliers,
        }


def layer_decay(encoder: Encoder, decay: float) -> dict[str, float]:
    """Return learning rate multipliers that fall by a factor from layer to layer, top to bottom.

    The head and the pooling train at the full rate, the last layer at `decay` times it, and so on
    down to the embeddings: the discriminative fine-tuning of Howard and Ruder 2018
    (https://arxiv.org/abs/1801.06146).
    """
    layers = encoder.layers_in_order()
    return {
        f"{re.escape(layer.path)}/": decay**depth
        for depth, layer in zip(range(len(layers), 0, -1), layers, strict=True)
    }


def _handle(variable: Any) -> tf.Tensor:
    """Return the resource behind a variable of Keras or of TensorFlow."""
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle
