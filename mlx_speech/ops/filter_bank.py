"""Filters along the windows of a waveform, each window normalised, and how loud each filter is over a few steps.

A filter that hears next to nothing is a small sum of large numbers: with OpenBLAS's kernels of some CPUs, float32 left
an error of 4 % of its loudness, and the norm behind it makes every filter equally loud.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_speech.ops.cpu import in_numpy, in_parallel, slices, suits_numpy
from mlx_speech.ops.time_norm import time_norm_graph

STEPS_PER_PART = 768  # whose samples stay in cache in float64
STEPS_PER_STRETCH = 1 << 16  # of windows that are filtered together: 40 MB of 80 filters


class Layout(NamedTuple):
    """Where the windows lie, and how they are heard.

    starts : the first sample of each window; size : samples of a window
    stride : samples from a step to the next; pool : steps of which the loudest is taken
    """

    starts: tuple[int, ...]
    size: int
    stride: int
    pool: int

    def pooled_steps(self, width: int) -> int:
        """Of a window, for filters of `width` taps."""
        return ((self.size - width) // self.stride + 1) // self.pool


class Bank(NamedTuple):
    """Filters, sorted by what their second half is to their first: two taps of one size need one multiplication.

    order : of the filters: those that are the same from both ends, those that are so with the other sign, the others
    even, odd : (half, filters), taps from an end to the middle
    others : (width, filters)
    """

    order: np.ndarray
    even: np.ndarray
    odd: np.ndarray
    others: np.ndarray


def loudness(
    samples: mx.array, norm_weight: mx.array, norm_bias: mx.array, eps: float, weight: mx.array, layout: Layout
) -> mx.array:
    """Windows to zero mean and unit variance, scaled and shifted; filters along each, without padding; of every few
    steps the loudest.

    samples : (samples,), in which all windows lie; norm_weight, norm_bias : (1,), and eps, as of `time_norm`
    weight : (filters, width, 1)

    Returns (windows, pooled steps, filters), not negative. In NumPy for every float32 on the CPU, else a graph of MLX.
    """
    graph = partial(loudness_graph, eps=eps, layout=layout)
    if suits_numpy(samples, norm_weight, norm_bias, weight):
        compute = partial(loudness_numpy, eps=eps, layout=layout)
        return in_numpy(compute, graph, samples, norm_weight, norm_bias, weight)
    return graph(samples, norm_weight, norm_bias, weight)


def loudness_graph(
    samples: mx.array, norm_weight: mx.array, norm_bias: mx.array, weight: mx.array, *, eps: float, layout: Layout
) -> mx.array:
    """The same, as a graph of MLX."""
    rows = mx.stack([samples[start : start + layout.size] for start in layout.starts])
    x = time_norm_graph(rows[..., None], norm_weight, norm_bias, eps)
    loud = mx.abs(mx.conv1d(x, weight, stride=layout.stride))
    batch, steps, filters = loud.shape
    whole = steps // layout.pool * layout.pool
    return loud[:, :whole].reshape(batch, -1, layout.pool, filters).max(axis=2)


def loudness_numpy(
    samples: np.ndarray,
    norm_weight: np.ndarray,
    norm_bias: np.ndarray,
    weight: np.ndarray,
    *,
    eps: float,
    layout: Layout,
) -> np.ndarray:
    """The same. What overlapping windows have in common is filtered once: a filter of a window that is shifted and
    scaled is the filter of the samples, shifted by the sum of its taps, and scaled.

    Added up in float64 and rounded once, so that no BLAS, no number of threads and no other window makes a difference.
    """
    filters, width, _ = weight.shape
    taps = weight[:, :, 0].astype(np.float64)
    bank = _bank(taps)
    sums = taps.sum(axis=1)
    steps = layout.pooled_steps(width)
    result = np.empty((len(layout.starts), steps, filters), np.float32)

    for stretch in _stretches(layout):
        begin = layout.starts[stretch.start]
        end = layout.starts[stretch.stop - 1] + layout.size
        heard = _filtered(samples[begin:end], bank, width, layout.stride)

        def compute(window: int, begin: int = begin, heard: np.ndarray = heard) -> None:
            start = layout.starts[window]
            scale, shift = _scale_and_shift(samples[start : start + layout.size], norm_weight, norm_bias, eps)
            first = (start - begin) // layout.stride
            own = heard[first : first + steps * layout.pool]
            _pool(own, scale, shift * sums, layout.pool, result[window])

        in_parallel(compute, range(stretch.start, stretch.stop))
    return result


def _stretches(layout: Layout) -> Iterator[slice]:
    """Windows, one behind the other, that are filtered together: their steps are the same, and they are not apart."""
    first = 0
    for window in range(1, len(layout.starts) + 1):
        if window < len(layout.starts):
            begin = layout.starts[first]
            start = layout.starts[window]
            in_step = (start - begin) % layout.stride == 0
            in_touch = layout.starts[window - 1] <= start <= layout.starts[window - 1] + layout.size
            is_short = start + layout.size - begin <= STEPS_PER_STRETCH * layout.stride
            if in_step and in_touch and is_short:
                continue
        yield slice(first, window)
        first = window


def _scale_and_shift(
    window: np.ndarray, norm_weight: np.ndarray, norm_bias: np.ndarray, eps: float
) -> tuple[float, float]:
    """What normalises a window: its samples times the scale, and the shift added. window : (samples,)"""
    exact = window.astype(np.float64)
    mean = exact.mean()
    variance = np.square(exact - mean).mean()
    scale = float(norm_weight[0]) / np.sqrt(variance + eps)
    return scale, float(norm_bias[0]) - mean * scale


def _pool(heard: np.ndarray, scale: float, shift: np.ndarray, pool: int, result: np.ndarray) -> None:
    """heard (steps, filters), shift (filters,) → result (steps // pool, filters): the loudest, scaled and shifted"""
    for block in slices(len(result), max(1, STEPS_PER_PART // pool)):
        piece = heard[block.start * pool : block.stop * pool] * scale
        piece += shift
        loud = np.abs(piece.astype(np.float32))
        loudest = loud[::pool]
        for step in range(1, pool):
            loudest = np.maximum(loudest, loud[step::pool])
        result[block] = loudest


def _filtered(samples: np.ndarray, bank: Bank, width: int, stride: int) -> np.ndarray:
    """samples (samples,) → (steps, filters) float64, in the filters' own order"""
    steps = (len(samples) - width) // stride + 1
    heard = np.empty((steps, len(bank.order)))

    def compute(block: slice) -> None:
        last = min(block.stop, steps) - 1
        exact = samples[block.start * stride : last * stride + width].astype(np.float64)
        heard[block][:, bank.order] = _products(exact, bank, width, stride)

    in_parallel(compute, slices(steps, STEPS_PER_PART))
    return heard


def _bank(filters: np.ndarray) -> Bank:
    """filters : (filters, width)"""
    width = filters.shape[1]
    backwards = filters[:, ::-1]
    is_even = (filters == backwards).all(axis=1)
    is_odd = (filters == -backwards).all(axis=1) & ~is_even
    is_other = ~is_even & ~is_odd
    order = np.concatenate([np.flatnonzero(kind) for kind in (is_even, is_odd, is_other)])
    half = (width + 1) // 2
    even = filters[is_even, :half].T.copy()
    if width % 2:
        even[-1] *= 0.5  # the tap in the middle meets itself
    return Bank(order, even, filters[is_odd, :half].T, filters[is_other].T)


def _products(heard: np.ndarray, bank: Bank, width: int, stride: int) -> np.ndarray:
    """heard (samples,) → (steps, filters), in the order of the bank"""
    half = len(bank.even)
    windows = np.lib.stride_tricks.sliding_window_view(heard, width)[::stride]
    first = windows[:, :half]
    # copied, so that a step's samples from the end on lie one behind the other
    backwards = np.lib.stride_tricks.sliding_window_view(heard[::-1].copy(), width)[::-stride]
    second = backwards[:, :half]
    products = [(first + second) @ bank.even, (first - second) @ bank.odd]
    if bank.others.size:
        products.append(windows @ bank.others)
    return np.concatenate(products, axis=1)
