"""Speech without text: which stretches are missing, checked frame by frame, and that they are heard again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import Script, ScriptedModel, answer_at_once

from mlx_speech.stages.whisper import batched
from mlx_speech.stages.whisper.batched import Task
from mlx_speech.stages.whisper.coverage import (
    MAX_WORD,
    MIN_SPEECH,
    make_room,
    region_by_region,
    text_regions,
    uncovered,
)
from mlx_speech.stages.whisper.decode import DecodingOptions, DecodingResult, Job
from mlx_speech.stages.whisper.tokenizer import Tokenizer
from mlx_speech.transcript import Chunk, Region, Segment, Word

QUICK = settings(max_examples=200, deadline=None, derandomize=True)
STEP = 0.25  # seconds; all times are multiples, so that counting cells is exact


def cells(regions: Iterable[Region]) -> set[int]:
    return {cell for region in regions for cell in range(round(region.start / STEP), round(region.end / STEP))}


@st.composite
def disjoint(draw: st.DrawFn) -> list[Region]:
    edges = draw(st.lists(st.integers(0, 120), unique=True, max_size=16).map(sorted))
    return [Region(a * STEP, b * STEP) for a, b in zip(edges[::2], edges[1::2], strict=False)]


@QUICK
@given(disjoint(), disjoint())
def test_what_is_missing_is_all_speech_without_text(speech: list[Region], texts: list[Region]) -> None:
    chunk = Chunk(0.0, 30.0, tuple(speech))
    segments = [Segment(region.start, region.end, "said") for region in texts]
    found = uncovered(chunk, segments)
    for stretch in found:
        assert chunk.start <= stretch.start <= stretch.end <= chunk.end
        assert not cells([stretch]) & cells(texts)
        assert cells(stretch.regions) == cells([stretch]) & cells(speech)
        assert len(cells(stretch.regions)) * STEP > MIN_SPEECH
    ends = [0.0, *(region.end for region in texts)]
    starts = [*(region.start for region in texts), 30.0]
    for start, end in zip(ends, starts, strict=True):  # what is left out is too little between two pieces of text
        if any(stretch.start == start for stretch in found):
            continue
        whole = [region for region in speech if start <= region.start and region.end <= end]
        assert sum(region.duration for region in whole) <= MIN_SPEECH
        assert all(len(cells([region]) & cells([Region(start, end)])) * STEP <= MIN_SPEECH for region in speech)


def test_words_say_where_the_text_stands() -> None:
    chunk = Chunk(0.0, 10.0, (Region(0.0, 10.0),))
    words = (Word(0.0, 1.0, "one"), Word(8.0, 10.0, "two"))
    assert uncovered(chunk, [Segment(0.0, 10.0, "one two")]) == []
    (found,) = uncovered(chunk, [Segment(0.0, 10.0, "one two", words)])
    assert (found.start, found.end) == (1.0, 8.0)


def test_a_word_that_is_too_long_hides_nothing() -> None:
    half = MAX_WORD / 2
    short, long = Word(0.0, 1.0, "well"), Word(1.0, 9.0, "then")
    after = Word(9.0, 9.5, "now")
    chunk = Chunk(0.0, 9.5, (Region(0.0, 9.5),))

    def missing(*words: Word) -> list[tuple[float, float]]:
        found = uncovered(chunk, [Segment(0.0, 9.5, " ".join(word.text for word in words), words)])
        return [(stretch.start, stretch.end) for stretch in found]

    assert missing(short, long) == [(1.0 + half, 9.5)]  # the last word: it is spoken at its beginning
    assert missing(long, after) == [(0.0, 9.0 - half)]  # the first: at its end
    assert missing(short, long, after) == [(1.0 + half, 9.0 - half)]
    assert text_regions([Segment(1.0, 9.0, "then", (long,))]) == [Region(1.0, 1.0 + half)]


def test_words_without_a_time_are_somewhere_in_the_speech_beside_them() -> None:
    """Where the alignment loses its way, it puts all words that are left into one moment."""
    chunk = Chunk(0.0, 9.0, (Region(0.0, 9.0),))

    def missing(*times: tuple[float, float]) -> list[tuple[float, float]]:
        words = tuple(Word(start, end, "word") for start, end in times)
        segment = Segment(words[0].start, words[-1].end, "word " * len(words), words)
        return [(stretch.start, stretch.end) for stretch in uncovered(chunk, [segment])]

    lost = [(6.0, 6.0)] * 3
    assert missing((0.0, 2.0), (2.0, 4.0), (4.0, 6.0)) == [(6.0, 9.0)]
    assert missing((0.0, 2.0), (2.0, 4.0), (4.0, 6.0), *lost) == []
    assert missing((0.0, 2.0), *[(2.0, 2.0)] * 2) == [(2.0, 9.0)]  # two words are not said for so long
    assert missing(*[(3.0, 3.0)] * 3, (3.0, 5.0), (5.0, 7.0), (7.0, 9.0)) == []


def test_regions_alone_reach_halfway_to_their_neighbours() -> None:
    regions = (Region(1.0, 3.0), Region(4.0, 6.0), Region(6.5, 9.0))
    found = region_by_region(Chunk(0.5, 10.0, regions))
    assert [(chunk.start, chunk.end) for chunk in found] == [(0.5, 3.5), (3.5, 6.25), (6.25, 10.0)]
    assert [chunk.regions for chunk in found] == [(region,) for region in regions]


@QUICK
@given(disjoint())
def test_no_region_is_left_out_for_being_short(speech: list[Region]) -> None:
    found = region_by_region(Chunk(0.0, 30.0, tuple(speech)))
    assert [region for chunk in found for region in chunk.regions] == speech
    assert all(cells(chunk.regions) <= cells([Region(0.0, 30.0)]) for chunk in found)
    assert all(one.end == other.start for one, other in pairwise(found))
    if sum(region.duration for region in speech) > MIN_SPEECH:
        assert all(sum(region.duration for region in chunk.regions) > MIN_SPEECH for chunk in found)


# --- room for what was heard again ------------------------------------------------------------------------------------


@st.composite
def spoken(draw: st.DrawFn) -> list[Segment]:
    """Segments of words one behind the other."""
    names = iter(range(100))
    time, segments = 0.0, []
    for count in draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)):
        words = []
        for _ in range(count):
            start = time + STEP * draw(st.integers(0, 12))
            time = start + STEP * draw(st.integers(1, 16))
            words.append(Word(start, time, f"word{next(names)}"))
        text = " ".join(word.text for word in words)
        segments.append(Segment(words[0].start, words[-1].end, text, tuple(words), tokens=tuple(text.encode())))
    return segments


@QUICK
@given(spoken())
def test_what_is_heard_again_has_its_place_between_the_words(segments: list[Segment]) -> None:
    last = segments[-1].end
    chunk = Chunk(0.0, last + 5.0, (Region(0.0, last + 5.0),))
    texts = [segment.text for segment in segments]
    for stretch in uncovered(chunk, segments):
        segments = make_room(segments, stretch, lambda tokens: bytes(tokens).decode())
        for segment in segments:
            assert segment.end <= stretch.start or stretch.end <= segment.start
            assert [word.text for word in segment.words] == segment.text.split()
            assert bytes(segment.tokens).decode().strip() == segment.text
            assert all(segment.start <= word.start <= word.end <= segment.end for word in segment.words)
    assert " ".join(segment.text for segment in segments) == " ".join(texts)
    assert all(one.end <= other.start for one, other in pairwise(segments))


def test_tokens_are_not_parted_within_a_character(tokenizer: Tokenizer) -> None:
    """A rare character is several tokens."""
    text = "鷽鷽鷽、鱚鱚"
    tokens = tuple(tokenizer.encode(text))
    assert len(tokens) > len(text)
    words = (Word(0.0, 1.0, "鷽鷽鷽、"), Word(5.0, 6.0, "鱚鱚"))
    before, behind = make_room([Segment(0.0, 6.0, text, words, tokens=tokens)], Region(1.0, 5.0), tokenizer.decode)
    assert (before.text, behind.text) == ("鷽鷽鷽、", "鱚鱚")
    assert (tokenizer.decode(before.tokens), tokenizer.decode(behind.tokens)) == (before.text, behind.text)


# --- heard again ------------------------------------------------------------------------------------------------------


class Decoder:
    """Stands for the decoder: says the words of what it hears, but ends its text at the first pause.

    words : (start, end) of each in the recording; it hears the recording's place in the samples, which count up
    silent : regions in which nobody seems to speak; logprob : of what it says there
    """

    def __init__(
        self, tokenizer: Tokenizer, words: Sequence[Region], silent: Sequence[Region] = (), logprob: float = -0.7
    ) -> None:
        self.tokenizer, self.words, self.silent, self.logprob = tokenizer, words, silent, logprob
        self.heard: list[tuple[float, float]] = []

    def __call__(self, jobs: Iterable[Job], *_: Any, batch_size: int) -> Iterator[tuple[Job, DecodingResult]]:
        for job in jobs:
            audio = job.key.audio
            start, end = float(audio[0]), float(audio[-1])
            self.heard.append((start, end))
            words = [word for word in self.words if start - 0.02 <= word.start and word.end <= end + 0.02]
            silence = all(any(r.start <= word.start and word.end <= r.end for r in self.silent) for word in words)
            tokens: list[int] = []
            for word in words[: self._before_a_pause(words)]:
                tokens += [self._stamp(word.start - start), 2425, self._stamp(word.end - start)]
            no_speech, logprob = (0.9, self.logprob) if silence else (0.0, -0.3)
            yield job, DecodingResult(tuple(tokens), "x", "en", logprob, no_speech, 0.0, 1.0)

    def _stamp(self, seconds: float) -> int:
        return self.tokenizer.timestamp_begin + max(0, round(seconds / 0.02))

    @staticmethod
    def _before_a_pause(words: Sequence[Region]) -> int:
        for k in range(1, len(words)):
            if words[k].start - words[k - 1].end > 1.0:
                return k
        return len(words)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.find(None, 51865)


def hear(
    decoder: Decoder, chunks: Sequence[Chunk], monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> tuple[dict[int, tuple[Segment, ...]], list[Region]]:
    answer_at_once(decoder, monkeypatch)
    monkeypatch.setattr(
        batched, "_with_words", lambda waiting, *_: [(heard.stretch, heard.segments) for heard in waiting]
    )
    recording = np.arange(60 * 16_000, dtype=np.float32) / 16_000
    tasks = [Task(k, chunk, batched.samples_of(recording, chunk), "en") for k, chunk in enumerate(chunks)]
    silences: list[Region] = []
    results = batched.transcribe(
        tasks,
        ScriptedModel(Script(0)),
        decoder.tokenizer,
        DecodingOptions(),
        batch_size=batch_size,
        on_silence=lambda _, region: silences.append(region),
    )
    found = list(results)
    assert sorted(task.key for task, _ in found) == list(range(len(chunks)))  # each once
    return {task.key: segments for task, segments in found}, silences


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_speech_behind_every_pause_is_heard(
    batch_size: int, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [Region(start, start + 1.5) for start in (1.0, 5.0, 9.0, 14.0, 20.0, 25.0, 31.0, 38.0, 46.0)]
    chunks = [Chunk(0.5, 28.0, tuple(words[:6])), Chunk(30.0, 48.0, tuple(words[6:]))]
    found, silences = hear(Decoder(tokenizer, words), chunks, monkeypatch, batch_size)
    segments = [segment for key in (0, 1) for segment in found[key]]
    assert [segment.end for segment in segments] == pytest.approx([word.end for word in words], abs=0.03)
    assert silences == []


def test_what_is_silence_on_a_second_hearing_is_said(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    word, noise = Region(1.0, 3.0), Region(8.0, 12.0)
    decoder = Decoder(tokenizer, [word], silent=[noise])
    found, silences = hear(decoder, [Chunk(0.5, 12.5, (word, noise))], monkeypatch, 4)
    assert len(found[0]) == 1
    assert silences == [noise]
    assert len(decoder.heard) == 2  # and not a third time


@pytest.mark.parametrize("logprob, is_believed", [(-0.7, False), (-0.5, True)])
def test_a_second_hearing_adds_no_text_that_is_likely_made_up(
    logprob: float, is_believed: bool, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    word, noise = Region(1.0, 3.0), Region(8.0, 12.0)
    decoder = Decoder(tokenizer, [word, Region(9.0, 11.5)], silent=[noise], logprob=logprob)
    found, silences = hear(decoder, [Chunk(0.5, 12.5, (word, noise))], monkeypatch, 4)
    assert len(found[0]) == 1 + is_believed and silences == [noise] * (not is_believed)


def test_a_chunk_in_which_nothing_was_heard_is_heard_region_by_region(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    regions = (Region(2.0, 4.0), Region(15.0, 17.0))

    class Deaf(Decoder):
        def __call__(self, jobs: Iterable[Job], *_: Any, batch_size: int) -> Iterator[tuple[Job, DecodingResult]]:
            for job, result in super().__call__(jobs, batch_size=batch_size):
                long = job.key.chunk.duration > 15
                yield job, DecodingResult((), "", "en", -2.0, 0.9, 0.0, 1.0) if long else result

    decoder = Deaf(tokenizer, regions)
    found, silences = hear(decoder, [Chunk(1.0, 18.0, regions)], monkeypatch, 4)
    assert [segment.end for segment in found[0]] == pytest.approx([4.0, 17.0], abs=0.03)
    assert silences == [] and len(decoder.heard) == 3


class Placed:
    """Stands for the decoder and for the times of its words: of each hearing, by number, what is said and when."""

    def __init__(self, tokenizer: Tokenizer, *hearings: dict[str, tuple[float, float]]) -> None:
        self.tokenizer, self.hearings = tokenizer, hearings
        self.heard: list[tuple[float, float]] = []
        self.languages: list[str | None] = []
        self.tries: list[bool] = []

    def __call__(self, jobs: Iterable[Job], *_: Any, batch_size: int) -> Iterator[tuple[Job, DecodingResult]]:
        for job in jobs:
            words = self.hearings[min(len(self.heard), len(self.hearings) - 1)]
            self.heard.append((job.key.chunk.start, job.key.chunk.end))
            self.languages.append(job.language)
            self.tries.append(job.tries_unlikely)
            text = "".join(f" {word}" for word in words)
            yield job, DecodingResult(tuple(self.tokenizer.encode(text)), text, "sv", -0.3, 0.0, 0.0, 1.0)

    def placed(self, waiting: Sequence[batched.DecodedStretch], *_: Any) -> Iterator[tuple[Any, list[Segment]]]:
        for heard in waiting:
            chunk, segment = heard.stretch.chunk, heard.segments[0]
            times = self.hearings[min(self.heard.index((chunk.start, chunk.end)), len(self.hearings) - 1)]
            words = [Word(*times[text], text) for text in segment.text.split()]
            yield heard.stretch, [replace(segment, start=words[0].start, end=words[-1].end, words=tuple(words))]


def hear_placed(
    decoder: Placed, chunk: Chunk, monkeypatch: pytest.MonkeyPatch, *, words: bool = True, language: str | None = "sv"
) -> tuple[tuple[Segment, ...], list[Region]]:
    answer_at_once(decoder, monkeypatch)
    monkeypatch.setattr(batched, "_with_words", decoder.placed)
    silences: list[Region] = []
    ((_, segments),) = batched.transcribe(
        [Task(0, chunk, np.zeros(round(chunk.duration * 16_000), np.float32), language, words)],
        ScriptedModel(Script(0)),
        decoder.tokenizer,
        DecodingOptions(without_timestamps=True),
        batch_size=4,
        on_silence=lambda _, region: silences.append(region),
    )
    return segments, silences


@pytest.mark.parametrize("words", [False, True])
def test_text_heard_again_stands_where_it_was_said(
    words: bool, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {"one": (0.0, 1.0), "four": (5.0, 6.0)}
    again = {"two": (1.0, 3.0), "three": (3.0, 5.0)}
    decoder = Placed(tokenizer, first, again)
    segments, _ = hear_placed(decoder, Chunk(0.0, 6.0, (Region(0.0, 6.0),)), monkeypatch, words=words)
    assert [segment.text for segment in segments] == ["one", "two three", "four"]
    assert all(before.end <= after.start for before, after in pairwise(segments))
    assert [tokenizer.decode(segment.tokens).strip() for segment in segments] == [segment.text for segment in segments]
    assert all(bool(segment.words) is words for segment in segments)


def test_words_that_were_put_into_a_pause_are_not_said_twice(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose sentence is found in the region that seemed to have none."""
    regions = (Region(0.0, 2.0), Region(5.0, 7.0), Region(9.0, 11.0))
    chunk = Chunk(0.0, 11.0, regions)
    said = {"one": (0.0, 2.0), "in": (7.5, 8.0), "1813...": (8.0, 8.5), "three": (9.0, 11.0)}
    again = {"In": (5.0, 6.0), "1813,": (6.0, 7.0)}
    segments, _ = hear_placed(Placed(tokenizer, said, again), chunk, monkeypatch)
    assert [segment.text for segment in segments] == ["one", "In 1813,", "three"]
    assert [tokenizer.decode(segment.tokens).strip() for segment in segments] == [segment.text for segment in segments]
    behind = {"one": (0.0, 2.0), "in": (2.5, 3.0), "1813...": (3.0, 3.5), "three": (9.0, 11.0)}
    segments, _ = hear_placed(Placed(tokenizer, behind, again), chunk, monkeypatch)
    assert [segment.text for segment in segments] == ["one", "In 1813,", "three"]
    at_once = {"one": (0.0, 2.0), "in": (2.0, 2.0), "1813": (2.0, 2.08), "three": (9.0, 11.0)}
    segments, _ = hear_placed(Placed(tokenizer, at_once, again), chunk, monkeypatch)
    assert [segment.text for segment in segments] == ["one", "In 1813,", "three"]
    spoken_twice = {"one": (0.0, 2.0), "in": (9.0, 10.0), "1813": (10.0, 11.0)}
    segments, _ = hear_placed(Placed(tokenizer, spoken_twice, again), chunk, monkeypatch)
    assert [segment.text for segment in segments] == ["one", "In 1813,", "in 1813"]


