"""BertEncoder: what it computes, what it learns, and what it survives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from bertkit import transformer
from bertkit.bert import BertEncoder
from bertkit.errors import EncoderError, InputError
from bertkit.layers import ACTIVATIONS, LayerNorm, dropout, gelu
from bertkit.pooling import POOLINGS
from bertkit.tokenizer import Vocabulary
from tests import reference_bert
from tests.reference_bert import random_batch
from tests.tiny import VOCABULARY

BOTH = ("pooled", "sequence")
SIZES: dict[str, Any] = {
    "vocabulary_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "intermediate_size": 64,
    "max_sequence_length": 64,
    "initializer_range": 0.2,
}


def make(**changes: Any) -> BertEncoder:
    keras.utils.set_random_seed(0)
    return BertEncoder(**{**SIZES, **changes})


def batch() -> dict[str, tf.Tensor]:
    return {name: tf.constant(ids) for name, ids in random_batch(len(VOCABULARY)).items()}


def run(encoder: BertEncoder, reads: tuple[str, ...] = BOTH, **options: Any) -> dict[str, Any]:
    features = encoder(batch(), reads=reads, **options)
    return {name: tf.cast(value, tf.float32).numpy() for name, value in features.items()}


def tokens_only(features: dict[str, Any]) -> Any:
    """The sequence with zeros at padding, whose values mean nothing."""
    return features["sequence"] * features["mask"][:, :, None]


@pytest.fixture
def vocabulary(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*VOCABULARY, ""]))
    yield str(path)


# --- What it computes


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooled_alone_equals_pooled_with_the_sequence(pooling: str) -> None:
    encoder = make(pooling=pooling)
    both, alone = run(encoder), run(encoder, ("pooled",))
    assert alone.keys() == {"pooled", "mask"}
    np.testing.assert_allclose(alone["pooled"], both["pooled"], atol=1e-6)
    assert run(encoder, ("sequence",)).keys() == {"sequence", "mask"}


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_changes_nothing(pooling: str) -> None:
    encoder = make(pooling=pooling)
    before = run(encoder)
    padded = {name: tf.pad(ids, [[0, 0], [0, 9]]) for name, ids in batch().items()}
    # What stands in padding must not matter either.
    padded["token_ids"] += 5 * (1 - padded["padding_mask"])
    after = {name: value.numpy() for name, value in encoder(padded, reads=BOTH).items()}
    np.testing.assert_allclose(after["pooled"], before["pooled"], atol=1e-6)
    np.testing.assert_allclose(tokens_only(after)[:, :12], tokens_only(before), atol=1e-6)


def test_mean_pooling_is_the_mean_over_tokens() -> None:
    features = run(make(pooling="mean"))
    for row, length in enumerate((12, 7, 1)):
        mean = features["sequence"][row, :length].mean(axis=0)
        np.testing.assert_allclose(features["pooled"][row], mean, atol=1e-6)


def test_max_pooling_is_the_largest_over_tokens() -> None:
    features = run(make(pooling="max"))
    rows = zip(features["sequence"], features["mask"], strict=True)
    np.testing.assert_array_equal(
        features["pooled"], [row[mask == 1].max(axis=0) for row, mask in rows]
    )


def test_attention_pooling_is_the_paper_s_formula() -> None:
    encoder = make(pooling="attention")
    kernel, bias, query = (
        np.asarray(weight, "float64") for weight in encoder.pooling_layer.weights
    )
    features = run(encoder)
    for row, mask, pooled in zip(
        *(features[k] for k in ("sequence", "mask", "pooled")), strict=True
    ):
        tokens = row[mask == 1].astype("float64")
        scores = np.exp(np.tanh(tokens @ kernel + bias) @ query)
        np.testing.assert_allclose(pooled, (scores / scores.sum()) @ tokens, atol=1e-5)


def test_layers_pooling_mixes_the_first_token_of_each_layer() -> None:
    encoder = make(pooling="layers")
    mix, scale = encoder.pooling_layer.weights
    mix.assign([0.5, -1.0, 2.0])
    scale.assign(1.5)
    x = encoder.embeddings(batch()["token_ids"], batch()["segment_ids"])
    states = [x]
    for layer in encoder.transformer_layers:
        states.append(layer(states[-1], batch()["padding_mask"]))
    rows, length = batch()["token_ids"].shape
    first = np.stack([np.reshape(state, (rows, length, -1))[:, 0] for state in states])
    share = np.exp([0.5, -1.0, 2.0]) / np.exp([0.5, -1.0, 2.0]).sum()
    wanted = 1.5 * np.einsum("l,lbh->bh", share, first)
    np.testing.assert_allclose(run(encoder)["pooled"], wanted, atol=1e-5)


def test_embeddings_may_be_given_in_the_place_of_ids() -> None:
    encoder = make()
    looked_up = tf.gather(encoder.embeddings.token, batch()["token_ids"])
    same = encoder({**batch(), "token_embeddings": looked_up}, reads=BOTH)
    np.testing.assert_array_equal(same["pooled"], run(encoder)["pooled"])
    with tf.GradientTape() as tape:
        tape.watch(looked_up)
        moved = encoder({**batch(), "token_embeddings": looked_up + 0.1})["pooled"]
    assert (tape.gradient(moved, looked_up).numpy()[:, 0] != 0).all()
    assert (moved.numpy() != same["pooled"].numpy()).any()


def test_cls_pooling_is_the_first_token() -> None:
    features = run(make(pooling="cls"))
    np.testing.assert_array_equal(features["pooled"], features["sequence"][:, 0])


def test_dropout_applies_in_training_only() -> None:
    encoder = make(dropout=0.3, attention_dropout=0.3)
    still = run(encoder)["pooled"]
    np.testing.assert_array_equal(run(encoder, training=False)["pooled"], still)
    first, second = (run(encoder, training=True)["pooled"] for _ in range(2))
    assert np.abs(first - still).max() > 1e-3
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout"])
def test_each_dropout_applies_alone(rate: str) -> None:
    encoder = make(**{"dropout": 0.0, "attention_dropout": 0.0, rate: 0.3})
    assert np.abs(run(encoder, training=True)["pooled"] - run(encoder)["pooled"]).max() > 1e-3


@pytest.mark.parametrize("hidden_act", ACTIVATIONS)
def test_without_dropout_training_changes_nothing(hidden_act: str) -> None:
    """But the rounding of GELU, which is computed in one way for a gradient, in one without."""
    encoder = make(dropout=0.0, attention_dropout=0.0, hidden_act=hidden_act)
    rounding = 2e-6 if hidden_act == "gelu" else 0
    training, inference = run(encoder, training=True)["pooled"], run(encoder)["pooled"]
    np.testing.assert_allclose(training, inference, rtol=0, atol=rounding)


# How far a result may be off: some roundings of 2**-11 or 2**-8, through 2 layers.
@pytest.mark.parametrize(("policy", "off"), [("mixed_float16", 2e-2), ("mixed_bfloat16", 1.5e-1)])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_mixed_precision(policy: str, off: float, pooling: str) -> None:
    exact, mixed = make(pooling=pooling), make(pooling=pooling, dtype=policy)
    mixed.set_weights(exact.get_weights())
    features = mixed(batch(), reads=BOTH)
    assert {variable.dtype for variable in mixed.trainable_variables} == {"float32"}
    assert features["pooled"].dtype == features["sequence"].dtype == policy.removeprefix("mixed_")
    wanted, got = run(exact), run(mixed)
    np.testing.assert_allclose(got["pooled"], wanted["pooled"], atol=off)
    np.testing.assert_allclose(tokens_only(got), tokens_only(wanted), atol=off)


@pytest.mark.parametrize("reads", [("pooled",), BOTH])
def test_xla_computes_the_same(reads: tuple[str, ...]) -> None:
    encoder = make()
    compiled = tf.function(lambda inputs: encoder(inputs, reads=reads), jit_compile=True)
    wanted = run(encoder, reads)
    got = {name: value.numpy() for name, value in compiled(batch()).items()}
    np.testing.assert_allclose(got["pooled"], wanted["pooled"], atol=1e-5)
    if "sequence" in reads:
        np.testing.assert_allclose(tokens_only(got), tokens_only(wanted), atol=1e-5)


# --- What it learns


@pytest.mark.parametrize(
    "sizes", [{"pooling": name} for name in POOLINGS] + [{"num_segments": 0, "embedding_size": 12}]
)
@pytest.mark.parametrize("reads", [("pooled",), BOTH])
def test_every_variable_learns(sizes: dict[str, Any], reads: tuple[str, ...]) -> None:
    encoder = make(**sizes)
    with tf.GradientTape() as tape:
        features = encoder(batch(), reads=reads, training=True)
        loss = sum(tf.reduce_sum(tf.sin(3.0 * features[name])) for name in reads)
    gradients = tape.gradient(loss, [v.value for v in encoder.trainable_variables])
    for variable, gradient in zip(encoder.trainable_variables, gradients, strict=True):
        assert gradient is not None, variable.path
        assert np.abs(tf.convert_to_tensor(gradient)).max() > 1e-6, variable.path


def test_number_of_variables_and_parameters() -> None:
    hidden, wide = 32, 64
    layer = 4 * hidden * hidden + 2 * hidden * wide + 9 * hidden + wide
    embeddings = (len(VOCABULARY) + 64 + 2) * hidden + 2 * hidden
    assert make().count_params() == embeddings + 2 * layer + hidden * hidden + hidden
    assert len(make().trainable_variables) == 5 + 2 * 12 + 2


def test_embeddings_of_another_width_are_projected() -> None:
    plain, narrow = make(), make(embedding_size=12)
    rows = len(VOCABULARY) + 64 + 2
    saved = (rows + 2) * (32 - 12) - (12 * 32 + 32)
    assert plain.count_params() - narrow.count_params() == saved
    embeddings = narrow.embeddings
    kernel, bias = (np.asarray(weight, "float64") for weight in embeddings.projection)
    inputs = {name: ids.numpy() for name, ids in batch().items()}
    summed = (
        np.asarray(embeddings.token, "float64")[inputs["token_ids"]]
        + np.asarray(embeddings.segment, "float64")[inputs["segment_ids"]]
        + np.asarray(embeddings.position, "float64")[:12]
    )
    wanted = reference_bert.layer_norm(summed, np.ones(12), np.zeros(12), 1e-12) @ kernel + bias
    got = embeddings(batch()["token_ids"], batch()["segment_ids"])
    np.testing.assert_allclose(got, wanted.reshape(-1, 32), atol=1e-5)


def test_without_segments_their_ids_are_ignored() -> None:
    encoder = make(num_segments=0)
    assert len(encoder.weights) == len(make().weights) - 1
    other = {**batch(), "segment_ids": 7 * batch()["padding_mask"]}
    np.testing.assert_array_equal(encoder(batch())["pooled"], encoder(other)["pooled"])


def test_layers_freeze_in_order() -> None:
    encoder = make()
    layers = encoder.layers_in_order()
    assert [layer.name for layer in layers] == ["embeddings", "layer_0", "layer_1"]
    for layer in layers[:2]:
        layer.trainable = False
    left = {variable.path for variable in encoder.trainable_variables}
    assert left and all("layer_1" in path or "pooler" in path for path in left)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(encoder(batch())["pooled"])
    assert all(g is not None for g in tape.gradient(loss, encoder.trainable_variables))


# --- Its parts


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations(name: str) -> None:
    x = np.linspace(-9, 9, 2001)
    got = ACTIVATIONS[name](tf.constant(x, tf.float32)).numpy()
    np.testing.assert_allclose(got, reference_bert.ACTIVATIONS[name](x), atol=1e-6)


def test_gelu_has_the_gradient_of_gelu() -> None:
    x = np.linspace(-9, 9, 2001)
    step = 1e-5
    exact = reference_bert.ACTIVATIONS["gelu"]
    differences = (exact(x + step) - exact(x - step)) / (2 * step)

    def gradient(function: Any, points: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(points)
            total = tf.reduce_sum(3.0 * function(points))
        return tape.gradient(total, points) / 3.0

    wide, narrow = tf.constant(x), tf.constant(x, tf.float32)
    np.testing.assert_allclose(gradient(gelu, wide), differences, atol=1e-9)
    theirs = gradient(lambda points: tf.nn.gelu(points, approximate=False), narrow)
    np.testing.assert_allclose(gradient(gelu, narrow), theirs, atol=1e-6)


@pytest.mark.parametrize("epsilon", [1e-12, 1e-5, 0.1])
def test_layer_norm(epsilon: float) -> None:
    generator = np.random.default_rng(0)
    x, gamma, beta = (generator.normal(size=size) for size in ((5, 3, 32), 32, 32))
    layer = LayerNorm(epsilon)
    layer.build((None, None, 32))
    layer.gamma.assign(gamma)
    layer.beta.assign(beta)
    wanted = reference_bert.layer_norm(x, gamma, beta, epsilon)
    np.testing.assert_allclose(layer(tf.constant(x, tf.float32)), wanted, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5)])
def test_layer_norm_has_the_gradient_of_its_formula(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(1)
    x, upstream = random.normal(2.0, 3.0, (2, *shape))
    layer = LayerNorm(1e-3)
    layer.build((None, 5))
    layer.gamma.assign(random.normal(size=5))
    layer.beta.assign(random.normal(size=5))
    gamma, beta = (tf.constant(w.numpy(), tf.float64) for w in (layer.gamma, layer.beta))
    wide = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch([wide, gamma, beta])
        mean, variance = tf.nn.moments(wide, axes=[-1], keepdims=True)
        y = (wide - mean) / tf.sqrt(variance + 1e-3) * gamma + beta
        expected_loss = tf.reduce_sum(y * upstream)
    expected = tape.gradient(expected_loss, [wide, gamma, beta])
    narrow = tf.constant(x, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(narrow)
        loss = tf.reduce_sum(layer(narrow) * upstream.astype("float32"))
    actual = tape.gradient(loss, [narrow, layer.gamma.value, layer.beta.value])
    for ours, formula in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, formula, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.93])
def test_dropout_keeps_the_mean_and_drops_the_same_in_the_gradient(rate: float) -> None:
    ones = tf.ones((301, 1001))  # an odd number of values
    with tf.GradientTape() as tape:
        tape.watch(ones)
        y = dropout(ones, rate, tf.constant([3, 0]))
    dropped = np.mean(y.numpy() == 0)
    error = np.sqrt(rate * (1 - rate) / ones.numpy().size)
    assert abs(dropped - rate) < 4 * error + 2**-17
    np.testing.assert_allclose(np.unique(y), [0, 1 / (1 - rate)], rtol=1e-3)
    np.testing.assert_array_equal(tape.gradient(y, ones), y)
    # Neighbours come of the same random word, and yet are independent.
    kept = (y.numpy().reshape(-1)[:-1].reshape(-1, 2) > 0).astype(float)
    assert abs(np.corrcoef(kept.T)[0, 1]) < 0.01


def test_dropout_draws_anew_each_time_and_the_same_from_a_seed() -> None:
    x = tf.ones((20, 30))
    seeds = keras.random.SeedGenerator(5)
    first, second = (dropout(x, 0.5, seeds.next()) for _ in range(2))
    assert np.any(first != second)
    np.testing.assert_array_equal(first, dropout(x, 0.5, keras.random.SeedGenerator(5).next()))


def test_dropout_of_nearly_everything_stays_finite() -> None:
    y = dropout(tf.ones((200, 1000)), 0.9999999, tf.constant([0, 0]))
    assert np.isfinite(y).all()


@pytest.mark.parametrize("reads", [BOTH, ("pooled",)])
def test_a_graph_computes_and_learns_what_eager_does(reads: tuple[str, ...]) -> None:
    """With dropout, gradients included: there a layer's computation is a function of its own."""
    results = []
    for wrap in (lambda step: step, tf.function):
        encoder = make(num_layers=3)

        def step(encoder: BertEncoder = encoder) -> tuple[Any, Any]:
            with tf.GradientTape() as tape:
                outputs = encoder(batch(), reads=reads, training=True)
                loss = tf.add_n([tf.reduce_sum(tf.square(outputs[name])) for name in reads])
            return outputs[reads[0]], tape.gradient(loss, encoder.trainable_weights)

        results.append(tf.nest.flatten(wrap(step)(), expand_composites=True))
    for eager, graph in zip(*results, strict=True):
        np.testing.assert_allclose(eager, graph, rtol=2e-4, atol=1e-4)


