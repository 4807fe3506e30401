"""`check_preprocessor`: does a preprocessor keep its contract?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from bertkit.classifier import BertClassifier
from bertkit.encoder import INPUT_NAMES, Encoder
from bertkit.inputs import texts_of
from bertkit.preprocessor import Encoded, Preprocessor
from bertkit.registry import heads, preprocessors
from bertkit.testing.common import (
    again,
    check_config,
    during,
    ensure,
    maker,
    name_of,
    run,
    tiny_encoder,
)

_TEXTS = ["A short one.", "x", "Ünïcödé, 中文 and\u200bmore!", "\u200b", "word " * 40, "(a) b? c"]


def check_preprocessor(
    preprocessor: Preprocessor | Callable[..., Preprocessor] | str,
    texts: Sequence[Any] | None = None,
    encoder: Encoder | None = None,
    **arguments: Any,
) -> None:
    """Check a preprocessor against the contract of `bertkit.Preprocessor`.

    That its config and assets rebuild it; names, types and shapes of what it returns; that rows
    begin with the start token, keep to `sequence_length`, and `lengths` tells what truncation
    took; that a row does not depend on its batch; that a graph and a `tf.data` map give the same;
    no rows, one row, and text that is far too long.

    Args:
        preprocessor: a preprocessor, its class, or the name it is registered under.
        texts: rows of text, strings or pairs of them; examples if `None`.
        encoder: one to bind it to, for a preprocessor that does not take every vocabulary; a tiny
            BERT over ASCII if `None`.
        **arguments: of the constructor, if `preprocessor` is a class or a name.

    Raises:
        AssertionError: the preprocessor breaks the contract.
    """
    with during(f"check_preprocessor({name_of(preprocessor)}), construction"):
        made = maker(preprocessors, Preprocessor, preprocessor, arguments)()
        if isinstance(preprocessor, Preprocessor):
            _move_assets(preprocessor, made)
        ensure(made.text_columns in (1, 2), f"text_columns is {made.text_columns!r}, not 1 or 2")
        made.bind(encoder or tiny_encoder(max_sequence_length=made.sequence_length))
        rows = tf.constant(_rows(made, texts).tolist(), tf.string)  # (B,) or (B, 2)
    checks = (config, outputs, assets, lengths, rows_alone, graphs, few_rows)
    run("check_preprocessor", preprocessor, checks, made, rows)


def _move_assets(source: Preprocessor, target: Preprocessor) -> None:
    """Give a preprocessor the assets of another, as saving and loading a model does."""
    with tempfile.TemporaryDirectory() as folder:
        source.save_assets(folder)
        target.load_assets(folder)


def _rows(preprocessor: Preprocessor, texts: Sequence[Any] | None) -> np.ndarray:
    """Return the texts and, at the end, one that is far too long."""
    long = "long " * preprocessor.sequence_length
    if preprocessor.text_columns == 1:
        return texts_of([*(texts or _TEXTS), long], 1)
    pairs = texts or list(zip(_TEXTS, reversed(_TEXTS), strict=True))
    return texts_of([*pairs, (long, "x"), ("x", long), (long, long)], 2)


def config(preprocessor: Preprocessor, texts: tf.Tensor) -> None:
    check_config(preprocessors, preprocessor)
    head = heads.create("binary", labels=["no", "yes"])
    encoder: Any = preprocessor._encoder
    model = BertClassifier(encoder, head, again(preprocessor))
    restored = BertClassifier.from_config(model.get_config()).preprocessor
    ensure(type(restored) is type(preprocessor), f"a saved model brings back {restored!r}")


def outputs(preprocessor: Preprocessor, texts: tf.Tensor) -> None:
    _check_outputs(preprocessor, texts)
    _check_outputs(preprocessor, texts[:2])  # short ones, without the one that is too long


def _check_outputs(preprocessor: Preprocessor, texts: tf.Tensor) -> None:
    tensors = preprocessor(texts)
    ensure(
        set(tensors) == set(INPUT_NAMES),
        f"it must return {', '.join(INPUT_NAMES)}, and returns {', '.join(tensors)}",
    )
    shape = (len(texts), tensors["token_ids"].shape[1])
    for name, value in tensors.items():
        ensure(
            value.dtype == tf.int32 and tuple(value.shape) == shape,
            f"{name} must be int32 {shape}, and is {value.dtype.name} {tuple(value.shape)}",
        )
    ids, segments, mask = (tensors[name].numpy() for name in INPUT_NAMES)
    counts, limit = mask.sum(axis=1), preprocessor.sequence_length
    ensure(
        np.array_equal(mask, np.arange(shape[1]) < counts[:, None]),
        "padding_mask must be ones and then zeros in each row",
    )
    ensure(
        counts.max() == shape[1] <= limit,
        f"a batch must be as long as its longest row ({counts.max()}) and within sequence_length "
        f"({limit}); it is {shape[1]}",
    )
    encoder: Any = preprocessor._encoder
    if encoder.vocabulary is not None:
        start = encoder.vocabulary.start_token
        begins = ids[:, 0] == encoder.vocabulary.id_of(start)
        ensure(begins.all(), f"each row must begin with {start}")
    padding = preprocessor.padding_id
    ensure((ids[mask == 0] == padding).all(), f"padding must be `padding_id`, {padding}")
    columns = preprocessor.text_columns
    ensure(
        ((segments >= 0) & (segments < columns)).all(),
        f"segment_ids must be from 0 to {columns - 1}, and go from {segments.min()} to "
        f"{segments.max()}",
    )


def assets(preprocessor: Preprocessor, texts: tf.Tensor) -> None:
    copy, encoder = again(preprocessor), preprocessor._encoder
    _move_assets(preprocessor, copy)
    copy.bind(encoder)
    tensors, others = preprocessor(texts), copy(texts)
    ensure(
        all(np.array_equal(tensors[name], others[name]) for name in INPUT_NAMES),
        "made again from its config and assets, it must give the same tensors",
    )


def lengths(preprocessor: Preprocessor, texts: tf.Tensor) -> None:
    encoded = preprocessor.encode(texts)
    ensure(isinstance(encoded, Encoded), f"`encode` must return an Encoded, not {type(encoded)}")
    kept, segments = (rows.row_lengths().numpy() for rows in encoded[:2])
    ensure(np.array_equal(kept, segments), "token_ids and segment_ids must be equally long")
    tensors = preprocessor(texts)
    mask = tensors["padding_mask"].numpy() == 1
    for name in ("token_ids", "segment_ids"):
        flat = getattr(encoded, name).flat_values
        ensure(
            np.array_equal(tensors[name].numpy()[mask], flat),
            f"`encode` and `__call__` must give the same {name}",
        )
    full, limit = encoded.lengths.numpy(), preprocessor.sequence_length
    too_long = full > limit
    ensure(
        too_long[-1] and np.array_equal(full[~too_long], kept[~too_long]),
        f"`lengths` must be those before truncation to {limit}: they are {full.tolist()} of rows "
        f"that keep {kept.tolist()}",
    )


def rows_alone(preprocessor: Preprocessor, texts: tf.Tensor) -> None:
    together = preprocessor.encode(texts)
    for row in range(len(texts)):
        alone = preprocessor.encode(texts[row : row + 1])
        ensure(
            all(np.array_equal(a[0], b[row]) for a, b in zip(alone, together, strict=True)),
            f"row {row} must be the same alone and in a batch",
        )


def graphs(preprocessor: Preprocessor, texts: tf.Tensor) -> None:
    eager = preprocessor(texts)
    spec = tf.TensorSpec((None, *texts.shape[1:]), tf.string)
    graph = tf.function(lambda x: preprocessor(x), input_signature=[spec])(texts)
    dataset = tf.data.Dataset.from_tensors(texts).map(preprocessor)
    for where, tensors in (("a graph", graph), ("tf.data", next(iter(dataset)))):
        ensure(
            all(np.array_equal(tensors[name], eager[name]) for name in INPUT_NAMES),
            f"{where} must give what eager execution gives",
        )


def few_rows(preprocessor: Preprocessor, texts: tf.Tensor) -> None:
    encoder: Any = preprocessor._encoder
    for rows in (0, 1):
        with during("no rows" if rows == 0 else "one row"):
            tensors = preprocessor(texts[:rows])
            shapes = {tuple(value.shape) for value in tensors.values()}
            ensure(
                len(shapes) == 1 and min(shapes)[0] == rows and min(shapes)[1] > 0,
                f"the tensors must have the shape ({rows}, 1 or more), and have {shapes}",
            )
            encoder(tensors)
