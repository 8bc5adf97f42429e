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

from mlx_speech.blas import on_cpu
from mlx_speech.errors import ConfigError, OptionError, brief, in_range
from mlx_speech.features import one_channel, speaker_fbank
from mlx_speech.models.diarization_pipeline import Model
from mlx_speech.stages import cluster, windows
from mlx_speech.stages.windows import Windows
from mlx_speech.transcript import Diarization, Turn

FRAMES = Windows(duration=991 / 16_000, step=270 / 16_000)  # of PyanNet with the stride that all published ones have
MIN_SAMPLES = 400  # of a filterbank frame: a voice needs more for an embedding of its own
SHARES = (0.0, 0.15), (0.15, 0.95)  # of the work, for the progress: segmentation and embeddings
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

    Warns where another number of speakers has turns than was asked for. Raises `OptionError`, naming the options,
    where they are wrong, `ConfigError` for a pipeline with settings that are not supported, and `AudioError` for audio
    of another shape.
    """
    in_range(1, math.inf, batch_size=batch_size)
    speakers = {"num_speakers": num_speakers, "min_speakers": min_speakers, "max_speakers": max_speakers}
    bounds = cluster.speaker_bounds(**speakers)
    settings = checked(model.params)
    cluster.check(model.clustering, settings["clustering"], model.plda)
    samples = one_channel(audio, "speakers are told apart")
    report = on_progress or (lambda done: None)
    if not samples.size:
        return _without_turns(bounds, num_speakers or min_speakers)
    args = model.segmentation.args
    size = round(args.duration * args.sample_rate)
    starts = windows.starts(samples.size, size, round(model.segmentation_step * args.duration * args.sample_rate))
    heard = segment(samples, model.segmentation, starts, size, batch_size)
    scores = segmentations = np.concatenate(list(_reported(heard, len(starts), report, SHARES[0])))
    if args.powerset_max_classes is None:
        segmentations = windows.binarize(scores, settings["segmentation"]["threshold"]).astype(np.int8)
    if not segmentations.any():
        return _without_turns(bounds, num_speakers or min_speakers)
    masks = voice_masks(segmentations, size, exclude_overlap=model.embedding_exclude_overlap)
    spoken = np.flatnonzero(masks.any(axis=(1, 2)))
    # On the CPU a ResNet gains nothing from a batch, and its convolutions need 1 GB for every window in it.
    together = 1 if on_cpu() else batch_size
    vectors = embed(samples, model.embedding, [starts[k] for k in spoken], size, masks[spoken], together)
    embeddings = np.full((*masks.shape[::2], model.embedding.args.embedding_size), np.nan, dtype=np.float32)
    embeddings[spoken] = np.concatenate(list(_reported(vectors, len(spoken), report, SHARES[1])))
    given = {name: getattr(model, name) for name in ("plda", "clustering", "params", "segmentation_step")}
    given |= {"duration": args.duration, "frames": windows.frames_of(args)} | speakers
    result = from_stages(segmentations, embeddings, scores=scores, **given)
    report(1.0)
    return result


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
    min_active_ratio : see `cluster.cluster`

    Warns and raises as `diarize` does.
    """
    bounds = cluster.speaker_bounds(num_speakers, min_speakers, max_speakers)
    settings = checked(params)
    cluster.check(clustering, settings["clustering"], plda)
    segmentations, embeddings = np.asarray(segmentations), np.asarray(embeddings)
    scores = segmentations if scores is None else np.asarray(scores)
    if segmentations.ndim != 3 or embeddings.ndim != 3 or scores.shape != segmentations.shape:
        raise OptionError("segmentations and scores have to be (chunks, frames, speakers), embeddings 3-dimensional")
    if embeddings.shape[:2] != segmentations.shape[::2]:
        raise OptionError(f"embeddings of {embeddings.shape[:2]} (chunks, speakers) for {segmentations.shape[::2]}")
    heard = segmentations.shape[1] * frames.step
    if not 0.8 * duration <= heard <= 1.05 * duration:
        raise OptionError(f"duration is {duration:g} s, but windows have frames for {heard:.2f} s: it is a window's")
    if not len(segmentations):
        return _without_turns(bounds, num_speakers or min_speakers)
    chunks = Windows(duration, segmentation_step * duration)
    count = segmentations.sum(axis=2, keepdims=True)
    count = np.rint(windows.aggregate(count, len(count), chunks, frames)[:, 0]).astype(int)
    if not count.any():
        return _without_turns(bounds, num_speakers or min_speakers)
    how: dict[str, Any] = {"clustering": clustering, "params": settings["clustering"], "plda": plda}
    clusters, centroids = cluster.cluster(embeddings, segmentations, bounds, min_active_ratio=min_active_ratio, **how)
    count = np.minimum(count, bounds.high).astype(int)
    activations = windows.aggregate(_by_cluster(scores, clusters), len(scores), chunks, frames, skip_average=True)
    min_off = settings["segmentation"]["min_duration_off"]
    turns = _turns(strongest(activations, count), frames, min_off)
    exclusive = _turns(strongest(activations, np.minimum(count, 1)), frames, min_off)
    # 10 before 2, as the original sorts
    names = {k: f"SPEAKER_{n:02d}" for n, k in enumerate(sorted({k for _, _, k in turns}, key=str))}
    if not bounds.low <= len(names) <= bounds.high:
        _warn_of_number(len(names), bounds)
    silent = np.zeros((max(names, default=-1) + 1, centroids.shape[1]))  # more at once than there are clusters
    silent[: len(centroids)] = centroids[: len(silent)]
    named, alone = (tuple(Turn(start, end, names[k]) for start, end, k in found) for found in (turns, exclusive))
    return Diarization(named, alone, {name: tuple(silent[k].tolist()) for k, name in names.items()})


