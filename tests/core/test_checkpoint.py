"""Checkpoints: `fit` goes on from them to the last bit, and takes none that is damaged."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import bertkit
from bertkit.errors import ArtifactError, InputError, TrainingError
from bertkit.training import state
from bertkit.training.checkpoint_files import CheckpointFolder, Saved
from bertkit.training.optimizer import AdamW
from tests.processes import files_of_at_most
from tests.tiny_models import LABELS, TEXTS, assert_same, tensors, tiny_model, weights_of

ROWS = TEXTS * 3  # 33 rows, 9 batches of 4
EPOCHS, STEPS = 4, 9


class Interrupt(keras.callbacks.Callback):
    """Ends training before its n-th step, counted from 0."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._left = step

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1


class Seen(keras.callbacks.Callback):
    """Keeps what it is told, and draws from every global generator, as augmentation might."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[int, dict[str, float]]] = []
        self.drawn: list[Any] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches.append((batch, dict(logs)))
        draws = (random.random(), np.random.random(),
                 int(tf.random.get_global_generator().uniform_full_int([], tf.int32)),
                 float(keras.random.uniform(())))  # fmt: skip
        self.drawn.append(draws)


Made = tuple[bertkit.BertClassifier, list[keras.callbacks.Callback], dict[str, Any]]


def plain() -> Made:
    return tiny_model(), [], {}


def everything() -> Made:
    """All that has a state: a loss scale that grows, averages, what slows and stops training."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = tiny_model()
    finally:
        keras.config.set_dtype_policy(before)
    averaged = AdamW(1e-3, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=4)
    model.compile(
        keras.optimizers.LossScaleOptimizer(averaged, initial_scale=8, dynamic_growth_steps=2)
    )
    stop = keras.callbacks.EarlyStopping("loss", patience=2, mode="max", restore_best_weights=True)
    slow = keras.callbacks.ReduceLROnPlateau("loss", patience=1, mode="max", cooldown=1)
    return model, [stop, slow], {}


def two_steps_at_once() -> Made:
    """With gradients that wait for the next step when an epoch ends; checkpoints only then."""
    model = tiny_model()
    optimizer = AdamW(1e-3, gradient_accumulation_steps=2)
    model.compile(optimizer, loss=model.head.make_loss(), steps_per_execution=2)
    return model, [], {"shuffle": False, "class_weight": {"pos": 2.0, "neg": 1.0}}


def train(
    make: Callable[[], Made], *extra: keras.callbacks.Callback
) -> tuple[list[np.ndarray], keras.callbacks.History, Seen]:
    """Fit a new model; return its variables, those of its random numbers too, and what was seen.

    With a checkpoint to go on from, it begins with other random numbers.
    """
    going_on = any(isinstance(one, bertkit.Checkpoint) and one.folder.files() for one in extra)
    model, ours, options = make()
    keras.utils.set_random_seed(going_on)
    tf.random.set_global_generator(tf.random.Generator.from_seed(going_on))
    seen = Seen()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it goes on, which a test of its own holds
        history = model.fit(
            ROWS, LABELS["binary"] * 3, batch_size=4, epochs=EPOCHS, verbose=0,
            validation_data=(TEXTS, LABELS["binary"]), callbacks=[*ours, seen, *extra],
            **options,
        )  # fmt: skip
    return [np.array(variable) for variable in state.variables_of(model)], history, seen


