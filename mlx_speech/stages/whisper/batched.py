"""Chunks of speech → segments of text, many chunks at once, and the language that is spoken.

Every chunk is recognised on its own, as WhisperX does it: one chunk and silence fill Whisper's
window, which is encoded in a batch with others, and its row is decoded among those of other chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech.blas import on_cpu
from mlx_speech.errors import OptionError, in_range
from mlx_speech.features import SAMPLE_RATE, log_mel
from mlx_speech.models.whisper import Model
from mlx_speech.models.whisper_cache import Audio
from mlx_speech.stages.whisper import coverage, decode, fallback, word_times
from mlx_speech.stages.whisper.decode import DecodingOptions, DecodingResult, Job
from mlx_speech.stages.whisper.segments import believed, is_sure, segments_of_chunk
from mlx_speech.stages.whisper.tokenizer import Tokenizer
from mlx_speech.stages.whisper.turns import Turns
from mlx_speech.stages.whisper.workload import Workload
from mlx_speech.transcript import Chunk, Region, Segment

HOP_LENGTH = 160  # samples of a mel frame
INPUT_STRIDE = 2  # mel frames of one of the encoder's positions, and of a timestamp
MIN_PROGRESS = 0.2  # seconds that a hearing has to be shorter than the one before that it came from
MAX_HEARINGS = 12  # of a chunk
SEEDS_APART = 1 << 32  # between the seeds of the stretches of a chunk
CHUNKS_AT_ONCE_ON_CPU = 1  # that are encoded, or whose words are timed: more would not be faster there


@dataclass(frozen=True, eq=False)
class Task:
    """A chunk to be recognised.

    key : whatever the caller knows it by
    audio : the chunk's own samples, at most those of the model's window
    language : a code, or None to detect it in this chunk
    words : whether its words get times, from cross-attention
    encoded : (positions, width), where `detect_language` has encoded it already
    seed : of what is sampled; None: 0, or in `transcribe` its place among the tasks
    options : its own; None: those of whoever recognises it. The `group` has to be the same
    multilingual : detect its language, whatever `language` says
    hallucination_silence_threshold : seconds; where it has words, segments that look made up are
        left out if a longer silence, or the edge of the chunk, is on both sides of them
    owner : whose it is, by a key or by the object itself; owners take turns
    """

    key: Any
    chunk: Chunk
    audio: np.ndarray
    language: str | None
    words: bool = False
    encoded: mx.array | None = None
    seed: int | None = None
    options: DecodingOptions | None = None
    multilingual: bool = False
    hallucination_silence_threshold: float | None = None
    owner: Hashable = None


@dataclass(frozen=True)
class Recognised:
    """A task that is done.

    segments : in seconds of the recording, inside the chunk, in order; none where it is silent
    silences : speech of the chunk's regions in which nothing was heard on a second hearing either
    """

    task: Task
    segments: tuple[Segment, ...]
    silences: tuple[Region, ...]


def samples_per_window(model: Model) -> int:
    """How many samples the model hears at once: 480000, which is 30 s, in all of OpenAI's."""
    return model.args.n_audio_ctx * INPUT_STRIDE * HOP_LENGTH


def samples_of(audio: np.ndarray, chunk: Chunk) -> np.ndarray:
    """A chunk's own samples, of those of the recording."""
    return audio[round(chunk.start * SAMPLE_RATE) : round(min(chunk.end * SAMPLE_RATE, audio.size))]


def transcribe(
    tasks: Iterable[Task],
    model: Model,
    tokenizer: Tokenizer,
    options: DecodingOptions,
    *,
    batch_size: int = 8,
    multilingual: bool = False,
    hallucination_silence_threshold: float | None = None,
    on_silence: Callable[[Task, Region], None] | None = None,
) -> Iterator[tuple[Task, tuple[Segment, ...]]]:
    """Each task once, in any order, with its segments.

    options : of tasks that bring none
    batch_size : chunks that are encoded at once, and rows that are decoded at once. Tasks are
        pulled as rows become free; besides those being decoded, at most that many are waiting, and
        as many wait to be retried, or for the times of their words
    multilingual, hallucination_silence_threshold : as of `Task`, for all of them
    on_silence : called with the speech of a chunk's regions in which nothing was heard on a second
        hearing either

    Segments are in seconds of the recording, inside the chunk, in order; a chunk that is silent by
    `no_speech_threshold` has none. Where the text leaves out more
    than a second of the chunk's `regions`, that stretch is heard again, as a row of its own. Raises
    `OptionError` for a chunk that is longer than the model's window, and for a batch size below 1.
    """
    recognition = Recognition(model, tokenizer, options, batch_size=batch_size)
    numbered = enumerate(tasks)
    while True:
        for number, task in islice(numbered, max(0, batch_size - recognition.waiting)):
            own = replace(task, key=task)  # so that the caller gets its task back
            if task.seed is None:  # not the place in a batch, so that any batch size draws the same
                own = replace(own, seed=number)
            if multilingual:
                own = replace(own, multilingual=True)
            if hallucination_silence_threshold is not None:
                threshold = hallucination_silence_threshold
                own = replace(own, hallucination_silence_threshold=threshold)
            recognition.add(own)
        if recognition.idle:
            return
        for done in recognition.advance():
            task = done.task.key
            if on_silence is not None:
                for region in done.silences:
                    on_silence(task, region)
            yield task, done.segments


