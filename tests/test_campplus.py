"""CAM++: voices of one call do not influence each other, and its dense blocks are the same in NumPy and in MLX."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import originals as make
import pytest

import mlx_speech
from mlx_speech.models import campplus
from mlx_speech.models.campplus import LEAST_FRAMES, at_resolution
from mlx_speech.ops import dense_block as op
from mlx_speech.ops.dense_block import DenseLayer, dense_block
from mlx_speech.package_data import BUNDLED, SPEAKERS
from mlx_speech.stages import diarize as stage

WINDOW = 160_000  # samples
FRAMES = 589  # of a window, in pyannote's segmentation


@pytest.fixture(scope="module")
def model() -> campplus.Model:
    loaded = mlx_speech.load(BUNDLED[SPEAKERS]).embedding
    assert isinstance(loaded, campplus.Model)
    return loaded


def embedded(model: campplus.Model, waveforms: np.ndarray, masks: np.ndarray) -> np.ndarray:
    return np.array(model.embed(mx.array(waveforms), masks))


def alike(one: np.ndarray, other: np.ndarray, tolerance: float = 1e-5) -> bool:
    return bool(np.abs(one - other).max() <= tolerance * np.linalg.norm(one))


# --- voices -----------------------------------------------------------------------------------------------------------


def test_voices_of_one_call_are_those_of_calls_of_their_own(model: campplus.Model) -> None:
    """Of all lengths, several of one group among them, in two windows."""
    waveforms = np.stack([make.speech(10), make.babble(10).numpy()])
    lengths = (3, 8, 59, 60, 200, 588, FRAMES)
    masks = np.zeros((2, len(lengths), FRAMES), np.int8)
    for window in range(2):
        for voice, length in enumerate(lengths):
            masks[window, voice, FRAMES - length :] = 1
    together = embedded(model, waveforms, masks)
    assert np.isfinite(together).all()
    for window in range(2):
        for voice in range(len(lengths)):
            alone = embedded(model, waveforms[window, None], masks[window, None, voice, None])[0, 0]
            assert alike(alone, together[window, voice]), (window, lengths[voice])


def test_without_masks_it_is_the_embedding_of_all_frames(model: campplus.Model) -> None:
    waveforms = make.speech(10)[None]
    whole = np.array(model.embed(mx.array(waveforms)))
    assert alike(whole[0], embedded(model, waveforms, np.ones((1, 1, FRAMES), np.int8))[0, 0])
    assert alike(whole, np.array(model(model.fbank(mx.array(waveforms)))))


def test_who_is_hardly_heard_has_no_embedding(model: campplus.Model) -> None:
    waveforms = make.speech(10)[None]
    masks = np.zeros((1, 4, 998), np.int8)  # a mask frame for every frame of the filterbank
    masks[0, 0, 100:400] = 1
    masks[0, 2, : LEAST_FRAMES - 1] = 1
    masks[0, 3, :LEAST_FRAMES] = 1
    found = embedded(model, waveforms, masks)[0]
    assert np.isnan(found[1:3]).all() and np.isfinite(found[[0, 3]]).all()
    assert alike(found[0], embedded(model, waveforms, masks[:, :1])[0, 0])


def test_frames_come_one_behind_the_other(model: campplus.Model) -> None:
    """Where a voice pauses, its frames are joined: what happens in the pause is heard by the head alone."""
    waveforms = make.speech(10)[None]
    features = model.head(model.fbank(mx.array(waveforms)))
    masks = np.zeros((1, 1, 998), np.int8)
    masks[0, 0, 50:300] = 1
    masks[0, 0, 700:801] = 1
    joined = mx.concatenate([features[:, 50:300], features[:, 700:801]], axis=1)
    expected = np.array(model.xvector(joined, mx.array([351])))[0]
    assert alike(expected, embedded(model, waveforms, masks)[0, 0])


@pytest.mark.parametrize(("mask_frames", "frames"), [(589, 998), (998, 998), (100, 998), (998, 589), (1, 5)])
def test_masks_at_another_resolution(mask_frames: int, frames: int) -> None:
    masks = np.random.default_rng(0).integers(0, 2, (2, 3, mask_frames))
    found = at_resolution(masks, frames)
    assert found.shape == (2, 3, frames)
    for frame in range(frames):
        assert np.array_equal(found[..., frame], masks[..., frame * mask_frames // frames])


def test_other_waveforms_without_masks_may_follow(model: campplus.Model) -> None:
    waveforms = np.stack([make.speech(10), np.zeros(WINDOW, np.float32)])
    masks = np.zeros((1, 2, FRAMES), np.int8)
    masks[0, 0, 10:300] = 1
    masks[0, 1, 300:] = 1
    found = embedded(model, waveforms, masks)
    assert found.shape == (1, 2, 192)
    assert alike(embedded(model, waveforms[:1], masks), found)


# --- stretches of windows ---------------------------------------------------------------------------------------------


def windows_and_masks(count: int) -> tuple[np.ndarray, list[int], np.ndarray]:
    audio = make.speech(10 + count)
    rng = np.random.default_rng(count)
    masks = np.zeros((count, FRAMES, 3), np.int8)
    for window in range(count):
        edges = np.sort(rng.choice(np.arange(5, FRAMES, 40), 4, replace=False))
        for voice in range(3):
            masks[window, edges[voice] : edges[voice + 1], voice] = 1
    return audio, [16_000 * window for window in range(count)], masks


def test_a_stretch_of_one_window_is_the_window(model: campplus.Model) -> None:
    audio, starts, masks = windows_and_masks(4)
    each = np.concatenate(list(stage.embed(audio, model, starts, WINDOW, masks, 1)))
    stretches = list(stage.embed_stretches(audio, model, starts, WINDOW, masks, WINDOW))
    assert [len(stretch) for stretch in stretches] == [1, 1, 1, 1]
    assert alike(each, np.concatenate(stretches))


def test_a_stretch_has_the_voices_of_its_windows(model: campplus.Model) -> None:
    """Each in its own frames: what `embed` makes of the whole stretch under masks that are laid by hand."""
    audio, starts, masks = windows_and_masks(3)
    (together,) = stage.embed_stretches(audio, model, starts, WINDOW, masks, 20 * 16_000)
    assert together.shape == (3, 3, 192)
    length = starts[-1] + WINDOW
    for window in range(3):
        laid = np.zeros((1, 3, length // 160 - 2), np.int8)  # the last whole frame of 25 ms begins two steps before
        laid[0, :, 100 * window : 100 * window + 998] = at_resolution(masks[window].T, 998)
        assert alike(embedded(model, audio[None, :length], laid)[0], together[window])


# --- the dense block --------------------------------------------------------------------------------------------------


def random_layers(rng: np.random.Generator, inputs: int, count: int, width: int, outputs: int) -> list[DenseLayer]:
    def draw(*shape: int) -> mx.array:
        return mx.array(rng.normal(scale=0.5, size=shape).astype(np.float32))

    layers = []
    for _ in range(count):
        layers.append(
            DenseLayer(
                scale=draw(inputs),
                shift=draw(inputs),
                weight=draw(6, inputs),
                bias=draw(6),
                taps=draw(outputs, width, 6),
                context_weight=draw(3, 6),
                context_bias=draw(3),
                mask_weight=draw(outputs, 3),
                mask_bias=draw(outputs),
            )
        )
        inputs += outputs
    return layers


def step_by_step(x: np.ndarray, layers: list[DenseLayer], dilation: int) -> np.ndarray:
    """x (steps, inputs) → (steps, inputs + outputs), in float64, as the formulas read."""
    for layer in layers:
        weights = DenseLayer(*(np.array(array).astype(np.float64) for array in layer))  # type: ignore[arg-type]
        y = np.maximum(np.maximum(x * weights.scale + weights.shift, 0) @ weights.weight.T + weights.bias, 0)
        outputs, width, _ = weights.taps.shape
        added = np.zeros((len(x), outputs))
        for step in range(len(x)):
            first = step // op.SEGMENT_FRAMES * op.SEGMENT_FRAMES
            context = y.mean(axis=0) + y[first : first + op.SEGMENT_FRAMES].mean(axis=0)
            context = np.maximum(weights.context_weight @ context + weights.context_bias, 0)
            mask = 1 / (1 + np.exp(-(weights.mask_weight @ context + weights.mask_bias)))
            for tap in range(width):
                place = step + (tap - width // 2) * dilation
                if 0 <= place < len(x):
                    added[step] += weights.taps[:, tap] @ y[place]
            added[step] *= mask
        x = np.concatenate([x, added], axis=1)
    return x


@pytest.mark.parametrize("width", [1, 3, 5])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_a_dense_block_is_what_its_formulas_say(width: int, dilation: int) -> None:
    rng = np.random.default_rng(10 * width + dilation)
    lengths = [1, 2, 99, 100, 101, 230]
    x = rng.normal(size=(len(lengths), 230, 5)).astype(np.float32)
    layers = random_layers(rng, 5, 3, width, 4)
    weights = [array for layer in layers for array in layer]
    counts = mx.array(lengths)
    ways = {
        "as chosen": dense_block(mx.array(x), counts, layers, dilation),
        "graph": op._graph(mx.array(x), counts, *weights, dilation=dilation),
    }
    for name, found in ways.items():
        assert found.shape == (len(lengths), 230, 5 + 3 * 4)
        for row, length in enumerate(lengths):
            expected = step_by_step(x[row, :length].astype(np.float64), layers, dilation)
            assert np.abs(np.array(found)[row, :length] - expected).max() < 1e-4, (name, length)


def test_what_is_behind_the_length_of_a_row_is_not_heard() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 150, 5)).astype(np.float32)
    layers = random_layers(rng, 5, 3, 3, 4)
    lengths = mx.array([120, 150])
    found = np.array(dense_block(mx.array(x), lengths, layers, 2))
    x[0, 120:] = 1e3
    again = np.array(dense_block(mx.array(x), lengths, layers, 2))
    assert np.array_equal(found[0, :120], again[0, :120]) and np.array_equal(found[1], again[1])


def test_half_precision_takes_the_graph() -> None:
    rng = np.random.default_rng(1)
    layers = [DenseLayer(*(array.astype(mx.float16) for array in layer)) for layer in random_layers(rng, 5, 2, 3, 4)]
    x = mx.array(rng.normal(size=(1, 50, 5)).astype(np.float16))
    assert dense_block(x, mx.array([50]), layers, 1).dtype == mx.float16
