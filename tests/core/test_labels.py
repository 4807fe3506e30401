"""Labels as people have them: made plain, learned, looked up, and refused with a reason."""

from __future__ import annotations

import datetime
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from bertkit.errors import InputError
from bertkit.labels import LabelSpace, is_missing, plain, rows_of


def refusal(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- one label a row, from anything


@pytest.mark.parametrize(
    ("labels", "rows"),
    [
        (["a", "b"], ["a", "b"]),
        (("a", "b"), ["a", "b"]),
        (np.array(["a", "b"]), ["a", "b"]),
        (np.array([1, 2]), [1, 2]),
        (np.array([["a"], ["b"]]), ["a", "b"]),
        (pd.Series(["a", "b"], index=[7, 3]), ["a", "b"]),
        (pd.Series(["b", "a"], dtype="category"), ["b", "a"]),
        (pd.Series([1, 2], dtype="Int64"), [1, 2]),
        (pd.DataFrame({"label": ["a", "b"]}), ["a", "b"]),
        (pd.Index(["a", "b"]), ["a", "b"]),
        (tf.constant(["a", "b"]), [b"a", b"b"]),
        (tf.constant([[1], [2]]), [1, 2]),
        (tf.ragged.constant([["a"], []]), [[b"a"], []]),
        ([["a"], ["b", "c"]], [["a"], ["b", "c"]]),
        ([], []),
        (np.zeros(0, "int64"), []),
    ],
)
def test_labels_become_a_list_of_rows(labels: Any, rows: list[Any]) -> None:
    assert rows_of(labels) == rows


@pytest.mark.parametrize(
    "labels", [None, "a", b"a", {"a": 1}, {"a", "b"}, 3, np.array(3), tf.constant("a"), object()]
)
def test_a_single_label_or_an_order_of_none_is_refused(labels: Any) -> None:
    text = refusal(rows_of, labels)
    assert text.startswith("The labels are ")
    assert text.endswith("Give one a row, as a list, an array or a column.")
    assert refusal(rows_of, labels, "weights").startswith("The weights are ")


def test_a_generator_is_refused_since_it_can_be_read_once() -> None:
    assert "<generator object" in refusal(rows_of, (x for x in "ab"))


# --- what a label may be


@pytest.mark.parametrize(
    ("label", "wanted"),
    [
        ("yes", "yes"),
        (" yes ", " yes "),
        (b"\xc3\xa9", "é"),
        (np.str_("a"), "a"),
        (np.bytes_(b"a"), "a"),
        (3, 3),
        (-1, -1),
        (2.0, 2),
        (np.int32(3), 3),
        (np.uint8(3), 3),
        (np.float32(3), 3),
        (True, True),
        (np.bool_(False), False),
    ],
)
def test_a_label_becomes_a_plain_value(label: Any, wanted: Any) -> None:
    found = plain(label, 0)
    assert (found, type(found)) == (wanted, type(wanted))
    assert json.loads(json.dumps(found)) == wanted


@pytest.mark.parametrize(
    "missing", [None, float("nan"), np.float32("nan"), "", "  ", b"", pd.NA, pd.NaT]
)
def test_a_missing_label_is_named_by_its_row(missing: Any) -> None:
    text = refusal(plain, missing, 41)
    assert text.startswith("Label 41 is missing (")
    assert text.endswith("Fill it in, or drop the row.")
    assert is_missing(missing)


@pytest.mark.parametrize("fraction", [0.5, np.float32(0.5), float("inf")])
def test_a_fraction_is_no_label(fraction: Any) -> None:
    text = refusal(plain, fraction, 3)
    assert text.startswith(f"Label 3 is the fraction {float(fraction)}. ")
    assert "the head 'regression'" in text


@pytest.mark.parametrize("several", [["a"], ("a", "b"), {"a"}, np.array([1, 0]), []])
def test_several_labels_a_row_need_another_head(several: Any) -> None:
    text = refusal(plain, several, 3)
    assert text.startswith("Label 3 is a list, ")
    assert "Several labels a row need the head 'multi_label'" in text


@pytest.mark.parametrize("odd", [1j, {"a": 1}, datetime.date(2020, 1, 1), object()])
def test_another_type_is_named(odd: Any) -> None:
    assert f" of type {type(odd).__name__}. A label is a string or a whole number." in refusal(
        plain, odd, 3
    )


# --- the space


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (["pos", "neg", "pos"], ["neg", "pos"]),
        (["10", "9", "é", "Z"], ["10", "9", "Z", "é"]),
        ([10, 9, -1, 9], [-1, 9, 10]),
        ([True, False], [False, True]),
    ],
)
def test_labels_are_learned_in_sorted_order(labels: list[Any], wanted: list[Any]) -> None:
    space = LabelSpace.learn(labels)
    assert space.labels == wanted
    assert [type(x) for x in space.labels] == [type(x) for x in wanted]
    assert [space.id_of(label, 0) for label in wanted] == list(range(len(wanted)))
    assert len(space) == len(wanted)


