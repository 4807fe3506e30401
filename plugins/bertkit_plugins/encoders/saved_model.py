"""A SavedModel that is trained as the graph it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bertkit.encoder import Encoder
from bertkit.errors import EncoderError
from bertkit.guards import whole
from bertkit.pooling import POOLINGS, Pooling, PoolingName
from bertkit_plugins.encoders.saved_model_graph import BYTES, Graph, once, random_inputs

_LAYER = re.compile(r"(?:^|/)layer_(?:\._)?(\d+)/")
_EMBEDDINGS = re.compile(r"(?:^|/)[^/]*embedding")
_MAX_LENGTH = 512  # where the graph does not tell, as in every published BERT
_MAX_BYTES = 65536  # of a text, in graphs that take strings


class SavedModelEncoder(Encoder):
    """The graph of a SavedModel, all of whose variables are Keras weights.

    They are those of the graph, not copies, and lie in sublayers: `embeddings`, `layer_0` and so
    on by their names, `rest` for what has no such name, `pooler` for those that nothing but the
    pooled output depends on. The graph computes in float32, and its features are cast.

    The graph and its assets are a part of the config, so that a model comes back whole from its
    config alone; the values are not, and are NaN until weights are loaded.

    A graph that takes strings gets them as ids: the bytes of their UTF-8, as the preprocessor
    "text_bytes" makes them.

    Args:
        graph: a `Graph`, or its `files`.
        roles: for each variable whether the "encoder", nothing but the "pooler", or nothing that
            can be trained ("fixed") depends on it; `None` finds out by a gradient.
        pooling: what "pooled" is: "pooler" (the graph's own pooled output), or as in
            `bertkit.pooling.Pooling`; "layers" does without the embeddings.
        **kwargs: of a Keras layer. `trainable=False` uses a graph that cannot be fine-tuned.

    Raises:
        EncoderError: the graph cannot be fine-tuned, or does not give what the pooling reads.
    """

    def __init__(
        self,
        graph: Graph | Mapping[str, str],
        roles: Sequence[str] | None = None,
        pooling: PoolingName = "pooler",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        held = graph if isinstance(graph, Graph) else Graph.from_files(graph)
        object.__setattr__(self, "graph", held)  # Keras would track what is inside of it
        self.pooling = pooling
        self._read_sizes(held)
        self._check_pooling(held)
        reason = held.untrainable()
        if reason is not None and self.trainable:
            raise EncoderError(
                f"The SavedModel in {held.source} cannot be fine-tuned: {reason}. Give "
                "trainable=False to use it as it is, or take another version of the model."
            )
        if roles is None:
            roles = find_roles(held) if reason is None else ["fixed"] * len(held.variables)
        self.roles = list(roles)
        self.groups = self._grouped(held.variables)
        self.pooling_layer: Pooling | None = None
        if pooling != "pooler":
            # The mix of "layers" counts the embeddings, which the graph does not give.
            states = len(held.interface.outputs.get("layers", ()))
            self.pooling_layer = Pooling(
                pooling, max(states - 1, 0), name="pooling", dtype=self.dtype_policy
            )
        self.build((None, None))

    def _read_sizes(self, graph: Graph) -> None:
        outputs = graph.interface.outputs
        hidden = (outputs.get("sequence") or outputs["pooled"]).shape[-1]
        if hidden is None:
            raise EncoderError(
                f"The SavedModel in {graph.source} does not say how wide its outputs are. Export "
                "it anew, with a static last dimension."
            )
        self.hidden_size = int(hidden)
        if graph.interface.texts:
            self.vocabulary_size, self.num_segments = BYTES, 0
            self.max_sequence_length = _MAX_BYTES
            return
        largest = max((int(v.shape[0]) for v in graph.variables if v.shape.rank == 2), default=1)
        self.vocabulary_size = graph.rows("word") or largest
        self.max_sequence_length = graph.length or graph.rows("position") or _MAX_LENGTH
        segments = "segment_ids" in graph.interface.inputs
        self.num_segments = (graph.rows("type") or 2) if segments else 0

    def _check_pooling(self, graph: Graph) -> None:
        if self.pooling not in POOLINGS:
            raise EncoderError(f"pooling is {self.pooling!r}. Known: {', '.join(POOLINGS)}.")
        needed = {"pooler": "pooled", "layers": "layers"}.get(self.pooling, "sequence")
        given = graph.interface.outputs
        if needed not in given:
            raise EncoderError(
                f"pooling is {self.pooling!r}, and the SavedModel in {graph.source} returns only "
                f"{', '.join(given)}. Choose "
                f"{'another one' if 'pooled' not in given else 'the pooling pooler'}."
            )

    def _grouped(self, variables: Sequence[tf.Variable]) -> list[VariableGroup]:
        groups: dict[str, list[tuple[str, tf.Variable, bool]]] = {}
        read = {"encoder", "pooler"} if self.pooling == "pooler" else {"encoder"}
        for variable, role in zip(variables, self.roles, strict=True):
            name = variable.name.partition(":")[0]
            layer = _LAYER.search(name)
            if role == "pooler":
                group = "pooler"
            elif layer:
                group, name = f"layer_{int(layer[1])}", name[layer.end() :]
            else:
                group = "embeddings" if _EMBEDDINGS.search(name) else "rest"
            groups.setdefault(group, []).append((name, variable, role in read))
        # embeddings, layer_0, …, layer_10, …, rest, pooler
        order = sorted(
            groups,
            key=lambda name: (
                ("embeddings", "layer", "rest", "pooler").index(name.partition("_")[0]),
                int(name.partition("_")[2] or 0),
            ),
        )
        return [VariableGroup(groups[name], name=name, dtype="float32") for name in order]

    def build(self, input_shape: Any) -> None:
        for group in self.groups:
            group.build()
        if self.pooling_layer is not None:
            self.pooling_layer.build((None, self.hidden_size))
        self.built = True

    def call(
        self, inputs: dict[str, Any], reads: Sequence[str] = ("pooled",), training: bool = False
    ) -> dict[str, Any]:
        graph: Graph = self.graph
        mask = tf.cast(inputs["padding_mask"], tf.int32)  # (B, T)
        if "sequence" in reads and "sequence" not in graph.interface.outputs:
            raise EncoderError(
                f"The head reads the features of each token, and {self.name!r} gives only one "
                "vector a row. Take a head that reads 'pooled', or another encoder."
            )
        given = tf.nest.map_structure(
            lambda x: tf.cast(x, self.compute_dtype), graph(inputs, training)
        )
        features = {"mask": mask}
        if "sequence" in reads:
            features["sequence"] = given["sequence"]
        if "pooled" in reads:
            features["pooled"] = self._pooled(given, mask)
        return features

    def _pooled(self, given: dict[str, Any], mask: tf.Tensor) -> tf.Tensor:
        pooling = self.pooling_layer
        if pooling is None:
            return given["pooled"]
        states = given["layers"] if pooling.all_layers else [given["sequence"]]
        return pooling([x[:, 0] for x in states] if pooling.first_only else states, mask)

    def unread(self, reads: Sequence[str]) -> list[Any]:
        if "pooled" in reads:
            return []
        if self.pooling_layer is not None:
            return list(self.pooling_layer.weights)
        return [
            weight for group in self.groups if group.name == "pooler" for weight in group.weights
        ]

    def layers_in_order(self) -> list[keras.layers.Layer]:
        """Return the sublayers that hold the encoder's own variables, the embeddings first."""
        roles: dict[str, set[str]] = {}
        for variable, role in zip(self.graph.variables, self.roles, strict=True):
            for group in self.groups:
                if any(variable is other for _, other, _ in group.adopted):
                    roles.setdefault(group.name, set()).add(role)
        used = [group for group in self.groups if group.name != "pooler"]
        return [g for g in used if roles[g.name] != {"fixed"}] or used or [self]

    def write_saved_model(self, folder: str) -> list[str]:
        """Write the graph and its assets, with the values that its variables have now."""
        self.graph.write(folder, lowercase=self.vocabulary is None or self.vocabulary.lowercase)
        if self.pooling == "pooler":
            return []
        return [f"The pooling {self.pooling!r} is left out: pooled_output is the graph's own."]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "graph": self.graph.files,
            "roles": self.roles,
            "pooling": self.pooling,
        }


