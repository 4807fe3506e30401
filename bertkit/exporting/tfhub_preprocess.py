"""A preprocessor as a SavedModel with TF Hub's interface: from strings to packed ids."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from bertkit.classifier import BertClassifier
from bertkit.preprocessor import longest_first, pack
from bertkit.tokenizer import Vocabulary, WordPieceTokenizer

_LENGTH = 128  # of TF Hub's own preprocessors, where the model has none


def preprocess_module(model: BertClassifier, vocab_file: tf.saved_model.Asset) -> Any:
    """Return the module: called with strings, and with `tokenize` and `bert_pack_inputs`.

    Args:
        model: its encoder has a vocabulary.
        vocab_file: that vocabulary.
    """
    vocabulary = model.encoder.vocabulary
    assert vocabulary is not None
    longest = model.encoder.max_sequence_length
    length = min(_LENGTH, longest)
    if model.preprocessor is not None:
        length = model.preprocessor.sequence_length
    module, tokenize, bert_pack_inputs = tf.Module(), tf.Module(), tf.Module()
    tokenizer = WordPieceTokenizer(vocabulary)
    strings = tf.TensorSpec((None,), tf.string, "sentences")
    size = tf.TensorSpec((), tf.int32, "seq_length")

    @tf.function(autograph=False, input_signature=[strings])
    def to_tokens(sentences: tf.Tensor) -> tf.RaggedTensor:
        return tokenizer(sentences)  # (B, ragged)

    @tf.function(autograph=False)
    def to_inputs(inputs: list[tf.RaggedTensor], seq_length: Any = length) -> dict[str, tf.Tensor]:
        return packed(inputs, seq_length, vocabulary)

    @tf.function(autograph=False, input_signature=[strings])
    def whole(sentences: tf.Tensor) -> dict[str, tf.Tensor]:
        inputs = packed([tokenizer(sentences)], length, vocabulary)
        return {name: tf.ensure_shape(x, (None, length)) for name, x in inputs.items()}

    @tf.function(autograph=False, input_signature=[])
    def get_special_tokens_dict() -> dict[str, tf.Tensor]:
        return {name: tf.constant(x, tf.int32) for name, x in special_tokens(vocabulary).items()}

    tokens = tf.RaggedTensorSpec((None, None), tf.int32, 1)
    for segments in (1, 2):
        to_inputs.get_concrete_function([tokens] * segments, size)
    tokenize.__call__, tokenize.get_special_tokens_dict = to_tokens, get_special_tokens_dict
    tokenize.vocab_file = vocab_file
    bert_pack_inputs.__call__ = to_inputs
    module.__call__, module.tokenize, module.bert_pack_inputs = whole, tokenize, bert_pack_inputs
    return module


def packed(
    inputs: list[tf.RaggedTensor], seq_length: Any, vocabulary: Vocabulary
) -> dict[str, tf.Tensor]:
    """Truncate one or two segments, join them and pad: int32 (B, seq_length) by TF Hub's names.

    Args:
        inputs: int32 ids without special tokens, (B, ragged) each.
        seq_length: int32 ().
        vocabulary: where the special tokens' ids come from.
    """
    total = tf.maximum(tf.cast(seq_length, tf.int64) - len(inputs) - 1, 0)
    room = [total]
    if len(inputs) == 2:
        first, second = (x.row_lengths() for x in inputs)
        room = longest_first(first, second, total)
    rows = pack(inputs, room, vocabulary)
    shape = (None, seq_length) if isinstance(seq_length, int) else tf.stack([-1, seq_length])
    padding = vocabulary.id_of(vocabulary.padding_token)
    lengths = rows.token_ids.row_lengths()
    return {
        "input_word_ids": rows.token_ids.to_tensor(padding, shape=shape),
        "input_mask": tf.sequence_mask(lengths, seq_length, dtype=tf.int32),
        "input_type_ids": rows.segment_ids.to_tensor(0, shape=shape),
    }


def special_tokens(vocabulary: Vocabulary) -> dict[str, int]:
    """Return the ids that TF Hub's `get_special_tokens_dict` names, and the vocabulary's size."""
    ids = {
        "vocab_size": len(vocabulary),
        "start_of_sequence_id": vocabulary.id_of(vocabulary.start_token),
        "end_of_segment_id": vocabulary.id_of(vocabulary.separator_token),
        "padding_id": vocabulary.id_of(vocabulary.padding_token),
    }
    if vocabulary.mask_token in vocabulary.tokens:
        ids["mask_id"] = vocabulary.id_of(vocabulary.mask_token)
    return ids
