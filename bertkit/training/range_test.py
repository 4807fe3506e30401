"""Finding a learning rate: a sweep over many of them, which leaves the model as it was."""

from __future__ import annotations

import contextlib
import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from bertkit.errors import InputError, TrainingError
from bertkit.gradients import copy_of, undone
from bertkit.workflow import with_callbacks

if TYPE_CHECKING:
    from bertkit.classifier import BertClassifier
    from bertkit.objective import Objective

_REACH = 5  # steps on either side that a loss is averaged with
_KEPT = 0.9  # of the running average that tells divergence, from step to step
_DIVERGED = 4.0  # times the smallest running average


@dataclass(frozen=True)
class RangeTest:
    """What `find_learning_rate` has seen.

    Attributes:
        learning_rates: of each step, rising.
        losses: of each batch, before its step.
        smoothed: the mean of each loss and of the five before and after it, as far as there are.
        suggestion: the learning rate at which the smoothed loss falls the fastest, over the
            logarithm of the learning rate and without the first and last five; `None` if it
            falls nowhere.
        diverged: whether the loss exploded before the last learning rate.
    """

    learning_rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float | None
    diverged: bool

    def write_csv(self, path: str | Path) -> None:
        """Write a line a step: learning_rate, loss, smoothed."""
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["learning_rate", "loss", "smoothed"])
            writer.writerows(zip(self.learning_rates, self.losses, self.smoothed, strict=True))

    def write_plot(self, path: str | Path) -> None:
        """Draw the losses over the learning rates, as PNG.

        Raises:
            ImportError: matplotlib is not installed; the message says how to.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                "There is no plot without matplotlib. Install it: pip install 'bertkit[plot]'"
            ) from error
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(self.learning_rates, self.losses, color="silver", label="loss of a batch")
        axes.plot(self.learning_rates, self.smoothed, label="smoothed")
        if self.suggestion is not None:
            axes.axvline(self.suggestion, color="black", linestyle=":",
                         label=f"suggestion: {self.suggestion:.1e}")  # fmt: skip
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
        # What explodes at the end would leave nothing to be seen of the fall before it.
        axes.set_ylim(0.9 * min(self.smoothed), 1.3 * self.smoothed[0])
        axes.legend()
        figure.savefig(path, format="png")


def find_learning_rate(
    model: BertClassifier,
    x: Any,
    y: Any,
    *,
    smallest: float = 1e-7,
    largest: float = 1.0,
    steps: int = 100,
    **options: Any,
) -> RangeTest:
    """Train for some steps at ever higher learning rates, undo it, and suggest one of them.

    The range test of Smith 2017 (https://arxiv.org/abs/1506.01186), over powers as in fastai. It
    takes the steps that `fit` would take with a copy of the model's optimizer, whose learning rate
    rises from step to step by the same factor, and ends early where the running average of the loss
    is four times its smallest, or no number. Then weights, optimizer, objective, metrics and random
    numbers are as they were, to the last bit.

    Args:
        model: its labels are known; what `compile` was not given, the head gives.
        x: texts or tensors, as `fit` takes them.
        y: labels.
        smallest: the first learning rate.
        largest: the last one.
        steps: how many; rows are seen again where they do not suffice.
        **options: what else `fit` takes, such as `batch_size`; callbacks come beside its own.

    Raises:
        InputError: the labels are not known yet, the range is none, or `fit` refuses the rows.
        TrainingError: the loss explodes within the first dozen of steps.
    """
    if not 0 < smallest < largest < math.inf or steps < 20:
        raise InputError(
            f"A range test of {steps} steps from {smallest:g} to {largest:g} was asked for. Give "
            "20 steps or more, and learning rates above 0, the smallest first."
        )
    model.build()
    model._compile_from_head()
    factor = largest / smallest
    schedule = keras.optimizers.schedules.ExponentialDecay(smallest, steps - 1, factor)
    sweep = _Sweep(steps)
    shuffling = np.random.get_state()
    kept = {name: vars(model).get(name) for name in ("optimizer", "train_function", "history")}
    callbacks = with_callbacks(options.pop("callbacks", None), sweep)
    with undone([*model.variables, *model.metrics_variables]), _kept(model.objective):
        try:
            with model.distribute_strategy.scope():
                model.optimizer = copy_of(kept["optimizer"], learning_rate=schedule, use_ema=False)
            model.train_function = None
            model.fit(x, y, callbacks=callbacks, **{"epochs": steps, "verbose": 0, **options})
        finally:
            model.reset_metrics()
            model.stop_training = False
            np.random.set_state(shuffling)
            for name, value in kept.items():
                setattr(model, name, value)
    return _result(sweep)


@contextlib.contextmanager
def _kept(objective: Objective | None) -> Iterator[None]:
    """Give an objective back, after a block, all that it holds, and the bits of its state."""
    layers = [] if objective is None else objective._flatten_layers()
    held = [vars(layer).copy() for layer in layers]
    try:
        with undone([] if objective is None else objective.state):
            yield
    finally:
        for layer, values in zip(layers, held, strict=True):
            vars(layer).clear()
            vars(layer).update(values)


class _Sweep(keras.callbacks.Callback):
    """Keeps the learning rate and the loss of each step, and ends training where it diverges."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.diverged = False
        self._sum, self._least = 0.0, math.inf

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.model.reset_metrics()  # the loss in the logs is then that of the batch
        self._rate = float(np.asarray(self.model.optimizer.learning_rate))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        loss = float((logs or {})["loss"])
        if self.rates and self._rate == self.rates[-1]:
            return  # a step that overflowed in float16 is left out, and taken again
        self._sum = _KEPT * self._sum + (1 - _KEPT) * loss
        average = self._sum / (1 - _KEPT ** (len(self.losses) + 1))
        self._least = min(self._least, average)
        self.diverged = not math.isfinite(loss) or average > _DIVERGED * self._least
        if not self.diverged:
            self.rates.append(self._rate)
            self.losses.append(loss)
        self.model.stop_training = self.diverged or len(self.rates) == self.steps


def _result(sweep: _Sweep) -> RangeTest:
    if len(sweep.rates) < 2 * _REACH + 2:
        raise TrainingError(
            f"The loss explodes at step {len(sweep.rates) + 1}. Give a smaller learning rate to "
            "begin with; model.gradient_report(x, y) shows what a step does."
        )
    smoothed = _smooth(sweep.losses)
    slopes = np.gradient(smoothed, np.log(sweep.rates))[_REACH:-_REACH]
    steepest = int(slopes.argmin())
    return RangeTest(
        learning_rates=tuple(sweep.rates),
        losses=tuple(sweep.losses),
        smoothed=tuple(smoothed.tolist()),
        suggestion=sweep.rates[_REACH + steepest] if slopes[steepest] < 0 else None,
        diverged=sweep.diverged,
    )


def _smooth(losses: Sequence[float]) -> np.ndarray:
    """Return the mean of each of (N,) losses and its neighbours, float64 (N,)."""
    window = np.ones(2 * _REACH + 1)
    counts = np.convolve(np.ones(len(losses)), window, "same")
    return np.convolve(np.asarray(losses, "float64"), window, "same") / counts
