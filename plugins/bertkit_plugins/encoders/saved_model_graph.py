"""A SavedModel with the text-encoder interface: its graph as plain data, and how it is called."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from bertkit.encoder import INPUT_NAMES
from bertkit_plugins.encoders.saved_model_files import packed, unpack
from bertkit_plugins.encoders.saved_model_interface import (
    Interface,
    concrete_functions,
    find_interface,
    named_outputs,
)
from bertkit_plugins.encoders.tfhub_resolve import load

BYTES = 256  # token ids of a model that takes strings: the bytes of UTF-8


class Graph:
    """A loaded SavedModel, and its files without the values of its variables.

    Args:
        loaded: what `tf.saved_model.load` returned.
        files: the files it needs, by path, each compressed (LZMA) and in base 64; ready for JSON.
        source: where it comes from, for messages.
        interface: how it is called; that of a text encoder if `None`.

    Raises:
        EncoderError: it has no text-encoder interface.
    """

    def __init__(
        self,
        loaded: Any,
        files: Mapping[str, str],
        source: str,
        interface: Interface | None = None,
    ) -> None:
        self.loaded = loaded
        self.files = dict(files)
        self.source = source
        self.interface = interface or find_interface(loaded, source)
        self.variables = _variables(loaded, self._functions())

    @classmethod
    def from_folder(cls, folder: Path) -> Graph:
        """Load a SavedModel with its values.

        Raises:
            EncoderError: it cannot be loaded, or is no text encoder.
        """
        return cls(load(folder), packed(folder), str(folder))

    @classmethod
    def from_files(cls, files: Mapping[str, str]) -> Graph:
        """Load what `files` was, with NaN for its values, and zeros for those that are no floats.

        Raises:
            EncoderError: the files are damaged, or hold operations that no encoder needs.
        """
        with tempfile.TemporaryDirectory() as folder:
            unpack(files, Path(folder))
            graph = cls(load(Path(folder), values=False), files, "a saved model")
        for variable in graph.variables:
            empty = float("nan") if variable.dtype.is_floating else 0
            variable.assign(tf.cast(tf.fill(variable.shape, empty), variable.dtype))
        return graph

    def write(self, folder: str, lowercase: bool) -> None:
        """Write the SavedModel with the values of now.

        Args:
            folder: where to.
            lowercase: the value of its `do_lower_case`, which no function reads.
        """
        # Assets are copied from where they were loaded from, which may be gone by now.
        with tempfile.TemporaryDirectory() as place:
            unpack(self.files, Path(place))
            copy = Graph(load(Path(place), values=False), self.files, self.source)
            flag = getattr(copy.loaded, "do_lower_case", None)
            if isinstance(flag, tf.Variable):
                flag.assign(lowercase)
            for theirs, ours in zip(copy.variables, self.variables, strict=True):
                theirs.assign(ours)
            signatures = dict(copy.loaded.signatures)
            tf.saved_model.save(copy.loaded, folder, signatures=signatures or None)

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
        # Sentence embeddings have no dropout, and no such argument.
        if not self.interface.training and not self.interface.texts:
            return "its call has no argument `training`"
        if not any(self.is_trainable(variable) for variable in self.variables):
            return "it has no trainable variables"
        return None

    def is_trainable(self, variable: tf.Variable) -> bool:
        """Return whether the graph's authors meant a variable to be trained."""
        named = getattr(self.loaded, "trainable_variables", None)
        meant = named is None or any(variable is other for other in named)
        return variable.dtype.is_floating and variable.trainable and meant

    def __call__(self, inputs: Mapping[str, tf.Tensor], training: bool) -> dict[str, Any]:
        """Run the graph.

        Args:
            inputs: `token_ids`, `segment_ids`, `padding_mask`, (B, T) each.
            training: whether dropout applies.

        Returns:
            "pooled" (B, H), "sequence" (B, T, H) and "layers", a list of (B, T, H), as far as
            the graph gives them.
        """
        time, shape = tf.shape(inputs["token_ids"])[1], inputs["token_ids"].shape
        named = named_outputs(self.run(inputs, training))

        def cut(x: tf.Tensor) -> tf.Tensor:
            x = x if self.length is None else x[:, :time]
            return tf.ensure_shape(x, (*shape, x.shape[-1]))

        if "sequence" in named:
            named["sequence"] = cut(named["sequence"])
        if "layers" in named:
            named["layers"] = [cut(x) for x in named["layers"]]
        return named

    def run(self, inputs: Mapping[str, tf.Tensor], training: bool) -> Any:
        """Return what the graph itself does; arguments as of a call."""
        interface, time = self.interface, tf.shape(inputs["token_ids"])[1]
        fed = {}
        for ours, (theirs, spec) in interface.inputs.items():
            value = tf.cast(inputs[ours], spec.dtype)
            if self.length is not None:
                value = tf.pad(value, ((0, 0), (0, self.length - time)))
            fed[theirs] = value
        if interface.signature is not None:
            return self.loaded.signatures[interface.signature](**fed)
        argument = list(fed.values()) if interface.positional else fed
        if interface.texts:
            argument = _texts(inputs["token_ids"], inputs["padding_mask"])
        options = {"training": bool(training)} if interface.training else {}
        return self.loaded(argument, **options)

    def captured(self) -> list[tf.Variable]:
        """Return the variables that a call reads."""
        return _variables(None, self._functions())

    def _functions(self) -> list[Any]:
        if self.interface.signature is not None:
            return [self.loaded.signatures[self.interface.signature]]
        return concrete_functions(self.loaded)


def _texts(ids: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Join UTF-8 bytes, (B, T), to strings, (B,)."""
    characters = tf.gather(tf.constant([bytes([value]) for value in range(BYTES)]), ids)
    return tf.strings.reduce_join(tf.where(mask > 0, characters, ""), axis=1)


def _variables(loaded: Any, functions: Sequence[Any]) -> list[tf.Variable]:
    """Return every variable of the object or its functions once, in a stable order."""
    every = [*getattr(loaded, "variables", ()), *(v for f in functions for v in f.variables)]
    return list({id(variable): variable for variable in every}.values())


def once(function: Callable[[], Any]) -> Any:
    """Return what a function returns on the first replica; outside of one no graph can be run."""
    strategy = tf.distribute.get_strategy()
    return tf.nest.map_structure(
        lambda x: strategy.experimental_local_results(x)[0], strategy.run(function)
    )


def random_inputs(graph: Graph) -> dict[str, tf.Tensor]:
    """Return random ids in rows with padding and two segments, int32 (B, T) each."""
    limits = (12, graph.length, graph.rows("position"))
    longest = min(limit for limit in limits if limit)
    lengths = np.maximum(longest - 2 * np.arange(4), 1)[:, None]  # (B, 1)
    place = np.arange(longest)
    limit = BYTES if graph.interface.texts else graph.rows("word") or 2
    ids = np.random.default_rng(0).integers(0, limit, (4, longest))
    columns = (ids, place >= lengths // 2, np.ones_like(ids))
    return {
        name: tf.constant(column * (place < lengths), tf.int32)
        for name, column in zip(INPUT_NAMES, columns, strict=True)
    }
