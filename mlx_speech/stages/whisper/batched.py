"""Chunks of speech → segments of text, many chunks at once, and the language that is spoken.

Every chunk is recognised on its own, as WhisperX does it: one chunk and silence fill Whisper's window, which is encoded
in a batch with others, and its row is decoded among those of other chunks. Where the decoder says timestamps, a chunk
is cut at them by the rules of openai/whisper's `transcribe`, which `sequential` shares.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech.errors import OptionError, in_range
from mlx_speech.features import SAMPLE_RATE, log_mel
from mlx_speech.models.whisper import Model
from mlx_speech.stages.whisper import coverage, decode, word_times
from mlx_speech.stages.whisper.decode import DecodingOptions, DecodingResult, Job
from mlx_speech.stages.whisper.rules import SECONDS_PER_TIMESTAMP
from mlx_speech.stages.whisper.tokenizer import Tokenizer
from mlx_speech.transcript import Chunk, Region, Segment

HOP_LENGTH = 160  # samples of a mel frame
INPUT_STRIDE = 2  # mel frames of one of the encoder's positions, and of a timestamp
MIN_PROGRESS = 0.2  # seconds that a hearing has to be shorter than the one before that it came from
MAX_HEARINGS = 12  # of a chunk
SEEDS_APART = 1 << 32  # between the seeds of the stretches of a chunk
EDGE = 2.0  # seconds from the start or end of a window, where silence is taken for granted


@dataclass(frozen=True, eq=False)
class Task:
    """A chunk to be recognised.

    key : whatever the caller knows it by
    audio : the chunk's own samples, at most those of the model's window
    language : a code, or None to detect it in this chunk
    words : whether its words get times, from cross-attention
    encoded : (positions, width), where `detect_language` has encoded it already
    seed : of what is sampled; by default its place among the tasks
    """

    key: Any
    chunk: Chunk
    audio: np.ndarray
    language: str | None
    words: bool = False
    encoded: mx.array | None = None
    seed: int | None = None


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
    """Each task once, in any order, with its segments: in seconds of the recording, inside the chunk, in order.

    batch_size : chunks that are encoded at once, and rows that are decoded at once. Tasks are pulled as rows become
        free; besides those being decoded, at most that many are encoded and waiting, and as many wait to be retried,
        or for the times of their words
    multilingual : detect the language of every chunk, whatever its task says
    hallucination_silence_threshold : seconds; of tasks with words, segments that look made up are left out where a
        longer silence, or the edge of the chunk, is on both sides of them
    on_silence : called with the speech of a chunk's regions in which nothing was heard on a second hearing either

    A chunk that is silent by `no_speech_threshold` has no segments. Where the text leaves out more than a second of
    the chunk's `regions`, that stretch is heard again, as a row of its own. Raises `OptionError` for a chunk that is
    longer than the model's window, and for a batch size below 1.
    """
    in_range(1, math.inf, batch_size=batch_size)
    hearings = _Hearings(tasks, model, tokenizer, batch_size, multilingual, on_silence)
    waiting: list[tuple[Job, list[Segment]]] = []
    while True:
        for job, result in decode.decode_with_fallback(hearings, model, tokenizer, options, batch_size=batch_size):
            stretch: _Stretch = job.key
            segments = _segments_of_stretch(stretch, result, tokenizer, options)
            if segments and (stretch.task.words or stretch.chunk.regions):
                waiting.append((job, segments))
            else:
                hearings.heard(stretch, segments)
            if len(waiting) == batch_size:
                for done, placed in _with_words(waiting, model, tokenizer, options, hallucination_silence_threshold):
                    hearings.heard(done, placed)
                waiting.clear()
            yield from hearings.finished()
        for done, placed in _with_words(waiting, model, tokenizer, options, hallucination_silence_threshold):
            hearings.heard(done, placed)
        waiting.clear()
        yield from hearings.finished()
        if not hearings.again:
            return


def detect_language(
    audio: np.ndarray,
    chunks: Sequence[Chunk],
    model: Model,
    tokenizer: Tokenizer,
    *,
    max_chunks: int = 4,
    keep: dict[Chunk, mx.array] | None = None,
) -> tuple[str, float]:
    """The language spoken in a recording and its probability: the mean over several chunks.

    audio : (samples,)
    chunks : where somebody speaks; of `max_chunks` stretches of them the longest chunk is heard. Without any, the
        start of the recording is.
    keep : gets what was encoded of the chunks that were heard, so that it need not be done again

    English-only models give ("en", 1.0). Raises `OptionError` for `max_chunks` below 1.
    """
    in_range(1, math.inf, max_chunks=max_chunks)
    if not tokenizer.multilingual:
        return "en", 1.0
    count = min(max_chunks, len(chunks))
    bounds = [len(chunks) * k // count for k in range(count + 1)] if count else []
    heard = [max(chunks[i:j], key=lambda chunk: chunk.duration) for i, j in pairwise(bounds)] or [Chunk(0.0, math.inf)]
    encoded = encode([samples_of(audio, chunk)[: samples_per_window(model)] for chunk in heard], model)
    votes = decode.detect_language(encoded, model, tokenizer)
    if keep is not None:
        keep |= {chunk: row for chunk, row in zip(heard, _rows(encoded), strict=True) if math.isfinite(chunk.end)}
    mean = {code: sum(vote[code] for vote in votes) / len(votes) for code in votes[0]}
    language = max(mean, key=lambda code: mean[code])
    return language, mean[language]


def encode(audios: Sequence[np.ndarray], model: Model) -> mx.array:
    """Recordings of at most a window, (samples,) each → (batch, positions, width); each as loud as it is by itself.

    The spectrogram is zero behind a recording, as in openai/whisper's `transcribe` and in faster-whisper; that of
    digital silence, which WhisperX puts there, costs OpenAI's models words. Models trained with it say so.
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


