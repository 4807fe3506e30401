"""Each example runs as it is, on real weights and a cut of the real data."""

from __future__ import annotations

import ast
import csv
import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from omegaconf import OmegaConf

from bertkit.config import load_config
from bertkit.errors import ConfigError
from tests.processes import BERTKIT, ROOT, cut, run

EXAMPLES = ROOT / "examples"
YAMLS = sorted(EXAMPLES.glob("*.yaml"))
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
PLUGIN = EXAMPLES / "third_party_plugin"
ROWS = 96  # of each split; most of the time goes into starting

_LABELS = {"accuracy", "macro_f1", "micro_f1", "roc_auc", "average_precision", "mcc", "loss"}
MEASURES = {
    "binary": _LABELS,
    "multiclass": _LABELS,
    "multi_label": _LABELS,
    "regression": {"mean_absolute_error", "root_mean_squared_error", "pearson", "spearman", "loss"},
    "multi_task": {f"{task}_{measure}" for task in ("sentiment", "source")
                   for measure in _LABELS - {"loss"}} | {"loss"},
}  # fmt: skip
# Runs a script as the main program, then the checker on each head that it defines.
RUN_AND_CHECK = """
import runpy, sys
sys.argv = sys.argv[1:]
names = runpy.run_path(sys.argv[0], run_name="__main__")
import bertkit, bertkit.testing
for name, value in names.items():
    if isinstance(value, type) and issubclass(value, bertkit.Head) and value is not bertkit.Head:
        bertkit.testing.check_head(value)
        print("checked", name)
"""


def name_of(path: Path) -> str:
    return path.name


def read_yaml(path: Path) -> Any:
    """Return a YAML file with its interpolations resolved."""
    return OmegaConf.to_container(OmegaConf.load(path), resolve=True)


def test_the_examples_are_found() -> None:
    assert {path.stem for path in YAMLS} >= {
        "binary", "multiclass", "multi_label", "multi_task", "regression", "sentence_pair"
    }  # fmt: skip
    assert {path.stem for path in SCRIPTS} >= {"fit", "custom_head", "tfhub"}
    heads = {load_config([path]).head.plugin for path in YAMLS}
    assert heads >= set(MEASURES), "every head that ships has an example"


@pytest.fixture(scope="module")
def schema() -> Any:
    schema = json.loads(run([BERTKIT, "schema"], ROOT))
    jsonschema.Draft202012Validator.check_schema(schema)
    return schema


@pytest.mark.parametrize("path", YAMLS, ids=name_of)
def test_an_example_keeps_to_the_schema(path: Path, schema: Any) -> None:
    config = read_yaml(path)
    jsonschema.validate(config, schema, cls=jsonschema.Draft202012Validator)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config, "epochs": 1}, schema)


@pytest.mark.real
@pytest.mark.parametrize("path", YAMLS, ids=name_of)
def test_an_example_trains(path: Path, tmp_path: Path) -> None:
    config = load_config([path])
    folder = tmp_path / "run"
    overrides = [*cut(config, tmp_path, ROWS), "training.epochs=1", f"output_dir={folder}"]
    run([BERTKIT, "train", path, *overrides], tmp_path)
    check_run(folder, MEASURES[config.head.plugin], ROWS * len(config.data.tasks or [None]))
    if path.stem == "binary":
        check_commands(folder, tmp_path)


