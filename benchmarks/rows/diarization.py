"""Row 5: diarization beside pyannote.audio 4, whole and by stage: segmentation-3.0 on meetings, where they are at hand,
ResNet34 of full width, VBx."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks import models
from benchmarks.models import RATE
from benchmarks.rows.attention import TORCH
from benchmarks.suite import OURS, Call, Row, Work

PYANNOTE = "pyannote.audio"
WINDOW, STEP = 10, 1  # seconds
FRAMES = 589  # of a window
BATCH = 32  # both sides': community-1's own settings
GRID = 0.01  # seconds between the moments at which turns are compared
# Vectors of random weights lie close together. Both sides get this many speakers, which k-means then makes of them.
SPEAKERS = 2


def rows(device: str, quick: bool) -> list[Row]:
    minute = 12 if quick else 60 if device == "cpu" else 600
    half = 12 if quick else 30 if device == "cpu" else 600
    some = 11 if quick else 15 if device == "cpu" else 120  # the embeddings alone of a whole minute take too long
    meeting = 40 if quick else 600
    found, each = [], "windows of 10 s, one a second"
    for name, title, seconds, mine, theirs, agree in (
        ("segmentation", f"PyanNet on {each}", minute, segmentation_ours, segmentation_pyannote, agree_segmentation),
        ("embedding", f"ResNet34 on {each}, 3 voices each", some, embedding_ours, embedding_pyannote, agree_vectors),
        ("clustering", f"VBx, {each}, on the CPU", meeting, clustering_ours, clustering_pyannote, agree_parts),
        ("whole", f"diarization, {SPEAKERS} speakers", half, whole_ours, whole_pyannote, agree_turns),
    ):  # fmt: skip
        given = {"device": device, "quick": quick, "seconds": seconds}
        how: dict[str, Any] = {"seconds": seconds}
        if name == "whole":
            how["targets"] = {PYANNOTE: 1.0 if device == "cpu" else 3.0}
        if device == "cpu":
            how["most"] = 3 if name in ("embedding", "whole") else 5
        if name != "clustering" and not quick:
            how["work"] = work_of(name, len(starts(seconds)))
        contenders = {OURS: mine, PYANNOTE: theirs}
        found.append(Row(f"diarization/{name}", f"{title}: {seconds} s of audio", contenders, given, agree, **how))
    return found


def starts(seconds: float) -> list[int]:
    """The first samples of the windows, as both lay them: what is left at the end has one of its own."""
    return [k * STEP * RATE for k in range(max(1, int(seconds) - WINDOW + 1))]


def work_of(name: str, windows: int) -> Work:
    """Of one PyanNet and one ResNet34 a window, however many voices it has."""
    sinc = 16_000 * 80 * 251 + 5_333 * 60 * 80 * 5 + 1_777 * 60 * 60 * 5
    lstm = 8 * 128 * (60 + 128) + 3 * 8 * 128 * (256 + 128)  # both directions of four layers
    pyannet = Work(2.0 * windows * (sinc + FRAMES * lstm), 4.0 * (lstm + windows * WINDOW * RATE))
    operations, weights, width, cells = 9.0 * 32 * 80 * 998, 9 * 32, 32, 80.0 * 998
    for layer, (blocks, wide) in enumerate(zip((3, 4, 6, 3), (32, 64, 128, 256), strict=True)):
        cells /= 4 if layer else 1
        own = 9 * width * wide + (2 * blocks - 1) * 9 * wide**2 + (width * wide if layer else 0)
        operations, weights, width = operations + own * cells, weights + own, wide
    resnet = Work(2.0 * windows * operations, 4.0 * (weights + 256 * 5120 + windows * WINDOW * RATE))
    if name == "whole":
        return Work(pyannet.operations + resnet.operations, pyannet.bytes + resnet.bytes)
    return pyannet if name == "segmentation" else resnet


# --- what each gets ready --------------------------------------------------------------------------------------------


def _ours(device: str, quick: bool) -> Any:
    models.use_mlx(device)
    import mlx_speech

    return mlx_speech.load(models.diarization(quick).ours, dtype="float32")


def pyannote(device: str, quick: bool) -> Any:
    """The pipeline as a user gets it, from a folder instead of the hub."""
    os.environ["PYANNOTE_METRICS_ENABLED"] = "0"
    import warnings

    warnings.filterwarnings("ignore")  # of codecs that are not needed: it gets samples
    import torch
    from pyannote.audio import Pipeline

    pipeline = Pipeline.from_pretrained(models.diarization(quick).original)
    assert pipeline is not None
    return pipeline.to(torch.device(TORCH[device]))


def file_of(audio: np.ndarray) -> dict[str, Any]:
    """Samples as pyannote.audio takes them."""
    import torch

    return {"waveform": torch.from_numpy(audio)[None], "sample_rate": RATE, "uri": "recording"}


# --- segmentation ----------------------------------------------------------------------------------------------------


def segmentation_ours(device: str, quick: bool, seconds: float) -> Call:
    model, audio = _ours(device, quick), models.meeting(seconds)
    from mlx_speech.stages.diarize import segment

    first = starts(seconds)
    return lambda: np.concatenate(list(segment(audio, model.segmentation, first, WINDOW * RATE, BATCH)))


def segmentation_pyannote(device: str, quick: bool, seconds: float) -> Call:
    pipeline, file = pyannote(device, quick), file_of(models.meeting(seconds))
    return lambda: pipeline.get_segmentations(file).data.astype(np.int8)


def agree_segmentation(outputs: Mapping[str, np.ndarray]) -> str:
    ours = outputs[OURS]
    shares = [float((other == ours).mean()) for other in outputs.values() if other.shape == ours.shape]
    assert len(shares) == len(outputs) and min(shares) > 0.999, (shares, [one.shape for one in outputs.values()])
    return f"{100 * min(shares):.2f} % of the frames equal"


# --- embedding -------------------------------------------------------------------------------------------------------


def voices(seconds: float) -> np.ndarray:
    """Who of three voices speaks in each frame of each window, (windows, frames, 3) of 0 and 1."""
    rng, windows = np.random.default_rng(6), len(starts(seconds))
    size = 0.017 * np.arange(FRAMES)
    found = np.zeros((windows, FRAMES, 3), np.int8)
    for k in range(windows):
        edges = np.sort(rng.uniform(0, WINDOW, 5))
        for voice in range(3):
            found[k, (size >= edges[voice]) & (size < edges[voice + 2]), voice] = 1
    return found


def embedding_ours(device: str, quick: bool, seconds: float) -> Call:
    model, audio = _ours(device, quick), models.speech(seconds)
    from mlx_speech.stages.diarize import embed, voice_masks

    segmentations, first, size = voices(seconds), starts(seconds), WINDOW * RATE
    together = 1 if device == "cpu" else BATCH  # as `diarize` chooses

    def call() -> np.ndarray:
        masks = voice_masks(segmentations, size, exclude_overlap=True)
        return np.concatenate(list(embed(audio, model.embedding, first, size, masks, together)))

    return call


def embedding_pyannote(device: str, quick: bool, seconds: float) -> Call:
    pipeline, file = pyannote(device, quick), file_of(models.speech(seconds))
    segmentations = _sliding(voices(seconds))
    return lambda: pipeline.get_embeddings(file, segmentations, exclude_overlap=True)


def _sliding(segmentations: np.ndarray) -> Any:
    from pyannote.core import SlidingWindow, SlidingWindowFeature

    return SlidingWindowFeature(segmentations.astype(np.float32), SlidingWindow(start=0, duration=WINDOW, step=STEP))


def agree_vectors(outputs: Mapping[str, np.ndarray]) -> str:
    ours = outputs[OURS]
    worst = max(float(np.abs(other - ours).max() / np.abs(ours).max()) for other in outputs.values())
    assert worst < 1e-3, worst
    return f"vectors within {worst:.0e} of the largest number"


# --- clustering ------------------------------------------------------------------------------------------------------


def _meeting(seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Segmentations, and embeddings (windows, voices, 256) around those of four speakers."""
    rng, segmentations = np.random.default_rng(8), voices(seconds)
    speakers = 3 * rng.normal(size=(4, 256))
    who = np.argsort(rng.random((len(segmentations), 4)), axis=1)[:, :3]
    return segmentations, (speakers[who] + 0.9 * rng.normal(size=(*who.shape, 256))).astype(np.float32)


