"""A server for tests of the page: the interface of jobs, in memory, without models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mlx_speech.errors import CorruptFile
from mlx_speech.server import page
from mlx_speech.server.errors import ApiError
from mlx_speech.writers import read_json


def job_id(number: int) -> str:
    """The id of a job, as the server makes them."""
    return "job_" + "a" * 24 + "abcdefghijklmnopqrstuvwxyz234567"[number // 32 % 32] + "abcdefghijklmnop"[number % 16]


@dataclass
class Job:
    """A job and what it holds. document : its transcript as `to_json` writes it; uploaded : the form and the file"""

    body: dict[str, Any]
    document: str = ""
    sound: bytes = b""
    revision: int = 1
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


@dataclass
class Fake:
    """The server. key : that it asks for; uploads : the fields of forms and the sizes of their files"""

    key: str = ""
    jobs: dict[str, Job] = field(default_factory=dict)
    uploads: list[dict[str, Any]] = field(default_factory=list)
    puts: list[dict[str, Any]] = field(default_factory=list)
    origin: str = ""

    def add(self, filename: str, *, status: str = "succeeded", **content: Any) -> Job:
        number = len(self.jobs)
        body = {
            "id": job_id(number),
            "object": "audio.job",
            "status": status,
            "stage": content.pop("stage", None),
            "created_at": 1_790_000_000 + 60 * number,
            "expires_at": 1_790_086_400,
            "progress": content.pop("progress", 1.0 if status == "succeeded" else 0.0),
            "filename": filename,
            "audio_seconds": content.pop("audio_seconds", None),
            "queue_position": content.pop("queue_position", None),
            "corrected": False,
            "error": content.pop("error", None),
        }
        job = Job(body, **content)
        self.jobs[body["id"]] = job
        return job

    def clear(self) -> None:
        """Forget all that a test has left."""
        self.key = ""
        for kept in (self.jobs, self.uploads, self.puts):
            kept.clear()

    def find(self, request: Request) -> Job:
        job = self.jobs.get(request.path_params["id"])
        if job is None:
            raise ApiError(404, "not_found", "there is no such job")
        return job

    async def create(self, request: Request) -> Response:
        async with request.form() as form:
            file: Any = form["file"]
            fields = {name: value for name, value in form.items() if name != "file"}
            content = await file.read()
            self.uploads.append({**fields, "filename": file.filename, "size": len(content), "head": content[:4]})
        return JSONResponse(self.add(str(file.filename), status="queued", sound=content).body, 202)

    async def live_key(self, request: Request) -> Response:
        """There are no live sessions."""
        raise ApiError(503, "too_many_sessions", "8 live sessions are open, and no more may be: try again later")

    async def list(self, request: Request) -> Response:
        jobs = [job.body for job in reversed(self.jobs.values())]
        return JSONResponse({"object": "list", "data": jobs, "has_more": False})

    async def get(self, request: Request) -> Response:
        return JSONResponse(self.find(request).body)

    async def delete(self, request: Request) -> Response:
        self.find(request)
        del self.jobs[request.path_params["id"]]
        return Response(status_code=204)

    async def result(self, request: Request) -> Response:
        job = self.find(request)
        if request.method == "PUT":
            if request.headers.get("If-Match") != f'"{job.revision}"':
                raise ApiError(412, "revision_conflict", "it was changed by somebody else: load it again")
            text = (await request.body()).decode()
            try:
                read_json(text)
            except CorruptFile as error:
                raise ApiError(400, "invalid_value", str(error)) from error
            self.puts.append(json.loads(text))
            job.document = text
            job.revision += 1
            job.body["corrected"] = True
            return JSONResponse(job.body, headers={"ETag": f'"{job.revision}"'})
        assert request.query_params["response_format"] == "whisperx_json"
        return Response(job.document, media_type="application/json", headers={"ETag": f'"{job.revision}"'})

    async def sound(self, request: Request) -> Response:
        """With ranges, without which a player cannot jump."""
        content = self.find(request).sound
        headers = {"Accept-Ranges": "bytes"}
        asked = request.headers.get("Range")
        if asked is None:
            return Response(content, media_type="audio/wav", headers=headers)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start = int(first)
        end = min(int(last) if last else len(content) - 1, len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        return Response(content[start : end + 1], 206, media_type="audio/wav", headers=headers)

    async def events(self, request: Request) -> Response:
        job = self.find(request)
        place = int(request.headers.get("Last-Event-ID", "0"))

        async def stream(place: int) -> AsyncIterator[str]:
            yield ": alive\n\n"
            while not await request.is_disconnected():
                for name, data in job.events[place:]:
                    place += 1
                    yield f"id: {place}\nevent: {name}\ndata: {json.dumps(data)}\n\n"
                    if name in ("done", "failed", "cancelled"):
                        return
                await asyncio.sleep(0.02)

        return StreamingResponse(stream(place), media_type="text/event-stream")

    def app(self) -> Starlette:
        async def keyed(request: Request, call_next: Any) -> Response:
            is_open = not self.key or not request.url.path.startswith("/v1/")
            if not is_open and request.headers.get("Authorization") != f"Bearer {self.key}":
                return ApiError(401, "invalid_api_key", "give a key").response()
            return await call_next(request)

        async def failed(request: Request, error: Exception) -> Response:
            assert isinstance(error, ApiError)
            return error.response()

        jobs = "/v1/audio/jobs"
        app = Starlette(
            routes=[
                *page.routes(),
                Route("/v1/realtime/client_secrets", self.live_key, methods=["POST"]),
                Route(jobs, self.create, methods=["POST"]),
                Route(jobs, self.list),
                Route(jobs + "/{id}", self.get),
                Route(jobs + "/{id}", self.delete, methods=["DELETE"]),
                Route(jobs + "/{id}/result", self.result, methods=["GET", "PUT"]),
                Route(jobs + "/{id}/audio", self.sound),
                Route(jobs + "/{id}/events", self.events),
            ],
            exception_handlers={ApiError: failed},
        )
        app.add_middleware(BaseHTTPMiddleware, dispatch=keyed)
        return app
