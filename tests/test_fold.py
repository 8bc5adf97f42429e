"""What conversion computes once, against the formulas themselves; and the features, against Kaldi's and Whisper's."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import scipy.linalg
import torch
from originals import babble

from mlx_speech import checkpoint, features, load_audio
from mlx_speech.convert import fold
from mlx_speech.convert.families import plda, wespeaker
from mlx_speech.convert.read import Source
from mlx_speech.errors import OptionError, WeightsMismatch
from mlx_speech.models import layers
from mlx_speech.models import plda as plda_model
from mlx_speech.models import wespeaker as wespeaker_model
from mlx_speech.tensors import Tensor

PAUSES = Path(checkpoint.__file__).parent / "assets" / "demo" / "pauses.flac"
RNG = np.random.default_rng


def from_array(array: np.ndarray, name: str = "") -> Tensor:
    """A tensor that is in memory already."""
    return Tensor(array.shape, array.dtype.name, lambda: array, (name,) if name else ())


def named(**arrays: np.ndarray) -> dict[str, Tensor]:
    """Tensors under their names, in which "__" stands for a dot."""
    return {name.replace("__", "."): from_array(array, name.replace("__", ".")) for name, array in arrays.items()}


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def source(tensors: dict[str, Tensor]) -> Source:
    return Source(Path("here"), "here", tensors, [])


# --- weight norm -----------------------------------------------------------------------------------------------------

SPELLINGS = [("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")]


@pytest.mark.parametrize("spelling", SPELLINGS, ids=["old", "new"])
def test_weight_norm(spelling: tuple[str, str]) -> None:
    rng = RNG(0)
    g, v = floats(rng, 1, 1, 5), 3 * floats(rng, 8, 2, 5)
    tensors = {f"conv.{name}": from_array(array, name) for name, array in zip(spelling, (g, v), strict=True)}
    tensors["conv.bias"] = from_array(np.ones(8, np.float32), "bias")
    fold.weight_norm(tensors, "conv")
    assert sorted(tensors) == ["conv.bias", "conv.weight"]
    assert tensors["conv.weight"].sources == spelling
    found = tensors["conv.weight"].numpy()
    for k in range(5):  # the norm is over everything but the kernel's position
        exact = g[0, 0, k] * v[:, :, k].astype(np.float64) / np.linalg.norm(v[:, :, k].astype(np.float64))
        assert np.abs(found[:, :, k] - exact).max() < 1e-7 * max(1, abs(g[0, 0, k]))
    norms = np.sqrt((found.astype(np.float64) ** 2).sum(axis=(0, 1)))
    assert np.allclose(norms, np.abs(g.ravel()), rtol=1e-6)


def test_weight_norm_of_half_precision_stays_so() -> None:
    rng = RNG(1)
    tensors = named(
        c__weight_g=floats(rng, 1, 1, 3).astype(np.float16), c__weight_v=floats(rng, 4, 1, 3).astype(np.float16)
    )
    g, v = (tensors[f"c.{name}"].numpy().astype(np.float64) for name in ("weight_g", "weight_v"))
    fold.weight_norm(tensors, "c")
    exact = g * v / np.sqrt((v**2).sum(axis=(0, 1)))
    assert tensors["c.weight"].dtype == "float16"
    assert np.array_equal(tensors["c.weight"].numpy(), exact.astype(np.float32).astype(np.float16))


def test_weight_norm_over_another_axis_is_refused() -> None:
    rng = RNG(2)
    with pytest.raises(WeightsMismatch, match="weight norm"):
        fold.weight_norm(named(c__weight_g=floats(rng, 8, 1, 1), c__weight_v=floats(rng, 8, 2, 5)), "c")
    with pytest.raises(WeightsMismatch, match=r"c\.weight_v"):
        fold.weight_norm(named(c__weight_g=floats(rng, 1, 1, 5)), "c")


# --- LSTM ------------------------------------------------------------------------------------------------------------


def torch_lstm(rng: np.random.Generator, inputs: int, hidden: int, directions: int) -> dict[str, np.ndarray]:
    result = {}
    for suffix in ("", "_reverse")[:directions]:
        result[f"weight_ih_l0{suffix}"] = 0.5 * floats(rng, 4 * hidden, inputs)
        result[f"weight_hh_l0{suffix}"] = 0.5 * floats(rng, 4 * hidden, hidden)
        result[f"bias_ih_l0{suffix}"] = floats(rng, 4 * hidden)
        result[f"bias_hh_l0{suffix}"] = floats(rng, 4 * hidden)
    return result


def textbook(x: np.ndarray, w: dict[str, np.ndarray], suffix: str) -> np.ndarray:
    """(steps, input) → (steps, hidden), one step after the other in float64, both biases."""
    hidden = w[f"weight_hh_l0{suffix}"].shape[1]
    h = c = np.zeros(hidden)
    outputs = []
    for row in x:
        z = w[f"weight_ih_l0{suffix}"] @ row + w[f"bias_ih_l0{suffix}"] + w[f"weight_hh_l0{suffix}"] @ h
        z = z + w[f"bias_hh_l0{suffix}"]
        i, f, o = (1 / (1 + np.exp(-z[k * hidden : (k + 1) * hidden])) for k in (0, 1, 3))
        c = f * c + i * np.tanh(z[2 * hidden : 3 * hidden])
        h = o * np.tanh(c)
        outputs.append(h)
    return np.array(outputs)


@pytest.mark.parametrize("directions", [1, 2])
def test_lstm(directions: int) -> None:
    rng = RNG(3)
    weights = torch_lstm(rng, 7, 5, directions)
    tensors = named(**weights)
    fold.lstm(tensors, ["weight_ih_l0", "weight_ih_l0_reverse"][:directions], "lstm")
    assert sorted(tensors) == ["lstm.Wh", "lstm.Wx", "lstm.bias"]
    assert {leaf: tensors[f"lstm.{leaf}"].shape for leaf in ("Wx", "Wh", "bias")} == {
        "Wx": (directions, 20, 7),
        "Wh": (directions, 20, 5),
        "bias": (directions, 20),
    }
    for k, suffix in enumerate(("", "_reverse")[:directions]):
        assert np.array_equal(tensors["lstm.Wx"].numpy()[k], weights[f"weight_ih_l0{suffix}"])
        assert np.array_equal(tensors["lstm.Wh"].numpy()[k], weights[f"weight_hh_l0{suffix}"])
        total = weights[f"bias_ih_l0{suffix}"] + weights[f"bias_hh_l0{suffix}"]
        assert np.array_equal(tensors["lstm.bias"].numpy()[k], total)
    assert sorted(name for tensor in tensors.values() for name in tensor.sources) == sorted(weights)

    layer = layers.LSTM(7, 5, directions)
    layer.load_weights([(name.removeprefix("lstm."), tensor.mlx()) for name, tensor in tensors.items()])
    x = floats(rng, 2, 30, 7)
    found = np.array(layer(mx.array(x))[0])
    for row in range(2):
        expected = [textbook(x[row], weights, "")]
        if directions == 2:
            expected.append(textbook(x[row, ::-1], weights, "_reverse")[::-1])
        assert np.abs(found[row] - np.concatenate(expected, axis=-1)).max() < 1e-5


def test_lstm_directions_that_differ_are_refused() -> None:
    weights = torch_lstm(RNG(4), 7, 5, 2)
    weights["weight_ih_l0_reverse"] = weights["weight_ih_l0_reverse"][:, :6]
    with pytest.raises(WeightsMismatch, match="two directions"):
        fold.lstm(named(**weights), ["weight_ih_l0", "weight_ih_l0_reverse"], "lstm")


# --- batch norm ------------------------------------------------------------------------------------------------------


def test_batch_norm() -> None:
    """A convolution and then the norm, as written, against the folded convolution."""
    rng = RNG(5)
    weight, gamma, beta, mean = floats(rng, 6, 4, 3, 3), floats(rng, 6), floats(rng, 6), floats(rng, 6)
    variance = np.array(
        [0.0, 1e-6, 1e-5, 0.3, 1.0, 40.0], np.float32
    )  # the smallest show whether eps is where it belongs
    tensors = named(
        conv__weight=weight, bn__weight=gamma, bn__bias=beta, bn__running_mean=mean, bn__running_var=variance
    )
    fold.batch_norm(tensors, "conv", "bn", "out")
    assert sorted(tensors) == ["out.bias", "out.weight"]
    x = rng.normal(size=(2, 9, 8, 4))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))  # (batch, h, w, channel, 3, 3)
    plain = np.einsum("bhwcij,ocij->bhwo", windows, weight.astype(np.float64))
    expected = (plain - mean) / np.sqrt(variance.astype(np.float64) + 1e-5) * gamma + beta
    kernel = tensors["out.weight"].numpy().astype(np.float64)
    found = np.einsum("bhwcij,ocij->bhwo", windows, kernel) + tensors["out.bias"].numpy()
    scale = np.abs(expected).max(axis=(0, 1, 2))
    assert (np.abs(expected - found).max(axis=(0, 1, 2)) / scale).max() < 1e-6


def test_batch_norm_of_another_width_is_refused() -> None:
    rng = RNG(6)
    parts = {f"bn__{leaf}": floats(rng, 5) for leaf in ("weight", "bias", "running_mean", "running_var")}
    with pytest.raises(WeightsMismatch, match="does not fit"):
        fold.batch_norm(named(conv__weight=floats(rng, 6, 4, 3, 3), **parts), "conv", "bn", "out")


def test_batch_norm_that_is_not_learned() -> None:
    """torch's BatchNorm1d(affine=False) behind a convolution of one frame."""
    rng = RNG(20)
    weight, mean = floats(rng, 6, 4, 1), floats(rng, 6)
    variance = np.abs(floats(rng, 6))
    tensors = named(conv__weight=weight, bn__running_mean=mean, bn__running_var=variance)
    fold.batch_norm(tensors, "conv", "bn", "out", learned=False)
    assert sorted(tensors) == ["out.bias", "out.weight"]
    norm = torch.nn.BatchNorm1d(6, affine=False).double().eval()
    norm.load_state_dict(
        {
            "running_mean": torch.from_numpy(mean),
            "running_var": torch.from_numpy(variance),
            "num_batches_tracked": torch.tensor(0),
        }
    )
    x = rng.normal(size=(5, 4))
    expected = norm(torch.from_numpy(x @ weight[:, :, 0].T.astype(np.float64))).numpy()
    found = x @ tensors["out.weight"].numpy()[:, :, 0].T + tensors["out.bias"].numpy()
    assert np.abs(expected - found).max() < 1e-5 * np.abs(expected).max()


