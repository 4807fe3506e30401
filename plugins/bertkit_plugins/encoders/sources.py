"""Where a model's folder is: on disk, inside an installed package, or on the Hugging Face hub."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from bertkit.errors import EncoderError

PACKAGE = "package:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def find_folder(source: str, revision: str | None, files: Sequence[str]) -> Path:
    """Return the local folder of a model, downloading it if it is a hub id.

    Args:
        source: a folder, "package:NAME/path", or a hub id "organisation/name".
        revision: for a hub id only: the commit, 40 hexadecimal digits.
        files: patterns of the files to download of a hub id.

    Raises:
        EncoderError: there is no such folder, or the hub cannot be reached.
    """
    if source.startswith(PACKAGE):
        folder = _package_folder(source)
    elif source and Path(source).expanduser().is_dir():  # "" would be the current folder
        folder = Path(source).expanduser()
    elif source and Path(source).expanduser().exists():
        raise EncoderError(f"{source} is a file. Give the folder that holds the model's files.")
    elif _HUB_ID.fullmatch(source):
        return _download(source, revision, files)
    else:
        raise EncoderError(
            f"There is no folder {source!r} (relative to {Path.cwd()}), and it is no hub id of "
            f"the form organisation/name. Give a folder, {PACKAGE}NAME/path, or a hub id."
        )
    if revision is not None:
        raise EncoderError(
            f"revision is {revision!r}, but {source} is no hub id and has no revisions. Leave "
            "revision out."
        )
    return folder


def _package_folder(source: str) -> Path:
    name, _, rest = source.removeprefix(PACKAGE).partition("/")
    inside = PurePath(rest)
    if not name.isidentifier() or inside.anchor or ".." in inside.parts:
        raise EncoderError(
            f"{source!r} is not of the form {PACKAGE}NAME/path, with the name that the package is "
            "imported by (a_name, not a-name) and a path that stays inside of it."
        )
    try:
        spec = importlib.util.find_spec(name)  # finds a top-level package without importing it
    except ValueError:
        spec = None
    roots = [Path(root) for root in (spec and spec.submodule_search_locations) or []]
    if not roots:
        raise EncoderError(
            f"{source!r} asks for the Python package {name!r}, which is not installed here. "
            "Install the distribution that brings it into this environment."
        )
    for root in roots:
        if (root / inside).is_dir():
            return root / inside
    held = sorted(child.name for child in roots[0].iterdir() if child.is_dir())
    raise EncoderError(
        f"{source!r}: the package {name!r} ({roots[0]}) has no folder {rest!r}. "
        f"It holds: {', '.join(held) or 'no folder'}."
    )


def _download(source: str, revision: str | None, files: Sequence[str]) -> Path:
    if revision is None or not _COMMIT.fullmatch(revision):
        got = "no revision was given" if revision is None else f"the revision is {revision!r}"
        raise EncoderError(
            f"There is no folder {source!r} (relative to {Path.cwd()}). If it is meant as a hub "
            f"id, the download must be pinned to a commit, and {got}: set revision to the 40 "
            f"hexadecimal digits shown at https://huggingface.co/{source}/commits/main."
        )
    import huggingface_hub
    from huggingface_hub import constants

    try:
        folder = huggingface_hub.snapshot_download(
            source, revision=revision, allow_patterns=list(files)
        )
    except Exception as error:  # of its HTTP library as well as its own
        cause = str(error).strip().partition("\n")[0]
        raise EncoderError(
            f"{source!r} at revision {revision} could not be had from the Hugging Face hub "
            f"({type(error).__name__}: {cause}), and is not in the cache "
            f"{constants.HF_HUB_CACHE}. Check id, revision and network; or, on a "
            f"machine with a network, run `hf download {source} --revision {revision} "
            "--local-dir FOLDER`, copy FOLDER here and give its path as the source."
        ) from error
    return Path(folder)


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        EncoderError: it is missing, unreadable, or holds something else.
    """
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise EncoderError(
            f"{path} cannot be read ({error.strerror}). Give a folder that holds {path.name}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise EncoderError(
            f"{path} is not JSON ({error}). Take the file from the original model again."
        ) from error
    if not isinstance(value, dict):
        raise EncoderError(
            f"{path} holds a JSON {type(value).__name__}, not an object. Take the file from the "
            "original model again."
        )
    return value
