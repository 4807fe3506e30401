"""What training shows while it goes."""

from __future__ import annotations

import io
import re
import resource
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from bertkit.training import progress
from bertkit.training.progress import Progress, resident_memory
from tests.tiny_models import LABELS, TEXTS, tensors, tiny_model

Y = LABELS["binary"]
FIGURES = (
    r"epoch (\d)/2 \S+ +(\d)/4 loss \d\.\d{4} · accuracy \d\.\d{4} · roc_auc \d\.\d{4} · "
    r"(?:([\d,]+) examples/s · ([\d,]+) tokens/s · )?(\d+)% padding · "
    r"\d+\.\d GB(?: · (\d+:\d\d) left)?"
)


def shown(terminal: bool, x: Any = TEXTS) -> tuple[str, Any]:
    """Return what is shown of two epochs of four batches, and the history."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=250, color_system=None)
    model = tiny_model("binary")
    history = model.fit(x, Y, batch_size=3, epochs=2, verbose=0, validation_data=(TEXTS, Y),
                        shuffle=False, callbacks=[Progress(console=console)])  # fmt: skip
    return console.file.getvalue(), history.history  # type: ignore[attr-defined]


def test_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PAUSE", 0.0)  # draws each batch
    text, history = shown(terminal=True)
    drawn = re.findall(FIGURES, text)
    assert [found[:2] for found in drawn] == [(e, b) for e in "12" for b in "1234"]
    assert all(found[2] and found[3] and found[5] for found in drawn if found[1] != "1")
    assert drawn[-1][5] == "0:00", "nothing is left after the last batch"
    lengths = tensors()["padding_mask"].sum(axis=1)
    parts = [lengths[start : start + 3] for start in range(0, len(lengths), 3)]
    padded = sum(len(part) * part.max() for part in parts)
    assert drawn[3][4] == drawn[7][4] == f"{100 * (1 - lengths.sum() / padded):.0f}"
    # Each drawing but the first of an epoch takes the place of the one before.
    assert text.count("\x1b[1A\x1b[2K") == 8
    loss, other = history["loss"][1], history["val_loss"][1]
    assert re.search(rf"epoch 2/2  \d+ s · .* · loss {loss:.4f} · val_loss {other:.4f} · ", text)


def test_elsewhere() -> None:
    text, history = shown(terminal=False)
    first, second = text.splitlines()
    assert "\x1b" not in text and f"val_loss {history['val_loss'][0]:.4f}" in first
    assert re.match(r"epoch 2/2  \d+ s · [\d,]+ examples/s · [\d,]+ tokens/s · \d+% pad", second)


def test_of_tensors_the_rows_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PAUSE", 0.0)
    text, _ = shown(terminal=True, x=tensors())
    assert "tokens/s" not in text and "padding" not in text and "left" in text


def test_the_time_left_is_that_of_all_epochs() -> None:
    callback = Progress(most_steps=6)
    callback.set_params({"epochs": 2, "steps": 4})
    callback.on_epoch_begin(0)
    callback._at.first, callback._at.now = (100.0, np.ones(4)), 110.0
    callback._at.counted = np.array([3, 0, 0, 0])
    assert callback._left(3) == 3 * 5.0  # two batches took ten seconds
    callback._most_steps = None
    assert callback._left(3) == 5 * 5.0


def test_memory() -> None:
    memory = resident_memory()
    assert memory is not None
    assert 1e7 < memory <= 1.01 * 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