def test_a_norm_that_is_not_learned_is_missed_where_it_should_be() -> None:
    rng = RNG(21)
    parts = named(conv__weight=floats(rng, 6, 4, 1), bn__running_mean=floats(rng, 6), bn__running_var=floats(rng, 6))
    with pytest.raises(WeightsMismatch, match=r"missing: bn\.weight, bn\.bias"):
        fold.batch_norm(dict(parts), "conv", "bn", "out")
    del parts["bn.running_var"]
    with pytest.raises(WeightsMismatch, match=r"missing: bn\.running_var"):
        fold.batch_norm(parts, "conv", "bn", "out", learned=False)


def test_affine() -> None:
    """A scale and a shift for each channel, beside torch's norm in double precision."""
    rng = RNG(22)
    gamma, beta, mean = floats(rng, 6), floats(rng, 6), floats(rng, 6)
    variance = np.array([0.0, 1e-6, 1e-5, 0.3, 1.0, 40.0], np.float32)
    tensors = named(bn__weight=gamma, bn__bias=beta, bn__running_mean=mean, bn__running_var=variance)
    fold.affine(tensors, "bn", "out")
    assert sorted(tensors) == ["out.bias", "out.weight"]
    assert all(tensor.shape == (6,) and tensor.dtype == "float32" for tensor in tensors.values())
    x = rng.normal(size=(50, 6))
    given = [torch.from_numpy(array).double() for array in (mean, variance, gamma, beta)]
    expected = torch.nn.functional.batch_norm(torch.from_numpy(x), *given).numpy()
    found = x * tensors["out.weight"].numpy() + tensors["out.bias"].numpy()
    assert (np.abs(expected - found).max(axis=0) / np.abs(expected).max(axis=0)).max() < 1e-6


