"""The sections `data` and `training` of a config: their keys, defaults and meaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

Precision = Literal["float32", "mixed_float16", "mixed_bfloat16"]  # Keras dtype policies
Logger = Literal["tensorboard", "mlflow", "wandb"]
LoraTarget = Literal["qkv", "attention_output", "intermediate", "output"]
Text = Annotated[str, Field(min_length=1), "text"]
_Files = Text | Annotated[list[Text], Field(min_length=1), "a list of texts"]
_Split = _Files | Annotated[float, Field(gt=0, lt=1)] | None
_Columns = Text | Annotated[list[Text], Field(min_length=1, max_length=2), "a list of 1 or 2 texts"]
_OfTasks = Annotated[dict[str, Text], Field(min_length=1), "a mapping from tasks to texts"]
_Temperature = Annotated[float, Field(gt=0)]


@dataclass
class TaskDataConfig:
    """Where the rows of one task come from.

    Attributes:
        train: one or more files of training rows.
        label: the column of labels.
        text: the column of texts, or two columns for pairs; that of `data` if there is none.
        validation: files of validation rows, or the fraction of the training rows to hold out.
        test: files of test rows, or the fraction of the training rows to hold out.
        label_separator: what separates the labels of a cell that holds several.
    """

    train: _Files
    label: Text
    text: _Columns | None = None
    validation: _Split = None
    test: _Split = None
    label_separator: Text | None = None


@dataclass
class DataConfig:
    """Where the rows come from. Paths are relative to the current directory; globs are fine.

    Attributes:
        train: one or more files of training rows.
        label: the column of labels; of several tasks, a mapping to it from each.
        text: the column of texts, or two columns for pairs.
        validation: files of validation rows, or the fraction of the training rows to hold out.
        test: files of test rows, or the fraction of the training rows to hold out.
        label_separator: what separates the labels of a cell that holds several; of several tasks,
            a mapping to it from those that have such cells.
        tasks: in place of all these, where the rows of each task come from; `text` may stay.
        temperature: of how often the rows of tasks are drawn: by their number at 1, the higher the
            more evenly; or those of the first epoch and the last.
        cache: the folder in which token ids are kept from run to run.
    """

    train: _Files | None = None
    label: Text | _OfTasks | None = None
    text: _Columns | None = None
    validation: _Split = None
    test: _Split = None
    label_separator: Text | _OfTasks | None = None
    tasks: dict[str, TaskDataConfig] | None = None
    temperature: _Temperature | tuple[_Temperature, _Temperature] = 1.0
    cache: Text | None = None


@dataclass
class ParameterGroupConfig:
    """Weights that are trained differently.

    Attributes:
        match: a regular expression that is searched in the paths of weights; each weight belongs
            to the first group that matches it.
        learning_rate: their highest learning rate, in place of that of the training.
        weight_decay: their weight decay, biases and norms included, in place of that of the
            training.
        frozen: whether they stay as they are.
    """

    match: Text
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    frozen: bool = False


@dataclass
class LoraConfig:
    """Low-rank additions to the kernels of a BERT, trained in their place.

    Attributes:
        rank: the width of the additions.
        alpha: divided by the rank, what they are multiplied with.
        targets: the kernels of a layer that have one; "qkv" is query, key and value.
        merge: whether the model that is saved has them in its kernels, as a plain BERT.
    """

    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    targets: Annotated[tuple[LoraTarget, ...], Field(min_length=1)] = ("qkv",)
    merge: bool = True


@dataclass
class EarlyStoppingConfig:
    """When training ends before its last epoch.

    Attributes:
        metric: what has to become better, such as "val_accuracy" or "val_loss".
        patience: how many epochs in a row it may fail to.
        min_delta: by how much it has to.
    """

    metric: Text = "val_loss"
    patience: Annotated[int, Field(ge=1)] = 2
    min_delta: Annotated[float, Field(ge=0)] = 0.0


@dataclass
class TrainingConfig:
    """How the model is trained.

    Attributes:
        epochs: how often each row is seen; 0 trains the head alone, with `head_epochs`.
        batch_size: rows in a batch; 32 if there is no `batch_tokens` either.
        learning_rate: the highest learning rate.
        warmup: the fraction of the steps over which the learning rate rises from zero; 0.1 if
            there are no `warmup_steps` either.
        schedule: how the learning rate falls after the warm-up.
        weight_decay: decoupled weight decay, of kernels and embeddings.
        layer_decay: what the learning rate is multiplied with from layer to layer, top to bottom.
        precision: the Keras dtype policy.
        head_epochs: how often the head alone sees each row, before all else trains: on features
            that the encoder computes once.
        head_learning_rate: the learning rate of these epochs.
        batch_tokens: in place of `batch_size`, the tokens in a batch, padding included.
        checkpoint_minutes: how many minutes of training may be lost when a run is interrupted; 0
            writes a checkpoint after each step.
        micro_batch_size: rows that are computed at once, for less memory; the update is that of
            the whole batch, unless the loss or the objective compares rows.
        parameter_groups: weights with a learning rate or weight decay of their own, or frozen.
        warmup_steps: in place of `warmup`, the number of these steps.
        clip_norm: the largest norm of the gradient of all weights; a larger one is scaled down.
        ema: the decay of an exponential moving average of the weights, such as 0.999; validation
            and the final model have the averages.
        lora: low-rank additions that train in place of the encoder's layers.
        unfreeze: the epochs after which the top layer of the encoder trains as well as the head,
            and then the next one, down to the embeddings.
        on_divergence: whether training stops at a batch whose loss or gradient is not finite, goes
            back to a checkpoint and on with half the learning rate, five times at most, or ends
            with a useless model.
        max_gradient_norm: the norm of the gradient of all weights, before clipping, beyond which
            training counts as diverged.
        early_stopping: when training ends before its last epoch.
        restore_best: a metric; the model gets the weights of the epoch that was best by it.
        max_steps: the steps after which training ends, if its epochs have more.
        max_minutes: the minutes after which training ends, validation included.
        loggers: where the history is written besides `history.csv`.
        callbacks: Keras callbacks, each a section of `callback`, its dotted name, and its
            arguments; a run refuses them unless it is told to allow them.
    """

    epochs: Annotated[int, Field(ge=0)] = 3
    batch_size: Annotated[int, Field(ge=1)] | None = None
    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    warmup: Annotated[float, Field(ge=0, le=1)] | None = None
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    precision: Precision = "float32"
    head_epochs: Annotated[int, Field(ge=0)] = 0
    head_learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    batch_tokens: Annotated[int, Field(ge=1)] | None = None
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 5.0
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    parameter_groups: list[ParameterGroupConfig] | None = None
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    lora: LoraConfig | None = None
    unfreeze: Annotated[int, Field(ge=1)] | None = None
    on_divergence: Literal["stop", "roll_back", "ignore"] = "stop"
    max_gradient_norm: Annotated[float, Field(gt=0)] | None = None
    early_stopping: EarlyStoppingConfig | None = None
    restore_best: Text | None = None
    max_steps: Annotated[int, Field(ge=1)] | None = None
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    loggers: tuple[Logger, ...] = ("tensorboard",)
    callbacks: list[dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        if self.batch_size is None and self.batch_tokens is None:
            self.batch_size = 32
        if self.warmup is None and self.warmup_steps is None:
            self.warmup = 0.1