def test_a_word_ends_where_what_it_swallowed_begins(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    first = {"well": (0.0, 1.0), "then": (1.0, 10.0)}
    again = {"good": (3.0, 4.0), "luck": (4.0, 5.0), "with": (5.0, 7.0), "that": (8.0, 9.9)}
    decoder = Placed(tokenizer, first, again)
    segments, silences = hear_placed(decoder, Chunk(0.0, 10.0, (Region(0.0, 10.0),)), monkeypatch)
    assert [segment.text for segment in segments] == ["well then", "good luck with that"]
    assert segments[0].words[-1].end == segments[0].end == 1.0 + MAX_WORD / 2
    assert silences == []


def test_a_short_first_hearing_does_not_forbid_a_second(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Placed(tokenizer, {"Oh": (0.0, 0.15)}, {"yes": (0.5, 2.0), "indeed": (2.0, 4.0)})
    segments, silences = hear_placed(decoder, Chunk(0.0, 4.5, (Region(0.0, 4.4),)), monkeypatch)
    assert [segment.text for segment in segments] == ["Oh", "yes indeed"] and silences == []


def test_a_chunk_is_not_heard_for_ever(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stutter(Placed):
        def placed(self, waiting: Sequence[batched.DecodedStretch], *_: Any) -> Iterator[tuple[Any, list[Segment]]]:
            for heard in waiting:
                chunk, (segment,) = heard.stretch.chunk, heard.segments
                word = Word(chunk.start, chunk.end, "Yeah")
                yield heard.stretch, [replace(segment, start=chunk.start, end=chunk.end, words=(word,))]

    decoder = Stutter(tokenizer, {"Yeah": (0.0, 30.0)})
    _, silences = hear_placed(decoder, Chunk(0.0, 29.9, (Region(0.3, 29.6),)), monkeypatch)
    assert len(decoder.heard) == batched.MAX_HEARINGS
    assert len(silences) == 1 and silences[0].end == 29.6


def test_a_second_hearing_is_in_the_language_of_the_first(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Placed(tokenizer, {"one": (0.0, 1.0)}, {"two": (3.0, 6.0)})
    hear_placed(decoder, Chunk(0.0, 6.0, (Region(0.0, 6.0),)), monkeypatch, language=None)
    assert decoder.languages[:2] == [None, "sv"]


def test_a_second_hearing_is_not_sampled_where_it_is_unlikely(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Placed(tokenizer, {"one": (0.0, 1.0)}, {"two": (3.0, 6.0)})
    hear_placed(decoder, Chunk(0.0, 6.0, (Region(0.0, 6.0),)), monkeypatch)
    assert decoder.tries[0] and len(decoder.tries) > 1 and not any(decoder.tries[1:])


def test_without_regions_nothing_is_heard_again(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(tokenizer, [Region(1.0, 2.0), Region(9.0, 11.0)])
    found, _ = hear(decoder, [Chunk(0.5, 12.0)], monkeypatch, 4)
    assert len(found[0]) == 1 and len(decoder.heard) == 1
