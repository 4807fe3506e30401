"""One of two labels, from one logit."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bertkit.errors import InputError
from bertkit.head import Dense, Head
from bertkit.labels import LabelSpace
from bertkit_plugins.heads.divergence import bernoulli_divergence


class BinaryHead(Head):
    """One of two labels, from one logit.

    Args:
        labels: the two labels, the positive one last; learned from the data, sorted, if `None`.
        dropout: rate on the features.
    """

    def _checked(self, space: LabelSpace) -> LabelSpace:
        if len(space) != 2:
            shown = ", ".join(repr(label) for label in space.labels[:5])
            raise InputError(
                f"The head 'binary' needs two labels, and there are {len(space)}: {shown}"
                f"{', …' if len(space) > 5 else ''}. For more use 'multiclass'; with one there "
                "is nothing to learn."
            )
        return space

    @property
    def num_outputs(self) -> int:
        return 1

    def make_loss(self) -> keras.losses.Loss:
        return keras.losses.BinaryCrossentropy(from_logits=True)

    def make_metrics(self) -> list[keras.metrics.Metric]:
        return [
            keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0),  # of the logit
            keras.metrics.AUC(name="roc_auc", from_logits=True),
        ]

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
