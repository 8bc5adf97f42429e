"""What models hear: Whisper's log-mel spectrogram, Kaldi's filterbank, a normalised waveform; in MLX, in float32."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech.errors import AudioError, OptionError

SAMPLE_RATE = 16000
FANIN = 32  # numbers added one after the other before their sums are added in turn


def one_channel(audio: Any, done: str) -> np.ndarray:
    """`audio` in float32, (samples,). Raises `AudioError`, which says what is `done`, for another shape."""
    samples = np.asarray(audio, np.float32)
    if samples.ndim != 1:
        raise AudioError(f"audio of shape {samples.shape}: {done} in one channel, (samples,)")
    return samples


def log_mel(audio: mx.array, n_mels: int = 80, samples: int | None = 480_000) -> mx.array:
    """Whisper's log-mel spectrogram (openai/whisper `audio.log_mel_spectrogram`).

    audio : (samples,) or (batch, samples) at 16 kHz; padded with zeros or cut to `samples` (30 s) unless that is None
    Returns (frames, n_mels) or (batch, frames, n_mels), a frame every 10 ms; each row's loudest bin sets its floor.
    """
    single = audio.ndim == 1
    audio = audio[None] if single else audio
    if samples is not None:
        audio = mx.pad(audio[:, :samples], [(0, 0), (0, max(0, samples - audio.shape[1]))])
    if audio.shape[1] < 201:
        raise OptionError(f"{audio.shape[1]} samples are too few for a spectrogram: at least 201")
    reflected = mx.concatenate([audio[:, 200:0:-1], audio, audio[:, -2:-202:-1]], axis=1)
    mel = log10_mel(reflected, n_mels)[:, :-1]
    mel = (mx.maximum(mel, mel.max(axis=(1, 2), keepdims=True) - 8.0) + 4.0) / 4.0
    return mel[0] if single else mel


def log10_mel(audio: mx.array, n_mels: int = 80) -> mx.array:
    """What `log_mel` gives before it is padded, floored and scaled: log10 of the power in each band, at least -10.

    audio (batch, samples) → (batch, frames, n_mels): a frame for all 400 samples that begin at a multiple of 160
    """
    spectrum = mx.fft.rfft(_frames(audio, 400, 160) * mx.array(_hann(400)))
    power = mx.square(mx.abs(spectrum))
    return mx.log10(mx.maximum(power @ mx.array(mel_filters(n_mels)).T, 1e-10))


def kaldi_fbank(
    audio: mx.array,
    num_mel_bins: int = 80,
    frame_length: float = 25.0,
    frame_shift: float = 10.0,
    sample_rate: int = SAMPLE_RATE,
) -> mx.array:
    """Kaldi's log filterbank with a Hamming window (torchaudio `compliance.kaldi.fbank`), without dither.

    audio : (batch, samples) in -1..1; frame_length, frame_shift in ms
    Returns (batch, frames, num_mel_bins), only whole frames. Not centred.
    """
    window, shift = int(sample_rate * frame_length * 0.001), int(sample_rate * frame_shift * 0.001)
    if audio.shape[1] < window:
        raise OptionError(f"{audio.shape[1]} samples are too few for a filterbank: at least {window}")
    frames = _frames(audio * 32768.0, window, shift)
    frames = frames - frames.mean(axis=-1, keepdims=True)
    previous = mx.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
    frames = (frames - 0.97 * previous) * mx.array(np.hamming(window).astype(np.float32))
    size = 1 << (window - 1).bit_length()
    power = mx.square(mx.abs(mx.fft.rfft(frames, n=size)))
    filters = mx.array(kaldi_filters(num_mel_bins, size, sample_rate))
    return mx.log(mx.maximum(power @ filters.T, 1.1920928955078125e-07))


def speaker_fbank(
    audio: mx.array, centering_span: float | None = None, sample_rate: int = SAMPLE_RATE, **options
) -> mx.array:
    """The input of WeSpeaker: `kaldi_fbank`, centred by its mean over all frames, or over a span of seconds.

    audio (batch, samples) → (batch, frames, mel bins). Source: pyannote.audio `BaseWeSpeakerResNet.compute_fbank`.
    """
    fbank = kaldi_fbank(audio, sample_rate=sample_rate, **options)
    if centering_span is None:
        return fbank - fbank.mean(axis=1, keepdims=True)
    window = int(sample_rate * options.get("frame_length", 25.0) * 0.001)
    shift = int(sample_rate * options.get("frame_shift", 10.0) * 0.001)
    half = max(0, 1 + (int(centering_span * sample_rate) - window) // shift) // 2
    total = mx.cumsum(mx.pad(fbank, [(0, 0), (1, 0), (0, 0)]), axis=1)
    position = mx.arange(fbank.shape[1])
    low, high = mx.maximum(position - half, 0), mx.minimum(position + half + 1, fbank.shape[1])
    return fbank - (total[:, high] - total[:, low]) / (high - low)[None, :, None]


def normalize(audio: mx.array, lengths: mx.array | None = None) -> mx.array:
    """Every row to zero mean and unit variance: what wav2vec2 models with `args.do_normalize` were trained on.

    audio (batch, samples) → (batch, samples); of each row only the first `lengths` (batch,) samples count, where
    given, and the rest becomes zero. Source: transformers' Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm.
    """
    x = audio.astype(mx.float32)[..., None]
    count = x.shape[1] if lengths is None else lengths[:, None, None]
    inside = mx.array(True) if lengths is None else (mx.arange(x.shape[1]) < lengths[:, None])[..., None]
    centred = mx.where(inside, x - sum_over_time(mx.where(inside, x, 0)) / count, 0)
    return (centred * mx.rsqrt(sum_over_time(mx.square(centred)) / count + 1e-7))[..., 0]


def sum_over_time(x: mx.array) -> mx.array:
    """x (batch, steps, channels) → (batch, 1, channels), added in a tree so that rounding grows with its depth.

    MLX adds up one by one on the CPU: over a minute of samples that costs three of float32's seven digits.
    """
    while x.shape[1] > 1:
        x = mx.pad(x, [(0, 0), (0, -x.shape[1] % FANIN), (0, 0)])
        x = x.reshape(x.shape[0], -1, FANIN, x.shape[2]).sum(axis=2)
    return x


def _frames(audio: mx.array, size: int, hop: int) -> mx.array:
    """(batch, samples) → (batch, frames, size), overlapping."""
    count = 1 + (audio.shape[1] - size) // hop
    audio = mx.contiguous(audio)
    return mx.as_strided(audio, (audio.shape[0], count, size), (audio.shape[1], hop, 1))


def _hann(size: int) -> np.ndarray:
    """The periodic Hann window."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)


