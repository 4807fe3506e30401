"""The options of `training`, from the config to the weights of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bertkit
from bertkit import experiment, fitting, reading
from bertkit.config import config_from_mapping
from bertkit.errors import ConfigError, ExportError, InputError
from tests.command_line import tiny_config, write_tiny_data
from tests.core.test_guards import Bag, classifier
from tests.tiny_models import LABELS, TEXTS


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(write_tiny_data(tmp_path))
    yield tmp_path


def config_of(**training: Any) -> dict[str, Any]:
    """Return a config of the tiny model with two layers, at a constant learning rate."""
    config = tiny_config(output_dir="run")
    config["encoder"]["num_layers"] = 2
    config["training"].update({"warmup": 0, "schedule": "constant", **training})
    return config


def prepared(**training: Any) -> bertkit.BertClassifier:
    """Return the model of a config, ready to be trained."""
    config = config_from_mapping(config_of(**training))
    model = experiment.build(config)
    rows = reading.read_data(config, model)["train"]
    fitting.prepare(model, rows, config.training)
    return model


def run(**training: Any) -> tuple[bertkit.BertClassifier, bertkit.BertClassifier]:
    """Return the model of a run as it was before, and as it is loaded from the run folder."""
    config = config_of(**training)
    before = experiment.run({**config, "training": {"epochs": 0, "head_epochs": 1}, "name": "b",
                             "output_dir": "before"}, verbose=0).model  # fmt: skip
    experiment.run(config, verbose=0)
    return before, bertkit.load("run")


def paths(weights: list[Any]) -> set[str]:
    """Return the paths of an encoder's weights within it."""
    return {"/".join(weight.path.split("/")[1:]) for weight in weights}


def moved(before: bertkit.BertClassifier, after: bertkit.BertClassifier) -> set[str]:
    """Return the paths of the weights that differ in a bit."""
    return paths(
        [
            weight
            for weight, old in zip(after.encoder.weights, before.encoder.weights, strict=True)
            if not np.array_equal(weight, old)
        ]
    )


def test_parameter_groups_freeze_and_set_rates_and_decays() -> None:
    groups = [
        {"match": "layer_1/.*bias", "learning_rate": 1e-4, "weight_decay": 0.5},
        {"match": "layer_1/", "weight_decay": 0.0},
        {"match": "head|pooler", "learning_rate": 2e-3},
        {"match": ".", "frozen": True},
    ]
    before, after = run(parameter_groups=groups)
    trained = paths(
        [w for w in after.encoder.weights if "layer_1/" in w.path or "pooler" in w.path]
    )
    assert moved(before, after) == paths(after.encoder.trainable_weights) == trained
    assert len(after.head.trainable_weights) == 2
    optimizer = after.optimizer
    assert len(optimizer.variables) == 2 + 2 * (len(trained) + 2)  # none for what is frozen
    settings = [(g.learning_rate_multiplier, g.weight_decay) for g in optimizer.parameter_groups]
    assert settings == [(pytest.approx(0.1), 0.5), (1.0, 0.0), (2.0, None)]


def test_frozen_weights_have_no_gradient() -> None:
    model = prepared(parameter_groups=[{"match": "embeddings/|layer_0/", "frozen": True}],
                     layer_decay=0.9)  # fmt: skip
    report = model.gradient_report(["a good film", "boring"], ["pos", "neg"])
    trained = {layer.name: layer.trained for layer in report.layers}
    assert trained["embeddings"] == trained["layer_0"] == 0 < trained["layer_1"]
    assert set(report.layers[1].without.values()) == {"frozen"}


def test_a_group_without_weights() -> None:
    with pytest.raises(InputError) as caught:
        prepared(parameter_groups=[{"match": "layer_7/qkv_kernel", "frozen": True}])
    assert str(caught.value).startswith(
        "The parameter group 'layer_7/qkv_kernel' matches no variable that is trained. Near are: "
        "bert_encoder"
    )
    assert "/layer_1/qkv_kernel" in str(caught.value)


