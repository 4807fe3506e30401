"""The head that `check_head` looks at: made anew, with example labels, and trained."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bertkit.errors import BertkitError
from bertkit.head import Head
from bertkit.testing.common import FEATURES, again, all_reached, ensure

ROWS = 12  # of examples
TOKENS = 5  # of each row of random features
STEPS = 120  # of training the head on them
# Labels of one kind each, tried one after another until the head takes one.
_EXAMPLES: tuple[list[Any], ...] = (
    ["no", "yes", "perhaps"],
    ["no", "yes"],
    [["no"], ["yes", "perhaps"], []],
    [-1.5, 0.0, 0.25, 2.0],
    [0.0, 0.25, 0.5, 1.0],
    [1, 2, 3, 5],
)


@dataclass
class HeadCase:
    """A head that can be made anew, and example labels."""

    make: Callable[[], Head]
    labels: list[Any]

    def adapted(self, **changes: Any) -> Head:
        """Return a head that knows its labels."""
        keras.utils.set_random_seed(0)
        head = self.make()
        if not head.adapted:
            head.adapt(self.labels)
        return again(head, **changes) if changes else head

    def built(self) -> Head:
        """Return a head with random weights."""
        head, features = self.adapted(), self.features(FEATURES)
        head.build({name: (None, *features[name].shape[1:]) for name in FEATURES})
        return head

    def features(self, reads: Sequence[str], rows: int | None = None) -> dict[str, tf.Tensor]:
        """Return random features of the first rows, wide enough to tell all rows apart."""
        count, generator = len(self.labels), np.random.default_rng(0)
        width = 2 * max(8, count)
        shapes = {"pooled": (count, width), "sequence": (count, TOKENS, width)}
        all_features = {
            name: tf.constant(generator.normal(size=shape).astype("float32"))
            for name, shape in shapes.items()
        }
        all_features["mask"] = tf.ones((count, TOKENS), tf.int32)
        return {name: all_features[name][:rows] for name in (*reads, "mask")}

    @cached_property
    def trained(self) -> Trained:
        """The head trained on random features, and its outputs before and after."""
        head = self.built()
        features, targets = self.features(head.reads), head.encode_labels(self.labels)
        loss, optimizer = head.make_loss(), keras.optimizers.Adam(0.03)
        before = head(features, training=False).numpy()
        initial = head.get_weights()

        def step() -> None:
            with tf.GradientTape() as tape:
                outputs = tf.cast(head(features, training=True), tf.float32)
                value = loss(tf.constant(targets), outputs)
            gradients = tape.gradient(value, head.trainable_weights)
            all_reached(head, gradients)
            optimizer.apply_gradients(zip(gradients, head.trainable_weights, strict=True))

        step()  # eagerly, so that an error shows where it comes from
        in_graph = tf.function(step)
        for _ in range(STEPS - 1):
            in_graph()
        for weight, old in zip(head.weights, initial, strict=True):
            ensure(
                not weight.trainable or not np.array_equal(weight.numpy(), old),
                f"training leaves the weight {weight.path!r} as it was: let the loss depend on it",
            )
        return Trained(head, targets, before, head(features, training=False).numpy())


@dataclass
class Trained:
    """A trained head: its targets, and its outputs before and after training."""

    head: Head
    targets: np.ndarray
    before: np.ndarray
    after: np.ndarray

    def loss(self, outputs: np.ndarray) -> float:
        return float(self.head.make_loss()(self.targets, outputs))

    @cached_property
    def wrong(self) -> np.ndarray:
        """The outputs after training, moved to those other rows that make the loss highest."""
        moved = (np.roll(self.after, shift, axis=0) for shift in range(1, len(self.after)))
        return max(moved, key=self.loss)


def taken_labels(make: Callable[[], Head]) -> list[Any]:
    """Return the first examples that the head takes; its own labels first, if it has them."""
    head, refusal = make(), ""
    own: list[list[Any]] = []
    with contextlib.suppress(BertkitError):  # it has no labels of its own
        own = [list(head.labels), [[label] for label in head.labels]]
    for kind in (*own, *_EXAMPLES):
        labels = list(itertools.islice(itertools.cycle(kind), ROWS))
        head = make()
        try:
            if not head.adapted:
                head.adapt(labels)
            head.encode_labels(labels)
        except BertkitError as error:
            refusal = str(error)
            continue
        return labels
    raise AssertionError(f"no example fits; pass labels=[…] as in your data. The last: {refusal}")
