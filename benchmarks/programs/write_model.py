"""Write one untrained classifier for those who predict: for bertkit, and for Hugging Face."""

from __future__ import annotations

from pathlib import Path

import keras

import bertkit
from benchmarks.programs.common import arguments, finish
from bertkit.config import load_config, to_yaml
from bertkit.exporting import export

given = arguments()
keras.utils.set_random_seed(given["seed"])
model = bertkit.BertClassifier(
    bertkit.encoders.create("huggingface", source=given["source"]),
    bertkit.heads.create("binary", labels=["negative", "positive"]),
    bertkit.preprocessors.create("single_text", sequence_length=given["sequence_length"]),
)
bertkit.save(model, Path(given["folder"], "bertkit"), to_yaml(load_config([given["config"]])))
export(model, Path(given["folder"], "huggingface"), "huggingface")
finish()
