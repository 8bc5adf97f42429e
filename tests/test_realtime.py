"""The socket of live transcription: OpenAI's own client on loopback, wrong messages, and the parts alone."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import av
import numpy as np
import pytest
import uvicorn
import websockets.sync.client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI, OpenAI
from patience import in_time, until
from serving import demo_pipeline
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from websockets.exceptions import ConnectionClosed, InvalidStatus

from mlx_speech import Pipeline, load_audio, package_data
from mlx_speech.audio import audio_from_array
from mlx_speech.errors import OptionError, PipelineClosed
from mlx_speech.request import Request
from mlx_speech.server.errors import ApiError
from mlx_speech.server.guard import Guard
from mlx_speech.server.realtime import g711
from mlx_speech.server.realtime.configuration import Configuration, default_configuration
from mlx_speech.server.realtime.finder import WINDOW, Edge, TurnDetection, TurnFinder
from mlx_speech.server.realtime.limits import WS_MAX_QUEUE, WS_MAX_SIZE, Limits
from mlx_speech.server.realtime.recognition import (
    Broken,
    Committed,
    Completed,
    Failed,
    Happening,
    RecognitionSettings,
    Refused,
    SpeechStarted,
    SpeechStopped,
    Text,
)
from mlx_speech.server.realtime.routes import routes
from mlx_speech.server.realtime.sound import Decoder, Format
from mlx_speech.server.realtime.stopwatch import Stopwatch
from mlx_speech.server.realtime.tokens import Secrets
from mlx_speech.server.realtime.turns import Turns, pieces
from mlx_speech.server.service import Service
from mlx_speech.server.settings import Settings
from mlx_speech.stages.vad import speech_timestamps
from mlx_speech.transcript import Segment, Transcript

LIMIT = 60  # seconds for what must not hang
RATE = 24_000
SECONDS = 14  # of the conversation
BLOCK = 960  # bytes: 20 ms
Event = dict[str, Any]

# random sound may be so quiet that the pipeline warns
pytestmark = pytest.mark.filterwarnings("default:::mlx_speech")


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with demo_pipeline(tmp_path_factory.mktemp("cache")) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def sound() -> bytes:
    """The beginning of a conversation, 16 bits at 24 kHz."""
    samples = load_audio(package_data.DEMO / "conversation.flac", sample_rate=RATE)[: SECONDS * RATE]
    return (samples * 32767).astype("<i2").tobytes()


@contextmanager
def serving(
    service: Service, limits: Limits | None = None, wrap: Callable[[ASGIApp], ASGIApp] = lambda app: app, **more: Any
) -> Iterator[str]:
    """The address of a server with these routes: "127.0.0.1:…"."""

    async def answer(request: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    app = Starlette(routes=routes(service, limits=limits, **more), exception_handlers={ApiError: answer})
    # with the protocol told: asyncio sends small messages at once over such sockets only
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    config = uvicorn.Config(
        wrap(app), log_config=None, ws_max_size=WS_MAX_SIZE, ws_max_queue=WS_MAX_QUEUE, timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield "{}:{}".format(*listener.getsockname())
    finally:
        server.should_exit = True
        thread.join(LIMIT)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def service(pipe: Pipeline) -> Service:
    return Service(Settings(), {"demo": pipe})


@pytest.fixture(scope="module")
def address(service: Service) -> Iterator[str]:
    with serving(service) as place:
        yield place


class Client:
    """A socket without any library's idea of what may be sent."""

    def __init__(self, address: str, query: str = "", **keywords: Any) -> None:
        url = f"ws://{address}/v1/realtime{query}"
        self.socket = websockets.sync.client.connect(url, max_size=None, open_timeout=LIMIT, **keywords)
        self.session = self.receive()["session"]

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()

    def send(self, kind: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def receive(self) -> Event:
        return json.loads(self.socket.recv(timeout=LIMIT))

    def until(self, *kinds: str) -> Event:
        """The next event of one of these types."""
        while True:
            event = self.receive()
            if event["type"].removeprefix("conversation.item.input_audio_transcription.") in kinds:
                return event

    def append(self, data: bytes, block: int | None = None) -> None:
        size = block or max(1, len(data))
        for start in range(0, len(data), size):
            encoded = base64.b64encode(data[start : start + size]).decode()
            self.send("input_audio_buffer.append", audio=encoded)

    def update(self, **given: Any) -> Event:
        """Set something of `audio.input`."""
        self.send("session.update", session={"type": "transcription", "audio": {"input": given}})
        return self.until("session.updated", "error")


def expected(pipe: Pipeline, data: bytes, **options: Any) -> str:
    """What the pipeline says of the same sound as a recording."""
    samples = audio_from_array(np.frombuffer(data, "<i2"), RATE)
    return "".join(pieces(pipe(samples, **options).segments))


# --- sound -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("table", "codec"), [(g711.mu_law, "pcm_mulaw"), (g711.a_law, "pcm_alaw")])
def test_tables_are_those_of_ffmpeg(table: Callable[[], np.ndarray], codec: str) -> None:
    decoder = av.CodecContext.create(codec, "r")
    decoder.sample_rate = 8_000
    decoder.layout = "mono"
    (frame,) = decoder.decode(av.Packet(bytes(range(256))))
    assert np.array_equal(table(), frame.to_ndarray().reshape(-1) / np.float32(32_768))


@settings(max_examples=60, deadline=None)
@given(
    rate=st.sampled_from([8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000]),
    channels=st.integers(1, 2),
    size=st.integers(0, 4_000),
    cuts=st.lists(st.integers(0, 16_000), max_size=8),
    seed=st.integers(0, 1_000),
)
def test_blocks_of_any_size_give_the_same_samples(
    rate: int, channels: int, size: int, cuts: list[int], seed: int
) -> None:
    """Also where a block ends in the middle of a sample; and they are those of the whole as an array."""
    samples = np.random.default_rng(seed).integers(-32_768, 32_767, (size, channels), dtype=np.int16, endpoint=True)
    data = samples.astype("<i2").tobytes()
    decoder = Decoder(Format("audio/pcm", rate, channels))
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    blocks = [decoder.decode(data[start:end]) for start, end in pairwise(places)]
    found = np.concatenate([*blocks, decoder.end()])
    mono = (samples / np.float32(32_768)).mean(axis=1, dtype=np.float32)
    assert np.array_equal(found, audio_from_array(mono, rate))
    assert not decoder.end().size


def test_a_decoder_begins_anew_behind_its_end() -> None:
    data = np.arange(0, 20_000, 3, dtype="<i2").tobytes()
    decoder = Decoder(Format())
    first = np.concatenate([decoder.decode(data + b"\1"), decoder.end()])
    assert np.array_equal(first, np.concatenate([decoder.decode(data), decoder.end()]))


# --- turns in probabilities ------------------------------------------------------------------------------------------

TRACKS = st.lists(st.sampled_from([0.0, 0.2, 0.34, 0.36, 0.4, 0.49, 0.5, 0.6, 1.0]), max_size=200)
ENDLESS = 1 << 40


def edges_of(probabilities: list[float], finder: TurnFinder) -> list[Edge]:
    edges: list[Edge] = []
    for probability in probabilities:
        edges += finder.step(probability)
    return edges


@settings(max_examples=200, deadline=None)
@given(TRACKS, st.integers(2, 12))
def test_turns_are_the_speech_of_the_offline_detector(probabilities: list[float], windows: int) -> None:
    """With a pause of so many windows. A turn lasts until its pause is long enough, speech until the pause begins."""
    milliseconds = windows * 32
    finder = TurnFinder(TurnDetection(0.5, 0, milliseconds), ENDLESS)
    edges = edges_of(probabilities, finder)
    speech = speech_timestamps(
        probabilities,
        num_samples=len(probabilities) * WINDOW,
        min_speech_duration_ms=0,
        min_silence_duration_ms=milliseconds - 32,  # of windows that have begun, there
        speech_pad_ms=0,
    )
    assert [edge.position for edge in edges if edge.begins] == [start for start, _ in speech]
    ends = [edge.position for edge in edges if not edge.begins]
    assert len(ends) == len(speech) - (finder.start is not None)
    for end, (_, offline_end) in zip(ends, speech, strict=False):
        assert end - offline_end >= windows * WINDOW


@settings(max_examples=200, deadline=None)
@given(TRACKS, st.integers(0, 1_000), st.integers(50, 500), st.integers(20, 60))
def test_turns_neither_meet_nor_grow_too_long(
    probabilities: list[float], padding: int, silence: int, windows: int
) -> None:
    longest = windows * WINDOW + padding * 16
    finder = TurnFinder(TurnDetection(0.5, padding, silence), longest)
    edges: list[Edge] = []
    for probability in probabilities:
        needed = finder.needed
        new = finder.step(probability)
        assert all(edge.position >= needed for edge in new), "a turn needs sound that was let go of"
        edges += new
    assert [edge.begins for edge in edges] == [k % 2 == 0 for k in range(len(edges))]
    positions = [edge.position for edge in edges]
    assert positions == sorted(positions)
    for begin, end in zip(positions[::2], positions[1::2], strict=False):
        assert 0 < end - begin <= longest
    assert finder.start is None or finder.position - finder.start <= longest


def test_a_long_turn_is_cut_where_speech_is_least_likely() -> None:
    probabilities = [0.9] * 30
    probabilities[26] = 0.4
    finder = TurnFinder(TurnDetection(0.5, 0, 500), 30 * WINDOW)
    assert edges_of(probabilities, finder) == [Edge(0, True), Edge(27 * WINDOW, False), Edge(27 * WINDOW, True)]


def test_the_detector_hears_the_same_in_blocks(pipe: Pipeline, sound: bytes) -> None:
    samples = audio_from_array(np.frombuffer(sound, "<i2"), RATE)[: 300 * WINDOW]
    whole, _ = pipe.submit_speech(samples).result(LIMIT)
    state = None
    blocks: list[np.ndarray] = []
    for start, end in pairwise([0, 1, 2, 50, 51, 300]):
        probabilities, state = pipe.submit_speech(samples[start * WINDOW : end * WINDOW], state).result(LIMIT)
        blocks.append(probabilities)
    assert whole.max() > 0.9 and np.abs(np.concatenate(blocks) - whole).max() < 1e-4
    with pytest.raises(OptionError, match="512"):
        pipe.submit_speech(samples[:100]).result(LIMIT)


# --- what a client may set -------------------------------------------------------------------------------------------


def given_input(**given: Any) -> dict[str, Any]:
    return {"type": "transcription", "audio": {"input": given}}


@pytest.mark.parametrize(
    ("session", "param"),
    [
        (5, "session"),
        ({"type": "realtime"}, "session.type"),
        ({"voice": "alloy"}, "session"),
        ({"audio": []}, "session.audio"),
        ({"audio": {"output": {}}}, "session.audio"),
        ({"include": ["item.input_audio_transcription.logprobs"]}, "session.include"),
        (given_input(format={"type": "audio/mp3"}), "session.audio.input.format.type"),
        (given_input(format={"rate": 7_999}), "session.audio.input.format.rate"),
        (given_input(format={"rate": 24_000.5}), "session.audio.input.format.rate"),
        (given_input(format={"rate": True}), "session.audio.input.format.rate"),
        (given_input(format={"type": "audio/pcmu", "rate": 16_000}), "session.audio.input.format.rate"),
        (given_input(noise_reduction={"type": "loud"}), "session.audio.input.noise_reduction.type"),
        (given_input(turn_detection={"type": "semantic_vad"}), "session.audio.input.turn_detection.type"),
        (given_input(turn_detection={"threshold": 1.5}), "session.audio.input.turn_detection.threshold"),
        (
            given_input(turn_detection={"silence_duration_ms": 0}),
            "session.audio.input.turn_detection.silence_duration_ms",
        ),
        (given_input(turn_detection={"treshold": 0.5}), "session.audio.input.turn_detection"),
        (given_input(transcription={"language": "Klingon"}), "session.audio.input.transcription"),
        (given_input(transcription={"language": 5}), "session.audio.input.transcription.language"),
        (given_input(transcription={"prompt": "x" * 10_001}), "session.audio.input.transcription.prompt"),
        (given_input(transcription={"prompt": "\ud800"}), "session.audio.input.transcription.prompt"),
        (given_input(transcription={"keywords": ["a", None]}), "session.audio.input.transcription.keywords"),
        (given_input(transcription={"delay": "none"}), "session.audio.input.transcription.delay"),
        (given_input(transcription={"model": "nonsense"}), "model"),
        (given_input(transcription={"model": "gpt-4o-transcribe-diarize"}), "model"),
    ],
)
def test_what_is_wrong_with_an_update_is_named(service: Service, session: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        default_configuration(service).updated(session).recognition_settings(service)
    assert caught.value.param == param and "\n" not in caught.value.message


def test_an_update_changes_what_it_names(service: Service) -> None:
    first = default_configuration(service, "whisper-1")
    changed = first.updated(
        given_input(turn_detection=None, transcription={"language": "English", "keywords": ["Ada"]})
    )
    assert changed.detection is None and changed.format == first.format
    assert changed.recognition_settings(service).options == {"language": "English", "hotwords": "Ada"}
    assert changed.transcription.model == "whisper-1"
    again = changed.updated(given_input(turn_detection={"type": "server_vad", "threshold": 0.7}))
    assert again.transcription == changed.transcription and again.detection == TurnDetection(threshold=0.7)
    assert again.updated(given_input(transcription=None)).recognition_settings(service).options == {}
    assert again.updated({}) == again


def test_older_updates_mean_the_same(service: Service) -> None:
    first = default_configuration(service)
    older = first.updated_by_older(
        {
            "input_audio_format": "g711_ulaw",
            "input_audio_transcription": {"model": "whisper-1", "language": "en", "prompt": "x"},
            "turn_detection": {"type": "server_vad", "silence_duration_ms": 300},
            "input_audio_noise_reduction": {"type": "near_field"},
        }
    )
    newer = first.updated(
        given_input(
            format={"type": "audio/pcmu"},
            transcription={"model": "whisper-1", "language": "en", "prompt": "x"},
            turn_detection={"type": "server_vad", "silence_duration_ms": 300},
        )
    )
    assert older == newer and older.format == Format("audio/pcmu", 8_000)


# --- turns, with a pipeline that is told what to do -----------------------------------------------------------------


class Scripted:
    """A pipeline that hears "N samples" once it is let; it finds speech in what is louder than 0.5."""

    def __init__(self, held: bool = False, deaf: bool = False) -> None:
        self.held = held
        self.deaf = deaf  # the detector gives no answer
        self.closed = False
        self.requests: list[tuple[Request[Any], np.ndarray]] = []

    def submit(self, samples: np.ndarray, **options: Any) -> Request[Transcript]:
        if self.closed:
            raise PipelineClosed("this pipeline is closed: make another one")
        request: Request[Transcript] = Request()
        self.requests.append((request, samples))
        if not self.held:
            self.finish(request, samples)
        return request

    def submit_speech(self, samples: np.ndarray, state: Any = None) -> Request[Any]:
        request: Request[Any] = Request()
        if not self.deaf:
            request._finish(((samples.reshape(-1, WINDOW).max(axis=1) > 0.5).astype(np.float32), None))
        self.requests.append((request, samples))
        return request

    def finish(self, request: Request[Any], samples: np.ndarray) -> None:
        text = f"{samples.size} samples"
        request._finish(Transcript((Segment(0.0, 1.0, text), Segment(1.0, 2.0, "of sound"))))


def loud(seconds: float) -> np.ndarray:
    return np.ones(round(16_000 * seconds), np.float32)


def quiet(seconds: float) -> np.ndarray:
    return np.zeros(round(16_000 * seconds), np.float32)


def heard(
    script: Callable[[Turns, list[Happening]], Any],
    pipeline: Scripted,
    detection: TurnDetection | None = None,
    limits: Limits | None = None,
) -> list[Happening]:
    """What happens while a coroutine plays the client."""
    happenings: list[Happening] = []

    async def play() -> None:
        turns = Turns(RecognitionSettings(pipeline, {}, detection), happenings.append, limits or Limits())  # type: ignore[arg-type]
        running = asyncio.create_task(turns.run())
        await asyncio.wait_for(script(turns, happenings), LIMIT)
        turns.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    in_time(play())
    return happenings


async def settled(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def of(kind: type, happenings: list[Happening]) -> list[Any]:
    return [happening for happening in happenings if isinstance(happening, kind)]


def codes(happenings: list[Happening]) -> list[str]:
    return [refused.error.code for refused in of(Refused, happenings)]


def test_everything_of_a_turn_comes_in_order() -> None:
    async def script(turns: Turns, happenings: list[Happening]) -> None:
        turns.feed(np.concatenate([quiet(1), loud(1), quiet(1)]))
        await settled(lambda: bool(of(Completed, happenings)))

    happenings = heard(script, Scripted(), TurnDetection())
    kinds = [type(happening) for happening in happenings]
    assert kinds == [SpeechStarted, SpeechStopped, Committed, Text, Text, Completed]
    started, stopped, *_, completed = happenings
    assert started.at == pytest.approx(0.7, abs=0.04) and stopped.at == pytest.approx(2.5, abs=0.04)
    assert "".join(text.text for text in of(Text, happenings)) == completed.text
    assert completed.text.endswith(" samples of sound")
    assert len({happening.item for happening in happenings}) == 1
    assert completed.seconds == pytest.approx(stopped.at - started.at)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cuts=st.lists(st.integers(0, 8 * 16_000), max_size=12))
def test_turns_do_not_depend_on_blocks(cuts: list[int]) -> None:
    samples = np.concatenate([quiet(0.5), loud(2), quiet(1), loud(0.2), quiet(0.3), loud(0.4), quiet(3.6)])
    places = [0, *sorted(cuts), samples.size]

    async def script(turns: Turns, happenings: list[Happening]) -> None:
        for start, end in pairwise(places):
            turns.feed(samples[start:end])
        await settled(lambda: len(of(Completed, happenings)) == 2)

    happenings = heard(script, Scripted(), TurnDetection())
    edges = [happening.at for happening in of(SpeechStarted, happenings) + of(SpeechStopped, happenings)]
    assert edges == pytest.approx([0.18, 3.18 + 0.004, 3.04, 4.928], abs=0.1)
    texts = [completed.text for completed in of(Completed, happenings)]
    assert texts == heard_whole(samples)


WHOLE: dict[int, list[str]] = {}


def heard_whole(samples: np.ndarray) -> list[str]:
    """The texts of the same sound in one block."""
    if samples.size not in WHOLE:

        async def script(turns: Turns, happenings: list[Happening]) -> None:
            turns.feed(samples)
            await settled(lambda: len(of(Completed, happenings)) == 2)

        WHOLE[samples.size] = [done.text for done in of(Completed, heard(script, Scripted(), TurnDetection()))]
    return WHOLE[samples.size]


def test_sound_that_waits_too_long_is_dropped_and_told() -> None:
    """A microphone, and a detector that is stuck."""

    async def script(turns: Turns, happenings: list[Happening]) -> None:
        assert turns.lag == 0
        for _ in range(30):
            turns.feed(loud(0.05))
            await asyncio.sleep(0.05)
        await settled(lambda: bool(of(Refused, happenings)))
        turns.feed(loud(0.05))
        await settled(lambda: turns.lag > 0)
        await asyncio.sleep(0.06)
        assert turns.lag >= 0.05  # it stands still: nothing is heard, and nothing comes

    happenings = heard(script, Scripted(deaf=True), TurnDetection(), Limits(late=0.5))
    assert set(codes(happenings)) == {"input_audio_buffer_overflow"}


def test_what_a_client_waits_for_is_counted(tmp_path: Path) -> None:
    service = Service(Settings(data_dir=tmp_path), {})
    stopwatch = Stopwatch(service.metrics)
    for happening in (
        SpeechStarted("a", 0.0),
        Text("a", "one"),
        Text("a", " two"),
        Committed("a", None),
        SpeechStarted("b", 2.0),
        Text("b", "four"),
        Text("a", " three"),
        Completed("a", "one two three", 2.0, None),
    ):
        stopwatch.see(happening)
    for seconds in (0.5, 2.5, 1.0):
        service.live.add(Mock(lag=seconds))
    value = service.metrics._registry.get_sample_value
    assert value("mlx_speech_live_partials_total") == 3
    assert value("mlx_speech_audio_seconds_total", {"kind": "live"}) == 2
    assert value("mlx_speech_live_first_partial_seconds_count") == 2
    assert value("mlx_speech_live_final_seconds_count") == 1
    assert value("mlx_speech_live_lag_seconds") == 2.5


def test_sound_that_comes_faster_than_it_is_said_is_not_late() -> None:
    async def script(turns: Turns, happenings: list[Happening]) -> None:
        for _ in range(200):
            turns.feed(loud(0.1))
        assert turns.lag < 0.5  # of twenty seconds
        turns.feed(quiet(1))
        await settled(lambda: bool(of(Completed, happenings)))

    happenings = heard(script, Scripted(), TurnDetection(), Limits(late=0.5))
    assert not codes(happenings) and len(of(Completed, happenings)) == 1


def test_no_more_sound_is_held_than_there_is_room_for() -> None:
    async def waiting(turns: Turns, happenings: list[Happening]) -> None:
        for _ in range(50):
            turns.feed(loud(1))
        await settled(lambda: bool(of(Refused, happenings)))
        assert turns._queued <= 10 * 16_000

    async def uncommitted(turns: Turns, happenings: list[Happening]) -> None:
        for _ in range(50):
            turns.feed(loud(1))
            await asyncio.sleep(0)
        await settled(lambda: not turns._queue)
        turns.commit("c")
        await settled(lambda: bool(of(Completed, happenings)))

    limits = Limits(unheard=10)
    assert "input_audio_buffer_overflow" in codes(heard(waiting, Scripted(deaf=True), TurnDetection(), limits))
    happenings = heard(uncommitted, Scripted(), None, limits)
    assert "input_audio_buffer_overflow" in codes(happenings)
    (completed,) = of(Completed, happenings)
    assert 8 <= completed.seconds <= 10


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.integers(1, 3), st.none()), max_size=20), st.floats(0.1, 30))
def test_dropping_keeps_times_and_order(plan: list[int | None], seconds: float) -> None:
    """Numbers are seconds of sound, None a commit."""
    turns = Turns(RecognitionSettings(Scripted(), {}, None), lambda _: None, Limits())  # type: ignore[arg-type]
    total = 0
    for entry in plan:
        if entry is None:
            turns.commit(None)
        else:
            turns.feed(loud(entry))
            total += entry * 16_000
    count = round(seconds * 16_000)
    assert turns._drop(count) == min(count, total) and turns._queued == total - min(count, total)
    sizes = [getattr(operation, "count", getattr(operation, "size", 0)) for operation in turns._queue]
    assert sum(sizes) == total
    commits = [operation for operation in turns._queue if hasattr(operation, "event_id")]
    assert len(commits) == plan.count(None)


