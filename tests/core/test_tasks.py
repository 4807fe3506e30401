"""Several tasks in a config, each with its own rows or its own column, from YAML to predictions."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertkit import experiment
from bertkit.config import config_from_mapping, load_config, to_yaml
from bertkit.data.loading import Split
from bertkit.errors import ConfigError, DataError
from bertkit.reading import read_data, sources_of
from tests.command_line import CommandLine, tiny_config, write_jsonl, write_tiny_data, write_yaml
from tests.core.test_resume import content_of, interrupt

FILLERS = ["the", "a", "film", "story", "plot", "one", "two", "with", "for", "on", "it", "this"]
MOODS = {"pos": ["good", "great", "love"], "neg": ["bad", "awful", "hate"]}
TOPICS = {"animal": ["cat", "dog"], "press": ["news", "world"], "play": ["actor", "scene"]}
HEADS: dict[str, Any] = {"mood": {"plugin": "binary"}, "topic": {"plugin": "multiclass"}}
HEAD = {"plugin": "multi_task", "heads": HEADS}
TASKS: dict[str, Any] = {
    "mood": {"train": "moods.jsonl", "label": "mood", "validation": 0.2, "test": 0.2},
    "topic": {"train": "topics.csv", "label": "topic", "text": "line", "validation": 0.25,
              "test": "topics_test.csv"},
}  # fmt: skip


def config_of(**changes: Any) -> dict[str, Any]:
    config = tiny_config(
        "binary",
        name="tasks",
        data={"text": "text", "tasks": TASKS, "temperature": 2},
        head=HEAD,
        encoder__pooling="mean",
        training={"epochs": 6, "batch_size": 8, "learning_rate": 1e-2, "checkpoint_minutes": 0},
    )
    return {**config, **changes}


def sentences(words: dict[str, list[str]], count: int, seed: int) -> list[tuple[str, str]]:
    """Return texts with their labels: a word tells, among others that do not."""
    random = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        label = list(words)[index % len(words)]
        text = [*random.choice(FILLERS, random.integers(1, 8)), random.choice(words[label])]
        rows.append((" ".join(random.permutation(text)), label))
    return rows


def write_topics(path: Path, rows: list[tuple[str, str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("topic", "line"), *((label, text) for text, label in rows)])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with data and configs, which is the current one."""
    folder = write_tiny_data(tmp_path_factory.mktemp("tasks"))
    moods = sentences(MOODS, 150, 0)
    write_jsonl(folder / "moods.jsonl", [{"text": text, "mood": label} for text, label in moods])
    write_topics(folder / "topics.csv", sentences(TOPICS, 60, 1))
    write_topics(folder / "topics_test.csv", sentences(TOPICS, 30, 2))
    write_yaml(folder / "tasks.yaml", config_of())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    best = ["training.restore_best=val_topic_accuracy"]
    return experiment.run(load_config(["tasks.yaml"], best), verbose=0).folder


def read(config: dict[str, Any]) -> dict[str, Split]:
    made = config_from_mapping(config)
    return read_data(made, experiment.build(made))


# Training, and what is done with the run


