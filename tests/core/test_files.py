"""Rows from files: against other writers, malformed files, memory."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
import tempfile
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

from bertkit.data.files import Columns, Row, find_files, read_rows
from bertkit.errors import DataError

TEXT_LABEL = Columns(("text",), "label")
DATA = Path(__file__).parents[3] / "shared" / "data"

# Files are overwritten by each example, so that they may share the folder of the test.
several = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
text_cells = st.text(characters, max_size=30) | st.text('",\r\n\t ab\\\ufeff', max_size=12)
label_cells = text_cells.filter(str.strip)


def read(path: Path | list[Path], columns: Columns = TEXT_LABEL) -> list[Row]:
    paths = [str(one) for one in path] if isinstance(path, list) else str(path)
    return list(read_rows(paths, columns))


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


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_gzip_equals_plain(tmp_path: Path, suffix: str) -> None:
    content = {
        ".csv": b'text,label\n"a,\nb",x\nc,y\n',
        ".tsv": b'text\tlabel\n"a\tx\nc\ty\n',
        ".jsonl": b'{"text": "a", "label": 1}\n{"text": "b", "label": 2}\n',
    }[suffix]
    plain, packed = tmp_path / f"a{suffix}", tmp_path / f"a{suffix}.gz"
    plain.write_bytes(content)
    packed.write_bytes(gzip.compress(content))
    assert values(read(packed)) == values(read(plain))
    packed.write_bytes(gzip.compress(content)[:-9])
    with pytest.raises(DataError, match=r"a\.\w+\.gz: cannot be read.*: Compressed file ended"):
        read(packed)


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


def test_texts_alone_and_empty_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\n" \t",a\nb,\n\xa0,c\n\n', encoding="utf-8")
    rows = read(path, Columns(("text",)))
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
    for name in ("b.csv", "a.csv", "a[1].csv", "deep/er/c.csv", "deep/a.csv", "notes.txt"):
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
    names = [os.path.relpath(path, tree) for path in find_files(paths)]
    assert names == found.split()
    assert [row.texts[0] for row in read_rows(paths, TEXT_LABEL)] == found.split()


def test_an_absolute_glob(tree: Path) -> None:
    assert find_files(f"{tree}/**/c.csv") == [tree / "deep/er/c.csv"]


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
        ("notes.txt", ["notes.txt: the suffix '.txt'", ".csv, .tsv, .jsonl, .ndjson, .parquet"]),
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
    try:
        rows = read(path)
    except DataError as error:
        assert name in str(error) and "\n" not in str(error)
    else:
        assert all(isinstance(text, str) for row in rows for text in row.texts)
        assert all(row.label is not None for row in rows)


# --- Memory, and what is imported ---------------------------------------------------------------


def write_csv(path: Path, texts: Iterator[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["text", "label"])
        writer.writerows([text, "x"] for text in texts)


def write_jsonl(path: Path, texts: Iterator[str]) -> None:
    with path.open("w", encoding="utf-8") as handle:
        handle.writelines(json.dumps({"text": text, "label": "x"}) + "\n" for text in texts)


def write_parquet(path: Path, texts: Iterator[str]) -> None:
    cells = list(texts)
    table = pa.table({"text": cells, "label": ["x"] * len(cells)})
    pq.write_table(table, path, use_dictionary=False, compression="none")  # one row group


@pytest.mark.parametrize(
    ("suffix", "write"), [("csv", write_csv), ("jsonl", write_jsonl), ("parquet", write_parquet)]
)
def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, suffix: str, write: Callable[[Path, Iterator[str]], None]
) -> None:
    path = tmp_path / f"a.{suffix}"
    write(path, (f"{index}, " + "some words " * 90 for index in range(30_000)))
    assert path.stat().st_size > 28e6
    for _ in read_rows(str(path), TEXT_LABEL):  # imports and caches do not count
        break
    arrow_before, arrow_peak = pa.total_allocated_bytes(), 0
    tracemalloc.start()
    try:
        count = 0
        for count, _ in enumerate(read_rows(str(path), TEXT_LABEL), start=1):
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
    files = find_files(str(DATA / "**" / "*.tsv"))
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
