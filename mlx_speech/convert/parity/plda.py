"""The PLDA beside pyannote.audio's."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech.convert.parity.measures import Inputs, Row, largest_difference
from mlx_speech.convert.port import Plan

ORIGINALS = {"pyannote.audio": ("torch", "pyannote.audio", "torchaudio")}

EMBEDDINGS = 64  # random ones that both sides transform


def build(plan: Plan) -> Any:
    """pyannote.audio's PLDA."""
    from pyannote.audio.core.plda import PLDA

    plda, transform = plan.source.files
    return PLDA(transform, plda, lda_dimension=plan.config["lda_size"])


def measure(original: Any, model: Any, inputs: Inputs) -> list[Row]:
    """Transformed embeddings, and the between-speaker variances."""
    embeddings = np.random.default_rng(inputs.seed).normal(size=(EMBEDDINGS, model.args.embedding_size))
    expected = original(embeddings)
    with mx.stream(mx.cpu):  # other devices lack float64
        transformed = np.array(model(mx.array(embeddings, dtype=mx.float64)))
        psi = np.array(model.psi)
    signs = np.sign((expected * transformed).sum(axis=0))  # a row of the transform may come with either sign
    apart = largest_difference(expected, transformed * signs) / np.abs(expected).max()
    return [
        Row("transform, max difference / largest", float(apart), 1e-9),
        Row(
            "psi, max difference / largest",
            float(largest_difference(original.phi, psi) / psi.max()),
            1e-9,
        ),
    ]
