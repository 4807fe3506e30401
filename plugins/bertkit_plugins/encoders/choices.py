"""What a source leaves open: which pooling there can be, and whether text is lowercased."""

from __future__ import annotations

from collections.abc import Iterable

from bertkit.errors import EncoderError
from bertkit.pooling import PoolingName


def choose_pooling(asked: PoolingName | None, has_pooler: bool, source: str) -> PoolingName:
    """Return the pooling that was asked for; by default "pooler", or "cls" where there is none.

    Raises:
        EncoderError: the pooler was asked for, and the source has none.
    """
    if asked is None:
        return "pooler" if has_pooler else "cls"
    if asked == "pooler" and not has_pooler:
        raise EncoderError(
            f"{source} holds no pooler, which the pooling 'pooler' reads. Use another pooling, "
            "such as 'cls' or 'mean', or leave it out, which means 'cls' here."
        )
    return asked


def capitals(tokens: Iterable[str]) -> list[str]:
    """Return the pieces that lowercased text never becomes.

    Pieces in brackets, such as [MASK] and <S>, are no text.
    """
    return [token for token in tokens if token != token.lower() and not _in_brackets(token)]


def small_letters(tokens: Iterable[str]) -> list[str]:
    """Return the pieces with a small letter, of a script that has capitals too."""
    return [token for token in tokens if token != token.upper() and not _in_brackets(token)]


def _in_brackets(token: str) -> bool:
    return token[:1] + token[-1:] in ("[]", "<>")
