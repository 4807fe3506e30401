"""Train with bertkit: what `bertkit train` does, with a clock."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

import bertkit
from benchmarks.programs.common import Timeline, arguments, finish, read
from benchmarks.programs.keras_clock import Clock
from bertkit.classifier import BertClassifier
from bertkit.config import load_config

given = arguments()
timeline = Timeline()
fit: Any = BertClassifier.fit


def fit_by_the_clock(self: Any, *data: Any, callbacks: Any = (), **options: Any) -> Any:
    """`fit`, with one more callback."""
    return fit(self, *data, callbacks=[*callbacks, Clock(timeline)], **options)


BertClassifier.fit = fit_by_the_clock  # type: ignore[method-assign]
with tempfile.TemporaryDirectory() as folder:
    config = load_config(
        [given["config"]],
        [
            f"data.train={given['train']}",
            *(f"data.{split}={given[split] or 'null'}" for split in ("validation", "test")),
            f"training.epochs={given['epochs']}",
            f"training.batch_size={given['batch_size']}",
            f"training.learning_rate={given['learning_rate']}",
            f"training.precision={'mixed_bfloat16' if given['bf16'] else 'float32'}",
            f"preprocessor.sequence_length={given['sequence_length']}",
            f"seed={given['seed']}",
            f"output_dir={Path(folder, 'run')}",
            *given.get("settings", ()),
        ],
    )
    metrics = bertkit.run(config, verbose=2).metrics
finish(
    events=timeline.events,
    rows=len(read(given["train"])[0]),
    accuracy=metrics.get("test", {}).get("accuracy"),
    versions={
        "bertkit": bertkit.__version__, "tensorflow": tf.__version__, "keras": keras.__version__
    },
)  # fmt: skip
