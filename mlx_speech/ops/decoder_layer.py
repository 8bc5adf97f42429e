"""A step of a layer of Whisper's decoder, for few hypotheses, on the CPU: two operations, around the cache of keys.

In between, MLX's own operations cost more than the arithmetic: each linear layer packs its weights anew.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_speech.ops.attention import attention_graph, attention_numpy
from mlx_speech.ops.cpu import in_numpy
from mlx_speech.ops.few_rows import layer_norm, product
from mlx_speech.ops.gelu import gelu_graph, gelu_numpy

EPS = 1e-5  # of the layer norms


class Projections(NamedTuple):
    """Of the layer's input: norm (width,) and its bias; query, key, value (width, width), and biases (width,)."""

    norm: mx.array
    norm_bias: mx.array
    query: mx.array
    query_bias: mx.array
    key: mx.array
    value: mx.array
    value_bias: mx.array


class Rest(NamedTuple):
    """What follows: weights (outputs, inputs), norms and biases (outputs,).

    out : of the self-attention; cross_* : of the attention to the audio; mlp_*, up, down : of the feed-forward layers
    """

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


def projected(x: mx.array, weights: Projections) -> mx.array:
    """x (rows, width) → queries, keys and values, (3, rows, width)"""
    return in_numpy(projected_numpy, projected_graph, x, *weights)


def projected_graph(x: mx.array, *arrays: mx.array) -> mx.array:
    """The same as a graph of MLX. arrays : those of `Projections`"""
    weights = Projections(*arrays)
    y = mx.fast.layer_norm(x, weights.norm, weights.norm_bias, EPS)
    query = y @ weights.query.T + weights.query_bias
    return mx.stack([query, y @ weights.key.T, y @ weights.value.T + weights.value_bias])


def projected_numpy(x: np.ndarray, *arrays: np.ndarray) -> np.ndarray:
    """The same in NumPy."""
    norm, norm_bias, query, query_bias, key, value, value_bias = arrays
    y = layer_norm(x, norm, norm_bias, EPS)
    return np.stack([product(y, query, query_bias), product(y, key), product(y, value, value_bias)])


def finished(
    x: mx.array,
    queries: mx.array,
    keys_values: tuple[mx.array, mx.array],
    audio: tuple[mx.array, mx.array],
    visible: mx.array,
    weights: Rest,
) -> mx.array:
    """The layer behind its projections.

    x : its input, (rows · group, width); queries : (rows, heads, group, width of a head)
    keys_values : each (rows, heads, m, width of a head); audio : the same of the encoded audio
    visible : (rows, 1, group, m), True where a hypothesis sees a key

    Returns its output, (rows · group, width).
    """
    compute = partial(finished_numpy, visible=visible)
    graph = partial(finished_graph, visible=visible)
    return in_numpy(compute, graph, x, queries, *keys_values, *audio, *weights)


def finished_graph(x: mx.array, queries: mx.array, *arrays: mx.array, visible: mx.array) -> mx.array:
    """The same as a graph of MLX. arrays : keys, values, those of the audio, and those of `Rest`"""
    keys, values, audio_keys, audio_values = arrays[:4]
    weights = Rest(*arrays[4:])
    scale = queries.shape[-1] ** -0.5
    y = attention_graph(queries, keys, values, scale=scale, mask=visible)
    x = x + y.swapaxes(1, 2).reshape(x.shape) @ weights.out.T + weights.out_bias
    y = mx.fast.layer_norm(x, weights.cross_norm, weights.cross_norm_bias, EPS)
    y = y @ weights.cross_query.T + weights.cross_query_bias
    rows, heads, group, _ = queries.shape
    y = y.reshape(rows, group, heads, -1).swapaxes(1, 2)
    y = attention_graph(y, audio_keys, audio_values, scale=scale, mask=None)
    x = x + y.swapaxes(1, 2).reshape(x.shape) @ weights.cross_out.T + weights.cross_out_bias
    y = mx.fast.layer_norm(x, weights.mlp_norm, weights.mlp_norm_bias, EPS)
    y = gelu_graph(y @ weights.up.T + weights.up_bias)
    return x + y @ weights.down.T + weights.down_bias


def finished_numpy(x: np.ndarray, queries: np.ndarray, *arrays: np.ndarray, visible: mx.array) -> np.ndarray:
    """The same in NumPy."""
    keys, values, audio_keys, audio_values = arrays[:4]
    out, out_bias, cross_norm, cross_norm_bias, cross_query, cross_query_bias = arrays[4:10]
    cross_out, cross_out_bias, mlp_norm, mlp_norm_bias, up, up_bias, down, down_bias = arrays[10:]
    rows, heads, group, width = queries.shape
    scale = width**-0.5
    y = attention_numpy(queries, keys, values, scale=scale, mask=visible)
    x = x + product(y.swapaxes(1, 2).reshape(x.shape), out, out_bias)
    y = product(layer_norm(x, cross_norm, cross_norm_bias, EPS), cross_query, cross_query_bias)
    y = np.ascontiguousarray(y.reshape(rows, group, heads, width).swapaxes(1, 2))
    y = attention_numpy(y, audio_keys, audio_values, scale=scale, mask=None)
    x += product(y.swapaxes(1, 2).reshape(x.shape), cross_out, cross_out_bias)
    y = product(layer_norm(x, mlp_norm, mlp_norm_bias, EPS), up, up_bias)
    x += product(gelu_numpy(y), down, down_bias)
    return x
