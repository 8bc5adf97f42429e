"""Words × speaker turns → who says what. After `assign_word_speakers` of whisperx (3.8), with these differences: words
are compared with the turns that do not overlap, a word a little off every turn takes the nearest one's speaker (by the
gap between them, where whisperx compares middles), and a segment is split where its speaker changes.
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
            result.append(replace(segment, words=words, speaker=turns.speaker(segment, gap)[0]))
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
        low, high = bisect_right(self.reach, region.start), bisect_left(self.starts, region.end)
        seconds: dict[str, float] = {}
        for turn in self.turns[low:high]:
            shared = min(turn.end, region.end) - max(turn.start, region.start)
            if shared > 0:
                seconds[turn.speaker] = seconds.get(turn.speaker, 0.0) + shared
        if seconds:
            return max(seconds.items(), key=lambda item: item[1])
        before = [self.turns[self.latest[low - 1]]] if low else []
        near = before + self.turns[low : high + 1]
        gaps = [max(turn.start - region.end, region.start - turn.end, 0.0) for turn in near]
        closest = min(range(len(near)), key=gaps.__getitem__, default=None)
        return (None if closest is None or gaps[closest] > gap else near[closest].speaker), 0.0


def _speakers_of_words(segment: Segment, turns: _Turns, gap: float) -> list[str | None]:
    """One for each word; those that the text writes as one ("$43" and ",000") are one person's."""
    groups = segment.whole_words()
    spoken = [Region(min(w.start for w in group), max(w.end for w in group)) for group in groups]
    speakers = _smoothed(spoken, [turns.speaker(region, gap) for region in spoken])
    return [speaker for speaker, group in zip(speakers, groups, strict=True) for _ in group]


def _smoothed(words: Sequence[Region], found: Sequence[tuple[str | None, float]]) -> list[str | None]:
    """Speakers of words without those flips of a single word that the turns hardly support."""
    speakers = [speaker for speaker, _ in found]
    for k in range(1, len(words) - 1):
        before, own, after = speakers[k - 1 : k + 2]
        weak = words[k].duration <= SHORT_WORD and found[k][1] <= words[k].duration / 2
        if weak and own is not None and before is not None and before == after:
            speakers[k] = before
    return speakers


def _split(segment: Segment) -> list[Segment]:
    """One segment for each run of words of one speaker; words of nobody stay with those before them."""
    words, cuts, speakers = segment.words, [0], [next(w.speaker for w in segment.words if w.speaker)]
    for k, word in enumerate(words):
        if word.speaker and word.speaker != speakers[-1]:
            cuts.append(k)
            speakers.append(word.speaker)
    if len(cuts) == 1:
        return [replace(segment, speaker=speakers[0])]
    text, spans = segment.placed()
    bare = replace(segment, tokens=())
    result: list[Segment] = []
    for k, (cut, speaker) in enumerate(zip(cuts, speakers, strict=True)):
        first, last = k == 0, k + 1 == len(cuts)
        stop = len(words) if last else cuts[k + 1]
        low = 0 if first else spans[cut][0]
        high = len(text) if last else spans[stop][0]
        start = segment.start if first else words[cut].start
        end = segment.end if last else words[stop - 1].end
        part = replace(bare, start=start, end=max(start, end), text=text[low:high].strip(), words=words[cut:stop])
        spaced = segment.spaced if first else text[:low] != text[:low].rstrip()
        result.append(replace(part, speaker=speaker, spaced=spaced))
    return result
