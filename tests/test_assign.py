"""Words × turns → speakers: brute force, whisperx's assign_word_speakers beside ours, and what splitting must keep."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from conftest import absent
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_speech.stages.assign import MAX_GAP, SHORT_WORD, assign_speakers
from mlx_speech.transcript import Diarization, Region, Segment, Turn, Word

QUICK = settings(max_examples=200, deadline=None, derandomize=True)
# a grid of eighths is exact in binary, so that ties are ties
moments = st.integers(0, 160).map(lambda k: k / 8)
spans = st.tuples(moments, st.integers(0, 24).map(lambda k: k / 8)).map(lambda pair: (pair[0], pair[0] + pair[1]))
speakers = st.sampled_from(["SPEAKER_00", "SPEAKER_01", "SPEAKER_02"])


@st.composite
def segments(draw: st.DrawFn) -> tuple[Segment, ...]:
    """In order, with words in order and apart from each other, which may last no time."""
    edges = draw(st.lists(moments, min_size=2, max_size=30).map(sorted))
    times = list(zip(edges[::2], edges[1::2], strict=False))
    found = []
    while times:
        count = draw(st.integers(1, len(times)))
        part, times = times[:count], times[count:]
        words = tuple(Word(start, end, f"w{k}") for k, (start, end) in enumerate(part))
        text = " ".join(word.text for word in words)
        words = words if draw(st.booleans()) or draw(st.booleans()) else ()
        found.append(Segment(part[0][0], part[-1][1], text, words, language="en", tokens=(1, 2)))
    return tuple(found)


overlapping = st.lists(st.builds(lambda span, name: Turn(span[0], span[1], name), spans, speakers), max_size=12).map(
    tuple
)


@st.composite
def exclusive(draw: st.DrawFn) -> tuple[Turn, ...]:
    edges = sorted(draw(st.sets(moments, max_size=16)))
    return tuple(Turn(a, b, draw(speakers)) for a, b in pairwise(edges) if draw(st.booleans()))


def by_hand(region: Region, turns: tuple[Turn, ...], gap: float) -> str | None:
    """The rule, spelled out over all turns."""
    turns = tuple(sorted(turns, key=lambda turn: turn.start))
    shared = [max(0.0, min(t.end, region.end) - max(t.start, region.start)) for t in turns]
    if any(shared):
        first = [turn.speaker for turn, seconds in zip(turns, shared, strict=True) if seconds]
        total = {name: sum(s for t, s in zip(turns, shared, strict=True) if t.speaker == name) for name in first}
        return max(first, key=lambda name: total[name])
    gaps = [max(t.start - region.end, region.start - t.end, 0.0) for t in turns]
    return turns[gaps.index(min(gaps))].speaker if gaps and min(gaps) <= gap else None


@QUICK
@given(segments(), exclusive(), st.booleans())
def test_every_word_and_segment_follows_the_rule(
    found: tuple[Segment, ...], turns: tuple[Turn, ...], fill: bool
) -> None:
    gap = float("inf") if fill else MAX_GAP
    result = assign_speakers(found, Diarization(exclusive=turns), fill_nearest=fill, split=False)
    assert [replace(s, speaker=None, words=tuple(replace(w, speaker=None) for w in s.words)) for s in result] == [
        *found
    ]
    for segment in result:
        assert segment.speaker == by_hand(segment, turns, gap)
        for word in segment.words:
            assert word.speaker == by_hand(word, turns, gap)
            assert not (fill and turns) or word.speaker


@QUICK
@given(segments(), overlapping)
def test_as_whisperx_where_that_finds_a_speaker(found: tuple[Segment, ...], turns: tuple[Turn, ...]) -> None:
    try:
        import pandas
        from whisperx.diarize import assign_word_speakers
    except ImportError:
        absent("whisperx is not installed")
    rows: Any = [(turn.start, turn.end, turn.speaker) for turn in turns]
    frame = pandas.DataFrame(rows, columns=["start", "end", "speaker"])
    dictionaries: Any = [
        {"start": s.start, "end": s.end, "words": [{"start": w.start, "end": w.end} for w in s.words]} for s in found
    ]
    theirs: Any = assign_word_speakers(frame, {"segments": dictionaries})["segments"]  # type: ignore[typeddict-item]
    ours = assign_speakers(found, Diarization(exclusive=turns), split=False)
    for segment, original in zip(ours, theirs, strict=True):
        for item, dictionary in [(segment, original), *zip(segment.words, original["words"], strict=True)]:
            if "speaker" in dictionary:
                assert item.speaker == dictionary["speaker"]
            else:  # it is a little off a turn, or inside one for no time
                assert item.speaker == by_hand(item, turns, MAX_GAP)


@QUICK
@given(segments(), exclusive())
def test_splitting_keeps_every_word_and_one_speaker_a_segment(
    found: tuple[Segment, ...], turns: tuple[Turn, ...]
) -> None:
    result = assign_speakers(found, Diarization(exclusive=turns))
    assert [word.text for s in result for word in s.words] == [word.text for s in found for word in s.words]
    assert " ".join(s.text for s in result) == " ".join(s.text for s in found)
    for before, after in pairwise(result):
        assert before.start <= after.start and before.end <= after.end
    for segment in result:
        assert segment.start <= segment.end
        assert {word.speaker for word in segment.words} <= {segment.speaker, None}
        assert not segment.words or segment.text == " ".join(word.text for word in segment.words)
        assert not segment.tokens or segment.text in [whole.text for whole in found]


@QUICK
@given(segments(), overlapping)
def test_where_two_speak_at_once_no_word_is_lost_or_doubled(
    found: tuple[Segment, ...], turns: tuple[Turn, ...]
) -> None:
    """Also without exclusive turns; and where a segment is split, each part has a whole word at least."""
    result = assign_speakers(found, Diarization(turns=turns))
    before = [(word.start, word.end, word.text) for segment in found for word in segment.words]
    after = [(word.start, word.end, word.text) for segment in result for word in segment.words]
    assert after == before
    whole = {group[0].start for segment in found for group in segment.whole_words()}
    silent = [segment for segment in found if not segment.words]
    assert len([segment for segment in result if not segment.words]) == len(silent)
    for segment in result:
        if segment.words:
            assert segment.words[0].start in whole
            assert segment.text == " ".join(word.text for word in segment.words)


def words(*parts: tuple[float, float, str]) -> tuple[Word, ...]:
    return tuple(Word(*part) for part in parts)


A_THEN_B = Diarization(exclusive=(Turn(0.0, 2.0, "A"), Turn(2.0, 4.0, "B")))


def test_a_segment_is_split_where_the_speaker_changes() -> None:
    spoken = words((0.5, 1.0, "¿Qué"), (1.0, 1.9, "hora?"), (2.1, 2.5, "Las"), (2.5, 3.0, "dos."))
    segment = Segment(0.2, 3.5, "¿Qué  hora? — Las dos.", spoken, tokens=(1, 2), avg_logprob=-0.3)
    first, second = assign_speakers([segment], A_THEN_B)
    assert (first.start, first.end, first.text, first.speaker) == (0.2, 1.9, "¿Qué  hora? —", "A")
    assert (second.start, second.end, second.text, second.speaker) == (2.1, 3.5, "Las dos.", "B")
    assert first.tokens == second.tokens == () and second.avg_logprob == -0.3
    (whole,) = assign_speakers([segment], A_THEN_B, split=False)
    assert whole.text == segment.text and whole.tokens == (1, 2) and whole.speaker == "A"
    assert [word.speaker for word in whole.words] == ["A", "A", "B", "B"]


@pytest.mark.parametrize("language", ["ja", "en", None])
@pytest.mark.parametrize(
    ("spelled", "texts"),
    [
        (("今", "日は", "晴"), ("今日は", "晴")),
        (("hello", "there", "Ann"), ("hello there", "Ann")),
        (("wer", ",", "ich"), ("wer,", "ich")),
    ],
)
def test_text_that_its_words_do_not_make_up_is_joined_from_them(
    language: str | None, spelled: tuple[str, str, str], texts: tuple[str, str]
) -> None:
    """Whatever the language: what is spoken in a recording and what is written of it may be two."""
    spoken = words((0.5, 1.0, spelled[0]), (1.0, 1.9, spelled[1]), (2.1, 2.5, spelled[2]))
    first, second = assign_speakers([Segment(0.5, 2.5, "something else", spoken, language=language)], A_THEN_B)
    assert (first.text, second.text) == texts


def test_no_word_of_the_text_is_said_by_two() -> None:
    """Whisper's tokens part "$43,000", and the turns change within it: it is whose it is most."""
    spoken = words((0.5, 1.0, "It's"), (1.6, 1.9, "$43"), (1.9, 2.3, ",000"), (2.4, 2.6, "?"))
    segment = Segment(0.5, 3.0, "It's $43,000 ?", spoken)
    first, second = assign_speakers([segment], A_THEN_B)
    assert [(s.text, s.speaker) for s in (first, second)] == [("It's $43,000", "A"), ("?", "B")]
    later = replace(segment, words=words((0.5, 1.0, "It's"), (1.8, 1.9, "$43"), (1.9, 2.5, ",000"), (2.5, 2.6, "?")))
    first, second = assign_speakers([later], A_THEN_B)
    assert [(s.text, s.speaker, s.spaced) for s in (first, second)] == [
        ("It's", "A", False),
        ("$43,000 ?", "B", True),
    ]


