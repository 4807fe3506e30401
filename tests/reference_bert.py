"""BERT in NumPy and float64, from its published formulae: the reference of the encoder's tests.

Devlin et al. 2019 (https://arxiv.org/abs/1810.04805) on top of Vaswani et al. 2017
(https://arxiv.org/abs/1706.03762); GELU from https://arxiv.org/abs/1606.08415. It reads a Hugging
Face folder by that format's own names, and shares no code with what it checks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from tests.tiny import DISTILBERT_WEIGHTS

Array = NDArray[np.float64]


def _gelu_tanh(x: Array) -> Array:
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return np.asarray(x / 2 * (1 + np.tanh(inner)))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: np.asarray(x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))),
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: np.asarray(x / (1 + np.exp(-x))),
    "tanh": np.tanh,
}


def layer_norm(x: Array, gamma: Array, beta: Array, epsilon: float) -> Array:
    """Normalize the last axis to mean 0 and variance 1, then scale and shift."""
    mean = x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt(x.var(axis=-1, keepdims=True) + epsilon)
    return np.asarray((x - mean) / deviation * gamma + beta)


def reference_bert(
    folder: Path, token_ids: NDArray[Any], segment_ids: NDArray[Any], padding_mask: NDArray[Any]
) -> tuple[Array, Array]:
    """Return the sequence (B, T, H) and the pooler's output (B, H) for int inputs (B, T).

    Without a pooler, in ELECTRA and DistilBERT, the second is the first token.
    """
    config = json.loads((folder / "config.json").read_text())
    weights = {k: v.astype(np.float64) for k, v in load_file(folder / "model.safetensors").items()}
    if config["model_type"] == "distilbert":
        config, weights = _as_bert(config, weights)
    epsilon, heads = config["layer_norm_eps"], config["num_attention_heads"]
    activation = ACTIVATIONS[config["hidden_act"]]

    def dense(x: Array, name: str) -> Array:
        return np.asarray(np.einsum("...i,oi->...o", x, weights[f"{name}.weight"], optimize=True)
                          + weights[f"{name}.bias"])  # fmt: skip

    def norm(x: Array, name: str) -> Array:
        return layer_norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"], epsilon)

    def one(tokens: NDArray[Any], segments: NDArray[Any], mask: NDArray[Any]) -> Array:
        x = (
            weights["embeddings.word_embeddings.weight"][tokens]
            + weights["embeddings.position_embeddings.weight"][np.arange(len(tokens))]
        )
        if "embeddings.token_type_embeddings.weight" in weights:
            x = x + weights["embeddings.token_type_embeddings.weight"][segments]
        x = norm(x, "embeddings.LayerNorm")  # (T, E)
        if "embeddings_project.weight" in weights:
            x = dense(x, "embeddings_project")  # (T, H)
        width = x.shape[1] // heads
        for index in range(config["num_hidden_layers"]):
            layer = f"encoder.layer.{index}"
            q, k, v = (dense(x, f"{layer}.attention.self.{p}") for p in ("query", "key", "value"))
            context = []
            for head in range(heads):
                part = slice(head * width, (head + 1) * width)
                scores = q[:, part] @ k[:, part].T / math.sqrt(width)  # (T, T)
                scores = np.where(mask[None, :] == 1, scores, -np.inf)
                exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
                attention = exponentials / exponentials.sum(axis=1, keepdims=True)
                context.append(attention @ v[:, part])
            attended = dense(np.concatenate(context, axis=1), f"{layer}.attention.output.dense")
            x = norm(x + attended, f"{layer}.attention.output.LayerNorm")
            wide = activation(dense(x, f"{layer}.intermediate.dense"))
            x = norm(x + dense(wide, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        return x

    rows = zip(token_ids, segment_ids, padding_mask, strict=True)
    sequence = np.stack([one(*row) for row in rows])
    if "pooler.dense.weight" not in weights:
        return sequence, sequence[:, 0]
    return sequence, np.tanh(dense(sequence[:, 0], "pooler.dense"))


def _as_bert(
    config: dict[str, Any], weights: dict[str, Array]
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return the config and the weights of a DistilBERT by BERT's names."""
    fields = {
        "num_attention_heads": config["n_heads"],
        "num_hidden_layers": config["n_layers"],
        "hidden_act": config["activation"],
        "layer_norm_eps": 1e-12,
    }
    named = {}
    for name, array in weights.items():
        for ours, theirs in DISTILBERT_WEIGHTS.items():
            name = name.replace(theirs, ours)
        named[name] = array
    return fields, named


def random_batch(vocabulary_size: int, seed: int = 0) -> dict[str, NDArray[np.int32]]:
    """Return ids of 3 rows of 12, 7 and 1 tokens, padded to 12, the later tokens in segment 1."""
    generator = np.random.default_rng(seed)
    lengths = np.array([12, 7, 1])
    mask = (np.arange(12) < lengths[:, None]).astype(np.int32)
    segments = (np.arange(12) >= lengths[:, None] // 2).astype(np.int32) * mask
    ids = generator.integers(1, vocabulary_size, mask.shape).astype(np.int32) * mask
    return {"token_ids": ids, "segment_ids": segments.astype(np.int32), "padding_mask": mask}
