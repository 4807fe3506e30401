"""Configs: loading, merging, checking, and the words for every mistake."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pydantic import Field

from bertkit.arguments import arguments_of, convert, describe
from bertkit.config import (
    ExperimentConfig,
    PluginConfig,
    config_from_mapping,
    load_config,
    to_yaml,
)
from bertkit.errors import ConfigError
from bertkit.registry import Registry, encoders, heads, preprocessors
from bertkit.sections import DataConfig, LoraConfig, ParameterGroupConfig, TrainingConfig

if TYPE_CHECKING:
    from decimal import Decimal  # so that an annotation cannot be evaluated


def toy_encoder(source: str, layers: int | None = None, *, folder: Path | None = None) -> None:
    """An encoder made by a function."""


class ToySingle:
    text_columns = 1

    def __init__(self, sequence_length: int = 128) -> None: ...


class ToyPair:
    text_columns = 2

    def __init__(self, sequence_length: int = 128) -> None: ...


class ToyHead:
    """A head with an argument of every kind.

    Args:
        labels: the labels,
            in the order of their ids.
        dropout (float): rate on the features.
    """

    def __init__(
        self,
        labels: list[str | int] | None = None,
        dropout: float = 0.1,
        hidden: int = 8,
        pooled: bool = True,
        mode: Literal["fast", "exact"] = "fast",
        range: tuple[float, float] = (-1.0, 1.0),
        class_weight: dict[str, float] | None = None,
        names: list[str] | None = None,
        thresholds: dict[int, float] | None = None,
        folder: Path | None = None,
        rate: Annotated[float, Field(ge=0, le=1)] = 0.5,
        flags: list[str | int | bool] | None = None,
        anything=None,  # type: ignore[no-untyped-def]
        hidden_type: Decimal | None = None,
        **kwargs: Any,
    ) -> None: ...


class ToyOther:
    def __init__(self, size: int, hidden: int = 8) -> None: ...


TOYS: list[tuple[Registry[Any], str, Any]] = [
    (encoders, "toy_encoder", toy_encoder),
    (preprocessors, "toy_single", ToySingle),
    (preprocessors, "toy_pair", ToyPair),
    (heads, "toy_head", ToyHead),
    (heads, "toy_other", ToyOther),
]


@pytest.fixture(autouse=True, scope="module")
def plugins() -> Iterator[None]:
    for registry, name, plugin in TOYS:
        registry.register(name)(plugin)
    yield
    for registry, name, _ in TOYS:
        registry._decorated.pop(name)


BASE: dict[str, Any] = {
    "name": "films",
    "data": {"train": "train.csv", "label": "label", "text": "text"},
    "encoder": {"plugin": "toy_encoder", "source": "folder"},
    "preprocessor": {"plugin": "toy_single", "sequence_length": 64},
    "head": {"plugin": "toy_head"},
}


def changed(path: str, value: Any, base: dict[str, Any] = BASE) -> dict[str, Any]:
    tree = copy.deepcopy(base)
    node = tree
    *parents, last = path.split(".")
    for key in parents:
        node = node.setdefault(key, {})
    node[last] = value
    return tree


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(call: Any, *args: Any) -> list[str]:
    """Return the lines of the ConfigError that a call must raise."""
    with pytest.raises(ConfigError) as caught:
        call(*args)
    assert type(caught.value) is ConfigError
    lines = str(caught.value).split("\n")
    for line in lines:
        assert line.splitlines() == [line] and line.isprintable(), line
        assert "Traceback" not in line
        assert "pydantic" not in line.lower() and "omegaconf" not in line.lower(), line
        assert "expected" in line, line
    return lines


# Loading


def test_the_whole_config(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "film.yaml",
        """
