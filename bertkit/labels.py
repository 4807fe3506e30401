"""Raw labels, as people have them, made plain and looked up in a label space."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, TypeAlias

import numpy as np

from bertkit.errors import InputError, shown

Label: TypeAlias = str | int | bool


def rows_of(labels: Any, name: str = "labels") -> list[Any]:
    """Return labels as a list, one entry a row: from a list, array, pandas column or tensor.

    Args:
        labels: the labels, or other values of which each row has one.
        name: what they are called in messages.

    Raises:
        InputError: it is a single value, or has no order, or can be read only once.
    """
    if hasattr(labels, "to_list"):  # tf.RaggedTensor, pandas.Series
        return list(labels.to_list())
    if hasattr(labels, "to_numpy"):  # pandas.DataFrame
        labels = labels.to_numpy()
    elif hasattr(labels, "numpy"):  # tf.Tensor
        labels = labels.numpy()
    if isinstance(labels, np.ndarray):
        if labels.ndim == 2 and labels.shape[1] == 1:  # a column, as pandas and Keras have it
            labels = labels[:, 0]
        if labels.ndim > 0:
            return list(labels)
    # A set has no order, an iterator one pass, and a string is one label.
    if isinstance(labels, (str, bytes, Mapping, Set, Iterator)) or not _iterable(labels):
        raise InputError(
            f"The {name} are {shown(labels)}. Give one a row, as a list, an array or a column."
        )
    return list(labels)


def _iterable(value: Any) -> bool:
    try:
        iter(value)
    except TypeError:
        return False
    return True


def plain(label: Any, row: int) -> Label:
    """Return a label as a str, int or bool of Python.

    Raises:
        InputError: it is missing, a fraction, or no single value.
    """
    label = _of_python(label)
    if is_missing(label):
        raise InputError(f"Label {row} is missing ({label!r}). Fill it in, or drop the row.", row)
    if isinstance(label, (str, bool, int)):
        return label
    if isinstance(label, float):
        if label.is_integer():
            return int(label)
        raise InputError(
            f"Label {row} is the fraction {label}. Numbers to be predicted need the head "
            "'regression'; a label is a string or a whole number.",
            row,
        )
    if isinstance(label, (list, tuple, set, frozenset, np.ndarray)):
        raise InputError(
            f"Label {row} is a list, {shown(label)}. Several labels a row need the head "
            "'multi_label'; elsewhere give one label a row.",
            row,
        )
    raise InputError(
        f"Label {row} is {shown(label)} of type {type(label).__name__}. A label is a string or a "
        "whole number.",
        row,
    )


def is_missing(label: Any) -> bool:
    """Return whether it is None, NaN, blank text, or one of the markers of pandas."""
    label = _of_python(label)
    if isinstance(label, str):
        return not label.strip()
    if isinstance(label, float):
        return bool(np.isnan(label))
    return label is None or type(label).__name__ in ("NAType", "NaTType")


def _of_python(label: Any) -> Any:
    """Return a scalar of NumPy as one of Python, and bytes as text."""
    if isinstance(label, np.generic):
        label = label.item()
    return label.decode("utf-8", errors="replace") if isinstance(label, bytes) else label


class LabelSpace:
    """The distinct labels of a task; the position of each is its id.

    Args:
        labels: the labels in the order of their ids.

    Raises:
        InputError: a label stands twice, or there are fewer than one.
    """

    def __init__(self, labels: Sequence[Any]) -> None:
        if isinstance(labels, (str, bytes)):
            raise InputError(f"The labels are the single text {shown(labels)}. Give a list.")
        self.labels: list[Label] = [plain(label, row) for row, label in enumerate(labels)]
        self._ids = {label: index for index, label in enumerate(self.labels)}
        if not self.labels:
            raise InputError("There are no labels. Give at least one.")
        if len(self._ids) < len(self.labels):
            twice = next(x for i, x in enumerate(self.labels) if self._ids[x] != i)
            raise InputError(f"The label {shown(twice)} stands twice. Name it once.")

    @classmethod
    def learn(cls, labels: Iterable[Label]) -> LabelSpace:
        """Return the space of the labels that occur, in sorted order."""
        distinct = set(labels)
        kinds = {type(label).__name__ for label in distinct}
        if len(kinds) > 1:
            raise InputError(
                f"The labels mix {' and '.join(sorted(kinds))}, such as "
                f"{', '.join(repr(next(x for x in distinct if type(x).__name__ == k)) for k in sorted(kinds))}. "  # noqa: E501
                "Make them all of one type."
            )
        return cls(sorted(distinct))

    def __len__(self) -> int:
        return len(self.labels)

    def id_of(self, label: Any, row: int) -> int:
        """Return a label's id.

        Raises:
            InputError: the label was never seen.
        """
        label = plain(label, row)
        found = self._ids.get(label)
        if found is None:
            raise InputError(self._unseen(label, row), row)
        return found

    def _unseen(self, label: Label, row: int) -> str:
        examples = ", ".join(shown(known) for known in self.labels[:10])
        more = f" and {len(self) - 10} more" if len(self) > 10 else ""
        as_text = {str(known): known for known in self.labels}
        if str(label) in as_text:
            near = f" Did you mean {as_text[str(label)]!r}, of another type?"
        else:
            guess = difflib.get_close_matches(str(label), list(as_text), n=1)
            near = f" Did you mean {guess[0]!r}?" if guess else ""
        return (
            f"Label {row} is {shown(label)}, which was never seen: the head knows {examples}{more}."
            f"{near} Correct it, or train a head with `labels` that include it."
        )

    def weights(self, class_weight: Mapping[Any, float]) -> np.ndarray:
        """Return the weight of each label, float32 (len,); 1 where none is given.

        Raises:
            InputError: a key is no label, or a weight is no finite number of at least 0.
        """
        if not isinstance(class_weight, Mapping):
            raise InputError(
                f"class_weight is {shown(class_weight)}. Give a dict from labels to numbers."
            )
        weights = np.ones(len(self), dtype="float32")
        for label, weight in class_weight.items():
            try:
                weights[self._ids[label]] = weight
                usable = 0 <= weight < np.inf
            except (KeyError, TypeError, ValueError):
                usable = False
            if not usable:
                raise InputError(
                    f"class_weight has {shown(label)}: {shown(weight)}, and the labels are "
                    f"{shown(self.labels)}. Give each label that is not to weigh 1 a finite "
                    "number, 0 or more."
                )
        return weights