def check_run(folder: Path, measures: set[str], rows: int = ROWS) -> None:
    """Check that a run folder is whole, and its measures are those of the head."""
    assert {entry.name for entry in folder.iterdir()} == {
        "config.yaml", "data.json", "history.csv", "logs", "metrics.json", "model"
    }  # fmt: skip
    assert read_yaml(folder / "config.yaml")["training"]["epochs"] == 1
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics) == {"validation", "test"}
    for split, measured in metrics.items():
        assert set(measured) == measures
        assert all(math.isfinite(value) for value in measured.values()), (split, measured)
    assert json.loads((folder / "data.json").read_text())["train"]["rows"] == rows
    with (folder / "history.csv").open() as file:
        (epoch,) = csv.DictReader(file)
    # The loss at the end of the epoch and of the run: the same rows, in batches of 32 and of 64.
    assert float(epoch["val_loss"]) == pytest.approx(metrics["validation"]["loss"], rel=1e-3)
    assert list((folder / "logs").rglob("events.out.tfevents.*"))
    assert {"model.keras", "manifest.json", "config.yaml"} == {
        entry.name for entry in (folder / "model").iterdir()
    }


def check_commands(folder: Path, data: Path) -> None:
    """Check that a run predicts what it is given, and measures the same again."""
    texts = ["A moving film, and a very funny one.", "Two hours that I would like to have back."]
    lines = run([BERTKIT, "predict", folder], data, input="".join(f"{text}\n" for text in texts))
    rows = [json.loads(line) for line in lines.splitlines()]
    assert [row["text"] for row in rows] == texts
    for row in rows:
        assert set(row["scores"]) == {"negative", "positive"}
        assert sum(row["scores"].values()) == pytest.approx(1)
        assert row["score"] == row["scores"][row["label"]] == max(row["scores"].values())
    again = json.loads(run([BERTKIT, "evaluate", folder, "--json"], data))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert again["test"] == pytest.approx(metrics["test"], abs=1e-5)


@pytest.mark.real
@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_a_script_runs(path: Path, tmp_path: Path) -> None:
    printed = run([sys.executable, "-c", RUN_AND_CHECK, str(path), str(ROWS)], tmp_path)
    if path.stem == "custom_head":
        assert "checked StrongestToken" in printed
    if path.stem == "tfhub":  # what the project is for
        assert re.search(r"hub.KerasLayer in a keras.Model: 0 of (\d+) weights", printed)
        assert re.search(r"bertkit: (\d+) of \1 weights of BERT moved", printed)
    if path.stem == "fit":
        assert (tmp_path / "film.keras").is_file()


def test_a_head_takes_at_most_25_lines() -> None:
    """From the decorator to the trained model."""
    body = ast.parse((EXAMPLES / "custom_head.py").read_text()).body
    (head,) = (node for node in body if isinstance(node, ast.ClassDef))
    (fit,) = (node for node in body if "model.fit(" in ast.unparse(node))
    assert ast.unparse(head.decorator_list[0]).startswith("heads.register(")
    assert fit.end_lineno is not None
    assert fit.end_lineno - head.decorator_list[0].lineno + 1 <= 25


@pytest.mark.real
def test_a_distribution_of_its_own_is_found_by_name(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "site"
    shutil.copytree(PLUGIN, source)
    install = ("install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    run([sys.executable, "-m", "pip", *install, "--target", target, source], tmp_path)

    listed = json.loads(run([BERTKIT, "plugins", "--json"], tmp_path, PYTHONPATH=str(target)))
    (focal,) = (row for row in listed if row["name"] == "focal")
    assert (focal["kind"], focal["distribution"]) == ("head", "bertkit-focal 1.0.0")
    assert [argument["name"] for argument in focal["arguments"]] == ["labels", "gamma", "dropout"]

    # Here, without the distribution, the name means nothing.
    with pytest.raises(ConfigError, match=r"head\.plugin = \"focal\": expected an installed head"):
        load_config([source / "focal.yaml"])
    elsewhere = load_config([source / "focal.yaml"], ["head={plugin: multiclass}"])
    folder = tmp_path / "run"
    overrides = [*cut(elsewhere, tmp_path, ROWS), f"output_dir={folder}"]
    run([BERTKIT, "train", source / "focal.yaml", *overrides], tmp_path, PYTHONPATH=str(target))
    check_run(folder, _LABELS)

    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    assert " passed" in run(pytest_, source, PYTHONPATH=str(target))
