"""Several heads over one encoder, against the heads alone and the papers' formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import bertkit
from bertkit.errors import InputError, PluginError
from bertkit.objective import Step
from bertkit.testing import check_head
from bertkit.training.optimizer import AdamW
from tests.tiny_models import LABELS, TEXTS, tiny_encoder

HEADS: dict[str, Any] = {
    "stars": {"plugin": "multiclass", "labels": [0, 1, 2]},
    "tags": {"plugin": "multi_label", "labels": ["a", "b", "c"], "label_smoothing": 0.1},
    "value": {"plugin": "regression"},
}
KINDS = {"stars": "multiclass", "tags": "multi_label", "value": "regression"}
# Rows of one task, of two, and of all three.
TASKS = [list(KINDS)[index % 3 :][: 1 + index % 2] or list(KINDS) for index in range(len(TEXTS))]
ROWS = [{task: LABELS[KINDS[task]][index] for task in tasks} for index, tasks in enumerate(TASKS)]


def made(**options: Any) -> Any:
    head = bertkit.heads.create("multi_task", heads=HEADS, **options)
    head.adapt(ROWS)
    return head


def model_of(head: Any, **options: Any) -> bertkit.BertClassifier:
    keras.utils.set_random_seed(0)
    text = bertkit.preprocessors.create("single_text", sequence_length=32)
    return bertkit.BertClassifier(tiny_encoder(), head, text, **options)


def alone(name: str) -> tuple[Any, list[int], np.ndarray]:
    """Return a task's head by itself, its rows and their targets."""
    rows = [index for index, tasks in enumerate(TASKS) if name in tasks]
    head = _create(name)
    if not head.adapted:
        head.adapt([ROWS[row][name] for row in rows])
    return head, rows, head.encode_labels([ROWS[row][name] for row in rows])


def _create(name: str) -> Any:
    arguments = {key: value for key, value in HEADS[name].items() if key != "plugin"}
    return bertkit.heads.create(HEADS[name]["plugin"], **arguments)


def outputs_of(head: Any) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(TEXTS), head.num_outputs)).astype("float32")


def columns_of(head: Any) -> dict[str, slice]:
    return {
        name: slice(*place.outputs) for name, place in zip(head.heads, head._columns(), strict=True)
    }


@pytest.mark.parametrize("weights", [None, {"tags": 0.5, "value": 0.0}])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_the_weighted_sum_of_the_heads_losses(weights: Any, weighted: bool) -> None:
    head = made(weights=weights)
    outputs, places = outputs_of(head), columns_of(head)
    of_rows = np.linspace(0.2, 2, len(TEXTS)).astype("float32") if weighted else None
    expected = 0.0
    for name in HEADS:
        own, rows, targets = alone(name)
        weight = None if of_rows is None else of_rows[rows]
        loss = float(own.make_loss()(targets, outputs[rows, places[name]], sample_weight=weight))
        # A mean over the rows of the task, and then over those of the batch.
        expected += (weights or {}).get(name, 1.0) * loss * len(rows) / len(TEXTS)
    found = head.make_loss()(head.encode_labels(ROWS), outputs, sample_weight=of_rows)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_learned_weights_are_those_of_the_tasks_uncertainty() -> None:
    head, plain = made(weights="learned"), made()
    outputs = outputs_of(head)
    logs = np.array([0.3, -0.5, 1.1])
    outputs[:, -3:] = logs
    targets = head.encode_labels(ROWS)
    parts = [
        float(made(weights={other: float(other == name) for other in HEADS}).make_loss()(
            targets, outputs[:, :-3]))
        for name in HEADS
    ]  # fmt: skip
    assert sum(parts) == pytest.approx(float(plain.make_loss()(targets, outputs[:, :-3])), rel=1e-5)
    expected = float(np.exp(-logs) @ parts + logs.sum() / 2)
    assert float(head.make_loss()(targets, outputs)) == pytest.approx(expected, rel=1e-5)
    model = model_of(head)
    model.compile(AdamW(1e-2), metrics=[])
    model.fit(TEXTS, ROWS, epochs=3, verbose=0)
    assert np.abs(np.array(model.head.log_variances)).min() > 1e-4


