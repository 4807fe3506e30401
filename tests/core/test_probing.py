"""The head alone, on cached features: equal to training it behind a frozen encoder."""

from __future__ import annotations

import csv
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import bertkit
from bertkit import experiment, features, heads
from bertkit.config import load_config
from bertkit.errors import ConfigError, DivergenceError, InputError, TrainingError
from bertkit.training.optimizer import AdamW
from tests.command_line import (
    CommandLine,
    tiny_config,
    write_jsonl,
    write_tiny_data,
    write_yaml,
)
from tests.saved_models import write_encoder, write_sentence_encoder
from tests.tiny_models import (
    HEADS,
    LABELS,
    TEXTS,
    assert_refused,
    assert_same,
    tensors,
    tiny_encoder,
    tiny_model,
    weights_of,
)

Y = LABELS["binary"]
OPTIONS: dict[str, Any] = {"batch_size": 4, "verbose": 0}


class StrongestToken(bertkit.Head):
    """Reads every token, and the pooled features too."""

    reads = ("sequence", "pooled")

    def call(self, features: Any, training: bool = False) -> tf.Tensor:
        spoken = super().call({"pooled": features["sequence"]}, training)
        is_token = features["mask"][:, :, None] == 1
        strongest = tf.reduce_max(tf.where(is_token, spoken, spoken.dtype.min), axis=1)
        return strongest + super().call(features, training)

    def make_loss(self) -> keras.losses.Loss:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def make_metrics(self) -> list[keras.metrics.Metric]:
        return [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]


@pytest.fixture(autouse=True)
def strongest_token() -> Iterator[None]:
    """Register it for these tests alone: others look at all heads there are."""
    heads.register("test_strongest_token")(StrongestToken)
    yield
    del heads._decorated["test_strongest_token"]


LABELS_OF = {**LABELS, "test_strongest_token": LABELS["multiclass"]}


def model_of(head: str, **sizes: Any) -> bertkit.BertClassifier:
    keras.utils.set_random_seed(0)
    made = heads.create(head)
    made.adapt(LABELS_OF[head])
    text = bertkit.preprocessors.create("single_text", sequence_length=32)
    # Weights large enough for features to tell the rows apart.
    return bertkit.BertClassifier(tiny_encoder(initializer_range=0.3, **sizes), made, text)


def values(weights: Any) -> list[np.ndarray]:
    return [np.array(weight) for weight in weights]


def trained_twice(
    head: str, rate: Any = 0.03, tolerance: float = 1e-6, x: Any = TEXTS, **options: Any
) -> None:
    """Train by `fit_head`, and by `fit` behind a frozen encoder without dropout; compare."""
    options = {**OPTIONS, "epochs": 3, **options}
    policy = options.pop("dtype", "float32")
    keras.config.set_dtype_policy(policy)
    try:
        probed = model_of(head)
        probed.compile(run_eagerly=True)  # it takes longest to trace
        encoder = values(probed.encoder.weights)
        keras.utils.set_random_seed(1)
        history = probed.fit_head(x, LABELS_OF[head], learning_rate=rate, **options).history
        assert_same(values(probed.encoder.weights), encoder)

        fitted = model_of(head, dropout=0.0, attention_dropout=0.0)
        fitted.encoder.trainable = False
        fitted.compile(AdamW(rate), run_eagerly=True)
        keras.utils.set_random_seed(1)
        expected = fitted.fit(x, LABELS_OF[head], **options).history
    finally:
        keras.config.set_dtype_policy("float32")
    kernel = np.array(model_of(head).head.kernel)
    assert not np.allclose(probed.head.kernel, kernel, atol=1e-2), "nothing was learned"
    assert history.keys() == expected.keys()
    for name in history:
        np.testing.assert_allclose(history[name], expected[name], atol=10 * tolerance, rtol=1e-5)
    for one, other in zip(probed.head.weights, fitted.head.weights, strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance, rtol=0)


