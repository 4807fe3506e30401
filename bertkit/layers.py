"""What BERT's layers are made of: embeddings, layer norm, activations, dropout."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from bertkit.errors import InputError

if TYPE_CHECKING:
    from bertkit.bert import BertEncoder


@tf.custom_gradient
def gelu(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """Gaussian error linear unit, exact (https://arxiv.org/abs/1606.08415), any shape.

    The gradient is written out: it takes half of the passes over memory of TensorFlow's.
    """
    z = x * math.sqrt(0.5)
    cumulative = 0.5 + 0.5 * tf.math.erf(z)

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        slope = z / tf.exp(tf.square(z)) * (1.0 / math.sqrt(math.pi))  # x times the density
        return upstream * (cumulative + slope)

    return x * cumulative, gradient


def gelu_tanh(x: tf.Tensor) -> tf.Tensor:
    """The approximation of GELU by a hyperbolic tangent, which Google's BERT was trained with."""
    return tf.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": tf.nn.relu,
    "silu": tf.nn.silu,
    "tanh": tf.nn.tanh,
}


def activate(x: tf.Tensor, name: str, training: bool) -> tf.Tensor:
    """Apply an activation to the result of `linear`.

    TensorFlow computes its own GELU within the product, where no gradient asks for what is between.
    """
    if name == "gelu" and not training:
        return tf.nn.gelu(x)
    return ACTIVATIONS[name](x)


class LayerNorm(keras.layers.Layer):
    """Layer normalization over the last axis, computed in float32."""

    def __init__(self, epsilon: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape: Sequence[int | None]) -> None:
        self.gamma = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=(input_shape[-1],), initializer="zeros", name="beta")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return normalize(
            x, tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta), self.epsilon
        )


def normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float) -> tf.Tensor:
    """Layer normalization over the last axis, (..., H), in float32, with its gradient written out.

    Sums over an axis are products with a vector, which read the matrix once.
    """
    size = x.shape[-1]

    @tf.custom_gradient
    def normalized(
        x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]]:
        mean = tf.fill((size, 1), 1.0 / size)
        centred = x - tf.matmul(x, mean)
        scale = tf.math.rsqrt(tf.matmul(tf.square(centred), mean) + epsilon)  # (N, 1)
        normal = centred * scale

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            product = upstream * normal
            share = gamma[:, None] / size  # (H, 1)
            along = tf.matmul(upstream, share) + normal * tf.matmul(product, share)
            of_x = scale * (upstream * gamma - along)
            return of_x, column_sums(product), column_sums(upstream)

        return normal * gamma + beta, gradient

    parts = (tf.cast(part, tf.float32) for part in (x, gamma, beta))
    return tf.cast(normalized(*parts), x.dtype)


def column_sums(x: tf.Tensor) -> tf.Tensor:
    """The sum over all axes but the last, (..., M) to (M,), faster than `reduce_sum`."""
    rows = tf.reshape(x, (-1, x.shape[-1]))
    return tf.reshape(tf.matmul(tf.ones((1, tf.shape(rows)[0]), x.dtype), rows), (-1,))


def dropout(x: tf.Tensor, rate: float, seed: tf.Tensor | None) -> tf.Tensor:
    """Dropout (https://jmlr.org/papers/v15/srivastava14a.html), with 16 random bits a value.

    They are half of what TensorFlow's takes, so the rate is rounded to a multiple of 2**-16.

    Args:
        x: any shape.
        rate: how much is dropped.
        seed: two integers, (2,); `None` for no dropout.
    """
    if rate == 0 or seed is None:
        return x
    dropped = min(round(rate * 2**16), 2**16 - 1)
    count = tf.size(x)
    words = tf.random.stateless_uniform(
        [(count + 1) // 2], tf.cast(seed, tf.int64), None, None, tf.uint32
    )
    bits = tf.reshape(tf.bitcast(words, tf.uint16), (-1,))[:count]
    kept = tf.cast(tf.reshape(bits, tf.shape(x)) >= tf.constant(dropped, tf.uint16), x.dtype)
    return x * (kept * (2**16 / (2**16 - dropped)))


class Embeddings(keras.layers.Layer):
    """Token, position and segment embeddings: their sum, normalized.

    Where they are narrower or wider than the transformer's layers (ELECTRA, Clark et al. 2020,
    https://arxiv.org/abs/2003.10555), a dense layer projects them.
    """

    def __init__(self, encoder: BertEncoder, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vocabulary_size = encoder.vocabulary_size
        self.max_sequence_length = encoder.max_sequence_length
        self.num_segments = encoder.num_segments
        self.embedding_size = encoder.embedding_size
        self.initializer_range = encoder.initializer_range
        self.dropout = encoder.dropout
        self.seed_generator = encoder.seed_generator
        self.norm = LayerNorm(encoder.layer_norm_epsilon, name="norm", dtype=self.dtype_policy)
        self.projection: tuple[Any, Any] | None = None

    def build(self, input_shape: Sequence[int | None]) -> None:
        hidden, size = input_shape[-1], self.embedding_size
        self.token = self._table("token", self.vocabulary_size)
        self.position = self._table("position", self.max_sequence_length)
        if self.num_segments:
            self.segment = self._table("segment", self.num_segments)
        self.norm.build((None, size))
        if size != hidden:
            self.projection = (
                self.add_weight(
                    shape=(size, hidden), initializer=self._normal(), name="projection_kernel"
                ),
                self.add_weight(shape=(hidden,), initializer="zeros", name="projection_bias"),
            )

    def _normal(self) -> keras.initializers.Initializer:
        return keras.initializers.TruncatedNormal(stddev=self.initializer_range)

    def _table(self, name: str, rows: int) -> keras.Variable:
        return self.add_weight(
            shape=(rows, self.embedding_size), initializer=self._normal(), name=f"{name}_embedding"
        )

    def call(
        self,
        token_ids: tf.Tensor,
        segment_ids: tf.Tensor,
        token_embeddings: tf.Tensor | None = None,
        training: bool = False,
    ) -> tf.Tensor:
        """Embed int32 ids, (B, T) both, as one matrix, (B*T, H).

        Where `token_embeddings` are given, (B, T, E), they stand for those of the token ids.
        """
        length = self._checked_length(token_ids)
        x = tf.gather(self.token, token_ids) if token_embeddings is None else token_embeddings
        if self.num_segments:
            x += tf.gather(self.segment, segment_ids)
        x += tf.convert_to_tensor(self.position)[:length]
        x = self.norm(tf.reshape(x, (-1, x.shape[-1])))
        if training and self.dropout > 0:
            x = dropout(x, self.dropout, self.seed_generator.next())
        return linear(x, *self.projection) if self.projection else x

    def _checked_length(self, token_ids: tf.Tensor) -> tf.Tensor:
        """Return T, once it is known that there are positions for so many tokens."""
        positions = self.max_sequence_length
        message = (
            f"A sequence is longer than the {positions} positions of this encoder. Shorten it: "
            "the preprocessor's sequence_length does so."
        )
        if token_ids.shape[1] is not None and token_ids.shape[1] > positions:
            raise InputError(message)
        length = tf.shape(token_ids)[1]
        tf.debugging.assert_less_equal(length, positions, message)
        return length


def linear(x: tf.Tensor, kernel: Any, bias: Any, down: Any = None, up: Any = None) -> tf.Tensor:
    """x @ kernel + bias, over the last axis of a matrix; with LoRA, x @ down @ up is added."""
    y = tf.nn.bias_add(tf.matmul(x, kernel), bias)
    return y if down is None else y + tf.matmul(tf.matmul(x, down), up)
