"""Train with the Hugging Face Trainer, as its documentation of text classification does."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
import transformers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.programs.common import Timeline, arguments, finish, read

given = arguments()
timeline = Timeline()


class Clock(TrainerCallback):
    """Notes in the timeline what `train` does."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        timeline.note("fit")

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        timeline.note("epoch")

    def on_step_end(self, *_: Any, **__: Any) -> None:
        timeline.note_once("step")

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        timeline.note("trained")

    def on_evaluate(self, *_: Any, metrics: Any, **__: Any) -> None:
        timeline.note("validated", metrics.get("eval_accuracy"))

    def on_train_end(self, *_: Any, **__: Any) -> None:
        timeline.note("fitted")


def examples(path: str) -> list[dict[str, Any]]:
    """Return the tokenized rows of a file; padding is left to the collator."""
    texts, names = read(path)
    encoded = tokenizer(texts, truncation=True, max_length=given["sequence_length"])
    labels = [label_ids[name] for name in names]
    return [
        {**{key: encoded[key][row] for key in encoded}, "labels": label}
        for row, label in enumerate(labels)
    ]


def accuracy(prediction: Any) -> dict[str, float]:
    """Return the share of rows whose label is right."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


torch.set_num_threads(given["cores"])
transformers.set_seed(given["seed"])
tokenizer = AutoTokenizer.from_pretrained(given["model"])
label_ids = {name: index for index, name in enumerate(sorted({*read(given["train"])[1]}))}
model = AutoModelForSequenceClassification.from_pretrained(
    given["model"], num_labels=len(label_ids)
)
with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
        model,
        TrainingArguments(
            folder,
            num_train_epochs=given["epochs"],
            per_device_train_batch_size=given["batch_size"],
            per_device_eval_batch_size=given["batch_size"],
            learning_rate=given["learning_rate"],
            warmup_steps=0.1,  # below 1 it is the fraction of all steps
            weight_decay=0.01,
            max_grad_norm=0.0,  # none of the others clips
            bf16=given["bf16"],
            use_cpu=True,
            train_sampling_strategy=given["sampling"],
            eval_strategy="epoch",
            save_strategy="no",
            logging_strategy="epoch",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=given["seed"],
        ),
        train_dataset=examples(given["train"]),
        eval_dataset=examples(given["validation"]),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=accuracy,
        callbacks=[Clock()],
    )
    trainer.train()
    tested = trainer.evaluate(examples(given["test"]))
    trainer.save_model()
finish(
    events=timeline.events,
    rows=len(trainer.train_dataset),
    accuracy=tested["eval_accuracy"],
    versions={"torch": torch.__version__, "transformers": transformers.__version__},
)
