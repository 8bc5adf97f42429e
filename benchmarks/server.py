"""How much a server does for many clients: `python -m benchmarks.server --model FOLDER [--seconds 180]`.

Clients send recordings of 10 s, each the next one as soon as the last is answered. Beside them stands what the pipeline
gives for the same recordings without a server, before and after, in processes of its own: as one batch, and with as
many recordings under way at a time as there are clients, which tells what the server itself costs. Then: how long until
the first words of a short recording come, alone and beside one of ten minutes. server.md has what it printed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np

from mlx_speech.audio import load_audio
from mlx_speech.samples import SAMPLE_RATE

if TYPE_CHECKING:
    from mlx_speech import Pipeline

CLIENTS = (1, 4, 16, 64)
LENGTH = 10.0  # seconds of a recording
LONG = 600.0  # seconds of the long one
RECORDINGS = 24  # different ones
SOUNDS = (".wav", ".flac", ".mp3")
BOUNDARY = "recording"
SECONDS_BETWEEN_LOOKS = 2.0  # at the server's memory
COLUMNS = (
    "clients",
    "requests",
    "failed",
    "× real time",
    "beside the batch",
    "beside as many at once",
    "median wait",
    "95 %",
    "memory, MB",
)
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Load:
    """What some clients were answered in some seconds."""

    clients: int
    seconds: float
    waits: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)  # MB, of the server

    @property
    def speed(self) -> float:
        """Seconds of sound a second."""
        return len(self.waits) * LENGTH / self.seconds


def write_wav(path: Path, samples: np.ndarray) -> Path:
    """(samples,) at 16 kHz as 16-bit sound."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def real_speech(data: Path) -> np.ndarray:
    """(samples,) of the test data's English recordings, one behind the other."""
    paths = [path for path in sorted(data.glob("audio/en/*")) if path.suffix in SOUNDS]
    return np.concatenate([load_audio(path) for path in paths])


def recordings(data: Path, folder: Path) -> list[Path]:
    """Pieces of real speech, 10 s each."""
    speech = real_speech(data)
    size = round(LENGTH * SAMPLE_RATE)
    paths: list[Path] = []
    for number in range(RECORDINGS):
        start = number * (len(speech) - size) // RECORDINGS
        paths.append(write_wav(folder / f"{number}.wav", speech[start : start + size]))
    return paths


def long_recording(data: Path, folder: Path) -> Path:
    """Ten minutes of real speech, some of it several times."""
    speech = real_speech(data)
    return write_wav(folder / "long.wav", np.resize(speech, round(LONG * SAMPLE_RATE)))


# --- the server, and the pipeline alone -------------------------------------------------------------------------------


