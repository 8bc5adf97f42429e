"""Dynamic time warping: the cheapest way through a matrix of costs, of many matrices at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FROM_DIAGONAL = 0
FROM_ABOVE = 1
FROM_LEFT = 2


def dtw(costs: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The cheapest monotone path through each matrix (n, m): its rows and its columns, (steps,)
    each; an anti-diagonal of all of them a step.

    Added in float32, and as in openai/whisper `dtw_cpu`, a tie means a step from the left, even
    where the cell above and the one before it tie and both are cheaper.
    """
    rows = max(cost.shape[0] for cost in costs)
    columns = max(cost.shape[1] for cost in costs)
    # [i + j, matrix, i]: the costs, of which the sums of the cheapest paths are made
    sums = np.full((rows + columns + 1, len(costs), rows + 1), np.inf, dtype=np.float32)
    for k, cost in enumerate(costs):
        i, j = np.indices(cost.shape) + 1
        sums[i + j, k, i] = cost
    sums[0, :, 0] = 0
    for step in range(2, rows + columns + 1):
        diagonal = sums[step - 2, :, :-1]
        up = sums[step - 1, :, :-1]
        left = sums[step - 1, :, 1:]
        # comparisons with NaN are false, so then it is left
        is_other = (np.minimum(diagonal, up) < left) & (diagonal != up)
        sums[step, :, 1:] += np.where(is_other, np.minimum(diagonal, up), left)
    trace = _trace(sums)
    return [_backtrace(trace[:, k], *cost.shape) for k, cost in enumerate(costs)]


def _trace(sums: np.ndarray) -> np.ndarray:
    """Where the cheapest path to each cell comes from.

    sums : of the paths, [i + j, matrix, i], with a cell before the first row and the first column
    """
    diagonal = sums[:-2, :, :-1]
    up = sums[1:-1, :, :-1]
    left = sums[1:-1, :, 1:]
    trace = np.full(sums.shape, FROM_LEFT, dtype=np.int8)
    inner = trace[2:, :, 1:]
    inner[(up < diagonal) & (up < left)] = FROM_ABOVE
    inner[(diagonal < up) & (diagonal < left)] = FROM_DIAGONAL
    return trace


def _backtrace(trace: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows and columns of a path from the last cell of a matrix.

    trace [i + j, i] : where a step came from, FROM_DIAGONAL, FROM_ABOVE or FROM_LEFT
    """
    i = rows
    j = columns
    path = []
    while i > 0 or j > 0:
        path.append((i - 1, j - 1))
        if i == 0:
            source = FROM_LEFT
        elif j == 0:
            source = FROM_ABOVE
        else:
            source = int(trace[i + j, i])
        if source != FROM_LEFT:
            i -= 1
        if source != FROM_ABOVE:
            j -= 1
    path_rows, path_columns = np.array(path[::-1], dtype=np.int64).reshape(-1, 2).T
    return path_rows, path_columns
