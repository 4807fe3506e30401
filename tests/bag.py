"""A model that NumPy can follow: a dense layer over the mean of the token embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import bertkit

VOCABULARY, WIDTH = 20, 6
LENGTHS = [5, 3, 4, 1]
IDS = np.random.default_rng(1).integers(1, VOCABULARY, (4, 5))
MASK = (np.arange(5) < np.array(LENGTHS)[:, None]).astype(int)
INPUTS = {
    "token_ids": tf.constant(IDS * MASK, tf.int32),
    "segment_ids": tf.zeros((4, 5), tf.int32),
    "padding_mask": tf.constant(MASK, tf.int32),
}
TARGETS = np.array([0, 2, 1, 2])
WEIGHTS = np.array([0.5, 2.0, 1.0, 0.25])


@keras.saving.register_keras_serializable("tests")
class Bag(bertkit.Encoder):
    """The mean of the token embeddings."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden_size, self.max_sequence_length = WIDTH, 16
        self.num_segments, self.vocabulary_size = 0, VOCABULARY
        self.table = self.add_weight(shape=(VOCABULARY, WIDTH), initializer="normal", name="table")
        self.built = True

    def embed_tokens(self, token_ids: Any) -> Any:
        return tf.gather(tf.convert_to_tensor(self.table), token_ids)

    def call(self, inputs: Any, reads: Any = ("pooled",), training: bool = False) -> Any:
        x = inputs.get("token_embeddings")
        x = self.embed_tokens(inputs["token_ids"]) if x is None else x
        mask = tf.cast(inputs["padding_mask"], x.dtype)[:, :, None]
        mean = tf.reduce_sum(x * mask, axis=1) / tf.reduce_sum(mask, axis=1)
        return {"pooled": mean, "mask": inputs["padding_mask"]}


def bag_model(objective: Any = None, dropout: float = 0.0) -> bertkit.BertClassifier:
    """Return a model with weights of its own, whose gradients are far from zero."""
    keras.utils.set_random_seed(3)
    head = bertkit.heads.create("multiclass", labels=[0, 1, 2], dropout=dropout)
    if isinstance(objective, str):
        objective = bertkit.objectives.create(objective)
    model = bertkit.BertClassifier(Bag(), head, objective=objective)
    random = np.random.default_rng(2)
    for weight in model.trainable_weights:
        weight.assign(random.normal(size=weight.shape))
    model.compile(keras.optimizers.SGD(0.0), head.make_loss(), metrics=[])
    if model.objective is not None:
        model.objective.begin(model)
    return model


@dataclass
class Arithmetic:
    """The same model in float64: the loss at some embeddings, and all its gradients."""

    table: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray
    mask: np.ndarray = field(default_factory=lambda: MASK)

    @classmethod
    def of(cls, model: bertkit.BertClassifier) -> Arithmetic:
        parts = (model.encoder.table, model.head.kernel, model.head.bias)
        return cls(*(np.asarray(part, "float64") for part in parts))

    def moved(self, **parts: Any) -> Arithmetic:
        return replace(self, **parts)

    def embeddings(self) -> np.ndarray:
        return self.table[IDS * MASK]  # (B, T, E)

    def logits(self, x: np.ndarray) -> np.ndarray:
        mean = (x * self.mask[:, :, None]).sum(1) / self.mask.sum(1)[:, None]
        return mean @ self.kernel + self.bias

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        powers = np.exp(self.logits(x))
        return powers / powers.sum(1, keepdims=True)

    def losses(self, x: np.ndarray, targets: np.ndarray = TARGETS) -> np.ndarray:
        return -np.log(self.probabilities(x)[np.arange(4), targets])  # (B,)

    def by_embeddings(self, x: np.ndarray) -> np.ndarray:
        """The gradient of each row's own loss, (B, T, E)."""
        slope = (self.probabilities(x) - np.eye(3)[TARGETS]) @ self.kernel.T  # (B, E)
        share = self.mask / self.mask.sum(1, keepdims=True)  # (B, T)
        return slope[:, None] * share[:, :, None]


def gradients_by_differences(
    loss: Any, arithmetic: Arithmetic, step: float = 1e-6
) -> dict[str, np.ndarray]:
    """The gradient of `loss(arithmetic)` by table, kernel and bias, from central differences."""
    found = {}
    for name in ("table", "kernel", "bias"):
        value = getattr(arithmetic, name)
        gradient = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            for sign in (1, -1):
                other = value.copy()
                other[index] += sign * step
                gradient[index] += sign * loss(arithmetic.moved(**{name: other}))
        found[name] = gradient / (2 * step)
    return found