class VariableGroup(keras.layers.Layer):
    """Variables of a graph as Keras weights, sharing their storage.

    Args:
        adopted: name, variable, and whether it is to be trained.
    """

    def __init__(self, adopted: Sequence[tuple[str, tf.Variable, bool]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        object.__setattr__(self, "adopted", list(adopted))

    def build(self, input_shape: Any = None) -> None:
        # A keras.Variable made of a tf.Variable holds that very variable.
        self.held = [
            keras.Variable(variable, trainable=trained, name=name.replace("/", "_"))
            for name, variable, trained in self.adopted
        ]
        self.built = True


def find_roles(graph: Graph) -> list[str]:
    """Return the role of each variable.

    What the call does not read is "fixed", and what the pooled output depends on and the sequence
    does not is the "pooler". A gradient of zero proves nothing more than this: a gate may begin
    with zero, and a table may not hold the rows that are looked up here.
    """
    inputs = random_inputs(graph)
    trained = [v for v in graph.variables if graph.is_trainable(v)]
    read: set[int] = set()

    def reaches(name: str) -> list[tf.Tensor]:
        # One tape for each output: for a persistent one TensorFlow differentiates the gradient too.
        with tf.GradientTape() as tape:
            output = graph(inputs, training=True)[name]
            weights = np.random.default_rng(0).normal(size=output.shape)
            total = tf.reduce_sum(output * weights)
        read.update(id(whole(variable)) for variable in tape.watched_variables())
        return [_is_gradient(gradient) for gradient in tape.gradient(total, trained)]

    reached: dict[str, set[int]] = {}
    for name in ("pooled", "sequence"):
        if name in graph.interface.outputs:
            flags = once(partial(reaches, name))
            reached[name] = {id(v) for v, flag in zip(trained, flags, strict=True) if flag}
    pooler = reached.get("pooled", set()) - reached["sequence"] if "sequence" in reached else set()
    meant = {id(v) for v in trained if id(whole(v)) in read}
    return [
        "pooler" if id(v) in pooler else "encoder" if id(v) in meant else "fixed"
        for v in graph.variables
    ]


def _is_gradient(gradient: Any) -> tf.Tensor:
    """Return whether there is any; a function's own gradient has zeros for what is not read."""
    if isinstance(gradient, tf.IndexedSlices):
        gradient = gradient.values
    return tf.constant(False) if gradient is None else tf.reduce_any(gradient != 0)
