"""What was read: rows, labels, lengths, duplicates and overlap, counted as rows stream by."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bertkit.data.files import Row

if TYPE_CHECKING:
    from rich.console import Group

_LISTED = 20  # labels that get a line of their own in the table
_COUNTED = 1024  # distinct fractional numbers that are counted one by one
_TRUNCATED = 0.05  # share of texts that may be cut without a warning


class DataReport:
    """Counts over the rows of one split, at 12 bytes a row and one count a distinct label.

    Rows that lack a text are counted as empty, and left out of every other count. Two rows have
    the same texts when 64-bit hashes of all their texts, in order, are equal.

    Rows with labels of several tasks are counted for each of their tasks as well, in a report of
    its own; labels and conflicts are those of the tasks then.

    Attributes:
        rows: rows added.
        empty: rows that lack a text.
        unlabelled: rows whose list of labels is empty.
        truncated: texts longer than the sequence length.
        sequence_length: what they were compared with, in tokens; None before `add_lengths`.
        tasks: a report of the rows of each task, if there are tasks.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.empty = 0
        self.unlabelled = 0
        self.truncated = 0
        self.sequence_length: int | None = None
        self.tasks: dict[str, DataReport] = {}
        self._texts = array("Q")  # a hash of the texts of each row
        self._row_labels = array("I")  # a hash of its label or labels
        self._labels: Counter[str] = Counter()
        self._lengths: Counter[int] = Counter()  # tokens: texts
        self._numbers = [0.0, 0.0, math.inf, -math.inf]  # count, sum, min, max of those folded
        self._fold_at = _COUNTED

    def add(self, row: Row) -> None:
        """Count a row."""
        if row.empty:
            self.add_empty(1)
        else:
            self._add(_hash(row.texts, 8), row.label)

    def add_empty(self, count: int) -> None:
        """Count rows that lack a text."""
        self.rows += count
        self.empty += count

    @classmethod
    def joined(cls, tasks: Mapping[str, DataReport]) -> DataReport:
        """Return the report of the rows of several tasks, one after another."""
        report = cls()
        for part in tasks.values():
            report.rows += part.rows
            report.empty += part.empty
            report.truncated += part.truncated
            report.sequence_length = part.sequence_length
            report._texts.extend(part._texts)
            report._lengths.update(part._lengths)
        report.tasks = dict(tasks)
        return report

    def take(self, rows: np.ndarray, labels: Sequence[Any]) -> DataReport:
        """Return a report of some of the rows that have texts, without their lengths.

        Args:
            rows: their indices among the rows with texts, (N,).
            labels: their labels, N of them.
        """
        report = DataReport()
        for row, label in zip(rows.tolist(), labels, strict=True):
            report._add(self._texts[row], label)
        return report

    def _add(self, texts: int, label: Any) -> None:
        """Count a row by the hash of its texts and its label or labels."""
        self.rows += 1
        if isinstance(label, Mapping):
            self._texts.append(texts)
            for task, one in label.items():
                self.tasks.setdefault(task, DataReport())._add(texts, one)
            return
        labels = [] if label is None else label
        labels = sorted({str(one) for one in (labels if isinstance(labels, list) else [labels])})
        self._texts.append(texts)
        self._row_labels.append(_hash_of_labels(tuple(labels)))
        self.unlabelled += label is not None and not labels
        self._labels.update(labels)
        if len(self._labels) >= self._fold_at:
            if _fractional(self._labels):
                self._numbers = _fold(self._labels, self._numbers)
                self._labels.clear()
            else:
                self._fold_at *= 2  # so that many whole numbers are looked at seldom

    def add_lengths(self, lengths: np.ndarray, sequence_length: int) -> None:
        """Count token lengths before truncation.

        Args:
            lengths: integers (B,), in tokens, with the special ones.
            sequence_length: the length that texts are truncated to, in tokens.
        """
        self._lengths.update(np.asarray(lengths).tolist())
        self.truncated += int(np.sum(np.asarray(lengths) > sequence_length))
        self.sequence_length = sequence_length

    @property
    def duplicates(self) -> int:
        """Rows whose texts an earlier row has too."""
        return len(self._texts) - len(np.unique(np.array(self._texts)))

    @property
    def conflicts(self) -> int:
        """Those duplicates whose label differs from that of the first row with these texts."""
        if self.tasks:
            return sum(task.conflicts for task in self.tasks.values())
        _, first, group = np.unique(np.array(self._texts), return_index=True, return_inverse=True)
        labels = np.array(self._row_labels)
        return int(np.sum(labels != labels[first][group]))

    @property
    def labels(self) -> dict[str, int]:
        """Rows of each label, most frequent first; empty where `numbers` describes them."""
        return {} if self.numbers else dict(self._labels.most_common())

    @property
    def numbers(self) -> dict[str, float] | None:
        """Mean, min and max of labels that are numbers with fractions; None for other labels."""
        count, total, low, high = self._numbers
        if count or _fractional(self._labels):
            count, total, low, high = _fold(self._labels, self._numbers)
        return {"mean": total / count, "min": low, "max": high} if count else None

    @property
    def lengths(self) -> dict[str, float] | None:
        """Median, 95th percentile and maximum in tokens; None before `add_lengths`."""
        if not self._lengths:
            return None
        values, counts = np.array(sorted(self._lengths.items())).T
        median, high = np.percentile(np.repeat(values, counts), [50, 95])
        return {
            "median": float(median),
            "percentile_95": float(high),
            "longest": int(values[-1]),
        }

    def overlap(self, other: DataReport) -> int:
        """Return how many rows of this report have texts that are in the other too."""
        return int(np.isin(np.array(self._texts), np.array(other._texts)).sum())

    def as_dict(self) -> dict[str, Any]:
        """Return all counts, ready for JSON."""
        of_tasks = {
            task: {
                "rows": report.rows - report.empty,
                "duplicates": report.duplicates,
                "conflicts": report.conflicts,
                "unlabelled": report.unlabelled,
                "labels": report.labels,
                "numbers": report.numbers,
            }
            for task, report in self.tasks.items()
        }
        return {
            "rows": self.rows,
            "empty": self.empty,
            "duplicates": self.duplicates,
            "conflicts": self.conflicts,
            "unlabelled": self.unlabelled,
            "labels": self.labels,
            "numbers": self.numbers,
            "lengths": self.lengths,
            "sequence_length": self.sequence_length,
            "truncated": self.truncated,
            **({"tasks": of_tasks} if of_tasks else {}),
        }


