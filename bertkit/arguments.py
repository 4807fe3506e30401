"""What a plugin or a section of a config takes, read off its signature, and its values checked."""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from bertkit.registry import OF_EVERY_LAYER

_NAMES = {
    str: ("text", "texts"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
    type(None): ("null", "null"),
}
_LISTS = (list, set, frozenset, collections.abc.Sequence, collections.abc.Collection)
_MAPPINGS = (dict, collections.abc.Mapping)
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_QUOTE = "unquoted no, yes, off, on, false and true are booleans in YAML: quote them"


@dataclass(frozen=True)
class Argument:
    """A key that a section of a config takes.

    Attributes:
        name: the key.
        annotation: the type of its value; `Any` if there is none that can be read.
        default: `inspect.Parameter.empty` if the argument is required.
        description: from the docstring, or empty.
    """

    name: str
    annotation: Any
    default: Any = inspect.Parameter.empty
    description: str = ""

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


def arguments_of(plugin: Callable[..., Any]) -> list[Argument]:
    """Return the arguments that a class or function takes by name, in the order of its signature.

    Left out are `self`, `*args`, `**kwargs`, positional-only parameters and, of Keras layers,
    `name`, `dtype`, `trainable` and a constructor that is Keras's own.

    Raises:
        ValueError: it has no signature, as some built-ins have none.
    """
    target: Callable[..., Any] = plugin
    parameters: list[inspect.Parameter] = []
    hidden: frozenset[str] = frozenset()
    if inspect.isclass(plugin) and plugin.__init__ is not object.__init__:
        # A class with a __new__(*args, **kwargs), as Keras layers are, says nothing by itself.
        target = plugin.__init__
        owner = next(base for base in plugin.__mro__ if "__init__" in vars(base))
        if _is_keras(owner):
            return []
        if any(_is_keras(base) for base in plugin.__mro__):
            hidden = OF_EVERY_LAYER
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except TypeError as error:
        raise ValueError(str(error)) from error
    if target is not plugin:
        parameters = parameters[1:]
    hints = _hints(target)
    descriptions = _descriptions(plugin)
    return [
        Argument(
            parameter.name,
            hints.get(parameter.name, Any),
            parameter.default,
            descriptions.get(parameter.name, ""),
        )
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in hidden
    ]


def section_of(annotation: Any) -> tuple[type[Any], type[Any] | None] | None:
    """Return the dataclass whose fields are the keys of a value, and what holds several of such.

    `None` for a type without a dataclass; `list[Group] | None` gives `(Group, list)`, a mapping
    `(Group, dict)`, and `Group | None` gives `(Group, None)`.
    """
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return annotation, None
    for part in typing.get_args(annotation):
        found = section_of(part)
        if found:
            origin = typing.get_origin(annotation)
            return found[0], origin if origin in (list, dict) else found[1]
    return None


def convert(annotation: Any, value: Any) -> Any:
    """Return `value`, made of what YAML can write, as `annotation` wants it.

    Nothing is guessed: "3" is no number and 1 is no truth value. A whole number becomes a float,
    a list a tuple and a text a path, where those are wanted.

    Raises:
        ValueError: it does not fit; the message says what is expected, and how to get there.
    """
    if annotation is Any:
        return value
    adapter = type_adapter(annotation)
    try:
        converted = adapter.validate_python(value, strict=True)
    except ValidationError as error:
        wrong = error
    else:
        if _has_boolean_item(value) and _accepts(adapter, _as_text(value)):
            # A type that takes booleans too: but which of `no` and `false` it was is lost.
            expected = describe(annotation).replace(f" or {_NAMES[bool][0]}", "")
            raise ValueError(f"expected {expected}; {_QUOTE}")
        return converted
    if _keys_are_text(value):
        # The strict rules of JSON, where a tuple is a list and a path is text.
        try:
            return adapter.validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            wrong = error
    place, item = _blame(value, wrong)
    found = f", and at {place} it is {show(item)}" if place else ""
    raise ValueError(
        f"expected {describe(annotation)}{found}{_hint(annotation, item, bool(place))}"
    ) from None


def type_adapter(annotation: Any) -> TypeAdapter[Any]:
    """Return pydantic's checker of `annotation`; of anything, if it cannot make sense of it."""
    for config in (ConfigDict(arbitrary_types_allowed=True), None):
        try:
            return TypeAdapter(annotation, config=config)
        except (PydanticUserError, NameError, TypeError):
            continue  # a dataclass or model brings its own config; or it is no type at all
    return TypeAdapter(Any)


def describe(annotation: Any, plural: bool = False) -> str:
    """Return an annotation in words, such as "a list of texts or null".

    A text among the metadata of `Annotated` is taken as those words.
    """
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and annotation in _NAMES:
        return _NAMES[annotation][plural]
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        keys = ", ".join(argument.name for argument in arguments_of(annotation))
        return f"{'sections' if plural else 'a section'} of the keys {keys}"
    if origin is typing.Annotated:
        words = [part for part in inner[1:] if isinstance(part, str)]
        return words[0] if words else describe(inner[0], plural) + _bounds(inner[1:])
    if origin is typing.Literal:
        return " or ".join(show(choice) for choice in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(part, plural) for part in inner))
    if origin is tuple and Ellipsis not in inner:
        items = ", ".join(describe(part) for part in inner)
        return f"{'lists' if plural else 'a list'} of {len(inner)} ({items})"
    kind = origin or annotation
    if kind is tuple or kind in _LISTS:
        items = f" of {describe(inner[0], plural=True)}" if inner else ""
        return ("lists" if plural else "a list") + items
    if kind in _MAPPINGS:
        items = " of " + " to ".join(describe(part, plural=True) for part in inner) if inner else ""
        return ("mappings" if plural else "a mapping") + items
    if annotation in (Any, object):
        return "values" if plural else "a value"
    return f"a {getattr(annotation, '__name__', str(annotation))}"


