"""A recording → what Whisper hears of it at once, by the detector of speech that was chosen, and in which language."""

from __future__ import annotations

from mlx_speech import backend as backend  # isort: skip  (before MLX)

import math
import warnings
from dataclasses import replace
from functools import partial

import numpy as np

from mlx_speech.audio import louder
from mlx_speech.checks import chunk_size
from mlx_speech.engine import Job, silently, told
from mlx_speech.loading import Models
from mlx_speech.options import Options
from mlx_speech.recording import Recording
from mlx_speech.stages.chunks import cut_chunks, fixed_chunks, speech_and_pad, warn_if_silent, widened
from mlx_speech.stages.cluster import speaker_bounds
from mlx_speech.stages.tracks import speakers_of_tracks
from mlx_speech.stages.vad import detect_speech_steps
from mlx_speech.stages.vad_pyannet import detect_speech_pyannet_steps
from mlx_speech.stages.whisper import batched
from mlx_speech.steps import Steps
from mlx_speech.transcript import Chunk, Region


def regions_steps(audio: np.ndarray, options: Options, models: Models, longest: float) -> Steps[list[Region]]:
    """Where somebody speaks in (samples,), in stretches of at most `longest` seconds."""
    detector = options.detection.detector_options
    if options.detection.vad_method == "silero":
        return detect_speech_steps(audio, models.silero(), max_speech_duration_s=longest, **detector)
    return detect_speech_pyannet_steps(audio, models.pyannet(), max_duration=longest, **detector)


def chunks_of(recording: Recording, models: Models) -> Job[list[Chunk]]:
    """What Whisper hears at once."""
    options = recording.options
    size = chunk_size(options, models)
    if not options.detection.vad:
        # nobody has said where speech is, so none can be missing
        return [replace(chunk, regions=()) for chunk in fixed_chunks(recording.duration, size)]
    longest_speech, pad = speech_and_pad(size)
    steps = regions_steps(recording.audio, options, models, longest_speech)
    regions = yield from told("vad", recording.duration, steps)
    recording.models["vad"] = models.names["vad"]
    if not recording.made_louder:
        warn_if_silent(recording.audio, regions, recording.name)
    duration = recording.duration
    max_pause = options.detection.max_pause
    chunks = cut_chunks(regions, duration=duration, chunk_size=longest_speech, max_pause=max_pause)
    return widened(chunks, pad=pad, duration=duration)


def compare_tracks(recording: Recording, models: Models) -> Job[None]:
    """Note the speakers, where each has a sound track of its own, and say whether that is so."""
    recording.tracks = [louder(track) for track in recording.tracks]
    detect = partial(regions_steps, options=recording.options, models=models, longest=math.inf)
    bounds = speaker_bounds(**recording.options.speakers.numbers)
    steps = speakers_of_tracks(recording.tracks, detect, bounds.low, bounds.high)
    recording.turns_of_tracks = yield from silently(steps)
    if recording.turns_of_tracks is None:
        outcome = "its sound tracks hold no speaker each: their mix tells who speaks"
    else:
        count = len(recording.turns_of_tracks.speakers)
        outcome = f"{count} of its sound tracks hold a speaker each: the tracks tell who speaks"
    warnings.warn(f"{recording.name}: {outcome}", stacklevel=2)


def detect_language(recording: Recording, models: Models) -> None:
    """Note the language of the chunks; of the first window, as upstream, where it is read window after window."""
    heard = recording.chunks
    if recording.options.longform.sequential and recording.audio.size:
        heard = [Chunk(0.0, recording.duration)]
    if not heard:
        return
    whisper = models.whisper()
    recording.language, recording.language_probability = batched.detect_language(
        recording.audio,
        heard,
        whisper.model,
        whisper.tokenizer,
        among=recording.options.languages,
        keep=recording.encoded,
    )
