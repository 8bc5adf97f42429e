"""What runs in NumPy on a CPU: equal to the plain graph, also where there is nothing to see or to add up."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch

import mlx_speech.ops.matrix_vector as matrix_vector_module
from mlx_speech import blas
from mlx_speech.models.layers import LSTM, Conv2d, FilterBank, TimeNorm
from mlx_speech.ops import cpu, decoder_step, filter_bank
from mlx_speech.ops.attention import SMALLEST_KEYS_FOR_NUMPY, attention, attention_by_row, attention_numpy
from mlx_speech.ops.conv3x3 import conv3x3
from mlx_speech.ops.few_rows import MOST_ROWS, MOST_ROWS_OF_PANELS, OUTPUTS_PER_PANEL, linear, panels_of, product
from mlx_speech.ops.filter_bank import Layout, loudness, loudness_graph
from mlx_speech.ops.gelu import NUMBERS_PER_PART, gelu
from mlx_speech.ops.grouped_conv import grouped_conv, grouped_conv_graph
from mlx_speech.ops.layer_norm import SMALLEST_FOR_NUMPY as SMALLEST_NORM_FOR_NUMPY
from mlx_speech.ops.layer_norm import layer_norm, layer_norm_numpy
from mlx_speech.ops.log_sum_exp import log_sum_exp
from mlx_speech.ops.matrix_vector import matrix_vector
from mlx_speech.ops.pooled_conv import pooled_conv, pooled_conv_graph
from mlx_speech.ops.rectified import rectified_linear, rectified_linear_graph
from mlx_speech.ops.time_norm import time_norm, time_norm_graph
from mlx_speech.ops.waveform_conv import STEPS_PER_BLOCK, Kind, Layer, frames_graph, frames_of

LARGE = NUMBERS_PER_PART * 2 + 7  # numbers: several blocks and a part of one


def draw(*shape: int, scale: float = 1.0, seed: int = 0) -> mx.array:
    return mx.array((np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32))


@pytest.fixture
def numpy_runs(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether NumPy took the work, call by call: a test of the graph against itself would say nothing."""
    taken: list[bool] = []
    real = cpu.numpy_views

    def views(arrays: tuple[mx.array, ...]) -> list[np.ndarray]:
        taken.append(True)
        return real(arrays)

    monkeypatch.setattr(cpu, "numpy_views", views)
    return taken


def test_gelu_is_exact(numpy_runs: list[bool]) -> None:
    edges = mx.array([0.0, -0.0, 5, -5, 6, -6, 8, -8, 40, -40, 1e4, -1e4, 1e18, -1e18, 3e38, -3e38])
    x = mx.concatenate([draw(LARGE, scale=3), edges])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of what overflows
        found = np.array(gelu(x))
        nowhere = np.array(gelu(mx.concatenate([x, mx.array([math.inf, -math.inf, math.nan])])))[-3:]
    expected = torch.nn.functional.gelu(torch.from_numpy(np.array(x)).double()).numpy()
    assert np.allclose(found, expected, rtol=1e-7, atol=1e-6)
    assert nowhere[0] == math.inf and np.isnan(nowhere[1:]).all()  # below all numbers there is none for torch either
    assert numpy_runs == [True] * 2
    turned = draw(300, 400).swapaxes(0, 1)  # not in the order of memory
    assert np.abs(np.array(gelu(turned) - nn.gelu(turned))).max() < 1e-6


@pytest.mark.parametrize(
    "shape, keys",
    [((1, 2, 300, 64), 310), ((2, 3, 257, 16), 700), ((8, 6, 1, 64), 1500), ((2, 2, 5, 32), 900), ((3, 6, 1, 64), 97)],
)
@pytest.mark.parametrize("masked", ["no", "rows", "all"])
def test_attention_is_that_of_the_graph(shape: tuple[int, ...], keys: int, masked: str, numpy_runs) -> None:
    q, k, v = draw(*shape), draw(*shape[:2], keys, shape[3], seed=1), draw(*shape[:2], keys, shape[3], seed=2)
    mask, rng = None, np.random.default_rng(3)
    if masked == "rows":  # as of padded batches
        mask = mx.arange(keys) < mx.array(rng.integers(1, keys, shape[0]))[:, None, None, None]
    elif masked == "all":
        seen = rng.random((*shape[:3], keys)) < 0.3
        seen[..., 0] = True
        mask = mx.array(seen)
    expected = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask=mask)
    found = attention(q, k, v, scale=0.3, mask=mask)
    assert numpy_runs == [True] * (k.size >= SMALLEST_KEYS_FOR_NUMPY)
    assert found.shape == expected.shape and np.abs(np.array(found - expected)).max() < 2e-5


def test_sums_of_exponentials(numpy_runs: list[bool]) -> None:
    x = np.random.default_rng(4).normal(size=(4, 51865)) * 8
    x[1, 100:] = -np.inf
    x[2] = -np.inf
    top = np.where(np.isinf(x.max(axis=1)), 0, x.max(axis=1))[:, None]
    with np.errstate(divide="ignore"):
        expected = np.log(np.exp(x - top).sum(axis=1, keepdims=True)) + top
    found = np.array(log_sum_exp(mx.array(x.astype(np.float32))))
    assert numpy_runs == [True] and found[2] == -np.inf
    assert np.abs(found[[0, 1, 3]] - expected[[0, 1, 3]]).max() < 1e-5


