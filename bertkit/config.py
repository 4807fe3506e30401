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
from typing import Annotated, Any

from pydantic import Field

from bertkit.arguments import Argument, arguments_of, convert, describe, nearest, section_of
from bertkit.data_keys import check_columns, check_keys, check_tasks, check_temperature
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
from bertkit.registry import REGISTRIES, Registry
from bertkit.sections import DataConfig, Text, TrainingConfig

_FolderName = Annotated[
    str,
    Field(pattern=r"^\w([\w .-]*[\w-])?$", max_length=100),
    "text that can name a folder: letters, digits, spaces and _ - . between them",
]


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
    output_dir: Text = "runs/${name}"
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
            if name == "data":
                check_keys(given, problems)
            if not problems.known((name,)):
                fields[name] = SECTIONS[name](**given)
        elif isinstance(section, dict):
            fields[name] = _plugin(section, name, REGISTRIES[name], problems)
        elif section is not None:
            example = f"{{plugin: {section}}}" if name in REGISTRIES else "{key: value}"
            problems.add((name,), f"expected a section, such as {name}: {example}", section)
    if "data" in fields and fields.get("preprocessor") is not None:
        check_columns(fields["data"], fields["preprocessor"], problems)
    if "data" in fields and fields.get("head") is not None:
        check_tasks(fields["data"], fields["head"], problems)
    if "data" in fields and "training" in fields:
        check_temperature(fields["data"], fields["training"], problems)
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
    schema, container = section_of(annotation) or (None, None)
    if schema and container is None and isinstance(value, dict):
        given = _checked(value, arguments_of(schema), path, problems)
        return None if problems.known(path) else schema(**given)
    if (
        schema
        and container is list
        and isinstance(value, list)
        and all(isinstance(v, dict) for v in value)
    ):
        items = enumerate(value)
        return [_converted(schema, item, (*path, index), problems) for index, item in items]
    if schema and container is dict and _is_mapping_of_sections(value):
        pairs = value.items()
        return {key: _converted(schema, item, (*path, key), problems) for key, item in pairs}
    return convert(annotation, value)


def _is_mapping_of_sections(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(key, str) and isinstance(item, dict) for key, item in value.items()
    )


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
