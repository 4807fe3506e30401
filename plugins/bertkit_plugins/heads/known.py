"""Metrics of some of the rows: of those whose targets are known, for one."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


class OfSome(keras.metrics.Metric):
    """Another metric, of what a subclass passes on to it.

    Args:
        metric: the other one.
        name: that of the other if `None`.
    """

    def __init__(self, metric: keras.metrics.Metric, name: str | None = None, dtype: Any = None):
        super().__init__(name=name or metric.name, dtype=dtype)
        self.metric = metric
        if hasattr(metric, "_direction"):  # what callbacks with mode="auto" look at
            self._direction = metric._direction

    def result(self) -> tf.Tensor:
        return self.metric.result()

    def reset_state(self) -> None:
        self.metric.reset_state()

    def get_config(self) -> dict[str, Any]:
        inner = keras.saving.serialize_keras_object(self.metric)
        return {**super().get_config(), "metric": inner}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> OfSome:
        return cls(**{**config, "metric": keras.saving.deserialize_keras_object(config["metric"])})


@keras.saving.register_keras_serializable("bertkit")
class OfKnown(OfSome):
    """Another metric, of the rows whose target is not NaN.

    The metric is of targets, (B,) or (B, 1), and logits, and takes sample weights, (B,).
    """

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        targets = tf.cast(y_true, self.dtype)
        known = ~tf.math.is_nan(targets)
        weights = tf.reshape(tf.cast(known, self.dtype), (-1,))
        if sample_weight is not None:
            weights *= tf.reshape(tf.cast(sample_weight, self.dtype), (-1,))
        self.metric.update_state(tf.where(known, targets, 0.0), y_pred, weights)
