"""Runs: what their folders hold, that it is right, and that they appear whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

import bertkit
from bertkit import experiment, finished, reading
from bertkit.config import load_config
from bertkit.errors import ArtifactError, ConfigError, DataError, DivergenceError, InputError
from bertkit.registry import heads
from bertkit.training.checkpoint_files import CheckpointFolder
from tests.command_line import snapshot, tiny_config, write_jsonl, write_tiny_data, write_yaml
from tests.tiny_models import HEADS, weights_of

WORDS = [
    "good",
    "bad",
    "film",
    "boring",
    "love",
    "hate",
    "fine",
    "dull",
    "great",
    "terrible",
    "plot",
    "story",
    "actor",
    "ending",
]
ROWS, TEST_ROWS, EPOCHS = 60, 30, 2


def make_rows(head: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Return random texts whose labels have something to do with them."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        words = random.choice(WORDS, random.integers(1, 12))
        value = float(np.isin(words, ["good", "love", "fine", "great"]).mean())
        noisy = value + random.normal(0, 0.1)
        label: Any = {
            "binary": "pos" if noisy > 0.25 else "neg",
            "multiclass": int(np.clip(noisy * 4, 0, 2)),
            "multi_label": [
                name for name, word in [("f", "film"), ("b", "bad"), ("l", "love")] if word in words
            ],
            "regression": round(noisy * 10 - 3, 3),
        }[head]
        rows.append({"text": " ".join(words), "label": label})
    return rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with data and configs, which is the current one."""
    folder = write_tiny_data(tmp_path_factory.mktemp("runs"))
    for head in HEADS:
        write_jsonl(folder / f"{head}.jsonl", make_rows(head, ROWS, seed=1))
        write_jsonl(folder / f"{head}-test.jsonl", make_rows(head, TEST_ROWS, seed=2))
        write_yaml(folder / f"{head}.yaml", config_of(head))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def config_of(head: str, /, **changes: Any) -> dict[str, Any]:
    return tiny_config(
        head,
        **{
            "data__validation": 0.2,
            "data__test": f"{head}-test.jsonl",
            "training__epochs": EPOCHS,
            "seed": 3,
            **changes,
        },
    )


@pytest.fixture(scope="module")
def results(place: Path) -> dict[str, experiment.Result]:
    return {head: experiment.run(load_config([f"{head}.yaml"]), verbose=0) for head in HEADS}


def read_json(path: Path) -> Any:
    def refuse(name: str) -> None:
        pytest.fail(f"{path} holds {name}, which is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.mark.parametrize("head", HEADS)
def test_contents(results: dict[str, experiment.Result], head: str) -> None:
    folder = results[head].folder
    assert folder == Path(f"runs/{head}")
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "model", "metrics.json", "data.json", "history.csv", "logs",
    }  # fmt: skip
    assert {path.name for path in (folder / "model").iterdir()} == {
        "config.yaml", "manifest.json", "model.keras",
    }  # fmt: skip
    config = load_config([f"{head}.yaml"])
    assert load_config([folder / "config.yaml"]) == config
    assert (folder / "config.yaml").read_text() == (folder / "model" / "config.yaml").read_text()
    assert read_json(folder / "metrics.json") == results[head].metrics
    hidden = [path.name for path in folder.parent.iterdir() if path.name.startswith(".")]
    assert hidden == []


