"""Objectives in a model's step, in its config and in what is saved."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import bertkit
from bertkit.config import config_from_mapping, load_config, to_yaml
from bertkit.errors import ConfigError, InputError
from bertkit.objective import Step
from bertkit.registry import objectives
from bertkit.testing import check_objective
from tests.command_line import tiny_config, write_tiny_data
from tests.processes import ROOT, run
from tests.tiny_models import (
    LABELS,
    TEXTS,
    assert_same,
    tensors,
    tiny_encoder,
    tiny_model,
    weights_of,
)


class Plain(bertkit.Objective):
    """The head's loss."""

    def loss(self, step: Any) -> Any:
        return step.loss()


class Twice(bertkit.Objective):
    """Twice the loss that it is around."""

    def loss(self, step: Any) -> Any:
        loss, logits = step.loss()
        return 2 * loss, logits


@pytest.fixture(autouse=True)
def registered() -> Any:
    before = dict(objectives._decorated)
    for cls in (Plain, Twice):
        objectives.register(cls.__name__.lower())(cls)
    yield
    objectives._decorated = before


def fitted(objective: Any, head: str = "multiclass", texts: Any = TEXTS) -> bertkit.BertClassifier:
    model = tiny_model(head, objective=objective)
    model.compile(keras.optimizers.SGD(0.1))
    weights = np.linspace(0.1, 2, len(TEXTS))
    model.fit(texts, LABELS[head], epochs=2, batch_size=4, verbose=0, sample_weight=weights)
    return model


def test_an_objective_that_changes_nothing_changes_nothing() -> None:
    plain, none = fitted("plain"), fitted(None)
    assert_same(weights_of(plain), weights_of(none))


