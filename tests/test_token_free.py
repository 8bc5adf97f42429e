"""The models of the package's diarization in pyannote.audio's own pipeline: segmentation-3.0, and the original CAM++
behind its embedding interface. With the same clustering, the turns are the same on every recording."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DATA, real, real_weights
from test_diarize import same_turns
from threadpoolctl import threadpool_limits

import mlx_speech
from mlx_speech import load_audio
from mlx_speech.models.campplus import LEAST_FRAMES, at_resolution
from mlx_speech.models.diarization_pipeline import Model
from mlx_speech.package_data import BUNDLED, SPEAKERS
from mlx_speech.stages.diarize import diarize

AHC = "AgglomerativeClustering"
PARAMS = {
    "clustering": {"method": "centroid", "threshold": 0.85, "min_cluster_size": 4},
    "segmentation": {"min_duration_off": 0.0},
}
LONGEST = 13 * 16_000  # samples of a recording that are compared, for the time


class OriginalVoices:
    """The original CAM++ as pyannote.audio's pipeline calls an embedding: one voice of one window after the other."""

    sample_rate = 16_000
    dimension = 192
    metric = "cosine"
    min_num_samples = 400

    def __init__(self, weights: Path) -> None:
        from speakerlab.models.campplus.DTDNN import CAMPPlus

        self.model = CAMPPlus(feat_dim=80, embedding_size=192)
        self.model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.model.eval()

    def to(self, device: object) -> OriginalVoices:
        return self

    def __call__(self, waveforms: torch.Tensor, masks: torch.Tensor) -> np.ndarray:
        """waveforms (batch, 1, samples), masks (batch, frames) → (batch, 192); NaN for who is hardly heard"""
        import torchaudio.compliance.kaldi as kaldi

        vectors = np.full((len(waveforms), self.dimension), np.nan)
        for row, (waveform, mask) in enumerate(zip(waveforms, masks, strict=True)):
            fbank = kaldi.fbank(waveform, num_mel_bins=80, dither=0.0)
            features = self.model.head((fbank - fbank.mean(dim=0)).T[None])
            places = np.flatnonzero(at_resolution(mask.numpy(), features.shape[2]))
            if len(places) >= LEAST_FRAMES:
                vectors[row] = self.model.xvector(features[:, :, torch.from_numpy(places)])[0].numpy()
        return vectors


@dataclass(frozen=True)
class Pair:
    theirs: Any
    ours: Model


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    from pyannote.audio import Model as Original
    from pyannote.audio.core.plda import PLDA
    from pyannote.audio.pipelines import SpeakerDiarization

    torch.set_grad_enabled(False)
    checkpoint = real_weights("segmentation-3.0") / "pytorch_model.bin"
    weights = real_weights("campplus") / "campplus_cn_en_common.pt"
    segmentation = Original.from_pretrained(checkpoint)
    assert segmentation is not None
    unused = real("weights/plda-community-1")  # without a PLDA, the pipeline fetches one
    theirs = SpeakerDiarization(
        segmentation=segmentation,
        embedding=segmentation,  # anything that loads; its place is taken below
        embedding_exclude_overlap=True,
        clustering=AHC,
        plda=PLDA(unused / "xvec_transform.npz", unused / "plda.npz"),
        embedding_batch_size=8,
        segmentation_batch_size=8,
    )
    theirs._embedding = OriginalVoices(weights)
    theirs.instantiate(PARAMS)
    parts = mlx_speech.load(BUNDLED[SPEAKERS])
    embedding = mlx_speech.load(weights)  # in float32, as the original is
    config = {"clustering": AHC, "embedding_exclude_overlap": True, "params": PARAMS}
    ours = Model(config, parts.segmentation, embedding)  # type: ignore[arg-type]
    with threadpool_limits(limits=2):
        yield Pair(theirs, ours)


def recordings() -> list[str]:
    """All of the test data, by name."""
    manifest = DATA / "data" / "manifest.json"
    if not manifest.is_file():
        return ["data/audio/en/jfk.flac"]
    files = [entry["file"] for entry in json.loads(manifest.read_text())]
    return [file for file in files if file.endswith((".wav", ".flac", ".mp3"))]


@pytest.mark.parametrize("name", recordings())
def test_the_turns_are_those_of_pyannote(name: str, pair: Pair) -> None:
    samples = load_audio(real(name))[:LONGEST]
    file = {"uri": "recording", "waveform": torch.from_numpy(samples)[None], "sample_rate": 16_000}
    theirs = pair.theirs(file)
    ours = diarize(samples, pair.ours)
    count = same_turns(ours.turns, theirs.speaker_diarization)
    same_turns(ours.exclusive, theirs.exclusive_speaker_diarization)
    assert count > 0 or name.endswith("cards_001.wav"), "nobody speaks in it: it proves nothing"
