"""The losses of the heads against their formulas in float64, in value and in gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from bertkit_plugins.heads.losses import (
    LabelwiseCrossentropy,
    OrdinalCrossentropy,
    PairwiseMargin,
    SingleLabelCrossentropy,
    StandardizedSquaredError,
)

Array = NDArray[Any]
nan = float("nan")
ROWS, LABELS = 14, 4


# --- the formulas, as the papers have them


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def labelwise(
    y: Array, z: Array, smoothing: float = 0.0, positive: float = 0.0, negative: float = 0.0,
    margin: float = 0.0, weight: Any = 1.0,
) -> Array:  # fmt: skip
    p = sigmoid(z)
    shifted = np.maximum(p - margin, 0)
    y = y * (1 - smoothing) + 0.5 * smoothing
    carried = -((1 - p) ** positive) * np.log(p)
    not_carried = -(shifted**negative) * np.log(1 - shifted)
    return y * np.asarray(weight) * carried + (1 - y) * not_carried


def single_label(
    y: Array, z: Array, smoothing: float = 0.0, gamma: float = 0.0, weights: Any = None,
    offsets: Any = 0.0,
) -> Array:  # fmt: skip
    z = z + np.asarray(offsets)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    losses = []
    for row, label in enumerate(y):
        if np.isnan(label):
            losses.append(nan)
            continue
        loss = 0.0
        for c in range(LABELS):
            target = (1 - smoothing) * (c == label) + smoothing / LABELS
            loss -= target * (1 - p[row, c]) ** gamma * np.log(p[row, c])
        losses.append(loss * (1.0 if weights is None else weights[int(label)]))
    return np.array(losses)


def ordinal(y: Array, z: Array, conditional: bool) -> Array:
    losses = []
    for rank, logits in zip(y, z, strict=True):
        loss = 0.0
        for k, p in enumerate(sigmoid(logits)):
            if not conditional or rank >= k:
                loss -= np.log(p if rank > k else 1 - p)
        losses.append(nan if np.isnan(rank) else loss / len(logits))
    return np.array(losses)


def squared(y: Array, z: Array, scale: float) -> Array:
    return ((y - z) / scale)[:, 0] ** 2


def pairwise(y: Array, z: Array, weights: Array, margin: float, scale: float) -> float:
    total, pairs = 0.0, 0
    for i in range(len(y)):
        for j in range(len(y)):
            if y[i, 0] > y[j, 0]:
                pairs += 1
                missed = margin - (z[i, 0] - z[j, 0]) / scale
                total += weights[i] * weights[j] * max(0.0, missed)
    return total / pairs if pairs else 0.0


# --- the cases


class Case(NamedTuple):
    loss: keras.losses.Loss
    rowwise: Callable[[Array, Array], Array]  # of targets and logits, NaN where not known
    kind: str


WEIGHTS = [0.5, 1.0, 3.0, 20.0]
CASES = {
    "cross-entropy of labels": Case(LabelwiseCrossentropy(), labelwise, "labels"),
    "smoothed labels": Case(
        LabelwiseCrossentropy(0.1), functools.partial(labelwise, smoothing=0.1), "labels"
    ),
    "focal labels": Case(
        LabelwiseCrossentropy(gamma_positive=2.0, gamma_negative=2.0),
        functools.partial(labelwise, positive=2, negative=2),
        "labels",
    ),
    "asymmetric": Case(
        LabelwiseCrossentropy(gamma_positive=1.0, gamma_negative=4.0, margin=0.05),
        functools.partial(labelwise, positive=1, negative=4, margin=0.05),
        "labels",
    ),
    "a margin alone": Case(
        LabelwiseCrossentropy(margin=0.3), functools.partial(labelwise, margin=0.3), "labels"
    ),
    "unequal powers": Case(
        LabelwiseCrossentropy(gamma_positive=0.5, gamma_negative=3.0),
        functools.partial(labelwise, positive=0.5, negative=3),
        "labels",
    ),
    "a small power": Case(  # whose gradient is infinite at the margin itself, a logit of 0
        LabelwiseCrossentropy(gamma_positive=0.5, gamma_negative=0.5, margin=0.5),
        functools.partial(labelwise, positive=0.5, negative=0.5, margin=0.5),
        "labels",
    ),
    "weighted labels": Case(
        LabelwiseCrossentropy(pos_weight=WEIGHTS),
        functools.partial(labelwise, weight=WEIGHTS),
        "labels",
    ),
    "all for labels": Case(
        LabelwiseCrossentropy(0.2, 1.5, 3.0, 0.1, 2.5),
        functools.partial(
            labelwise, smoothing=0.2, positive=1.5, negative=3, margin=0.1, weight=2.5
        ),
        "labels",
    ),
    "cross-entropy": Case(SingleLabelCrossentropy(), single_label, "ids"),
    "smoothed": Case(
        SingleLabelCrossentropy(0.1), functools.partial(single_label, smoothing=0.1), "ids"
    ),
    "focal": Case(
        SingleLabelCrossentropy(gamma=2.0), functools.partial(single_label, gamma=2), "ids"
    ),
    "focal of a small power": Case(
        SingleLabelCrossentropy(gamma=0.5), functools.partial(single_label, gamma=0.5), "ids"
    ),
    "weighted": Case(
        SingleLabelCrossentropy(weights=WEIGHTS),
        functools.partial(single_label, weights=WEIGHTS),
        "ids",
    ),
    "adjusted": Case(
        SingleLabelCrossentropy(offsets=[-0.1, -3.0, -7.0, -0.5]),
        functools.partial(single_label, offsets=[-0.1, -3.0, -7.0, -0.5]),
        "ids",
    ),
    "all for one label": Case(
        SingleLabelCrossentropy(0.2, 1.5, WEIGHTS),
        functools.partial(single_label, smoothing=0.2, gamma=1.5, weights=WEIGHTS),
        "ids",
    ),
    "CORN": Case(OrdinalCrossentropy(True), functools.partial(ordinal, conditional=True), "ranks"),
    "CORAL": Case(
        OrdinalCrossentropy(False), functools.partial(ordinal, conditional=False), "ranks"
    ),
    "squared": Case(StandardizedSquaredError(3.0), functools.partial(squared, scale=3.0), "value"),
}


def examples(kind: str, seed: int = 0) -> tuple[Array, Array]:
    """Return float32 targets, some of them not known, and logits."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.normal(size=(ROWS, 1 if kind == "value" else LABELS))
    if kind == "labels":
        targets = generator.integers(0, 2, logits.shape).astype("float32")
        targets[0, 1] = targets[3] = nan
    elif kind == "value":
        targets = generator.normal(size=logits.shape).astype("float32")
        targets[2] = nan
    else:  # ids of the logits, or ranks, of which there is one more
        targets = generator.integers(0, LABELS + (kind == "ranks"), ROWS).astype("float32")
        targets[2] = nan
    return targets, logits.astype("float32")


