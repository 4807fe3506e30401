"""Tokenize with bertkit, as `fit` does it: raw strings to packed rows of ids."""

from __future__ import annotations

import hashlib

import numpy as np

import bertkit
from benchmarks.programs.common import arguments, finish, median_seconds, read
from bertkit.data.examples import Examples

given = arguments()
texts = np.array(read(given["texts"])[0], dtype=object)
encoder = bertkit.encoders.create("huggingface", source=given["source"])
preprocessor = bertkit.preprocessors.create(
    "single_text", sequence_length=given["sequence_length"]
).serving(encoder)
examples = Examples.from_texts(texts, preprocessor)
seconds = median_seconds(lambda: Examples.from_texts(texts, preprocessor), given["passes"])
ids = np.asarray(examples.token_ids, dtype="<i4")
finish(
    texts_per_second=len(texts) / seconds,
    tokens=len(ids),
    ids=hashlib.sha256(ids.tobytes() + examples.lengths.astype("<i8").tobytes()).hexdigest(),
)
