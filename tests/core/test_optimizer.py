"""AdamW against Keras's own, and the schedule against its formula."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from bertkit.errors import InputError
from bertkit.training.groups import ParameterGroup
from bertkit.training.optimizer import AdamW, layer_decay
from bertkit.training.schedule import WarmupSchedule
from tests.tiny_models import assert_same, tiny_model, weights_of

OPTIONS = {"learning_rate": 1e-3, "weight_decay": 0.1}
STEPS = 20
ROWS, WIDTH = 30, 4  # of the embedding table


class Reference(keras.optimizers.AdamW):
    """Keras's AdamW, told by its own means to leave vectors undecayed.

    A sparse gradient is made dense: of a row that is there twice, such as a word that a batch
    repeats, Keras adds the squares where the square of the sum is meant.
    """

    def _clip_gradients(self, gradients: Any) -> Any:
        return super()._clip_gradients([tf.convert_to_tensor(one) for one in gradients])

    def build(self, variables: list[Any]) -> None:
        vectors = [variable for variable in variables if len(variable.shape) < 2]
        if vectors:
            self.exclude_from_weight_decay(var_list=vectors)
        super().build(variables)


def variables() -> list[keras.Variable]:
    """Return a table, a matrix, a vector and a scalar with the same numbers each time."""
    random = np.random.default_rng(0)
    shapes: list[tuple[int, ...]] = [(ROWS, WIDTH), (WIDTH, 3), (3,), ()]
    return [keras.Variable(random.normal(size=shape).astype("float32")) for shape in shapes]


def gradients(step: int, sparse: bool) -> list[Any]:
    random = np.random.default_rng([7, step])
    scale = 10.0 ** random.uniform(-4, 2)
    made: list[Any] = [
        tf.constant((scale * random.normal(size=shape)).astype("float32"))
        for shape in [(ROWS, WIDTH), (WIDTH, 3), (3,), ()]
    ]
    if sparse:  # as of an embedding; an index twice, and most rows not at all
        rows = tf.constant([3, 3, 17, int(random.integers(ROWS))])
        made[0] = tf.IndexedSlices(made[0][:4], rows, tf.constant([ROWS, WIDTH]))
    return made


def trained(
    optimizer: keras.optimizers.Optimizer, sparse: bool, graph: bool
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the variables, and the optimizer's state, after some steps."""
    made = variables()
    optimizer.build(made)

    def apply(*grads: Any) -> None:
        optimizer.apply(list(grads), made)

    step = tf.function(apply) if graph else apply
    for index in range(STEPS):
        step(*gradients(index, sparse))
    return [np.array(x) for x in made], [np.array(x) for x in optimizer.variables]


def assert_close(
    found: list[np.ndarray], expected: list[np.ndarray], rtol: float, atol: float
) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.0},
        {"beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3},
        {"clipnorm": 0.1},
        {"global_clipnorm": 0.5},
        {"clipvalue": 0.05},
        {"gradient_accumulation_steps": 4},
        {"learning_rate": WarmupSchedule(1e-3, STEPS, 5)},
        {"use_ema": True, "ema_momentum": 0.9},
    ],
    ids=lambda options: ",".join(options) or "default",
)
def test_as_keras(options: dict[str, Any], sparse: bool, graph: bool) -> None:
    (found, state), (expected, expected_state) = (
        trained(cls(**{**OPTIONS, **options}), sparse, graph) for cls in (AdamW, Reference)
    )
    assert_close(found, expected, rtol=1e-6, atol=1e-6)
    # The kernel has 1 - beta in float32, where Keras rounds only the product.
    *state, begun = state
    assert_close(state, expected_state, rtol=1e-4, atol=1e-6)
    assert not begun.any()  # all variables have been there from the beginning
    assert not np.allclose(found[0], np.array(variables()[0]), atol=1e-3)  # it has moved


def test_one_variable_alone() -> None:
    """As Keras's `update_step` can be called."""
    gradient, results = tf.constant([0.5, -2.0]), []
    for cls in (AdamW, keras.optimizers.AdamW):
        optimizer, variable = cls(0.1), keras.Variable([1.0, 2.0])
        optimizer.build([variable])
        optimizer.update_step(gradient, variable, 0.1)
        results.append(variable.numpy())
    np.testing.assert_allclose(*results, rtol=1e-6)


