"""The report of what was read, against pandas and NumPy."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bertkit.data.files import Row
from bertkit.data.report import DataReport, render, warnings

few_texts = st.sampled_from(["", "a", "b", "ab", "c", "é", "A"])
pairs = st.tuples(few_texts, few_texts)


def report_of(cells: list[tuple[Any, Any]]) -> DataReport:
    report = DataReport()
    for line, (texts, label) in enumerate(cells, start=1):
        texts = (texts,) if isinstance(texts, str) else texts
        report.add(Row(texts, label, "a.csv", line))
    return report


def text_of(*reports: DataReport, width: int = 120) -> str:
    console = Console(width=width)
    names = ("train", "validation", "test")
    with console.capture() as captured:
        console.print(render(dict(zip(names, reports, strict=False))))
    return captured.get()


@given(
    st.lists(st.tuples(few_texts | pairs, st.sampled_from(["x", "y", "z"])), max_size=30),
    st.lists(st.tuples(few_texts | pairs, st.sampled_from(["x", "w"])), max_size=30),
)
def test_counts_as_pandas_counts_them(first: Any, second: Any) -> None:
    frames, reports = [], []
    for cells in (first, second):
        frame = pd.DataFrame(
            [((texts,) if isinstance(texts, str) else texts, label) for texts, label in cells],
            columns=["texts", "label"],
        )
        reports.append(report_of(cells))
        full = frame[[all(texts) for texts in frame.texts]] if len(frame) else frame
        frames.append(full)
        assert reports[-1].rows == len(frame)
        assert reports[-1].empty == len(frame) - len(full)
        duplicated = full.texts.duplicated()
        assert reports[-1].duplicates == duplicated.sum()
        of_first = full.groupby("texts").label.transform("first") if len(full) else full.label
        assert reports[-1].conflicts == (full.label != of_first).sum()
        assert reports[-1].labels == full.label.value_counts().to_dict()
    assert reports[0].overlap(reports[1]) == frames[0].texts.isin(list(frames[1].texts)).sum()
    assert reports[1].overlap(reports[0]) == frames[1].texts.isin(list(frames[0].texts)).sum()


def test_texts_of_a_pair_are_told_apart() -> None:
    texts = [("ab", "c"), ("a", "bc"), ("c", "ab"), ("abc",), ("ab\0c",)]
    assert report_of([(text, "x") for text in texts]).duplicates == 0


def test_lists_of_labels() -> None:
    labels = [["x", "y"], ["y"], [], [], ["y", "x"], ["x", "x"], [3]]
    report = report_of([(f"text {i}", label) for i, label in enumerate(labels)])
    assert report.labels == {"x": 3, "y": 3, "3": 1}
    assert report.unlabelled == 2
    assert report_of([("a", ["x", "y"]), ("a", ["y", "x"]), ("a", ["x"])]).conflicts == 1
    assert report_of([("a", []), ("a", ["x"]), ("a", [])]).conflicts == 1


def test_no_labels() -> None:
    report = report_of([("a", None), ("a", None), ("", None)])
    assert (report.labels, report.numbers, report.unlabelled, report.conflicts) == ({}, None, 0, 0)


@pytest.mark.parametrize("kind", [float, str])
@pytest.mark.parametrize("size", [3, 300, 5000])
def test_numbers_with_fractions_become_mean_min_max(kind: type, size: int) -> None:
    numbers = np.random.default_rng(size).normal(3, 2, size).round(4)
    numbers[size // 2] = 2.0  # whole numbers among them, after some have been folded too
    report = report_of([(str(index), kind(number)) for index, number in enumerate(numbers)])
    assert report.labels == {}
    assert report.numbers == pytest.approx(
        {"mean": numbers.mean(), "min": numbers.min(), "max": numbers.max()}, rel=1e-12
    )
    assert len(report._labels) <= 1024


@pytest.mark.parametrize(
    "labels", [range(3000), map(float, range(5)), ["1", "2", "nan"], [0.5, "x"], ["1.5", "inf"]]
)
def test_other_labels_are_counted(labels: Any) -> None:
    labels = list(labels)
    report = report_of([(str(label), label) for label in labels])
    assert report.labels == dict(Counter(map(str, labels)))
    assert report.numbers is None


@given(
    st.lists(st.lists(st.integers(1, 40) | st.integers(1, 5000), max_size=20), max_size=5),
    st.integers(1, 100),
)
def test_lengths_as_numpy_counts_them(batches: list[list[int]], sequence_length: int) -> None:
    report = DataReport()
    for batch in batches:
        report.add_lengths(np.array(batch, np.int32), sequence_length)
    lengths = np.array([length for batch in batches for length in batch], np.int64)
    if not len(lengths):
        assert report.lengths is None
        return
    assert report.lengths == pytest.approx(
        {
            "median": np.median(lengths),
            "percentile_95": np.percentile(lengths, 95),
            "longest": lengths.max(),
        }
    )
    assert report.truncated == (lengths > sequence_length).sum()


def full_report() -> DataReport:
    report = report_of([("a", "x"), ("a", "y"), ("", "x"), ("b", ["x"]), ("c", [])])
    report.add_lengths(np.array([3, 9]), 4)
    return report


@pytest.mark.parametrize("report", [DataReport(), full_report(), report_of([("a", 0.5)])])
def test_as_dict_survives_json(report: DataReport) -> None:
    found = report.as_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_as_dict() -> None:
    assert full_report().as_dict() == {
        "rows": 5,
        "empty": 1,
        "duplicates": 1,
        "conflicts": 1,
        "unlabelled": 1,
        "labels": {"x": 2, "y": 1},
        "numbers": None,
        "lengths": {"median": 6.0, "percentile_95": 8.7, "longest": 9},
        "sequence_length": 4,
        "truncated": 1,
    }


def test_warnings() -> None:
    train = report_of([("a", "x"), ("b", "x"), ("b", "z"), ("c", "y"), ("d", "y")])
    test = report_of([("a", "x"), ("b", "w"), ("n", "v")])
    train.add_lengths(np.array([8] * 19 + [9]), 8)  # 5 %: no warning
    test.add_lengths(np.array([8] * 9 + [9]), 8)
    assert warnings({"train": train, "test": test}) == [
        "test shares the texts of 2 rows with train.",
        "train repeats texts with another label in 1 row.",
        "10.0% of test is longer than 8 tokens and is truncated: raise sequence_length.",
        "Labels of test that train does not have: 'v', 'w'.",
        "Labels of train with fewer than 2 rows: 'z'.",
    ]


def test_no_warnings() -> None:
    clean = report_of([("a", "x"), ("b", "x")])
    assert warnings({"train": clean, "test": report_of([("c", "x")]), "none": DataReport()}) == []
    numbers = report_of([("a", 0.5), ("b", 1.5)])  # numbers are not a set of labels
    assert warnings({"train": numbers, "test": report_of([("c", 2.0)])}) == []
    assert warnings({}) == []


def test_the_table_shows_splits_side_by_side() -> None:
    train = report_of([(str(i), "[red]x" if i % 4 else "y") for i in range(2000)])
    train.add_lengths(np.array([2, 4, 1234]), 128)
    test = report_of([("0", "y"), ("", "y")])
    lines = [line.split() for line in text_of(train, test).replace("│", " ").splitlines()]
    assert ["rows", "2,000", "2"] in lines
    assert ["empty", "rows", "0", "1", "(50.0%)"] in lines
    assert ["label", "[red]x", "1,500", "(75.0%)", "0"] in lines  # not taken as markup
    assert ["label", "y", "500", "(25.0%)", "1", "(100.0%)"] in lines
    assert ["tokens,", "longest", "1,234"] in lines
    assert ["truncated", "1", "(33.3%)"] in lines
    assert "Warning: validation shares the texts of 1 row with train." in text_of(train, test)


def test_the_table_of_many_labels_numbers_and_nothing() -> None:
    many = report_of([(str(i), f"label {i % 30}") for i in range(100)])
    text = text_of(many)
    assert "3 to 4" in text and "label 7" not in text
    assert "label, mean" in text_of(report_of([("a", 0.5), ("b", 1.5)]))
    assert "rows" in text_of(DataReport(), DataReport())


def test_size_is_twelve_bytes_a_row() -> None:
    report = report_of([(str(index), "x") for index in range(1000)])
    size = len(report._texts.tobytes()) + len(report._row_labels.tobytes())
    assert size == 12_000


def test_hashes_and_order_are_the_same_in_every_process() -> None:
    code = (
        "from bertkit.data.files import Row; from bertkit.data.report import DataReport; "
        "r = DataReport(); r.add(Row(('a', 'é'), list('uvwxyz'), 'f', 1)); "
        "print(*r._texts, *r._row_labels, *r.labels)"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, env={"PYTHONHASHSEED": s}
        ).stdout
        for s in ("1", "2")
    }
    assert len(runs) == 1


def test_mean_of_folded_numbers_is_finite() -> None:
    report = report_of([(str(i), i + 0.5) for i in range(1100)] + [("late", "word")])
    assert report.numbers is not None and math.isfinite(report.numbers["mean"])


def test_labels_of_tasks() -> None:
    """Those of several columns: conflicts and warnings are within a task."""
    labels = [{"mood": "x", "topic": "t"}, {"mood": "y"}, {"topic": "t"}, {"mood": "x"}]
    train = report_of([*zip(["a", "b", "b", "b"], labels, strict=True), ("", {"mood": "x"})])
    test = report_of([("a", {"mood": "z"}), ("c", {"topic": "t"})])
    assert (train.rows, train.empty, train.duplicates, train.conflicts) == (5, 1, 2, 1)
    tasks = train.as_dict()["tasks"]
    assert tasks["mood"] == {"rows": 3, "duplicates": 1, "conflicts": 1, "unlabelled": 0,
                             "labels": {"x": 2, "y": 1}, "numbers": None}  # fmt: skip
    assert tasks["topic"]["labels"] == {"t": 2} and tasks["topic"]["conflicts"] == 0
    assert "tasks" not in report_of([("a", "x")]).as_dict()
    assert warnings({"train": train, "test": test}) == [
        "Task 'mood': test shares the texts of 1 row with train.",
        "Task 'mood': train repeats texts with another label in 1 row.",
        "Task 'mood': Labels of test that train does not have: 'z'.",
        "Task 'mood': Labels of train with fewer than 2 rows: 'y'.",
    ]


def test_reports_of_tasks_joined() -> None:
    first, second = report_of([("a", "x"), ("b", "y"), ("", "y")]), report_of([("a", 0.5)])
    first.add_lengths(np.array([3, 9]), 8)
    second.add_lengths(np.array([3]), 8)
    whole = DataReport.joined({"mood": first, "value": second})
    assert (whole.rows, whole.empty, whole.duplicates, whole.conflicts) == (4, 1, 1, 0)
    assert (whole.truncated, whole.sequence_length) == (1, 8)
    assert whole.lengths is not None and whole.lengths["longest"] == 9
    assert whole.as_dict()["tasks"]["value"]["numbers"] == {"mean": 0.5, "min": 0.5, "max": 0.5}
    lines = text_of(whole).splitlines()
    assert any("mood: label x" in line and "1 (50.0%)" in line for line in lines)
    assert sum("value: label, m" in line for line in lines) == 3
    (line, *_) = warnings({"train": whole})
    assert line == "33.3% of train is longer than 8 tokens and is truncated: raise sequence_length."