def test_few_turns_are_under_way_at_once_and_end_with_the_session() -> None:
    pipeline = Scripted(held=True)

    async def script(turns: Turns, happenings: list[Happening]) -> None:
        for _ in range(5):
            turns.feed(loud(1))
            turns.commit(None)
        await settled(lambda: len(pipeline.requests) == 2)
        await asyncio.sleep(0.05)
        assert len(pipeline.requests) == 2
        pipeline.finish(*pipeline.requests[0])
        await settled(lambda: len(pipeline.requests) == 3)
        assert len(of(Completed, happenings)) == 1

    heard(script, pipeline, None, Limits(turns_at_once=2))
    assert [request.cancelled() for request, _ in pipeline.requests] == [False, True, True]


def test_the_detector_is_cancelled_with_the_session() -> None:
    pipeline = Scripted(deaf=True)

    async def script(turns: Turns, happenings: list[Happening]) -> None:
        turns.feed(loud(1))
        await settled(lambda: bool(pipeline.requests))

    heard(script, pipeline, TurnDetection())
    assert pipeline.requests[0][0].cancelled()


def test_a_turn_that_fails_does_not_end_the_session() -> None:
    pipeline = Scripted(held=True)

    async def script(turns: Turns, happenings: list[Happening]) -> None:
        turns.feed(loud(1))
        turns.commit(None)
        await settled(lambda: bool(pipeline.requests))
        pipeline.requests[0][0]._fail(RuntimeError("a bug"))
        await settled(lambda: bool(of(Failed, happenings)))
        pipeline.held = False
        turns.feed(loud(1))
        turns.commit(None)
        await settled(lambda: bool(of(Completed, happenings)))

    (failed,) = of(Failed, heard(script, pipeline))
    assert failed.error.code == "internal_error" and "bug" not in failed.error.message


