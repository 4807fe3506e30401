"""The options that heads have in common: checked, and worked out from the targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bertkit.errors import InputError, shown


def check_number(name: str, value: Any, below: float = math.inf) -> None:
    """Refuse what is no number from 0 to below `below`.

    Raises:
        InputError: it is none.
    """
    if _is_number(value) and 0 <= value < below:
        return
    wanted = "a finite number, 0 or more" if below == math.inf else f"a number in [0, {below:g})"
    raise InputError(f"{name} is {shown(value)}. Give {wanted}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse what is none of the choices.

    Raises:
        InputError: it is none.
    """
    if value not in choices:
        raise InputError(f"{name} is {shown(value)}. Give {' or '.join(map(repr, choices))}.")


def check_of_loss(loss: str, wanted: str, **arguments: float | None) -> None:
    """Refuse arguments, numbers of 0 or more, that another loss has.

    Raises:
        InputError: one is given although the loss is not `wanted`, or is no such number.
    """
    for name, value in arguments.items():
        if value is None:
            continue
        if loss != wanted:
            raise InputError(
                f"{name} is {shown(value)}, which the loss {loss!r} does not have. Set loss to "
                f"{wanted!r}, or leave {name} out."
            )
        check_number(name, value)


def focal_gamma(loss: str, gamma: float | None) -> float:
    """Return the gamma of a loss: 0 unless it is the focal one, where 2 is the default."""
    if loss != "focal":
        return 0.0
    return 2.0 if gamma is None else gamma


def check_pos_weight(pos_weight: Any) -> None:
    """Refuse what is no number, no list of them and not "balanced".

    Raises:
        InputError: it is none of these.
    """
    if pos_weight is None or pos_weight == "balanced":
        return
    for number in pos_weight if isinstance(pos_weight, (list, tuple)) else [pos_weight]:
        if not (_is_number(number) and 0 < number < math.inf):
            raise InputError(
                f"pos_weight is {shown(pos_weight)}. Give 'balanced', or finite numbers above 0."
            )


def balanced(targets: np.ndarray, labels: Sequence[Any]) -> list[float]:
    """Return the negatives for each positive of each label, from targets (N, labels).

    Targets are 0, 1 or NaN, which is neither.

    Raises:
        InputError: a label has no positives, or no negatives.
    """
    positives, negatives = (np.sum(targets == value, axis=0) for value in (1, 0))
    for label, yes, no in zip(labels, positives, negatives, strict=True):
        if not (yes and no):
            raise InputError(
                f"pos_weight is 'balanced', and {yes} rows carry the label {shown(label)} and {no} "
                "do not. It takes both: give pos_weight as numbers, or rows of both kinds."
            )
    return [float(weight) for weight in negatives / positives]


def learned_weight(pos_weight: Any) -> Any:
    """Return a `pos_weight` of numbers as it is.

    Raises:
        InputError: it is "balanced", and the labels were not seen yet.
    """
    if pos_weight == "balanced":
        raise InputError(
            "pos_weight is 'balanced', and the head has seen no rows yet. Call `fit` or "
            "`head.adapt(labels)` first, or give numbers."
        )
    return pos_weight
