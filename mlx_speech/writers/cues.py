"""Transcript → subtitle cues, which SRT and WebVTT share.

By default a cue holds at most two lines of 42 columns and 7 s, of one segment and one speaker. Cues end at a full stop,
else at a comma or pause, and are about equally full. A column is a character; wide ones (Chinese, Japanese, Korean,
emoji) take two. Every line is a piece of a segment's text as it stands there, with runs of white space as one space; it
begins where `spacing.breaks` lets it, never within a number, a word or a character that a line can hold. With
`max_line_width` or `max_line_count` cues are built as by `SubtitlesWriter` of whisperx (3.8).
"""

from __future__ import annotations

import math
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise
from typing import TypedDict

from mlx_speech.errors import OptionError
from mlx_speech.fields import check, option
from mlx_speech.languages import CLOSING, OPENING, breaks, clusters
from mlx_speech.transcript import Region, Segment, Transcript, space_between

MAX_WIDTH = 42  # columns of a line; two lines a cue
LONG_PAUSE = 1.5  # seconds; always ends a cue
PAUSE = 0.3  # seconds; a good place to end one
WHISPERX_PAUSE = 3.0  # seconds from the start of one word to that of the next
Cue = tuple[int, int, str]  # start and end in milliseconds, the first before the second, and the text

_BREAKS = re.compile(r"[ \t-\r\x1c-\x1f\x85\u2028\u2029]+")  # not the spaces that keep words together
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
class _Word(Region):
    """What a line takes whole: a word as the text writes it, a character of a script without spaces, or a part of
    either that no line can hold. space : between it and the one before"""

    text: str
    space: str
    speaker: str | None


@dataclass(frozen=True)
class _Block:
    """Lines of words shown together."""

    speaker: str | None
    lines: list[list[_Word]]

    @property
    def words(self) -> list[_Word]:
        return [word for line in self.lines for word in line]

    def text(self, escape: Callable[[str], str], marked: _Word | None = None) -> str:
        def spelled(word: _Word) -> str:
            return f"<u>{escape(word.text)}</u>" if word is marked else escape(word.text)

        def joined(line: list[_Word]) -> str:
            gaps = ["", *(word.space for word in line[1:])]
            return "".join(gap + spelled(word) for gap, word in zip(gaps, line, strict=False))

        lines = [joined(line) for line in self.lines]  # the first has no words where the name fills it
        lines[0] = (escape(_head(self.speaker)) + lines[0]).rstrip(" ")
        return _ARROW.sub("->", "\n".join(lines))


def cues(transcript: Transcript, layout: Layout, escape: Callable[[str], str] = str) -> Iterator[Cue]:
    """The cues of a transcript in order; they do not overlap.

    escape : applied to text, not to the tags of highlighted words
    """
    segments: list[tuple[Segment, list[_Word]]] = []
    last_text = ""
    for segment in transcript.segments:
        segments.append((segment, _words(segment, space_between(last_text, segment))))
        last_text = segment.text
    if layout.max_line_width is None and layout.max_line_count is None:
        limit = layout.max_cue_duration
        blocks = [block for _, words in segments for run in _runs(words) for block in _blocks(run, limit)]
    else:
        limit = math.inf
        blocks = list(_whisperx_blocks(segments, layout))
    blocks.sort(key=lambda block: min(word.start for word in block.words))
    for block, (start, end) in zip(blocks, _times(blocks, limit), strict=True):
        yield from _shown(block, start, end, block.words if layout.highlight_words else (), escape)


def one_line(text: str) -> str:
    """`text` without surrounding space, line breaks and tabs; those within become one space."""
    return _BREAKS.sub(" ", text).replace("\0", "\ufffd").strip()


def columns(text: str) -> int:
    """The width of `text`: two for a wide character, one for any other."""
    return len(text) + sum(unicodedata.east_asian_width(char) in "WF" for char in text)


def _head(speaker: str | None) -> str:
    """A speaker's name as it begins a cue; cut short enough for a line."""
    name = one_line(speaker or "")
    while columns(name) > MAX_WIDTH - len("[]:"):
        name = name[:-2] + "…"
    return f"[{name}]: " if name else ""


