"""A training that diverges ends at the batch that did it, and that batch is kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import bertkit
from bertkit.errors import DivergenceError, InputError
from bertkit.training.divergence import StopOnDivergence
from tests.core.test_parity import restored_policy, subclass  # noqa: F401 - a fixture
from tests.tiny_models import LABELS, TEXTS, assert_same, tensors, tiny_model, weights_of

Y = LABELS["binary"]


@tf.custom_gradient
def with_gradient_times(x: tf.Tensor, factor: tf.Tensor) -> Any:
    """Return x, whose gradient is multiplied."""
    return x, lambda upstream: (upstream * factor, None)


def spoilt(what: str, row: int, cls: type[Any] = bertkit.BertClassifier) -> Any:
    """Return a model whose loss, or whose gradient alone, is NaN where a text is in the batch."""
    model = tiny_model("binary", cls=cls)
    marks = tensors()["token_ids"][row][:3]  # as the shortest row has

    class Spoilt(type(model)):  # type: ignore[misc]
        def training_loss(self, x: Any, *rest: Any) -> Any:
            loss, logits = super().training_loss(x, *rest)
            bad = tf.reduce_any(tf.reduce_all(x["token_ids"][:, :3] == marks, axis=1))
            factor = tf.where(bad, np.nan, 1.0)
            return with_gradient_times(
                loss, factor
            ) if what == "gradient" else loss * factor, logits

    model.__class__ = Spoilt
    return model


def fit(model: Any, guard: StopOnDivergence, **options: Any) -> None:
    data = {"x": TEXTS, "y": Y, "batch_size": 3, "epochs": 2, "verbose": 0, **options}
    model.fit(**data, callbacks=[guard])


@pytest.mark.parametrize("micro", [None, 2])
@pytest.mark.parametrize(("what", "said"), [("loss", "is nan"), ("gradient", "is not finite")])
def test_the_batch_that_did_it(what: str, said: str, micro: int | None, tmp_path: Path) -> None:
    model = spoilt(what, 6)
    model.compile(keras.optimizers.SGD(0.01), metrics=[])
    weights = np.linspace(0.5, 1.5, len(TEXTS))
    with pytest.raises(DivergenceError) as caught:
        fit(model, StopOnDivergence(tmp_path), sample_weight=weights, micro_batch_size=micro)
    about = json.loads((tmp_path / "bad_batch.json").read_text())
    batch, rows = about["batch"], about["rows"]
    assert str(caught.value) == (
        f"Training diverged: the {what} of batch {batch} of epoch 1 {said}. The usual cause is a "
        "learning rate that is too high: lower learning_rate, warm up "
        "longer (warmup), or clip gradients (clip_norm). "
        f"The batch is in {tmp_path}/bad_batch.npz, and its texts are in bad_batch.json beside it."
    )
    assert 6 in rows and about["gradient_norm"] == "nan"
    assert (about["loss"] == "nan") == (what == "loss")
    place = about["pieces"][rows.index(6)]
    assert place == ["[CLS]", "the", "cat", "sat", "on", "the", "mat", "[SEP]"]
    with np.load(tmp_path / "bad_batch.npz", allow_pickle=False) as saved:
        length = saved["token_ids"].shape[1]
        np.testing.assert_array_equal(saved["token_ids"], tensors()["token_ids"][rows, :length])
        np.testing.assert_array_equal(saved["targets"], model.head.encode_labels(Y)[rows])
        np.testing.assert_allclose(saved["sample_weight"], weights[rows], rtol=1e-6)
        assert set(saved) == {*tensors(), "targets", "sample_weight"}
    assert model.batch_source is None


@pytest.mark.parametrize("objective", [None, "r_drop"])
def test_with_an_objective_and_without_a_folder(objective: str | None) -> None:
    model = tiny_model("binary", objective=objective)
    model.compile(keras.optimizers.SGD(1e30), metrics=[])
    with pytest.raises(DivergenceError, match=r"Training diverged: .* \(clip_norm\)\.$"):
        fit(model, StopOnDivergence())


class Norms(keras.callbacks.Callback):
    """Keeps the norm of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.norms: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.norms.append(float(tf.convert_to_tensor(self.model.gradient_norm)))


def without_dropout() -> bertkit.BertClassifier:
    model = tiny_model("binary", dropout=0.0, attention_dropout=0.0)
    model.head.dropout = 0.0
    return model


def norms(policy: str, **options: Any) -> list[float]:
    """Return the norms of four steps of one batch each, at a learning rate of zero."""
    keras.config.set_dtype_policy(policy)
    model = without_dropout()
    model.compile(keras.optimizers.SGD(0.0), metrics=[])
    recorder = Norms()
    model.fit(TEXTS, Y, batch_size=11, epochs=4, verbose=0, shuffle=False, **options,
              callbacks=[StopOnDivergence(), recorder])  # fmt: skip
    return recorder.norms


