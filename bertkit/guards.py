"""What keeps training from failing unseen: checks at its start, of its step, and of its updates."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from bertkit.errors import TrainingError
from bertkit.training.groups import group_of
from bertkit.training.optimizer import inner_of

if TYPE_CHECKING:
    from bertkit.workflow import RawTextModel

_UPDATES = 3  # the first may be zero: a head that begins with zeros passes no gradient on
_LAST = 96  # updates after which an encoder is no longer watched
_INTEGERS = {1: tf.uint8, 2: tf.uint16, 4: tf.int32, 8: tf.int64}


class Hidden(NamedTuple):
    """A trainable variable that the model reads and does not list.

    Attributes:
        name: TensorFlow's name of it.
        owner: what holds it, such as "encoder.module, a hub.KerasLayer"; "" where not found.
    """

    name: str
    owner: str


def check_trainable(model: RawTextModel, anew: bool) -> None:
    """Refuse to train when `trainable` was changed too late to count.

    A step trains what was trainable when it was traced, and an optimizer knows the variables that
    it was built with; Keras changes neither before the next `compile`.

    Args:
        model: what is about to be trained.
        anew: whether its step is about to be traced anew.

    Raises:
        TrainingError: what is trainable now differs.
    """
    now = {id(weight) for weight in model.trainable_weights}
    if anew or model.run_eagerly:
        model._traced_weights = frozenset(now)
    optimizer, paths = model.optimizer, {id(weight): weight.path for weight in model.weights}
    known = {id(weight) for weight in optimizer._trainable_variables} if optimizer.built else now
    taken = known & model._traced_weights
    thawed = [path for key, path in paths.items() if key in now and key not in taken]
    frozen = [path for key, path in paths.items() if key in model._traced_weights - now]
    if thawed or frozen:
        ignored = [
            f"{_listed(names)} would {effect}"
            for names, effect in ((thawed, "stay as they are"), (frozen, "go on training"))
            if names
        ]
        raise TrainingError(
            "`trainable` was changed after the model was compiled, and Keras does not notice: "
            f"{'; '.join(ignored)}. Call model.compile(...) again, with a new optimizer."
        )


def connected(
    model: RawTextModel, tape: tf.GradientTape, weights: Sequence[Any], gradients: Sequence[Any]
) -> list[tuple[Any, Any]]:
    """Return the gradients that there are, with their weights; called while a step is traced.

    Raises:
        TrainingError: the step reads variables that the model does not list, or no gradient
            reaches an encoder that is meant to train, or anything at all.
    """
    hidden = hidden_variables(model, tape)
    if hidden:
        owners = dict.fromkeys(one.owner for one in hidden if one.owner)
        where = f", in {'; '.join(owners)}" if owners else ""
        raise _broken_off(
            model,
            f"The model reads trainable variables that it does not list, so they would neither "
            f"train nor be saved: {_listed([one.name for one in hidden])}{where}. Make variables "
            "with self.add_weight, give a TF Hub model to the encoder 'tfhub', or set "
            "encoder.trainable = False if they are to stay as they are.",
        )
    pairs = [(g, w) for g, w in zip(gradients, weights, strict=True) if g is not None]
    lost = [w.path for g, w in zip(gradients, weights, strict=True) if g is None]
    of_encoder = {id(weight) for weight in model.encoder.weights}
    meant = sum(id(weight) in of_encoder for weight in weights)
    if lost and (not pairs or (meant and not any(id(w) in of_encoder for _, w in pairs))):
        raise _broken_off(
            model,
            f"No gradient reaches {'the encoder' if pairs else 'any weight'}, so it would never "
            f"move: {_listed(lost)}. Compute with TensorFlow operations from the inputs to the "
            "loss, not with NumPy or tf.stop_gradient, or freeze what is to stay as it is.",
        )
    if lost:
        warnings.warn(
            f"No gradient reaches {_listed(lost)}: the loss does not depend on them, and they will "
            "stay as they are. If that is meant, freeze them.",
            stacklevel=2,
        )
    return pairs


def _broken_off(model: RawTextModel, message: str) -> TrainingError:
    """Return an error that ends the tracing of a step; TensorFlow would call what is half done."""
    model.train_function = None
    return TrainingError(message)


def hidden_variables(model: RawTextModel, tape: tf.GradientTape) -> list[Hidden]:
    """Return the trainable variables that a tape has seen read and the model does not list.

    Those of frozen layers do not count, nor does anything of unknown place if the encoder is
    frozen.
    """
    listed = {id(whole(variable.value)) for variable in model.variables}
    read = [v for v in map(whole, tape.watched_variables()) if id(v) not in listed]
    if not read:
        return []
    owners = {
        id(whole(variable)): (layer, owner)
        for layer, owner, variables in _foreign_parts(model)
        for variable in variables
    }
    hidden = []
    for variable in read:
        layer, owner = owners.get(id(variable), (model.encoder, ""))
        if layer.trainable:
            hidden.append(Hidden(variable.name.removesuffix(":0"), owner))
    return sorted(hidden)


def whole(variable: Any) -> Any:
    """Return a variable or, of the copy that one replica has, all copies as one."""
    handle = getattr(variable, "handle", None)
    container = getattr(handle, "_distributed_container", None)
    return variable if container is None else container()


def _foreign_parts(model: RawTextModel) -> Iterator[tuple[Any, str, Iterable[Any]]]:
    """Yield what layers hold besides Keras's own: the layer, a description, the variables."""
    layers = model._flatten_layers()
    for layer in layers:
        for name, value in vars(layer).items():
            parts = value.values() if isinstance(value, dict) else value
            for part in parts if isinstance(parts, (list, tuple)) else [value]:
                owner = f"{layer.name}.{name}, {_kind(part)}"
                if isinstance(part, keras.Layer):
                    if not any(part is listed for listed in layers):
                        yield layer, owner, [variable.value for variable in part.variables]
                elif isinstance(part, tf.__internal__.tracking.Trackable):
                    yield layer, owner, tf.train.TrackableView(part).descendants()


