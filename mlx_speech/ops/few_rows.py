"""Products of a few rows with a large matrix, as in every step of a decoder, in NumPy.

What takes the time is reading the weights. A library's product for large matrices packs them first, which reads them
twice and writes them once; it has kernels that do not, for small ones, so the weights are taken in small blocks.
"""

from __future__ import annotations

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
    rows, inputs = x.shape
    outputs = len(weight)
    if rows > MOST_ROWS:
        y = x @ weight.T
    elif rows == 1:
        # nothing is packed for a single row, and the library's own threads begin sooner than ours
        y = matrix_vector(weight, x[0])[None]
    else:
        y = np.empty((rows, outputs), np.float32)
        columns = np.ascontiguousarray(x.T)
        size = LARGEST_UNPACKED // (rows * inputs) // OUTPUTS_PER_KERNEL * OUTPUTS_PER_KERNEL
        block = size if size else outputs  # so many inputs that the whole of it is no slower

        def compute(part: slice) -> None:
            for start in range(part.start, min(part.stop, outputs), block):
                piece = slice(start, min(start + block, part.stop))
                np.matmul(weight[piece], columns, out=y[:, piece].T)

        if weight.size < SMALLEST_FOR_THREADS:
            compute(slice(0, outputs))
        else:
            in_parallel(compute, slices(outputs, -(-outputs // PARTS_FOR_THREADS)))
    if bias is not None:
        y += bias
    return y


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
