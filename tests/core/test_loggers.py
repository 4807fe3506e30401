"""Loggers and callbacks that a config names."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bertkit import experiment
from bertkit.config import config_from_mapping
from bertkit.errors import ConfigError
from bertkit.training.checkpoint import Checkpoint
from bertkit.training.loggers import named_callbacks
from bertkit.unfinished import checkpoints_of, settings_of
from tests.command_line import CommandLine, tiny_config, write_tiny_data, write_yaml

CSV = "keras.callbacks.CSVLogger"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(write_tiny_data(tmp_path))
    return tmp_path


def test_callbacks_run_only_if_they_are_allowed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(training__callbacks=[{"callback": CSV, "filename": "epochs.csv"}],
                         training__loggers=[])  # fmt: skip
    write_yaml(folder / "named.yaml", config)
    bertkit = CommandLine(monkeypatch, capfd)
    for words in ([], ["--dry-run"]):
        done = bertkit("train", "named.yaml", *words)
        assert done.code == 2 and done.err == (
            f"Error: training.callbacks names {CSV}, which is code, and a config runs none by "
            "itself. Look at what it does, then pass --allow-callbacks (allow_callbacks=True), or "
            "take it out.\n"
        )
    with pytest.raises(ConfigError, match="is code, and a config runs none by itself"):
        experiment.run(config, verbose=0)
    assert not Path("epochs.csv").exists()
    assert bertkit("train", "named.yaml", "--allow-callbacks", "--dry-run").code == 0
    assert not Path("epochs.csv").exists()
    assert bertkit("train", "named.yaml", "--allow-callbacks").code == 0
    assert len(Path("epochs.csv").read_text().splitlines()) == 2
    assert not Path("runs/binary/logs").exists(), "no logger is named"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"filename": "a"}, r"has callback: None\. Give a dotted name, such as keras\.callbacks"),
        ({"callback": "CSVLogger"}, r"has callback: CSVLogger\. Give a dotted name"),
        ({"callback": "no_such.Thing"}, r"cannot be imported \(No module named 'no_such'\)\. Inst"),
        ({"callback": "keras.callbacks.CsvLogger"}, r"cannot be imported \(.*CsvLogger.* Install"),
        ({"callback": "keras.layers.Dense"}, r"is no subclass of keras\.callbacks\.Callback\. N"),
        ({"callback": "os.system", "command": "x"}, r"os\.system, which is no subclass"),
        ({"callback": CSV, "file": "a"}, r"does not take these arguments \(.*'file'\)\. Give what"),
    ],
)
def test_callbacks_that_cannot_be_made(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        named_callbacks([section])


def test_a_missing_package_names_its_extra() -> None:
    for name in ("mlflow", "wandb"):
        if importlib.util.find_spec(name):
            continue
        with pytest.raises(ConfigError) as caught:
            experiment.run(tiny_config(training__loggers=[name]), verbose=0)
        assert str(caught.value) == (
            f"training.loggers names {name}, which is not installed. Run `pip install "
            f"'bertkit[{name}]'`, or take it out."
        )


# In a process of its own: these packages change what they find in Keras.
_RUN = """
import sys
from bertkit import experiment
from tests.command_line import tiny_config
experiment.run(tiny_config(training__loggers=[sys.argv[1]], training__epochs=2), verbose=0)
if sys.argv[1] == "mlflow":
    import mlflow
    (run,) = mlflow.search_runs(output_format="list")
    assert run.info.run_name == "binary" and run.info.status == "FINISHED"
    assert mlflow.active_run() is None
    losses = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
    assert [one.step for one in losses] == [0, 1]
else:
    import wandb
    assert wandb.run is None
"""


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_loggers_record_a_run(name: str, folder: Path) -> None:
    pytest.importorskip(name)
    environment = {
        **os.environ, "WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": f"file:{folder}/mlruns",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", _RUN, name], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    if name == "wandb":
        assert list(Path("runs/binary/logs").glob("wandb/offline-run-*/*.wandb"))


def test_what_a_checkpoint_compares_comes_back_equal() -> None:
    """Tuples of a config, such as loggers and targets of LoRA, are lists in a checkpoint."""
    config = config_from_mapping(tiny_config(training__lora={}))
    settings = settings_of(config)
    assert settings["training.loggers"] == ["tensorboard"]
    assert settings["training.lora"]["targets"] == ["qkv"]
    assert Checkpoint(checkpoints_of(Path("run")), identity=settings).identity == settings
