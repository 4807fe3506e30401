"""Run folders of every head, loaded in a fresh process whose sources are gone; and the folder."""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import bertkit
from bertkit import artifact, experiment
from bertkit.errors import ArtifactError, PluginError
from bertkit.registry import heads
from tests.command_line import snapshot, tiny_config, write_jsonl
from tests.processes import files_of_at_most
from tests.tiny import write_huggingface_folder
from tests.tiny_models import HEADS, LABELS, PAIRS, TEXTS, tiny_model, weights_of

RUNS = [*HEADS, "pair"]
# What a fresh process does: it loads each run by Keras alone, then by bertkit, and trains on.
PROGRAM = """
import json
import keras
import numpy as np
from bertkit import BertClassifier
runs = json.load(open("rows.json"))

def facts(name, model):
    saved = np.load(f"{name}.npz")
    state = [np.array(variable) for variable in model.optimizer.variables]
    return {
        "type": type(model) is BertClassifier,
        "predictions": np.array_equal(model.predict(runs[name][0], verbose=0), saved["logits"]),
        "optimizer": type(model.optimizer).__module__,
        "state": all(np.array_equal(s, saved[f"s{i}"]) for i, s in enumerate(state)),
        "iterations": int(model.optimizer.iterations),
    }

keras_alone = {
    name: facts(name, keras.models.load_model(f"{name}/model/model.keras")) for name in runs
}
import bertkit
by_bertkit, trained = {}, {}
for name, (rows, labels) in runs.items():
    model = bertkit.load(name)
    by_bertkit[name] = facts(name, model)
    keras.utils.set_random_seed(5)
    for variable in model.variables:  # Keras does not save where its dropout is
        if "seed_generator" in variable.path:
            variable.assign([5, 0])
    model.fit(rows, labels, batch_size=4, epochs=1, verbose=0)
    weights = [np.array(v) for v in [*model.variables, *model.optimizer.variables]]
    saved = np.load(f"{name}.npz")
    differ = [i for i, w in enumerate(weights) if not np.array_equal(w, saved[f"a{i}"])]
    trained[name] = {"differ": differ, "weights": len(weights),
                     "iterations": int(model.optimizer.iterations)}
print("REPORT", json.dumps([keras_alone, by_bertkit, trained]))
"""


def rows_and_labels(name: str) -> tuple[Any, list[Any]]:
    return (PAIRS, LABELS["binary"]) if name == "pair" else (TEXTS, LABELS[name])


def train(name: str, sources: Path, folder: Path) -> bertkit.BertClassifier:
    """Train a run from sources: a folder of weights, and a file of rows."""
    texts, labels = rows_and_labels(name)
    columns = ["text"] if name != "pair" else ["a", "b"]
    cells = [(text,) if isinstance(text, str) else text for text in texts]
    data = write_jsonl(
        sources / f"{name}.jsonl",
        [
            {**dict(zip(columns, row, strict=True)), "label": label}
            for row, label in zip(cells, labels, strict=True)
        ],
    )
    config = tiny_config(
        "binary" if name == "pair" else name,
        data={"train": str(data), "label": "label", "text": columns},
        encoder={"plugin": "huggingface", "source": str(sources / "encoder")},
        output_dir=str(folder / name),
    )
    if name == "pair":
        config["preprocessor"]["plugin"] = "sentence_pair"
    return experiment.run(config, verbose=0).model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of every head, whose sources have gone, and what they were before."""
    folder = tmp_path_factory.mktemp("artifacts")
    sources = folder / "sources"
    write_huggingface_folder(sources / "encoder")
    rows = {}
    for name in RUNS:
        model = train(name, sources, folder)
        texts, labels = rows_and_labels(name)
        rows[name] = [texts, labels]
        saved = {"logits": model.predict(texts, verbose=0)}
        saved |= {f"s{i}": np.array(v) for i, v in enumerate(model.optimizer.variables)}
        keras.utils.set_random_seed(5)
        for variable in model.variables:
            if "seed_generator" in variable.path:
                variable.assign([5, 0])
        model.fit(texts, labels, batch_size=4, epochs=1, verbose=0)
        saved |= {f"a{i}": weight for i, weight in enumerate(weights_of(model))}
        np.savez(folder / f"{name}.npz", **saved)
    (folder / "rows.json").write_text(json.dumps(rows))
    sources.rename(folder / "gone")
    return folder


@pytest.fixture(scope="module")
def reports(folder: Path) -> list[dict[str, Any]]:
    """What a fresh process reports: of Keras alone, of bertkit, and of training on."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return list(json.loads(done.stdout.partition("REPORT ")[2]))