def test_the_norm_is_that_of_numpy(
    monkeypatch: pytest.MonkeyPatch,
    restored_policy: None,  # noqa: F811
) -> None:
    model = without_dropout()
    model._compile_from_head()
    with tf.GradientTape() as tape:
        loss = model.compute_loss(None, model.head.encode_labels(Y), model(TEXTS, training=True))
    gradients = tape.gradient(loss, model.trainable_weights)
    dense = [np.asarray(tf.convert_to_tensor(g), "float64") for g in gradients]
    expected = np.sqrt(sum(np.sum(g**2) for g in dense))
    monkeypatch.setattr("bertkit.guards._UPDATES", 99)  # a rate of zero moves nothing
    np.testing.assert_allclose(norms("float32"), expected, rtol=1e-5)
    np.testing.assert_allclose(norms("float32", micro_batch_size=4), expected, rtol=1e-5)
    np.testing.assert_allclose(norms("mixed_float16"), expected, rtol=2e-2)


def test_the_norm_is_watched_by_those_who_ask() -> None:
    """The next fit has none, and one after it can."""
    model = tiny_model("binary")
    for callbacks in ([StopOnDivergence()], [], [StopOnDivergence()]):
        recorder = Norms()
        own = [*callbacks, recorder] if callbacks else []
        model.fit(TEXTS, Y, batch_size=4, verbose=0, callbacks=own)
        assert all(norm > 0 for norm in recorder.norms) and bool(recorder.norms) == bool(callbacks)
        assert model.gradient_norm is None
        model.train_on_batch(TEXTS, Y)


def test_a_norm_beyond_the_limit() -> None:
    model = tiny_model("binary")
    model.compile(keras.optimizers.SGD(0.01), metrics=[])
    with pytest.raises(
        DivergenceError,
        match=r"gradient of batch 1 of epoch 1 has the norm \S+, beyond max_gradient_norm, 1e-06\.",
    ):
        fit(model, StopOnDivergence(max_gradient_norm=1e-6))
    fit(model, StopOnDivergence(max_gradient_norm=1e6))
    for wrong in (0, -1.0, "1"):
        with pytest.raises(InputError, match=r"max_gradient_norm is .*Give a number above 0"):
            StopOnDivergence(max_gradient_norm=wrong)  # type: ignore[arg-type]


def test_float16_may_overflow(restored_policy: None) -> None:  # noqa: F811
    keras.config.set_dtype_policy("mixed_float16")
    model = tiny_model("binary")
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), 2.0**40),
                  metrics=[])  # fmt: skip
    recorder = Norms()
    model.fit(TEXTS, Y, batch_size=3, epochs=1, verbose=0,
              callbacks=[StopOnDivergence(), recorder])  # fmt: skip
    assert not np.isfinite(recorder.norms[0])
    assert float(model.optimizer.dynamic_scale) < 2.0**40


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_it_changes_no_bit(policy: str, restored_policy: None) -> None:  # noqa: F811
    def trained(cls: type[Any], *callbacks: Any) -> tuple[list[np.ndarray], list[float]]:
        keras.config.set_dtype_policy(policy)
        model = tiny_model("binary", cls=cls)
        model.compile(keras.optimizers.SGD(0.1, 0.9), metrics=[])
        history = model.fit(TEXTS, Y, batch_size=4, epochs=2, verbose=0, callbacks=list(callbacks))
        return weights_of(model), history.history["loss"]

    weights, losses = trained(bertkit.BertClassifier, StopOnDivergence(max_gradient_norm=1e9))
    reference, reference_losses = trained(subclass(keras.Model.train_step))
    assert_same(weights, reference)
    assert losses == reference_losses


def test_of_tensors_no_batch_is_written(tmp_path: Path) -> None:
    model = tiny_model("binary")
    model.compile(keras.optimizers.SGD(1e30), metrics=[])
    with pytest.raises(DivergenceError, match=r"\(clip_norm\)\.$"):
        fit(model, StopOnDivergence(tmp_path), x=tensors())
    assert not list(tmp_path.iterdir())


def test_under_a_strategy() -> None:
    """Two replicas, of which each sees half of the batch: their norms are no less than its own."""
    code = """
import json
import keras, tensorflow as tf
from tests.core import test_divergence as tests
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
norms = []
for scope in (strategy.scope, tf.distribute.get_strategy().scope):
    with scope():
        model = tests.without_dropout()
        model.compile(keras.optimizers.SGD(0.0), metrics=[])
    recorder = tests.Norms()
    model.fit(tests.TEXTS[:8], tests.Y[:8], batch_size=8, verbose=0, shuffle=False,
              callbacks=[tests.StopOnDivergence(), recorder])
    norms += recorder.norms
print(json.dumps(norms))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr[-3000:]
    replicas, whole = json.loads(done.stdout.splitlines()[-1])
    assert whole <= replicas < 2 * whole
