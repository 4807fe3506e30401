"""`check_encoder`: does an encoder keep its contract?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bertkit.classifier import BertClassifier
from bertkit.encoder import Encoder
from bertkit.registry import encoders, heads
from bertkit.testing.common import (
    FEATURES,
    MIXED,
    again,
    all_reached,
    close,
    during,
    ensure,
    maker,
    name_of,
    random_tokens,
    run,
    saved_and_loaded,
)
from bertkit.tokenizer import Vocabulary


def check_encoder(encoder: Encoder | Callable[..., Encoder] | str, **arguments: Any) -> None:
    """Check an encoder against the contract of `bertkit.Encoder`.

    Its attributes; the features for each `reads`, alike in a graph; that neither padding nor the
    other rows of a batch change a row; no rows, one row and one token; that a gradient reaches
    every trainable weight; mixed precision; saving and loading, vocabulary included.

    Args:
        encoder: an encoder, a class or function that makes one, or the name of that.
        **arguments: of the class or function.

    Raises:
        AssertionError: the encoder breaks the contract.
    """
    with during(f"check_encoder({name_of(encoder)}), construction"):
        made = encoder
        if not isinstance(encoder, Encoder):
            made = maker(encoders, Encoder, encoder, arguments)()
    checks = (attributes, features, padding, few_rows, gradients, mixed_precision, saving)
    run("check_encoder", encoder, checks, made)


def _inputs(encoder: Encoder) -> dict[str, tf.Tensor]:
    longest = min(8, encoder.max_sequence_length)
    lengths = [longest, max(longest - 3, 1), 1]
    return random_tokens(lengths, encoder.vocabulary_size, encoder.num_segments or 2)


def attributes(encoder: Encoder) -> None:
    encoders.name_of(type(encoder))
    for name, least in (
        ("hidden_size", 1), ("max_sequence_length", 1), ("num_segments", 0), ("vocabulary_size", 1)
    ):  # fmt: skip
        size = getattr(encoder, name, None)
        ensure(
            isinstance(size, int) and size >= least,
            f"`{name}` must be {least} or more, and is {size!r}",
        )
    ensure(
        encoder.vocabulary is None or isinstance(encoder.vocabulary, Vocabulary),
        f"`vocabulary` must be a Vocabulary or None, and is a {type(encoder.vocabulary).__name__}",
    )
    layers = encoder.layers_in_order()
    ensure(
        layers and all(isinstance(layer, keras.layers.Layer) for layer in layers),
        f"`layers_in_order` must return Keras layers, and returns {layers!r}",
    )


def features(encoder: Encoder) -> None:
    inputs = _inputs(encoder)
    batch, length = inputs["token_ids"].shape
    hidden = encoder.hidden_size
    shapes = {"pooled": (batch, hidden), "sequence": (batch, length, hidden),
              "mask": (batch, length)}  # fmt: skip
    everything = encoder(inputs, reads=FEATURES)
    for reads in (("pooled",), ("sequence",), FEATURES):
        eager = encoder(inputs, reads=reads)
        graph = tf.function(lambda x, reads=reads: encoder(x, reads=reads))(inputs)
        missing = {*reads, "mask"} - set(eager)
        ensure(not missing, f"with reads={reads}, the features lack {', '.join(sorted(missing))}")
        for name in (*reads, "mask"):
            shape = tuple(eager[name].shape)
            ensure(shape == shapes[name], f"{name!r} must be {shapes[name]}, and is {shape}")
            close(eager[name], everything[name], f"{name!r} must not depend on `reads`")
            close(eager[name], graph[name], f"{name!r} must be the same in a graph")
    close(everything["mask"], inputs["padding_mask"], "'mask' must be the padding mask")


def padding(encoder: Encoder) -> None:
    inputs = _inputs(encoder)
    whole = encoder(inputs, reads=FEATURES)
    for row, length in enumerate(inputs["padding_mask"].numpy().sum(axis=1)):
        alone = {name: value[row : row + 1, :length] for name, value in inputs.items()}
        bare = encoder(alone, reads=FEATURES)
        wanted = "must not depend on padding or on other rows"
        close(whole["pooled"][row], bare["pooled"][0], f"'pooled' {wanted}")
        close(whole["sequence"][row, :length], bare["sequence"][0], f"'sequence' {wanted}")
    last = encoder.vocabulary_size - 1
    ids = tf.where(inputs["padding_mask"] == 1, inputs["token_ids"], last)
    other = encoder({**inputs, "token_ids": ids})
    close(whole["pooled"], other["pooled"], "'pooled' must not depend on ids under the mask")


def few_rows(encoder: Encoder) -> None:
    inputs = _inputs(encoder)
    for rows, length in ((0, 4), (1, 4), (1, 1), (3, 1)):
        some = {name: value[:rows, :length] for name, value in inputs.items()}
        with during(f"{rows} rows of {some['token_ids'].shape[1]} tokens"):
            for reads in (("pooled",), FEATURES):
                pooled = encoder(some, reads=reads)["pooled"]
                wanted = (rows, encoder.hidden_size)
                ensure(
                    tuple(pooled.shape) == wanted and np.isfinite(pooled).all(),
                    f"'pooled' must be finite and {wanted}, and is {tuple(pooled.shape)}",
                )


def gradients(encoder: Encoder) -> None:
    inputs, generator = _inputs(encoder), np.random.default_rng(0)
    ensure(
        encoder.trainable_weights,
        "Keras must see trainable weights: make them by `add_weight`, or as layers",
    )
    with tf.GradientTape() as tape:
        read = encoder(inputs, reads=FEATURES, training=True)
        parts = [tf.cast(read[name], tf.float32) for name in FEATURES]
        total = tf.add_n([tf.reduce_sum(x * generator.normal(size=x.shape)) for x in parts])
    all_reached(encoder, tape.gradient(total, encoder.trainable_weights))


def mixed_precision(encoder: Encoder) -> None:
    inputs = _inputs(encoder)
    plain = tf.cast(encoder(inputs)["pooled"], tf.float32)
    for policy in MIXED:
        with during(policy):
            mixed = again(encoder, dtype=policy)
            mixed.set_weights(encoder.get_weights())
            pooled = mixed(inputs)["pooled"]
            ensure(
                pooled.dtype == mixed.compute_dtype,
                f"'pooled' must be {mixed.compute_dtype}, and is {pooled.dtype.name}",
            )
            off = float(tf.norm(tf.cast(pooled, tf.float32) - plain) / tf.norm(plain))
            ensure(off < 0.1, f"'pooled' must be near that of float32, and is {off:.0%} off")


def saving(encoder: Encoder) -> None:
    model = BertClassifier(encoder, heads.create("binary", labels=["no", "yes"]))
    loaded = saved_and_loaded(model, _inputs(encoder))
    ensure(
        loaded.encoder.vocabulary == encoder.vocabulary,
        "saved and loaded, the encoder must have its vocabulary: keep `save_assets` and "
        "`load_assets`, or call those of the base class",
    )
