"""Training that diverges goes back to a checkpoint, and on at a lower learning rate."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import bertkit
from bertkit import experiment
from bertkit.errors import DivergenceError, InputError
from bertkit.training import state
from bertkit.training.checkpoint_files import CheckpointFolder
from bertkit.training.divergence import StopOnDivergence
from bertkit.training.optimizer import AdamW
from tests.command_line import tiny_config, write_tiny_data
from tests.core.test_resume import content_of
from tests.tiny_models import LABELS, TEXTS, assert_same, tiny_model

ROWS, Y = TEXTS * 3, LABELS["binary"] * 3  # 33 rows, 9 batches of 4
EPOCHS, STEPS = 2, 9
RATE, LIMIT = 0.2, 2.5  # at this learning rate the gradient grows beyond the limit


class Seen(keras.callbacks.Callback):
    """Keeps the place of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[tuple[int, int]] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.places.append((self.epoch, batch))


Fitted = tuple[list[np.ndarray], dict[str, list[float]], Seen]


def fit(*callbacks: keras.callbacks.Callback, rate: Any = RATE, **options: Any) -> Fitted:
    """Return all variables of a model that was fitted, its history, and what was seen.

    The learning rate that the optimizer was made with is left out.
    """
    model, seen = tiny_model(**options), Seen()
    model.compile(AdamW(rate))
    history = model.fit(ROWS, Y, batch_size=4, epochs=EPOCHS, verbose=0,
                        callbacks=[*callbacks, seen])  # fmt: skip
    assert model.optimizer.learning_rate_factor == 1.0
    given = model.optimizer._learning_rate
    variables = [one for one in state.variables_of(model) if one is not given]
    return [np.array(variable) for variable in variables], history.history, seen


