"""A WordPiece vocabulary, and BERT's tokenizing of text as TensorFlow operations."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tensorflow as tf

from bertkit import unicode
from bertkit.errors import EncoderError, InputError

_LONGEST_WORD = 100  # characters; a longer one is unknown
_CUT = "\0"  # where texts are cut; normalizing drops it
_SPECIAL = ("unknown_token", "start_token", "separator_token", "padding_token")


@dataclass(frozen=True)
class Vocabulary:
    """The pieces of a BERT, in the order of their ids, and how text is prepared for them.

    Attributes:
        tokens: the pieces; the position is the id.
        lowercase: whether text is lowercased first.
        strip_accents: whether accents are removed; `None` does what BERT does, which is to
            remove them exactly when it lowercases.
        unknown_token, start_token, separator_token, padding_token: pieces with a role.
        mask_token: the piece that hides a word in pretraining, if the vocabulary has it.

    Raises:
        EncoderError: a piece with a role is missing, or a piece stands twice.
    """

    tokens: tuple[str, ...] = field(repr=False)
    lowercase: bool = True
    strip_accents: bool | None = None
    unknown_token: str = "[UNK]"
    start_token: str = "[CLS]"
    separator_token: str = "[SEP]"
    padding_token: str = "[PAD]"
    mask_token: str = "[MASK]"

    def __post_init__(self) -> None:
        ids = {token: index for index, token in enumerate(self.tokens)}
        if len(ids) < len(self.tokens):
            twice = next(t for i, t in enumerate(self.tokens) if ids[t] != i)
            raise EncoderError(
                f"The vocabulary holds the piece {twice!r} twice. Each line of vocab.txt must be "
                "a piece of its own: take the file from the original model again."
            )
        missing = [getattr(self, role) for role in _SPECIAL if getattr(self, role) not in ids]
        if missing:
            raise EncoderError(
                f"The vocabulary of {len(self.tokens)} pieces lacks {', '.join(missing)}. It is "
                "not a BERT vocabulary, or its special tokens have other names: give them as "
                "Vocabulary(..., start_token=..., separator_token=...)."
            )
        object.__setattr__(self, "_ids", ids)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The pieces that are recognized as they stand in a text, before it is normalized."""
        roles = (getattr(self, role) for role in (*_SPECIAL, "mask_token"))
        ids: dict[str, int] = self._ids  # type: ignore[attr-defined]
        return tuple(dict.fromkeys(token for token in roles if token in ids))

    def id_of(self, token: str) -> int:
        """Return the id of a piece; `KeyError` where there is no such piece."""
        ids: dict[str, int] = self._ids  # type: ignore[attr-defined]
        return ids[token]

    @classmethod
    def from_file(cls, path: str | Path, **options: Any) -> Vocabulary:
        """Read a `vocab.txt`: one piece a line, UTF-8.

        Raises:
            EncoderError: the file is missing, not UTF-8, or not a BERT vocabulary.
        """
        try:
            text = Path(path).read_bytes().decode("utf-8")
        except OSError as error:
            raise EncoderError(
                f"The vocabulary {path} cannot be read ({error.strerror}). "
                "Give the path of the model's vocab.txt."
            ) from error
        except UnicodeDecodeError as error:
            raise EncoderError(
                f"The vocabulary {path} is not UTF-8 (byte {error.start}). "
                "Take the file from the original model again."
            ) from error
        # Only a newline ends a piece: other line separators occur inside of pieces.
        lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
        return cls(tuple(lines), **options)

    def save(self, folder: str | Path) -> None:
        """Write `vocab.txt` and `vocabulary.json` into an existing folder."""
        Path(folder, "vocab.txt").write_bytes("\n".join([*self.tokens, ""]).encode("utf-8"))
        options = {key: value for key, value in asdict(self).items() if key != "tokens"}
        Path(folder, "vocabulary.json").write_text(json.dumps(options, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Vocabulary:
        """Read what `save` wrote."""
        options = json.loads(Path(folder, "vocabulary.json").read_text())
        return cls.from_file(Path(folder, "vocab.txt"), **options)


class WordPieceTokenizer:
    """Text to ids as BERT does it: clean, split, lowercase, longest piece first.

    The steps are those of the reference (Devlin et al. 2019, https://arxiv.org/abs/1810.04805,
    and its `tokenization.py`): control characters go, white space becomes a space, CJK
    characters stand alone, accents are removed after canonical decomposition (NFD), words split
    at punctuation, and a word of more than 100 characters is unknown. A special token written in
    a text becomes its id. The ids are those of Hugging Face's `tokenizers` on any text. All of
    it runs as TensorFlow operations, so it can live in a `tf.data` pipeline or an exported graph.

    A text of plain ASCII takes a shorter way to the same ids: one pass splits it and looks up its
    pieces. On all other texts that pass would disagree about what punctuation and spaces are.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        # Imported here: the library is absent on Windows, and needed only to tokenize.
        import tensorflow_text

        self.vocabulary = vocabulary
        tokens = list(vocabulary.tokens)
        common = {"token_out_type": tf.int32, "unknown_token": vocabulary.unknown_token,
                  "support_detokenization": False}  # fmt: skip
        try:
            self._wordpiece = tensorflow_text.FastWordpieceTokenizer(
                tokens, max_bytes_per_word=4 * _LONGEST_WORD, no_pretokenization=True, **common
            )
            # Takes whole texts, in which a character is a byte.
            self._plain = tensorflow_text.FastWordpieceTokenizer(
                _plain_pieces(vocabulary), max_bytes_per_word=_LONGEST_WORD, **common
            )
        except (RuntimeError, TypeError) as error:  # of pybind11
            raise EncoderError(
                f"The vocabulary cannot be used: {' '.join(str(error).split())[:150]}. Take "
                "vocab.txt from the original model again."
            ) from None

    # Nothing here needs autograph, whose converting takes longer than all the rest of a trace.
    @tf.autograph.experimental.do_not_convert
    def __call__(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Tokenize.

        Args:
            texts: UTF-8 strings, (B,).

        Returns:
            int32 ids, (B, ragged), without special tokens but those that a text itself holds.
        """
        if texts.dtype != tf.string:
            raise InputError(
                f"A tokenizer takes strings, and was given {texts.dtype.name}. Pass the texts."
            )
        plain = tf.strings.regex_full_match(texts, self._plain_pattern())  # (B,)
        others = tf.where(~plain)[:, 0]  # (R,)
        of_plain = tf.strings.lower(texts) if self.vocabulary.lowercase else texts
        rows = tf.concat(
            [
                self._plain.tokenize(tf.where(plain, of_plain, "")),
                self._tokenize_any(tf.gather(texts, others)),
            ],
            axis=0,
        )
        batch = tf.size(plain, tf.int64)
        added = tf.range(batch, batch + tf.size(others, tf.int64))
        places = tf.tensor_scatter_nd_update(tf.range(batch), others[:, None], added)
        return tf.gather(rows, places)

    def _tokenize_any(self, texts: tf.Tensor) -> tf.RaggedTensor:
        words = self.words(texts)
        pieces = self._wordpiece.tokenize(words.flat_values)  # (words, ragged)
        return tf.RaggedTensor.from_row_splits(
            pieces.flat_values, tf.gather(pieces.row_splits, words.row_splits), validate=False
        )

    def _plain_pattern(self) -> str:
        """Return what matches texts of printable ASCII in which no special token can begin."""
        first = {token[:1] for token in self.vocabulary.special_tokens}
        plain = sorted({*map(chr, range(0x20, 0x7F)), *"\t\n\r"} - first)
        return f"[{''.join(map(re.escape, plain))}]*"

    def words(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Return what WordPiece cuts into pieces, strings (B, ragged).

        Args:
            texts: UTF-8 strings, (B,).
        """
        special = self.vocabulary.special_tokens
        parts = tf.strings.split(_cut_out(texts, special), _CUT)  # (B, ragged)
        flat = parts.flat_values
        kept = tf.reduce_any(flat[:, None] == tf.constant(special), axis=1)
        words = tf.strings.split(tf.where(kept, flat, unicode.isolate(self.normalize(flat))))
        too_long = tf.strings.length(words.flat_values, "UTF8_CHAR") > _LONGEST_WORD
        return tf.RaggedTensor.from_row_splits(
            tf.where(too_long, self.vocabulary.unknown_token, words.flat_values),
            tf.gather(words.row_splits, parts.row_splits),
            validate=False,
        )

    def normalize(self, texts: tf.Tensor) -> tf.Tensor:
        """Return the texts cleaned, with accents and case as the vocabulary wants them, (B,)."""
        lowercase, strip = self.vocabulary.lowercase, self.vocabulary.strip_accents
        return unicode.normalize(texts, lowercase, lowercase if strip is None else strip)


def _plain_pieces(vocabulary: Vocabulary) -> list[str]:
    """Return the pieces that a word of plain ASCII may have, and fillers in place of all others.

    Splitting and looking up in one pass goes wrong where a piece holds space or punctuation beside
    something else, such as "a.b", though no word does.
    """
    kept = re.compile(r"(##)?[A-Za-z0-9]+|[!-/:-@\[-`{-~]")
    return [
        piece if kept.fullmatch(piece) or piece == vocabulary.unknown_token else f"\ue000{index}"
        for index, piece in enumerate(vocabulary.tokens)
    ]


def _cut_out(texts: tf.Tensor, special: tuple[str, ...]) -> tf.Tensor:
    """Put a mark on both sides of each special token, and nowhere else, (B,)."""
    # The longest first: RE2 takes the first alternative that fits.
    longest_first = sorted(special, key=len, reverse=True)
    pattern = "|".join(re.escape(token) for token in longest_first)
    x = tf.strings.regex_replace(texts, _CUT, "\x01")  # dropped likewise
    return tf.strings.regex_replace(x, f"({pattern})", rf"{_CUT}\1{_CUT}")
