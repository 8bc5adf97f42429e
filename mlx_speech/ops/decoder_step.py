"""A step of all layers of Whisper's decoder in NumPy, for decoding on a CPU.

Step by step, MLX's own operations cost more than the arithmetic: each linear layer packs its weights anew, and each
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

from mlx_speech.ops.attention import attention_by_row
from mlx_speech.ops.cpu import numpy_views, one_core_per_product, same_memory
from mlx_speech.ops.few_rows import Matrix, panels_of, product
from mlx_speech.ops.gelu import gelu_numpy
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


class DecoderWeights(NamedTuple):
    """Of a whole decoder.

    layers : those of each layer
    embedding : (vocabulary, width), which is the output layer too
    positions : (most tokens, width)
    norm, norm_bias : of the last norm, (width,)
    """

    layers: list[Weights]
    embedding: mx.array
    positions: mx.array
    norm: mx.array
    norm_bias: mx.array

    @property
    def arrays(self) -> list[mx.array]:
        """Those of each layer, and the others behind them."""
        of_layers = (array for weights in self.layers for array in weights)
        return [*of_layers, self.embedding, self.positions, self.norm, self.norm_bias]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


@dataclass(frozen=True, eq=False)
class HostWeights:
    """The weights of a decoder as its steps in NumPy read them.

    layers : `Weights` of each layer
    output : the output layer, (vocabulary, width)
    embedding, positions, norm, norm_bias : as `DecoderWeights`
    sources : what all of it was made of, as NumPy sees it
    """

    layers: list[Any]
    output: Matrix
    embedding: np.ndarray
    positions: np.ndarray
    norm: np.ndarray
    norm_bias: np.ndarray
    sources: list[np.ndarray]

    @classmethod
    def of(cls, weights: DecoderWeights, *, in_panels: bool) -> HostWeights:
        """Of weights that are float32 on a CPU.

        in_panels : whether matrices are copied, into `Panels`; else they are read as they lie
        """
        arrays = weights.arrays
        mx.eval(arrays)
        sources = numpy_views([copy(array) for array in arrays])
        *of_layers, embedding, positions, norm, norm_bias = sources
        plain = [array for array in [*of_layers, embedding] if array.ndim == 2]
        matrices: Iterator[Matrix] = iter(panels_of(plain) if in_panels else plain)
        read: list[Any] = [next(matrices) if array.ndim == 2 else array for array in of_layers]
        count = len(Weights._fields)
        layers = [Weights._make(read[start : start + count]) for start in range(0, len(read), count)]
        return cls(layers, next(matrices), embedding, positions, norm, norm_bias, sources)

    def is_of(self, weights: DecoderWeights) -> bool:
        """Whether it was made of these arrays, and they have the values that they had."""
        arrays = weights.arrays
        mx.eval(arrays)
        return same_memory(numpy_views(arrays), self.sources)


class Past(NamedTuple):
    """What a layer attends to.

    keys, values : of the steps before, each (rows, heads, m, width of a head)
    audio_keys, audio_values : of the encoded audio, for each row (heads, width of a head, positions), or None
    """

    keys: np.ndarray
    values: np.ndarray
    audio_keys: Sequence[np.ndarray | None]
    audio_values: Sequence[np.ndarray | None]


class Step(NamedTuple):
    """logits : (rows · group, vocabulary)
    keys, values : what each layer made, each (rows, heads, group, width of a head)
    """

    logits: np.ndarray
    keys: list[np.ndarray]
    values: list[np.ndarray]


def step(x: np.ndarray, visible: np.ndarray, weights: HostWeights, past: Sequence[Past], used: Sequence[int]) -> Step:
    """A step of one token for every hypothesis, which sees what `visible` says, and itself.

    x : the input of the first layer, (rows · group, width)
    visible : (rows, 1, group, m), True where a hypothesis sees a key of the past
    past : of each layer
    used : rows that are wanted, which have audio; the others get numbers that mean nothing
    """
    rows, _, group, _ = visible.shape
    heads, width = past[0].keys.shape[1], past[0].keys.shape[3]
    split = partial(_split, shape=(rows, group, heads, width))
    made_keys: list[np.ndarray] = []
    made_values: list[np.ndarray] = []
    with one_core_per_product():
        for layer, seen in zip(weights.layers, past, strict=True):
            y = layer_norm_of_rows(x, layer.norm, layer.norm_bias, EPS)
            query = split(product(y, layer.query, layer.query_bias))
            key = split(product(y, layer.key))
            value = split(product(y, layer.value, layer.value_bias))
            made_keys.append(key)
            made_values.append(value)
            y = _attend(query, key, value, seen, visible)
            x = x + product(y.swapaxes(1, 2).reshape(x.shape), layer.out, layer.out_bias)
            y = layer_norm_of_rows(x, layer.cross_norm, layer.cross_norm_bias, EPS)
            query = np.ascontiguousarray(split(product(y, layer.cross_query, layer.cross_query_bias)))
            y = attention_by_row(query, seen.audio_keys, seen.audio_values, scale=width**-0.5, wanted=used)
            x += product(y.swapaxes(1, 2).reshape(x.shape), layer.cross_out, layer.cross_out_bias)
            y = product(layer_norm_of_rows(x, layer.mlp_norm, layer.mlp_norm_bias, EPS), layer.up, layer.up_bias)
            x += product(gelu_numpy(y), layer.down, layer.down_bias)
        return Step(_logits(x, weights), made_keys, made_values)


def logits(x: np.ndarray, weights: HostWeights) -> np.ndarray:
    """The last norm and the output layer: what the last layer gave, (rows, width) → (rows, vocabulary)"""
    with one_core_per_product():
        return _logits(x, weights)


def _logits(x: np.ndarray, weights: HostWeights) -> np.ndarray:
    """`logits`, inside `one_core_per_product`."""
    return product(layer_norm_of_rows(x, weights.norm, weights.norm_bias, EPS), weights.output)


def _split(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
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
    highest = np.maximum(scores.max(axis=-1, keepdims=True, initial=-np.inf), itself)
    scores = np.exp(scores - highest)
    itself = np.exp(itself - highest)
    return (scores @ past.values + itself * value) / (scores.sum(axis=-1, keepdims=True) + itself)
