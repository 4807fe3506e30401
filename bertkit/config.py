"""The configuration of an experiment: its schema, and how YAML and `key=value` become one.

A config is data, never code: the only interpolations are `${key.path}` and `${oc.env:NAME}`.
The latter is text from the environment, and ends up in the resolved config of the run folder, so
it is for folders and names, not for secrets.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from bertkit.arguments import Argument, arguments_of, convert, describe, nearest, section_of
from bertkit.errors import ConfigError, PluginError
from bertkit.merging import (
    COMMAND_LINE,
    KeyPath,
    Problems,
    dump,
    merge,
    plain,
    read_file,
    read_overrides,
    resolve,
)
from bertkit.registry import REGISTRIES, Registry, preprocessors

Precision = Literal["float32", "mixed_float16", "mixed_bfloat16"]  # Keras dtype policies
Logger = Literal["tensorboard", "mlflow", "wandb"]
LoraTarget = Literal["qkv", "attention_output", "intermediate", "output"]
_Text = Annotated[str, Field(min_length=1), "text"]
_Files = _Text | Annotated[list[_Text], Field(min_length=1), "a list of texts"]
_Split = _Files | Annotated[float, Field(gt=0, lt=1)] | None
_Columns = (
    _Text | Annotated[list[_Text], Field(min_length=1, max_length=2), "a list of 1 or 2 texts"]
)
_FolderName = Annotated[
    str,
    Field(pattern=r"^\w([\w .-]*[\w-])?$", max_length=100),
    "text that can name a folder: letters, digits, spaces and _ - . between them",
]


@dataclass
class DataConfig:
    """Where the rows come from. Paths are relative to the current directory; globs are fine.

    Attributes:
        train: one or more files of training rows.
        label: the column of labels.
        text: the column of texts, or two columns for pairs.
        validation: files of validation rows, or the fraction of the training rows to hold out.
        test: files of test rows, or the fraction of the training rows to hold out.
        label_separator: what separates the labels of a cell that holds several.
    """

    train: _Files
    label: _Text
    text: _Columns
    validation: _Split = None
    test: _Split = None
    label_separator: _Text | None = None


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

    match: _Text
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

    metric: _Text = "val_loss"
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
            the whole batch.
        parameter_groups: weights with a learning rate or weight decay of their own, or frozen.
        warmup_steps: in place of `warmup`, the number of these steps.
        clip_norm: the largest norm of the gradient of all weights; a larger one is scaled down.
        ema: the decay of an exponential moving average of the weights, such as 0.999; validation
            and the final model have the averages.
        lora: low-rank additions that train in place of the encoder's layers.
        unfreeze: the epochs after which the top layer of the encoder trains as well as the head,
            and then the next one, down to the embeddings.
        on_divergence: whether training stops at a batch whose loss or gradient is not finite, or
            ends with a useless model.
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
    on_divergence: Literal["stop", "ignore"] = "stop"
    max_gradient_norm: Annotated[float, Field(gt=0)] | None = None
    early_stopping: EarlyStoppingConfig | None = None
    restore_best: _Text | None = None
    max_steps: Annotated[int, Field(ge=1)] | None = None
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    loggers: tuple[Logger, ...] = ("tensorboard",)
    callbacks: list[dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        if self.batch_size is None and self.batch_tokens is None:
            self.batch_size = 32
        if self.warmup is None and self.warmup_steps is None:
            self.warmup = 0.1


@dataclass
class PluginConfig:
    """A plugin by name, and the arguments it is made with."""

    plugin: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass
class ExperimentConfig:
    """A whole experiment. Made by `load_config` or `config_from_mapping`, it is valid.

    Attributes:
        name: names the run; must be usable as a folder name.
        data: where the rows come from.
        encoder: which pretrained encoder.
        preprocessor: how text becomes token ids.
        head: what the labels mean.
        objective: what a training step minimizes, if not the head's loss alone.
        training: how the model is trained.
        output_dir: the run folder.
        seed: of everything random.
    """

    name: _FolderName
    data: DataConfig
    encoder: PluginConfig
    preprocessor: PluginConfig
    head: PluginConfig
    objective: PluginConfig | None = None
    training: TrainingConfig = field(default_factory=TrainingConfig)
    output_dir: _Text = "runs/${name}"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    def __post_init__(self) -> None:
        if self.output_dir == "runs/${name}":
            self.output_dir = f"runs/{self.name}"


SECTIONS: dict[str, type[Any]] = {"data": DataConfig, "training": TrainingConfig}


def load_config(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Return the config that YAML files and overrides make together.

    Later files are laid over earlier ones, and the overrides over all of them: mappings key by
    key, everything else replaced. Where `plugin` changes, the earlier plugin's arguments go.

    Args:
        paths: YAML files.
        overrides: `dotted.key=value`, the value read as YAML.

    Raises:
        ConfigError: anything is wrong; a line for each mistake, with the file that set the key,
            the key, its value and what is expected.
    """
    files = [paths] if isinstance(paths, (str, Path)) else list(paths)
    problems = Problems(", ".join(str(file) for file in files) or COMMAND_LINE)
    layers = [(str(file), read_file(file, problems)) for file in files]
    unreadable = bool(problems.lines)
    layers.append((COMMAND_LINE, read_overrides(overrides, problems)))
    if unreadable:
        problems.check()  # what a missing file would have set is not worth a line each
    return _config(layers, problems)


