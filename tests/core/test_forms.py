"""Every form of texts, tensors, labels and streams: the same training, and the same outputs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import bertkit
from tests.tiny_models import LABELS, PAIRS, TEXTS, assert_same, tensors, tiny_model, weights_of

Y = LABELS["binary"]
WEIGHTS = np.linspace(0.1, 2, len(TEXTS)).tolist()
TFHUB = dict(
    zip(("input_word_ids", "input_type_ids", "input_mask"), tensors().values(), strict=True)
)


@functools.cache
def shared() -> tuple[bertkit.BertClassifier, list[np.ndarray]]:
    """Return a model that is traced once, and the weights it begins with."""
    made = tiny_model("binary")
    made.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    made.optimizer.build(made.trainable_weights)
    return made, weights_of(made)


def restore() -> None:
    model, weights = shared()
    variables = [*model.variables, *model.optimizer.variables]
    for variable, weight in zip(variables, weights, strict=True):
        variable.assign(weight)


@pytest.fixture
def model() -> bertkit.BertClassifier:
    restore()
    return shared()[0]


def fitted(
    model: bertkit.BertClassifier, x: Any, y: Any = None, **options: Any
) -> list[np.ndarray]:
    """Return the weights after an epoch in the order of the rows."""
    restore()
    options = {"batch_size": 4, "shuffle": False, "verbose": 0, **options}
    model.fit(x, y, **options)
    # Without the counts of steps and random numbers: where the end of a stream is not known,
    # TensorFlow begins a step before it learns that no batch comes.
    moments = [variable for variable in model.optimizer.variables if len(variable.shape)]
    return [variable.numpy() for variable in [*model.trainable_variables, *moments]]


TEXT_FORMS: dict[str, Callable[[], Any]] = {
    "tuple": lambda: tuple(TEXTS),
    "bytes": lambda: [text.encode() for text in TEXTS],
    "lists of one": lambda: [[text] for text in TEXTS],
    "array": lambda: np.array(TEXTS),
    "array of objects": lambda: np.array(TEXTS, dtype=object),
    "array of bytes": lambda: np.array(TEXTS).astype("S"),
    "column": lambda: np.array(TEXTS)[:, None],
    "strings of NumPy": lambda: list(np.array(TEXTS)),
    "variable strings of NumPy": lambda: np.array(TEXTS, dtype=np.dtypes.StringDType()),
    "series": lambda: pd.Series(TEXTS, index=range(50, 50 + len(TEXTS))),
    "series of strings": lambda: pd.Series(TEXTS, dtype="string"),
    "series of categories": lambda: pd.Series(TEXTS, dtype="category"),
    "frame": lambda: pd.DataFrame({"text": TEXTS}),
    "tensor": lambda: tf.constant(TEXTS),
    "column of a tensor": lambda: tf.constant(TEXTS)[:, None],
}


@pytest.mark.parametrize("form", TEXT_FORMS)
def test_texts(model: bertkit.BertClassifier, form: str) -> None:
    expected = model(TEXTS).numpy()
    np.testing.assert_array_equal(model(TEXT_FORMS[form]()), expected)
    predicted = model.predict(TEXT_FORMS[form](), verbose=0)
    np.testing.assert_allclose(predicted, expected, atol=1e-6)
    if form in ("array", "series"):
        assert_same(fitted(model, TEXT_FORMS[form](), Y), fitted(model, list(TEXTS), list(Y)))


LABEL_FORMS: list[tuple[str, Callable[[list[Any]], Any]]] = [
    ("binary", tuple),
    ("binary", np.array),
    ("binary", lambda y: np.array(y, dtype=object)),
    ("binary", lambda y: np.array(y).astype("S")),
    ("binary", lambda y: np.array(y)[:, None]),
    ("binary", lambda y: pd.Series(y, index=range(9, 9 + len(y)))),
    ("binary", lambda y: pd.Series(y, dtype="category")),
    ("binary", lambda y: pd.DataFrame({"label": y})),
    ("binary", tf.constant),
    ("binary", lambda y: tf.constant(y)[:, None]),
    ("multiclass", lambda y: np.array(y, dtype="float32")),
    ("multiclass", lambda y: np.array(y, dtype="uint8")[:, None]),
    ("multiclass", lambda y: pd.Series(y, dtype="Int64")),
    ("multiclass", tf.constant),
    ("multi_label", lambda y: [tuple(row) for row in y]),
    ("multi_label", lambda y: [set(row) for row in y]),
    ("multi_label", lambda y: [np.array(row, dtype=object) for row in y]),
    ("multi_label", pd.Series),
    ("multi_label", lambda y: tf.ragged.constant(y, dtype=tf.string)),
    ("multi_label", lambda y: np.array([[name in row for name in "abc"] for row in y])),
    ("multi_label", lambda y: np.array([[name in row for name in "abc"] for row in y]) * 1.0),
    ("multi_label", lambda y: pd.DataFrame({n: [int(n in row) for row in y] for n in "abc"})),
    ("multi_label", lambda y: tf.constant([[int(n in row) for n in "abc"] for row in y])),
    ("regression", lambda y: [str(number) for number in y]),
    ("regression", lambda y: np.array(y, dtype="float16")[:, None]),
    ("regression", lambda y: pd.DataFrame({"rating": y})),
    ("regression", lambda y: tf.constant(y)),
]


@pytest.mark.parametrize(("head", "make"), LABEL_FORMS)
def test_labels(head: str, make: Callable[[list[Any]], Any]) -> None:
    made, again = bertkit.heads.create(head), bertkit.heads.create(head)
    made.adapt(LABELS[head])
    again.adapt(make(LABELS[head]))
    targets = made.encode_labels(LABELS[head])
    np.testing.assert_array_equal(made.encode_labels(make(LABELS[head])), targets)
    np.testing.assert_allclose(again.encode_labels(make(LABELS[head])), targets)


@pytest.mark.parametrize("head", LABELS)
def test_labels_are_learned(head: str) -> None:
    batches = Batches()
    batches.labels = LABELS[head]
    known = {"binary": ["neg", "pos"], "multiclass": [0, 1, 2], "multi_label": ["a", "b", "c"]}
    for x, y in ((TEXTS, LABELS[head]), (batches, None)):
        model = tiny_model(head, adapted=False)
        model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
        model.fit(x, y, verbose=0)
        if head == "regression":
            assert model.head.center == pytest.approx(np.mean(LABELS[head]))
            assert model.head.scale == pytest.approx(np.std(LABELS[head]))
        else:
            assert model.head.labels == known[head]


class Batches(keras.utils.PyDataset):
    """Batches of 4 rows; counts the ends of epochs."""

    labels: Any = Y
    weights: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.ends = 0

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        rows = slice(4 * index, 4 * index + 4)
        batch = (np.array(TEXTS)[rows], self.labels[rows])
        return batch if self.weights is None else (*batch, self.weights[rows])

    def on_epoch_end(self) -> None:
        self.ends += 1


def weighted_batches() -> Batches:
    batches = Batches()
    batches.weights = WEIGHTS
    return batches


ROWS = tf.data.Dataset.from_tensor_slices((TEXTS, Y))
STREAMS: dict[str, tuple[Callable[[], Any], bool]] = {
    "dataset": (lambda: ROWS.batch(4), False),
    "dataset of unknown size": (lambda: ROWS.batch(4).filter(lambda x, y: True), False),
    "dataset with weights": (
        lambda: tf.data.Dataset.from_tensor_slices((TEXTS, Y, WEIGHTS)).batch(4), True,
    ),
    "generator": (lambda: (Batches()[index] for index in range(3)), False),
    "generator with weights": (lambda: (weighted_batches()[index] for index in range(3)), True),
    "generator of lists": (
        lambda: ((TEXTS[i : i + 4], Y[i : i + 4]) for i in range(0, 11, 4)), False,
    ),
    "PyDataset": (Batches, False),
    "PyDataset with weights": (weighted_batches, True),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("form", STREAMS)
def test_streams(model: bertkit.BertClassifier, form: str) -> None:
    make, weighted = STREAMS[form]
    expected = fitted(model, TEXTS, Y, sample_weight=WEIGHTS if weighted else None)
    assert_same(fitted(model, make(), batch_size=None), expected)


def test_a_pydataset_hears_of_the_end_of_each_epoch(model: bertkit.BertClassifier) -> None:
    batches = Batches()
    fitted(model, batches, epochs=3, batch_size=None)
    assert batches.ends == 3


TENSOR_FORMS: dict[str, Callable[[], Any]] = {
    "KerasHub's": lambda: dict(tensors()),
    "TF Hub's": lambda: TFHUB,
    "tensors": lambda: {name: tf.constant(value) for name, value in tensors().items()},
    "lists": lambda: {name: value.tolist() for name, value in tensors().items()},
    "a mixture": lambda: {**tensors(), "token_ids": tf.constant(tensors()["token_ids"])},
    "64 bits": lambda: {name: value.astype("int64") for name, value in TFHUB.items()},
    "a mask of booleans": lambda: {**tensors(), "padding_mask": tensors()["padding_mask"] > 0},
    "no segments": lambda: {n: v for n, v in tensors().items() if n != "segment_ids"},
    "another order": lambda: dict(reversed(tensors().items())),
    "frames": lambda: {name: pd.DataFrame(value) for name, value in tensors().items()},
}


@pytest.mark.parametrize("form", TENSOR_FORMS)
def test_tensors(model: bertkit.BertClassifier, form: str) -> None:
    expected = model(dict(tensors())).numpy()
    np.testing.assert_array_equal(model(TENSOR_FORMS[form]()), expected)
    np.testing.assert_allclose(model.predict(TENSOR_FORMS[form](), verbose=0), expected, atol=1e-6)
    loss = model.evaluate(TENSOR_FORMS[form](), Y, verbose=0, return_dict=True)["loss"]
    assert loss == pytest.approx(model.evaluate(TEXTS, Y, verbose=0)[0], abs=1e-6)


def test_training_on_tensors(model: bertkit.BertClassifier) -> None:
    expected = fitted(model, dict(tensors()), Y)
    dataset = tf.data.Dataset.from_tensor_slices((TFHUB, Y)).batch(4)
    assert_same(fitted(model, TENSOR_FORMS["lists"](), Y), expected)
    assert_same(fitted(model, dataset, batch_size=None), expected)


PAIR_FORMS: dict[str, Callable[[], Any]] = {
    "lists": lambda: [list(pair) for pair in PAIRS],
    "tuple": lambda: tuple(PAIRS),
    "array": lambda: np.array(PAIRS),
    "array of objects": lambda: np.array(PAIRS, dtype=object),
    "arrays": lambda: [np.array(pair) for pair in PAIRS],
    "bytes": lambda: [(a.encode(), b.encode()) for a, b in PAIRS],
    "frame": lambda: pd.DataFrame(PAIRS, columns=["a", "b"]),
    "series of tuples": lambda: pd.Series(PAIRS),
    "tensor": lambda: tf.constant(PAIRS),
}


def test_pairs() -> None:
    made = tiny_model("binary", "sentence_pair")
    expected = made(PAIRS).numpy()
    assert not np.array_equal(expected, made([(b, a) for a, b in PAIRS]))
    made.run_eagerly = True
    for form, make in PAIR_FORMS.items():
        np.testing.assert_array_equal(made(make()), expected, err_msg=form)
        predicted = made.predict(make(), verbose=0)
        np.testing.assert_allclose(predicted, expected, atol=1e-6, err_msg=form)
    dataset = tf.data.Dataset.from_tensor_slices(PAIRS).batch(4)
    np.testing.assert_allclose(made.predict(dataset, verbose=0), expected, atol=1e-6)


def test_inside_of_a_graph(model: bertkit.BertClassifier) -> None:
    expected = model(TEXTS).numpy()
    graph = tf.function(lambda x: model(x))
    forms = [tf.constant(TEXTS), tf.constant(TEXTS)[:, None], dict(tensors()), TFHUB]
    for form in forms:
        np.testing.assert_allclose(
            graph(tf.nest.map_structure(tf.constant, form)), expected, atol=1e-6
        )
    # As a part of a functional model, and of a pipeline.
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in tensors()}
    functional = keras.Model(inputs, model(inputs))
    np.testing.assert_allclose(functional(tensors()), expected, atol=1e-6)
    outputs = next(iter(tf.data.Dataset.from_tensor_slices(TEXTS).batch(11).map(model)))
    np.testing.assert_allclose(outputs, expected, atol=1e-6)
