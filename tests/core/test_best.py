"""The best epoch: when training stops, what is restored, and that a resumed run does the same."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from bertkit import experiment
from bertkit.errors import ConfigError, InputError
from bertkit.registry import heads
from bertkit.training.averaging import AveragedWeights
from bertkit.training.best import EarlyStopping, RestoreBest, sign_of
from bertkit.training.checkpoint import Checkpoint
from bertkit.training.optimizer import AdamW
from bertkit.training.unfreezing import GradualUnfreezing
from tests.command_line import tiny_config, write_tiny_data
from tests.tiny_models import LABELS, TEXTS, assert_same, tiny_model, weights_of

Y = LABELS["binary"]
HIGHER = {"accuracy", "roc_auc", "micro_f1", "macro_f1", "pearson"}


def stopped_after(values: list[float], **options: Any) -> int:
    """Return after how many epochs of such values training stops."""
    model = tiny_model("binary")
    model._compile_from_head()
    model.stop_training = False
    callback = EarlyStopping(**options)
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, value in enumerate(values):
        callback.on_epoch_end(epoch, {callback.metric: value})
        if model.stop_training:
            return epoch + 1
    return math.inf  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("metric", "values", "options", "expected"),
    [
        ("val_loss", [3, 2, 2, 1, 1, 1, 0], {}, 6),
        ("val_loss", [3, 2, 2, 1, 1, 1, 0], {"patience": 1}, 3),
        ("val_loss", [3, 2.8, 2.6, 2.4, 2.2], {"min_delta": 0.3}, math.inf),  # from 3 to 2.6
        ("val_loss", [3, 2.8, 2.8, 2.4, 2.2], {"min_delta": 0.3}, 3),
        ("val_accuracy", [1, 2, 3, 2, 2], {}, 5),
        ("accuracy", [math.nan, math.nan, 1], {}, 2),
        ("val_accuracy", [1, math.nan, 2, 3], {}, math.inf),
    ],
)
def test_when_training_stops(
    metric: str, values: list[float], options: dict[str, Any], expected: float
) -> None:
    assert stopped_after(values, metric=metric, **options) == expected


@pytest.mark.parametrize("head", sorted({*heads.names()} - {"multi_task"}))  # which has heads
def test_each_metric_says_which_way_is_better(head: str) -> None:
    made = heads.create(head)
    for metric in made.make_metrics():
        assert sign_of(metric.name, [metric]) == (1.0 if metric.name in HIGHER else -1.0)
    assert sign_of("val_loss", []) == -1.0


def test_metrics_that_are_not_there() -> None:
    model = tiny_model("binary")
    with pytest.raises(InputError) as caught:
        model.fit(TEXTS, Y, verbose=0, callbacks=[EarlyStopping("val_f1")])
    assert str(caught.value) == (
        "There is no metric 'val_f1'. Choose one of loss, accuracy, roc_auc, val_loss, "
        "val_accuracy, val_roc_auc."
    )
    with pytest.raises(InputError, match=r"^val_loss was not measured in this epoch, only accurac"):
        model.fit(TEXTS, Y, verbose=0, callbacks=[RestoreBest("val_loss")])
    with pytest.raises(InputError, match=r"'mean' does not say .* Set its `_direction` to \"up\""):
        sign_of("mean", [keras.metrics.Mean()])


class Weights(keras.callbacks.Callback):
    """Keeps what validation was on, and its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[np.ndarray]] = []
        self.losses: list[float] = []

    def on_test_end(self, logs: Any = None) -> None:
        self.seen.append([np.array(weight) for weight in self.model.weights])

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.losses.append(logs["val_loss"])