def detect_language(
    audio: np.ndarray,
    chunks: Sequence[Chunk],
    model: Model,
    tokenizer: Tokenizer,
    *,
    max_chunks: int = 4,
    among: str | None = None,
    keep: dict[Chunk, mx.array] | None = None,
) -> tuple[str, float]:
    """The language spoken in a recording and its probability: the mean over several chunks.

    audio : (samples,)
    chunks : where somebody speaks; of `max_chunks` stretches of them the longest chunk is heard.
        Without any, the start of the recording is.
    among : codes with commas between them, the only languages that it may be
    keep : gets what was encoded of the chunks that were heard, so that it need not be done again

    English-only models give ("en", 1.0). Raises `OptionError` for `max_chunks` below 1.
    """
    in_range(1, math.inf, max_chunks=max_chunks)
    if not tokenizer.multilingual:
        return "en", 1.0
    heard = _longest_chunks(chunks, max_chunks) or [Chunk(0.0, math.inf)]
    window = samples_per_window(model)
    encoded = encode([samples_of(audio, chunk)[:window] for chunk in heard], model)
    votes = decode.detect_language(encoded, model, tokenizer)
    if keep is not None and chunks:
        keep.update(zip(heard, _rows(encoded), strict=True))
    mean = {code: sum(vote[code] for vote in votes) / len(votes) for code in votes[0]}
    if among is not None:
        allowed = {code: mean[code] for code in among.split(",")}
        total = sum(allowed.values()) or 1.0
        mean = {code: probability / total for code, probability in allowed.items()}
    language = max(mean, key=lambda code: mean[code])
    return language, mean[language]


