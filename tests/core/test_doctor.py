"""The checks of an installation, in this environment and in made-up ones that do not fit."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bertkit.registry import REGISTRIES

BERTKIT = str(Path(sys.executable).with_name("bertkit"))


def fake(folder: Path, name: str, version: str, entry_points: str = "") -> None:
    """Write the metadata of a distribution, which comes before the real one on the path."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(entry_points)


def minor(name: str) -> str:
    return ".".join(importlib.metadata.version(name).split(".")[:2])


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Exit code, checks by name, and standard error of `bertkit doctor --json`."""
    folder = tmp_path_factory.mktemp("doctor")
    fake(folder / "text", "tensorflow-text", "2.11.0")
    fake(folder / "several", "keras-nlp", "0.1.0")
    fake(folder / "several", "setuptools", "82.0.1")
    plugin = "[bertkit.heads]\nbroken_doctor = a_module_that_is_not_there:Head\n"
    fake(folder / "several", "broken-heads", "1.2", plugin)
    # What crashes instead of raising an error, as libraries do that do not fit together.
    (folder / "crash").mkdir()
    (folder / "crash" / "tensorflow_text.py").write_text("import os; os.abort()\n")
    environments: dict[str, dict[str, str]] = {
        "healthy": {},
        "text": {"PYTHONPATH": str(folder / "text")},
        "several": {"PYTHONPATH": str(folder / "several")},
        "crash": {"PYTHONPATH": str(folder / "crash")},
        "backend": {"KERAS_BACKEND": "jax"},
    }

    def ask(environment: dict[str, str]) -> tuple[int, dict[str, Any], str]:
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "KERAS_BACKEND")}
        done = subprocess.run(
            [BERTKIT, "doctor", "--json"],
            capture_output=True,
            text=True,
            env={**clean, **environment},
        )
        checks = json.loads(done.stdout)
        assert all(set(check) == {"name", "ok", "found", "fix"} for check in checks)
        return done.returncode, {check["name"]: check for check in checks}, done.stderr

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(environments, pool.map(ask, environments.values()), strict=True))


def wrong(answer: Any) -> dict[str, Any]:
    """Return the checks that found something, of an answer that must be a failure."""
    code, checks, err = answer
    assert (code, err) == (1, "")
    found = {name: check for name, check in checks.items() if not check["ok"]}
    assert all(check["fix"] for check in found.values())
    return found


def test_a_healthy_installation(answers: dict[str, Any]) -> None:
    code, checks, err = answers["healthy"]
    assert (code, err) == (0, "")
    assert all(check["ok"] and not check["fix"] for check in checks.values())
    text = checks["TensorFlow Text"]["found"]
    for name in ("tensorflow-text", "tensorflow"):
        assert f"{name} {importlib.metadata.version(name)}" in text
    for kind, registry in REGISTRIES.items():
        for info in registry.infos():
            if info.distribution.startswith("bertkit "):
                assert checks[f"{kind} {info.name} of {info.distribution}"]["found"] == "loads"


def test_a_version_that_does_not_fit(answers: dict[str, Any]) -> None:
    (check,) = wrong(answers["text"]).values()
    assert check["name"] == "TensorFlow Text"
    assert "tensorflow-text 2.11.0" in check["found"]
    assert check["fix"] == f"pip install 'tensorflow-text=={minor('tensorflow')}.*'"


def test_several_at_once(answers: dict[str, Any]) -> None:
    found = wrong(answers["several"])
    fixes = {check["fix"] for check in found.values()}
    assert fixes == {
        f"pip install 'keras-nlp=={minor('keras-hub')}.*'",
        "pip install 'setuptools<82'",
        "update or uninstall broken-heads 1.2",
    }
    broken = found["head broken_doctor of broken-heads 1.2"]["found"]
    assert "a_module_that_is_not_there" in broken


def test_a_library_that_crashes(answers: dict[str, Any]) -> None:
    found = wrong(answers["crash"])
    check = found["TensorFlow Text's ABI"]
    assert "the process ended with code -6" in check["found"]
    fix = f"pip install --force-reinstall 'tensorflow-text=={minor('tensorflow')}.*'"
    assert check["fix"] == fix


def test_another_backend(answers: dict[str, Any]) -> None:
    check = wrong(answers["backend"])["KERAS_BACKEND"]
    assert (check["found"], check["fix"]) == ("jax", "export KERAS_BACKEND=tensorflow")


def test_as_a_table() -> None:
    """For people, with whole fixes in it."""
    done = subprocess.run(
        [BERTKIT, "doctor"],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "jax", "COLUMNS": "200"},
    )
    assert done.returncode == 1 and done.stderr == ""
    assert "WRONG: jax" in done.stdout and "export KERAS_BACKEND=tensorflow" in done.stdout
