"""Which voices are one speaker's: the clusterings of pyannote.audio's diarization pipelines, in NumPy.

`VBxClustering` (community-1): agglomerative clustering refined by variational Bayes on PLDA features (Landini et al.
2022), and an assignment that keeps the speakers of a window apart. `AgglomerativeClustering` (3.1): centroid linkage,
small clusters joined to large ones. Source: pyannote.audio `pipelines.clustering`, `utils.vbx`. In float64, which a
GPU lacks in MLX: some thousand vectors, step after step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech.errors import ConfigError, OptionError, brief
from mlx_speech.stages.linkage import centroid_linkage
from mlx_speech.stages.windows import frames_alone

MAX_ITERATIONS = 20  # of VBx, which stops where an iteration gains less than MIN_GAIN
MIN_GAIN = 1e-4
INIT_SMOOTHING = 7.0  # logit of the initial cluster of a vector against those of the others
MIN_PRIOR = 1e-7  # a speaker of VBx below it is gone
# Vectors that VBx begins with at once, those of a meeting of two hours; of more, it begins with blocks of half an hour.
# Of many vectors together it makes rare ones speakers of their own: benchmarks/speakers.md has what blocks change.
MOST_TOGETHER = 10_000
VECTORS_PER_BLOCK = 2_000
ELEMENTS_PER_BLOCK = 1 << 22  # of VBx's responsibilities that are in memory at once, 8 bytes each
NONE = -2  # in place of a cluster


@dataclass(frozen=True)
class SpeakerBounds:
    """How many speakers may be found: from `low` to `high`, which are both `num` where one number is asked for.

    least_is_given : whether somebody has asked for a least number, so that fewer are worth a warning
    """

    num: int | None = None
    low: int = 1
    high: float = math.inf
    least_is_given: bool = field(default=False, compare=False)

    def within(self, count: int) -> SpeakerBounds:
        """The same, asking for no more speakers than there are vectors."""
        low = max(1, min(count, self.low))
        high = max(1, min(count, self.high))
        num = low if low == high else self.num
        return SpeakerBounds(num, low, high, self.least_is_given)

    def target(self, found: int) -> int | None:
        """The number to force on a clustering that found another one, or None."""
        if found < self.low:
            return self.low
        if found > self.high:
            return int(self.high)
        if self.num is None or self.num == found:
            return None
        return self.num


def speaker_bounds(
    num_speakers: int | None = None, min_speakers: int | None = None, max_speakers: int | None = None
) -> SpeakerBounds:
    """Raises `OptionError`, naming the options, for numbers below one or that contradict each other."""
    numbers = {"num_speakers": num_speakers, "min_speakers": min_speakers, "max_speakers": max_speakers}
    for name, value in numbers.items():
        if value is None:
            continue
        is_whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not is_whole or value < 1:
            raise OptionError(f"{name} is {brief(value)}: it has to be a whole number from 1")
    low = min_speakers or 1
    high = max_speakers or math.inf
    if low > high:
        raise OptionError(f"min_speakers is {low}, but max_speakers is {high}: it has to be at least min_speakers")
    if num_speakers is None:
        return SpeakerBounds(low if low == high else None, low, high, min_speakers is not None)
    if num_speakers < low:
        raise OptionError(f"num_speakers is {num_speakers}, but min_speakers is {low}: give one of them")
    if num_speakers > high:
        raise OptionError(f"num_speakers is {num_speakers}, but max_speakers is {high}: give one of them")
    return SpeakerBounds(num_speakers, num_speakers, num_speakers, least_is_given=True)


def cluster(
    embeddings: np.ndarray,
    segmentations: np.ndarray,
    bounds: SpeakerBounds,
    *,
    clustering: str = "VBxClustering",
    params: Mapping[str, Any] | None = None,
    plda: Callable[[mx.array], mx.array] | HostPLDA | None = None,
    min_active_ratio: float = 0.2,
) -> tuple[np.ndarray, np.ndarray]:
    """`cluster_voices` of what the models said of every window.

    embeddings : (windows, speakers, dimension); NaN where there is none
    segmentations : (windows, frames, speakers), 0 or 1
    min_active_ratio : only voices that are alone in this part of the frames form clusters (pyannote.audio 4); 0: all
        that speak at all (pyannote.audio 3)
    The others, what is returned and raised as of `cluster_voices`.
    """
    speaking = np.asarray(segmentations.any(axis=1))
    return cluster_voices(
        embeddings[speaking],
        speaking,
        frames_alone(segmentations),
        bounds,
        clustering=clustering,
        params=params,
        plda=plda,
        least_alone=min_active_ratio * segmentations.shape[1],
    )


def cluster_voices(
    vectors: np.ndarray,
    speaking: np.ndarray,
    alone: np.ndarray,
    bounds: SpeakerBounds,
    *,
    clustering: str = "VBxClustering",
    params: Mapping[str, Any] | None = None,
    plda: Callable[[mx.array], mx.array] | HostPLDA | None = None,
    least_alone: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of the voices of every window → the cluster of each, and the clusters' centroids.

    vectors : (voices, dimension), of those that speak, window after window; NaN where there is none
    speaking : (windows, speakers) bool, who speaks; as many as there are vectors
    alone : (windows, speakers), in how many frames of the window each speaks while no other does
    params : "threshold", "Fa", "Fb" of VBxClustering, "threshold", "min_cluster_size" of AgglomerativeClustering
    plda : VBxClustering's, a `models.plda.Model`
    least_alone : frames; only voices that are alone in so many form clusters

    Returns clusters (windows, speakers), `NONE` for who is silent, has no embedding or joins no cluster, and
    (clusters, dimension).
    Raises `OptionError` or `ConfigError` for settings that are unknown or out of range.
    """
    check(clustering, params, plda)
    settings = {**CLUSTERINGS[clustering], **(params or {})}
    heard = np.isfinite(vectors).all(axis=1)
    valid = heard & (vectors != 0).any(axis=1)
    forming = vectors[valid & (alone[speaking] >= least_alone)]
    bounds_here = bounds.within(len(forming))
    is_agglomerative = clustering == "AgglomerativeClustering"
    if len(forming) < 2 or (is_agglomerative and bounds_here.high < 2):
        return np.where(speaking, 0, NONE), _one_centroid(forming if len(forming) else vectors[valid])
    # Keeping the speakers of a window apart would bring speakers back that were not asked for.
    constrained = False
    if is_agglomerative:
        labels = agglomerate(forming, bounds_here, settings["threshold"], settings["min_cluster_size"])
        centroids = _means(forming, labels)
    else:
        centroids = _vbx_centroids(forming, plda, settings)
        target = bounds.target(len(centroids))
        if target is None:
            constrained = True
        else:
            centroids = _means(forming, kmeans(_unit(forming), target))
    similarity = np.full((*speaking.shape, len(centroids)), np.nan)
    similarity[speaking] = 2 - _distances(vectors, centroids)  # from the cosine distance
    clusters = constrained_argmax(similarity, speaking) if constrained else similarity.argmax(axis=2)
    clusters[~speaking] = NONE
    clusters[speaking] = np.where(heard, clusters[speaking], NONE)
    return clusters, centroids


