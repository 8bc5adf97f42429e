"""Every row to zero mean and unit variance, scaled and shifted (Ba et al. 2016)."""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import numpy as np

from mlx_speech.ops.cpu import in_numpy, in_parallel, slices, suits_numpy

SMALLEST_FOR_NUMPY = 1 << 16  # numbers; of fewer, ending MLX's lazy evaluation costs more than NumPy saves
NUMBERS_PER_PART = 1 << 18  # of fewer, threads wait for Python's lock between operations so short


def layer_norm(x: mx.array, weight: mx.array, bias: mx.array, eps: float) -> mx.array:
    """x (…, width), weight and bias (width,) → the shape of x

    In NumPy for many numbers of float32 on a CPU, else MLX's own.
    """
    graph = partial(layer_norm_graph, eps=eps)
    if x.size >= SMALLEST_FOR_NUMPY and suits_numpy(x, weight, bias):
        return in_numpy(partial(layer_norm_numpy, eps=eps), graph, x, weight, bias)
    return graph(x, weight, bias)


def layer_norm_graph(x: mx.array, weight: mx.array, bias: mx.array, eps: float) -> mx.array:
    """The same as a graph of MLX."""
    return mx.fast.layer_norm(x, weight, bias, eps)


def layer_norm_numpy(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """The same in NumPy, on all cores."""
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    result = np.empty(rows.shape, np.float32)

    def compute(part: slice) -> None:
        layer_norm_of_rows(rows[part], weight, bias, eps, out=result[part])

    in_parallel(compute, slices(len(rows), max(1, NUMBERS_PER_PART // width)))
    return result.reshape(x.shape)


def layer_norm_of_rows(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float, out: np.ndarray | None = None
) -> np.ndarray:
    """x (rows, width), weight and bias (width,) → (rows, width), on one thread; `out` may be x"""
    width = np.float32(x.shape[1])
    mean = np.einsum("nd->n", x)  # quicker than `sum`
    mean /= width
    y = np.empty_like(x) if out is None else out
    np.subtract(x, mean[:, None], out=y)
    scale = np.einsum("nd,nd->n", y, y)
    scale /= width
    scale += np.float32(eps)
    np.sqrt(scale, out=scale)
    np.divide(1, scale, out=scale)
    y *= scale[:, None]
    y *= weight
    y += bias
    return y
