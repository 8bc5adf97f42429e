"""Speech × text → the speech that has no text.

The detector says where somebody speaks, the recogniser where its text stands. Whisper may end a text early, at a
pause or behind a timestamp that opens a segment; what is left without text is heard again (`asr`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlx_speech.transcript import Chunk, Region, Segment

MIN_SPEECH = 1.0  # seconds of speech without text that are worth a second hearing
MAX_WORD = 2.0  # seconds; a word that seems to last longer has swallowed what stands beside it


def uncovered(chunk: Chunk, segments: Sequence[Segment], *, min_speech: float = MIN_SPEECH) -> list[Chunk]:
    """The stretches of a chunk whose text is missing, from one piece of text to the next.

    chunk : with its `regions` of speech; without any, nothing is missing
    segments : what was recognised in it, in order; where they have words, these say where the text stands
    min_speech : seconds; stretches with less speech are not worth it, nor are shorter remains of a region

    Each stretch is a chunk of its own, with those parts of the regions that lie in it.
    """
    stretches = []
    end = chunk.start
    for region in [*text_regions(segments), Region(chunk.end, chunk.end)]:
        stretch = Region(end, region.start)
        regions = tuple(overlap(chunk.regions, stretch))
        # what is left of a region beside its words may only be that their times are not exact
        clear = [part for part in regions if part in chunk.regions or part.duration > min_speech]
        if sum(part.duration for part in clear) > min_speech:
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
    """Every region of a chunk that is long enough, as a chunk that reaches halfway to its neighbours: where nothing was
    heard in all of it, a window with less silence may help."""
    chunks = []
    for k, region in enumerate(chunk.regions):
        if region.duration <= min_speech:
            continue
        start = (chunk.regions[k - 1].end + region.start) / 2 if k else chunk.start
        end = (region.end + chunk.regions[k + 1].start) / 2 if k + 1 < len(chunk.regions) else chunk.end
        chunks.append(Chunk(start, end, (region,)))
    return chunks
