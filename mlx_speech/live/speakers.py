"""Who speaks in a live session: told while it goes on, and at the end as of a recording."""

from __future__ import annotations

from mlx_speech import backend as backend  # isort: skip  (before MLX)

import warnings
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np

from mlx_speech.engine import WAITING, Job, elsewhere, silently
from mlx_speech.live.events import Relabelled, Speakers
from mlx_speech.models.diarization_pipeline import Model
from mlx_speech.options import SpeakerKeywords
from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.stages.assign import assign_speakers
from mlx_speech.stages.growing import Change, Clustering, GrowingDiarization
from mlx_speech.transcript import Diarization, Segment

# Of sound, between two looks at what no clustering has seen. The windows between them are heard together; before the
# first clustering there are no speakers that they could be compared with.
SECONDS_BETWEEN_LOOKS = 3
MARGIN = 2.0  # seconds around words, in which turns may be theirs


class LiveSpeakers:
    """Hears the sound beside those that hear its words; speakers are clustered in a thread of their own.

    numbers : how many speakers there are
    waits : whether the sound waits for a clustering that is due, so that what is told does not depend on the machine
    tell : gets what is new
    wake : wakes the engine
    """

    def __init__(
        self,
        model: Model,
        numbers: SpeakerKeywords,
        *,
        waits: bool,
        tell: Callable[[Speakers], object],
        wake: Callable[[], object],
    ) -> None:
        self._growing = GrowingDiarization(model, **numbers)
        self._waits = waits
        self._tell = tell
        self._wake = wake
        self._clustering: Future[Clustering] | None = None
        self._count = 0  # samples so far

    @property
    def is_clustering(self) -> bool:
        """Whether something will be told without more sound."""
        return self._clustering is not None

    def hear(self, samples: np.ndarray) -> Job[None]:
        """The next samples (samples,)."""
        start = 0
        while start < samples.size:
            until_second = SAMPLE_RATE - self._count % SAMPLE_RATE
            piece = samples[start : start + until_second]
            start += piece.size
            yield from silently(self._growing.add(piece))
            self._count += piece.size
            if self._count % SAMPLE_RATE == 0:
                yield from self.advance()
            if self._count % (SECONDS_BETWEEN_LOOKS * SAMPLE_RATE) == 0 and self._growing.until:
                self._tell_changes(self._growing.provisional())

    def advance(self) -> Job[None]:
        """Take what a clustering has found, and begin the next one where it is due."""
        if self._clustering is None and self._growing.due:
            self._clustering = elsewhere(self._growing.snapshot(), self._wake)
        if self._clustering is None:
            return
        if not self._clustering.done() and not self._waits:
            return
        clustering = yield from self._clustered(self._clustering)
        self._clustering = None
        if clustering is not None:
            self._tell_changes(self._growing.take(clustering))

    def _clustered(self, future: Future[Clustering]) -> Job[Clustering | None]:
        """What a clustering has found; None where it failed: what is known stays, and the words go on."""
        while not future.done():
            yield WAITING
        error = future.exception()
        if error is not None:
            warnings.warn(f"speakers are not told apart anew: {error}", stacklevel=2)
            return None
        return future.result()

    def assigned(self, segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
        """Segments with the speakers that are known now."""
        if not segments:
            return ()
        start = max(0.0, segments[0].start - MARGIN)
        turns = self._growing.turns(start, segments[-1].end + MARGIN)
        return assign_speakers(segments, Diarization(exclusive=turns))

    def finish(self) -> Job[Diarization]:
        """Who speaks when in all of the sound."""
        if self._clustering is not None:
            yield from self._clustered(self._clustering)
            self._clustering = None
        diarization, changes = yield from silently(self._growing.end())
        self._tell_changes(changes)
        return diarization

    def _tell_changes(self, changes: tuple[Change, ...]) -> None:
        if not changes:
            return
        relabelled = tuple(Relabelled(*change) for change in changes)
        self._tell(Speakers(self._count / SAMPLE_RATE, relabelled, self._growing.names, self._growing.until))
