"""A transformer layer, whose computation is traced once for all layers of a model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import tensorflow as tf

from bertkit.layers import LayerNorm, activate, dropout, linear, normalize

if TYPE_CHECKING:
    from bertkit.bert import BertEncoder


# What LoRA can add to, and the attributes that hold these kernels with their biases.
LORA_TARGETS = {
    "qkv": "qkv",
    "attention_output": "attention_output",
    "intermediate": "intermediate",
    "output": "output_dense",
}


class TransformerLayer(keras.layers.Layer):
    """One layer: self-attention and a feed-forward network, each with a residual and a norm.

    Tokens come as one matrix, (B*T, H): every product is then a single large one. Query, key and
    value are one kernel, in this order.
    """

    def __init__(self, encoder: BertEncoder, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.initializer_range = encoder.initializer_range
        self.seed_generator = encoder.seed_generator
        self.lora: dict[str, tuple[Any, Any]] = {}
        self.options = LayerOptions(
            hidden_size=encoder.hidden_size,
            intermediate_size=encoder.intermediate_size,
            num_heads=encoder.num_heads,
            hidden_act=encoder.hidden_act,
            epsilon=encoder.layer_norm_epsilon,
            dropout=encoder.dropout,
            attention_dropout=encoder.attention_dropout,
        )
        self.attention_norm = LayerNorm(
            encoder.layer_norm_epsilon, name="attention_norm", dtype=self.dtype_policy
        )
        self.output_norm = LayerNorm(
            encoder.layer_norm_epsilon, name="output_norm", dtype=self.dtype_policy
        )

    def build(self, input_shape: Any) -> None:
        hidden = input_shape[-1]
        self.qkv = self._dense("qkv", hidden, 3 * hidden)
        self.attention_output = self._dense("attention_output", hidden, hidden)
        wide = self.options.intermediate_size
        self.intermediate = self._dense("intermediate", hidden, wide)
        self.output_dense = self._dense("output", wide, hidden)
        self.attention_norm.build(input_shape)
        self.output_norm.build(input_shape)

    def _dense(self, name: str, inputs: int, outputs: int) -> tuple[Any, Any]:
        initializer = keras.initializers.TruncatedNormal(stddev=self.initializer_range)
        kernel = self.add_weight(
            shape=(inputs, outputs), initializer=initializer, name=f"{name}_kernel"
        )
        return kernel, self.add_weight(shape=(outputs,), initializer="zeros", name=f"{name}_bias")

    def add_lora(self, targets: Sequence[str], rank: int, scale: float) -> None:
        """Add `scale * down @ up` to kernels, down (inputs, rank) random, up (rank, outputs) zero.

        Args:
            targets: of `LORA_TARGETS`; "qkv" shares one `down` for query, key and value.
            rank: width of what is between.
            scale: of the product.
        """
        self._tracker.unlock()  # Keras locks what a layer has once it is built
        made = {}
        for name in targets:
            inputs, outputs = getattr(self, LORA_TARGETS[name])[0].shape
            normal = keras.initializers.RandomNormal(stddev=inputs**-0.5)
            made[name] = (
                self.add_weight(shape=(inputs, rank), initializer=normal, name=f"{name}_lora_down"),
                self.add_weight(shape=(rank, outputs), initializer="zeros", name=f"{name}_lora_up"),
            )
        self.lora, self.lora_scale = made, scale
        self._tracker.lock()

    def merge_lora(self) -> None:
        """Add the products to the kernels, and forget their factors."""
        for name, (down, up) in self.lora.items():
            kernel, _ = getattr(self, LORA_TARGETS[name])
            kernel.assign(kernel + tf.matmul(down, up) * self.lora_scale)
            up.assign(tf.zeros(up.shape))  # a graph that was traced before goes on to be right
            self._untrack_variable(down)
            self._untrack_variable(up)
        self.lora = {}

    def _with_lora(self, name: str) -> tuple[Any, ...]:
        """Return kernel and bias and, with LoRA, its factors, the second one scaled."""
        dense: tuple[Any, ...] = getattr(self, LORA_TARGETS[name])
        if name not in self.lora:
            return dense
        down, up = self.lora[name]
        return (*dense, down, tf.convert_to_tensor(up) * self.lora_scale)

    def call(
        self, x: tf.Tensor, mask: tf.Tensor, first_only: bool = False, training: bool = False
    ) -> tf.Tensor:
        """Transform tokens.

        Args:
            x: (B*T, H).
            mask: int32, 1 for a token, 0 for padding; (B, T).
            first_only: compute the result of the first token of each sequence alone, which is
                all that the pooled output reads.
            training: whether dropout applies.

        Returns:
            (B*T, H), or (B, H) with `first_only`.
        """
        drops = training and (self.options.dropout or self.options.attention_dropout)
        seeds = [self.seed_generator.next() for _ in range(3)] if drops else []
        weights = _Weights(
            self._with_lora("qkv"),
            self._with_lora("attention_output"),
            (self.attention_norm.gamma, self.attention_norm.beta),
            self._with_lora("intermediate"),
            self._with_lora("output"),
            (self.output_norm.gamma, self.output_norm.beta),
        )
        tensors = tf.nest.map_structure(tf.convert_to_tensor, weights)
        how = (self.options, first_only, bool(training))
        if tf.executing_eagerly():
            return _transform(x, mask, tensors, seeds, *how)
        return _traced(*how)(x, mask, tensors, seeds)


class _Weights(NamedTuple):
    """The weights of a layer: kernel, bias and LoRA's factors, if any, or gamma and beta."""

    qkv: tuple[Any, ...]
    attention_output: tuple[Any, ...]
    attention_norm: tuple[Any, Any]
    intermediate: tuple[Any, ...]
    output: tuple[Any, ...]
    output_norm: tuple[Any, Any]


