"""The command line: a thin layer over `bertkit.experiment`; TensorFlow is loaded only on need."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Optional

import typer

from bertkit.errors import BertkitError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Fine-tune BERT as a text classifier in Keras 3.",
)

_INTERRUPTED = 130  # what typer makes of a KeyboardInterrupt
_TERMINATED = 143

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")]
Config = Annotated[
    list[str],
    typer.Argument(metavar="CONFIG... [KEY=VALUE]...", help="YAML files, later ones over earlier "
                   "ones, then single keys such as training.epochs=1."),
]  # fmt: skip
Precision = Annotated[
    Optional[Literal["float32", "mixed_float16", "mixed_bfloat16"]],  # noqa: UP045
    typer.Option(help="Compute in it, whatever the run was trained in."),
]
Task = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Of a run whose tasks had files of their own: the one that these are of."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def train(
    config: Config,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Validate, show what would be built, touch nothing.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a run of that name, once this one is done.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with an unfinished run of that name, if any."),
    ] = False,
    allow_callbacks: Annotated[
        bool,
        typer.Option("--allow-callbacks", help="Let the code run that training.callbacks names."),
    ] = False,
) -> None:  # fmt: skip
    """Train and evaluate a model, and write its run folder."""
    from bertkit.console import print_metrics, quiet_start

    with quiet_start():
        from bertkit import experiment
        from bertkit.config import to_yaml
        from bertkit.data.report import render
    experiment_config = _load(config)
    if dry_run:
        print(to_yaml(experiment_config), end="")
        _print_parts(experiment_config)
        experiment.check_inputs(experiment_config, overwrite, resume, allow_callbacks)
        return
    from rich import print as rich_print

    result = experiment.run(
        experiment_config,
        overwrite=overwrite,
        on_data=lambda reports: rich_print(render(reports)),
        verbose=1 if sys.stdout.isatty() else 2,
        resume=resume,
        on_note=lambda note: print(note, flush=True),
        allow_callbacks=allow_callbacks,
    )
    if result.metrics:
        print_metrics(result.metrics)
    print(f"Wrote {result.folder}. Use it: bertkit predict {result.folder}")


@app.command()
def inspect(config: Config, as_json: AsJson = False) -> None:
    """Show what the first training step would do: inputs, gradients, updates, layer by layer."""
    from bertkit.console import gradient_tables, quiet_start

    with quiet_start():
        from bertkit import experiment
    report = experiment.inspect(_load(config))
    if as_json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        from rich import print as rich_print

        rich_print(gradient_tables(report))


@app.command()
def find_learning_rate(
    config: Config,
    smallest: Annotated[float, typer.Option(help="The first learning rate.")] = 1e-7,
    largest: Annotated[float, typer.Option(help="The last learning rate.")] = 1.0,
    steps: Annotated[int, typer.Option(help="How many there are.")] = 100,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder for learning_rate.csv and .png.")
    ] = Path(),
) -> None:  # fmt: skip
    """Try ever higher learning rates, undo it, and suggest one; write a table and a plot."""
    from bertkit.console import print_range_test, quiet_start

    with quiet_start():
        from bertkit import experiment
    result = experiment.find_learning_rate(
        _load(config), smallest=smallest, largest=largest, steps=steps
    )
    output.mkdir(parents=True, exist_ok=True)
    table, plot = output / "learning_rate.csv", output / "learning_rate.png"
    result.write_csv(table)
    print_range_test(result)
    if result.diverged:
        print("The loss diverged after the last of them.")
    if result.suggestion is None:
        print("It falls nowhere, so no learning rate is suggested. Try other rates, or more steps.")
    else:
        print(f"It falls the fastest at training.learning_rate={result.suggestion:.1e}")
    try:
        result.write_plot(plot)
        print(f"Wrote {table} and {plot}.")
    except ImportError as error:
        print(f"Wrote {table}. {error}")


@app.command()
def evaluate(
    run: Run,
    data: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads it at run time on Python 3.10
        typer.Option(help="Files or globs with the columns of the training data; without, the "
                     "rows that the run was evaluated on."),
    ] = None,
    task: Task = None,
    precision: Precision = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Measure a finished run again, or on other rows."""
    from bertkit.console import print_metrics, quiet_start

    with quiet_start():
        from bertkit import finished
    metrics = finished.evaluate_run(run, data or (), precision, task)
    if as_json:
        print(json.dumps(metrics, indent=2))
    else:
        print_metrics(metrics)


