"""Requests that fail or are left, wherever that happens: also where the answer has begun already."""

from __future__ import annotations

import logging

from starlette.requests import Request

from mlx_speech.errors import PipelineClosed
from mlx_speech.server.errors import ApiError, api_error
from mlx_speech.server.service import Service

log = logging.getLogger("mlx_speech.server")


def told(request: Request, error: Exception) -> ApiError:
    """The answer to a request that has failed. It is counted; what nobody meant to raise stands in the log, with the
    request's id."""
    service: Service = request.app.state.service
    answer = api_error(error)
    if isinstance(error, PipelineClosed):
        service.metrics.see_cancelled("shutdown")
    if answer.status < 500:
        service.metrics.see_refusal(answer.code)
    if answer.status == 500:
        identity = getattr(request.state, "request_id", "")
        answer.headers["x-request-id"] = identity  # such an answer may not come by way of the log of requests
        log.error("%s: %s %s failed", identity, request.method, request.url.path, exc_info=error)
    return answer


def left(request: Request) -> None:
    """Count a request whose answer had begun, and whose client has gone, unless it is the server that goes."""
    service: Service = request.app.state.service
    service.metrics.see_cancelled("shutdown" if service.state == "shutting down" else "disconnect")
    request.state.log["cancelled"] = True
