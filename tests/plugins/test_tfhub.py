"""The encoder "tfhub": equal to the SavedModel itself in both forms, and clear about the rest."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from bertkit.bert import BertEncoder
from bertkit.encoder import Encoder
from bertkit.errors import EncoderError
from bertkit.registry import encoders
from bertkit.testing import check_encoder
from bertkit.weights import set_weights
from bertkit_plugins.encoders.saved_model import SavedModelEncoder
from bertkit_plugins.encoders.saved_model_files import packed
from bertkit_plugins.encoders.saved_model_graph import Graph
from bertkit_plugins.encoders.tfhub import tfhub
from bertkit_plugins.encoders.tfhub_bert import _name, _weights, read_bert
from bertkit_plugins.encoders.tfhub_resolve import load, resolve
from tests.processes import ROOT
from tests.reference_bert import random_batch
from tests.saved_models import write_encoder
from tests.tiny import VOCABULARY

SHARED = ROOT.parent / "shared" / "tfhub_tiny"
ADDRESS = "https://tfhub.dev/nobody/bert_en_tiny/3"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared model is not here")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT as it is exported today."""
    return write_encoder(tmp_path_factory.mktemp("plain") / "encoder", dropout=0.0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def theirs(loaded: Any, batch: dict[str, Any], training: bool = False) -> tuple[Any, Any]:
    """Return (pooled, sequence) as the SavedModel itself computes them."""
    ids, mask, types = (batch[n] for n in ("token_ids", "padding_mask", "segment_ids"))
    if loaded.__call__.concrete_functions[0].structured_outputs.__class__ is dict:
        named = {"input_word_ids": ids, "input_mask": mask, "input_type_ids": types}
        out = loaded(named, training=training)
        return out["pooled_output"], out["sequence_output"]
    return loaded([ids, mask, types], training=training)


def batch_for(size: int) -> dict[str, tf.Tensor]:
    return {name: tf.constant(x, tf.int32) for name, x in random_batch(size).items()}


def assert_same_outputs(encoder: Encoder, folder: Path) -> None:
    batch = batch_for(encoder.vocabulary_size)
    pooled, sequence = theirs(tf.saved_model.load(str(folder)), batch)
    ours = encoder(batch, reads=("pooled", "sequence"))
    tokens = batch["padding_mask"].numpy()[:, :, None]
    assert np.abs(ours["pooled"] - pooled).max() < 1e-5
    assert np.abs((ours["sequence"] - sequence) * tokens).max() < 1e-5


# --- Equal to the SavedModel itself


@pytest.mark.parametrize(
    ("options", "activation"),
    [
        ({"activation": "gelu_new"}, "gelu_new"),
        ({"activation": "gelu", "interface": "list", "older_names": True, "layers": 1}, "gelu"),
        ({"activation": "relu", "layers": 1}, "relu"),
    ],
)
def test_a_plain_bert_becomes_a_bert_encoder(
    tmp_path: Path, options: dict[str, Any], activation: str
) -> None:
    folder = write_encoder(tmp_path / "encoder", **options)
    encoder = encoders.create("tfhub", source=str(folder))
    assert isinstance(encoder, BertEncoder)
    assert encoder.hidden_act == activation
    assert (encoder.num_layers, encoder.num_heads, encoder.max_sequence_length) == (
        options.get("layers", 2), 2, 32
    )  # fmt: skip
    assert (encoder.dropout, encoder.attention_dropout) == (0.1, 0.1)
    assert encoder.vocabulary is not None and encoder.vocabulary.tokens == VOCABULARY
    assert_same_outputs(encoder, folder)


def gradients_of_source(
    folder: Path, batch: dict[str, tf.Tensor], training: bool
) -> dict[str, np.ndarray]:
    """Return the gradient for each variable, by the graph's names."""
    loaded = tf.saved_model.load(str(folder))
    with tf.GradientTape() as tape:
        total = weighed(*theirs(loaded, batch, training), batch)
    gradients = tape.gradient(total, loaded.trainable_variables)
    return {
        variable.name.partition(":")[0]: tf.convert_to_tensor(gradient).numpy()
        for variable, gradient in zip(loaded.trainable_variables, gradients, strict=True)
        if gradient is not None
    }


def weighed(pooled: Any, sequence: Any, batch: dict[str, tf.Tensor]) -> tf.Tensor:
    generator, tokens = np.random.default_rng(1), batch["padding_mask"].numpy()[:, :, None]
    noise = [generator.normal(size=x.shape) for x in (pooled, sequence)]
    return tf.reduce_sum(pooled * noise[0]) + tf.reduce_sum(sequence * noise[1] * tokens)


def gradients_of(encoder: Encoder, batch: dict[str, tf.Tensor], training: bool) -> list[np.ndarray]:
    with tf.GradientTape() as tape:
        read = encoder(batch, reads=("pooled", "sequence"), training=training)
        total = weighed(read["pooled"], read["sequence"], batch)
    found = tape.gradient(total, encoder.trainable_weights)
    return [tf.convert_to_tensor(gradient).numpy() for gradient in found]


def assert_close(ours: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    assert len(ours) == len(wanted)
    # The bias of the keys has no influence: its gradient is rounding, and is compared absolutely.
    noise = 1e-6 * max(np.abs(gradient).max() for gradient in wanted)
    for one, other in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=max(1e-4 * np.abs(other).max(), noise), rtol=0)


def assert_same_gradients(folder: Path, training: bool) -> None:
    """Of both forms against the SavedModel's own; with `training` it must have no dropout."""
    graph = tfhub(str(folder), form="graph")
    assert isinstance(graph, SavedModelEncoder)
    batch = batch_for(graph.vocabulary_size)
    source = gradients_of_source(folder, batch, training)
    names = [v.name.partition(":")[0] for group in graph.groups for _, v, t in group.adopted if t]
    wanted = [source.pop(name) for name in names]
    assert not any(np.any(gradient) for gradient in source.values())
    assert_close(gradients_of(graph, batch, training), wanted)

    bert = tfhub(str(folder), form="bert", dropout=0.0, attention_dropout=0.0)
    assert isinstance(bert, BertEncoder)
    # The gradients take the way of the weights into the encoder's own layout.
    ours = gradients_of(bert, batch, training)
    named = {_name(name): gradient for name, gradient in zip(names, wanted, strict=True)}
    layout = BertEncoder.from_config(bert.get_config())
    variables = {str(name): tf.Variable(gradient, name=name) for name, gradient in named.items()}
    set_weights(layout, _weights(layout, variables), "the gradients")
    assert_close(ours, [w.numpy() for w in layout.trainable_weights])


def test_gradients_equal_those_of_the_source(plain: Path) -> None:
    assert_same_gradients(plain, training=True)


@shared
def test_an_export_of_model_garden() -> None:
    known = np.load(SHARED / "expected.npz")
    batch = {ours: tf.constant(known[name]) for ours, name in (
        ("token_ids", "input_word_ids"), ("padding_mask", "input_mask"),
        ("segment_ids", "input_type_ids"))}  # fmt: skip
    for form in ("bert", "graph"):
        encoder = tfhub(str(SHARED / "encoder"), form=form)  # type: ignore[arg-type]
        read = encoder(batch, reads=("pooled", "sequence"))
        assert np.abs(read["pooled"] - known["pooled_output"]).max() < 1e-5
        assert np.abs(read["sequence"] - known["sequence_output"]).max() < 1e-5
        assert encoder.vocabulary is not None and len(encoder.vocabulary) == 30522
        check_encoder(encoder)
    assert_same_gradients(SHARED / "encoder", training=False)  # its dropout cannot be turned off


# --- Forms and arguments


def test_what_is_no_plain_bert_stays_a_graph(tmp_path: Path) -> None:
    gated = write_encoder(tmp_path / "gated", gate=True, layers=1)
    scaled = write_encoder(tmp_path / "scaled", scale=1.1, layers=1)
    silu = write_encoder(tmp_path / "silu", activation="silu", layers=1)
    for folder, reason in (
        (gated, "it holds 'gate/scale', which no plain BERT has"),
        (scaled, r"differs from the graph's own outputs by 0\.\d+ with gelu_new"),
        (silu, r"differs from the graph's own outputs by .* with gelu_new, .* with gelu"),
    ):
        with pytest.raises(EncoderError, match=f"is no plain BERT: .*{reason}.* Leave form out"):
            tfhub(str(folder), form="bert")
    encoder = tfhub(str(gated))
    assert isinstance(encoder, SavedModelEncoder)
    assert_same_outputs(encoder, gated)


def test_missing_and_double_variables(plain: Path) -> None:
    graph = Graph.from_folder(plain)
    whole = graph.captured()
    for variables, reason in (
        (whole[1:], "it lacks token_embedding"),
        (whole[:-1], "lacks pooler"),
        ([*whole, whole[0]], "which are one of BERT's"),
    ):
        graph.captured = lambda found=variables: found  # type: ignore[method-assign,misc]
        found = read_bert(graph, "pooler", 0.1, 0.1)
        assert isinstance(found, str)
        assert re.search(reason, found), found


def test_arguments(plain: Path) -> None:
    encoder = tfhub(str(plain), pooling="mean", dropout=0.0, attention_dropout=0.2)
    assert isinstance(encoder, BertEncoder)
    assert (encoder.pooling, encoder.dropout, encoder.attention_dropout) == ("mean", 0.0, 0.2)
    assert not tfhub(str(plain), trainable=False).trainable_weights
    for arguments, message in (
        ({"form": "keras"}, "form is 'keras'. Known: auto, bert, graph."),
        ({"form": "graph", "dropout": 0.2}, "whose dropout is fixed"),
        ({"form": "graph", "pooling": "middle"}, "pooling is 'middle'. Known: pooler"),
    ):
        with pytest.raises(EncoderError, match=message):
            tfhub(str(plain), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"trainable": False}, "it has no trainable variables"),
        ({"training": False}, "its call has no argument `training`"),
        ({"interface": "signature"}, "it can be called by a signature only"),
    ],
)
def test_what_cannot_be_fine_tuned(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    folder = write_encoder(tmp_path / "encoder", **options)
    with pytest.raises(EncoderError, match=f"cannot be fine-tuned: {reason}. Give trainable=False"):
        tfhub(str(folder), form="graph")
    frozen = tfhub(str(folder), form="graph", trainable=False)
    assert not frozen.trainable_weights and frozen.weights
    # The values of a plain BERT train whatever the graph around them is.
    bert = tfhub(str(folder))
    assert isinstance(bert, BertEncoder) and bert.trainable_weights
    batch = batch_for(frozen.vocabulary_size)
    np.testing.assert_allclose(frozen(batch)["pooled"], bert(batch)["pooled"], atol=1e-5)


def test_what_is_no_text_encoder(tmp_path: Path) -> None:
    root = tf.Module()
    root.__call__ = tf.function(  # type: ignore[operator]
        lambda image: image, input_signature=[tf.TensorSpec((None, 8, 8, 3))]
    )
    tf.saved_model.save(root, str(tmp_path / "image"))
    with pytest.raises(EncoderError, match=r"has no text-encoder interface.*a call of .*8, 8, 3"):
        tfhub(str(tmp_path / "image"))


def test_the_vocabulary_is_read_with_its_casing(tmp_path: Path) -> None:
    cased = tfhub(str(write_encoder(tmp_path / "cased", lowercase=False)))
    assert cased.vocabulary is not None and not cased.vocabulary.lowercase
    assert tfhub(str(write_encoder(tmp_path / "bare", vocabulary=None))).vocabulary is None
    larger = write_encoder(tmp_path / "larger", vocabulary=[*VOCABULARY, "one_more"])
    with pytest.raises(EncoderError, match=r"vocabulary has \d+ pieces, but .* has embeddings for"):
        tfhub(str(larger))


# --- Where it comes from


def archived(folder: Path, path: Path, top: str = ".") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, arcname=top)
    return path


