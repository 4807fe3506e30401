"""What the checkers share: making parts anew, tiny models, and how a failure is worded."""

from __future__ import annotations

import contextlib
import inspect
import json
import string
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bertkit.bert import BertEncoder
from bertkit.classifier import BertClassifier
from bertkit.encoder import INPUT_NAMES
from bertkit.registry import Registry
from bertkit.tokenizer import Vocabulary

MIXED = ("mixed_float16", "mixed_bfloat16")
FEATURES = ("pooled", "sequence")

_PIECES = (*string.ascii_lowercase, *string.digits)
_INNER = (f"##{piece}" for piece in _PIECES)
VOCABULARY = Vocabulary(
    ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *string.punctuation, *_PIECES, *_INNER)
)


def ensure(condition: Any, wanted: str) -> None:
    """Raise an `AssertionError` that says what was wanted, if `condition` is false."""
    if not condition:
        raise AssertionError(wanted)


@contextlib.contextmanager
def during(what: str) -> Iterator[None]:
    """Put `what` before the message of whatever is raised, and make it an `AssertionError`."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from error
    except Exception as error:
        raise AssertionError(f"{what}: raised {type(error).__name__}: {error}") from error


def run(checker: str, part: Any, checks: tuple[Callable[..., None], ...], *case: Any) -> None:
    """Run one check after another; each is named by its function."""
    for check in checks:
        with during(f"{checker}({name_of(part)}), {check.__name__.replace('_', ' ')}"):
            check(*case)


def name_of(part: Any) -> str:
    """Return the name of what was passed to a checker."""
    if isinstance(part, str):
        return repr(part)
    return str(getattr(part, "__name__", type(part).__name__))


def maker(
    registry: Registry[Any], base: type, part: Any, arguments: dict[str, Any]
) -> Callable[[], Any]:
    """Return a function that makes a part anew, from a part, a class or function, or a name."""
    if isinstance(part, base):
        ensure(not arguments, f"arguments {sorted(arguments)} go with a class or a name")
        return lambda: again(part)
    plugin = registry.get(part) if isinstance(part, str) else part

    def make() -> Any:
        made = plugin(**arguments)
        ensure(isinstance(made, base), f"it must make a bertkit.{base.__name__}, and made {made!r}")
        return made

    return make


def again(part: Any, **changes: Any) -> Any:
    """Return a part made from the config of another, as a saved model makes it."""
    return type(part)(**{**json.loads(json.dumps(part.get_config())), **changes})


def check_config(registry: Registry[Any], part: Any) -> None:
    """The part has a name, and a config in plain JSON, of all its arguments, that rebuilds it."""
    registry.name_of(type(part))
    config = part.get_config()
    try:
        json.dumps(config)
    except TypeError as error:
        raise AssertionError(f"`get_config` must return what JSON can write: {error}") from error
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    signature = inspect.signature(type(part).__init__)
    arguments = [p.name for p in list(signature.parameters.values())[1:] if p.kind in plain]
    missing = [name for name in arguments if name not in config]
    ensure(
        not missing,
        f"`get_config` must return every argument of the constructor, and lacks "
        f"{', '.join(missing)}: a saved model would come back without",
    )
    rebuilt = again(part).get_config()
    ensure(rebuilt == config, f"made again from the config {config}, it has the config {rebuilt}")


def close(first: Any, second: Any, wanted: str, tolerance: float = 1e-4) -> None:
    """The largest difference is within the tolerance."""
    first, second = (np.asarray(tf.cast(x, tf.float32)) for x in (first, second))
    off = float(np.abs(first - second).max(initial=0.0))
    ensure(off <= tolerance, f"{wanted}, and is off by {off:.2g}")


def all_reached(layer: keras.layers.Layer, gradients: list[Any]) -> None:
    """Each trainable weight has a gradient."""
    weights = zip(layer.trainable_weights, gradients, strict=True)
    cut_off = [weight.path for weight, gradient in weights if gradient is None]
    ensure(
        not cut_off,
        f"no gradient reaches {', '.join(cut_off)}: let the output depend on it by differentiable "
        "operations, or make it non-trainable",
    )


def tiny_encoder(**changes: Any) -> BertEncoder:
    """Return a BERT of one layer over `VOCABULARY`."""
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16}
    encoder = BertEncoder(len(VOCABULARY), **{**sizes, **changes})
    encoder.vocabulary = VOCABULARY
    return encoder


def random_tokens(lengths: list[int], size: int, segments: int = 1) -> dict[str, tf.Tensor]:
    """Return ids below `size` in rows of these lengths, padded with 0; int32, (B, T) each."""
    shape = (len(lengths), max(lengths))
    ids = np.random.default_rng(0).integers(0, size, shape)
    mask = np.arange(shape[1]) < np.array(lengths)[:, None]
    segment_ids = np.minimum(np.arange(shape[1]) // 2, segments - 1) * mask
    columns = (ids * mask, segment_ids, mask)
    return {name: tf.constant(x, tf.int32) for name, x in zip(INPUT_NAMES, columns, strict=True)}


def saved_and_loaded(model: BertClassifier, inputs: dict[str, tf.Tensor]) -> BertClassifier:
    """Save a model and load it: its predictions are the same to the last bit."""
    before = model.predict(inputs, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        model.save(path)
        loaded: BertClassifier = keras.models.load_model(path)
    after = loaded.predict(inputs, verbose=0)
    off = float(np.abs(before - after).max())
    ensure(
        np.array_equal(before, after),
        f"saved and loaded, the model must predict the same to the last bit, and is {off:.2g} off: "
        "let the constructor make every layer and weight from the config alone",
    )
    return loaded
