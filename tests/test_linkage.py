"""Centroid linkage beside SciPy's."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.metrics import adjusted_rand_score

from mlx_speech.stages import linkage as ours
from mlx_speech.stages.linkage import MOST_FOR_SCIPY, centroid_linkage, generic_linkage


def unit(count: int, dimension: int, speakers: int, spread: float, seed: int = 0) -> np.ndarray:
    """Vectors around some directions."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((speakers, dimension))
    vectors = centres[rng.integers(speakers, size=count)] + spread * rng.standard_normal((count, dimension))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("spread", [0.05, 0.6, 3.0])
@pytest.mark.parametrize(("count", "dimension"), [(2, 3), (3, 1), (40, 2), (700, 16), (1300, 256)])
def test_the_same_tree(count: int, dimension: int, spread: float) -> None:
    """One dimension has its own share of ties on the unit sphere, so there without norms."""
    vectors = unit(count, dimension, 5, spread) if dimension > 1 else np.random.default_rng(1).normal(size=(count, 1))
    expected, found = linkage(vectors, "centroid"), generic_linkage(vectors)
    assert np.array_equal(found[:, [0, 1, 3]], expected[:, [0, 1, 3]])
    assert np.allclose(found[:, 2], expected[:, 2], rtol=0, atol=1e-12)


def test_many_vectors_fall_into_the_same_parts() -> None:
    """40 speakers, some vectors of each clearer than others."""
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.1, 1, (4000, 1))
    vectors = rng.standard_normal((40, 256))[rng.integers(40, size=4000)] + spread * rng.standard_normal((4000, 256))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected, found = linkage(vectors, "centroid"), generic_linkage(vectors)
    for threshold in (0.3, 0.6, 0.7, 0.9):
        labels = fcluster(expected, threshold, "distance")
        assert 39 < labels.max() < 3500
        assert np.array_equal(fcluster(found, threshold, "distance"), labels)  # numbered alike, too


def test_rounding_decides_nothing() -> None:
    """Distances that float32 cannot tell apart."""
    rng = np.random.default_rng(3)
    vectors = unit(1, 64, 1, 1.0) + 1e-6 * rng.standard_normal((300, 64))
    expected, found = linkage(vectors, "centroid"), generic_linkage(vectors)
    assert np.array_equal(found[:, [0, 1, 3]], expected[:, [0, 1, 3]])


def test_vectors_that_are_the_same() -> None:
    vectors = np.repeat(unit(40, 8, 40, 1.0), 5, axis=0)
    found = generic_linkage(vectors)
    parts = [fcluster(tree, 1e-6, "distance") for tree in (linkage(vectors, "centroid"), found)]
    assert parts[1].max() == 40 and adjusted_rand_score(*parts) == 1.0
    assert found[-1, 3] == 200 and sorted(found[:, :2].ravel()) == list(range(398))
    assert generic_linkage(np.ones((30, 4)))[:, 2].max() == 0.0


def test_none_and_one() -> None:
    assert centroid_linkage(np.zeros((0, 3))).shape == centroid_linkage(np.ones((1, 3))).shape == (0, 4)


@pytest.mark.parametrize("count", [2, 300, MOST_FOR_SCIPY, MOST_FOR_SCIPY + 1])
def test_few_vectors_and_many(count: int) -> None:
    vectors = unit(count, 3, 5, 0.6)
    expected, found = linkage(vectors, "centroid"), centroid_linkage(vectors)
    assert np.allclose(found, expected, rtol=0, atol=1e-12)


def test_float32_products_stay_within_the_margin() -> None:
    """The margin is what the exact distances of two vectors may be off together."""
    vectors = unit(1000, 256, 1, 0.01)
    rows = ours._Rows(vectors)
    rough = rows.squares[:, None] + rows.squares - 2 * (rows.single @ rows.single.T)
    exact = np.stack([rows._distances(np.arange(1000), row) for row in range(1000)])
    assert 2 * np.abs(rough - exact).max() < rows.margin / 4


def test_memory_grows_with_the_vectors() -> None:
    """And not with their square, which would be 72 MB here."""
    vectors = unit(3000, 32, 5, 0.5)
    tracemalloc.start()
    centroid_linkage(vectors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
