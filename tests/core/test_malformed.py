"""Malformed configs, rows and inputs, each through the whole command line.

Every case must end with exit code 2 and a cause on standard error, without a traceback, and
leave the earlier run as it was and nothing beside it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.command_line import CommandLine, snapshot, write_tiny_data

EARLIER = "runs/earlier"
ABSENT = object()  # a key that is to be taken out


@dataclass(frozen=True)
class Case:
    """A command that cannot succeed.

    Attributes:
        words: the command line.
        says: what standard error must contain.
        files: files to write first, by name.
        stdin: what is sent.
    """

    words: list[str]
    says: list[str]
    files: dict[str, bytes] = field(default_factory=dict)
    stdin: bytes = b""


CASES: dict[str, Case] = {}


def add(name: str, case: Case) -> None:
    assert name not in CASES, name
    CASES[name] = case


# Configs: what is wrong stands in wrong.yaml, laid over a right one.

TRAIN = ["train", "binary.yaml"]
# Values of the wrong type, and the keys they are wrong for.
TYPES: list[tuple[list[Any], str]] = [
    (
        [3, True, 1.5, [3], {"a": "b"}],
        "name output_dir data.label data.label_separator encoder.vocabulary encoder.hidden_act "
        "encoder.pooling training.schedule training.precision",
    ),
    (
        ["3", 1.5, True, [1], {"a": 1}],
        "seed training.epochs training.batch_size preprocessor.sequence_length "
        "encoder.vocabulary_size encoder.hidden_size encoder.num_layers encoder.num_heads "
        "encoder.intermediate_size encoder.max_sequence_length encoder.num_segments",
    ),
    (
        ["0.1", True, [0.1], {"a": 0.1}],
        "training.learning_rate training.warmup training.weight_decay encoder.dropout "
        "encoder.attention_dropout encoder.layer_norm_epsilon encoder.initializer_range "
        "head.dropout",
    ),
    ([3, "x", True, ["x"]], "data encoder preprocessor head training"),
    ([None, 3, "nope", ["bert"]], "encoder.plugin preprocessor.plugin head.plugin"),
]
# Other values that are wrong.
VALUES: dict[str, list[Any]] = {
    "name": ["", "a/b", "..", "x" * 101],
    "seed": [-1, 2**32, 2**70],
    "data.train": [None, 3, [], [3], "", {"a": "b"}],
    "data.text": [None, 3, [], ["a", "b", "c"], ["a", "b"], "", "label"],
    "data.validation": [0, 1, 1.5, -0.1, True, [], [0.1]],
    "data.test": [0, 1.0, True, {}],
    "encoder.vocabulary_size": [0, -1, 10],
    "encoder.hidden_size": [0, -1, 15],
    "encoder.num_layers": [0, -1],
    "encoder.num_heads": [0, -1, 3],
    "encoder.intermediate_size": [0, -1],
    "encoder.max_sequence_length": [0, -1],
    "encoder.num_segments": [-1],
    "encoder.dropout": [-0.1, 1.5],
    "encoder.attention_dropout": [-0.1, 1.5],
    "encoder.vocabulary": ["nope.txt", "binary.jsonl", "runs"],
    "encoder.hidden_act": ["Gelu"],
    "preprocessor.sequence_length": [2, 0, -5, 41, 10**9],
    "head.dropout": [-0.1, 1.5],
    "head.labels": [
        *(3, "neg", ["neg"], [], ["neg", "neg"], ["a", "b", "c"], [True, False], [["neg"]]),
    ],
    "training.epochs": [0, -1],
    "training.batch_size": [0, -8],
    "training.learning_rate": [0, -1e-5, 1e30, float("nan"), float("inf")],
    "training.warmup": [-0.1, 1.1],
    "training.schedule": ["linaer"],
    "training.weight_decay": [-0.01],
    "training.layer_decay": [0, 1.5],
    "training.precision": ["float16", "mixed_float61"],
}
# Where the message does not speak of the key, but of what the value did.
SAYS = {
    ("encoder.vocabulary_size", "10"): "embeddings for 10",
    ("data.text", "label"): "'label' is asked for twice",
    ("head.labels", "['neg']"): "'binary' needs two labels",
    ("head.labels", "['a', 'b', 'c']"): "'binary' needs two labels",
    ("head.labels", "['neg', 'neg']"): "'neg' stands twice",
    ("head.labels", "[]"): "no labels",
}
WRONG = [(key, value) for values, keys in TYPES for key in keys.split() for value in values]
WRONG += [(key, value) for key, values in VALUES.items() for value in values]
for key, value in WRONG:
    *parents, last = key.split(".")
    layer: Any = {last: value}
    for parent in reversed(parents):
        layer = {parent: layer}
    said = SAYS.get((key, str(value)), last)
    content = yaml.safe_dump(layer).encode()
    add(f"{key}={value!r:.16}", Case([*TRAIN, "wrong.yaml"], [said], {"wrong.yaml": content}))

for key in ("nme", "data.txet", "data.labels", "encoder.layers", "preprocessor.length",
            "head.label", "training.epoch", "training.lr", "epochs", "trainig"):  # fmt: skip
    add(f"misspelt {key}", Case([*TRAIN, f"{key}=3"], ["command line", key, "expected"]))

for name, (override, says) in {
    "no equals sign": ("training.epochs", ["training.epochs"]),
    "empty key": ("=3", ["empty key"]),
    "empty part of a key": ("data..train=x", ["data..train"]),
    "a mark of YAML": ("data.label_separator=|", ["data.label_separator", "quote"]),
    "an open list": ("head.labels=[a", ["head.labels"]),
    "an unknown reference": ("output_dir=runs/${nme}", ["nme", "name"]),
    "a reference to itself": ("name=${name}", ["name", "itself"]),
    "an unset variable": ("data.train=${oc.env:BERTKIT_NOT_SET}", ["BERTKIT_NOT_SET"]),
    "a call of a resolver": ("output_dir=${oc.create:1}", ["output_dir"]),
    "a placeholder": ("data.train=???", ["data.train"]),
    "longer than a path may be": (f"head.labels=[{','.join(['label'] * 60)}]", ["label"]),
    "a source that is not there": ("encoder={plugin: huggingface, source: nope}", ["nope"]),
    "a source that is no model": ("encoder={plugin: huggingface, source: runs}", ["config.json"]),
    "a package that is not there": (
        "encoder={plugin: huggingface, source: 'package:nope/model'}", ["'nope'"]),
    "no source": ("encoder={plugin: huggingface}", ["encoder.source"]),
    "a preset that is not there": ("encoder={plugin: kerashub, source: nope}", ["nope"]),
    "an argument of another plugin": ("encoder={plugin: huggingface, hidden_size: 3}",
                                      ["hidden_size"]),
    "two texts for one column": ("data.text=[text, other]", ["data.text", "single_text"]),
    "one text for two columns": ("preprocessor={plugin: sentence_pair, sequence_length: 32}",
                                 ["data.text", "sentence_pair"]),
    "an encoder without a vocabulary": ("encoder.vocabulary=null", ["vocabulary"]),
    "a range upside down": ("head={plugin: regression, range: [4, -4]}", ["range"]),
    "a range of three": ("head={plugin: regression, range: [1, 2, 3]}", ["range"]),
    "a scale of zero": ("head={plugin: regression, scale: 0}", ["scale"]),
    "too small a fraction": ("data.validation=0.01", ["data.validation", "0.01"]),
    "too large a fraction": ("data.validation=0.99", ["data.validation", "0.99"]),
}.items():  # fmt: skip
    add(name, Case([*TRAIN, override], says))
add("fractions of more than all", Case([*TRAIN, "data.validation=0.6", "data.test=0.6"],
                                       ["data.test", "0.6"]))  # fmt: skip

for name, text in {
    "an open bracket": b"name: [a\n",
    "a tab": b"name: a\n\tseed: 3\n",
    "a key twice": b"name: a\nname: b\n",
    "a list": b"- name\n",
    "a number": b"3\n",
    "python": b"name: !!python/object/apply:os.getcwd []\n",
    "Latin-1": "name: café\n".encode("latin-1"),
    "UTF-16": "name: cafe\n".encode("utf-16"),
    "two documents": b"name: a\n---\nname: b\n",
    "no keys but null": b"null: 3\n",
    "too deep": b"name: " + b"[" * 2000 + b"]" * 2000,
    "binary": bytes(range(256)),
}.items():
    add(f"config of {name}", Case([*TRAIN, "wrong.yaml"], ["wrong.yaml"], {"wrong.yaml": text}))
add("no config", Case(["train", "nope.yaml"], ["nope.yaml", "binary.yaml"]))
add("a folder as config", Case(["train", "runs"], ["runs", "directory"]))
add("only overrides", Case(["train", "seed=3"], ["data.train", "missing"]))
add("an empty config", Case(["train", "wrong.yaml"], ["data.train"], {"wrong.yaml": b""}))


# Rows: what is wrong is in the training file, or in that of the test rows.


def parquet(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def rows(*pairs: tuple[Any, Any]) -> bytes:
    """Return JSON lines of texts and labels."""
    lines = [json.dumps({"text": text, "label": label}) for text, label in pairs]
    return ("\n".join(lines) + "\n").encode()


GOOD_PARQUET = parquet(text=["good", "bad"], label=["pos", "neg"])
FILES: dict[str, tuple[str, bytes, list[str]]] = {
    # CSV and TSV
    "empty": ("a.csv", b"", ["a.csv", "empty"]),
    "only a header": ("a.csv", b"text,label\n", ["a.csv", "no rows"]),
    "only blank lines": ("a.csv", b"\n\n\n", ["a.csv"]),
    "too many fields": ("a.csv", b"text,label\ngood,pos\na, b,neg\n", ["a.csv:3", "3 fields"]),
    "too few fields": ("a.csv", b"text,label\ngood,pos\nbad\n", ["a.csv:3", "1 fields"]),
    "an open quote": ("a.csv", b'text,label\n"good,pos\nbad,neg\n', ["a.csv:2", "quote"]),
    "a quote within": ("a.csv", b'text,label\n"go"od,pos\n', ["a.csv:2", "quote"]),
    "a lone carriage return": ("a.csv", b"text,label\ngo\rod,pos\n", ["a.csv:2"]),
    "no such column": ("a.csv", b"txt,label\ngood,pos\n", ["a.csv:1", "'text'", "'txt'"]),
    "no label column": ("a.csv", b"text,class\ngood,pos\n", ["a.csv:1", "'label'", "'class'"]),
    "a column twice": ("a.csv", b"text,text,label\na,b,pos\n", ["a.csv:1", "'text'"]),
    "semicolons": ("a.csv", b"text;label\ngood;pos\n", ["a.csv:1", "';'"]),
    "tabs in CSV": ("a.csv", b"text\tlabel\ngood\tpos\n", ["a.csv:1", "'\\t'"]),
    "commas in TSV": ("a.tsv", b"text,label\ngood,pos\n", ["a.tsv:1", "','"]),
    "fields of TSV": ("a.tsv", b"text\tlabel\ngood\tpos\tx\n", ["a.tsv:2", "3 fields"]),
    "empty TSV": ("a.tsv", b"", ["a.tsv", "empty"]),
    "an empty label": ("a.csv", b"text,label\ngood,pos\nbad,\n", ["a.csv:3", "'label'", "empty"]),
    "a blank label": ("a.csv", b"text,label\ngood,pos\nbad,  \n", ["a.csv:3", "'label'"]),
    "no texts": ("a.csv", b"text,label\n,pos\n  ,neg\n", ["a.csv", "text"]),
    "Latin-1": ("a.csv", b"text,label\ncaf\xe9,pos\n", ["a.csv:2", "0xe9", "UTF-8"]),
    "UTF-16": ("a.csv", "text,label\ngood,pos\n".encode("utf-16"), ["a.csv:1", "UTF-16"]),
    "UTF-32": ("a.csv", "text,label\ngood,pos\n".encode("utf-32"), ["a.csv:1", "UTF-32"]),
    "NUL": ("a.csv", b"text,label\ngo\0od,pos\n", ["a.csv:2", "NUL"]),
    "no gzip": ("a.csv.gz", b"text,label\ngood,pos\n", ["a.csv.gz"]),
    "half a gzip": ("a.csv.gz", gzip.compress(b"text,label\ngood,pos\n" * 99)[:40], ["a.csv.gz"]),
    "text without labels": ("a.txt", b"good\nbad\n", ["a.txt", "label"]),
    "an unknown suffix": ("a.xlsx", b"PK", ["a.xlsx", "'.xlsx'", ".csv"]),
    "no suffix": ("rows", b"text,label\ngood,pos\n", ["rows", ".csv"]),
    # JSON lines
    "empty JSONL": ("a.jsonl", b"", ["a.jsonl", "empty"]),
    "no JSON": ("a.jsonl", b'{"text": "a", "label": "b"}\nnope\n', ["a.jsonl:2", "not JSON"]),
    "half an object": ("a.jsonl", b'{"text": "a", "label": \n', ["a.jsonl:1", "not JSON"]),
    "a list as row": ("a.jsonl", b'["a", "b"]\n', ["a.jsonl:1", "not an object"]),
    "a whole array": ("a.jsonl", b'[{"text": "a", "label": "b"}]\n', ["a.jsonl:1"]),
    "a number as row": ("a.jsonl", b"3\n", ["a.jsonl:1", "3"]),
    "too deep": ("a.jsonl", b"[" * 100_000 + b"\n", ["a.jsonl:1"]),
    "a row without text": ("a.jsonl", b'{"text": "a", "label": "b"}\n{"label": "b"}\n',
                           ["a.jsonl:2", "'text'"]),
    "a row without label": ("a.jsonl", b'{"text": "a"}\n', ["a.jsonl:1", "'label'"]),
    "a text that is a number": ("a.jsonl", rows((3, "b")), ["a.jsonl:1", "'text'", "3"]),
    "a text that is a list": ("a.jsonl", rows((["a"], "b")), ["a.jsonl:1", "'text'"]),
    "a text that is true": ("a.jsonl", rows((True, "b")), ["a.jsonl:1", "True"]),
    "a null label": ("a.jsonl", rows(("a", "x"), ("b", None)), ["a.jsonl:2", "'label'"]),
    "an object as label": ("a.jsonl", rows(("a", {"b": 1})), ["a.jsonl:1", "'label'"]),
    "NaN as label": ("a.jsonl", b'{"text": "a", "label": NaN}\n', ["a.jsonl:1", "'label'"]),
    "infinity as label": ("a.jsonl", b'{"text": "a", "label": Infinity}\n', ["a.jsonl:1"]),
    "a null in a list": ("a.jsonl", rows(("a", ["x", None])), ["a.jsonl:1", "None"]),
    "half a surrogate pair": ("a.jsonl", b'{"text": "a \\ud800", "label": "b"}\n',
                              ["a.jsonl:1", "surrogate"]),
    "half a pair in a label": ("a.jsonl", b'{"text": "a", "label": "\\udc00"}\n',
                               ["a.jsonl:1", "surrogate"]),
    "Latin-1 in JSONL": ("a.jsonl", b'{"text": "caf\xe9", "label": "b"}\n', ["a.jsonl:1", "0xe9"]),
    # Parquet
    "no Parquet": ("a.parquet", b"text,label\ngood,pos\n", ["a.parquet", "Parquet"]),
    "empty Parquet": ("a.parquet", b"", ["a.parquet", "Parquet"]),
    "half a Parquet": ("a.parquet", GOOD_PARQUET[: len(GOOD_PARQUET) // 2], ["a.parquet"]),
    "Parquet without rows": ("a.parquet", parquet(text=pa.array([], pa.string()),
                                                  label=pa.array([], pa.string())),
                             ["a.parquet", "no rows"]),
    "a Parquet's columns": ("a.parquet", parquet(txt=["a"], label=["b"]),
                            ["a.parquet", "'text'", "'txt'"]),
    "numbers as texts": ("a.parquet", parquet(text=[1, 2], label=["a", "b"]), ["a.parquet:1"]),
    "bytes as texts": ("a.parquet", parquet(text=[b"a", b"b"], label=["a", "b"]),
                       ["a.parquet:1", "'text'"]),
    "a null in Parquet": ("a.parquet", parquet(text=["a", "b"], label=["a", None]),
                          ["a.parquet:2", "'label'"]),
    "a structure as label": ("a.parquet", parquet(text=["a"], label=[{"b": 1}]), ["a.parquet:1"]),
    "Parquet gzipped": ("a.parquet.gz", gzip.compress(GOOD_PARQUET), ["a.parquet.gz"]),
}  # fmt: skip
for name, (file, content, says) in FILES.items():
    files = {file: content}
    add(f"train on {name}", Case([*TRAIN, f"data.train={file}"], says, files))
    if name in ("only a header", "no such column", "an empty label", "numbers as texts"):
        add(f"test on {name}", Case([*TRAIN, f"data.test={file}"], says, files))
        add(f"evaluate on {name}", Case(["evaluate", EARLIER, "--data", file], says, files))

TWO = (("good", "pos"), ("bad", "neg"))
LABELS: dict[str, tuple[str, bytes, bytes | None, list[str]]] = {
    # head, training rows, test rows, what is said
    "three for binary": ("binary", rows(*TWO, ("x", "neu")), None, ["'binary'", "3", "'neu'"]),
    "one for binary": ("binary", rows(TWO[0]), None, ["'binary'", "'pos'"]),
    "one for multiclass": ("multiclass", rows(TWO[0], TWO[0]), None, ["'pos'", "one label"]),
    "a list for binary": ("binary", rows(("a", ["x"]), *TWO), None,
                          ["train.jsonl:1: ", "multi_label"]),
    "a list for multiclass": ("multiclass", rows(*TWO, ("a", [])), None,
                              ["train.jsonl:3: ", "multi_label"]),
    "a fraction for binary": ("binary", rows(("a", 0.5), ("b", 1)), None,
                              ["train.jsonl:1: ", "0.5", "regression"]),
    "mixed types": ("multiclass", rows(("a", 1), ("b", "x")), None, ["int", "str"]),
    "numbers and texts of them": ("binary", rows(("a", "1"), ("b", "0")), rows(("a", 1)),
                                  ["test.jsonl:1: ", "another type"]),
    "unseen by binary": ("binary", rows(*TWO), rows(TWO[0], ("x", "poss")),
                         ["test.jsonl:2: ", "'poss'", "Did you mean 'pos'"]),
    "unseen by multiclass": ("multiclass", rows(*TWO), rows(("x", "neutral")),
                             ["test.jsonl:1: ", "'neutral'"]),
    "unseen by multi_label": ("multi_label", rows(("a", ["x"]), ("b", [])), rows(("x", ["y"])),
                              ["test.jsonl:1: ", "'y'"]),
    "no list for multi_label": ("multi_label", rows(*TWO), None,
                                ["train.jsonl:1: ", "label_separator"]),
    "no label at all": ("multi_label", rows(("a", []), ("b", [])), None, ["no labels"]),
    "text for regression": ("regression", rows(("a", 1), ("b", "high")), None,
                            ["train.jsonl:2: ", "'high'"]),
    "nan for regression": ("regression", rows(("a", 1), ("b", "nan")), None,
                           ["train.jsonl:2: ", "'nan'"]),
    "inf for regression": ("regression", rows(("a", "-inf"), ("b", 3)), None,
                           ["train.jsonl:1: ", "'-inf'"]),
    "a list for regression": ("regression", rows(("a", 1), ("b", [2])), None,
                              ["train.jsonl:2: "]),
    "too large for float32": ("regression", rows(("a", 1), ("b", 1e39)), None,
                              ["train.jsonl:2: ", "1e+39"]),
    "text for regression in test": ("regression", rows(("a", 1), ("b", 2)), rows(("a", "x")),
                                    ["test.jsonl:1: ", "'x'"]),
}  # fmt: skip
for name, (head, training, test, says) in LABELS.items():
    words = [*TRAIN, f"head={{plugin: {head}}}", "data.train=train.jsonl", "data.test="]
    files = {"train.jsonl": training}
    if test is not None:
        words[-1] += "test.jsonl"
        files["test.jsonl"] = test
    add(f"labels: {name}", Case(words, says, files))
REGRESSION = [*TRAIN, "data.train=a.jsonl", "data.test="]
A = {"a.jsonl": rows(("a", 1), ("b", 7))}
add("below the range", Case([*REGRESSION, "head={plugin: regression, range: [2, 9]}"],
                            ["a.jsonl:1: ", "range"], A))  # fmt: skip
add("above the range", Case([*REGRESSION, "head={plugin: regression, range: [0, 5]}"],
                            ["a.jsonl:2: ", "7", "range"], A))  # fmt: skip
add("not among the labels given", Case([*TRAIN, "head.labels=[neg, positive]"],
                                       ["binary.jsonl:1: ", "'pos'"]))  # fmt: skip
add("a separator for one label", Case([*TRAIN, "data.label_separator=;"],
                                      ["binary.jsonl", "multi_label"]))  # fmt: skip
for name, paths, says in [
    ("is not there", "nope.csv", ["nope.csv"]),
    ("is a folder", "runs", ["runs is a folder"]),
    ("is a glob of nothing", "*.nope", ["*.nope"]),
    ("is one of two", "[binary.jsonl, nope.jsonl]", ["nope.jsonl"]),
    ("is the home of nobody", "~nobody-of-this-name/a.csv", ["nobody-of-this-name"]),
    ("is a glob with something else in it", "b*", ["binary.yaml"]),
]:
    add(f"data that {name}", Case([*TRAIN, f"data.train={paths}"], says))
    add(f"data that {name}, dry", Case([*TRAIN, f"data.train={paths}", "name=dry", "--dry-run"],
                                       says))  # fmt: skip
add("texts for labels", Case([*TRAIN, "data.text=label", "data.label=text"],
                             ["'binary' needs two labels"]))  # fmt: skip


# Finished runs that are not.

Damage = Callable[[Path], None]


def manifest(**changes: Any) -> Damage:
    def damage(run: Path) -> None:
        path = run / "model" / "manifest.json"
        content = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not ABSENT}))

    return damage


def written(file: str, content: bytes) -> Damage:
    def damage(run: Path) -> None:
        (run / file).write_bytes(content)

    return damage


def removed(file: str) -> Damage:
    return lambda run: (run / file).unlink()


def flipped(run: Path) -> None:
    path = run / "model" / "model.keras"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def resealed(change: Callable[[bytes], bytes]) -> Damage:
    """Damage the model, and make the manifest agree."""

    def damage(run: Path) -> None:
        path = run / "model" / "model.keras"
        data = change(path.read_bytes())
        path.write_bytes(data)
        manifest(sha256={"model.keras": hashlib.sha256(data).hexdigest()})(run)

    return damage


def head_plugin(**info: Any) -> Damage:
    return manifest(plugins={"head": info})


DAMAGED: dict[str, tuple[Damage, list[str]]] = {
    "a flipped bit": (flipped, ["model.keras", "damaged"]),
    "half a model": (written("model/model.keras", b"PK"), ["model.keras"]),
    "an empty model": (written("model/model.keras", b""), ["model.keras", "damaged"]),
    "no model": (removed("model/model.keras"), ["no run folder"]),
    "no manifest": (removed("model/manifest.json"), ["no run folder"]),
    "no config": (removed("model/config.yaml"), ["config"]),
    "half a config": (written("model/config.yaml", b"name: x\n"), ["config.yaml", "data.train"]),
    "a broken config": (written("model/config.yaml", b"name: [\n"), ["config.yaml"]),
    "a binary config": (written("model/config.yaml", b"\xff\xfe"), ["config.yaml", "UTF-8"]),
    "an empty manifest": (written("model/manifest.json", b""), ["manifest.json", "damaged"]),
    "half a manifest": (written("model/manifest.json", b'{"format": 1'), ["manifest.json"]),
    "a binary manifest": (written("model/manifest.json", b"\xff\xfe"), ["manifest.json"]),
    "a list as manifest": (written("model/manifest.json", b"[]"), ["manifest.json", "damaged"]),
    "null as manifest": (written("model/manifest.json", b"null"), ["manifest.json", "damaged"]),
    "a later format": (manifest(format=2), ["format 2", "Update bertkit"]),
    "a much later format": (manifest(format=99, versions=ABSENT, plugins=3, sha256=ABSENT),
                            ["format 99", "Update bertkit"]),
    "no format": (manifest(format=ABSENT), ["manifest.json", "'format'"]),
    "a format in words": (manifest(format="one"), ["manifest.json", "damaged"]),
    "no hash": (manifest(sha256=ABSENT), ["manifest.json", "'sha256'"]),
    "no hash of the model": (manifest(sha256={}), ["manifest.json", "model.keras"]),
    "another hash": (manifest(sha256={"model.keras": "0" * 64}), ["damaged", "000000000000"]),
    "no plugins": (manifest(plugins=ABSENT), ["manifest.json", "'plugins'"]),
    "a list of plugins": (manifest(plugins=["binary"]), ["manifest.json", "damaged"]),
    "a text as plugin": (manifest(plugins={"head": "binary"}), ["manifest.json", "damaged"]),
    "an unknown kind": (manifest(plugins={"hat": {"name": "binary", "distribution": "x"}}),
                        ["manifest.json", "'hat'"]),
    "a plugin without a name": (head_plugin(distribution="x"), ["manifest.json", "'name'"]),
    "a plugin without a source": (head_plugin(name="binary"), ["manifest.json", "distribution"]),
    "a list as name": (head_plugin(name=["binary"], distribution="x"), ["manifest.json"]),
    "a plugin that is missing": (head_plugin(name="other", distribution="other-heads 1.2"),
                                 ["'other'", "other-heads 1.2"]),
    "versions in a number": (manifest(versions=3), ["manifest.json", "damaged"]),
    "a truncated zip": (resealed(lambda data: data[:-200]), ["model.keras", "cannot be loaded"]),
    "a zip of nothing": (resealed(lambda data: b"PK\x05\x06" + bytes(18)),
                         ["model.keras", "cannot be loaded"]),
    "no zip": (resealed(lambda data: b"no zip"), ["model.keras", "cannot be loaded"]),
}  # fmt: skip
for name, (_, says) in DAMAGED.items():
    run = f"damaged/{name.replace(' ', '_')}"
    add(f"predict by {name}", Case(["predict", run, "binary.jsonl"], says))
    add(f"predict into a file by {name}", Case(["predict", run, "binary.jsonl", "-o", "out"], says))
    add(f"evaluate by {name}", Case(["evaluate", run], says))
for name, run, says in [
    ("not there", "nope", ["nope", "does not exist"]),
    ("a file", "binary.jsonl", ["binary.jsonl", "is a file"]),
    ("a folder of runs", "runs", ["runs", "earlier"]),
    ("a folder of something else", "damaged", ["damaged"]),
    ("below a file", "binary.jsonl/model", ["binary.jsonl/model"]),
    ("longer than a path may be", "x" * 300, ["x" * 300]),
]:
    add(f"predict by a run that is {name}", Case(["predict", run, "binary.jsonl"], says))
    add(f"evaluate a run that is {name}", Case(["evaluate", run, "--json"], says))


# Input of a run that is right.

PREDICT = ["predict", EARLIER]
INPUTS: dict[str, tuple[list[str], bytes, list[str]]] = {
    "nothing": ([], b"", ["standard input", "no rows"]),
    "an empty line": ([], b"good\n\nbad\n", ["standard input", "2", "empty"]),
    "a blank line": ([], b"good\n   \t \n", ["standard input", "2", "empty"]),
    "UTF-16": ([], "good\n".encode("utf-16"), ["standard input:1", "UTF-16"]),
    "Latin-1": ([], b"caf\xe9\n", ["standard input:1", "0xe9"]),
    "NUL": ([], b"a\0b\n", ["standard input:1", "NUL"]),
    "bytes of a program": ([], b"\x7fELF\x02\x01\x01\0\0\n", ["standard input:1"]),
    "CSV without the column": (["--format", "csv"], b"txt\ngood\n", ["'text'", "'txt'"]),
    "CSV without rows": (["--format", "csv"], b"text\n", ["no rows"]),
    "CSV without anything": (["--format", "csv"], b"", ["standard input is empty"]),
    "an empty cell": (["--format", "csv"], b'text\ngood\n""\n', ["standard input", "3"]),
    "TSV with too many fields": (["--format", "tsv"], b"text\ngood\tbad\n", ["standard input:2"]),
    "no JSON": (["--format", "jsonl"], b"good\n", ["standard input:1", "not JSON"]),
    "JSON without text": (["--format", "jsonl"], b'{"txt": "a"}\n', ["'text'", "'txt'"]),
    "JSON with a number": (["--format", "jsonl"], b'{"text": 3}\n', ["'text'", "3"]),
    "JSON with null": (["--format", "jsonl"], b'{"text": null}\n', ["standard input:1: ", "empty"]),
    "half a surrogate pair": (["--format", "jsonl"], b'{"text": "\\ud83d"}\n', ["surrogate"]),
    "Parquet": (["--format", "parquet"], GOOD_PARQUET, ["Parquet", "standard input"]),
}
for name, (options, stdin, says) in INPUTS.items():
    add(f"predict from {name}", Case([*PREDICT, *options], says, {}, stdin))
    add(
        f"predict into a file from {name}", Case([*PREDICT, "-o", "out", *options], says, {}, stdin)
    )
for name, words, says, files in [
    ("a file that is not there", [*PREDICT, "nope.csv"], ["nope.csv"], {}),
    ("a folder", [*PREDICT, "runs"], ["runs is a folder"], {}),
    ("a glob of nothing", [*PREDICT, "*.nope"], ["*.nope"], {}),
    ("a config", [*PREDICT, "binary.yaml"], ["binary.yaml", "'.yaml'"], {}),
    ("a model", [*PREDICT, f"{EARLIER}/model/model.keras"], ["model.keras", "'.keras'"], {}),
    ("a program", [*PREDICT, "a.txt"], ["a.txt:1"], {"a.txt": bytes(range(256))}),
    ("a broken last row", [*PREDICT, "a.jsonl", "-o", "out"], ["a.jsonl:101"],
     {"a.jsonl": b'{"text": "good"}\n' * 100 + b"{"}),
    ("half a Parquet", [*PREDICT, "a.parquet"], ["a.parquet"], {"a.parquet": GOOD_PARQUET[:50]}),
    ("CSV said to be JSONL", [*PREDICT, "a.csv", "--format", "jsonl"], ["a.csv:1", "not JSON"],
     {"a.csv": b"text\ngood\n"}),
]:  # fmt: skip
    add(f"predict from {name}", Case(words, says, files))
for name, words, says in [
    ("a format that is none", [*PREDICT, "--format", "xml"], ["--format", "xml"]),
    ("a batch size of zero", [*PREDICT, "--batch-size", "0"], ["--batch-size"]),
    ("a batch size in words", [*PREDICT, "--batch-size", "many"], ["--batch-size"]),
    ("an option that is none", [*PREDICT, "--frmat", "csv"], ["--frmat"]),
    ("an option without its value", [*PREDICT, "-o"], ["-o"]),
    ("too many inputs", [*PREDICT, "a.csv", "b.csv"], ["b.csv"]),
    ("no run", ["predict"], ["RUN"]),
    ("no run to evaluate", ["evaluate"], ["RUN"]),
    ("a run too many", ["evaluate", EARLIER, "other"], ["other"]),
    ("no config to train", ["train"], ["CONFIG"]),
    ("an option of another command", ["train", "binary.yaml", "--json"], ["--json"]),
    ("a command that is none", ["trian", "binary.yaml"], ["trian"]),
    ("an argument of doctor", ["doctor", "x"], ["x"]),
    ("an option of plugins", ["plugins", "--jsn"], ["--jsn"]),
    ("output into a folder", [*PREDICT, "binary.jsonl", "-o", "runs"], ["runs"]),
    ("output over a device", [*PREDICT, "binary.jsonl", "-o", "/dev/null"], ["/dev/null"]),
    ("output below a file", [*PREDICT, "binary.jsonl", "-o", "vocab.txt/out"], ["vocab.txt/out"]),
    ("output below a device", [*PREDICT, "binary.jsonl", "-o", "/dev/null/out"],
     ["/dev/null/out"]),
    ("output of too long a name", [*PREDICT, "binary.jsonl", "-o", "x" * 255], ["x" * 255]),
    ("output with an empty name", [*PREDICT, "binary.jsonl", "-o", ""], ["no file"]),
    ("a run over a file", [*TRAIN, "output_dir=vocab.txt"], ["vocab.txt", "exists"]),
    ("a run over a file, overwriting", [*TRAIN, "output_dir=vocab.txt", "--overwrite"],
     ["vocab.txt", "no run folder"]),
    ("a run over a run", [*TRAIN, f"output_dir={EARLIER}"], [EARLIER, "--overwrite"]),
    ("a run over a run, dry", [*TRAIN, f"output_dir={EARLIER}", "--dry-run"],
     [EARLIER, "--overwrite"]),
    ("a run over a folder", [*TRAIN, "output_dir=other", "--overwrite"],
     ["other", "no run folder"]),
    ("a run over a folder with a config", [*TRAIN, "output_dir=project", "--overwrite"],
     ["project", "no run folder"]),
    ("a run over this folder", [*TRAIN, "output_dir=.", "--overwrite"], ["no run folder"]),
    ("a run over the folder above", [*TRAIN, "output_dir=..", "--overwrite"], ["no run folder"]),
    ("a run over everything", [*TRAIN, "output_dir=/", "--overwrite"], ["/", "no run folder"]),
    ("a run below a file", [*TRAIN, "output_dir=vocab.txt/run"], ["vocab.txt/run"]),
    ("a run below a device", [*TRAIN, "output_dir=/dev/null/run"], ["/dev/null/run"]),
    ("a run of too long a name", [*TRAIN, f"output_dir={'x' * 300}"], ["x" * 200]),
]:  # fmt: skip
    add(name, Case(words, says))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with data, configs, a finished run and damaged copies of it."""
    from bertkit import experiment
    from bertkit.config import load_config

    folder = write_tiny_data(tmp_path_factory.mktemp("malformed"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        experiment.run(load_config(["binary.yaml"], ["output_dir=runs/earlier"]), verbose=0)
    for name, (damage, _) in DAMAGED.items():
        copy = folder / "damaged" / name.replace(" ", "_")
        shutil.copytree(folder / EARLIER, copy)
        damage(copy)
    (folder / "other").mkdir()
    (folder / "other" / "precious.txt").write_text("precious")
    (folder / "project").mkdir()
    (folder / "project" / "precious.txt").write_text("precious")
    shutil.copy(folder / "binary.yaml", folder / "project" / "config.yaml")
    yield folder


@pytest.fixture(scope="module")
def before(place: Path) -> dict[str, str]:
    return snapshot(place)


@pytest.fixture
def bertkit(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> CommandLine:
    monkeypatch.chdir(place)
    return CommandLine(monkeypatch, capfd)


def test_there_are_enough_cases() -> None:
    distinct = {(tuple(case.words), *case.files.items(), case.stdin) for case in CASES.values()}
    assert len(distinct) == len(CASES) >= 400


@pytest.mark.parametrize("name", CASES)
def test_a_cause_and_a_fix(
    bertkit: CommandLine, place: Path, before: dict[str, str], name: str
) -> None:
    case = CASES[name]
    for file, content in case.files.items():
        (place / file).write_bytes(content)
    done = bertkit(*case.words, stdin=case.stdin)
    for file in case.files:
        (place / file).unlink()
    check(done.code, done.err, case)
    if "bad_batch.npz" in done.err:  # the one mistake that leaves something, for a look
        left = place / "runs" / "binary.unfinished"
        assert (left / "bad_batch.npz").is_file() and (left / "bad_batch.json").is_file()
        shutil.rmtree(left)
    assert snapshot(place) == before


def check(code: int, err: str, case: Case) -> None:
    """Check what a command that cannot succeed ended with."""
    assert code == 2, err
    assert "Traceback" not in err
    if err.startswith("Usage: "):  # how the command is called is shown first
        err = err.partition("\n\n")[2]
    assert err.startswith("Error: ") and err.endswith("\n"), err
    lines = err.removeprefix("Error: ").removesuffix("\n").split("\n")
    assert all(line.strip() and line.splitlines() == [line] for line in lines), err
    assert len(lines) == 1 or all("expected" in line for line in lines), err  # of a config
    for words in case.says:
        assert words in err, (words, err)


REAL = ["train on too many fields", "predict by a flipped bit", "misspelt training.lr"]


def test_as_processes(place: Path) -> None:
    """What a user sees: nothing but the error, TensorFlow's chatter included."""
    folder = place / "processes"
    folder.mkdir()
    for name in ("vocab.txt", "binary.jsonl", "binary.yaml"):
        shutil.copy(place / name, folder)
    for name in ("runs", "damaged"):
        shutil.copytree(place / name, folder / name)
    for name in REAL:
        for file, content in CASES[name].files.items():
            (folder / file).write_bytes(content)
    before = snapshot(folder)

    def run(name: str) -> subprocess.CompletedProcess[bytes]:
        command = [str(Path(sys.executable).with_name("bertkit")), *CASES[name].words]
        return subprocess.run(command, cwd=folder, capture_output=True, input=CASES[name].stdin)

    with ThreadPoolExecutor(2) as pool:
        for name, done in zip(REAL, pool.map(run, REAL), strict=True):
            check(done.returncode, done.stderr.decode(), CASES[name])
            assert not done.stdout or CASES[name].words[0] == "train"
    assert snapshot(folder) == before
    shutil.rmtree(folder)
