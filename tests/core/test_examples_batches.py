"""Tokenized rows and their batches: properties, and naive code as the reference."""

from __future__ import annotations

import csv
import gc
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import bertkit
from bertkit.data.batches import TokenBudget, batch_count, make_dataset, plan
from bertkit.data.examples import Examples, _in_parallel, _processors
from bertkit.errors import InputError
from bertkit.preprocessor import Preprocessor
from tests.tiny_models import PAIRS, TEXTS, tiny_encoder

ORDERS = ("shuffled", "sorted", "given")


def preprocessor(name: str = "single_text", sequence_length: int = 16) -> Preprocessor:
    made = bertkit.preprocessors.create(name, sequence_length=sequence_length)
    made.bind(tiny_encoder())
    return made


def of_lengths(lengths: list[int], padding_id: int = 0) -> Examples:
    """Return rows whose token ids count up from 1 through all rows."""
    array = np.asarray(lengths, dtype="int64")
    total = int(array.sum())
    return Examples(
        token_ids=np.arange(1, total + 1, dtype="int32"),
        segment_ids=(np.arange(total) % 2).astype("int8"),
        starts=np.cumsum(array) - array,
        lengths=array,
        full_lengths=array.astype("int32"),
        padding_id=padding_id,
    )


def text_array(texts: list[Any]) -> np.ndarray:
    array = np.empty(np.shape(texts), dtype=object)
    array[...] = np.array(texts, dtype=object)
    return array


lengths_of_rows = st.lists(st.integers(1, 40), min_size=1, max_size=300)


def test_letting_go_of_a_dataset_waits_for_no_thread() -> None:
    """TensorFlow's tuning thread sleeps for up to a minute, and its end is waited for."""
    dataset = make_dataset(of_lengths([2, 3]), (), 2, "given")
    assert dataset.options().autotune.enabled is False
    mapped = dataset.map(lambda batch: batch).options()  # as Keras wraps it
    assert mapped.autotune.enabled is False


@given(lengths_of_rows, st.integers(1, 40), st.sampled_from(ORDERS), st.integers(0, 9))
@settings(deadline=None)
def test_every_row_is_in_one_batch(lengths: list[int], size: int, order: Any, seed: int) -> None:
    batches = plan(np.array(lengths), size, order, seed=seed)
    assert len(batches) == -(-len(lengths) // size)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert sum(len(batch) < size for batch in batches) == (len(lengths) % size > 0)
    assert max(map(len, batches)) <= size


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=9), min_size=1, max_size=4))
@settings(deadline=None)
def test_joined_rows_are_those_of_each(lengths: list[list[int]]) -> None:
    parts = [of_lengths(some).take(np.arange(len(some))[::-2]) for some in lengths]
    whole, first = Examples.joined(parts), 0
    for part in parts:
        for row in range(len(part)):
            expected, found = part.batch(np.array([row])), whole.batch(np.array([first + row]))
            for name, tensor in expected.items():
                np.testing.assert_array_equal(found[name], tensor)
        np.testing.assert_array_equal(
            whole.full_lengths[first : first + len(part)], part.full_lengths
        )
        first += len(part)
    assert len(whole) == first


@given(lengths_of_rows, st.integers(1, 40))
@settings(deadline=None)
def test_orders(lengths: list[int], size: int) -> None:
    array = np.array(lengths)
    np.testing.assert_array_equal(
        np.concatenate(plan(array, size, "given")), np.arange(len(lengths))
    )
    rows = np.concatenate(plan(array, size, "sorted"))
    assert (np.diff(array[rows]) <= 0).all()  # the longest first
    same = np.diff(array[rows]) == 0
    assert (np.diff(rows)[same] > 0).all()  # and equally long ones as they came