def test_vectors_are_not_decayed() -> None:
    made = variables()
    before = [np.array(variable) for variable in made]
    optimizer = AdamW(**OPTIONS)
    optimizer.build(made)
    optimizer.apply([tf.zeros(variable.shape) for variable in made], made)
    for variable, old in zip(made, before, strict=True):
        factor = 1 - 1e-3 * 0.1 if old.ndim > 1 else 1.0
        np.testing.assert_allclose(np.array(variable), old * factor, rtol=1e-6)


def small_model(optimizer: Any, precision: str = "float32") -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.layers.Embedding(20, 8, dtype=precision),
            keras.layers.Flatten(dtype=precision),
            keras.layers.Dense(8, activation="tanh", dtype=precision),
            keras.layers.Dense(1, dtype="float32"),
        ]
    )
    model.build((None, 5))
    if precision == "mixed_float16":
        # It starts so high that the first steps overflow and are left out.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**40)
    model.compile(optimizer=optimizer, loss="mse", jit_compile=False)
    return model


def data() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    return random.integers(0, 20, (70, 5)), random.normal(size=(70, 1)).astype("float32")


@pytest.mark.parametrize("precision", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_in_a_model(precision: str) -> None:
    models = [small_model(cls(**OPTIONS), precision) for cls in (AdamW, Reference)]
    for model in models:
        model.fit(*data(), batch_size=8, epochs=3, shuffle=False, verbose=0)
    own, keras_own = models
    if precision == "mixed_float16":
        scales = [float(model.optimizer.dynamic_scale) for model in models]
        assert scales[0] == scales[1] < 2.0**40
        iterations = [int(model.optimizer.inner_optimizer.iterations) for model in models]
        assert 0 < iterations[0] == iterations[1] < 27
    # In half precision a rounding of the last bit moves a gradient by a thousandth.
    tolerance = 2e-6 if precision == "float32" else 2e-3
    for one, other in zip(own.weights, keras_own.weights, strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other), atol=tolerance)


