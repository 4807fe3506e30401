"""From files to tokenized rows with their labels, in one pass."""

from __future__ import annotations

import contextlib
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertkit.data.cache import TokenCache
from bertkit.data.examples import CHUNK, Examples
from bertkit.data.files import Columns, Row, read_rows
from bertkit.data.report import DataReport
from bertkit.errors import DataError, InputError
from bertkit.preprocessor import Preprocessor


@dataclass(frozen=True)
class Split:
    """Rows of one purpose: training, validation or test.

    Attributes:
        examples: the tokenized texts.
        labels: the raw labels, one a row; of several tasks, mappings from a row's tasks to them.
        places: where the rows came from.
        report: what was read.
    """

    examples: Examples
    labels: list[Any]
    places: Places
    report: DataReport

    def take(self, rows: np.ndarray) -> Split:
        """Return some rows, by index, with a report of their own."""
        labels = [self.labels[row] for row in rows]
        examples = self.examples.take(rows)
        report = self.report.take(rows, labels)
        report.add_lengths(examples.full_lengths, self.report.sequence_length or 0)
        return Split(examples, labels, self.places.take(rows), report)

    @contextlib.contextmanager
    def located(self) -> Iterator[None]:
        """Name file and line in an error that names a row.

        Raises:
            DataError: in place of such an `InputError`.
        """
        try:
            yield
        except InputError as error:
            if error.row is None:
                raise
            raise DataError(f"{self.places.name(error.row)}: {error}") from None


@dataclass(frozen=True)
class Places:
    """The file and line of each row, in 12 bytes a row."""

    files: Sequence[str]
    file_of: np.ndarray  # int32, (N,)
    line_of: np.ndarray  # int64, (N,)

    def take(self, rows: np.ndarray) -> Places:
        return Places(self.files, self.file_of[rows], self.line_of[rows])

    @classmethod
    def joined(cls, parts: Sequence[Places]) -> Places:
        """Return the places of several, one after another."""
        files = [file for part in parts for file in part.files]
        firsts = np.cumsum([0, *(len(part.files) for part in parts[:-1])])
        file_of = [part.file_of + first for part, first in zip(parts, firsts, strict=True)]
        line_of = [part.line_of for part in parts]
        return cls(files, np.concatenate(file_of, dtype="int32"), np.concatenate(line_of))

    def name(self, row: int) -> str:
        """Return "file:line" of a row."""
        return f"{self.files[self.file_of[row]]}:{self.line_of[row]}"


def load_split(
    paths: str | Sequence[str],
    columns: Columns,
    preprocessor: Preprocessor,
    cache: TokenCache | None = None,
) -> Split:
    """Read, check and tokenize all rows of some files; rows with an empty text are left out.

    Memory holds some 60 bytes a row and each distinct label once; token ids go to a temporary
    file. With a cache, texts that it knows are not tokenized again.

    Raises:
        DataError: as `read_rows` does, or no row has a text.
    """
    report = DataReport()
    labels: list[Any] = []
    files: dict[str, int] = {}
    file_of, line_of = array("i"), array("q")

    def kept() -> Iterator[Row]:
        for row in read_rows(paths, columns):
            report.add(row)
            if not row.empty:
                # Equal labels of many rows are one object.
                labels.append(sys.intern(row.label) if isinstance(row.label, str) else row.label)
                file_of.append(files.setdefault(row.file, len(files)))
                line_of.append(row.line)
                yield row

    chunks = text_chunks(kept(), len(columns.text))
    examples = Examples.from_chunks(chunks, preprocessor, cache)
    if not labels:
        raise DataError(f"No row of {', '.join(files) or paths} has a text. Check the columns.")
    report.add_lengths(examples.full_lengths, preprocessor.sequence_length)
    places = Places(list(files), np.array(file_of, "int32"), np.array(line_of, "int64"))
    return Split(examples, labels, places, report)


def joined(splits: Mapping[str, Split]) -> Split:
    """Return the rows of tasks as one: the label of each is a mapping from its task to it.

    The tasks alternate, each spread evenly, so that the first rows have some of every task.
    """
    parts = list(splits.values())
    shares = [(np.arange(len(part.labels)) + 0.5) / len(part.labels) for part in parts]
    order = np.argsort(np.concatenate(shares), kind="stable")
    labels = [{task: label} for task, split in splits.items() for label in split.labels]
    return Split(
        Examples.joined([part.examples for part in parts]).take(order),
        [labels[row] for row in order],
        Places.joined([part.places for part in parts]).take(order),
        DataReport.joined({task: split.report for task, split in splits.items()}),
    )


def text_chunks(rows: Iterator[Row], columns: int, size: int = CHUNK) -> Iterator[np.ndarray]:
    """Yield the texts of `size` rows at a time: (n,) or (n, 2) of `str`."""
    chunk: list[tuple[str, ...]] = []
    for row in rows:
        chunk.append(row.texts)
        if len(chunk) == size:
            yield _array(chunk, columns)
            chunk = []
    if chunk:
        yield _array(chunk, columns)


def _array(chunk: list[tuple[str, ...]], columns: int) -> np.ndarray:
    array = np.empty((len(chunk), columns), dtype=object)
    array[:] = chunk
    return array if columns > 1 else array[:, 0]
