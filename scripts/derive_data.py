"""Derive the data of the demo and the examples from the source distribution of vaderSentiment.

Its archive hutto_ICWSM_2014.tar.gz holds about 23,700 sentences, each with its raters' scores
from -4 to 4. Nothing is unpacked to disk and no code of the archive runs. What is derived is
the same to the byte on each machine: splits and order come from hashes, not from a generator.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

SEED = "bertkit 0"
SPLITS = ("train", "validation", "test")
SOURCES = {
    "film": "movieReviewSnippets",
    "tweet": "tweets",
    "product": "amazonReviewSnippets",
    "editorial": "nytEditorialSnippets",
}
FOLDER = "vaderSentiment-3.3.2"
INNER_ARCHIVE = f"{FOLDER}/additional_resources/hutto_ICWSM_2014.tar.gz"

POLAR = 0.5  # a mean beyond this is positive, beyond its negative is negative: 43 % and 38 %
STRONG = 2.0  # |mean| from here on is strong: 27 % of all sentences
CONTESTED = 1.2  # a standard deviation of the ratings from here on is contested: 10 %
ROUNDS = 2  # how often each sentence of a review may be paired with another of it
PAIRS_PER_REVIEW = 20  # so that a few long reviews do not make up a split
WORDS_IN_PAIR = 3  # "thanks !" cannot be placed by anyone

Row = dict[str, Any]


class DeriveError(ValueError):
    """The archive does not hold what it should."""


@dataclass(frozen=True)
class Sentence:
    """A rated sentence.

    Attributes:
        source: a key of SOURCES.
        document: the review or article it is from; films' and tweets' sentences stand alone.
        text: the sentence, its whitespace collapsed.
        mean: the mean of the ratings, from -4 to 4.
        spread: the standard deviation of the ratings (population, as the archive gives it).
    """

    source: str
    document: str
    text: str
    mean: float
    spread: float


@dataclass(frozen=True)
class Task:
    """How the rows of a task are made and kept.

    Attributes:
        rows: from the sentences of one split to the rows of that split.
        suffix: the format of its files.
        limits: at most how many rows a split keeps, in the order of SPLITS; None keeps all.
    """

    rows: Callable[[Sequence[Sentence]], list[Row]]
    suffix: str
    limits: tuple[int, int, int] | None = None


def derive(archive: Path, folder: Path) -> dict[str, dict[str, int]]:
    """Write `folder/<task>/<split>.<suffix>` for every task, and a README.txt beside them.

    Args:
        archive: the source distribution of vaderSentiment 3.3.2.
        folder: where to; files there are replaced, each whole.

    Returns:
        The number of rows by task and split.

    Raises:
        DeriveError: a file of the archive is missing, or two of them contradict each other.
    """
    with open_archives(archive) as (outer, inner):
        splits = split(read_sentences(inner))
        license_text = read_member(outer, f"{FOLDER}/LICENSE.txt")
    sizes: dict[str, dict[str, int]] = {}
    for task, path, name in data_files(folder):
        rows = TASKS[task].rows(splits[name])
        limits = TASKS[task].limits
        if limits:
            rows = rows[: limits[SPLITS.index(name)]]
        write_rows(path, rows)
        sizes.setdefault(task, {})[name] = len(rows)
    with replacing(folder / "README.txt") as file:
        file.write(README.format(license=license_text.strip()))
    return sizes


def data_files(folder: Path) -> list[tuple[str, Path, str]]:
    """Return task, path and split of each file that `derive` writes."""
    return [
        (task, folder / task / f"{name}{TASKS[task].suffix}", name)
        for task in TASKS
        for name in SPLITS
    ]


# --- Reading ---


@contextmanager
def open_archives(path: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarFile]]:
    """Open the source distribution, and the archive of sentences inside it."""
    with tarfile.open(path) as outer:
        inner = io.BytesIO(read_bytes(outer, INNER_ARCHIVE))
        with tarfile.open(fileobj=inner) as archive:
            yield outer, archive


def read_bytes(archive: tarfile.TarFile, name: str) -> bytes:
    """Return the content of one member."""
    try:
        member = archive.extractfile(name)
    except KeyError:
        member = None
    if member is None:
        raise DeriveError(f"The archive has no file {name}; is it vaderSentiment 3.3.2?")
    return member.read()


def read_member(archive: tarfile.TarFile, name: str) -> str:
    """Return one member as text: all are UTF-8, with CRLF, one with a byte-order mark."""
    return read_bytes(archive, name).decode("utf-8-sig").replace("\r\n", "\n")


def read_sentences(archive: tarfile.TarFile) -> list[Sentence]:
    """Return the sentences of all sources, the first of each set of duplicates.

    Left out: sentences whose two files disagree on the mean (196 of the tweets), since their
    rating is not known.
    """
    found: dict[str, Sentence] = {}
    for source, name in SOURCES.items():
        texts = read_table(archive, f"hutto_ICWSM_2014/{name}_GroundTruth.txt", columns=3)
        ratings = read_table(archive, f"hutto_ICWSM_2014/{name}_anonDataRatings.txt", columns=4)
        if texts.keys() != ratings.keys():
            raise DeriveError(f"The two files of {name} do not hold the same ids.")
        for identity, (mean, text) in texts.items():
            rated_mean, spread, _ = ratings[identity]
            sentence = Sentence(
                source=source,
                document=identity.partition("_")[0],
                text=" ".join(text.split()),
                mean=float(mean),
                spread=float(spread),
            )
            if sentence.text and abs(sentence.mean - float(rated_mean)) < 0.01:
                found.setdefault(text_key(sentence.text), sentence)
    return list(found.values())


def read_table(archive: tarfile.TarFile, name: str, columns: int) -> dict[str, list[str]]:
    """Return the rows of a tab-separated member by id, the first column."""
    rows = {}
    for number, line in enumerate(read_member(archive, name).split("\n"), start=1):
        cells = line.split("\t")
        if cells == [""]:
            continue
        if len(cells) != columns or cells[0] in rows:
            raise DeriveError(f"{name}, line {number}: not {columns} cells with an id of its own.")
        rows[cells[0]] = cells[1:]
    return rows


def text_key(text: str) -> str:
    """Return what two texts share that differ in case and punctuation alone."""
    return " ".join(re.findall(r"\w+", text.casefold())) or text


# --- Splitting ---


def digest(*parts: str) -> int:
    """Return a number below 2**256 that depends on SEED and `parts` alone."""
    return int.from_bytes(hashlib.sha256("\0".join((SEED, *parts)).encode()).digest(), "big")


def split(sentences: Iterable[Sentence]) -> dict[str, list[Sentence]]:
    """Return the sentences of each split, in an order that tells nothing.

    The document alone decides (80, 10 and 10 % of them), so that no review or article is in two
    splits, and a document is in the same split of every task.
    """
    splits: dict[str, list[Sentence]] = {name: [] for name in SPLITS}
    for sentence in sorted(sentences, key=lambda each: digest("order", each.text)):
        tenth = digest("split", sentence.source, sentence.document) % 10
        splits["test" if tenth == 9 else "validation" if tenth == 8 else "train"].append(sentence)
    return splits


# --- The tasks: from the sentences of one split to its rows ---


def film_sentiment(sentences: Sequence[Sentence]) -> list[Row]:
    """Films' sentences that people find positive or negative."""
    return [
        {"text": each.text, "label": "positive" if each.mean > 0 else "negative"}
        for each in sentences
        if each.source == "film" and abs(each.mean) > POLAR
    ]


