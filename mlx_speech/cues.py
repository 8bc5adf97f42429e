"""Transcript → subtitle cues, which SRT and WebVTT share.

By default a cue holds at most two lines of 42 columns and 7 s, of one segment and one speaker. Cues end at a full stop,
else at a comma or pause, and are about equally full. A column is a character; wide ones (Chinese, Japanese, Korean,
emoji) take two. With `max_line_width` or `max_line_count` cues are built as by `SubtitlesWriter` of whisperx (3.8).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from mlx_speech.errors import OptionError, in_range
from mlx_speech.transcript import Region, Segment, Transcript, separator

MAX_WIDTH = 42  # columns of a line; two lines a cue
LONG_PAUSE = 1.5  # seconds; always ends a cue
PAUSE = 0.3  # seconds; a good place to end one
WHISPERX_PAUSE = 3.0  # seconds from the start of one word to that of the next
Cue = tuple[int, int, str]  # start and end in milliseconds, the first before the second, and the text

_BREAKS = re.compile(r"[ \t-\r\x1c-\x1f\x85\u2028\u2029]+")  # not the spaces that keep words together
_ARROW = re.compile(r"--+>")
_SENTENCE_END = re.compile(r"[.!?…。！？।؟]['\"”’»)\]」』]*$")
_CLAUSE_END = re.compile(r"[,;:–—、，；：،؛]['\"”’»)\]」』]*$")
_CLOSING = "、。，．！？；：…・」』】》〉）”’»)]},.!?;:%ー々"  # begins no line
_OPENING = "「『【《〈（“‘«([{¿¡"  # ends no line
# where there are no spaces a line may break around any wide character
_WIDE = r"\u1100-\u11ff\u2e80-\ua4cf\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
_UNITS = re.compile(f"[{_WIDE}]|[^{_WIDE}]+")


@dataclass(frozen=True)
class Layout:
    """How results are written; what a format has no use for, it ignores.

    max_line_width, max_line_count : characters of a subtitle's line and lines of a subtitle. Where one is given, cues
        are whisperx's: its width leaves out the spaces between words, with both given a cue may span segments, and
        the time of a cue is not limited.
    highlight_words : a cue for each word, with that word underlined
    max_cue_duration : seconds
    speaker_embeddings : write them too (JSON)

    Raises `OptionError` for values below 1, or for a duration of 0.
    """

    max_line_width: int | None = None
    max_line_count: int | None = None
    highlight_words: bool = False
    max_cue_duration: float = 7.0
    speaker_embeddings: bool = False

    def __post_init__(self) -> None:
        in_range(1, math.inf, max_line_width=self.max_line_width, max_line_count=self.max_line_count)
        if not self.max_cue_duration > 0:
            raise OptionError(f"max_cue_duration is {self.max_cue_duration}: give seconds, above 0")


@dataclass(frozen=True)
class _Word(Region):
    """A word as it stands in a line, or a part of one that no line can hold. space : between it and the one before"""

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

        lines = ["".join(word.space + spelled(word) for word in line).removeprefix(" ") for line in self.lines]
        lines[0] = (escape(_head(self.speaker)) + lines[0]).rstrip(" ")
        return _ARROW.sub("->", "\n".join(lines))


def cues(transcript: Transcript, layout: Layout, escape: Callable[[str], str] = str) -> Iterator[Cue]:
    """The cues of a transcript in order; they do not overlap.

    escape : applied to text, not to the tags of highlighted words
    """
    segments = [(segment, _words(segment, transcript.language)) for segment in transcript.segments]
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


def _words(segment: Segment, language: str | None) -> list[_Word]:
    """A segment's words, none of them empty; where it has none, its text is spread over its time."""
    space = separator(segment.language or language)
    if segment.words:
        spelled = [(one_line(word.text), word) for word in segment.words]
        return [_Word(w.start, w.end, text, space, w.speaker or segment.speaker) for text, w in spelled if text]
    texts = [text for text in one_line(segment.text).split(" ") if text]
    pieces = [(" ", text) for text in texts]
    if not space:
        pieces = [("" if k else " ", unit) for text in texts for k, unit in enumerate(_UNITS.findall(text))]
    return _spread(segment, [_Word(0, 0, text, gap, segment.speaker) for gap, text in pieces])


def _spread(region: Region, words: Sequence[_Word]) -> list[_Word]:
    """`words` with times in proportion to their width, together as long as `region`."""
    ends = list(accumulate((columns(word.text) for word in words), initial=0))
    edges = [region.start + region.duration * end / max(1, ends[-1]) for end in ends]
    return [replace(word, start=start, end=end) for word, (start, end) in zip(words, pairwise(edges), strict=True)]


def _parts(word: _Word) -> list[_Word]:
    """A word in parts that fit a line, cut before no combining mark if that can be helped."""
    parts, rest = [], word.text
    while columns(rest) > MAX_WIDTH:
        fits = next(k for k in range(MAX_WIDTH, 0, -1) if columns(rest[:k]) <= MAX_WIDTH)
        whole = next((k for k in range(fits, 0, -1) if unicodedata.category(rest[k])[0] != "M"), fits)
        parts.append(replace(word, text=rest[:whole], space="" if parts else word.space))
        rest = rest[whole:]
    return _spread(word, [*parts, replace(word, text=rest, space="" if parts else word.space)])


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
    ends = list(accumulate((len(word.space) + columns(word.text) for word in words), initial=0))

    def width(start: int, end: int) -> int:
        return ends[end] - ends[start] - len(words[start].space) if end > start else 0

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
    torn = edge.isalnum() and columns(edge) == 2
    if not after.space and (torn or edge[0] in _OPENING or edge[1] in _CLOSING):
        return 10.0
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
