"""The encoder "saved_model": a graph whose variables train, freeze and are saved like any other."""

from __future__ import annotations

import base64
import json
import lzma
import shutil
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

import bertkit
from bertkit.errors import EncoderError
from bertkit.testing import check_encoder
from bertkit.training.optimizer import AdamW, layer_decay
from bertkit_plugins.encoders.saved_model import SavedModelEncoder
from bertkit_plugins.encoders.saved_model_graph import Graph
from bertkit_plugins.encoders.tfhub import tfhub
from tests import saved_models
from tests.processes import ROOT, run
from tests.saved_models import write_encoder
from tests.tiny import VOCABULARY
from tests.tiny_models import LABELS, TEXTS

# What the fresh process runs.
PROGRAM = """
import sys
sys.path.insert(0, {root!r})
import keras, numpy as np
from bertkit import BertClassifier
known = dict(np.load("known.npz", allow_pickle=False))
model = keras.models.load_model("model.keras")
assert np.array_equal(model.predict(known["texts"], verbose=0), known["logits"])
model.fit(known["texts"], known["labels"], batch_size=11, verbose=0)
values = [np.array(v) for v in [*model.variables, *model.optimizer.variables]]
np.savez("continued.npz", *values)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SavedModel that is no plain BERT, without dropout."""
    path = tmp_path_factory.mktemp("graph") / "encoder"
    return write_encoder(path, gate=True, dropout=0.0, layers=1)


@pytest.fixture(scope="module")
def loaded(folder: Path) -> SavedModelEncoder:
    encoder = tfhub(str(folder))
    assert isinstance(encoder, SavedModelEncoder)
    return encoder


@pytest.fixture
def encoder(loaded: SavedModelEncoder) -> SavedModelEncoder:
    """One of its own, made from the config and the values."""
    return another(loaded)


def another(encoder: SavedModelEncoder, **changes: Any) -> SavedModelEncoder:
    made = SavedModelEncoder(**{**encoder.get_config(), **changes})
    for group, other in zip(made.groups, encoder.groups, strict=True):
        group.set_weights(other.get_weights())
    made.vocabulary = encoder.vocabulary
    return made


def model_of(encoder: SavedModelEncoder, **options: Any) -> bertkit.BertClassifier:
    keras.utils.set_random_seed(0)
    head = bertkit.heads.create("binary", labels=["neg", "pos"], dropout=0.0)
    text = bertkit.preprocessors.create("single_text", sequence_length=24)
    model = bertkit.BertClassifier(encoder, head, text)
    model.compile(optimizer=AdamW(1e-2, **options))
    return model


def fit(model: bertkit.BertClassifier, epochs: int = 1) -> None:
    model.fit(TEXTS, LABELS["binary"], batch_size=len(TEXTS), epochs=epochs, verbose=0)


def values(encoder: SavedModelEncoder) -> dict[str, np.ndarray]:
    return {weight.path: np.array(weight) for weight in encoder.weights}


def moved(encoder: SavedModelEncoder, before: dict[str, np.ndarray]) -> set[str]:
    return {path for path, value in values(encoder).items() if np.any(value != before[path])}


def group(encoder: SavedModelEncoder, name: str) -> Any:
    return next(layer for layer in encoder.groups if layer.name == name)


# --- The contract, and what Keras sees


def test_it_keeps_the_contract(encoder: SavedModelEncoder) -> None:
    check_encoder(encoder)


@pytest.mark.parametrize(
    "options",
    [{"interface": "list", "older_names": True}, {"length": 16}],
)
def test_other_interfaces_keep_the_contract(tmp_path: Path, options: dict[str, Any]) -> None:
    encoder = tfhub(str(write_encoder(tmp_path / "encoder", layers=1, **options)), form="graph")
    assert encoder.max_sequence_length == options.get("length", 32)
    check_encoder(encoder)


