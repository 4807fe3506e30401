"""Models of TF Hub that take strings: their texts travel as bytes, and they train."""

from __future__ import annotations

import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import bertkit
from bertkit.errors import EncoderError, InputError
from bertkit.testing import check_encoder, check_preprocessor
from bertkit.training.optimizer import AdamW
from bertkit_plugins.encoders.saved_model import SavedModelEncoder
from bertkit_plugins.encoders.tfhub import tfhub
from bertkit_plugins.preprocessors.text_bytes import TextBytes
from tests.saved_models import write_sentence_encoder
from tests.tiny_models import LABELS, TEXTS, tiny_encoder

STRANGE = ["Grüße, 中文 🙂", "good\u0000 bad", "ends in a ﬁ", "\u00e9" * 40]


@pytest.fixture
def encoder(tmp_path: Path) -> SavedModelEncoder:
    made = tfhub(str(write_sentence_encoder(tmp_path / "encoder")))
    assert isinstance(made, SavedModelEncoder)
    return made


def test_it_keeps_the_contract(encoder: SavedModelEncoder) -> None:
    assert (encoder.hidden_size, encoder.num_segments, encoder.vocabulary) == (16, 0, None)
    batch = dict.fromkeys(("token_ids", "segment_ids", "padding_mask"), tf.ones((1, 2), tf.int32))
    with pytest.raises(EncoderError, match=r"reads the features of each token, and .* only one"):
        encoder(batch, reads=("sequence",))
    with pytest.raises(AssertionError, match="features of each token"):  # and nothing else
        check_encoder(encoder)


def test_strings_arrive_as_they_are(encoder: SavedModelEncoder, tmp_path: Path) -> None:
    texts = [*TEXTS, *STRANGE]
    text = TextBytes()
    text.bind(encoder)
    source = tf.saved_model.load(str(tmp_path / "encoder"))
    ours = encoder(text(tf.constant(texts)))["pooled"]
    np.testing.assert_array_equal(ours, source(tf.constant(texts)))


def test_the_preprocessor(encoder: SavedModelEncoder) -> None:
    check_preprocessor("text_bytes", encoder=encoder, sequence_length=9)
    text = TextBytes(sequence_length=5)
    text.bind(encoder)
    encoded = text.encode(tf.constant(["aé中文", "abc", "\u00e9" * 40]))
    rows = [bytes(row).decode() for row in encoded.token_ids.to_list()]
    assert rows == ["aé", "abc", "éé"]  # 1 + 2 + 3 bytes: the third character does not fit
    assert encoded.lengths.numpy().tolist() == [9, 3, 80]
    with pytest.raises(InputError, match=r"reads tokens\. Use single_text"):
        TextBytes().bind(tiny_encoder())


def test_it_trains_and_is_saved(encoder: SavedModelEncoder, tmp_path: Path) -> None:
    head = bertkit.heads.create("binary", labels=["neg", "pos"])
    model = bertkit.BertClassifier(encoder, head, "text_bytes")
    model.compile(optimizer=AdamW(1e-2))
    before = encoder.weights[0].numpy()
    losses = model.fit(TEXTS, LABELS["binary"], epochs=20, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]
    assert np.any(encoder.weights[0].numpy() != before)
    shutil.rmtree(tmp_path / "encoder")
    (tmp_path / "encoder_words.txt").unlink()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(TEXTS, verbose=0), model.predict(TEXTS, verbose=0))
