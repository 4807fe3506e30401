"""`fit`, `evaluate` and `predict` as every Keras user knows them, on raw text."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import bertkit
from tests.processes import ROOT, run
from tests.tiny_models import (
    LABELS,
    TEXTS,
    assert_same,
    tensors,
    tiny_encoder,
    tiny_model,
    weights_of,
)

Y = LABELS["binary"]
TRAIN, HELD_OUT = (TEXTS[:8], Y[:8]), (TEXTS[8:], Y[8:])


@pytest.fixture(scope="module")
def shared() -> tuple[bertkit.BertClassifier, list[np.ndarray]]:
    """A model that is traced once, and the weights it begins with."""
    made = tiny_model("binary")
    made.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    made.optimizer.build(made.trainable_weights)
    return made, weights_of(made)


@pytest.fixture
def model(shared: Any) -> bertkit.BertClassifier:
    """The shared model as it was in the beginning, and a fixed seed."""
    made, weights = shared
    restore(made, weights)
    return made


def restore(model: bertkit.BertClassifier, weights: list[np.ndarray]) -> None:
    keras.utils.set_random_seed(7)
    variables = [*model.variables, *model.optimizer.variables]
    for variable, weight in zip(variables, weights, strict=True):
        variable.assign(weight)


class Seen(keras.callbacks.Callback):
    """Keeps what Keras tells of an epoch's length."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.steps.append(0)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps[-1] += 1


def test_the_loss_falls_until_the_texts_are_known() -> None:
    model = tiny_model("binary")
    model.compile(keras.optimizers.AdamW(3e-3))
    losses = model.fit(TEXTS, Y, epochs=30, batch_size=4, verbose=0).history["loss"]
    assert losses[-1] < 0.3 < losses[0]
    loss, accuracy, _ = model.evaluate(TEXTS, Y, verbose=0)
    assert loss < 0.2 and accuracy == 1.0
    assert [row["label"] for row in model.classify(TEXTS)] == Y


def test_predict_keeps_the_order_of_the_rows(model: bertkit.BertClassifier) -> None:
    expected = np.concatenate([model([text]) for text in TEXTS])
    assert len(np.unique(expected)) > 8
    stream = tf.data.Dataset.from_tensor_slices(TEXTS).batch(4)
    for predicted in (
        model.predict(TEXTS, batch_size=2, verbose=0),
        model.predict(TEXTS, batch_size=3, verbose=0),
        model.predict(tensors(), batch_size=4, verbose=0),
        model.predict(stream, verbose=0),
        model.predict(stream.map(lambda x: (x, "no label")), verbose=0),
        model.predict(iter([TEXTS[:5], TEXTS[5:]]), verbose=0),
        np.concatenate([model.predict_on_batch(TEXTS[:5]), model.predict_on_batch(TEXTS[5:])]),
    ):
        assert predicted.dtype == np.float32
        np.testing.assert_allclose(predicted, expected, atol=1e-6)
    some = model.predict(TEXTS, batch_size=3, steps=2, verbose=0)
    np.testing.assert_allclose(some, expected[:6], atol=1e-6)


@pytest.mark.parametrize("head", LABELS)
def test_classify_decodes_what_predict_returns(head: str) -> None:
    model = tiny_model(head)
    model.run_eagerly = True
    answers = model.classify(TEXTS)
    assert answers == model.head.decode(model.predict(TEXTS, verbose=0))
    assert len(answers) == len(TEXTS)
    if head != "regression":
        assert set(answers[0]["scores"]) == {str(label) for label in model.head.labels}


