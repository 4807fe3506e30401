"""What `fit` refuses: hidden variables, a late `trainable`, an encoder that does not move."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import bertkit
from bertkit.errors import TrainingError
from bertkit.training.groups import ParameterGroup
from bertkit.training.optimizer import AdamW
from bertkit.training.schedule import WarmupSchedule
from tests.tiny import VOCABULARY
from tests.tiny_models import HEADS, LABELS, TEXTS, assert_same, tiny_model, weights_of

Y = LABELS["binary"]
ROWS, WIDTH = len(VOCABULARY), 16


class Sized(bertkit.Encoder):
    """An encoder without weights."""

    def __init__(self) -> None:
        super().__init__(name="bag")
        self.vocabulary_size, self.hidden_size = ROWS, WIDTH
        self.max_sequence_length, self.num_segments = 40, 2
        self.vocabulary = bertkit.Vocabulary(VOCABULARY)
        self.built = True


class Bag(Sized):
    """The mean of token embeddings, and something on top.

    Args:
        above: from (B, H) to (B, H).
        below: from the embeddings, (B, T, H), to the same.
    """

    def __init__(
        self, above: Callable[[Any], Any] = tf.identity, below: Callable[[Any], Any] = tf.identity
    ) -> None:
        super().__init__()
        self.above, self.below = above, below
        self.table = self.add_weight(shape=(ROWS, WIDTH), initializer="uniform", name="table")
        self.kernel = self.add_weight(shape=(WIDTH, WIDTH), initializer="orthogonal", name="kernel")

    def call(self, inputs: Any, reads: Any = ("pooled",), training: bool = False) -> Any:
        embedded = self.below(tf.gather(self.table, inputs["token_ids"]))  # (B, T, H)
        pooled = tf.reduce_mean(tf.cast(embedded, self.compute_dtype), axis=1)
        return {
            "pooled": self.above(tf.matmul(pooled, self.kernel)),
            "mask": inputs["padding_mask"],
        }


class Around(Sized):
    """An encoder around a model that computes (B, H) from token ids, (B, T).

    Args:
        module: the model.
        keep: where it is kept: in an "attribute", in a "list" that Keras does not see, or in a
            "closure" alone.
    """

    def __init__(self, module: Any, keep: str) -> None:
        super().__init__()
        if keep == "attribute":
            self.module = module
        elif keep == "list":
            object.__setattr__(self, "modules", [module])
        self.compute: Callable[[Any], Any] = lambda ids: module(ids)

    def call(self, inputs: Any, reads: Any = ("pooled",), training: bool = False) -> Any:
        return {"pooled": self.compute(inputs["token_ids"]), "mask": inputs["padding_mask"]}


def classifier(
    encoder: bertkit.Encoder,
    head: str = "binary",
    cls: type[bertkit.BertClassifier] = bertkit.BertClassifier,
) -> bertkit.BertClassifier:
    keras.utils.set_random_seed(0)
    made = bertkit.heads.create(head)
    made.adapt(LABELS[head])
    text = bertkit.preprocessors.create("single_text", sequence_length=32)
    model = cls(encoder, made, text)
    model.compile(keras.optimizers.SGD(0.1), metrics=[])  # metrics take longest to trace
    return model


def fit(model: bertkit.BertClassifier, head: str = "binary", **options: Any) -> int:
    """Train, and return after how many batches it ended."""
    seen: list[int] = []
    count = keras.callbacks.LambdaCallback(on_train_batch_begin=lambda batch, logs: seen.append(1))
    options = {"batch_size": 2, "verbose": 0, **options}
    try:
        model.fit(TEXTS, LABELS[head], callbacks=[count], **options)
    except TrainingError as error:
        error.batches = len(seen)  # type: ignore[attr-defined]
        raise
    return len(seen)


def refused(model: bertkit.BertClassifier, match: str, **options: Any) -> TrainingError:
    with pytest.raises(TrainingError, match=match) as caught:
        fit(model, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600 and message.endswith(".")
    return caught.value


# --- Variables that the model does not list


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write a SavedModel with the interface of TF Hub, (B, T) token ids to (B, H)."""
    folder = str(tmp_path_factory.mktemp("hub"))
    root = tf.train.Checkpoint()
    table = tf.Variable(tf.random.stateless_normal((ROWS, WIDTH), (1, 2)), name="table")
    kernel = tf.Variable(tf.random.stateless_normal((WIDTH, WIDTH), (3, 4)), name="kernel")

    def call(ids: tf.Tensor) -> tf.Tensor:
        return tf.tanh(tf.reduce_mean(tf.gather(table, ids), axis=1) @ kernel)

    signature = [tf.TensorSpec((None, None), tf.int32)]
    root.__call__ = tf.function(call, input_signature=signature)
    root.variables = root.trainable_variables = [table, kernel]
    tf.saved_model.save(root, folder)
    return folder


