"""A block of a densely connected network over time, as CAM++ is made of (Wang et al. 2023).

Each layer reads the channels of the input and of all layers before it, and adds a few. Source: modelscope/3D-Speaker
`speakerlab/models/campplus/layers.py`, `CAMDenseTDNNBlock`.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, TypeVar, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_speech.ops.cpu import in_numpy, in_parallel, suits_numpy
from mlx_speech.ops.rectified import Folded, folded, product

SEGMENT_FRAMES = 100  # over which the context of a frame is averaged, beside all frames

Array = TypeVar("Array", mx.array, np.ndarray)


class DenseLayer(NamedTuple):
    """The weights of a layer that reads `inputs` channels, by way of `hidden` ones.

    scale, shift : (inputs,) of the norm before it
    weight, bias : (hidden, inputs) and (hidden,)
    taps : (outputs, width, hidden), the kernel over time
    context_weight, context_bias : (context, hidden) and (context,)
    mask_weight, mask_bias : (outputs, context) and (outputs,)
    """

    scale: mx.array
    shift: mx.array
    weight: mx.array
    bias: mx.array
    taps: mx.array
    context_weight: mx.array
    context_bias: mx.array
    mask_weight: mx.array
    mask_bias: mx.array


WEIGHTS = len(DenseLayer._fields)


def dense_block(x: mx.array, lengths: mx.array, layers: list[DenseLayer], dilation: int) -> mx.array:
    """x (batch, steps, inputs), lengths (batch,) → (batch, steps, inputs + the layers' outputs).

    lengths : steps of each row that count; what the result has behind them means nothing
    dilation : of the kernels

    In NumPy for every float32 on the CPU: a row at a time, without what is behind its length, each layer writing beside
    what it reads. Else a graph of MLX.
    """
    weights = [array for layer in layers for array in layer]
    graph = partial(_graph, dilation=dilation)
    if suits_numpy(x, *weights):
        return in_numpy(partial(_numpy, dilation=dilation), graph, x, lengths.astype(mx.float32), *weights)
    return graph(x, lengths, *weights)


def _graph(x: mx.array, lengths: mx.array, *weights: mx.array, dilation: int) -> mx.array:
    """x (batch, steps, inputs), lengths (batch,) → (batch, steps, inputs + outputs)"""
    batch, steps, _ = x.shape
    segments = -(-steps // SEGMENT_FRAMES)
    x = mx.pad(x, [(0, 0), (0, segments * SEGMENT_FRAMES - steps), (0, 0)])
    valid = (mx.arange(x.shape[1]) < lengths[:, None])[..., None]
    lengths = lengths[:, None, None]
    sizes = mx.clip(lengths - SEGMENT_FRAMES * mx.arange(segments)[:, None], 1, SEGMENT_FRAMES)
    for layer in _layers(weights):
        y = mx.addmm(layer.bias, _rectified(x, layer.scale, layer.shift), layer.weight.T)
        y = _kept(y, valid)
        # context and mask: one for each segment, of the steps that count
        sums = y.reshape(batch, segments, SEGMENT_FRAMES, -1).sum(axis=2)
        means = _added_means(sums.sum(axis=1, keepdims=True), lengths, sums, sizes)
        context = nn.relu(mx.addmm(layer.context_bias, means, layer.context_weight.T))
        mask = mx.addmm(layer.mask_bias, context, layer.mask_weight.T)[:, :, None]
        padding = layer.taps.shape[1] // 2 * dilation
        added = mx.conv1d(y, layer.taps, padding=padding, dilation=dilation)
        masked = _masked(added.reshape(batch, segments, SEGMENT_FRAMES, -1), mask)
        x = mx.concatenate([x, masked.reshape(added.shape)], axis=-1)
    return x[:, :steps]


# What MLX makes one launch of. Shapes differ from recording to recording, and nothing is compiled anew for them.


@partial(mx.compile, shapeless=True)
def _rectified(x: mx.array, scale: mx.array, shift: mx.array) -> mx.array:
    return mx.maximum(x * scale + shift, 0)


@partial(mx.compile, shapeless=True)
def _kept(y: mx.array, valid: mx.array) -> mx.array:
    return mx.where(valid, mx.maximum(y, 0), 0)


@partial(mx.compile, shapeless=True)
def _added_means(total: mx.array, length: mx.array, sums: mx.array, sizes: mx.array) -> mx.array:
    return total / length + sums / sizes


@partial(mx.compile, shapeless=True)
def _masked(added: mx.array, mask: mx.array) -> mx.array:
    return added * mx.sigmoid(mask)


def _numpy(x: np.ndarray, lengths: np.ndarray, *weights: np.ndarray, dilation: int) -> np.ndarray:
    """x (batch, steps, inputs), lengths (batch,) → (batch, steps, inputs + outputs), zero behind the lengths"""
    layers = _layers(weights)
    products = [_first_product(layer) for layer in layers]
    batch, steps, inputs = x.shape
    channels = inputs + sum(len(layer.taps) for layer in layers)
    result = np.zeros((batch, steps, channels), np.float32)

    def compute(row: int) -> None:
        length = int(lengths[row])
        out = result[row, :length]
        out[:, :inputs] = x[row, :length]
        read = inputs
        for layer, first in zip(layers, products, strict=True):
            added = len(layer.taps)
            out[:, read : read + added] = _layer_numpy(out[:, :read], first, layer, dilation)
            read += added

    in_parallel(compute, range(batch))
    return result


def _first_product(layer: DenseLayer) -> Folded:
    """Of the norm that a layer begins with, and of the channels that it makes. The weights are NumPy's"""
    arrays = (layer.scale, layer.shift, layer.weight, layer.bias)
    return folded(*cast(tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], arrays))


def _layer_numpy(x: np.ndarray, first: Folded, layer: DenseLayer, dilation: int) -> np.ndarray:
    """x (steps, inputs) → (steps, outputs). first : the product that it begins with; the weights are NumPy's"""
    y = product(x, first)
    np.maximum(y, 0, out=y)

    starts = np.arange(0, len(y), SEGMENT_FRAMES)
    sizes = np.minimum(len(y) - starts, SEGMENT_FRAMES)
    means = np.add.reduceat(y, starts, axis=0) / sizes[:, None].astype(np.float32) + y.mean(axis=0)
    context = np.maximum(means @ layer.context_weight.T + layer.context_bias, 0)
    mask = 0.5 + 0.5 * np.tanh(0.5 * (context @ layer.mask_weight.T + layer.mask_bias))  # the logistic function

    # every tap of every step at once, then each where it is heard
    outputs, width, hidden = layer.taps.shape
    heard = y @ layer.taps.swapaxes(0, 1).reshape(width * outputs, hidden).T
    heard = heard.reshape(len(y), width, outputs)
    added = heard[:, width // 2].copy()
    for tap in range(width):
        offset = (tap - width // 2) * dilation
        if 0 < offset < len(y):
            added[:-offset] += heard[offset:, tap]
        elif 0 < -offset < len(y):
            added[-offset:] += heard[:offset, tap]
    added *= np.repeat(mask, sizes, axis=0)
    return added


def _layers(weights: tuple[Array, ...]) -> list[DenseLayer]:
    """The layers whose weights these are, one behind the other."""
    return [DenseLayer(*weights[start : start + WEIGHTS]) for start in range(0, len(weights), WEIGHTS)]  # type: ignore[arg-type]
