"""Which voices are one speaker's: the clusterings of pyannote.audio's diarization pipelines, in NumPy.

`VBxClustering` (community-1): agglomerative clustering refined by variational Bayes on PLDA features (Landini et al.
2022), and an assignment that keeps the speakers of a window apart. `AgglomerativeClustering` (3.1): centroid linkage,
small clusters joined to large ones. Source: pyannote.audio `pipelines.clustering`, `utils.vbx`. In float64, which a
GPU lacks in MLX: some thousand vectors, step after step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech.errors import ConfigError, OptionError, brief
from mlx_speech.stages.linkage import centroid_linkage

MAX_ITERATIONS = 20  # of VBx, which stops where an iteration gains less than MIN_GAIN
MIN_GAIN = 1e-4
INIT_SMOOTHING = 7.0  # logit of the initial cluster of a vector against those of the others
MIN_PRIOR = 1e-7  # a speaker of VBx below it is gone
NONE = -2  # in place of a cluster


@dataclass(frozen=True)
class Bounds:
    """How many speakers may be found; `low` and `high` are both `num` where that is given."""

    num: int | None = None
    low: int = 1
    high: float = math.inf

    def within(self, count: int) -> Bounds:
        """The same, asking for no more speakers than there are vectors."""
        low, high = max(1, min(count, self.low)), max(1, min(count, self.high))
        return Bounds(low if low == high else self.num, low, high)

    def target(self, found: int) -> int | None:
        """The number to force on a clustering that found another one, or None."""
        wanted = self.low if found < self.low else self.high if found > self.high else self.num
        return None if wanted is None or wanted == found else int(wanted)


def speaker_bounds(
    num_speakers: int | None = None, min_speakers: int | None = None, max_speakers: int | None = None
) -> Bounds:
    """Raises `OptionError`, naming the options, for numbers below one or that contradict each other."""
    given = {"num_speakers": num_speakers, "min_speakers": min_speakers, "max_speakers": max_speakers}
    for name, value in given.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1):
            raise OptionError(f"{name} is {brief(value)}: it has to be a whole number from 1")
    low, high = min_speakers or 1, max_speakers or math.inf
    if low > high:
        raise OptionError(f"min_speakers is {low}, but max_speakers is {high}: it has to be at least min_speakers")
    if num_speakers is None:
        return Bounds(int(low) if low == high else None, low, high)
    if not low <= num_speakers <= high:
        name, other = ("min_speakers", low) if num_speakers < low else ("max_speakers", high)
        raise OptionError(f"num_speakers is {num_speakers}, but {name} is {other}: give one of them")
    return Bounds(num_speakers, num_speakers, num_speakers)


def cluster(
    embeddings: np.ndarray,
    segmentations: np.ndarray,
    bounds: Bounds,
    *,
    clustering: str = "VBxClustering",
    params: Mapping[str, Any] | None = None,
    plda: Callable[[mx.array], mx.array] | None = None,
    min_active_ratio: float = 0.2,
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of the speakers of every window → the cluster of each, and the clusters' centroids.

    embeddings : (chunks, speakers, dimension); NaN where there is none
    segmentations : (chunks, frames, speakers), 0 or 1
    params : "threshold", "Fa", "Fb" of VBxClustering, "threshold", "min_cluster_size" of AgglomerativeClustering
    plda : VBxClustering's, a `models.plda.Model`
    min_active_ratio : only voices that are alone in this part of the frames form clusters (pyannote.audio 4); 0: all
        that speak at all (pyannote.audio 3)

    Returns clusters (chunks, speakers), `NONE` for who is silent or joins no cluster, and (clusters, dimension).
    Raises `OptionError` or `ConfigError` for settings that are unknown or out of range.
    """
    check(clustering, params, plda)
    settings = {**CLUSTERINGS[clustering], **(params or {})}
    active = np.asarray(segmentations.any(axis=1))
    valid = np.isfinite(embeddings).all(axis=2) & (embeddings != 0).any(axis=2)
    chosen = valid & active
    if min_active_ratio > 0:
        alone = segmentations.sum(axis=2, keepdims=True) == 1
        chosen &= (segmentations * alone).sum(axis=1) >= min_active_ratio * segmentations.shape[1]
    vectors = embeddings[chosen]
    if len(vectors) < 2 or (clustering == "AgglomerativeClustering" and bounds.within(len(vectors)).high < 2):
        found = vectors if len(vectors) else embeddings[valid & active]
        centroids = found.mean(axis=0, keepdims=True) if len(found) else np.zeros((1, embeddings.shape[2]))
        return np.where(active, 0, NONE), centroids
    if clustering == "AgglomerativeClustering":
        labels = agglomerate(vectors, bounds.within(len(vectors)), settings["threshold"], settings["min_cluster_size"])
        centroids, constrained = _means(vectors, labels), False
    else:
        centroids = _vbx_centroids(vectors, plda, settings)
        target = bounds.target(len(centroids))
        if target is not None:
            centroids = _means(vectors, kmeans(_unit(vectors), target))
        constrained = target is None  # which would bring speakers back that were not asked for
    voices = embeddings.reshape(-1, embeddings.shape[2])
    similarity = 2 - _distances(voices, centroids).reshape(*active.shape, -1)  # from the cosine distance
    hard = constrained_argmax(similarity, active) if constrained else similarity.argmax(axis=2)
    return np.where(active, hard, NONE), centroids


