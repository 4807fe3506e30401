"""The folder of a trained model: written whole or not at all, verified when it is loaded."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import keras

import bertkit
from bertkit.classifier import BertClassifier
from bertkit.errors import ArtifactError, InputError, PluginError, shown
from bertkit.registry import REGISTRIES
from bertkit.sections import Precision

FORMAT = 1
MODEL = "model.keras"
MANIFEST = "manifest.json"
CONFIG = "config.yaml"


def save(model: BertClassifier, folder: str | Path, config: str | None = None) -> None:
    """Write a model's artifact into a new folder.

    It holds the model as Keras saves it (weights, optimizer, vocabulary, labels), a manifest
    with versions, plugins and hashes, and the config. Nothing in it is code.

    Args:
        model: a model whose labels are known.
        folder: must not exist yet.
        config: the YAML the model was trained from.

    Raises:
        ArtifactError: the folder exists, or cannot be written.
        OSError: the disk is full; for a moment the model takes twice its size.
    """
    with staged(folder) as stage:
        _write_model(model, stage / MODEL)
        parts = {
            kind: registry.name_of(type(getattr(model, kind)))
            for kind, registry in REGISTRIES.items()
            if getattr(model, kind) is not None
        }
        manifest = {
            "format": FORMAT,
            "versions": {
                name: version
                for name in ("bertkit", "keras", "tensorflow", "tensorflow-text")
                if (version := _version(name))
            },
            "plugins": {
                kind: {"name": name, "distribution": _distribution(kind, name)}
                for kind, name in parts.items()
            },
            "sha256": {MODEL: _sha256(stage / MODEL)},
        }
        if config is not None:
            (stage / CONFIG).write_text(config, encoding="utf-8")
        (stage / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _write_model(model: BertClassifier, path: Path) -> None:
    """Write a `.keras` file, by way of the disk: in memory Keras would take its size once more.

    Raises:
        OSError: it cannot be written, most likely for lack of space, which must be twice its size.
    """
    parts = path.with_suffix(".parts")
    try:
        _check_space(model, path)
        model.save(parts, zipped=False)
        with zipfile.ZipFile(path, "w") as file:
            for part in sorted(part for part in parts.rglob("*") if part.is_file()):
                file.write(part, part.relative_to(parts))
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    shutil.rmtree(parts)


def _check_space(model: BertClassifier, path: Path) -> None:
    """Take the space of a model's weights, and give it back: HDF5 crashes on a disk that is full.

    Raises:
        OSError: there is too little.
    """
    variables = [*model.variables, *(model.optimizer.variables if model.compiled else ())]
    if hasattr(os, "posix_fallocate"):
        size = sum(math.prod(one.shape) * 4 + 4096 for one in variables)  # with HDF5's own share
        with path.open("wb") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise  # those are of file systems that cannot tell
        path.unlink()


def load(
    path: str | Path, precision: Precision | None = None, compile: bool = True
) -> BertClassifier:
    """Load a trained model from a run folder or an artifact.

    Args:
        path: a run folder, or the `model` folder in it.
        precision: the Keras dtype policy to compute with, if not that of the training; the
            weights are float32 in each. An encoder that is a SavedModel's graph keeps its own.
        compile: whether the optimizer is loaded, so that training can go on; without it, loading
            takes about half the time and a third of the memory.

    Raises:
        ArtifactError: there is none, it is damaged, or it needs what is not installed.
        InputError: `precision` is none of the three.
    """
    if precision is not None and precision not in get_args(Precision):
        raise InputError(
            f"precision is {shown(precision)}. Give one of {', '.join(get_args(Precision))}."
        )
    folder = find(path)
    manifest = read_manifest(folder)
    expected = manifest["sha256"][MODEL]
    found = _sha256(folder / MODEL)
    if found != expected:
        raise ArtifactError(
            f"{folder / MODEL} is damaged: its SHA-256 is {found[:12]}…, the manifest says "
            f"{expected[:12]}…. Copy the folder again, or train anew."
        )
    _check_plugins(folder, manifest["plugins"])
    try:
        model = keras.models.load_model(folder / MODEL, compile=compile, safe_mode=True)
    except (ValueError, TypeError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise ArtifactError(
            f"{folder / MODEL} cannot be loaded here ({str(error).splitlines()[0]}). "
            f"{_advice(manifest['versions'])}"
        ) from error
    if not isinstance(model, BertClassifier):
        raise ArtifactError(f"{folder / MODEL} holds a {type(model).__name__}, no BertClassifier.")
    if precision is not None:
        for layer in model._flatten_layers():
            layer.dtype_policy = precision
        if model.compiled:  # anew, so that Keras scales the loss of float16
            model.compile(**{**model._compile_config.config, "optimizer": model.optimizer})
    return model


def find(path: str | Path) -> Path:
    """Return the artifact's folder, given it or its run folder.

    Raises:
        ArtifactError: there is none.
    """
    path = Path(path)
    for folder in (path, path / "model"):
        if (folder / MANIFEST).is_file() and (folder / MODEL).is_file():
            return folder
    if path.is_dir():
        there = sorted(entry.name for entry in path.iterdir())
        about = f"holds {', '.join(there[:8]) or 'nothing'}"
    else:
        about = "is a file" if path.exists() else "does not exist"
    raise ArtifactError(
        f"{path} is no run folder: it {about}. Give a folder that `bertkit train` has finished, "
        f"with model/{MODEL} and model/{MANIFEST} in it."
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of an artifact.

    Raises:
        ArtifactError: it is damaged, or of a later format.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        later = manifest["format"] > FORMAT
        if not later:
            str(manifest["sha256"][MODEL]), dict(manifest["versions"])
            for kind, plugin in dict(manifest["plugins"]).items():
                REGISTRIES[kind], hash(plugin["name"]), str(plugin["distribution"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{folder / MANIFEST} is damaged ({type(error).__name__}: {error}). Copy the folder "
            "again, or train anew."
        ) from error
    if later:
        raise ArtifactError(
            f"{folder} was written in format {manifest['format']} by a later bertkit; this is "
            f"bertkit {bertkit.__version__}, which reads up to format {FORMAT}. Update bertkit."
        )
    return dict(manifest)


@contextlib.contextmanager
def staged(folder: str | Path, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes `folder` when the block ends without an error.

    Args:
        folder: where it is to stand.
        replace: whether a folder there is replaced; it stays as it is until then.

    Raises:
        ArtifactError: `folder` exists and is not to be replaced, or cannot be written.
    """
    folder = Path(folder).resolve()  # of a link, the folder behind it
    if folder.exists() and not replace:
        raise ArtifactError(f"{folder} exists already. Choose another folder, or remove it.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise ArtifactError(
            f"{folder} cannot be written ({error.strerror}). Choose another folder."
        ) from error
    try:
        yield stage
        stage.chmod(0o777 & ~_umask())
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    try:
        put_in_place(stage, folder, replace)
    except OSError as error:  # what is finished is not thrown away
        raise ArtifactError(
            f"{folder} cannot be put in place ({error.strerror}): something took that name "
            f"meanwhile. What was finished is kept in {stage}; rename it."
        ) from error


def put_in_place(stage: Path, folder: Path, replace: bool) -> None:
    """Give a finished folder its name; an old folder stands aside first, and goes last.

    Raises:
        OSError: something has that name, and is not to be replaced.
    """
    old = stage.with_name(f"{stage.name}.old")
    if replace and folder.exists():
        shutil.rmtree(old, ignore_errors=True)  # of a process that was killed below
        folder.rename(old)
    try:
        stage.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _check_plugins(folder: Path, plugins: dict[str, Any]) -> None:
    for kind, plugin in plugins.items():
        try:
            REGISTRIES[kind].get(plugin["name"])
        except PluginError as error:
            raise ArtifactError(
                f"{folder} needs the {kind} {plugin['name']!r} of {plugin['distribution']}. "
                f"Install that, or import the module that registers it first. {error}"
            ) from error


def _distribution(kind: str, name: str) -> str:
    return next(info.distribution for info in REGISTRIES[kind].infos() if info.name == name)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _advice(saved_with: dict[str, str]) -> str:
    others = {name: version for name, version in saved_with.items() if _version(name) != version}
    if others:
        return f"It was saved with {_listed(others)}: install these."
    return "Import the module that defines what is missing, then load again."


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
