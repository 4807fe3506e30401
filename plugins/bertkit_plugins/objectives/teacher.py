"""A trained classifier that others learn from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tensorflow as tf

from bertkit import artifact
from bertkit.encoder import INPUT_NAMES, Encoder
from bertkit.errors import BertkitError, InputError, shown
from bertkit.head import Dense, Head
from bertkit.registry import encoders
from bertkit_plugins.encoders.huggingface_weights import open_weights
from bertkit_plugins.encoders.sources import read_json

if TYPE_CHECKING:
    from bertkit.classifier import BertClassifier

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]


class Teacher:
    """A trained classifier that gives logits as a student's head means them.

    It is no Keras layer, so that Keras neither lists nor saves it with the student.

    Args:
        source: a run folder, or a Hugging Face folder.
        student: what it is to teach.

    Raises:
        InputError: there is none, or it has another vocabulary, other labels or another kind of
            head than the student.
    """

    def __init__(self, source: str, student: BertClassifier) -> None:
        try:
            found = _from_huggingface if Path(source, "config.json").is_file() else _from_run
            self._encoder, dense = found(source)
        except BertkitError as error:
            raise InputError(f"There is no teacher in {source}: {error}") from error
        wanted = _dense(student.head)
        _check_tokens(source, self._encoder, student.encoder)
        order = _order(source, dense, wanted)
        kernel, bias = dense.kernel[:, order], dense.bias[order]
        if student.head.num_outputs == 1 and len(order) == 2:  # one logit is the difference of two
            kernel, bias = kernel[:, 1:] - kernel[:, :1], bias[1:] - bias[:1]
        self._kernel, self._bias = tf.constant(kernel), tf.constant(bias)

    def logits(self, inputs: Mapping[str, Any]) -> tf.Tensor:
        """Return logits without dropout, float32 (B, outputs)."""
        ids = {name: inputs[name] for name in INPUT_NAMES}
        pooled = self._encoder(ids, reads=("pooled",), training=False)["pooled"]  # (B, H)
        return tf.matmul(tf.cast(pooled, tf.float32), self._kernel) + self._bias


def _from_run(source: str) -> tuple[Encoder, Dense]:
    model = artifact.load(source, compile=False)
    return model.encoder, _dense(model.head)


def _dense(head: Head) -> Dense:
    dense = head.as_dense()
    if dense is None:
        raise InputError(
            f"Distillation wants heads that are one dense layer, and {type(head).__name__} is "
            "more. Use one that bertkit ships, such as multiclass."
        )
    return dense


def _from_huggingface(source: str) -> tuple[Encoder, Dense]:
    """Read BertForSequenceClassification: a BERT with its pooler, and a dense layer on it."""
    folder, names = Path(source), ("classifier.weight", "classifier.bias")
    config = read_json(folder / "config.json")
    encoder = encoders.create("huggingface", source=source)
    with open_weights(folder) as (path, reads):
        if config.get("model_type") != "bert" or any(name not in reads for name in names):
            raise InputError(
                f"{path} is no fine-tuned BERT with one dense layer as its head, of the weights "
                f"{' and '.join(names)}. Give a BertForSequenceClassification."
            )
        kernel, bias = (np.asarray(reads[name](), dtype="float32") for name in names)
    named = config.get("id2label") or {}
    labels = [named.get(str(index), index) for index in range(len(bias))]
    kinds = ("single_label_classification", "multi_label_classification", "regression")
    told = config.get("problem_type")
    problem: Any = told if told in kinds else kinds[2 * (len(bias) == 1)]
    return encoder, Dense(kernel.T, bias, labels, problem)


def _check_tokens(source: str, theirs: Encoder, ours: Encoder) -> None:
    if (
        theirs.vocabulary is None
        or ours.vocabulary is None
        or (theirs.vocabulary.tokens != ours.vocabulary.tokens)
    ):
        raise InputError(
            f"The teacher {source} has another vocabulary than the encoder that it is to teach, "
            "whose token ids it reads. Take a teacher that was trained from a model with the same "
            "vocab.txt."
        )
    if theirs.max_sequence_length < ours.max_sequence_length:
        raise InputError(
            f"The teacher {source} has positions for {theirs.max_sequence_length} tokens, and the "
            f"encoder for {ours.max_sequence_length}. Take a teacher with as many."
        )


def _order(source: str, theirs: Dense, ours: Dense) -> list[int]:
    """Return where each of our outputs is among theirs."""
    if theirs.problem != ours.problem:
        raise InputError(
            f"The teacher {source} does {theirs.problem}, and the head {ours.problem}. Take a "
            "teacher and a head of one kind."
        )
    if ours.problem == "regression":
        return [0]
    places = {str(label): index for index, label in enumerate(theirs.labels)}
    wanted = [str(label) for label in ours.labels]
    if sorted(places) != sorted(wanted):
        raise InputError(
            f"The teacher {source} knows the labels {shown(theirs.labels)}, and the head "
            f"{shown(ours.labels)}. Take a teacher of the same labels."
        )
    return [places[label] for label in wanted]
