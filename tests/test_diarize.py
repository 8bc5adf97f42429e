"""Diarization against pyannote.audio: its clustering and reconstruction on synthetic voices, its pipeline on meetings."""

from __future__ import annotations

import itertools
import logging
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import originals as make
import pytest
import torch
from conftest import real
from pyannote.audio.core.pipeline import Pipeline
from pyannote.audio.core.plda import PLDA
from pyannote.audio.pipelines.clustering import Clustering
from pyannote.audio.pipelines.speaker_diarization import SpeakerDiarization
from pyannote.core import Annotation, SlidingWindow, SlidingWindowFeature
from pyannote.pipeline.parameter import ParamDict, Uniform

import mlx_speech
import mlx_speech.convert
from mlx_speech.audio import load_audio
from mlx_speech.errors import AudioError, ConfigError, OptionError
from mlx_speech.models.diarization_pipeline import Model
from mlx_speech.stages import diarize as stage
from mlx_speech.stages.diarize import diarize, from_stages
from mlx_speech.transcript import Diarization, Turn

torch.set_num_threads(1)

FRAMES = SlidingWindow(start=0.0, duration=0.0619375, step=0.016875)
VBX, AHC = "VBxClustering", "AgglomerativeClustering"
PARAMS = {VBX: {"threshold": 0.6, "Fa": 0.07, "Fb": 0.8}}
PARAMS[AHC] = {"method": "centroid", "min_cluster_size": 12, "threshold": 0.7045654963945799}


@pytest.fixture(scope="module")
def pldas(tmp_path_factory: pytest.TempPathFactory) -> tuple[PLDA, Any]:
    """The PLDA of community-1: pyannote.audio's and ours."""
    path = real("weights/plda-community-1")
    target = tmp_path_factory.mktemp("plda") / "mlx"
    mlx_speech.convert.convert(str(path), target)
    return PLDA(path / "xvec_transform.npz", path / "plda.npz"), mlx_speech.load(target)


# --- the original ----------------------------------------------------------------------------------------------------


class Given(SpeakerDiarization):
    """pyannote.audio's pipeline, from the segmentations and embeddings on, which it is given."""

    def __init__(self, clustering: str, plda: PLDA, params: dict, *, powerset: bool = True, min_off: float = 0.0):
        Pipeline.__init__(self)
        self.legacy, self.klustering, self.embedding_exclude_overlap = False, clustering, True
        specifications = SimpleNamespace(powerset=powerset)
        self._segmentation = SimpleNamespace(model=SimpleNamespace(specifications=specifications, receptive_field=FRAMES))
        self._embedding = SimpleNamespace(dimension=256)
        self._expects_num_speakers = False
        kind = Clustering[clustering].value
        self.clustering = kind(plda) if clustering == VBX else kind()
        self.segmentation = ParamDict(min_duration_off=Uniform(0.0, 1.0), threshold=Uniform(0.1, 0.9))
        self.instantiate({"clustering": params, "segmentation": {"min_duration_off": min_off, "threshold": 0.5}})

    def get_segmentations(self, file: Any, hook: Any = None) -> SlidingWindowFeature:
        data, window = file["segmentations"]
        return SlidingWindowFeature(data.copy(), window)

    def get_embeddings(self, file: Any, *_: Any, **__: Any) -> np.ndarray:
        return file["embeddings"].copy()