@pytest.mark.parametrize("head", ["multi_label", "regression", "test_strongest_token"])
def test_equals_fit_behind_a_frozen_encoder(head: str) -> None:
    weights = np.random.default_rng(0).uniform(0.1, 3, len(TEXTS))
    held_out = (TEXTS[:5], LABELS_OF[head][:5], weights[:5])
    trained_twice(head, sample_weight=weights, validation_data=held_out)


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "mixed_float16", "tolerance": 2e-3},
        {"dtype": "mixed_bfloat16", "tolerance": 2e-2},
        {"class_weight": {"pos": 3.0, "neg": 0.5}, "shuffle": False, "validation_split": 0.3},
        {"rate": keras.optimizers.schedules.ExponentialDecay(0.05, 3, 0.9), "batch_size": 3},
        {"x": tensors(), "shuffle": False},
    ],
    ids=["float16", "bfloat16", "class_weight", "schedule", "tensors"],
)
def test_equals_fit_whatever_the_options(options: dict[str, Any]) -> None:
    trained_twice("binary", **options)


def test_equals_plain_keras_on_arrays() -> None:
    model = model_of("multiclass")
    model.head.dropout = 0.0
    targets = model.head.encode_labels(LABELS["multiclass"])
    inputs = {name: tf.constant(x) for name, x in tensors().items()}
    pooled = np.array(model.encoder(inputs)["pooled"])
    dense = keras.Sequential([keras.Input(pooled.shape[1:]), keras.layers.Dense(3)])
    dense.set_weights(values(model.head.weights))
    optimizer = keras.optimizers.AdamW(0.03)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    dense.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    options = {**OPTIONS, "shuffle": False, "epochs": 5}
    expected = dense.fit(pooled, targets, **options).history["loss"]
    history = model.fit_head(TEXTS, LABELS["multiclass"], learning_rate=0.03, **options).history
    np.testing.assert_allclose(history["loss"], expected, rtol=1e-5)
    for one, other in zip(model.head.weights, dense.weights, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-6)


