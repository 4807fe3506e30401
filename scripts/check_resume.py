"""Kill runs at random moments, resume them, and compare them with one that was never killed.

A small experiment is made up, in a temporary folder, and trained in processes of their own. They
are ended by SIGKILL, most of them after training has begun, and resumed until they have finished.
Weights, optimizer, history and metrics must then be the same to the last bit. The tests do the same
with fewer kills.

    python scripts/check_resume.py --kills 50 [KEY=VALUE ...]
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

BERTKIT = Path(sys.executable).with_name("bertkit")
WORDS = [f"w{number}" for number in range(200)]
EARLY = 0.1  # of the kills come before training has begun
PHASES = ("starting", "training", "writing a checkpoint", "finishing", "finished")
CONFIG: dict[str, Any] = {
    "name": "run",
    "data": {"train": "rows.jsonl", "validation": 0.2, "test": 0.2, "text": "text",
             "label": "label"},
    "encoder": {"plugin": "bert", "vocabulary_size": len(WORDS) + 5, "hidden_size": 32,
                "num_layers": 2, "num_heads": 2, "intermediate_size": 64,
                "max_sequence_length": 32, "vocabulary": "vocab.txt"},
    "preprocessor": {"plugin": "single_text", "sequence_length": 32},
    "head": {"plugin": "binary"},
    "training": {"epochs": 3, "batch_size": 4, "learning_rate": 1e-3, "checkpoint_minutes": 0},
}  # fmt: skip


@dataclass(frozen=True)
class Kill:
    """A process that was ended: after how many seconds, and what it was doing."""

    seconds: float
    phase: str


def main() -> int:
    """Print the kills and what came of them; return 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the config")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        check = Check(Path(folder), options.overrides, options.seed)
        print(f"Not killed: {check.started:.1f} s until it trains, {check.ended:.1f} s in all.")
        kills: list[Kill] = []
        runs = same = 0
        while len(kills) < options.kills:
            some = check.kill_and_resume(options.kills - len(kills))
            differences = check.differences()
            runs, same, kills = runs + 1, same + (not differences), [*kills, *some]
            print(f"run {runs}: {len(some)} kills, {', '.join(differences) or 'the same'}")
    print()
    for phase, count in Counter(kill.phase for kill in kills).items():
        print(f"{phase:>22} {count:4} kills")
    print(f"{'in all':>22} {len(kills):4} kills")
    print(f"{same} of {runs} runs are the same to the last bit as the one that was not killed.")
    return int(same != runs)


class Check:
    """An experiment, its result, and runs of it that are killed.

    Args:
        folder: where all of it is written.
        overrides: `KEY=VALUE` of the config.
        seed: of the moments.

    Attributes:
        started: seconds until a run trains.
        ended: seconds until it has finished.
    """

    def __init__(self, folder: Path, overrides: Sequence[str], seed: int) -> None:
        self._folder, self._overrides = folder, overrides
        self._random = random.Random(seed)
        write_experiment(folder, self._random)
        began = time.monotonic()
        process = self._train("reference")
        while not self._trains() and process.poll() is None:
            time.sleep(0.02)
        self.started = time.monotonic() - began
        if process.wait():
            raise SystemExit((folder / "out.txt").read_text())
        self.ended = time.monotonic() - began
        self._expected = content_of(folder / "reference")

    def kill_and_resume(self, most: int) -> list[Kill]:
        """Kill a new run again and again, so many times at most, until it has finished."""
        kills: list[Kill] = []
        shutil.rmtree(self._folder / "run", ignore_errors=True)
        while True:
            process = self._train("run", "--resume")
            if len(kills) < most:
                kill = self._kill(process)
                if kill is not None:
                    kills.append(kill)
                    continue
            if process.wait():
                raise SystemExit((self._folder / "out.txt").read_text())
            return kills

    def differences(self) -> list[str]:
        """Return the names of what is not as in the run that was not killed."""
        found = content_of(self._folder / "run")
        names = [*self._expected, *(name for name in found if name not in self._expected)]
        return [name for name in names if found.get(name) != self._expected.get(name)]

    def _kill(self, process: subprocess.Popen[bytes]) -> Kill | None:
        """Kill a process at a random moment; return `None` if it has ended before."""
        began = time.monotonic()
        early = self._random.random() < EARLY
        while not early and not self._trains() and process.poll() is None:
            time.sleep(0.01)
        left = self.started if early else self.ended - self.started
        time.sleep(self._random.random() * left)
        if process.poll() is not None:
            return None
        process.send_signal(signal.SIGKILL)
        process.wait()
        return Kill(time.monotonic() - began, self._phase())

    def _phase(self) -> str:
        """Return what the process that was killed last was doing."""
        stage = self._folder / "run.unfinished"
        if (self._folder / "run").exists():
            return "finished"
        partial = stage / "checkpoint" / "partial"
        if partial.exists() and partial.stat().st_mtime > self._since:  # not of an earlier one
            return "writing a checkpoint"
        if (stage / "metrics.json").exists():
            return "finishing"
        return "training" if self._trains() else "starting"

    def _train(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        self._since = time.time()
        command = [str(BERTKIT), "train", "config.json", f"output_dir={name}", *words]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"}
        with (self._folder / "out.txt").open("wb") as out:
            return subprocess.Popen(
                [*command, *self._overrides],
                cwd=self._folder,
                stdout=out,
                stderr=out,
                env=environment,
            )

    def _trains(self) -> bool:
        return b"Epoch " in (self._folder / "out.txt").read_bytes()


def write_experiment(folder: Path, random: random.Random) -> None:
    """Write rows, a vocabulary and a config."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *WORDS, ""]))
    rows = []
    for _ in range(150):
        words = random.choices(WORDS, k=random.randint(1, 25))
        label = "even" if words[0][-1] in "02468" else "odd"
        rows.append({"text": " ".join(words), "label": label})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.json").write_text(json.dumps(CONFIG))  # JSON is YAML


def content_of(run: Path) -> dict[str, str]:
    """Return the hash of each weight, of each of the optimizer's, and of each file of a run."""
    names = ("metrics.json", "history.csv", "head_history.csv", "data.json")
    hashes = {
        name: hashlib.sha256((run / name).read_bytes()).hexdigest()
        for name in names
        if (run / name).exists()
    }

    def take(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            hashes[name] = hashlib.sha256(item[()].tobytes()).hexdigest()

    with zipfile.ZipFile(run / "model" / "model.keras") as file:
        content = io.BytesIO(file.read("model.weights.h5"))
    with h5py.File(content) as weights:
        weights.visititems(take)
    assert any("optimizer" in name for name in hashes), "there is less to compare than there should"
    entries = {path.name for path in run.iterdir()} - {"config.yaml", "logs", "model", *hashes}
    return hashes | {f"also {entry}": entry for entry in entries}


if __name__ == "__main__":
    sys.exit(main())
