"""Checks of the numbers that objectives are made with."""

from __future__ import annotations

from typing import Any

from bertkit.errors import InputError, shown


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def zero_or_more(name: str, value: float) -> float:
    """Return a finite number that is not below 0.

    Raises:
        InputError: it is none.
    """
    if not (_is_number(value) and 0 <= value < float("inf")):
        raise InputError(f"{name} is {shown(value)}. Give a finite number, 0 or more.")
    return float(value)


def above_zero(name: str, value: float) -> float:
    """Return a finite number above 0.

    Raises:
        InputError: it is none.
    """
    if not (_is_number(value) and 0 < value < float("inf")):
        raise InputError(f"{name} is {shown(value)}. Give a finite number above 0.")
    return float(value)


def share(name: str, value: float) -> float:
    """Return a number from 0 to 1.

    Raises:
        InputError: it is none.
    """
    if not (_is_number(value) and 0 <= value <= 1):
        raise InputError(f"{name} is {shown(value)}. It is a share: give a number from 0 to 1.")
    return float(value)
