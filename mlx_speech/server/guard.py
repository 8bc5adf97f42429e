"""Who may ask: the host that a request names, the page that sends it, the key that it brings.

A page of another site can send requests to a server on the same machine, and, where its name is made to lead here (DNS
rebinding), read the answers: so the host has to be one of ours, and the origin that of our own page.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_speech.server.errors import ApiError
from mlx_speech.server.settings import LOOPBACK, Settings

OPEN_PATHS = ("/", "/health", "/ready", "/favicon.ico")  # without a key
REALTIME = "/v1/realtime"
TOKEN_PREFIX = b"ek_"  # of keys that open one session
OPEN_FOLDER = "/page/"  # of the page's own files
SUBPROTOCOL = "openai-insecure-api-key."  # browsers can give no headers to a socket; OpenAI's own client does this
EVERYWHERE = ("0.0.0.0", "::", "")
CORS_METHODS = "GET, POST, PUT, DELETE, OPTIONS"
CORS_HEADERS = "Authorization, Content-Type, If-Match, Idempotency-Key, Last-Event-ID, Prefer"
CORS_EXPOSED = "ETag, Location, Retry-After, x-request-id"
CORS_SECONDS = "600"
_HOST = re.compile(r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::\d+)?")
Redeem = Callable[[str], bool]


class Guard:
    """Lets a request through, with the hash of its key in `state.owner`, or answers it with an error.

    refused : is told the code of every refusal
    redeem : takes a key that was made for one session, and says whether it is good
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        redeem: Redeem | None = None,
        refused: Callable[[str], object] = lambda code: None,
    ) -> None:
        self._app = app
        self._settings = settings
        self._redeem = redeem
        self._refused = refused
        self._hosts = _hosts(settings)
        self._keys = [key.encode() for key in settings.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        origin = connection.headers.get("origin")
        try:
            self._check_host(connection.headers)
            self._check_origin(origin, connection.headers)
        except ApiError as error:
            await self._refusal(error)(scope, receive, send)
            return
        app: ASGIApp = self._app
        if scope["type"] == "http" and _is_preflight(scope, connection.headers):
            app = _preflight(connection.headers)
        else:
            try:
                connection.state.owner = self._owner(connection)
            except ApiError as error:
                app = self._refusal(error)
        if origin is not None:  # a page that may ask may also read why it was refused
            app = _with_cors(app, origin)
        await app(scope, receive, send)

    def _refusal(self, error: ApiError) -> ASGIApp:
        self._refused(error.code)

        async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
            await _refuse(error, scope, receive, send)

        return refuse

    def _check_host(self, headers: Headers) -> None:
        name = host_name(headers.get("host", ""))
        if name not in self._hosts:
            raise ApiError(403, "host_not_allowed", "this server is not called so: add the name with allow_host")

    def _check_origin(self, origin: str | None, headers: Headers) -> None:
        if origin is None or origin in self._settings.cors or "*" in self._settings.cors:
            return
        scheme, _, host = origin.partition("://")
        if scheme in ("http", "https") and host == headers.get("host", ""):
            return
        raise ApiError(403, "origin_not_allowed", "a page of another site sent this: allow its origin with cors")

    def _owner(self, connection: HTTPConnection) -> str:
        """The hash of the key. Raises `ApiError` where one is needed, and this is none."""
        path = connection.scope["path"]
        given = key_of(connection)
        # a key of one session opens that alone, also where no other key is needed
        if path == REALTIME and self._redeem is not None and given and self._redeem(given.decode("utf-8", "replace")):
            return hashlib.sha256(given).hexdigest()
        is_token = path == REALTIME and self._redeem is not None and given.startswith(TOKEN_PREFIX)
        if not self._keys and not is_token:
            return ""
        if path in OPEN_PATHS or path.startswith(OPEN_FOLDER):
            return ""
        if path == "/metrics" and self._settings.metrics_open:
            return ""
        found = b""
        for key in self._keys:  # all of them, so that the time tells nothing
            if hmac.compare_digest(key, given):
                found = key
        if found:
            return hashlib.sha256(found).hexdigest()
        message = "this server needs a key: send it as Authorization: Bearer …"
        if is_token:
            message = "this key has opened its session, or is too old: ask for another one"
        raise ApiError(401, "invalid_api_key", message, headers={"WWW-Authenticate": "Bearer"})


def _hosts(settings: Settings) -> frozenset[str]:
    names: Iterable[str] = (*LOOPBACK, *settings.allowed_hosts)
    own = () if settings.host in EVERYWHERE else (settings.host,)
    return frozenset(name.lower().strip("[]") for name in (*names, *own))


def host_name(host: str) -> str:
    """The name in a Host header, without the port, in small letters; "" for what is no name and port."""
    found = _HOST.fullmatch(host.strip().lower())
    return "" if found is None else found["address"] or found["name"]


def key_of(connection: HTTPConnection) -> bytes:
    """The key that a request brings; empty without one."""
    scheme, _, key = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip().encode("latin-1", "replace")
    for protocol in connection.scope.get("subprotocols", []):
        if protocol.startswith(SUBPROTOCOL):
            return protocol.removeprefix(SUBPROTOCOL).encode("latin-1", "replace")
    return b""


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    return scope["method"] == "OPTIONS" and "access-control-request-method" in headers


def _preflight(asked: Headers) -> Response:
    """Whatever headers the page wants to send: none of them opens anything."""
    headers = {
        "Access-Control-Allow-Methods": CORS_METHODS,
        "Access-Control-Allow-Headers": asked.get("access-control-request-headers", CORS_HEADERS),
        "Access-Control-Max-Age": CORS_SECONDS,
    }
    return Response(status_code=204, headers=headers)


def _with_cors(app: ASGIApp, origin: str | None) -> ASGIApp:
    """The app, whose answers a page of this origin may read; never with credentials of the browser's own."""

    async def with_headers(scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and origin is not None:
                headers = MutableHeaders(scope=message)
                headers["Access-Control-Allow-Origin"] = origin
                headers["Access-Control-Expose-Headers"] = CORS_EXPOSED
                headers.add_vary_header("Origin")
            await send(message)

        await app(scope, receive, sending)

    return with_headers


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await error.response()(scope, receive, send)
        return
    extensions = scope.get("extensions", {})
    if "websocket.http.response" not in extensions:
        await send({"type": "websocket.close", "code": 1008, "reason": error.code})
        return
    response = error.response()
    await send({"type": "websocket.http.response.start", "status": error.status, "headers": response.raw_headers})
    await send({"type": "websocket.http.response.body", "body": response.body})