def test_a_closed_pipeline_is_told() -> None:
    pipeline = Scripted()
    pipeline.closed = True

    async def script(turns: Turns, happenings: list[Happening]) -> None:
        turns.feed(loud(1))
        turns.commit(None)
        await settled(lambda: bool(of(Failed, happenings)))

    assert of(Failed, heard(script, pipeline))[0].error.code == "shutting_down"
    with Pipeline.demo() as closed:
        pass

    async def listening(turns: Turns, happenings: list[Happening]) -> None:
        turns.feed(loud(1))
        await settled(lambda: bool(of(Broken, happenings)))

    assert of(Broken, heard(listening, closed, TurnDetection()))  # type: ignore[arg-type]


def test_commits_and_clears() -> None:
    async def script(turns: Turns, happenings: list[Happening]) -> None:
        turns.commit("nothing")
        turns.feed(loud(0.09))
        turns.commit("short")
        turns.feed(loud(0.02))
        turns.commit("enough")
        turns.feed(loud(1))
        turns.clear()
        turns.commit("cleared")
        await settled(lambda: len(of(Refused, happenings)) == 3 and bool(of(Completed, happenings)))

    happenings = heard(script, Scripted(), None)
    assert [refused.event_id for refused in of(Refused, happenings)] == ["nothing", "short", "cleared"]
    assert set(codes(happenings)) == {"input_audio_buffer_commit_empty"}
    (completed,) = of(Completed, happenings)
    assert completed.text.startswith("1760 ")