def config_from_mapping(mapping: Mapping[str, Any]) -> ExperimentConfig:
    """Return the config that a mapping of the same form as the YAML stands for.

    Raises:
        ConfigError: as `load_config` does, with "config" in place of the file.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"config: expected a mapping, not a {type(mapping).__name__}")
    return _config([("config", mapping)], Problems("config"))


def to_yaml(config: ExperimentConfig) -> str:
    """Return a config as YAML, such that loading it gives an equal config."""
    given = {key.name: getattr(config, key.name) for key in dataclasses.fields(config)}
    tree = {key: section for key, section in given.items() if section is not None}
    for key, section in tree.items():
        if isinstance(section, PluginConfig):
            tree[key] = {"plugin": section.plugin, **section.arguments}
        elif key in SECTIONS:
            tree[key] = dataclasses.asdict(section, dict_factory=_given)
    return dump(tree)


def _given(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in items if value is not None}


def _config(
    layers: Sequence[tuple[str, Mapping[Any, Any]]], problems: Problems
) -> ExperimentConfig:
    """Merge, resolve and validate `layers`, each with its origin."""
    # Defaults come first, so that interpolations find them. A default null is left out: it would
    # stand for a value in messages.
    tree: dict[Any, Any] = {}
    for argument in arguments_of(ExperimentConfig):
        if argument.name in SECTIONS:
            tree[argument.name] = {
                inner.name: inner.default
                for inner in arguments_of(SECTIONS[argument.name])
                if not inner.required and inner.default is not None
            }
        elif not argument.required:
            tree[argument.name] = argument.default
    try:
        for origin, layer in layers:
            merge(tree, layer, origin, problems.origins)
    except RecursionError:
        problems.note(f"{problems.origin}: nested too deeply, expected a section and its keys")
        problems.check()
    values = resolve(plain(tree, (), problems), problems)
    fields = _fields(values, problems)
    problems.check()
    return ExperimentConfig(**fields)


def _fields(values: dict[Any, Any], problems: Problems) -> dict[str, Any]:
    """Return the fields of an ExperimentConfig; meaningless if a problem was noted."""
    sections = [*SECTIONS, *REGISTRIES]
    arguments = [
        dataclasses.replace(argument, annotation=Any) if argument.name in sections else argument
        for argument in arguments_of(ExperimentConfig)
    ]
    # `training:` with nothing under it is null, and means a section that sets nothing.
    for name in sections:
        if values.get(name) is None and not problems.known((name,)) and name != "objective":
            values[name] = {}
    fields = _checked(values, arguments, (), problems)
    for name in sections:
        fields.pop(name, None)
        section = values.get(name)
        if isinstance(section, dict) and name in SECTIONS:
            given = _checked(section, arguments_of(SECTIONS[name]), (name,), problems)
            for key, other in (("batch_tokens", "batch_size"), ("warmup_steps", "warmup")):
                if given.get(key) is not None and given.get(other) is not None:
                    wanted = f"expected this or {other}, not both; null takes one back"
                    problems.add((name, key), wanted, given[key])
            if given.get("max_gradient_norm") and given.get("on_divergence") == "ignore":
                wanted = "expected none, since on_divergence is ignore"
                problems.add((name, "max_gradient_norm"), wanted, given["max_gradient_norm"])
            _check_groups(given, (name, "parameter_groups"), problems)
            if not problems.known((name,)):
                fields[name] = SECTIONS[name](**given)
        elif isinstance(section, dict):
            fields[name] = _plugin(section, name, REGISTRIES[name], problems)
        elif section is not None:
            example = f"{{plugin: {section}}}" if name in REGISTRIES else "{key: value}"
            problems.add((name,), f"expected a section, such as {name}: {example}", section)
    if "data" in fields and fields.get("preprocessor") is not None:
        _check_columns(fields["data"].text, fields["preprocessor"], problems)
    if "training" in fields and not fields["training"].epochs + fields["training"].head_epochs:
        wanted = "nothing would be trained, expected 1 or more, or head_epochs of 1 or more"
        problems.add(("training", "epochs"), wanted, 0)
    return fields


def _plugin(
    section: dict[Any, Any], name: str, registry: Registry[Any], problems: Problems
) -> PluginConfig | None:
    path = (name, "plugin")
    if problems.known(path):
        return None
    chosen = section.get("plugin")
    if isinstance(chosen, str):
        try:
            arguments = arguments_of(registry.get(chosen))
        except (PluginError, ValueError) as error:
            if chosen in registry.names():
                problems.add(path, f"expected a {registry.kind} that works: {error}", chosen)
                return None
        else:
            rest = {key: value for key, value in section.items() if key != "plugin"}
            return PluginConfig(chosen, _checked(rest, arguments, (name,), problems))
    names = registry.names()
    expected = f"expected an installed {registry.kind}: {', '.join(names) or 'none is'}"
    misspelt = [key for key in section if nearest(key, ["plugin"])]
    if "plugin" in section:
        problems.add(path, expected + nearest(chosen, names), chosen)
    elif misspelt:
        message = f"unknown key, {expected}{nearest(misspelt[0], ['plugin'])}"
        problems.add((name, misspelt[0]), message, section[misspelt[0]])
    else:
        problems.add(path, f"missing, {expected}")
    return None


def _checked(
    values: dict[Any, Any], arguments: Sequence[Argument], path: KeyPath, problems: Problems
) -> dict[str, Any]:
    """Return the values that fit `arguments`, converted, and note all others."""
    names = [argument.name for argument in arguments]
    for key, value in values.items():
        if key not in names and not problems.known((*path, key)):
            known = f"unknown key, expected {'one of ' * bool(names)}{', '.join(names) or 'none'}"
            problems.add((*path, key), known + (nearest(key, names) or _elsewhere(key)), value)
    result: dict[str, Any] = {}
    for argument in arguments:
        here = (*path, argument.name)
        if problems.known(here):
            continue
        if argument.name not in values:
            if argument.required:
                problems.add(here, f"missing, expected {describe(argument.annotation)}")
            continue
        try:
            result[argument.name] = _converted(
                argument.annotation, values[argument.name], here, problems
            )
        except ValueError as error:
            problems.add(here, str(error), values[argument.name])
    return result


def _converted(annotation: Any, value: Any, path: KeyPath, problems: Problems) -> Any:
    """Return a value as `convert` does, and a section in it key by key; `None` after a note.

    Raises:
        ValueError: it does not fit, and no key in it is to blame.
    """
    schema, many = section_of(annotation) or (None, False)
    if schema and not many and isinstance(value, dict):
        given = _checked(value, arguments_of(schema), path, problems)
        return None if problems.known(path) else schema(**given)
    if schema and many and isinstance(value, list) and all(isinstance(v, dict) for v in value):
        items = enumerate(value)
        return [_converted(schema, item, (*path, index), problems) for index, item in items]
    return convert(annotation, value)


def _check_groups(training: Mapping[str, Any], path: KeyPath, problems: Problems) -> None:
    """Note what is wrong with parameter groups beyond the types of their keys."""
    for index, group in enumerate(training.get("parameter_groups") or ()):
        here = (*path, index)
        if problems.known(here):
            continue
        try:
            re.compile(group.match)
        except re.error as error:
            wanted = f"expected a regular expression, such as layer_0/ ({error})"
            problems.add((*here, "match"), wanted, group.match)
        if group.frozen and (group.learning_rate or group.weight_decay) is not None:
            wanted = "expected this, or learning_rate and weight_decay, not both"
            problems.add((*here, "frozen"), wanted, True)
        elif not group.frozen and not group.learning_rate and training.get("layer_decay", 1) < 1:
            wanted = "missing, expected a number, since layer_decay leaves out what a group has"
            problems.add((*here, "learning_rate"), wanted)


def _elsewhere(key: Any) -> str:
    """Return a suggestion if `key` belongs in another section, or at the top."""
    places = {argument.name: argument.name for argument in arguments_of(ExperimentConfig)}
    for section, schema in SECTIONS.items():
        places |= {inner.name: f"{section}.{inner.name}" for inner in arguments_of(schema)}
    return f"; did you mean {places[key]!r}?" if key in places else ""


def _check_columns(text: str | list[str], chosen: PluginConfig, problems: Problems) -> None:
    columns = 1 if isinstance(text, str) else len(text)
    plugin, name = preprocessors.get(chosen.plugin), chosen.plugin
    wanted = chosen.arguments.get("text_columns", getattr(plugin, "text_columns", columns))
    if isinstance(wanted, int) and wanted != columns:
        free = any(argument.name == "text_columns" for argument in arguments_of(plugin))
        other = f", or preprocessor.text_columns={columns}" if free else ""
        problems.add(
            ("data", "text"),
            f"text names {columns} column{'s' * (columns > 1)}, but {name} wants {wanted}, "
            f"expected {'a list of 2 columns' if wanted == 2 else 'one column'}{other}",
            text,
        )
