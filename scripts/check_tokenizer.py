"""Compare bertkit's token ids with those of Hugging Face's `tokenizers`, at full length.

Every code point of Unicode, alone and inside of a word; each pair of ASCII characters; random
texts of many kinds; the lines of files. With and without lowercasing, accents kept, stripped and
as BERT does. The tests do the same on less.

    python scripts/check_tokenizer.py --random 100000 [--vocabulary vocab.txt] [FILE ...]
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import tensorflow as tf
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from bertkit.tokenizer import Vocabulary, WordPieceTokenizer

UNICODE = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LONGEST_RANDOM = 30  # characters, but for the texts that repeat one
MARKS = [c for c in UNICODE if unicodedata.combining(c)]
# Kinds of characters that a random text is made of.
KINDS = [
    *([c for c in UNICODE if first <= ord(c) <= last] for first, last in (
        (0x20, 0x7E), (0x20, 0x7E), (0, 0x7F), (0, 0x24F), (0x370, 0x52F), (0x530, 0x10FF),
        (0x1100, 0x11FF), (0x1AB0, 0x1FFF), (0x2000, 0x2FFF), (0x3000, 0x33FF), (0x4E00, 0x4EFF),
        (0xA640, 0xABFF), (0xAC00, 0xAFFF), (0xF900, 0xFFFF), (0x10000, 0x1FFFF),
        (0x1F000, 0x1FAFF), (0x2B700, 0x2BA00), (0, 0x10FFFF),
    )),
    [*map(chr, range(0x300, 0x370)), *"aeiouAEIOU"],
    [*MARKS, *map(chr, range(0x897, 0x900)), *"aZ"],
    [c for c in UNICODE if unicodedata.decomposition(c)],
    [c for c in UNICODE if c.lower() != c],
    [*SPECIAL, *"[]SEPMASK sep", "\u200b", "\u0301", "\0"],
    [*" \t\n\r\v\f\x85\xa0\u2028\u3000ab."],
]  # fmt: skip


def main() -> int:
    """Print how many texts differ; return 1 if any does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="lines to compare")
    parser.add_argument("--random", type=int, default=0, help="random texts to compare")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocabulary", type=Path, help="a vocab.txt besides the one made here")
    options = parser.parse_args()
    # Where each character is a piece, no difference hides in an unknown word.
    pieces = [c for c in UNICODE if c > " " and not "\u3500" < c < "\ua000" and c < "\U0001f700"]
    vocabularies = {"characters": (*SPECIAL, *pieces, *(f"##{c}" for c in pieces))}
    if options.vocabulary:
        vocabularies[str(options.vocabulary)] = Vocabulary.from_file(options.vocabulary).tokens
    lines = [line for file in options.files for line in file.read_text("utf-8").splitlines()]
    texts = {
        "texts of all code points": [" ".join(some) for some in chunks(UNICODE, 64)],
        "texts of them within words": [
            " ".join(f"a{c}b" for c in some) for some in chunks(UNICODE, 64)
        ],
        "pairs of ASCII characters": [
            f"a{first}{second}b{first}" for first in UNICODE[:128] for second in UNICODE[:128]
        ],
        "random texts": list(random_texts(options.random, random.Random(options.seed))),
        "lines": lines,
    }
    different = 0
    for name, tokens in vocabularies.items():
        for lowercase, strip in itertools.product((True, False), (None, True, False)):
            vocabulary = Vocabulary(tokens, lowercase=lowercase, strip_accents=strip)
            for kind, some in texts.items():
                count = differences(vocabulary, some)
                print(f"{count} of {len(some)} {kind} differ: {name}, {lowercase=}, {strip=}")
                different += count
    return int(different > 0)


def differences(vocabulary: Vocabulary, texts: list[str]) -> int:
    """Return how many texts get other ids from the reference; print the first of them."""
    reference = Tokenizer(
        WordPiece({token: i for i, token in enumerate(vocabulary.tokens)}, unk_token="[UNK]")
    )
    reference.normalizer = BertNormalizer(
        lowercase=vocabulary.lowercase, strip_accents=vocabulary.strip_accents
    )
    reference.pre_tokenizer = BertPreTokenizer()
    reference.add_special_tokens(SPECIAL)
    tokenize = tf.function(
        WordPieceTokenizer(vocabulary), input_signature=[tf.TensorSpec([None], tf.string)]
    )
    count = 0
    for some in chunks(texts, 4096):
        ours = tokenize(tf.constant(some)).to_list()
        theirs = reference.encode_batch(some, add_special_tokens=False)
        for text, ids, wanted in zip(some, ours, theirs, strict=True):
            if ids != wanted.ids:
                count += 1
                if count == 1:
                    print(f"{text!a}: {ids[:20]} instead of {wanted.ids[:20]}")
    return count


def chunks(texts: list[str], size: int) -> Iterable[list[str]]:
    """Return the texts, some at a time."""
    return (texts[start : start + size] for start in range(0, len(texts), size))


def random_texts(count: int, generator: random.Random) -> Iterator[str]:
    """Yield texts of one kind of characters, of all, and some with words of about 100."""
    for _ in range(count):
        size = generator.randint(0, LONGEST_RANDOM)
        if generator.random() < 0.5:
            text = generator.choices(generator.choice(KINDS), k=size)
        else:
            text = [generator.choice(generator.choice(KINDS)) for _ in range(size)]
        if generator.random() < 0.02:
            text.append(generator.choice(generator.choice(KINDS)) * generator.randint(90, 110))
        yield generator.choice(["", "", " "]).join(text)


if __name__ == "__main__":
    sys.exit(main())
