"""Rows without a label: they add nothing to loss, gradient, metrics and report."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from sklearn import metrics as reference

import bertkit
from bertkit import experiment
from bertkit.config import load_config
from bertkit.errors import DataError, InputError
from bertkit.head import Head
from bertkit.registry import heads
from bertkit_plugins.heads.known import OfKnown
from tests.command_line import tiny_config, write_jsonl, write_tiny_data, write_yaml
from tests.processes import ROOT, run
from tests.tiny_models import TEXTS, assert_same, tensors, tiny_encoder, weights_of

nan = float("nan")
LABELS: dict[str, list[Any]] = {
    "binary": ["pos", "neg", "pos", "neg", "neg", "pos", "pos", "neg", "pos", "pos", "neg"],
    "multiclass": [2, 0, 2, 1, 1, 2, 1, 0, 2, 1, 0],
    "ordinal": [1, 2, 3, 2, 1, 3, 1, 3, 2, 2, 1],
    "regression": [1.5, -2, 3, -1, 0, 2, 0.5, -3, 2.5, 1, -2.5],
}
MISSING = [2, 3, 9]  # rows
# The numbers are not learned from the labels, since those of the missing ones would count.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "binary": {},
    "multiclass": {},
    "ordinal": {},
    "regression": {"center": 0.5, "scale": 2.0},
}


def without(labels: list[Any], marker: Any = None) -> list[Any]:
    return [marker if row in MISSING else label for row, label in enumerate(labels)]


def known_rows() -> np.ndarray:
    return np.setdiff1d(np.arange(len(TEXTS)), MISSING)


@pytest.fixture
def policy(request: pytest.FixtureRequest) -> Iterator[str]:
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy("float32")


# --- encoding


@pytest.mark.parametrize("marker", [None, nan, "", " ", pd.NA, np.float32("nan")])
@pytest.mark.parametrize("name", LABELS)
def test_a_missing_label_is_no_number(name: str, marker: Any) -> None:
    head = heads.create(name, ignore_missing=True, **ARGUMENTS[name])
    head.adapt(without(LABELS[name], marker))
    targets = head.encode_labels(without(LABELS[name], marker))
    assert targets.dtype == np.float32
    assert np.flatnonzero(np.isnan(targets)).tolist() == MISSING
    whole = heads.create(name, **ARGUMENTS[name])
    whole.adapt(LABELS[name])
    np.testing.assert_array_equal(
        targets[known_rows()], whole.encode_labels(LABELS[name])[known_rows()]
    )
    if name != "regression":
        assert head.labels == whole.labels


@pytest.mark.parametrize("name", LABELS)
def test_unless_asked_for_a_missing_label_is_refused(name: str) -> None:
    head = heads.create(name, **ARGUMENTS[name])
    with pytest.raises(InputError, match="Label 2 is"):
        head.adapt(without(LABELS[name]))
    head.adapt(LABELS[name])
    with pytest.raises(InputError, match="Label 2 is") as caught:
        head.encode_labels(without(LABELS[name]))
    assert caught.value.row == 2


def test_what_is_wrong_beside_is_named_by_its_own_row() -> None:
    head = heads.create("binary", labels=["neg", "pos"], ignore_missing=True)
    with pytest.raises(InputError, match="Label 2 is 'nge', which was never seen"):
        head.encode_labels(["pos", None, "nge"])
    numbers = heads.create("regression", ignore_missing=True)
    with pytest.raises(InputError, match="Label 1 is 'high', and the head"):
        numbers.encode_labels([None, "high"])


@pytest.mark.parametrize("name", LABELS)
def test_of_labels_that_are_all_missing_nothing_is_learned(name: str) -> None:
    head = heads.create(name, ignore_missing=True)
    with pytest.raises(InputError, match=r"There are no labels\. Give at least one\."):
        head.adapt([None, nan])


def test_center_and_scale_are_those_of_the_known_numbers() -> None:
    head = heads.create("regression", ignore_missing=True)
    head.adapt([1.0, None, 4.0, nan])
    assert (head.get_config()["center"], head.get_config()["scale"]) == (2.5, 1.5)


MATRIX = [[1, 0, nan], [nan, nan, nan], [0, 1, 1], [1, nan, 0]]


@pytest.mark.parametrize(
    "wrap",
    [
        np.array,
        lambda rows: np.array(rows, "float16"),
        lambda rows: np.array([[None if x != x else x for x in row] for row in rows], object),
        pd.DataFrame,
        lambda rows: pd.DataFrame(rows).astype("Int64"),
        lambda rows: pd.DataFrame(rows).astype("boolean"),
        tf.constant,
    ],
)
def test_a_matrix_may_say_what_is_not_known(wrap: Any) -> None:
    head = heads.create("multi_label")
    head.adapt(wrap(MATRIX))
    assert head.labels == [0, 1, 2]
    np.testing.assert_array_equal(head.encode_labels(wrap(MATRIX)), np.array(MATRIX, "float32"))


def test_a_matrix_of_names_says_nothing_by_none() -> None:
    head = heads.create("multi_label", labels=["a", "b"])
    with pytest.raises(InputError, match=r"Label 0 is missing \(None\)"):
        head.encode_labels(np.array([["a", None]], object))


# --- training


def made(name: str, ignore_missing: bool, labels: list[Any], **arguments: Any) -> Any:
    keras.utils.set_random_seed(0)
    head = heads.create(name, ignore_missing=ignore_missing, **ARGUMENTS[name], **arguments)
    head.adapt(labels)
    model = bertkit.BertClassifier(tiny_encoder(), head)
    model.compile(keras.optimizers.SGD(0.1), metrics=[])
    return model


CASES = [
    ("binary", {"loss": "focal"}, "float32"),
    ("multiclass", {"label_smoothing": 0.1}, "mixed_float16"),
    ("ordinal", {}, "float32"),
    ("regression", {}, "mixed_bfloat16"),
]


@pytest.mark.parametrize(
    ("name", "arguments", "policy"), CASES, indirect=["policy"], ids=lambda value: str(value)
)
def test_a_row_without_a_label_is_one_of_weight_zero(
    name: str, arguments: dict[str, Any], policy: str
) -> None:
    weights = np.linspace(0.5, 2, len(TEXTS))
    zeroed = weights.copy()
    zeroed[MISSING] = 0
    labels = without(LABELS[name])
    filled = without(LABELS[name], LABELS[name][0])
    results = []
    for ignores, y, sample_weight in ((True, labels, weights), (False, filled, zeroed)):
        model = made(name, ignores, LABELS[name], **arguments)
        losses = [
            model.train_on_batch(
                {key: value[rows] for key, value in tensors().items()},
                [y[row] for row in rows],
                sample_weight[rows],
            )
            for rows in np.array_split(np.arange(len(TEXTS)), 3)
        ]
        results.append((weights_of(model), losses))
    assert np.isfinite(results[0][1]).all()
    assert results[0][1] == results[1][1]
    assert_same(results[0][0], results[1][0])


def test_an_unknown_cell_is_one_of_weight_zero() -> None:
    generator = np.random.default_rng(0)
    matrix = generator.integers(0, 2, (len(TEXTS), 3)).astype("float64")
    hidden = generator.random(matrix.shape) < 0.3
    results = []
    for y, weights in ((np.where(hidden, nan, matrix), None), (matrix, 1.0 - hidden)):
        keras.utils.set_random_seed(0)
        head = heads.create("multi_label", loss="asymmetric", labels=["a", "b", "c"])
        model = bertkit.BertClassifier(tiny_encoder(), head)
        model.compile(keras.optimizers.SGD(0.1), metrics=[])
        losses = [model.train_on_batch(tensors(), y, weights) for _ in range(2)]
        results.append((weights_of(model), losses))
    assert results[0][1] == results[1][1]
    assert_same(results[0][0], results[1][0])


def test_a_weight_for_a_label_leaves_missing_ones_out() -> None:
    head = heads.create("binary", labels=["neg", "pos"], ignore_missing=True)
    targets = head.encode_labels(["pos", None, "neg"])
    assert head.class_weights(targets, {"pos": 3.0}).tolist() == [3.0, 0.0, 1.0]
    several = heads.create("multi_label", labels=["a", "b"])
    targets = several.encode_labels(np.array([[1, nan], [0, 1]]))
    assert several.class_weights(targets, {"a": 3.0, "b": 5.0}).tolist() == [[3, 1], [1, 5]]


MIRRORED = """
import sys
sys.path.insert(0, {root!r})
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras, numpy as np
import bertkit
from tests.tiny_models import TEXTS, tiny_encoder

