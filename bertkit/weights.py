"""Named arrays into a BertEncoder and out of it: the door of every source of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
from numpy.typing import NDArray

from bertkit.bert import BertEncoder
from bertkit.errors import EncoderError

# The parts of a transformer layer; query, key and value become one kernel here.
DENSE = ("query", "key", "value", "attention_output", "intermediate", "output")
NORMS = ("attention_norm", "output_norm")


class Weight(NamedTuple):
    """One array as its source holds it.

    Attributes:
        name: what the source calls it, for messages.
        read: returns the array; called once, so that no more than one layer is in memory twice.
        transposed: whether it is a kernel of shape (outputs, inputs), as PyTorch has them.
    """

    name: str
    read: Callable[[], NDArray[Any]]
    transposed: bool = False


def weight_shapes(encoder: BertEncoder) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every weight, kernels as (inputs, outputs).

    Names are "token_embedding", "segment_embedding" (if there are segments),
    "embeddings_norm/gamma", "embeddings_projection/kernel" (if the embeddings are of another
    width), "layer_0/query/kernel", "layer_0/output_norm/beta", "pooler/kernel" (with the pooling
    "pooler" only), and so on.
    """
    hidden, wide, size = encoder.hidden_size, encoder.intermediate_size, encoder.embedding_size
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding": (encoder.vocabulary_size, size),
        "position_embedding": (encoder.max_sequence_length, size),
    }
    if encoder.num_segments:
        shapes["segment_embedding"] = (encoder.num_segments, size)
    shapes["embeddings_norm/gamma"] = shapes["embeddings_norm/beta"] = (size,)
    if size != hidden:
        shapes["embeddings_projection/kernel"] = (size, hidden)
        shapes["embeddings_projection/bias"] = (hidden,)
    for index in range(encoder.num_layers):
        for part in DENSE:
            inputs = wide if part == "output" else hidden
            outputs = wide if part == "intermediate" else hidden
            shapes[f"layer_{index}/{part}/kernel"] = (inputs, outputs)
            shapes[f"layer_{index}/{part}/bias"] = (outputs,)
        for part in NORMS:
            shapes[f"layer_{index}/{part}/gamma"] = (hidden,)
            shapes[f"layer_{index}/{part}/beta"] = (hidden,)
    if encoder.pooling == "pooler":
        shapes["pooler/kernel"] = (hidden, hidden)
        shapes["pooler/bias"] = (hidden,)
    return shapes


def set_weights(encoder: BertEncoder, weights: Mapping[str, Weight], source: str) -> None:
    """Fill an encoder.

    Args:
        encoder: what to fill; its sizes say which weights there must be.
        weights: every name of `weight_shapes`, and no other.
        source: where they come from, for messages.

    Raises:
        EncoderError: a weight is missing, unknown, of another shape, no floating-point numbers,
            or not finite.
    """
    shapes = weight_shapes(encoder)
    for problem, names in (
        ("lacks", shapes.keys() - weights.keys()),
        ("has the unknown", weights.keys() - shapes.keys()),
    ):
        if names:
            raise EncoderError(
                f"{source} {problem} {', '.join(sorted(names)[:3])} ({len(names)} in all). "
                "Take the config and the weights from the same model."
            )

    def read(name: str) -> NDArray[np.float32]:
        return _checked(weights[name], shapes[name], source)

    for variable, held in places(encoder):
        variable.assign(np.concatenate([read(name) for name in held], axis=-1))


def get_weights(encoder: BertEncoder) -> dict[str, NDArray[np.float32]]:
    """Return every weight of `weight_shapes` by its name: what `set_weights` takes."""
    weights: dict[str, NDArray[np.float32]] = {}
    for variable, names in places(encoder):
        parts = np.split(variable.numpy().astype(np.float32), len(names), axis=-1)
        weights.update(zip(names, parts, strict=True))
    return weights


def places(encoder: BertEncoder) -> Iterator[tuple[keras.Variable, tuple[str, ...]]]:
    """Yield each variable that has named weights, and the names of those it holds.

    It holds them side by side along its last axis: one each, or query, key and value.
    """
    embeddings = encoder.embeddings
    yield embeddings.token, ("token_embedding",)
    yield embeddings.position, ("position_embedding",)
    if encoder.num_segments:
        yield embeddings.segment, ("segment_embedding",)
    yield embeddings.norm.gamma, ("embeddings_norm/gamma",)
    yield embeddings.norm.beta, ("embeddings_norm/beta",)
    if embeddings.projection is not None:
        for variable, kind in zip(embeddings.projection, ("kernel", "bias"), strict=True):
            yield variable, (f"embeddings_projection/{kind}",)
    for index, layer in enumerate(encoder.transformer_layers):
        for place, kind in enumerate(("kernel", "bias")):
            fused = (f"layer_{index}/{part}/{kind}" for part in ("query", "key", "value"))
            yield layer.qkv[place], tuple(fused)
            yield layer.attention_output[place], (f"layer_{index}/attention_output/{kind}",)
            yield layer.intermediate[place], (f"layer_{index}/intermediate/{kind}",)
            yield layer.output_dense[place], (f"layer_{index}/output/{kind}",)
        for part in NORMS:
            norm = getattr(layer, part)
            yield norm.gamma, (f"layer_{index}/{part}/gamma",)
            yield norm.beta, (f"layer_{index}/{part}/beta",)
    if encoder.pooling == "pooler":
        yield encoder.pooling_layer.kernel, ("pooler/kernel",)
        yield encoder.pooling_layer.bias, ("pooler/bias",)


def _checked(weight: Weight, shape: tuple[int, ...], source: str) -> NDArray[np.float32]:
    array = weight.read()
    wanted = shape[::-1] if weight.transposed else shape
    if array.shape != wanted:
        raise EncoderError(
            f"{weight.name!r} of {source} has shape {array.shape}, and the encoder's sizes ask "
            f"for {wanted}. Take the config and the weights from the same model."
        )
    # bfloat16 comes from ml_dtypes, which NumPy does not count among the floating-point types.
    if not (np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16"):
        raise EncoderError(
            f"{weight.name!r} of {source} holds {array.dtype.name}, not floating-point numbers: "
            "a quantized model cannot be fine-tuned. Take the original one."
        )
    with np.errstate(over="ignore"):  # what overflows is reported below
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise EncoderError(
            f"{weight.name!r} of {source} holds NaN or infinite values, so every output would be "
            "NaN. The file is damaged, or its training diverged: take another."
        )
    return array.T if weight.transposed else array