def _longest_chunks(chunks: Sequence[Chunk], count: int) -> list[Chunk]:
    """The longest of each of at most `count` stretches of neighbouring chunks."""
    count = min(count, len(chunks))
    longest = []
    for k in range(count):
        stretch = chunks[len(chunks) * k // count : len(chunks) * (k + 1) // count]
        longest.append(max(stretch, key=lambda chunk: chunk.duration))
    return longest


def encode(audios: Sequence[np.ndarray], model: Model) -> mx.array:
    """Recordings of at most a window, (samples,) each → (batch, positions, width); each as loud as
    it is by itself.

    The spectrogram is zero behind a recording, as in openai/whisper's `transcribe` and in
    faster-whisper; that of digital silence, which WhisperX puts there, costs OpenAI's models words.
    Models trained with it say so.
    """
    window = samples_per_window(model)
    padded = np.zeros((len(audios), window + 2 * HOP_LENGTH), np.float32)  # so that its end is not mirrored
    frames = np.zeros((len(audios), 1), np.int32)
    for row, audio in enumerate(audios):
        padded[row, : audio.size] = audio[:window]
        frames[row] = min(audio.size, window) // HOP_LENGTH
    mel = log_mel(mx.array(padded), model.args.n_mels, samples=None)[:, : window // HOP_LENGTH]
    if not model.args.silent_padding:
        sounding = mx.arange(mel.shape[1]) < mx.array(frames)
        mel = mx.where(sounding[..., None], mel, 0)
    return model.encoder(mel)


# --- chunks of many owners, a step at a time ------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Stretch:
    """What is heard at once: a task's whole chunk, or a part of it that is heard `again`.

    number : among the stretches of the task, from 0
    language : its code; None: the decoder detects it
    """

    hearing: _Hearing
    number: int
    chunk: Chunk
    language: str | None

    @property
    def task(self) -> Task:
        return self.hearing.task

    @property
    def again(self) -> bool:
        return self.number > 0

    @property
    def seed(self) -> int:
        return (self.task.seed or 0) + self.number * SEEDS_APART

    @property
    def encoded(self) -> mx.array | None:
        """(positions, width), where the task brought it."""
        return None if self.again else self.task.encoded

    @property
    def audio(self) -> np.ndarray:
        """(samples,)"""
        if not self.again:
            return self.task.audio
        start = round((self.chunk.start - self.task.chunk.start) * SAMPLE_RATE)
        stop = round((self.chunk.end - self.task.chunk.start) * SAMPLE_RATE)
        return self.task.audio[start:stop]


@dataclass(eq=False)
class _Hearing:
    """A task under way. What is missing after a hearing is heard in the next one, all of it before
    anything is made of it: so nothing depends on which stretch comes back first.

    segments : that were heard so far, in order
    silences : as of `Recognised`
    count : stretches so far
    pending : of them, those that have not been heard yet
    heard : of the last hearing, with their segments
    """

    task: Task
    segments: list[Segment] = field(default_factory=list)
    silences: list[Region] = field(default_factory=list)
    count: int = 0
    pending: int = 0
    heard: list[tuple[Stretch, Sequence[Segment]]] = field(default_factory=list)

    def stretch(self, chunk: Chunk, language: str | None) -> Stretch:
        """One more stretch of the task's chunk to be heard."""
        stretch = Stretch(self, self.count, chunk, language)
        self.count += 1
        self.pending += 1
        return stretch

    def note(self, stretch: Stretch, segments: Sequence[Segment]) -> None:
        """Note what was heard in a stretch."""
        self.heard.append((stretch, segments))
        self.pending -= 1

    def next_stretches(self, decode_text: coverage.DecodeText) -> list[Stretch]:
        """When nothing is pending: what has to be heard again.

        decode_text : tokens → text
        """
        heard = sorted(self.heard, key=lambda item: item[0].number)
        self.heard = []
        stretches: list[Stretch] = []
        for stretch, segments in heard:
            if segments:
                self._add(stretch, segments, decode_text)
            language = segments[0].language if segments else stretch.language
            for chunk in self._missing(stretch, segments):
                stretches.append(self.stretch(chunk, language))
        return stretches

    def _add(self, stretch: Stretch, segments: Sequence[Segment], decode_text: coverage.DecodeText) -> None:
        if stretch.again:
            room = coverage.make_room(self.segments, stretch.chunk, decode_text)
            regions = self.task.chunk.regions
            self.segments = coverage.without_misplaced(room, segments, regions, decode_text)
        both = [*self.segments, *segments]
        self.segments = sorted(both, key=lambda segment: (segment.start, segment.end))

    def _missing(self, stretch: Stretch, segments: Sequence[Segment]) -> list[Chunk]:
        """The parts of a stretch whose text is missing, and that are worth another hearing; the
        others are silences.

        segments : with words wherever the chunk has regions: Whisper's own stamps may span what it
            passed over
        """
        chunks: list[Chunk] = []
        for missing in coverage.uncovered(stretch.chunk, segments):
            parts = [missing] if segments else coverage.region_by_region(missing)
            longest = stretch.chunk.duration - MIN_PROGRESS
            if segments and not stretch.again:  # a second hearing begins or ends elsewhere
                longest = math.inf
            is_shorter = all(part.duration <= longest for part in parts)
            if is_shorter and self.count + len(chunks) + len(parts) <= MAX_HEARINGS:
                chunks += parts
            else:
                self.silences.append(Region(missing.regions[0].start, missing.regions[-1].end))
        return chunks

    def result(self) -> Recognised:
        segments = self.segments
        if not self.task.words:
            segments = [replace(segment, words=()) for segment in segments]
        return Recognised(self.task, tuple(segments), tuple(self.silences))


@dataclass(frozen=True, eq=False)
class DecodedStretch:
    """A stretch whose segments wait for the times of their words. audio : as of `DecodingResult`"""

    job: Job
    stretch: Stretch
    segments: list[Segment]
    audio: Audio | None


class Recognition:
    """Chunks of many owners → their segments, in running batches, all in the thread that owns MLX.

    options : of tasks that bring none; all tasks have the same `group`
    batch_size : chunks that are encoded at once on a GPU, rows that are decoded at once, and rows
        that are decoded again at once. An owner that has no row gets one more where all are taken
    workload : where the decoder's work is counted

    Owners take turns, task by task, so that a short recording does not wait behind a long one. What
    a task gives does not depend on the others. Where the text leaves out more than a second of a
    chunk's `regions`, that stretch is heard again, before the owner's next tasks.
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
        self._turns: Turns[Stretch, Job] = Turns()
        self._decoder = fallback.FallbackDecoder(model, tokenizer, options, batch_size=batch_size, workload=workload)
        self._chunks_at_once = min(batch_size, CHUNKS_AT_ONCE_ON_CPU) if on_cpu() else batch_size
        self._encoded_last = False
        self._untimed: list[DecodedStretch] = []
        self._finished: list[Recognised] = []

    @property
    def waiting(self) -> int:
        """Tasks, and stretches to be heard again, that are not in a row yet; below `batch_size`
        more are welcome."""
        return len(self._turns)

    @property
    def decoding(self) -> int:
        """Tasks, and stretches to be heard again, that are in a row, or wait to be retried."""
        return len(self._decoder.jobs)

    @property
    def idle(self) -> bool:
        """Whether everything that was added has been returned, or cancelled."""
        return not (self._turns or self._decoder.jobs or self._untimed or self._finished)

    def add(self, task: Task) -> None:
        """Queue a task, behind those of the same owner.

        Raises `OptionError` for a chunk that is longer than the model's window, and for a language
        or a prefix that the model cannot take; `ValueError` for options of another group.
        """
        options = task.options or self._options
        if task.options is not None and task.options.group != self._options.group:
            raise ValueError("a task of another group: its options cannot share a batch with these")
        window = samples_per_window(self._model)
        if task.audio.size > window + HOP_LENGTH:  # times in seconds are not that exact
            length = f"a chunk of {task.audio.size / SAMPLE_RATE:g} s"
            most = f"this model hears {window / SAMPLE_RATE:g} s at once"
            raise OptionError(f"{length}: {most}; choose a smaller chunk_size")
        language = task.language
        if task.multilingual:
            language = None
        decode.check_tokens(options, self._tokenizer, self._model.args.n_text_ctx, language)
        stretch = _Hearing(task).stretch(task.chunk, language)
        if stretch.audio.size < INPUT_STRIDE * HOP_LENGTH:
            self._note(stretch, ())
        else:
            self._turns.add(task.owner, stretch)

    def cancel(self, owner: Hashable) -> None:
        """Forget an owner's tasks: their rows are free, and nothing of them is returned."""
        self._turns.drop(owner)
        self._decoder.drop(owner)
        self._untimed = [decoded for decoded in self._untimed if decoded.job.owner != owner]
        self._finished = [done for done in self._finished if done.task.owner != owner]

    def advance(self) -> list[Recognised]:
        """One piece of work, and the tasks that are done with it: chunks are encoded, or one of the
        running batches takes a few steps, or the words of a batch get their times.

        After an exception that arises in it, such as for want of memory, the object may be of no
        more use: make another one, and add the tasks that have not come back.
        """
        if self._are_words_due():
            self._time_words()
        elif stretches := self._stretches_to_encode():
            self._encode(stretches)
        else:
            self._decode()
        done = self._finished
        self._finished = []
        return done

    # --- audio → jobs

    def _room(self, owner: Hashable) -> int:
        return self._decoder.room(owner)

    def _stretches_to_encode(self) -> list[Stretch]:
        """A batch of them where one is due for a free row, else none.

        Where owners share the rows, they are decoded between two batches: nobody waits until
        another one's rows are filled.
        """
        if self._encoded_last and len(self._owners()) > 1:
            return []
        owners = [owner for owner in self._turns.owners if self._room(owner) > 0]
        if not owners:
            return []
        free = max(self._room(owner) for owner in owners)
        ready = sum(self._turns.ready(owner) for owner in owners)
        unready = [owner for owner in owners if not self._turns.ready(owner)]
        if any(owner in unready for owner in owners[:free]):
            return self._turns.take_raw(unready, self._chunks_at_once)
        if ready < free:
            return self._turns.take_raw(owners, self._chunks_at_once)
        return []

    def _encode(self, stretches: Sequence[Stretch]) -> None:
        """Encode those stretches that are not encoded yet; then all are ready for a row."""
        self._encoded_last = True
        new = [stretch for stretch in stretches if stretch.encoded is None]
        rows: list[mx.array] = []
        if new:
            rows = _rows(encode([stretch.audio for stretch in new], self._model))
        rows.reverse()  # popped from the first on
        for stretch in stretches:
            encoded = stretch.encoded
            if encoded is None:
                encoded = rows.pop()
            task = stretch.task
            job = Job(
                encoded,
                stretch.language,
                key=stretch,
                seed=stretch.seed,
                options=task.options,
                owner=task.owner,
                tries_unlikely=not stretch.again,  # samples made of what is hardly speech are made up
            )
            self._turns.add_ready(task.owner, job)

    def _owners(self) -> set[Hashable]:
        """Those who have something waiting, or in a row."""
        return {*self._turns.owners, *(job.owner for job in self._decoder.jobs)}

    def _decode(self) -> None:
        """A few steps with the jobs that are in the rows, and those that are ready."""
        self._encoded_last = False
        self._fill_rows()
        for job, result in self._decoder.advance(self._turns.owners):
            self._decoded(job, result)

    def _fill_rows(self) -> None:
        """Let jobs that are ready enter free rows, of one owner after the other."""
        jobs: list[Job] = []
        while True:
            owners = [owner for owner in self._turns.owners if self._room(owner) > len(jobs)]
            owners = [owner for owner in owners if self._turns.ready(owner)]
            if not owners:
                break
            jobs.append(self._turns.take_ready(owners[0]))
        self._decoder.enter(jobs)

    # --- results → segments

    def _decoded(self, job: Job, result: DecodingResult) -> None:
        stretch: Stretch = job.key
        options = stretch.task.options or self._options
        segments: list[Segment] = []
        if not stretch.again or is_sure(result, options):
            segments = segments_of_chunk(stretch.chunk, result, self._tokenizer, options)
        # Whisper's own stamps may span what it passed over, so words say what was heard
        if segments and (stretch.task.words or stretch.chunk.regions):
            self._untimed.append(DecodedStretch(job, stretch, segments, result.audio))
        else:
            self._note(stretch, segments)

    def _are_words_due(self) -> bool:
        """Whether a batch of stretches waits for them, or an owner waits for nothing else."""
        if len(self._untimed) >= self._chunks_at_once:
            return True
        return any(self._waits_for_words(decoded) for decoded in self._untimed)

    def _waits_for_words(self, decoded: DecodedStretch) -> bool:
        """Whether its owner waits for nothing else."""
        return decoded.job.owner not in self._owners()

    def _time_words(self) -> None:
        """Those of a batch of stretches; first of the owners that wait for nothing else."""
        waiting = sorted(self._untimed, key=lambda decoded: not self._waits_for_words(decoded))
        batch = waiting[: self._chunks_at_once]
        self._untimed = [decoded for decoded in self._untimed if decoded not in batch]
        for stretch, placed in _with_words(batch, self._model, self._tokenizer, self._options):
            self._note(stretch, placed)

    def _note(self, stretch: Stretch, segments: Sequence[Segment]) -> None:
        hearing = stretch.hearing
        hearing.note(stretch, segments)
        if hearing.pending:
            return
        for missing in hearing.next_stretches(self._tokenizer.decode):
            self._turns.add_first(hearing.task.owner, missing)
        if not hearing.pending:
            self._finished.append(hearing.result())


def _rows(encoded: mx.array) -> list[mx.array]:
    """The rows of a batch, each by itself: one that waits does not keep all in memory."""
    rows = [encoded[k] * 1 for k in range(len(encoded))]
    mx.async_eval(rows)
    return rows


def _with_words(
    batch: Sequence[DecodedStretch], model: Model, tokenizer: Tokenizer, options: DecodingOptions
) -> Iterator[tuple[Stretch, list[Segment]]]:
    """Give the segments of several stretches their words, in one pass of the decoder."""
    texts = []
    for decoded in batch:
        tokens = [token for segment in decoded.segments for token in segment.tokens]
        texts.append([token for token in tokens if token < tokenizer.eot])
    timings = word_times.find_alignment(
        mx.stack([decoded.job.encoded for decoded in batch]),
        texts,
        model,
        tokenizer,
        languages=[decoded.segments[0].language for decoded in batch],
        task=options.task,
        num_frames=[decoded.stretch.audio.size // HOP_LENGTH for decoded in batch],
        probabilities=any(decoded.stretch.task.words for decoded in batch),  # else it is only asked where they stand
        audio=[decoded.audio for decoded in batch],
    )
    for decoded, words in zip(batch, timings, strict=True):
        task = decoded.stretch.task
        start = decoded.stretch.chunk.start
        end = decoded.stretch.chunk.end
        placed = word_times.place_words(decoded.segments, words, offset=start, last_speech=start, tokenizer=tokenizer)
        threshold = task.hallucination_silence_threshold
        if task.words and threshold is not None:
            placed = believed(placed, decoded.stretch.chunk, threshold)
        yield decoded.stretch, word_times.tidy_segments(placed, start, end)