@pytest.mark.parametrize("shape", [(5,), (6, 1), ()])
def test_an_affine_of_odd_shapes_is_refused(shape: tuple[int, ...]) -> None:
    rng = RNG(23)
    parts = {f"bn__{leaf}": floats(rng, 6) for leaf in ("weight", "bias", "running_mean")}
    with pytest.raises(WeightsMismatch, match=r"bn: .* is no batch norm"):
        fold.affine(named(**parts, bn__running_var=floats(rng, *shape)), "bn", "out")


# --- sinc filters ----------------------------------------------------------------------------------------------------


def closed_form(low_hz: np.ndarray, band_hz: np.ndarray, rate: int = 16000) -> np.ndarray:
    """Band-pass filters under a Hamming window, evaluated directly: cosines, then sines."""
    low = 50 + np.abs(low_hz.astype(np.float64))
    high = np.clip(low + 50 + np.abs(band_hz.astype(np.float64)), 50, rate / 2)
    n = np.arange(-125, 126)
    tau = 2 * np.pi * n / rate
    window = 0.54 - 0.46 * np.cos(2 * np.pi * (n + 125) / 250)
    with np.errstate(invalid="ignore"):
        even = window * (np.sin(high * tau) - np.sin(low * tau)) / ((high - low) * tau)
        odd = window * (np.cos(low * tau) - np.cos(high * tau)) / ((high - low) * tau)
    even[:, 125], odd[:, 125] = 1, 0
    return np.concatenate([even, odd])[:, None]


