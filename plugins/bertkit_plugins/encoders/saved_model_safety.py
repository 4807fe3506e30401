"""Which graphs are not loaded: those with operations that reach out of the computation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bertkit.errors import EncoderError

# Files, streams, other processes and Python. No encoder computes with them, no tokenizer either,
# but for a table that is filled from an asset.
_HARMFUL = re.compile(
    "File|Dataset|Reader|Writer|^Save|^Restore|^MergeV2|PyFunc|^Print|^Debug|^Remote|Rpc|Summary"
    "|LMDB|^ImmutableConst|Checkpoint"
)
_ALLOWED = {"InitializeTableFromTextFile", "InitializeTableFromTextFileV2"}
# What TensorFlow writes into every SavedModel, and only loading and saving calls.
_TRACED = re.compile(r"__inference__traced_(save|restore)_\d+")


def check_harmless(model: Any, source: str | Path) -> None:
    """Check the functions of a SavedModel, which are all that is ever called.

    Args:
        model: the parsed `saved_model.pb`.
        source: what it is called in messages.

    Raises:
        EncoderError: one holds an operation that reaches out of the computation.
    """
    for meta in model.meta_graphs:
        functions = meta.graph_def.library.function
        called = {
            name
            for function in functions
            for node in function.node_def
            for value in node.attr.values()
            for name in (value.func.name, *(each.name for each in value.list.func))
        }
        found = {
            node.op
            for function in functions
            if function.signature.name in called or not _TRACED.fullmatch(function.signature.name)
            for node in function.node_def
            if _HARMFUL.search(node.op) and node.op not in _ALLOWED
        }
        if found:
            raise EncoderError(
                f"The graph in {source} holds {', '.join(sorted(found))}, which reaches out of "
                "the computation, and no encoder or tokenizer needs that. Do not use this model."
            )


def read_saved_model(folder: Path) -> Any:
    """Return the parsed `saved_model.pb` of a folder.

    Raises:
        EncoderError: it is none.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorflow.core.protobuf import saved_model_pb2

    try:
        return saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    except (OSError, DecodeError) as error:
        raise EncoderError(
            f"{folder}/saved_model.pb cannot be read ({error}). Take the model from its source "
            "again."
        ) from error
