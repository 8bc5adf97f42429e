"""The PLDA of the diarization pipeline, estimated from embeddings of voices that the embedding never learnt.

Layout and use as in pyannote's community-1 (`pyannote.audio.utils.vbx.vbx_setup`): centre, length, LDA, length again,
then a basis in which a speaker's embeddings vary by 1 in every direction and the speakers by `psi` (two-covariance
model, Brümmer & de Villiers 2010). `python -m demo.plda`, after `demo.wespeaker`.
"""

from __future__ import annotations

import numpy as np
import torch
from pyannote.audio import Model
from scipy.linalg import eigh

from demo import ASSETS, wespeaker
from demo.corpus import Corpus

FOLDER = ASSETS / "diarization" / "plda"
ESTIMATED = 300  # of the identities; the others are left for the tuning of the pipeline
SIZE = 96  # dimensions after the LDA
BATCHES = 80  # of crops and of windows each
SMALLEST = 1e-3  # of psi, which a pipeline divides by


def corpus() -> Corpus:
    return Corpus.open("development")


def identities() -> list[str]:
    """Names of the speakers of the corpus, in order."""
    return list(dict.fromkeys(corpus().speakers))


def embed(model: torch.nn.Module, data: wespeaker.Data, batches: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (n, dimension) of augmented crops and of windows of conversations, and the speaker of each (n,)"""
    vectors, speakers = [], []
    for number in range(batches):
        rng = np.random.default_rng([seed, number])
        with torch.no_grad():
            waveforms, who = data.crops(rng)
            vectors.append(model(waveforms))
            speakers.append(who)
            waveforms, alone, who = data.windows(rng)
            vectors.append(model(waveforms, weights=alone)[who >= 0])
            speakers.append(who[who >= 0])
    return torch.cat(vectors).double().numpy(), torch.cat(speakers).numpy()


def covariances(vectors: np.ndarray, speakers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Within and between speakers, (dimension, dimension) each. vectors (n, dimension), speakers (n,)"""
    _, inverse, counts = np.unique(speakers, return_inverse=True, return_counts=True)
    means = np.zeros((len(counts), vectors.shape[1]))
    np.add.at(means, inverse, vectors)
    means /= counts[:, None]
    rest = vectors - means[inverse]
    within = rest.T @ rest / (len(vectors) - len(counts))
    # the means vary by a part of what is within, too
    between = np.cov(means.T) - within * np.mean(1 / counts)
    return within, between


def estimate(vectors: np.ndarray, speakers: np.ndarray, size: int = SIZE) -> tuple[dict[str, np.ndarray], ...]:
    """The contents of xvec_transform.npz and plda.npz. vectors (n, dimension), speakers (n,)"""
    mean1 = vectors.mean(axis=0)
    x = _length(vectors - mean1)
    within, between = covariances(x, speakers)
    lda = eigh(between, within)[1][:, ::-1][:, :size]
    mean2 = (x @ lda).mean(axis=0)
    x = _length(x @ lda - mean2)
    within, between = covariances(x, speakers)
    psi, basis = eigh(between, within)
    order = np.argsort(-psi)
    plda = {"mu": x.mean(axis=0), "tr": basis.T[order], "psi": np.maximum(psi[order], SMALLEST)}
    return {"mean1": mean1, "mean2": mean2, "lda": lda}, plda


def _length(vectors: np.ndarray) -> np.ndarray:
    """Rows of length √dimension."""
    return np.sqrt(vectors.shape[1]) * vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main() -> None:
    torch.set_num_threads(1)
    model = Model.from_pretrained(wespeaker.FILE).eval()
    data = wespeaker.Data(corpus(), identities()[:ESTIMATED])
    vectors, speakers = embed(model, data, BATCHES, seed=20)
    transform, plda = estimate(vectors, speakers)
    FOLDER.mkdir(parents=True, exist_ok=True)
    np.savez(FOLDER / "xvec_transform.npz", **transform)
    np.savez(FOLDER / "plda.npz", **plda)
    psi = plda["psi"]
    print(f"{len(vectors)} embeddings of {len(set(speakers))} speakers; psi {psi[0]:.1f} … {psi[-1]:.3f}")


if __name__ == "__main__":
    main()