@pytest.mark.parametrize("height", [64, 65, 66, 67])
@pytest.mark.parametrize("inputs, outputs, batch, width", [(16, 24, 1, 33), (32, 32, 2, 250), (5, 7, 3, 2100)])
def test_convolutions_are_the_originals(height: int, inputs: int, outputs: int, batch: int, width: int, numpy_runs):
    layer, x = Conv2d(inputs, outputs, 3, padding=1), draw(batch, height, width, inputs)
    layer.weight = draw(outputs, 3, 3, inputs, scale=(9 * inputs) ** -0.5, seed=5)
    layer.bias = draw(outputs, seed=6)
    x64, weight, bias = (torch.from_numpy(np.array(a)).double() for a in (x, layer.weight, layer.bias))
    expected = torch.nn.functional.conv2d(x64.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2), bias, padding=1)
    assert np.abs(np.array(layer(x)) - expected.permute(0, 2, 3, 1).numpy()).max() < 3e-5
    assert numpy_runs == [True]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "how",
    [
        *({"stride": 2, "padding": 1}, {"padding": 0}, {"padding": (1, 1), "dilation": 2}, {"padding": 1, "groups": 4}),
        *({"padding": 1, "dilation": (1, 2)}, {"padding": 2, "dilation": 2}, {"padding": 1, "dilation": (1, 1)}),
        {"padding": 1},
    ],
    ids=str,
)
def test_every_convolution_is_that_of_mlx(how: dict, bias: bool) -> None:
    """In each of torch's and MLX's options: the fast way is taken where it computes the same."""
    x, layer = draw(1, 50, 100, 16), Conv2d(16, 8, 3, bias=bias, **how)
    layer.weight = draw(*layer.weight.shape, scale=0.05, seed=5)
    if bias:
        layer.bias = draw(8, seed=6)
    expected = mx.conv2d(x, layer.weight, **how) + (layer.bias if bias else 0)
    found = layer(x)
    assert found.shape == expected.shape and np.abs(np.array(found - expected)).max() < 3e-6


def a_bank() -> tuple[FilterBank, TimeNorm, mx.array]:
    """80 filters of 251 taps, the first of which hear next to nothing of a low tone, a norm, and that tone."""
    layer = FilterBank(80, 251, 10, 1)
    taps = np.arange(-125, 126) / 16000
    bands = np.linspace(7900, 50, 80)[:, None]
    layer.weight = mx.array((np.cos(2 * np.pi * bands * taps) * np.hamming(251)).astype(np.float32)[..., None])
    norm = TimeNorm(1)
    norm.weight = mx.array([0.7])
    norm.bias = mx.array([0.01])
    time = np.arange(40_000) / 16000
    return layer, norm, mx.array((3 * np.sin(2 * np.pi * 100 * time) + 0.2).astype(np.float32))


def test_a_filter_bank_is_rounded_once(numpy_runs: list[bool]) -> None:
    """Windows that overlap, in step with the first and not, and one that is apart: each as if it were alone."""
    layer, norm, samples = a_bank()
    starts = [0, 5_000, 5_000, 7_003, 29_990]
    found = np.array(layer(samples, starts, 10_001, norm))
    rows = np.stack([np.array(samples)[start : start + 10_001] for start in starts]).astype(np.float64)
    centred = rows - rows.mean(axis=1, keepdims=True)
    scale = float(norm.weight.item()) / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + 1e-5)
    normed = torch.from_numpy(centred * scale + float(norm.bias.item()))[:, None]
    filters = torch.from_numpy(np.array(layer.weight)).double().swapaxes(1, 2)
    exact = torch.nn.functional.conv1d(normed, filters, stride=10).swapaxes(1, 2).abs().numpy()
    assert numpy_runs == [True] and found.shape == exact.shape
    quiet = np.abs(exact).max(axis=(0, 1))
    assert quiet.min() < 1e-3 * quiet.max()
    assert (np.abs(found - exact) <= 0.51 * np.spacing(np.abs(exact).astype(np.float32))).mean() > 0.999
    assert (np.abs(found - exact).max(axis=(0, 1)) < 1e-6 * quiet).all()
    for row, start in zip(found, starts, strict=True):
        assert np.array_equal(np.array(layer(samples, [start], 10_001, norm))[0], row)
    graph = mx.compile(lambda samples: layer(samples, starts, 10_001, norm))(samples)
    assert np.abs(np.array(graph) - found).max() < 1e-3 and numpy_runs == [True] * 6


