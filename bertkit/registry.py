"""Plugins by name: one registry a kind, filled from entry points and by decorator."""

from __future__ import annotations

import difflib
import importlib.metadata
import inspect
import operator
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from bertkit.errors import InputError, PluginError

if TYPE_CHECKING:
    from bertkit.encoder import Encoder
    from bertkit.head import Head
    from bertkit.objective import Objective
    from bertkit.preprocessor import Preprocessor

# Every Keras layer takes these; they are the framework's to set, not a config's.
OF_EVERY_LAYER = frozenset({"name", "dtype", "trainable"})

Contract = TypeVar("Contract", covariant=True)
Plugin = TypeVar("Plugin", bound=Callable[..., Any])


@dataclass(frozen=True)
class PluginInfo:
    """What is known of a plugin.

    Attributes:
        kind: "preprocessor", "encoder", "head" or "objective".
        name: the name it is looked up by.
        distribution: "name version" of the distribution that brings it, or the module that
            registered it by decorator.
        location: "module:qualified name".
    """

    kind: str
    name: str
    distribution: str
    location: str


class Registry(Generic[Contract]):
    """The plugins of one kind.

    A plugin is a class of the contract, or a function that returns an instance of one. Names
    come from the metadata of installed distributions, so listing them imports nothing; a plugin
    is imported by the first `get`.

    Args:
        kind: what a plugin of this registry is called in messages, such as "head".
        group: the entry-point group, such as "bertkit.heads".
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._decorated: dict[str, Callable[..., Contract]] = {}

    def register(self, name: str) -> Callable[[Plugin], Plugin]:
        """Return a decorator that registers a class or function under `name`.

        The same definition again (a notebook cell run twice) replaces itself.

        Raises:
            PluginError: another plugin has that name already.
        """

        def decorate(plugin: Plugin) -> Plugin:
            new = PluginInfo(self.kind, name, plugin.__module__, _location(plugin))
            for other in self._infos():
                if other.name == name and other.location != new.location:
                    raise PluginError(_clash(other, new))
            self._decorated[name] = plugin
            return plugin

        return decorate

    def names(self) -> list[str]:
        """Return all names, sorted, without importing a plugin."""
        return sorted({info.name for info in self._infos()})

    def infos(self) -> list[PluginInfo]:
        """Return what is known of each plugin, sorted by name, without importing one."""
        return sorted(self._infos(), key=lambda info: info.name)

    def get(self, name: str) -> Callable[..., Contract]:
        """Return the class or function registered under `name`, importing it if need be.

        Raises:
            PluginError: no plugin has that name, two have it, or it cannot be imported.
        """
        if name in self._decorated:
            return self._decorated[name]
        found = {entry.value: entry for entry in self._entry_points() if entry.name == name}
        if not found:
            raise PluginError(self._unknown(name))
        if len(found) > 1:
            first, second = list(found.values())[:2]
            raise PluginError(_clash(self._info(first), self._info(second)))
        (entry,) = found.values()
        try:
            plugin = entry.load()
        except Exception as error:
            raise PluginError(
                f"The {self.kind} {name!r} of {_distribution(entry)} is broken: importing "
                f"{entry.value} raised {type(error).__name__}: {error}. "
                "Update or uninstall that distribution; other plugins are not affected."
            ) from error
        if not callable(plugin):
            raise PluginError(
                f"The {self.kind} {name!r} of {_distribution(entry)} is broken: {entry.value} is "
                f"{plugin!r}, not a class or a function."
            )
        return plugin

    def create(self, name: str, /, *args: Any, **arguments: Any) -> Contract:
        """Return `get(name)(*args, **arguments)`.

        Raises:
            PluginError: as `get` does, or the arguments do not fit the plugin's signature.
            InputError: the plugin refuses one of them.
        """
        plugin = self.get(name)
        # A Keras layer's __new__ takes anything, so a class is asked for its __init__.
        signature = inspect.signature(plugin.__init__ if inspect.isclass(plugin) else plugin)
        own = [None] if inspect.isclass(plugin) else []
        parameters = [key for key in signature.parameters if key not in ("self", "args", "kwargs")]
        taken = ", ".join(parameters) or "nothing"
        try:
            signature.bind(*own, *args, **arguments)
        except TypeError as error:
            raise PluginError(
                f"The {self.kind} {name!r} cannot be made: {error}. It takes: {taken}."
            ) from error
        try:
            return plugin(*args, **arguments)
        except InputError as error:
            raise InputError(f"The {self.kind} {name!r}: {error}", error.row) from error
        except ValueError as error:
            # Keras layers take any keyword and refuse it later, in words of their own.
            if "Unrecognized keyword" not in str(error):
                raise
            known = {*parameters, *OF_EVERY_LAYER}
            unknown = ", ".join(key for key in arguments if key not in known)
            raise PluginError(
                f"The {self.kind} {name!r} has no argument {unknown}. It takes: {taken}."
            ) from error

    def name_of(self, plugin: Callable[..., Any]) -> str:
        """Return the name that `plugin` is registered under.

        Raises:
            PluginError: it is not registered.
        """
        location = _location(plugin)
        for info in self._infos():
            if info.location == location:
                return info.name
        raise PluginError(
            f"{location} is not a registered {self.kind}, so a saved model could not name it. "
            f"Decorate it with @bertkit.{self.kind}s.register('a-name'), or declare an entry "
            f"point in the group {self.group!r}."
        )

    def described(self, part: Any) -> dict[str, Any]:
        """Return the mapping, as in YAML, of a part that is within another one.

        Raises:
            PluginError: its class is not registered.
        """
        config = part.get_config()
        for name in OF_EVERY_LAYER:  # the outer part's to set
            config.pop(name, None)
        return {"plugin": self.name_of(type(part)), **config}

    def _unknown(self, name: str) -> str:
        names = self.names()
        near = difflib.get_close_matches(str(name), names, n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        return (
            f"There is no {self.kind} named {name!r}.{guess} "
            f"Installed: {', '.join(names) or 'none'}. A {self.kind} is found when its "
            f"distribution declares an entry point in the group {self.group!r}, or after its "
            f"module has run @bertkit.{self.kind}s.register({str(name)!r})."
        )

    def _infos(self) -> Iterator[PluginInfo]:
        for name, plugin in self._decorated.items():
            yield PluginInfo(self.kind, name, plugin.__module__, _location(plugin))
        for entry in self._entry_points():
            if entry.name not in self._decorated:
                yield self._info(entry)

    def _info(self, entry: importlib.metadata.EntryPoint) -> PluginInfo:
        return PluginInfo(self.kind, entry.name, _distribution(entry), _declared_location(entry))

    def _entry_points(self) -> importlib.metadata.EntryPoints:
        return importlib.metadata.entry_points(group=self.group)


def _location(plugin: Callable[..., Any]) -> str:
    return f"{plugin.__module__}:{plugin.__qualname__}"


def _declared_location(entry: importlib.metadata.EntryPoint) -> str:
    """Return where an entry point's class is defined, or, while not imported, what it declares.

    The two differ where a package re-exports a class of one of its modules.
    """
    try:
        return _location(operator.attrgetter(entry.attr)(sys.modules[entry.module]))
    except (AttributeError, KeyError):
        return entry.value


def _distribution(entry: importlib.metadata.EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"


def _clash(first: PluginInfo, second: PluginInfo) -> str:
    return (
        f"Two {first.kind}s are named {first.name!r}: {first.location} (from "
        f"{first.distribution}) and {second.location} (from {second.distribution}). "
        "Rename one, or uninstall the distribution that is not wanted."
    )


preprocessors: Registry[Preprocessor] = Registry("preprocessor", "bertkit.preprocessors")
encoders: Registry[Encoder] = Registry("encoder", "bertkit.encoders")
heads: Registry[Head] = Registry("head", "bertkit.heads")
objectives: Registry[Objective] = Registry("objective", "bertkit.objectives")

# By kind, in the order in which data pass through them; an objective is optional.
REGISTRIES: dict[str, Registry[Any]] = {
    "preprocessor": preprocessors,
    "encoder": encoders,
    "head": heads,
    "objective": objectives,
}
