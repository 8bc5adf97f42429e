"""/health: whether the server lives. /ready: whether its models are there, and get on with their work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlx_speech import hub
from mlx_speech.languages import to_language_code
from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.server.errors import ApiError
from mlx_speech.server.outcomes import outcome_of
from mlx_speech.server.service import Service

LONGEST_STEP = 60.0  # seconds; the longest that work, a batch on a slow CPU, takes a few

log = logging.getLogger("mlx_speech.server")


def routes(service: Service) -> list[Route]:
    """Both, for which no key is needed."""

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(request: Request) -> Response:
        if service.state != "ready":
            message = f"the server is {service.state}"
            raise ApiError(503, service.state.replace(" ", "_"), message, headers={"Retry-After": "2"})
        seconds = service.stalled_for
        if seconds > LONGEST_STEP:
            message = f"the server is stalled: a step of its work has been under way for {seconds:.0f} s"
            raise ApiError(503, "stalled", message, headers={"Retry-After": "10"})
        return JSONResponse({"status": "ready"})

    return [Route("/health", health), Route("/ready", ready)]


@asynccontextmanager
async def warmed_up(service: Service) -> AsyncIterator[None]:
    """Meanwhile every model is loaded, by a second of silence; from then on the hub is not asked, if it should not."""
    with ExitStack() as stack:
        loading = asyncio.create_task(_warm_up(service, stack))
        try:
            yield
        finally:
            service.state = "shutting down"
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)


async def _warm_up(service: Service, stack: ExitStack) -> None:
    """stack : is left when the server ends"""
    silence = np.zeros(SAMPLE_RATE, np.float32)
    for name, pipeline in service.pipelines.items():
        for language in service.settings.preload or ():
            pipeline.models.keep_aligner(to_language_code(language))
        for options in _of_silence(service.settings.preload):
            outcome = await outcome_of(pipeline.submit(silence, **options))
            if service.state == "shutting down":
                return
            if isinstance(outcome, Exception):
                service.state = "not loaded"
                log.error("the model %s cannot be loaded: %s", name, outcome)
                return
    if service.settings.offline:
        stack.enter_context(hub.offline())
    service.state = "ready"


def _of_silence(preload: tuple[str, ...] | None) -> list[dict[str, Any]]:
    """The options by which silence loads what is wanted. preload : as of `Settings`"""
    options: list[dict[str, Any]] = [{"vad": False}]
    if preload is not None:
        options.append({"diarize": True})
        options += [{"language": language} for language in preload]
    return options
