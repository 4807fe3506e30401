"""The preprocessor `tfhub`, against the SavedModel's own functions."""

from __future__ import annotations

import functools
import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_text

import bertkit
from bertkit import artifact
from bertkit.config import config_from_mapping
from bertkit.errors import ConfigError, EncoderError, InputError
from bertkit.registry import preprocessors
from bertkit.testing import check_preprocessor
from bertkit_plugins.preprocessors.tfhub import TFHubPreprocessor
from tests.command_line import CommandLine, snapshot, tiny_config, write_tiny_data, write_yaml
from tests.preprocessing_models import write_preprocessing_model
from tests.processes import run
from tests.tiny import VOCABULARY
from tests.tiny_models import LABELS, PAIRS, TEXTS, tiny_encoder

TFHUB_TINY = Path(__file__).parents[3] / "shared" / "tfhub_tiny"
CHARACTERS = 50
# Words whose neighbours are pieces too, so that a wrong cut shows.
_WORDS = [*VOCABULARY[5:], "The", "FILM", "café", "ﬁne", "中文", "unheard-of", "\u200b", "x" * 120]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_preprocessing_model(tmp_path_factory.mktemp("models") / "words")


@pytest.fixture(scope="module")
def characters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "characters"
    return write_preprocessing_model(folder, characters=CHARACTERS)


@functools.cache
def loaded(source: Path, columns: int) -> TFHubPreprocessor:
    preprocessor = preprocessors.create("tfhub", source=str(source), text_columns=columns)
    assert isinstance(preprocessor, TFHubPreprocessor)
    return preprocessor


def made(source: Path, length: int = 24, columns: Any = 1) -> TFHubPreprocessor:
    """Return a new preprocessor; each source is loaded once, which is most of the work."""
    preprocessor = TFHubPreprocessor(None, length, columns)
    preprocessor._model = loaded(source, columns)._model
    return preprocessor


def rows_of(count: int, columns: int) -> list[Any]:
    """Return texts, or pairs, of 0 to 30 words."""
    chosen = random.Random(columns)
    texts = [
        " ".join(chosen.choices(_WORDS, k=chosen.randint(0, 30))) for _ in range(count * columns)
    ]
    return texts if columns == 1 else list(zip(texts[:count], texts[count:], strict=True))


