"""Live sessions: what they give in the end is what a recording gives, however the sound comes in."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from conftest import real, real_weights
from patience import in_time

import mlx_speech
from mlx_speech import Pipeline
from mlx_speech.errors import AudioError, OptionError, PipelineClosed
from mlx_speech.live import hearing, language, rounds, speakers
from mlx_speech.live.early import EarlyFinal
from mlx_speech.live.events import Block, Ended, Final, Gap, LiveEvent, Partial, Silence, Speakers, Speech
from mlx_speech.live.packed import SEGMENTS_PER_BLOCK, PackedSegments
from mlx_speech.live.told import MOST_WAITING, Told
from mlx_speech.options import Options
from mlx_speech.package_data import DEMO
from mlx_speech.recording import Recording
from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.stages.chunks import speech_and_pad
from mlx_speech.stages.whisper.options import DecodingOptions
from mlx_speech.stages.whisper.partials import Round
from mlx_speech.transcript import Chunk, Segment, Transcript, Word

PATIENCE = 120.0  # seconds
LIVE: dict[str, Any] = {"max_pause": 0.6, "chunk_size": 15.0}  # what a live session does by itself


@pytest.fixture(scope="module")
def demo() -> Iterator[Pipeline]:
    with Pipeline.demo() as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    """(samples,): the beginning of the demo's conversation."""
    return mlx_speech.load_audio(DEMO / "conversation.flac")[: 14 * SAMPLE_RATE]


def window(pipeline: Pipeline) -> dict[str, Any]:
    """The same options for a recording: the demo's Whisper has a shorter window."""
    args = pipeline.models.whisper().model.args
    return {**LIVE, "chunk_size": min(15.0, args.n_audio_ctx / 50)}


def cut(sound: np.ndarray, seed: int | None) -> list[np.ndarray]:
    """The sound in blocks of 1 … 48000 samples, some of none; None: in one."""
    if seed is None:
        return [sound]
    generator = np.random.default_rng(seed)
    blocks: list[np.ndarray] = []
    start = 0
    while start < sound.size:
        size = int(generator.choice([0, 1, 160, 511, 512, 4_000, 48_000]))
        blocks.append(sound[start : start + size])
        start += size
    return blocks


def small(sound: np.ndarray, size: int) -> list[np.ndarray]:
    """The sound in blocks as small as a microphone's."""
    return [sound[start : start + size] for start in range(0, sound.size, size)]


def settled(segment: Segment) -> Segment:
    """Without what other rows of a batch change in the last digits."""
    words = tuple(replace(word, score=round(word.score, 2)) for word in segment.words)
    numbers = {"avg_logprob": 0.0, "no_speech_prob": 0.0, "compression_ratio": 0.0}
    return replace(segment, words=words, token_logprobs=(), **numbers)


def check_equal(live: Transcript, offline: Transcript) -> None:
    assert [settled(segment) for segment in live.segments] == [settled(segment) for segment in offline.segments]
    assert (live.duration, live.language, live.silences) == (offline.duration, offline.language, offline.silences)
    for ours, theirs in zip(live.segments, offline.segments, strict=True):
        assert ours.avg_logprob == pytest.approx(theirs.avg_logprob, abs=1e-3)
        assert [w.score for w in ours.words] == pytest.approx([w.score for w in theirs.words], abs=1e-2)


def check_order(events: list[LiveEvent]) -> None:
    """Of every chunk partials and then a final, in order; firm words stay; the end is the last."""
    chunk = 0
    firm: list[str] = []
    for event in events:
        if isinstance(event, Partial) and not event.words:  # what was too short to count
            firm = []
        elif isinstance(event, Partial):
            assert event.chunk == chunk
            words = [word.text for word in event.words]
            assert words[: len(firm)] == firm, "firm words stay"
            firm = words[: event.firm]
            assert event.text.startswith(event.firm_text)
        if isinstance(event, Final):
            assert event.chunk == chunk
            chunk += 1
            firm = []
    assert [isinstance(event, Ended) for event in events] == [False] * (len(events) - 1) + [True]


