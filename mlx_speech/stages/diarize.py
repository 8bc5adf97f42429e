"""Recording → who speaks when: pyannote.audio's speaker diarization, both community-1's and 3.1's.

A window of some seconds slides over the recording; PyanNet says which of its up to three voices speaks in every frame,
WeSpeaker makes a vector of each voice, clustering says which voices are one speaker's, and the windows are laid over
each other again. Source: pyannote.audio `pipelines.speaker_diarization.SpeakerDiarization`, whose turns these are.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any, TypedDict

import mlx.core as mx
import numpy as np

from mlx_speech import steps
from mlx_speech.blas import on_cpu
from mlx_speech.errors import ConfigError, OptionError, brief, in_range
from mlx_speech.features import SAMPLE_RATE, one_channel
from mlx_speech.models.base import SpeakerEmbedding
from mlx_speech.models.diarization_pipeline import Model
from mlx_speech.stages import cluster, windows
from mlx_speech.stages.cluster import SpeakerBounds, speaker_bounds
from mlx_speech.stages.window_cache import Cache, Heard
from mlx_speech.stages.windows import Batch, Windows
from mlx_speech.steps import Steps
from mlx_speech.transcript import Diarization, Turn

# of PyanNet with the stride that all published ones have
FRAMES = Windows(duration=991 / SAMPLE_RATE, step=270 / SAMPLE_RATE)
MIN_SAMPLES = 400  # of a filterbank frame: a voice needs more for an embedding of its own
# How much of the work is done behind segmentation and behind the embeddings; clustering is the rest.
SHARE_BEHIND_SEGMENTATION = 0.15
SHARE_BEHIND_EMBEDDINGS = 0.95
# Of masks of a stretch of windows, in samples: 25 ms every 10 ms, as the filterbanks of speaker embeddings have them.
MASK_FRAME = 400
MASK_STEP = 160


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

    Warns where another number of speakers has turns than was asked for. Raises `OptionError`, naming the options,
    where they are wrong, `ConfigError` for a pipeline with settings that are not supported, and `AudioError` for audio
    of another shape.
    """
    work = diarize_steps(
        audio,
        model,
        num_speakers=num_speakers,
        min_speakers=min_speakers,
        max_speakers=max_speakers,
        batch_size=batch_size,
    )
    if on_progress is None:
        return steps.run(work)
    duration = np.size(audio) / SAMPLE_RATE
    return steps.run(work, lambda seconds: on_progress(seconds / duration))


def diarize_steps(
    audio: Any,
    model: Model,
    *,
    num_speakers: int | None = None,
    min_speakers: int | None = None,
    max_speakers: int | None = None,
    batch_size: int = 32,
) -> Steps[Diarization]:
    """`diarize` in steps of a batch of windows, and one of clustering: yields the seconds of audio done, as far as the
    work can be counted in them, and returns who speaks when.

    Warns and raises as `diarize` does, at the first step.
    """
    in_range(1, math.inf, batch_size=batch_size)
    bounds = speaker_bounds(num_speakers, min_speakers, max_speakers)
    check(model)
    samples = one_channel(audio, "speakers are told apart")
    if not samples.size:
        return without_turns(bounds)
    duration = samples.size / SAMPLE_RATE
    size, step = window_sizes(model)
    starts = windows.starts(samples.size, size, step)

    cache = Cache(model)
    for scores in segment(samples, model.segmentation, starts, size, batch_size):
        cache.append(speaking(scores, model), scores)
        yield duration * (SHARE_BEHIND_SEGMENTATION * len(cache.classes) / len(starts))
    masks = VoiceMasks(cache, size, exclude_overlap=model.embedding_exclude_overlap)
    if not len(masks.voiced):
        return without_turns(bounds)

    voiced_starts = [starts[k] for k in masks.voiced]
    windows_done = 0
    for vectors in embed_voices(samples, model, voiced_starts, masks, batch_size):
        rows = slice(windows_done, windows_done + len(vectors))
        cache.append_vectors(vectors[masks.speaking[rows]])
        windows_done += len(vectors)
        share = (SHARE_BEHIND_EMBEDDINGS - SHARE_BEHIND_SEGMENTATION) * windows_done / len(voiced_starts)
        yield duration * (SHARE_BEHIND_SEGMENTATION + share)

    result = from_cache(cache.heard(0, len(starts), []), bounds, settings_of(model))
    yield duration
    return replace(result, embedding_model=model.embedding.identity)


