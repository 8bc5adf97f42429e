"""Silero VAD (v5 and v6 graph): the probability of speech in every window of 32 ms.

Source: snakers4/silero-vad, the TorchScript archive `silero_vad.jit`, which holds one network per sampling rate. All
windows go through the encoder at once; only the LSTM runs step by step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_speech.errors import OptionError, brief
from mlx_speech.models.base import BaseModel, BaseModelArgs
from mlx_speech.models.layers import LSTM

WINDOWS_AT_ONCE = 4096  # bounds the encoder's memory: about 4 kB a window


@dataclass
class ModelArgs(BaseModelArgs):
    sample_rates: list[int] = field(default_factory=lambda: [16000, 8000])
    hidden_size: int = field(default=128, metadata={"min": 1})

    def conflicts(self) -> list[str]:
        """What is wrong with `sample_rates`."""
        if self.sample_rates and set(self.sample_rates) <= {8000, 16000} and len(self.sample_rates) <= 2:
            return []
        return [f"sample_rates is {brief(self.sample_rates)}, not 16000, 8000 or both"]


class State(NamedTuple):
    """What carries over to the next piece of live audio."""

    h: mx.array  # (1, batch, hidden)
    c: mx.array  # (1, batch, hidden)
    context: mx.array  # (batch, 64 at 16 kHz or 32 at 8 kHz): the last samples seen


class Branch(nn.Module):
    """The network of one sampling rate, on `window` new samples preceded by `context` old ones.

    It is `_model` or `_model_8k` of `silero_vad.jit`.
    """

    def __init__(self, sample_rate: int, hidden_size: int):
        super().__init__()
        scale = sample_rate // 8000
        self.window = 256 * scale
        self.context = 32 * scale
        n_fft = 128 * scale
        bins = n_fft // 2 + 1
        self.stft = nn.Conv1d(1, 2 * bins, n_fft, stride=n_fft // 2, bias=False)
        self.encoder = [
            nn.Conv1d(bins, 128, 3, padding=1),
            nn.Conv1d(128, 64, 3, stride=2, padding=1),
            nn.Conv1d(64, 64, 3, stride=2, padding=1),
            nn.Conv1d(64, 128, 3, padding=1),
        ]
        self.lstm = LSTM(128, hidden_size)
        self.head = nn.Linear(hidden_size, 1)

    def encode(self, windows: mx.array) -> mx.array:
        """windows (n, context + window) → features (n, 128)"""
        pad = windows[:, -2 : -2 - self.context : -1]  # reflected on the right only
        x = self.stft(mx.concatenate([windows, pad], axis=1)[..., None])
        real, imaginary = mx.split(x, 2, axis=-1)
        x = mx.sqrt(real * real + imaginary * imaginary)
        for layer in self.encoder:
            x = nn.relu(layer(x))
        return x[:, 0]

    def __call__(self, audio: mx.array, state: State) -> tuple[mx.array, State]:
        """audio (batch, windows·window) → probabilities (batch, windows), next state"""
        batch = audio.shape[0]
        windows = audio.shape[1] // self.window
        audio = mx.concatenate([state.context, audio], axis=1)
        h = state.h
        c = state.c
        probabilities = []
        at_once = max(1, WINDOWS_AT_ONCE // batch)
        for start in range(0, windows, at_once):
            count = min(at_once, windows - start)
            first = start * self.window
            piece = mx.contiguous(audio[:, first : first + count * self.window + self.context])
            shape = (batch, count, self.context + self.window)
            framed = mx.as_strided(piece, shape, (piece.shape[1], self.window, 1))
            features = self.encode(framed.reshape(-1, shape[2])).reshape(batch, count, -1)
            x, (h, c) = self.lstm(features, (h, c))
            probability = mx.sigmoid(self.head(nn.relu(x))[..., 0])
            mx.eval(probability, h, c)  # so that memory is bounded, however long the audio is
            probabilities.append(probability)
        context = audio[:, audio.shape[1] - self.context :]
        return mx.concatenate(probabilities, axis=1), State(h, c, context)


class Model(BaseModel):
    """Silero VAD for 16 kHz and 8 kHz; multiples of 16 kHz are decimated by plain slicing, as upstream does."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.args = args
        for rate in args.sample_rates:
            self[f"vad_{rate // 1000}k"] = Branch(rate, args.hidden_size)

    def cast_predicate(self, path: str) -> bool:
        """Nothing: in float16 probabilities move by 2e-3, and regions with them."""
        return False

    def branch(self, sample_rate: int) -> Branch:
        """The network that serves `sample_rate`; raises `OptionError` for a rate it cannot serve."""
        rate = sample_rate
        if sample_rate > 0 and sample_rate % 16000 == 0:
            rate = 16000
        if rate not in self.args.sample_rates:
            known = " and ".join(str(r) for r in self.args.sample_rates)
            raise OptionError(f"sample_rate={sample_rate}: this VAD takes {known} Hz and multiples of 16000")
        return self[f"vad_{rate // 1000}k"]

    def initial_state(self, batch: int = 1, sample_rate: int = 16000) -> State:
        """The state of `batch` recordings before the first sample."""
        zeros = mx.zeros((1, batch, self.args.hidden_size))
        context = mx.zeros((batch, self.branch(sample_rate).context))
        return State(zeros, zeros, context)

    def __call__(
        self, audio: mx.array, sample_rate: int = 16000, state: State | None = None
    ) -> mx.array | tuple[mx.array, State]:
        """Probability of speech per window (512 samples at 16 kHz, 256 at 8 kHz), each in 0..1.

        audio : (samples,) or (batch, samples), float in -1..1; the end is padded with zeros to a whole window
        state : of an earlier call, or `initial_state()`, for live audio, which has to come in whole windows

        Returns (windows,) or (batch, windows); with `state` given, also the next state. Raises `OptionError` for a rate
        it cannot serve, and for live audio in other pieces.
        """
        network = self.branch(sample_rate)
        single = audio.ndim == 1
        if single:
            audio = audio[None]
        if sample_rate > 16000:
            audio = audio[:, :: sample_rate // 16000]
        missing = -audio.shape[1] % network.window
        if missing and state is not None:
            raise OptionError(f"live audio comes in multiples of {network.window} samples, not {audio.shape[1]}")
        audio = mx.pad(audio, [(0, 0), (0, missing)])
        next_state = self.initial_state(audio.shape[0], sample_rate) if state is None else state
        if audio.shape[1]:
            probabilities, next_state = network(audio, next_state)
        else:
            probabilities = mx.zeros(audio.shape)
        if single:
            probabilities = probabilities[0]
        return probabilities if state is None else (probabilities, next_state)