@app.command()
def predict(
    run: Run,
    source: Annotated[
        str,
        typer.Argument(metavar="INPUT", help="A file or glob; - is standard input."),
    ] = "-",
    output: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads it at run time on Python 3.10
        typer.Option("--output", "-o", help="Write here, whole or not at all."),
    ] = None,
    format: Annotated[
        Optional[Literal["text", "csv", "tsv", "jsonl", "parquet"]],  # noqa: UP045
        typer.Option(help="The suffix tells; standard input is text, one a line, unless said."),
    ] = None,
    batch_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Rows predicted at once, and waited for; without, 64 at first "
                     "and 4,096 at last, sorted by length."),
    ] = None,
    task: Task = None,
    precision: Precision = None,
) -> None:  # fmt: skip
    """Predict a JSON line for each row, as the rows come."""
    from bertkit.console import quiet_start

    with quiet_start():
        from bertkit import finished
    if source == "-" and format is None:
        format = "text"
    rows = finished.predict_rows(run, source, format, batch_size, precision, task)
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    if output is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # as JSON is, whatever the terminal is
        for line in lines:
            print(line, flush=True)
    else:
        finished.write_lines(output, lines)


@app.command()
def export(
    run: Run,
    destination: Annotated[
        Path, typer.Argument(metavar="DEST", help="A folder, which must not exist yet.")
    ],
    format: Annotated[
        Literal["tfhub", "kerashub", "huggingface"],
        typer.Option(help="tfhub: SavedModels of encoder and preprocessor; kerashub: a preset; "
                     "huggingface: a folder for transformers."),
    ],
    allow_approximation: Annotated[
        bool,
        typer.Option("--allow-approximation", help="Write kerashub also where KerasHub computes "
                     "another GELU than the model; says how far off it is."),
    ] = False,
) -> None:  # fmt: skip
    """Write a finished run's encoder in another program's format."""
    from bertkit.console import quiet_start

    with quiet_start():
        from bertkit import artifact, exporting
    model = artifact.load(run)
    for sentence in exporting.export(model, destination, format, allow_approximation):
        print(sentence)
    print(f"It is in {destination}.")


@app.command()
def plugins(as_json: AsJson = False) -> None:
    """List what is installed: kind, name, distribution, purpose and arguments."""
    from bertkit.console import quiet_start

    with quiet_start():
        from bertkit.catalogue import catalogue

        rows = catalogue()
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{row['kind']} {row['name']} ({row['distribution']})")
        print(f"    {row['error'] or row['summary']}")
        for argument in row["arguments"]:
            default = f" = {argument['default']!r}" if "default" in argument else ", required"
            print(f"    - {argument['name']}: {argument['type']}{default}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of a config, for editors that complete YAML."""
    from bertkit.console import quiet_start

    with quiet_start():
        from bertkit.schema import json_schema

        content = json_schema()
    print(json.dumps(content, indent=2, ensure_ascii=False))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check the installation, and print the exact fix for what is wrong."""
    from bertkit.console import print_table
    from bertkit.doctor import diagnose

    checks = diagnose()
    if as_json:
        print(json.dumps([vars(check) for check in checks], indent=2))
    else:
        print_table(
            ["check", "found", "fix"],
            [[check.name, ("ok: " if check.ok else "WRONG: ") + check.found, check.fix]
             for check in checks],
        )  # fmt: skip
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


@app.command()
def version() -> None:
    """Print the version."""
    from bertkit import __version__

    print(__version__)


def _load(words: list[str]) -> Any:
    """Return the config that files and KEY=VALUE make together."""
    from bertkit.config import load_config

    # os.path, since pathlib raises an error for a word too long for a path.
    overrides = [word for word in words if "=" in word and not os.path.isfile(word)]  # noqa: PTH113
    return load_config([word for word in words if word not in overrides], overrides)


def _print_parts(config: Any) -> None:
    from bertkit.registry import REGISTRIES

    print("\nParts:")
    for kind, registry in REGISTRIES.items():
        plugin = getattr(config, kind)
        if plugin is None:
            continue
        info = next(info for info in registry.infos() if info.name == plugin.plugin)
        arguments = ", ".join(f"{name}={value!r}" for name, value in plugin.arguments.items())
        print(f"  {kind}: {info.name}({arguments}), {info.location} of {info.distribution}")


def main() -> None:
    """Run the command line; an error that names its fix is printed alone, with exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a label it has no letters for
    # As Ctrl-C does, so that what is unfinished goes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))
    try:
        try:
            app(prog_name="bertkit")
        finally:
            _flush()
    except BertkitError as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        sys.exit(0)
    except SystemExit as ended:
        if ended.code in (_INTERRUPTED, _TERMINATED):
            # TensorFlow may wait for ever for the thread of a dataset that was not read to its
            # end, so the process ends without taking anything down.
            print("Interrupted.", file=sys.stderr, flush=True)
            os._exit(int(ended.code))
        raise
    except ImportError as error:
        _fail(f"{error}. Run `bertkit doctor`: it names what to install.")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}. Check the path, its permissions and the disk.")


def _flush() -> None:
    """Write what is left to write; if that fails, forget it: Python would try again at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _fail(message: str) -> NoReturn:
    print(f"Error: {message}", file=sys.stderr)
    sys.exit(2)