def test_a_turn_that_is_open_ends_where_the_client_commits_or_hears_otherwise() -> None:
    pipeline = Scripted()

    async def script(turns: Turns, happenings: list[Happening]) -> None:
        turns.commit("no speech")
        turns.feed(np.concatenate([quiet(1), loud(1)]))
        turns.commit("c")
        turns.feed(loud(1))
        turns.configure(RecognitionSettings(pipeline, {}, None))  # type: ignore[arg-type]
        turns.feed(loud(1))
        turns.commit("manual")
        await settled(lambda: len(of(Completed, happenings)) == 3)

    happenings = heard(script, pipeline, TurnDetection())
    assert [refused.event_id for refused in of(Refused, happenings)] == ["no speech"]
    assert len(of(SpeechStarted, happenings)) == 2
    assert len(of(SpeechStopped, happenings)) == 1  # as OpenAI has it, none where the client commits
    previous = [committed.previous for committed in of(Committed, happenings)]
    items = [committed.item for committed in of(Committed, happenings)]
    assert previous == [None, *items[:-1]]
    assert [completed.seconds for completed in of(Completed, happenings)] == pytest.approx([1.3, 1.0, 1.0], abs=0.04)


# --- the socket, with the official client ----------------------------------------------------------------------------


def client_of(address: str) -> OpenAI:
    return OpenAI(api_key="none", base_url=f"http://{address}/v1", timeout=LIMIT)


