"""The gradient report against steps that are really taken, and what it leaves behind: nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import bertkit
from bertkit.errors import InputError, TrainingError
from bertkit.training.groups import ParameterGroup
from bertkit.training.optimizer import AdamW
from tests.command_line import CommandLine, tiny_config, write_tiny_data, write_yaml
from tests.core.test_guards import Around, Bag, classifier
from tests.tiny_models import (
    LABELS,
    PAIRS,
    TEXTS,
    assert_same,
    tensors,
    tiny_encoder,
    tiny_model,
    weights_of,
)

Y = LABELS["binary"]
QUIET = {"dropout": 0.0, "attention_dropout": 0.0}
LAYERS = ["embeddings", "layer_0", "layer_1", "pooler", "head"]


@pytest.fixture(autouse=True)
def restored_policy() -> Iterator[None]:
    yield
    keras.config.set_dtype_policy("float32")


def model_with(optimizer: Any = None, **sizes: Any) -> bertkit.BertClassifier:
    model = tiny_model("binary", num_layers=2, **sizes)
    if optimizer is not None:
        model.compile(optimizer, metrics=[], run_eagerly=True)
    return model


def of_layer(model: bertkit.BertClassifier, name: str) -> list[Any]:
    return [w for w in model.weights if f"/{name}/" in w.path or name == "head" in w.path]


def norm(arrays: list[Any]) -> float:
    return math.sqrt(sum(float(np.square(np.asarray(a, "float64")).sum()) for a in arrays))


# --- The figures


def overflowing() -> Any:
    return keras.optimizers.LossScaleOptimizer(AdamW(1e-3), initial_scale=2.0**24)


@pytest.mark.parametrize(
    ("make", "policy", "steps", "trained"),
    [
        (lambda: keras.optimizers.SGD(1.0), "float32", 1, False),
        (lambda: AdamW(1e-3, weight_decay=0.1), "float32", 1, False),
        (lambda: AdamW(1e-3, [ParameterGroup("layer_0/", 0.5, 0.3)]), "float32", 1, True),
        (lambda: keras.optimizers.AdamW(1e-3, global_clipnorm=0.01), "float32", 1, True),
        (lambda: keras.optimizers.SGD(1.0, gradient_accumulation_steps=3), "float32", 3, False),
        (lambda: AdamW(1e-3), "mixed_float16", 1, True),
        (lambda: AdamW(1e-3, gradient_accumulation_steps=2), "mixed_float16", 2, True),
        (overflowing, "mixed_float16", 12, False),
        (lambda: AdamW(1e-3), "mixed_bfloat16", 1, False),
    ],
    ids=["sgd", "adamw", "groups", "clipped", "accumulated", "float16",
         "float16 accumulated", "overflow", "bfloat16"],
)  # fmt: skip
def test_the_figures_are_those_of_a_step_that_is_taken(
    make: Callable[[], Any], policy: str, steps: int, trained: bool
) -> None:
    keras.config.set_dtype_policy(policy)
    model = model_with(make(), **(QUIET if steps > 1 else {}))
    if steps > 1:
        model.head.dropout = 0.0
    if trained:
        for _ in range(2 * steps):  # the optimizer is built, and its moments are not zero
            model.train_on_batch(TEXTS, Y)
    before = weights_of(model)
    report = model.gradient_report(TEXTS, Y)
    assert model.optimizer.built == trained
    assert_same(weights_of(model), before)
    assert [layer.name for layer in report.layers] == LAYERS
    old = {weight.path: np.array(weight) for weight in model.weights}
    losses: list[float] = []
    while all(np.array_equal(old[w.path], w) for w in model.weights):
        assert len(losses) < steps
        losses.append(model.train_on_batch(TEXTS, Y))
    if policy != "mixed_float16" or steps != 12:
        assert len(losses) == steps and report.loss == pytest.approx(losses[0], rel=1e-6)
    for layer in report.layers:
        weights = of_layer(model, layer.name)
        change = norm([np.array(w, "float64") - old[w.path] for w in weights])
        ratio = change / norm([old[w.path] for w in weights])
        assert layer.update_ratio == pytest.approx(ratio, rel=2e-5)
        if isinstance(model.optimizer, keras.optimizers.SGD):  # at a learning rate of 1
            assert layer.gradient_norm == pytest.approx(change, rel=1e-4)
        assert layer.trained == layer.parameters == sum(int(tf.size(w)) for w in weights)
        assert layer.without == {}


def test_gradients_in_float16_are_unscaled_and_overflow_is_told() -> None:
    reports = []
    for policy, make in (("float32", lambda: AdamW(1e-3)), ("mixed_float16", overflowing)):
        keras.config.set_dtype_policy(policy)
        model = model_with(make(), **QUIET)
        model.head.dropout = 0.0
        reports.append(model.gradient_report(TEXTS, Y))
    for full, half in zip(reports[0].layers, reports[1].layers, strict=True):
        assert half.gradient_norm == pytest.approx(full.gradient_norm, rel=0.05)
    assert reports[0].notes == ()
    assert reports[1].notes[0].startswith("float16 overflows at the loss scale 1.67772e+07")


def test_what_an_optimizer_was_told_before_it_began_counts() -> None:
    def ratio(excluded: list[str]) -> float | None:
        optimizer = keras.optimizers.AdamW(1e-3, weight_decay=100.0)
        optimizer.exclude_from_weight_decay(var_names=excluded)
        return model_with(optimizer).gradient_report(TEXTS, Y).layers[1].update_ratio

    plain, excluded = ratio(["nothing"]), ratio(["kernel", "bias", "gamma", "beta"])
    assert plain is not None and excluded is not None and plain > 2 * excluded


def test_what_is_accumulated_so_far_does_not_count() -> None:
    model = model_with(keras.optimizers.SGD(1.0, 0.9, gradient_accumulation_steps=3), **QUIET)
    model.head.dropout = 0.0
    model.optimizer.build(model.trainable_weights)
    before = model.gradient_report(TEXTS, Y)
    assert before.notes == ("gradients are accumulated: the update is that of 3 such batches",)
    model.train_on_batch(TEXTS[:4], Y[:4])
    assert model.gradient_report(TEXTS, Y) == before


def test_sample_weights_and_classes_weigh() -> None:
    model = model_with(AdamW(1e-3))
    full = model.gradient_report(TEXTS, Y)
    double = model.gradient_report(TEXTS, Y, sample_weight=[2.0] * len(TEXTS))
    classes = model.gradient_report(TEXTS, Y, class_weight={"pos": 2.0, "neg": 2.0})
    assert double.loss == classes.loss == pytest.approx(2 * full.loss)
    assert classes.layers == double.layers
    assert [one.name for one in double.received][-1] == "sample_weight"


# --- What it leaves behind


def test_a_training_goes_on_as_if_no_report_had_been_made() -> None:
    plain, inspected = model_with(AdamW(1e-3)), model_with(AdamW(1e-3))
    inspected.gradient_report(TEXTS, Y)
    assert inspected.train_function is None and not inspected.optimizer.built
    for model in (plain, inspected):
        keras.utils.set_random_seed(1)
        model.train_on_batch(TEXTS, Y)
        metrics = [np.array(variable) for variable in model.metrics_variables]
        if model is inspected:
            model.gradient_report(TEXTS, Y)
            assert_same([np.array(variable) for variable in model.metrics_variables], metrics)
        model.fit(TEXTS, Y, batch_size=4, verbose=0)
    assert_same(weights_of(inspected), weights_of(plain))


def test_a_failure_leaves_nothing_behind() -> None:
    class Broken(keras.optimizers.SGD):
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            if "head" in variable.name:
                raise RuntimeError("broken")
            super().update_step(gradient, variable, learning_rate)

    model = model_with(Broken(1.0))
    before = weights_of(model)
    with pytest.raises(RuntimeError, match="broken"):
        model.gradient_report(TEXTS, Y)
    assert_same(weights_of(model), before)


def test_under_a_strategy() -> None:
    plain = model_with(AdamW(1e-3)).gradient_report(TEXTS, Y)
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = model_with(AdamW(1e-3))
    before = weights_of(model)
    report = model.gradient_report(TEXTS, Y)
    assert_same(weights_of(model), before)
    assert report == plain
    model.train_on_batch(TEXTS, Y)
    before = weights_of(model)
    assert model.gradient_report(TEXTS, Y).layers[0].update_ratio is not None
    assert_same(weights_of(model), before)


# --- What has no gradient


def test_reasons() -> None:
    class LastToken(bertkit.heads.get("binary")):  # type: ignore[misc]
        reads = ("sequence",)

        def call(self, features: Any, training: bool = False) -> Any:
            return super().call({"pooled": features["sequence"][:, 0]}, training=training)

    head = LastToken(labels=["neg", "pos"])
    whole = model_with()
    model = bertkit.BertClassifier(whole.encoder, head, whole.preprocessor)
    token = model.encoder.layers_in_order()[0].token
    token.trainable = False
    model.encoder.layers_in_order()[2].trainable = False
    layers = {layer.name: layer for layer in model.gradient_report(TEXTS, Y).layers}
    assert list(layers) == LAYERS
    frozen, part = layers["layer_1"], layers["embeddings"]
    assert (frozen.trained, frozen.gradient_norm, frozen.update_ratio) == (0, None, None)
    assert set(frozen.without.values()) == {"frozen"} and len(frozen.without) == 12
    assert part.without == {token.path: "frozen"}
    assert 0 < part.trained < part.parameters and part.gradient_norm is not None
    assert layers["layer_0"].without == {}
    assert set(layers["pooler"].without.values()) == {"not read by the head"}


def test_what_the_loss_does_not_depend_on() -> None:
    report = classifier(Bag(below=tf.stop_gradient)).gradient_report(TEXTS, Y)
    assert [layer.name for layer in report.layers] == ["bag", "head"]
    assert report.layers[0].without == {"bag/table": "the loss does not depend on it"}
    assert report.layers[0].trained == 16 * 16
    lost = classifier(Bag(above=tf.stop_gradient)).gradient_report(TEXTS, Y)
    assert lost.layers[0].gradient_norm is None and lost.layers[1].gradient_norm is not None


def test_hidden_variables_are_named() -> None:
    class Module(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = tf.Variable(tf.random.normal((200, 16)), name="table")

        def __call__(self, ids: tf.Tensor) -> tf.Tensor:
            return tf.reduce_mean(tf.gather(self.table, ids), axis=1)

    report = classifier(Around(Module(), "attribute")).gradient_report(TEXTS, Y)
    assert report.hidden == (("table", "bag.module, a Module"),)
    assert "does not list it: table, in bag.module, a Module" in str(report)
    assert [layer.name for layer in report.layers] == ["head"]


def test_a_model_that_is_frozen_as_a_whole() -> None:
    model = model_with(AdamW(1e-3))
    model.trainable = False
    report = model.gradient_report(TEXTS, Y)
    assert all(layer.trained == 0 for layer in report.layers) and report.loss > 0


# --- What the model receives


def test_what_the_model_receives() -> None:
    report = model_with().gradient_report(TEXTS[:2], Y[:2])
    assert " ".join(report.tokens[:5]) == "[CLS] a good film [SEP]"
    assert set(report.tokens[5:]) == {"[PAD]"}
    assert report.padding_mask == (1,) * 5 + (0,) * (len(report.tokens) - 5)
    assert set(report.segment_ids) == {0}
    length = len(report.tokens)
    assert [(one.name, one.shape, one.dtype) for one in report.received] == [
        ("token_ids", (2, length), "int32"),
        ("segment_ids", (2, length), "int32"),
        ("padding_mask", (2, length), "int32"),
        ("targets", (2, 1), "float32"),
    ]


def test_pairs_and_tensors() -> None:
    pairs = tiny_model("binary", "sentence_pair").gradient_report(PAIRS[:1], Y[:1])
    second = pairs.tokens.index("[SEP]") + 1
    assert pairs.segment_ids == (0,) * second + (1,) * (len(pairs.tokens) - second)
    model = tiny_model("binary", None, vocabulary=False)
    report = model.gradient_report(tensors(), Y)
    assert report.tokens == () and report.received[0].shape == tensors()["token_ids"].shape


def test_printed_and_as_json() -> None:
    model = model_with()
    model.encoder.layers_in_order()[0].trainable = False
    report = model.gradient_report(TEXTS[:1], Y[:1])
    printed = str(report)
    assert max(map(len, printed.splitlines())) <= 100
    for words in ("[CLS] a good film [SEP]", "0 0 0 0 0", "1 1 1 1 1", "(1, 5)", "layer_1",
                  f"{report.layers[1].gradient_norm:.3g}", "loss 0.69", "learning rate 5e-05",
                  "No gradient in embeddings: bert_encoder", "and 2 more: frozen."):  # fmt: skip
        assert words in " ".join(printed.split()), words
    plain = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert plain["layers"][1]["gradient_norm"] == report.layers[1].gradient_norm
    assert plain["tokens"] == ["[CLS]", "a", "good", "film", "[SEP]"]
    model.head.kernel.assign(tf.fill(model.head.kernel.shape, math.nan))
    broken = model.gradient_report(TEXTS[:1], Y[:1]).as_dict()
    assert json.loads(json.dumps(broken, allow_nan=False))["layers"][1]["gradient_norm"] == "nan"


# --- What is refused


def test_refusals() -> None:
    with pytest.raises(InputError, match="does not know its labels yet"):
        tiny_model("binary", adapted=False).gradient_report(TEXTS, Y)
    model = model_with(AdamW(1e-3))
    with pytest.raises(InputError, match="There are no labels"):
        model.gradient_report(TEXTS, None)
    model.encoder.trainable = False
    model.train_on_batch(TEXTS, Y)
    model.encoder.trainable = True
    with pytest.raises(TrainingError, match="`trainable` was changed after"):
        model.gradient_report(TEXTS, Y)


# --- The command line


@pytest.fixture
def bertkit_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> CommandLine:
    write_tiny_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return CommandLine(monkeypatch, capfd)


def test_inspect(bertkit_command: CommandLine) -> None:
    done = bertkit_command("inspect", "multiclass.yaml", "training.batch_size=2", "seed=3")
    assert (done.code, done.err) == (0, "")
    assert "[CLS] a good film [SEP]" in done.out and "layer_0" in done.out
    # Two rows hold two of the three labels: the head knows those of all rows.
    done = bertkit_command(
        "inspect", "multiclass.yaml", "training.batch_size=2", "seed=3", "--json"
    )
    plain = json.loads(done.out)
    assert plain["layers"][-1]["parameters"] == 3 * 16 + 3
    assert plain["received"][0]["shape"][0] == 2
    assert plain["learning_rate"] == pytest.approx(1e-3)  # one step of warm-up
    keras.utils.set_random_seed(3)
    model = bertkit.build(tiny_config("multiclass"))
    model.head.adapt(LABELS["multiclass"])
    model.compile(AdamW(1e-3, weight_decay=0.01))
    report = model.gradient_report(TEXTS[:2], LABELS["multiclass"][:2])
    assert report.as_dict()["layers"] == plain["layers"] and report.loss == plain["loss"]
    assert not Path("runs").exists()


def test_inspect_says_what_is_wrong(bertkit_command: CommandLine) -> None:
    done = bertkit_command("inspect", "binary.yaml", "training.batchsize=2")
    assert done.code == 2 and "batch_size" in done.err and done.out == ""
    write_yaml(Path("missing.yaml"), tiny_config("binary", data__train="nowhere.jsonl"))
    done = bertkit_command("inspect", "missing.yaml")
    assert done.code == 2 and "nowhere.jsonl" in done.err and "Traceback" not in done.err


def test_an_id_without_a_piece_is_shown_as_a_number() -> None:
    """A table of embeddings is often padded beyond the vocabulary."""
    vocabulary = tiny_encoder().vocabulary
    encoder = tiny_encoder(vocabulary_size=len(vocabulary) + 4)
    encoder.vocabulary = vocabulary
    model = bertkit.BertClassifier(encoder, bertkit.heads.create("binary", labels=["neg", "pos"]))
    ids = np.full((2, 3), len(vocabulary) + 1, "int32")
    report = model.gradient_report({"token_ids": ids, "padding_mask": ids * 0 + 1}, ["neg", "pos"])
    assert report.tokens == (f"<{len(vocabulary) + 1}>",) * 3
