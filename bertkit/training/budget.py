"""A training that ends after so many steps, or so many minutes."""

from __future__ import annotations

import math
import time
from typing import Any

import keras

from bertkit.errors import InputError, shown


class Budget(keras.callbacks.Callback):
    """Ends `fit` after the batch with which its steps or minutes are spent.

    The epoch ends there: validation, and what other callbacks do at its end, come as ever. Going on
    from a checkpoint, after a rollback too, what was spent before it counts, and what came after it
    does not. With `steps_per_execution` the steps may be some more.

    Args:
        steps: batches to train on; `None` for any number.
        minutes: of `fit`, validation and the tracing of the step included; `None` for any.

    Attributes:
        steps_done: batches so far.
        seconds: so far, counted at the end of each batch and epoch.

    Raises:
        InputError: one of them is no number above 0.
    """

    def __init__(self, steps: int | None = None, minutes: float | None = None) -> None:
        super().__init__()
        for name, value, kinds in (("steps", steps, int), ("minutes", minutes, (int, float))):
            number = isinstance(value, kinds) and not isinstance(value, bool)
            if value is not None and not (number and value > 0):
                raise InputError(f"{name} is {shown(value)}. Give a number above 0, or None.")
        self.steps, self.minutes = steps, minutes

    def on_train_begin(self, logs: Any = None) -> None:
        self.steps_done, self.seconds = 0, 0.0
        self._watch = _Stopwatch()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._first = batch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps_done += batch + 1 - self._first  # several with steps_per_execution
        self._check()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._check()

    def _check(self) -> None:
        self.seconds += self._watch.lap()
        steps = math.inf if self.steps is None else self.steps
        seconds = math.inf if self.minutes is None else 60 * self.minutes
        if self.steps_done >= steps or self.seconds >= seconds:
            self.model.stop_training = True


class _Stopwatch:
    """Measures laps; no number, so that a checkpoint leaves it to its process."""

    def __init__(self) -> None:
        self._at = time.monotonic()

    def lap(self) -> float:
        """Return the seconds since the lap before."""
        now = time.monotonic()
        seconds, self._at = now - self._at, now
        return seconds
