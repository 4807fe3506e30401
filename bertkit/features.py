"""What an encoder makes of rows, computed once: features that heads are trained and tried on."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from tempfile import TemporaryFile
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bertkit.data.batches import plan
from bertkit.data.examples import Examples
from bertkit.encoder import INPUT_NAMES, Encoder
from bertkit.errors import InputError
from bertkit.guards import fingerprints
from bertkit.predicting import cut

NAMES = ("pooled", "sequence")
_IN_MEMORY = 1 << 30  # bytes; larger arrays lie in a file


@dataclass(frozen=True)
class Features:
    """The features of rows, as the encoder gave them in inference mode.

    They stand wherever texts do: in `fit_head`, `evaluate`, `predict` and `classify`. Arrays of
    more than a gigabyte lie in an unnamed temporary file.

    Attributes:
        pooled: float32, (N, H); `None` if the head does not read it.
        sequence: float32, (all tokens, H), a row after another; `None` if the head does not read
            it.
        mask: int8, (all tokens,), 1 for a token, 0 for padding.
        starts: int64, (N,), where each row begins in `sequence` and `mask`.
        lengths: int64, (N,), tokens of each row.
        encoder: what tells the encoder from others: its arguments' hash, its weights' fingerprints.
    """

    pooled: np.ndarray | None
    sequence: np.ndarray | None
    mask: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    encoder: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, rows: np.ndarray | slice) -> Features:
        """Return some rows, by index; tokens are shared."""
        pooled = None if self.pooled is None else self.pooled[rows]
        return replace(self, pooled=pooled, starts=self.starts[rows], lengths=self.lengths[rows])

    def batch(self, rows: np.ndarray, multiple: int = 1) -> dict[str, np.ndarray]:
        """Return what a head gets: "pooled", (B, H), "sequence", (B, T, H), and "mask", (B, T).

        Args:
            rows: indices, (B,).
            multiple: round the length up to a multiple of it.
        """
        starts, lengths = self.starts[rows], self.lengths[rows]  # (B,)
        width = -(-int(lengths.max(initial=1)) // multiple) * multiple
        there = np.arange(width) < lengths[:, None]  # (B, T)
        places = (starts[:, None] + np.arange(width))[there]
        batch = {"mask": np.zeros(there.shape, dtype="int32")}
        batch["mask"][there] = self.mask[places]
        if self.pooled is not None:
            batch["pooled"] = self.pooled[rows]
        if self.sequence is not None:
            batch["sequence"] = np.zeros((*there.shape, self.sequence.shape[1]), dtype="float32")
            batch["sequence"][there] = self.sequence[places]
        return batch

    @property
    def signature(self) -> dict[str, tf.TensorSpec]:
        """The shapes and types of `batch`."""
        signature = {"mask": tf.TensorSpec((None, None), tf.int32)}
        if self.pooled is not None:
            signature["pooled"] = tf.TensorSpec((None, self.pooled.shape[1]), tf.float32)
        if self.sequence is not None:
            signature["sequence"] = tf.TensorSpec((None, None, self.sequence.shape[1]), tf.float32)
        return signature

    def check(self, encoder: Encoder, reads: tuple[str, ...]) -> None:
        """Refuse features that are not this encoder's, or not what a head reads.

        Raises:
            InputError: in either case.
        """
        if self.encoder != _identity(encoder):
            raise InputError(
                "These features were computed by another encoder, with another pooling, say, or "
                "with other weights than it has now: it has been trained since. Compute them again "
                "with model.features(texts)."
            )
        missing = [name for name in reads if getattr(self, name, None) is None]
        if missing:
            raise InputError(
                f"The head reads {' and '.join(missing)}, which these features lack. Compute them "
                "with the features(texts) of a model that has this head."
            )


def is_features(inputs: Mapping[str, Any]) -> bool:
    """Return whether inputs are a batch of features, and not of token ids."""
    return any(name in inputs for name in NAMES)


def compute_features(
    encoder: Encoder,
    rows: Examples | Mapping[str, Any],
    reads: tuple[str, ...],
    batch_size: int | None = None,
    multiple: int = 1,
    verbose: int = 0,
) -> Features:
    """Run an encoder once over rows, without dropout.

    Args:
        encoder: the encoder.
        rows: tokenized rows, or a dict of the encoder's inputs, int32 (N, T) each.
        reads: the features to keep, of "pooled" and "sequence".
        batch_size: rows a batch; as `predict` chooses if `None`.
        multiple: lengths are rounded up to a multiple of it.
        verbose: 1 shows a progress bar, 2 a line at the end.

    Raises:
        InputError: the head reads what cannot be kept.
    """
    unknown = [name for name in reads if name not in NAMES]
    if unknown:
        raise InputError(
            f"The head reads {', '.join(unknown)}, and features are kept of {' and '.join(NAMES)} "
            "only. Set encoder.trainable = False and call fit instead."
        )
    if isinstance(rows, Examples):
        lengths = rows.lengths.astype("int64")
    else:  # padding inside of a row is nothing to be guessed at: all of it is kept
        count, width = rows["token_ids"].shape
        lengths = np.full(count, width, "int64")
    starts, hidden = np.cumsum(lengths) - lengths, encoder.hidden_size
    stores = {
        name: _room((len(lengths) if name == "pooled" else int(lengths.sum()), hidden))
        for name in reads
    }
    mask = np.zeros(lengths.sum(), "int8")

    @tf.function(
        input_signature=[{name: tf.TensorSpec((None, None), tf.int32) for name in INPUT_NAMES}]
    )
    @tf.autograph.experimental.do_not_convert
    def encode(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        features = encoder(inputs, reads=reads, training=False)
        kept = {name: tf.cast(features[name], tf.float32) for name in reads}
        return {**kept, "mask": tf.cast(features["mask"], tf.int8)}

    if isinstance(rows, Examples):
        batches = cut(lengths, batch_size, multiple)
    else:
        batches = plan(lengths, batch_size or 32, "given")
    bar = keras.utils.Progbar(len(batches), verbose=verbose, unit_name="batch of features")
    for batch in batches:
        if isinstance(rows, Examples):
            inputs = rows.batch(batch, multiple)
        else:
            inputs = {name: x[batch[0] : batch[-1] + 1] for name, x in rows.items()}
        features = {name: x.numpy() for name, x in encode(inputs).items()}
        there = np.arange(features["mask"].shape[1]) < lengths[batch][:, None]  # (B, T)
        places = (starts[batch][:, None] + np.arange(there.shape[1]))[there]
        mask[places] = features["mask"][there]
        if "pooled" in stores:
            stores["pooled"][batch] = features["pooled"]
        if "sequence" in stores:
            stores["sequence"][places] = features["sequence"][there]
        bar.add(1)
    return Features(
        stores.get("pooled"), stores.get("sequence"), mask, starts, lengths, _identity(encoder)
    )


def _room(shape: tuple[int, int]) -> np.ndarray:
    """Return an array to be filled, float32."""
    size = 4 * math.prod(shape)
    if size <= _IN_MEMORY:
        return np.empty(shape, "float32")
    file = TemporaryFile()  # noqa: SIM115 - it lives as long as the array that is mapped onto it
    if hasattr(os, "posix_fallocate"):  # a disk that is full later would end the process
        os.posix_fallocate(file.fileno(), 0, size)
    return np.memmap(file, "float32", mode="w+", shape=shape)


def _identity(encoder: Encoder) -> tuple[Any, ...]:
    """Return what tells an encoder from one that computes other features."""
    config = encoder.get_config()
    # Dropout does nothing here, and a name, or whether weights train, changes nothing.
    for name in ("name", "trainable", "dropout", "attention_dropout"):
        config.pop(name, None)
    described = f"{type(encoder).__name__} {json.dumps(config, sort_keys=True, default=str)}"
    floats = [weight for weight in encoder.weights if "float" in str(weight.dtype)]
    return hashlib.sha256(described.encode()).hexdigest(), *fingerprints(floats)
