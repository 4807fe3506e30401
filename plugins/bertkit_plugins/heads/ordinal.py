"""One of several labels that have an order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from bertkit.errors import InputError, shown
from bertkit.evaluation.metrics import Report, ordinal_report
from bertkit.head import Head
from bertkit.labels import Label, LabelSpace
from bertkit_plugins.heads.divergence import bernoulli_divergence
from bertkit_plugins.heads.known import OfKnown
from bertkit_plugins.heads.losses import OrdinalCrossentropy
from bertkit_plugins.heads.options import check_choice


class OrdinalHead(Head):
    """One of several labels that have an order, such as a number of stars.

    A logit for each label but the highest says whether the row is above it. The predicted label is
    the lowest that the row is not above with a probability over one half: the median.

    Args:
        labels: the labels from the lowest to the highest; if `None`, and the labels are numbers,
            or texts of numbers, learned from the data.
        dropout: rate on the features.
        method: "corn": logit k is of the rows that are above label k - 1, and has its own weights
            (Shi, Cao and Raschka 2023, https://arxiv.org/abs/2111.08851); or "coral": each logit
            is of all rows, and they share their weights but for the bias (Cao, Mirjalili and
            Raschka 2020, https://arxiv.org/abs/1901.07884).
        ignore_missing: whether rows without a label are taken, and add nothing.
    """

    def __init__(
        self,
        labels: list[Label] | None = None,
        dropout: float = 0.1,
        method: Literal["corn", "coral"] = "corn",
        ignore_missing: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(labels, dropout, **kwargs)
        check_choice("method", method, ("corn", "coral"))
        self.method = method
        self.ignore_missing = ignore_missing

    def _learned(self, labels: Any) -> LabelSpace:
        return LabelSpace(sorted(super()._learned(labels).labels, key=_number))

    @property
    def num_outputs(self) -> int:
        return len(self.space) - 1

    def build(self, input_shape: Mapping[str, Any]) -> None:
        """Make the weights: for CORAL one column of them, and a bias for each logit."""
        if self.method == "corn":
            super().build(input_shape)
            return
        self.kernel = self.add_weight(
            shape=(input_shape["pooled"][-1], 1),
            initializer=keras.initializers.TruncatedNormal(stddev=0.02),
            name="kernel",
        )
        self.bias = self.add_weight(shape=(self.num_outputs,), initializer="zeros", name="bias")

    def call(self, features: Mapping[str, Any], training: bool = False) -> tf.Tensor:
        """Return logits, (B, labels - 1)."""
        if self.method == "corn":
            return super().call(features, training)
        pooled = features["pooled"]  # (B, H)
        if training and self.dropout > 0:
            pooled = keras.random.dropout(pooled, self.dropout, seed=self.seed_generator)
        return tf.matmul(pooled, self.kernel) + self.bias  # (B, 1) + (labels - 1,)

    def make_loss(self) -> keras.losses.Loss:
        return OrdinalCrossentropy(conditional=self.method == "corn")

    def make_metrics(self) -> list[keras.metrics.Metric]:
        conditional = self.method == "corn"
        metrics = [RankAccuracy(conditional), RankError(conditional)]
        return [OfKnown(metric) for metric in metrics] if self.ignore_missing else metrics

    def _above(self, outputs: np.ndarray) -> np.ndarray:
        """Return the probability that a row is above each label, (N, labels - 1), never rising."""
        steps = 1 / (1 + np.exp(-np.clip(outputs, -500, 500)))
        return (np.cumprod if self.method == "corn" else np.minimum.accumulate)(steps, axis=1)

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        above = self._above(outputs)
        edge = np.ones((len(above), 1))
        return np.concatenate([edge, above], 1) - np.concatenate([above, 0 * edge], 1)

    def ranks(self, outputs: np.ndarray) -> np.ndarray:
        """Return the predicted ranks, int64 (N,), 0 for the lowest label, from logits."""
        return (self._above(np.asarray(outputs, dtype="float64")) > 0.5).sum(axis=1)

    def divergence(self, outputs: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
        """Return the mean over logits, (B,), of the divergences of above and not above.

        Of CORN, a logit counts by the probability that a row is above the label before it, as
        `outputs` have it, which no gradient lowers. The sum over logits is then the divergence of
        the one distribution of labels from the other.
        """
        if self.method == "coral":
            return bernoulli_divergence(outputs, others)
        reached = tf.math.cumprod(tf.sigmoid(outputs), axis=1, exclusive=True)
        return bernoulli_divergence(outputs, others, tf.stop_gradient(reached))

    def decode(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """Return a row: `{"label": the median, "score": its probability, "scores": {label: …}}`."""
        rows = super().decode(outputs)
        for row, rank in zip(rows, self.ranks(outputs), strict=True):
            label = self.labels[rank]
            row |= {"label": label, "score": row["scores"][str(label)]}
        return rows

    def report(self, targets: np.ndarray, outputs: np.ndarray) -> Report:
        """Return accuracy, mean absolute error in ranks, and quadratic weighted kappa."""
        targets = np.asarray(targets).reshape(-1)
        known = ~np.isnan(targets)
        ranks = self.ranks(outputs)[known]
        return ordinal_report(targets[known].astype("int64"), ranks, len(self.space))

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {**config, "method": self.method, "ignore_missing": self.ignore_missing}


def _number(label: Label) -> float:
    """Return what a label counts as in the order of labels."""
    try:
        number = float(label)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(
            f"The label {shown(label)} is no number, and nothing says where it stands. Give "
            "`labels` from the lowest to the highest."
        )
    return number


def _ranks(logits: tf.Tensor, conditional: bool) -> tf.Tensor:
    """Return the predicted ranks, (B,), as `OrdinalHead.ranks` does."""
    above = tf.sigmoid(logits)
    if conditional:
        above = tf.math.cumprod(above, axis=1)
    passed = tf.math.cumprod(tf.cast(above > 0.5, tf.float32), axis=1)
    return tf.reduce_sum(passed, axis=1)


@keras.saving.register_keras_serializable("bertkit")
class RankAccuracy(keras.metrics.Mean):
    """The share of rows whose rank is predicted: targets, (B,), and logits, (B, ranks - 1).

    Args:
        conditional: whether logits are those of CORN.
    """

    def __init__(self, conditional: bool, name: str = "accuracy", dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self.conditional = conditional
        self._direction = "up"

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        ranks = tf.cast(tf.reshape(y_true, (-1,)), tf.float32)
        super().update_state(_ranks(y_pred, self.conditional) == ranks, sample_weight)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "conditional": self.conditional}


@keras.saving.register_keras_serializable("bertkit")
class RankError(keras.metrics.Mean):
    """The mean number of ranks between prediction and target; otherwise as `RankAccuracy`.

    Args:
        conditional: whether logits are those of CORN.
    """

    def __init__(
        self, conditional: bool, name: str = "mean_absolute_error", dtype: Any = None
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.conditional = conditional
        self._direction = "down"

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        ranks = tf.cast(tf.reshape(y_true, (-1,)), tf.float32)
        super().update_state(tf.abs(_ranks(y_pred, self.conditional) - ranks), sample_weight)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "conditional": self.conditional}
