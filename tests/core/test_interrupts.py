"""Ctrl-C and SIGTERM end fit, evaluate and predict, also where a library drops the exception."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import keras
import pytest

import bertkit
from tests.tiny_models import LABELS, TEXTS, tiny_model

CALLS: dict[str, Callable[[bertkit.BertClassifier, Any], Any]] = {
    "fit": lambda model, signals: model.fit(
        TEXTS, LABELS["binary"], batch_size=4, epochs=3, callbacks=signals, verbose=0
    ),
    "evaluate": lambda model, signals: model.evaluate(
        TEXTS, LABELS["binary"], batch_size=4, callbacks=signals, verbose=0
    ),
    "predict": lambda model, signals: model.predict(
        TEXTS, batch_size=4, callbacks=signals, verbose=0
    ),
}


class Signals(keras.callbacks.Callback):
    """Sends a signal in the first batch, or the last of three, and drops what its handler raises.

    NumPy does the same: any exception of an `__array__` is dropped by `np.array`.
    """

    def __init__(self, number: int, batch: int = 0) -> None:
        super().__init__()
        self.number, self.batch, self.batches = number, batch, 0

    def _send(self, batch: int, logs: Any = None) -> None:
        self.batches += 1
        if batch == self.batch:
            with contextlib.suppress(KeyboardInterrupt, SystemExit):
                signal.raise_signal(self.number)

    on_train_batch_end = on_test_batch_end = on_predict_batch_end = _send


@pytest.fixture(scope="module")
def model() -> bertkit.BertClassifier:
    return tiny_model()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("batch", [0, 2])
def test_an_interrupt_that_was_dropped(
    model: bertkit.BertClassifier, call: str, batch: int
) -> None:
    signals = Signals(signal.SIGINT, batch)
    # Python's own; a job in the background inherits that interrupts are ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            CALLS[call](model, signals)
        assert signals.batches == batch + 1
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_handler_of_an_application(model: bertkit.BertClassifier) -> None:
    """What it raises is raised; where it raises nothing, it is called and training goes on."""
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        CALLS["fit"](model, signals := Signals(signal.SIGTERM))
        assert received == [signal.SIGTERM] * 3 and signals.batches == 9
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
        with pytest.raises(SystemExit, match="143"):
            CALLS["fit"](model, Signals(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_thread(model: bertkit.BertClassifier) -> None:
    """Python takes handlers in the main thread only."""
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(CALLS["predict"](model, [])))
    thread.start()
    thread.join()
    assert len(done) == 1


def test_a_list_of_callbacks_is_left_as_it_was(model: bertkit.BertClassifier) -> None:
    given = keras.callbacks.CallbackList([keras.callbacks.History()], model=model)
    before = list(given.callbacks)
    for call in CALLS.values():
        call(model, given)
    assert given.callbacks == before