def warnings(reports: Mapping[str, DataReport]) -> list[str]:
    """Return what is suspicious in the splits, one line each; "train" is the split learned from."""
    tasks = dict.fromkeys(task for report in reports.values() for task in report.tasks)
    if not tasks:
        return _suspicious(reports)
    found = [line for name, report in reports.items() for line in _too_long(name, report)]
    for task in tasks:
        own = {name: report.tasks[task] for name, report in reports.items() if task in report.tasks}
        found += [f"Task {task!r}: {line}" for line in _suspicious(own, lengths=False)]
    return found


def _suspicious(reports: Mapping[str, DataReport], lengths: bool = True) -> list[str]:
    found = []
    for (first, seen), (second, report) in itertools.combinations(reports.items(), 2):
        if count := report.overlap(seen):
            found.append(f"{second} shares the texts of {_rows(count)} with {first}.")
    for name, report in reports.items():
        found += _too_long(name, report) if lengths else []
        if report.conflicts:
            found.append(f"{name} repeats texts with another label in {_rows(report.conflicts)}.")
    if (train := reports.get("train")) and train.labels:
        for name, report in reports.items():
            if unseen := sorted(report.labels.keys() - train.labels.keys()):
                found.append(f"Labels of {name} that train does not have: {_listed(unseen)}.")
        if rare := [label for label, count in train.labels.items() if count < 2]:
            found.append(f"Labels of train with fewer than 2 rows: {_listed(rare)}.")
    return found


def _too_long(name: str, report: DataReport) -> list[str]:
    texts = report._lengths.total()
    if report.truncated <= _TRUNCATED * texts:
        return []
    return [
        f"{report.truncated / texts:.1%} of {name} is longer than {report.sequence_length} tokens "
        "and is truncated: raise sequence_length."
    ]


