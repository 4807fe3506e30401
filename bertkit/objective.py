"""The contract of an objective: what a training step minimizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import keras
import tensorflow as tf

from bertkit.errors import InputError
from bertkit.features import is_features

if TYPE_CHECKING:
    from bertkit.classifier import BertClassifier


@dataclass(frozen=True)
class Step:
    """A training step on a batch, as an objective sees it.

    Attributes:
        model: what is trained.
        inputs: the encoder's, int32 (B, T) each and, where an objective has put them there,
            `token_embeddings`, float32 (B, T, E).
        targets: as the head encodes labels, (B, …).
        sample_weight: (B,), or of each label, (B, labels); `None` if every row weighs 1.
        tape: what records the step.
        objectives: those that apply to what `loss` computes, the outermost first.
    """

    model: BertClassifier
    inputs: Mapping[str, Any]
    targets: Any
    sample_weight: Any
    tape: tf.GradientTape
    objectives: tuple[Objective, ...] = ()

    def loss(self, **inputs: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the loss, float32 (), and the logits, (B, outputs), of the batch.

        It is the head's loss, or what the objectives within this one make of it. Dropout is drawn
        anew at each call.

        Args:
            **inputs: what replaces inputs of that name, such as `token_embeddings`.
        """
        step = self.changed(**inputs)
        if self.objectives:
            objective = self.objectives[0]
            if (objective.reads_embeddings or objective.reads_tokens) and is_features(self.inputs):
                self.model.train_function = None  # it is half traced
                what = "token embeddings" if objective.reads_embeddings else "tokens"
                raise InputError(
                    f"The objective {type(objective).__name__} needs {what}, and features, which "
                    "the encoder has made already, have none. Give texts or tensors, or train the "
                    "head alone on features: fit_head."
                )
            return objective.loss(replace(step, objectives=self.objectives[1:]))
        logits = step.logits()
        return step.task_loss(logits), logits

    def loss_of(self, *objectives: Objective) -> tuple[tf.Tensor, tf.Tensor]:
        """Return what `loss` does with objectives around it, the outermost first."""
        return replace(self, objectives=(*objectives, *self.objectives)).loss()

    def features(self) -> Mapping[str, Any]:
        """Return the features that the head reads, (B, …), with dropout."""
        return self.model.encode(self.inputs, training=True)

    def logits(self, training: bool = True, **inputs: Any) -> tf.Tensor:
        """Return logits, float32 (B, outputs); `inputs` as in `loss`."""
        return self.model(self.changed(**inputs).inputs, training=training)

    def task_loss(self, logits: tf.Tensor, targets: Any = None, sample_weight: Any = None) -> Any:
        """Return the compiled loss of logits, float32 ().

        What layers add to it (`add_loss`, regularizers) is not in it: it counts once a step.

        Args:
            logits: (B, outputs).
            targets: those of the batch if `None`.
            sample_weight: that of the batch if `None`.
        """
        targets = self.targets if targets is None else targets
        weight = self.sample_weight if sample_weight is None else sample_weight
        return self.model._compile_loss(targets, logits, weight)

    def mean(self, values: tf.Tensor) -> tf.Tensor:
        """Return the mean over rows of (B,), as the loss takes it: weighted, shared by replicas.

        It is 0 of a batch without rows, which a replica has when the last one is short.
        """
        weight = self.sample_weight
        if weight is not None:
            weight = tf.cast(tf.convert_to_tensor(weight), values.dtype)
            values *= tf.reduce_mean(weight, axis=-1) if weight.shape.rank == 2 else weight
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        rows = tf.cast(tf.size(values), values.dtype)
        return tf.math.divide_no_nan(tf.reduce_sum(values), rows) / replicas

    def embeddings(self) -> tf.Tensor:
        """Return the token embeddings of the batch, float32 (B, T, E)."""
        given = self.inputs.get("token_embeddings")
        if given is not None:
            return given
        return self.model.encoder.embed_tokens(self.inputs["token_ids"])

    def random_state(self) -> list[tuple[Any, tf.Tensor]]:
        """Return the state of everything random in the model, dropout for one."""
        layers = (layer for layer in self.model._flatten_layers() if layer is not self.model)
        generators = {id(one): one for layer in layers for one in layer._seed_generators}
        return [(one.state, tf.identity(one.state.value)) for one in generators.values()]

    def set_random_state(self, state: list[tuple[Any, tf.Tensor]]) -> None:
        """Go back to a state, so that the same dropout comes again."""
        for variable, value in state:
            variable.assign(value)

    def changed(self, **inputs: Any) -> Step:
        """Return the step with other inputs."""
        return replace(self, inputs={**self.inputs, **inputs}) if inputs else self


class Objective(keras.layers.Layer):
    """Base class of objectives: what a training step minimizes.

    A subclass defines `loss`, and `get_config` if its constructor takes arguments. It gets the
    step within a gradient tape; metrics read the logits it returns.

    Attributes:
        innermost: whether `loss` computes the head's loss itself, instead of by `step.loss`, so
            that no other objective can be within this one.
        reads_embeddings: whether it needs an encoder that takes embeddings in place of ids.
        reads_tokens: whether it reads the inputs of the encoder itself.
        compares_rows: whether what it minimizes of a row depends on the other rows of the batch.
        supports_jit: as of every Keras layer, whether XLA can compile it; the constructor of one
            that uses operations which XLA does not know sets it to False.
    """

    innermost: ClassVar[bool] = False
    reads_embeddings: ClassVar[bool] = False
    reads_tokens: ClassVar[bool] = False
    compares_rows: bool = False

    def loss(self, step: Step) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the loss to be minimized, float32 (), and logits of the batch, (B, outputs)."""
        raise NotImplementedError(f"{type(self).__name__} must define `loss`.")

    def begin(self, model: BertClassifier) -> None:
        """Check that a model can be trained so, and get ready; called before each training.

        Raises:
            InputError: the model cannot be trained so.
        """
        if self.reads_embeddings and not model.encoder.takes_embeddings:
            raise InputError(
                f"The objective {type(self).__name__} changes token embeddings, and "
                f"{type(model.encoder).__name__} takes none: it looks ids up inside its own graph. "
                "Use an encoder that is a BertEncoder, or another objective, such as r_drop."
            )
        if model.wants_jit and not self.supports_jit:
            raise InputError(
                f"The objective {type(self).__name__} does not go with jit_compile=True: XLA does "
                "not know all of its operations. Leave one of them out."
            )
        if type(model).compute_loss is not keras.Model.compute_loss:
            raise InputError(
                f"{type(model).__name__} has a `compute_loss` of its own, which an objective would "
                "leave out: it computes the compiled loss, several times maybe. Give that loss to "
                "compile, or train without an objective."
            )

    def after_update(self, model: BertClassifier) -> None:
        """Follow an update of the weights; called in each step, after it."""

    @property
    def state(self) -> list[Any]:
        """Variables beside its weights that the next steps depend on."""
        return []

    def save_own_variables(self, store: dict[str, Any]) -> None:
        """Save nothing: what an objective keeps is of use in training alone."""

    def load_own_variables(self, store: dict[str, Any]) -> None:
        """Load nothing."""
