"""What Whisper may say next: openai/whisper's `SuppressBlank`, `SuppressTokens` and
`ApplyTimestampRules`.

They look at little of what was said, and this is kept as arrays, so that all hypotheses of a batch
are treated at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_speech.models.whisper import ModelArgs
from mlx_speech.ops.cpu import Array, in_numpy, in_parallel, module_of, numpy_views, suits_numpy
from mlx_speech.ops.log_sum_exp import (
    PART_SIZE,
    SMALLEST_FOR_NUMPY,
    in_parts,
    log_sum_exp_graph,
    log_sum_exp_numpy,
)
from mlx_speech.stages.whisper.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mlx_speech.stages.whisper.decode import DecodingOptions

SECONDS_PER_TIMESTAMP = 0.02  # also of a position of the encoder, however long the model's window is
BELOW_ALL_LOGITS = -1e30  # but above -inf, which marks what has been taken
NONE_YET = -1  # stands for a token where there is none


def top(logits: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """The k largest of a row and their indices, (..., k), from the largest; the first of equals
    first, also of -inf.

    logits : (..., vocabulary)

    Only the k parts with the largest maxima need to be searched.
    """
    parts = in_parts(logits)
    best_parts = mx.sort(_largest(parts.max(axis=-1), min(k, parts.shape[-2])), axis=-1)
    values = mx.take_along_axis(parts, best_parts[..., None], axis=-2).flatten(-2)
    places = _largest(values, k)
    indices = mx.take_along_axis(best_parts, places // PART_SIZE, axis=-1) * PART_SIZE + places % PART_SIZE
    return mx.take_along_axis(values, places, axis=-1), indices


def _largest(values: mx.array, k: int) -> mx.array:
    """The places of the k largest of a row, (..., k). One after the other: MLX's sorts do not keep
    equals in order."""
    values = mx.maximum(values, BELOW_ALL_LOGITS)
    index = mx.arange(values.shape[-1])
    chosen = []
    for _ in range(k):
        largest = mx.argmax(values, axis=-1, keepdims=True)
        chosen.append(largest)
        values = mx.where(index == largest, -mx.inf, values)
    return mx.concatenate(chosen, axis=-1)


@dataclass(frozen=True)
class State:
    """What the rules need to know of the tokens sampled so far, each (jobs, group), MLX's or NumPy's.

    count : how many
    last : the last of them, or -1
    latest : the last timestamp, or -1
    paired : whether the one before the last is a timestamp, or there is none
    """

    count: Any
    last: Any
    latest: Any
    paired: Any

    @classmethod
    def of(cls, sequences: Sequence[Sequence[Sequence[int]]], begin: int) -> State:
        """Of the hypotheses of some jobs, as lists of tokens; timestamps are from `begin`. Its arrays are MLX's."""
        return cls(
            count=_of_each(sequences, len),
            last=_of_each(sequences, _last_token),
            latest=_of_each(sequences, lambda tokens: _last_timestamp(tokens, begin)),
            paired=_of_each(sequences, lambda tokens: len(tokens) < 2 or tokens[-2] >= begin),
        )

    @property
    def arrays(self) -> list[Any]:
        """Count, last, latest and paired, as functions take them that know arrays only."""
        return [self.count, self.last, self.latest, self.paired]

    def after(self, tokens: Array, begin: int) -> State:
        """With one more token each, (jobs, group)."""
        return State(
            count=self.count + 1,
            last=tokens,
            latest=module_of(tokens).where(tokens >= begin, tokens, self.latest),
            paired=(self.count == 0) | (self.last >= begin),
        )

    def take(self, rows: Array) -> State:
        """Of the jobs with these indices, in this order."""
        return State(self.count[rows], self.last[rows], self.latest[rows], self.paired[rows])

    def put(self, rows: Array, new: State) -> State:
        """With `new` in place of the jobs with these indices."""
        return State(
            count=with_rows(self.count, rows, new.count),
            last=with_rows(self.last, rows, new.last),
            latest=with_rows(self.latest, rows, new.latest),
            paired=with_rows(self.paired, rows, new.paired),
        )


def with_rows(values: Array, rows: Array, new: Array) -> Any:
    """A copy of `values`, (jobs, …), whose rows with these indices are `new`; what was read of the
    old one stays."""
    changed: Any = module_of(values).array(values)
    changed[rows] = new
    return changed


def _of_each(sequences: Sequence[Sequence[Sequence[int]]], value: Callable[[Sequence[int]], int]) -> mx.array:
    """A value of every hypothesis, (jobs, group)."""
    return mx.array([[value(tokens) for tokens in group] for group in sequences])


def _last_token(tokens: Sequence[int]) -> int:
    return tokens[-1] if tokens else NONE_YET


def _last_timestamp(tokens: Sequence[int], begin: int) -> int:
    for token in reversed(tokens):
        if token >= begin:
            return token
    return NONE_YET