def test_sinc_filters() -> None:
    rng = RNG(7)
    low = rng.uniform(-4000, 4000, (40, 1)).astype(np.float32)  # the sign does not count
    band = rng.uniform(-3000, 3000, (40, 1)).astype(np.float32)
    low[0], band[0] = 7800, 900  # cut at half the sampling rate
    low[1], band[1] = 0, 0  # as narrow and as low as they get
    n = (2 * np.pi * np.arange(-125, 0) / 16000).astype(np.float32)[None]
    tensors = {
        "bank.low_hz_": from_array(low, "low"),
        "bank.band_hz_": from_array(band, "band"),
        "bank.n_": from_array(n, "n"),
        "bank.window_": from_array(np.hamming(251)[:125].astype(np.float32), "window"),
    }
    fold.sinc(tensors, "bank", "kernel", 16000)
    assert list(tensors) == ["kernel"]
    assert tensors["kernel"].shape == (80, 1, 251) and tensors["kernel"].dtype == "float32"
    assert set(tensors["kernel"].sources) == {"low", "band", "n", "window"}
    found = tensors["kernel"].numpy()
    assert np.abs(found - closed_form(low, band)).max() < 1e-5
    assert np.array_equal(found[:40], found[:40, :, ::-1])  # cosines are even, sines odd
    assert np.array_equal(found[40:], -found[40:, :, ::-1])


def test_a_sinc_filter_passes_its_band() -> None:
    n = (2 * np.pi * np.arange(-125, 0) / 16000).astype(np.float32)[None]
    low, band = np.full((1, 1), 950, np.float32), np.full((1, 1), 950, np.float32)  # 1000 to 2000 Hz
    kernel = fold.sinc_filters(low, band, n, np.hamming(251)[:125].astype(np.float32), 16000)
    gain = np.abs(np.fft.rfft(kernel[:, 0], 16000))  # a bin per Hz
    for filter_ in gain:
        assert filter_[1200:1800].min() > 0.98 * filter_.max()
        assert max(filter_[:800].max(), filter_[2200:].max()) < 0.01 * filter_.max()


# --- WeSpeaker's last layer ------------------------------------------------------------------------------------------


