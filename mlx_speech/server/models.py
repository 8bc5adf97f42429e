"""/v1/models: which names a request may give."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlx_speech.server.service import Service

OWNER = "mlx_speech"


def routes(service: Service) -> list[Route]:
    """Their list, and each of them."""
    started = int(time.time())

    def entry(name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": started, "owned_by": OWNER}

    async def every(request: Request) -> Response:
        names = [*service.pipelines, *service.aliases]
        return JSONResponse({"object": "list", "data": [entry(name) for name in names]})

    async def one(request: Request) -> Response:
        name = request.path_params["name"]  # its slashes came as %2F, and are slashes again
        service.model(name)  # which there has to be
        return JSONResponse(entry(name))

    return [Route("/v1/models", every), Route("/v1/models/{name:path}", one)]