def test_the_official_client_commits(address: str, pipe: Pipeline, sound: bytes) -> None:
    """Its classes, our text: that of the same sound as a recording."""
    kinds: list[str] = []
    text = ""
    with client_of(address).realtime.connect(model="demo", extra_query={"intent": "transcription"}) as connection:
        created = connection.recv()
        assert created.type == "session.created" and type(created).__name__ == "SessionCreatedEvent"
        transcription = {"model": "whisper-1", "language": "en", "delay": "xhigh"}  # no words before the end
        session: Any = given_input(turn_detection=None, transcription=transcription)
        connection.session.update(session=session)
        updated = connection.recv()
        assert type(updated).__name__ == "SessionUpdatedEvent"
        assert updated.session.audio.input.turn_detection is None
        assert updated.session.audio.input.transcription.model == "whisper-1"
        for start in range(0, len(sound), 10 * BLOCK):
            data = base64.b64encode(sound[start : start + 10 * BLOCK]).decode()
            connection.input_audio_buffer.append(audio=data)
        connection.input_audio_buffer.commit()
        while True:
            event = connection.recv()
            kinds.append(type(event).__name__)
            if event.type == "conversation.item.input_audio_transcription.delta":
                text += event.delta or ""
            if event.type == "conversation.item.input_audio_transcription.completed":
                completed = event
            if event.type == "conversation.item.done":
                break
    prefix = "ConversationItemInputAudioTranscription"
    deltas = kinds.count(f"{prefix}DeltaEvent")
    assert deltas > 1
    assert kinds == [
        "InputAudioBufferCommittedEvent",
        "ConversationItemAdded",
        *[f"{prefix}DeltaEvent"] * deltas,
        f"{prefix}CompletedEvent",
        "ConversationItemDone",
    ]
    assert completed.transcript == text == expected(pipe, sound, language="en") and len(text) > 50
    assert completed.usage.type == "duration" and completed.usage.seconds == SECONDS
    assert event.item.content[0].transcript == text


