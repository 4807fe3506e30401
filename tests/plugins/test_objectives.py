"""Each objective against its paper's formula, in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import bertkit
from bertkit.errors import InputError, PluginError
from bertkit.objective import Step
from bertkit.testing import check_objective
from tests.bag import (
    INPUTS,
    MASK,
    TARGETS,
    WEIGHTS,
    Arithmetic,
    bag_model,
    gradients_by_differences,
)
from tests.saved_models import write_classifier, write_encoder, write_sentence_encoder
from tests.tiny_models import LABELS, TEXTS, tensors, tiny_encoder, tiny_model

OBJECTIVES = ["fgm", "free_lb", "mixup", "pgd", "r_drop", "smart", "supervised_contrastive"]
create = bertkit.objectives.create


def taken(
    model: bertkit.BertClassifier, weight: Any = WEIGHTS
) -> tuple[float, np.ndarray, dict[str, np.ndarray]]:
    """Return loss, logits and gradients of a step by a model's objective."""
    weight = None if weight is None else tf.constant(weight, tf.float32)
    with tf.GradientTape() as tape:
        step = Step(model, INPUTS, tf.constant(TARGETS, tf.int32), weight, tape)
        loss, logits = step.loss_of(model.objective)
    weights = {
        "table": model.encoder.table, "kernel": model.head.kernel, "bias": model.head.bias
    }  # fmt: skip
    gradients = tape.gradient(loss, list(weights.values()))
    dense = [np.asarray(tf.convert_to_tensor(gradient)) for gradient in gradients]
    return float(loss), logits.numpy(), dict(zip(weights, dense, strict=True))


def assert_follows(
    model: bertkit.BertClassifier, loss: Callable[[Arithmetic], float], weight: Any = WEIGHTS
) -> None:
    """Assert that loss and gradients are those of a formula."""
    arithmetic = Arithmetic.of(model)
    found, _, gradients = taken(model, weight)
    assert found == pytest.approx(loss(arithmetic), rel=1e-5)
    expected = gradients_by_differences(loss, arithmetic)
    for name, gradient in expected.items():
        assert np.abs(gradient).max() > 1e-3
        np.testing.assert_allclose(gradients[name], gradient, rtol=1e-3, atol=2e-5)


def row_norms(x: np.ndarray) -> np.ndarray:
    return np.sqrt((x**2).sum((1, 2), keepdims=True))


def mean(values: np.ndarray, weight: np.ndarray = WEIGHTS) -> float:
    return float((values * weight).mean())


def test_fgm_moves_each_row_along_its_gradient() -> None:
    model = bag_model(create("fgm", epsilon=0.7))
    start = Arithmetic.of(model)
    gradient = start.by_embeddings(start.embeddings())
    move = 0.7 * gradient / row_norms(gradient)
    assert_follows(
        model,
        lambda now: mean(now.losses(now.embeddings()) + now.losses(now.embeddings() + move)),
    )
    _, logits, _ = taken(model)
    np.testing.assert_allclose(logits, start.logits(start.embeddings()), atol=1e-5)


def test_pgd_stays_within_its_ball() -> None:
    model = bag_model(create("pgd", epsilon=0.5, step_size=0.3, steps=3))
    start = Arithmetic.of(model)
    move = np.zeros_like(start.embeddings())
    for _ in range(3):
        gradient = start.by_embeddings(start.embeddings() + move)
        move = move + 0.3 * gradient / row_norms(gradient)
        move *= np.minimum(1, 0.5 / row_norms(move))
    np.testing.assert_allclose(row_norms(move), 0.5)  # the third step left it
    assert_follows(
        model,
        lambda now: mean(now.losses(now.embeddings()) + now.losses(now.embeddings() + move)),
    )


