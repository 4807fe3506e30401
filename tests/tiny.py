"""A tiny BERT, ELECTRA or DistilBERT in Hugging Face's format, with random weights."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

_WORDS = (
    "the a an and or but of to in is was it this that i you we they he she not no very too so "
    "film movie book phone story plot acting actor scene end good bad great awful best worst "
    "love hate like boring funny dull brilliant terrible fine ever never made me all one two "
    "with for on at by from as more most just really cat dog sat mat news world sport science"
)
# The pieces: the special ones, ASCII's letters, digits and punctuation, words and suffixes.
VOCABULARY: tuple[str, ...] = tuple(
    dict.fromkeys(
        [
            *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
            *string.ascii_lowercase,
            *(f"##{letter}" for letter in string.ascii_lowercase),
            *string.digits,
            *(f"##{digit}" for digit in string.digits),
            *string.punctuation,
            *_WORDS.split(),
            *("##ing", "##ed", "##ly", "##er", "##est", "##s"),
        ]
    )
)

CONFIG: dict[str, Any] = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 64,
    "model_type": "bert",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "type_vocab_size": 2,
    "vocab_size": len(VOCABULARY),
}
ELECTRA: dict[str, Any] = {**CONFIG, "model_type": "electra", "embedding_size": 16}
# BERT's name of a field: DistilBERT's.
_FIELDS = {
    "hidden_size": "dim",
    "intermediate_size": "hidden_dim",
    "num_attention_heads": "n_heads",
    "num_hidden_layers": "n_layers",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
DISTILBERT: dict[str, Any] = {
    **{theirs: CONFIG[field] for field, theirs in _FIELDS.items()},
    **{name: CONFIG[name] for name in ("initializer_range", "max_position_embeddings",
                                       "pad_token_id", "vocab_size")},
    "model_type": "distilbert",
    "sinusoidal_pos_embds": False,
}  # fmt: skip
# BERT's name of a weight: DistilBERT's. What stands first is replaced first.
DISTILBERT_WEIGHTS = {
    "encoder.layer": "transformer.layer",
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}
TOKENIZER_CONFIG: dict[str, Any] = {"do_lower_case": True, "tokenizer_class": "BertTokenizer"}


def write_huggingface_folder(
    folder: Path,
    *,
    seed: int = 0,
    vocabulary: Sequence[str] = VOCABULARY,
    tokenizer_config: Mapping[str, Any] | None = TOKENIZER_CONFIG,
    change: Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]] | None = None,
    **config: Any,
) -> Path:
    """Write config.json, vocab.txt, tokenizer_config.json and model.safetensors.

    Args:
        folder: made if need be.
        seed: of the weights.
        vocabulary: the pieces.
        tokenizer_config: `None` writes none.
        change: takes and returns the weights before they are written.
        config: fields that replace those of `CONFIG`, or, with a `model_type`, of `ELECTRA` or
            `DISTILBERT`.

    Returns:
        The folder.
    """
    configs = {"electra": ELECTRA, "distilbert": DISTILBERT}
    fields = {**configs.get(config.get("model_type", "bert"), CONFIG), **config}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields, indent=2))
    (folder / "vocab.txt").write_text("\n".join([*vocabulary, ""]), encoding="utf-8")
    if tokenizer_config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    weights = random_weights(fields, seed)
    save_file(change(weights) if change else weights, folder / "model.safetensors")
    return folder


def random_weights(fields: Mapping[str, Any], seed: int) -> dict[str, NDArray[Any]]:
    """Return float32 weights by Hugging Face's names, large enough for each to matter."""
    generator = np.random.default_rng(seed)
    distilbert, electra = (fields["model_type"] == name for name in ("distilbert", "electra"))
    fields = {**{field: fields.get(theirs) for field, theirs in _FIELDS.items()}, **fields}
    hidden, wide = fields["hidden_size"], fields["intermediate_size"]
    narrow = fields.get("embedding_size", hidden)
    weights: dict[str, NDArray[Any]] = {}

    def normal(shape: tuple[int, ...], deviation: float, mean: float = 0.0) -> NDArray[Any]:
        return generator.normal(mean, deviation, shape).astype(np.float32)

    def dense(name: str, inputs: int, outputs: int) -> None:
        weights[f"{name}.weight"] = normal((outputs, inputs), inputs**-0.5)
        weights[f"{name}.bias"] = normal((outputs,), 0.1)

    def norm(name: str, size: int = hidden) -> None:
        weights[f"{name}.weight"] = normal((size,), 0.1, mean=1.0)
        weights[f"{name}.bias"] = normal((size,), 0.1)

    for name, rows in (
        ("word", fields["vocab_size"]),
        ("position", fields["max_position_embeddings"]),
        ("token_type", fields.get("type_vocab_size", 0)),
    ):
        if rows:
            weights[f"embeddings.{name}_embeddings.weight"] = normal((rows, narrow), 0.5)
    norm("embeddings.LayerNorm", narrow)
    if narrow != hidden:
        dense("embeddings_project", narrow, hidden)
    for index in range(fields["num_hidden_layers"]):
        layer = f"encoder.layer.{index}"
        for part in ("query", "key", "value"):
            dense(f"{layer}.attention.self.{part}", hidden, hidden)
        dense(f"{layer}.attention.output.dense", hidden, hidden)
        norm(f"{layer}.attention.output.LayerNorm")
        dense(f"{layer}.intermediate.dense", hidden, wide)
        dense(f"{layer}.output.dense", wide, hidden)
        norm(f"{layer}.output.LayerNorm")
    if distilbert:
        return {_distilbert_name(name): array for name, array in weights.items()}
    if not electra:
        dense("pooler.dense", hidden, hidden)
    return weights


def _distilbert_name(name: str) -> str:
    for ours, theirs in DISTILBERT_WEIGHTS.items():
        name = name.replace(ours, theirs)
    return name