def _kind(part: Any) -> str:
    cls = type(part)
    if cls.__name__ == "KerasLayer" and cls.__module__.startswith("tensorflow_hub"):
        return "a hub.KerasLayer"
    if cls.__name__ == "_UserObject" and cls.__module__.startswith("tensorflow."):
        return "a loaded SavedModel"
    return "a tf.Variable" if isinstance(part, tf.Variable) else f"a {cls.__name__}"


class EncoderMoves(keras.callbacks.Callback):
    """Raises when the first updates move the head and not the encoder.

    Updates at a learning rate of zero do not count, nor those while the encoder is frozen, nor
    batches that wait for others or that overflow in float16: the optimizer counts none for them.

    Args:
        classifier: the model that is trained.
    """

    def __init__(self, classifier: RawTextModel) -> None:
        super().__init__()
        self._classifier = classifier
        self._watching = False

    def on_train_begin(self, logs: Any = None) -> None:
        model = self._classifier
        trained = [w for w in model.trainable_weights if _multiplier(model.optimizer, w.path) > 0]
        of_encoder = {id(weight) for weight in model.encoder.weights}
        self._encoder = [weight for weight in trained if id(weight) in of_encoder]
        self._others = [weight for weight in trained if id(weight) not in of_encoder]
        self._watching = bool(self._encoder)
        if self._watching:
            self._before = fingerprints(self._encoder), fingerprints(self._others)
            self._updates, self._due = 0, _UPDATES

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._watching:
            self._count = self._counted()
            self._rate = float(np.asarray(self._classifier.optimizer.learning_rate))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._watching and self._rate > 0 and any(w.trainable for w in self._encoder):
            self._updates += self._counted() - self._count
            if self._updates >= self._due:
                self._check()

    def _counted(self) -> int:
        return int(np.asarray(self._classifier.optimizer.iterations))

    def _check(self) -> None:
        encoder, others = self._before
        if fingerprints(self._encoder) != encoder:
            self._watching = False
            return
        still = (
            f"The encoder is meant to train, and {self._updates} updates at a learning rate of "
            f"{self._rate:g} have moved none of its {len(encoder)} variables: "
            f"{_listed([weight.path for weight in self._encoder])}"
        )
        if fingerprints(self._others) != others:
            raise TrainingError(
                f"{still}. The rest of the model moves, so the encoder's gradient is zero, or too "
                "small to change a weight: see model.gradient_report(x, y), and look for constant "
                "features, a train_step that leaves it out, or a far too low learning rate."
            )
        # Nothing moves: all rows may weigh zero, or the loss be zero. That may pass.
        self._due *= 2
        if self._due > _LAST:
            self._watching = False
            warnings.warn(
                f"{still}; nor has anything else moved. See model.gradient_report(x, y).",
                stacklevel=2,
            )


def fingerprints(variables: Sequence[Any]) -> list[int]:
    """Return the sum over the bits of each variable: it changes when any weight does."""
    sums = []
    for variable in variables:
        value = tf.convert_to_tensor(variable.value)
        bits = tf.bitcast(value, _INTEGERS[value.dtype.size])
        if value.dtype.size < 4:
            bits = tf.cast(bits, tf.int32)
        sums.append(tf.cast(tf.reduce_sum(bits), tf.int64))  # overflow wraps round
    return np.asarray(tf.stack(sums)).tolist() if sums else []


def _multiplier(optimizer: Any, path: str) -> float:
    """Return what the learning rate of a variable is multiplied with; 0 keeps it as it is."""
    group = group_of(path, getattr(inner_of(optimizer), "parameter_groups", ()))
    return 1.0 if group is None else group.learning_rate_multiplier


def _listed(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"