@pytest.mark.parametrize("ema", [False, True])
def test_the_weights_of_the_best_epoch(ema: bool) -> None:
    model = tiny_model("binary")
    model.compile(AdamW(0.05, use_ema=ema, ema_momentum=0.3), metrics=[])
    weights, best = Weights(), RestoreBest("val_loss")
    averaged = [AveragedWeights()] if ema else []
    model.fit(TEXTS[:6], Y[:6], validation_data=(TEXTS[6:], Y[6:]), epochs=6, batch_size=2,
              verbose=0, callbacks=[weights, *averaged, best])  # fmt: skip
    index = int(np.argmin(weights.losses))
    assert 0 <= index < 5, "the last epoch is the best, so nothing is tested"
    assert best.epoch == index
    assert_same([np.array(weight) for weight in model.weights], weights.seen[index])


@pytest.mark.parametrize("averaged", [False, True])
def test_averages_are_taken_where_validation_is_on_them(averaged: bool) -> None:
    """What `fit` ends with has the loss that was the best."""
    model = tiny_model("binary")
    model.compile(AdamW(0.05, use_ema=True, ema_momentum=0.3), metrics=[])
    held_out = TEXTS[6:], Y[6:]
    callbacks = [RestoreBest("val_loss"), *([AveragedWeights()] if averaged else [])]
    for _ in range(2):  # the first fit does not tell the second what to take
        found = model.fit(TEXTS[:6], Y[:6], validation_data=held_out, epochs=4, batch_size=2,
                          verbose=0, callbacks=callbacks)  # fmt: skip
        best = min(found.history["val_loss"])
        assert model.evaluate(*held_out, verbose=0) == pytest.approx(best, rel=1e-5)
        callbacks = callbacks[:1]


def test_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_tiny_data(tmp_path))
    stopping = {"metric": "val_f1"}
    with pytest.raises(ConfigError, match=r"^training.early_stopping.metric: There is no metric "):
        experiment.run(tiny_config(training__early_stopping=stopping), verbose=0)
    with pytest.raises(ConfigError) as caught:
        experiment.run(tiny_config(training__restore_best="val_loss"), verbose=0)
    assert str(caught.value) == (
        "training.restore_best is val_loss, and there are no rows for validation. Set "
        "data.validation to files or to a fraction, such as 0.1, or take out the val_."
    )
    assert not any(Path("runs").glob("*"))
    config = tiny_config(
        training__epochs=9, training__early_stopping={"metric": "loss", "min_delta": 9.0},
        training__restore_best="val_loss", data__validation=0.3,
    )  # fmt: skip
    found = experiment.run(config, verbose=0)
    assert len((found.folder / "history.csv").read_text().splitlines()) == 1 + 3


class Interrupt(keras.callbacks.Callback):
    """Ends training, as Ctrl-C does, after a batch of an epoch."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self._last = epoch
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if (self._epoch, batch) == (self._last, 1):
            raise KeyboardInterrupt


def test_a_run_that_goes_on_knows_the_best_epoch(tmp_path: Path) -> None:
    def fit(*callbacks: Any, name: str) -> tuple[list[np.ndarray], list[float], int | None]:
        model = tiny_model("binary")
        model.compile(AdamW(0.05, use_ema=True, ema_momentum=0.3), metrics=[])
        best = RestoreBest("val_loss")
        history = model.fit(
            TEXTS[:6], Y[:6], validation_data=(TEXTS[6:], Y[6:]), epochs=12, batch_size=2,
            verbose=0, callbacks=[GradualUnfreezing(), AveragedWeights(), best,
                                  EarlyStopping("val_loss", 2, 0.001), *callbacks,
                                  Checkpoint(tmp_path / name, 0, on_note=lambda note: None)],
        )  # fmt: skip
        return weights_of(model), history.history["val_loss"], best.epoch

    weights, losses, epoch = fit(name="whole")
    assert epoch is not None and epoch + 1 < len(losses) < 12, "stopped early, after the best"
    for at in (epoch + 1, len(losses) - 1):  # the best is in the checkpoint alone
        with pytest.raises(KeyboardInterrupt):
            fit(Interrupt(at), name=f"cut {at}")
        others, other_losses, other_epoch = fit(name=f"cut {at}")
        assert (other_losses, other_epoch) == (losses, epoch)
        assert_same(others, weights)
    # Nothing is left to do, and the end is the same.
    assert_same(fit(name="whole")[0], weights)
