"""A recording of one person → their voiceprint: the vector by which the diarization tells speakers apart.

The recording goes through the whole diarization, so that a voiceprint is made as the vectors are that it will be
compared with: from speech alone, without overlap, by whatever models the pipeline has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlx_speech.errors import AudioError
from mlx_speech.features import SAMPLE_RATE, one_channel
from mlx_speech.models.diarization_pipeline import Model
from mlx_speech.stages.diarize import diarize
from mlx_speech.transcript import Diarization, Turn

LEAST_SPEECH = 1.0  # seconds; a vector of less says little of a voice
# Others may be heard for so long, or for that part of the speech: a cough, or a word of somebody in the background.
MOST_OF_OTHERS = 1.0  # seconds
MOST_OF_OTHERS_SHARE = 0.1
TURNS_SHOWN = 3  # in a message, of each speaker


@dataclass(frozen=True)
class Voiceprint:
    """What a voice sounds like to an embedding model.

    vector : not normalised
    seconds : of speech that it was made of
    model : the embedding model (`BaseModel.identity`); only vectors of the same can be compared
    """

    vector: tuple[float, ...]
    seconds: float
    model: str


def voiceprint(
    audio: Any, model: Model, *, offset: float = 0.0, on_progress: Callable[[float], None] | None = None
) -> Voiceprint:
    """The voiceprint of the one person who speaks.

    audio : (samples,) at 16 kHz, floats in [-1, 1]; some seconds are enough, half a minute is better
    model : the diarization that will hear the recordings in which the person is to be recognised
    offset : seconds of a recording that were cut off before `audio`, for the times in messages
    on_progress : is told the part that is done, 0..1

    Raises `AudioError` where there is less than a second of speech, and, saying who speaks when, where several people
    speak; `ConfigError` as `diarize`.
    """
    samples = one_channel(audio, "a voice is enrolled")
    args = model.segmentation.args
    window = round(args.duration * args.sample_rate)
    found = diarize(repeated(samples, window), model, on_progress=on_progress)
    return voiceprint_in(found, samples.size / SAMPLE_RATE, offset=offset)


def voiceprint_in(found: Diarization, duration: float, *, offset: float = 0.0) -> Voiceprint:
    """The voiceprint of the one person who speaks in a diarization.

    duration : seconds of it that count; what is behind them only filled a window
    offset : as of `voiceprint`, which also says what is raised
    """
    found = _within(found, duration)
    seconds = found.seconds
    speaker = max(seconds, key=lambda label: seconds[label], default=None)
    if speaker is None or seconds[speaker] < LEAST_SPEECH or not is_vector(found.embeddings[speaker]):
        heard = sum(seconds.values())
        raise AudioError(f"{heard:.1f} s of speech are too little to know a voice by: give {LEAST_SPEECH:g} s or more")
    others = sum(seconds.values()) - seconds[speaker]
    if others > max(MOST_OF_OTHERS, MOST_OF_OTHERS_SHARE * seconds[speaker]):
        raise AudioError(_several(found, seconds, offset))
    return Voiceprint(found.embeddings[speaker], seconds[speaker], found.embedding_model or "")


def repeated(samples: np.ndarray, size: int) -> np.ndarray:
    """(samples,) as they are, or repeated until they are as long as a window of the diarization, of `size` samples.

    What is shorter would get silence behind it, and embeddings take the mean of the whole window off the filterbank.
    By the demo's model, three voices in 2 to 4 s had cosines of 0.45 to 0.73 with themselves in a conversation, and of
    0.83 to 0.91 where they were repeated.
    """
    if not 0 < samples.size < size:
        return samples
    return np.resize(samples, size)


def _within(found: Diarization, duration: float) -> Diarization:
    """With the turns of the first `duration` seconds alone."""
    return replace(found, turns=_cut(found.turns, duration), exclusive=_cut(found.exclusive, duration))


def _cut(turns: Iterable[Turn], end: float) -> tuple[Turn, ...]:
    return tuple(replace(turn, end=min(turn.end, end)) for turn in turns if turn.start < end)


def is_vector(vector: tuple[float, ...]) -> bool:
    """Whether it has a direction: of finite numbers, not all of them zero."""
    return any(vector) and all(map(math.isfinite, vector))


def _several(found: Diarization, seconds: dict[str, float], offset: float) -> str:
    """Who speaks when, and what to do about it. offset : is added to all times"""
    speakers: list[str] = []
    for label in sorted(seconds, key=lambda label: -seconds[label]):
        turns = [turn for turn in found.exclusive if turn.speaker == label]
        longest = sorted(turns, key=lambda turn: -turn.duration)[:TURNS_SHOWN]
        times = [_times(turn, offset) for turn in sorted(longest, key=lambda turn: turn.start)]
        speakers.append(f"{label} for {seconds[label]:.1f} s ({', '.join(times)})")
    example = max(found.exclusive, key=lambda turn: turn.duration)
    start = example.start + offset
    end = example.end + offset
    advice = f"choose a stretch of one of them, such as start={start:.1f} end={end:.1f}"
    return f"{len(seconds)} people speak: {'; '.join(speakers)}: {advice}"


def _times(turn: Turn, offset: float) -> str:
    return f"{turn.start + offset:.1f} to {turn.end + offset:.1f} s"
