"""Batches of rows of similar length, shuffled anew each epoch."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tensorflow as tf

from bertkit.data.examples import Examples

if TYPE_CHECKING:
    from bertkit.features import Features

Order = Literal["shuffled", "sorted", "given"]
# Batches whose rows are sorted by length together. More makes the padding less and the batches
# less random; at 50 batches of 32 the padding of short texts is under 3%.
_POOL = 50


def plan(
    lengths: np.ndarray, batch_size: int, order: Order, seed: int = 0, epoch: int = 0
) -> list[np.ndarray]:
    """Return the rows of each batch of one epoch.

    Shuffled rows are drawn into pools, sorted by length within a pool, cut into batches, and the
    batches shuffled: rows of one length bucket meet, each epoch others. There are always
    ceil(N / batch_size) batches, and at most one is short.

    Args:
        lengths: tokens of each row, (N,).
        batch_size: rows a batch.
        order: "shuffled" as above; "sorted" by length, longest first, which pads least and shows
            at once whether memory suffices; "given" as the rows come.
        seed: makes the order of all epochs; the same seed and epoch give the same batches.
        epoch: which epoch.
    """
    count = len(lengths)
    if order == "given":
        rows = np.arange(count)
    elif order == "sorted":
        rows = np.argsort(-lengths, kind="stable")
    else:
        random = np.random.default_rng([seed, epoch])
        rows = random.permutation(count)
        pool = _POOL * batch_size
        for start in range(0, count, pool):
            part = rows[start : start + pool]
            rows[start : start + pool] = part[np.argsort(-lengths[part], kind="stable")]
    batches = [rows[start : start + batch_size] for start in range(0, count, batch_size)]
    if order == "shuffled":
        batches = [batches[index] for index in random.permutation(len(batches))]
    return batches


def make_dataset(
    examples: Examples | Features,
    columns: tuple[np.ndarray, ...],
    batch_size: int,
    order: Order,
    seed: int = 0,
    epoch: Callable[[], int] = lambda: 0,
    multiple: int = 1,
) -> tf.data.Dataset:
    """Return a dataset of `(inputs, *columns)` batches.

    Args:
        examples: the rows, tokenized or encoded.
        columns: what goes with each row, such as targets and sample weights; (N, …) each.
        batch_size: rows a batch.
        order: see `plan`.
        seed: see `plan`.
        epoch: asked for the epoch at the beginning of each pass.
        multiple: lengths are rounded up to a multiple of it, to keep the shapes few.
    """

    source = _Source(examples, columns)
    there = weakref.ref(source)

    def batches() -> Iterator[tuple[Any, ...]]:
        source = there()
        if source is None:
            return
        for rows in plan(source.examples.lengths, batch_size, order, seed, epoch()):
            yield source.examples.batch(rows, multiple), *(part[rows] for part in source.columns)

    others = (tf.TensorSpec((None, *column.shape[1:]), column.dtype) for column in columns)
    signature = (examples.signature, *others)
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
    count = -(-len(examples) // batch_size)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(count))
    return prefetched(dataset, source)


@dataclass
class _Source:
    """What a dataset reads from."""

    examples: Examples | Features
    columns: tuple[np.ndarray, ...]


def prefetched(dataset: tf.data.Dataset, source: Any) -> tf.data.Dataset:
    """Let a `from_generator` dataset run ahead, and tie the life of what it reads to its own.

    TensorFlow never lets go of the function behind `from_generator`, so that function must hold
    its data by a weak reference, or they stay in memory, and their files open, for good.

    Nothing here is left to tune, and TensorFlow's tuning is switched off: its thread sleeps for
    up to a minute at a time, and whoever lets go of an iterator waits for it to wake.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = dataset.prefetch(2).with_options(options)
    object.__setattr__(dataset, "_bertkit_source", source)
    return dataset
