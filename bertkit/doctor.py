"""Checks of the installation: versions that fit together, and what TensorFlow finds."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from dataclasses import dataclass

from bertkit.registry import REGISTRIES


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        ok: whether it is as it should be.
        found: what is there.
        fix: the command or step that mends it; empty if all is well.
    """

    name: str
    ok: bool
    found: str
    fix: str = ""


def diagnose() -> list[Check]:
    """Return all checks. TensorFlow is loaded in processes of its own, so a crash is a finding."""
    return [
        _python(),
        _same("TensorFlow Text", "tensorflow-text", "tensorflow"),
        _same("KerasHub", "keras-nlp", "keras-hub"),
        _setuptools(),
        _imports("TensorFlow and Keras", "import keras; import bertkit.encoder",
                 "pip install --force-reinstall tensorflow keras"),
        _imports("TensorFlow Text's ABI", "import tensorflow_text",
                 f"pip install --force-reinstall 'tensorflow-text=={_minor('tensorflow')}.*'"),
        _imports("TensorFlow Hub", "import tensorflow_hub",
                 "pip install 'setuptools<82' tensorflow-hub"),
        _backend(),
        *_plugins(),
    ]  # fmt: skip


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    ok = (3, 10) <= sys.version_info[:2] <= (3, 13)
    return Check("Python 3.10 to 3.13", ok, found, "" if ok else "make the environment with one")


def _same(title: str, name: str, other: str) -> Check:
    """Check that two distributions are of the same minor version."""
    first, second = _version(name), _version(other)
    ok = first is not None and second is not None and _minor(name) == _minor(other)
    found = f"{name} {first or 'missing'}, {other} {second or 'missing'}"
    fix = f"pip install '{name}=={_minor(other)}.*'" if second else f"pip install {other} {name}"
    return Check(title, ok, found, "" if ok else fix)


def _setuptools() -> Check:
    found = _version("setuptools")
    ok = found is not None and int(found.split(".")[0]) < 82
    fix = "" if ok else "pip install 'setuptools<82'"
    return Check("setuptools below 82, for TensorFlow Hub", ok, found or "missing", fix)


def _imports(title: str, code: str, fix: str) -> Check:
    process = subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        check=False,
    )
    if process.returncode == 0:
        return Check(title, True, "loads")
    lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
    return Check(title, False, lines[-1], fix)


def _backend() -> Check:
    found = os.environ.get("KERAS_BACKEND")
    ok = found in (None, "tensorflow")
    shown = "not set" if found is None else found
    return Check("KERAS_BACKEND", ok, shown, "" if ok else "export KERAS_BACKEND=tensorflow")


def _plugins() -> list[Check]:
    """Check that each plugin's distribution can be read, without importing the plugin here."""
    checks = []
    for kind, registry in REGISTRIES.items():
        names = registry.names()
        code = "\n".join(
            [f"from bertkit.registry import REGISTRIES as r", *(  # noqa: F541
                f"r[{kind!r}].get({name!r})" for name in names)]
        )  # fmt: skip
        check = _imports(f"{kind}s: {', '.join(names) or 'none'}", code,
                         "update or uninstall the distribution that is named")  # fmt: skip
        ok = check.ok and bool(names)
        checks.append(check if names else Check(check.name, ok, "none", "pip install bertkit"))
    return checks


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _minor(name: str) -> str:
    return ".".join((_version(name) or "").split(".")[:2])
