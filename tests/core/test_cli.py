"""The command line: what it prints, reads and writes, and what it keeps quiet."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import bertkit as package
from bertkit import experiment
from bertkit.arguments import arguments_of
from bertkit.config import config_from_mapping, load_config, to_yaml
from bertkit.registry import REGISTRIES
from tests.command_line import CommandLine, snapshot, tiny_config, write_tiny_data, write_yaml
from tests.tiny_models import LABELS, PAIRS, TEXTS

ROOT = Path(__file__).parents[2]
BERTKIT = str(Path(sys.executable).with_name("bertkit"))
HEAVY = {"tensorflow", "keras", "numpy", "pandas", "pyarrow", "sklearn", "scipy", "omegaconf"}
COMMANDS = [
    "train",
    "inspect",
    "evaluate",
    "predict",
    "export",
    "plugins",
    "schema",
    "doctor",
    "version",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with two finished runs, of single texts and of pairs."""
    folder = write_tiny_data(tmp_path_factory.mktemp("cli"))
    lines = [f"{a}\t{b}\t{label}"
             for (a, b), label in zip(PAIRS, LABELS["binary"], strict=True)]  # fmt: skip
    (folder / "pairs.tsv").write_text("\n".join(["a\tb\tlabel", *lines, ""]), encoding="utf-8")
    data = {"train": "pairs.tsv", "text": ["a", "b"], "label": "label"}
    pair = {"plugin": "sentence_pair", "sequence_length": 32}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        experiment.run(load_config(["binary.yaml"], ["name=single"]), verbose=0)
        experiment.run(tiny_config(name="pair", data=data, preprocessor=pair), verbose=0)
        yield folder


def expected(run: str, rows: Any) -> list[dict[str, Any]]:
    answers = package.load(f"runs/{run}").classify(rows)
    texts = [list(row) if isinstance(row, tuple) else row for row in rows]
    return [{"text": text, **answer} for text, answer in zip(texts, answers, strict=True)]


