"""Figures that are kept elsewhere, and looked up when /metrics is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from mlx_speech.pipeline import Pipeline
from mlx_speech.server.errors import ApiError
from mlx_speech.stages.whisper.workload import FILLS, Workload

PREFIX = "mlx_speech"


class DecodingCollector(Collector):
    """What Whisper's decoders do, and have done since the start."""

    def __init__(self, pipelines: Iterable[Pipeline]) -> None:
        self._pipelines = list(pipelines)

    def collect(self) -> Iterator[Metric]:
        """Of prometheus_client."""
        workloads = [pipeline.workload for pipeline in self._pipelines]
        rows = sum(workload.rows for workload in workloads)
        yield GaugeMetricFamily(f"{PREFIX}_batch_rows", "Chunks that are being decoded", value=rows)
        steps = sum(workload.steps for workload in workloads)
        yield CounterMetricFamily(f"{PREFIX}_decode_steps", "Steps of the decoder, each of a whole batch", value=steps)
        fallbacks = sum(workload.fallbacks for workload in workloads)
        text = "Chunks that were decoded again, at a higher temperature"
        yield CounterMetricFamily(f"{PREFIX}_fallbacks", text, value=fallbacks)
        yield _fills(workloads)


class JobsCollector(Collector):
    """The jobs on disk. count : gives how many there are of a status; may raise `ApiError`"""

    def __init__(self, count: Callable[[], Mapping[str, int]]) -> None:
        self._count = count

    def collect(self) -> Iterator[Metric]:
        """Of prometheus_client."""
        jobs = GaugeMetricFamily(f"{PREFIX}_jobs", "Jobs on disk", labels=["status"])
        with suppress(ApiError):  # the log has it, and the other figures are there
            for status, count in self._count().items():
                jobs.add_metric([status], count)
        yield jobs


class QueueCollector(Collector):
    """What waits or is under way. backlogs : class of work → gives how many there are, and seconds of their sound; may
    raise `ApiError`"""

    def __init__(self, backlogs: Mapping[str, Callable[[], tuple[int, float]]]) -> None:
        self._backlogs = backlogs

    def collect(self) -> Iterator[Metric]:
        """Of prometheus_client."""
        requests = GaugeMetricFamily(f"{PREFIX}_queue_requests", "What waits or is under way", labels=["class"])
        sound = GaugeMetricFamily(f"{PREFIX}_queue_audio_seconds", "Their sound", labels=["class"])
        for name, backlog in self._backlogs.items():
            with suppress(ApiError):  # as above
                count, seconds = backlog()
                requests.add_metric([name], count)
                sound.add_metric([name], seconds)
        yield requests
        yield sound


def _fills(workloads: Sequence[Workload]) -> Metric:
    """How full batches were, turn after turn, as a histogram."""
    bounds = [*(str(fill) for fill in FILLS), "+Inf"]
    turns = [sum(workload.turns[place] for workload in workloads) for place in range(len(bounds))]
    buckets = list(zip(bounds, accumulate(turns), strict=True))
    total = sum(workload.turn_fills for workload in workloads)
    text = "Rows in use, of those that a batch is meant to have, a few steps after another"
    return HistogramMetricFamily(f"{PREFIX}_batch_fill_ratio", text, buckets=buckets, sum_value=total)