def _one_centroid(vectors: np.ndarray) -> np.ndarray:
    """The mean of vectors (n, dimension), (1, dimension); zeros where there are none."""
    if not len(vectors):
        return np.zeros((1, vectors.shape[1]))
    return vectors.mean(axis=0, keepdims=True)


# the clusterings, and the settings that community-1 and 3.1 have
CLUSTERINGS: dict[str, dict[str, float]] = {
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
        if name in CLUSTERINGS[clustering]:
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            is_supported = is_number and 0 < value < math.inf
        else:
            is_supported = name == "method" and value == "centroid"
        if not is_supported:
            raise ConfigError(f"{clustering}: {brief(name)} is {brief(value)}, which is not supported")


# --- agglomerative ---------------------------------------------------------------------------------------------------


def agglomerate(vectors: np.ndarray, bounds: SpeakerBounds, threshold: float, min_cluster_size: int) -> np.ndarray:
    """Centroid linkage cut at `threshold`, or where it gives the number of large clusters asked for; small clusters
    join the most similar large one (pyannote.audio `AgglomerativeClustering.cluster`).

    vectors (n, dimension), n >= 2 → labels (n,) from 0
    """
    from scipy.cluster.hierarchy import fcluster

    units = _unit(vectors)
    least_size = min(min_cluster_size, max(1, round(0.1 * len(vectors))))  # of a large cluster
    tree = centroid_linkage(units)
    labels = fcluster(tree, threshold, criterion="distance") - 1
    large_count = int((np.bincount(labels) >= least_size).sum())
    target = bounds.target(large_count)
    if target is not None:
        merges = tree.copy()
        merges[:, 2] = np.arange(len(tree))  # cut at a row, as heights need not grow in a centroid linkage
        labels = fcluster(merges, _best_merge(tree, threshold, least_size, target), criterion="distance") - 1
    sizes = np.bincount(labels)
    large = np.flatnonzero(sizes >= least_size)
    small = np.flatnonzero(sizes < least_size)
    if not small.size:
        return labels
    centroids = _means(units, labels)
    nearest = _distances(centroids[large], centroids[small]).argmin(axis=0)
    joined = np.arange(len(sizes))
    joined[small] = large[nearest]
    return np.unique(joined[labels], return_inverse=True)[1]


def _best_merge(tree: np.ndarray, threshold: float, least_size: int, target: int) -> int:
    """The row of `tree` up to which to merge so that `target` clusters have `least_size` members, or nearly as many:
    of those that do, the one whose height is closest to `threshold`."""
    count = len(tree) + 1
    sizes = np.concatenate([np.ones(count), tree[:, 3]])  # of single vectors, then of what each row merges
    large = np.zeros(count, dtype=int)  # how many large clusters there are before each row
    if least_size <= 1:
        large[0] = count
    for row, (one, other) in enumerate(tree[:, :2].astype(int)):
        appeared = int(sizes[count + row] >= least_size)
        vanished = int(sizes[one] >= least_size) + int(sizes[other] >= least_size)
        large[row + 1] = large[row] + appeared - vanished
    order = np.argsort(np.abs(tree[:, 2] - threshold))  # as the original sorts, in case of equals
    order = order[tree[order, 3] >= least_size]
    missed = np.abs(large[order + 1] - target)
    if missed.min() >= abs(1 - target):
        return count - 1  # all in one
    return int(order[missed.argmin()])


# --- VBx -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HostPLDA:
    """A `models.plda.Model` in NumPy, for threads that MLX must not be used in; its fields and figures are the same."""

    mean1: np.ndarray
    lda: np.ndarray
    mean2: np.ndarray
    mu: np.ndarray
    psi: np.ndarray
    tr: np.ndarray

    @classmethod
    def of(cls, model: Any) -> HostPLDA:
        """A copy of the model's arrays."""
        names = [entry.name for entry in fields(cls)]
        return cls(**{name: np.array(getattr(model, name)) for name in names})

    def features(self, vectors: np.ndarray) -> np.ndarray:
        """vectors (n, dimension) → (n, lda size) in float64"""
        size, lda_size = self.lda.shape
        x = _unit(vectors.astype(np.float64) - self.mean1) * size**0.5
        x = _unit(x @ self.lda - self.mean2) * lda_size**0.5
        return (x - self.mu) @ self.tr.T


def _vbx_centroids(vectors: np.ndarray, plda: Any, settings: Mapping[str, float]) -> np.ndarray:
    """The speakers that VBx finds among vectors (n, dimension), n >= 2 → (speakers, dimension).

    It begins with the clusters of a centroid linkage. Of more than `MOST_TOGETHER` vectors these are found in blocks:
    what VBx makes of each block is clustered in turn, and VBx hears all vectors once more, beginning with that.
    """
    if isinstance(plda, HostPLDA):
        features = plda.features(vectors)
    else:
        with mx.stream(mx.cpu):  # float64
            features = np.array(plda(mx.array(vectors, dtype=mx.float64)))
    phi = np.array(plda.psi)
    threshold = settings["threshold"]

    def refined(labels: np.ndarray, part: slice) -> np.ndarray:
        """Clusters of some of the vectors → their responsibilities, (n, speakers)."""
        return vbx(labels, features[part], phi, Fa=settings["Fa"], Fb=settings["Fb"])[0]

    everything = slice(0, len(vectors))
    if len(vectors) <= MOST_TOGETHER:
        weights = refined(_linked(vectors, threshold), everything)
        return _weighted_means(vectors, weights)
    centroids: list[np.ndarray] = []
    speakers: list[np.ndarray] = []  # of the vectors, block after block, among the centroids
    for part in _parts(len(vectors), VECTORS_PER_BLOCK):
        weights = refined(_linked(vectors[part], threshold), part)
        speakers.append(len(centroids) + weights.argmax(axis=1))
        centroids += list(_weighted_means(vectors[part], weights))
    joined = _linked(np.stack(centroids), threshold)[np.concatenate(speakers)]
    weights = refined(np.unique(joined, return_inverse=True)[1], everything)
    return _weighted_means(vectors, weights)


def _linked(vectors: np.ndarray, threshold: float) -> np.ndarray:
    """The clusters of a centroid linkage that is cut at a distance: vectors (n, dimension) → (n,) from 0."""
    from scipy.cluster.hierarchy import fcluster

    if len(vectors) < 2:
        return np.zeros(len(vectors), dtype=int)
    return fcluster(centroid_linkage(_unit(vectors)), threshold, criterion="distance") - 1


def _weighted_means(vectors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Of vectors (n, dimension), by weights (n, speakers): (speakers, dimension)."""
    return weights.T @ vectors / weights.sum(axis=0, keepdims=True).T


def _parts(count: int, most: int) -> list[slice]:
    """So many things in the fewest parts of at most `most`, about equal ones."""
    number = math.ceil(count / most)
    edges = [count * k // number for k in range(number + 1)]
    return [slice(first, last) for first, last in pairwise(edges)]


def vbx(
    labels: np.ndarray, features: np.ndarray, phi: np.ndarray, *, Fa: float, Fb: float
) -> tuple[np.ndarray, np.ndarray]:
    """Variational Bayes without the HMM (pyannote.audio `utils.vbx.cluster_vbx`; numbers of equations as there).

    labels : (n,) initial clusters, from 0
    features : (n, d), in which a speaker varies by 1 in every dimension and speakers by `phi` (d,)
    Fa, Fb : scales of the vectors' and of the speakers' part; a larger Fb leaves fewer speakers

    Returns the responsibilities (n, speakers) of the speakers whose prior is above `MIN_PRIOR`, and their priors
    (speakers,). An iteration needs of all responsibilities only their sum and their sum of vectors, so that they are
    made for a block of rows at a time: memory grows with n · d and with the initial clusters · d.
    """
    count = int(labels.max()) + 1
    constant = -0.5 * ((features**2).sum(axis=1) + features.shape[1] * np.log(2 * np.pi))
    rho = features * np.sqrt(phi)
    rows = max(1, ELEMENTS_PER_BLOCK // count)
    blocks = [slice(start, start + rows) for start in range(0, len(rho), rows)]
    sums, sums_of_vectors = _first_sums(labels, rho, count)
    prior = np.full(count, 1.0 / count)
    speakers = _Speakers(sums, sums_of_vectors, phi, prior, Fa, Fb)
    previous = -math.inf
    for iteration in range(1, MAX_ITERATIONS + 1):
        sums = np.zeros(count)
        sums_of_vectors = np.zeros_like(speakers.alpha)
        total_evidence = 0.0
        for block in blocks:
            gamma, evidence = speakers.responsibilities(rho[block], constant[block])
            sums += gamma.sum(axis=0)
            sums_of_vectors += gamma.T @ rho[block]
            total_evidence += evidence.sum()
        prior = sums / sums.sum()
        bound = total_evidence + Fb * 0.5 * speakers.divergence  # (25)
        if bound - previous < MIN_GAIN or iteration == MAX_ITERATIONS:
            break
        previous = bound
        speakers = _Speakers(sums, sums_of_vectors, phi, prior, Fa, Fb)
    left = np.flatnonzero(prior > MIN_PRIOR)
    result = np.empty((len(rho), len(left)))
    for block in blocks:
        result[block] = speakers.responsibilities(rho[block], constant[block])[0][:, left]
    return result, prior[left]


def _first_sums(labels: np.ndarray, rho: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the first responsibilities, a softmax of `INIT_SMOOTHING` in the column of a vector's own cluster: their sums
    (clusters,), and those of the vectors rho (n, d) that they weigh (clusters, d)."""
    other = 1.0 / (math.exp(INIT_SMOOTHING) + count - 1)
    more = math.exp(INIT_SMOOTHING) * other - other  # that the own cluster has
    own = np.zeros((count, rho.shape[1]))
    np.add.at(own, labels, rho)
    sizes = np.bincount(labels, minlength=count)
    return other * len(rho) + more * sizes, other * rho.sum(axis=0) + more * own


class _Speakers:
    """The speakers of an iteration of VBx, given the sums of the responsibilities before it."""

    def __init__(
        self, sums: np.ndarray, sums_of_vectors: np.ndarray, phi: np.ndarray, prior: np.ndarray, Fa: float, Fb: float
    ) -> None:
        self.Fa = Fa
        inverse = 1.0 / (1 + Fa / Fb * sums[:, None] * phi)  # (17)
        self.alpha = Fa / Fb * inverse * sums_of_vectors  # (16)
        self.spread = 0.5 * (inverse + self.alpha**2).dot(phi)
        self.log_prior = np.log(prior + 1e-8)
        self.divergence = np.sum(np.log(inverse) - inverse - self.alpha**2 + 1)

    def responsibilities(self, rho: np.ndarray, constant: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """rho (rows, d), constant (rows,) → (rows, speakers), and the logarithm of each row's evidence (rows,)"""
        joint = rho @ self.alpha.T
        joint -= self.spread
        joint += constant[:, None]
        joint *= self.Fa
        joint += self.log_prior  # (23)
        highest = joint.max(axis=1)
        joint -= highest[:, None]
        gamma = np.exp(joint, out=joint)
        totals = gamma.sum(axis=1)
        gamma /= totals[:, None]
        return gamma, highest + np.log(totals)


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
    """Cosine distances of a (n, dimension) and b (m, dimension), (n, m)."""
    from scipy.spatial.distance import cdist

    return cdist(a, b, metric="cosine")


def _unit(vectors: np.ndarray) -> np.ndarray:
    """vectors (n, dimension), each of length 1."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _means(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of the vectors (n, dimension) of each label, in order of the labels (n,); (clusters, dimension)."""
    return np.stack([vectors[labels == label].mean(axis=0) for label in np.unique(labels)])
