"""Who may know whom: the core names no plugin, plugins stand alone, and all of them are there."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import bertkit
import bertkit_plugins
from bertkit.registry import REGISTRIES

CORE = Path(bertkit.__file__).parent
PLUGINS = Path(bertkit_plugins.__file__).parent
ROOT = CORE.parent
SOURCES = sorted([*CORE.rglob("*.py"), *PLUGINS.rglob("*.py")])
CHECKOUT = (ROOT / "pyproject.toml").exists()
# What a module may import at its head without making `bertkit --help` slow.
HEAVY = {"tensorflow", "keras", "keras_hub", "tensorflow_text", "sklearn", "scipy", "pandas"}
# What plugins of several kinds that read one source have in common.
SHARED = {
    f"bertkit_plugins.encoders.{name}"
    for name in (
        "huggingface_weights",
        "saved_model_graph",
        "saved_model_interface",
        "saved_model_safety",
        "sources",
        "tfhub_resolve",
    )
}
# A function that makes an encoder, and the class it makes, which a saved model names.
MADE = {"bertkit_plugins.encoders.tfhub": {"bertkit_plugins.encoders.saved_model"}}
LIGHT = ["__init__", "arguments", "cli", "config", "errors", "merging", "registry", "schema",
         "data.files"]  # fmt: skip


def modules_of(folder: Path) -> list[Path]:
    return [path for path in SOURCES if path.is_relative_to(folder)]


def name_of(path: Path) -> str:
    """The dotted name of a module."""
    inside = path.relative_to(PLUGINS.parent if path.is_relative_to(PLUGINS) else ROOT)
    return ".".join(inside.with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path, top_level_only: bool = False) -> Iterator[str]:
    """The modules that a file imports, those for type checkers left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for guard in ast.walk(tree):
        if isinstance(guard, ast.If) and ast.unparse(guard.test) == "TYPE_CHECKING":
            guard.body = []
    for node in ast.iter_child_nodes(tree) if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield str(node.module)


def test_there_is_something_to_look_at() -> None:
    assert len(modules_of(CORE)) >= 20
    assert len(modules_of(PLUGINS)) >= 10


@pytest.mark.parametrize("path", modules_of(CORE), ids=name_of)
def test_the_core_never_names_the_plugins(path: Path) -> None:
    assert "bertkit_plugins" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_that_ships_needs_a_test_framework(path: Path) -> None:
    assert not {"pytest", "hypothesis", "tests"} & {x.split(".")[0] for x in imports_of(path)}


@pytest.mark.parametrize("path", modules_of(PLUGINS), ids=name_of)
def test_a_plugin_imports_no_other_plugin(path: Path) -> None:
    plugins = {info.location.partition(":")[0] for r in REGISTRIES.values() for info in r.infos()}
    others = {name for name in imports_of(path) if name.startswith("bertkit_plugins")}
    assert not (others & plugins) - {name_of(path)} - MADE.get(name_of(path), set())
    kind = name_of(path).split(".")[1:2]
    others -= SHARED
    assert all(name.split(".")[1:2] == kind for name in others), "a module of another kind"


@pytest.mark.parametrize("module", LIGHT)
def test_what_the_command_line_reads_first_imports_nothing_heavy(module: str) -> None:
    path = CORE / f"{module.replace('.', '/')}.py"
    tops = {name.split(".")[0] for name in imports_of(path, top_level_only=True)}
    assert not tops & HEAVY


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_module_can_be_imported(path: Path) -> None:
    importlib.import_module(name_of(path))


@pytest.mark.skipif(not CHECKOUT, reason="builds a wheel, so only in a checkout")
def test_the_wheel_holds_two_packages_and_plugins_is_none(tmp_path: Path) -> None:
    """In a checkout `plugins` can be imported, as any folder on Python's path; not so installed."""
    pytest.importorskip("hatchling")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"bertkit", "bertkit_plugins"}
    assert {name_of(path).replace(".", "/") for path in SOURCES} == {
        name.removesuffix(".py").removesuffix("/__init__") for name in names if name[-3:] == ".py"
    }
    assert {"bertkit/py.typed", "bertkit_plugins/py.typed"} <= set(names)
    program = (
        "import bertkit, bertkit_plugins, bertkit.registry\n"
        "print(bertkit.__file__, *bertkit.registry.heads.names())\n"
        "import plugins\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],  # without the checkout's own .pth
        cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True,
    )  # fmt: skip
    place = tmp_path / "site/bertkit/__init__.py"
    assert done.stdout == f"{place} binary multi_label multi_task multiclass ordinal regression\n"
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'plugins'\n")


@pytest.mark.parametrize("kind", sorted(REGISTRIES))
def test_every_installed_plugin_loads_and_has_a_sentence_about_it(kind: str) -> None:
    registry = REGISTRIES[kind]
    ours = [info for info in registry.infos() if info.distribution.startswith("bertkit ")]
    assert ours
    for info in ours:
        plugin = registry.get(info.name)
        line = (plugin.__doc__ or "").strip().splitlines()[0]
        assert line.endswith("."), f"{info.location} needs a docstring of one line first"
        module = sys.modules[info.location.partition(":")[0]]
        assert module.__name__.startswith(("bertkit.", "bertkit_plugins."))


@pytest.mark.skipif(not CHECKOUT, reason="reads pyproject.toml, so only in a checkout")
@pytest.mark.parametrize("kind", sorted(REGISTRIES))
def test_installed_are_the_plugins_that_the_project_declares(kind: str) -> None:
    """Fails when a plugin was removed, or the checkout was changed and not installed again."""
    declared = declared_entry_points()[REGISTRIES[kind].group]
    installed = {
        entry.name: entry.value
        for entry in importlib.metadata.distribution("bertkit").entry_points
        if entry.group == REGISTRIES[kind].group
    }
    assert installed == declared
    assert set(declared) <= set(REGISTRIES[kind].names())


@pytest.mark.skipif(not CHECKOUT, reason="reads pyproject.toml, so only in a checkout")
def test_the_shipped_plugins_are_those_that_are_documented() -> None:
    assert {group: sorted(names) for group, names in declared_entry_points().items()} == {
        "bertkit.encoders": [
            "bert",
            "huggingface",
            "kerashub",
            "saved_model",
            "tf1_checkpoint",
            "tfhub",
        ],
        "bertkit.preprocessors": ["sentence_pair", "single_text", "text_bytes", "tfhub"],
        "bertkit.heads": [
            "binary",
            "multi_label",
            "multi_task",
            "multiclass",
            "ordinal",
            "regression",
        ],
        "bertkit.objectives": [
            "chain",
            "distillation",
            "fgm",
            "free_lb",
            "mixup",
            "pgd",
            "r_drop",
            "smart",
            "supervised_contrastive",
        ],
    }


def declared_entry_points() -> dict[str, dict[str, str]]:
    """The entry points of pyproject.toml, by group. Python 3.10 has no parser of TOML."""
    groups: dict[str, dict[str, str]] = {}
    current: dict[str, str] | None = None
    for line in (ROOT / "pyproject.toml").read_text().splitlines():
        if line.startswith("["):
            header = line.removeprefix('[project.entry-points."').removesuffix('"]')
            current = groups.setdefault(header, {}) if header != line else None
        elif current is not None and "=" in line:
            name, value = line.split(" = ")
            current[name] = value.strip('"')
    return groups
