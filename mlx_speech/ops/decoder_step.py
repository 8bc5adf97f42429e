"""A step of all layers of Whisper's decoder, for few hypotheses, on the CPU, as one operation.

Layer by layer, MLX's own operations cost more than the arithmetic: each linear layer packs its weights anew, and each
look at what MLX computed waits for another thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_speech.ops.attention import attention_graph, attention_numpy
from mlx_speech.ops.cpu import in_numpy, numpy_views
from mlx_speech.ops.few_rows import Panels, panels, product
from mlx_speech.ops.gelu import gelu_graph, gelu_numpy
from mlx_speech.ops.layer_norm import layer_norm_of_rows

EPS = 1e-5  # of the layer norms


class Weights(NamedTuple):
    """Of a layer: matrices (outputs, inputs), norms and biases (outputs,).

    norm, query, key, value, out : of the self-attention
    cross_* : of the attention to the audio
    mlp_norm, up, down : of the feed-forward layers
    """

    norm: mx.array
    norm_bias: mx.array
    query: mx.array
    query_bias: mx.array
    key: mx.array
    value: mx.array
    value_bias: mx.array
    out: mx.array
    out_bias: mx.array
    cross_norm: mx.array
    cross_norm_bias: mx.array
    cross_query: mx.array
    cross_query_bias: mx.array
    cross_out: mx.array
    cross_out_bias: mx.array
    mlp_norm: mx.array
    mlp_norm_bias: mx.array
    up: mx.array
    up_bias: mx.array
    down: mx.array
    down_bias: mx.array


@dataclass(frozen=True, eq=False)
class Packed:
    """The weights of a decoder as its steps read them in NumPy.

    layers : `Weights` of each layer, with `Panels` for the matrices and NumPy's arrays for the rest
    embedding : which is the output layer
    sources : what they were made of, as NumPy sees it. MLX changes no array that somebody else holds, so weights that
        have been changed lie elsewhere
    """

    layers: list[Any]
    embedding: Panels
    sources: list[np.ndarray]

    @classmethod
    def of(cls, layers: Sequence[Weights], embedding: mx.array) -> Packed:
        """A copy of these, which are float32 on a CPU; embedding (vocabulary, width)"""
        arrays = _arrays(layers, embedding)
        mx.eval(arrays)
        sources = numpy_views([copy(array) for array in arrays])
        packed: list[Any] = []
        for start in range(0, len(sources) - 1, len(Weights._fields)):
            own = sources[start : start + len(Weights._fields)]
            packed.append(Weights._make(panels(array) if array.ndim == 2 else array for array in own))
        return cls(packed, panels(sources[-1]), sources)

    def is_of(self, layers: Sequence[Weights], embedding: mx.array) -> bool:
        """Whether it was made of these arrays, and they have the values that they had."""
        arrays = _arrays(layers, embedding)
        mx.eval(arrays)
        return [view.ctypes.data for view in numpy_views(arrays)] == [view.ctypes.data for view in self.sources]


def size(layers: Sequence[Weights], embedding: mx.array) -> int:
    """Of these, in bytes."""
    return sum(array.nbytes for array in _arrays(layers, embedding))


def _arrays(layers: Sequence[Weights], embedding: mx.array) -> list[mx.array]:
    """Those of each layer, and the embedding behind them."""
    return [*(array for weights in layers for array in weights), embedding]


class Past(NamedTuple):
    """What a layer attends to.

    keys, values : of the steps before, each (rows, heads, m, width of a head)
    audio_keys, audio_values : of the encoded audio, each (rows, heads, positions, width of a head)
    """

    keys: mx.array
    values: mx.array
    audio_keys: mx.array
    audio_values: mx.array


def step(
    x: mx.array,
    visible: mx.array,
    layers: Sequence[Weights],
    past: Sequence[Past],
    used: Sequence[int],
    packed: Packed | None = None,
) -> tuple[mx.array, list[mx.array], list[mx.array]]:
    """A step of one token for every hypothesis, which sees what `visible` says, and itself.

    x : the input of the first layer, (rows · group, width)
    visible : (rows, 1, group, m), True where a hypothesis sees a key of the past
    layers, past : of each layer
    used : rows that are wanted, ascending; the others get numbers that mean nothing, without the audio being read
    packed : the weights of `layers` in the order of a step; None: they are read as they lie

    Returns the output of the last layer, (rows · group, width), and the keys and the values that each layer made, each
    (rows, heads, group, width of a head).
    """
    arrays: list[mx.array] = []
    for weights, seen in zip(layers, past, strict=True):
        arrays += [*weights, *seen]
    in_graph = partial(step_graph, visible=visible)
    compute = partial(step_numpy, visible=visible, used=used, packed=packed)
    made = in_numpy(compute, in_graph, x, *arrays)
    rows, heads, _, width = past[0].keys.shape
    split = made[1:].reshape(-1, rows, made.shape[1] // rows, heads, width).swapaxes(2, 3)
    return made[0], list(split[0::2]), list(split[1::2])


def step_graph(x: mx.array, *arrays: mx.array, visible: mx.array) -> mx.array:
    """The same as a graph of MLX.

    arrays : of each layer, those of `Weights` and those of `Past`

    Returns the output, and each layer's keys and values, (1 + 2 · layers, rows · group, width).
    """
    made: list[mx.array] = []
    rows, _, group, _ = visible.shape
    itself = mx.broadcast_to(mx.eye(group).astype(mx.bool_), (rows, 1, group, group))
    visible = mx.concatenate([visible, itself], axis=-1)
    for weights, past in _layers(arrays):
        heads, width = past.keys.shape[1], past.keys.shape[3]
        split = partial(_split, shape=(rows, group, heads, width))
        y = mx.fast.layer_norm(x, weights.norm, weights.norm_bias, EPS)
        key = y @ weights.key.T
        value = y @ weights.value.T + weights.value_bias
        made += [key, value]
        keys = mx.concatenate([past.keys, split(key)], axis=2)
        values = mx.concatenate([past.values, split(value)], axis=2)
        query = split(y @ weights.query.T + weights.query_bias)
        y = attention_graph(query, keys, values, scale=width**-0.5, mask=visible)
        x = x + y.swapaxes(1, 2).reshape(x.shape) @ weights.out.T + weights.out_bias
        y = mx.fast.layer_norm(x, weights.cross_norm, weights.cross_norm_bias, EPS)
        query = split(y @ weights.cross_query.T + weights.cross_query_bias)
        y = attention_graph(query, past.audio_keys, past.audio_values, scale=width**-0.5, mask=None)
        x = x + y.swapaxes(1, 2).reshape(x.shape) @ weights.cross_out.T + weights.cross_out_bias
        y = mx.fast.layer_norm(x, weights.mlp_norm, weights.mlp_norm_bias, EPS)
        y = gelu_graph(y @ weights.up.T + weights.up_bias)
        x = x + y @ weights.down.T + weights.down_bias
    return mx.stack([x, *made])


def step_numpy(
    x: np.ndarray, *arrays: np.ndarray, visible: mx.array, used: Sequence[int], packed: Packed | None = None
) -> np.ndarray:
    """The same in NumPy, where the audio is read for the rows that are used only."""
    made: list[np.ndarray] = []
    seen = np.array(visible)
    rows, _, group, _ = seen.shape
    for number, (weights, past) in enumerate(_layers(arrays)):
        if packed is not None:
            weights = packed.layers[number]
        heads, width = past.keys.shape[1], past.keys.shape[3]
        split = partial(_split, shape=(rows, group, heads, width))
        y = layer_norm_of_rows(x, weights.norm, weights.norm_bias, EPS)
        query = product(y, weights.query, weights.query_bias)
        key = product(y, weights.key)
        value = product(y, weights.value, weights.value_bias)
        made += [key, value]
        y = _attend(split(query), split(key), split(value), past, seen)
        x = x + product(y.swapaxes(1, 2).reshape(x.shape), weights.out, weights.out_bias)
        y = layer_norm_of_rows(x, weights.cross_norm, weights.cross_norm_bias, EPS)
        query = product(y, weights.cross_query, weights.cross_query_bias)
        queries = np.ascontiguousarray(split(query))
        audio = past.audio_keys, past.audio_values
        y = attention_numpy(queries, *audio, scale=width**-0.5, mask=None, wanted=used)
        x += product(y.swapaxes(1, 2).reshape(x.shape), weights.cross_out, weights.cross_out_bias)
        y = product(layer_norm_of_rows(x, weights.mlp_norm, weights.mlp_norm_bias, EPS), weights.up, weights.up_bias)
        x += product(gelu_numpy(y), weights.down, weights.down_bias)
    return np.stack([x, *made])


def _layers(arrays: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """`Weights` and `Past` of each layer, whose arrays are MLX's or NumPy's."""
    size = len(Weights._fields) + len(Past._fields)
    for start in range(0, len(arrays), size):
        own = arrays[start : start + size]
        yield Weights(*own[: len(Weights._fields)]), Past(*own[len(Weights._fields) :])


def _split(x: Any, shape: tuple[int, ...]) -> Any:
    """(rows · group, width) → (rows, heads, group, width of a head). shape : (rows, group, heads, width of a head)"""
    return x.reshape(shape).swapaxes(1, 2)


def _attend(query: np.ndarray, key: np.ndarray, value: np.ndarray, past: Past, visible: np.ndarray) -> np.ndarray:
    """Attention of every hypothesis to the past as far as it sees it, and to itself, one term more of the softmax.

    query, key, value : of this step, each (rows, heads, group, width of a head)
    visible : (rows, 1, group, m)

    Returns the same shape.
    """
    query = query * np.float32(query.shape[-1] ** -0.5)
    itself = np.einsum("rhgd,rhgd->rhg", query, key)[..., None]
    scores = query @ past.keys.swapaxes(-1, -2)
    np.copyto(scores, -np.inf, where=~visible)
    highest = np.maximum(scores.max(axis=-1, keepdims=True), itself)
    scores = np.exp(scores - highest)
    itself = np.exp(itself - highest)
    return (scores @ past.values + itself * value) / (scores.sum(axis=-1, keepdims=True) + itself)
