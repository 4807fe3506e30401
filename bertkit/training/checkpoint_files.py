"""The folder of a run's checkpoints: locked by one process, written whole, verified when read."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bertkit.errors import ArtifactError

LOCK = "lock"
_STATE = "state.json"


@dataclass(frozen=True)
class Saved:
    """A checkpoint.

    Attributes:
        arrays: the numbers, by name.
        state: all else, as JSON holds it.
    """

    arrays: Mapping[str, np.ndarray]
    state: dict[str, Any]


class CheckpointFolder:
    """A folder of the newest two checkpoints.

    Each is one npz file, which appears by a rename once all of it is on the disk. Its name ends in
    its own SHA-256, so that one that is torn or damaged is never taken for sound.

    Args:
        path: made when it is locked.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._locked = False
        self._sound: set[Path] = set()  # those that this object has written or read

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out for a block; within another such block, do nothing.

        The lock is the system's, and ends with the process however that ends. On Windows there is
        none.

        Raises:
            ArtifactError: another process has it, or the folder cannot be made.
        """
        if self._locked:
            yield
            return
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context((self.path / LOCK).open("ab"))
                _lock(file)
                still = os.fstat(file.fileno()).st_ino == (self.path / LOCK).stat().st_ino
            except (BlockingIOError, FileNotFoundError):  # the latter: its owner has just finished
                still = False
            except OSError as error:
                raise ArtifactError(
                    f"{self.path} cannot be written ({error.strerror}). Choose another folder."
                ) from error
            if not still:
                raise ArtifactError(
                    f"Another process is training in {self.path.parent}. Wait until it ends, end "
                    "it, or give this run another name."
                )
            self._locked = True
            try:
                yield
            finally:
                self._locked = False

    def files(self) -> list[Path]:
        """Return the checkpoints, the newest first; whether they are sound is not known yet."""
        return sorted(self.path.glob("[0-9]*-*.npz"), reverse=True)

    def clear(self) -> None:
        """Remove all checkpoints."""
        for path in self.files():
            path.unlink()

    def newest(self, on_damage: Callable[[str], None]) -> Saved | None:
        """Return the newest sound checkpoint, or `None` where there are none at all.

        Args:
            on_damage: told, in a sentence, of each that is damaged and left out.

        Raises:
            ArtifactError: there are some, and all are damaged.
        """
        newest = next(self.sound(on_damage), None)
        if newest is None and self.files():
            raise ArtifactError(
                f"No checkpoint in {self.path} is sound, so there is nothing to go on from. Begin "
                "anew, with --overwrite or in another folder, and check the disk."
            )
        return newest

    def sound(self, on_damage: Callable[[str], None]) -> Iterator[Saved]:
        """Yield the checkpoints that are sound, the newest first; `on_damage` as in `newest`."""
        for path in self.files():
            saved = _read(path)
            if saved is not None:
                self._sound.add(path)
                yield saved
            else:
                on_damage(f"The checkpoint {path} is damaged: the one before it is taken, if any.")

    def write(self, saved: Saved, instead: bool = False) -> None:
        """Write a checkpoint; the newest sound one stays, and all others go.

        Args:
            saved: what is written.
            instead: whether it stands in for the newest one, so that one before that stays.

        Raises:
            ArtifactError: it cannot be written; the one before it is still there.
        """
        files = self.files()
        number = 1 + int(files[0].name.partition("-")[0]) if files else 1
        partial = self.path / "partial"
        try:
            kept = next(filter(self._is_sound, files[1:] + files[:1] if instead else files), None)
            for other in files:
                if other != kept:
                    other.unlink()
            with partial.open("wb") as file:
                digest = _write(file, saved)
                file.flush()
                os.fsync(file.fileno())
            path = partial.rename(self.path / f"{number:08d}-{digest}.npz")
            _sync(self.path)
            self._sound.add(path)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            size = sum(array.nbytes for array in saved.arrays.values()) / 1e6
            left = f" The one before it is kept in {self.path}." if self.files() else ""
            raise ArtifactError(
                f"A checkpoint cannot be written ({error.strerror}).{left} "
                + (f"Two of them take {2 * size:.1f} MB: make room" if full else "Mend that")
                + (" and go on with --resume." if left else ", or choose another output_dir.")
            ) from error
        finally:
            partial.unlink(missing_ok=True)

    def _is_sound(self, path: Path) -> bool:
        return path in self._sound or _read(path) is not None


def _write(file: BinaryIO, saved: Saved) -> str:
    """Write a checkpoint as npz; return the SHA-256 of what was written."""
    hashed = _Hashed(file)
    with zipfile.ZipFile(hashed, "w") as archive:
        archive.writestr(_STATE, json.dumps(saved.state))
        for name, array in saved.arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return hashed.digest.hexdigest()


def _read(path: Path) -> Saved | None:
    """Return a checkpoint, or `None` if it is damaged."""
    digest = hashlib.sha256()
    content = io.BytesIO(path.read_bytes())
    digest.update(content.getbuffer())
    if digest.hexdigest() != path.stem.partition("-")[2]:
        return None
    with zipfile.ZipFile(content) as archive:
        state = json.loads(archive.read(_STATE))
        arrays = {}
        for name in archive.namelist():
            if name != _STATE:
                with archive.open(name) as member:
                    array = np.lib.format.read_array(member, allow_pickle=False)
                arrays[name.removesuffix(".npy")] = array
    return Saved(arrays, state)


class _Hashed(io.RawIOBase):
    """A file that is hashed as it is written from begin to end."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._file.write(data)


def _lock(file: BinaryIO) -> None:
    """Lock a file for this process.

    Raises:
        BlockingIOError: another process has it.
    """
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sync(folder: Path) -> None:
    """Have a rename in a folder outlast a power cut; Windows cannot open a folder for that."""
    if sys.platform == "win32":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
