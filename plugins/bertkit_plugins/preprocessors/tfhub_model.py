"""A preprocessing SavedModel, read: its functions, and what they say of the vocabulary."""

from __future__ import annotations

import itertools
import re
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from bertkit.encoder import Encoder
from bertkit.errors import EncoderError
from bertkit_plugins.encoders.saved_model_safety import check_harmless, read_saved_model
from bertkit_plugins.encoders.tfhub_resolve import load

# What a SavedModel consists of; other files beside it are no part of the model.
_FILES = ("saved_model.pb", "fingerprint.pb", "variables/*", "assets/**/*")
_FUNCTIONS = ("tokenize", "bert_pack_inputs")
_MISSING = re.compile(r"Op type not registered '([^']+)'")
# Tables of embeddings are padded to a multiple of at most this many rows, if at all.
_PADDED_TO = 128


@dataclass(frozen=True)
class PreprocessingModel:
    """A preprocessing model in the interface of TF Hub.

    Attributes:
        graph: the loaded SavedModel.
        files: its files by their relative paths, to write it again.
        special_tokens: how many a row has besides those of its texts.
        padding_id: what fills rows up.
        pieces: the vocabulary in the order of its ids; `None` if it is no list of pieces.
        vocabulary_size: how many ids there are; `None` if it is not said.
        lowercase: whether case is lost; `None` if no letter has an id of its own.
    """

    graph: Any
    files: dict[str, bytes]
    special_tokens: int
    padding_id: int
    pieces: tuple[str, ...] | None
    vocabulary_size: int | None
    lowercase: bool | None

    def tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Return ids of strings (B,): int32 (B, words, pieces), or (B, pieces) for some."""
        return self.graph.tokenize(texts)

    def pack(self, tokens: list[tf.RaggedTensor], length: int) -> dict[str, tf.Tensor]:
        """Return TF Hub's three inputs, (B, length) each, of what `tokenize` returned."""
        return self.graph.bert_pack_inputs(tokens, seq_length=tf.constant(length))

    def count(self, tokens: tf.RaggedTensor) -> tf.Tensor:
        """Return how many tokens each row has, int32 (B,)."""
        flat = tokens.merge_dims(1, -1) if tokens.ragged_rank > 1 else tokens
        return tf.cast(flat.row_lengths(), tf.int32)


def read(folder: Path, text_columns: int) -> PreprocessingModel:
    """Read the preprocessing model in a folder.

    Args:
        folder: of a SavedModel.
        text_columns: how many texts a row is to have.

    Raises:
        EncoderError: it cannot be loaded, or is no preprocessing model for so many texts.
    """
    graph = _loaded(folder)
    lacking = [name for name in _FUNCTIONS if not callable(getattr(graph, name, None))]
    if lacking:
        raise EncoderError(_is_another(folder, lacking))
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for pattern in _FILES
        for path in folder.glob(pattern)
        if path.is_file()
    }
    size = _vocabulary_size(graph)
    return PreprocessingModel(
        graph,
        files,
        *_packing(folder, graph, text_columns),
        pieces=_pieces(files, size),
        vocabulary_size=size,
        lowercase=_lowercases(graph),
    )


def mismatch(model: PreprocessingModel, encoder: Encoder) -> str | None:
    """Return in what a preprocessing model and an encoder disagree, as far as can be known."""
    vocabulary, ours = encoder.vocabulary, model.pieces
    if vocabulary is not None and ours is not None and ours != vocabulary.tokens:
        pairs = enumerate(itertools.zip_longest(ours, vocabulary.tokens))
        index, (one, other) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        return (
            f"id {index} is {_piece(one)} to the preprocessor and {_piece(other)} to the "
            f"encoder (which have {len(ours)} and {len(vocabulary)} pieces)"
        )
    if model.vocabulary_size is not None:
        theirs = encoder.vocabulary_size if vocabulary is None else len(vocabulary)
        spare = _PADDED_TO if vocabulary is None else 1
        if not 0 <= theirs - model.vocabulary_size < spare:
            what = "embeddings for" if vocabulary is None else "a vocabulary of"
            return (
                f"the preprocessor has {model.vocabulary_size} pieces, and the encoder {what} "
                f"{theirs}"
            )
    if vocabulary is not None and model.lowercase not in (None, vocabulary.lowercase):
        case = ("keeps capitals", "lowercases")
        return (
            f"the preprocessor {case[bool(model.lowercase)]}, and the encoder's vocabulary is of "
            f"a model that {case[vocabulary.lowercase]}"
        )
    return None


