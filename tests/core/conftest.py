"""What tests of the command line have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import CommandLine


@pytest.fixture
def bertkit(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> CommandLine:
    """The command line in the folder `place` of a module, on a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")
    return CommandLine(monkeypatch, capfd)