class Settings(TypedDict):
    """What `told_apart` has to know of a pipeline."""

    duration: float
    plda: Any
    clustering: str
    params: Mapping[str, Any]
    segmentation_step: float
    min_active_ratio: float
    frames: Windows


def settings_of(model: Model) -> Settings:
    """The pipeline's, as keywords of `told_apart`."""
    return Settings(
        duration=model.segmentation.args.duration,
        plda=model.plda,
        clustering=model.clustering,
        params=model.params,
        segmentation_step=model.segmentation_step,
        min_active_ratio=model.min_active_ratio,
        frames=windows.frames_of(model.segmentation.args),
    )


def from_stages(
    segmentations: np.ndarray,
    embeddings: np.ndarray,
    *,
    duration: float,
    scores: np.ndarray | None = None,
    plda: Any = None,
    clustering: str = "VBxClustering",
    params: Mapping[str, Any] | None = None,
    num_speakers: int | None = None,
    min_speakers: int | None = None,
    max_speakers: int | None = None,
    segmentation_step: float = 0.1,
    min_active_ratio: float = 0.2,
    frames: Windows = FRAMES,
) -> Diarization:
    """Who speaks when, from what the models have said of every window.

    segmentations : (chunks, frames, speakers), 0 or 1
    embeddings : (chunks, speakers, dimension); what silent voices have is not used
    duration : of a window, in seconds; a window begins every `segmentation_step` of it
    scores : (chunks, frames, speakers), of a multilabel model, from which the speakers of a frame are chosen
    plda : of VBxClustering, a `models.plda.Model`
    clustering, params : as a pipeline's config.yaml has them, {"clustering": {...}, "segmentation": {...}}
    min_active_ratio : only voices that are alone in this part of a window's frames form clusters (pyannote.audio 4);
        0: all that speak at all (pyannote.audio 3)

    Warns and raises as `diarize` does.
    """
    segmentations = np.asarray(segmentations)
    embeddings = np.asarray(embeddings)
    scores = None if scores is None else np.asarray(scores)
    _check_shapes(segmentations, embeddings, segmentations if scores is None else scores)
    settings = Settings(
        duration=duration,
        plda=plda,
        clustering=clustering,
        params=params or {},
        segmentation_step=segmentation_step,
        min_active_ratio=min_active_ratio,
        frames=frames,
    )
    bounds = speaker_bounds(num_speakers, min_speakers, max_speakers)
    return from_cache(Heard.of(segmentations, embeddings, scores), bounds, settings)


def from_cache(heard: Heard, bounds: SpeakerBounds, settings: Settings) -> Diarization:
    """Who speaks when, from what the models have said of every window, packed.

    Warns and raises as `diarize` does.
    """
    result = told_apart(heard, bounds, **settings)
    if not result.turns:
        return without_turns(bounds)
    count = len(result.embeddings)
    if not bounds.low <= count <= bounds.high:
        _warn_of_number(count, bounds)
    return result


def told_apart(
    heard: Heard,
    bounds: SpeakerBounds,
    *,
    duration: float,
    plda: Any = None,
    clustering: str = "VBxClustering",
    params: Mapping[str, Any] | None = None,
    segmentation_step: float = 0.1,
    min_active_ratio: float = 0.2,
    frames: Windows = FRAMES,
) -> Diarization:
    """`from_cache` without a warning, for where nobody has asked yet.

    plda : may be a `cluster.HostPLDA`, too; it and the others as of `from_stages`

    Raises as `diarize` does.
    """
    settings = checked(params)
    cluster.check(clustering, settings["clustering"], plda)
    seconds_of_frames = heard.shape[0] * frames.step
    if not 0.8 * duration <= seconds_of_frames <= 1.05 * duration:
        message = f"duration is {duration:g} s, but windows have frames for {seconds_of_frames:.2f} s"
        raise OptionError(f"{message}: it is a window's")
    if not len(heard):
        return Diarization()
    chunks = Windows(duration, segmentation_step * duration)
    count = speakers_at_once(heard, chunks, frames)
    if not count.any():
        return Diarization()
    clusters, centroids = cluster.cluster_voices(
        heard.flat_vectors(),
        heard.speaking(),
        heard.alone(),
        bounds,
        clustering=clustering,
        params=settings["clustering"],
        plda=plda,
        least_alone=min_active_ratio * heard.shape[0],
    )
    count = np.minimum(count, bounds.high).astype(int)
    chosen, single = _chosen(activity(heard, clusters, chunks, frames), count)
    min_duration_off = settings["segmentation"]["min_duration_off"]
    turns = _turns(chosen, frames, min_duration_off)
    exclusive = _turns(single, frames, min_duration_off)
    names = _names(turns)
    # More may speak at once than there are clusters: those have no centroid.
    vectors = np.zeros((max(names, default=-1) + 1, centroids.shape[1]))
    vectors[: len(centroids)] = centroids[: len(vectors)]
    return Diarization(
        tuple(Turn(start, end, names[k]) for start, end, k in turns),
        tuple(Turn(start, end, names[k]) for start, end, k in exclusive),
        {name: tuple(vectors[k].tolist()) for k, name in names.items()},
    )