def _without_turns(bounds: cluster.Bounds, least: int | None) -> Diarization:
    """Nobody speaks. least : how many were asked for, if any number was"""
    if least is not None:
        _warn_of_number(0, bounds)
    return Diarization()


def _warn_of_number(found: int, bounds: cluster.Bounds) -> None:
    """Say that other speakers have turns than were asked for."""
    if bounds.low == bounds.high:
        asked = f"{bounds.low} {'was' if bounds.low == 1 else 'were'}"
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
    found = {"clustering": {}, "segmentation": {}, **(params or {})}
    for section in ("clustering", "segmentation"):
        if not isinstance(found[section], Mapping):
            raise ConfigError(f"params: {section} is {brief(found[section])}, not a set of values")
    segmentation = {"threshold": 0.5, "min_duration_off": 0.0, **found["segmentation"]}
    for name, value in segmentation.items():
        if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ConfigError(f"params: segmentation.{brief(name)} is {brief(value)}, not a number from 0")
    return {**found, "segmentation": segmentation}


# --- the models ------------------------------------------------------------------------------------------------------


def powerset(num_classes: int, max_set_size: int) -> np.ndarray:
    """The speakers of every class: none, one alone, two of them…; (powerset classes, num_classes) of 0 and 1."""
    sets = [s for size in range(max_set_size + 1) for s in combinations(range(num_classes), size)]
    return np.array([[int(k in s) for k in range(num_classes)] for s in sets], dtype=np.int8)


def segment(audio: np.ndarray, model: Any, starts: list[int], size: int, batch_size: int) -> Iterator[np.ndarray]:
    """PyanNet on the windows of `size` samples at `starts` → a batch at a time, (windows, frames, speakers).

    0 or 1 of a powerset model (the most probable class), and the scores of a multilabel one.
    """
    args = model.args
    mapping = powerset(args.num_speakers, args.powerset_max_classes) if args.powerset_max_classes else None

    def compute(waveforms: mx.array, rows: slice) -> mx.array:
        scores = model(waveforms)
        return scores if mapping is None else mx.array(mapping)[scores.argmax(axis=-1)]

    return windows.slide(audio, starts, size, compute, batch_size)


def voice_masks(segmentations: np.ndarray, size: int, exclude_overlap: bool) -> np.ndarray:
    """Of every voice, the frames its embedding is made from: those in which it is alone, where there are enough of
    them for that. segmentations (chunks, frames, speakers) → the same shape; size : samples of a window"""
    if not exclude_overlap:
        return segmentations
    clean = segmentations * (segmentations.sum(axis=2, keepdims=True) < 2)
    enough = clean.sum(axis=1, keepdims=True) > math.ceil(segmentations.shape[1] * MIN_SAMPLES / size)
    return np.where(enough, clean, segmentations)


def embed(
    audio: np.ndarray, model: Any, starts: list[int], size: int, masks: np.ndarray, batch_size: int
) -> Iterator[np.ndarray]:
    """WeSpeaker on the windows of `size` samples at `starts` → a batch at a time, (windows, speakers, dimension).

    masks : (windows, frames, speakers). The trunk runs once per window for all of its voices.
    """
    args = model.args
    front = {name: getattr(args, name) for name in ("num_mel_bins", "frame_length", "frame_shift", "sample_rate")}

    def compute(waveforms: mx.array, rows: slice) -> mx.array:
        features = model.trunk(speaker_fbank(waveforms, args.fbank_centering_span, **front))
        weights = mx.array(masks[rows].transpose(0, 2, 1))
        return model.pool(features[: len(weights)], weights)

    return windows.slide(audio, starts, size, compute, batch_size)


# --- the turns -------------------------------------------------------------------------------------------------------


def _by_cluster(scores: np.ndarray, clusters: np.ndarray) -> Iterator[np.ndarray]:
    """Of every window, (frames, clusters): the highest score of the voices that belong to the cluster."""
    for score, own in zip(scores, clusters, strict=True):
        result = np.zeros((len(score), clusters.max() + 1), dtype=np.float32)
        for k in np.unique(own[own != cluster.NONE]):
            result[:, k] = score[:, own == k].max(axis=1)
        yield result


def strongest(activations: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The `count` (frames,) speakers of every frame with the highest activations (frames, clusters); bool, with
    columns for more speakers where there are fewer clusters than that. Equals go as NumPy sorts them here, as in the
    original."""
    activations = np.pad(activations, ((0, 0), (0, max(0, count.max() - activations.shape[1]))))
    chosen = np.zeros(activations.shape, dtype=bool)
    for start in range(0, len(chosen), BLOCK):
        block = slice(start, start + BLOCK)
        order = np.argsort(-activations[block], axis=-1)
        np.put_along_axis(chosen[block], order, np.arange(order.shape[1]) < count[block, None], axis=1)
    return chosen


def _turns(chosen: np.ndarray, frames: Windows, min_duration_off: float) -> list[tuple[float, float, int]]:
    """(frames, speakers) bool → (start, end, speaker) in order of time."""
    turns = []
    for k in range(chosen.shape[1]):
        stretches = [(frames.middle(a), frames.middle(b)) for a, b in windows.runs(chosen[:, k])]
        turns += [(start, end, k) for start, end in windows.fill(stretches, min_duration_off)]
    return sorted(turns)


def _reported(
    batches: Iterator[np.ndarray], total: int, report: Callable[[float], None], share: tuple[float, float]
) -> Iterator[np.ndarray]:
    """The same batches, telling `report` how much of the `share` of the whole work is done."""
    done = 0
    for batch in batches:
        done += len(batch)
        report(share[0] + (share[1] - share[0]) * done / total)
        yield batch
