"""Two texts a row: [CLS] first [SEP] second [SEP]."""

from __future__ import annotations

import tensorflow as tf

from bertkit.preprocessor import Encoded, Preprocessor, longest_first, pack


class SentencePair(Preprocessor):
    """Two texts a row: [CLS] first [SEP] second [SEP], the longer one cut first.

    The second text and its [SEP] are segment 1. What does not fit is cut from the end of the
    longer text until both are equally long, then from both.

    Args:
        sequence_length: the longest sequence, in tokens, special tokens included.
    """

    text_columns = 2

    def encode(self, texts: tf.Tensor) -> Encoded:
        segments = [self.tokenizer(texts[:, 0]), self.tokenizer(texts[:, 1])]
        first, second = (segment.row_lengths() for segment in segments)
        return pack(segments, longest_first(first, second, self.sequence_length - 3),
                    self.vocabulary)  # fmt: skip
