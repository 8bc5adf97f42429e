"""Transcript → subtitle cues, which SRT and WebVTT share.

By default a cue holds at most two lines of 42 columns and 7 s, of one segment and one speaker. Cues end at a full stop,
else at a comma or pause, and are about equally full. Every line is a piece of a segment's text as it stands there, with
runs of white space as one space; it begins where `languages.breaks` lets it, never within a number, a word or a
character that a line can hold. With `max_line_width` or `max_line_count` cues are built as by `SubtitlesWriter` of
whisperx (3.8).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TypedDict

from mlx_speech.errors import OptionError
from mlx_speech.fields import check, option
from mlx_speech.languages import CLOSING, OPENING
from mlx_speech.transcript import Segment, Transcript, space_between
from mlx_speech.writers.pieces import MAX_WIDTH, Piece, columns, fit_line, one_line, pieces_of

LONG_PAUSE = 1.5  # seconds; always ends a cue
PAUSE = 0.3  # seconds; a good place to end one
WHISPERX_PAUSE = 3.0  # seconds from the start of one word to that of the next
WHISPERX_WIDTH = 1000  # characters of a line, where nobody gives another width
Cue = tuple[int, int, str]  # start and end in milliseconds, the first before the second, and the text

# What it costs to part two pieces, beside 1 for a cue and at most 1 for the room that it leaves empty.
NEVER = 10.0  # but where nothing else fits
WITHIN_CLAUSE = 1.5
BETWEEN_CLAUSES = 0.3
BETWEEN_SENTENCES = 0.0
MIDDLE_WEIGHT = 8  # columns that the two lines of a cue may differ by for a cost of 1 less

_ARROW = re.compile(r"--+>")
_SENTENCE_END = re.compile(r"[.!?…。！？।؟]['\"”’»)\]」』]*$")
_CLAUSE_END = re.compile(r"[,;:–—、，；：،؛]['\"”’»)\]」』]*$")
_ABBREVIATED = re.compile(r"(?:^|[.(])(?:\d{1,2}|[^\W\d_])\.$")  # or an ordinal: "e.g.", "U.S.", "3."
_ALL_CLOSING = frozenset(CLOSING)
_ALL_OPENING = frozenset(OPENING)
# with a digit before the space: the rest of a number, or what it counts
_COUNTED = re.compile(r"\d{3}(?!\d)|[$€£¥₩%‰°]")


@dataclass(frozen=True)
class Layout:
    """How results are written; what a format has no use for, it ignores.

    Where `max_line_width` or `max_line_count` is given, cues are whisperx's: its width leaves out the spaces between
    words, with both given a cue may span segments, and the time of a cue is not limited.

    Raises `OptionError` for values of another type, values below 1, or a duration of 0.
    """

    max_line_width: int | None = option(None, "characters a line", unset="42", low=1)
    max_line_count: int | None = option(None, "lines a cue; needs `max_line_width`", unset="2", low=1)
    highlight_words: bool = option(False, "underline each word as it is spoken, in a cue of its own")
    max_cue_duration: float = option(7.0, "seconds a cue", advice="give seconds, above 0")
    speaker_embeddings: bool = option(False, "a vector per speaker, in the json")

    def __post_init__(self) -> None:
        check(self)
        if not self.max_cue_duration > 0:  # NaN too
            raise OptionError(f"max_cue_duration is {self.max_cue_duration}: give seconds, above 0")


class LayoutKeywords(TypedDict, total=False):
    """The fields of `Layout` as keywords."""

    max_line_width: int | None
    max_line_count: int | None
    highlight_words: bool
    max_cue_duration: float
    speaker_embeddings: bool


@dataclass(frozen=True)
class _Block:
    """Lines of pieces shown together; the first has none where the speaker's name fills it."""

    speaker: str | None
    lines: list[list[Piece]]

    @property
    def pieces(self) -> list[Piece]:
        return [piece for line in self.lines for piece in line]

    def text(self, escape: Callable[[str], str], marked: Piece | None = None) -> str:
        """The lines as they are shown, with the speaker's name before them and one piece underlined."""
        lines = [_line_text(line, escape, marked) for line in self.lines]
        lines[0] = (escape(_head(self.speaker)) + lines[0]).rstrip(" ")
        return _ARROW.sub("->", "\n".join(lines))


def _line_text(line: Sequence[Piece], escape: Callable[[str], str], marked: Piece | None) -> str:
    text = ""
    for index, piece in enumerate(line):
        if index > 0:
            text += piece.space
        if piece is marked:
            text += f"<u>{escape(piece.text)}</u>"
        else:
            text += escape(piece.text)
    return text


