"""One set of weights, written in the format of each source: all compute and learn the same."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

import bertkit
import bertkit.training.optimizer
from bertkit.artifact import load, save
from bertkit.encoder import Encoder
from bertkit_plugins.encoders.huggingface import huggingface
from tests import saved_models
from tests.reference_bert import random_batch, reference_bert
from tests.tiny import VOCABULARY, write_huggingface_folder
from tests.tiny_checkpoint import write_release
from tests.tiny_models import LABELS, TEXTS

SIZES: dict[str, Any] = {
    "hidden_size": saved_models.HIDDEN,
    "num_attention_heads": saved_models.HEADS,
    "intermediate_size": saved_models.WIDE,
    "max_position_embeddings": saved_models.POSITIONS,
    "hidden_act": "gelu_new",  # as Google trained BERT, and as TF Hub and KerasHub compute it
}
# How `encoders.create` gets each form; a graph keeps its own dropout, which is none here.
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "huggingface": ("huggingface", {"dropout": 0.0, "attention_dropout": 0.0}),
    "kerashub": ("kerashub", {"dropout": 0.0, "attention_dropout": 0.0}),
    "tf1_checkpoint": ("tf1_checkpoint", {"dropout": 0.0, "attention_dropout": 0.0}),
    "tfhub": ("tfhub", {"dropout": 0.0, "attention_dropout": 0.0, "form": "bert"}),
    "tfhub graph": ("tfhub", {"form": "graph"}),
}


def as_huggingface(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return arrays by TF Hub's names (weights, or their gradients) by Hugging Face's."""
    parts = (
        ("word_embeddings/embeddings", "embeddings.word_embeddings.weight"),
        ("position_embedding/embeddings", "embeddings.position_embeddings.weight"),
        ("type_embeddings/embeddings", "embeddings.token_type_embeddings.weight"),
        ("embeddings/layer_norm", "embeddings.LayerNorm"),
        ("self_attention/attention_output", "attention.output.dense"),
        ("self_attention_layer_norm", "attention.output.LayerNorm"),
        ("output_layer_norm", "output.LayerNorm"),
        ("self_attention/", "attention.self."),
        ("intermediate", "intermediate.dense"),
        ("pooler_transform", "pooler.dense"),
    )
    named = {}
    for name, array in arrays.items():
        theirs = re.sub(r"transformer/layer_(\d+)/", r"encoder.layer.\1.", name)
        theirs = re.sub(r"(layer\.\d+\.)output/", r"\1output.dense/", theirs)
        for old, new in parts:
            if old in theirs:
                theirs = theirs.replace(old, new)
                break
        for old, new in (("/kernel", ".weight"), ("/bias", ".bias"), ("/gamma", ".weight"),
                         ("/beta", ".bias")):  # fmt: skip
            theirs = theirs.replace(old, new)
        if name.endswith("/kernel"):
            inputs = 2 if "attention_output" in name else 1  # (heads, width, H), not (H, …)
            array = array.reshape(int(np.prod(array.shape[:inputs])), -1).T
        elif name.endswith("/bias"):
            array = array.reshape(-1)
        named[theirs] = np.ascontiguousarray(array)
    return named


def values_of(loaded: Any) -> dict[str, tf.Variable]:
    """Return the variables of BERT in a SavedModel, by name."""
    return {
        v.name.removesuffix(":0"): v
        for v in loaded.trainable_variables
        if "masked_lm" not in v.name
    }


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("sources")
    saved = saved_models.write_encoder(folder / "tfhub", dropout=0.0)
    weights = {name: v.numpy() for name, v in values_of(tf.saved_model.load(str(saved))).items()}
    same = write_huggingface_folder(
        folder / "huggingface", change=lambda _: as_huggingface(weights), **SIZES
    )
    release = write_release(folder / "uncased_tiny", same)
    return {
        "huggingface": str(same),
        "kerashub": str(same),
        "tf1_checkpoint": str(release),
        "tfhub": str(saved),
    }


