"""Gradual unfreezing: which weights move in which epoch, to the last bit, and by how much."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from bertkit.errors import TrainingError
from bertkit.training.optimizer import AdamW, layer_decay
from bertkit.training.unfreezing import GradualUnfreezing
from tests.core.test_guards import Bag, classifier
from tests.tiny_models import LABELS, TEXTS, assert_same, tiny_model

Y = LABELS["binary"]


class Epochs(keras.callbacks.Callback):
    """Keeps the weights at the beginning and after each epoch, and what is trainable then."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[list[np.ndarray]] = []
        self.trainable: list[int] = []

    def on_train_begin(self, logs: Any = None) -> None:
        self.weights.append([np.array(weight) for weight in self.model.weights])

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.on_train_begin()
        self.trainable.append(len(self.model.trainable_weights))

    def moved(self) -> list[set[str]]:
        """Return, for each epoch, the layers of which all weights moved; no other has any."""
        result = []
        for old, new in zip(self.weights, self.weights[1:], strict=False):
            by_layer: dict[str, set[bool]] = {}
            for weight, one, other in zip(self.model.weights, old, new, strict=True):
                layer = weight.path.split("/")[1]
                by_layer.setdefault(layer, set()).add(not np.array_equal(one, other))
            assert all(len(moves) == 1 for moves in by_layer.values()), by_layer
            result.append({layer for layer, moves in by_layer.items() if moves == {True}})
        return result


def trained(
    epochs: int, between: int, optimizer: Any = None, model: Any = None, **options: Any
) -> tuple[Any, Epochs]:
    if model is None:
        model = tiny_model("binary", num_layers=2)
        model.compile(optimizer or AdamW(1e-2, weight_decay=0.1), metrics=[])
    record = Epochs()
    model.fit(
        TEXTS, Y, batch_size=4, epochs=epochs, verbose=0,
        callbacks=[GradualUnfreezing(between), record], **options,
    )  # fmt: skip
    return model, record


def stages(model: Any) -> list[set[str]]:
    """Return the layers that train in each stage."""
    top = {model.head.name, "pooler"}
    return [top | {*names} for names in (
        [], ["layer_1"], ["layer_1", "layer_0"], ["layer_1", "layer_0", "embeddings"]
    )]  # fmt: skip


