"""From what people pass to `fit`, `evaluate` and `predict` to what Keras takes."""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bertkit.data.batches import Order, TokenBudget, make_dataset, prefetched
from bertkit.data.examples import Examples
from bertkit.data.sampling import Temperature, sampling_of, temperature_of
from bertkit.encoder import INPUT_NAMES, Encoder
from bertkit.errors import BertkitError, InputError, shown
from bertkit.features import Features, is_features
from bertkit.head import Head
from bertkit.inputs import is_symbolic, is_text, symbolic_texts, tensors_of, texts_of
from bertkit.labels import rows_of
from bertkit.preprocessor import Preprocessor

_NO_LABELS = "The dataset or generator yields no labels. Let it yield (texts, labels)."
# What yields batches by itself, labels included.
STREAMS = (tf.data.Dataset, Iterator, keras.utils.PyDataset)


class EpochCounter(keras.callbacks.Callback):
    """Tells which epoch `fit` is in, so that each has a shuffling of its own."""

    epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch


def batch_size_of(batch_size: Any, default: int = 32) -> int:
    """Return the number of rows a batch, the default if none is given.

    Raises:
        InputError: it is no whole number above 0.
    """
    return default if batch_size is None else whole_number("batch_size", batch_size)


def whole_number(name: str, value: Any) -> int:
    """Return an argument that must be a whole number above 0.

    Raises:
        InputError: it is none.
    """
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} is {shown(value)}. Give a whole number above 0.")
    return int(value)


def training_batch_size(batch_size: Any, batch_tokens: Any, x: Any) -> int | TokenBudget:
    """Return the rows, or else the tokens, that `fit` is to put into a batch.

    Raises:
        InputError: both are given, one is no whole number above 0, or `x` cannot be cut by tokens.
    """
    if batch_tokens is None:
        return batch_size_of(batch_size)
    if batch_size is not None:
        raise InputError("Both batch_size and batch_tokens are given. Give one of them.")
    if isinstance(x, STREAMS) or not is_text(x):
        raise InputError(
            "batch_tokens needs raw text. A dataset or generator has batches already; give "
            "batch_size for a dict of tensors, whose padding is fixed."
        )
    return TokenBudget(whole_number("batch_tokens", batch_tokens))


def training_temperature(
    temperature: Any,
    x: Any,
    batch_size: int | TokenBudget,
    shuffle: bool,
    epochs: int,
    steps_per_epoch: int | None,
) -> Temperature | None:
    """Return how `fit` is to draw the rows of tasks; `None` if each row comes once an epoch.

    Raises:
        InputError: it is no temperature, or does not go with what else `fit` is given.
    """
    made = temperature_of(temperature, epochs)
    if made is None:
        return None
    if isinstance(x, STREAMS) or not is_text(x):
        raise InputError(
            "temperature needs raw text. The rows of a dataset or generator are drawn already, and "
            "those of a dict of tensors by Keras."
        )
    if isinstance(batch_size, TokenBudget):
        raise InputError(
            "temperature does not go with batch_tokens: the number of batches would differ from "
            "epoch to epoch. Give batch_size."
        )
    if not shuffle:
        raise InputError("temperature draws rows at random. Leave shuffle=False out, or it.")
    if steps_per_epoch and made.first != made.last:
        raise InputError(
            "Two temperatures are those of the first pass over the rows and of the last. Leave "
            "steps_per_epoch out, or give one."
        )
    return made


def unpacked(batch: Any) -> tuple[Any, Any, Any]:
    """Return a batch, or validation data, as (inputs, labels, sample weights).

    Raises:
        InputError: it has more than these three parts.
    """
    parts = tuple(batch) if isinstance(batch, (list, tuple)) else (batch,)
    if not 1 <= len(parts) <= 3:
        raise InputError(
            f"A batch or validation_data has {len(parts)} parts. Give (texts, labels) or (texts, "
            "labels, weights)."
        )
    x, y, sample_weight = (*parts, None, None)[:3]
    return x, y, sample_weight