def test_the_variables_are_keras_weights_in_sublayers(encoder: SavedModelEncoder) -> None:
    assert [layer.name for layer in encoder.groups] == [
        "embeddings", "layer_0", "rest", "pooler"
    ]  # fmt: skip
    assert [layer.name for layer in encoder.layers_in_order()] == [
        "embeddings", "layer_0", "rest"
    ]  # fmt: skip
    assert f"{encoder.name}/layer_0/self_attention_query_kernel" in values(encoder)
    assert len(group(encoder, "layer_0").trainable_weights) == 16
    # The head that nothing reads, and the flag of the vocabulary.
    fixed = [w.path.rpartition("/")[2] for w in encoder.weights if not w.trainable]
    assert fixed == ["masked_lm_kernel", "Variable"]
    printed: list[str] = []
    model_of(encoder).summary(print_fn=lambda line, **_: printed.append(line))
    total = sum(int(np.prod(w.shape)) for w in encoder.trainable_weights)
    assert f"{total + 17:,}" in "\n".join(printed)  # the head has 16 weights and a bias


def test_sizes_and_vocabulary(encoder: SavedModelEncoder) -> None:
    sizes = (encoder.hidden_size, encoder.max_sequence_length, encoder.num_segments)
    assert sizes == (16, 32, 2)
    assert encoder.vocabulary_size == len(VOCABULARY)
    assert encoder.vocabulary is not None and encoder.vocabulary.tokens == VOCABULARY


# --- Training


def test_a_step_moves_every_trainable_variable(encoder: SavedModelEncoder) -> None:
    before, model = values(encoder), model_of(encoder)
    fit(model)
    assert moved(encoder, before) == {w.path for w in encoder.trainable_weights}
    np.testing.assert_array_equal(  # the graph reads what Keras has moved
        encoder.graph.variables[0].numpy(), values(encoder)[encoder.weights[0].path]
    )


def test_frozen_layers_stay(encoder: SavedModelEncoder, tmp_path: Path) -> None:
    for layer in encoder.layers_in_order()[:2]:
        layer.trainable = False
    before, model = values(encoder), model_of(encoder)
    fit(model)
    trained = {w.path for layer in encoder.groups[2:] for w in layer.trainable_weights}
    assert moved(encoder, before) == trained
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert len(again.encoder.trainable_weights) == len(trained)


def test_layers_learn_at_their_own_rates(encoder: SavedModelEncoder) -> None:
    groups = layer_decay(encoder, 0.5)
    before = values(encoder)
    fit(model_of(encoder, parameter_groups=groups, weight_decay=0.0))
    # Adam's first step is the learning rate for each weight.
    steps = {
        name: float(np.abs(values(encoder)[path] - before[path]).max())
        for name in ("embeddings", "layer_0", "rest", "pooler")
        for path in [next(w.path for w in group(encoder, name).trainable_weights)]
    }
    wanted = {"embeddings": 2**-3, "layer_0": 2**-2, "rest": 0.5, "pooler": 1.0}
    assert steps == pytest.approx({name: 1e-2 * rate for name, rate in wanted.items()}, rel=1e-2)


@pytest.mark.parametrize("pooling", ["cls", "mean", "attention", "layers"])
def test_poolings(loaded: SavedModelEncoder, pooling: str) -> None:
    encoder = another(loaded, pooling=pooling)
    ids = tf.constant([[2, 9, 8, 3], [2, 7, 3, 0]])
    batch = {"token_ids": ids, "segment_ids": ids * 0, "padding_mask": tf.cast(ids > 0, tf.int32)}
    read = encoder(batch, reads=("pooled", "sequence"))
    states = encoder.graph(batch, training=False)["layers"]
    if pooling in ("cls", "mean"):
        count = np.array([[4.0], [3.0]])
        mean = np.sum(read["sequence"] * batch["padding_mask"].numpy()[:, :, None], 1) / count
        wanted = read["sequence"][:, 0] if pooling == "cls" else mean
        np.testing.assert_allclose(read["pooled"], wanted, atol=1e-6)
    if pooling == "layers":
        wanted = np.mean([state[:, 0] for state in states], axis=0)
        np.testing.assert_allclose(read["pooled"], wanted, atol=1e-6)
    if pooling != "attention":  # one is enough of what takes seconds
        return
    # The graph's own pooler is not read any more: it does not move, and is not reported.
    before, model = values(encoder), model_of(encoder)
    fit(model)
    assert not any("pooler" in path for path in moved(encoder, before))
    assert len(encoder.unread(("sequence",))) == len(encoder.pooling_layer.weights)  # type: ignore[union-attr]
    assert moved(encoder, before) >= {w.path for w in encoder.trainable_weights[:5]}


