"""One live session on its socket: reads the client's messages, hands sound to the recogniser, writes what happens.

Three tasks work side by side: one reads, one writes, one hears; a fourth looks at the clock. The session ends with the
first of them.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import time
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from mlx_speech.errors import brief
from mlx_speech.server.errors import ApiError, shutting_down
from mlx_speech.server.realtime import events
from mlx_speech.server.realtime.configuration import Configuration
from mlx_speech.server.realtime.fields import parsed
from mlx_speech.server.realtime.limits import Limits
from mlx_speech.server.realtime.recognition import (
    Broken,
    Cleared,
    Committed,
    Happening,
    Recogniser,
    RecognitionSettings,
    SpeechStarted,
    SpeechStopped,
    Tell,
)
from mlx_speech.server.realtime.sound import Decoder
from mlx_speech.server.realtime.stopwatch import Stopwatch
from mlx_speech.server.service import Service

LOG = logging.getLogger(__name__)
SUBPROTOCOL = "realtime"  # what browsers ask for, beside the key
LONGEST_ID = 200  # characters of an id that a client gives its message
LARGE_MESSAGE = 1 << 18  # characters: such a one is not decoded between the messages of others
NORMAL = 1000  # codes of closing: RFC 6455, 7.4.1
GOING_AWAY = 1001
INTERNAL_ERROR = 1011

MakeRecogniser: TypeAlias = Callable[[RecognitionSettings, Tell, Limits], Recogniser]


class Session:
    """configuration : of the session at first; make_recogniser : gives what hears it"""

    def __init__(
        self,
        socket: WebSocket,
        service: Service,
        configuration: Configuration,
        limits: Limits,
        make_recogniser: MakeRecogniser,
    ) -> None:
        self._socket = socket
        self._service = service
        self._limits = limits
        self._identity = events.new_id("sess")
        self._expires_at = time.time() + limits.length
        self._configuration = configuration
        self._decoder = Decoder(configuration.format)
        self._stopwatch = Stopwatch(service.metrics)
        self._recogniser = make_recogniser(configuration.recognition_settings(service), self._tell, limits)
        self._outgoing: asyncio.Queue[events.Event | int] = asyncio.Queue()  # a number closes the socket
        self._begun = time.monotonic()
        self._last_sign = self._begun  # of a client that uses the session
        self._had_sound = False
        self._speaking = False
        self._handlers = {
            "session.update": self._update,
            "transcription_session.update": self._update_older,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.commit": self._commit,
            "input_audio_buffer.clear": self._clear,
        }

    async def run(self) -> None:
        """From the upgrade to the end."""
        wanted = self._socket.scope.get("subprotocols", [])
        await self._socket.accept(SUBPROTOCOL if SUBPROTOCOL in wanted else None)
        self._outgoing.put_nowait(events.session_created(self._as_json()))
        reading = asyncio.create_task(self._read())
        writing = asyncio.create_task(self._write())
        hearing = asyncio.create_task(self._recogniser.run())
        watching = asyncio.create_task(self._watch())
        tasks = {reading, writing, hearing, watching}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            self._recogniser.close()
            if _failure(hearing) is not None:
                LOG.error("a live session failed", exc_info=_failure(hearing))
                self._end(_internal_error(), INTERNAL_ERROR)
            if not reading.done():  # the client is still there to be told
                ends = {writing, reading}
                await asyncio.wait(ends, timeout=self._limits.farewell, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._recogniser.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in (reading, writing, watching):
            error = _failure(task)
            if error is not None:
                raise error

    @property
    def lag(self) -> float:
        """Seconds of sound that came no faster than it was said, and wait to be heard. From any thread."""
        return self._recogniser.lag

    def leave(self) -> None:
        """End because the server does."""
        self._end(shutting_down(), GOING_AWAY)

    # --- from the client ---------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            while self._outgoing.qsize() > self._limits.waiting_events:
                await asyncio.sleep(0.05)  # the client does not read
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            await self._answer(message.get("text"))

    async def _answer(self, text: str | None) -> None:
        """A message; what is wrong with it is told, and the session goes on."""
        event_id: str | None = None
        try:
            if text is None:
                raise ApiError(400, "invalid_json", "this message is of bytes: send JSON as text")
            message = await _parsed(text)
            event_id = _event_id(message)
            await self._handle(message)
        except ApiError as error:
            self._outgoing.put_nowait(events.error(error, event_id))

    async def _handle(self, message: Mapping[str, object]) -> None:
        kind = message.get("type")
        if not isinstance(kind, str) or kind not in self._handlers:
            known = ", ".join(self._handlers)
            raise ApiError(400, "invalid_value", f"type is {brief(kind)}: choose from {known}", "type")
        waiting_for_speech = self._configuration.detection is not None and not self._speaking
        if kind != "input_audio_buffer.append" or not waiting_for_speech:
            self._last_sign = time.monotonic()
        await self._handlers[kind](message)

    async def _update(self, message: Mapping[str, object]) -> None:
        self._configure(self._configuration.updated(message.get("session")))

    async def _update_older(self, message: Mapping[str, object]) -> None:
        self._configure(self._configuration.updated_by_older(message.get("session")))

    def _configure(self, configuration: Configuration) -> None:
        settings = configuration.recognition_settings(self._service)
        if configuration.format != self._configuration.format:
            self._recogniser.feed(self._decoder.end())
            self._decoder = Decoder(configuration.format)
        self._recogniser.configure(settings)
        self._configuration = configuration
        self._outgoing.put_nowait(events.session_updated(self._as_json()))

    async def _append(self, message: Mapping[str, object]) -> None:
        audio = message.get("audio")
        if not isinstance(audio, str):
            raise ApiError(400, "invalid_type", f"audio is {brief(audio)}: give sound in base64", "audio")
        if len(audio) > LARGE_MESSAGE:
            samples = await asyncio.to_thread(self._samples, audio)
        else:
            samples = self._samples(audio)
        self._had_sound = True
        self._recogniser.feed(samples)

    def _samples(self, audio: str) -> np.ndarray:
        """(samples,) at 16 kHz of sound in base64. Raises `ApiError`."""
        most = self._limits.append
        if len(audio) > 4 * -(-most // 3):  # base64 has four letters for three bytes
            raise ApiError(400, "audio_too_long", f"audio has more than {most} bytes: append it in parts", "audio")
        try:
            data = base64.b64decode(audio, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ApiError(400, "invalid_value", "audio is not base64: encode its bytes so", "audio") from error
        return self._decoder.decode(data)

    async def _commit(self, message: Mapping[str, object]) -> None:
        self._recogniser.feed(self._decoder.end())
        self._recogniser.commit(_event_id(message))

    async def _clear(self, message: Mapping[str, object]) -> None:
        self._decoder.end()
        self._recogniser.clear()

    # --- to the client -----------------------------------------------------------------------------------------------

    def _tell(self, happening: Happening) -> None:
        """What the recogniser tells."""
        self._stopwatch.see(happening)
        if isinstance(happening, (SpeechStarted, SpeechStopped, Committed, Cleared)):
            self._speaking = isinstance(happening, SpeechStarted)
            self._last_sign = time.monotonic()
        if isinstance(happening, Broken):
            code = GOING_AWAY if happening.error.code == "shutting_down" else INTERNAL_ERROR
            self._end(happening.error, code)
            return
        for event in events.events_of(happening):
            self._outgoing.put_nowait(event)

    async def _write(self) -> None:
        try:
            while True:
                event = await self._outgoing.get()
                if isinstance(event, int):
                    await self._socket.close(event)
                    return
                await self._socket.send_text(events.to_text(event))
        except WebSocketDisconnect:
            return

    def _end(self, error: ApiError, code: int) -> None:
        """Tell why, and close."""
        self._outgoing.put_nowait(events.error(error))
        self._outgoing.put_nowait(code)

    def _as_json(self) -> events.Event:
        return events.session_of(self._configuration, self._expires_at, self._identity)

    # --- the clock ---------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        limits = self._limits
        interval = min(1.0, limits.first_sound / 4, limits.silence / 4, limits.length / 4)
        while True:
            await asyncio.sleep(interval)
            reason = self._overdue(time.monotonic())
            if reason is not None:
                self._service.metrics.see_cancelled("deadline")
                self._end(reason, NORMAL)
                return

    def _overdue(self, now: float) -> ApiError | None:
        """Why the session should end, if it should."""
        limits = self._limits
        if now - self._begun > limits.length:
            return ApiError(408, "session_expired", f"a session lasts {limits.length:g} s: open another one")
        if not self._had_sound and now - self._begun > limits.first_sound:
            return ApiError(408, "session_idle", f"no sound came within {limits.first_sound:g} s: open another session")
        if now - self._last_sign > limits.silence:
            return ApiError(408, "session_idle", f"nothing was said for {limits.silence:g} s: open another session")
        return None


async def _parsed(text: str) -> Mapping[str, object]:
    """An object of JSON. Raises `ApiError`."""
    message = await asyncio.to_thread(parsed, text) if len(text) > LARGE_MESSAGE else parsed(text)
    if not isinstance(message, dict):
        raise ApiError(400, "invalid_json", f"this message is {brief(message)}: send one object")
    return message


def _event_id(message: Mapping[str, object]) -> str | None:
    """The id that a client gave its message."""
    event_id = message.get("event_id")
    if isinstance(event_id, str) and len(event_id) <= LONGEST_ID:
        return event_id
    return None


def _failure(task: asyncio.Task[None]) -> BaseException | None:
    """What a task raised, if it has ended so."""
    if not task.done() or task.cancelled():
        return None
    return task.exception()


def _internal_error() -> ApiError:
    return ApiError(500, "internal_error", "something went wrong here; the server's log has it")