def valence(sentences: Sequence[Sentence]) -> list[Row]:
    """Films' sentences with the mean of their ratings, from -4 to 4."""
    return [
        {"text": each.text, "score": round(each.mean, 4)}
        for each in sentences
        if each.source == "film"
    ]


def sentence_source(sentences: Sequence[Sentence]) -> list[Row]:
    """Sentences with where they are from, one of each source in turn."""
    texts = ([each.text for each in sentences if each.source == source] for source in SOURCES)
    return [
        {"text": text, "label": source}
        for turn in zip(*texts, strict=False)
        for source, text in zip(SOURCES, turn, strict=True)
    ]


def sentence_tags(sentences: Sequence[Sentence]) -> list[Row]:
    """Sentences of all sources with what their ratings say; about a sixth have no tag."""
    return [{"text": each.text, "labels": tags(each)} for each in sentences]


def tags(sentence: Sentence) -> list[str]:
    """Return the tags that hold for a sentence: see POLAR, STRONG and CONTESTED."""
    holds = {
        "positive": sentence.mean > POLAR,
        "negative": sentence.mean < -POLAR,
        "strong": abs(sentence.mean) >= STRONG,
        "contested": sentence.spread >= CONTESTED,
    }
    return [tag for tag, is_so in holds.items() if is_so]


