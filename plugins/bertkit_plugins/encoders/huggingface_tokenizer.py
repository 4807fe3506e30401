"""A Hugging Face tokenizer.json: BERT's tokenizing, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from bertkit.errors import EncoderError
from bertkit_plugins.encoders.sources import read_json

# What must be there, and the fields in it with the only value that can be done; absent means it.
_PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "model": ("WordPiece", {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}),
    "normalizer": ("BertNormalizer", {"clean_text": True, "handle_chinese_chars": True}),
    "pre_tokenizer": ("BertPreTokenizer", {}),
}


class Tokenizer(NamedTuple):
    """What a tokenizer.json says.

    Attributes:
        path: of the file.
        pieces: in the order of their ids.
        lowercase: whether text is lowercased.
        strip_accents: whether accents are removed; `None` means as `lowercase`.
        unknown_token: the piece of words that have no pieces, if it is said.
        added: tokens that are matched in the text as a whole, by id.
    """

    path: Path
    pieces: tuple[str, ...]
    lowercase: bool
    strip_accents: bool | None
    unknown_token: str | None
    added: list[tuple[Any, Any]]


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json.

    Raises:
        EncoderError: the file is damaged, or asks for another tokenizing than BERT's.
    """
    whole = read_json(path)
    model, normalizer, _ = (_part(whole, name, path) for name in _PARTS)
    lowercase = normalizer.get("lowercase", True)
    strip_accents = normalizer.get("strip_accents")
    if not isinstance(lowercase, bool) or not isinstance(strip_accents, (bool, type(None))):
        raise EncoderError(
            f"{path}: the normalizer's lowercase is {lowercase!r}, and its strip_accents "
            f"{strip_accents!r}; they must be true or false. Take the file from the original "
            "model again."
        )
    unknown = model.get("unk_token")
    added = whole.get("added_tokens")
    return Tokenizer(
        path=path,
        pieces=_pieces(model.get("vocab"), path),
        lowercase=lowercase,
        strip_accents=strip_accents,
        unknown_token=unknown if isinstance(unknown, str) else None,
        added=[
            (token.get("id"), token.get("content"))
            for token in (added if isinstance(added, list) else [])
            if isinstance(token, dict)
        ],
    )


def _part(whole: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    kind, fixed = _PARTS[name]
    part = whole.get(name)
    # A model of WordPiece may leave out its type.
    got = part.get("type", kind if name == "model" else None) if isinstance(part, dict) else None
    if not isinstance(part, dict) or got != kind:
        raise EncoderError(
            f"{path}: the {name} is {got!r}, and only BERT's {kind} can be done. Choose a model "
            "that uses it."
        )
    for field, only in fixed.items():
        if part.get(field, only) != only:
            raise EncoderError(
                f"{path}: the {name}'s {field} is {part[field]!r}, and the tokenizer does only "
                f"{only!r}. Choose a model without it."
            )
    return part


def _pieces(ids: Any, path: Path) -> tuple[str, ...]:
    if not isinstance(ids, dict) or sorted(ids.values(), key=str) != sorted(
        range(len(ids)), key=str
    ):
        raise EncoderError(
            f"{path}: the vocabulary does not give the ids 0 to n-1 to n pieces. Take the file "
            "from the original model again."
        )
    return tuple(sorted(ids, key=ids.__getitem__))