@dataclass
class Feed:
    """How raw data reach a model: its parts, and the options of one call.

    Attributes:
        encoder: which token ids and lengths there may be.
        preprocessor: what turns text into token ids; `None` if only tensors are taken.
        head: what turns labels into targets.
        class_weight: weight of each label, or `None`.
        multiple: lengths are rounded up to a multiple of it.
        errors: what went wrong while TensorFlow pulled batches; see `surfaced`.
    """

    encoder: Encoder
    preprocessor: Preprocessor | None
    head: Head
    class_weight: Mapping[Any, float] | None = None
    multiple: int = 1
    errors: list[BertkitError] = field(default_factory=list)

    def data(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        batch_size: int | TokenBudget,
        order: Order,
        epoch: Callable[[], int] = lambda: 0,
        labelled: bool = True,
        temperature: Temperature | None = None,
    ) -> dict[str, Any]:
        """Return the data of a call as keyword arguments of Keras's `fit` or `evaluate`.

        Raw text becomes a dataset of padded batches; a dataset or generator, one of converted
        batches; a dict of tensors stays arrays, which Keras cuts into batches itself.

        Raises:
            InputError: something in the data cannot be used.
        """
        if isinstance(x, STREAMS):
            if y is not None or sample_weight is not None:
                raise InputError(
                    "Labels and weights of a dataset or generator come with its batches. Let it "
                    "yield (texts, labels) or (texts, labels, weights), and pass it alone."
                )
            return {"x": self.stream(x, labelled)}
        if not is_text(x):
            tensors = tensors_of(x, self.encoder)
            columns = self.columns(len(tensors["token_ids"]), y, sample_weight) if labelled else ()
            named = dict(zip(("y", "sample_weight"), columns, strict=False))
            return {"x": tensors, **named, "batch_size": batch_size}
        examples = self.examples(x)
        columns = self.columns(len(examples), y, sample_weight) if labelled else ()
        seed = int(np.random.randint(2**31)) if order == "shuffled" else 0
        sampling = None
        if temperature is not None:
            sampling = sampling_of(self.head.known_tasks(columns[0]), temperature)
        dataset = make_dataset(
            examples, columns, batch_size, order, seed=seed, epoch=epoch, multiple=self.multiple,
            sampling=sampling,
        )  # fmt: skip
        return {"x": dataset}

    def split(self, x: Any, y: Any, sample_weight: Any, fraction: float) -> tuple[Any, Any]:
        """Return training and validation rows, `(x, y, sample_weight)` each, the last of the rows.

        Raises:
            InputError: the data cannot be cut, or nothing would be left on one side.
        """
        if isinstance(x, STREAMS):
            raise InputError(
                "validation_split cannot cut a dataset or generator. Cut it yourself, with take() "
                "and skip(), and pass validation_data."
            )
        x = self.examples(x) if is_text(x) else tensors_of(x, self.encoder)
        count = len(x["token_ids"] if isinstance(x, Mapping) else x)
        within = isinstance(fraction, (int, float, np.floating)) and 0 < fraction < 1
        cut = int(count * (1.0 - fraction)) if within else 0
        if not 0 < cut < count:
            raise InputError(
                f"validation_split={fraction!r} of {count} rows leaves nothing to train or to "
                "validate on. It is a fraction between 0 and 1."
            )

        def part(rows: slice) -> tuple[Any, ...]:
            if isinstance(x, Mapping):
                taken: Any = {name: tensor[rows] for name, tensor in x.items()}
            else:
                taken = x.take(rows)
            return taken, _part(y, rows), _part(sample_weight, rows)

        return part(slice(None, cut)), part(slice(cut, None))

    def examples(self, x: Any) -> Examples | Features:
        """Tokenize raw text, unless it is tokenized or encoded already.

        Raises:
            InputError: `x` is no text, there is none, there is no preprocessor, or `x` are
                features of another encoder or head.
        """
        if isinstance(x, Features):
            x.check(self.encoder, self.head.reads)
            if not len(x):
                raise InputError("These are the features of no row. Give at least one.")
            return x
        if isinstance(x, Examples):
            return x
        return Examples.from_texts(self._texts(x), self._needed())

    def rows(self, x: Any) -> Examples | Features | dict[str, Any]:
        """Return all rows at once: tokenized, encoded, or tensors.

        Raises:
            InputError: as `examples` does, or `x` comes batch by batch.
        """
        if isinstance(x, STREAMS):
            raise InputError(
                "Features are computed of all rows at once, and a dataset or generator gives them "
                "batch by batch. Give texts (and labels) as lists or arrays."
            )
        return self.examples(x) if is_text(x) else tensors_of(x, self.encoder)

    def columns(self, rows: int, y: Any, sample_weight: Any) -> tuple[np.ndarray, ...]:
        """Return targets, and sample weights if there are any, for `rows` rows.

        Raises:
            InputError: the labels or weights do not fit the rows, or both kinds of weight are
                given.
        """
        if y is None:
            raise InputError("There are no labels. Pass them as `y`, one a row.")
        targets = self.head.encode_labels(y)
        if len(targets) != rows:
            raise InputError(f"There are {rows} rows and {len(targets)} labels. Give one a row.")
        weights = self._weights(targets, sample_weight)
        return (targets,) if weights is None else (targets, weights)

    def _weights(self, targets: np.ndarray, sample_weight: Any) -> np.ndarray | None:
        if sample_weight is None:
            if self.class_weight is None:
                return None
            return self.head.class_weights(targets, self.class_weight)
        if self.class_weight is not None:
            raise InputError(
                "Both class_weight and sample_weight are given. Multiply them into sample_weight."
            )
        try:
            weights = np.asarray(rows_of(sample_weight, "sample weights"), dtype="float32")
        except (TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"The sample weights are {shown(sample_weight)}. Give one number a row."
            ) from None
        shapes = [(len(targets),)]
        if not self.head.known_tasks(targets).shape[1]:  # the columns of tasks are no labels
            shapes.append(targets.shape)
        if weights.shape not in shapes:
            raise InputError(
                f"sample_weight has shape {weights.shape} for {len(targets)} rows. Give one number "
                "a row."
            )
        wrong = np.argwhere(~((weights >= 0) & (weights < np.inf)))
        if len(wrong):
            row = int(wrong[0, 0])
            raise InputError(
                f"sample_weight of row {row} is {shown(weights[row].tolist())}. Give finite "
                "numbers, 0 or more.",
                row,
            )
        return weights

    def batch(self, x: Any, y: Any, sample_weight: Any = None) -> tuple[Any, ...]:
        """Return one batch as tensors: inputs, targets and, as far as given, weights."""
        inputs = self.inputs(x)
        return inputs, *self.columns(len(next(iter(inputs.values()))), y, sample_weight)

    def inputs(self, x: Any) -> dict[str, Any]:
        """Return a batch of texts or tensors as the encoder's inputs, int32 (B, T) each.

        A batch of features, which needs no encoder, stays one.
        """
        if isinstance(x, Features):
            x.check(self.encoder, self.head.reads)
            return x.batch(np.arange(len(x)))
        if not is_text(x):
            return x if is_features(x) else tensors_of(x, self.encoder)
        preprocessor = self._needed()
        if is_symbolic(x):
            return preprocessor(symbolic_texts(x, preprocessor.text_columns))
        return preprocessor(tf.constant(self._texts(x).tolist()))

    def _texts(self, x: Any) -> np.ndarray:
        texts = texts_of(x, self._needed().text_columns)
        if len(texts) == 0:
            raise InputError("There are no rows. Give at least one text.")
        return texts

    def _needed(self) -> Preprocessor:
        if self.preprocessor is None:
            raise InputError(
                "Raw text came to a model without a preprocessor. Make it with one, as in "
                "BertClassifier(encoder, head, preprocessor='single_text'), or pass a dict of "
                f"{', '.join(INPUT_NAMES)}."
            )
        return self.preprocessor

    def stream(self, x: Any, labelled: bool = True) -> tf.data.Dataset:
        """Return a dataset of converted batches from a dataset or generator of raw ones.

        The types of the columns are those of the first batch.

        Args:
            x: yields `(texts or tensors, labels, sample weights)` batches, the latter two as far
                as there are any.
            labelled: whether labels are wanted; if not, they are passed over.

        Raises:
            InputError: there is no batch, or the first one cannot be used. What is wrong with
                a later one is raised while it is pulled; see `surfaced`.
        """
        source = _started(x)
        there = weakref.ref(source)

        def convert(batch: Any) -> tuple[Any, ...]:
            if not labelled:  # a list is a batch of texts
                return (self.inputs(batch[0] if isinstance(batch, tuple) and batch else batch),)
            texts, labels, weights = unpacked(batch)
            if labels is None:
                raise InputError(_NO_LABELS)
            return self.batch(texts, labels, weights)

        def converted() -> Iterator[tuple[Any, ...]]:
            count, source = 0, there()
            if source is None:
                return
            try:
                for count, batch in enumerate(source.batches(), start=1):
                    parts = convert(batch)
                    if len(parts) != 1 + len(columns):
                        raise InputError(
                            f"Batch {count - 1} has {'no ' if columns[1:] else ''}sample weights, "
                            "unlike the first one. Give them with each batch or with none."
                        )
                    yield parts
                if count == 0:
                    raise InputError(
                        "The generator is used up, and another epoch was to begin. Give a list or "
                        "a tf.data.Dataset, or an endless generator with a number of steps."
                    )
            except BertkitError as error:
                self.errors.append(error)
                raise

        inputs, *columns = convert(source.first)
        spec = (
            {name: tf.TensorSpec((None, None), tf.int32) for name in inputs},
            *(tf.TensorSpec((None, *column.shape[1:]), column.dtype) for column in columns),
        )
        dataset = tf.data.Dataset.from_generator(converted, output_signature=spec)
        if isinstance(x, (tf.data.Dataset, keras.utils.PyDataset)):
            count = x.cardinality() if isinstance(x, tf.data.Dataset) else x.num_batches
            if count is not None and count != tf.data.UNKNOWN_CARDINALITY:
                dataset = dataset.apply(tf.data.experimental.assert_cardinality(count))
        return prefetched(dataset, source)

    def learn_labels(self, x: Any) -> None:
        """Let the head learn its labels from a dataset, in a pass of its own.

        Raises:
            InputError: `x` cannot be read twice, or never ends.
        """
        endless = (
            isinstance(x, tf.data.Dataset) and x.cardinality() == tf.data.INFINITE_CARDINALITY
        ) or (isinstance(x, keras.utils.PyDataset) and x.num_batches is None)
        if isinstance(x, Iterator) or endless:
            raise InputError(
                f"The labels cannot be learned from {'an endless dataset' if endless else 'a generator'}, "  # noqa: E501
                "which can be read only once. Give the head its `labels`, or call "
                "`head.adapt(labels)` first."
            )
        parts = [unpacked(batch)[1] for batch in _started(x).batches()]
        if any(part is None for part in parts):
            raise InputError(_NO_LABELS)
        parts = [part.numpy() if isinstance(part, tf.Tensor) else part for part in parts]
        shapes = {part.shape[1:] if isinstance(part, np.ndarray) else None for part in parts}
        if len(shapes) == 1 and None not in shapes:  # a matrix stays one
            self.head.adapt(np.concatenate(parts))
        else:
            self.head.adapt([row for part in parts for row in rows_of(part)])

    @contextlib.contextmanager
    def surfaced(self) -> Iterator[None]:
        """Raise our own error where TensorFlow has wrapped it in one of its own."""
        try:
            yield
        except tf.errors.OpError:
            if self.errors:
                raise self.errors[0] from None
            raise


