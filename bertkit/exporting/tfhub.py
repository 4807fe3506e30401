"""An encoder and its preprocessor as SavedModels with TF Hub's interface.

The interface is that of https://www.tensorflow.org/hub/common_saved_model_apis/text, and the
variables have the names of Model Garden, whose exporter wrote the BERTs of TF Hub.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from bertkit.bert import BertEncoder
from bertkit.classifier import BertClassifier
from bertkit.encoder import TFHUB_NAMES
from bertkit.exporting.parts import in_float32
from bertkit.exporting.tfhub_preprocess import preprocess_module
from bertkit.weights import get_weights, places, weight_shapes

# Our name: theirs.
_PARTS = {
    "token_embedding": "word_embeddings/embeddings",
    "position_embedding": "position_embedding/embeddings",
    "segment_embedding": "type_embeddings/embeddings",
    "embeddings_norm": "embeddings/layer_norm",
    "embeddings_projection": "embedding_projection",
    "pooler": "pooler_transform",
}
_LAYER = {
    "query": "self_attention/query",
    "key": "self_attention/key",
    "value": "self_attention/value",
    "attention_output": "self_attention/attention_output",
    "attention_norm": "self_attention_layer_norm",
    "intermediate": "intermediate",
    "output": "output",
    "output_norm": "output_layer_norm",
}
_IDS = tf.TensorSpec((None, None), tf.int32)  # (B, T)


class Reusable(tf.Module):
    """What `tensorflow_hub` reads off an encoder; of `tf.Module` they are no part of the file."""

    variables: Any = None
    trainable_variables: Any = None
    regularization_losses: Any = None


def write_tfhub(
    model: BertClassifier, folder: Path, allow_approximation: bool = False
) -> list[str]:
    """Write `encoder` and, if there is a vocabulary, `preprocess`.

    Raises:
        ExportError: the encoder cannot be written so.
    """
    encoder, notes = model.encoder, []
    vocabulary = encoder.vocabulary
    # An asset is copied when the SavedModel is written, so its file must last until then.
    with tempfile.TemporaryDirectory() as assets:
        if vocabulary is not None:
            vocabulary.save(assets)
        asset = None if vocabulary is None else tf.saved_model.Asset(f"{assets}/vocab.txt")
        if isinstance(encoder, BertEncoder):
            module = _encoder_module(encoder)
            if asset is not None and vocabulary is not None:
                module.vocab_file = asset
                module.do_lower_case = tf.Variable(
                    vocabulary.lowercase, trainable=False, name="do_lower_case"
                )
                if vocabulary.strip_accents not in (None, vocabulary.lowercase):
                    notes.append(
                        f"Its assets do not tell that strip_accents is {vocabulary.strip_accents}; "
                        "preprocess/ does so."
                    )
            _save(module, folder / "encoder", module.serve)
            if encoder.pooling != "pooler":
                notes.append(f"Its pooled_output is that of the pooling {encoder.pooling!r}.")
        else:
            notes += encoder.write_saved_model(str(folder / "encoder"))
        preprocess = folder / "preprocess"
        own = model.preprocessor is not None and model.preprocessor.write_saved_model(
            str(preprocess)
        )
        if not own and asset is not None:
            text = preprocess_module(model, asset)
            _save(text, preprocess, text.__call__)
    written = preprocess.exists()
    if not written:
        notes.append("There is no preprocess/: the encoder has no vocabulary.")
    notes.append(f"The head {type(model.head).__name__} is left out: TF Hub's interface has none.")
    return [f"Wrote encoder/{' and preprocess/' if written else ''}.", *notes]


def _save(module: tf.Module, folder: Path, signature: Any) -> None:
    tf.saved_model.save(module, str(folder), signatures={"serving_default": signature})


def _encoder_module(encoder: BertEncoder) -> Any:
    """Return the encoder as a module whose variables are those of Model Garden's encoder.

    It runs the encoder's own forward pass, whose weights are put together from these variables:
    query, key and value are one kernel there, and three here.
    """
    program = in_float32(encoder)
    held = {
        name: tf.Variable(value.reshape(_their_shape(name, value.shape, encoder.num_heads)),
                          name=_their_name(name))
        for name, value in get_weights(encoder).items()
    }  # fmt: skip
    shapes = weight_shapes(encoder)
    own = []  # of a pooling that Model Garden does not have
    if encoder.pooling != "pooler":
        own = [
            tf.Variable(keras.ops.convert_to_tensor(weight, "float32"),
                        name=f"pooling/{weight.name}")
            for weight in encoder.pooling_layer.weights
        ]  # fmt: skip

    def weights() -> list[tuple[Any, tf.Tensor]]:
        pairs = [
            (place, tf.concat([tf.reshape(held[name], shapes[name]) for name in names], axis=-1))
            for place, names in places(program)
        ]
        if own:
            pairs += zip(program.pooling_layer.weights, map(tf.convert_to_tensor, own), strict=True)
        # Dropout draws from here, anew at each call. Zeros stand for no seed: tf.random.uniform
        # would write this process's own seed into the graph.
        state = program.seed_generator.state
        seed = tf.raw_ops.RandomUniformInt(
            shape=state.shape, minval=0, maxval=2**31 - 1, seed=0, seed2=0
        )
        return [*pairs, (state, tf.cast(seed, state.dtype))]

    @tf.function(autograph=False)
    def call(inputs: dict[str, tf.Tensor], training: bool = False) -> dict[str, Any]:
        ours = {name: inputs[theirs] for theirs, name in TFHUB_NAMES.items()}
        with keras.StatelessScope(state_mapping=weights()):
            features = program(ours, reads=("pooled", "sequence", "layers"), training=training)
        return {
            "default": features["pooled"],
            "pooled_output": features["pooled"],
            "sequence_output": features["sequence"],
            "encoder_outputs": features["layers"],
        }

    @tf.function(autograph=False, input_signature=[_IDS] * 3)
    def serve(
        input_word_ids: tf.Tensor, input_mask: tf.Tensor, input_type_ids: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        ids = (input_word_ids, input_mask, input_type_ids)
        names = ("input_word_ids", "input_mask", "input_type_ids")
        outputs = call(dict(zip(names, ids, strict=True)), training=False)
        return {name: x for name, x in outputs.items() if name != "encoder_outputs"}

    for training in (True, False):
        specs = {name: tf.TensorSpec(_IDS.shape, _IDS.dtype, name) for name in TFHUB_NAMES}
        call.get_concrete_function(specs, training=training)
    module = Reusable()
    module.__call__, module.serve = call, serve
    module.variables = [*held.values(), *own]
    module.trainable_variables = module.variables
    module.regularization_losses = []
    return module


def _their_name(name: str) -> str:
    part, _, kind = name.rpartition("/")
    if not part:  # an embedding
        return _PARTS[name]
    if part in _PARTS:
        return f"{_PARTS[part]}/{kind}"
    layer, _, part = part.partition("/")
    return f"transformer/{layer}/{_LAYER[part]}/{kind}"


def _their_shape(name: str, shape: tuple[int, ...], heads: int) -> tuple[int, ...]:
    """Return the shape with the heads apart: (H, heads, width), (heads, width, H)."""
    part, kind = name.split("/")[-2:] if "/" in name else (name, "")
    if part in ("query", "key", "value"):
        return (*shape[:-1], heads, shape[-1] // heads)
    if (part, kind) == ("attention_output", "kernel"):
        return (heads, shape[0] // heads, shape[1])
    return shape
