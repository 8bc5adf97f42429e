"""/v1/audio/transcriptions, /translations and /diarizations: a form in, the answer or a stream of events out."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from io import FileIO
from typing import Any, Generic, TypeVar

from anyio.to_thread import run_sync
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from mlx_speech.request import Event, Heard
from mlx_speech.server import fields, shapes
from mlx_speech.server.errors import ApiError
from mlx_speech.server.events import event, event_stream
from mlx_speech.server.failures import left, told
from mlx_speech.server.fields import JSON_FORMATS, Work
from mlx_speech.server.forms import Check, Fields, Form, Upload, received_form
from mlx_speech.server.hearing import Hearing, heard_by
from mlx_speech.server.idempotency import fingerprint_of, key_of
from mlx_speech.server.keep_alive import kept_alive
from mlx_speech.server.known import named, voiceprint_of, voices_from
from mlx_speech.server.outcomes import outcome_of
from mlx_speech.server.service import Service, owner_of
from mlx_speech.server.sounds import opened, stated_duration
from mlx_speech.stages.voiceprints import Voiceprint
from mlx_speech.transcript import Segment, Transcript, space_between
from mlx_speech.voices.matching import Voices

T = TypeVar("T")
W = TypeVar("W")
log = logging.getLogger("mlx_speech.server")
ReadWork = Callable[[Fields, Service], Work]


def routes(service: Service, defer: Callable[[Request], Awaitable[Response]]) -> list[Route]:
    """Of what is answered at once. defer : makes a job of a request whose client does not want to wait"""

    async def transcribe(request: Request) -> Response:
        if prefers_async(request):
            return await defer(request)
        return await _answer(request, service, fields.transcription)

    async def translate(request: Request) -> Response:
        return await _answer(request, service, fields.translation)

    async def diarize(request: Request) -> Response:
        return await _diarize(request, service)

    return [
        Route("/v1/audio/transcriptions", transcribe, methods=["POST"]),
        Route("/v1/audio/translations", translate, methods=["POST"]),
        Route("/v1/audio/diarizations", diarize, methods=["POST"]),
    ]


async def _answer(request: Request, service: Service, read: ReadWork) -> Response:
    """What is open for the answer is closed behind it: here, or, where it is a stream, at the end of that."""
    async with AsyncExitStack() as stack:
        stack.enter_context(service.admission.request())
        received = await _received(request, service, read, fields.early_check(service, read), stack)
        if received.work.stream:
            answering = await unless_gone(request, _begun(request, service, received, stack))
            return event_stream(answering.stream(stack.pop_all()))

        async def whole(stack: AsyncExitStack) -> Response:
            answering = await _begun(request, service, received, stack)
            return await answering.whole()

        return await _when_made(request, service, received, whole, stack)


@dataclass(frozen=True)
class _Received(Generic[W]):
    """A form.

    work : what it asks for
    sound : its recording, which is open until the stack is closed; on disk it is deleted
    owner : whose it is
    key : an Idempotency-Key, where one came
    fingerprint : of all that makes the answer
    is_retry : whether the client says that it has sent it before
    """

    work: W
    sound: FileIO
    owner: str
    key: str | None
    fingerprint: bytes
    is_retry: bool


async def _received(
    request: Request, service: Service, read: Callable[[Fields, Service], W], check: Check, stack: AsyncExitStack
) -> _Received[W]:
    """Read a form. Raises `ApiError`; what is wrong with the head of the request is told before."""
    key = key_of(request)
    async with taken_in(request, service, check) as form:
        work = read(form.fields, service)
        upload = required(form)
        stack.enter_context(service.admission.sound(await run_sync(stated_duration, upload.path)))
        sound = stack.enter_context(opened(upload.path, upload.filename))
        fingerprint = fingerprint_of(request.url.path, form.fields, upload.sha256)
        return _Received(work, sound, owner_of(request), key, fingerprint, is_retry(request))


async def _begun(request: Request, service: Service, received: _Received[Work], stack: AsyncExitStack) -> Answering:
    """A recording in a pipeline, whose work ends with the stack; what it has heard by then is kept for a retry."""
    work = received.work
    pipeline = service.pipelines[work.model]
    voices = None
    if work.known_speakers:
        prints: list[Voiceprint] = []
        for place, speaker in enumerate(work.known_speakers):  # one by one: a client that goes ends it behind the next
            hear = partial(voiceprint_of, speaker, place, pipeline)
            hearing = asyncio.ensure_future(run_sync(hear, limiter=service.waiting_for_voices))
            hearing.add_done_callback(_seen)
            prints.append(await asyncio.shield(hearing))  # whose place is free when its thread is, and not before
        voices = voices_from(work.known_speakers, prints)
    known: list[Heard] = []
    if received.is_retry:
        known = service.interrupted.take(received.owner, received.fingerprint)
    task = pipeline.submit(received.sound, known=known, **work.options)

    def leave() -> None:
        if not task.done():
            task.cancel()
            service.interrupted.keep(received.owner, received.fingerprint, heard_by(task))

    stack.callback(leave)
    return Answering(request, service, work, Hearing(service, task), voices)


def _seen(work: asyncio.Future[Any]) -> None:
    """What went wrong where nobody waits any more is no news."""
    if not work.cancelled():
        work.exception()


async def _when_made(
    request: Request,
    service: Service,
    received: _Received[Any],
    make: Callable[[AsyncExitStack], Awaitable[Response]],
    stack: AsyncExitStack,
) -> Response:
    """The answer of `_once`, in JSON kept alive where that is wanted."""

    def once(stack: AsyncExitStack) -> Awaitable[Response]:
        return _once(request, service, received, make, stack)

    if not service.settings.keep_alive_json or received.work.response_format not in JSON_FORMATS:
        return await once(stack)
    return await kept_alive(request, _made(once, stack.pop_all()))


async def _once(
    request: Request,
    service: Service,
    received: _Received[Any],
    make: Callable[[AsyncExitStack], Awaitable[Response]],
    stack: AsyncExitStack,
) -> Response:
    """The answer, which is that of an earlier request where this one brings its key. Its work ends where the client
    goes, unless it has given a key, by which it may come back. make : is given what the work holds open"""
    if received.key is None:
        return await unless_gone(request, make(stack))

    def begin() -> Coroutine[Any, Any, Response]:
        return _made(make, stack.pop_all())

    answer = service.answers.once(received.owner, received.key, received.fingerprint, begin)
    return await unless_gone(request, answer)


async def _made(make: Callable[[AsyncExitStack], Awaitable[Response]], stack: AsyncExitStack) -> Response:
    async with stack:
        return await make(stack)


@asynccontextmanager
async def taken_in(request: Request, service: Service, check: Check) -> AsyncIterator[Form]:
    """As `received_form`, when its turn has come; it is counted."""
    async with service.admission.upload(owner_of(request)):
        start = time.monotonic()
        async with received_form(request, service.settings, service.uploads, check) as form:
            service.metrics.see_stage("upload", time.monotonic() - start)
            if form.upload is not None:
                size = form.upload.path.stat().st_size
                service.metrics.see_upload(size)
                request.state.log["bytes"] = size
            yield form


def prefers_async(request: Request) -> bool:
    """Whether the client asks for a job where it could wait (RFC 7240)."""
    wishes = [wish.strip().lower() for wish in request.headers.get("prefer", "").split(",")]
    return "respond-async" in wishes


def is_retry(request: Request) -> bool:
    """Whether OpenAI's client says that it sends this again."""
    count = request.headers.get("x-stainless-retry-count", "")
    return count.isascii() and count.isdecimal() and count.strip("0") != ""


