"""What Whisper may say next: openai/whisper's `SuppressBlank`, `SuppressTokens` and `ApplyTimestampRules`.

They look at little of what was said, and this is kept on the device, so that all hypotheses of a batch are treated at
once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech.ops.log_sum_exp import PART_SIZE, in_parts, log_sum_exp

SECONDS_PER_TIMESTAMP = 0.02  # also of a position of the encoder, however long the model's window is
LOWEST = -1e30  # below every logit, above -inf, which marks what has been taken


def top(logits: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """The k largest of a row and their indices, (..., k), from the largest; the first of equals first, also of -inf.

    Only the k parts with the largest maxima need to be searched.
    """
    parts = in_parts(logits)
    best = mx.sort(_first(parts.max(axis=-1), min(k, parts.shape[-2])), axis=-1)
    values = mx.take_along_axis(parts, best[..., None], axis=-2).flatten(-2)
    chosen = _first(values, k)
    indices = mx.take_along_axis(best, chosen // PART_SIZE, axis=-1) * PART_SIZE + chosen % PART_SIZE
    return mx.take_along_axis(values, chosen, axis=-1), indices


def _first(values: mx.array, k: int) -> mx.array:
    values, index, chosen = mx.maximum(values, LOWEST), mx.arange(values.shape[-1]), []
    for _ in range(k):
        chosen.append(mx.argmax(values, axis=-1, keepdims=True))
        values = mx.where(index == chosen[-1], -mx.inf, values)
    return mx.concatenate(chosen, axis=-1)


@dataclass
class State:
    """What the rules need to know of the tokens sampled so far, each (jobs, group).

    count : how many; last : the last of them, or -1; latest : the last timestamp, or -1
    paired : whether the one before the last is a timestamp, or there is none
    """

    count: mx.array
    last: mx.array
    latest: mx.array
    paired: mx.array

    @classmethod
    def of(cls, sequences: Sequence[Sequence[Sequence[int]]], begin: int) -> State:
        """Of the hypotheses of some jobs; timestamps are from `begin`."""

        def array(value: Callable[[Sequence[int]], int]) -> mx.array:
            return mx.array([[value(tokens) for tokens in group] for group in sequences])

        last = array(lambda tokens: tokens[-1] if tokens else -1)
        latest = array(lambda tokens: next((token for token in reversed(tokens) if token >= begin), -1))
        return cls(array(len), last, latest, array(lambda tokens: len(tokens) < 2 or tokens[-2] >= begin))

    def after(self, tokens: mx.array, begin: int) -> State:
        """With one more token each."""
        paired = (self.count == 0) | (self.last >= begin)
        return State(self.count + 1, tokens, mx.where(tokens >= begin, tokens, self.latest), paired)


class Rules:
    """openai/whisper's `SuppressBlank`, `SuppressTokens` and `ApplyTimestampRules`, for all hypotheses at once."""

    def __init__(self, tokenizer: Any, options: Any, args: Any):
        self.begin, self.eot, self.vocab = tokenizer.timestamp_begin, tokenizer.eot, args.n_vocab
        self.timestamps = not options.without_timestamps
        suppressed = suppressed_tokens(tokenizer, options)
        suppressed += [tokenizer.no_timestamps] if self.timestamps else []
        self.never = self._marked(suppressed)
        blank = [*tokenizer.encode(" "), tokenizer.eot] if options.suppress_blank else []
        self.never_first = self._marked(suppressed + blank)
        limit = options.max_initial_timestamp
        self.last_first = self.begin + (round(limit / SECONDS_PER_TIMESTAMP) if limit else self.vocab)

    def _marked(self, tokens: Iterable[int]) -> mx.array:
        marked = np.zeros(self.vocab, dtype=bool)
        marked[[token for token in tokens if token < self.vocab]] = True
        return mx.array(marked)

    def __call__(self, logits: mx.array, state: State) -> tuple[mx.array, mx.array]:
        """logits (jobs, group, vocabulary) → with -inf for what is forbidden; the logarithm of the sum of what is left,
        (jobs, group, 1), which makes them log-probabilities."""
        forbidden = mx.where((state.count == 0)[..., None], self.never_first, self.never)
        if not self.timestamps:
            logits = mx.where(forbidden, -mx.inf, logits)
            return logits, log_sum_exp(logits)
        ids = mx.arange(self.vocab)
        lowest_text, lowest, highest = (limit[..., None] for limit in self._limits(state))
        forbidden = forbidden | (ids < lowest_text) | ((ids >= self.begin) & (ids < lowest)) | (ids > highest)
        logits = mx.where(forbidden, -mx.inf, logits)
        text, times = logits[..., : self.begin], logits[..., self.begin :]
        total_times = log_sum_exp(times)
        total = mx.logaddexp(log_sum_exp(text), total_times)
        # a timestamp, if all of them together are more probable than any text
        only_times = total_times - total > text.max(axis=-1, keepdims=True) - total
        logits = mx.where(only_times & (ids < self.begin), -mx.inf, logits)
        return logits, mx.where(only_times, total_times, total)

    def _limits(self, state: State) -> tuple[mx.array, mx.array, mx.array]:
        """The lowest token, the lowest timestamp and the highest one that are allowed, each (jobs, group).

        Timestamps come in pairs, except before the end of the text; they do not decrease, and increase in a pair.
        """
        after_time, first = state.last >= self.begin, state.count == 0
        open_pair = after_time & ~state.paired
        lowest_text = mx.where(first, self.begin, mx.where(open_pair, self.eot, 0))
        lowest = mx.where(state.latest >= 0, state.latest + mx.where(open_pair, 0, 1), self.begin)
        lowest = mx.where(after_time & state.paired, self.vocab, lowest)
        return lowest_text, lowest, mx.where(first, self.last_first, self.vocab)


def suppressed_tokens(tokenizer: Any, options: Any) -> list[int]:
    """Tokens that are never sampled. Source: openai/whisper `DecodingTask._get_suppress_tokens`; numerals: WhisperX."""
    given = options.suppressed()
    tokens = [token for token in given if token >= 0]
    tokens += tokenizer.non_speech_tokens if -1 in given else []
    tokens += tokenizer.numeral_tokens if options.suppress_numerals else []
    if tokens:
        names = ("transcribe", "translate", "sot", "sot_prev", "sot_lm", "no_speech")
        tokens += [getattr(tokenizer, name) for name in names]
    return tokens
