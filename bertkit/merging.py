"""Layers of a config: YAML files and `key=value`, read, merged and resolved.

What is wrong goes into `Problems`, which knows where each key was set last.
"""

from __future__ import annotations

import difflib
import io
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic_core import to_jsonable_python

from bertkit.arguments import nearest, show
from bertkit.errors import ConfigError

KeyPath = tuple[Any, ...]
COMMAND_LINE = "command line"
_DEEPEST = 32
_DOLLAR = re.compile(r"(\\*)\$\{")
_REFERENCE = re.compile(
    r"\$\{\s*(?:\.*[\w-]+(?:\.[\w-]+)*|oc\.env:[A-Za-z_]\w*(?:,[^\"'${}\\,]*)?)\s*\}"
)
_ABSENT = object()


class Problems:
    """The mistakes found so far, a line each.

    Args:
        origin: what to name for a key that is nowhere, such as the files that were read.

    Attributes:
        origins: for each key path, the file (or "command line") that set it last.
        lines: the messages.
        paths: the keys whose value is of no more use.
    """

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.origins: dict[KeyPath, str] = {}
        self.lines: list[str] = []
        self.paths: set[KeyPath] = set()

    def add(self, path: KeyPath, message: str, value: Any = _ABSENT) -> None:
        """Note what is wrong with the key at `path`, and its value if it has one."""
        prefixes = (path[:length] for length in range(len(path), 0, -1))
        origin = next((self.origins[p] for p in prefixes if p in self.origins), self.origin)
        shown = "" if value is _ABSENT else f" = {show(value)}"
        self.paths.add(path)
        self.note(f"{origin}: {dotted(path)}{shown}: {message}")

    def note(self, message: str) -> None:
        """Note a mistake that belongs to no key."""
        self.lines.append(
            "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(message.split()))
        )

    def known(self, path: KeyPath) -> bool:
        """Return whether a mistake at `path` or inside of it is noted already."""
        return any(other[: len(path)] == path for other in self.paths)

    def check(self) -> None:
        """Raise a ConfigError with all mistakes, if there are any."""
        if self.lines:
            raise ConfigError("\n".join(dict.fromkeys(self.lines)))


def dotted(path: KeyPath) -> str:
    """Return a key path as it is written on the command line."""
    return ".".join(str(key) for key in path)


