"""The layers of Whisper's encoder in NumPy, for a CPU.

A core takes some rows at a time from one product to the next: what lies between them stays in its cache, and with
matrices in panels nothing is packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_speech.ops.attention import attention_graph, attention_numpy
from mlx_speech.ops.cpu import in_numpy, in_parallel, same_memory, slices
from mlx_speech.ops.few_rows import panels_of, product_on_one_core
from mlx_speech.ops.gelu import gelu_block, gelu_graph
from mlx_speech.ops.layer_norm import layer_norm_graph, layer_norm_of_rows

EPS = 1e-5  # of the layer norms
ROWS_PER_PART = 96


class Weights(NamedTuple):
    """Of a layer: matrices (outputs, inputs), norms and biases (outputs,).

    norm, query, key, value, out : of the self-attention
    mlp_norm, up, down : of the feed-forward layers
    """

    norm: Any
    norm_bias: Any
    query: Any
    query_bias: Any
    key: Any
    value: Any
    value_bias: Any
    out: Any
    out_bias: Any
    mlp_norm: Any
    mlp_norm_bias: Any
    up: Any
    up_bias: Any
    down: Any
    down_bias: Any


@dataclass(frozen=True, eq=False)
class Packed:
    """The weights of all layers, matrices as `Panels`.

    sources : what they were made of
    """

    layers: list[Weights]
    sources: Sequence[np.ndarray]

    @classmethod
    def of(cls, sources: Sequence[np.ndarray]) -> Packed:
        """Of the weights of one layer after the other."""
        panels = iter(panels_of([array for array in sources if array.ndim == 2]))
        return cls(_by_layer([next(panels) if array.ndim == 2 else array for array in sources]), sources)

    def is_of(self, sources: Sequence[np.ndarray]) -> bool:
        """Whether it was made of these arrays, and they have the values that they had."""
        return same_memory(sources, self.sources)


class EncoderLayers:
    """The layers as a function of their input and their weights, which are packed for the first time that they come."""

    def __init__(self, heads: int) -> None:
        self._heads = heads
        self._packed: Packed | None = None

    def __call__(self, x: mx.array, weights: Sequence[Weights]) -> mx.array:
        """x (rows, steps, width) → the same shape; all in float32"""
        flat = [array for of_layer in weights for array in of_layer]
        return in_numpy(self._in_numpy, partial(layers_graph, heads=self._heads), x, *flat)

    def forget(self) -> None:
        """Give the memory of the packed weights back."""
        self._packed = None

    def _in_numpy(self, x: np.ndarray, *weights: np.ndarray) -> np.ndarray:
        if self._packed is None or not self._packed.is_of(weights):
            self._packed = None  # its memory is free for the next
            self._packed = Packed.of(weights)
        return layers_numpy(x, self._packed.layers, self._heads)


def layers_graph(x: mx.array, *weights: mx.array, heads: int) -> mx.array:
    """x (rows, steps, width), the weights of one layer after the other → the shape of x, as a graph of MLX."""

    def split(y: mx.array) -> mx.array:
        return y.reshape(*y.shape[:2], heads, -1).swapaxes(1, 2)

    for layer in _by_layer(weights):
        y = layer_norm_graph(x, layer.norm, layer.norm_bias, EPS)
        queries = split(y @ layer.query.T + layer.query_bias)
        values = split(y @ layer.value.T + layer.value_bias)
        scale = queries.shape[-1] ** -0.5
        y = attention_graph(queries, split(y @ layer.key.T), values, scale=scale, mask=None)
        x = x + y.swapaxes(1, 2).flatten(2) @ layer.out.T + layer.out_bias
        y = layer_norm_graph(x, layer.mlp_norm, layer.mlp_norm_bias, EPS)
        x = x + gelu_graph(y @ layer.up.T + layer.up_bias) @ layer.down.T + layer.down_bias
    return x


def layers_numpy(x: np.ndarray, layers: Sequence[Weights], heads: int) -> np.ndarray:
    """The same in NumPy. layers : with matrices as `Panels`"""
    rows, steps, width = x.shape
    states = x.reshape(-1, width).copy()
    queries, keys, values, attended = (np.empty_like(states) for _ in range(4))
    parts = slices(len(states), ROWS_PER_PART)

    def split(y: np.ndarray) -> np.ndarray:
        return y.reshape(rows, steps, heads, -1).swapaxes(1, 2)

    for layer in layers:
        project = partial(_project, states, layer, queries, keys, values)
        in_parallel(project, parts)
        scale = (width // heads) ** -0.5
        attention_numpy(split(queries), split(keys), split(values), scale=scale, mask=None, out=split(attended))
        in_parallel(partial(_finish, states, layer, attended), parts)
    return states.reshape(x.shape)


def _project(
    states: np.ndarray, layer: Weights, queries: np.ndarray, keys: np.ndarray, values: np.ndarray, part: slice
) -> None:
    """The norm before the attention, and the queries, keys and values of some rows; all arrays (rows·steps, width)"""
    y = layer_norm_of_rows(states[part], layer.norm, layer.norm_bias, EPS)
    queries[part] = product_on_one_core(y, layer.query, layer.query_bias)
    keys[part] = product_on_one_core(y, layer.key)
    values[part] = product_on_one_core(y, layer.value, layer.value_bias)


def _finish(states: np.ndarray, layer: Weights, attended: np.ndarray, part: slice) -> None:
    """What comes behind the attention, for some rows, added to their states; both arrays (rows·steps, width)"""
    x = states[part]
    x += product_on_one_core(attended[part], layer.out, layer.out_bias)
    y = layer_norm_of_rows(x, layer.mlp_norm, layer.mlp_norm_bias, EPS)
    y = product_on_one_core(y, layer.up, layer.up_bias)
    active = np.empty_like(y)
    gelu_block(y, active)
    x += product_on_one_core(active, layer.down, layer.down_bias)


def _by_layer(arrays: Sequence[Any]) -> list[Weights]:
    count = len(Weights._fields)
    return [Weights._make(arrays[start : start + count]) for start in range(0, len(arrays), count)]