def value_and_gradient(
    loss: keras.losses.Loss, targets: Array, logits: Array, weights: Any = None
) -> tuple[float, Array]:
    with tf.GradientTape() as tape:
        watched = tf.constant(logits)
        tape.watch(watched)
        value = loss(tf.constant(targets), watched, weights)
    assert value.dtype == tf.float32
    return float(value), tape.gradient(value, watched).numpy()


def by_differences(function: Callable[[Array], float], logits: Array) -> Array:
    """Return the gradient by central differences in float64."""
    z = logits.astype("float64")
    gradient = np.zeros_like(z)
    for index in np.ndindex(*z.shape):
        step = np.zeros_like(z)
        step[index] = 1e-5
        gradient[index] = (function(z + step) - function(z - step)) / 2e-5
    return gradient


# --- tests


@pytest.mark.parametrize(
    ("name", "weighted"),
    [
        (name, weighted)
        for name, case in CASES.items()
        for weighted in ("", "rows", *(["labels"] if case.kind == "labels" else []))
    ],
)
def test_a_loss_is_its_formula_in_value_and_gradient(name: str, weighted: str) -> None:
    """What is not known adds 0, and stays in the number that the mean is divided by."""
    case = CASES[name]
    targets, logits = examples(case.kind)
    shape = {"": (), "rows": (ROWS,), "labels": targets.shape}[weighted]
    weights = np.random.default_rng(1).uniform(0, 3, shape).astype("float32") if shape else None

    def mean(z: Array) -> float:
        losses = np.nan_to_num(case.rowwise(targets.astype("float64"), z))
        factor: Any = 1.0 if weights is None else weights
        if losses.ndim > np.ndim(factor) > 0:
            factor = factor[:, None]
        return float((losses * factor).mean())

    value, gradient = value_and_gradient(case.loss, targets, logits, weights)
    assert value == pytest.approx(mean(logits.astype("float64")), rel=2e-6)
    np.testing.assert_allclose(gradient, by_differences(mean, logits), rtol=1e-4, atol=2e-7)
    unknown = np.isnan(targets)
    assert unknown.any() and not gradient[unknown].any()


