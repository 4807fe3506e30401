"""Token ids kept from run to run: the same as without, from files that can be trusted."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import resource
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import bertkit
from bertkit import experiment, finished
from bertkit.config import load_config
from bertkit.data.cache import TokenCache, _hash, _read, _write, check_folder
from bertkit.data.examples import Examples, FlatRows
from bertkit.errors import ConfigError
from bertkit.preprocessor import Encoded, Preprocessor, pack
from bertkit.registry import preprocessors
from tests.command_line import snapshot, tiny_config, write_tiny_data, write_yaml
from tests.tiny import VOCABULARY
from tests.tiny_models import TEXTS, tiny_encoder

CHUNK = 20  # rows of a chunk here


class Counting(Preprocessor):
    """One text a row, whose rows are counted, and whose code changes with `left_out`."""

    left_out = ""

    def __init__(self, sequence_length: int = 16) -> None:
        super().__init__(sequence_length)
        self.counts: list[int] = []

    def encode(self, texts: tf.Tensor) -> Encoded:
        kept = tf.strings.regex_replace(texts, self.left_out, "")
        room = tf.constant(self.sequence_length - 2)
        return pack([self.tokenizer(kept)], [room], self.vocabulary)

    def encode_array(self, texts: np.ndarray) -> Encoded:
        self.counts.append(len(texts))
        return super().encode_array(texts)


@pytest.fixture(autouse=True, scope="module")
def plugins() -> Iterator[None]:
    preprocessors.register("counting")(Counting)
    yield
    preprocessors._decorated.pop("counting")


def made(
    name: str = "counting", sequence_length: int = 16, vocabulary: bertkit.Vocabulary | None = None
) -> Any:
    """Return a preprocessor as a new run has it."""
    preprocessor = preprocessors.create(name, sequence_length=sequence_length)
    encoder = tiny_encoder()
    encoder.vocabulary = vocabulary or encoder.vocabulary
    preprocessor.bind(encoder)
    return preprocessor


def array_of(texts: list[Any]) -> np.ndarray:
    array = np.empty(np.shape(texts), dtype=object)
    array[...] = np.array(texts, dtype=object)
    return array


def tokenized(texts: list[Any], preprocessor: Preprocessor, folder: Path | None) -> Examples:
    """Return the rows of a run, from chunks of `CHUNK`, with a cache if there is a folder."""
    array = array_of(texts)
    chunks = (array[start : start + CHUNK] for start in range(0, len(array), CHUNK))
    cache = folder and TokenCache(folder, preprocessor, preprocessor.vocabulary)
    return Examples.from_chunks(chunks, preprocessor, cache or None)


def assert_equal(one: Examples, other: Examples) -> None:
    for name in ("token_ids", "segment_ids", "starts", "lengths", "full_lengths", "padding_id"):
        ours, theirs = np.asarray(getattr(one, name)), np.asarray(getattr(other, name))
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs, err_msg=name)


def many(count: int) -> list[str]:
    """Return texts that all differ."""
    words = itertools.product(["good", "bad", "film", "plot"], repeat=5)
    return [" ".join(row) for row in itertools.islice(words, count)]


@contextlib.contextmanager
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def texts_of(caught: pytest.WarningsRecorder) -> list[str]:
    """Return what was said to the user, without what Python says of files it closes itself."""
    return [str(each.message) for each in caught if each.category is UserWarning]


SOME_TEXTS = st.text(max_size=12) | st.sampled_from([*TEXTS, "", "É ü", "中文 字", "[SEP]", "\0"])


@pytest.mark.parametrize("name", ["single_text", "sentence_pair"])
def test_the_same_rows_as_without(name: str) -> None:
    preprocessor = made(name)
    row = SOME_TEXTS if name == "single_text" else st.tuples(SOME_TEXTS, SOME_TEXTS)

    @given(st.lists(row, min_size=1, max_size=2 * CHUNK + 5))
    @settings(deadline=None, max_examples=25)
    def check(texts: list[Any]) -> None:
        plain = tokenized(texts, preprocessor, None)
        with tempfile.TemporaryDirectory() as folder, no_warning():
            for _ in ("cold", "warm"):
                assert_equal(tokenized(texts, preprocessor, Path(folder)), plain)

    check()


def test_a_second_run_tokenizes_a_few_rows_of_each_chunk(tmp_path: Path) -> None:
    texts = many(3 * CHUNK + 5)
    first, second = made(), made()
    cold = tokenized(texts, first, tmp_path / "new" / "cache")
    assert sum(first.counts) == len(texts)
    files = snapshot(tmp_path / "new" / "cache")
    assert len(files) == 4 and all(name.endswith(".tokens") for name in files)
    with no_warning():
        assert_equal(tokenized(texts, second, tmp_path / "new" / "cache"), cold)
    assert len(second.counts) == 4 and all(1 <= count <= 8 for count in second.counts)
    assert snapshot(tmp_path / "new" / "cache") == files
    # What is not known is tokenized, and the chunks that are known are not.
    third = made()
    tokenized([*texts[: 2 * CHUNK], "new", *texts[2 * CHUNK :]], third, tmp_path / "new" / "cache")
    assert sum(third.counts) < len(texts) - 2 * CHUNK + 1 + 2 * 8


@given(*[st.lists(st.sampled_from([b"", b"a", b"\0" * 8, b"\1" + b"\0" * 7]), max_size=4)] * 2)
def test_no_two_lists_have_one_hash(one: list[bytes], other: list[bytes]) -> None:
    assert (_hash(*one) == _hash(*other)) == (one == other)


def test_texts_that_are_cut_elsewhere_are_others(tmp_path: Path) -> None:
    for name, rows in (
        ("counting", [["good", "film"], ["goodfilm", ""], ["", "goodfilm"], ["g", "oodfilm"]]),
        ("sentence_pair", [[("good", "film")], [("goodfilm", "")], [("", "goodfilm")]]),
    ):
        preprocessor = made(name)
        for texts in rows:
            plain = tokenized(texts, preprocessor, None)
            for _ in ("cold", "warm"):
                assert_equal(tokenized(texts, preprocessor, tmp_path), plain)
    assert len(snapshot(tmp_path)) == 7


@pytest.mark.parametrize("damage", ["torn", "empty", "flipped", "longer", "another's", "a folder"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, damage: str) -> None:
    texts = many(2 * CHUNK)
    cold = tokenized(texts, preprocessor := made(), tmp_path)
    sound = snapshot(tmp_path)
    path, other = sorted(tmp_path.iterdir())
    content = path.read_bytes()
    size = len(content)
    for place in range(0, size, max(1, size // 25)) if damage in ("torn", "flipped") else [0]:
        flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        path.unlink()
        if damage == "a folder":
            path.mkdir()
        else:
            path.write_bytes({"torn": content[:place], "empty": b"", "flipped": flipped,
                              "longer": content + b"\0", "another's": other.read_bytes()
                              }[damage])  # fmt: skip
        preprocessor.counts.clear()
        with pytest.warns(UserWarning) if damage == "a folder" else no_warning():
            assert_equal(tokenized(texts, preprocessor, tmp_path), cold)
        assert CHUNK < sum(preprocessor.counts) <= CHUNK + 8
        if damage == "a folder":  # it stays: nothing of the user's is removed
            path.rmdir()
            path.write_bytes(content)
        assert snapshot(tmp_path) == sound


def vocabulary_of(*tokens: str, **options: Any) -> bertkit.Vocabulary:
    return bertkit.Vocabulary(tokens or VOCABULARY, **options)


SWAPPED = [{"good": "bad", "bad": "good"}.get(token, token) for token in VOCABULARY]


@pytest.mark.parametrize(
    "change",
    [{"sequence_length": 5}, {"vocabulary": vocabulary_of(*SWAPPED)}, {"name": "single_text"},
     {"vocabulary": vocabulary_of(lowercase=False)}],
)  # fmt: skip
def test_another_preprocessor_has_other_files(tmp_path: Path, change: dict[str, Any]) -> None:
    texts = [*many(CHUNK - 1), "A GOOD film"]
    with no_warning():
        tokenized(texts, made(), tmp_path)
        for files in (2, 2):
            other = tokenized(texts, made(**change), tmp_path)
            assert_equal(other, tokenized(texts, made(**change), None))
            assert len(snapshot(tmp_path)) == files


def identity(preprocessor: Any) -> bytes:
    return TokenCache(".", preprocessor, preprocessor.vocabulary)._identity


def test_versions_assets_and_source_code_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = identity(made())
    assert identity(made()) == before
    for module, name in ((bertkit, "__version__"), (tf, "__version__")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, "99.0")
            assert identity(made()) != before

    class WithAssets(Counting):
        asset = "one"

        def save_assets(self, folder: str) -> None:
            Path(folder, "asset.txt").write_text(self.asset)

    preprocessors.register("with_assets")(WithAssets)
    before = identity(made("with_assets"))
    monkeypatch.setattr(WithAssets, "asset", "two")
    assert identity(made("with_assets")) != before
    preprocessors._decorated.pop("with_assets")

    source = "from bertkit import Preprocessor\nclass Written(Preprocessor):\n    {}\n"
    file = tmp_path / "written.py"
    found = []
    for body in ("'One.'", "'One.'", "'Two.'"):
        file.write_text(source.format(body))
        spec = importlib.util.spec_from_file_location("written", file)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "written", module)
        exec(compile(file.read_text(), file, "exec"), module.__dict__)
        preprocessors.register("written")(module.Written)
        found.append(identity(made("written")))
    preprocessors._decorated.pop("written")
    assert found[0] == found[1] != found[2]


def test_code_that_changed_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first chunk has nothing that changes, the others have, in each row."""
    texts = ["the plot"] * CHUNK + [f"{text} boring" for text in many(3 * CHUNK)]
    tokenized(texts, made(), tmp_path)
    before = snapshot(tmp_path)
    monkeypatch.setattr(Counting, "left_out", "boring")
    plain = tokenized(texts, changed := made(), None)
    with pytest.warns(UserWarning) as caught:
        assert_equal(tokenized(texts, changed, tmp_path), plain)
    assert texts_of(caught) == [
        f"Counting does not give the token ids that are kept in {tmp_path}, so its code has "
        "changed. From here on they are made anew, and replaced. Rows before may have the former "
        "ones: delete that folder, and run again."
    ]
    after = snapshot(tmp_path)
    assert after.keys() == before.keys()
    assert sum(after[name] != before[name] for name in after) == 3
    with no_warning():
        changed.counts.clear()
        assert_equal(tokenized(texts, changed, tmp_path), plain)
    assert max(changed.counts) <= 8


