"""The JSON Schema of a config, the arguments of the installed plugins included, for editors."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from bertkit.arguments import Argument, arguments_of, section_of, type_adapter
from bertkit.config import SECTIONS, ExperimentConfig
from bertkit.data_keys import OF_A_TASK, REQUIRED
from bertkit.errors import PluginError
from bertkit.registry import REGISTRIES, Registry


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema, draft 2020-12, of a config whose interpolations are resolved.

    This imports every installed plugin. One that cannot be imported is left out, and named in
    the `$comment` of its section. That a preprocessor fits the number of text columns, and a head
    the tasks of the data, is not in the schema.
    """
    definitions: dict[str, Any] = {}
    schema = _mapping(arguments_of(ExperimentConfig), definitions)
    for name, section in SECTIONS.items():
        schema["properties"][name] = _mapping(arguments_of(section), definitions) | {
            "description": _summary(section)
        }
    # Of `data`, either where all rows come from, or where those of each task do.
    schema["properties"]["data"]["oneOf"] = [
        _given(list(REQUIRED), ["tasks"])
        | {
            "if": {"properties": {"label": {"type": "object"}}},
            "then": {"properties": {"label_separator": {"type": ["object", "null"]}}},
            "else": {"properties": {"label_separator": {"type": ["string", "null"]}}},
        },
        _given(["tasks"], list(OF_A_TASK)),
    ]
    # `training:` with nothing under it is null.
    training = schema["properties"]["training"]
    training["type"] = ["object", "null"]
    # Without epochs of either kind, 0 being the default of head_epochs, nothing would be trained.
    none = {"epochs": {"const": 0}, "head_epochs": {"const": 0}}
    training["not"] = {"type": "object", "properties": none, "required": ["epochs"]}
    for name, registry in REGISTRIES.items():
        schema["properties"][name] = _plugins(registry, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "bertkit experiment",
        **schema,
        **({"$defs": definitions} if definitions else {}),
    }


def _given(keys: list[str], none: list[str]) -> dict[str, Any]:
    """Return the schema of a section that has some keys, and not others; null is as none."""
    there = {key: {"not": {"type": "null"}} for key in keys}
    return {"required": keys, "properties": there | {key: {"type": "null"} for key in none}}


def _plugins(registry: Registry[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a section that names a plugin of `registry`."""
    choices: list[dict[str, Any]] = []
    broken: list[str] = []
    for name in registry.names():
        try:
            plugin = registry.get(name)
            arguments = arguments_of(plugin)
        except (PluginError, ValueError) as error:
            broken.append(f"{name} is left out: {error}")
            continue
        choice = _mapping(arguments, definitions)
        choice["title"] = name
        choice["description"] = _summary(plugin)
        choice["properties"] = {"plugin": {"const": name}, **choice["properties"]}
        choice["required"] = ["plugin", *choice["required"]]
        choices.append(choice)
    comment = {"$comment": " ".join(broken)} if broken else {}
    return {"description": f"The {registry.kind}.", "oneOf": choices or [{"not": {}}], **comment}


def _mapping(arguments: list[Argument], definitions: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {argument.name: _value(argument, definitions) for argument in arguments},
        "required": [argument.name for argument in arguments if argument.required],
        "additionalProperties": False,
    }


def _value(argument: Argument, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an argument's value: no more than its description, if it has none."""
    section = section_of(argument.annotation)
    try:
        schema = type_adapter(argument.annotation).json_schema()
    except PydanticUserError:  # a class that no JSON can stand for
        schema = {}
    schema.pop("title", None)
    definitions |= schema.pop("$defs", {})
    schema = _without_boolean_texts(schema)
    if section:  # the keys as our own check takes them: no others
        definitions[section[0].__name__] = _mapping(arguments_of(section[0]), definitions)
    if argument.description:
        schema["description"] = argument.description
    if not argument.required:
        try:
            schema["default"] = to_jsonable_python(argument.default)
        except PydanticSerializationError:
            schema["$comment"] = f"The default is {argument.default!r}."
    return schema


def _without_boolean_texts(schema: Any, inside_list: bool = False) -> Any:
    """Return `schema` without the booleans of lists that may hold text: those are refused."""
    if isinstance(schema, list):
        return [_without_boolean_texts(item, inside_list) for item in schema]
    if not isinstance(schema, dict):
        return schema
    types = [option.get("type") for option in schema.get("anyOf", []) if isinstance(option, dict)]
    if inside_list and "string" in types:
        options = [option for option in schema["anyOf"] if option.get("type") != "boolean"]
        schema = schema | {"anyOf": options}
    return {
        key: _without_boolean_texts(value, inside_list=key in ("items", "prefixItems"))
        for key, value in schema.items()
    }


def _summary(plugin: Any) -> str:
    return (inspect.getdoc(plugin) or "").partition("\n")[0]
