"""Two passes with different dropout that are to agree."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from bertkit.objective import Objective, Step
from bertkit_plugins.objectives.checks import zero_or_more


class RDrop(Objective):
    """The losses of two passes with different dropout, and how far these are apart.

    R-Drop of Wu et al. 2021 (https://arxiv.org/abs/2106.14448): both losses, plus `alpha` times
    the mean of the two divergences between the predictions. Needs dropout to do anything.

    Args:
        alpha: the weight of the divergence.
    """

    def __init__(self, alpha: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.alpha = zero_or_more("alpha", alpha)

    def loss(self, step: Step) -> tuple[tf.Tensor, tf.Tensor]:
        first, p = step.loss()
        second, q = step.loss()
        head = step.model.head
        apart = step.mean(head.divergence(p, q) + head.divergence(q, p)) / 2
        return first + second + self.alpha * apart, p

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "alpha": self.alpha}
