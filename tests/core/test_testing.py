"""The checkers: what ships passes, and each way of breaking a contract is named."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from bertkit.bert import BertEncoder
from bertkit.head import Head
from bertkit.preprocessor import Encoded
from bertkit.registry import REGISTRIES, Registry, encoders, heads, preprocessors
from bertkit.testing import check_encoder, check_head, check_preprocessor
from bertkit.testing.common import VOCABULARY, tiny_encoder
from bertkit_plugins.encoders.huggingface import huggingface
from bertkit_plugins.heads.binary import BinaryHead
from bertkit_plugins.heads.multi_label import MultiLabelHead
from bertkit_plugins.heads.multiclass import MulticlassHead
from bertkit_plugins.heads.ordinal import OrdinalHead
from bertkit_plugins.heads.regression import RegressionHead
from bertkit_plugins.preprocessors.sentence_pair import SentencePair
from bertkit_plugins.preprocessors.single_text import SingleText
from tests.tiny import write_huggingface_folder

Changes = dict[str, Any]
SIZES: dict[str, Any] = {"vocabulary_size": 60, "hidden_size": 16, "num_layers": 2,
                         "num_heads": 2, "intermediate_size": 16}  # fmt: skip


@pytest.fixture(autouse=True)
def unregistered() -> Iterator[None]:
    """Forget what a test has registered."""
    before = {kind: dict(registry._decorated) for kind, registry in REGISTRIES.items()}
    yield
    for kind, registry in REGISTRIES.items():
        registry._decorated = before[kind]


def changed(base: Any, registry: Registry[Any], **methods: Any) -> Any:
    """Return a registered class that differs from `base` by some methods."""
    plugin = type("Broken", (base,), {"__module__": __name__, **methods})
    return registry.register("broken")(plugin)


def failure(check: Callable[..., None], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        check(*args, **kwargs)
    return str(caught.value)


# --- what ships


@pytest.mark.parametrize(
    ("head", "arguments"),
    [
        ("binary", {}),
        ("multiclass", {}),
        ("multi_label", {}),
        ("regression", {}),
        (RegressionHead(range=[1, 5], center=3.0, scale=1.0), {}),
        ("binary", {"labels": [True, False, False]}),
        (
            "binary",
            {
                "loss": "focal",
                "label_smoothing": 0.1,
                "pos_weight": "balanced",
                "ignore_missing": True,
            },
        ),
        ("multiclass", {"loss": "focal", "class_balance": 0.999, "label_smoothing": 0.1}),
        ("multiclass", {"logit_adjustment": 1.0, "ignore_missing": True}),
        ("multi_label", {"loss": "asymmetric"}),
        ("multi_label", {"label_smoothing": 0.1, "pos_weight": "balanced"}),
        ("regression", {"loss": "pairwise_margin", "ignore_missing": True}),
        ("ordinal", {"method": "coral", "ignore_missing": True}),
        (OrdinalHead(labels=["low", "middle", "high"]), {}),
    ],
)
def test_the_shipped_heads_pass(head: Any, arguments: dict[str, Any]) -> None:
    check_head(head, **arguments)


@pytest.mark.parametrize(
    ("preprocessor", "arguments"),
    [
        (SingleText, {"sequence_length": 3}),
        (SentencePair(sequence_length=5), {}),
        ("single_text", {"texts": ["one", "another one"]}),
    ],
)
def test_the_shipped_preprocessors_pass(preprocessor: Any, arguments: dict[str, Any]) -> None:
    check_preprocessor(preprocessor, **arguments)


def test_the_shipped_encoder_passes() -> None:
    check_encoder("bert", **SIZES)


@pytest.mark.parametrize("num_segments", [0, 1])
def test_an_encoder_of_few_positions_and_segments_passes(num_segments: int) -> None:
    check_encoder(tiny_encoder(pooling="mean", max_sequence_length=4, num_segments=num_segments))


def test_the_encoder_from_a_folder_passes(tmp_path: Path) -> None:
    check_encoder(huggingface, source=str(write_huggingface_folder(tmp_path / "tiny")))


# --- heads that break the contract


def without(*names: str) -> Callable[[Any], dict[str, Any]]:
    """A get_config that leaves arguments out."""

    def get_config(self: Any) -> dict[str, Any]:
        config = super(type(self), self).get_config()
        return {key: value for key, value in config.items() if key not in names}

    return get_config


def build_with(extra: Callable[[Any], None]) -> Callable[..., None]:
    def build(self: Any, input_shape: Any) -> None:
        super(type(self), self).build(input_shape)
        extra(self)

    return build


def call_with(after: Callable[..., Any]) -> Callable[..., Any]:
    """A call whose outputs go through `after(self, features, outputs, training)`."""

    def call(self: Any, features: Any, training: bool = False) -> Any:
        return after(self, features, super(type(self), self).call(features, training), training)

    return call


def encode_with(after: Callable[[np.ndarray], Any]) -> Callable[..., Any]:
    return lambda self, labels: after(super(type(self), self).encode_labels(labels))


def decode_with(after: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda self, outputs: after(super(type(self), self).decode(outputs))


class SignedLoss(keras.losses.Loss):
    """Cross-entropy times -1, and no class that a saved model could find."""

    sign = -1.0

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return self.sign * keras.losses.binary_crossentropy(y_true, y_pred, from_logits=True)


class UnknownLoss(SignedLoss):
    sign = 1.0


class PerLabelLoss(keras.losses.Loss):
    def call(self, y_true: Any, y_pred: Any) -> Any:
        return tf.nn.sigmoid_cross_entropy_with_logits(labels=y_true, logits=y_pred)


def new_weight(self: Any) -> None:
    self.extra = self.add_weight(shape=(), name="extra")


HEADS: dict[str, tuple[type[Head], Changes, str]] = {
    "config without the labels": (
        BinaryHead, {"get_config": without("labels")},
        "config: `get_config` must return every argument of the constructor, and lacks labels",
    ),
    "config without an argument": (
        RegressionHead, {"get_config": without("dropout", "scale")}, "and lacks scale, dropout",
    ),
    "config of before adapt": (
        BinaryHead, {"get_config": lambda self: {**BinaryHead.get_config(self), "labels": None}},
        "config: `get_config` must return what `adapt` learned",
    ),
    "config that JSON cannot write": (
        BinaryHead, {"get_config": lambda self: {**Head.get_config(self), "dropout": np.ones(1)}},
        "config: `get_config` must return what JSON can write",
    ),
    "config of another order of labels": (
        BinaryHead,
        {"get_config": lambda self: {**BinaryHead.get_config(self), "labels": self.labels[::-1]}},
        "made again from the config",
    ),
    "reads by itself what it did not ask for": (
        BinaryHead,
        {"call": lambda self, features, training=False: features["sequence"][:, 0, :1]},
        "shapes: raised KeyError",
    ),
    "unknown features": (BinaryHead, {"reads": ("words",)}, "shapes: `reads` must be a tuple of"),
    "logits of a wrong shape": (
        BinaryHead, {"call": call_with(lambda self, f, x, t: x[:, 0])},
        "shapes: `call` must return floats of shape (rows, num_outputs) = (12, 1), and returns "
        "float32 (12,)",
    ),
    "dropout at rest": (
        BinaryHead, {"call": lambda self, features, training=0: Head.call(self, features, True)},
        "shapes: with training=False, the same features must give the same outputs",
    ),
    "targets in a list": (
        BinaryHead, {"encode_labels": encode_with(np.ndarray.tolist)},
        "shapes: `encode_labels` must return a NumPy array of 12 rows of numbers, and returns list",
    ),
    "no refusal of missing labels": (
        BinaryHead,
        {"encode_labels": lambda self, labels: BinaryHead.encode_labels(
            self, [self.labels[0] if x is None else x for x in labels])},
        "refusals: `encode_labels` must refuse None by an InputError",
    ),
    "a traceback for missing labels": (
        MulticlassHead,
        {"encode_labels": lambda self, labels: np.array([self.labels.index(x) for x in labels])},
        "refusals: None must raise an InputError, not ValueError",
    ),
    "a weight that no gradient reaches": (
        BinaryHead, {"build": build_with(new_weight)},
        "training: no gradient reaches broken",
    ),
    "a gradient that is cut": (
        BinaryHead,
        {"call": call_with(lambda self, f, x, t: tf.stop_gradient(x - self.bias) + self.bias)},
        "/kernel: let the output depend on it",
    ),
    "a weight that does nothing": (
        BinaryHead,
        {"build": build_with(new_weight),
         "call": call_with(lambda self, f, x, t: x + 0.0 * self.extra)},
        "/extra' as it was",
    ),
    "another model in training": (
        BinaryHead, {"call": call_with(lambda self, f, x, t: -x if t else x)},
        "training: 120 steps must lower the loss on 12 rows",
    ),
    "a loss of the wrong sign": (
        BinaryHead, {"make_loss": lambda self: SignedLoss()},
        "`encode_labels`, the loss and `decode` must mean the same by an output",
    ),
    "labels decoded in another order": (
        MulticlassHead,
        {"probabilities": lambda self, x: MulticlassHead.probabilities(self, x[:, ::-1])},
        "decoding: trained on ['no', 'yes', 'perhaps', 'no'",
    ),
    "a metric that reads logits as probabilities": (
        BinaryHead, {"make_metrics": lambda self: [keras.metrics.BinaryAccuracy(name="accuracy")]},
        "both get targets and logits, not probabilities",
    ),
    "a metric averaged over batches": (
        RegressionHead, {"make_metrics": lambda self: [keras.metrics.PearsonCorrelation(axis=0)]},
        "metrics: 'pearson_correlation' must not depend on how rows are batched",
    ),
    "a metric named loss": (
        BinaryHead, {"make_metrics": lambda self: [keras.metrics.BinaryAccuracy(name="loss")]},
        "metrics: metrics need names of their own, not ['loss']",
    ),
    "a metric that is always the same": (
        BinaryHead, {"make_metrics": lambda self: [keras.metrics.BinaryAccuracy(threshold=1e9)]},
        "metrics: 'binary_accuracy' must tell right outputs (0.5) from wrong (0.5)",
    ),
    "predictions in an array": (
        BinaryHead, {"decode": decode_with(np.array)},
        "decoding: `decode` must return a list of one dict a row (12)",
    ),
    "predictions that JSON cannot write": (
        BinaryHead, {"decode": decode_with(lambda rows: [{**x, "score": np.float32(x["score"])}
                                                         for x in rows])},
        "decoding: `decode` must return what JSON can write: Object of type float32",
    ),
    "a report that is not a number": (
        BinaryHead, {"report": lambda self, targets, outputs: {"accuracy": float("nan")}},
        "`report` must return what JSON can write: Out of range float",
    ),
    "weights of labels in place of rows": (
        MultiLabelHead, {"make_loss": lambda self: PerLabelLoss()},
        "sample weights: ",
    ),
    "class weights of a wrong shape": (
        BinaryHead, {"class_weights": lambda self, targets, weights: np.ones(3)},
        "class weights: `class_weights` must return positive numbers of shape (12,) or (12, 1)",
    ),
    "no prediction without rows": (
        BinaryHead, {"decode": decode_with(lambda rows: [rows[0], *rows[1:]])},
        "few rows: no rows: raised IndexError",
    ),
    "no half precision": (
        BinaryHead, {"call": lambda self, features, training=False: tf.matmul(
            features["pooled"], tf.cast(self.kernel, tf.float32)) + tf.cast(self.bias, tf.float32)},
        "mixed precision: mixed_float16: raised",
    ),
    "a loss that cannot be loaded": (
        BinaryHead, {"make_loss": lambda self: UnknownLoss()}, "saving: raised TypeError",
    ),
    "weights that Keras does not save": (
        BinaryHead,
        {"build": build_with(lambda self: setattr(self, "hidden", float(np.random.random()))),
         "call": call_with(lambda self, f, x, t: x + self.hidden)},
        "saving: saved and loaded, the model must predict the same to the last bit",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADS)
def test_a_head_that_breaks_the_contract_is_told_so(case: str) -> None:
    base, methods, message = HEADS[case]
    text = failure(check_head, changed(base, heads, **methods))
    assert text.startswith("check_head(Broken), ")
    assert message in text


def test_a_missing_label_that_reaches_the_loss_is_found() -> None:
    plain = {"make_loss": lambda self: keras.losses.BinaryCrossentropy(from_logits=True)}
    text = failure(check_head, changed(BinaryHead, heads, **plain), ignore_missing=True)
    assert "missing labels: a row without a label must add nothing, and changes" in text


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "b", "c"], "config: raised InputError: The head 'binary' needs two labels"),
        ([], "config: raised InputError: There are no labels."),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: list[str], message: str) -> None:
    assert message in failure(check_head, "binary", labels=labels)


def test_a_head_for_which_no_example_fits_wants_labels() -> None:
    text = failure(check_head, RegressionHead, range=[100, 200])
    assert text.startswith("check_head(RegressionHead), choice of examples: no example fits; pass")
    check_head(RegressionHead, labels=[100, 150, 200, 120], range=[100, 200])


@pytest.mark.parametrize(
    ("check", "kind", "base", "arguments"),
    [
        (check_head, "head", BinaryHead, {}),
        (check_preprocessor, "preprocessor", SingleText, {}),
        (check_encoder, "encoder", BertEncoder, SIZES),
    ],
)
def test_what_was_never_registered_cannot_be_saved(
    check: Callable[..., None], kind: str, base: type, arguments: dict[str, Any]
) -> None:
    unknown = type("Unknown", (base,), {"__module__": __name__})
    text = failure(check, unknown, **arguments)
    assert f"{__name__}:Unknown is not a registered {kind}" in text


@pytest.mark.parametrize(
    ("check", "part", "arguments", "message"),
    [
        (check_head, "binray", {}, "There is no head named 'binray'. Did you mean 'binary'?"),
        (check_head, SingleText, {}, "it must make a bertkit.Head, and made"),
        (check_head, BinaryHead(), {"dropout": 0.2}, "arguments ['dropout'] go with a class"),
        (check_preprocessor, "single_text", {"sequence_length": 2}, "raised InputError"),
        (check_encoder, BinaryHead, {}, "it must make a bertkit.Encoder, and made"),
    ],
)
def test_what_cannot_be_made_is_a_failure(
    check: Callable[..., None], part: Any, arguments: dict[str, Any], message: str
) -> None:
    assert message in failure(check, part, **arguments)


# --- preprocessors that break the contract


def ragged(change: Callable[[Any, Encoded], Encoded]) -> Callable[..., Encoded]:
    """An encode whose result goes through `change(self, encoded)`."""
    return lambda self, texts: change(self, super(type(self), self).encode(texts))


def tensors(change: Callable[[Any, dict[str, Any]], dict[str, Any]]) -> Callable[..., Any]:
    return lambda self, texts: change(self, super(type(self), self).__call__(texts))


def with_option(self: Any, sequence_length: int = 128, option: int = 1) -> None:
    SingleText.__init__(self, sequence_length)


def padded(self: Any, x: dict[str, Any]) -> dict[str, Any]:
    room = self.sequence_length - tf.shape(x["token_ids"])[1]
    return {name: tf.pad(value, [[0, 0], [0, room]]) for name, value in x.items()}


def cut_to_the_mean(self: Any, x: Encoded) -> Encoded:
    mean = tf.reduce_mean(x.token_ids.row_lengths())
    return Encoded(x.token_ids[:, :mean], x.segment_ids[:, :mean], x.lengths)


PREPROCESSORS: dict[str, tuple[Changes, str]] = {
    "config without an argument": (
        {"__init__": with_option}, "config: `get_config` must return every argument of the "
        "constructor, and lacks option",
    ),
    "other names": (
        {"__call__": tensors(lambda self, x: {"ids": x["token_ids"]})},
        "outputs: it must return token_ids, segment_ids, padding_mask, and returns ids",
    ),
    "wide integers": (
        {"__call__": tensors(lambda self, x: {k: tf.cast(v, tf.int64) for k, v in x.items()})},
        "outputs: token_ids must be int32",
    ),
    "a mask with holes": (
        {"__call__": tensors(lambda self, x: {**x, "padding_mask": x["padding_mask"][:, ::-1]})},
        "outputs: padding_mask must be ones and then zeros",
    ),
    "padding without need": (
        {"__call__": tensors(padded)}, "outputs: a batch must be as long as its longest row",
    ),
    "no start": (
        {"encode": ragged(lambda self, x: Encoded(
            x.token_ids[:, 1:], x.segment_ids[:, 1:], x.lengths - 1))},
        "outputs: each row must begin with [CLS]",
    ),
    "a segment too many": (
        {"encode": ragged(lambda self, x: x._replace(segment_ids=x.segment_ids + 1))},
        "outputs: segment_ids must be from 0 to 0, and go from",
    ),
    "no truncation": (
        {"encode": lambda self, texts: SingleText.encode(
            changed_length(self, 10_000), texts)},
        "and within sequence_length (128)",
    ),
    "lengths after truncation": (
        {"encode": ragged(lambda self, x: x._replace(
            lengths=tf.cast(x.token_ids.row_lengths(), tf.int32)))},
        "lengths: `lengths` must be those before truncation to 128",
    ),
    "call and encode disagree": (
        {"__call__": tensors(lambda self, x: {**x, "token_ids": x["token_ids"] * 0 + tf.where(
            x["token_ids"] == 2, 2, 0)})},
        "lengths: `encode` and `__call__` must give the same token_ids",
    ),
    "rows that see each other": (
        {"encode": ragged(cut_to_the_mean)}, "rows alone: row 4 must be the same alone and in a",
    ),
    "eager only": (
        {"encode": ragged(lambda self, x: [x.token_ids.numpy(), x][1])}, "graphs: raised ",
    ),
    "no prediction without rows": (
        {"encode": lambda self, texts: [tf.debugging.assert_positive(tf.shape(texts)[0]),
                                        SingleText.encode(self, texts)][1]},
        "few rows: no rows: raised InvalidArgumentError",
    ),
}  # fmt: skip


def changed_length(preprocessor: Any, sequence_length: int) -> Any:
    other = type(preprocessor)(sequence_length)
    other._encoder = preprocessor._encoder
    return other


@pytest.mark.parametrize("case", PREPROCESSORS)
def test_a_preprocessor_that_breaks_the_contract_is_told_so(case: str) -> None:
    methods, message = PREPROCESSORS[case]
    text = failure(check_preprocessor, changed(SingleText, preprocessors, **methods))
    assert text.startswith("check_preprocessor(Broken), ")
    assert message in text


# --- encoders that break the contract


def features_with(change: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    """A call whose features go through `change(self, features, inputs, reads)`."""

    def call(self: Any, inputs: Any, reads: Any = ("pooled",), training: bool = False) -> Any:
        features = super(type(self), self).call(inputs, reads, training)
        return change(self, features, inputs, reads)

    return call


def unmasked(self: Any, inputs: Any, reads: Any = ("pooled",), training: bool = False) -> Any:
    everything = {**inputs, "padding_mask": inputs["padding_mask"] * 0 + 1}
    return {**BertEncoder.call(self, everything, reads, training), "mask": inputs["padding_mask"]}


def without_segments(self: Any, *args: Any, **kwargs: Any) -> None:
    BertEncoder.__init__(self, *args, **kwargs)
    self.num_segments = None


SHIFTS = itertools.count()


def shifted(self: Any, *args: Any, **kwargs: Any) -> None:
    BertEncoder.__init__(self, *args, **kwargs)
    self.shift = float(next(SHIFTS))


ENCODERS: dict[str, tuple[Changes, str]] = {
    "a size that is missing": (
        {"__init__": without_segments}, "attributes: `num_segments` must be 0 or more, and is None",
    ),
    "no layers": (
        {"layers_in_order": lambda self: [self.embeddings, *self.transformer_layers] * (
            not self.built)},
        "attributes: `layers_in_order` must return Keras layers, and returns []",
    ),
    "features that are not read": (
        {"call": features_with(lambda self, x, inputs, reads: {"pooled": x.get("pooled")})},
        "features: with reads=('pooled',), the features lack mask",
    ),
    "features that depend on reads": (
        {"call": features_with(lambda self, x, inputs, reads: {
            k: v * len(reads) if k == "pooled" else v for k, v in x.items()})},
        "features: 'pooled' must not depend on `reads`, and is off by",
    ),
    "attention to padding": (
        {"call": unmasked}, "padding: 'pooled' must not depend on padding or on other rows",
    ),
    "rows that see each other": (
        {"call": features_with(lambda self, x, inputs, reads: {
            k: v - tf.reduce_mean(v, 0) if k == "pooled" else v for k, v in x.items()})},
        "padding: 'pooled' must not depend on padding or on other rows",
    ),
    "no empty batch": (
        {"call": features_with(lambda self, x, inputs, reads: [
            tf.debugging.assert_positive(tf.shape(inputs["token_ids"])[0]), x][1])},
        "few rows: 0 rows of 4 tokens: raised InvalidArgumentError",
    ),
    "a gradient that is cut": (
        {"call": features_with(lambda self, x, inputs, reads: {
            k: tf.stop_gradient(v) + tf.reduce_sum(self.pooling_layer.bias) * 0.0
            if v.dtype.is_floating else v for k, v in x.items()})},
        "gradients: no gradient reaches ",
    ),
    "weights that Keras does not see": (
        {"trainable_weights": property(lambda self: [])},
        "gradients: Keras must see trainable weights",
    ),
    "always float32": (
        {"call": features_with(lambda self, x, inputs, reads: {
            k: tf.cast(v, tf.float32) if v.dtype.is_floating else v for k, v in x.items()})},
        "mixed precision: mixed_float16: 'pooled' must be float16, and is float32",
    ),
    "state outside of config and weights": (
        {"__init__": shifted,
         "call": features_with(lambda self, x, inputs, reads: {
             k: v + tf.cast(self.shift, v.dtype) if v.dtype.is_floating else v
             for k, v in x.items()})},
        "mixed precision: mixed_float16: 'pooled' must be near that of float32",
    ),
    "a vocabulary that is not saved": (
        {"save_assets": lambda self, folder: None},
        "saving: saved and loaded, the encoder must have its vocabulary",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ENCODERS)
def test_an_encoder_that_breaks_the_contract_is_told_so(case: str) -> None:
    methods, message = ENCODERS[case]
    broken = changed(BertEncoder, encoders, **methods)

    def make() -> Any:
        encoder = broken(**{**SIZES, "vocabulary_size": len(VOCABULARY), "num_layers": 1})
        encoder.vocabulary = VOCABULARY
        return encoder

    text = failure(check_encoder, make)
    assert text.startswith("check_encoder(make), ")
    assert message in text