def ended(events: list[LiveEvent]) -> Transcript:
    last = events[-1]
    assert isinstance(last, Ended)
    return last.transcript


# --- equality ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("finals", ["pause", "window"])
def test_the_end_is_that_of_a_recording(demo: Pipeline, sound: np.ndarray, finals: str) -> None:
    options = window(demo) if finals == "pause" else {}
    offline = demo(sound, **options)
    assert len(offline.segments) > 3
    told: list[list[tuple[int, str, str]]] = []
    for seed in (None, 1):
        events = list(demo.live(cut(sound, seed), step=1.0, finals=finals))
        check_order(events)
        check_equal(ended(events), offline)
        partials = [event for event in events if isinstance(event, Partial)]
        told.append([(event.chunk, event.text, event.firm_text) for event in partials])
    assert told[0] and told[0] == told[1], "partials do not depend on the blocks"


@pytest.mark.parametrize(
    "options",
    [
        {"word_timestamps": "attention"},
        {"word_timestamps": "none"},
        {"segment_resolution": "chunk", "return_char_alignments": True},
        {"max_pause": 0.2, "chunk_size": 4.0, "vad_options": {"threshold": 0.6}},
        {"temperature": (0.4,), "best_of": 2, "seed": 5},
    ],
    ids=lambda options: "-".join(options),
)
def test_with_other_options(demo: Pipeline, sound: np.ndarray, options: dict[str, Any]) -> None:
    offline = demo(sound, **{**window(demo), **options})
    events = list(demo.live(cut(sound, 3), partials=False, **options))
    check_equal(ended(events), offline)
    finals = [segment for event in events if isinstance(event, Final) for segment in event.segments]
    assert [word.text for segment in finals for word in segment.words] == [
        word.text for segment in offline.segments for word in segment.words
    ]


@pytest.mark.parametrize(
    "options",
    [{"chunk_size": 2.0}, {"vad_options": {"speech_pad_ms": 400}}, {"vad_options": {"min_silence_duration_ms": 0}}],
    ids=["cut without a pause", "wide margins", "every silence"],
)
@pytest.mark.parametrize("size", [512, 800])
def test_small_blocks(demo: Pipeline, sound: np.ndarray, options: dict[str, Any], size: int) -> None:
    """A region that is over may still wait for its margin: its sound has to be held until then."""
    short = sound[: 7 * SAMPLE_RATE]
    options = {**options, "word_timestamps": "attention"}
    offline = demo(short, **{**window(demo), **options})
    check_equal(ended(list(demo.live(small(short, size), partials=False, **options))), offline)


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """What became of finals that were begun while a pause lasted: begun, taken or not, dropped or not there."""
    told: list[tuple[str, bool]] = []

    class Watched(EarlyFinal):
        def begin(self, *arguments: Any) -> None:
            told.append(("begun", True))
            super().begin(*arguments)

        def take(self, chunk: Chunk) -> bool:
            taken = super().take(chunk)
            told.append(("taken", taken))
            return taken

        def drop(self) -> None:
            if self.chunk is not None:
                told.append(("dropped", True))
            super().drop()

    monkeypatch.setattr(hearing, "EarlyFinal", Watched)
    return told


@pytest.mark.parametrize("options", [{}, {"word_timestamps": "attention"}, {"temperature": (0.4,), "best_of": 2}])
def test_a_final_is_begun_while_the_pause_behind_it_lasts(
    demo: Pipeline, sound: np.ndarray, options: dict[str, Any], early: list[tuple[str, bool]]
) -> None:
    pause = np.zeros(round(0.8 * SAMPLE_RATE), np.float32)
    sentence = sound[: 3 * SAMPLE_RATE]
    spoken = np.concatenate([sentence, pause, sentence, pause])
    events = list(demo.live(small(spoken, 1600), partials=False, **options))
    check_order(events)
    check_equal(ended(events), demo(spoken, **{**window(demo), **options}))
    finals = [event for event in events if isinstance(event, Final)]
    assert early.count(("taken", True)) >= 2
    assert early.count(("taken", True)) + early.count(("taken", False)) == len(finals)
    assert early.count(("begun", True)) == early.count(("taken", True)) + early.count(("dropped", True))


