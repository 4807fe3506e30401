"""Budgets of steps and minutes: where training ends, and that what was spent counts later."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from bertkit import experiment
from bertkit.errors import InputError
from bertkit.training.budget import Budget
from bertkit.training.checkpoint import Checkpoint
from tests.command_line import tiny_config, write_tiny_data
from tests.tiny_models import LABELS, TEXTS, assert_same, tiny_model, weights_of

Y = LABELS["binary"]


def fit(*callbacks: Any, epochs: int = 4) -> tuple[Any, list[float]]:
    """Return a model after epochs of four batches, and the losses of the epochs."""
    model = tiny_model("binary")
    model.compile(keras.optimizers.SGD(0.01), metrics=[])
    history = model.fit(TEXTS, Y, batch_size=3, epochs=epochs, verbose=0, callbacks=list(callbacks),
                        validation_data=(TEXTS, Y))  # fmt: skip
    return model, history.history["val_loss"]


@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (6, 2), (8, 2), (99, 4)])
def test_steps(steps: int, epochs: int) -> None:
    model, losses = fit(Budget(steps))
    assert int(model.optimizer.iterations) == min(steps, 16)
    assert len(losses) == epochs


def test_minutes() -> None:
    model, losses = fit(Budget(minutes=1e-9))
    assert (int(model.optimizer.iterations), len(losses)) == (1, 1)
    model, losses = fit(Budget(minutes=60))
    assert (int(model.optimizer.iterations), len(losses)) == (16, 4)


def test_what_is_no_budget() -> None:
    wrong = {"steps": (0, 1.5, True), "minutes": (-1, "1")}
    for name, value in ((name, value) for name, values in wrong.items() for value in values):
        with pytest.raises(InputError, match=rf"{name} is .*Give a number above 0, or None"):
            Budget(**{name: value})  # type: ignore[arg-type]


class Interrupt(keras.callbacks.Callback):
    """Ends training after so many batches; keeps what was spent of the first one on."""

    def __init__(self, budget: Budget, after: int) -> None:
        super().__init__()
        self._budget, self._after = budget, after
        self.spent: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if len(self.spent) == self._after:
            raise KeyboardInterrupt
        self.spent.append(self._budget.seconds)


def test_what_was_spent_counts(tmp_path: Path) -> None:
    whole, losses = fit(Budget(7))
    budget = Budget(7, minutes=60)
    checkpoint = Checkpoint(tmp_path / "cut", 0, on_note=lambda note: None)
    first = Interrupt(budget, 5)  # in the second epoch
    with pytest.raises(KeyboardInterrupt):
        fit(budget, first, checkpoint)
    again = Interrupt(budget, 99)
    model, other_losses = fit(budget, again, checkpoint)
    assert again.spent[:5] == first.spent and len(again.spent) == 7  # it goes on as well
    assert again.spent == sorted(again.spent)
    assert budget.steps_done == 7 and losses == other_losses
    assert_same(weights_of(model), weights_of(whole))


def test_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eleven rows make three steps an epoch."""
    monkeypatch.chdir(write_tiny_data(tmp_path))
    config = tiny_config(training__epochs=9, training__max_steps=5, training__warmup=0.2)
    config["data"] |= {"validation": 2 / 11}
    found = experiment.run(config, verbose=0)
    schedule = found.model.optimizer.get_config()["learning_rate"]["config"]
    assert (schedule["steps"], schedule["warmup_steps"]) == (5, 1)
    assert int(np.asarray(found.model.optimizer.iterations)) == 5
    with (found.folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"] and rows[-1]["val_loss"]
    assert set(json.loads((found.folder / "metrics.json").read_text())) == {"validation", "test"}
