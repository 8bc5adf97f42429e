"""The PLDA of pyannote's community-1 pipeline: the pair plda.npz and xvec_transform.npz. Kept in float64.

Upstream (`pyannote.audio.utils.vbx.vbx_setup`) solves an eigenproblem whose answer is the rows of `tr` sorted by
falling `psi`, up to their signs; sorting is all that is left to do.
"""

from __future__ import annotations

import numpy as np

from mlx_speech.convert.read import Source
from mlx_speech.convert.recipe import Recipe, same
from mlx_speech.errors import WeightsMismatch
from mlx_speech.tensors import Tensor, combine

PIPELINE_TAG = None
TAGS = ("speaker-diarization", "plda", "pyannote")
COMPANIONS = ()
TAKES_LANGUAGE = False

NAMES = ("mean1", "mean2", "lda", "mu", "tr", "psi")
SORTED_BY_PSI = ("tr", "psi")
TABLE = same(*NAMES)


def recognise(source: Source) -> bool:
    """A transform, and variances between speakers."""
    return {"lda", "tr", "psi"} <= set(source.tensors)


def recipe(source: Source, language: str | None = None) -> Recipe:
    """Everything in float64, the largest variance leading. Raises `WeightsMismatch` for sizes that do not fit."""
    lda = source.tensors["lda"]
    tr = source.tensors["tr"]
    psi = source.tensors["psi"]
    if len(lda.shape) != 2 or len(psi.shape) != 1 or tr.shape[:1] != psi.shape:
        raise WeightsMismatch(f"lda {lda.shape}, tr {tr.shape}, psi {psi.shape} do not fit")
    tensors = dict(source.tensors)
    for name in NAMES:
        if name not in tensors:  # it is missed when all are checked
            continue
        tensor = tensors[name]
        if name in SORTED_BY_PSI:
            tensors[name] = combine([tensor, psi], _by_falling_psi, tensor.shape, "float64")
        else:
            tensors[name] = _in_float64(tensor)
    embedding_size, lda_size = lda.shape
    return Recipe({"embedding_size": embedding_size, "lda_size": lda_size}, tensors, TABLE, "pyannote.audio")


def _in_float64(tensor: Tensor) -> Tensor:
    return combine([tensor], np.asarray, tensor.shape, "float64")


def _by_falling_psi(rows: np.ndarray, psi: np.ndarray) -> np.ndarray:
    return rows[np.argsort(-psi, kind="stable")]
