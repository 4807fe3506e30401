"""The losses of the heads that ship, of logits in float32.

A target of NaN is not known: its loss is 0, and it stays in the number that the mean is divided
by, as a row does whose sample weight is 0. So the loss of a batch adds up over replicas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

_SMALLEST = 1e-7  # at 0, a power below 1 has no finite gradient


@keras.saving.register_keras_serializable("bertkit")
class LabelwiseCrossentropy(keras.losses.Loss):
    """Binary cross-entropy of each label, not averaged over labels before it is weighed.

    So sample weights may be (B,) or (B, labels). Targets and logits are (B, labels).

    With p the probability of a label, its loss is -(1 - p)^gamma_positive log(p) where it is
    carried and -q^gamma_negative log(1 - q), q = max(p - margin, 0), where it is not. Equal gammas
    without a margin are the focal loss (Lin et al. 2017, https://arxiv.org/abs/1708.02002), others
    the asymmetric one (Ridnik et al. 2021, https://arxiv.org/abs/2009.14119).

    Args:
        label_smoothing: how far targets move towards one half: from 1 to 1 - label_smoothing / 2.
        gamma_positive: how much less an easy row that carries the label counts.
        gamma_negative: how much less an easy row without it counts.
        margin: a probability up to it is no loss where the label is not carried.
        pos_weight: what the loss is multiplied with where a label is carried; one number, or one a
            label.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        gamma_positive: float = 0.0,
        gamma_negative: float = 0.0,
        margin: float = 0.0,
        pos_weight: float | Sequence[float] | None = None,
        name: str = "labelwise_crossentropy",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.label_smoothing = label_smoothing
        self.gamma_positive = gamma_positive
        self.gamma_negative = gamma_negative
        self.margin = margin
        self.pos_weight = pos_weight

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tf.Tensor:
        if sample_weight is not None:
            sample_weight = tf.convert_to_tensor(sample_weight)
            if sample_weight.shape.rank == 1:
                sample_weight = sample_weight[:, None]  # of rows; (B,) alone would be of labels
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Return the loss of each label of each row, (B, labels)."""
        known = ~tf.math.is_nan(y_true)
        carried = tf.where(known, y_true, 0.0)
        carried = carried * (1 - self.label_smoothing) + self.label_smoothing / 2
        if self.gamma_positive or self.gamma_negative or self.margin or self.pos_weight is not None:
            loss = carried * self._positive(y_pred) + (1 - carried) * self._negative(y_pred)
        else:
            loss = tf.nn.sigmoid_cross_entropy_with_logits(labels=carried, logits=y_pred)
        return tf.where(known, loss, 0.0)

    def _positive(self, logits: tf.Tensor) -> tf.Tensor:
        """Return the loss where a label is carried."""
        # softplus(z) is -log(1 - p), so this is a power of 1 - p that is exact at both ends.
        focus = tf.exp(-self.gamma_positive * tf.math.softplus(logits))
        weight = 1.0 if self.pos_weight is None else tf.constant(self.pos_weight, logits.dtype)
        return weight * focus * tf.math.softplus(-logits)

    def _negative(self, logits: tf.Tensor) -> tf.Tensor:
        """Return the loss where a label is not carried."""
        if not self.margin:
            focus = tf.exp(-self.gamma_negative * tf.math.softplus(-logits))
            return focus * tf.math.softplus(logits)
        shifted = tf.maximum(tf.sigmoid(logits) - self.margin, 0.0)
        focus = tf.maximum(shifted, _SMALLEST) ** self.gamma_negative
        return -focus * tf.math.log1p(-shifted)

    def get_config(self) -> dict[str, Any]:
        names = ("label_smoothing", "gamma_positive", "gamma_negative", "margin", "pos_weight")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable("bertkit")
class SingleLabelCrossentropy(keras.losses.Loss):
    """Cross-entropy of one label a row: ids, (B,), and logits, (B, labels), to (B,).

    The loss is the sum over labels c of -target_c (1 - p_c)^gamma log(p_c), times the weight of the
    row's label: with gamma the focal loss (Lin et al. 2017, https://arxiv.org/abs/1708.02002).

    Args:
        label_smoothing: the share of each target that goes to all labels alike (Szegedy et al.
            2016, https://arxiv.org/abs/1512.00567).
        gamma: how much less an easy row counts.
        weights: of the rows of each label; 1 each if `None`.
        offsets: added to the logits of each label, in the loss alone; 0 each if `None`.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        gamma: float = 0.0,
        weights: Sequence[float] | None = None,
        offsets: Sequence[float] | None = None,
        name: str = "single_label_crossentropy",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.label_smoothing = label_smoothing
        self.gamma = gamma
        self.weights = weights
        self.offsets = offsets

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Return the loss of each row, (B,)."""
        y_true = tf.reshape(y_true, (-1,))
        known = ~tf.math.is_nan(y_true)
        ids = tf.cast(tf.where(known, y_true, 0.0), tf.int32)
        if self.offsets is not None:
            y_pred = y_pred + tf.constant(self.offsets, y_pred.dtype)
        labels = y_pred.shape[-1]
        spread = self.label_smoothing / labels
        targets = tf.one_hot(ids, labels, 1 - self.label_smoothing + spread, spread)
        log_p = tf.nn.log_softmax(y_pred)  # (B, labels)
        terms = -targets * log_p
        if self.gamma:
            terms *= tf.maximum(-tf.math.expm1(log_p), _SMALLEST) ** self.gamma
        loss = tf.reduce_sum(terms, axis=-1)
        if self.weights is not None:
            loss *= tf.gather(tf.constant(self.weights, loss.dtype), ids)
        return tf.where(known, loss, 0.0)

    def get_config(self) -> dict[str, Any]:
        names = ("label_smoothing", "gamma", "weights", "offsets")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable("bertkit")
class OrdinalCrossentropy(keras.losses.Loss):
    """Binary cross-entropy of whether a rank is above each of those below the highest.

    Ranks, (B,), and logits, (B, ranks - 1), to the mean over the latter, (B,).

    Args:
        conditional: whether logit k is of a rank above k among the rows whose rank is at least k,
            as in CORN (Shi, Cao and Raschka 2023, https://arxiv.org/abs/2111.08851), and other rows
            add 0 to it; or of a rank above k among all rows, as in CORAL (Cao, Mirjalili and
            Raschka 2020, https://arxiv.org/abs/1901.07884). CORN's authors divide by the number of
            pairs of row and rank in a batch that count; here it is rows, so that losses add up.
    """

    def __init__(
        self, conditional: bool, name: str = "ordinal_crossentropy", **kwargs: Any
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.conditional = conditional

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Return the loss of each row, (B,)."""
        ranks = tf.reshape(y_true, (-1, 1))  # nothing is above or below NaN
        steps = tf.range(y_pred.shape[-1], dtype=y_pred.dtype)
        above = tf.cast(ranks > steps, y_pred.dtype)  # (B, ranks - 1)
        counts = ranks >= (steps if self.conditional else tf.zeros_like(steps))
        loss = tf.nn.sigmoid_cross_entropy_with_logits(labels=above, logits=y_pred)
        return tf.reduce_mean(tf.where(counts, loss, 0.0), axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "conditional": self.conditional}


@keras.saving.register_keras_serializable("bertkit")
class StandardizedSquaredError(keras.losses.Loss):
    """Squared error in units of `scale`: (B, 1) targets and predictions to (B,)."""

    def __init__(
        self, scale: float, name: str = "standardized_squared_error", **kwargs: Any
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.scale = scale

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        error = (y_true - y_pred) / self.scale
        return tf.reduce_mean(tf.square(tf.where(tf.math.is_nan(y_true), 0.0, error)), axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "scale": self.scale}


@keras.saving.register_keras_serializable("bertkit")
class PairwiseMargin(keras.losses.Loss):
    """How far pairs of rows are from the order of their targets.

    It is the hinge of the ranking SVM (Joachims 2002, https://doi.org/10.1145/775047.775067). The
    loss of a batch is the mean of max(0, margin - (s_i - s_j) / scale) over its pairs of targets
    y_i > y_j, each times the weights of both rows; 0 if there is no pair. Targets and scores are
    (B, 1), weights (B,). Of a batch over several replicas, each has the pairs of its own rows.

    Args:
        margin: how far apart scores are to be, in units of `scale`.
        scale: of the scores.
    """

    compares_rows = True

    def __init__(
        self, margin: float, scale: float, name: str = "pairwise_margin", **kwargs: Any
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.margin = margin
        self.scale = scale

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tf.Tensor:
        targets = tf.reshape(tf.cast(y_true, self.dtype), (-1, 1))
        weights = tf.ones_like(targets)
        if sample_weight is not None:
            weights = tf.reshape(tf.cast(sample_weight, self.dtype), (-1, 1))
        # A weight belongs to pairs, and Keras would multiply it with rows.
        return super().__call__(tf.concat([targets, weights], axis=1), y_pred)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Return the loss of each row, (B,), whose mean over rows is that over pairs."""
        targets, weights = y_true[:, :1], y_true[:, 1:]  # (B, 1) each
        scores = tf.reshape(y_pred, (-1, 1)) / self.scale
        ordered = tf.cast(targets > tf.transpose(targets), scores.dtype)  # (B, B): no NaN is
        missed = tf.nn.relu(self.margin - (scores - tf.transpose(scores)))
        losses = tf.reduce_sum(ordered * weights * tf.transpose(weights) * missed, axis=1)
        rows = tf.cast(tf.shape(scores)[0], scores.dtype)
        return losses * tf.math.divide_no_nan(rows, tf.reduce_sum(ordered))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "margin": self.margin, "scale": self.scale}
