"""The likeliest path of a text through the frames of its sound, by CTC's own Viterbi.

Graves et al. 2006, with the states of torchaudio's `forced_align`: blanks between labels are optional, but not between
two equal ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

NUMBERS_PER_BLOCK = 1 << 17  # of which the Viterbi keeps a few arrays while it goes through some frames


class Lattice:
    """The states of the CTC paths of some targets, as arrays of a row each.

    State 2k + 1 of a row is its label k, and state 2k the blank before it. Rows are ordered by their number of frames,
    the longest first, so that rows that have ended lie at the bottom.

    order : (rows,) which target each row is
    frames : (rows,) how many it has
    columns : (rows, states) of the log-probabilities, what each state emits
    skips : (rows, states) 0 where the blank before a label may be left out, -inf elsewhere
    """

    def __init__(
        self, log_probs: Sequence[np.ndarray], targets: Sequence[np.ndarray], blank: int, wildcard: int | None
    ) -> None:
        """log_probs : (frames, columns) each; targets : (labels,) each; blank, wildcard : columns"""
        self.order = sorted(range(len(targets)), key=lambda target: -len(log_probs[target]))
        self.frames = np.array([len(log_probs[target]) for target in self.order])
        self.sizes = np.array([len(targets[target]) for target in self.order])  # (rows,) labels
        # With each frame's largest taken off, the best path stays near zero, where float32 is finest.
        self._peaks = [log_probs[target].max(axis=1) for target in self.order]
        self._relative = [
            log_probs[target] - peaks[:, None] for target, peaks in zip(self.order, self._peaks, strict=True)
        ]
        shape = (len(self.order), 2 * int(self.sizes.max()) + 1)
        self.columns = np.full(shape, blank)
        self.skips = np.full(shape, -np.inf, np.float32)
        for row, target in enumerate(self.order):
            labels = targets[target]
            skippable = (labels[1:] != labels[:-1]) | (labels[1:] == wildcard)
            self.columns[row, 1 : 2 * len(labels) : 2] = labels
            self.skips[row, 3 : 2 * len(labels) : 2][skippable] = 0
        self.block_size = min(int(self.frames[0]), max(8, NUMBERS_PER_BLOCK // self.columns.size))
        self._emissions = np.zeros((shape[0], self.block_size, shape[1]), np.float32)

    def blocks(self) -> Iterator[range]:
        """The frames, `block_size` at a time."""
        longest = int(self.frames[0])
        for start in range(0, longest, self.block_size):
            yield range(start, min(start + self.block_size, longest))

    def rows(self, block: range) -> int:
        """How many rows, from the top, have frames in the block."""
        return int(np.count_nonzero(self.frames > block.start))

    def ending(self, block: range) -> list[int]:
        """The rows whose last frame is in the block."""
        ends = (self.frames > block.start) & (self.frames <= block.stop)
        return np.flatnonzero(ends).tolist()

    def emissions(self, block: range) -> np.ndarray:
        """The log-probabilities of the states of `rows(block)`, (frames, rows, states), until the next block is asked
        for. What a row has behind its last frame means nothing."""
        rows = self.rows(block)
        for row in range(rows):
            frames = self._relative[row][block.start : block.stop]
            # "clip" spares a check, and the copy that it needs
            np.take(frames, self.columns[row], axis=1, out=self._emissions[row, : len(frames)], mode="clip")
        return self._emissions[:rows, : len(block)].transpose(1, 0, 2)

    def final(self, row: int, scores: np.ndarray) -> tuple[int, float]:
        """The state in which a row's best path ends, its last label or the blank behind that, and the path's
        log-probability. scores : (states,) of the row's last frame"""
        blank = 2 * int(self.sizes[row])
        label = blank - 1
        state = label if scores[label] > scores[blank] else blank
        best = np.maximum(scores[label], scores[blank])  # not a number where either is none
        return state, best + self._peaks[row].sum(dtype=np.float64)


