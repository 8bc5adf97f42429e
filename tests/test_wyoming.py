"""Wyoming over loopback: the library's own client, and clients that do everything wrong."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import in_time
from serving import demo_pipeline
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event, async_read_event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong

from mlx_speech import Pipeline, load_audio, package_data
from mlx_speech.audio import audio_from_array
from mlx_speech.request import Request
from mlx_speech.server.realtime.turns import pieces
from mlx_speech.server.service import Service
from mlx_speech.server.settings import Settings
from mlx_speech.server.wyoming import serve_wyoming
from mlx_speech.server.wyoming_lines import LONGEST_DATA, LONGEST_LINE, LONGEST_PAYLOAD, Message, written
from mlx_speech.server.wyoming_lines import read as read_message

LIMIT = 60  # seconds for what must not hang
SECONDS = 6  # of the conversation

# random sound may be so quiet that the pipeline warns
pytestmark = pytest.mark.filterwarnings("default:::mlx_speech")


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with demo_pipeline(tmp_path_factory.mktemp("cache")) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def service(pipe: Pipeline) -> Service:
    return Service(Settings(), {"demo": pipe})


def spoken(rate: int, channels: int = 1) -> np.ndarray:
    """(samples, channels) of 16 bits"""
    samples = load_audio(package_data.DEMO / "conversation.flac", sample_rate=rate)[: SECONDS * rate]
    return np.repeat((samples * 32_767).astype("<i2")[:, None], channels, axis=1)


def expected(pipe: Pipeline, samples: np.ndarray, rate: int) -> str:
    return "".join(pieces(pipe(audio_from_array(samples[:, 0], rate)).segments))


def served(service: Service, script: Callable[[int], Awaitable[Any]], **limits: Any) -> Any:
    """What a coroutine gives that is told the port."""

    async def play() -> Any:
        server = await serve_wyoming(service, port=0, **limits)
        host, port = server.sockets[0].getsockname()[:2]
        assert host == "127.0.0.1"
        try:
            return await asyncio.wait_for(script(port), LIMIT)
        finally:
            server.close()

    return in_time(play())


def client_of(port: int) -> AsyncTcpClient:
    return AsyncTcpClient("127.0.0.1", port, connect_timeout=LIMIT, read_timeout=LIMIT)


async def next_event(client: AsyncTcpClient) -> Event:
    event = await client.read_event()
    assert event is not None
    return event


async def say(client: AsyncTcpClient, samples: np.ndarray, rate: int, frames: int = 1_024) -> None:
    """Everything from `audio-start` to `audio-stop`."""
    form: dict[str, int] = {"rate": rate, "width": 2, "channels": samples.shape[1]}
    await client.write_event(AudioStart(**form).event())
    for start in range(0, len(samples), frames):
        await client.write_event(AudioChunk(audio=samples[start : start + frames].tobytes(), **form).event())
    await client.write_event(AudioStop().event())


async def answer(client: AsyncTcpClient) -> tuple[list[str], str, Transcript]:
    """The types of all events up to `transcript-stop`, the chunks joined, and the transcript."""
    kinds: list[str] = []
    text = ""
    transcript: Transcript | None = None
    while "transcript-stop" not in kinds:
        event = await next_event(client)
        kinds.append(event.type)
        assert not Error.is_type(event.type), event.data
        if event.type == "transcript-chunk":
            text += event.data["text"]
        if Transcript.is_type(event.type):
            transcript = Transcript.from_event(event)
    assert transcript is not None
    return kinds, text, transcript


# --- the library's client --------------------------------------------------------------------------------------------


def test_describe_and_ping(service: Service) -> None:
    async def script(port: int) -> None:
        async with client_of(port) as client:
            await client.write_event(Describe().event())
            info = Info.from_event(await next_event(client))
            (program,) = info.asr
            assert program.name == "mlx_speech" and program.supports_transcript_streaming
            (model,) = program.models
            assert model.name == "demo" and {"en", "de"} <= set(model.languages) and model.attribution.url
            assert not info.tts and not info.wake
            await client.write_event(Ping(text="are you there?").event())
            assert Pong.from_event(await next_event(client)).text == "are you there?"

    served(service, script)


@pytest.mark.parametrize(("rate", "channels", "frames"), [(16_000, 1, 1_024), (22_050, 2, 101), (48_000, 1, 1 << 18)])
def test_what_is_said_comes_back(service: Service, pipe: Pipeline, rate: int, channels: int, frames: int) -> None:
    """Twice over one connection: the second time with a language by its name and region, and names to expect."""
    samples = spoken(rate, channels)

    async def script(port: int) -> None:
        async with client_of(port) as client:
            await client.write_event(Transcribe(language="en").event())
            await say(client, samples, rate, frames)
            kinds, text, transcript = await answer(client)
            assert kinds[0] == "transcript-start" and kinds[-2:] == ["transcript", "transcript-stop"]
            assert set(kinds[1:-2]) == {"transcript-chunk"}
            assert transcript.text == text == expected(pipe, samples, rate) != "" and transcript.language == "en"
            for language in ("English", "en-GB"):
                await client.write_event(Transcribe(name="demo", language=language, transcript_terms=["x"]).event())
                await say(client, samples[:0], rate)
                assert (await answer(client))[2].text == ""

    served(service, script)


def test_without_transcribe_and_without_start(service: Service, pipe: Pipeline) -> None:
    """Chunks say their format themselves."""
    samples = spoken(16_000)

    async def script(port: int) -> None:
        async with client_of(port) as client:
            chunk = AudioChunk(rate=16_000, width=2, channels=1, audio=samples.tobytes())
            await client.write_event(chunk.event())
            await client.write_event(AudioStop().event())
            assert (await answer(client))[2].text == expected(pipe, samples, 16_000)

    served(service, script)


def test_many_at_once(service: Service, pipe: Pipeline) -> None:
    samples = spoken(16_000)

    async def one(port: int) -> str:
        async with client_of(port) as client:
            await say(client, samples, 16_000)
            return (await answer(client))[2].text

    async def script(port: int) -> list[str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)  # and one that says nothing
        texts = await asyncio.gather(*(one(port) for _ in range(6)))
        writer.close()
        assert await reader.read() == b""
        return texts

    assert served(service, script) == [expected(pipe, samples, 16_000)] * 6


# --- what is wrong ---------------------------------------------------------------------------------------------------


async def sent(port: int, data: bytes, then_close: bool = False) -> list[Event]:
    """All that comes back for some bytes, up to the end of the connection.

    then_close : say at once that no more bytes will come
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    if then_close:
        writer.write_eof()
    events: list[Event] = []
    while (event := await async_read_event(reader)) is not None:
        events.append(event)
    writer.close()
    return events


