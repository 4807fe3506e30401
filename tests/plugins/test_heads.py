"""The heads that ship: losses by formula, metrics and reports by scikit-learn, labels by hand."""

from __future__ import annotations

import json
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as reference

from bertkit.errors import InputError
from bertkit.head import Head
from bertkit.registry import heads
from bertkit_plugins.heads.regression import RunningPearson

Array = NDArray[Any]
ROWS = 57
# How the rows fall into batches: uneven, one of a single row, one with none.
CUTS = [1, 20, 20, 50]
LABELS: dict[str, list[Any]] = {
    "binary": ["neg", "pos"],
    "multiclass": ["a", "b", "c", "d"],
    "multi_label": ["x", "y", "z"],
    "ordinal": [1, 2, 3, 5],
}


def refusal(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


def example(name: str, seed: int = 0) -> tuple[Head, list[Any], Array, Array]:
    """Return a head, raw labels, targets, and logits that are right more often than not."""
    generator = np.random.default_rng(seed)
    if name == "regression":
        head = heads.create(name)
        labels: list[Any] = (50 + 10 * generator.normal(size=ROWS)).tolist()
        head.adapt(labels)
        outputs = np.array(labels)[:, None] + 5 * generator.normal(size=(ROWS, 1))
        return head, labels, head.encode_labels(labels), outputs.astype("float32")
    known = LABELS[name]
    head = heads.create(name, labels=known)
    if name == "multi_label":
        carried = generator.integers(0, 2, (ROWS, len(known)))
        labels = [[x for x, bit in zip(known, row, strict=True) if bit] for row in carried]
        outputs = 2.0 * carried - 1 + generator.normal(size=carried.shape)
    else:
        ids = generator.integers(0, len(known), ROWS)
        labels = [known[i] for i in ids]
        noise = generator.normal(size=(ROWS, head.num_outputs))
        signals = {
            "binary": lambda: 2 * ids[:, None] - 1,
            "multiclass": lambda: np.eye(len(known))[ids],
            "ordinal": lambda: 4 * (ids[:, None] > np.arange(3)) - 2,  # above which labels it is
        }
        outputs = noise + signals[name]()
    return head, labels, head.encode_labels(labels), outputs.astype("float32")


def rowwise_loss(name: str, targets: Array, outputs: Array) -> Array:
    """Return the loss by its formula in float64: (N,), for several labels (N, labels)."""
    y, z = targets.astype("float64"), outputs.astype("float64")
    if name == "regression":
        return ((y - z) ** 2 / np.var(y)).mean(axis=1)
    if name == "multiclass":
        return np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), targets]
    p = 1 / (1 + np.exp(-z))
    if name == "ordinal":
        steps = np.arange(z.shape[1])
        entropy = -np.log(np.where(y[:, None] > steps, p, 1 - p))
        return (entropy * (y[:, None] >= steps)).mean(axis=1)
    entropy = -(y * np.log(p) + (1 - y) * np.log(1 - p))
    return entropy if name == "multi_label" else entropy[:, 0]


def accumulated(metric: keras.metrics.Metric, targets: Array, outputs: Array) -> float:
    for part in zip(np.split(targets, CUTS), np.split(outputs, CUTS), strict=True):
        metric.update_state(*part)
    return float(metric.result())


# --- losses


# The head of several tasks is made of these, and has tests of its own.
SINGLE = [name for name in heads.names() if name != "multi_task"]


@pytest.mark.parametrize("name", SINGLE)
def test_the_loss_is_its_formula(name: str) -> None:
    head, _, targets, outputs = example(name)
    wanted = rowwise_loss(name, targets, outputs)
    loss = head.make_loss()
    assert float(loss(targets, outputs)) == pytest.approx(wanted.mean(), rel=1e-5)
    weights = np.random.default_rng(1).uniform(0, 3, ROWS).astype("float32")
    weighted = (wanted.T * weights).T.mean()
    assert float(loss(targets, outputs, weights)) == pytest.approx(weighted, rel=1e-5)


