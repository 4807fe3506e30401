"""What plugins are installed, and what each of them takes."""

from __future__ import annotations

import inspect
from typing import Any

from bertkit.arguments import arguments_of, describe
from bertkit.errors import PluginError
from bertkit.registry import REGISTRIES, PluginInfo


def catalogue() -> list[dict[str, Any]]:
    """Return a row for each installed plugin, ready for JSON; all plugins are imported.

    A row has kind, name, distribution, location, summary (the first line of the docstring),
    arguments (name, type, default if there is one, description), and error, which is `None`
    unless the plugin is broken.
    """
    return [_row(info) for registry in REGISTRIES.values() for info in registry.infos()]


def _row(info: PluginInfo) -> dict[str, Any]:
    row = {**vars(info), "summary": "", "arguments": [], "error": None}
    try:
        plugin = REGISTRIES[info.kind].get(info.name)
    except PluginError as error:
        return {**row, "error": str(error)}
    arguments = []
    for argument in arguments_of(plugin):
        entry = {
            "name": argument.name,
            "type": describe(argument.annotation),
            "description": argument.description,
        }
        arguments.append(entry if argument.required else {**entry, "default": argument.default})
    summary = (inspect.getdoc(plugin) or "").split("\n")[0]
    return {**row, "summary": summary, "arguments": arguments}