def test_a_final_that_was_begun_too_soon_is_dropped(
    demo: Pipeline, sound: np.ndarray, early: list[tuple[str, bool]]
) -> None:
    """The pause is long enough to hope for its end, and then somebody goes on."""
    first = mlx_speech.detect_speech(sound, demo.models.silero())[0]
    said = sound[round(first.start * SAMPLE_RATE) : round(first.end * SAMPLE_RATE)]
    pause = np.zeros(round(0.45 * SAMPLE_RATE), np.float32)
    spoken = np.concatenate([pause, said, pause, said, pause])
    events = list(demo.live(small(spoken, 512), partials=False))
    check_equal(ended(events), demo(spoken, **window(demo)))
    assert early.index(("begun", True)) < early.index(("dropped", True)) < early.index(("taken", False))


def test_a_session_that_is_cancelled_drops_what_it_has_begun(demo: Pipeline, sound: np.ndarray) -> None:
    session = demo.session(partials=False)
    session.feed(np.concatenate([sound[: 3 * SAMPLE_RATE], np.zeros(round(0.5 * SAMPLE_RATE), np.float32)]))
    session.cancel()
    assert demo(sound[: 2 * SAMPLE_RATE], **window(demo)).segments  # nothing is left in the batches that hinders it


def test_a_final_that_is_taken_keeps_an_error_that_there_was() -> None:
    recording = Recording(None, Options())
    batches = Mock()
    chunk = Chunk(0.0, 1.0)
    early = EarlyFinal(Mock(), batches)
    early.begin(recording, chunk, np.zeros(SAMPLE_RATE, np.float32), 1)
    own: Recording = batches.add_chunk.call_args.args[0]
    assert early.take(chunk)
    early.give(recording)
    assert recording.error is None
    recording.error = of_another_chunk = MemoryError("no room")
    for own.error in (None, AudioError("later")):
        early.give(recording)
        assert recording.error is of_another_chunk
    recording.error = None
    early.give(recording)
    assert recording.error is own.error


@pytest.mark.parametrize("count", [0, 1, SEGMENTS_PER_BLOCK, 3 * SEGMENTS_PER_BLOCK + 5])
def test_packed_segments_are_those_that_were_added(count: int) -> None:
    segments = [Segment(float(k), k + 0.5, f"said {k}", (Word(k, k + 0.1, f"said{k}"),)) for k in range(count)]
    packed = PackedSegments()
    for k in range(0, count, 7):
        packed.add(segments[k : k + 7])
        assert packed.all() == segments[: k + 7]
    assert packed.all() == segments


def test_eight_sessions_at_once(demo: Pipeline, sound: np.ndarray) -> None:
    parts = [sound[k * SAMPLE_RATE : (k + 7) * SAMPLE_RATE] for k in range(8)]
    offline = [demo(part, **window(demo)) for part in parts]
    sessions = [demo.session(step=1.0, every_partial=True) for _ in parts]
    blocks = [cut(part, seed) for seed, part in enumerate(parts)]
    while any(blocks):
        for session, waiting in zip(sessions, blocks, strict=True):
            if waiting:
                session.feed(waiting.pop(0))
    for session in sessions:
        session.end()
    for session, expected in zip(sessions, offline, strict=True):
        events = list(session.events())
        check_order(events)
        check_equal(session.result(PATIENCE), expected)


