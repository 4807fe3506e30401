"""How a SavedModel that encodes text is called, as its signatures tell, and its vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from bertkit.errors import EncoderError
from bertkit.tokenizer import Vocabulary

# Our name: TF Hub's, the oldest last.
_INPUTS = {
    "token_ids": ("input_word_ids", "input_ids"),
    "padding_mask": ("input_mask",),
    "segment_ids": ("input_type_ids", "segment_ids"),
}
_OUTPUTS = {"pooled": ("pooled_output", "default"), "sequence": ("sequence_output",)}
_RANKS = {"pooled": 2, "sequence": 3}


class Interface(NamedTuple):
    """How a SavedModel is called, as its signatures tell.

    Attributes:
        inputs: TF Hub's name and the spec of each input, by our name, in the order of the older
            positional list; none for a model that takes strings, (B,).
        positional: whether the inputs are that list, and no dict.
        signature: the serving signature to call; `None` to call the object itself.
        training: whether there is a `training` argument, for which both values were traced.
        outputs: the specs of "pooled", "sequence" and "layers" (a list), as far as they are
            returned.
    """

    inputs: dict[str, tuple[str, tf.TensorSpec]]
    positional: bool
    signature: str | None
    training: bool
    outputs: dict[str, Any]

    @property
    def texts(self) -> bool:
        """Whether the model takes strings."""
        return not self.inputs


def concrete_functions(loaded: Any) -> list[Any]:
    """Return the traces of the object's own call."""
    return list(getattr(loaded.__call__, "concrete_functions", ())) if callable(loaded) else []


def find_interface(loaded: Any, source: str) -> Interface:
    """Return how a SavedModel is called.

    Raises:
        EncoderError: it is no text encoder.
    """
    found = interfaces(loaded, named_outputs)
    if not found:
        raise EncoderError(
            f"The SavedModel in {source} has no text-encoder interface: it must take "
            "input_word_ids, input_mask and input_type_ids, (batch, tokens) each, or strings, and "
            f"return pooled_output or sequence_output. It has: {described(loaded)}. Give the "
            "encoder, not its preprocessor."
        )
    return found[0]


def interfaces(loaded: Any, read: Callable[[Any], dict[str, Any]]) -> list[Interface]:
    """Return the ways to call a SavedModel on text or token ids, the best first.

    Args:
        loaded: what `tf.saved_model.load` returned.
        read: from what a call returns to the outputs that are wanted, by name; none if it returns
            something else.
    """
    found: list[Interface] = []
    traced: set[Any] = set()
    for function in concrete_functions(loaded):
        arguments, keywords = function.structured_input_signature
        first = arguments[0] if arguments else None
        inputs, outputs = _named_inputs(first), read(function.structured_outputs)
        if outputs and (inputs or _is_texts(first)):
            traced.update(x for x in (*arguments[1:], keywords.get("training")) if type(x) is bool)
            found.append(Interface(inputs, not isinstance(first, Mapping), None, False, outputs))
    found = [interface._replace(training=traced == {True, False}) for interface in found]
    for name, function in getattr(loaded, "signatures", {}).items():
        inputs = _named_inputs(function.structured_input_signature[1])
        outputs = read(function.structured_outputs)
        if inputs and outputs:
            found.append(Interface(inputs, False, name, False, outputs))
    return found


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
    ids = isinstance(spec, tf.TensorSpec) and spec.dtype.is_integer and spec.shape.rank == 2
    return ids and spec.shape[0] is None


def _is_texts(spec: Any) -> bool:
    return isinstance(spec, tf.TensorSpec) and spec.dtype == tf.string and spec.shape.rank == 1


def named_outputs(value: Any) -> dict[str, Any]:
    """Return tensors or specs by our names; of what else there is, nothing."""
    named: dict[str, Any] = {}
    if isinstance(value, (tf.Tensor, tf.TensorSpec)):  # of a model that takes strings
        value = {"default": value}
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


def described(loaded: Any) -> str:
    """Return how a SavedModel can be called, for messages."""
    called = [f.structured_input_signature for f in concrete_functions(loaded)]
    lines = [f"a call of {' '.join(str(signature).split())}" for signature in called]
    lines += [f"the signature {name!r}" for name in getattr(loaded, "signatures", {})]
    return "; ".join(lines)[:300] or "nothing that can be called"


def read_vocabulary(loaded: Any) -> Vocabulary | None:
    """Read the SavedModel's own vocabulary and casing."""
    asset = getattr(loaded, "vocab_file", None)
    if asset is None:
        return None
    path = Path(asset.asset_path.numpy().decode())
    return Vocabulary.from_file(path, lowercase=bool(loaded.do_lower_case.numpy()))