def test_the_pooler_is_unread_by_heads_for_tokens(encoder: SavedModelEncoder) -> None:
    assert [w.path.rpartition("/")[2] for w in encoder.unread(("sequence",))] == [
        "pooler_transform_kernel", "pooler_transform_bias"
    ]  # fmt: skip
    assert not encoder.unread(("pooled",))


def test_outputs_that_are_not_there(tmp_path: Path) -> None:
    only = write_encoder(tmp_path / "pooled", outputs=["default"], layers=1)
    for pooling in ("mean", "layers"):
        with pytest.raises(EncoderError, match=r"returns only pooled. Choose the pooling pooler"):
            tfhub(str(only), form="graph", pooling=pooling)  # type: ignore[arg-type]
    encoder = tfhub(str(only), form="graph")
    ids = tf.ones((2, 3), tf.int32)
    batch = {"token_ids": ids, "segment_ids": ids, "padding_mask": ids}
    assert encoder(batch)["pooled"].shape == (2, 16)
    with pytest.raises(EncoderError, match=r"reads the features of each token, and .* only one"):
        encoder(batch, reads=("sequence",))
    rows = write_encoder(tmp_path / "sequence", outputs=["sequence_output"], layers=1)
    with pytest.raises(EncoderError, match=r"returns only sequence. Choose another one"):
        tfhub(str(rows), form="graph")


def test_mixed_precision(loaded: SavedModelEncoder) -> None:
    encoder = another(loaded, dtype="mixed_bfloat16")
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model, before = model_of(encoder), values(encoder)
    finally:
        keras.config.set_dtype_policy("float32")
    fit(model)
    assert {w.dtype for w in encoder.trainable_weights} == {"float32"}
    assert moved(encoder, before) == {w.path for w in encoder.trainable_weights}


# --- Saving


def test_a_saved_model_needs_no_source_and_trains_on(tmp_path: Path) -> None:
    source = write_encoder(tmp_path / "source" / "encoder", gate=True, dropout=0.0, layers=1)
    model = model_of(tfhub(str(source)))  # type: ignore[arg-type]
    fit(model, epochs=2)
    model.save(tmp_path / "model.keras")
    logits = model.predict(TEXTS, verbose=0)
    known = {"texts": np.array(TEXTS), "labels": np.array(LABELS["binary"]), "logits": logits}
    np.savez(tmp_path / "known.npz", **known)
    shutil.rmtree(tmp_path / "source")
    (tmp_path / "program.py").write_text(PROGRAM.format(root=str(ROOT)))
    run([sys.executable, "program.py"], tmp_path)
    # Trained on there and here, values and moments are the same; the state of a generator of
    # random numbers, which nothing asks, is not.
    fit(model)
    here = [np.array(v) for v in [*model.variables, *model.optimizer.variables]]
    with np.load(tmp_path / "continued.npz") as continued:
        assert len(continued.files) == len(here)
        for value, name in zip(here, continued.files, strict=True):
            if np.issubdtype(value.dtype, np.floating):
                np.testing.assert_allclose(continued[name], value, rtol=1e-4, atol=1e-6)


