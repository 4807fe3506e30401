"""Every block of the README and of docs/ runs, or is checked as far as it can be."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer.main
from omegaconf import OmegaConf

from bertkit import heads, registry
from bertkit.arguments import arguments_of
from bertkit.cli import app
from bertkit.config import ExperimentConfig, load_config
from bertkit.sections import DataConfig, TrainingConfig
from tests.processes import MINILM, ROOT, cut, run

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLE = ROOT / "examples" / "binary.yaml"
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
# Written out where a document's Python reads a run folder: one of a tiny model.
_TINY = {
    "plugin": "bert", "vocabulary_size": 30522, "hidden_size": 16, "num_layers": 1,
    "num_heads": 2, "intermediate_size": 32,
}  # fmt: skip


class Block(NamedTuple):
    """A fenced block: where it stands, its language and its text."""

    path: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.path.name}:{self.line}"


def find_blocks() -> Iterator[Block]:
    for path in DOCUMENTS:
        content = path.read_text(encoding="utf-8")
        assert content.count("```") == 2 * len(_FENCE.findall(content)), f"an odd fence in {path}"
        for match in _FENCE.finditer(content):
            line = content.count("\n", 0, match.start()) + 2  # the first of its text
            yield Block(path, line, match[2], match[3])


BLOCKS = list(find_blocks())


def blocks(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def test_the_blocks_are_found() -> None:
    assert [path.name for path in DOCUMENTS] == [
        "README.md", "configuration.md", "export.md", "few-shot.md", "gradients.md", "losses.md",
        "multi_task.md", "objectives.md", "plugins.md", "run-folder.md",
    ]  # fmt: skip
    least = {"python": 8, "yaml": 5, "sh": 6, "toml": 1, "json": 1}
    assert {block.language for block in BLOCKS} == set(least), "each language is checked below"
    for language, count in least.items():
        assert len(blocks(language)) >= count, language
    assert {block.language for block in BLOCKS if block.path.name == "README.md"} == {
        "python", "yaml", "sh"
    }  # fmt: skip


# --- Python ---


@pytest.mark.real
@pytest.mark.parametrize(
    "path", sorted({block.path for block in blocks("python")}), ids=lambda path: path.name
)
def test_python_runs(path: Path, tmp_path: Path) -> None:
    """The blocks of a document, one after another in one process."""
    text = path.read_text(encoding="utf-8")
    lines = [""] * (text.count("\n") + 1)
    for block in blocks("python"):
        if block.path == path:  # at their own lines, so that an error tells where it stands
            found = block.text.splitlines()
            lines[block.line - 1 : block.line - 1 + len(found)] = found
    (tmp_path / f"{path.stem}.py").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / ".cache").symlink_to(ROOT / ".cache")
    if any("runs/film-sentiment" in line for line in lines):
        make_run(tmp_path)
    run([sys.executable, f"{path.stem}.py"], tmp_path)


def make_run(folder: Path) -> None:
    """Train a tiny model of random weights into runs/film-sentiment."""
    import bertkit
    from bertkit_plugins.encoders.sources import find_folder

    (folder / "rows").mkdir()
    vocabulary = find_folder(MINILM, None, ()) / "vocab.txt"
    layer = folder / "encoder.yaml"
    OmegaConf.save({"encoder": {**_TINY, "vocabulary": str(vocabulary)}}, layer)
    rows = cut(load_config([EXAMPLE]), folder / "rows", 32)
    place = f"output_dir={folder / 'runs' / 'film-sentiment'}"
    bertkit.run(load_config([EXAMPLE, layer], [*rows, place, "training.epochs=1"]), verbose=0)


# --- YAML ---


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_is_valid(block: Block, tmp_path: Path) -> None:
    """By itself if it is a whole experiment, and laid over the demo's if it is a part of one."""
    path = tmp_path / "block.yaml"
    path.write_text(block.text, encoding="utf-8")
    required = {argument.name for argument in arguments_of(ExperimentConfig) if argument.required}
    content = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(content, dict)
    whole = required <= set(content)
    assert whole or block.path.name != "README.md", "the README shows a whole experiment"
    config = load_config([path] if whole else [EXAMPLE, path])
    for section in (config.encoder, config.preprocessor, config.head):
        assert section.plugin


# --- The command line ---


