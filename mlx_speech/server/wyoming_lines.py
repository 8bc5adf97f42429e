"""Wyoming's messages on a stream: a line of JSON, then more JSON, then bytes, as far as the line announces them.

Source: wyoming 1.10.2 `event.py`. Its reader has no bounds; this one has.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import cast

LONGEST_LINE = 64 * 1024  # bytes
LONGEST_DATA = 1 << 20
LONGEST_PAYLOAD = 1 << 20
VERSION = "1.10.2"  # of the protocol, which is the library's


class LineError(ValueError):
    """What came is no message. It is one line, for the client."""


@dataclass(frozen=True)
class Message:
    """A message.

    data : as JSON has it
    payload : bytes, of sound
    """

    type: str
    data: dict[str, object] = field(default_factory=dict)
    payload: bytes = b""


async def read(reader: asyncio.StreamReader) -> Message | None:
    """The next message; None at the end of the stream. reader : whose limit is `LONGEST_LINE`

    Raises `LineError`.
    """
    try:
        line = await reader.readline()
    except ValueError as error:
        raise LineError(f"a line has more than {LONGEST_LINE} bytes") from error
    if not line:
        return None
    head = _parsed(line)
    kind = head.get("type")
    if not isinstance(kind, str):
        raise LineError("a message has no type")
    data = head.get("data") or {}
    if not isinstance(data, dict):
        raise LineError("data is no object")
    try:
        more = await reader.readexactly(_length(head, "data_length", LONGEST_DATA))
        payload = await reader.readexactly(_length(head, "payload_length", LONGEST_PAYLOAD))
    except asyncio.IncompleteReadError:
        return None
    if more:
        data = {**data, **_parsed(more)}
    return Message(kind, data, payload)


def written(message: Message) -> bytes:
    """A message as it is sent."""
    data = json.dumps(message.data, allow_nan=False).encode()
    head: dict[str, object] = {"type": message.type, "version": VERSION}
    if message.data:
        head["data_length"] = len(data)
    if message.payload:
        head["payload_length"] = len(message.payload)
    line = json.dumps(head).encode() + b"\n"
    return line + (data if message.data else b"") + message.payload


def _parsed(text: bytes) -> dict[str, object]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LineError("this is not JSON") from error
    if not isinstance(content, dict):
        raise LineError("this is no object of JSON")
    return cast("dict[str, object]", content)


def _length(head: dict[str, object], name: str, most: int) -> int:
    """Bytes that follow."""
    length = head.get(name) or 0
    if not isinstance(length, int) or isinstance(length, bool) or not 0 <= length <= most:
        raise LineError(f"{name} is no whole number from 0 to {most}")
    return length
