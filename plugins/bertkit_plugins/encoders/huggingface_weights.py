"""The weights of a Hugging Face folder: safetensors, in one file or in several."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any

from numpy.typing import NDArray

from bertkit.errors import EncoderError
from bertkit_plugins.encoders.sources import read_json

_FLOATS = ("F16", "BF16", "F32", "F64")
_INDEX = "model.safetensors.index.json"

Read = Callable[[], NDArray[Any]]


@contextlib.contextmanager
def open_weights(folder: Path) -> Iterator[tuple[Path, dict[str, Read]]]:
    """Open model.safetensors, or all files that model.safetensors.index.json names.

    Yields:
        The path of either, for messages, and a function for each name that reads its array.

    Raises:
        EncoderError: there is no such file, or one of them is missing or damaged.
    """
    path, shards = _find(folder)
    reads: dict[str, Read] = {}
    with contextlib.ExitStack() as stack:
        for shard, promised in shards.items():
            with _damage(shard):
                file = stack.enter_context(_open(shard))
            names = set(file.keys())
            if promised - names:
                raise EncoderError(
                    f"{shard} lacks {min(promised - names)!r}, which {path.name} says it holds. "
                    "Take all files from the same model."
                )
            if names & reads.keys():
                raise EncoderError(
                    f"{shard} holds {min(names & reads.keys())!r}, and so does another file that "
                    f"{path.name} names. Take all files from the same model."
                )
            reads.update({name: _reader(file, name, shard) for name in names})
        yield path, reads


def _find(folder: Path) -> tuple[Path, dict[Path, set[str]]]:
    """Return what to name in messages, and the files with the names that they must hold."""
    path, index = folder / "model.safetensors", folder / _INDEX
    if path.is_file():
        return path, {path: set()}
    if index.is_file():
        return index, _shards(index)
    if any(folder.glob("pytorch_model*.bin")):
        raise EncoderError(
            f"{folder} holds its weights as pytorch_model.bin only, a pickle, which can run code "
            "when it is read. Convert it where transformers is installed: "
            "AutoModel.from_pretrained(FOLDER).save_pretrained(NEW)."
        )
    held = sorted(child.name for child in folder.iterdir() if child.is_file())
    raise EncoderError(
        f"{folder} has no model.safetensors. It holds: {', '.join(held[:10]) or 'no file'}. "
        "Copy the file from the original model."
    )


def _shards(index: Path) -> dict[Path, set[str]]:
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise EncoderError(
            f"{index} has no weight_map, which says in which file each weight is. Take the file "
            "from the original model again."
        )
    shards: dict[Path, set[str]] = {}
    for name, file in files.items():
        if not isinstance(file, str) or PurePath(file).name != file:
            raise EncoderError(
                f"{index} says that {name!r} is in {file!r}, which is no name of a file in its "
                "folder. Take the file from the original model again."
            )
        shards.setdefault(index.parent / file, set()).add(name)
    return dict(sorted(shards.items()))


def _open(path: Path) -> Any:
    import safetensors

    return safetensors.safe_open(str(path), framework="numpy")


def _reader(file: Any, name: str, path: Path) -> Read:
    def read() -> NDArray[Any]:
        with _damage(path):
            dtype = file.get_slice(name).get_dtype()
            if dtype in _FLOATS:
                return file.get_tensor(name)
        raise EncoderError(
            f"{name!r} of {path} holds {dtype}, not one of {', '.join(_FLOATS)}: a quantized "
            "model cannot be fine-tuned. Take the original one."
        )

    return read


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Say of a file that cannot be read that it is damaged."""
    import safetensors

    try:
        yield
    except (safetensors.SafetensorError, OSError) as error:
        raise EncoderError(
            f"{path} cannot be read ({error}). It is damaged, or only a part of it, or was not "
            "copied: copy or download it again."
        ) from error