LOSSES: list[tuple[str, dict[str, Any]]] = [
    ("binary", {}),
    ("binary", {"loss": "focal", "label_smoothing": 0.1, "pos_weight": 3.0}),
    ("binary", {"ignore_missing": True}),
    ("multiclass", {}),
    ("multiclass", {"loss": "focal", "class_balance": 0.9}),
    ("multiclass", {"logit_adjustment": 1.0, "label_smoothing": 0.1, "ignore_missing": True}),
    ("multi_label", {"pos_weight": "balanced"}),
    ("multi_label", {"loss": "asymmetric"}),
    ("ordinal", {"method": "corn"}),
    ("ordinal", {"method": "coral", "ignore_missing": True}),
    ("regression", {}),
    ("regression", {"ignore_missing": True}),
    ("regression", {"loss": "pairwise_margin"}),
]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("plugin", "options"), LOSSES)
def test_every_loss_is_that_of_the_rows_with_the_label(
    plugin: str, options: dict[str, Any], weighted: bool
) -> None:
    labels = LABELS["multiclass" if plugin == "ordinal" else plugin]
    known = np.arange(len(labels)) % 3 != 1
    own = [label for label, there in zip(labels, known, strict=True) if there]
    alone = bertkit.heads.create(plugin, **options)
    alone.adapt(own)
    heads = {"own": bertkit.heads.described(alone), "other": {"plugin": "binary", "labels": [0, 1]}}
    head = bertkit.heads.create("multi_task", heads=heads, weights={"other": 0.0})
    rows = [
        {"own": label, "other": 1} if there else {"other": 0}
        for label, there in zip(labels, known, strict=True)
    ]
    outputs = outputs_of(head)
    weights = np.linspace(0.2, 2, len(labels)).astype("float32") if weighted else None
    of_own = None if weights is None else weights[known]
    expected = float(alone.make_loss()(alone.encode_labels(own), outputs[known, :-1], of_own))
    # Each is a mean over the rows of the batch, but for that over pairs.
    share = 1.0 if options.get("loss") == "pairwise_margin" else known.mean()
    found = float(head.make_loss()(head.encode_labels(rows), outputs, weights))
    assert found == pytest.approx(expected * share, rel=1e-5)


def test_pairs_are_those_of_rows_with_the_label() -> None:
    rank = {"plugin": "regression", "loss": "pairwise_margin", "scale": 1.0, "center": 0.0}
    heads = {"rank": rank, "stars": HEADS["stars"]}
    head = bertkit.heads.create("multi_task", heads=heads, weights={"stars": 0.0})
    labels = [-1.0, None, 2.0, None, 0.5]
    targets = head.encode_labels(
        [{"stars": 0} if one is None else {"rank": one, "stars": 1} for one in labels]
    )
    outputs = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    losses = [
        max(0.0, 1.0 - float(outputs[i, 0]) + float(outputs[j, 0]))
        for i, one in enumerate(labels)
        for j, other in enumerate(labels)
        if one is not None and other is not None and one > other
    ]
    assert len(losses) == 3
    assert float(head.make_loss()(targets, outputs)) == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("weights", [None, {"tags": 0.5, "value": 0.0}, "learned"])
def test_a_divergence_counts_each_task_as_its_loss(weights: Any) -> None:
    head = made(weights=weights)
    places, one = columns_of(head), outputs_of(head)
    other = one[::-1].copy()
    logs = np.array([0.3, -0.5, 1.1])
    factors = [(weights or {}).get(name, 1.0) for name in HEADS] if weights != "learned" else []
    if weights == "learned":
        one[:, -3:] = other[:, -3:] = logs
        factors = list(np.exp(-logs))
    expected = sum(
        factor * head.heads[name].divergence(one[:, place], other[:, place]).numpy()
        for factor, (name, place) in zip(factors, places.items(), strict=True)
    )
    with tf.GradientTape() as tape:
        variable = tf.Variable(one)
        found = head.divergence(variable, tf.constant(other))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    gradient = tf.convert_to_tensor(tape.gradient(found, variable)).numpy()
    assert np.abs(gradient[:, places["stars"]]).max() > 1e-3
    if weights == "learned":
        assert not gradient[:, -3:].any()


def test_a_replica_without_rows_adds_nothing() -> None:
    head = made(weights="learned")
    targets, outputs = head.encode_labels(ROWS), outputs_of(head)
    any_rows = [tf.TensorSpec((None, part.shape[1])) for part in (targets, outputs)]

    @tf.function(input_signature=any_rows)  # of a size that is not known, as in a step
    def parts(targets: tf.Tensor, outputs: tf.Tensor) -> Any:
        loss = head.make_loss()(targets, outputs)
        return loss, tf.gradients(loss, outputs)[0], head.divergence(outputs, outputs)

    loss, gradient, apart = parts(targets[:0], outputs[:0])
    assert float(loss) == 0 and gradient.shape == (0, head.num_outputs) and apart.shape == (0,)


