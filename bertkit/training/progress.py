"""A line in the terminal that says how training goes."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console
from rich.control import Control
from rich.progress_bar import ProgressBar
from rich.segment import ControlType
from rich.table import Table
from rich.text import Text

_PAUSE = 0.3  # seconds between two drawings, each of which takes about a millisecond
_BACK = Control((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2))


class Progress(keras.callbacks.Callback):
    """Shows a progress bar, and what an epoch came to in a line that stays.

        model.fit(texts, labels, callbacks=[Progress()], verbose=0)

    Beside the means of loss and metrics it shows examples and tokens a second without padding, the
    share of padding in what is computed, the memory of the process (its resident set), and the time
    left for all epochs without validation. Examples and tokens are known of raw text only, and the
    speed is that since the first batch of the epoch, which may have been traced. Where the output
    is no terminal, only the lines that stay are written.

    Args:
        most_steps: the steps after which something else ends training, if anything does.
        console: where to; standard output if `None`.
    """

    def __init__(self, most_steps: int | None = None, console: Console | None = None) -> None:
        super().__init__()
        self._most_steps = most_steps
        self._console = console or Console(file=sys.stdout)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._at = _Epoch(epoch, f"epoch {epoch + 1}/{self.params['epochs']}")

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        at = self._at
        at.add(self._sizes(batch))
        if self._console.is_terminal and at.now - at.drawn >= _PAUSE:
            self._draw(batch + 1, self._words(batch + 1, logs or {}))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        taken = time.monotonic() - self._at.began
        parts = [f"{taken:.0f} s", *self._at.speed(), *_shown(logs or {})]
        if self._at.lines:
            self._console.control(_BACK)
        self._console.print(f"{self._at.name}  {' · '.join(parts)}", markup=False, highlight=False)

    def _sizes(self, batch: int) -> np.ndarray:
        """Return batches, examples, tokens and the latter with padding, int64 (4,), of a batch."""
        source = self.model.batch_source
        if source is None:
            return np.array([1, 0, 0, 0])
        lengths = source.examples.lengths[source.rows(self._at.epoch, batch)]
        longest = -(-int(lengths.max()) // source.multiple) * source.multiple
        return np.array([1, len(lengths), lengths.sum(), longest * len(lengths)])

    def _words(self, done: int, logs: dict[str, Any]) -> str:
        parts = [*_shown(logs), *self._at.speed()]
        memory = resident_memory()
        if memory is not None:
            parts.append(f"{memory / 1e9:.1f} GB")
        left = self._left(done)
        if left is not None:
            parts.append(f"{int(left // 60)}:{int(left % 60):02} left")
        return " · ".join(parts)

    def _left(self, done: int) -> float | None:
        """Return the seconds for the rest of all epochs; `None` if they cannot be told."""
        steps, seconds = self.params.get("steps"), self._at.step_seconds()
        if not steps or seconds is None:
            return None
        every = self.params["epochs"] * steps
        left = min(every, self._most_steps or every) - self._at.epoch * steps - done
        return max(left, 0) * seconds

    def _draw(self, done: int, words: str) -> None:
        if self._at.lines:
            self._console.control(_BACK)
        # No live display of rich: one that an error leaves open hides the cursor for good.
        line = Table.grid(padding=(0, 1))
        for _ in range(4):
            line.add_column(no_wrap=True, overflow="ellipsis")
        steps = self.params.get("steps")
        bar = ProgressBar(steps or None, done, width=20, pulse=not steps)
        line.add_row(self._at.name, bar, f"{done}/{steps or '?'}", Text(words))
        self._console.print(line)
        self._at.lines, self._at.drawn = 1, self._at.now


@dataclass
class _Epoch:
    """What an epoch has come to in this process; no number, so that no checkpoint keeps it.

    Attributes:
        epoch: counted from 0.
        name: as it is shown.
        began: when, as the other times in seconds.
        now: after the newest batch.
        drawn: when the bar was.
        lines: how many of the bar there are.
        counted: batches, examples, tokens, and the latter with padding, (4,).
        first: when the first batch was done, and what was counted then.
    """

    epoch: int
    name: str
    began: float = field(default_factory=time.monotonic)
    now: float = 0.0
    drawn: float = 0.0
    lines: int = 0
    counted: np.ndarray = field(default_factory=lambda: np.zeros(4, np.int64))
    first: tuple[float, np.ndarray] | None = None

    def add(self, sizes: np.ndarray) -> None:
        """Count a batch that is done."""
        self.now = time.monotonic()
        self.counted = self.counted + sizes
        if self.first is None:
            self.first = self.now, self.counted

    def step_seconds(self) -> float | None:
        """Return what a batch takes, but the first; `None` if there was no other."""
        if self.first is None or self.counted[0] < 2:
            return None
        return (self.now - self.first[0]) / float(self.counted[0] - 1)

    def speed(self) -> list[str]:
        """Return examples and tokens a second, as far as they are known, and padding."""
        if self.first is None or not self.counted[1]:
            return []
        parts = [f"{1 - self.counted[2] / self.counted[3]:.0%} padding"]
        if self.now > self.first[0]:
            done = (self.counted - self.first[1]) / (self.now - self.first[0])
            parts = [f"{done[1]:,.0f} examples/s", f"{done[2]:,.0f} tokens/s", *parts]
        return parts


def resident_memory() -> int | None:
    """Return the memory of this process in bytes, its resident set; `None` if it is not told."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not on Linux
        return None
    import resource

    return pages * resource.getpagesize()


def _shown(logs: dict[str, Any]) -> list[str]:
    """Return metrics, the loss before others."""
    names = sorted(logs, key=lambda name: name.removeprefix("val_") != "loss")
    return [f"{name} {float(logs[name]):.4f}" for name in names]
