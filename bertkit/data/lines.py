"""Lines of UTF-8 text from a file or standard input, and messages that name the line."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import sys
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from bertkit.errors import DataError

# A cell or line beyond this is a file without line ends or a quote that is never closed.
LONGEST = 2**24  # characters of a cell, bytes of a line


@dataclass(frozen=True, slots=True)
class Source:
    """A file, or standard input where `path` is None; its string is its name in messages."""

    path: Path | None

    def __str__(self) -> str:
        return "standard input" if self.path is None else str(self.path)


def read_lines(source: Source) -> Iterator[str]:
    """Yield lines with their line ends, without a byte order mark, each once it has arrived."""
    line, offset = 0, 0
    try:
        with open_source(source) as handle:
            while raw := handle.readline(LONGEST + 1):
                line += 1
                yield _decode(source, line, offset, raw)
                offset += len(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{source}: cannot be read{f' after line {line}' if line else ''}: {reason(error)}. "
            "Check its permissions, or write or copy it anew."
        ) from error


def open_source(source: Source) -> AbstractContextManager[BinaryIO]:
    """Open a source for reading bytes; those of a .gz file are unpacked."""
    if source.path is None:
        stdin = getattr(sys.stdin, "buffer", None)  # sys.stdin is None where it was closed
        if stdin is None:
            raise DataError("standard input is closed: send rows to it, or name a file.")
        return contextlib.nullcontext(stdin)  # not ours to close
    if source.path.suffix.lower() == ".gz":
        return cast(BinaryIO, gzip.open(source.path, "rb"))
    return source.path.open("rb")


def _decode(source: Source, line: int, offset: int, raw: bytes) -> str:
    """Return a line as text; `offset` is the byte of the file that it begins on."""
    if line == 1:
        for mark, name in _BYTE_ORDER_MARKS:
            if raw.startswith(mark):
                raise row_error(source, line, f"the text is {name}, not UTF-8. {_convert(name)}")
    if len(raw) > LONGEST:
        raise row_error(
            source,
            line,
            f"the line is longer than {LONGEST:,} bytes. End each row with a line break.",
        )
    if (index := raw.find(b"\0")) >= 0:
        raise row_error(
            source,
            line,
            f"there is a NUL byte at byte offset {offset + index}. If the file is UTF-16, "
            "convert it to UTF-8; otherwise it is damaged, or not a text file.",
        )
    try:
        return raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        # The decoder counts from after a byte order mark.
        start = error.start + (3 if line == 1 and raw.startswith(codecs.BOM_UTF8) else 0)
        raise row_error(
            source,
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


def row_error(source: Source, line: int, message: str) -> DataError:
    """Return an error that names the file and the line; no line if it is 0."""
    return DataError(f"{source}:{line}: {message}" if line else f"{source}: {message}")


def reason(error: BaseException) -> str:
    """Return an exception's message on one line, without a path or a full stop."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__


def show(value: Any) -> str:
    """Return a value's repr, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