@pytest.mark.parametrize("objective", ["r_drop", "smart", "mixup"])
def test_objectives_train_several_tasks(objective: str) -> None:
    model = model_of(made(weights="learned"), objective=objective)
    history = model.fit(TEXTS, ROWS, batch_size=4, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_mixup_mixes_the_losses_of_tasks() -> None:
    """A row's loss is that of its own labels and that of the other's, by its share."""
    model = model_of(made(), objective="mixup")
    model.head.dropout = 0.0
    model.compile(AdamW(0.0), model.head.make_loss(), metrics=[])
    mixup, targets = model.objective, model.head.encode_labels(ROWS)
    seeds = keras.random.SeedGenerator()
    seeds.state.assign(mixup.seed_generator.state)
    one, other = (tf.random.stateless_gamma([len(ROWS)], seeds.next(), 1.0) for _ in range(2))
    share = np.asarray(one / (one + other))
    others = np.argsort(tf.random.stateless_uniform([len(ROWS)], seeds.next()).numpy())
    inputs = model.preprocessor(tf.constant(TEXTS))
    with tf.GradientTape() as tape:
        found, logits = Step(model, inputs, tf.constant(targets), None, tape).loss_of(mixup)
    loss = model.head.make_loss()
    expected = sum(
        share[row] * float(loss(targets[[row]], logits[row : row + 1]))
        + (1 - share[row]) * float(loss(targets[[others[row]]], logits[row : row + 1]))
        for row in range(len(ROWS))
    ) / len(ROWS)
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_objectives_that_several_tasks_cannot_have() -> None:
    pairs = {"plugin": "regression", "loss": "pairwise_margin"}
    head = bertkit.heads.create("multi_task", heads={**HEADS, "value": pairs})
    with pytest.raises(InputError, match=r"mixup mixes .*, and this loss has none: .*\. Take an"):
        model_of(head, objective="mixup").fit(TEXTS, ROWS, verbose=0)
    with pytest.raises(InputError, match="wants a head with one label a row"):
        model_of(made(), objective="supervised_contrastive").fit(TEXTS, ROWS, verbose=0)


def test_a_task_without_rows_in_a_batch_gets_no_gradient() -> None:
    head = made()
    model = model_of(head)
    only = [{"stars": row} for row in LABELS["multiclass"]]
    targets = tf.constant(head.encode_labels(only))
    with tf.GradientTape() as tape:
        loss = head.make_loss()(targets, model(TEXTS, training=False))
    kernels = [head.heads[name].kernel for name in HEADS]
    stars, tags, value = tape.gradient(loss, kernels)
    assert np.abs(stars).max() > 1e-3
    assert np.abs(tags).max() == 0 and np.abs(value).max() == 0


def test_metrics_and_measures_are_those_of_the_heads() -> None:
    head = made()
    outputs, places = outputs_of(head), columns_of(head)
    targets = head.encode_labels(ROWS)
    report = head.report(targets, outputs)
    found = {}
    for metric in head.make_metrics():
        for part in np.array_split(np.arange(len(TEXTS)), 4):
            metric.update_state(targets[part], outputs[part])
        found[metric.name] = float(np.asarray(metric.result()))
    for name in HEADS:
        own, rows, own_targets = alone(name)
        for measure, value in own.report(own_targets, outputs[rows, places[name]]).items():
            assert report[f"{name}_{measure}"] == pytest.approx(value, nan_ok=True)
        for metric in own.make_metrics():
            metric.update_state(own_targets, outputs[rows, places[name]])
            assert found[f"{name}_{metric.name}"] == pytest.approx(
                float(np.asarray(metric.result())), abs=1e-4
            )
    assert len(found) == 5


@pytest.mark.parametrize("weights", [None, "learned"])
def test_the_checker_passes(weights: Any) -> None:
    heads = {"a": {"plugin": "multiclass"}, "b": {"plugin": "binary"}}
    rows = [{"a": "x", "b": "yes"}, {"a": "y"}, {"b": "no"}, {"a": "z", "b": "no"}, {"a": "x"},
            {"b": "yes"}, {"a": "y", "b": "yes"}, {"a": "z", "b": "no"}]  # fmt: skip
    check_head("multi_task", labels=rows, heads=heads, weights=weights)


def test_the_checker_finds_tasks_that_are_told_wrong() -> None:
    class Forgetful(type(made())):  # type: ignore[misc]
        def known_tasks(self, targets: np.ndarray) -> np.ndarray:
            return np.ones((len(targets), len(self.heads)), dtype=bool)

    bertkit.heads.register("forgetful")(Forgetful)
    try:
        with pytest.raises(AssertionError, match="`known_tasks` must tell of which of the tasks"):
            check_head("forgetful", labels=ROWS, heads=HEADS)
    finally:
        bertkit.heads._decorated.pop("forgetful")


@pytest.mark.parametrize("name", ["text", "a/b", "", 3])
def test_names_that_no_task_can_have(name: Any) -> None:
    heads = {"stars": HEADS["stars"], name: HEADS["tags"]}
    with pytest.raises(InputError, match=f"A task is named {name!r}. Give it a name of letters,"):
        bertkit.heads.create("multi_task", heads=heads)


def test_it_trains_predicts_and_is_saved(tmp_path: Path) -> None:
    model = model_of(bertkit.heads.create("multi_task", heads=HEADS), objective="r_drop")
    model.compile(AdamW(1e-2))
    history = model.fit(
        TEXTS, ROWS, epochs=2, batch_size=4, micro_batch_size=2, validation_data=(TEXTS, ROWS),
        verbose=0,
    )  # fmt: skip
    assert {"stars_accuracy", "val_tags_micro_f1", "value_pearson"} <= set(history.history)
    assert all(np.isfinite(values).all() for values in history.history.values())
    row = model.classify(TEXTS[:1])[0]
    assert row["stars"]["label"] in (0, 1, 2) and set(row["tags"]["scores"]) == {"a", "b", "c"}
    assert set(row["value"]) == {"value"}
    bertkit.save(model, tmp_path / "model")
    loaded = bertkit.load(tmp_path / "model")
    assert loaded.classify(TEXTS) == model.classify(TEXTS)
    assert loaded.evaluate(TEXTS, ROWS, verbose=0) == model.evaluate(TEXTS, ROWS, verbose=0)
    assert [weight.path.split("/")[-2] for weight in model.head.weights] == [
        "stars", "stars", "tags", "tags", "value", "value"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": {"a": {"plugin": "binary"}}}, "Give two tasks or more"),
        ({"heads": ["binary", "multiclass"]}, "Give two tasks or more"),
        ({"heads": {"a": "binary", "b": "binary"}}, "The head of the task 'a' is 'binary'. Give a"),
        ({"heads": HEADS, "weights": {"star": 1}}, "weights has 'star', and the tasks are stars"),
        ({"heads": HEADS, "weights": {"tags": -1}}, "The weight of the task 'tags' is -1"),
        ({"heads": HEADS, "weights": dict.fromkeys(HEADS, 0)}, "all tasks are 0, so nothing would"),
        ({"heads": HEADS, "weights": "learnt"}, "Give a number a task, or 'learned'"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bertkit.heads.create("multi_task", **options)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (3, "Label 11 is 3. Give a mapping from one or more of the tasks stars, tags, value"),
        ({}, r"Label 11 is \{\}. Give a mapping"),
        ({"star": 1}, "there is no task star. Give a mapping"),
        ({"stars": 7}, "Task 'stars': Label 11 is 7, which was never seen"),
        ({"tags": "a"}, "Task 'tags': Label 11 is 'a', and a row of the head 'multi_label'"),
        ({"value": None}, "Task 'value': Label 11 is None"),
    ],
)
def test_labels_that_cannot_be(label: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        made().encode_labels([*ROWS, label])
    assert caught.value.row == 11


def test_class_weight_is_refused() -> None:
    model = model_of(made())
    with pytest.raises(InputError, match="class_weight has no meaning for several tasks"):
        model.fit(TEXTS, ROWS, class_weight={1: 2.0}, verbose=0)


def test_weights_are_those_of_rows() -> None:
    head = made()
    with pytest.raises(InputError) as caught:
        model_of(head).train_on_batch(TEXTS, ROWS, sample_weight=np.ones((len(ROWS), 5)))
    assert str(caught.value) == (
        "sample_weight has shape (11, 5) for 11 rows. Give one number a row."
    )


def test_a_mistaken_argument_of_a_head_is_named_alone() -> None:
    heads = {**HEADS, "stars": {"plugin": "multiclass", "gama": 1.0}}
    with pytest.raises(PluginError) as caught:
        bertkit.heads.create("multi_task", heads=heads)
    assert str(caught.value).startswith(
        "The head 'multiclass' has no argument gama. It takes: labels, dropout, loss, "
    )


def test_a_task_without_rows_has_no_measures() -> None:
    head = made()
    known = head.known_tasks(head.encode_labels(ROWS))
    np.testing.assert_array_equal(known, [[task in tasks for task in HEADS] for tasks in TASKS])
    only = [{"stars": label} for label in LABELS["multiclass"]]
    report = head.report(head.encode_labels(only), outputs_of(head))
    assert {name.partition("_")[0] for name in report} == {"stars"}
    assert bertkit.heads.get("multi_task").tasks_of({"heads": HEADS}) == tuple(HEADS)  # type: ignore[attr-defined]
