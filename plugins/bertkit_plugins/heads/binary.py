"""One of two labels, from one logit."""

from __future__ import annotations

from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from bertkit.errors import InputError
from bertkit.head import Dense, Head
from bertkit.labels import Label, LabelSpace
from bertkit_plugins.heads.divergence import bernoulli_divergence
from bertkit_plugins.heads.known import OfKnown
from bertkit_plugins.heads.losses import LabelwiseCrossentropy
from bertkit_plugins.heads.options import (
    balanced,
    check_choice,
    check_number,
    check_of_loss,
    check_pos_weight,
    focal_gamma,
    learned_weight,
)


class BinaryHead(Head):
    """One of two labels, from one logit.

    Args:
        labels: the two labels, the positive one last; learned from the data, sorted, if `None`.
        dropout: rate on the features.
        loss: "cross_entropy", or "focal", to which easy rows count little.
        gamma: how much less they count; 2 if `None`.
        label_smoothing: how far targets move towards one half.
        pos_weight: how often a row of the positive label counts; "balanced": as often as makes both
            labels weigh the same, learned from the data. Once if `None`.
        ignore_missing: whether rows without a label are taken, and add nothing.
    """

    def __init__(
        self,
        labels: list[Label] | None = None,
        dropout: float = 0.1,
        loss: Literal["cross_entropy", "focal"] = "cross_entropy",
        gamma: float | None = None,
        label_smoothing: float = 0.0,
        pos_weight: float | Literal["balanced"] | None = None,
        ignore_missing: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(labels, dropout, **kwargs)
        check_choice("loss", loss, ("cross_entropy", "focal"))
        check_of_loss(loss, "focal", gamma=gamma)
        check_number("label_smoothing", label_smoothing, below=1)
        check_pos_weight(pos_weight)
        if isinstance(pos_weight, (list, tuple)):
            raise InputError(
                f"pos_weight is the list {pos_weight}, and the head 'binary' has one positive "
                "label. Give one number."
            )
        self.loss = loss
        self.gamma = gamma
        self.label_smoothing = label_smoothing
        self.pos_weight = pos_weight
        self.ignore_missing = ignore_missing

    def _checked(self, space: LabelSpace) -> LabelSpace:
        if len(space) != 2:
            shown = ", ".join(repr(label) for label in space.labels[:5])
            raise InputError(
                f"The head 'binary' needs two labels, and there are {len(space)}: {shown}"
                f"{', …' if len(space) > 5 else ''}. For more use 'multiclass'; with one there "
                "is nothing to learn."
            )
        return space

    def adapt(self, labels: Any) -> None:
        """Learn the labels, and a balanced `pos_weight`; labels that were given stay for that."""
        if self.pos_weight != "balanced" or self._space is None:
            super().adapt(labels)
        if self.pos_weight == "balanced":
            (self.pos_weight,) = balanced(self.encode_labels(labels), self.labels[1:])

    @property
    def adapted(self) -> bool:
        return super().adapted and self.pos_weight != "balanced"

    @property
    def num_outputs(self) -> int:
        return 1

    def make_loss(self) -> keras.losses.Loss:
        options = (self.loss, self.label_smoothing, self.pos_weight, self.ignore_missing)
        if options == ("cross_entropy", 0, None, False):
            return keras.losses.BinaryCrossentropy(from_logits=True)
        gamma, pos_weight = focal_gamma(self.loss, self.gamma), learned_weight(self.pos_weight)
        return LabelwiseCrossentropy(self.label_smoothing, gamma, gamma, pos_weight=pos_weight)

    def make_metrics(self) -> list[keras.metrics.Metric]:
        metrics = [
            keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0),  # of the logit
            keras.metrics.AUC(name="roc_auc", from_logits=True),
        ]
        return [OfKnown(metric) for metric in metrics] if self.ignore_missing else metrics

    def encode_labels(self, labels: Any) -> np.ndarray:
        """Return targets, float32 (N, 1): 1 for the positive label."""
        return super().encode_labels(labels).astype("float32")[:, None]

    def as_dense(self) -> Dense:
        """Return two logits, 0 and the head's own, whose softmax is its probabilities."""
        kernel, bias = (np.asarray(x, dtype="float32") for x in (self.kernel, self.bias))
        return Dense(
            np.concatenate([np.zeros_like(kernel), kernel], axis=1),
            np.concatenate([np.zeros_like(bias), bias]),
            self.labels,
            "single_label_classification",
        )

    def divergence(self, outputs: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
        return bernoulli_divergence(outputs, others)

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        positive = 1 / (1 + np.exp(-np.clip(outputs.reshape(-1), -500, 500)))
        return np.stack([1 - positive, positive], axis=1)

    def get_config(self) -> dict[str, Any]:
        names = ("loss", "gamma", "label_smoothing", "pos_weight", "ignore_missing")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
