"""A KerasHub preset: a BertBackbone and its BertTokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bertkit.bert import BertEncoder
from bertkit.classifier import BertClassifier
from bertkit.errors import ExportError
from bertkit.exporting.parts import in_float32, plain_bert, random_batch
from bertkit.tokenizer import Vocabulary
from bertkit.weights import get_weights

# What KerasHub's BERT computes, whatever its preset says.
_ACTIVATIONS = ("gelu_pytorch_tanh", "gelu_new")
_EPSILON = 1e-12
_SPECIAL = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
# Our name: theirs.
_PARTS = {
    "token_embedding": "token_embedding/embeddings",
    "position_embedding": "position_embedding/embeddings",
    "segment_embedding": "segment_embedding/embeddings",
    "embeddings_norm": "embeddings_layer_norm",
    "pooler": "pooled_dense",
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


def write_kerashub(
    model: BertClassifier, folder: Path, allow_approximation: bool = False
) -> list[str]:
    """Write the preset.

    Raises:
        ExportError: KerasHub cannot compute what the encoder computes, and is not to come near
            it either; or has no place for its special tokens.
    """
    encoder = plain_bert(model, "KerasHub")
    exact = encoder.hidden_act in _ACTIVATIONS and encoder.layer_norm_epsilon == _EPSILON
    if not exact and encoder.hidden_act not in (*_ACTIVATIONS, "gelu"):
        raise ExportError(
            f"The encoder's hidden_act is {encoder.hidden_act!r}, and KerasHub's BERT computes "
            "GELU only. Choose the format huggingface or tfhub."
        )
    vocabulary = encoder.vocabulary
    if vocabulary is not None:
        _check_special(vocabulary)
    backbone = _backbone(encoder)
    notes = ["Wrote a preset for keras_hub.models.BertBackbone."]
    if not exact:
        difference = _difference(encoder, backbone)
        if not allow_approximation:
            raise ExportError(_refusal(encoder, difference))
        notes.append(f"{_approximation(encoder, difference)}.")
    if encoder.dropout != encoder.attention_dropout:
        notes.append(
            f"In training it drops {encoder.dropout} of the attention weights too, where this "
            f"encoder drops {encoder.attention_dropout}: KerasHub has one rate."
        )
    backbone.save_to_preset(str(folder))
    if vocabulary is None:
        notes.append("There is no tokenizer: the encoder has no vocabulary.")
    else:
        _tokenizer(vocabulary).save_to_preset(str(folder))
    head = f"The head {type(model.head).__name__} is left out"
    if encoder.pooling == "pooler":
        return [*notes, f"{head}."]
    return [
        *notes,
        f"{head}, and so is the pooling {encoder.pooling!r}: KerasHub has a pooler only, whose "
        "weights are zeros here. Read sequence_output.",
    ]


def _backbone(encoder: BertEncoder) -> Any:
    import keras_hub

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=encoder.vocabulary_size,
        num_layers=encoder.num_layers,
        num_heads=encoder.num_heads,
        hidden_dim=encoder.hidden_size,
        intermediate_dim=encoder.intermediate_size,
        dropout=encoder.dropout,
        max_sequence_length=encoder.max_sequence_length,
        num_segments=encoder.num_segments,
        dtype="float32",
    )
    arrays = {_their_name(name): array for name, array in get_weights(encoder).items()}
    for variable in backbone.weights:
        # Attention kernels are (H, heads, width) there, or (heads, width, H).
        array = arrays.pop(variable.path, None)
        assert array is not None or variable.path.startswith("pooled_dense/"), variable.path
        variable.assign(
            np.zeros(variable.shape) if array is None else array.reshape(variable.shape)
        )
    assert not arrays, f"KerasHub's BertBackbone has no {', '.join(arrays)}"
    return backbone


def _difference(encoder: BertEncoder, backbone: Any) -> float:
    """Return how far the features of tokens are apart, at most, on random ids."""
    exact = in_float32(encoder)
    exact.set_weights([variable.numpy() for variable in encoder.weights])
    batch = random_batch(encoder)
    ours = exact(batch, reads=("sequence",))["sequence"]
    theirs = backbone(batch)["sequence_output"]
    mask = np.asarray(batch["padding_mask"])[:, :, None]
    return float(np.max(np.abs(np.asarray(ours) - np.asarray(theirs)) * mask))


def _approximation(encoder: BertEncoder, difference: float) -> str:
    return (
        "KerasHub computes every BERT with the GELU approximated by tanh and a layer norm epsilon "
        f"of {_EPSILON}, this encoder with {encoder.hidden_act!r} and "
        f"{encoder.layer_norm_epsilon}: on random token ids its features are off by up to "
        f"{difference:.1e}"
    )


def _refusal(encoder: BertEncoder, difference: float) -> str:
    return (
        f"{_approximation(encoder, difference)}. Choose the format huggingface or tfhub, which are "
        "exact, or accept the difference: --allow-approximation, or allow_approximation=True in "
        "Python."
    )


def _check_special(vocabulary: Vocabulary) -> None:
    roles = (vocabulary.unknown_token, vocabulary.start_token, vocabulary.separator_token,
             vocabulary.padding_token, vocabulary.mask_token)  # fmt: skip
    there = [token for token in roles if token in vocabulary.tokens]  # there may be no mask
    if there != list(_SPECIAL):
        raise ExportError(
            f"KerasHub's BertTokenizer needs the special tokens {', '.join(_SPECIAL)}, and this "
            f"vocabulary has {', '.join(there)}. Choose the format huggingface or tfhub."
        )


def _tokenizer(vocabulary: Vocabulary) -> Any:
    import keras_hub

    strip = vocabulary.lowercase if vocabulary.strip_accents is None else vocabulary.strip_accents
    return keras_hub.models.BertTokenizer(
        list(vocabulary.tokens), lowercase=vocabulary.lowercase, strip_accents=strip
    )


def _their_name(name: str) -> str:
    part, _, kind = name.rpartition("/")
    if not part:  # an embedding
        return _PARTS[name]
    if part in _PARTS:
        return f"{_PARTS[part]}/{kind}"
    layer, _, part = part.partition("/")
    return f"transformer_{layer}/{_LAYER[part]}/{kind}"
