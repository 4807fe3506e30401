"""Rows mixed in pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from bertkit.compiling import compares_rows
from bertkit.errors import InputError
from bertkit.objective import Objective, Step
from bertkit_plugins.objectives.checks import above_zero

if TYPE_CHECKING:
    from bertkit.classifier import BertClassifier


class Mixup(Objective):
    """The loss of rows mixed in pairs, in their token embeddings and in their labels.

    Mixup (Zhang et al. 2018, https://arxiv.org/abs/1710.09412) on word embeddings, as of Guo, Mao
    and Zhang 2019 (https://arxiv.org/abs/1905.08941): each row is mixed with another of its batch,
    and its loss is the mix of both rows' losses, to which a missing label adds nothing. Metrics of
    training see mixed rows too. Positions and segment ids are the first row's: of pairs of texts,
    where the second text begins is not mixed.

    Args:
        alpha: of the Beta(alpha, alpha) that a row's share is drawn from; at 1 it is uniform.
    """

    innermost = True
    reads_embeddings = True
    compares_rows = True

    def __init__(self, alpha: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.alpha = above_zero("alpha", alpha)
        self.supports_jit = False  # XLA cannot draw from a gamma distribution
        self.seed_generator = keras.random.SeedGenerator()

    def begin(self, model: BertClassifier) -> None:
        super().begin(model)
        if compares_rows(model.loss):
            raise InputError(
                "The objective mixup mixes the losses of single rows, and this loss has none: it "
                "compares rows. Take another, such as squared_error in place of pairwise_margin, "
                "or another objective."
            )

    def loss(self, step: Step) -> tuple[tf.Tensor, tf.Tensor]:
        mask = step.inputs["padding_mask"]  # (B, T)
        embeddings = step.embeddings() * tf.cast(mask, tf.float32)[:, :, None]  # (B, T, E)
        rows = tf.shape(mask)[0]
        share = self._shares(rows)  # (B,)
        others = tf.argsort(self._uniform(rows))  # (B,)
        mixed = _mix(embeddings, tf.gather(embeddings, others), share[:, None, None])
        logits = step.logits(
            token_embeddings=mixed, padding_mask=tf.maximum(mask, tf.gather(mask, others))
        )
        weight = tf.ones_like(share) if step.sample_weight is None else step.sample_weight
        weight = tf.cast(weight, tf.float32)
        if weight.shape.rank == 2:  # of each label
            share = share[:, None]
        own = step.task_loss(logits, sample_weight=weight * share)
        of_others = step.task_loss(
            logits,
            tf.nest.map_structure(lambda part: tf.gather(part, others), step.targets),
            tf.gather(weight, others) * (1 - share),
        )
        return own + of_others, logits

    def _shares(self, rows: tf.Tensor) -> tf.Tensor:
        """Draw from Beta(alpha, alpha), (B,)."""
        one, other = (
            tf.random.stateless_gamma([rows], self.seed_generator.next(), self.alpha)
            for _ in range(2)
        )
        return tf.math.divide_no_nan(one, one + other)

    def _uniform(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.random.stateless_uniform([rows], self.seed_generator.next())

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "alpha": self.alpha}


def _mix(one: tf.Tensor, other: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    return other + share * (one - other)