@pytest.mark.parametrize("epsilon", [None, 0.25])
def test_free_lb_averages_over_its_steps(epsilon: float | None) -> None:
    model = bag_model(create("free_lb", steps=3, step_size=0.2, initial=0.0, epsilon=epsilon))
    start = Arithmetic.of(model)
    moves = [np.zeros_like(start.embeddings())]
    for _ in range(2):
        gradient = start.by_embeddings(start.embeddings() + moves[-1])
        move = moves[-1] + 0.2 * gradient / row_norms(gradient)
        if epsilon is not None:
            move *= np.minimum(1, epsilon / row_norms(move))
        moves.append(move)
    assert_follows(
        model,
        lambda now: mean(sum(now.losses(now.embeddings() + move) for move in moves) / 3),
    )


def test_free_lb_begins_at_random_within_its_cube() -> None:
    model = bag_model(create("free_lb", steps=1, initial=0.3))
    clean = model.encoder.embed_tokens(INPUTS["token_ids"])
    with tf.GradientTape() as tape:
        step = Step(model, INPUTS, tf.constant(TARGETS), None, tape)
        one, other = (model.objective._initial_move(clean, step).numpy() for _ in range(2))
    size = 0.3 / np.sqrt(MASK.sum(1) * clean.shape[-1])
    assert (np.abs(one) <= size[:, None, None] + 1e-7).all() and not np.array_equal(one, other)
    assert (np.abs(one).max((1, 2)) > size / 2).all()
    assert (one[MASK == 0] == 0).all()


