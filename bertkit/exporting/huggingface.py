"""A Hugging Face folder: config.json, model.safetensors and the tokenizer's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from bertkit.bert import BertEncoder
from bertkit.classifier import BertClassifier
from bertkit.exporting.huggingface_tokenizer import write_tokenizer
from bertkit.exporting.parts import plain_bert
from bertkit.head import Dense
from bertkit.weights import get_weights

# Our name: theirs.
_PARTS = {
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
_KINDS = {"kernel": "weight", "gamma": "weight", "bias": "bias", "beta": "bias"}


def write_huggingface(
    model: BertClassifier, folder: Path, allow_approximation: bool = False
) -> list[str]:
    """Write the folder: BertForSequenceClassification where that is this model, or BertModel.

    Raises:
        ExportError: the encoder is no BERT as Hugging Face has it.
    """
    from safetensors.numpy import save_file

    encoder = plain_bert(model, "Hugging Face")
    dense = _same_dense(model)
    tensors = {_their_name(name): array.T if name.endswith("/kernel") else array
               for name, array in get_weights(encoder).items()}  # fmt: skip
    if dense is not None:
        tensors = {f"bert.{name}": array for name, array in tensors.items()}
        tensors |= {"classifier.weight": dense.kernel.T, "classifier.bias": dense.bias}
    config = _config(encoder, dense)
    if dense is not None:
        config["classifier_dropout"] = model.head.dropout
    _write_json(folder / "config.json", config)
    save_file(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},  # whose layout it is; transformers asks for it
    )
    notes = [f"Wrote a {config['architectures'][0]} for transformers."]
    if dense is None:
        notes.append(_left_out(model, encoder))
    elif dense.left_out:
        notes.append(dense.left_out)
    if encoder.vocabulary is None:
        notes.append("There are no tokenizer files: the encoder has no vocabulary.")
    else:
        write_tokenizer(encoder.vocabulary, encoder.max_sequence_length, folder)
    return notes


def _same_dense(model: BertClassifier) -> Dense | None:
    """Return the head as a dense layer over the pooler's output, if that gives its predictions."""
    head, encoder = model.head, model.encoder
    if encoder.pooling != "pooler" or head.reads != ("pooled",) or not model.built:
        return None
    dense = head.as_dense()
    if dense is None:
        return None
    # A head may inherit `as_dense`, and compute something else all the same.
    pooled = np.random.default_rng(0).uniform(-1, 1, (16, encoder.hidden_size)).astype("float32")
    logits = pooled @ dense.kernel + dense.bias
    outputs = np.asarray(head({"pooled": keras.ops.convert_to_tensor(pooled)}), dtype="float64")
    if dense.problem == "regression":
        ours, theirs = outputs, logits
    else:
        ours = head.probabilities(outputs)
        single = dense.problem == "single_label_classification"
        theirs = _softmax(logits) if single else 1 / (1 + np.exp(-logits))
    # Within what half precision allows.
    return dense if np.abs(ours - theirs).max() < 1e-2 * np.abs(ours).max() else None


def _softmax(logits: NDArray[Any]) -> NDArray[Any]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _config(encoder: BertEncoder, dense: Dense | None) -> dict[str, Any]:
    vocabulary = encoder.vocabulary
    config: dict[str, Any] = {
        "architectures": ["BertModel" if dense is None else "BertForSequenceClassification"],
        "attention_probs_dropout_prob": encoder.attention_dropout,
        "dtype": "float32",
        "hidden_act": encoder.hidden_act,
        "hidden_dropout_prob": encoder.dropout,
        "hidden_size": encoder.hidden_size,
        "initializer_range": encoder.initializer_range,
        "intermediate_size": encoder.intermediate_size,
        "layer_norm_eps": encoder.layer_norm_epsilon,
        "max_position_embeddings": encoder.max_sequence_length,
        "model_type": "bert",
        "num_attention_heads": encoder.num_heads,
        "num_hidden_layers": encoder.num_layers,
        "pad_token_id": vocabulary.id_of(vocabulary.padding_token) if vocabulary else 0,
        "position_embedding_type": "absolute",
        "type_vocab_size": encoder.num_segments,
        "vocab_size": encoder.vocabulary_size,
    }
    if dense is not None:
        labels = [str(label) for label in dense.labels]
        config |= {
            "id2label": {str(index): label for index, label in enumerate(labels)},
            "label2id": {label: index for index, label in enumerate(labels)},
            "problem_type": dense.problem,
        }
    return config


def _left_out(model: BertClassifier, encoder: BertEncoder) -> str:
    head = f"The head {type(model.head).__name__} is left out"
    if encoder.pooling == "pooler":
        return f"{head}: it is no single dense layer over the pooled features."
    return (
        f"{head}, and so is the pooling {encoder.pooling!r}: BERT's classifier there reads the "
        "pooler, which this encoder does not have. Load it with add_pooling_layer=False."
    )


def _their_name(name: str) -> str:
    part, _, kind = name.rpartition("/")
    if not part:  # an embedding
        return f"{_PARTS[name]}.weight"
    if part in _PARTS:
        return f"{_PARTS[part]}.{_KINDS[kind]}"
    layer, _, part = part.partition("/")
    return f"encoder.layer.{layer.removeprefix('layer_')}.{_LAYER[part]}.{_KINDS[kind]}"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object, as Hugging Face's files are written."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
