"""What the architectures of Hugging Face call the weights of an encoder."""

from __future__ import annotations

from typing import NamedTuple


class Names(NamedTuple):
    """What an architecture calls its weights.

    Attributes:
        title: of the architecture, for messages.
        prefix: before the names of the encoder, in a checkpoint of a task.
        parts: outside of the layers; our name: theirs.
        layer: before the names of a layer, with {} for its index.
        layer_parts: inside of a layer; our name: theirs.
        heads: what stands on top of the encoder in a checkpoint of a task, and is no part of it.
    """

    title: str
    prefix: str
    parts: dict[str, str]
    layer: str
    layer_parts: dict[str, str]
    heads: tuple[str, ...]


_BERT = Names(
    title="BERT",
    prefix="bert.",
    parts={
        "token_embedding": "embeddings.word_embeddings",
        "position_embedding": "embeddings.position_embeddings",
        "segment_embedding": "embeddings.token_type_embeddings",
        "embeddings_norm": "embeddings.LayerNorm",
        "pooler": "pooler.dense",
    },
    layer="encoder.layer.{}.",
    layer_parts={
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "attention_output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "intermediate": "intermediate.dense",
        "output": "output.dense",
        "output_norm": "output.LayerNorm",
    },
    heads=("cls.", "classifier.", "qa_outputs."),
)
NAMES = {
    "bert": _BERT,
    "electra": _BERT._replace(
        title="ELECTRA",
        prefix="electra.",
        parts={
            **{ours: theirs for ours, theirs in _BERT.parts.items() if ours != "pooler"},
            "embeddings_projection": "embeddings_project",
        },
        heads=("discriminator_predictions.", "generator_predictions.", "generator_lm_head.",
               "sequence_summary.", "classifier.", "qa_outputs."),
    ),
    "distilbert": Names(
        title="DistilBERT",
        prefix="distilbert.",
        parts={
            "token_embedding": "embeddings.word_embeddings",
            "position_embedding": "embeddings.position_embeddings",
            "embeddings_norm": "embeddings.LayerNorm",
        },
        layer="transformer.layer.{}.",
        layer_parts={
            "query": "attention.q_lin",
            "key": "attention.k_lin",
            "value": "attention.v_lin",
            "attention_output": "attention.out_lin",
            "attention_norm": "sa_layer_norm",
            "intermediate": "ffn.lin1",
            "output": "ffn.lin2",
            "output_norm": "output_layer_norm",
        },
        heads=("vocab_transform.", "vocab_layer_norm.", "vocab_projector.", "pre_classifier.",
               "classifier.", "qa_outputs."),
    ),
}  # fmt: skip
_KINDS = {"kernel": "weight", "gamma": "weight", "bias": "bias", "beta": "bias"}


def their_name(ours: str, names: Names) -> str:
    """Return what an architecture calls one of the names of `bertkit.weights.weight_shapes`."""
    part, _, kind = ours.rpartition("/")
    if not part:  # an embedding
        return f"{names.parts[ours]}.weight"
    if part in names.parts:
        return f"{names.parts[part]}.{_KINDS[kind]}"
    layer, _, part = part.partition("/")
    index = layer.removeprefix("layer_")
    return f"{names.layer.format(index)}{names.layer_parts[part]}.{_KINDS[kind]}"
