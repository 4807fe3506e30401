"""Checks of the numbers that objectives are made with."""

from __future__ import annotations

from bertkit.errors import InputError


def at_least(name: str, value: float, least: float = 0.0) -> float:
    """Return a finite number that is not below `least`.

    Raises:
        InputError: it is.
    """
    if not least <= value < float("inf"):
        raise InputError(f"{name} is {value}. Give a finite number, {least:g} or more.")
    return float(value)


def above_zero(name: str, value: float) -> float:
    """Return a finite number above 0.

    Raises:
        InputError: it is none.
    """
    if not 0 < value < float("inf"):
        raise InputError(f"{name} is {value}. Give a finite number above 0.")
    return float(value)


def count(name: str, value: int) -> int:
    """Return a whole number above 0.

    Raises:
        InputError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} is {value!r}. Give a whole number above 0.")
    return value
