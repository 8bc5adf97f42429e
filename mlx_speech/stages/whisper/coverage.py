"""Speech × text → the speech that has no text.

The detector says where somebody speaks, the recogniser where its text stands. Whisper may end a
text early, at a pause or behind a timestamp that opens a segment; what is left without text is
heard again (`batched`), and put where it was said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

from mlx_speech.transcript import Chunk, Region, Segment, Word

MIN_SPEECH = 1.0  # seconds of speech without text that are worth a second hearing
MIN_WORD = 0.05  # seconds of speech that a word takes, on the average of several
MAX_WORD = 2.0  # seconds; a word that seems to last longer has swallowed what stands beside it

DecodeText = Callable[[Sequence[int]], str]  # tokens → text


def uncovered(chunk: Chunk, segments: Sequence[Segment], *, min_speech: float = MIN_SPEECH) -> list[Chunk]:
    """The stretches of a chunk whose text is missing, from one piece of text to the next.

    chunk : with its `regions` of speech; without any, nothing is missing
    segments : what was recognised in it, in order; where they have words, these say where the text
        stands
    min_speech : seconds; stretches with less speech are not worth it, nor are shorter remains of a
        region

    Each stretch is a chunk of its own, with those parts of the regions that lie in it.
    """
    stretches = []
    # words without any time stand where the alignment lost its way, and were said in what follows
    # or comes before
    lost_words = Counter(word.start for segment in segments for word in segment.words if word.duration == 0)
    end = chunk.start
    for region in [*text_regions(segments), Region(chunk.end, chunk.end)]:
        stretch = Region(end, region.start)
        regions = tuple(overlap(chunk.regions, stretch))
        # what is left of a region beside its words may only be that their times are not exact
        clear = [part for part in regions if part in chunk.regions or part.duration > min_speech]
        lost_beside = lost_words[stretch.start] + lost_words[stretch.end]
        if _speech(clear) - lost_beside * MAX_WORD / 2 > min_speech:
            stretches.append(Chunk(stretch.start, stretch.end, regions))
        end = max(end, region.end)
    return stretches


def text_regions(segments: Iterable[Segment]) -> list[Region]:
    """Where the text stands: the words of segments that have some, else the segments; in order."""
    regions: list[Region] = []
    for segment in segments:
        if not segment.words:
            regions.append(Region(segment.start, segment.end))
        last = len(segment.words) - 1
        for place, word in enumerate(segment.words):
            is_last = place == last
            is_first = place == 0 and not is_last
            regions += _spoken_parts(word, is_first=is_first, is_last=is_last)
    return sorted(regions, key=lambda region: region.start)


def _spoken_parts(word: Region, *, is_first: bool, is_last: bool) -> list[Region]:
    """A word, or the part of a word that is too long in which it is spoken.

    The alignment gives all frames to some word: those of passed over speech behind a text go to its
    last word, those before it to its first. In between nobody knows, so both ends count.
    """
    if word.duration <= MAX_WORD:
        return [Region(word.start, word.end)]
    half = MAX_WORD / 2
    beginning = Region(word.start, word.start + half)
    end = Region(word.end - half, word.end)
    if is_last:
        return [beginning]
    if is_first:
        return [end]
    return [beginning, end]


def overlap(regions: Iterable[Region], stretch: Region) -> list[Region]:
    """The parts of the regions that lie in the stretch."""
    parts = []
    for region in regions:
        part = Region(max(region.start, stretch.start), min(region.end, stretch.end))
        if part.end > part.start:
            parts.append(part)
    return parts


def region_by_region(chunk: Chunk, *, min_speech: float = MIN_SPEECH) -> list[Chunk]:
    """The regions of a chunk as chunks that reach halfway to their neighbours, short ones together
    with those behind them: where nothing was heard in all of it, a window with less silence may
    help.

    min_speech : seconds of speech that a chunk has, if all of it has as much
    """
    groups: list[list[Region]] = []
    for region in chunk.regions:
        if groups and _speech(groups[-1]) <= min_speech:
            groups[-1].append(region)
        else:
            groups.append([region])
    if len(groups) > 1 and _speech(groups[-1]) <= min_speech:
        last = groups.pop()
        groups[-1] += last
    edges = [chunk.start]
    for before, behind in pairwise(groups):
        edges.append((before[-1].end + behind[0].start) / 2)
    edges.append(chunk.end)
    return [Chunk(edges[k], edges[k + 1], tuple(group)) for k, group in enumerate(groups)]


def _speech(regions: Iterable[Region]) -> float:
    return sum(region.duration for region in regions)


def make_room(segments: Iterable[Segment], stretch: Region, decode: DecodeText) -> list[Segment]:
    """The segments of which none reaches into a stretch that was heard again.

    A segment with words before and behind it becomes two; words that seemed to last into it end or
    begin there.

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
    decode: DecodeText,
) -> list[Segment]:
    """The segments less the words that were heard again, for the alignment had put them where there
    is no room for them: into a pause, or all into one moment.

    segments : with room for what was heard
    heard : in a stretch between them; where its words are those before or behind it, and too little
        is spoken in the places that these have, they were said once, in the stretch
    regions : of speech; decode : tokens → text
    """
    result = list(segments)
    again = [_letters(word.text) for segment in heard for word in segment.words]
    if not again:
        return result
    start = heard[0].start
    before = [word for segment in result if segment.end <= start for word in segment.words]
    behind = [word for segment in result if segment.end > start for word in segment.words]
    for words in (before[-len(again) :], behind[: len(again)]):
        speech = sum(_speech(overlap(regions, word)) for word in words)
        is_misplaced = speech <= MIN_WORD * len(words)
        if is_misplaced and [_letters(word.text) for word in words] == again:
            result = _without(result, words, decode)
    return result


def _without(segments: Iterable[Segment], words: Sequence[Word], decode: DecodeText) -> list[Segment]:
    """The segments less some of their words, which are the first or the last of a segment."""
    result: list[Segment] = []
    for segment in segments:
        gone = [word for word in segment.words if any(word is other for other in words)]
        if not gone:
            result.append(segment)
            continue
        if gone[0] is segment.words[0]:
            _, left = _parted(segment, len(gone), decode)
        else:
            left, _ = _parted(segment, len(segment.words) - len(gone), decode)
        if left is not None:
            result.append(left)
    return result


def _letters(word: str) -> str:
    """A word without marks, in small letters."""
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


def _parted(segment: Segment, count: int, decode: DecodeText) -> tuple[Segment | None, Segment | None]:
    """A segment up to its first `count` words, and from there on; None where that has no words."""
    if count == 0:
        return None, segment
    if count == len(segment.words):
        return segment, None
    text, spans = segment.placed()
    start = spans[count][0]  # of the second part, in the text
    cut = _tokens_of(text[:start].strip(), segment.tokens, decode)
    before = replace(
        segment,
        text=text[:start].rstrip(),
        words=segment.words[:count],
        tokens=segment.tokens[:cut],
        token_logprobs=segment.token_logprobs[:cut],
    )
    behind = replace(
        segment,
        text=text[start:],
        words=segment.words[count:],
        tokens=segment.tokens[cut:],
        token_logprobs=segment.token_logprobs[cut:],
        spaced=text[:start] != before.text,
    )
    return before, behind


def _tokens_of(text: str, tokens: Sequence[int], decode: DecodeText) -> int:
    """How many of the tokens make the text that theirs begins with."""
    # a character may be several tokens, and has its own letter only with the last
    for count in range(len(tokens)):
        if decode(tokens[:count]).strip().startswith(text):
            return count
    return len(tokens)
