"""One layer of an LSTM (Hochreiter & Schmidhuber 1997; gates i, f, g, o as in torch), in one or two directions.

On the CPU it runs in NumPy: a step costs a third of MLX's graph overhead there, and what the steps need of the input is
computed a few steps ahead, in a core's cache.
"""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_speech.blas import on_cpu
from mlx_speech.ops.cpu import in_numpy, in_parallel, parts_of, slices

Pair = tuple[mx.array, mx.array]

GATES = 4
STEPS_PER_GRAPH = 256  # built before they are handed to the device, which can start while the rest is built
ROWS_PER_PART = 32  # of more rows, products are no faster
STEPS_PER_BLOCK = 32  # whose gates stay in cache, and of which one product is large enough
SMALLEST_FOR_THREADS = 1 << 10  # numbers of a state; smaller products are over before a second thread has begun


class Weights(NamedTuple):
    """Of one direction, as a step in NumPy wants them: gates in the order i, f, o, g, the first three halved.

    inputs : (inputs, 4·hidden)
    states : of each gate, (4, hidden, hidden), halved once more
    bias : (4·hidden,)
    """

    inputs: np.ndarray
    states: np.ndarray
    bias: np.ndarray


def lstm(x: mx.array, input_weight: mx.array, weight: mx.array, bias: mx.array, state: Pair) -> tuple[mx.array, Pair]:
    """h, c = cell(input_weight·x[t] + weight·h + bias, c) for every step t; the second direction goes from the end.

    x : (batch, steps, inputs)
    input_weight, weight, bias : (directions, 4·hidden, inputs), (directions, 4·hidden, hidden), (directions, 4·hidden)
    state : h and c, each (directions, batch, hidden)

    Returns h of every step, (batch, steps, directions·hidden), and the state behind each direction's last step, all in
    the dtype of `x`. In NumPy on the CPU, in float32 whatever the dtype; on a GPU MLX's graph.
    """
    h, c = state
    directions = weight.shape[0]
    if x.shape[1] == 0:
        return mx.zeros((*x.shape[:2], directions * weight.shape[2]), dtype=x.dtype), state
    if on_cpu():
        arrays = [array.astype(mx.float32) for array in (x, input_weight, weight, bias, h, c)]
        packed = in_numpy(lstm_numpy, lstm_graph, *arrays)
    else:
        packed = lstm_graph(x, input_weight, weight, bias, h, c)
    packed = packed.astype(x.dtype)
    outputs = packed[:, :, :-1]
    last = mx.stack([outputs[0, :, -1], *outputs[1:, :, 0]])
    return mx.concatenate(list(outputs), axis=-1), (last, packed[:, :, -1])


def lstm_graph(
    x: mx.array, input_weight: mx.array, weight: mx.array, bias: mx.array, h: mx.array, c: mx.array
) -> mx.array:
    """The arguments of `lstm`, h and c apart → h of every step and behind them the last c, (directions, batch,
    steps + 1, hidden), as a graph of MLX"""
    both_ways = mx.stack([x, x[:, ::-1]][: weight.shape[0]])
    # the products with the inputs of all steps at once; only the recurrence goes step by step
    products = both_ways @ mx.swapaxes(input_weight, 1, 2)[:, None]
    gates = products.transpose(2, 0, 1, 3) + bias[:, None]  # what a step reads lies together
    transposed = mx.swapaxes(weight, 1, 2)[None]
    h = h[None]
    c = c[None]
    blocks = []
    for start in range(0, gates.shape[0], STEPS_PER_GRAPH):
        block = gates[start : start + STEPS_PER_GRAPH]
        outputs = []
        for step in mx.split(block, block.shape[0]):
            h, c = _cell(mx.addmm(step, h, transposed), c)
            outputs.append(h)
        blocks.append(mx.concatenate(outputs))  # one buffer a block: a GPU has a limited number of them
        with suppress(ValueError):  # inside mx.compile and mx.vmap nothing can be computed yet
            mx.async_eval(blocks[-1], h, c)
    outputs = mx.concatenate(blocks).transpose(1, 2, 0, 3)
    in_time = mx.stack([outputs[0], *outputs[1:, :, ::-1]])
    return mx.concatenate([in_time, c.transpose(1, 2, 0, 3)], axis=2)


