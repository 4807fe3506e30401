"""A Hugging Face config.json: every field honoured, known to be harmless, or refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from bertkit.errors import EncoderError
from bertkit_plugins.encoders.sources import read_json

# Their name: ours.
_SIZES = {
    "vocab_size": "vocabulary_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_sequence_length",
    "type_vocab_size": "num_segments",
}
_NUMBERS = {
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "layer_norm_eps": "layer_norm_epsilon",
    "initializer_range": "initializer_range",
}
# What the field means where it is absent; sizes have no default, lest a wrong one fit by chance.
_DEFAULTS: dict[str, Any] = {
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
    "pad_token_id": 0,
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
# None of these changes what the encoder computes. A head's own dropout is set on the head, and
# feeding the feed-forward network in chunks gives the same numbers.
_BOOKKEEPING = frozenset((
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_name_or_path",
    "_num_labels", "architectures", "bos_token_id", "chunk_size_feed_forward",
    "classifier_dropout", "cross_attention_hidden_size", "decoder_start_token_id", "dtype",
    "eos_token_id", "finetuning_task", "gradient_checkpointing", "id2label", "label2id",
    "max_length", "model_name", "model_type", "name_or_path", "num_labels", "output_attentions",
    "output_hidden_states", "output_past", "pooler_fc_size", "pooler_num_attention_heads",
    "pooler_num_fc_layers", "pooler_size_per_head", "prefix", "problem_type", "return_dict",
    "sep_token_id", "task_specific_params", "tf_legacy_loss", "tie_encoder_decoder",
    "tie_word_embeddings", "tokenizer_class", "torch_dtype", "torchscript",
    "transformers_version", "transformers.js_config", "use_bfloat16", "use_cache",
))  # fmt: skip


def read_config(path: Path) -> tuple[dict[str, Any], int | None]:
    """Read a config.json.

    Returns:
        The arguments of `BertEncoder` that it asks for, and the id of the padding token.

    Raises:
        EncoderError: it is no BERT, or a field has a value that bertkit does not compute.
    """
    fields = read_json(path)
    if fields.get("model_type") != "bert":
        raise EncoderError(
            f"{path}: model_type is {fields.get('model_type')!r}, and only 'bert' can be run. "
            "Choose a BERT; the name of a model does not always tell."
        )
    _refuse(fields, path)
    arguments: dict[str, Any] = {}
    for name, argument in _SIZES.items():
        arguments[argument] = _value(fields, name, path)
    for name, argument in _NUMBERS.items():
        value = _value(fields, name, path, number=True)
        if not (math.isfinite(value) and value >= 0):
            raise EncoderError(f"{path}: {name} is {value}; it must be finite and not negative.")
        arguments[argument] = float(value)
    arguments["hidden_act"] = fields.get("hidden_act", _DEFAULTS["hidden_act"])
    if not isinstance(arguments["hidden_act"], str):
        raise EncoderError(
            f"{path}: hidden_act is {arguments['hidden_act']!r}; it must be the name of an "
            "activation, such as 'gelu'."
        )
    if fields.get("pad_token_id", 0) is None:
        return arguments, None
    return arguments, _value(fields, "pad_token_id", path)


def _refuse(fields: dict[str, Any], path: Path) -> None:
    honoured = {*_SIZES, *_NUMBERS, "hidden_act", "pad_token_id"}
    for name, value in fields.items():
        if name in honoured or name in _BOOKKEEPING:
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


def _value(fields: dict[str, Any], name: str, path: Path, number: bool = False) -> Any:
    value = fields.get(name, _DEFAULTS.get(name))
    if value is None:
        raise EncoderError(
            f"{path}: {name} is missing. Take the file from the original model again."
        )
    if type(value) is not int and not (number and type(value) is float):
        raise EncoderError(
            f"{path}: {name} is {value!r}; it must be {'a number' if number else 'an integer'}."
        )
    return value
