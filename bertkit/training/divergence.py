"""A training that has diverged ends at the batch that did it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bertkit.data.batches import BatchSource
from bertkit.errors import DivergenceError, InputError, shown

BATCH, ABOUT = "bad_batch.npz", "bad_batch.json"


class StopOnDivergence(keras.callbacks.Callback):
    """Ends `fit` with an error at the first batch whose loss or gradient is not finite.

    The loss that `fit` shows is a mean over the batches of an epoch, and turns NaN or infinite with
    the first batch that is. The norm of the gradient is computed in the step, before clipping; it
    changes no bit of the training. An optimizer that scales the loss, as mixed_float16 wants it,
    leaves out a step whose gradient overflows, so that counts as none.

        model.fit(texts, labels, callbacks=[StopOnDivergence("look")])

    Args:
        folder: where the batch is written: `bad_batch.npz` has its inputs, `targets` and
            `sample_weight` if any, `bad_batch.json` the loss, the norm, the rows by their index
            and, where there is a vocabulary, their pieces. Of tensors, datasets and generators,
            whose batches are made elsewhere, nothing is written, nor is it if this is `None`.
            With `steps_per_execution` it is the last batch of several.
        max_gradient_norm: the largest 2-norm of the gradient of all weights; a batch beyond it ends
            training too. Under a `tf.distribute` strategy, the norms of the replicas are summed.

    Raises:
        InputError: `max_gradient_norm` is no number above 0.
    """

    def __init__(
        self, folder: str | Path | None = None, max_gradient_norm: float | None = None
    ) -> None:
        super().__init__()
        if max_gradient_norm is not None and not (
            isinstance(max_gradient_norm, (int, float)) and max_gradient_norm > 0
        ):
            raise InputError(
                f"max_gradient_norm is {shown(max_gradient_norm)}. Give a number above 0, or None."
            )
        self.folder = None if folder is None else Path(folder)
        self.max_gradient_norm = max_gradient_norm
        self._epoch = 0

    def on_train_begin(self, logs: Any = None) -> None:
        if self.model.gradient_norm is None:
            watch_gradients(self.model)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        loss = (logs or {})["loss"]
        norm = float(tf.convert_to_tensor(self.model.gradient_norm))  # of all replicas
        if not math.isfinite(loss):
            what = f"the loss of {self._place(batch)} is {loss}"
        elif math.isfinite(norm):
            if self.max_gradient_norm is None or norm <= self.max_gradient_norm:
                return
            limit = f"beyond max_gradient_norm, {self.max_gradient_norm:g}"
            what = f"the gradient of {self._place(batch)} has the norm {norm:g}, {limit}"
        elif skips_overflows(self.model.optimizer):
            return
        else:
            what = f"the gradient of {self._place(batch)} is not finite"
        where = self._written(batch, loss, norm)
        raise DivergenceError(
            f"Training diverged: {what}. The usual cause is a learning rate that is too high: "
            f"lower learning_rate, warm up longer (warmup), or clip gradients (clip_norm).{where}"
        )

    def _place(self, batch: int) -> str:
        return f"batch {batch + 1} of epoch {self._epoch + 1}"

    def _written(self, batch: int, loss: float, norm: float) -> str:
        """Write the batch, and return where it is, as a sentence behind others."""
        source: BatchSource | None = self.model.batch_source
        if self.folder is None or source is None:
            return ""
        arrays: dict[str, Any] = source.structured(self._epoch, batch)
        rows = source.rows(self._epoch, batch)
        about = {
            "epoch": self._epoch + 1,
            "batch": batch + 1,
            "loss": str(loss),
            "gradient_norm": str(norm),
            "rows": rows.tolist(),
            "pieces": _pieces(self.model, arrays),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        np.savez(self.folder / BATCH, **arrays)
        text = json.dumps(about, ensure_ascii=False, indent=1)
        (self.folder / ABOUT).write_text(text + "\n", encoding="utf-8")
        return f" The batch is in {self.folder / BATCH}, and its texts are in {ABOUT} beside it."


def watch_gradients(model: Any) -> None:
    """Have each step of a model keep the norm of its gradient in `model.gradient_norm`."""
    with model.distribute_strategy.scope():
        norm = tf.Variable(
            0.0,
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )
    object.__setattr__(model, "gradient_norm", norm)  # no weight, so Keras is not to save it
    model.make_train_function(force=True)


def keep_gradient_norm(model: Any, gradients: Sequence[tuple[Any, Any]]) -> None:
    """Set `model.gradient_norm`, where it is wanted, to the norm of unscaled gradients.

    Args:
        model: what is trained.
        gradients: scaled, with their weights.
    """
    if model.gradient_norm is None:
        return
    # Embeddings have sparse gradients, whose rows are summed in an update, and so they are here.
    dense = [tf.cast(tf.convert_to_tensor(gradient), tf.float32) for gradient, _ in gradients]
    scale = model.optimizer.scale_loss(tf.ones(()))
    model.gradient_norm.assign(tf.linalg.global_norm(dense) / scale)


def skips_overflows(optimizer: Any) -> bool:
    """Return whether an optimizer leaves out steps whose gradient is not finite."""
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer)


def _pieces(model: Any, arrays: dict[str, np.ndarray]) -> list[list[str]] | None:
    """Return the pieces of each row without padding; `None` if they are not known."""
    vocabulary = getattr(model.encoder, "vocabulary", None)
    if vocabulary is None or "token_ids" not in arrays:
        return None
    tokens = vocabulary.tokens
    return [
        [tokens[i] if i < len(tokens) else f"<{i}>" for i in ids[mask > 0].tolist()]
        for ids, mask in zip(arrays["token_ids"], arrays["padding_mask"], strict=True)
    ]