def test_saved_and_loaded(tmp_path: Path) -> None:
    schedule = WarmupSchedule(0.01, 60, 6, "cosine")
    model = small_model(AdamW(schedule, weight_decay=0.1, clipnorm=1.0))
    model.fit(*data(), batch_size=8, epochs=2, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is AdamW
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert isinstance(loaded.optimizer._learning_rate, WarmupSchedule)
    assert int(loaded.optimizer.iterations) == 18
    assert_same(weights_of(loaded), weights_of(model))
    for each in (model, loaded):
        each.fit(*data(), batch_size=8, epochs=2, shuffle=False, verbose=0)
    assert_same(weights_of(loaded), weights_of(model))


@pytest.mark.parametrize("options", [{}, {"global_clipnorm": 0.05, "use_ema": True}])
def test_under_a_strategy(options: dict[str, Any]) -> None:
    """Two replicas, of which each sees half a batch, take the steps of one that sees it all."""
    code = """
import json, sys
import numpy as np, tensorflow as tf
from tests.core import test_optimizer as tests
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
weights = []
for scope in (strategy.scope, tf.distribute.get_strategy().scope):
    with scope():
        optimizer = tests.AdamW(**tests.OPTIONS, **json.loads(sys.argv[1]))
        model = tests.small_model(optimizer)
    model.fit(tests.data()[0][:64], tests.data()[1][:64], batch_size=8, epochs=2, shuffle=False,
              verbose=0)
    state = [np.array(variable) for variable in model.optimizer.variables]
    weights.append([np.array(weight) for weight in model.weights] + state)
print(json.dumps([float(np.abs(a - b).max()) for a, b in zip(*weights, strict=True)]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(options)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    differences = json.loads(done.stdout.splitlines()[-1])
    assert len(differences) > 10 and max(differences) < 1e-5


def schedule_by_numpy(peak: float, steps: int, warmup: int, decay: str) -> np.ndarray:
    """Return the learning rate of each step, and of some after the last."""
    rates = []
    for step in range(steps + 3):
        if step < warmup:
            rates.append(peak * (step + 1) / warmup)
        else:
            done = min((step - warmup) / max(steps - warmup, 1), 1.0)
            rates.append(
                peak
                * {
                    "linear": 1 - done,
                    "cosine": (1 + np.cos(np.pi * done)) / 2,
                    "constant": 1.0,
                }[decay]
            )
    return np.array(rates)


@pytest.mark.parametrize("decay", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(
    ("steps", "warmup"), [(10, 0), (10, 1), (10, 3), (10, 10), (1, 0), (1, 1), (97, 13)]
)
def test_schedule(steps: int, warmup: int, decay: Any) -> None:
    schedule = WarmupSchedule(5e-5, steps, warmup, decay)
    rates = np.array([schedule(step) for step in range(steps + 3)])
    expected = schedule_by_numpy(5e-5, steps, warmup, decay)
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-11)
    assert rates[:steps].min() > 0  # no step is wasted
    assert rates[:steps].max() == pytest.approx(5e-5)
    again = WarmupSchedule.from_config(json.loads(json.dumps(schedule.get_config())))
    assert [float(again(step)) for step in range(steps)] == rates[:steps].tolist()
    assert schedule(tf.constant(0, tf.int64)).dtype == tf.float32


@pytest.mark.parametrize(("steps", "warmup"), [(10, 0), (10, 3), (97, 13)])
def test_cosine_is_that_of_keras(steps: int, warmup: int) -> None:
    """After the warm-up, which in Keras begins with a step at a learning rate of zero."""
    ours = WarmupSchedule(5e-5, steps, warmup, "cosine")
    reference = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, warmup_target=5e-5, warmup_steps=warmup
    ) if warmup else keras.optimizers.schedules.CosineDecay(5e-5, steps)  # fmt: skip
    found, expected = (
        [float(schedule(step)) for step in range(warmup, steps + 3)]
        for schedule in (ours, reference)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-11)


def test_the_schedule_drives_the_optimizer() -> None:
    made = [keras.Variable(np.zeros((2, 2), "float32"))]
    optimizer = AdamW(WarmupSchedule(0.1, 8, 2), weight_decay=0.0)
    optimizer.build(made)
    moved = []
    for _ in range(8):
        before = np.array(made[0])
        optimizer.apply([tf.ones((2, 2))], made)  # a constant gradient moves by the rate
        moved.append(float((before - np.array(made[0])).max()))
    np.testing.assert_allclose(moved, schedule_by_numpy(0.1, 8, 2, "linear")[:8], rtol=1e-4)


def named_variables() -> list[keras.Variable]:
    """Return those of `variables` under the paths "table", "kernel", "bias" and "scale"."""
    names = ("table", "kernel", "bias", "scale")
    return [keras.Variable(v.numpy(), name=n) for n, v in zip(names, variables(), strict=True)]


def adamw_by_numpy(
    values: list[np.ndarray],
    steps: list[list[np.ndarray]],
    rates: list[float],
    decays: list[float],
    clip_norm: float = np.inf,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-7,
) -> list[np.ndarray]:
    """Return float64 values after steps of AdamW, each value with its own rate and decay."""
    values = [np.asarray(value, "float64") for value in values]
    moments = [(np.zeros_like(value), np.zeros_like(value)) for value in values]
    for step, gradients in enumerate(steps, 1):
        norm = np.sqrt(sum(np.square(np.asarray(g, "float64")).sum() for g in gradients))
        for index, gradient in enumerate(gradients):
            g = np.asarray(gradient, "float64") * min(1.0, clip_norm / norm)
            first, second = moments[index]
            first = betas[0] * first + (1 - betas[0]) * g
            second = betas[1] * second + (1 - betas[1]) * g**2
            moments[index] = first, second
            unbiased = np.sqrt(1 - betas[1] ** step) / (1 - betas[0] ** step)
            values[index] = values[index] * (1 - rates[index] * decays[index])
            values[index] -= rates[index] * unbiased * first / (np.sqrt(second) + epsilon)
    return values


def test_groups_have_a_learning_rate_and_a_weight_decay_of_their_own() -> None:
    """Against NumPy. The first that matches counts; a decay that is given decays vectors too."""
    groups = [
        ParameterGroup("^table$", 0.25),
        ParameterGroup("table|bias", 1.0, weight_decay=0.5),
        ParameterGroup("scale|bias", 0.0, weight_decay=0.0),
    ]
    made = named_variables()
    optimizer = AdamW(1e-2, groups, weight_decay=0.1)
    steps = [gradients(step, False) for step in range(6)]
    for grads in steps:
        optimizer.apply_gradients(zip(grads, made, strict=True))
    rates, decays = [2.5e-3, 1e-2, 1e-2, 0.0], [0.1, 0.1, 0.5, 0.0]
    expected = adamw_by_numpy([v.numpy() for v in variables()], steps, rates, decays)
    assert_close([v.numpy() for v in made], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(made[3].numpy(), variables()[3].numpy())


@pytest.mark.parametrize("scale", [None, 2.0**12], ids=["float32", "scaled"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_the_norm_of_the_whole_gradient_is_clipped(sparse: bool, scale: float | None) -> None:
    """Against NumPy. Gradients of float16 come scaled, and are clipped unscaled."""
    steps = [gradients(step, sparse) for step in range(8)]
    dense = [[tf.convert_to_tensor(g).numpy() for g in grads] for grads in steps]
    norms = [np.sqrt(sum(np.square(g).sum() for g in grads)) for grads in dense]
    assert min(norms) < 1 < max(norms)
    optimizer: Any = AdamW(1e-2, weight_decay=0.0, global_clipnorm=1.0)
    if scale:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=scale)
    made = variables()
    optimizer.build(made)
    for grads in steps:
        # The loss is scaled where it is computed, so a sparse gradient is scaled in its values.
        scaled = [
            tf.IndexedSlices(g.values * (scale or 1), g.indices, g.dense_shape)
            if isinstance(g, tf.IndexedSlices)
            else g * (scale or 1)
            for g in grads
        ]
        optimizer.apply_gradients(zip(scaled, made, strict=True))
    start = [v.numpy() for v in variables()]
    expected = adamw_by_numpy(start, dense, [1e-2] * 4, [0.0] * 4, clip_norm=1.0)
    assert_close([v.numpy() for v in made], expected, rtol=1e-5, atol=1e-6)
    unclipped = adamw_by_numpy(start, dense, [1e-2] * 4, [0.0] * 4)
    assert np.abs(unclipped[1] - expected[1]).max() > 1e-3  # it matters


def test_a_group_decides_over_what_is_excluded_from_weight_decay() -> None:
    made = named_variables()
    optimizer = AdamW(1e-2, [ParameterGroup("kernel", weight_decay=0.1)], weight_decay=0.2)
    optimizer.exclude_from_weight_decay(var_names=["table", "kernel"])
    optimizer.apply_gradients([(tf.zeros(v.shape), v) for v in made])
    for variable, old, decay in zip(made, variables(), (0, 0.1, 0, 0), strict=True):
        np.testing.assert_allclose(variable.numpy(), old.numpy() * (1 - 1e-2 * decay), rtol=1e-6)


def test_groups_are_saved_and_loaded(tmp_path: Path) -> None:
    groups = [ParameterGroup("embedding", 0.5), ParameterGroup("bias", 2.0, 0.3)]
    model = small_model(AdamW(0.01, groups, weight_decay=0.1))
    model.fit(*data(), batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert list(loaded.optimizer.parameter_groups) == groups
    for each in (model, loaded):
        each.fit(*data(), batch_size=8, shuffle=False, verbose=0)
    assert_same(weights_of(loaded), weights_of(model))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ParameterGroup("a", -1.0),
         "The learning_rate_multiplier of the parameter group 'a' is -1.0. Give a finite number, "
         "0 or more."),
        (lambda: ParameterGroup("a", weight_decay=float("inf")),
         "The weight_decay of the parameter group 'a' is inf. Give a finite number, 0 or more."),
        (lambda: ParameterGroup("layer_("),
         "'layer_(' is no regular expression (missing ), unterminated subpattern at position 6). "
         "It is searched in the paths of variables: give one such as 'layer_0/'."),
        (lambda: AdamW(1e-3, [ParameterGroup("kernal")]).build(named_variables()),
         "The parameter group 'kernal' matches no variable that is trained. Near are: kernel, "
         "table, scale. Give a regular expression that is found in a path."),
    ],
)  # fmt: skip
def test_groups_that_cannot_be_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value) == message


def test_layers_learn_ever_less_towards_the_embeddings() -> None:
    model = tiny_model("binary")
    optimizer = AdamW(1e-3, layer_decay(model.encoder, 0.5))
    weights = model.trainable_weights
    optimizer.build(weights)
    found = {
        weight.path.split("/")[-2]: group.learning_rate_multiplier if group else 1.0
        for weight, group in zip(weights, optimizer._groups, strict=True)
    }
    assert len(model.encoder.transformer_layers) == 1
    assert (found["embeddings"], found["layer_0"], found["pooler"]) == (0.25, 0.5, 1.0)
    model.encoder.embeddings.trainable = False
    (group,) = layer_decay(model.encoder, 0.5)
    assert "layer_0" in group.match and group.learning_rate_multiplier == 0.5
