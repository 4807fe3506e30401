"""Small SavedModels with TF Hub's interfaces, of plain TensorFlow operations.

Names and shapes of the variables, inputs and outputs are those of Model Garden's exporter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import bertkit
from tests.tiny import VOCABULARY

HIDDEN, HEADS, WIDE, POSITIONS = 16, 2, 24, 32
ACTIVATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "gelu_new": lambda x: tf.nn.gelu(x, approximate=True),
    "gelu": lambda x: tf.nn.gelu(x, approximate=False),
    "relu": tf.nn.relu,
    "silu": tf.nn.silu,
}
# What the first exports called things: the later name, theirs.
_OLDER = (
    ("embeddings/layer_norm", "embedding_postprocessor/layer_norm"),
    ("position_embedding/embeddings", "embedding_postprocessor/position_embeddings"),
    ("type_embeddings/embeddings", "embedding_postprocessor/type_embeddings"),
    ("self_attention/attention_output", "self_attention_output"),
    ("transformer/", "encoder/"),
)
_NAMES = ("input_word_ids", "input_mask", "input_type_ids")


class Exported(tf.Module):
    """The root object of a SavedModel: what it holds is what is set on it."""

    variables = trainable_variables = None


def write_encoder(
    folder: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    activation: str = "gelu_new",
    dropout: float = 0.1,
    interface: str = "dict",
    older_names: bool = False,
    length: int | None = None,
    outputs: Sequence[str] = ("pooled_output", "default", "sequence_output", "encoder_outputs"),
    training: bool = True,
    trainable: bool = True,
    gate: bool = False,
    scale: float = 1.0,
    vocabulary: Sequence[str] | None = VOCABULARY,
    lowercase: bool = True,
) -> Path:
    """Write the SavedModel of a BERT with random weights, all of which matter.

    Args:
        folder: made if need be.
        seed: of the weights.
        layers: transformer layers.
        activation: of `ACTIVATIONS`.
        dropout: rate with `training=True`, everywhere.
        interface: "dict", "list" (the older positional one) or "signature" (nothing else).
        older_names: whether variables are called as in the first exports.
        length: the only length of sequences, in tokens, or any.
        outputs: which to return; of the list always pooled and sequence.
        training: whether the call has that argument.
        trainable: whether the variables are marked so.
        gate: whether there is a variable that no BERT has.
        scale: of the residuals, 1 in BERT.
        vocabulary: the pieces of `vocab_file`, or none.
        lowercase: the value of `do_lower_case`.

    Returns:
        The folder.
    """
    root = Exported()
    held = _variables(seed, layers, older_names, trainable)
    if gate:
        held["gate"] = tf.Variable(np.full(HIDDEN, 0.9, np.float32), trainable, name="gate/scale")

    def forward(ids: tf.Tensor, mask: tf.Tensor, types: tf.Tensor, train: bool) -> dict[str, Any]:
        given = _bert(held, (ids, mask, types), ACTIVATIONS[activation], scale,
                      dropout if train else 0.0)  # fmt: skip
        return {name: given[name] for name in outputs}

    specs = [tf.TensorSpec((None, length), tf.int32, name=name) for name in _NAMES]
    _set_call(root, forward, specs, interface, training)
    signatures = None
    if interface == "signature":
        signatures = {"serving_default": tf.function(
            lambda input_word_ids, input_mask, input_type_ids:
            forward(input_word_ids, input_mask, input_type_ids, False) | {"encoder_outputs": 0.0},
            input_signature=specs)}  # fmt: skip
    # A head that the call does not read: its variables are listed, and nothing reaches them.
    unread = tf.Variable(np.ones((HIDDEN, 3), np.float32), trainable, name="masked_lm/kernel")
    root.variables = [*held.values(), unread]
    root.trainable_variables = root.variables if trainable else []
    if vocabulary is not None:
        path = folder.parent / f"{folder.name}_vocabulary" / "vocab.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([*vocabulary, ""]), encoding="utf-8")
        root.vocab_file = tf.saved_model.Asset(str(path))
        root.do_lower_case = tf.Variable(lowercase, trainable=False)
        root.variables = [*root.variables, root.do_lower_case]
    tf.saved_model.save(root, str(folder), signatures=signatures)
    return folder


def _set_call(
    root: Any, forward: Callable[..., Any], specs: list[tf.TensorSpec], interface: str,
    training: bool,
) -> None:  # fmt: skip
    def ordered(inputs: Any, train: bool) -> Any:
        if interface == "dict":
            return forward(*(inputs[name] for name in _NAMES), train)
        given = forward(*inputs, train)
        return given["pooled_output"], given["sequence_output"]

    if interface == "signature":
        return
    argument = dict(zip(_NAMES, specs, strict=True)) if interface == "dict" else specs
    if training:
        call = tf.function(lambda inputs, training=False: ordered(inputs, training))
        for value in (True, False):
            call.get_concrete_function(argument, training=value)
    else:
        call = tf.function(lambda inputs: ordered(inputs, False))
        call.get_concrete_function(argument)
    root.__call__ = call


def _variables(
    seed: int, layers: int, older_names: bool, trainable: bool
) -> dict[str, tf.Variable]:
    generator = np.random.default_rng(seed)
    width = HIDDEN // HEADS
    held: dict[str, tf.Variable] = {}

    def add(name: str, shape: tuple[int, ...], deviation: float, mean: float = 0.0) -> None:
        theirs = name
        for new, old in _OLDER if older_names else ():
            theirs = theirs.replace(new, old)
        values = generator.normal(mean, deviation, shape).astype(np.float32)
        theirs = f"bert_model/{theirs}" if older_names else theirs
        held[name] = tf.Variable(values, trainable=trainable, name=theirs)

    def dense(name: str, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        add(f"{name}/kernel", (*inputs, *outputs), math.prod(inputs) ** -0.5)
        add(f"{name}/bias", outputs, 0.1)

    def norm(name: str) -> None:
        add(f"{name}/gamma", (HIDDEN,), 0.1, 1.0)
        add(f"{name}/beta", (HIDDEN,), 0.1)

    add("word_embeddings/embeddings", (len(VOCABULARY), HIDDEN), 0.5)
    add("position_embedding/embeddings", (POSITIONS, HIDDEN), 0.5)
    add("type_embeddings/embeddings", (2, HIDDEN), 0.5)
    norm("embeddings/layer_norm")
    for index in range(layers):
        layer = f"transformer/layer_{index}"
        for part in ("query", "key", "value"):
            dense(f"{layer}/self_attention/{part}", (HIDDEN,), (HEADS, width))
        dense(f"{layer}/self_attention/attention_output", (HEADS, width), (HIDDEN,))
        norm(f"{layer}/self_attention_layer_norm")
        dense(f"{layer}/intermediate", (HIDDEN,), (WIDE,))
        dense(f"{layer}/output", (WIDE,), (HIDDEN,))
        norm(f"{layer}/output_layer_norm")
    dense("pooler_transform", (HIDDEN,), (HIDDEN,))
    return held


def _bert(
    held: dict[str, tf.Variable], inputs: tuple[tf.Tensor, ...],
    activation: Callable[[tf.Tensor], tf.Tensor], scale: float, dropout: float,
) -> dict[str, Any]:  # fmt: skip
    ids, mask, types = inputs

    def drop(x: tf.Tensor) -> tf.Tensor:
        return tf.nn.dropout(x, dropout) if dropout else x

    def norm(x: tf.Tensor, name: str) -> tf.Tensor:
        mean, variance = tf.nn.moments(x, -1, keepdims=True)
        gamma, beta = held[f"{name}/gamma"], held[f"{name}/beta"]
        return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-12)

    def dense(x: tf.Tensor, name: str, equation: str) -> tf.Tensor:
        return tf.einsum(equation, x, held[f"{name}/kernel"]) + held[f"{name}/bias"]

    x = tf.gather(held["word_embeddings/embeddings"], ids)
    x += tf.gather(held["type_embeddings/embeddings"], types)
    x += held["position_embedding/embeddings"][: tf.shape(ids)[1]]
    x = drop(norm(x, "embeddings/layer_norm"))  # (B, T, H)
    bias = (1.0 - tf.cast(mask, tf.float32))[:, None, None, :] * -1e9
    states = []
    while f"transformer/layer_{len(states)}/output/bias" in held:
        layer = f"transformer/layer_{len(states)}"
        query, key, value = (
            dense(x, f"{layer}/self_attention/{part}", "bth,hnd->btnd")
            for part in ("query", "key", "value")
        )
        scores = tf.einsum("btnd,bsnd->bnts", query, key) * (HIDDEN // HEADS) ** -0.5
        shares = drop(tf.nn.softmax(scores + bias))
        context = tf.einsum("bnts,bsnd->btnd", shares, value)
        attended = dense(context, f"{layer}/self_attention/attention_output", "btnd,ndh->bth")
        x = norm(x * scale + drop(attended), f"{layer}/self_attention_layer_norm")
        wide = activation(dense(x, f"{layer}/intermediate", "bth,hw->btw"))
        x = norm(x + drop(dense(wide, f"{layer}/output", "btw,wh->bth")),
                 f"{layer}/output_layer_norm")  # fmt: skip
        states.append(x)
    if "gate" in held:
        x *= held["gate"]
    pooled = tf.tanh(dense(x[:, 0], "pooler_transform", "bh,hp->bp"))
    return {"pooled_output": pooled, "default": pooled, "sequence_output": x,
            "encoder_outputs": states}  # fmt: skip


def write_sentence_encoder(folder: Path, *, buckets: int = 50, seed: int = 0) -> Path:
    """Write a SavedModel from strings, (B,), to (B, H): the mean of its words' embeddings.

    A word's row is looked up in a small table from a file, or is the hash of the word.
    """
    words = folder.parent / f"{folder.name}_words.txt"
    words.write_text("good\nbad\n")
    root = Exported()
    table = tf.lookup.StaticVocabularyTable(
        tf.lookup.TextFileInitializer(
            str(words), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER,
        ), buckets,
    )  # fmt: skip
    values = np.random.default_rng(seed).normal(0, 0.5, (buckets + 2, HIDDEN))
    embeddings = tf.Variable(values.astype(np.float32), name="embeddings/part_0")
    root.variables = root.trainable_variables = [embeddings]
    root.table = table

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def call(texts: tf.Tensor) -> tf.Tensor:
        split = tf.strings.split(tf.strings.lower(texts))  # (B, ragged)
        rows = split.with_flat_values(tf.gather(embeddings, table.lookup(split.flat_values)))
        return tf.math.divide_no_nan(
            tf.reduce_sum(rows, axis=1), tf.cast(split.row_lengths(), tf.float32)[:, None] ** 0.5
        )

    root.__call__ = call
    tf.saved_model.save(root, str(folder))
    return folder


def write_classifier(
    folder: Path, model: bertkit.BertClassifier, *, outputs: str = "logits", vocabulary: bool = True
) -> Path:
    """Write a model, head included, as a SavedModel from TF Hub's three inputs to its logits.

    Args:
        folder: made if need be.
        model: its labels are known.
        outputs: "logits" alone, a "pair" of them halved, with either sign, or "more" beside them.
        vocabulary: whether `vocab_file` is there.
    """
    root = Exported()
    root.variables = [variable.value for variable in model.variables]

    def call(inputs: dict[str, tf.Tensor], training: bool = False) -> Any:
        logits = model(dict(inputs), training=False)
        given = {
            "logits": logits,
            "pair": tf.concat([-logits / 2, logits / 2], axis=1),
            "more": {"logits": logits, "pooled_output": logits},
        }
        return given[outputs]

    specs = {name: tf.TensorSpec((None, None), tf.int32, name=name) for name in _NAMES}
    root.__call__ = tf.function(call, input_signature=[specs])
    if vocabulary:
        path = folder.parent / f"{folder.name}_vocabulary"
        path.mkdir(parents=True)
        model.encoder.vocabulary.save(str(path))
        root.vocab_file = tf.saved_model.Asset(str(path / "vocab.txt"))
        root.do_lower_case = tf.Variable(True, trainable=False)
    tf.saved_model.save(root, str(folder))
    return folder
