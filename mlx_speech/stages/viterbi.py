"""The likeliest path of a text through the frames of its sound, by CTC's own Viterbi.

Graves et al. 2006, with the states of torchaudio's `forced_align`: blanks between labels are optional, but not between
two equal ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

NUMBERS_PER_BLOCK = 1 << 17  # of which the Viterbi keeps a few arrays while it goes through some frames
FEWEST_FRAMES_PER_BLOCK = 16  # of fewer, calls take longer than what they compute
BLANKS, LABELS = 0, 1  # an axis of the scores


class Lattice:
    """The states of the CTC paths of some targets, as arrays of a row each.

    A row has places, one before the other: in each, a label and the blank behind it, which may be left out; at the
    first there is only the blank. A blank that must not be left out, between two equal labels, counts as a label. Rows
    are ordered by their number of frames, the longest first, so that rows that have ended lie at the bottom.

    order : (rows,) which target each row is
    frames : (rows,) how many it has
    last : (rows,) its last place
    columns : (rows, places) of the log-probabilities, what the label of each place emits
    states : (rows, places, 2) what `viterbi` calls the blank and the label of each place
    """

    def __init__(
        self, log_probs: Sequence[np.ndarray], targets: Sequence[np.ndarray], blank: int, wildcard: int | None
    ) -> None:
        """log_probs : (frames, columns) each; targets : (labels,) each; blank, wildcard : columns"""
        self.order = sorted(range(len(targets)), key=lambda target: -len(log_probs[target]))
        self.frames = np.array([len(log_probs[target]) for target in self.order])
        # With each frame's largest taken off, the best path stays near zero, where float32 is finest.
        self._peaks = [log_probs[target].max(axis=1) for target in self.order]
        self._relative = [
            log_probs[target] - peaks[:, None] for target, peaks in zip(self.order, self._peaks, strict=True)
        ]
        self._blank = blank
        rows = [_places(targets[target], blank, wildcard) for target in self.order]
        self.last = np.array([len(columns) - 1 for columns, _ in rows])
        shape = (len(rows), int(self.last.max()) + 1)
        self.columns = np.full(shape, blank)
        self.states = np.zeros((*shape, 2), np.int32)
        for row, (columns, states) in enumerate(rows):
            self.columns[row, : len(columns)] = columns
            self.states[row, : len(states)] = states
        fitting = NUMBERS_PER_BLOCK // self.states.size
        self.block_size = min(int(self.frames[0]), max(FEWEST_FRAMES_PER_BLOCK, fitting))
        self._emissions = np.zeros((self.block_size, 2, *shape), np.float32)

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
        """The log-probabilities of the states of `rows(block)`, (frames, 2, rows, places), until the next block is
        asked for. What a row has behind its last frame means nothing."""
        rows = self.rows(block)
        for row in range(rows):
            frames = self._relative[row][block.start : block.stop]
            self._emissions[: len(frames), BLANKS, row] = frames[:, self._blank, None]
            # "clip" spares a check
            self._emissions[: len(frames), LABELS, row] = np.take(frames, self.columns[row], axis=1, mode="clip")
        return self._emissions[: len(block), :, :rows]

    def log_probability(self, row: int, score: float) -> float:
        """Of a path through the row's frames. score : of the path, each frame's largest taken off"""
        return float(score + self._peaks[row].sum(dtype=np.float64))


def _places(labels: np.ndarray, blank: int, wildcard: int | None) -> tuple[np.ndarray, np.ndarray]:
    """labels (labels,) → the columns, (places,), and the states, (places, 2), of `Lattice`"""
    needs_blank = (labels[1:] == labels[:-1]) & (labels[1:] != wildcard)
    own = 1 + np.arange(len(labels))  # the place of each label
    own[1:] += np.cumsum(needs_blank)
    between = own[1:][needs_blank] - 1
    columns = np.full(own[-1] + 1, blank)
    columns[own] = labels
    states = np.zeros((len(columns), 2), np.int32)
    states[own, LABELS] = 2 * np.arange(len(labels)) + 1
    states[own, BLANKS] = states[own, LABELS] + 1
    states[between] = states[between - 1, BLANKS, None]
    return columns, states


class Moves(NamedTuple):
    """Where the best path to each state comes from, (frames, rows, places) each. Equals stay where they are.

    entered : whether the label's comes from the place before, not from the label itself
    left : whether a path that goes to the blank, or on to the next label, comes from the label, not from the blank
    """

    entered: np.ndarray
    left: np.ndarray


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
    rows, places = lattice.columns.shape
    # Of the best paths to each state; frame 0 is the one before the block. At the first place is no label.
    scores = np.full((lattice.block_size + 1, 2, rows, places), -np.inf, np.float32)
    scores[0, BLANKS, :, 0] = 0
    best = np.empty((lattice.block_size, rows, places), np.float32)
    shape = (int(lattice.frames[0]), rows, places)
    moves = Moves(np.zeros(shape, bool), np.zeros(shape, bool))
    paths: list[np.ndarray | None] = [None] * rows
    totals = np.zeros(rows)
    for block in lattice.blocks():
        active = lattice.rows(block)
        block_scores = scores[: len(block) + 1, :, :active]
        _advance(block_scores, lattice.emissions(block))
        block_moves = Moves(*(array[block.start : block.stop, :active] for array in moves))
        _compare(block_scores[:-1], best[: len(block), :active], block_moves)
        for row in lattice.ending(block):
            frames = int(lattice.frames[row])
            place = int(lattice.last[row])
            ends = scores[frames - block.start, :, row, place]
            target = lattice.order[row]
            totals[target] = lattice.log_probability(row, ends.max())
            if np.isfinite(totals[target]):
                own_moves = Moves(*(array[:frames, row] for array in moves))
                path = _trace(own_moves, place, is_label=bool(ends[LABELS] > ends[BLANKS]))
                paths[target] = lattice.states[row].reshape(-1)[path]
        scores[0] = scores[len(block)]
    return paths, totals


def _advance(scores: np.ndarray, emissions: np.ndarray) -> None:
    """Fill all but the first frame of scores (frames + 1, 2, rows, places). emissions : (frames, 2, rows, places)"""
    before = scores[:-1]
    after = scores[1:]
    steps = zip(
        before[:, BLANKS],
        before[:, LABELS],
        after[:, BLANKS],
        before[:, LABELS, :, 1:],
        after[:, BLANKS, :, :-1],
        after[:, LABELS, :, 1:],
        after,
        emissions,
        strict=True,
    )
    for blank, label, new_blank, stay, enter, new_label, new, emitted in steps:
        np.maximum(blank, label, out=new_blank)
        np.maximum(stay, enter, out=new_label)
        np.add(new, emitted, out=new)


def _compare(scores: np.ndarray, best: np.ndarray, moves: Moves) -> None:
    """scores (frames, 2, rows, places), before each frame → the moves of each; best, of their shape, is overwritten"""
    blanks, labels = scores[:, BLANKS], scores[:, LABELS]
    np.greater(labels, blanks, out=moves.left)
    np.maximum(labels, blanks, out=best)
    np.greater(best[..., :-1], labels[..., 1:], out=moves.entered[..., 1:])


def _trace(moves: Moves, place: int, is_label: bool) -> np.ndarray:
    """moves : (frames, places) each; place, is_label : where a path ends → 2·place + is_label of each frame"""
    entered, left = (array.tobytes() for array in moves)  # indexing bytes takes a fraction of indexing an array
    frames, width = moves.left.shape
    path = np.zeros(frames, np.int32)
    for frame in range(frames - 1, -1, -1):
        path[frame] = 2 * place + is_label
        start = frame * width
        if is_label:
            if not entered[start + place]:
                continue
            place -= 1
        is_label = left[start + place]
    return path