def interrupted(make: Callable[[], Made], folder: Path, step: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(make, bertkit.Checkpoint(folder, 0), Interrupt(step))


Trained = tuple[list[np.ndarray], keras.callbacks.History, Seen]


@pytest.fixture(scope="module")
def uninterrupted() -> Trained:
    return train(plain)


@pytest.fixture(scope="module")
def interrupted_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose checkpoint stands at the fourth batch of the second epoch."""
    folder = tmp_path_factory.mktemp("interrupted")
    interrupted(plain, folder, STEPS + 4)
    return folder


def assert_equal(one: Trained, other: Trained) -> None:
    assert_same(one[0], other[0])
    assert (one[1].history, one[1].epoch) == (other[1].history, other[1].epoch)
    assert (one[2].batches, one[2].drawn) == (other[2].batches, other[2].drawn)


@pytest.mark.parametrize(
    ("make", "steps"),
    [
        (everything, (4, STEPS + 2)),  # within an epoch, and then within the next but one
        (two_steps_at_once, (STEPS - 2,)),
    ],
)
def test_what_goes_on_ends_as_if_it_had_not_been_interrupted(
    tmp_path: Path, make: Callable[[], Made], steps: tuple[int, ...]
) -> None:
    expected = train(make)
    for step in steps:
        interrupted(make, tmp_path, step)
    found = train(make, bertkit.Checkpoint(tmp_path))
    assert_equal(found, expected)
    if make is everything:
        assert len(expected[1].epoch) < EPOCHS, "nothing was stopped, so nothing was tested"


def test_after_the_last_batch_of_an_epoch(tmp_path: Path, uninterrupted: Trained) -> None:
    """Killed while it validates."""

    class InterruptValidation(keras.callbacks.Callback):
        def on_test_begin(self, logs: Any = None) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(plain, bertkit.Checkpoint(tmp_path, 0), InterruptValidation())
    notes: list[str] = []
    found = train(plain, bertkit.Checkpoint(tmp_path, on_note=notes.append))
    assert notes == ["Going on from a checkpoint: epoch 1 of 4, 9 of 9 batches done."]
    assert_equal(found, uninterrupted)


def test_the_batches_before_are_not_computed(
    tmp_path: Path, uninterrupted: Trained, interrupted_folder: Path
) -> None:
    class Counting(bertkit.BertClassifier):
        steps = 0

        def make_train_function(self, force: bool = False) -> Any:
            super().make_train_function(force)
            inner = self.train_function

            def counted(iterator: Any) -> Any:
                self.steps += 1
                return inner(iterator)

            self.train_function = counted
            return counted

    made: list[Any] = []

    def make() -> Made:
        made.append(tiny_model(cls=Counting))
        return made[0], [], {}

    shutil.copytree(interrupted_folder, tmp_path / "copy")
    notes: list[str] = []
    found = train(make, bertkit.Checkpoint(tmp_path / "copy", on_note=notes.append))
    assert notes == ["Going on from a checkpoint: epoch 2 of 4, 4 of 9 batches done."]
    assert made[0].steps == (EPOCHS - 1) * STEPS - 4
    assert_equal(found, uninterrupted)


def test_writing_changes_nothing_and_what_was_finished_stays(
    tmp_path: Path, uninterrupted: Trained
) -> None:
    found = train(plain, bertkit.Checkpoint(tmp_path, 0))
    assert_equal(found, uninterrupted)
    assert len(CheckpointFolder(tmp_path).files()) == 2
    again = train(plain, bertkit.Checkpoint(tmp_path), Interrupt(0))  # which finds no step to do
    assert_equal(again, uninterrupted)


def test_a_head_alone(tmp_path: Path) -> None:
    def fit(*extra: keras.callbacks.Callback) -> list[np.ndarray]:
        model = tiny_model()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit_head(ROWS, LABELS["binary"] * 3, epochs=2, batch_size=4, verbose=0,
                           callbacks=list(extra))  # fmt: skip
        return weights_of(model)

    expected = fit()
    with pytest.raises(KeyboardInterrupt):
        fit(bertkit.Checkpoint(tmp_path, 0), Interrupt(12))
    assert_same(fit(bertkit.Checkpoint(tmp_path)), expected)


# What it refuses


def fit_with(model: bertkit.BertClassifier, checkpoint: bertkit.Checkpoint, **changes: Any) -> None:
    arguments = {"x": ROWS, "y": LABELS["binary"] * 3, "batch_size": 4, "epochs": EPOCHS,
                 "validation_data": (TEXTS, LABELS["binary"]), "verbose": 0}  # fmt: skip
    model.fit(**{**arguments, **changes}, callbacks=[checkpoint])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 9}, "the number of epochs was 4 and is 9"),
        ({"batch_size": 5}, "the size of a batch was '4' and is '5'"),
        ({"x": ROWS[::-1]}, "the training rows was '[0-9a-f]{12}' and is '[0-9a-f]{12}'"),
        ({"y": LABELS["binary"][::-1] * 3}, "the training rows was"),
        ({"sample_weight": np.arange(33.0)}, "the training rows was"),
        ({"validation_data": None}, "the validation rows was '[0-9a-f]{12}' and is None"),
        ({"epochs": 9, "batch_size": 5}, "batch was '4' and is '5'; the number of epochs was"),
    ],
)
def test_another_run(interrupted_folder: Path, changes: dict[str, Any], message: str) -> None:
    model = tiny_model()
    with pytest.raises(ArtifactError, match=message) as caught:
        fit_with(model, bertkit.Checkpoint(interrupted_folder), **changes)
    assert "Take that back to go on, or begin anew" in str(caught.value)


def test_another_optimizer_or_model(interrupted_folder: Path) -> None:
    model = tiny_model()
    model.compile(AdamW(2e-3))
    with pytest.raises(ArtifactError, match="the optimizer was"):
        fit_with(model, bertkit.Checkpoint(interrupted_folder))
    model = tiny_model(num_layers=2)
    with pytest.raises(ArtifactError, match=r"is of another model: it has .* they differ in"):
        fit_with(model, bertkit.Checkpoint(interrupted_folder))
    with pytest.raises(ArtifactError, match="colour was None and is 'red'"):
        checkpoint = bertkit.Checkpoint(interrupted_folder, identity={"colour": "red"})
        fit_with(tiny_model(), checkpoint)


def test_rows_whose_place_is_not_known(tmp_path: Path) -> None:
    dataset = tf.data.Dataset.from_tensor_slices((ROWS, LABELS["binary"] * 3)).batch(4)
    y = LABELS["binary"]
    for given in ({"x": dataset, "y": None, "batch_size": None}, {"x": tensors(), "y": y},
                  {"steps_per_epoch": 3}):  # fmt: skip
        with pytest.raises(InputError, match=r"needs to know the place of each row\. Give texts"):
            fit_with(tiny_model(), bertkit.Checkpoint(tmp_path), **given)


def test_elsewhere() -> None:
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(TrainingError, match="works in the `fit` of a BertClassifier"):
        model.fit(np.ones((2, 1)), np.ones(2), verbose=0, callbacks=[bertkit.Checkpoint("no")])


@pytest.mark.parametrize("minutes", [-1, float("inf"), "5", True])
def test_minutes(minutes: Any) -> None:
    with pytest.raises(InputError, match=r"minutes is .*\. Give a finite number, 0 or more\."):
        bertkit.Checkpoint("folder", minutes)


def test_other_versions(tmp_path: Path, interrupted_folder: Path) -> None:
    saved = CheckpointFolder(interrupted_folder).newest(pytest.fail)
    assert saved is not None
    saved.state["versions"]["keras"] = "3.0.0"
    CheckpointFolder(tmp_path).write(saved)
    notes: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        train(plain, bertkit.Checkpoint(tmp_path, on_note=notes.append), Interrupt(0))
    assert notes[1].startswith("It was written with keras 3.0.0, so the weights will not be those")


# Files


def some(number: int) -> Saved:
    arrays = {"a": np.arange(100, dtype="float32") + number, "b": np.array(7, "int64")}
    return Saved(arrays, {"number": number, "text": "é"})


def test_a_file_comes_back(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    assert folder.newest(pytest.fail) is None
    for number in range(12):  # the tenth comes after the ninth
        folder.write(some(number))
        found = folder.newest(pytest.fail)
        assert found is not None and found.state == some(number).state
        for name, array in some(number).arrays.items():
            np.testing.assert_array_equal(found.arrays[name], array)
            assert found.arrays[name].dtype == array.dtype
    assert len(list(tmp_path.iterdir())) == 2
    with np.load(folder.files()[0], allow_pickle=False) as plain_numpy:
        np.testing.assert_array_equal(plain_numpy["a"], some(11).arrays["a"])


def test_damage_is_found_wherever_it_is(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.write(some(1))
    folder.write(some(2))
    newest, before = folder.files()
    content = newest.read_bytes()
    notes: list[str] = []
    places = np.random.default_rng(0).integers(0, len(content), 100)
    damaged = [content[:place] for place in places[:50]]
    damaged += [
        content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :] for place in places
    ]
    for wrong in damaged:
        newest.write_bytes(wrong)
        found = folder.newest(notes.append)
        assert found is not None and found.state["number"] == 1
    assert set(notes) == {
        f"The checkpoint {newest} is damaged: the one before it is taken, if any."
    } and len(notes) == len(damaged)
    before.write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"No checkpoint in .* is sound.* Begin anew"):
        folder.newest(notes.append)


def test_what_is_written_drops_what_is_damaged(tmp_path: Path) -> None:
    for number in range(2):
        CheckpointFolder(tmp_path).write(some(number))
    folder = CheckpointFolder(tmp_path)
    newest, before = folder.files()
    newest.write_bytes(b"torn")
    with pytest.raises(ArtifactError, match="The one before it is kept"), files_of_at_most(100):
        folder.write(some(2))
    assert folder.files() == [before]
    folder.write(some(2))
    assert len(folder.files()) == 2 and before in folder.files()


def test_a_lock_keeps_others_out_and_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "run.unfinished" / "checkpoint"
    program = (
        "import sys, time\n"
        "from bertkit.training.checkpoint_files import CheckpointFolder\n"
        f"with CheckpointFolder({str(path)!r}).locked():\n"
        "    print('locked', flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "locked\n"
    folder = CheckpointFolder(path)
    message = r"Another process is training in .*run\.unfinished\. Wait until it ends, end it, or"
    with pytest.raises(ArtifactError, match=message), folder.locked():
        pytest.fail("it was let in")
    process.kill()
    process.wait()
    with folder.locked(), folder.locked():
        other = CheckpointFolder(path)
        with pytest.raises(ArtifactError), other.locked():
            pytest.fail("it was let in")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder, message = (
        CheckpointFolder(tmp_path / "file" / "checkpoint"),
        r"be written .*Choose anot",
    )
    with pytest.raises(ArtifactError, match=message), folder.locked():
        pytest.fail("it was made")


# State


def test_values_come_back_as_they_were() -> None:
    value = {"a": [1, (2.5, None, True)], 3: np.float32(0.1), "nan": float("inf"),
             "array": np.arange(6.0).reshape(2, 3), "": {"x": "é"}}  # fmt: skip
    packer = state.Packer()
    packed = packer.pack(value)
    found = state.unpack(packed, packer.arrays)
    np.testing.assert_array_equal(found.pop("array"), value.pop("array"))
    assert found == value and type(found[3]) is np.float32 and type(found["a"][1]) is tuple


@pytest.mark.parametrize("mode", ["min", "max"])
def test_what_keras_callbacks_take_for_better_stays(mode: str) -> None:
    def stopping() -> keras.callbacks.EarlyStopping:
        return keras.callbacks.EarlyStopping("score", min_delta=0.5, patience=9, mode=mode)

    first, second, packer = stopping(), stopping(), state.Packer()
    fresh = [state.forms_of(first)]
    better = -1.0 if mode == "min" else 1.0
    first.on_epoch_end(0, {"score": 0.0})
    packed = state.take_callbacks([first], fresh, packer)
    state.give_callbacks([second], packed, packer.arrays)
    for callback in (first, second):
        callback.on_epoch_end(1, {"score": 0.4 * better})
        assert callback.best_epoch == 0
        callback.on_epoch_end(2, {"score": 0.6 * better})
        assert callback.best_epoch == 2


def test_what_a_callback_cannot_hand_on_is_left_alone() -> None:
    class Mixed(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.given, self.count, self.file, self.late = "argument", 0, object(), object()

    first, second = Mixed(), Mixed()
    fresh = [state.forms_of(first)]
    first.count, first.file, first.late, first.made = 3, object(), 5, [1]
    packer = state.Packer()
    packed = state.take_callbacks([first], fresh, packer)
    assert packed == [["Mixed", {"count": 3, "made": {"list": [1]}}]]
    late = second.late
    state.give_callbacks([keras.callbacks.History(), second], packed, packer.arrays)
    assert (second.count, second.made, second.late) == (3, [1], late)
