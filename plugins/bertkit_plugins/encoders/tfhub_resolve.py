"""Where a TF Hub model's folder is, whether it is whole, and how it is loaded."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import tarfile
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from bertkit.errors import EncoderError

_ADDRESS = re.compile(r"(https?|gs)://.+")
# What a pinned address ends in; storage buckets hold each version as an archive.
_VERSION = re.compile(r"/\d+(\.tar|\.tar\.gz|\.tgz)?/?$")
_ARCHIVES = (".tar", ".tar.gz", ".tgz")
_SHARDS = re.compile(r"variables\.data-\d{5}-of-(\d{5})")


def cache_folder() -> Path:
    """Return where tensorflow_hub keeps what it has downloaded."""
    chosen = os.environ.get("TFHUB_CACHE_DIR", "")
    return Path(chosen) if chosen else Path(tempfile.gettempdir(), "tfhub_modules")


def resolve(source: str) -> Path:
    """Return the local folder of a SavedModel, downloading or unpacking it first if need be.

    Args:
        source: an address with a version number, such as "https://tfhub.dev/…/3" or
            "https://www.kaggle.com/models/…/versions/3", which is looked for in tensorflow_hub's
            cache first; a local folder; or a local archive (.tar.gz, .tgz, .tar), which is
            unpacked into that cache.

    Returns:
        A folder in which every file of the SavedModel is present.

    Raises:
        EncoderError: there is no such model, no network, no version number, or files of it are
            missing or damaged.
    """
    if _ADDRESS.fullmatch(source):
        folder = _of_address(source)
    else:
        path = Path(source).expanduser()
        if source and path.is_dir():  # "" would be the current folder
            folder = path
        elif path.is_file():
            folder = _of_archive(path)
        else:
            raise EncoderError(
                f"There is no folder or archive {source!r} (relative to {Path.cwd()}). Give one, "
                "or an address with a version number, such as https://tfhub.dev/…/3."
            )
    _check_whole(folder)
    return folder


def load(folder: Path, values: bool = True) -> Any:
    """Load the SavedModel of a folder that `resolve` returned.

    Args:
        folder: with saved_model.pb in it.
        values: whether its variables get their values; if not, they are uninitialized.

    Raises:
        EncoderError: it cannot be loaded; a truncated file of variables shows here.
    """
    import tensorflow as tf
    import tensorflow_text  # noqa: F401 - registers the operations of preprocessing models

    # TF1's Hub format has no tags.
    tags: list[str] | None = [] if (folder / "tfhub_module.pb").exists() else None
    options = tf.saved_model.LoadOptions(experimental_skip_checkpoint=not values)
    try:
        return tf.saved_model.load(str(folder), tags=tags, options=options)
    except Exception as error:  # whatever a damaged or foreign graph leads TensorFlow to
        cause = " ".join(str(error).split())[:300]
        if _is_of_values(error):
            _damaged(folder, f"its files are cut short or altered ({cause})", error)
        raise EncoderError(
            f"The SavedModel in {folder} cannot be loaded ({type(error).__name__}: {cause}). "
            f"{_remedy(folder)} If it then fails again, it needs operations that this TensorFlow "
            "does not have."
        ) from error


def _is_of_values(error: Exception) -> bool:
    """Whether a file of variables could not be read, rather than the graph."""
    import tensorflow as tf

    if isinstance(error, IndexError):  # what becomes of OutOfRangeError on its way to Python
        return "Read less bytes" in str(error)
    # The reader of checkpoints raises the bare class for what it has no other for.
    known = isinstance(error, (tf.errors.DataLossError, tf.errors.OutOfRangeError))
    return known or type(error) is tf.errors.OpError


def _of_address(address: str) -> Path:
    if not _VERSION.search(address):
        raise EncoderError(
            f"{address!r} does not say which version, so it may be another model tomorrow. Add "
            f"the version's number: {address.rstrip('/')}/3, for instance."
        )
    folder = cache_folder() / hashlib.sha1(address.encode(), usedforsecurity=False).hexdigest()
    if folder.is_dir() and any(folder.iterdir()):
        return folder
    _refuse_abandoned(folder)
    try:
        import tensorflow_hub
    except ImportError as error:
        raise EncoderError(
            f"tensorflow_hub, which is to download {address}, cannot be imported ({error}). It "
            "needs pkg_resources and tf_keras: `pip install 'setuptools<82' tf_keras`. Or give a "
            "local folder, which is loaded without it."
        ) from error
    try:
        return Path(tensorflow_hub.resolve(address))
    except Exception as error:  # of the network, of the server, of the archive it sent
        cause = " ".join(str(error).split())[:300]
        raise EncoderError(
            f"{address} could not be downloaded ({type(error).__name__}: {cause}), and is not in "
            f"the cache {cache_folder()} (TFHUB_CACHE_DIR sets another). Check address and "
            f"network; or, where there is a network, download {address}?tf-hub-format=compressed "
            "and give the path of that .tar.gz as the source."
        ) from error


def _refuse_abandoned(folder: Path) -> None:
    """Refuse the lock of a download that was killed; tensorflow_hub would wait for ten minutes."""
    lock = folder.with_name(f"{folder.name}.lock")
    try:
        host, process, task = lock.read_text().rsplit(".", 2)
    except (OSError, ValueError):
        return
    if host != socket.gethostname() or _is_running(process):
        return
    raise EncoderError(
        f"A download into {folder} was interrupted (its process {process} has ended), and its "
        f"lock still stands. Delete {lock} and {folder}.{task}.tmp, then try again."
    )


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError):
        return True
    return True


def _of_archive(path: Path) -> Path:
    """Unpack an archive into the cache, under the SHA-256 of its content."""
    if not path.name.endswith(_ARCHIVES):
        raise EncoderError(
            f"{path} is a file, and no archive that is read ({', '.join(_ARCHIVES)}). Unpack it, "
            "and give the folder that holds saved_model.pb."
        )
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    folder = cache_folder() / digest.hexdigest()
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{folder.name[:16]}.", dir=folder.parent))
        try:
            _unpack(path, stage)
            _check_whole(_top(stage), path)
            _open_to_others(stage)
            stage.rename(folder)
        except OSError as error:
            if not folder.is_dir():  # else another process was faster
                raise EncoderError(
                    f"{path} cannot be unpacked into {folder} ({error.strerror}). Set "
                    "TFHUB_CACHE_DIR to a folder that can be written, or unpack it yourself."
                ) from error
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    return _top(folder)


def _top(folder: Path) -> Path:
    """Return the folder itself, or the only folder in it, which some archives have."""
    inner = list(folder.iterdir())
    return inner[0] if len(inner) == 1 and inner[0].is_dir() else folder


def _open_to_others(folder: Path) -> None:
    """Give folders the mode that the umask asks for; tempfile and tarfile make them private."""
    mask = os.umask(0)
    os.umask(mask)
    for place in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        place.chmod(0o777 & ~mask)


def _unpack(path: Path, folder: Path) -> None:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                # Links and devices have no place in a SavedModel; neither has a way out of it.
                outside = ".." in Path(member.name).parts or Path(member.name).is_absolute()
                if outside or not (member.isfile() or member.isdir()):
                    raise EncoderError(
                        f"{path} holds {member.name!r}, which is no plain file or folder inside "
                        "of it. It is no archive of TF Hub; do not trust it."
                    )
                member.mode = 0o755 if member.isdir() else 0o644
                archive.extract(member, folder, set_attrs=False)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        if isinstance(error, EncoderError):
            raise
        raise EncoderError(
            f"{path} cannot be unpacked ({type(error).__name__}: {error}). It is damaged, or only "
            "a part of it: copy or download it again."
        ) from error


def asset_path(folder: Path, name: str, source: Path | None = None) -> Path:
    """Return where an asset of a SavedModel is.

    Args:
        folder: of the SavedModel.
        name: as the graph calls the asset.
        source: to name in the error, if not the folder.

    Raises:
        EncoderError: the name leads out of the folder "assets", to any file of this machine.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise EncoderError(
            f"The SavedModel in {source or folder} calls {name!r} an asset, which is outside of "
            "its folder assets. Do not use this model."
        )
    return folder / "assets" / name