class Rules:
    """openai/whisper's `SuppressBlank`, `SuppressTokens` and `ApplyTimestampRules`, for all
    hypotheses at once.

    tokenizer, args : of the model
    options : of which those that say what is never said, and which timestamps there are; equal for
        a whole batch

    limits : what follows from them; begin : the first timestamp; eot : the end of text; vocab : how
        many tokens the model knows; last_first : the last timestamp that a text may begin with
    """

    def __init__(self, tokenizer: Tokenizer, options: DecodingOptions, args: ModelArgs) -> None:
        self.begin = tokenizer.timestamp_begin
        self.eot = tokenizer.eot
        self.vocab = args.n_vocab
        never = suppressed_tokens(tokenizer, options)
        if not options.without_timestamps:
            never.append(tokenizer.no_timestamps)
        never_first = list(never)
        if options.suppress_blank:
            never_first += [*tokenizer.encode(" "), tokenizer.eot]
        self.last_first = self.begin + self.vocab  # no limit
        if options.max_initial_timestamp:
            steps = round(options.max_initial_timestamp / SECONDS_PER_TIMESTAMP)
            self.last_first = self.begin + steps
        self.limits = Limits(
            never=self._marked(never),
            never_first=self._marked(never_first),
            begin=self.begin,
            eot=self.eot,
            last_first=self.last_first,
            timestamps=not options.without_timestamps,
        )

    def _marked(self, tokens: Iterable[int]) -> mx.array:
        """True where a token is one of `tokens`, (vocabulary,)."""
        marked = np.zeros(self.vocab, dtype=bool)
        marked[[token for token in tokens if token < self.vocab]] = True
        return mx.array(marked)

    def __call__(self, logits: mx.array, state: State) -> tuple[mx.array, mx.array]:
        """As `Limits.apply`."""
        return self.limits.apply(logits, state)


class Bounds(NamedTuple):
    """What the rules look at of the next token of every hypothesis, each (jobs, group), MLX's or
    NumPy's.

    first : whether it is the first of its text
    lowest_text, lowest_time, highest : the lowest token, the lowest timestamp and the highest one
        that are allowed
    """

    first: Any
    lowest_text: Any
    lowest_time: Any
    highest: Any


