"""What KerasHub's backbones compute, and what they call their weights."""

from __future__ import annotations

from typing import NamedTuple

from bertkit.bert import Activation


class Model(NamedTuple):
    """What bertkit knows of a backbone.

    Attributes:
        tokenizer: its class in `keras_hub.models`.
        activation: what it computes; it has no argument for this.
        parts: outside of the layers; our name of a weight: theirs.
    """

    tokenizer: str
    activation: Activation
    parts: dict[str, str]


_BERT = Model(
    tokenizer="BertTokenizer",
    activation="gelu_pytorch_tanh",
    parts={
        "token_embedding": "token_embedding/embeddings",
        "position_embedding": "position_embedding/embeddings",
        "segment_embedding": "segment_embedding/embeddings",
        "embeddings_norm": "embeddings_layer_norm",
        "pooler": "pooled_dense",
    },
)
# By the name of the class in `keras_hub.models`.
MODELS = {
    "BertBackbone": _BERT,
    "ElectraBackbone": _BERT._replace(
        tokenizer="ElectraTokenizer",
        parts={**_BERT.parts, "embeddings_projection": "embeddings_projection"},
    ),
    "DistilBertBackbone": Model(
        tokenizer="DistilBertTokenizer",
        activation="gelu",
        parts={
            "token_embedding": "token_and_position_embedding/token_embedding/embeddings",
            "position_embedding": "token_and_position_embedding/position_embedding/embeddings",
            "embeddings_norm": "embeddings_layer_norm",
        },
    ),
}
_LAYER = {
    "query": "self_attention_layer/query",
    "key": "self_attention_layer/key",
    "value": "self_attention_layer/value",
    "attention_output": "self_attention_layer/attention_output",
    "attention_norm": "self_attention_layer_norm",
    "intermediate": "feedforward_intermediate_dense",
    "output": "feedforward_output_dense",
    "output_norm": "feedforward_layer_norm",
}


def their_name(ours: str, parts: dict[str, str]) -> str:
    """Return what a backbone calls one of the names of `bertkit.weights.weight_shapes`."""
    part, _, kind = ours.rpartition("/")
    if not part:  # an embedding
        return parts[ours]
    if part in parts:
        return f"{parts[part]}/{kind}"
    layer, _, part = part.partition("/")
    return f"transformer_{layer}/{_LAYER[part]}/{kind}"
