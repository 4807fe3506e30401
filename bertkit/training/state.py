"""All that the next training step depends on, taken from a model and given back to another."""

from __future__ import annotations

import contextlib
import copy
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common.global_state import get_global_attribute, set_global_attribute
from keras.src.callbacks.monitor_callback import MonitorCallback
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR, global_seed_generator

from bertkit.errors import ArtifactError

_PLAIN = (bool, int, float, str, type(None))
_CONTAINERS: dict[str, type[Any]] = {"list": list, "tuple": tuple}


class _NotPlainError(Exception):
    """A value is neither a number, nor text, nor an array, nor made of these."""


class Packer:
    """Turns nested values into JSON, and arrays within them into named arrays.

    Attributes:
        arrays: the arrays, by name.
    """

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}

    def pack(self, value: Any) -> Any:
        """Return a value as JSON holds it; tuples, arrays and keys of any type come back."""
        if type(value) in _PLAIN:
            return value
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufcSU":
            name = f"array_{len(self.arrays)}"
            self.arrays[name] = np.asarray(value)
            return {"array": name}
        if type(value) is dict:
            return {"dict": [[self.pack(key), self.pack(part)] for key, part in value.items()]}
        for name, container in _CONTAINERS.items():
            if type(value) is container:
                return {name: [self.pack(part) for part in value]}
        raise _NotPlainError


def unpack(packed: Any, arrays: Any) -> Any:
    """Return what `Packer.pack` was given."""
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "array":
        array = arrays[content]
        return array if array.ndim else array[()]
    if kind == "dict":
        return {unpack(key, arrays): unpack(part, arrays) for key, part in content}
    return _CONTAINERS[kind](unpack(part, arrays) for part in content)


def variables_of(model: Any) -> list[Any]:
    """Return every variable that training writes: weights, seeds, optimizer, metrics, objective.

    Keras's own seed generator, which operations without a seed draw from, is among them once
    there is one.
    """
    generator = get_global_attribute(GLOBAL_SEED_GENERATOR)
    seeds = [generator.state] if generator is not None else []
    everything = [
        *model.variables,
        *([] if model.objective is None else model.objective.state),
        *model.optimizer.variables,
        *model.metrics_variables,
        *seeds,
    ]
    return list({id(variable): variable for variable in everything}.values())


def take_variables(model: Any, packer: Packer) -> Any:
    """Pack the values of all variables, with what tells whether others are like them."""
    return packer.pack([[_kind(variable), _numbers(variable)] for variable in variables_of(model)])


def give_variables(model: Any, packed: Any, arrays: Any) -> None:
    """Set all variables.

    Raises:
        ArtifactError: the model has others; nothing is set then.
    """
    values = unpack(packed, arrays)
    more = len(variables_of(model)) - len(values)
    if more == -1:
        global_seed_generator()  # makes the one that was drawn from
    elif more == 1:
        set_global_attribute(GLOBAL_SEED_GENERATOR, None)  # not drawn from yet then
    variables = variables_of(model)
    then, now = Counter(kind for kind, _ in values), Counter(map(_kind, variables))
    if [kind for kind, _ in values] != [_kind(variable) for variable in variables]:
        others = ", ".join([*(then - now), *(now - then)][:3]) or "their order"
        raise ArtifactError(
            f"The checkpoint is of another model: it has {len(values)} variables, this one "
            f"{len(variables)}, and they differ in {others}. Make the model, its optimizer and its "
            "metrics as they were, or begin anew."
        )
    for variable, (_, value) in zip(variables, values, strict=True):
        variable.assign(value)


def _kind(variable: Any) -> str:
    # Not the path, which counts the models of a process.
    return f"{keras.backend.standardize_dtype(variable.dtype)} {tuple(variable.shape)}"


def _numbers(variable: Any) -> np.ndarray:
    """Return the value of a variable; bfloat16, which NumPy does not have, as float32."""
    narrow = keras.backend.standardize_dtype(variable.dtype) == "bfloat16"
    return np.array(tf.cast(variable.value, tf.float32) if narrow else variable)


def take_random(packer: Packer) -> Any:
    """Pack the states of Python's, NumPy's and TensorFlow's global random numbers."""
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
    }
    # With TensorFlow's determinism switched on there is none unless someone has made it.
    with contextlib.suppress(RuntimeError):
        states["tensorflow"] = tf.random.get_global_generator().state.numpy()
    return packer.pack(states)


def give_random(packed: Any, arrays: Any) -> None:
    """Set the states of Python's, NumPy's and TensorFlow's global random numbers."""
    states = unpack(packed, arrays)
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    if "tensorflow" in states:
        with contextlib.suppress(RuntimeError):
            tf.random.get_global_generator().reset(states["tensorflow"])


def forms_of(callback: keras.callbacks.Callback) -> dict[str, Any]:
    """Return what a callback holds in a form that can be compared; `None` cannot be packed."""
    forms: dict[str, Any] = {}
    for name, value in vars(callback).items():
        packer = Packer()
        try:
            form = packer.pack(value)
            forms[name] = form, [array.tobytes() for array in packer.arrays.values()]
        except _NotPlainError:
            forms[name] = None
    return forms


def take_plain(callback: keras.callbacks.Callback) -> dict[str, Any]:
    """Return copies of what a callback holds, but for what cannot be packed."""
    forms = forms_of(callback)
    return {name: copy.deepcopy(vars(callback)[name]) for name in forms if forms[name] is not None}


def give_plain(callback: keras.callbacks.Callback, values: Mapping[str, Any]) -> None:
    """Let a callback hold again what `take_plain` returned, and nothing else that it would."""
    for name in take_plain(callback).keys() - values.keys():
        delattr(callback, name)
    for name, value in values.items():
        setattr(callback, name, copy.deepcopy(value))


def take_callbacks(
    callbacks: Sequence[keras.callbacks.Callback],
    fresh: Sequence[Mapping[str, Any]],
    packer: Packer,
) -> list[Any]:
    """Pack what callbacks have changed of themselves since training began.

    Open files and functions are left out, and so are arguments, which do not change.

    Args:
        callbacks: in their order.
        fresh: the `forms_of` each as training began.
        packer: what packs.
    """
    packed = []
    for callback, before in zip(callbacks, fresh, strict=True):
        changed = {
            name: packer.pack(getattr(callback, name))
            for name, form in forms_of(callback).items()
            if form is not None and before.get(name, ()) not in (None, form)
        }
        packed.append([type(callback).__name__, changed])
    return packed


def give_callbacks(
    callbacks: Iterable[keras.callbacks.Callback], packed: Iterable[Any], arrays: Any
) -> None:
    """Set what callbacks had changed; a state whose callback is gone is left out."""
    left = list(packed)
    for callback in callbacks:
        name = type(callback).__name__
        found = next((state for state in left if state[0] == name), None)
        if found is not None:
            left.remove(found)
            for attribute, value in found[1].items():
                setattr(callback, attribute, unpack(value, arrays))
            # Keras turns the sign of its `min_delta` once it has found out which way is better.
            if isinstance(callback, MonitorCallback) and callback.monitor_op is None:
                callback.min_delta = abs(callback.min_delta)