def test_evaluate_is_a_mean_over_rows(model: bertkit.BertClassifier) -> None:
    logits = model.predict(TEXTS, verbose=0)[:, 0].astype("float64")
    signs = np.where(np.array(Y) == "pos", 1, -1)
    losses = np.log1p(np.exp(-signs * logits))
    weights = np.linspace(0.1, 2, len(TEXTS))
    for size in (3, 4, 32):
        got = model.evaluate(TEXTS, Y, batch_size=size, verbose=0, return_dict=True)
        assert got["loss"] == pytest.approx(losses.mean(), rel=1e-5)
        assert got["accuracy"] == pytest.approx(((logits > 0) == (signs > 0)).mean())
    got = model.evaluate(TEXTS, Y, batch_size=4, sample_weight=weights, verbose=0)
    assert got[0] == pytest.approx((losses * weights).mean(), rel=1e-5)
    assert model.test_on_batch(TEXTS, Y)[0] == pytest.approx(losses.mean(), rel=1e-5)
    # The first rows, not the longest ones.
    some = model.evaluate(TEXTS, Y, batch_size=3, steps=2, verbose=0)
    assert some[0] == pytest.approx(losses[:6].mean(), rel=1e-5)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_validation_data_in_every_form(model: bertkit.BertClassifier, shared: Any) -> None:
    x, y = HELD_OUT
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(2)
    held_out = {name: value[8:] for name, value in tensors().items()}

    def endless() -> Iterator[Any]:
        while True:
            yield x, y

    forms: dict[str, dict[str, Any]] = {
        "tuple": {"validation_data": (x, y)},
        "list": {"validation_data": [np.array(x), np.array(y)]},
        "small batches": {"validation_data": (x, y), "validation_batch_size": 2},
        "weights": {"validation_data": (x, y, [1.0, 1.0, 1.0])},
        "dataset": {"validation_data": dataset},
        "generator": {"validation_data": endless(), "validation_steps": 1},
        "tensors": {"validation_data": (held_out, y)},
        "split": {"x": TEXTS, "y": Y, "validation_split": 3 / 11},
        "split of tensors": {"x": tensors(), "y": np.array(Y), "validation_split": 3 / 11},
    }
    for form, options in forms.items():
        restore(*shared)
        data = {"x": TRAIN[0], "y": TRAIN[1], **options}
        epochs = 2 if form in ("tuple", "generator") else 1
        history = model.fit(**data, epochs=epochs, batch_size=4, verbose=0).history
        assert len(history["val_loss"]) == epochs, form
        expected = model.evaluate(x, y, verbose=0, return_dict=True)
        for name, value in expected.items():
            assert history[f"val_{name}"][-1] == pytest.approx(value, abs=1e-5), (form, name)
    history = model.fit(*TRAIN, validation_data=HELD_OUT, validation_freq=2, epochs=4, verbose=0)
    assert len(history.history["val_loss"]) == 2


def test_a_training_continues_where_it_stopped(model: bertkit.BertClassifier, shared: Any) -> None:
    model.fit(TEXTS, Y, epochs=4, batch_size=4, verbose=0)
    whole, table = weights_of(model), model.encoder.embeddings.token.numpy()
    restore(*shared)
    model.fit(TEXTS, Y, epochs=2, batch_size=4, verbose=0)
    keras.utils.set_random_seed(7)
    history = model.fit(TEXTS, Y, epochs=4, initial_epoch=2, batch_size=4, verbose=0)
    assert history.epoch == [2, 3]
    assert_same(weights_of(model), whole)
    restore(*shared)
    keras.utils.set_random_seed(8)
    model.fit(TEXTS, Y, epochs=4, batch_size=4, verbose=0)
    # another seed, another order
    assert not np.array_equal(model.encoder.embeddings.token.numpy(), table)


