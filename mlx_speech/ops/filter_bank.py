"""Filters along a waveform, rounded once, and how loud each is at its loudest over a few steps.

A filter that hears next to nothing is a small sum of large numbers: with OpenBLAS's kernels of some CPUs, float32 left
an error of 4 % of its loudness, and the norm behind it makes every filter equally loud.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_speech.ops.cpu import in_numpy, in_parallel, parts_of, suits_numpy

STEPS_PER_PART = 768  # whose samples stay in cache in float64


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


def loudness(x: mx.array, weight: mx.array, stride: int, pool: int) -> mx.array:
    """Filters along one channel, without padding, a step every `stride` samples; of every `pool` steps the loudest.

    x (batch, samples, 1), weight (filters, width, 1) → (batch, steps // pool, filters), not negative

    In NumPy for every float32 on the CPU, else MLX's convolution.
    """
    graph = partial(loudness_graph, stride=stride, pool=pool)
    if suits_numpy(x, weight):
        return in_numpy(partial(loudness_numpy, stride=stride, pool=pool), graph, x, weight)
    return graph(x, weight)


def loudness_graph(x: mx.array, weight: mx.array, stride: int, pool: int) -> mx.array:
    """x (batch, samples, 1), weight (filters, width, 1) → (batch, steps // pool, filters), as a graph of MLX"""
    loud = mx.abs(mx.conv1d(x, weight, stride=stride))
    batch, steps, filters = loud.shape
    whole = steps // pool * pool
    return loud[:, :whole].reshape(batch, -1, pool, filters).max(axis=2)


def loudness_numpy(x: np.ndarray, weight: np.ndarray, stride: int, pool: int) -> np.ndarray:
    """x (batch, samples, 1), weight (filters, width, 1) → (batch, steps // pool, filters)

    Added up in float64 and rounded once, so that no BLAS, no number of threads and no size of a batch makes a
    difference.
    """
    bank = _bank(weight[:, :, 0].astype(np.float64))
    filters, width, _ = weight.shape
    batch, samples, _ = x.shape
    steps = ((samples - width) // stride + 1) // pool
    result = np.empty((batch, steps, filters), np.float32)

    def compute(part: tuple[int, slice]) -> None:
        row, block = part
        first = block.start * pool * stride
        last = (min(block.stop, steps) * pool - 1) * stride
        heard = x[row, first : last + width, 0].astype(np.float64)
        loud = np.abs(_filtered(heard, bank, width, stride))
        loudest = loud[::pool]
        for step in range(1, pool):
            loudest = np.maximum(loudest, loud[step::pool])
        result[part][:, bank.order] = loudest

    in_parallel(compute, parts_of(batch, steps, max(1, STEPS_PER_PART // pool)))
    return result


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


def _filtered(heard: np.ndarray, bank: Bank, width: int, stride: int) -> np.ndarray:
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