@dataclass(eq=False)
class _Hearing:
    """A task under way.

    seed : of what is sampled
    segments : what was heard so far, in order
    language : that was heard
    pending : stretches that the decoder has not given back
    count : stretches so far
    """

    task: Task
    seed: int
    segments: list[Segment] = field(default_factory=list)
    language: str | None = None
    pending: int = 0
    count: int = 0


@dataclass(frozen=True, eq=False)
class _Stretch:
    """What is heard at once: a task's whole chunk, or a part of it that is heard `again`."""

    hearing: _Hearing
    chunk: Chunk
    audio: np.ndarray
    seed: int
    again: bool

    @property
    def task(self) -> Task:
        return self.hearing.task


class _Hearings:
    """The jobs for the decoder: stretches to be heard again, then the chunks of new tasks, a batch of them encoded at
    a time. It may be iterated anew when it was at its end, once there is something to hear again."""

    def __init__(
        self,
        tasks: Iterable[Task],
        model: Model,
        tokenizer: Tokenizer,
        batch_size: int,
        multilingual: bool,
        on_silence: Callable[[Task, Region], None] | None,
    ) -> None:
        self.again: deque[_Stretch] = deque()
        self._tasks = enumerate(tasks)
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._multilingual = multilingual
        self._on_silence = on_silence
        self._jobs: deque[Job] = deque()
        self._finished: deque[_Hearing] = deque()

    def __iter__(self) -> Iterator[Job]:
        return self

    def __next__(self) -> Job:
        while not self._jobs:
            stretches = self._next_stretches()
            if not stretches:
                raise StopIteration
            self._jobs.extend(self._encoded(stretches))
        return self._jobs.popleft()

    def heard(self, stretch: _Stretch, segments: Sequence[Segment]) -> None:
        """Note what was heard in a stretch, and what of it has to be heard again.

        segments : with words wherever the chunk has regions: Whisper's own stamps may span what it passed over
        """
        hearing = stretch.hearing
        if segments:
            if stretch.again:
                decode_text = self._tokenizer.decode
                room = coverage.make_room(hearing.segments, stretch.chunk, decode_text)
                regions = stretch.task.chunk.regions
                hearing.segments = coverage.without_misplaced(room, segments, regions, decode_text)
            hearing.segments = sorted([*hearing.segments, *segments], key=lambda segment: (segment.start, segment.end))
            hearing.language = segments[0].language
        hearing.pending -= 1
        for missing in coverage.uncovered(stretch.chunk, segments):
            parts = [missing] if segments else coverage.region_by_region(missing)
            # of a first hearing something was heard, so a second one begins or ends elsewhere
            longest = math.inf if segments and not stretch.again else stretch.chunk.duration - MIN_PROGRESS
            if all(part.duration <= longest for part in parts) and hearing.count + len(parts) <= MAX_HEARINGS:
                for part in parts:
                    self._hear_again(hearing, part)
            elif self._on_silence is not None:
                self._on_silence(hearing.task, Region(missing.regions[0].start, missing.regions[-1].end))
        if not hearing.pending:
            self._finished.append(hearing)

    def finished(self) -> Iterator[tuple[Task, tuple[Segment, ...]]]:
        """The tasks of which nothing is left to be heard, with their segments in order."""
        while self._finished:
            hearing = self._finished.popleft()
            kept = hearing.segments if hearing.task.words else [replace(one, words=()) for one in hearing.segments]
            yield hearing.task, tuple(kept)

    def _hear_again(self, hearing: _Hearing, chunk: Chunk) -> None:
        audio = hearing.task.audio
        start = round((chunk.start - hearing.task.chunk.start) * SAMPLE_RATE)
        stop = round((chunk.end - hearing.task.chunk.start) * SAMPLE_RATE)
        self.again.append(self._stretch(hearing, chunk, audio[start:stop], again=True))

    def _stretch(self, hearing: _Hearing, chunk: Chunk, audio: np.ndarray, again: bool) -> _Stretch:
        stretch = _Stretch(hearing, chunk, audio, hearing.seed + hearing.count * SEEDS_APART, again)
        hearing.pending += 1
        hearing.count += 1
        return stretch

    def _next_stretches(self) -> list[_Stretch]:
        """At most a batch of them, none if there is nothing left to be heard."""
        stretches: list[_Stretch] = []
        while self.again and len(stretches) < self._batch_size:
            stretches.append(self.again.popleft())
        while len(stretches) < self._batch_size and (numbered := next(self._tasks, None)) is not None:
            stretch = self._first_stretch(*numbered)
            if stretch.audio.size >= INPUT_STRIDE * HOP_LENGTH:
                stretches.append(stretch)
            else:
                self.heard(stretch, ())
        return stretches

    def _first_stretch(self, number: int, task: Task) -> _Stretch:
        limit = samples_per_window(self._model)
        if task.audio.size > limit + HOP_LENGTH:  # times in seconds are not that exact
            seconds = task.audio.size / SAMPLE_RATE
            reason = f"a chunk of {seconds:g} s: this model hears {limit / SAMPLE_RATE:g} s at once"
            raise OptionError(f"{reason}; choose a smaller chunk_size")
        # the number of the task, not its place in a batch, so that any batch size draws the same samples
        hearing = _Hearing(task, number if task.seed is None else task.seed)
        return self._stretch(hearing, task.chunk, task.audio, again=False)

    def _encoded(self, stretches: Sequence[_Stretch]) -> Iterator[Job]:
        known = [None if stretch.again else stretch.task.encoded for stretch in stretches]
        new = [stretch.audio for stretch, row in zip(stretches, known, strict=True) if row is None]
        rows = iter(_rows(encode(new, self._model)) if new else [])
        for stretch, row in zip(stretches, known, strict=True):
            given = None if self._multilingual else stretch.task.language
            language = given or stretch.hearing.language  # the decoder detects what is None
            yield Job(next(rows) if row is None else row, language, key=stretch, seed=stretch.seed)


