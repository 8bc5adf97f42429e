"""Queued jobs, one after the other through the pipeline, each owner's in turn."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from anyio.to_thread import run_sync

from mlx_speech.request import Event, Heard, Progress
from mlx_speech.request import Request as Task
from mlx_speech.server.admission import opened
from mlx_speech.server.errors import api_error
from mlx_speech.server.jobs.job import Job
from mlx_speech.server.jobs.store import JobStore
from mlx_speech.server.outcomes import outcome_of
from mlx_speech.server.service import Service
from mlx_speech.transcript import Transcript

SECONDS_BETWEEN_SWEEPS = 60.0
SECONDS_BETWEEN_NEWS = 0.5  # of a job's progress, which is written to disk
# how much of the work a stage is: where it begins, and where it ends
STAGES = {"audio": (0.0, 0.02), "vad": (0.02, 0.05), "transcribe": (0.05, 0.65), "align": (0.65, 0.75)}
LAST_STAGE = {"diarize": (0.75, 1.0)}

log = logging.getLogger("mlx_speech.server")


class Runner:
    """Runs jobs, in the event loop's thread; the work itself is the pipeline's.

    sweep : seconds between two looks for jobs whose time is over
    """

    def __init__(self, service: Service, store: JobStore, sweep: float = SECONDS_BETWEEN_SWEEPS) -> None:
        self.store = store
        self._service = service
        self._sweep = sweep
        self._work = asyncio.Event()
        self._changes: dict[str, asyncio.Event] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._tasks: dict[str, Task[Transcript]] = {}
        self._served: dict[str, float] = {}  # owner → when a job of theirs began
        self._stopping = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Meanwhile jobs are run. What is under way at the end waits for the next start of the server."""
        self._work.set()
        loops = [asyncio.create_task(self._run_jobs()), asyncio.create_task(self._sweep_expired())]
        try:
            yield
        finally:
            self._stopping = True
            for loop in loops:
                loop.cancel()
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*loops, *self._running.values(), return_exceptions=True)

    def wake(self) -> None:
        """A job has come."""
        self._work.set()

    async def cancel(self, identity: str) -> None:
        """End a job, and delete all that there is of it."""
        await run_sync(self.store.cancel, identity)
        task = self._tasks.get(identity)
        if task is not None:
            task.cancel()
        running = self._running.get(identity)
        if running is not None:
            await asyncio.wait([running])
        self._notify(identity)
        await run_sync(self.store.delete, identity)

    async def changed(self, identity: str) -> None:
        """Until something happens to a job. Who looked before it happened misses nothing: take `change_of` first."""
        await self.change_of(identity).wait()

    def change_of(self, identity: str) -> asyncio.Event:
        """Is set with the next thing that happens to a job."""
        return self._changes.setdefault(identity, asyncio.Event())

    def _notify(self, identity: str) -> None:
        change = self._changes.pop(identity, None)
        if change is not None:
            change.set()

    # --- loops -------------------------------------------------------------------------------------------------------

    async def _run_jobs(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while len(self._running) < self._service.settings.jobs_at_once:
                job = self._next(await run_sync(self.store.queued))
                if job is None:
                    break
                self._served[job.owner] = time.monotonic()
                self._running[job.id] = asyncio.create_task(self._run(job))

    def _next(self, queued: list[Job]) -> Job | None:
        """The oldest job of the owner whose last one began longest ago."""
        waiting = [job for job in queued if job.id not in self._running]
        return min(waiting, key=lambda job: self._served.get(job.owner, 0.0), default=None)

    async def _sweep_expired(self) -> None:
        while True:
            for identity in await run_sync(self.store.expired):
                await self.cancel(identity)
            await asyncio.sleep(self._sweep)

    # --- a job -------------------------------------------------------------------------------------------------------

    async def _run(self, job: Job) -> None:
        try:
            outcome = await outcome_of(self._transcribe(job))
            if isinstance(outcome, Exception):
                await self._fail(job, outcome)
        finally:
            del self._running[job.id]
            self._tasks.pop(job.id, None)
            self._notify(job.id)
            self._work.set()

    async def _fail(self, job: Job, error: Exception) -> None:
        answer = api_error(error, job.filename)
        if answer.status >= 500:
            log.error("job %s failed", job.id, exc_info=error)
        await run_sync(self.store.fail, job.id, answer)

    async def _transcribe(self, job: Job) -> None:
        pipeline = self._service.pipeline(job.model)
        await run_sync(self.store.start, job.id)
        self._notify(job.id)
        start = time.monotonic()
        with opened(self.store.sound_of(job.id), job.filename) as sound:
            task = pipeline.submit(sound, **job.options)
            self._tasks[job.id] = task
            try:
                await self._follow(job, task)
                transcript = await task
            except asyncio.CancelledError:
                if self._stopping:
                    await asyncio.shield(run_sync(self.store.put_back, job.id))
                return
            finally:
                task.cancel()
        self._service.metrics.see_transcript(transcript, time.monotonic() - start)
        await run_sync(self.store.succeed, job.id, transcript)

    async def _follow(self, job: Job, task: Task[Transcript]) -> None:
        """Write down how far it is, and what was heard."""
        last = 0.0
        async for event in task:
            if isinstance(event, Progress):
                if time.monotonic() - last < SECONDS_BETWEEN_NEWS:
                    continue
                last = time.monotonic()
                await self._tell_progress(job, event)
            else:
                await self._tell_heard(job, event)

    async def _tell_progress(self, job: Job, event: Progress) -> None:
        progress = progress_of(event, with_speakers=bool(job.options.get("diarize")))
        data = {"stage": event.stage, "progress": round(progress, 3)}
        await self._tell(job, "progress", data, stage=event.stage, progress=progress)

    async def _tell_heard(self, job: Job, event: Heard) -> None:
        for segment in event.segments:
            data = {"start": round(segment.start, 3), "end": round(segment.end, 3), "text": segment.text}
            await self._tell(job, "segment", data)

    async def _tell(self, job: Job, name: str, data: dict[str, Any], **changes: Any) -> None:
        await run_sync(lambda: self.store.tell(job.id, name, data, **changes))
        self._notify(job.id)


def progress_of(event: Event, with_speakers: bool) -> float:
    """0..1 of a job, as far as a stage is. with_speakers : they are the last quarter of the work"""
    if not isinstance(event, Progress):
        return 0.0
    begin, end = {**STAGES, **LAST_STAGE}.get(event.stage, (0.0, 0.0))
    share = event.done / event.total if event.total > 0 else 1.0
    progress = begin + (end - begin) * min(max(share, 0.0), 1.0)
    if not with_speakers:
        progress /= STAGES["align"][1]
    return min(progress, 1.0)
