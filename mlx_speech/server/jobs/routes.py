"""/v1/audio/jobs: what clients ask of jobs that are there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from mlx_speech.errors import CorruptFile
from mlx_speech.server.errors import ApiError
from mlx_speech.server.events import event, event_stream
from mlx_speech.server.fields import FORMATS, wrong
from mlx_speech.server.jobs.job import PATTERN, Job
from mlx_speech.server.jobs.runner import Runner
from mlx_speech.server.service import owner_of
from mlx_speech.transcript import Transcript
from mlx_speech.writers import read_json

MAX_CORRECTION = 64 << 20  # bytes
MOST_JOBS = 100  # on a page
SECONDS_TO_ASK_AGAIN = "2"
VERSIONS = ("corrected", "first")
Answer = Callable[[Transcript, str, str], Response]  # transcript, format, model


def routes(runner: Runner, answer: Answer) -> list[Route]:
    """answer : a transcript in a format, as the whole answer to a request"""
    store = runner.store

    async def found(request: Request) -> Job:
        """The job that the path names. Raises `ApiError` 404, also where it is another owner's."""
        identity = request.path_params["id"]
        if not PATTERN.fullmatch(identity):
            raise ApiError(404, "not_found", "there is no such job: an id is job_ and 26 letters and digits")
        return await run_sync(store.job, identity, owner_of(request))

    async def shown(job: Job) -> Response:
        position = await run_sync(store.position, job.id)
        headers = {} if job.ended else {"Retry-After": SECONDS_TO_ASK_AGAIN}
        return JSONResponse(job.body(position), headers={**headers, "ETag": etag(job)})

    async def every(request: Request) -> Response:
        limit = number_in(request, "limit", 20, MOST_JOBS)
        after = request.query_params.get("after")
        jobs, more = await run_sync(store.jobs, owner_of(request), limit, after)
        data = [job.body(await run_sync(store.position, job.id)) for job in jobs]
        return JSONResponse({"object": "list", "data": data, "has_more": more})

    async def one(request: Request) -> Response:
        return await shown(await found(request))

    async def delete(request: Request) -> Response:
        job = await found(request)
        await runner.cancel(job.id)
        return Response(status_code=204)

    async def result(request: Request) -> Response:
        job = await found(request)
        response_format = request.query_params.get("response_format", job.response_format)
        if response_format not in FORMATS:
            raise wrong("response_format", response_format, f"give one of {', '.join(FORMATS)}")
        version = request.query_params.get("version", "corrected")
        if version not in VERSIONS:
            raise wrong("version", version, f"give one of {', '.join(VERSIONS)}")
        transcript = await run_sync(store.result, job.id, version == "first")
        response = await run_sync(answer, transcript, response_format, job.model)
        response.headers["ETag"] = etag(job)
        response.headers["Cache-Control"] = "no-store"
        return response

    async def correct(request: Request) -> Response:
        job = await found(request)
        text = await bounded_body(request)
        try:
            transcript = await run_sync(read_json, text)
        except CorruptFile as error:
            raise ApiError(400, "invalid_value", str(error)) from error
        job = await run_sync(store.correct, job.id, transcript, revision_of(request))
        return await shown(job)

    async def uncorrect(request: Request) -> Response:
        job = await found(request)
        job = await run_sync(store.correct, job.id, None, revision_of(request))
        return await shown(job)

    async def events(request: Request) -> Response:
        job = await found(request)
        after = request.headers.get("last-event-id") or request.query_params.get("after") or "0"
        if not after.isdecimal() or len(after) > 18:
            raise wrong("after", after, "give the number of the last event")
        return event_stream(told(runner, job.id, int(after)))

    async def audio(request: Request) -> Response:
        job = await found(request)
        sound = store.sound_of(job.id)
        if not sound.is_file():
            raise ApiError(404, "not_found", "the recording is gone")
        headers = {"Cache-Control": "private, no-store", "Content-Security-Policy": "default-src 'none'"}
        return FileResponse(sound, media_type=job.media_type, headers=headers)

    path = "/v1/audio/jobs/{id}"
    return [
        Route("/v1/audio/jobs", every, methods=["GET"]),
        Route(path, one, methods=["GET"]),
        Route(path, delete, methods=["DELETE"]),
        Route(f"{path}/result", result, methods=["GET"]),
        Route(f"{path}/result", correct, methods=["PUT"]),
        Route(f"{path}/result", uncorrect, methods=["DELETE"]),
        Route(f"{path}/events", events, methods=["GET"]),
        Route(f"{path}/audio", audio, methods=["GET"]),
    ]


async def told(runner: Runner, identity: str, after: int) -> AsyncIterator[str]:
    """A job's events behind a number, those to come as well, until it has ended."""
    while True:
        change = runner.change_of(identity)  # before looking, so that nothing falls between
        for number, name, data in await run_sync(runner.store.events, identity, after):
            yield event(data, name, number)
            after = number
        try:
            job = await run_sync(runner.store.job, identity)
        except ApiError:  # it was deleted
            return
        if job.ended:
            for number, name, data in await run_sync(runner.store.events, identity, after):
                yield event(data, name, number)
            return
        await change.wait()


def etag(job: Job) -> str:
    """Of a job's result: changes with every correction."""
    return f'"{job.revision}"'


def revision_of(request: Request) -> int | None:
    """The revision that a correction was made of; None where the client does not say. Raises `ApiError` 400."""
    text = request.headers.get("if-match")
    if text is None or text.strip() == "*":
        return None
    number = text.strip().removeprefix("W/").strip('"')
    if not number.isdecimal() or len(number) > 9:
        raise wrong("If-Match", text, "give the ETag that came with the result")
    return int(number)


def number_in(request: Request, name: str, default: int, most: int) -> int:
    """A number of the query, from 1 on. Raises `ApiError` 400."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isdecimal() or not 1 <= int(text[:9]) <= most:
        raise wrong(name, text, f"give a number from 1 to {most}")
    return int(text)


async def bounded_body(request: Request) -> str:
    """The text of a request. Raises `ApiError` 413 for one that is too long, 400 for what is no UTF-8."""
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_CORRECTION:
            message = f"a transcript may have {MAX_CORRECTION >> 20} MiB"
            raise ApiError(413, "file_too_large", message, headers={"Connection": "close"})
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ApiError(400, "invalid_value", "the transcript is not UTF-8") from None