def turns_over(address: str, data: bytes, block: int | None) -> list[list[Any]]:
    """Of every item, what was told of it, in order; ids left out."""
    items: dict[str, list[Any]] = {}
    with Client(address) as client:
        client.update(transcription={"delay": "xhigh"})  # no words before the end: how many depends on the machine
        client.append(data, block)
        client.append(bytes(2 * RATE))
        client.send("input_audio_buffer.clear")  # comes behind all turns that are found
        cleared = False
        while not cleared or not all(said[-1] == ["done"] for said in items.values()):
            event = client.receive()
            cleared = cleared or event["type"] == "input_audio_buffer.cleared"
            item = event.get("item_id") or event.get("item", {}).get("id")
            if item is not None:
                shown = [event["type"].rpartition(".")[2]]
                shown += [
                    event[key] for key in ("audio_start_ms", "audio_end_ms", "delta", "transcript") if key in event
                ]
                items.setdefault(item, []).append(shown)
    return list(items.values())


def test_turns_that_are_found_do_not_depend_on_blocks(address: str, pipe: Pipeline, sound: bytes) -> None:
    by_frames = turns_over(address, sound, BLOCK)
    assert len(by_frames) > 1
    for told in by_frames:
        names = [name for name, *_ in told]
        assert names[:4] == ["speech_started", "speech_stopped", "committed", "added"]
        assert names[-2:] == ["completed", "done"] and set(names[4:-2]) == {"delta"}
        start, end = told[0][1], told[1][1]
        samples = audio_from_array(np.frombuffer(sound + bytes(2 * RATE), "<i2"), RATE)[16 * start : 16 * end]
        options: dict[str, Any] = {"threshold": 0.5, "min_speech_duration_ms": 0.0}
        transcript = pipe(samples, vad_options=options, word_timestamps=None)
        assert told[-2][1] == "".join(delta for _, delta in told[4:-2]) == "".join(pieces(transcript.segments))
    assert turns_over(address, sound, None) == by_frames
    assert turns_over(address, sound, 9_973) == by_frames


def test_telephones(address: str, pipe: Pipeline) -> None:
    """The same sound in A-law, which the client has made itself; older messages set it."""
    samples = load_audio(package_data.DEMO / "conversation.flac", sample_rate=8_000)[: 8_000 * 6]
    table = g711.a_law()
    codes_of_samples = np.argmin(np.abs(table[None] - samples[:, None]), axis=1).astype(np.uint8)
    decoded = audio_from_array(table[codes_of_samples], 8_000)
    with Client(address, "?model=whisper-1") as client:
        older = {"input_audio_format": "g711_alaw", "turn_detection": None}
        client.send("transcription_session.update", session=older)
        assert client.until("session.updated")["session"]["audio"]["input"]["format"] == {"type": "audio/pcma"}
        client.append(codes_of_samples.tobytes(), 160)
        client.send("input_audio_buffer.commit")
        assert client.until("completed")["transcript"] == "".join(pieces(pipe(decoded).segments)) != ""