def test_the_columns_of_seg_1_follow_the_order_of_the_features() -> None:
    """Pooled features of one signal in both orders, each through its own weight, give the same embedding."""
    rng, base, bins, frames, size = RNG(8), 4, 24, 11, 6
    channels, height = 8 * base, bins // 8
    weight = floats(rng, size, 2 * channels * height)
    tensors = {
        "resnet.seg_1.weight": from_array(weight, "w"),
        "resnet.seg_1.bias": from_array(floats(rng, size), "b"),
        "resnet.conv1.weight": from_array(floats(rng, base, 1, 3, 3), "c"),
    }
    made = wespeaker.recipe(source(tensors))
    assert made.config["num_mel_bins"] == bins and made.config["base_channels"] == base
    signal = floats(rng, channels, height, frames)  # as torch has it
    mean, deviation = signal.mean(axis=-1).ravel(), signal.std(axis=-1, ddof=1).ravel()
    bias = made.tensors["seg_1.bias"].numpy()
    expected = weight @ np.concatenate([mean, deviation]) + bias
    model = wespeaker_model.Model(
        wespeaker_model.ModelArgs(num_blocks=[1, 1, 1, 1], base_channels=base, num_mel_bins=bins, embedding_size=size)
    )
    model.seg_1.weight, model.seg_1.bias = made.tensors["seg_1.weight"].mlx(), mx.array(bias)
    features_ = signal.transpose(2, 1, 0).reshape(1, frames, -1)  # (frequency, channel), channels last
    assert np.abs(np.array(model.pool(mx.array(features_)))[0] - expected).max() < 1e-4
    ones = mx.ones((1, 1, frames))
    assert np.abs(np.array(model.pool(mx.array(features_), ones))[0, 0] - expected).max() < 1e-4
    assert not np.allclose(made.tensors["seg_1.weight"].numpy(), weight)


# --- PLDA ------------------------------------------------------------------------------------------------------------


def random_plda(rng: np.random.Generator, size: int, lda: int) -> dict[str, np.ndarray]:
    return {
        "mean1": rng.normal(size=size),
        "mean2": rng.normal(size=lda),
        "lda": rng.normal(size=(size, lda)),
        "mu": rng.normal(size=lda),
        "tr": rng.normal(size=(lda, lda)),
        "psi": rng.uniform(0.01, 5, lda),
    }


def test_plda_rows_are_the_solution_of_its_eigenproblem() -> None:
    """Between- and within-speaker covariances diagonalised together (Ioffe 2006), largest first; signs are free."""
    arrays = random_plda(RNG(9), 20, 12)
    tensors = plda.recipe(source(named(**arrays))).tensors
    within = np.linalg.inv(arrays["tr"].T @ arrays["tr"])
    between = np.linalg.inv((arrays["tr"].T / arrays["psi"]) @ arrays["tr"])
    values, vectors = scipy.linalg.eigh(between, within)
    psi, tr = tensors["psi"].numpy(), tensors["tr"].numpy()
    assert psi.dtype == tr.dtype == np.float64
    assert np.allclose(psi, values[::-1], rtol=1e-6)
    expected = vectors.T[::-1]
    signs = np.sign((tr * expected).sum(axis=1, keepdims=True))
    assert np.allclose(tr, signs * expected, rtol=1e-5, atol=1e-6)


def test_plda_rows_stay_with_their_psi() -> None:
    arrays = random_plda(RNG(10), 20, 12)
    arrays["psi"][[3, 7]] = 2.5  # equals stay in their order
    tensors = plda.recipe(source(named(**arrays))).tensors
    psi, tr = tensors["psi"].numpy(), tensors["tr"].numpy()
    assert (np.diff(psi) <= 0).all()
    for row, value in enumerate(psi):
        candidates = np.flatnonzero(arrays["psi"] == value)
        assert any(np.array_equal(tr[row], arrays["tr"][k]) for k in candidates)
    first = list(psi).index(2.5)
    assert np.array_equal(tr[first], arrays["tr"][3]) and np.array_equal(tr[first + 1], arrays["tr"][7])
    for name in ("mean1", "mean2", "lda", "mu"):
        assert np.array_equal(tensors[name].numpy(), arrays[name])


