"""A SavedModel with the text-encoder interface: its graph as plain data, and how it is called."""

from __future__ import annotations

import base64
import lzma
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from bertkit.encoder import INPUT_NAMES
from bertkit.errors import EncoderError
from bertkit_plugins.encoders.tfhub_resolve import load

# Our name: TF Hub's, the oldest last.
_INPUTS = {
    "token_ids": ("input_word_ids", "input_ids"),
    "padding_mask": ("input_mask",),
    "segment_ids": ("input_type_ids", "segment_ids"),
}
_OUTPUTS = {"pooled": ("pooled_output", "default"), "sequence": ("sequence_output",)}
_RANKS = {"pooled": 2, "sequence": 3}
# Operations on files, and Python: no encoder computes with them, and a model could do harm.
_SAVING = {"SaveV2", "RestoreV2", "MergeV2Checkpoints", "Save", "SaveSlices", "Restore",
           "RestoreSlice"}  # fmt: skip
_FORBIDDEN = {*_SAVING, "ReadFile", "WriteFile", "MatchingFiles", "PyFunc", "PyFuncStateless",
              "EagerPyFunc", "WholeFileReaderV2", "PrintV2", "DebugIdentityV2",
              "RemoteCall"}  # fmt: skip


class Interface(NamedTuple):
    """How a SavedModel is called, as its signatures tell.

    Attributes:
        inputs: TF Hub's name and the spec of each input, by our name, in the order of the older
            positional list.
        positional: whether the inputs are that list, and no dict.
        signature: the serving signature to call; `None` to call the object itself.
        training: whether there is a `training` argument.
        outputs: the specs of "pooled", "sequence" and "layers" (a list), as far as they are
            returned.
    """

    inputs: dict[str, tuple[str, tf.TensorSpec]]
    positional: bool
    signature: str | None
    training: bool
    outputs: dict[str, Any]


