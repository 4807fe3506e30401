"""Write bertkit/unicode_tables.py: the classes of characters that BERT's tokenizing goes by.

They are read off the reference, Hugging Face's `tokenizers`, by asking it about every code point,
since its tables are those of several versions of Unicode, which nothing else has together.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path

import tensorflow as tf
import tensorflow_text
import tokenizers
from tokenizers.normalizers import NFD, BertNormalizer, Lowercase
from tokenizers.pre_tokenizers import BertPreTokenizer

TARGET = Path(__file__).resolve().parent.parent / "bertkit" / "unicode_tables.py"
# No version of Unicode has characters from 40000 to DFFFF; surrogates are none.
CODES = [*range(0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0x110000)]
OVERLAY, IOTA = "\u0334", "\u0345"  # the marks that canonical order puts first and last
CHUNK = 4096

HEADER = '''"""Classes of characters, as the reference of BERT's tokenizing has them.

Written by scripts/derive_unicode.py from tokenizers {tokenizers} and, for LATER, the ICU of
tensorflow-text {text}. Code points are in hexadecimal: `41-5A` is a range with both its ends.
In LOWERCASE, `100-12E/2:+1` says that every second one of the range becomes the code point 1 above.
"""

# fmt: off
'''
MEANINGS = {
    "SPACES": "Become a space, U+0020.",
    "DELETED": "Are dropped: control, format and private-use characters, and U+FFFD.",
    "ISOLATED": "Are words by themselves: punctuation and CJK ideographs.",
    "ACCENTS": "Are dropped after canonical decomposition where accents are stripped.",
    "LATER": "Decompose or are reordered in a later Unicode than the reference's.",
    "LOWERCASE": "Become one other character; U+0130 alone becomes two.",
}


def derive() -> dict[str, str]:
    """Return the tables by name, each as its entries with spaces between them."""
    clean = _each(_bert(clean_text=True))
    stripped = _each(_bert(strip_accents=True))
    lowered = _each(Lowercase().normalize_str)
    return {
        "SPACES": _ranges(c for c, new in clean.items() if new == " " and c != 0x20),
        "DELETED": _ranges(c for c, new in clean.items() if new == ""),
        "ISOLATED": _ranges(_isolated()),
        "ACCENTS": _ranges(c for c, new in stripped.items() if new == ""),
        "LATER": _ranges(_later()),
        "LOWERCASE": _shifts(
            (c, ord(new) - c) for c, new in lowered.items() if len(new) == 1 and ord(new) != c
        ),
    }


def render(tables: dict[str, str]) -> str:
    """Return the text of the module."""
    parts = [HEADER.format(tokenizers=tokenizers.__version__, text=tensorflow_text.__version__)]
    for name, table in tables.items():
        lines = "\n".join(textwrap.wrap(table, 100, break_on_hyphens=False))
        parts.append(f'\n# {MEANINGS[name]}\n{name} = """\n{lines}\n"""\n')
    return "".join(parts)


def _bert(**options: bool) -> Callable[[str], str]:
    """Return one step of BERT's normalizing."""
    off = dict.fromkeys(("clean_text", "handle_chinese_chars", "strip_accents"), False)
    normalizer = BertNormalizer(**{**off, "lowercase": False, **options})
    return normalizer.normalize_str


def _each(function: Callable[[str], str], before: str = "", after: str = "") -> dict[int, str]:
    """Return what becomes of each code point between two strings, many in one call."""
    fence = "|x|"  # no step of normalizing changes these, or passes them
    result: dict[int, str] = {}
    for start in range(0, len(CODES), CHUNK):
        some = [code for code in CODES[start : start + CHUNK] if chr(code) != "|"]
        texts = function(fence.join(f"{before}{chr(code)}{after}" for code in some))
        result.update(zip(some, texts.split(fence), strict=True))
    return result


def _isolated() -> list[int]:
    """Return the code points that are a word by themselves between letters."""
    normalize, splitter = _bert(handle_chinese_chars=True), BertPreTokenizer()

    def words(text: str) -> str:
        lines = "\n".join(word for word, _ in splitter.pre_tokenize_str(normalize(text)))
        return lines.replace("\n|\nx\n|\n", "|x|")

    found = [code for code, new in _each(words, "a", "b").items() if new == f"a\n{chr(code)}\nb"]
    return sorted([*found, ord("|")])


def _later() -> list[int]:
    """Return the code points that ICU decomposes or reorders otherwise than the reference."""

    def icu(text: str) -> str:
        return tensorflow_text.normalize_utf8(tf.constant(text), "NFD").numpy().decode()

    found = set[int]()
    # Next to other marks, a mark shows its place in canonical order.
    for before, after in (("", ""), ("a" + IOTA, ""), ("a", OVERLAY)):
        theirs = _each(NFD().normalize_str, before, after)
        found |= {c for c, new in _each(icu, before, after).items() if new != theirs[c]}
    return sorted(found)


def _ranges(codes: Iterable[int]) -> str:
    return _shifts((code, 0) for code in codes)


def _shifts(pairs: Iterable[tuple[int, int]]) -> str:
    """Write pairs of a code point and its shift as ranges, of step 2 where a shift allows it."""
    runs: list[tuple[int, int, int, int]] = []  # first, last, step, shift
    for code, shift in pairs:
        if runs and runs[-1][3] == shift:
            first, last, step, _ = runs[-1]
            gap = code - last
            if gap == step or (first == last and gap == 2 and shift):
                runs[-1] = (first, code, gap, shift)
                continue
        runs.append((code, code, 1, shift))
    return " ".join(
        f"{first:X}"
        + (f"-{last:X}" if last > first else "")
        + (f"/{step}" if step > 1 else "")
        + (f":{shift:+d}" if shift else "")
        for first, last, step, shift in runs
    )


if __name__ == "__main__":
    TARGET.write_text(render(derive()), encoding="utf-8")
    print(f"Wrote {TARGET}.")