def module(kind: str, folder: str) -> Any:
    if kind == "a hub.KerasLayer":
        import tensorflow_hub as hub

        return hub.KerasLayer(folder, trainable=True)
    if kind == "a loaded SavedModel":
        return tf.saved_model.load(folder)
    if kind == "a Sequential":
        return keras.Sequential(
            [keras.layers.Embedding(ROWS, WIDTH), keras.layers.GlobalAveragePooling1D()]
        )

    class Module(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = tf.Variable(tf.ones((ROWS, WIDTH)), name="table")

        def __call__(self, ids: tf.Tensor) -> tf.Tensor:
            return tf.reduce_mean(tf.gather(self.table, ids), axis=1)

    return Module()


@pytest.mark.parametrize(
    ("kind", "keep", "owner"),
    [
        ("a hub.KerasLayer", "attribute", "in bag.module, a hub.KerasLayer"),
        ("a loaded SavedModel", "attribute", "in bag.module, a loaded SavedModel"),
        ("a loaded SavedModel", "list", "in bag.modules, a loaded SavedModel"),
        ("a Module", "attribute", "in bag.module, a Module"),
        ("a Sequential", "list", "in bag.modules, a Sequential"),
        ("a Module", "closure", ""),
    ],
)
def test_hidden_variables_are_refused(saved_model: str, kind: str, keep: str, owner: str) -> None:
    model = classifier(Around(module(kind, saved_model), keep))
    before = weights_of(model)
    names = "embedding" if kind == "a Sequential" else "table"
    error = refused(model, rf"variables that it does not list.*{names}{'.*' + owner}")
    assert ", in " in str(error) or keep == "closure"
    assert "self.add_weight" in str(error) and "'tfhub'" in str(error)
    assert error.batches == 1  # type: ignore[attr-defined]
    assert_same(weights_of(model)[: len(before)], before)
    with pytest.raises(TrainingError):
        model.train_on_batch(TEXTS, Y)


@pytest.mark.parametrize("keep", ["attribute", "closure"])
def test_what_is_frozen_on_purpose_may_be_hidden(saved_model: str, keep: str) -> None:
    encoder = Around(module("a hub.KerasLayer", saved_model), keep)
    encoder.trainable = False
    assert fit(classifier(encoder)) == 6


def test_a_listed_variable_of_a_saved_model_is_trained(saved_model: str) -> None:
    loaded = tf.saved_model.load(saved_model)
    encoder = Around(loaded, "list")
    for variable in loaded.trainable_variables:
        listed = keras.Variable(variable.numpy(), name=variable.name.partition(":")[0])
        listed._value = variable
        encoder._track_variable(listed)
    before = [variable.numpy() for variable in loaded.trainable_variables]
    model = classifier(encoder)
    fit(model)
    for old, variable in zip(before, loaded.trainable_variables, strict=True):
        assert not np.array_equal(old, variable)


# --- `trainable` after compile

LATE = r"`trainable` was changed after the model was compiled"


def test_freezing_after_training_is_refused() -> None:
    model = classifier(Bag())
    fit(model)
    model.encoder.trainable = False
    before = weights_of(model)
    refused(model, rf"{LATE}.*bag/table, bag/kernel would go on training\. Call model\.compile")
    with pytest.raises(TrainingError, match=LATE):
        model.train_on_batch(TEXTS, Y)
    assert_same(weights_of(model), before)
    model.compile(model.optimizer, metrics=[])  # which knows them all, and need not be a new one
    still = [np.array(weight) for weight in model.encoder.weights]
    fit(model)
    fit(model)
    assert_same([np.array(weight) for weight in model.encoder.weights], still)


def test_unfreezing_after_training_is_refused() -> None:
    model = classifier(Bag())
    model.encoder.trainable = False
    fit(model)
    model.encoder.trainable = True
    refused(model, rf"{LATE}.*bag/table, bag/kernel would stay as they are\. .* new optimizer")
    model.compile(model.optimizer, metrics=[])
    refused(model, LATE)
    model.compile(keras.optimizers.SGD(0.1), metrics=[])
    before = [np.array(weight) for weight in model.encoder.weights]
    fit(model)
    for old, weight in zip(before, model.encoder.weights, strict=True):
        assert not np.array_equal(old, weight)


def test_what_takes_effect_is_not_refused() -> None:
    model = classifier(Bag())
    model.encoder.trainable = False  # nothing is traced or built yet
    fit(model)
    eager = classifier(Bag())
    eager.compile(keras.optimizers.SGD(0.1), metrics=[], run_eagerly=True)
    fit(eager)
    eager.encoder.trainable = False
    before = [np.array(weight) for weight in eager.encoder.weights]
    fit(eager)
    eager.encoder.trainable = True
    assert_same([np.array(weight) for weight in eager.encoder.weights], before)
    fit(eager)
    during = classifier(Bag())

    def freeze(epoch: int, logs: Any) -> None:  # as Keras says to do it
        during.encoder.trainable = False
        during.make_train_function(force=True)

    callback = keras.callbacks.LambdaCallback(on_epoch_end=freeze)
    during.fit(TEXTS, Y, epochs=2, callbacks=callback, verbose=0)
    during.fit(TEXTS, Y, verbose=0)


# --- No gradient


def test_an_encoder_without_a_gradient_is_refused_before_anything_moves() -> None:
    model = classifier(Bag(above=tf.stop_gradient))
    before = [np.array(weight) for weight in model.weights]
    error = refused(model, "No gradient reaches the encoder.*bag/table, bag/kernel")
    assert error.batches == 1  # type: ignore[attr-defined]
    assert_same([np.array(weight) for weight in model.weights], before)


def test_a_model_without_a_gradient_is_refused() -> None:
    model = classifier(Bag())
    model.compile(
        "sgd", metrics=[], loss=lambda y, logits: tf.stop_gradient(tf.reduce_mean(logits, axis=1))
    )
    refused(model, "No gradient reaches any weight")


def test_a_variable_without_a_gradient_is_named_once() -> None:
    model = classifier(Bag(below=tf.stop_gradient))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        fit(model, epochs=2)
    messages = [str(one.message) for one in caught if "radient" in str(one.message)]
    assert len(messages) == 1
    assert messages[0].startswith("No gradient reaches bag/table: the loss does not depend")


# --- An encoder that does not move


class HeadOnly(bertkit.BertClassifier):
    """Its step leaves the encoder out."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            logits = self(x, training=True)
            loss = self.optimizer.scale_loss(self.compute_loss(x, y, logits))
        weights = self.head.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return {"loss": loss}


MOVED_NONE = (
    "have moved none of its 2 variables: bag/table, bag/kernel. The rest of the model moves"
)


@pytest.mark.parametrize(
    ("optimizer", "options", "batches"),
    [
        (lambda: AdamW(1e-3), {}, 3),
        (lambda: AdamW(1e-3), {"run_eagerly": True}, 3),
        (lambda: AdamW(1e-3), {"steps_per_execution": 2}, 2),
        (lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), {}, 6),
        (lambda: keras.optimizers.SGD(Late(2)), {}, 5),
    ],
    ids=["adamw", "eager", "several steps at once", "accumulation", "a late start"],
)
def test_an_encoder_that_is_left_out_is_noticed(
    optimizer: Callable[[], Any], options: dict[str, Any], batches: int
) -> None:
    model = classifier(Bag(), cls=HeadOnly)
    model.compile(optimizer(), metrics=[], **options)
    error = refused(model, MOVED_NONE)
    assert error.batches == batches  # type: ignore[attr-defined]


@keras.saving.register_keras_serializable("tests")
class Late(keras.optimizers.schedules.LearningRateSchedule):
    """Exactly zero for some steps, then 0.1."""

    def __init__(self, zeros: int) -> None:
        self.zeros = zeros

    def __call__(self, step: Any) -> Any:
        return tf.where(step < self.zeros, 0.0, 0.1)

    def get_config(self) -> dict[str, Any]:
        return {"zeros": self.zeros}


def test_a_gradient_of_zero_is_noticed() -> None:
    model = classifier(Bag(above=lambda x: 0 * x))
    model.compile(keras.optimizers.SGD(0.1), metrics=[], run_eagerly=True)
    refused(model, f"3 updates at a learning rate of 0.1 {MOVED_NONE}")


def test_overflow_in_float16_counts_as_no_update() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = classifier(Bag(), cls=HeadOnly)
        scaled = keras.optimizers.LossScaleOptimizer(AdamW(1e-3), initial_scale=2.0**18)
        model.compile(scaled, metrics=[])
        error = refused(model, MOVED_NONE, epochs=5)
        skipped = round(18 - np.log2(np.array(scaled.dynamic_scale)))
        assert skipped > 0 and error.batches == skipped + 3  # type: ignore[attr-defined]
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("head", HEADS)
def test_every_head_trains_unhindered(head: str) -> None:
    model = classifier(Bag(), head)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert fit(model, head) == 6


def zero_head(model: bertkit.BertClassifier) -> None:
    for weight in model.head.weights:
        weight.assign(tf.zeros_like(weight))


@pytest.mark.parametrize(
    ("optimizer", "options", "change"),
    [
        (lambda: keras.optimizers.SGD(0.0), {}, None),
        (lambda: AdamW(1e-3, [ParameterGroup("^bag/", 0.0)]), {}, None),
        (lambda: AdamW(WarmupSchedule(1e-3, 6, 5)), {}, None),
        (lambda: keras.optimizers.SGD(0.1), {}, zero_head),
        (lambda: AdamW(1e-3), {"jit_compile": True}, None),
        (lambda: AdamW(1e-3), {}, lambda model: setattr(model.head, "trainable", False)),
        (lambda: AdamW(1e-3), {}, lambda model: setattr(model.encoder, "trainable", False)),
        (lambda: AdamW(1e-3), {}, lambda model: setattr(model.encoder.table, "trainable", False)),
    ],
    ids=["no rate", "no rate for the encoder", "warm-up", "a head of zeros", "XLA",
         "a frozen head", "a frozen encoder", "a frozen variable"],
)  # fmt: skip
def test_no_false_alarm(
    optimizer: Callable[[], Any], options: dict[str, Any], change: Callable[[Any], None] | None
) -> None:
    model = classifier(Bag())
    if change:
        change(model)
    model.compile(optimizer(), metrics=[], **{"run_eagerly": not options, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert fit(model) == 6


def test_rows_without_weight_move_nothing_and_are_named_in_the_end() -> None:
    model = classifier(Bag())
    weights = np.zeros(len(TEXTS))
    assert fit(model, sample_weight=weights) == 6
    with pytest.warns(UserWarning, match="96 updates .* nor has anything else moved"):
        fit(model, sample_weight=weights, epochs=17)


def test_a_model_that_is_loaded_trains_unhindered(tmp_path: Path) -> None:
    model = tiny_model("binary")
    model.compile(AdamW(1e-3), metrics=[])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(model)
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        fit(loaded)
    loaded.encoder.layers_in_order()[0].trainable = False
    refused(loaded, f"{LATE}.*embeddings/token_embedding.* and 2 more would go on training")
