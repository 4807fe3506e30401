"""BERT's forward pass, once, for every source of weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from bertkit.encoder import Encoder
from bertkit.errors import EncoderError
from bertkit.layers import ACTIVATIONS, Embeddings
from bertkit.pooling import Pooling, PoolingName
from bertkit.tokenizer import Vocabulary
from bertkit.transformer import LORA_TARGETS, TransformerLayer

Activation = Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "tanh"]


@keras.saving.register_keras_serializable("bertkit")
class BertEncoder(Encoder):
    """A BERT of any size, with random weights until a source of weights fills them.

    The forward pass of Devlin et al. 2019 (https://arxiv.org/abs/1810.04805). The last layer is
    computed only for the tokens that are read. `token_embeddings`, (B, T, E), may stand beside
    the inputs of the contract, instead of the rows that `token_ids` look up: for perturbing or
    mixing them.

    Args:
        vocabulary_size: rows of the token embedding.
        hidden_size: H, a multiple of `num_heads`.
        num_layers: how many transformer layers.
        num_heads: attention heads a layer.
        intermediate_size: width of the feed-forward network.
        max_sequence_length: rows of the position embedding, in tokens.
        num_segments: rows of the segment embedding; 0 for an encoder without one, which ignores
            `segment_ids` (DistilBERT).
        hidden_act: activation of the feed-forward network; "gelu" is the exact one, "gelu_new"
            and "gelu_pytorch_tanh" its approximation by tanh.
        layer_norm_epsilon: added to the variance in every layer norm.
        dropout: rate after the embeddings, the attention and the feed-forward network.
        attention_dropout: rate on the attention weights.
        pooling: what "pooled" is: "pooler" (BERT's dense layer with tanh on the first token),
            "cls" (the first token), "mean" or "max" (over tokens that are not padding),
            "attention" (a learned weighting of tokens) or "layers" (the first token in a learned
            mix of all layers); see `bertkit.pooling.Pooling`.
        initializer_range: standard deviation of the random kernels.
        vocabulary: path of a `vocab.txt`, if raw text is to be encoded.
        lowercase: whether that vocabulary wants lowercased text.
        embedding_size: E, the width of the embeddings; where it is not H, a dense layer brings
            them to H (ELECTRA). `None` means H.

    Raises:
        EncoderError: sizes that do not fit together.
    """

    def __init__(
        self,
        vocabulary_size: int,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        intermediate_size: int,
        max_sequence_length: int = 512,
        num_segments: int = 2,
        hidden_act: Activation = "gelu",
        layer_norm_epsilon: float = 1e-12,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        pooling: PoolingName = "pooler",
        initializer_range: float = 0.02,
        vocabulary: str | None = None,
        lowercase: bool = True,
        embedding_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        lora = kwargs.pop("lora", None)  # in the config of an encoder whose LoRA is not merged
        super().__init__(**kwargs)
        self.vocabulary_size = vocabulary_size
        self.hidden_size = hidden_size
        self.embedding_size = hidden_size if embedding_size is None else embedding_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.intermediate_size = intermediate_size
        self.max_sequence_length = max_sequence_length
        self.num_segments = num_segments
        self.hidden_act = hidden_act
        self.layer_norm_epsilon = layer_norm_epsilon
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.pooling = pooling
        self.initializer_range = initializer_range
        self._check_sizes()
        self.seed_generator = keras.random.SeedGenerator()
        self.embeddings = Embeddings(self, name="embeddings", dtype=self.dtype_policy)
        self.transformer_layers = [
            TransformerLayer(self, name=f"layer_{index}", dtype=self.dtype_policy)
            for index in range(num_layers)
        ]
        self.pooling_layer = Pooling(
            pooling, num_layers, initializer_range,
            name="pooler" if pooling == "pooler" else "pooling", dtype=self.dtype_policy,
        )  # fmt: skip
        if vocabulary is not None:
            self.vocabulary = Vocabulary.from_file(vocabulary, lowercase=lowercase)
        # No shape depends on the input, so the weights can be there from the start.
        self.build((None, None))
        self.lora: dict[str, Any] | None = None
        if lora is not None:
            options, weights = dict(lora), self._layer_weights()
            for index in options.pop("frozen_before", ()):  # by someone else than LoRA
                weights[index].trainable = False
            self.enable_lora(**options)

    def _check_sizes(self) -> None:
        sizes = {
            name: getattr(self, name)
            for name in ("vocabulary_size", "hidden_size", "num_layers", "num_heads",
                         "intermediate_size", "max_sequence_length", "embedding_size")
        }  # fmt: skip
        for name, size in sizes.items():
            if size < 1:
                raise EncoderError(f"{name} is {size}; a BERT needs at least 1.")
        if self.num_segments < 0:
            raise EncoderError(
                f"num_segments is {self.num_segments}; it must be at least 0, for no segments."
            )
        if self.hidden_size % self.num_heads:
            raise EncoderError(
                f"hidden_size is {self.hidden_size}, which {self.num_heads} heads cannot share "
                "evenly. Choose a num_heads that divides it."
            )
        if self.hidden_act not in ACTIVATIONS:
            raise EncoderError(
                f"hidden_act is {self.hidden_act!r}. Known: {', '.join(ACTIVATIONS)}."
            )
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise EncoderError(f"{name} is {getattr(self, name)}; it must be in [0, 1).")
        if not 0 < self.layer_norm_epsilon < 1:
            raise EncoderError(
                f"layer_norm_epsilon is {self.layer_norm_epsilon}; it must be above 0 and far "
                "below 1, such as 1e-12."
            )
        if not 0 < self.initializer_range < math.inf:
            raise EncoderError(
                f"initializer_range is {self.initializer_range}; it must be above 0, such as 0.02."
            )

    def build(self, input_shape: Any) -> None:
        for layer in (*self.layers_in_order(), self.pooling_layer):
            layer.build((None, self.hidden_size))
        self.built = True

    def call(
        self, inputs: dict[str, Any], reads: Sequence[str] = ("pooled",), training: bool = False
    ) -> dict[str, Any]:
        mask = tf.cast(inputs["padding_mask"], tf.int32)  # (B, T)
        pooling = self.pooling_layer
        first_only = pooling.first_only and not {"sequence", "layers"} & {*reads}
        pooled = "pooled" in reads
        given = inputs.get("token_embeddings")
        x = self.embeddings(
            inputs["token_ids"], inputs["segment_ids"], given, training=training
        )  # (B*T, H)
        states, outputs = [], []
        for layer in self.transformer_layers:
            if pooled and pooling.all_layers:
                states.append(self._rows(x, mask)[:, 0])
            last = layer is self.transformer_layers[-1]
            x = layer(x, mask, first_only=first_only and last, training=training)
            if "layers" in reads:  # for export: what each layer gives, (B, T, H)
                outputs.append(self._rows(x, mask))
        features: dict[str, Any] = {"mask": mask}
        if not first_only:
            x = self._rows(x, mask)
        if "sequence" in reads:
            features["sequence"] = x
        if "layers" in reads:
            features["layers"] = outputs
        if pooled:
            first = pooling.first_only and not first_only
            features["pooled"] = pooling([*states, x[:, 0] if first else x], mask)
        return features

    def embed_tokens(self, token_ids: tf.Tensor) -> tf.Tensor:
        return tf.gather(tf.convert_to_tensor(self.embeddings.token), token_ids)

    def _rows(self, x: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """(B*T, H) to (B, T, H)."""
        batch, length = tf.unstack(tf.shape(mask))
        rows = tf.reshape(x, (batch, length, self.hidden_size))
        return tf.ensure_shape(rows, (*mask.shape, self.hidden_size))

    def unread(self, reads: Sequence[str]) -> list[Any]:
        return [] if "pooled" in reads else list(self.pooling_layer.weights)

    def layers_in_order(self) -> list[keras.layers.Layer]:
        return [self.embeddings, *self.transformer_layers]

    def enable_lora(
        self, rank: int = 8, alpha: float = 16.0, targets: Sequence[str] = ("qkv",)
    ) -> None:
        """Freeze the layers, and train low-rank additions to their kernels in their place.

        LoRA, Hu et al. 2021 (https://arxiv.org/abs/2106.09685): a kernel (N, M) becomes
        `kernel + alpha / rank * down @ up`, with down (N, rank) random and up (rank, M) zero, so
        that at first nothing changes. Embeddings and norms are frozen as well; the pooling trains
        as before. Call it before `compile`.

        Args:
            rank: at most the smaller side of each kernel.
            alpha: above 0.
            targets: the kernels, of "qkv" (query, key and value, which share `down`),
                "attention_output", "intermediate" and "output".

        Raises:
            EncoderError: LoRA is there already, or cannot be with these numbers.
        """
        if self.lora is not None:
            raise EncoderError(
                "The encoder has LoRA already. Call merge_lora() before enable_lora()."
            )
        largest = min(self.hidden_size, self.intermediate_size)
        if not 1 <= rank <= largest:
            raise EncoderError(
                f"The rank of LoRA is {rank}; it must be at least 1 and at most {largest}, the "
                "smaller side of the kernels."
            )
        if not 0 < alpha < math.inf:
            raise EncoderError(f"The alpha of LoRA is {alpha}; it must be above 0, such as 16.")
        unknown = [target for target in targets if target not in LORA_TARGETS]
        if unknown or not targets or len({*targets}) < len(targets):
            raise EncoderError(
                f"The targets of LoRA are {', '.join(map(repr, targets)) or 'none'}. Give one or "
                f"more of {', '.join(LORA_TARGETS)}, each once."
            )
        weights = self._layer_weights()
        self._frozen_before = [i for i, weight in enumerate(weights) if not weight.trainable]
        for weight in weights:
            weight.trainable = False
        for layer in self.transformer_layers:
            layer.add_lora(targets, rank, alpha / rank)
        self.lora = {"rank": rank, "alpha": alpha, "targets": list(targets)}

    def merge_lora(self) -> None:
        """Make LoRA's additions a part of the kernels: the encoder is a plain BERT again.

        Its outputs stay as they are but for rounding. What `enable_lora` froze is trainable again,
        so a model must be compiled anew before it is trained further.

        Raises:
            EncoderError: there is no LoRA.
        """
        if self.lora is None:
            raise EncoderError("The encoder has no LoRA to merge. Call enable_lora() first.")
        for layer in self.transformer_layers:
            layer.merge_lora()
        for index, weight in enumerate(self._layer_weights()):
            if index not in self._frozen_before:
                weight.trainable = True
        self.lora = None

    def _layer_weights(self) -> list[Any]:
        return [weight for layer in self.layers_in_order() for weight in layer.weights]

    def get_config(self) -> dict[str, Any]:
        names = ("vocabulary_size", "hidden_size", "num_layers", "num_heads",
                 "intermediate_size", "max_sequence_length", "num_segments", "hidden_act",
                 "layer_norm_epsilon", "dropout", "attention_dropout", "pooling",
                 "initializer_range", "embedding_size")  # fmt: skip
        config = {**super().get_config(), **{name: getattr(self, name) for name in names}}
        if self.lora is not None:
            config["lora"] = {**self.lora, "frozen_before": [*self._frozen_before]}
        return config
