"""VBx of very many vectors, in blocks: the speakers are those of all vectors together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from mlx_speech.stages import cluster
from mlx_speech.stages.cluster import HostPLDA, SpeakerBounds

SETTINGS = {"threshold": 0.8, "Fa": 0.15, "Fb": 0.4}
SIZE = 32
# half of the variance is the speaker's, alike in all directions
PLDA = HostPLDA(np.zeros(SIZE), np.eye(SIZE), np.zeros(SIZE), np.zeros(SIZE), np.ones(SIZE), np.sqrt(2) * np.eye(SIZE))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """At most 100 vectors at once; the sizes of what is linked."""
    sizes: list[int] = []
    linked = cluster._linked

    def watched(vectors: np.ndarray, threshold: float) -> np.ndarray:
        sizes.append(len(vectors))
        return linked(vectors, threshold)

    monkeypatch.setattr(cluster, "MOST_TOGETHER", 150)
    monkeypatch.setattr(cluster, "VECTORS_PER_BLOCK", 100)
    monkeypatch.setattr(cluster, "_linked", watched)
    yield sizes


def meeting(owners: np.ndarray, seed: int, noise: float = 0.5) -> np.ndarray:
    """A vector near that of its owner for each of `owners` (n,)."""
    rng = np.random.default_rng(seed)
    people = rng.normal(size=(owners.max() + 1, SIZE))
    return (people[owners] + noise * rng.normal(size=(len(owners), SIZE))).astype(np.float32)


def told_apart(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A voice in each window: their clusters (n,), and the centroids."""
    speaking = np.ones((len(vectors), 1), dtype=bool)
    clusters, centroids = cluster.cluster_voices(
        vectors, speaking, np.full(speaking.shape, 589), SpeakerBounds(), plda=PLDA, params=SETTINGS
    )
    return clusters[:, 0], centroids


@pytest.mark.parametrize("seed", range(4))
def test_the_same_speakers_as_all_at_once(seed: int, small_blocks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Five who speak by turns, one who does in the last block alone, and one at the edge of two blocks."""
    owners = np.random.default_rng(seed).integers(0, 5, size=730)
    owners[700:] = 5
    owners[80:110] = 6
    vectors = meeting(owners, seed)
    found, centroids = told_apart(vectors)
    assert len(centroids) == 7 and adjusted_rand_score(owners, found) == 1
    assert len(small_blocks) == 9 and max(small_blocks) <= 100  # eight blocks, and what they found
    monkeypatch.setattr(cluster, "MOST_TOGETHER", 730)
    together, centroids_together = told_apart(vectors)
    order = [np.flatnonzero(found == k)[0] for k in range(7)]
    assert adjusted_rand_score(together, found) == 1 and small_blocks[-1] == 730
    assert np.allclose(centroids, centroids_together[together[order]], rtol=1e-3, atol=1e-3)


def test_one_speaker_alone(small_blocks: list[int]) -> None:
    vectors = meeting(np.zeros(401, dtype=int), 1)
    found, centroids = told_apart(vectors)
    assert not found.any() and np.allclose(centroids, vectors.mean(axis=0, keepdims=True), atol=1e-5)
    assert len(small_blocks) == 6


def test_few_vectors_are_never_split(small_blocks: list[int]) -> None:
    vectors = meeting(np.arange(150) % 3, 2)
    assert len(told_apart(vectors)[1]) == 3 and small_blocks == [150]


@settings(deadline=None)
@given(st.integers(1, 10_000), st.integers(1, 500))
def test_parts_are_the_fewest_about_equal_ones(count: int, most: int) -> None:
    parts = cluster._parts(count, most)
    sizes = [part.stop - part.start for part in parts]
    assert sum(sizes) == count and max(sizes) <= most and max(sizes) - min(sizes) <= 1
    assert len(parts) == -(-count // most)
    assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]] and parts[0].start == 0