@pytest.mark.parametrize("width", [8, 9])
@pytest.mark.parametrize("kinds", ["even", "odd", "other", "even odd other even"])
@pytest.mark.parametrize("pool, size", [(1, 100), (3, 100), (3, 2501), (4, 2000)])
def test_filters_may_be_the_same_from_both_ends(
    width: int, kinds: str, pool: int, size: int, numpy_runs: list[bool]
) -> None:
    rng = np.random.default_rng(5)
    filters: list[np.ndarray] = []
    for kind in kinds.split():
        taps = rng.normal(size=width).astype(np.float32)
        backwards = {"even": taps[::-1], "odd": -taps[::-1], "other": 2 * taps}[kind]
        filters.append(taps + backwards)
    weight = mx.array(np.stack(filters)[..., None])
    norm = mx.array([0.5]), mx.array([0.1])
    samples = draw(3000)
    layout = Layout((0, 30, 331), size, 3, pool)
    expected = loudness_graph(samples, *norm, weight, eps=1e-5, layout=layout)
    found = loudness(samples, *norm, 1e-5, weight, layout)
    assert numpy_runs == [True]
    assert found.shape == expected.shape == (3, ((size - width) // 3 + 1) // pool, len(filters))
    assert np.abs(np.array(found - expected)).max() < 1e-5


@pytest.mark.parametrize("most", [1, 100, 1000])
def test_what_windows_have_in_common_is_filtered_in_stretches(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few of the windows are filtered together, each gives the same."""
    rng = np.random.default_rng(3)
    samples = rng.normal(size=4000).astype(np.float32)
    weight = rng.normal(size=(6, 9, 1)).astype(np.float32)
    layout = Layout(tuple(range(0, 3001, 30)), 1000, 3, 3)
    arguments = (samples, np.ones(1, np.float32), np.zeros(1, np.float32), weight)
    together = filter_bank.loudness_numpy(*arguments, eps=1e-5, layout=layout)
    monkeypatch.setattr(filter_bank, "STEPS_PER_STRETCH", most)
    apart = filter_bank.loudness_numpy(*arguments, eps=1e-5, layout=layout)
    assert np.array_equal(together, apart)


@pytest.mark.parametrize("samples", [15, 16, 100, 4000])
@pytest.mark.parametrize("width, pool", [(5, 3), (1, 1), (3, 4)])
def test_a_pooled_convolution_is_that_of_the_graph(samples: int, width: int, pool: int, numpy_runs: list[bool]) -> None:
    x = draw(3, samples, 7)
    weight = draw(5, width, 7, seed=1)
    bias = draw(5, seed=2)
    expected = pooled_conv_graph(x, weight, bias, pool)
    found = pooled_conv(x, weight, bias, pool)
    assert numpy_runs == [True]
    assert found.shape == expected.shape == (3, (samples - width + 1) // pool, 5)
    assert np.abs(np.array(found - expected)).max() < 2e-5


@pytest.mark.parametrize("steps", [1, 511, 1030])
def test_a_rectified_product_is_that_of_the_graph(steps: int, numpy_runs: list[bool]) -> None:
    """With scales that are negative, nothing, and so small that no channel reaches the other side."""
    x = draw(2, steps, 40)
    scale = 1 + draw(40, scale=0.3, seed=1)
    scale[3:6] = -scale[3:6]
    scale[7:9] = 0
    scale[10:12] = 1e-38
    shift = draw(40, seed=2)
    shift[7:9] = mx.array([1.0, -1.0])
    shift[10:12] = mx.array([1e5, -1e5])
    arrays = (x, scale, shift, draw(30, 40, seed=3), draw(30, seed=4))
    found = rectified_linear(*arrays)
    expected = rectified_linear_graph(*arrays)
    assert numpy_runs == [True] and found.shape == expected.shape == (2, steps, 30)
    allowed = 1e-6 * np.abs(np.array(arrays[3])).sum(axis=1) * np.abs(np.array(shift)).max()
    assert (np.abs(np.array(found - expected)) < allowed).all()


@pytest.mark.parametrize("rows", [1, 2, 5, MOST_ROWS, MOST_ROWS + 1])
@pytest.mark.parametrize("outputs, inputs", [(1, 3), (17, 64), (2_000, 33), (100, 70_000), (9_000, 512)])
def test_a_product_of_few_rows(rows: int, outputs: int, inputs: int) -> None:
    """In one block, in several, the last of them smaller, and by two threads."""
    x = np.array(draw(rows, inputs))
    weight = np.array(draw(outputs, inputs, seed=1))
    bias = np.array(draw(outputs, seed=2))
    expected = x.astype(np.float64) @ weight.T.astype(np.float64)
    found = product(x, weight)
    assert found.shape == (rows, outputs) and found.dtype == np.float32 and found.flags.c_contiguous
    assert np.abs(found - expected).max() < 1e-6 * inputs
    assert np.array_equal(product(x, weight, bias), found + bias)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 6, 7, MOST_ROWS_OF_PANELS, MOST_ROWS_OF_PANELS + 1])
@pytest.mark.parametrize(
    "outputs, inputs", [(1, 3), (OUTPUTS_PER_PANEL, 64), (2_001, 33), (100, 70_000), (600, 2_048), (9_000, 512)]
)
def test_a_product_with_panels(rows: int, outputs: int, inputs: int) -> None:
    """Of one panel and of several, the last of which is not full, by two threads, and with some rows at a time."""
    x = np.array(draw(rows, inputs))
    weight = np.array(draw(outputs, inputs, seed=1))
    bias = np.array(draw(outputs, seed=2))
    (packed,) = panels_of([weight])
    expected = x.astype(np.float64) @ weight.T.astype(np.float64)
    found = product(x, packed)
    assert found.shape == (rows, outputs) and found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-6 * inputs
    assert np.array_equal(product(x, packed, bias), found + bias)
    other, again = panels_of([weight[:, :1], np.asfortranarray(weight)])  # whatever lies beside it
    assert np.array_equal(again.numbers, packed.numbers) and again.outputs == outputs
    assert np.array_equal(product(x[:, :1], other), x[:, :1] @ weight[:, :1].T)


@pytest.mark.parametrize("rows", [1, MOST_ROWS, MOST_ROWS + 1])
def test_a_linear_layer_of_few_rows(rows: int, numpy_runs: list[bool]) -> None:
    """NumPy takes as many rows as it is faster with, and the result is the graph's."""
    weight = draw(77, 30)
    x = draw(rows, 1, 30, seed=1)
    found = linear(x, weight)
    assert found.shape == (rows, 1, 77)
    assert numpy_runs == [True] * (rows <= MOST_ROWS)
    assert np.abs(np.array(found - x @ weight.T)).max() < 1e-5
    assert linear(x.astype(mx.float16), weight.astype(mx.float16)).dtype == mx.float16


@pytest.mark.parametrize("shape", [(1, 2), (3, 7, 24), (2_000, 300), (300, 4_096)])
def test_a_layer_norm_is_torchs(shape: tuple[int, ...], numpy_runs: list[bool]) -> None:
    """Also where the mean is a hundred times the deviation, and where nothing deviates."""
    x = draw(*shape)
    x[0] = 100 + x[0]
    x[-1] = 7
    weight = draw(shape[-1], seed=1)
    bias = draw(shape[-1], seed=2)
    theirs = (torch.from_numpy(np.array(array)).double() for array in (x, weight, bias))
    expected = torch.nn.functional.layer_norm(next(theirs), shape[-1:], *theirs, eps=1e-5).numpy()
    found = layer_norm(x, weight, bias, 1e-5)
    assert found.shape == shape and numpy_runs == [True] * (x.size >= SMALLEST_NORM_FOR_NUMPY)
    by_numpy = layer_norm_numpy(np.array(x), np.array(weight), np.array(bias), 1e-5)
    for result in (np.array(found), by_numpy):
        assert np.abs(result - expected)[1:].max(initial=0) < 1e-5
        assert np.abs(result - expected).max() < 1e-3  # float32 knows 100 to 8e-6


@pytest.mark.parametrize("largest", [1e-3, 1.0, 8.0, 30.0, 1e3, 1e18])
def test_attention_whatever_the_scores(largest: float, numpy_runs: list[bool]) -> None:
    """Up to scores of `largest`², of both signs, with and without a mask, where a query sees one key or all."""
    queries = draw(1, 2, 300, 8)
    queries = queries * largest / mx.linalg.norm(queries, axis=-1, keepdims=True)
    keys = draw(1, 2, 2_100, 8, seed=1)
    keys = keys * largest / mx.linalg.norm(keys, axis=-1, keepdims=True)
    values = 100 * draw(1, 2, 2_100, 8, seed=2)
    mask = draw(1, 1, 300, 2_100, seed=3) > 0
    mask[..., :10, 1:] = False
    mask[..., :10, 0] = True
    theirs = [torch.from_numpy(np.array(array)).double() for array in (queries, keys, values)]
    for seen in (None, mask):
        their_mask = None if seen is None else torch.from_numpy(np.array(seen))
        expected = torch.nn.functional.scaled_dot_product_attention(*theirs, attn_mask=their_mask, scale=1.0).numpy()
        found = np.array(attention(queries, keys, values, scale=1.0, mask=seen))
        assert np.isfinite(found).all()
        if seen is not None:  # one key is one value, whatever its score
            assert np.allclose(found[:, :, :10], np.array(values)[:, :, :1], rtol=1e-6)
        # a score of 900 is known to 1e-4, and so is what it makes of values of some 100
        assert largest > 30 or np.abs(found - expected).max() < 1e-5 * max(1.0, largest**2) * 100
    assert numpy_runs == [True, True]


def test_a_query_that_is_no_number_spoils_no_other() -> None:
    queries = 20 * draw(1, 2, 300, 8)
    keys = 20 * draw(1, 2, 2_100, 8, seed=1)
    values = draw(1, 2, 2_100, 8, seed=2)
    expected = np.array(attention(queries, keys, values, scale=1.0))
    queries[0, 0, 3] = math.nan
    found = np.array(attention(queries, keys, values, scale=1.0))
    assert np.isfinite(expected).all() and np.isnan(found[0, 0, 3]).all()
    found[0, 0, 3] = expected[0, 0, 3]
    assert np.array_equal(found, expected)


def a_decoder(layers: int, width: int, vocabulary: int) -> decoder_step.DecoderWeights:
    """Random weights."""
    seeds = iter(range(1_000))

    def weight(*shape: int) -> mx.array:
        return draw(*shape, scale=shape[-1] ** -0.5, seed=next(seeds))

    def vector(mean: float = 0.0) -> mx.array:
        return mean + draw(width, scale=0.1, seed=next(seeds))

    sizes = {"up": (4 * width, width), "up_bias": (4 * width,), "down": (width, 4 * width)}
    made = []
    for _ in range(layers):
        arrays = {}
        for name in decoder_step.Weights._fields:
            if name.endswith("norm"):
                arrays[name] = vector(1)
            elif name.endswith("bias") and name not in sizes:
                arrays[name] = vector()
            else:
                arrays[name] = weight(*sizes.get(name, (width, width)))
        made.append(decoder_step.Weights(**arrays))
    return decoder_step.DecoderWeights(made, weight(vocabulary, width), weight(9, width), vector(1), vector())


def by_torch(
    x: torch.Tensor, visible: torch.Tensor, weights: Any, past: list[Any]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """`decoder_step.step` in float64: the logits, and the keys and values of each layer, (rows · group, width)."""
    rows, _, group, _ = visible.shape
    heads, width = past[0].keys.shape[1], past[0].keys.shape[3]
    functional = torch.nn.functional

    def split(values: torch.Tensor) -> torch.Tensor:
        return values.reshape(rows, group, heads, width).swapaxes(1, 2)

    def norm(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(values, values.shape[-1:], weight, bias)

    def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: Any = None) -> torch.Tensor:
        y = functional.scaled_dot_product_attention(split(queries), keys, values, attn_mask=mask)
        return y.swapaxes(1, 2).reshape(x.shape)

    itself = torch.eye(group).bool().expand(rows, 1, group, group)
    mask = torch.cat([visible, itself], dim=-1)
    made = []
    for layer, seen in zip(weights.layers, past, strict=True):
        y = norm(x, layer.norm, layer.norm_bias)
        key = y @ layer.key.T
        value = y @ layer.value.T + layer.value_bias
        made += [key, value]
        keys = torch.cat([seen.keys, split(key)], dim=2)
        values = torch.cat([seen.values, split(value)], dim=2)
        x = x + attend(y @ layer.query.T + layer.query_bias, keys, values, mask) @ layer.out.T + layer.out_bias
        query = norm(x, layer.cross_norm, layer.cross_norm_bias) @ layer.cross_query.T + layer.cross_query_bias
        heard = [seen.audio_keys.swapaxes(2, 3), seen.audio_values.swapaxes(2, 3)]
        x = x + attend(query, *heard) @ layer.cross_out.T + layer.cross_out_bias
        y = functional.gelu(norm(x, layer.mlp_norm, layer.mlp_norm_bias) @ layer.up.T + layer.up_bias)
        x = x + y @ layer.down.T + layer.down_bias
    return norm(x, weights.norm, weights.norm_bias) @ weights.embedding.T, made


@pytest.mark.parametrize("in_panels", [False, True])
@pytest.mark.parametrize("rows, group, keys", [(1, 1, 3), (2, 3, 24), (5, 1, 700), (1, 30, 60), (3, 20, 5)])
def test_a_step_of_a_decoder_is_torchs(rows: int, group: int, keys: int, in_panels: bool) -> None:
    heads, width, layers, vocabulary = 3, 24, 2, 50
    weights = a_decoder(layers, width, vocabulary)
    host = decoder_step.HostWeights.of(weights, in_panels=in_panels)
    seeds = iter(range(100))

    def keys_or_values(length: int) -> np.ndarray:
        return np.array(draw(rows, heads, length, width // heads, seed=next(seeds)))

    def of_audio() -> np.ndarray:
        return np.array(draw(rows, heads, width // heads, 50, seed=next(seeds)))

    past = []
    for _ in range(layers):
        past.append(decoder_step.Past(keys_or_values(keys), keys_or_values(keys), of_audio(), of_audio()))
    x = np.array(draw(rows * group, width, seed=next(seeds)))
    visible = np.array(draw(rows, 1, group, keys, seed=next(seeds)) > 0)
    visible[0] = False  # a hypothesis that sees nothing but itself
    found = decoder_step.step(x, visible, host, past, range(rows))

    def double(array: Any) -> torch.Tensor:
        return torch.from_numpy(np.array(array)).double()

    theirs = weights._replace(
        layers=[layer._make(map(double, layer)) for layer in weights.layers],
        embedding=double(weights.embedding),
        norm=double(weights.norm),
        norm_bias=double(weights.norm_bias),
    )
    seen = [decoder_step.Past._make(map(double, layer)) for layer in past]
    logits, made = by_torch(double(x), torch.from_numpy(visible), theirs, seen)
    assert found.logits.shape == (rows * group, vocabulary) and found.logits.dtype == np.float32
    assert np.abs(found.logits - logits.numpy()).max() < 2e-5
    own = [array for layer in zip(found.keys, found.values, strict=True) for array in layer]
    for array, wanted in zip(own, made, strict=True):
        assert array.shape == (rows, heads, group, width // heads)
        assert np.abs(array.swapaxes(1, 2).reshape(rows * group, width) - wanted.numpy()).max() < 2e-5
    for used in ([], [rows - 1], sorted({0, rows // 2})):
        partly = decoder_step.step(x, visible, host, past, used).logits.reshape(rows, group, vocabulary)
        assert np.array_equal(partly[used], found.logits.reshape(rows, group, vocabulary)[used])
        assert np.isfinite(partly).all()


@pytest.mark.parametrize("queries", [1, 5, 30])
def test_attention_of_some_rows_is_that_of_all(queries: int) -> None:
    batch, heads, width = 7, 2, 8
    keys = np.array(draw(batch, heads, width, 40))
    values = np.array(draw(batch, heads, width, 40, seed=1))
    of_each = np.array(draw(batch, heads, queries, width, seed=2))
    every = attention_by_row(of_each, list(keys), list(values), scale=0.3, wanted=range(batch))
    together = attention_numpy(of_each, keys.swapaxes(2, 3), values.swapaxes(2, 3), scale=0.3, mask=None)
    np.testing.assert_allclose(every, together, rtol=1e-5, atol=1e-6)
    for wanted in ([], [0], [6], [1, 2, 3, 5], list(range(batch))):
        own_keys = [keys[row] if row in wanted else None for row in range(batch)]
        own_values = [values[row] if row in wanted else None for row in range(batch)]
        found = attention_by_row(of_each, own_keys, own_values, scale=0.3, wanted=wanted)
        assert np.array_equal(found[wanted], every[wanted])
        assert not np.delete(found, wanted, axis=0).any()
    with pytest.raises(ValueError, match="row 1 has no keys and values"):
        attention_by_row(of_each, [None] * batch, [None] * batch, scale=0.3, wanted=[1])


@pytest.mark.parametrize("served", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("outputs, inputs", [(1, 1), (5, 7), (300, 512), (512, 300), (9_000, 130)])
def test_a_matrix_times_a_vector(
    outputs: int, inputs: int, dtype: type, served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the BLAS that serves MLX, and by NumPy where there is none, numbers are apart, or no float32."""
    library = blas.openblas()
    if library is None:
        pytest.skip("no OpenBLAS here")
    asked: list[int] = []

    class Library:
        openblas_get_num_threads = library.openblas_get_num_threads
        openblas_set_num_threads = library.openblas_set_num_threads

        def cblas_sgemv(self, *arguments: Any) -> None:
            asked.append(library.openblas_get_num_threads())
            library.cblas_sgemv(*arguments)

    monkeypatch.setattr(matrix_vector_module, "openblas", lambda: Library() if served else None)
    wide = np.array(draw(outputs, 2 * inputs)).astype(dtype)
    vectors = np.array(draw(inputs, 2, seed=1))
    plain = wide[:, :inputs].copy()
    with cpu.threads().blas.limit(limits=1):
        for matrix in (plain, wide[:, :inputs], wide[:, ::2], np.asfortranarray(plain)):
            for vector in (vectors[:, 0].copy(), vectors[:, 0]):
                found = matrix_vector(matrix, vector)
                expected = matrix.astype(np.float64) @ vector.astype(np.float64)
                assert found.shape == (outputs,) and np.abs(found - expected).max() < 1e-6 * inputs
        assert {library["num_threads"] for library in cpu.threads().blas.info()} == {1}
    is_large = outputs * inputs >= matrix_vector_module.SMALLEST_FOR_THREADS
    assert asked == [cpu.threads().count] * (served and is_large and dtype == np.float32)


@pytest.mark.parametrize("failing", [None, 0, 3, 17])
def test_parts_are_computed_once_each_or_their_error_is_raised(failing: int | None) -> None:
    computed: list[int] = []

    def compute(part: int) -> None:
        if part == failing:
            raise ValueError(part)
        computed.append(part)

    if failing is None:
        cpu.in_parallel(compute, range(40))
        assert sorted(computed) == list(range(40))
    else:
        with pytest.raises(ValueError, match=str(failing)):
            cpu.in_parallel(compute, range(40))
        assert len(set(computed)) == len(computed) < 40
    done = len(computed)
    cpu.in_parallel(compute, [])
    assert len(computed) == done  # nobody goes on behind the caller's back


@pytest.mark.parametrize("steps, channels", [(1, 3), (1000, 1), (50_000, 4), (333, 600)])
def test_a_time_norm_is_torchs(steps: int, channels: int, numpy_runs: list[bool]) -> None:
    """Also where the mean is a thousand times the deviation, and where nothing deviates."""
    x = draw(2, steps, channels)
    x[1] = 1000 + x[1]
    x[0, :, 0] = 7
    weight = draw(channels, seed=1)
    bias = draw(channels, seed=2)
    theirs = torch.from_numpy(np.array(x)).double().swapaxes(1, 2)
    deviation = theirs.var(dim=2, correction=0, keepdim=True)
    normed = (theirs - theirs.mean(dim=2, keepdim=True)) / (deviation + 1e-5).sqrt()
    expected = normed.swapaxes(1, 2).numpy() * np.array(weight) + np.array(bias)
    found = np.array(time_norm(x, weight, bias, 1e-5))
    assert numpy_runs == [True] and found.shape == expected.shape
    assert np.abs(found[0] - expected[0]).max() < 1e-5
    assert np.abs(found[1] - expected[1]).max() < 3e-4  # float32 knows 1000 to 6e-5
    graph = np.array(time_norm_graph(x, weight, bias, 1e-5))
    assert np.abs(found - graph).max() < 1e-3


@pytest.mark.skipif(blas.core() is None, reason="no OpenBLAS")
@pytest.mark.parametrize("core", [*blas._CORES.values(), blas._FALLBACK])
def test_a_filter_bank_does_not_depend_on_the_blas(core: str, tmp_path: Path) -> None:
    """Two threads of OpenBLAS's kernels for other CPUs: the same to float32's last digit, however small the sum."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    if core != blas._FALLBACK and not any(blas._CORES.get(flag) == core for flag in flags):
        pytest.skip(f"no CPU that computes as {core}")
    layer, norm, samples = a_bank()
    arrays = {"weight": layer.weight, "samples": samples, "norm_weight": norm.weight, "norm_bias": norm.bias}
    np.savez(tmp_path / "bank.npz", **{name: np.array(array) for name, array in arrays.items()})
    script = """
import sys
from mlx_speech import blas
blas.configure()
from mlx_speech.ops.filter_bank import Layout, loudness
import mlx.core as mx, numpy as np
bank = {name: mx.array(array) for name, array in np.load(sys.argv[1]).items()}
layout = Layout((0, 10_000), 20_000, 10, 1)
np.save(sys.argv[2], loudness(bank["samples"], bank["norm_weight"], bank["norm_bias"], 1e-5, bank["weight"], layout))
print(blas.core())
"""
    own = {**os.environ, "OPENBLAS_CORETYPE": core, "OPENBLAS_NUM_THREADS": "2"}
    call = [sys.executable, "-c", script, str(tmp_path / "bank.npz"), str(tmp_path / "found.npy")]
    done = subprocess.run(call, capture_output=True, text=True, check=True, env=own)
    assert done.stdout.strip() == core
    here, there = np.array(layer(samples, [0, 10_000], 20_000, norm)), np.load(tmp_path / "found.npy")
    assert (np.abs(here - there).max(axis=(0, 1)) <= 1.2e-7 * np.abs(here).max(axis=(0, 1))).all()


def test_derivatives_are_the_graphs(numpy_runs: list[bool]) -> None:
    x, q, k = draw(LARGE), draw(1, 2, 300, 64), draw(1, 2, 300, 64, seed=1)
    found, expected = (mx.grad(lambda x, f=f: f(2 * x).sum())(x) for f in (gelu, nn.gelu))
    assert np.abs(np.array(found - expected)).max() < 1e-5 and numpy_runs == [True]
    found, expected = (
        mx.grad(lambda q, f=f: (f(q, k, k * q, scale=0.3) * k).sum())(q)
        for f in (attention, mx.fast.scaled_dot_product_attention)
    )
    assert np.abs(np.array(found - expected)).max() < 1e-4
    (found,), (expected,) = (mx.jvp(f, [x], [2 * x])[1] for f in (gelu, nn.gelu))
    assert np.abs(np.array(found - expected)).max() < 1e-5
    layer = Conv2d(8, 8, 3, padding=1)
    image = draw(1, 50, 100, 8)
    weights = mx.grad(lambda w: (conv3x3(image, w, layer.bias) * image).sum())(layer.weight)
    expected = mx.grad(lambda w: (mx.conv2d(image, w, padding=1) * image).sum())(layer.weight)
    assert np.abs(np.array(weights - expected)).max() < 1e-2 * np.abs(np.array(expected)).max()


@pytest.mark.parametrize("training", [False, True])
def test_derivatives_of_an_lstm_are_those_of_torch(training: bool, numpy_runs: list[bool]) -> None:
    """In eval mode too, where NumPy runs it: through what it returns, and through its last state."""
    original = torch.nn.LSTM(3, 4, batch_first=True)
    layer = LSTM(3, 4).train(training)
    layer.Wx, layer.Wh = (mx.array(getattr(original, f"weight_{k}_l0").detach().numpy())[None] for k in ("ih", "hh"))
    layer.bias = mx.array((original.bias_ih_l0 + original.bias_hh_l0).detach().numpy())[None]
    x = draw(2, 9, 3)

    def loss(x: mx.array) -> mx.array:
        outputs, (h, c) = layer(x)
        return (outputs * mx.arange(9)[:, None]).sum() + h.sum() - 3 * c.sum()

    found = mx.grad(loss)(x)
    with torch.enable_grad():  # an original that another test has loaded may have switched it off
        theirs = torch.from_numpy(np.array(x)).requires_grad_()
        outputs, (h, c) = original(theirs)
        ((outputs * torch.arange(9)[:, None]).sum() + h.sum() - 3 * c.sum()).backward()
    assert numpy_runs == [True]
    assert theirs.grad is not None and np.abs(np.array(found) - theirs.grad.numpy()).max() < 1e-5


def test_they_take_turns_and_give_the_threads_back() -> None:
    """From several threads at once: the right numbers, and products have as many threads as before."""
    x, q = draw(LARGE), draw(4, 2, 300, 64)
    mx.eval(x, q)
    expected = np.array(gelu(x)), np.array(attention(q, q, q, scale=0.1))
    limits = cpu.threads().blas
    before = [one["num_threads"] for one in limits.info()]

    start = threading.Barrier(4)

    def work(_: int) -> bool:
        start.wait()  # each has a thread of its own
        found = [(np.array(gelu(x)), np.array(attention(q, q, q, scale=0.1))) for _ in range(6)]
        mx.clear_streams()
        return all(np.array_equal(*pair) for own in found for pair in zip(own, expected, strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [True] * 4
    assert [one["num_threads"] for one in limits.info()] == before


def test_compiled_and_mapped_they_are_the_graph(numpy_runs: list[bool]) -> None:
    x = draw(3, LARGE)
    expected = np.array(log_sum_exp(x))
    assert numpy_runs == [True]
    for function in (mx.compile(log_sum_exp), mx.vmap(log_sum_exp)):
        assert np.abs(np.array(function(x)) - expected).max() < 1e-4
    assert numpy_runs == [True]


def test_other_dtypes_stay(numpy_runs: list[bool]) -> None:
    half = draw(1, 2, 300, 64).astype(mx.float16)
    assert gelu(half).dtype == mx.float16 == attention(half, half, half, scale=1.0).dtype
    assert not numpy_runs


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="about glibc")
def test_memory_is_kept_until_it_is_given_back() -> None:
    script = """
import os, mlx_speech
from mlx_speech import blas
blas.keep_memory()
import mlx.core as mx
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
before = resident()
x = mx.ones((100, 1000, 1000)); mx.eval(x); held = resident() - before
del x; mx.clear_cache(); kept = resident() - before
blas.give_back(); print(held, kept, resident() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    held, kept, left = map(float, done.stdout.split())
    assert held > 390 and kept > 390 and left < 50, done.stdout


@pytest.mark.skipif(blas.core() is None, reason="no OpenBLAS")
def test_openblas_is_told_of_a_cpu_that_it_does_not_know() -> None:
    """It takes one for a Prescott then, and is several times slower; unless the user wants just that."""
    script = """
import ctypes, os, sys
if sys.argv[1] == "unknown":  # to OpenBLAS alone, as if it had found nothing better
    ctypes.CDLL(None).setenv(b"OPENBLAS_CORETYPE", b"Prescott", 1)
else:
    os.environ["OPENBLAS_CORETYPE"] = "Prescott"
from mlx_speech import blas
blas.configure()
print(blas.core(), os.environ.get("OPENBLAS_CORETYPE"))
import mlx.core as mx
print(mx.abs(mx.ones((70, 90)) @ mx.ones((90, 50)) - 90).max().item())
"""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    better = next((core for flag, core in blas._CORES.items() if flag in flags), "Prescott")
    own = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    for how, expected in (("wanted", "Prescott Prescott"), ("unknown", f"{better} None")):
        done = subprocess.run([sys.executable, "-c", script, how], capture_output=True, text=True, check=True, env=own)
        assert done.stdout.split("\n")[:2] == [expected, "0.0"], how


# --- a waveform to frames ---------------------------------------------------------------------------------------------


def layers_of(kinds: list[Kind], kernels: list[int], width: int = 24) -> list[Layer]:
    """Layers with weights drawn at random."""
    layers: list[Layer] = []
    for place, (kind, kernel) in enumerate(zip(kinds, kernels, strict=True)):
        inputs = width if place else 1
        weight = draw(width, kernel, inputs, scale=(kernel * inputs) ** -0.5, seed=place)
        bias = draw(width, seed=10 + place) if kind.has_bias else None
        norms = (1 + draw(width, scale=0.3, seed=20 + place), draw(width, seed=30 + place)) if kind.norm else ()
        layers.append(Layer(kind, weight, bias, *norms))
    return layers


WAVEFORMS = {
    "a norm over time": ([Kind(5, norm="time"), Kind(2), Kind(2), Kind(2)], [10, 3, 3, 2]),
    "norms of channels, and biases": ([Kind(5, True, "channels"), Kind(2, True, "channels")], [10, 3]),
    "a bias before the norm over time": ([Kind(3, True, "time"), Kind(1, True)], [4, 5]),
    "kernels shorter than strides": ([Kind(3), Kind(4, True)], [2, 3]),
    "one layer": ([Kind(5, norm="time")], [10]),
    "one layer without a norm": ([Kind(2)], [3]),
}


@pytest.mark.parametrize("name", WAVEFORMS)
@pytest.mark.parametrize("steps", [1, 7, 2 * STEPS_PER_BLOCK + 3])
def test_frames_of_a_waveform_are_those_of_the_graph(name: str, steps: int, numpy_runs: list[bool]) -> None:
    """steps : of the last layer"""
    kinds, kernels = WAVEFORMS[name]
    samples = steps
    for kind, kernel in zip(kinds[::-1], kernels[::-1], strict=True):
        samples = (samples - 1) * kind.stride + kernel
    layers = layers_of(kinds, kernels)
    arrays = [array for layer in layers for array in layer.arrays]
    waveform = 0.1 * draw(2, samples + kinds[0].stride - 1) + 0.05  # what no step covers is left; not centred
    first = (samples - kernels[0]) // kinds[0].stride + 1
    for lengths in (None, mx.array([first, max(first // 2, 1)])):
        expected = np.array(frames_graph(waveform, *arrays, kinds=kinds, lengths=lengths))
        found = np.array(frames_of(waveform, layers, lengths))
        assert found.shape == expected.shape == (2, steps, 24)
        counted = lengths is None or kinds[0].norm != "time" or first // 2 > 1  # of one step nothing is left to norm
        assert np.abs(found - expected)[: 2 if counted else 1].max() < 2e-5 * max(1, np.abs(expected).max())
    assert numpy_runs == [True, True]


def test_the_norm_of_a_waveform_that_is_far_from_zero() -> None:
    """Nothing is lost where the samples' mean is large beside their deviation."""
    layers = layers_of([Kind(5, norm="time")], [10])
    waveform = 1.0 + 1e-3 * draw(1, 4000)
    exact = np.array(waveform, np.float64)[0]
    covered = (
        np.lib.stride_tricks.sliding_window_view(exact, 10)[::5] @ np.array(layers[0].weight, np.float64)[..., 0].T
    )
    centred = (covered - covered.mean(axis=0)) / np.sqrt(covered.var(axis=0) + 1e-5)
    normed = torch.from_numpy(centred * np.array(layers[0].norm) + np.array(layers[0].norm_bias))
    expected = torch.nn.functional.gelu(normed).numpy()
    assert np.abs(np.array(frames_of(waveform, layers))[0] - expected).max() < 1e-4


@pytest.mark.parametrize("kernel, padding", [(128, 64), (5, 2), (4, 0), (1, 0)])
@pytest.mark.parametrize("batch, steps", [(1, 5), (1, 700), (3, 90)])
def test_a_grouped_convolution_is_that_of_the_graph(kernel: int, padding: int, batch: int, steps: int) -> None:
    x, weight, bias = draw(batch, steps, 24), draw(36, kernel, 6, scale=kernel**-0.5, seed=1), draw(36, seed=2)
    expected = np.array(grouped_conv_graph(x, weight, bias, groups=4, padding=padding))
    found = np.array(grouped_conv(x, weight, bias, groups=4, padding=padding))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5
