"""What people give to `compile`: names, read as the head means them, and losses that compare rows.

Keras reads "accuracy" off shapes and takes numbers for probabilities, and a classifier's outputs
are logits: on them a name would silently measure, or train, something else.
"""

from __future__ import annotations

from typing import Any

import keras

from bertkit.errors import InputError
from bertkit.head import Head

_ALIASES = {"acc": "accuracy"}


def refuse_named_loss(loss: Any) -> None:
    """Refuse a cross-entropy by name.

    Raises:
        InputError: it would take logits for probabilities.
    """
    if isinstance(loss, str) and ("entropy" in loss.lower() or loss.lower() in ("ce", "bce")):
        raise InputError(
            f"compile was given the loss {loss!r}, which takes probabilities, and the model gives "
            "logits. Leave it out, and the head brings its own, or give an object made with "
            "from_logits=True."
        )


def named_metrics(metrics: Any, head: Head) -> Any:
    """Return metrics with each name replaced by the head's metric of that name.

    What is no name is returned as it is; without names, so is the whole.

    Raises:
        InputError: the head has no metric of a name.
    """
    given = metrics if isinstance(metrics, (list, tuple)) else [metrics]
    if not any(isinstance(metric, str) for metric in given):
        return metrics
    known: dict[str, keras.metrics.Metric] = {one.name: one for one in head.make_metrics()}
    found = []
    for metric in given:
        if isinstance(metric, str):
            name = _ALIASES.get(metric, metric)
            if name not in known:
                raise InputError(
                    f"compile was given the metric {metric!r}, and {type(head).__name__} has "
                    f"{', '.join(known) or 'none'}. Leave metrics out to have these, or give an "
                    "object that reads logits."
                )
            metric = known[name]
        found.append(metric)
    return found


def compares_rows(loss: Any) -> bool:
    """Return whether a loss, or one of several as `compile` takes them, compares rows.

    It says so by an attribute `compares_rows` that is true: what it is of a batch is then no mean
    over rows, and a row whose target is NaN is compared with none.
    """
    return any(getattr(one, "compares_rows", False) for one in keras.tree.flatten(loss))