def clustering_ours(device: str, quick: bool, seconds: float) -> Call:
    model = _ours(device, quick)
    from mlx_speech.stages.cluster import SpeakerBounds, cluster

    segmentations, embeddings = _meeting(seconds)
    return lambda: cluster(embeddings, segmentations, SpeakerBounds(), plda=model.plda)[0]


def clustering_pyannote(device: str, quick: bool, seconds: float) -> Call:
    pipeline = pyannote(device, quick)
    segmentations, embeddings = _meeting(seconds)
    given = {"embeddings": embeddings, "segmentations": _sliding(segmentations)}
    return lambda: pipeline.clustering(**given, min_clusters=1, max_clusters=np.inf)[0]


def agree_parts(outputs: Mapping[str, np.ndarray]) -> str:
    ours = outputs[OURS]
    spoken = ours >= 0
    for other in outputs.values():
        pairs = {tuple(pair) for pair in zip(ours[spoken].tolist(), other[spoken].tolist(), strict=True)}
        assert len(pairs) == len(set(ours[spoken].tolist())) == len(set(other[spoken].tolist())), pairs
    return f"the same {len(set(ours[spoken].tolist()))} speakers for all of {spoken.sum()} voices"


# --- whole -----------------------------------------------------------------------------------------------------------

Turns = list[tuple[float, float, str]]


