"""Words of a turn of the live socket while it is spoken: when they are asked for, what is told, and what is left."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI
from patience import in_time
from serving import demo_pipeline
from test_realtime import LIMIT, RATE, Client, Scripted, loud, of, quiet, serving, settled

from mlx_speech import Pipeline, load_audio, package_data
from mlx_speech.errors import AudioError
from mlx_speech.request import Request
from mlx_speech.server.realtime.configuration import default_configuration
from mlx_speech.server.realtime.finder import TurnDetection
from mlx_speech.server.realtime.limits import Limits
from mlx_speech.server.realtime.recognition import (
    Cleared,
    Committed,
    Completed,
    Failed,
    Happening,
    RecognitionSettings,
    SpeechStarted,
    Text,
)
from mlx_speech.server.realtime.turns import Turns
from mlx_speech.server.realtime.words import Words, rest_of, untold
from mlx_speech.server.service import Service
from mlx_speech.server.settings import Settings
from mlx_speech.stages.whisper.word_times import WordTiming
from mlx_speech.transcript import Segment, Transcript

STEP = 0.5
BLOCK = 0.1  # seconds


# --- what is left to be told -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told", "rest"),
    [
        ("Ask not what your country", "", "Ask not what your country"),
        ("Ask not what your country", "Ask not", " what your country"),
        ("Ask not what, your country.", "ask Not what", " your country."),
        ("Ask not what your country", "Ask knot what", " your country"),
        ("Ask not what your country", "Ask now", " what your country"),
        ("And so ask not what", "so ask not", " what"),
        ("Ask not", "Ask not what", ""),
        ("", "Ask not", ""),
        ("Go on", "Stop", " on"),
        ("今日は天気がいい", "京は", "天気がいい"),
        ("Twenty five horses", "25", " five horses"),
    ],
)
def test_what_is_left_of_a_text(text: str, told: str, rest: str) -> None:
    assert rest_of(text, told) == rest


WORDS = st.lists(st.sampled_from(["a", "b", "c,", "D"]), max_size=6)


@given(WORDS, WORDS, st.lists(st.integers(0, 30), max_size=4))
def test_what_is_left_is_the_end_of_the_text(words: list[str], other: list[str], cuts: list[int]) -> None:
    """For every cut into pieces; and as many words as were told are known to be the same."""
    text = " ".join(words)
    told = " ".join(other)
    rest = rest_of(text, told)
    assert text.endswith(rest) and (not other or not words or rest != text or not told)
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(places)]
    left = untold(pieces, told)
    assert "".join(left) == rest and all(left)
    if [word.casefold() for word in words[: len(other)]] == [word.casefold() for word in other]:
        assert rest == text[len(told) :]


def test_rounds_fall_on_whole_steps() -> None:
    words = Words("item", 1_000)
    assert words.due(1_000 + 15_999, 0.5) is None, "0.5 s is too little"
    assert words.due(1_000 + 16_000, 0.5) == 17_000
    assert words.due(1_000 + 23_999, 0.5) == 17_000
    assert words.due(1_000 + 47_999, 0.25) == 45_000, "those that are late are left out"
    words.give_up()
    assert words.due(1_000 + 16_000, 0.5) is None


@pytest.mark.parametrize(
    ("delay", "step"), [(None, 0.5), ("minimal", 0.25), ("low", 0.5), ("medium", 1.0), ("high", 2.0), ("xhigh", None)]
)
def test_delays_are_steps(delay: str | None, step: float | None) -> None:
    service = Service(Settings(), {"demo": Scripted()})  # type: ignore[dict-item]
    session: dict[str, Any] = {"audio": {"input": {"transcription": {"delay": delay}}}}
    assert default_configuration(service).updated(session).recognition_settings(service).step == step


# --- with a pipeline that is told what to hear ------------------------------------------------------------------------


class Speaking(Scripted):
    """Hears a word in every half second of sound, "one" to "nine"; the last of them before a guard of 0.2 s is cut.

    rounds : seconds of sound that were asked for, and the request
    final : what it says of a whole turn
    """

    NAMES = "one two three four five six seven eight nine".split()

    def __init__(self, held: bool = False, final: str | None = None, broken: Exception | None = None) -> None:
        super().__init__()
        self.rounds: list[tuple[float, Request[Any]]] = []
        self.rounds_held = held
        self.final = final
        self.broken = broken

    def submit_partial(self, samples: np.ndarray, firm: tuple[int, ...] = (), **options: Any) -> Request[Any]:
        request: Request[Any] = Request()
        self.rounds.append((samples.size / 16_000, request))
        if self.broken is not None:
            request._fail(self.broken)
        elif not self.rounds_held:
            self.answer(samples.size / 16_000, request, len(firm))
        return request

    def answer(self, seconds: float, request: Request[Any], firm: int = 0) -> None:
        """What a round gives. firm : words that it was given"""
        count = min(9, int(seconds / 0.5))
        words = [WordTiming(f" {self.NAMES[k]}", (k,), 0.5 * k, 0.5 * (k + 1), 0.9) for k in range(count)]
        request._finish(words[firm:])

    def finish(self, request: Request[Any], samples: np.ndarray) -> None:
        if self.final is None:
            super().finish(request, samples)
        else:
            request._finish(Transcript((Segment(0.0, 1.0, self.final),)))


class Play:
    """A client that speaks as fast as it is heard, block after block."""

    def __init__(self, pipeline: Speaking, detection: TurnDetection | None, step: float | None = STEP) -> None:
        self.happenings: list[Happening] = []
        self.pipeline = pipeline
        settings = RecognitionSettings(pipeline, {}, detection, step)  # type: ignore[arg-type]
        self.turns = Turns(settings, self.happenings.append, Limits())

    async def say(self, samples: np.ndarray) -> None:
        for start in range(0, samples.size, round(16_000 * BLOCK)):
            self.turns.feed(samples[start : start + round(16_000 * BLOCK)])
            await settled(lambda: not self.turns._queue)
            for _ in range(20):  # turns of the loop, in which rounds that are not held come to their end
                await asyncio.sleep(0)
            if not self.pipeline.rounds_held:
                await settled(lambda: self.turns._round is None)

    async def all(self, kind: type, count: int = 1) -> list[Any]:
        await settled(lambda: len(of(kind, self.happenings)) >= count)
        return of(kind, self.happenings)

    def run(self, script: Any) -> list[Happening]:
        async def play() -> None:
            running = asyncio.create_task(self.turns.run())
            await asyncio.wait_for(script(self), LIMIT)
            self.turns.close()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

        in_time(play())
        return self.happenings


@pytest.mark.parametrize("found", [True, False])
def test_firm_words_are_told_before_the_turn_ends(found: bool) -> None:
    """With one item; those of its end behind its commit; rounds fall on whole steps."""
    pipeline = Speaking(final="One two three four five six and more.")

    async def script(play: Play) -> None:
        await play.say(np.concatenate([quiet(0.5), loud(2.8)]))
        assert "".join(text.text for text in of(Text, play.happenings)) == "one two three four five"
        if found:
            await play.say(quiet(1))
        else:
            play.turns.commit(None)
        await play.all(Completed)

    happenings = Play(pipeline, TurnDetection() if found else None).run(script)
    (committed,) = of(Committed, happenings)
    texts = of(Text, happenings)
    assert {text.item for text in texts} == {committed.item}
    if found:
        assert of(SpeechStarted, happenings)[0].item == committed.item
    assert "".join(text.text for text in texts) == "one two three four five six and more."
    assert texts[0].text == "one two" or texts[0].text == "one"
    (completed,) = of(Completed, happenings)
    assert completed.text == "One two three four five six and more."
    assert all(seconds % STEP == 0 for seconds, _ in pipeline.rounds) and len(pipeline.rounds) >= 5


@pytest.mark.parametrize("moments", range(8))
def test_a_commit_at_any_moment_of_a_round_loses_no_words(moments: int) -> None:
    """moments : turns of the loop between what a round gives and the commit"""
    pipeline = Speaking(final="one two three")

    async def script(play: Play) -> None:
        await play.say(loud(1))
        pipeline.rounds_held = True
        await play.say(loud(0.5))
        pipeline.answer(1.5, pipeline.rounds[-1][1])
        for _ in range(moments):
            await asyncio.sleep(0)
        play.turns.commit(None)
        await play.all(Completed)

    happenings = Play(pipeline, None).run(script)
    assert "".join(text.text for text in of(Text, happenings)) == "one two three"


def test_silence_is_not_heard_again_and_again() -> None:
    pipeline = Speaking()

    async def script(play: Play) -> None:
        await play.say(quiet(3))
        assert not pipeline.rounds
        await play.say(loud(1))
        await play.say(quiet(5))
        assert 1 <= len(pipeline.rounds) <= 3

    Play(pipeline, None).run(script)


def test_one_round_at_a_time_and_late_ones_are_left_out() -> None:
    pipeline = Speaking(held=True)

    async def script(play: Play) -> None:
        await play.say(loud(4.2))
        ((_, first),) = pipeline.rounds
        first._finish([])
        await settled(lambda: len(pipeline.rounds) == 2)
        assert pipeline.rounds[1][0] == 4.0

    Play(pipeline, TurnDetection()).run(script)
    assert pipeline.rounds[1][1].cancelled(), "the session is over"


def test_nothing_is_asked_while_a_turn_is_recognised() -> None:
    pipeline = Speaking()
    pipeline.held = True

    async def script(play: Play) -> None:
        await play.say(np.concatenate([loud(1), quiet(1)]))
        await play.all(Committed)
        asked = len(pipeline.rounds)
        await play.say(loud(2))
        assert len(pipeline.rounds) == asked
        whole = next((request, samples) for request, samples in pipeline.requests if not request.done())
        pipeline.finish(*whole)
        await play.all(Completed)
        await settled(lambda: len(pipeline.rounds) > asked)

    Play(pipeline, TurnDetection()).run(script)


@pytest.mark.parametrize("detection", [TurnDetection(), None])
def test_nothing_follows_what_was_cleared(detection: TurnDetection | None) -> None:
    pipeline = Speaking()

    async def script(play: Play) -> None:
        await play.say(loud(2))
        item = of(Text, play.happenings)[0].item
        pipeline.rounds_held = True
        await play.say(loud(0.6))
        play.turns.clear()
        await play.all(Cleared)
        assert pipeline.rounds[-1][1].cancelled()
        place = len(play.happenings)
        pipeline.rounds_held = False
        await play.say(loud(2))
        play.turns.commit(None)
        await play.all(Completed)
        behind = play.happenings[place:]
        assert of(Text, behind) and item not in {getattr(one, "item", None) for one in behind}

    Play(pipeline, detection).run(script)


@pytest.mark.parametrize("error", [AudioError("too long"), RuntimeError("a bug")])
def test_a_round_that_fails_is_the_last_of_its_turn(error: Exception) -> None:
    pipeline = Speaking(final="All of it.", broken=error)

    async def script(play: Play) -> None:
        await play.say(np.concatenate([loud(3), quiet(1)]))
        await play.all(Completed)
        assert len(pipeline.rounds) == 1
        pipeline.broken = None
        await play.say(loud(3))
        assert len(pipeline.rounds) > 2

    happenings = Play(pipeline, TurnDetection()).run(script)
    assert "".join(text.text for text in of(Text, happenings)).startswith("All of it.")


def test_nothing_follows_a_turn_that_fails() -> None:
    pipeline = Speaking()
    pipeline.held = True

    async def script(play: Play) -> None:
        await play.say(np.concatenate([loud(2), quiet(1)]))
        await play.all(Committed)
        for request, _ in pipeline.requests:
            if not request.done():
                request._fail(RuntimeError("a bug"))
        (failed,) = await play.all(Failed)
        await play.say(quiet(2))
        of_item = [one for one in play.happenings if getattr(one, "item", None) == failed.item]
        assert of_item[-1] is failed and of(Text, of_item)

    Play(pipeline, TurnDetection()).run(script)


def test_without_a_step_nothing_is_asked() -> None:
    pipeline = Speaking()

    async def script(play: Play) -> None:
        await play.say(loud(3))
        play.turns.commit(None)
        await play.all(Completed)

    Play(pipeline, None, step=None).run(script)
    assert not pipeline.rounds


# --- the socket, with the official client ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with demo_pipeline(tmp_path_factory.mktemp("cache")) as pipeline:
        yield pipeline


def first_with_words(events: list[tuple[str | None, Any]]) -> str | None:
    """The item of the first words; a shorter turn behind it may be done before it."""
    return next((item for item, event in events if event.type.endswith("transcription.delta")), None)


def test_the_official_client_reads_words_while_they_are_spoken(pipe: Pipeline) -> None:
    """It speaks at the pace of speech, and stops in the middle of a turn once it has read some words."""
    samples = load_audio(package_data.DEMO / "conversation.flac", sample_rate=RATE)[: round(4.5 * RATE)]
    sound = (samples * 32767).astype("<i2").tobytes()
    block = RATE // 10 * 2  # bytes of 0.1 s

    async def talk(address: str) -> list[tuple[str | None, Any]]:
        events: list[tuple[str | None, Any]] = []
        client = AsyncOpenAI(api_key="none", base_url=f"http://{address}/v1", timeout=LIMIT)
        async with client.realtime.connect(model="demo") as connection:
            session: Any = {"type": "transcription", "audio": {"input": {"transcription": {"language": "en"}}}}
            await connection.session.update(session=session)

            async def speak() -> None:
                start = time.monotonic()
                for place in range(0, len(sound), block):
                    data = base64.b64encode(sound[place : place + block]).decode()
                    await connection.input_audio_buffer.append(audio=data)
                    await asyncio.sleep(max(0.0, start + (place + block) / (2 * RATE) - time.monotonic()))
                silence = base64.b64encode(bytes(2 * RATE)).decode()
                await connection.input_audio_buffer.append(audio=silence)

            speaking = asyncio.create_task(speak())
            async for event in connection:
                item = event.item.id if event.type == "conversation.item.done" else getattr(event, "item_id", None)
                events.append((item, event))
                if event.type == "conversation.item.done" and item == first_with_words(events):
                    break
            speaking.cancel()
        return events

    service = Service(Settings(), {"demo": pipe})
    with serving(service) as address:
        told = in_time(talk(address))
    spoken = first_with_words(told)
    for kind in ("speech_started", "committed"):
        assert spoken == next(item for item, event in told if event.type.endswith(f".{kind}"))
    events = [event for item, event in told if item == spoken]
    kinds = [event.type.rpartition(".")[2] for event in events]
    assert kinds.index("speech_started") < kinds.index("delta") < kinds.index("speech_stopped"), kinds
    deltas = "".join(event.delta for event in events if event.type.endswith("transcription.delta"))
    assert events[kinds.index("completed")].transcript.casefold() == deltas.casefold()


def test_metrics_tell_how_long_words_take(pipe: Pipeline, tmp_path: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    def figures() -> dict[str, float]:
        (text,) = [route.endpoint for route in service.metrics.routes()]
        body = in_time(text(None)).body.decode()  # type: ignore[arg-type]
        samples = [one for family in text_string_to_metric_families(body) for one in family.samples]
        return {one.name.removeprefix("mlx_speech_live_"): one.value for one in samples if "_live_" in one.name}

    service = Service(Settings(data_dir=tmp_path), {"demo": pipe})
    with serving(service, Limits(unheard=2)) as address, Client(address) as client:
        assert figures()["sessions"] == 1
        client.update(turn_detection=None, transcription={"delay": "xhigh"})
        client.append(bytes(2 * RATE * 5))
        client.until("error")
        client.send("input_audio_buffer.commit")
        client.until("completed")
        found = figures()
        assert found["final_seconds_count"] == 1 and found["overflow_total"] >= 1
        assert found["first_partial_seconds_count"] == 0 and found["partials_total"] == 0
