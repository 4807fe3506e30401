"""The encoder "tf1_checkpoint": equal to Google's BERT, and clear about what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bertkit.bert import BertEncoder
from bertkit.errors import EncoderError
from bertkit.registry import encoders
from bertkit.testing import check_encoder
from bertkit_plugins.encoders.tf1_checkpoint import tf1_checkpoint
from tests.command_line import CommandLine, tiny_config, write_tiny_data, write_yaml
from tests.reference_bert import random_batch, reference_bert
from tests.tiny import VOCABULARY
from tests.tiny_checkpoint import save_checkpoint, tiny_release, variables, write_release

CASED = (*VOCABULARY, "Film")


def differences(encoder: BertEncoder, same: Path) -> tuple[float, float]:
    """Return how far pooled and sequence are from the reference, at most."""
    batch = random_batch(encoder.vocabulary_size)
    sequence, pooled = reference_bert(same, **batch)
    features = encoder(batch, reads=("pooled", "sequence"))
    off = np.abs(features["sequence"] - sequence) * batch["padding_mask"][:, :, None]
    return np.abs(features["pooled"] - pooled).max(), off.max()


# What pretraining, optimizers and fine-tuning leave behind.
KERNEL = "bert/encoder/layer_1/attention/self/key/kernel"
LEFT: dict[str, Any] = {
    "global_step": np.int64(7),
    "beta1_power": np.float32(0.9),
    "cls/predictions/transform/dense/kernel": np.ones((32, 32), np.float32),
    "cls/predictions/output_bias": np.ones(188, np.float32),
    "cls/seq_relationship/output_weights": np.ones((2, 32), np.float32),
    "output_weights": np.ones((2, 32), np.float32),
    "output_bias": np.ones(2, np.float32),
    **{f"{KERNEL}/{slot}": np.ones((32, 32)) for slot in ("adam_m", "adam_v", "Adam", "Adam_1")},
    "output_weights/adam_m": np.ones((2, 32), np.float32),
}


@pytest.mark.parametrize("options", [{}, {"extra": LEFT, "name": "model.ckpt-1000"}])
def test_outputs_equal_the_reference(tmp_path: Path, options: dict[str, Any]) -> None:
    release, same = tiny_release(tmp_path, **options)
    encoder = encoders.create("tf1_checkpoint", source=str(release))
    assert isinstance(encoder, BertEncoder)
    assert max(differences(encoder, same)) < 1e-5
    assert (encoder.hidden_act, encoder.layer_norm_epsilon) == ("gelu_pytorch_tanh", 1e-12)
    assert (encoder.pooling, encoder.dropout, encoder.attention_dropout) == ("pooler", 0.1, 0.1)
    assert encoder.vocabulary is not None and encoder.vocabulary.tokens == VOCABULARY


def test_arguments_override_the_config(tmp_path: Path) -> None:
    release, _ = tiny_release(tmp_path)
    encoder = tf1_checkpoint(str(release), pooling="mean", dropout=0.0, attention_dropout=0.4)
    assert (encoder.pooling, encoder.dropout, encoder.attention_dropout) == ("mean", 0.0, 0.4)


def test_the_contract(tmp_path: Path) -> None:
    check_encoder("tf1_checkpoint", source=str(tiny_release(tmp_path)[0]))


def test_without_a_pooler(tmp_path: Path) -> None:
    release, _ = tiny_release(
        tmp_path, extra={"bert/pooler/dense/kernel": None, "bert/pooler/dense/bias": None}
    )
    assert tf1_checkpoint(str(release)).pooling == "cls"
    with pytest.raises(EncoderError, match=r"holds no pooler.*Use another pooling, such as 'cls'"):
        tf1_checkpoint(str(release), pooling="pooler")


def test_an_experiment_outlives_its_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bertkit = CommandLine(monkeypatch, capfd)
    monkeypatch.chdir(write_tiny_data(tmp_path))
    release, _ = tiny_release(tmp_path)
    encoder = {"plugin": "tf1_checkpoint", "source": str(release), "lowercase": True}
    write_yaml(tmp_path / "config.yaml", tiny_config("binary", encoder=encoder))
    trained = bertkit("train", "config.yaml", "output_dir=run")
    assert trained.code == 0, trained.err
    before = bertkit("predict", "run", stdin=b"a good film\n")
    shutil.rmtree(release)
    after = bertkit("predict", "run", stdin=b"a good film\n")
    assert (before.code, after.code) == (0, 0)
    assert before.predictions() == after.predictions() != []


# --- Casing


@pytest.mark.parametrize(
    ("name", "pieces", "lowercase"),
    [
        ("a_model", VOCABULARY, True),
        ("a_model", CASED, False),
        ("uncased_L-2_H-32_A-4", VOCABULARY, True),
        ("multi_cased_L-2_H-32_A-4", CASED, False),
        ("chinese_L-2_H-32_A-4", (*VOCABULARY, "<S>"), True),
        ("a_showcased_model", VOCABULARY, True),
    ],
)
def test_casing(tmp_path: Path, name: str, pieces: tuple[str, ...], lowercase: bool) -> None:
    folder = renamed(tmp_path, name, pieces)
    vocabulary = tf1_checkpoint(str(folder)).vocabulary
    assert vocabulary is not None
    assert (vocabulary.lowercase, vocabulary.strip_accents) == (lowercase, None)


@pytest.mark.parametrize(
    ("name", "pieces", "message"),
    [
        ("cased_L-2_H-32_A-4", VOCABULARY, "is called cased, but its vocab.txt holds no capitals"),
        ("uncased_L-2_H-32_A-4", CASED, r"is called uncased, but .* holds capitals \('Film'\)"),
    ],
)
def test_a_folder_of_another_casing_than_its_name(
    tmp_path: Path, name: str, pieces: tuple[str, ...], message: str
) -> None:
    folder = renamed(tmp_path, name, pieces)
    with pytest.raises(EncoderError, match=message):
        tf1_checkpoint(str(folder))
    for lowercase in (True, False):
        vocabulary = tf1_checkpoint(str(folder), lowercase=lowercase).vocabulary
        assert vocabulary is not None and vocabulary.lowercase is lowercase


def renamed(folder: Path, name: str, pieces: tuple[str, ...]) -> Path:
    """Return a release of that name and those pieces, with 188 embeddings and some to spare."""
    release, same = tiny_release(folder)
    table = "bert/embeddings/word_embeddings"
    rows = np.pad(variables(same)[table], ((0, len(pieces) - len(VOCABULARY)), (0, 0)))
    write_release(folder / name, same, extra={table: rows}, vocab_size=len(pieces))
    (folder / name / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    shutil.rmtree(release)
    return folder / name


# --- What is refused


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_act": "linear"}, "hidden_act is 'linear'. Known, of Google's: gelu, relu, tanh"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05, .* the encoder 'huggingface'"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_attention_heads": 5}, "which 5 heads cannot share"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type is 'alibi'"),
        ({"embedding_size": 128}, "embedding_size is 128, a field that bertkit does not know"),
        ({"num_hidden_layers": 3}, "lacks the weight 'bert/encoder/layer_2/attention/self/query"),
        ({"num_hidden_layers": 1}, "holds 'bert/encoder/layer_1/.*a BERT of 1 layers does not"),
        ({"intermediate_size": 63}, r"has shape \(32, 64\), .* ask for \(32, 63\)"),
        ({"vocab_size": 187}, "has 188 pieces, but .* has embeddings for 187"),
    ],
)
def test_a_config_that_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    release, _ = tiny_release(tmp_path, **config)
    with pytest.raises(EncoderError, match=message) as caught:
        tf1_checkpoint(str(release))
    assert str(release) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({KERNEL: None}, f"lacks the weight '{KERNEL}'"),
        ({KERNEL: np.ones((32, 31), np.float32)}, r"has shape \(32, 31\), .* for \(32, 32\)"),
        ({KERNEL: np.ones((32, 32), np.int32)}, "holds int32, not floating-point"),
        ({KERNEL: np.full((32, 32), np.nan, np.float32)}, "NaN or infinite"),
        ({f"{KERNEL}/adapter": np.ones(3)}, f"holds '{KERNEL}/adapter', which a BERT of 2 layers"),
        ({"bert/adapter/kernel": np.ones(3)}, "holds 'bert/adapter/kernel'"),
        ({"classifier/kernel": np.ones(3)}, "holds 'classifier/kernel'"),
    ],
)
def test_weights_that_are_refused(tmp_path: Path, extra: Any, message: str) -> None:
    release, _ = tiny_release(tmp_path, extra=extra)
    with pytest.raises(EncoderError, match=message) as caught:
        tf1_checkpoint(str(release))
    assert str(release / "bert_model.ckpt") in str(caught.value)


DATA, INDEX = "bert_model.ckpt.data-00000-of-00001", "bert_model.ckpt.index"


@pytest.mark.parametrize("kept", [None, 0, 100, 20_000, -1])
@pytest.mark.parametrize("name", [DATA, INDEX])
def test_a_damaged_checkpoint(tmp_path: Path, name: str, kept: int | None) -> None:
    release, _ = tiny_release(tmp_path)
    content = (release / name).read_bytes()
    (release / name).write_bytes(content[:kept])
    if kept is None:
        (release / name).unlink()
    elif kept >= len(content):
        return
    missing = name == INDEX and kept is None
    wanted = r"has no checkpoint, .*vocab.txt" if missing else r"cannot be read .*copy both again"
    with pytest.raises(EncoderError, match=wanted) as caught:
        tf1_checkpoint(str(release))
    assert str(release) in str(caught.value) and "\n" not in str(caught.value)


def test_a_changed_byte(tmp_path: Path) -> None:
    release, _ = tiny_release(tmp_path)
    content = bytearray((release / DATA).read_bytes())
    content[len(content) // 2] ^= 1
    (release / DATA).write_bytes(content)
    with pytest.raises(EncoderError, match=r"cannot be read .*[Cc]hecksum.*copy both again"):
        tf1_checkpoint(str(release))


@pytest.mark.parametrize("name", ["bert_config.json", "vocab.txt"])
def test_a_missing_file(tmp_path: Path, name: str) -> None:
    release, _ = tiny_release(tmp_path)
    (release / name).unlink()
    with pytest.raises(EncoderError, match=rf"{name} cannot be read"):
        tf1_checkpoint(str(release))


def test_several_checkpoints(tmp_path: Path) -> None:
    release, same = tiny_release(tmp_path)
    save_checkpoint(release / "model.ckpt-20", variables(same))
    with pytest.raises(EncoderError, match=r"several checkpoints: bert_model.ckpt, model.ckpt-20"):
        tf1_checkpoint(str(release))


def test_a_checkpoint_of_tensorflow_2(tmp_path: Path) -> None:
    release, _ = tiny_release(tmp_path)
    for path in release.glob("bert_model*"):
        path.unlink()
    tf.train.Checkpoint(kernel=tf.Variable(1.0)).write(str(release / "bert_model.ckpt"))
    with pytest.raises(EncoderError, match=r"a checkpoint of TensorFlow 2.*'tfhub'"):
        tf1_checkpoint(str(release))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("google-bert/bert-base-uncased", "There is no folder 'google-bert/bert-base-uncased'"),
        ("package:not_installed_here/model", "which is not installed"),
        ("package:json", "bert_config.json cannot be read"),
    ],
)
def test_a_source_that_is_refused(source: str, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        tf1_checkpoint(source)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    release, _ = tiny_release(tmp_path)
    with pytest.raises(EncoderError, match=r"is a file\. Give the folder"):
        tf1_checkpoint(str(release / INDEX))
    assert json.loads((release / "bert_config.json").read_text())["hidden_act"] == "gelu"
