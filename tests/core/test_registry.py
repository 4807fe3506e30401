"""The registry: names from entry points and by decorator, and what goes wrong with them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bertkit.errors import PluginError
from bertkit.registry import REGISTRIES, PluginInfo, Registry, encoders, heads, preprocessors

GROUP = "bertkit.heads_of_a_test"
Install = Callable[..., None]


@pytest.fixture
def registry() -> Registry[Any]:
    return Registry("head", GROUP)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Write a distribution with entry points, and modules, where Python finds them."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(name: str, entry_points: dict[str, str], files: dict[str, str] | None = None) -> None:
        folder = tmp_path / f"{name}-1.5.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        lines = [f"{key} = {value}" for key, value in entry_points.items()]
        (folder / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))
        for path, source in (files or {}).items():
            file = tmp_path / path
            file.parent.mkdir(exist_ok=True)
            file.write_text(source)
        importlib.invalidate_caches()

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield write
    for module in set(sys.modules) - before:
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[module]


def message(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(PluginError) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    assert isinstance(caught.value, LookupError)
    return text


# --- entry points


def test_a_plugin_is_found_by_entry_point_and_imported_on_first_get(
    registry: Registry[Any], install: Install
) -> None:
    install("gnu", {"wild": "gnu_heads:Wild"}, {"gnu_heads.py": "class Wild:\n    pass\n"})
    assert registry.names() == ["wild"]
    assert registry.infos() == [PluginInfo("head", "wild", "gnu 1.5", "gnu_heads:Wild")]
    assert "gnu_heads" not in sys.modules
    plugin = registry.get("wild")
    assert plugin is sys.modules["gnu_heads"].Wild
    assert registry.get("wild") is plugin
    assert registry.name_of(plugin) == "wild"
    assert type(registry.create("wild")) is plugin


def test_infos_and_names_are_sorted_and_of_one_group(
    registry: Registry[Any], install: Install
) -> None:
    install("gnu", {"b": "gnu_heads:B", "a": "gnu_heads:A"})
    install("yak", {"c": "yak_heads:C"})
    assert registry.names() == [info.name for info in registry.infos()] == ["a", "b", "c"]
    assert Registry("head", "bertkit.of_nobody").names() == []


def test_a_class_that_a_package_re_exports_has_a_name(
    registry: Registry[Any], install: Install
) -> None:
    install(
        "gnu",
        {"wild": "gnu_package:Wild"},
        {
            "gnu_package/__init__.py": "from gnu_package.inner import Wild\n",
            "gnu_package/inner.py": "class Wild:\n    pass\n",
        },
    )
    wild = registry.get("wild")
    assert wild.__module__ == "gnu_package.inner"
    assert registry.name_of(wild) == "wild"
    assert registry.register("wild")(wild) is wild


def test_a_broken_plugin_is_named_and_breaks_no_other(
    registry: Registry[Any], install: Install
) -> None:
    install("good", {"good": "good_heads:Good"}, {"good_heads.py": "class Good:\n    pass\n"})
    install(
        "bad",
        {
            "absent": "bad_absent:Head",
            "raising": "bad_raising:Head",
            "lacking": "bad_lacking:Head",
            "a_number": "bad_lacking:number",
        },
        {
            "bad_raising.py": "raise RuntimeError('no luck today')\n",
            "bad_lacking.py": "number = 3\n",
        },
    )
    assert len(registry.names()) == 5
    assert registry.get("good").__name__ == "Good"
    wanted = {
        "absent": "importing bad_absent:Head raised ModuleNotFoundError: No module named",
        "raising": "importing bad_raising:Head raised RuntimeError: no luck today.",
        "lacking": "importing bad_lacking:Head raised AttributeError: ",
        "a_number": "bad_lacking:number is 3, not a class or a function.",
    }
    for name, cause in wanted.items():
        text = message(registry.get, name)
        assert text.startswith(f"The head {name!r} of bad 1.5 is broken: {cause}")
    assert "Update or uninstall that distribution" in message(registry.get, "raising")


def test_two_distributions_with_one_name_clash_when_it_is_asked_for(
    registry: Registry[Any], install: Install
) -> None:
    names = {"same": "gnu_heads:Wild", "other": "gnu_heads:Wild"}
    install("gnu", names, {"gnu_heads.py": "class Wild:\n    pass\n"})
    install("yak", {"same": "yak_heads:Hairy"})
    assert registry.get("other").__name__ == "Wild"
    text = message(registry.get, "same")
    assert text.startswith("Two heads are named 'same': ")
    assert "gnu_heads:Wild (from gnu 1.5)" in text
    assert "yak_heads:Hairy (from yak 1.5)" in text
    assert text.endswith("Rename one, or uninstall the distribution that is not wanted.")


# --- by decorator


def test_the_decorator_registers_and_returns_what_it_is_given(registry: Registry[Any]) -> None:
    class Mine:
        pass

    assert registry.register("mine")(Mine) is Mine
    assert registry.get("mine") is Mine
    assert registry.name_of(Mine) == "mine"
    assert [info.distribution for info in registry.infos()] == [__name__]


def test_the_same_definition_again_replaces_itself(registry: Registry[Any]) -> None:
    def cell() -> type:
        @registry.register("mine")
        class Mine:
            pass

        return Mine

    first, second = cell(), cell()
    assert first is not second
    assert registry.get("mine") is second
    assert registry.names() == ["mine"]


def test_another_definition_under_a_taken_name_names_both_sides(
    registry: Registry[Any], install: Install
) -> None:
    class Mine:
        pass

    class Yours:
        pass

    registry.register("taken")(Mine)
    text = message(registry.register("taken"), Yours)
    assert text.startswith("Two heads are named 'taken': ")
    assert f"{__name__}:{Mine.__qualname__} (from {__name__})" in text
    assert f"{__name__}:{Yours.__qualname__} (from {__name__})" in text
    assert registry.get("taken") is Mine

    install("gnu", {"wild": "gnu_heads:Wild"})
    text = message(registry.register("wild"), Mine)
    assert "gnu_heads:Wild (from gnu 1.5)" in text
    assert "gnu_heads" not in sys.modules


# --- what is asked for wrongly


def test_an_unknown_name_gets_the_nearest_and_all_names() -> None:
    text = message(heads.get, "multiclas")
    assert text.startswith("There is no head named 'multiclas'. Did you mean 'multiclass'?")
    assert f"Installed: {', '.join(heads.names())}." in text
    assert "an entry point in the group 'bertkit.heads'" in text
    assert "@bertkit.heads.register('multiclas')" in text
    assert "Did you mean" not in message(heads.get, "zzz")
    assert message(encoders.get, "hugingface").count("Did you mean 'huggingface'?") == 1


def test_a_registry_without_plugins_says_so(registry: Registry[Any]) -> None:
    assert "Installed: none." in message(registry.get, "binary")


def test_create_refuses_arguments_that_do_not_fit(registry: Registry[Any]) -> None:
    text = message(preprocessors.create, "single_text", length=3)
    assert text == (
        "The preprocessor 'single_text' cannot be made: got an unexpected keyword argument "
        "'length'. It takes: sequence_length."
    )
    assert "missing a required argument: 'source'" in message(encoders.create, "huggingface")

    @registry.register("raising")
    def raising(size: int = 1) -> None:
        raise TypeError("from inside")

    with pytest.raises(TypeError, match="from inside"):  # an error of the plugin's own
        registry.create("raising")
    assert message(registry.create, "raising", 1, 2).endswith("It takes: size.")


def test_an_unregistered_class_has_no_name() -> None:
    class Mine:
        pass

    text = message(heads.name_of, Mine)
    assert text.startswith(f"{__name__}:{Mine.__qualname__} is not a registered head")
    assert "@bertkit.heads.register('a-name')" in text
    assert "entry point in the group 'bertkit.heads'" in text


def test_every_kind_has_a_registry() -> None:
    assert {kind: registry.kind for kind, registry in REGISTRIES.items()} == {
        kind: kind for kind in ("preprocessor", "encoder", "head", "objective")
    }
    for registry in REGISTRIES.values():
        assert registry.group == f"bertkit.{registry.kind}s"


def test_importing_bertkit_and_listing_plugins_imports_neither_tensorflow_nor_a_plugin() -> None:
    program = (
        "import sys, bertkit\n"
        "from bertkit.registry import REGISTRIES\n"
        "for registry in REGISTRIES.values():\n"
        "    assert registry.names() and registry.infos()\n"
        "assert 'BertClassifier' in dir(bertkit)\n"
        "heavy = {'tensorflow', 'keras', 'numpy', 'sklearn', 'bertkit_plugins'}\n"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_an_argument_that_keras_would_refuse_is_named() -> None:
    from bertkit.registry import heads

    with pytest.raises(PluginError, match=r"'binary' has no argument dropuot\. It takes: labels"):
        heads.create("binary", dropuot=0.1)