def original(pipeline: Given, scores: np.ndarray, embeddings: np.ndarray, duration: float, **numbers: Any) -> Any:
    window = SlidingWindow(start=0.0, duration=duration, step=0.1 * duration)
    file = {"uri": "x", "segmentations": (scores.astype(np.float32), window), "embeddings": embeddings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pipeline.apply(file, **numbers)


def turns_of(annotation: Annotation) -> list[tuple[float, float, str]]:
    return sorted((segment.start, segment.end, label) for segment, _, label in annotation.itertracks(yield_label=True))


def same_turns(ours: tuple[Turn, ...], theirs: Annotation) -> int:
    """Asserts that they are the same; how many there are."""
    expected = turns_of(theirs)
    found = [(turn.start, turn.end, turn.speaker) for turn in ours]
    assert [turn[2] for turn in found] == [turn[2] for turn in expected]
    assert np.allclose([turn[:2] for turn in found], [turn[:2] for turn in expected], rtol=0, atol=1e-6)
    return len(found)


def same(ours: Diarization, theirs: Any, tolerance: float = 1e-6) -> None:
    same_turns(ours.turns, theirs.speaker_diarization)
    same_turns(ours.exclusive, theirs.exclusive_speaker_diarization)
    assert list(ours.embeddings) == theirs.speaker_diarization.labels()
    if ours.embeddings:
        found = np.array(list(ours.embeddings.values()))
        assert np.abs(found - theirs.speaker_embeddings).max() <= tolerance * np.abs(found).max()


# --- synthetic meetings ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Meeting:
    """Speakers who take turns, heard through windows: what the models would say of each."""

    segmentations: np.ndarray  # (chunks, frames, 3)
    embeddings: np.ndarray  # (chunks, 3, 256)
    scores: np.ndarray  # (chunks, frames, 3), of a multilabel model


def meeting(
    speakers: int,
    chunks: int,
    seed: int,
    *,
    frames: int = 589,
    duration: float = 10.0,
    overlap: float = 0.3,
    pause: float = 0.3,
    noise: float = 0.5,
) -> Meeting:
    """`overlap`, `pause` : how often a turn overlaps the next, or is followed by silence; `noise` : of embeddings"""
    rng = np.random.default_rng(seed)
    grid = FRAMES.step
    total = round((duration + (chunks - 1) * 0.1 * duration) / grid) + frames
    truth = np.zeros((total, speakers), dtype=bool)
    position, previous = 0, -1
    while position < total:
        speaker = rng.choice([s for s in range(speakers) if s != previous or speakers == 1])
        length = int(rng.uniform(0.3, 4.0) / grid)
        truth[position : position + length, speaker] = True
        gap = rng.uniform(-1.5, 0) if rng.random() < overlap else rng.uniform(0, 2.0) if rng.random() < pause else 0.0
        position, previous = max(position + 1, position + length + int(gap / grid)), speaker
    voices = rng.normal(size=(speakers, 256))
    segmentations = np.zeros((chunks, frames, 3), dtype=np.float32)
    embeddings = rng.normal(size=(1, 1, 256)).repeat(chunks, 0).repeat(3, 1).astype(np.float32)
    for c in range(chunks):
        start = round(c * 0.1 * duration / grid)
        heard = truth[start : start + frames].copy()
        flips = rng.random(heard.shape) < 0.002
        heard ^= flips & heard.any(axis=1, keepdims=True)
        local = np.flatnonzero(heard.any(axis=0))
        local = rng.permutation(local[np.argsort(-heard[:, local].sum(axis=0))][:3])
        for place, speaker in enumerate(local):
            segmentations[c, :, place] = heard[:, speaker]
            embeddings[c, place] = voices[speaker] + noise * rng.normal(size=256)
    both = segmentations.sum(axis=2) > 2  # a powerset model never says three
    segmentations[both, 2] = 0
    scores = np.clip(segmentations * 0.6 + 0.2 + 0.3 * rng.normal(size=segmentations.shape), 0, 1).astype(np.float32)
    return Meeting(segmentations, embeddings, scores)


NUMBERS: dict[str, dict[str, int]] = {
    "free": {},
    "1": {"num_speakers": 1},
    "2": {"num_speakers": 2},
    "5": {"num_speakers": 5},
    "3 to 4": {"min_speakers": 3, "max_speakers": 4},
    "at most 2": {"max_speakers": 2},
    "at least 6": {"min_speakers": 6},
}
MEETINGS: dict[str, Any] = {
    f"{speakers} speakers": partial(meeting, speakers, chunks=30 + 5 * speakers, seed=speakers)
    for speakers in (1, 2, 3, 4, 5, 6, 8, 10, 12)
}
MEETINGS |= {
    "much overlap": partial(meeting, 4, 60, 20, overlap=0.9),
    "much silence": partial(meeting, 3, 60, 21, overlap=0.0, pause=1.0),
    "ambiguous": partial(meeting, 5, 60, 22, noise=1.5),
    "hopeless": partial(meeting, 5, 40, 23, noise=6.0),
    "one window": partial(meeting, 2, 1, 24),
    "two windows": partial(meeting, 3, 2, 25),
    "three windows": partial(meeting, 2, 3, 26),
    "windows of 5 s": partial(meeting, 4, 90, 27, frames=293, duration=5.0),
}
CASES = list(itertools.product(MEETINGS, (VBX, AHC), NUMBERS))


@pytest.mark.filterwarnings("ignore:.*speakers are found")
@pytest.mark.parametrize(("name", "clustering", "numbers"), CASES, ids=["-".join(case) for case in CASES])
def test_the_turns_are_the_originals(name: str, clustering: str, numbers: str, pldas: Any) -> None:
    heard = MEETINGS[name]()
    duration = 5.0 if heard.segmentations.shape[1] == 293 else 10.0
    voices = int((heard.segmentations.sum(axis=1) >= 0.2 * heard.segmentations.shape[1]).sum())
    asked = max(NUMBERS[numbers].get("num_speakers", 0), NUMBERS[numbers].get("min_speakers", 0))
    pipeline = Given(clustering, pldas[0], PARAMS[clustering])
    given = {"plda": pldas[1], "clustering": clustering, "params": {"clustering": PARAMS[clustering]}}
    run = partial(from_stages, heard.segmentations.astype(np.int8), heard.embeddings, duration=duration, **given)
    try:
        theirs = original(pipeline, heard.segmentations, heard.embeddings, duration, **NUMBERS[numbers])
    except ValueError as error:  # scikit-learn's: more clusters than vectors
        assert clustering == VBX and asked > 0 and "n_samples" in str(error) and voices < 10
        assert 1 <= len(run(**NUMBERS[numbers]).embeddings) < asked
        return
    same(run(**NUMBERS[numbers]), theirs)
