"""Decoded tokens → segments, cut at timestamps by the rules of openai/whisper's `transcribe`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from mlx_speech.stages.whisper import word_times
from mlx_speech.stages.whisper.decode import DecodingOptions, DecodingResult
from mlx_speech.stages.whisper.rules import SECONDS_PER_TIMESTAMP
from mlx_speech.stages.whisper.tokenizer import Tokenizer
from mlx_speech.transcript import Chunk, Segment

LIKELY = -0.6  # avg_logprob of a text that is believed though no speech seems to be there; below it are made up ones
EDGE = 2.0  # seconds from the start or end of a window, where silence is taken for granted


def is_silence(result: DecodingResult, options: DecodingOptions) -> bool:
    """Whether the decoder heard no speech: it says so, and is not sure of the text (openai/whisper
    `transcribe`)."""
    most_silent = options.no_speech_threshold
    silent = most_silent is not None and result.no_speech_prob > most_silent
    least_sure = options.logprob_threshold
    sure = least_sure is not None and result.avg_logprob > least_sure
    return silent and not sure


def ends_with_single_timestamp(tokens: Sequence[int], timestamp_begin: int) -> bool:
    """Whether nobody speaks after the last timestamp: text and it are the last two tokens."""
    return [token >= timestamp_begin for token in tokens[-2:]] == [False, True]


def split_at_timestamps(
    tokens: Sequence[int], timestamp_begin: int, duration: float
) -> tuple[list[tuple[float, float, tuple[int, ...]]], int | None]:
    """A window's tokens, cut between every two neighbouring timestamps (openai/whisper
    `transcribe`).

    tokens : text and timestamps, as decoded
    duration : of the audio in the window, in seconds
    Returns (start, end, tokens) of each piece, in seconds of the window, and how many tokens they
    take up where they leave out an unfinished piece at the end, else None.
    """
    is_time = [token >= timestamp_begin for token in tokens]
    times = [_seconds(token, timestamp_begin) for token in tokens]
    cuts = [k for k in range(1, len(tokens)) if is_time[k - 1] and is_time[k]]
    if not cuts:
        timestamps = [token for token in tokens if token >= timestamp_begin]
        last = _seconds(timestamps[-1], timestamp_begin) if timestamps else 0.0
        return [(0.0, last or duration, tuple(tokens))], None
    bounds = [0, *cuts]
    used = cuts[-1]
    if ends_with_single_timestamp(tokens, timestamp_begin):
        bounds.append(len(tokens))
        used = None
    pieces = []
    for first, end in pairwise(bounds):
        start = times[first] if is_time[first] else 0.0
        pieces.append((start, times[end - 1], tuple(tokens[first:end])))
    return pieces, used


def as_segment(
    start: float,
    end: float,
    tokens: tuple[int, ...],
    result: DecodingResult,
    tokenizer: Tokenizer,
    token_logprobs: tuple[float, ...] = (),
) -> Segment:
    """A piece of what was decoded, from start to end in seconds; `tokens` may hold timestamps.

    token_logprobs : of these tokens, those that are known
    """
    text = tokenizer.decode(tokens)
    return Segment(
        start,
        end,
        text.strip(),
        tokens=tokens,
        spaced=text[:1].isspace(),
        language=result.language,
        temperature=result.temperature,
        avg_logprob=result.avg_logprob,
        compression_ratio=result.compression_ratio,
        no_speech_prob=result.no_speech_prob,
        token_logprobs=token_logprobs,
    )


def _seconds(token: int, timestamp_begin: int) -> float:
    return (token - timestamp_begin) * SECONDS_PER_TIMESTAMP


def segments_of_chunk(
    chunk: Chunk, result: DecodingResult, tokenizer: Tokenizer, options: DecodingOptions
) -> list[Segment]:
    """What was decoded of a chunk, in seconds of the recording; nothing where it is silent.

    Unlike in `longform`, where the next window hears it again, a piece without an end lasts to the
    chunk's end. What is stamped behind the sound was not said in it, and is left out.
    """
    if is_silence(result, options):
        return []
    begin = tokenizer.timestamp_begin
    tokens = result.tokens
    logprobs = result.token_logprobs
    if options.without_timestamps:  # no rule keeps the decoder from saying some
        tokens = tuple(token for token in tokens if token < tokenizer.eot)
        pairs = zip(result.token_logprobs, result.tokens, strict=False)
        logprobs = tuple(logprob for logprob, token in pairs if token < tokenizer.eot)
    pieces, used = split_at_timestamps(tokens, begin, math.inf)
    if used is not None:
        pieces.append((_seconds(tokens[used], begin), math.inf, tokens[used:]))
    segments = []
    place = 0  # of the piece, among the tokens
    for start, end, piece in pieces:
        piece_logprobs = logprobs[place : place + len(piece)]
        place += len(piece)
        start = min(chunk.start + start, chunk.end)
        end = min(chunk.start + end, chunk.end)
        segment = as_segment(start, end, piece, result, tokenizer, piece_logprobs)
        if segment.text and segment.start < segment.end:
            segments.append(segment)
    return segments


def is_sure(result: DecodingResult, options: DecodingOptions) -> bool:
    """Whether a second hearing may add its text: it is likely where the decoder takes the sound for
    silence, and has not failed.

    What the first hearing passed over is often no speech, and Whisper makes up text for what is
    none.
    """
    most_silent = options.no_speech_threshold
    silent = most_silent is not None and result.no_speech_prob > most_silent
    if silent and result.avg_logprob < LIKELY:
        return False
    least_sure = options.logprob_threshold
    if least_sure is not None and result.avg_logprob < least_sure:
        return False
    most_repetitive = options.compression_ratio_threshold
    return most_repetitive is None or result.compression_ratio <= most_repetitive


def believed(segments: Sequence[Segment], chunk: Chunk, threshold: float) -> list[Segment]:
    """Without those that openai/whisper's `transcribe` skips for its
    `hallucination_silence_threshold`: anomalous ones between silences, or near the edge of what was
    heard.

    segments : of the chunk, with words as of `word_times.place_words`
    threshold : seconds that a silence is longer than
    """
    kept = []
    last_end = chunk.start
    for k, segment in enumerate(segments):
        following = word_times.next_words_segment(segments[k + 1 :])
        next_start = chunk.end if following is None else following.words[0].start
        near_start = segment.start - chunk.start < EDGE
        near_end = chunk.end - segment.end < EDGE
        silence_before = segment.start - last_end > threshold
        silence_after = next_start - segment.end > threshold or word_times.is_anomalous(following)
        is_alone = (silence_before or near_start) and (silence_after or near_end)
        if not (word_times.is_anomalous(segment) and is_alone):
            kept.append(segment)
        last_end = segment.end
    return kept
