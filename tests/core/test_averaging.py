"""Averaged weights against NumPy, in `fit` and in the optimizer."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from bertkit.training.averaging import AveragedWeights
from bertkit.training.groups import ParameterGroup
from bertkit.training.optimizer import AdamW
from tests.tiny_models import LABELS, TEXTS, assert_same, tiny_model

Y = LABELS["binary"]
MOMENTUM = 0.7


class Recorder(keras.callbacks.Callback):
    """Keeps the trained weights after each batch, and around validation."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[list[np.ndarray]] = []
        self.validated: list[list[np.ndarray]] = []
        self.begun: list[list[np.ndarray]] = []

    def weights(self) -> list[np.ndarray]:
        return [np.array(weight) for weight in self.model.trainable_weights]

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.begun.append(self.weights())

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps.append(self.weights())

    def on_test_begin(self, logs: Any = None) -> None:
        self.validated.append(self.weights())


def averages_by_numpy(steps: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    """Return the averages after each step, float64; the first are the weights themselves."""
    averages = [np.asarray(weight, "float64") for weight in steps[0]]
    result = [averages]
    for weights in steps[1:]:
        averages = [
            MOMENTUM * a + (1 - MOMENTUM) * w for a, w in zip(averages, weights, strict=True)
        ]
        result.append(averages)
    return result


def trained(precision: str = "float32", **options: Any) -> tuple[Any, Recorder, Any]:
    """Return a model after three epochs of three steps, what was recorded, and the history."""
    keras.config.set_dtype_policy(precision)
    try:
        model = tiny_model("binary")
    finally:
        keras.config.set_dtype_policy("float32")
    groups = [ParameterGroup("pooler", weight_decay=0.1)]
    model.compile(AdamW(1e-2, groups, **options), metrics=[])
    recorder = Recorder()
    swaps = [AveragedWeights()] if options else []
    history = model.fit(
        TEXTS, Y, batch_size=4, epochs=3, validation_data=(TEXTS, Y), verbose=0,
        callbacks=[*swaps, recorder],
    )  # fmt: skip
    return model, recorder, history.history


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_fit_validates_on_averages_and_trains_the_weights(precision: str) -> None:
    model, recorder, history = trained(precision, use_ema=True, ema_momentum=MOMENTUM)
    _, plain, plain_history = trained(precision)
    for ours, theirs in zip(recorder.steps, plain.steps, strict=True):
        assert_same(ours, theirs)  # training is as without averages, to the last bit
    for ended, begun in zip(recorder.steps, recorder.begun[1:], strict=False):
        assert_same(ended, begun)  # what validation has swapped is swapped back
    expected = averages_by_numpy(recorder.steps)
    assert len(recorder.validated) == 3 and len(expected) == 9
    for validated, averages in zip(recorder.validated, expected[2::3], strict=True):
        for one, other in zip(validated, averages, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    for weight, average in zip(model.trainable_weights, expected[-1], strict=True):
        np.testing.assert_allclose(np.array(weight), average, rtol=1e-5, atol=1e-7)
    # The loss of validation is that of the averages: at last, that of the model.
    loss = model.evaluate(TEXTS, Y, batch_size=4, verbose=0)
    assert history["val_loss"][-1] == pytest.approx(loss, rel=1e-3)
    assert abs(history["val_loss"][-1] - plain_history["val_loss"][-1]) > 1e-4


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_a_variable_that_stands_still_is_its_own_average(graph: bool) -> None:
    """Before the first step, and where no gradient comes or the learning rate is zero."""
    random = np.random.default_rng(0)
    made = [
        keras.Variable(random.normal(size=(40,)).astype("float32"), name=name) for name in "abc"
    ]
    before = [variable.numpy() for variable in made]
    optimizer = AdamW(0.1, [ParameterGroup("b", 0.0)], use_ema=True, ema_momentum=MOMENTUM)

    def averages() -> list[np.ndarray]:
        return [np.array(average) for average in optimizer._model_variables_moving_average]

    def step() -> None:
        optimizer.apply_gradients([(tf.ones((40,)), made[0]), (tf.ones((40,)), made[1])])

    optimizer.build(made)
    assert_same(averages(), before)
    run = tf.function(step) if graph else step
    for _ in range(5):
        run()
    assert_same(averages()[1:], before[1:])
    assert not np.allclose(averages()[0], made[0].numpy())


def test_averages_are_saved_and_loaded(tmp_path: Any) -> None:
    model, _, _ = trained(use_ema=True, ema_momentum=MOMENTUM)
    model.save(tmp_path / "model.keras")
    loaded: Any = keras.models.load_model(tmp_path / "model.keras")
    assert (loaded.optimizer.use_ema, loaded.optimizer.ema_momentum) == (True, MOMENTUM)
    assert_same(*([np.array(v) for v in m.optimizer.variables] for m in (model, loaded)))
