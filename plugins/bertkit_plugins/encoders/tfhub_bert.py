"""A SavedModel whose variables are those of a plain BERT, read into a BertEncoder."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bertkit.bert import BertEncoder
from bertkit.errors import EncoderError
from bertkit.pooling import PoolingName
from bertkit.weights import Weight, set_weights, weight_shapes
from bertkit_plugins.encoders.saved_model_graph import Graph, once, random_inputs

# What the graph's outputs may differ by.
_TOLERANCE = 1e-4
# TF Hub's BERTs compute the first, later exports of other models the others.
_ACTIVATIONS = ("gelu_new", "gelu", "relu")
# What our name is in the exporters' spellings, after any prefix.
_LAYER = r"layer_(?P<layer>\d+)/"
_SPELLINGS = {
    "token_embedding": r"word_embeddings(/embeddings)?",
    "position_embedding": r"position_embeddings?(/(position_)?embeddings)?",
    "segment_embedding": r"type_embeddings(/embeddings)?",
    "embeddings_norm": r"(embeddings|embedding_postprocessor)/layer_norm/(?P<kind>gamma|beta)",
    "query": _LAYER + r"self_attention/query/(?P<kind>kernel|bias)",
    "key": _LAYER + r"self_attention/key/(?P<kind>kernel|bias)",
    "value": _LAYER + r"self_attention/value/(?P<kind>kernel|bias)",
    "attention_output": _LAYER
    + r"(self_attention/attention_output|self_attention_output)/(?P<kind>kernel|bias)",
    "attention_norm": _LAYER + r"self_attention_layer_norm/(?P<kind>gamma|beta)",
    "intermediate": _LAYER + r"intermediate/(?P<kind>kernel|bias)",
    "output": _LAYER + r"output/(?P<kind>kernel|bias)",
    "output_norm": _LAYER + r"output_layer_norm/(?P<kind>gamma|beta)",
    "pooler": r"pooler_transform/(?P<kind>kernel|bias)",
}
_PATTERNS = {name: re.compile(rf"(.*/)?{pattern}") for name, pattern in _SPELLINGS.items()}


def read_bert(
    graph: Graph, pooling: PoolingName, dropout: float, attention_dropout: float
) -> BertEncoder | str:
    """Return a BertEncoder that computes what a graph does, or why there is none.

    Its variables must be those of a BERT one to one, and the outputs for random ids with padding
    and two segments within 1e-4 of the graph's own.
    """
    named = _named(graph.captured())
    if isinstance(named, str):
        return named
    sizes = _sizes(named)
    if isinstance(sizes, str):
        return sizes
    # Compared in float32, whatever the precision of training.
    encoder = BertEncoder(
        **sizes, dropout=dropout, attention_dropout=attention_dropout, pooling=pooling,
        dtype="float32",
    )  # fmt: skip
    if pooling != "pooler":
        named = {name: v for name, v in named.items() if not name.startswith("pooler/")}
    try:
        set_weights(encoder, _weights(encoder, named), graph.source)
    except EncoderError as error:
        return str(error).rstrip(".")
    off = {name: difference(encoder, graph, name) for name in _ACTIVATIONS}
    best = min(_ACTIVATIONS, key=lambda name: off[name])
    if not off[best] < _TOLERANCE:
        differences = ", ".join(f"{off[name]:.1g} with {name}" for name in _ACTIVATIONS)
        return f"a BERT of these variables differs from the graph's own outputs by {differences}"
    final = BertEncoder.from_config(
        {**encoder.get_config(), "hidden_act": best, "dtype": keras.config.dtype_policy().name}
    )
    final.set_weights(encoder.get_weights())
    return final


def difference(encoder: BertEncoder, graph: Graph, activation: str) -> float:
    """Return how far an encoder is from the graph with an activation, over all that is read."""
    for layer in encoder.transformer_layers:
        layer.options = dataclasses.replace(layer.options, hidden_act=activation)
    inputs = random_inputs(graph)
    theirs = once(lambda: graph(inputs, training=False))
    ours = encoder(inputs, reads=("pooled", "sequence"))
    tokens = tf.cast(inputs["padding_mask"], tf.float32)[:, :, None]
    off = [0.0 if "sequence" in theirs or "pooled" in theirs else float("inf")]
    if "sequence" in theirs:
        off.append(float(tf.reduce_max(tf.abs(ours["sequence"] - theirs["sequence"]) * tokens)))
    if "pooled" in theirs and encoder.pooling == "pooler":
        off.append(float(tf.reduce_max(tf.abs(ours["pooled"] - theirs["pooled"]))))
    return max(off) if np.isfinite(off).all() else float("inf")


def _named(variables: Sequence[tf.Variable]) -> dict[str, tf.Variable] | str:
    """Return the variables by our names, or why they are not those of a BERT."""
    named: dict[str, tf.Variable] = {}
    for variable in variables:
        if not variable.dtype.is_floating:
            continue
        theirs = variable.name.partition(":")[0]
        ours = _name(theirs)
        if ours is None:
            return f"it holds {theirs!r}, which no plain BERT has"
        if ours in named:
            return f"it holds {named[ours].name!r} and {variable.name!r}, which are one of BERT's"
        named[ours] = variable
    return named


def _name(theirs: str) -> str | None:
    for part, pattern in _PATTERNS.items():
        match = pattern.fullmatch(theirs)
        if match:
            groups = match.groupdict()
            layer = f"layer_{int(groups['layer'])}/" if "layer" in groups else ""
            return f"{layer}{part}" + (f"/{groups['kind']}" if "kind" in groups else "")
    return None


def _sizes(named: dict[str, tf.Variable]) -> dict[str, Any] | str:
    """Return the arguments of `BertEncoder` that the variables' shapes tell."""
    shapes = {name: tuple(variable.shape) for name, variable in named.items()}
    needed = ("token_embedding", "position_embedding", "segment_embedding",
              "layer_0/query/kernel", "layer_0/intermediate/kernel")  # fmt: skip
    missing = [name for name in needed if name not in shapes]
    if missing:
        return f"it lacks {', '.join(missing)}"
    query = shapes["layer_0/query/kernel"]
    if len(query) != 3:
        return f"its attention kernels have shape {query}, which does not tell how many heads"
    layers = {name.partition("/")[0] for name in shapes if name.startswith("layer_")}
    return {
        "vocabulary_size": shapes["token_embedding"][0],
        "hidden_size": query[0],
        "num_layers": len(layers),
        "num_heads": query[1],
        "intermediate_size": shapes["layer_0/intermediate/kernel"][-1],
        "max_sequence_length": shapes["position_embedding"][0],
        "num_segments": shapes["segment_embedding"][0],
    }


def _weights(encoder: BertEncoder, named: dict[str, tf.Variable]) -> dict[str, Weight]:
    shapes = weight_shapes(encoder)
    return {
        ours: Weight(variable.name, partial(_read, variable, shapes.get(ours)))
        for ours, variable in named.items()
    }


def _read(variable: tf.Variable, shape: tuple[int, ...] | None) -> Any:
    """Return the values; attention kernels are (H, heads, width) there, or (heads, width, H)."""
    values = variable.numpy()
    split = values.ndim > len(shape or ()) and values.size == np.prod(shape or ())
    return values.reshape(shape) if split else values