@contextmanager
def server(model: str, folder: Path) -> Iterator[tuple[str, int]]:
    """`mlx_speech serve`. Gives its address and its process."""
    command = [sys.executable, "-m", "mlx_speech", "serve", "--model", model, "--port", "0"]
    command += ["--data-dir", str(folder / "data")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    origin = ""
    while not origin:
        line = process.stderr.readline()
        if not line:
            raise RuntimeError("the server has not started")
        if "listening at" in line:
            origin = line.split("listening at ")[1].split()[0]
    reader = threading.Thread(target=process.stderr.read, daemon=True)  # so that its log does not fill the pipe
    reader.start()
    try:
        wait_until_ready(origin)
        yield origin, process.pid
    finally:
        process.terminate()
        process.wait()


def wait_until_ready(origin: str) -> None:
    while True:
        connection = http.client.HTTPConnection(urlsplit(origin).netloc)
        connection.request("GET", "/ready")
        if connection.getresponse().status == 200:
            return
        connection.close()
        time.sleep(0.2)


def pipeline_speed(model: str, paths: list[Path], seconds: float, clients: int | None = None) -> float:
    """Seconds of sound a second that the pipeline gives for the same recordings, in a process of its own.

    clients : recordings that are under way at a time; None for as many as it takes by itself
    """
    command = [sys.executable, "-m", "benchmarks.server", "--model", model, "--pipeline", str(seconds)]
    command += ["--clients", str(clients or 0), "--recordings"]
    done = subprocess.run([*command, *map(str, paths)], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def run_pipeline(model: str, paths: list[Path], seconds: float, clients: int) -> None:
    """Prints the speed of `pipeline_speed`. clients : 0 for None"""
    from mlx_speech import Pipeline, configure

    configure(keep_freed_memory=True)
    with Pipeline(model) as pipeline:
        list(pipeline.transcribe(paths[:2], word_timestamps="none"))
        start = time.perf_counter()
        if clients:
            done = closed_loop(
                lambda number: pipeline.submit(paths[number % len(paths)], word_timestamps="none").result(),
                clients,
                over_in(seconds),
            )
        else:
            done = in_a_row(pipeline, paths, seconds)
        print(done * LENGTH / (time.perf_counter() - start))


def in_a_row(pipeline: Pipeline, paths: list[Path], seconds: float) -> int:
    """How many recordings the pipeline does that takes them itself, for so many seconds and until all are done."""
    is_over = over_in(seconds)

    def endless() -> Iterator[Path]:
        number = 0
        while not is_over():
            yield paths[number % len(paths)]
            number += 1

    done = 0
    for _, result in pipeline.transcribe(endless(), word_timestamps="none"):
        if isinstance(result, Exception):
            raise result
        done += 1
    return done


def over_in(seconds: float) -> Callable[[], bool]:
    """Tells whether so many seconds have passed."""
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() >= end


def closed_loop(ask: Callable[[int], object], clients: int, is_over: Callable[[], bool]) -> int:
    """How often so many clients ask, each anew as soon as it is answered, until the time is over and all are answered.

    ask : is given numbers from 0, no number twice
    Raises what one of them raises.
    """

    def client(number: int) -> int:
        asked = 0
        while not is_over():
            ask(number + asked * clients)
            asked += 1
        return asked

    with ThreadPoolExecutor(clients) as pool:
        return sum(pool.map(client, range(clients)))


# --- clients ----------------------------------------------------------------------------------------------------------


def form(path: Path, **fields: str) -> bytes:
    """multipart/form-data of fields and a recording."""
    body = bytearray()
    for name, value in fields.items():
        body += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    body += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'.encode()
    return bytes(body + path.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode())


def post(origin: str, body: bytes) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(urlsplit(origin).netloc, timeout=600)
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    connection.request("POST", "/v1/audio/transcriptions", body, headers)
    return connection.getresponse()


def load(origin: str, process: int, paths: list[Path], clients: int, seconds: float) -> Load:
    """Clients that send one recording after the other for so many seconds."""
    bodies = [form(path, model="whisper-1", language="en") for path in paths]
    found = Load(clients, seconds)
    start = time.perf_counter()
    ended = threading.Event()

    def send(number: int) -> None:
        sent = time.perf_counter()
        answer = post(origin, bodies[number % len(bodies)])
        content = answer.read()
        if answer.status == 200:
            found.waits.append(time.perf_counter() - sent)
        else:
            found.failures.append(content.decode()[:200])

    def look() -> None:
        while not ended.is_set():
            found.memory.append(memory_of(process))
            ended.wait(SECONDS_BETWEEN_LOOKS)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        closed_loop(send, clients, over_in(seconds))
    finally:
        ended.set()
        looking.join()
    found.seconds = time.perf_counter() - start
    return found


def memory_of(process: int) -> float:
    """Megabytes that a process holds. Linux only; 0 elsewhere."""
    path = Path(f"/proc/{process}/statm")
    return int(path.read_text().split()[1]) * PAGE / 1e6 if path.exists() else 0.0


def seconds_to_first_words(origin: str, path: Path) -> float:
    """Until the first event of the stream."""
    start = time.perf_counter()
    answer = post(origin, form(path, model="whisper-1", language="en", stream="true"))
    line = answer.readline()
    while not line.startswith(b"data:"):
        line = answer.readline()
    first = time.perf_counter() - start
    assert json.loads(line.removeprefix(b"data:"))["type"] == "transcript.text.delta"
    answer.read()
    return first


def beside_a_long_one(origin: str, long: Path, short: Path, turns: int) -> list[float]:
    """The same, while the long recording is being heard."""
    hearing = threading.Thread(target=lambda: post(origin, form(long, model="whisper-1", language="en")).read())
    hearing.start()
    time.sleep(5.0)
    waits: list[float] = []
    for _ in range(turns):
        if not hearing.is_alive():
            break
        waits.append(seconds_to_first_words(origin, short))
    hearing.join()
    return waits


# --- the report -------------------------------------------------------------------------------------------------------


def report(model: str, data: Path, seconds: float, numbers: tuple[int, ...]) -> None:
    """Prints tables in Markdown. numbers : of clients; of one alone, the waits beside a long recording are left out"""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = recordings(data, folder)
        print(f"| {' | '.join(COLUMNS)} |")
        print("|---" * len(COLUMNS) + "|", flush=True)
        for clients in numbers:
            speeds: dict[int | None, list[float]] = {None: [], clients: []}
            for at_once, both in speeds.items():
                both.append(pipeline_speed(model, paths, seconds / 6, at_once))
            with server(model, folder) as (origin, process):
                load(origin, process, paths, clients, min(10.0, seconds / 6))
                found = load(origin, process, paths, clients, seconds)
            for at_once, both in speeds.items():
                both.append(pipeline_speed(model, paths, seconds / 6, at_once))
            print(row(found, statistics.mean(speeds[None]), statistics.mean(speeds[clients])), flush=True)
        if len(numbers) == 1:
            return
        with server(model, folder) as (origin, _):
            alone = [seconds_to_first_words(origin, paths[number]) for number in range(6)][1:]
            beside = beside_a_long_one(origin, long_recording(data, folder), paths[0], 8)
        print()
        print(f"first words of 10 s alone: {statistics.median(alone):.2f} s (median of {len(alone)})")
        shown = ", ".join(f"{wait:.2f}" for wait in beside)
        print(f"beside a recording of ten minutes: {statistics.median(beside):.2f} s ({shown})")


def row(found: Load, batch: float, loop: float) -> str:
    """A line of the table. batch, loop : speeds of the pipeline without a server"""
    waits = sorted(found.waits)
    late = waits[int(0.95 * (len(waits) - 1))]
    quarter = max(1, len(found.memory) // 4)
    first = statistics.median(found.memory[:quarter])
    last = statistics.median(found.memory[-quarter:])
    return (
        f"| {found.clients} | {len(waits)} | {len(found.failures)} | {found.speed:.1f} | {found.speed / batch:.2f} | "
        f"{found.speed / loop:.2f} | {statistics.median(waits):.2f} s | {late:.2f} s | {first:.0f} → {last:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a Whisper, as of mlx_speech serve")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--seconds", type=float, default=180.0, help="of each load")
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS, help="numbers of them")
    pipeline_help = "only the pipeline, for so many seconds, with --recordings; --clients 0 is one batch"
    parser.add_argument("--pipeline", type=float, metavar="SECONDS", help=pipeline_help)
    parser.add_argument("--recordings", nargs="*", type=Path, default=[])
    options = parser.parse_args()
    if options.pipeline is not None:
        run_pipeline(options.model, options.recordings, options.pipeline, options.clients[0])
    else:
        report(options.model, options.data, options.seconds, tuple(options.clients))


if __name__ == "__main__":
    main()
