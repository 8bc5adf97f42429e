"""CAM++ beside 3D-Speaker's (`CAMPPlus` of the package speakerlab), filterbank included."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech.convert.parity.measures import Inputs, Row, as_numpy, embedding_rows, largest_difference
from mlx_speech.convert.parity.torch_weights import torch_state
from mlx_speech.convert.port import Plan
from mlx_speech.models.campplus import at_resolution

ORIGINALS = {"speakerlab": ("torch", "torchaudio", "speakerlab")}

SECONDS = (10.0, 3.0, 1.3, 0.2)  # of pieces of the recording: several segments of frames, and a part of one
MASK_FRAMES = 589  # of pyannote's segmentation in 10 s: masks have to be resampled
SPEAKERS = 3
FBANK_BAR = 2e-3


def build(plan: Plan) -> Any:
    """3D-Speaker's model, of the source's sizes."""
    from speakerlab.models.campplus.DTDNN import CAMPPlus  # type: ignore[import-not-found]

    args = plan.config
    model = CAMPPlus(
        feat_dim=args["num_mel_bins"],
        embedding_size=args["embedding_size"],
        growth_rate=args["growth_rate"],
        bn_size=args["bottleneck_channels"] // args["growth_rate"],
        init_channels=args["init_channels"],
    )
    model.load_state_dict(torch_state(plan.source.tensors))
    return model.eval()


def measure(original: Any, model: Any, inputs: Inputs) -> list[Row]:
    """The filterbank; embeddings of pieces of several lengths; and those of speakers by their masks, several windows at
    once beside one speaker after the other."""
    import torch

    rate = model.args.sample_rate
    apart = 0.0
    own_rounding = 0.0
    expected: list[np.ndarray] = []
    embeddings: list[np.ndarray] = []
    for seconds in SECONDS:
        samples = int(seconds * rate)
        start = (len(inputs.audio) - samples) // 2
        audio = inputs.audio[start : start + samples].astype(np.float32)
        theirs = _fbank(audio, model.args.num_mel_bins)
        exact = _fbank(audio.astype(np.float64), model.args.num_mel_bins).numpy()
        fbank = model.fbank(mx.array(audio)[None])
        own_rounding = max(own_rounding, largest_difference(theirs.numpy(), exact))
        apart = max(apart, largest_difference(theirs.numpy(), as_numpy(fbank)))
        expected.append(original(theirs)[0].numpy())
        embeddings.append(as_numpy(model(fbank))[0])
    name = "filterbank, max difference"
    bar = FBANK_BAR
    if 3 * own_rounding > bar:
        # of a band in which next to nothing is heard, the logarithm is off by as much in the original, too
        name = f"{name} (the original's own rounding: {own_rounding:.1e})"
        bar = 3 * own_rounding
    rows = [Row(name, apart, bar)]
    rows += embedding_rows("embedding", np.stack(expected), np.stack(embeddings), bar=1e-4)

    samples = int(SECONDS[0] * rate)
    starts = (0, (len(inputs.audio) - samples) // 2, len(inputs.audio) - samples)
    windows = np.stack([inputs.audio[start : start + samples] for start in starts]).astype(np.float32)
    masks = _masks(inputs.seed, len(windows))
    by_mask: list[np.ndarray] = []
    for window, voices in zip(windows, masks, strict=True):
        features = original.head(_fbank(window, model.args.num_mel_bins).permute(0, 2, 1))
        for chosen in at_resolution(voices, features.shape[2]):
            places = torch.from_numpy(np.flatnonzero(chosen))
            by_mask.append(original.xvector(features[:, :, places])[0].numpy())
    found = as_numpy(model.embed(mx.array(windows), masks))
    rows += embedding_rows("embedding of masks", np.stack(by_mask), found.reshape(len(by_mask), -1), bar=1e-4)
    return rows


def _fbank(audio: np.ndarray, num_mel_bins: int) -> Any:
    """audio (samples,) → (1, frames, mel bins), as 3D-Speaker's `FBank` makes it, in torch and in the dtype given"""
    import torch
    import torchaudio.compliance.kaldi as kaldi

    fbank = kaldi.fbank(torch.from_numpy(audio)[None], num_mel_bins=num_mel_bins, dither=0.0)
    return (fbank - fbank.mean(dim=0, keepdim=True))[None]


def _masks(seed: int, windows: int) -> np.ndarray:
    """Speakers who take turns of random lengths, (windows, SPEAKERS, MASK_FRAMES) of 0 and 1; none is left out."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((windows, SPEAKERS, MASK_FRAMES), np.int8)
    for voices in masks:
        edges = np.sort(rng.choice(np.arange(10, MASK_FRAMES, 10), 2 * SPEAKERS, replace=False))
        for turn, (start, end) in enumerate(pairwise(edges)):
            voices[turn % SPEAKERS, start:end] = 1
    return masks
