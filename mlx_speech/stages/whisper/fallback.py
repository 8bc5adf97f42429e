"""Encoded audio → tokens, again at a higher temperature where a result looks wrong.

Source: openai/whisper `transcribe.decode_with_fallback`, whose results these are, job by job. Jobs
that failed are decoded in a batch of their own, beside the one that new jobs enter.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from mlx_speech.errors import in_range
from mlx_speech.models.whisper import Model
from mlx_speech.stages.whisper.decode import DecodingOptions, DecodingResult, Job, TemperatureDecoder
from mlx_speech.stages.whisper.tokenizer import Tokenizer
from mlx_speech.stages.whisper.workload import Workload


@dataclass(frozen=True, eq=False)
class _Failure:
    """A job that has to be tried again.

    attempt : the index of the temperature that comes next
    """

    job: Job
    attempt: int


class FallbackDecoder:
    """Jobs at the first temperature whose result is within the thresholds, or else at the last.

    options : of the jobs that bring none; all have the same `group`
    batch_size : jobs that are decoded at once, and jobs that are decoded again at once
    workload : where turns and failures are counted

    Jobs enter at the first temperature. What fails there waits for a second batch beside the first
    one, of which every turn has another temperature; it begins when it would be full, or when an
    owner waits for nothing else. So there are two batches at most, and jobs that fail do not stop
    those of other owners; of one owner at most 2·batch_size are held. The first batch has more
    rows than batch_size, at most twice as many, where owners come who have none in it.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        options: DecodingOptions,
        *,
        batch_size: int,
        workload: Workload | None = None,
    ) -> None:
        in_range(1, math.inf, batch_size=batch_size)
        self._model = model
        self._tokenizer = tokenizer
        self._options = options
        self._batch_size = batch_size
        self._workload = workload or Workload()
        self._first = self._at(0)
        self._again: TemperatureDecoder | None = None
        self._is_again_next = False  # whether it is the second batch's turn to take steps
        self._attempt = 0  # the temperature of the second batch, by index
        self._entered = 0  # jobs in this turn of the second batch
        self._failures: deque[_Failure] = deque()  # from the one that failed first

    @property
    def jobs(self) -> list[Job]:
        """All that have entered, and are not done."""
        return [*self._first.jobs, *self._failed_jobs()]

    def room(self, owner: Hashable = None) -> int:
        """How many jobs of an owner may enter: none while a batch of its own has failed; one where
        all rows are taken, and none of them is its own."""
        failed = sum(job.owner == owner for job in self._failed_jobs())
        if failed >= self._batch_size:
            return 0
        jobs = self._first.jobs
        if len(jobs) < self._batch_size:
            return self._batch_size - len(jobs)
        has_row = owner is None or any(job.owner == owner for job in jobs)
        return 0 if has_row or len(jobs) >= 2 * self._batch_size else 1

    def enter(self, jobs: Sequence[Job]) -> None:
        """Begin to decode jobs, for which there has to be `room`.

        Raises `OptionError` as `initial_tokens` does.
        """
        self._first.enter(jobs)

    def drop(self, owner: Hashable) -> None:
        """The owner's jobs leave: nothing of them comes back."""
        self._first.drop(owner)
        self._failures = deque(failure for failure in self._failures if failure.job.owner != owner)
        if self._again is not None:
            self._again.drop(owner)

    def advance(self, expected: Collection[Hashable] = ()) -> list[tuple[Job, DecodingResult]]:
        """Take a few steps with one of the batches, in turn; returns the jobs that are done.

        expected : owners of whom more jobs will enter
        """
        self._retry(expected)
        if self._again is not None and (self._is_again_next or not self._first.jobs):
            self._is_again_next = False
            return self._judged(self._again.advance(), self._attempt)
        self._is_again_next = True
        return self._judged(self._first.advance(), 0)

    def _at(self, attempt: int) -> TemperatureDecoder:
        return TemperatureDecoder(
            self._model,
            self._tokenizer,
            self._options,
            temperature=self._options.temperature[attempt],
            batch_size=self._batch_size,
            workload=self._workload,
        )

    def _failed_jobs(self) -> list[Job]:
        jobs = [failure.job for failure in self._failures]
        if self._again is not None:
            jobs += self._again.jobs
        return jobs

    def _judged(self, results: Iterable[tuple[Job, DecodingResult]], attempt: int) -> list[tuple[Job, DecodingResult]]:
        """Those that are good enough; others are tried again, where a temperature is left."""
        done = []
        is_last = attempt + 1 == len(self._options.temperature)
        for job, result in results:
            if is_last or not _needs_fallback(job, result, job.options or self._options):
                done.append((job, result))
            else:
                self._workload.fallbacks += 1
                self._failures.append(_Failure(job, attempt + 1))
        return done

    def _retry(self, expected: Collection[Hashable]) -> None:
        """Let failures enter the second batch; a turn has the temperature of the oldest."""
        if self._again is None or not self._again.jobs:
            self._again = None
            if not self._is_turn_due(expected):
                return
            self._attempt = self._failures[0].attempt
            self._again = self._at(self._attempt)
            self._entered = 0
        others_wait = any(failure.attempt != self._attempt for failure in self._failures)
        room = self._again.room
        if others_wait:  # for whom this turn has to end
            room = min(room, 2 * self._batch_size - self._entered)
        jobs: list[Job] = []
        for failure in list(self._failures):
            if failure.attempt == self._attempt and len(jobs) < room:
                self._failures.remove(failure)
                jobs.append(failure.job)
        self._again.enter(jobs)
        self._entered += len(jobs)

    def _is_turn_due(self, expected: Collection[Hashable]) -> bool:
        if not self._failures:
            return False
        if len(self._failures) >= self._batch_size:
            return True
        busy = {job.owner for job in self._first.jobs} | set(expected)
        return any(failure.job.owner not in busy for failure in self._failures)


def _needs_fallback(job: Job, result: DecodingResult, options: DecodingOptions) -> bool:
    low = options.logprob_threshold
    unlikely = low is not None and result.avg_logprob < low
    silent = options.no_speech_threshold
    if unlikely and silent is not None and result.no_speech_prob > silent:
        return False
    repetitive = options.compression_ratio_threshold
    if repetitive is not None and result.compression_ratio > repetitive:
        return True
    return unlikely and job.tries_unlikely


def decode_with_fallback(
    jobs: Iterable[Job], model: Model, tokenizer: Tokenizer, options: DecodingOptions, *, batch_size: int = 8
) -> Iterator[tuple[Job, DecodingResult]]:
    """Decode every job at one temperature after the other, as `FallbackDecoder` does.

    Jobs are pulled as rows become free and come back in any order. At most 2·batch_size are held:
    once `batch_size` have failed no new ones are pulled until some of these have been decoded at
    the temperatures that follow.
    """
    decoder = FallbackDecoder(model, tokenizer, options, batch_size=batch_size)
    waiting = iter(jobs)
    owners = {None}
    while True:
        room = decoder.room()
        new = list(islice(waiting, room))
        decoder.enter(new)
        if len(new) < room:
            owners = set()  # nothing more will come
        if not decoder.jobs:
            return
        yield from decoder.advance(owners)
