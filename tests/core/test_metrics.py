"""Measures at rest against scikit-learn and SciPy, and where the rows do not define them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from bertkit.evaluation.metrics import (
    multi_label_report,
    ordinal_report,
    regression_report,
    single_label_report,
)

GENERATOR = np.random.default_rng(3)
NAMES = ["accuracy", "macro_f1", "micro_f1", "roc_auc", "average_precision", "mcc"]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("labels", [2, 3, 7])
def test_one_label_a_row(labels: int) -> None:
    targets = GENERATOR.integers(0, labels, 200)
    logits = GENERATOR.normal(size=(200, labels)) + 1.5 * np.eye(labels)[targets]
    probabilities = softmax(logits)
    predicted = logits.argmax(axis=1)
    report = single_label_report(targets, probabilities)
    assert list(report) == NAMES
    scores: Any = probabilities[:, 1] if labels == 2 else probabilities
    one_hot = np.eye(labels)[targets]
    precision = (
        metrics.average_precision_score(targets, scores)
        if labels == 2
        else metrics.average_precision_score(one_hot, scores, average="macro")
    )
    assert report == pytest.approx(
        {
            "accuracy": np.mean(predicted == targets),
            "macro_f1": metrics.f1_score(targets, predicted, average="macro"),
            "micro_f1": metrics.f1_score(targets, predicted, average="micro"),
            "roc_auc": metrics.roc_auc_score(targets, scores, multi_class="ovr"),
            "average_precision": precision,
            "mcc": metrics.matthews_corrcoef(targets, predicted),
        },
        abs=1e-12,
    )


def test_a_label_that_does_not_occur_counts_as_zero_in_macro_f1() -> None:
    report = single_label_report(np.array([0, 1, 0]), np.eye(3)[[0, 1, 0]])
    assert report["macro_f1"] == pytest.approx(2 / 3)
    assert report["accuracy"] == report["micro_f1"] == 1.0
    assert report["roc_auc"] == 1.0  # of the two labels that occur


def test_of_one_label_alone_no_curve_is_defined() -> None:
    report = single_label_report(np.array([1, 1]), np.array([[0.2, 0.8], [0.6, 0.4]]))
    assert report["roc_auc"] is report["average_precision"] is None
    assert report["accuracy"] == 0.5
    assert report["micro_f1"] == 0.5


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_any_number_of_labels_a_row(threshold: float) -> None:
    targets = GENERATOR.integers(0, 2, (150, 4)).astype("float32")
    scores = 1 / (1 + np.exp(-(GENERATOR.normal(size=(150, 4)) + targets - 0.5)))
    predicted = (scores > threshold).astype(int)
    assert multi_label_report(targets, scores, threshold) == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(targets, predicted),
            "macro_f1": metrics.f1_score(targets, predicted, average="macro"),
            "micro_f1": metrics.f1_score(targets, predicted, average="micro"),
            "roc_auc": metrics.roc_auc_score(targets, scores, average="macro"),
            "average_precision": metrics.average_precision_score(targets, scores, average="macro"),
            "mcc": metrics.matthews_corrcoef(targets.ravel(), predicted.ravel()),
        },
        abs=1e-12,
    )


def test_a_label_that_no_row_carries_is_left_out_of_the_curves() -> None:
    targets = np.array([[1, 0], [0, 0], [1, 0]])
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    report = multi_label_report(targets, scores)
    assert report["roc_auc"] == report["average_precision"] == 1.0
    assert report["macro_f1"] == 0.5


def test_what_is_not_known_counts_nowhere() -> None:
    targets = np.array([[1, np.nan], [0, 1], [np.nan, np.nan], [1, 0]])
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.1, 0.2]])
    other = np.where(np.isnan(targets), 1 - scores, scores)
    report = multi_label_report(targets, scores)
    assert report == multi_label_report(targets, other)
    assert report["accuracy"] == pytest.approx(2 / 3)
    assert report["micro_f1"] == pytest.approx(4 / 5)
    assert report["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert report["roc_auc"] == pytest.approx((1 / 2 + 1) / 2)


def test_ranks() -> None:
    targets, ranks = GENERATOR.integers(0, 5, (2, 100))
    assert ordinal_report(targets, ranks, 5) == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(targets, ranks),
            "mean_absolute_error": metrics.mean_absolute_error(targets, ranks),
            "quadratic_weighted_kappa": metrics.cohen_kappa_score(
                targets, ranks, weights="quadratic"
            ),
        },
        abs=1e-12,
    )


def test_numbers() -> None:
    targets = 1e4 + GENERATOR.normal(size=100)
    values = targets + GENERATOR.normal(size=100)
    assert regression_report(targets, values) == pytest.approx(
        {
            "mean_absolute_error": metrics.mean_absolute_error(targets, values),
            "root_mean_squared_error": metrics.root_mean_squared_error(targets, values),
            "pearson": np.corrcoef(targets, values)[0, 1],
            "spearman": stats.spearmanr(targets, values).statistic,
        },
        abs=1e-9,
    )


def test_numbers_that_never_differ_have_no_correlation() -> None:
    report = regression_report(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0]))
    assert report["pearson"] is report["spearman"] is None
    assert report["mean_absolute_error"] == pytest.approx(2 / 3)
    assert regression_report(np.array([1.0]), np.array([1.5]))["pearson"] is None


@pytest.mark.parametrize(
    "report",
    [
        single_label_report(np.zeros(0, int), np.zeros((0, 3))),
        single_label_report(np.zeros(0, int), np.zeros((0, 2))),
        multi_label_report(np.zeros((0, 3)), np.zeros((0, 3))),
        multi_label_report(np.full((2, 3), np.nan), np.full((2, 3), 0.6)),
        ordinal_report(np.zeros(0, int), np.zeros(0, int), 3),
        regression_report(np.zeros(0), np.zeros(0)),
    ],
)
def test_without_rows_no_measure_is_a_number_that_means_something(report: Any) -> None:
    assert all(value is None for value in report.values()), report
    json.dumps(report, allow_nan=False)


def test_a_report_is_of_plain_floats_and_warns_of_nothing(recwarn: Any) -> None:
    report = single_label_report(np.array([0]), np.array([[0.2, 0.8]]))
    assert {type(value) for value in report.values()} <= {float, type(None)}
    assert not recwarn.list
