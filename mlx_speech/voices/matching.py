"""Speakers of a recording → names of known voices: one assignment for all of them, and what is doubtful in it.

A speaker and a voice are compared by the cosine of their vectors. Among all ways to give each speaker at most one name,
and each name to at most one speaker, the one is taken whose cosines lie most above the lower threshold, in sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from mlx_speech.transcript import Match


@dataclass(frozen=True)
class Thresholds:
    """From which cosine on a speaker is who they sound like.

    certain : from here on they get the name, provided that no other name is within `margin`
    doubtful : from here on the result mentions the name, with its score
    """

    certain: float
    doubtful: float
    margin: float = 0.05


# By family of the embedding model; benchmarks/voices.py measures what they cost, and docs/guides/names.md has it.
# CAM++: between the highest cosine of two people, 0.44, and the lowest of one person in two recordings, 0.60.
THRESHOLDS = {"campplus": Thresholds(certain=0.55, doubtful=0.45)}
# Of families that nobody has measured on people.
DEFAULT = Thresholds(certain=0.55, doubtful=0.45)


def thresholds_of(model: str) -> Thresholds:
    """Those of an embedding model. model : its identity, which begins with its family"""
    return THRESHOLDS.get(model.partition(":")[0], DEFAULT)


@dataclass(frozen=True)
class Voices:
    """Known voices that one embedding model has heard.

    names : (names,), sorted
    vectors : (names, dimension), of length 1: the mean direction of each name's, weighted by the seconds heard
    model : the embedding model's identity
    """

    names: tuple[str, ...]
    vectors: np.ndarray
    model: str

    @classmethod
    def of(cls, names: Sequence[str], vectors: np.ndarray, seconds: Sequence[float], model: str) -> Voices:
        """Of single enrolments, in any order: what comes out is the same to the last bit.

        names, vectors (enrolments, dimension), seconds : of each; a name as often as it was enrolled
        """
        order = sorted(range(len(names)), key=lambda k: (names[k], vectors[k].tobytes(), seconds[k]))
        if not order:
            return cls((), np.zeros((0, 0)), model)
        ordered = [names[k] for k in order]
        starts = [k for k in range(len(order)) if k == 0 or ordered[k] != ordered[k - 1]]
        directions = unit(vectors[order].astype(np.float64))
        directions *= np.array([[seconds[k]] for k in order])
        sums = np.add.reduceat(directions, starts, axis=0)
        return cls(tuple(ordered[k] for k in starts), unit(sums), model)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (…, dimension) of length 1; what has no direction (zeros, NaN) becomes zeros."""
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    directed = (lengths > 0) & np.isfinite(lengths)
    return np.divide(vectors, lengths, out=np.zeros(vectors.shape), where=directed)


def match(
    embeddings: Mapping[str, Sequence[float]], voices: Voices, thresholds: Thresholds | None = None
) -> dict[str, Match]:
    """The known voices that speakers sound like, by the speakers' labels; who sounds like none is not in it.

    embeddings : one vector per speaker, of the same embedding model as the voices
    thresholds : by default the model's (`thresholds_of`)

    A name is certain for one speaker at most. Somebody else who sounds like it is doubtful: speakers are told apart for
    a reason. So is one for whom two names are within the margin.
    """
    if not embeddings or not voices.names:
        return {}
    limits = thresholds or thresholds_of(voices.model)
    labels = sorted(embeddings)
    speakers = unit(np.array([embeddings[label] for label in labels], dtype=np.float64))
    scores = speakers @ voices.vectors.T  # (speakers, names)
    rows, columns = assign(scores, limits.doubtful)
    assigned = dict(zip(rows.tolist(), columns.tolist(), strict=True))
    matches: dict[str, Match] = {}
    for row, label in enumerate(labels):
        column = assigned.get(row, int(scores[row].argmax()))
        score = float(scores[row, column])
        if score < limits.doubtful:
            continue
        others = np.delete(scores[row], column)
        ahead = score - others.max() if others.size else np.inf
        certain = row in assigned and score >= limits.certain and ahead >= limits.margin
        matches[label] = Match(voices.names[column], score, doubtful=not certain)
    return matches


def assign(scores: np.ndarray, lowest: float) -> tuple[np.ndarray, np.ndarray]:
    """The rows and the columns that belong together: each at most once, and the sum of what their scores have above
    `lowest` is as large as it can be. Pairs below it are left out.

    scores : (rows, columns)

    What is below counts as nothing, so that no pair is given up for the sake of one that will not count.
    """
    gains = np.maximum(scores - lowest, 0.0)
    rows, columns = linear_sum_assignment(gains, maximize=True)
    kept = scores[rows, columns] >= lowest
    return rows[kept], columns[kept]
