"""`check_objective`: does an objective keep its contract?"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bertkit.classifier import BertClassifier
from bertkit.head import Head
from bertkit.objective import Objective, Step
from bertkit.registry import heads, objectives
from bertkit.testing.common import (
    MIXED,
    VOCABULARY,
    all_reached,
    check_config,
    close,
    during,
    ensure,
    maker,
    random_tokens,
    run,
    saved_and_loaded,
    tiny_encoder,
)

_LENGTHS = [5, 3, 6, 4, 5, 2]  # of the rows, in tokens
_STEPS = 60  # of training


def check_objective(
    objective: Objective | Callable[..., Objective] | str,
    head: Head | Callable[..., Head] | str = "multiclass",
    labels: Sequence[Any] = ("no", "yes", "perhaps"),
    **arguments: Any,
) -> None:
    """Check an objective against the contract of `bertkit.Objective`.

    That its config rebuilds it; the shapes of loss and logits; that a gradient reaches every
    weight, also in mixed precision; that training by it lowers the head's own loss; that rows
    count by their sample weights; that no rows, as a replica may have them, have a loss of 0; that
    one row, and a batch in parts, are trained on; saving and loading.

    Args:
        objective: an objective, its class, or the name it is registered under.
        head: what it is tried with.
        labels: raw labels that the head takes.
        **arguments: of the constructor, if `objective` is a class or a name.

    Raises:
        AssertionError: the objective breaks the contract.
    """
    with during("check_objective, making it"):
        make = maker(objectives, Objective, objective, arguments)
        rows = [labels[index % len(labels)] for index in range(len(_LENGTHS))]
        case = _Case(make, maker(heads, Head, head, {}), rows)
    checks = (config, shapes, sample_weights, training, mixed_precision, no_rows, one_row, parts,
              saving)  # fmt: skip
    run("check_objective", objective, checks, case)


@dataclass
class _Case:
    """How an objective and a head are made, and example labels."""

    make: Callable[[], Objective]
    make_head: Callable[[], Head]
    labels: list[Any]

    def model(self, eagerly: bool = True, **changes: Any) -> BertClassifier:
        """Return a compiled model, the same each time, ready to be trained by the objective."""
        keras.utils.set_random_seed(0)
        policy = keras.config.dtype_policy()
        keras.config.set_dtype_policy(changes.get("dtype", policy))
        try:
            head = self.make_head()
            if not head.adapted:
                head.adapt(self.labels)
            objective = self.make()
            model = BertClassifier(tiny_encoder(**changes), head, objective=objective)
        finally:
            keras.config.set_dtype_policy(policy)
        optimizer = keras.optimizers.Adam(3e-3)
        # A step that is taken once is not worth the tracing.
        model.compile(optimizer, head.make_loss(), metrics=[], run_eagerly=eagerly)
        objective.begin(model)
        return model

    @property
    def inputs(self) -> dict[str, tf.Tensor]:
        return random_tokens(_LENGTHS, len(VOCABULARY))

    def step(
        self, model: BertClassifier, weight: Any = None
    ) -> tuple[tf.Tensor, tf.Tensor, list[Any]]:
        """Return the loss, the logits and the gradients of a step."""
        return _step(model, self.inputs, tf.constant(model.head.encode_labels(self.labels)), weight)


def _step(
    model: BertClassifier, inputs: Any, targets: tf.Tensor, weight: Any = None
) -> tuple[tf.Tensor, tf.Tensor, list[Any]]:
    assert model.objective is not None
    with tf.GradientTape() as tape:
        loss, logits = Step(model, inputs, targets, weight, tape).loss_of(model.objective)
    return loss, logits, tape.gradient(loss, model.trainable_weights)


def config(case: _Case) -> None:
    check_config(objectives, case.make())


def shapes(case: _Case) -> None:
    model = case.model()
    loss, logits, gradients = case.step(model)
    ensure(
        loss.shape == () and loss.dtype == tf.float32 and np.isfinite(loss),
        f"the loss must be one finite float32, and is {loss.numpy()!r}",
    )
    wanted = (len(case.labels), model.head.num_outputs)
    ensure(
        tuple(logits.shape) == wanted,
        f"the logits must have the shape {wanted}, and have {tuple(logits.shape)}",
    )
    all_reached(model, gradients)


def sample_weights(case: _Case) -> None:
    ones = tf.ones(len(case.labels))
    plain, single, double, none = (
        float(case.step(case.model(), weight)[0]) for weight in (None, ones, 2 * ones, 0 * ones)
    )
    close(plain, single, "rows that weigh 1 each must give the loss of no weights")
    close(2 * single, double, "rows that weigh 2 each must give twice the loss", 1e-3)
    close(none, 0.0, "rows that weigh nothing must give a loss of 0")


def training(case: _Case) -> None:
    model = case.model(eagerly=False)
    targets = model.head.encode_labels(case.labels)
    loss = model.head.make_loss()
    before = float(loss(targets, model(case.inputs)))
    # One epoch of equal batches: beginning epochs would take longer than their steps.
    inputs = {name: tf.tile(tensor, (_STEPS, 1)) for name, tensor in case.inputs.items()}
    size = len(case.labels)
    model.fit(inputs, case.labels * _STEPS, batch_size=size, shuffle=False, verbose=0)
    after = float(loss(targets, model(case.inputs)))
    ensure(
        after < before,
        f"{_STEPS} steps must lower the head's own loss: from {before:.4g} it went to {after:.4g}",
    )


def mixed_precision(case: _Case) -> None:
    for policy in MIXED:
        with during(policy):
            loss, logits, gradients = case.step(case.model(dtype=policy))
            ensure(logits.dtype == tf.float32, f"the logits are {logits.dtype.name}")
            dense = [tf.convert_to_tensor(one) for one in gradients if one is not None]
            finite = [bool(np.isfinite(one).all()) for one in (loss, *dense)]
            ensure(all(finite), f"loss ({float(loss)}) and gradients must be finite")


def no_rows(case: _Case) -> None:
    """A replica has none where the last batch has fewer rows than there are replicas."""
    model = case.model()
    batch = (case.inputs, tf.constant(model.head.encode_labels(case.labels)))
    any_rows = tf.nest.map_structure(
        lambda part: tf.TensorSpec([None, *part.shape[1:]], part.dtype), batch
    )
    step = tf.function(functools.partial(_step, model), any_rows, autograph=False)
    loss, _, gradients = step(*tf.nest.map_structure(lambda part: part[:0], batch))
    for value in (loss, *(tf.convert_to_tensor(one) for one in gradients if one is not None)):
        total = float(tf.reduce_sum(tf.abs(value)))
        ensure(total == 0, f"loss and gradients of no rows must be 0, and one is {total}")


def one_row(case: _Case) -> None:
    model = case.model()
    first = {name: tensor[:1] for name, tensor in case.inputs.items()}
    loss = model.train_on_batch(first, case.labels[:1])
    ensure(np.isfinite(loss).all(), f"the loss of one row must be finite, and is {loss}")


def parts(case: _Case) -> None:
    history = case.model().fit(
        case.inputs, case.labels, batch_size=5, micro_batch_size=2, epochs=1, verbose=0
    )
    (loss,) = history.history["loss"]
    ensure(np.isfinite(loss), f"the loss of batches in parts must be finite, and is {loss}")


def saving(case: _Case) -> None:
    model = case.model()
    model.train_on_batch(case.inputs, case.labels)
    loaded = saved_and_loaded(model, case.inputs)
    made, again = (one.get_config()["objective"] for one in (model, loaded))
    ensure(made == again, f"saved, its config is {made}, and loaded {again}")