class Limits(NamedTuple):
    """`Rules` as arrays and numbers, which functions that MLX compiles take.

    never, never_first : (vocabulary,) True where a token is never said, or not as the first
    begin, eot, last_first : tokens, as of `Rules`
    timestamps : whether there are any
    """

    never: mx.array
    never_first: mx.array
    begin: int
    eot: int
    last_first: int
    timestamps: bool

    def apply(self, logits: Array, state: State) -> tuple[Any, Any]:
        """logits (jobs, group, vocabulary) → with -inf for what is forbidden; the logarithm of the
        sum of what is left, (jobs, group, 1), which makes them log-probabilities. MLX's or NumPy's, as
        the logits are."""
        if isinstance(logits, np.ndarray):
            made = self.apply_numpy(logits, *state.arrays)
            return made[..., :-1], made[..., -1:]
        if logits.size < SMALLEST_FOR_NUMPY or not suits_numpy(logits):
            return self._apply(logits, state)
        made = in_numpy(self.apply_numpy, self.apply_graph, logits, *state.arrays)
        return made[..., :-1], made[..., -1:]

    def best(self, logits: Array, state: State) -> tuple[Any, Any]:
        """logits (jobs, group, vocabulary) → the most probable token that is allowed, and its
        log-probability, each (jobs, group). MLX's or NumPy's, as the logits are."""
        made: Any
        if isinstance(logits, np.ndarray):
            made = self.best_numpy(logits, *state.arrays)
        elif logits.size < SMALLEST_FOR_NUMPY or not suits_numpy(logits):
            return self._best(logits, state)
        else:
            made = in_numpy(self.best_numpy, self.best_graph, logits, *state.arrays)
        return made[..., 0].astype(module_of(made).int32), made[..., 1]

    def apply_graph(self, logits: mx.array, *state: mx.array) -> mx.array:
        """As `apply_numpy`, as a graph of MLX."""
        return mx.concatenate(list(self._apply(logits, State(*state))), axis=-1)

    def apply_numpy(self, logits: np.ndarray, *state: np.ndarray) -> np.ndarray:
        """Both results of `apply` as one array, (jobs, group, vocabulary + 1), in NumPy.

        logits : (jobs, group, vocabulary)
        state : `State.arrays`
        """
        jobs, group, vocab = logits.shape
        made = np.empty((jobs, group, vocab + 1), np.float32)
        limit = self._limiter(vocab, state)

        def compute(place: tuple[int, ...]) -> None:
            own = made[place][:vocab]
            own[:] = logits[place]
            made[place][vocab] = limit(own, place)

        in_parallel(compute, np.ndindex(jobs, group))
        return made

    def best_graph(self, logits: mx.array, *state: mx.array) -> mx.array:
        """As `best_numpy`, as a graph of MLX."""
        tokens, logprobs = self._best(logits, State(*state))
        return mx.stack([tokens.astype(mx.float32), logprobs], axis=-1)

    def best_numpy(self, logits: np.ndarray, *state: np.ndarray) -> np.ndarray:
        """Both results of `best` as one array, (jobs, group, 2), in NumPy: float32 holds every token.

        logits : (jobs, group, vocabulary)
        state : `State.arrays`
        """
        jobs, group, vocab = logits.shape
        made = np.empty((jobs, group, 2), np.float32)
        limit = self._limiter(vocab, state)

        def compute(place: tuple[int, ...]) -> None:
            own = logits[place].copy()
            normaliser = limit(own, place)
            token = own.argmax()
            with np.errstate(invalid="ignore"):  # where nothing is allowed, -inf less -inf
                made[place] = token, own[token] - normaliser

        in_parallel(compute, np.ndindex(jobs, group))
        return made

    def _limiter(
        self, vocab: int, state: Sequence[np.ndarray]
    ) -> Callable[[np.ndarray, tuple[int, ...]], np.floating[Any]]:
        """`apply` for one hypothesis, in place: a function of its logits, (vocabulary,), and its
        place, (job, number in the group), that returns the logarithm of the sum of what is left.

        state : `State.arrays`
        """
        never, never_first = numpy_views([self.never, self.never_first])
        bounds = self._bounds(np.where, vocab, *state)

        def limit(logits: np.ndarray, place: tuple[int, ...]) -> np.floating[Any]:
            np.copyto(logits, -np.inf, where=never_first if bounds.first[place] else never)
            if not self.timestamps:
                return log_sum_exp_numpy(logits)[0]
            text = logits[: self.begin]
            times = logits[self.begin :]
            logits[: bounds.lowest_text[place]] = -np.inf
            logits[self.begin : bounds.lowest_time[place]] = -np.inf
            logits[bounds.highest[place] + 1 :] = -np.inf
            total_times = log_sum_exp_numpy(times)[0]
            total = np.logaddexp(log_sum_exp_numpy(text)[0], total_times)
            with np.errstate(invalid="ignore"):  # where nothing is allowed, -inf less -inf
                only_times = total_times - total > text.max() - total
            if not only_times:
                return total
            text[:] = -np.inf
            return total_times

        return limit

    def _apply(self, logits: mx.array, state: State) -> tuple[mx.array, mx.array]:
        """`apply` as a graph of MLX."""
        bounds = self._bounds(mx.where, logits.shape[-1], *state.arrays)
        forbidden = mx.where(bounds.first[..., None], self.never_first, self.never)
        if not self.timestamps:
            logits = mx.where(forbidden, -mx.inf, logits)
            return logits, log_sum_exp_graph(logits)
        ids = mx.arange(logits.shape[-1])
        forbidden = forbidden | (ids < bounds.lowest_text[..., None])
        forbidden = forbidden | ((ids >= self.begin) & (ids < bounds.lowest_time[..., None]))
        forbidden = forbidden | (ids > bounds.highest[..., None])
        logits = mx.where(forbidden, -mx.inf, logits)
        text = logits[..., : self.begin]
        times = logits[..., self.begin :]
        total_times = log_sum_exp_graph(times)
        total = mx.logaddexp(log_sum_exp_graph(text), total_times)
        # a timestamp, if all of them together are more probable than any text
        only_times = total_times - total > text.max(axis=-1, keepdims=True) - total
        logits = mx.where(only_times & (ids < self.begin), -mx.inf, logits)
        return logits, mx.where(only_times, total_times, total)

    def _best(self, logits: mx.array, state: State) -> tuple[mx.array, mx.array]:
        """`best` as a graph of MLX."""
        limited, normaliser = self._apply(logits, state)
        tokens = mx.argmax(limited, axis=-1, keepdims=True)
        logprobs = mx.take_along_axis(limited, tokens, axis=-1) - normaliser
        return tokens[..., 0].astype(mx.int32), logprobs[..., 0]

    def _bounds(self, where: Callable[..., Any], vocab: int, count: Any, last: Any, latest: Any, paired: Any) -> Bounds:
        """From `State.arrays`, which are MLX's or NumPy's, as `where` is.

        Timestamps come in pairs, except before the end of the text; they do not decrease, and
        increase in a pair.
        """
        first = count == 0
        after_time = last >= self.begin
        open_pair = after_time & ~paired
        lowest_text = where(first, self.begin, where(open_pair, self.eot, 0))
        following = latest + where(open_pair, 0, 1)
        lowest_time = where(latest >= 0, following, self.begin)
        lowest_time = where(after_time & paired, vocab, lowest_time)
        highest = where(first, self.last_first, vocab)
        return Bounds(first, lowest_text, lowest_time, highest)


def suppressed_tokens(tokenizer: Tokenizer, options: DecodingOptions) -> list[int]:
    """Tokens that are never sampled.

    Source: openai/whisper `DecodingTask._get_suppress_tokens`; numerals: WhisperX.
    """
    asked = options.suppressed()
    tokens = [token for token in asked if token >= 0]
    if -1 in asked:
        tokens += tokenizer.non_speech_tokens
    if options.suppress_numerals:
        tokens += tokenizer.numeral_tokens
    if tokens:
        tokens += [tokenizer.transcribe, tokenizer.translate, tokenizer.sot]
        tokens += [tokenizer.sot_prev, tokenizer.sot_lm, tokenizer.no_speech]
    return tokens