@pytest.mark.parametrize("weighted", [False, True])
def test_a_margin_is_a_mean_over_pairs_in_value_and_gradient(weighted: bool) -> None:
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 5, (ROWS, 1)).astype("float32")  # with ties, which are no pair
    targets[2] = nan
    logits = (4 * generator.normal(size=(ROWS, 1))).astype("float32")
    weights = generator.uniform(0, 3, ROWS).astype("float32") if weighted else np.ones(ROWS)
    weights[5] = 0.0 if weighted else 1.0
    loss = PairwiseMargin(margin=1.5, scale=2.0)

    def reference(z: Array) -> float:
        return pairwise(targets, z, weights, 1.5, 2.0)

    given = weights if weighted else None
    value, gradient = value_and_gradient(loss, targets, logits, given)
    assert value == pytest.approx(reference(logits.astype("float64")), rel=2e-6)
    np.testing.assert_allclose(gradient, by_differences(reference, logits), rtol=1e-4, atol=2e-7)
    assert gradient[2] == 0
    assert not weighted or gradient[5] == 0


@pytest.mark.parametrize("targets", [[[3.0]], [[1.0], [1.0]], [[nan], [2.0]], [[nan], [nan]]])
def test_without_a_pair_a_margin_is_nothing(targets: Any) -> None:
    logits = np.array([[5.0], [-5.0]], "float32")[: len(targets)]
    value, gradient = value_and_gradient(
        PairwiseMargin(1.0, 1.0), np.array(targets, "float32"), logits
    )
    assert value == 0.0
    assert not gradient.any()


@pytest.mark.parametrize("size", [1e4, 40.0, 0.0])
@pytest.mark.parametrize("name", [*CASES, "margin"])
def test_a_loss_and_its_gradient_stay_finite(name: str, size: float) -> None:
    case = CASES.get(name, Case(PairwiseMargin(1.0, 1.0), squared, "value"))
    targets, logits = examples(case.kind)
    for signs in (np.sign(logits), -np.sign(logits), np.ones_like(logits), -np.ones_like(logits)):
        value, gradient = value_and_gradient(case.loss, targets, size * signs)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_far_off_logits_cost_as_much_as_they_are_far_off() -> None:
    targets = np.array([[1.0, 0.0]], "float32")
    wrong = np.array([[-1e4, 1e4]], "float32")
    for loss in (LabelwiseCrossentropy(), LabelwiseCrossentropy(0.0, 2.0, 2.0)):
        assert float(loss(targets, wrong)) == pytest.approx(1e4)
        assert float(loss(targets, -wrong)) == 0.0
    for one in (SingleLabelCrossentropy(), SingleLabelCrossentropy(gamma=2.0)):
        assert float(one(np.array([0.0]), wrong)) == pytest.approx(2e4)
        assert float(one(np.array([0.0]), -wrong)) == 0.0