nan = float("nan")
cells = np.random.default_rng(0)
matrix = np.where(cells.random((10, 3)) < 0.3, nan, cells.integers(0, 2, (10, 3)))
LABELS = {{"multi_label": matrix, "ordinal": [1, None, 3, 2, 1, None, 1, 3, 2, None]}}
OPTIONS = {{"multi_label": {{"loss": "focal", "labels": ["a", "b", "c"]}},
            "ordinal": {{"ignore_missing": True}}}}

def made(name):
    keras.utils.set_random_seed(0)
    head = bertkit.heads.create(name, dropout=0.0, **OPTIONS[name])
    encoder = tiny_encoder(dropout=0.0, attention_dropout=0.0)
    text = bertkit.preprocessors.create("single_text", sequence_length=32)
    model = bertkit.BertClassifier(encoder, head, text)
    model.compile(keras.optimizers.SGD(0.1))
    return model

def results(model, name):
    history = model.fit(TEXTS[:10], LABELS[name], batch_size=4, shuffle=False, verbose=0,
                        sample_weight=np.linspace(0.1, 2, 10)).history
    return [*(history[key] for key in sorted(history)),
            *[v.numpy() for v in model.trainable_variables]]

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for name in LABELS:
    single = results(made(name), name)
    with strategy.scope():
        model = made(name)
    for one, other in zip(single, results(model, name), strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, other, atol=1e-6)
