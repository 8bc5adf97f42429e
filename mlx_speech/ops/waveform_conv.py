"""Convolutions from a waveform to frames, without padding, each with a norm or none and the exact GELU behind it.

On the CPU they run in blocks of steps that stay in a core's cache. What the first one gives is the largest of all, and
cheap: it is made anew for every block of the second. Its norm over time is a scale and a shift of its channels; they
follow from the covariance of the samples that its kernel covers, and go into its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

import mlx.core as mx
import numpy as np
from numpy.lib.stride_tricks import as_strided, sliding_window_view

from mlx_speech.ops.cpu import in_numpy, in_parallel, parts_of, slices, suits_numpy
from mlx_speech.ops.gelu import NUMBERS_PER_PART, gelu_block, gelu_graph
from mlx_speech.ops.layer_norm import layer_norm_of_rows
from mlx_speech.ops.time_norm import time_norm_graph

STEPS_PER_BLOCK = 512

# steps from one to another of a row's → (steps, channels)
Steps: TypeAlias = Callable[[int, int, int], np.ndarray]


@dataclass(frozen=True)
class Kind:
    """Of a layer. norm : over time, over the channels of each step, or none; eps : of the norm"""

    stride: int
    has_bias: bool = False
    norm: Literal["time", "channels"] | None = None
    eps: float = 1e-5


class Layer(NamedTuple):
    """weight (outputs, kernel, inputs); bias, norm and norm_bias (outputs,), where the kind has them"""

    kind: Kind
    weight: mx.array
    bias: mx.array | None = None
    norm: mx.array | None = None
    norm_bias: mx.array | None = None

    @property
    def arrays(self) -> list[mx.array]:
        """Those that it has."""
        return [array for array in self[1:] if array is not None]


class HostLayer(NamedTuple):
    """The same in NumPy."""

    kind: Kind
    weight: np.ndarray
    bias: np.ndarray | None
    norm: np.ndarray | None
    norm_bias: np.ndarray | None


def frames_of(waveform: mx.array, layers: Sequence[Layer], lengths: mx.array | None = None) -> mx.array:
    """waveform (batch, samples) → (batch, frames, outputs of the last layer)

    layers : the first has one input; only the first may have a norm over time
    lengths : (batch,) steps of each row behind the first layer that its norm over time counts; all, where None

    In NumPy for every float32 on the CPU, else as a graph of MLX.
    """
    kinds = [layer.kind for layer in layers]
    arrays = [array for layer in layers for array in layer.arrays]
    graph = partial(frames_graph, kinds=kinds, lengths=lengths)
    if suits_numpy(waveform, *arrays):
        return in_numpy(partial(frames_numpy, kinds=kinds, lengths=lengths), graph, waveform, *arrays)
    return graph(waveform, *arrays)


def frames_graph(
    waveform: mx.array, *arrays: mx.array, kinds: Sequence[Kind], lengths: mx.array | None = None
) -> mx.array:
    """The same as a graph of MLX. arrays : those of the layers, one behind the other"""
    left = list(arrays)
    x = waveform[..., None]
    for kind in kinds:
        x = mx.conv1d(x, left.pop(0), stride=kind.stride)
        if kind.has_bias:
            x = x + left.pop(0)
        if kind.norm == "time":
            x = time_norm_graph(x, left.pop(0), left.pop(0), kind.eps, lengths)
        elif kind.norm == "channels":
            x = mx.fast.layer_norm(x, left.pop(0), left.pop(0), kind.eps)
        x = gelu_graph(x)
    return x


def frames_numpy(
    waveform: np.ndarray, *arrays: np.ndarray, kinds: Sequence[Kind], lengths: mx.array | None = None
) -> np.ndarray:
    """The same in NumPy."""
    first, *others = _layers(kinds, arrays)
    batch, samples = waveform.shape
    count = _count(samples, first)
    counted = np.full(batch, count) if lengths is None else np.array(lengths)
    # what a norm over time takes off; products of what is left are exact to more digits
    centred = waveform - waveform.mean(axis=1, keepdims=True) if first.kind.norm == "time" else waveform
    folded = [_first_weights(first, row, steps) for row, steps in zip(centred, counted, strict=True)]

    def first_steps(row: int, start: int, stop: int) -> np.ndarray:
        return _first_steps(centred[row], first, *folded[row], start, stop)

    steps: Steps = first_steps
    if not others:
        return np.stack([steps(row, 0, count) for row in range(batch)])
    result = waveform
    for layer in others:
        count = _count(count, layer)
        result = np.empty((batch, count, len(layer.weight)), np.float32)
        in_parallel(partial(_block, layer, steps, result), parts_of(batch, count, STEPS_PER_BLOCK))
        steps = partial(_between, result)
    return result


def _layers(kinds: Sequence[Kind], arrays: Sequence[np.ndarray]) -> list[HostLayer]:
    left = list(arrays)
    layers: list[HostLayer] = []
    for kind in kinds:
        weight = left.pop(0)
        bias = left.pop(0) if kind.has_bias else None
        norm = left.pop(0) if kind.norm else None
        norm_bias = left.pop(0) if kind.norm else None
        layers.append(HostLayer(kind, weight, bias, norm, norm_bias))
    return layers


def _count(steps: int, layer: HostLayer) -> int:
    """Steps behind a layer."""
    return (steps - layer.weight.shape[1]) // layer.kind.stride + 1


def _between(array: np.ndarray, row: int, start: int, stop: int) -> np.ndarray:
    return array[row, start:stop]


# --- the first layer -------------------------------------------------------------------------------------------------


def _first_weights(layer: HostLayer, samples: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Its weights (kernel, outputs) and what is added (outputs,), in which its norm over time is contained.

    samples : (samples,) of a row; count : steps that the norm counts
    """
    outputs, kernel, _ = layer.weight.shape
    weight = layer.weight.reshape(outputs, kernel).T
    if layer.kind.norm != "time" or layer.norm is None or layer.norm_bias is None:
        return weight, np.zeros(outputs, np.float32) if layer.bias is None else layer.bias
    covered = sliding_window_view(samples.astype(np.float64), kernel)[:: layer.kind.stride][: max(count, 1)]
    centre = covered.mean(axis=0)
    centred = covered - centre
    covariance = centred.T @ centred / len(covered)
    exact = weight.astype(np.float64)
    variance = np.einsum("ko,kl,lo->o", exact, covariance, exact)
    scale = layer.norm / np.sqrt(np.maximum(variance, 0) + layer.kind.eps)
    shift = layer.norm_bias - centre @ exact * scale  # a bias would be gone with the mean
    return (exact * scale).astype(np.float32), shift.astype(np.float32)