@pytest.mark.parametrize(
    ("loss", "plain"),
    [
        (LabelwiseCrossentropy(0.0, 0.0, 0.0, 0.0, 1.0), LabelwiseCrossentropy()),
        (LabelwiseCrossentropy(pos_weight=[1.0] * LABELS), LabelwiseCrossentropy()),
        (SingleLabelCrossentropy(), keras.losses.SparseCategoricalCrossentropy(True)),
        (
            SingleLabelCrossentropy(0.0, 0.0, [1.0] * LABELS, [0.0] * LABELS),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        ),
        (LabelwiseCrossentropy(), keras.losses.BinaryCrossentropy(from_logits=True)),
    ],
)
def test_neutral_options_change_nothing(loss: Any, plain: Any) -> None:
    kind = "ids" if isinstance(loss, SingleLabelCrossentropy) else "labels"
    targets, logits = examples(kind)
    known = ~np.isnan(targets).reshape(ROWS, -1).any(axis=1)
    (one, gradient), (other, wanted) = (
        value_and_gradient(each, targets[known], logits[known]) for each in (loss, plain)
    )
    assert one == pytest.approx(other, abs=1e-7)
    np.testing.assert_allclose(gradient, wanted, atol=1e-8)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal_and_smoothed_losses_are_those_of_keras(gamma: float, smoothing: float) -> None:
    targets, logits = examples("ids")
    known = ~np.isnan(targets)
    ids, logits = targets[known].astype(int), logits[known]
    ours = SingleLabelCrossentropy(smoothing, gamma)
    theirs = keras.losses.CategoricalFocalCrossentropy(
        1.0, gamma, from_logits=True, label_smoothing=smoothing
    )
    one_hot = np.eye(LABELS)[ids]
    assert float(ours(ids, logits)) == pytest.approx(float(theirs(one_hot, logits)), rel=1e-5)
    if smoothing and gamma:
        return  # Keras takes the probability of a smoothed target
    labelwise = LabelwiseCrossentropy(smoothing, gamma, gamma)
    binary = keras.losses.BinaryFocalCrossentropy(
        gamma=gamma, from_logits=True, label_smoothing=smoothing
    )
    wanted = float(binary(one_hot, logits))
    assert float(labelwise(one_hot, logits)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_losses_of_parts_add_up(name: str) -> None:
    """So that replicas, of which each takes the mean of its rows, do what one device does."""
    case = CASES[name]
    targets, logits = examples(case.kind)
    half = ROWS // 2
    parts = [float(case.loss(targets[i : i + half], logits[i : i + half])) for i in (0, half)]
    assert np.mean(parts) == pytest.approx(float(case.loss(targets, logits)), rel=1e-6)


@pytest.mark.parametrize("name", [*CASES, "margin"])
def test_a_loss_is_saved_with_its_options(name: str) -> None:
    case = CASES.get(name, Case(PairwiseMargin(1.5, 2.0), squared, "value"))
    loaded = keras.losses.deserialize(keras.losses.serialize(case.loss))
    assert loaded.get_config() == case.loss.get_config()
    targets, logits = examples(case.kind)
    assert float(loaded(targets, logits)) == float(case.loss(targets, logits))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_loss_computes_in_float32(dtype: str) -> None:
    for case in CASES.values():
        targets, logits = examples(case.kind)
        half = tf.cast(logits, dtype)
        wanted = case.loss(targets, tf.cast(half, tf.float32))
        found = case.loss(targets, half)
        assert found.dtype == tf.float32
        assert float(found) == float(wanted)
