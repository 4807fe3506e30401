"""A Keras callback that keeps the timeline of `fit`."""

from __future__ import annotations

from typing import Any

import keras

from benchmarks.programs.common import Timeline


class Clock(keras.callbacks.Callback):
    """Notes in a timeline what `fit` does."""

    def __init__(self, timeline: Timeline) -> None:
        super().__init__()
        self.timeline = timeline
        self._training = False

    def on_train_begin(self, logs: Any = None) -> None:
        self.timeline.note("fit")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.timeline.note("epoch")
        self._training = True

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.timeline.note_once("step")

    def on_test_begin(self, logs: Any = None) -> None:
        self._trained()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._trained()  # where nothing was validated
        if "val_accuracy" in (logs or {}):
            self.timeline.note("validated", float(logs["val_accuracy"]))

    def on_train_end(self, logs: Any = None) -> None:
        self.timeline.note("fitted")

    def _trained(self) -> None:
        if self._training:
            self.timeline.note("trained")
        self._training = False