def whole_ours(device: str, quick: bool, seconds: float) -> Call:
    model, audio = _ours(device, quick), models.meeting(seconds)
    from mlx_speech.stages.diarize import diarize

    def call() -> Turns:
        found = diarize(audio, model, num_speakers=SPEAKERS, batch_size=BATCH)
        return [(turn.start, turn.end, turn.speaker) for turn in found.turns]

    return call


def whole_pyannote(device: str, quick: bool, seconds: float) -> Call:
    pipeline, file = pyannote(device, quick), file_of(models.meeting(seconds))
    return lambda: turns_of(pipeline(file, num_speakers=SPEAKERS))


def turns_of(output: Any) -> Turns:
    tracks = output.speaker_diarization.itertracks(yield_label=True)
    return sorted((segment.start, segment.end, speaker) for segment, _, speaker in tracks)


def agree_turns(outputs: Mapping[str, Turns]) -> str:
    share = min(same_time(outputs[OURS], other) for other in outputs.values())
    assert share >= 0.98, share
    return f"{100 * share:.2f} % of the time the same speakers, {len(outputs[OURS])} turns"


def same_time(ours: Turns, theirs: Turns) -> float:
    """The share of the time in which the same speakers speak, by the best of all ways to call theirs by our names."""
    from itertools import permutations

    names = [sorted({speaker for _, _, speaker in turns}) for turns in (ours, theirs)]
    last = max((end for _, end, _ in [*ours, *theirs]), default=0.0)
    grids = []
    for turns, own in zip((ours, theirs), names, strict=True):
        grid = np.zeros((max(map(len, names)), int(last / GRID) + 1), bool)
        for start, end, speaker in turns:
            grid[own.index(speaker), round(start / GRID) : round(end / GRID)] = True
        grids.append(grid)
    orders = permutations(range(len(grids[0])))
    return max(float((grids[0] == grids[1][list(order)]).all(axis=0).mean()) for order in orders)