def test_what_the_config_holds(loaded: SavedModelEncoder) -> None:
    config = loaded.get_config()
    assert sorted(config["graph"]) == ["assets/vocab.txt", "saved_model.pb"]
    content = lzma.decompress(base64.b64decode(config["graph"]["saved_model.pb"]))
    meta = saved_model_pb2.SavedModel.FromString(content).meta_graphs[0]
    ops = {node.op for f in meta.graph_def.library.function for node in f.node_def}
    assert "MatMul" in ops or "Einsum" in ops
    assert not ops & {"SaveV2", "RestoreV2"} and {node.op for node in meta.graph_def.node} <= {
        "Const"
    }
    assert len(json.dumps(config)) < 40_000
    blank = SavedModelEncoder.from_config(config)
    ids = tf.ones((1, 2), tf.int32)
    batch = {"token_ids": ids, "segment_ids": ids, "padding_mask": ids}
    assert np.isnan(blank(batch)["pooled"]).all()  # no values are made up


def test_damaged_and_harmful_graphs(loaded: SavedModelEncoder, tmp_path: Path) -> None:
    files = loaded.get_config()["graph"]

    def packed(content: bytes) -> str:
        return base64.b64encode(lzma.compress(content)).decode()

    def harmful(name: str, action: Any) -> str:
        module = tf.Module()
        module.action = tf.function(lambda: [action(), 0][1], input_signature=[])
        tf.saved_model.save(module, str(tmp_path / name))
        return packed((tmp_path / name / "saved_model.pb").read_bytes())

    path = str(tmp_path / "outside")
    writes = harmful("writes", lambda: tf.io.write_file(path, ""))
    reads = harmful("reads", lambda: next(iter(tf.data.TextLineDataset(path))))
    saves = harmful(
        "saves",
        lambda: tf.raw_ops.SaveV2(
            prefix=path, tensor_names=["x"], shape_and_slices=[""], tensors=[tf.constant(1)]
        ),
    )
    for change, message in (
        ({"saved_model.pb": files["saved_model.pb"][:100]}, "is damaged .* by the plugin 'tfhub'"),
        ({"saved_model.pb": packed(b"none")}, "is damaged"),
        ({"../outside.txt": packed(b"x")}, "is damaged .*leads out of it"),
        ({"saved_model.pb": writes}, "holds WriteFile, which reaches out of the computation"),
        ({"saved_model.pb": reads}, "holds .*TextLineDataset, which reaches out"),
        ({"saved_model.pb": saves}, "holds SaveV2, which reaches out"),
    ):
        with pytest.raises(EncoderError, match=message):
            Graph.from_files({**files, **change})


def test_a_gradient_of_zero_freezes_nothing(tmp_path: Path) -> None:
    """A gate that begins with zero, and a table of which random ids meet few rows or none."""
    root = saved_models.Exported()
    table, shard, gate, kernel = (
        tf.Variable(np.full(shape, value, np.float32), name=name)
        for name, shape, value in (
            ("word_embeddings/embeddings", (len(VOCABULARY), 8), 0.1),
            ("shard/embeddings", (2, 8), 0.1),
            ("gate/scale", (), 0.0),
            ("mixer/kernel", (8, 8), 0.1),
        )
    )

    def forward(ids: tf.Tensor, mask: tf.Tensor, types: tf.Tensor, train: bool) -> Any:
        x = tf.gather(table, ids)
        never = tf.cast(ids == len(VOCABULARY), tf.int32)
        rare = tf.gather(shard, never) * tf.cast(never, tf.float32)[:, :, None]
        x += rare + gate * tf.einsum("bth,hk->btk", x, kernel)
        return {"pooled_output": x[:, 0], "sequence_output": x}

    specs = [tf.TensorSpec((None, None), tf.int32, name=name) for name in saved_models._NAMES]
    saved_models._set_call(root, forward, specs, "dict", True)
    root.variables = root.trainable_variables = [table, shard, gate, kernel]
    tf.saved_model.save(root, str(tmp_path / "gated"))
    encoder = tfhub(str(tmp_path / "gated"), pooling="cls")
    assert isinstance(encoder, SavedModelEncoder)
    assert encoder.roles == ["encoder"] * 4
    assert len(encoder.trainable_weights) == 4
