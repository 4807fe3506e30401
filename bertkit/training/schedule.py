"""The learning rate over the steps of a run."""

from __future__ import annotations

import math
from typing import Any, Literal

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("bertkit")
class WarmupSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Rise linearly from zero to a peak, then fall.

    Args:
        peak: the highest learning rate.
        steps: all updates of the run.
        warmup_steps: updates until the peak.
        decay: "linear" or "cosine", to zero after the last update, or "constant".
    """

    def __init__(
        self,
        peak: float,
        steps: int,
        warmup_steps: int,
        decay: Literal["linear", "cosine", "constant"] = "linear",
    ) -> None:
        self.peak = peak
        self.steps = steps
        self.warmup_steps = warmup_steps
        self.decay = decay

    def __call__(self, step: Any) -> tf.Tensor:
        """Return the learning rate, float32 (), of a step that is counted from 0."""
        step = tf.cast(step, tf.float32)
        rising = (step + 1) / max(self.warmup_steps, 1)
        done = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        left = 1 - tf.clip_by_value(done, 0.0, 1.0)
        falling = {
            "linear": left,
            "cosine": 0.5 - 0.5 * tf.cos(math.pi * left),
            "constant": tf.ones(()),
        }[self.decay]
        return self.peak * tf.where(step < self.warmup_steps, rising, falling)

    def get_config(self) -> dict[str, Any]:
        names = ("peak", "steps", "warmup_steps", "decay")
        return {name: getattr(self, name) for name in names}
