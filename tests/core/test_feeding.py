"""Labels, weights, streams and arguments that cannot be used, and the weights of classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import bertkit
from bertkit.errors import InputError
from tests.tiny_models import (
    LABELS,
    TEXTS,
    assert_refused,
    assert_same,
    tensors,
    tiny_model,
    weights_of,
)

X, Y = TEXTS[:4], ["pos", "neg", "pos", "neg"]
nan = float("nan")


@pytest.fixture(scope="module")
def models() -> dict[str, bertkit.BertClassifier]:
    """A model for each head; none of them is ever trained."""
    return {head: tiny_model(head) for head in LABELS}


@pytest.fixture(scope="module")
def fresh() -> dict[str, bertkit.BertClassifier]:
    """A model for each head that does not know its labels, and never learns them."""
    return {head: tiny_model(head, adapted=False) for head in LABELS}


# Head, labels of four rows, a part of the message; None is the head of every kind.
LABEL_CASES: list[tuple[str, str, Any, str]] = [
    ("none", "binary", None, "no labels|labels are None"),
    ("a string", "binary", "pos", "labels are 'pos'|Give one a row"),
    ("a number", "binary", 1, "Give one a row"),
    ("a dict", "binary", dict.fromkeys(X, "pos"), "Give one a row"),
    ("a set", "binary", {"pos", "neg"}, "Give one a row"),
    ("a generator", "binary", (y for y in Y), "generator.*Give one a row"),
    ("a scalar array", "binary", np.array("pos"), "Give one a row"),
    ("a scalar tensor", "binary", tf.constant("pos"), "Give one a row"),
    ("never seen", "binary", ["pos", "neg", "pos", "poss"], "'poss'.*Did you mean 'pos'"),
    ("never seen at all", "binary", ["pos", "neg", "pos", "zebra"], "never seen"),
    ("another type", "multiclass", [0, 1, "2", 1], "Did you mean 2, of another type"),
    ("too few", "binary", Y[:3], "4 rows and 3 labels"),
    ("too many", "binary", [*Y, "pos"], "4 rows and 5 labels"),
    ("no label", "binary", [], "4 rows and 0 labels"),
    ("None within", "binary", ["pos", None, "pos", "neg"], "Label 1 is missing.*drop"),
    ("NaN within", "multiclass", [0, 1, nan, 2], "Label 2 is missing"),
    ("pandas' NA", "binary", pd.Series(["pos", pd.NA, "neg", "neg"]), "Label 1 is"),
    ("empty", "binary", ["pos", "", "pos", "neg"], "Label 1 is missing"),
    ("white space", "binary", ["pos", " ", "pos", "neg"], "Label 1 is missing"),
    ("fractions", "multiclass", [0.5, 1, 2, 0], "fraction 0.5.*'regression'"),
    ("lists", "multiclass", [[0], [1], [2], [0]], "list.*'multi_label'"),
    ("one-hot rows", "multiclass", np.eye(4, 3), "list.*'multi_label'"),
    ("long arrays", "multiclass", np.zeros((4, 999)), "list.*'multi_label'"),
    ("objects", "binary", [object()] * 4, "type object"),
    ("tensors", "binary", [tf.constant("pos")] * 4, "EagerTensor"),
    ("a frame of two columns", "binary", pd.DataFrame({"a": Y, "b": Y}), "list"),
    ("no lists", "multi_label", ["a", "b", "a", "b"], "Label 0 is 'a'.*Give a list"),
    ("numbers, not lists", "multi_label", [1, 2, 1, 2], "Give a list"),
    ("None, not lists", "multi_label", [["a"], None, ["b"], []], "Label 1 is None.*Give a list"),
    ("None in a list", "multi_label", [["a"], [None], ["b"], []], "Label 1 is missing"),
    ("nested lists", "multi_label", [["a"], [["b"]], ["b"], []], "Label 1 is a list"),
    ("unseen in a list", "multi_label", [["a"], ["z"], ["b"], []], "'z', which was never seen"),
    ("a narrow matrix", "multi_label", np.ones((4, 2)), "3 columns.*2 wide"),
    ("an empty matrix", "multi_label", np.ones((0, 2)), "3 columns.*2 wide"),
    ("probabilities", "multi_label", np.full((4, 3), 0.5), "0 and 1 in 3 columns"),
    ("infinity in a matrix", "multi_label", np.full((4, 3), np.inf), "0 and 1 in 3 columns"),
    ("words", "regression", ["good", "bad", "good", "bad"], "needs a finite number"),
    ("infinity", "regression", [1, 2, np.inf, 3], "Label 2 is inf"),
    ("NaN", "regression", [1, 2, nan, 3], "Label 2 is nan"),
    ("too large for float32", "regression", [1, 2, 1e300, 3], "finite"),
    ("too large for float64", "regression", [1, 2, 10**999, 3], "finite"),
    ("lists of numbers", "regression", [[1, 2]] * 4, "needs a finite number"),
    ("a wide matrix", "regression", np.ones((4, 2)), "needs a finite number"),
]


@pytest.mark.parametrize(
    ("head", "y", "match"), [c[1:] for c in LABEL_CASES], ids=[c[0] for c in LABEL_CASES]
)
def test_labels(models: dict[str, Any], head: str, y: Any, match: str) -> None:
    for call in (
        lambda m: m.fit(X, y, verbose=0),
        lambda m: m.evaluate(X, y, verbose=0),
        lambda m: m.train_on_batch(X, y),
        lambda m: m.test_on_batch(X, y),
        lambda m: m.fit(X, LABELS[head][:4], validation_data=(X, y), verbose=0),
        lambda m: m.fit({k: v[:4] for k, v in tensors().items()}, y, verbose=0),
    ):
        assert_refused(models[head], call, match)


@pytest.mark.parametrize(
    ("head", "y", "match"),
    [
        ("binary", ["a"] * 4, "needs two labels"),
        ("binary", ["a", "b", "c", "a"], "needs two labels.*'multiclass'"),
        ("multiclass", [3] * 4, "only label is 3"),
        ("multiclass", ["a", 1, "a", 1], "mix int and str"),
        ("multiclass", [True, "no", True, "no"], "mix bool and str"),
        ("multi_label", [[], [], [], []], "no labels"),
        ("multi_label", [["a"], [1], [], []], "mix int and str"),
        ("multi_label", np.full((4, 3), 0.5), "0 and 1"),
        ("regression", [], "no labels|Give"),
        *((head, y, match) for _, head, y, match in LABEL_CASES[14:24]),
    ],
)
def test_labels_to_learn(fresh: dict[str, Any], head: str, y: Any, match: str) -> None:
    assert_refused(fresh[head], lambda m: m.fit(X, y, verbose=0), match)
    assert_refused(fresh[head], lambda m: m.train_on_batch(X, y), match)
    if len(y) == 4 and not hasattr(y, "iloc"):
        dataset = lambda: iter([(X, y)])  # noqa: E731
        assert_refused(fresh[head], lambda m: m.fit(dataset(), verbose=0), "only once|generator")


@pytest.mark.parametrize("head", LABELS)
def test_labels_are_forgotten_if_the_rest_is_unusable(fresh: dict[str, Any], head: str) -> None:
    y = LABELS[head][:4]
    calls: list[tuple[Callable[[Any], Any], str]] = [
        (lambda m: m.fit([*X[:3], None], y), "Row 3 is missing"),
        (lambda m: m.fit(X[:3], y), "3 rows and 4 labels"),
        (lambda m: m.fit(X, y, sample_weight=[1, 2]), "sample_weight has shape"),
        (lambda m: m.fit(X, y, class_weight={"no such": 2}), "class_weight"),
        (lambda m: m.fit(X, y, validation_data=(X, [object()] * 4)), "Label 0"),
        (lambda m: m.fit(X, y, validation_data=([""], y[:1])), "Row 0 is empty"),
        (lambda m: m.fit(X, y, validation_data=(X, y, [nan] * 4)), "sample_weight"),
        (lambda m: m.train_on_batch([*X[:3], None], y), "Row 3 is missing"),
    ]
    for call, match in calls:
        assert_refused(fresh[head], call, match)
        assert not fresh[head].head.adapted and not fresh[head].head.built


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"class_weight": {"poss": 2}}, "class_weight has 'poss'.*'pos'"),
        ({"class_weight": {1: 2}}, "class_weight has 1"),
        ({"class_weight": {"pos": "heavy"}}, "'heavy'"),
        ({"class_weight": {"pos": None}}, "None"),
        ({"class_weight": {"pos": nan}}, "nan.*finite"),
        ({"class_weight": {"pos": np.inf}}, "inf.*finite"),
        ({"class_weight": {"pos": -1}}, "-1.*0 or more"),
        ({"class_weight": {("pos",): 1}}, "class_weight has"),
        ({"class_weight": [1, 2]}, "Give a dict"),
        ({"class_weight": "balanced"}, "Give a dict"),
        ({"class_weight": {"pos": 2}, "sample_weight": [1] * 4}, "Multiply"),
        ({"sample_weight": [1] * 3}, r"shape \(3,\) for 4 rows"),
        ({"sample_weight": np.ones((4, 2))}, r"shape \(4, 2\)"),
        ({"sample_weight": [1, 2, nan, 1]}, "of row 2 is nan"),
        ({"sample_weight": [1, 2, np.inf, 1]}, "of row 2 is inf"),
        ({"sample_weight": [1, 2, -1, 1]}, "of row 2 is -1.0"),
        ({"sample_weight": [1, 2, None, 1]}, "of row 2 is nan"),
        ({"sample_weight": ["a"] * 4}, "Give one number a row"),
        ({"sample_weight": [[1], [1, 2], [1], [1]]}, "Give one number a row"),
        ({"sample_weight": 2}, "sample weights are 2"),
        ({"sample_weight": {"pos": 2}}, "sample weights are {'pos': 2}"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": -4}, "batch_size is -4"),
        ({"batch_size": 2.5}, "whole number"),
        ({"batch_size": "8"}, "whole number"),
        ({"validation_split": 1.5}, "between 0 and 1"),
        ({"validation_split": -0.5}, "between 0 and 1"),
        ({"validation_split": 1.0}, "between 0 and 1"),
        ({"validation_split": nan}, "between 0 and 1"),
        ({"validation_split": "0.2"}, "between 0 and 1"),
        ({"validation_split": 0.9}, "leaves nothing"),
        ({"validation_data": X}, "4 parts"),
        ({"validation_data": (X, Y, None, None)}, "4 parts"),
        ({"validation_data": ()}, "0 parts"),
        ({"validation_data": (X,)}, "no labels"),
        ({"validation_data": tensors()}, "no labels"),
        ({"validation_data": (X, Y[:2])}, "4 rows and 2 labels"),
        ({"validation_data": (X, Y), "validation_batch_size": 0}, "batch_size is 0"),
        ({"validation_data": 5}, "type int"),
    ],
)
def test_arguments(
    models: dict[str, Any], fresh: dict[str, Any], options: dict[str, Any], match: str
) -> None:
    assert_refused(models["binary"], lambda m: m.fit(X, Y, verbose=0, **options), match)
    assert_refused(fresh["binary"], lambda m: m.fit(X, Y, verbose=0, **options), match)


def test_class_weights_of_numbers(models: dict[str, Any]) -> None:
    call = lambda m: m.fit(X, [1, 2, 3, 4], class_weight={1: 2}, verbose=0)  # noqa: E731
    assert_refused(models["regression"], call, "sample_weight")


def stream(*batches: Any) -> Iterator[Any]:
    return iter(batches)


ROWS = tf.data.Dataset.from_tensor_slices((X, Y))
STREAM_CASES: list[tuple[str, Callable[[], Any], str]] = [
    ("single texts", lambda: ROWS, "single texts. Batch it"),
    ("single texts without labels", lambda: ROWS.map(lambda x, y: x), "single texts|Batch it"),
    ("an empty dataset", lambda: ROWS.take(0).batch(2), "yields nothing"),
    ("an empty generator", lambda: stream(), "yields nothing"),
    ("no labels", lambda: ROWS.map(lambda x, y: x).batch(2), "no labels. Let it yield"),
    ("None as labels", lambda: stream((X, None)), "yields no labels"),
    ("texts alone", lambda: stream(np.array(X)), "yields no labels"),
    ("strings", lambda: iter(X), "yields no labels|single string"),
    ("rows", lambda: stream(*zip(X, Y, strict=True)), "single string"),
    ("four parts", lambda: stream((X, Y, None, None)), "4 parts"),
    ("empty batches", lambda: stream((X, Y, None)[:0]), "0 parts"),
    ("None", lambda: stream(None, None), "yields nothing|no labels"),
    ("numbers", lambda: stream((np.ones((2, 3)), Y[:2])), "numbers"),
    ("pairs", lambda: stream(([("a", "b")], ["pos"])), "where one text is wanted"),
    ("ragged texts", lambda: stream((tf.ragged.constant([["a"], []]), Y[:2])), "RaggedTensor"),
    ("unseen labels", lambda: stream((X, ["zebra"] * 4)), "never seen"),
    ("too few labels", lambda: stream((X, Y[:2])), "4 rows and 2 labels"),
    ("NaN weights", lambda: stream((X, Y, [nan] * 4)), "sample_weight"),
    ("ids out of range", lambda: stream(({**tensors(), "token_ids": tensors()["token_ids"] + 999},
                                         LABELS["binary"])), "token_ids holds"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "match"), [c[1:] for c in STREAM_CASES], ids=[c[0] for c in STREAM_CASES]
)
def test_streams(models: dict[str, Any], make: Callable[[], Any], match: str) -> None:
    assert_refused(models["binary"], lambda m: m.fit(make(), verbose=0), match)
    assert_refused(models["binary"], lambda m: m.evaluate(make(), verbose=0), match)
    assert_refused(models["binary"], lambda m: m.fit(X, Y, validation_data=make()), match)


def test_streams_whose_labels_are_to_be_learned(fresh: dict[str, Any]) -> None:
    model = fresh["binary"]
    assert_refused(model, lambda m: m.fit(stream((X, Y))), r"a generator.*only once.*labels")
    assert_refused(model, lambda m: m.fit(ROWS.batch(2).repeat()), "an endless dataset")
    for name in ("single texts", "an empty dataset", "no labels"):
        make, match = next(case[1:] for case in STREAM_CASES if case[0] == name)
        assert_refused(model, lambda m, make=make: m.fit(make()), match)
    same = ROWS.map(lambda x, y: (x, "pos")).batch(2)
    assert_refused(model, lambda m: m.fit(same), "needs two labels")


@pytest.mark.parametrize(
    "options",
    [{"y": Y}, {"sample_weight": [1] * 4}, {"validation_split": 0.5}, {"y": Y, "class_weight": {}}],
)
def test_what_goes_with_no_stream(models: dict[str, Any], options: dict[str, Any]) -> None:
    for x in (ROWS.batch(2), stream((X, Y))):
        assert_refused(models["binary"], lambda m, x=x: m.fit(x, **options), "dataset or generator")


def test_what_goes_wrong_in_the_middle_of_a_stream() -> None:
    model = tiny_model("binary")
    model.compile("sgd", model.head.make_loss(), run_eagerly=True)  # each fit would trace anew
    good = (X, Y)
    cases = [
        (stream(good, good, (["a", None], Y[:2])), {}, "^Row 1 is missing"),
        (stream(good, (X, ["pos", "neg", "pos", "zebra"])), {}, "^Label 3 is 'zebra'"),
        (stream(good, (X, Y, [1.0] * 4)), {}, r"^Batch 1 has sample weights, unlike"),
        (stream((X, Y, [1.0] * 4), good), {}, r"^Batch 1 has no sample weights, unlike"),
        (stream(good, (X, None)), {}, "yields no labels"),
        (stream(good, good), {"epochs": 3}, "^The generator is used up"),
        (X, {"y": Y, "validation_data": stream(good, ([""], ["pos"]))}, "^Row 0 is empty"),
        (X, {"y": Y, "validation_data": stream(good), "epochs": 2}, "^The generator is used up"),
    ]
    for x, options, match in cases:
        with pytest.raises(InputError, match=match) as caught:
            model.fit(x, verbose=0, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="Row 0 is empty"):
        model.predict(stream(X, [""]), verbose=0)
    with pytest.raises(InputError, match="Row 0 is empty"):
        model.evaluate(stream(good, ([""], ["pos"])), verbose=0)


@pytest.mark.parametrize(
    ("head", "class_weight"),
    [
        ("binary", {"pos": 3.0, "neg": 0.5}),
        ("multiclass", {0: 3.0, 2: np.float32(0.25)}),
        ("multi_label", {"a": 3.0, "c": 0.0}),
    ],
)
def test_class_weights_are_the_sample_weights_they_stand_for(head: str, class_weight: Any) -> None:
    y = LABELS[head]
    if head == "multi_label":  # each label is a task of its own
        names = ["a", "b", "c"]
        weights = [[class_weight.get(n, 1.0) if n in row else 1.0 for n in names] for row in y]
    else:
        weights = [class_weight.get(label, 1.0) for label in y]
    results = []
    for options in ({"class_weight": class_weight}, {"sample_weight": weights}):
        model = tiny_model(head)
        model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
        loss = model.train_on_batch(TEXTS, y, return_dict=True, **options)["loss"]
        results.append([np.float32(loss), *weights_of(model)])
    assert_same(*results)
    plain = tiny_model(head)
    plain.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    assert plain.train_on_batch(TEXTS, y, return_dict=True)["loss"] != results[0][0]


def test_batches_of_so_many_tokens() -> None:
    model = tiny_model("binary")
    longest = int(np.max(model.preprocessor.encode_array(np.array(TEXTS, object)).lengths))

    class Shapes(bertkit.BertClassifier):
        def train_step(self, data: Any) -> Any:
            shapes.append(tuple(data[0]["token_ids"].shape))
            return super().train_step(data)

    shapes: list[tuple[int, int]] = []
    model = tiny_model("binary", cls=Shapes)
    model.compile(run_eagerly=True)
    history = model.fit(
        TEXTS, LABELS["binary"], batch_tokens=longest + 3, epochs=2, verbose=0,
        validation_data=(TEXTS, LABELS["binary"]),
    )  # fmt: skip
    assert "val_loss" in history.history
    assert sum(rows for rows, _ in shapes) == 2 * len(TEXTS) > len(shapes)
    assert max(rows * width for rows, width in shapes) <= longest + 3


@pytest.mark.parametrize(
    ("x", "options", "match"),
    [
        (X, {"batch_tokens": 40, "batch_size": 2}, "Both batch_size and batch_tokens"),
        (X, {"batch_tokens": 3}, "batch_tokens is 3, and a row has"),
        (X, {"batch_tokens": 0}, "batch_tokens is 0. Give a whole number"),
        (X, {"batch_tokens": 40.0}, "batch_tokens is 40.0. Give a whole number"),
        (tensors(), {"batch_tokens": 40}, "batch_tokens needs raw text"),
        (tf.data.Dataset.from_tensors((X, Y)), {"batch_tokens": 40}, "batch_tokens needs raw text"),
    ],
)
def test_batch_tokens_that_cannot_be_used(x: Any, options: dict[str, Any], match: str) -> None:
    y = None if isinstance(x, tf.data.Dataset) else Y
    assert_refused(tiny_model("binary"), lambda m: m.fit(x, y, verbose=0, **options), match)
