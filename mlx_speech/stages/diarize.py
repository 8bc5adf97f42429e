"""Recording → who speaks when: pyannote.audio's speaker diarization, both community-1's and 3.1's.

A window of some seconds slides over the recording; PyanNet says which of its up to three voices speaks in every frame,
WeSpeaker makes a vector of each voice, clustering says which voices are one speaker's, and the windows are laid over
each other again. Source: pyannote.audio `pipelines.speaker_diarization.SpeakerDiarization`, whose turns these are.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech.errors import AudioError, OptionError
from mlx_speech.features import speaker_fbank
from mlx_speech.models.diarization_pipeline import Model
from mlx_speech.stages import cluster, windows
from mlx_speech.stages.windows import Windows
from mlx_speech.transcript import Diarization, Turn

FRAMES = Windows(duration=991 / 16_000, step=270 / 16_000)  # of PyanNet with the stride that all published ones have
MIN_SAMPLES = 400  # of a filterbank frame: a voice needs more for an embedding of its own
SEGMENTATION_SHARE = 0.15  # of the work, for the progress
BLOCK = 1 << 16  # frames that are sorted at once, for the memory


def diarize(
    audio: Any,
    model: Model,
    *,
    num_speakers: int | None = None,
    min_speakers: int | None = None,
    max_speakers: int | None = None,
    batch_size: int = 32,
    on_progress: Callable[[float], None] | None = None,
) -> Diarization:
    """Who speaks when in a recording; no turns where nobody does.

    audio : (samples,) at 16 kHz, floats in [-1, 1]
    num_speakers : where it is known, or between `min_speakers` and `max_speakers`
    batch_size : windows that go through the models at once
    on_progress : is told the part that is done, 0..1

    Warns where fewer speakers are found than asked for. Raises `OptionError`, naming the options, where they are
    wrong, `ConfigError` for a pipeline with settings that are not supported, and `AudioError` for audio of another
    shape.
    """
    if batch_size < 1:
        raise OptionError(f"batch_size is {batch_size}: it has to be at least 1")
    cluster.speaker_bounds(num_speakers, min_speakers, max_speakers)
    cluster.check(model.clustering, model.clustering_params, model.plda)
    samples = np.asarray(audio, dtype=np.float32)
    if samples.ndim != 1:
        raise AudioError(f"audio of shape {samples.shape}: speakers are told apart in one channel, (samples,)")
    report = on_progress or (lambda done: None)
    if not samples.size:
        return Diarization()
    args = model.segmentation.args
    size = round(args.duration * args.sample_rate)
    starts = windows.starts(samples.size, size, round(args.duration * model.segmentation_step * args.sample_rate))
    scores = segment(samples, model.segmentation, starts, size, batch_size, lambda p: report(SEGMENTATION_SHARE * p))
    segmentations = scores
    if args.powerset_max_classes is None:
        segmentations = windows.binarize(scores, model.segmentation_threshold).astype(np.int8)
    if not segmentations.any():
        return Diarization()
    masks = voice_masks(segmentations, size, model.embedding_exclude_overlap)
    embeddings = embed(
        samples, model.embedding, starts, size, masks, batch_size,
        lambda p: report(SEGMENTATION_SHARE + (1 - SEGMENTATION_SHARE) * p),
    )  # fmt: skip
    return from_stages(
        segmentations,
        embeddings,
        duration=args.duration,
        scores=scores,
        plda=model.plda,
        clustering=model.clustering,
        params=model.params,
        num_speakers=num_speakers,
        min_speakers=min_speakers,
        max_speakers=max_speakers,
        segmentation_step=model.segmentation_step,
        frames=windows.frames_of(args),
    )