print("SAME")
"""


def test_replicas_do_what_one_device_does(tmp_path: Path) -> None:
    program = tmp_path / "mirrored.py"
    program.write_text(MIRRORED.format(root=str(ROOT)))
    assert "SAME" in run([sys.executable, program], tmp_path)


# --- metrics and report


def outputs_of(head: Head, seed: int = 0) -> np.ndarray:
    shape = (len(TEXTS), head.num_outputs)
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def measured(head: Head, targets: np.ndarray, outputs: np.ndarray, weight: Any) -> dict[str, float]:
    found = {}
    for metric in head.make_metrics():
        for rows in np.array_split(np.arange(len(targets)), 3):
            metric.update_state(
                targets[rows], outputs[rows], None if weight is None else weight[rows]
            )
        found[metric.name] = float(metric.result())
    return found


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LABELS)
def test_measures_are_those_of_the_known_rows(name: str, weighted: bool) -> None:
    weight = np.linspace(0.5, 2, len(TEXTS)).astype("float32") if weighted else None
    head = heads.create(name, ignore_missing=True, **ARGUMENTS[name])
    plain = heads.create(name, **ARGUMENTS[name])
    for each in (head, plain):
        each.adapt(LABELS[name])
    rows, outputs = known_rows(), outputs_of(head)
    targets = head.encode_labels(without(LABELS[name]))
    known = plain.encode_labels(LABELS[name])[rows]
    found = measured(head, targets, outputs, weight)
    wanted = measured(plain, known, outputs[rows], None if weight is None else weight[rows])
    assert found == pytest.approx(wanted, rel=1e-6)
    assert head.report(targets, outputs) == plain.report(known, outputs[rows])


def test_measures_of_several_labels_are_those_of_the_known_cells() -> None:
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 2, (40, 3)).astype("float32")
    targets[generator.random(targets.shape) < 0.3] = nan
    targets[0] = nan
    outputs = generator.normal(size=targets.shape).astype("float32")
    head = heads.create("multi_label", labels=["a", "b", "c"])
    report, known = head.report(targets, outputs), ~np.isnan(targets)

    def of_columns(measure: Any, scores: np.ndarray) -> float:
        rows = zip(targets.T, scores.T, known.T, strict=True)
        return float(np.mean([measure(y[is_known], s[is_known]) for y, s, is_known in rows]))

    predicted = outputs > 0
    right = [
        (y[is_known] == p[is_known]).all()
        for y, p, is_known in zip(targets, predicted, known, strict=True)
        if is_known.any()
    ]
    flat, flat_predicted = targets[known], predicted[known]
    assert report == pytest.approx(
        {
            "accuracy": np.mean(right),
            "macro_f1": of_columns(reference.f1_score, predicted),
            "micro_f1": reference.f1_score(flat, flat_predicted),
            "roc_auc": of_columns(reference.roc_auc_score, outputs),
            "average_precision": of_columns(reference.average_precision_score, outputs),
            "mcc": reference.matthews_corrcoef(flat, flat_predicted),
        }
    )
    for metric in head.make_metrics():
        for rows in np.array_split(np.arange(40), 3):
            metric.update_state(targets[rows], outputs[rows])
        assert float(metric.result()) == pytest.approx(report[metric.name], abs=1e-6)


def test_a_metric_of_known_rows_is_saved_and_begins_anew() -> None:
    metric = OfKnown(keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0))
    loaded = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert (loaded.name, loaded.get_config()) == ("accuracy", metric.get_config())
    assert loaded._direction == "up"
    for each in (metric, loaded):
        each.update_state([[1.0], [nan], [0.0]], [[1.0], [1.0], [1.0]])
        assert float(each.result()) == 0.5
        each.reset_state()
        each.update_state([[1.0], [nan]], [[1.0], [1.0]])
        assert float(each.result()) == 1.0


# --- files


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_tiny_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    rows = zip(TEXTS, without(LABELS["binary"]), strict=True)
    write_jsonl(tmp_path / "gaps.jsonl", [{"text": text, "label": label} for text, label in rows])
    lines = [
        f'"{text}",{label or ""}'
        for text, label in zip(TEXTS, without(LABELS["binary"]), strict=True)
    ]
    (tmp_path / "gaps.csv").write_text("\n".join(["text,label", *lines, ""]))
    return tmp_path


@pytest.mark.parametrize("file", ["gaps.jsonl", "gaps.csv"])
def test_files_may_lack_labels_where_the_head_ignores_them(place: Path, file: str) -> None:
    write_yaml(
        place / "gaps.yaml",
        tiny_config("binary", data__train=file, data__test=file, head__ignore_missing=True),
    )
    result = experiment.run(load_config(["gaps.yaml"]), verbose=0)
    assert result.model.head.labels == ["neg", "pos"]
    rows = known_rows()
    predicted = [row["label"] for row in result.model.classify(TEXTS)]
    right = np.mean([predicted[row] == LABELS["binary"][row] for row in rows])
    assert result.metrics["test"]["accuracy"] == pytest.approx(right)
    assert np.isfinite(result.metrics["test"]["loss"])
    with pytest.raises(DataError, match="column 'label' is empty"):
        experiment.run(load_config(["gaps.yaml"], ["head.ignore_missing=false"]), overwrite=True)
