"""Operations that MLX computes number by number, on one thread, on a CPU: there they run in NumPy, ten times faster.

On a GPU, for other dtypes than float32, for small arrays and inside mx.compile and mx.vmap they are MLX's own graph;
their derivatives are that graph's everywhere. NumPy works in blocks that stay in a core's cache, and on all cores.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from threadpoolctl import ThreadpoolController

from mlx_speech.blas import on_cpu

_LOCK = threading.Lock()  # the number of threads is one for all
SMALL = 1 << 15  # numbers from which NumPy pays: it ends MLX's lazy evaluation
BLOCK = 1 << 15  # numbers that stay in cache, with two buffers of their size
LONG = 1 << 18  # numbers of operations so short that threads would wait for Python's lock
ROWS = 256  # queries whose scores stay in cache
FEW = 24  # queries, of all heads, below which a second thread does not pay
FANIN = 256  # numbers added one after the other before their sums are added in turn
LOWEST = np.float32(-1e30)  # below every logit
STEPS = 512  # of a filter bank, whose samples in float64 stay in cache

# erfc(z) = (A1·t + … + A5·t⁵)·exp(−z²), t = 1/(1 + P·z), to 1.5e-7 (Abramowitz & Stegun 7.1.26)
P = np.float32(0.3275911 / 2**0.5)
A = [np.float32(a) for a in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)]
CELLS = 2048
# Winograd's F(4, 3): how six rows are mixed, how the three taps of a filter are, and how six products make four rows
ROWS_IN = np.array(
    [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0],
     [0, 4, 0, -5, 0, 1]], np.float32)  # fmt: skip
FILTERS = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], np.float32) / 24
ROWS_OUT = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], np.float32)  # fmt: skip


def gelu(x: mx.array) -> mx.array:
    """x·Φ(x), of any shape (Hendrycks & Gimpel 2016; the exact form, torch's `approximate="none"`)."""
    return in_numpy(_gelu, nn.gelu, x, least=1 << 12)


def _gelu(x: np.ndarray) -> np.ndarray:
    flat = x.reshape(-1)
    result = np.empty_like(flat)
    # NumPy compares two arrays three times as fast as an array and a number.
    # Beyond 30 nothing is left of erfc, and infinities would become NaN.
    zero, most = (np.full(min(flat.size, LONG), value, np.float32) for value in (0, 30))

    def compute(start: int) -> None:
        # x·Φ(x) = max(x, 0) − |x|/2·erfc(|x|/√2)
        own, out = flat[start : start + LONG], result[start : start + LONG]
        size = np.abs(own)
        np.minimum(size, most[: own.size], out=size)
        t = np.multiply(size, P)
        t += 1
        np.divide(1, t, out=t)
        np.multiply(t, A[0], out=out)
        for a in A[1:]:
            out += a
            out *= t
        np.multiply(size, size, out=t)
        t *= -0.5
        out *= np.exp(t, out=t)
        size *= 0.5
        out *= size
        np.subtract(np.maximum(own, zero[: own.size], out=size), out, out=out)

    _together(compute, range(0, flat.size, LONG))
    return result.reshape(x.shape)


def attention(
    queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: mx.array | str | None = None
) -> mx.array:
    """softmax(scale·Q·Kᵀ)·V, as `mx.fast.scaled_dot_product_attention`.

    queries (batch, heads, n, width), keys and values (batch, heads, m, width) → (batch, heads, n, width)
    mask : True where a query sees a key, of a shape that broadcasts to (batch, heads, n, m), or "causal"
    """

    def graph(k: mx.array, q: mx.array, v: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)

    def compute(k: np.ndarray, q: np.ndarray, v: np.ndarray) -> np.ndarray:
        (batch, heads, n, _), m = q.shape, k.shape[2]
        seen = None if mask is None else np.broadcast_to(np.array(mask), (batch, heads, n, m))
        q = q * np.float32(scale)
        result = np.empty_like(q, order="C")

        def part(at: Any) -> None:  # a head, or some of the batch
            transposed = k[at].swapaxes(-1, -2)
            if n >= FEW:
                transposed = np.ascontiguousarray(transposed)
            for start in range(0, n, ROWS):
                rows = (*at, ..., slice(start, start + ROWS), slice(None))
                result[rows] = _attend(q[rows], transposed, v[at], None if seen is None else seen[rows])

        some = max(1, FEW // (heads * n))
        _together(
            part, np.ndindex(batch, heads) if n >= FEW else [(slice(b, b + some),) for b in range(0, batch, some)]
        )
        return result

    return graph(keys, queries, values) if isinstance(mask, str) else in_numpy(compute, graph, keys, queries, values)


def _attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: np.ndarray | None) -> np.ndarray:
    """q (…, n, width), k (…, width, m), v (…, m, width) → (…, n, width)"""
    scores = q @ k
    if seen is not None:
        np.copyto(scores, -np.inf, where=~seen)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    return (scores @ v) / scores.sum(axis=-1, keepdims=True)


def log_sum_exp(x: mx.array) -> mx.array:
    """The logarithm of the sum of exponentials of each row, (..., n) → (..., 1).

    MLX adds up a row one by one on the CPU: with 50 000 tokens, most of them improbable, that is off by 2e-4. NumPy
    sums in pairs; where MLX has to do it, it sums in parts.
    """

    def graph(x: mx.array) -> mx.array:
        return mx.logsumexp(mx.logsumexp(in_parts(x), axis=-1), axis=-1, keepdims=True)

    def compute(x: np.ndarray) -> np.ndarray:
        highest = np.maximum(x.max(axis=-1, keepdims=True), LOWEST)
        with np.errstate(divide="ignore"):  # nothing but -inf
            return highest + np.log(np.exp(x - highest).sum(axis=-1, keepdims=True))

    return in_numpy(compute, graph, x)


def in_parts(x: mx.array) -> mx.array:
    """(..., n) → (..., parts, FANIN), padded with -inf"""
    pad = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % FANIN)]
    return mx.pad(x, pad, constant_values=-mx.inf).reshape(*x.shape[:-1], -1, FANIN)


