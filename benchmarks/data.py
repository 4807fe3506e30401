"""The rows that are measured on: the demo's sentences about films, cut, joined and relabelled."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.measuring import ROOT, BenchmarkError

FILMS = ROOT / ".cache" / "data" / "film_sentiment"

Row = tuple[str, str]  # text and label


def rows_of(split: str, count: int | None = None) -> list[Row]:
    """Return the first rows of a split: texts and labels.

    Raises:
        BenchmarkError: the data are not there, or too few.
    """
    path = FILMS / f"{split}.csv"
    if not path.is_file():
        raise BenchmarkError(f"{path} is not there. `make data` brings it.")
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(row["text"], row["label"]) for row in csv.DictReader(file)]
    if count is not None and count > len(rows):
        raise BenchmarkError(f"{path} has {len(rows)} rows, and {count} were asked for.")
    return rows[:count]


def write(path: Path, rows: Iterable[Row]) -> str:
    """Write rows as CSV; return the path as text."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(rows)
    return str(path)


def joined(rows: Sequence[Row], sentences: int, count: int) -> list[Row]:
    """Return rows of several sentences each, with the label of their first; they come again."""
    return [
        (
            " ".join(rows[(row * sentences + i) % len(rows)][0] for i in range(sentences)),
            rows[row * sentences % len(rows)][1],
        )
        for row in range(count)
    ]


def relabelled(rows: Sequence[Row], labels: int) -> list[Row]:
    """Return the rows with that many labels, each as frequent as the others, at random."""
    names = [f"label {index % labels}" for index in range(len(rows))]
    random.Random(0).shuffle(names)
    return [(text, name) for (text, _), name in zip(rows, names, strict=True)]