@pytest.mark.parametrize("between", [1, 2])
def test_a_further_layer_joins_every_few_epochs(between: int) -> None:
    model, record = trained(5 * between, between)
    expected = [stages(model)[min(epoch // between, 3)] for epoch in range(5 * between)]
    assert record.moved() == expected
    assert {*record.trainable} == {len(model.weights)}  # callbacks save a model that is whole
    record = Epochs()
    model.fit(TEXTS, Y, batch_size=4, verbose=0, callbacks=[record])  # without it all train
    assert record.moved() == stages(model)[-1:]


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.LossScaleOptimizer(AdamW(1e-2, weight_decay=0.1)),
        lambda: keras.optimizers.AdamW(1e-2, weight_decay=0.1),
        lambda: AdamW(1e-2, weight_decay=0.1, use_ema=True, ema_momentum=0.5),
    ],
    ids=["scaled", "Keras's", "averaged"],
)
def test_with_other_optimizers(make: Any) -> None:
    """Also in the end, where averages become the weights: what is frozen has not moved."""
    model, record = trained(2, 1, make())
    assert record.moved() == stages(model)[:2]
    before = record.weights[0]
    for weight, old in zip(model.weights, before, strict=True):
        still = weight.path.split("/")[1] in ("layer_0", "embeddings")
        assert np.array_equal(weight, old) == still, weight.path


def test_what_was_frozen_stays_frozen() -> None:
    model = tiny_model("binary", num_layers=2)
    model.encoder.embeddings.trainable = False
    model.encoder.transformer_layers[0].qkv[0].trainable = False
    groups = layer_decay(model.encoder, 0.9)
    model.compile(AdamW(1e-2, groups, weight_decay=0.1), metrics=[])
    kernel = np.array(model.encoder.transformer_layers[0].qkv[0])
    before = [np.array(weight) for weight in model.encoder.embeddings.weights]
    trained(4, 1, model=model)
    assert_same([np.array(weight) for weight in model.encoder.embeddings.weights], before)
    np.testing.assert_array_equal(model.encoder.transformer_layers[0].qkv[0], kernel)
    assert not model.encoder.transformer_layers[0].qkv[0].trainable


class Interrupt(keras.callbacks.Callback):
    """Ends training, as Ctrl-C does, in the second epoch."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            raise KeyboardInterrupt


def test_an_interrupt_freezes_nothing() -> None:
    """Nor does it thaw what was frozen before."""
    model = tiny_model("binary", num_layers=2)
    model.encoder.embeddings.trainable = False
    model.compile(AdamW(1e-2), metrics=[])
    before, config = [weight.trainable for weight in model.weights], model.get_config()
    with pytest.raises(KeyboardInterrupt):
        model.fit(TEXTS, Y, epochs=2, verbose=0, callbacks=[GradualUnfreezing(2), Interrupt()])
    assert [weight.trainable for weight in model.weights] == before
    assert model.get_config() == config
    record = Epochs()
    model.fit(TEXTS, Y, batch_size=4, verbose=0, callbacks=[record])
    assert record.moved() == [stages(model)[2]]


def test_a_variable_that_joins_late_is_updated_as_by_a_new_optimizer() -> None:
    def variable() -> keras.Variable:
        return keras.Variable(np.linspace(-1, 1, 12, dtype="float32").reshape(3, 4))

    random = np.random.default_rng(0)
    gradients = [tf.constant(random.normal(size=(3, 4)).astype("float32")) for _ in range(9)]
    late, other, alone = variable(), variable(), variable()
    optimizer, new = AdamW(1e-2), AdamW(1e-2)
    optimizer.build([late, other])
    for gradient in gradients[:5]:
        optimizer.apply_gradients([(gradient, other)])
    optimizer.begin([late])
    for gradient in gradients[5:]:
        optimizer.apply_gradients([(gradient, late), (gradient, other)])
        new.apply_gradients([(gradient, alone)])
        np.testing.assert_array_equal(late.numpy(), alone.numpy())
    plain = AdamW(1e-2)
    whole = variable()
    for gradient in gradients:
        plain.apply_gradients([(gradient, whole)])
    np.testing.assert_array_equal(other.numpy(), whole.numpy())  # nothing changes for the others


def test_a_run_that_goes_on_takes_the_steps_of_one_that_does_not_stop() -> None:
    """From another model and optimizer with the same state, in the middle of a stage."""
    options = {"dropout": 0.0, "attention_dropout": 0.0, "num_layers": 2}

    def model() -> Any:
        made = tiny_model("binary", **options)
        made.head.dropout = 0.0
        made.compile(AdamW(1e-2), metrics=[])
        return made

    whole, first, second = model(), model(), model()
    trained(6, 2, model=whole, shuffle=False)
    trained(3, 2, model=first, shuffle=False)
    second.optimizer.build(second.trainable_weights)
    for one, other in ((first, second), (first.optimizer, second.optimizer)):
        for source, target in zip(one.variables, other.variables, strict=True):
            target.assign(source)
    trained(6, 2, model=second, shuffle=False, initial_epoch=3)
    assert_same(*([np.array(weight) for weight in made.weights] for made in (second, whole)))


class Joins(keras.callbacks.Callback):
    """Keeps how far the last layer moves in the first update after it has joined."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self._epoch = epoch
        self.moved = np.zeros(0)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == self._epoch:
            self._kernel = self.model.encoder.transformer_layers[-1].qkv[0]
            self._before = np.array(self._kernel)
            self.moved = np.zeros(0)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        moved = np.abs(np.array(self._kernel) - self._before) if hasattr(self, "_kernel") else None
        if moved is not None and moved.any() and not self.moved.any():
            self.moved = moved


def endless() -> Any:
    """Return rows as a stream of unknown length."""
    rows = tf.data.Dataset.from_tensor_slices((TEXTS, Y)).batch(4)
    return rows.filter(lambda texts, labels: True)


@pytest.mark.parametrize(
    ("make", "policy", "data"),
    [
        (AdamW, "float32", {"x": TEXTS, "y": Y, "batch_size": 4}),
        (AdamW, "float32", {"x": endless()}),
        (lambda rate: AdamW(rate, gradient_accumulation_steps=2), "float32",
         {"x": TEXTS, "y": Y, "batch_size": 4}),
        # The first of the three batches of the first epoch overflow.
        (lambda rate: keras.optimizers.LossScaleOptimizer(AdamW(rate), initial_scale=2.0**40),
         "mixed_float16", {"x": TEXTS, "y": Y, "batch_size": 1}),
    ],
    ids=["plain", "a stream", "accumulated", "overflown"],
)  # fmt: skip
def test_a_layer_moves_by_the_learning_rate_first(make: Any, policy: str, data: Any) -> None:
    """As with every new Adam, if the gradient is far above its epsilon: m / sqrt(v) is 1 then."""
    keras.config.set_dtype_policy(policy)
    try:
        model = tiny_model("binary", num_layers=2, initializer_range=0.3)
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile(make(1e-3), metrics=[])
    joins = Joins(2)
    model.fit(**data, epochs=6, verbose=0, callbacks=[GradualUnfreezing(2), joins])
    assert all(np.isfinite(weight).all() for weight in model.weights)
    assert np.median(joins.moved) > 0.9e-3 and joins.moved.max() < 1.01e-3


def test_the_optimizer_bears_a_count_that_is_set_back() -> None:
    variable, optimizer = keras.Variable([1.0, 2.0]), AdamW(0.1)
    optimizer.build([variable])
    for _ in range(2):
        optimizer.iterations.assign(5)
        optimizer.begin([variable])
        optimizer.iterations.assign(0)
        optimizer.apply([tf.constant([0.5, -0.5])])
    np.testing.assert_allclose(variable, [0.8, 2.2], rtol=1e-5)


def test_an_encoder_that_does_not_move_once_it_is_thawed_is_refused() -> None:
    model = classifier(Bag(above=lambda x: x + 0.0 * tf.reduce_sum(x), below=lambda x: 0.0 * x))
    with pytest.raises(TrainingError, match=r"updates at a learning rate of 0\.1 have moved none"):
        trained(3, 2, model=model)


@pytest.mark.parametrize("epochs", [0, 1.5, True, "1"])
def test_what_is_no_number_of_epochs(epochs: Any) -> None:
    with pytest.raises(TrainingError) as caught:
        GradualUnfreezing(epochs)
    assert str(caught.value) == (
        f"Gradual unfreezing was given {epochs!r} epochs between two layers. Give a whole number "
        "above 0."
    )