def commands_of(block: Block) -> Iterator[list[str]]:
    """Yield the commands of a shell block, those of a pipeline one by one."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars="|;&")
        words.whitespace_split = True
        command: list[str] = []
        for word in words:
            if set(word) <= set("|;&"):
                yield command
                command = []
            else:
                command.append(word)
        if command:
            yield command


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_commands_exist(block: Block) -> None:
    commands = list(commands_of(block))
    assert commands
    for program, *words in commands:
        if Path(program).name == "bertkit":
            check_bertkit(words)
        elif program == "make":
            # -n prints what it would do, and fails where there is no such target.
            subprocess.run(["make", "-n", *words], cwd=ROOT, check=True, capture_output=True)
        elif program == "pip":
            assert words[0] == "install"
            assert (ROOT / words[1] / "pyproject.toml").is_file()
        else:
            assert program in ("printf", "tail"), f"{block}: nothing checks {program!r}"


def check_bertkit(words: list[str]) -> None:
    """Parse the words as the command line does, without running the command."""
    group = typer.main.get_command(app)
    context = group.make_context("bertkit", list(words), resilient_parsing=False)
    name, command, rest = group.resolve_command(context, [words[0], *words[1:]])  # type: ignore[attr-defined]
    command.make_context(name, rest, parent=context)
    for word in rest:
        if word.endswith(".yaml"):
            assert (ROOT / word).is_file(), word
    changes = [word for word in rest if "=" in word and not word.startswith("-")]
    if name == "train" and changes:
        load_config([EXAMPLE], changes)


def test_a_misspelt_option_would_be_found() -> None:
    with pytest.raises(Exception, match="--dryrun"):
        check_bertkit(["train", "examples/binary.yaml", "--dryrun"])
    with pytest.raises(Exception, match="tran"):
        check_bertkit(["tran", "examples/binary.yaml"])


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_json_is_what_a_head_predicts(block: Block) -> None:
    import numpy as np

    row = json.loads(block.text)
    head = heads.create("binary", labels=sorted(row["scores"]))
    (predicted,) = head.decode(np.array([[-np.log(3)]]))  # a positive probability of a quarter
    assert row.pop("text")
    assert row == {**predicted, "score": pytest.approx(0.75), "scores": row["scores"]}
    assert predicted["scores"] == pytest.approx(row["scores"])


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_toml_declares_a_plugin(block: Block) -> None:
    header, *entries = block.text.strip().splitlines()
    groups = {f'[project.entry-points."{r.group}"]' for r in registry.REGISTRIES.values()}
    assert header in groups
    assert entries
    assert all(re.fullmatch(r'\w+ = "[\w.]+:\w+"', entry) for entry in entries)


# --- What is listed is all there is ---


def test_the_demo_classifies_what_the_readme_says() -> None:
    sentences = re.findall(r"'([A-Z][^']+\.)'", (ROOT / "Makefile").read_text())
    assert len(sentences) == 2
    for sentence in sentences:
        assert f"'{sentence}'" in DOCUMENTS[0].read_text()


def test_every_plugin_stands_in_the_readme() -> None:
    rows = re.findall(r"^\| (\w+) \| `(\w+)` \|", DOCUMENTS[0].read_text(), re.MULTILINE)
    shipped = [
        (kind, info.name)
        for kind, known in registry.REGISTRIES.items()
        for info in known.infos()
        if info.distribution.startswith("bertkit ")
    ]
    assert sorted(rows) == sorted(shipped)


def test_every_key_is_documented() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    keys = [key.name for key in dataclasses.fields(ExperimentConfig)]
    keys += [f"data.{key.name}" for key in dataclasses.fields(DataConfig)]
    keys += [f"training.{key.name}" for key in dataclasses.fields(TrainingConfig)]
    for key in keys:
        assert re.search(rf"^\| `{re.escape(key)}` \|", text, re.MULTILINE), key
    for known in registry.REGISTRIES.values():
        for info in known.infos():
            if info.distribution.startswith("bertkit "):
                assert f"`{info.name}`" in text, info.name
                for argument in arguments_of(known.get(info.name)):
                    assert f"`{argument.name}`" in text, (info.name, argument.name)


def test_links_lead_somewhere() -> None:
    links = [
        (path, link)
        for path in [*DOCUMENTS, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
        for link in re.findall(r"\]\((?!https?://)([^)#]+)", path.read_text(encoding="utf-8"))
    ]
    assert len(links) >= 6
    for path, link in links:
        assert (path.parent / link).exists(), (path.name, link)