def assert_alike(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """Assert that predictions are equal, but for rounding."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert list(one) == list(other) == ["text", "label", "score", "scores"]
        assert one["text"] == other["text"] and one["label"] == other["label"]
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-6)


# What is imported


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "bertkit", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("Usage: ")


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=str)
def test_help_is_light(words: list[str]) -> None:
    code = (
        "import sys, atexit\n"
        f"sys.argv = ['bertkit', *{words!r}]\n"
        f"atexit.register(lambda: print('HEAVY', {HEAVY!r} & set(sys.modules)))\n"
        "from bertkit.cli import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("HEAVY set()\n")
    assert done.stdout.startswith("Usage: ")
    if len(words) == 1:
        assert all(f"\n  {name} " in done.stdout for name in COMMANDS)


def test_version(bertkit: CommandLine) -> None:
    assert bertkit("version").out == importlib.metadata.version("bertkit") + "\n"


# Predicting


@pytest.mark.parametrize("size", ["1", "3", "64"])
def test_lines_of_text(bertkit: CommandLine, size: str) -> None:
    done = bertkit("predict", "runs/single", "--batch-size", size, stdin="\n".join(TEXTS).encode())
    assert (done.code, done.err) == (0, "")
    assert_alike(done.predictions(), expected("single", TEXTS))


def test_formats(bertkit: CommandLine, place: Path) -> None:
    wanted = expected("single", TEXTS)
    contents = {
        "text": "\n".join(TEXTS),
        "csv": "".join(f'1,"{text}"\n' for text in ["text", *TEXTS]),
        "tsv": "".join(f"{text}\t{text}\n" for text in ["text", *TEXTS]).replace("\ttext", "\tx"),
        "jsonl": "".join(json.dumps({"x": 1, "text": text}) + "\n" for text in TEXTS),
    }
    for name, content in contents.items():
        done = bertkit("predict", "runs/single", "--format", name, stdin=content.encode())
        assert_alike(done.predictions(), wanted)
        (place / f"rows.{name.replace('text', 'txt')}").write_text(content)
    pq.write_table(pa.table({"text": TEXTS}), place / "rows.parquet")
    done = bertkit("predict", "runs/single/model", "rows.*")  # all of them, sorted
    assert_alike(done.predictions(), wanted * 5)
    (place / "odd.txt").write_text(contents["csv"])
    done = bertkit("predict", "runs/single", "odd.txt", "--format", "csv")
    assert_alike(done.predictions(), wanted)


def test_pairs(bertkit: CommandLine) -> None:
    wanted = expected("pair", PAIRS)
    lines = "\n".join("\t".join(pair) for pair in PAIRS)
    assert_alike(bertkit("predict", "runs/pair", stdin=lines.encode()).predictions(), wanted)
    assert_alike(bertkit("predict", "runs/pair", "pairs.tsv").predictions(), wanted)


def test_other_letters(bertkit: CommandLine) -> None:
    text = 'José Müller 電影 😀 \u2028 \\ "'
    done = bertkit("predict", "runs/single", "--format", "jsonl",
                   stdin=json.dumps({"text": text}).encode())  # fmt: skip
    assert text.replace("\\", "\\\\").replace('"', '\\"') in done.out  # as people write it
    assert [row["text"] for row in done.predictions()] == [text]


def test_output(bertkit: CommandLine, place: Path) -> None:
    stdin = "\n".join(TEXTS).encode()
    (place / "link.jsonl").symlink_to(place / "behind.jsonl")
    for name in ("deep/out.jsonl", "deep/out.jsonl", "link.jsonl"):  # again: it is replaced
        done = bertkit("predict", "runs/single", "-o", name, stdin=stdin)
        assert (done.code, done.out, done.err) == (0, "", "")
    written = (place / "deep" / "out.jsonl").read_text(encoding="utf-8")
    assert written.endswith("}\n")
    assert_alike([json.loads(line) for line in written.splitlines()], expected("single", TEXTS))
    assert (place / "link.jsonl").is_symlink()
    assert (place / "behind.jsonl").read_text(encoding="utf-8") == written
    before = snapshot(place)
    done = bertkit("predict", "runs/single", "-o", "deep/out.jsonl", "--batch-size", "2",
                   stdin=stdin + b"\n\n")  # fmt: skip
    assert done.code == 2 and "standard input:12: " in done.err
    assert snapshot(place) == before


def test_lines_stream(place: Path) -> None:
    """The first prediction is there before the second line is sent; and nothing is chattered."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        [BERTKIT, "predict", "runs/single", "--batch-size", "1"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # The encoding of a terminal that has no letters but ASCII's.
        env={**clean, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )  # fmt: skip
    assert process.stdin and process.stdout
    watchdog = threading.Timer(120, process.kill)  # a line that does not come is waited for
    watchdog.start()
    found = []
    for text in ("a good film", "très 😀", "bad"):
        process.stdin.write(f"{text}\n".encode())
        process.stdin.flush()
        found.append(json.loads(process.stdout.readline()))
    out, err = process.communicate()
    watchdog.cancel()
    assert (process.returncode, out, err) == (0, b"", b"")
    assert_alike(found, expected("single", ["a good film", "très 😀", "bad"]))


def test_a_reader_that_goes(place: Path) -> None:
    (place / "many.txt").write_text("a good film\n" * 3000)
    process = subprocess.Popen(
        [BERTKIT, "predict", "runs/single", "many.txt"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout and process.stderr
    assert json.loads(process.stdout.readline())["text"] == "a good film"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) in (0, 1)


@pytest.mark.parametrize("command", ["version", "plugins", "schema"])
def test_output_that_cannot_be_written(command: str) -> None:
    """A full disk is said once; a reader that has gone is no error worth a word."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [BERTKIT, command], stdout=full, stderr=subprocess.PIPE, text=True, env=clean
        )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: No space left on device. ")
    assert len(done.stderr.splitlines()) == 1
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [BERTKIT, command], stdout=writer, stderr=subprocess.PIPE, text=True, env=clean
    )
    os.close(writer)
    assert done.returncode in (0, 1) and done.stderr == ""


def test_a_backend_that_is_not_there(place: Path) -> None:
    done = subprocess.run(
        [BERTKIT, "predict", "runs/single"],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "jax"},
    )
    assert done.returncode == 2
    assert (
        done.stderr
        == "Error: No module named 'jax'. Run `bertkit doctor`: it names what to install.\n"
    )


# Evaluating


def test_evaluate(bertkit: CommandLine, place: Path) -> None:
    known = json.loads((place / "runs/single/metrics.json").read_text())
    done = bertkit("evaluate", "runs/single", "--json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert found.keys() == known.keys() == {"test"}
    assert found["test"] == pytest.approx(known["test"], abs=1e-6)
    done = bertkit("evaluate", "runs/single")
    for measure, value in known["test"].items():
        (line,) = [line for line in done.out.splitlines() if f" {measure} " in line]
        assert f"{value:.4f}" in line


def test_evaluate_other_rows(bertkit: CommandLine, place: Path) -> None:
    rows = (place / "binary.jsonl").read_text().splitlines(keepends=True)
    (place / "part-1.jsonl").write_text("".join(rows[:4]))
    (place / "part-2.jsonl").write_text("".join(rows[4:]))
    known = json.loads((place / "runs/single/metrics.json").read_text())["test"]
    for words in (["--data", "part-*.jsonl"],
                  ["--data", "part-1.jsonl", "--data", "part-2.jsonl"]):  # fmt: skip
        done = bertkit("evaluate", "runs/single", *words, "--json")
        assert json.loads(done.out) == {"data": pytest.approx(known, abs=1e-6)}
    (place / "one.jsonl").write_text(rows[0])  # no curve over one label
    found = json.loads(bertkit("evaluate", "runs/single", "--data", "one.jsonl", "--json").out)
    assert found["data"]["roc_auc"] is None
    assert "–" in bertkit("evaluate", "runs/single", "--data", "one.jsonl").out


# What is installed


def test_plugins(bertkit: CommandLine) -> None:
    rows = json.loads(bertkit("plugins", "--json").out)
    found = {(row["kind"], row["name"]): row for row in rows}
    assert len(found) == len(rows)
    for kind, registry in REGISTRIES.items():
        assert {name for one, name in found if one == kind} == set(registry.names())
        for info in registry.infos():
            row = found[kind, info.name]
            assert row["distribution"] == info.distribution and row["error"] is None
            assert row["summary"].endswith(".") and "\n" not in row["summary"]
            arguments = arguments_of(registry.get(info.name))
            assert [entry["name"] for entry in row["arguments"]] == [a.name for a in arguments]
            for entry, argument in zip(row["arguments"], arguments, strict=True):
                assert entry["type"] and entry["description"] == argument.description != ""
                assert ("default" not in entry) == argument.required
    shown = bertkit("plugins").out
    for row in rows:
        assert f"{row['kind']} {row['name']} ({row['distribution']})\n" in shown
        assert f"    {row['summary']}\n" in shown
        assert all(f"    - {entry['name']}: " in shown for entry in row["arguments"])


def test_schema(bertkit: CommandLine) -> None:
    schema = json.loads(bertkit("schema").out)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    examples = sorted((ROOT / "examples").glob("*.yaml"))
    assert len(examples) >= 5
    for path in examples:
        config = yaml.safe_load(to_yaml(load_config([path])))
        assert list(validator.iter_errors(config)) == [], path
        assert list(validator.iter_errors({**config, "nme": "x"}))
        assert list(validator.iter_errors({**config, "head": {"plugin": "nope"}}))


# Training


def test_train(bertkit: CommandLine, place: Path) -> None:
    done = bertkit("train", "binary.yaml", "name=trained", "data.validation=0.2")
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith("Wrote runs/trained. Use it: bertkit predict runs/trained\n")
    for column in ("train", "validation", "test"):
        assert done.out.count(column) >= 1
    metrics = json.loads((place / "runs/trained/metrics.json").read_text())
    assert f"{metrics['test']['loss']:.4f}" in done.out
    assert "Warning: test shares the texts of" in done.out
    again = bertkit("train", "binary.yaml", "name=trained", "seed=5", "--overwrite")
    assert again.code == 0 and load_config(["runs/trained/config.yaml"]).seed == 5


def test_a_dry_run_touches_nothing(bertkit: CommandLine, place: Path) -> None:
    before = snapshot(place)
    write_yaml(place / "over.yaml", {"training": {"epochs": 7}, "seed": 1, "name": "over"})
    done = bertkit(
        "train", "binary.yaml", "over.yaml", "seed=2", "--dry-run", "output_dir=o/${name}"
    )
    (place / "over.yaml").unlink()
    assert (done.code, done.err) == (0, "")
    shown, _, parts = done.out.partition("\nParts:\n")
    config = config_from_mapping(yaml.safe_load(shown))
    wanted = tiny_config(name="over", seed=2, output_dir="o/over", training__epochs=7)
    assert config == config_from_mapping(wanted)
    for word in (
        "preprocessor: single_text(sequence_length=32), ",
        "encoder: bert(vocabulary_size=",
        "head: binary(), bertkit_plugins.heads.binary:BinaryHead of bertkit ",
    ):
        assert word in parts
    assert snapshot(place) == before


@pytest.mark.parametrize("key", ["train", "validation", "test"])
def test_a_dry_run_finds_what_is_missing(bertkit: CommandLine, place: Path, key: str) -> None:
    before = snapshot(place)
    done = bertkit("train", "binary.yaml", "name=dry", f"data.{key}=nope.jsonl", "--dry-run")
    assert done.code == 2 and done.err.startswith("Error: No file matches 'nope.jsonl'")
    assert snapshot(place) == before


def test_a_config_with_an_equals_sign_in_its_name(bertkit: CommandLine, place: Path) -> None:
    write_yaml(place / "lr=1.yaml", {"training": {"learning_rate": 1.0}, "name": "equals"})
    done = bertkit("train", "binary.yaml", "lr=1.yaml", "--dry-run")
    assert done.code == 0 and "learning_rate: 1.0\n" in done.out


def test_no_words_show_the_help(bertkit: CommandLine) -> None:
    done = bertkit()
    assert "Usage: bertkit" in done.out + done.err and done.code in (0, 2)