def test_back_to_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it ends with is a training at the lower learning rate; powers of two are exact."""
    monkeypatch.setattr("bertkit.training.following._PAUSE", 1e9)  # no checkpoint but the first
    notes: list[str] = []
    guards = [
        StopOnDivergence(tmp_path / "look", LIMIT),
        bertkit.Checkpoint(tmp_path / "checkpoint", on_note=notes.append, rollbacks=5),
    ]
    weights, history, seen = fit(*guards)
    count = len(notes) // 2
    assert 1 < count <= 5 and len(notes) == 2 * count
    for number in range(count):
        assert notes[2 * number].startswith("Training diverged: the gradient of batch ")
        assert f"The batch is in {tmp_path}/look/bad_batch.npz" in notes[2 * number]
        times = "once" if not number else f"{number + 1} times"
        assert notes[2 * number + 1] == (
            f"Going on from a checkpoint: epoch 1 of 2, 0 of 9 batches done, rolled back {times}, "
            f"at {0.5 ** (number + 1):g} times the learning rate."
        )
    assert (tmp_path / "look" / "bad_batch.npz").exists()
    expected, same_history, _ = fit(rate=RATE * 0.5**count)
    assert_same(weights, expected)
    assert history == same_history
    assert seen.places == [(epoch, batch) for epoch in range(EPOCHS) for batch in range(STEPS)]


def test_where_nothing_diverges_it_changes_no_bit(tmp_path: Path) -> None:
    notes: list[str] = []
    checkpoint = bertkit.Checkpoint(tmp_path, on_note=notes.append, rollbacks=5)
    found = fit(StopOnDivergence(), checkpoint, rate=1e-3)
    expected = fit(rate=1e-3)
    assert_same(found[0], expected[0])
    assert (found[1], notes) == (expected[1], [])


class Thrown(bertkit.BertClassifier):
    """Whose loss is infinite where the last update was too large: the weights are of no use."""

    def training_loss(self, *batch: Any) -> Any:
        loss, logits = super().training_loss(*batch)
        far = keras.ops.max(keras.ops.abs(self.head.kernel)) > 1.0
        return loss * keras.ops.where(far, np.inf, 1.0), logits


@pytest.mark.parametrize("high", [5, STEPS - 1])
def test_weights_that_are_thrown_off_are_not_gone_back_to(high: int, tmp_path: Path) -> None:
    """One update at a far too high learning rate: the newest checkpoint has what came of it."""
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([high - 1, high], [0.01, 1.5, 0.01])
    notes: list[str] = []
    checkpoint = bertkit.Checkpoint(tmp_path, 0, on_note=notes.append, rollbacks=5)
    _, history, seen = fit(StopOnDivergence(), checkpoint, rate=rate, cls=Thrown)
    assert notes[1:] == [
        f"Going on from a checkpoint: epoch 1 of 2, {high} of 9 batches done, rolled back once, at "
        "0.5 times the learning rate."
    ]
    assert np.isfinite(history["loss"]).all()
    assert len(seen.places) == EPOCHS * STEPS


def test_it_is_rolled_back_so_often_and_no_more(tmp_path: Path) -> None:
    checkpoint = bertkit.Checkpoint(tmp_path, rollbacks=1, on_note=lambda note: None)
    with pytest.raises(DivergenceError, match=r"was rolled back once before, down to 0\.5 times"):
        fit(StopOnDivergence(max_gradient_norm=LIMIT), checkpoint)


def test_what_cannot_be_rolled_back(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing tells when it diverges\. Add .*StopOnDiver"):
        fit(bertkit.Checkpoint(tmp_path, rollbacks=1))
    model = tiny_model()
    model.compile(keras.optimizers.SGD(0.1))
    guards = [StopOnDivergence(), bertkit.Checkpoint(tmp_path, rollbacks=1)]
    with pytest.raises(InputError, match=r"of bertkit's AdamW, and the optimizer is SGD\. Comp"):
        model.fit(ROWS, Y, callbacks=guards, verbose=0)
    for wrong in (-1, 1.5, True, "2"):
        with pytest.raises(InputError, match=r"rollbacks is .*\. Give a whole number, 0 or more"):
            bertkit.Checkpoint(tmp_path, rollbacks=wrong)  # type: ignore[arg-type]


# From a config


class Throwing(keras.callbacks.Callback):
    """Throws the weights off, at the full learning rate in one place and at half of it in another.

    It ends the run, once, at another place after it was rolled back, if told to.
    """

    interrupted_at: tuple[int, int] | None = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        place, factor = (self._epoch, batch), self.model.optimizer.learning_rate_factor
        if (place, factor) in (((1, 3), 1.0), ((2, 2), 0.5)):
            self.model.head.kernel.assign(self.model.head.kernel * np.nan)
        if factor < 1 and place == Throwing.interrupted_at:
            Throwing.interrupted_at = None
            raise KeyboardInterrupt


def config_of(name: str, **changes: Any) -> dict[str, Any]:
    """Return a config of a training that diverges, with all that has a state."""
    return tiny_config(
        name=name,
        data__validation=0.3,
        **{
            f"training__{key}": value
            for key, value in {
                "epochs": 4, "batch_size": 2, "learning_rate": 1e-2, "warmup": 0.0,
                "on_divergence": "roll_back",
                "ema": 0.9, "unfreeze": 1, "restore_best": "val_loss", "max_steps": 15,
                "early_stopping": {"metric": "val_loss", "patience": 9},
                "callbacks": [{"callback": f"{__name__}.Throwing"}], **changes,
            }.items()
        },
    )  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(write_tiny_data(tmp_path))
    return tmp_path


def test_killed_after_it_was_rolled_back(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A checkpoint at the end of each epoch, however fast the machine is.
    monkeypatch.setattr("bertkit.training.following._PAUSE", 0)

    def run(name: str, **options: Any) -> experiment.Result:
        return experiment.run(config_of(name), verbose=0, allow_callbacks=True, **options)

    notes: list[str] = []
    whole = content_of(run("whole", on_note=notes.append).folder)
    assert [note.partition(": epoch ")[2] for note in notes[1::2]] == [
        "2 of 4, 0 of 4 batches done, rolled back once, at 0.5 times the learning rate.",
        "3 of 4, 0 of 4 batches done, rolled back 2 times, at 0.25 times the learning rate.",
    ]
    assert {"also bad_batch.npz", "also bad_batch.json"} < set(whole)
    with Path("runs/whole/history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    assert all(np.isfinite(float(row["val_loss"])) for row in rows)
    Throwing.interrupted_at = (3, 1)
    with pytest.raises(KeyboardInterrupt):
        run("cut", on_note=lambda note: None)
    found = run("cut", resume=True, on_note=notes.append)
    assert "rolled back 2 times" in notes[-1]
    assert content_of(found.folder) == whole
    # One that was to stop goes on as if it had been to roll back from the beginning.
    with pytest.raises(DivergenceError):
        config = config_of("stopped", on_divergence="stop")
        experiment.run(config, verbose=0, allow_callbacks=True, on_note=notes.append)
    assert notes[-1].startswith(
        "What was trained is kept in runs/stopped.unfinished. Pass --resume"
    )
    assert content_of(run("stopped", resume=True, on_note=notes.append).folder) == whole


def test_what_no_lower_learning_rate_helps(place: Path) -> None:
    notes: list[str] = []
    with pytest.raises(DivergenceError, match="It is not rolled back: no update lies between"):
        config = config_of("lost", max_gradient_norm=1e-6)
        experiment.run(config, verbose=0, allow_callbacks=True, on_note=notes.append)
    stage = Path("runs/lost.unfinished")
    assert {path.name for path in stage.iterdir()} >= {"bad_batch.npz", "bad_batch.json"}
    assert CheckpointFolder(stage / "checkpoint").files()
    assert notes == [
        f"What was trained is kept in {stage}. Pass --overwrite to begin anew, with other settings."
    ]
