"""Rows from CSV, TSV, JSONL, Parquet and text files, streamed at constant memory."""

from __future__ import annotations

import difflib
import functools
import glob
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from bertkit.data.formats import FORMATS, READERS, Reader
from bertkit.data.lines import Source, reason, row_error, show
from bertkit.errors import DataError


@dataclass(frozen=True, slots=True)
class Row:
    """One example as a file holds it.

    Attributes:
        texts: one or two texts; "" where the cell is empty, blank or null.
        label: str, int, float or bool as the file holds it, a list of them for several labels,
            or None when no label column was asked for, or the row may lack it and does; of several
            tasks, a mapping to such labels from those that the row has one of.
        file: the path of the file, or "standard input".
        line: the 1-based line that the row begins on; the 1-based row in Parquet.
    """

    texts: tuple[str, ...]
    label: Any
    file: str
    line: int

    @property
    def empty(self) -> bool:
        """Whether a text is missing, so that the row cannot be learned from."""
        return not all(self.texts)


@dataclass(frozen=True)
class Columns:
    """Which columns to read.

    Attributes:
        text: the names of one or two text columns.
        label: the name of the label column, or a mapping to it from the name of each task, or None
            to read texts alone.
        label_separator: splits a text cell into a list of labels; None takes it as one label. Of
            several tasks, a mapping from some of them.
        ignore_missing: whether a row may lack its label, which is None then.

    Raises:
        DataError: not one or two text columns, a column asked for twice, or an empty separator.
    """

    text: tuple[str, ...]
    label: str | Mapping[str, str] | None = None
    label_separator: str | Mapping[str, str] | None = None
    ignore_missing: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.text, str) or len(self.text) not in (1, 2):
            raise DataError(f"text is {self.text!r}: name one column, or two for pairs of texts.")
        for name in self.names:
            if not isinstance(name, str) or not name:
                raise DataError(f"The column name {name!r} is not a text: write it as in the file.")
            if self.names.count(name) > 1:
                raise DataError(
                    f"The column {name!r} is asked for twice, among text {list(self.text)} and "
                    f"label {self.label!r}: name another column for one of them."
                )
        if self.label_separator == "":
            raise DataError("label_separator is empty: give the text between labels, such as '|'.")

    @property
    def names(self) -> tuple[str, ...]:
        """The text columns, then those of labels, if any."""
        if isinstance(self.label, Mapping):
            return (*self.text, *self.label.values())
        return (*self.text, self.label) if self.label is not None else tuple(self.text)


def read_rows(
    paths: str | Sequence[str], columns: Columns, format: str | None = None
) -> Iterator[Row]:
    """Yield the rows of one or more files, in the order of `paths`; those of a glob are sorted.

    The suffix tells the format: .csv (quoted as in RFC 4180), .tsv (a quote is an ordinary
    character), .jsonl or .ndjson, and .txt, each also with .gz, and .parquet. Text is UTF-8.
    The lines of a text file have no header and no label: each is one text, or two with one tab
    between them, whatever the columns are named; a blank line gives empty texts.

    A file that is matched twice is read once. Paths are checked at once, the files' contents as
    rows are taken; a row of standard input comes as soon as its last line has.

    Args:
        paths: paths or globs, where `**` stands for any folders and `~` for the home folder;
            "-" is standard input.
        columns: the columns to read.
        format: "csv", "tsv", "jsonl", "parquet" or "text", whatever the suffixes; needed for
            standard input, which cannot be Parquet.

    Raises:
        DataError: naming the file and the line, when a path matches nothing, a file cannot be
            read, a column is missing, a row is malformed or has no label, or there are no rows;
            the format is unknown, or a label is asked of a text file.
    """
    if format is not None and format not in READERS:
        raise DataError(f"There is no format {format!r}: give one of {', '.join(READERS)}.")
    sources = [(source, _reader(source, columns, format)) for source in find_sources(paths)]

    def rows() -> Iterator[Row]:
        found = False
        for source, reader in sources:
            for line, values in reader(source, columns.names):
                found = True
                yield _row(source, line, values, columns)
        if not found:
            names = ", ".join(str(source) for source, _ in sources[:3])
            more = ", ..." if sources[3:] else ""
            raise DataError(f"There are no rows in {names}{more}: give at least one.")

    return rows()


def find_sources(paths: str | Sequence[str]) -> list[Source]:
    """Return the files, or standard input, that paths or globs stand for, each once.

    Raises:
        DataError: a path or glob matches nothing, or is a folder.
    """
    found: dict[Source, None] = {}
    for pattern in [paths] if isinstance(paths, (str, Path)) else paths:
        try:
            matches = [None] if pattern == "-" else _match(str(pattern))
        except (OSError, RuntimeError) as error:  # no permission; no such user after "~"
            raise DataError(f"{pattern}: cannot be read: {reason(error)}.") from error
        found.update(dict.fromkeys(map(Source, matches)))
    if not found:
        raise DataError("No path was given: name a file or a glob, such as data/train-*.csv.")
    return list(found)


