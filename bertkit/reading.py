"""The rows that a config names, read and tokenized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import numpy as np

from bertkit.classifier import BertClassifier
from bertkit.config import ExperimentConfig
from bertkit.data.cache import TokenCache
from bertkit.data.files import Columns
from bertkit.data.loading import Split, load_split
from bertkit.errors import DataError

if TYPE_CHECKING:
    from bertkit.preprocessor import Preprocessor


def read_data(
    config: ExperimentConfig, model: BertClassifier, training: bool = True
) -> dict[str, Split]:
    """Read and tokenize "train", "validation" and "test", as far as the config names them.

    A fraction is held out of the training rows, at random from the seed. Without `training`,
    training rows are read only if others are held out of them.
    """
    data = config.data
    columns = columns_of(config)
    preprocessor = cast("Preprocessor", model.preprocessor)  # every config names one
    cache = TokenCache(data.cache, preprocessor, model.encoder.vocabulary) if data.cache else None
    given = {"train": data.train, "validation": data.validation, "test": data.test}
    fractions = {name: part for name, part in given.items() if isinstance(part, float)}
    if not training and not fractions:
        del given["train"]
    splits = {
        name: load_split(paths, columns, preprocessor, cache)
        for name, paths in given.items()
        if paths is not None and not isinstance(paths, float)
    }
    if fractions:
        splits |= _held_out(splits["train"], fractions, config.seed)
    return {name: splits[name] for name in given if name in splits}


def _held_out(split: Split, fractions: Mapping[str, float], seed: int) -> dict[str, Split]:
    """Cut fractions of the training rows off, at random; what is left is "train"."""
    count = len(split.labels)
    rows = np.random.default_rng(seed).permutation(count)
    parts = {}
    for name, fraction in fractions.items():
        size = round(fraction * count)
        if not 0 < size < len(rows):
            raise DataError(
                f"data.{name} holds out {fraction:g} of {count} rows, which leaves none on one "
                "side. Choose another fraction, or name files."
            )
        parts[name], rows = split.take(np.sort(rows[:size])), rows[size:]
    parts["train"] = split.take(np.sort(rows))
    parts["train"].report.add_empty(split.report.empty)
    return parts


def columns_of(config: ExperimentConfig, labelled: bool = True) -> Columns:
    """Return the columns that an experiment reads."""
    data = config.data
    text = (data.text,) if isinstance(data.text, str) else tuple(data.text)
    if not labelled:
        return Columns(text)
    # What the head's attribute of this name says, before there is a head.
    ignore_missing = bool(config.head.arguments.get("ignore_missing", False))
    return Columns(text, data.label, data.label_separator, ignore_missing)