def _words(segment: Segment, space: str) -> list[_Word]:
    """The text of a segment in words, none of them empty, with the times of those it has; what has none is spread over
    the time between. space : before the text"""
    known = [replace(word, text=one_line(word.text)) for word in segment.words]
    known = [word for word in known if word.text]
    text, spans = replace(segment, text=one_line(segment.text), words=tuple(known)).placed()
    starts = [start for start, _ in spans]
    words: list[_Word] = []
    timed: list[bool] = []
    for start, end in pairwise([0, *_edges(text, spans), len(text)]):
        written = text[start:end].rstrip()
        if written:
            own = known[bisect_left(starts, start) : bisect_left(starts, end)]
            begin, finish = min((w.start for w in own), default=0.0), max((w.end for w in own), default=0.0)
            speaker = next((word.speaker for word in own if word.speaker), None)
            words.append(_Word(begin, finish, written, space, speaker))
            timed.append(bool(own))
            space = ""
        space += text[start + len(written) : end]
    return _complete(_with_speakers(words, segment.speaker), timed, segment)


def _edges(text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Where the text may be parted, but within none of the words."""
    starts = [start for start, _ in spans]
    places = []
    for place in breaks(text):
        word = bisect_right(starts, place) - 1
        if word < 0 or not spans[word][0] < place < spans[word][1]:
            places.append(place)
    return places


def _with_speakers(words: list[_Word], default: str | None) -> list[_Word]:
    """Words of nobody are said by who says the rest of the segment, or else the word before."""
    speaker = default or next((word.speaker for word in words if word.speaker), None)
    result: list[_Word] = []
    for word in words:
        speaker = word.speaker or default or speaker
        result.append(replace(word, speaker=speaker))
    return result


def _complete(words: list[_Word], timed: list[bool], segment: Segment) -> list[_Word]:
    """The words, with those that are not timed spread between their neighbours."""
    result: list[_Word] = []
    for known, group in groupby(range(len(words)), key=timed.__getitem__):
        run = list(group)
        own = words[run[0] : run[-1] + 1]
        if not known:
            start = words[run[0] - 1].end if run[0] else segment.start
            end = words[run[-1] + 1].start if run[-1] + 1 < len(words) else segment.end
            own = _spread(Region(start, max(start, end)), own)
        result += own
    return result


def _spread(region: Region, words: Sequence[_Word]) -> list[_Word]:
    """`words` with times in proportion to their width, together as long as `region`."""
    ends = list(accumulate((columns(word.text) for word in words), initial=0))
    edges = [region.start + region.duration * end / max(1, ends[-1]) for end in ends]
    return [replace(word, start=start, end=end) for word, (start, end) in zip(words, pairwise(edges), strict=True)]


def _parts(word: _Word) -> list[_Word]:
    """A word in parts that fit a line; cut where the text may be, else between characters if that can be helped."""
    if columns(word.text) <= MAX_WIDTH:
        return [word]
    parts: list[_Word] = []
    rest, space = word.text, word.space
    while rest:
        size = _fitting(rest)
        written = rest[:size].rstrip()
        if written:
            parts.append(replace(word, text=written, space=space))
            space = ""
        space += rest[len(written) : size]
        rest = rest[size:]
    return _spread(word, parts)


def _fitting(text: str) -> int:
    """How much of a text, from its start, one line holds."""
    if columns(text) <= MAX_WIDTH:
        return len(text)
    head = text[: 2 * MAX_WIDTH]
    between_characters = accumulate(map(len, clusters(head)))
    for places in (breaks(head), between_characters):
        fitting = [place for place in places if columns(head[:place].rstrip()) <= MAX_WIDTH]
        if fitting:
            return fitting[-1]
    return next(size for size in range(MAX_WIDTH, 0, -1) if columns(text[:size]) <= MAX_WIDTH)


def _runs(words: Iterable[_Word]) -> list[list[_Word]]:
    """Words between changes of the speaker and long pauses."""
    runs: list[list[_Word]] = []
    for word in words:
        last = runs[-1][-1] if runs else None
        if last is None or last.speaker != word.speaker or word.start - last.end > LONG_PAUSE:
            runs.append([])
        runs[-1] += _parts(word)
    return runs


def _blocks(words: list[_Word], max_duration: float) -> Iterator[_Block]:
    """The cheapest division of a run into blocks that fit: few, equally full, and cut at good places."""
    head, total = columns(_head(words[0].speaker)), len(words)
    ends = list(accumulate((columns(word.space + word.text) for word in words), initial=0))

    def width(start: int, end: int) -> int:
        return ends[end] - ends[start] - columns(words[start].space) if end > start else 0

    def first_line(start: int) -> int:
        end = start
        while end < total and head + width(start, end + 1) <= MAX_WIDTH:
            end += 1
        return end

    breaks = [0.0, *(_break_cost(before, after) for before, after in pairwise(words)), 0.0]
    costs, origins = [0.0] + [math.inf] * total, [0] * (total + 1)
    for start in range(total):
        full = first_line(start)
        for end in range(start + 1, total + 1):
            lasts = words[end - 1].end - words[start].start
            if width(full, end) > MAX_WIDTH or (lasts > max_duration and end > start + 1):
                break
            cost = costs[start] + 1 + breaks[end] + (1 - (head + width(start, end)) / (2 * MAX_WIDTH)) ** 2
            if cost < costs[end]:
                costs[end], origins[end] = cost, start
    edges = [total]
    while edges[-1]:
        edges.append(origins[edges[-1]])
    for end, start in reversed(list(pairwise(edges))):
        full = first_line(start)
        if full >= end:
            yield _Block(words[0].speaker, [words[start:end]])
            continue
        places = [k for k in range(min(start + 1, full), full + 1) if width(k, end) <= MAX_WIDTH]
        middle = min(places, key=lambda k: abs(head + width(start, k) - width(k, end)) + 8 * breaks[k])
        yield _Block(words[0].speaker, [words[start:middle], words[middle:end]])


def _break_cost(before: _Word, after: _Word) -> float:
    """What it costs to part these words: nothing at the end of a sentence, more within a clause, most within a word."""
    edge = before.text[-1] + after.text[0]
    narrow = columns(edge) == 2
    if not after.space and (narrow or edge[0] in OPENING or edge[1] in CLOSING):
        return 10.0
    if _ALL_CLOSING.issuperset(after.text) or _ALL_OPENING.issuperset(before.text):  # "Quoi ?", "« Oui"
        return 10.0
    if edge[0].isdecimal() and _COUNTED.match(after.text):  # "12 500 €"
        return 10.0
    if _ABBREVIATED.search(before.text) or (before.text[-1] == "." and after.text[0].islower()):
        return 1.5
    if _SENTENCE_END.search(before.text):
        return 0.0
    return 0.3 if _CLAUSE_END.search(before.text) or after.start - before.end >= PAUSE else 1.5


def _whisperx_blocks(segments: Iterable[tuple[Segment, list[_Word]]], layout: Layout) -> Iterator[_Block]:
    """whisperx.utils.SubtitlesWriter.iterate_result: words fill lines, lines fill blocks."""
    width = layout.max_line_width or 1000
    keep = layout.max_line_width is None or layout.max_line_count is None  # segments apart
    most = math.inf if layout.max_line_count is None else layout.max_line_count
    lines: list[list[_Word]] = []
    speaker, last, used = None, 0.0, 0
    for segment, words in segments:
        for k, word in enumerate(words):
            paused = not keep and bool(lines) and word.start - last > WHISPERX_PAUSE
            parted = keep and k == 0
            last = word.start
            if lines and used + len(word.text) <= width and not paused and not parted:
                lines[-1].append(word)
                used += len(word.text)
                continue
            if lines and (paused or parted or len(lines) >= most):
                yield _Block(speaker, lines)
                lines = []
            if not lines:
                speaker = segment.speaker
            lines.append([word])
            used = len(word.text)
    if lines:
        yield _Block(speaker, lines)


def _times(blocks: Sequence[_Block], limit: float) -> Iterator[tuple[int, int]]:
    """When each block is shown, in milliseconds: until the next begins, and at least for one."""
    starts = [max(0, round(1000 * min(word.start for word in block.words))) for block in blocks]
    previous = 0
    for block, start, following in zip(blocks, starts, [*starts[1:], math.inf], strict=False):
        start = max(start, previous)
        end = min(round(1000 * max(word.end for word in block.words)), following, start + 1000 * limit)
        previous = max(int(end), start + 1)
        yield start, previous


def _shown(block: _Block, start: int, end: int, marked: Iterable[_Word], escape: Callable[[str], str]) -> Iterator[Cue]:
    """A cue for each marked word that lasts, with the word underlined, and plain ones for the time between."""
    last = start
    for word in marked:
        begin, finish = max(last, round(1000 * word.start)), min(end, round(1000 * word.end))
        if begin < finish:
            if last < begin:
                yield last, begin, block.text(escape)
            yield begin, finish, block.text(escape, marked=word)
            last = finish
    if last < end:
        yield last, end, block.text(escape)
