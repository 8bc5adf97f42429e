"""Jobs, done: takes them in turn, hands them to the pipelines, and tells who listens.

Everything here happens in the event loop; what waits for the disk does so in threads. Nothing is cut off in the middle:
to stop, requests are cancelled in the engine, and their jobs are put back into the line.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from anyio.to_thread import run_sync

from mlx_speech.errors import PipelineClosed
from mlx_speech.options import Options, TranscribeOptions
from mlx_speech.pipeline import Pipeline
from mlx_speech.request import Request
from mlx_speech.server.admission import too_long
from mlx_speech.server.errors import ApiError, api_error, shutting_down
from mlx_speech.server.fields import KnownSpeaker
from mlx_speech.server.jobs.journal import from_json, maker_of
from mlx_speech.server.jobs.progress import Tracker
from mlx_speech.server.jobs.records import Job, JobEvent, Order
from mlx_speech.server.jobs.store import Store, sound_missing
from mlx_speech.server.known import named, voiceprint_of, voices_from
from mlx_speech.server.service import Service
from mlx_speech.server.sounds import opened
from mlx_speech.stages.voiceprints import Voiceprint
from mlx_speech.transcript import Transcript
from mlx_speech.voices.matching import Voices

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger("mlx_speech.server")

WRITE_INTERVAL = 0.5  # seconds between two writes of a job's progress
SWEEP_INTERVAL = 60.0  # seconds between two looks for what has expired
RETRY_INTERVAL = 10.0  # seconds until a disk that was full is tried again

T = TypeVar("T")


class Runner:
    """The jobs of a service. It runs within `running()`; outside of that, whoever asks gets `ApiError` 503.

    clock : seconds since 1970
    write_interval, sweep_interval : seconds, as of the constants above
    """

    def __init__(
        self,
        service: Service,
        *,
        clock: Callable[[], float] = time.time,
        write_interval: float = WRITE_INTERVAL,
        sweep_interval: float = SWEEP_INTERVAL,
    ) -> None:
        self._service = service
        self._clock = clock
        self._write_interval = write_interval
        self._sweep_interval = sweep_interval
        self._store: Store | None = None
        self._stopping = asyncio.Event()
        self._wake = asyncio.Event()  # there may be something to begin
        self._requests: dict[str, Request[Transcript]] = {}  # in the engine, by job
        self._listeners: dict[str, set[asyncio.Event]] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._loops: list[asyncio.Task[None]] = []

    @property
    def store(self) -> Store:
        """The jobs on disk. Raises `ApiError` 503 where the runner does not run."""
        if self._store is None:
            raise shutting_down()
        return self._store

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Do jobs, and what the last process left, until the end of the block. Raises as `Store`."""
        await self.start()
        try:
            yield self
        finally:
            await self.stop()

    async def start(self) -> None:
        """Begin. Raises as `Store`."""
        settings = self._service.settings
        open_store = partial(Store, settings.data_dir, keep=settings.keep_results, clock=self._clock)
        self._store = await run_sync(open_store)
        self._loops = [self._task(self._begin_jobs()), self._task(self._sweep())]

    def wind_down(self) -> None:
        """Begin no more jobs, and let listeners go. A server that is told to stop calls it first: it waits for them."""
        self._stopping.set()
        self._wake.set()
        for job_id in self._listeners:
            self._notify(job_id)

    async def stop(self) -> None:
        """End. What is under way is cancelled in the engine, and waits in the line for the next start."""
        self.wind_down()
        for request in list(self._requests.values()):
            request.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await asyncio.gather(*self._jobs, return_exceptions=True)
        store = self._store
        self._store = None
        if store is not None:
            await run_sync(store.close)

    # --- what can be asked --------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """How many jobs there are of each status; none outside of `running()`. From any thread; raises as `Store`."""
        store = self._store
        return {} if store is None else store.counts()

    def backlog(self) -> tuple[int, float]:
        """Jobs that have not ended, and seconds of their sound. As `counts`."""
        store = self._store
        return (0, 0.0) if store is None else store.backlog()

    async def add(
        self,
        *,
        audio: Path,
        filename: str,
        model: str,
        options: TranscribeOptions,
        response_format: str,
        owner: str,
        audio_seconds: float | None = None,
        idempotency_key: str | None = None,
        sha256: str = "",
        known_speakers: tuple[KnownSpeaker, ...] = (),
    ) -> Job:
        """Take a job in, and its recording, which is moved away. For a key that is known, the job that came with it at
        first is given, and the recording stays.

        audio : on the same disk as the settings' data_dir; the rest as of `Order`
        Raises `OptionError`, and as `Store.add`; the recording is where it was then.
        """
        Options.of(**options)
        order = Order(
            filename=filename,
            model=model,
            options=cast("Mapping[str, Any]", options),
            response_format=response_format,
            owner=owner,
            audio_seconds=audio_seconds,
            idempotency_key=idempotency_key,
            sha256=sha256,
            known_speakers=known_speakers,
        )
        try:
            return await run_sync(self.store.add, audio, order)
        finally:
            self._wake.set()

    async def delete(self, job_id: str, owner: str) -> None:
        """Cancel a job, and forget it. Raises `ApiError` 404 where the owner has no such job."""
        job = await run_sync(self.store.delete, job_id, owner)
        if not job.has_ended:
            self._service.metrics.see_job("cancelled")
            self._service.metrics.see_cancelled("user")
        if job_id in self._requests:
            self._requests[job_id].cancel()
        self._notify(job_id)

    async def events(self, job_id: str, after: int = 0) -> AsyncIterator[JobEvent]:
        """What happens to a job behind the event of this number, until it ends.

        Where it is deleted, the last is "cancelled", also if it had just come to its end and nobody has heard of that.
        Where the runner stops, they end without an end of the job.
        """
        changed = asyncio.Event()
        self._listeners.setdefault(job_id, set()).add(changed)
        try:
            while True:
                changed.clear()
                try:
                    job, events = await run_sync(self.store.events, job_id, after)
                except ApiError:
                    if self._stopping.is_set():  # the store was closed meanwhile
                        return
                    raise
                for event in events:
                    yield event
                    after = event.sequence
                if job is None:
                    yield JobEvent(after + 1, "cancelled", "{}")
                    return
                if job.has_ended or self._stopping.is_set():
                    return
                await changed.wait()
        finally:
            self._listeners[job_id].discard(changed)
            if not self._listeners[job_id]:
                del self._listeners[job_id]

    # --- the loops ----------------------------------------------------------------------------------------------------

    async def _begin_jobs(self) -> None:
        """Begin what waits, as long as there is room."""
        while not self._stopping.is_set():
            self._wake.clear()
            while len(self._jobs) < self._service.settings.jobs_at_once and not self._stopping.is_set():
                job = await self._stored(self.store.take)
                if job is None:
                    break
                task = self._task(self._do(job))
                self._jobs.add(task)
                task.add_done_callback(self._leave)
            await self._wake.wait()

    def _leave(self, task: asyncio.Task[None]) -> None:
        self._jobs.discard(task)
        self._wake.set()

    async def _sweep(self) -> None:
        """Forget what has expired, now and then."""
        while not self._stopping.is_set():
            with suppress(ApiError):  # the log has it
                for job_id in await run_sync(self.store.expire):
                    self._notify(job_id)
            await _happens(self._stopping, self._sweep_interval)

    # --- one job ------------------------------------------------------------------------------------------------------

    async def _do(self, job: Job) -> None:
        """One job, from its turn to its end."""
        began = self._clock()
        self._service.metrics.see_wait("job", began - job.created_at)
        work = asyncio.create_task(self._transcribe(job))
        await asyncio.wait({work})
        error = None if work.cancelled() else work.exception()
        if work.cancelled() or isinstance(error, PipelineClosed):
            is_there = await self._stored(self.store.give_back, job.id)
            if is_there and not self._stopping.is_set():
                log.error("%s was ended by its pipeline, which is closed: no more jobs are begun", job.id)
                self.wind_down()
        elif error is not None:
            if await self._stored(self.store.fail, job.id, _described(error, job)):
                self._service.metrics.see_job("failed")
        elif await self._stored(self.store.finish, job.id, work.result()):
            self._service.metrics.see_job("succeeded")
            self._service.metrics.see_transcript("job", work.result(), self._clock() - began)
        self._notify(job.id)

    async def _transcribe(self, job: Job) -> Transcript:
        """Its transcript. Raises what the pipeline raises, `CancelledError` where the request was cancelled, and
        `ApiError` where a known speaker's voice cannot be heard."""
        pipeline = self._service.pipeline(job.model)
        options = cast("TranscribeOptions", job.options)
        maker = maker_of(pipeline)
        told = await self._stored(self.store.segments, job.id)
        kept = await self._stored(self.store.chunks, job.id, maker)
        known = [from_json(chunk) for chunk in kept]
        tracker = Tracker(Options.of(**options), told, known)
        try:
            opening = opened(self.store.sound(job.id), job.filename)
        except FileNotFoundError as error:
            raise sound_missing() from error
        with opening as sound:
            voices = await self._known_voices(job, pipeline)
            if self._stopping.is_set():
                raise PipelineClosed("the server is stopping")
            request = pipeline.submit(sound, known=known, **options)
            self._requests[job.id] = request
            try:
                await self._follow(job.id, request, tracker, maker)
                transcript = await request
            finally:
                del self._requests[job.id]
                request.cancel()
        return transcript if voices is None else named(transcript, voices)

    async def _known_voices(self, job: Job, pipeline: Pipeline) -> Voices | None:
        """Of the speakers who came with a job; None where it has none. One is heard after the other, so that a server
        that stops, and a client that deletes the job, need not wait for all. Raises as `_transcribe`."""
        speakers = await self._stored(self.store.known_speakers, job.id)
        prints: list[Voiceprint] = []
        for place, speaker in enumerate(speakers):
            if self._stopping.is_set():
                raise PipelineClosed("the server is stopping")
            hear = partial(voiceprint_of, speaker, place, pipeline)
            prints.append(await run_sync(hear, limiter=self._service.waiting_for_voices))
            if not await self._stored(self.store.advance, job.id, "audio", 0.0, None):
                raise asyncio.CancelledError  # nobody wants it any more
        return voices_from(speakers, prints) if speakers else None

    async def _follow(self, job_id: str, request: Request[Transcript], tracker: Tracker, maker: str) -> None:
        """Keep what the request tells, until its end; cancel it where the job is gone."""
        listening = asyncio.create_task(_listen(request, tracker))
        try:
            while tracker.has_news() or not listening.done():
                if (tracker.audio_seconds or 0.0) > self._service.settings.max_job_duration:  # as no header said
                    raise too_long(self._service.settings.max_job_duration, is_job=True)
                if tracker.has_news():
                    segments, chunks = tracker.news()
                    advance = partial(self.store.advance, job_id, tracker.stage, tracker.progress)
                    if not await self._stored(advance, tracker.audio_seconds, segments, chunks, maker):
                        request.cancel()
                    self._notify(job_id)
                await asyncio.wait({listening}, timeout=self._write_interval)
            listening.result()  # raises what it may have raised
        finally:
            listening.cancel()

    # --- tools --------------------------------------------------------------------------------------------------------

    async def _stored(self, work: Callable[..., T], *values: object) -> T:
        """What the store does; again and again where it cannot, as on a full disk, until the server stops.

        Raises `ApiError` then.
        """
        while True:
            try:
                return await run_sync(partial(work, *values))
            except ApiError:
                if self._stopping.is_set():
                    raise
            await _happens(self._stopping, RETRY_INTERVAL)

    def _notify(self, job_id: str) -> None:
        for changed in self._listeners.get(job_id, ()):
            changed.set()

    @staticmethod
    def _task(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task whose failure, which is a mistake in here, stands in the log."""
        task = asyncio.create_task(work)
        task.add_done_callback(_log_failure)
        return task


async def _listen(request: Request[Transcript], tracker: Tracker) -> None:
    async for event in request:
        tracker.take_in(event)


async def _happens(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event; whether it came in so many seconds."""
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


def _described(error: BaseException, job: Job) -> dict[str, Any]:
    """What a job keeps of what it failed with."""
    if not isinstance(error, Exception):
        raise error
    answer = api_error(error)
    if answer.status == 500:
        log.error("%s failed", job.id, exc_info=error)
    return cast("dict[str, Any]", answer.body()["error"])


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("jobs are not done any more", exc_info=task.exception())
