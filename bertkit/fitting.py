"""What the section `training` of a config means for a model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np

from bertkit.bert import BertEncoder
from bertkit.classifier import BertClassifier
from bertkit.config import ExperimentConfig
from bertkit.data.batches import TokenBudget, batch_count
from bertkit.data.loading import Split
from bertkit.errors import ConfigError, DivergenceError, InputError
from bertkit.micro_batches import check_compared
from bertkit.sections import LoraConfig, TrainingConfig
from bertkit.training.averaging import AveragedWeights
from bertkit.training.best import EarlyStopping, RestoreBest, sign_of
from bertkit.training.budget import Budget
from bertkit.training.checkpoint import Checkpoint
from bertkit.training.divergence import StopOnDivergence
from bertkit.training.groups import ParameterGroup, check_matches, group_of
from bertkit.training.history import HistoryFile
from bertkit.training.optimizer import AdamW, layer_decay
from bertkit.training.progress import Progress
from bertkit.training.schedule import WarmupSchedule
from bertkit.training.unfreezing import GradualUnfreezing


def train(
    model: BertClassifier,
    splits: Mapping[str, Split],
    config: ExperimentConfig,
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
        ConfigError: a metric is not there, or rows would have none to be compared with.
        DivergenceError: a batch diverged, or the loss of the last epoch is no number, so the model
            is of no use.
    """
    rows, validation, training = splits["train"], splits.get("validation"), config.training
    learn_labels(model, rows)
    _check_metrics(model, training, rows, validation)
    try:
        sizes = {"batch_size": training.batch_size, "micro_batch_size": training.micro_batch_size}
        check_compared(sizes, model.head.make_loss(), model.objective)
    except InputError as error:
        raise ConfigError(f"training.{error}") from error
    for split in splits.values():
        targets_of(model, split)  # before hours of training, not after
    for name in ("train", "validation"):  # what is batched by the budget
        if name in splits and training.epochs:
            batch_count(splits[name].examples.lengths, size_of(training), "sorted")
    data: dict[str, Any] = {
        "x": rows.examples,
        "y": rows.labels,
        "batch_size": training.batch_size,
        "validation_data": validation and (validation.examples, validation.labels),
        "verbose": verbose,
        "temperature": config.data.temperature,
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
        raise DivergenceError(
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
    steps = training.epochs * batch_count(rows.examples.lengths, size_of(training), "shuffled")
    if training.max_steps:
        steps = min(steps, training.max_steps)
    warmup = training.warmup_steps
    if warmup is None:
        warmup = round(cast("float", training.warmup) * steps)  # one of the two always is there
    if warmup > steps > 0:
        warnings.warn(
            f"training.warmup_steps is {warmup}, and training has {steps} steps: the learning rate "
            f"rises to {steps / warmup:.2g} of training.learning_rate, and never falls.",
            stacklevel=2,
        )
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
    if training.on_divergence != "ignore":
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


def _check_metrics(
    model: BertClassifier, training: TrainingConfig, rows: Split, validation: Split | None
) -> None:
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
        if name.startswith("val_") and validation is None:
            raise ConfigError(
                f"training.{key} is {name}, and there are no rows for validation. Set "
                "data.validation to files or to a fraction, such as 0.1, or take out the val_."
            )
        tasks = [task for task in rows.report.tasks if name.startswith(f"val_{task}_")]
        task = max(tasks, key=len, default=None)  # "a_b_accuracy" is of "a_b", and not of "a"
        if task is not None and validation and task not in validation.report.tasks:
            raise ConfigError(
                f"training.{key} is {name}, and no row for validation has a label of the task "
                f"{task!r}. Add such rows, or choose another metric."
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


def size_of(training: TrainingConfig) -> int | TokenBudget:
    """Return what a training batch is limited by."""
    if training.batch_tokens is not None:
        return TokenBudget(training.batch_tokens)
    assert training.batch_size is not None  # one of the two always is
    return training.batch_size


def targets_of(model: BertClassifier, split: Split) -> np.ndarray:
    with split.located():
        return model.head.encode_labels(split.labels)
