"""One of several labels, where easy rows count little."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bertkit import Head
from bertkit.errors import InputError


class FocalHead(Head):
    """One of several labels, trained on what it still gets wrong.

    Args:
        labels: the labels in the order of their ids; learned from the data, sorted, if `None`.
        gamma: how much less an easy row counts; 0 is plain cross-entropy.
        dropout: rate on the features.
    """

    def __init__(
        self,
        labels: list[str | int | bool] | None = None,
        gamma: float = 2.0,
        dropout: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(labels, dropout, **kwargs)
        if not gamma >= 0:
            raise InputError(f"gamma is {gamma}; it must be 0 or more.")
        self.gamma = gamma

    def make_loss(self) -> keras.losses.Loss:
        return FocalLoss(self.gamma)

    def make_metrics(self) -> list[keras.metrics.Metric]:
        return [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "gamma": self.gamma}


@keras.saving.register_keras_serializable("bertkit_focal")
class FocalLoss(keras.losses.Loss):
    """Focal loss (Lin et al. 2017, https://arxiv.org/abs/1708.02002), without its class weights.

    Cross-entropy times (1 - p) ** gamma, where p is the probability of the right label.

    Args:
        gamma: as in `FocalHead`.
    """

    def __init__(self, gamma: float = 2.0, name: str = "focal_loss", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.gamma = gamma

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Return the loss of each row, (B,), from ids, (B,), and logits, (B, labels)."""
        entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(y_true, tf.int32), y_pred)
        miss = -tf.math.expm1(-entropy)  # 1 - p
        # At 0 a power below 1 has no finite gradient.
        return tf.maximum(miss, 1e-7) ** self.gamma * entropy

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "gamma": self.gamma}