def _piece(piece: str | None) -> str:
    return "nothing" if piece is None else repr(piece)


def _loaded(folder: Path) -> Any:
    try:
        import tensorflow_text
    except (ImportError, tf.errors.OpError) as error:
        raise EncoderError(
            f"The preprocessing model in {folder} needs tensorflow_text, which cannot be imported "
            f"({' '.join(str(error).split())[:150]}). Install the tensorflow-text of the same "
            f"version as TensorFlow ({tf.__version__}); there is none for Windows."
        ) from error
    try:
        if (folder / "saved_model.pb").is_file():  # if not, `load` says so
            check_harmless(read_saved_model(folder), folder)
        return load(folder)
    except EncoderError as error:
        missing = _MISSING.search(f"{error} {error.__cause__}")
        if missing is None:
            raise
        raise EncoderError(
            f"The SavedModel in {folder} needs the operation {missing[1]}, which neither "
            f"TensorFlow {tf.__version__} nor tensorflow_text {tensorflow_text.__version__} has. "
            "Update both, to the same version; or take an older version of the model."
        ) from error


def _is_another(folder: Path, lacking: list[str]) -> str:
    """Return what to do with a SavedModel that lacks functions of a preprocessing model."""
    if _has_weights(folder):
        return (
            f"The SavedModel in {folder} is an encoder, no preprocessing model. Make it the source "
            "of the encoder, and take here the preprocessing model that belongs to it; or the "
            "plugin single_text, which tokenizes with the encoder's own vocabulary."
        )
    return (
        f"The SavedModel in {folder} has no {' and no '.join(lacking)}, so its texts can neither "
        "be paired nor cut to a length. Take a later version of the preprocessing model; or the "
        "plugin single_text, which tokenizes with the encoder's own vocabulary."
    )


def _has_weights(folder: Path) -> bool:
    checkpoint = folder / "variables" / "variables"
    if not checkpoint.with_suffix(".index").is_file():
        return False
    types = tf.train.load_checkpoint(str(checkpoint)).get_variable_to_dtype_map().values()
    return any(dtype.is_floating for dtype in types)


def _packing(folder: Path, graph: Any, text_columns: int) -> tuple[int, int]:
    """Return the number of special tokens of a row, and the padding id, from a row of no text."""
    length = 16
    try:
        tokens = graph.tokenize(tf.constant([""]))
        packed = graph.bert_pack_inputs([tokens] * text_columns, seq_length=tf.constant(length))
        ids, mask, _ = (packed[name].numpy()[0] for name in ("input_word_ids", "input_mask",
                                                             "input_type_ids"))  # fmt: skip
        special, padding = int(mask.sum() - text_columns * tokens.flat_values.shape[0]), ids[-1]
    except (ValueError, TypeError, KeyError, AttributeError, tf.errors.OpError) as error:
        texts = "one text" if text_columns == 1 else "two texts"
        cause = " ".join(str(error).split())[:150]
        raise EncoderError(
            f"The SavedModel in {folder} cannot pack {texts} a row by its tokenize and "
            f"bert_pack_inputs ({type(error).__name__}: {cause}). Take a preprocessing model in "
            "the interface of TF Hub, whose bert_pack_inputs takes as many."
        ) from error
    return special, int(padding)


def _vocabulary_size(graph: Any) -> int | None:
    """Return the size that the model says itself; the first versions on TF Hub do not."""
    special = getattr(graph.tokenize, "get_special_tokens_dict", None)
    return int(special()["vocab_size"]) if special is not None else None


def _pieces(files: dict[str, bytes], size: int | None) -> tuple[str, ...] | None:
    """Return the pieces if one of the assets is a list of them."""
    lists = [content for name, content in files.items() if re.fullmatch(r"assets/.*\.txt", name)]
    if len(lists) != 1:
        return None
    lines = lists[0].decode("utf-8", "replace").removesuffix("\n").split("\n")
    pieces = tuple(line.removesuffix("\r") for line in lines)
    return pieces if size in (None, len(pieces)) else None


def _lowercases(graph: Any) -> bool | None:
    """Return whether capital letters have the ids of small ones; `None` if none has any."""
    small, capital = (
        graph.tokenize(tf.constant([" ".join(letters)])).flat_values.numpy().tolist()
        for letters in (string.ascii_lowercase, string.ascii_uppercase)
    )
    if len({*small, *capital}) == 1:  # the unknown piece
        return None
    return small == capital