def chunk(payload: bytes = b"", **data: Any) -> bytes:
    return written(Message("audio-chunk", {"rate": 16_000, "width": 2, "channels": 1, **data}, payload))


WRONG = {
    "no JSON": b"nonsense\n",
    "a list": b"[1]\n",
    "no type": b"{}\n",
    "a type that is none": b'{"type": 5}\n',
    "data that is none": b'{"type": "ping", "data": 5}\n',
    "too deep": b"[" * 50_000 + b"\n",
    "a long line": b"x" * (LONGEST_LINE + 1),
    "much data": json.dumps({"type": "ping", "data_length": LONGEST_DATA + 1}).encode() + b"\n",
    "much sound": json.dumps({"type": "ping", "payload_length": LONGEST_PAYLOAD + 1}).encode() + b"\n",
    "less than none": b'{"type": "ping", "payload_length": -1}\n',
    "half a byte": b'{"type": "ping", "data_length": 0.5}\n',
    "data that is no JSON": b'{"type": "ping", "data_length": 2}\n[]',
    "bytes of 8 bits": chunk(width=1),
    "many channels": chunk(channels=3),
    "channels that are none": chunk(channels=1.5),
    "no rate": chunk(rate="fast"),
    "an unknown model": written(Message("transcribe", {"name": "nonsense"})),
    "an unknown language": written(Message("transcribe", {"language": "Klingon"})) + written(Message("audio-stop")),
    "words that are none": written(Message("transcribe", {"transcript_names": [1]})),
    "much said": chunk(bytes(2 * 16_000)) + chunk(bytes(2 * 16_000)),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_and_closed(service: Service, name: str, caplog: pytest.LogCaptureFixture) -> None:
    async def script(port: int) -> list[Event]:
        return await sent(port, WRONG[name])

    (event,) = served(service, script, max_duration=1.5)
    error = Error.from_event(event)
    assert error.text and "\n" not in error.text and error.code
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_what_is_unknown_is_left_alone(service: Service) -> None:
    async def script(port: int) -> None:
        async with client_of(port) as client:
            await client.write_event(Event("select-program", {"name": "mlx_speech"}))
            await client.write_event(Ping().event())
            assert Pong.is_type((await next_event(client)).type)

    served(service, script)


@pytest.mark.parametrize("data", [b"", b'{"type": "pi', chunk(b"x" * 100)[:-1]])
def test_who_falls_silent_is_told_and_closed(service: Service, data: bytes) -> None:
    """Connections half open, half a line, half a payload."""

    async def script(port: int) -> list[Event]:
        return await sent(port, data)

    (event,) = served(service, script, idle=0.2)
    assert Error.from_event(event).code == "timeout"


def test_no_more_connections_than_may_be(pipe: Pipeline) -> None:
    async def script(port: int) -> None:
        async with client_of(port) as first, client_of(port) as second:
            for client in (first, second):
                await client.write_event(Ping().event())
                await next_event(client)
            async with client_of(port) as third:
                assert Error.from_event(await next_event(third)).code == "too_many_sessions"
        while True:
            async with client_of(port) as client:
                await client.write_event(Ping().event())
                if Pong.is_type((await next_event(client)).type):
                    return

    served(Service(Settings(max_live=2), {"demo": pipe}), script)


def test_who_goes_is_not_answered() -> None:
    """Nothing more is computed for a client that has gone."""

    class Endless:
        def __init__(self) -> None:
            self.requests: list[Request[Any]] = []

        def submit(self, samples: np.ndarray, **options: Any) -> Request[Any]:
            self.requests.append(Request())
            return self.requests[-1]

    pipeline = Endless()

    async def script(port: int) -> None:
        client = client_of(port)
        await client.connect()
        await say(client, spoken(16_000), 16_000)
        while not pipeline.requests:
            await asyncio.sleep(0.01)
        await client.disconnect()
        while not pipeline.requests[0].cancelled():
            await asyncio.sleep(0.01)

    served(Service(Settings(), {"demo": pipeline}), script)  # type: ignore[dict-item]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 21) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
KINDS = ["describe", "ping", "transcribe", "audio-start", "audio-chunk", "audio-stop", "nonsense"]
FIELDS = ["rate", "width", "channels", "language", "name", "text", "transcript_names"]
HEADS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(KINDS) | VALUES,
        "data": st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3) | VALUES,
        "data_length": st.integers(0, 20) | VALUES,
        "payload_length": st.integers(0, 20) | VALUES,
    },
)
LINES = st.one_of(
    st.binary(max_size=40),
    HEADS.map(lambda head: json.dumps(head).encode() + b"\n"),
    st.builds(lambda kind, data: written(Message(kind, {"rate": 16_000}, data)), st.sampled_from(KINDS), st.binary()),
)


