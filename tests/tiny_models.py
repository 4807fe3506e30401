"""Tiny models over the tiny vocabulary, and rows of text and labels for each head."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import bertkit
from bertkit.errors import InputError
from tests.tiny import VOCABULARY

TEXTS = [
    "a good film",
    "bad, bad film with a plot and an ending that never ends",
    "i love this one very very much",
    "boring",
    "no",
    "yes it was fun",
    "the cat sat on the mat",
    "terrible acting; the story is dull",
    "great!",
    "they like the phone",
    "we hate it",
]
PAIRS = list(zip(TEXTS, TEXTS[::-1], strict=True))
# Raw labels of TEXTS for each head that ships.
LABELS: dict[str, list[Any]] = {
    "binary": ["pos", "neg", "pos", "neg", "neg", "pos", "pos", "neg", "pos", "pos", "neg"],
    "multiclass": [2, 0, 2, 1, 1, 2, 1, 0, 2, 1, 0],
    "multi_label": [
        ["a"],
        ["b", "c"],
        ["a"],
        [],
        ["c"],
        ["a", "c"],
        ["b"],
        ["b"],
        ["a"],
        [],
        ["b"],
    ],
    "regression": [1.5, -2, 3, -1, 0, 2, 0.5, -3, 2.5, 1, -2.5],
}
HEADS = list(LABELS)


def tiny_encoder(vocabulary: bool | str = True, **sizes: Any) -> bertkit.BertEncoder:
    """Return a BERT of one layer of width 16 with random weights, and a vocabulary or its path."""
    encoder = bertkit.BertEncoder(
        **{
            "vocabulary_size": len(VOCABULARY),
            "hidden_size": 16,
            "num_layers": 1,
            "num_heads": 2,
            "intermediate_size": 32,
            "max_sequence_length": 40,
            "vocabulary": vocabulary if isinstance(vocabulary, str) else None,
            **sizes,
        }
    )
    if vocabulary is True:
        encoder.vocabulary = bertkit.Vocabulary(VOCABULARY)
    return encoder


def tiny_model(
    head: str = "binary",
    preprocessor: str | None = "single_text",
    *,
    cls: type[bertkit.BertClassifier] = bertkit.BertClassifier,
    adapted: bool = True,
    seed: int | None = 0,
    objective: bertkit.Objective | str | None = None,
    **sizes: Any,
) -> bertkit.BertClassifier:
    """Return a model that knows the labels of `LABELS`, unless it is not to."""
    if seed is not None:
        keras.utils.set_random_seed(seed)
    made = bertkit.heads.create(head)
    if adapted:
        made.adapt(LABELS[head])
    text = preprocessor and bertkit.preprocessors.create(preprocessor, sequence_length=32)
    return cls(tiny_encoder(**sizes), made, text, objective)


@functools.cache
def tensors() -> dict[str, np.ndarray]:
    """Return TEXTS as the encoder's inputs, NumPy int32 (N, T)."""
    preprocessor = bertkit.preprocessors.create("single_text", sequence_length=32)
    preprocessor.bind(tiny_encoder())
    return {name: x.numpy() for name, x in preprocessor(keras.ops.convert_to_tensor(TEXTS)).items()}


def weights_of(model: keras.Model) -> list[np.ndarray]:
    """Return copies of all weights and of the optimizer's state."""
    variables = list(model.variables)
    optimizer = getattr(model, "optimizer", None)
    variables += optimizer.variables if optimizer else []
    return [np.array(variable) for variable in variables]


def assert_same(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    """Assert that two lists of arrays are equal to the last bit."""
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def assert_refused(
    model: bertkit.BertClassifier, call: Callable[[bertkit.BertClassifier], Any], match: str
) -> None:
    """Assert an error of one line, more than one sentence, and a model as it was before."""
    before, config = weights_of(model), model.head.get_config()
    compiled, optimizer = model.compiled, getattr(model, "optimizer", None)
    with pytest.raises(InputError, match=match) as caught:
        call(model)
    message = str(caught.value)
    assert "\n" not in message and "\x1b" not in message
    assert 20 < len(message) < 420 and message.endswith(".")
    assert message.count(". ") + message.count("? ") + message.count("; ") >= 1, "no fix is named"
    assert_same(weights_of(model), before)
    assert model.head.get_config() == config
    assert (model.compiled, getattr(model, "optimizer", None)) == (compiled, optimizer)
