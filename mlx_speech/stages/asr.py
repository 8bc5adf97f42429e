"""Chunks of speech → segments of text, many chunks at once, and the language that is spoken.

Every chunk is recognised on its own, as WhisperX does it: one chunk and silence fill Whisper's window, which is encoded
in a batch with others, and its row is decoded among those of other chunks. Where the decoder says timestamps, a chunk
is cut at them by the rules of openai/whisper's `transcribe`, which `sequential` shares.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech.errors import OptionError, in_range
from mlx_speech.features import SAMPLE_RATE, log_mel
from mlx_speech.models.whisper import Model
from mlx_speech.stages import attention, decode
from mlx_speech.stages.decode import DecodingOptions, DecodingResult, Job
from mlx_speech.stages.rules import SECONDS_PER_TIMESTAMP
from mlx_speech.tokenizer import Tokenizer
from mlx_speech.transcript import Chunk, Segment

HOP_LENGTH = 160  # samples of a mel frame
INPUT_STRIDE = 2  # mel frames of one of the encoder's positions, and of a timestamp
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
) -> Iterator[tuple[Task, tuple[Segment, ...]]]:
    """Each task once, in any order, with its segments: in seconds of the recording, inside the chunk, in order.

    batch_size : chunks that are encoded at once, and rows that are decoded at once. Tasks are pulled as rows become
        free; besides those being decoded, at most that many are encoded and waiting, and as many wait to be retried,
        or for the times of their words
    multilingual : detect the language of every chunk, whatever its task says
    hallucination_silence_threshold : seconds; of tasks with words, segments that look made up are left out where a
        longer silence, or the edge of the chunk, is on both sides of them

    A chunk that is silent by `no_speech_threshold` has no segments. Raises `OptionError` for a chunk that is longer
    than the model's window, and for a batch size below 1.
    """
    in_range(1, math.inf, batch_size=batch_size)
    empty: deque[Task] = deque()
    jobs = _jobs(tasks, model, batch_size, multilingual, empty)
    waiting: list[tuple[Job, list[Segment]]] = []
    for job, result in decode.decode_with_fallback(jobs, model, tokenizer, options, batch_size=batch_size):
        segments = _segments_of_chunk(job.key.chunk, result, tokenizer, options)
        if job.key.words and segments:
            waiting.append((job, segments))
        else:
            yield job.key, tuple(segments)
        if len(waiting) == batch_size:
            yield from _with_words(waiting, model, tokenizer, options, hallucination_silence_threshold)
            waiting.clear()
        while empty:
            yield empty.popleft(), ()
    yield from ((task, ()) for task in empty)
    if waiting:
        yield from _with_words(waiting, model, tokenizer, options, hallucination_silence_threshold)


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
    """Recordings of at most a window, (samples,) each → (batch, positions, width); each as loud as it is by itself."""
    padded = np.zeros((len(audios), samples_per_window(model)), np.float32)
    for row, audio in zip(padded, audios, strict=True):
        row[: audio.size] = audio[: row.size]
    return model.encoder(log_mel(mx.array(padded), model.args.n_mels, samples=None))


def _jobs(
    tasks: Iterable[Task], model: Model, batch_size: int, multilingual: bool, empty: deque[Task]
) -> Iterator[Job]:
    """Tasks, a batch of them encoded at a time, as rows for the decoder; those without sound go to `empty`."""
    numbered = enumerate(tasks)
    limit = samples_per_window(model)
    while group := list(islice(numbered, batch_size)):
        for _, task in group:
            if task.audio.size > limit + HOP_LENGTH:  # times in seconds are not that exact
                said = f"a chunk of {task.audio.size / SAMPLE_RATE:g} s: this model hears {limit / SAMPLE_RATE:g} s"
                raise OptionError(f"{said} at once; choose a smaller chunk_size")
        empty.extend(task for _, task in group if task.audio.size < INPUT_STRIDE * HOP_LENGTH)
        group = [(index, task) for index, task in group if task.audio.size >= INPUT_STRIDE * HOP_LENGTH]
        if not group:
            continue
        new = [task.audio for _, task in group if task.encoded is None]
        fresh = iter(_rows(encode(new, model)) if new else [])
        rows = [task.encoded if task.encoded is not None else next(fresh) for _, task in group]
        for (index, task), row in zip(group, rows, strict=True):
            language = None if multilingual else task.language  # the decoder detects what is None
            # the number of the task, not its place in a batch, so that any batch size draws the same samples
            yield Job(row, language, key=task, seed=index if task.seed is None else task.seed)


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


def _segments_of_chunk(
    chunk: Chunk, result: DecodingResult, tokenizer: Tokenizer, options: DecodingOptions
) -> list[Segment]:
    """Unlike in `sequential`, where the next window hears it again, a piece without an end lasts to the chunk's end."""
    if is_silence(result, options):
        return []
    begin, tokens = tokenizer.timestamp_begin, result.tokens
    if options.without_timestamps:  # no rule keeps the decoder from saying some
        tokens = tuple(token for token in tokens if token < tokenizer.eot)
    pieces, used = split_at_timestamps(tokens, begin, math.inf)
    if used is not None:
        pieces.append((_seconds(tokens[used], begin), math.inf, tokens[used:]))
    placed = [(min(chunk.start + a, chunk.end), min(chunk.start + b, chunk.end), tokens) for a, b, tokens in pieces]
    segments = [as_segment(*piece, result, tokenizer) for piece in placed]
    return [segment for segment in segments if segment.text and segment.start < segment.end]


def _with_words(
    waiting: Sequence[tuple[Job, list[Segment]]],
    model: Model,
    tokenizer: Tokenizer,
    options: DecodingOptions,
    threshold: float | None,
) -> Iterator[tuple[Task, tuple[Segment, ...]]]:
    """Give the segments of several chunks their words, in one pass of the decoder."""
    texts = [[t for segment in segments for t in segment.tokens if t < tokenizer.eot] for _, segments in waiting]
    how: dict[str, Any] = {"languages": [segments[0].language for _, segments in waiting], "task": options.task}
    how["num_frames"] = [job.key.audio.size // HOP_LENGTH for job, _ in waiting]
    encoded = mx.stack([job.encoded for job, _ in waiting])
    found = attention.find_alignment(encoded, texts, model, tokenizer, **how)
    for (job, segments), timings in zip(waiting, found, strict=True):
        low, high = job.key.chunk.start, job.key.chunk.end
        placed = attention.place_words(segments, timings, offset=low, last_speech=low, tokenizer=tokenizer)
        placed = placed if threshold is None else _believed(placed, job.key.chunk, threshold)
        yield job.key, tuple(attention.tidy_segments(placed, low, high))


def _believed(segments: Sequence[Segment], chunk: Chunk, threshold: float) -> list[Segment]:
    """Without those that openai/whisper's `transcribe` skips for its `hallucination_silence_threshold`: anomalous ones
    between silences, or near the edge of what was heard."""
    kept, last_end = [], chunk.start
    for k, segment in enumerate(segments):
        following = attention.next_words_segment(segments[k + 1 :])
        pause = (following.words[0].start if following is not None else chunk.end) - segment.end
        before = segment.start - last_end > threshold or segment.start - chunk.start < EDGE
        after = pause > threshold or attention.is_anomalous(following) or chunk.end - segment.end < EDGE
        if not (attention.is_anomalous(segment) and before and after):
            kept.append(segment)
        last_end = segment.end
    return kept