# --- as the SavedModel itself


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("kind", ["source", "characters"])
def test_rows_are_those_of_the_saved_model(
    kind: str, columns: int, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    preprocessor = made(folder, columns=columns)
    graph = preprocessor.model.graph
    rows = tf.constant(rows_of(300, columns))
    tokens = [
        graph.tokenize(texts) for texts in tf.unstack(tf.reshape(rows, [300, columns]), axis=1)
    ]
    full = [
        sum(len(np.hstack([[], *row])) for row in pair) + columns + 1
        for pair in zip(*(part.to_list() for part in tokens), strict=True)
    ]
    for length in (5, 16, 512):
        preprocessor.sequence_length = length
        encoded = preprocessor.encode(rows)
        lists = {name: getattr(encoded, name).to_list() for name in ("token_ids", "segment_ids")}
        tensors = {name: x.numpy() for name, x in preprocessor(rows).items()}
        own = {name: x.numpy() for name, x in graph.bert_pack_inputs(tokens, length).items()}
        widths = own["input_mask"].sum(axis=1)
        for index, width in enumerate(widths):
            for name, theirs, rest in (
                ("token_ids", "input_word_ids", preprocessor.padding_id),
                ("segment_ids", "input_type_ids", 0),
                ("padding_mask", "input_mask", 0),
            ):
                wanted, padded = own[theirs][index, :width], tensors[name][index]
                np.testing.assert_array_equal(padded[:width], wanted)
                assert (padded[width:] == rest).all()
                if name != "padding_mask":
                    assert lists[name][index] == wanted.tolist()
        assert encoded.lengths.numpy().tolist() == full
        assert tensors["token_ids"].shape == (300, widths.max()), "padded to the longest row"
        assert widths.min() < widths.max() == min(length, max(full))


def test_a_call_of_the_saved_model_gives_the_same_ids(source: Path) -> None:
    preprocessor = made(source, length=16)
    own = preprocessor.model.graph(tf.constant(TEXTS))
    tensors = preprocessor(tf.constant(TEXTS))
    width = tensors["token_ids"].shape[1]
    np.testing.assert_array_equal(tensors["token_ids"], own["input_word_ids"][:, :width])
    np.testing.assert_array_equal(tensors["padding_mask"], own["input_mask"][:, :width])


@pytest.mark.skipif(not TFHUB_TINY.is_dir(), reason="the exported example is not there")
def test_the_inputs_are_those_that_model_garden_made() -> None:
    expected = np.load(TFHUB_TINY / "expected.npz")
    length = expected["input_word_ids"].shape[1]
    tensors = made(TFHUB_TINY / "preprocess", length)(tf.constant(expected["texts"].tolist()))
    width = int(expected["input_mask"].sum(axis=1).max())
    for name, theirs in (("token_ids", "input_word_ids"), ("segment_ids", "input_type_ids"),
                         ("padding_mask", "input_mask")):  # fmt: skip
        np.testing.assert_array_equal(tensors[name], expected[theirs][:, :width])
    assert not expected["input_word_ids"][:, width:].any()


def test_it_keeps_the_contract(source: Path, characters: Path) -> None:
    check_preprocessor("tfhub", encoder=tiny_encoder(), source=str(source),
                       sequence_length=24, text_columns=2)  # fmt: skip
    mute = tiny_encoder(vocabulary=False, vocabulary_size=CHARACTERS)
    check_preprocessor(made(characters), encoder=mute)


# --- what does not fit


def mismatch(source: Path, *, encoder: Any = None, **sizes: Any) -> str:
    with pytest.raises(InputError, match="The preprocessor does not fit the encoder: ") as caught:
        made(source).bind(encoder or tiny_encoder(**sizes))
    message = str(caught.value)
    assert "plugin single_text" in message and "\n" not in message and len(message) < 420
    return message


def test_another_vocabulary_is_an_error(tmp_path: Path, source: Path) -> None:
    swapped = list(VOCABULARY)
    swapped[100], swapped[101] = swapped[101], swapped[100]
    other = shutil.copytree(source, tmp_path / "swapped")
    (other / "assets" / "vocab.txt").write_text("\n".join(swapped))
    assert (
        f"id 100 is {VOCABULARY[101]!r} to the preprocessor and {VOCABULARY[100]!r} to the encoder"
        in mismatch(other)
    )
    shorter = bertkit.Vocabulary(VOCABULARY[:-3])
    encoder = tiny_encoder(vocabulary=False)
    encoder.vocabulary = shorter
    count = len(VOCABULARY)
    assert (
        f"id {count - 3} is {VOCABULARY[-3]!r} to the preprocessor and nothing to the encoder "
        f"(which have {count} and {count - 3} pieces)" in mismatch(source, encoder=encoder)
    )
    with pytest.raises(InputError, match="does not fit the encoder: id 100"):
        bertkit.BertClassifier(tiny_encoder(), "binary", made(other))


def test_another_size_is_an_error(characters: Path) -> None:
    for size in (CHARACTERS - 1, CHARACTERS + 128):
        message = mismatch(characters, vocabulary=False, vocabulary_size=size)
        assert f"has {CHARACTERS} pieces, and the encoder embeddings for {size}" in message
    message = mismatch(characters)
    assert f"has 50 pieces, and the encoder a vocabulary of {len(VOCABULARY)}" in message
    for size in (CHARACTERS, CHARACTERS + 127):  # rows that only fill the table up
        made(characters).bind(tiny_encoder(vocabulary=False, vocabulary_size=size))


def test_another_casing_is_an_error(source: Path, characters: Path) -> None:
    encoder = tiny_encoder(vocabulary=False)
    encoder.vocabulary = bertkit.Vocabulary(VOCABULARY, lowercase=False)
    assert "the preprocessor lowercases, and the encoder's" in mismatch(source, encoder=encoder)
    encoder.vocabulary = bertkit.Vocabulary(VOCABULARY[:CHARACTERS])
    assert "the preprocessor keeps capitals, and the encoder's" in mismatch(
        characters, encoder=encoder
    )
    encoder.vocabulary = bertkit.Vocabulary(VOCABULARY[:CHARACTERS], lowercase=False)
    made(characters).bind(encoder)


def test_a_vocabulary_set_later_is_compared_too(source: Path) -> None:
    encoder = tiny_encoder(vocabulary=False)
    preprocessor = made(source)
    preprocessor.bind(encoder)
    texts = np.array(["a film"], dtype=object)
    assert preprocessor.encode_array(texts).lengths == 4
    encoder.vocabulary = bertkit.Vocabulary((*VOCABULARY[:-2], *VOCABULARY[:-3:-1]))
    with pytest.raises(InputError, match="does not fit the encoder"):
        preprocessor.encode_array(texts)


def test_lengths_and_segments_must_fit(source: Path) -> None:
    with pytest.raises(InputError, match="sequence_length is 41, but the encoder has positions "
                                         "for 40 tokens"):  # fmt: skip
        made(source, length=41).bind(tiny_encoder())
    with pytest.raises(InputError, match="marks 2 segments, but the encoder has embeddings for 1"):
        made(source, columns=2).bind(tiny_encoder(num_segments=1))
    with pytest.raises(InputError, match="must be at least 5"):
        made(source, length=4, columns=2)
    with pytest.raises(InputError, match=r"text_columns is 3\. Give 1, or 2 for pairs"):
        made(source, columns=3)


# --- SavedModels of another kind


def refused(source: Path, columns: int = 1) -> str:
    with pytest.raises(EncoderError) as caught:
        preprocessors.create("tfhub", source=str(source), text_columns=columns)
    message = str(caught.value)
    assert str(source) in message and "\n" not in message and message.endswith(".")
    return message


def test_an_encoder_is_named_as_one(tmp_path: Path) -> None:
    module = tf.Module()
    module.weight = tf.Variable(1.0)
    tf.saved_model.save(module, str(tmp_path / "weights"))
    assert "is an encoder, no preprocessing model" in refused(tmp_path / "weights")


def test_a_graph_that_reaches_out_is_not_run(tmp_path: Path) -> None:
    written = tmp_path / "written"
    module = tf.Module()
    module.tokenize = tf.function(
        lambda texts: [tf.io.write_file(str(written), texts[0]), texts][1],
        input_signature=[tf.TensorSpec([None], tf.string)],
    )
    module.bert_pack_inputs = module.tokenize
    tf.saved_model.save(module, str(tmp_path / "writes"))
    assert "holds WriteFile, which reaches out of the computation" in refused(tmp_path / "writes")
    assert not written.exists()


def test_functions_that_are_missing_are_named(tmp_path: Path) -> None:
    without = ["bert_pack_inputs", "tokenize"]
    fixed = write_preprocessing_model(tmp_path / "fixed", characters=9, without=without)
    assert "has no tokenize and no bert_pack_inputs" in refused(fixed)
    loose = write_preprocessing_model(tmp_path / "loose", characters=9, without=without[:1])
    assert "has no bert_pack_inputs, so its texts can neither be paired" in refused(loose)


def test_an_early_version_of_the_interface_will_do(tmp_path: Path) -> None:
    early = write_preprocessing_model(
        tmp_path / "early", segments=[1], without=["get_special_tokens_dict"]
    )
    assert "cannot pack two texts a row" in refused(early, columns=2)
    preprocessor = made(early)
    assert preprocessor.model.vocabulary_size is None
    preprocessor.bind(tiny_encoder())
    assert "id 0 is '[PAD]' to the preprocessor" in mismatch(
        early, encoder=with_reversed_vocabulary()
    )


def with_reversed_vocabulary() -> bertkit.BertEncoder:
    encoder = tiny_encoder(vocabulary=False)
    encoder.vocabulary = bertkit.Vocabulary(VOCABULARY[::-1])
    return encoder


def test_operations_that_are_missing_are_named(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = shutil.copytree(source, tmp_path / "newer")
    graph = (newer / "saved_model.pb").read_bytes()
    assert b"RoundRobinTrim" in graph
    (newer / "saved_model.pb").write_bytes(graph.replace(b"RoundRobinTrim", b"RoundRobinTrjm"))
    message = refused(newer)
    assert "needs the operation TFText>RoundRobinTrjm" in message
    assert f"tensorflow_text {tensorflow_text.__version__} has. Update both" in message
    monkeypatch.setitem(sys.modules, "tensorflow_text", None)  # as where it is not installed
    message = refused(source)
    assert "needs tensorflow_text, which cannot be imported" in message
    assert f"of the same version as TensorFlow ({tf.__version__})" in message


def test_a_damaged_folder_is_named(tmp_path: Path, source: Path) -> None:
    damaged = shutil.copytree(source, tmp_path / "damaged")
    (damaged / "assets" / "vocab.txt").unlink()
    assert "assets/vocab.txt is missing" in refused(damaged)
    with pytest.raises(EncoderError, match="There is no folder or archive"):
        made(tmp_path / "nowhere")


# --- saved models

LOADED = """
import json, sys
import keras
from bertkit import BertClassifier
import bertkit

texts = json.load(open("texts.json"))
for model in (keras.models.load_model("model.keras"), bertkit.load("artifact")):
    print(json.dumps([float(x).hex() for x in model.predict(texts, verbose=0).ravel()]))
"""


def test_a_saved_model_needs_no_source(tmp_path: Path, source: Path) -> None:
    own = shutil.copytree(source, tmp_path / "source")
    model = bertkit.BertClassifier(tiny_encoder(), "binary", made(own, 24, columns=2))
    model.fit(PAIRS, LABELS["binary"], verbose=0)
    model.save(tmp_path / "model.keras")
    artifact.save(model, tmp_path / "artifact")
    wanted = model.predict(PAIRS, verbose=0)
    shutil.rmtree(own)
    (tmp_path / "texts.json").write_text(json.dumps(PAIRS))
    (tmp_path / "load.py").write_text(LOADED)
    lines = run([sys.executable, "load.py"], tmp_path).splitlines()
    assert len(lines) == 2
    for line in lines:
        assert json.loads(line) == [float(x).hex() for x in wanted.ravel()]
    assert str(own) not in json.dumps(model.get_config())


def test_a_model_of_another_graph_is_saved_too(tmp_path: Path, characters: Path) -> None:
    encoder = tiny_encoder(vocabulary=False, vocabulary_size=CHARACTERS)
    model = bertkit.BertClassifier(encoder, "binary", made(characters))
    model.fit(TEXTS, LABELS["binary"], verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(model.predict(TEXTS, verbose=0), loaded.predict(TEXTS, verbose=0))
    assert loaded.preprocessor.padding_id == 3
    assert loaded.preprocessor.write_saved_model(str(tmp_path / "again"))
    wanted = {name: digest for name, digest in snapshot(characters).items() if name != "assets"}
    assert snapshot(tmp_path / "again") == wanted  # but for a folder with nothing in it


def test_the_saved_model_can_be_written_again(tmp_path: Path, source: Path) -> None:
    assert made(source).write_saved_model(str(tmp_path / "again"))
    assert snapshot(tmp_path / "again") == snapshot(source)


def test_another_model_gets_a_copy(source: Path) -> None:
    preprocessor = made(source)
    first = bertkit.BertClassifier(tiny_encoder(), "binary", preprocessor)
    second = bertkit.BertClassifier(tiny_encoder(), "binary", preprocessor)
    assert first.preprocessor is preprocessor
    assert second.preprocessor is not preprocessor
    texts = tf.constant(TEXTS)
    one, other = preprocessor(texts), second.preprocessor(texts)
    np.testing.assert_array_equal(one["token_ids"], other["token_ids"])
    with pytest.raises(InputError, match="does not fit the encoder"):
        bertkit.BertClassifier(with_reversed_vocabulary(), "binary", preprocessor)


def test_a_config_alone_says_what_is_missing(source: Path) -> None:
    preprocessor = TFHubPreprocessor(**made(source).get_config())
    with pytest.raises(InputError, match="made from a config alone, without its SavedModel"):
        preprocessor(tf.constant(["a"]))


# --- experiments


def test_the_command_line_trains_and_predicts(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_data(tmp_path)
    own = shutil.copytree(source, tmp_path / "source")
    section = {"plugin": "tfhub", "source": "source", "sequence_length": 24}
    write_yaml(tmp_path / "config.yaml", tiny_config(preprocessor=section))
    bertkit_ = CommandLine(monkeypatch, capfd)
    assert bertkit_("train", "config.yaml").code == 0
    stdin = "\n".join(TEXTS).encode()
    before = bertkit_("predict", "runs/binary", stdin=stdin)
    shutil.rmtree(own)
    after = bertkit_("predict", "runs/binary", stdin=stdin)
    assert after.code == 0, after.err
    assert len(after.predictions()) == len(TEXTS)
    assert after.out == before.out
    # A source that is gone, and one with another vocabulary, end in a line.
    missing = bertkit_("train", "config.yaml", "name=other")
    assert (missing.code, len(missing.err.strip().splitlines())) == (2, 1)
    assert "There is no folder or archive 'source'" in missing.err


@pytest.mark.parametrize(
    ("text", "columns", "words"),
    [
        (["a", "b"], None, "but tfhub wants 1, expected one column, or preprocessor."
                           "text_columns=2"),
        ("a", 2, "but tfhub wants 2, expected a list of 2 columns, or preprocessor.text_columns=1"),
        ("a", 3, "preprocessor.text_columns = 3: expected 1 or 2"),
        (["a", "b"], 2, None),
        ("a", 1, None),
    ],
)  # fmt: skip
def test_columns_of_a_config(text: Any, columns: int | None, words: str | None) -> None:
    section = {"plugin": "tfhub", "source": "somewhere"}
    config = tiny_config(
        data__text=text,
        preprocessor=section if columns is None else {**section, "text_columns": columns},
    )
    if words is None:
        assert config_from_mapping(config).preprocessor.arguments["text_columns"] == columns
        return
    with pytest.raises(ConfigError) as caught:
        config_from_mapping(config)
    assert words in str(caught.value)


def test_a_config_without_a_source_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"preprocessor\.source: missing, expected text"):
        config_from_mapping(tiny_config(preprocessor={"plugin": "tfhub"}))
