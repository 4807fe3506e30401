"""Prediction: sorted and batched, order restored, traced once, streamed in growing windows."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import bertkit
from bertkit import finished, predicting
from bertkit.data.files import Row
from bertkit.errors import DataError, InputError
from tests.tiny_models import LABELS, TEXTS, tensors, tiny_model

RANDOM = np.random.default_rng(0)
WORDS = " ".join(TEXTS).replace(",", "").split()
# Of 3 to 32 tokens, the longest truncated.
MANY = [" ".join(RANDOM.choice(WORDS, RANDOM.integers(1, 40))) for _ in range(300)]


@pytest.fixture(scope="module")
def model() -> bertkit.BertClassifier:
    return tiny_model("multiclass", seed=5, initializer_range=0.5)


@pytest.fixture(scope="module")
def expected(model: bertkit.BertClassifier) -> np.ndarray:
    """The logits of MANY, row by row, (N, 3)."""
    return np.concatenate([model([text]) for text in MANY])


@pytest.fixture(scope="module")
def run(model: bertkit.BertClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predicting") / "run"
    config = """
        name: x
        data: {train: x.csv, text: text, label: label}
        encoder: {plugin: bert, vocabulary_size: 9, hidden_size: 16, num_layers: 1, num_heads: 2,
                  intermediate_size: 32}
        preprocessor: {plugin: single_text}
        head: {plugin: multiclass}
    """
    bertkit.save(model, folder, config)
    return folder


# Batches


@pytest.mark.parametrize("multiple", [1, 16])
@pytest.mark.parametrize("batch_size", [None, 7, 10_000])
def test_batches_hold_each_row_once_and_few_tokens(batch_size: int | None, multiple: int) -> None:
    lengths = RANDOM.integers(1, 513, 5000)
    batches = predicting.cut(lengths, batch_size, multiple)
    order = np.concatenate(batches)
    assert sorted(order) == [*range(5000)]
    assert (np.diff(lengths[order]) <= 0).all()
    if batch_size is not None:
        assert {len(rows) for rows in batches[:-1]} <= {batch_size}
        return
    full = [len(rows) * (-(-lengths[rows].max() // multiple) * multiple) for rows in batches[:-1]]
    assert max(full) <= predicting.TOKENS
    assert min(full) > predicting.TOKENS - 512


def test_a_row_longer_than_the_budget_is_a_batch_of_its_own() -> None:
    lengths = np.array([5, predicting.TOKENS + 1, predicting.TOKENS, 0])
    assert [rows.tolist() for rows in predicting.cut(lengths)] == [[1], [2], [0, 3]]


@pytest.mark.parametrize("batch_size", [None, 1, 64, 1000])
def test_predictions_are_those_of_each_row_alone(
    model: bertkit.BertClassifier, expected: np.ndarray, batch_size: int | None
) -> None:
    assert len(np.unique(expected.round(4), axis=0)) > 200  # an order that is wrong would be seen
    found = model.predict(MANY, batch_size=batch_size, verbose=0)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    (alone,) = model.classify(MANY[7:8])
    assert alone["label"] == model.head.labels[int(expected[7].argmax())]


def test_some_batches_by_a_budget(
    model: bertkit.BertClassifier, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "TOKENS", 64)
    np.testing.assert_allclose(model.predict(MANY, verbose=0), expected, atol=2e-6)


# Keras's own options


class Steps(keras.callbacks.Callback):
    """Records the calls, and stops or fails at a step."""

    def __init__(self, stop: int | None = None, fail: int | None = None) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.rows = 0
        self.stop, self.fail = stop, fail

    def on_predict_begin(self, logs: Any = None) -> None:
        self.calls.append("begin")

    def on_predict_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.calls.append(f"({batch}")

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        self.calls.append(f"{batch})")
        self.rows += len(logs["outputs"])
        if batch == self.stop:
            self.model.stop_predicting = True
        if batch == self.fail:
            raise OSError("full")

    def on_predict_end(self, logs: Any = None) -> None:
        self.calls.append("end")


def test_callbacks_and_the_progress_bar(
    model: bertkit.BertClassifier, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = Steps()
    model.predict(MANY[:10], batch_size=4, callbacks=[steps])
    assert steps.calls == ["begin", "(0", "0)", "(1", "1)", "(2", "2)", "end"]
    assert steps.rows == 10
    assert "3/3" in capsys.readouterr().out
    model.predict(MANY[:10], batch_size=4, verbose=0)
    assert capsys.readouterr().out == ""


def test_stopping_early_gives_the_rows_that_are_done(
    model: bertkit.BertClassifier, expected: np.ndarray
) -> None:
    found = model.predict(MANY, batch_size=50, callbacks=[Steps(stop=1)], verbose=0)
    lengths = model._feed().examples(MANY).lengths
    longest = np.sort(np.argsort(-lengths, kind="stable")[:100])
    np.testing.assert_allclose(found, expected[longest], atol=2e-6)
    some = model.predict(MANY, steps=2, verbose=0)  # Keras's default, 32 rows a batch
    np.testing.assert_allclose(some, expected[:64], atol=2e-6)


def test_an_error_waits_for_no_other_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    model.predict(MANY, verbose=0)
    there, running, most, calls = threading.Lock(), 0, 0, 0
    function = model.predict_function

    def counted(data: Any) -> Any:
        nonlocal running, most, calls
        with there:
            running, calls = running + 1, calls + 1
            most = max(most, running)
        time.sleep(0.01)
        try:
            return function(data)
        finally:
            with there:
                running -= 1

    counted.get_concrete_function = function.get_concrete_function  # type: ignore[attr-defined]
    monkeypatch.setattr(model, "predict_function", counted)
    model.predict(MANY, batch_size=10, verbose=0)
    assert (most, calls) == (2, 30)
    with pytest.raises(OSError, match="full"):
        model.predict(MANY, batch_size=10, callbacks=[Steps(fail=0)], verbose=0)
    assert calls < 40 and running == 0

    def failing(data: Any) -> Any:
        raise InputError("Nothing works. Try again.")

    failing.get_concrete_function = function.get_concrete_function  # type: ignore[attr-defined]
    monkeypatch.setattr(model, "predict_function", failing)
    with pytest.raises(InputError, match="Nothing works"):
        model.predict(MANY, verbose=0)


# Traces


def count_calls(monkeypatch: pytest.MonkeyPatch, cls: type, name: str) -> list[None]:
    """Return a list that grows with each call of a method."""
    calls: list[None] = []
    method = getattr(cls, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return method(*args, **kwargs)

    monkeypatch.setattr(cls, name, counted)
    return calls


def test_one_trace_serves_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    traces = count_calls(monkeypatch, type(model.encoder), "call")
    encoded = count_calls(monkeypatch, type(model.preprocessor), "encode")
    model.predict(MANY[:3], verbose=0)
    for rows in (MANY, MANY[:1], MANY[:65]):
        model.predict(rows, verbose=0)
        model.classify(rows, batch_size=4)
    assert (len(traces), len(encoded)) == (1, 1)
    dataset = tf.data.Dataset.from_tensor_slices(MANY).batch(7)
    for x in (dataset, iter([TEXTS[:1], TEXTS[1:]])):
        model.predict(x, verbose=0)
    model.predict_on_batch(TEXTS)
    assert len(traces) == 1
    model.compile("sgd")  # Keras forgets the function then
    model.predict(MANY, verbose=0)
    assert len(traces) == 2


def test_few_shapes_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Since memory grows with each shape that is new."""
    model = tiny_model()
    model.predict(MANY, verbose=0)
    function, shapes = model.predict_function, set()

    def seen(data: Any) -> Any:
        shapes.add(tuple(data[0][0]["token_ids"].shape))
        return function(data)

    seen.get_concrete_function = function.get_concrete_function  # type: ignore[attr-defined]
    monkeypatch.setattr(model, "predict_function", seen)
    rows = ["a good film"] * 1000
    wanted = model.predict(rows[:1], verbose=0)
    for count in range(410, 500):  # 409 fill a batch, 1 to 90 are left over
        found = model.predict(rows[:count], verbose=0)
        np.testing.assert_allclose(found, wanted.repeat(count, axis=0), atol=2e-6)
    assert {shape[1] for shape in shapes} == {5} and len(shapes) <= 23
    assert [predicting.few_sizes(rows) for rows in (1, 7, 8, 9, 17, 90)] == [1, 7, 8, 10, 20, 96]


