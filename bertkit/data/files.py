"""Rows from CSV, TSV, JSONL and Parquet files, streamed at constant memory."""

from __future__ import annotations

import codecs
import csv
import difflib
import functools
import glob
import gzip
import itertools
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from bertkit.errors import DataError

# A cell or line beyond this is a file without line ends or a quote that is never closed.
_LONGEST = 2**24  # characters of a cell, bytes of a line
_PARQUET_ROWS = 1024  # rows of a batch

# What a reader of one format yields: the line a row begins on, and its values in the order of
# the columns asked for.
_Record = tuple[int, list[Any]]


@dataclass(frozen=True, slots=True)
class Row:
    """One example as a file holds it.

    Attributes:
        texts: one or two texts; "" where the cell is empty, blank or null.
        label: str, int, float or bool as the file holds it, a list of them for several labels,
            or None when no label column was asked for.
        file: the path of the file.
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
        label: the name of the label column, or None to read texts alone.
        label_separator: splits a text cell into a list of labels; None takes it as one label.

    Raises:
        DataError: not one or two text columns, a column asked for twice, or an empty separator.
    """

    text: tuple[str, ...]
    label: str | None = None
    label_separator: str | None = None

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
        """The text columns, then the label column if there is one."""
        return (*self.text, self.label) if self.label is not None else tuple(self.text)


def read_rows(paths: str | Sequence[str], columns: Columns) -> Iterator[Row]:
    """Yield the rows of one or more files, in the order of `paths`; those of a glob are sorted.

    The suffix tells the format: .csv (quoted as in RFC 4180), .tsv (a quote is an ordinary
    character), .jsonl or .ndjson, each also with .gz, and .parquet. Text is UTF-8. A file that
    is matched twice is read once. Paths are checked at once, the files' contents as rows are
    taken.

    Args:
        paths: paths or globs, where `**` stands for any folders and `~` for the home folder.
        columns: the columns to read.

    Raises:
        DataError: naming the file and the line, when a path matches nothing, a file cannot be
            read, a column is missing, a row is malformed or has no label, or there are no rows.
    """
    files = [(path, _reader(path)) for path in find_files(paths)]

    def rows() -> Iterator[Row]:
        found = False
        for path, reader in files:
            for line, values in reader(path, columns.names):
                found = True
                yield _row(path, line, values, columns)
        if not found:
            names = ", ".join(str(path) for path, _ in files[:3]) + (", ..." if files[3:] else "")
            raise DataError(f"There are no rows in {names}: give a file with at least one.")

    return rows()


def find_files(paths: str | Sequence[str]) -> list[Path]:
    """Return the files that paths or globs stand for, each once.

    Raises:
        DataError: a path or glob matches nothing, or is a folder.
    """
    found: dict[Path, None] = {}
    for pattern in [paths] if isinstance(paths, (str, Path)) else paths:
        try:
            found.update(dict.fromkeys(_match(str(pattern))))
        except (OSError, RuntimeError) as error:  # no permission; no such user after "~"
            raise DataError(f"{pattern}: cannot be read: {_reason(error)}.") from error
    if not found:
        raise DataError("No path was given: name a file or a glob, such as data/train-*.csv.")
    return list(found)


