"""`check_head`: does a head keep its contract?"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bertkit.classifier import BertClassifier
from bertkit.errors import BertkitError
from bertkit.head import Head
from bertkit.registry import heads
from bertkit.testing.common import (
    FEATURES,
    MIXED,
    VOCABULARY,
    again,
    check_config,
    during,
    ensure,
    maker,
    name_of,
    random_tokens,
    run,
    saved_and_loaded,
    tiny_encoder,
)
from bertkit.testing.head_case import STEPS, TOKENS, HeadCase, taken_labels


def check_head(
    head: Head | Callable[..., Head] | str, labels: Sequence[Any] | None = None, **arguments: Any
) -> None:
    """Check a head against the contract of `bertkit.Head`.

    That its config rebuilds it, labels included; shapes and types of targets and logits; that it
    tells of which tasks a row has labels; that missing labels are refused, or add nothing if it has
    `ignore_missing`; that a gradient reaches every weight and training lowers the loss; that what
    training leads to is decoded to the labels, and is better by loss and metrics; that metrics add
    up over batches and agree with `report`; that predictions and report are ready for JSON; weights
    of rows and of labels; no rows and one row; mixed precision; saving and loading.

    Args:
        head: a head, its class, or the name it is registered under.
        labels: two or more raw labels, one a row, as they stand in your data; examples that the
            head takes if `None`.
        **arguments: of the constructor, if `head` is a class or a name.

    Raises:
        AssertionError: the head breaks the contract.
    """
    with during(f"check_head({name_of(head)}), choice of examples"):
        make = maker(heads, Head, head, arguments)
        case = HeadCase(make, taken_labels(make) if labels is None else list(labels))
    checks = (config, shapes, tasks, refusals, training, decoding, report, metrics, sample_weights,
              missing_labels, class_weights, few_rows, mixed_precision, saving)  # fmt: skip
    run("check_head", head, checks, case)


def config(case: HeadCase) -> None:
    head = case.adapted()
    ensure(head.adapted, "`adapted` must be True once `adapt` has seen labels")
    check_config(heads, head)
    rebuilt = again(head)
    ensure(rebuilt.adapted, "`get_config` must return what `adapt` learned")
    ensure(
        np.array_equal(
            rebuilt.encode_labels(case.labels), head.encode_labels(case.labels), equal_nan=True
        ),
        "made again from its config, the head gives the same labels other targets",
    )


def shapes(case: HeadCase) -> None:
    head = case.built()
    ensure(
        isinstance(head.reads, tuple) and head.reads and set(head.reads) <= set(FEATURES),
        f"`reads` must be a tuple of {FEATURES}, and is {head.reads!r}",
    )
    _check_targets(head.encode_labels(case.labels), len(case.labels))
    features = case.features(head.reads)
    outputs = head(features, training=False)
    wanted = (len(case.labels), head.num_outputs)
    ensure(
        tuple(outputs.shape) == wanted and outputs.dtype.is_floating,
        f"`call` must return floats of shape (rows, num_outputs) = {wanted}, and returns "
        f"{outputs.dtype.name} {tuple(outputs.shape)}",
    )
    ensure(
        np.array_equal(outputs, head(features, training=False)),
        "with training=False, the same features must give the same outputs",
    )


def tasks(case: HeadCase) -> None:
    head = case.adapted()
    names = head.tasks_of(head.get_config())
    wanted = np.array([[name in label for name in names] for label in case.labels], dtype=bool)
    known = head.known_tasks(head.encode_labels(case.labels))
    ensure(
        np.array_equal(known, wanted),
        f"`known_tasks` must tell of which of the tasks {names} a row has a label, and "
        f"gives {known.tolist()}",
    )


def refusals(case: HeadCase) -> None:
    ignores = case.adapted().ignore_missing
    for bad in (object(),) if ignores else (None, object()):
        try:
            case.adapted().encode_labels([bad])
        except BertkitError:
            continue
        except Exception as error:
            raise AssertionError(f"{bad!r} must raise an InputError, not {error!r}") from error
        raise AssertionError(f"`encode_labels` must refuse {bad!r} by an InputError")


def training(case: HeadCase) -> None:
    before, after = case.trained.loss(case.trained.before), case.trained.loss(case.trained.after)
    ensure(np.isfinite([before, after]).all(), f"the loss must be finite: {before}, {after}")
    ensure(
        after < before,
        f"{STEPS} steps must lower the loss on {len(case.labels)} rows: from {before:.4g} it "
        f"went to {after:.4g}",
    )


def decoding(case: HeadCase) -> None:
    trained = case.trained
    right, wrong = trained.loss(trained.after), trained.loss(trained.wrong)
    ensure(right < wrong, f"right outputs must have a lower loss ({right}) than wrong ({wrong})")
    rows = _check_decoded(trained.head.decode(trained.after), len(case.labels))
    for key in {"label", "labels"} & set(rows[0]):
        found = [row[key] for row in rows]
        alike = sum(
            set(a) == set(b) if key == "labels" else a == b
            for a, b in zip(found, case.labels, strict=True)
        )
        ensure(
            alike >= 0.9 * len(rows),
            f"trained on {case.labels}, `decode` gives {found}: `encode_labels`, the loss and "
            "`decode` must mean the same by an output",
        )


def report(case: HeadCase) -> None:
    for outputs in (case.trained.before, case.trained.after):
        _check_report(case.trained.head.report(case.trained.targets, outputs))


def metrics(case: HeadCase) -> None:
    head, trained = case.trained.head, case.trained
    first, second = head.make_metrics(), head.make_metrics()
    ensure(not {*map(id, first)} & {*map(id, second)}, "`make_metrics` must make new metrics")
    names = [metric.name for metric in first]
    ensure(len({"loss", *names}) == len(names) + 1, f"metrics need names of their own, not {names}")
    stated = head.report(trained.targets, trained.before)
    for metric in first:
        right, wrong, untrained = (
            _measured(metric, trained.targets, outputs)
            for outputs in (trained.after, trained.wrong, trained.before)
        )
        direction = str(getattr(metric, "_direction", ""))  # as Keras's callbacks ask for it
        better = {"up": right > wrong, "down": right < wrong}.get(direction, right != wrong)
        ensure(better, f"{metric.name!r} must tell right outputs ({right}) from wrong ({wrong})")
        value = stated.get(metric.name)
        # Keras sums areas under curves over a few thresholds, so they are only near the exact.
        measures = getattr(metric, "metric", metric)  # of one that passes another some of the rows
        if value is not None and not isinstance(measures, keras.metrics.AUC):
            close = np.isclose(untrained, value, rtol=1e-3, atol=1e-3)
            ensure(
                close,
                f"the metric {metric.name!r} is {untrained:.4f} where `report` says {value:.4f}: "
                "both get targets and logits, not probabilities",
            )


def sample_weights(case: HeadCase) -> None:
    """One weight a row, also where there happen to be as many rows as outputs."""
    head, trained = case.trained.head, case.trained
    for rows in {len(trained.targets), max(2, min(head.num_outputs, len(trained.targets)))}:
        weights = np.ones(rows, dtype="float32")
        weights[0] = 0.0
        right, mixed = trained.after[:rows], trained.after[:rows].copy()
        mixed[0] = trained.wrong[0]
        targets, loss = trained.targets[:rows], head.make_loss()
        first, second = (float(loss(targets, x, weights)) for x in (right, mixed))
        ensure(
            np.isclose(first, second, rtol=1e-4, atol=1e-6),
            f"a row of weight 0 must not change the loss of {rows} rows, which goes from "
            f"{first:.4g} to {second:.4g} with its outputs",
        )


def missing_labels(case: HeadCase) -> None:
    """A row without a label adds nothing, if the head takes it at all."""
    head, trained = case.trained.head, case.trained
    if not head.ignore_missing:
        return
    targets = head.encode_labels([*case.labels[:-1], None])
    mixed = trained.after.copy()
    mixed[-1] = trained.wrong[-1]
    loss, metrics = head.make_loss(), head.make_metrics()
    first, second = (
        {
            "loss": float(loss(targets, outputs)),
            **{metric.name: _measured(metric, targets, outputs) for metric in metrics},
            **head.report(targets, outputs),
        }
        for outputs in (trained.after, mixed)
    )
    ensure(
        first == second and np.isfinite(loss(targets, mixed)),
        f"a row without a label must add nothing, and changes {first} to {second}",
    )


def class_weights(case: HeadCase) -> None:
    head = case.adapted()
    targets = head.encode_labels(case.labels)
    try:
        weights = head.class_weights(targets, dict.fromkeys(head.labels, 2.0))
    except BertkitError:
        return  # it has no labels, or no use for weights, and says so
    ensure(
        np.shape(weights) in ((len(targets),), targets.shape) and (weights > 0).all(),
        f"`class_weights` must return positive numbers of shape ({len(targets)},) or "
        f"{targets.shape}, and returns the shape {np.shape(weights)}",
    )


def few_rows(case: HeadCase) -> None:
    head = case.built()
    for rows in (0, 1):
        with during("no rows" if rows == 0 else "one row"):
            targets = head.encode_labels(case.labels[:rows])
            _check_targets(targets, rows)
            outputs = head(case.features(head.reads, rows), training=False).numpy()
            ensure(
                outputs.shape == (rows, head.num_outputs),
                f"the outputs' shape must be {(rows, head.num_outputs)}, and is {outputs.shape}",
            )
            _check_decoded(head.decode(outputs), rows)
            _check_report(head.report(targets, outputs))
            # Keras leaves the losses of no rows, (0,), as they are.
            loss = float(np.sum(head.make_loss()(targets, outputs)))
            ensure(np.isfinite(loss), f"the loss must be finite, and is {loss}")


def mixed_precision(case: HeadCase) -> None:
    for policy in MIXED:
        with during(policy):
            head = case.adapted(dtype=policy)
            model = BertClassifier(tiny_encoder(dtype=policy), head, dtype=policy)
            inputs = random_tokens([TOKENS] * len(case.labels), len(VOCABULARY))
            with tf.GradientTape() as tape:
                outputs = model(inputs, training=True)
                loss = head.make_loss()(head.encode_labels(case.labels), outputs)
            ensure(outputs.dtype == tf.float32, f"the logits are {outputs.dtype.name}")
            gradients = tape.gradient(loss, head.trainable_weights)
            finite = [bool(np.isfinite(part).all()) for part in (loss, *gradients)]
            ensure(all(finite), f"loss ({float(loss)}) and gradients must be finite")


def saving(case: HeadCase) -> None:
    model = BertClassifier(tiny_encoder(), case.adapted())
    inputs = random_tokens([TOKENS] * len(case.labels), len(VOCABULARY))
    model.compile(optimizer="adam", run_eagerly=True)  # faster, for a single step
    model.train_on_batch(inputs, case.labels)
    loaded = saved_and_loaded(model, inputs)
    before, after = (
        m.evaluate(inputs, case.labels, verbose=0, return_dict=True) for m in (model, loaded)
    )
    ensure(before == after, f"loss and metrics are {before}, and once loaded {after}")


def _check_targets(targets: Any, rows: int) -> None:
    ensure(
        isinstance(targets, np.ndarray) and targets.dtype.kind in "biuf" and len(targets) == rows,
        f"`encode_labels` must return a NumPy array of {rows} rows of numbers, and returns "
        f"{type(targets).__name__} {getattr(targets, 'dtype', '')} {np.shape(targets)}",
    )


def _check_decoded(rows: Any, count: int) -> list[dict[str, Any]]:
    ensure(
        isinstance(rows, list) and len(rows) == count and all(isinstance(x, dict) for x in rows),
        f"`decode` must return a list of one dict a row ({count}), and returns {rows!r}",
    )
    _check_json("decode", rows)
    return list(rows)


def _check_report(measures: Any) -> None:
    ensure(
        isinstance(measures, dict)
        and all(value is None or isinstance(value, float) for value in measures.values()),
        f"`report` must return floats by name, None where undefined, and returns {measures!r}",
    )
    _check_json("report", measures)


def _check_json(method: str, value: Any) -> None:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"`{method}` must return what JSON can write: {error}") from error


def _measured(metric: keras.metrics.Metric, targets: np.ndarray, outputs: np.ndarray) -> float:
    """Return a metric's result, which must not depend on how the rows are batched."""
    results, rows = [], len(targets)
    for cuts in ([], sorted({rows // 4, 2 * rows // 3} - {0})):
        metric.reset_state()
        for part in zip(np.split(targets, cuts), np.split(outputs, cuts), strict=True):
            metric.update_state(*part)
        results.append(np.asarray(metric.result()))
    whole, parts = results
    ensure(
        whole.ndim == 0 and np.isfinite(whole),
        f"the result of {metric.name!r} must be one finite number, and is {whole}",
    )
    ensure(
        np.isclose(whole, parts, rtol=1e-3, atol=1e-4),
        f"{metric.name!r} must not depend on how rows are batched: it is {whole}, and {parts} in "
        "batches",
    )
    return float(whole)
