"""The contract of a head: labels in, logits and predictions out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from bertkit.errors import InputError
from bertkit.labels import Label, LabelSpace, is_missing, plain, rows_of


class Dense(NamedTuple):
    """A head as other programs have it: one dense layer over the pooled features.

    Attributes:
        kernel: float32, (H, outputs).
        bias: float32, (outputs,).
        labels: one an output.
        problem: what outputs are: logits of labels that exclude one another (softmax), or of
            which each stands alone (sigmoid), or the predicted numbers.
        left_out: a sentence about what the head does beyond this, if anything.
    """

    kernel: NDArray[np.float32]
    bias: NDArray[np.float32]
    labels: list[Label]
    problem: Literal["single_label_classification", "multi_label_classification", "regression"]
    left_out: str = ""


class Head(keras.layers.Layer):
    """Base class of heads: what the labels mean, from raw label to loss to prediction.

    As it stands it predicts one of several labels by a dense layer over the pooled features. A
    subclass defines `make_loss`, `make_metrics` and `probabilities`, and overrides what else
    differs. A head learns its labels from the data (`adapt`) unless they are given.

    The names are `make_loss` and not `loss`, and so on, since `keras.layers.Layer` already uses
    `losses`, `metrics`, `input`, `output`, `path` and `dtype` for something else.

    Args:
        labels: the labels in the order of their ids; learned from the data, sorted, if `None`.
        dropout: rate on the features.

    Attributes:
        reads: the features that `call` reads, of "pooled" and "sequence".
        single_label: whether a row has one label; its target is the label's id then.
        ignore_missing: whether a row may lack its label. Its target is NaN then, and a head that
            sets this has a loss and metrics to which such a target adds nothing.
    """

    reads: ClassVar[tuple[str, ...]] = ("pooled",)
    single_label: ClassVar[bool] = True
    ignore_missing: bool = False

    def __init__(
        self, labels: list[Label] | None = None, dropout: float = 0.1, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= dropout < 1:
            raise InputError(f"A head's dropout is {dropout}; it must be in [0, 1).")
        self.dropout = dropout
        self.seed_generator = keras.random.SeedGenerator()
        self._space = None if labels is None else self._checked(LabelSpace(labels))

    def adapt(self, labels: Any) -> None:
        """Learn the label space from raw labels, one a row.

        Raises:
            InputError: a label is missing or of a wrong kind.
        """
        self._space = self._checked(self._learned(labels))

    def _learned(self, labels: Any) -> LabelSpace:
        """Return the space of raw labels, one a row; for subclasses that order it otherwise."""
        rows = enumerate(rows_of(labels))
        return LabelSpace.learn(plain(label, row) for row, label in rows if not self._skips(label))

    def _skips(self, label: Any) -> bool:
        return self.ignore_missing and is_missing(label)

    def _checked(self, space: LabelSpace) -> LabelSpace:
        """Return the space if the head can use it; for subclasses to refuse others."""
        if len(space) < 2:
            raise InputError(
                f"The only label is {space.labels[0]!r}, and one label leaves nothing to learn. "
                "Check the label column, or give `labels`."
            )
        return space

    @property
    def adapted(self) -> bool:
        """Whether the head knows its label space."""
        return self._space is not None

    @property
    def labels(self) -> list[Label]:
        """The labels in the order of their ids.

        Raises:
            InputError: they are not known yet.
        """
        return self.space.labels

    @property
    def space(self) -> LabelSpace:
        """The label space.

        Raises:
            InputError: it is not known yet.
        """
        if self._space is None:
            raise InputError(
                f"{type(self).__name__} does not know its labels yet. Give `labels=[...]`, call "
                "`head.adapt(labels)`, or call `fit` with the labels first."
            )
        return self._space

    @property
    def num_outputs(self) -> int:
        """How many logits a row has."""
        return len(self.space)

    def build(self, input_shape: Mapping[str, Any]) -> None:
        """Make the dense layer's weights from the shapes of the features."""
        self.kernel = self.add_weight(
            shape=(input_shape["pooled"][-1], self.num_outputs),
            initializer=keras.initializers.TruncatedNormal(stddev=0.02),
            name="kernel",
        )
        self.bias = self.add_weight(shape=(self.num_outputs,), initializer="zeros", name="bias")

    def call(self, features: Mapping[str, Any], training: bool = False) -> tf.Tensor:
        """Return logits, (B, num_outputs), from the encoder's features."""
        pooled = features["pooled"]  # (B, H)
        if training and self.dropout > 0:
            pooled = keras.random.dropout(pooled, self.dropout, seed=self.seed_generator)
        return tf.nn.bias_add(tf.matmul(pooled, self.kernel), self.bias)

    def make_loss(self) -> keras.losses.Loss:
        """Return a new loss of targets (as `encode_labels` gives them) and logits."""
        raise NotImplementedError(f"{type(self).__name__} must define `make_loss`.")

    def make_metrics(self) -> list[keras.metrics.Metric]:
        """Return new metrics of targets and logits."""
        raise NotImplementedError(f"{type(self).__name__} must define `make_metrics`.")

    def as_dense(self) -> Dense | None:
        """Return the head as one dense layer, for export; `None` if it is more than that."""
        return None

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        """Return the probability of each label, (N, len(labels)), from logits, (N, outputs)."""
        raise NotImplementedError(f"{type(self).__name__} must define `probabilities`.")

    def divergence(self, outputs: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
        """Return how far predictions are from others, float32 (B,), from logits, (B, outputs).

        It is the Kullback-Leibler divergence of the one distribution of labels from the other, on
        the scale of the loss: zero for equal logits, with a gradient by both. Objectives use it.
        """
        logs, other_logs = tf.nn.log_softmax(outputs), tf.nn.log_softmax(others)
        return tf.reduce_sum(tf.exp(logs) * (logs - other_logs), axis=-1)

    def encode_labels(self, labels: Any) -> np.ndarray:
        """Return targets from raw labels: int32 ids, (N,).

        With `ignore_missing` they are float32, NaN where the label is missing.

        Raises:
            InputError: a label is missing, of a wrong kind, or was never seen.
        """
        space = self.space
        ids = [
            np.nan if self._skips(label) else space.id_of(label, row)
            for row, label in enumerate(rows_of(labels))
        ]
        return np.asarray(ids, dtype="float32" if self.ignore_missing else "int32")

    @classmethod
    def tasks_of(cls, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the tasks of a head that is made with these arguments; none as it stands.

        The label of a row is then a mapping from one or more of the tasks to labels, and what
        `decode` gives for it a mapping from all of them.
        """
        return ()

    def known_tasks(self, targets: np.ndarray) -> np.ndarray:
        """Return of which tasks each row has a label, bool (N, tasks), from targets."""
        return np.zeros((len(targets), 0), dtype=bool)

    def class_weights(self, targets: np.ndarray, class_weight: Mapping[Any, float]) -> np.ndarray:
        """Return sample weights, float32 (N,), from targets and a weight for each label.

        A missing label weighs 0.

        Raises:
            InputError: `class_weight` names what is no label.
        """
        ids = np.asarray(targets).reshape(-1)
        known = ~np.isnan(ids)
        weights = np.zeros(len(ids), dtype="float32")
        weights[known] = self.space.weights(class_weight)[ids[known].astype("int64")]
        return weights

    def decode(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """Return predictions from logits, (N, outputs).

        Returns:
            A row: `{"label": the likeliest, "score": its probability, "scores": {label:
            probability}}`.
        """
        rows = []
        for scores in self.probabilities(np.asarray(outputs, dtype="float64")):
            best = int(np.argmax(scores))
            named = {str(label): float(p) for label, p in zip(self.labels, scores, strict=True)}
            rows.append({"label": self.labels[best], "score": float(scores[best]), "scores": named})
        return rows

    def report(self, targets: np.ndarray, outputs: np.ndarray) -> dict[str, float | None]:
        """Return measures at rest of targets, (N,), against logits, (N, outputs).

        Rows without a label are left out. A measure that the others do not define, such as the
        area under a curve when only one label occurs, is `None`.
        """
        from bertkit.evaluation.metrics import single_label_report

        ids = np.asarray(targets).reshape(-1)
        known = ~np.isnan(ids)
        probabilities = self.probabilities(np.asarray(outputs, dtype="float64")[known])
        return single_label_report(ids[known].astype("int64"), probabilities)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, with the labels as they are known now."""
        labels = None if self._space is None else list(self._space.labels)
        return {**super().get_config(), "labels": labels, "dropout": self.dropout}
