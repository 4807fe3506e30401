"""What is done with a finished run: its rows measured again, others predicted."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bertkit import artifact
from bertkit.config import ExperimentConfig, load_config
from bertkit.data.files import Row, format_of, read_rows
from bertkit.data.loading import joined, load_split, text_chunks
from bertkit.errors import ArtifactError, DataError
from bertkit.experiment import Metrics, evaluate
from bertkit.reading import read_data, source_of, sources_of, text_columns_of
from bertkit.sections import Precision

if TYPE_CHECKING:
    from bertkit.preprocessor import Preprocessor


# Rows of a window, which are sorted by length together: few at first, so that answers come early.
_FIRST, _LARGEST = 64, 4096


def evaluate_run(
    path: str | Path,
    data: Sequence[str] = (),
    precision: Precision | None = None,
    task: str | None = None,
) -> Metrics:
    """Return the measures of a finished run on other files, or on its own test rows again.

    Args:
        path: a run folder or an artifact.
        data: files with the columns of the training data; without any, the rows the run was
            evaluated on.
        precision: see `bertkit.load`.
        task: which one the files are of, where tasks had files of their own in training.

    Raises:
        ArtifactError: there is no finished run.
        DataError: a file or a row cannot be used, or `task` cannot be or must be named.
    """
    model = artifact.load(path, precision, compile=False)
    config = saved_config(path)
    if data:
        columns = source_of(config, task).columns
        split = load_split(data, columns, cast("Preprocessor", model.preprocessor))
        return {"data": evaluate(model, split if task is None else joined({task: split}))}
    if task is not None:
        raise DataError(f"The task {task!r} is named, and no files. Name some with --data.")
    if not any(source.given.keys() - {"train"} for source in sources_of(config).values()):
        raise DataError("This run has neither validation nor test rows. Name some with --data.")
    splits = read_data(config, model, training=False)
    return {name: evaluate(model, split) for name, split in splits.items() if name != "train"}


def predict_rows(
    path: str | Path,
    source: str,
    format: str | None = None,
    batch_size: int | None = None,
    precision: Precision | None = None,
    task: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield a prediction for each row, in their order: the texts, and what the head decodes.

    Memory holds a window of rows. They grow from 64 rows to 4,096, so that the first answers
    come early, and the lengths within a batch are nearly the same later. An error about a row
    comes after the predictions for the rows before it.

    Args:
        path: a run folder or an artifact.
        source: a file, a glob, or "-" for standard input.
        format: "text" (a text a line; two, separated by a tab, for pairs), "csv", "tsv",
            "jsonl" or "parquet"; the suffix tells if `None`.
        batch_size: rows predicted at once, and waited for; `None` for windows as above.
        precision: see `bertkit.load`.
        task: whose columns of texts to read, where those of tasks differ, and whose predictions to
            yield; those of all tasks, by their names, if `None`.

    Raises:
        ArtifactError: there is no finished run.
        DataError: a file or a row cannot be used, or `task` cannot be or must be named.
    """
    model = artifact.load(path, precision, compile=False)
    named = (format or format_of(source)) != "text"
    columns = text_columns_of(saved_config(path), task, named)
    for window in _windows(read_rows(source, columns, format), batch_size):
        (texts,) = text_chunks(iter(window), len(columns.text), size=len(window))
        for row, prediction in zip(window, model.classify(texts, batch_size), strict=True):
            own = prediction if task is None else prediction[task]
            yield {"text": row.texts[0] if len(row.texts) == 1 else list(row.texts), **own}


def _windows(rows: Iterator[Row], batch_size: int | None) -> Iterator[list[Row]]:
    """Yield rows that are predicted together, and an error about a row after those before it."""
    size = batch_size or _FIRST
    error: DataError | None = None
    while error is None:
        window: list[Row] = []
        try:
            for row in itertools.islice(rows, size):
                if row.empty:
                    raise DataError(
                        f"{row.file}:{row.line}: the text is empty. Remove the row, or put a "
                        "placeholder in it."
                    )
                window.append(row)
        except DataError as found:
            error = found
        if window:
            yield window
        if error is None and len(window) < size:
            return
        size = batch_size or min(2 * size, _LARGEST)
    raise error


def saved_config(path: str | Path) -> ExperimentConfig:
    """Return the config that a run was trained from.

    Raises:
        ArtifactError: the artifact was not written by a run.
    """
    file = artifact.find(path) / artifact.CONFIG
    if not file.is_file():
        raise ArtifactError(
            f"{file.parent} was saved without a config, so its columns are not known. Use "
            "bertkit.load and `model.classify` from Python."
        )
    return load_config([file])


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines into a file that appears when the last is written, and not before.

    Raises:
        ArtifactError: there is a folder or a device in its place, or it cannot be made.
    """
    target = path.resolve()  # of a link, the file behind it
    if target.exists() and not target.is_file():
        raise ArtifactError(f"{path} is no file that could be replaced. Name a file.")
    stage = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = stage.open("w", encoding="utf-8")
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be written ({error.strerror}). Choose another file."
        ) from error
    try:
        with file:
            file.writelines(f"{line}\n" for line in lines)
        stage.replace(target)
    finally:
        stage.unlink(missing_ok=True)
