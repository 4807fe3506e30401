"""Keras's own workflow on raw text and raw labels: fit, evaluate, predict and the rest."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bertkit.compiling import named_metrics, refuse_named_loss
from bertkit.data.batches import BatchSource, Order, make_dataset, plan, source_of
from bertkit.encoder import Encoder
from bertkit.errors import BertkitError, InputError
from bertkit.feeding import (
    STREAMS,
    EpochCounter,
    Feed,
    batch_size_of,
    training_batch_size,
    training_temperature,
    unpacked,
    whole_number,
)
from bertkit.guards import EncoderMoves
from bertkit.head import Head
from bertkit.inputs import is_text
from bertkit.interrupts import heeded_interrupts
from bertkit.micro_batches import check_compared
from bertkit.objective import Objective
from bertkit.predicting import predict_examples, trace_once
from bertkit.preprocessor import Preprocessor
from bertkit.training import schedule as _schedule  # noqa: F401 - saved optimizers name it
from bertkit.training.following import checkpointed
from bertkit.training.optimizer import AdamW

DEFAULT_LEARNING_RATE = 5e-5


class RawTextModel(keras.Model):
    """A Keras model of an encoder, a head and a preprocessor, fed with what stands in the data.

    It converts what its calls are given, and completes `compile` from the head; what the parts
    compute is the subclass's.
    """

    encoder: Encoder
    head: Head
    preprocessor: Preprocessor | None
    objective: Objective | None = None
    micro_batch_size: int | None = None
    gradient_norm: tf.Variable | None = None  # of the last step, (), if someone watches it
    validates_averages: bool = False  # whether `fit` validates on averages of the weights
    batch_source: BatchSource | None = None  # of `fit`, if it makes its batches itself
    _traced_micro_batch_size: int | None = None

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
        batch_tokens: int | None = None,
        micro_batch_size: int | None = None,
        temperature: float | tuple[float, float] | None = None,
    ) -> keras.callbacks.History:
        """Train, as `keras.Model.fit`, on raw text and raw labels too.

        `class_weight` maps labels, as they are in the data, to weights. Rows are padded to the
        longest of a batch of similar length, and shuffled anew each epoch.

        `batch_tokens`, in place of `batch_size`, lets a batch have as many rows as fit into so many
        tokens, padding included; of raw text only. The number of steps is the same each epoch.

        `micro_batch_size` bounds the rows that are computed at once: the gradients of a batch are
        summed over its parts, for the update of the whole batch in the memory of a part (gradient
        accumulation). A loss or an objective that compares rows compares those of a part. XLA is
        left out then, as it wants to know the number of parts, unless `compile` asked for it.

        `temperature` T lets a task of n rows have a share of an epoch proportional to n ** (1 / T),
        of as many rows as there are; at 1, as without one, each row comes once. Two are those of
        the first epoch and of the last. It is for a head of several tasks, and raw text; rows with
        labels of several tasks count as a task of their own.

        Raises:
            InputError: texts, tensors, labels or weights that cannot be used; the message says
                which row and what to do.
        """
        feed = self._feed(class_weight)
        size = training_batch_size(batch_size, batch_tokens, x)
        drawn = training_temperature(temperature, x, size, shuffle, epochs, steps_per_epoch)
        if micro_batch_size is not None:
            micro_batch_size = whole_number("micro_batch_size", micro_batch_size)
            if self.wants_jit:
                raise InputError(
                    "micro_batch_size does not go with jit_compile=True: XLA wants to know the "
                    "number of parts. Leave one of them out."
                )
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
                temperature=drawn,
            )
            self._check_weights(training["x"])
            if validation_data is not None:
                validation = self._feed(errors=feed.errors).data(
                    *unpacked(validation_data),
                    batch_size=size
                    if validation_batch_size is None
                    else batch_size_of(validation_batch_size),
                    order="given" if validation_steps else "sorted",
                )
                names = ("x", "y", "sample_weight")
                columns = tuple(validation[name] for name in names if name in validation)
                validation_data = columns if len(columns) > 1 else columns[0]
        sizes = {"batch_size": batch_size, "micro_batch_size": micro_batch_size}
        check_compared(sizes, self.loss, self.objective)
        with (
            feed.surfaced(),
            heeded_interrupts() as interrupts,
            self._of_one_fit(None if steps_per_epoch else training["x"], micro_batch_size),
        ):
            fit = functools.partial(
                super().fit,
                **training,
                epochs=epochs,
                verbose=verbose,
                validation_data=validation_data,
                validation_batch_size=validation_batch_size,
                shuffle=shuffle and "y" in training,  # a dataset shuffles itself
                steps_per_epoch=steps_per_epoch,
                validation_steps=validation_steps,
                validation_freq=validation_freq,
            )
            return checkpointed(
                lambda listed, first: fit(callbacks=listed, initial_epoch=first),
                self,
                with_callbacks(callbacks, counter, EncoderMoves(self), interrupts),
                None if steps_per_epoch else training["x"],
                validation_data,
                epochs=epochs,
                initial_epoch=initial_epoch,
                verbose=verbose,
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
        options = {"verbose": verbose, "steps": steps, "return_dict": return_dict, **kwargs}
        if kwargs.get("_use_cached_eval_dataset"):  # `fit` validates: its data are converted
            return super().evaluate(
                x, y, batch_size, sample_weight=sample_weight, callbacks=callbacks, **options
            )
        self.build()
        feed = self._feed()
        size = batch_size_of(batch_size)
        order: Order = "given" if steps else "sorted"
        data = feed.data(x, y, sample_weight, batch_size=size, order=order)
        self._compile_from_head()
        with feed.surfaced(), heeded_interrupts() as interrupts:
            return super().evaluate(
                **data, callbacks=with_callbacks(callbacks, interrupts), **options
            )

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: Any = "auto",
        steps: int | None = None,
        callbacks: Any = None,
    ) -> np.ndarray:
        """Return logits, float32 (N, outputs), in the order of the rows, from raw text too.

        Raw text is sorted by length for it. Without a `batch_size` a batch is as many texts as
        make about 2,000 tokens.
        """
        self.build()
        feed = self._feed()
        size = batch_size_of(batch_size)
        with feed.surfaced(), heeded_interrupts() as interrupts:
            callbacks = with_callbacks(callbacks, interrupts)
            options = {"verbose": verbose, "steps": steps, "callbacks": callbacks}
            if isinstance(x, STREAMS) or not is_text(x):
                data = feed.data(x, batch_size=size, order="given", labelled=False)
                if isinstance(data["x"], tf.data.Dataset):
                    trace_once(self, data["x"].element_spec[0])
                return super().predict(**data, **options)
            examples = feed.examples(x)
            if self.distribute_strategy.num_replicas_in_sync == 1:
                trace_once(self, examples.signature)
                return predict_examples(self, examples, batch_size, feed.multiple, **options)
            order: Order = "given" if steps else "sorted"
            dataset = make_dataset(examples, (), size, order, multiple=feed.multiple)
            outputs = super().predict(dataset, **options)
        rows = np.concatenate(plan(examples.lengths, size, order))[: len(outputs)]
        return outputs[np.argsort(rows, kind="stable")]

    def classify(self, x: Any, batch_size: int | None = None) -> list[dict[str, Any]]:
        """Return a prediction for each row, as the head decodes it.

        Args:
            x: what `predict` takes.
            batch_size: rows a batch; as `predict` chooses if `None`.

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

    @property
    def jit_compile(self) -> bool:
        """Whether XLA compiles the steps.

        Where `compile` was left to decide ("auto"), it is what Keras decides, but for a batch in
        parts, of which XLA wants to know the number.
        """
        if self._jit_compile is not None:
            return bool(self._jit_compile)
        return self.micro_batch_size is None and bool(super()._resolve_auto_jit_compile())

    @jit_compile.setter
    def jit_compile(self, value: bool | None) -> None:
        keras.Model.jit_compile.fset(self, value)

    def _resolve_auto_jit_compile(self) -> None:
        """Let `compile` leave "auto" open, and its config too: it depends on what is trained."""

    @property
    def wants_jit(self) -> bool:
        """Whether `compile` was given `jit_compile=True`, and not merely left to decide."""
        # By its config: Keras sets no attribute to what it reads as already.
        return self.compiled and self._compile_config.config["jit_compile"] is True

    @contextlib.contextmanager
    def _of_one_fit(self, data: Any, micro_batch_size: int | None) -> Iterator[None]:
        """Hold what is of one `fit` alone for a block, however it ends.

        After an exception what is trainable is so again: callbacks that change it come no more to
        change it back.
        """
        trainable = [(weight, weight.trainable) for weight in self.weights]
        object.__setattr__(self, "batch_source", source_of(data))  # nothing that Keras is to track
        self.micro_batch_size = micro_batch_size
        try:
            yield
        except BaseException:
            for weight, before in trainable:
                if weight.trainable != before:
                    weight.trainable = before
                    self.train_function = None  # which trains others
            raise
        finally:
            self.batch_source = self.micro_batch_size = None
            self.validates_averages = False
            if self.gradient_norm is not None:
                self.gradient_norm = self.train_function = None

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
            if self.objective is not None:
                self.objective.begin(self)
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


def _is_default(optimizer: Any) -> bool:
    """Return whether an optimizer is none, or what `compile` takes when it is given none."""
    if optimizer is None:
        return True
    default = keras.optimizers.RMSprop(name=optimizer.name)
    return type(optimizer) is type(default) and optimizer.get_config() == default.get_config()


def with_callbacks(callbacks: Any, *ours: keras.callbacks.Callback) -> Any:
    """Return callbacks, in whatever form `fit` was given them, and some more."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        extended = copy.copy(callbacks)
        extended.callbacks = [*callbacks.callbacks, *ours]
        return extended
    if callbacks is None:
        return list(ours)
    return [*ours, *(callbacks if isinstance(callbacks, (list, tuple)) else [callbacks])]
