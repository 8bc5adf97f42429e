"""The convolution of 3×3 that a ResNet is made of, with stride 1, or with a stride over the rows alone."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_speech.ops.cpu import in_numpy, in_parallel, slices, suits_numpy

SMALLEST_FOR_NUMPY = 1 << 15  # numbers; of fewer, ending MLX's lazy evaluation costs more than NumPy saves
LARGEST_IMAGE_FOR_GRAPH = 2048  # cells, height × width; of more, NumPy's way is the faster one
NUMBERS_PER_PART = 1 << 15  # of the input; they stay in cache with two buffers of their size

# Winograd's F(4, 3): how six rows are mixed, how the three taps of a filter are, and how six products make four rows.
MIX_OF_ROWS = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float32,
)
MIX_OF_TAPS = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], np.float32) / 24
MIX_OF_PRODUCTS = np.array(
    [
        [1, 1, 1, 1, 1, 0],
        [0, 1, -1, 2, -2, 0],
        [0, 1, 1, 4, 4, 0],
        [0, 1, -1, 8, -8, 1],
    ],
    np.float32,
)
ROWS_PER_GROUP = 4  # of the result


def conv3x3(x: mx.array, weight: mx.array, bias: mx.array, row_stride: int = 1) -> mx.array:
    """A convolution of 3×3, padded by 1.

    x (batch, height, width, inputs), weight (outputs, 3, 3, inputs), bias (outputs,)
    → (batch, height / row_stride, width, outputs), rounded up

    In NumPy for large images of more than one channel, else MLX's.
    """
    large = x.shape[1] * x.shape[2] > LARGEST_IMAGE_FOR_GRAPH and x.size >= SMALLEST_FOR_NUMPY
    if large and weight.shape[3] > 1 and suits_numpy(x, weight, bias):
        every_row = in_numpy(conv3x3_numpy, conv3x3_graph, x, weight, bias)
        return every_row[:, ::row_stride]  # which takes a third of the time that MLX's takes for half of the rows
    return mx.conv2d(x, weight, stride=(row_stride, 1), padding=1) + bias


def conv3x3_graph(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """x (batch, height, width, inputs), weight (outputs, 3, 3, inputs), bias (outputs,)
    → (batch, height, width, outputs), as a graph of MLX"""
    return mx.conv2d(x, weight, padding=1) + bias


def conv3x3_numpy(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """x (batch, height, width, inputs), weight (outputs, 3, 3, inputs), bias (outputs,)
    → (batch, height, width, outputs)

    Four rows of the result come from six combinations of six rows of the input (Winograd's F(4, 3); Lavin & Gray 2016),
    in half the multiplications.
    """
    batch, height, width, inputs = x.shape
    outputs = weight.shape[0]
    padded_width = width + 2
    # (6, taps along the row, inputs, outputs)
    filters = np.tensordot(MIX_OF_TAPS, weight, (1, 1)).transpose(0, 2, 3, 1).copy()
    rows = x.reshape(-1, width, inputs)
    indices, inside = _rows_of_groups(batch, height)
    groups = indices.shape[1]
    result = np.empty((groups, ROWS_PER_GROUP, width, outputs), np.float32)

    def compute(part: slice) -> None:
        chosen = indices[:, part]
        padded = np.zeros((*chosen.shape, padded_width, inputs), np.float32)
        padded[:, :, 1:-1] = rows[chosen]
        padded[~inside[:, part]] = 0
        # All rows one behind the other: a filter runs on from a row into the next one, but only where there is padding.
        cells = chosen.shape[1] * padded_width
        mixed = np.zeros((6, cells + 2, inputs), np.float32)
        mixed[:, :cells] = (MIX_OF_ROWS @ padded.reshape(6, -1)).reshape(6, cells, inputs)
        products = np.matmul(mixed[:, :cells], filters[:, 0])
        buffer = np.empty_like(products)
        for tap in (1, 2):
            products += np.matmul(mixed[:, tap : tap + cells], filters[:, tap], out=buffer)
        sums = (MIX_OF_PRODUCTS @ products.reshape(6, -1)).reshape(ROWS_PER_GROUP, -1, padded_width, outputs)
        np.add(sums[:, :, :width].swapaxes(0, 1), bias, out=result[part])

    in_parallel(compute, slices(groups, max(1, NUMBERS_PER_PART // (padded_width * inputs))))
    return result.reshape(batch, -1, width, outputs)[:, :height]


def _rows_of_groups(batch: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """The six rows of the input that each group of four rows of the result is made of.

    Returns (6, batch·groups) indices of rows of all images, one behind the other, and (6, batch·groups) whether they
    are inside the image; where not, the index is another row's.
    """
    groups = -(-height // ROWS_PER_GROUP)
    places = ROWS_PER_GROUP * np.arange(groups) + np.arange(-1, ROWS_PER_GROUP + 1)[:, None]
    inside = np.tile((places >= 0) & (places < height), batch)
    clipped = np.clip(places, 0, height - 1)
    indices = np.concatenate([image * height + clipped for image in range(batch)], axis=1)
    return indices, inside
