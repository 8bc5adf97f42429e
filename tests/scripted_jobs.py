"""A pipeline that follows a script, for tests of jobs; and, run as a program, servers of jobs that are killed.

    python tests/scripted_jobs.py FOLDER

ends a server at every step at which something reaches the disk, and by SIGKILL at random moments, each time in a folder
of its own (FOLDER/step-7, FOLDER/kill-2), and starts another one there, which is left to do what there is to do. What
the first one has promised stands in `promises` there. Processes are forked off one that has imported everything.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from concurrent.futures import CancelledError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mlx_speech.errors import AudioError, PipelineClosed
from mlx_speech.pipeline import Pipeline
from mlx_speech.request import Event, Heard, Progress, Request
from mlx_speech.server.jobs.database import Database
from mlx_speech.server.jobs.records import Job, JobEvent, Order
from mlx_speech.server.jobs.runner import Runner
from mlx_speech.server.jobs.store import Store
from mlx_speech.server.service import Service
from mlx_speech.server.settings import Settings
from mlx_speech.transcript import Chunk, Diarization, Segment, Transcript, Turn, Word

WORDS = ("one", "zwei", "três", "четыре", "五", "ستة")
BROKEN = b"broken"  # the sound of a recording that cannot be decoded
MISTAKE = b"mistake"  # of one at which the pipeline itself fails
KILLS = 6
KEEP = 100.0  # seconds that a store of tests keeps jobs
LIMIT = 60.0  # seconds for what must not hang
WRITE_INTERVAL = 0.002  # seconds between two writes of progress


def segments_of(sound: bytes) -> tuple[Segment, ...]:
    """What a recording says: a segment a byte."""
    segments = []
    for place, byte in enumerate(sound):
        text = f"{WORDS[byte % len(WORDS)]} {byte}"
        start = place * 10 / 3
        word = Word(start, start + 0.1, text.split()[0], score=byte / 255, speaker="SPEAKER_00")
        segments.append(Segment(start, start + 3.0, text, (word,), avg_logprob=-byte / 7, tokens=(byte, place)))
    return tuple(segments)


def transcript_of(sound: bytes) -> Transcript:
    """The transcript of a recording."""
    duration = len(sound) * 10 / 3
    diarization = Diarization((Turn(0.0, duration, "SPEAKER_00"),), embeddings={"SPEAKER_00": (0.1, 1e-300)})
    return Transcript(segments_of(sound), "en", 1 / 3, duration, diarization, {"whisper": "scripted"}, {"audio": 0.1})


def heard(segments: tuple[Segment, ...], place: int) -> Heard:
    """A chunk's text. place : of the chunk"""
    return Heard(segments, place, Chunk(segments[0].start, segments[-1].end))


def events_of(sound: bytes) -> list[Event]:
    """What a request for a recording tells: the chunks from the last to the first."""
    duration = len(sound) * 10 / 3
    events: list[Event] = [Progress("vad", 0.0, duration), Progress("vad", duration, duration)]
    for done, segment in enumerate(reversed(segments_of(sound)), 1):
        events += [heard((segment,), len(sound) - done), Progress("transcribe", done * 3.0, len(sound) * 3.0)]
    return [*events, Progress("align", duration, duration)]


class ScriptedPipeline:
    """Stands for a `Pipeline`.

    pause : seconds before every event
    hold : no request comes to its end
    sounds : of all recordings, in order; known : the chunks that each brought
    """

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause
        self.hold = threading.Event()
        self.go = threading.Event()
        self.closed = False
        self.sounds: list[bytes] = []
        self.options: list[dict[str, Any]] = []
        self.known: list[list[Heard]] = []
        self.models = SimpleNamespace(whisper_source="scripted")
        self.requests: list[Request[Transcript]] = []

    def submit(self, sound: Any, *, known: Iterable[Heard] = (), **options: Any) -> Request[Transcript]:
        if self.closed:
            raise PipelineClosed("this pipeline is closed: make another one")
        content = sound.read()
        chunks = list(known)
        assert all(chunk in events_of(content) for chunk in chunks)
        self.sounds.append(content)
        self.options.append(options)
        self.known.append(chunks)
        request: Request[Transcript] = Request()
        self.requests.append(request)
        threading.Thread(target=self._do, args=(request, content, sound.name), daemon=True).start()
        return request

    def _do(self, request: Request[Transcript], sound: bytes, name: str) -> None:
        if sound == BROKEN:
            request._fail(AudioError(f"{name}: is no recording of a known format"))
            return
        if sound == MISTAKE:
            request._fail(ZeroDivisionError("a secret of the server"))
            return
        for event in events_of(sound):
            time.sleep(self.pause)
            if request.done():
                return
            request._publish(event)
        while self.hold.is_set() and not request.done():
            self.go.wait(0.01)
        request._finish(transcript_of(sound))


def service_of(folder: Path, pipeline: ScriptedPipeline | Pipeline, **settings: Any) -> Service:
    """A service of one pipeline, "whisper"."""
    named: Any = {"whisper": pipeline}
    return Service(Settings(data_dir=folder, **settings), named)