def test_words_off_every_turn() -> None:
    turns = Diarization(exclusive=(Turn(2.0, 3.0, "A"), Turn(8.0, 9.0, "B")))
    spoken = words((1.4, 1.6, "near"), (2.1, 2.3, "in"), (5.0, 5.4, "far"), (7.0, 7.2, "lost"), (8.0, 8.4, "b"))
    segment = Segment(1.4, 8.4, "near in far lost b", spoken)
    result = assign_speakers([segment], turns)
    assert [(s.text, s.speaker) for s in result] == [
        ("near in far lost", "A"),
        ("b", "B"),
    ]  # nobody's words split nothing
    assert [word.speaker for word in result[0].words] == ["A", "A", None, None]
    filled = assign_speakers([segment], turns, fill_nearest=True)
    assert [word.speaker for s in filled for word in s.words] == ["A", "A", "A", "B", "B"]
    # by the gap, not by the middle of the turn, which a long turn has far away
    long = Diarization(exclusive=(Turn(0.0, 60.0, "A"), Turn(64.0, 65.0, "B")))
    (word,) = assign_speakers([Segment(61, 61.2, "x", words((61.0, 61.2, "x")))], long, fill_nearest=True)[0].words
    assert word.speaker == "A"


def test_a_word_without_duration_belongs_to_the_turn_around_it() -> None:
    spoken = words((1.0, 1.0, "a"), (3.0, 3.0, "b"))
    assert [s.speaker for s in assign_speakers([Segment(1.0, 3.0, "a b", spoken)], A_THEN_B)] == ["A", "B"]


