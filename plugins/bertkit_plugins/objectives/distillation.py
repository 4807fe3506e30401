"""A teacher whose predictions are learned beside the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tensorflow as tf

from bertkit.objective import Objective, Step
from bertkit_plugins.objectives.checks import above_zero, share
from bertkit_plugins.objectives.teacher import Teacher

if TYPE_CHECKING:
    from bertkit.classifier import BertClassifier


class Distillation(Objective):
    """The loss, mixed with how far predictions are from those of a teacher.

    Knowledge distillation of Hinton, Vinyals and Dean 2015 (https://arxiv.org/abs/1503.02531):
    the divergence is that of the teacher's distribution from the model's, both with logits divided
    by the temperature, times the square of it. The teacher computes without dropout, in each step,
    on the same token ids: it has the same vocabulary and labels.

    Args:
        teacher: a finished run folder; a Hugging Face folder of a fine-tuned BERT with one dense
            layer as its head; or a SavedModel from the inputs of TF Hub to logits, whose labels
            are taken to be the head's, in the same order.
        alpha: the share of the teacher in the loss; the labels have the rest.
        temperature: what logits are divided by.
    """

    reads_tokens = True

    def __init__(
        self, teacher: str, alpha: float = 0.5, temperature: float = 2.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.teacher = teacher
        self.alpha = share("alpha", alpha)
        self.temperature = above_zero("temperature", temperature)
        self._teacher: Teacher | None = None

    def begin(self, model: BertClassifier) -> None:
        super().begin(model)
        if self._teacher is None:
            self._teacher = Teacher(self.teacher, model)

    def loss(self, step: Step) -> tuple[tf.Tensor, tf.Tensor]:
        assert self._teacher is not None  # `begin` comes first
        loss, logits = step.loss()
        with step.tape.stop_recording():
            taught = self._teacher.logits(step.inputs) / self.temperature  # (B, outputs)
        apart = step.mean(step.model.head.divergence(taught, logits / self.temperature))
        return (1 - self.alpha) * loss + self.alpha * self.temperature**2 * apart, logits

    def get_config(self) -> dict[str, Any]:
        names = ("teacher", "alpha", "temperature")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
