"""How often the rows of each task are drawn in an epoch: by their number, or more evenly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertkit.errors import InputError, shown


@dataclass(frozen=True)
class Temperature:
    """How even the shares of groups are, from the first epoch to the last.

    The exponent 1 / temperature changes by the same amount from epoch to epoch: annealed sampling
    (Stickland and Murray 2019, https://arxiv.org/abs/1902.02671), there from 1 to 5.

    Attributes:
        first: of the first epoch; at 1 shares are by size, the higher the more equal.
        last: of the last epoch.
        epochs: how many there are.
    """

    first: float
    last: float
    epochs: int

    def exponent(self, epoch: int) -> float:
        """Return 1 / temperature of an epoch, counted from 0."""
        part = min(epoch / max(self.epochs - 1, 1), 1.0)
        return (1 - part) / self.first + part / self.last


@dataclass(frozen=True)
class Sampling:
    """Rows that are drawn by group, as many in each epoch as there are.

    Attributes:
        groups: of each row, counted from 0, int (N,).
        temperature: how even the groups' shares are.
    """

    groups: np.ndarray
    temperature: Temperature

    def draw(self, epoch: int, random: np.random.Generator) -> np.ndarray:
        """Return the rows of an epoch by index, group by group, int64 (N,).

        Of a group that is drawn less than it has, no row comes twice; of one that is drawn more,
        the numbers of times differ by one at most.
        """
        counts = drawn(np.bincount(self.groups), self.temperature.exponent(epoch))
        parts = []
        for group, count in enumerate(counts.tolist()):
            rows = np.flatnonzero(self.groups == group)
            times, rest = divmod(count, len(rows))
            parts += [*[rows] * times, random.permutation(rows)[:rest]]
        return np.concatenate(parts)


def drawn(sizes: np.ndarray, exponent: float) -> np.ndarray:
    """Return how many rows of each group an epoch draws, int64 (G,), of as many as there are.

    A group of n rows has a share proportional to n ** exponent (Arivazhagan et al. 2019,
    https://arxiv.org/abs/1907.05019, with 1 / temperature for the exponent). Of what is left when
    all are rounded down, those that lost the most get one each.

    Args:
        sizes: rows of each group, 1 or more, (G,).
        exponent: 1 / temperature.
    """
    powers = np.exp(exponent * np.log(sizes / sizes.max()))
    exact = powers / powers.sum() * sizes.sum()
    counts = np.floor(exact).astype("int64")
    left = int(sizes.sum() - counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:left]] += 1
    return counts


def temperature_of(value: Any, epochs: int) -> Temperature | None:
    """Return what `fit` is given as a temperature; `None` if each row comes once an epoch.

    Args:
        value: a number, or two of them, or `None`.
        epochs: those of the training.

    Raises:
        InputError: it is nothing of that.
    """
    if value is None:
        return None
    both = tuple(value) if isinstance(value, (list, tuple, np.ndarray)) else (value, value)
    if len(both) != 2 or not all(map(_above_zero, both)):
        raise InputError(
            f"temperature is {shown(value)}. Give a number above 0, or two of them: of the first "
            "epoch and of the last."
        )
    return None if both == (1, 1) else Temperature(float(both[0]), float(both[1]), epochs)


def sampling_of(known: np.ndarray, temperature: Temperature) -> Sampling:
    """Return how rows are drawn, by the set of tasks that each has labels of.

    Args:
        known: which tasks a row has a label of, bool (N, tasks).
        temperature: of the training.

    Raises:
        InputError: there are no tasks, or all rows have labels of the same.
    """
    if not known.shape[1]:
        raise InputError(
            "temperature says how often the rows of each task are drawn, and the head has no "
            "tasks. Leave it out; class_weight balances labels."
        )
    sets, groups = np.unique(known, axis=0, return_inverse=True)
    if len(sets) < 2:
        raise InputError(
            "temperature says how often the rows of each task are drawn, and each row has labels "
            "of the same tasks. Leave it out; the head's weights balance them."
        )
    return Sampling(groups.reshape(-1), temperature)


def _above_zero(value: Any) -> bool:
    number = isinstance(value, (int, float, np.integer, np.floating)) and value is not True
    return bool(number and 0 < value < math.inf)
