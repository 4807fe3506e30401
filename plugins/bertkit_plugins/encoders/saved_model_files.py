"""The files of a SavedModel without its values, as text that a config can hold."""

from __future__ import annotations

import base64
import lzma
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from bertkit.errors import EncoderError
from bertkit_plugins.encoders.saved_model_safety import check_harmless
from bertkit_plugins.encoders.tfhub_resolve import asset_path

# What saves and restores values; they travel as the weights of the model.
_SAVING = {"SaveV2", "RestoreV2", "MergeV2Checkpoints", "Save", "SaveSlices", "Restore",
           "RestoreSlice"}  # fmt: skip


def packed(folder: Path) -> dict[str, str]:
    """Return the graph and its assets, without what saves and restores values.

    Raises:
        EncoderError: it is of TensorFlow 1, or an asset of it is outside of its folder.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    if len(model.meta_graphs) != 1 or not model.meta_graphs[0].HasField("object_graph_def"):
        raise EncoderError(
            f"The SavedModel in {folder} is of TensorFlow 1: it has graphs and no objects, and "
            "cannot be fine-tuned. Take a later version of the same model, written for TF2."
        )
    meta = model.meta_graphs[0]
    meta.ClearField("saver_def")
    # The objects' functions are all that is called; they capture constants of the outer graph.
    constants = [node for node in meta.graph_def.node if node.op == "Const"]
    del meta.graph_def.node[:]
    meta.graph_def.node.extend(constants)
    kept = [f for f in meta.graph_def.library.function if not _SAVING & {n.op for n in f.node_def}]
    del meta.graph_def.library.function[:]
    meta.graph_def.library.function.extend(kept)
    contents = {"saved_model.pb": model.SerializeToString(deterministic=True)}
    for asset in meta.asset_file_def:
        content = asset_path(folder, asset.filename).read_bytes()
        contents[f"assets/{asset.filename}"] = content
    return {
        path: base64.b64encode(lzma.compress(content)).decode()
        for path, content in contents.items()
    }


def unpack(files: Mapping[str, str], folder: Path) -> None:
    """Write into a folder what `packed` returned.

    Raises:
        EncoderError: the files are damaged, or hold operations that no encoder needs.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorflow.core.protobuf import saved_model_pb2

    try:
        for name, text in files.items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"{name!r} leads out of it")
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(lzma.decompress(base64.b64decode(text)))
        content = (folder / "saved_model.pb").read_bytes()
        model = saved_model_pb2.SavedModel.FromString(content)
    except (ValueError, OSError, lzma.LZMAError, DecodeError) as error:
        raise EncoderError(
            f"The graph in the saved model is damaged ({error}). Make the encoder by the plugin "
            "'tfhub', from the model's own source."
        ) from error
    check_harmless(model, "the saved model")
