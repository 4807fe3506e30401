"""Any number of labels, from a logit each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bertkit.errors import InputError, shown
from bertkit.evaluation.metrics import Report, multi_label_report
from bertkit.head import Dense, Head
from bertkit.labels import LabelSpace, plain, rows_of
from bertkit_plugins.heads.divergence import bernoulli_divergence


class MultiLabelHead(Head):
    """Any number of labels, none included, from a logit each.

    A row's labels are a list. A matrix of zeros and ones, (N, labels), is taken as it is.
    `class_weight` weighs the rows that carry a label, in that label's own column: the loss is a
    mean over rows and labels, so each label is a binary task of its own.

    Args:
        labels: the labels in the order of their ids; learned from the data, sorted, if `None`.
        dropout: rate on the features.
    """

    single_label = False

    def _checked(self, space: LabelSpace) -> LabelSpace:
        return space

    def adapt(self, labels: Any) -> None:
        matrix = _matrix(labels)
        if matrix is not None:
            self._space = LabelSpace(range(matrix.shape[1]))
        else:
            rows = enumerate(rows_of(labels))
            self._space = LabelSpace.learn(
                plain(x, row) for row, xs in rows for x in _list(xs, row)
            )

    def make_loss(self) -> keras.losses.Loss:
        return LabelwiseCrossentropy()

    def make_metrics(self) -> list[keras.metrics.Metric]:
        return [
            F1FromLogits(average="micro", name="micro_f1"),
            F1FromLogits(average="macro", name="macro_f1"),
        ]

    def encode_labels(self, labels: Any) -> np.ndarray:
        """Return targets, float32 (N, labels): 1 for each label that a row carries."""
        matrix = _matrix(labels)
        if matrix is not None:
            values = np.unique(matrix)
            if matrix.shape[1] != self.num_outputs or not np.isin(values, (0, 1)).all():
                raise InputError(
                    f"A matrix of labels must hold 0 and 1 in {self.num_outputs} columns, one a "
                    f"label; this one is {matrix.shape[1]} wide and holds "
                    f"{shown(values.tolist())}. Or give each row's labels as a list."
                )
            return matrix.astype("float32")
        rows = rows_of(labels)
        targets = np.zeros((len(rows), self.num_outputs), dtype="float32")
        for row, entry in enumerate(rows):
            for label in _list(entry, row):
                targets[row, self.space.id_of(label, row)] = 1.0
        return targets

    def class_weights(self, targets: np.ndarray, class_weight: Mapping[Any, float]) -> np.ndarray:
        """Return weights of the loss, float32 (N, labels): a label's weight where it is carried."""
        return np.where(targets > 0, self.space.weights(class_weight), np.float32(1.0))

    def as_dense(self) -> Dense:
        kernel, bias = (np.asarray(x, dtype="float32") for x in (self.kernel, self.bias))
        return Dense(kernel, bias, self.labels, "multi_label_classification")

    def divergence(self, outputs: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
        return bernoulli_divergence(outputs, others)

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-np.clip(outputs, -500, 500)))

    def decode(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """Return a row: `{"labels": those above one half, "scores": {label: probability}}`."""
        rows = []
        for scores in self.probabilities(np.asarray(outputs, dtype="float64")):
            named = list(zip(self.labels, scores, strict=True))
            rows.append(
                {
                    "labels": [label for label, score in named if score > 0.5],
                    "scores": {str(label): float(score) for label, score in named},
                }
            )
        return rows

    def report(self, targets: np.ndarray, outputs: np.ndarray) -> Report:
        return multi_label_report(targets, self.probabilities(np.asarray(outputs, dtype="float64")))


def _matrix(labels: Any) -> np.ndarray | None:
    """Return labels as a matrix if they are a two-dimensional array of numbers."""
    if hasattr(labels, "to_numpy"):  # pandas.DataFrame
        labels = labels.to_numpy()
    elif hasattr(labels, "numpy") and not hasattr(labels, "to_list"):  # tf.Tensor
        labels = labels.numpy()
    if isinstance(labels, np.ndarray) and labels.ndim == 2 and labels.dtype.kind in "biuf":
        return labels
    return None


def _list(entry: Any, row: int) -> list[Any]:
    if isinstance(entry, (list, tuple, set, frozenset, np.ndarray)):
        return list(entry)
    raise InputError(
        f"Label {row} is {shown(entry)}, and a row of the head 'multi_label' has a list of labels. "
        "Give a list, empty for none; in a file, set data.label_separator to split the cell.",
        row,
    )


@keras.saving.register_keras_serializable("bertkit")
class LabelwiseCrossentropy(keras.losses.Loss):
    """Binary cross-entropy of each label, not averaged over labels before it is weighed.

    So sample weights may be (B,) or (B, labels). Targets and logits are (B, labels).
    """

    def __init__(self, name: str = "labelwise_crossentropy", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tf.Tensor:
        if sample_weight is not None:
            sample_weight = tf.convert_to_tensor(sample_weight)
            if sample_weight.shape.rank == 1:
                sample_weight = sample_weight[:, None]  # of rows; (B,) alone would be of labels
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return tf.nn.sigmoid_cross_entropy_with_logits(labels=y_true, logits=y_pred)


@keras.saving.register_keras_serializable("bertkit")
class F1FromLogits(keras.metrics.F1Score):
    """F1 of labels whose logit is above zero, which is a probability above one half."""

    def __init__(self, average: str, name: str, dtype: Any = None, threshold: float = 0.5) -> None:
        super().__init__(average=average, threshold=threshold, name=name, dtype=dtype)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        super().update_state(y_true, tf.sigmoid(y_pred), sample_weight)
