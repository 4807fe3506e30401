"""Time bertkit's training step on one batch, and the products in it, in one process."""

from __future__ import annotations

import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import bertkit
from benchmarks.flops import LARGE, Product, Size, step_products
from benchmarks.programs.common import arguments, finish, median_seconds
from bertkit.training.optimizer import AdamW

OPERANDS = 4  # products in a call, of different operands: TensorFlow merges equal ones
REPEATS = 9


def train_step() -> Any:
    """Return a function that takes one step on a batch of random tokens, none of them padding."""
    model = bertkit.BertClassifier(
        bertkit.encoders.create("huggingface", source=given["source"]),
        bertkit.heads.create("binary", labels=["negative", "positive"]),
    )
    model.compile(
        optimizer=AdamW(5e-5, weight_decay=0.01),
        loss=model.head.make_loss(),
        metrics=model.head.make_metrics(),
    )
    random = np.random.default_rng(0)
    ids = random.integers(1000, 30000, (given["batch_size"], given["length"])).astype("int32")
    inputs = {
        "token_ids": ids, "segment_ids": np.zeros_like(ids), "padding_mask": np.ones_like(ids)
    }  # fmt: skip
    targets = model.head.encode_labels(random.choice(["negative", "positive"], len(ids)).tolist())
    model.optimizer.build(model.trainable_weights)

    def unsized(part: tf.Tensor) -> tf.Tensor:
        """Hide rows and lengths from the graph, as in `fit`."""
        shape = (None, None) if part.dtype == tf.int32 else (None, *part.shape[1:])
        return tf.raw_ops.PlaceholderWithDefault(input=part, shape=shape)

    # Not `from_generator`, which slows products and step alike: `make_dataset` says why.
    batches = tf.data.Dataset.from_tensors((inputs, targets))
    batches = batches.map(lambda *batch: tf.nest.map_structure(unsized, batch))
    iterator = iter(batches.cache().repeat().prefetch(2))
    model.make_train_function()
    step: Any = model.train_function
    return lambda: tf.nest.map_structure(lambda part: part.numpy(), step(iterator))


def product(one: Product) -> float:
    """Return the median seconds of a product."""
    a, b = (one.rows, one.inner), (one.inner, one.columns)
    shapes = (a[::-1] if one.transpose_a else a, b[::-1] if one.transpose_b else b)
    lead = (one.batch,) if one.batch > 1 else ()
    pairs = [
        tuple(tf.cast(tf.random.normal((*lead, *shape)), dtype) for shape in shapes)
        for _ in range(OPERANDS)
    ]

    @tf.function
    def multiply(pairs: Any) -> Any:
        last = tf.zeros((), dtype)
        for left, right in pairs:
            with tf.control_dependencies([last]):  # one after the other, as in the step
                y = tf.matmul(left, right, transpose_a=one.transpose_a, transpose_b=one.transpose_b)
            last += tf.reshape(y, [-1])[0]  # what nobody reads, TensorFlow does not compute
        return last

    multiply(pairs)
    return median_seconds(lambda: multiply(pairs).numpy(), REPEATS) / OPERANDS


given = arguments()
keras.utils.set_random_seed(given["seed"])
keras.config.set_dtype_policy("mixed_bfloat16" if given["bf16"] else "float32")
dtype = tf.bfloat16 if given["bf16"] else tf.float32
step = train_step()
for _ in range(5):
    step()
products = [LARGE, *step_products(Size(), given["batch_size"], given["length"])]
before = median_seconds(step, given["steps"])
start = time.perf_counter()
seconds = [product(one) for one in products]
took = time.perf_counter() - start
after = median_seconds(step, given["steps"])
finish(
    step_seconds=(before + after) / 2,  # around the products, lest the machine changed
    products=[
        {**one.as_dict(), "flops": one.flops, "seconds": time_of_one}
        for one, time_of_one in zip(products, seconds, strict=True)
    ],
    took=took,
)