def reference(head: str, model: bertkit.BertClassifier, rows: list[dict[str, Any]]) -> Any:
    """Return the measures of rows by scikit-learn and SciPy, from what `classify` says."""
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    answers = model.classify(texts)
    if head == "regression":
        values = np.array([answer["value"] for answer in answers])
        truth = np.array(labels)
        return {
            "mean_absolute_error": sk.mean_absolute_error(truth, values),
            "root_mean_squared_error": sk.root_mean_squared_error(truth, values),
            "pearson": stats.pearsonr(truth, values).statistic,
            "spearman": stats.spearmanr(truth, values).statistic,
            "loss": sk.mean_squared_error(truth, values) / model.head.scale**2,
        }
    names = model.head.labels
    scores = np.array([[answer["scores"][str(name)] for name in names] for answer in answers])
    if head == "multi_label":
        truth = np.array([[name in label for name in names] for label in labels], dtype=int)
        predicted = np.array([[name in a["labels"] for name in names] for a in answers], dtype=int)
        loss = np.mean([sk.log_loss(truth[:, i], scores[:, i]) for i in range(len(names))])
        curves, curve_scores = truth, scores
        mcc = sk.matthews_corrcoef(truth.ravel(), predicted.ravel())
    else:
        truth = np.array([names.index(label) for label in labels])
        predicted = np.array([names.index(answer["label"]) for answer in answers])
        loss = sk.log_loss(truth, scores, labels=range(len(names)))
        curves = np.eye(len(names), dtype=int)[truth]
        curve_scores = scores
        if head == "binary":
            curves, curve_scores = curves[:, 1], scores[:, 1]
        mcc = sk.matthews_corrcoef(truth, predicted)
    return {
        "accuracy": sk.accuracy_score(truth, predicted),
        "macro_f1": sk.f1_score(truth, predicted, average="macro", zero_division=0),
        "micro_f1": sk.f1_score(truth, predicted, average="micro", zero_division=0),
        "roc_auc": sk.roc_auc_score(curves, curve_scores, average="macro"),
        "average_precision": sk.average_precision_score(curves, curve_scores, average="macro"),
        "mcc": mcc,
        "loss": loss,
    }


@pytest.mark.parametrize("head", HEADS)
def test_metrics(results: dict[str, experiment.Result], head: str) -> None:
    folder = results[head].folder
    found = read_json(folder / "metrics.json")
    assert list(found) == ["validation", "test"]
    model = bertkit.load(folder)
    split = reading.read_data(load_config([folder / "config.yaml"]), model)["validation"]
    training = [json.loads(line) for line in Path(f"{head}.jsonl").read_text().splitlines()]
    rows = {
        "validation": [training[line - 1] for line in split.places.line_of],
        "test": make_rows(head, TEST_ROWS, seed=2),
    }
    assert [row["label"] for row in rows["validation"]] == split.labels
    for name, measures in found.items():
        expected = reference(head, model, rows[name])
        assert set(measures) == set(expected)
        for measure, value in measures.items():
            assert value == pytest.approx(expected[measure], abs=1e-5), (name, measure)


