"""scripts/: what is derived is right, and what is brought is what was pinned."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import derive_data  # noqa: E402
import fetch_demo  # noqa: E402

REAL_ARCHIVE = ROOT / ".cache" / "downloads" / "vaderSentiment-3.3.2.tar.gz"
WORDS = ["plot", "dull", "acting", "saved", "long", "evening", "noise", "light", "of", "but"]


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def made_up_tables() -> dict[str, bytes]:
    """The eight tables, with a byte-order mark, CRLF, repeated texts and contradicting means."""
    random = np.random.default_rng(0)
    tables = {}
    for name in derive_data.SOURCES.values():
        texts, ratings, text = [], [], ""
        for number in range(1600):
            alone = name in ("tweets", "movieReviewSnippets")
            identity = str(number) if alone else f"{number % 80}_{number}"
            values = np.clip(np.round(random.normal(random.normal(0, 2), 1.1, 20)), -4, 4)
            if number % 5 == 4:
                text = f"{text.upper()}!"  # the one before, under another document
            else:
                text = f' "{name}"  naïve, {" ".join(random.choice(WORDS, 5))} {number} '
            mean = values.mean() + (number % 97 == 5)
            texts.append(f"{identity}\t{mean}\t{text}")
            rated = [int(value) for value in values]
            ratings.append(f"{identity}\t{values.mean():.4f}\t{values.std():.5f}\t{rated}")
        tables[f"{name}_GroundTruth.txt"] = "\r\n".join(texts).encode()
        tables[f"{name}_anonDataRatings.txt"] = "\r\n".join(ratings).encode("utf-8-sig")
    return tables


def write_archive(path: Path, tables: dict[str, bytes], setup: str = "") -> Path:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        for name, content in tables.items():
            add(archive, f"hutto_ICWSM_2014/{name}", content)
    with tarfile.open(path, "w:gz") as archive:
        add(archive, derive_data.INNER_ARCHIVE, inner.getvalue())
        add(archive, f"{derive_data.FOLDER}/LICENSE.txt", b"The license.\n")
        add(archive, f"{derive_data.FOLDER}/PKG-INFO", b"Name: vaderSentiment\nVersion: 3.3.2\n")
        add(archive, f"{derive_data.FOLDER}/setup.py", setup.encode())
    return path


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("made_up") / REAL_ARCHIVE.name, made_up_tables())


@pytest.fixture(scope="module", params=["made_up", pytest.param("real", marks=pytest.mark.real)])
def archive(request: pytest.FixtureRequest, made_up: Path) -> Path:
    if request.param == "real" and not REAL_ARCHIVE.is_file():
        pytest.skip("run `make data` first")
    return made_up if request.param == "made_up" else REAL_ARCHIVE


@pytest.fixture(scope="module")
def derived(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("derived")
    derive_data.derive(archive, folder)
    return folder


@pytest.fixture(scope="module")
def rated(archive: Path) -> pd.DataFrame:
    """Every sentence with its ratings, read by pandas: the reference."""
    with tarfile.open(archive) as outer:
        content = outer.extractfile(derive_data.INNER_ARCHIVE).read()
    frames = []
    with tarfile.open(fileobj=io.BytesIO(content)) as inner:
        for source, name in derive_data.SOURCES.items():
            tables = [
                pd.read_csv(
                    inner.extractfile(f"hutto_ICWSM_2014/{name}_{kind}.txt"),
                    sep="\t",
                    names=columns,
                    quoting=csv.QUOTE_NONE,
                    encoding="utf-8-sig",
                    dtype={"id": str, "text": str},
                    keep_default_na=False,
                )
                for kind, columns in (
                    ("GroundTruth", ["id", "mean", "text"]),
                    ("anonDataRatings", ["id", "rated_mean", "spread", "ratings"]),
                )
            ]
            frames.append(tables[0].merge(tables[1], on="id").assign(source=source))
    frame = pd.concat(frames)
    frame["text"] = frame["text"].str.split().str.join(" ")
    frame["document"] = frame["source"] + frame["id"].str.split("_").str[0]
    frame["ratings"] = frame["ratings"].map(json.loads)
    frame = frame[(frame["mean"] - frame["ratings"].map(np.mean)).abs() < 0.01]
    return frame[~frame["text"].map(derive_data.text_key).duplicated()].set_index("text")


def read(folder: Path, task: str, split: str) -> pd.DataFrame:
    path = folder / task / f"{split}{derive_data.TASKS[task].suffix}"
    if path.suffix == ".jsonl":
        return pd.DataFrame(json.loads(line) for line in path.read_text("utf-8").splitlines())
    quoting = csv.QUOTE_NONE if path.suffix == ".tsv" else csv.QUOTE_MINIMAL
    separator = "\t" if path.suffix == ".tsv" else ","
    return pd.read_csv(path, sep=separator, quoting=quoting, keep_default_na=False)


def read_all(folder: Path, task: str) -> pd.DataFrame:
    return pd.concat([read(folder, task, split) for split in derive_data.SPLITS])


# --- The derivation ---


@pytest.mark.parametrize("task", derive_data.TASKS)
def test_no_text_and_no_document_is_in_two_splits(
    derived: Path, rated: pd.DataFrame, task: str
) -> None:
    columns = ["text_a", "text_b"] if task == "same_review" else ["text"]
    texts, documents = [], []
    for split in derive_data.SPLITS:
        found = pd.concat([read(derived, task, split)[column] for column in columns])
        assert len(found) > 20
        if columns == ["text"]:
            assert found.map(derive_data.text_key).is_unique
        texts.append(set(found.map(derive_data.text_key)))
        documents.append(set(rated.loc[list(set(found)), "document"]))
    for groups in (texts, documents):
        assert sum(map(len, groups)) == len(set().union(*groups))


def test_film_sentiment_is_the_sign_of_a_clear_mean(derived: Path, rated: pd.DataFrame) -> None:
    rows = read_all(derived, "film_sentiment")
    means = rated.loc[rows["text"], "ratings"].map(np.mean).to_numpy()
    assert (np.abs(means) > 0.5).all()
    assert (rows["label"] == np.where(means > 0, "positive", "negative")).all()
    films = rated[rated["source"] == "film"]
    clear = films[films["ratings"].map(np.mean).abs() > 0.5].index.map(derive_data.text_key)
    assert set(rows["text"].map(derive_data.text_key)) == set(clear)


def test_valence_is_the_mean_of_the_ratings(derived: Path, rated: pd.DataFrame) -> None:
    rows = read_all(derived, "valence")
    means = rated.loc[rows["text"], "ratings"].map(np.mean)
    np.testing.assert_allclose(rows["score"], means, atol=1e-3)
    assert rows["score"].between(-4, 4).all()


@pytest.mark.parametrize("split", derive_data.SPLITS)
def test_sentence_source_is_balanced_and_right(
    derived: Path, rated: pd.DataFrame, split: str
) -> None:
    rows = read(derived, "sentence_source", split)
    assert (rows["label"].to_numpy() == rated.loc[rows["text"], "source"].to_numpy()).all()
    counts = Counter(rows["label"])
    assert set(counts) == set(derive_data.SOURCES)
    assert len(set(counts.values())) == 1


def test_sentence_tags_follow_from_the_ratings(derived: Path, rated: pd.DataFrame) -> None:
    rows = read_all(derived, "sentence_tags")
    ratings = rated.loc[rows["text"], "ratings"]
    for labels, values in zip(rows["labels"], ratings, strict=True):
        mean, spread = np.mean(values), np.std(values)
        assert ("positive" in labels) == (mean > 0.5 + 1e-6)
        assert ("negative" in labels) == (mean < -0.5 - 1e-6)
        assert ("strong" in labels) == (abs(mean) >= 2 - 1e-6)
        assert ("contested" in labels) == (round(float(spread), 5) >= 1.2)
    assert (rows["labels"].str.len() == 0).any()


@pytest.mark.parametrize("split", derive_data.SPLITS)
def test_pairs_are_of_one_review_or_of_two(derived: Path, rated: pd.DataFrame, split: str) -> None:
    rows = read(derived, "same_review", split)
    first, second = (rated.loc[rows[name], "document"].to_numpy() for name in ("text_a", "text_b"))
    assert ((first == second) == (rows["label"] == "same")).all()
    assert (rows["text_a"] != rows["text_b"]).all()
    assert len({frozenset(pair) for pair in zip(rows["text_a"], rows["text_b"], strict=True)}) == (
        len(rows)
    )
    # One text alone says nothing of the label.
    same, different = (rows[rows["label"] == label] for label in ("same", "different"))
    assert Counter(same["text_a"]) == Counter(different["text_a"])
    differing = Counter(same["text_b"]) - Counter(different["text_b"])
    assert sum(differing.values()) <= 0.02 * len(same)


def test_deriving_twice_gives_the_same_bytes(archive: Path, derived: Path, tmp_path: Path) -> None:
    derive_data.derive(archive, tmp_path)
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) == 3 * len(derive_data.TASKS) + 1
    for file in files:
        assert (tmp_path / file).read_bytes() == (derived / file).read_bytes()


def test_the_readme_holds_citation_and_license(derived: Path, archive: Path) -> None:
    text = (derived / "README.txt").read_text()
    assert "Hutto, C.J. & Gilbert, E.E. (2014)" in text
    with derive_data.open_archives(archive) as (outer, _):
        license_text = derive_data.read_member(outer, f"{derive_data.FOLDER}/LICENSE.txt")
    assert license_text.strip() in text


@pytest.mark.real
def test_sizes_and_shares_of_the_real_data() -> None:
    folder = ROOT / ".cache" / "data"
    if not folder.is_dir():
        pytest.skip("run `make data` first")
    for split, size in zip(derive_data.SPLITS, (6000, 1000, 1000), strict=True):
        for task in ("sentence_source", "sentence_tags"):
            assert len(read(folder, task, split)) == size
        counts = Counter(
            tag for tags in read(folder, "sentence_tags", split)["labels"] for tag in tags
        )
        assert set(counts) == {"positive", "negative", "strong", "contested"}
        assert min(counts.values()) >= 0.08 * size
        assert (
            read(folder, "film_sentiment", split)["label"].value_counts(normalize=True).min() > 0.4
        )
    assert len(read(folder, "film_sentiment", "train")) > 7500
    assert len(read(folder, "film_sentiment", "test")) > 900
    assert len(read(folder, "same_review", "train")) > 4000


def without(name: str) -> dict[str, bytes]:
    return {key: value for key, value in made_up_tables().items() if key != name}


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (without("tweets_GroundTruth.txt"), "no file hutto_ICWSM_2014/tweets_GroundTruth.txt"),
        (made_up_tables() | {"tweets_GroundTruth.txt": b"1\t0.5\ttext"}, "the same ids"),
        (made_up_tables() | {"tweets_GroundTruth.txt": b"1\t0.5"}, "line 1: not 3 cells"),
        (made_up_tables() | {"tweets_GroundTruth.txt": b"1\t0\ta\n1\t0\tb"}, "line 2"),
    ],
)
def test_a_damaged_archive_is_named(tmp_path: Path, tables: dict[str, bytes], message: str) -> None:
    archive = write_archive(tmp_path / "damaged.tar.gz", tables)
    with pytest.raises(derive_data.DeriveError, match=message):
        derive_data.derive(archive, tmp_path / "data")
    assert not (tmp_path / "data").exists()


# --- Writing whole files or none ---


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for before in (None, "whole\n"):
        if before:
            path.write_text(before)
        with pytest.raises(KeyboardInterrupt), derive_data.replacing(path) as file:
            file.write("half of it")
            file.flush()
            raise KeyboardInterrupt
        assert os.listdir(tmp_path) == (["rows.csv"] if before else [])
    assert path.read_text() == "whole\n"


def pin(monkeypatch: pytest.MonkeyPatch, archive: Path) -> None:
    """Make `archive` the only thing that pip can find, and the pinned one."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(archive.parent))
    requirement = fetch_demo.DATA.requirement
    monkeypatch.setattr(fetch_demo, "DATA", fetch_demo.Pin(requirement, fetch_demo.sha256(archive)))


