"""Time the training step of transformers on one batch, and the products in it, with PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from benchmarks.flops import LARGE, Product, Size, step_products
from benchmarks.programs.common import arguments, finish, median_seconds

OPERANDS = 4
REPEATS = 9


def train_step() -> Any:
    """Return a function that takes one step on a batch of random tokens, none of them padding."""
    model = AutoModelForSequenceClassification.from_pretrained(given["model"], num_labels=2)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01, fused=True)
    ids = torch.randint(1000, 30000, (given["batch_size"], given["length"]))
    labels = torch.randint(0, 2, (given["batch_size"],))
    mask = torch.ones_like(ids)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=given["bf16"]):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    return step


def product(one: Product) -> float:
    """Return the median seconds of a product."""
    a, b = (one.rows, one.inner), (one.inner, one.columns)
    lead = (one.batch,) if one.batch > 1 else ()

    def operand(shape: tuple[int, int], turned: bool) -> Any:
        lying = torch.randn((*lead, *(shape[::-1] if turned else shape))).to(dtype)
        return lying.transpose(-1, -2) if turned else lying

    pairs = [(operand(a, one.transpose_a), operand(b, one.transpose_b)) for _ in range(OPERANDS)]

    def multiply() -> None:
        for left, right in pairs:
            left @ right

    multiply()
    return median_seconds(multiply, REPEATS) / OPERANDS


given = arguments()
torch.set_num_threads(given["cores"])
torch.manual_seed(given["seed"])
dtype = torch.bfloat16 if given["bf16"] else torch.float32
step = train_step()
for _ in range(5):
    step()
products = [LARGE, *step_products(Size(labels=2), given["batch_size"], given["length"], cut=False)]
before = median_seconds(step, given["steps"])
with torch.no_grad():
    seconds = [product(one) for one in products]
finish(
    step_seconds=(before + median_seconds(step, given["steps"])) / 2,
    products=[
        {**one.as_dict(), "flops": one.flops, "seconds": time_of_one}
        for one, time_of_one in zip(products, seconds, strict=True)
    ],
)