def _match(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if pattern.strip() and path.is_dir():
        suffix = next((p.suffix for p in sorted(path.iterdir()) if p.suffix in _READERS), ".csv")
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


def _reader(path: Path) -> Callable[[Path, tuple[str, ...]], Iterator[_Record]]:
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in _READERS or (suffix == ".parquet" and name.endswith(".gz")):
        raise DataError(
            f"{path}: the suffix {path.suffix!r} is not a format that can be read. "
            f"Give one of {', '.join(_READERS)}; all but .parquet also with .gz."
        )
    return _READERS[suffix]


# --- Values -------------------------------------------------------------------------------------


def _row(path: Path, line: int, values: list[Any], columns: Columns) -> Row:
    count = len(columns.text)
    texts = tuple(map(functools.partial(_text, path, line), columns.text, values[:count]))
    label = None
    if columns.label is not None:
        label = _label(path, line, columns.label, values[count], columns.label_separator)
    return Row(texts, label, str(path), line)


def _text(path: Path, line: int, column: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _error(
            path,
            line,
            f"the text column {column!r} holds {_show(value)}, not a string. Put it in quotes, "
            "or name another column.",
        )
    _check_characters(path, line, column, value)
    return value if value.strip() else ""


def _label(path: Path, line: int, column: str, value: Any, separator: str | None) -> Any:
    if separator is not None and (value is None or isinstance(value, str)):
        value = [label.strip() for label in (value or "").split(separator) if label.strip()]
    if isinstance(value, list):
        wanted = "Write strings or whole numbers, and [] for a row without a label"
        wrong = [label for label in value if not isinstance(label, (str, int)) or label == ""]
    elif separator is not None:
        wanted = "Write a list or a string, as label_separator is set"
        wrong = [value]
    elif value is None or value != value or (isinstance(value, str) and not value.strip()):
        raise _error(
            path,
            line,
            f"the label column {column!r} is empty. Fill it in or remove the row; where a row "
            "may have several labels or none, set label_separator.",
        )
    else:
        wanted = "Write a string, a finite number, true, false or a list"
        known = isinstance(value, (str, int, float)) and value not in (math.inf, -math.inf)
        wrong = [] if known else [value]
    if wrong:
        raise _error(path, line, f"the label column {column!r} holds {_show(wrong[0])}. {wanted}.")
    for label in value if isinstance(value, list) else [value]:
        _check_characters(path, line, column, label)
    return value


def _check_characters(path: Path, line: int, column: str, value: Any) -> None:
    """Refuse half of a surrogate pair, which JSON can escape but UTF-8 cannot hold."""
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _error(
                path,
                line,
                f"the column {column!r} holds half of a surrogate pair at character {error.start}, "
                f"{value[error.start]!a}. Write the whole pair, or remove it.",
            ) from error


def _check_names(path: Path, line: int, there: Sequence[str], asked: Sequence[str]) -> None:
    """Refuse asked columns that are not there, or names that are there twice."""
    for name in there:
        if name and there.count(name) > 1:
            raise _error(path, line, f"two columns are named {name!r}. Rename one of them.")
    for name in asked:
        if name not in there:
            near = difflib.get_close_matches(name, there, n=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            shown = ", ".join(repr(other) for other in there[:20]) + (" ..." if there[20:] else "")
            other = next((mark for mark in ",;\t|" if mark in "".join(there)), "")
            if len(there) == 1 and other:
                guess = f" Is it separated by {other!r}? Then convert it, or change its suffix."
            raise _error(
                path, line, f"there is no column {name!r}.{guess} There is: {shown or 'none'}."
            )


# --- Formats ------------------------------------------------------------------------------------


def _read_delimited(path: Path, names: tuple[str, ...], delimiter: str) -> Iterator[_Record]:
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST))  # one limit for the whole process
    pending: list[str] = []  # the lines of the row being read

    def keep(lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            pending.append(line)
            yield line

    reader = csv.reader(
        keep(_lines(path)),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL,
        strict=True,
    )
    header: list[str] | None = None
    indices: list[int] = []
    while True:
        pending.clear()
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise _csv_error(path, line, reader.line_num, pending, str(error)) from error
        if not fields:  # a blank line
            continue
        if header is None:
            header = fields
            _check_names(path, line, header, names)
            indices = [header.index(name) for name in names]
        elif len(fields) != len(header):
            fix = (
                'Put a cell that holds a comma, a quote or a line break in quotes ("), with no '
                "space before them."
                if delimiter == ","
                else "Replace tabs and line breaks within a cell by spaces."
            )
            raise _error(
                path,
                line,
                f"the row has {len(fields)} fields where the header has {len(header)}. {fix}",
            )
        else:
            yield line, [fields[index] for index in indices]
    if header is None:
        raise DataError(f"{path} is empty: its first line must name the columns.")


def _csv_error(path: Path, first: int, last: int, lines: list[str], message: str) -> DataError:
    """Put csv's message in terms of the file; `lines` are those of the row, `first` to `last`."""
    if "new-line" in message:
        return _error(
            path,
            last,
            "a carriage return stands alone within a row. End lines with LF or CRLF, "
            "and put a cell that holds a carriage return in quotes.",
        )
    if "limit" in message:
        return _error(
            path,
            first,
            f"a cell of this row has more than {csv.field_size_limit():,} characters, up to line "
            f"{last}. Close its quote, or double a quote that is part of the text.",
        )
    if "end of data" in message:
        # The cell still open at the end, read leniently, has as many line ends as lines follow.
        open_cell = next(csv.reader(lines))[-1]
        opened = first + "".join(lines).count("\n") - open_cell.count("\n")
        return _error(
            path,
            opened,
            f"a quote opens here and is never closed: {_show(open_cell)}. "
            "Close it, or double a quote that is part of the text.",
        )
    return _error(
        path,
        first,
        f"on line {last} of this row, which begins here, a closing quote is not followed by a "
        'comma. Write a quote within a cell as "" (not \\"), and close each quote that opens.',
    )


def _read_jsonl(path: Path, names: tuple[str, ...]) -> Iterator[_Record]:
    line = 0
    found = False
    for line, text in enumerate(_lines(path), start=1):
        if not text.strip():
            continue
        found = True
        try:
            value = json.loads(text)
        except RecursionError as error:
            raise _error(path, line, "JSON is nested too deeply. Write a flat object.") from error
        except ValueError as error:
            raise _error(
                path, line, f"not JSON: {_reason(error)}. Write one object a line: {_object(names)}"
            ) from error
        if not isinstance(value, dict):
            raise _error(
                path,
                line,
                f"holds {_show(value)}, not an object. Write one object a line: {_object(names)}",
            )
        if not all(name in value for name in names):
            _check_names(path, line, list(value), names)
        yield line, [value[name] for name in names]
    if not found:
        raise DataError(f"{path} is empty: write one object a line: {_object(names)}")


def _object(names: Sequence[str]) -> str:
    return json.dumps(dict.fromkeys(names, "..."))


def _read_parquet(path: Path, names: tuple[str, ...]) -> Iterator[_Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    line = 0
    try:
        with path.open("rb") as handle:
            # A buffer reads a column in pieces, rather than the whole of it a row group.
            file = pq.ParquetFile(handle, buffer_size=2**20, pre_buffer=False)
            _check_names(path, 0, file.schema_arrow.names, names)
            for batch in file.iter_batches(_PARQUET_ROWS, columns=list(names), use_threads=False):
                for scalars in zip(*(batch.column(name) for name in names), strict=True):
                    line += 1
                    yield line, [scalar.as_py() for scalar in scalars]
    except UnicodeDecodeError as error:
        raise _error(path, line, f"invalid UTF-8: {error.reason}. Write it as UTF-8.") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: cannot be read as Parquet{f' after row {line}' if line else ''}: "
            f"{_reason(error)}. Write or copy the file anew."
        ) from error


_READERS: dict[str, Callable[[Path, tuple[str, ...]], Iterator[_Record]]] = {
    ".csv": functools.partial(_read_delimited, delimiter=","),
    ".tsv": functools.partial(_read_delimited, delimiter="\t"),
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}


# --- Bytes --------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file with their line ends, without a byte order mark."""
    line, offset = 0, 0
    try:
        with _open(path) as handle:
            while raw := handle.readline(_LONGEST + 1):
                line += 1
                yield _decode(path, line, offset, raw)
                offset += len(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: cannot be read{f' after line {line}' if line else ''}: {_reason(error)}. "
            "Check its permissions, or write or copy it anew."
        ) from error


def _open(path: Path) -> BinaryIO:
    if path.suffix.lower() == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    return path.open("rb")


def _decode(path: Path, line: int, offset: int, raw: bytes) -> str:
    """Return a line as text; `offset` is the byte of the file that it begins on."""
    if line == 1:
        for mark, name in _BYTE_ORDER_MARKS:
            if raw.startswith(mark):
                raise _error(path, line, f"the text is {name}, not UTF-8. {_convert(name)}")
    if len(raw) > _LONGEST:
        raise _error(
            path,
            line,
            f"the line is longer than {_LONGEST:,} bytes. End each row with a line break.",
        )
    if (index := raw.find(b"\0")) >= 0:
        raise _error(
            path,
            line,
            f"there is a NUL byte at byte offset {offset + index}. If the file is UTF-16, "
            "convert it to UTF-8; otherwise it is damaged, or not a text file.",
        )
    try:
        return raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        # The decoder counts from after a byte order mark.
        start = error.start + (3 if line == 1 and raw.startswith(codecs.BOM_UTF8) else 0)
        raise _error(
            path,
            line,
            f"byte {raw[start]:#04x} at byte offset {offset + start} is not UTF-8. If the file "
            f"was saved as Windows-1252 or Latin-1: {_convert('CP1252')}",
        ) from error


_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def _convert(encoding: str) -> str:
    return f"Convert it: iconv -f {encoding} -t UTF-8 FILE > NEW_FILE"


# --- Messages -----------------------------------------------------------------------------------


def _error(path: Path, line: int, message: str) -> DataError:
    return DataError(f"{path}:{line}: {message}" if line else f"{path}: {message}")


def _reason(error: BaseException) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
