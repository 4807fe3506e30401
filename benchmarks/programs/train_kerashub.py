"""Train KerasHub's BertTextClassifier, as its documentation does: raw strings into `fit`."""

from __future__ import annotations

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from benchmarks.programs.common import Timeline, arguments, finish, read
from benchmarks.programs.keras_clock import Clock

given = arguments()
timeline = Timeline()
keras.utils.set_random_seed(given["seed"])
keras.config.set_dtype_policy("mixed_bfloat16" if given["bf16"] else "float32")
label_ids = {name: index for index, name in enumerate(sorted({*read(given["train"])[1]}))}


def examples(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Return texts and label ids of a file."""
    texts, names = read(path)
    return np.array(texts), np.array([label_ids[name] for name in names])


options = {}
if given["sequence_length"] is not None:  # else KerasHub's own default
    options["preprocessor"] = keras_hub.models.BertTextClassifierPreprocessor.from_preset(
        given["model"], sequence_length=given["sequence_length"]
    )
classifier = keras_hub.models.BertTextClassifier.from_preset(
    given["model"], num_classes=len(label_ids), **options
)
texts, labels = examples(given["train"])
steps = given["epochs"] * -(-len(texts) // given["batch_size"])
classifier.compile(
    optimizer=keras.optimizers.AdamW(
        keras.optimizers.schedules.PolynomialDecay(given["learning_rate"], steps, 0.0),
        weight_decay=0.01,
    ),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
classifier.fit(
    texts,
    labels,
    batch_size=given["batch_size"],
    epochs=given["epochs"],
    validation_data=examples(given["validation"]),
    callbacks=[Clock(timeline)],
    verbose=2,
)
finish(
    events=timeline.events,
    rows=len(texts),
    versions={
        "keras-hub": keras_hub.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    },
)
