"""A trained classifier that others learn from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tensorflow as tf

from bertkit import artifact
from bertkit.encoder import INPUT_NAMES, Encoder
from bertkit.errors import BertkitError, InputError, shown
from bertkit.head import Dense, Head
from bertkit.registry import encoders
from bertkit.tokenizer import Vocabulary
from bertkit_plugins.encoders.huggingface_weights import open_weights
from bertkit_plugins.encoders.saved_model_graph import BYTES
from bertkit_plugins.encoders.sources import read_json
from bertkit_plugins.objectives.saved_model_teacher import SavedModelTeacher, is_saved_model

if TYPE_CHECKING:
    from bertkit.classifier import BertClassifier

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]
Logits = Callable[[Mapping[str, Any]], tf.Tensor]  # from token ids, (B, T), to (B, outputs)


class Teacher:
    """A trained classifier that gives logits as a student's head means them.

    It is no Keras layer, so that Keras neither lists nor saves it with the student.

    Args:
        source: a run folder, a Hugging Face folder, or a SavedModel as the encoder `tfhub` takes
            them.
        student: what it is to teach.

    Raises:
        InputError: there is none, or it has another vocabulary, other labels or another kind of
            head than the student.
    """

    def __init__(self, source: str, student: BertClassifier) -> None:
        found = _of_saved_model if is_saved_model(source) else _of_dense
        self._logits = found(source, student)

    def logits(self, inputs: Mapping[str, Any]) -> tf.Tensor:
        """Return logits without dropout, float32 (B, outputs)."""
        return self._logits({name: inputs[name] for name in INPUT_NAMES})


def _of_dense(source: str, student: BertClassifier) -> Logits:
    """Return the logits of an encoder and a dense layer."""
    with _named(source):
        read = _from_huggingface if Path(source, "config.json").is_file() else _from_run
        encoder, dense = read(source)
    wanted = _dense(student.head)
    _check_tokens(source, encoder.vocabulary, encoder.max_sequence_length, student.encoder)
    order = _order(source, dense, wanted)
    kernel, bias = dense.kernel[:, order], dense.bias[order]
    if student.head.num_outputs == 1 and len(order) == 2:  # one logit is the difference of two
        kernel, bias = kernel[:, 1:] - kernel[:, :1], bias[1:] - bias[:1]
    kernel, bias = tf.constant(kernel), tf.constant(bias)

    def logits(ids: Mapping[str, Any]) -> tf.Tensor:
        pooled = encoder(ids, reads=("pooled",), training=False)["pooled"]  # (B, H)
        return tf.matmul(tf.cast(pooled, tf.float32), kernel) + bias

    return logits


def _of_saved_model(source: str, student: BertClassifier) -> Logits:
    """Return the logits of a graph, which has no names for them: they are the head's, in order."""
    with _named(source):
        teacher = SavedModelTeacher(source)
    wanted = _dense(student.head)
    if teacher.texts:
        if student.encoder.vocabulary is not None or student.encoder.vocabulary_size != BYTES:
            raise InputError(
                f"The teacher {source} takes strings, and the batches that it is to read hold "
                "token ids. Export it from input_word_ids, input_mask and input_type_ids on, or "
                "teach an encoder that takes strings too."
            )
    elif teacher.vocabulary is None:
        raise InputError(
            f"The teacher {source} does not tell its vocabulary, so it may have another than the "
            "encoder that it is to teach. Export it with vocab_file and do_lower_case, as the "
            "encoders of TF Hub have them."
        )
    else:
        length = teacher.max_sequence_length or student.encoder.max_sequence_length
        _check_tokens(source, teacher.vocabulary, length, student.encoder)
    outputs = student.head.num_outputs
    if teacher.outputs == outputs:
        return teacher.logits
    if (outputs, teacher.outputs, len(wanted.labels)) == (1, 2, 2):  # as above, their difference
        return lambda ids: tf.reduce_sum(teacher.logits(ids) * [-1.0, 1.0], axis=1, keepdims=True)
    raise InputError(
        f"The teacher {source} gives {teacher.outputs} logits a row, and {outputs} are wanted. "
        f"Take a teacher of the labels {shown(wanted.labels)}, in this order."
    )


@contextlib.contextmanager
def _named(source: str) -> Iterator[None]:
    """Say which teacher it is that cannot be read."""
    try:
        yield
    except BertkitError as error:
        raise InputError(f"There is no teacher in {source}: {error}") from error


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


def _check_tokens(source: str, theirs: Vocabulary | None, length: int, ours: Encoder) -> None:
    if theirs is None or ours.vocabulary is None or theirs.tokens != ours.vocabulary.tokens:
        raise InputError(
            f"The teacher {source} has another vocabulary than the encoder that it is to teach, "
            "whose token ids it reads. Take a teacher that was trained from a model with the same "
            "vocab.txt."
        )
    if length < ours.max_sequence_length:
        raise InputError(
            f"The teacher {source} has positions for {length} tokens, and the "
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
