"""Rows of one label drawn together."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from bertkit.errors import InputError
from bertkit.objective import Objective, Step
from bertkit_plugins.objectives.checks import above_zero, share

if TYPE_CHECKING:
    from bertkit.classifier import BertClassifier


class SupervisedContrastive(Objective):
    """The loss, and a contrast that draws the features of rows with one label together.

    The supervised contrastive loss of Khosla et al. 2020 (https://arxiv.org/abs/2004.11362) on
    the pooled features, mixed with the head's loss as of Gunel et al. 2021
    (https://arxiv.org/abs/2011.01403). A row that has no other of its label in the batch does not
    count, and one without a label, or of weight 0, is compared with none. For heads with one label
    a row.

    Args:
        weight: the share of the contrast in the loss; the head's loss has the rest.
        temperature: what similarities are divided by.
    """

    innermost = True
    compares_rows = True

    def __init__(self, weight: float = 0.9, temperature: float = 0.3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.weight = share("weight", weight)
        self.temperature = above_zero("temperature", temperature)

    def begin(self, model: BertClassifier) -> None:
        super().begin(model)
        if "pooled" not in model.head.reads or not model.head.single_label:
            raise InputError(
                f"The objective supervised_contrastive wants a head with one label a row that "
                f"reads pooled features, and {type(model.head).__name__} is none. Use binary or "
                "multiclass, or another objective."
            )

    def loss(self, step: Step) -> tuple[tf.Tensor, tf.Tensor]:
        features = step.features()
        logits = step.model.logits_of(features, training=True)
        task = step.task_loss(logits)
        contrast = step.mean(self.contrast(features["pooled"], _counting(step)))
        return (1 - self.weight) * task + self.weight * contrast, logits

    def contrast(self, pooled: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        """Return the contrast of each row, float32 (B,), from (B, H) and label ids.

        A row whose label is NaN has no contrast, and is in none.
        """
        units = tf.math.l2_normalize(tf.cast(pooled, tf.float32), axis=-1)
        labels = _flat(targets)  # NaN is like nothing
        others = tf.cast(~tf.math.is_nan(labels), tf.float32) * (1.0 - tf.eye(tf.size(labels)))
        alike = tf.cast(labels[:, None] == labels[None, :], tf.float32) * others
        similar = tf.matmul(units, units, transpose_b=True) / self.temperature  # (B, B)
        # A row's similarity to itself, the greatest there is, counts nowhere.
        total = tf.reduce_logsumexp(similar - 1e9 * (1.0 - others), axis=1, keepdims=True)
        summed = tf.reduce_sum(alike * (total - similar), axis=1)
        return tf.math.divide_no_nan(summed, tf.reduce_sum(alike, axis=1))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "weight": self.weight, "temperature": self.temperature}


def _counting(step: Step) -> tf.Tensor:
    """Return the labels of rows, float32 (B,), NaN where a row weighs nothing."""
    labels = _flat(step.targets)
    if step.sample_weight is None:
        return labels
    return tf.where(_flat(step.sample_weight) > 0, labels, math.nan)


def _flat(column: tf.Tensor) -> tf.Tensor:
    """Return (B,) or (B, 1) as float32 (B,)."""
    return tf.reshape(tf.cast(column, tf.float32), (-1,))
