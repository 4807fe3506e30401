"""A WordPiece vocabulary, and BERT's tokenizing of text as TensorFlow operations."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tensorflow as tf

from bertkit.errors import EncoderError, InputError

_CJK = (
    r"([\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}"
    r"\x{2B740}-\x{2B81F}\x{2B820}-\x{2CEAF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}])"
)
# Words are what lies between white space and punctuation, which is ASCII's symbols and \p{P}.
_PUNCTUATION = r"([!-/:-@\[-`{-~\p{P}])"
_LONG_WORD = r"[^ ]{101,}"
_UNKNOWN = "\u0378"  # unassigned in Unicode, so in no vocabulary
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
    at punctuation, and a word of more than 100 characters is unknown. All of it runs as
    TensorFlow operations, so it can live in a `tf.data` pipeline or an exported graph.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        # Imported here: the library is absent on Windows, and needed only to tokenize.
        import tensorflow_text

        self.vocabulary = vocabulary
        self._normalize_utf8 = tensorflow_text.normalize_utf8
        try:
            self._wordpiece = tensorflow_text.FastWordpieceTokenizer(
                vocab=list(vocabulary.tokens),
                token_out_type=tf.int32,
                unknown_token=vocabulary.unknown_token,
                # Bytes of a word; words of over 100 characters never reach the tokenizer.
                max_bytes_per_word=400,
                support_detokenization=False,
            )
        except (RuntimeError, TypeError) as error:  # of pybind11
            raise EncoderError(
                f"The vocabulary cannot be used: {' '.join(str(error).split())[:150]}. Take "
                "vocab.txt from the original model again."
            ) from None

    def __call__(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Tokenize.

        Args:
            texts: UTF-8 strings, (B,).

        Returns:
            int32 ids without special tokens, (B, ragged).
        """
        if texts.dtype != tf.string:
            raise InputError(
                f"A tokenizer takes strings, and was given {texts.dtype.name}. Pass the texts."
            )
        return self._wordpiece.tokenize(self.normalize(texts))

    def normalize(self, texts: tf.Tensor) -> tf.Tensor:
        """Return the texts cleaned, with accents and case as the vocabulary wants them, (B,)."""
        vocabulary = self.vocabulary
        replace = tf.strings.regex_replace
        x = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", replacement_char=0xFFFD)
        # \p{C}: control, format, private use, surrogate.
        x = replace(x, r"[\t\n\r]", " ")
        x = replace(x, r"[\p{C}\x{FFFD}]", "")
        x = replace(x, r"\p{Z}", " ")
        x = replace(x, _CJK, r" \1 ")
        strip = (
            vocabulary.lowercase if vocabulary.strip_accents is None else (vocabulary.strip_accents)
        )
        if strip:
            x = replace(self._normalize_utf8(x, "NFD"), r"\p{Mn}", "")
        if vocabulary.lowercase:
            # BERT lowercases character by character: no special form of sigma ends a word.
            x = tf.strings.lower(replace(x, "Σ", "σ"), encoding="utf-8")
        return tf.cond(
            tf.reduce_any(tf.strings.regex_full_match(x, r".*[^ ]{101}.*")),
            # Punctuation ends a word anyway, so spaces around it change no piece.
            lambda: replace(replace(x, _PUNCTUATION, r" \1 "), _LONG_WORD, _UNKNOWN),
            lambda: x,
        )
