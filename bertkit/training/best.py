"""The best epoch of a training by a metric: to stop some time after it, and to go back to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from bertkit.errors import InputError
from bertkit.training.optimizer import inner_of


class EarlyStopping(keras.callbacks.Callback):
    """Ends `fit` when a metric has not become better for some epochs.

    Which way is better is what the metric says (`_direction`, as Keras's own have it); of a loss,
    lower is. A value that is NaN is never better. Validation must come after each epoch. Keras's
    callback of this name does the same, but with `min_delta` does not go on as it was from a
    checkpoint.

    Args:
        metric: such as "val_accuracy" or "val_loss".
        patience: after how many epochs in a row that were not better.
        min_delta: by how much a value must be better to count.

    Raises:
        InputError: at the beginning of training: there is no such metric, or it does not say which
            way is better. At the end of an epoch: there are no validation rows to measure it on.
    """

    def __init__(self, metric: str = "val_loss", patience: int = 2, min_delta: float = 0.0) -> None:
        super().__init__()
        self.metric, self.patience, self.min_delta = metric, patience, min_delta

    def on_train_begin(self, logs: Any = None) -> None:
        self._sign = sign_of(self.metric, compiled_metrics(self.model))
        self.best: float | None = None
        self.waited = 0

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        value = self._sign * _value(self.metric, logs)
        if not math.isnan(value) and (self.best is None or value > self.best + self.min_delta):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        if self.waited >= self.patience:
            self.model.stop_training = True


class RestoreBest(keras.callbacks.Callback):
    """Gives the model, at the end of `fit`, the weights of the epoch that was best by a metric.

    They are kept in memory, and in a checkpoint too. With `AveragedWeights` it is the averages,
    since validation is on them. The optimizer's state stays that of the end. Of equals
    the first is the best; if all are NaN, the last weights stay. Comes before callbacks that read
    weights at the end of training.

    Args:
        metric: as of `EarlyStopping`.

    Attributes:
        epoch: the best one, counted from 0; `None` before there is one.

    Raises:
        InputError: as `EarlyStopping`.
    """

    def __init__(self, metric: str = "val_loss") -> None:
        super().__init__()
        self.metric = metric
        self.epoch: int | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        self._sign = sign_of(self.metric, compiled_metrics(self.model))
        self.epoch, self.best = None, 0.0
        self._weights: list[np.ndarray] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        value = self._sign * _value(self.metric, logs)
        if not math.isnan(value) and (self.epoch is None or value > self.best):
            self.epoch, self.best = epoch, value
            self._weights = [np.array(weight) for weight in _validated_weights(self.model)]

    def on_train_end(self, logs: Any = None) -> None:
        if self.epoch is not None:
            self.model.set_weights(self._weights)
        self._weights = []


def compiled_metrics(model: Any) -> list[Any]:
    """Return the metrics that a model was compiled with, as they were given."""
    given = model._compile_config.config
    metrics: list[Any] = []
    for key in ("metrics", "weighted_metrics"):
        metrics += keras.tree.flatten(given.get(key) or [])
    return metrics


def sign_of(name: str, metrics: Sequence[Any]) -> float:
    """Return 1 if higher values are better, -1 if lower ones are.

    Args:
        name: of a metric, or "loss", with "val_" in front or without.
        metrics: all that there are beside the loss.

    Raises:
        InputError: none of them has this name, or it does not say.
    """
    directions: dict[str, Any] = {"loss": "down"}
    for metric in metrics:
        known = getattr(metric, "name", getattr(metric, "__name__", str(metric)))
        directions[known] = getattr(metric, "_direction", None)
    plain = name.removeprefix("val_")
    if plain not in directions:
        names = [f"{part}{known}" for part in ("", "val_") for known in directions]
        raise InputError(f"There is no metric {name!r}. Choose one of {', '.join(names)}.")
    if directions[plain] not in ("up", "down"):
        raise InputError(
            f"The metric {plain!r} does not say whether higher is better. Set its `_direction` to "
            '"up" or "down", as Keras\'s own have it, or choose another, such as val_loss.'
        )
    return 1.0 if directions[plain] == "up" else -1.0


def _value(name: str, logs: Any) -> float:
    if name not in (logs or {}):
        raise InputError(
            f"{name} was not measured in this epoch, only {', '.join(logs or {})}. Give rows for "
            "validation, and validate after each epoch, or choose another metric."
        )
    return float(logs[name])


def _validated_weights(model: Any) -> list[Any]:
    """Return the weights of a model, or the averages in the place of those that have one."""
    optimizer = inner_of(model.optimizer)
    averages: dict[int, Any] = {}
    if model.validates_averages and optimizer.use_ema:
        pairs = zip(
            optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True
        )
        averages = {id(weight): average for weight, average in pairs}
    return [averages.get(id(weight), weight) for weight in model.weights]
