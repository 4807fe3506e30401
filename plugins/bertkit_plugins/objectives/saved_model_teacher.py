"""A classifier that is a SavedModel, such as those of TF Hub: its graph gives logits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from bertkit.errors import InputError
from bertkit.tokenizer import Vocabulary
from bertkit_plugins.encoders.saved_model_graph import Graph
from bertkit_plugins.encoders.saved_model_interface import described, interfaces, read_vocabulary
from bertkit_plugins.encoders.saved_model_safety import check_harmless, read_saved_model
from bertkit_plugins.encoders.tfhub_resolve import load, resolve


class SavedModelTeacher:
    """The graph of a SavedModel from token ids, or from strings, to logits.

    Of its interfaces the first is taken that gives one float tensor, (B, outputs).

    Args:
        source: an address, a folder or an archive, as the encoder `tfhub` takes them.

    Attributes:
        texts: whether it takes strings.
        vocabulary: its own, if the SavedModel has one.
        max_sequence_length: the tokens, or bytes, of a row; `None` where it does not tell.
        outputs: how many logits a row has.

    Raises:
        EncoderError: there is no SavedModel, or it cannot be loaded, or should not be.
        InputError: it is no classifier.
    """

    def __init__(self, source: str) -> None:
        folder = resolve(source)
        check_harmless(read_saved_model(folder), folder)
        loaded = load(folder)
        found = interfaces(loaded, _logits)
        if not found:
            raise InputError(
                "it is a SavedModel, and no classifier: it must take input_word_ids, input_mask "
                "and input_type_ids, (batch, tokens) each, or strings, and return logits, (batch, "
                f"labels), alone. It has: {described(loaded)}. Export the classifier, with its "
                "head."
            )
        self._graph = Graph(loaded, {}, str(folder), found[0])
        self.texts = found[0].texts
        self.vocabulary: Vocabulary | None = read_vocabulary(loaded)
        self.max_sequence_length = self._graph.length or self._graph.rows("position")
        self.outputs = int(found[0].outputs["logits"].shape[-1])

    def logits(self, inputs: Mapping[str, Any]) -> tf.Tensor:
        """Return logits without dropout, float32 (B, outputs)."""
        given = _logits(self._graph.run(inputs, training=False))["logits"]
        return tf.ensure_shape(tf.cast(given, tf.float32), (None, self.outputs))


def _logits(value: Any) -> dict[str, Any]:
    """Return the tensor, or spec, that a call returns as "logits"; nothing if it is none."""
    parts = tf.nest.flatten(value)
    if len(parts) != 1 or not isinstance(parts[0], (tf.Tensor, tf.TensorSpec)):
        return {}
    (part,) = parts
    fits = part.dtype.is_floating and part.shape.rank == 2 and part.shape[-1] is not None
    return {"logits": part} if fits else {}


def is_saved_model(source: str) -> bool:
    """Return whether a source is a SavedModel's folder, an archive, or an address of one."""
    path = Path(source).expanduser()
    return "://" in source or path.is_file() or (path / "saved_model.pb").is_file()