def test_clip_norm() -> None:
    assert prepared().optimizer.global_clipnorm is None
    assert prepared(clip_norm=0.5).optimizer.global_clipnorm == 0.5


@pytest.mark.parametrize(
    ("warmup", "steps"),
    [({"warmup": 0.5}, 3), ({"warmup": None}, 1), ({"warmup": None, "warmup_steps": 4}, 4)],
)
def test_warmup(warmup: dict[str, Any], steps: int) -> None:
    """Eleven rows make six steps in two epochs."""
    config = prepared(**warmup, epochs=2).optimizer.get_config()["learning_rate"]["config"]
    assert (config["steps"], config["warmup_steps"]) == (6, steps)


def test_a_warmup_longer_than_training_is_told_of() -> None:
    with pytest.warns(UserWarning, match="warmup_steps is 60, and training has 6 steps: .*to 0.1 "):
        prepared(warmup=None, warmup_steps=60, epochs=2)


def test_ema_validates_on_averages_and_leaves_them(folder: Path) -> None:
    config = config_of(ema=0.9, epochs=2)
    config["data"]["validation"] = "binary.jsonl"
    result = experiment.run(config, verbose=0)
    assert (result.model.optimizer.use_ema, result.model.optimizer.ema_momentum) == (True, 0.9)
    history = (folder / "run" / "history.csv").read_text().splitlines()
    last = dict(zip(history[0].split(","), history[-1].split(","), strict=True))
    assert float(last["val_loss"]) == pytest.approx(result.metrics["validation"]["loss"], rel=1e-5)
    assert not prepared().optimizer.use_ema


@pytest.mark.parametrize("merge", [True, False])
def test_lora_trains_its_factors_and_is_merged(merge: bool) -> None:
    targets = ["attention_output", "intermediate"]
    config = config_of(lora={"rank": 2, "targets": targets, "merge": merge}, layer_decay=0.9)
    model = experiment.run(config, verbose=0).model
    loaded: Any = bertkit.load("run")
    np.testing.assert_array_equal(loaded.predict(TEXTS, verbose=0), model.predict(TEXTS, verbose=0))
    factors = {
        f"layer_{index}/{target}_lora_{side}"
        for index in range(2) for target in targets for side in ("down", "up")
    }  # fmt: skip
    trainable = {path for path in paths(loaded.encoder.trainable_weights) if "pooler" not in path}
    if merge:
        assert loaded.encoder.lora is None and not loaded.compiled
        assert (
            trainable == {path for path in trainable if "lora" not in path} and len(trainable) == 29
        )
        loaded.fit(TEXTS, LABELS["binary"], verbose=0)
        bertkit.export(loaded, "exported", "huggingface")
    else:
        assert trainable == factors
        assert len(loaded.optimizer.variables) == 2 + 2 * (len(factors) + 4)  # pooler and head
        with pytest.raises(ExportError, match=r"Call model.encoder.merge_lora\(\) first."):
            bertkit.export(loaded, "exported", "huggingface")


def test_lora_needs_kernels() -> None:
    model = classifier(Bag())
    config = config_from_mapping(config_of(lora={}))
    rows = reading.read_data(config, model)["train"]
    with pytest.raises(ConfigError) as caught:
        fitting.prepare(model, rows, config.training)
    assert str(caught.value) == (
        "training.lora needs the kernels of a BERT, and Bag has none that are known. Take it out, "
        "or choose an encoder that is a BertEncoder."
    )


def test_unfreeze() -> None:
    """Two epochs of the head, two of the top layer; the lower layer and embeddings stay."""
    before, after = run(unfreeze=2, epochs=4, layer_decay=0.9, ema=0.5)
    pooler = {path for path in paths(after.encoder.weights) if "pooler" in path}
    top = {path for path in paths(after.encoder.weights) if "layer_1/" in path}
    assert moved(before, after) == pooler | top
    assert all(weight.trainable for weight in after.weights)
