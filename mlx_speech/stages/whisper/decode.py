"""Encoded audio → tokens: greedy, sampled and beam search, over a running batch that jobs enter and leave.

Results are those of openai/whisper's `decoding.py`, job by job: the rules for blanks, suppressed tokens and timestamps,
the ranking of hypotheses, and the fallback over temperatures of its `transcribe.py`. What differs is the order of work:
a job that is done leaves its row to the next one, so that no row waits for the longest text of a batch, and everything
but the choice among beams stays on the device.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from numbers import Real
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech.errors import OptionError, in_range
from mlx_speech.ops.log_sum_exp import log_sum_exp
from mlx_speech.stages.whisper.rules import Rules, State, top

CHECK_EVERY = 4  # steps between looks at what was sampled: each look waits for the device


@dataclass(frozen=True)
class DecodingOptions:
    """How to decode; names and meanings are openai/whisper's, of its `DecodingOptions` and `transcribe`.

    task : "transcribe", or "translate" into English
    temperature : tried in turn until the result passes the thresholds; 0 decodes greedily or with beams
    sample_len : most tokens of a result; by default half of the decoder's context, 224
    best_of : samples at a temperature above 0, of which the best is taken
    beam_size, patience : of the beam search at temperature 0; without a size it is greedy
    length_penalty : 0..1, the exponent of Google's NMT; by default log-probabilities are divided by the length
    suppress_tokens : ids, or text with ids and commas; -1 stands for all symbols that are not spoken; empty: none
    suppress_blank : no text begins with a space or is empty
    suppress_numerals : numbers are spelled out (WhisperX)
    without_timestamps : text only
    max_initial_timestamp : seconds, the latest start of the text; None or 0: no limit
    compression_ratio_threshold, logprob_threshold : a result above the one or below the other has failed; None: never
    no_speech_threshold : but above this probability of silence, a low log-probability is no failure
    initial_prompt, prefix : text before the audio, and the beginning of its text, for jobs that bring none
    hotwords : text before the prompt, where there is no prefix (faster-whisper)
    seed : of the samples

    Raises `OptionError`, naming the option, for values out of range.
    """

    task: str = "transcribe"
    temperature: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    sample_len: int | None = None
    best_of: int | None = 5
    beam_size: int | None = None
    patience: float | None = None
    length_penalty: float | None = None
    suppress_tokens: str | tuple[int, ...] = "-1"
    suppress_blank: bool = True
    suppress_numerals: bool = False
    without_timestamps: bool = False
    max_initial_timestamp: float | None = 1.0
    compression_ratio_threshold: float | None = 2.4
    logprob_threshold: float | None = -1.0
    no_speech_threshold: float | None = 0.6
    initial_prompt: str | None = None
    prefix: str | None = None
    hotwords: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.temperature, Real):
            object.__setattr__(self, "temperature", (float(self.temperature),))
        if self.task not in ("transcribe", "translate"):
            raise OptionError(f"task is {self.task!r}: it has to be transcribe or translate")
        if not self.temperature:
            raise OptionError("temperature is empty: give at least one, such as 0")
        for temperature in self.temperature:
            in_range(0, 100, temperature=temperature)
        size, patience = self.beam_size, self.patience
        in_range(1, math.inf, sample_len=self.sample_len)
        in_range(1, 100, best_of=self.best_of, beam_size=size)
        in_range(0, 100, patience=patience)
        in_range(0, 1, length_penalty=self.length_penalty)
        in_range(0, 30, max_initial_timestamp=self.max_initial_timestamp)
        if patience is not None and size is None:
            raise OptionError("patience needs beam_size: give both or neither")
        if size is not None and self._candidates() < 1:
            raise OptionError(f"patience {patience} with beam_size {size} leaves no candidates: raise it")
        self.suppressed()

    def _candidates(self) -> int:
        """Finished beams that end the search."""
        return round((self.beam_size or 1) * (self.patience or 1.0))

    def suppressed(self) -> list[int]:
        """`suppress_tokens` as a list. Raises `OptionError` where they are no ids."""
        given = self.suppress_tokens
        try:
            return [int(token) for token in (given.split(",") if isinstance(given, str) else given) if token != ""]
        except (TypeError, ValueError) as error:
            raise OptionError(f"suppress_tokens is {given!r}: give ids with commas, such as -1,50257") from error


@dataclass(frozen=True, eq=False)
class Job:
    """One chunk of audio to decode.

    encoded : (positions, width), the encoder's output
    language : its code; None: it is detected
    prompt : tokens of the text before; prefix : tokens that the text begins with. Empty: those of the options
    key : anything, for the caller
    seed : with the seed of the options, what samples depend on
    """

    encoded: mx.array
    language: str | None
    prompt: tuple[int, ...] = ()
    prefix: tuple[int, ...] = ()
    key: Any = None
    seed: int = 0


@dataclass(frozen=True)
class DecodingResult:
    """What was heard (openai/whisper's `DecodingResult`).

    tokens : text and timestamps, without the end of text
    avg_logprob : mean log-probability of the tokens and the end of text
    no_speech_prob : probability of silence; compression_ratio : of the text, high where it repeats itself
    """

    tokens: tuple[int, ...]
    text: str
    language: str | None
    avg_logprob: float
    no_speech_prob: float
    temperature: float
    compression_ratio: float


def compression_ratio(text: str) -> float:
    """Bytes of `text` by its bytes when compressed (openai/whisper `utils.compression_ratio`)."""
    data = text.encode("utf-8")
    return len(data) / len(zlib.compress(data))


def detect_language(encoded: mx.array, model: Any, tokenizer: Any) -> list[dict[str, float]]:
    """The probability of every language, for each row of encoded audio, (batch, positions, width).

    Raises `OptionError` for a model that knows English only. Source: openai/whisper `decoding.detect_language`.
    """
    if not tokenizer.multilingual:
        raise OptionError("this model knows English only, it cannot detect a language: give none")
    logits = model.decoder(mx.full((encoded.shape[0], 1), tokenizer.sot, mx.int32), encoded)[:, 0]
    codes = list(tokenizer.languages)
    probabilities = mx.softmax(logits[:, mx.array([tokenizer.languages[code] for code in codes])], axis=-1)
    return [dict(zip(codes, row, strict=True)) for row in np.array(probabilities).tolist()]


def decode_with_fallback(
    jobs: Iterable[Job], model: Any, tokenizer: Any, options: DecodingOptions, *, batch_size: int = 8
) -> Iterator[tuple[Job, DecodingResult]]:
    """Decode every job at the first temperature that gives a result within the thresholds, or else at the last one.

    Jobs are pulled as rows become free and come back in any order. At most 2·batch_size are held: once `batch_size`
    have failed no new ones are pulled until these have been decoded at the temperatures that follow.
    Source: openai/whisper `transcribe.decode_with_fallback`.
    """
    jobs = iter(jobs)
    for job in jobs:
        failed: list[Job] = []
        current = chain([job], _while_few(jobs, failed, batch_size))
        for left, temperature in zip(reversed(range(len(options.temperature))), options.temperature, strict=True):
            results = decode(current, model, tokenizer, options, temperature=temperature, batch_size=batch_size)
            for done, result in results:
                if left and _needs_fallback(result, options):
                    failed.append(done)
                else:
                    yield done, result
            current, failed = failed, []


def _while_few(jobs: Iterator[Job], failed: list[Job], limit: int) -> Iterator[Job]:
    while len(failed) < limit and (job := next(jobs, None)) is not None:
        yield job


def _needs_fallback(result: DecodingResult, options: DecodingOptions) -> bool:
    repetitive, low = options.compression_ratio_threshold, options.logprob_threshold
    unlikely = low is not None and result.avg_logprob < low
    if unlikely and options.no_speech_threshold is not None and result.no_speech_prob > options.no_speech_threshold:
        return False
    return unlikely or (repetitive is not None and result.compression_ratio > repetitive)


def decode(
    jobs: Iterable[Job],
    model: Any,
    tokenizer: Any,
    options: DecodingOptions,
    *,
    temperature: float = 0.0,
    batch_size: int = 8,
) -> Iterator[tuple[Job, DecodingResult]]:
    """Decode every job at one temperature: 0 with beams or greedily, above 0 the best of several samples.

    Jobs are pulled as rows become free, at most `batch_size` at a time, and come back in any order. A job's result does
    not depend on the others. Raises `OptionError` where prompt and prefix leave no room in the decoder's context.
    """
    in_range(0, 100, temperature=temperature)
    in_range(1, math.inf, batch_size=batch_size)
    search, group = (_Samples, options.best_of or 1) if temperature > 0 else (_Beams, options.beam_size)
    if group is None:
        search, group = _Samples, 1
    jobs, batch = iter(jobs), None
    while True:
        free = batch_size - (batch.active if batch else 0)
        new = list(islice(jobs, free))
        if batch is None:
            if not new:
                return
            batch = search(model, tokenizer, options, temperature, min(_bucket(len(new)), batch_size), group)
        if new:
            batch.enter(new)
        if len(new) < free:  # nothing is waiting
            batch.shrink()
        yield from batch.advance()
        if len(new) < free and not batch.active:
            return


def _bucket(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()


def _initial_tokens(
    job: Job, language: str | None, tokenizer: Any, options: DecodingOptions, context: int
) -> list[int]:
    """[previous text], the language and the task, [prefix]. Source: openai/whisper `DecodingTask._get_initial_tokens`,
    and for hotwords faster-whisper's `get_prompt`."""

    def encoded(text: str | None) -> list[int]:
        return tokenizer.encode(" " + text.strip()) if text else []

    most = context // 2 - 1  # of the previous text
    prefix = list(job.prefix) or encoded(options.prefix)
    room = context // 2 - (options.sample_len or context // 2)
    prefix = prefix[-room:] if room > 0 else prefix
    hotwords = [] if prefix else encoded(options.hotwords)[:most]
    prompt = list(job.prompt) or encoded(options.initial_prompt)
    prompt = hotwords + prompt[max(0, len(prompt) - (most - len(hotwords))) :]
    tokens = [tokenizer.sot_prev, *prompt] if prompt else []
    tokens += tokenizer.sot_sequence(language, options.task)
    tokens += [tokenizer.no_timestamps] if options.without_timestamps else []
    if len(tokens) + len(prefix) > context:
        fitting = context - len(tokens)
        raise OptionError(f"prefix is {len(prefix)} tokens long: {fitting} fit behind the prompt, so shorten it")
    return tokens + prefix


def check_tokens(options: DecodingOptions, tokenizer: Any, context: int) -> None:
    """Raises `OptionError` for a prefix that is too long, and for suppressed tokens that there are not.

    context : tokens that the decoder takes
    """
    language = next(iter(tokenizer.languages)) if tokenizer.multilingual else None
    _initial_tokens(Job(mx.zeros((0, 0)), language), language, tokenizer, options, context)
    for token in options.suppressed():
        if token >= tokenizer.n_vocab:
            raise OptionError(f"suppress_tokens has {token}: the model's go up to {tokenizer.n_vocab - 1}")


# --- the running batch ------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Row:
    """A job that is being decoded.

    limit : most tokens; tokens : of each hypothesis, sampled so far, without the end of text; totals : the sums of
    their log-probabilities; finished : complete beams
    """

    job: Job
    language: str | None
    limit: int
    no_speech: mx.array
    tokens: list[list[int]]
    totals: np.ndarray
    finished: list[tuple[list[int], float]] = field(default_factory=list)
    steps: int = 0


class _Batch:
    """The rows of a window, each with a job or free; `_Samples` and `_Beams` say how tokens are chosen."""

    def __init__(self, model: Any, tokenizer: Any, options: DecodingOptions, temperature: float, size: int, group: int):
        self.model, self.tokenizer, self.options, self.temperature = model, tokenizer, options, temperature
        self.group = group  # hypotheses of a job
        self.rules = Rules(tokenizer, options, model.args)
        self.rows: list[_Row | None] = [None] * size
        self.window = model.decoder.new_cache(size, self.group)

    @property
    def active(self) -> int:
        return sum(row is not None for row in self.rows)

    def enter(self, jobs: list[Job]) -> None:
        """Prefill the prompts of `jobs` in free rows and choose their first tokens."""
        context = self.model.args.n_text_ctx
        encoded = mx.stack([job.encoded for job in jobs])
        languages = self._languages(jobs, encoded)
        pairs = zip(jobs, languages, strict=True)
        prompts = [_initial_tokens(*pair, self.tokenizer, self.options, context) for pair in pairs]
        limits = [min(self.options.sample_len or context // 2, context + 1 - len(prompt)) for prompt in prompts]
        at = [prompt.index(self.tokenizer.sot) for prompt in prompts]
        free = [index for index, row in enumerate(self.rows) if row is None][: len(jobs)]
        logits, at_sot = self.model.decoder.prefill(self.window, free, encoded, prompts, at)
        silence = mx.exp(at_sot - log_sum_exp(at_sot))[:, self.tokenizer.no_speech]
        mx.async_eval(silence)
        for row, index in enumerate(free):
            empty = [[] for _ in range(self.group)]
            totals = np.zeros(self.group, dtype=np.float32)
            self.rows[index] = _Row(jobs[row], languages[row], limits[row], silence[row], empty, totals)
        self.begin(free, logits[:, None])

    def _languages(self, jobs: list[Job], encoded: mx.array) -> list[str | None]:
        languages = [job.language for job in jobs]
        if not self.tokenizer.multilingual:
            return ["en"] * len(languages)
        unknown = [index for index, language in enumerate(languages) if language is None]
        if unknown:
            found = detect_language(encoded[mx.array(unknown)], self.model, self.tokenizer)
            for index, probabilities in zip(unknown, found, strict=True):
                languages[index] = max(probabilities, key=probabilities.__getitem__)
        return languages

    def leave(self, index: int) -> None:
        """The row is free."""
        self.rows[index] = None
        self.window.leave(index)

    def shrink(self) -> None:
        """No job will enter any more: give up free rows where half of them or fewer are in use."""
        size = _bucket(self.active)
        if self.active and size < len(self.rows):
            kept = sorted(range(len(self.rows)), key=lambda index: self.rows[index] is None)[:size]
            self.rows = [self.rows[index] for index in kept]
            self.window.keep(kept)
            self.keep(kept)

    def result(self, row: _Row, tokens: list[int], total: float) -> tuple[Job, DecodingResult]:
        text, mean = self.tokenizer.decode(tokens).strip(), total / (len(tokens) + 1)
        silence, ratio = float(np.array(row.no_speech)), compression_ratio(text)
        return row.job, DecodingResult(tuple(tokens), text, row.language, mean, silence, self.temperature, ratio)

    def best(self, hypotheses: Sequence[tuple[list[int], float]]) -> tuple[list[int], float]:
        """The most probable one for its length (openai/whisper `MaximumLikelihoodRanker`)."""
        penalty = self.options.length_penalty

        def score(hypothesis: tuple[list[int], float]) -> float:
            length = len(hypothesis[0])
            return hypothesis[1] / (max(length, 1) if penalty is None else ((5 + length) / 6) ** penalty)

        return max(hypotheses, key=score)

    def begin(self, indices: list[int], logits: mx.array) -> None:
        """Choose the first tokens of the rows that have entered."""
        raise NotImplementedError

    def keep(self, indices: list[int]) -> None:
        """Only these rows stay, in this order; what is not with the rows follows."""

    def advance(self) -> list[tuple[Job, DecodingResult]]:
        raise NotImplementedError


class _Samples(_Batch):
    """The most probable token, or at a temperature above 0 independent samples. Source: `GreedyDecoder`.

    state, totals, limits, keys : of every hypothesis, (jobs, group), on the device
    pending : steps that nobody has looked at: tokens and totals, and whose they are
    """

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.state = State.of([[[self.rules.eot]] * self.group] * len(self.rows), self.rules.begin)
        shape = (len(self.rows), self.group)
        self.totals, self.limits, self.keys = (mx.zeros(shape, t) for t in (mx.float32, mx.int32, mx.uint32))
        self.pending: list[tuple[mx.array, mx.array, list[_Row | None]]] = []

    def begin(self, indices: list[int], logits: mx.array) -> None:
        rows = [row for row in (self.rows[index] for index in indices) if row is not None]
        state = State.of([row.tokens for row in rows], self.rules.begin)
        limits = mx.array([[row.limit] * self.group for row in rows])
        keys = mx.array(np.array([self._keys(row.job) for row in rows], dtype=np.uint32))
        logits = mx.broadcast_to(logits, (*limits.shape, logits.shape[-1]))
        state, totals = self._choose(logits, state, mx.zeros(limits.shape), limits, keys, rows)
        where = mx.array(indices)

        def put(old: mx.array, new: mx.array) -> mx.array:
            changed = mx.array(old)  # what is pending stays as it is
            changed[where] = new
            return changed

        self.state = State(*map(put, vars(self.state).values(), vars(state).values()))
        self.totals, self.limits, self.keys = map(put, (self.totals, self.limits, self.keys), (totals, limits, keys))

    def _keys(self, job: Job) -> list[int]:
        """A key for each sample: of the seeds and the temperature, not of the row or of what else is decoded."""
        seeds = [self.options.seed % 2**64, job.seed % 2**64, round(self.temperature * 1e6)]
        return np.random.SeedSequence(seeds).generate_state(self.group).tolist()

    def _choose(
        self, logits: mx.array, state: State, totals: mx.array, limits: mx.array, keys: mx.array, rows: list
    ) -> tuple[State, mx.array]:
        logits, normaliser = self.rules(logits, state)
        scores = logits / self.temperature + gumbel(keys, state.count, logits.shape[-1]) if self.temperature else logits
        tokens = mx.argmax(scores, axis=-1).astype(mx.int32)
        logprobs = (mx.take_along_axis(logits, tokens[..., None], axis=-1) - normaliser)[..., 0]
        going = (state.last != self.rules.eot) & (state.count < limits)
        tokens, totals = mx.where(going, tokens, self.rules.eot), totals + mx.where(going, logprobs, 0)
        state = state.after(tokens, self.rules.begin)
        mx.async_eval(totals, *vars(state).values())
        self.pending.append((tokens, totals, list(rows)))
        for row in filter(None, rows):
            row.steps += 1
        return state, totals

    def keep(self, indices: list[int]) -> None:
        where = mx.array(indices)
        self.state = State(*(value[where] for value in vars(self.state).values()))
        self.totals, self.limits, self.keys = self.totals[where], self.limits[where], self.keys[where]

    def advance(self) -> list[tuple[Job, DecodingResult]]:
        """Take steps until a job is done."""
        done: list[tuple[Job, DecodingResult]] = []
        while not done and self.active:
            unread = 0
            if any(row is not None and row.steps < row.limit for row in self.rows):
                logits = self.model.decoder.step(self.window, self.state.last)
                current = self.state, self.totals, self.limits, self.keys, self.rows
                self.state, self.totals = self._choose(logits, *current)
                unread = 1  # the device has work while the others are read
            if not unread or len(self.pending) > CHECK_EVERY:
                done = self._read(len(self.pending) - unread)
        return done

    def _read(self, steps: int) -> list[tuple[Job, DecodingResult]]:
        """Look at the tokens of the oldest steps; the jobs that are done leave."""
        done = []
        for tokens, totals, rows in self.pending[:steps]:
            chosen, sums = np.array(tokens), np.array(totals)
            for row, new, total in zip(rows, chosen.tolist(), sums, strict=True):
                if row is None or row not in self.rows:
                    continue
                for sequence, token in zip(row.tokens, new, strict=True):
                    sequence.append(token)
                row.totals = total
                if all(sequence[-1] == self.rules.eot or len(sequence) >= row.limit for sequence in row.tokens):
                    self.leave(self.rows.index(row))
                    done.append(self._finish(row))
        del self.pending[:steps]
        return done

    def _finish(self, row: _Row) -> tuple[Job, DecodingResult]:
        eot = self.rules.eot
        texts = [tokens[: tokens.index(eot)] if eot in tokens else tokens for tokens in row.tokens]
        return self.result(row, *self.best(list(zip(texts, row.totals.tolist(), strict=True))))


def gumbel(keys: mx.array, step: mx.array, vocab: int) -> mx.array:
    """Gumbel noise for one token of every hypothesis, from its key and its step; both (jobs, group).

    Returns (jobs, group, vocab). The token with the largest sum of logit and noise is a sample of the softmax.
    """
    pairs = mx.stack([keys.astype(mx.uint32), step.astype(mx.uint32)], axis=-1).reshape(-1, 2)
    noise = mx.vmap(lambda key: mx.random.gumbel((vocab,), key=key))(pairs)
    return noise.reshape(*keys.shape, vocab)


class _Beams(_Batch):
    """Beam search with patience (Kasai et al. 2022). Source: `BeamSearchDecoder`.

    Of every beam the best beam_size + 1 tokens come to the host at each step, and nothing else.
    """

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.candidates = self.options._candidates()
        self.done: list[tuple[Job, DecodingResult]] = []

    def begin(self, indices: list[int], logits: mx.array) -> None:
        state = State.of([[[]] for _ in indices], self.rules.begin)  # all beams are still the same
        values, tokens = self._top(logits, state)
        for row, index in enumerate(indices):
            self._select(index, values[row], tokens[row])

    def advance(self) -> list[tuple[Job, DecodingResult]]:
        """Take steps until a job is done."""
        while not self.done and self.active:
            sequences = [row.tokens if row else [[self.rules.eot]] * self.group for row in self.rows]
            last = mx.array([[tokens[-1] for tokens in group] for group in sequences])
            logits = self.model.decoder.step(self.window, last)
            values, tokens = self._top(logits, State.of(sequences, self.rules.begin))
            sources = [self._select(index, values[index], tokens[index]) for index in range(len(self.rows))]
            if any(source != list(range(self.group)) for source in sources):
                self.window.reorder(mx.array(sources))
        done, self.done = self.done, []
        return done

    def _top(self, logits: mx.array, state: State) -> tuple[np.ndarray, np.ndarray]:
        """The best tokens of every beam and their log-probabilities, (jobs, beams, beam_size + 1)."""
        logits, normaliser = self.rules(logits, state)
        values, tokens = top(logits, self.group + 1)
        values = values - normaliser
        mx.eval(values, tokens)
        return np.array(values), np.array(tokens)

    def _select(self, index: int, values: np.ndarray, tokens: np.ndarray) -> list[int]:
        """The next beams of the row; returns which beams they continue."""
        row = self.rows[index]
        if row is None:
            return list(range(self.group))
        scores = row.totals[: len(values), None] + values
        order = np.argsort(-scores, axis=None, kind="stable").tolist()
        sources, kept, finished = [], [], []
        for beam, token, score in ((i // values.shape[1], tokens.flat[i], scores.flat[i]) for i in order):
            if token == self.rules.eot:
                finished.append((row.tokens[beam], float(score)))
                continue
            sources.append(beam)
            kept.append((int(token), score))
            if len(kept) == self.group:
                break
        row.finished += finished[: self.candidates - len(row.finished)]
        row.tokens = [[*row.tokens[beam], token] for beam, (token, _) in zip(sources, kept, strict=True)]
        row.totals = np.array([score for _, score in kept], dtype=np.float32)
        row.steps += 1
        if len(row.finished) >= self.candidates or row.steps >= row.limit:
            self.leave(index)
            self.done.append(self._finish(row))
        return sources

    def _finish(self, row: _Row) -> tuple[Job, DecodingResult]:
        missing = max(0, self.group - len(row.finished))  # where too few are complete, the best of the others
        row.finished += [(row.tokens[k], float(row.totals[k])) for k in np.argsort(row.totals)[::-1][:missing]]
        return self.result(row, *self.best(row.finished))
