"""A trained model, saved, loaded in a fresh process without its sources, and trained on."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import bertkit
from bertkit.errors import InputError
from tests.processes import ROOT, run
from tests.tiny import VOCABULARY
from tests.tiny_models import HEADS, LABELS, PAIRS, TEXTS, tiny_encoder, tiny_model, weights_of

# What the fresh process runs; what it imports of bertkit is what the documentation names.
PROGRAM = """
import sys
sys.path.insert(0, {root!r})
import json, keras, numpy as np
from bertkit import BertClassifier
report = {{}}
for name, rows, labels in json.load(open("rows.json")):
    model = keras.models.load_model(name + ".keras")
    known = np.load(name + ".npz")
    answers = model.classify(rows)
    same = np.array_equal(model.predict(rows, verbose=0), known["logits"])
    step = int(model.optimizer.iterations)
    keras.utils.set_random_seed(7)
    for variable in model.variables:
        if "seed_generator" in variable.path:
            variable.assign([7, 0])
    history = model.fit(rows, labels, epochs=1, batch_size=4, verbose=0).history
    weights = [np.array(v) for v in [*model.variables, *model.optimizer.variables]]
    report[name] = {{
        "type": type(model).__module__ + "." + type(model).__name__,
        "predictions": same,
        "step": step,
        "losses": history,
        "differ": [i for i, w in enumerate(weights) if not np.array_equal(w, known[f"w{{i}}"])],
        "weights": len(weights),
        "answers": answers,
    }}
print("REPORT", json.dumps(report))
"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """For each model: what is true here, and what a fresh process reports."""
    folder = tmp_path_factory.mktemp("saved")
    path = folder / "vocab.txt"
    path.write_text("\n".join([*VOCABULARY, ""]), encoding="utf-8")
    here, rows_of = {}, {}
    for head in HEADS:
        rows: Any = PAIRS if head == "multiclass" else TEXTS
        keras.utils.set_random_seed(0)
        encoder = tiny_encoder(vocabulary=str(path), lowercase=True)
        preprocessor = "sentence_pair" if head == "multiclass" else "single_text"
        model = bertkit.BertClassifier(
            encoder, head, bertkit.preprocessors.create(preprocessor, sequence_length=24)
        )
        if head != "binary":  # which gets AdamW from `fit`
            optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
            model.compile(optimizer, run_eagerly=True)  # saves the time of tracing
        model.fit(rows, LABELS[head], batch_size=4, verbose=0)
        model.save(folder / f"{head}.keras")
        logits, step = model.predict(rows, verbose=0), int(model.optimizer.iterations)
        answers = model.classify(rows)
        keras.utils.set_random_seed(7)
        for variable in model.variables:
            if "seed_generator" in variable.path:  # where dropout stands is not saved by Keras
                variable.assign([7, 0])
        history = model.fit(rows, LABELS[head], epochs=1, batch_size=4, verbose=0).history
        weights = {f"w{index}": weight for index, weight in enumerate(weights_of(model))}
        np.savez(folder / f"{head}.npz", logits=logits, **weights)
        here[head] = {
            "type": "bertkit.classifier.BertClassifier",
            "predictions": True,
            "step": step,
            "losses": history,
            "differ": [],
            "weights": len(weights),
            "answers": json.loads(json.dumps(answers)),
        }
        rows_of[head] = (head, rows, LABELS[head])
    path.unlink()
    (folder / "rows.json").write_text(json.dumps(list(rows_of.values())))
    program = folder / "program.py"
    program.write_text(PROGRAM.format(root=str(ROOT)))
    output = run([sys.executable, program], folder)
    there = json.loads(output.split("REPORT", 1)[1])
    return {"folder": {"path": folder}} | {
        head: {"here": here[head], "there": there[head]} for head in HEADS
    }


@pytest.mark.parametrize("head", HEADS)
def test_predictions_and_further_training_are_the_same(reports: Any, head: str) -> None:
    here, there = reports[head]["here"], reports[head]["there"]
    assert there == here
    assert here["step"] == 3  # 11 rows in batches of 4
    assert here["weights"] > 20 and np.isfinite(here["losses"]["loss"]).all()


@pytest.mark.parametrize("head", HEADS)
def test_the_file_holds_no_code(reports: Any, head: str) -> None:
    with zipfile.ZipFile(reports["folder"]["path"] / f"{head}.keras") as file:
        names = file.namelist()
        config = file.read("config.json").decode()
    assert not [name for name in names if Path(name).suffix in (".pkl", ".pickle", ".py", ".npy")]
    assert [name for name in names if name.endswith("vocab.txt")]
    assert "lambda" not in config.lower() and "pickle" not in config.lower()
    assert str(reports["folder"]["path"]) not in config  # no path of this machine


def test_a_saved_model_that_does_not_know_its_labels(tmp_path: Path) -> None:
    tiny_model("multiclass", adapted=False).save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    with pytest.raises(InputError, match="does not know its labels"):
        model.predict(TEXTS)
    model.head.adapt(LABELS["multiclass"])
    assert model.predict(TEXTS, verbose=0).shape == (len(TEXTS), 3)


def test_what_is_frozen_stays_frozen(tmp_path: Path) -> None:
    model = tiny_model("binary")
    model.encoder.trainable = False
    model.encoder.transformer_layers[0].output_norm.trainable = True
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), run_eagerly=True)
    model.fit(TEXTS, LABELS["binary"], verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    names = [[v.path for v in m.trainable_weights] for m in (model, loaded)]
    assert names[0] == names[1] and len(names[0]) == 4
    before, table = weights_of(loaded), loaded.encoder.embeddings.token.numpy()
    loaded.fit(TEXTS, LABELS["binary"], verbose=0)
    changed = sum(not np.array_equal(a, b) for a, b in zip(before, weights_of(loaded), strict=True))
    assert changed >= 8  # four weights and their momentum
    assert np.array_equal(loaded.encoder.embeddings.token.numpy(), table)


def test_a_single_weight_that_is_frozen_stays_frozen(tmp_path: Path) -> None:
    model = tiny_model("binary")
    table = model.encoder.embeddings.token
    table.trainable = False
    model.fit(TEXTS, LABELS["binary"], verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    names = [[v.path for v in m.trainable_weights] for m in (model, loaded)]
    assert names[0] == names[1] and table.path not in names[1]
    before = table.numpy()
    loaded.fit(TEXTS, LABELS["binary"], verbose=0)
    np.testing.assert_array_equal(loaded.encoder.embeddings.token.numpy(), before)


def test_the_model_s_precision_is_the_encoder_s() -> None:
    encoder = tiny_encoder(dtype="mixed_float16")
    model = bertkit.BertClassifier(encoder, "binary")
    assert model.dtype_policy.name == "mixed_float16"
    message = "given dtype 'mixed_float16', but its encoder has 'float32'"
    with pytest.raises(InputError, match=message):
        bertkit.BertClassifier(tiny_encoder(), "binary", dtype="mixed_float16")


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_the_policy_travels(tmp_path: Path, policy: str) -> None:
    keras.config.set_dtype_policy(policy)
    try:
        model = tiny_model("binary")
    finally:
        keras.config.set_dtype_policy("float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.dtype_policy.name == loaded.encoder.dtype_policy.name == policy
    assert loaded.encoder.embeddings.dtype_policy.name == loaded.head.dtype_policy.name == policy
    np.testing.assert_array_equal(loaded(TEXTS), model(TEXTS))
