"""Training the head alone, on features that the encoder computes once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from bertkit.classifier import BertClassifier
from bertkit.errors import InputError
from bertkit.feeding import batch_size_of, unpacked
from bertkit.training.optimizer import AdamW


class HeadTrainer(BertClassifier):
    """A classifier's own parts, of which the head alone trains; saving it saves the classifier.

    Args:
        classifier: what the parts are of, loss and metrics included.
        learning_rate: of AdamW.

    Raises:
        InputError: there is nothing to train, or more than the head stands behind the encoder.
    """

    def __init__(self, classifier: BertClassifier, learning_rate: Any) -> None:
        for name in ("call", "train_step", "compute_loss", "compute_metrics"):
            if getattr(type(classifier), name) is not getattr(BertClassifier, name):
                raise InputError(
                    f"{type(classifier).__name__} has a `{name}` of its own, which training on the "
                    "encoder's features alone would leave out. Set encoder.trainable = False and "
                    "call fit instead."
                )
        super().__init__(classifier.encoder, classifier.head, classifier.preprocessor)
        # Not tracked: it holds the same parts.
        object.__setattr__(self, "_classifier", classifier)
        given = classifier._compile_config.config if classifier.compiled else {}
        self.compile(**{**given, "optimizer": AdamW(learning_rate)})

    @property
    def trainable_weights(self) -> list[Any]:
        """The head's."""
        return list(self.head.trainable_weights)

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save the classifier, as `ModelCheckpoint` asks for."""
        self._classifier.build()
        self._classifier.save(*args, **kwargs)

    def save_weights(self, *args: Any, **kwargs: Any) -> None:
        """Save the classifier's weights, with the state of its own optimizer if it has one."""
        self._classifier.save_weights(*args, **kwargs)


def fit_head(
    model: BertClassifier,
    x: Any,
    y: Any,
    sample_weight: Any,
    *,
    batch_size: int | None,
    learning_rate: Any,
    validation_data: Any,
    class_weight: Mapping[Any, float] | None,
    verbose: Any,
    **options: Any,
) -> keras.callbacks.History:
    """Do what `BertClassifier.fit_head` says."""
    batch_size_of(batch_size)
    with model.distribute_strategy.scope():
        trainer = HeadTrainer(model, learning_rate)
    feed = model._feed(class_weight)

    with trainer._learning(feed, x, y):  # what is wrong shows before the encoder has run, not after
        rows = feed.rows(x)
        feed.columns(_count(rows), y, sample_weight)
        if validation_data is not None:
            others, *columns = unpacked(validation_data)
            others = feed.rows(others)
            model._feed().columns(_count(others), *columns)
    if not trainer.trainable_weights:
        raise InputError("The head has no weights that train. Set model.head.trainable = True.")
    if validation_data is not None:
        validation_data = (model.features(others, verbose=verbose), *columns)
    history = trainer.fit(
        model.features(rows, verbose=verbose),
        y,
        batch_size=batch_size,
        sample_weight=sample_weight,
        validation_data=validation_data,
        class_weight=class_weight,
        verbose=verbose,
        **options,
    )
    model.build()
    return history


def _count(rows: Any) -> int:
    return len(rows["token_ids"] if isinstance(rows, Mapping) else rows)
