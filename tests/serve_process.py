"""`mlx_speech serve --demo` as a process of its own, and raw connections to it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
from patience import PATIENCE, until

PROGRAM = (sys.executable, "-m", "mlx_speech")
COMMAND = [*PROGRAM, "serve"]
JOBS = "/v1/audio/jobs"


def environment(program: Sequence[str] = PROGRAM) -> dict[str, str]:
    """Of a server without a key; for another program than that of the tests, without what Python is told of them."""
    kept = dict(os.environ)
    kept.pop("MLX_SPEECH_API_KEY", None)
    if program is not PROGRAM:
        kept = {name: value for name, value in kept.items() if not name.startswith("PYTHON")}
    return kept


class Serving:
    """A server with the demo's models, at a free port. said : lines of its standard error"""

    def __init__(self, folder: Path, *flags: str, program: Sequence[str] = PROGRAM) -> None:
        command = [*program, "serve", "--demo", "--port", "0", "--data-dir", str(folder), *flags]
        self.said: list[str] = []
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(program))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.origin = until(self._address, "an address")
        self.port = int(self.origin.rpartition(":")[2])
        self.client = httpx2.Client(base_url=self.origin, timeout=PATIENCE)
        until(lambda: self.client.get("/ready").status_code == 200, "its models")

    def stop(self, *signals: int) -> float:
        """Send signals, and wait for the end. Returns the seconds that it took."""
        start = time.monotonic()
        for number in signals:
            self.process.send_signal(number)
            time.sleep(0.3)
        self.process.wait(PATIENCE)
        seconds = time.monotonic() - start
        self._reader.join(PATIENCE)
        self.client.close()
        return seconds

    def resident(self) -> int:
        """Bytes of memory that are its own now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return 1024 * int(re.findall(r"RssAnon:\s+(\d+) kB", status)[0])

    def post_job(self, sound: bytes, **fields: Any) -> str:
        """A new job; returns its address."""
        answer = self.client.post(JOBS, data={"model": "demo", **fields}, files={"file": ("a.wav", sound)})
        assert answer.status_code == 202, answer.text
        return answer.headers["location"]

    def job(self, address: str) -> dict[str, Any]:
        return self.client.get(address).json()

    def done(self, address: str) -> dict[str, Any]:
        """A job that has succeeded."""
        until(lambda: self.job(address)["status"] in ("succeeded", "failed"), "the end of a job")
        job = self.job(address)
        assert job["status"] == "succeeded", job
        return job

    def connect(self, data: bytes = b"") -> socket.socket:
        """A connection, and its first bytes."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        connection.sendall(data)
        return connection

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self.said.append(line)

    def _address(self) -> str:
        assert self.process.poll() is None, "".join(self.said)
        found = re.search(r"listening at (http://127\.0\.0\.1:\d+)", "".join(self.said))
        return "" if found is None else found[1]


@contextlib.contextmanager
def served(folder: Path, *flags: str, program: Sequence[str] = PROGRAM) -> Iterator[Serving]:
    """A server, which is stopped at the end if it was not before. program : the command mlx_speech"""
    server = Serving(folder, *flags, program=program)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop(signal.SIGKILL)


def rest_of(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    received = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while block := connection.recv(1 << 16):
            received += block
    return bytes(received)
