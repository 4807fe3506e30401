"""`BertClassifier`: an encoder, a head and, for raw text, a preprocessor, as one Keras model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from bertkit.encoder import Encoder
from bertkit.errors import InputError, shown
from bertkit.features import Features, compute_features, is_features
from bertkit.feeding import batch_size_of
from bertkit.gradients import GradientReport, gradient_report
from bertkit.guards import check_trainable, connected
from bertkit.head import Head
from bertkit.micro_batches import in_micro_batches
from bertkit.objective import Objective, Step
from bertkit.preprocessor import Preprocessor
from bertkit.registry import REGISTRIES, heads, objectives, preprocessors
from bertkit.training.divergence import keep_gradient_norm
from bertkit.workflow import RawTextModel


@keras.saving.register_keras_serializable("bertkit")
class BertClassifier(RawTextModel):
    """A text classifier.

    Its outputs are logits, float32 (B, outputs), from raw text or from a dict of `token_ids`,
    `segment_ids` and `padding_mask` (or TF Hub's names), int32 (B, T) each. `fit`, `evaluate`
    and `predict` are Keras's, and take raw text and raw labels as well: a list of strings or of
    pairs, an array, a pandas column, a generator or a `tf.data.Dataset` of batches.

    What `compile` is not given, the head gives: loss and metrics. A metric that is given by a name
    is the head's metric of that name. Without an optimizer (Keras's default, RMSprop at 1e-3,
    counts as none) the model is trained with AdamW at 5e-5.

    Args:
        encoder: where features come from.
        head: what the labels mean; a name stands for that head with its defaults.
        preprocessor: how text becomes tensors; a name as above; `None` if only tensors are
            passed.
        objective: what a training step minimizes instead of the loss alone; a name as above.
        **kwargs: `name` and `trainable` of a Keras model. The precision is the encoder's.

    Raises:
        PluginError: a name is unknown.
        InputError: the parts do not fit together, or a `dtype` is given that is not the encoder's.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: Head | str,
        preprocessor: Preprocessor | str | None = None,
        objective: Objective | str | None = None,
        **kwargs: Any,
    ) -> None:
        encoder = _part("encoder", encoder, Encoder)
        super().__init__(**{**kwargs, "dtype": _precision_of(encoder, kwargs.get("dtype"))})
        self.encoder = encoder
        self.head = _part("head", heads.create(head) if isinstance(head, str) else head, Head)
        self.preprocessor: Preprocessor | None = None
        if preprocessor is not None:
            made = (
                preprocessors.create(preprocessor)
                if isinstance(preprocessor, str)
                else _part("preprocessor", preprocessor, Preprocessor)
            )
            self.preprocessor = made.serving(encoder)
        if isinstance(objective, str):
            objective = objectives.create(objective)
        self.objective = objective and _part("objective", objective, Objective)
        if self.head.adapted:
            self.build()

    def build(self, input_shape: Any = None) -> None:
        """Make the head's weights; called once its labels are known.

        Raises:
            InputError: they are not known yet.
        """
        if not self.head.adapted:
            raise InputError(
                f"{type(self.head).__name__} does not know its labels yet. Give them to its "
                "constructor, call `model.head.adapt(labels)`, or call `fit` with the labels first."
            )
        hidden = self.encoder.hidden_size
        if not self.head.built:
            self.head.build({"pooled": (None, hidden), "sequence": (None, None, hidden)})
        self.built = True

    @tf.autograph.experimental.do_not_convert
    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Convert, then call: Keras takes neither lists of strings nor arrays beside tensors."""
        parts = inputs.values() if isinstance(inputs, Mapping) else [inputs]
        if not any(isinstance(part, keras.KerasTensor) for part in parts):
            inputs = self._feed().inputs(inputs)
        return super().__call__(inputs, *args, **kwargs)

    def call(self, inputs: Any, training: bool = False) -> tf.Tensor:
        """Return logits, float32 (B, outputs)."""
        tensors = self._feed().inputs(inputs)
        return self.logits_of(self.encode(tensors, training), training)

    def encode(self, tensors: Mapping[str, Any], training: bool = False) -> Mapping[str, Any]:
        """Return the features that the head reads, (B, …), from the encoder's inputs."""
        if is_features(tensors):
            return tensors
        return self.encoder(tensors, reads=self.head.reads, training=training)

    def logits_of(self, features: Mapping[str, Any], training: bool = False) -> tf.Tensor:
        """Return logits, float32 (B, outputs), from the features that the head reads."""
        return tf.cast(self.head(features, training=training), tf.float32)

    @property
    def trainable_weights(self) -> list[Any]:
        """What training moves: not a pooler whose output the head does not read."""
        unread = {id(weight) for weight in self.encoder.unread(self.head.reads)}
        return [weight for weight in super().trainable_weights if id(weight) not in unread]

    @property
    def trainable_variables(self) -> list[Any]:
        """The same as `trainable_weights`."""
        return self.trainable_weights

    def train_step(self, data: Any) -> dict[str, Any]:
        """Take one step on a batch of `(inputs, targets[, sample weights])`.

        Without an objective it is to the last bit what Keras itself does; it stands here so that
        it can be changed.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if self.micro_batch_size is None:
            logits, gradients = self.compute_gradients(x, y, sample_weight)
        else:
            logits, gradients = in_micro_batches(self, x, y, sample_weight)
        keep_gradient_norm(self, gradients)
        if gradients:
            self.optimizer.apply_gradients(gradients)
        else:
            warnings.warn("Everything is frozen, so this step trains nothing.", stacklevel=2)
        if self.objective is not None:
            self.objective.after_update(self)
        return self.compute_metrics(x, y, logits, sample_weight=sample_weight)

    def compute_gradients(
        self, x: Any, y: Any, sample_weight: Any
    ) -> tuple[tf.Tensor, list[tuple[Any, Any]]]:
        """Return the logits of a batch, (B, outputs), and scaled gradients with their weights."""
        with tf.GradientTape() as tape:
            loss, logits = self.training_loss(x, y, sample_weight, tape)
            self._track_loss(loss, x)
            scaled = self.optimizer.scale_loss(loss)  # mixed_float16 trains only with it
        weights = self.trainable_weights
        gradients = tape.gradient(scaled, weights)
        return logits, connected(self, tape, weights, gradients) if weights else []

    def training_loss(
        self, x: Any, y: Any, sample_weight: Any, tape: tf.GradientTape
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return what a step minimizes, float32 (), and the logits of its batch, (B, outputs)."""
        if self.objective is not None:
            step = Step(self, self._feed().inputs(x), y, sample_weight, tape)
            loss, logits = step.loss_of(self.objective)
            for one in self.losses:  # once, however many passes there were; as the last gave it
                loss += tf.cast(self._aggregate_additional_loss(one), loss.dtype)
            return loss, logits
        logits = self(x, training=True)
        return self.compute_loss(x, y, logits, sample_weight, training=True), logits

    def make_train_function(self, force: bool = False) -> Any:
        """Have the step traced, as Keras does; refuse a `trainable` that was changed too late."""
        force = force or self.micro_batch_size != self._traced_micro_batch_size
        self._traced_micro_batch_size = self.micro_batch_size
        check_trainable(self, anew=force or self.train_function is None)
        return super().make_train_function(force)

    def _track_loss(self, loss: tf.Tensor, x: Any) -> None:
        """Add a batch to the loss that is shown: a mean over examples, not over batches."""
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if replicas > 1:  # under a strategy the loss comes divided by their number
            loss = loss * replicas
        batch = tf.shape(tf.nest.flatten(x)[0])[0]
        # Eagerly, Keras leaves the losses of no rows as they are, (0,).
        self._loss_tracker.update_state(tf.reduce_sum(loss), sample_weight=batch)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Make variables before the first step under a strategy, from one replica's rows.

        Keras takes the mean of a batch over the replicas for it: of ids, which then are fractions,
        and of a ragged batch, which has none.
        """
        if self._distribute_strategy is None:
            return
        if iterator is not None:
            _, _, batches = next(iter(iterator))
            data_batch = tf.nest.map_structure(
                lambda part: self.distribute_strategy.experimental_local_results(part)[0],
                next(batches),
            )
        with self.distribute_strategy.scope():
            self._symbolic_build(data_batch=data_batch)

    def gradient_report(
        self,
        x: Any,
        y: Any,
        sample_weight: Any = None,
        class_weight: Mapping[Any, float] | None = None,
    ) -> GradientReport:
        """Report what one training step on a batch does, layer by layer, without taking it.

        The step is taken and undone, to the last bit of weights, optimizer and random numbers.

        Args:
            x: texts or tensors, as `train_on_batch` takes them.
            y: labels.
            sample_weight: a weight for each row.
            class_weight: a weight for each label.

        Raises:
            InputError: the labels are not known yet, or the batch cannot be used.
            TrainingError: `trainable` was changed too late to count.
        """
        self.build()
        batch = self._feed(class_weight).batch(x, y, sample_weight)
        self._compile_from_head()
        return gradient_report(self, *batch)

    def features(self, x: Any, batch_size: int | None = None, verbose: Any = 0) -> Features:
        """Return what the encoder makes of rows, without dropout: the features the head reads.

        They stand wherever texts do, as long as the encoder is not trained further: heads are
        trained on them (`fit_head`) and tried on them (`evaluate`, `predict`, `classify`) without
        the encoder running again.

        Args:
            x: texts or tensors, as `predict` takes them, but no dataset or generator.
            batch_size: rows a batch; as `predict` chooses if `None`.
            verbose: as in `predict`.

        Raises:
            InputError: `x` cannot be used.
        """
        feed = self._feed()
        rows = feed.rows(x)
        if isinstance(rows, Features):
            return rows
        verbose = 1 if verbose == "auto" else int(verbose)
        size = None if batch_size is None else batch_size_of(batch_size)
        return compute_features(self.encoder, rows, self.head.reads, size, feed.multiple, verbose)

    def fit_head(
        self,
        x: Any,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 20,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_data: Any = None,
        class_weight: Mapping[Any, float] | None = None,
        sample_weight: Any = None,
        learning_rate: Any = 3e-3,
        **options: Any,
    ) -> keras.callbacks.History:
        """Train the head alone, on features that the encoder computes once, without dropout.

        The encoder stays as it is to the last bit, and so does what `compile` was given; `fit`
        goes on from there with all weights: linear probing, then fine-tuning (Kumar et al. 2022,
        https://arxiv.org/abs/2202.10054). Loss and metrics are those of `fit`, the optimizer is
        an AdamW of its own.

        Args:
            x: texts, tensors or `features`, but no dataset or generator.
            y: labels, and so on, as in `fit`.
            learning_rate: a number or a schedule.
            **options: what else `fit` takes.

        Raises:
            InputError: as `fit` does, or the head has nothing to train.
        """
        from bertkit.probing import fit_head

        return fit_head(
            self, x, y, sample_weight, batch_size=batch_size, epochs=epochs, verbose=verbose,
            callbacks=callbacks, validation_data=validation_data, class_weight=class_weight,
            learning_rate=learning_rate, **options,
        )  # fmt: skip

    def get_config(self) -> dict[str, Any]:
        """Return the parts, each by its registered name and its own config."""
        parts: dict[str, Any] = {}
        for kind, registry in REGISTRIES.items():
            part = getattr(self, kind)
            parts[kind] = part and {
                "plugin": registry.name_of(type(part)),
                "config": part.get_config(),
            }
        layers, weights = self._flatten_layers(), self.weights
        frozen = [index for index, layer in enumerate(layers) if not layer.trainable]
        fixed = [index for index, weight in enumerate(weights) if not weight.trainable]
        return {"name": self.name, "dtype": self.dtype_policy.name, **parts,
                "frozen_layers": frozen, "frozen_weights": fixed}  # fmt: skip

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> BertClassifier:
        """Make a model from what `get_config` returned; the weights come after."""
        config = dict(config)
        parts = {
            kind: registry.create(config[kind]["plugin"], **config[kind]["config"])
            for kind, registry in REGISTRIES.items()
            if config.get(kind)
        }
        frozen, fixed = (config.pop(f"frozen_{what}", ()) for what in ("layers", "weights"))
        model = cls(**{**config, **parts})
        for index, layer in enumerate(model._flatten_layers()):  # a layer before those within it
            layer.trainable = index not in frozen
        for index, weight in enumerate(model.weights):
            if index in fixed:
                weight.trainable = False
        return model

    def save_assets(self, folder: str) -> None:
        """Write what the preprocessor's config cannot hold; called by Keras."""
        if self.preprocessor is not None:
            inner = Path(folder, "preprocessor")
            inner.mkdir()
            self.preprocessor.save_assets(str(inner))

    def load_assets(self, folder: str) -> None:
        """Read what `save_assets` wrote; called by Keras."""
        inner = Path(folder, "preprocessor")
        if self.preprocessor is not None and inner.is_dir():
            self.preprocessor.load_assets(str(inner))

    def get_build_config(self) -> None:
        """Return nothing: the constructor builds the model as soon as the labels are known."""


def _part(kind: str, part: Any, contract: type[Any]) -> Any:
    """Return a part if it is an instance of its contract."""
    if not isinstance(part, contract):
        about = ", the class itself" if isinstance(part, type) else ""
        raise InputError(
            f"The {kind} is {shown(part)}{about}. Give an instance of bertkit.{contract.__name__}, "
            f"such as bertkit.{kind}s.create(name, ...) makes."
        )
    return part


def _precision_of(encoder: Encoder, dtype: Any) -> Any:
    """Return the encoder's dtype policy; a model has no other of its own."""
    wanted = encoder.dtype_policy if dtype is None else keras.dtype_policies.get(dtype)
    if wanted.name != encoder.dtype_policy.name:
        raise InputError(
            f"The classifier was given dtype {wanted.name!r}, but its encoder has "
            f"{encoder.dtype_policy.name!r}, and the parts compute. Make encoder and head with "
            f"dtype={wanted.name!r}, or call keras.config.set_dtype_policy before making them."
        )
    return wanted