def test_data_are_brought_once_and_again_after_an_interruption(
    made_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin(monkeypatch, made_up)
    tasks = derive_data.TASKS

    def interrupted(_: object) -> list[derive_data.Row]:
        raise KeyboardInterrupt

    monkeypatch.setattr(
        derive_data, "TASKS", tasks | {"valence": derive_data.Task(interrupted, ".csv")}
    )
    with pytest.raises(KeyboardInterrupt):
        fetch_demo.fetch_data(tmp_path)
    assert not (tmp_path / "data" / ".derived").exists()

    monkeypatch.setattr(derive_data, "TASKS", tasks)
    fetch_demo.fetch_data(tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert len(files) == 3 * len(tasks) + 3  # the README, the stamp, the archive
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == [REAL_ARCHIVE.name]

    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    fetch_demo.fetch_data(tmp_path)
    assert files == {path: path.stat().st_mtime_ns for path in files}

    missing = tmp_path / "data" / "valence" / "test.csv"
    missing.unlink()
    fetch_demo.fetch_data(tmp_path)  # from the archive that is there
    assert missing.is_file()


# --- Hashes ---


def test_no_code_of_the_archive_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = tmp_path / "index"
    index.mkdir()
    setup = f"open({str(tmp_path / 'ran')!r}, 'w')"
    pin(monkeypatch, write_archive(index / REAL_ARCHIVE.name, {}, setup))
    fetched = fetch_demo.fetch_archive(tmp_path / "downloads")
    assert fetched.read_bytes() == (index / REAL_ARCHIVE.name).read_bytes()
    assert not (tmp_path / "ran").exists()


def test_another_file_than_the_pinned_one_is_refused(
    made_up: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    got = fetch_demo.sha256(made_up)
    pin(monkeypatch, made_up)
    expected = "0" * 64
    wrong = fetch_demo.Pin(fetch_demo.DATA.requirement, expected)
    monkeypatch.setattr(fetch_demo, "DATA", wrong)
    monkeypatch.setattr(fetch_demo, "CACHE", tmp_path)
    monkeypatch.setattr(fetch_demo, "fetch_encoder", lambda: None)
    assert fetch_demo.main() == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert expected in message
    assert got in message
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_missing_package_is_one_line(
    made_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin(monkeypatch, made_up)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(fetch_demo.FetchError) as caught:
        fetch_demo.fetch_archive(tmp_path / "downloads")
    message = str(caught.value)
    assert "\n" not in message
    assert "could not bring vaderSentiment==3.3.2" in message
    assert "Check the network" in message


def test_a_damaged_download_is_brought_again(
    made_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin(monkeypatch, made_up)
    path = tmp_path / REAL_ARCHIVE.name
    path.write_bytes(made_up.read_bytes()[:-1])
    assert fetch_demo.fetch_archive(tmp_path) == path
    assert path.read_bytes() == made_up.read_bytes()


@pytest.mark.real
def test_the_encoder_is_the_pinned_one(capsys: pytest.CaptureFixture[str]) -> None:
    if fetch_demo.find_weights() is None:
        pytest.skip("run `make data` first")
    fetch_demo.fetch_encoder()
    assert "is there" in capsys.readouterr().out
