"""A batch in parts, against the same batch at once."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import bertkit
from bertkit import classifier
from bertkit.errors import ConfigError, InputError
from bertkit.micro_batches import _trimmed, in_micro_batches
from bertkit.training.optimizer import AdamW
from tests.command_line import tiny_config, write_tiny_data
from tests.tiny_models import HEADS, LABELS, TEXTS, tensors, tiny_encoder, tiny_model

SGD = keras.optimizers.SGD


def trained(
    head: str, parts: int | None, *, batch_size: int, optimizer: Any = None, x: Any = TEXTS,
    weighted: bool = True, **options: Any,
) -> tuple[list[np.ndarray], dict[str, list[float]]]:  # fmt: skip
    """Return the weights after two epochs without dropout, and what was logged."""
    model = tiny_model(head, dropout=0.0, attention_dropout=0.0)
    model.head.dropout = 0.0
    model.compile(optimizer or SGD(0.1, 0.9), **options)
    weight = np.linspace(0.1, 3, len(TEXTS)) if weighted else None
    history = model.fit(
        x, LABELS[head], sample_weight=weight, batch_size=batch_size, epochs=2, verbose=0,
        micro_batch_size=parts,
    )  # fmt: skip
    return [np.array(weight) for weight in model.trainable_weights], history.history


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    ("batch_size", "parts"),
    [(11, 4), (6, 4)],  # 4 + 4 + 3 rows; 4 + 2, and of the last batch of 5, 4 + 1
)
def test_the_update_is_that_of_the_whole_batch(head: str, batch_size: int, parts: int) -> None:
    weights, logs = trained(head, None, batch_size=batch_size)
    others, other_logs = trained(head, parts, batch_size=batch_size)
    for one, other in zip(weights, others, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    for name, values in logs.items():
        np.testing.assert_allclose(other_logs[name], values, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "case",
    [
        {"x": tensors()},
        {"weighted": False, "run_eagerly": True},
        {"optimizer": AdamW(1e-3, global_clipnorm=0.5)},
    ],
    ids=["tensors", "eagerly", "clipped"],
)
def test_other_ways_to_the_same_update(case: dict[str, Any]) -> None:
    if "optimizer" in case:
        case = {**case, "optimizer": AdamW.from_config(case["optimizer"].get_config())}
    whole, _ = trained("multiclass", None, batch_size=6, **_anew(case))
    parts, _ = trained("multiclass", 4, batch_size=6, **_anew(case))
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-6)


def _anew(case: dict[str, Any]) -> dict[str, Any]:
    """An optimizer belongs to one model."""
    made = {k: AdamW.from_config(v.get_config()) for k, v in case.items() if k == "optimizer"}
    return {**case, **made}


def test_parts_that_count_alike_would_be_found() -> None:
    """Parts of 4 and 1 rows averaged as equals give another update."""
    whole, _ = trained("binary", None, batch_size=5)
    model = tiny_model("binary", dropout=0.0, attention_dropout=0.0)
    model.head.dropout = 0.0
    model.compile(SGD(0.1, 0.9, gradient_accumulation_steps=2))
    model.fit(TEXTS, LABELS["binary"], sample_weight=np.linspace(0.1, 3, len(TEXTS)), batch_size=4,
              epochs=2, verbose=0)  # fmt: skip
    off = [np.abs(a - b).max() for a, b in zip(whole, model.trainable_weights, strict=True)]
    assert max(off) > 1e-4


def test_float16_scales_the_gradient_of_the_whole() -> None:
    results = []
    for parts in (None, 4):
        keras.config.set_dtype_policy("mixed_float16")
        try:
            results.append(trained("binary", parts, batch_size=11)[0])
        finally:
            keras.config.set_dtype_policy("float32")
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3)
    assert any(np.abs(one - two).max() > 0 for one, two in zip(*results, strict=True))


def test_another_size_is_traced_anew() -> None:
    model = tiny_model("binary")
    model.compile(SGD(0.1))
    for parts in (None, 4, 4, 3, None):
        model.fit(TEXTS, LABELS["binary"], verbose=0, micro_batch_size=parts)
        assert model._traced_micro_batch_size == parts


class Rows(bertkit.BertClassifier):
    """Keeps of how many rows each gradient was."""

    seen: list[int]

    def compute_gradients(self, x: Any, y: Any, sample_weight: Any) -> Any:
        self.seen.append(len(y))
        return super().compute_gradients(x, y, sample_weight)


class Broken(keras.callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("callbacks", [[], [Broken()]], ids=["done", "interrupted"])
def test_the_size_is_that_of_one_fit(callbacks: list[Any]) -> None:
    model: Any = tiny_model("binary", cls=Rows)
    model.compile(SGD(0.1), run_eagerly=True)
    object.__setattr__(model, "seen", [])
    with pytest.raises(KeyboardInterrupt) if callbacks else contextlib.nullcontext():
        model.fit(TEXTS, LABELS["binary"], verbose=0, micro_batch_size=8, callbacks=callbacks)
    model.train_on_batch(TEXTS, LABELS["binary"])
    assert model.seen == [8, 3, 11]


def test_padding_of_a_part_is_cut_off() -> None:
    x = {name: tensor[3:5] for name, tensor in tensors().items()}
    longest = x["padding_mask"].sum(axis=1).max()
    assert longest < x["padding_mask"].shape[1]
    trimmed = _trimmed(x)
    for name, tensor in trimmed.items():
        np.testing.assert_array_equal(tensor, x[name][:, :longest])


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "4"])
def test_a_size_that_is_none(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"micro_batch_size is .* Give a whole number above 0"):
        tiny_model().fit(TEXTS, LABELS["binary"], micro_batch_size=wrong)


def test_no_rows_have_a_gradient_of_zero() -> None:
    """A replica may have none in the last batch."""
    model = tiny_model()
    model.compile(SGD(0.1), model.head.make_loss(), metrics=[])
    model.micro_batch_size = 2
    x = {name: tf.constant(tensor[:0]) for name, tensor in tensors().items()}
    any_rows = {name: tf.TensorSpec((None, None), tf.int32) for name in x}

    @tf.function(input_signature=[any_rows, tf.TensorSpec((None, 1))], autograph=False)
    def step(x: Any, y: Any) -> Any:
        logits, pairs = in_micro_batches(model, x, y, None)
        return logits, [gradient for gradient, _ in pairs]

    logits, gradients = step(x, tf.zeros((0, 1)))
    assert logits.shape == (0, 1)
    assert len(gradients) == len(model.trainable_weights)
    assert not any(np.any(gradient) for gradient in gradients)
    assert float(model._loss_tracker.result()) == 0


def ranking(of_tasks: bool = False) -> Any:
    rank = {"plugin": "regression", "loss": "pairwise_margin", "dropout": 0.0}
    if not of_tasks:
        return bertkit.heads.create(rank.pop("plugin"), **rank)
    return bertkit.heads.create("multi_task", heads={"rank": rank, "sign": {"plugin": "binary"}})


def test_rows_are_compared_within_a_part() -> None:
    encoder = tiny_encoder(dropout=0.0, attention_dropout=0.0, initializer_range=0.5)
    model = bertkit.BertClassifier(encoder, ranking())
    model.compile(SGD(0.0))
    labels = LABELS["regression"]
    (shown,) = model.fit(
        tensors(), labels, batch_size=11, micro_batch_size=4, shuffle=False, verbose=0
    ).history["loss"]
    loss, outputs = model.head.make_loss(), model.predict(tensors(), verbose=0)
    parts = [slice(0, 4), slice(4, 8), slice(8, 11)]
    losses = [float(loss(np.array(labels)[part, None], outputs[part])) for part in parts]
    assert shown == pytest.approx(np.average(losses, weights=[4, 4, 3]), rel=1e-5)
    assert shown != pytest.approx(float(loss(np.array(labels)[:, None], outputs)), rel=1e-4)


@pytest.mark.parametrize(
    ("case", "what"),
    [
        ("pairs", "loss"),
        ("tasks", "loss"),
        ("supervised_contrastive", "objective"),
        ("chain", "objective"),
    ],
)
def test_parts_of_one_row_that_would_be_compared(case: str, what: str) -> None:
    head: Any = bertkit.heads.create("binary")
    labels: list[Any] = LABELS["binary"]
    objective: Any = None
    if case == "pairs":
        head, labels = ranking(), LABELS["regression"]
    elif case == "tasks":
        head = ranking(of_tasks=True)
        labels = [{"rank": rank, "sign": rank > 0} for rank in LABELS["regression"]]
    elif case == "chain":
        within = [{"plugin": "r_drop"}, {"plugin": "mixup"}]
        objective = bertkit.objectives.create("chain", objectives=within)
    else:
        objective = case
    model = bertkit.BertClassifier(tiny_encoder(), head, objective=objective)
    with pytest.raises(InputError) as caught:
        model.fit(tensors(), labels, micro_batch_size=1, verbose=0)
    assert str(caught.value) == (
        f"micro_batch_size is 1, and the {what} compares the rows that are computed at once: one "
        "alone has none to be compared with. Give 2 or more, or leave it out."
    )


def test_xla_is_refused() -> None:
    model = tiny_model()
    model.compile("adam", jit_compile=True)
    with pytest.raises(InputError, match="does not go with jit_compile=True"):
        model.fit(TEXTS, LABELS["binary"], micro_batch_size=4)


def test_xla_that_keras_chose_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As it does wherever there is a GPU; XLA refuses a loop of unknown length."""
    expected, _ = trained("binary", 4, batch_size=6)
    monkeypatch.setattr(keras.Model, "_resolve_auto_jit_compile", lambda self: True)
    weights, _ = trained("binary", 4, batch_size=6)  # compiled by the user
    for one, other in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    model = tiny_model("binary")
    model.fit(TEXTS[:2], LABELS["binary"][:2], verbose=0, micro_batch_size=1)  # by the head
    assert model.jit_compile is True  # for the next
    model.save(tmp_path / "model.keras")
    loaded: Any = keras.models.load_model(tmp_path / "model.keras")
    loaded.fit(TEXTS[:2], LABELS["binary"][:2], verbose=0, micro_batch_size=1)
    model.compile(SGD(0.1), jit_compile=True)
    with pytest.raises(InputError, match="does not go with jit_compile=True"):
        model.fit(TEXTS, LABELS["binary"], micro_batch_size=4)


def test_in_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_tiny_data(tmp_path))
    sizes: set[int | None] = set()

    def seen(model: Any, *batch: Any) -> Any:
        sizes.add(model.micro_batch_size)
        return in_micro_batches(model, *batch)

    monkeypatch.setattr(classifier, "in_micro_batches", seen)
    bertkit.run(tiny_config(training__micro_batch_size=3), verbose=0)
    assert sizes == {3}


@pytest.mark.parametrize("size", ["micro_batch_size", "batch_size"])
def test_rows_that_would_be_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    monkeypatch.chdir(write_tiny_data(tmp_path))
    config = {**tiny_config(**{f"training__{size}": 1}), "objective": {"plugin": "mixup"}}
    with pytest.raises(ConfigError, match=rf"^training.{size} is 1, and the objective compares"):
        bertkit.run(config, verbose=0)
    with pytest.raises(InputError, match=rf"^{size} is 1, and the objective compares"):
        tiny_model(objective="mixup").fit(TEXTS, LABELS["binary"], **{size: 1})