def _check_shapes(segmentations: np.ndarray, embeddings: np.ndarray, scores: np.ndarray) -> None:
    """Raises `OptionError` where they do not belong together."""
    if segmentations.ndim != 3 or embeddings.ndim != 3 or scores.shape != segmentations.shape:
        raise OptionError("segmentations and scores have to be (chunks, frames, speakers), embeddings 3-dimensional")
    voices = segmentations.shape[::2]
    if embeddings.shape[:2] != voices:
        raise OptionError(f"embeddings of {embeddings.shape[:2]} (chunks, speakers) for {voices}")


def _names(turns: list[tuple[float, float, int]]) -> dict[int, str]:
    """Of the clusters that have turns; 10 before 2, as the original sorts."""
    clusters = sorted({k for _, _, k in turns}, key=str)
    return {k: f"SPEAKER_{number:02d}" for number, k in enumerate(clusters)}


def without_turns(bounds: SpeakerBounds) -> Diarization:
    """Nobody speaks, which is worth a warning where somebody was asked for."""
    if bounds.least_is_given:
        _warn_of_number(0, bounds)
    return Diarization()


def _warn_of_number(found: int, bounds: SpeakerBounds) -> None:
    """Say that other speakers have turns than were asked for."""
    if bounds.low == bounds.high:
        asked = f"{bounds.low} was" if bounds.low == 1 else f"{bounds.low} were"
    elif math.isfinite(bounds.high):
        asked = f"{bounds.low} to {bounds.high} were"
    else:
        asked = f"{bounds.low} or more were"
    if found == 0:
        reason = "nobody is heard to speak"
    elif found < bounds.low:
        reason = "there is too little speech to tell more apart"
    else:
        reason = "more than that speak at once"
    count = "1 speaker is" if found == 1 else f"{found} speakers are"
    warnings.warn(f"{count} found where {asked} asked for: {reason}", stacklevel=3)


def checked(params: Mapping[str, Any] | None) -> dict[str, Any]:
    """A pipeline's `params` with what they leave out. Raises `ConfigError` for settings of the wrong kind."""
    if not isinstance(params, Mapping | None):
        raise ConfigError(f"params is {brief(params)}, not a set of values")
    result = {"clustering": {}, "segmentation": {}, **(params or {})}
    for section in ("clustering", "segmentation"):
        if not isinstance(result[section], Mapping):
            raise ConfigError(f"params: {section} is {brief(result[section])}, not a set of values")
    segmentation = {"threshold": 0.5, "min_duration_off": 0.0, **result["segmentation"]}
    for name, value in segmentation.items():
        if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ConfigError(f"params: segmentation.{brief(name)} is {brief(value)}, not a number from 0")
    result["segmentation"] = segmentation
    return result


def check(model: Model) -> None:
    """Raises `ConfigError` for a pipeline with settings that are not supported."""
    cluster.check(model.clustering, checked(model.params)["clustering"], model.plda)


# --- the models ------------------------------------------------------------------------------------------------------


def powerset(num_classes: int, max_set_size: int) -> np.ndarray:
    """The speakers of every class: none, one alone, two of them…; (powerset classes, num_classes) of 0 and 1."""
    rows: list[list[int]] = []
    for size in range(max_set_size + 1):
        for speakers in combinations(range(num_classes), size):
            rows.append([int(k in speakers) for k in range(num_classes)])
    return np.array(rows, dtype=np.int8)


