"""`BertClassifier`: an encoder, a head and, for raw text, a preprocessor, as one Keras model."""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bertkit.compiling import named_metrics, refuse_named_loss
from bertkit.data.batches import Order, make_dataset, plan
from bertkit.encoder import Encoder
from bertkit.errors import BertkitError, InputError, shown
from bertkit.feeding import STREAMS, EpochCounter, Feed, batch_size_of, unpacked
from bertkit.gradients import GradientReport, gradient_report
from bertkit.guards import EncoderMoves, check_trainable, connected
from bertkit.head import Head
from bertkit.inputs import is_text
from bertkit.preprocessor import Preprocessor
from bertkit.registry import REGISTRIES, heads, preprocessors
from bertkit.training import schedule as _schedule  # noqa: F401 - saved optimizers name it
from bertkit.training.optimizer import AdamW

DEFAULT_LEARNING_RATE = 5e-5


@keras.saving.register_keras_serializable("bertkit")
class BertClassifier(keras.Model):
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
        features = self.encoder(tensors, reads=self.head.reads, training=training)
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

        To the last bit what Keras itself does; it stands here so that it can be changed.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            logits = self(x, training=True)  # (B, outputs)
            loss = self.compute_loss(x, y, logits, sample_weight, training=True)
            self._track_loss(loss, x)
            scaled = self.optimizer.scale_loss(loss)  # mixed_float16 trains only with it
        weights = self.trainable_weights
        if weights:
            gradients = tape.gradient(scaled, weights)
            self.optimizer.apply_gradients(connected(self, tape, weights, gradients))
        else:
            warnings.warn("Everything is frozen, so this step trains nothing.", stacklevel=2)
        return self.compute_metrics(x, y, logits, sample_weight=sample_weight)

    def make_train_function(self, force: bool = False) -> Any:
        """Have the step traced, as Keras does; refuse a `trainable` that was changed too late."""
        check_trainable(self, anew=force or self.train_function is None)
        return super().make_train_function(force)

    def _track_loss(self, loss: tf.Tensor, x: Any) -> None:
        """Add a batch to the loss that is shown: a mean over examples, not over batches."""
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if replicas > 1:  # under a strategy the loss comes divided by their number
            loss = loss * replicas
        batch = tf.shape(tf.nest.flatten(x)[0])[0]
        self._loss_tracker.update_state(loss, sample_weight=batch)

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

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: Mapping[Any, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: Any = 1,
    ) -> keras.callbacks.History:
        """Train, as `keras.Model.fit`, on raw text and raw labels too.

        `class_weight` maps labels, as they are in the data, to weights. Rows are padded to the
        longest of a batch of similar length, and shuffled anew each epoch.

        Raises:
            InputError: texts, tensors, labels or weights that cannot be used; the message says
                which row and what to do.
        """
        feed = self._feed(class_weight)
        size = batch_size_of(batch_size)
        if validation_split and validation_data is None:
            parts = feed.split(x, y, sample_weight, validation_split)
            (x, y, sample_weight), validation_data = parts
        counter, passes = EpochCounter(), itertools.count()
        with self._learning(feed, x, y):
            training = feed.data(
                x,
                y,
                sample_weight,
                batch_size=size,
                order="shuffled" if shuffle else "given",
                # With steps_per_epoch one pass over the data is no epoch: count the passes.
                epoch=lambda: next(passes) if steps_per_epoch else counter.epoch,
            )
            self._check_weights(training["x"])
            if validation_data is not None:
                validation = self._feed(errors=feed.errors).data(
                    *unpacked(validation_data),
                    batch_size=batch_size_of(validation_batch_size, default=size),
                    order="given" if validation_steps else "sorted",
                )
                names = ("x", "y", "sample_weight")
                columns = tuple(validation[name] for name in names if name in validation)
                validation_data = columns if len(columns) > 1 else columns[0]
        with feed.surfaced():
            return super().fit(
                **training,
                epochs=epochs,
                verbose=verbose,
                callbacks=_with(callbacks, counter, EncoderMoves(self)),
                validation_data=validation_data,
                validation_batch_size=validation_batch_size,
                shuffle=shuffle and "y" in training,  # a dataset shuffles itself
                initial_epoch=initial_epoch,
                steps_per_epoch=steps_per_epoch,
                validation_steps=validation_steps,
                validation_freq=validation_freq,
            )

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: Any = "auto",
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Any = None,
        return_dict: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Measure loss and metrics, as `keras.Model.evaluate`, on raw text and labels too."""
        options = {"verbose": verbose, "steps": steps, "callbacks": callbacks,
                   "return_dict": return_dict, **kwargs}  # fmt: skip
        if kwargs.get("_use_cached_eval_dataset"):  # `fit` validates: its data are converted
            return super().evaluate(x, y, batch_size, sample_weight=sample_weight, **options)
        self.build()
        feed = self._feed()
        size = batch_size_of(batch_size)
        order: Order = "given" if steps else "sorted"
        data = feed.data(x, y, sample_weight, batch_size=size, order=order)
        self._compile_from_head()
        with feed.surfaced():
            return super().evaluate(**data, **options)

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: Any = "auto",
        steps: int | None = None,
        callbacks: Any = None,
    ) -> np.ndarray:
        """Return logits, float32 (N, outputs), in the order of the rows, from raw text too."""
        self.build()
        feed = self._feed()
        size = batch_size_of(batch_size)
        options = {"verbose": verbose, "steps": steps, "callbacks": callbacks}
        with feed.surfaced():
            if isinstance(x, STREAMS) or not is_text(x):
                data = feed.data(x, batch_size=size, order="given", labelled=False)
                return super().predict(**data, **options)
            examples = feed.examples(x)
            order: Order = "given" if steps else "sorted"
            dataset = make_dataset(examples, (), size, order, multiple=feed.multiple)
            outputs = super().predict(dataset, **options)
        restored = np.empty_like(outputs)
        restored[np.concatenate(plan(examples.lengths, size, order))[: len(outputs)]] = outputs
        return restored

    def classify(self, x: Any, batch_size: int | None = None) -> list[dict[str, Any]]:
        """Return a prediction for each row, as the head decodes it.

        Args:
            x: what `predict` takes.
            batch_size: rows a batch.

        Returns:
            For most heads `{"label": …, "score": …, "scores": {label: probability}}` a row.
        """
        if isinstance(x, (list, tuple)) and not x:
            return []
        return self.head.decode(self.predict(x, batch_size=batch_size, verbose=0))

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Mapping[Any, float] | None = None,
        return_dict: bool = False,
    ) -> Any:
        """Take one step on one batch, as `keras.Model.train_on_batch`."""
        feed = self._feed(class_weight)
        with self._learning(feed, x, y):
            batch = feed.batch(x, y, sample_weight)
        return super().train_on_batch(*batch, return_dict=return_dict)

    def test_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False
    ) -> Any:
        """Measure one batch, as `keras.Model.test_on_batch`."""
        self.build()
        batch = self._feed().batch(x, y, sample_weight)
        self._compile_from_head()
        return super().test_on_batch(*batch, return_dict=return_dict)

    def predict_on_batch(self, x: Any) -> np.ndarray:
        """Return the logits of one batch, as `keras.Model.predict_on_batch`."""
        return super().predict_on_batch(self._feed().inputs(x))

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

    def _feed(
        self,
        class_weight: Mapping[Any, float] | None = None,
        errors: list[BertkitError] | None = None,
    ) -> Feed:
        # XLA compiles anew for every length, so it gets few of them, none beyond the positions.
        multiple = math.gcd(32, self.encoder.max_sequence_length) if self.jit_compile else 1
        return Feed(
            encoder=self.encoder,
            preprocessor=self.preprocessor,
            head=self.head,
            class_weight=class_weight,
            multiple=multiple,
            errors=[] if errors is None else errors,
        )

    @contextlib.contextmanager
    def _learning(self, feed: Feed, x: Any, y: Any) -> Iterator[None]:
        """Let the head learn its labels for a block that converts the data.

        If the data turn out unusable the head forgets them again; if not, the model is made
        ready for training.
        """
        before = self.head.__dict__.copy()
        try:
            if not self.head.adapted:
                if isinstance(x, STREAMS):
                    feed.learn_labels(x)
                else:
                    self.head.adapt(y)
            yield
        except BertkitError:
            self.head.__dict__.clear()
            self.head.__dict__.update(before)
            raise
        with self.distribute_strategy.scope():
            self.build()
            self._compile_from_head()
            # Were its variables made in the first step, TensorFlow would trace the step twice.
            if not self.optimizer.built:
                self.optimizer.build(self.trainable_weights)

    def _compile_from_head(self) -> None:
        """Give `compile` what it was not given: the head's loss and metrics, AdamW.

        Raises:
            InputError: a loss or metric was given by a name that would misread logits.
        """
        given = dict(self._compile_config.config) if self.compiled else {}
        completed = dict(given)
        if _is_default(given.get("optimizer")):
            completed["optimizer"] = AdamW(DEFAULT_LEARNING_RATE)
        if given.get("loss") is None:
            completed["loss"] = self.head.make_loss()
        refuse_named_loss(given.get("loss"))
        if given.get("metrics") is None and given.get("weighted_metrics") is None:
            completed["metrics"] = self.head.make_metrics()
        for key in ("metrics", "weighted_metrics"):
            if given.get(key):
                completed[key] = named_metrics(given[key], self.head)
        if any(completed[key] is not given.get(key) for key in completed):
            self.compile(**completed)

    def _check_weights(self, data: Any) -> None:
        """Refuse weights by label for metrics that weigh rows."""
        spec: Any = data.element_spec if isinstance(data, tf.data.Dataset) else ()
        by_label = len(spec) == 3 and spec[2].shape.rank == 2
        given = self._compile_config.config if self.compiled else {}
        if by_label and given.get("weighted_metrics"):
            raise InputError(
                "class_weight weighs each label of a row here, and weighted_metrics weigh whole "
                "rows. Give compile these as `metrics`, or give `sample_weight`, one a row."
            )

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
            kind: config[kind] and registry.create(config[kind]["plugin"], **config[kind]["config"])
            for kind, registry in REGISTRIES.items()
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


def _is_default(optimizer: Any) -> bool:
    """Return whether an optimizer is none, or what `compile` takes when it is given none."""
    if optimizer is None:
        return True
    default = keras.optimizers.RMSprop(name=optimizer.name)
    return type(optimizer) is type(default) and optimizer.get_config() == default.get_config()


def _with(callbacks: Any, *ours: keras.callbacks.Callback) -> Any:
    """Add our own to whatever form `callbacks` has."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks.callbacks.extend(ours)
        return callbacks
    if callbacks is None:
        return list(ours)
    return [*ours, *(callbacks if isinstance(callbacks, (list, tuple)) else [callbacks])]
