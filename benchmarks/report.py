"""From measurements to tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.measuring import Measurement
from benchmarks.summary import Spread, ratio, seconds_of, time_to

TARGET = 0.8  # accuracy on the validation rows whose time is told

Cases = Mapping[str, Sequence[Measurement]]  # of one part, by name


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown; all columns but the first are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def render(measurements: Sequence[Measurement]) -> str:
    """Return the tables of all parts that were measured, each under a heading."""
    sections = []
    for part, (title, render_part) in _PARTS.items():
        cases: dict[str, list[Measurement]] = {}
        for one in measurements:
            if one.part == part:
                cases.setdefault(one.case, []).append(one)
        if cases:
            sections.append(f"### {title}\n\n{render_part(cases)}\n")
    versions = {
        name: v for one in measurements for name, v in one.result.get("versions", {}).items()
    }
    shown = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return "\n".join([*sections, f"Versions: {shown}." if versions else ""]).rstrip() + "\n"


def insert(text: str, path: Path, marker: str = "<!-- measured -->") -> None:
    """Replace what stands after a marker in a file.

    Raises:
        ValueError: the file has no marker.
    """
    before, found, _ = path.read_text("utf-8").partition(marker)
    if not found:
        raise ValueError(f"{path} has no line {marker}.")
    path.write_text(f"{before}{marker}\n\n{text}", encoding="utf-8")


def _training(cases: Cases) -> str:
    fitting = {name: _each(some, examples_per_second) for name, some in cases.items()}
    steady = {name: _each(some, steady_examples_per_second) for name, some in cases.items()}
    rows = []
    for name, some in cases.items():
        ours = f"bertkit, {name.rpartition(', ')[2]}"
        fewer = some[0].result["rows"] < cases.get(ours, some)[0].result["rows"]
        tested = {m.repeat: m.result["accuracy"] for m in some if m.result.get("accuracy")}
        whole = (_of(fitting[name]), _ratio(fitting, ours, name), _of(_each(some, _wall)))
        rows.append(
            (
                name,
                _of(steady[name]),
                _ratio(steady, ours, name),
                *(("–",) * 3 if fewer else whole),  # with other rows they say nothing
                _of(_each(some, _first_step)),
                _of(_each(some, _megabytes), 0),
                _of(tested, 3),
            )
        )
    header = (
        *("training run", "examples/s, steps alone", "bertkit is ×"),
        *("examples/s, whole fit", "bertkit is ×", "whole process, s"),
        *("first step after, s", "peak memory, MB", "accuracy"),
    )
    return table(header, rows)


def _accuracy(cases: Cases) -> str:
    rows = []
    for name, some in cases.items():
        times = {
            one.repeat: seconds
            for one in some
            for seconds in [time_to(TARGET, one.result["events"], one.started)]
            if seconds is not None
        }
        tested = {one.repeat: one.result["accuracy"] for one in some}
        rows.append((name, _of(tested, 3), str(len(some)), f"{_of(times)} in {len(times)}"))
    header = ("training run", "test accuracy", "seeds", f"s to {TARGET:.0%} on validation rows")
    return table(header, rows)


def _prediction(cases: Cases) -> str:
    rates = {name: _each(some, _texts_per_second) for name, some in cases.items()}
    rows = []
    for name, some in cases.items():
        order = name.rpartition(", ")[2]
        ours = f"bertkit, {order if f'bertkit, {order}' in cases else 'unsorted'}"
        labels, expected = (s[0].result.get("labels") for s in (some, cases.get(ours, some)))
        same = "–"
        if labels and expected:
            same = f"{sum(map(str.__eq__, labels, expected)) / len(labels):.2%}"
        rows.append(
            (
                name,
                _of(rates[name]),
                _ratio(rates, ours, name),
                same,
                _of(_each(some, lambda one: one.result["first_batch"]), 2),
                _of(_each(some, _wall)),
                _of(_each(some, _megabytes), 0),
            )
        )
    header = (
        *("prediction", "texts/s", "bertkit is ×", "labels as bertkit's"),
        *("first batch, s", "whole process, s", "peak memory, MB"),
    )
    return table(header, rows)


def _tokenizing(cases: Cases) -> str:
    rates = {name: _each(some, _texts_per_second) for name, some in cases.items()}
    expected = cases["bertkit"][0].result["ids"] if "bertkit" in cases else None
    rows = [
        (name, _of(rates[name], 0), _ratio(rates, "bertkit", name),
         "yes" if {one.result["ids"] for one in some} == {expected} else "no")
        for name, some in cases.items()
    ]  # fmt: skip
    return table(("tokenizing", "texts/s", "bertkit is ×", "ids as bertkit's"), rows)


def _whole(cases: Cases) -> str:
    rows = [
        (f"`{name}`", _of(_each(some, _wall), 2), _of(_each(some, _megabytes), 0))
        for name, some in cases.items()
    ]
    return table(("process", "s", "peak memory, MB"), rows)


def _growth(cases: Cases) -> str:
    rows = [
        (name, _of(_each(some, steady_examples_per_second)),
         _of(_each(some, lambda one: 1e3 / steady_examples_per_second(one)), 2),
         _of(_each(some, _wall)), _of(_each(some, _megabytes), 0))
        for name, some in cases.items()
    ]  # fmt: skip
    return table(
        ("bertkit", "examples/s", "ms an example", "whole process, s", "peak memory, MB"), rows
    )


def _rate(cases: Cases) -> str:
    rows = []
    for name, some in cases.items():
        rows.append((
            name,
            _of(_each(some, lambda one: rate_of(one)["large"]), 0),
            _of(_each(some, lambda one: rate_of(one)["products"]), 0),
            _of(_each(some, lambda one: 1e3 * rate_of(one)["floor"]), 0),
            _of(_each(some, lambda one: 1e3 * one.result["step_seconds"]), 0),
            _of(_each(some, lambda one: rate_of(one)["step"]), 0),
            _of(_each(some, lambda one: 100 * rate_of(one)["share"]), 0),
        ))  # fmt: skip
    header = ("training step", "2048³, GFLOP/s", "its own products, GFLOP/s", "their time, ms",
              "step, ms", "step, GFLOP/s", "% of its products' rate")  # fmt: skip
    return table(header, rows)


_PARTS: dict[str, tuple[str, Callable[[Cases], str]]] = {
    "training": ("Training", _training), "accuracy": ("Accuracy", _accuracy),
    "prediction": ("Prediction", _prediction), "tokenizing": ("Tokenizing", _tokenizing),
    "start": ("Start", _whole), "growth": ("How cost grows", _growth),
    "stream": ("From file to file", _whole),
    "rate": ("The rate of the step", _rate),
}  # fmt: skip


def examples_per_second(one: Measurement) -> float:
    """Return the examples a second of `fit`, with all that happens in it."""
    return _examples(one) / seconds_of(one.result["events"], one.started)["fit"]


def steady_examples_per_second(one: Measurement) -> float:
    """Return the examples a second of training, without the first step and what it prepares."""
    seconds = seconds_of(one.result["events"], one.started)
    steady = _examples(one) - int(one.arguments["batch_size"])
    return steady / (seconds["training"] - seconds["first"])


def rate_of(one: Measurement) -> dict[str, float]:
    """Return the rates of a step and of its products.

    Returns:
        GFLOP/s of the "large" product, of the step's own "products" and of the "step"; the
        products' time, "floor", in seconds; the "share" of their rate that the step reaches.
    """
    large, *products = one.result["products"]
    flops = sum(product["flops"] for product in products)
    floor = sum(product["seconds"] * product["count"] for product in products)
    step = float(one.result["step_seconds"])
    return {
        "large": large["flops"] / large["seconds"] / 1e9,
        "products": flops / floor / 1e9,
        "floor": floor,
        "step": flops / step / 1e9,
        "share": floor / step,
    }


def _examples(one: Measurement) -> int:
    """Count the rows of a run's training file, once an epoch."""
    return int(one.result["rows"]) * int(one.arguments["epochs"])


def _texts_per_second(one: Measurement) -> float:
    return float(one.result["texts_per_second"])


def _wall(one: Measurement) -> float:
    return one.wall


def _first_step(one: Measurement) -> float:
    return seconds_of(one.result["events"], one.started)["first_step"]


def _megabytes(one: Measurement) -> float:
    return one.peak_memory / 1e6


def _each(some: Sequence[Measurement], value: Callable[[Measurement], float]) -> dict[int, float]:
    return {one.repeat: value(one) for one in some}


def _of(values: Mapping[int, float], digits: int = 1) -> str:
    return Spread.of(values.values()).show(digits) if values else "–"


def _ratio(values: Mapping[str, Mapping[int, float]], ours: str, name: str) -> str:
    if ours == name or not {*values.get(ours, ())} & {*values[name]}:
        return "–"
    return ratio(values[ours], values[name]).show(2)
