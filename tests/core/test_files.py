"""Rows from files and standard input: against other writers, malformed files, memory."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertkit.data.files import Columns, Row, find_sources, read_rows
from bertkit.errors import DataError

TEXT_LABEL = Columns(("text",), "label")
TEXT, PAIR = Columns(("text",)), Columns(("first", "second"))
DATA = Path(__file__).parents[3] / "shared" / "data"

# Files are overwritten by each example, so that they may share the folder of the test.
several = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
text_cells = st.text(characters, max_size=30) | st.text('",\r\n\t ab\\\ufeff', max_size=12)
label_cells = text_cells.filter(str.strip)


def read(path: Path, columns: Columns = TEXT_LABEL, format: str | None = None) -> list[Row]:
    return list(read_rows(str(path), columns, format))


def send(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Let standard input hold `content`."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))


def expected(text: str | None) -> str:
    return text if text and text.strip() else ""


def values(rows: list[Row]) -> list[tuple[Any, ...]]:
    return [(*row.texts, row.label) for row in rows]


# --- Round trips --------------------------------------------------------------------------------


@pytest.mark.parametrize("byte_order_mark", ["utf-8", "utf-8-sig"])
@several
@given(st.lists(st.tuples(text_cells, label_cells), min_size=1, max_size=6))
def test_csv_written_by_pandas(
    tmp_path: Path, byte_order_mark: str, cells: list[tuple[str, str]]
) -> None:
    path = tmp_path / "a.csv"
    frame = pd.DataFrame(cells, columns=["text", "label"])
    # With this line end, the writer quotes cells that hold a carriage return.
    frame.to_csv(path, index=False, lineterminator="\r\n", encoding=byte_order_mark)
    assert values(read(path)) == [(expected(text), label) for text, label in cells]


@several
@given(
    st.lists(st.tuples(text_cells, text_cells, label_cells), min_size=1, max_size=6),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.permutations(["first", "second", "label"]),
)
def test_csv_columns_in_any_order_and_lines(
    tmp_path: Path, cells: list[tuple[str, str, str]], quoting: Any, order: list[str]
) -> None:
    path = tmp_path / "a.csv"
    lines = []
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, order, quoting=quoting)
        writer.writeheader()
        for first, second, label in cells:
            handle.flush()
            lines.append(path.read_bytes().count(b"\n") + 1)
            writer.writerow({"first": first, "second": second, "label": label})
    rows = read(path, Columns(("first", "second"), "label"))
    assert values(rows) == [(expected(a), expected(b), label) for a, b, label in cells]
    assert [row.line for row in rows] == lines
    assert {row.file for row in rows} == {str(path)}


@several
@given(
    st.lists(
        st.tuples(
            text_cells.map(lambda text: text.translate({9: None, 10: None, 13: None})),
            st.sampled_from(['"', "it's", 'a "b"', "5'11\"", "x"]),
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(["\n", "\r\n"]),
)
def test_tsv_takes_a_quote_as_a_character(
    tmp_path: Path, cells: list[tuple[str, str]], end: str
) -> None:
    path = tmp_path / "a.tsv"
    table = ["text\tlabel", *(f"{text}\t{label}" for text, label in cells)]
    path.write_bytes("".join(line + end for line in table).encode())
    assert values(read(path)) == [(expected(text), label) for text, label in cells]


json_labels = (
    label_cells
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
    | st.lists(label_cells, max_size=3)
)


@several
@given(
    st.lists(st.tuples(st.none() | text_cells, json_labels), min_size=1, max_size=6),
    st.booleans(),
    st.sampled_from(["\n", "\r\n", "\n\n", "\n \n"]),
)
def test_jsonl(tmp_path: Path, cells: list[tuple[Any, Any]], ascii_only: bool, end: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b"".join(
            (json.dumps({"x": [1], "text": t, "label": y}, ensure_ascii=ascii_only) + end).encode()
            for t, y in cells
        )
    )
    rows = read(path)
    assert values(rows) == [(expected(text), label) for text, label in cells]
    assert [type(row.label) for row in rows] == [type(label) for _, label in cells]
    step = 2 if end.count("\n") == 2 else 1
    assert [row.line for row in rows] == [1 + step * index for index in range(len(cells))]


@several
@given(st.lists(st.tuples(text_cells, label_cells), min_size=1, max_size=6), st.booleans())
def test_jsonl_written_by_pandas(
    tmp_path: Path, cells: list[tuple[str, str]], ascii_only: bool
) -> None:
    path = tmp_path / "a.ndjson"
    frame = pd.DataFrame(cells, columns=["text", "label"])
    frame.to_json(path, orient="records", lines=True, force_ascii=ascii_only)
    assert values(read(path)) == [(expected(text), label) for text, label in cells]


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        (pa.string(), label_cells),
        (pa.large_string(), label_cells),
        (pa.dictionary(pa.int8(), pa.string()), label_cells),
        (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
        (pa.float32(), st.floats(allow_nan=False, allow_infinity=False, width=32)),
        (pa.bool_(), st.booleans()),
        (pa.list_(pa.string()), st.lists(label_cells, max_size=3)),
        (pa.list_(pa.int32()), st.lists(st.integers(0, 9), max_size=3)),
    ],
    ids=str,
)
@settings(several, max_examples=25)
@given(data=st.data())
def test_parquet(tmp_path: Path, kind: pa.DataType, labels: Any, data: st.DataObject) -> None:
    cells = data.draw(st.lists(st.tuples(st.none() | text_cells, labels), min_size=1, max_size=6))
    texts, wanted = [text for text, _ in cells], [label for _, label in cells]
    table = pa.table({"label": pa.array(wanted, kind), "text": pa.array(texts, pa.string())})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=2)
    rows = read(path)
    assert values(rows) == [(expected(text), label) for text, label in cells]
    assert [type(row.label) for row in rows] == [type(label) for label in wanted]
    assert [row.line for row in rows] == list(range(1, len(cells) + 1))


def test_parquet_written_by_pandas_with_categories_and_several_batches(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    frame = pd.DataFrame(
        {"text": [f"text {i}" for i in range(3000)], "label": ["a", "b", "c"] * 1000}
    )
    frame.astype({"label": "category"}).to_parquet(path)
    assert values(read(path)) == list(frame.itertuples(index=False, name=None))


line_texts = (text_cells | st.text("a \t\x0b\x1c\x85\u2028", max_size=8)).map(
    lambda text: text.translate({10: None, 13: None, 0xFEFF: None})
)


@several
@given(
    st.lists(line_texts, min_size=1, max_size=8),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig"]),
    st.booleans(),
)
def test_text_is_one_text_a_line(
    tmp_path: Path, texts: list[str], end: str, encoding: str, ended: bool
) -> None:
    path = tmp_path / "a.txt"
    ended = ended or not texts[-1]  # an empty line is one only if it ends
    path.write_bytes((end.join(texts) + (end if ended else "")).encode(encoding))
    rows = read(path, TEXT)
    assert rows == [
        Row((expected(text),), None, str(path), line) for line, text in enumerate(texts, start=1)
    ]


@several
@given(
    st.lists(
        st.tuples(*[line_texts.map(lambda text: text.replace("\t", ""))] * 2),
        min_size=1,
        max_size=8,
    )
)
def test_text_is_two_texts_a_line_with_a_tab_between(
    tmp_path: Path, pairs: list[tuple[str, str]]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"{a}\t{b}\n\n" for a, b in pairs), encoding="utf-8", newline="")
    rows = read(path, PAIR)
    assert [row.texts for row in rows[::2]] == [(expected(a), expected(b)) for a, b in pairs]
    assert [row.texts for row in rows[1::2]] == [("", "")] * len(pairs)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".txt"])
def test_gzip_equals_plain(tmp_path: Path, suffix: str) -> None:
    columns = TEXT if suffix == ".txt" else TEXT_LABEL
    content = {
        ".csv": b'text,label\n"a,\nb",x\nc,y\n',
        ".tsv": b'text\tlabel\n"a\tx\nc\ty\n',
        ".jsonl": b'{"text": "a", "label": 1}\n{"text": "b", "label": 2}\n',
        ".txt": b"a\tb\n\nc\n",
    }[suffix]
    plain, packed = tmp_path / f"a{suffix}", tmp_path / f"a{suffix}.gz"
    plain.write_bytes(content)
    packed.write_bytes(gzip.compress(content))
    assert values(read(packed, columns)) == values(read(plain, columns))
    packed.write_bytes(gzip.compress(content)[:-9])
    with pytest.raises(DataError, match=r"a\.\w+\.gz: cannot be read.*: Compressed file ended"):
        read(packed, columns)


def test_the_label_separator(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\nt, a | b\nt,\nt,|\nt,c|\n")
    rows = read(path, Columns(("text",), "label", "|"))
    assert [row.label for row in rows] == [["a", "b"], [], [], ["c"]]
    path = tmp_path / "a.jsonl"
    labels = ["a|b", ["a|b", " c"], None, [], ""]
    path.write_text("".join(json.dumps({"text": "t", "label": y}) + "\n" for y in labels))
    rows = read(path, Columns(("text",), "label", "|"))
    assert [row.label for row in rows] == [["a", "b"], ["a|b", " c"], [], [], []]


def test_a_label_may_be_missing_where_that_is_allowed(tmp_path: Path) -> None:
    columns = Columns(("text",), "label", ignore_missing=True)
    path = tmp_path / "a.csv"
    path.write_text("text,label\nt,a\nt,\nt, \n")
    assert [row.label for row in read(path, columns)] == ["a", None, None]
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "t", "label": null}\n{"text": "t", "label": 0}\n')
    assert [row.label for row in read(path, columns)] == [None, 0]
    path.write_text('{"text": "t", "label": {}}\n')
    with pytest.raises(DataError, match="Write a string, a finite number"):
        read(path, columns)


def test_texts_alone_and_empty_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\n" \t",a\nb,\n\xa0,c\n\n', encoding="utf-8")
    rows = read(path, TEXT)
    assert rows == [
        Row(("",), None, str(path), 2),
        Row(("b",), None, str(path), 3),
        Row(("",), None, str(path), 4),
    ]
    assert [row.empty for row in rows] == [True, False, True]
    assert Row(("a", ""), None, "", 1).empty


# --- Paths --------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("b.csv", "a.csv", "a[1].csv", "deep/er/c.csv", "deep/a.csv", "notes.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text,label\n{name},x\n")
    return tmp_path


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        ("a.csv", "a.csv"),
        ("?.csv", "a.csv b.csv"),
        ("a[1].csv", "a[1].csv"),  # a file of that name goes before the pattern
        ("[ab].csv", "a.csv b.csv"),
        ("**/*.csv", "a.csv a[1].csv b.csv deep/a.csv deep/er/c.csv"),
        ("deep/**", "deep/a.csv deep/er/c.csv"),
        (["b.csv", "?.csv"], "b.csv a.csv"),
        ("~/deep/*.csv", "deep/a.csv"),
    ],
)
def test_globs(tree: Path, paths: str | list[str], found: str) -> None:
    names = [os.path.relpath(str(source), tree) for source in find_sources(paths)]
    assert names == found.split()
    assert [row.texts[0] for row in read_rows(paths, TEXT_LABEL)] == found.split()


def test_an_absolute_glob(tree: Path) -> None:
    assert [source.path for source in find_sources(f"{tree}/**/c.csv")] == [tree / "deep/er/c.csv"]


@pytest.mark.parametrize(
    ("paths", "parts"),
    [
        ("trian.csv", ["'trian.csv'", "{cwd}", "there is 'a.csv'"]),
        ("c.cvs", ["'a.csv'", "'b.csv'"]),
        ("*.tsv", ["'*.tsv'", "looked for from {cwd}", "'a.csv'"]),
        ("dep/a.csv", ["In {cwd} there is 'deep'"]),
        ("deep/*/d*.csv", ["In {cwd}/deep there is 'a.csv', 'er'"]),
        (["a.csv", "nothing.csv"], ["'nothing.csv'"]),
        ("deep", ["deep is a folder: name its files, such as deep/*.csv"]),
        ("", ["No file matches ''"]),
        ([], ["No path was given"]),
        ("notes.md", ["notes.md: the suffix '.md'", ".csv, .tsv, .jsonl, .ndjson, .parquet, .txt"]),
        ("~nobody-of-this-name/a.csv", ["~nobody-of-this-name/a.csv: cannot be read"]),
        ("a" * 300 + ".csv", ["cannot be read: File name too long"]),
        ("a\0.csv", ["No file matches 'a\\x00.csv'"]),
    ],
)
def test_paths_that_cannot_be_read(tree: Path, paths: str | list[str], parts: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(paths, TEXT_LABEL)  # at once, before a row is taken
    for part in parts:
        assert part.format(cwd=Path.cwd()) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX permissions")
@pytest.mark.parametrize("closed", ["file", "folder"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_without_permission(suffix: str, closed: str) -> None:
    with tempfile.TemporaryDirectory() as name:  # one that other users may enter
        folder, path = Path(name), Path(name) / f"a.{suffix}"
        path.write_text("text,label\na,b\n")
        path.chmod(0 if closed == "file" else 0o644)
        folder.chmod(0 if closed == "folder" else 0o755)
        user = os.geteuid()
        try:
            if user == 0:  # root reads everything
                os.seteuid(65534)
            with pytest.raises(DataError, match=rf"a\.{suffix}: cannot be read.*Permission denied"):
                read(path)
        finally:
            os.seteuid(user)
            folder.chmod(0o755)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="Linux")
def test_a_file_that_fails_while_it_is_read(tree: Path) -> None:
    (tree / "broken.csv").symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match=r"broken\.csv: cannot be read: Input/output error\."):
        read(tree / "broken.csv")


# --- Formats, and standard input ----------------------------------------------------------------

# What the format "..." reads, of two texts, "a" and "".
SAME = {
    "csv": b'text\na\n""\n',
    "tsv": b"text\na\n \n",
    "jsonl": b'{"text": "a"}\n{"text": null}',
    "text": b"a\n\n",
}


@pytest.mark.parametrize("format", SAME)
def test_the_format_goes_before_the_suffix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    lines = (1, 2) if format in ("jsonl", "text") else (2, 3)
    for name in ("a.csv", "a.parquet", "a", "a.GZ", "-"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(SAME[format]) if name == "a.GZ" else SAME[format])
        rows = read(path, TEXT, format)
        assert [(row.texts, row.file, row.line) for row in rows] == [
            (("a",), str(path), lines[0]),
            (("",), str(path), lines[1]),
        ]
    send(monkeypatch, SAME[format])
    monkeypatch.chdir(tmp_path)
    rows = list(read_rows(["./-", "-", "a", "-", "./a"], TEXT, format))
    assert [row.file for row in rows] == ["-", "-", *["standard input"] * 2, "a", "a"]
    assert [row.line for row in rows] == [*lines, *lines, *lines]
    assert not sys.stdin.buffer.closed


def test_parquet_by_its_format(tmp_path: Path) -> None:
    path = tmp_path / "a"
    pq.write_table(pa.table({"text": ["a"]}), path)
    assert read(path, TEXT, "parquet") == [Row(("a",), None, str(path), 1)]


@pytest.mark.parametrize(
    ("path", "columns", "format", "message"),
    [
        ("-", TEXT, None, "standard input has no suffix: state its format, such as csv, jsonl"),
        ("-", TEXT, "parquet", "standard input: Parquet cannot be read from standard input"),
        ("a.csv.gz", TEXT, "parquet", "a.csv.gz: Parquet cannot be read from"),
        ("a.parquet.gz", TEXT, None, "Name the .parquet file itself"),
        ("a.csv.gz", TEXT, "CSV", "no format 'CSV': give one of csv, tsv, jsonl, parquet, text."),
        ("a.csv.gz", TEXT, "", "no format '': give one of"),
        ("a.txt", TEXT_LABEL, None, "a.txt: a text file has no columns, so it cannot hold the"),
        ("-", TEXT_LABEL, "text", "the label 'label'. Write it as .csv with a header"),
    ],
)
def test_formats_that_do_not_fit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    columns: Columns,
    format: str | None,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv.gz", "a.parquet.gz", "a.txt"):
        (tmp_path / name).touch()
    with pytest.raises(DataError) as caught:
        read_rows(path, columns, format)  # at once, before a row is taken
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_proposes_the_suffix_of_its_tables(tmp_path: Path) -> None:
    for name in ("LICENSE.txt", "notes.md", "train.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"is a folder: name its files, such as .*/\*\.jsonl\."):
        read_rows(str(tmp_path), TEXT)


def test_standard_input_that_is_closed_or_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    send(monkeypatch, b"")
    with pytest.raises(DataError, match="There are no rows in standard input: give at least one"):
        list(read_rows("-", TEXT, "text"))
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DataError, match="standard input is closed"):
        list(read_rows("-", TEXT, "text"))


@pytest.mark.parametrize(
    ("format", "header", "pieces"),
    [
        ("csv", b"text\r\n", [b"a\n", b'"b\n', b'c"\n']),
        ("tsv", b"text\n", [b"a\n", b'"b', b"c\n"]),
        ("jsonl", b"", [b'{"text": "a"}\n', b'{"text": ', b'"c"}\n']),
        ("text", b"", [b"a\n", b"b", b"c\n"]),
    ],
)
def test_a_row_of_standard_input_comes_when_its_last_line_has(
    format: str, header: bytes, pieces: list[bytes]
) -> None:
    code = (
        "from bertkit.data.files import Columns, read_rows\n"
        f"for row in read_rows('-', Columns(('text',)), {format!r}):\n"
        "    print(row.line, row.texts[0].encode(), flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin and process.stdout
        timer = threading.Timer(20, process.kill)  # a row that does not come would wait for ever
        timer.start()
        first = 2 if header else 1
        process.stdin.write(header)
        for line in range(first, first + 3):  # the pipe stays open: the end does not flush it
            process.stdin.write(pieces[0])
            assert process.stdout.readline() == f"{line} b'a'\n".encode()
        for piece in pieces[1:]:
            process.stdin.write(piece)
        assert process.stdout.readline().startswith(f"{first + 3} ".encode())
        timer.cancel()
        process.stdin.close()
        assert process.stdout.read() == b""
    assert process.returncode == 0


# --- Malformed files ----------------------------------------------------------------------------

HEAD = b"text,label\n"
OPEN_QUOTE = b'"' + (b"ab" * 500 + b"\n") * 17_000
OBJECT = b'{"text": "a", "label": "b"}\n'

# name, content, line (0: none), what the message says, the fix it gives
MALFORMED = [
    ("a.csv", b"", 0, "is empty", "must name the columns"),
    ("a.csv", b"\n\r\n", 0, "is empty", "must name the columns"),
    ("a.tsv", b"", 0, "is empty", "must name the columns"),
    ("a.jsonl", b"", 0, "is empty", "one object a line"),
    ("a.jsonl", b"\n \n", 0, "is empty", '{"text": "...", "label": "..."}'),
    ("a.parquet", b"", 0, "cannot be read as Parquet", "anew"),
    ("a.parquet", b"PAR1 no, it is not PAR1", 0, "cannot be read as Parquet", "anew"),
    ("a.csv.gz", HEAD + b"a,b\n", 0, "Not a gzipped file", "anew"),
    ("a.csv", HEAD, 0, "There are no rows in", "at least one"),
    ("a.tsv", b"text\tlabel\n", 0, "There are no rows in", "at least one"),
    ("a.csv", HEAD + b"a,b\nc\n", 3, "has 1 fields where the header has 2", "in quotes"),
    ("a.csv", HEAD + b"a,b\nc, d,e\n", 3, "has 3 fields", "in quotes"),
    ("a.csv", HEAD + b'a, "b,c"\n', 2, "has 3 fields", "no space before"),
    ("a.csv", HEAD + b'"a\nb",c\n"d\n\ne"\n', 4, "has 1 fields", "in quotes"),
    ("a.tsv", b"text\tlabel\na\tb\tc\n", 2, "has 3 fields", "Replace tabs"),
    ("a.tsv", b'text\tlabel\n"a\nb"\tc\n', 2, "has 1 fields", "line breaks"),
    ("a.csv", HEAD + b'a,b\n"c,d\n', 3, "a quote opens here", "Close it"),
    ("a.csv", HEAD + b'"a\nb","c\nd\n', 3, "a quote opens here", "Close it"),
    ("a.csv", HEAD + b'5" "a,"b', 2, "a quote opens here", "Close it"),
    ("a.csv", HEAD + b'a,"', 2, "a quote opens here", "Close it"),
    ("a.csv", b'text,"label', 1, "a quote opens here", "Close it"),
    ("a.csv", HEAD + b'"a,b\n"c",d\n', 2, "on line 3 of this row", "close each quote"),
    ("a.csv", HEAD + b'"a \\"b\\" c",d\n', 2, "closing quote", 'as "" (not \\")'),
    ("a.csv", HEAD + b"a\rb,c\n", 2, "a carriage return stands alone", "LF or CRLF"),
    ("a.csv", b"text,label\ra,b\rc,d\r", 1, "a carriage return stands alone", "LF or CRLF"),
    ("a.csv", HEAD + OPEN_QUOTE, 2, "more than 16,777,216 char", "Close its quote"),
    ("a.csv", HEAD + b"a" * 17_000_000, 2, "longer than 16,777,216 bytes", "line break"),
    ("a.csv", HEAD + b"a,b\nc\0,d\n", 3, "NUL byte at byte offset 16", "UTF-16"),
    ("a.jsonl", OBJECT + b"{\0}\n", 2, "NUL byte at byte offset 29", "UTF-16"),
    ("a.csv", HEAD + b"a,b\ncaf\xe9,d\n", 3, "0xe9 at byte offset 18", "iconv -f CP1252"),
    ("a.csv", b"\xef\xbb\xbftext,\xff\n", 1, "0xff at byte offset 8", "iconv -f CP1252"),
    ("a.tsv", b"text\tlabel\na\xc3\tb\n", 2, "0xc3 at byte offset 12", "iconv -f CP1252"),
    ("a.jsonl", OBJECT + b'{"text": "\x93"}', 2, "0x93 at byte offset 38", "iconv -f CP1252"),
    ("a.csv", "text,label\na,b\n".encode("utf-16"), 1, "is UTF-16", "iconv -f UTF-16"),
    ("a.csv", b"\xfe\xff" + "text".encode("utf-16-be"), 1, "is UTF-16", "iconv -f UTF-16"),
    ("a.jsonl", '{"text": 1}'.encode("utf-32"), 1, "is UTF-32", "iconv -f UTF-32"),
    ("a.csv", b"text,label,text\na,b,c\n", 1, "two columns are named 'text'", "Rename"),
    ("a.csv", b"text,lable\na,b\n", 1, "no column 'label'", "Did you mean 'lable'?"),
    ("a.csv", b"txet,label\na,b\n", 1, "no column 'text'", "There is: 'txet', 'label'."),
    ("a.csv", b"Text,label\na,b\n", 1, "no column 'text'", "Did you mean 'Text'?"),
    ("a.csv", b"text;label\na;b\n", 1, "no column 'text'", "separated by ';'"),
    ("a.tsv", b"text,label\na,b\n", 1, "no column 'text'", "separated by ','"),
    ("a.csv", b"\n\nx,y\na,b\n", 3, "no column 'text'", "There is: 'x', 'y'."),
    ("a.jsonl", OBJECT + b'{"text": "a"}', 2, "no column 'label'", "There is: 'text'."),
    ("a.jsonl", b"{}", 1, "no column 'text'", "There is: none."),
    ("a.csv", HEAD + b"a,\n", 2, "label column 'label' is empty", "label_separator"),
    ("a.csv", HEAD + b"a, \n", 2, "label column 'label' is empty", "label_separator"),
    ("a.tsv", b"text\tlabel\na\t\n", 2, "label column 'label' is empty", "label_separator"),
    ("a.jsonl", b'{"text": "a", "label": null}', 1, "'label' is empty", "label_separator"),
    ("a.jsonl", b'{"text": "a", "label": NaN}', 1, "'label' is empty", "Fill it in"),
    ("a.jsonl", b'{"text": "a", "label": -Infinity}', 1, "holds -inf", "finite number"),
    ("a.jsonl", b'{"text": "a", "label": {"b": 1}}', 1, "holds {'b': 1}", "Write a string"),
    ("a.jsonl", b'{"text": "a", "label": ["b", null]}', 1, "holds None", "[] for a row without"),
    ("a.jsonl", b'{"text": "a", "label": [["b"]]}', 1, "holds ['b']", "strings or whole"),
    ("a.jsonl", b'{"text": "a", "label": [0.5]}', 1, "holds 0.5", "strings or whole"),
    ("a.jsonl", b'{"text": "a", "label": [""]}', 1, "holds ''", "strings or whole"),
    ("a.jsonl", OBJECT + b"\n" + b'{"text": "a", "label": "b"', 3, "not JSON", "one object a line"),
    ("a.jsonl", b"{'text': 'a'}", 1, "not JSON", "one object a line"),
    ("a.jsonl", b"[\n", 1, "not JSON", "one object a line"),
    ("a.jsonl", b"[" * 200_000, 1, "nested too deeply", "flat"),
    ("a.jsonl", b'{"text": ' + b"1" * 5000 + b"}", 1, "not JSON", "one object a line"),
    ("a.jsonl", b"[" + OBJECT.strip() + b"]", 1, "not an object", "one object a line"),
    ("a.jsonl", b'"text"\n', 1, "holds 'text', not an object", "one object a line"),
    ("a.jsonl", b'{"text": 5, "label": "b"}', 1, "holds 5, not a string", "quotes"),
    ("a.jsonl", b'{"text": ["a"], "label": "b"}', 1, "holds ['a'], not a string", "quotes"),
    ("a.jsonl", b'{"text": true, "label": "b"}', 1, "holds True, not a string", "quotes"),
    ("a.jsonl", b'{"text": "\\ud83d", "label": "b"}', 1, "half of a surrogate pair", "remove it"),
    ("a.jsonl", b'{"text": "a", "label": "\\udc00"}', 1, "half of a surrogate", "remove it"),
    ("a.jsonl", b'{"text": "a", "label": ["\\udc00"]}', 1, "half of a surrogate", "remove it"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "line", "cause", "fix"),
    MALFORMED,
    ids=[f"{index}-{case[0]}-{case[3][:30]}" for index, case in enumerate(MALFORMED)],
)
def test_malformed_files(
    tmp_path: Path, name: str, content: bytes, line: int, cause: str, fix: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    message = str(caught.value)
    assert f"{path}:{line}: " in message if line else str(path) in message
    assert cause in message
    assert fix in message
    assert "\n" not in message and len(message) < 400 + len(str(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [case[:2] for case in MALFORMED if case[0] in ("a.csv", "a.tsv", "a.jsonl")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_malformed_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    send(monkeypatch, content)
    with pytest.raises(DataError) as of_file:
        read(path)
    with pytest.raises(DataError) as of_input:
        list(read_rows("-", TEXT_LABEL, path.suffix[1:]))
    assert str(of_input.value) == str(of_file.value).replace(str(path), "standard input")


@pytest.mark.parametrize(
    ("content", "columns", "line", "cause"),
    [
        (b"a\tb\nc\n", PAIR, 2, "has 0 tabs: 'c'. Put one tab between"),
        (b"\na\tb\tc\n", PAIR, 2, "has 2 tabs: 'a\\tb\\tc'. Put one tab between"),
        (b"a\n\xff\n", TEXT, 2, "byte 0xff at byte offset 2 is not UTF-8"),
        (b"a\0\n", TEXT, 1, "NUL byte"),
        (b"", TEXT, 0, "There are no rows in"),
    ],
)
def test_malformed_text(
    tmp_path: Path, content: bytes, columns: Columns, line: int, cause: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path, columns)
    message = str(caught.value)
    assert f"{path}:{line}: " in message if line else str(path) in message
    assert cause in message and "\n" not in message


NOW = pa.scalar(0, pa.timestamp("s"))

# columns, row (0: none), what the message says
MALFORMED_TABLES = [
    ({"text": ["a"], "lable": ["b"]}, 0, "no column 'label'. Did you mean 'lable'?"),
    ({"text": ["a", "a"], "label": ["b", None]}, 2, "'label' is empty"),
    ({"text": ["a", "a"], "label": [0.5, float("nan")]}, 2, "'label' is empty"),
    ({"text": ["a"], "label": [float("inf")]}, 1, "holds inf"),
    ({"text": ["a", "a"], "label": [["x"], None]}, 2, "'label' is empty"),
    ({"text": ["a"], "label": [[None]]}, 1, "holds None"),
    ({"text": ["a"], "label": [b"bytes"]}, 1, "holds b'bytes'"),
    ({"text": ["a"], "label": [NOW.as_py()]}, 1, "holds datetime"),
    ({"text": [1], "label": ["b"]}, 1, "holds 1, not a string"),
    ({"text": [b"a"], "label": ["b"]}, 1, "holds b'a', not a string"),
    ({"text": [["a"]], "label": ["b"]}, 1, "holds ['a'], not a string"),
    ({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}, 0, "no rows"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "row", "cause"), MALFORMED_TABLES)
def test_malformed_parquet(tmp_path: Path, table: dict[str, Any], row: int, cause: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(table), path)
    with pytest.raises(DataError) as caught:
        read(path)
    message = str(caught.value)
    assert f"{path}:{row}: " in message if row else str(path) in message
    assert cause in message and "\n" not in message


def test_parquet_with_two_columns_of_a_name_and_invalid_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    strings = pa.array(["a", "b"])
    pq.write_table(pa.Table.from_arrays([strings] * 3, ["text", "label", "text"]), path)
    with pytest.raises(DataError, match="two columns are named 'text'"):
        read(path)
    broken = pa.array([b"a", b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"text": broken, "label": strings}), path)
    with pytest.raises(DataError, match=r"a\.parquet:2: invalid UTF-8"):
        read(path)


@pytest.mark.parametrize(
    "arguments",
    [
        ("text",),  # a text instead of a tuple
        ((),),
        (("a", "b", "c"),),
        (("a", "a"),),
        (("text",), "text"),
        (("a", "b"), "b"),
        (("",), "label"),
        (("text",), ""),
        ((1,),),
        (("text",), "label", ""),
    ],
)
def test_columns_that_cannot_be_asked_for(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(DataError) as caught:
        Columns(*arguments)
    assert "\n" not in str(caught.value)


def test_a_number_where_labels_are_separated(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "label": 3}')
    with pytest.raises(DataError, match=r"a\.jsonl:1: .* holds 3\. Write a list or a string"):
        read(path, Columns(("text",), "label", "|"))


def test_an_empty_file_among_others_and_rows_before_a_mistake(tmp_path: Path) -> None:
    header, broken = tmp_path / "a.csv", tmp_path / "b.csv"
    header.write_text("text,label\n")
    broken.write_text("label,text\nx,a\ny\n")
    rows = read_rows([str(header), str(broken)], TEXT_LABEL)
    assert next(rows) == Row(("a",), "x", str(broken), 2)
    with pytest.raises(DataError, match=r"b\.csv:3: "):
        next(rows)


def test_names_of_unused_columns_may_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(",,text,label\n0,,a,x\n")
    assert values(read(path)) == [("a", "x")]


def good_files() -> Iterator[tuple[str, bytes]]:
    yield "a.csv", b'\xef\xbb\xbftext,label\r\n"a ""b"", c\r\nd",x\r\ne,y\r\n'
    yield "a.tsv", b'text\tlabel\na "b\tx\nc\ty\n'
    yield (
        "a.jsonl",
        b'{"text": "a \\ud83d\\ude00", "label": ["x", 1]}\n{"text": null, "label": 1.5}\n',
    )
    yield "a.txt", b"a\tb\n\nc\td\r\ne\tf"
    yield "a.csv.gz", gzip.compress(b"text,label\na,b\n", mtime=0)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["a", "b"], "label": [["x"], []]}), sink)
    yield "a.parquet", sink.getvalue().to_pybytes()


@pytest.mark.parametrize(("name", "content"), list(good_files()), ids=lambda value: str(value)[:10])
@settings(several, max_examples=150)
@given(data=st.data())
def test_damage_gives_rows_or_one_line(
    tmp_path: Path, name: str, content: bytes, data: st.DataObject
) -> None:
    path = tmp_path / name
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, min(start + 4, len(content))))
    inserted = data.draw(st.binary(max_size=4) | st.sampled_from([b'"', b",", b"\n", b"\r", b"\0"]))
    path.write_bytes(content[:start] + inserted + content[stop:])
    columns = PAIR if name == "a.txt" else TEXT_LABEL
    try:
        rows = read(path, columns)
    except DataError as error:
        assert name in str(error) and "\n" not in str(error)
    else:
        assert all(isinstance(text, str) for row in rows for text in row.texts)
        assert all((row.label is None) == (columns.label is None) for row in rows)


# --- Memory, and what is imported ---------------------------------------------------------------


def write_csv(path: Path, texts: Iterator[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["text", "label"])
        writer.writerows([text, "x"] for text in texts)


def write_jsonl(path: Path, texts: Iterator[str]) -> None:
    with path.open("w", encoding="utf-8") as handle:
        handle.writelines(json.dumps({"text": text, "label": "x"}) + "\n" for text in texts)


def write_text(path: Path, texts: Iterator[str]) -> None:
    with path.open("w", encoding="utf-8") as handle:
        handle.writelines(text + "\n" for text in texts)


def write_parquet(path: Path, texts: Iterator[str]) -> None:
    cells = list(texts)
    table = pa.table({"text": cells, "label": ["x"] * len(cells)})
    pq.write_table(table, path, use_dictionary=False, compression="none")  # one row group


@pytest.mark.parametrize(
    ("suffix", "write"),
    [
        ("csv", write_csv),
        ("jsonl", write_jsonl),
        ("txt", write_text),
        ("parquet", write_parquet),
    ],
)
def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, suffix: str, write: Callable[[Path, Iterator[str]], None]
) -> None:
    path = tmp_path / f"a.{suffix}"
    columns = TEXT if suffix == "txt" else TEXT_LABEL
    write(path, (f"{index}, " + "some words " * 90 for index in range(30_000)))
    assert path.stat().st_size > 28e6
    for _ in read_rows(str(path), columns):  # imports and caches do not count
        break
    arrow_before, arrow_peak = pa.total_allocated_bytes(), 0
    tracemalloc.start()
    try:
        count = 0
        for count, _ in enumerate(read_rows(str(path), columns), start=1):
            if count % 100 == 0:
                arrow_peak = max(arrow_peak, pa.total_allocated_bytes() - arrow_before)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 30_000
    assert peak < 4e6
    assert arrow_peak < 8e6


def test_reading_imports_nothing_heavy(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,b\n")
    code = (
        "import sys; from bertkit.data.files import Columns, read_rows; "
        f"list(read_rows({str(path)!r}, Columns(('text',), 'label'))); "
        "print(*{'numpy', 'pandas', 'pyarrow', 'tensorflow', 'keras', 'sklearn'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# --- Real files ---------------------------------------------------------------------------------


@pytest.mark.skipif(not DATA.is_dir(), reason="the public datasets are not there")
def test_public_datasets_as_pandas_reads_them() -> None:
    files = [source.path for source in find_sources(str(DATA / "**" / "*.tsv")) if source.path]
    assert len(files) >= 15
    for path in files:
        frame = pd.read_csv(
            path, sep="\t", quoting=csv.QUOTE_NONE, keep_default_na=False, dtype=str
        )
        text = tuple(name for name in frame.columns if name.startswith("text"))
        label = next(name for name in ("label", "labels", "score") if name in frame.columns)
        rows = read(path, Columns(text, label, "|" if label == "labels" else None))
        wanted = frame[[*text, label]]
        if label == "labels":
            split = wanted[label].map(lambda cell: cell.split("|") if cell else [])
            wanted = wanted.assign(labels=split)
        assert values(rows) == list(wanted.itertuples(index=False, name=None))
        assert [row.line for row in rows] == list(range(2, len(frame) + 2))