def test_given_labels_keep_their_order() -> None:
    assert LabelSpace(list(np.array(["z", "a"]))).labels == ["z", "a"]
    assert LabelSpace(["z", "a"]).id_of("z", 0) == 0


def test_labels_of_several_types_are_refused() -> None:
    text = refusal(LabelSpace.learn, ["a", 1, 2])
    assert text.startswith("The labels mix int and str, such as ")
    assert "'a'" in text
    assert text.endswith("Make them all of one type.")
    assert "mix bool and int" in refusal(LabelSpace.learn, [True, 0])


def test_a_label_twice_and_none_at_all_are_refused() -> None:
    assert refusal(LabelSpace, ["a", "b", "a"]) == "The label 'a' stands twice. Name it once."
    assert refusal(LabelSpace, []) == "There are no labels. Give at least one."
    assert refusal(LabelSpace.learn, []) == "There are no labels. Give at least one."
    assert refusal(LabelSpace, ["a", None]).startswith("Label 1 is missing")


@pytest.mark.parametrize(
    ("known", "asked", "hint"),
    [
        (["positive", "negative"], "positve", " Did you mean 'positive'?"),
        ([0, 1], "1", " Did you mean 1, of another type?"),
        (["0", "1"], 1, " Did you mean '1', of another type?"),
        ([False, True], "True", " Did you mean True, of another type?"),
        (["a", "b"], "zebra", ""),
    ],
)
def test_an_unseen_label_is_named_with_what_is_known(
    known: list[Any], asked: Any, hint: str
) -> None:
    shown = ", ".join(map(repr, known))
    assert refusal(LabelSpace(known).id_of, asked, 5) == (
        f"Label 5 is {asked!r}, which was never seen: the head knows {shown}.{hint} "
        "Correct it, or train a head with `labels` that include it."
    )


def test_of_many_known_labels_ten_are_shown() -> None:
    text = refusal(LabelSpace(list(range(100, 125))).id_of, 7, 0)
    assert "the head knows 100, 101, 102, 103, 104, 105, 106, 107, 108, 109 and 15 more." in text


# --- class weights


def test_class_weights_are_one_where_none_is_given() -> None:
    weights = LabelSpace(["a", "b", "c"]).weights({"c": 3, "a": 0.5})
    assert weights.dtype == np.float32
    assert weights.tolist() == [0.5, 1.0, 3.0]
    assert LabelSpace([0, 1]).weights({np.int64(1): float(np.float32(2))}).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "weights", [{"d": 1.0}, {0: 1.0}, {"a": "much"}, {"a": None}, {"a": -1}, {"a": float("nan")},
                {"a": float("inf")}, {("a",): 2}]
)  # fmt: skip
def test_class_weights_that_cannot_be_used_are_refused(weights: dict[Any, Any]) -> None:
    text = refusal(LabelSpace(["a", "b", "c"]).weights, weights)
    assert text.startswith(f"class_weight has {next(iter(weights))!r}: ")
    assert "the labels are ['a', 'b', 'c']" in text
    assert refusal(LabelSpace(["a"]).weights, [1.0]).startswith("class_weight is [1.0]. Give a d")
