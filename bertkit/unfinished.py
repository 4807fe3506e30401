"""The folder of a run in the making: it outlives what interrupts it, and becomes the run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from bertkit.artifact import put_in_place
from bertkit.config import ExperimentConfig
from bertkit.errors import ArtifactError, ConfigError, DivergenceError
from bertkit.registry import REGISTRIES
from bertkit.training.checkpoint import place
from bertkit.training.checkpoint_files import CheckpointFolder
from bertkit.training.divergence import ABOUT, BATCH

CHECKPOINTS = "checkpoint"
# What of `training` may differ in a run that goes on.
_MAY_CHANGE = ("checkpoint_minutes", "on_divergence", "max_gradient_norm")
# What a run that goes on does not write again.
_KEPT = (CHECKPOINTS, "logs", "head_history.csv", BATCH, ABOUT)


def unfinished_of(folder: Path) -> Path:
    """Return where a run stands before it is finished."""
    return folder.parent / f"{folder.name}.unfinished"  # "." and "/" have no name


def checkpoints_of(folder: Path) -> Path:
    """Return where the checkpoints of a run stand before it is finished."""
    return unfinished_of(folder) / CHECKPOINTS


def settings_of(config: ExperimentConfig) -> dict[str, Any]:
    """Return what a run that goes on must not change, by key; of the data, rows count as well.

    What only decides when training stops, or is rolled back, may change.
    """
    tree = dataclasses.asdict(config)
    settings = {"seed": config.seed, "data.temperature": config.data.temperature}
    for kind in REGISTRIES:
        if tree[kind] is None:  # an objective is optional
            continue
        settings |= {f"{kind}.plugin": tree[kind]["plugin"]}
        settings |= {f"{kind}.{key}": value for key, value in tree[kind]["arguments"].items()}
    settings |= {f"training.{key}": value for key, value in tree["training"].items()}
    for key in _MAY_CHANGE:
        del settings[f"training.{key}"]
    return cast("dict[str, Any]", json.loads(json.dumps(settings)))  # a tuple comes back a list


def check_same(folder: Path, then: ExperimentConfig, now: ExperimentConfig) -> None:
    """Refuse to take a finished run for the one that was asked for.

    Raises:
        ArtifactError: it is of another config.
    """
    one, other = settings_of(then), settings_of(now)
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    if keys:
        raise ArtifactError(
            f"{folder} is finished already, with other values of {', '.join(keys)}. Give another "
            "name or output_dir, or pass --overwrite (overwrite=True)."
        )


def check_unfinished(folder: Path, overwrite: bool, resume: bool) -> None:
    """Refuse to begin anew, unasked, what has come some way.

    Raises:
        ArtifactError: there is an unfinished run, or another process is training it.
    """
    checkpoints = CheckpointFolder(checkpoints_of(folder))
    if not checkpoints.path.exists():
        return
    with checkpoints.locked():
        if resume or overwrite or not checkpoints.files():
            return
        saved = checkpoints.newest(lambda damage: None)
    where = f": {place(saved)}" if saved else ""
    raise ArtifactError(
        f"There is an unfinished run in {unfinished_of(folder)}{where}. Pass --resume (resume=True)"
        " to go on, or --overwrite (overwrite=True) to begin anew."
    )


@contextlib.contextmanager
def unfinished(
    folder: Path,
    checkpoints: CheckpointFolder,
    overwrite: bool,
    resume: bool,
    on_note: Callable[[str], None],
) -> Iterator[Path]:
    """Yield a folder that becomes `folder` when the block ends without an error.

    If it does not, the folder stays for as long as there is a checkpoint in it, and with the batch
    of a training that diverged. Where the config was at fault from the beginning, all goes.

    Args:
        folder: where the run is to stand.
        checkpoints: those of the run; locked for the block.
        overwrite: whether a folder there is replaced; it stays as it is until then.
        resume: whether the checkpoints there are kept, and not removed.
        on_note: told, in a sentence, if there are none, or that they are kept.

    Raises:
        ArtifactError: the folder cannot be written, another process is training in it, or there
            is an unfinished run and neither flag.
    """
    check_unfinished(folder, overwrite, resume)
    stage = unfinished_of(folder)
    with checkpoints.locked():
        if resume and not checkpoints.files():
            on_note(f"There is nothing to resume in {stage}, so training begins at its beginning.")
        going_on = resume and bool(checkpoints.files())
        _clear(stage, checkpoints, going_on)
        try:
            yield stage
        except BaseException as error:
            at_fault = isinstance(error, ConfigError) and not going_on
            if checkpoints.files() and not at_fault:
                on_note(f"What was trained is kept in {stage}. {_ways_on(error)}")
            elif not (stage / BATCH).exists():  # which someone is to look at
                shutil.rmtree(stage, ignore_errors=True)
            raise
        try:
            put_in_place(stage, folder, overwrite)
        except OSError as error:
            raise ArtifactError(
                f"{folder} cannot be put in place ({error.strerror}): something took that name "
                f"meanwhile. What was finished is kept in {stage}; rename it."
            ) from error
        tidy(folder)  # not before: killed in between, the run goes on from its checkpoints


def _ways_on(error: BaseException) -> str:
    if isinstance(error, DivergenceError) and error.final:
        return "Pass --overwrite to begin anew, with other settings."
    if isinstance(error, DivergenceError):
        return (
            "Pass --resume with training.on_divergence=roll_back to go on from there at a lower "
            "learning rate, or --overwrite to begin anew."
        )
    return "Pass --resume to go on."


def tidy(folder: Path) -> None:
    """Remove from a finished run what served its making."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def _clear(stage: Path, checkpoints: CheckpointFolder, going_on: bool) -> None:
    """Remove what is to be written, and checkpoints too if the run does not go on from them."""
    for entry in stage.iterdir():
        if entry.name not in (_KEPT if going_on else (CHECKPOINTS,)):
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    if not going_on:
        checkpoints.clear()
