"""From a config to a trained model in a run folder; the only place that reads a config."""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bertkit import artifact
from bertkit.classifier import BertClassifier
from bertkit.config import ExperimentConfig, config_from_mapping, load_config, to_yaml
from bertkit.data.batches import plan
from bertkit.data.cache import check_folder
from bertkit.data.files import read_rows
from bertkit.data.loading import Split
from bertkit.data.report import DataReport
from bertkit.errors import ArtifactError, ConfigError
from bertkit.fitting import prepare, size_of, targets_of, train
from bertkit.gradients import GradientReport
from bertkit.reading import read_data, sources_of
from bertkit.registry import REGISTRIES
from bertkit.training import range_test
from bertkit.training.checkpoint import Checkpoint
from bertkit.training.loggers import check_allowed, check_loggers, logged, named_callbacks
from bertkit.training.range_test import RangeTest
from bertkit.training.rollback import ROLLBACKS
from bertkit.unfinished import (
    check_same,
    check_unfinished,
    checkpoints_of,
    settings_of,
    tidy,
    unfinished,
)

Metrics = dict[str, dict[str, float | None]]

_COMPARED = 2048  # rows whose loss is computed at once


@dataclass(frozen=True)
class Result:
    """What a run left behind.

    Attributes:
        model: the trained model.
        metrics: measures of the "validation" and "test" rows, as far as there are any.
        folder: the run folder.
    """

    model: BertClassifier
    metrics: Metrics
    folder: Path


def build(config: ExperimentConfig | Mapping[str, Any]) -> BertClassifier:
    """Return the untrained model that a config describes.

    Raises:
        ConfigError: the config is wrong.
        BertkitError: a part cannot be made.
    """
    config = _valid(config)
    with _precision(config.training.precision):
        parts = {
            kind: registry.create(plugin.plugin, **plugin.arguments)
            for kind, registry in REGISTRIES.items()
            if (plugin := getattr(config, kind)) is not None
        }
        return BertClassifier(**parts)


@contextlib.contextmanager
def _enough_memory() -> Iterator[None]:
    try:
        yield
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        raise ConfigError(
            "The memory does not suffice. Lower training.batch_size (or batch_tokens) or "
            "preprocessor.sequence_length, or take a smaller encoder."
        ) from error