def _check_whole(folder: Path, archive: Path | None = None) -> None:
    """Refuse a SavedModel, if need be by its archive's name, of which a file is missing."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorflow.core.protobuf import saved_model_pb2

    source = archive or folder
    graph = folder / "saved_model.pb"
    if not graph.is_file():
        held = ", ".join(sorted(child.name for child in folder.iterdir())[:10]) or "nothing"
        _damaged(source, f"saved_model.pb is missing from it (it holds {held})")
    try:
        model = saved_model_pb2.SavedModel.FromString(graph.read_bytes())
        meta = model.meta_graphs[0]
    except (DecodeError, IndexError) as error:
        _damaged(source, "saved_model.pb is cut short or altered", error)
    for asset in [asset for meta in model.meta_graphs for asset in meta.asset_file_def]:
        if not asset_path(folder, asset.filename, source).is_file():
            _damaged(source, f"assets/{asset.filename} is missing from it")
    # TF1's format names its checkpoint; TF2's has one if the object graph holds a variable.
    nodes = meta.object_graph_def.nodes
    if meta.saver_def.ByteSize() or any(node.WhichOneof("kind") == "variable" for node in nodes):
        index = folder / "variables" / "variables.index"
        if not index.is_file():
            _damaged(source, "variables/variables.index is missing from it")
        shards = [_SHARDS.fullmatch(path.name) for path in index.parent.iterdir()]
        found = [int(shard[1]) for shard in shards if shard]
        if not found or len(found) < found[0]:
            of = f" of {found[0]}" if found else ""
            _damaged(source, f"it has {len(found)}{of} files variables/variables.data-*")


def _damaged(folder: Path, what: str, error: Exception | None = None) -> NoReturn:
    raise EncoderError(
        f"The SavedModel in {folder} is not whole: {what}. {_remedy(folder)}"
    ) from error


def _remedy(folder: Path) -> str:
    if folder.is_file():
        return "Copy or download the archive again."
    if cache_folder().resolve() in folder.resolve().parents:
        top = cache_folder() / folder.resolve().relative_to(cache_folder().resolve()).parts[0]
        # Archives are under their SHA-256: the same one would be as damaged again.
        again = "so that it is fetched" if len(top.name) != 64 else "and download the archive"
        return f"It is in tensorflow_hub's cache: delete {top}, {again} again."
    return "Copy or download the folder again."