def segment(audio: np.ndarray, model: Any, starts: list[int], size: int, batch_size: int) -> Iterator[np.ndarray]:
    """PyanNet on the windows of `size` samples at `starts` → a batch at a time, (windows, frames, speakers).

    0 or 1 of a powerset model (the most probable class), and the scores of a multilabel one.
    """
    args = model.args
    mapping = None
    if args.powerset_max_classes:
        mapping = mx.array(powerset(args.num_speakers, args.powerset_max_classes))

    def compute(batch: Batch, rows: slice) -> mx.array:
        """→ (windows, frames, speakers)"""
        scores = model.overlapping(*batch.stretch(), size)
        if mapping is None:
            return scores
        return mapping[scores.argmax(axis=-1)]

    return windows.slide(audio, starts, size, compute, batch_size)


def window_sizes(model: Model) -> tuple[int, int]:
    """Of the pipeline, in samples: a window, and how much later the next one begins."""
    args = model.segmentation.args
    return round(args.duration * args.sample_rate), round(model.segmentation_step * args.duration * args.sample_rate)


def speaking(scores: np.ndarray, model: Model) -> np.ndarray:
    """What `segment` gives → 0 or 1, (windows, frames, speakers) int8: who speaks."""
    if model.segmentation.args.powerset_max_classes is not None:
        return scores
    return windows.binarize(scores, checked(model.params)["segmentation"]["threshold"]).astype(np.int8)


def voice_masks(segmentations: np.ndarray, size: int, exclude_overlap: bool) -> np.ndarray:
    """Of every voice, the frames its embedding is made from: those in which it is alone, where there are enough of
    them for that. segmentations (chunks, frames, speakers) → the same shape; size : samples of a window"""
    if not exclude_overlap:
        return segmentations
    clean = segmentations * (segmentations.sum(axis=2, keepdims=True) < 2)
    enough = clean.sum(axis=1, keepdims=True) > math.ceil(segmentations.shape[1] * MIN_SAMPLES / size)
    return np.where(enough, clean, segmentations)