def show(value: Any) -> str:
    """Return a value as YAML and JSON write it, cut to fit into a line."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=repr)
    except (ValueError, TypeError):  # a number of more digits than Python writes, or an odd key
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def nearest(word: Any, words: list[str]) -> str:
    """Return "; did you mean ...?" for the nearest of `words`, or an empty text."""
    lowered = {other.lower(): other for other in words}
    near = difflib.get_close_matches(str(word).lower(), list(lowered), n=1)
    return f"; did you mean {lowered[near[0]]!r}?" if near else ""


def _is_keras(base: type) -> bool:
    return base.__module__.partition(".")[0] == "keras"


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations that can be evaluated; those of type-checking imports cannot."""
    # What wraps another function, by functools.wraps, has the annotations of that one.
    target = inspect.unwrap(target)
    scope = getattr(target, "__globals__", {})
    hints: dict[str, Any] = {}
    for name, annotation in getattr(target, "__annotations__", {}).items():
        one = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            hints |= typing.get_type_hints(one, scope, scope, include_extras=True)
        except Exception:
            hints[name] = Any
    return hints


def _descriptions(plugin: Callable[..., Any]) -> dict[str, str]:
    """Return what the docstring says of each argument, under "Args:" or "Attributes:"."""
    found: dict[str, str] = {}
    inside, name, margin = False, "", 0
    lines = (inspect.getdoc(plugin) or "").splitlines()
    if inspect.isclass(plugin):
        lines += (inspect.getdoc(plugin.__init__) or "").splitlines()
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line.strip() and indent == 0:
            inside, name, margin = line.strip() in ("Args:", "Attributes:"), "", 0
        elif inside and line.strip():
            margin = margin or indent
            start = re.match(r"\s+(\w+)(?: \([^)]*\))?:\s*(.*)", line)
            if start and indent == margin:
                name = start[1]
                found[name] = start[2]
            elif name:
                found[name] = f"{found[name]} {line.strip()}".strip()
    return found


def _bounds(metadata: tuple[Any, ...]) -> str:
    parts = [part for item in metadata for part in getattr(item, "metadata", None) or [item]]
    limits = [
        f"{words} {getattr(part, name)}"
        for part in parts
        for name, words in _BOUNDS.items()
        if getattr(part, name, None) is not None
    ]
    return f" {' and '.join(limits)}" if limits else ""


def _blame(value: Any, error: ValidationError) -> tuple[str, Any]:
    """Return the place inside `value` of the first mistake, and what is there."""
    place: list[str] = []
    steps = error.errors()[0]["loc"]
    if steps[-1:] == ("[key]",):
        steps = steps[:-2]  # the mapping whose key is wrong
    for step in steps:
        items = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(items, dict) and step in items:  # or it is the name of a union's member
            value = items[step]
            place.append(str(step))
    return ".".join(place), value


def _hint(annotation: Any, item: Any, inside: bool) -> str:
    expected = describe(annotation)
    if isinstance(item, dict):
        odd = next((key for key in item if not isinstance(key, str)), None)
        if odd is not None and "text" in expected:
            return f"; the key {odd} is no text: quote it"
    if isinstance(item, (bool, list)) and _has_boolean_item([item]) and "text" in expected:
        return f"; {_QUOTE}"
    if isinstance(item, (int, float)) and "text" in expected and "number" not in expected:
        return "; quote it to make it text"
    if isinstance(item, str):
        if "number" in expected and _is_number(item):
            return "; write it without quotes"
        if (
            not inside
            and "a list of" in expected
            and "text" not in expected.partition("a list of")[0]
        ):
            return f"; write a list as [{item}]"
        return nearest(item, _choices(annotation))
    return ""


def _choices(annotation: Any) -> list[str]:
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return [choice for choice in inner if isinstance(choice, str)]
    return [choice for part in inner for choice in _choices(part)]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _accepts(adapter: TypeAdapter[Any], value: Any) -> bool:
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def _has_boolean_item(value: Any) -> bool:
    return isinstance(value, list) and any(
        isinstance(item, bool) or _has_boolean_item(item) for item in value
    )


def _as_text(value: Any) -> Any:
    """Return `value` with the booleans in its lists as text."""
    if isinstance(value, list):
        return [_as_text(item) for item in value]
    return str(value) if isinstance(value, bool) else value


def _keys_are_text(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _keys_are_text(item) for key, item in value.items())
    return not isinstance(value, list) or all(_keys_are_text(item) for item in value)
