"""What models hear: Whisper's log-mel spectrogram, Kaldi's filterbank, a normalised waveform; in MLX, in float32."""

from __future__ import annotations

from mlx_speech import backend as backend  # isort: skip  (before MLX)

import math
from typing import TYPE_CHECKING, Literal

import mlx.core as mx
import numpy as np

from mlx_speech.errors import AudioError, OptionError
from mlx_speech.samples import SAMPLE_RATE

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

STEPS_PER_SUM = 32  # added one after the other, before the sums are added in turn

# Whisper's spectrogram (openai/whisper `audio.py`).
WHISPER_SAMPLES = 480_000  # 30 s, the window of most models
WHISPER_FFT = 400  # samples
WHISPER_HOP = 160  # samples: a frame every 10 ms
LOWEST_POWER = 1e-10
DYNAMIC_RANGE = 8.0  # below a row's loudest bin, in log10 of the power; what is softer is raised to that

# Kaldi's filterbank.
INT16_SCALE = 32768.0  # Kaldi's samples are whole numbers
PRE_EMPHASIS = 0.97
LOWEST_ENERGY = float(np.finfo(np.float32).eps)

NORMALIZE_EPSILON = 1e-7  # transformers', of the variance


def one_channel(audio: ArrayLike, done: str) -> np.ndarray:
    """`audio` in float32, (samples,).

    done : what happens to it, for the message

    Raises `AudioError` for another shape.
    """
    samples = np.asarray(audio, np.float32)
    if samples.ndim != 1:
        raise AudioError(f"audio of shape {samples.shape}: {done} in one channel, (samples,)")
    return samples


def log_mel(audio: mx.array, n_mels: int = 80, samples: int | None = WHISPER_SAMPLES) -> mx.array:
    """Whisper's log-mel spectrogram (openai/whisper `audio.log_mel_spectrogram`).

    audio : (samples,) or (batch, samples) at 16 kHz; padded with zeros or cut to `samples` (30 s) unless that is None
    Returns (frames, n_mels) or (batch, frames, n_mels), a frame every 10 ms; each row's loudest bin sets its floor.
    Raises `OptionError` below 201 samples, which are reflected at the edges.
    """
    single = audio.ndim == 1
    if single:
        audio = audio[None]
    if samples is not None:
        missing = max(0, samples - audio.shape[1])
        audio = mx.pad(audio[:, :samples], [(0, 0), (0, missing)])
    edge = WHISPER_FFT // 2
    if audio.shape[1] < edge + 1:
        raise OptionError(f"{audio.shape[1]} samples are too few for a spectrogram: at least {edge + 1}")
    start = audio[:, edge:0:-1]
    end = audio[:, -2 : -edge - 2 : -1]
    mel = log10_mel(mx.concatenate([start, audio, end], axis=1), n_mels)[:, :-1]
    floor = mel.max(axis=(1, 2), keepdims=True) - DYNAMIC_RANGE
    mel = (mx.maximum(mel, floor) + 4.0) / 4.0
    return mel[0] if single else mel


def log10_mel(audio: mx.array, n_mels: int = 80) -> mx.array:
    """What `log_mel` gives before it is padded, floored and scaled: log10 of the power in each band, at least -10.

    audio (batch, samples) → (batch, frames, n_mels): a frame for all 400 samples that begin at a multiple of 160
    """
    frames = _frames(audio, WHISPER_FFT, WHISPER_HOP) * mx.array(_hann(WHISPER_FFT))
    power = mx.square(mx.abs(mx.fft.rfft(frames)))
    mel = power @ mx.array(mel_filters(n_mels)).T
    return mx.log10(mx.maximum(mel, LOWEST_POWER))


def kaldi_fbank(
    audio: mx.array,
    num_mel_bins: int = 80,
    frame_length: float = 25.0,
    frame_shift: float = 10.0,
    sample_rate: int = SAMPLE_RATE,
    *,
    window_type: Literal["hamming", "povey"] = "hamming",
    scale: float = INT16_SCALE,
) -> mx.array:
    """Kaldi's log filterbank (torchaudio `compliance.kaldi.fbank`), without dither.

    audio : (batch, samples) in -1..1, which are multiplied by `scale`; frame_length, frame_shift in ms
    Returns (batch, frames, num_mel_bins), only whole frames. Not centred. Raises `OptionError` where there is none.
    """
    window = samples_of(frame_length, sample_rate)
    shift = samples_of(frame_shift, sample_rate)
    if audio.shape[1] < window:
        raise OptionError(f"{audio.shape[1]} samples are too few for a filterbank: at least {window}")
    frames = _frames(audio * scale, window, shift)
    frames = frames - frames.mean(axis=-1, keepdims=True)
    previous = mx.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
    weights = np.hamming(window) if window_type == "hamming" else _povey(window)
    frames = (frames - PRE_EMPHASIS * previous) * mx.array(weights.astype(np.float32))
    size = 1 << (window - 1).bit_length()  # the next power of two
    power = mx.square(mx.abs(mx.fft.rfft(frames, n=size)))
    filters = mx.array(kaldi_filters(num_mel_bins, size, sample_rate))
    return mx.log(mx.maximum(power @ filters.T, LOWEST_ENERGY))


def samples_of(milliseconds: float, sample_rate: int) -> int:
    """How many whole samples are in so many milliseconds, as torchaudio rounds them."""
    return int(sample_rate * milliseconds * 0.001)