@_enough_memory()
def run(
    config: ExperimentConfig | Mapping[str, Any],
    overwrite: bool = False,
    on_data: Callable[[Mapping[str, DataReport]], None] = lambda reports: None,
    verbose: int | str = "auto",
    resume: bool = False,
    on_note: Callable[[str], None] = warnings.warn,
    allow_callbacks: bool = False,
) -> Result:
    """Train and evaluate a model, and write its run folder.

    The folder appears when the run has succeeded, and not before: `config.yaml`, `model/`,
    `metrics.json`, `data.json`, `history.csv`, `head_history.csv` and `logs/` for TensorBoard.
    Until then it stands under its name with ".unfinished" added, and stays there with its
    checkpoints if the run is interrupted.

    Args:
        config: an experiment, or a mapping of the form of its YAML.
        overwrite: whether a run folder of that name is replaced, once the new run has succeeded.
        on_data: called with what was read, before training begins.
        verbose: 0 for silence, 1 or "auto" for the bar of `training.progress` in a terminal and a
            line an epoch elsewhere, 2 for Keras's lines.
        resume: whether an unfinished run of that name goes on; it ends with the same weights as
            if it had not been interrupted. Without one, training begins at its beginning, and of
            a finished run of the same config the result is returned.
        on_note: told, in a sentence, what is resumed or rolled back, or that nothing is.
        allow_callbacks: whether the code that `training.callbacks` names may run.

    Raises:
        ConfigError: the config is wrong, or the memory does not suffice.
        TrainingError: training diverged; the unfinished folder holds the batch.
        DataError: a file or a row cannot be used.
        ArtifactError: the run folder exists already, or so does an unfinished run, which another
            process is training, or which cannot go on with this config and these rows.
        BertkitError: a part cannot be made.
    """
    config = _valid(config)
    folder = Path(config.output_dir)
    checkpoint = Checkpoint(
        checkpoints_of(folder),
        config.training.checkpoint_minutes,
        settings_of(config),
        on_note,
        ROLLBACKS if config.training.on_divergence == "roll_back" else 0,
    )
    anew = overwrite or checkpoint.folder.files()
    if resume and not anew and (found := _finished(config)):
        on_note(f"{folder} is finished already, so there is nothing to resume.")
        return found
    check_inputs(config, overwrite, resume, allow_callbacks)
    callbacks = named_callbacks(config.training.callbacks)
    keras.utils.set_random_seed(config.seed)
    model = build(config)
    splits = read_data(config, model)
    on_data({name: split.report for name, split in splits.items()})
    with (
        unfinished(folder, checkpoint.folder, overwrite, resume, on_note) as stage,
        logged(config.training.loggers, stage / "logs", config.name) as loggers,
    ):
        (stage / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        others = [*callbacks, *loggers]
        train(model, splits, config, stage, verbose, checkpoint, others)
        metrics = {
            name: evaluate(model, split) for name, split in splits.items() if name != "train"
        }
        write_json(stage / "metrics.json", metrics)
        write_json(stage / "data.json", {name: s.report.as_dict() for name, s in splits.items()})
        artifact.save(model, stage / "model", to_yaml(config))
    return Result(model, metrics, folder)


@_enough_memory()
def inspect(config: ExperimentConfig | Mapping[str, Any]) -> GradientReport:
    """Return what the first training step would do, on the first rows as they stand in the files.

    Nothing is trained, and nothing written.

    Raises:
        ConfigError: the config is wrong, or the memory does not suffice.
        DataError: a file or a row cannot be used.
        BertkitError: a part cannot be made.
    """
    config = _valid(config)
    keras.utils.set_random_seed(config.seed)
    model = build(config)
    rows = read_data(config, model)["train"]
    prepare(model, rows, config.training)
    first = rows.take(plan(rows.examples.lengths, size_of(config.training), "given")[0])
    batch = first.examples.batch(np.arange(len(first.labels)))
    with first.located():
        return model.gradient_report(batch, first.labels)


@_enough_memory()
def find_learning_rate(config: ExperimentConfig | Mapping[str, Any], **sweep: Any) -> RangeTest:
    """Return how the loss behaves at ever higher learning rates; see `training.range_test`.

    Nothing is written, and of the training all but the learning rate is as in a run that begins
    with all weights: without `head_epochs` and `unfreeze`.

    Args:
        config: an experiment, or a mapping of the form of its YAML.
        **sweep: `smallest`, `largest` and `steps`.

    Raises:
        ConfigError: the config is wrong, or the memory does not suffice.
        DataError: a file or a row cannot be used.
        BertkitError: a part cannot be made, or the range is none.
    """
    config = _valid(config)
    keras.utils.set_random_seed(config.seed)
    model = build(config)
    rows = read_data(config, model)["train"]
    prepare(model, rows, config.training)
    targets_of(model, rows)
    temperature = config.data.temperature
    return range_test.find_learning_rate(
        model,
        rows.examples,
        rows.labels,
        batch_size=config.training.batch_size,
        batch_tokens=config.training.batch_tokens,
        micro_batch_size=config.training.micro_batch_size,
        temperature=temperature[0] if isinstance(temperature, tuple) else temperature,
        **sweep,
    )


def evaluate(model: BertClassifier, split: Split) -> dict[str, float | None]:
    """Return the head's measures of some rows, and their loss."""
    targets = targets_of(model, split)
    outputs = model.predict(split.examples, verbose=0)
    loss = _mean_loss(model.head.make_loss(), targets, outputs)
    return {**model.head.report(targets, outputs), "loss": loss}


def _mean_loss(loss: keras.losses.Loss, targets: np.ndarray, outputs: np.ndarray) -> float:
    """Return the loss of all rows, in parts at random: one that compares rows grows with N²."""
    rows = np.random.default_rng(0).permutation(len(targets))
    parts = np.array_split(rows, math.ceil(len(rows) / _COMPARED))
    losses = [float(loss(targets[part], outputs[part])) for part in parts]
    return float(np.average(losses, weights=[len(part) for part in parts]))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_inputs(
    config: ExperimentConfig, overwrite: bool, resume: bool = False, allow_callbacks: bool = False
) -> None:
    """Check what can be checked without reading a file to its end or building a model.

    Raises:
        ConfigError: callbacks are not allowed, the package of a logger is missing, or the folder
            of token ids cannot be made.
        DataError: a file is missing, or its first row cannot be used.
        ArtifactError: the run folder exists already, or an unfinished run.
    """
    check_allowed(config.training.callbacks, allow_callbacks)
    check_loggers(config.training.loggers)
    _check_free(Path(config.output_dir), overwrite)
    check_unfinished(Path(config.output_dir), overwrite, resume)
    if config.data.cache is not None:
        check_folder(config.data.cache)
    for source in sources_of(config).values():
        for paths in source.files.values():
            next(read_rows(paths, source.columns))


def _valid(config: ExperimentConfig | Mapping[str, Any]) -> ExperimentConfig:
    if isinstance(config, ExperimentConfig):
        return config
    return config_from_mapping(config)


def _finished(config: ExperimentConfig) -> Result | None:
    """Return the result of a finished run of this config, if there is one of that name.

    Raises:
        ArtifactError: it is of another config.
    """
    folder = Path(config.output_dir)
    if not (folder / "config.yaml").is_file() or not _is_run(folder):
        return None
    check_same(folder, load_config([folder / "config.yaml"]), config)
    tidy(folder)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return Result(artifact.load(folder), metrics, folder)


def _check_free(folder: Path, overwrite: bool) -> None:
    """Refuse before hours of training what would fail after them."""
    if folder.exists() and not overwrite:
        raise ArtifactError(
            f"{folder} exists already, and no run is overwritten unasked. Give another name or "
            "output_dir, or pass --overwrite (overwrite=True)."
        )
    if folder.exists() and not (folder.is_dir() and _is_run(folder)):
        raise ArtifactError(
            f"{folder} exists and is no run folder, so it is not overwritten. Give another "
            "name or output_dir."
        )


def _is_run(folder: Path) -> bool:
    """Return whether all that a run leaves behind is there, or nothing at all."""
    files = ("config.yaml", "metrics.json", f"model/{artifact.MANIFEST}")
    return all((folder / file).is_file() for file in files) or not any(folder.iterdir())


@contextlib.contextmanager
def _precision(policy: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