def test_plda_transform() -> None:
    arrays = random_plda(RNG(11), 20, 12)
    made = plda.recipe(source(named(**arrays)))
    model = plda_model.Model(plda_model.ModelArgs(**made.config))
    with mx.stream(mx.cpu):
        model.load_weights([(name, tensor.mlx()) for name, tensor in made.tensors.items()])
    x = RNG(12).normal(size=(9, 20))
    unit = x - arrays["mean1"]
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True) * np.sqrt(20)
    y = unit @ arrays["lda"] - arrays["mean2"]
    y = y / np.linalg.norm(y, axis=1, keepdims=True) * np.sqrt(12)
    expected = ((y - arrays["mu"]) @ arrays["tr"].T)[:, np.argsort(-arrays["psi"])]
    with mx.stream(mx.cpu):
        found = np.array(model(mx.array(x, dtype=mx.float64)))
    assert found.dtype == np.float64
    assert np.allclose(found, expected, rtol=1e-11, atol=1e-11)


# --- features --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_mels", [80, 128])
def test_mel_filters(n_mels: int) -> None:
    filters = features.mel_filters(n_mels)
    assert filters.shape == (n_mels, 201) and filters.dtype == np.float32
    assert (filters >= 0).all() and (filters.max(axis=1) > 0).all()
    peaks = filters.argmax(axis=1)
    assert (np.diff(peaks) >= 0).all()
    for row, peak in zip(filters, peaks, strict=True):  # a triangle each: up, then down, nothing elsewhere
        assert (np.diff(row[: peak + 1]) >= 0).all() and (np.diff(row[peak:]) <= 0).all()
    fine = features.mel_filters(n_mels, n_fft=64000)
    areas = fine.astype(np.float64).sum(axis=1) * 16000 / 64000
    assert np.abs(areas - 1).max() < 1e-3  # Slaney's: all have the same area
    spec = importlib.util.find_spec("whisper")
    assert spec is not None and spec.origin is not None
    published = np.load(Path(spec.origin).parent / "assets" / "mel_filters.npz")[f"mel_{n_mels}"]
    assert np.abs(filters - published).max() < 1e-7


def test_kaldi_filters() -> None:
    filters = features.kaldi_filters(80, 512, 16000)
    assert filters.shape == (80, 257) and (filters >= 0).all() and (filters <= 1).all()
    assert not filters[:, -1].any() and not filters[:, 0].any()
    inside = filters[:, 20:240].sum(axis=0)  # neighbours add up to one between the first and the last centre
    assert np.abs(inside - 1).max() < 1e-5


@pytest.mark.parametrize("what", ["noise", "speech"])
@pytest.mark.parametrize(
    "options", [{}, {"num_mel_bins": 40, "frame_length": 20.0, "frame_shift": 8.0}], ids=["80", "40"]
)
def test_kaldi_fbank(what: str, options: dict[str, float]) -> None:
    import torchaudio.compliance.kaldi

    samples = babble(6).numpy() if what == "noise" else load_audio(PAUSES)[: 16000 * 12]
    kaldi = {"num_mel_bins": 80, "frame_length": 25.0, "frame_shift": 10.0, **options}
    expected = torchaudio.compliance.kaldi.fbank(
        torch.from_numpy(samples)[None] * (1 << 15),
        sample_frequency=16000,
        window_type="hamming",
        dither=0.0,
        use_energy=False,
        **kaldi,
    ).numpy()
    found = np.array(features.kaldi_fbank(mx.array(samples)[None], **options))[0]
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 2e-3


def test_the_fbank_of_silence() -> None:
    found = np.array(features.kaldi_fbank(mx.zeros((2, 16000))))
    assert found.shape == (2, 98, 80)
    assert np.array_equal(found, np.full_like(found, np.log(np.float32(2**-23))))  # float32's epsilon
    assert np.abs(np.array(features.speaker_fbank(mx.zeros((1, 16000))))).max() < 1e-4


def test_the_fbank_counts_whole_frames_only() -> None:
    for samples, frames in ((400, 1), (559, 1), (560, 2), (16000, 98)):
        assert features.kaldi_fbank(mx.ones((1, samples))).shape == (1, frames, 80)
    with pytest.raises(OptionError, match="399 samples"):
        features.kaldi_fbank(mx.ones((1, 399)))


