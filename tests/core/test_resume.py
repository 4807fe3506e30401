"""Unfinished runs: what is kept of them, how they go on, and that they end as if uninterrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bertkit import experiment
from bertkit.config import ExperimentConfig, load_config
from bertkit.errors import ConfigError
from bertkit.training.checkpoint_files import CheckpointFolder
from bertkit.unfinished import checkpoints_of
from tests.command_line import CommandLine, tiny_config, write_tiny_data, write_yaml
from tests.processes import files_of_at_most

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from check_resume import Check, content_of

KEYS = {"training__epochs": 3, "training__checkpoint_minutes": 0, "data__validation": 0.3}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with data and configs, which is the current one."""
    folder = write_tiny_data(tmp_path_factory.mktemp("resume"))
    write_yaml(folder / "binary.yaml", tiny_config(**KEYS))
    write_yaml(folder / "head.yaml", tiny_config(**KEYS, training__head_epochs=2, name="head"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def uninterrupted(place: Path) -> dict[str, str]:
    """What a run of the name "whole" holds; that it is to be resumed makes no difference."""
    notes: list[str] = []
    found = experiment.run(config_of("whole"), verbose=0, resume=True, on_note=notes.append)
    there = "There is nothing to resume in runs/whole.unfinished, so training begins at its"
    assert notes == [f"{there} beginning."]
    return content_of(found.folder)


@pytest.fixture(scope="module")
def interrupted(place: Path) -> Path:
    """The folder of a run that was interrupted, with two checkpoints, to be copied."""
    notes = interrupt(config_of("cut"))
    assert notes == ["What was trained is kept in runs/cut.unfinished. Pass --resume to go on."]
    assert not Path("runs/cut").exists()
    return Path("runs/cut.unfinished")


def config_of(name: str, file: str = "binary.yaml", *overrides: str) -> ExperimentConfig:
    return load_config([file], [f"name={name}", *overrides])


def interrupt_once(found: Callable[[], bool]) -> None:
    """Press Ctrl-C as soon as a condition holds."""
    deadline = time.monotonic() + 120
    while not found() and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)


def interrupt(config: ExperimentConfig) -> list[str]:
    """Begin a run and interrupt it after two checkpoints; return what it noted."""
    folder = CheckpointFolder(checkpoints_of(Path(config.output_dir)))
    notes: list[str] = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    watch = threading.Thread(target=interrupt_once, args=[lambda: len(folder.files()) > 1])
    try:
        watch.start()
        with pytest.raises(KeyboardInterrupt):
            experiment.run(config, verbose=0, on_note=notes.append)
    finally:
        watch.join()
        signal.signal(signal.SIGINT, before)
    return notes


def test_on_the_command_line(
    bertkit: CommandLine, place: Path, uninterrupted: dict[str, str], interrupted: Path
) -> None:
    train = ["train", "binary.yaml", "name=line"]
    shutil.copytree(interrupted, "runs/line.unfinished")
    for words in (train, [*train, "--dry-run"]):
        done = bertkit(*words)
        assert done.code == 2 and done.err.startswith(
            "Error: There is an unfinished run in runs/line.unfinished: epoch 1 of 3, "
        )
        assert done.err.endswith(
            "Pass --resume (resume=True) to go on, or --overwrite (overwrite=True) to begin anew.\n"
        )
    assert bertkit(*train, "--resume", "--dry-run").code == 0

    done = bertkit(*train, "--resume", "training.batch_size=8", "training.epochs=9", "seed=5")
    assert done.code == 2 and "is of another run: seed was 0 and is 5; " in done.err
    assert "training.epochs was 3 and is 9; training.batch_size was 4 and is 8; " in done.err
    assert "Take that back to go on, or begin anew, with --overwrite" in done.err

    lines = (place / "binary.jsonl").read_text().splitlines(keepends=True)
    for changed in (lines[:-1], [lines[0].replace("pos", "neg"), *lines[1:]]):
        (place / "changed.jsonl").write_text("".join(changed))
        done = bertkit(*train, "--resume", "data.train=changed.jsonl")
        assert done.code == 2 and "is of another run: the training rows was '" in done.err

    # The same rows elsewhere, kept token ids, and rarer checkpoints change nothing.
    (place / "moved.jsonl").write_text("".join(lines))
    others = ("data.train=moved.jsonl", "data.cache=tokens", "training.checkpoint_minutes=7")
    done = bertkit(*train, "--resume", *others)
    assert (done.code, done.err) == (0, "")
    assert "Going on from a checkpoint: epoch 1 of 3, " in done.out
    assert content_of(place / "runs/line") == uninterrupted
    assert not Path("runs/line.unfinished").exists()

    done = bertkit(*train, "--resume")
    assert (done.code, done.err) == (0, "")
    assert "runs/line is finished already, so there is nothing to resume.\n" in done.out
    done = bertkit(*train, "--resume", "seed=5")
    assert done.code == 2 and "finished already, with other values of seed. Give ano" in done.err


def test_the_head_alone_first(place: Path) -> None:
    expected = content_of(experiment.run(config_of("head", "head.yaml"), verbose=0).folder)
    assert "head_history.csv" in expected
    config = config_of("head-cut", "head.yaml")
    interrupt(config)
    found = experiment.run(config, verbose=0, resume=True, on_note=lambda note: None)
    assert content_of(found.folder) == expected


def test_beginning_anew(place: Path, uninterrupted: dict[str, str], interrupted: Path) -> None:
    shutil.copytree(interrupted, "runs/anew.unfinished")
    config = config_of("anew", "binary.yaml", "training.epochs=1")
    found = experiment.run(config, verbose=0, overwrite=True, on_note=pytest.fail)
    assert len((found.folder / "history.csv").read_text().splitlines()) == 2


def test_a_mistake_in_the_config_costs_no_checkpoint(place: Path, interrupted: Path) -> None:
    shutil.copytree(interrupted, Path("runs/mistaken.unfinished"))
    checkpoints = checkpoints_of(Path("runs/mistaken"))
    before = sorted(checkpoints.iterdir())
    mistaken = config_of("mistaken", "binary.yaml", "training.restore_best=val_nothing")
    notes: list[str] = []
    with pytest.raises(ConfigError, match="val_nothing"):
        experiment.run(mistaken, verbose=0, resume=True, on_note=notes.append)
    assert sorted(checkpoints.iterdir()) == before
    assert notes == [
        "What was trained is kept in runs/mistaken.unfinished. Pass --resume to go on."
    ]


def test_another_process(bertkit: CommandLine, place: Path) -> None:
    with CheckpointFolder(checkpoints_of(Path("runs/busy"))).locked():
        for flag in ([], ["--resume"], ["--overwrite"]):
            done = bertkit("train", "binary.yaml", "name=busy", *flag)
            assert done.code == 2
            assert "Another process is training in runs/busy.unfinished. Wait" in done.err


def test_a_full_disk(bertkit: CommandLine, place: Path, interrupted: Path) -> None:
    shutil.copytree(interrupted, "runs/full.unfinished")
    folder = CheckpointFolder(checkpoints_of(Path("runs/full")))
    kept = folder.files()[0].read_bytes()
    with files_of_at_most(len(kept) // 2):
        done = bertkit("train", "binary.yaml", "name=full", "--resume")
    assert done.code == 2 and len(done.err.splitlines()) == 1
    assert done.err.startswith("Error: A checkpoint cannot be written (File too large). The one b")
    assert "MB: make room and go on with --resume." in done.err
    assert {path.name for path in folder.path.iterdir()} == {"lock", folder.files()[0].name}
    assert folder.files()[0].read_bytes() == kept


def test_what_was_damaged_or_half_written(
    place: Path, uninterrupted: dict[str, str], interrupted: Path
) -> None:
    """Killed between the model and its name, and then the disk failed."""
    stage = Path("runs/late.unfinished")
    shutil.copytree(interrupted, stage)
    shutil.copytree("runs/whole", stage, dirs_exist_ok=True)
    (stage / ".model.x1").mkdir()
    (stage / "checkpoint" / "partial").write_text("torn")
    newest, _ = CheckpointFolder(stage / "checkpoint").files()
    newest.write_bytes(newest.read_bytes()[:-1])
    notes: list[str] = []
    config = config_of("late")
    found = experiment.run(config, verbose=0, resume=True, on_note=notes.append)
    assert notes[0] == f"The checkpoint {newest} is damaged: the one before it is taken, if any."
    assert content_of(found.folder) == uninterrupted


def test_killed_between_the_name_and_tidying(place: Path, uninterrupted: dict[str, str]) -> None:
    shutil.copytree("runs/whole", "runs/tidied")
    (place / "runs/tidied/checkpoint").mkdir()
    found = experiment.run(config_of("tidied"), resume=True, on_note=lambda note: None)
    assert content_of(found.folder) == uninterrupted
    assert found.metrics == json.loads(Path("runs/whole/metrics.json").read_text())


def test_killed_processes(tmp_path: Path) -> None:
    """Ended by SIGKILL wherever they were, again and again."""
    check = Check(tmp_path, ["training.epochs=2", "training.batch_size=8"], seed=0)
    kills = check.kill_and_resume(3)
    assert kills and check.differences() == []