def cell(gates: mx.array, c: mx.array) -> Pair:
    """gates (1, directions, batch, 4·hidden), c (1, directions, batch, hidden) → the next h and c."""
    i, f, g, o = mx.split(gates, 4, axis=-1)
    c = mx.sigmoid(f) * c + mx.sigmoid(i) * mx.tanh(g)
    return mx.sigmoid(o) * mx.tanh(c), c


_cell = mx.compile(cell)  # a step on a GPU is this, the product before it, and a copy of h to where it stays


def lstm_numpy(
    x: np.ndarray, input_weight: np.ndarray, weight: np.ndarray, bias: np.ndarray, h: np.ndarray, c: np.ndarray
) -> np.ndarray:
    """The same as `lstm_graph`, a direction and some rows on every core."""
    directions, batch, hidden = h.shape
    result = np.empty((directions, batch, x.shape[1] + 1, hidden), np.float32)
    weights = []
    for direction in range(directions):
        inputs = _halved(input_weight[direction].T)
        states = 0.5 * _halved(weight[direction].T)
        of_gates = np.ascontiguousarray(states.reshape(hidden, GATES, hidden).swapaxes(0, 1))
        weights.append(Weights(inputs, of_gates, _halved(bias[direction])))

    def compute(part: tuple[int, slice]) -> None:
        direction, rows = part
        in_time = x[rows].swapaxes(0, 1)
        outputs = result[direction, rows, :-1].swapaxes(0, 1)
        if direction == 1:
            in_time = in_time[::-1]
            outputs = outputs[::-1]
        result[direction, rows, -1] = _run(in_time, weights[direction], h[part], c[part], outputs)

    parts = parts_of(directions, batch, ROWS_PER_PART)
    if h.size < SMALLEST_FOR_THREADS:
        for part in parts:
            compute(part)
    else:
        in_parallel(compute, parts)
    return result


def _run(x: np.ndarray, weights: Weights, h: np.ndarray, c: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """One direction, of some rows: fills outputs, and returns the last c.

    x : (steps, rows, inputs), in the order of the steps; h, c : (rows, hidden); outputs : (steps, rows, hidden)

    A step is few calls, each into memory that is there. A product for each gate is small enough for BLAS to read its
    factors where they are; all of it at once would be packed first. sigmoid(x) = (tanh(x/2) + 1)/2, so that one tanh
    goes over all four gates; the halves are left out and made up for: h is kept doubled, and c doubled for a moment.
    """
    rows, hidden = h.shape
    h = 2 * h
    c = c.copy()
    z = np.empty((rows, GATES * hidden), np.float32)
    by_gate = z.reshape(rows, GATES, hidden).swapaxes(0, 1)
    sigmoids = z[:, : 3 * hidden]
    i = z[:, :hidden]
    f = z[:, hidden : 2 * hidden]
    o = z[:, 2 * hidden : 3 * hidden]
    g = z[:, 3 * hidden :]
    buffer = np.empty_like(c)
    for block in slices(len(x), STEPS_PER_BLOCK):
        piece = x[block]
        gates = np.matmul(piece.reshape(-1, piece.shape[2]), weights.inputs)
        gates += weights.bias
        doubled = np.empty((len(piece), rows, hidden), np.float32)
        for step, output in zip(gates.reshape(len(piece), rows, -1), doubled, strict=True):
            np.matmul(h, weights.states, out=by_gate)
            z += step
            np.tanh(z, out=z)
            sigmoids += 1
            np.multiply(i, g, out=buffer)
            c *= f
            c += buffer
            c *= 0.5
            np.tanh(c, out=buffer)
            h = np.multiply(o, buffer, out=output)
        np.multiply(doubled, 0.5, out=outputs[block])
    return c


def _halved(gates: np.ndarray) -> np.ndarray:
    """(..., 4·hidden), gates i, f, g, o → (..., 4·hidden), i/2, f/2, o/2, g: what tanh is taken of."""
    i, f, g, o = np.split(gates, 4, axis=-1)
    return np.concatenate([i * 0.5, f * 0.5, o * 0.5, g], axis=-1, dtype=np.float32)
