"""AdamW as BERT is fine-tuned with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from bertkit.errors import InputError
from bertkit.training.groups import ParameterGroup, check_matches, group_of

if TYPE_CHECKING:
    from bertkit.encoder import Encoder


@keras.saving.register_keras_serializable("bertkit")
class AdamW(keras.optimizers.AdamW):
    """Keras's AdamW that leaves biases and norms undecayed, and updates in one pass.

    The update is that of Loshchilov and Hutter 2019 (https://arxiv.org/abs/1711.05101). It runs
    as TensorFlow's own kernel, which reads and writes each variable once where Keras's formula
    takes ten passes. Variables with fewer than two axes are not decayed, as in BERT's training.
    What is clipped is the gradient of the whole batch: the sum over replicas and, of an embedding,
    over the tokens that share a row, where Keras clips each replica's and each token's part.

    Args:
        learning_rate: a number or a schedule.
        parameter_groups: variables with a learning rate or a weight decay of their own; each
            variable belongs to the first that matches it. `layer_decay` makes them for the layers
            of an encoder.
        **options: what `keras.optimizers.AdamW` takes; `amsgrad` is not supported. With `use_ema`
            an average begins as the variable, and stays its equal while that does not move.

    Attributes:
        learning_rate_factor: what the learning rate of every update is multiplied with, 1 unless
            training was rolled back. A step has the one that it was traced with.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        parameter_groups: Sequence[ParameterGroup] = (),
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.parameter_groups = tuple(parameter_groups)
        self.learning_rate_factor = 1.0
        self._groups: list[ParameterGroup | None] = []  # of each variable
        self._powers: list[list[Any]] = []  # of each beta, for each variable, during an update

    def build(self, variables: Any) -> None:
        """Make the moments of each variable.

        Raises:
            InputError: `amsgrad` is asked for, which the fused update does not know, or a group
                matches no variable.
        """
        if self.amsgrad:
            raise InputError("bertkit's AdamW has no amsgrad. Use keras.optimizers.AdamW.")
        check_matches(self.parameter_groups, variables)
        self._groups = [group_of(variable.path, self.parameter_groups) for variable in variables]
        super().build(variables)
        # After which of the optimizer's updates each variable began; saved with the moments.
        self._begun = self.add_variable(
            (len(variables),), dtype="int", aggregation="only_first_replica", name="begun"
        )
        if self.use_ema:
            with tf.init_scope():  # once, not in each step of a graph
                for average, variable in zip(
                    self._model_variables_moving_average, variables, strict=True
                ):
                    average.assign(variable)

    def _backend_update_step(self, gradients: Any, variables: Any, learning_rate: Any) -> None:
        """Update all variables, with what they share computed once."""
        self._powers = self._beta_powers()
        try:
            lowered = learning_rate * self.learning_rate_factor
            super()._backend_update_step(gradients, variables, lowered)
        finally:
            self._powers = []

    def begin(self, variables: Sequence[Any]) -> None:
        """Treat variables as if the optimizer began with them now.

        For variables that join late: their averages of gradients begin at zero, and are corrected
        for it by the count of their own updates.

        Args:
            variables: some of those that the optimizer was built with.
        """
        begun = np.array(self._begun)
        for index in map(self._get_variable_index, variables):
            begun[index] = np.asarray(self.iterations)
            for moment in (self._momentums[index], self._velocities[index]):
                moment.assign(tf.zeros(moment.shape, moment.dtype))
        self._begun.assign(begun)

    def _clip_gradients(self, gradients: Any) -> Any:
        """Do nothing: they are clipped once they are summed."""
        return gradients

    def _all_reduce_sum_gradients(self, pairs: Any) -> list[tuple[Any, Any]]:
        """Sum gradients over replicas, and the rows of sparse ones, then clip them."""
        summed = super()._all_reduce_sum_gradients(pairs)
        gradients = [tf.convert_to_tensor(gradient) for gradient, _ in summed]
        clipped = super()._clip_gradients(gradients)
        return [(gradient, pair[1]) for gradient, pair in zip(clipped, summed, strict=True)]

    def _beta_powers(self) -> list[list[Any]]:
        """Return both betas to the power of each variable's own count of updates."""
        # At least one, also if someone sets `iterations` back: the power 0 would divide by zero.
        steps = tf.maximum(self.iterations + 1 - self._begun, 1)  # (variables,)
        # In float64, so that rounding does not depend on how many variables there are.
        betas = (tf.cast(tf.cast(b, tf.float32), tf.float64) for b in (self.beta_1, self.beta_2))
        powers = (tf.cast(beta ** tf.cast(steps, tf.float64), tf.float32) for beta in betas)
        return [tf.unstack(power) for power in powers]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Decay and update one variable, and update its moments."""
        index = self._get_variable_index(variable)
        dtype = variable.dtype
        rate = tf.cast(learning_rate, dtype)
        group = self._groups[index]
        if group is not None and group.learning_rate_multiplier != 1.0:
            rate *= group.learning_rate_multiplier
        decay = self._decay_of(variable, group)
        if decay is not None:
            variable.assign_sub(variable * (tf.cast(decay, dtype) * rate))
        powers = [power[index] for power in self._powers or self._beta_powers()]
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

    def _update_model_variables_moving_average(self, variables: Any) -> None:
        """Move the averages towards the variables, such that equals stay equal."""
        if self.use_ema:
            share = tf.where(tf.equal(self.iterations, 0), 1.0, 1.0 - self.ema_momentum)
            for average, variable in zip(
                self._model_variables_moving_average, variables, strict=True
            ):
                average.assign(average + (variable - average) * tf.cast(share, average.dtype))

    def _decay_of(self, variable: Any, group: ParameterGroup | None) -> float | None:
        if group is not None and group.weight_decay is not None:
            return group.weight_decay
        decays = len(variable.shape) > 1 and self._use_weight_decay(variable)
        return self.weight_decay if decays else None

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        groups = [asdict(group) for group in self.parameter_groups]
        return {**super().get_config(), "parameter_groups": groups}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> AdamW:
        """Make an optimizer from what `get_config` returned."""
        groups = [ParameterGroup(**group) for group in config.get("parameter_groups", ())]
        return super().from_config({**config, "parameter_groups": groups}, custom_objects)


def inner_of(optimizer: Any) -> Any:
    """Return the optimizer that makes the updates, within one that scales the loss."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def layer_decay(encoder: Encoder, decay: float) -> list[ParameterGroup]:
    """Return groups whose learning rate falls by a factor from layer to layer, top to bottom.

    The head and the pooling train at the full rate, the last layer at `decay` times it, and so on
    down to the embeddings: the discriminative fine-tuning of Howard and Ruder 2018
    (https://arxiv.org/abs/1801.06146). A layer that is frozen has no group.
    """
    layers = encoder.layers_in_order()
    return [
        ParameterGroup(f"{re.escape(layer.path)}/", decay**depth)
        for depth, layer in zip(range(len(layers), 0, -1), layers, strict=True)
        if layer.trainable_weights
    ]


def _handle(variable: Any) -> tf.Tensor:
    """Return the resource behind a variable of Keras or of TensorFlow."""
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle
