"""What a batch does to a model: its gradients, layer by layer, and what the model receives."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from bertkit.encoder import INPUT_NAMES
from bertkit.guards import Hidden, check_trainable, hidden_variables
from bertkit.training.optimizer import inner_of

if TYPE_CHECKING:
    from bertkit.classifier import BertClassifier


@dataclass(frozen=True)
class LayerGradients:
    """What a batch does to the weights of one layer.

    Attributes:
        name: of the layer: "embeddings", "layer_0", …, "pooler", "head".
        parameters: how many numbers its weights are.
        trained: how many of them get a gradient.
        gradient_norm: the 2-norm of their gradient; `None` if there is none.
        update_ratio: the 2-norm of the change that the optimizer makes of it, divided by that of
            the weights; `None` if there is none.
        without: the paths of the weights that get no gradient, and why: "frozen", "not read by
            the head" or "the loss does not depend on it".
    """

    name: str
    parameters: int
    trained: int
    gradient_norm: float | None
    update_ratio: float | None
    without: Mapping[str, str]


@dataclass(frozen=True)
class Received:
    """A tensor as it comes to the model."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class GradientReport:
    """What `BertClassifier.gradient_report` returns; printed, it is a table.

    Attributes:
        layers: from the embeddings to the head.
        loss: of the batch, as the optimizer minimizes it.
        learning_rate: at which the updates are made.
        received: inputs, targets and sample weights.
        tokens: the pieces of the first row, padding included; empty without a vocabulary.
        segment_ids: of the first row.
        padding_mask: of the first row.
        hidden: variables that the model reads and does not list, so that they neither train nor
            are saved.
        notes: what else is to be known of these figures.
    """

    layers: tuple[LayerGradients, ...]
    loss: float
    learning_rate: float
    received: tuple[Received, ...]
    tokens: tuple[str, ...]
    segment_ids: tuple[int, ...]
    padding_mask: tuple[int, ...]
    hidden: tuple[Hidden, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return everything ready for JSON; a number that is not finite is "nan" or "inf"."""
        plain: dict[str, Any] = _jsonable(
            {**asdict(self), "hidden": [one._asdict() for one in self.hidden]}
        )
        return plain

    def __str__(self) -> str:
        from bertkit.console import gradients_as_text

        return gradients_as_text(self)


def gradient_report(
    model: BertClassifier, inputs: Mapping[str, Any], *targets: np.ndarray
) -> GradientReport:
    """Take one step on a batch, measure it, and undo it to the last bit.

    Args:
        model: built and compiled.
        inputs: the encoder's tensors.
        *targets: targets and, as far as given, sample weights.

    Raises:
        TrainingError: `trainable` was changed too late to count.
    """
    check_trainable(model, anew=model.train_function is None)
    if model.objective is not None:
        model.objective.begin(model)
    optimizer = _optimizer(model)
    notes: list[str] = []
    with undone([*model.variables, *model.metrics_variables, *optimizer.variables]):
        loss, scale, pairs, hidden = _backward(model, optimizer, inputs, targets, notes)
        norms = {id(weight): _norm(gradient) / scale for gradient, weight in pairs}
        before = {id(weight): np.array(weight) for _, weight in pairs}
        rate = float(np.asarray(optimizer.learning_rate))
        if pairs:
            _apply(optimizer, pairs, notes)
        changes = {
            id(weight): _norm(np.array(weight, "float64") - before[id(weight)])
            for _, weight in pairs
        }
    unread = {id(weight) for weight in model.encoder.unread(model.head.reads)}
    trained = {id(weight) for weight in model.trainable_weights}

    def reason(weight: Any) -> str:
        if id(weight) in unread:
            return "not read by the head"
        return "the loss does not depend on it" if id(weight) in trained else "frozen"

    def layer(name: str, weights: Sequence[Any]) -> LayerGradients:
        moved = [weight for weight in weights if id(weight) in norms]
        size = math.hypot(*(_norm(before[id(weight)]) for weight in moved))
        change = math.hypot(*(changes[id(weight)] for weight in moved))
        return LayerGradients(
            name=name,
            parameters=_count(weights),
            trained=_count(moved),
            gradient_norm=math.hypot(*(norms[id(weight)] for weight in moved)) if moved else None,
            update_ratio=(change / size if size else math.inf) if moved else None,
            without={w.path: reason(w) for w in weights if id(w) not in norms},
        )

    return GradientReport(
        layers=tuple(layer(name, weights) for name, weights in _layers(model).items()),
        loss=loss,
        learning_rate=rate,
        received=_received(inputs, targets),
        **_first_row(model, inputs),
        hidden=tuple(hidden),
        notes=tuple(notes),
    )


def _optimizer(model: BertClassifier) -> Any:
    """Return the model's optimizer or, if it has not begun yet, a copy that is built."""
    optimizer = model.optimizer
    if optimizer.built:
        return optimizer
    with model.distribute_strategy.scope():
        copy = copy_of(optimizer)
        copy.build(model.trainable_weights)
    return copy


def copy_of(optimizer: Any, **changes: Any) -> Any:
    """Return an optimizer that has not begun, of the same config but for some changes."""
    inner = inner_of(optimizer)
    copy = type(inner).from_config({**inner.get_config(), **changes})
    # What `exclude_from_weight_decay` was told is in no config.
    vars(copy).update({k: v for k, v in vars(inner).items() if k.startswith("_exclude_from")})
    if inner is optimizer:
        return copy
    config = {**optimizer.get_config(), "inner_optimizer": copy}
    return type(optimizer)(**config)


@contextlib.contextmanager
def undone(variables: Sequence[Any]) -> Iterator[None]:
    """Give variables back, after a block, the bits that they had."""
    values = [np.array(variable) for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


def _backward(
    model: BertClassifier,
    optimizer: Any,
    inputs: Mapping[str, Any],
    targets: Sequence[np.ndarray],
    notes: list[str],
) -> tuple[float, float, list[tuple[Any, Any]], list[Hidden]]:
    """Return the loss, its scale, the scaled gradients with their weights, and what is hidden.

    Where float16 overflows, the scale is halved, as the optimizer does after such a step.
    """
    y, sample_weight = (*targets, None)[:2]
    weights = model.trainable_weights
    first = None
    while True:
        with tf.GradientTape() as tape:
            loss, _ = model.training_loss(inputs, y, sample_weight, tape)
            scaled = optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, weights)
        pairs = [(g, w) for g, w in zip(gradients, weights, strict=True) if g is not None]
        scale = float(np.asarray(optimizer.scale_loss(tf.ones(()))))
        first = first or scale
        finite = all(math.isfinite(_norm(gradient)) for gradient, _ in pairs)
        if finite or scale <= 1 or optimizer is inner_of(optimizer):
            break
        optimizer.dynamic_scale.assign(scale / 2)
    if scale < first:
        notes.append(
            f"float16 overflows at the loss scale {first:g}, and such a step is skipped: these are "
            f"the figures at {scale:g}"
        )
    return float(loss), scale, pairs, hidden_variables(model, tape)


def _apply(optimizer: Any, pairs: list[tuple[Any, Any]], notes: list[str]) -> None:
    """Take the step; where gradients are accumulated, that after a group of equal batches."""
    inner = inner_of(optimizer)
    group = inner.gradient_accumulation_steps
    if group:
        done = int(np.asarray(inner._iterations))
        inner._iterations.assign(done - done % group + group - 1)
        inner._backend_reset_gradient_accumulators()
        pairs = [(tf.convert_to_tensor(gradient) * group, weight) for gradient, weight in pairs]
        notes.append(f"gradients are accumulated: the update is that of {group} such batches")
    optimizer.apply_gradients(pairs)


def _layers(model: BertClassifier) -> dict[str, list[Any]]:
    """Return the weights of each layer, from the embeddings to the head."""
    encoder, head = model.encoder, model.head
    places = [(layer.name, layer.weights) for layer in encoder.layers_in_order()]
    for weight in encoder.weights:  # what stands beside these layers, such as the pooler
        name, within, _ = weight.path.removeprefix(f"{encoder.path}/").partition("/")
        places.append((name if within else encoder.name, [weight]))
    places += [("head", head.weights), (model.name, model.weights)]
    layers: dict[str, list[Any]] = {}
    seen: set[int] = set()
    for name, weights in places:
        new = [weight for weight in weights if id(weight) not in seen]
        seen.update(map(id, new))
        if new:
            layers.setdefault(name, []).extend(new)
    return layers


def _received(inputs: Mapping[str, Any], targets: Sequence[np.ndarray]) -> tuple[Received, ...]:
    named = {**inputs, **dict(zip(("targets", "sample_weight"), targets, strict=False))}
    return tuple(
        Received(name, tuple(tensor.shape), tf.as_dtype(tensor.dtype).name)
        for name, tensor in named.items()
    )


def _first_row(model: BertClassifier, inputs: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Return the pieces, the segment ids and the mask of the first row, (T,) each."""
    ids, segment_ids, padding_mask = (
        tuple(np.asarray(inputs[name])[0].tolist()) if name in inputs else ()
        for name in INPUT_NAMES
    )
    vocabulary = model.encoder.vocabulary
    pieces = vocabulary.tokens if vocabulary else ()
    # A table of embeddings may have more rows than there are pieces.
    tokens = tuple(pieces[i] if i < len(pieces) else f"<{i}>" for i in ids) if pieces else ()
    return {"tokens": tokens, "segment_ids": segment_ids, "padding_mask": padding_mask}


def _norm(values: Any) -> float:
    """Return the 2-norm; of a sparse gradient, rows that are there twice are summed first."""
    dense = tf.convert_to_tensor(values) if isinstance(values, tf.IndexedSlices) else values
    return float(np.linalg.norm(np.asarray(dense).astype("float64").reshape(-1)))


def _count(weights: Sequence[Any]) -> int:
    return sum(math.prod(weight.shape) for weight in weights)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
