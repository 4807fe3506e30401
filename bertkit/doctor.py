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
    """Return all checks."""
    return [
        _python(),
        _same("TensorFlow Text", "tensorflow-text", "tensorflow"),
        _same("KerasHub", "keras-nlp", "keras-hub"),
        _setuptools(),
        _backend(),
        *_loaded(
            [
                _Import("TensorFlow and Keras", "import keras; import bertkit.encoder",
                        "pip install --force-reinstall tensorflow keras"),
                _Import("TensorFlow Text's ABI", "import tensorflow_text",
                        "pip install --force-reinstall "
                        f"'tensorflow-text=={_minor('tensorflow')}.*'"),
                _Import("TensorFlow Hub", "import tensorflow_hub",
                        "pip install 'setuptools<82' tensorflow-hub"),
                *(
                    _Import(f"{kind} {info.name} of {info.distribution}",
                            f"from bertkit.registry import REGISTRIES as r; "
                            f"r[{kind!r}].get({info.name!r})",
                            f"update or uninstall {info.distribution}")
                    for kind, registry in REGISTRIES.items()
                    for info in registry.infos()
                ),
            ]
        ),
        *_missing_plugins(),
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


@dataclass(frozen=True)
class _Import:
    """Code that must run, and what mends it if it does not."""

    title: str
    code: str
    fix: str


# Runs each of its arguments, and prints a line for each: empty if it ran, else the error.
_RUNNER = """
import sys
for code in sys.argv[1:]:
    try:
        exec(code)
        error = ""
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"
    sys.__stdout__.write("bertkit:" + " ".join(error.split()) + chr(10))
    sys.__stdout__.flush()
"""


def _loaded(imports: list[_Import]) -> list[Check]:
    """Run imports in a process of its own, so that a crash is a finding too."""
    process = subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-c", _RUNNER, *(entry.code for entry in imports)],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        check=False,
    )
    lines = process.stdout.splitlines()
    errors = [line.removeprefix("bertkit:") for line in lines if line.startswith("bertkit:")]
    if len(errors) < len(imports):  # the process died in the next one
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        errors.append(f"the process ended with code {process.returncode}: {last}")
    return [
        Check(entry.title, not error, error or "loads", entry.fix if error else "")
        for entry, error in zip(imports, errors, strict=False)
    ]


def _backend() -> Check:
    found = os.environ.get("KERAS_BACKEND")
    ok = found in (None, "tensorflow")
    shown = "not set" if found is None else found
    return Check("KERAS_BACKEND", ok, shown, "" if ok else "export KERAS_BACKEND=tensorflow")


def _missing_plugins() -> list[Check]:
    """Return a finding for each kind of plugin of which there is none."""
    return [
        Check(f"{kind}s", False, "none", "pip install --force-reinstall bertkit")
        for kind, registry in REGISTRIES.items()
        if not registry.names()
    ]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _minor(name: str) -> str:
    return ".".join((_version(name) or "").split(".")[:2])
