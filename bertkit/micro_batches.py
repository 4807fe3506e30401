"""A batch computed in parts, for less memory.

The gradient is that of the whole batch, unless the loss or the objective compares rows: then it is
the mean of those of the parts, each of which compares its own rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from bertkit.compiling import compares_rows
from bertkit.errors import InputError

if TYPE_CHECKING:
    from bertkit.classifier import BertClassifier
    from bertkit.objective import Objective


def check_compared(sizes: Mapping[str, Any], loss: Any, objective: Objective | None) -> None:
    """Refuse batches, or parts of them, of one row where rows are compared with one another.

    Args:
        sizes: the rows that are computed at once, as far as given, by the name of the option.
        loss: one, or several, as `compile` takes them.
        objective: what a step minimizes, if not the loss alone.

    Raises:
        InputError: the loss or the objective would have nothing to compare.
    """
    comparing = {
        "loss": compares_rows(loss),
        "objective": objective is not None and objective.compares_rows,
    }
    for what in (what for what, compares in comparing.items() if compares):
        for name in (name for name, size in sizes.items() if size == 1):
            raise InputError(
                f"{name} is 1, and the {what} compares the rows that are computed at once: one "
                "alone has none to be compared with. Give 2 or more, or leave it out."
            )


def in_micro_batches(
    model: BertClassifier, x: Any, y: Any, sample_weight: Any
) -> tuple[tf.Tensor, list[tuple[Any, Any]]]:
    """Return what `model.compute_gradients` does, of `model.micro_batch_size` rows at a time.

    A loss is a mean over the rows of its batch, so each part counts by its number of rows: that
    the last has fewer changes nothing. Padding that no row of a part needs is cut off. No rows, as
    a replica may have them, are one part, whose gradient is 0.
    """
    batch = (x, y) if sample_weight is None else (x, y, sample_weight)
    size, rows = model.micro_batch_size, tf.maximum(tf.shape(tf.nest.flatten(x)[0])[0], 1)
    weights = model.trainable_weights
    reached: set[int] = set()

    def add(index: tf.Tensor, sums: list[tf.Tensor], outputs: Any) -> tuple[Any, Any, Any]:
        start = index * size
        part = tf.nest.map_structure(lambda column: column[start : start + size], batch)
        x, y, sample_weight = (*part, None)[:3]
        logits, pairs = model.compute_gradients(_trimmed(x), y, sample_weight)
        share = tf.cast(tf.shape(logits)[0] / rows, tf.float32)
        gradients = {id(weight): tf.convert_to_tensor(gradient) for gradient, weight in pairs}
        reached.update(gradients)
        sums = [
            total + gradients[id(weight)] * tf.cast(share, total.dtype)
            if id(weight) in gradients
            else total
            for total, weight in zip(sums, weights, strict=True)
        ]
        return index + 1, sums, outputs.write(index, logits)

    outputs = tf.TensorArray(tf.float32, size=0, dynamic_size=True, infer_shape=False)
    zeros = [tf.zeros(weight.shape, weight.dtype) for weight in weights]
    _, sums, outputs = tf.while_loop(
        lambda index, *_: index * size < rows, add, (tf.constant(0), zeros, outputs),
        parallel_iterations=1,
    )  # fmt: skip
    logits = tf.ensure_shape(outputs.concat(), (None, model.head.num_outputs))
    pairs = zip(sums, weights, strict=True)
    return logits, [(total, weight) for total, weight in pairs if id(weight) in reached]


def _trimmed(x: Any) -> Any:
    """Cut off the columns, of (B, T) each, that are padding in every row."""
    mask = x.get("padding_mask") if isinstance(x, dict) else None
    if mask is None or any(len(part.shape) != 2 for part in x.values()):
        return x
    ends = tf.range(1, tf.shape(mask)[1] + 1) * tf.reduce_max(tf.cast(mask, tf.int32), axis=0)
    longest = tf.maximum(tf.reduce_max(ends), 1)
    return {name: part[:, :longest] for name, part in x.items()}