class Graph:
    """A loaded SavedModel, and its files without the values of its variables.

    Args:
        loaded: what `tf.saved_model.load` returned.
        files: the files it needs, by path, each compressed (LZMA) and in base 64; ready for JSON.
        source: where it comes from, for messages.

    Raises:
        EncoderError: it has no text-encoder interface.
    """

    def __init__(self, loaded: Any, files: Mapping[str, str], source: str) -> None:
        self.loaded = loaded
        self.files = dict(files)
        self.source = source
        self.interface = _interface(loaded, source)
        self.variables = _variables(loaded, self._functions())

    @classmethod
    def from_folder(cls, folder: Path) -> Graph:
        """Load a SavedModel with its values.

        Raises:
            EncoderError: it cannot be loaded, or is no text encoder.
        """
        return cls(load(folder), _packed(folder), str(folder))

    @classmethod
    def from_files(cls, files: Mapping[str, str]) -> Graph:
        """Load what `files` was, with NaN for its values, and zeros for those that are no floats.

        Raises:
            EncoderError: the files are damaged, or hold operations that no encoder needs.
        """
        with tempfile.TemporaryDirectory() as folder:
            _unpack(files, Path(folder))
            graph = cls(load(Path(folder), values=False), files, "a saved model")
        for variable in graph.variables:
            empty = float("nan") if variable.dtype.is_floating else 0
            variable.assign(tf.cast(tf.fill(variable.shape, empty), variable.dtype))
        return graph

    @property
    def length(self) -> int | None:
        """The only length of sequences, in tokens, that the graph takes; `None` for any."""
        lengths = {spec.shape[1] for _, spec in self.interface.inputs.values()} - {None}
        return min(lengths, default=None)

    def rows(self, table: str) -> int | None:
        """Return how many rows the "word", "position" or "type" embedding has, if it is found."""
        pattern = re.compile(rf"(?:^|/){table}_embeddings?\b")
        found = [v for v in self.variables if v.shape.rank == 2 and pattern.search(v.name)]
        return int(found[0].shape[0]) if found else None

    def untrainable(self) -> str | None:
        """Return why the graph cannot be fine-tuned, or `None` if it can."""
        if self.interface.signature is not None:
            return "it can be called by a signature only"
        if not self.interface.training:
            return "its call has no argument `training`"
        if not any(self.is_trainable(variable) for variable in self.variables):
            return "it has no trainable variables"
        return None

    def is_trainable(self, variable: tf.Variable) -> bool:
        """Return whether the graph's authors meant a variable to be trained."""
        named = getattr(self.loaded, "trainable_variables", None)
        meant = variable.trainable if named is None else any(variable is other for other in named)
        return variable.dtype.is_floating and meant

    def __call__(self, inputs: Mapping[str, tf.Tensor], training: bool) -> dict[str, Any]:
        """Run the graph.

        Args:
            inputs: `token_ids`, `segment_ids`, `padding_mask`, (B, T) each.
            training: whether dropout applies.

        Returns:
            "pooled" (B, H), "sequence" (B, T, H) and "layers", a list of (B, T, H), as far as
            the graph gives them.
        """
        interface, time = self.interface, tf.shape(inputs["token_ids"])[1]
        fed = {}
        for ours, (theirs, spec) in interface.inputs.items():
            value = tf.cast(inputs[ours], spec.dtype)
            if self.length is not None:
                value = tf.pad(value, ((0, 0), (0, self.length - time)))
            fed[theirs] = value
        if interface.signature is not None:
            outputs = self.loaded.signatures[interface.signature](**fed)
        else:
            argument = list(fed.values()) if interface.positional else fed
            options = {"training": bool(training)} if interface.training else {}
            outputs = self.loaded(argument, **options)
        named = _named_outputs(outputs)
        shape = inputs["token_ids"].shape

        def cut(x: tf.Tensor) -> tf.Tensor:
            x = x if self.length is None else x[:, :time]
            return tf.ensure_shape(x, (*shape, x.shape[-1]))

        if "sequence" in named:
            named["sequence"] = cut(named["sequence"])
        if "layers" in named:
            named["layers"] = [cut(x) for x in named["layers"]]
        return named

    def captured(self) -> list[tf.Variable]:
        """Return the variables that a call reads."""
        return _variables(None, self._functions())

    def _functions(self) -> list[Any]:
        if self.interface.signature is not None:
            return [self.loaded.signatures[self.interface.signature]]
        return _concrete_functions(self.loaded)


def _concrete_functions(loaded: Any) -> list[Any]:
    """Return the traces of the object's own call."""
    return list(getattr(loaded.__call__, "concrete_functions", ())) if callable(loaded) else []


def _interface(loaded: Any, source: str) -> Interface:
    found: list[Interface] = []
    for function in _concrete_functions(loaded):
        arguments, keywords = function.structured_input_signature
        inputs = _named_inputs(arguments[0] if arguments else keywords.get("inputs"))
        outputs = _named_outputs(function.structured_outputs)
        if inputs and outputs:
            training = "training" in keywords or any(type(x) is bool for x in arguments[1:])
            positional = not isinstance(arguments[0], Mapping)
            found.append(Interface(inputs, positional, None, training, outputs))
    for name, function in getattr(loaded, "signatures", {}).items():
        inputs = _named_inputs(function.structured_input_signature[1])
        outputs = _named_outputs(function.structured_outputs)
        if inputs and outputs:
            found.append(Interface(inputs, False, name, False, outputs))
    if not found:
        raise EncoderError(
            f"The SavedModel in {source} has no text-encoder interface: it must take "
            "input_word_ids, input_mask and input_type_ids, (batch, tokens) each, and return "
            f"pooled_output or sequence_output. It has: {_described(loaded)}. Give the encoder, "
            "not its preprocessor."
        )
    return found[0]


def _named_inputs(value: Any) -> dict[str, tuple[str, tf.TensorSpec]]:
    """Return the specs of the inputs by our names; nothing if they are others."""
    if isinstance(value, (list, tuple)) and len(value) == 3:
        value = {names[0]: spec for names, spec in zip(_INPUTS.values(), value, strict=True)}
    if not isinstance(value, Mapping):
        return {}
    inputs = {
        ours: (name, value[name])
        for ours, names in _INPUTS.items()
        for name in names
        if name in value and _is_ids(value[name])
    }
    whole = len(inputs) == len(value) and "token_ids" in inputs and "padding_mask" in inputs
    return inputs if whole else {}