CLUSTERINGS: dict[str, dict[str, float]] = {  # and the settings of community-1 and of 3.1
    "VBxClustering": {"threshold": 0.6, "Fa": 0.07, "Fb": 0.8},
    "AgglomerativeClustering": {"threshold": 0.7045654963945799, "min_cluster_size": 12},
}


def check(clustering: str, params: Mapping[str, Any] | None, plda: object) -> None:
    """Raises `ConfigError` for a clustering or settings that are unknown or out of range."""
    if clustering not in CLUSTERINGS:
        raise ConfigError(f"clustering is {brief(clustering)}: only {' and '.join(CLUSTERINGS)} are supported")
    if clustering == "VBxClustering" and plda is None:
        raise ConfigError("VBxClustering needs a PLDA: use a pipeline that has one, or AgglomerativeClustering")
    for name, value in (params or {}).items():
        known = name in CLUSTERINGS[clustering]
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
        if not (number if known else name == "method" and value == "centroid"):
            raise ConfigError(f"{clustering}: {brief(name)} is {brief(value)}, which is not supported")


# --- agglomerative ---------------------------------------------------------------------------------------------------


def agglomerate(vectors: np.ndarray, bounds: Bounds, threshold: float, min_cluster_size: int) -> np.ndarray:
    """Centroid linkage cut at `threshold`, or where it gives the number of large clusters asked for; small clusters
    join the most similar large one (pyannote.audio `AgglomerativeClustering.cluster`).

    vectors (n, dimension), n >= 2 → labels (n,) from 0
    """
    from scipy.cluster.hierarchy import fcluster

    count, units = len(vectors), _unit(vectors)
    size = min(min_cluster_size, max(1, round(0.1 * count)))
    tree = centroid_linkage(units)
    labels = fcluster(tree, threshold, criterion="distance") - 1
    target = bounds.target(int((np.bincount(labels) >= size).sum()))
    if target is not None:
        merges = tree.copy()
        merges[:, 2] = np.arange(count - 1)
        labels = fcluster(merges, _best_merge(tree, threshold, size, target), criterion="distance") - 1
    sizes = np.bincount(labels)
    large, small = np.flatnonzero(sizes >= size), np.flatnonzero(sizes < size)
    if not small.size:
        return labels
    centroids = _means(units, labels)
    joined = np.arange(len(sizes))
    joined[small] = large[_distances(centroids[large], centroids[small]).argmin(axis=0)]
    return np.unique(joined[labels], return_inverse=True)[1]


def _best_merge(tree: np.ndarray, threshold: float, size: int, target: int) -> int:
    """The row of `tree` up to which to merge so that `target` clusters have `size` members, or nearly as many: of
    those that do, the one whose height is closest to `threshold`."""
    count = len(tree) + 1
    members, large = np.concatenate([np.ones(count), tree[:, 3]]), np.zeros(count, dtype=int)
    large[0] = count if size <= 1 else 0
    for row, (a, b) in enumerate(tree[:, :2].astype(int)):
        change = int(members[count + row] >= size) - int(members[a] >= size) - int(members[b] >= size)
        large[row + 1] = large[row] + change
    order = np.argsort(np.abs(tree[:, 2] - threshold))  # as the original sorts, in case of equals
    order = order[tree[order, 3] >= size]
    off = np.abs(large[order + 1] - target)
    if off.min() >= abs(1 - target):
        return count - 1  # all in one
    return int(order[off.argmin()])


