"""Token ids kept in a folder from run to run, and found again by what they were made of."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import json
import os
import secrets
import tempfile
import threading
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import tensorflow as tf

import bertkit
from bertkit.data.examples import FlatRows, tokenized
from bertkit.errors import ConfigError
from bertkit.preprocessor import Preprocessor
from bertkit.registry import preprocessors
from bertkit.tokenizer import Vocabulary

_FORMAT = 1
_COMPARED = 8  # rows of a chunk, at most, that are tokenized again when it is found


class TokenCache:
    """A folder with a file for each chunk of texts that a preprocessor has tokenized.

    The name of a file is a hash of the texts and of what tokenizes them, so that whatever changes
    leads to another file; several processes may share the folder. A file that is torn or altered
    is made anew. Of one that is sound a few rows are tokenized again, since the code of a
    preprocessor may change in a place that is not hashed: if they differ, nothing more is read.

    It is there for speed alone. What goes wrong with the folder or with what is in it is said
    once, as a warning.

    Args:
        folder: made with the first file.
        preprocessor: bound to its encoder.
        vocabulary: that of the encoder, if it has one.

    Raises:
        PluginError: the preprocessor is not registered.
    """

    def __init__(
        self, folder: str | Path, preprocessor: Preprocessor, vocabulary: Vocabulary | None
    ) -> None:
        self._folder = Path(folder)
        self._preprocessor = preprocessor
        self._identity = _identity(preprocessor, vocabulary)
        self._uses = {"read", "write"}  # until something is wrong with it
        self._lock = threading.Lock()

    def tokenize(self, texts: np.ndarray) -> FlatRows:
        """Return what `tokenized` does of a chunk, (n,) or (n, 2); threads may call it together."""
        shape = str(texts.shape).encode()
        key = _hash(
            self._identity, shape, *(text.encode(errors="surrogatepass") for text in texts.flat)
        )
        path = self._folder / f"{key.hex()}.tokens"
        found = _read(path, key) if "read" in self._uses else None
        if found is not None and self._holds(found, texts, key):
            return found
        made = tokenized(texts, self._preprocessor)
        if "write" in self._uses:
            try:
                _write(path, key, made)
            except OSError as error:
                self._end(
                    "write",
                    f"Token ids cannot be kept in {self._folder} ({error.strerror}), so the next "
                    "run makes them anew. Make room there, or name another folder as data.cache.",
                )
        return made

    def _holds(self, found: FlatRows, texts: np.ndarray, key: bytes) -> bool:
        """Return whether rows at even distances, from one that the key says, are so still."""
        step = -(-len(texts) // _COMPARED)
        rows = np.arange(len(texts)) % step == key[0] % step  # (n,)
        tokens = np.repeat(rows, found.lengths)  # (all tokens,)
        then = (found.token_ids[tokens], found.segment_ids[tokens], found.lengths[rows],
                found.full_lengths[rows])  # fmt: skip
        if all(map(np.array_equal, then, tokenized(texts[rows], self._preprocessor))):
            return True
        self._end(
            "read",
            f"{type(self._preprocessor).__name__} does not give the token ids that are kept in "
            f"{self._folder}, so its code has changed. From here on they are made anew, and "
            "replaced. Rows before may have the former ones: delete that folder, and run again.",
        )
        return False

    def _end(self, use: str, why: str) -> None:
        with self._lock:
            if use in self._uses:
                self._uses.remove(use)
                warnings.warn(why, stacklevel=3)


def check_folder(folder: str | Path) -> None:
    """Check that a folder is there or could be made, without making it.

    Raises:
        ConfigError: it could not be.
    """
    path = Path(folder).absolute()
    there = next(parent for parent in (path, *path.parents) if os.path.exists(parent))  # noqa: PTH110
    if not there.is_dir():
        why = f"{there} is a file"
    elif there != path and not os.access(there, os.W_OK):
        why = f"{there} cannot be written"
    else:
        return
    raise ConfigError(
        f"data.cache is {folder}, and that folder cannot be made: {why}. Name another one, or none."
    )


def _write(path: Path, key: bytes, rows: FlatRows) -> None:
    """Write a file that appears as a whole, and can be verified."""
    file = io.BytesIO()
    for array in rows:
        np.save(file, array, allow_pickle=False)
    content = file.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{secrets.token_hex(8)}")  # other processes write theirs
    try:
        partial.write_bytes(_hash(key, content) + content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _read(path: Path, key: bytes) -> FlatRows | None:
    """Return what was written under this key, if it is there and sound."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    size = hashlib.sha256().digest_size
    if _hash(key, content[size:]) != content[:size]:
        return None
    file = io.BytesIO(content[size:])
    return FlatRows(*(np.load(file, allow_pickle=False) for _ in FlatRows._fields))


def _identity(preprocessor: Preprocessor, vocabulary: Vocabulary | None) -> bytes:
    """Return a hash of all that token ids depend on but the texts, as far as it can be known."""
    name = preprocessors.name_of(type(preprocessor))
    plugin = next(info for info in preprocessors.infos() if info.name == name)
    versions = {"bertkit": bertkit.__version__, "tensorflow": tf.__version__}
    about = {"format": _FORMAT, "plugin": asdict(plugin), "versions": versions,
             "config": preprocessor.get_config()}  # fmt: skip
    parts = [json.dumps(about, sort_keys=True).encode()]
    for base in type(preprocessor).__mro__:
        with contextlib.suppress(TypeError, OSError):  # built in, or of a notebook
            parts.append(Path(inspect.getfile(base)).read_bytes())
    with tempfile.TemporaryDirectory() as temporary:
        inner, outer = Path(temporary, "preprocessor"), Path(temporary, "encoder")
        inner.mkdir()
        outer.mkdir()
        preprocessor.save_assets(str(inner))
        if vocabulary is not None:
            vocabulary.save(outer)
        for path in sorted(Path(temporary).rglob("*")):
            if path.is_file():
                parts += [path.relative_to(temporary).as_posix().encode(), path.read_bytes()]
    return _hash(*parts)


def _hash(*parts: bytes) -> bytes:
    """Return the SHA-256 of some byte strings, and of where each of them ends."""
    sizes = np.array([len(part) for part in parts], "<i8")
    return hashlib.sha256(sizes.tobytes() + b"".join(parts)).digest()