@pytest.mark.parametrize("loader", [0, 1], ids=["keras alone", "bertkit.load"])
@pytest.mark.parametrize("name", RUNS)
def test_a_fresh_process_predicts_the_same(
    reports: list[dict[str, Any]], name: str, loader: int
) -> None:
    report = reports[loader][name]
    assert report["type"] and report["predictions"]  # to the last bit
    assert report["optimizer"] == "bertkit.training.optimizer"
    assert report["state"]
    assert report["iterations"] == 3  # 11 rows in batches of 4


@pytest.mark.parametrize("name", RUNS)
def test_a_fresh_process_trains_on_the_same(reports: list[dict[str, Any]], name: str) -> None:
    report = reports[2][name]
    assert report["iterations"] == 6
    assert report["differ"] == [] and report["weights"] > 30


@pytest.mark.parametrize("name", RUNS)
def test_nothing_in_it_is_code(folder: Path, name: str) -> None:
    with zipfile.ZipFile(folder / name / "model" / "model.keras") as file:
        assert file.testzip() is None
        content = {entry: file.read(entry) for entry in file.namelist()}
    assert {Path(entry).suffix for entry in content} == {".json", ".h5", ".txt"}
    assert content["model.weights.h5"].startswith(b"\x89HDF\r\n")
    vocabulary = [entry for entry in content if entry.endswith("vocab.txt")]
    assert len(vocabulary) == 1
    assert content[vocabulary[0]] == (folder / "gone" / "encoder" / "vocab.txt").read_bytes()
    config = content["config.json"].decode()
    assert "lambda" not in config.lower() and '"class_name": "function"' not in config
    assert str(folder) not in config  # where the sources were is of no use to others
    modules = set(re.findall(r'"module": "([^"]*)"', config))
    packages = {module.split(".")[0] for module in modules}
    assert packages <= {"keras", "bertkit", "bertkit_plugins", "builtins"}


def test_the_manifest(folder: Path) -> None:
    for name in RUNS:
        model = folder / name / "model"
        manifest = json.loads((model / "manifest.json").read_text())
        assert set(manifest) == {"format", "versions", "plugins", "sha256"}
        assert manifest["format"] == 1
        assert manifest["versions"] == {
            distribution: importlib.metadata.version(distribution)
            for distribution in ("bertkit", "keras", "tensorflow", "tensorflow-text")
        }
        own = f"bertkit {importlib.metadata.version('bertkit')}"
        assert manifest["plugins"] == {
            "preprocessor": {
                "name": "sentence_pair" if name == "pair" else "single_text",
                "distribution": own,
            },
            "encoder": {"name": "bert", "distribution": own},  # whatever filled it
            "head": {"name": "binary" if name == "pair" else name, "distribution": own},
        }
        file = (model / "model.keras").read_bytes()
        assert manifest["sha256"] == {"model.keras": hashlib.sha256(file).hexdigest()}


def test_run_folder_and_artifact_are_the_same(folder: Path) -> None:
    one, other = bertkit.load(folder / "binary"), bertkit.load(str(folder / "binary" / "model"))
    np.testing.assert_array_equal(one.predict(TEXTS, verbose=0), other.predict(TEXTS, verbose=0))
    assert artifact.find(folder / "binary") == folder / "binary" / "model"


def test_any_flipped_bit_is_found(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(
        (folder / "binary" / "model" / "manifest.json").read_bytes()
    )
    data = (folder / "binary" / "model" / "model.keras").read_bytes()
    for place in np.random.default_rng(0).integers(len(data), size=20):
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(place) % 8
        (tmp_path / "model.keras").write_bytes(damaged)
        with pytest.raises(ArtifactError, match="is damaged: its SHA-256"):
            bertkit.load(tmp_path)


def distribution(folder: Path) -> None:
    """Write an installed distribution that brings a head."""
    info = folder / "toy_heads-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-heads\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[bertkit.heads]\ntoy_artifact = toy_heads:ToyHead\n")
    (folder / "toy_heads.py").write_text(
        "from bertkit_plugins.heads.binary import BinaryHead\nclass ToyHead(BinaryHead): pass\n"
    )


def test_a_plugin_that_is_not_installed_is_named(tmp_path: Path) -> None:
    distribution(tmp_path / "site")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path / "site")
        toy = heads.create("toy_artifact", labels=["neg", "pos"])
        model = tiny_model()
        artifact.save(bertkit.BertClassifier(model.encoder, toy), tmp_path / "model")
        assert type(bertkit.load(tmp_path / "model").head) is type(toy)
    with pytest.raises(ArtifactError) as caught:
        bertkit.load(tmp_path / "model")
    assert "needs the head 'toy_artifact' of toy-heads 1.2. Install that" in str(caught.value)


