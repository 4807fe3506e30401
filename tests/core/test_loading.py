"""From files to tokenized rows: texts, labels, places and the report, in one pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import bertkit
from bertkit.data.files import Columns, read_rows
from bertkit.data.loading import Split, load_split, text_chunks
from bertkit.errors import DataError, InputError
from tests.tiny_models import tiny_encoder

COLUMNS = Columns(("text",), "label")
WORDS = ["good", "bad", "film", "boring", "plot", "awful", "the", "cat", "sat"]


def preprocessor(name: str = "single_text", length: int = 12) -> Any:
    made = bertkit.preprocessors.create(name, sequence_length=length)
    made.bind(tiny_encoder())
    return made


def write_rows(
    path: Path, count: int, seed: int = 0, empty_every: int = 0
) -> list[tuple[str, int]]:
    """Write JSON lines, with blank lines between some; return those that have a text."""
    random = np.random.default_rng(seed)
    kept, lines = [], []
    for index in range(count):
        text = " ".join(random.choice(WORDS, random.integers(1, 20)))
        if empty_every and index % empty_every == 0:
            text = "  " * (index % 2)
        else:
            kept.append((text, index))
        lines.append(json.dumps({"text": text, "label": index}) + "\n" * (1 + (index % 5 == 0)))
    path.write_text("".join(lines))
    return kept


def ids(split: Split) -> list[list[int]]:
    """Return the token ids of each row."""
    rows = [split.examples.batch(np.array([row])) for row in range(len(split.examples))]
    return [batch["token_ids"][0].tolist() for batch in rows]


# A chunk is 2,048 rows: fewer, as many, one more, and more than two.
@pytest.mark.parametrize("count", [1, 3, 2047, 2048, 2049, 5000])
def test_every_row_is_there_once(tmp_path: Path, count: int) -> None:
    kept = write_rows(tmp_path / "a.jsonl", count)
    split = load_split(str(tmp_path / "a.jsonl"), COLUMNS, preprocessor())
    assert split.labels == list(range(count)) == [label for _, label in kept]
    assert len(split.examples) == len(split.places.line_of) == count == split.report.rows
    some = np.unique(np.random.default_rng(1).integers(0, count, 40))
    encoded = preprocessor().encode(tf.constant([kept[row][0] for row in some]))
    taken = split.take(some)
    assert ids(taken) == encoded.token_ids.to_list()
    np.testing.assert_array_equal(taken.examples.full_lengths, encoded.lengths)


def test_rows_without_text_are_left_out_and_counted(tmp_path: Path) -> None:
    kept = write_rows(tmp_path / "a.jsonl", 3000, empty_every=7)
    split = load_split(str(tmp_path / "a.jsonl"), COLUMNS, preprocessor())
    assert split.labels == [label for _, label in kept]
    assert (split.report.rows, split.report.empty) == (3000, 3000 - len(kept))
    lengths = [len(text.split()) + 2 for text, _ in kept]  # each word is a piece
    assert split.examples.full_lengths.tolist() == lengths
    assert split.report.truncated == sum(length > 12 for length in lengths)
    assert split.examples.lengths.tolist() == [min(length, 12) for length in lengths]
    assert split.report.as_dict()["lengths"]["longest"] == max(lengths)


def test_places(tmp_path: Path) -> None:
    for name in "ab":
        write_rows(tmp_path / f"{name}.jsonl", 2100, seed=ord(name), empty_every=3)
    paths = [str(tmp_path / "b.jsonl"), str(tmp_path / "a.jsonl")]
    split = load_split(paths, COLUMNS, preprocessor())
    expected = [f"{row.file}:{row.line}" for row in read_rows(paths, COLUMNS) if not row.empty]
    found = [split.places.name(row) for row in range(len(split.labels))]
    assert found == expected
    rows = np.array([5, 2000, 1399, 1400, 0])
    taken = split.take(rows)
    assert [taken.places.name(row) for row in range(5)] == [expected[row] for row in rows]
    # The line is that of the file: the label was written beside it.
    for row in rows:
        file, _, line = expected[row].rpartition(":")
        written = Path(file).read_text().split("\n")[int(line) - 1]
        assert json.loads(written)["label"] == split.labels[row]


def test_pairs(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("a\tb\tlabel\ngood\tbad film\t1\n\tbad\t2\nthe cat\tsat\t3\n")
    columns = Columns(("a", "b"), "label")
    split = load_split(str(tmp_path / "a.tsv"), columns, preprocessor("sentence_pair"))
    assert split.labels == ["1", "3"] and split.report.empty == 1
    pairs = tf.constant([["good", "bad film"], ["the cat", "sat"]])
    encoded = preprocessor("sentence_pair").encode(pairs)
    assert ids(split) == encoded.token_ids.to_list()
    segments = split.examples.batch(np.array([0]))["segment_ids"][0].tolist()
    assert segments == encoded.segment_ids.to_list()[0] == [0, 0, 0, 1, 1, 1]


def test_taking_rows_reports_on_them(tmp_path: Path) -> None:
    rows = [("good", "x"), ("good", "y"), ("bad " * 15, "x"), ("", "z")]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
    )
    split = load_split(str(tmp_path / "a.jsonl"), COLUMNS, preprocessor())
    whole, part = split.report.as_dict(), split.take(np.array([2, 0])).report.as_dict()
    assert (whole["rows"], whole["empty"], whole["duplicates"], whole["truncated"]) == (4, 1, 1, 1)
    assert (part["rows"], part["empty"], part["duplicates"], part["truncated"]) == (2, 0, 0, 1)
    assert part["labels"] == {"x": 2} and whole["labels"] == {"x": 2, "y": 1}


def test_located_names_the_row(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", 30, empty_every=4)
    split = load_split(str(tmp_path / "a.jsonl"), COLUMNS, preprocessor())
    with pytest.raises(DataError) as caught, split.located():
        raise InputError("the label is odd", row=3)
    assert str(caught.value) == f"{split.places.name(3)}: the label is odd"
    with pytest.raises(InputError, match=r"^no row$"), split.located():
        raise InputError("no row")
    with split.located():
        pass


def test_no_text_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n,1\n  ,2\n")
    with pytest.raises(DataError, match=r"No row of .*a\.csv has a text"):
        load_split(str(tmp_path / "a.csv"), COLUMNS, preprocessor())


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_chunks_of_texts(tmp_path: Path, size: int) -> None:
    kept = write_rows(tmp_path / "a.jsonl", 7)
    chunks = list(text_chunks(read_rows(str(tmp_path / "a.jsonl"), COLUMNS), 1, size))
    assert [len(chunk) for chunk in chunks[:-1]] == [size] * (len(chunks) - 1)
    assert np.concatenate(chunks).tolist() == [text for text, _ in kept]
    assert all(chunk.ndim == 1 and chunk.dtype == object for chunk in chunks)


def test_chunks_of_pairs(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n3,4\n5,6\n")
    rows = read_rows(str(tmp_path / "a.csv"), Columns(("a", "b")))
    chunks = list(text_chunks(rows, 2, 2))
    assert [chunk.tolist() for chunk in chunks] == [[["1", "2"], ["3", "4"]], [["5", "6"]]]
    assert list(text_chunks(iter([]), 1)) == []
