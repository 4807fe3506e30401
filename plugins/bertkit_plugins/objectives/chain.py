"""Objectives within one another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from bertkit.errors import InputError, shown
from bertkit.objective import Objective, Step
from bertkit.registry import objectives as registry

if TYPE_CHECKING:
    from bertkit.classifier import BertClassifier


class Chain(Objective):
    """Several objectives, each applied to what the next one minimizes.

    In `[fgm, r_drop]` FGM perturbs, and what it minimizes at both places is R-Drop's loss.

    Args:
        objectives: the outermost first; each a mapping of `plugin` and its arguments.
    """

    def __init__(self, objectives: list[dict[str, Any]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.objectives = [_made(one) for one in objectives]
        if len(self.objectives) < 2:
            raise InputError("A chain has two objectives or more. Name a single one alone.")
        for outer in self.objectives[:-1]:
            if outer.innermost:
                raise InputError(
                    f"{type(outer).__name__} computes the head's loss itself, so nothing can be "
                    "within it. Name it last."
                )

    def loss(self, step: Step) -> tuple[tf.Tensor, tf.Tensor]:
        return step.loss_of(*self.objectives)

    def begin(self, model: BertClassifier) -> None:
        for one in self.objectives:
            one.begin(model)

    def after_update(self, model: BertClassifier) -> None:
        for one in self.objectives:
            one.after_update(model)

    @property
    def state(self) -> list[Any]:
        return [variable for one in self.objectives for variable in one.state]

    def get_config(self) -> dict[str, Any]:
        made = [registry.described(one) for one in self.objectives]
        return {**super().get_config(), "objectives": made}


def _made(described: Any) -> Objective:
    if not isinstance(described, Mapping) or not isinstance(described.get("plugin"), str):
        raise InputError(
            f"{shown(described)} is no objective. Give a mapping of its plugin and its arguments, "
            "such as {plugin: fgm, epsilon: 0.5}."
        )
    arguments = {name: value for name, value in described.items() if name != "plugin"}
    return registry.create(described["plugin"], **arguments)
