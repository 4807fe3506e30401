"""Where a run is recorded besides its folder, and callbacks that a config names."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from bertkit.errors import ConfigError

_EXTRAS = ("mlflow", "wandb")  # packages and extras of the same name


def check_loggers(names: Sequence[str]) -> None:
    """Refuse loggers whose package is missing.

    Raises:
        ConfigError: one is; the message names the extra.
    """
    for name in names:
        if name in _EXTRAS and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"training.loggers names {name}, which is not installed. Run "
                f"`pip install 'bertkit[{name}]'`, or take it out."
            )


@contextlib.contextmanager
def logged(names: Sequence[str], logs: Path, run: str) -> Iterator[list[keras.callbacks.Callback]]:
    """Yield the callbacks of MLflow and Weights & Biases, within a run of each.

    A run that is active already is taken, and left open; else one is begun and ended, which has
    failed if the block raises. Where they go is up to their own environment variables, such as
    MLFLOW_TRACKING_URI and WANDB_MODE.

    Args:
        names: "mlflow", "wandb", and others that need no run.
        logs: a folder for the files of Weights & Biases.
        run: the name of the run.
    """
    callbacks: list[keras.callbacks.Callback] = []
    with contextlib.ExitStack() as stack:
        if "mlflow" in names:
            import mlflow
            from mlflow.keras import MlflowCallback

            if mlflow.active_run() is None:
                stack.enter_context(mlflow.start_run(run_name=run))
            callbacks.append(MlflowCallback())
        if "wandb" in names:
            import wandb
            from wandb.integration.keras import WandbMetricsLogger

            if wandb.run is None:
                logs.mkdir(parents=True, exist_ok=True)
                stack.enter_context(wandb.init(name=run, dir=str(logs)))
            callbacks.append(WandbMetricsLogger())
        yield callbacks


def check_allowed(given: Sequence[Mapping[str, Any]] | None, allowed: bool) -> None:
    """Refuse callbacks of a config unless the user has said that its code may run.

    Raises:
        ConfigError: there are some, and they are not allowed.
    """
    if given and not allowed:
        names = ", ".join(str(one.get("callback")) for one in given)
        raise ConfigError(
            f"training.callbacks names {names}, which is code, and a config runs none by itself. "
            "Look at what it does, then pass --allow-callbacks (allow_callbacks=True), or take it "
            "out."
        )


def named_callbacks(given: Sequence[Mapping[str, Any]] | None) -> list[keras.callbacks.Callback]:
    """Return callbacks made from sections of `callback`, a dotted name, and its arguments.

    Raises:
        ConfigError: there is none of that name, it is no Keras callback, or it does not take the
            arguments.
    """
    return [_callback(dict(section)) for section in given or ()]


def _callback(arguments: dict[str, Any]) -> keras.callbacks.Callback:
    name = arguments.pop("callback", None)
    module, _, attribute = str(name).rpartition(".")
    if not module:
        raise ConfigError(
            f"A section of training.callbacks has callback: {name}. Give a dotted name, such as "
            "keras.callbacks.TerminateOnNaN."
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"training.callbacks names {name}, which cannot be imported ({error}). Install its "
            "package, or put its folder on PYTHONPATH."
        ) from error
    if not (isinstance(found, type) and issubclass(found, keras.callbacks.Callback)):
        raise ConfigError(
            f"training.callbacks names {name}, which is no subclass of keras.callbacks.Callback. "
            "Name one that is."
        )
    try:
        return found(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"training.callbacks: {name} does not take these arguments ({error}). Give what its "
            "constructor takes."
        ) from error
