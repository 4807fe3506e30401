"""What `compile` is given by name, what it is not given, and what a call leaves behind."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import bertkit
from bertkit import BertClassifier, BertEncoder
from bertkit.artifact import staged
from bertkit.errors import ArtifactError, InputError
from bertkit.training.optimizer import AdamW
from tests.tiny import VOCABULARY

TEXTS = ["a b", "b c", "c a b", "b"] * 3
LABELS = ["yes", "no", "yes", "no"] * 3


@pytest.fixture
def vocabulary(tmp_path: Path) -> str:
    path = tmp_path / "vocab.txt"
    path.write_text("".join(f"{piece}\n" for piece in VOCABULARY), encoding="utf-8")
    return str(path)


@pytest.fixture
def make(vocabulary: str) -> Any:
    def model(head: str = "binary", **encoder: Any) -> BertClassifier:
        sizes = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 16}
        return BertClassifier(
            BertEncoder(len(VOCABULARY), vocabulary=vocabulary, **sizes, **encoder),
            head,
            "single_text",
        )

    return model


def test_a_metric_by_name_is_the_heads_and_reads_logits(make: Any) -> None:
    model = make()
    model.compile("sgd", metrics=["accuracy"])
    model.fit(TEXTS, LABELS, verbose=0)
    shown = model.evaluate(TEXTS, LABELS, verbose=0, return_dict=True)["accuracy"]
    predicted = [row["label"] for row in model.classify(TEXTS)]
    assert shown == pytest.approx(np.mean(np.array(predicted) == LABELS))


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        ("binary", {"loss": "binary_crossentropy"}, "takes probabilities"),
        ("multiclass", {"loss": "sparse_categorical_crossentropy"}, "takes probabilities"),
        ("binary", {"metrics": ["auc"]}, "has accuracy, roc_auc"),
        ("multi_label", {"metrics": ["accuracy"]}, "has micro_f1, macro_f1"),
    ],
)
def test_names_that_would_misread_logits_are_refused(
    make: Any, head: str, options: dict[str, Any], message: str
) -> None:
    model = make(head)
    model.compile("sgd", **options)
    labels = [[label] for label in LABELS] if head == "multi_label" else LABELS
    with pytest.raises(InputError, match=message):
        model.fit(TEXTS, labels, verbose=0)


@pytest.mark.parametrize("given", [{}, {"metrics": [keras.metrics.MeanSquaredError()]}])
def test_an_optimizer_that_is_not_given_is_adamw(make: Any, given: dict[str, Any]) -> None:
    model = make()
    model.compile(**given)
    model.fit(TEXTS, LABELS, verbose=0)
    assert isinstance(model.optimizer, AdamW)
    assert float(model.optimizer.learning_rate) == pytest.approx(5e-5)


def test_what_is_given_is_kept(make: Any) -> None:
    model = make()
    loss = keras.losses.BinaryFocalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.RMSprop(1e-4), loss=loss, metrics=[])
    model.fit(TEXTS, LABELS, verbose=0)
    optimizer = model.optimizer
    model.fit(TEXTS, LABELS, verbose=0)
    assert model.optimizer is optimizer
    assert int(optimizer.iterations) == 2
    assert model.loss is loss


@pytest.mark.parametrize(
    "parts",
    [
        lambda encoder: ("bert", "binary", None),
        lambda encoder: (encoder, bertkit.heads.get("binary"), None),
        lambda encoder: (encoder, None, None),
        lambda encoder: (encoder, "binary", bertkit.preprocessors.get("single_text")),
    ],
)
def test_parts_that_are_no_parts_are_refused(make: Any, parts: Any) -> None:
    with pytest.raises(InputError, match="Give an instance of bertkit"):
        BertClassifier(*parts(make().encoder))


def test_a_preprocessor_that_serves_another_encoder_is_copied(make: Any) -> None:
    first = make()
    second = BertClassifier(make().encoder, "binary", first.preprocessor)
    assert second.preprocessor is not first.preprocessor
    first.fit(TEXTS, LABELS, verbose=0)
    second.encoder.vocabulary = None
    assert first.predict(TEXTS, verbose=0).shape == (len(TEXTS), 1)


def test_calls_keep_no_file_open(make: Any) -> None:
    model = make()
    rows = tf.data.Dataset.from_tensor_slices(TEXTS).batch(4)

    def calls() -> int:
        model.fit(TEXTS, LABELS, validation_data=(TEXTS, LABELS), verbose=0)
        model.evaluate(TEXTS, LABELS, verbose=0)
        model.predict(TEXTS, verbose=0)
        model.predict(rows, verbose=0)
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system does not list open files")
    before = calls()
    assert [calls() for _ in range(3)] == [before] * 3


def test_a_model_that_is_frozen_whole_warns_and_goes_on(make: Any) -> None:
    model = make()
    model.fit(TEXTS, LABELS, verbose=0)
    before = [weight.numpy() for weight in model.weights]
    model.trainable = False
    model.compile("sgd")
    with pytest.warns(UserWarning, match="Everything is frozen"):
        model.fit(TEXTS, LABELS, verbose=0)
    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), old)


def test_no_rows_are_no_predictions(make: Any) -> None:
    model = make()
    model.fit(TEXTS, LABELS, verbose=0)
    assert model.classify([]) == []


def test_a_finished_stage_is_kept_when_its_name_was_taken(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is kept in") as caught, staged(tmp_path / "a") as one:
        (one / "done").write_text("work")
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "other").write_text("theirs")
    (kept,) = tmp_path.glob(".a.*")
    assert str(kept) in str(caught.value)
    assert (kept / "done").read_text() == "work"
    assert (tmp_path / "a" / "other").read_text() == "theirs"


def test_weights_by_label_cannot_weigh_metrics_of_rows(make: Any) -> None:
    model = make("multi_label")
    model.compile(weighted_metrics=[keras.metrics.BinaryAccuracy()])
    with pytest.raises(InputError, match="class_weight weighs each label of a row here"):
        model.fit(TEXTS, [[name] for name in LABELS], class_weight={"yes": 2.0, "no": 1.0})