def test_segments_without_words_take_who_speaks_most() -> None:
    assert [s.speaker for s in assign_speakers([Segment(1.5, 3, "x"), Segment(9, 9.5, "y")], A_THEN_B)] == ["B", None]


def test_without_turns_nobody_speaks() -> None:
    segment = Segment(0.0, 1.0, "x", words((0.0, 1.0, "x")))
    assert assign_speakers([segment], Diarization(), fill_nearest=True) == (segment,)
    only_overlapping = Diarization(turns=(Turn(0.0, 1.0, "A"),))
    assert assign_speakers([segment], only_overlapping)[0].words[0].speaker == "A"


@pytest.mark.parametrize(
    ("turn", "word", "expected"),
    [
        ((1.0, 1.1), (0.9, 1.3), "A"),  # a quarter of a short word
        ((1.0, 1.3), (0.9, 1.3), "B"),  # most of it
        ((0.9, 1.1), (0.9, 0.9 + SHORT_WORD + 0.2), "B"),  # little, but of a long word: it may be stretched
        ((1.0, 1.0), (0.9, 1.3), "A"),
    ],
)
def test_a_weak_flip_of_one_word_is_smoothed(
    turn: tuple[float, float], word: tuple[float, float], expected: str
) -> None:
    turns = Diarization(exclusive=(Turn(0.0, 0.8, "A"), Turn(*turn, "B"), Turn(2.0, 3.0, "A")))
    spoken = words((0.1, 0.5, "one"), (*word, "two"), (2.1, 2.5, "three"))
    segment = Segment(0.1, 2.5, "one two three", spoken)
    result = assign_speakers([segment], turns)
    assert [w.speaker for s in result for w in s.words] == ["A", expected, "A"]
    assert len(result) == (1 if expected == "A" else 3)


def test_flips_at_an_edge_or_between_different_speakers_stay() -> None:
    turns = Diarization(exclusive=(Turn(0.0, 0.8, "A"), Turn(1.0, 1.05, "B"), Turn(2.0, 3.0, "C")))
    spoken = words((0.1, 0.5, "one"), (0.9, 1.3, "two"), (2.1, 2.5, "three"))
    assert [s.speaker for s in assign_speakers([Segment(0.1, 2.5, "one two three", spoken)], turns)] == ["A", "B", "C"]
    assert [s.speaker for s in assign_speakers([Segment(0.1, 1.3, "one two", spoken[:2])], turns)] == ["A", "B"]


def test_three_hours_take_a_moment() -> None:
    rng = random.Random(0)
    edges = sorted(rng.uniform(0, 10_800) for _ in range(8001))
    turns = tuple(Turn(a, b, f"S{rng.randrange(4)}") for a, b in pairwise(edges))
    spoken = [Word(k * 0.36, k * 0.36 + 0.3, f"w{k}") for k in range(30_000)]
    groups = [spoken[k : k + 20] for k in range(0, len(spoken), 20)]
    found = [Segment(g[0].start, g[-1].end, " ".join(w.text for w in g), tuple(g)) for g in groups]
    start = time.perf_counter()
    result = assign_speakers(found, Diarization(exclusive=turns))
    elapsed = time.perf_counter() - start
    assert sum(len(segment.words) for segment in result) == 30_000
    assert elapsed < 5, elapsed  # comparing every word with every turn takes a minute