def render(reports: Mapping[str, DataReport]) -> Group:
    """Return a table of the splits side by side, with the warnings below it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table("")
    for name in reports:
        table.add_column(Text(name), justify="right")
    splits = list(reports.values())

    def add(name: str, cells: list[str]) -> None:
        if any(cells):
            table.add_row(Text(name), *(Text(cell) for cell in cells))

    add("rows", [f"{split.rows:,}" for split in splits])
    add("empty rows", [_share(split.empty, split.rows) for split in splits])
    add("duplicate rows", [_share(split.duplicates, split.rows) for split in splits])
    add("... with another label", [_share(split.conflicts, split.rows) for split in splits])
    _add_labels(add, splits)
    for task in dict.fromkeys(task for split in splits for task in split.tasks):
        own = [split.tasks.get(task, DataReport()) for split in splits]
        add(f"{task}: rows", [_share(part.rows - part.empty, split.rows)
                              for part, split in zip(own, splits, strict=True)])  # fmt: skip
        _add_labels(add, own, f"{task}: ")
    for name in ("median", "percentile_95", "longest"):
        values = [split.lengths[name] if split.lengths else None for split in splits]
        cells = [f"{v:,.1f}".removesuffix(".0") if v is not None else "" for v in values]
        add(f"tokens, {name.replace('percentile_95', '95th percentile')}", cells)
    add("truncated", [_share(split.truncated, split._lengths.total()) for split in splits])
    return Group(table, *(Text(f"Warning: {line}", style="yellow") for line in warnings(reports)))


def _add_labels(
    add: Callable[[str, list[str]], None], splits: Sequence[DataReport], task: str = ""
) -> None:
    """Add lines about the labels of one task."""
    labels = dict.fromkeys(label for split in splits for label in split.labels)
    for label in labels if len(labels) <= _LISTED else ():
        cells = [_share(split.labels.get(label, 0), split.rows - split.empty) for split in splits]
        add(f"{task}label {label}", cells)
    if len(labels) > _LISTED:
        add(f"{task}labels", [str(len(split.labels)) for split in splits])
        spans = [sorted(split.labels.values()) for split in splits]
        cells = [f"{span[0]:,} to {span[-1]:,}" if span else "" for span in spans]
        add(f"{task}rows of a label", cells)
    if any(split.unlabelled for split in splits):
        cells = [_share(split.unlabelled, split.rows) for split in splits]
        add(f"{task}without a label", cells)
    for name in ("mean", "min", "max"):
        cells = [f"{s.numbers[name]:.4g}" if s.numbers else "" for s in splits]
        add(f"{task}label, {name}", cells)


def _hash(texts: tuple[str, ...] | list[str], size: int) -> int:
    """Return a hash of `size` bytes that is the same in every process."""
    state = hashlib.blake2b(digest_size=size)
    for text in texts:
        data = text.encode(errors="surrogatepass")
        state.update(len(data).to_bytes(8, "little") + data)  # ("ab", "c") is not ("a", "bc")
    return int.from_bytes(state.digest(), "little")


@functools.lru_cache(1024)
def _hash_of_labels(labels: tuple[str, ...]) -> int:
    return _hash(labels, 4)


def _number(label: str) -> float:
    try:
        return float(label)
    except ValueError:
        return math.nan


def _fractional(labels: Mapping[str, int]) -> bool:
    """Return whether all labels are finite numbers, and not all of them whole."""
    numbers = list(map(_number, labels))
    return all(map(math.isfinite, numbers)) and not all(map(float.is_integer, numbers))


def _fold(labels: Mapping[str, int], before: list[float]) -> list[float]:
    """Return [count, sum, min, max] of `before` and those labels that are numbers."""
    count, total, low, high = before
    for label, rows in labels.items():
        if math.isfinite(number := _number(label)):
            count, total = count + rows, total + number * rows
            low, high = min(low, number), max(high, number)
    return [count, total, low, high]


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})" if count else "0" if total else ""


def _listed(labels: list[str]) -> str:
    return ", ".join(map(repr, labels[:5])) + (f" and {len(labels) - 5} more" if labels[5:] else "")
