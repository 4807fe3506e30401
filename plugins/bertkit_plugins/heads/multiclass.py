"""One of several labels, from a logit each."""

from __future__ import annotations

from typing import Any, Literal

import keras
import numpy as np

from bertkit.errors import InputError, shown
from bertkit.head import Dense, Head
from bertkit.labels import Label
from bertkit_plugins.heads.known import OfKnown
from bertkit_plugins.heads.losses import SingleLabelCrossentropy
from bertkit_plugins.heads.options import check_choice, check_number, check_of_loss, focal_gamma


class MulticlassHead(Head):
    """One of several labels, from a logit each.

    Args:
        labels: the labels in the order of their ids; learned from the data, sorted, if `None`.
        dropout: rate on the features.
        loss: "cross_entropy", or "focal", to which easy rows count little.
        gamma: how much less they count; 2 if `None`.
        label_smoothing: the share of each target that goes to all labels alike.
        class_balance: beta of class-balanced weights of rows, such as 0.999 (Cui et al. 2019,
            https://arxiv.org/abs/1901.05555): 0 weighs all labels alike, towards 1 the weights
            approach one by the number of rows.
        logit_adjustment: tau, 1.0 in the paper, by which the loss expects frequent labels, so that
            predictions do not (Menon et al. 2021, https://arxiv.org/abs/2007.07314).
        label_counts: rows of each label, for these two; learned from the data if `None`.
        ignore_missing: whether rows without a label are taken, and add nothing.
    """

    def __init__(
        self,
        labels: list[Label] | None = None,
        dropout: float = 0.1,
        loss: Literal["cross_entropy", "focal"] = "cross_entropy",
        gamma: float | None = None,
        label_smoothing: float = 0.0,
        class_balance: float | None = None,
        logit_adjustment: float | None = None,
        label_counts: list[int] | None = None,
        ignore_missing: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(labels, dropout, **kwargs)
        check_choice("loss", loss, ("cross_entropy", "focal"))
        check_of_loss(loss, "focal", gamma=gamma)
        check_number("label_smoothing", label_smoothing, below=1)
        self.loss = loss
        self.gamma = gamma
        self.label_smoothing = label_smoothing
        self.class_balance = class_balance
        self.logit_adjustment = logit_adjustment
        self.label_counts = label_counts
        self.ignore_missing = ignore_missing
        self._check_rare_labels()

    def _check_rare_labels(self) -> None:
        """Check the options that make up for rare labels."""
        if self.class_balance is not None:
            check_number("class_balance", self.class_balance, below=1)
        if self.logit_adjustment is not None:
            check_number("logit_adjustment", self.logit_adjustment)
            if self.class_balance is not None or self.loss == "focal":
                other = "loss='focal'" if self.class_balance is None else "class_balance"
                raise InputError(
                    f"logit_adjustment and {other} are given, and the adjustment is right for "
                    "cross-entropy without weights alone. Choose one of them."
                )
        if self.label_counts is not None:
            if not self._counts_needed:
                raise InputError(
                    f"label_counts is {shown(self.label_counts)}, and nothing uses it. Set "
                    "class_balance or logit_adjustment, or leave it out."
                )
            self._check_counts(self.label_counts)

    def _check_counts(self, counts: list[int]) -> None:
        if self._space is None or len(self._space) != len(counts):
            raise InputError(
                f"label_counts is {shown(counts)}. Give `labels`, and a number for each of them."
            )
        for label, count in zip(self.labels, counts, strict=True):
            if not count > 0:
                raise InputError(
                    f"There are {count} rows of the label {shown(label)}, and class_balance and "
                    "logit_adjustment need some of each. Leave it out of `labels`, or give "
                    "`label_counts`."
                )

    @property
    def _counts_needed(self) -> bool:
        return self.class_balance is not None or self.logit_adjustment is not None

    def adapt(self, labels: Any) -> None:
        """Learn labels, and the rows of each as far as needed; labels that were given stay then."""
        counting = self._counts_needed and self.label_counts is None
        if not counting or self._space is None:
            super().adapt(labels)
        if counting:
            ids = self.encode_labels(labels)
            known = ids[~np.isnan(ids)].astype("int64")
            counts = np.bincount(known, minlength=self.num_outputs).tolist()
            self._check_counts(counts)
            self.label_counts = counts

    @property
    def adapted(self) -> bool:
        return super().adapted and not (self._counts_needed and self.label_counts is None)

    def make_loss(self) -> keras.losses.Loss:
        options = (self.loss, self.label_smoothing, self._counts_needed, self.ignore_missing)
        if options == ("cross_entropy", 0, False, False):
            return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return SingleLabelCrossentropy(
            self.label_smoothing,
            focal_gamma(self.loss, self.gamma),
            self._weights(),
            self._offsets(),
        )

    def _counts(self) -> np.ndarray:
        """Return the rows of each label, float64 (labels,)."""
        if self.label_counts is None:
            raise InputError(
                "class_balance and logit_adjustment need the number of rows of each label. Call "
                "`fit` or `head.adapt(labels)` first, or give `label_counts`."
            )
        self._check_counts(self.label_counts)  # the labels may have been learned anew
        return np.asarray(self.label_counts, dtype="float64")

    def _weights(self) -> list[float] | None:
        """Return the weight of each label, 1 on average: by one over its effective number."""
        if self.class_balance is None:
            return None
        weights = (1 - self.class_balance) / (1 - self.class_balance ** self._counts())
        return [float(weight) for weight in weights / weights.mean()]

    def _offsets(self) -> list[float] | None:
        """Return what the loss adds to the logit of each label: tau times log of its frequency."""
        if self.logit_adjustment is None:
            return None
        priors = self._counts() / self._counts().sum()
        return [float(offset) for offset in self.logit_adjustment * np.log(priors)]

    def make_metrics(self) -> list[keras.metrics.Metric]:
        accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
        return [OfKnown(accuracy) if self.ignore_missing else accuracy]

    def as_dense(self) -> Dense:
        kernel, bias = (np.asarray(x, dtype="float32") for x in (self.kernel, self.bias))
        return Dense(kernel, bias, self.labels, "single_label_classification")

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def get_config(self) -> dict[str, Any]:
        names = ("loss", "gamma", "label_smoothing", "class_balance", "logit_adjustment",
                 "label_counts", "ignore_missing")  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
