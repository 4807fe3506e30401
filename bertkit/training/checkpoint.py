"""`Checkpoint`: a `fit` that was killed goes on as if it had not been."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras

from bertkit.errors import ArtifactError, InputError, TrainingError, shown
from bertkit.training.checkpoint_files import CheckpointFolder, Saved


class Checkpoint(keras.callbacks.Callback):
    """Has `fit` write checkpoints, and go on from the newest one that it finds.

    What goes on ends with the same weights, to the last bit on one processor, as if it had never
    been interrupted: a checkpoint holds weights, optimizer, metrics, the states of all random
    numbers, the place within the epoch, the history, and what other callbacks have seen so far.

        model.fit(texts, labels, callbacks=[bertkit.Checkpoint("film.checkpoint")])

    One is written every few minutes (with `steps_per_execution` at the end of an epoch only), and
    at the end of an epoch if training would not take noticeably longer for it. They stay when `fit`
    is done: remove the folder to begin anew.

    With `rollbacks`, a training that diverges, as `StopOnDivergence` tells, goes back to the last
    good checkpoint, and on with half the learning rate; docs/gradients.md says how.

    Two things cannot be had back: the state of TensorFlow's own random operations (`tf.nn.dropout`,
    a graph of someone else's), so draw from a `keras.random.SeedGenerator`, and what a callback
    holds besides numbers, text, arrays, lists and dicts of these, such as open files.

    Args:
        folder: of the checkpoints, and of nothing else.
        minutes: how much of training may be lost; 0 writes one after each step.
        identity: what a run that goes on must have in common with the one that was interrupted,
            by name, besides its rows, batches, epochs, optimizer and variables.
        on_note: told, in a sentence, that training goes on, or what is odd about a checkpoint.
        rollbacks: how often at most training is rolled back; of bertkit's AdamW alone.

    Raises:
        InputError: `minutes` or `rollbacks` is no such number.
    """

    def __init__(
        self,
        folder: str | Path,
        minutes: float = 5.0,
        identity: Mapping[str, Any] | None = None,
        on_note: Callable[[str], None] = warnings.warn,
        rollbacks: int = 0,
    ) -> None:
        super().__init__()
        self.folder = CheckpointFolder(folder)
        if (
            not isinstance(minutes, (int, float))
            or isinstance(minutes, bool)
            or not (0 <= minutes < float("inf"))
        ):
            raise InputError(f"minutes is {shown(minutes)}. Give a finite number, 0 or more.")
        if not isinstance(rollbacks, int) or isinstance(rollbacks, bool) or rollbacks < 0:
            raise InputError(f"rollbacks is {shown(rollbacks)}. Give a whole number, 0 or more.")
        self.minutes, self.rollbacks = minutes, rollbacks
        self.identity = dict(identity or {})
        self.on_note = on_note
        self.attached = False

    def newest(self, identity: Mapping[str, Any]) -> Saved | None:
        """Return the newest sound checkpoint, if it is of a run like this one.

        Args:
            identity: what tells this run from others.

        Raises:
            ArtifactError: it is of another run; the message says what differs.
        """
        saved = self.folder.newest(self.on_note)
        if saved is None:
            return None
        then = saved.state["identity"]
        differences = [
            f"{name} was {shown(then.get(name))} and is {shown(identity.get(name))}"
            for name in {**then, **identity}
            if then.get(name) != identity.get(name)
        ]
        if differences:
            raise ArtifactError(
                f"The checkpoint in {self.folder.path} is of another run: {'; '.join(differences)}."
                " Take that back to go on, or begin anew, with --overwrite or in another folder."
            )
        return saved

    def on_train_begin(self, logs: Any = None) -> None:
        if not self.attached:
            raise TrainingError(
                "bertkit.Checkpoint works in the `fit` of a BertClassifier. For another model "
                "take keras.callbacks.BackupAndRestore."
            )


def place(saved: Saved) -> str:
    """Return where a checkpoint stands, such as "epoch 2 of 3, 40 of 100 batches done"."""
    at = saved.state
    if at["stopped"] or at["epoch"] == at["epochs"]:
        return f"all epochs done, {at['epoch']} of {at['epochs']}"
    return (
        f"epoch {at['epoch'] + 1} of {at['epochs']}, {at['batch']} of {at['batches']} batches done"
    )