def test_the_order_of_the_rows() -> None:
    class Watched(bertkit.BertClassifier):
        def train_step(self, data: Any) -> dict[str, Any]:
            seen[-1].extend(data[1].numpy().ravel().tolist())
            return self.compute_metrics(data[0], data[1], data[1])

    model = tiny_model("regression", cls=Watched)
    numbers = [float(n) for n in range(len(TEXTS))]
    seen: list[list[float]] = []

    def orders(epochs: int, **options: Any) -> list[list[float]]:
        seen.clear()
        keras.utils.set_random_seed(3)
        begin = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: seen.append([]))
        model.compile(run_eagerly=True)
        model.fit(
            TEXTS, numbers, epochs=epochs, batch_size=2, verbose=0, callbacks=[begin], **options
        )
        return [list(epoch) for epoch in seen]

    assert orders(2, shuffle=False) == [numbers, numbers]
    four = orders(4)
    assert all(sorted(epoch) == numbers for epoch in four)
    assert len({tuple(epoch) for epoch in four}) == 4
    assert orders(4) == four and orders(4, initial_epoch=2) == four[2:]
    # With steps_per_epoch an epoch is a cut of endless passes.
    cut = orders(4, steps_per_epoch=3)
    assert [len(epoch) for epoch in cut] in ([6, 5, 6, 5], [6, 5, 5, 6], [5, 6, 5, 6], [5, 6, 6, 5])
    assert sorted(cut[0] + cut[1]) == numbers and cut[0] + cut[1] != cut[2] + cut[3]


def test_steps(model: bertkit.BertClassifier) -> None:
    dataset = tf.data.Dataset.from_tensor_slices((TEXTS, Y)).batch(4)
    seen = Seen()
    model.fit(dataset.repeat(), steps_per_epoch=5, epochs=2, callbacks=seen, verbose=0)
    assert seen.steps == [5, 5]
    endless = iter(dataset.repeat())
    model.fit(endless, steps_per_epoch=2, epochs=3, callbacks=[seen], verbose=0,
              validation_data=dataset.repeat(), validation_steps=1)  # fmt: skip
    assert seen.steps[2:] == [2, 2, 2]


def test_callbacks(model: bertkit.BertClassifier, tmp_path: Path) -> None:
    epochs: list[int] = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append(epoch))
    for callbacks in (note, [note], (note,)):
        model.fit(*TRAIN, callbacks=callbacks, verbose=0)
    whole = keras.callbacks.CallbackList([note], add_history=True, model=model, epochs=2, verbose=0)
    model.fit(*TRAIN, callbacks=whole, epochs=2, verbose=0)
    assert epochs == [0, 0, 0, 0, 1]
    stop = keras.callbacks.EarlyStopping("val_loss", patience=0, min_delta=1e9)
    keep = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", "val_loss", save_best_only=True)
    history = model.fit(
        *TRAIN, validation_data=HELD_OUT, epochs=9, callbacks=[stop, keep], verbose=0
    )
    assert len(history.epoch) == 2
    loaded = keras.models.load_model(tmp_path / "best.keras")
    best = min(history.history["val_loss"])
    assert loaded.evaluate(*HELD_OUT, verbose=0)[0] == pytest.approx(best, abs=1e-6)


def test_train_on_batch_is_a_step_of_fit(model: bertkit.BertClassifier, shared: Any) -> None:
    weights = np.linspace(0.1, 2, len(TEXTS))
    first = model.train_on_batch(TEXTS, Y, sample_weight=weights, return_dict=True)
    step = weights_of(model)
    restore(*shared)
    history = model.fit(TEXTS, Y, sample_weight=weights, shuffle=False, verbose=0).history
    assert_same(weights_of(model), step)
    assert history["loss"] == [pytest.approx(float(first["loss"]))]


