"""The contract of a preprocessor: text in, token ids out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from bertkit.encoder import Encoder
from bertkit.errors import InputError
from bertkit.tokenizer import Vocabulary, WordPieceTokenizer


class Encoded(NamedTuple):
    """Texts as the encoder will see them, before padding.

    Attributes:
        token_ids: int32, (B, ragged), special tokens included.
        segment_ids: int32, (B, ragged), of the same row lengths.
        lengths: int32, (B,), the tokens a row would have without truncation.
    """

    token_ids: tf.RaggedTensor
    segment_ids: tf.RaggedTensor
    lengths: tf.Tensor


class Preprocessor:
    """Base class of preprocessors.

    A subclass sets `text_columns` and defines `encode`. It reads `self.tokenizer` and
    `self.vocabulary`, which are there once it is bound to an encoder: the vocabulary belongs to
    the encoder, so that the two can never disagree. One that brings its own tokenizer overrides
    `prepare`, `padding_id`, `save_assets` and `load_assets`.

    Args:
        sequence_length: the longest sequence, in tokens, special tokens included. Longer texts
            are truncated; shorter ones are padded only to the longest of their batch.

    Raises:
        InputError: `sequence_length` leaves no room for text.
    """

    text_columns: int = 1

    def __init__(self, sequence_length: int = 128) -> None:
        if isinstance(sequence_length, bool) or not isinstance(sequence_length, int):
            raise InputError(f"sequence_length is {sequence_length!r}. Give a whole number.")
        smallest = 2 * self.text_columns + 1  # each text gets a token and a [SEP]; [CLS] leads
        if sequence_length < smallest:
            raise InputError(
                f"sequence_length is {sequence_length}; with special tokens it must be at least "
                f"{smallest}."
            )
        self.sequence_length = sequence_length
        self._encoder: Encoder | None = None
        self._tokenizer: WordPieceTokenizer | None = None
        self._traced: Callable[[tf.Tensor], Encoded] | None = None

    def bind(self, encoder: Encoder) -> None:
        """Take the encoder whose vocabulary is to be used.

        Raises:
            InputError: the encoder has no positions for `sequence_length` tokens.
        """
        if self.sequence_length > encoder.max_sequence_length:
            raise InputError(
                f"sequence_length is {self.sequence_length}, but the encoder has positions for "
                f"{encoder.max_sequence_length} tokens. Set sequence_length to that or less."
            )
        # Without any, the separator alone tells the texts apart, as in DistilBERT.
        if 0 < encoder.num_segments < self.text_columns:
            raise InputError(
                f"{type(self).__name__} marks {self.text_columns} segments, but the encoder has "
                f"embeddings for {encoder.num_segments}. Use an encoder with more."
            )
        self._encoder = encoder
        self._tokenizer = self._traced = None

    def serving(self, encoder: Encoder) -> Preprocessor:
        """Return this preprocessor bound to an encoder, or a copy if it serves another one.

        Raises:
            InputError: as `bind` does.
        """
        mine = self if self._encoder in (None, encoder) else type(self)(**self.get_config())
        mine.bind(encoder)
        return mine

    @property
    def vocabulary(self) -> Vocabulary:
        """The encoder's vocabulary.

        Raises:
            InputError: there is no encoder yet, or it has no vocabulary.
        """
        if self._encoder is None:
            raise InputError(
                f"{type(self).__name__} is not bound to an encoder yet. Give both to a "
                "BertClassifier, or call `preprocessor.bind(encoder)`."
            )
        if self._encoder.vocabulary is None:
            raise InputError(
                f"The encoder {self._encoder.name!r} has no vocabulary, so text cannot become "
                "token ids. Set `encoder.vocabulary`, to Vocabulary.from_file('vocab.txt') or to "
                "that of the model this one was cloned from; an encoder that takes strings goes "
                "with the preprocessor 'text_bytes', one with a tokenizer of its own with 'tfhub'."
            )
        return self._encoder.vocabulary

    @property
    def padding_id(self) -> int:
        """The token id that fills the rest of a row."""
        return self.vocabulary.id_of(self.vocabulary.padding_token)

    @property
    def tokenizer(self) -> WordPieceTokenizer:
        """BERT's tokenizer over the vocabulary."""
        vocabulary = self.vocabulary
        if self._tokenizer is None or self._tokenizer.vocabulary is not vocabulary:
            self._traced = None  # it holds the ids of the vocabulary before
            with tf.init_scope():  # its tables outlive the graph that asked first
                self._tokenizer = WordPieceTokenizer(vocabulary)
        return self._tokenizer

    def encode(self, texts: tf.Tensor) -> Encoded:
        """Tokenize, truncate and pack, with TensorFlow's operations.

        Python's `if` and `for` are not made into such: write `tf.where`, `tf.cond`, `tf.map_fn`.

        Args:
            texts: UTF-8 strings, (B,) for one text column, (B, 2) for two.

        Returns:
            The packed rows.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `encode`.")

    def prepare(self) -> None:
        """Make what `encode` reads, outside of its graph: here the tokenizer."""
        self.tokenizer  # noqa: B018 - drops the graph of another vocabulary

    def encode_array(self, texts: np.ndarray) -> Encoded:
        """Encode an array of strings, (B,) or (B, 2), by a graph that is traced once.

        After the first call, several threads may call it at a time.
        """
        self.prepare()
        if self._traced is None:
            shape = [None] if self.text_columns == 1 else [None, self.text_columns]
            # Autograph would take longer to read the tokenizer's source than all else to begin.
            self._traced = tf.function(self.encode, autograph=False).get_concrete_function(
                tf.TensorSpec(shape, tf.string)
            )
        return self._traced(tf.constant(texts.tolist(), tf.string, list(texts.shape)))

    def __call__(self, texts: tf.Tensor) -> dict[str, tf.Tensor]:
        """Encode, and pad to the longest row, or to one token if there are no rows.

        Args:
            texts: UTF-8 strings, (B,) for one text column, (B, 2) for two.

        Returns:
            `token_ids`, `segment_ids`, `padding_mask`: int32, (B, T).
        """
        encoded = self.encode(texts)
        lengths = encoded.token_ids.row_lengths()  # (B,)
        longest = tf.maximum(tf.reduce_max(lengths), 1)
        shape = tf.stack([-1, longest])
        return {
            "token_ids": encoded.token_ids.to_tensor(self.padding_id, shape=shape),
            "segment_ids": encoded.segment_ids.to_tensor(0, shape=shape),
            "padding_mask": tf.sequence_mask(lengths, longest, dtype=tf.int32),
        }

    def write_saved_model(self, folder: str) -> bool:
        """Write the preprocessor as a SavedModel with TF Hub's text-preprocessing interface.

        For one that brings its own tokenizer; for the others the export makes it of the
        encoder's vocabulary.

        Returns:
            Whether it was written.
        """
        return False

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, ready for JSON."""
        return {"sequence_length": self.sequence_length}

    def save_assets(self, folder: str) -> None:
        """Write what the config cannot hold into an existing folder of a saved model."""

    def load_assets(self, folder: str) -> None:
        """Read what `save_assets` wrote; the folder goes away afterwards."""


