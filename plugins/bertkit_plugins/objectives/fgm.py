"""Adversarial training by one step on the token embeddings."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from bertkit.objective import Objective, Step
from bertkit_plugins.objectives.checks import above_zero
from bertkit_plugins.objectives.perturbing import ascent, scaled_to


class FGM(Objective):
    """The loss, and the loss with token embeddings moved against it by one step.

    The fast gradient method of Miyato, Dai and Goodfellow 2017
    (https://arxiv.org/abs/1605.07725): the embeddings of each row move by `epsilon` along the
    gradient of its loss. Takes two passes through the encoder, forward and backward.

    Args:
        epsilon: the 2-norm of the move, over all tokens of a row.
    """

    reads_embeddings = True

    def __init__(self, epsilon: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = above_zero("epsilon", epsilon)

    def loss(self, step: Step) -> tuple[tf.Tensor, tf.Tensor]:
        clean = step.embeddings()  # (B, T, E)
        loss, logits, gradient = ascent(step, lambda x: step.loss(token_embeddings=x), clean)
        adversarial, _ = step.loss(token_embeddings=clean + scaled_to(gradient, self.epsilon))
        return loss + adversarial, logits

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}