def test_many_sessions_at_once_and_one_that_misbehaves(pipe: Pipeline, sound: bytes) -> None:
    short = sound[: 2 * RATE * 5]
    text = expected(pipe, short)
    service = Service(Settings(max_live=8), {"demo": pipe})

    async def talk(client: AsyncOpenAI) -> str:
        async with client.realtime.connect(model="demo") as connection:
            session: Any = given_input(turn_detection=None)
            await connection.session.update(session=session)
            for start in range(0, len(short), 10 * BLOCK):
                data = base64.b64encode(short[start : start + 10 * BLOCK]).decode()
                await connection.input_audio_buffer.append(audio=data)
                await asyncio.sleep(0)
            await connection.input_audio_buffer.commit()
            async for event in connection:
                if event.type == "conversation.item.input_audio_transcription.completed":
                    return event.transcript
        return "nothing"

    async def talk_all(address: str) -> list[str]:
        client = AsyncOpenAI(api_key="none", base_url=f"http://{address}/v1", timeout=LIMIT)
        return await asyncio.gather(*(talk(client) for _ in range(7)))

    def misbehave(address: str) -> None:
        client = Client(address)
        for _ in range(20):
            client.socket.send(b"\0" * 1_000)
            client.socket.send("[" * 100_000)
            client.append(short)
            client.send("input_audio_buffer.commit")
        client.socket.socket.shutdown(socket.SHUT_RDWR)  # without a word, and without having read anything

    with serving(service) as address, ThreadPoolExecutor(1) as pool:
        bad = pool.submit(misbehave, address)
        assert in_time(talk_all(address)) == [text] * 7
        bad.result(LIMIT)


def test_no_more_sessions_than_may_be(pipe: Pipeline) -> None:
    service = Service(Settings(max_live=2), {"demo": pipe})
    with serving(service) as address:
        with Client(address), Client(address):
            with pytest.raises(InvalidStatus) as caught:
                Client(address)
            response = caught.value.response
            assert response.status_code == 503 and response.headers["Retry-After"]
            assert json.loads(response.body or b"")["error"]["code"] == "too_many_sessions"
        deadline = time.monotonic() + LIMIT
        while True:  # those that have gone leave their places
            try:
                with Client(address):
                    break
            except InvalidStatus:
                assert time.monotonic() < deadline


@pytest.mark.parametrize(
    ("query", "status"),
    [("?model=nonsense", 404), ("?intent=conversation", 400), ("?model=gpt-4o-transcribe-diarize", 400)],
)
def test_what_cannot_be_is_refused_before_the_upgrade(address: str, query: str, status: int) -> None:
    with pytest.raises(InvalidStatus) as caught:
        Client(address, query)
    assert caught.value.response.status_code == status


def test_browsers_ask_for_a_subprotocol(address: str) -> None:
    protocols = [websockets.Subprotocol(name) for name in ("realtime", "openai-insecure-api-key.x")]
    with Client(address, subprotocols=protocols) as client:
        assert client.socket.subprotocol == "realtime"
    with Client(address) as client:
        assert client.socket.subprotocol is None


