"""The exact GELU, x·Φ(x) (Hendrycks & Gimpel 2016)."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_speech.ops.cpu import in_numpy, in_parallel, slices, suits_numpy

SMALLEST_FOR_NUMPY = 1 << 12  # numbers; of fewer, ending MLX's lazy evaluation costs more than NumPy saves
NUMBERS_PER_PART = 1 << 18  # of fewer, threads wait for Python's lock between operations so short

# erfc(z) = (A1·t + … + A5·t⁵)·exp(−z²), t = 1/(1 + P·z), to 1.5e-7 (Abramowitz & Stegun 7.1.26). P is divided by √2,
# since z is |x|/√2; the coefficients are from A5 down.
P_OVER_SQRT_2 = np.float32(0.3275911 / 2**0.5)
COEFFICIENTS = [np.float32(a) for a in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)]
LARGEST_SIZE = 30.0  # nothing is left of erfc beyond; infinities would become NaN
# NumPy compares two arrays three times as fast as an array and a number.
_LIMITS = np.full(NUMBERS_PER_PART, LARGEST_SIZE, np.float32)
_ZEROS = np.zeros(NUMBERS_PER_PART, np.float32)


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
    """x of any shape → the same shape, as max(x, 0) − |x|/2·erfc(|x|/√2)."""
    flat = x.reshape(-1)
    result = np.empty_like(flat)

    def compute(part: slice) -> None:
        gelu_block(flat[part], result[part])

    in_parallel(compute, slices(flat.size, NUMBERS_PER_PART))
    return result.reshape(x.shape)


def gelu_block(values: np.ndarray, out: np.ndarray) -> None:
    """`gelu_numpy` of at most `NUMBERS_PER_PART` numbers, (numbers,), into an array of its own, on one thread."""
    # Two buffers beside the input and the result: what is computed in place stays in cache.
    size = np.abs(values)
    np.minimum(size, _LIMITS[: values.size], out=size)
    t = np.multiply(size, P_OVER_SQRT_2)
    t += 1
    np.divide(1, t, out=t)
    np.multiply(t, COEFFICIENTS[0], out=out)
    for coefficient in COEFFICIENTS[1:]:
        out += coefficient
        out *= t
    np.multiply(size, size, out=t)
    t *= -0.5
    np.exp(t, out=t)
    out *= t
    size *= 0.5
    out *= size
    positive = np.maximum(values, _ZEROS[: values.size], out=size)
    np.subtract(positive, out, out=out)