def required(form: Form) -> Upload:
    """The recording of a form. Raises `ApiError` where there is none."""
    if form.upload is None:
        raise ApiError(400, "missing_value", "there is no recording: send it as `file`", "file")
    return form.upload


class Answering:
    """A recording in a pipeline, and the shapes in which its transcript is given.

    voices : of speakers whose names came with the request
    """

    def __init__(
        self,
        request: Request,
        service: Service,
        work: Work,
        hearing: Hearing[Transcript],
        voices: Voices | None,
    ) -> None:
        self.work = work
        self._request = request
        self._service = service
        self._hearing = hearing
        self._voices = voices

    async def whole(self) -> Response:
        """The answer, once all of it is there. Raises `ApiError`, and what the pipeline raises."""
        transcript = await self._transcript()
        start = time.monotonic()
        response = await run_sync(shapes.answer, transcript, self.work, self._coder())
        self._service.metrics.see_stage("write", time.monotonic() - start)
        return response

    async def stream(self, open_for_it: AsyncExitStack) -> AsyncIterator[str]:
        """OpenAI's events: deltas of text in the order of the recording, segments with speakers, the end."""
        async with open_for_it:
            try:
                async for text in self._events():
                    yield text
            except (GeneratorExit, asyncio.CancelledError):
                left(self._request)
                raise

    async def _events(self) -> AsyncIterator[str]:
        text = ""
        async for delta, segment in in_order(self._hearing.events()):
            text += delta
            content: dict[str, Any] = {"type": "transcript.text.delta", "delta": delta}
            if self.work.logprobs:
                content["logprobs"] = shapes.logprobs([segment], self._coder())
            yield event(content)
        transcript = await outcome_of(self._transcript())
        if isinstance(transcript, Exception):
            yield event(told(self._request, transcript).body())
            return
        if self.work.response_format == "diarized_json":
            for segment in shapes.speaker_segments(transcript, shapes.known_names(self.work)):
                yield event(segment)
        done: dict[str, Any] = {"type": "transcript.text.done", "text": text}  # its usage can only be one in tokens
        if self.work.response_format != "diarized_json":
            done.update(shapes.languages(transcript))
        if self.work.logprobs:
            done["logprobs"] = shapes.logprobs(transcript.segments, self._coder())
        yield event(done)

    def _coder(self) -> shapes.Coder | None:
        """What tokens are read by, where the answer has any; Whisper has been loaded by then."""
        if self.work.response_format != "verbose_json" and not self.work.logprobs:
            return None
        return self._service.pipelines[self.work.model].models.whisper().tokenizer

    async def _transcript(self) -> Transcript:
        transcript = await self._hearing.result()
        seconds = self._hearing.seconds
        self._service.admission.measure(transcript.duration, seconds)
        self._service.metrics.see_transcript("request", transcript, seconds)
        stages = {stage: round(spent, 3) for stage, spent in transcript.seconds.items()}
        self._request.state.log.update(audio_seconds=round(transcript.duration, 3), stages=stages)
        if self._service.settings.log_text:
            log.info("%s", json.dumps({"text": shapes.running_text(transcript.segments)}))
        if self._voices is not None:
            transcript = named(transcript, self._voices)
        return transcript