@dataclass(frozen=True)
class LayerOptions:
    """What two layers share if their computation is the same but for the weights."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    hidden_act: str
    epsilon: float
    dropout: float
    attention_dropout: float


@functools.cache
def _traced(options: LayerOptions, first_only: bool, training: bool) -> Callable[..., tf.Tensor]:
    """Return `_transform` as a function that is traced for the first layer, and then called.

    Tracing a layer and its gradient takes about a tenth of a second, and a BERT has up to 24.
    """

    # Tensors are its only arguments: TensorFlow knows another object by a weak reference, and
    # traces anew when that object has gone.
    def transform(
        x: tf.Tensor, mask: tf.Tensor, weights: _Weights, seeds: list[tf.Tensor]
    ) -> tf.Tensor:
        return _transform(x, mask, weights, seeds, options, first_only, training)

    return tf.function(transform, autograph=False, reduce_retracing=True)


def _transform(
    x: tf.Tensor,
    mask: tf.Tensor,
    weights: _Weights,
    seeds: list[tf.Tensor],
    options: LayerOptions,
    first_only: bool,
    training: bool,
) -> tf.Tensor:
    """Do what `TransformerLayer.call` says, with the layer's weights and a seed a dropout."""
    of_attention, of_output, of_wide = seeds or (None, None, None)
    context = _attend(x, mask, weights.qkv, of_attention, options, first_only)
    if first_only:
        x = tf.reshape(x, (-1, tf.shape(mask)[1], x.shape[-1]))[:, 0]  # (B, H)
    attended = dropout(linear(context, *weights.attention_output), options.dropout, of_output)
    x = normalize(x + attended, *weights.attention_norm, options.epsilon)
    wide = activate(linear(x, *weights.intermediate), options.hidden_act, training)
    wide = dropout(linear(wide, *weights.output), options.dropout, of_wide)
    return normalize(x + wide, *weights.output_norm, options.epsilon)


def _attend(
    x: tf.Tensor,
    mask: tf.Tensor,
    qkv: tuple[tf.Tensor, ...],
    seed: tf.Tensor | None,
    options: LayerOptions,
    first_only: bool,
) -> tf.Tensor:
    """Self-attention before its last product: (B*T, H), or (B, H) with `first_only`."""
    hidden, heads = options.hidden_size, options.num_heads
    length, width = tf.shape(mask)[1], hidden // heads
    kernel, kernel_bias, *lora = qkv

    def split(y: tf.Tensor, time: tf.Tensor | int) -> tf.Tensor:
        """(B*time, n*H) to (n, B, heads, time, width)."""
        y = tf.reshape(y, (-1, time, y.shape[-1] // hidden, heads, width))
        return tf.transpose(y, (2, 0, 3, 1, 4))

    if first_only:
        first = tf.reshape(x, (-1, length, hidden))[:, 0]  # (B, H)
        parts = [hidden, 2 * hidden]
        kernels, biases = tf.split(kernel, parts, axis=1), tf.split(kernel_bias, parts)
        factors = [(lora[0], up) for up in tf.split(lora[1], parts, axis=1)] if lora else [(), ()]
        (query,) = tf.unstack(split(linear(first, kernels[0], biases[0], *factors[0]), 1), 1)
        key, value = tf.unstack(split(linear(x, kernels[1], biases[1], *factors[1]), length), 2)
    else:
        query, key, value = tf.unstack(split(linear(x, *qkv), length))
    bias = tf.where(mask[:, None, None, :] > 0, 0.0, -1e9)  # (B, 1, 1, T), float32
    scores = tf.matmul(query * width**-0.5, key, transpose_b=True)  # (B, heads, Tq, T)
    weights = tf.nn.softmax(tf.cast(scores, tf.float32) + bias)
    weights = dropout(tf.cast(weights, value.dtype), options.attention_dropout, seed)
    context = tf.transpose(tf.matmul(weights, value), (0, 2, 1, 3))  # (B, Tq, heads, width)
    return tf.reshape(context, (-1, hidden))
