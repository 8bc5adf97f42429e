"""Wyoming, the protocol by which Home Assistant asks for speech: what is said is sent, then its text comes back.

It knows no keys and no encryption, so that it is for this machine alone, unless somebody says otherwise.
Source: wyoming 1.10.2, `asr.py`, `audio.py`, `info.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_speech.audio import RATES
from mlx_speech.errors import MLXSpeechError
from mlx_speech.languages import LANGUAGES
from mlx_speech.pipeline import Pipeline
from mlx_speech.request import Request
from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.server.errors import ApiError, api_error
from mlx_speech.server.listening import listen
from mlx_speech.server.outcomes import outcome_of, result_of
from mlx_speech.server.realtime.fields import Fields
from mlx_speech.server.realtime.sound import Decoder, Format
from mlx_speech.server.realtime.turns import pieces
from mlx_speech.server.service import Service
from mlx_speech.server.wyoming_lines import LONGEST_LINE, LineError, Message, read, written
from mlx_speech.sound_buffer import SoundBuffer
from mlx_speech.transcript import Transcript
from mlx_speech.version import __version__

LOG = logging.getLogger(__name__)
PORT = 10_300  # the usual one
IDLE = 30.0  # seconds for a message to come
MAX_DURATION = 300.0  # seconds of sound, 19 MB: what somebody says to a loudspeaker
WATCH = 0.1  # seconds between two looks whether the client has gone
FAREWELL = 1.0  # seconds for a client to take the last message
MOST_READ_AWAY = 1 << 22  # bytes
WIDTH = 2  # bytes of a sample
MOST_CHANNELS = 2
ATTRIBUTION = {"name": "mlx_speech", "url": "https://pypi.org/project/mlx-speech-toolkit/"}


@asynccontextmanager
async def wyoming_listener(service: Service) -> AsyncIterator[None]:
    """Meanwhile Wyoming is spoken where the settings say, if they do: "PORT" or "HOST:PORT"."""
    place = service.settings.wyoming
    if place is None:
        yield
        return
    host, _, port = place.rpartition(":")
    server = await serve_wyoming(service, host.strip("[]") or "127.0.0.1", int(port))
    try:
        yield
    finally:
        server.close()


async def serve_wyoming(
    service: Service,
    host: str = "127.0.0.1",
    port: int = PORT,
    *,
    idle: float = IDLE,
    max_duration: float = MAX_DURATION,
) -> asyncio.Server:
    """Listen, until the server that is returned is closed. As many connections may be open as live sessions.

    host : another one than the loopback's lets everybody in who reaches it
    port : 0 for a free one
    idle : seconds for a message to come
    max_duration : seconds of sound

    Raises as `listen`.
    """
    connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        connection = _Connection(service, reader, writer, idle, max_duration)
        try:
            if connections > service.settings.max_live:
                await connection.refuse("too many connections are open: try again later", "too_many_sessions")
            else:
                await connection.run()
        except (ConnectionError, TimeoutError, asyncio.TimeoutError):
            LOG.debug("a Wyoming client went")
        finally:
            connections -= 1
            writer.close()

    return await asyncio.start_server(answer, sock=listen(host, port), limit=LONGEST_LINE)


@dataclass
class _Hearing:
    """What a client asked for, and its sound so far.

    options : `TranscribeOptions`
    decoder : of the sound that has begun
    """

    pipeline: Pipeline
    options: dict[str, Any]
    decoder: Decoder | None = None


class _Connection:
    """One client. Times in seconds"""

    def __init__(
        self,
        service: Service,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        idle: float,
        max_duration: float,
    ) -> None:
        self._service = service
        self._reader = reader
        self._writer = writer
        self._idle = idle
        self._max_duration = max_duration
        self._hearing = self._new_hearing()
        self._sound = SoundBuffer()

    async def run(self) -> None:
        """Answer messages, until the client goes, or does something wrong."""
        try:
            while True:
                message = await asyncio.wait_for(read(self._reader), self._idle)
                if message is None:
                    return
                await self._handle(message)
        except asyncio.TimeoutError:
            await self.refuse(f"nothing came for {self._idle:g} s: connect again", "timeout")
        except LineError as error:
            await self.refuse(f"{error}: send Wyoming's messages", "invalid_message")
        except ApiError as error:
            await self.refuse(error.message, error.code)

    async def refuse(self, text: str, code: str) -> None:
        """The last message: what is wrong. Then nothing of what the client still sends is looked at."""
        await self._send("error", text=text, code=code)
        self._writer.write_eof()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._read_away(), FAREWELL)

    async def _read_away(self) -> None:
        """A connection that is closed over unread bytes is reset, and the client may never see why."""
        size = 0
        while size < MOST_READ_AWAY:
            block = await self._reader.read(LONGEST_LINE)
            if not block:
                return
            size += len(block)

    async def _handle(self, message: Message) -> None:
        if message.type == "describe":
            await self._send("info", **info(self._service))
        elif message.type == "ping":
            await self._send("pong", text=message.data.get("text"))
        elif message.type == "transcribe":
            self._hearing = self._asked(Fields(message.data, message.type))
        elif message.type == "audio-start":
            self._hearing.decoder = Decoder(_format(Fields(message.data, message.type)))
            self._sound = SoundBuffer()
        elif message.type == "audio-chunk":
            self._add(message)
        elif message.type == "audio-stop":
            await self._transcribe()
        # what is unknown is left alone: newer clients have messages of their own

    def _new_hearing(self) -> _Hearing:
        return _Hearing(self._service.pipeline(next(iter(self._service.pipelines))), {})

    def _asked(self, given: Fields) -> _Hearing:
        """`transcribe`: model, language, words to expect. Raises `ApiError`."""
        hearing = self._new_hearing()
        name = given.text("name")
        if name is not None:
            hearing.pipeline = self._service.pipeline(name)
        language = given.text("language")
        if language:
            hearing.options["language"] = re.split("[-_]", language)[0]  # without a region
        words = given.texts("transcript_names") + given.texts("transcript_terms")
        if words:
            hearing.options["hotwords"] = ", ".join(words)
        return hearing

    def _add(self, message: Message) -> None:
        """`audio-chunk`: says its format itself, which should be that of `audio-start`."""
        sound = _format(Fields(message.data, message.type))
        decoder = self._hearing.decoder
        if decoder is None or decoder.format != sound:
            if decoder is not None:
                self._sound.add(decoder.end())
            decoder = Decoder(sound)
            self._hearing.decoder = decoder
        self._sound.add(decoder.decode(message.payload))
        if len(self._sound) > self._max_duration * SAMPLE_RATE:
            problem = f"the sound is longer than {self._max_duration:g} s"
            raise ApiError(413, "audio_too_long", f"{problem}: send a long recording to /v1/audio/transcriptions")

    async def _transcribe(self) -> None:
        """`audio-stop`: recognise what was sent, and begin anew."""
        hearing = self._hearing
        if hearing.decoder is not None:
            self._sound.add(hearing.decoder.end())
        samples = self._sound.between(self._sound.start, self._sound.end)
        self._hearing = self._new_hearing()
        self._sound = SoundBuffer()
        transcript = await self._recognised(hearing, samples)
        if transcript is None:
            return
        language = transcript.language
        await self._send("transcript-start", language=language)
        text = ""
        for piece in pieces(transcript.segments):
            await self._send("transcript-chunk", text=piece)
            text += piece
        await self._send("transcript", text=text, language=language)
        await self._send("transcript-stop")

    async def _recognised(self, hearing: _Hearing, samples: np.ndarray) -> Transcript | None:
        """None where the client has gone meanwhile. samples : (samples,) at 16 kHz. Raises `ApiError`."""
        try:
            request = hearing.pipeline.submit(samples, sample_rate=SAMPLE_RATE, word_timestamps=None, **hearing.options)
        except MLXSpeechError as error:
            raise api_error(error) from error
        try:
            if not await self._is_waited_for(request):
                return None
        finally:
            request.cancel()
        outcome = await outcome_of(result_of(request))
        if not isinstance(outcome, Exception):
            self._service.metrics.see_sound("live", outcome.duration)
            return outcome
        if not isinstance(outcome, MLXSpeechError):
            LOG.error("sound could not be recognised", exc_info=outcome)
        raise api_error(outcome)

    async def _is_waited_for(self, request: Request[Transcript]) -> bool:
        """Whether the client is there until the request has ended."""

        async def ended() -> None:
            async for _ in request:
                pass

        waiting = asyncio.create_task(ended())
        try:
            while not waiting.done():
                await asyncio.wait({waiting}, timeout=WATCH)
                if self._reader.at_eof() or self._writer.is_closing():
                    return waiting.done()
        finally:
            waiting.cancel()
        return True

    async def _send(self, kind: str, **data: object) -> None:
        """Data without a value is left out. Raises `asyncio.TimeoutError` for a client that does not read."""
        known = {name: value for name, value in data.items() if value is not None}
        self._writer.write(written(Message(kind, known)))
        await asyncio.wait_for(self._writer.drain(), self._idle)


def info(service: Service) -> dict[str, Any]:
    """What there is, as `info` tells it: one program, with a model for every name."""
    models: list[dict[str, Any]] = []
    for name in service.pipelines:
        models.append(_artifact(name, f"Whisper, {name}", languages=_languages(name)))
    program = _artifact(
        "mlx_speech", "Whisper and its helpers on MLX", models=models, supports_transcript_streaming=True
    )
    kinds: dict[str, Any] = {"asr": [program]}
    for kind in ("tts", "handle", "intent", "wake", "mic", "snd"):
        kinds[kind] = []
    return kinds


def _artifact(name: str, description: str, **more: object) -> dict[str, Any]:
    artifact = {"name": name, "attribution": ATTRIBUTION, "installed": True, "description": description}
    return {**artifact, "version": __version__, **more}


def _languages(model: str) -> list[str]:
    """Codes of the languages of a model, as far as its name tells."""
    return ["en"] if model.endswith(".en") else list(LANGUAGES)


def _format(given: Fields) -> Format:
    """What `audio-start` and `audio-chunk` say of their sound. Raises `ApiError`."""
    given.integer("width", WIDTH, WIDTH, WIDTH)
    channels = given.integer("channels", 1, MOST_CHANNELS, 1)
    rate = given.integer("rate", RATES[0], RATES[-1], SAMPLE_RATE)
    return Format("audio/pcm", rate, channels)
