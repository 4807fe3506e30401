"""Medians, spreads and ratios; what a timeline says."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """The median of some repeats, the least and the greatest of them, and how many they are."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Return the spread of one value or more."""
        every = sorted(values)
        return cls(statistics.median(every), every[0], every[-1], len(every))

    def show(self, digits: int = 1) -> str:
        """Return "median (low to high)"; the median alone if it is all there is."""
        median, low, high = (f"{value:,.{digits}f}" for value in (self.median, self.low, self.high))
        return median if self.count == 1 else f"{median} ({low} to {high})"


def ratio(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Spread:
    """Return the spread of the ratios within each repeat.

    The two of one repeat ran one after the other, so that a machine that gets slower for a while
    slows both.

    Args:
        ours: the value of each repeat.
        theirs: the same of what it is divided by; only repeats that both have count.
    """
    return Spread.of(ours[repeat] / theirs[repeat] for repeat in ours if repeat in theirs)


def seconds_of(events: Sequence[Sequence[Any]], started: float) -> dict[str, float]:
    """Return how long the stages of a training run took, from its timeline, in seconds.

    Returns:
        `fit`: all of `fit`, validation and logging included; `training`: the training of all
        epochs alone; `first`: the part of it that the first step took, graph and all;
        `first_step`: from the start of the process to the end of the first step.
    """
    begun = {"epoch": 0.0, "fit": 0.0}
    seconds = {"training": 0.0}
    for name, time, _ in events:
        if name in begun:
            begun[name] = time
        elif name == "step":
            seconds["first"] = time - begun["epoch"]
            seconds["first_step"] = time - started
        elif name == "trained":
            seconds["training"] += time - begun["epoch"]
        elif name == "fitted":
            seconds["fit"] = time - begun["fit"]
    return seconds


def time_to(accuracy: float, events: Sequence[Sequence[Any]], started: float) -> float | None:
    """Return the seconds until a validation first gave some accuracy; `None` if none did."""
    for name, time, value in events:
        if name == "fitted":
            break
        if name == "validated" and value is not None and value >= accuracy:
            return float(time) - started
    return None
