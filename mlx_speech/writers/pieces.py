"""The pieces that lines of subtitles are made of: of a segment's text as it is written, each with its time.

A piece is what a line takes whole: a word as the text writes it, a character of a script without spaces, or a part of
either that no line can hold. Widths are in columns: a character is one; wide ones (Chinese, Japanese, Korean, emoji)
are two.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise

from mlx_speech.languages import breaks, clusters
from mlx_speech.transcript import Region, Segment, Word

MAX_WIDTH = 42  # columns of a line

_LINE_BREAKS = re.compile(r"[ \t-\r\x1c-\x1f\x85\u2028\u2029]+")  # not the spaces that keep words together


@dataclass(frozen=True)
class Piece(Region):
    """A piece of a line. space : between it and the one before"""

    text: str
    space: str
    speaker: str | None


def one_line(text: str) -> str:
    """`text` without surrounding space, line breaks and tabs; those within become one space."""
    return _LINE_BREAKS.sub(" ", text).replace("\0", "\ufffd").strip()


def columns(text: str) -> int:
    """The width of `text`: two for a wide character, one for any other."""
    return len(text) + sum(unicodedata.east_asian_width(char) in "WF" for char in text)


def pieces_of(segment: Segment, space: str) -> list[Piece]:
    """The text of a segment in pieces, none of them empty, with the times of its words; what has none is spread over
    the time between. space : before the text"""
    words: list[Word] = []
    for word in segment.words:
        text = one_line(word.text)
        if text:
            words.append(replace(word, text=text))
    text, spans = replace(segment, text=one_line(segment.text), words=tuple(words)).placed()
    starts = [start for start, _ in spans]
    pieces: list[Piece] = []
    timed: list[bool] = []
    for start, end in pairwise([0, *_edges(text, spans), len(text)]):
        written = text[start:end].rstrip()
        if written:
            within = words[bisect_left(starts, start) : bisect_left(starts, end)]
            pieces.append(_piece(written, space, within))
            timed.append(bool(within))
            space = ""
        space += text[start + len(written) : end]
    pieces = _with_speakers(pieces, segment.speaker)
    return _with_times(pieces, timed, segment)


def fit_line(piece: Piece) -> list[Piece]:
    """A piece in parts that fit a line; cut where the text may be, else between characters if that can be helped."""
    if columns(piece.text) <= MAX_WIDTH:
        return [piece]
    parts: list[Piece] = []
    rest = piece.text
    space = piece.space
    while rest:
        size = _fitting_size(rest)
        written = rest[:size].rstrip()
        if written:
            parts.append(replace(piece, text=written, space=space))
            space = ""
        space += rest[len(written) : size]
        rest = rest[size:]
    return _spread(parts, piece)


def _piece(text: str, space: str, words: Sequence[Word]) -> Piece:
    """words : those within the piece; without any it has no time yet"""
    return Piece(
        start=min((word.start for word in words), default=0.0),
        end=max((word.end for word in words), default=0.0),
        text=text,
        space=space,
        speaker=next((word.speaker for word in words if word.speaker), None),
    )


def _edges(text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Where the text may be parted, but within none of the words."""
    starts = [start for start, _ in spans]
    edges: list[int] = []
    for place in breaks(text):
        word = bisect_right(starts, place) - 1
        if word < 0 or not spans[word][0] < place < spans[word][1]:
            edges.append(place)
    return edges


def _with_speakers(pieces: Sequence[Piece], default: str | None) -> list[Piece]:
    """Pieces of nobody are said by who says the rest of the segment, or else the piece before."""
    last_speaker = default or next((piece.speaker for piece in pieces if piece.speaker), None)
    result: list[Piece] = []
    for piece in pieces:
        last_speaker = piece.speaker or default or last_speaker
        result.append(replace(piece, speaker=last_speaker))
    return result


def _with_times(pieces: Sequence[Piece], timed: Sequence[bool], segment: Segment) -> list[Piece]:
    """The pieces, with those that are not timed spread between their neighbours."""
    result: list[Piece] = []
    for is_timed, indices in groupby(range(len(pieces)), key=timed.__getitem__):
        run = list(indices)
        first = run[0]
        behind = run[-1] + 1
        if is_timed:
            result += pieces[first:behind]
            continue
        start = pieces[first - 1].end if first > 0 else segment.start
        end = pieces[behind].start if behind < len(pieces) else segment.end
        result += _spread(pieces[first:behind], Region(start, max(start, end)))
    return result


def _spread(pieces: Sequence[Piece], region: Region) -> list[Piece]:
    """The pieces with times in proportion to their widths, together as long as `region`."""
    widths = (columns(piece.text) for piece in pieces)
    ends = list(accumulate(widths, initial=0))
    total = max(1, ends[-1])
    edges = [region.start + region.duration * end / total for end in ends]
    result: list[Piece] = []
    for piece, (start, end) in zip(pieces, pairwise(edges), strict=True):
        result.append(replace(piece, start=start, end=end))
    return result


def _fitting_size(text: str) -> int:
    """How many characters of a text, from its start, one line holds."""
    if columns(text) <= MAX_WIDTH:
        return len(text)
    head = text[: 2 * MAX_WIDTH]
    between_characters = accumulate(len(cluster) for cluster in clusters(head))
    for places in (breaks(head), between_characters):
        fitting = [place for place in places if columns(head[:place].rstrip()) <= MAX_WIDTH]
        if fitting:
            return fitting[-1]
    size = MAX_WIDTH
    while columns(text[:size]) > MAX_WIDTH:
        size -= 1
    return size
