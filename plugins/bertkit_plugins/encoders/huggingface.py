"""BERT from a Hugging Face folder: config.json, safetensors and the tokenizer's files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from bertkit.bert import BertEncoder
from bertkit.errors import EncoderError
from bertkit.pooling import PoolingName
from bertkit.weights import Weight, set_weights, weight_shapes
from bertkit_plugins.encoders.choices import choose_pooling
from bertkit_plugins.encoders.huggingface_config import read_config
from bertkit_plugins.encoders.huggingface_names import NAMES, Names, their_name
from bertkit_plugins.encoders.huggingface_vocabulary import read_vocabulary
from bertkit_plugins.encoders.huggingface_weights import Read, open_weights
from bertkit_plugins.encoders.sources import find_folder

_FILES = (
    "added_tokens.json",
    "config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


def huggingface(
    source: str,
    pooling: PoolingName | None = None,
    dropout: float | None = None,
    attention_dropout: float | None = None,
    revision: str | None = None,
) -> BertEncoder:
    """BERT, DistilBERT or ELECTRA with the weights of a Hugging Face folder or hub id.

    The weights are safetensors, in one file or in several; those of a task's head are left out.
    While it trains, DistilBERT gets the dropout of BERT, which falls on the attention's output
    too (Sanh et al. 2019, https://arxiv.org/abs/1910.01108, has none there).

    Args:
        source: a local folder, "package:NAME/path" (a folder inside an installed Python
            package), or a hub id such as "google-bert/bert-base-uncased".
        pooling: what "pooled" is: "pooler", "cls", "mean", "max", "attention" or "layers"; see
            `BertEncoder`. By default "pooler", or "cls" where the model has no pooler.
        dropout: instead of the config's.
        attention_dropout: instead of the config's, on the attention weights.
        revision: the commit of a hub id, 40 hexadecimal digits.

    Returns:
        The encoder, with the vocabulary of the folder.

    Raises:
        EncoderError: a file is missing or damaged, or the model is none that can be run exactly.
    """
    folder = find_folder(source, revision, _FILES)
    kind, arguments, padding_id = read_config(folder / "config.json")
    if dropout is not None:
        arguments["dropout"] = dropout
    if attention_dropout is not None:
        arguments["attention_dropout"] = attention_dropout
    vocabulary = read_vocabulary(folder, padding_id)
    names = NAMES[kind]
    with open_weights(folder) as (path, reads):
        held = _base_names(reads, names.prefix, path)
        pooler = names.parts.get("pooler")
        has_pooler = pooler is not None and any(name.startswith(pooler) for name in held)
        pooling = choose_pooling(pooling, has_pooler, str(path))
        try:
            encoder = BertEncoder(**arguments, pooling=pooling)
            encoder.vocabulary = vocabulary
        except EncoderError as error:
            raise EncoderError(f"{folder}: {error}") from error
        set_weights(encoder, _weights(encoder, names, reads, held, path), str(path))
    return encoder


def _base_names(names: Iterable[str], prefix: str, path: Path) -> dict[str, str]:
    """Return the name in the file of each weight of the base model, by its name there."""
    held: dict[str, str] = {}
    for name in names:
        base = name.removeprefix(prefix)
        for old, new in (
            ("LayerNorm.gamma", "LayerNorm.weight"),
            ("LayerNorm.beta", "LayerNorm.bias"),
        ):
            base = base.replace(old, new)
        if base in held:
            raise EncoderError(
                f"{path} holds both {held[base]!r} and {name!r}, which are one weight of the "
                "encoder. Take the file from the original model again."
            )
        held[base] = name
    return held


def _weights(
    encoder: BertEncoder, names: Names, reads: Mapping[str, Read], held: dict[str, str], path: Path
) -> dict[str, Weight]:
    """Match the file's names with the encoder's, one to one."""
    left = dict(held)
    weights = {}
    for ours in weight_shapes(encoder):
        theirs = their_name(ours, names)
        if theirs not in left:
            raise EncoderError(
                f"{path} lacks the weight {theirs!r}. Take config.json and the weights from the "
                "same model."
            )
        name = left.pop(theirs)
        weights[ours] = Weight(name, reads[name], transposed=ours.endswith("/kernel"))
    skipped = [*names.heads, "embeddings.position_ids"]
    if "pooler" in names.parts and encoder.pooling != "pooler":
        skipped.append(names.parts["pooler"])
    unknown = sorted(name for base, name in left.items() if not base.startswith(tuple(skipped)))
    if unknown:
        raise EncoderError(
            f"{path} holds {unknown[0]!r}, which a {names.title} of {encoder.num_layers} layers "
            f"does not have ({len(unknown)} such in all). Take config.json and the weights from "
            "the same model."
        )
    return weights
