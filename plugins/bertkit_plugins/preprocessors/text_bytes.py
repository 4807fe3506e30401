"""One text a row as the bytes of its UTF-8, for encoders that take strings."""

from __future__ import annotations

import tensorflow as tf

from bertkit.encoder import Encoder
from bertkit.errors import InputError
from bertkit.preprocessor import Encoded, Preprocessor

_BYTES = 256


class TextBytes(Preprocessor):
    """One text a row as the bytes of its UTF-8, which an encoder of strings joins again.

    It carries a text through batching and saving as other preprocessors do its tokens. What does
    not fit is cut from the end, at a character.

    Args:
        sequence_length: the longest text, in bytes.
    """

    def __init__(self, sequence_length: int = 1024) -> None:
        super().__init__(sequence_length)

    def bind(self, encoder: Encoder) -> None:
        """Take the encoder that reads the bytes.

        Raises:
            InputError: the encoder reads the ids of a vocabulary, or no texts that long.
        """
        if encoder.vocabulary is not None or encoder.vocabulary_size != _BYTES:
            raise InputError(
                f"text_bytes gives the bytes of a text, and the encoder {encoder.name!r} reads "
                "tokens. Use single_text or sentence_pair; text_bytes is for models of TF Hub "
                "that take strings."
            )
        super().bind(encoder)

    @property
    def padding_id(self) -> int:
        """The byte that fills the rest of a row."""
        return 0

    def prepare(self) -> None:
        """Do nothing: there is no tokenizer."""

    def encode(self, texts: tf.Tensor) -> Encoded:
        cut = tf.strings.substr(texts, 0, self.sequence_length)
        # Of a character that was cut apart, what is left is no UTF-8.
        whole = tf.strings.unicode_transcode(cut, "UTF-8", "UTF-8", errors="ignore")
        kept = tf.where(tf.strings.length(texts) > self.sequence_length, whole, texts)
        split = tf.strings.bytes_split(kept)  # (B, ragged)
        flat = tf.reshape(tf.io.decode_raw(split.flat_values, tf.uint8), (-1,))
        ids = split.with_flat_values(tf.cast(flat, tf.int32))
        return Encoded(ids, ids * 0, tf.strings.length(texts))
