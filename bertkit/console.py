"""What the command line prints, and what it keeps quiet."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group

    from bertkit.gradients import GradientReport, LayerGradients
    from bertkit.training.range_test import RangeTest

_SHOWN = 32  # tokens of a row
_NAMED = 3  # weights of a layer
_RATES = 12  # of a range test


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


def print_range_test(result: RangeTest) -> None:
    """Print some of the learning rates with their losses."""
    last = len(result.learning_rates) - 1
    shown = sorted({round(index * last / (_RATES - 1)) for index in range(_RATES)})
    print_table(
        ["learning rate", "loss", "smoothed"],
        [[f"{result.learning_rates[i]:.2e}", _figure(result.losses[i]), _figure(result.smoothed[i])]
         for i in shown],
    )  # fmt: skip


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is text, the others as they are."""
    from rich.console import Console

    Console(soft_wrap=False).print(_table(header, rows))


def gradients_as_text(report: GradientReport) -> str:
    """Return what `gradient_tables` shows as plain text, 100 columns wide."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=100)
    with console.capture() as captured:
        console.print(gradient_tables(report))
    return captured.get().rstrip()


def gradient_tables(report: GradientReport) -> Group:
    """Return what came in, the layers, and what has no gradient, for `rich` to print."""
    from rich.console import Group
    from rich.text import Text

    first = {
        "token_ids": report.tokens,
        "segment_ids": report.segment_ids,
        "padding_mask": report.padding_mask,
    }
    received = [
        [one.name, str(one.shape), one.dtype, _row(first.get(one.name, ()))]
        for one in report.received
    ]
    layers = [
        [layer.name, f"{layer.parameters:,}", _share(layer.trained, layer.parameters),
         _short(layer.gradient_norm), _short(layer.update_ratio)]
        for layer in report.layers
    ]  # fmt: skip
    lines = [f"loss {report.loss:.4f}, learning rate {report.learning_rate:g}"]
    lines += [line for layer in report.layers for line in _without(layer)]
    lines += [
        f"Neither trained nor saved, since the model does not list it: {one.name}"
        + (f", in {one.owner}" if one.owner else "")
        for one in report.hidden
    ]
    lines += [f"Note: {note}." for note in report.notes]
    return Group(
        _table(["received", "shape", "dtype", "first row"], received),
        _table(["layer", "parameters", "trained", "gradient norm", "update / weight"], layers),
        *map(Text, lines),
    )


def _without(layer: LayerGradients) -> Iterator[str]:
    """Yield a line for each reason why weights of a layer get no gradient."""
    for reason in dict.fromkeys(layer.without.values()):
        paths = [path for path, why in layer.without.items() if why == reason]
        more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
        yield f"No gradient in {layer.name}: {', '.join(paths[:_NAMED])}{more}: {reason}."


def _row(values: Sequence[Any]) -> str:
    return " ".join(map(str, values[:_SHOWN])) + (" …" if len(values) > _SHOWN else "")


def _share(trained: int, parameters: int) -> str:
    if trained in (0, parameters):
        return "yes" if trained else "no"
    return f"{trained:,}"


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    from rich.table import Table

    table = Table(*header)
    for row in rows:
        table.add_row(*map(_plain, row))
    return table


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _plain(text: Any) -> str:
    """Keep square brackets in text from being read as markup."""
    return str(text).replace("[", r"\[")