def _head(speaker: str | None) -> str:
    """A speaker's name as it begins a cue; cut short enough for a line."""
    name = one_line(speaker or "")
    while columns(name) > MAX_WIDTH - len("[]:"):
        name = name[:-2] + "…"
    return f"[{name}]: " if name else ""


def cues(transcript: Transcript, layout: Layout, escape: Callable[[str], str] = str) -> Iterator[Cue]:
    """The cues of a transcript in order; they do not overlap.

    escape : applied to text, not to the tags of highlighted words
    """
    segments: list[tuple[Segment, list[Piece]]] = []
    last_text = ""
    for segment in transcript.segments:
        segments.append((segment, pieces_of(segment, space_between(last_text, segment))))
        last_text = segment.text
    if layout.max_line_width is None and layout.max_line_count is None:
        max_duration = layout.max_cue_duration
        blocks = _own_blocks(segments, max_duration)
    else:
        max_duration = math.inf
        blocks = list(_whisperx_blocks(segments, layout))
    blocks.sort(key=_block_start)
    for block, (start, end) in zip(blocks, _block_times(blocks, max_duration), strict=True):
        if layout.highlight_words:
            yield from _highlighted(block, start, end, escape)
        else:
            yield start, end, block.text(escape)


def _block_start(block: _Block) -> float:
    """Seconds."""
    return min(piece.start for piece in block.pieces)


def _block_end(block: _Block) -> float:
    """Seconds."""
    return max(piece.end for piece in block.pieces)


def _block_times(blocks: Sequence[_Block], max_duration: float) -> Iterator[tuple[int, int]]:
    """When each block is shown, in milliseconds: until the next begins, and at least for one."""
    starts = [max(0, round(1000 * _block_start(block))) for block in blocks]
    next_starts = [*starts[1:], math.inf]
    last_end = 0
    for block, own_start, next_start in zip(blocks, starts, next_starts, strict=False):
        start = max(own_start, last_end)
        end = min(round(1000 * _block_end(block)), next_start, start + 1000 * max_duration)
        last_end = max(int(end), start + 1)
        yield start, last_end


def _highlighted(block: _Block, start: int, end: int, escape: Callable[[str], str]) -> Iterator[Cue]:
    """A cue for each piece that lasts, with the piece underlined, and plain ones for the time between."""
    last_end = start
    for piece in block.pieces:
        piece_start = max(last_end, round(1000 * piece.start))
        piece_end = min(end, round(1000 * piece.end))
        if piece_start >= piece_end:
            continue
        if last_end < piece_start:
            yield last_end, piece_start, block.text(escape)
        yield piece_start, piece_end, block.text(escape, marked=piece)
        last_end = piece_end
    if last_end < end:
        yield last_end, end, block.text(escape)


# --- cues of two lines ------------------------------------------------------------------------------------------------


def _own_blocks(segments: Iterable[tuple[Segment, list[Piece]]], max_duration: float) -> list[_Block]:
    blocks: list[_Block] = []
    for _, pieces in segments:
        for run in _runs(pieces):
            blocks += _Run(run).blocks(max_duration)
    return blocks


def _runs(pieces: Iterable[Piece]) -> list[list[Piece]]:
    """Pieces between changes of the speaker and long pauses; those that are too wide for a line are cut."""
    runs: list[list[Piece]] = []
    for piece in pieces:
        last = runs[-1][-1] if runs else None
        if last is None or last.speaker != piece.speaker or piece.start - last.end > LONG_PAUSE:
            runs.append([])
        runs[-1] += fit_line(piece)
    return runs