def mel_filters(n_mels: int, n_fft: int = 400, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Triangles of equal area on Slaney's mel scale, (n_mels, n_fft/2 + 1) (librosa.filters.mel's defaults).

    The scale is linear (200/3 Hz a mel) up to 1 kHz and logarithmic above, 27 mels for a factor of 6.4.
    """
    top = 15 + 27 * math.log(sample_rate / 2 / 1000) / math.log(6.4)
    mels = np.linspace(0, top, n_mels + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * math.log(6.4) / 27))
    return _triangles(edges, np.fft.rfftfreq(n_fft, 1 / sample_rate), 2 / (edges[2:] - edges[:-2]))


def kaldi_filters(num_mel_bins: int, size: int, sample_rate: int, low: float = 20.0) -> np.ndarray:
    """Triangles linear in mel(f) = 1127·ln(1 + f/700), from `low` Hz to Nyquist, (num_mel_bins, size/2 + 1)."""

    def mel(frequency):
        return 1127 * np.log(1 + np.asarray(frequency) / 700)

    edges = np.linspace(mel(low), mel(sample_rate / 2), num_mel_bins + 2)
    filters = _triangles(edges, mel(np.arange(size // 2 + 1) * sample_rate / size), np.ones(num_mel_bins))
    filters[:, -1] = 0  # Kaldi leaves out the bin at Nyquist
    return filters


def _triangles(edges: np.ndarray, points: np.ndarray, height: np.ndarray) -> np.ndarray:
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (points - left) / (centre - left), (right - points) / (right - centre)
    return (np.maximum(0, np.minimum(rising, falling)) * height[:, None]).astype(np.float32)
