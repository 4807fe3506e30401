"""Groups of variables that are trained differently, found by their paths."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from bertkit.errors import InputError


@dataclass(frozen=True)
class ParameterGroup:
    """What `AdamW` does differently for some variables.

    Attributes:
        match: a regular expression; the group has the variables in whose paths it is found, but
            for those of a group before it.
        learning_rate_multiplier: what the learning rate is multiplied with; 0 keeps the variables
            as they are.
        weight_decay: decoupled weight decay of each of them, biases and norms included; `None`
            for that of the optimizer, which leaves those undecayed.

    Raises:
        InputError: a number is negative or not finite, or the expression is none.
    """

    match: str
    learning_rate_multiplier: float = 1.0
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        try:
            re.compile(self.match)
        except re.error as error:
            raise InputError(
                f"{self.match!r} is no regular expression ({error}). It is searched in the paths "
                "of variables: give one such as 'layer_0/'."
            ) from None
        for name in ("learning_rate_multiplier", "weight_decay"):
            number = getattr(self, name)
            if number is not None and not 0 <= number < math.inf:
                raise InputError(
                    f"The {name} of the parameter group {self.match!r} is {number!r}. Give a "
                    "finite number, 0 or more."
                )


class Matching(Protocol):
    """Anything with a regular expression that is searched in paths."""

    @property
    def match(self) -> str: ...


_Group = TypeVar("_Group", bound=Matching)


def group_of(path: str, groups: Sequence[_Group]) -> _Group | None:
    """Return the first group that matches the path of a variable."""
    return next((group for group in groups if re.search(group.match, path)), None)


def check_matches(groups: Sequence[Matching], variables: Sequence[Any]) -> None:
    """Refuse groups without variables.

    Raises:
        InputError: a group matches none of the paths; the message names the nearest.
    """
    paths = [variable.path for variable in variables]
    for group in groups:
        if not any(re.search(group.match, path) for path in paths):
            near = difflib.get_close_matches(group.match, paths, n=3, cutoff=0)
            raise InputError(
                f"The parameter group {group.match!r} matches no variable that is trained. Near "
                f"are: {', '.join(near) or 'none'}. Give a regular expression that is found in a "
                "path."
            )