# --- Features


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["file", "memory"])
def test_features_are_the_encoders(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_IN_MEMORY", limit)
    model = model_of("test_strongest_token")
    found = model.features(TEXTS, batch_size=4)
    assert (
        isinstance(found.sequence, np.memmap) == isinstance(found.pooled, np.memmap) == (limit == 0)
    )
    for row, text in enumerate(TEXTS):
        assert model.preprocessor is not None
        inputs = model.preprocessor(tf.constant([text]))
        expected = model.encoder(inputs, reads=("pooled", "sequence"))
        batch = found.batch(np.array([row]))
        np.testing.assert_allclose(batch["pooled"], expected["pooled"], atol=1e-6)
        np.testing.assert_allclose(batch["sequence"], expected["sequence"], atol=1e-6)
        np.testing.assert_array_equal(batch["mask"], expected["mask"])
    both = found.take(np.array([8, 1])).batch(np.array([0, 1]), multiple=8)
    assert both["sequence"].shape == (2, 24, 16) and both["mask"][0].sum() == 4
    assert not both["sequence"][0, 4:].any()
    np.testing.assert_array_equal(both["pooled"], found.batch(np.array([8, 1]))["pooled"])


def test_padding_inside_of_a_row_is_kept() -> None:
    model = model_of("test_strongest_token")
    inputs = {name: x[:3].copy() for name, x in tensors().items()}
    inputs["padding_mask"][:, 1] = 0
    found = model.features(inputs)
    np.testing.assert_array_equal(found.batch(np.arange(3))["mask"], inputs["padding_mask"])
    np.testing.assert_allclose(model.predict(found), model.predict(inputs), atol=1e-6)


@pytest.mark.parametrize("head", ["multi_label", "test_strongest_token"])
def test_features_stand_where_texts_do(head: str) -> None:
    model, labels = model_of(head), LABELS_OF[head]
    found = model.features(TEXTS, batch_size=4)
    np.testing.assert_allclose(model.predict(found, verbose=0), model.predict(TEXTS), atol=1e-6)
    np.testing.assert_allclose(model(found), model.predict(TEXTS), atol=1e-6)
    results = [model.evaluate(x, labels, verbose=0, return_dict=True) for x in (found, TEXTS)]
    for name, value in results[0].items():
        np.testing.assert_allclose(value, results[1][name], atol=1e-5)
    assert model.test_on_batch(found, labels) == pytest.approx(
        model.test_on_batch(TEXTS, labels), abs=1e-5
    )


def test_heads_share_the_features_of_one_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    first = model_of("binary")
    found = first.features(TEXTS)
    calls: list[int] = []
    encode = bertkit.BertEncoder.call
    monkeypatch.setattr(
        bertkit.BertEncoder, "call", lambda *args, **kw: calls.append(1) or encode(*args, **kw)
    )
    for head in HEADS:
        model = bertkit.BertClassifier(first.encoder, head)
        model.compile(run_eagerly=True)
        history = model.fit_head(found, LABELS[head], epochs=2, **OPTIONS)
        again = model.fit_head(found, LABELS[head], epochs=2, **OPTIONS)
        assert again.history["loss"][-1] < history.history["loss"][0]
    assert calls == []


@pytest.mark.parametrize(
    ("write", "preprocessor"),
    [
        (functools.partial(write_encoder, gate=True, layers=1), "single_text"),
        (write_sentence_encoder, "text_bytes"),
    ],
    ids=["ids", "texts"],
)
def test_a_head_behind_the_graph_of_a_saved_model(
    tmp_path: Path, write: Callable[[Path], Path], preprocessor: str
) -> None:
    encoder = bertkit.encoders.create("tfhub", source=str(write(tmp_path / "graph")))
    text = bertkit.preprocessors.create(preprocessor, sequence_length=32)
    model = bertkit.BertClassifier(encoder, "binary", text)
    before = values(encoder.weights)
    model.fit_head(TEXTS, Y, epochs=2, **OPTIONS)
    assert_same(values(encoder.weights), before)
    found = model.features(TEXTS)
    np.testing.assert_allclose(model.predict(found), model.predict(TEXTS), atol=1e-5)


# --- Before and after


def test_labels_are_learned_and_fit_goes_on_from_there(tmp_path: Path) -> None:
    model = tiny_model(adapted=False)
    history = model.fit_head(TEXTS, Y, validation_data=(TEXTS, Y), **OPTIONS)
    assert history.epoch == list(range(20))
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= set(history.history)
    assert model.head.labels == ["neg", "pos"] and model.built and not model.compiled
    assert all(weight.trainable for weight in model.encoder.trainable_weights)
    model.save(tmp_path / "probed.keras")
    loaded = keras.models.load_model(tmp_path / "probed.keras")
    np.testing.assert_array_equal(loaded.predict(TEXTS), model.predict(TEXTS))
    before = values(loaded.trainable_weights)
    loaded.fit(TEXTS, Y, epochs=2, **OPTIONS)
    assert int(loaded.optimizer.iterations) == 6
    assert len(loaded.optimizer._trainable_variables) == len(before)
    for one, other in zip(before, loaded.trainable_weights, strict=True):
        assert not np.array_equal(one, other)
    loaded.fit_head(TEXTS, Y, epochs=1, **OPTIONS)  # the encoder has moved on
    loaded.save(tmp_path / "again.keras")
    assert int(keras.models.load_model(tmp_path / "again.keras").optimizer.iterations) == 6


def test_what_compile_was_given_is_left_alone() -> None:
    model = model_of("multiclass")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loss.call = lambda y_true, y_pred: 7.0 + 0.0 * tf.reduce_sum(y_pred, axis=-1)
    optimizer = keras.optimizers.SGD(0.1)
    metric = keras.metrics.SparseTopKCategoricalAccuracy(2, name="top_2")
    model.compile(optimizer, loss, metrics=[metric])
    model.encoder.layers_in_order()[0].trainable = False
    flags = [weight.trainable for weight in model.weights]
    found = model.fit_head(TEXTS, LABELS["multiclass"], epochs=2, **OPTIONS).history
    assert set(found) == {"loss", "top_2"} and found["loss"] == [7.0, 7.0]
    assert model.optimizer is optimizer and not optimizer.built
    assert [weight.trainable for weight in model.weights] == flags
    assert model.train_function is None
    model.fit(TEXTS, LABELS["multiclass"], **OPTIONS)
    assert model.optimizer is optimizer and int(optimizer.iterations) == 3


def test_a_model_in_training_goes_on_where_it_was() -> None:
    """With `fit_head` in between, a compiled model's next step is what it would have been."""

    def weights(between: bool) -> list[np.ndarray]:
        model = model_of("binary")
        model.head.dropout = 0.0
        model.compile(keras.optimizers.SGD(0.1, 0.9))
        model.fit(TEXTS, Y, shuffle=False, **OPTIONS)
        if between:
            kept = values(model.head.weights)
            model.fit_head(TEXTS, Y, epochs=1, **OPTIONS)
            for weight, value in zip(model.head.weights, kept, strict=True):
                weight.assign(value)
        model.fit(TEXTS, Y, shuffle=False, **OPTIONS)
        return weights_of(model)

    assert_same(weights(True), weights(False))


def test_callbacks_see_the_classifier(tmp_path: Path) -> None:
    model, seen = model_of("binary"), []

    class Classifies(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.model.classify(TEXTS[:2])
            seen.append(self.model.predict(TEXTS[:2], verbose=0))

    callbacks = [
        Classifies(),
        keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", monitor="loss"),
        keras.callbacks.ModelCheckpoint(tmp_path / "best.weights.h5", save_weights_only=True),
        keras.callbacks.EarlyStopping("loss", patience=1, min_delta=9, restore_best_weights=True),
    ]
    history = model.fit_head(TEXTS, Y, epochs=9, callbacks=callbacks, **OPTIONS)
    assert len(history.epoch) == len(seen) == 2
    loaded = keras.models.load_model(tmp_path / "best.keras")
    assert type(loaded) is bertkit.BertClassifier
    np.testing.assert_allclose(loaded.predict(TEXTS[:2]), seen[-1], atol=1e-6)
    loaded.fit(TEXTS, Y, **OPTIONS)
    other = model_of("binary")
    other.load_weights(tmp_path / "best.weights.h5")
    np.testing.assert_allclose(other.predict(TEXTS[:2]), seen[-1], atol=1e-6)


# --- Refusals


REFUSED: dict[str, tuple[Callable[[bertkit.BertClassifier], Any], str]] = {
    "generator": (lambda m: m.fit_head(iter([(TEXTS, Y)])), "batch by batch"),
    "dataset": (lambda m: m.features(tf.data.Dataset.from_tensors(TEXTS)), "batch by batch"),
    "label": (lambda m: m.fit_head(TEXTS, [*Y[:-1], "neutral"]), "neutral"),
    "validation label": (
        lambda m: m.fit_head(TEXTS, Y, validation_data=(TEXTS[:1], ["neutral"])),
        "neutral",
    ),
    "labels": (lambda m: m.fit_head(TEXTS, Y[:-1]), "11 rows and 10 labels"),
    "no labels": (lambda m: m.fit_head(TEXTS), "no labels"),
    "text": (lambda m: m.fit_head([*TEXTS[:-1], None], Y), "Row 10 is missing"),
    "weights": (lambda m: m.fit_head(TEXTS, Y, sample_weight=[1.0]), "sample_weight"),
    "batch size": (lambda m: m.fit_head(TEXTS, Y, batch_size=0), "batch_size is 0"),
    "other encoder": (
        lambda m: m.fit_head(tiny_model(seed=5).features(TEXTS), Y),
        "other weights than it has now",
    ),
    "other head": (
        lambda m: bertkit.BertClassifier(m.encoder, "test_strongest_token").fit_head(
            m.features(TEXTS), Y
        ),
        "reads sequence, which these features lack",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_leave_the_model_as_it_was(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, match = REFUSED[case]
    assert_refused(model_of("binary"), call, match)


def test_the_encoder_does_not_run_before_the_labels_are_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        bertkit.BertEncoder, "call", lambda *args, **kwargs: pytest.fail("the encoder ran")
    )
    model = tiny_model(adapted=False)
    assert_refused(
        model, lambda m: m.fit_head(TEXTS, Y, validation_data=(TEXTS, ["x"] * 11)), "'x'"
    )
    assert not model.head.adapted


def test_features_of_an_encoder_that_has_moved_are_refused() -> None:
    model = model_of("binary")
    found = model.features(TEXTS)
    model.fit(TEXTS, Y, **OPTIONS)
    for call in (
        lambda: model.fit_head(found, Y),
        lambda: model.predict(found),
        lambda: model.evaluate(found, Y),
        lambda: model.train_on_batch(found, Y),
    ):
        with pytest.raises(InputError, match="trained since"):
            call()


@pytest.mark.parametrize("change", [{"pooling": "mean"}, {"num_heads": 4}, {"hidden_act": "relu"}])
def test_features_of_an_encoder_that_computes_otherwise_are_refused(change: Any) -> None:
    """Though its weights are the same."""
    made = tiny_encoder(pooling="cls")
    other = bertkit.BertEncoder.from_config({**made.get_config(), **change})
    other.set_weights(made.get_weights())

    def classifier(encoder: bertkit.BertEncoder) -> bertkit.BertClassifier:
        text = bertkit.preprocessors.create("single_text", sequence_length=32)
        return bertkit.BertClassifier(encoder, "binary", text)

    ours, others = classifier(made), classifier(other)
    found = ours.features(TEXTS)
    with pytest.raises(InputError, match="another pooling, say"):
        others.fit_head(found, Y, **OPTIONS)
    # What changes no feature is no reason: the name and the dropout.
    same = bertkit.BertEncoder.from_config({**made.get_config(), "name": "same", "dropout": 0.4})
    same.set_weights(made.get_weights())
    classifier(same).fit_head(found, Y, **OPTIONS)


@pytest.mark.parametrize("name", ["call", "train_step", "compute_loss", "compute_metrics"])
def test_a_method_that_would_be_left_out_is_refused(name: str) -> None:
    def method(self: Any, *args: Any, **options: Any) -> Any:
        return getattr(bertkit.BertClassifier, name)(self, *args, **options)

    cls = type("Custom", (bertkit.BertClassifier,), {name: method})
    with pytest.raises(InputError, match=f"Custom has a `{name}` of its own"):
        tiny_model(cls=cls).fit_head(TEXTS, Y, **OPTIONS)


def test_features_of_no_row_are_refused() -> None:
    model = model_of("binary")
    with pytest.raises(InputError, match="features of no row"):
        model.predict(model.features(TEXTS).take(slice(0)))


def test_fit_on_features_needs_a_frozen_encoder() -> None:
    model = model_of("binary")
    found = model.features(TEXTS)
    with pytest.raises(TrainingError, match=r"No gradient reaches the encoder.*freeze"):
        model.fit(found, Y, **OPTIONS)
    model.encoder.trainable = False
    model.compile(keras.optimizers.SGD(0.1))
    losses = model.fit(found, Y, epochs=3, **OPTIONS).history["loss"]
    assert losses[-1] < losses[0]


def test_what_has_no_head_to_train_is_refused() -> None:
    model = model_of("binary")
    model.head.trainable = False
    with pytest.raises(InputError, match=r"model.head.trainable = True"):
        model.fit_head(TEXTS, Y)

    class Wider(bertkit.BertClassifier):
        def call(self, inputs: Any, training: bool = False) -> Any:
            return 2 * super().call(inputs, training)

    with pytest.raises(InputError, match="`call` of its own"):
        tiny_model(cls=Wider).fit_head(TEXTS, Y)

    class Layered(StrongestToken):
        reads = ("layers",)

    model = bertkit.BertClassifier(tiny_encoder(), Layered())
    with pytest.raises(InputError, match=r"reads layers.*encoder.trainable = False"):
        model.fit_head(tensors(), Y)


# --- Experiments


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(write_tiny_data(tmp_path))
    return tmp_path


def losses_in(path: Path) -> list[float]:
    with path.open(encoding="utf-8", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_a_run_of_the_head_alone(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    untrained = experiment.build(load_config(["binary.yaml"])).encoder
    bertkit_command = CommandLine(monkeypatch, capfd)
    options = ["training.head_epochs=6", "training.epochs=0", "data.validation=0.3"]
    options += ["encoder.initializer_range=0.3", "training.head_learning_rate=0.1"]
    done = bertkit_command("train", "binary.yaml", *options)
    assert done.code == 0, done.err
    assert "Epoch 6/6" in done.out and "batch of features" in done.out
    folder = place / "runs" / "binary"
    losses = losses_in(folder / "head_history.csv")
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert not (folder / "history.csv").exists() and (folder / "logs" / "head").is_dir()
    assert bertkit_command("evaluate", "runs/binary").code == 0
    model = bertkit.load("runs/binary")
    assert [weight.shape for weight in model.encoder.weights] == [
        weight.shape for weight in untrained.weights
    ]
    model.fit(TEXTS, Y, epochs=2, **OPTIONS)  # at the usual learning rate, with all weights


def test_a_run_of_both(place: Path) -> None:
    both_config = tiny_config(
        encoder__initializer_range=0.3,
        training__epochs=2,
        training__head_epochs=5,
        training__head_learning_rate=0.1,
    )
    write_yaml(place / "both.yaml", both_config)
    write_yaml(place / "plain.yaml", tiny_config(training__epochs=2, name="plain"))
    both = experiment.run(load_config(["both.yaml"]), verbose=0)
    plain = experiment.run(load_config(["plain.yaml"]), verbose=0)
    head, all_weights = (
        losses_in(both.folder / f"{name}.csv") for name in ("head_history", "history")
    )
    assert (len(head), len(all_weights)) == (5, 2)
    assert head[-1] < head[0] and all_weights[0] < head[0]
    for model in (both.model, plain.model):
        assert int(model.optimizer.iterations) == 6
        assert model.optimizer._learning_rate.steps == 6
    assert {path.name for path in plain.folder.iterdir()} >= {"history.csv"}
    assert not (plain.folder / "head_history.csv").exists()


def test_a_run_of_nothing_is_refused(place: Path) -> None:
    for others in ([], ["training.head_epochs=0"]):
        with pytest.raises(ConfigError, match=r"training.epochs = 0: nothing.*head_epochs"):
            load_config(["binary.yaml"], ["training.epochs=0", *others])
    assert len(list(itertools.chain(place.glob("runs/*")))) == 0


def test_a_budget_that_is_too_small_is_told_before_the_head_trains(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        bertkit.BertClassifier, "fit_head", lambda *args, **options: pytest.fail("trained")
    )
    options = ["training.head_epochs=3", "training.batch_size=null", "training.batch_tokens=3"]
    with pytest.raises(InputError, match="batch_tokens is 3, and a row has"):
        experiment.run(load_config(["binary.yaml"], options), verbose=0)


def test_a_budget_is_of_what_is_trained_and_validated_on(place: Path) -> None:
    """Test rows are predicted, in batches of their own."""
    write_jsonl(place / "long.jsonl", [{"text": "a good film " * 9, "label": "pos"}])
    config = load_config(["binary.yaml"], ["data.test=long.jsonl", "training.head_epochs=1",
                         "training.batch_size=null", "training.batch_tokens=20",
                         "output_dir=runs/long"])  # fmt: skip
    result = experiment.run(config, verbose=0)
    assert result.metrics["test"]["accuracy"] in (0.0, 1.0)


def test_a_head_that_diverges_is_told_its_key(place: Path) -> None:
    options = ["training.head_epochs=3", "training.head_learning_rate=1e38"]
    with pytest.raises(DivergenceError, match=r"Lower training.head_learning_rate"):
        experiment.run(load_config(["regression.yaml"], options), verbose=0)
