"""One text a row: [CLS] text [SEP]."""

from __future__ import annotations

import tensorflow as tf

from bertkit.preprocessor import Encoded, Preprocessor, pack


class SingleText(Preprocessor):
    """One text a row: [CLS] text [SEP], cut at the end.

    Args:
        sequence_length: the longest sequence, in tokens, special tokens included.
    """

    text_columns = 1

    def encode(self, texts: tf.Tensor) -> Encoded:
        room = tf.constant(self.sequence_length - 2)
        return pack([self.tokenizer(texts)], [room], self.vocabulary)
