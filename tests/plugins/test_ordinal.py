"""The head of labels that have an order: probabilities, predictions and measures by rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn import metrics as reference

import bertkit
from bertkit import experiment
from bertkit.config import load_config
from bertkit.errors import InputError
from bertkit_plugins.heads.ordinal import OrdinalHead, RankAccuracy, RankError
from tests.command_line import tiny_config, write_jsonl, write_tiny_data, write_yaml
from tests.tiny_models import TEXTS, tiny_encoder

STARS = [1, 2, 3, 5]
METHODS = ["corn", "coral"]


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def outputs_of(rows: int = 50, seed: int = 0) -> np.ndarray:
    """Return logits that rise and fall from label to label, as untrained ones do."""
    return (3 * np.random.default_rng(seed).normal(size=(rows, 3))).astype("float32")


# --- labels


@pytest.mark.parametrize(
    ("rows", "labels"),
    [
        ([5, 1, 3, 2, 1], [1, 2, 3, 5]),
        (["10", "9", "1", "10"], ["1", "9", "10"]),  # as a CSV file has them
        (["2.5", "-1", "10"], ["-1", "2.5", "10"]),
        (np.array([2.0, 1.0]), [1, 2]),
    ],
)
def test_numbers_have_an_order(rows: Any, labels: list[Any]) -> None:
    head = OrdinalHead()
    head.adapt(rows)
    assert head.labels == labels
    assert head.encode_labels(rows).tolist() == [labels.index(x) for x in list(rows)]


@pytest.mark.parametrize("rows", [["good", "bad"], ["1", "two"], ["1", "nan"]])
def test_what_has_no_order_needs_it_given(rows: list[str]) -> None:
    head = OrdinalHead()
    with pytest.raises(InputError) as caught:
        head.adapt(rows)
    assert str(caught.value).endswith(
        " is no number, and nothing says where it stands. Give `labels` from the lowest to the "
        "highest."
    )
    assert not head.adapted
    given = OrdinalHead(labels=rows)
    assert given.labels == rows
    assert given.encode_labels(rows).tolist() == [0, 1]


def test_one_label_is_refused() -> None:
    with pytest.raises(InputError, match="The only label is 3"):
        OrdinalHead().adapt([3, 3])


# --- predictions


@pytest.mark.parametrize("method", METHODS)
def test_probabilities_are_those_of_being_above(method: str) -> None:
    head, outputs = OrdinalHead(labels=STARS, method=method), outputs_of()
    found = head.probabilities(outputs.astype("float64"))
    assert found.shape == (50, 4)
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1)
    for row, z in zip(found, outputs.astype("float64"), strict=True):
        p = sigmoid(z)
        if method == "corn":  # P(above k) = P(above k | above k - 1) P(above k - 1)
            above = [1, p[0], p[0] * p[1], p[0] * p[1] * p[2], 0]
        else:
            above = [1, p[0], min(p[:2]), min(p), 0]
        np.testing.assert_allclose(row, -np.diff(above), atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_the_prediction_is_the_median(method: str) -> None:
    head, outputs = OrdinalHead(labels=STARS, method=method), outputs_of()
    rows, scores = head.decode(outputs), head.probabilities(outputs.astype("float64"))
    for row, probabilities in zip(rows, scores, strict=True):
        rank = int(np.argmax(np.cumsum(probabilities) >= 0.5))
        assert row["label"] == STARS[rank]
        assert row["score"] == pytest.approx(probabilities[rank])
        assert row["scores"] == pytest.approx(
            {str(label): p for label, p in zip(STARS, probabilities, strict=True)}
        )
    json.dumps(rows, allow_nan=False)


@pytest.mark.parametrize("method", METHODS)
def test_extreme_logits_have_extreme_predictions(method: str) -> None:
    head = OrdinalHead(labels=STARS, method=method)
    high, low, middle = head.decode(np.array([[1e4] * 3, [-1e4] * 3, [1e4, -1e4, 1e4]]))
    assert (high["label"], low["label"], middle["label"]) == (5, 1, 2)
    assert (high["score"], low["score"], middle["score"]) == (1.0, 1.0, 1.0)


def test_coral_shares_its_weights_and_corn_does_not() -> None:
    features = {"pooled": tf.random.stateless_normal((6, 8), (0, 0))}
    shapes = {}
    for method in METHODS:
        keras.utils.set_random_seed(0)
        head = OrdinalHead(labels=STARS, method=method)
        head.build({"pooled": (None, 8)})
        head.bias.assign([1.0, 0.0, -2.0])
        logits = head(features).numpy()
        shapes[method] = head.kernel.shape
        wanted = features["pooled"].numpy() @ head.kernel.numpy() + np.array([1.0, 0.0, -2.0])
        np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-6)
        dropped = head(features, training=True).numpy()
        assert not np.allclose(dropped, logits)
        assert head.as_dense() is None
    assert shapes == {"corn": (8, 3), "coral": (8, 1)}


@pytest.mark.parametrize("labels", [STARS, ["low", "high"]])
def test_a_divergence_of_corn_is_that_of_labels(labels: list[Any]) -> None:
    head, steps = OrdinalHead(labels=labels, method="corn"), len(labels) - 1
    one, other = (outputs_of(seed=seed)[:, :steps] for seed in (0, 1))
    p, q = (head.probabilities(x.astype("float64")) for x in (one, other))
    found = head.divergence(tf.constant(one), tf.constant(other))
    np.testing.assert_allclose(found * steps, (p * np.log(p / q)).sum(axis=1), rtol=1e-4, atol=1e-6)


def test_a_divergence_of_corn_is_not_lowered_by_reaching_less() -> None:
    """The first logit has a gradient by its own divergence alone."""
    head = OrdinalHead(labels=STARS, method="corn")
    one, other = (tf.constant(outputs_of(seed=seed)) for seed in (0, 1))
    others = tf.concat([one[:, :1], other[:, 1:]], axis=1)  # the first ones agree
    with tf.GradientTape() as tape:
        tape.watch(one)
        divergence = head.divergence(one, others)
    gradient = tape.gradient(divergence, one)
    assert np.abs(gradient[:, 1]).min() > 0
    np.testing.assert_allclose(gradient[:, 0], 0, atol=1e-7)


@pytest.mark.parametrize("labels", [STARS, ["low", "high"]])
def test_a_divergence_of_coral_is_that_of_each_step(labels: list[Any]) -> None:
    """Also of two labels, which have a single logit."""
    head = OrdinalHead(labels=labels, method="coral")
    one, other = (outputs_of(seed=seed)[:, : len(labels) - 1] for seed in (0, 1))
    p, q = sigmoid(one.astype("float64")), sigmoid(other.astype("float64"))
    wanted = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean(axis=1)
    found = head.divergence(tf.constant(one), tf.constant(other))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


# --- measures


@pytest.mark.parametrize("method", METHODS)
def test_measures_are_those_of_ranks(method: str) -> None:
    head, outputs = OrdinalHead(labels=STARS, method=method), outputs_of()
    labels = np.random.default_rng(1).choice(STARS, 50).tolist()
    targets = head.encode_labels(labels)
    predicted = [STARS.index(row["label"]) for row in head.decode(outputs)]
    report = head.report(targets, outputs)
    assert report == pytest.approx(
        {
            "accuracy": reference.accuracy_score(targets, predicted),
            "mean_absolute_error": reference.mean_absolute_error(targets, predicted),
            "quadratic_weighted_kappa": reference.cohen_kappa_score(
                targets, predicted, weights="quadratic"
            ),
        }
    )
    for metric, direction in zip(head.make_metrics(), ("up", "down"), strict=True):
        for rows in np.array_split(np.arange(50), 3):
            metric.update_state(targets[rows], outputs[rows])
        assert float(metric.result()) == pytest.approx(report[metric.name])
        assert metric._direction == direction  # what EarlyStopping(mode="auto") looks at
        again = keras.metrics.deserialize(keras.metrics.serialize(metric))
        assert isinstance(again, (RankAccuracy, RankError))
        assert again.get_config() == metric.get_config()


def test_of_one_rank_alone_there_is_no_kappa() -> None:
    head = OrdinalHead(labels=STARS)
    report = head.report(np.array([0, 0]), np.full((2, 3), -9.0))
    assert report == {"accuracy": 1.0, "mean_absolute_error": 0.0, "quadratic_weighted_kappa": None}


# --- training


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_what_has_an_order(method: str) -> None:
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    pooled = generator.normal(size=(200, 6)).astype("float32")
    ranks = np.digitize(pooled @ generator.normal(size=6), [-1.5, 0.0, 1.5])
    head = OrdinalHead(labels=STARS, method=method, dropout=0.0)
    head.build({"pooled": (None, 6)})
    loss, optimizer = head.make_loss(), keras.optimizers.Adam(0.1)
    targets = head.encode_labels([STARS[rank] for rank in ranks])

    @tf.function
    def step() -> None:
        with tf.GradientTape() as tape:
            value = loss(targets, head({"pooled": pooled}))
        weights = head.trainable_weights
        optimizer.apply_gradients(zip(tape.gradient(value, weights), weights, strict=True))

    for _ in range(300):
        step()
    report = head.report(targets, head({"pooled": pooled}).numpy())
    assert report["accuracy"] is not None and report["accuracy"] > 0.9
    assert report["quadratic_weighted_kappa"] is not None
    assert report["quadratic_weighted_kappa"] > 0.95


def test_a_run_measures_ranks_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_tiny_data(tmp_path))
    labels = ["low", "high", "middle", "low", "high", "middle", "low", "low", "high", "low", "low"]
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=True)]
    write_jsonl(tmp_path / "ordinal.jsonl", rows)
    head = {"plugin": "ordinal", "labels": ["low", "middle", "high"], "method": "coral"}
    write_yaml(tmp_path / "ordinal.yaml", tiny_config("ordinal", head=head))
    result = experiment.run(load_config(["ordinal.yaml"]), verbose=0)
    assert result.metrics["test"].keys() == {
        "accuracy", "mean_absolute_error", "quadratic_weighted_kappa", "loss"
    }  # fmt: skip
    loaded = bertkit.load("runs/ordinal")
    assert loaded.classify(TEXTS) == result.model.classify(TEXTS)
    assert {row["label"] for row in loaded.classify(TEXTS)} <= {"low", "middle", "high"}


def test_what_is_no_dense_layer_is_left_out_of_an_export(tmp_path: Path) -> None:
    head = OrdinalHead(labels=STARS)
    notes = bertkit.export(
        bertkit.BertClassifier(tiny_encoder(), head), tmp_path / "out", "huggingface"
    )
    assert "Wrote a BertModel for transformers." in notes
    assert any(note.startswith("The head OrdinalHead is left out: it is no") for note in notes)