def test_random_lines_hurt_nobody(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """Each over a connection of its own, which is closed for writing behind them; another one is answered all along."""
    examples: list[bytes] = []

    @settings(max_examples=150, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(LINES, max_size=4).map(b"".join))
    def collect(data: bytes) -> None:
        examples.append(data)

    collect()

    async def script(port: int) -> None:
        async with client_of(port) as bystander:
            for data in examples:
                for event in await sent(port, data, then_close=True):
                    assert event.type in ("info", "pong", "error") or event.type.startswith("transcript")
                await bystander.write_event(Ping().event())
                assert Pong.is_type((await next_event(bystander)).type)

    served(service, script)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


MESSAGES = st.builds(
    Message,
    st.text(min_size=1, max_size=10),
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=3),
    st.binary(max_size=50),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(MESSAGES, max_size=4))
def test_what_is_written_is_read(messages: list[Message]) -> None:
    """By this reader, and by the library's."""

    async def read_all() -> None:
        ours = asyncio.StreamReader(limit=LONGEST_LINE)
        theirs = asyncio.StreamReader()
        for reader in (ours, theirs):
            reader.feed_data(b"".join(written(message) for message in messages))
            reader.feed_eof()
        for message in messages:
            assert await read_message(ours) == message
            event = await async_read_event(theirs)
            assert event is not None
            assert (event.type, event.data, event.payload or b"") == (message.type, message.data, message.payload)
        assert await read_message(ours) is None

    in_time(read_all())
