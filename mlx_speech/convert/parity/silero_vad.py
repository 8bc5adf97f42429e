"""Silero VAD beside the TorchScript archive itself."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech.convert.parity.measures import Inputs, Row, largest_difference, refuse_degenerate
from mlx_speech.convert.port import Plan
from mlx_speech.stages.vad import speech_timestamps

ORIGINALS = {"silero-vad": ("torch", "silero_vad")}

WINDOW_SECONDS = 512 / 16000  # at either rate


def build(plan: Plan) -> Any:
    """The TorchScript model of the silero-vad package."""
    import torch

    return torch.jit.load(str(plan.source.files[0])).eval()


def measure(original: Any, model: Any, inputs: Inputs) -> list[Row]:
    """Probabilities of every window, and the speech that either side's own function makes of them, at both rates."""
    rows = []
    for rate in model.args.sample_rates:
        audio = inputs.audio[:: 16000 // rate].astype(np.float32)
        expected = _probabilities(original, audio, rate)
        probabilities = np.array(model(mx.array(audio), rate))
        refuse_degenerate("probabilities", expected > 0.5, 2, inputs.varied)
        apart = largest_difference(expected, probabilities)
        rows.append(Row(f"{rate} Hz: probability, max difference", apart, 1e-5))
        rows.append(_timestamps_row(original, audio, rate, probabilities))
    return rows


def _probabilities(original: Any, audio: np.ndarray, rate: int) -> np.ndarray:
    """What the original says of every window, (windows,)."""
    import torch

    window = round(WINDOW_SECONDS * rate)
    windows = np.pad(audio, (0, -len(audio) % window)).reshape(-1, window)
    original.reset_states()
    return np.array([original(torch.from_numpy(samples.copy()), rate).item() for samples in windows], np.float32)


def _timestamps_row(original: Any, audio: np.ndarray, rate: int, probabilities: np.ndarray) -> Row:
    import silero_vad as upstream
    import torch

    theirs = upstream.get_speech_timestamps(torch.from_numpy(audio.copy()), original, sampling_rate=rate)
    ours = speech_timestamps(probabilities, num_samples=len(audio), sampling_rate=rate)
    expected = [(region["start"], region["end"]) for region in theirs]
    same = expected == [(int(start), int(end)) for start, end in ours]
    return Row(f"{rate} Hz: {len(theirs)} speech timestamps identical", float(same), 1.0, at_least=True)
