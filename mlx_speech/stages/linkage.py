"""Centroid linkage in memory that grows with the number of vectors, where SciPy's grows with its square.

The "generic" algorithm of Müllner 2011 (Modern hierarchical, agglomerative clustering algorithms), with distances that
are computed when they are needed: every cluster knows the nearest of those after it, or a lower bound of how far that
is. Distances come from float32 products with all centroids, as fast as memory is read; where their rounding could
decide, from float64. Of few vectors SciPy's linkage needs little memory, and less time.
"""

from __future__ import annotations

import numpy as np
from scipy.cluster.hierarchy import linkage

MOST_FOR_SCIPY = 2000  # vectors: 16 MB of distances
LEAST_SHARE_IN_USE = 0.8  # of the rows; below it those that are not in use are removed
VECTORS_PER_PRODUCT = 512  # whose nearest are found by one product


def centroid_linkage(vectors: np.ndarray) -> np.ndarray:
    """Centroid linkage of vectors (n, dimension) → (n - 1, 4), as SciPy's `linkage(vectors, "centroid")` in float64:
    the two clusters merged, the lower number first, the distance of their centroids, the size of the new one.

    Of pairs at the same distance another may be merged first. Time grows with n² · dimension; memory is that of three
    copies of `vectors`, and at most 16 MB more.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    if 2 <= len(vectors) <= MOST_FOR_SCIPY:
        return linkage(vectors, "centroid")
    return generic_linkage(vectors)


def generic_linkage(vectors: np.ndarray) -> np.ndarray:
    """`centroid_linkage` of any number of vectors without a table of distances. vectors : (n, dimension) float64"""
    rows = _Rows(vectors)
    tree = np.zeros((max(0, len(vectors) - 1), 4))
    for step in range(len(tree)):
        tree[step] = rows.merge(len(vectors) + step)
    return tree


class _Rows:
    """The clusters that are left, in rows.

    near : squared distance to `neighbour`, the nearest of the rows after it; a lower bound where that one has changed
    """

    def __init__(self, vectors: np.ndarray) -> None:
        count = len(vectors)
        self.centroids = vectors.copy()
        self.single = vectors.astype(np.float32)
        self.squares = np.einsum("nd,nd->n", self.single, self.single)
        # ten times how far two distances from float32 products are off
        self.margin = 8 * vectors.shape[1] ** 0.5 * np.finfo(np.float32).eps * self.squares.max(initial=0)
        self.numbers = np.arange(count)
        self.sizes = np.ones(count)
        self.left = count
        self.near = np.full(count, np.inf)
        self.neighbour = np.full(count, -1)
        self.exact = np.zeros(count, dtype=bool)  # whether `near` is, and not a lower bound
        for start in range(0, count - 1, VECTORS_PER_PRODUCT):
            block = self.single[start : start + VECTORS_PER_PRODUCT]
            rough = self.squares[start:] - 2 * (block @ self.single[start:].T)
            for k, row in enumerate(range(start, min(start + VECTORS_PER_PRODUCT, count - 1))):
                self._settle(row, rough[k, k + 1 :] + self.squares[row])

    def merge(self, number: int) -> tuple[float, float, float, float]:
        """Merge the two nearest clusters; the new one is called `number` and takes the row of the first: large
        clusters, which are near to many, come to lie before most and are the neighbour of few."""
        a, b = self._nearest()
        lower, higher = sorted((self.numbers[a], self.numbers[b]))
        distance = np.sqrt(self.near[a])
        size = self.sizes[a] + self.sizes[b]
        self.centroids[a] += (self.sizes[b] / size) * (self.centroids[b] - self.centroids[a])
        self.single[a] = self.centroids[a]
        self.squares[a] = self.single[a] @ self.single[a]
        self.numbers[a] = number
        self.sizes[a] = size
        self.exact[(self.neighbour == a) | (self.neighbour == b)] = False
        self.squares[b] = np.inf  # not in use any more
        self.near[b] = np.inf
        self.left -= 1
        if self.left < LEAST_SHARE_IN_USE * len(self.near):
            a = self._compact(a)
        rough = self.squares + (self.squares[a] - 2 * (self.single @ self.single[a]))
        self._settle(a, rough[a + 1 :])
        closer = np.flatnonzero(rough[:a] < self.near[:a] + self.margin)
        distances = self._distances(closer, a)
        less = distances < self.near[closer]
        self._set(closer[less], distances[less], a)
        return lower, higher, distance, size

    def _nearest(self) -> tuple[int, int]:
        """The two rows whose distance is the smallest."""
        row = int(self.near.argmin())
        while not self.exact[row]:
            products = self.single[row + 1 :] @ self.single[row]
            self._settle(row, self.squares[row + 1 :] + (self.squares[row] - 2 * products))
            row = int(self.near.argmin())
        return row, int(self.neighbour[row])

    def _settle(self, row: int, rough: np.ndarray) -> None:
        """Find the neighbour of a row. rough : squared distances of the rows after it, within half the margin"""
        least = rough.min(initial=np.inf)
        if least == np.inf:  # it is the last
            self._set(row, np.inf, -1)
            return
        candidates = row + 1 + np.flatnonzero(rough <= least + self.margin)
        distances = self._distances(candidates, row)
        self._set(row, distances.min(), candidates[distances.argmin()])

    def _set(self, rows: int | np.ndarray, near: float | np.ndarray, neighbour: int) -> None:
        self.near[rows] = near
        self.neighbour[rows] = neighbour
        self.exact[rows] = True

    def _distances(self, others: np.ndarray, row: int) -> np.ndarray:
        """Squared, in float64."""
        difference = self.centroids[others] - self.centroids[row]
        return np.einsum("nd,nd->n", difference, difference)

    def _compact(self, row: int) -> int:
        """Remove the rows that are not in use; where `row` is then."""
        used = self.squares < np.inf
        moved = np.cumsum(used) - 1
        for name in ("centroids", "single", "squares", "numbers", "sizes", "near", "exact"):
            setattr(self, name, getattr(self, name)[used])
        self.neighbour = np.where(self.near < np.inf, moved[self.neighbour[used]], -1)
        return int(moved[row])
