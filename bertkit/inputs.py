"""What people pass as text or tensors, checked and made uniform."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from bertkit.encoder import INPUT_NAMES, TFHUB_NAMES, Encoder
from bertkit.errors import InputError, shown

_PAIR = "pairs such as [('first', 'second'), …]"


def is_text(x: Any) -> bool:
    """Return whether `x` is meant as raw text: all but a dict of tensors."""
    return not isinstance(x, Mapping)


def is_symbolic(x: Any) -> bool:
    """Return whether `x` is a tensor inside a graph, of which only the type can be looked at."""
    return isinstance(x, tf.Tensor) and not hasattr(x, "numpy")


def symbolic_texts(x: tf.Tensor, columns: int) -> tf.Tensor:
    """Return a tensor inside a graph as strings, (B,) or (B, 2).

    Raises:
        InputError: its type or shape does not fit.
    """
    if columns == 1 and x.shape.rank == 2 and x.shape[1] == 1:
        x = x[:, 0]
    wanted = [None] if columns == 1 else [None, columns]
    if x.dtype != tf.string or not x.shape.is_compatible_with(wanted):
        raise InputError(
            f"The texts are a {x.dtype.name} tensor of shape {x.shape}. Give strings of shape "
            f"{'(batch,)' if columns == 1 else '(batch, 2)'}."
        )
    return x


def texts_of(x: Any, columns: int) -> np.ndarray:
    """Return raw text as an array of `str` or UTF-8 `bytes`: (N,) or, for two columns, (N, 2).

    Args:
        x: a list of strings or pairs, a NumPy array, a pandas column or columns, or an eager
            tensor.
        columns: how many texts a row has, 1 or 2.

    Raises:
        InputError: something in `x` is no text; the message says which row and what to do.
    """
    wanted = "a list of strings" if columns == 1 else f"a list of {_PAIR}"
    if x is None:
        raise InputError(f"The texts are None. Give {wanted}.")
    if isinstance(x, (str, bytes)):
        raise InputError(f"The texts are the single string {shown(x)}. Give {wanted}.")
    if isinstance(x, (tf.RaggedTensor, tf.SparseTensor)) or is_symbolic(x):
        raise InputError(f"The texts are a {type(x).__name__}. Give {wanted}.")
    if hasattr(x, "to_numpy"):  # pandas
        x = x.to_numpy()
    elif tf.is_tensor(x):
        x = x.numpy()
    if isinstance(x, np.ndarray):
        if x.dtype.kind in "biufc":
            raise InputError(
                f"The texts are numbers ({x.dtype.name}, shape {x.shape}). Give {wanted}; token "
                "ids go in as a dict of token_ids, segment_ids and padding_mask."
            )
        x = x.tolist()
    if not isinstance(x, (list, tuple)):
        raise InputError(f"The texts are of type {type(x).__name__}. Give {wanted}.")
    rows = list(x)
    if columns == 1:
        rows = [row[0] if isinstance(row, list) and len(row) == 1 else row for row in rows]
        checked = [_checked(row, index) for index, row in enumerate(rows)]
    else:
        checked = [text for index, row in enumerate(rows) for text in _pair(row, index)]
    flat = np.empty(len(checked), dtype=object)
    flat[:] = checked
    return flat if columns == 1 else flat.reshape(-1, columns)


def _pair(row: Any, index: int) -> list[str | bytes]:
    if isinstance(row, (str, bytes)):
        raise InputError(
            f"Row {index} is the single text {shown(row)} where a pair is wanted. Give {_PAIR}, "
            "or use the preprocessor 'single_text'."
        )
    if not isinstance(row, (list, tuple, np.ndarray)) or len(row) != 2:
        hint = " Two columns become pairs by list(zip(first, second))."
        raise InputError(f"Row {index} is {shown(row)}, not a pair. Give {_PAIR}.{hint}")
    return [_checked(text, index) for text in row]


def _checked(text: Any, index: int) -> str | bytes:
    if isinstance(text, str):
        if text.isspace() or not text:
            raise InputError(
                f"Row {index} is empty text. Drop the row, or put a placeholder in it."
            )
        if not text.isascii():
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise InputError(
                    f"Row {index} holds half a surrogate pair at character {error.start}, which "
                    "is no valid text. Repair it with text.encode('utf-8', 'replace').decode()."
                ) from None
        return text
    if isinstance(text, bytes):
        return _checked(text.decode("utf-8", errors="replace"), index)
    if text is None or (isinstance(text, float) and np.isnan(text)):
        raise InputError(f"Row {index} is missing ({text}). Drop the row, or fill it with text.")
    if isinstance(text, (list, tuple, np.ndarray)):
        raise InputError(
            f"Row {index} is {shown(text)}, where one text is wanted. Give a list of strings, "
            "or use the preprocessor 'sentence_pair' for pairs."
        )
    raise InputError(
        f"Row {index} is {shown(text)} of type {type(text).__name__}, not text. Convert it with "
        "str() if that is what you mean."
    )


def tensors_of(x: Mapping[str, Any], encoder: Encoder) -> dict[str, Any]:
    """Return the encoder's inputs under bertkit's names, from KerasHub's names or TF Hub's.

    Missing segment ids are zero; a missing mask cannot be guessed. `token_embeddings` stay as they
    are, beside the ids they stand for, where the encoder takes them.

    Raises:
        InputError: a name is missing or unknown, or shapes, types or values do not fit.
    """
    named = {TFHUB_NAMES.get(name, name): value for name, value in x.items()}
    given = named.pop("token_embeddings", None) if encoder.takes_embeddings else None
    unknown = [shown(name) for name in named if name not in INPUT_NAMES]
    missing = [name for name in ("token_ids", "padding_mask") if name not in named]
    if unknown or missing or len(named) + (given is not None) < len(x):
        raise InputError(
            f"The inputs are named {', '.join(map(shown, x)) or 'nothing'}; missing: "
            f"{', '.join(missing) or 'none'}; not known: {', '.join(unknown) or 'none'}. Give each "
            f"of {', '.join(INPUT_NAMES)} (KerasHub's names) or {', '.join(TFHUB_NAMES)} "
            "(TF Hub's) once."
        )
    segments = encoder.num_segments or 2  # without segments they are ignored
    limits = dict(zip(INPUT_NAMES, (encoder.vocabulary_size, segments, 2), strict=True))
    tensors = {
        name: _integers(name, named[name], limit) for name, limit in limits.items() if name in named
    }
    shape = tensors["token_ids"].shape
    for name, tensor in tensors.items():
        if not tensor.shape.is_compatible_with(shape) or len(tensor.shape) != 2:
            raise InputError(
                f"{name} has shape {tuple(tensor.shape)} where token_ids has {tuple(shape)}. All "
                "inputs are (batch, tokens), and padded alike."
            )
    alone = tf.distribute.get_strategy().num_replicas_in_sync == 1  # one of several may have no row
    if shape[1] == 0 or (shape[0] == 0 and alone):
        raise InputError(f"The inputs have shape {tuple(shape)}. Give at least one row and token.")
    if shape[1] is not None and shape[1] > encoder.max_sequence_length:
        raise InputError(
            f"The inputs are {shape[1]} tokens long, and the encoder has positions for "
            f"{encoder.max_sequence_length}. Shorten them: the preprocessor's sequence_length "
            "does so."
        )
    if "segment_ids" not in tensors:
        tensors["segment_ids"] = tf.zeros_like(tensors["token_ids"])
    embeddings = {} if given is None else {"token_embeddings": _embeddings(given, shape)}
    return {**{name: tensors[name] for name in INPUT_NAMES}, **embeddings}


def _embeddings(value: Any, shape: Any) -> tf.Tensor:
    tensor = tf.convert_to_tensor(value)
    if len(tensor.shape) != 3 or not tensor.shape[:2].is_compatible_with(shape):
        raise InputError(
            f"token_embeddings has shape {tuple(tensor.shape)} where token_ids has {tuple(shape)}. "
            "It is (batch, tokens, width), one row a token id."
        )
    return tensor


def _integers(name: str, value: Any, limit: int) -> tf.Tensor:
    """Return integers below `limit` as an int32 tensor."""
    try:
        tensor = tf.convert_to_tensor(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{name} is no rectangular array of integers: {str(error).splitlines()[0]}. Pad the "
            "rows to one length."
        ) from None
    if not (tensor.dtype.is_integer or tensor.dtype.is_bool):
        raise InputError(
            f"{name} holds {tensor.dtype.name}, and the encoder takes integers. Raw text goes in "
            "as a list of strings, to a model with a preprocessor."
        )
    if hasattr(tensor, "numpy"):  # inside a graph nothing can be looked at
        values = tensor.numpy()
        wrong = values[(values < 0) | (values >= limit)]
        if wrong.size:
            raise InputError(
                f"{name} holds {wrong[0]}, and the encoder takes 0 to {limit - 1}. Take ids from "
                "the encoder's own vocabulary."
            )
    return tf.cast(tensor, tf.int32)
