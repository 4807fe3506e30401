"""Predict with a saved model of bertkit, from raw strings to labels."""

from __future__ import annotations

import time

import bertkit
from benchmarks.programs.common import arguments, finish, read

given = arguments()
texts, _ = read(given["texts"])
if given["sorted"]:
    texts.sort(key=len)
model = bertkit.load(given["model"])
start = time.perf_counter()
model.classify(texts[: given["batch_size"]], batch_size=given["batch_size"])
first = time.perf_counter()
predictions = model.classify(texts, batch_size=given["batch_size"])
seconds = time.perf_counter() - first
finish(
    texts_per_second=len(texts) / seconds,
    first_batch=first - start,
    labels="".join(prediction["label"][0] for prediction in predictions),
)
