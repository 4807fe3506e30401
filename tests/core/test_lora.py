"""LoRA: what trains, what it computes, what it costs, and what is left once it is merged."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context  # type: ignore[import-untyped]

import bertkit
from bertkit import transformer
from bertkit.errors import EncoderError
from bertkit.sections import LoraTarget
from bertkit.training.optimizer import AdamW
from tests.tiny_models import LABELS, TEXTS, assert_same, tensors, tiny_encoder, tiny_model

Y = LABELS["binary"]
ALL = tuple(transformer.LORA_TARGETS)
POOLINGS = ["pooler", "mean"]  # the last layer's first token alone, and all tokens


def randomized(encoder: bertkit.BertEncoder) -> None:
    """Give LoRA's second factors, which begin as zeros, large random numbers."""
    random = np.random.default_rng(3)
    for layer in encoder.transformer_layers:
        for _, up in layer.lora.values():
            up.assign(random.normal(scale=0.1, size=up.shape))


def test_the_config_names_the_targets() -> None:
    assert typing.get_args(LoraTarget) == ALL


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("targets", [*((one,) for one in ALL), ALL])
def test_it_computes_what_the_merged_kernels_do(
    targets: tuple[str, ...], pooling: str, graph: bool
) -> None:
    """And at first, but for rounding, what the encoder does without it."""
    keras.utils.set_random_seed(0)
    encoder = tiny_encoder(num_layers=2, pooling=pooling)
    reads = ("pooled",) if pooling == "pooler" else ("pooled", "sequence")

    def outputs() -> np.ndarray:
        def call() -> Any:
            return encoder(tensors(), reads=reads)[reads[-1]]

        return np.array(tf.function(call)() if graph else call())

    plain = outputs()
    kernels = [np.array(weight) for weight in encoder.weights]
    encoder.enable_lora(3, 6, targets)
    np.testing.assert_allclose(outputs(), plain, atol=1e-6)
    randomized(encoder)
    with_lora = outputs()
    assert np.abs(with_lora - plain).max() > 1e-3
    products = {
        f"{layer.path}/{name}_kernel": np.matmul(down.numpy().astype("float64"), up.numpy()) * 2
        for layer in encoder.transformer_layers
        for name, (down, up) in layer.lora.items()
    }
    encoder.merge_lora()
    np.testing.assert_allclose(outputs(), with_lora, atol=1e-5)
    assert len(encoder.weights) == len(kernels) and encoder.lora is None
    for weight, before in zip(encoder.weights, kernels, strict=True):
        np.testing.assert_allclose(
            weight.numpy(), before + products.pop(weight.path, 0), rtol=1e-5, atol=1e-6
        )
    assert not products and all(weight.trainable for weight in encoder.weights)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_only_the_factors_pooling_and_head_train(policy: str) -> None:
    keras.config.set_dtype_policy(policy)
    try:
        model = tiny_model("binary", num_layers=2)
    finally:
        keras.config.set_dtype_policy("float32")
    model.encoder.enable_lora(4, 8, ("qkv", "output"))
    model.compile(AdamW(1e-2), metrics=[])
    before = {weight.path: np.array(weight) for weight in model.weights}
    model.fit(TEXTS, Y, batch_size=4, epochs=2, verbose=0)
    moved = {w.path for w in model.weights if not np.array_equal(w, before[w.path])}
    assert moved == {w.path for w in model.trainable_weights}
    factors = {path for path in moved if "lora" in path}
    others = [*model.encoder.pooling_layer.weights, *model.head.weights]
    assert len(factors) == 8 and moved - factors == {weight.path for weight in others}
    report = model.gradient_report(TEXTS, Y)
    assert [layer.trained > 0 for layer in report.layers] == [False, True, True, True, True]


def test_what_is_frozen_costs_no_product() -> None:
    """A gradient of a kernel is a product with its first matrix transposed."""

    def products(encoder: bertkit.BertEncoder) -> int:
        batch = {name: tf.constant(rows) for name, rows in tensors().items()}

        @tf.function(autograph=False)
        def gradients() -> Any:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(encoder(batch, reads=("sequence",))["sequence"] ** 2)
            return tape.gradient(loss, [w.value for w in encoder.trainable_weights])

        context.enable_run_metadata()
        try:
            gradients()
            graphs = context.export_run_metadata().function_graphs
        finally:
            context.disable_run_metadata()
        nodes = (node for graph in graphs for node in graph.post_optimization_graph.node)
        return sum("MatMul" in node.op and node.attr["transpose_a"].b for node in nodes)

    encoder = tiny_encoder(num_layers=3, pooling="mean")
    assert products(encoder) == 3 * 4
    encoder.enable_lora(2, 4, ("qkv",))
    assert products(encoder) == 3 * 2
    encoder.merge_lora()
    for layer in encoder.layers_in_order()[:3]:
        layer.trainable = False
    assert products(encoder) == 4


