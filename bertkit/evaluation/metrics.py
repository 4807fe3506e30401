"""Measures at rest, by scikit-learn and SciPy; what the rows do not define is `None`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Report = dict[str, float | None]


def single_label_report(targets: np.ndarray, probabilities: np.ndarray) -> Report:
    """Measure one label a row.

    Args:
        targets: ids, (N,).
        probabilities: (N, labels).
    """
    from sklearn import metrics

    predicted = probabilities.argmax(axis=1)
    labels = np.arange(probabilities.shape[1])
    one_hot = (targets[:, None] == labels).astype(int)  # (N, labels)
    if len(labels) == 2:  # one column says it all
        one_hot, probabilities = one_hot[:, 1:], probabilities[:, 1:]
    return _measured(
        {
            "accuracy": lambda: metrics.accuracy_score(targets, predicted),
            "macro_f1": lambda: metrics.f1_score(
                targets, predicted, labels=labels, average="macro", zero_division=0
            ),
            "micro_f1": lambda: metrics.f1_score(
                targets, predicted, labels=labels, average="micro", zero_division=0
            ),
            "roc_auc": lambda: _over_columns(metrics.roc_auc_score, one_hot, probabilities),
            "average_precision": lambda: _over_columns(
                metrics.average_precision_score, one_hot, probabilities
            ),
            "mcc": lambda: metrics.matthews_corrcoef(targets, predicted),
        }
    )


def multi_label_report(
    targets: np.ndarray, probabilities: np.ndarray, threshold: float = 0.5
) -> Report:
    """Measure any number of labels a row.

    Args:
        targets: 0 or 1, (N, labels); NaN where it is not known, which counts nowhere.
        probabilities: (N, labels).
        threshold: a label is predicted above it.
    """
    from sklearn import metrics

    known = ~np.isnan(targets)
    judged = known.any(axis=1)  # (N,)
    known, targets, probabilities = known[judged], targets[judged], probabilities[judged]
    # Neither carried nor predicted, an unknown label changes no F1.
    predicted = ((probabilities > threshold) & known).astype(int)
    targets = np.where(known, targets, 0).astype(int)
    return _measured(
        {
            # All labels of a row right that are known, in scikit-learn's sense.
            "accuracy": lambda: (targets == predicted).all(axis=1).mean(),
            "macro_f1": lambda: metrics.f1_score(
                targets, predicted, average="macro", zero_division=0
            ),
            "micro_f1": lambda: metrics.f1_score(
                targets, predicted, average="micro", zero_division=0
            ),
            "roc_auc": lambda: _over_columns(metrics.roc_auc_score, targets, probabilities, known),
            "average_precision": lambda: _over_columns(
                metrics.average_precision_score, targets, probabilities, known
            ),
            "mcc": lambda: metrics.matthews_corrcoef(targets[known], predicted[known]),
        }
    )


def ordinal_report(targets: np.ndarray, ranks: np.ndarray, labels: int) -> Report:
    """Measure one of several ordered labels a row, by rank: 0 is the lowest label.

    Args:
        targets: ranks, (N,).
        ranks: those predicted, (N,).
        labels: how many there are.
    """
    from sklearn import metrics

    return _measured(
        {
            "accuracy": lambda: metrics.accuracy_score(targets, ranks),
            "mean_absolute_error": lambda: np.abs(targets - ranks).mean(),
            "quadratic_weighted_kappa": lambda: metrics.cohen_kappa_score(
                targets, ranks, labels=np.arange(labels), weights="quadratic"
            ),
        }
    )


def regression_report(targets: np.ndarray, values: np.ndarray) -> Report:
    """Measure predicted numbers; targets and values are (N,)."""
    from scipy import stats

    return _measured(
        {
            "mean_absolute_error": lambda: np.abs(targets - values).mean(),
            "root_mean_squared_error": lambda: np.sqrt(np.square(targets - values).mean()),
            "pearson": lambda: stats.pearsonr(targets, values).statistic,
            "spearman": lambda: stats.spearmanr(targets, values).statistic,
        }
    )


def _over_columns(
    measure: Callable[..., Any],
    targets: np.ndarray,
    scores: np.ndarray,
    known: np.ndarray | None = None,
) -> float | None:
    """Return the mean over those columns in which both classes occur among what is known."""
    known = np.ones(targets.shape, bool) if known is None else known
    defined = [
        measure(column[rows], score[rows])
        for column, score, rows in zip(targets.T, scores.T, known.T, strict=True)
        if 0 < column[rows].sum() < rows.sum()
    ]
    return float(np.mean(defined)) if defined else None


def _measured(measures: Mapping[str, Callable[[], Any]]) -> Report:
    report: Report = {}
    for name, measure in measures.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # undefined measures are said by `None`
            try:
                value = measure()
            except ValueError:
                value = None
        report[name] = None if value is None or not np.isfinite(value) else float(value)
    return report