def same_review(sentences: Sequence[Sentence]) -> list[Row]:
    """Pairs of sentences from one product review, and as many from two.

    The pairs from two reviews are made of the others by moving all second sentences on by as
    many places as a review has pairs at most. So the first texts are the same under both labels,
    and the second ones nearly: a model that reads one text of the pair learns nothing.
    """
    pairs = review_pairs(sentences)
    if len(pairs) < 2 * PAIRS_PER_REVIEW:
        raise DeriveError(f"{len(pairs)} pairs of sentences are too few to mix their reviews.")
    seconds = [second for _, second in pairs]
    moved = seconds[PAIRS_PER_REVIEW:] + seconds[:PAIRS_PER_REVIEW]
    rows: list[Row] = []
    mixed: set[frozenset[str]] = set()
    for (first, second), other in zip(pairs, moved, strict=True):
        if frozenset((first, other)) in mixed:  # each is in two pairs, so they may meet twice
            continue
        mixed.add(frozenset((first, other)))
        rows.append({"text_a": first, "text_b": second, "label": "same"})
        rows.append({"text_a": first, "text_b": other, "label": "different"})
    return sorted(rows, key=lambda row: digest("pair", row["text_a"], row["text_b"]))


def review_pairs(sentences: Sequence[Sentence]) -> list[tuple[str, str]]:
    """Return pairs of texts of one product review each, review by review."""
    reviews = defaultdict(list)
    for each in sentences:
        if each.source == "product" and len(each.text.split()) >= WORDS_IN_PAIR:
            reviews[each.document].append(each.text)
    pairs: list[tuple[str, str]] = []
    for texts in reviews.values():
        found: dict[frozenset[str], tuple[str, str]] = {}
        for turn in range(ROUNDS):
            order = sorted(texts, key=lambda text: digest("turn", str(turn), text))
            for pair in zip(order[::2], order[1::2], strict=False):
                found.setdefault(frozenset(pair), pair)
        pairs.extend(list(found.values())[:PAIRS_PER_REVIEW])
    return pairs


TASKS = {
    "film_sentiment": Task(film_sentiment, ".csv"),
    "valence": Task(valence, ".csv"),
    "sentence_source": Task(sentence_source, ".csv", limits=(6000, 1000, 1000)),
    "sentence_tags": Task(sentence_tags, ".jsonl", limits=(6000, 1000, 1000)),
    "same_review": Task(same_review, ".tsv"),
}


# --- Writing ---


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """Open a text file that takes the place of `path` once it is whole, or never."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows in the format that the suffix of `path` names.

    CSV is quoted where needed; in TSV a quote is an ordinary character, and whitespace was
    collapsed before, so that no text holds a tab.
    """
    if not rows:
        raise DeriveError(f"There are no rows for {path}.")
    with replacing(path) as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        elif path.suffix == ".tsv":
            file.writelines("\t".join(cells) + "\n" for cells in (rows[0], *map(dict.values, rows)))
        else:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


README = """\
These files are derived from the source distribution of vaderSentiment 3.3.2, by
scripts/derive_data.py: sentences from films' reviews, tweets, product reviews and editorials,
with what at least 15 people each made of them on a scale from -4 to 4. To cite them:

  Hutto, C.J. & Gilbert, E.E. (2014). VADER: A Parsimonious Rule-based Model for Sentiment
  Analysis of Social Media Text. Eighth International Conference on Weblogs and Social Media
  (ICWSM-14). Ann Arbor, MI, June 2014.

The sentences themselves were written by the authors of those reviews, tweets and articles.
The distribution comes under this license:

{license}
"""
