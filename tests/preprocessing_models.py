"""Tiny preprocessing SavedModels in the interface of TF Hub, written by tests."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_text

from tests.tiny import VOCABULARY

_STRINGS = tf.TensorSpec([None], tf.string)
_LENGTH = tf.TensorSpec([], tf.int32)


class _WordPieces(tf.Module):
    """Strings (B,), lowercased, to ids (B, words, pieces), by a table over a vocabulary file."""

    ragged_rank = 2

    def __init__(self, vocabulary: Sequence[str], file: Path) -> None:
        super().__init__()
        file.write_text("\n".join([*vocabulary, ""]), encoding="utf-8")
        self.asset = tf.saved_model.Asset(str(file))
        initializer = tf.lookup.TextFileInitializer(
            self.asset, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER,
        )  # fmt: skip
        self.table = tf.lookup.StaticVocabularyTable(initializer, num_oov_buckets=1)
        self.tokenizer = tensorflow_text.BertTokenizer(
            self.table, lower_case=True, token_out_type=tf.int32
        )
        names = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
        ids = [vocabulary.index(name) for name in names]
        self.padding_id, self.start_id, self.end_id, self.mask_id = ids
        self.size = len(vocabulary)

    @tf.function(input_signature=[_STRINGS])
    def __call__(self, sentences: tf.Tensor) -> tf.RaggedTensor:
        return self.tokenizer.tokenize(sentences)


class _Characters(tf.Module):
    """Strings (B,) to ids (B, characters), without lowercasing and without a file."""

    ragged_rank = 1

    def __init__(self, size: int) -> None:
        super().__init__()
        self.padding_id, self.start_id, self.end_id, self.mask_id = 3, 1, 2, 0
        self.size = size

    @tf.function(input_signature=[_STRINGS])
    def __call__(self, sentences: tf.Tensor) -> tf.RaggedTensor:
        return tf.strings.unicode_decode(sentences, "UTF-8") % (self.size - 4) + 4


class _Packing(tf.Module):
    """Segments and a length to TF Hub's three inputs, (B, length) each."""

    def __init__(self, tokenizer: Any, segments: Sequence[int]) -> None:
        super().__init__()
        self.padding_id, self.start_id, self.end_id = (
            tokenizer.padding_id, tokenizer.start_id, tokenizer.end_id
        )  # fmt: skip
        spec = tf.RaggedTensorSpec([None] * (tokenizer.ragged_rank + 1), tf.int32)
        for count in segments:
            self.__call__.get_concrete_function([spec] * count, _LENGTH)

    @tf.function
    def __call__(self, inputs: list[tf.RaggedTensor], seq_length: tf.Tensor) -> Any:
        flat = [rows.merge_dims(1, -1) if rows.ragged_rank > 1 else rows for rows in inputs]
        room = seq_length - len(flat) - 1
        flat = tensorflow_text.RoundRobinTrimmer(room).trim(flat)
        # Each part of a row as (B, any width) with -1 for nothing, which is squeezed out.
        one = tf.ones([flat[0].nrows(), 1], tf.int32)
        parts, types = [one * self.start_id], [one * 0]
        for index, rows in enumerate(flat):
            parts += [rows.to_tensor(-1), one * self.end_id]
            types += [tf.zeros_like(parts[-2]) + index, one * index]
        there = tf.concat(parts, 1) >= 0
        order = tf.argsort(tf.cast(~there, tf.int32), stable=True, axis=1)
        mask = tf.sequence_mask(tf.math.count_nonzero(there, 1), seq_length, tf.int32)

        def squeezed(columns: list[tf.Tensor], rest: int) -> tf.Tensor:
            x = tf.gather(tf.concat(columns, 1), order, batch_dims=1)
            x = tf.pad(x, [[0, 0], [0, seq_length]])[:, :seq_length]
            return tf.where(mask == 1, x, rest)

        return {
            "input_word_ids": squeezed(parts, self.padding_id),
            "input_mask": mask,
            "input_type_ids": squeezed(types, 0),
        }


def _special_tokens(tokenizer: Any) -> Any:
    ids = {
        "padding_id": tokenizer.padding_id,
        "start_of_sequence_id": tokenizer.start_id,
        "end_of_segment_id": tokenizer.end_id,
        "mask_id": tokenizer.mask_id,
        "vocab_size": tokenizer.size,
    }
    return tf.function(
        lambda: {name: tf.constant(value, tf.int32) for name, value in ids.items()},
        input_signature=[],
    )


def write_preprocessing_model(
    folder: Path,
    vocabulary: Sequence[str] = VOCABULARY,
    *,
    characters: int | None = None,
    length: int = 16,
    segments: Sequence[int] = (1, 2),
    without: Sequence[str] = (),
) -> Path:
    """Write a preprocessing SavedModel.

    Args:
        folder: must not exist yet.
        vocabulary: the pieces, BERT's special tokens among them.
        characters: that many ids of characters instead of the vocabulary's.
        length: to which a call of the model itself pads and cuts.
        segments: for how many texts a row there is a `bert_pack_inputs`.
        without: of "tokenize", "bert_pack_inputs" and "get_special_tokens_dict", what to leave out.

    Returns:
        The folder.
    """
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer: Any = (
            _WordPieces(vocabulary, Path(temporary, "vocab.txt"))
            if characters is None
            else _Characters(characters)
        )
        packing = _Packing(tokenizer, segments if "bert_pack_inputs" not in without else ())

        @tf.function(input_signature=[_STRINGS])
        def preprocess(sentences: tf.Tensor) -> Any:
            return packing([tokenizer(sentences)], tf.constant(length))

        model = tf.Module()
        model.__call__ = preprocess
        model.kept = tokenizer  # its table and file, under a name of no interface
        if "get_special_tokens_dict" not in without:
            tokenizer.get_special_tokens_dict = _special_tokens(tokenizer)
        for name, part in (("tokenize", tokenizer), ("bert_pack_inputs", packing)):
            if name not in without:
                setattr(model, name, part)
        tf.saved_model.save(model, str(folder))
    return folder
