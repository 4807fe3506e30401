"""BERT, DistilBERT and ELECTRA from KerasHub: presets, and whatever folder its backbones read."""

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
from bertkit_plugins.encoders.choices import choose_pooling
from bertkit_plugins.encoders.kerashub_names import MODELS, their_name
from bertkit_plugins.encoders.sources import PACKAGE, find_folder, read_json

_HUB = "hf://"
_KAGGLE = re.compile(r"kaggle://[^/]+/[^/]+/keras/[^/]+/\d+")
_EPSILON = 1e-12


def kerashub(
    source: str,
    pooling: PoolingName | None = None,
    dropout: float | None = None,
    attention_dropout: float | None = None,
    revision: str | None = None,
) -> BertEncoder:
    """BERT, DistilBERT or ELECTRA with the weights of a KerasHub preset, computed as there.

    KerasHub's BERT and ELECTRA always use the GELU approximated by tanh, its DistilBERT the exact
    one, and all a layer norm epsilon of 1e-12, also for a Hugging Face folder whose config says
    otherwise; then a warning points to the encoder "huggingface". Text is tokenized as BERT does
    it: accents are removed where text is lowercased, which KerasHub's own tokenizer leaves in
    place.

    Args:
        source: a KerasHub or Hugging Face folder, "package:NAME/path" (a folder inside an
            installed Python package), a preset such as "bert_tiny_en_uncased",
            "hf://organisation/name", or "kaggle://user/model/keras/variation/version".
        pooling: what "pooled" is: "pooler", "cls", "mean", "max", "attention" or "layers"; see
            `BertEncoder`. By default "pooler", or "cls" for DistilBERT, which has none.
        dropout: instead of the preset's dropout.
        attention_dropout: instead of the preset's dropout, on the attention weights.
        revision: the commit of an hf:// source, 40 hexadecimal digits.

    Returns:
        The encoder, with the vocabulary of the preset; without one if a folder has no tokenizer.

    Raises:
        EncoderError: the preset is not to be had, is damaged, or is no such model.
    """
    import keras_hub

    preset = _find_preset(source, revision)
    with _as_encoder_error(source):
        backbone = keras_hub.models.Backbone.from_preset(preset)
    name = type(backbone).__name__
    if name not in MODELS or type(backbone) is not getattr(keras_hub.models, name):
        raise EncoderError(
            f"{source} is a {name}, and only {', '.join(MODELS)} can be run. Choose a preset of "
            "one of these."
        )
    model = MODELS[name]
    _warn_of_differences(preset, model.activation)
    sizes = backbone.get_config()
    encoder = BertEncoder(
        vocabulary_size=sizes["vocab_size" if "vocab_size" in sizes else "vocabulary_size"],
        hidden_size=sizes["hidden_dim"],
        num_layers=sizes["num_layers"],
        num_heads=sizes["num_heads"],
        intermediate_size=sizes["intermediate_dim"],
        max_sequence_length=sizes["max_sequence_length"],
        num_segments=sizes.get("num_segments", 0),
        hidden_act=model.activation,
        layer_norm_epsilon=_EPSILON,
        dropout=sizes["dropout"] if dropout is None else dropout,
        attention_dropout=sizes["dropout"] if attention_dropout is None else attention_dropout,
        pooling=choose_pooling(pooling, "pooler" in model.parts, source),
        embedding_size=sizes.get("embedding_dim"),
    )
    set_weights(encoder, _weights(encoder, backbone, model.parts), source)
    encoder.vocabulary = _read_vocabulary(source, preset, model.tokenizer)
    return encoder


def _find_preset(source: str, revision: str | None) -> str:
    """Return what KerasHub calls the preset: a folder, a built-in name, or a Kaggle handle."""
    import keras_hub

    if source.startswith(_HUB):
        # KerasHub would take whatever is newest there.
        files = ("*.json", "*.h5", "*.txt", "assets/*", "model.safetensors")
        return str(find_folder(source.removeprefix(_HUB), revision, files))
    presets = sorted(
        preset for name in MODELS for preset in getattr(keras_hub.models, name).presets
    )
    known = source in presets or _KAGGLE.fullmatch(source)
    if known and revision is None:
        return source
    # "" would be the current folder.
    if source.startswith(PACKAGE) or (source and Path(source).expanduser().is_dir()):
        return str(find_folder(source, revision, ()))
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
        f"name. Presets: {', '.join(presets)}."
    )


def _warn_of_differences(preset: str, activation: Activation) -> None:
    config = Path(preset, "config.json")
    fields = read_json(config) if config.is_file() else {}
    if "model_type" not in fields:
        return
    same = {"gelu_pytorch_tanh": ("gelu_pytorch_tanh", "gelu_new")}.get(activation, (activation,))
    for name, computed in (
        ("hidden_act", same), ("activation", same), ("layer_norm_eps", (_EPSILON,))
    ):  # fmt: skip
        if fields.get(name, computed[0]) not in computed:
            warnings.warn(
                f"{config} says {name} {fields[name]!r}, but KerasHub computes {computed[0]!r} "
                "for every such model, and so does this encoder. For the outputs of the original "
                f"model use the encoder 'huggingface' with the source {preset!r}.",
                stacklevel=3,
            )


def _weights(encoder: BertEncoder, backbone: Any, parts: dict[str, str]) -> dict[str, Weight]:
    variables = {variable.path: variable for variable in backbone.weights}
    weights = {}
    for ours, shape in weight_shapes(encoder).items():
        theirs = their_name(ours, parts)
        # Attention kernels are (H, heads, width) there, or (heads, width, H).
        weights[ours] = Weight(theirs, partial(_read, variables[theirs], shape))
    return weights


def _read(variable: Any, shape: tuple[int, ...]) -> Any:
    return variable.numpy().reshape(shape)


def _read_vocabulary(source: str, preset: str, tokenizer_class: str) -> Vocabulary | None:
    import keras_hub

    folder = Path(preset)
    if folder.is_dir() and not any(
        (folder / name).exists() for name in ("tokenizer.json", "vocab.txt")
    ):
        return None
    with _as_encoder_error(source):
        tokenizer = getattr(keras_hub.models, tokenizer_class).from_preset(preset)
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