def _is_ids(spec: Any) -> bool:
    return isinstance(spec, tf.TensorSpec) and spec.dtype.is_integer and spec.shape.rank == 2


def _named_outputs(value: Any) -> dict[str, Any]:
    """Return tensors or specs by our names; of what else there is, nothing."""
    named: dict[str, Any] = {}
    if isinstance(value, (list, tuple)):  # of the older interface: (pooled, sequence)
        for name, rank in _RANKS.items():
            fitting = [x for x in value if x.shape.rank == rank]
            if fitting:
                named[name] = fitting[0]
        return named
    if not isinstance(value, Mapping):
        return named
    for ours, names in _OUTPUTS.items():
        for name in names:
            if ours not in named and name in value and value[name].shape.rank == _RANKS[ours]:
                named[ours] = value[name]
    if isinstance(value.get("encoder_outputs"), (list, tuple)) and named:
        named["layers"] = list(value["encoder_outputs"])
    return named


def _described(loaded: Any) -> str:
    called = [f.structured_input_signature for f in _concrete_functions(loaded)]
    lines = [f"a call of {' '.join(str(signature).split())}" for signature in called]
    lines += [f"the signature {name!r}" for name in getattr(loaded, "signatures", {})]
    return "; ".join(lines)[:300] or "nothing that can be called"


def _variables(loaded: Any, functions: Sequence[Any]) -> list[tf.Variable]:
    """Return every variable of the object or its functions once, in a stable order."""
    every = [*getattr(loaded, "variables", ()), *(v for f in functions for v in f.variables)]
    return list({id(variable): variable for variable in every}.values())


def random_inputs(graph: Graph) -> dict[str, tf.Tensor]:
    """Return random ids in rows with padding and two segments, int32 (B, T) each."""
    limits = (12, graph.length, graph.rows("position"))
    longest = min(limit for limit in limits if limit)
    lengths = np.maximum(longest - 2 * np.arange(4), 1)[:, None]  # (B, 1)
    place = np.arange(longest)
    ids = np.random.default_rng(0).integers(0, graph.rows("word") or 2, (4, longest))
    columns = (ids, place >= lengths // 2, np.ones_like(ids))
    return {
        name: tf.constant(column * (place < lengths), tf.int32)
        for name, column in zip(INPUT_NAMES, columns, strict=True)
    }


def _packed(folder: Path) -> dict[str, str]:
    """Return the graph and its assets, without what saves and restores values."""
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    if len(model.meta_graphs) != 1 or not model.meta_graphs[0].HasField("object_graph_def"):
        raise EncoderError(
            f"The SavedModel in {folder} is of TensorFlow 1: it has graphs and no objects, and "
            "cannot be fine-tuned. Take a later version of the same model, written for TF2."
        )
    meta = model.meta_graphs[0]
    meta.ClearField("saver_def")
    del meta.graph_def.node[:]  # the objects' functions are all that is called
    kept = [f for f in meta.graph_def.library.function if not _SAVING & {n.op for n in f.node_def}]
    del meta.graph_def.library.function[:]
    meta.graph_def.library.function.extend(kept)
    contents = {"saved_model.pb": model.SerializeToString(deterministic=True)}
    for asset in meta.asset_file_def:
        path = f"assets/{asset.filename}"
        contents[path] = (folder / path).read_bytes()
    return {
        path: base64.b64encode(lzma.compress(content)).decode()
        for path, content in contents.items()
    }


def _unpack(files: Mapping[str, str], folder: Path) -> None:
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
    for meta in model.meta_graphs:
        nodes = [*meta.graph_def.node]
        nodes += [node for f in meta.graph_def.library.function for node in f.node_def]
        found = _FORBIDDEN & {node.op for node in nodes}
        if found:
            raise EncoderError(
                f"The graph in the saved model holds {', '.join(sorted(found))}, which no encoder "
                "needs and which can do harm. Do not use this model."
            )