def test_weights_of_rows_weigh_rows_where_there_are_as_many_labels() -> None:
    head, _, targets, outputs = example("multi_label")
    wanted = rowwise_loss("multi_label", targets, outputs)[:3]
    weights = np.array([0.0, 1.0, 4.0], "float32")
    loss = head.make_loss()
    weighted = (wanted * weights[:, None]).mean()
    assert float(loss(targets[:3], outputs[:3], weights)) == pytest.approx(weighted, rel=1e-5)
    both = np.arange(9, dtype="float32").reshape(3, 3)
    weighted = (wanted * both).mean()
    assert float(loss(targets[:3], outputs[:3], both)) == pytest.approx(weighted, rel=1e-5)


@pytest.mark.parametrize("name", SINGLE)
def test_the_loss_stays_finite_for_outputs_that_are_far_off(name: str) -> None:
    head, _, targets, outputs = example(name)
    with tf.GradientTape() as tape:
        far = tf.constant(-1e4 * outputs)
        tape.watch(far)
        loss = head.make_loss()(targets, far)
    assert np.isfinite(loss)
    assert np.isfinite(tape.gradient(loss, far)).all()


@pytest.mark.parametrize("name", ["binary", "multiclass"])
def test_class_weights_weigh_the_rows_of_a_label(name: str) -> None:
    head, labels, targets, outputs = example(name)
    class_weight = {head.labels[1]: 3.0, head.labels[0]: 0.25}
    weights = head.class_weights(targets, class_weight)
    by_hand = np.array([class_weight.get(label, 1.0) for label in labels])
    assert weights.dtype == np.float32
    assert weights.tolist() == by_hand.tolist()
    wanted = (rowwise_loss(name, targets, outputs) * by_hand).mean()
    assert float(head.make_loss()(targets, outputs, weights)) == pytest.approx(wanted, rel=1e-5)


def test_class_weights_of_several_labels_weigh_a_label_where_it_is_carried() -> None:
    head, labels, targets, outputs = example("multi_label")
    class_weight = {"y": 5.0, "z": 0.5}
    weights = head.class_weights(targets, class_weight)
    by_hand = np.array(
        [[class_weight.get(x, 1.0) if x in row else 1.0 for x in "xyz"] for row in labels]
    )
    assert weights.tolist() == by_hand.tolist()
    wanted = (rowwise_loss("multi_label", targets, outputs) * by_hand).mean()
    assert float(head.make_loss()(targets, outputs, weights)) == pytest.approx(wanted, rel=1e-5)


def test_numbers_have_no_class_weights() -> None:
    head, _, targets, _ = example("regression")
    text = refusal(head.class_weights, targets, {1: 2.0})
    assert text.startswith("class_weight has no meaning for numbers. Give `sample_weight`")


@pytest.mark.parametrize("name", LABELS)
def test_class_weights_of_an_unknown_label_are_refused(name: str) -> None:
    head, _, targets, _ = example(name)
    assert "class_weight has 'nope': 2.0, and" in refusal(
        head.class_weights, targets, {"nope": 2.0}
    )


# --- metrics, over uneven batches


