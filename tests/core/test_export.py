"""Out again: what is exported is read back, by bertkit and by the programs it is meant for."""

from __future__ import annotations

import json
import os
import shutil
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

import bertkit
from bertkit import cli, experiment
from bertkit.config import load_config
from bertkit.errors import ArtifactError, ExportError
from bertkit.exporting import FORMATS
from bertkit.weights import Weight, get_weights, set_weights, weight_shapes
from tests.command_line import CommandLine, snapshot, write_tiny_data
from tests.preprocessing_models import write_preprocessing_model
from tests.processes import run
from tests.reference_bert import random_batch, reference_bert
from tests.saved_models import write_encoder
from tests.tiny import VOCABULARY
from tests.tiny_models import LABELS, TEXTS, assert_same, tiny_encoder, tiny_model, weights_of

TFHUB = {"token_ids": "input_word_ids", "padding_mask": "input_mask",
         "segment_ids": "input_type_ids"}  # fmt: skip
BATCH = random_batch(len(VOCABULARY))
# What the tokenizer must get right wherever it goes.
STRANGE = ["Ein plöt, sehr Good!", "a\tb\u200bc", "中文film", "x" * 101, "ﬁne", "", "don't"]


def random_model(head: str = "multiclass", **sizes: Any) -> Any:
    """Return a model of random weights, all of which matter."""
    model = tiny_model(head, **sizes)
    generator = np.random.default_rng(0)
    for weight in [*model.encoder.weights, *model.head.weights]:
        weight.assign(weight + generator.normal(0, 0.2, weight.shape))
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    """A model that was fine-tuned for a step."""
    model = random_model(hidden_act="gelu_new", num_layers=2)
    model.compile(optimizer=keras.optimizers.Adam(1e-3), run_eagerly=True)
    model.fit(TEXTS, LABELS["multiclass"], batch_size=len(TEXTS), verbose=0)
    return model


