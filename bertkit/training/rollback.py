"""Training that has diverged goes back to a checkpoint, and on with a lower learning rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras

from bertkit.errors import DivergenceError, InputError
from bertkit.training import state
from bertkit.training.checkpoint_files import Saved
from bertkit.training.divergence import StopOnDivergence
from bertkit.training.optimizer import AdamW, inner_of

if TYPE_CHECKING:
    from bertkit.training.checkpoint import Checkpoint
    from bertkit.workflow import RawTextModel

ROLLBACKS = 5  # of a run from a config, at most: 1/32 of the learning rate
_FACTOR = 0.5  # of the learning rate, each time


def check_rollbacks(optimizer: Any, callbacks: Sequence[Any]) -> None:
    """Refuse what cannot be rolled back.

    Raises:
        InputError: nothing tells that training diverges, or the optimizer is not bertkit's.
    """
    if not any(isinstance(callback, StopOnDivergence) for callback in callbacks):
        raise InputError(
            "bertkit.Checkpoint is to roll training back, and nothing tells when it diverges. Add "
            "bertkit.training.divergence.StopOnDivergence to the callbacks, or leave out rollbacks."
        )
    if not isinstance(inner_of(optimizer), AdamW):
        raise InputError(
            "Rolling back lowers the learning rate of bertkit's AdamW, and the optimizer is "
            f"{type(inner_of(optimizer)).__name__}. Compile with bertkit.training.optimizer.AdamW, "
            "or leave out rollbacks."
        )


def rolled_back(checkpoint: Checkpoint, step: int, rollbacks: int, error: DivergenceError) -> Saved:
    """Return the checkpoint to go on from, and write it anew with one rollback more.

    It is the newest whose weights a batch has gone well with, since those after the last update may
    be thrown off already, and would meet the same batch again before they move. Being the newest on
    the disk then, it is also where a run that is killed goes on.

    Args:
        checkpoint: where checkpoints are, and how often training may be rolled back.
        step: the one that diverged, counted from 0 over all epochs.
        rollbacks: how many there have been.
        error: what has happened.

    Raises:
        DivergenceError: there have been as many rollbacks as there may be, or there is no such
            checkpoint.
    """
    if not checkpoint.rollbacks:
        raise error
    factor = f"{_FACTOR**rollbacks:g} times the learning rate"
    before = (
        f" It was rolled back {_times(rollbacks)} before, down to {factor}." if rollbacks else ""
    )
    if rollbacks >= checkpoint.rollbacks:
        raise _final(f"{error}{before}") from None
    saved = next(
        (one for one in checkpoint.folder.sound(checkpoint.on_note) if step_of(one) < step), None
    )
    if saved is None:
        raise _final(
            f"{error}{before} It is not rolled back: no update lies between that batch and the "
            "oldest checkpoint, so the learning rate would not matter."
        ) from None
    checkpoint.on_note(str(error))
    saved.state["rollbacks"] = rollbacks + 1
    checkpoint.folder.write(saved, instead=True)  # so that the next time may go back further
    return saved


def restorer(
    model: RawTextModel, callbacks: Sequence[keras.callbacks.Callback]
) -> Callable[[], None]:
    """Return what makes callbacks, and what is trainable, as they are now: as in a new process."""
    weights = [(weight, weight.trainable) for weight in model.weights]
    held = [(callback, state.take_plain(callback)) for callback in callbacks]

    def restore() -> None:
        for weight, trainable in weights:
            weight.trainable = trainable
        for callback, values in held:
            state.give_plain(callback, values)

    return restore


def set_rollbacks(model: RawTextModel, rollbacks: int) -> None:
    """Have the steps of a model take the learning rate that is due after so many rollbacks."""
    optimizer, factor = inner_of(model.optimizer), _FACTOR**rollbacks
    if isinstance(optimizer, AdamW) and optimizer.learning_rate_factor != factor:
        optimizer.learning_rate_factor = factor
        model.train_function = None  # it was traced with another


def lowered(rollbacks: int) -> str:
    """Return what a note adds where training was rolled back."""
    if not rollbacks:
        return ""
    return f", rolled back {_times(rollbacks)}, at {_FACTOR**rollbacks:g} times the learning rate"


def step_of(saved: Saved) -> int:
    """Return the next step of a checkpoint, counted from 0 over all epochs."""
    at: dict[str, int] = saved.state
    return at["epoch"] * at["batches"] + at["batch"]


def _final(message: str) -> DivergenceError:
    error = DivergenceError(message)
    error.final = True
    return error


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
