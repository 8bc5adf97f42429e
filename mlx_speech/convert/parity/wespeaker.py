"""WeSpeaker's ResNets beside pyannote.audio's, filterbank included."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech import features
from mlx_speech.convert.parity.measures import Inputs, Row, as_numpy, embedding_rows
from mlx_speech.convert.parity.torch_weights import torch_state
from mlx_speech.convert.port import Plan

ORIGINALS = {"pyannote.audio": ("torch", "pyannote.audio", "torchaudio")}

PIECES = 3  # of the recording
PIECE_SECONDS = 3
MASK_FRAMES = 177  # no divisor of the frames, so that masks have to be resampled


def build(plan: Plan) -> Any:
    """pyannote.audio's WeSpeaker model, whose `resnet` is of the source's size."""
    from pyannote.audio.models.embedding import WeSpeakerResNet34
    from pyannote.audio.models.embedding.wespeaker.resnet import BasicBlock, Bottleneck, ResNet

    args = plan.config
    model = WeSpeakerResNet34(
        sample_rate=args["sample_rate"],
        num_mel_bins=args["num_mel_bins"],
        frame_length=args["frame_length"],
        frame_shift=args["frame_shift"],
    )
    model.hparams["fbank_centering_span"] = args["fbank_centering_span"]  # its constructor does not take it
    model.resnet = ResNet(
        Bottleneck if args["bottleneck"] else BasicBlock,
        args["num_blocks"],
        m_channels=args["base_channels"],
        feat_dim=args["num_mel_bins"],
        embed_dim=args["embedding_size"],
        two_emb_layer=False,
    )
    state = {}
    for name, value in torch_state(plan.source.tensors).items():
        bare = name.removeprefix("resnet.")
        if not bare.startswith("projection"):
            state[bare] = value
    model.resnet.load_state_dict(state)
    return model.eval()


def measure(original: Any, model: Any, inputs: Inputs) -> list[Row]:
    """The filterbank, and embeddings of the original's filterbank through either side, without and with masks."""
    import torch

    samples = PIECE_SECONDS * 16000
    starts = np.linspace(0, len(inputs.audio) - samples, PIECES).astype(int)
    audio = np.stack([inputs.audio[start : start + samples] for start in starts]).astype(np.float32)
    expected_fbank = original.compute_fbank(torch.from_numpy(audio)[:, None])
    args = model.args
    fbank = features.speaker_fbank(
        mx.array(audio),
        args.fbank_centering_span,
        args.sample_rate,
        num_mel_bins=args.num_mel_bins,
        frame_length=args.frame_length,
        frame_shift=args.frame_shift,
    )
    apart = np.abs(expected_fbank.numpy() - np.array(fbank))
    rows = [
        Row("filterbank, max difference", float(apart.max()), 2e-3),
        Row("filterbank, share within 1e-3", float((apart <= 1e-3).mean()), 0.9999, at_least=True),
    ]
    masks = (np.random.default_rng(inputs.seed).random((PIECES, 3, MASK_FRAMES)) > 0.5).astype(np.float32)
    masks[0, 2] = 0  # nobody: the bias alone
    frames = original.resnet.forward_frames(expected_fbank.clone())
    expected = original.resnet.forward_embedding(frames, weights=None)[1].numpy()
    rows += embedding_rows("embedding", expected, as_numpy(model(fbank, None)), bar=1e-3)
    expected = original.resnet.forward_embedding(frames, weights=torch.from_numpy(masks))[1].numpy()
    found = as_numpy(model(fbank, mx.array(masks)))
    rows += embedding_rows("embedding with masks", expected, found, bar=1e-3)
    return rows