class VoiceMasks:
    """The `voice_masks` of the windows in which somebody speaks, made when they are asked for.

    voiced : these windows; speaking : who speaks in each of them, (windows, speakers) bool
    """

    def __init__(self, cache: Cache, size: int, exclude_overlap: bool) -> None:
        speaking = cache.heard(0, len(cache.classes), []).speaking()
        self.voiced = np.flatnonzero(speaking.any(axis=1))
        self.speaking = speaking[self.voiced]
        self.shape = (len(self.voiced), *cache.shape)
        self._cache = cache
        self._size = size
        self._exclude_overlap = exclude_overlap

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Of some of these windows, (windows, frames, speakers)."""
        chosen = self.voiced[rows]
        first = int(chosen[0])
        classes = self._cache.classes_of(first, int(chosen[-1]) + 1)
        return voice_masks(classes[chosen - first], self._size, self._exclude_overlap)


def embed_voices(
    audio: np.ndarray, model: Model, starts: list[int], masks: np.ndarray | VoiceMasks, batch_size: int
) -> Iterator[np.ndarray]:
    """`embed` or `embed_stretches`, as the pipeline does it."""
    size, _ = window_sizes(model)
    if model.embedding_stretch is not None:
        stretch = round(model.embedding_stretch * model.segmentation.args.sample_rate)
        return embed_stretches(audio, model.embedding, starts, size, masks, stretch)
    # On the CPU a ResNet gains nothing from a batch, and its convolutions need 1 GB for every window in it.
    embedding_batch = 1 if on_cpu() else batch_size
    return embed(audio, model.embedding, starts, size, masks, embedding_batch)


def embed(
    audio: np.ndarray,
    model: SpeakerEmbedding,
    starts: list[int],
    size: int,
    masks: np.ndarray | VoiceMasks,
    batch_size: int,
) -> Iterator[np.ndarray]:
    """The voices of the windows of `size` samples at `starts` → a batch at a time, (windows, speakers, dimension).

    masks : (windows, frames, speakers), the frames in which each is heard
    """

    def compute(batch: Batch, rows: slice) -> mx.array:
        """→ (windows, speakers, dimension), without those that the batch has several times"""
        return model.embed(batch.waveforms(), masks[rows].transpose(0, 2, 1))

    return windows.slide(audio, starts, size, compute, batch_size)


def embed_stretches(
    audio: np.ndarray,
    model: SpeakerEmbedding,
    starts: list[int],
    size: int,
    masks: np.ndarray | VoiceMasks,
    stretch: int,
) -> Iterator[np.ndarray]:
    """The same, but windows are heard together, as many as fit in `stretch` samples: what the model does before it
    looks at single voices is done once for all of them, and not once for each.

    It is not quite the same: a filterbank is centred by its mean over the stretch, not over the window.
    """
    speakers = masks.shape[2]
    length = _mask_frames(size)
    nearest = np.arange(length) * masks.shape[1] // length
    for first, last in windows.stretches(starts, size, stretch):
        begin = starts[first]
        samples = starts[last - 1] + size - begin
        waveform = audio[begin : begin + samples]
        waveform = np.pad(waveform, (0, samples - len(waveform)))
        voices = np.zeros(((last - first) * speakers, _mask_frames(samples)), np.int8)
        for window, mask in enumerate(masks[first:last]):
            place = (starts[first + window] - begin) // MASK_STEP
            row = window * speakers
            voices[row : row + speakers, place : place + length] = mask.T[:, nearest]
        vectors = model.embed(mx.array(waveform[None]), voices[None])
        yield np.array(vectors).reshape(last - first, speakers, -1)


def _mask_frames(samples: int) -> int:
    """How many frames masks of a stretch have: as many as a filterbank has of it."""
    return 1 + (samples - MASK_FRAME) // MASK_STEP


# --- the turns -------------------------------------------------------------------------------------------------------


def speakers_at_once(heard: Heard, chunks: Windows, frames: Windows) -> np.ndarray:
    """How many speak in every frame of the recording, (frames,)."""
    counts = (classes for block in heard.blocks() for classes in block.sum(axis=2, keepdims=True))
    return np.rint(windows.aggregate(counts, len(heard), chunks, frames)[:, 0]).astype(int)


def activity(heard: Heard, clusters: np.ndarray, chunks: Windows, frames: Windows) -> Iterator[np.ndarray]:
    """How much every cluster speaks in every frame of the recording, (frames, clusters) of the next frames at a time.

    clusters : (windows, speakers), the cluster of each, or `cluster.NONE`
    """
    scores = _by_cluster(heard, clusters)
    return windows.aggregate_in_blocks(scores, len(heard), chunks, frames, skip_average=True)


def _by_cluster(heard: Heard, clusters: np.ndarray) -> Iterator[np.ndarray]:
    """Of every window, (frames, clusters): the highest score of the voices that belong to the cluster."""
    for score, voices in zip(heard.windows(), clusters, strict=True):
        result = np.zeros((len(score), clusters.max() + 1), dtype=np.float32)
        for k in np.unique(voices[voices != cluster.NONE]):
            result[:, k] = score[:, voices == k].max(axis=1)
        yield result


def _chosen(activations: Iterable[np.ndarray], count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Who speaks in every frame, and who does if only one may, (frames, speakers) bool each.

    activations : of the next frames at a time, (frames, clusters); count : (frames,), how many speak in each
    """
    several: list[np.ndarray] = []
    single: list[np.ndarray] = []
    most = int(count.max())
    done = 0
    for block in activations:
        count_here = count[done : done + len(block)]
        several.append(strongest(block, count_here, most))
        single.append(strongest(block, np.minimum(count_here, 1), min(most, 1)))
        done += len(block)
    return np.concatenate(several), np.concatenate(single)


def strongest(activations: np.ndarray, count: np.ndarray, most: int) -> np.ndarray:
    """The `count` (frames,) speakers of every frame with the highest activations (frames, clusters); bool, with
    columns for `most` speakers where there are fewer clusters than that. Equals go as NumPy sorts them here, as in the
    original."""
    missing = max(0, most - activations.shape[1])
    activations = np.pad(activations, ((0, 0), (0, missing)))
    chosen = np.zeros(activations.shape, dtype=bool)
    order = np.argsort(-activations, axis=-1)
    np.put_along_axis(chosen, order, np.arange(order.shape[1]) < count[:, None], axis=1)
    return chosen


def _turns(chosen: np.ndarray, frames: Windows, min_duration_off: float) -> list[tuple[float, float, int]]:
    """(frames, speakers) bool → (start, end, speaker) in order of time."""
    turns: list[tuple[float, float, int]] = []
    for k in range(chosen.shape[1]):
        runs = windows.runs(chosen[:, k])
        stretches = [(frames.middle(first), frames.middle(last)) for first, last in runs]
        turns += [(start, end, k) for start, end in windows.fill(stretches, min_duration_off)]
    return sorted(turns)