@given(lengths_of_rows, st.integers(1, 40), st.integers(0, 99), st.integers(0, 99))
@settings(deadline=None)
def test_seed_and_epoch_make_the_order(
    lengths: list[int], size: int, seed: int, epoch: int
) -> None:
    array = np.array(lengths)
    first, second = (plan(array, size, "shuffled", seed, epoch) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def padded_tokens(lengths: np.ndarray, batches: list[np.ndarray]) -> list[int]:
    return [int(lengths[batch].max()) * len(batch) for batch in batches]


@given(lengths_of_rows, st.integers(40, 400), st.sampled_from(ORDERS), st.integers(0, 9))
@settings(deadline=None)
def test_batches_of_so_many_tokens(lengths: list[int], tokens: int, order: Any, seed: int) -> None:
    array, budget = np.array(lengths), TokenBudget(tokens)
    batches = plan(array, budget, order, seed=seed)
    rows = np.concatenate(batches)
    assert sorted(rows) == list(range(len(lengths))) and min(map(len, batches)) > 0
    assert max(padded_tokens(array, batches)) <= tokens
    counts = {len(plan(array, budget, order, seed, epoch)) for epoch in range(5)}
    assert counts == {len(batches)} == {batch_count(array, budget, order)}
    again = plan(array, budget, order, seed=seed)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
    if order == "given":
        assert rows.tolist() == list(range(len(lengths)))
        for batch, after in itertools.pairwise(batches):  # one more would not fit
            assert padded_tokens(array, [np.append(batch, after[0])])[0] > tokens
    if order == "sorted":
        np.testing.assert_array_equal(rows, np.concatenate(plan(array, 8, "sorted")))


@pytest.mark.parametrize("count", [2001, 7000])
def test_batches_of_tokens_are_random_and_full(count: int) -> None:
    random = np.random.default_rng(0)
    lengths = random.lognormal(3.0, 0.6, count).astype(int).clip(3, 128)
    budget = TokenBudget(700)
    plans = [plan(lengths, budget, "shuffled", 1, epoch) for epoch in range(60)]
    assert 1 - lengths.sum() / sum(padded_tokens(lengths, plans[0])) < 0.05
    assert np.mean(padded_tokens(lengths, plans[0])) > 0.9 * 700
    mates = [{frozenset(batch) for batch in batches} for batches in plans[:2]]
    assert len(mates[0] & mates[1]) < 0.1 * len(plans[0])  # the longest are few
    # No batch is likelier to be early when its rows are long, and each row is early as often.
    early = [np.concatenate(batches[: len(batches) // 2]) for batches in plans]
    shares = np.bincount(np.concatenate(early), minlength=count) / 60
    assert shares.min() > 0.05 and shares.max() < 0.95 and abs(shares.mean() - 0.5) < 0.03
    long, short = lengths > 40, lengths < 12
    assert abs(shares[long].mean() - shares[short].mean()) < 0.1


def test_a_row_longer_than_a_batch_may_be_is_refused() -> None:
    for order in ORDERS:
        with pytest.raises(InputError, match=r"batch_tokens is 9, and a row has 10 tokens\. Give"):
            make_dataset(of_lengths([3, 10, 2]), (), TokenBudget(9), order)
    assert len(plan(np.array([3, 10, 2]), TokenBudget(10), "given")) == 3
    assert plan(np.array([], int), TokenBudget(10), "shuffled") == []


def test_epochs_and_seeds_differ_in_batches_and_in_their_order() -> None:
    lengths = np.random.default_rng(0).integers(3, 30, 500)
    plans = [plan(lengths, 8, "shuffled", seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for one in plans:
        for other in plans:
            if one is not other:
                mates = {frozenset(batch) for batch in one} & {frozenset(batch) for batch in other}
                assert len(mates) < 3  # the rows that meet are others
    # No batch is likelier to be early when its rows are long.
    places = np.concatenate(
        [
            [lengths[batch].mean() for batch in plan(lengths, 8, "shuffled", 3, epoch)][:10]
            for epoch in range(60)
        ]
    )
    assert abs(places.mean() - lengths.mean()) < 1.0
    # And each row is as often in the first half as in the second.
    early = np.zeros(500)
    for epoch in range(200):
        early[np.concatenate(plan(lengths, 8, "shuffled", 5, epoch))[:250]] += 1
    assert early.min() > 60 and early.max() < 140


@pytest.mark.parametrize("spread", [0.4, 0.6])
def test_little_is_padding(spread: float) -> None:
    # Lengths of sentences: about log-normal, cut at 128.
    lengths = np.random.default_rng(0).lognormal(3.0, spread, 7000).astype(int).clip(3, 128)
    for order, most in (("shuffled", 0.05), ("sorted", 0.02)):
        padded = sum(lengths[b].max() * len(b) for b in plan(lengths, 32, order))
        assert 1 - lengths.sum() / padded < most
    naive = sum(lengths[b].max() * len(b) for b in plan(lengths, 32, "given"))
    assert 1 - lengths.sum() / naive > 0.3


@pytest.mark.real
def test_little_of_real_sentences_is_padding() -> None:
    path = Path(__file__).parents[2] / ".cache" / "data" / "film_sentiment" / "train.csv"
    with path.open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    lengths = Examples.from_texts(text_array(texts), preprocessor(sequence_length=40)).lengths
    padded = sum(lengths[b].max() * len(b) for b in plan(lengths, 32, "shuffled"))
    assert len(texts) > 1000 and 1 - lengths.sum() / padded < 0.05


@given(lengths_of_rows, st.data())
@settings(deadline=None)
def test_a_batch_equals_naive_padding(lengths: list[int], data: st.DataObject) -> None:
    padding_id = data.draw(st.integers(0, 5))
    multiple = data.draw(st.sampled_from([1, 1, 8, 32]))
    examples = of_lengths(lengths, padding_id)
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=20))
    batch = examples.batch(np.array(rows), multiple)
    width = max(lengths[row] for row in rows)
    width += -width % multiple
    starts = np.cumsum([0, *lengths])
    for index, row in enumerate(rows):
        ids = list(range(starts[row] + 1, starts[row + 1] + 1))
        fill = width - len(ids)
        assert batch["token_ids"][index].tolist() == ids + [padding_id] * fill
        segments = [(i - 1) % 2 for i in ids]
        assert batch["segment_ids"][index].tolist() == segments + [0] * fill
        assert batch["padding_mask"][index].tolist() == [1] * len(ids) + [0] * fill
    assert {value.dtype for value in batch.values()} == {np.dtype("int32")}


@given(lengths_of_rows, st.data())
@settings(deadline=None, max_examples=30)
def test_taken_rows_are_those_rows(lengths: list[int], data: st.DataObject) -> None:
    examples = of_lengths(lengths)
    rows = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=20)))
    taken = examples.take(rows)
    assert len(taken) == len(rows) and taken.token_ids is examples.token_ids
    np.testing.assert_array_equal(taken.lengths, examples.lengths[rows])
    np.testing.assert_array_equal(taken.full_lengths, examples.full_lengths[rows])
    ours, theirs = taken.batch(np.arange(len(rows))), examples.batch(rows)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("name", "texts"), [("single_text", TEXTS * 6), ("sentence_pair", PAIRS * 6)]
)
@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_rows_on_disk_are_what_the_preprocessor_gives(
    name: str, texts: list[Any], chunk: int
) -> None:
    made = preprocessor(name)
    array = text_array(texts)
    chunks = (array[start : start + chunk] for start in range(0, len(array), chunk))
    examples = Examples.from_chunks(chunks, made)
    gc.collect()  # the files live as long as the arrays
    rows = np.random.default_rng(0).permutation(len(texts))[:20]
    expected = made(tf.constant(array[rows].tolist()))
    batch = examples.batch(rows)
    for column in expected:
        np.testing.assert_array_equal(batch[column], expected[column])
    encoded = made.encode(tf.constant(array.tolist()))
    np.testing.assert_array_equal(examples.full_lengths, encoded.lengths)
    np.testing.assert_array_equal(examples.lengths, encoded.token_ids.row_lengths())
    assert (examples.full_lengths > examples.lengths).any()  # some were truncated
    assert isinstance(examples.token_ids, np.memmap) and not examples.token_ids.flags.writeable


