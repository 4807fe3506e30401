"""From a config to a trained model in a run folder; the only place that reads a config."""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import keras
import numpy as np
import tensorflow as tf

from bertkit import artifact
from bertkit.bert import BertEncoder
from bertkit.classifier import BertClassifier
from bertkit.config import (
    ExperimentConfig,
    LoraConfig,
    TrainingConfig,
    config_from_mapping,
    load_config,
    to_yaml,
)
from bertkit.data.batches import TokenBudget, batch_count, plan
from bertkit.data.files import Columns, read_rows
from bertkit.data.loading import Split, load_split
from bertkit.data.report import DataReport
from bertkit.errors import ArtifactError, ConfigError, DataError, InputError
from bertkit.gradients import GradientReport
from bertkit.registry import REGISTRIES
from bertkit.training import range_test
from bertkit.training.averaging import AveragedWeights
from bertkit.training.best import EarlyStopping, RestoreBest, sign_of
from bertkit.training.budget import Budget
from bertkit.training.checkpoint import Checkpoint
from bertkit.training.divergence import StopOnDivergence
from bertkit.training.groups import ParameterGroup, check_matches, group_of
from bertkit.training.history import HistoryFile
from bertkit.training.loggers import check_allowed, check_loggers, logged, named_callbacks
from bertkit.training.optimizer import AdamW, layer_decay
from bertkit.training.progress import Progress
from bertkit.training.range_test import RangeTest
from bertkit.training.schedule import WarmupSchedule
from bertkit.training.unfreezing import GradualUnfreezing
from bertkit.unfinished import (
    check_same,
    check_unfinished,
    checkpoints_of,
    settings_of,
    tidy,
    unfinished,
)

if TYPE_CHECKING:
    from bertkit.preprocessor import Preprocessor

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
        on_note: told, in a sentence, what is resumed, or that nothing is.
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
        checkpoints_of(folder), config.training.checkpoint_minutes, settings_of(config), on_note
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
        train(model, splits, config.training, stage, verbose, checkpoint, others)
        metrics = {
            name: evaluate(model, split) for name, split in splits.items() if name != "train"
        }
        write_json(stage / "metrics.json", metrics)
        write_json(stage / "data.json", {name: s.report.as_dict() for name, s in splits.items()})
        artifact.save(model, stage / "model", to_yaml(config))
    return Result(model, metrics, folder)


def read_data(
    config: ExperimentConfig, model: BertClassifier, training: bool = True
) -> dict[str, Split]:
    """Read and tokenize "train", "validation" and "test", as far as the config names them.

    A fraction is held out of the training rows, at random from the seed. Without `training`,
    training rows are read only if others are held out of them.
    """
    data = config.data
    columns = columns_of(config)
    preprocessor = cast("Preprocessor", model.preprocessor)  # every config names one
    given = {"train": data.train, "validation": data.validation, "test": data.test}
    fractions = {name: part for name, part in given.items() if isinstance(part, float)}
    if not training and not fractions:
        del given["train"]
    splits = {
        name: load_split(paths, columns, preprocessor)
        for name, paths in given.items()
        if paths is not None and not isinstance(paths, float)
    }
    if fractions:
        splits |= _held_out(splits["train"], fractions, config.seed)
    return {name: splits[name] for name in given if name in splits}


def _held_out(split: Split, fractions: Mapping[str, float], seed: int) -> dict[str, Split]:
    """Cut fractions of the training rows off, at random; what is left is "train"."""
    count = len(split.labels)
    rows = np.random.default_rng(seed).permutation(count)
    parts = {}
    for name, fraction in fractions.items():
        size = round(fraction * count)
        if not 0 < size < len(rows):
            raise DataError(
                f"data.{name} holds out {fraction:g} of {count} rows, which leaves none on one "
                "side. Choose another fraction, or name files."
            )
        parts[name], rows = split.take(np.sort(rows[:size])), rows[size:]
    parts["train"] = split.take(np.sort(rows))
    parts["train"].report.add_empty(split.report.empty)
    return parts


def columns_of(config: ExperimentConfig, labelled: bool = True) -> Columns:
    """Return the columns that an experiment reads."""
    data = config.data
    text = (data.text,) if isinstance(data.text, str) else tuple(data.text)
    if not labelled:
        return Columns(text)
    # What the head's attribute of this name says, before there is a head.
    ignore_missing = bool(config.head.arguments.get("ignore_missing", False))
    return Columns(text, data.label, data.label_separator, ignore_missing)


