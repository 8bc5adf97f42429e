"""Chunks that still grow → what they seem to say so far, those of many sessions at once.

Every round hears a chunk's sound from its beginning, in Whisper's whole window, greedily and without timestamps; the
words that are firm are forced. What comes of it is shown and forgotten: a chunk that is complete is recognised anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlx_speech.features import SAMPLE_RATE
from mlx_speech.models.whisper import Model
from mlx_speech.stages.whisper import batched, decode, word_times
from mlx_speech.stages.whisper.decode import DecodingOptions, DecodingResult, Job
from mlx_speech.stages.whisper.tokenizer import REPLACEMENT, Tokenizer
from mlx_speech.stages.whisper.word_times import WordTiming
from mlx_speech.stages.whisper.workload import Workload

TOKENS_PER_SECOND = 15  # at most: more are a loop
LEAST_TOKENS = 10
MAX_COMPRESSION = 2.4
MAX_SILENCE = 0.6  # probability of it
LEAST_LOGPROB = -1.0
TOKENS_AROUND = 8  # what the text stands between in the decoder's context


@dataclass(frozen=True, eq=False)
class Round:
    """A chunk to be heard as far as it goes.

    audio : (samples,), at most those of the model's window
    language : a code, or None to detect it
    firm : tokens that the text begins with
    key : anything, for the caller
    """

    audio: np.ndarray
    language: str | None
    firm: tuple[int, ...] = ()
    key: Any = None


def partial_options(options: DecodingOptions) -> DecodingOptions:
    """How rounds are decoded, where chunks that are complete are decoded by `options`: once, and greedily."""
    return replace(
        options,
        temperature=(0.0,),
        beam_size=None,
        patience=None,
        prefix=None,
        sample_len=None,
        without_timestamps=True,
    )


def hear(
    rounds: Sequence[Round],
    model: Model,
    tokenizer: Tokenizer,
    options: DecodingOptions,
    workload: Workload | None = None,
) -> list[list[WordTiming] | None]:
    """The words behind the firm ones, for every round; None where it went wrong and says nothing.

    options : as of `partial_options`
    workload : where the decoder's work is counted
    """
    encoded = batched.encode([one.audio for one in rounds], model)
    jobs: list[Job] = []
    for place, one in enumerate(rounds):
        limited = replace(options, sample_len=_most_tokens(one))
        jobs.append(Job(encoded[place], one.language, prefix=one.firm, key=place, options=limited))
    results: dict[int, DecodingResult] = {}
    for job, result in decode.decode(jobs, model, tokenizer, options, batch_size=len(jobs), workload=workload):
        results[job.key] = result
    texts: dict[int, tuple[int, ...]] = {}
    for place, one in enumerate(rounds):
        if not _has_failed(results[place], one, model.args.n_text_ctx):
            texts[place] = one.firm + results[place].tokens
    timings = word_times.find_alignment(
        encoded,
        [texts.get(place, ()) for place in range(len(rounds))],
        model,
        tokenizer,
        languages=[results[place].language for place in range(len(rounds))],
        task=options.task,
        num_frames=[one.audio.size // batched.HOP_LENGTH for one in rounds],
        audio=[results[place].audio for place in range(len(rounds))],
    )
    heard: list[list[WordTiming] | None] = [None] * len(rounds)
    for place in texts:
        heard[place] = _behind(timings[place], len(rounds[place].firm), tokenizer)
    return heard


def _most_tokens(one: Round) -> int:
    return LEAST_TOKENS + round(TOKENS_PER_SECOND * one.audio.size / SAMPLE_RATE)


def _has_failed(result: DecodingResult, one: Round, context: int) -> bool:
    """Whether it repeats itself, never ends, or heard silence. context : tokens that the decoder takes"""
    if result.compression_ratio > MAX_COMPRESSION or len(result.tokens) >= _most_tokens(one):
        return True
    if len(one.firm) + len(result.tokens) + TOKENS_AROUND > context:
        return True
    return result.no_speech_prob > MAX_SILENCE and result.avg_logprob < LEAST_LOGPROB


def _behind(words: Sequence[WordTiming], firm: int, tokenizer: Tokenizer) -> list[WordTiming]:
    """The words behind the firm tokens, without a character at the end whose last bytes are still to come.

    firm : tokens of the words before. What goes on in the last of them is a word of its own: it stays as it is
    """
    behind: list[WordTiming] = []
    tokens_so_far = 0
    for word in words:
        known = max(0, firm - tokens_so_far)
        tokens_so_far += len(word.tokens)
        rest = word.tokens[known:]
        if not rest:
            continue
        if known:
            word = replace(word, word=tokenizer.decode(rest), tokens=rest)
        behind.append(word)
    while behind and REPLACEMENT in behind[-1].word:
        behind.pop()
    return behind
