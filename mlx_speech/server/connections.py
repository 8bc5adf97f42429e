"""Connections of HTTP/1.1 that do not last for ever: uvicorn's, with times for what it waits for without end."""

from __future__ import annotations

import asyncio
import resource
from contextlib import suppress

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from mlx_speech.server.errors import ApiError

SECONDS_FOR_HEAD = 10.0  # a request's first line and headers
SECONDS_TO_READ = 60.0  # for a client to take the 48 KiB that bring an answer under way again
SECONDS_TO_STOP = 1.0  # for a client that has been answered before the end of its body
MOST_READ_AWAY = 1 << 20  # bytes that it may send meanwhile
MOST_CONNECTIONS = 1000  # at once; where none can be taken any more, asyncio fills the log


def room_for_connections() -> int:
    """How many connections there may be at once: with as many files of other kinds, no more than the process may have
    open. Where that is few, as on a Mac, it is asked for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MOST_CONNECTIONS
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # what there is has to do
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else min(MOST_CONNECTIONS, soft // 2)


def _too_many(most: int) -> bytes:
    """A whole answer of HTTP."""
    message = f"{most} connections are open, and no more may be: try again later"
    answer = ApiError(503, "too_many_connections", message, headers={"Retry-After": "5", "Connection": "close"})
    response = answer.response()
    lines = [b"HTTP/1.1 503 Service Unavailable", *(b": ".join(header) for header in response.raw_headers)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + bytes(response.body)


class Connection(H11Protocol):
    """Closes itself where the head of a request does not come in time, where the client does not read its answer, and
    where it goes on sending a body that has been answered: not at once, since a connection that is closed over unread
    bytes is reset, and the answer may be lost with it. One connection too many is answered, and closed.

    The limits of a body are those of whoever reads it.
    """

    seconds_for_head = SECONDS_FOR_HEAD
    seconds_to_read = SECONDS_TO_READ
    seconds_to_stop = SECONDS_TO_STOP
    most_connections = MOST_CONNECTIONS
    _for_head: asyncio.TimerHandle | None = None
    _to_read: asyncio.TimerHandle | None = None
    _to_stop: asyncio.TimerHandle | None = None
    _read_away = 0  # bytes

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Of asyncio, as those below."""
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            transport.write(_too_many(self.most_connections))
            transport.close()
            return
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """A client that sends a byte now and then does not begin anew."""
        super().data_received(data)
        if self._to_stop is not None:
            self._read_on(len(data))
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting_for_head()
        elif self._for_head is None:
            self._wait_for_head()

    def on_response_complete(self) -> None:
        """All of the answer has been sent."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
            self._read_away = 0
            self._to_stop = self.loop.call_later(self.seconds_to_stop, self.transport.close)

    def pause_writing(self) -> None:
        """The client has not taken what was sent before."""
        super().pause_writing()
        if self._to_read is None:
            self._to_read = self.loop.call_later(self.seconds_to_read, self.transport.abort)

    def resume_writing(self) -> None:
        """It has."""
        super().resume_writing()
        self._stop_waiting_to_be_read()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end, whoever made it."""
        self._stop_waiting_for_head()
        self._stop_waiting_to_be_read()
        self._stop_reading_away()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._for_head = self.loop.call_later(self.seconds_for_head, self.transport.close)

    def _stop_waiting_for_head(self) -> None:
        if self._for_head is not None:
            self._for_head.cancel()
            self._for_head = None

    def _stop_waiting_to_be_read(self) -> None:
        if self._to_read is not None:
            self._to_read.cancel()
            self._to_read = None

    def _read_on(self, count: int) -> None:
        """A client that has been answered has sent so many bytes more."""
        self._read_away += count
        if self.conn.their_state is not h11.SEND_BODY:  # it has come to the end of them, and may go on
            self._stop_reading_away()
        elif self._read_away > MOST_READ_AWAY:
            self.flow.pause_reading()

    def _stop_reading_away(self) -> None:
        if self._to_stop is not None:
            self._to_stop.cancel()
            self._to_stop = None
