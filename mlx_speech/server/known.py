"""Speakers whose voices come with a request: their names for the speakers who sound like them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import replace

import numpy as np

from mlx_speech.audio import load_audio
from mlx_speech.errors import AudioError, PipelineClosed
from mlx_speech.pipeline import Pipeline
from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.server.errors import ApiError
from mlx_speech.server.fields import KnownSpeaker
from mlx_speech.stages.voiceprints import Voiceprint, repeated, voiceprint_in
from mlx_speech.transcript import Transcript
from mlx_speech.voices.matching import Thresholds, Voices, match

LONGEST_REFERENCE = 30.0  # seconds
LONGEST_WINDOW = 10.0  # seconds that segmentations of pyannote hear at once
# A name is wanted for somebody of this recording, and few voices are compared: OpenAI gives names without any doubt.
THRESHOLDS = Thresholds(certain=0.5, doubtful=0.45)


def voices_from(speakers: Sequence[KnownSpeaker], prints: Sequence[Voiceprint]) -> Voices:
    """What is known of the speakers, of whom there is at least one. prints : of each of them, in the same order"""
    names = [speaker.name for speaker in speakers]
    vectors = np.array([one.vector for one in prints])
    return Voices.of(names, vectors, [one.seconds for one in prints], prints[0].model)


def voiceprint_of(speaker: KnownSpeaker, place: int, pipeline: Pipeline) -> Voiceprint:
    """What one of them sounds like. It waits for the pipeline: call it in a thread. place : among the known speakers

    Raises `ApiError` for a recording that cannot be read, is too short or too long, or has several speakers, and
    `PipelineClosed`.
    """
    try:
        samples = load_audio(io.BytesIO(speaker.sound), max_duration=LONGEST_REFERENCE)
        found = pipeline.diarize(repeated(samples, round(LONGEST_WINDOW * SAMPLE_RATE)))
        return voiceprint_in(found, samples.size / SAMPLE_RATE)
    except AudioError as error:
        param = f"known_speaker_references[{place}]"
        raise ApiError(400, "invalid_audio", f"{param}: {error}", param) from error
    except CancelledError as error:  # by nobody else: the request is this function's own
        raise PipelineClosed("this pipeline was closed: make another one") from error


def named(transcript: Transcript, voices: Voices) -> Transcript:
    """The transcript with the names of known speakers."""
    diarization = transcript.diarization
    if diarization is None or not diarization.embeddings:
        return transcript
    matches = match(diarization.embeddings, voices, THRESHOLDS)
    names = {label: found.name for label, found in matches.items() if not found.doubtful}
    others = set(transcript.speakers) - names.keys()
    free = {label: name for label, name in names.items() if name not in others}
    return replace(transcript, diarization=replace(diarization, matches=matches)).rename(free)