def test_real_speech_in_real_time_order() -> None:
    """tiny.en on a real recording; `python tests/live_equality.py` compares all of them."""
    audio = mlx_speech.load_audio(real("data/audio/en/jfk.flac"))
    with Pipeline(real_weights("whisper-tiny.en"), align_model=DEMO / "wav2vec2") as pipeline:
        offline = pipeline(audio, language="en", **LIVE)
        events = list(pipeline.live(cut(audio, 4), step=2.0, language="en"))
    check_order(events)
    check_equal(ended(events), offline)
    firm = [event for event in events if isinstance(event, Partial) and event.firm]
    assert firm and "country" in offline.text


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_another_rate_and_two_channels(demo: Pipeline, sound: np.ndarray, rate: int) -> None:
    resampled = mlx_speech.audio.audio_from_array(sound[: 5 * SAMPLE_RATE], SAMPLE_RATE, sample_rate=rate)
    offline = demo(resampled, sample_rate=rate, **window(demo))
    blocks = [Block(np.stack([block, block]), rate) for block in cut(resampled, 5)]
    transcript = ended(list(demo.live(blocks, partials=False)))
    assert transcript.duration == pytest.approx(offline.duration, abs=1e-3)
    assert transcript.text == offline.text and offline.text


def test_a_rate_that_changes(demo: Pipeline, sound: np.ndarray) -> None:
    first = sound[: 4 * SAMPLE_RATE]
    second = mlx_speech.audio.audio_from_array(sound[first.size :], SAMPLE_RATE, sample_rate=48_000)
    blocks = [Block(first), *(Block(block, 48_000) for block in cut(second, 6))]
    transcript = ended(list(demo.live(blocks, partials=False)))
    assert transcript.text == demo(sound, **window(demo)).text
    assert transcript.duration == pytest.approx(sound.size / SAMPLE_RATE, abs=1e-3)


# --- speakers ---------------------------------------------------------------------------------------------------------


def check_turns(live: Transcript, offline: Transcript) -> None:
    """The same, up to one renaming."""
    assert live.diarization is not None and offline.diarization is not None
    for ours, theirs in (
        (live.diarization.turns, offline.diarization.turns),
        (live.diarization.exclusive, offline.diarization.exclusive),
    ):
        assert [(turn.start, turn.end) for turn in ours] == [(turn.start, turn.end) for turn in theirs]
        names = {(turn.speaker, other.speaker) for turn, other in zip(ours, theirs, strict=True)}
        assert len(names) == len({name for name, _ in names}) == len({name for _, name in names})
    words = [word.speaker for word in live.words]
    pairs = set(zip(words, [word.speaker for word in offline.words], strict=True))
    assert len(pairs) == len({name for name, _ in pairs})


def test_speakers_are_those_of_a_recording(demo: Pipeline) -> None:
    conversation = mlx_speech.load_audio(DEMO / "conversation.flac")[: 40 * SAMPLE_RATE]
    offline = demo(conversation, diarize=True, **window(demo))
    assert offline.diarization is not None and len(offline.diarization.speakers) > 1
    told: list[list[Speakers]] = []
    for seed in (1, 2):
        events = list(demo.live(cut(conversation, seed), partials=False, diarize=True))
        check_turns(ended(events), offline)
        told.append([event for event in events if isinstance(event, Speakers)])
        named = [segment.speaker for event in events if isinstance(event, Final) for segment in event.segments]
        assert any(named), "finals have the speakers that are known"
    assert told[0] and told[0] == told[1], "what is told does not depend on the blocks"
    check_relabelled(told[0], ended(events))


def check_relabelled(told: list[Speakers], transcript: Transcript) -> None:
    """All changes, one over the other, are the turns at the end."""
    speakers: dict[int, str | None] = {}  # by hundredth of a second
    for event in told:
        for change in event.changes:
            for place in range(round(100 * change.start), round(100 * change.end)):
                speakers[place] = change.speaker
    assert transcript.diarization is not None
    for turn in transcript.diarization.exclusive:
        for place in range(round(100 * turn.start) + 3, round(100 * turn.end) - 3):
            assert speakers.get(place) == turn.speaker