def speaker_fbank(
    audio: mx.array,
    centering_span: float | None = None,
    sample_rate: int = SAMPLE_RATE,
    *,
    num_mel_bins: int = 80,
    frame_length: float = 25.0,
    frame_shift: float = 10.0,
) -> mx.array:
    """The input of WeSpeaker: `kaldi_fbank`, centred by its mean (pyannote.audio `BaseWeSpeakerResNet.compute_fbank`).

    audio : (batch, samples) in -1..1; frame_length, frame_shift in ms
    centering_span : seconds around each frame that the mean is taken over; None for all frames

    Returns (batch, frames, num_mel_bins). Raises `OptionError` where there is no whole frame.
    """
    fbank = kaldi_fbank(audio, num_mel_bins, frame_length, frame_shift, sample_rate)
    if centering_span is None:
        return fbank - fbank.mean(axis=1, keepdims=True)
    frames = fbank.shape[1]
    window = samples_of(frame_length, sample_rate)
    shift = samples_of(frame_shift, sample_rate)
    frames_in_span = max(0, 1 + (int(centering_span * sample_rate) - window) // shift)
    half = frames_in_span // 2
    position = mx.arange(frames)
    low = mx.maximum(position - half, 0)
    high = mx.minimum(position + half + 1, frames)
    totals = mx.cumsum(mx.pad(fbank, [(0, 0), (1, 0), (0, 0)]), axis=1)
    sums = totals[:, high] - totals[:, low]
    return fbank - sums / (high - low)[None, :, None]


def normalize(audio: mx.array, lengths: mx.array | None = None) -> mx.array:
    """Every row to zero mean and unit variance: what wav2vec2 models with `args.do_normalize` were trained on.

    audio (batch, samples) → (batch, samples); of each row only the first `lengths` (batch,) samples count, where
    given, and the rest becomes zero. Source: transformers' Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm.
    """
    x = audio.astype(mx.float32)[..., None]
    count = x.shape[1]
    inside = mx.array(True)
    if lengths is not None:
        count = lengths[:, None, None]
        inside = (mx.arange(x.shape[1]) < lengths[:, None])[..., None]
    mean = sum_over_time(mx.where(inside, x, 0)) / count
    centred = mx.where(inside, x - mean, 0)
    variance = sum_over_time(mx.square(centred)) / count
    return (centred * mx.rsqrt(variance + NORMALIZE_EPSILON))[..., 0]


def sum_over_time(x: mx.array) -> mx.array:
    """x (batch, steps, channels) → (batch, 1, channels), added in a tree so that rounding grows with its depth.

    MLX adds up one by one on the CPU: over a minute of samples that costs three of float32's seven digits.
    """
    while x.shape[1] > 1:
        missing = -x.shape[1] % STEPS_PER_SUM
        x = mx.pad(x, [(0, 0), (0, missing), (0, 0)])
        x = x.reshape(x.shape[0], -1, STEPS_PER_SUM, x.shape[2]).sum(axis=2)
    return x


def _frames(audio: mx.array, size: int, hop: int) -> mx.array:
    """(batch, samples) → (batch, frames, size), overlapping."""
    count = 1 + (audio.shape[1] - size) // hop
    audio = mx.contiguous(audio)
    return mx.as_strided(audio, (audio.shape[0], count, size), (audio.shape[1], hop, 1))


def _povey(size: int) -> np.ndarray:
    """Kaldi's own window, (size,): like Hamming's, but zero at both ends."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / (size - 1))) ** 0.85


def _hann(size: int) -> np.ndarray:
    """The periodic Hann window, (size,)."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)


def mel_filters(n_mels: int, n_fft: int = 400, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Triangles of equal area on Slaney's mel scale, (n_mels, n_fft/2 + 1) (librosa.filters.mel's defaults).

    The scale is linear (200/3 Hz a mel) up to 1 kHz and logarithmic above, 27 mels for a factor of 6.4.
    """
    top = 15 + 27 * math.log(sample_rate / 2 / 1000) / math.log(6.4)
    mels = np.linspace(0, top, n_mels + 2)
    linear = mels * 200 / 3
    logarithmic = 1000 * np.exp((mels - 15) * math.log(6.4) / 27)
    edges = np.where(mels < 15, linear, logarithmic)
    heights = 2 / (edges[2:] - edges[:-2])
    return _triangles(edges, np.fft.rfftfreq(n_fft, 1 / sample_rate), heights)


def kaldi_filters(num_mel_bins: int, size: int, sample_rate: int, low: float = 20.0) -> np.ndarray:
    """Triangles linear in mel(f) = 1127·ln(1 + f/700), from `low` Hz to Nyquist, (num_mel_bins, size/2 + 1)."""

    def mel(frequency: ArrayLike) -> np.ndarray:
        return 1127 * np.log(1 + np.asarray(frequency) / 700)

    edges = np.linspace(mel(low), mel(sample_rate / 2), num_mel_bins + 2)
    frequencies = np.arange(size // 2 + 1) * sample_rate / size
    filters = _triangles(edges, mel(frequencies), np.ones(num_mel_bins))
    filters[:, -1] = 0  # Kaldi leaves out the bin at Nyquist
    return filters


def _triangles(edges: np.ndarray, points: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """edges (filters + 2,), at which one triangle begins, the next is highest and the one before ends; points (n,),
    heights (filters,) → (filters, n) in float32"""
    left = edges[:-2, None]
    centre = edges[1:-1, None]
    right = edges[2:, None]
    rising = (points - left) / (centre - left)
    falling = (right - points) / (right - centre)
    return (np.maximum(0, np.minimum(rising, falling)) * heights[:, None]).astype(np.float32)
