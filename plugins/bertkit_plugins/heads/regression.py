"""A number a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bertkit.errors import InputError, shown
from bertkit.evaluation.metrics import Report, regression_report
from bertkit.head import Dense, Head
from bertkit.labels import rows_of

_LARGEST = float(np.finfo("float32").max)


class RegressionHead(Head):
    """A number a row, such as a rating.

    The network works on standardized numbers, so that the learning rate of a classifier suits
    any scale; outputs, metrics and predictions are in the unit of the labels.

    Args:
        range: the smallest and the largest number there can be; labels outside are refused and
            predictions are clipped to it. Learned scale and no limits, if `None`.
        center: the number that stands for zero inside; learned from the data if `None`.
        scale: the number that stands for one inside; learned from the data if `None`.
        dropout: rate on the features.
    """

    single_label = False

    def __init__(
        self,
        range: list[float] | None = None,
        center: float | None = None,
        scale: float | None = None,
        dropout: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(None, dropout, **kwargs)
        if range is not None and (len(range) != 2 or not range[0] < range[1]):
            raise InputError(f"range is {range}; give the smallest and the largest number.")
        if scale is not None and not scale > 0:
            raise InputError(f"scale is {scale}; it must be above 0.")
        self.range = range
        self.center = center
        self.scale = scale

    @property
    def adapted(self) -> bool:
        return self.center is not None and self.scale is not None

    @property
    def num_outputs(self) -> int:
        return 1

    def adapt(self, labels: Any) -> None:
        """Learn mean and standard deviation, as far as they are not given."""
        numbers = self._numbers(labels)
        if not numbers.size:
            raise InputError("There are no labels. Give at least one.")
        if self.center is None:
            self.center = float(numbers.mean())
        if self.scale is None:
            self.scale = float(numbers.std()) or 1.0

    def call(self, features: Mapping[str, Any], training: bool = False) -> tf.Tensor:
        """Return predicted numbers, float32 (B, 1)."""
        center, scale = self._known()
        return center + scale * tf.cast(super().call(features, training=training), tf.float32)

    def _known(self) -> tuple[float, float]:
        if self.center is None or self.scale is None:
            raise InputError(
                "RegressionHead does not know the scale of its labels yet. Give `center` and "
                "`scale`, call `head.adapt(labels)`, or call `fit` with the labels first."
            )
        return self.center, self.scale

    def as_dense(self) -> Dense:
        """Return the layer with center and scale in it."""
        center, scale = self._known()
        kernel, bias = (np.asarray(x, dtype="float64") for x in (self.kernel, self.bias))
        return Dense(
            (scale * kernel).astype("float32"),
            (center + scale * bias).astype("float32"),
            ["value"],
            "regression",
            f"Its numbers are not clipped to the range {self.range}." if self.range else "",
        )

    def make_loss(self) -> keras.losses.Loss:
        return StandardizedSquaredError(scale=self._known()[1])

    def make_metrics(self) -> list[keras.metrics.Metric]:
        return [
            keras.metrics.MeanAbsoluteError(name="mean_absolute_error"),
            RunningPearson(name="pearson"),
        ]

    def divergence(self, outputs: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
        """Return that of normal distributions as wide as the scale, (B,)."""
        return tf.reduce_mean(tf.square((outputs - others) / self._known()[1]), axis=-1) / 2

    def encode_labels(self, labels: Any) -> np.ndarray:
        """Return targets, float32 (N, 1).

        Raises:
            InputError: a label is no finite number, or outside `range`.
        """
        return self._numbers(labels).astype("float32")[:, None]

    def _numbers(self, labels: Any) -> np.ndarray:
        """Return labels as float64, (N,)."""
        numbers = []
        for row, label in enumerate(rows_of(labels)):
            try:
                number = float(label)
            except (TypeError, ValueError, OverflowError):
                number = np.nan
            if not abs(number) <= _LARGEST:
                raise InputError(
                    f"Label {row} is {shown(label)}, and the head 'regression' needs a finite "
                    "number. Correct or drop the row; named labels need 'binary' or 'multiclass'.",
                    row,
                )
            if self.range is not None and not self.range[0] <= number <= self.range[1]:
                raise InputError(
                    f"Label {row} is {number:g}, outside the range {self.range}. Correct the row "
                    "or widen `range`.",
                    row,
                )
            numbers.append(number)
        return np.asarray(numbers, dtype="float64")

    def class_weights(self, targets: np.ndarray, class_weight: Mapping[Any, float]) -> np.ndarray:
        raise InputError(
            "class_weight has no meaning for numbers. Give `sample_weight`, one weight a row."
        )

    def decode(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """Return a row: `{"value": the predicted number}`."""
        return [{"value": float(value)} for value in self._clipped(outputs)]

    def report(self, targets: np.ndarray, outputs: np.ndarray) -> Report:
        return regression_report(
            np.asarray(targets, dtype="float64").reshape(-1), self._clipped(outputs)
        )

    def _clipped(self, outputs: np.ndarray) -> np.ndarray:
        values = np.asarray(outputs, dtype="float64").reshape(-1)
        return values if self.range is None else np.clip(values, self.range[0], self.range[1])

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["labels"]
        return {**config, "range": self.range, "center": self.center, "scale": self.scale}


@keras.saving.register_keras_serializable("bertkit")
class StandardizedSquaredError(keras.losses.Loss):
    """Squared error in units of `scale`: (B, 1) targets and predictions to (B,)."""

    def __init__(
        self, scale: float, name: str = "standardized_squared_error", **kwargs: Any
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.scale = scale

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(tf.square((y_true - y_pred) / self.scale), axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "scale": self.scale}


@keras.saving.register_keras_serializable("bertkit")
class RunningPearson(keras.metrics.Metric):
    """Pearson's correlation over all rows seen; Keras's own averages that of each batch.

    The means and the sums of squares are merged batch by batch, by the method of Chan, Golub and
    LeVeque 1979, which loses no digits to large means. Sample weights are not used.
    """

    def __init__(self, name: str = "pearson", dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self._direction = "up"  # for callbacks with mode="auto", as Keras's own metrics say it
        self.count = self.add_weight(name="count", initializer="zeros")
        self.mean = self.add_weight(name="mean", shape=(2,), initializer="zeros")
        self.products = self.add_weight(name="products", shape=(2, 2), initializer="zeros")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        columns = [tf.reshape(tf.cast(y, self.dtype), (-1,)) for y in (y_true, y_pred)]
        rows = tf.stack(columns, axis=1)  # (B, 2)
        count = tf.cast(tf.shape(rows)[0], self.dtype)
        mean = tf.math.divide_no_nan(tf.reduce_sum(rows, axis=0), count)
        centred = rows - mean
        total = self.count + count
        shift = mean - self.mean  # (2,)
        between = shift[:, None] * shift[None, :] * tf.math.divide_no_nan(self.count * count, total)
        self.products.assign_add(tf.matmul(centred, centred, transpose_a=True) + between)
        self.mean.assign_add(shift * tf.math.divide_no_nan(count, total))
        self.count.assign(total)

    def result(self) -> tf.Tensor:
        variances = tf.linalg.diag_part(tf.convert_to_tensor(self.products))
        return tf.math.divide_no_nan(self.products[0, 1], tf.sqrt(tf.reduce_prod(variances)))
