"""The matrix products of a training step of BERT, and what they cost.

Only products count. All else (norms, GELU, softmax, dropout, the optimizer) is a matter of memory,
and a step that spent no time on it would run at the rate of its products.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Size:
    """The sizes of a BERT classifier; the defaults are those of MiniLM-L6."""

    hidden: int = 384
    layers: int = 6
    heads: int = 12
    intermediate: int = 1536
    labels: int = 1
    pooler: bool = True


@dataclass(frozen=True)
class Product:
    """`count` products of (batch, rows, inner) and (batch, inner, columns).

    `transpose_a` and `transpose_b` say that an operand lies in memory with its axes exchanged.
    """

    name: str
    batch: int
    rows: int
    inner: int
    columns: int
    transpose_a: bool = False
    transpose_b: bool = False
    count: int = 1

    @property
    def flops(self) -> int:
        """Floating point operations, a multiplication and an addition being two."""
        return 2 * self.batch * self.rows * self.inner * self.columns * self.count

    def as_dict(self) -> dict[str, Any]:
        """Return the arguments that make this product, ready for JSON."""
        return asdict(self)


LARGE = Product("2048 x 2048 x 2048", 1, 2048, 2048, 2048)


def step_products(
    size: Size, batch: int, length: int, cut: bool = True, training: bool = True
) -> list[Product]:
    """Return the products of one step, forward, and backward if it trains.

    Args:
        size: the model.
        batch: rows.
        length: tokens of each row, padding included.
        cut: whether the last layer computes only the first token of each row, which is all that
            the pooler reads; keys and values are needed of all tokens even then.
        training: whether gradients are computed, those of the embeddings included.
    """
    tokens, hidden, wide = batch * length, size.hidden, size.intermediate
    full = size.layers - 1 if cut else size.layers
    products = [
        *_dense("query, key, value", tokens, hidden, 3 * hidden, full),
        *_attention(size, batch, length, length, full),
        *_dense("attention output", tokens, hidden, hidden, full),
        *_dense("intermediate", tokens, hidden, wide, full),
        *_dense("output", tokens, wide, hidden, full),
    ]
    if cut:
        products += [
            *_dense("key, value, last layer", tokens, hidden, 2 * hidden),
            *_dense("query, last layer", batch, hidden, hidden),
            *_attention(size, batch, 1, length, 1),
            *_dense("attention output, last layer", batch, hidden, hidden),
            *_dense("intermediate, last layer", batch, hidden, wide),
            *_dense("output, last layer", batch, wide, hidden),
        ]
    if size.pooler:
        products += _dense("pooler", batch, hidden, hidden)
    products += _dense("head", batch, hidden, size.labels)
    return [p for p in products if p.count and (training or p.name.endswith("forward"))]


def total(products: Iterable[Product]) -> int:
    """Return the floating point operations of some products."""
    return sum(product.flops for product in products)


def _dense(name: str, rows: int, inputs: int, outputs: int, count: int = 1) -> list[Product]:
    """A dense layer: y = x w, dx = dy w', dw = x' dy."""
    return [
        Product(f"{name}, forward", 1, rows, inputs, outputs, count=count),
        Product(f"{name}, dX", 1, rows, outputs, inputs, transpose_b=True, count=count),
        Product(f"{name}, dW", 1, inputs, rows, outputs, transpose_a=True, count=count),
    ]


def _attention(size: Size, batch: int, queries: int, keys: int, count: int) -> list[Product]:
    """Scores s = q k' and context c = s v, with dq = ds k, dk = ds' q, ds = dc v', dv = s' dc."""
    heads, width = batch * size.heads, size.hidden // size.heads
    short, long = (heads, queries, width, keys), (heads, queries, keys, width)
    turned = (heads, keys, queries, width)
    return [
        Product("scores, forward", *short, transpose_b=True, count=count),
        Product("context, forward", *long, count=count),
        Product("scores, dX", *long, count=count),
        Product("scores, dW", *turned, transpose_a=True, count=count),
        Product("context, dX", *short, transpose_b=True, count=count),
        Product("context, dW", *turned, transpose_a=True, count=count),
    ]