class _Run:
    """Pieces of one speaker that follow each other, to be divided into blocks of one or two lines."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = pieces
        self._speaker = pieces[0].speaker
        self._head = columns(_head(self._speaker))  # columns of the name before each block
        widths = (columns(piece.space + piece.text) for piece in pieces)
        self._ends = list(accumulate(widths, initial=0))
        costs = [_break_cost(before, after) for before, after in pairwise(pieces)]
        self._break_costs = [0.0, *costs, 0.0]  # of a block that ends before the piece of the same index

    def blocks(self, max_duration: float) -> list[_Block]:
        """The cheapest division into blocks that fit: few, equally full, and cut at good places."""
        edges = self._edges(max_duration)
        return [_Block(self._speaker, self._lines(start, end)) for start, end in pairwise(edges)]

    def _edges(self, max_duration: float) -> list[int]:
        """Where blocks begin, and the number of pieces: the shortest path over all places to cut."""
        total = len(self._pieces)
        costs = [0.0] + [math.inf] * total
        origins = [0] * (total + 1)
        for start in range(total):
            line_end = self._first_line_end(start)
            for end in range(start + 1, total + 1):
                if self._width(line_end, end) > MAX_WIDTH:
                    break
                duration = self._pieces[end - 1].end - self._pieces[start].start
                if duration > max_duration and end > start + 1:
                    break
                fullness = (self._head + self._width(start, end)) / (2 * MAX_WIDTH)
                cost = costs[start] + 1 + self._break_costs[end] + (1 - fullness) ** 2
                if cost < costs[end]:
                    costs[end] = cost
                    origins[end] = start
        edges = [total]
        while edges[-1] > 0:
            edges.append(origins[edges[-1]])
        edges.reverse()
        return edges

    def _lines(self, start: int, end: int) -> list[list[Piece]]:
        """The pieces from `start` to `end` in one line, or in two of about the same width."""
        line_end = self._first_line_end(start)
        if line_end >= end:
            return [list(self._pieces[start:end])]
        best_middle = line_end
        least_cost = math.inf
        # the first line is empty where the name leaves no room for a piece
        for middle in range(min(start + 1, line_end), line_end + 1):
            second_width = self._width(middle, end)
            if second_width > MAX_WIDTH:
                continue
            difference = abs(self._head + self._width(start, middle) - second_width)
            cost = difference + MIDDLE_WEIGHT * self._break_costs[middle]
            if cost < least_cost:
                least_cost = cost
                best_middle = middle
        return [list(self._pieces[start:best_middle]), list(self._pieces[best_middle:end])]

    def _first_line_end(self, start: int) -> int:
        """The first piece that a line from `start` on, with the name before it, does not hold."""
        end = start
        while end < len(self._pieces) and self._head + self._width(start, end + 1) <= MAX_WIDTH:
            end += 1
        return end

    def _width(self, start: int, end: int) -> int:
        """Columns of the pieces from `start` to `end`, without the space before the first."""
        if end <= start:
            return 0
        return self._ends[end] - self._ends[start] - columns(self._pieces[start].space)


def _break_cost(before: Piece, after: Piece) -> float:
    """What it costs to part them: nothing at the end of a sentence, more within a clause, most within a word."""
    edge = before.text[-1] + after.text[0]
    narrow = columns(edge) == 2
    if not after.space and (narrow or edge[0] in OPENING or edge[1] in CLOSING):
        return NEVER
    if _ALL_CLOSING.issuperset(after.text) or _ALL_OPENING.issuperset(before.text):  # "Quoi ?", "« Oui"
        return NEVER
    if edge[0].isdecimal() and _COUNTED.match(after.text):  # "12 500 €"
        return NEVER
    if _ABBREVIATED.search(before.text) or (before.text[-1] == "." and after.text[0].islower()):
        return WITHIN_CLAUSE
    if _SENTENCE_END.search(before.text):
        return BETWEEN_SENTENCES
    if _CLAUSE_END.search(before.text) or after.start - before.end >= PAUSE:
        return BETWEEN_CLAUSES
    return WITHIN_CLAUSE


# --- whisperx's cues --------------------------------------------------------------------------------------------------


def _whisperx_blocks(segments: Iterable[tuple[Segment, list[Piece]]], layout: Layout) -> Iterator[_Block]:
    """whisperx.utils.SubtitlesWriter.iterate_result: words fill lines, lines fill blocks."""
    max_width = layout.max_line_width or WHISPERX_WIDTH
    max_lines = layout.max_line_count or math.inf
    # only with both given may a block span segments
    segments_apart = layout.max_line_width is None or layout.max_line_count is None
    lines: list[list[Piece]] = []
    speaker: str | None = None
    last_start = 0.0
    width = 0  # of the last line: characters, without the spaces, as whisperx counts
    for segment, pieces in segments:
        for index, piece in enumerate(pieces):
            paused = piece.start - last_start > WHISPERX_PAUSE
            is_new_block = index == 0 if segments_apart else paused
            last_start = piece.start
            if lines and not is_new_block and width + len(piece.text) <= max_width:
                lines[-1].append(piece)
                width += len(piece.text)
                continue
            if lines and (is_new_block or len(lines) >= max_lines):
                yield _Block(speaker, lines)
                lines = []
            if not lines:
                speaker = segment.speaker
            lines.append([piece])
            width = len(piece.text)
    if lines:
        yield _Block(speaker, lines)
