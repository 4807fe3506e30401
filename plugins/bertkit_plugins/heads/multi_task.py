"""Several heads over one encoder."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from bertkit.errors import InputError, shown
from bertkit.evaluation.metrics import Report
from bertkit.head import Head
from bertkit.labels import rows_of
from bertkit.registry import heads as registry
from bertkit_plugins.heads.options import check_number
from bertkit_plugins.heads.tasks import Columns, OfTask, TasksLoss, log_variances


class MultiTaskHead(Head):
    """Several heads over one encoder, each with its own labels.

    The label of a row is a mapping from tasks to labels. A row that has none of a task adds nothing
    to that task: rows of several data sets go together, and so do several labels of one row. The
    loss is the weighted sum of the tasks' losses, each a mean over all rows of the batch, so a
    task counts as often as it has rows. That of pairs of rows is a mean over the task's pairs.

    Args:
        heads: by the name of the task; each a mapping of `plugin` and its arguments.
        weights: of each task's loss; 1 each if `None`. "learned": by the uncertainty of each task
            (Kendall, Gal and Cipolla 2018, https://arxiv.org/abs/1705.07115).
    """

    single_label: ClassVar[bool] = False

    def __init__(
        self,
        heads: dict[str, dict[str, Any]],
        weights: dict[str, float] | Literal["learned"] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("labels", None), kwargs.pop("dropout", None)  # those of the heads within
        super().__init__(**kwargs)
        if not isinstance(heads, Mapping) or len(heads) < 2:
            raise InputError(
                f"heads is {shown(heads)}. Give two tasks or more, such as {{intent: {{plugin: "
                "multiclass}, polite: {plugin: binary}}; a single one needs no multi_task."
            )
        for name in heads:
            if not isinstance(name, str) or not re.fullmatch(r"\w[\w .-]*", name) or name == "text":
                raise InputError(
                    f"A task is named {shown(name)}. Give it a name of letters, digits, spaces and "
                    "_ - . that is not 'text', which stands beside the tasks in predictions."
                )
        self.heads = {name: self._made(name, one) for name, one in heads.items()}
        self.weights_of_tasks = weights
        if isinstance(weights, Mapping):
            _check_weights(weights, self.heads)
        elif weights not in (None, "learned"):
            raise InputError(f"weights is {shown(weights)}. Give a number a task, or 'learned'.")

    def _made(self, name: str, described: Any) -> Head:
        if not isinstance(described, Mapping) or not isinstance(described.get("plugin"), str):
            raise InputError(
                f"The head of the task {name!r} is {shown(described)}. Give a mapping of its "
                "plugin and its arguments, such as {plugin: multiclass}."
            )
        arguments = {key: value for key, value in described.items() if key != "plugin"}
        return registry.create(described["plugin"], name=name, dtype=self.dtype_policy, **arguments)

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """What any of the heads reads."""
        return tuple(dict.fromkeys(name for head in self.heads.values() for name in head.reads))

    @property
    def adapted(self) -> bool:
        return all(head.adapted for head in self.heads.values())

    @property
    def num_outputs(self) -> int:
        """The outputs of all heads and, with learned weights, the logarithm of each variance."""
        learned = len(self.heads) if self.weights_of_tasks == "learned" else 0
        return sum(head.num_outputs for head in self.heads.values()) + learned

    def adapt(self, labels: Any) -> None:
        """Let each head learn its labels from the rows that have one.

        Raises:
            InputError: a row is no mapping of tasks, or a head cannot use its labels.
        """
        tasks = self._by_task(labels)
        for name, head in self.heads.items():
            if not head.adapted:
                with _located(name, tasks[name].rows):
                    head.adapt(tasks[name].labels)

    def build(self, input_shape: Mapping[str, Any]) -> None:
        for head in self.heads.values():
            head.build(input_shape)
        if self.weights_of_tasks == "learned":
            self.log_variances = self.add_weight(
                shape=(len(self.heads),), initializer="zeros", name="log_variances"
            )

    def call(self, features: Mapping[str, Any], training: bool = False) -> tf.Tensor:
        parts = [
            tf.cast(head(features, training=training), tf.float32) for head in self.heads.values()
        ]
        if self.weights_of_tasks == "learned":
            logs = tf.cast(tf.convert_to_tensor(self.log_variances), tf.float32)
            parts.append(tf.repeat(logs[None], tf.shape(parts[0])[0], axis=0))
        return tf.concat(parts, axis=1)

    def make_loss(self) -> keras.losses.Loss:
        losses = [head.make_loss() for head in self.heads.values()]
        learned = self.weights_of_tasks == "learned"
        return TasksLoss(losses, self._columns(), None if learned else self._fixed_weights())

    def _fixed_weights(self) -> list[float]:
        weights = self.weights_of_tasks
        given = weights if isinstance(weights, Mapping) else {}
        return [float(given.get(name, 1.0)) for name in self.heads]

    def make_metrics(self) -> list[keras.metrics.Metric]:
        return [
            OfTask(metric, columns, name=f"{name}_{metric.name}")
            for (name, head), columns in zip(self.heads.items(), self._columns(), strict=True)
            for metric in head.make_metrics()
        ]

    def encode_labels(self, labels: Any) -> np.ndarray:
        """Return targets, float32 (N, columns of all tasks): NaN where a row lacks a task.

        Raises:
            InputError: a row is no mapping of tasks, or a head cannot use its label.
        """
        tasks, columns = self._by_task(labels), self._columns()
        targets = np.full((len(rows_of(labels)), columns[-1].targets[1]), np.nan, "float32")
        for (name, head), place in zip(self.heads.items(), columns, strict=True):
            with _located(name, tasks[name].rows):
                encoded = head.encode_labels(tasks[name].labels)
            start, stop = place.targets
            targets[tasks[name].rows, start:stop] = encoded.reshape(len(encoded), stop - start)
        return targets

    @classmethod
    def tasks_of(cls, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        heads = arguments.get("heads")
        return tuple(heads) if isinstance(heads, Mapping) else ()

    def known_tasks(self, targets: np.ndarray) -> np.ndarray:
        places = [slice(*columns.targets) for columns in self._columns()]
        return np.stack([~np.isnan(targets[:, at]).all(axis=1) for at in places], axis=1)

    def class_weights(self, targets: np.ndarray, class_weight: Mapping[Any, float]) -> np.ndarray:
        raise InputError(
            "class_weight has no meaning for several tasks. Give `sample_weight`, one weight a "
            "row, or give the heads options such as pos_weight."
        )

    def divergence(self, outputs: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
        """Return the sum of those of the tasks, (B,), each weighted as the task's loss is.

        It has no gradient by learned weights, which are the losses' to set.
        """
        weights: Sequence[Any] = self._fixed_weights()
        if self.weights_of_tasks == "learned":
            weights = [
                tf.exp(tf.stop_gradient(-log)) for log in log_variances(outputs, len(self.heads))
            ]
        return tf.add_n(
            [
                weight * head.divergence(columns.of_outputs(outputs), columns.of_outputs(others))
                for weight, head, columns in zip(
                    weights, self.heads.values(), self._columns(), strict=True
                )
            ]
        )

    def decode(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """Return a row: `{task: what its head decodes}`."""
        decoded = [
            head.decode(np.asarray(columns.of_outputs(outputs)))
            for head, columns in zip(self.heads.values(), self._columns(), strict=True)
        ]
        return [dict(zip(self.heads, row, strict=True)) for row in zip(*decoded, strict=True)]

    def report(self, targets: np.ndarray, outputs: np.ndarray) -> Report:
        """Return the measures of each task on its rows, if it has any, by "task_measure"."""
        measures: Report = {}
        each = zip(self.heads.items(), self._columns(), self.known_tasks(targets).T, strict=True)
        for (name, head), columns, known in each:
            if not known.any():
                continue
            own = np.asarray(columns.of_targets(np.asarray(targets)))
            found = head.report(own[known], np.asarray(columns.of_outputs(outputs))[known])
            measures |= {f"{name}_{measure}": value for measure, value in found.items()}
        return measures

    def _columns(self) -> list[Columns]:
        """Return where each task is among targets and outputs."""
        columns, target, output = [], 0, 0
        for head in self.heads.values():
            shape = head.encode_labels([]).shape[1:]
            width = int(np.prod(shape))
            columns.append(
                Columns((target, target + width), (output, output + head.num_outputs), not shape)
            )
            target, output = target + width, output + head.num_outputs
        return columns

    def _by_task(self, labels: Any) -> dict[str, _Labels]:
        """Return the labels of each task, and the rows that they are of."""
        found = {name: _Labels([], []) for name in self.heads}
        for row, label in enumerate(rows_of(labels)):
            unknown = (
                [str(n) for n in label if n not in found] if isinstance(label, Mapping) else []
            )
            if not isinstance(label, Mapping) or not label or unknown:
                about = f", and there is no task {', '.join(unknown)}" if unknown else ""
                raise InputError(
                    f"Label {row} is {shown(label)}{about}. Give a mapping from one or more of the "
                    f"tasks {', '.join(found)} to labels.",
                    row,
                )
            for name, one in label.items():
                found[name].rows.append(row)
                found[name].labels.append(one)
        return found

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["labels"], config["dropout"]
        heads = {name: registry.described(head) for name, head in self.heads.items()}
        return {**config, "heads": heads, "weights": self.weights_of_tasks}


class _Labels(NamedTuple):
    rows: list[int]
    labels: list[Any]


@contextlib.contextmanager
def _located(task: str, rows: Sequence[int]) -> Iterator[None]:
    """Name the task and, of all rows, the one, where a head speaks of a row of its own."""
    try:
        yield
    except InputError as error:
        message = str(error)
        row = None if error.row is None else rows[error.row]
        message = message.replace(f"Label {error.row} ", f"Label {row} ", 1)
        raise InputError(f"Task {task!r}: {message}", row) from error


def _check_weights(weights: Mapping[str, float], heads: Mapping[str, Head]) -> None:
    for name, weight in weights.items():
        if name not in heads:
            raise InputError(
                f"weights has {name!r}, and the tasks are {', '.join(heads)}. Name one of them."
            )
        check_number(f"The weight of the task {name!r}", weight)
    if not any(weights.get(name, 1.0) for name in heads):
        raise InputError("The weights of all tasks are 0, so nothing would train. Raise one.")
