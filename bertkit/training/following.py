"""How `fit` follows a checkpoint: it begins where one stands, and writes the next ones."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from bertkit.data.batches import BatchSource, source_of
from bertkit.errors import DivergenceError, InputError
from bertkit.training import state
from bertkit.training.checkpoint import Checkpoint, place
from bertkit.training.checkpoint_files import Saved
from bertkit.training.rollback import (
    check_rollbacks,
    lowered,
    restorer,
    rolled_back,
    set_rollbacks,
    step_of,
)

if TYPE_CHECKING:
    from bertkit.workflow import RawTextModel

# An epoch's end is left out until training has taken so many times what writing takes: at first as
# by a slow disk, in bytes a second, then as it was.
_PAUSE, _SLOW_DISK = 50, 1e8
_PACKAGES = ("bertkit", "keras", "tensorflow", "numpy")


def checkpointed(
    fit: Callable[[Any, int], keras.callbacks.History],
    model: RawTextModel,
    callbacks: Any,
    data: Any,
    validation_data: Any,
    *,
    epochs: int,
    initial_epoch: int,
    verbose: Any,
) -> keras.callbacks.History:
    """Return what a `fit` returns that follows a `Checkpoint`, if there is one.

    Args:
        fit: takes callbacks, a list or Keras's own kind of one, and the epoch to begin with; called
            again where training that has diverged is rolled back.
        model: built, compiled, its optimizer built.
        callbacks: all but Keras's own.
        data: the training data as Keras is given them.
        validation_data: the same, or `None`.
        epochs: as in `fit`.
        initial_epoch: as in `fit`.
        verbose: as in `fit`.

    Raises:
        InputError: a `Checkpoint` is there, and the batches of the data are made elsewhere, or
            training cannot be rolled back.
        ArtifactError: the newest checkpoint is of another run, or another process writes there.
        DivergenceError: training diverged, and is not rolled back any more.
    """
    listed = (
        callbacks.callbacks if isinstance(callbacks, keras.callbacks.CallbackList) else callbacks
    )
    checkpoint = next((one for one in listed if isinstance(one, Checkpoint)), None)
    if checkpoint is None:
        return fit(callbacks, initial_epoch)
    source = source_of(data)
    if source is None:
        raise InputError(
            "bertkit.Checkpoint needs to know the place of each row. Give texts as a list or an "
            "array, without steps_per_epoch, not tensors, a dataset or a generator."
        )
    if checkpoint.rollbacks:
        check_rollbacks(model.optimizer, listed)
    identity = {
        **checkpoint.identity,
        "the training rows": _fingerprint(source),
        "the validation rows": _fingerprint(source_of(validation_data)),
        "the size of a batch": str(source.batch_size),
        "the temperature": _temperatures(source),
        "the number of epochs": epochs,
        "the optimizer": _described(model.optimizer),
    }
    with checkpoint.folder.locked():
        saved = checkpoint.newest(identity)
        if saved is not None or checkpoint.rollbacks:
            model._symbolic_build(data_batch=data.element_spec)  # metrics make variables late
        as_before = restorer(model, listed)
        while True:
            following = _Following(
                listed,
                add_history=True,
                add_progbar=verbose != 0,
                model=model,
                verbose=verbose,
                epochs=epochs,
                steps=int(data.cardinality()),
            )
            following.begin(checkpoint, source, identity, saved, initial_epoch)
            checkpoint.attached = True
            try:
                return fit(following, following.epoch)
            except DivergenceError as error:
                saved = rolled_back(checkpoint, following.step, following.rollbacks, error)
                as_before()
            finally:
                checkpoint.attached = False
                following.stop_skipping()
                set_rollbacks(model, 0)


class _Following(keras.callbacks.CallbackList):
    """Callbacks, and after each batch and epoch that all of them have seen, a checkpoint.

    The batches before the place of a checkpoint pass without a computation, and unseen by
    callbacks, so that those after it have the numbers that they would have had.
    """

    def begin(
        self,
        checkpoint: Checkpoint,
        source: BatchSource,
        identity: Mapping[str, Any],
        saved: Saved | None,
        initial_epoch: int,
    ) -> None:
        """Take a place from a checkpoint, or the first one."""
        self._checkpoint, self._source, self._identity = checkpoint, source, identity
        self._saved = saved
        self._train_function: Any = None
        self.epoch, self._skipped, self.rollbacks = initial_epoch, 0, 0
        self.step = self._step_written = -1  # counted from 0 over all epochs
        if saved is not None:
            self.epoch, self._skipped = saved.state["epoch"], saved.state["batch"]
            self.rollbacks, self._step_written = saved.state.get("rollbacks", 0), step_of(saved)
            source.seed, source.first = saved.state["seed"], (self.epoch, self._skipped)
            if saved.state["stopped"]:
                self.epoch = saved.state["epochs"]
        set_rollbacks(self.model, self.rollbacks)

    def on_train_begin(self, logs: Any = None) -> None:
        super().on_train_begin(logs)
        size = sum(np.array(variable).nbytes for variable in state.variables_of(self.model))
        self._written, self._cost = time.monotonic(), size / _SLOW_DISK
        self._fresh = [state.forms_of(callback) for callback in self.callbacks]
        if self._saved is not None:
            self._restore(self._saved)
            self._tell(self._saved)
        elif self._checkpoint.rollbacks:
            self._write(self.epoch, 0)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_begin(epoch, logs)
        self.epoch = epoch
        if self._saved is not None and self._skipped:
            self._restore(self._saved)  # again: what an epoch begins with had happened before
            self._skip()
        self._saved = None

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch >= self._skipped:
            self.step = self.epoch * self.params["steps"] + batch
            super().on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch >= self._skipped:
            super().on_train_batch_end(batch, logs)
            due = time.monotonic() - self._written >= 60 * self._checkpoint.minutes
            # With several steps at once TensorFlow asks a shortened pass for more than it has.
            alone = self.model.steps_per_execution == 1
            if due and alone and not self.model.stop_training:  # else the epoch ends here
                self._write(self.epoch, batch + 1)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        self._skipped = 0
        taken = time.monotonic() - self._written
        if taken >= min(60 * self._checkpoint.minutes, _PAUSE * self._cost):
            self._write(epoch + 1, 0)

    def stop_skipping(self) -> None:
        """Give the model its step back."""
        if self._train_function is not None:
            self.model.train_function, self._train_function = self._train_function, None

    def _skip(self) -> None:
        """Let the model's step do nothing for the batches that had been computed."""
        self._train_function = self.model.train_function
        calls, logs = self._skipped, self.model.get_metrics_result()

        def skip(iterator: Any) -> Any:
            nonlocal calls
            if calls:
                calls -= 1
                return logs
            self.stop_skipping()
            return self.model.train_function(iterator)

        self.model.train_function = skip

    def _write(self, epoch: int, batch: int) -> None:
        began = time.monotonic()
        packer = state.Packer()
        content = {
            "epoch": epoch,
            "batch": batch,
            "epochs": self.params["epochs"],
            "batches": self.params["steps"],
            "stopped": bool(self.model.stop_training),
            "rollbacks": self.rollbacks,
            "seed": self._source.seed,
            "identity": self._identity,
            "versions": _versions(),
            "variables": state.take_variables(self.model, packer),
            "random": state.take_random(packer),
            "callbacks": state.take_callbacks(self.callbacks, self._fresh, packer),
        }
        saved = Saved(packer.arrays, content)
        # To roll back, there must be one of other weights.
        again = self._checkpoint.rollbacks > 0 and step_of(saved) == self._step_written
        self._checkpoint.folder.write(saved, instead=again)
        self._step_written, self._written = step_of(saved), time.monotonic()
        self._cost = self._written - began

    def _restore(self, saved: Saved) -> None:
        state.give_variables(self.model, saved.state["variables"], saved.arrays)
        state.give_callbacks(self.callbacks, saved.state["callbacks"], saved.arrays)
        state.give_random(saved.state["random"], saved.arrays)

    def _tell(self, saved: Saved) -> None:
        self._checkpoint.on_note(
            f"Going on from a checkpoint: {place(saved)}{lowered(self.rollbacks)}."
        )
        others = [
            f"{name} {then}" for name, then in saved.state["versions"].items()
            if _versions()[name] != then
        ]  # fmt: skip
        if others:
            self._checkpoint.on_note(
                f"It was written with {', '.join(others)}, so the weights will not be those of an "
                "uninterrupted run to the last bit."
            )


def _versions() -> dict[str, str]:
    return {name: version(name) for name in _PACKAGES}


def _temperatures(source: BatchSource) -> list[float]:
    """Return those of the first epoch and the last, as JSON has them."""
    if source.sampling is None:
        return [1.0, 1.0]
    return [source.sampling.temperature.first, source.sampling.temperature.last]


def _described(optimizer: Any) -> str:
    """Return an optimizer's class and arguments, but no names: they count those of a process."""

    def unnamed(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in pairs if key != "name"}

    text = json.dumps(keras.saving.serialize_keras_object(optimizer))
    return json.dumps(json.loads(text, object_pairs_hook=unnamed))


def _fingerprint(source: BatchSource | None, chunk: int = 256) -> str | None:
    """Return a hash of all rows and of what goes with them."""
    if source is None:
        return None
    digest = hashlib.sha256()
    for start in range(0, len(source.examples), chunk):
        rows = np.arange(start, min(start + chunk, len(source.examples)))
        for part in tf.nest.flatten(source.examples.batch(rows)):
            digest.update(part.tobytes())
    for column in source.columns:
        digest.update(column.tobytes())
    return digest.hexdigest()[:12]
