"""The options of the heads: what they learn, which loss they make, and what they refuse."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

import bertkit
from bertkit import experiment
from bertkit.config import load_config
from bertkit.errors import ConfigError, InputError
from bertkit.registry import heads
from bertkit_plugins.heads.losses import (
    LabelwiseCrossentropy,
    PairwiseMargin,
    SingleLabelCrossentropy,
    StandardizedSquaredError,
)
from bertkit_plugins.heads.regression import RegressionHead
from tests.command_line import tiny_config, write_tiny_data, write_yaml
from tests.tiny_models import LABELS, TEXTS, tensors, tiny_encoder

SKEWED = ["a"] * 6 + ["b"] * 3 + ["c"]


def refusal(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


def options_of(loss: keras.losses.Loss) -> dict[str, Any]:
    config = loss.get_config()
    del config["name"], config["reduction"]
    return {name: value for name, value in config.items() if value}


# --- which loss it is


def test_without_an_option_the_losses_are_the_plain_ones() -> None:
    for name, wanted in (
        ("binary", keras.losses.BinaryCrossentropy),
        ("multiclass", keras.losses.SparseCategoricalCrossentropy),
        ("multi_label", LabelwiseCrossentropy),
        ("regression", StandardizedSquaredError),
    ):
        head = heads.create(name)
        head.adapt(LABELS[name])
        loss = head.make_loss()
        assert type(loss) is wanted
        assert name != "multi_label" or options_of(loss) == {}
        assert "from_logits" not in loss.get_config() or loss.get_config()["from_logits"]


@pytest.mark.parametrize(
    ("name", "arguments", "wanted"),
    [
        ("binary", {"label_smoothing": 0.2}, {"label_smoothing": 0.2}),
        ("binary", {"loss": "focal"}, {"gamma_positive": 2.0, "gamma_negative": 2.0}),
        ("binary", {"pos_weight": 3}, {"pos_weight": 3}),
        ("multi_label", {"pos_weight": [1.0, 2.5, 3]}, {"pos_weight": [1.0, 2.5, 3]}),
        (
            "multi_label",
            {"loss": "focal", "gamma": 1.0, "label_smoothing": 0.1},
            {"gamma_positive": 1.0, "gamma_negative": 1.0, "label_smoothing": 0.1},
        ),
        ("multi_label", {"loss": "asymmetric"}, {"gamma_negative": 4.0, "margin": 0.05}),
        (
            "multi_label",
            {"loss": "asymmetric", "gamma_negative": 3.0, "gamma_positive": 1.0, "margin": 0.2},
            {"gamma_negative": 3.0, "gamma_positive": 1.0, "margin": 0.2},
        ),
        ("multiclass", {"label_smoothing": 0.1}, {"label_smoothing": 0.1}),
        ("multiclass", {"loss": "focal"}, {"gamma": 2.0}),
        ("multiclass", {"loss": "focal", "gamma": 0.5}, {"gamma": 0.5}),
        (
            "regression",
            {"loss": "pairwise_margin", "scale": 2.0, "center": 0.0},
            {"margin": 1.0, "scale": 2.0},
        ),
    ],
)
def test_an_option_reaches_the_loss(
    name: str, arguments: dict[str, Any], wanted: dict[str, Any]
) -> None:
    head = heads.create(name, **arguments)
    head.adapt(LABELS[name])
    assert options_of(head.make_loss()) == wanted
    again = heads.create(name, **json.loads(json.dumps(head.get_config())))
    assert options_of(again.make_loss()) == wanted


# --- what is learned from the labels


def test_a_balanced_weight_is_negatives_for_each_positive() -> None:
    head = heads.create("binary", pos_weight="balanced")
    assert not head.adapted
    head.adapt(["no"] * 6 + ["yes"] * 2)
    assert head.adapted
    assert head.get_config()["pos_weight"] == 3.0
    assert options_of(head.make_loss()) == {"pos_weight": 3.0}

    several = heads.create("multi_label", pos_weight="balanced")
    several.adapt([["a"], ["a", "b"], ["a"], [], ["b"], ["a"], ["a"], ["a"]])
    assert several.get_config()["pos_weight"] == [2 / 6, 6 / 2]
    matrix = heads.create("multi_label", pos_weight="balanced", labels=["a", "b"])
    nan = float("nan")
    matrix.adapt(np.array([[1, nan], [0, 1], [0, 0], [nan, 0], [0, 0]]))
    assert matrix.labels == ["a", "b"]
    assert matrix.get_config()["pos_weight"] == [3.0, 3.0]


def test_a_missing_label_is_neither_positive_nor_negative() -> None:
    head = heads.create("binary", pos_weight="balanced", ignore_missing=True)
    head.adapt(["no", None, "yes", "no", ""])
    assert head.get_config()["pos_weight"] == 2.0


def test_a_balanced_weight_weighs_both_sides_alike() -> None:
    head = heads.create("binary", pos_weight="balanced")
    rows = ["no"] * 6 + ["yes"] * 2
    head.adapt(rows)
    logits = tf.Variable(tf.zeros((8, 1)))
    with tf.GradientTape() as tape:
        loss = head.make_loss()(head.encode_labels(rows), logits)
    assert float(tf.reduce_sum(tape.gradient(loss, logits))) == pytest.approx(0.0, abs=1e-7)


def test_class_balance_weighs_by_the_effective_number_of_rows() -> None:
    counts, beta = np.array([6.0, 3.0, 1.0]), 0.9
    effective = np.array([sum(beta**k for k in range(int(count))) for count in counts])
    wanted = 1 / effective
    wanted *= 3 / wanted.sum()
    head = heads.create("multiclass", class_balance=beta)
    assert not head.adapted
    head.adapt(SKEWED)
    assert head.get_config()["label_counts"] == [6, 3, 1]
    assert head.make_loss().weights == pytest.approx(wanted)
    for extreme, ratio in ((0.0, 1.0), (1 - 1e-9, 6.0)):
        weights = heads.create("multiclass", class_balance=extreme, labels=["a", "b", "c"],
                               label_counts=[6, 3, 1]).make_loss().weights  # fmt: skip
        assert weights[2] / weights[0] == pytest.approx(ratio, rel=1e-5)


def test_logit_adjustment_is_of_the_loss_and_not_of_predictions() -> None:
    head = heads.create("multiclass", logit_adjustment=1.5)
    head.adapt(SKEWED)
    offsets = 1.5 * np.log([0.6, 0.3, 0.1])
    assert head.make_loss().offsets == pytest.approx(offsets)
    logits = np.random.default_rng(0).normal(size=(10, 3)).astype("float32")
    plain = heads.create("multiclass", labels=["a", "b", "c"])
    targets = head.encode_labels(SKEWED)
    assert head.decode(logits) == plain.decode(logits)
    wanted = plain.make_loss()(targets, logits + offsets.astype("float32"))
    assert float(head.make_loss()(targets, logits)) == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "arguments", "rows", "order"),
    [
        ("binary", {"pos_weight": "balanced"}, ["yes", "no", "no"], ["yes", "no"]),
        ("multiclass", {"class_balance": 0.99}, SKEWED, ["c", "a", "b"]),
        ("multi_label", {"pos_weight": "balanced"}, [["a"], ["b"]], ["b", "a"]),
    ],
)
def test_labels_that_were_given_keep_their_order(
    name: str, arguments: dict[str, Any], rows: list[Any], order: list[Any]
) -> None:
    head = heads.create(name, labels=order, **arguments)
    assert not head.adapted
    head.adapt(rows)
    assert head.adapted
    assert head.labels == order
    if name == "multiclass":
        assert head.get_config()["label_counts"] == [1, 6, 3]


def test_what_was_not_seen_yet_is_asked_for() -> None:
    text = refusal(heads.create("binary", labels=["n", "y"], pos_weight="balanced").make_loss)
    assert text == (
        "pos_weight is 'balanced', and the head has seen no rows yet. Call `fit` or "
        "`head.adapt(labels)` first, or give numbers."
    )
    head = heads.create("multiclass", labels=["a", "b"], logit_adjustment=1.0)
    assert refusal(head.make_loss) == (
        "class_balance and logit_adjustment need the number of rows of each label. Call `fit` or "
        "`head.adapt(labels)` first, or give `label_counts`."
    )


def test_counts_of_other_labels_are_refused() -> None:
    head = heads.create("multiclass", class_balance=0.9)
    head.adapt(SKEWED)
    head.adapt(["a", "b"])
    assert refusal(head.make_loss) == (
        "label_counts is [6, 3, 1]. Give `labels`, and a number for each of them."
    )


def test_labels_that_do_not_occur_cannot_be_balanced() -> None:
    head = heads.create("multiclass", labels=["a", "b", "c", "d"], class_balance=0.9)
    assert refusal(head.adapt, SKEWED) == (
        "There are 0 rows of the label 'd', and class_balance and logit_adjustment need some of "
        "each. Leave it out of `labels`, or give `label_counts`."
    )
    assert not head.adapted
    several = heads.create("multi_label", pos_weight="balanced")
    assert refusal(several.adapt, [["a"], ["a", "b"]]) == (
        "pos_weight is 'balanced', and 2 rows carry the label 'a' and 0 do not. It takes both: "
        "give pos_weight as numbers, or rows of both kinds."
    )
    several.adapt([["c"], ["d"]])  # nothing was kept of the rows before
    assert several.labels == ["c", "d"]


# --- what is refused


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("binary", {"loss": "hinge"}, "loss is 'hinge'. Give 'cross_entropy' or 'focal'."),
        ("regression", {"loss": "mse"}, "loss is 'mse'. Give 'squared_error' or "
                                        "'pairwise_margin'."),
        ("ordinal", {"method": "corl"}, "method is 'corl'. Give 'corn' or 'coral'."),
        ("multiclass", {"gamma": 2.0},
         "gamma is 2.0, which the loss 'cross_entropy' does not have. Set loss to 'focal', or "
         "leave gamma out."),
        ("multi_label", {"loss": "asymmetric", "gamma": 2.0},
         "gamma is 2.0, which the loss 'asymmetric' does not have. Set loss to 'focal', or leave "
         "gamma out."),
        ("multi_label", {"margin": 0.1},
         "margin is 0.1, which the loss 'cross_entropy' does not have. Set loss to 'asymmetric', "
         "or leave margin out."),
        ("regression", {"margin": 1.0},
         "margin is 1.0, which the loss 'squared_error' does not have. Set loss to "
         "'pairwise_margin', or leave margin out."),
        ("multiclass", {"loss": "focal", "gamma": -1},
         "gamma is -1. Give a finite number, 0 or more."),
        ("binary", {"loss": "focal", "gamma": float("nan")},
         "gamma is nan. Give a finite number, 0 or more."),
        ("multi_label", {"loss": "asymmetric", "margin": 1.0},
         "margin is 1.0. Give a number in [0, 1)."),
        ("binary", {"label_smoothing": 1.0}, "label_smoothing is 1.0. Give a number in [0, 1)."),
        ("multiclass", {"label_smoothing": "0.1"},
         "label_smoothing is '0.1'. Give a number in [0, 1)."),
        ("multiclass", {"class_balance": 1.0}, "class_balance is 1.0. Give a number in [0, 1)."),
        ("multiclass", {"logit_adjustment": -1.0},
         "logit_adjustment is -1.0. Give a finite number, 0 or more."),
        ("multiclass", {"logit_adjustment": 1.0, "class_balance": 0.9},
         "logit_adjustment and class_balance are given, and the adjustment is right for "
         "cross-entropy without weights alone. Choose one of them."),
        ("multiclass", {"logit_adjustment": 1.0, "loss": "focal"},
         "logit_adjustment and loss='focal' are given, and the adjustment is right for "
         "cross-entropy without weights alone. Choose one of them."),
        ("multiclass", {"labels": ["a", "b"], "label_counts": [1, 2]},
         "label_counts is [1, 2], and nothing uses it. Set class_balance or logit_adjustment, or "
         "leave it out."),
        ("multiclass", {"labels": ["a", "b"], "label_counts": [1], "class_balance": 0.9},
         "label_counts is [1]. Give `labels`, and a number for each of them."),
        ("multiclass", {"label_counts": [1, 2], "class_balance": 0.9},
         "label_counts is [1, 2]. Give `labels`, and a number for each of them."),
        ("binary", {"pos_weight": 0}, "pos_weight is 0. Give 'balanced', or finite numbers "
                                      "above 0."),
        ("multi_label", {"pos_weight": [1.0, float("inf")]},
         "pos_weight is [1.0, inf]. Give 'balanced', or finite numbers above 0."),
        ("binary", {"pos_weight": "even"},
         "pos_weight is 'even'. Give 'balanced', or finite numbers above 0."),
        ("binary", {"pos_weight": [1.0]},
         "pos_weight is the list [1.0], and the head 'binary' has one positive label. Give one "
         "number."),
        ("multi_label", {"pos_weight": 2.0, "loss": "asymmetric"},
         "pos_weight is 2.0, and the loss 'asymmetric' favours rows that carry a label by "
         "itself. Leave one of them out."),
        ("regression", {"loss": "pairwise_margin", "range": [0, 5]},
         "range is [0, 5], and the loss 'pairwise_margin' gives scores without a unit, which it "
         "would clip. Leave range out."),
    ],
)  # fmt: skip
def test_options_that_cannot_be_used_are_refused(
    name: str, arguments: dict[str, Any], message: str
) -> None:
    assert refusal(heads.create, name, **arguments) == f"The head {name!r}: {message}"


def test_a_list_of_weights_has_one_a_label() -> None:
    head = heads.create("multi_label", labels=["a", "b", "c"], pos_weight=[1.0, 2.0])
    assert refusal(head.make_loss) == (
        "pos_weight has 2 numbers, and there are 3 labels: ['a', 'b', 'c']. Give one a label, or "
        "one for all."
    )


# --- ranking


def test_a_ranking_learns_the_order_and_no_unit() -> None:
    keras.utils.set_random_seed(0)
    head = RegressionHead(loss="pairwise_margin", dropout=0.0)
    labels = [1.0, 2.0, 50.0, 4000.0]
    head.adapt(labels)
    features = {"pooled": tf.random.stateless_normal((4, 8), (0, 0))}
    head.build({"pooled": (None, 8)})
    loss, targets = head.make_loss(), head.encode_labels(labels)
    optimizer = keras.optimizers.Adam(0.05)
    for _ in range(60):
        with tf.GradientTape() as tape:
            value = loss(targets, head(features))
        weights = [head.kernel, head.bias]
        gradients = tape.gradient(value, weights)
        optimizer.apply_gradients(zip(gradients, weights, strict=True))
    outputs = head(features).numpy()
    assert float(value) < 0.05
    report = head.report(targets, outputs)
    assert report.keys() == {"pearson", "spearman"}
    assert report["spearman"] == pytest.approx(1.0)
    assert isinstance(loss, PairwiseMargin)
    assert [metric.name for metric in head.make_metrics()] == ["pearson"]


# --- from YAML to the run folder


def run_of(place: Path, head: str, **arguments: Any) -> experiment.Result:
    write_yaml(place / "run.yaml", tiny_config(head, head={"plugin": head, **arguments}))
    return experiment.run(load_config(["run.yaml"]), verbose=0, overwrite=True)


@pytest.mark.parametrize(
    ("head", "arguments"),
    [
        ("multi_label", {"loss": "focal", "label_smoothing": 0.1, "pos_weight": "balanced"}),
        ("multiclass", {"loss": "focal", "class_balance": 0.99, "labels": [2, 0, 1]}),
        ("regression", {"loss": "pairwise_margin", "margin": 0.5}),
    ],
)
def test_a_run_trains_measures_and_loads_with_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str, arguments: dict[str, Any]
) -> None:
    monkeypatch.chdir(write_tiny_data(tmp_path))
    result = run_of(tmp_path, head, **arguments)
    measures = json.loads(Path("runs", head, "metrics.json").read_text())["test"]
    outputs = result.model.predict(TEXTS, verbose=0)
    targets = result.model.head.encode_labels(LABELS[head])
    wanted = float(result.model.head.make_loss()(targets, outputs))
    assert measures["loss"] == pytest.approx(wanted, rel=1e-5)
    loaded = bertkit.load(f"runs/{head}")
    assert loaded.head.get_config() == result.model.head.get_config()
    assert options_of(loaded.head.make_loss()) == options_of(result.model.head.make_loss())
    assert "balanced" not in str(loaded.head.get_config())
    with Path("runs", head, "history.csv").open() as file:
        assert all(np.isfinite(float(row["loss"])) for row in csv.DictReader(file))


def test_mistakes_in_yaml_name_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_tiny_data(tmp_path))
    for key, value, says in (
        ("loss", "focl", 'head.loss = "focl": expected "cross_entropy" or "focal"'),
        ("label_smoothing", "much", 'head.label_smoothing = "much": expected a number'),
        ("pos_weight", "[1, 2]", 'expected a number or "balanced" or null'),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(["binary.yaml"], [f"head.{key}={value}"])
        assert says in str(caught.value)


def test_the_loss_of_many_rows_is_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    targets = np.sort(generator.normal(size=(300, 1)), axis=0).astype("float32")
    outputs = (targets + generator.normal(size=targets.shape)).astype("float32")
    losses = [StandardizedSquaredError(1.0), PairwiseMargin(1.0, 1.0)]
    whole = [experiment._mean_loss(loss, targets, outputs) for loss in losses]
    monkeypatch.setattr(experiment, "_COMPARED", 64)
    squared, margin = (experiment._mean_loss(loss, targets, outputs) for loss in losses)
    assert whole[1] == pytest.approx(float(losses[1](targets, outputs)), rel=1e-5)
    assert squared == pytest.approx(whole[0], rel=1e-6)
    # Of other pairs, but drawn at random: sorted rows in parts as they stand would give far more.
    assert margin == pytest.approx(whole[1], rel=0.1)


def test_an_option_survives_in_a_saved_model(tmp_path: Path) -> None:
    head = heads.create("binary", loss="focal", pos_weight="balanced", ignore_missing=True)
    model = bertkit.BertClassifier(tiny_encoder(), head)
    rows: list[Any] = [*LABELS["binary"][:-1], None]
    model.compile(optimizer="adam", run_eagerly=True)
    model.train_on_batch(tensors(), rows)
    model.save(tmp_path / "model.keras")
    loaded: Any = keras.models.load_model(tmp_path / "model.keras")
    first, second = (
        m.evaluate(tensors(), rows, verbose=0, return_dict=True) for m in (model, loaded)
    )
    assert first == second
    assert isinstance(loaded.loss, LabelwiseCrossentropy)
    assert loaded.loss.get_config() == model.loss.get_config()


def test_heads_with_a_loss_of_their_own_stay_one_dense_layer() -> None:
    """What they predict is what any of their kind does."""
    for name, arguments in (
        ("multiclass", {"logit_adjustment": 1.0}),
        ("multi_label", {"loss": "asymmetric"}),
        ("binary", {"loss": "focal"}),
    ):
        head = heads.create(name, **arguments)
        head.adapt(LABELS[name])
        head.build({"pooled": (None, 4)})
        dense = head.as_dense()
        assert dense is not None
        pooled = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
        logits: NDArray[Any] = pooled @ dense.kernel + dense.bias
        found = head.probabilities(head({"pooled": tf.constant(pooled)}).numpy())
        if name == "multi_label":
            wanted = 1 / (1 + np.exp(-logits))
        else:
            wanted = tf.nn.softmax(logits).numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_single_label_loss_is_used_for_two_labels_too() -> None:
    head = heads.create("multiclass", class_balance=0.9)
    head.adapt(["n", "n", "y"])
    assert isinstance(head.make_loss(), SingleLabelCrossentropy)
