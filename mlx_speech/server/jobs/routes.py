"""/v1/audio/jobs: what can be asked of jobs that are there. Who sends a new one is answered elsewhere."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from mlx_speech.errors import CorruptFile
from mlx_speech.server.bodies import bounded_body
from mlx_speech.server.errors import ApiError
from mlx_speech.server.events import event_of, event_stream
from mlx_speech.server.jobs.records import ID, Job, Version
from mlx_speech.server.jobs.runner import Runner
from mlx_speech.server.jobs.store import sound_missing
from mlx_speech.server.service import Service, owner_of
from mlx_speech.transcript import Transcript
from mlx_speech.writers import read_json

JOBS = "/v1/audio/jobs"
MAX_CORRECTION = 64 << 20  # bytes of a transcript that is sent
CORRECTIONS_AT_ONCE = 1  # that are read: one of the size above takes a gigabyte for a moment
USUAL_LIMIT = 20  # jobs of a list
MAX_LIMIT = 100
MAX_DIGITS = 15  # of a number that a client sends
POLL_SECONDS = 2  # until a client should ask again for a job that has not ended
PRIVATE = {"Cache-Control": "no-store"}
# It plays, and is never taken for a page: whatever it is, a browser may not look into it for another type.
SOUND_HEADERS = {
    **PRIVATE,
    "X-Content-Type-Options": "nosniff",
    "Content-Disposition": "attachment",
    "Content-Security-Policy": "sandbox; default-src 'none'",
}
# What stands at these places in a file → its type. Players look at the content themselves.
SIGNATURES = (
    (8, b"WAVE", "audio/wav"),
    (0, b"fLaC", "audio/flac"),
    (0, b"OggS", "audio/ogg"),
    (0, b"\x1a\x45\xdf\xa3", "audio/webm"),
    (4, b"ftyp", "audio/mp4"),
)
OTHER_SOUND = "audio/mpeg"

Answer = Callable[[Transcript, str, tuple[str, ...]], Response]


def routes(service: Service, runner: Runner, answer: Answer) -> list[Route]:
    """All but that of new jobs.

    answer : a transcript in a response_format, as the service gives it everywhere, with the names of known speakers;
        may raise `ApiError`
    """
    jobs = _Jobs(service, runner, answer)
    return [
        Route(JOBS, jobs.list, methods=["GET"]),
        Route(JOBS + "/{id}", jobs.get, methods=["GET"]),
        Route(JOBS + "/{id}", jobs.delete, methods=["DELETE"]),
        Route(JOBS + "/{id}/events", jobs.events, methods=["GET"]),
        Route(JOBS + "/{id}/result", jobs.result, methods=["GET"]),
        Route(JOBS + "/{id}/result", jobs.correct, methods=["PUT"]),
        Route(JOBS + "/{id}/result", jobs.uncorrect, methods=["DELETE"]),
        Route(JOBS + "/{id}/audio", jobs.sound, methods=["GET"]),
    ]


class _Jobs:
    """The answers."""

    def __init__(self, service: Service, runner: Runner, answer: Answer) -> None:
        self._service = service
        self._runner = runner
        self._answer = answer
        self._corrections = CapacityLimiter(CORRECTIONS_AT_ONCE)

    async def list(self, request: Request) -> Response:
        """The owner's jobs, newest first."""
        limit = _number(request.query_params.get("limit", str(USUAL_LIMIT)), "limit")
        if not 1 <= limit <= MAX_LIMIT:
            raise ApiError(400, "invalid_value", f"limit is {limit}: give 1 to {MAX_LIMIT}", "limit")
        after = request.query_params.get("after") or None
        if after is not None and not ID.fullmatch(after):
            raise ApiError(400, "invalid_value", "after is no id of a job: give that of the last one listed", "after")
        jobs, has_more = await run_sync(self._runner.store.jobs_of, owner_of(request), limit, after)
        content = {"object": "list", "data": [job.body() for job in jobs], "has_more": has_more}
        return JSONResponse(content, headers=PRIVATE)

    async def get(self, request: Request) -> Response:
        """How a job is doing."""
        job = await self._find(request)
        headers = dict(PRIVATE)
        if not job.has_ended:
            headers["Retry-After"] = str(POLL_SECONDS)
        return JSONResponse(job.body(), headers=headers)

    async def delete(self, request: Request) -> Response:
        """Cancel it, and delete all there is of it."""
        await self._runner.delete(_job_id(request), owner_of(request))
        return Response(status_code=204)

    async def events(self, request: Request) -> Response:
        """What happens to it, as server-sent events. 204 ends a client's tries where nothing will happen any more."""
        job = await self._find(request)
        given = request.headers.get("Last-Event-ID") or request.query_params.get("after") or "0"
        after = _number(given, "after")
        last = await run_sync(self._runner.store.last_event, job.id)
        if after > last:  # of no job that is here
            after = 0
        if job.has_ended and after == last:
            return Response(status_code=204)
        return event_stream(lines_of(self._runner, job.id, after))

    async def result(self, request: Request) -> Response:
        """Its transcript, in the format that is asked for."""
        version = _version(request.query_params.get("version"))
        store = self._runner.store
        job, content = await run_sync(store.result, _job_id(request), owner_of(request), version)
        response_format = request.query_params.get("response_format") or job.response_format
        response = await run_sync(self._render, content, response_format, job.known_names)
        response.headers.update({**PRIVATE, "ETag": job.etag})
        return response

    async def correct(self, request: Request) -> Response:
        """Keep a corrected transcript."""
        job = await self._find(request)
        async with self._service.admission.upload(job.owner):
            content = await bounded_body(request, self._service.settings, MAX_CORRECTION, "transcript_too_large")
        transcript = await run_sync(_read, content, limiter=self._corrections)
        revisions = _revisions(request)
        job = await run_sync(self._runner.store.correct, job.id, job.owner, transcript, revisions)
        return JSONResponse(job.body(), headers={**PRIVATE, "ETag": job.etag})

    async def uncorrect(self, request: Request) -> Response:
        """Go back to the first transcript."""
        store = self._runner.store
        job = await run_sync(store.uncorrect, _job_id(request), owner_of(request), _revisions(request))
        return JSONResponse(job.body(), headers={**PRIVATE, "ETag": job.etag})

    async def sound(self, request: Request) -> Response:
        """The recording, or a range of it."""
        job = await self._find(request)
        path = self._runner.store.sound(job.id)
        try:
            media_type = await run_sync(sound_type, path)
            status = await run_sync(path.stat)
        except FileNotFoundError as error:
            raise sound_missing() from error
        return FileResponse(path, headers=SOUND_HEADERS, media_type=media_type, stat_result=status)

    async def _find(self, request: Request) -> Job:
        """Raises `ApiError` 404 where the owner has no such job."""
        return await run_sync(self._runner.store.get, _job_id(request), owner_of(request))

    def _render(self, content: str, response_format: str, known_names: tuple[str, ...]) -> Response:
        return self._answer(Transcript.from_dict(json.loads(content)), response_format, known_names)


