"""Readers of one format each: the values of the columns asked for, row by row."""

from __future__ import annotations

import csv
import difflib
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from bertkit.data.lines import LONGEST, Source, open_source, read_lines, reason, row_error, show
from bertkit.errors import DataError

_PARQUET_ROWS = 1024  # rows of a batch

# What a reader of one format yields: the line a row begins on, and its values in the order of
# the columns asked for.
Record = tuple[int, list[Any]]
Reader = Callable[[Source, tuple[str, ...]], Iterator[Record]]


def _read_delimited(source: Source, names: tuple[str, ...], delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST))  # one limit for the whole process
    pending: list[str] = []  # the lines of the row being read

    def keep(lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            pending.append(line)
            yield line

    reader = csv.reader(
        keep(read_lines(source)),
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
            raise _csv_error(source, line, reader.line_num, pending, str(error)) from error
        if not fields:  # a blank line
            continue
        if header is None:
            header = fields
            _check_names(source, line, header, names)
            indices = [header.index(name) for name in names]
        elif len(fields) != len(header):
            fix = (
                'Put a cell that holds a comma, a quote or a line break in quotes ("), with no '
                "space before them."
                if delimiter == ","
                else "Replace tabs and line breaks within a cell by spaces."
            )
            raise row_error(
                source,
                line,
                f"the row has {len(fields)} fields where the header has {len(header)}. {fix}",
            )
        else:
            yield line, [fields[index] for index in indices]
    if header is None:
        raise DataError(f"{source} is empty: its first line must name the columns.")


def _csv_error(source: Source, first: int, last: int, lines: list[str], message: str) -> DataError:
    """Put csv's message in terms of the file; `lines` are those of the row, `first` to `last`."""
    if "new-line" in message:
        return row_error(
            source,
            last,
            "a carriage return stands alone within a row. End lines with LF or CRLF, "
            "and put a cell that holds a carriage return in quotes.",
        )
    if "limit" in message:
        return row_error(
            source,
            first,
            f"a cell of this row has more than {csv.field_size_limit():,} characters, up to line "
            f"{last}. Close its quote, or double a quote that is part of the text.",
        )
    if "end of data" in message:
        # The cell still open at the end, read leniently, has as many line ends as lines follow.
        open_cell = next(csv.reader(lines))[-1]
        opened = first + "".join(lines).count("\n") - open_cell.count("\n")
        return row_error(
            source,
            opened,
            f"a quote opens here and is never closed: {show(open_cell)}. "
            "Close it, or double a quote that is part of the text.",
        )
    return row_error(
        source,
        first,
        f"on line {last} of this row, which begins here, a closing quote is not followed by a "
        'comma. Write a quote within a cell as "" (not \\"), and close each quote that opens.',
    )


def _read_jsonl(source: Source, names: tuple[str, ...]) -> Iterator[Record]:
    line = 0
    found = False
    for line, text in enumerate(read_lines(source), start=1):
        if not text.strip():
            continue
        found = True
        try:
            value = json.loads(text)
        except RecursionError as error:
            raise row_error(
                source, line, "JSON is nested too deeply. Write a flat object."
            ) from error
        except ValueError as error:
            raise row_error(
                source,
                line,
                f"not JSON: {reason(error)}. Write one object a line: {_object(names)}",
            ) from error
        if not isinstance(value, dict):
            raise row_error(
                source,
                line,
                f"holds {show(value)}, not an object. Write one object a line: {_object(names)}",
            )
        if not all(name in value for name in names):
            _check_names(source, line, list(value), names)
        yield line, [value[name] for name in names]
    if not found:
        raise DataError(f"{source} is empty: write one object a line: {_object(names)}")


def _object(names: Sequence[str]) -> str:
    return json.dumps(dict.fromkeys(names, "..."))


def _read_parquet(source: Source, names: tuple[str, ...]) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    line = 0
    try:
        with open_source(source) as handle:
            # A buffer reads a column in pieces, rather than the whole of it a row group.
            file = pq.ParquetFile(handle, buffer_size=2**20, pre_buffer=False)
            _check_names(source, 0, file.schema_arrow.names, names)
            for batch in file.iter_batches(_PARQUET_ROWS, columns=list(names), use_threads=False):
                for scalars in zip(*(batch.column(name) for name in names), strict=True):
                    line += 1
                    yield line, [scalar.as_py() for scalar in scalars]
    except UnicodeDecodeError as error:
        raise row_error(
            source, line, f"invalid UTF-8: {error.reason}. Write it as UTF-8."
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{source}: cannot be read as Parquet{f' after row {line}' if line else ''}: "
            f"{reason(error)}. Write or copy the file anew."
        ) from error


def _read_text(source: Source, names: tuple[str, ...]) -> Iterator[Record]:
    """Take a line as one text, or as two with a tab between; a blank line as empty ones."""
    for line, ended in enumerate(read_lines(source), start=1):
        text = ended.removesuffix("\n").removesuffix("\r")
        texts = [text] if len(names) == 1 else text.split("\t")
        if not text.strip():
            texts = [""] * len(names)
        if len(texts) != len(names):
            raise row_error(
                source,
                line,
                f"two texts are asked for, but the line has {len(texts) - 1} tabs: {show(text)}. "
                "Put one tab between the two texts, and none within them.",
            )
        yield line, texts


def _check_names(source: Source, line: int, there: Sequence[str], asked: Sequence[str]) -> None:
    """Refuse asked columns that are not there, or names that are there twice."""
    for name in there:
        if name and there.count(name) > 1:
            raise row_error(source, line, f"two columns are named {name!r}. Rename one of them.")
    for name in asked:
        if name not in there:
            near = difflib.get_close_matches(name, there, n=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            shown = ", ".join(repr(other) for other in there[:20]) + (" ..." if there[20:] else "")
            other = next((mark for mark in ",;\t|" if mark in "".join(there)), "")
            if len(there) == 1 and other:
                guess = f" Is it separated by {other!r}? Then convert it, or change its suffix."
            raise row_error(
                source, line, f"there is no column {name!r}.{guess} There is: {shown or 'none'}."
            )


FORMATS = {  # by suffix
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
}
READERS: dict[str, Reader] = {
    "csv": functools.partial(_read_delimited, delimiter=","),
    "tsv": functools.partial(_read_delimited, delimiter="\t"),
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "text": _read_text,
}
