"""Validation on averaged weights."""

from __future__ import annotations

from typing import Any

import keras


class AveragedWeights(keras.callbacks.SwapEMAWeights):
    """Lets `fit` validate on the averages of the weights that an optimizer with `use_ema` keeps.

    Training goes on from the weights themselves, to the last bit: on TensorFlow Keras swaps by
    adding and subtracting, which rounds. At the end of `fit` the averages become the weights.
    """

    def on_train_begin(self, logs: Any = None) -> None:
        self.model.validates_averages = True

    _tf_swap_variables = keras.callbacks.SwapEMAWeights._backend_swap_variables