def test_free_lb_has_one_dropout_for_all_steps() -> None:
    """With steps too small to matter, the mean over the steps is any of them."""
    losses = [
        taken(bag_model(create("free_lb", steps=n, step_size=1e-12, initial=0.0), dropout=0.5))[0]
        for n in (1, 4)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * (np.log(p) - np.log(q))).sum(1)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_r_drop_compares_two_dropouts() -> None:
    twin = bag_model(dropout=0.5)
    first, second = (np.float64(twin(INPUTS, training=True)) for _ in range(2))
    assert np.abs(first - second).max() > 0.1

    def by_bias(move: np.ndarray) -> float:
        p, q = softmax(first + move), softmax(second + move)
        losses = -np.log(p[np.arange(4), TARGETS]) - np.log(q[np.arange(4), TARGETS])
        return mean(losses + 0.7 * (divergence(p, q) + divergence(q, p)) / 2)

    loss, logits, gradients = taken(bag_model(create("r_drop", alpha=0.7), dropout=0.5))
    np.testing.assert_allclose(logits, first, atol=1e-6)
    assert loss == pytest.approx(by_bias(np.zeros(3)), rel=1e-5)
    by_differences = [(by_bias(1e-6 * unit) - by_bias(-1e-6 * unit)) / 2e-6 for unit in np.eye(3)]
    np.testing.assert_allclose(gradients["bias"], by_differences, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("weight", [None, WEIGHTS])
def test_mixup_mixes_embeddings_and_losses(weight: Any) -> None:
    model = bag_model(create("mixup", alpha=0.4))
    seeds = keras.random.SeedGenerator()
    seeds.state.assign(model.objective.seed_generator.state)
    one, other = (tf.random.stateless_gamma([4], seeds.next(), 0.4).numpy() for _ in range(2))
    share = np.float64(one / (one + other))
    others = np.argsort(tf.random.stateless_uniform([4], seeds.next()).numpy())
    assert sorted(others) != list(others) and 0 < share.min() < share.max() < 1
    both = np.maximum(MASK, MASK[others])
    of_rows = np.ones(4) if weight is None else weight

    def loss(now: Arithmetic) -> float:
        x = now.embeddings() * MASK[:, :, None]
        mixed = share[:, None, None] * x + (1 - share[:, None, None]) * x[others]
        now = now.moved(mask=both)
        own, of_others = now.losses(mixed), now.losses(mixed, TARGETS[others])
        return float((of_rows * share * own + of_rows[others] * (1 - share) * of_others).mean())

    assert_follows(model, loss, weight)


def test_mixup_takes_nothing_from_a_label_that_is_missing() -> None:
    keras.utils.set_random_seed(0)
    head = bertkit.heads.create("multiclass", labels=[0, 1, 2], dropout=0.0, ignore_missing=True)
    model = bertkit.BertClassifier(tiny_encoder(), head, objective="mixup")
    model.compile(keras.optimizers.SGD(0.0), head.make_loss(), metrics=[])
    seeds = keras.random.SeedGenerator()
    seeds.state.assign(model.objective.seed_generator.state)
    one, other = (tf.random.stateless_gamma([4], seeds.next(), 1.0).numpy() for _ in range(2))
    share = np.float64(one / (one + other))
    others = np.argsort(tf.random.stateless_uniform([4], seeds.next()).numpy())
    targets = np.array([0, np.nan, 2, 1], "float32")
    with tf.GradientTape() as tape:
        step = Step(model, INPUTS, tf.constant(targets), None, tape)
        loss, logits = step.loss_of(model.objective)
    logs = np.log(softmax(np.float64(logits)))

    def losses(targets: np.ndarray) -> np.ndarray:
        known = ~np.isnan(targets)
        return np.where(known, -logs[np.arange(4), np.where(known, targets, 0).astype(int)], 0)

    expected = (share * losses(targets) + (1 - share) * losses(targets[others])).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    gradients = tape.gradient(loss, model.trainable_weights)
    assert all(np.isfinite(tf.convert_to_tensor(g)).all() for g in gradients if g is not None)


def test_mixup_refuses_a_loss_of_pairs() -> None:
    head = bertkit.heads.create("regression", loss="pairwise_margin")
    text = bertkit.preprocessors.create("single_text", sequence_length=32)
    model = bertkit.BertClassifier(tiny_encoder(), head, text, "mixup")
    with pytest.raises(InputError) as caught:
        model.fit(TEXTS, LABELS["regression"], verbose=0)
    assert str(caught.value) == (
        "The objective mixup mixes the losses of single rows, and this loss has none: it compares "
        "rows. Take another, such as squared_error in place of pairwise_margin, or another "
        "objective."
    )


def test_smart_smooths_and_holds_back() -> None:
    options = {"smoothness": 5.0, "proximity": 3.0, "noise": 0.1, "step_size": 0.2}
    model = bag_model(create("smart", **options))
    teacher = Arithmetic.of(model)
    for weight in model.trainable_weights:  # away from the teacher
        weight.assign(np.asarray(weight) * 1.3)
    start = Arithmetic.of(model)
    seeds = keras.random.SeedGenerator()
    seeds.state.assign(model.objective.seed_generator.state)
    x = start.embeddings()
    noise = 0.1 * tf.random.stateless_normal(x.shape, seeds.next()).numpy() * MASK[:, :, None]

    def apart(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        return divergence(p, q) + divergence(q, p)

    fixed, gradient = start.probabilities(x), np.zeros_like(x)
    for index in zip(*np.nonzero(MASK), strict=True):
        for place in range(x.shape[-1]):
            for sign in (1, -1):
                near = x + noise
                near[(*index, place)] += sign * 1e-6
                value = apart(start.probabilities(near), fixed)[index[0]]
                gradient[(*index, place)] += sign * value / 2e-6
    move = noise + 0.2 * gradient / np.abs(gradient).max((1, 2), keepdims=True)

    def loss(now: Arithmetic) -> float:
        p, q = now.probabilities(now.embeddings()), now.probabilities(now.embeddings() + move)
        held = apart(p, teacher.probabilities(teacher.embeddings()))
        return mean(now.losses(now.embeddings()) + 5 * apart(p, q) + 3 * held)

    assert_follows(model, loss)


def test_smart_s_teacher_follows_and_is_not_saved(tmp_path: Path) -> None:
    model = bag_model(create("smart", momentum=0.75))
    before = np.array(model.encoder.table)
    assert len(model.weights) == 3 and len(model.objective.state) == 3
    model.compile(keras.optimizers.SGD(1.0), model.head.make_loss(), metrics=[])
    model.train_on_batch(INPUTS, TARGETS)
    teacher = model.objective.state[0]
    expected = 0.75 * before + 0.25 * np.array(model.encoder.table)
    np.testing.assert_allclose(teacher, expected, atol=1e-6)
    assert np.abs(np.array(teacher) - before).max() > 1e-3
    assert bag_model(create("smart", proximity=0)).objective.state == []
    model = tiny_model(objective="smart")
    plain = tiny_model()
    for each, name in ((model, "smart"), (plain, "plain")):
        each.fit(TEXTS, LABELS["binary"], verbose=0)
        each.save(tmp_path / f"{name}.keras")
    sizes = [(tmp_path / f"{name}.keras").stat().st_size for name in ("smart", "plain")]
    assert sizes[0] < 1.05 * sizes[1]


def test_smart_draws_its_noise_anew_in_each_step() -> None:
    model = bag_model(create("smart"))
    seeds = model.objective.seed_generator.state
    found = []
    for _ in range(3):
        taken(model)
        found.append(seeds.numpy().tolist())
    assert [state[1] for state in found] == [1, 2, 3]


def test_a_chain_hands_on_the_state_of_its_members() -> None:
    chain = create("chain", objectives=[{"plugin": "smart"}, {"plugin": "r_drop"}])
    bag_model(chain)
    assert len(chain.state) == 3 and chain.state == chain.objectives[0].state


def test_smart_s_teacher_lives_as_long_as_an_optimizer() -> None:
    model = bag_model(create("smart"))
    first = model.objective.state[0]
    model.train_on_batch(INPUTS, TARGETS)
    assert model.objective.state[0] is first
    model.encoder.table.assign(np.asarray(model.encoder.table) + 1)
    model.compile(keras.optimizers.SGD(0.0), model.head.make_loss(), metrics=[])
    model.train_on_batch(INPUTS, TARGETS)
    np.testing.assert_array_equal(model.objective.state[0], model.encoder.table)


@pytest.mark.parametrize("name", ["fgm", "free_lb", "pgd", "smart"])
def test_an_overflow_of_the_scaled_loss_is_no_divergence(name: str) -> None:
    """The optimizer leaves such a step out; the loss that is shown is finite all the same."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = tiny_model("binary", objective=create(name))
    finally:
        keras.config.set_dtype_policy(policy)
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.0), initial_scale=2.0**40
    )
    model.compile(optimizer, metrics=[], run_eagerly=True)
    for _ in range(2):
        loss = model.train_on_batch(tensors(), LABELS["binary"])
        assert np.isfinite(loss).all()
    assert float(optimizer.dynamic_scale) < 2.0**40


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_smart_s_noise_is_not_lost_to_rounding(policy: str) -> None:
    model = bag_model(create("smart"))
    model.encoder.dtype_policy = keras.DTypePolicy(policy)
    clean = model.encoder.embed_tokens(INPUTS["token_ids"])
    step = Step(model, INPUTS, tf.constant(TARGETS), None, tf.GradientTape())
    move = np.asarray(model.objective._initial_move(clean, step))[MASK > 0]
    deviation = {"mixed_float16": 2.0**-13, "mixed_bfloat16": 2.0**-10}[policy]
    assert np.std(move) == pytest.approx(deviation, rel=0.5)


def contrast_by_loops(units: np.ndarray, labels: np.ndarray, temperature: float) -> np.ndarray:
    rows = []
    for i in range(len(labels)):
        others = [a for a in range(len(labels)) if a != i]
        alike = [p for p in others if labels[p] == labels[i]]
        total = sum(np.exp(units[i] @ units[a] / temperature) for a in others)
        terms = [np.log(np.exp(units[i] @ units[p] / temperature) / total) for p in alike]
        rows.append(-sum(terms) / len(terms) if terms else 0.0)
    return np.array(rows)


def test_supervised_contrastive_draws_rows_of_one_label_together() -> None:
    objective = create("supervised_contrastive", weight=0.6, temperature=0.4)

    def loss(now: Arithmetic) -> float:
        x = now.embeddings()
        pooled = (x * MASK[:, :, None]).sum(1) / MASK.sum(1)[:, None]
        units = pooled / np.sqrt((pooled**2).sum(1, keepdims=True))
        contrast = contrast_by_loops(units, TARGETS, 0.4)
        assert (contrast == 0).sum() == 2  # two rows are the only ones of their label
        return mean(0.4 * now.losses(x) + 0.6 * contrast)

    assert_follows(bag_model(objective), loss)


def test_a_row_without_a_label_is_in_no_contrast() -> None:
    generator = np.random.default_rng(0)
    pooled = generator.normal(size=(7, 5)).astype("float32")
    labels = np.array([0, 1, np.nan, 0, np.nan, 1, 1], "float32")
    objective: Any = create("supervised_contrastive", temperature=0.4)
    known = ~np.isnan(labels)
    units = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    found = objective.contrast(tf.constant(pooled), tf.constant(labels)).numpy()
    assert not found[~known].any()
    wanted = contrast_by_loops(units[known], labels[known], 0.4)
    np.testing.assert_allclose(found[known], wanted, rtol=1e-5)


@pytest.mark.parametrize("row", [0, 1])  # of a label of its own, and of one with another row
def test_a_row_of_weight_0_is_in_no_contrast(row: int) -> None:
    weight = np.where(np.arange(len(TARGETS)) == row, 0.0, WEIGHTS)
    counting = weight > 0

    def loss(now: Arithmetic) -> float:
        x = now.embeddings()
        pooled = (x * MASK[:, :, None]).sum(1) / MASK.sum(1)[:, None]
        units = pooled / np.sqrt((pooled**2).sum(1, keepdims=True))
        contrast = np.zeros(len(weight))
        contrast[counting] = contrast_by_loops(units[counting], TARGETS[counting], 0.4)
        return mean(0.4 * now.losses(x) + 0.6 * contrast, weight)

    objective = create("supervised_contrastive", weight=0.6, temperature=0.4)
    assert_follows(bag_model(objective), loss, weight)


@pytest.mark.parametrize("head", ["multi_label", "regression"])
def test_supervised_contrastive_wants_one_label_a_row(head: str) -> None:
    model = tiny_model(head, objective="supervised_contrastive")
    with pytest.raises(InputError, match=r"one label a row .* Use binary or multiclass"):
        model.fit(TEXTS, LABELS[head], verbose=0)


# --- what objectives have in common


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_ships_passes_the_checker(name: str) -> None:
    check_objective(name)


def test_a_chain_passes_the_checker() -> None:
    check_objective("chain", "binary", [0, 1], objectives=[{"plugin": "fgm"}, {"plugin": "r_drop"}])


def test_every_objective_that_is_installed_is_tested() -> None:
    assert set(OBJECTIVES) | {"chain", "distillation"} == set(bertkit.objectives.names())


def test_the_outer_objective_of_a_chain_has_the_inner_one_s_loss() -> None:
    """Without dropout, R-Drop's loss is twice the head's."""
    chain = create("chain", objectives=[{"plugin": "fgm", "epsilon": 0.7}, {"plugin": "r_drop"}])
    loss, _, gradients = taken(bag_model(chain))
    alone, _, of_alone = taken(bag_model(create("fgm", epsilon=0.7)))
    assert loss == pytest.approx(2 * alone, rel=1e-5)
    for name in gradients:
        np.testing.assert_allclose(gradients[name], 2 * of_alone[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ([], "two objectives or more"),
        ([{"plugin": "fgm"}], "two objectives or more"),
        (["fgm", "r_drop"], "'fgm' is no objective. Give a mapping of its plugin"),
        ([{"plugin": "mixup"}, {"plugin": "fgm"}], "Mixup computes the head's loss itself"),
    ],
)
def test_a_chain_that_cannot_be(objectives: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        create("chain", objectives=objectives)


def test_a_misspelt_objective_in_a_chain_is_named() -> None:
    with pytest.raises(PluginError, match="Did you mean 'r_drop'"):
        create("chain", objectives=[{"plugin": "fgm"}, {"plugin": "rdrop"}])


def test_a_wrong_number_in_a_chain_says_of_what() -> None:
    with pytest.raises(InputError, match=r"^The objective 'chain': The objective 'pgd': steps is"):
        create("chain", objectives=[{"plugin": "fgm"}, {"plugin": "pgd", "steps": 0}])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("fgm", {"epsilon": "big"}, "epsilon is 'big'. Give a finite number above 0"),
        ("fgm", {"epsilon": 0}, "epsilon is 0. Give a finite number above 0"),
        ("pgd", {"steps": 0}, "steps is 0. Give a whole number above 0"),
        ("free_lb", {"initial": -1}, "initial is -1. Give a finite number, 0 or more"),
        ("r_drop", {"alpha": float("nan")}, "alpha is nan"),
        ("smart", {"momentum": 1.0}, "momentum is 1.0. Give a number from 0 to below 1"),
        ("supervised_contrastive", {"weight": 1.5}, "weight is 1.5. It is a share"),
        ("distillation", {"teacher": "x", "alpha": 2}, "alpha is 2. It is a share"),
    ],
)
def test_numbers_that_make_no_sense(name: str, arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        create(name, **arguments)


class Sealed(bertkit.BertEncoder):
    """Takes no embeddings, as a graph of TF Hub's does not."""

    embed_tokens = bertkit.Encoder.embed_tokens


@pytest.mark.parametrize("name", ["fgm", "pgd", "free_lb", "smart", "mixup"])
def test_an_encoder_that_takes_no_embeddings_is_refused(name: str) -> None:
    encoder = Sealed(**{**tiny_encoder().get_config(), "name": "sealed"})
    encoder.vocabulary = tiny_encoder().vocabulary
    text = bertkit.preprocessors.create("single_text", sequence_length=32)
    model = bertkit.BertClassifier(encoder, "binary", text, name)
    with pytest.raises(InputError, match=r"Sealed takes none.*Use an encoder that is a BertEncode"):
        model.fit(TEXTS, LABELS["binary"], verbose=0)


# --- distillation


@pytest.fixture(scope="module")
def teacher() -> bertkit.BertClassifier:
    model = tiny_model("multiclass", seed=7)
    model.fit(TEXTS, LABELS["multiclass"], epochs=2, verbose=0)
    return model


def distilled(source: Path, head: str = "multiclass", **options: Any) -> tuple[float, np.ndarray]:
    """Return the loss of a step under a teacher, without dropout, and the student's logits."""
    objective = create("distillation", teacher=str(source), **options)
    model = tiny_model(head, objective=objective, dropout=0.0, attention_dropout=0.0)
    model.head.dropout = 0.0
    model.compile(keras.optimizers.SGD(0.0), metrics=[], run_eagerly=True)
    loss = model.train_on_batch(tensors(), LABELS[head])
    return float(np.asarray(loss).reshape(-1)[0]), model.predict(tensors(), verbose=0)


def hinton(student: np.ndarray, taught: np.ndarray, targets: Any, share: float, t: float) -> float:
    own = -np.log(softmax(np.float64(student))[np.arange(len(targets)), targets]).mean()
    p, q = softmax(np.float64(taught) / t), softmax(np.float64(student) / t)
    return float((1 - share) * own + share * t**2 * divergence(p, q).mean())


def test_distillation_from_a_run(teacher: bertkit.BertClassifier, tmp_path: Path) -> None:
    bertkit.save(teacher, tmp_path / "teacher")
    loss, logits = distilled(tmp_path / "teacher", alpha=0.3, temperature=3.0)
    taught = teacher.predict(tensors(), verbose=0)
    expected = hinton(logits, taught, LABELS["multiclass"], 0.3, 3.0)
    assert loss == pytest.approx(expected, rel=1e-4)


def test_a_teacher_has_no_use_for_features(teacher: bertkit.BertClassifier, tmp_path: Path) -> None:
    bertkit.save(teacher, tmp_path / "teacher")
    objective = create("distillation", teacher=str(tmp_path / "teacher"))
    model = tiny_model("multiclass", objective=objective)
    with pytest.raises(InputError, match="Distillation needs tokens, and features, which"):
        model.train_on_batch(model.features(TEXTS), LABELS["multiclass"])


def test_distillation_from_a_hugging_face_folder(
    teacher: bertkit.BertClassifier, tmp_path: Path
) -> None:
    bertkit.export(teacher, tmp_path / "theirs", "huggingface")
    loss, logits = distilled(tmp_path / "theirs")
    taught = teacher.predict(tensors(), verbose=0)
    assert loss == pytest.approx(hinton(logits, taught, LABELS["multiclass"], 0.5, 2.0), rel=1e-4)
    # Labels in another order are brought into the student's.
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    config["id2label"] = {"0": "2", "1": "0", "2": "1"}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    loss, logits = distilled(tmp_path / "theirs")
    turned = hinton(logits, taught[:, [1, 2, 0]], LABELS["multiclass"], 0.5, 2.0)
    assert loss == pytest.approx(turned, rel=1e-4)


def test_distillation_of_two_labels_into_one_logit(tmp_path: Path) -> None:
    model = tiny_model("binary", seed=5)
    model.head.kernel.assign(10 * np.random.default_rng(0).normal(size=model.head.kernel.shape))
    bertkit.export(model, tmp_path / "theirs", "huggingface")
    loss, logits = distilled(tmp_path / "theirs", "binary", alpha=1.0, temperature=1.0)
    taught = model.predict(tensors(), verbose=0)
    zeros = np.zeros_like(logits)
    p, q = (softmax(np.float64(np.concatenate([zeros, x], axis=1))) for x in (taught, logits))
    assert loss == pytest.approx(divergence(p, q).mean(), rel=1e-4)
    assert loss > 0.01


def test_distillation_from_a_saved_model(teacher: bertkit.BertClassifier, tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "theirs", teacher)
    loss, logits = distilled(folder, alpha=0.3, temperature=3.0)
    taught = teacher.predict(tensors(), verbose=0)
    expected = hinton(logits, taught, LABELS["multiclass"], 0.3, 3.0)
    assert loss == pytest.approx(expected, rel=1e-4)
    # In the steps of `fit`, in parts too.
    model = tiny_model("multiclass", objective=create("distillation", teacher=str(folder)))
    history = model.fit(TEXTS, LABELS["multiclass"], micro_batch_size=4, verbose=0)
    assert np.isfinite(history.history["loss"]).all()


def test_distillation_from_a_saved_model_of_two_labels(tmp_path: Path) -> None:
    model = tiny_model("binary", seed=5)
    model.head.kernel.assign(10 * np.random.default_rng(0).normal(size=model.head.kernel.shape))
    losses = [
        distilled(write_classifier(tmp_path / outputs, model, outputs=outputs), "binary")[0]
        for outputs in ("logits", "pair")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    bertkit.export(model, tmp_path / "theirs", "huggingface")
    assert losses[0] == pytest.approx(distilled(tmp_path / "theirs", "binary")[0], rel=1e-5)


def test_distillation_from_strings(tmp_path: Path) -> None:
    """From a teacher that takes strings into a student that does; each gives 16 numbers a row."""
    source = write_sentence_encoder(tmp_path / "theirs", seed=1)
    encoder = bertkit.encoders.create("tfhub", source=str(write_sentence_encoder(tmp_path / "own")))
    head = bertkit.heads.create("multiclass", labels=list(range(16)), dropout=0.0)
    objective = create("distillation", teacher=str(source), alpha=0.3, temperature=3.0)
    model = bertkit.BertClassifier(encoder, head, "text_bytes", objective)
    model.compile(keras.optimizers.SGD(0.0), metrics=[])
    loss = float(model.train_on_batch(TEXTS, list(range(11))))
    taught = tf.saved_model.load(str(source))(tf.constant(TEXTS)).numpy()
    logits = model.predict(TEXTS, verbose=0)
    assert loss == pytest.approx(hinton(logits, taught, list(range(11)), 0.3, 3.0), rel=1e-4)


def test_saved_models_that_cannot_teach(teacher: bertkit.BertClassifier, tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder")
    with pytest.raises(InputError, match=r"There is no teacher in .*, and no classifier: it must"):
        distilled(encoder)
    more = write_classifier(tmp_path / "more", teacher, outputs="more")
    with pytest.raises(InputError, match=r"no classifier: .* alone\. It has: a call of .* Export"):
        distilled(more)
    texts = write_sentence_encoder(tmp_path / "texts")
    with pytest.raises(InputError, match=r"takes strings, and the batches .* hold token ids\. Exp"):
        distilled(texts)
    nameless = write_classifier(tmp_path / "nameless", teacher, vocabulary=False)
    with pytest.raises(InputError, match=r"does not tell its vocabulary.* Export it with vocab_f"):
        distilled(nameless)
    folder = write_classifier(tmp_path / "theirs", teacher)
    with pytest.raises(InputError, match=r"gives 3 logits a row, and 1 are wanted\. .*\['neg', 'p"):
        distilled(folder, "binary")
    (folder / "saved_model.pb").write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"There is no teacher in .*saved_model\.pb is cut short"):
        distilled(folder)
    other = tiny_model("multiclass")
    other.encoder.vocabulary = bertkit.Vocabulary(other.encoder.vocabulary.tokens[:-1])
    with pytest.raises(InputError, match="has another vocabulary than the encoder"):
        distilled(write_classifier(tmp_path / "other", other))


def test_teachers_that_cannot_teach(teacher: bertkit.BertClassifier, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no teacher in .*nowhere.*is no run folder"):
        distilled(tmp_path / "nowhere")
    bertkit.save(teacher, tmp_path / "teacher")
    with pytest.raises(InputError, match="does single_label_classification, and the head regress"):
        distilled(tmp_path / "teacher", "regression")
    with pytest.raises(InputError, match=r"knows the labels \[0, 1, 2\], and the head"):
        distilled(tmp_path / "teacher", "binary")
    other = tiny_model("multiclass")
    other.encoder.vocabulary = bertkit.Vocabulary(other.encoder.vocabulary.tokens[:-1])
    bertkit.save(other, tmp_path / "other")
    with pytest.raises(InputError, match="has another vocabulary than the encoder"):
        distilled(tmp_path / "other")


def test_a_teacher_is_neither_trained_nor_saved(
    teacher: bertkit.BertClassifier, tmp_path: Path
) -> None:
    bertkit.save(teacher, tmp_path / "teacher")
    objective = create("distillation", teacher=str(tmp_path / "teacher"))
    model = tiny_model("multiclass", objective=objective)
    model.fit(TEXTS, LABELS["multiclass"], epochs=2, verbose=0)
    assert len(model.weights) == len(tiny_model("multiclass").weights)
    model.save(tmp_path / "model.keras")
    (tmp_path / "teacher").rename(tmp_path / "gone")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(TEXTS, verbose=0), model.predict(TEXTS, verbose=0))
    with pytest.raises(InputError, match="There is no teacher in"):
        loaded.fit(TEXTS, LABELS["multiclass"], verbose=0)