def test_layers_of_the_same_sizes_are_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    traces = []
    transform = transformer._transform
    monkeypatch.setattr(
        transformer, "_transform", lambda *inputs: traces.append(1) or transform(*inputs)
    )
    transformer._traced.cache_clear()
    for changes, traced in (
        ({}, 1),
        ({"num_layers": 4}, 1),
        ({"dtype": "mixed_bfloat16"}, 2),
        ({"dtype": "mixed_bfloat16", "num_layers": 4}, 2),
        ({}, 2),
        ({"hidden_size": 48}, 3),
    ):
        for _ in range(2):  # as for validation and for prediction
            encoder = make(**changes)
            tf.function(lambda encoder=encoder: encoder(batch(), reads=BOTH))()
            assert len(traces) == traced
    transformer._traced.cache_clear()


def test_layer_norm_is_computed_in_float32() -> None:
    # Squares of these overflow in float16.
    x = np.random.default_rng(0).normal(scale=1000.0, size=(4, 32)).astype(np.float16)
    layer = LayerNorm(1e-12, dtype="mixed_float16")
    layer.build((None, 32))
    wanted = reference_bert.layer_norm(x.astype(np.float64), np.ones(32), np.zeros(32), 1e-12)
    np.testing.assert_allclose(layer(tf.constant(x)), wanted, atol=2e-3)