def sound_type(path: Path) -> str:
    """The type of a recording, by its first bytes: always one of sound. Raises `FileNotFoundError`."""
    with path.open("rb") as file:
        head = file.read(16)
    for place, signature, media_type in SIGNATURES:
        if head[place:].startswith(signature):
            return media_type
    return OTHER_SOUND


async def lines_of(runner: Runner, job_id: str, after: int) -> AsyncIterator[str]:
    """What happens to a job, as server-sent events; arguments as of `Runner.events`."""
    async for event in runner.events(job_id, after):
        yield event_of(event.data, event.name, event.sequence)


def _job_id(request: Request) -> str:
    """Raises `ApiError` 404 for what can be none."""
    job_id = request.path_params["id"]
    if not ID.fullmatch(job_id):
        raise ApiError(404, "not_found", "this is no id of a job: it is job_ and 26 letters and digits")
    return job_id


def _number(text: str, name: str) -> int:
    """A whole number from 0. Raises `ApiError` 400."""
    if not (text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS):
        raise ApiError(400, "invalid_value", f"{name} is no whole number from 0: give one", name)
    return int(text)


def _version(text: str | None) -> Version | None:
    if not text:
        return None
    if text == "first" or text == "corrected":
        return text
    raise ApiError(400, "invalid_value", "version is neither first nor corrected: choose one", "version")


def _revisions(request: Request) -> set[str] | None:
    """Those that If-Match names; None where any will do. Proxies that compress make a tag weak (W/)."""
    header = request.headers.get("If-Match")
    if header is None or header.strip() == "*":
        return None
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return {tag.strip('"') for tag in tags}


def _read(content: bytes) -> Transcript:
    """Raises `ApiError` 400 for what is no transcript."""
    try:
        return read_json(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ApiError(400, "invalid_value", "the transcript is not UTF-8: send it as JSON has it") from error
    except CorruptFile as error:
        raise ApiError(400, "invalid_value", str(error)) from error
