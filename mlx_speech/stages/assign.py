"""Words × speaker turns → who says what.

After `assign_word_speakers` of whisperx (3.8), with these differences: words are compared with the turns that do not
overlap, a word a little off every turn takes the nearest one's speaker (by the gap between them, where whisperx
compares middles), and a segment is split where its speaker changes.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate

from mlx_speech.transcript import Diarization, Region, Segment, Turn

MAX_GAP = 0.5  # seconds from a word to a turn it may still belong to
SHORT_WORD = 0.5  # seconds; only a word this short may be given to its neighbours' speaker


def assign_speakers(
    segments: Iterable[Segment], diarization: Diarization, *, fill_nearest: bool = False, split: bool = True
) -> tuple[Segment, ...]:
    """Give words and segments their speakers; where nobody speaks within 0.5 s the speaker stays None.

    diarization : `exclusive` is used, or `turns` where there are no exclusive ones
    fill_nearest : take the nearest turn's speaker, however far it is
    split : one segment for each speaker. A short word that is barely in another speaker's turn, between two words of
        one speaker, goes to that one first. Without it a segment's speaker is the one it overlaps most.
    """
    turns = _Turns(diarization.exclusive or diarization.turns)
    gap = math.inf if fill_nearest else MAX_GAP
    result: list[Segment] = []
    for segment in segments:
        if split:
            speakers = _speakers_of_words(segment, turns, gap)
        else:
            speakers = [turns.speaker(word, gap)[0] for word in segment.words]
        words = tuple(replace(word, speaker=name) for word, name in zip(segment.words, speakers, strict=True))
        if split and any(speakers):
            result += _split(replace(segment, words=words))
        else:
            speaker, _ = turns.speaker(segment, gap)
            result.append(replace(segment, words=words, speaker=speaker))
    return tuple(result)


class _Turns:
    """Turns by start. Those that can touch a region are found by bisection; where none overlap, they are a handful."""

    def __init__(self, turns: Iterable[Turn]) -> None:
        self.turns = sorted(turns, key=lambda turn: turn.start)
        self.starts = [turn.start for turn in self.turns]
        ends = [turn.end for turn in self.turns]
        # for each turn, which of those up to it ends last
        self.latest = list(accumulate(range(len(ends)), lambda a, b: b if ends[b] > ends[a] else a))
        self.reach = [ends[k] for k in self.latest]

    def speaker(self, region: Region, gap: float) -> tuple[str | None, float]:
        """Who speaks most of the region, the earlier of equals, and for how long; or within `gap` seconds of it."""
        low = bisect_right(self.reach, region.start)
        high = bisect_left(self.starts, region.end)
        seconds: dict[str, float] = {}
        for turn in self.turns[low:high]:
            shared = min(turn.end, region.end) - max(turn.start, region.start)
            if shared > 0:
                seconds[turn.speaker] = seconds.get(turn.speaker, 0.0) + shared
        if seconds:
            return max(seconds.items(), key=lambda item: item[1])
        candidates = self.turns[low : high + 1]
        if low:
            candidates.insert(0, self.turns[self.latest[low - 1]])
        closest = min(candidates, key=lambda turn: _gap(turn, region), default=None)
        if closest is None or _gap(closest, region) > gap:
            return None, 0.0
        return closest.speaker, 0.0


def _gap(one: Region, other: Region) -> float:
    """Seconds between them; 0 where they touch."""
    return max(one.start - other.end, other.start - one.end, 0.0)


def _speakers_of_words(segment: Segment, turns: _Turns, gap: float) -> list[str | None]:
    """One for each word; those that the text writes as one ("$43" and ",000") are one person's."""
    groups = segment.whole_words()
    regions: list[Region] = []
    for group in groups:
        start = min(word.start for word in group)
        end = max(word.end for word in group)
        regions.append(Region(start, end))
    speakers = _smoothed(regions, [turns.speaker(region, gap) for region in regions])
    speakers_of_words: list[str | None] = []
    for speaker, group in zip(speakers, groups, strict=True):
        speakers_of_words += [speaker] * len(group)
    return speakers_of_words


def _smoothed(words: Sequence[Region], shares: Sequence[tuple[str | None, float]]) -> list[str | None]:
    """Speakers of words without those flips of a single word that the turns hardly support.

    shares : of each word, its speaker and how many seconds of it are that one's
    """
    speakers = [speaker for speaker, _ in shares]
    for k in range(1, len(words) - 1):
        before, current, after = speakers[k - 1 : k + 2]
        if current is None or before is None or before != after:
            continue
        _, seconds = shares[k]
        if words[k].duration <= SHORT_WORD and seconds <= words[k].duration / 2:
            speakers[k] = before
    return speakers


def _split(segment: Segment) -> list[Segment]:
    """One segment for each run of words of one speaker; words of nobody stay with those before them."""
    words = segment.words
    cuts = [0]  # the first word of each run
    speakers = [next(word.speaker for word in words if word.speaker)]
    for k, word in enumerate(words):
        if word.speaker and word.speaker != speakers[-1]:
            cuts.append(k)
            speakers.append(word.speaker)
    if len(cuts) == 1:
        return [replace(segment, speaker=speakers[0])]
    text, spans = segment.placed()
    result: list[Segment] = []
    for k, (cut, speaker) in enumerate(zip(cuts, speakers, strict=True)):
        # what is before the first word and behind the last one stays with them
        start = segment.start
        text_start = 0
        spaced = segment.spaced
        if k > 0:
            start = words[cut].start
            text_start = spans[cut][0]
            spaced = text[:text_start] != text[:text_start].rstrip()
        stop = len(words)
        end = segment.end
        text_end = len(text)
        if k + 1 < len(cuts):
            stop = cuts[k + 1]
            end = words[stop - 1].end
            text_end = spans[stop][0]
        part = replace(
            segment,
            start=start,
            end=max(start, end),
            text=text[text_start:text_end].strip(),
            words=words[cut:stop],
            speaker=speaker,
            spaced=spaced,
            tokens=(),
            token_logprobs=(),
        )
        result.append(part)
    return result
