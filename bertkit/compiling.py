"""What people give to `compile` by name, read as the head means it.

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
