"""What the keys of `data` ask of one another, and of the head and the preprocessor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bertkit.arguments import arguments_of, nearest
from bertkit.merging import KeyPath, Problems
from bertkit.registry import heads, preprocessors
from bertkit.sections import DataConfig, TrainingConfig

if TYPE_CHECKING:
    from bertkit.config import PluginConfig

REQUIRED = {
    "train": "text or a list of texts",
    "label": "text, or a mapping from tasks to texts",
    "text": "text or a list of 1 or 2 texts",
}
OF_A_TASK = ("train", "label", "validation", "test", "label_separator")


def check_keys(given: Mapping[str, Any], problems: Problems) -> None:
    """Note what is missing in `data`, and what does not go together.

    Args:
        given: its keys, of the types that they are to have.
        problems: what is noted so far.
    """
    if problems.known(("data", "tasks")):
        return  # what else is missing depends on them
    if given.get("tasks") is None:
        for key, expected in REQUIRED.items():
            if given.get(key) is None and not problems.known(("data", key)):
                problems.add(("data", key), f"missing, expected {expected}")
        _check_separator(given.get("label"), given.get("label_separator"), problems)
        return
    for key in OF_A_TASK:
        if given.get(key) is not None:
            wanted = "expected none, since data.tasks has the keys of each task: put it there"
            problems.add(("data", key), wanted, given[key])
    for task, section in given["tasks"].items():
        if section.text is None and given.get("text") is None:
            wanted = f"missing, expected {REQUIRED['text']}, here or as data.text for all tasks"
            problems.add(("data", "tasks", task, "text"), wanted)


def _check_separator(label: Any, separator: Any, problems: Problems) -> None:
    path = ("data", "label_separator")
    if label is None or separator is None:
        return
    if isinstance(label, str):
        if not isinstance(separator, str):
            problems.add(path, "expected text, since data.label is no mapping", separator)
    elif isinstance(separator, str):
        example = f"{{{next(iter(label))}: {separator!r}}}"
        wanted = f"expected a mapping from tasks to texts, as data.label is, such as {example}"
        problems.add(path, wanted, separator)
    else:
        wanted = f"expected a task of data.label: {', '.join(label)}"
        for task, text in separator.items():
            if task not in label:
                problems.add((*path, task), wanted + nearest(task, list(label)), text)


def check_tasks(data: DataConfig, head: PluginConfig, problems: Problems) -> None:
    """Note where the tasks of the data are not those of the head."""
    found = getattr(heads.get(head.plugin), "tasks_of", None)  # a function may make a head too
    tasks: tuple[str, ...] = found(head.arguments) if found else ()
    key = "label" if data.tasks is None else "tasks"
    named = getattr(data, key)
    path: KeyPath = ("data", key)
    if not tasks:
        if isinstance(named, Mapping):
            wanted = "one column" if key == "label" else "none, but train, label and text"
            why = f"since the head {head.plugin} has one label a row, and no tasks"
            problems.add(path, f"expected {wanted}, {why}", list(named))
        if data.temperature not in (1, (1, 1)):
            wanted = f"expected 1, since the head {head.plugin} has no tasks"
            problems.add(("data", "temperature"), wanted, data.temperature)
        return
    listed = ", ".join(tasks)
    if not isinstance(named, Mapping):
        wanted = f"expected a mapping from each of the tasks {listed} to its column, or data.tasks"
        problems.add(path, wanted, named)
        return
    for task in named:
        if task not in tasks:
            wanted = f"the head {head.plugin} has no such task, expected {listed}"
            problems.add((*path, task), wanted + nearest(task, list(tasks)))
    for task in tasks:
        if task not in named:
            problems.add((*path, task), f"missing, expected too: the head {head.plugin} has it")


def check_temperature(data: DataConfig, training: TrainingConfig, problems: Problems) -> None:
    """Note where rows are to be drawn more and less often, and batches to have so many tokens."""
    if training.batch_tokens is not None and data.temperature not in (1, (1, 1)):
        wanted = "expected 1, since with training.batch_tokens each row comes once an epoch"
        problems.add(("data", "temperature"), wanted, data.temperature)


def check_columns(data: DataConfig, chosen: PluginConfig, problems: Problems) -> None:
    """Note where the columns of texts are more or fewer than the preprocessor takes."""
    texts: dict[KeyPath, Any] = {("data", "text"): data.text}
    for task, section in (data.tasks or {}).items():
        texts["data", "tasks", task, "text"] = section.text
    for path, text in texts.items():
        if text is not None:
            _check_text(path, text, chosen, problems)


def _check_text(
    path: KeyPath, text: str | list[str], chosen: PluginConfig, problems: Problems
) -> None:
    columns = 1 if isinstance(text, str) else len(text)
    plugin, name = preprocessors.get(chosen.plugin), chosen.plugin
    wanted = chosen.arguments.get("text_columns", getattr(plugin, "text_columns", columns))
    if isinstance(wanted, int) and wanted != columns:
        free = any(argument.name == "text_columns" for argument in arguments_of(plugin))
        other = f", or preprocessor.text_columns={columns}" if free else ""
        problems.add(
            path,
            f"text names {columns} column{'s' * (columns > 1)}, but {name} wants {wanted}, "
            f"expected {'a list of 2 columns' if wanted == 2 else 'one column'}{other}",
            text,
        )
