"""The contract of an encoder: token ids in, features out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from bertkit.errors import EncoderError, ExportError
from bertkit.tokenizer import Vocabulary

# TF Hub's names of the three inputs: bertkit's, which are KerasHub's.
TFHUB_NAMES = {
    "input_word_ids": "token_ids",
    "input_type_ids": "segment_ids",
    "input_mask": "padding_mask",
}
INPUT_NAMES = ("token_ids", "segment_ids", "padding_mask")

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"bertkit runs on Keras with TensorFlow, and Keras was loaded with "
        f"{keras.backend.backend()!r}. Set KERAS_BACKEND=tensorflow before the first "
        "`import keras`, or change `backend` in ~/.keras/keras.json."
    )


class Encoder(keras.layers.Layer):
    """Base class of encoders: a Keras layer from token ids to features.

    A subclass sets the attributes below in its constructor, and defines `call` and `get_config`.
    The vocabulary is no part of the config: it travels as an asset of the saved model.

    Attributes:
        hidden_size: H, the width of the features.
        max_sequence_length: the longest sequence that has positions, in tokens.
        num_segments: how many values `segment_ids` may take; 0 for an encoder that ignores them.
        vocabulary_size: how many token ids have an embedding.
        vocabulary: the pieces, or `None` for an encoder that is fed with ids only.
    """

    hidden_size: int
    max_sequence_length: int
    num_segments: int
    vocabulary_size: int

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._vocabulary: Vocabulary | None = None

    def call(
        self, inputs: dict[str, Any], reads: Sequence[str] = ("pooled",), training: bool = False
    ) -> dict[str, Any]:
        """Encode a batch.

        Args:
            inputs: int32 tensors `token_ids`, `segment_ids`, `padding_mask` (1 for a token, 0
                for padding), each (B, T).
            reads: the features that will be read, of "pooled" and "sequence"; what is not read
                need not be computed.
            training: whether dropout applies.

        Returns:
            The features that are read, and the mask: `{"pooled": (B, H), "sequence": (B, T, H),
            "mask": (B, T)}`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `call`.")

    def embed_tokens(self, token_ids: Any) -> Any:
        """Return the embeddings, float32 (B, T, E), that `token_ids`, int32 (B, T), look up.

        For encoders that take `token_embeddings` beside their inputs, in place of these.
        """
        raise NotImplementedError(f"{type(self).__name__} takes no token embeddings.")

    @property
    def takes_embeddings(self) -> bool:
        """Whether `token_embeddings`, float32 (B, T, E), may stand in place of token ids."""
        return type(self).embed_tokens is not Encoder.embed_tokens

    def layers_in_order(self) -> list[keras.layers.Layer]:
        """Return the layers from the embeddings up, for freezing and per-layer learning rates."""
        return [self]

    def unread(self, reads: Sequence[str]) -> list[Any]:
        """Return the weights on which none of the features that are read depends."""
        return []

    def write_saved_model(self, folder: str) -> list[str]:
        """Write the encoder as a SavedModel with TF Hub's text-encoder interface.

        For encoders that are not a `BertEncoder`, of which the export takes care itself.

        Returns:
            What is left out, a sentence each.

        Raises:
            ExportError: it cannot be written.
        """
        raise ExportError(
            f"{type(self).__name__} cannot be written as a SavedModel: it is no BertEncoder, and "
            "does not define `write_saved_model`. Train with an encoder that can."
        )

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The vocabulary whose ids the encoder understands."""
        return self._vocabulary

    @vocabulary.setter
    def vocabulary(self, vocabulary: Vocabulary | None) -> None:
        if vocabulary is not None and len(vocabulary) > self.vocabulary_size:
            raise EncoderError(
                f"The vocabulary has {len(vocabulary)} pieces, but {self.name!r} has embeddings "
                f"for {self.vocabulary_size}. Take vocabulary and weights from the same model."
            )
        # A plain attribute: Keras would turn a tracked tuple of 30,000 pieces into its own type.
        object.__setattr__(self, "_vocabulary", vocabulary)

    def save_assets(self, folder: str) -> None:
        """Write the vocabulary; called by Keras when the model is saved."""
        if self._vocabulary is not None:
            self._vocabulary.save(folder)

    def load_assets(self, folder: str | None) -> None:
        """Read what `save_assets` wrote; called by Keras, with `None` if that was nothing."""
        if folder is not None and Path(folder, "vocab.txt").exists():
            self.vocabulary = Vocabulary.load(folder)
