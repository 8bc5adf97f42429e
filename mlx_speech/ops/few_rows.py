"""Products of a few rows with a large matrix, as in every step of a decoder, in NumPy.

What takes the time is reading the weights. A library's product for large matrices packs them first, which reads them
twice and writes them once; it has kernels that do not, for small ones, so the weights are taken in small blocks.
"""

from __future__ import annotations

import numpy as np

from mlx_speech.ops.cpu import in_parallel, slices

MOST_ROWS = 16  # of more, packing pays
LARGEST_UNPACKED = 1_000_000  # multiplications of a product that OpenBLAS computes without packing
OUTPUTS_PER_KERNEL = 16  # blocks have a multiple of it
SMALLEST_FOR_THREADS = 1 << 22  # weights; of fewer, a second thread begins too late


def product(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """x (rows, inputs), weight (outputs, inputs), bias (outputs,) → x · weightᵀ + bias, (rows, outputs)"""
    rows, inputs = x.shape
    outputs = len(weight)
    if rows > MOST_ROWS:
        y = x @ weight.T
    else:
        transposed = np.empty((outputs, rows), np.float32)
        columns = np.ascontiguousarray(x.T)
        size = LARGEST_UNPACKED // (rows * inputs) // OUTPUTS_PER_KERNEL * OUTPUTS_PER_KERNEL
        block = size if size else outputs  # so many inputs that the whole of it is no slower

        def compute(part: slice) -> None:
            for start in range(part.start, min(part.stop, outputs), block):
                piece = slice(start, min(start + block, part.stop))
                np.matmul(weight[piece], columns, out=transposed[piece])

        if weight.size < SMALLEST_FOR_THREADS:
            compute(slice(0, outputs))
        else:
            in_parallel(compute, slices(outputs, 8 * block))
        y = np.ascontiguousarray(transposed.T)
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
