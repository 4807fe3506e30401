"""One of several labels, from a logit each."""

from __future__ import annotations

import keras
import numpy as np

from bertkit.head import Dense, Head


class MulticlassHead(Head):
    """One of several labels, from a logit each.

    Args:
        labels: the labels in the order of their ids; learned from the data, sorted, if `None`.
        dropout: rate on the features.
    """

    def make_loss(self) -> keras.losses.Loss:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def make_metrics(self) -> list[keras.metrics.Metric]:
        return [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]

    def as_dense(self) -> Dense:
        kernel, bias = (np.asarray(x, dtype="float32") for x in (self.kernel, self.bias))
        return Dense(kernel, bias, self.labels, "single_label_classification")

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)
