"""Predict with `transformers.pipeline`, from raw strings to labels."""

from __future__ import annotations

import time

import torch
from transformers import pipeline

from benchmarks.programs.common import arguments, finish, read

given = arguments()
torch.set_num_threads(given["cores"])
texts, _ = read(given["texts"])
if given["sorted"]:
    texts.sort(key=len)
classify = pipeline(
    "text-classification", model=given["model"], device="cpu", batch_size=given["batch_size"]
)
options = {"truncation": True, "max_length": given["sequence_length"]}
start = time.perf_counter()
classify(texts[: given["batch_size"]], **options)
first = time.perf_counter()
predictions = classify(texts, **options)
seconds = time.perf_counter() - first
finish(
    texts_per_second=len(texts) / seconds,
    first_batch=first - start,
    labels="".join(prediction["label"][0] for prediction in predictions),
)
