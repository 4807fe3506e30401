"""A tiny BERT as Google released its own: bert_config.json, vocab.txt and a TF 1 checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from safetensors.numpy import load_file

from tests.tiny import VOCABULARY, write_huggingface_folder

_CONFIG = (
    "attention_probs_dropout_prob", "hidden_act", "hidden_dropout_prob", "hidden_size",
    "initializer_range", "intermediate_size", "max_position_embeddings", "num_attention_heads",
    "num_hidden_layers", "type_vocab_size", "vocab_size",
)  # fmt: skip


def write_release(
    folder: Path,
    huggingface: Path,
    *,
    name: str = "bert_model.ckpt",
    extra: Mapping[str, NDArray[Any] | None] = {},
    **config: Any,
) -> Path:
    """Write the weights of a tiny Hugging Face folder as an original release.

    Args:
        folder: made if need be.
        huggingface: where `write_huggingface_folder` wrote a BERT with hidden_act "gelu_new".
        name: of the checkpoint.
        extra: variables that are added, replaced, or, if `None`, left out.
        config: fields of bert_config.json that replace those of the folder.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fields = json.loads((huggingface / "config.json").read_text())
    fields = {key: fields[key] for key in _CONFIG} | {"hidden_act": "gelu"} | config
    (folder / "bert_config.json").write_text(json.dumps(fields, indent=2))
    (folder / "vocab.txt").write_bytes((huggingface / "vocab.txt").read_bytes())
    weights = {**variables(huggingface), **extra}
    save_checkpoint(folder / name, {key: x for key, x in weights.items() if x is not None})
    return folder


def tiny_release(folder: Path, **options: Any) -> tuple[Path, Path]:
    """Return a release, and the Hugging Face folder of the same weights and the same GELU."""
    same = write_huggingface_folder(folder / "same", hidden_act="gelu_new")
    return write_release(folder / f"tiny_{len(VOCABULARY)}", same, **options), same


def variables(huggingface: Path) -> dict[str, NDArray[Any]]:
    """Return the weights of a Hugging Face folder by Google's names, kernels transposed."""
    named = {}
    for name, array in load_file(huggingface / "model.safetensors").items():
        google = re.sub(r"^encoder\.layer\.(\d+)", r"encoder/layer_\1", name).replace(".", "/")
        if google.endswith("_embeddings/weight"):
            google = google.removesuffix("/weight")
        elif google.endswith("LayerNorm/weight"):
            google = google.replace("/weight", "/gamma")
        elif google.endswith("LayerNorm/bias"):
            google = google.replace("/bias", "/beta")
        elif google.endswith("/weight"):
            google, array = google.replace("/weight", "/kernel"), array.T
        named[f"bert/{google}"] = array
    return named


def save_checkpoint(prefix: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write variables as TensorFlow 1 does."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        for name, array in arrays.items():
            v1.get_variable(name, initializer=np.asarray(array), use_resource=False)
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(prefix), write_meta_graph=False)
