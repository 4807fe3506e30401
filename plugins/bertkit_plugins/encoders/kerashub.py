"""BERT from KerasHub: its built-in presets, and whatever folder its BertBackbone reads."""

from __future__ import annotations

import contextlib
import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from bertkit.bert import Activation, BertEncoder
from bertkit.errors import EncoderError
from bertkit.pooling import PoolingName
from bertkit.tokenizer import Vocabulary
from bertkit.weights import Weight, set_weights, weight_shapes
from bertkit_plugins.encoders.sources import PACKAGE, find_folder, read_json

_HUB = "hf://"
_KAGGLE = re.compile(r"kaggle://[^/]+/[^/]+/keras/[^/]+/\d+")
# KerasHub's BERT has no arguments for these two.
_ACTIVATION: Activation = "gelu_pytorch_tanh"
_EPSILON = 1e-12
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


def kerashub(
    source: str,
    pooling: PoolingName = "pooler",
    dropout: float | None = None,
    attention_dropout: float | None = None,
    revision: str | None = None,
) -> BertEncoder:
    """BERT with the weights of a KerasHub preset, computing what KerasHub computes.

    KerasHub's BERT always uses the GELU approximated by tanh and a layer norm epsilon of 1e-12,
    also for a Hugging Face folder whose config says otherwise; then a warning points to the
    encoder "huggingface". Text is tokenized as BERT does it: accents are removed where text is
    lowercased, which KerasHub's own tokenizer leaves in place.

    Args:
        source: a KerasHub or Hugging Face folder, "package:NAME/path" (a folder inside an
            installed Python package), a preset such as "bert_tiny_en_uncased",
            "hf://organisation/name", or "kaggle://user/model/keras/variation/version".
        pooling: what "pooled" is: "pooler", "cls", "mean", "max", "attention" or "layers"; see
            `BertEncoder`.
        dropout: instead of the preset's dropout.
        attention_dropout: instead of the preset's dropout, on the attention weights.
        revision: the commit of an hf:// source, 40 hexadecimal digits.

    Returns:
        The encoder, with the vocabulary of the preset; without one if a folder has no tokenizer.

    Raises:
        EncoderError: the preset is not to be had, is damaged, or is no BERT.
    """
    import keras_hub

    preset = _find_preset(source, revision)
    _warn_of_differences(preset)
    with _as_encoder_error(source):
        backbone = keras_hub.models.BertBackbone.from_preset(preset)
    if type(backbone) is not keras_hub.models.BertBackbone:
        raise EncoderError(
            f"{source} is a {type(backbone).__name__}, and only BertBackbone can be run. Choose "
            "a BERT preset."
        )
    encoder = BertEncoder(
        vocabulary_size=backbone.vocabulary_size,
        hidden_size=backbone.hidden_dim,
        num_layers=backbone.num_layers,
        num_heads=backbone.num_heads,
        intermediate_size=backbone.intermediate_dim,
        max_sequence_length=backbone.max_sequence_length,
        num_segments=backbone.num_segments,
        hidden_act=_ACTIVATION,
        layer_norm_epsilon=_EPSILON,
        dropout=backbone.dropout if dropout is None else dropout,
        attention_dropout=backbone.dropout if attention_dropout is None else attention_dropout,
        pooling=pooling,
    )
    set_weights(encoder, _weights(encoder, backbone), source)
    encoder.vocabulary = _read_vocabulary(source, preset)
    return encoder


def _find_preset(source: str, revision: str | None) -> str:
    """Return what KerasHub calls the preset: a folder, a built-in name, or a Kaggle handle."""
    import keras_hub

    if source.startswith(_HUB):
        # KerasHub would take whatever is newest there.
        files = ("*.json", "*.h5", "*.txt", "assets/*", "model.safetensors")
        return str(find_folder(source.removeprefix(_HUB), revision, files))
    known = source in keras_hub.models.BertBackbone.presets or _KAGGLE.fullmatch(source)
    if known and revision is None:
        return source
    if source.startswith(PACKAGE) or Path(source).expanduser().is_dir():
        return str(find_folder(source, revision, ()))
    presets = ", ".join(sorted(keras_hub.models.BertBackbone.presets))
    if known:
        raise EncoderError(
            f"revision is {revision!r}, but {source} has no revisions. Leave revision out."
        )
    if "://" in source:
        raise EncoderError(
            f"{source!r} cannot be loaded: it is no pinned source that can be read. Give "
            f"{_HUB}organisation/name with a revision, or "
            "kaggle://user/model/keras/variation/VERSION with the number of a version."
        )
    raise EncoderError(
        f"There is no folder {source!r} (relative to {Path.cwd()}), and no BERT preset of that "
        f"name. Presets: {presets}."
    )


def _warn_of_differences(preset: str) -> None:
    config = Path(preset, "config.json")
    fields = read_json(config) if config.is_file() else {}
    for name, computed in (("hidden_act", _ACTIVATION), ("layer_norm_eps", _EPSILON)):
        same = (computed, "gelu_new") if name == "hidden_act" else (computed,)
        if "model_type" in fields and fields.get(name, computed) not in same:
            warnings.warn(
                f"{config} says {name} {fields[name]!r}, but KerasHub computes {computed!r} for "
                "every BERT, and so does this encoder. For the outputs of the original model use "
                f"the encoder 'huggingface' with the source {preset!r}.",
                stacklevel=3,
            )


def _weights(encoder: BertEncoder, backbone: Any) -> dict[str, Weight]:
    variables = {variable.path: variable for variable in backbone.weights}
    weights = {}
    for ours, shape in weight_shapes(encoder).items():
        part, _, kind = ours.rpartition("/")
        if part.startswith("layer_"):
            layer, _, part = part.partition("/")
            theirs = f"transformer_{layer}/{_LAYER[part]}/{kind}"
        else:
            theirs = f"{_PARTS[part]}/{kind}" if part else _PARTS[ours]
        # Attention kernels are (H, heads, width) there, or (heads, width, H).
        weights[ours] = Weight(theirs, partial(_read, variables[theirs], shape))
    return weights


def _read(variable: Any, shape: tuple[int, ...]) -> Any:
    return variable.numpy().reshape(shape)


def _read_vocabulary(source: str, preset: str) -> Vocabulary | None:
    import keras_hub

    folder = Path(preset)
    if folder.is_dir() and not any(
        (folder / name).exists() for name in ("tokenizer.json", "vocab.txt")
    ):
        return None
    with _as_encoder_error(source):
        tokenizer = keras_hub.models.BertTokenizer.from_preset(preset)
        pieces, lowercase = tuple(tokenizer.vocabulary), bool(tokenizer.lowercase)
    return Vocabulary(pieces, lowercase=lowercase)


@contextlib.contextmanager
def _as_encoder_error(source: str) -> Any:
    """Turn whatever KerasHub raises for a source into one line."""
    try:
        yield
    except Exception as error:
        cause = " ".join(str(error).split())[:300]
        raise EncoderError(
            f"KerasHub cannot load {source!r} ({type(error).__name__}: {cause}). A folder must "
            "hold a complete BERT preset; a preset's name needs a network, or an earlier "
            "download in its cache."
        ) from error