# Windows


def rows_of(texts: list[str], read: list[int]) -> Iterator[Row]:
    for line, text in enumerate(texts, start=1):
        read[0] = line
        yield Row((text,), None, "rows.txt", line)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 192, 193, 20_000])
def test_windows_grow(count: int) -> None:
    read = [0]
    windows = finished._windows(rows_of(["a"] * count, read), None)
    sizes, ahead = [], []
    for window in windows:
        ahead.append(read[0] - sum(sizes))
        sizes.append(len(window))
    assert sum(sizes) == count
    grown = [64, 128, 256, 512, 1024, 2048, *[4096] * 5]
    assert sizes[:-1] == grown[: len(sizes)][:-1] and 0 not in sizes
    assert max(ahead, default=0) <= 4096  # what memory holds


def test_windows_of_a_size_that_is_asked_for() -> None:
    read = [0]
    windows = finished._windows(rows_of(["a"] * 7, read), 3)
    assert (len(next(windows)), read[0]) == (3, 3)
    assert [len(window) for window in windows] == [3, 1]


@pytest.mark.parametrize("batch_size", [None, 1, 50])
def test_rows_come_in_their_order(
    run: Path, tmp_path: Path, expected: np.ndarray, batch_size: int | None
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in MANY))
    found = list(finished.predict_rows(run, str(file), batch_size=batch_size))
    assert [row["text"] for row in found] == MANY
    exponents = np.exp(expected - expected.max(axis=1, keepdims=True))
    wanted = exponents / exponents.sum(axis=1, keepdims=True)
    scores = [list(row["scores"].values()) for row in found]
    np.testing.assert_allclose(scores, wanted, atol=2e-6)


