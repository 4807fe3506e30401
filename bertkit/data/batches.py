"""Batches of rows of similar length, shuffled anew each epoch."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tensorflow as tf

from bertkit.data.examples import Examples
from bertkit.data.sampling import Sampling
from bertkit.errors import InputError

if TYPE_CHECKING:
    from bertkit.features import Features

Order = Literal["shuffled", "sorted", "given"]
# Batches whose rows are sorted by length together. More makes the padding less and the batches
# less random; at 100 batches of 32 the padding of short texts is between 1 and 5%.
_POOL = 100


@dataclass(frozen=True)
class TokenBudget:
    """How many tokens a batch may have, padding included: rows times the longest of them.

    It is what a step works on, so that its time and memory are about even over all batches.
    Lengths that are rounded up for XLA may exceed it.
    """

    tokens: int


def plan(
    lengths: np.ndarray,
    batch_size: int | TokenBudget,
    order: Order,
    seed: int = 0,
    epoch: int = 0,
    sampling: Sampling | None = None,
) -> list[np.ndarray]:
    """Return the rows of each batch of one epoch.

    Shuffled rows are drawn into pools, sorted by length within a pool, cut into batches, and the
    batches shuffled: rows of one length bucket meet, each epoch others. The number of batches is
    the same for each seed and epoch: ceil(N / batch_size), of which at most one is short, or what
    the budget allows.

    Args:
        lengths: tokens of each row, (N,).
        batch_size: rows or tokens a batch.
        order: "shuffled" as above; "sorted" by length, longest first, which pads least and shows
            at once whether memory suffices; "given" as the rows come.
        seed: makes the order of all epochs; the same seed and epoch give the same batches.
        epoch: which epoch.
        sampling: which rows shuffled batches of so many rows have, and how often; each row once
            if `None`.

    Raises:
        InputError: a row is longer than the budget.
    """
    count = len(lengths)
    random = np.random.default_rng([seed, epoch])
    if order == "given":
        rows = np.arange(count)
    else:
        rows = np.arange(count)
        if order == "shuffled":
            drawn = count if sampling is None else sampling.draw(epoch, random)
            rows = random.permutation(drawn)
        if order == "sorted" or isinstance(batch_size, TokenBudget):
            rows = rows[np.argsort(-lengths[rows], kind="stable")]
        else:
            pool = _POOL * batch_size
            for start in range(0, count, pool):
                part = rows[start : start + pool]
                rows[start : start + pool] = part[np.argsort(-lengths[part], kind="stable")]
    if not isinstance(batch_size, TokenBudget):
        batches = [rows[start : start + batch_size] for start in range(0, count, batch_size)]
    elif order == "shuffled":
        batches = _dealt(rows, lengths, batch_size, random)
    else:
        batches = np.split(rows, _cuts(lengths[rows], batch_size))[:count]
    if order == "shuffled":
        batches = [batches[index] for index in random.permutation(len(batches))]
    return batches


def batch_count(lengths: np.ndarray, batch_size: int | TokenBudget, order: Order) -> int:
    """Return the number of batches that `plan` makes, whatever the seed and the epoch."""
    if isinstance(batch_size, TokenBudget):
        return len(plan(lengths, batch_size, order))
    return -(-len(lengths) // batch_size)


def _dealt(
    rows: np.ndarray, lengths: np.ndarray, budget: TokenBudget, random: np.random.Generator
) -> list[np.ndarray]:
    """Deal rows, sorted from the longest, to pools, and cut each pool into batches.

    Of as many rows in succession as there are pools, each pool gets one. All pools are cut at the
    same places, by the longest row that any may have got there: the cuts depend on no chance.
    """
    pools = max(1, -(-int(lengths.sum()) // (_POOL * budget.tokens)))
    dealt = np.full(-(-len(rows) // pools) * pools, -1)
    dealt[: len(rows)] = rows
    dealt = random.permuted(dealt.reshape(-1, pools), axis=1)
    parts = np.split(dealt, _cuts(lengths[rows[::pools]], budget))
    batches = (part[:, pool] for part in parts for pool in range(pools))
    return [batch[batch >= 0] for batch in batches if (batch >= 0).any()]


def _cuts(lengths: np.ndarray, budget: TokenBudget) -> list[int]:
    """Return where batches begin, but the first, if rows of these lengths fill them in order."""
    if len(lengths) and lengths.max() > budget.tokens:
        raise InputError(
            f"batch_tokens is {budget.tokens}, and a row has {lengths.max()} tokens. Give at least "
            "as many, or shorten the rows by the preprocessor's sequence_length."
        )
    cuts, begin, longest = [], 0, 0
    for index, length in enumerate(lengths.tolist()):
        longest = max(longest, length)
        if longest * (index + 1 - begin) > budget.tokens:
            cuts.append(index)
            begin, longest = index, length
    return cuts


def make_dataset(
    examples: Examples | Features,
    columns: tuple[np.ndarray, ...],
    batch_size: int | TokenBudget,
    order: Order,
    seed: int = 0,
    epoch: Callable[[], int] = lambda: 0,
    multiple: int = 1,
    sampling: Sampling | None = None,
) -> tf.data.Dataset:
    """Return a dataset of `(inputs, *columns)` batches.

    Args:
        examples: the rows, tokenized or encoded.
        columns: what goes with each row, such as targets and sample weights; (N, …) each.
        batch_size: rows or tokens a batch.
        order: see `plan`.
        seed: see `plan`.
        epoch: asked for the epoch at the beginning of each pass.
        multiple: lengths are rounded up to a multiple of it, to keep the shapes few.
        sampling: see `plan`.

    Raises:
        InputError: a row is longer than a batch may be.
    """
    source = BatchSource(examples, columns, batch_size, order, seed, epoch, multiple, sampling)
    there = weakref.proxy(source)
    others = (tf.TensorSpec((None, *column.shape[1:]), column.dtype) for column in columns)
    signature = (examples.signature, *others)
    specs = tf.nest.flatten(signature)

    def load(epoch: tf.Tensor, step: tf.Tensor) -> Any:
        tensors = tf.numpy_function(
            lambda epoch, step: there.batch(int(epoch), int(step)),
            (epoch, step),
            [spec.dtype for spec in specs],
        )
        for tensor, spec in zip(tensors, specs, strict=True):
            tensor.set_shape(spec.shape)
        return tf.nest.pack_sequence_as(signature, tensors)

    def begin(_: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.numpy_function(lambda: there.begin(), (), tf.int64), (2,))

    # Not `from_generator`: under one, TensorFlow makes the process give back memory at once, and
    # each step asks the system for it anew.
    count = batch_count(examples.lengths, batch_size, order)
    dataset = tf.data.Dataset.range(1).map(begin)
    dataset = dataset.flat_map(
        lambda at: tf.data.Dataset.range(at[1], count).map(lambda step: load(at[0], step))
    )
    return prefetched(dataset.apply(tf.data.experimental.assert_cardinality(count)), source)


@dataclass
class BatchSource:
    """What a dataset reads from; the arguments are those of `make_dataset`.

    Attributes:
        first: an epoch, and the batch that a pass in that epoch begins with; all other passes
            begin with batch 0.
    """

    examples: Examples | Features
    columns: tuple[np.ndarray, ...]
    batch_size: int | TokenBudget
    order: Order
    seed: int
    epoch: Callable[[], int]
    multiple: int
    sampling: Sampling | None = None
    first: tuple[int, int] = (0, 0)
    _planned: tuple[int, list[np.ndarray]] | None = None

    def begin(self) -> np.ndarray:
        """Return the epoch and the first batch of a pass that begins now, int64 (2,)."""
        epoch, batch = self.epoch(), self.first[1]
        return np.array([epoch, batch if epoch == self.first[0] else 0])

    def rows(self, epoch: int, step: int) -> np.ndarray:
        """Return the rows of a batch of an epoch, by index, int64 (B,)."""
        planned = self._planned
        if planned is None or planned[0] != epoch:
            options = (self.batch_size, self.order, self.seed, epoch, self.sampling)
            planned = epoch, plan(self.examples.lengths, *options)
            self._planned = planned
        return planned[1][step]

    def batch(self, epoch: int, step: int) -> list[np.ndarray]:
        """Return a batch of an epoch, flat: the inputs, and what goes with them."""
        rows = self.rows(epoch, step)
        columns = (part[rows] for part in self.columns)
        return tf.nest.flatten((self.examples.batch(rows, self.multiple), *columns))

    def structured(self, epoch: int, step: int) -> dict[str, np.ndarray]:
        """Return a batch of an epoch by name: the inputs, `targets`, and `sample_weight` if any."""
        rows = self.rows(epoch, step)
        columns = zip(("targets", "sample_weight"), self.columns, strict=False)
        others = {name: part[rows] for name, part in columns}
        return {**self.examples.batch(rows, self.multiple), **others}


def source_of(dataset: Any) -> BatchSource | None:
    """Return what a dataset of our own reads from; `None` of any other data."""
    source = getattr(dataset, "_bertkit_source", None)
    return source if isinstance(source, BatchSource) else None


def prefetched(dataset: tf.data.Dataset, source: Any) -> tf.data.Dataset:
    """Let a dataset run ahead of training, and tie the life of what it reads to its own.

    TensorFlow never lets go of a Python function in a dataset, so that function must hold its data
    by a weak reference, or they stay in memory, and their files open, for good.

    Nothing here is left to tune, and TensorFlow's tuning is switched off: its thread sleeps for
    up to a minute at a time, and whoever lets go of an iterator waits for it to wake.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = dataset.prefetch(2).with_options(options)
    object.__setattr__(dataset, "_bertkit_source", source)
    return dataset
