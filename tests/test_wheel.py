"""The wheel works where nothing of the checkout can be seen."""

from __future__ import annotations

import email
import json
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from bertkit.config import load_config
from tests.processes import ROOT, cut, run

pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="builds a wheel, so only in a checkout"
)
ROWS = 64


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", folder], ROOT)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The `bin` of a virtual environment that holds the wheel.

    Its dependencies are those of this environment, read from there: a folder that a .pth file
    names is searched last, and the .pth files in it, bertkit's editable one included, are not
    read.
    """
    folder = wheel.parent / "venv"
    builder = venv.EnvBuilder(with_pip=False, symlinks=True)
    context = builder.ensure_directories(folder)
    builder.create(folder)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    site.joinpath("dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ("install", "--quiet", "--no-deps", "--no-index", "--ignore-installed")
    pip = [sys.executable, "-m", "pip", "--python", context.env_exe]
    run([*pip, *install, wheel], folder)
    return Path(context.bin_path)


def test_it_holds_what_it_should(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
        metadata = archive.read(f"{info}/METADATA").decode()
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
        license_text = archive.read(f"{info}/licenses/LICENSE").decode()
    assert {name.split("/")[0] for name in names} == {"bertkit", "bertkit_plugins", info}
    assert {"bertkit/py.typed", "bertkit_plugins/py.typed"} <= set(names)
    assert email.message_from_string(metadata)["License-Expression"] == "Apache-2.0"
    assert license_text == (ROOT / "LICENSE").read_text()
    assert metadata.endswith((ROOT / "README.md").read_text())
    for group in ("console_scripts", "bertkit.encoders", "bertkit.preprocessors", "bertkit.heads"):
        assert f"[{group}]" in entry_points


def test_its_plugins_are_found_and_the_checkout_is_not(installed: Path, tmp_path: Path) -> None:
    program = (
        "import bertkit, bertkit_plugins, sys\n"
        "print(bertkit.__file__)\n"
        "print(bertkit_plugins.__file__)\n"
        "print(*bertkit.encoders.names(), *bertkit.preprocessors.names(), *bertkit.heads.names())\n"
        "try:\n"
        "    import plugins\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error)\n"
        f"print([path for path in sys.path if path.startswith({str(ROOT)!r})])\n"
    )
    core, plugins, names, error, paths = run(
        [installed / "python", "-c", program], tmp_path, PYTHONPATH=""
    ).splitlines()
    for file in (core, plugins):
        assert Path(file).is_relative_to(installed.parent)
    assert names == (
        "bert huggingface kerashub saved_model tf1_checkpoint tfhub "
        "sentence_pair single_text text_bytes tfhub "
        "binary multi_label multi_task multiclass ordinal regression"
    )
    assert error == "No module named 'plugins'"
    # Dependencies may lie below the checkout, as in .venv; nothing else of it may be seen.
    assert paths in ("[]", f"[{sysconfig.get_path('purelib')!r}]")


def test_the_doctor_finds_nothing_wrong(installed: Path, tmp_path: Path) -> None:
    checks = json.loads(run([installed / "bertkit", "doctor", "--json"], tmp_path, PYTHONPATH=""))
    assert len(checks) >= 8
    assert all(check["ok"] for check in checks)


@pytest.mark.real
def test_the_demo_trains_and_predicts(installed: Path, tmp_path: Path) -> None:
    demo = tmp_path / "demo.yaml"
    shutil.copy(ROOT / "examples" / "binary.yaml", demo)
    overrides = [*cut(load_config([demo]), tmp_path, ROWS), "training.epochs=1"]
    printed = run(
        [installed / "bertkit", "train", "demo.yaml", *overrides], tmp_path, PYTHONPATH=""
    )
    assert "Wrote runs/film-sentiment" in printed
    manifest = json.loads((tmp_path / "runs/film-sentiment/model/manifest.json").read_text())
    assert manifest["plugins"]["head"]["name"] == "binary"
    printed = run(
        [installed / "bertkit", "predict", "runs/film-sentiment"],
        tmp_path, input="A moving film.\n", PYTHONPATH="",
    )  # fmt: skip
    assert json.loads(printed)["label"] in ("negative", "positive")


def test_the_command_answers_at_once(installed: Path, tmp_path: Path) -> None:
    """Without TensorFlow, that is."""
    program = (
        "import sys\n"
        "from bertkit.cli import main\n"
        "sys.argv = ['bertkit', '--help']\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print({'tensorflow', 'keras'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [installed / "python", "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "set()"