def test_a_change_that_few_rows_show_is_not_read_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = many(4 * CHUNK)
    texts[CHUNK : 2 * CHUNK] = [f"{text} boring" for text in texts[CHUNK : 2 * CHUNK]]
    preprocessor = made()
    tokenized(texts, preprocessor, tmp_path)
    monkeypatch.setattr(Counting, "left_out", "boring")
    cache = TokenCache(tmp_path, changed := made(), changed.vocabulary)
    array = array_of(texts)
    with pytest.warns(UserWarning, match="its code has changed"):
        for start in range(0, len(texts), CHUNK):  # one at a time, so that there is an order
            cache.tokenize(array[start : start + CHUNK])
    assert changed.counts[0] <= 8 and changed.counts[2:] == [CHUNK] * 3


def assert_goes_on(folder: Path, strerror: str, texts: list[str]) -> None:
    plain = tokenized(texts, preprocessor := made(), None)
    with pytest.warns(UserWarning) as caught:
        assert_equal(tokenized(texts, preprocessor, folder), plain)
    assert texts_of(caught) == [
        f"Token ids cannot be kept in {folder} ({strerror}), so the next run makes them anew. Make "
        "room there, or name another folder as data.cache."
    ]


def test_a_folder_that_cannot_be_made_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_goes_on(tmp_path / "file" / "cache", "Not a directory", many(5 * CHUNK))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX permissions")
def test_a_folder_that_cannot_be_written_is_read(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:  # which anyone may enter
        folder = Path(temporary)
        tokenized(many(CHUNK), made(), folder)
        user = os.geteuid()
        folder.chmod(0o555)
        for file in folder.iterdir():
            file.chmod(0o444)
        if user == 0:
            os.seteuid(65534)  # nobody
        try:
            assert_goes_on(folder, "Permission denied", many(5 * CHUNK))
            with no_warning():  # what is there is read
                tokenized(many(CHUNK), known := made(), folder)
        finally:
            os.seteuid(user)
            folder.chmod(0o755)
        assert sum(known.counts) <= 8 and len(snapshot(folder)) == 1


def test_a_full_disk(tmp_path: Path) -> None:
    """No file may grow beyond what the rows themselves need."""
    texts = many(2 * CHUNK)
    size = tokenized(texts, made(), None).token_ids.nbytes
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        assert_goes_on(tmp_path, "File too large", texts)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert snapshot(tmp_path) == {}  # nothing half written stays


def test_one_file_written_by_many_at_once(tmp_path: Path) -> None:
    rows, path = FlatRows(*(np.arange(50_000) for _ in range(4))), tmp_path / "a.tokens"

    def write_and_read(_: int) -> FlatRows | None:
        _write(path, b"key", rows)
        return _read(path, b"key")

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(write_and_read, range(100)):
            assert found and all(map(np.array_equal, found, rows))
    assert list(tmp_path.iterdir()) == [path]


PROCESS = """
import sys
from pathlib import Path
from tests.core.test_cache import Counting, made, many, no_warning, preprocessors, tokenized
preprocessors.register("counting")(Counting)
preprocessor = made()
tokenized(["good"], preprocessor, None)
print("ready", flush=True)
input()
with no_warning():
    for repeat in range(5):
        for file in list(Path(sys.argv[1]).glob("*.tokens"))[::2]:
            file.unlink(missing_ok=True)
        tokenized(many(900), preprocessor, Path(sys.argv[1]))
"""


def test_two_processes_at_once(tmp_path: Path) -> None:
    """They write the same files at the same time, and each removes some under the other."""
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    root = Path(__file__).parents[2]
    both = [
        subprocess.Popen(command, cwd=root, env=environment, text=True, **pipes) for _ in range(2)
    ]
    assert [process.stdout.readline() for process in both if process.stdout] == ["ready\n"] * 2
    for process in both:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    for process in both:
        errors = process.communicate()[1]
        assert process.returncode == 0, errors
    assert all(name.endswith(".tokens") for name in snapshot(tmp_path))
    preprocessor = made()
    plain = tokenized(many(900), preprocessor, None)
    assert_equal(tokenized(many(900), preprocessor, tmp_path), plain)
    assert len(snapshot(tmp_path)) == 900 // CHUNK


def test_a_run_and_its_evaluation_share_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_tiny_data(tmp_path))
    write_yaml(tmp_path / "run.yaml", tiny_config(data__cache="tokens", data__validation=0.3))
    plain = experiment.run(load_config(["run.yaml"], ["name=plain", "data.cache=null"]), verbose=0)
    assert not Path("tokens").exists()
    with no_warning():
        for name in ("cold", "warm"):
            run = experiment.run(load_config(["run.yaml"], [f"name={name}"]), verbose=0)
            files = snapshot(Path("tokens"))
            assert len(files) == 1  # training and test rows are the same
            assert run.metrics == plain.metrics
    assert finished.evaluate_run("runs/warm") == plain.metrics
    assert snapshot(Path("tokens")) == files


def test_a_folder_that_cannot_be_made_is_said_before_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_tiny_data(tmp_path))
    (tmp_path / "file").write_text("")
    write_yaml(tmp_path / "run.yaml", tiny_config())
    for folder in ("file", "file/in/it"):
        config = load_config(["run.yaml"], [f"data.cache={folder}"])
        with pytest.raises(ConfigError) as caught:
            experiment.check_inputs(config, overwrite=False)
        assert str(caught.value) == (
            f"data.cache is {folder}, and that folder cannot be made: {tmp_path}/file is a file. "
            "Name another one, or none."
        )
    before = snapshot(tmp_path)
    for there in (".", "new", "new/new", tmp_path / "new"):
        check_folder(there)
    assert snapshot(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX permissions")
def test_a_folder_below_one_that_cannot_be_written() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folder.chmod(0o555)
        user = os.getuid()
        if user == 0:
            os.setreuid(65534, 0)  # os.access asks for the real user
        try:
            with pytest.raises(ConfigError, match=rf"cannot be made: {folder} cannot be written\."):
                check_folder(folder / "cache")
            check_folder(folder)  # it may be read
        finally:
            os.setreuid(user, user)
            folder.chmod(0o755)