def test_sound_that_is_too_short_for_speakers(demo: Pipeline, sound: np.ndarray) -> None:
    for size in (0, 900, 3 * SAMPLE_RATE):
        transcript = ended(list(demo.live([sound[:size]], diarize=True)))
        assert transcript.diarization is not None
        assert bool(transcript.diarization.turns) == (size > 1600)


# --- what is told -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"chunk_size": 2.0}, {"vad_options": {"min_speech_duration_ms": 3000}}])
def test_speech_and_silence_are_told_of_every_region(
    demo: Pipeline, sound: np.ndarray, options: dict[str, Any]
) -> None:
    keywords: dict[str, Any] = {"word_timestamps": "none", **options}
    events = list(demo.live(small(sound, 800), partials=False, **keywords))
    told = [event for event in events if isinstance(event, (Speech, Silence))]
    pairs = list(zip(told[::2], told[1::2], strict=True))
    for speech, silence in pairs:
        assert isinstance(speech, Speech) and isinstance(silence, Silence)
        assert speech.start == silence.start < silence.end
    longest = speech_and_pad(options.get("chunk_size", window(demo)["chunk_size"]))[0]
    regions = mlx_speech.detect_speech(
        sound, demo.models.silero(), max_speech_duration_s=longest, **options.get("vad_options", {})
    )
    assert [(silence.start, silence.end) for _, silence in pairs] == [(region.start, region.end) for region in regions]


def test_speech_that_is_too_short_takes_its_partial_with_it(demo: Pipeline, sound: np.ndarray) -> None:
    options: dict[str, Any] = {"vad_options": {"min_speech_duration_ms": 5000}}
    events = list(demo.live(small(sound, 800), step=0.8, **options))
    check_order(events)
    partials = [event for event in events if isinstance(event, Partial)]
    assert any(partial.words for partial in partials), "words that were shown"
    assert not partials[-1].words, "and taken back"
    assert not ended(events).segments


def test_no_sound_at_all(demo: Pipeline) -> None:
    for blocks in ([], [np.zeros(0, np.float32)], [np.zeros(900, np.float32)], [np.zeros(3 * SAMPLE_RATE, np.float32)]):
        events = list(demo.live(blocks))
        assert not ended(events).segments and len(events) == 1
        assert ended(events).duration == sum(block.size for block in blocks) / SAMPLE_RATE


def test_a_gap_is_silence_and_is_told(demo: Pipeline, sound: np.ndarray) -> None:
    first = sound[: 4 * SAMPLE_RATE]
    second = sound[first.size : 8 * SAMPLE_RATE]
    blocks = [Block(first, start=0.0), Block(second, start=6.5)]
    events = list(demo.live(blocks, partials=False))
    gaps = [event for event in events if isinstance(event, Gap)]
    assert [(gap.start, gap.end) for gap in gaps] == [(4.0, 6.5)]
    filled = np.concatenate([first, np.zeros(round(2.5 * SAMPLE_RATE), np.float32), second])
    check_equal(ended(events), demo(filled, **window(demo)))


def test_partials_that_newer_sound_overtakes_are_left_out(demo: Pipeline, sound: np.ndarray) -> None:
    with demo.session(step=0.5) as session:
        session.feed(sound)
        session.end()
        events = list(session.events())
    check_order(events)
    assert not [event for event in events if isinstance(event, Partial)], "all of the sound was there at once"
    check_equal(session.result(), demo(sound, **window(demo)))


