"""/metrics: figures for Prometheus."""

from __future__ import annotations

from mlx_speech import backend as backend  # isort: skip  (before MLX)

import shutil
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Literal, TypeAlias

import mlx.core as mx
from anyio.to_thread import run_sync
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mlx_speech.server.collectors import PREFIX
from mlx_speech.transcript import Transcript
from mlx_speech.version import __version__

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 150, 600)
RATIOS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)

Kind: TypeAlias = Literal["request", "job", "live"]  # of work


class Metrics:
    """What is counted, in a registry of its own: several servers may live in one process.

    data_dir : whose disk is looked at
    models : our names of them
    stalled_for : gives the seconds that a step of the work has been under way
    """

    def __init__(self, data_dir: Path, models: Iterable[str], stalled_for: Callable[[], float]) -> None:
        self._folder = data_dir
        self._registry = CollectorRegistry()
        self._requests = self._counter("http_requests", "Requests", ["route", "code"])
        self._request_seconds = self._histogram("http_request_seconds", "Seconds of a request", ["route"], SECONDS)
        self._audio_seconds = self._counter("audio_seconds", "Seconds of sound that were heard", ["kind"])
        self._audio_ratio = self._histogram("audio_processed_ratio", "Seconds of sound a second", [], RATIOS)
        self._stage_seconds = self._histogram("stage_seconds", "Seconds of work of a stage", ["stage"], SECONDS)
        self._waits = self._histogram(
            "queue_wait_seconds", "Seconds of a recording until it is heard", ["class"], SECONDS
        )
        self._rejected = self._counter("rejected", "Requests that were refused", ["reason"])
        self._uploaded = self._counter("upload_bytes", "Bytes of recordings that were sent", [])
        self._cancelled = self._counter("cancelled", "Requests and jobs that were ended before their end", ["reason"])
        self._jobs = self._counter("jobs", "Jobs that have ended", ["status"])
        self._first_partial = self._histogram(
            "live_first_partial_seconds", "Seconds from the start of a turn to its first words", [], SECONDS
        )
        self._final = self._histogram("live_final_seconds", "Seconds from the end of a turn to its text", [], SECONDS)
        self._partials = self._counter("live_partials", "Times that words of an open turn were told", [])
        self._overflow = self._counter("live_overflow", "Times that sound of a live session was dropped", [])
        self.live_sessions = self._gauge("live_sessions", "Live sessions that are open")
        self.live_lag = self._gauge("live_lag_seconds", "Sound that waits to be heard, of the session that lags most")
        self._gauge("engine_step_seconds", "Seconds of the step that is under way").set_function(stalled_for)
        self._gauge("memory_active_bytes", "Memory that MLX uses").set_function(mx.get_active_memory)
        self._gauge("memory_cache_bytes", "Memory that MLX keeps").set_function(mx.get_cache_memory)
        self._gauge("memory_peak_bytes", "Most memory that MLX used").set_function(mx.get_peak_memory)
        self._gauge("disk_free_bytes", "Room for recordings").set_function(self._disk_free)
        labels = ["version", "mlx", "device", "model"]
        build = Gauge(f"{PREFIX}_build_info", "What runs", labels, registry=self._registry)
        for model in models:
            build.labels(__version__, version("mlx"), mx.default_device().type.name, model).set(1)

    def routes(self) -> list[Route]:
        """The figures as text."""

        async def metrics(request: Request) -> Response:
            text = await run_sync(generate_latest, self._registry)  # some of it is looked up on the disk
            return Response(text, media_type=CONTENT_TYPE_LATEST)

        return [Route("/metrics", metrics)]

    def add(self, collector: Collector) -> None:
        """Have further figures, which are looked up in a thread whenever somebody asks for them."""
        self._registry.register(collector)

    def see_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that has ended. route : with the names of parameters, never their values"""
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def see_refusal(self, code: str) -> None:
        """Count a request that was refused."""
        self._rejected.labels(code).inc()

    def see_wait(self, kind: Kind, seconds: float) -> None:
        """A recording has waited for so many seconds until it was heard."""
        self._waits.labels(kind).observe(seconds)

    def see_sound(self, kind: Kind, seconds: float) -> None:
        """So many seconds of sound were heard."""
        self._audio_seconds.labels(kind).inc(seconds)

    def see_stage(self, stage: str, seconds: float) -> None:
        """So many seconds went into a stage of the work."""
        self._stage_seconds.labels(stage).observe(seconds)

    def see_transcript(self, kind: Kind, transcript: Transcript, seconds: float) -> None:
        """Count a recording that is done, in so many seconds."""
        self.see_sound(kind, transcript.duration)
        self._audio_ratio.observe(transcript.duration / max(seconds, 1e-3))
        for stage, spent in transcript.seconds.items():
            self.see_stage(stage, spent)

    def see_first_partial(self, seconds: float) -> None:
        """A turn of a live session has its first words, so many seconds after it was found."""
        self._first_partial.observe(seconds)

    def see_final(self, seconds: float) -> None:
        """A turn of a live session has its text, so many seconds after it was committed."""
        self._final.observe(seconds)

    def see_partial(self) -> None:
        """Words of a turn that is open were told."""
        self._partials.inc()

    def see_job(self, status: str) -> None:
        """A job has ended, as this status says; "cancelled" is one that was deleted before."""
        self._jobs.labels(status).inc()

    def see_overflow(self) -> None:
        """Sound of a live session was dropped."""
        self._overflow.inc()

    def see_upload(self, size: int) -> None:
        """A recording has come. size : in bytes"""
        self._uploaded.inc(size)

    def see_cancelled(self, reason: Literal["disconnect", "deadline", "shutdown", "user"]) -> None:
        """Count a request whose client went, or that the server's end has ended, a live session whose time was over, or
        a job that was deleted before its end."""
        self._cancelled.labels(reason).inc()

    def _counter(self, name: str, help: str, labels: list[str]) -> Counter:
        return Counter(f"{PREFIX}_{name}", help, labels, registry=self._registry)

    def _gauge(self, name: str, help: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", help, registry=self._registry)

    def _histogram(self, name: str, help: str, labels: list[str], buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", help, labels, buckets=buckets, registry=self._registry)

    def _disk_free(self) -> float:
        return float(shutil.disk_usage(self._folder).free)
