"""Interrupts that take effect wherever they fall."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras


class RaiseLost(keras.callbacks.Callback):
    """Raises, after a batch, what a signal's handler raised during it and something dropped.

    Attributes:
        lost: what handlers have raised.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lost: list[BaseException] = []

    def check(self, batch: int | None = None, logs: Any = None) -> None:
        """Raise what is in `lost`, if anything is."""
        if self.lost:
            raise self.lost.pop()

    on_train_batch_end = on_test_batch_end = on_predict_batch_end = check


@contextlib.contextmanager
def heeded_interrupts() -> Iterator[RaiseLost]:
    """Yield a callback with which a loop over batches ends at Ctrl-C, or any signal that raises.

    Python runs a signal's handler wherever the main thread is. If that is within a conversion by
    NumPy or TensorFlow, which drops exceptions, a KeyboardInterrupt goes lost and the loop goes on.
    One that was caught on purpose looks the same and is raised as well; who wants to go on installs
    a handler that raises nothing.
    Outside of the main thread there are no signals, and nothing to do.
    """
    callback = RaiseLost()
    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if callable(handler):
                    signal.signal(number, _remembering(handler, callback.lost))
                    stack.callback(signal.signal, number, handler)
        yield callback
        callback.check()


def _remembering(
    handler: Callable[[int, Any], Any], raised: list[BaseException]
) -> Callable[[int, Any], Any]:
    def remember(number: int, frame: Any) -> Any:
        try:
            return handler(number, frame)
        except BaseException as error:
            raised.append(error)
            raise

    return remember
