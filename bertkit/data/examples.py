"""Tokenized rows, held flat, and cut into padded batches."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import tensorflow as tf

from bertkit.encoder import INPUT_NAMES
from bertkit.preprocessor import Preprocessor

if TYPE_CHECKING:
    from bertkit.data.cache import TokenCache

_Result = TypeVar("_Result")
CHUNK = 2048  # texts tokenized at once


@dataclass(frozen=True)
class Examples:
    """Rows of token ids, tokenized once and read by index.

    The rows stand one after another in flat arrays, which may lie in memory or in a file.

    Attributes:
        token_ids: int32, (all tokens,).
        segment_ids: int8, (all tokens,).
        starts: int64, (N,), where each row begins.
        lengths: int64, (N,), tokens of each row.
        full_lengths: int32, (N,), tokens before truncation.
        padding_id: the id that fills rows up.
    """

    token_ids: np.ndarray
    segment_ids: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    full_lengths: np.ndarray
    padding_id: int

    @classmethod
    def from_texts(cls, texts: np.ndarray, preprocessor: Preprocessor) -> Examples:
        """Tokenize checked texts, (N,) or (N, 2)."""
        chunks = (texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK))
        return cls.from_chunks(chunks, preprocessor)

    @classmethod
    def from_chunks(
        cls,
        chunks: Iterable[np.ndarray],
        preprocessor: Preprocessor,
        cache: TokenCache | None = None,
    ) -> Examples:
        """Tokenize chunks of checked texts, (n,) or (n, 2) each, as they come.

        As many chunks at a time as there are processors; the token ids go to an unnamed temporary
        file, so that rows may exceed the memory. With a cache, of this preprocessor, chunks that
        it knows are not tokenized again.
        """
        tokenize = cache.tokenize if cache else lambda chunk: tokenized(chunk, preprocessor)
        store = _Store(preprocessor.padding_id)
        for rows in _in_parallel(tokenize, chunks):
            store.append(rows)
        return store.examples()

    @classmethod
    def joined(cls, parts: Sequence[Examples]) -> Examples:
        """Return the rows of several, one after another; token ids go to a file of their own."""
        store = _Store(parts[0].padding_id)
        for part in parts:
            for start in range(0, len(part), CHUNK):
                store.append(part._flat(slice(start, start + CHUNK)))
        return store.examples()

    def _flat(self, rows: slice) -> FlatRows:
        starts, lengths = self.starts[rows], self.lengths[rows]
        # Where each token is: what lies between rows that were taken is left out.
        places = np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(
            lengths.sum()
        )
        return FlatRows(
            self.token_ids[places], self.segment_ids[places], lengths, self.full_lengths[rows]
        )

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, rows: np.ndarray | slice) -> Examples:
        """Return some rows, by index; the token ids are shared."""
        return replace(
            self,
            starts=self.starts[rows],
            lengths=self.lengths[rows],
            full_lengths=self.full_lengths[rows],
        )

    def batch(self, rows: np.ndarray, multiple: int = 1) -> dict[str, np.ndarray]:
        """Return rows padded to the longest of them.

        Args:
            rows: indices, (B,).
            multiple: round the length up to a multiple of it.

        Returns:
            `token_ids`, `segment_ids`, `padding_mask`: int32, (B, T).
        """
        starts, lengths = self.starts[rows], self.lengths[rows]  # (B,)
        width = -(-int(lengths.max(initial=1)) // multiple) * multiple
        mask = np.arange(width) < lengths[:, None]  # (B, T)
        places = (starts[:, None] + np.arange(width))[mask]
        token_ids = np.full(mask.shape, self.padding_id, dtype="int32")
        segment_ids = np.zeros(mask.shape, dtype="int32")
        token_ids[mask] = self.token_ids[places]
        segment_ids[mask] = self.segment_ids[places]
        return {
            "token_ids": token_ids,
            "segment_ids": segment_ids,
            "padding_mask": mask.astype("int32"),
        }

    @property
    def signature(self) -> dict[str, tf.TensorSpec]:
        """The shapes and types of `batch`."""
        return {name: tf.TensorSpec((None, None), tf.int32) for name in INPUT_NAMES}


class FlatRows(NamedTuple):
    """A chunk of rows, one after another."""

    token_ids: np.ndarray  # int32, (all tokens,)
    segment_ids: np.ndarray  # int8, (all tokens,)
    lengths: np.ndarray  # int64, (n,)
    full_lengths: np.ndarray  # int32, (n,)


def tokenized(texts: np.ndarray, preprocessor: Preprocessor) -> FlatRows:
    """Tokenize a chunk of checked texts, (n,) or (n, 2)."""
    encoded = preprocessor.encode_array(texts)
    return FlatRows(
        encoded.token_ids.flat_values.numpy().astype("int32", copy=False),
        encoded.segment_ids.flat_values.numpy().astype("int8"),
        encoded.token_ids.row_lengths().numpy(),
        encoded.lengths.numpy(),
    )


def _in_parallel(
    function: Callable[[np.ndarray], _Result], chunks: Iterable[np.ndarray]
) -> Iterator[_Result]:
    """Yield the function's result of each chunk, in order, while threads work on the next.

    The first is computed before there are threads: it may be the only one, and what the function
    makes once is then made.
    """
    chunks = iter(chunks)
    for first in chunks:
        yield function(first)
        break
    with ThreadPoolExecutor(_processors()) as pool:  # starts no thread before it is given work
        pending: deque[Future[_Result]] = deque()
        for chunk in chunks:
            pending.append(pool.submit(function, chunk))
            if len(pending) > _processors():
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Store:
    """Grows flat arrays on disk, chunk by chunk."""

    def __init__(self, padding_id: int) -> None:
        self._padding_id = padding_id
        # They live as long as the arrays that are mapped onto them.
        self._files = {name: TemporaryFile() for name in ("token_ids", "segment_ids")}  # noqa: SIM115
        self._lengths: list[np.ndarray] = []
        self._full_lengths: list[np.ndarray] = []

    def append(self, rows: FlatRows) -> None:
        rows.token_ids.tofile(self._files["token_ids"])
        rows.segment_ids.tofile(self._files["segment_ids"])
        self._lengths.append(rows.lengths)
        self._full_lengths.append(rows.full_lengths)

    def examples(self) -> Examples:
        lengths = np.concatenate([np.zeros(0, "int64"), *self._lengths])
        return Examples(
            token_ids=self._mapped("token_ids", "int32"),
            segment_ids=self._mapped("segment_ids", "int8"),
            starts=np.cumsum(lengths) - lengths,
            lengths=lengths,
            full_lengths=np.concatenate([np.zeros(0, "int32"), *self._full_lengths]),
            padding_id=self._padding_id,
        )

    def _mapped(self, name: str, dtype: str) -> np.ndarray:
        file = self._files[name]
        if file.tell() == 0:  # an empty file cannot be mapped
            return np.zeros(0, dtype)
        file.flush()
        return np.memmap(file, dtype=dtype, mode="r")