def _match(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if pattern.strip() and path.is_dir():
        suffixes = {entry.suffix for entry in path.iterdir()}
        suffix = next((suffix for suffix in FORMATS if suffix in suffixes), ".csv")
        raise DataError(f"{pattern} is a folder: name its files, such as {path / ('*' + suffix)}.")
    if pattern.strip() and path.exists():  # before globbing: a file may be named "a[1].csv"
        return [path]
    # Path.glob takes no absolute pattern, and "**" at its end finds no files before Python 3.13.
    matches = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207
    if files := [match for match in matches if not match.is_dir()]:
        return files
    folder, wanted = path.parent, path.name
    while not folder.is_dir():
        folder, wanted = folder.parent, folder.name
    names = sorted(entry.name for entry in itertools.islice(folder.iterdir(), 1000))
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5) or names[:5]
    raise DataError(
        f"No file matches {pattern!r}, looked for from {Path.cwd()}. "
        f"In {folder.absolute()} there is {', '.join(map(repr, near)) or 'nothing'}."
    )


def format_of(name: str) -> str | None:
    """Return the format that the suffix of a file or glob tells, if it does."""
    return FORMATS.get(Path(name.lower().removesuffix(".gz")).suffix)


def _reader(source: Source, columns: Columns, format: str | None) -> Reader:
    name = source.path.name.lower() if source.path else ""
    format = format or format_of(name)
    if format is None and source.path is None:
        raise DataError(f"{source} has no suffix: state its format, such as csv, jsonl or text.")
    if format is None:
        raise DataError(
            f"{source}: the suffix {Path(name).suffix!r} is not a format that can be read. "
            f"Give one of {', '.join(FORMATS)}; all but .parquet also with .gz."
        )
    if format == "parquet" and (source.path is None or name.endswith(".gz")):
        raise DataError(
            f"{source}: Parquet cannot be read from standard input or a .gz file. "
            "Name the .parquet file itself."
        )
    if format == "text" and columns.label is not None:
        raise DataError(
            f"{source}: a text file has no columns, so it cannot hold the label "
            f"{columns.label!r}. Write it as .csv with a header, or ask for texts alone."
        )
    return READERS[format]


def _row(source: Source, line: int, values: list[Any], columns: Columns) -> Row:
    count = len(columns.text)
    texts = tuple(map(functools.partial(_text, source, line), columns.text, values[:count]))
    label: Any = None
    if isinstance(columns.label, str):
        if not (columns.ignore_missing and _is_empty(values[count])):
            separator = cast("str | None", columns.label_separator)  # of one column, no mapping
            label = _label(source, line, columns.label, values[count], separator)
    elif columns.label is not None:
        label = _labels_of_tasks(source, line, columns, values[count:])
    return Row(texts, label, str(source), line)


def _text(source: Source, line: int, column: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise row_error(
            source,
            line,
            f"the text column {column!r} holds {show(value)}, not a string. Put it in quotes, "
            "or name another column.",
        )
    _check_characters(source, line, column, value)
    return value if value.strip() else ""


def _labels_of_tasks(
    source: Source, line: int, columns: Columns, values: list[Any]
) -> dict[str, Any]:
    """Return the labels of a row, by task; an empty cell is none."""
    names, separators = columns.label, columns.label_separator or {}
    assert isinstance(names, Mapping) and isinstance(separators, Mapping)
    labels = {
        task: _label(source, line, column, value, separators.get(task))
        for (task, column), value in zip(names.items(), values, strict=True)
        if not _is_empty(value)
    }
    if not labels:
        raise row_error(
            source,
            line,
            f"the label columns {', '.join(map(repr, names.values()))} are all empty. Fill one in "
            "or remove the row.",
        )
    return labels


def _label(source: Source, line: int, column: str, value: Any, separator: str | None) -> Any:
    if separator is not None and (value is None or isinstance(value, str)):
        value = [label.strip() for label in (value or "").split(separator) if label.strip()]
    if isinstance(value, list):
        wanted = "Write strings or whole numbers, and [] for a row without a label"
        wrong = [label for label in value if not isinstance(label, (str, int)) or label == ""]
    elif separator is not None:
        wanted = "Write a list or a string, as label_separator is set"
        wrong = [value]
    elif _is_empty(value):
        raise row_error(
            source,
            line,
            f"the label column {column!r} is empty. Fill it in or remove the row; where a row "
            "may have several labels or none, set label_separator.",
        )
    else:
        wanted = "Write a string, a finite number, true, false or a list"
        known = isinstance(value, (str, int, float)) and value not in (math.inf, -math.inf)
        wrong = [] if known else [value]
    if wrong:
        raise row_error(
            source, line, f"the label column {column!r} holds {show(wrong[0])}. {wanted}."
        )
    for label in value if isinstance(value, list) else [value]:
        _check_characters(source, line, column, label)
    return value


def _is_empty(value: Any) -> bool:
    """Return whether a cell is null, NaN or white space."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _check_characters(source: Source, line: int, column: str, value: Any) -> None:
    """Refuse half of a surrogate pair, which JSON can escape but UTF-8 cannot hold."""
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise row_error(
                source,
                line,
                f"the column {column!r} holds half of a surrogate pair at character {error.start}, "
                f"{value[error.start]!a}. Write the whole pair, or remove it.",
            ) from error