name: film-sentiment
seed: 7
data: {train: [a.csv, "b/*.csv"], validation: 0.1, test: test.csv, text: text, label: label}
encoder: {plugin: toy_encoder, source: "package:somewhere/model"}
preprocessor: {plugin: toy_single, sequence_length: 128}
head: {plugin: toy_head, labels: [neg, pos], range: [0, 1], thresholds: {0: 1}, folder: a/b}
training: {epochs: 2, learning_rate: 5e-5, warmup: 0, schedule: cosine, precision: mixed_bfloat16}
output_dir: runs/${name}-${seed}
""",
    )
    config = load_config([path])
    head = {"labels": ["neg", "pos"], "range": (0.0, 1.0), "thresholds": {0: 1.0}}
    assert config == ExperimentConfig(
        name="film-sentiment",
        data=DataConfig(["a.csv", "b/*.csv"], "label", "text", validation=0.1, test="test.csv"),
        encoder=PluginConfig("toy_encoder", {"source": "package:somewhere/model"}),
        preprocessor=PluginConfig("toy_single", {"sequence_length": 128}),
        head=PluginConfig("toy_head", {**head, "folder": Path("a/b")}),
        training=TrainingConfig(2, 32, 5e-5, 0.0, "cosine", precision="mixed_bfloat16"),
        output_dir="runs/film-sentiment-7",
        seed=7,
    )
    assert isinstance(config.training.learning_rate, float)
    assert isinstance(config.training.warmup, float)
    assert isinstance(config.head.arguments["range"], tuple)


def test_defaults() -> None:
    config = config_from_mapping(BASE)
    assert config.training == TrainingConfig()
    assert (config.output_dir, config.seed) == ("runs/films", 0)
    assert config.data.validation is None
    assert config.head.arguments == {}
    assert "null" not in to_yaml(config)
    assert config == ExperimentConfig(
        "films", config.data, config.encoder, config.preprocessor, config.head
    )


@pytest.mark.parametrize("section", ["training", "data"])
def test_an_empty_section_sets_nothing(tmp_path: Path, section: str) -> None:
    lower = write(tmp_path, "lower.yaml", BASE)
    upper = write(tmp_path, "upper.yaml", f"{section}:\n  # epochs: 3\n")
    if section == "training":
        assert load_config([lower, upper]) == load_config([lower])
    else:
        assert len(mistakes(load_config, [lower, upper])) == 3  # null replaces what was there


def test_python_values() -> None:
    tree = changed("data.train", (Path("a.csv"), "b.csv"))
    assert config_from_mapping(tree).data.train == ["a.csv", "b.csv"]
    assert mistakes(config_from_mapping, 3) and mistakes(config_from_mapping, None)


def test_one_path_is_a_path(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", BASE)
    assert load_config(str(path)) == load_config(path) == load_config([path])  # type: ignore[arg-type]


def test_importing_is_light() -> None:
    code = "import bertkit.config, sys; print([m for m in sys.modules if m.split('.')[0] in HEAVY])"
    heavy = "HEAVY = ('tensorflow', 'keras', 'numpy', 'sklearn', 'pyarrow', 'pandas'); "
    run = subprocess.run([sys.executable, "-c", heavy + code], capture_output=True, text=True)
    assert (run.stdout.strip(), run.returncode) == ("[]", 0), run.stderr


# Merging


def test_later_files_and_overrides_win_key_by_key(tmp_path: Path) -> None:
    lower = write(tmp_path, "lower.yaml", changed("head.labels", ["a", "b", "c"]))
    upper = write(tmp_path, "upper.yaml", "training: {epochs: 5}\nhead: {labels: [x]}\nseed: 1")
    config = load_config([lower, upper], ["training.batch_size=8", "seed=2", "seed=3"])
    assert config.head == PluginConfig("toy_head", {"labels": ["x"]})  # lists are replaced
    assert config.training == TrainingConfig(epochs=5, batch_size=8)
    assert (config.name, config.seed) == ("films", 3)
    assert load_config([upper, lower]).head.arguments == {"labels": ["a", "b", "c"]}


def test_a_batch_has_so_many_rows_or_so_many_tokens(tmp_path: Path) -> None:
    file = write(tmp_path, "a.yaml", changed("training", {"batch_size": 8}))
    (line,) = mistakes(load_config, [file], ["training.batch_tokens=512"])
    assert line == (
        "command line: training.batch_tokens = 512: expected this or batch_size, not both; "
        "null takes one back"
    )
    config = load_config([file], ["training.batch_tokens=512", "training.batch_size=null"])
    assert config.training == TrainingConfig(batch_tokens=512)
    assert (config.training.batch_size, config.training.batch_tokens) == (None, 512)
    (tmp_path / "b.yaml").write_text(to_yaml(config))
    assert load_config([tmp_path / "b.yaml"]) == config
    assert "batch_size: 32" in to_yaml(config_from_mapping(BASE))


def test_merging_without_plugins_is_that_of_omegaconf(tmp_path: Path) -> None:
    layers = [changed("seed", 3), {"training": {"epochs": 2}}, {"data": {"text": "t"}, "seed": 4}]
    paths = [write(tmp_path, f"{index}.yaml", layer) for index, layer in enumerate(layers)]
    reference = OmegaConf.merge(*(OmegaConf.load(path) for path in paths))
    assert load_config(paths) == config_from_mapping(OmegaConf.to_container(reference))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layers", "overrides", "expected"),
    [
        (["{plugin: toy_other, size: 2}"], [], {"size": 2}),
        (["{plugin: toy_head, hidden: 4}"], [], {"hidden": 4, "labels": ["a"]}),
        (["{hidden: 4}"], [], {"hidden": 4, "labels": ["a"]}),
        ([], ["head.plugin=toy_other", "head.size=2"], {"size": 2}),
        ([], ["head.size=2", "head.plugin=toy_other"], {"size": 2}),
        ([], ["head={plugin: toy_other, size: 2}"], {"size": 2}),
        ([], ["head.plugin=toy_head", "head.hidden=4"], {"hidden": 4, "labels": ["a"]}),
        (["{plugin: toy_other, size: 2}", "{plugin: toy_head}"], [], {}),
        (["{plugin: toy_other, size: 2}", "{hidden: 1}"], [], {"size": 2, "hidden": 1}),
    ],
)
def test_a_new_plugin_drops_the_arguments_of_the_old(
    tmp_path: Path, layers: list[str], overrides: list[str], expected: dict[str, Any]
) -> None:
    paths = [write(tmp_path, "base.yaml", changed("head.labels", ["a"]))]
    for index, layer in enumerate(layers):
        paths.append(write(tmp_path, f"{index}.yaml", f"head: {layer}"))
    assert load_config(paths, overrides).head.arguments == expected


def test_arguments_may_come_before_the_plugin(tmp_path: Path) -> None:
    lower = write(tmp_path, "lower.yaml", changed("head", {"hidden": 3}))
    upper = write(tmp_path, "upper.yaml", "head: {plugin: toy_head}")
    assert load_config([lower, upper]).head == PluginConfig("toy_head", {"hidden": 3})


@pytest.mark.parametrize(
    ("override", "path", "expected"),
    [
        ("head.labels=[a,b]", "head.labels", ["a", "b"]),
        ("head.labels=[a, 'no', 3]", "head.labels", ["a", "no", 3]),
        ("head.labels=", "head.labels", None),
        ("head.labels=null", "head.labels", None),
        ("data.train=a=b.csv", "data.train", "a=b.csv"),
        ("data.train=a, b", "data.train", "a, b"),
        ('data.label_separator="|"', "data.label_separator", "|"),
        ("data.label_separator=;", "data.label_separator", ";"),
        ("training.learning_rate=5e-5", "training.learning_rate", 5e-5),
        ("training.learning_rate=1", "training.learning_rate", 1.0),
        ("encoder.source=package:a/b", "encoder.source", "package:a/b"),
        (" encoder.source = x ", "encoder.source", "x"),
        ("head.class_weight={a: 2, 'no': 3}", "head.class_weight", {"a": 2.0, "no": 3.0}),
        ("head.class_weight.a=2", "head.class_weight", {"a": 2.0}),
        ("head.anything=[1, {a: no}]", "head.anything", [1, {"a": False}]),
        ("head.anything=''", "head.anything", ""),
        ("output_dir=runs/${name}/${seed}", "output_dir", "runs/films/0"),
        (r"output_dir=\${name}", "output_dir", "${name}"),
        ("name=Süße Filme 2.1", "name", "Süße Filme 2.1"),
    ],
)
def test_override(tmp_path: Path, override: str, path: str, expected: Any) -> None:
    config: Any = load_config([write(tmp_path, "a.yaml", BASE)], [override])
    for key in path.split("."):
        config = config.arguments if isinstance(config, PluginConfig) else config
        config = config[key] if isinstance(config, dict) else getattr(config, key)
    assert config == expected and type(config) is type(expected)


# Interpolation


def test_interpolations_take_environment_and_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BERTKIT_TEST_DATA", "/d/${name}")
    path = write(
        tmp_path,
        "a.yaml",
        changed("data.train", ["${oc.env:BERTKIT_TEST_DATA}/a", "${oc.env:BERTKIT_TEST_NO,x}/b"]),
    )
    config = load_config([path], ["seed=${training.epochs}", "data.test=${.text}.csv"])
    assert config.data.train == ["/d/${name}/a", "x/b"]  # what the environment says is only text
    assert (config.seed, config.data.test) == (3, "text.csv")
    assert load_config([write(tmp_path, "b.yaml", to_yaml(config))]) == config


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        (["output_dir=${nme}"], "output_dir", "there is no key 'nme'"),
        (["output_dir=${nme}"], "output_dir", "did you mean 'name'"),
        (["output_dir=${training.epoch}"], "output_dir", "did you mean 'training.epochs'"),
        (["seed=${seed}"], "seed", "refers to itself"),
        (["name=${data.label}", "data.label=${name}"], "name", "refers to itself"),
        (["head.anything={a: '${head.anything}'}"], "head.anything", "refers to itself"),
        (["head.anything=['${head.anything}', '${head.anything}']"], "head", "refers to itself"),
        (["training='${training}'"], "training", "refers to itself"),
        (["data.train=${oc.env:BERTKIT_NOT_SET}"], "data.train", "'BERTKIT_NOT_SET' is not set"),
        (["encoder.source=???"], "encoder.source", "placeholder ???"),
        (["head.anything=[1, '???']"], "head.anything", "placeholder ???"),
    ],
)
def test_interpolation_that_cannot_be(
    tmp_path: Path, overrides: list[str], key: str, words: str
) -> None:
    lines = mistakes(load_config, [write(tmp_path, "a.yaml", BASE)], overrides)
    assert any(f"command line: {key}" in line and words in line for line in lines), lines


@pytest.mark.parametrize(
    "text",
    [
        "${bertkit_probe:1}",
        "${oc.decode:'1'}",
        "${oc.create:{a:1}}",
        "a${oc.select:name}",
        "${${name}:1}",
        "${oc.env:${name}}",
        "${oc.env:HOME,${bertkit_probe:1}}",
        "${",
        "${}",
        "${a",
        r"\\${bertkit_probe:1}",
        "${name}${bertkit_probe:}",
    ],
)
def test_no_resolver_is_called(tmp_path: Path, text: str) -> None:
    calls: list[Any] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it has a new name from OmegaConf 2.4 on
        OmegaConf.register_new_resolver("bertkit_probe", lambda *args: calls.append(args))
    try:
        tree = changed("head.anything", {"inner": [text]})
        tree["output_dir"] = "${head.anything.inner}"
        lines = mistakes(config_from_mapping, tree)
    finally:
        OmegaConf.clear_resolver("bertkit_probe")
    assert not calls
    assert "head.anything.inner.0" in lines[0] and "${oc.env:NAME}" in lines[0]


# Mistakes

NOT_TEXT = [3, True, 1.5, [], {"a": 1}]
WRONG: dict[str, list[Any]] = {
    "name": [None, *NOT_TEXT, "", "a/b", "a\\b", ".", "..", "a:b", " a", "a ", "a.", "x" * 101],
    "seed": [None, "0", True, 1.5, -1, 2**32, 2**70, [0], {"a": 0}],
    "output_dir": [None, *NOT_TEXT, ""],
    "data": [3, "x", True, 1.5, [], [1]],
    "encoder": [3, "x", True, 1.5, [], ["plugin"]],
    "preprocessor": [3, "toy_single", False, [], [1]],
    "head": [3, "toy_head", True, 1.5, [], ["toy_head"]],
    "training": [3, "x", True, 1.5, [], [1]],
    "data.train": [None, 3, True, 1.5, [], "", [""], [1], ["a", None], {"a": 1}, [["a"]]],
    "data.label": [None, *NOT_TEXT, "", ["a"]],
    "data.text": [None, 3, True, [], "", ["a", "b", "c"], [1], {"a": "b"}, ["a", False]],
    "data.validation": [0, 1, 1.0, 0.0, -0.1, 2.5, True, [], "", [0.1], {"a": 1}],
    "data.test": [0, 1, True, [], "", [3], {"a": 1}],
    "data.label_separator": [3, True, "", ["|"], {"a": "|"}, {}],
    "data.tasks": [3, True, "a", ["a"], {"a": "b"}, {1: {}}, {"a": [{}]}],
    "data.temperature": [None, 0, -1, "2", True, [1], 2, [1.0, 5.0], [1, 0], [1, "2"]],
    "data.cache": [3, True, "", ["tokens"], {}],
    "encoder.plugin": [None, 3, True, [], {}, "", "nope", "toy_encodr"],
    "preprocessor.plugin": [None, 3, True, ["toy_single"], "nope", "toy_singel"],
    "head.plugin": [None, 3, False, {}, "nope", "toy-head", "toy_encoder"],
    "encoder.source": [None, 3, True, ["x"], {"a": "b"}],
    "encoder.layers": ["6", 6.5, True, [6]],
    "encoder.folder": [3, True, ["x"], {"a": "b"}],
    "preprocessor.sequence_length": [None, "128", 128.0, True, [128]],
    "head.labels": [[True, False], ["a", True], ["a", None], ["a", 1.5], "a", 3, {"a": "b"}],
    "head.flags": [[True, False], ["a", True], [["a"]], "a"],
    "head.dropout": [None, "0.1", True, [0.1], "high"],
    "head.hidden": [None, "8", 8.0, 8.5, True, float(2**53), 2**64],
    "head.pooled": [None, 0, 1, "true", "yes", [True]],
    "head.mode": [None, "slow", "fats", True, 1, ["fast"]],
    "head.range": [None, 1.0, [1.0], [1, 2, 3], ["a", "b"], [True, False], "0, 1"],
    "head.class_weight": [{"a": "1"}, {"a": True}, {1: 1.0}, ["a"], 3, {"a": None}],
    "head.names": [[1], [True], "a", [["a"]], {"a": "b"}],
    "head.thresholds": [{0: "a"}, {"a": 1.0}, [1.0], 0.5],
    "head.rate": [-0.1, 1.1, 2, "0.5", True],
    "head.anything": [{False: 1}, 2**64, float("nan"), float("inf")],
    "training.head_epochs": [None, -1, 1.0, "3", True, [3]],
    "training.head_learning_rate": [None, 0, -1e-5, "0.003", True, [1.0], float("nan")],
    "training.epochs": [None, 0, -1, 1.0, 1.5, "3", True, [3], {"a": 3}],
    "training.batch_size": [0, -8, 32.0, "32", False, [32]],
    "training.batch_tokens": [0, -8, 1024.0, "1024", False, [1024]],
    "training.checkpoint_minutes": [None, -1, "5", True, [5], float("nan"), float("inf")],
    "training.micro_batch_size": [0, -8, 32.0, "32", False, [32]],
    "training.learning_rate": [None, 0, 0.0, -1e-5, "0.00005", True, [1.0], float("nan")],
    "training.warmup_steps": [-1, 1.0, "10", True, [10]],
    "training.warmup": [-0.1, 1.1, 10, "0.1", True, [0.1]],
    "training.schedule": [None, "linaer", "Linear", "", 1, True, ["linear"]],
    "training.layer_decay": [None, 0.0, 1.1, "0.9", [0.9]],
    "training.weight_decay": [None, -0.01, "0.01", False, [0.1], float("-inf")],
    "training.precision": [None, "float16", "mixed_float61", 16, True, ["float32"]],
    "training.early_stopping": ["val_loss", True, 2, ["val_loss"]],
    "training.restore_best": ["", 1, True, ["val_loss"]],
    "training.max_steps": [0, -1, 1.0, "10", True, [10]],
    "training.max_minutes": [0, -1.0, "1", True, [1.0], float("inf")],
    "training.loggers": [None, "mlflow", ["mlflw"], [1], True],
    "training.callbacks": ["a.B", ["a.B"], {"callback": "a.B"}, True],
    "training.on_divergence": [None, "halt", True, ["stop"]],
    "training.max_gradient_norm": [0, -1.0, "1", True, [1.0], float("inf")],
    "training.clip_norm": [0, -1.0, "1", True, [1.0], float("inf")],
    "training.ema": [0, 1, 1.0, -0.1, "0.9", True, [0.9]],
    "training.lora": [8, "qkv", True, [8], []],
    "training.unfreeze": [0, -1, 1.0, "1", True, [1]],
    "training.parameter_groups": [3, "head", True, {"match": "head"}, [3], ["head"], [[]]],
}
TABLE = [(path, value) for path, values in WRONG.items() for value in values]


def test_the_table_is_large_and_distinct() -> None:
    assert len({(path, repr(value)) for path, value in TABLE}) == len(TABLE) >= 200
    leaves = {path for path in WRONG if "." in path}
    for section, schema in (("data", DataConfig), ("training", TrainingConfig)):
        assert {f"{section}.{field.name}" for field in dataclasses.fields(schema)} <= leaves


@pytest.mark.parametrize(("path", "value"), TABLE, ids=[f"{p}={v!r:.20}" for p, v in TABLE])
def test_wrong_value(tmp_path: Path, path: str, value: Any) -> None:
    file = write(tmp_path, "wrong.yaml", changed(path, value))
    lines = mistakes(load_config, [file])
    assert len(lines) == 1, lines
    place = f"{file}: {path}"
    if value is None and path.endswith((".plugin",)):
        assert lines[0].startswith(place)
    else:
        assert lines[0].startswith((f"{place} = ", f"{place}.", f"{place}: ")), lines
    shown = json.dumps(value, ensure_ascii=False)
    if isinstance(value, (bool, str, list)) and len(shown) <= 60:
        assert f" = {shown}: " in lines[0]
    # The same from the command line, over a file that is right.
    right = write(tmp_path, "right.yaml", BASE)
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n")
    override = f"{path}={text.strip()}"
    (line,) = mistakes(load_config, [right], [override])
    assert line.replace("command line", str(file)) == lines[0]
    # And from Python.
    (line,) = mistakes(config_from_mapping, changed(path, value))
    assert line == lines[0].replace(str(file), "config", 1)


@pytest.mark.parametrize(
    "path",
    ["name", "data.train", "data.label", "data.text", "encoder.source"]
    + [f"{section}.plugin" for section in ("encoder", "preprocessor", "head")]
    + ["data", "encoder", "preprocessor", "head"],
)
def test_missing(path: str) -> None:
    tree = copy.deepcopy(BASE)
    *parents, last = path.split(".")
    del (tree[parents[0]] if parents else tree)[last]
    lines = mistakes(config_from_mapping, tree)
    assert len(lines) == (3 if path == "data" else 1)
    for line in lines:
        assert line.startswith(f"config: {path}") and ": missing, expected " in line
    if path.split(".")[0] in ("encoder", "preprocessor", "head") and path != "encoder.source":
        names = [n for r, n, _ in TOYS if r.kind == path.split(".")[0]]
        assert all(name in lines[0] for name in names)


def _keys() -> Iterator[tuple[str, list[str]]]:
    yield "", [field.name for field in dataclasses.fields(ExperimentConfig)]
    yield "data", [field.name for field in dataclasses.fields(DataConfig)]
    yield "training", [field.name for field in dataclasses.fields(TrainingConfig)]
    yield "encoder", ["source", "layers", "folder"]
    yield "preprocessor", ["sequence_length"]
    yield "head", [argument.name for argument in arguments_of(ToyHead)]


def _misspelt() -> Iterator[tuple[str, str, str]]:
    for section, keys in _keys():
        for key in keys:
            for wrong in (key + "s" if key[-1] != "s" else key + "x", key.upper(), "x" + key):
                if wrong not in keys:
                    yield section, wrong, key


@pytest.mark.parametrize(("section", "wrong", "key"), list(_misspelt()))
def test_misspelt_key(tmp_path: Path, section: str, wrong: str, key: str) -> None:
    path = f"{section}.{wrong}" if section else wrong
    file = write(tmp_path, "wrong.yaml", changed(path, "x"))
    (line,) = mistakes(load_config, [file])
    assert line.startswith(f'{file}: {path} = "x": unknown key, expected one of ')
    assert f"; did you mean '{key}'?" in line
    right = write(tmp_path, "right.yaml", BASE)
    (other,) = mistakes(load_config, [right], [f"{path}=x"])
    assert other == line.replace(str(file), "command line")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("epochs", "did you mean 'training.epochs'"),
        ("label", "did you mean 'data.label'"),
        ("training.seed", "did you mean 'seed'"),
        ("data.batch_size", "did you mean 'training.batch_size'"),
        ("--epochs", "expected one of name, data"),
        ("name.x", "expected text"),
        ("seed.x", "expected a whole number at least 0"),
        ("head.kwargs", "unknown key"),
        ("head.self", "unknown key"),
        ("training.epochs.x", "expected a whole number"),
        ("data.text.0", "expected text or a list of 1 or 2 texts"),
        ("", "has an empty key"),
        ("data..text", "has an empty key"),
        (".name", "has an empty key"),
    ],
)
def test_override_of_a_key_that_is_not_there(tmp_path: Path, path: str, words: str) -> None:
    (line,) = mistakes(load_config, [write(tmp_path, "a.yaml", BASE)], [f"{path}=3"])
    assert line.startswith("command line: ") and words in line
    assert "'" + path + "=3'" in line or path.rpartition(".")[0] in line


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.epochs", "write training.epochs=VALUE"),
        ("", "write key=VALUE"),
        ("data.label_separator=|", "quote the value for the shell and for YAML"),
        ("data.label_separator=*", "'data.label_separator=\"*\"'"),
        ("head.labels=[a", "'head.labels=[a'"),
        ("name=a: b: c", "line 1"),
        ("name=!x y", "quote the value"),
        ("name=!!python/object/apply:os.getcwd []", "quote the value"),
        ("head.anything={a: 2, a: 3}", "duplicate key"),
    ],
)
def test_override_that_cannot_be_read(tmp_path: Path, override: str, words: str) -> None:
    (line,) = mistakes(load_config, [write(tmp_path, "a.yaml", BASE)], [override])
    assert line.startswith("command line: ") and words in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [a\nseed: 3\n", "line 2"),
        ("name: a\n\tseed: 3\n", "line 2, column 1"),
        ("name: a\nname: b\n", "duplicate key"),
        ("name: a: b\n", "line 1, column 8"),
        ("name: 'a\n", "line 2"),
        ("- name\n", "expected a mapping of keys to values, found a list"),
        ("3\n", "found a single value"),
        ("name: !!python/object/apply:os.getcwd []\n", "line 1"),
        ("name: !unknown x\n", "line 1"),
        ("name: !!int x\n", "expected YAML"),
        ("name: !!bool x\n", "expected YAML"),
        ("name: !!set {a}\n", "expected"),
        ("? [a]\n: b\n", "unhashable key"),
        ("null: 3\n", "expected"),
        ("name: &x [*x]\n", "recursive"),
        ("a: b\n---\nc: d\n", "line 2"),
        ("name: " + "[" * 2000 + "]" * 2000, "nested too deeply"),
        ("name: \x01", "expected YAML"),
        ("seed: " + "9" * 5000, "expected YAML"),
    ],
)
def test_file_that_is_no_config(tmp_path: Path, text: str, words: str) -> None:
    file = write(tmp_path, "broken.yaml", text)
    (line,) = mistakes(load_config, [file])
    assert line.startswith(f"{file}: ") and words in line


def test_file_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, "film.yaml", BASE)
    write(tmp_path, "valence.yml", BASE)
    write(tmp_path, "notes.txt", "")
    (line,) = mistakes(load_config, [tmp_path / "flim.yaml"])
    assert line.index("film.yaml") < line.index("valence.yml") and "notes" not in line
    (line,) = mistakes(load_config, [tmp_path])
    assert "film.yaml" in line
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    lines = mistakes(load_config, [tmp_path / "latin.yaml", tmp_path / "no" / "x.yaml", "a\0b"])
    assert len(lines) == 3 and "UTF-8" in lines[0]


def test_labels_that_yaml_takes_for_booleans(tmp_path: Path) -> None:
    file = write(tmp_path, "a.yaml", "head: {labels: [no, yes], flags: [on, off]}\n")
    base = write(tmp_path, "base.yaml", BASE)
    lines = mistakes(load_config, [base, file], ["head.class_weight={no: 1}"])
    assert len(lines) == 3
    assert all("quote" in line for line in lines)
    assert any("head.labels = [false, true]: expected a list of texts" in line for line in lines)
    right = ["head.labels=['no','yes']", "head.flags=['on']", "head.class_weight={'no': 1}"]
    assert load_config([base], right).head.arguments["labels"] == ["no", "yes"]


@pytest.mark.parametrize(
    ("path", "value", "hint"),
    [
        ("data.label", 3, "quote it to make it text"),
        ("data.label", False, "quote them"),
        ("training.epochs", "3", "without quotes"),
        ("training.learning_rate", "5e-5", "without quotes"),
        ("training.schedule", "linaer", "did you mean 'linear'"),
        ("head.mode", "FAST", "did you mean 'fast'"),
        ("head.plugin", "toy-head", "did you mean 'toy_head'"),
        ("head.names", "a", "write a list as [a]"),
        ("head.class_weight", {1: 1.0}, "the key 1 is no text: quote it"),
        ("head.labels", ["a", "b", 1.5], "at 2 it is 1.5"),
        ("head.rate", 2, "expected a number at least 0 and at most 1"),
        ("head", "toy_head", "head: {plugin: toy_head}"),
        ("head.range", [1], "expected a list of 2 (a number, a number)"),
    ],
)
def test_hint(path: str, value: Any, hint: str) -> None:
    (line,) = mistakes(config_from_mapping, changed(path, value))
    assert hint in line


def test_warmup_and_warmup_steps(tmp_path: Path) -> None:
    """One excludes the other, and 0.1 is the default only where neither is given."""
    file = write(tmp_path, "a.yaml", changed("training", {"warmup": 0}))
    (line,) = mistakes(load_config, [file], ["training.warmup_steps=0"])
    assert line == (
        "command line: training.warmup_steps = 0: expected this or warmup, not both; null takes "
        "one back"
    )
    config = load_config([file], ["training.warmup_steps=9", "training.warmup=null"])
    assert (config.training.warmup, config.training.warmup_steps) == (None, 9)
    assert load_config([write(tmp_path, "b.yaml", to_yaml(config))]) == config
    assert load_config([file], ["training.warmup=null"]).training.warmup == 0.1


GROUP = {"match": "layer_0/", "learning_rate": 1e-4}


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("0.matsch", "x", '.0.matsch = "x": unknown key, expected one of match, learning_rate, '
         "weight_decay, frozen; did you mean 'match'?"),
        ("1.match", 3, ".1.match = 3: expected text; quote it to make it text"),
        ("1.match", "layer_(", '.1.match = "layer_(": expected a regular expression, such as '
         "layer_0/ (missing ), unterminated subpattern at position 6)"),
        ("1.learning_rate", 0, ".1.learning_rate = 0: expected a number above 0 or null"),
        ("1.weight_decay", "0.1", '.1.weight_decay = "0.1": expected a number at least 0 or null; '
         "write it without quotes"),
        ("1.frozen", "yes", '.1.frozen = "yes": expected true or false'),
        ("1.frozen", True, ".1.frozen = true: expected this, or learning_rate and weight_decay, "
         "not both"),
    ],
)  # fmt: skip
def test_a_mistake_within_a_parameter_group(path: str, value: Any, line: str) -> None:
    groups: list[dict[str, Any]] = [dict(GROUP), dict(GROUP)]
    index, key = path.split(".")
    groups[int(index)][key] = value
    (found,) = mistakes(config_from_mapping, changed("training.parameter_groups", groups))
    assert found == f"config: training.parameter_groups{line}"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rnk", 8, "unknown key, expected one of rank, alpha, targets, merge; did you mean "
         "'rank'?"),
        ("rank", 0, "expected a whole number at least 1"),
        ("rank", 8.5, "expected a whole number at least 1"),
        ("alpha", 0, "expected a number above 0"),
        ("targets", ["qkw"], 'expected a list of "qkv" or "attention_output" or "intermediate" or '
         "\"output\", and at 0 it is \"qkw\"; did you mean 'qkv'?"),
        ("targets", "qkv", 'expected a list of "qkv" or "attention_output" or "intermediate" or '
         '"output"; write a list as [qkv]'),
        ("merge", None, "expected true or false"),
    ],
)  # fmt: skip
def test_a_mistake_within_lora(tmp_path: Path, key: str, value: Any, message: str) -> None:
    file = write(tmp_path, "a.yaml", BASE)
    shown = json.dumps(value)
    (line,) = mistakes(load_config, [file], [f"training.lora.{key}={shown}"])
    assert line == f"command line: training.lora.{key} = {shown}: {message}"


def test_lora(tmp_path: Path) -> None:
    file = write(tmp_path, "a.yaml", changed("training", {"lora": {"rank": 4}}))
    config = load_config([file], ["training.lora.targets=[qkv,output]"])
    assert config.training.lora == LoraConfig(4, 16.0, ("qkv", "output"))
    assert load_config([write(tmp_path, "b.yaml", to_yaml(config))]) == config
    assert load_config([file], ["training.lora={}"]).training.lora == LoraConfig(4)
    assert load_config([file], ["training.lora=null"]).training.lora is None


def test_parameter_groups(tmp_path: Path) -> None:
    text = "training: {parameter_groups: [{match: a, frozen: true}, {match: b, weight_decay: 0}]}"
    files = [write(tmp_path, "a.yaml", BASE), write(tmp_path, "b.yaml", text)]
    config = load_config(files)
    assert config.training.parameter_groups == [
        ParameterGroupConfig("a", frozen=True),
        ParameterGroupConfig("b", weight_decay=0.0),
    ]
    assert load_config([write(tmp_path, "c.yaml", to_yaml(config))]) == config
    (line,) = mistakes(load_config, files, ["training.layer_decay=0.9"])
    assert line == (
        f"{files[1]}: training.parameter_groups.1.learning_rate: missing, expected a number, since "
        "layer_decay leaves out what a group has"
    )
    (line,) = mistakes(load_config, files, ["training.parameter_groups=[{frozen: true}]"])
    assert line == "command line: training.parameter_groups.0.match: missing, expected text"
    assert load_config(files, ["training.parameter_groups=null"]).training == TrainingConfig()


def test_misspelt_plugin_key() -> None:
    (line,) = mistakes(config_from_mapping, changed("head", {"plugn": "toy_head"}))
    assert "head.plugn" in line and "did you mean 'plugin'" in line and "toy_other" in line


@pytest.mark.parametrize(
    ("plugin", "text", "words"),
    [
        ("toy_pair", "text", "text names 1 column, but toy_pair wants 2"),
        ("toy_pair", ["a"], "text names 1 column, but toy_pair wants 2"),
        ("toy_single", ["a", "b"], "text names 2 columns, but toy_single wants 1"),
    ],
)
def test_text_columns(plugin: str, text: Any, words: str) -> None:
    tree = changed("data.text", text, changed("preprocessor.plugin", plugin))
    (line,) = mistakes(config_from_mapping, tree)
    assert line.startswith("config: data.text = ") and words in line
    fits = ["a", "b"] if plugin == "toy_pair" else ["a"]
    assert config_from_mapping(changed("data.text", fits, tree)).data.text == fits


def test_every_mistake_in_one_message(tmp_path: Path) -> None:
    lower = write(tmp_path, "lower.yaml", changed("training", {"epochs": 0, "batch_size": "8"}))
    upper = write(
        tmp_path,
        "upper.yaml",
        "seed: -1\nnme: x\nhead: {hidden: a, bad: 1}\ntraining: {epochs: x}\noutput_dir: ${no}",
    )
    overrides = ["data.validation=2", "encoder.plugin=nope", "oops", "head.mode=${x:y}"]
    lines = mistakes(load_config, [lower, upper], overrides)
    starts = [
        f"{lower}: training.batch_size",
        f"{upper}: seed",
        f"{upper}: nme",
        f"{upper}: head.hidden",
        f"{upper}: head.bad",
        f"{upper}: training.epochs",  # the last to set it
        f"{upper}: output_dir",
        "command line: data.validation",
        "command line: encoder.plugin",
        "command line: 'oops'",
        "command line: head.mode",
    ]
    assert len(lines) == len(starts)
    for start in starts:
        assert sum(line.startswith(start) for line in lines) == 1, start


def test_a_mistake_at_every_key_gives_a_line_for_every_key() -> None:
    tree, leaves = copy.deepcopy(BASE), []
    for path, values in WRONG.items():
        if ("." in path or path not in ("data", *BASE, "training")) and ".plugin" not in path:
            tree = changed(path, values[-1], tree)
            leaves.append(path)
    lines = mistakes(config_from_mapping, tree)
    assert len(lines) == len(leaves)
    for path in leaves:
        assert sum(line.startswith((f"config: {path} ", f"config: {path}:")) for line in lines) == 1


def test_a_value_cannot_break_the_line() -> None:
    tree = {"a\nb": "c\u2028d\r\n\x1b[31m", "k" * 500: "v" * 5000, "\ud800": "\ud800"}
    for line in mistakes(config_from_mapping, tree):
        assert len(line) < 900


# Plugins


def distribution(folder: Path, entry_points: str, modules: dict[str, str]) -> None:
    info = folder / "toy_plugins-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-plugins\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(entry_points)
    for name, code in modules.items():
        (folder / f"{name}.py").write_text(code)


def test_installed_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(
        tmp_path,
        "[bertkit.heads]\ntoy_fine = toy_fine_module:Fine\ntoy_broken = toy_broken_module:Broken\n"
        "toy_builtin = builtins:getattr\n",
        {
            "toy_fine_module": "class Fine:\n    def __init__(self, *, size: int): pass\n",
            "toy_broken_module": "import a_module_that_is_not_there\n",
        },
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = config_from_mapping(changed("head", {"plugin": "toy_fine", "size": 3}))
    assert config.head == PluginConfig("toy_fine", {"size": 3})
    (line,) = mistakes(config_from_mapping, changed("head", {"plugin": "toy_fine"}))
    assert line == "config: head.size: missing, expected a whole number"
    for name, words in [("toy_broken", "toy-plugins 1.2"), ("toy_builtin", "signature")]:
        (line,) = mistakes(config_from_mapping, changed("head.plugin", name))
        assert line.startswith(f'config: head.plugin = "{name}": ') and words in line


def test_arguments_of_a_signature() -> None:
    arguments = {argument.name: argument for argument in arguments_of(ToyHead)}
    assert list(arguments)[:3] == ["labels", "dropout", "hidden"]
    assert not {"self", "kwargs"} & set(arguments)
    assert arguments["labels"].description == "the labels, in the order of their ids."
    assert arguments["dropout"].description == "rate on the features."
    assert arguments["dropout"].annotation is float and arguments["dropout"].default == 0.1
    assert arguments["anything"].annotation is arguments["hidden_type"].annotation is Any
    assert [a.required for a in arguments_of(toy_encoder)] == [True, False, False]

    def function(a: int, /, b: int, *c: int, d: str = "", name: str = "x", **e: int) -> None: ...

    assert [argument.name for argument in arguments_of(function)] == ["b", "d", "name"]


def test_arguments_of_a_layer() -> None:
    layer = type("Layer", (), {"__module__": "keras.src.layers.layer", "__init__": _layer_init})

    class Mine(layer):  # type: ignore[valid-type, misc]
        def __init__(self, size: int = 3, name: str = "", dtype: Any = None, **kwargs: Any) -> None:
            super().__init__(**kwargs)

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return object.__new__(cls)

    class Bare(layer):  # type: ignore[valid-type, misc]
        pass

    assert [argument.name for argument in arguments_of(Mine)] == ["size"]
    assert arguments_of(Bare) == []


def _layer_init(self: Any, *, activity_regularizer: Any = None, **kwargs: Any) -> None: ...


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (str, "text"),
        (str | None, "text or null"),
        (list[str], "a list of texts"),
        (list[str | int] | None, "a list of texts or whole numbers or null"),
        (tuple[float, float], "a list of 2 (a number, a number)"),
        (tuple[int, ...], "a list of whole numbers"),
        (dict[str, float], "a mapping of texts to numbers"),
        (dict, "a mapping"),
        (list[list[float]], "a list of lists of numbers"),
        (Literal["a", 1], '"a" or 1'),
        (Annotated[int, Field(gt=0, le=9)], "a whole number above 0 and at most 9"),
        (Annotated[str, "a colour"], "a colour"),
        (Path | bool, "a Path or true or false"),
        (Any, "a value"),
    ],
)
def test_an_annotation_in_words(annotation: Any, words: str) -> None:
    assert describe(annotation) == words


# Properties

TEXTS = st.text(max_size=8) | st.sampled_from(
    ["${name}", "${", "???", "no", "1e5", "5e-5", "~", "", "\\${a}", "<<", "toy_head", "2020-01-01"]
)
KEYS = TEXTS | st.sampled_from(
    [
        "name",
        "data",
        "encoder",
        "head",
        "plugin",
        "train",
        "text",
        "training",
        "epochs",
        "seed",
        "0",
    ]
)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.binary(max_size=3)
    | st.dates() | st.builds(object)
)  # fmt: skip
GARBAGE = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            KEYS | st.integers() | st.just(0) | st.none() | st.booleans(), inner, max_size=4
        )
        | st.tuples(inner)
    ),
    max_leaves=12,
)
SOME = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def only_config_errors(call: Any, *args: Any) -> None:
    try:
        config = call(*args)
    except ConfigError as error:
        assert str(error) and all(line.isprintable() for line in str(error).split("\n"))
    else:
        assert isinstance(config, ExperimentConfig)


@SOME
@given(GARBAGE)
def test_garbage_raises_nothing_else(tree: Any) -> None:
    only_config_errors(config_from_mapping, tree)


@SOME
@given(st.sampled_from([*WRONG, "head.new", "data.new"]), GARBAGE)
@example("head.anything", "a${")
@example("head.anything", [{"0": 1, 0: 2}])
@example("training", {"epochs": 1, "1": 1, 1: 2})
@example("head.anything", {10**5000: 10**5000, (1, 2): 3, b"x": 4})
@example("seed", 10**5000)
def test_garbage_at_a_key_raises_nothing_else(path: str, value: Any) -> None:
    only_config_errors(config_from_mapping, changed(path, value))


@SOME
@given(st.text(alphabet=st.characters(codec="utf-8") | st.sampled_from("{}[]:,-&*!|>%'\"#?\n a")))
def test_garbage_as_text_raises_nothing_else(tmp_path: Path, text: str) -> None:
    file = tmp_path / "garbage.yaml"
    file.write_text(text, encoding="utf-8")
    only_config_errors(load_config, [file])
    only_config_errors(load_config, [], [text, f"head={text}", f"{text}=3"])


def test_a_mapping_without_end() -> None:
    tree = copy.deepcopy(BASE)
    tree["head"]["anything"] = tree
    (line,) = mistakes(config_from_mapping, tree)
    assert "nested too deeply" in line


PLAIN_TEXT = st.text("\\${}", min_size=1, max_size=6) | st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs"]) | st.sampled_from("\\${}:'\"#-"),
    min_size=1, max_size=12,
).filter(lambda text: text != "???")  # fmt: skip
FRACTIONS = st.floats(0, 1, exclude_min=True, exclude_max=True)
FILES = PLAIN_TEXT | st.lists(PLAIN_TEXT, min_size=1, max_size=3)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
INTEGERS = st.integers(-(2**63) + 1, 2**63 - 1)
PLAIN = st.recursive(
    st.none() | st.booleans() | INTEGERS | FINITE | PLAIN_TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(PLAIN_TEXT, inner, max_size=3)
        | st.dictionaries(INTEGERS, inner, max_size=3)
    ),
    max_leaves=6,
)
CONFIGS = st.builds(
    ExperimentConfig,
    name=st.from_regex(r"[A-Za-z0-9_]([A-Za-z0-9_ .-]{0,9}[A-Za-z0-9_-])?", fullmatch=True),
    data=st.builds(
        DataConfig,
        train=FILES,
        label=PLAIN_TEXT,
        text=PLAIN_TEXT | st.lists(PLAIN_TEXT, min_size=1, max_size=1),
        validation=st.none() | FILES | FRACTIONS,
        test=st.none() | FILES | FRACTIONS,
        label_separator=st.none() | PLAIN_TEXT,
        cache=st.none() | PLAIN_TEXT,
        temperature=st.sampled_from([1.0, (1.0, 1.0)]),
    ),
    encoder=st.builds(
        lambda source: PluginConfig("toy_encoder", {"source": source}), st.text(max_size=3)
    ),
    preprocessor=st.just(PluginConfig("toy_single", {"sequence_length": 9})),
    head=st.builds(
        PluginConfig,
        st.just("toy_head"),
        st.fixed_dictionaries(
            {},
            optional={
                "labels": st.none() | st.lists(PLAIN_TEXT | INTEGERS, max_size=3),
                "dropout": FINITE,
                "range": st.tuples(FINITE, FINITE),
                "class_weight": st.dictionaries(PLAIN_TEXT, FINITE, max_size=3),
                "thresholds": st.dictionaries(INTEGERS, FINITE, max_size=3),
                "anything": PLAIN,
                "folder": st.just(Path("a/b")),
            },
        ),
    ),
    training=st.builds(
        TrainingConfig,
        epochs=st.integers(1, 2**60),
        batch_size=st.integers(1, 512),
        learning_rate=st.floats(0, exclude_min=True, allow_infinity=False),
        warmup=st.floats(0, 1),
        schedule=st.sampled_from(["linear", "cosine", "constant"]),
        parameter_groups=st.none()
        | st.lists(
            st.builds(
                ParameterGroupConfig,
                st.from_regex("[a-z/${}]{1,9}", fullmatch=True).map(re.escape),
                weight_decay=st.none() | st.floats(0, 1),
            ),
            max_size=3,
        ),
    ),
    output_dir=PLAIN_TEXT,
    seed=st.integers(0, 2**32 - 1),
)


@SOME
@given(CONFIGS)
def test_what_is_written_is_loaded_again(tmp_path: Path, config: ExperimentConfig) -> None:
    path = tmp_path / "round.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config([path]) == config


@pytest.mark.parametrize("annotation", [str, int, float, bool, list[int], tuple[int, int]])
def test_nothing_is_guessed(annotation: Any) -> None:
    wrong = {
        str: [1, True, None, 1.5],
        int: ["1", True, 1.0, None],
        float: ["1", True, None],
        bool: [0, 1, "true", None],
        list[int]: [[True], ["1"], 3, {0: 1}],
        tuple[int, int]: [[1], [1, 2, 3], [True, 1]],
    }
    for value in wrong[annotation]:
        with pytest.raises(ValueError, match="expected"):
            convert(annotation, value)