@tf.autograph.experimental.do_not_convert
def pack(segments: list[tf.RaggedTensor], room: list[tf.Tensor], vocabulary: Vocabulary) -> Encoded:
    """Truncate each segment to its room and join them: [CLS] a [SEP] b [SEP].

    Args:
        segments: int32 ids without special tokens, (B, ragged) each.
        room: how many tokens each row of a segment may keep, int (B,) or () each.
        vocabulary: where the special tokens' ids come from.
    """
    start, separator = (
        vocabulary.id_of(token) for token in (vocabulary.start_token, vocabulary.separator_token)
    )
    lengths = [segment.row_lengths() for segment in segments]
    kept = [
        tf.minimum(length, tf.cast(keep, tf.int64))
        for length, keep in zip(lengths, room, strict=True)
    ]
    # All values one after another, with a place before and after each segment's: a row is read
    # from there, from one place before what it keeps to one after, where special tokens belong.
    values, firsts = [tf.constant([start])], [tf.constant(1, tf.int64)]
    for segment in segments:
        values += [segment.flat_values, [separator]]
        firsts.append(firsts[-1] + segment.row_splits[-1] + 1)
    begins = tf.stack(
        [segment.row_splits[:-1] + first for segment, first in zip(segments, firsts, strict=False)],
        axis=1,
    )  # (B, S)
    ends = begins + tf.stack(kept, axis=1) + 1
    begins -= [1] + [0] * (len(segments) - 1)
    places = tf.ragged.range(tf.reshape(begins, [-1]), tf.reshape(ends, [-1]))  # (B * S, ragged)
    row_splits = places.row_splits[:: len(segments)]
    token_ids = tf.gather(tf.concat(values, axis=0), places.flat_values)
    for special, where in ((start, row_splits[:-1]), (separator, places.row_splits[1:] - 1)):
        token_ids = tf.tensor_scatter_nd_update(
            token_ids, where[:, None], tf.fill([tf.size(where)], special)
        )
    segment_ids = tf.zeros_like(token_ids)
    for first in firsts[1:-1]:
        segment_ids += tf.cast(places.flat_values >= first, tf.int32)
    return Encoded(
        tf.RaggedTensor.from_row_splits(token_ids, row_splits, validate=False),
        tf.RaggedTensor.from_row_splits(segment_ids, row_splits, validate=False),
        tf.cast(tf.add_n(lengths) + len(segments) + 1, tf.int32),
    )


@tf.autograph.experimental.do_not_convert
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
