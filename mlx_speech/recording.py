"""One recording under way through a pipeline: what was given, what is known of it so far, how long each stage took."""

from __future__ import annotations

from mlx_speech import backend as backend  # isort: skip  (before MLX)

import os
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech.audio import audio_from_array, louder, mix, open_audio, open_tracks
from mlx_speech.errors import AudioError, OptionError
from mlx_speech.options import Options
from mlx_speech.request import Heard
from mlx_speech.sample_file import let_go
from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.transcript import Chunk, Diarization, Region, Segment, Transcript

MIN_SAMPLES = 1_600  # 0.1 s: nothing shorter is listened to


@dataclass(eq=False)
class Recording:
    """A recording and all that the stages have found out about it.

    source : as the caller gave it; samples of MLX have become NumPy's
    wanted : whether its sound is still to be read
    stage : the one that is under way; its seconds are counted by `clock`
    audio : (samples,) at 16 kHz, float32; those of a long file are in a file themselves
    made_louder : it was so quiet that it was raised
    tracks : (samples,) of every sound track, where they may hold a speaker each
    opened : whether its chunks are known
    chunks : what Whisper hears at once
    pending : chunks that Whisper has not given back
    language, language_probability : of the whole recording; None where it is not known (yet), or every chunk's own
    encoded : what was encoded of chunks to tell the language
    aligned_by_ctc : whether words get their times by forced alignment
    timed_by_attention : whether words get times from Whisper's attention
    known : chunks that were recognised before, for another request
    news : texts of chunks that the caller has not been told of
    silences : speech in which Whisper heard none
    error : what went wrong in a batch that it shared
    """

    source: Any
    options: Options
    wanted: bool = True
    stage: str = "audio"
    audio: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    made_louder: bool = False
    tracks: list[np.ndarray] = field(default_factory=list)
    turns_of_tracks: Diarization | None = None
    opened: bool = False
    chunks: list[Chunk] = field(default_factory=list)
    pending: int = 0
    language: str | None = None
    language_probability: float = 1.0
    encoded: dict[Chunk, mx.array] = field(default_factory=dict)
    aligned_by_ctc: bool = False
    timed_by_attention: bool = False
    known: Mapping[Chunk, Heard] = field(default_factory=dict)
    segments: tuple[Segment, ...] = ()
    news: deque[Heard] = field(default_factory=deque)
    silences: list[Region] = field(default_factory=list)
    diarization: Diarization | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    error: Exception | None = None

    @property
    def duration(self) -> float:
        """Seconds of sound."""
        return self.audio.size / SAMPLE_RATE

    @property
    def seconds_of_chunks(self) -> float:
        """Seconds that Whisper hears."""
        return sum(chunk.duration for chunk in self.chunks)

    @property
    def seconds_recognised(self) -> float:
        """How many of them it has given back."""
        if not self.chunks:
            return 0.0
        return self.seconds_of_chunks * (1 - self.pending / len(self.chunks))

    @property
    def name(self) -> str:
        """What messages call it."""
        return name_of(self.source)

    def clock(self, seconds: float) -> None:
        """A turn is over: count its seconds for the stage that is under way, and let go of the sound it looked at."""
        self.add_seconds(self.stage, seconds)
        for samples in (self.audio, *self.tracks):
            let_go(samples)

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Count seconds of work for a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def open(self, max_duration: float) -> None:
        """Read the sound. It needs no MLX, so any thread may do it.

        max_duration : seconds; a longer one is an error
        Raises `AudioError` for what cannot be read or kept, or is not wanted any more, `OptionError` for a sound track
        that there is not.
        """
        start = time.perf_counter()
        track = self.options.audio_track
        if track is not None and not is_file(self.source):
            raise OptionError("audio_track is for files: samples have no tracks, so leave it out")
        if track == "all" and self.options.wants_speakers:
            self.tracks = open_tracks(self.source, max_duration=max_duration, is_wanted=self._is_wanted)
            samples = mix(self.tracks)
        else:
            samples = self._samples(track, max_duration)
        self.audio = louder(samples, self.name)
        self.made_louder = self.audio is not samples
        self.add_seconds("audio", time.perf_counter() - start)

    def _is_wanted(self) -> bool:
        return self.wanted

    def _samples(self, audio_track: int | str | None, max_duration: float) -> np.ndarray:
        """(samples,) at 16 kHz of a file, of samples, or of samples with their rate."""
        source = self.source
        if isinstance(source, tuple):
            return audio_from_array(*source)
        if isinstance(source, np.ndarray):
            return audio_from_array(source, SAMPLE_RATE)
        if isinstance(source, (list, set, dict)) or source is None:
            raise AudioError(f"a {type(source).__name__} is no recording: give a path, a file or samples")
        return open_audio(source, max_duration=max_duration, audio_track=audio_track, is_wanted=self._is_wanted)

    def heard(self, place: int, segments: tuple[Segment, ...], silences: tuple[Region, ...]) -> None:
        """Take in what Whisper gave back of a chunk. place : of the chunk"""
        self.segments += segments
        self.silences += silences
        self.pending -= 1
        self.news.append(Heard(segments, place, self.chunks[place], silences))

    def transcript(self) -> Transcript:
        """What is known of it."""
        return Transcript(
            self.segments,
            self.language or _most_spoken(self.segments),
            self.language_probability,
            self.duration,
            self.diarization,
            models=dict(self.models),
            seconds=dict(self.seconds),
            silences=tuple(sorted(self.silences, key=lambda region: region.start)),
        )


