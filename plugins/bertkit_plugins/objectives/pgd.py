"""Adversarial training by several steps on the token embeddings."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from bertkit.feeding import whole_number
from bertkit.objective import Objective, Step
from bertkit_plugins.objectives.checks import above_zero
from bertkit_plugins.objectives.perturbing import ascent, clipped_to, scaled_to


class PGD(Objective):
    """The loss, and the loss with token embeddings moved against it by several steps.

    Projected gradient descent as of Madry et al. 2018 (https://arxiv.org/abs/1706.06083), in the
    2-norm: each row's embeddings take `steps` steps of `step_size` along the gradient of its loss,
    and stay within `epsilon` of where they were. Takes `steps` + 1 passes through the encoder.

    Args:
        epsilon: the 2-norm of the whole move at most, over all tokens of a row.
        step_size: the 2-norm of a step.
        steps: how many.
    """

    reads_embeddings = True

    def __init__(
        self, epsilon: float = 1.0, step_size: float = 0.3, steps: int = 3, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.epsilon = above_zero("epsilon", epsilon)
        self.step_size = above_zero("step_size", step_size)
        self.steps = whole_number("steps", steps)

    def loss(self, step: Step) -> tuple[tf.Tensor, tf.Tensor]:
        clean = step.embeddings()  # (B, T, E)

        def loss_at(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return step.loss(token_embeddings=x)

        loss, logits, gradient = ascent(step, loss_at, clean)
        move = clipped_to(scaled_to(gradient, self.step_size), self.epsilon)
        for _ in range(self.steps - 1):
            _, _, gradient = ascent(step, loss_at, clean + move)
            move = clipped_to(move + scaled_to(gradient, self.step_size), self.epsilon)
        adversarial, _ = loss_at(clean + move)
        return loss + adversarial, logits

    def get_config(self) -> dict[str, Any]:
        names = ("epsilon", "step_size", "steps")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