@pytest.fixture(scope="module")
def exported(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model in each format; writing them leaves the model as it is."""
    folder = tmp_path_factory.mktemp("exported")
    before, paths = weights_of(model), [weight.path for weight in model.trainable_weights]
    for name in FORMATS:
        bertkit.export(model, folder / name, name)
    assert_same(weights_of(model), before)
    assert [weight.path for weight in model.trainable_weights] == paths
    return folder


def features(encoder: Any) -> dict[str, NDArray[np.float32]]:
    """Return pooled, and sequence where there are tokens, of BATCH."""
    found = encoder(BATCH, reads=("pooled", "sequence"))
    return {
        "pooled": np.asarray(found["pooled"]),
        "sequence": np.asarray(found["sequence"]) * BATCH["padding_mask"][:, :, None],
    }


def assert_close(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


# --- There and back ---


@pytest.mark.parametrize(
    ("format", "place"),
    [("huggingface", ""), ("kerashub", ""), ("tfhub", "encoder")],
)
def test_weights_survive_the_round_trip(
    model: Any, exported: Path, format: str, place: str
) -> None:
    encoder = bertkit.encoders.create(format, source=str(exported / format / place))
    ours, theirs = get_weights(model.encoder), get_weights(encoder)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    for name, array in features(model.encoder).items():
        assert_close(features(encoder)[name], array)
    assert encoder.vocabulary.tokens == VOCABULARY
    assert encoder.vocabulary.lowercase is True


def test_get_weights_gives_what_set_weights_takes() -> None:
    one, other = (tiny_encoder(num_layers=2, embedding_size=8) for _ in range(2))
    weights = get_weights(one)
    assert {name: array.shape for name, array in weights.items()} == weight_shapes(one)
    set_weights(other, {n: Weight(n, lambda a=a: a) for n, a in weights.items()}, "the other")
    for ours, theirs in zip(one.weights, other.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


# --- TF Hub ---

# Runs without bertkit: what it prints and saves is compared below.
_PROGRAM = """
import json
import sys
import numpy as np
import tensorflow as tf
import tensorflow_hub as hub
import tensorflow_text

batch = dict(np.load("batch.npz"))
encoder = hub.load("moved/encoder")
with tf.GradientTape() as tape:
    trained = encoder(batch, training=True)
    loss = tf.reduce_sum(trained["pooled_output"] ** 2) + tf.reduce_sum(trained["default"])
gradients = tape.gradient(loss, encoder.trainable_variables)
again = encoder(batch, training=True)["pooled_output"]
served = encoder.signatures["serving_default"](**{k: tf.constant(v) for k, v in batch.items()})
found = {**encoder(batch, training=False)}
layers = found.pop("encoder_outputs")
texts = tf.constant(open("texts.txt", encoding="utf-8").read().split("\\n"))
preprocess = tf.saved_model.load("moved/preprocess")
tokens = preprocess.tokenize(texts)
pairs = [preprocess.bert_pack_inputs([tokens, tokens[::-1]], seq_length=length)
         for length in (9, tf.constant(30))]
single = preprocess.bert_pack_inputs([tokens])
np.savez("found.npz", first=trained["pooled_output"], again=again, **found,
         **{f"layer_{i}": x for i, x in enumerate(layers)},
         **{f"served_{name}": x for name, x in served.items()},
         **{f"whole_{name}": x for name, x in preprocess(texts).items()},
         **{f"single_{name}": x for name, x in single.items()},
         **{f"pair_{i}_{name}": x for i, pair in enumerate(pairs) for name, x in pair.items()})
special = preprocess.tokenize.get_special_tokens_dict()
print(json.dumps({
    "special": {name: int(x) for name, x in special.items()},
    "variables": {v.name: list(v.shape) for v in encoder.trainable_variables},
    "all": len(encoder.variables),
    "unmoved": [v.name for v, g in zip(encoder.trainable_variables, gradients)
                if g is None or not tf.reduce_any(tf.convert_to_tensor(g) != 0)],
    "lowercase": bool(encoder.do_lower_case),
    "losses": list(encoder.regularization_losses),
    "assets": [x.asset_path.numpy().decode().split("moved/")[1]
               for x in (encoder.vocab_file, preprocess.tokenize.vocab_file)],
    "bertkit": [name for name in sys.modules if name.startswith("bertkit")],
}))
"""


@pytest.fixture(scope="module")
def found(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a program without bertkit makes of the SavedModels, which were moved meanwhile."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(exported / "tfhub", folder / "moved")
    (folder / "texts.txt").write_text("\n".join([*TEXTS, *STRANGE]), encoding="utf-8", newline="")
    np.savez(folder / "batch.npz", **{TFHUB[name]: array for name, array in BATCH.items()})
    printed = json.loads(run([sys.executable, "-c", _PROGRAM], folder))
    return {**np.load(folder / "found.npz"), **printed}


def test_the_graph_computes_what_the_encoder_does(model: Any, found: dict[str, Any]) -> None:
    expected = features(model.encoder)
    for name in ("pooled_output", "default", "served_pooled_output", "served_default"):
        assert_close(found[name], expected["pooled"])
    mask = BATCH["padding_mask"][:, :, None]
    for name in ("sequence_output", "layer_1", "served_sequence_output"):
        assert_close(found[name] * mask, expected["sequence"])
    assert "layer_2" not in found
    shallow = tiny_encoder(num_layers=1, hidden_act="gelu_new")
    known = get_weights(model.encoder)
    set_weights(shallow, {n: Weight(n, lambda n=n: known[n]) for n in weight_shapes(shallow)}, "it")
    assert_close(found["layer_0"] * mask, features(shallow)["sequence"])


def test_the_graph_can_be_fine_tuned(model: Any, found: dict[str, Any]) -> None:
    assert np.abs(found["first"] - found["again"]).max() > 1e-3, "dropout draws anew"
    assert found["unmoved"] == found["losses"] == []
    assert found["all"] == len(found["variables"]) == len(get_weights(model.encoder))


def test_what_tf_hub_names_is_there(found: dict[str, Any]) -> None:
    shapes = {name.removesuffix(":0"): shape for name, shape in found["variables"].items()}
    assert set(shapes) == set(model_garden_names(layers=2))
    layer = "transformer/layer_1/self_attention"
    assert shapes[f"{layer}/query/kernel"] == shapes[f"{layer}/value/kernel"] == [16, 2, 8]
    assert shapes[f"{layer}/key/bias"] == [2, 8]
    assert shapes[f"{layer}/attention_output/kernel"] == [2, 8, 16]
    assert found["special"] == {"vocab_size": len(VOCABULARY), "padding_id": 0, "mask_id": 4,
                                "start_of_sequence_id": 2, "end_of_segment_id": 3}  # fmt: skip
    assert found["assets"] == ["encoder/assets/vocab.txt", "preprocess/assets/vocab.txt"]
    assert found["lowercase"] is True
    assert found["bertkit"] == [], "it needs no bertkit"


def model_garden_names(layers: int) -> list[str]:
    """The variables of Model Garden's BertEncoder, as its exporter for TF Hub writes them."""
    names = ["word_embeddings/embeddings", "position_embedding/embeddings",
             "type_embeddings/embeddings", "embeddings/layer_norm/gamma",
             "embeddings/layer_norm/beta", "pooler_transform/kernel",
             "pooler_transform/bias"]  # fmt: skip
    for layer in range(layers):
        for part in ("self_attention/query", "self_attention/key", "self_attention/value",
                     "self_attention/attention_output", "intermediate", "output"):  # fmt: skip
            names += [f"transformer/layer_{layer}/{part}/{kind}" for kind in ("kernel", "bias")]
        for part in ("self_attention_layer_norm", "output_layer_norm"):
            names += [f"transformer/layer_{layer}/{part}/{kind}" for kind in ("gamma", "beta")]
    return names


def test_the_preprocessor_gives_the_ids_of_the_model(model: Any, found: dict[str, Any]) -> None:
    texts = [*TEXTS, *STRANGE]
    single = padded(model.preprocessor(tf.constant(texts)), model.preprocessor.sequence_length)
    for name, array in single.items():
        np.testing.assert_array_equal(found[f"whole_{name}"], array)
        np.testing.assert_array_equal(found[f"single_{name}"], array)
    pairs = tf.constant(list(zip(texts, texts[::-1], strict=True)))
    for place, length in enumerate((9, 30)):
        pair = bertkit.preprocessors.create("sentence_pair", sequence_length=length)
        pair.bind(model.encoder)
        for name, array in padded(pair(pairs), length).items():
            np.testing.assert_array_equal(found[f"pair_{place}_{name}"], array)


def padded(inputs: dict[str, Any], length: int) -> dict[str, NDArray[np.int32]]:
    """Return inputs by TF Hub's names, padded to a length; the padding id is 0."""
    return {TFHUB[name]: np.pad(x, ((0, 0), (0, length - x.shape[1])))
            for name, x in inputs.items()}  # fmt: skip


def test_pooled_output_is_what_the_encoder_pools_in_float32(tmp_path: Path) -> None:
    model = random_model(pooling="layers", dtype="mixed_bfloat16", vocabulary=False)
    exact = tiny_encoder(pooling="layers", dtype="float32")
    exact.set_weights(model.encoder.get_weights())
    notes = bertkit.export(model, tmp_path / "out", "tfhub")
    assert "pooling 'layers'" in " ".join(notes)
    loaded = tf.saved_model.load(str(tmp_path / "out" / "encoder"))
    found = loaded({TFHUB[name]: array for name, array in BATCH.items()})
    assert_close(found["pooled_output"], features(exact)["pooled"])
    assert not any("pooler" in variable.name for variable in loaded.variables)
    assert len(loaded.trainable_variables) == len(exact.trainable_weights) + 4  # qkv are three


def test_without_a_vocabulary_there_is_no_preprocessor(tmp_path: Path) -> None:
    model = tiny_model("multiclass", None, vocabulary=False)
    model.build()
    for format in FORMATS:
        notes = bertkit.export(model, tmp_path / format, format, allow_approximation=True)
        assert "no vocabulary" in " ".join(notes)
        assert not list((tmp_path / format).rglob("*vocab*"))
    assert not (tmp_path / "tfhub" / "preprocess").exists()


def test_a_graph_goes_out_with_the_values_of_now(tmp_path: Path) -> None:
    source = str(write_encoder(tmp_path / "source", gate=True, layers=1))
    encoder = bertkit.encoders.create("tfhub", source=source, form="graph")
    text = write_preprocessing_model(tmp_path / "text")
    preprocessor = bertkit.preprocessors.create("tfhub", source=str(text), sequence_length=16)
    shutil.rmtree(source)
    for weight in encoder.trainable_weights:
        weight.assign(weight + 0.01)
    head = bertkit.heads.create("binary", labels=[0, 1])
    model = bertkit.BertClassifier(encoder, head, preprocessor)
    bertkit.export(model, tmp_path / "out", "tfhub")
    own = tmp_path / "out" / "preprocess" / "saved_model.pb"
    assert own.read_bytes() == (text / "saved_model.pb").read_bytes()
    loaded = tf.saved_model.load(str(tmp_path / "out" / "encoder"))
    values = {variable.name: variable.numpy() for variable in loaded.trainable_variables}
    for weight in encoder.graph.loaded.trainable_variables:
        np.testing.assert_array_equal(values.pop(weight.name), weight.numpy())
    assert not values
    found = loaded({TFHUB[name]: array for name, array in BATCH.items()}, training=False)
    np.testing.assert_array_equal(found["pooled_output"], features(encoder)["pooled"])
    assert Path(loaded.vocab_file.asset_path.numpy().decode()).is_file()
    assert bool(loaded.do_lower_case)
    for format in ("kerashub", "huggingface"):
        with pytest.raises(ExportError, match=r"SavedModelEncoder.*Choose the format tfhub"):
            bertkit.export(model, tmp_path / format, format)


# --- KerasHub ---


def test_keras_hub_loads_the_preset(model: Any, exported: Path) -> None:
    import keras_hub

    backbone = keras_hub.models.BertBackbone.from_preset(str(exported / "kerashub"))
    theirs, ours = backbone(BATCH), features(model.encoder)
    assert_close(theirs["pooled_output"], ours["pooled"])
    mask = BATCH["padding_mask"][:, :, None]
    assert_close(theirs["sequence_output"] * mask, ours["sequence"])
    tokenizer = keras_hub.models.BertTokenizer.from_preset(str(exported / "kerashub"))
    texts = [*TEXTS, "Ein plöt"]
    ids = model.preprocessor.tokenizer(tf.constant(texts)).to_list()
    assert [list(map(int, row)) for row in tokenizer(texts)] == ids


def test_another_gelu_must_be_allowed(tmp_path: Path) -> None:
    model = random_model(hidden_act="gelu")
    with pytest.raises(ExportError, match="--allow-approximation") as caught:
        bertkit.export(model, tmp_path / "out", "kerashub")
    assert not (tmp_path / "out").exists()
    notes = bertkit.export(model, tmp_path / "out", "kerashub", allow_approximation=True)
    (note,) = [note for note in notes if "GELU" in note]
    stated = float(note.rstrip(".").split()[-1])
    assert note.rstrip(".") in str(caught.value)
    encoder = bertkit.encoders.create("kerashub", source=str(tmp_path / "out"))
    measured = np.abs(features(encoder)["sequence"] - features(model.encoder)["sequence"]).max()
    assert 1e-5 < measured < 10 * stated and stated < 1e-2
    for name, array in get_weights(model.encoder).items():
        np.testing.assert_array_equal(array, get_weights(encoder)[name])


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ({"hidden_act": "relu"}, "'relu', and KerasHub's BERT computes GELU only"),
        ({"num_segments": 0}, "has no segments"),
        ({"embedding_size": 8}, "another width"),
    ],
)
def test_keras_hub_cannot_have_every_bert(
    sizes: dict[str, Any], match: str, tmp_path: Path
) -> None:
    model = tiny_model("multiclass", **sizes)
    with pytest.raises(ExportError, match=match):
        bertkit.export(model, tmp_path / "out", "kerashub", allow_approximation=True)
    assert os.listdir(tmp_path) == []