# --- Save and load


def test_keras_round_trip(tmp_path: Path, vocabulary: str) -> None:
    encoder = make(vocabulary=vocabulary, lowercase=False, hidden_act="relu", pooling="mean")
    inputs = {
        name: keras.Input((None,), dtype="int32", name=name)
        for name in ("token_ids", "segment_ids", "padding_mask")
    }
    features = encoder(inputs, reads=BOTH)
    model = keras.Model(inputs, {name: features[name] for name in BOTH})
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    wanted, got = model(batch()), loaded(batch())
    for name in BOTH:
        np.testing.assert_array_equal(got[name], wanted[name])
    (again,) = (layer for layer in loaded.layers if isinstance(layer, BertEncoder))
    assert again.vocabulary == encoder.vocabulary
    assert again.vocabulary is not None and not again.vocabulary.lowercase
    assert again.get_config() == encoder.get_config()


def test_config_round_trip() -> None:
    encoder = make(
        num_segments=3,
        embedding_size=12,
        hidden_act="silu",
        layer_norm_epsilon=1e-6,
        dropout=0.2,
        attention_dropout=0.3,
        pooling="cls",
        dtype="mixed_bfloat16",
        name="some_name",
    )
    again = BertEncoder.from_config(encoder.get_config())
    assert again.get_config() == encoder.get_config()
    shapes = [(v.path, v.shape) for v in encoder.trainable_variables]
    assert [(v.path, v.shape) for v in again.trainable_variables] == shapes


