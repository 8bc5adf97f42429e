"""Scaled dot-product attention (Vaswani et al. 2017)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

import mlx.core as mx
import numpy as np

from mlx_speech.ops.cpu import LARGEST_UNPACKED, in_numpy, in_parallel, slices, suits_numpy

SMALLEST_KEYS_FOR_NUMPY = 1 << 15  # numbers; of fewer, ending MLX's lazy evaluation costs more than NumPy saves
QUERIES_PER_BLOCK = 256  # whose scores stay in cache
QUERIES_PER_PRODUCT = 4  # so few that OpenBLAS packs neither factor
KEYS_PER_SUM = 300  # whose values are added up one after the other; of thousands in a row the sum loses digits
QUERIES_PER_THREAD = 24  # of several heads; fewer do not pay for a second thread
LARGEST_UNSHIFTED = 70.0  # a score whose exponential, times what values there are, is far from float32's ends


def attention(
    queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: mx.array | str | None = None
) -> mx.array:
    """softmax(scale·Q·Kᵀ)·V, as `mx.fast.scaled_dot_product_attention`.

    queries (batch, heads, n, width), keys and values (batch, heads, m, width) → (batch, heads, n, width)
    mask : True where a query sees a key, of a shape that broadcasts to (batch, heads, n, m), or "causal"

    In NumPy where there are many keys and the mask is no name, else in MLX's own kernel.
    """
    graph = partial(attention_graph, scale=scale, mask=mask)
    if isinstance(mask, str) or keys.size < SMALLEST_KEYS_FOR_NUMPY or not suits_numpy(queries, keys, values):
        return graph(queries, keys, values)
    return in_numpy(partial(attention_numpy, scale=scale, mask=mask), graph, queries, keys, values)


def attention_graph(
    queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: mx.array | str | None
) -> mx.array:
    """queries (batch, heads, n, width), keys and values (batch, heads, m, width) → (batch, heads, n, width), as a graph
    of MLX."""
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)


def attention_numpy(
    queries: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    *,
    scale: float,
    mask: mx.array | None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """queries (batch, heads, n, width), keys and values (batch, heads, m, width) → (batch, heads, n, width), a head, or
    some heads of some rows of the batch, at a time.

    out : where it is written, an array of that shape
    """
    batch, heads, n, _ = queries.shape
    queries = queries * np.float32(scale)
    visible = None
    if mask is not None:
        visible = np.broadcast_to(np.array(mask), (batch, heads, n, keys.shape[2]))
    result = np.empty_like(queries, order="C") if out is None else out

    def compute_head(head: tuple[int, ...]) -> None:
        transposed = np.ascontiguousarray(keys[head].T)
        own_values = np.ascontiguousarray(values[head])
        largest = _longest(queries[head]) * _longest(keys[head])
        is_shifted = not largest <= LARGEST_UNSHIFTED  # also where it is NaN: that is one query's or one key's
        for block in slices(n, QUERIES_PER_BLOCK):
            some = _in_few(queries[head][block], own_values.size)
            some_visible = None if visible is None else _in_few(visible[head][block], own_values.size)
            attended = _attend(some, transposed, own_values, some_visible, is_shifted, KEYS_PER_SUM)
            result[head][block] = attended.reshape(-1, attended.shape[-1])

    def compute_heads(part: tuple[slice, slice]) -> None:
        transposed = keys[part].swapaxes(-1, -2)
        part_visible = None if visible is None else visible[part]
        result[part] = _attend(queries[part], transposed, values[part], part_visible)

    if n >= QUERIES_PER_THREAD:
        in_parallel(compute_head, itertools.product(range(batch), range(heads)))
    else:
        some_rows = slices(batch, max(1, QUERIES_PER_THREAD // (heads * n)))
        in_parallel(compute_heads, itertools.product(some_rows, slices(heads, max(1, QUERIES_PER_THREAD // n))))
    return result


def attention_by_row(
    queries: np.ndarray,
    keys: Sequence[np.ndarray | None],
    values: Sequence[np.ndarray | None],
    *,
    scale: float,
    wanted: Sequence[int],
) -> np.ndarray:
    """Attention of few queries, where every row of the batch has keys and values of its own.

    queries (batch, heads, n, width), keys and values : of each row (heads, width, m) → (batch, heads, n, width)
    wanted : rows that have keys and values; the others are zeros
    """
    heads, n = queries.shape[1:3]
    queries = queries * np.float32(scale)
    result = np.zeros_like(queries, order="C")

    def compute(part: tuple[int, slice]) -> None:
        row, some_heads = part
        row_keys = keys[row]
        row_values = values[row]
        if row_keys is None or row_values is None:
            raise ValueError(f"row {row} has no keys and values")
        some_values = row_values[some_heads].swapaxes(-1, -2)
        result[row, some_heads] = _attend(queries[row, some_heads], row_keys[some_heads], some_values, visible=None)

    in_parallel(compute, itertools.product(wanted, slices(heads, max(1, QUERIES_PER_THREAD // n))))
    return result


def _in_few(rows: np.ndarray, size: int) -> np.ndarray:
    """(n, m) → (n / QUERIES_PER_PRODUCT, QUERIES_PER_PRODUCT, m), for products with a matrix of `size` numbers.

    As it is where n cannot be cut so, or where the matrix is so large that it would be packed for each product.
    """
    if len(rows) % QUERIES_PER_PRODUCT or QUERIES_PER_PRODUCT * size > LARGEST_UNPACKED:
        return rows
    return rows.reshape(-1, QUERIES_PER_PRODUCT, rows.shape[-1])


def _longest(vectors: np.ndarray) -> float:
    """The length of the longest of (n, width): no score is larger than the product of two such."""
    return float(np.sqrt(np.einsum("nd,nd->n", vectors, vectors).max()))


def _attend(
    queries: np.ndarray,
    transposed_keys: np.ndarray,
    values: np.ndarray,
    visible: np.ndarray | None,
    is_shifted: bool = True,
    keys_per_sum: int | None = None,
) -> np.ndarray:
    """queries (…, n, width), transposed_keys (…, width, m), values (…, m, width), visible (…, n, m) → (…, n, width)

    is_shifted : the largest score of a row is taken from all, so that no exponential overflows
    keys_per_sum : so many keys are added up at a time; None: all
    """
    scores = queries @ transposed_keys
    if visible is not None:
        np.copyto(scores, -np.inf, where=~visible)
    if is_shifted:
        scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    first, *others = slices(scores.shape[-1], keys_per_sum or scores.shape[-1])
    result = scores[..., first] @ values[..., first, :]
    for some in others:
        result += scores[..., some] @ values[..., some, :]
    return result / np.einsum("...m->...", scores)[..., None]  # quicker than `sum`
