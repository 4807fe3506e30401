"""Two texts a row: [CLS] first [SEP] second [SEP]."""

from __future__ import annotations

import tensorflow as tf

from bertkit.preprocessor import Encoded, Preprocessor, pack


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


def longest_first(first: tf.Tensor, second: tf.Tensor, total: int) -> list[tf.Tensor]:
    """Return how many tokens each of two texts keeps; int64 (B,) each.

    An odd token goes to the longer text, and to the second of two equally long ones: so do the
    `tokenizers` of Hugging Face, where Google's original gave it to the first.
    """
    half, rest = total // 2, total - total // 2
    longer_first = first > second
    room_first = tf.where(longer_first, rest, half)
    room_second = total - room_first
    kept_first = tf.minimum(first, tf.maximum(tf.cast(room_first, tf.int64), total - second))
    kept_second = tf.minimum(second, tf.maximum(tf.cast(room_second, tf.int64), total - first))
    return [kept_first, kept_second]