@pytest.mark.parametrize("top", [".", "bert_en_tiny_3"])
def test_an_archive_is_unpacked_once(plain: Path, tmp_path: Path, cache: Path, top: str) -> None:
    path = archived(plain, tmp_path / "bert.tar.gz", top)
    folder = resolve(str(path))
    assert cache in folder.parents and (folder / "saved_model.pb").is_file()
    stamp = (folder / "saved_model.pb").stat().st_mtime_ns
    assert resolve(str(path)) == folder
    assert (folder / "saved_model.pb").stat().st_mtime_ns == stamp
    assert [child.name for child in cache.iterdir()] == [folder.relative_to(cache).parts[0]]


@pytest.mark.parametrize("name", ["../outside", "/outside_of_bertkit", "inside"])
def test_an_archive_that_leads_out_is_refused(tmp_path: Path, cache: Path, name: str) -> None:
    path = tmp_path / "bad.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(name)
        if name == "inside":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(member, io.BytesIO(b""))
    with pytest.raises(EncoderError, match="no plain file or folder inside of it"):
        resolve(str(path))
    assert not (tmp_path / "outside").exists() and not list(cache.iterdir())


def test_damaged_archives(plain: Path, tmp_path: Path) -> None:
    whole = archived(plain, tmp_path / "whole.tar.gz").read_bytes()
    (tmp_path / "half.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EncoderError, match=r"cannot be unpacked .* damaged, or only a part"):
        resolve(str(tmp_path / "half.tar.gz"))
    (tmp_path / "model.zip").write_bytes(b"PK")
    with pytest.raises(EncoderError, match="no archive that is read"):
        resolve(str(tmp_path / "model.zip"))


def test_a_cached_address_needs_no_network(
    plain: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow_hub

    held = cache / hashlib.sha1(ADDRESS.encode()).hexdigest()
    shutil.copytree(plain, held)
    assert Path(tensorflow_hub.resolve(ADDRESS)) == held  # the cache's layout is theirs
    monkeypatch.setitem(sys.modules, "tensorflow_hub", None)
    assert resolve(ADDRESS) == held


def test_what_is_no_source(tmp_path: Path, cache: Path) -> None:
    for source, message in (
        ("https://tfhub.dev/nobody/bert", "does not say which version.*bert/3, for instance"),
        (str(tmp_path / "nothing"), "There is no folder or archive .*Give one, or an address"),
        (str(tmp_path), r"saved_model.pb is missing from it \(it holds nothing\)"),
    ):
        with pytest.raises(EncoderError, match=message):
            resolve(source)


def test_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = "http://127.0.0.1:9/bert/3"  # nothing listens on the discard port
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(EncoderError) as caught:
        resolve(address)
    for part in (address, str(cache), "TFHUB_CACHE_DIR", "?tf-hub-format=compressed"):
        assert part in str(caught.value)


def test_tensorflow_hub_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_hub", None)
    with pytest.raises(EncoderError, match=r"cannot be imported .*setuptools<82.* local folder"):
        resolve(ADDRESS)


def test_the_lock_of_a_killed_download(cache: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    cache.mkdir()
    lock = cache / f"{hashlib.sha1(ADDRESS.encode()).hexdigest()}.lock"
    lock.write_text(f"{socket.gethostname()}.{ended.pid}.abc")
    with pytest.raises(EncoderError, match=r"was interrupted .*Delete .*\.lock and .*\.abc\.tmp"):
        resolve(ADDRESS)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("saved_model.pb", os.remove, "saved_model.pb is missing"),
        ("saved_model.pb", cut_short, "saved_model.pb is cut short"),
        ("variables/variables.index", os.remove, "variables.index is missing"),
        ("variables/variables.data-00000-of-00001", os.remove, "0 files variables/variables.data"),
        ("variables/variables.data-00000-of-00001", cut_short, "(not whole|cannot be loaded)"),
        ("variables/variables.index", cut_short, "(not whole|cannot be loaded)"),
        ("assets/vocab.txt", os.remove, "assets/vocab.txt is missing"),
    ],
)
def test_a_damaged_cache_is_named_with_its_fix(
    plain: Path, cache: Path, name: str, damage: Callable[[Path], None], message: str
) -> None:
    held = cache / hashlib.sha1(ADDRESS.encode()).hexdigest()
    shutil.copytree(plain, held)
    damage(held / name)
    with pytest.raises(EncoderError, match=message) as caught:
        tfhub(ADDRESS)
    assert f"delete {held}, so that it is fetched again" in str(caught.value)
    assert "\n" not in str(caught.value)


def with_asset(folder: Path, name: str) -> Path:
    """Let the graph call a file an asset."""
    model = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    model.meta_graphs[0].asset_file_def[0].filename = name
    (folder / "saved_model.pb").write_bytes(model.SerializeToString())
    return folder


@pytest.mark.parametrize("name", ["../../private.txt", "sub/../../../private.txt", "absolute"])
def test_an_asset_outside_of_the_model_is_refused(plain: Path, tmp_path: Path, name: str) -> None:
    private = tmp_path / "private.txt"
    private.write_text("\n".join(VOCABULARY))
    folder = shutil.copytree(plain, tmp_path / "model")
    (folder / "assets" / "sub").mkdir()
    with_asset(folder, str(private) if name == "absolute" else name)
    for read in (lambda: resolve(str(folder)), lambda: packed(folder)):
        with pytest.raises(EncoderError, match="outside of its folder assets"):
            read()


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def without_its_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize("damage", [emptied, cut_short, without_its_end])
@pytest.mark.parametrize("name", ["variables.index", "variables.data-00000-of-00001"])
def test_values_that_are_cut_short_are_damage(
    plain: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    folder = shutil.copytree(plain, tmp_path / "model")
    damage(folder / "variables" / name)
    with pytest.raises(EncoderError, match="not whole: its files are cut short") as caught:
        load(folder)
    assert str(folder) in str(caught.value) and "download the folder again" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["saved_model.pb", "assets/vocab.txt", "everything"])
def test_an_archive_that_is_not_whole_leaves_nothing(
    plain: Path, tmp_path: Path, cache: Path, missing: str
) -> None:
    folder = shutil.copytree(plain, tmp_path / "model")
    if missing == "everything":
        shutil.rmtree(folder)
        folder.mkdir()
    else:
        (folder / missing).unlink()
    path = archived(folder, tmp_path / "bad.tar.gz")
    with pytest.raises(EncoderError, match=r"is missing from it.*download the archive") as caught:
        resolve(str(path))
    assert str(path) in str(caught.value) and str(cache) not in str(caught.value)
    assert not list(cache.iterdir())


def test_damage_in_an_unpacked_archive_is_no_endless_loop(plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "model")
    cut_short(folder / "variables" / "variables.data-00000-of-00001")
    unpacked = resolve(str(archived(folder, tmp_path / "bad.tar.gz")))
    with pytest.raises(EncoderError, match=f"delete {unpacked}, and download the archive again"):
        load(unpacked)


def test_an_unpacked_archive_is_for_all_users(plain: Path, tmp_path: Path, cache: Path) -> None:
    before = os.umask(0o022)
    try:
        resolve(str(archived(plain, tmp_path / "bert.tar.gz", "bert_en_tiny_3")))
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in cache.rglob("*") if path.is_dir()}
    assert modes == {0o755}


def test_another_process_unpacks_the_same_archive_first(
    plain: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def beaten(stage: Path, folder: Path) -> Path:
        shutil.copytree(stage, folder)
        return rename(stage, folder)

    monkeypatch.setattr(Path, "rename", beaten)
    folder = resolve(str(archived(plain, tmp_path / "bert.tar.gz")))
    assert (folder / "saved_model.pb").is_file() and list(cache.iterdir()) == [folder]


@pytest.mark.parametrize("name", ["tfhub", "huggingface", "kerashub", "tf1_checkpoint"])
def test_an_empty_source_is_not_the_current_folder(
    plain: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(plain)
    with pytest.raises(EncoderError, match=r"There is no folder( or archive)? ''") as caught:
        encoders.create(name, source="")
    assert "\n" not in str(caught.value)
