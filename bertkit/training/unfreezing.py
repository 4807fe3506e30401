"""Training the layers of an encoder one after the other, from the top."""

from __future__ import annotations

from typing import Any

import keras

from bertkit.errors import TrainingError, shown
from bertkit.training.optimizer import AdamW, inner_of


class GradualUnfreezing(keras.callbacks.Callback):
    """Lets `fit` train head and pooling first, then a further layer from the top every few epochs.

    The gradual unfreezing of Howard and Ruder 2018 (https://arxiv.org/abs/1801.06146). The layers
    are those of `encoder.layers_in_order()`, of which the embeddings come last; what is frozen
    before `fit` stays so. The optimizer holds all weights from the start; the training step is
    traced anew for each layer that joins, and computes no gradient of those below. With
    `bertkit.training.optimizer.AdamW` a layer begins as with a new optimizer: at a late step count,
    Adam's averages that begin at zero would give updates several times too large.

    Between epochs and after `fit` all layers are trainable as before it, so a model that is saved
    at the end of an epoch by a callback after this one is whole.

    Args:
        epochs: how many epochs pass until the first layer joins, and between two layers.

    Raises:
        TrainingError: `epochs` is no whole number above 0.
    """

    def __init__(self, epochs: int = 1) -> None:
        super().__init__()
        if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
            raise TrainingError(
                f"Gradual unfreezing was given {shown(epochs)} epochs between two layers. Give a "
                "whole number above 0."
            )
        self.epochs = epochs
        self._layers: list[list[Any]] = []  # the trainable weights of each, from the top

    def on_train_begin(self, logs: Any = None) -> None:
        layers = self.model.encoder.layers_in_order()[::-1]
        self._layers = [[w for w in layer.weights if w.trainable] for layer in layers]

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        thawed, since = divmod(epoch, self.epochs)
        self._set_trainable(self._layers[thawed:], False)
        optimizer = inner_of(self.model.optimizer)
        if isinstance(optimizer, AdamW) and since == 0 and 0 < thawed <= len(self._layers):
            optimizer.begin(self._layers[thawed - 1])  # of those before, its state tells
        if {id(weight) for weight in self.model.trainable_weights} != self.model._traced_weights:
            self.model.make_train_function(force=True)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._set_trainable(self._layers, True)

    def on_train_end(self, logs: Any = None) -> None:
        self.model.train_function = None  # it may train less than all

    @staticmethod
    def _set_trainable(layers: list[list[Any]], trainable: bool) -> None:
        for weights in layers:
            for weight in weights:
                weight.trainable = trainable