def test_a_layer_is_traced_once_for_all() -> None:
    transformer._traced.cache_clear()
    encoder = tiny_encoder(num_layers=4, pooling="mean")
    encoder.enable_lora(2, 4, ALL)
    tf.function(lambda: encoder(tensors())["pooled"])()
    traced = transformer._traced(encoder.transformer_layers[0].options, False, False)
    assert traced.experimental_get_tracing_count() == 1  # type: ignore[attr-defined]


def test_saved_before_and_after_merging(tmp_path: Path) -> None:
    model = tiny_model("binary", num_layers=2)
    model.encoder.enable_lora(4, 8, ("qkv", "intermediate"))
    model.compile(AdamW(1e-2), metrics=[])
    model.fit(TEXTS, Y, batch_size=4, verbose=0)
    outputs = model.predict(TEXTS, verbose=0)
    model.save(tmp_path / "lora.keras")
    loaded: Any = keras.models.load_model(tmp_path / "lora.keras")
    assert loaded.encoder.lora == {"rank": 4, "alpha": 8, "targets": ["qkv", "intermediate"]}
    np.testing.assert_array_equal(loaded.predict(TEXTS, verbose=0), outputs)
    assert [w.path for w in loaded.trainable_weights] == [w.path for w in model.trainable_weights]
    assert_same(*([np.array(v) for v in m.optimizer.variables] for m in (model, loaded)))
    loaded.encoder.merge_lora()
    # What was traced with LoRA is right still, and so is what is traced now.
    np.testing.assert_allclose(loaded.predict(TEXTS, verbose=0), outputs, atol=1e-5)
    np.testing.assert_allclose(loaded(TEXTS), outputs, atol=1e-5)
    loaded.compile(AdamW(1e-2))
    loaded.optimizer.build(loaded.trainable_weights)
    loaded.save(tmp_path / "plain.keras")
    plain: Any = keras.models.load_model(tmp_path / "plain.keras")
    np.testing.assert_allclose(plain.predict(TEXTS, verbose=0), outputs, atol=1e-5)
    assert len(plain.weights) == len(tiny_model("binary", num_layers=2).weights)


def test_what_was_frozen_before_stays_frozen_once_it_is_loaded(tmp_path: Path) -> None:
    model = tiny_model("binary", num_layers=2)
    model.encoder.embeddings.trainable = False
    model.encoder.transformer_layers[1].qkv[0].trainable = False
    frozen = [weight.path for weight in model.encoder.weights if not weight.trainable]
    assert len(frozen) == 6
    model.encoder.enable_lora(2, 4, ("qkv",))
    model.save(tmp_path / "lora.keras")
    again: Any = keras.models.load_model(tmp_path / "lora.keras")
    again.save(tmp_path / "again.keras")
    loaded: Any = keras.models.load_model(tmp_path / "again.keras")
    for each in (model, again, loaded):
        each.encoder.merge_lora()
        assert [w.path for w in each.encoder.weights if not w.trainable] == frozen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "The rank of LoRA is 0; it must be at least 1 and at most 16, the smaller "
         "side of the kernels."),
        ({"rank": 17}, "The rank of LoRA is 17; it must be at least 1 and at most 16, the smaller "
         "side of the kernels."),
        ({"alpha": 0}, "The alpha of LoRA is 0; it must be above 0, such as 16."),
        ({"targets": ()}, "The targets of LoRA are none. Give one or more of qkv, "
         "attention_output, intermediate, output, each once."),
        ({"targets": ("query",)}, "The targets of LoRA are 'query'. Give one or more of qkv, "
         "attention_output, intermediate, output, each once."),
        ({"targets": ("qkv", "qkv")}, "The targets of LoRA are 'qkv', 'qkv'. Give one or more of "
         "qkv, attention_output, intermediate, output, each once."),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    encoder = tiny_encoder()
    with pytest.raises(EncoderError) as caught:
        encoder.enable_lora(**options)
    assert str(caught.value) == message
    assert encoder.lora is None and all(weight.trainable for weight in encoder.weights)


def test_twice_or_not_at_all() -> None:
    encoder = tiny_encoder()
    with pytest.raises(EncoderError, match=r"has no LoRA to merge. Call enable_lora\(\) first."):
        encoder.merge_lora()
    encoder.enable_lora()
    with pytest.raises(EncoderError, match=r"has LoRA already. Call merge_lora\(\) before"):
        encoder.enable_lora()
    encoder.merge_lora()
    encoder.enable_lora()