def _rows(encoded: mx.array) -> list[mx.array]:
    """The rows of a batch, evaluated, each by itself: or one that waits would keep its whole batch in memory."""
    rows = [encoded[k] * 1 for k in range(len(encoded))]
    mx.async_eval(rows)
    return rows


# --- tokens → segments -----------------------------------------------------------------------------------------------


def is_silence(result: DecodingResult, options: DecodingOptions) -> bool:
    """Whether the decoder heard no speech: it says so, and is not sure of the text (openai/whisper `transcribe`)."""
    sure = options.logprob_threshold is not None and result.avg_logprob > options.logprob_threshold
    return options.no_speech_threshold is not None and result.no_speech_prob > options.no_speech_threshold and not sure


def ends_with_single_timestamp(tokens: Sequence[int], timestamp_begin: int) -> bool:
    """Whether nobody speaks after the last timestamp: text and one timestamp are the last two tokens."""
    return [token >= timestamp_begin for token in tokens[-2:]] == [False, True]


def split_at_timestamps(
    tokens: Sequence[int], timestamp_begin: int, duration: float
) -> tuple[list[tuple[float, float, tuple[int, ...]]], int | None]:
    """A window's tokens, cut between every two neighbouring timestamps (openai/whisper `transcribe`).

    tokens : text and timestamps, as decoded
    duration : of the audio in the window, in seconds
    Returns (start, end, tokens) of each piece, in seconds of the window, and how many tokens they take up where they
    leave out an unfinished piece at the end, else None.
    """
    stamps = [token >= timestamp_begin for token in tokens]
    times = [_seconds(token, timestamp_begin) for token in tokens]
    cuts = [k for k in range(1, len(tokens)) if stamps[k - 1] and stamps[k]]
    if not cuts:
        last = next((time for time, stamp in zip(times[::-1], stamps[::-1], strict=True) if stamp), 0.0)
        return [(0.0, last or duration, tuple(tokens))], None
    unfinished = not ends_with_single_timestamp(tokens, timestamp_begin)
    bounds = [0, *cuts] if unfinished else [0, *cuts, len(tokens)]
    pieces = [(times[i] if stamps[i] else 0.0, times[j - 1], tuple(tokens[i:j])) for i, j in pairwise(bounds)]
    return pieces, cuts[-1] if unfinished else None