def test_chunks_are_read_a_few_ahead_and_an_error_in_one_is_raised() -> None:
    made, read = preprocessor(), []

    def chunks(wrong: int) -> Iterator[np.ndarray]:
        for index in range(40):
            read.append(index)
            yield text_array(["a", b"b", 3] if index == wrong else ["a"])

    whole = _in_parallel(made.encode_array, chunks(-1))
    for done, _ in enumerate(whole):
        assert len(read) - done <= _processors() + 2
    with pytest.raises((TypeError, ValueError)):
        Examples.from_chunks(chunks(7), made)


def test_no_rows() -> None:
    examples = Examples.from_chunks([], preprocessor())
    assert len(examples) == 0
    for size in (8, TokenBudget(8)):
        for order in ("shuffled", "sorted", "given"):
            assert plan(examples.lengths, size, order) == []  # type: ignore[arg-type]


def test_a_dataset_is_the_plan_of_each_epoch() -> None:
    lengths = np.random.default_rng(0).integers(3, 30, 61).tolist()
    examples = of_lengths(lengths)
    targets = np.arange(61, dtype="float32")[:, None]
    weights = np.arange(61, dtype="float32") / 7
    epoch = [0]
    dataset = make_dataset(
        examples, (targets, weights), 8, "shuffled", seed=3, epoch=lambda: epoch[0], multiple=4
    )
    assert dataset.cardinality() == 8
    assert dataset.element_spec[0]["token_ids"].shape.as_list() == [None, None]
    passes = []
    for epoch[0] in (0, 1, 0):
        batches = list(dataset)
        for rows, (inputs, y, w) in zip(
            plan(examples.lengths, 8, "shuffled", 3, epoch[0]), batches, strict=True
        ):
            wanted = examples.batch(rows, 4)
            assert all(np.array_equal(inputs[name], wanted[name]) for name in wanted)
            assert inputs["token_ids"].shape[1] % 4 == 0
            np.testing.assert_array_equal(y, targets[rows])
            np.testing.assert_array_equal(w, weights[rows])
        passes.append(np.concatenate([y for _, y, _ in batches]).ravel())
    assert np.array_equal(passes[0], passes[2]) and not np.array_equal(passes[0], passes[1])
