"""What every measured program does: take its arguments, note times, print its result."""

from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path
from typing import Any

RESULT = "RESULT "  # what the line with the result begins with


def arguments() -> dict[str, Any]:
    """Return the arguments that the harness passes as JSON."""
    given: dict[str, Any] = json.loads(sys.argv[1])
    return given


def read(path: str) -> tuple[list[str], list[str]]:
    """Return texts and labels of a CSV file."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["label"] for row in rows]


def finish(**result: Any) -> None:
    """Print the result for the harness."""
    print(RESULT + json.dumps(result), flush=True)


class Timeline:
    """When things happened, in seconds since the epoch, in the order in which they did.

    The names are "fit", "epoch", "step" (the first one alone), "trained" (an epoch's training is
    over), "validated" (with the accuracy) and "fitted".
    """

    def __init__(self) -> None:
        self.events: list[tuple[str, float, float | None]] = []

    def note(self, name: str, value: float | None = None) -> None:
        """Note that something happened now."""
        self.events.append((name, time.time(), value))

    def note_once(self, name: str) -> None:
        """Note it unless it happened before."""
        if all(before != name for before, _, _ in self.events):
            self.note(name)


def median_seconds(function: Any, repeats: int) -> float:
    """Call a function that takes no argument; return the median of its times, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]
