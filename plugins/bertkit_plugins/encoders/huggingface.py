"""BERT from a Hugging Face folder: config.json, model.safetensors and the tokenizer's files."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bertkit.bert import BertEncoder
from bertkit.errors import EncoderError
from bertkit.pooling import PoolingName
from bertkit.weights import Weight, set_weights, weight_shapes
from bertkit_plugins.encoders.huggingface_config import read_config
from bertkit_plugins.encoders.huggingface_vocabulary import read_vocabulary
from bertkit_plugins.encoders.sources import find_folder

_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
# Our name: theirs.
_EMBEDDINGS = {
    "token_embedding": "embeddings.word_embeddings",
    "position_embedding": "embeddings.position_embeddings",
    "segment_embedding": "embeddings.token_type_embeddings",
    "embeddings_norm": "embeddings.LayerNorm",
    "pooler": "pooler.dense",
}
_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
}
# What stands on top of BERT in a checkpoint of a task; it is no part of the encoder.
_HEADS = ("cls.", "classifier.", "qa_outputs.")
_FLOATS = ("F16", "BF16", "F32", "F64")


def huggingface(
    source: str,
    pooling: PoolingName = "pooler",
    dropout: float | None = None,
    attention_dropout: float | None = None,
    revision: str | None = None,
) -> BertEncoder:
    """BERT with the weights of a Hugging Face folder or hub id (safetensors).

    Args:
        source: a local folder, "package:NAME/path" (a folder inside an installed Python
            package), or a hub id such as "google-bert/bert-base-uncased".
        pooling: what "pooled" is: "pooler", "cls", "mean", "max", "attention" or "layers"; see
            `BertEncoder`.
        dropout: instead of the config's hidden_dropout_prob.
        attention_dropout: instead of the config's attention_probs_dropout_prob.
        revision: the commit of a hub id, 40 hexadecimal digits.

    Returns:
        The encoder, with the vocabulary of the folder.

    Raises:
        EncoderError: a file is missing or damaged, or the model is no BERT that can be run
            exactly.
    """
    folder = find_folder(source, revision, _FILES)
    arguments, padding_id = read_config(folder / "config.json")
    if dropout is not None:
        arguments["dropout"] = dropout
    if attention_dropout is not None:
        arguments["attention_dropout"] = attention_dropout
    vocabulary = read_vocabulary(folder, padding_id)
    weights = _find_weights(folder)
    try:
        encoder = BertEncoder(**arguments, pooling=pooling)
        encoder.vocabulary = vocabulary
    except EncoderError as error:
        raise EncoderError(f"{folder}: {error}") from error
    _fill(encoder, weights)
    return encoder


def _find_weights(folder: Path) -> Path:
    path = folder / "model.safetensors"
    if path.is_file():
        return path
    if (folder / "model.safetensors.index.json").exists():
        raise EncoderError(
            f"{folder} holds its weights in several files (model.safetensors.index.json), which "
            "are not read yet. Merge them where transformers is installed: "
            "AutoModel.from_pretrained(FOLDER).save_pretrained(NEW, max_shard_size='50GB')."
        )
    if (folder / "pytorch_model.bin").exists():
        raise EncoderError(
            f"{folder} holds its weights as pytorch_model.bin only, a pickle, which can run code "
            "when it is read. Convert it where transformers is installed: "
            "AutoModel.from_pretrained(FOLDER).save_pretrained(NEW)."
        )
    held = sorted(child.name for child in folder.iterdir() if child.is_file())
    raise EncoderError(
        f"{folder} has no model.safetensors. It holds: {', '.join(held[:10]) or 'no file'}. "
        "Copy the file from the original model."
    )


def _fill(encoder: BertEncoder, path: Path) -> None:
    import safetensors

    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            set_weights(encoder, _weights(encoder, file, path), str(path))
    except (safetensors.SafetensorError, OSError) as error:
        raise EncoderError(
            f"{path} cannot be read ({error}). It is damaged, or only a part of it: copy or "
            "download it again."
        ) from error


def _weights(encoder: BertEncoder, file: Any, path: Path) -> dict[str, Weight]:
    """Match the file's names with the encoder's, one to one."""
    held: dict[str, str] = {}  # the base model's name: the name in the file
    for name in file.keys():  # noqa: SIM118 - it is no mapping
        base = name.removeprefix("bert.")
        for old, new in (
            ("LayerNorm.gamma", "LayerNorm.weight"),
            ("LayerNorm.beta", "LayerNorm.bias"),
        ):
            base = base.replace(old, new)
        if base in held:
            raise EncoderError(
                f"{path} holds both {held[base]!r} and {name!r}, which are one weight of BERT. "
                "Take the file from the original model again."
            )
        held[base] = name
    weights = {}
    for ours, theirs, transposed in _names(encoder):
        if theirs not in held:
            raise EncoderError(_missing(theirs, path))
        name = held.pop(theirs)
        dtype = file.get_slice(name).get_dtype()
        if dtype not in _FLOATS:
            raise EncoderError(
                f"{name!r} of {path} holds {dtype}, not one of {', '.join(_FLOATS)}: a quantized "
                "model cannot be fine-tuned. Take the original one."
            )
        weights[ours] = Weight(name, partial(file.get_tensor, name), transposed)
    skipped = (
        *_HEADS,
        "embeddings.position_ids",
        *(["pooler."] if encoder.pooling != "pooler" else []),
    )
    unknown = sorted(name for base, name in held.items() if not base.startswith(skipped))
    if unknown:
        raise EncoderError(
            f"{path} holds {unknown[0]!r}, which a BERT of {encoder.num_layers} layers does not "
            f"have ({len(unknown)} such in all). Take config.json and the weights from the same "
            "model."
        )
    return weights


def _names(encoder: BertEncoder) -> Iterator[tuple[str, str, bool]]:
    """Yield our name, theirs, and whether theirs is transposed, for each weight."""
    kinds = {"kernel": "weight", "gamma": "weight", "bias": "bias", "beta": "bias"}
    for ours in weight_shapes(encoder):
        part, _, kind = ours.rpartition("/")
        if not part:  # an embedding
            yield ours, f"{_EMBEDDINGS[ours]}.weight", False
        elif part in _EMBEDDINGS:
            yield ours, f"{_EMBEDDINGS[part]}.{kinds[kind]}", kind == "kernel"
        else:
            layer, _, part = part.partition("/")
            index = layer.removeprefix("layer_")
            yield ours, f"encoder.layer.{index}.{_LAYER[part]}.{kinds[kind]}", kind == "kernel"


def _missing(name: str, path: Path) -> str:
    if name.startswith("pooler."):
        return (
            f"{path} holds no pooler ({name!r}), which the pooling 'pooler' reads. Use "
            "another pooling, such as 'cls' or 'mean'."
        )
    return (
        f"{path} lacks the weight {name!r}. Take config.json and the weights from the same model."
    )
