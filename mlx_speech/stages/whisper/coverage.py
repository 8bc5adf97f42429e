"""Speech × text → the speech that has no text.

The detector says where somebody speaks, the recogniser where its text stands. Whisper may end a text early, at a
pause or behind a timestamp that opens a segment; what is left without text is heard again (`asr`), and put where it was
said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from mlx_speech.transcript import Chunk, Region, Segment, Word

MIN_SPEECH = 1.0  # seconds of speech without text that are worth a second hearing
LEAST_WORD = 0.05  # seconds of speech that a word takes, on the average of some
MAX_WORD = 2.0  # seconds; a word that seems to last longer has swallowed what stands beside it


def uncovered(chunk: Chunk, segments: Sequence[Segment], *, min_speech: float = MIN_SPEECH) -> list[Chunk]:
    """The stretches of a chunk whose text is missing, from one piece of text to the next.

    chunk : with its `regions` of speech; without any, nothing is missing
    segments : what was recognised in it, in order; where they have words, these say where the text stands
    min_speech : seconds; stretches with less speech are not worth it, nor are shorter remains of a region

    Each stretch is a chunk of its own, with those parts of the regions that lie in it.
    """
    stretches = []
    # words without any time stand where the alignment lost its way, and were said in what follows or comes before
    lost = Counter(word.start for segment in segments for word in segment.words if word.duration == 0)
    end = chunk.start
    for region in [*text_regions(segments), Region(chunk.end, chunk.end)]:
        stretch = Region(end, region.start)
        regions = tuple(overlap(chunk.regions, stretch))
        # what is left of a region beside its words may only be that their times are not exact
        clear = [part for part in regions if part in chunk.regions or part.duration > min_speech]
        beside = lost[stretch.start] + lost[stretch.end]
        if _speech(clear) - beside * MAX_WORD / 2 > min_speech:
            stretches.append(Chunk(stretch.start, stretch.end, regions))
        end = max(end, region.end)
    return stretches


def text_regions(segments: Iterable[Segment]) -> list[Region]:
    """Where the text stands: the words of segments that have some, else the segments; in order."""
    regions: list[Region] = []
    for segment in segments:
        if not segment.words:
            regions.append(Region(segment.start, segment.end))
        for place, word in enumerate(segment.words):
            is_last = place == len(segment.words) - 1
            regions += _spoken_parts(word, is_first=place == 0 and not is_last, is_last=is_last)
    return sorted(regions, key=lambda region: region.start)


def _spoken_parts(word: Region, *, is_first: bool, is_last: bool) -> list[Region]:
    """A word, or the part of a word that is too long in which it is spoken.

    The alignment gives all frames to some word: those of passed over speech behind a text go to its last word, those
    before it to its first. In between nobody knows, so both ends count.
    """
    if word.duration <= MAX_WORD:
        return [Region(word.start, word.end)]
    half = MAX_WORD / 2
    beginning = Region(word.start, word.start + half)
    end = Region(word.end - half, word.end)
    if is_last:
        return [beginning]
    return [end] if is_first else [beginning, end]


def overlap(regions: Iterable[Region], stretch: Region) -> list[Region]:
    """The parts of the regions that lie in the stretch."""
    parts = []
    for region in regions:
        part = Region(max(region.start, stretch.start), min(region.end, stretch.end))
        if part.end > part.start:
            parts.append(part)
    return parts


def region_by_region(chunk: Chunk, *, min_speech: float = MIN_SPEECH) -> list[Chunk]:
    """The regions of a chunk as chunks that reach halfway to their neighbours, short ones together with those behind
    them: where nothing was heard in all of it, a window with less silence may help."""
    groups: list[list[Region]] = []
    for region in chunk.regions:
        if groups and _speech(groups[-1]) <= min_speech:
            groups[-1].append(region)
        else:
            groups.append([region])
    if len(groups) > 1 and _speech(groups[-1]) <= min_speech:
        rest = groups.pop()
        groups[-1] += rest
    chunks = []
    for k, group in enumerate(groups):
        start = (groups[k - 1][-1].end + group[0].start) / 2 if k else chunk.start
        end = (group[-1].end + groups[k + 1][0].start) / 2 if k + 1 < len(groups) else chunk.end
        chunks.append(Chunk(start, end, tuple(group)))
    return chunks


def _speech(regions: Iterable[Region]) -> float:
    return sum(region.duration for region in regions)


def make_room(segments: Iterable[Segment], stretch: Region, decode: Callable[[Sequence[int]], str]) -> list[Segment]:
    """The segments of which none reaches into a stretch that was heard again.

    A segment with words before and behind it becomes two; words that seemed to last into it end or begin there.

    stretch : of those that `uncovered` found
    decode : tokens → text
    """
    result = []
    for segment in segments:
        if not segment.words or segment.end <= stretch.start or stretch.end <= segment.start:
            result.append(segment)
            continue
        count = sum(_is_before(word, stretch, segment) for word in segment.words)
        before, behind = _parted(segment, count, decode)
        if before is not None:
            words = tuple(_until(word, stretch.start) for word in before.words)
            result.append(replace(before, end=min(before.end, stretch.start), words=words))
        if behind is not None:
            words = tuple(_from(word, stretch.end) for word in behind.words)
            result.append(replace(behind, start=max(behind.start, stretch.end), words=words))
    return result


def without_misplaced(
    segments: Sequence[Segment],
    heard: Sequence[Segment],
    regions: Sequence[Region],
    decode: Callable[[Sequence[int]], str],
) -> list[Segment]:
    """The segments less the words that were heard again, for the alignment had put them where there is no room for
    them: into a pause, or all into one moment.

    segments : with room for what was heard
    heard : in a stretch between them; where its words are those before or behind it, and too little is spoken in the
        places that these have, they were said once, in the stretch
    regions : of speech; decode : tokens → text
    """
    again = [_plain(word.text) for segment in heard for word in segment.words]
    start = heard[0].start
    before = [word for segment in segments if segment.end <= start for word in segment.words]
    behind = [word for segment in segments if segment.end > start for word in segment.words]
    for words in (before[-len(again) :], behind[: len(again)]):
        speech = sum(_speech(overlap(regions, word)) for word in words)
        misplaced = speech <= LEAST_WORD * len(words)
        if again and misplaced and [_plain(word.text) for word in words] == again:
            segments = _without(segments, words, decode)
    return list(segments)


def _without(
    segments: Iterable[Segment], words: Sequence[Word], decode: Callable[[Sequence[int]], str]
) -> list[Segment]:
    """The segments less some of the words, which are the first or the last of theirs."""
    result: list[Segment] = []
    for segment in segments:
        gone = [word for word in segment.words if any(word is other for other in words)]
        left: Segment | None = segment
        if gone and gone[0] is segment.words[0]:
            left = _parted(segment, len(gone), decode)[1]
        elif gone:
            left = _parted(segment, len(segment.words) - len(gone), decode)[0]
        if left is not None:
            result.append(left)
    return result


def _plain(word: str) -> str:
    """Without marks, in small letters."""
    return "".join(character for character in word.casefold() if character.isalnum())


def _is_before(word: Word, stretch: Region, segment: Segment) -> bool:
    """Whether a word is spoken before the stretch, as `_spoken_parts` has it."""
    is_first = word is segment.words[0] and len(segment.words) > 1
    if word.start < stretch.start and stretch.end < word.end:
        return not is_first
    return word.start + word.end < stretch.start + stretch.end


def _until(word: Word, end: float) -> Word:
    return replace(word, start=min(word.start, end), end=min(word.end, end))


def _from(word: Word, start: float) -> Word:
    return replace(word, start=max(word.start, start), end=max(word.end, start))


def _parted(
    segment: Segment, count: int, decode: Callable[[Sequence[int]], str]
) -> tuple[Segment | None, Segment | None]:
    """A segment up to its first `count` words, and from there on; None where that has no words."""
    if count in (0, len(segment.words)):
        return (segment, None) if count else (None, segment)
    text, spans = segment.placed()
    place = spans[count][0]
    tokens = segment.tokens
    said = text[:place].strip()
    # a character may be several tokens, and has its own letter only with the last
    cut = next((k for k in range(len(tokens)) if decode(tokens[:k]).strip().startswith(said)), len(tokens))
    before = replace(segment, text=text[:place].rstrip(), words=segment.words[:count], tokens=tokens[:cut])
    spaced = text[:place] != before.text
    behind = replace(segment, text=text[place:], words=segment.words[count:], tokens=tokens[cut:], spaced=spaced)
    return before, behind
