"""The server as a process: it listens until a signal ends it."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from socket import AF_INET6, AF_UNIX, socket
from types import FrameType
from typing import TypeAlias

import uvicorn
from starlette.applications import Starlette

from mlx_speech.server.connections import Connection, room_for_connections
from mlx_speech.server.listening import BACKLOG
from mlx_speech.server.realtime.limits import WS_MAX_QUEUE, WS_MAX_SIZE
from mlx_speech.server.settings import Settings

SECONDS_KEPT_ALIVE = 10  # a connection without a request
SECONDS_TO_ANSWER = 2  # for requests that were ended to say so
SIGNALS = (signal.SIGINT, signal.SIGTERM)

Step: TypeAlias = Callable[[], Awaitable[None]]


def serve(
    app: Starlette,
    settings: Settings,
    listener: socket,
    *,
    certificate: str | None = None,
    private_key: str | None = None,
    proxies: Sequence[str] = (),
    started: Callable[[str], object] = print,
) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends the process at once.

    app : of `create_app`
    listener : of `listen` or `listen_at`
    certificate, private_key : files for TLS
    proxies : addresses and networks whose X-Forwarded-For and X-Forwarded-Proto are believed; "*" for all
    started : is told where the server listens

    Raises as the start of the application.
    """

    class Bounded(Connection):
        most_connections = room_for_connections()

    config = uvicorn.Config(
        app,
        ssl_certfile=certificate,
        ssl_keyfile=private_key,
        http=Bounded,
        ws="websockets-sansio",
        ws_max_size=WS_MAX_SIZE,
        ws_max_queue=WS_MAX_QUEUE,
        lifespan="off",  # it is kept here, where its errors can be told
        backlog=BACKLOG,
        timeout_keep_alive=SECONDS_KEPT_ALIVE,
        timeout_graceful_shutdown=round(settings.grace) + SECONDS_TO_ANSWER,
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=list(proxies),
        access_log=False,  # the application writes its own
        log_config=None,
    )
    address = _address(listener, settings.host, certificate is not None)
    server = _Server(config, settings.grace, lambda: started(address), app.state.wind_down, app.state.end_requests)

    async def live() -> None:
        async with app.router.lifespan_context(app):
            await server.serve([listener])

    without_core_dumps()
    with _signals(server):
        asyncio.run(live())


class _Server(uvicorn.Server):
    """Says that it is there; when it stops, what would hold it up goes first.

    grace : seconds until requests that are under way are ended
    """

    def __init__(
        self, config: uvicorn.Config, grace: float, started: Callable[[], object], wind_down: Step, end_requests: Step
    ) -> None:
        super().__init__(config)
        self._grace = grace
        self._tell = started
        self._wind_down = wind_down
        self._end_requests = end_requests

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Of uvicorn, as those below."""
        await super().startup(sockets)
        self._tell()

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Nobody is let in any more; live sessions end, and the others have their time."""
        for server in self.servers:
            server.close()
        ending = asyncio.create_task(self._end_after_grace())
        await self._wind_down()
        await super().shutdown(sockets)
        ending.cancel()

    async def _end_after_grace(self) -> None:
        await asyncio.sleep(self._grace)
        await self._end_requests()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Left to `_signals`: uvicorn's own would end the process by the signal, and not with 0."""
        yield


@contextmanager
def _signals(server: uvicorn.Server) -> Iterator[None]:
    """Meanwhile a signal ends the server, and a second one the process, whatever that is doing."""

    def end(number: int, frame: FrameType | None) -> None:
        server.should_exit = True
        for one in SIGNALS:
            signal.signal(one, signal.SIG_DFL)

    before = {one: signal.signal(one, end) for one in SIGNALS}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _address(listener: socket, name: str, encrypted: bool) -> str:
    """As a browser takes it; of a Unix socket, its file."""
    if listener.family == AF_UNIX:
        return f"unix:{listener.getsockname()}"
    scheme = "https" if encrypted else "http"
    host = f"[{name}]" if listener.family == AF_INET6 and ":" in name else name
    return f"{scheme}://{host}:{listener.getsockname()[1]}"


def without_core_dumps() -> None:
    """Where the process crashes, nothing of its memory, as keys and what people say, is written to a disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def log_to_stderr(verbose: bool) -> None:
    """A line for each request and each warning, on standard error."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING, force=True)
    logging.getLogger("mlx_speech.server").setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.captureWarnings(True)