def test_keras_hub_knows_only_its_own_special_tokens(tmp_path: Path) -> None:
    model = tiny_model("multiclass", None, vocabulary=False, hidden_act="gelu_new")
    swapped = ["<s>" if token == "[CLS]" else token for token in VOCABULARY]
    model.encoder.vocabulary = bertkit.Vocabulary(tuple(swapped), start_token="<s>")
    with pytest.raises(ExportError, match=r"\[CLS\].* and this vocabulary has \[UNK\], <s>"):
        bertkit.export(model, tmp_path / "out", "kerashub")


def test_keras_hub_has_no_pooling_but_the_pooler(tmp_path: Path) -> None:
    model = random_model(hidden_act="gelu_new", pooling="mean")
    notes = bertkit.export(model, tmp_path / "out", "kerashub")
    assert "pooling 'mean'" in notes[-1]
    encoder = bertkit.encoders.create("kerashub", source=str(tmp_path / "out"), pooling="mean")
    assert_close(features(encoder)["pooled"], features(model.encoder)["pooled"])


# --- Hugging Face ---


def test_the_reference_computes_the_same_from_the_folder(tmp_path: Path) -> None:
    model = random_model(hidden_act="gelu", layer_norm_epsilon=1e-5)
    bertkit.export(model, tmp_path / "out", "huggingface")
    path = tmp_path / "out" / "model.safetensors"
    bare = {name.removeprefix("bert."): array for name, array in load_file(path).items()}
    from safetensors.numpy import save_file

    save_file(bare, path)  # the reference knows no prefix
    sequence, pooled = reference_bert(tmp_path / "out", **BATCH)
    assert_close(pooled, features(model.encoder)["pooled"])
    mask = BATCH["padding_mask"][:, :, None]
    assert_close(sequence * mask, features(model.encoder)["sequence"])