@pytest.mark.parametrize("head", HEADS)
def test_history_and_logs(results: dict[str, experiment.Result], head: str) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    folder = results[head].folder
    with (folder / "history.csv").open(newline="") as file:
        history = list(csv.DictReader(file))
    assert [row["epoch"] for row in history] == [str(epoch) for epoch in range(EPOCHS)]
    metrics = read_json(folder / "metrics.json")
    assert float(history[-1]["val_loss"]) == pytest.approx(metrics["validation"]["loss"], rel=1e-4)
    for part, column in [("train", "loss"), ("validation", "val_loss")]:
        events = EventAccumulator(str(folder / "logs" / part))
        events.Reload()
        losses = events.Tensors("epoch_loss")
        assert [event.step for event in losses] == list(range(EPOCHS))
        written = [float(make_ndarray(event.tensor_proto)) for event in losses]
        assert written == pytest.approx([float(row[column]) for row in history], rel=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_data_report(results: dict[str, experiment.Result], head: str) -> None:
    report = read_json(results[head].folder / "data.json")
    counts = {name: part["rows"] for name, part in report.items()}
    assert counts == {"train": 48, "validation": 12, "test": TEST_ROWS}
    test = make_rows(head, TEST_ROWS, seed=2)
    assert report["test"]["duplicates"] == len(test) - len({row["text"] for row in test})
    if head == "binary":
        labels = [row["label"] for row in test]
        assert report["test"]["labels"] == {name: labels.count(name) for name in ("neg", "pos")}
    if head == "regression":
        values = [row["label"] for row in test]
        assert report["test"]["numbers"]["mean"] == pytest.approx(np.mean(values))


# The seed


def test_a_seed_makes_the_run(results: dict[str, experiment.Result]) -> None:
    again, other = (
        experiment.run(config_of("binary", seed=seed, output_dir=f"seeds/{seed}"), verbose=0)
        for seed in (3, 4)
    )
    assert again.metrics == results["binary"].metrics
    for one, two in zip(weights_of(again.model), weights_of(results["binary"].model), strict=True):
        np.testing.assert_array_equal(one, two)
    for name in ("metrics.json", "history.csv", "data.json"):
        files = [folder / name for folder in (again.folder, results["binary"].folder)]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert other.metrics != again.metrics
    differ = [
        not np.array_equal(one, two)
        for one, two in zip(weights_of(other.model), weights_of(again.model), strict=True)
    ]
    assert sum(differ) > len(differ) / 2


@pytest.mark.parametrize(
    ("validation", "test"), [(0.2, 0.25), (0.333, None), (None, 0.5), (1 / 60, 1 / 60)]
)
def test_fractions(
    results: dict[str, experiment.Result], validation: float | None, test: float | None
) -> None:
    model = results["binary"].model

    def places(seed: int) -> dict[str, list[int]]:
        changes = {"data__validation": validation, "data__test": test, "seed": seed}
        mapping = config_of("binary", **changes)
        mapping["data"] = {key: value for key, value in mapping["data"].items() if value}
        splits = reading.read_data(experiment._valid(mapping), model)
        training = make_rows("binary", ROWS, seed=1)
        for split in splits.values():
            assert split.labels == [training[line - 1]["label"] for line in split.places.line_of]
            assert len(split.examples) == len(split.labels) == split.report.rows
        return {name: split.places.line_of.tolist() for name, split in splits.items()}

    found = places(seed=3)
    wanted = {"train": None, "validation": validation, "test": test}
    assert list(found) == [name for name, part in wanted.items() if part or name == "train"]
    for name, part in wanted.items():
        if part:
            assert len(found[name]) == round(part * ROWS)
    assert sorted(line for lines in found.values() for line in lines) == [*range(1, ROWS + 1)]
    assert places(seed=3) == found
    assert places(seed=4) != found


# Again, and on other rows


@pytest.mark.parametrize("head", HEADS)
def test_evaluate_again(results: dict[str, experiment.Result], head: str) -> None:
    folder = results[head].folder
    assert finished.evaluate_run(folder) == results[head].metrics
    (found,) = finished.evaluate_run(folder, [f"{head}-t*.jsonl"]).values()
    # Not to the last bit: oneDNN chooses its kernels by the first batch that it sees.
    assert found == pytest.approx(results[head].metrics["test"], abs=1e-3)


@pytest.mark.parametrize("head", HEADS)
def test_predict_keeps_the_order(results: dict[str, experiment.Result], head: str) -> None:
    rows = make_rows(head, TEST_ROWS, seed=2)
    expected = results[head].model.classify([row["text"] for row in rows])
    for size in (7, 64):
        found = list(
            finished.predict_rows(results[head].folder, f"{head}-test.jsonl", batch_size=size)
        )
        assert [row.pop("text") for row in found] == [row["text"] for row in rows]
        for one, other in zip(found, expected, strict=True):
            assert one.keys() == other.keys()
            assert one.get("label") == other.get("label")
            assert one.get("labels") == other.get("labels")
            assert one.get("scores", one.get("value")) == pytest.approx(
                other.get("scores", other.get("value")), abs=1e-6
            )


def test_rows_come_as_they_are_read(results: dict[str, experiment.Result], place: Path) -> None:
    (place / "late.jsonl").write_text('{"text": "good"}\n{"text": "bad"}\nbroken\n')
    rows = finished.predict_rows(results["binary"].folder, "late.jsonl", batch_size=2)
    assert [next(rows)["text"], next(rows)["text"]] == ["good", "bad"]
    with pytest.raises(DataError, match=r"late\.jsonl:3"):
        next(rows)


def test_an_artifact_without_a_config(results: dict[str, experiment.Result], place: Path) -> None:
    bertkit.artifact.save(results["binary"].model, place / "alone")
    assert bertkit.load(place / "alone").classify(["good"])
    for call in (finished.evaluate_run, lambda path: next(finished.predict_rows(path, "-"))):
        with pytest.raises(ArtifactError, match="saved without a config"):
            call(place / "alone")


# Other data


def test_pairs_in_two_columns(place: Path) -> None:
    lines = [f"{a}\t{b}\t{'same' if i % 2 else 'other'}"
             for i, (a, b) in enumerate(zip(WORDS, WORDS[::-1], strict=True))]  # fmt: skip
    (place / "pairs.tsv").write_text("\n".join(["first\tsecond\tlabel", *lines, ""]))
    data = {"train": "pairs.tsv", "text": ["first", "second"], "label": "label", "test": 0.25}
    preprocessor = {"plugin": "sentence_pair", "sequence_length": 16}
    mapping = tiny_config(name="pairs", data=data, preprocessor=preprocessor)
    result = experiment.run(mapping, verbose=0)
    assert result.metrics.keys() == {"test"}
    (row, *_) = rows = list(finished.predict_rows(result.folder, "pairs.tsv"))
    assert len(rows) == len(WORDS) and row["text"] == [WORDS[0], WORDS[-1]]
    pairs = list(zip(WORDS, WORDS[::-1], strict=True))
    answers = bertkit.load(result.folder).classify(pairs)
    assert [answer["label"] for answer in answers] == [row["label"] for row in rows]


def test_a_separator_and_lists_are_the_same(
    results: dict[str, experiment.Result], place: Path
) -> None:
    for name, count, seed in [("multi_label", ROWS, 1), ("multi_label-test", TEST_ROWS, 2)]:
        lines = [f"{row['text']},{' | '.join(row['label'])}"
                 for row in make_rows("multi_label", count, seed)]  # fmt: skip
        (place / f"{name}.csv").write_text("\n".join(["text,label", *lines, ""]))
    mapping = config_of("multi_label", name="separated", data__train="multi_label.csv",
                        data__test="multi_label-test.csv", data__label_separator="|")  # fmt: skip
    assert experiment.run(mapping, verbose=0).metrics == results["multi_label"].metrics


def test_a_label_error_names_file_and_line(place: Path) -> None:
    (place / "one.csv").write_text("text,label\ngood,1\n,2\nfine,3\n")
    (place / "two.csv").write_text('text,label\n"two\nlines",4\nbad,high\n')
    data = {"train": ["one.csv", "two.csv"], "text": "text", "label": "label"}
    with pytest.raises(DataError) as caught:
        experiment.run(tiny_config("regression", name="lines", data=data), verbose=0)
    assert str(caught.value).startswith("two.csv:4: ") and "'high'" in str(caught.value)
    assert not Path("runs/lines").exists()


def test_precision(place: Path) -> None:
    precision = "mixed_float16"
    mapping = config_of("binary", name=precision, training__precision=precision)
    result = experiment.run(mapping, verbose=0)
    assert keras.config.dtype_policy().name == "float32"  # of others
    assert result.model.encoder.dtype_policy.name == precision
    assert isinstance(result.model.optimizer, keras.optimizers.LossScaleOptimizer)
    loaded = bertkit.load(result.folder)
    assert loaded.encoder.dtype_policy.name == precision
    before, after = (model.predict(WORDS, verbose=0) for model in (result.model, loaded))
    np.testing.assert_array_equal(before, after)


# Whole or not at all


def test_batches_of_so_many_tokens(place: Path) -> None:
    mapping = config_of("binary", name="tokens", training__batch_tokens=60)
    mapping["training"].pop("batch_size", None)
    model = experiment.run(mapping, verbose=0).model
    schedule = model.optimizer.get_config()["learning_rate"]["config"]
    # Of 48 rows of about 8 tokens; the schedule knows the number of steps.
    assert schedule["steps"] == int(model.optimizer.iterations.numpy()) > EPOCHS * 48 * 5 / 60
    report = experiment.inspect(mapping)
    assert report is not None
    with pytest.raises(InputError, match="batch_tokens is 8, and a row has"):
        experiment.run({**mapping, "training": {"batch_tokens": 8}, "name": "few"}, verbose=0)


def test_overwriting_replaces_the_whole_folder(place: Path) -> None:
    first = experiment.run(tiny_config(name="again"), verbose=0)
    (first.folder / "notes.txt").write_text("of the first run")
    with pytest.raises(ArtifactError, match="exists already, and no run is overwritten unasked"):
        experiment.run(tiny_config(name="again"), verbose=0)
    assert (first.folder / "notes.txt").exists()
    experiment.run(tiny_config(name="again", seed=9), overwrite=True, verbose=0)
    assert not (first.folder / "notes.txt").exists()
    assert load_config([first.folder / "config.yaml"]).seed == 9


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_exception_leaves_nothing_behind(
    results: dict[str, experiment.Result], place: Path, error: type[BaseException]
) -> None:
    """It comes from within training: when the head is asked for its metrics."""

    class FailingHead(type(heads.create("binary"))):  # type: ignore[misc]
        def make_metrics(self) -> Any:
            assert Path("runs/binary.unfinished").is_dir()
            raise error

    heads.register("failing_run")(FailingHead)
    before = snapshot(place)
    try:
        with pytest.raises(error):
            mapping = config_of("binary", head={"plugin": "failing_run"})
            experiment.run(mapping, overwrite=True, verbose=0)
    finally:
        heads._decorated.pop("failing_run")
    assert snapshot(place) == before


def test_a_run_that_diverges(place: Path) -> None:
    before = snapshot(place)
    notes: list[str] = []
    mapping = tiny_config(name="diverged", training__learning_rate=1e30, training__epochs=2,
                          training__checkpoint_minutes=0)  # fmt: skip
    with pytest.raises(DivergenceError, match=r"batch is in runs/diverged.unfinished/bad_batch"):
        experiment.run(mapping, verbose=0, on_note=notes.append)
    stage = Path("runs/diverged.unfinished")
    assert notes == [
        f"What was trained is kept in {stage}. Pass --resume with training.on_divergence=roll_back "
        "to go on from there at a lower learning rate, or --overwrite to begin anew."
    ]
    rows = json.loads((stage / "bad_batch.json").read_text())["rows"]
    with np.load(stage / "bad_batch.npz", allow_pickle=False) as batch:
        assert batch["token_ids"].shape[0] == batch["targets"].shape[0] == len(rows)
    # What was trained until then stays, whatever else is wrong with the next run.
    checkpoints = CheckpointFolder(stage / "checkpoint").files()
    assert checkpoints
    mapping["training"]["on_divergence"] = "ignore"
    with pytest.raises(DivergenceError, match=r"diverged.* Lower training.learning_rate"):
        experiment.run(mapping, verbose=0, resume=True, on_note=notes.append)
    assert notes.pop() == notes[0]
    assert CheckpointFolder(stage / "checkpoint").files()
    with pytest.raises(ArtifactError, match=r"Pass --resume .* or --overwrite"):
        experiment.run(mapping, verbose=0)
    shutil.rmtree(stage)
    assert snapshot(place) == {**before, "runs": ""}


def test_too_little_memory(place: Path) -> None:
    class VastHead(type(heads.create("binary"))):  # type: ignore[misc]
        def adapt(self, labels: Any) -> None:
            np.zeros((2**30, 2**20))

    heads.register("vast_run")(VastHead)
    try:
        with pytest.raises(ConfigError, match=r"memory does not suffice. Lower training.batch"):
            experiment.run(
                tiny_config("binary", name="vast", head={"plugin": "vast_run"}), verbose=0
            )
    finally:
        heads._decorated.pop("vast_run")
    assert not Path("runs/vast").exists()


def weights_saved(folder: Path) -> dict[str, np.ndarray]:
    """Return every array of a run's saved weights and optimizer, by its place."""
    found: dict[str, np.ndarray] = {}

    def take(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with zipfile.ZipFile(folder / "model" / "model.keras") as file:
        content = io.BytesIO(file.read("model.weights.h5"))
    with h5py.File(content) as weights:
        weights.visititems(take)
    return found


BERTKIT = str(Path(sys.executable).with_name("bertkit"))


def start(*words: str, limit: int | None = None) -> subprocess.Popen[str]:
    """Start a command in the current folder.

    Args:
        words: what follows `bertkit`.
        limit: the largest file it may write, in bytes, as on a full disk.
    """

    def before() -> None:
        # A job in the background inherits that interrupts are ignored.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [BERTKIT, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    )


def wait_for(found: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def trained_some(name: str) -> bool:
    """Return whether a run in the making has written a checkpoint."""
    return any(Path("killed", f"{name}.unfinished", "checkpoint").glob("*.npz"))


def test_a_run_in_a_process_of_its_own(results: dict[str, experiment.Result]) -> None:
    """It is the same to the last bit, and says nothing on standard error."""
    process = start("train", "binary.yaml", "output_dir=process/run")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, ""), err
    assert out.endswith("Wrote process/run. Use it: bertkit predict process/run\n")
    folder = results["binary"].folder
    for name in ("metrics.json", "history.csv", "data.json"):
        assert (Path("process/run") / name).read_bytes() == (folder / name).read_bytes()
    one, other = (weights_saved(path) for path in (Path("process/run"), folder))
    assert one.keys() == other.keys() and len(one) > 30
    for name, weights in one.items():
        np.testing.assert_array_equal(weights, other[name])


def test_a_killed_run_leaves_the_earlier_one(place: Path) -> None:
    experiment.run(tiny_config(name="earlier", output_dir="killed/earlier"), verbose=0)
    before = snapshot(place / "killed" / "earlier")
    endless = ["train", "binary.yaml", "training.epochs=1000000"]
    over = start(*endless, "output_dir=killed/earlier", "--overwrite")
    new = start(*endless, "output_dir=killed/new")
    for name, process, sent in [("earlier", over, signal.SIGKILL), ("new", new, signal.SIGINT)]:
        wait_for(lambda name=name: trained_some(name))  # type: ignore[misc]
        process.send_signal(sent)
    _, err = new.communicate(timeout=60)
    assert new.returncode == 130 and "Traceback" not in err
    over.communicate(timeout=60)
    assert over.returncode == -signal.SIGKILL
    assert snapshot(place / "killed" / "earlier") == before
    names = {path.name for path in Path("killed").iterdir()}
    assert names == {"earlier", "earlier.unfinished", "new.unfinished"}


def test_a_full_disk_leaves_nothing_half_written(
    results: dict[str, experiment.Result], place: Path
) -> None:
    before = snapshot(place)
    folder = str(results["binary"].folder)
    new = start("train", "binary.yaml", "name=full", limit=40_000)  # less than the model
    over = start("predict", folder, "binary-test.jsonl", "-o", "full.jsonl", limit=1_000)
    for process in (new, over):
        _, err = process.communicate(timeout=120)
        assert process.returncode == 2, err
        assert err.startswith("Error: ") and len(err.splitlines()) == 1, err
        assert "too large" in err or "space" in err, err
    assert snapshot(place) == before
