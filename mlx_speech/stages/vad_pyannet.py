"""Recording → the regions in which somebody speaks, by PyanNet.

Source: pyannote.audio `pipelines.voice_activity_detection.VoiceActivityDetection`, with the cuts of long speech that
WhisperX's `vads.pyannote` makes (Bain et al. 2023).
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech import steps
from mlx_speech.errors import in_range
from mlx_speech.features import one_channel
from mlx_speech.stages import windows
from mlx_speech.stages.windows import Batch, Windows
from mlx_speech.steps import Steps
from mlx_speech.transcript import Region

DEFAULT_STEP = 0.1  # of a window, from one to the next, where the model has no warm-up that says it


def detect_speech_pyannet(
    audio: Any,
    model: Any,
    *,
    onset: float = 0.5,
    offset: float = 0.363,
    min_duration_on: float = 0.0,
    min_duration_off: float = 0.0,
    max_duration: float = math.inf,
    batch_size: int = 32,
) -> list[Region]:
    """The regions in which somebody speaks, by PyanNet (pyannote.audio `VoiceActivityDetection`, WhisperX's cuts).

    audio : (samples,) at 16 kHz, floats in [-1, 1]
    model : a PyanNet; of a powerset model, a window's most probable class says whether anybody speaks
    onset, offset : speech begins above the one and ends below the other
    min_duration_on, min_duration_off : seconds; shorter speech is dropped, after shorter pauses have been filled
    max_duration : seconds; longer speech is cut where speech is least likely
    batch_size : windows that go through the model at once

    Other than in WhisperX, no region reaches over the end of the recording, speech that ends in the very frame in
    which it becomes too long ends there, and pauses may be filled under a `max_duration`, by which they are left.
    Raises `OptionError` for options out of range, and `AudioError` for audio of another shape.
    """
    return steps.run(
        detect_speech_pyannet_steps(
            audio,
            model,
            onset=onset,
            offset=offset,
            min_duration_on=min_duration_on,
            min_duration_off=min_duration_off,
            max_duration=max_duration,
            batch_size=batch_size,
        )
    )


def detect_speech_pyannet_steps(
    audio: Any,
    model: Any,
    *,
    onset: float = 0.5,
    offset: float = 0.363,
    min_duration_on: float = 0.0,
    min_duration_off: float = 0.0,
    max_duration: float = math.inf,
    batch_size: int = 32,
) -> Steps[list[Region]]:
    """`detect_speech_pyannet` in steps of a batch of windows: yields the seconds of audio done, returns the regions.

    Raises what `detect_speech_pyannet` raises, at the first step.
    """
    in_range(0, 1, onset=onset)
    in_range(0, onset, offset=offset)
    in_range(0, 1e9, min_duration_on=min_duration_on, min_duration_off=min_duration_off)
    in_range(1, math.inf, max_duration=max_duration)
    in_range(1, 1e6, batch_size=batch_size)
    samples = one_channel(audio, "speech is detected")
    if not samples.size:
        return []
    scores = yield from speech_scores_steps(samples, model, batch_size)
    frames = windows.frames_of(model.args)
    active = windows.binarize(scores[:, None], onset, offset)[:, 0]
    stretches: list[tuple[float, float]] = []
    for run in windows.runs(active):
        for first, last in windows.cut(scores, run, max_duration / frames.step):
            stretches.append((frames.middle(first), frames.middle(last)))
    filled = windows.fill(stretches, min_duration_off, max_duration)
    duration = samples.size / model.args.sample_rate
    regions: list[Region] = []
    for start, end in filled:
        within = min(end, duration)  # frames of the last window's padding may be active as well
        if within > start and within - start >= min_duration_on:
            regions.append(Region(start, within))
    return regions


def speech_scores(audio: np.ndarray, model: Any, batch_size: int = 32) -> np.ndarray:
    """How sure PyanNet is of speech, (frames,) 0..1: the highest of a window's speakers, overlapping windows averaged
    (pyannote.audio `Inference`). audio : (samples,), at least one"""
    return steps.run(speech_scores_steps(audio, model, batch_size))


def speech_scores_steps(audio: np.ndarray, model: Any, batch_size: int = 32) -> Steps[np.ndarray]:
    """`speech_scores` in steps of a batch of windows: yields the seconds of audio done, returns (frames,)."""
    args = model.args
    left, right = args.warm_up or (0.0, 0.0)
    chunks = Windows(args.duration, left or DEFAULT_STEP * args.duration)
    size = round(chunks.duration * args.sample_rate)
    starts = windows.starts(audio.size, size, round(chunks.step * args.sample_rate))
    duration = audio.size / args.sample_rate

    def compute(batch: Batch, rows: slice) -> mx.array:
        """→ (windows, frames, 1)"""
        scores = model.overlapping(*batch.stretch(), size)
        if args.powerset_max_classes is None:
            return scores.max(axis=-1, keepdims=True).astype(mx.float32)
        somebody = scores.argmax(axis=-1, keepdims=True) > 0  # class 0 is nobody
        return somebody.astype(mx.float32)

    frames = windows.frames_of(args)
    batches = windows.slide(audio, starts, size, compute, batch_size)
    blocks = windows.aggregate_in_blocks(
        (score for batch in batches for score in batch),
        len(starts),
        chunks,
        frames,
        warm_up=(left, right),
        hamming=True,
        frames_at_once=round(batch_size * chunks.step / frames.step),
    )
    known: list[np.ndarray] = []
    frames_known = 0
    for block in blocks:
        known.append(block[:, 0])
        frames_known += len(block)
        yield min(duration, frames_known * frames.step)
    scores = np.concatenate(known)
    if starts[-1] + size > audio.size:  # the last window was padded: its frames behind the end are none
        return scores[: math.floor(duration / frames.step) + 1]
    return scores
