"""What happens to clean speech on its way to a microphone: colour, room, noise, level. Times stay as they were."""

from __future__ import annotations

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq
from scipy.signal import lfilter

from demo import RATE


def augment(samples: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """(n,) float32 → (n,) float32. strength : scales how often, and how much, each thing happens; 0 leaves all as is.

    A smooth equaliser within 9 dB (70 %), a room whose direct path stays at 0 (35 %), white, red or band noise at 8 to
    35 dB (60 %), and 1 to 18 dB less gain.
    """
    if strength <= 0:
        return samples
    if rng.random() < 0.7 * strength or rng.random() < 0.35 * strength:
        samples = _filtered(samples, rng, strength)
    if rng.random() < 0.6 * strength:
        level = np.sqrt(np.mean(samples**2)) + 1e-6
        noise = noise_of(samples.size, rng)
        samples = samples + noise * (level * 10 ** (-rng.uniform(8 + 8 * (1 - strength), 35) / 20))
    samples = samples * 10 ** (-rng.uniform(1, 18) * strength / 20)
    return np.clip(samples, -1, 1).astype(np.float32)


def noise_of(size: int, rng: np.random.Generator) -> np.ndarray:
    """(size,) float32 of unit variance: white, red, or a band of hum and hiss."""
    noise = rng.standard_normal(size, np.float32)
    kind = rng.integers(3)
    if kind:
        pole = rng.uniform(0.6, 0.98) * (1 if kind == 1 else rng.choice((-1, 1)))
        noise = lfilter([1.0], [1.0, -pole], noise).astype(np.float32)
        noise /= np.sqrt(np.mean(noise**2)) + 1e-9
    return noise


def _filtered(samples: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Equaliser and room in one multiplication of spectra."""
    tail = 0
    room = None
    if rng.random() < 0.5:
        tail = int(RATE * rng.uniform(0.1, 0.35))
        decay = np.exp(-np.arange(tail, dtype=np.float32) * (6.9 / tail))
        room = rng.standard_normal(tail, np.float32) * decay
        delay = int(RATE * rng.uniform(0.001, 0.01))
        room[:delay] = 0
        room *= 10 ** (rng.uniform(-16, -3) / 20) * strength / (np.sqrt(np.sum(room**2)) + 1e-9)
        room[0] = 1
    size = next_fast_len(samples.size + tail, real=True)
    spectrum = rfft(samples, size)
    frequencies = rfftfreq(size, 1 / RATE)
    points = np.geomspace(100, 8000, 7)
    gains = rng.uniform(-9, 9, points.size) * strength
    spectrum *= 10 ** (np.interp(np.log(frequencies + 50), np.log(points + 50), gains).astype(np.float32) / 20)
    if room is not None:
        spectrum *= rfft(room, size)
    return irfft(spectrum, size)[: samples.size].astype(np.float32)