@pytest.mark.parametrize(
    ("line", "broken", "says", "batch_size"),
    [
        (1, "\n", "the text is empty", None),
        (65, '{"text": " "}\n', "the text is empty", None),
        (131, '{"text": 1}\n', "holds 1, not a string", None),
        (131, "{\n", "JSON", 50),
    ],
)
def test_an_error_comes_after_the_rows_before_it(
    run: Path, tmp_path: Path, line: int, broken: str, says: str, batch_size: int | None
) -> None:
    lines = [json.dumps({"text": text}) + "\n" for text in MANY[:200]]
    lines[line - 1] = broken
    format = "jsonl" if broken != "\n" else "text"
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    rows = finished.predict_rows(run, str(tmp_path / "rows.jsonl"), format, batch_size)
    found = []
    with pytest.raises(DataError, match=rf"rows\.jsonl:{line}: .*{says}"):
        for row in rows:
            found.append(row)
    assert len(found) == line - 1


def test_windows_trace_once(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.txt").write_text("\n".join(MANY * 3))
    traces = count_calls(monkeypatch, bertkit.BertEncoder, "call")
    encoded = count_calls(monkeypatch, bertkit.preprocessors.get("single_text"), "encode")
    assert len(list(finished.predict_rows(run, str(tmp_path / "rows.txt")))) == 900
    assert (len(traces), len(encoded)) == (1, 1)


# Precision


def test_another_precision(run: Path, model: bertkit.BertClassifier, expected: np.ndarray) -> None:
    loaded = bertkit.load(run, precision="mixed_bfloat16")
    assert loaded.encoder.dtype_policy.name == "mixed_bfloat16"
    assert loaded.encoder(tensors())["pooled"].dtype == tf.bfloat16
    assert {weight.dtype for weight in loaded.trainable_weights} == {"float32"}
    found = loaded.predict(MANY, verbose=0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-2)
    assert not np.allclose(found, expected, atol=2e-6)
    same = bertkit.load(run, precision="float32").predict(MANY, verbose=0)
    np.testing.assert_allclose(same, expected, atol=2e-6)


def test_a_model_that_trains_on_in_float16_scales_its_loss(tmp_path: Path) -> None:
    trained = tiny_model()
    trained.fit(TEXTS, LABELS["binary"], verbose=0)
    bertkit.save(trained, tmp_path / "run")
    loaded = bertkit.load(tmp_path / "run", precision="mixed_float16")
    assert isinstance(loaded.optimizer, keras.optimizers.LossScaleOptimizer)
    before = trained.optimizer._velocities[0].numpy()
    np.testing.assert_array_equal(loaded.optimizer.inner_optimizer._velocities[0].numpy(), before)
    loaded.fit(TEXTS, LABELS["binary"], verbose=0)
    assert loaded.optimizer.iterations == 2


def test_what_runs_eagerly_predicts_in_the_callers_thread() -> None:
    threads = []

    class Watched(bertkit.BertClassifier):
        def predict_step(self, data: Any) -> Any:
            threads.append(threading.current_thread())
            return super().predict_step(data)

    eager = tiny_model(cls=Watched)
    eager.compile(run_eagerly=True)
    eager.predict(MANY, verbose=0)
    assert len(threads) > 1 and set(threads) == {threading.main_thread()}


def test_a_precision_that_there_is_not(run: Path) -> None:
    with pytest.raises(InputError, match=r"precision is 'int8'\. Give one of float32, mixed_"):
        bertkit.load(run, precision="int8")  # type: ignore[arg-type]


def test_no_optimizer_is_loaded_to_predict(tmp_path: Path) -> None:
    trained = tiny_model("multiclass")
    trained.compile("adam")
    trained.fit(TEXTS, [0, 1, 2, *[1] * (len(TEXTS) - 3)], verbose=0)
    bertkit.save(trained, tmp_path / "run")
    assert bertkit.load(tmp_path / "run").optimizer.iterations > 0
    loaded = bertkit.load(tmp_path / "run", compile=False)
    assert not loaded.compiled
    wanted = trained.predict(TEXTS, verbose=0)
    np.testing.assert_array_equal(loaded.predict(TEXTS, verbose=0), wanted)