def conv3x3(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """A convolution of 3×3 with stride 1, padded by 1: x (batch, height, width, inputs), weight (outputs, 3, 3, inputs)
    → (batch, height, width, outputs).

    In NumPy four rows of the result come from six combinations of six rows (Winograd's F(4, 3); Lavin & Gray 2016), in
    half the multiplications.
    """

    def graph(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
        return mx.conv2d(x, weight, padding=1) + bias

    pays = weight.shape[3] > 1 and x.shape[1] * x.shape[2] > CELLS
    return in_numpy(_conv3x3, graph, x, weight, bias) if pays else graph(x, weight, bias)


def _conv3x3(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    (batch, height, width, inputs), outputs = x.shape, weight.shape[0]
    groups, size = -(-height // 4), width + 2
    filters = np.tensordot(FILTERS, weight, (1, 1)).transpose(0, 2, 3, 1).copy()  # (6, along, inputs, outputs)
    tops = 4 * np.arange(groups) + np.arange(-1, 5)[:, None]  # the rows of each group
    valid = np.tile((tops >= 0) & (tops < height), batch)
    tops = np.concatenate([b * height + np.clip(tops, 0, height - 1) for b in range(batch)], axis=1)
    rows, result = x.reshape(-1, width, inputs), np.empty((batch * groups, 4, width, outputs), np.float32)
    some = max(1, BLOCK // (size * inputs))  # groups that stay in cache

    def block(start: int) -> None:
        groups = slice(start, start + some)
        own = np.zeros((6, len(result[groups]), size, inputs), np.float32)
        own[:, :, 1:-1] = rows[tops[:, groups]]
        own[~valid[:, groups]] = 0
        cells = own.shape[1] * size
        mixed = np.zeros((6, cells + 2, inputs), np.float32)
        mixed[:, :cells] = (ROWS_IN @ own.reshape(6, -1)).reshape(6, cells, inputs)
        products = np.matmul(mixed[:, :cells], filters[:, 0])
        other = np.empty_like(products)
        for shift in (1, 2):  # a row runs on into the next one where there is padding
            products += np.matmul(mixed[:, shift : shift + cells], filters[:, shift], out=other)
        done = (ROWS_OUT @ products.reshape(6, -1)).reshape(4, -1, size, outputs)
        np.add(done[:, :, :width].swapaxes(0, 1), bias, out=result[groups])

    _together(block, range(0, batch * groups, some))
    return result.reshape(batch, 4 * groups, width, outputs)[:, :height]


def filter_bank(x: mx.array, weight: mx.array, stride: int) -> mx.array:
    """Filters along one channel: x (batch, samples, 1), weight (filters, width, 1) → (batch, steps, filters), a step
    every `stride` samples, without padding.

    On the CPU it is added up in float64 and rounded once, so that no BLAS, no number of threads and no size of a batch
    makes a difference. A filter that hears next to nothing is a small sum of large numbers: with OpenBLAS's kernels of
    some CPUs, float32 left an error of 4 % of its loudness, and the norm behind it makes every filter equally loud.
    """

    def graph(x: mx.array, weight: mx.array) -> mx.array:
        return mx.conv1d(x, weight, stride=stride)

    def compute(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        filters = weight[:, :, 0].T.astype(np.float64)
        pieces = np.lib.stride_tricks.sliding_window_view(x[:, :, 0], weight.shape[1], axis=1)[:, ::stride]
        batch, steps, _ = pieces.shape
        result = np.empty((batch, steps, weight.shape[0]), np.float32)

        def block(at: tuple[int, int]) -> None:
            row, start = at
            part = (row, slice(start, start + STEPS))
            result[part] = pieces[part].astype(np.float64) @ filters

        _together(block, [(row, start) for row in range(batch) for start in range(0, steps, STEPS)])
        return result

    return in_numpy(compute, graph, x, weight, least=0)


def in_numpy(
    compute: Callable[..., np.ndarray], graph: Callable[..., mx.array], *arrays: mx.array, least: int = SMALL
) -> mx.array:
    """`compute` of views of the arrays, or `graph` of the arrays where that is as fast or the only way."""
    if arrays[0].size < least or not on_cpu() or any(array.dtype != mx.float32 for array in arrays):
        return graph(*arrays)

    def both(*arrays: mx.array) -> mx.array:
        try:
            mx.eval(arrays)
        except ValueError:  # inside mx.compile and mx.vmap nothing has a value
            return graph(*arrays)
        # threads of another library's products would wait on the cores that these need
        with _LOCK, _threads()[0].limit(limits=1):
            return mx.array(compute(*_views(arrays)))

    call = mx.custom_function(both)  # mx.grad does not see through NumPy
    call.vjp(lambda primals, cotangent, output: tuple(mx.vjp(graph, _listed(primals), [cotangent])[1]))
    call.jvp(lambda primals, tangents: mx.jvp(graph, _listed(primals), _listed(tangents))[1][0])
    result: Any = call(*arrays)
    return result


def _views(arrays: Iterable[mx.array]) -> list[np.ndarray]:
    return [np.array(array, copy=False) for array in arrays]


def _listed(arrays: Any) -> list[mx.array]:
    """MLX hands over a single array without a list."""
    return [arrays] if isinstance(arrays, mx.array) else list(arrays)


def _together(compute: Callable[[Any], None], parts: Iterable[Any]) -> None:
    """Compute all parts, on all cores. (NumPy lets go of Python's lock while it computes.)"""
    parts = list(parts)
    for _ in map(compute, parts) if len(parts) == 1 else _threads()[1].map(compute, parts):
        pass


@lru_cache
def _threads() -> tuple[ThreadpoolController, ThreadPoolExecutor]:
    """What limits the threads of NumPy's matrix products, and a pool of as many as they had."""
    products = ThreadpoolController().select(user_api="blas")
    return products, ThreadPoolExecutor(max([one["num_threads"] for one in products.info()], default=None))