def _part(column: Any, rows: slice) -> Any:
    if column is None:
        return None
    if hasattr(column, "iloc"):
        return column.iloc[rows]
    sliceable = isinstance(column, np.ndarray) or tf.is_tensor(column)
    return (column if sliceable else rows_of(column))[rows]


def _batches(x: Any) -> Iterator[Any]:
    """Iterate over a dataset's batches once."""
    if not isinstance(x, keras.utils.PyDataset):
        yield from x
        return
    for index in itertools.count() if x.num_batches is None else range(x.num_batches):
        yield x[index]
    x.on_epoch_end()  # where it shuffles


@dataclass
class _Raw:
    """A dataset or generator of raw batches: how a pass over it begins, and its first batch."""

    batches: Callable[[], Iterator[Any]]
    first: Any


def _started(x: Any) -> _Raw:
    """Look at the first batch of `x`.

    A generator has one pass only, which begins with the batch that was looked at.
    """
    batches = _batches(x)
    first = next(batches, None)
    if first is None:
        raise InputError("The dataset or generator yields nothing. Give at least one batch.")
    texts = first[0] if isinstance(first, tuple) and first else first
    if tf.is_tensor(texts) and texts.shape.rank == 0:
        raise InputError("The dataset yields single texts. Batch it, as in dataset.batch(32).")
    if isinstance(x, Iterator):
        once = itertools.chain([first], batches)
        return _Raw(lambda: once, first)
    return _Raw(lambda: _batches(x), first)
