"""Prediction on tokenized rows: by length, two batches at a time, in the order they came in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from bertkit.data.batches import plan
from bertkit.data.examples import Examples

if TYPE_CHECKING:
    from bertkit.features import Features
    from bertkit.workflow import RawTextModel

# Tokens of a batch, padding included. Larger batches make larger products, until what lies between
# the products no longer fits into the caches of the processor.
TOKENS = 2048
# Batches computed at a time: while one waits for memory or for its last thread, another multiplies.
_AT_ONCE = 2


def predict_examples(
    model: RawTextModel,
    examples: Examples | Features,
    batch_size: int | None = None,
    multiple: int = 1,
    steps: int | None = None,
    verbose: Any = 0,
    callbacks: Any = None,
) -> np.ndarray:
    """Return what the model's predict function gives for each row, (N, …), in the rows' order.

    Args:
        model: what predicts; its predict function is made.
        examples: the rows, tokenized or encoded.
        batch_size: rows a batch; `None` for as many as make `TOKENS` tokens.
        multiple: what the length of a batch is rounded up to.
        steps: stop after so many batches, which are then those of the first rows.
        verbose: as in `keras.Model.predict`.
        callbacks: as in `keras.Model.predict`.
    """
    if steps:
        batches = plan(examples.lengths, batch_size or 32, "given")[:steps]
    else:
        batches = cut(examples.lengths, batch_size, multiple)
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = keras.callbacks.CallbackList(
            callbacks, add_progbar=verbose != 0, verbose=verbose, epochs=1, steps=len(batches),
            model=model,
        )  # fmt: skip
    model.stop_predicting = False

    def compute(step: int) -> np.ndarray:
        rows = batches[step]
        rest = 0 < step == len(batches) - 1
        batch = examples.batch(np.resize(rows, few_sizes(len(rows))) if rest else rows, multiple)
        data = {name: tf.constant(part) for name, part in batch.items()}
        outputs = model.predict_function([(data,)])  # as Keras calls it
        return np.asarray(outputs)[: len(rows)]

    outputs: list[np.ndarray] = []
    callbacks.on_predict_begin()
    # What runs eagerly stays in this thread, which Keras's policies and debuggers belong to.
    at_once = 0 if model.run_eagerly else _AT_ONCE
    with contextlib.closing(_computed(compute, len(batches), at_once)) as computed:
        for step in range(len(batches)):
            callbacks.on_predict_batch_begin(step)
            outputs.append(next(computed))
            callbacks.on_predict_batch_end(step, {"outputs": outputs[-1]})
            if model.stop_predicting:
                break
    callbacks.on_predict_end()
    order = np.argsort(np.concatenate(batches[: len(outputs)]), kind="stable")
    return np.concatenate(outputs)[order]


def _computed(
    compute: Callable[[int], np.ndarray], steps: int, threads: int
) -> Generator[np.ndarray, None, None]:
    """Yield the result of each step, computed ahead by threads, if any."""
    if not threads:
        yield from map(compute, range(steps))
        return
    with ThreadPoolExecutor(threads) as pool:
        try:
            for result in [pool.submit(compute, step) for step in range(steps)]:
                yield result.result()
        finally:
            pool.shutdown(cancel_futures=True)  # an error or Ctrl-C waits for no other batch


def cut(lengths: np.ndarray, batch_size: int | None = None, multiple: int = 1) -> list[np.ndarray]:
    """Return the rows of each batch, the longest first.

    Args:
        lengths: tokens of each row, (N,).
        batch_size: rows a batch; `None` for as many as make `TOKENS` tokens.
        multiple: what the length of a batch is rounded up to.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        length = -(-max(int(lengths[order[start]]), 1) // multiple) * multiple
        rows = batch_size or max(TOKENS // length, 1)
        batches.append(order[start : start + rows])
        start += rows
    return batches


def few_sizes(rows: int) -> int:
    """Round up the rows of the batch that is left over, by a quarter at most.

    oneDNN keeps what it has prepared for each shape that it has met, so in a stream the memory
    would grow with every window.
    """
    step = 1 << max(rows.bit_length() - 3, 0)
    return -(-rows // step) * step


def trace_once(model: RawTextModel, signature: Mapping[str, tf.TensorSpec]) -> None:
    """Trace the model's predict function for batches of a signature, if it has not been.

    Keras passes batches with their sizes, for which TensorFlow would trace the first three: each
    trace costs as much time as some hundred rows.
    """
    model.make_predict_function()
    if not model.run_eagerly and model.distribute_strategy.num_replicas_in_sync == 1:
        model.predict_function.get_concrete_function([(dict(signature),)])
