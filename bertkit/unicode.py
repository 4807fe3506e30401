"""BERT's normalizing of text as TensorFlow operations, equal to the reference on all of Unicode.

What a character is comes from `unicode_tables`, not from the libraries underneath: theirs are of
other versions of Unicode than the reference's, and ICU lowercases by the language of the process.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from bertkit import unicode_tables

_ENTRY = re.compile(r"([0-9A-F]+)(?:-([0-9A-F]+))?(?:/(\d))?(?::([+-]\d+))?")
_PLAIN = r"[ -~\t\n\r]*"  # only the case and line ends of such a text can change
_SPARE = 0xF0000  # private use, which normalizing drops: free to stand for something else


def normalize(texts: tf.Tensor, lowercase: bool, strip_accents: bool) -> tf.Tensor:
    """Clean texts: one kind of space, no control characters, accents and case as asked.

    Args:
        texts: UTF-8 strings, (B,). Bytes that are not UTF-8 are dropped.
        lowercase: character by character, so no special form of sigma ends a word.
        strip_accents: by canonical decomposition (NFD), then without nonspacing marks.

    Returns:
        UTF-8 strings, (B,).
    """
    x = _change(texts, _PLAIN, lambda rows: _normalize_any(rows, lowercase, strip_accents))
    x = tf.strings.regex_replace(x, r"[\t\n\r]", " ")
    return tf.strings.lower(x) if lowercase else x  # ASCII, as no encoding is given


def isolate(texts: tf.Tensor) -> tf.Tensor:
    """Put spaces around punctuation and CJK ideographs, each a word by itself, (B,)."""
    return tf.strings.regex_replace(texts, f"({_class(unicode_tables.ISOLATED)})", r" \1 ")


def _normalize_any(texts: tf.Tensor, lowercase: bool, strip_accents: bool) -> tf.Tensor:
    replace = tf.strings.regex_replace
    x = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", replacement_char=0xFFFD)
    x = replace(x, _class(unicode_tables.SPACES), " ")
    x = replace(x, _class(unicode_tables.DELETED), "")
    if strip_accents:
        x = replace(_decompose(x), _class(unicode_tables.ACCENTS), "")
    if lowercase:
        x = tf.strings.lower(x)  # ASCII, which leaves few texts to the slower way
        x = _change(x, _class(unicode_tables.LOWERCASE, "^İ") + "*", _lower)
    return x


def _lower(texts: tf.Tensor) -> tf.Tensor:
    x = tf.strings.regex_replace(texts, "İ", "i\u0307")  # the one that becomes two
    return _map(x, *_lowercase())


def _decompose(texts: tf.Tensor) -> tf.Tensor:
    """Return the canonical decomposition (NFD) as of the reference's Unicode, (B,)."""
    # Imported here: the library is absent on Windows, and needed only to tokenize.
    import tensorflow_text

    later = np.array([code for code, _ in _codes(unicode_tables.LATER)], np.int32)
    spare = _SPARE + np.arange(len(later), dtype=np.int32)
    x = _change(texts, _class(unicode_tables.LATER, "^") + "*", lambda x: _map(x, later, spare))
    x = tensorflow_text.normalize_utf8(x, "NFD")
    return _change(x, r"[^\x{F0000}-\x{FFFFD}]*", lambda x: _map(x, spare, later))


def _change(
    texts: tf.Tensor, unchanged: str, function: Callable[[tf.Tensor], tf.Tensor]
) -> tf.Tensor:
    """Apply a function to those texts that do not match a pattern, (B,)."""
    rows = tf.where(~tf.strings.regex_full_match(texts, unchanged))  # (R, 1)
    return tf.tensor_scatter_nd_update(texts, rows, function(tf.gather_nd(texts, rows)))


def _map(texts: tf.Tensor, codes: NDArray[np.int32], new: NDArray[np.int32]) -> tf.Tensor:
    """Replace code points, given in ascending order, by others, (B,)."""
    characters = tf.strings.unicode_decode(texts, "UTF-8")
    values = characters.flat_values
    place = tf.minimum(tf.searchsorted(codes, values), len(codes) - 1)
    values = tf.where(tf.gather(codes, place) == values, tf.gather(new, place), values)
    return tf.strings.unicode_encode(characters.with_flat_values(values), "UTF-8")


@functools.cache
def _lowercase() -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the characters that have a lowercase, and it."""
    pairs = np.array(list(_codes(unicode_tables.LOWERCASE)), np.int32)
    return pairs[:, 0], pairs.sum(axis=1, dtype=np.int32)


@functools.cache
def _class(table: str, prefix: str = "") -> str:
    """Return a class of characters in RE2's syntax: all between the ends of a table's entries."""
    ranges = (rf"\x{{{first:X}}}-\x{{{last:X}}}" for first, last, _, _ in _entries(table))
    return f"[{prefix}{''.join(ranges)}]"


def _codes(table: str) -> Iterator[tuple[int, int]]:
    """Yield each code point of a table with its shift."""
    for first, last, step, shift in _entries(table):
        yield from ((code, shift) for code in range(first, last + 1, step))


def _entries(table: str) -> Iterator[tuple[int, int, int, int]]:
    """Yield first and last code point, step and shift of each entry of a table."""
    for entry in table.split():
        match = _ENTRY.fullmatch(entry)
        assert match is not None, entry
        first, last, step, shift = match.groups()
        yield int(first, 16), int(last or first, 16), int(step or 1), int(shift or 0)
