"""BERT from one of Google's original releases: a TensorFlow 1 checkpoint and its config."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import tensorflow as tf

from bertkit.bert import BertEncoder
from bertkit.errors import EncoderError
from bertkit.pooling import PoolingName
from bertkit.tokenizer import Vocabulary
from bertkit.weights import Weight, set_weights, weight_shapes
from bertkit_plugins.encoders.choices import capitals, choose_pooling
from bertkit_plugins.encoders.huggingface_config import BERT, read_arguments
from bertkit_plugins.encoders.sources import PACKAGE, find_folder, read_json

# Google's program has no field for this one.
_EPSILON = 1e-12
_FIELDS = {name: argument for name, argument in BERT.items() if name != "layer_norm_eps"}
# Its "gelu" is the approximation by tanh.
_ACTIVATIONS = {"gelu": "gelu_pytorch_tanh", "relu": "relu", "tanh": "tanh"}
# Our name: theirs.
_PARTS = {
    "token_embedding": "bert/embeddings/word_embeddings",
    "position_embedding": "bert/embeddings/position_embeddings",
    "segment_embedding": "bert/embeddings/token_type_embeddings",
    "embeddings_norm": "bert/embeddings/LayerNorm",
    "pooler": "bert/pooler/dense",
}
_LAYER = {
    "query": "attention/self/query",
    "key": "attention/self/key",
    "value": "attention/self/value",
    "attention_output": "attention/output/dense",
    "attention_norm": "attention/output/LayerNorm",
    "intermediate": "intermediate/dense",
    "output": "output/dense",
    "output_norm": "output/LayerNorm",
}
# Of an optimizer, or of a head for pretraining, classification or questions.
_SKIPPED = re.compile(
    r"global_step|beta[12]_power|.*/(adam_[mv]|Adam(_1)?)|cls/.*|output_(weights|bias)"
)
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


def tf1_checkpoint(
    source: str,
    pooling: PoolingName | None = None,
    dropout: float | None = None,
    attention_dropout: float | None = None,
    lowercase: bool | None = None,
) -> BertEncoder:
    """BERT with the weights of Google's original release, or of what was fine-tuned from it.

    It computes what Google's own program does (https://github.com/google-research/bert): its
    "gelu" is the approximation by tanh, where Hugging Face runs the same weights with the exact
    one. What optimizers and heads left in the checkpoint is skipped.

    Args:
        source: a folder, or "package:NAME/path" (a folder inside an installed Python package),
            with bert_config.json, vocab.txt and one checkpoint, such as bert_model.ckpt.index and
            bert_model.ckpt.data-00000-of-00001.
        pooling: what "pooled" is: "pooler", "cls", "mean", "max", "attention" or "layers"; see
            `BertEncoder`. By default "pooler", or "cls" where the checkpoint has no pooler.
        dropout: instead of the config's hidden_dropout_prob.
        attention_dropout: instead of the config's attention_probs_dropout_prob.
        lowercase: whether text is lowercased and accents are removed, which no file says. By
            default it is, unless the vocabulary holds capitals.

    Returns:
        The encoder, with the vocabulary of the folder.

    Raises:
        EncoderError: a file is missing or damaged, the model is no BERT that can be run exactly,
            or the folder is called cased or uncased and its vocabulary is not.
    """
    folder = _folder(source)
    path = folder / "bert_config.json"
    arguments = _read_config(path)
    if dropout is not None:
        arguments["dropout"] = dropout
    if attention_dropout is not None:
        arguments["attention_dropout"] = attention_dropout
    vocabulary = _read_vocabulary(folder, lowercase)
    prefix = _find_checkpoint(folder)
    with _damage(prefix):
        reader = tf.train.load_checkpoint(str(prefix))
        held = set(reader.get_variable_to_shape_map())
    if _OBJECT_GRAPH in held:
        raise EncoderError(
            f"{prefix} is a checkpoint of TensorFlow 2, whose weights have no names, and only "
            "those of TensorFlow 1 are read. Take the original release of the model, or its "
            "export to TF Hub, for the encoder 'tfhub'."
        )
    has_pooler = any(name.startswith(_PARTS["pooler"]) for name in held)
    pooling = choose_pooling(pooling, has_pooler, str(prefix))
    try:
        encoder = BertEncoder(**arguments, layer_norm_epsilon=_EPSILON, pooling=pooling)
        encoder.vocabulary = vocabulary
    except EncoderError as error:
        raise EncoderError(f"{folder}: {error}") from error
    set_weights(encoder, _weights(encoder, reader, held, prefix), str(prefix))
    return encoder


def _folder(source: str) -> Path:
    exists = source and Path(source).expanduser().exists()  # "" would be the current folder
    if not source.startswith(PACKAGE) and not exists:
        raise EncoderError(
            f"There is no folder {source!r} (relative to {Path.cwd()}). Give the unpacked folder "
            f"of an original release, or {PACKAGE}NAME/path."
        )
    return find_folder(source, None, ())


def _read_config(path: Path) -> dict[str, Any]:
    fields = read_json(path)
    epsilon = fields.pop("layer_norm_eps", _EPSILON)
    if epsilon != _EPSILON:
        raise EncoderError(
            f"{path}: layer_norm_eps is {epsilon!r}, and Google's BERT computes only {_EPSILON}. "
            "For a model of Hugging Face use the encoder 'huggingface'."
        )
    arguments = read_arguments(fields, path, _FIELDS)
    activation = arguments["hidden_act"]
    if activation not in _ACTIVATIONS:
        raise EncoderError(
            f"{path}: hidden_act is {activation!r}. Known, of Google's: {', '.join(_ACTIVATIONS)}."
        )
    return {**arguments, "hidden_act": _ACTIVATIONS[activation]}


def _read_vocabulary(folder: Path, lowercase: bool | None) -> Vocabulary:
    vocabulary = Vocabulary.from_file(folder / "vocab.txt")
    if lowercase is not None:
        return replace(vocabulary, lowercase=lowercase)
    large = capitals(vocabulary.tokens)
    words = re.split("[^a-z]+", folder.resolve().name.lower())  # as in multi_cased_L-12_H-768_A-12
    for word, cased in (("cased", True), ("uncased", False)):
        if word in words and cased != bool(large):
            found = f"holds capitals ({large[0]!r})" if large else "holds no capitals"
            raise EncoderError(
                f"The folder {folder} is called {word}, but its vocab.txt {found}. Take "
                "vocab.txt from the same release, or say by lowercase: true or false whether text "
                "is lowercased."
            )
    return replace(vocabulary, lowercase=not large)


def _find_checkpoint(folder: Path) -> Path:
    """Return the path that the files of the only checkpoint begin with."""
    prefixes = sorted(path.with_suffix("") for path in folder.glob("*.index"))
    if len(prefixes) == 1:
        return prefixes[0]
    if prefixes:
        raise EncoderError(
            f"{folder} holds several checkpoints: {', '.join(path.name for path in prefixes)}. "
            "Copy the files of the one you want into a folder of its own, with bert_config.json "
            "and vocab.txt."
        )
    held = sorted(child.name for child in folder.iterdir())
    raise EncoderError(
        f"{folder} has no checkpoint, such as bert_model.ckpt.index. It holds: "
        f"{', '.join(held[:10])}. Copy all files of the release into it."
    )


def _weights(encoder: BertEncoder, reader: Any, held: set[str], prefix: Path) -> dict[str, Weight]:
    """Match the checkpoint's names with the encoder's, one to one."""
    left = set(held)
    weights = {}
    for ours in weight_shapes(encoder):
        theirs = _their_name(ours)
        if theirs not in left:
            raise EncoderError(
                f"{prefix} lacks the weight {theirs!r}. Take bert_config.json and the checkpoint "
                "from the same model."
            )
        left.remove(theirs)
        weights[ours] = Weight(theirs, partial(_read, reader, theirs, prefix))
    if encoder.pooling != "pooler":
        left -= {f"{_PARTS['pooler']}/{kind}" for kind in ("kernel", "bias")}
    unknown = sorted(name for name in left if not _SKIPPED.fullmatch(name))
    if unknown:
        raise EncoderError(
            f"{prefix} holds {unknown[0]!r}, which a BERT of {encoder.num_layers} layers does not "
            f"have ({len(unknown)} such in all). Take bert_config.json and the checkpoint from "
            "the same model."
        )
    return weights


def _their_name(ours: str) -> str:
    part, _, kind = ours.rpartition("/")
    if not part:  # an embedding
        return _PARTS[ours]
    if part in _PARTS:
        return f"{_PARTS[part]}/{kind}"
    layer, _, part = part.partition("/")
    return f"bert/encoder/{layer}/{_LAYER[part]}/{kind}"


def _read(reader: Any, name: str, prefix: Path) -> Any:
    with _damage(prefix):
        return reader.get_tensor(name)


@contextlib.contextmanager
def _damage(prefix: Path) -> Iterator[None]:
    """Say of a checkpoint that cannot be read that it is damaged."""
    try:
        yield
    except (tf.errors.OpError, IndexError, RuntimeError, ValueError) as error:
        cause = " ".join(str(error).split())[:200]
        raise EncoderError(
            f"The checkpoint {prefix} cannot be read ({type(error).__name__}: {cause}). Its .index "
            "or .data file is damaged, or only a part of it, or missing: copy both again."
        ) from error