def test_sound_that_comes_much_faster_is_told_as_it_goes_and_not_held(
    monkeypatch: pytest.MonkeyPatch, demo: Pipeline, sound: np.ndarray
) -> None:
    """Pipes and files are: finals come before the end, and Whisper's queue is short."""
    monkeypatch.setattr(demo, "batch_size", 1)
    heard: list[tuple[int, int]] = []  # at every final: samples in which speech was looked for, chunks not final
    with demo.session(partials=False) as session:
        told = session._hearing.told

        def put(event: LiveEvent) -> None:
            if isinstance(event, Final):
                heard.append((session._hearing._position, session._hearing._pending))
            Told.put(told, event)

        monkeypatch.setattr(told, "put", put)
        for _ in range(8):
            session.feed(sound)
        session.end()
        assert len(session.result(PATIENCE).segments) > 16
    positions = [position for position, _ in heard]
    assert positions[0] < 7 * sound.size, "told before the end"
    assert max(pending for _, pending in heard) <= 2 * 1 + 8, "and those of half a minute, which are found at once"


def test_nobody_listens_for_long() -> None:
    """Partials that newer ones or finals replace are left out; all else stays, in order."""
    told = Told()
    final = Final(0.0, 0, 0.0, 1.0, ())
    for number in range(3 * MOST_WAITING):
        told.put(Partial(float(number), number // 300, (), 0, str(number), ""))
        if number % 300 == 299:
            told.put(final)
    told.close()
    events = list(told)
    assert events.count(final) == 2 and len(events) <= MOST_WAITING + 3
    texts = [event.text for event in events if isinstance(event, Partial)]
    assert texts == [*map(str, range(MOST_WAITING - 1)), str(3 * MOST_WAITING - 1)]


# --- language ---------------------------------------------------------------------------------------------------------


def test_the_language_is_told_of_what_was_heard_first() -> None:
    swedish = sorted(real("data/audio/sv").glob("*"))[0]
    audio = mlx_speech.load_audio(swedish)
    with Pipeline(real_weights("whisper-base")) as pipeline:
        events = list(pipeline.live(cut(audio, 8), partials=False, word_timestamps="attention"))
        offline = pipeline(audio, word_timestamps="attention", **LIVE)
    assert ended(events).language == offline.language == "sv"
    assert ended(events).text == offline.text


class Guesses:
    """Stands for the detection of the language: how probable it is, call after call."""

    def __init__(self, *probabilities: float) -> None:
        self.probabilities = list(probabilities)
        self.chunks: list[int] = []

    def __call__(self, audio: np.ndarray, chunks: Any, *arguments: Any, **keywords: Any) -> tuple[str, float]:
        self.chunks.append(len(chunks))
        return "en", self.probabilities.pop(0)


@pytest.mark.parametrize(
    ("guesses", "calls"),
    [
        (Guesses(0.95), [1]),  # certain
        (Guesses(0.2, 0.95), [1, 2]),  # of two chunks together
        (Guesses(0.2, 0.2), [1, 2]),  # it never is: 3 s behind the first it is taken all the same
    ],
)
def test_an_uncertain_language_waits_for_more(
    monkeypatch: pytest.MonkeyPatch, sound: np.ndarray, guesses: Guesses, calls: list[int]
) -> None:
    monkeypatch.setattr(language.batched, "detect_language", guesses)
    short = np.concatenate([sound[: int(1.5 * SAMPLE_RATE)], np.zeros(SAMPLE_RATE, np.float32)])
    with Pipeline.demo() as pipeline:
        pipeline._defaults.clear()  # the demo's says English
        events = list(pipeline.live(np.split(np.tile(short, 3), 75), partials=False))
    assert guesses.chunks == calls
    assert len([event for event in events if isinstance(event, Final)]) == 3
    assert ended(events).language == "en"


def test_a_short_word_is_final_soon_even_if_its_language_is_not_certain(
    monkeypatch: pytest.MonkeyPatch, sound: np.ndarray
) -> None:
    monkeypatch.setattr(language.batched, "detect_language", Guesses(0.2))
    silence = np.zeros(6 * SAMPLE_RATE, np.float32)
    short = np.concatenate([sound[: int(1.5 * SAMPLE_RATE)], silence])
    with Pipeline.demo() as pipeline:
        pipeline._defaults.clear()
        events = list(pipeline.live(np.split(short, 75), partials=False))
    (final,) = [event for event in events if isinstance(event, Final)]
    assert final.end + 3 <= final.at < final.end + 4 and final.segments


# --- ends and errors --------------------------------------------------------------------------------------------------


def test_asynchronously(demo: Pipeline, sound: np.ndarray) -> None:
    short = sound[: 5 * SAMPLE_RATE]

    async def blocks() -> AsyncIterator[np.ndarray]:
        for block in cut(short, 9):
            yield block

    async def hear(source: Any) -> list[LiveEvent]:
        return [event async for event in demo.live_async(source, step=1.0)]

    offline = demo(short, **window(demo))
    for source in (blocks(), cut(short, 9)):
        events = in_time(hear(source))
        check_order(events)
        check_equal(ended(events), offline)


def test_an_asynchronous_source_that_fails(demo: Pipeline) -> None:
    async def blocks() -> AsyncIterator[np.ndarray]:
        yield np.zeros(1600, np.float32)
        raise RuntimeError("the source is broken")

    async def hear() -> None:
        async for _ in demo.live_async(blocks()):
            pass

    with pytest.raises(RuntimeError, match="the source is broken"):
        in_time(hear())


def test_a_session_that_is_cancelled_lets_go_of_everything(demo: Pipeline, sound: np.ndarray) -> None:
    session = demo.session(step=0.5, every_partial=True)
    listening = threading.Thread(target=lambda: list(session.events()))
    listening.start()
    session.feed(sound)
    session.cancel()
    listening.join(PATIENCE)
    assert not listening.is_alive()
    with pytest.raises(PipelineClosed):
        session.feed(sound)
    assert session.waiting == 0.0
    assert demo(sound[: 5 * SAMPLE_RATE]).segments, "others go on"
    assert not demo._batches._batches and not demo._rounds._waiting and not demo._engine._under_way


def test_a_generator_that_is_closed_early_ends_its_session(demo: Pipeline, sound: np.ndarray) -> None:
    taken: list[int] = []

    def blocks() -> Iterator[np.ndarray]:
        for number, block in enumerate(np.split(sound, 14)):
            taken.append(number)
            yield block

    events = demo.live(blocks(), partials=False)
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert len(taken) <= 3


def test_what_is_no_sound(demo: Pipeline) -> None:
    for wrong in (np.zeros((2, 2, 2)), np.array(["a"]), np.array([np.nan]), np.array([100.0])):
        with demo.session() as session, pytest.raises(AudioError):
            session.feed(wrong)


def test_what_needs_all_of_a_recording(demo: Pipeline) -> None:
    for options in ({"sequential": True}, {"vad": False}, {"vad_method": "pyannote"}, {"audio_track": 1}):
        with pytest.raises(OptionError, match="recordings"):
            demo.session(**options)
    for options in ({"step": 0.0}, {"step": float("nan")}, {"finals": "soon"}):
        with pytest.raises(OptionError, match=next(iter(options))):
            demo.session(**options)
    with Pipeline.demo(low_memory=True) as small, pytest.raises(OptionError, match="low_memory"):
        small.session()


def test_errors_of_the_job_are_raised_by_who_listens(demo: Pipeline, sound: np.ndarray) -> None:
    with demo.session(chunk_size=29.0) as session:  # longer than the demo's window
        with pytest.raises(OptionError, match="chunk_size"):
            list(session.events())
        with pytest.raises(OptionError, match="chunk_size"):
            session.wait_until_heard()


def test_a_partial_that_fails_does_not_end_the_session(
    monkeypatch: pytest.MonkeyPatch, demo: Pipeline, sound: np.ndarray
) -> None:
    def hear(*arguments: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(rounds.partials, "hear", hear)
    with pytest.warns(UserWarning, match="partials"):
        events = list(demo.live(cut(sound, 1), step=1.0))
    assert not [event for event in events if isinstance(event, Partial)]
    check_equal(ended(events), demo(sound, **window(demo)))


def test_one_bad_round_does_not_end_the_others_of_its_batch(demo: Pipeline, sound: np.ndarray) -> None:
    shared = rounds.Rounds(demo.models, demo.workload)
    options = rounds.partials.partial_options(DecodingOptions())
    good = shared.ask(Round(sound[: 3 * SAMPLE_RATE], "en"), options)
    bad = shared.ask(Round(np.zeros((2, 16_000), np.float32), "en"), options)
    assert shared.advance()
    assert good.done and good.words and good.error is None
    assert bad.done and bad.error is not None
    with pytest.raises(AudioError, match="one channel"):
        demo.submit_partial(np.zeros((2, 16_000), np.float32)).result(PATIENCE)


def test_a_clustering_that_fails_does_not_end_the_session(
    monkeypatch: pytest.MonkeyPatch, demo: Pipeline, sound: np.ndarray
) -> None:
    def fail() -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(speakers.GrowingDiarization, "snapshot", lambda growing: fail)
    with pytest.warns(UserWarning, match="speakers"):
        events = list(demo.live(small(sound, 16_000), partials=False, diarize=True))
    expected = [word.text for word in demo(sound, **window(demo)).words]
    assert [word.text for word in ended(events).words] == expected


def test_a_pipeline_that_is_closed_says_so(sound: np.ndarray) -> None:
    pipeline = Pipeline.demo()
    session = pipeline.session()
    session.feed(sound)
    pipeline.close()
    with pytest.raises(PipelineClosed):
        list(session.events())
    with pytest.raises(PipelineClosed):
        session.wait_until_heard()
    assert session.waiting == 0.0


def test_a_generator_that_is_never_advanced_begins_nothing(demo: Pipeline, sound: np.ndarray) -> None:
    before = len(demo._engine._under_way)
    events = demo.live([sound])
    del events
    demo(sound[:SAMPLE_RATE])  # the engine has had turns
    assert len(demo._engine._under_way) == before == 0
    with pytest.raises(OptionError, match="step"):
        demo.live([sound], step=0.0)


@pytest.mark.parametrize("partials", [False, True])
def test_a_long_gap_is_not_laid_out_in_memory(demo: Pipeline, sound: np.ndarray, partials: bool) -> None:
    first = sound[: 4 * SAMPLE_RATE]
    most = 0
    with demo.session(partials=partials) as session:
        session.feed(first)
        session.feed(Block(first, start=200.0))
        while session.waiting:
            most = max(most, len(session._hearing._buffer))
        session.wait_until_heard()
        session.feed(Block(first[:0], start=210.0))
        session.end()
        transcript = session.result(PATIENCE)
    assert most < 60 * SAMPLE_RATE
    assert transcript.duration == 210.0
    texts = [segment.text for segment in transcript.segments]
    half = len(texts) // 2
    assert texts[:half] == texts[half:] and transcript.segments[half].start > 200


def test_a_pipeline_with_sessions_behind_it_is_freed(sound: np.ndarray) -> None:
    pipeline = Pipeline.demo()
    list(pipeline.live([sound[: 2 * SAMPLE_RATE]]))
    watched = weakref.ref(pipeline)
    del pipeline
    gc.collect()
    assert watched() is None


def test_the_sound_that_is_kept_is_bounded(demo: Pipeline, sound: np.ndarray) -> None:
    with demo.session(partials=False) as session:
        most = 0
        for _ in range(3):
            for block in np.split(sound, 14):
                session.feed(block)
                session.wait_until_heard()
                most = max(most, len(session._hearing._buffer))
        silence = np.zeros(60 * SAMPLE_RATE, np.float32)
        for _ in range(3):
            session.feed(silence)
            session.wait_until_heard()
        assert len(session._hearing._buffer) < 5 * SAMPLE_RATE
        session.end()
        session.result(PATIENCE)
    assert most < 20 * SAMPLE_RATE
