"""How often the rows of tasks are drawn: the formulas in NumPy, and what each epoch holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import bertkit
from bertkit.data.batches import batch_count, plan, source_of
from bertkit.data.sampling import Sampling, Temperature, drawn, temperature_of
from bertkit.errors import ArtifactError, InputError
from tests.tiny_models import LABELS, TEXTS, tensors, tiny_encoder, tiny_model

sizes_of_groups = st.lists(st.integers(1, 60), min_size=2, max_size=5)
temperatures = st.floats(0.2, 100)
HEADS = {
    "mood": {"plugin": "binary", "labels": ["neg", "pos"]},
    "stars": {"plugin": "multiclass", "labels": [0, 1, 2]},
}
# Of the task "mood" there are eight rows, of "stars" two, and one of both.
ROWS: list[dict[str, Any]] = [{"mood": label} for label in LABELS["binary"][:8]]
ROWS += [{"stars": 2}, {"stars": 1}, {"mood": "neg", "stars": 0}]


def shuffled_groups(sizes: list[int]) -> np.ndarray:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(7).permutation(groups)


def tasks_model() -> bertkit.BertClassifier:
    keras.utils.set_random_seed(0)
    text = bertkit.preprocessors.create("single_text", sequence_length=32)
    head = bertkit.heads.create("multi_task", heads=HEADS)
    return bertkit.BertClassifier(tiny_encoder(), head, text)


@given(sizes_of_groups, temperatures)
def test_shares_are_those_of_the_formula(sizes: list[int], temperature: float) -> None:
    counts = drawn(np.array(sizes), 1 / temperature)
    powers = np.array(sizes, "float64") ** (1 / temperature)
    assert np.abs(counts - powers / powers.sum() * sum(sizes)).max() < 1
    assert counts.sum() == sum(sizes)


@given(sizes_of_groups)
def test_at_one_shares_are_by_size_and_hot_they_are_equal(sizes: list[int]) -> None:
    assert drawn(np.array(sizes), 1.0).tolist() == sizes
    assert np.ptp(drawn(np.array(sizes), 1e-9)) <= 1


def test_a_share_goes_to_those_that_lost_the_most() -> None:
    assert drawn(np.array([9, 1]), 0.5).tolist() == [8, 2]  # of 10 rows 3 : 1, 7.5 and 2.5
    assert drawn(np.array([100_000_000, 3]), 1.0).tolist() == [100_000_000, 3]


def test_the_exponent_is_annealed_as_in_the_paper() -> None:
    temperature, epochs = Temperature(1, 5, 6), 6
    for epoch in range(epochs):  # Stickland and Murray 2019, section 3.4, epochs from 1
        alpha = 1 - 0.8 * (epoch + 1 - 1) / (epochs - 1)
        assert temperature.exponent(epoch) == pytest.approx(alpha)
    assert temperature.exponent(99) == pytest.approx(0.2)
    assert Temperature(5, 1, 1).exponent(0) == pytest.approx(0.2)


@given(sizes_of_groups, temperatures, st.integers(0, 9), st.integers(0, 9))
@settings(deadline=None)
def test_the_rows_of_an_epoch(sizes: list[int], temperature: float, seed: int, epoch: int) -> None:
    sampling = Sampling(shuffled_groups(sizes), Temperature(temperature, temperature, 3))
    rows = sampling.draw(epoch, np.random.default_rng(seed))
    times = np.bincount(rows, minlength=sum(sizes))
    counts = drawn(np.array(sizes), 1 / temperature)
    for group, size in enumerate(sizes):
        own = times[sampling.groups == group]
        assert own.sum() == counts[group]
        assert set(own) <= {counts[group] // size, -(-counts[group] // size)}


@given(sizes_of_groups, temperatures, st.integers(1, 30), st.integers(0, 9), st.integers(0, 9))
@settings(deadline=None)
def test_a_plan_is_a_function_of_seed_and_epoch(
    sizes: list[int], temperature: float, size: int, seed: int, epoch: int
) -> None:
    groups = shuffled_groups(sizes)
    lengths = np.random.default_rng(1).integers(3, 40, len(groups))
    sampling = Sampling(groups, Temperature(temperature, 1.0, 4))
    first, second = (plan(lengths, size, "shuffled", seed, epoch, sampling) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(first) == batch_count(lengths, size, "shuffled")
    assert sum(map(len, first)) == len(groups) and max(map(len, first)) <= size
    if epoch >= 3:  # the schedule has come to 1
        assert sorted(np.concatenate(first)) == list(range(len(groups)))


def test_rows_are_drawn_anew_each_epoch_and_mixed() -> None:
    groups = np.repeat([0, 1], [300, 20])
    sampling = Sampling(groups, Temperature(1e6, 1e6, 9))
    plans = [plan(np.full(320, 9), 16, "shuffled", 3, epoch, sampling) for epoch in range(40)]
    left_out = [set(range(300)) - set(np.concatenate(batches)) for batches in plans]
    assert all(len(rows) == 140 for rows in left_out) and len(set(map(frozenset, left_out))) == 40
    assert not set.intersection(*left_out[:30])  # each row comes at some time
    shares = [groups[batch].mean() for batch in plans[0]]
    assert min(shares) > 0 and max(shares) < 1  # no batch of one task alone


def batches_of(model: bertkit.BertClassifier, **options: Any) -> list[list[list[int]]]:
    """Return the rows of each batch of each epoch that `fit` takes."""
    found: list[list[list[int]]] = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            found.append([])
            self.epoch = epoch

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            assert self.model.batch_source is not None
            found[-1].append(self.model.batch_source.rows(self.epoch, batch).tolist())

    model.fit(TEXTS, ROWS, batch_size=4, callbacks=[Watch()], verbose=0, **options)
    return found


def test_fit_draws_by_the_set_of_tasks() -> None:
    first, middle, last = batches_of(tasks_model(), epochs=3, temperature=(1e9, 1))
    assert [len(batches) for batches in (first, middle, last)] == [3, 3, 3]
    expected = {0: [3, 4], 2: [8]}  # of a third of eleven rows, and of all as they are
    for epoch, batches in ((0, first), (2, last)):
        rows = [row for batch in batches for row in batch]
        assert len(rows) == 11
        assert sum(row < 8 for row in rows) in expected[epoch]
    assert [row for batch in last for row in batch].count(10) == 1
    assert [row for batch in first for row in batch].count(10) in (3, 4)


def test_one_is_as_none() -> None:
    expected = batches_of(tasks_model(), epochs=2)
    assert batches_of(tasks_model(), epochs=2, temperature=1) == expected
    assert batches_of(tasks_model(), epochs=2, temperature=[1.0, 1.0]) == expected
    assert batches_of(tasks_model(), epochs=2, temperature=2) != expected


def test_what_was_drawn_is_what_a_step_gets() -> None:
    model = tasks_model()
    drawn_at = temperature_of(3.0, 2)
    data = model._feed().data(TEXTS, ROWS, batch_size=4, order="shuffled", temperature=drawn_at)
    source = source_of(data["x"])
    assert source is not None
    targets = model.head.encode_labels(ROWS)
    ids = tensors()["token_ids"]
    for step, (inputs, columns) in enumerate(data["x"]):
        rows, width = source.rows(0, step), inputs["token_ids"].shape[1]
        np.testing.assert_array_equal(columns, targets[rows])
        np.testing.assert_array_equal(inputs["token_ids"], ids[rows][:, :width])


def test_the_head_alone_draws_so_too() -> None:
    options = {"epochs": 2, "batch_size": 4, "verbose": 0}
    losses = []
    for temperature in (None, 1e9):
        keras.utils.set_random_seed(1)
        history = tasks_model().fit_head(TEXTS, ROWS, temperature=temperature, **options)
        losses.append(history.history["loss"])
    assert np.isfinite(losses).all() and losses[0] != losses[1]


def test_a_checkpoint_is_of_a_temperature(tmp_path: Path) -> None:
    notes: list[str] = []

    def fit(temperature: Any) -> None:
        checkpoint = bertkit.Checkpoint(tmp_path, minutes=0, on_note=notes.append)
        tasks_model().fit(TEXTS, ROWS, temperature=temperature, callbacks=[checkpoint], verbose=0)

    fit(2)
    fit((2.0, 2.0))  # the same
    assert notes == ["Going on from a checkpoint: all epochs done, 1 of 1."]
    with pytest.raises(
        ArtifactError, match=r"the temperature was \[2.0, 2.0\] and is \[3.0, 1.0\]"
    ):
        fit((3, 1))


Call = Callable[[bertkit.BertClassifier], Any]
REFUSED: dict[str, tuple[Call, str]] = {
    "no number": (lambda m: m.fit(TEXTS, ROWS, temperature="high"), "temperature is 'high'. Give"),
    "zero": (lambda m: m.fit(TEXTS, ROWS, temperature=0), "temperature is 0. Give a number above"),
    "true": (lambda m: m.fit(TEXTS, ROWS, temperature=True), "temperature is True. Give a number"),
    "three": (lambda m: m.fit(TEXTS, ROWS, temperature=(1, 2, 3)), r"temperature is \(1, 2, 3\)"),
    "tensors": (lambda m: m.fit(tensors(), ROWS, temperature=2), "temperature needs raw text"),
    "a dataset": (
        lambda m: m.fit(tf.data.Dataset.from_tensors(0), temperature=2),
        "drawn already",
    ),
    "batch_tokens": (
        lambda m: m.fit(TEXTS, ROWS, batch_tokens=99, temperature=2),
        "temperature does not go with batch_tokens: the number of batches would differ",
    ),
    "shuffle": (
        lambda m: m.fit(TEXTS, ROWS, shuffle=False, temperature=2),
        "temperature draws rows at random. Leave shuffle=False out",
    ),
    "steps_per_epoch": (
        lambda m: m.fit(TEXTS, ROWS, steps_per_epoch=1, temperature=(2, 1)),
        "Two temperatures are those of the first pass",
    ),
    "one group": (
        lambda m: m.fit(TEXTS[:8], ROWS[:8], temperature=2),
        "each row has labels of the same tasks. Leave it out; the head's weights",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        call(tasks_model())


def test_a_head_without_tasks() -> None:
    with pytest.raises(InputError, match=r"the head has no tasks\. Leave it out; class_weight"):
        tiny_model().fit(TEXTS, LABELS["binary"], temperature=2, verbose=0)
