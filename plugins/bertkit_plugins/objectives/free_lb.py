"""Adversarial training that averages over the steps of the ascent."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from bertkit.feeding import whole_number
from bertkit.objective import Objective, Step
from bertkit_plugins.objectives.checks import above_zero, zero_or_more
from bertkit_plugins.objectives.perturbing import ascent, clipped_to, masked, scaled_to


class FreeLB(Objective):
    """The mean of the losses along an ascent on the token embeddings.

    FreeLB of Zhu et al. 2020 (https://arxiv.org/abs/1909.11764): from a random move within the
    ball, `steps` losses are taken, with a step of `step_size` along the gradient of each between
    them, and with one and the same dropout. Takes `steps` passes through the encoder.

    Args:
        steps: losses that are averaged.
        step_size: the 2-norm of a step, over all tokens of a row.
        initial: the 2-norm of the random move at the beginning at most; it is about 0.6 of it.
        epsilon: the 2-norm of the whole move at most; without a limit if `None`.
    """

    reads_embeddings = True

    def __init__(
        self,
        steps: int = 3,
        step_size: float = 0.1,
        initial: float = 0.1,
        epsilon: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.steps = whole_number("steps", steps)
        self.step_size = above_zero("step_size", step_size)
        self.initial = zero_or_more("initial", initial)
        self.epsilon = None if epsilon is None else above_zero("epsilon", epsilon)
        self.seed_generator = keras.random.SeedGenerator()

    def loss(self, step: Step) -> tuple[tf.Tensor, tf.Tensor]:
        clean = step.embeddings()  # (B, T, E)
        move = self._initial_move(clean, step)
        dropout = step.random_state()
        losses, all_logits = [], []
        for index in range(self.steps):
            if index:
                step.set_random_state(dropout)
            loss, logits, gradient = ascent(
                step, lambda x: step.loss(token_embeddings=x), clean + move
            )
            move = move + scaled_to(gradient, self.step_size)
            if self.epsilon is not None:
                move = clipped_to(move, self.epsilon)
            losses.append(loss)
            all_logits.append(logits)
        return tf.add_n(losses) / self.steps, all_logits[0]

    def _initial_move(self, clean: tf.Tensor, step: Step) -> tf.Tensor:
        """Uniform in a cube whose size falls with the tokens of a row, as the authors draw it."""
        if not self.initial:
            return tf.zeros_like(clean)
        width = clean.shape[-1]
        numbers = tf.reduce_sum(step.inputs["padding_mask"], axis=1) * width  # (B,)
        size = self.initial / tf.sqrt(tf.cast(numbers, clean.dtype))
        seed = self.seed_generator.next()
        uniform = tf.random.stateless_uniform(tf.shape(clean), seed, -1.0, 1.0)
        return masked(uniform * size[:, None, None], step)

    def get_config(self) -> dict[str, Any]:
        names = ("steps", "step_size", "initial", "epsilon")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
