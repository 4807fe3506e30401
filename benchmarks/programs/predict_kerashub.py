"""Predict with KerasHub's BertTextClassifier, from raw strings to logits."""

from __future__ import annotations

import time

import keras_hub
import numpy as np

from benchmarks.programs.common import arguments, finish, read

given = arguments()
texts = np.array(read(given["texts"])[0])
classifier = keras_hub.models.BertTextClassifier.from_preset(
    given["model"],
    num_classes=2,
    preprocessor=keras_hub.models.BertTextClassifierPreprocessor.from_preset(
        given["model"], sequence_length=given["sequence_length"]
    ),
)
start = time.perf_counter()
classifier.predict(texts[: given["batch_size"]], batch_size=given["batch_size"], verbose=0)
first = time.perf_counter()
classifier.predict(texts, batch_size=given["batch_size"], verbose=0)
seconds = time.perf_counter() - first
finish(texts_per_second=len(texts) / seconds, first_batch=first - start)