async def add(runner: Runner, folder: Path, sound: bytes, owner: str = "", **keywords: Any) -> Job:
    """A new job."""
    upload = folder / f"upload-{time.monotonic_ns()}"
    upload.write_bytes(sound)
    order: dict[str, Any] = {"filename": "a.wav", "model": "whisper", "options": {}, "response_format": "json"}
    return await runner.add(audio=upload, owner=owner, **{**order, **keywords})


async def ended(runner: Runner, job: Job) -> Job:
    """The job, once it has ended."""
    async for _ in runner.events(job.id):
        pass
    return runner.store.get(job.id, job.owner)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def order(owner: str = "", **values: Any) -> Order:
    """A job as it is handed in, with usual values."""
    given: dict[str, Any] = {"filename": "a.wav", "model": "whisper", "options": {}, "response_format": "json"}
    return Order(owner=owner, **{**given, **values})


def put(store: Store, folder: Path, sound: bytes = b"ab", owner: str = "", **values: Any) -> Job:
    """A new job in a store. values : of `Order`"""
    upload = folder / "upload"
    upload.write_bytes(sound)
    return store.add(upload, order(owner, **values))


def sounds(folder: Path) -> set[str]:
    """The names of all sound in a data_dir."""
    return {path.name for path in (folder / "audio").iterdir()}


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run it to its end, which has to come."""
    asyncio.run(asyncio.wait_for(work, LIMIT))


def runner_of(folder: Path, pipeline: Any, clock: Clock | None = None, **values: Any) -> Runner:
    """A runner that writes often. values : of `Runner`, or settings"""
    of_runner = {name: values.pop(name) for name in ("sweep_interval",) if name in values}
    service = service_of(folder, pipeline, **values)
    return Runner(service, clock=clock or Clock(), write_interval=WRITE_INTERVAL, **of_runner)


async def told(events: AsyncIterator[JobEvent]) -> list[JobEvent]:
    """All that was told."""
    return [event async for event in events]


# --- servers that are killed ------------------------------------------------------------------------------------------


class Steps:
    """Ends the process at a step. at : its number; 0 never"""

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = 0
        self.lock = threading.Lock()

    def step(self) -> None:
        with self.lock:
            self.count += 1
            if self.count == self.at:
                os._exit(1)

    def around(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, with a step before and a step behind it."""

        def stepped(*arguments: Any, **keywords: Any) -> Any:
            self.step()
            result = work(*arguments, **keywords)
            self.step()
            return result

        return stepped


async def serve(folder: Path) -> None:
    """Three jobs, of which one is corrected and one deleted. What has been answered is a promise."""
    runner = Runner(service_of(folder, ScriptedPipeline(0.001)), write_interval=0.01)

    def promise(what: str, job: Job, sound: bytes) -> None:
        with (folder / "promises").open("a") as file:
            file.write(f"{what} {job.id} {sound.hex()}\n")

    async with runner.running():
        jobs = []
        for sound in (b"a", b"bc", b"d"):
            job = await add(runner, folder, sound)
            promise("added", job, sound)
            jobs.append(job)
        await ended(runner, jobs[0])
        runner.store.correct(jobs[0].id, "", transcript_of(b"xyz"))
        promise("corrected", jobs[0], b"xyz")
        await runner.delete(jobs[2].id, "")
        promise("deleted", jobs[2], b"d")
        await ended(runner, jobs[1])


async def serve_on(folder: Path) -> None:
    """What is left is done."""
    runner = Runner(service_of(folder, ScriptedPipeline()), write_interval=0.01)
    async with runner.running():
        jobs, _ = runner.store.jobs_of("", 100)
        for job in jobs:
            await ended(runner, job)


def forked(work: Callable[[], Coroutine[Any, Any, None]], steps: Steps | None = None) -> int:
    """Begin a process; its number."""
    process = os.fork()
    if process:
        return process
    if steps is not None:
        Database._commit = steps.around(Database._commit)
        Path.replace = steps.around(Path.replace)
        Path.unlink = steps.around(Path.unlink)
    try:
        asyncio.run(work())
        code = 0
    except CancelledError:
        code = 2
    os._exit(code)


def without_waiting() -> None:
    """Do not wait for the disk: that is for a power cut, and nothing that a process writes is lost with it."""
    prepare = Database._prepare

    def prepared(self: Database) -> None:
        prepare(self)
        self._connection.execute("PRAGMA synchronous = OFF")

    Database._prepare = prepared
    os.fsync = lambda descriptor: None


def exit_code(process: int) -> int:
    """Of a process, once it has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main(place: Path) -> None:
    """All of it; prints how many steps there were."""
    without_waiting()
    gc.freeze()  # what is there is not written to in the processes that are forked off
    step = 0
    code = 1
    while code == 1:
        step += 1
        folder = place / f"step-{step}"
        folder.mkdir()
        code = exit_code(forked(lambda folder=folder: serve(folder), Steps(step)))
        assert code in (0, 1), code
        assert exit_code(forked(lambda folder=folder: serve_on(folder))) == 0
    chance = random.Random(7)
    for kill in range(KILLS):
        folder = place / f"kill-{kill}"
        folder.mkdir()
        process = forked(lambda folder=folder: serve(folder))
        time.sleep(chance.uniform(0.0, 0.15))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        assert exit_code(forked(lambda folder=folder: serve_on(folder))) == 0
    print(step)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