@pytest.mark.parametrize("span", [None, 0.5, 1.0, 30.0])
def test_centering(span: float | None) -> None:
    samples = mx.array(np.stack([babble(3).numpy(), babble(3).numpy()[::-1]]))
    fbank = np.array(features.kaldi_fbank(samples)).astype(np.float64)
    found = np.array(features.speaker_fbank(samples, span))
    frames = fbank.shape[1]
    half = frames if span is None else (1 + (int(span * 16000) - 400) // 160) // 2
    for t in range(frames):  # the mean of the frames within reach, fewer at the ends
        near = fbank[:, max(0, t - half) : t + half + 1]
        assert np.abs(found[:, t] - (fbank[:, t] - near.mean(axis=1))).max() < 1e-3


def test_normalize() -> None:
    rows = mx.array(np.stack([babble(2).numpy(), 0.001 * babble(2).numpy() + 0.5]))
    found = np.array(features.normalize(rows)).astype(np.float64)
    assert np.abs(found.mean(axis=1)).max() < 1e-3  # of the second row: 0.5 in float32, amplified
    variances = np.array(rows).astype(np.float64).var(axis=1)
    assert np.allclose(found.var(axis=1), variances / (variances + 1e-7), rtol=1e-3)


def test_log_mel() -> None:
    """The range that eight decades give, and a frame per 10 ms; short and batched input."""
    audio = mx.array(babble(2).numpy())
    mel = np.array(features.log_mel(audio))
    assert mel.shape == (3000, 80) and mel.dtype == np.float32
    assert np.isclose(mel.max() - mel.min(), 2.0, atol=1e-5)  # 8 decades, divided by 4
    short = features.log_mel(audio, samples=None)
    assert short.shape == (200, 80)
    both = features.log_mel(mx.stack([audio, 0.01 * audio]), samples=None)
    assert np.allclose(np.array(both[0]), np.array(short), atol=1e-6)
    quieter = np.array(short) - np.array(both[1])
    assert np.isclose(np.median(quieter), 1.0, atol=1e-2)  # 40 dB are four decades of power
    with pytest.raises(OptionError, match="200 samples"):
        features.log_mel(mx.zeros(200), samples=None)


def test_layers_are_laid_out_by_what_they_are() -> None:
    """A convolution's kernel is transposed, a linear layer of the same rank is not, whatever their names."""
    from mlx_speech.convert.port import lay_out

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.conv = nn.Conv1d(3, 5, 4), nn.Linear(3, 5)
            self.plane = nn.Conv2d(3, 5, (2, 4))

    rng = RNG(13)
    arrays = {
        "linear.weight": floats(rng, 5, 3, 4),
        "conv.weight": floats(rng, 5, 3, 1),
        "plane.weight": floats(rng, 5, 3, 2, 4),
    }
    found = {n: t.numpy() for n, t in lay_out({n: from_array(a) for n, a in arrays.items()}, Model()).items()}
    assert np.array_equal(found["linear.weight"], arrays["linear.weight"].transpose(0, 2, 1))
    assert np.array_equal(found["plane.weight"], arrays["plane.weight"].transpose(0, 2, 3, 1))
    assert np.array_equal(found["conv.weight"], arrays["conv.weight"][..., 0])


@pytest.mark.parametrize("seconds", [1, 60, 600])
def test_normalize_keeps_its_digits_over_long_recordings(seconds: int) -> None:
    rng = np.random.default_rng(seconds)
    audio = (0.3 + 0.1 * rng.normal(size=(1, seconds * 16000))).astype(np.float32)
    exact = audio.astype(np.float64)
    exact = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-7)
    assert np.abs(np.array(features.normalize(mx.array(audio))) - exact).max() < 1e-4


def test_normalize_of_a_padded_batch_is_that_of_each_row() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=n).astype(np.float32) + 2 for n in (900, 400)]
    padded = np.stack([np.pad(row, (0, 900 - len(row)), constant_values=7) for row in rows])
    found = np.array(features.normalize(mx.array(padded), mx.array([900, 400])))
    for row, got in zip(rows, found, strict=True):
        alone = np.array(features.normalize(mx.array(row)[None]))[0]
        assert np.abs(got[: len(row)] - alone).max() < 1e-6 and not got[len(row) :].any()