@pytest.mark.parametrize("head", LABELS)
def test_the_head_goes_out_as_a_classifier(head: str, tmp_path: Path) -> None:
    model = random_model(head)
    (note, *_) = bertkit.export(model, tmp_path / "out", "huggingface")
    assert note == "Wrote a BertForSequenceClassification for transformers."
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    weights = load_file(tmp_path / "out" / "model.safetensors")
    names = {name.partition(".")[0] for name in weights}
    assert names == {"bert", "classifier"}
    pooled = features(model.encoder)["pooled"]
    logits = pooled @ weights["classifier.weight"].T + weights["classifier.bias"]
    outputs = np.asarray(model(BATCH))
    if head == "regression":
        assert_close(logits, outputs)
    elif head == "multi_label":
        assert_close(1 / (1 + np.exp(-logits)), model.head.probabilities(outputs))
    else:
        powers = np.exp(logits)
        assert_close(powers / powers.sum(axis=1, keepdims=True), model.head.probabilities(outputs))
    labels = ["value"] if head == "regression" else [str(label) for label in model.head.labels]
    assert config["id2label"] == {str(index): label for index, label in enumerate(labels)}
    assert config["label2id"] == {label: index for index, label in enumerate(labels)}
    problem = "single_label" if head in ("binary", "multiclass") else head
    assert config["problem_type"].startswith(problem)
    assert config["classifier_dropout"] == model.head.dropout