def train(
    model: BertClassifier,
    splits: Mapping[str, Split],
    training: TrainingConfig,
    folder: Path,
    verbose: int | str,
    checkpoint: Checkpoint,
    others: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Fit a model, its head alone first if so wanted, with histories and logs in a folder.

    Where there is a checkpoint, the head had been trained before it. Other callbacks see all
    weights train, and not the head alone.

    Raises:
        DataError: a label cannot be used.
        ConfigError: a metric is not there, or the loss of the last epoch is no number, so the
            model is of no use.
    """
    rows, validation = splits["train"], splits.get("validation")
    learn_labels(model, rows)
    _check_metrics(model, training, validation is not None)
    for split in splits.values():
        _targets(model, split)  # before hours of training, not after
    for name in ("train", "validation"):  # what is batched by the budget
        if name in splits and training.epochs:
            batch_count(splits[name].examples.lengths, _size(training), "sorted")
    data: dict[str, Any] = {
        "x": rows.examples,
        "y": rows.labels,
        "batch_size": training.batch_size,
        "validation_data": validation and (validation.examples, validation.labels),
        "verbose": verbose,
    }
    if training.head_epochs and not checkpoint.folder.files():
        history = model.fit_head(
            **data,
            epochs=training.head_epochs,
            learning_rate=training.head_learning_rate,
            callbacks=_histories(training, folder / "head_history.csv", folder / "logs" / "head"),
        )
        _check_converged(history, "training.head_learning_rate", training.head_learning_rate)
    if training.epochs:
        prepare(model, rows, training)
        bar = [Progress(training.max_steps)] if verbose in (1, "auto") else []
        data["verbose"] = 2 if verbose == 2 else 0
        history = model.fit(
            **data,
            batch_tokens=training.batch_tokens,
            micro_batch_size=training.micro_batch_size,
            epochs=training.epochs,
            callbacks=[
                *callbacks_of(training, folder),
                *_histories(training, folder / "history.csv", folder / "logs"),
                *others,
                *bar,
                checkpoint,
            ],
        )
        _check_converged(
            history, "training.learning_rate", training.learning_rate, ", or raise training.warmup"
        )
        if training.lora and training.lora.merge:
            # Its optimizer is one of weights that are no more, so the model is compiled no more.
            cast(BertEncoder, model.encoder).merge_lora()
            model.compiled, model.optimizer = False, None


def _histories(
    training: TrainingConfig, history: Path, logs: Path
) -> list[keras.callbacks.Callback]:
    callbacks = [HistoryFile(history)]
    if "tensorboard" in training.loggers:
        callbacks.append(keras.callbacks.TensorBoard(str(logs), write_graph=False))
    return callbacks


def _check_converged(
    history: keras.callbacks.History, key: str, rate: float, other: str = ""
) -> None:
    loss = history.history["loss"][-1]
    if not math.isfinite(loss):
        raise ConfigError(
            f"Training diverged: the loss of the last epoch is {loss}. Lower {key}, which is "
            f"{rate:g}{other}."
        )


def learn_labels(model: BertClassifier, rows: Split) -> None:
    """Let the head learn its labels, unless it knows them.

    Raises:
        DataError: a label cannot be used.
    """
    if not model.head.adapted:
        with rows.located():
            model.head.adapt(rows.labels)
    model.build()


def prepare(model: BertClassifier, rows: Split, training: TrainingConfig) -> None:
    """Let the head learn its labels, unless it knows them, and compile the model for training.

    Raises:
        DataError: a label cannot be used.
        ConfigError: the encoder cannot have LoRA.
        EncoderError: LoRA cannot be with these numbers.
        InputError: a parameter group matches no weight.
    """
    learn_labels(model, rows)
    if training.lora:
        _enable_lora(model, training.lora)
    steps = training.epochs * batch_count(rows.examples.lengths, _size(training), "shuffled")
    if training.max_steps:
        steps = min(steps, training.max_steps)
    warmup = training.warmup_steps
    if warmup is None:
        warmup = round(cast("float", training.warmup) * steps)  # one of the two always is there
    schedule = WarmupSchedule(training.learning_rate, steps, warmup, training.schedule)
    model.compile(
        optimizer=AdamW(
            schedule,
            parameter_groups(model, training),
            weight_decay=training.weight_decay,
            global_clipnorm=training.clip_norm,
            **({"use_ema": True, "ema_momentum": training.ema} if training.ema else {}),
        ),
        loss=model.head.make_loss(),
        metrics=model.head.make_metrics(),
    )


def _enable_lora(model: BertClassifier, lora: LoraConfig) -> None:
    if not isinstance(model.encoder, BertEncoder):
        raise ConfigError(
            f"training.lora needs the kernels of a BERT, and {type(model.encoder).__name__} has "
            "none that are known. Take it out, or choose an encoder that is a BertEncoder."
        )
    model.encoder.enable_lora(lora.rank, lora.alpha, lora.targets)


def callbacks_of(training: TrainingConfig, folder: Path) -> list[keras.callbacks.Callback]:
    """Return what takes part in `fit`; it comes before callbacks that read weights."""
    callbacks: list[keras.callbacks.Callback] = []
    if training.on_divergence == "stop":
        callbacks.append(StopOnDivergence(folder, training.max_gradient_norm))
    if training.unfreeze:
        callbacks.append(GradualUnfreezing(training.unfreeze))
    if training.ema:
        callbacks.append(AveragedWeights())
    if training.max_steps or training.max_minutes:
        callbacks.append(Budget(training.max_steps, training.max_minutes))
    if training.early_stopping:
        callbacks.append(EarlyStopping(**vars(training.early_stopping)))
    if training.restore_best:
        callbacks.append(RestoreBest(training.restore_best))
    return callbacks


def _check_metrics(model: BertClassifier, training: TrainingConfig, validated: bool) -> None:
    """Refuse metrics that training will not have measured.

    Raises:
        ConfigError: there is none of that name.
    """
    stopping = training.early_stopping
    for key, name in (
        ("early_stopping.metric", stopping and stopping.metric),
        ("restore_best", training.restore_best),
    ):
        if not name:
            continue
        try:
            sign_of(name, model.head.make_metrics())
        except InputError as error:
            raise ConfigError(f"training.{key}: {error}") from error
        if name.startswith("val_") and not validated:
            raise ConfigError(
                f"training.{key} is {name}, and there are no rows for validation. Set "
                "data.validation to files or to a fraction, such as 0.1, or take out the val_."
            )


def parameter_groups(model: BertClassifier, training: TrainingConfig) -> list[ParameterGroup]:
    """Freeze what is to be frozen, and return the groups for the optimizer of the rest.

    Raises:
        InputError: a group matches no weight.
    """
    groups = training.parameter_groups or []
    check_matches(groups, model.weights)
    for weight in model.weights:
        group = group_of(weight.path, groups)
        if group and group.frozen:
            weight.trainable = False
    made = [
        ParameterGroup(
            group.match,
            1.0 if group.learning_rate is None else group.learning_rate / training.learning_rate,
            group.weight_decay,
        )
        for group in groups
        if not group.frozen
    ]
    if training.layer_decay < 1:
        made += layer_decay(model.encoder, training.layer_decay)
    return made


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
    first = rows.take(plan(rows.examples.lengths, _size(config.training), "given")[0])
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
    _targets(model, rows)
    return range_test.find_learning_rate(
        model,
        rows.examples,
        rows.labels,
        batch_size=config.training.batch_size,
        batch_tokens=config.training.batch_tokens,
        micro_batch_size=config.training.micro_batch_size,
        **sweep,
    )


def evaluate(model: BertClassifier, split: Split) -> dict[str, float | None]:
    """Return the head's measures of some rows, and their loss."""
    targets = _targets(model, split)
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
        ConfigError: callbacks are not allowed, or the package of a logger is missing.
        DataError: a file is missing, or its first row cannot be used.
        ArtifactError: the run folder exists already, or an unfinished run.
    """
    check_allowed(config.training.callbacks, allow_callbacks)
    check_loggers(config.training.loggers)
    _check_free(Path(config.output_dir), overwrite)
    check_unfinished(Path(config.output_dir), overwrite, resume)
    for paths in (config.data.train, config.data.validation, config.data.test):
        if paths is not None and not isinstance(paths, float):
            next(read_rows(paths, columns_of(config)))


def _size(training: TrainingConfig) -> int | TokenBudget:
    """Return what a training batch is limited by."""
    if training.batch_tokens is not None:
        return TokenBudget(training.batch_tokens)
    assert training.batch_size is not None  # one of the two always is
    return training.batch_size


def _targets(model: BertClassifier, split: Split) -> np.ndarray:
    with split.located():
        return model.head.encode_labels(split.labels)


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
