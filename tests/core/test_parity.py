"""`BertClassifier.train_step` against Keras's own, to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import bertkit
from tests.tiny_models import LABELS, TEXTS, assert_same, tensors, tiny_model, weights_of

BATCH_SIZE = 4  # 11 rows: the last batch is ragged


def subclass(train_step: Callable[..., Any]) -> type[bertkit.BertClassifier]:
    """Return a BertClassifier with another step, under the same name.

    TensorFlow's graph optimizer goes by the names of nodes, which begin with the class's.
    """
    return type("BertClassifier", (bertkit.BertClassifier,), {"train_step": train_step})


@pytest.fixture(autouse=True)
def restored_policy() -> Iterator[None]:
    yield
    keras.config.set_dtype_policy("float32")


def trained(
    cls: type[bertkit.BertClassifier],
    head: str,
    *,
    policy: str = "float32",
    accumulation: int | None = None,
    text: bool = True,
    weighted: bool = True,
    epochs: int = 3,
    eagerly: bool = False,
) -> tuple[list[np.ndarray], list[float]]:
    """Return all weights, with the optimizer's, and the logged losses of a training."""
    keras.config.set_dtype_policy(policy)
    model = tiny_model(head, cls=cls)
    if head == "multiclass":
        optimizer = keras.optimizers.AdamW(1e-3, gradient_accumulation_steps=accumulation)
    else:  # traced in half the time
        optimizer = keras.optimizers.SGD(0.1, 0.9, gradient_accumulation_steps=accumulation)
    # Metrics that make variables in the first step have it traced twice.
    model.compile(optimizer, metrics=None if head == "multiclass" else [], run_eagerly=eagerly)
    random = np.random.default_rng(0)
    shape = (len(TEXTS), 3) if head == "multi_label" else (len(TEXTS),)
    history = model.fit(
        TEXTS if text else tensors(),
        LABELS[head],
        sample_weight=random.uniform(0.1, 3, shape) if weighted else None,
        epochs=epochs,
        batch_size=BATCH_SIZE,
        verbose=0,
    )
    return weights_of(model), history.history["loss"]


CASES = [
    ("multiclass", {"policy": "float32", "accumulation": None, "text": False}),
    ("multiclass", {"policy": "float32", "accumulation": 4, "text": True}),
    ("binary", {"policy": "mixed_float16", "accumulation": None, "text": True}),
    ("binary", {"policy": "mixed_float16", "accumulation": 4, "text": False, "weighted": False}),
    ("multi_label", {"policy": "float32", "accumulation": None, "text": True}),
    ("regression", {"policy": "mixed_float16", "accumulation": 4, "text": True}),
]


@pytest.mark.parametrize(
    ("head", "options"),
    CASES,
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_weights_and_loss_equal_those_of_keras(head: str, options: dict[str, Any]) -> None:
    weights, losses = trained(bertkit.BertClassifier, head, **options)
    reference, reference_losses = trained(subclass(keras.Model.train_step), head, **options)
    assert_same(weights, reference)
    assert losses == reference_losses
    assert np.isfinite(losses).all() and len(set(losses)) == 3


def test_training_moves_every_part() -> None:
    before = {v.path: np.array(v) for v in tiny_model("multiclass").trainable_weights}
    model = tiny_model("multiclass")
    model.compile(keras.optimizers.AdamW(1e-3))
    model.fit(TEXTS, LABELS["multiclass"], verbose=0, epochs=2, batch_size=BATCH_SIZE)
    still = [
        path
        for path, variable in zip(before, model.trainable_weights, strict=True)
        if np.array_equal(before[path], variable)
    ]
    assert still == []


def averaged_over_batches(self: Any, data: Any) -> dict[str, Any]:
    x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
    with tf.GradientTape() as tape:
        logits = self(x, training=True)
        loss = self.compute_loss(x, y, logits, weights, training=True)
        scaled = self.optimizer.scale_loss(loss)
    self._loss_tracker.update_state(loss)  # every batch alike, however short
    gradients = tape.gradient(scaled, self.trainable_weights)
    self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
    return self.compute_metrics(x, y, logits, weights)


def unscaled(self: Any, data: Any) -> dict[str, Any]:
    x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
    with tf.GradientTape() as tape:
        logits = self(x, training=True)
        loss = self.compute_loss(x, y, logits, weights, training=True)
    self._track_loss(loss, x)
    gradients = tape.gradient(loss, self.trainable_weights)
    self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
    return self.compute_metrics(x, y, logits, weights)


def test_a_loss_averaged_over_batches_is_caught() -> None:
    _, losses = trained(bertkit.BertClassifier, "multiclass", epochs=1, eagerly=True)
    _, others = trained(subclass(averaged_over_batches), "multiclass", epochs=1, eagerly=True)
    assert losses != others


def test_an_unscaled_loss_is_caught() -> None:
    options: dict[str, Any] = {"policy": "mixed_float16", "epochs": 1, "eagerly": True}
    weights, _ = trained(bertkit.BertClassifier, "multiclass", **options)
    others, _ = trained(subclass(unscaled), "multiclass", **options)
    assert not all(np.array_equal(a, b) for a, b in zip(weights, others, strict=True))
