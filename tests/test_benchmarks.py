"""benchmarks/: the arithmetic and the tables are right, and a measurement is a fresh process."""

from __future__ import annotations

import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from benchmarks import data, report
from benchmarks.flops import LARGE, Size, step_products, total
from benchmarks.measuring import BenchmarkError, Case, Measurement, append, load, measure
from benchmarks.summary import Spread, ratio, seconds_of, time_to
from bertkit import BertClassifier, heads, transformer
from tests.processes import ROOT
from tests.tiny_models import tiny_encoder

# A run of 2 epochs that starts at 100 s; the test after training is no validation of it.
EVENTS: list[tuple[str, float, float | None]] = [
    ("fit", 105.0, None),
    ("epoch", 106.0, None), ("step", 108.0, None), ("trained", 116.0, None),
    ("validated", 118.0, 0.7),
    ("epoch", 118.5, None), ("trained", 126.5, None), ("validated", 128.0, 0.8),
    ("fitted", 129.0, None), ("validated", 131.0, 0.9),
]  # fmt: skip


def test_medians_and_spreads() -> None:
    assert Spread.of([3.0, 1.0, 2.0, 10.0]) == Spread(2.5, 1.0, 10.0, 4)
    assert Spread.of([3.0, 1.0, 2.0, 10.0]).show() == "2.5 (1.0 to 10.0)"
    assert Spread.of([1234.5]).show(0) == "1,234"


def test_ratios_are_those_within_a_repeat() -> None:
    """The machine was half as fast in repeat 1: no matter. Repeat 2 has no counterpart."""
    assert ratio({0: 100.0, 1: 50.0, 2: 7.0}, {0: 50.0, 1: 25.0}) == Spread(2.0, 2.0, 2.0, 2)


def test_what_a_timeline_says() -> None:
    assert seconds_of(EVENTS, 100.0) == {
        "fit": 24.0, "training": 18.0, "first": 2.0, "first_step": 8.0
    }  # fmt: skip
    assert time_to(0.7, EVENTS, 100.0) == 18.0
    assert time_to(0.75, EVENTS, 100.0) == 28.0
    assert time_to(0.85, EVENTS, 100.0) is None


