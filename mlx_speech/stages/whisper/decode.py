"""Encoded audio → tokens, at one temperature: prompts, languages, and the best of what is found.

Results are those of openai/whisper's `decoding.py`, job by job: the rules for blanks, suppressed
tokens and timestamps, and the ranking of hypotheses. What differs is the order of work, which
`search` does.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech.errors import OptionError, in_range
from mlx_speech.models.whisper import Model
from mlx_speech.models.whisper_cache import Audio
from mlx_speech.stages.whisper.options import DecodingOptions as DecodingOptions
from mlx_speech.stages.whisper.rules import Rules
from mlx_speech.stages.whisper.search import Batch, Beams, Entry, Hypothesis, Samples, SearchResult
from mlx_speech.stages.whisper.tokenizer import Tokenizer
from mlx_speech.stages.whisper.workload import Workload


@dataclass(frozen=True, eq=False)
class Job:
    """One chunk of audio to decode.

    encoded : (positions, width), the encoder's output
    language : its code; None: it is detected
    prompt : tokens of the text before; prefix : tokens that the text begins with. Empty: those of
        the options
    key : anything, for the caller
    seed : with the seed of the options, what samples depend on
    options : its own; None: those of whoever decodes it. The `group` has to be the same
    owner : whose it is, where jobs of several owners are decoded together
    tries_unlikely : whether an unlikely text is tried again at higher temperatures, as a repetitive one
        always is
    """

    encoded: mx.array
    language: str | None
    prompt: tuple[int, ...] = ()
    prefix: tuple[int, ...] = ()
    key: Any = None
    seed: int = 0
    options: DecodingOptions | None = None
    owner: Hashable = None
    tries_unlikely: bool = True


@dataclass(frozen=True)
class DecodingResult:
    """What was heard (openai/whisper's `DecodingResult`).

    tokens : text and timestamps, without the end of text
    avg_logprob : mean log-probability of the tokens and the end of text
    no_speech_prob : probability of silence
    compression_ratio : of the text, high where it repeats itself
    token_logprobs : the log-probability of each of the tokens
    audio : what the decoder attended to, for the times of the words; None where it would have to be copied
    """

    tokens: tuple[int, ...]
    text: str
    language: str | None
    avg_logprob: float
    no_speech_prob: float
    temperature: float
    compression_ratio: float
    token_logprobs: tuple[float, ...] = ()
    audio: Audio | None = field(default=None, repr=False, compare=False)


def compression_ratio(text: str) -> float:
    """Bytes of `text` by its bytes when compressed (openai/whisper `utils.compression_ratio`)."""
    data = text.encode("utf-8")
    return len(data) / len(zlib.compress(data))


def detect_language(encoded: mx.array, model: Model, tokenizer: Tokenizer) -> list[dict[str, float]]:
    """The probability of every language, for each row of encoded audio, (batch, positions, width).

    Raises `OptionError` for a model that knows English only. Source: openai/whisper
    `decoding.detect_language`.
    """
    if not tokenizer.multilingual:
        raise OptionError("this model knows English only, it cannot detect a language: give none")
    logits = model.decoder(mx.full((encoded.shape[0], 1), tokenizer.sot, mx.int32), encoded)[:, 0]
    codes = list(tokenizer.languages)
    tokens = mx.array([tokenizer.languages[code] for code in codes])
    probabilities = mx.softmax(logits[:, tokens], axis=-1)
    return [dict(zip(codes, row, strict=True)) for row in np.array(probabilities).tolist()]


# --- the prompt -----------------------------------------------------------------------------------


def initial_tokens(
    job: Job, language: str | None, tokenizer: Tokenizer, options: DecodingOptions, context: int
) -> list[int]:
    """[previous text], the language and the task, [prefix]. Source: openai/whisper
    `DecodingTask._get_initial_tokens`, and for hotwords faster-whisper's `get_prompt`.

    context : tokens that the decoder takes

    Raises `OptionError` where they leave no room in the context, and for a language that the model
    does not know.
    """
    most_previous = context // 2 - 1
    prefix = list(job.prefix)  # all of it, however many tokens are to follow
    if not prefix:
        prefix = _encoded(options.prefix, tokenizer)
        room = context // 2 - (options.sample_len or context // 2)
        if room > 0:
            prefix = prefix[-room:]
    hotwords: list[int] = []
    if not prefix:
        hotwords = _encoded(options.hotwords, tokenizer)[:most_previous]
    previous = list(job.prompt) or _encoded(options.initial_prompt, tokenizer)
    too_many = len(hotwords) + len(previous) - most_previous
    previous = hotwords + previous[max(0, too_many) :]

    tokens: list[int] = []
    if previous:
        tokens = [tokenizer.sot_prev, *previous]
    tokens += tokenizer.sot_sequence(language, options.task)
    if options.without_timestamps:
        tokens.append(tokenizer.no_timestamps)
    if len(tokens) + len(prefix) > context:
        fitting = context - len(tokens)
        raise OptionError(f"prefix is {len(prefix)} tokens long: {fitting} fit behind the prompt, so shorten it")
    return tokens + prefix


def _encoded(text: str | None, tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(" " + text.strip()) if text else []


def check_tokens(options: DecodingOptions, tokenizer: Tokenizer, context: int, language: str | None = None) -> None:
    """Raises `OptionError` for a prefix that is too long, for suppressed tokens that there are not,
    and for a language that the model does not know.

    context : tokens that the decoder takes
    language : a code; None: any that the model knows
    """
    if language is None and tokenizer.multilingual:
        language = next(iter(tokenizer.languages))
    initial_tokens(Job(mx.zeros((0, 0)), language), language, tokenizer, options, context)
    for token in options.suppressed():
        if token >= tokenizer.n_vocab:
            last = tokenizer.n_vocab - 1
            raise OptionError(f"suppress_tokens has {token}: the model's go up to {last}")


# --- one temperature ------------------------------------------------------------------------------


class TemperatureDecoder:
    """Jobs at one temperature: 0 with beams or greedily, above 0 the best of several samples.

    options : of the jobs that bring none; all have the same `group`
    batch_size : jobs that are decoded at once
    workload : where turns are counted

    A job's result does not depend on the others.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        options: DecodingOptions,
        *,
        temperature: float,
        batch_size: int,
        workload: Workload | None = None,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._options = options
        self._temperature = temperature
        self._batch_size = batch_size
        self._workload = workload or Workload()
        self._rules = Rules(tokenizer, options, model.args)
        self._batch: Batch | None = None

    @property
    def jobs(self) -> list[Job]:
        """Those under way."""
        return [] if self._batch is None else [entry.key.job for entry in self._batch.entries]

    @property
    def room(self) -> int:
        """How many jobs may enter, if there are to be `batch_size` of them."""
        return max(0, self._batch_size - len(self.jobs))

    def enter(self, jobs: Sequence[Job]) -> None:
        """Begin to decode jobs. Raises `OptionError` as `initial_tokens` does."""
        if not jobs:
            return
        entries = self._entries(jobs)
        size = self._rows_for(len(self.jobs) + len(jobs))
        if self._batch is None:
            self._batch = self._new_batch(size)
        elif size > len(self._batch.rows):
            self._batch.resize(size)
        self._batch.enter(entries)

    def drop(self, owner: Hashable) -> None:
        """The owner's jobs leave: nothing of them comes back."""
        if self._batch is not None:
            self._batch.drop(lambda entry: entry.key.job.owner == owner)
            if not self._batch.entries:
                self._batch = None

    def advance(self) -> list[tuple[Job, DecodingResult]]:
        """Take a few steps; returns the jobs that are done. Rows that nobody has entered before are
        taken to stay free: where half of them are, or more, they are given up."""
        if self._batch is None:
            return []
        size = self._rows_for(len(self._batch.entries))
        if size < len(self._batch.rows):
            self._batch.resize(size)
        rows = len(self._batch.entries)
        steps = self._batch.steps
        done = [self._result(result) for result in self._batch.advance()]
        self._workload.see_turn(rows, self._batch_size, self._batch.steps - steps)
        if not self._batch.entries:
            self._batch = None  # it may be long until the next one: its memory is free until then
        return done

    def _rows_for(self, jobs: int) -> int:
        """Powers of two, as every size has kernels and buffers of its own; beyond the batch size as
        many as needed."""
        power_of_two = 1 << max(0, jobs - 1).bit_length()
        return max(jobs, min(power_of_two, self._batch_size))

    def _new_batch(self, size: int) -> Batch:
        no_speech = self._tokenizer.no_speech
        beam_size = self._options.beam_size
        if self._temperature == 0 and beam_size is not None:
            return Beams(
                self._model,
                self._rules,
                no_speech=no_speech,
                size=size,
                group=beam_size,
                candidates=self._options.candidates,
            )
        samples = 1
        if self._temperature > 0:
            samples = self._options.best_of or 1
        return Samples(
            self._model,
            self._rules,
            no_speech=no_speech,
            size=size,
            group=samples,
            temperature=self._temperature,
        )

    def _entries(self, jobs: Sequence[Job]) -> list[Entry]:
        context = self._model.args.n_text_ctx
        entries = []
        for job, language in zip(jobs, self._languages(jobs), strict=True):
            options = job.options or self._options
            prompt = initial_tokens(job, language, self._tokenizer, options, context)
            start = self._tokenizer.sot_sequence(language, options.task)
            longest = context - len(start) - 2  # a text that still fits when the times of its words are found
            entry = Entry(
                key=_Known(job, language),
                encoded=job.encoded,
                prompt=prompt,
                sot=prompt.index(self._tokenizer.sot),
                limit=min(options.sample_len or context // 2, context + 1 - len(prompt), longest),
                seeds=(options.seed % 2**64, job.seed % 2**64),
            )
            entries.append(entry)
        return entries

    def _languages(self, jobs: Sequence[Job]) -> list[str | None]:
        """Those of the jobs, detected where they have none."""
        if not self._tokenizer.multilingual:
            return ["en"] * len(jobs)
        languages = [job.language for job in jobs]
        unknown = [place for place, language in enumerate(languages) if language is None]
        if unknown:
            encoded = mx.stack([jobs[place].encoded for place in unknown])
            detected = detect_language(encoded, self._model, self._tokenizer)
            for place, probabilities in zip(unknown, detected, strict=True):
                languages[place] = max(probabilities, key=probabilities.__getitem__)
        return languages

    def _result(self, searched: SearchResult) -> tuple[Job, DecodingResult]:
        known: _Known = searched.entry.key
        options = known.job.options or self._options
        best = best_hypothesis(searched.hypotheses, options.length_penalty)
        text = self._tokenizer.decode(best.tokens).strip()
        result = DecodingResult(
            tokens=best.tokens,
            text=text,
            language=known.language,
            avg_logprob=best.total / (len(best.tokens) + 1),
            no_speech_prob=searched.no_speech_prob,
            temperature=self._temperature,
            compression_ratio=compression_ratio(text),
            token_logprobs=best.logprobs,
            audio=searched.audio,
        )
        return known.job, result


@dataclass(frozen=True, eq=False)
class _Known:
    """A job in a batch, and the language it is decoded in."""

    job: Job
    language: str | None


def best_hypothesis(hypotheses: Sequence[Hypothesis], length_penalty: float | None) -> Hypothesis:
    """The most probable one for its length (openai/whisper `MaximumLikelihoodRanker`)."""

    def score(hypothesis: Hypothesis) -> float:
        length = len(hypothesis.tokens)
        if length_penalty is None:
            return hypothesis.total / max(length, 1)
        return hypothesis.total / ((5 + length) / 6) ** length_penalty

    return max(hypotheses, key=score)


def decode(
    jobs: Iterable[Job],
    model: Model,
    tokenizer: Tokenizer,
    options: DecodingOptions,
    *,
    temperature: float = 0.0,
    batch_size: int = 8,
    workload: Workload | None = None,
) -> Iterator[tuple[Job, DecodingResult]]:
    """Decode every job at one temperature, as `TemperatureDecoder` does.

    Jobs are pulled as rows become free, at most `batch_size` at a time, and come back in any order.
    A job's result does not depend on the others. Raises `OptionError` where prompt and prefix leave
    no room in the decoder's context.
    """
    in_range(0, 100, temperature=temperature)
    in_range(1, math.inf, batch_size=batch_size)
    waiting = iter(jobs)
    decoder = TemperatureDecoder(
        model,
        tokenizer,
        options,
        temperature=temperature,
        batch_size=batch_size,
        workload=workload,
    )
    while True:
        decoder.enter(list(islice(waiting, decoder.room)))
        if not decoder.jobs:
            return
        yield from decoder.advance()
