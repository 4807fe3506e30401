"""The command line in this process, and a small experiment to run it on."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from bertkit import cli
from tests.tiny import VOCABULARY
from tests.tiny_models import LABELS, TEXTS


@dataclass(frozen=True)
class Done:
    """What a command ended with."""

    code: int
    out: str
    err: str

    def predictions(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.split("\n") if line]


class CommandLine:
    """`bertkit …` in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capfd = capfd
        # Many models in one process make it warn of retracing; one command has one model.
        logging.getLogger("tensorflow").setLevel(logging.ERROR)

    def __call__(self, *words: object, stdin: bytes = b"") -> Done:
        self._capfd.readouterr()
        with self._monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["bertkit", *map(str, words)])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            with pytest.raises(SystemExit) as ended:
                cli.main()
        captured = self._capfd.readouterr()
        return Done(int(ended.value.code or 0), captured.out, captured.err)


def tiny_config(head: str = "binary", /, **changes: Any) -> dict[str, Any]:
    """Return a config of the tiny model over `rows.jsonl`.

    Args:
        head: the head.
        changes: values by key; `data__test` is the key `data.test`.
    """
    config: dict[str, Any] = {
        "name": head,
        "data": {"train": f"{head}.jsonl", "test": f"{head}.jsonl", "text": "text",
                 "label": "label"},
        "encoder": {"plugin": "bert", "vocabulary_size": len(VOCABULARY), "hidden_size": 16,
                    "num_layers": 1, "num_heads": 2, "intermediate_size": 32,
                    "max_sequence_length": 40, "vocabulary": "vocab.txt"},
        "preprocessor": {"plugin": "single_text", "sequence_length": 32},
        "head": {"plugin": head},
        "training": {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3},
    }  # fmt: skip
    for path, value in changes.items():
        section, _, key = path.partition("__")
        if key:
            config[section][key] = value
        else:
            config[section] = value
    return config


def write_tiny_data(folder: Path) -> Path:
    """Write the vocabulary and, for each head, JSONL rows and a config."""
    (folder / "vocab.txt").write_text("\n".join([*VOCABULARY, ""]), encoding="utf-8")
    for head, labels in LABELS.items():
        rows = [{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=True)]
        write_jsonl(folder / f"{head}.jsonl", rows)
        write_yaml(folder / f"{head}.yaml", tiny_config(head))
    return folder


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_yaml(path: Path, content: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False), encoding="utf-8")
    return path


def snapshot(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, hidden ones too; "" for a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in sorted(folder.rglob("*"))
    }
