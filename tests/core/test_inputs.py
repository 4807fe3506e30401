"""Unusable data: each a line that names the fix, and a model that is as it was before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import bertkit
from bertkit.errors import InputError
from tests.tiny_models import LABELS, TEXTS, assert_refused, tensors, tiny_model

X, Y = TEXTS[:4], ["pos", "neg", "pos", "neg"]
IDS = {name: value[:4] for name, value in tensors().items()}
SEQUENCE_LENGTH, POSITIONS, PIECES = 32, 40, 188
nan = float("nan")


@pytest.fixture(scope="module")
def models() -> dict[str, bertkit.BertClassifier]:
    """Models by name; none of them is ever trained."""
    made = {head: tiny_model(head) for head in LABELS}
    made["pair"] = tiny_model("binary", "sentence_pair")
    made["tensors"] = tiny_model("binary", None)
    made["fresh"] = tiny_model("binary", adapted=False)
    made["fresh regression"] = tiny_model("regression", adapted=False)
    made["fresh multi_label"] = tiny_model("multi_label", adapted=False)
    return made


class Odd:
    def __repr__(self) -> str:
        return "an\nodd\nthing" * 50


RAGGED = tf.ragged.constant([["a"], ["b", "c"]])
# What is no list of texts for a model of one text a row, and a part of the message.
TEXT_CASES: list[tuple[str, Any, str]] = [
    ("none", None, "None. Give a list of strings"),
    ("a string", "a film", "single string"),
    ("bytes", b"a film", "single string"),
    ("a number", 5, "type int"),
    ("a float", 0.5, "type float"),
    ("a bool", True, "type bool"),
    ("an object", Odd(), "type Odd"),
    ("a set", {"a", "b"}, "type set"),
    ("nothing", [], "no rows"),
    ("an empty array", np.array([], dtype=object), "no rows"),
    ("an empty tuple", (), "no rows"),
    ("numbers", [1, 2], "Row 0 is 1 of type int.*str()"),
    ("a float array", np.zeros((2, 3)), r"numbers \(float64.*padding_mask"),
    ("an int array", np.zeros((2, 3), int), r"numbers \(int64"),
    ("a bool array", np.array([True]), r"numbers \(bool"),
    ("a complex array", np.array([1j]), r"numbers \(complex"),
    ("dates", np.array(["2020-01-01"], dtype="datetime64[D]"), "type date"),
    ("a scalar array", np.array("film"), "Give a list of strings"),
    ("a tensor of numbers", tf.constant([1, 2]), r"numbers \(int32"),
    ("a scalar tensor", tf.constant("film"), "Give a list of strings"),
    ("a ragged tensor", RAGGED, "RaggedTensor. Give a list"),
    ("a sparse tensor", tf.sparse.from_dense(["a"]), "SparseTensor. Give a list"),
    ("None within", ["a", None], "Row 1 is missing.*Drop the row"),
    ("NaN within", ["a", nan], "Row 1 is missing.*Drop the row"),
    ("NumPy's NaN", np.array(["a", np.nan], dtype=object), "Row 1 is missing"),
    ("pandas' None", pd.Series(["a", None]), "Row 1 is"),
    ("pandas' NA", pd.Series(["a", pd.NA], dtype="string"), "Row 1 is"),
    ("empty", ["a", ""], "Row 1 is empty.*Drop"),
    ("white space", ["a", " \t\n\u3000"], "Row 1 is empty"),
    ("empty bytes", [b"a", b""], "Row 1 is empty"),
    ("empty NumPy string", np.array(["a", ""]), "Row 1 is empty"),
    ("half a surrogate", ["a", "good \ud83d film"], "Row 1 holds half a surrogate.*character 5"),
    ("the other half", ["\ude00"], "Row 0 holds half a surrogate"),
    ("pairs", [("a", "b"), ("c", "d")], "where one text is wanted.*sentence_pair"),
    ("lists", [["a", "b"]], "where one text is wanted"),
    ("an empty list within", [[]], "where one text is wanted"),
    ("nested twice", [[["a"]]], "where one text is wanted"),
    ("a frame of two columns", pd.DataFrame({"a": ["x"], "b": ["y"]}), "where one text is wanted"),
    ("an array of pairs", np.array([["a", "b"]]), "where one text is wanted"),
    ("an array of arrays", [np.array(["a"] * 200)], "where one text is wanted"),
    ("a dict within", [{"text": "a"}], "type dict"),
    ("an object within", [Odd()], "type Odd"),
    ("a tensor within", [tf.constant("a")], "EagerTensor"),
    ("an exception", [ValueError("x\ny")], "type ValueError"),
]
PAIR_CASES: list[tuple[str, Any, str]] = [
    ("single texts", ["a", "b"], "single text 'a' where a pair is wanted.*single_text"),
    ("single bytes", [b"a"], "where a pair is wanted"),
    ("triples", [("a", "b", "c")], "not a pair"),
    ("singles", [("a",)], "not a pair"),
    ("one short", [("a", "b"), ("c",)], "Row 1 .*not a pair"),
    ("empty rows", [()], "not a pair"),
    ("None as a row", [None], "not a pair"),
    ("columns", (["a"] * 3, ["b"] * 3), r"not a pair.*list\(zip\("),
    ("columns of tensors", (tf.constant(X), tf.constant(X)), r"not a pair.*list\(zip\("),
    ("None as the second", [("a", None)], "Row 0 is missing"),
    ("NaN as the first", [(nan, "a")], "Row 0 is missing"),
    ("an empty second", [("a", "b"), ("a", "")], "Row 1 is empty"),
    ("a number", [("a", 5)], "of type int"),
    ("nested pairs", [(("a", "b"), "c")], "where one text is wanted"),
    ("a column", pd.Series(["a", "b"]), "where a pair is wanted"),
    ("three columns", np.array([["a", "b", "c"]]), "not a pair"),
    ("dicts", [{"first": "a", "second": "b"}], "not a pair"),
]


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in IDS.items() if name not in names}


TENSOR_CASES: list[tuple[str, Any, str]] = [
    ("no inputs", {}, "named nothing; missing: token_ids, padding_mask"),
    ("no mask", without("padding_mask"), "missing: padding_mask"),
    ("no ids", without("token_ids"), "missing: token_ids"),
    ("an extra name", {**IDS, "extra": IDS["token_ids"]}, "not known: 'extra'"),
    ("a number as name", {**IDS, 5: IDS["token_ids"], "z": 1}, "not known: 5, 'z'"),
    ("a long name", {**IDS, "x\n" * 500: 1}, "not known"),
    ("Hugging Face's names", {"input_ids": 1, "attention_mask": 1}, "KerasHub's names"),
    ("the same twice", {**IDS, "input_word_ids": IDS["token_ids"]}, "once"),
    ("float ids", {**IDS, "token_ids": IDS["token_ids"] * 1.0}, "token_ids holds float"),
    ("text as ids", {**IDS, "token_ids": [["a"] * 4] * 4}, "token_ids holds string"),
    ("None as ids", {**IDS, "token_ids": None}, "token_ids"),
    ("ragged ids", {**IDS, "token_ids": [[1], [2, 3]]}, "rectangular.*Pad"),
    ("a ragged tensor", {**IDS, "token_ids": tf.ragged.constant([[1], [2, 3]])}, "Pad"),
    ("a sparse tensor", {**IDS, "token_ids": tf.sparse.from_dense([[1]])}, "token_ids"),
    ("other shapes", {**IDS, "padding_mask": IDS["padding_mask"][:, :-1]}, "padding_mask has"),
    ("fewer rows", {**IDS, "segment_ids": IDS["segment_ids"][:-1]}, "segment_ids has shape"),
    ("one row unbatched", {name: value[0] for name, value in IDS.items()}, r"\(batch, tokens\)"),
    ("three dimensions", {name: value[None] for name, value in IDS.items()}, r"\(batch, tokens\)"),
    ("scalars", dict.fromkeys(IDS, 1), r"\(batch, tokens\)"),
    ("no rows", {name: value[:0] for name, value in IDS.items()}, "at least one row"),
    (
        "no tokens",
        {name: value[:, :0] for name, value in IDS.items()},
        "at least one row and token",
    ),
    ("too long", dict.fromkeys(IDS, np.ones((2, POSITIONS + 1), int)), "positions for 40.*Shorten"),
    ("an id too large", {**IDS, "token_ids": IDS["token_ids"] + PIECES}, "0 to 187"),
    ("an id below 0", {**IDS, "token_ids": IDS["token_ids"] - 99}, "token_ids holds -"),
    (
        "an id of 33 bits",
        {**IDS, "token_ids": IDS["token_ids"].astype("int64") + 2**32},
        "token_ids holds 42949",
    ),
    ("an id of 70 bits", {**IDS, "token_ids": [[2**70] * 4] * 4}, "token_ids"),
    ("a third segment", {**IDS, "segment_ids": IDS["segment_ids"] + 2}, "segment_ids holds 2"),
    ("an additive mask", {**IDS, "padding_mask": -9999 * IDS["padding_mask"]}, "0 to 1"),
]


@pytest.mark.parametrize(
    ("x", "match"), [c[1:] for c in TEXT_CASES], ids=[c[0] for c in TEXT_CASES]
)
def test_texts(models: dict[str, Any], x: Any, match: str) -> None:
    assert_refused(models["binary"], lambda m: m(x), match)
    assert_refused(models["binary"], lambda m: m.predict_on_batch(x), match)
    # No rows have no predictions, so there classify alone has nothing to refuse.
    assert_refused(models["binary"], lambda m: m.classify(x) or m.predict(x), match)
    assert_refused(models["fresh"], lambda m: m.fit(x, ["no", "yes"], verbose=0), match)
    assert_refused(models["binary"], lambda m: m.evaluate(x, Y, verbose=0), match)
    assert_refused(models["fresh"], lambda m: m.train_on_batch(x, ["no", "yes"]), match)
    assert_refused(models["fresh"], lambda m: m.fit(x, Y, validation_split=0.5, verbose=0), match)
    assert_refused(models["fresh"], lambda m: m.fit(X, Y, validation_data=(x, Y)), match)


@pytest.mark.parametrize(
    ("x", "match"), [c[1:] for c in PAIR_CASES], ids=[c[0] for c in PAIR_CASES]
)
def test_pairs(models: dict[str, Any], x: Any, match: str) -> None:
    assert_refused(models["pair"], lambda m: m(x), match)
    assert_refused(models["pair"], lambda m: m.fit(x, Y, verbose=0), match)
    assert_refused(models["pair"], lambda m: m.predict(x, verbose=0), match)


@pytest.mark.parametrize(
    ("x", "match"), [c[1:] for c in TENSOR_CASES], ids=[c[0] for c in TENSOR_CASES]
)
@pytest.mark.parametrize("name", ["binary", "tensors"])
def test_tensors(models: dict[str, Any], name: str, x: Any, match: str) -> None:
    assert_refused(models[name], lambda m: m(x), match)
    assert_refused(models[name], lambda m: m.fit(x, Y, verbose=0), match)
    assert_refused(models[name], lambda m: m.predict(x, verbose=0), match)
    assert_refused(models[name], lambda m: m.fit(x, Y, validation_split=0.5, verbose=0), match)


def test_segments_that_the_encoder_ignores() -> None:
    model = tiny_model("binary", num_segments=0)
    np.testing.assert_array_equal(model(IDS), model({**IDS, "segment_ids": IDS["padding_mask"]}))


@pytest.mark.parametrize("x", [X, tf.constant(X), np.array(X), [("a", "b")], None, [1]])
def test_anything_but_tensors_without_a_preprocessor(models: dict[str, Any], x: Any) -> None:
    match = "without a preprocessor.*preprocessor='single_text'"
    assert_refused(models["tensors"], lambda m: m(x), match)
    assert_refused(models["tensors"], lambda m: m.fit(x, Y, verbose=0), match)
    assert_refused(models["tensors"], lambda m: m.predict(x, verbose=0), match)


def test_text_without_a_vocabulary() -> None:
    model = tiny_model("binary", vocabulary=False)
    assert_refused(model, lambda m: m(X), "no vocabulary.*Vocabulary.from_file")
    assert_refused(model, lambda m: m.fit(X, Y, verbose=0), "no vocabulary")


@pytest.mark.parametrize("name", ["fresh", "fresh regression", "fresh multi_label"])
def test_a_head_without_labels(models: dict[str, Any], name: str) -> None:
    for call in (
        lambda m: m(X),
        lambda m: m.predict(X, verbose=0),
        lambda m: m.classify(X),
        lambda m: m.evaluate(X, Y, verbose=0),
        lambda m: m.test_on_batch(X, Y),
        lambda m: m.predict_on_batch(X),
    ):
        assert_refused(models[name], call, "does not know its labels yet. Give them")


def test_a_tensor_inside_a_graph(models: dict[str, Any]) -> None:
    # TensorFlow rewrites the error of a function that AutoGraph converted; ours is within.
    for x in (tf.constant([1, 2]), tf.constant([["a", "b"]]), tf.constant("a")):
        function = tf.function(lambda x: models["binary"](x), autograph=False)
        with pytest.raises(InputError, match=r"Give strings of shape \(batch,\)"):
            function(x)
