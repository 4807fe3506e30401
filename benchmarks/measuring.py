"""Each measurement is a fresh process; those that are compared take turns."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.programs.common import RESULT

ROOT = Path(__file__).resolve().parent.parent


class BenchmarkError(Exception):
    """A program did not do what it should; the message holds what it printed."""


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        part: what it is compared within.
        name: names it there.
        command: what is run, in the root of the checkout.
        arguments: what a program of `benchmarks/programs` gets, as JSON; `None` for other commands.
        cores: how many cores it may use; `None` for all that the harness has.
    """

    part: str
    name: str
    command: Sequence[str]
    arguments: Mapping[str, Any] | None = None
    cores: int | None = None


@dataclass(frozen=True)
class Measurement:
    """What was measured of a case, once.

    Attributes:
        part, case: as in `Case`.
        repeat: which of the repeats; it is the seed too.
        started: seconds since the epoch.
        wall: seconds from the start of the process to its end.
        peak_memory: the largest resident set of the process, in bytes; no less than that of the
            harness, which Linux counts in.
        arguments: what the program was given.
        result: what the program says.
    """

    part: str
    case: str
    repeat: int
    started: float
    wall: float
    peak_memory: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)


def program(python: Path, name: str) -> tuple[str, ...]:
    """Return the command that runs a program of `benchmarks/programs`."""
    return (str(python), "-m", f"benchmarks.programs.{name}")


def alternate(
    cases: Sequence[Case], repeats: int, before: Sequence[Measurement] = ()
) -> Iterator[Measurement]:
    """Measure all cases once, then all once more, and so on.

    Args:
        cases: of one part.
        repeats: how often.
        before: what was measured before; repeats are counted on from there.

    Raises:
        BenchmarkError: as `measure` does.
    """
    done = Counter((one.part, one.case) for one in before)
    for repeat in range(repeats):
        for case in cases:
            yield measure(case, done[case.part, case.name] + repeat)


def measure(case: Case, repeat: int = 0) -> Measurement:
    """Run a case in a process of its own.

    Raises:
        BenchmarkError: it failed, or printed no result.
    """
    cores = sorted(os.sched_getaffinity(0))[: case.cores]
    command, started = list(case.command), time.time()
    arguments: dict[str, Any] = {}
    if case.arguments is not None:
        arguments = {**case.arguments, "seed": repeat, "cores": len(cores)}
        command.append(json.dumps(arguments))
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **_environment(len(cores))},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.time() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        printed, complained = (_text(file) for file in (output, errors))
    found = [line for line in printed.splitlines() if line.startswith(RESULT)]
    if process.returncode or (case.arguments is not None and not found):
        raise BenchmarkError(
            f"{case.part}, {case.name}: ended with {process.returncode}.\n{complained[-3000:]}"
        )
    return Measurement(
        part=case.part,
        case=case.name,
        repeat=repeat,
        started=started,
        wall=wall,
        peak_memory=usage.ru_maxrss * 1024,
        arguments=arguments,
        result=json.loads(found[-1].removeprefix(RESULT)) if found else {},
    )


def append(path: Path, measurement: Measurement) -> None:
    """Add a measurement to a file of JSON lines."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(measurement)) + "\n")


def load(path: Path) -> list[Measurement]:
    """Return the measurements of a file, none if there is no such file."""
    if not path.is_file():
        return []
    return [Measurement(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def _environment(cores: int) -> dict[str, str]:
    """Have every library use the cores it may use, and none look for the network."""
    return {
        "OMP_NUM_THREADS": str(cores),
        "RAYON_NUM_THREADS": str(cores),
        "TOKENIZERS_PARALLELISM": "true",
        "HF_HUB_OFFLINE": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }


def _text(file: Any) -> str:
    file.seek(0)
    content: bytes = file.read()
    return content.decode("utf-8", errors="replace")
