"""How far a job is: what happens in the stages of a transcription, as shares of the whole."""

from __future__ import annotations

import json
from collections.abc import Iterable

from mlx_speech.options import Options
from mlx_speech.request import Event, Heard, Progress
from mlx_speech.server.jobs import journal
from mlx_speech.transcript import Segment

# Of the time that all stages take; on a CPU and a GPU they differ, and nobody knows before. Only that a bar moves on
# evenly depends on it.
SHARES = {"audio": 2.0, "vad": 6.0, "transcribe": 60.0, "align": 12.0, "diarize": 20.0}
MOST = 0.99  # of a job that has not ended


class Tracker:
    """Takes in the events of a request, and has what is to be kept of them.

    options : of the request
    told : data of segments that were kept before, of an attempt that came to no end
    known : chunks of that attempt, which are not recognised again
    stage, progress, audio_seconds : as of `records.Job`
    """

    def __init__(self, options: Options, told: list[str], known: Iterable[Heard] = ()) -> None:
        self.stage = "audio"
        self.progress = 0.0
        self.audio_seconds: float | None = None
        self._shares = _shares(options)
        self._told = set(told)
        self._known = {heard.chunk for heard in known}
        self._segments: list[str] = []
        self._chunks: list[str] = []
        self._changed = True

    def take_in(self, event: Event) -> None:
        """An event of the request."""
        if isinstance(event, Progress):
            self._advance(event)
        if isinstance(event, Heard):
            for segment in event.segments:
                self._hear(segment)
            if event.chunk not in self._known:
                self._chunks.append(journal.to_json(event))
                self._changed = True

    def has_news(self) -> bool:
        """Whether anything has changed since `news` was asked for."""
        return self._changed

    def news(self) -> tuple[list[str], list[str]]:
        """The segments that were heard since this was asked for, each as JSON, and the chunks, as of `journal`."""
        segments, chunks = self._segments, self._chunks
        self._segments, self._chunks = [], []
        self._changed = False
        return segments, chunks

    def _advance(self, event: Progress) -> None:
        if event.stage not in self._shares:
            return
        self.stage = event.stage
        if event.stage in ("vad", "diarize"):  # these hear all of the recording
            self.audio_seconds = event.total
        before = 0.0
        for stage, share in self._shares.items():
            if stage == event.stage:
                break
            before += share
        part = event.done / event.total if event.total > 0 else 1.0
        part = min(max(part, 0.0), 1.0)
        progress = before + part * self._shares[event.stage]
        self.progress = max(self.progress, min(progress, MOST))  # a stage may be told of more than once
        self._changed = True

    def _hear(self, segment: Segment) -> None:
        times = {"start": round(segment.start, 3), "end": round(segment.end, 3)}
        data = json.dumps({**times, "text": segment.text})
        if data in self._told:
            return
        self._told.add(data)
        self._segments.append(data)
        self._changed = True


def _shares(options: Options) -> dict[str, float]:
    """Of the stages that there will be, in their order; together 1."""
    left_out: set[str] = set()
    if options.longform.sequential or not options.detection.vad:
        left_out.add("vad")
    if options.word_method != "ctc":
        left_out.add("align")
    if not options.wants_speakers:
        left_out.add("diarize")
    shares = {stage: share for stage, share in SHARES.items() if stage not in left_out}
    total = sum(shares.values())
    return {stage: share / total for stage, share in shares.items()}
