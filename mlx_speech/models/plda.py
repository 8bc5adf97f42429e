"""The PLDA of pyannote's VBx clustering: speaker embeddings → a space whose between-speaker variance is `psi`.

Source: pyannote.audio `core.plda` and `utils.vbx.vbx_setup` (BUT Speech@FIT). In float64, which MLX has on the CPU
alone: some thousand vectors of 256 numbers, computed once per recording.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from mlx_speech.models.base import BaseModel, BaseModelArgs, positive


@dataclass
class ModelArgs(BaseModelArgs):
    embedding_size: int = positive(256)
    lda_size: int = positive(128)


class Model(BaseModel):
    """Rows of `tr` and `psi` are sorted by falling `psi`; the rows' signs are free, nothing downstream sees them."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.args = args
        size = args.embedding_size
        lda_size = args.lda_size
        with mx.stream(mx.cpu):
            self.mean1 = mx.zeros((size,), dtype=mx.float64)
            self.lda = mx.zeros((size, lda_size), dtype=mx.float64)
            self.mean2 = mx.zeros((lda_size,), dtype=mx.float64)
            self.mu = mx.zeros((lda_size,), dtype=mx.float64)
            self.psi = mx.zeros((lda_size,), dtype=mx.float64)
            self.tr = mx.zeros((lda_size, lda_size), dtype=mx.float64)

    def cast_predicate(self, path: str) -> bool:
        """Nothing leaves float64."""
        return False

    def __call__(self, embeddings: mx.array) -> mx.array:
        """embeddings (n, 256), as the speaker model gives them → (n, 128) in float64"""
        size, lda_size = self.lda.shape
        with mx.stream(mx.cpu):
            x = _unit(embeddings.astype(mx.float64) - self.mean1) * size**0.5
            x = _unit(x @ self.lda - self.mean2) * lda_size**0.5
            return (x - self.mu) @ self.tr.T


def _unit(x: mx.array) -> mx.array:
    """Rows of length 1: (n, size) → (n, size)"""
    return x / mx.sqrt(mx.square(x).sum(axis=-1, keepdims=True))