# --- VBx -------------------------------------------------------------------------------------------------------------


def _vbx_centroids(vectors: np.ndarray, plda: Any, settings: Mapping[str, float]) -> np.ndarray:
    """The speakers that VBx finds among vectors (n, dimension), n >= 2 → (speakers, dimension)."""
    from scipy.cluster.hierarchy import fcluster

    labels = fcluster(centroid_linkage(_unit(vectors)), settings["threshold"], criterion="distance") - 1
    with mx.stream(mx.cpu):  # float64
        features = np.array(plda(mx.array(vectors, dtype=mx.float64)))
    gamma, prior = vbx(labels, features, np.array(plda.psi), Fa=settings["Fa"], Fb=settings["Fb"])
    weights = gamma[:, prior > MIN_PRIOR]
    return weights.T @ vectors / weights.sum(axis=0, keepdims=True).T


def vbx(
    labels: np.ndarray, features: np.ndarray, phi: np.ndarray, *, Fa: float, Fb: float
) -> tuple[np.ndarray, np.ndarray]:
    """Variational Bayes without the HMM (pyannote.audio `utils.vbx.cluster_vbx`; numbers of equations as there).

    labels : (n,) initial clusters, from 0
    features : (n, d), in which a speaker varies by 1 in every dimension and speakers by `phi` (d,)
    Fa, Fb : scales of the vectors' and of the speakers' part; a larger Fb leaves fewer speakers

    Returns responsibilities (n, speakers) and priors (speakers,).
    """
    from scipy.special import logsumexp, softmax

    count = labels.max() + 1
    gamma = softmax(INIT_SMOOTHING * np.eye(count)[labels], axis=1)
    prior = np.full(count, 1.0 / count)
    constant = -0.5 * ((features**2).sum(axis=1, keepdims=True) + features.shape[1] * np.log(2 * np.pi))
    rho = features * np.sqrt(phi)
    previous = -math.inf
    for _ in range(MAX_ITERATIONS):
        inverse = 1.0 / (1 + Fa / Fb * gamma.sum(axis=0, keepdims=True).T * phi)  # (17)
        alpha = Fa / Fb * inverse * gamma.T.dot(rho)  # (16)
        joint = Fa * (rho.dot(alpha.T) - 0.5 * (inverse + alpha**2).dot(phi) + constant) + np.log(prior + 1e-8)  # (23)
        evidence = np.asarray(logsumexp(joint, axis=-1))
        gamma = np.exp(joint - evidence[:, None])
        prior = gamma.sum(axis=0)
        prior = prior / prior.sum()
        bound = evidence.sum() + Fb * 0.5 * np.sum(np.log(inverse) - inverse - alpha**2 + 1)  # (25)
        if bound - previous < MIN_GAIN:
            break
        previous = bound
    return gamma, prior


# --- what both need --------------------------------------------------------------------------------------------------


def kmeans(vectors: np.ndarray, count: int) -> np.ndarray:
    """Labels (n,) of at most `count` clusters, from 0 (scikit-learn's k-means, whose seed decides between splits that
    are equally good)."""
    from sklearn.cluster import KMeans

    count = min(count, len(np.unique(vectors, axis=0)))
    return KMeans(n_clusters=count, n_init=3, random_state=42).fit_predict(vectors)  # type: ignore[arg-type]


def constrained_argmax(similarity: np.ndarray, active: np.ndarray) -> np.ndarray:
    """The best assignment that gives no two speakers of a window the same cluster; `NONE` for who is left over.

    similarity (chunks, speakers, clusters), active (chunks, speakers) → (chunks, speakers)
    """
    from scipy.optimize import linear_sum_assignment

    worst = np.nanmin(similarity)
    scores = np.where(active[..., None], np.nan_to_num(similarity, nan=worst), worst - 1.0)
    hard = np.full(active.shape, NONE)
    for chunk, score in enumerate(scores):
        speakers, clusters = linear_sum_assignment(score, maximize=True)
        hard[chunk, speakers] = clusters
    return hard


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    from scipy.spatial.distance import cdist

    return cdist(a, b, metric="cosine")


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _means(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.stack([vectors[labels == label].mean(axis=0) for label in np.unique(labels)])
