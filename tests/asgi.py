"""Requests to an application without a network: whole, in pieces, from clients that go away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

BOUNDARY = "x-boundary-x"


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return self.json["error"]


def form(parts: Iterable[tuple[str, bytes | str, str | None]]) -> bytes:
    """multipart/form-data of (name, content, file name)."""
    data = bytearray()
    for name, content, filename in parts:
        disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename is not None else "")
        data += f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n".encode()
        data += content.encode() if isinstance(content, str) else content
        data += b"\r\n"
    return bytes(data + f"--{BOUNDARY}--\r\n".encode())


def request(method: str, path: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """The scope of a request."""
    path, _, query = path.partition("?")
    given = {"host": "127.0.0.1:8000", **(headers or {})}
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "scheme": "http",
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 5),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in given.items()],
        "state": {},
    }


def post(path: str, content_type: str = f"multipart/form-data; boundary={BOUNDARY}", **headers: str) -> dict[str, Any]:
    return request("POST", path, {"content-type": content_type, **headers})


async def ask(
    app: Any,
    scope: dict[str, Any],
    body: bytes = b"",
    size: int = 1 << 16,
    goes: float | None = None,
    gone: asyncio.Event | None = None,
    see: Callable[[bytes], object] | None = None,
) -> Answer:
    """What the application answers.

    size : bytes of a piece of the body; goes : seconds after which the client closes the connection; gone : when it has
    see : is called with the answer's body as far as it has come, whenever there is more
    """
    pieces = [body[start : start + size] for start in range(0, len(body), size)] or [b""]
    answer = Answer()
    gone = gone or asyncio.Event()
    if goes is not None:
        asyncio.get_running_loop().call_later(goes, gone.set)

    async def receive() -> dict[str, Any]:
        if pieces:
            piece = pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(pieces)}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {name.decode(): value.decode("latin-1") for name, value in message["headers"]}
            return
        answer.body += message.get("body", b"")
        if see is not None:
            see(answer.body)

    await app(scope, receive, send)
    return answer