def test_an_objective_is_what_the_step_minimizes() -> None:
    once, twice = fitted(None, texts=tensors()), tiny_model("multiclass", objective="twice")
    twice.compile(keras.optimizers.SGD(0.05))
    weights = np.linspace(0.1, 2, len(TEXTS))
    twice.fit(
        tensors(), LABELS["multiclass"], epochs=2, batch_size=4, verbose=0, sample_weight=weights
    )
    for one, other in zip(once.trainable_weights, twice.trainable_weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_inner_objective_of_a_step_is_the_outer_one_s_loss() -> None:
    model = tiny_model("multiclass", dropout=0.0, attention_dropout=0.0)
    model.head.dropout = 0.0
    model.compile(keras.optimizers.SGD(0.0), model.head.make_loss(), metrics=[])
    targets = tf.constant(LABELS["multiclass"])
    with tf.GradientTape() as tape:
        step = bertkit.objective.Step(model, tensors(), targets, None, tape)
        losses = [float(step.loss_of(*[Twice()] * n)[0]) for n in (0, 1, 2)]
    np.testing.assert_allclose(losses, losses[0] * np.array([1, 2, 4]), rtol=1e-6)


def test_a_report_of_gradients_is_that_of_the_objective() -> None:
    for head in ("binary", "multi_label"):
        once, twice = (
            tiny_model(head, objective=one).gradient_report(TEXTS, LABELS[head])
            for one in (None, "twice")
        )
        assert twice.loss == pytest.approx(2 * once.loss, rel=1e-6)
        for one, other in zip(once.layers, twice.layers, strict=True):
            if one.gradient_norm is not None:
                assert other.gradient_norm == pytest.approx(2 * one.gradient_norm, rel=1e-4)


class Penalized(type(bertkit.heads.create("binary"))):  # type: ignore[misc]
    """The binary head with 0.25 added to the loss, and half of the squares of its kernel."""

    def call(self, features: Any, training: bool = False) -> Any:
        self.add_loss(tf.constant(0.25))
        return super().call(features, training)

    def build(self, shapes: Any) -> None:
        super().build(shapes)
        (self.kernel,) = (weight for weight in self.weights if len(weight.shape) == 2)
        self.kernel.regularizer = keras.regularizers.L2(0.5)


@pytest.mark.parametrize(
    ("objective", "parts"),
    [
        *((one, None) for one in (None, "fgm", "free_lb", "smart", "mixup", "chain")),
        *((one, 4) for one in (None, "r_drop", "supervised_contrastive")),
    ],
)
def test_what_layers_add_to_the_loss_counts_once(objective: Any, parts: int | None) -> None:
    """Of rows that weigh nothing only that is left: half of w² takes w to (1 - rate) w."""
    if objective == "chain":
        objective = bertkit.objectives.create(
            "chain", objectives=[{"plugin": "fgm"}, {"plugin": "r_drop"}]
        )
    head = Penalized(labels=["neg", "pos"])
    text = bertkit.preprocessors.create("single_text", sequence_length=32)
    model = bertkit.BertClassifier(tiny_encoder(), head, text, objective)
    model.compile(keras.optimizers.SGD(0.125), metrics=[])
    kernel = np.array(head.kernel, "float64")
    history = model.fit(TEXTS, LABELS["binary"], batch_size=11, sample_weight=np.zeros(11),
                        verbose=0, micro_batch_size=parts)  # fmt: skip
    assert history.history["loss"] == pytest.approx([0.25 + 0.5 * np.sum(kernel**2)], rel=1e-5)
    np.testing.assert_allclose(head.kernel, kernel * 0.875, rtol=1e-5, atol=1e-7)


def test_a_loss_of_the_model_s_own_is_refused() -> None:
    class Own(bertkit.BertClassifier):
        def compute_loss(self, *args: Any, **options: Any) -> Any:
            return super().compute_loss(*args, **options)

    model = tiny_model(cls=Own, objective="r_drop")
    with pytest.raises(InputError) as caught:
        model.fit(TEXTS, LABELS["binary"], verbose=0)
    assert str(caught.value) == (
        "Own has a `compute_loss` of its own, which an objective would leave out: it computes the "
        "compiled loss, several times maybe. Give that loss to compile, or train without an "
        "objective."
    )


@pytest.mark.parametrize(
    ("plugin", "chained"),
    [("fgm", False), ("pgd", False), ("free_lb", False), ("smart", False), ("mixup", True)],
)
def test_features_have_no_embeddings(plugin: str, chained: bool) -> None:
    objective: Any = plugin
    if chained:
        inner = [{"plugin": "r_drop"}, {"plugin": plugin}]
        objective = bertkit.objectives.create("chain", objectives=inner)
    model = tiny_model(objective=objective)
    for train in (model.fit, model.train_on_batch, model.train_on_batch, model.gradient_report):
        with pytest.raises(InputError, match="needs token embeddings, and features") as caught:
            train(model.features(TEXTS), LABELS["binary"])
    assert str(caught.value) == (
        f"The objective {type(bertkit.objectives.create(plugin)).__name__} needs token "
        "embeddings, and features, which the encoder has made already, have none. Give texts or "
        "tensors, or train the head alone on features: fit_head."
    )
    model.train_on_batch(TEXTS, LABELS["binary"])


@pytest.mark.parametrize("objective", ["r_drop", "supervised_contrastive"])
def test_what_reads_no_embeddings_trains_on_features(objective: str) -> None:
    model = tiny_model(objective=objective)
    model.encoder.trainable = False
    before = [np.array(weight) for weight in model.weights]
    model.fit(model.features(TEXTS), LABELS["binary"], verbose=0)
    moved = [not np.array_equal(w, old) for w, old in zip(model.weights, before, strict=True)]
    assert moved == [weight.trainable for weight in model.weights] and any(moved)


@pytest.mark.parametrize("chained", [False, True])
def test_xla_is_left_out_where_it_lacks_operations(
    chained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Keras chooses wherever there is a GPU; asked for, it is refused."""
    real = tf.config.list_physical_devices
    gpu = tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")
    monkeypatch.setattr(
        tf.config,
        "list_physical_devices",
        lambda kind=None: [*real(kind), *([] if kind else [gpu])],
    )
    objective: Any = "mixup"
    if chained:
        inner = [{"plugin": "r_drop"}, {"plugin": "mixup"}]
        objective = bertkit.objectives.create("chain", objectives=inner)
    assert tiny_model(objective="r_drop").jit_compile is True
    model = tiny_model(objective=objective)
    model.compile(keras.optimizers.SGD(0.1))
    assert model.jit_compile is False
    model.fit(TEXTS, LABELS["binary"], verbose=0)
    with pytest.warns(UserWarning, match="jit_compile"):
        model.compile(keras.optimizers.SGD(0.1), jit_compile=True)
        with pytest.raises(InputError) as caught:
            model.fit(TEXTS, LABELS["binary"], verbose=0)
    assert str(caught.value) == (
        "The objective Mixup does not go with jit_compile=True: XLA does not know all of its "
        "operations. Leave one of them out."
    )


@pytest.mark.parametrize("wrong", [3, Plain, keras.losses.Hinge()])
def test_what_is_no_objective_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"The objective is .* Give an instance of bertkit.Object"):
        tiny_model(objective=wrong)


def test_an_objective_without_a_loss() -> None:
    model = tiny_model(objective=bertkit.Objective())
    with pytest.raises(NotImplementedError, match="Objective must define `loss`"):
        model.fit(TEXTS, LABELS["binary"], verbose=0)


@pytest.mark.parametrize("weight", [None, [0.5, 2.0, 0.0]])
def test_a_mean_is_over_rows_whatever_they_weigh(weight: Any) -> None:
    values = np.array([1.0, -2.0, 4.0], "float32")
    for rows, expected in ((3, np.mean(values * (weight or 1.0))), (0, 0.0)):
        of_rows = None if weight is None else tf.constant(weight[:rows])
        step = Step(tiny_model(), {}, None, of_rows, tf.GradientTape())
        assert float(step.mean(tf.constant(values[:rows]))) == pytest.approx(expected)


def test_what_is_saved_names_its_objective(tmp_path: Path) -> None:
    model = fitted(bertkit.objectives.create("r_drop", alpha=0.25), "binary")
    bertkit.save(model, tmp_path / "model")
    loaded = bertkit.load(tmp_path / "model")
    assert loaded.objective.alpha == 0.25
    pairs = zip(loaded.trainable_weights, model.trainable_weights, strict=True)
    assert all(np.array_equal(one, other) for one, other in pairs)
    assert (
        '"objective": {\n      "name": "r_drop"' in (tmp_path / "model/manifest.json").read_text()
    )


# --- in a config


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tiny data, which is the current one."""
    monkeypatch.chdir(write_tiny_data(tmp_path))
    return tmp_path


def test_a_run_with_an_objective(in_folder: Path) -> None:
    config = {**tiny_config(), "objective": {"plugin": "fgm", "epsilon": 0.5}}
    result = bertkit.run(config, verbose=0)
    assert result.model.objective.epsilon == 0.5
    again = load_config([result.folder / "config.yaml"])
    assert again.objective.plugin == "fgm" and again.objective.arguments == {"epsilon": 0.5}
    assert bertkit.load(result.folder).objective.epsilon == 0.5


def test_no_objective_stands_nowhere(in_folder: Path) -> None:
    for given in ({}, {"objective": None}):
        config = config_from_mapping({**tiny_config(), **given})
        assert config.objective is None and "objective" not in to_yaml(config)
    assert bertkit.build(config).objective is None


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"plugin": "rdrop"}, "did you mean 'r_drop'?"),
        ({"plugin": "r_drop", "alhpa": 1}, "unknown key, expected one of alpha"),
        ({"plugin": "r_drop", "alpha": "much"}, "objective.alpha"),
        ({"alpha": 1}, "missing, expected an installed objective"),
        ("r_drop", "expected a section, such as objective: {plugin: r_drop}"),
    ],
)
def test_mistakes_in_a_config(objective: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_mapping({**tiny_config(), "objective": objective})
    assert message in str(caught.value)


# --- the checker


def broken(**methods: Any) -> type[bertkit.Objective]:
    cls = type("Broken", (bertkit.Objective,), {"__module__": __name__, **methods})
    return objectives.register("broken")(cls)


def no_gradient(self: Any, step: Any) -> Any:
    loss, logits = step.loss()
    return tf.stop_gradient(loss), logits


def mean_of_rows(self: Any, step: Any) -> Any:
    """It is as it should be, but for a batch without rows."""
    logits = step.logits()
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(step.targets, logits)
    weight = 1.0 if step.sample_weight is None else step.sample_weight
    return tf.reduce_mean(losses * weight), logits


def unweighted(self: Any, step: Any) -> Any:
    logits = step.logits()
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(step.targets, logits)
    return tf.reduce_mean(losses), logits


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"loss": lambda self, step: (step.loss()[0][None], step.loss()[1])}, "one finite float32"),
        ({"loss": lambda self, step: (step.loss()[0], step.loss()[1][:2])}, "must have the shape"),
        ({"loss": no_gradient}, "no gradient reaches"),
        ({"loss": unweighted}, "twice the loss"),
        ({"loss": mean_of_rows}, "loss and gradients of no rows must be 0, and one is nan"),
        ({"loss": lambda self, step: (-step.loss()[0], step.logits())}, "must lower the head's"),
        ({"get_config": lambda self: {"alpha": {1, 2}}, "loss": Plain.loss}, "JSON"),
    ],
)  # fmt: skip
def test_the_checker_finds(methods: dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_objective(broken(**methods))


def test_the_checker_takes_other_heads() -> None:
    check_objective(Plain, "regression", [1.0, 2.0, 4.0])


# --- several devices

MIRRORED = """
import contextlib, sys
sys.path.insert(0, {root!r})
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import bertkit
from tests.tiny_models import LABELS, TEXTS, tiny_encoder, tiny_model

def made(name, options):
    objective = name and bertkit.objectives.create(name, **options)
    model = tiny_model("multiclass", objective=objective, dropout=0.0, attention_dropout=0.0)
    model.head.dropout = 0.0
    # One device alone takes few steps, not worth the tracing.
    alone = tf.distribute.get_strategy().num_replicas_in_sync == 1
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=alone)
    return model

def results(model, parts, rows=10):
    history = model.fit(
        TEXTS[:rows], LABELS["multiclass"][:rows], sample_weight=np.linspace(0.1, 2, rows),
        batch_size=4, verbose=0, shuffle=False, epochs=2, micro_batch_size=parts,
    ).history
    return [history["loss"], *[np.array(w) for w in model.trainable_weights]]

def of_tasks():
    keras.utils.set_random_seed(0)
    heads = {{"a": {{"plugin": "multiclass", "dropout": 0.0}},
             "b": {{"plugin": "multi_label", "dropout": 0.0}}}}
    head = bertkit.heads.create("multi_task", heads=heads, weights="learned")
    labels = zip(LABELS["multiclass"], LABELS["multi_label"])
    labels = [{{"a": a, "b": b}} if i % 3 else {{"b": b}} for i, (a, b) in enumerate(labels)]
    head.adapt(labels)
    text = bertkit.preprocessors.create("single_text", sequence_length=32)
    encoder = tiny_encoder(dropout=0.0, attention_dropout=0.0)
    return bertkit.BertClassifier(encoder, head, text), labels

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
# Even batches: of an odd one Keras averages the devices' means.
cases = [(None, {{}}, 1), ("fgm", {{}}, None), ("r_drop", {{}}, 1)]
for name, options, parts in cases:
    single = results(made(name, options), None)
    with strategy.scope():
        model = made(name, options)
    for one, other in zip(single, results(model, parts), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)
    print("SAME")
for name in ("smart", "mixup"):
    with strategy.scope():
        model = made(name, {{}})
    # Of the last batch of 9 rows, one device has none.
    assert all(np.isfinite(values).all() for values in results(model, None, 9))
    print("FINITE")
found = []
for scope in (contextlib.nullcontext(), strategy.scope()):
    with scope:
        model, labels = of_tasks()
        model.compile(keras.optimizers.SGD(0.1))
    model.fit(TEXTS[:8], labels[:8], batch_size=8, verbose=0, shuffle=False)
    found.append(np.array(model.head.log_variances))
assert np.abs(found[0]).min() > 1e-3
np.testing.assert_allclose(*found, rtol=1e-4)
print("TASKS")
with strategy.scope():  # a device without a row
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
history = model.fit(TEXTS[:1], labels[:1], batch_size=2, verbose=0)
assert np.isfinite(history.history["loss"]).all()
assert all(np.isfinite(weight).all() for weight in model.weights)
print("TASKS")
# Of the ninth row, which is a batch of its own, one device has none.
for name, parts, eagerly in ((None, 2, False), ("r_drop", None, False), ("r_drop", 2, True)):
    with strategy.scope():
        model = made(name, {{}})
        model.compile(keras.optimizers.SGD(0.1), run_eagerly=eagerly)
    assert all(np.isfinite(values).all() for values in results(model, parts, 9))
    print("RAGGED")
"""


def test_objectives_under_a_strategy(tmp_path: Path) -> None:
    program = tmp_path / "mirrored.py"
    program.write_text(MIRRORED.format(root=str(ROOT)))
    printed = run([sys.executable, program], tmp_path).split()
    assert printed == ["SAME"] * 3 + ["FINITE"] * 2 + ["TASKS"] * 2 + ["RAGGED"] * 3
