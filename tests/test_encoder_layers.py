"""The layers of Whisper's encoder as one operation in NumPy: torch's own, in float64, and when it is taken."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch

from mlx_speech.blas import as_on_gpu, on_cpu
from mlx_speech.models.whisper import AudioEncoder, ModelArgs
from mlx_speech.ops import encoder_layers
from mlx_speech.ops.encoder_layers import EncoderLayers, Weights, layers_graph

pytestmark = pytest.mark.skipif(not on_cpu(), reason="NumPy computes on a CPU")
SIZES = [(1, 1, 8, 2), (2, 131, 24, 3), (1, 300, 64, 1), (3, 96, 40, 5)]  # rows, steps, width, heads


def original(width: int, heads: int, seed: int) -> torch.nn.TransformerEncoderLayer:
    torch.manual_seed(seed)
    sizes = {"dim_feedforward": 4 * width, "dropout": 0.0, "activation": "gelu", "norm_first": True}
    layer = torch.nn.TransformerEncoderLayer(width, heads, **sizes, batch_first=True, dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * torch.randn_like(parameter) / parameter.shape[-1] ** 0.5
        layer.self_attn.in_proj_bias[width : 2 * width] = 0  # keys have none
    return layer


def weights_of(layer: torch.nn.TransformerEncoderLayer) -> Weights:
    attention = layer.self_attn
    query, key, value = attention.in_proj_weight.chunk(3)
    query_bias, _, value_bias = attention.in_proj_bias.chunk(3)
    return Weights(
        *(layer.norm1.weight, layer.norm1.bias, query, query_bias, key, value, value_bias),
        *(attention.out_proj.weight, attention.out_proj.bias, layer.norm2.weight, layer.norm2.bias),
        *(layer.linear1.weight, layer.linear1.bias, layer.linear2.weight, layer.linear2.bias),
    )


def some_layers(width: int, heads: int) -> tuple[list[torch.nn.TransformerEncoderLayer], list[Weights]]:
    """The originals, and their weights as MLX has them."""
    originals = [original(width, heads, seed) for seed in range(2)]
    weights = []
    for layer in originals:
        weights.append(Weights._make(mx.array(array.detach().float().numpy()) for array in weights_of(layer)))
    return originals, weights


def flat(weights: list[Weights]) -> list[mx.array]:
    return [array for layer in weights for array in layer]


@pytest.mark.parametrize("rows, steps, width, heads", SIZES)
def test_they_are_torchs(rows: int, steps: int, width: int, heads: int) -> None:
    originals, weights = some_layers(width, heads)
    x = np.random.default_rng(0).normal(size=(rows, steps, width)).astype(np.float32)
    expected = torch.from_numpy(x).double()
    with torch.no_grad():
        for layer in originals:
            expected = layer(expected)
    given = mx.array(x)
    found = EncoderLayers(heads)(given, weights)
    assert found.shape == x.shape and found.dtype == mx.float32
    assert np.abs(np.array(found) - expected.numpy()).max() < 1e-5
    assert np.array_equal(np.array(given), x)
    assert np.abs(np.array(layers_graph(given, *flat(weights), heads=heads)) - expected.numpy()).max() < 1e-5


def test_they_have_the_derivatives_of_the_graph() -> None:
    _, weights = some_layers(24, 3)
    layers = EncoderLayers(3)
    x = mx.random.normal((2, 50, 24), key=mx.random.key(1))

    def loss(arrays: list[mx.array], in_numpy: bool) -> mx.array:
        x, *rest = arrays
        made = [Weights._make(rest[:15]), Weights._make(rest[15:])]
        y = layers(x, made) if in_numpy else layers_graph(x, *rest, heads=3)
        return (y * mx.sin(y)).sum()

    arrays = [x, *flat(weights)]
    assert len(Weights._fields) == 15 and len(arrays) == 31
    found, expected = (mx.grad(lambda a, way=way: loss(a, way))(arrays) for way in (True, False))
    for own, wanted in zip(found, expected, strict=True):
        assert np.abs(np.array(wanted)).max() > 0
        assert np.abs(np.array(own - wanted)).max() < 1e-3 * np.abs(np.array(wanted)).max()
    compiled = mx.compile(lambda x: layers(x, weights))(x)
    assert np.abs(np.array(compiled - layers(x, weights))).max() < 1e-5


def an_encoder() -> AudioEncoder:
    sizes = {"n_mels": 4, "n_audio_ctx": 30, "n_audio_state": 32, "n_audio_head": 2, "n_audio_layer": 2}
    sizes |= {"n_vocab": 10, "n_text_ctx": 8, "n_text_state": 32, "n_text_head": 2, "n_text_layer": 1}
    encoder = AudioEncoder(ModelArgs(**sizes))
    for number, (_, parameter) in enumerate(nn.utils.tree_flatten(encoder.parameters())):
        parameter += 0.1 * mx.random.normal(parameter.shape, key=mx.random.key(number))
    return encoder


def by_the_graph(encoder: AudioEncoder, mel: mx.array) -> np.ndarray:
    with as_on_gpu():
        return np.array(encoder(mel))


def test_an_encoder_notices_that_its_weights_are_others() -> None:
    encoder = an_encoder()
    layers = encoder._layers_in_numpy
    mel = mx.random.normal((2, 60, 4), key=mx.random.key(0))
    before = np.array(encoder(mel))
    packed = layers._packed
    assert np.array_equal(np.array(encoder(mel)), before)
    assert packed is not None and layers._packed is packed

    def replace_a_matrix(block: Any) -> None:
        block.mlp2.weight = 2 * block.mlp2.weight

    def change_a_row(block: Any) -> None:
        block.attn.value.weight[3] = 5 * block.attn.value.weight[4]

    def change_a_bias(block: Any) -> None:
        block.mlp1.bias += mx.arange(block.mlp1.bias.size)

    def change_a_norm(block: Any) -> None:
        block.attn_ln.weight *= 3

    for change in (replace_a_matrix, change_a_row, change_a_bias, change_a_norm):
        change(encoder.blocks[1])
        found = np.array(encoder(mel))
        assert layers._packed is not packed and np.abs(found - before).max() > 1e-3
        assert np.abs(found - by_the_graph(encoder, mel)).max() < 1e-5
        assert layers._packed is None  # as the graph was taken
        before = np.array(encoder(mel))
        packed = layers._packed


def test_what_numpy_cannot_take_goes_by_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    mel = mx.random.normal((1, 60, 4), key=mx.random.key(0))
    encoder = an_encoder()
    expected = np.array(encoder(mel))
    assert encoder._layers_in_numpy._packed is not None
    monkeypatch.setattr("mlx_speech.models.whisper.LARGEST_PACKED", 0)
    assert np.abs(np.array(encoder(mel)) - expected).max() < 1e-5
    assert encoder._layers_in_numpy._packed is None  # nor is its memory held
    monkeypatch.undo()
    encoder(mel)
    encoder.apply(lambda array: array.astype(mx.float16))
    assert encoder(mel).dtype == mx.float16 and encoder._layers_in_numpy._packed is None
    quantized = an_encoder()
    nn.quantize(quantized, group_size=32, bits=8, class_predicate=lambda path, _: path.endswith("query"))
    monkeypatch.setattr(encoder_layers, "layers_numpy", None)  # whoever calls it fails
    assert quantized(mel).shape == (1, 30, 32) and quantized._layers_in_numpy._packed is None
