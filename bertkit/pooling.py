"""From token states to one vector a row: what a head gets as "pooled"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import keras
import tensorflow as tf

from bertkit.errors import EncoderError

PoolingName = Literal["pooler", "cls", "mean", "max", "attention", "layers"]
POOLINGS: tuple[str, ...] = get_args(PoolingName)


class Pooling(keras.layers.Layer):
    """Token states to one vector a row.

    Args:
        kind: "pooler", BERT's own dense layer with tanh on the first token; "cls", the first
            token; "mean" and "max", over the tokens that are not padding; "attention", their mean
            weighted by a learned attention (Yang et al. 2016,
            https://aclanthology.org/N16-1174); "layers", the first token of each layer, the
            embeddings included, in a learned mix (Peters et al. 2018,
            https://arxiv.org/abs/1802.05365).
        num_layers: transformer layers, of which "layers" mixes the states.
        initializer_range: standard deviation of the random kernels.

    Raises:
        EncoderError: there is no such pooling.
    """

    def __init__(
        self, kind: str, num_layers: int, initializer_range: float = 0.02, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if kind not in POOLINGS:
            raise EncoderError(f"pooling is {kind!r}. Known: {', '.join(POOLINGS)}.")
        self.kind = kind
        self.num_layers = num_layers
        self.initializer_range = initializer_range

    @property
    def first_only(self) -> bool:
        """Whether nothing but the first token of a row is read."""
        return self.kind in ("pooler", "cls", "layers")

    @property
    def all_layers(self) -> bool:
        """Whether the states of every layer are read, and not of the last one alone."""
        return self.kind == "layers"

    def build(self, input_shape: Sequence[int | None]) -> None:
        hidden = input_shape[-1]
        normal = keras.initializers.TruncatedNormal(stddev=self.initializer_range)
        if self.kind in ("pooler", "attention"):
            self.kernel = self.add_weight(shape=(hidden, hidden), initializer=normal, name="kernel")
            self.bias = self.add_weight(shape=(hidden,), initializer="zeros", name="bias")
        if self.kind == "attention":
            self.query = self.add_weight(shape=(hidden,), initializer=normal, name="query")
        if self.kind == "layers":
            self.mix = self.add_weight(
                shape=(self.num_layers + 1,), initializer="zeros", name="mix"
            )
            self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, states: Sequence[tf.Tensor], mask: tf.Tensor) -> tf.Tensor:
        """Pool.

        Args:
            states: of each layer that is read, the last one last; (B, H) each with `first_only`,
                (B, T, H) if not.
            mask: int32, 1 for a token, 0 for padding; (B, T).

        Returns:
            (B, H).
        """
        last = states[-1]
        if self.kind == "pooler":
            return tf.tanh(self._dense(last))
        if self.kind == "cls":
            return last
        if self.kind == "layers":
            share = tf.nn.softmax(tf.cast(self.mix, tf.float32)) * tf.cast(self.scale, tf.float32)
            return tf.tensordot(tf.cast(share, last.dtype), tf.stack(list(states)), axes=1)
        if self.kind == "max":
            lowest = tf.fill(tf.shape(last), last.dtype.min)
            longest = tf.reduce_max(tf.where(mask[:, :, None] > 0, last, lowest), axis=1)
            # A row without a token has no maximum; as with the mean, it gets zeros.
            return tf.where(tf.reduce_any(mask > 0, axis=1)[:, None], longest, 0)
        return self._weighted(last, mask)

    def _weighted(self, x: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """The mean over tokens, equally or by attention; a row without a token gets zeros."""
        weights = tf.cast(mask, x.dtype)  # (B, T)
        if self.kind == "attention":
            hidden = tf.tanh(self._dense(tf.reshape(x, (-1, x.shape[-1]))))  # (B*T, H)
            scores = tf.reshape(tf.linalg.matvec(hidden, self.query), tf.shape(mask))
            scores = tf.where(mask > 0, tf.cast(scores, tf.float32), -1e9)
            weights *= tf.cast(tf.nn.softmax(scores), x.dtype)
            return tf.reduce_sum(x * weights[:, :, None], axis=1)
        total = tf.reduce_sum(weights, axis=1, keepdims=True)  # (B, 1)
        return tf.math.divide_no_nan(tf.reduce_sum(x * weights[:, :, None], axis=1), total)

    def _dense(self, x: tf.Tensor) -> tf.Tensor:
        return tf.nn.bias_add(tf.matmul(x, self.kernel), self.bias)