@pytest.mark.parametrize("seed", range(3))
def test_accuracy_reads_logits(seed: int) -> None:
    head, _, targets, outputs = example("binary", seed)
    accuracy, area = head.make_metrics()
    assert (accuracy.name, area.name) == ("accuracy", "roc_auc")
    truth = targets[:, 0]
    right = reference.accuracy_score(truth, outputs[:, 0] > 0)
    assert accumulated(accuracy, targets, outputs) == pytest.approx(right, abs=1e-6)
    exact = reference.roc_auc_score(truth, outputs[:, 0])
    assert accumulated(area, targets, outputs) == pytest.approx(exact, abs=0.01)

    head, _, targets, outputs = example("multiclass", seed)
    (accuracy,) = head.make_metrics()
    right = reference.accuracy_score(targets, outputs.argmax(axis=1))
    assert accumulated(accuracy, targets, outputs) == pytest.approx(right, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_f1_reads_logits(seed: int) -> None:
    head, _, targets, outputs = example("multi_label", seed)
    predicted = outputs > 0
    for metric in head.make_metrics():
        average = metric.name.removesuffix("_f1")
        wanted = reference.f1_score(targets, predicted, average=average)
        assert accumulated(metric, targets, outputs) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_pearson_is_that_of_all_rows_and_loses_no_digits(mean: float) -> None:
    generator = np.random.default_rng(0)
    y = (mean + generator.normal(size=(ROWS, 1))).astype("float32")
    z = (y + generator.normal(size=(ROWS, 1)) * np.linspace(0, 3, ROWS)[:, None]).astype("float32")
    metric = RunningPearson()
    wanted = stats.pearsonr(y[:, 0].astype("float64"), z[:, 0].astype("float64")).statistic
    assert accumulated(metric, y, z) == pytest.approx(wanted, abs=2e-4 if mean else 1e-6)
    metric.reset_state()
    assert float(metric.result()) == 0.0
    metric.update_state(y[:1], z[:1])
    assert float(metric.result()) == 0.0  # of one row it is not defined
    metric.update_state(y[1:], z[1:])
    assert float(metric.result()) == pytest.approx(wanted, abs=2e-4 if mean else 1e-6)


def test_errors_of_numbers_are_in_the_unit_of_the_labels() -> None:
    head, _, targets, outputs = example("regression")
    error, correlation = head.make_metrics()
    wanted = reference.mean_absolute_error(targets, outputs)
    assert accumulated(error, targets, outputs) == pytest.approx(wanted, rel=1e-5)
    assert correlation._direction == "up"  # what EarlyStopping(mode="auto") looks at


# --- predictions


def test_a_binary_prediction_is_the_likelier_label() -> None:
    head = heads.create("binary", labels=["neg", "pos"])
    high, low = head.decode(np.array([[2.0], [-1e9]], "float32"))
    positive = 1 / (1 + np.exp(-2.0))
    assert (high["label"], high["score"]) == ("pos", pytest.approx(positive))
    assert high["scores"] == pytest.approx({"neg": 1 - positive, "pos": positive})
    assert low["label"] == "neg"
    assert low["score"] == pytest.approx(1.0)


def test_a_multiclass_prediction_has_probabilities_that_add_up() -> None:
    head = heads.create("multiclass", labels=[30, 10, 20])
    (row,) = head.decode(np.array([[1.0, 1e4, -1e4]]))
    assert row["label"] == 10
    assert row["score"] == 1.0
    assert row["scores"] == {"30": 0.0, "10": 1.0, "20": 0.0}
    _, _, _, outputs = example("multiclass")
    assert head.probabilities(outputs[:, :3]).sum(axis=1) == pytest.approx(1.0, abs=1e-6)


def test_several_labels_are_those_above_one_half() -> None:
    head = heads.create("multi_label", labels=["x", "y", "z"])
    first, second = head.decode(np.array([[0.1, -0.1, 3.0], [-1.0, -1.0, -1e9]]))
    assert first["labels"] == ["x", "z"]
    assert second["labels"] == []
    assert first["scores"]["y"] == pytest.approx(1 / (1 + np.exp(0.1)))


def test_a_number_is_clipped_to_its_range() -> None:
    outputs = np.array([[-3.0], [2.5], [9.0]])
    bounded = heads.create("regression", range=[0, 5])
    assert bounded.decode(outputs) == [{"value": 0.0}, {"value": 2.5}, {"value": 5.0}]
    assert heads.create("regression").decode(outputs)[2] == {"value": 9.0}
    assert bounded.report(np.array([[0.0], [2.5], [5.0]]), outputs)["mean_absolute_error"] == 0.0


@pytest.mark.parametrize("name", SINGLE)
def test_the_report_is_of_the_same_predictions(name: str) -> None:
    """The measures themselves are tested elsewhere; here, that logits become the right input."""
    head, labels, targets, outputs = example(name)
    report, rows = head.report(targets, outputs), head.decode(outputs)
    json.dumps([report, rows], allow_nan=False)
    if name == "regression":
        values = [row["value"] for row in rows]
        assert report["pearson"] == pytest.approx(stats.pearsonr(labels, values).statistic)
        assert report["spearman"] == pytest.approx(stats.spearmanr(labels, values).statistic)
    elif name == "multi_label":
        right = [row["labels"] == label for row, label in zip(rows, labels, strict=True)]
        assert report["accuracy"] == pytest.approx(np.mean(right))
        area = reference.roc_auc_score(targets, outputs, average="macro")
        assert report["roc_auc"] == pytest.approx(area)
    else:
        predicted = [row["label"] for row in rows]
        assert report["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted))
        if name == "ordinal":
            return
        wanted = reference.f1_score(labels, predicted, average="macro")
        assert report["macro_f1"] == pytest.approx(wanted)


# --- labels


@pytest.mark.parametrize("wrap", [list, np.array, pd.Series, tf.constant], ids=lambda f: f.__name__)
def test_labels_are_learned_from_whatever_holds_them(wrap: Any) -> None:
    rows = ["pos", "neg", "neg", "pos"]
    for name, targets in (("binary", [[1], [0], [0], [1]]), ("multiclass", [1, 0, 0, 1])):
        head = heads.create(name)
        assert not head.adapted
        head.adapt(wrap(rows))
        assert head.adapted
        assert head.labels == ["neg", "pos"]
        assert head.encode_labels(wrap(rows)).tolist() == targets


@pytest.mark.parametrize(
    ("labels", "known"),
    [([1, 0, 1], [0, 1]), ([True, False], [False, True]), (np.array([2.0, 1.0]), [1, 2])],
)
def test_numbers_and_truth_values_are_labels(labels: Any, known: list[Any]) -> None:
    head = heads.create("binary")
    head.adapt(labels)
    assert head.labels == known
    assert head.encode_labels(labels)[:, 0].tolist() == [float(x == known[1]) for x in labels]


@pytest.mark.parametrize("name", ["binary", "multiclass", "multi_label"])
def test_labels_that_were_never_learned_are_asked_for(name: str) -> None:
    head = heads.create(name)
    for use in (lambda: head.labels, lambda: head.num_outputs if name != "binary" else head.space,
                lambda: head.encode_labels([["a"]])):  # fmt: skip
        assert "does not know its labels yet. Give `labels=[...]`" in refusal(use)


def test_a_scale_that_was_never_learned_is_asked_for() -> None:
    head = heads.create("regression")
    assert not head.adapted
    assert "does not know the scale of its labels yet" in refusal(head.make_loss)
    assert refusal(head.adapt, []) == "There are no labels. Give at least one."
    head.adapt([3.0, 3.0])
    assert (head.get_config()["center"], head.get_config()["scale"]) == (3.0, 1.0)


def test_the_number_of_labels_must_fit_the_head() -> None:
    text = refusal(heads.create("binary").adapt, ["a", "b", "c", "a"])
    assert text.startswith("The head 'binary' needs two labels, and there are 3: 'a', 'b', 'c'.")
    assert "'multiclass'" in text
    assert "and there are 1: 'a'" in refusal(heads.create, "binary", labels=["a"])
    text = refusal(heads.create("multiclass").adapt, ["a", "a"])
    assert text.startswith("The only label is 'a', and one label leaves nothing to learn.")
    assert "the head's dropout" not in text
    assert "dropout is 1.0" in refusal(heads.create, "multiclass", dropout=1.0)


@pytest.mark.parametrize("name", ["binary", "multiclass"])
def test_labels_that_cannot_be_used_are_named(name: str) -> None:
    head = heads.create(name, labels=["neg", "pos"])
    for rows, message in (
        (["pos", "nge"], "Label 1 is 'nge', which was never seen: the head knows 'neg', 'pos'. "
                         "Did you mean 'neg'?"),
        (["pos", None], "Label 1 is missing (None)."),
        ([["pos"]], "Label 0 is a list, ['pos']. Several labels a row need"),
        ([0.5], "Label 0 is the fraction 0.5."),
        ("pos", "The labels are 'pos'. Give one a row"),
    ):  # fmt: skip
        assert refusal(head.encode_labels, rows).startswith(message)


def test_several_labels_a_row_come_in_many_forms() -> None:
    rows = [["b", "a"], [], ("c",), {"a"}, np.array(["c", "b"])]
    head = heads.create("multi_label")
    head.adapt(rows)
    targets = [[1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 1]]
    assert head.labels == ["a", "b", "c"]
    assert head.encode_labels(rows).tolist() == targets
    assert head.encode_labels(pd.Series(rows)).tolist() == targets
    ragged = tf.ragged.constant([["b", "a"], [], ["c"], ["a"], ["c", "b"]])
    assert head.encode_labels(ragged).tolist() == targets
    for matrix in (np.array(targets), np.array(targets) > 0, tf.constant(targets),
                   pd.DataFrame(targets)):  # fmt: skip
        assert head.encode_labels(matrix).tolist() == targets
        unnamed = heads.create("multi_label")
        unnamed.adapt(matrix)
        assert unnamed.labels == [0, 1, 2]


def test_several_labels_a_row_that_cannot_be_used_are_named() -> None:
    head = heads.create("multi_label", labels=["a", "b"])
    for rows, message in (
        (["a"], "Label 0 is 'a', and a row of the head 'multi_label' has a list of labels."),
        ([["a"], None], "Label 1 is None, and a row"),
        ([["a"], ["a", "d"]], "Label 1 is 'd', which was never seen: the head knows 'a', 'b'."),
        ([["a", None]], "Label 0 is missing (None)."),
        (np.array([[1, 2]]), "A matrix of labels must hold 0 and 1 in 2 columns"),
        (np.array([[1, 0, 1]]), "A matrix of labels must hold 0 and 1 in 2 columns"),
        (np.zeros((0, 3)), "A matrix of labels must hold 0 and 1 in 2 columns"),
    ):
        assert refusal(head.encode_labels, rows).startswith(message)
    assert refusal(head.adapt, [[], []]) == "There are no labels. Give at least one."


def test_numbers_that_cannot_be_used_are_named() -> None:
    head = heads.create("regression", range=[0, 5])
    assert head.encode_labels(["1.5", 2, np.float16(3), True]).tolist() == [[1.5], [2], [3], [1]]
    for bad, message in (
        (6, "Label 1 is 6, outside the range [0, 5]."),
        (-0.01, "Label 1 is -0.01, outside the range [0, 5]."),
        ("good", "Label 1 is 'good', and the head 'regression' needs a finite number."),
        (None, "Label 1 is None, and"),
        (float("nan"), "Label 1 is nan, and"),
        (float("inf"), "Label 1 is inf, and"),
        ([1.0], "Label 1 is [1.0], and"),
    ):
        assert refusal(head.encode_labels, [1, bad]).startswith(message)
    assert "range is [5, 0]; give the smallest" in refusal(heads.create, "regression", range=[5, 0])
    assert "range is [5]" in refusal(heads.create, "regression", range=[5])
    assert "scale is 0; it must be above 0" in refusal(heads.create, "regression", scale=0)


def test_a_regression_learns_on_standardized_numbers() -> None:
    """So the loss of predicting the mean is 1, whatever the unit, and gradients are alike."""
    features = {"pooled": tf.random.stateless_normal((4, 8), (0, 0))}
    gradients = []
    for unit in (1.0, 1000.0):
        head = heads.create("regression")
        labels = [unit * x for x in (1.0, 2.0, 5.0, 8.0)]
        head.adapt(labels)
        head.build({"pooled": (None, 8)})
        head.kernel.assign(tf.zeros((8, 1)))
        with tf.GradientTape() as tape:
            outputs = head(features)
            loss = head.make_loss()(head.encode_labels(labels), outputs)
        assert outputs[:, 0].numpy() == pytest.approx(np.mean(labels), rel=1e-6)
        assert float(loss) == pytest.approx(1.0, rel=1e-5)
        gradients.append(tape.gradient(loss, head.kernel).numpy())
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-4)