def make(form: str, sources: Mapping[str, str], **arguments: Any) -> Encoder:
    plugin, options = FORMS[form]
    keras.utils.set_random_seed(0)
    made: Encoder = bertkit.encoders.create(
        plugin, source=sources[plugin], **{**options, **arguments}
    )
    return made


def batch() -> dict[str, tf.Tensor]:
    return {name: tf.constant(ids) for name, ids in random_batch(len(VOCABULARY)).items()}


def features_of(encoder: Encoder) -> dict[str, Any]:
    read = encoder(batch(), reads=("pooled", "sequence"))
    mask = batch()["padding_mask"].numpy()[:, :, None]
    return {"pooled": read["pooled"].numpy(), "sequence": read["sequence"].numpy() * mask}


@pytest.mark.parametrize("form", FORMS)
def test_outputs_are_those_of_the_published_formulae(form: str, sources: Any) -> None:
    inputs = {name: ids.numpy() for name, ids in batch().items()}
    sequence, pooled = reference_bert(Path(sources["huggingface"]), **inputs)
    features = features_of(make(form, sources))
    mask = inputs["padding_mask"][:, :, None]
    np.testing.assert_allclose(features["pooled"], pooled, rtol=0, atol=1e-5)
    np.testing.assert_allclose(features["sequence"], sequence * mask, rtol=0, atol=1e-5)


def test_outputs_are_those_of_the_saved_model(sources: Any) -> None:
    loaded = tf.saved_model.load(sources["tfhub"])
    names = {"input_word_ids": "token_ids", "input_mask": "padding_mask",
             "input_type_ids": "segment_ids"}  # fmt: skip
    given = loaded({theirs: batch()[ours] for theirs, ours in names.items()}, training=False)
    for form in FORMS:
        pooled = features_of(make(form, sources))["pooled"]
        np.testing.assert_allclose(pooled, given["pooled_output"], rtol=0, atol=1e-5)


def total_of(read: Mapping[str, tf.Tensor], mask: tf.Tensor) -> tf.Tensor:
    """A number that depends on every feature of every token."""
    generator = np.random.default_rng(3)
    pooled, sequence = (tf.cast(read[name], tf.float32) for name in ("pooled", "sequence"))
    sequence *= tf.cast(mask, tf.float32)[:, :, None]
    return tf.reduce_sum(pooled * generator.normal(size=pooled.shape)) + tf.reduce_sum(
        sequence * generator.normal(size=sequence.shape)
    )


@pytest.fixture(scope="module")
def expected(sources: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, NDArray[Any]]:
    """The gradient of each variable of the SavedModel, by its own program."""
    loaded = tf.saved_model.load(sources["tfhub"])
    inputs = batch()
    named = {"input_word_ids": inputs["token_ids"], "input_mask": inputs["padding_mask"],
             "input_type_ids": inputs["segment_ids"]}  # fmt: skip
    variables = values_of(loaded)
    with tf.GradientTape() as tape:
        given = loaded(named, training=True)
        read = {"pooled": given["pooled_output"], "sequence": given["sequence_output"]}
        total = total_of(read, inputs["padding_mask"])
    gradients = tape.gradient(total, list(variables.values()))
    return {
        name: tf.convert_to_tensor(gradient).numpy()
        for name, gradient in zip(variables, gradients, strict=True)
    }


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_the_saved_model(
    form: str, sources: Any, expected: Any, tmp_path: Path
) -> None:
    encoder = make(form, sources)
    with tf.GradientTape() as tape:
        read = encoder(batch(), reads=("pooled", "sequence"), training=True)
        total = total_of(read, batch()["padding_mask"])
    weights = encoder.trainable_weights
    got = [tf.convert_to_tensor(g).numpy() for g in tape.gradient(total, weights)]
    if form == "tfhub graph":
        names = [v.name.removesuffix(":0") for v in encoder.graph.variables]
        held = {id(v): n for v, n in zip(encoder.graph.variables, names, strict=True)}
        wanted = [expected[held[id(weight.value)]] for weight in weights]
    else:  # an encoder whose weights are the gradients has them in our own layout
        write_huggingface_folder(
            tmp_path / "gradients", change=lambda _: as_huggingface(expected), **SIZES
        )
        layout = huggingface(str(tmp_path / "gradients"))
        wanted = [weight.numpy() for weight in layout.trainable_weights]
    assert len(got) == len(wanted) > 30
    # A key's bias has no gradient but rounding: what all scores share, softmax takes away.
    floor = 1e-3 * max(np.linalg.norm(gradient) for gradient in wanted)
    for weight, ours, theirs in zip(weights, got, wanted, strict=True):
        off = np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), floor)
        assert off < 1e-4, f"{weight.path}: {off}"


