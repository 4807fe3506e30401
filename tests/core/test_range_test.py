"""The range test: what it reports, what it suggests, and what it leaves behind: nothing."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import bertkit
from bertkit.errors import InputError, TrainingError
from bertkit.training.groups import ParameterGroup
from bertkit.training.optimizer import AdamW
from bertkit.training.range_test import RangeTest, _smooth, find_learning_rate
from bertkit.training.schedule import WarmupSchedule
from tests.command_line import CommandLine, tiny_config, write_tiny_data, write_yaml
from tests.tiny_models import LABELS, TEXTS, assert_same, tiny_model, weights_of

Y = LABELS["binary"]


def model_with(optimizer: Any, **sizes: Any) -> bertkit.BertClassifier:
    model = tiny_model("binary", **sizes)
    model.compile(optimizer)
    return model


def test_each_step_has_its_learning_rate_and_its_batch() -> None:
    """Against training by hand, at a rate that is set before each step."""
    still: dict[str, Any] = {"dropout": 0.0, "attention_dropout": 0.0}
    model = model_with(AdamW(WarmupSchedule(0.5, 9, 3), weight_decay=0.1), **still)
    other = model_with(AdamW(0.5, weight_decay=0.1), **still)
    model.head.dropout = other.head.dropout = 0.0
    found = find_learning_rate(
        model, TEXTS[:8], Y[:8], smallest=1e-5, largest=1e-2, steps=20, batch_size=4, shuffle=False
    )
    np.testing.assert_allclose(found.learning_rates, np.geomspace(1e-5, 1e-2, 20), rtol=1e-5)
    assert not found.diverged
    losses: list[float] = []

    class Set(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.model.reset_metrics()
            self.model.optimizer.learning_rate = found.learning_rates[len(losses)]

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            losses.append((logs or {})["loss"])

    other.fit(
        TEXTS[:8], Y[:8], batch_size=4, epochs=10, shuffle=False, verbose=0, callbacks=[Set()]
    )
    np.testing.assert_allclose(found.losses, losses, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "policy", "trained"),
    [
        (lambda: AdamW(1e-3, [ParameterGroup("layer_0/", 0.5)]), "float32", True),
        (lambda: AdamW(1e-3, use_ema=True), "mixed_float16", True),
        (lambda: keras.optimizers.SGD(1e-3, momentum=0.9), "float32", False),
    ],
)
def test_the_model_ends_as_it_was(make: Any, policy: str, trained: bool) -> None:
    """And goes on as one that has seen no range test, its dropout and shuffling included."""
    keras.config.set_dtype_policy(policy)
    try:
        models = [model_with(make()) for _ in range(2)]
    finally:
        keras.config.set_dtype_policy("float32")
    if trained:
        for model in models:
            model.fit(TEXTS, Y, batch_size=4, shuffle=False, verbose=0)
    model, other = models
    before, iterations = weights_of(model), int(model.optimizer.iterations)
    keras.utils.set_random_seed(5)
    find_learning_rate(model, TEXTS, Y, steps=20, batch_size=4)
    assert_same(weights_of(model), before)
    assert int(model.optimizer.iterations) == iterations and not model.stop_training
    model.fit(TEXTS, Y, batch_size=4, epochs=2, verbose=0)
    keras.utils.set_random_seed(5)
    other.fit(TEXTS, Y, batch_size=4, epochs=2, verbose=0)
    assert_same(weights_of(model), weights_of(other))


def test_it_ends_where_the_loss_explodes_and_suggests_a_rate_that_trains() -> None:
    sizes = {"initializer_range": 0.3, "dropout": 0.0, "attention_dropout": 0.0}
    model = model_with(keras.optimizers.SGD(1.0), **sizes)
    found = find_learning_rate(model, TEXTS, Y, smallest=1e-4, largest=1e6, steps=80, batch_size=11)
    assert found.diverged and 20 < len(found.learning_rates) < 80
    assert all(map(math.isfinite, found.losses))
    rate = found.suggestion
    assert rate is not None and 1e-2 < rate < found.learning_rates[-1]
    model.compile(keras.optimizers.SGD(rate), metrics=[])
    losses = model.fit(TEXTS, Y, batch_size=11, epochs=20, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]


def test_an_error_leaves_the_model_as_it_was() -> None:
    model = model_with(AdamW(1e-3))
    model.fit(TEXTS, Y, verbose=0)
    before, optimizer = weights_of(model), model.optimizer

    class Broken(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_learning_rate(model, TEXTS, Y, callbacks=[Broken()])
    assert model.optimizer is optimizer
    assert_same(weights_of(model), before)


def test_callbacks_come_beside_its_own() -> None:
    seen: list[float] = []
    count = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(logs["loss"])
    )
    for callbacks in ([count], count):
        found = find_learning_rate(
            model_with(AdamW(1e-3)), TEXTS, Y, steps=20, largest=1e-4, callbacks=callbacks
        )
        assert list(found.losses) == seen and len(seen) == 20
        seen.clear()


class Follows(bertkit.Objective):
    """The head's loss; keeps in `state` how many updates there were, for one optimizer or for all.

    Args:
        optimizers: whether another optimizer begins anew.
    """

    def __init__(self, optimizers: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.optimizers = optimizers
        self._held: tuple[Any, tf.Variable] | None = None

    def begin(self, model: bertkit.BertClassifier) -> None:
        if self._held is None or (self.optimizers and self._held[0] is not model.optimizer):
            self._held = model.optimizer, tf.Variable(0)

    def loss(self, step: Any) -> Any:
        return step.loss()

    def after_update(self, model: bertkit.BertClassifier) -> None:
        self.state[0].assign_add(1)

    @property
    def state(self) -> list[Any]:
        return [] if self._held is None else [self._held[1]]


@pytest.mark.parametrize(
    ("optimizers", "trained", "chained"),
    [(False, True, False), (True, True, False), (True, False, True)],
)
def test_the_objective_ends_as_it_was(optimizers: bool, trained: bool, chained: bool) -> None:
    objective = Follows(optimizers)
    around = objective
    if chained:
        around = bertkit.objectives.create("chain", objectives=[{"plugin": "r_drop"}] * 2)
        around.objectives = [Follows(False), objective]
    model = model_with(AdamW(1e-3), objective=around)
    if trained:
        model.fit(TEXTS, Y, batch_size=4, verbose=0)
    before = [id(variable) for variable in objective.state]
    find_learning_rate(model, TEXTS, Y, steps=20, batch_size=4)
    assert [id(variable) for variable in objective.state] == before
    assert [int(variable) for variable in objective.state] == [3] * trained
    model.fit(TEXTS, Y, batch_size=4, verbose=0)
    assert [int(variable) for variable in objective.state] == [3 + 3 * trained]


def test_smoothing_does_not_lag() -> None:
    """Against the definition; and a fall stays where it is."""
    losses = np.random.default_rng(0).normal(size=30).tolist()
    wanted = [np.mean(losses[max(index - 5, 0) : index + 6]) for index in range(30)]
    np.testing.assert_allclose(_smooth(losses), wanted, rtol=1e-10)
    curve = 1 / (1 + np.exp(np.linspace(-9, 9, 101)))
    assert int(np.gradient(_smooth(curve.tolist())).argmin()) == 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smallest": 1.0}, "of 100 steps from 1 to 1 was"),
        ({"smallest": 0.0}, "of 100 steps from 0 to 1 was"),
        ({"largest": math.inf}, "of 100 steps from 1e-07 to inf was"),
        ({"steps": 19}, "of 19 steps from 1e-07 to 1 was"),
    ],
)
def test_a_range_that_is_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        find_learning_rate(model_with(AdamW(1e-3)), TEXTS, Y, **options)
    assert str(caught.value) == (
        f"A range test {message} asked for. Give 20 steps or more, and learning rates above 0, the "
        "smallest first."
    )


def test_a_loss_that_is_no_number() -> None:
    model = model_with(AdamW(1e-3))
    model.head.weights[0].assign(tf.fill(model.head.weights[0].shape, math.nan))
    with pytest.raises(TrainingError) as caught:
        find_learning_rate(model, TEXTS, Y)
    assert str(caught.value) == (
        "The loss explodes at step 1. Give a smaller learning rate to begin with; "
        "model.gradient_report(x, y) shows what a step does."
    )


RESULT = RangeTest((1e-4, 1e-3, 1e-2), (0.7, 0.5, 0.6), (0.7, 0.6, 0.55), 1e-3, False)


def test_what_it_writes(tmp_path: Path) -> None:
    RESULT.write_csv(tmp_path / "rates.csv")
    with (tmp_path / "rates.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["learning_rate"]) for row in rows] == list(RESULT.learning_rates)
    assert [float(row["loss"]) for row in rows] == list(RESULT.losses)
    assert [float(row["smoothed"]) for row in rows] == list(RESULT.smoothed)
    pytest.importorskip("matplotlib")
    RESULT.write_plot(tmp_path / "rates.png")
    image = tf.io.decode_png((tmp_path / "rates.png").read_bytes()).numpy()
    assert image.shape[:2] == (400, 700) and image[..., :3].std() > 1


def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(write_tiny_data(tmp_path))
    write_yaml(tmp_path / "binary.yaml", tiny_config(training={"epochs": 1, "batch_size": 4}))
    bertkit_ = CommandLine(monkeypatch, capfd)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed
    done = bertkit_("find-learning-rate", "binary.yaml", "--steps", 20, "-o", "rates")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == (
        "Wrote rates/learning_rate.csv. There is no plot without matplotlib. Install it: pip "
        "install 'bertkit[plot]'"
    )
    assert "smoothed" in done.out and "1.00e-07" in done.out
    assert [path.name for path in (tmp_path / "rates").iterdir()] == ["learning_rate.csv"]
    assert len((tmp_path / "rates" / "learning_rate.csv").read_text().splitlines()) <= 21
    assert not (tmp_path / "runs").exists()
    done = bertkit_("find-learning-rate", "binary.yaml", "--steps", 3)
    assert done.code == 2 and done.err.startswith("Error: A range test of 3 steps")
