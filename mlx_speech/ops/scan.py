"""The recurrence of an LSTM (Hochreiter & Schmidhuber 1997; gates i, f, g, o as in torch).

On the CPU it runs in NumPy: a step costs a third of MLX's graph overhead there.
"""

from __future__ import annotations

from contextlib import suppress

import mlx.core as mx
import numpy as np

from mlx_speech.blas import on_cpu
from mlx_speech.ops.cpu import in_numpy

Pair = tuple[mx.array, mx.array]

STEPS_PER_GRAPH = 256  # built before they are handed to the device, which can start while the rest is built


def scan(gates: mx.array, weight: mx.array, state: Pair) -> tuple[mx.array, Pair]:
    """h, c = cell(gates[t] + h·weightᵀ, c) for every step t.

    gates : (directions, batch, steps, 4·hidden), the projected input with bias
    weight : (directions, 4·hidden, hidden)
    state : h and c, each (directions, batch, hidden)

    Returns all h, (directions, batch, steps, hidden), and the last state, both in the dtype of `gates`. In NumPy on the
    CPU, in float32 whatever the dtype; on a GPU MLX's graph.
    """
    h, c = state
    if gates.shape[2] == 0:
        return mx.zeros((*gates.shape[:3], weight.shape[2]), dtype=gates.dtype), state
    if on_cpu():
        arrays = [array.astype(mx.float32) for array in (gates, weight, h, c)]
        states = in_numpy(scan_numpy, scan_graph, *arrays)
    else:
        states = scan_graph(gates, weight, h, c)
    states = states.astype(gates.dtype)
    return states[:, :, :-1], (states[:, :, -2], states[:, :, -1])


def scan_graph(gates: mx.array, weight: mx.array, h: mx.array, c: mx.array) -> mx.array:
    """gates (directions, batch, steps, 4·hidden), weight (directions, 4·hidden, hidden), h and c (directions, batch,
    hidden) → all h, then the last c, (directions, batch, steps + 1, hidden), as a graph of MLX."""
    transposed = mx.swapaxes(weight, 1, 2)
    steps = gates.shape[2]
    blocks = []
    for start in range(0, steps, STEPS_PER_GRAPH):
        outputs = []
        for step in range(start, min(start + STEPS_PER_GRAPH, steps)):
            i, f, g, o = mx.split(gates[:, :, step] + h @ transposed, 4, axis=-1)
            c = mx.sigmoid(f) * c + mx.sigmoid(i) * mx.tanh(g)
            h = mx.sigmoid(o) * mx.tanh(c)
            outputs.append(h)
        blocks.append(mx.stack(outputs, axis=2))  # one buffer a block: a GPU has a limited number of them
        with suppress(ValueError):  # inside mx.compile and mx.vmap nothing can be computed yet
            mx.async_eval(blocks[-1], h, c)
    return mx.concatenate([*blocks, c[:, :, None]], axis=2)


def scan_numpy(gates: np.ndarray, weight: np.ndarray, h: np.ndarray, c: np.ndarray) -> np.ndarray:
    """gates (directions, batch, steps, 4·hidden), weight (directions, 4·hidden, hidden), h and c (directions, batch,
    hidden) → all h, then the last c, (directions, batch, steps + 1, hidden).

    A step is few calls, each into memory that is there. sigmoid(x) = (tanh(x/2) + 1)/2, so that one tanh goes over all
    four gates; the halves are left out and made up for: h is kept doubled, and c doubled for a moment.
    """
    hidden = weight.shape[2]
    gates = _halved(gates.transpose(2, 0, 1, 3))  # time first, so that a step reads one contiguous block
    transposed = 0.5 * _halved(weight.transpose(0, 2, 1))
    h = 2 * h
    c = c.copy()
    outputs = np.empty((len(gates) + 1, *h.shape), np.float32)
    z = np.empty_like(gates[0])
    sigmoids = z[..., : 3 * hidden]
    i = z[..., :hidden]
    f = z[..., hidden : 2 * hidden]
    o = z[..., 2 * hidden : 3 * hidden]
    g = z[..., 3 * hidden :]
    buffer = np.empty_like(c)
    for step, output in zip(gates, outputs[:-1], strict=True):
        np.matmul(h, transposed, out=z)
        z += step
        np.tanh(z, out=z)
        sigmoids += 1
        np.multiply(i, g, out=buffer)
        c *= f
        c += buffer
        c *= 0.5
        np.tanh(c, out=buffer)
        h = np.multiply(o, buffer, out=output)
    outputs[:-1] *= 0.5
    outputs[-1] = c
    return outputs.transpose(1, 2, 0, 3)


def _halved(gates: np.ndarray) -> np.ndarray:
    """(..., 4·hidden), gates i, f, g, o → (..., 4·hidden), i/2, f/2, o/2, g: what tanh is taken of."""
    hidden = gates.shape[-1] // 4
    i_f, g, o = np.split(np.ascontiguousarray(gates), [2 * hidden, 3 * hidden], axis=-1)
    return np.concatenate([i_f * 0.5, o * 0.5, g], axis=-1, dtype=np.float32)