WRONG: dict[str, tuple[str | bytes, str]] = {
    "bytes": (b"\0\1", "invalid_json"),
    "no JSON": ("{", "invalid_json"),
    "a list": ("[1]", "invalid_json"),
    "too deep": ("[" * 200_000, "invalid_json"),
    "NaN": ('{"type": NaN}', "invalid_json"),
    "no type": ("{}", "invalid_value"),
    "unknown": ('{"type": "response.create"}', "invalid_value"),
    "no sound": ('{"type": "input_audio_buffer.append"}', "invalid_type"),
    "no base64": ('{"type": "input_audio_buffer.append", "audio": "a b="}', "invalid_value"),
    "no letters": ('{"type": "input_audio_buffer.append", "audio": "äöü="}', "invalid_value"),
    "empty commit": ('{"type": "input_audio_buffer.commit"}', "input_audio_buffer_commit_empty"),
    "conversation": ('{"type": "session.update", "session": {"type": "realtime"}}', "invalid_value"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_and_the_session_goes_on(address: str, name: str) -> None:
    message, code = WRONG[name]
    with Client(address) as client:
        client.socket.send(message)
        error = client.until("error")["error"]
        assert error["code"] == code and error["type"] == "invalid_request_error" and error["message"]
        client.send("session.update", session={}, event_id="after")
        assert client.receive()["type"] == "session.updated"
        client.send("nonsense", event_id="mine")
        assert client.receive()["error"]["event_id"] == "mine"


def test_an_append_is_bounded(pipe: Pipeline) -> None:
    service = Service(Settings(), {"demo": pipe})
    with serving(service, Limits(append=3_000)) as address, Client(address) as client:
        client.append(bytes(3_000))
        client.append(bytes(3_001))
        assert client.receive()["error"]["code"] == "audio_too_long"


def test_ids_are_never_the_same(address: str, sound: bytes) -> None:
    with Client(address) as client, Client(address) as other:
        assert client.session["id"] != other.session["id"]
        client.update(turn_detection=None)
        ids: list[str] = []
        items: set[str] = set()
        for _ in range(3):
            client.append(sound[: RATE // 2])
            client.send("input_audio_buffer.commit")
        while len(items) < 3 or len(ids) < 12:
            event = client.receive()
            ids.append(event["event_id"])
            items |= {event["item_id"]} if "item_id" in event else set()
        assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (Limits(first_sound=0.2), "session_idle"),
        (Limits(silence=0.2), "session_idle"),
        (Limits(length=0.3), "session_expired"),
    ],
)
def test_sessions_end_with_a_reason(pipe: Pipeline, limits: Limits, code: str) -> None:
    service = Service(Settings(), {"demo": pipe})
    with serving(service, limits) as address, Client(address) as client:
        if limits.first_sound > 1:
            client.append(bytes(BLOCK))
        assert client.receive()["error"]["code"] == code
        with pytest.raises(ConnectionClosed):
            client.receive()
        assert client.socket.close_code == 1000
    assert service.metrics._registry.get_sample_value("mlx_speech_cancelled_total", {"reason": "deadline"}) == 1


def test_a_bug_of_the_recogniser_ends_its_session_alone(pipe: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    class Buggy(Turns):
        async def run(self) -> None:
            raise KeyError("secret")

    with serving(Service(Settings(), {"demo": pipe}), make_recogniser=Buggy) as address:
        with Client(address) as client:
            error = client.receive()["error"]
            assert error["code"] == "internal_error" and "secret" not in error["message"]
            with pytest.raises(ConnectionClosed):
                client.receive()
            assert client.socket.close_code == 1011
        with Client(address):
            pass
    assert "a live session failed" in caplog.text


KINDS = [
    "session.update",
    "transcription_session.update",
    "input_audio_buffer.append",
    "input_audio_buffer.commit",
    "input_audio_buffer.clear",
    "response.create",
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "audio", "input", "format", "rate", "transcription", "turn_detection", "model", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=5,
)
AUDIO = st.binary(max_size=600).map(lambda data: base64.b64encode(data).decode())
MESSAGES = st.one_of(
    st.binary(max_size=50),
    st.text(st.characters(codec="utf-8"), max_size=50),
    VALUES.map(json.dumps),
    st.fixed_dictionaries(
        {"type": st.sampled_from(KINDS)}, optional={"session": VALUES, "audio": AUDIO | VALUES, "event_id": VALUES}
    ).map(json.dumps),
)


def test_random_messages_close_nothing(address: str, caplog: pytest.LogCaptureFixture) -> None:
    with Client(address) as client:

        @settings(max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.lists(MESSAGES, max_size=4), st.uuids())
        def send(messages: list[str | bytes], marker: Any) -> None:
            for message in messages:
                client.socket.send(message)
            client.send("nonsense", event_id=str(marker))
            while True:
                event = client.receive()
                assert event["event_id"].startswith("event_")
                if event["type"] == "error" and event["error"]["event_id"] == str(marker):
                    return

        send()
    with Client(address):
        pass
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# --- keys for one session --------------------------------------------------------------------------------------------


def test_a_key_is_good_once_and_for_a_while(service: Service) -> None:
    now = 1_000.0
    secrets = Secrets(clock=lambda: now)
    configuration = default_configuration(service)
    first, grant = secrets.issue(configuration)
    second, _ = secrets.issue(configuration, 10)
    third, longest = secrets.issue(configuration, 7_200)
    assert len({first, second, third}) == 3 and grant.expires_at == longest.expires_at == now + 60
    assert not secrets.redeem("ek_nonsense") and secrets.redeem(first) and not secrets.redeem(first)
    now += 10
    assert not secrets.redeem(second)
    now += 50
    assert not secrets.redeem(third)


def test_keys_are_not_given_out_without_end(service: Service) -> None:
    secrets = Secrets()
    configuration: Configuration = default_configuration(service)
    with pytest.raises(ApiError) as caught:
        for _ in range(2_000):
            secrets.issue(configuration)
    assert caught.value.status == 429


def test_a_key_opens_the_session_that_it_was_made_for(service: Service) -> None:
    import hashlib

    secrets = Secrets()

    def guarded(app: ASGIApp) -> ASGIApp:
        """As a check of keys does it."""

        async def check(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "websocket":
                key = dict(scope["headers"]).get(b"authorization", b"").removeprefix(b"Bearer ").decode()
                assert secrets.redeem(key)
                scope["state"]["owner"] = hashlib.sha256(key.encode()).hexdigest()
            await app(scope, receive, send)

        return check

    with serving(service, secrets=secrets, wrap=guarded) as address:
        session: Any = given_input(turn_detection=None, transcription={"model": "demo", "prompt": "Ada"})
        secret = client_of(address).realtime.client_secrets.create(session=session)
        assert secret.value.startswith("ek_") and time.time() < secret.expires_at <= time.time() + 61
        assert secret.session.type == "transcription"
        opened = OpenAI(api_key=secret.value, base_url=f"http://{address}/v1")
        with opened.realtime.connect(extra_query={"intent": "transcription"}) as connection:
            created: Any = connection.recv()
            assert created.session.audio.input.turn_detection is None
            assert created.session.audio.input.transcription.prompt == "Ada"
        status, body = posted(address, "transcription_sessions", b'{"input_audio_format": "pcm16"}')
        assert status == 200
        assert body["client_secret"]["value"].startswith("ek_") and body["input_audio_format"] == "pcm16"
        status, body = posted(address, "client_secrets", b'{"session": {"type": "realtime"}}')
        assert status == 400 and body["error"]["param"] == "session.type"
        assert posted(address, "client_secrets", b"x" * (1 << 21))[0] == 413
        assert posted(address, "client_secrets", b"")[0] == 200


def test_a_session_that_is_refused_does_not_use_its_key_up(pipe: Pipeline) -> None:
    service = Service(Settings(max_live=1), {"demo": pipe})
    secrets = Secrets()
    key, _ = secrets.issue(default_configuration(service).updated(given_input(turn_detection=None)))
    headers = {"Authorization": f"Bearer {key}"}

    def guarded(app: ASGIApp) -> ASGIApp:
        return Guard(app, service.settings, redeem=secrets.redeem)

    def refusal() -> int:
        with pytest.raises(InvalidStatus) as caught:
            Client(address, additional_headers=headers)
        return caught.value.response.status_code

    with serving(service, secrets=secrets, wrap=guarded) as address:
        with Client(address):
            assert [refusal(), refusal()] == [503, 503]
        until(lambda: not service.live, "the other session to leave its place")
        with Client(address, additional_headers=headers) as client:
            assert client.session["audio"]["input"]["turn_detection"] is None
        until(lambda: not service.live, "the session's end")
        assert refusal() == 401


def posted(address: str, route: str, body: bytes) -> tuple[int, Event]:
    """Status and body of the answer."""
    connection = http.client.HTTPConnection(address, timeout=LIMIT)
    try:
        connection.request("POST", f"/v1/realtime/{route}", body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()
