"""A linear layer of what is above zero of scaled and shifted channels: an evaluated batch norm, ReLU, a product."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_speech.ops.cpu import in_numpy, in_parallel, parts_of, suits_numpy

STEPS_PER_PART = 512  # of a product
LARGEST_BOUND = 1e30  # beyond it, no channel that float32 can hold is on the other side


class Folded(NamedTuple):
    """The layer as one product of bounded channels.

    Where the scale is positive, max(0, scale·x + shift) = scale · max(x, bound) + shift with bound = -shift / scale;
    where it is negative, the same with the minimum. So scale and shift go into the product.

    bound : (inputs,); falling : the channels whose scale is negative, seldom any
    weight : (inputs, outputs); bias : (outputs,)
    """

    bound: np.ndarray
    falling: np.ndarray
    weight: np.ndarray
    bias: np.ndarray


def rectified_linear(x: mx.array, scale: mx.array, shift: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """weight · max(0, scale · x + shift) + bias

    x (batch, steps, inputs), scale and shift (inputs,), weight (outputs, inputs), bias (outputs,)
    → (batch, steps, outputs)

    In NumPy for every float32 on the CPU, else a graph of MLX.
    """
    arrays = (x, scale, shift, weight, bias)
    if suits_numpy(*arrays):
        return in_numpy(rectified_linear_numpy, rectified_linear_graph, *arrays)
    return rectified_linear_graph(*arrays)


def rectified_linear_graph(x: mx.array, scale: mx.array, shift: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """The same, as a graph of MLX."""
    return nn.relu(x * scale + shift) @ weight.T + bias


def rectified_linear_numpy(
    x: np.ndarray, scale: np.ndarray, shift: np.ndarray, weight: np.ndarray, bias: np.ndarray
) -> np.ndarray:
    """The same."""
    batch, steps, _ = x.shape
    layer = folded(scale, shift, weight, bias)
    result = np.empty((batch, steps, len(bias)), np.float32)

    def compute(part: tuple[int, slice]) -> None:
        result[part] = product(x[part], layer)

    in_parallel(compute, parts_of(batch, steps, STEPS_PER_PART))
    return result


def folded(scale: np.ndarray, shift: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> Folded:
    """Of the arrays of `rectified_linear`."""
    exact_scale = scale.astype(np.float64)
    exact_shift = shift.astype(np.float64)
    # a scale of next to nothing leaves the shift alone
    is_constant = np.abs(exact_shift) >= LARGEST_BOUND * np.abs(exact_scale)
    exact_scale[is_constant] = 0.0
    bound = np.divide(-exact_shift, exact_scale, out=np.zeros_like(exact_shift), where=~is_constant)
    exact_shift[is_constant] = np.maximum(exact_shift[is_constant], 0.0)
    return Folded(
        bound=bound.astype(np.float32),
        falling=np.flatnonzero(exact_scale < 0),
        weight=np.ascontiguousarray((weight * exact_scale).T, dtype=np.float32),
        bias=(bias + weight @ exact_shift).astype(np.float32),
    )


def product(x: np.ndarray, layer: Folded) -> np.ndarray:
    """x (steps, inputs) → (steps, outputs)"""
    bounded = np.maximum(x, layer.bound)
    if layer.falling.size:
        bounded[:, layer.falling] = np.minimum(x[:, layer.falling], layer.bound[layer.falling])
    y = bounded @ layer.weight
    y += layer.bias
    return y