def test_a_range_is_no_part_of_a_classifier(tmp_path: Path) -> None:
    head = bertkit.heads.create("regression", range=[-4, 4], center=0.0, scale=2.0)
    notes = bertkit.export(
        bertkit.BertClassifier(tiny_encoder(), head), tmp_path / "out", "huggingface"
    )
    assert "not clipped to the range [-4, 4]." in notes[1]


def test_what_is_no_dense_layer_is_left_out(tmp_path: Path) -> None:
    multiclass: Any = bertkit.heads.get("multiclass")

    class Sharpened(multiclass):  # type: ignore[misc]
        """Inherits `as_dense`, and computes something else."""

        def call(self, features: Any, training: bool = False) -> Any:
            return super().call({"pooled": tf.sign(features["pooled"])}, training)

    class Tokens(multiclass):  # type: ignore[misc]
        reads = ("sequence",)

    for place, (cls, pooling) in enumerate(
        [(Sharpened, "pooler"), (Tokens, "pooler"), (bertkit.Head, "pooler"), (multiclass, "cls")]
    ):
        head = cls(labels=[0, 1])
        model = bertkit.BertClassifier(tiny_encoder(pooling=pooling), head)
        folder = tmp_path / str(place)
        notes = bertkit.export(model, folder, "huggingface")
        assert notes[0] == "Wrote a BertModel for transformers."
        assert "is left out" in notes[1]
        weights = load_file(folder / "model.safetensors")
        assert not any(name.startswith(("bert.", "classifier.")) for name in weights)
        assert ("pooler.dense.weight" in weights) == (pooling == "pooler")
        encoder = bertkit.encoders.create("huggingface", source=str(folder), pooling=pooling)
        assert_close(features(encoder)["pooled"], features(model.encoder)["pooled"])