def as_segment(
    start: float, end: float, tokens: tuple[int, ...], result: DecodingResult, tokenizer: Tokenizer
) -> Segment:
    """A piece of what was decoded; `tokens` may hold timestamps."""
    names = ("language", "temperature", "avg_logprob", "compression_ratio", "no_speech_prob")
    decoded = {name: getattr(result, name) for name in names}
    text = tokenizer.decode(tokens)
    return Segment(start, end, text.strip(), tokens=tokens, spaced=text[:1].isspace(), **decoded)


def _seconds(token: int, timestamp_begin: int) -> float:
    return (token - timestamp_begin) * SECONDS_PER_TIMESTAMP


def _segments_of_stretch(
    stretch: _Stretch, result: DecodingResult, tokenizer: Tokenizer, options: DecodingOptions
) -> list[Segment]:
    """Unlike in `sequential`, where the next window hears it again, a piece without an end lasts to the chunk's end.
    What is stamped behind the sound was not said in it, and is left out."""
    if is_silence(result, options) or (stretch.again and not _is_sure(result, options)):
        return []
    begin, tokens, chunk = tokenizer.timestamp_begin, result.tokens, stretch.chunk
    if options.without_timestamps:  # no rule keeps the decoder from saying some
        tokens = tuple(token for token in tokens if token < tokenizer.eot)
    pieces, used = split_at_timestamps(tokens, begin, math.inf)
    if used is not None:
        pieces.append((_seconds(tokens[used], begin), math.inf, tokens[used:]))
    placed = [(min(chunk.start + a, chunk.end), min(chunk.start + b, chunk.end), tokens) for a, b, tokens in pieces]
    segments = [as_segment(*piece, result, tokenizer) for piece in placed]
    return [segment for segment in segments if segment.text and segment.start < segment.end]


def _is_sure(result: DecodingResult, options: DecodingOptions) -> bool:
    """Whether a second hearing may add its text: it is no silence by the decoder's word alone, and has not failed.

    What the first hearing passed over is often no speech, and Whisper makes up text for what is none.
    """
    silent, unlikely, repetitive = (
        options.no_speech_threshold,
        options.logprob_threshold,
        options.compression_ratio_threshold,
    )
    if silent is not None and result.no_speech_prob > silent:
        return False
    if unlikely is not None and result.avg_logprob < unlikely:
        return False
    return repetitive is None or result.compression_ratio <= repetitive


def _with_words(
    waiting: Sequence[tuple[Job, list[Segment]]],
    model: Model,
    tokenizer: Tokenizer,
    options: DecodingOptions,
    threshold: float | None,
) -> Iterator[tuple[_Stretch, tuple[Segment, ...]]]:
    """Give the segments of several stretches their words, in one pass of the decoder."""
    if not waiting:
        return
    texts = [[t for segment in segments for t in segment.tokens if t < tokenizer.eot] for _, segments in waiting]
    how: dict[str, Any] = {"languages": [segments[0].language for _, segments in waiting], "task": options.task}
    how["num_frames"] = [job.key.audio.size // HOP_LENGTH for job, _ in waiting]
    encoded = mx.stack([job.encoded for job, _ in waiting])
    found = word_times.find_alignment(encoded, texts, model, tokenizer, **how)
    for (job, segments), timings in zip(waiting, found, strict=True):
        stretch = job.key
        low, high = stretch.chunk.start, stretch.chunk.end
        placed = word_times.place_words(segments, timings, offset=low, last_speech=low, tokenizer=tokenizer)
        if stretch.task.words and threshold is not None:
            placed = _believed(placed, stretch.chunk, threshold)
        yield stretch, tuple(word_times.tidy_segments(placed, low, high))


def _believed(segments: Sequence[Segment], chunk: Chunk, threshold: float) -> list[Segment]:
    """Without those that openai/whisper's `transcribe` skips for its `hallucination_silence_threshold`: anomalous ones
    between silences, or near the edge of what was heard."""
    kept, last_end = [], chunk.start
    for k, segment in enumerate(segments):
        following = word_times.next_words_segment(segments[k + 1 :])
        pause = (following.words[0].start if following is not None else chunk.end) - segment.end
        before = segment.start - last_end > threshold or segment.start - chunk.start < EDGE
        after = pause > threshold or word_times.is_anomalous(following) or chunk.end - segment.end < EDGE
        if not (word_times.is_anomalous(segment) and before and after):
            kept.append(segment)
        last_end = segment.end
    return kept