def test_what_compile_is_not_given_the_head_gives() -> None:
    bare = tiny_model("multi_label", adapted=False)
    bare.fit(TEXTS[:4], LABELS["multi_label"][:4], verbose=0)
    assert isinstance(bare.optimizer, keras.optimizers.AdamW)
    assert float(bare.optimizer.learning_rate) == pytest.approx(5e-5)
    names = ["loss", "macro_f1", "micro_f1"]
    assert sorted(bare.evaluate(TEXTS, LABELS["multi_label"], verbose=0, return_dict=True)) == names

    named = tiny_model("multi_label")
    named.compile("adamw", run_eagerly=True)
    optimizer = named.optimizer
    named.train_on_batch(TEXTS, LABELS["multi_label"])
    assert named.optimizer is optimizer and named.run_eagerly
    assert float(optimizer.learning_rate) == pytest.approx(0.001)
    assert type(named.loss) is type(named.head.make_loss())

    own = tiny_model("binary")
    loss = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.2)
    own.compile(
        "sgd", loss=loss, metrics=[keras.metrics.BinaryAccuracy(name="mine")], run_eagerly=True
    )
    assert sorted(own.evaluate(TEXTS, Y, verbose=0, return_dict=True)) == ["loss", "mine"]
    assert own.loss is loss
    metrics = tiny_model("binary")
    metrics.compile("sgd", metrics=[keras.metrics.BinaryAccuracy(name="mine")], run_eagerly=True)
    assert sorted(metrics.test_on_batch(TEXTS, Y, return_dict=True)) == ["loss", "mine"]


def test_summary() -> None:
    for adapted in (True, False):
        lines: list[str] = []
        tiny_model("binary", adapted=adapted).summary(print_fn=lines.append)
        text = "\n".join(lines)
        assert "BertEncoder" in text and "BinaryHead" in text
        assert ("unbuilt" in text) is not adapted


def test_outputs_are_float32_under_mixed_precision() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = tiny_model("binary")
    finally:
        keras.config.set_dtype_policy("float32")
    outputs = model(TEXTS)
    assert outputs.dtype == tf.float32
    np.testing.assert_allclose(outputs, tiny_model("binary")(TEXTS), atol=1e-3)


def test_xla() -> None:
    rows = [*TEXTS, "the cat sat on " * 20]
    models = []
    for jit in (False, True):
        keras.utils.set_random_seed(0)
        encoder = tiny_encoder(max_sequence_length=36, dropout=0.0, attention_dropout=0.0)
        # Rows of 36 tokens would pass the positions if they were filled up to 64.
        text = bertkit.preprocessors.create("single_text", sequence_length=36)
        head = bertkit.heads.create("binary", labels=["neg", "pos"], dropout=0.0)
        models.append(bertkit.BertClassifier(encoder, head, text))
        models[-1].compile(keras.optimizers.SGD(0.1), metrics=[], jit_compile=jit)
        assert models[-1].jit_compile is jit
        models[-1].fit(rows, [*Y, "pos"], shuffle=False, verbose=0)
    for one, other in zip(models[0].weights, models[1].weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


MIRRORED = """
import sys
sys.path.insert(0, {root!r})
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras, numpy as np
from tests.tiny_models import LABELS, TEXTS, tensors, tiny_model, weights_of

def made():
    # The head makes its weights in `fit`, outside of the strategy's scope.
    model = tiny_model("binary", adapted=False, dropout=0.0, attention_dropout=0.0)
    model.head.dropout = 0.0
    model.compile(keras.optimizers.SGD(0.1))
    return model

def results(model):
    # An even last batch: of an odd one Keras averages the devices' means, in training.
    x, y = TEXTS[:10], LABELS["binary"][:10]
    weights = np.linspace(0.1, 2, 10)
    history = model.fit(x, y, batch_size=4, sample_weight=weights, verbose=0, shuffle=False,
                        validation_data=(TEXTS, LABELS["binary"]), validation_batch_size=4)
    logits = model.predict(TEXTS, batch_size=4, verbose=0)
    return [history.history["loss"], history.history["val_loss"], logits,
            *[v.numpy() for v in model.trainable_variables]]

single = results(made())
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
with strategy.scope():
    model = made()
for one, other in zip(single, results(model), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-6)
print("SAME")
"""


def test_mirrored_strategy_gives_what_one_device_gives(tmp_path: Path) -> None:
    program = tmp_path / "mirrored.py"
    program.write_text(MIRRORED.format(root=str(ROOT)))
    assert "SAME" in run([sys.executable, program], tmp_path)
