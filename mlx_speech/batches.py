"""Whisper's running batches, which all recordings share whose options allow it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Hashable
from dataclasses import dataclass, field, replace

import numpy as np

from mlx_speech.engine import Failure, attempt
from mlx_speech.errors import OutOfMemory
from mlx_speech.loading import Models
from mlx_speech.recording import Recording
from mlx_speech.stages.whisper import batched
from mlx_speech.stages.whisper.batched import Recognised, Recognition, Task
from mlx_speech.stages.whisper.decode import DecodingOptions
from mlx_speech.stages.whisper.workload import Workload
from mlx_speech.transcript import Chunk, Segment, space_between


@dataclass(eq=False)
class _Batch:
    """A running batch, and the recordings that have chunks in it.

    size : chunks at once
    tasks : the chunks that it has not given back, in the order in which they came
    """

    recognition: Recognition
    size: int
    recordings: list[Recording] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)


class Batches:
    """One running batch for each group of decoding options; those of a group are decoded together.

    A batch is made when a recording needs it, and dropped when it is empty, with the memory that it takes. Where there
    is too little memory for it, its chunks begin again, half as many at once, until it is empty: the next one has its
    full size, since what took the memory may be gone by then.

    workload : of all batches
    """

    def __init__(self, models: Models) -> None:
        self.workload = Workload()
        self._models = models
        self._batches: dict[Hashable, _Batch] = {}
        self._has_warned = False

    def add(self, recording: Recording, batch_size: int) -> None:
        """Queue all chunks of a recording; each comes back by `Recording.heard`, at once where it is known."""
        for place, chunk in enumerate(recording.chunks):
            known = recording.known.get(chunk)
            if known is None:
                self.add_chunk(recording, place, batched.samples_of(recording.audio, chunk), batch_size)
            else:
                recording.encoded.pop(chunk, None)
                recording.pending += 1
                recording.heard(place, known.segments, known.silences)

    def add_chunk(self, recording: Recording, place: int, samples: np.ndarray, batch_size: int) -> None:
        """Queue one of them. place : among the recording's chunks; samples : (samples,) of the chunk"""
        options = recording.options
        key = (options.decoding.group, batch_size)
        if key not in self._batches:
            self._batches[key] = _Batch(self._recognition(options.decoding, batch_size), batch_size)
        batch = self._batches[key]
        if recording not in batch.recordings:
            batch.recordings.append(recording)
        recording.pending += 1
        chunk = recording.chunks[place]
        task = Task(
            recording,
            chunk,
            samples,
            recording.language,
            words=recording.timed_by_attention,
            encoded=recording.encoded.pop(chunk, None),
            seed=place,
            owner=recording,
            options=options.decoding,
            multilingual=options.multilingual,
            hallucination_silence_threshold=options.words.hallucination_silence_threshold,
        )
        batch.recognition.add(task)
        batch.tasks.append(task)

    def cancel(self, recording: Recording) -> None:
        """Take a recording's chunks out of its batch, if it has any there."""
        for key, batch in list(self._batches.items()):
            if recording in batch.recordings:
                batch.recordings.remove(recording)
                batch.recognition.cancel(recording)
                batch.tasks = [task for task in batch.tasks if task.owner is not recording]
            if not batch.recordings:
                del self._batches[key]

    def advance(self) -> bool:
        """A unit of work in every batch; whether there was any."""
        batches = list(self._batches.items())
        for key, batch in batches:
            self._advance(batch)
            if not batch.recordings:
                del self._batches[key]
        self.workload.rows = sum(batch.recognition.decoding for batch in self._batches.values())
        return bool(batches)

    def _advance(self, batch: _Batch) -> None:
        """A unit of work in one batch."""
        start = time.perf_counter()
        recognised = attempt(batch.recognition.advance)
        self._share_time(batch, time.perf_counter() - start)
        if not isinstance(recognised, Failure):
            for one in recognised:
                self._deliver(batch, one)
        elif isinstance(recognised.error, OutOfMemory) and batch.size > 1:
            halved = attempt(lambda: self._halve(batch))
            if isinstance(halved, Failure):  # as where warnings are errors
                self._fail(batch, halved.error)
        else:
            self._fail(batch, recognised.error)

    def _recognition(self, options: DecodingOptions, batch_size: int) -> Recognition:
        whisper = self._models.whisper()
        return Recognition(whisper.model, whisper.tokenizer, options, batch_size=batch_size, workload=self.workload)

    def _deliver(self, batch: _Batch, recognised: Recognised) -> None:
        batch.tasks.remove(recognised.task)
        recording: Recording = recognised.task.key
        segments = recognised.segments
        if recording.options.words.segment_resolution == "chunk" or recording.aligned_by_ctc:
            segments = _joined(recognised.task.chunk, segments)  # Whisper's own times are too coarse to hold words to
        place = recording.chunks.index(recognised.task.chunk)
        recording.heard(place, segments, recognised.silences)
        if not any(task.owner is recording for task in batch.tasks):  # others may be in another batch
            batch.recordings.remove(recording)

    def _halve(self, batch: _Batch) -> None:
        """Begin what it has not given back again, half as many chunks at once. A chunk's result depends on neither."""
        size = batch.size // 2
        if not self._has_warned:
            self._has_warned = True
            problem = f"too little memory for {batch.size} chunks at once: goes on with {size}"
            warnings.warn(f"{problem}; give batch_size={size} or less, which wastes no time", stacklevel=2)
        # the tasks of a group differ in nothing that its recognition is made of
        batch.recognition = self._recognition(batch.recordings[0].options.decoding, size)
        batch.size = size
        for task in batch.tasks:
            batch.recognition.add(task)

    def _fail(self, batch: _Batch, error: Exception) -> None:
        """It concerns all whose chunks are in the batch, which is of no more use."""
        for recording in batch.recordings:
            recording.error = error
        batch.recordings = []

    def _share_time(self, batch: _Batch, seconds: float) -> None:
        """Chunks of several recordings were at work: each gets its share of the time."""
        chunks = sum(recording.pending for recording in batch.recordings)
        for recording in batch.recordings:
            recording.add_seconds("transcribe", seconds * recording.pending / chunks)


def _joined(chunk: Chunk, segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """The segments of a chunk as one, which lasts as long as the chunk; none stay none."""
    if not segments:
        return ()
    text = ""
    for segment in segments:
        text += space_between(text, segment) + segment.text
    words = tuple(word for segment in segments for word in segment.words)
    tokens = tuple(token for segment in segments for token in segment.tokens)
    logprobs = tuple(logprob for segment in segments for logprob in segment.token_logprobs)
    whole = replace(segments[0], start=chunk.start, end=chunk.end, text=text)
    return (replace(whole, words=words, tokens=tokens, token_logprobs=logprobs),)
