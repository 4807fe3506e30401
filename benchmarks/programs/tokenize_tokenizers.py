"""Tokenize with Hugging Face's `tokenizers`, in parallel."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import tokenizers

from benchmarks.programs.common import arguments, finish, median_seconds, read

given = arguments()
texts = read(given["texts"])[0]
tokenizer = tokenizers.Tokenizer.from_file(str(Path(given["model"], "tokenizer.json")))
tokenizer.no_padding()
tokenizer.enable_truncation(given["sequence_length"])
encode = getattr(tokenizer, given["method"])
rows = [row.ids for row in encode(texts)]
seconds = median_seconds(lambda: encode(texts), given["passes"])
ids = np.array([token for row in rows for token in row], dtype="<i4")
lengths = np.array([len(row) for row in rows], dtype="<i8")
finish(
    texts_per_second=len(texts) / seconds,
    tokens=len(ids),
    ids=hashlib.sha256(ids.tobytes() + lengths.tobytes()).hexdigest(),
    versions={"tokenizers": tokenizers.__version__},
)
