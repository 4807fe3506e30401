"""A Hugging Face config.json: every field honoured, known to be harmless, or refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bertkit.errors import EncoderError
from bertkit_plugins.encoders.sources import read_json

# Their name: ours.
BERT: dict[str, str] = {
    "vocab_size": "vocabulary_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_sequence_length",
    "type_vocab_size": "num_segments",
    "hidden_act": "hidden_act",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "layer_norm_eps": "layer_norm_epsilon",
    "initializer_range": "initializer_range",
}
_ARCHITECTURES: dict[str, dict[str, str]] = {
    "bert": BERT,
    "electra": {**BERT, "embedding_size": "embedding_size"},
    "distilbert": {
        "vocab_size": "vocabulary_size",
        "dim": "hidden_size",
        "n_layers": "num_layers",
        "n_heads": "num_heads",
        "hidden_dim": "intermediate_size",
        "max_position_embeddings": "max_sequence_length",
        "activation": "hidden_act",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "initializer_range": "initializer_range",
    },
}
# What an architecture has no field for.
_IMPLIED: dict[str, dict[str, Any]] = {
    "distilbert": {"num_segments": 0, "layer_norm_epsilon": 1e-12}
}
_NUMBERS = ("dropout", "attention_dropout", "layer_norm_epsilon", "initializer_range")
# By our names: what an absent field means. Sizes have no default, lest a wrong one fit by chance.
_DEFAULTS: dict[str, Any] = {
    "num_segments": 2,
    "hidden_act": "gelu",
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "layer_norm_epsilon": 1e-12,
    "initializer_range": 0.02,
}
# The only values that bertkit's BERT computes; absent means the first.
_FIXED: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "pruned_heads": ({}, None),
    "directionality": ("bidi", None),
    "pooler_type": ("first_token_transform", None),
}
# None of these changes what the encoder computes. A head's own dropout is set on the head,
# feeding the feed-forward network in chunks gives the same numbers, and sinusoidal positions are
# in the file with the other weights.
_BOOKKEEPING = frozenset((
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_name_or_path",
    "_num_labels", "architectures", "bos_token_id", "chunk_size_feed_forward",
    "classifier_dropout", "cross_attention_hidden_size", "decoder_start_token_id", "dtype",
    "eos_token_id", "finetuning_task", "gradient_checkpointing", "id2label", "label2id",
    "max_length", "model_name", "model_type", "name_or_path", "num_labels", "output_attentions",
    "output_hidden_states", "output_past", "pooler_fc_size", "pooler_num_attention_heads",
    "pooler_num_fc_layers", "pooler_size_per_head", "prefix", "problem_type", "qa_dropout",
    "return_dict", "sep_token_id", "seq_classif_dropout", "sinusoidal_pos_embds",
    "summary_activation", "summary_last_dropout", "summary_type", "summary_use_proj",
    "task_specific_params", "tf_legacy_loss", "tie_encoder_decoder", "tie_weights_",
    "tie_word_embeddings", "tokenizer_class", "torch_dtype", "torchscript",
    "transformers_version", "transformers.js_config", "use_bfloat16", "use_cache",
))  # fmt: skip


def read_config(path: Path) -> tuple[str, dict[str, Any], int | None]:
    """Read a config.json.

    Returns:
        The architecture ("bert", "electra" or "distilbert"), the arguments of `BertEncoder` that
        it asks for, and the id of the padding token.

    Raises:
        EncoderError: it is no such model, or a field has a value that bertkit does not compute.
    """
    fields = read_json(path)
    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in _ARCHITECTURES:
        why = "RoBERTa splits text by byte-level BPE, not WordPiece. " if kind == "roberta" else ""
        raise EncoderError(
            f"{path}: model_type is {kind!r}, and only 'bert', 'distilbert' and 'electra' can be "
            f"run. {why}Choose one of these; the name of a model does not always tell."
        )
    padding_id = fields.pop("pad_token_id", 0)
    if padding_id is not None:
        _check_type("pad_token_id", padding_id, int, path)
    arguments = read_arguments(fields, path, _ARCHITECTURES[kind])
    return kind, {**arguments, **_IMPLIED.get(kind, {})}, padding_id


def read_arguments(fields: Mapping[str, Any], path: Path, names: dict[str, str]) -> dict[str, Any]:
    """Return the arguments of `BertEncoder` that the fields of a config ask for.

    Args:
        fields: of the config.
        path: of the config, for messages.
        names: the field of each argument, by the field's name.

    Raises:
        EncoderError: a field is missing, of a wrong type, or asks for what bertkit does not
            compute.
    """
    _refuse(fields, names, path)
    arguments: dict[str, Any] = {}
    for name, argument in names.items():
        value = fields.get(name, _DEFAULTS.get(argument))
        if value is None:
            raise EncoderError(
                f"{path}: {name} is missing. Take the file from the original model again."
            )
        wanted = str if argument == "hidden_act" else float if argument in _NUMBERS else int
        _check_type(name, value, wanted, path)
        if wanted is float and not (math.isfinite(value) and value >= 0):
            raise EncoderError(f"{path}: {name} is {value}; it must be finite and not negative.")
        arguments[argument] = wanted(value)
    return arguments


def _refuse(fields: Mapping[str, Any], names: dict[str, str], path: Path) -> None:
    for name, value in fields.items():
        if name in names or name in _BOOKKEEPING:
            continue
        if name in _FIXED:
            if value not in _FIXED[name]:
                raise EncoderError(
                    f"{path}: {name} is {value!r}, and bertkit's BERT computes only "
                    f"{_FIXED[name][0]!r}. Choose a model without it."
                )
        elif value is not None and value is not False and value not in ({}, [], ""):
            raise EncoderError(
                f"{path}: {name} is {value!r}, a field that bertkit does not know, so the model "
                "may compute something else than BERT. If you know that it does not, remove the "
                "field from config.json."
            )


def _check_type(name: str, value: Any, wanted: type, path: Path) -> None:
    """Refuse another type; an integer is a number too, but a boolean is neither."""
    if type(value) is wanted or (wanted is float and type(value) is int):
        return
    what = {
        str: "the name of an activation, such as 'gelu'",
        float: "a number",
        int: "an integer",
    }[wanted]
    raise EncoderError(f"{path}: {name} is {value!r}; it must be {what}.")
