"""The exact GELU, x·Φ(x) (Hendrycks & Gimpel 2016)."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_speech.ops.cpu import in_numpy, in_parallel, slices, suits_numpy

SMALLEST_FOR_NUMPY = 1 << 12  # numbers; of fewer, ending MLX's lazy evaluation costs more than NumPy saves
NUMBERS_PER_PART = 1 << 18  # of fewer, threads wait for Python's lock between operations so short

# Φ(x) is near 1/(1 + exp(−x·P(x²))). P's coefficients, from the constant up, make the largest error of x·Φ(x) least for
# |x| ≤ 6, which is 7e-8, to which rounding adds up to 6e-7, and x·P(x²) large beyond.
COEFFICIENTS = [
    np.float32(coefficient)
    for coefficient in (
        1.5957684322157406,
        0.07266856708925866,
        -6.62600432078644e-05,
        -0.00011048029732432232,
        7.938215932694798e-06,
        -2.668926213175981e-07,
        3.611228253116358e-09,
    )
]


def gelu(x: mx.array) -> mx.array:
    """x·Φ(x) in the exact form, torch's `approximate="none"`: x of any shape → the same shape.

    In NumPy where that pays, else `nn.gelu`.
    """
    if x.size >= SMALLEST_FOR_NUMPY and suits_numpy(x):
        return in_numpy(gelu_numpy, gelu_graph, x)
    return gelu_graph(x)


def gelu_graph(x: mx.array) -> mx.array:
    """x of any shape → the same shape, as a graph of MLX."""
    return nn.gelu(x)


def gelu_numpy(x: np.ndarray) -> np.ndarray:
    """x of any shape → the same shape, as x/(1 + exp(−x·P(x²)))."""
    flat = x.reshape(-1)
    result = np.empty_like(flat)

    def compute(part: slice) -> None:
        gelu_block(flat[part], result[part])

    in_parallel(compute, slices(flat.size, NUMBERS_PER_PART))
    return result.reshape(x.shape)


def gelu_block(values: np.ndarray, out: np.ndarray) -> None:
    """`gelu_numpy` of at most `NUMBERS_PER_PART` numbers, (numbers,), into an array of its own, on one thread."""
    # A single buffer beside the input and the result: what is computed in place stays in cache.
    constant, *others, highest = COEFFICIENTS
    # exp may overflow: the quotient is 0 then, as it should be. Of minus infinity it is NaN, as torch's is.
    with np.errstate(over="ignore", invalid="ignore"):
        square = values * values
        np.multiply(square, -highest, out=out)
        for coefficient in reversed(others):
            out -= coefficient
            out *= square
        out -= constant
        out *= values
        np.exp(out, out=out)
        out += 1
        np.divide(values, out, out=out)
