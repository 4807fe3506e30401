"""The rows that a config names, read and tokenized."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from bertkit.classifier import BertClassifier
from bertkit.config import ExperimentConfig
from bertkit.data.cache import TokenCache
from bertkit.data.files import Columns
from bertkit.data.loading import Split, joined, load_split
from bertkit.errors import DataError
from bertkit.sections import DataConfig, TaskDataConfig

if TYPE_CHECKING:
    from bertkit.preprocessor import Preprocessor

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Source:
    """Rows that are read alike: all of a config, or those of a task that has its own.

    Attributes:
        given: "train", "validation" and "test", as far as the config names them: files, or the
            fraction of the training rows to hold out.
        columns: which columns to read.
    """

    given: Mapping[str, str | list[str] | float]
    columns: Columns

    @property
    def files(self) -> dict[str, str | list[str]]:
        """What of it is files."""
        return {name: part for name, part in self.given.items() if not isinstance(part, float)}


def sources_of(config: ExperimentConfig) -> dict[str | None, Source]:
    """Return where rows come from, by task; by `None` alone if it is one place for all rows."""
    data = config.data
    if data.tasks is not None:
        return {task: _source(own, own.text or data.text) for task, own in data.tasks.items()}
    # What the head's attribute of this name says, before there is a head.
    ignore_missing = bool(config.head.arguments.get("ignore_missing", False))
    return {None: _source(data, data.text, ignore_missing)}


def _source(
    data: DataConfig | TaskDataConfig, text: str | list[str] | None, ignore_missing: bool = False
) -> Source:
    assert text is not None  # a config that was checked names it
    columns = (text,) if isinstance(text, str) else tuple(text)
    given = {name: part for name in _SPLITS if (part := getattr(data, name)) is not None}
    return Source(given, Columns(columns, data.label, data.label_separator, ignore_missing))


def source_of(config: ExperimentConfig, task: str | None) -> Source:
    """Return how rows of a task are read, or, if tasks have no rows of their own, of all.

    Raises:
        DataError: there is no such task, or one must be named, or none.
    """
    sources = sources_of(config)
    if task in sources:
        return sources[task]
    if None in sources:
        raise DataError(
            f"The task {task!r} is named, and no task of this run has files of its own. Leave "
            "--task (task) out."
        )
    names = ", ".join(map(str, sources))
    about = "no task is named" if task is None else f"there is no task {task!r}"
    raise DataError(
        f"The tasks of this run have files of their own, and {about}. Name one with --task "
        f"(task): {names}."
    )


def text_columns_of(config: ExperimentConfig, task: str | None, named: bool = True) -> Columns:
    """Return the columns of texts, those of a task if one is named.

    Args:
        config: of a run.
        task: or `None`.
        named: whether the columns that are read have names; if not, only their number counts,
            which is the same for all tasks.

    Raises:
        DataError: there is no such task, or those of the tasks differ and none is named.
    """
    found = list(dict.fromkeys(source.columns.text for source in sources_of(config).values()))
    if task is None and (len(found) == 1 or not named):
        return Columns(found[0])
    return Columns(source_of(config, task).columns.text)


def read_data(
    config: ExperimentConfig, model: BertClassifier, training: bool = True
) -> dict[str, Split]:
    """Read and tokenize "train", "validation" and "test", as far as the config names them.

    A fraction is held out of the training rows, at random from the seed, of those of each task
    where tasks have their own. Without `training`, training rows are read only if others are held
    out of them.
    """
    preprocessor = cast("Preprocessor", model.preprocessor)  # every config names one
    folder, vocabulary = config.data.cache, model.encoder.vocabulary
    cache = TokenCache(folder, preprocessor, vocabulary) if folder else None
    load = functools.partial(load_split, preprocessor=preprocessor, cache=cache)
    read = {}
    for task, source in sources_of(config).items():
        section = "data" if task is None else f"data.tasks.{task}"
        read[task] = _read(source, load, config.seed, training, section)
    if None in read:
        return read[None]
    tasks = {
        name: {str(task): splits[name] for task, splits in read.items() if name in splits}
        for name in _SPLITS
    }
    return {name: joined(splits) for name, splits in tasks.items() if splits}


def _read(
    source: Source, load: Callable[..., Split], seed: int, training: bool, section: str
) -> dict[str, Split]:
    fractions = {name: part for name, part in source.given.items() if isinstance(part, float)}
    files = source.files
    if not training and not fractions:
        del files["train"]
    splits = {name: load(part, source.columns) for name, part in files.items()}
    if fractions:
        splits |= _held_out(splits["train"], fractions, seed, section)
    return {name: splits[name] for name in _SPLITS if name in splits}


def _held_out(
    split: Split, fractions: Mapping[str, float], seed: int, section: str
) -> dict[str, Split]:
    """Cut fractions of the training rows off, at random; what is left is "train"."""
    count = len(split.labels)
    rows = np.random.default_rng(seed).permutation(count)
    parts = {}
    for name, fraction in fractions.items():
        size = round(fraction * count)
        if not 0 < size < len(rows):
            raise DataError(
                f"{section}.{name} holds out {fraction:g} of {count} rows, which leaves none on "
                "one side. Choose another fraction, or name files."
            )
        parts[name], rows = split.take(np.sort(rows[:size])), rows[size:]
    parts["train"] = split.take(np.sort(rows))
    parts["train"].report.add_empty(split.report.empty)
    return parts