async def in_order(events: AsyncIterator[Event]) -> AsyncIterator[tuple[str, Segment]]:
    """The text of chunks, which are heard in any order, in that of the recording, and the segment that says it; joined,
    it is the whole text."""
    held: dict[int, Heard] = {}
    following = 0
    text = ""
    async for heard in events:
        if not isinstance(heard, Heard):
            continue
        held[heard.place] = heard
        while following in held:
            for segment in held.pop(following).segments:
                delta = space_between(text, segment) + shapes.one_line(segment.text)
                text += delta
                if delta:
                    yield delta, segment
            following += 1


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What is waited for. Raises `ClientDisconnect` as soon as the client has gone; whoever calls ends the work."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect()
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    """Until the client has gone; the form has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _diarize(request: Request, service: Service) -> Response:
    """Speakers alone."""
    async with AsyncExitStack() as stack:
        stack.enter_context(service.admission.request())

        def check(given: Fields) -> None:
            fields.diarization(given, service)

        received = await _received(request, service, fields.diarization, check, stack)

        async def whole(stack: AsyncExitStack) -> Response:
            work = received.work
            task = service.pipelines[work.model].submit_diarization(received.sound, **work.numbers)
            stack.callback(task.cancel)
            hearing = Hearing(service, task)
            found = await hearing.result()
            service.metrics.see_sound("request", hearing.sound)
            return shapes.diarization_answer(found, work.response_format)

        return await _when_made(request, service, received, whole, stack)