def in_order(segments: tuple[Segment, ...] | list[Segment]) -> tuple[Segment, ...]:
    """Segments by when they start and end."""
    return tuple(sorted(segments, key=lambda segment: (segment.start, segment.end)))


def by_language(segments: tuple[Segment, ...], default: str | None) -> dict[str, tuple[Segment, ...]]:
    """Segments by their language; default : of those that say none, English without it."""
    groups: dict[str, list[Segment]] = {}
    for segment in segments:
        language = segment.language or default or "en"
        groups.setdefault(language, []).append(segment)
    return {language: tuple(group) for language, group in groups.items()}


def with_speaker(segment: Segment) -> Segment:
    """A segment whose words are its speaker's, if it has one."""
    if segment.speaker is None:
        return segment
    return replace(segment, words=tuple(replace(word, speaker=segment.speaker) for word in segment.words))


def name_of(source: Any) -> str:
    """What messages call a recording: its path, if it has one."""
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else "the recording"


def is_file(source: Any) -> bool:
    """Whether it is a file rather than samples."""
    return isinstance(source, (str, os.PathLike)) or hasattr(source, "read")


def with_rate(audio: Any, sample_rate: int | None) -> Any:
    """A recording of its own sample rate. Raises `OptionError` for a file, which says its rate itself."""
    if sample_rate is None:
        return audio
    if is_file(audio):
        raise OptionError("sample_rate is for samples: a file says its own, so leave it out")
    return audio, sample_rate


def without_mlx(audio: Any) -> Any:
    """A recording whose samples are NumPy's: what is not evaluated belongs to the thread that made it."""
    if isinstance(audio, tuple):
        return (without_mlx(audio[0]), *audio[1:])
    if isinstance(audio, mx.array):
        # NumPy has no bfloat16
        return np.array(audio.astype(mx.float32)) if mx.issubdtype(audio.dtype, mx.floating) else np.array(audio)
    return audio


def _most_spoken(segments: tuple[Segment, ...]) -> str | None:
    """The language of most of the speech."""
    seconds: dict[str, float] = {}
    for language, group in by_language(segments, None).items():
        seconds[language] = sum(segment.duration for segment in group)
    return max(seconds, key=lambda language: seconds[language], default=None)