def matrix_products(graph: Any) -> int:
    """Count the operations of the matrix products that stand in a graph.

    One with a vector is a sum over an axis, and no part of the model's products.
    """
    count = 0
    for operation in graph.get_operations():
        if operation.type in ("MatMul", "BatchMatMulV2"):
            a = operation.inputs[0].shape.as_list()
            turned = "transpose_a" if operation.type == "MatMul" else "adj_x"
            inner = a[-2] if operation.get_attr(turned) else a[-1]
            result = operation.outputs[0].shape.as_list()
            if len(result) > 2 or 1 not in result:
                count += 2 * inner * int(np.prod(result))
    return count


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("training", [True, False])
def test_the_products_of_a_step_are_those_of_its_graph(
    layers: int, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def inline(*how: Any) -> Any:
        return lambda *inputs: transformer._transform(*inputs, *how)

    monkeypatch.setattr(transformer, "_traced", inline)  # all products in one graph, to count them
    batch, length = 3, 7
    encoder = tiny_encoder(num_layers=layers)
    model = BertClassifier(encoder, heads.create("multiclass", labels=["a", "b", "c"]))
    size = Size(
        hidden=encoder.hidden_size, layers=layers, heads=encoder.num_heads,
        intermediate=encoder.intermediate_size, labels=3,
    )  # fmt: skip
    ids = np.ones((batch, length), "int32")
    inputs = {name: tf.constant(ids) for name in ("token_ids", "segment_ids", "padding_mask")}
    targets = tf.ones(batch, tf.int32)
    model.compile(loss=model.head.make_loss(), optimizer=keras.optimizers.SGD())
    model.optimizer.build(model.trainable_weights)

    @tf.function
    def step() -> Any:
        return model.train_step((inputs, targets)) if training else model(inputs)

    counted = matrix_products(step.get_concrete_function().graph)
    products = step_products(size, batch, length, training=training)
    assert total(products) == counted


def test_the_products_of_a_whole_last_layer() -> None:
    """By hand: 2 operations for each token and weight of a kernel, three times; attention."""
    size, tokens, hidden = Size(layers=2, pooler=False), 32 * 24, 384
    kernels = 4 * hidden**2 + 2 * hidden * 1536
    attention = 2 * 2 * 32 * 24 * 24 * hidden  # scores and context
    expected = 3 * 2 * (2 * tokens * kernels + attention) + 3 * 2 * 32 * hidden
    assert total(step_products(size, 32, 24, cut=False)) == expected
    assert total(step_products(size, 32, 24)) < expected
    assert LARGE.flops == 2 * 2048**3


def run_of(case: str, repeat: int, faster: float, **result: Any) -> Measurement:
    """Return the measurement of a training run of 16 examples twice, faster than `EVENTS`."""
    events = [(name, 100 + (time - 100) / faster, value) for name, time, value in EVENTS]
    return Measurement(
        part="training", case=case, repeat=repeat, started=100.0, wall=40 / faster,
        peak_memory=10**9, arguments={"batch_size": 2, "epochs": 2},
        result={"events": events, "rows": 16, "accuracy": 0.75, **result},
    )  # fmt: skip


def test_the_tables(tmp_path: Path) -> None:
    measurements = [
        *(run_of("bertkit, bf16", repeat, 2 + repeat) for repeat in range(3)),
        *(run_of("Peer, fast, bf16", repeat, 1, versions={"peer": "1.2"}) for repeat in range(3)),
        run_of("Slow, bf16", 0, 1, rows=8),
    ]
    path = tmp_path / "measurements.jsonl"
    for one in measurements:
        append(path, one)
    text = report.render(load(path))
    assert text == report.render(measurements)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    header, ours, peer, slow = (lines[index] for index in (2, 4, 5, 6))
    assert len(header) == len(ours) == len(peer) == len(slow) == 9
    # 30 of 32 examples in 18 - 2 seconds, and all of them in 24.
    assert peer[:6] == [
        "Peer, fast, bf16", "1.9 (1.9 to 1.9)", "3.00 (2.00 to 4.00)",
        "1.3 (1.3 to 1.3)", "3.00 (2.00 to 4.00)", "40.0 (40.0 to 40.0)",
    ]  # fmt: skip
    assert ours[2] == ours[4] == "–"
    assert ours[6] == "2.7 (2.0 to 4.0)"
    assert peer[7:] == ["1,000 (1,000 to 1,000)", "0.750 (0.750 to 0.750)"]
    assert slow[3:6] == ["–"] * 3  # other rows, so whole runs cannot be compared
    assert text.endswith("Versions: peer 1.2.\n")
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n\n<!-- measured -->\n\nold\n")
    report.insert(text, readme)
    assert readme.read_text() == f"# Title\n\n<!-- measured -->\n\n{text}"


def test_the_rate_of_a_step() -> None:
    products = [
        {"flops": 2e9, "seconds": 0.01, "count": 1},  # the large one is no part of the step
        {"flops": 6e9, "seconds": 0.02, "count": 3},
        {"flops": 2e9, "seconds": 0.02, "count": 1},
    ]
    one = replace(run_of("x", 0, 1), result={"products": products, "step_seconds": 0.1})
    assert report.rate_of(one) == pytest.approx(
        {"large": 200, "products": 100, "floor": 0.08, "step": 80, "share": 0.8}
    )


def test_rows_are_joined_and_relabelled() -> None:
    rows = [("a", "x"), ("b", "y"), ("c", "x")]
    assert data.joined(rows, 2, 3) == [("a b", "x"), ("c a", "x"), ("b c", "y")]
    assert [text for text, _ in data.relabelled(rows * 4, 6)] == ["a", "b", "c"] * 4
    assert len({label for _, label in data.relabelled(rows * 4, 6)}) == 6


def test_a_measurement_is_a_process_of_its_own(tmp_path: Path) -> None:
    # Linux counts the memory that the parent had into that of a child.
    parent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    program = (
        f"import os, sys, json; block = bytearray({parent + 200_000_000});"
        "print('RESULT', json.dumps({'cores': len(os.sched_getaffinity(0)),"
        "'given': json.loads(sys.argv[1])}))"
    )
    case = Case("part", "name", (sys.executable, "-c", program), {"a": 1}, cores=1)
    one = measure(case, repeat=3)
    assert one.result == {"cores": 1, "given": {"a": 1, "seed": 3, "cores": 1}}
    assert 200e6 < one.peak_memory - parent < 400e6
    assert 0 < one.wall < 60
    failing = replace(case, command=(sys.executable, "-c", "raise ValueError('this one')"))
    with pytest.raises(BenchmarkError, match=r"part, name: ended with 1\.[^$]*this one"):
        measure(failing)


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--peers", tmp_path / "no", "--output", tmp_path],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        f"benchmarks: {tmp_path / 'no'} is not there; `make benchmark` brings it.\n"
    )
