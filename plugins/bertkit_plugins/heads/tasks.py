"""Losses and metrics of several tasks, whose targets and outputs stand side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from bertkit_plugins.heads.known import OfSome
from bertkit_plugins.heads.losses import PairwiseMargin


class Columns(NamedTuple):
    """Where a task is.

    Attributes:
        targets: its first column among the targets, and the one after its last.
        outputs: the same among the outputs.
        flat: whether its own targets are (N,), and not (N, columns).
    """

    targets: tuple[int, int]
    outputs: tuple[int, int]
    flat: bool

    def of_targets(self, targets: Any) -> Any:
        """Return the task's own targets, (N,) or (N, columns)."""
        own = targets[:, slice(*self.targets)]
        return own[:, 0] if self.flat else own

    def of_outputs(self, outputs: Any) -> Any:
        """Return the task's own outputs, (N, outputs)."""
        return outputs[:, slice(*self.outputs)]

    def known(self, targets: Any) -> tf.Tensor:
        """Return which rows have a label of the task, (N,)."""
        return tf.reduce_any(~tf.math.is_nan(targets[:, slice(*self.targets)]), axis=1)


@keras.saving.register_keras_serializable("bertkit")
class TasksLoss(keras.losses.Loss):
    """The weighted sum of the losses of tasks, each of the rows that have its label.

    Args:
        losses: one a task.
        columns: one a task.
        weights: one a task; `None` if the last outputs are the logarithms s of their variances:
            a task's loss counts exp(-s) times then, and s / 2 is added.
    """

    def __init__(
        self,
        losses: Sequence[keras.losses.Loss],
        columns: Sequence[Any],
        weights: Sequence[float] | None,
        name: str = "tasks_loss",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.of_tasks = list(losses)
        self.columns = [_columns(place) for place in columns]
        self.weights = None if weights is None else list(weights)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tf.Tensor:
        """Return the loss, float32 (), of targets and outputs, (B, columns) each, and (B,)."""
        targets, outputs = tf.cast(y_true, tf.float32), tf.cast(y_pred, tf.float32)
        losses = [
            self._of(loss, place, targets, outputs, sample_weight)
            for loss, place in zip(self.of_tasks, self.columns, strict=True)
        ]
        if self.weights is not None:
            return tf.add_n(
                [loss * weight for loss, weight in zip(losses, self.weights, strict=True)]
            )
        rows = tf.ones(tf.shape(outputs)[:1]) if sample_weight is None else sample_weight
        rows = tf.cast(rows, tf.float32)
        # Of what weighs nothing, nothing; nor of a batch without rows.
        share = tf.math.divide_no_nan(tf.reduce_sum(rows), tf.cast(tf.size(rows), tf.float32))
        logs = log_variances(outputs, len(losses))
        return tf.add_n(
            [tf.exp(-s) * loss + share * s / 2 for s, loss in zip(logs, losses, strict=True)]
        )

    @staticmethod
    def _of(
        loss: keras.losses.Loss, place: Columns, targets: tf.Tensor, outputs: tf.Tensor, weight: Any
    ) -> tf.Tensor:
        known = place.known(targets)
        weights = tf.cast(known, tf.float32)
        if weight is not None:
            weights *= tf.cast(weight, tf.float32)
        own = place.of_targets(targets)
        kept = known if place.flat else known[:, None]
        # A pair with NaN is none, so it is not among those that a pairwise loss divides by.
        missing = math.nan if isinstance(loss, PairwiseMargin) else 0.0
        return loss(tf.where(kept, own, missing), place.of_outputs(outputs), sample_weight=weights)

    def get_config(self) -> dict[str, Any]:
        losses = [keras.saving.serialize_keras_object(loss) for loss in self.of_tasks]
        columns = [[*place] for place in self.columns]
        return {**super().get_config(), "losses": losses, "columns": columns,
                "weights": self.weights}  # fmt: skip

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TasksLoss:
        losses = [keras.saving.deserialize_keras_object(loss) for loss in config["losses"]]
        return cls(**{**config, "losses": losses})


@keras.saving.register_keras_serializable("bertkit")
class OfTask(OfSome):
    """Another metric, of one task and the rows that have its label.

    Args:
        metric: of the task's own targets and outputs.
        columns: where it is.
    """

    def __init__(self, metric: keras.metrics.Metric, columns: Any, name: str, dtype: Any = None):
        super().__init__(metric, name, dtype)
        self.columns = _columns(columns)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        targets = tf.cast(y_true, self.dtype)
        known = self.columns.known(targets)

        def of_known(part: Any) -> tf.Tensor:
            return tf.boolean_mask(part, known)

        own = of_known(self.columns.of_targets(targets))
        outputs = of_known(self.columns.of_outputs(tf.cast(y_pred, self.dtype)))
        if sample_weight is None:
            self.metric.update_state(own, outputs)
        else:
            weights = of_known(tf.reshape(tf.cast(sample_weight, self.dtype), (-1,)))
            self.metric.update_state(own, outputs, weights)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "columns": [*self.columns]}


def log_variances(outputs: tf.Tensor, tasks: int) -> list[tf.Tensor]:
    """Return the last columns of outputs, () each, the same in every row; 0 without rows."""
    return tf.unstack(tf.reduce_sum(outputs[:1, -tasks:], axis=0), tasks)


def _columns(place: Sequence[Any]) -> Columns:
    """Return columns as they are written in a saved model."""
    targets, outputs, flat = place
    return Columns((targets[0], targets[1]), (outputs[0], outputs[1]), bool(flat))