@pytest.mark.filterwarnings("ignore:.*none of the 188 pieces holds a capital")
@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("strip_accents", [None, True, False])
def test_the_tokenizer_files_say_what_the_vocabulary_does(
    lowercase: bool, strip_accents: bool | None, tmp_path: Path
) -> None:
    model = tiny_model("multiclass", vocabulary=False)
    vocabulary = bertkit.Vocabulary(VOCABULARY, lowercase=lowercase, strip_accents=strip_accents)
    model.encoder.vocabulary = vocabulary
    bertkit.export(model, tmp_path / "out", "huggingface")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    texts = [*TEXTS, *STRANGE]
    ours = model.preprocessor(tf.constant(texts))["token_ids"].numpy()
    for text, row in zip(texts, ours, strict=True):
        ids = tokenizer.encode(text).ids
        assert [*ids, *[0] * (len(row) - len(ids))] == row.tolist(), text
    pair = tokenizer.encode("a good film", "no")
    assert pair.type_ids == [0] * 5 + [1] * 2
    assert tokenizer.encode("[SEP]").ids == [2, 3, 3]
    read = bertkit.encoders.create("huggingface", source=str(tmp_path / "out")).vocabulary
    assert read == vocabulary


# --- What is refused ---


def test_an_unknown_format_names_those_there_are(model: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        bertkit.export(model, tmp_path / "out", "onnx")
    assert str(caught.value) == (
        "There is no format 'onnx'. Choose one of tfhub, kerashub, huggingface."
    )


@pytest.mark.parametrize("format", FORMATS)
def test_what_exists_is_never_touched(model: Any, format: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(ArtifactError, match="exists already"):
        bertkit.export(model, tmp_path / "out", format)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("format", FORMATS)
def test_another_encoder_is_refused(format: str, tmp_path: Path) -> None:
    class Constant(bertkit.Encoder):
        hidden_size, max_sequence_length, num_segments, vocabulary_size = 4, 8, 2, 10

        def call(self, inputs: Any, reads: Sequence[str] = (), training: bool = False) -> Any:
            shape = (tf.shape(inputs["token_ids"])[0], 4)
            return {"pooled": tf.ones(shape), "mask": inputs["padding_mask"]}

    model = bertkit.BertClassifier(Constant(), bertkit.heads.create("binary", labels=[0, 1]))
    with pytest.raises(ExportError, match=r"Constant.*BertEncoder.*\. \w+ .*\.$"):
        bertkit.export(model, tmp_path / "out", format)
    assert os.listdir(tmp_path) == []


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"A str cannot be exported.*bertkit\.load\(folder\)"):
        bertkit.export("runs/film", tmp_path / "out", "tfhub")


# --- The command line ---


def test_the_command_writes_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(write_tiny_data(tmp_path))
    experiment.run(load_config(["binary.yaml"], ["name=film"]), verbose=0)
    command = CommandLine(monkeypatch, capfd)
    done = command("export", "runs/film", "--format", "huggingface", "out")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "Wrote a BertForSequenceClassification for transformers.", "It is in out."
    ]  # fmt: skip
    model = bertkit.load("runs/film")
    encoder = bertkit.encoders.create("huggingface", source="out")
    for name, array in get_weights(model.encoder).items():
        np.testing.assert_array_equal(array, get_weights(encoder)[name])
    for words, message in (
        (["runs/film", "--format", "huggingface", "out"], "exists already"),
        (["runs/none", "--format", "tfhub", "new"], "runs/none is no run folder"),
        (["runs/film", "--format", "kerashub", "new"], "--allow-approximation"),
        (["runs/film", "--format", "onnx", "new"], "'tfhub', 'kerashub', 'huggingface'"),
    ):
        done = command("export", *words)
        assert done.code == 2 and message in " ".join(done.err.split()), done.err
        assert not Path("new").exists()


def test_the_command_knows_every_format() -> None:
    hints = typing.get_type_hints(cli.export)
    assert typing.get_args(hints["format"]) == tuple(FORMATS)
