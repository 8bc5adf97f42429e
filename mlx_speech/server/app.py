"""The server as an ASGI application: its routes, what comes before them, and what it does when it starts and stops."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from secrets import token_hex
from typing import cast

from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_speech.errors import MLXSpeechError
from mlx_speech.folders import writing
from mlx_speech.pipeline import Pipeline
from mlx_speech.server import health, models, page, posting, shapes, transcriptions
from mlx_speech.server.collectors import JobsCollector, QueueCollector
from mlx_speech.server.errors import ApiError, shutting_down
from mlx_speech.server.failures import told
from mlx_speech.server.guard import Guard
from mlx_speech.server.jobs import routes as jobs
from mlx_speech.server.jobs.runner import Runner
from mlx_speech.server.metrics import Metrics
from mlx_speech.server.realtime import routes as realtime
from mlx_speech.server.realtime.tokens import Secrets
from mlx_speech.server.service import Service
from mlx_speech.server.settings import Settings
from mlx_speech.server.watchdog import watched
from mlx_speech.server.wyoming import wyoming_listener

BUG = 500  # whose answer is made outside of the log
CLIENT_GONE = 499  # as nginx writes it into its log; nobody gets it
DEFAULT_MODEL = "whisper"
SECONDS_TO_LEAVE = 2.0  # for live sessions to say goodbye

requests_log = logging.getLogger("mlx_speech.server.requests")


def create_app(
    pipelines: Pipeline | Mapping[str, Pipeline],
    settings: Settings | None = None,
    aliases: Mapping[str, str] | None = None,
) -> Starlette:
    """The application, for any ASGI server.

    pipelines : what answers, by the names that requests may give; the first answers OpenAI's names, too. They are
        closed when the application ends
    settings : by default for this machine alone, without a key
    aliases : further names of models → names of pipelines

    What serves it finds in its state `wind_down`, to be awaited before it waits for the requests that are under way,
    and `end_requests`, for when it has waited long enough. Both are optional.
    Raises `OutputError` where data_dir cannot be written; its start, as `Store`.
    """
    named = {DEFAULT_MODEL: pipelines} if isinstance(pipelines, Pipeline) else dict(pipelines)
    service = Service(settings or Settings(), named, aliases or {})

    secrets = Secrets()
    _make_folders(service)
    runner = Runner(service)
    service.metrics.add(JobsCollector(runner.counts))
    backlogs = {"request": service.backlog, "job": runner.backlog, "live": service.live_backlog}
    service.metrics.add(QueueCollector(backlogs))

    async def add_job(request: Request) -> Response:
        return await posting.add_job(request, service, runner)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            async with runner.running(), health.warmed_up(service), watched(service), wyoming_listener(service):
                _clear(service.uploads)  # nobody else uses them, or the jobs could not have been opened
                yield
                _clear(service.uploads)
        finally:
            await service.answers.close()
            for pipeline in named.values():
                pipeline.close()
            service.interrupted.forget_all()

    async def wind_down() -> None:
        service.state = "shutting down"
        runner.wind_down()
        for session in service.live:
            session.leave()
        deadline = time.monotonic() + SECONDS_TO_LEAVE
        while service.live and time.monotonic() < deadline:
            await asyncio.sleep(0.05)

    async def end_requests() -> None:
        for pipeline in named.values():
            await run_sync(pipeline.close)  # which waits for a step

    app = Starlette(
        routes=[
            *transcriptions.routes(service, add_job),
            Route("/v1/audio/jobs", add_job, methods=["POST"]),
            *jobs.routes(service, runner, shapes.stored),
            *models.routes(service),
            *realtime.routes(service, secrets),
            *page.routes(),
            *health.routes(service),
            *service.metrics.routes(),
        ],
        middleware=[
            Middleware(RequestLog, metrics=service.metrics),
            Middleware(Guard, settings=service.settings, redeem=secrets.redeem, refused=service.metrics.see_refusal),
        ],
        exception_handlers={
            ApiError: _answer_error,
            HTTPException: _answer_http_error,
            MLXSpeechError: _answer_error,
            ClientDisconnect: _answer_nobody,
            Exception: _answer_error,
        },
        lifespan=lifespan,
    )
    app.state.service = service
    app.state.wind_down = wind_down
    app.state.end_requests = end_requests
    return app


def _make_folders(service: Service) -> None:
    """The folder of uploads, which nobody else may read. Raises `OutputError`."""
    data_dir = service.settings.data_dir
    with writing(data_dir, "give a data_dir that can be written"):
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        service.uploads.mkdir(mode=0o700, exist_ok=True)


def _clear(folder: Path) -> None:
    """Delete what a process has left that did not end well."""
    for path in folder.iterdir():
        path.unlink(missing_ok=True)


async def _answer_error(request: Request, error: Exception) -> Response:
    return told(request, error).response()


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own errors: no such path, no such method."""
    error = cast(HTTPException, error)
    if error.status_code == 404:
        answer = ApiError(404, "not_found", f"there is nothing at {request.url.path[:200]}")
    elif error.status_code == 405:
        answer = ApiError(405, "method_not_allowed", f"{request.method[:20]} is not for {request.url.path[:200]}")
    else:
        answer = ApiError(error.status_code, "invalid_request", str(error.detail))
    request.app.state.service.metrics.see_refusal(answer.code)
    answer.headers.update(error.headers or {})
    return answer.response()


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


class RequestLog:
    """Gives every request an id, and writes a line of JSON for it: never a text, a name of a file or a key. Whoever
    answers adds what there is to say of the work to `state.log`."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity = f"req_{token_hex(12)}"
        state = scope.setdefault("state", {})
        state["request_id"] = identity
        noted = state["log"] = {}
        start = time.monotonic()
        status = BUG  # unless something is answered, or nobody is there to be answered

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(b"x-request-id", identity.encode()), (b"x-content-type-options", b"nosniff")]
                message["headers"] = [*message["headers"], *own]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except asyncio.CancelledError:  # by a server that has waited for it long enough
            self._metrics.see_cancelled("shutdown")
            if status != BUG:
                raise
            await shutting_down().response()(scope, receive, sending)
        finally:
            seconds = time.monotonic() - start
            route = _route_of(scope)
            self._metrics.see_request(route, status, seconds)
            if status == CLIENT_GONE:
                self._metrics.see_cancelled("disconnect")
                noted["cancelled"] = True
            line = {
                "id": identity,
                "method": scope["method"],
                "route": route,
                "status": status,
                "seconds": round(seconds, 3),
                "key": state.get("owner", "")[:4],
                "client": (scope.get("client") or ("",))[0],
                **noted,
            }
            requests_log.info("%s", json.dumps(line))


def _route_of(scope: Scope) -> str:
    """The path with its parameters' names instead of their values, so that there are few."""
    path = scope["path"]
    if "endpoint" not in scope:
        return "other"
    for name, value in scope.get("path_params", {}).items():
        before, _, behind = path.rpartition(f"/{value}")
        path = f"{before}/{{{name}}}{behind}"
    return path