def _first_steps(
    samples: np.ndarray, layer: HostLayer, weight: np.ndarray, shift: np.ndarray, start: int, stop: int
) -> np.ndarray:
    """Some steps of a row's: samples (samples,), weight (kernel, outputs), shift (outputs,) → (steps, outputs)"""
    kernel = len(weight)
    stride = layer.kind.stride
    covered = samples[start * stride : (stop - 1) * stride + kernel]
    y = np.ascontiguousarray(sliding_window_view(covered, kernel)[::stride]) @ weight
    y += shift
    return _normed_gelu(y, layer, np.empty_like(y))


# --- the others ------------------------------------------------------------------------------------------------------


def _block(layer: HostLayer, before: Steps, result: np.ndarray, part: tuple[int, slice]) -> None:
    """Compute a part of the result, (batch, steps, outputs). before : gives the steps of the layer before"""
    row, block = part
    start = block.start
    stop = min(block.stop, result.shape[1])
    outputs, kernel, inputs = layer.weight.shape
    stride = layer.kind.stride
    x = before(row, start * stride, (stop - 1) * stride + kernel)
    y = np.empty((stop - start, outputs), np.float32)
    # taps that follow each other and are no more than a stride lie together, so no step has to be copied
    for tap in range(0, kernel, stride):
        taps = min(stride, kernel - tap)
        strides = (stride * x.strides[0], x.strides[1])
        together = as_strided(x[tap:], (len(y), taps * inputs), strides, writeable=False)
        weight = layer.weight[:, tap : tap + taps].reshape(outputs, -1).T
        if tap == 0:
            np.matmul(together, weight, out=y)
        else:
            y += together @ weight
    if layer.bias is not None:
        y += layer.bias
    _normed_gelu(y, layer, result[row, start:stop])


def _normed_gelu(y: np.ndarray, layer: HostLayer, result: np.ndarray) -> np.ndarray:
    """y (steps, outputs) with the norm of its channels, if there is one, and the GELU, into the result of its shape"""
    if layer.kind.norm == "channels" and layer.norm is not None and layer.norm_bias is not None:
        y = layer_norm_of_rows(y, layer.norm, layer.norm_bias, layer.kind.eps)
    values = y.reshape(-1)
    out = result.reshape(-1)
    for piece in slices(values.size, NUMBERS_PER_PART):
        gelu_block(values[piece], out[piece])
    return result