# --- What it refuses


def test_a_sequence_longer_than_the_positions_is_refused() -> None:
    encoder = make(max_sequence_length=11)
    any_length = {name: tf.TensorSpec((None, None), tf.int32) for name in batch()}
    # What is known while a graph is made is ours to say; what is not, TensorFlow's.
    for function, error in (
        (encoder, InputError),
        (tf.function(encoder, input_signature=[any_length]), tf.errors.InvalidArgumentError),
    ):
        with pytest.raises(error, match=r"longer than the 11 positions"):
            function(batch())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocabulary_size": 0}, "vocabulary_size is 0; a BERT needs at least 1"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"num_heads": -1}, "num_heads is -1"),
        ({"num_segments": -1}, "num_segments is -1; it must be at least 0"),
        ({"embedding_size": 0}, "embedding_size is 0; a BERT needs at least 1"),
        ({"num_heads": 5}, "hidden_size is 32, which 5 heads cannot share evenly"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish'. Known: gelu, "),
        ({"dropout": 1.0}, r"dropout is 1.0; it must be in \[0, 1\)"),
        ({"attention_dropout": -0.1}, "attention_dropout is -0.1"),
        (
            {"pooling": "last"},
            "pooling is 'last'. Known: pooler, cls, mean, max, attention",
        ),
        ({"layer_norm_epsilon": -1e-12}, "layer_norm_epsilon is -1e-12; it must be above 0"),
        ({"initializer_range": 0.0}, "initializer_range is 0.0; it must be above 0"),
        ({"vocabulary": "nowhere/vocab.txt"}, "nowhere/vocab.txt cannot be read"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        make(**change)


def test_a_vocabulary_larger_than_the_embeddings_is_refused() -> None:
    with pytest.raises(EncoderError, match=r"has 188 pieces, but .* has embeddings for 187"):
        make(vocabulary_size=187).vocabulary = Vocabulary(VOCABULARY)
    make(vocabulary_size=189).vocabulary = Vocabulary(VOCABULARY)


def test_a_pooler_that_no_head_reads_is_not_trained(recwarn: pytest.WarningsRecorder) -> None:
    from bertkit import BertClassifier, BertEncoder
    from bertkit_plugins.heads.multiclass import MulticlassHead

    class FirstToken(MulticlassHead):
        reads = ("sequence",)

        def call(self, features, training=False):  # type: ignore[no-untyped-def]
            return super().call({"pooled": features["sequence"][:, 0]}, training)

    encoder = BertEncoder(20, 8, 1, 2, 16)
    rows = {"token_ids": np.ones((4, 3), "int32"), "padding_mask": np.ones((4, 3), "int32")}
    before = encoder.pooling_layer.kernel.numpy()
    sequence = BertClassifier(encoder, FirstToken(labels=["a", "b"]))
    sequence.fit(rows, ["a", "b", "a", "b"], verbose=0)
    np.testing.assert_array_equal(encoder.pooling_layer.kernel.numpy(), before)
    assert not [str(w.message) for w in recwarn if "Gradients do not exist" in str(w.message)]
    pooled = BertClassifier(encoder, "multiclass")
    pooled.fit(rows, ["a", "b", "a", "b"], verbose=0)
    assert (encoder.pooling_layer.kernel.numpy() != before).any()