def test_a_plugin_of_a_module_is_named(tmp_path: Path) -> None:
    class DecoratedHead(type(heads.create("binary"))):  # type: ignore[misc]
        pass

    heads.register("decorated_artifact")(DecoratedHead)
    try:
        model = bertkit.BertClassifier(tiny_model().encoder, DecoratedHead(labels=["a", "b"]))
        artifact.save(model, tmp_path / "model")
        assert isinstance(bertkit.load(tmp_path / "model").head, DecoratedHead)
    finally:
        heads._decorated.pop("decorated_artifact")
    with pytest.raises(ArtifactError, match=f"'decorated_artifact' of {__name__}"):
        bertkit.load(tmp_path / "model")


def test_a_model_that_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    class UnregisteredHead(type(heads.create("binary"))):  # type: ignore[misc]
        pass

    model = bertkit.BertClassifier(tiny_model().encoder, UnregisteredHead(labels=["a", "b"]))
    with pytest.raises(PluginError, match="is not a registered head"):
        artifact.save(model, tmp_path / "model")
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9])
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, share: float) -> None:
    """HDF5 must not meet it: that crashes, and takes the process with it."""
    model = tiny_model()
    artifact.save(model, tmp_path / "sound")
    limit = int((tmp_path / "sound" / "model.keras").stat().st_size * share)
    with pytest.raises(OSError, match="File too large") as caught, files_of_at_most(limit):
        artifact.save(model, tmp_path / "full")
    assert caught.value.errno == errno.EFBIG
    assert str(caught.value.filename).endswith("model.keras")
    assert [path.name for path in tmp_path.iterdir()] == ["sound"]


def test_an_artifact_is_not_overwritten(tmp_path: Path) -> None:
    model = tiny_model()
    artifact.save(model, tmp_path / "deep" / "model")
    before = snapshot(tmp_path)
    with pytest.raises(ArtifactError, match="exists already"):
        artifact.save(model, tmp_path / "deep" / "model")
    assert snapshot(tmp_path) == before
    assert set(before) == {"deep", "deep/model", "deep/model/manifest.json",
                           "deep/model/model.keras"}  # fmt: skip


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    artifact.save(tiny_model(), tmp_path / "model")
    model = keras.Sequential([keras.layers.Dense(2)])
    model.build((None, 2))
    path = tmp_path / "model" / "model.keras"
    model.save(path)
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    manifest["sha256"]["model.keras"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "model" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="holds a Sequential, no BertClassifier"):
        bertkit.load(tmp_path / "model")


# The folder that appears whole or not at all.


def test_staged_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "run"
    with artifact.staged(target) as stage:
        (stage / "a").write_text("a")
        assert stage.parent == target.parent and not target.exists()
    assert snapshot(target) == {"a": hashlib.sha256(b"a").hexdigest()}
    assert [path.name for path in target.parent.iterdir()] == ["run"]
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_staged_leaves_nothing_behind_an_error(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").write_text("old")
    before = snapshot(tmp_path)
    for name in ("run", "other"):
        with pytest.raises(error), artifact.staged(tmp_path / name, replace=True) as stage:
            (stage / "half").write_text("half")
            raise error
    assert snapshot(tmp_path) == before


def test_staged_replaces_only_when_told(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").write_text("old")
    with (
        pytest.raises(ArtifactError, match="exists already"),
        artifact.staged(tmp_path / "run") as stage,
    ):
        pytest.fail(f"{stage} was made")
    with artifact.staged(tmp_path / "run", replace=True) as stage:
        (stage / "new").write_text("new")
        assert (tmp_path / "run" / "old").exists()
    assert set(snapshot(tmp_path)) == {"run", "run/new"}


def test_staged_does_not_replace_what_came_meanwhile(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught, artifact.staged(tmp_path / "run") as stage:
        (stage / "mine").write_text("mine")
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "theirs").write_text("theirs")
    assert set(snapshot(tmp_path / "run")) == {"theirs"}
    assert f"kept in {stage}" in str(caught.value)  # what took hours is not thrown away
    assert set(snapshot(stage)) == {"mine"}


def test_staged_follows_links(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk" / "run")
    for name in ("first", "second"):
        with artifact.staged(tmp_path / "run", replace=True) as stage:
            (stage / name).write_text(name)
        assert [path.name for path in (tmp_path / "run").iterdir()] == [name]
        assert set(snapshot(tmp_path / "disk")) == {"run", f"run/{name}"}
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "run"}


def test_what_a_killed_process_left_aside_is_not_in_the_way(tmp_path: Path) -> None:
    for name, content in (("run", "then"), ("run.unfinished", "now"), ("run.unfinished.old", "?")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(content)
    artifact.put_in_place(tmp_path / "run.unfinished", tmp_path / "run", replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run" / "file").read_text() == "now"
