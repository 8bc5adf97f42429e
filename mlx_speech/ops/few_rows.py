"""Products of a few rows with a large matrix, as in every step of a decoder, in NumPy.

What takes the time is reading the weights. A library's product for large matrices packs them first, which reads them
twice and writes them once; it has kernels that do not, for small ones, so the weights are taken in small blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_speech.ops.cpu import LARGEST_UNPACKED, in_numpy, in_parallel, slices, suits_numpy
from mlx_speech.ops.matrix_vector import matrix_vector

MOST_ROWS = 16  # of more, packing pays
OUTPUTS_PER_KERNEL = 16  # blocks have a multiple of it
PARTS_FOR_THREADS = 4  # as many parts, so that no thread waits for long
SMALLEST_FOR_THREADS = 1 << 19  # weights; of fewer, a second thread begins too late


def suits(x: mx.array) -> bool:
    """Whether x, (…, inputs), has few rows, and NumPy can compute with it."""
    return x.size // x.shape[-1] <= MOST_ROWS and suits_numpy(x)


def linear(x: mx.array, weight: mx.array) -> mx.array:
    """x (…, inputs), weight (outputs, inputs) → x · weightᵀ, (…, outputs)

    In NumPy for few rows of float32 on a CPU, else MLX's product.
    """
    if suits(x) and suits_numpy(weight):
        return in_numpy(linear_numpy, linear_graph, x, weight)
    return linear_graph(x, weight)


def linear_graph(x: mx.array, weight: mx.array) -> mx.array:
    """The same as a graph of MLX."""
    return x @ weight.T


def linear_numpy(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The same in NumPy."""
    return product(x.reshape(-1, x.shape[-1]), weight).reshape(*x.shape[:-1], -1)


def product(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """x (rows, inputs), weight (outputs, inputs), bias (outputs,) → x · weightᵀ + bias, (rows, outputs)"""
    y = products(x, [weight])[0]
    if bias is not None:
        y += bias
    return y


def products(x: np.ndarray, weights: Sequence[np.ndarray]) -> list[np.ndarray]:
    """x (rows, inputs), each weight (its outputs, inputs) → x · weightᵀ of each, (rows, its outputs), together: several
    small ones are worth a second thread."""
    rows, inputs = x.shape
    if rows > MOST_ROWS:
        return [x @ weight.T for weight in weights]
    if rows == 1:
        # nothing is packed for a single row, and the library's own threads begin sooner than ours
        return [matrix_vector(weight, x[0])[None] for weight in weights]
    columns = np.ascontiguousarray(x.T)
    results = [np.empty((rows, len(weight)), np.float32) for weight in weights]
    size = LARGEST_UNPACKED // (rows * inputs) // OUTPUTS_PER_KERNEL * OUTPUTS_PER_KERNEL

    def compute(part: tuple[int, slice]) -> None:
        number, outputs = part
        weight = weights[number][outputs]
        result = results[number][:, outputs]
        block = size if size else len(weight)  # so many inputs that the whole of it is no slower
        for piece in slices(len(weight), block):
            np.matmul(weight[piece], columns, out=result[:, piece].T)

    total = sum(len(weight) for weight in weights)
    parts: list[tuple[int, slice]] = []
    for number, weight in enumerate(weights):
        parts += [(number, part) for part in slices(len(weight), -(-total // PARTS_FOR_THREADS))]
    if total * inputs < SMALLEST_FOR_THREADS:
        for part in parts:
            compute(part)
    else:
        in_parallel(compute, parts)
    return results


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """Every row to zero mean and unit variance, scaled and shifted (Ba et al. 2016).

    x (rows, width), weight and bias (width,) → (rows, width)
    """
    centred = x - x.mean(axis=1, keepdims=True)
    variance = np.einsum("nd,nd->n", centred, centred)[:, None] / np.float32(x.shape[1])
    centred /= np.sqrt(variance + np.float32(eps))
    centred *= weight
    centred += bias
    return centred
