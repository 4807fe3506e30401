"""The history of a training as a file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import keras


class HistoryFile(keras.callbacks.Callback):
    """Writes a CSV file with a line an epoch: loss and metrics, with `val_` those of validation.

    It writes all lines each time, so that one which a killed process left behind does not stand
    twice once its epoch has been trained again.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self.rows: list[dict[str, Any]] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.rows.append({"epoch": epoch, **(logs or {})})
        self._write()

    def on_train_end(self, logs: Any = None) -> None:
        self._write()  # where all epochs had been trained before

    def _write(self) -> None:
        names = sorted({name for row in self.rows for name in row} - {"epoch"})
        with self._path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["epoch", *names])
            writer.writeheader()
            writer.writerows(self.rows)
