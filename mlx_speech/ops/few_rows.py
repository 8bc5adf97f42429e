"""Products of a few rows with a large matrix, as in every step of a decoder, in NumPy; more rows are right, not fast.

What takes the time is reading the weights. A library's product for large matrices packs them first, which reads them
twice and writes them once; it has kernels that do not, for small ones, so the weights are taken in small blocks. Where
they are used again and again they are packed for good, in panels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, TypeAlias

import mlx.core as mx
import numpy as np

from mlx_speech.ops.cpu import LARGEST_UNPACKED, in_numpy, in_parallel, slices, suits_numpy, threads
from mlx_speech.ops.matrix_vector import matrix_vector

MOST_ROWS = 16  # of more, packing pays
QUICK_ROWS = (2, 6)  # of panels: OpenBLAS takes as many at once; fewer than these take longer, four as two and two
MOST_ROWS_OF_PANELS = 96  # that a panel is multiplied with at once
OUTPUTS_PER_KERNEL = 16  # blocks have a multiple of it
OUTPUTS_PER_PANEL = 32
PARTS_FOR_THREADS = 4  # as many parts, so that no thread waits for long
SMALLEST_FOR_THREADS = 1 << 19  # weights; of fewer, a second thread begins too late
MULTIPLICATIONS_FOR_THREADS = 1 << 23  # of panels, which are read at twice the pace


class Panels(NamedTuple):
    """A matrix, (outputs, inputs), in the order in which a product with few rows reads it.

    numbers : (panels, inputs, OUTPUTS_PER_PANEL); behind the last output there are zeros
    outputs : how many of them are the matrix's
    """

    numbers: np.ndarray
    outputs: int


Matrix: TypeAlias = np.ndarray | Panels


def panels_of(weights: Sequence[np.ndarray]) -> list[Panels]:
    """Copies of matrices, each (outputs, inputs), all in one array.

    NumPy asks Linux for huge pages where an array has 4 MB or more; a smaller matrix by itself is read more slowly.
    """
    shapes = [(-(-len(weight) // OUTPUTS_PER_PANEL), weight.shape[1], OUTPUTS_PER_PANEL) for weight in weights]
    ends = list(accumulate(math.prod(shape) for shape in shapes))
    memory = np.zeros(ends[-1], np.float32)
    found: list[Panels] = []
    for weight, shape, end in zip(weights, shapes, ends, strict=True):
        numbers = memory[end - math.prod(shape) : end].reshape(shape)
        _copy(weight, numbers)
        found.append(Panels(numbers, len(weight)))
    return found


def _copy(weight: np.ndarray, numbers: np.ndarray) -> None:
    """weight (outputs, inputs) → numbers, as of `Panels`, which are zero"""

    def copy(index: int) -> None:
        panel = weight[index * OUTPUTS_PER_PANEL : (index + 1) * OUTPUTS_PER_PANEL]
        numbers[index, :, : len(panel)] = panel.T

    in_parallel(copy, range(len(numbers)))


def linear(x: mx.array, weight: mx.array) -> mx.array:
    """x (…, inputs), weight (outputs, inputs) → x · weightᵀ, (…, outputs)

    In NumPy for few rows of float32 on a CPU, else MLX's product.
    """
    if x.size // x.shape[-1] <= MOST_ROWS and suits_numpy(x, weight):
        return in_numpy(linear_numpy, linear_graph, x, weight)
    return linear_graph(x, weight)


def linear_graph(x: mx.array, weight: mx.array) -> mx.array:
    """The same as a graph of MLX."""
    return x @ weight.T


def linear_numpy(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The same in NumPy."""
    return product(x.reshape(-1, x.shape[-1]), weight).reshape(*x.shape[:-1], -1)


def product(x: np.ndarray, weight: Matrix, bias: np.ndarray | None = None) -> np.ndarray:
    """x (rows, inputs), weight (outputs, inputs) or its panels, bias (outputs,) → x · weightᵀ + bias,
    (rows, outputs)

    To be called inside `cpu.one_core_per_product`.
    """
    if isinstance(weight, Panels):
        y = _times_panels(_padded(x), weight)[: len(x)]
    elif len(x) > MOST_ROWS:
        y = _times_whole(x, weight)
    elif len(x) == 1:
        # nothing is packed for a single row, and the library's own threads begin sooner than ours
        y = matrix_vector(weight, x[0])[None]
    else:
        y = _times_blocks(x, weight)
    if bias is not None:
        y += bias
    return y


def product_on_one_core(x: np.ndarray, weight: Panels, bias: np.ndarray | None = None) -> np.ndarray:
    """As `product`, for what is itself a part of `cpu.in_parallel`."""
    numbers = weight.numbers
    y = np.empty((len(x), len(numbers), OUTPUTS_PER_PANEL), np.float32)
    _multiply(x, numbers, y)
    y = y.reshape(len(x), -1)[:, : weight.outputs]
    if bias is not None:
        y += bias
    return y


def _padded(x: np.ndarray) -> np.ndarray:
    """x (rows, inputs), and rows of zeros behind it, where a product of more rows is quicker."""
    rows = next((count for count in QUICK_ROWS if count >= len(x)), len(x))
    if rows == len(x):
        return x
    padded = np.zeros((rows, x.shape[1]), np.float32)
    padded[: len(x)] = x
    return padded


def _times_panels(x: np.ndarray, weight: Panels) -> np.ndarray:
    """x (rows, inputs) → (rows, outputs)"""
    numbers = weight.numbers
    if len(x) * numbers.size < MULTIPLICATIONS_FOR_THREADS:
        return product_on_one_core(x, weight)
    y = np.empty((len(x), len(numbers), OUTPUTS_PER_PANEL), np.float32)

    def compute(part: slice) -> None:
        _multiply(x, numbers[part], y[:, part])

    in_parallel(compute, slices(len(numbers), -(-len(numbers) // PARTS_FOR_THREADS)))
    return y.reshape(len(x), -1)[:, : weight.outputs]


def _multiply(x: np.ndarray, numbers: np.ndarray, out: np.ndarray) -> None:
    """x (rows, inputs) times each of some panels, (panels, inputs, OUTPUTS_PER_PANEL) → out (rows, panels,
    OUTPUTS_PER_PANEL)

    So many rows and inputs at once that nothing is packed. Sums of fewer products in a row also keep more digits.
    """
    by_panel = out.swapaxes(0, 1)
    for some in slices(len(x), MOST_ROWS_OF_PANELS):
        rows = x[some]
        first, *others = _pieces(x.shape[1], LARGEST_UNPACKED // (len(rows) * OUTPUTS_PER_PANEL))
        np.matmul(rows[:, first], numbers[:, first], out=by_panel[:, some])
        for piece in others:
            by_panel[:, some] += np.matmul(rows[:, piece], numbers[:, piece])


def _pieces(length: int, most: int) -> list[slice]:
    """Cut 0 to `length` into slices of about the same size, of at most `most`."""
    count = -(-length // most)
    return slices(length, -(-length // count))


def _times_whole(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """x (rows, inputs), weight (outputs, inputs) → (rows, outputs), each thread its part of the outputs"""
    outputs = len(weight)
    y = np.empty((len(x), outputs), np.float32)

    def compute(part: slice) -> None:
        np.matmul(x, weight[part].T, out=y[:, part])

    in_parallel(compute, slices(outputs, -(-outputs // threads().count)))
    return y


def _times_blocks(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """x (rows, inputs), weight (outputs, inputs) → (rows, outputs)"""
    rows, inputs = x.shape
    outputs = len(weight)
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
    return y
