"""Out again: a model in the formats of others, written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bertkit.artifact import staged
from bertkit.classifier import BertClassifier
from bertkit.errors import ExportError, shown
from bertkit.exporting.huggingface import write_huggingface
from bertkit.exporting.kerashub import write_kerashub
from bertkit.exporting.tfhub import write_tfhub

# Writes a model into an empty folder, and says in sentences what is there and what is not.
Writer = Callable[[BertClassifier, Path, bool], list[str]]

FORMATS: dict[str, Writer] = {
    "tfhub": write_tfhub,
    "kerashub": write_kerashub,
    "huggingface": write_huggingface,
}


def export(
    model: Any, destination: str | Path, format: str, allow_approximation: bool = False
) -> list[str]:
    """Write a model in another program's format.

    Weights go out as float32, to the last bit as they are. What is written computes in float32,
    also where the model computes in mixed precision.

    Args:
        model: a `BertClassifier`; of a run, `bertkit.load(run)`.
        destination: a folder, which must not exist yet.
        format: "tfhub", two SavedModels: `encoder` and `preprocess`; "kerashub", a preset of
            KerasHub; "huggingface", a folder that transformers loads.
        allow_approximation: whether "kerashub" may be written where KerasHub computes another
            GELU or layer norm epsilon than the model.

    Returns:
        What was written and what the format has no place for, a sentence each.

    Raises:
        ExportError: there is no such format, or it cannot hold this model.
        ArtifactError: the destination exists, or cannot be written.
    """
    if format not in FORMATS:
        raise ExportError(
            f"There is no format {shown(format)}. Choose one of {', '.join(FORMATS)}."
        )
    if not isinstance(model, BertClassifier):
        raise ExportError(
            f"A {type(model).__name__} cannot be exported. Give a BertClassifier; of a run folder, "
            "bertkit.load(folder)."
        )
    if getattr(model.encoder, "lora", None) is not None:
        raise ExportError(
            "The encoder has LoRA weights, for which no format has a place. Call "
            "model.encoder.merge_lora() first."
        )
    with staged(destination) as stage:
        return FORMATS[format](model, stage, allow_approximation)