def read_file(path: str | Path, problems: Problems) -> dict[Any, Any]:
    """Return the mapping that a YAML file holds; an empty one after noting why it cannot be."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        problems.note(f"{path}: byte {error.start} is not UTF-8, expected a YAML file")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        problems.note(f"{path}: {reason}, expected a YAML file{_nearby(Path(path))}")
    else:
        try:
            return _mapping(OmegaConf.load(io.StringIO(text)))
        except Exception as error:  # the loader raises whatever a tag's constructor raises
            problems.note(f"{path}: {_syntax(error)}")
    return {}


def read_overrides(overrides: Iterable[str], problems: Problems) -> dict[Any, Any]:
    """Return the mapping that `dotted.key=value` texts stand for, the values read as YAML."""
    layer: dict[Any, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        keys = key.strip().split(".")
        if not equals:
            problems.note(
                f"{COMMAND_LINE}: {override!r} has no '=', expected key=value without spaces "
                f"around the '=': write {key.strip() or 'key'}=VALUE"
            )
        elif not all(keys):
            problems.note(
                f"{COMMAND_LINE}: {override!r} has an empty key, expected dotted.key=value, such "
                "as training.epochs=3"
            )
        else:
            try:
                value = _mapping(OmegaConf.from_dotlist([f"value={text}"]))["value"]
                if value == "" and not text.strip().startswith(("'", '"', "!")):
                    raise ValueError(f"{text.strip()!r} has a meaning of its own in YAML")
            except Exception as error:  # as in `read_file`
                problems.note(
                    f"{COMMAND_LINE}: {override!r}: {_syntax(error)}; quote the value for the "
                    f"shell and for YAML: '{key}=\"{text}\"'"
                )
                continue
            for part in reversed(keys):
                value = {part: value}
            merge(layer, value, "", {})
    return layer


def plain(value: Any, path: KeyPath, problems: Problems) -> Any:
    """Return `value` in the types that YAML writes; null, after a note, for what it cannot write.

    Text that would call a resolver counts as such: a config is no code.
    """
    if len(path) > _DEEPEST:
        problems.add(path[:3], f"nested too deeply, expected at most {_DEEPEST} levels")
    elif isinstance(value, Mapping):
        result: dict[Any, Any] = {}
        texts = {key: key if isinstance(key, str) else show(key) for key in value}
        twins = Counter(texts.values())
        for key, item in value.items():
            if twins[texts[key]] > 1:
                problems.add((*path, key), "expected one key, not a number and the same as text")
            elif isinstance(key, str) and _is_unicode(key):
                result[str(key)] = plain(item, (*path, key), problems)
            elif isinstance(key, int) and not isinstance(key, bool) and abs(key) < 2**63:
                result[int(key)] = plain(item, (*path, key), problems)
            else:
                fix = "; unquoted no and yes are booleans" if isinstance(key, bool) else ""
                problems.add(
                    (*path, texts[key]),
                    f"expected a key that is text or a whole number: quote it{fix}",
                )
        return result
    elif isinstance(value, (list, tuple)):
        return [plain(item, (*path, index), problems) for index, item in enumerate(value)]
    elif value is None or isinstance(value, bool):
        return value
    elif isinstance(value, str):
        if not _is_unicode(value):
            problems.add(path, "expected Unicode text", value)
        elif _calls_resolver(value):
            fix = r"expected ${key.path} or ${oc.env:NAME}; write \${ for the text itself"
            problems.add(path, fix, value)
        else:
            return str(value)
    elif isinstance(value, int):
        if abs(value) < 2**63:
            return int(value)
        problems.add(path, "expected a whole number of at most 64 bits")
    elif isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        problems.add(path, "expected a finite number", value)
    elif isinstance(value, os.PathLike):
        return plain(os.fspath(value), path, problems)
    else:
        found = type(value).__name__
        problems.add(path, f"expected text, a number, true, false, null or a list, not a {found}")
    return None


def merge(
    base: dict[Any, Any],
    layer: Mapping[Any, Any],
    origin: str,
    origins: dict[KeyPath, str],
    path: KeyPath = (),
) -> None:
    """Lay `layer` over `base`, in place: mappings key by key, everything else replaced.

    A section whose `plugin` changes forgets the arguments of the earlier plugin.
    """
    for key, value in layer.items():
        here = (*path, key)
        origins[here] = origin
        if not isinstance(value, Mapping):
            base[key] = value
            continue
        old = base.get(key)
        changed = isinstance(old, dict) and "plugin" in old and "plugin" in value
        if not isinstance(old, dict) or (not path and changed and old["plugin"] != value["plugin"]):
            base[key] = {}
        merge(base[key], value, origin, origins, here)


def resolve(tree: dict[Any, Any], problems: Problems) -> dict[Any, Any]:
    """Return `tree`, plain, with its interpolations resolved; note those that cannot be."""
    root = OmegaConf.create(tree)
    keys = [dotted((key, *rest)) for key in tree for rest in _paths(tree[key])]

    def get(node: Any, key: Any, path: KeyPath, raw: Any) -> Any:
        try:
            value = node[key]
            section = len(path) == 1 and OmegaConf.is_dict(value)
            if OmegaConf.is_config(value) and not section:
                return OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
            return value
        except MissingMandatoryValue:
            fix = f"give it in a later file or as {dotted(path)}=VALUE"
            problems.add(path, f"expected a value instead of the placeholder ???: {fix}", raw)
        except (OmegaConfBaseException, RecursionError) as error:
            # A default that refers to a missing or wrong key adds nothing to what is said of it.
            if path in problems.origins:
                problems.add(path, _unresolved(error, keys), raw)
            else:
                problems.paths.add(path)
        return None

    values: dict[Any, Any] = {}
    for key, raw in tree.items():
        value = get(root, key, (key,), raw)
        if OmegaConf.is_dict(value):
            section = OmegaConf.to_container(value, resolve=False)
            assert isinstance(section, dict)
            value = {name: get(value, name, (key, name), section[name]) for name in section}
        values[key] = value
    return values


def dump(tree: Mapping[str, Any]) -> str:
    """Return a resolved mapping as YAML that `read_file` and `resolve` give back unchanged."""
    return OmegaConf.to_yaml(OmegaConf.create(_writable(tree)))


def _mapping(config: Any) -> dict[Any, Any]:
    container = OmegaConf.to_container(config, resolve=False)
    if not isinstance(container, dict):
        raise ValueError("expected a mapping of keys to values, found a list")
    return container


def _syntax(error: Exception) -> str:
    """Return what a YAML loader says, with the line, in one line."""
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        place = f"line {mark.line + 1}, column {mark.column + 1}"
        return f"{place}: expected YAML, {getattr(error, 'problem', error)}"
    if isinstance(error, RecursionError):
        return f"nested too deeply, expected at most {_DEEPEST} levels"
    if isinstance(error, OSError):  # what OmegaConf raises for a file that is one number
        return "expected a mapping of keys to values, found a single value"
    first = (str(error).splitlines() or [""])[0]
    return f"expected YAML, {first or type(error).__name__}"


def _nearby(path: Path) -> str:
    try:
        folder = path.parent if path.parent.is_dir() else Path()
        inside = path if path.is_dir() else folder
        found = [p for pattern in ("*.y*ml", "*/*.y*ml") for p in sorted(inside.glob(pattern))]
    except (OSError, ValueError):
        return ""
    found.sort(key=lambda p: -difflib.SequenceMatcher(None, p.name, path.name).ratio())
    return f"; there are: {', '.join(str(p) for p in found[:5])}" if found else ""


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _paths(value: Any) -> list[KeyPath]:
    if not isinstance(value, dict):
        return [()]
    return [(), *((key, *rest) for key, item in value.items() for rest in _paths(item))]


def _calls_resolver(text: str) -> bool:
    """Return whether an interpolation is more than a reference: a config is no code."""
    return any(
        len(match[1]) % 2 == 0 and not _REFERENCE.match(text, match.end(1))
        for match in _DOLLAR.finditer(text)
    )


def _unresolved(error: Exception, keys: list[str]) -> str:
    message = (str(error).splitlines() or [""])[0]
    if isinstance(error, RecursionError) or re.search("[Rr]ecursi|to parent node", message):
        return "refers to itself, expected a key that has a value"
    missing = re.search(r"nterpolation key '(.*)' not found", message)
    if missing:
        return f"there is no key {missing[1]!r}, expected a key of this config" + nearest(
            missing[1], keys
        )
    unset = re.search(r"Environment variable '(.*)' not found", message)
    if unset:
        return f"the environment variable {unset[1]!r} is not set, expected one that is"
    return f"{message}, expected ${{key.path}} or ${{oc.env:NAME}} that has a value"


def _writable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _writable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_writable(item) for item in value]
    if type(value) is str:
        # In front of ${ a backslash escapes, and is escaped itself.
        return _DOLLAR.sub(lambda match: 2 * match[1] + r"\${", value)
    if value is None or type(value) in (bool, int, float):
        return value
    return to_jsonable_python(value)
