"""The PLDA of pyannote's community-1 pipeline: the pair plda.npz and xvec_transform.npz. Kept in float64.

Upstream (`pyannote.audio.utils.vbx.vbx_setup`) solves an eigenproblem whose answer is the rows of `tr` sorted by
falling `psi`, up to their signs; sorting is all that is left to do.
"""

from __future__ import annotations

import numpy as np

from mlx_speech.convert.port import Recipe, same
from mlx_speech.convert.read import Source
from mlx_speech.errors import WeightsMismatch
from mlx_speech.tensors import Tensor, combine

PIPELINE_TAG = None
TAGS = ["speaker-diarization", "plda", "pyannote"]

NAMES = ("mean1", "mean2", "lda", "mu", "tr", "psi")
TABLE = same(*NAMES)


def recognise(source: Source) -> bool:
    return {"lda", "tr", "psi"} <= set(source.tensors)


def recipe(source: Source, language: str | None = None) -> Recipe:
    # one that is not there is missed when all are checked
    parts = {name: source.tensors[name] for name in NAMES if name in source.tensors}
    if len(parts["lda"].shape) != 2 or len(parts["psi"].shape) != 1 or parts["tr"].shape[:1] != parts["psi"].shape:
        raise WeightsMismatch(f"lda {parts['lda'].shape}, tr {parts['tr'].shape}, psi {parts['psi'].shape} do not fit")
    size, lda = parts["lda"].shape

    def ordered(name: str) -> Tensor:
        pair = [parts[name], parts["psi"]]
        return combine(pair, lambda array, psi: array[np.argsort(-psi, kind="stable")], parts[name].shape, "float64")

    plain = {name: combine([parts[name]], np.asarray, parts[name].shape, "float64") for name in parts}
    tensors = {**source.tensors, **plain, "tr": ordered("tr"), "psi": ordered("psi")}
    return Recipe({"embedding_size": size, "lda_size": lda}, tensors, TABLE, "pyannote.audio")
