"""What several formats ask of a model."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from bertkit.bert import BertEncoder
from bertkit.classifier import BertClassifier
from bertkit.encoder import INPUT_NAMES
from bertkit.errors import ExportError


def plain_bert(model: BertClassifier, program: str) -> BertEncoder:
    """Return the encoder of a model, if it is a BERT as others have it.

    Raises:
        ExportError: it is another encoder, or a BERT of another kind.
    """
    encoder = model.encoder
    if not isinstance(encoder, BertEncoder):
        raise ExportError(
            f"The encoder is a {type(encoder).__name__}, and {program} takes the weights of a "
            "BertEncoder only. Choose the format tfhub, which takes any graph."
        )
    for reason, found in (
        ("has no segments", not encoder.num_segments),
        ("has embeddings of another width than its layers",
         encoder.embedding_size != encoder.hidden_size),
    ):  # fmt: skip
        if found:
            raise ExportError(
                f"The encoder {reason}, and {program}'s BERT cannot have it so. Choose the format "
                "tfhub."
            )
    return encoder


def in_float32(encoder: BertEncoder) -> BertEncoder:
    """Return a new encoder of the same sizes that computes in float32; its weights are random."""
    copy: BertEncoder = BertEncoder.from_config({**encoder.get_config(), "dtype": "float32"})
    return copy


def random_batch(encoder: BertEncoder, rows: int = 4, length: int = 24) -> dict[str, Any]:
    """Return random ids with padding, int32 (B, T) each, the same at every call."""
    generator = np.random.default_rng(0)
    shape = (rows, min(length, encoder.max_sequence_length))
    mask = np.arange(shape[1]) < generator.integers(1, shape[1] + 1, shape[0])[:, None]
    ids = generator.integers(0, encoder.vocabulary_size, shape)
    segments = generator.integers(0, encoder.num_segments, shape)
    return {
        name: keras.ops.convert_to_tensor(array * mask, "int32")
        for name, array in zip(INPUT_NAMES, (ids, segments, np.ones_like(ids)), strict=True)
    }