def viterbi(
    log_probs: Sequence[np.ndarray], targets: Sequence[np.ndarray], *, blank: int = 0, wildcard: int | None = None
) -> tuple[list[np.ndarray | None], np.ndarray]:
    """The likeliest CTC path of each target, all of them at once.

    log_probs : (frames, columns) each; targets : (labels,) each, columns other than `blank`, at least one
    wildcard : a column that may follow itself without a blank, as different unknown characters do
    Returns the states of each path, (frames,): 2k + 1 in the frames of label k, 2k in those of the blank before it, or
    None where there is no path (too few frames, or log-probabilities that are not numbers), and the paths'
    log-probabilities, (rows,).
    """
    lattice = Lattice(log_probs, targets, blank, wildcard)
    rows, states = lattice.columns.shape
    # Of the best paths to each state, behind two states that none reaches; frame 0 is the one before the block.
    scores = np.full((lattice.block_size + 1, rows, states + 2), -np.inf, np.float32)
    scores[0, :, 2] = 0
    back = np.zeros((int(lattice.frames[0]), rows, states), np.uint8)
    comparison = _Comparison(lattice.block_size, rows, states)
    paths: list[np.ndarray | None] = [None] * rows
    totals = np.zeros(rows)
    for block in lattice.blocks():
        active = lattice.rows(block)
        block_scores = scores[: len(block) + 1, :active]
        emissions = lattice.emissions(block)
        came_from = back[block.start : block.stop, :active]
        _advance(block_scores, lattice.skips[:active], emissions, came_from, comparison)
        for row in lattice.ending(block):
            frames = int(lattice.frames[row])
            state, total = lattice.final(row, scores[frames - block.start, row, 2:])
            target = lattice.order[row]
            totals[target] = total
            if np.isfinite(total):
                paths[target] = _trace(back[:frames, row], state)
        scores[0] = scores[len(block)]
    return paths, totals


class _Comparison:
    """Arrays of a block's size, made once: to get new ones takes longer than to compute in them.

    skip, best : (frames, rows, states) scores; skipped : the same of bits
    """

    def __init__(self, frames: int, rows: int, states: int) -> None:
        self.skip = np.empty((frames, rows, states), np.float32)
        self.best = np.empty_like(self.skip)
        self.skipped = np.empty(self.skip.shape, bool)


def _advance(
    scores: np.ndarray, skips: np.ndarray, emissions: np.ndarray, back: np.ndarray, comparison: _Comparison
) -> None:
    """Fill all but the first frame of scores (frames + 1, rows, states + 2), whose first two states none reaches.

    skips : (rows, states), as `Lattice.skips`; emissions : (frames, rows, states)
    back : (frames, rows, states) becomes how many states each came from below, 0 to 2. Equals stay where they are
    """
    for before, after, emitted in zip(scores[:-1], scores[1:, :, 2:], emissions, strict=True):
        np.add(before[:, :-2], skips, out=after)
        np.maximum(after, before[:, 1:-1], out=after)
        np.maximum(after, before[:, 2:], out=after)
        np.add(after, emitted, out=after)
    frames, rows, _ = back.shape
    stay = scores[:-1, :, 2:]
    step = scores[:-1, :, 1:-1]
    skip = np.add(scores[:-1, :, :-2], skips, out=comparison.skip[:frames, :rows])
    best = np.maximum(step, stay, out=comparison.best[:frames, :rows])
    skipped = np.greater(skip, best, out=comparison.skipped[:frames, :rows]).view(np.uint8)
    np.greater(step, stay, out=back.view(bool))
    np.maximum(back, np.left_shift(skipped, 1, out=skipped), out=back)


def _trace(back: np.ndarray, state: int) -> np.ndarray:
    """back (frames, states) → the states (frames,) that lead to the last one."""
    states = np.zeros(len(back), np.int32)
    flat = back.tobytes()  # indexing bytes takes a fraction of indexing an array
    width = back.shape[1]
    for frame in range(len(back) - 1, -1, -1):
        states[frame] = state
        state -= flat[frame * width + state]
    return states