def test_both_tasks_are_learned(trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    for split in ("validation", "test"):
        assert metrics[split]["mood_accuracy"] > 0.9
        assert metrics[split]["topic_accuracy"] > 0.9
    with (trained / "history.csv").open() as file:
        epochs = list(csv.DictReader(file))
    assert {"mood_accuracy", "val_topic_accuracy"} <= epochs[0].keys()
    best = max(float(epoch["val_topic_accuracy"]) for epoch in epochs)
    assert metrics["validation"]["topic_accuracy"] == pytest.approx(best)


def test_the_report_counts_by_task(trained: Path) -> None:
    report = json.loads((trained / "data.json").read_text())
    assert [report[name]["rows"] for name in ("train", "validation", "test")] == [135, 45, 60]
    mood, topic = (report["train"]["tasks"][task] for task in TASKS)
    assert (mood["rows"], topic["rows"]) == (90, 45)
    assert sum(mood["labels"].values()) == 90 and set(topic["labels"]) == set(TOPICS)
    assert report["train"]["labels"] == {} and report["train"]["lengths"]["longest"] <= 10


def test_commands_on_the_run(bertkit: CommandLine, place: Path, trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    again = json.loads(bertkit("evaluate", trained, "--json").out)
    assert again["test"] == pytest.approx(metrics["test"], abs=1e-5)
    done = bertkit("evaluate", trained, "--data", "topics_test.csv", "--task", "topic", "--json")
    found = json.loads(done.out)["data"]
    assert found["topic_accuracy"] == metrics["test"]["topic_accuracy"]
    assert not any(name.startswith("mood") for name in found)

    (place / "texts.txt").write_text("the cat is good\n")
    (row,) = bertkit("predict", trained, "texts.txt").predictions()
    assert bertkit("predict", trained, stdin=b"the cat is good\n").predictions() == [row]
    assert list(row) == ["text", "mood", "topic"]
    assert row["mood"]["label"] in MOODS and set(row["topic"]["scores"]) == set(TOPICS)
    rows = bertkit("predict", trained, "topics_test.csv", "--task", "topic").predictions()
    assert len(rows) == 30 and list(rows[0]) == ["text", "label", "score", "scores"]
    right = [
        row["label"] == label
        for row, (_, label) in zip(rows, sentences(TOPICS, 30, 2), strict=True)
    ]
    assert np.mean(right) == metrics["test"]["topic_accuracy"]

    done = bertkit("export", trained, "exported", "--format", "huggingface")
    assert done.code == 0 and "The head MultiTaskHead is left out" in done.out
    for words, message in (
        (["predict", trained, "topics_test.csv"], "and no task is named. Name one with --task"),
        (["evaluate", trained, "--data", "moods.jsonl"], "(task): mood, topic."),
        (["predict", trained, "moods.jsonl", "--task", "mod"], "and there is no task 'mod'"),
        (["evaluate", trained, "--task", "mood"], "The task 'mood' is named, and no files."),
    ):
        done = bertkit(*words)
        assert done.code == 2 and message in done.err


def test_commands_on_the_config(bertkit: CommandLine, place: Path) -> None:
    done = bertkit("train", "tasks.yaml", "name=dry", "--dry-run")
    assert done.code == 0 and "temperature: 2.0" in done.out
    done = bertkit("train", "tasks.yaml", "name=dry", "--dry-run", "data.tasks.mood.label=moood")
    assert done.code == 2 and "there is no column 'moood'. Did you mean 'mood'?" in done.err
    report = json.loads(bertkit("inspect", "tasks.yaml", "--json").out)
    heads = [layer for layer in report["layers"] if "head" in layer["name"]]
    assert heads and all(layer["gradient_norm"] > 0 for layer in heads)
    done = bertkit("find-learning-rate", "tasks.yaml", "--steps", "20", "data.temperature=[3,1]")
    assert done.code == 0 and "learning_rate.csv" in done.out


def test_what_is_printed(bertkit: CommandLine, place: Path) -> None:
    done = bertkit("train", "tasks.yaml", "name=printed", "training.epochs=1")
    assert (done.code, done.err) == (0, "")
    lines = [" ".join(line.replace("│", " ").split()) for line in done.out.splitlines()]
    assert "rows 135 45 60" in lines
    assert "mood: rows 90 (66.7%) 30 (66.7%) 30 (50.0%)" in lines
    assert any(line.startswith("topic: label animal ") for line in lines)
    assert any(line.startswith("mood_accuracy ") for line in lines)


def test_resumed_to_the_last_bit(bertkit: CommandLine, place: Path) -> None:
    schedule = ["data.temperature=[4, 1]", "training.epochs=2"]
    whole = experiment.run(load_config(["tasks.yaml"], ["name=whole", *schedule]), verbose=0)
    interrupt(load_config(["tasks.yaml"], ["name=cut", *schedule]))
    done = bertkit("train", "tasks.yaml", "name=cut", "--resume", schedule[1])
    assert done.code == 2 and "data.temperature was [4.0, 1.0] and is 2.0" in done.err
    done = bertkit("train", "tasks.yaml", "name=cut", "--resume", *schedule)
    assert (done.code, done.err) == (0, "")
    assert content_of(place / "runs/cut") == content_of(whole.folder)


# Reading


def test_no_label_lands_in_another_task(place: Path) -> None:
    files = {"moods.jsonl": "mood", "topics.csv": "topic", "topics_test.csv": "topic"}
    splits, places = read(config_of()), []
    for split in splits.values():
        for row, label in enumerate(split.labels):
            file, _, line = split.places.name(row).rpartition(":")
            written = (place / file).read_text().splitlines()[int(line) - 1]
            (task,) = label
            assert task == files[file]
            cell = json.loads(written)["mood"] if task == "mood" else written.split(",")[0]
            assert label[task] == cell
            words = json.loads(written)["text"] if task == "mood" else written.split(",")[1]
            assert split.examples.lengths[row] == len(words.split()) + 2
            places.append((file, line))
    assert len(set(places)) == len(places) == 150 + 60 + 30
    # The first rows have some of each task, as many as of all.
    first = Counter(task for label in splits["train"].labels[:30] for task in label)
    assert first == {"mood": 20, "topic": 10}


def test_a_row_is_named_in_an_error(place: Path) -> None:
    heads = {**HEADS, "topic": {"plugin": "multiclass", "labels": ["animal", "press"]}}
    config = config_of(head={**HEAD, "heads": heads}, name="named")
    with pytest.raises(DataError, match=r"^topics\.csv:\d+: Task 'topic': Label") as caught:
        experiment.run(config, verbose=0)
    line = int(str(caught.value).split(":")[1])
    assert (place / "topics.csv").read_text().splitlines()[line - 1].startswith("play,")
    assert " is 'play', which was never seen: the head knows 'animal', " in str(caught.value)


TABLE = """text,mood,topic,tags
good cat,pos,animal,a|b
bad news,neg,,|
a scene,,play,
the dog,,animal,b
great world,pos,press,a
"""
LABEL = {"mood": "mood", "topic": "topic", "tags": "tags"}
WITH_TAGS = {"plugin": "multi_task", "heads": {**HEADS, "tags": {"plugin": "multi_label"}}}


def table_config(**data: Any) -> dict[str, Any]:
    given = {"train": "table.csv", "text": "text", "label": LABEL, "label_separator": {"tags": "|"}}
    return config_of(name="table", data={**given, **data}, head=WITH_TAGS)


def test_one_table_with_a_column_a_task(place: Path, bertkit: CommandLine) -> None:
    (place / "table.csv").write_text(TABLE)
    config = table_config(validation="table.csv", temperature=[2, 1])
    split = read(config)["train"]
    assert split.labels == [
        {"mood": "pos", "topic": "animal", "tags": ["a", "b"]},
        {"mood": "neg", "tags": []},  # the separator alone: none of the tags
        {"topic": "play"},  # an empty cell: nothing is known of them
        {"topic": "animal", "tags": ["b"]},
        {"mood": "pos", "topic": "press", "tags": ["a"]},
    ]
    assert {task: report.rows for task, report in split.report.tasks.items()} == {
        "mood": 3, "topic": 4, "tags": 4
    }  # fmt: skip
    assert split.report.tasks["tags"].unlabelled == 1
    config["training"] = {"epochs": 1, "batch_size": 2}
    folder = experiment.run(config, verbose=0).folder
    done = bertkit("evaluate", folder, "--data", "table.csv", "--json")
    assert set(json.loads(done.out)["data"]) >= {"mood_accuracy", "tags_micro_f1"}
    done = bertkit("predict", folder, "table.csv", "--task", "mood")
    assert done.code == 2 and "no task of this run has files of its own. Leave --task" in done.err


def test_a_row_without_any_label(place: Path) -> None:
    (place / "empty.csv").write_text(TABLE + "the end, ,,\n")
    message = r"^empty\.csv:7: the label columns 'mood', 'topic', 'tags' are all empty\. Fill one"
    with pytest.raises(DataError, match=message):
        read(table_config(train="empty.csv"))


def test_an_empty_cell_of_a_tasks_own_file(place: Path) -> None:
    (place / "gap.csv").write_text("topic,line\nanimal,a cat\n,a dog\n")
    tasks = {**TASKS, "topic": {**TASKS["topic"], "train": "gap.csv"}}
    with pytest.raises(DataError, match=r"^gap\.csv:3: the label column 'topic' is empty"):
        read(config_of(data={"text": "text", "tasks": tasks}))


def test_too_few_rows_to_hold_out(place: Path) -> None:
    tasks = {**TASKS, "topic": {**TASKS["topic"], "validation": 0.001}}
    with pytest.raises(DataError, match=r"^data\.tasks\.topic\.validation holds out 0\.001 of 60"):
        read(config_of(data={"text": "text", "tasks": tasks}))


def test_a_metric_of_a_task_without_rows_for_validation(place: Path) -> None:
    tasks = {**TASKS, "topic": {**TASKS["topic"], "validation": None}}
    config = config_of(name="unseen", data={"text": "text", "tasks": tasks})
    config["training"] = {**config["training"], "restore_best": "val_topic_accuracy"}
    with pytest.raises(ConfigError, match="no row for validation has a label of the task 'topic'"):
        experiment.run(config, verbose=0)


def test_names_that_begin_alike_and_a_task_that_is_not_validated(place: Path) -> None:
    mood = {"train": "moods.jsonl", "label": "mood"}
    data = {"text": "text", "tasks": {"a": mood, "a_b": TASKS["topic"]}}
    head = {"plugin": "multi_task", "heads": {"a": HEADS["mood"], "a_b": HEADS["topic"]}}
    config = config_of(name="alike", data=data, head=head)
    config["training"] = {"epochs": 1, "restore_best": "val_a_b_accuracy"}
    metrics = experiment.run(config, verbose=0).metrics
    for measured in metrics.values():
        assert {"loss", "a_b_accuracy"} <= set(measured) and "a_accuracy" not in measured


# The config


def test_round_trip(place: Path) -> None:
    for tree in (config_of(), table_config(temperature=[5, 1])):
        config = config_from_mapping(tree)
        write_yaml(place / "again.yaml", {})
        (place / "again.yaml").write_text(to_yaml(config))
        assert load_config(["again.yaml"]) == config
    assert config.data.temperature == (5.0, 1.0)
    sources = sources_of(config_from_mapping(config_of()))
    assert [source.columns.text for source in sources.values()] == [("text",), ("line",)]


def without(task: str) -> dict[str, Any]:
    return {name: one for name, one in TASKS.items() if name != task}


BINARY = {"plugin": "binary"}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "both ways": (
        {"data": {"text": "text", "tasks": TASKS, "train": "a.csv"}},
        'data.train = "a.csv": expected none, since data.tasks has the keys of each task: put it t',
    ),
    "no text": (
        {"data": {"tasks": TASKS}},
        "data.tasks.mood.text: missing, expected text or a list of 1 or 2 texts, here or as data.t",
    ),
    "a pair": (
        {"data": {"text": ["a", "b"], "tasks": TASKS}},
        'data.text = ["a", "b"]: text names 2 columns, but single_text wants 1, expected one colum',
    ),
    "a pair of one task": (
        {"data": {"text": "a", "tasks": {**TASKS, "mood": {**TASKS["mood"], "text": ["a", "b"]}}}},
        'data.tasks.mood.text = ["a", "b"]: text names 2 columns, but single_text wants 1',
    ),
    "a misspelt key": (
        {"data": {"text": "a", "tasks": {**TASKS, "mood": {**TASKS["mood"], "lable": "x"}}}},
        'data.tasks.mood.lable = "x": unknown key, expected one of train, label, text, validation',
    ),
    "a task less": (
        {"data": {"text": "text", "tasks": without("topic")}},
        "data.tasks.topic: missing, expected too: the head multi_task has it",
    ),
    "a task misspelt": (
        {"data": {"text": "text", "tasks": {**without("topic"), "topics": TASKS["topic"]}}},
        "the head multi_task has no such task, expected mood, topic; did you mean 'topic'?",
    ),
    "a column less": (
        {"data": {"train": "a.csv", "text": "text", "label": {"mood": "mood"}}},
        "data.label.topic: missing, expected too: the head multi_task has it",
    ),
    "one column": (
        {"data": {"train": "a.csv", "text": "text", "label": "mood"}},
        'data.label = "mood": expected a mapping from each of the tasks mood, topic to its column,',
    ),
    "tasks without a head": (
        {"head": BINARY, "data": {"text": "text", "tasks": TASKS}},
        'data.tasks = ["mood", "topic"]: expected none, but train, label and text, since the head ',
    ),
    "columns without a head": (
        {"head": BINARY, "data": {"train": "a.csv", "text": "text", "label": {"mood": "mood"}}},
        'data.label = ["mood"]: expected one column, since the head binary has one label a row',
    ),
    "a temperature without tasks": (
        {"head": BINARY, "data": {"train": "a", "text": "text", "label": "x", "temperature": 2}},
        "data.temperature = 2.0: expected 1, since the head binary has no tasks",
    ),
    "a temperature with batch_tokens": (
        {"training": {"batch_tokens": 99}},
        "data.temperature = 2.0: expected 1, since with training.batch_tokens each row comes once",
    ),
    "one separator": (
        {"data": {"train": "a", "text": "t", "label": LABEL, "label_separator": "|"}},
        "expected a mapping from tasks to texts, as data.label is, such as {mood: '|'}",
    ),
    "a separator of no task": (
        {"data": {"train": "a", "text": "t", "label": LABEL, "label_separator": {"tag": "|"}}},
        'data.label_separator.tag = "|": expected a task of data.label: mood, topic, tags; did you',
    ),
    "separators of one column": (
        {"data": {"train": "a", "text": "t", "label": "x", "label_separator": {"tags": "|"}}},
        'data.label_separator = {"tags": "|"}: expected text, since data.label is no mapping',
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be(name: str) -> None:
    changes, message = WRONG[name]
    with pytest.raises(ConfigError) as caught:
        config_from_mapping(config_of(**changes))
    assert message in str(caught.value)
