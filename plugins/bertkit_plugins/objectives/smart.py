"""Predictions that change little when the input, or the weights, do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from bertkit.classifier import BertClassifier
from bertkit.errors import InputError
from bertkit.feeding import whole_number
from bertkit.objective import Objective, Step
from bertkit_plugins.objectives.checks import above_zero, zero_or_more
from bertkit_plugins.objectives.perturbing import ascent, largest, masked

# An eighth of the relative rounding: embeddings are small against 1.
_ROUNDING = {"float16": 2.0**-13, "bfloat16": 2.0**-10}


class SMART(Objective):
    """The loss, and how far predictions move with the embeddings, and with the last updates.

    SMART of Jiang et al. 2020 (https://arxiv.org/abs/1911.03437): its smoothness is the symmetric
    divergence between the predictions at the token embeddings and at those moved to raise it; its
    proximity that between the predictions of the model and of a teacher, whose weights are a
    moving average of the model's. One dropout serves all of a step. Takes 2 + `steps` passes
    through the encoder, forward and backward, and one forward for the teacher.

    Args:
        smoothness: the weight of the first term.
        proximity: the weight of the second; 0 keeps no teacher, which has the model's size.
        steps: steps of the ascent.
        step_size: the largest change of a number in a step.
        noise: the standard deviation of the move at the beginning; in mixed precision at least
            what 16 bits can tell apart, 1e-4 in float16 and 1e-3 in bfloat16.
        epsilon: the largest change of a number in all; without a limit if `None`, as in the
            authors' program (the paper has 1e-5, which rounding hides).
        momentum: how much of the teacher stays in an update of it (the paper has 0.99 in the
            first tenth of the updates, and 0.999 then).
    """

    reads_embeddings = True

    def __init__(
        self,
        smoothness: float = 1.0,
        proximity: float = 1.0,
        steps: int = 1,
        step_size: float = 1e-3,
        noise: float = 1e-5,
        epsilon: float | None = None,
        momentum: float = 0.99,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.smoothness = zero_or_more("smoothness", smoothness)
        self.proximity = zero_or_more("proximity", proximity)
        self.steps = whole_number("steps", steps)
        self.step_size = above_zero("step_size", step_size)
        self.noise = above_zero("noise", noise)
        self.epsilon = None if epsilon is None else above_zero("epsilon", epsilon)
        self.momentum = zero_or_more("momentum", momentum)
        if momentum >= 1:
            raise InputError(f"momentum is {momentum}. Give a number from 0 to below 1.")
        self.seed_generator = keras.random.SeedGenerator()
        self._teacher: MovingAverage | None = None

    def begin(self, model: BertClassifier) -> None:
        super().begin(model)
        # As the moments of Adam, it goes on from fit to fit, until the model is compiled anew.
        if self.proximity and not (self._teacher and self._teacher.optimizer is model.optimizer):
            self._teacher = MovingAverage(model)

    def loss(self, step: Step) -> tuple[tf.Tensor, tf.Tensor]:
        clean = step.embeddings()  # (B, T, E)
        move = self._initial_move(clean, step)  # its seed is of the random state too
        dropout = step.random_state()
        loss, logits = step.loss(token_embeddings=clean)
        fixed = tf.stop_gradient(logits)

        def apart(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            step.set_random_state(dropout)
            moved = step.logits(token_embeddings=x)
            return step.mean(self._apart(step, moved, fixed)), moved

        for _ in range(self.steps):
            _, _, gradient = ascent(step, apart, clean + move)
            move += self.step_size * tf.math.divide_no_nan(gradient, largest(gradient))
            if self.epsilon is not None:
                move = tf.clip_by_value(move, -self.epsilon, self.epsilon)
        step.set_random_state(dropout)
        moved = step.logits(token_embeddings=clean + move)
        loss += self.smoothness * step.mean(self._apart(step, moved, logits))
        if self._teacher is not None:
            with step.tape.stop_recording():
                taught = self._teacher.logits(step.inputs)
            loss += self.proximity * step.mean(self._apart(step, logits, taught))
        return loss, logits

    def _initial_move(self, clean: tf.Tensor, step: Step) -> tf.Tensor:
        normal = tf.random.stateless_normal(tf.shape(clean), self.seed_generator.next())
        lost = _ROUNDING.get(step.model.encoder.compute_dtype, 0.0)
        return masked(normal * max(self.noise, lost), step)

    def _apart(self, step: Step, one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
        head = step.model.head
        return head.divergence(one, other) + head.divergence(other, one)  # (B,)

    def after_update(self, model: BertClassifier) -> None:
        if self._teacher is not None:
            self._teacher.follow(model, self.momentum)

    @property
    def state(self) -> list[Any]:
        return [] if self._teacher is None else self._teacher.variables

    def get_config(self) -> dict[str, Any]:
        names = ("smoothness", "proximity", "steps", "step_size", "noise", "epsilon", "momentum")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


class MovingAverage:
    """A copy of a model whose weights follow the model's.

    It is no Keras layer, so that Keras neither lists nor saves the copy with the model.
    """

    def __init__(self, model: BertClassifier) -> None:
        parts = (type(part).from_config(part.get_config()) for part in (model.encoder, model.head))
        self._copy = BertClassifier(*parts)
        self.optimizer = model.optimizer
        for own, followed in self._pairs(model):
            own.assign(followed)

    def _pairs(self, model: BertClassifier) -> list[tuple[Any, Any]]:
        parts = ((self._copy.encoder, model.encoder), (self._copy.head, model.head))
        return [
            pair
            for ours, theirs in parts
            for pair in zip(ours.weights, theirs.weights, strict=True)
        ]

    @property
    def variables(self) -> list[Any]:
        return [*self._copy.encoder.weights, *self._copy.head.weights]

    def logits(self, inputs: Mapping[str, Any]) -> tf.Tensor:
        """Return logits without dropout, (B, outputs)."""
        return self._copy(inputs, training=False)

    def follow(self, model: BertClassifier, momentum: float) -> None:
        """Move the weights towards the model's."""
        for own, followed in self._pairs(model):
            if followed.trainable:
                own.assign_add((followed - own) * (1 - momentum))
