"""What the command line prints, and what it keeps quiet."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Keep TensorFlow's start-up chatter from the user; show it if the block fails.

    It comes from C++ before any of its log levels apply, so standard error itself is redirected.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as chatter:
        os.dup2(chatter.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(kept, 2)
            chatter.seek(0)
            sys.stderr.write(chatter.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def print_metrics(metrics: Mapping[str, Mapping[str, float | None]]) -> None:
    """Print measures as a table, a column for each set of rows."""
    names = {name: None for measures in metrics.values() for name in measures}
    cells = [
        [name, *(_figure(measures.get(name)) for measures in metrics.values())] for name in names
    ]
    print_table(["measure", *metrics], cells)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is text, the others as they are."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*header)
    for row in rows:
        table.add_row(*map(_plain, row))
    Console(soft_wrap=False).print(table)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _plain(text: Any) -> str:
    """Keep square brackets in text from being read as markup."""
    return str(text).replace("[", r"\[")
