"""Any number of labels, from a logit each."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from bertkit.errors import InputError, shown
from bertkit.evaluation.metrics import Report, multi_label_report
from bertkit.head import Dense, Head
from bertkit.labels import Label, LabelSpace, is_missing, plain, rows_of
from bertkit_plugins.heads.divergence import bernoulli_divergence
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


class MultiLabelHead(Head):
    """Any number of labels, none included, from a logit each.

    A row's labels are a list. A matrix of zeros and ones, (N, labels), is taken as it is; in it,
    NaN or None is what nobody knows, and adds nothing to loss and metrics.
    `class_weight` weighs the rows that carry a label, in that label's own column: the loss is a
    mean over rows and labels, so each label is a binary task of its own.

    Args:
        labels: the labels in the order of their ids; learned from the data, sorted, if `None`.
        dropout: rate on the features.
        loss: "cross_entropy"; "focal", to which easy rows count little; or "asymmetric", to which
            rows that do not carry a label count little, and the easy ones nothing.
        gamma: how much less an easy row counts to the focal loss; 2 if `None`.
        gamma_negative: how much less one that does not carry the label counts to the asymmetric
            loss; 4 if `None`.
        gamma_positive: how much less one that carries it does; 0 if `None`.
        margin: a probability up to which the asymmetric loss leaves out a row that does not carry
            the label; 0.05 if `None`.
        label_smoothing: how far targets move towards one half.
        pos_weight: how often a row that carries a label counts, one number or one a label;
            "balanced": as often as makes both sides weigh the same, learned from the data. Once if
            `None`.
    """

    single_label = False

    def __init__(
        self,
        labels: list[Label] | None = None,
        dropout: float = 0.1,
        loss: Literal["cross_entropy", "focal", "asymmetric"] = "cross_entropy",
        gamma: float | None = None,
        gamma_negative: float | None = None,
        gamma_positive: float | None = None,
        margin: float | None = None,
        label_smoothing: float = 0.0,
        pos_weight: float | list[float] | Literal["balanced"] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(labels, dropout, **kwargs)
        check_choice("loss", loss, ("cross_entropy", "focal", "asymmetric"))
        check_of_loss(loss, "focal", gamma=gamma)
        check_of_loss(
            loss, "asymmetric", gamma_negative=gamma_negative, gamma_positive=gamma_positive,
            margin=margin,
        )  # fmt: skip
        if margin is not None:
            check_number("margin", margin, below=1)
        check_number("label_smoothing", label_smoothing, below=1)
        check_pos_weight(pos_weight)
        if pos_weight is not None and loss == "asymmetric":
            raise InputError(
                f"pos_weight is {shown(pos_weight)}, and the loss 'asymmetric' favours rows that "
                "carry a label by itself. Leave one of them out."
            )
        self.loss = loss
        self.gamma = gamma
        self.gamma_negative = gamma_negative
        self.gamma_positive = gamma_positive
        self.margin = margin
        self.label_smoothing = label_smoothing
        self.pos_weight = pos_weight

    def _checked(self, space: LabelSpace) -> LabelSpace:
        return space

    def _learned(self, labels: Any) -> LabelSpace:
        matrix = _matrix(labels)
        if matrix is not None:
            return LabelSpace(range(matrix.shape[1]))
        rows = enumerate(rows_of(labels))
        return LabelSpace.learn(plain(x, row) for row, xs in rows for x in _list(xs, row))

    def adapt(self, labels: Any) -> None:
        """Learn the labels, and a balanced `pos_weight`; labels that were given stay for that."""
        before = self._space
        if self.pos_weight != "balanced" or before is None:
            super().adapt(labels)
        if self.pos_weight == "balanced":
            try:
                self.pos_weight = balanced(self.encode_labels(labels), self.labels)
            except InputError:
                self._space = before
                raise

    @property
    def adapted(self) -> bool:
        return super().adapted and self.pos_weight != "balanced"

    def make_loss(self) -> keras.losses.Loss:
        positive = negative = focal_gamma(self.loss, self.gamma)
        margin = 0.0
        if self.loss == "asymmetric":  # the paper's own defaults
            positive = _given(self.gamma_positive, 0.0)
            negative = _given(self.gamma_negative, 4.0)
            margin = _given(self.margin, 0.05)
        pos_weight = learned_weight(self.pos_weight)
        if isinstance(pos_weight, (list, tuple)) and len(pos_weight) != self.num_outputs:
            raise InputError(
                f"pos_weight has {len(pos_weight)} numbers, and there are {self.num_outputs} "
                f"labels: {shown(self.labels)}. Give one a label, or one for all."
            )
        return LabelwiseCrossentropy(self.label_smoothing, positive, negative, margin, pos_weight)

    def make_metrics(self) -> list[keras.metrics.Metric]:
        return [
            F1FromLogits(average="micro", name="micro_f1"),
            F1FromLogits(average="macro", name="macro_f1"),
        ]

    def encode_labels(self, labels: Any) -> np.ndarray:
        """Return targets, float32 (N, labels): 1 for each label that a row carries.

        They are NaN where a matrix is, or has `None`.
        """
        matrix = _matrix(labels)
        if matrix is not None:
            values = np.unique(matrix[~np.isnan(matrix)])
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

    def get_config(self) -> dict[str, Any]:
        names = ("loss", "gamma", "gamma_negative", "gamma_positive", "margin", "label_smoothing",
                 "pos_weight")  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

    def report(self, targets: np.ndarray, outputs: np.ndarray) -> Report:
        return multi_label_report(targets, self.probabilities(np.asarray(outputs, dtype="float64")))


def _matrix(labels: Any) -> np.ndarray | None:
    """Return labels as a matrix if they are a two-dimensional array of numbers, NaN or None."""
    if hasattr(labels, "to_numpy"):  # pandas.DataFrame
        labels = labels.to_numpy()
    elif hasattr(labels, "numpy") and not hasattr(labels, "to_list"):  # tf.Tensor
        labels = labels.numpy()
    if not isinstance(labels, np.ndarray) or labels.ndim != 2:
        return None
    if labels.dtype.kind == "O" and any(is_missing(cell) for cell in labels.flat):
        cells = [np.nan if is_missing(cell) else cell for cell in labels.flat]
        if all(isinstance(cell, Real) for cell in cells):  # as pandas holds them
            labels = np.array(cells, dtype="float64").reshape(labels.shape)
    return labels if labels.dtype.kind in "biuf" else None


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def _list(entry: Any, row: int) -> list[Any]:
    if isinstance(entry, (list, tuple, set, frozenset, np.ndarray)):
        return list(entry)
    raise InputError(
        f"Label {row} is {shown(entry)}, and a row of the head 'multi_label' has a list of labels. "
        "Give a list, empty for none; in a file, set data.label_separator to split the cell.",
        row,
    )


@keras.saving.register_keras_serializable("bertkit")
class F1FromLogits(keras.metrics.F1Score):
    """F1 of labels whose logit is above zero, which is a probability above one half.

    A target of NaN counts nowhere: it is taken as neither carried nor predicted.
    """

    def __init__(self, average: str, name: str, dtype: Any = None, threshold: float = 0.5) -> None:
        super().__init__(average=average, threshold=threshold, name=name, dtype=dtype)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        targets = tf.cast(y_true, self.dtype)
        known = ~tf.math.is_nan(targets)
        predicted = tf.where(known, tf.sigmoid(tf.cast(y_pred, self.dtype)), 0.0)
        super().update_state(tf.where(known, targets, 0.0), predicted, sample_weight)
