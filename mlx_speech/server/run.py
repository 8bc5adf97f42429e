"""The server as a process: it listens until a signal ends it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette

from mlx_speech.server.realtime.limits import WS_MAX_QUEUE, WS_MAX_SIZE
from mlx_speech.server.settings import Settings

BACKLOG = 128  # connections that the system holds before they are taken
SECONDS_KEPT_ALIVE = 10  # a connection without a request


def serve(
    app: Starlette,
    settings: Settings,
    *,
    socket: str | None = None,
    certificate: str | None = None,
    private_key: str | None = None,
    started: Callable[[str], object] = print,
) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends what is still under way.

    socket : path of a Unix socket, instead of host and port
    certificate, private_key : files for TLS
    started : is told where the server listens
    """
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        uds=socket,
        ssl_certfile=certificate,
        ssl_keyfile=private_key,
        ws="websockets-sansio",
        ws_max_size=WS_MAX_SIZE,
        ws_max_queue=WS_MAX_QUEUE,
        backlog=BACKLOG,
        timeout_keep_alive=SECONDS_KEPT_ALIVE,
        timeout_graceful_shutdown=round(settings.grace),
        server_header=False,
        proxy_headers=False,
        access_log=False,  # the application writes its own
        log_config=None,
    )
    _Server(config, socket, certificate is not None, started).run()


class _Server(uvicorn.Server):
    """Says where it listens as soon as it does."""

    def __init__(
        self, config: uvicorn.Config, socket: str | None, encrypted: bool, started: Callable[[str], object]
    ) -> None:
        super().__init__(config)
        self._socket = socket
        self._scheme = "https" if encrypted else "http"
        self._started = started

    async def startup(self, sockets: list | None = None) -> None:  # pyright: ignore[reportMissingTypeArgument]
        await super().startup(sockets)
        if not self.started:
            return
        if self._socket is not None:
            self._started(f"unix:{self._socket}")
            return
        host = self.config.host
        port = self.servers[0].sockets[0].getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        self._started(f"{self._scheme}://{shown}:{port}")


def log_to_stderr(verbose: bool) -> None:
    """A line for each request and each warning, on standard error."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING, force=True)
    logging.getLogger("mlx_speech.server").setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.captureWarnings(True)