def classifier(encoder: Encoder) -> bertkit.BertClassifier:
    keras.utils.set_random_seed(1)
    head = bertkit.heads.create("binary", labels=sorted(set(LABELS["binary"])), dropout=0.0)
    return bertkit.BertClassifier(
        encoder, head, bertkit.preprocessors.create("single_text", sequence_length=24)
    )


def trained(encoder: Encoder) -> tuple[list[float], list[str]]:
    """Return the loss after each step of an epoch, and the weights that did not move."""
    model = classifier(encoder)
    before = [weight.numpy() for weight in model.trainable_weights]
    losses: list[float] = []
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: losses.append(logs["loss"])
    )
    model.compile(bertkit.training.optimizer.AdamW(1e-3))
    model.fit(TEXTS, LABELS["binary"], batch_size=4, shuffle=False, verbose=0, callbacks=[note])
    weights = zip(model.trainable_weights, before, strict=True)
    return losses, [w.path for w, old in weights if np.array_equal(w.numpy(), old)]


def test_one_epoch_moves_everything_and_gives_the_same_losses(sources: Any) -> None:
    curves = {}
    for form in FORMS:
        curves[form], still = trained(make(form, sources))
        assert not still, f"{form}: {still}"
    for form, losses in curves.items():
        assert len(losses) == 3
        np.testing.assert_allclose(losses, curves["huggingface"], rtol=0, atol=1e-4, err_msg=form)


@pytest.mark.parametrize("form", FORMS)
def test_layers_freeze_and_learn_at_rates_of_their_own(form: str, sources: Any) -> None:
    encoder = make(form, sources)
    lowest, *middle, highest = encoder.layers_in_order()
    lowest.trainable = False
    model = classifier(encoder)
    still, *groups = bertkit.training.optimizer.layer_decay(encoder, 0.5)  # none of lowest
    groups.insert(0, dataclasses.replace(still, learning_rate_multiplier=0.0))
    before = {w.path: w.numpy() for w in encoder.weights}
    model.compile(bertkit.training.optimizer.AdamW(1e-3, groups, weight_decay=0.0))
    model.fit(TEXTS, LABELS["binary"], batch_size=4, verbose=0)

    def moved(layer: Any) -> set[bool]:
        return {not np.array_equal(w.numpy(), before[w.path]) for w in layer.weights}

    assert moved(lowest) == moved(middle[0]) == {False}
    assert moved(highest) == {True}


@pytest.mark.parametrize("form", FORMS)
def test_it_comes_back_without_its_source(form: str, sources: Any, tmp_path: Path) -> None:
    plugin = FORMS[form][0]
    copy = Path(shutil.copytree(sources[plugin], tmp_path / Path(sources[plugin]).name))
    model = classifier(make(form, {plugin: str(copy)}))
    model.fit(TEXTS, LABELS["binary"], batch_size=4, verbose=0)
    save(model, tmp_path / "saved")
    shutil.rmtree(copy)
    loaded = load(tmp_path / "saved")
    np.testing.assert_array_equal(loaded.predict(TEXTS, verbose=0), model.predict(TEXTS, verbose=0))
    assert loaded.encoder.vocabulary == model.encoder.vocabulary
