"""When each word is said, from where Whisper's decoder looks: cross-attention and dynamic time warping.

Source: openai/whisper `timing.py`, and the word rules of `transcribe.py`; the same words and times. A window goes

    timings = find_alignment(encoded, [tokens], model, tokenizer, languages=["en"], num_frames=[3000])[0]
    segments = place_words(segments, timings, offset=…, last_speech=…, tokenizer=tokenizer)
    last_speech = get_end(segments)             # for the window that follows
    words = tidy(segment.words, segment.start, segment.end)

Until `tidy`, words are upstream's in every respect: their text keeps its leading space, and they may overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

import mlx.core as mx
import numpy as np

from mlx_speech.models.whisper import Model, ModelArgs
from mlx_speech.ops.log_sum_exp import log_sum_exp
from mlx_speech.stages.whisper.tokenizer import Tokenizer
from mlx_speech.transcript import Segment, Word

TOKENS_PER_SECOND = 50  # positions of the encoder
SHORTEST = 1 / TOKENS_PER_SECOND  # seconds that a segment lasts, as from one timestamp to the next

PREPEND_PUNCTUATIONS = "\"'“¿([{-"
APPEND_PUNCTUATIONS = "\"'.。,，!！?？:：”)]}、"
SENTENCE_END_MARKS = ".。!！?？"


@dataclass(frozen=True)
class WordTiming:
    """A word and its tokens; start, end in seconds from the start of the window; probability 0..1."""

    word: str
    tokens: tuple[int, ...]
    start: float
    end: float
    probability: float


# --- where the decoder looks -----------------------------------------------------------------------------------------


def find_alignment(
    encoded: mx.array,
    texts: Sequence[Sequence[int]],
    model: Model,
    tokenizer: Tokenizer,
    *,
    languages: Sequence[str | None],
    task: str = "transcribe",
    num_frames: Sequence[int],
) -> list[list[WordTiming]]:
    """The words of each text and their times, in one pass of the decoder (openai/whisper `find_alignment`).

    encoded : (batch, positions, width), of the windows
    texts : text tokens of each (no timestamps, no special ones); an empty one gives no words
    languages, num_frames : of each; frames of 10 ms that hold its audio, without the padding to a whole window

    Raises `OptionError` for a text that does not fit the decoder's context.
    """
    rows = [row for row, text in enumerate(texts) if text]
    found: list[list[WordTiming]] = [[] for _ in texts]
    if not rows:
        return found
    own = [(tokenizer.sot_sequence(languages[row], task), row) for row in rows]
    inputs = [[*start, tokenizer.no_timestamps, *texts[row], tokenizer.eot] for start, row in own]
    chosen = encoded if len(rows) == encoded.shape[0] else encoded[mx.array(rows)]
    longest = max(map(len, inputs))  # the causal mask hides the padding
    tokens = mx.array([row + [tokenizer.eot] * (longest - len(row)) for row in inputs])
    states, layers = model.decoder.cross_attention(tokens, chosen, alignment_heads(model.args))
    scores = mx.concatenate(layers, axis=1)

    matrices, probabilities = [], []
    for k, (start, row) in enumerate(own):
        first, last = len(start), len(inputs[k]) - 1  # notimestamps, which says when the first word begins; eot
        matrices.append(_matrix(scores[k, :, : last + 1, : num_frames[row] // 2])[first:last])
        logits = model.decoder.token_embedding.as_linear(states[k, first : last - 1]).astype(mx.float32)
        probabilities.append(_probabilities(logits[:, : tokenizer.eot], mx.array(list(texts[row]))))
    mx.eval(matrices, probabilities)

    paths = dtw([-np.array(matrix) for matrix in matrices])
    for row, path, probability in zip(rows, paths, probabilities, strict=True):
        words = tokenizer.split_to_word_tokens([*texts[row], tokenizer.eot], languages[row])
        found[row] = _timings(words, path, np.array(probability, dtype=np.float64))
    return found


def alignment_heads(args: ModelArgs) -> list[tuple[int, int]]:
    """The (layer, head) pairs whose cross-attention follows the audio, sorted.

    Those of the configuration where all of them exist (distilled models may carry their teacher's), else all heads of
    the second half of the layers, as openai/whisper has it.
    """
    heads = args.alignment_heads or []
    if heads and all(len(pair) == 2 and pair[0] < args.n_text_layer and pair[1] < args.n_text_head for pair in heads):
        return sorted({(layer, head) for layer, head in heads})
    return list(product(range(args.n_text_layer // 2, args.n_text_layer), range(args.n_text_head)))


def _matrix(scores: mx.array) -> mx.array:
    """Scores (heads, tokens, frames) → how much each token looks at each frame, (tokens, frames)."""
    weights = mx.softmax(scores, axis=-1)
    weights = weights - weights.mean(axis=-2, keepdims=True)
    weights = weights / mx.sqrt(mx.square(weights).mean(axis=-2, keepdims=True))
    return median_filter(weights).mean(axis=0)


def _probabilities(logits: mx.array, tokens: mx.array) -> mx.array:
    """logits (n, vocabulary), tokens (n,) → (n,)"""
    chosen = mx.take_along_axis(logits, tokens[:, None], axis=-1)
    return mx.exp(chosen - log_sum_exp(logits))[:, 0]


def median_filter(x: mx.array) -> mx.array:
    """The median of every 7 neighbours along the last axis, reflected at the ends; three or fewer stay as they are.

    Equal to openai/whisper's `median_filter`, which sorts: the middle of seven is their centre, clamped between the
    third and the fourth of the other six, and those follow from two sorted triples. NaN counts as the greatest.
    """
    length = x.shape[-1]
    if length <= 3:
        return x
    x = mx.where(mx.isnan(x), mx.inf, x)
    x = mx.concatenate([x[..., 3:0:-1], x, x[..., -2:-5:-1]], axis=-1)
    low, high = mx.minimum(x[..., :-2], x[..., 1:-1]), mx.maximum(x[..., :-2], x[..., 1:-1])
    third = x[..., 2:]
    triple = mx.minimum(low, third), mx.maximum(low, mx.minimum(high, third)), mx.maximum(high, third)
    (a1, a2, a3), (b1, b2, b3) = ([part[..., k : k + length] for part in triple] for k in (0, 4))
    low = mx.minimum(mx.minimum(a3, b3), mx.minimum(mx.maximum(a1, b2), mx.maximum(a2, b1)))
    high = mx.maximum(mx.maximum(a1, b1), mx.maximum(mx.minimum(a2, b3), mx.minimum(a3, b2)))
    middle = mx.minimum(mx.maximum(x[..., 3:-3], low), high)
    return mx.where(mx.isinf(middle), mx.nan, middle)


# --- dynamic time warping --------------------------------------------------------------------------------------------


def dtw(costs: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The cheapest monotone path through each matrix (n, m): its rows and its columns, (steps,) each; an anti-diagonal
    of all of them a step.

    Added in float32, and as in openai/whisper `dtw_cpu`, a tie means a step from the left, even where the cell above
    and the one before it tie and both are cheaper.
    """
    rows, columns = max(cost.shape[0] for cost in costs), max(cost.shape[1] for cost in costs)
    skewed = np.full((rows + columns + 1, len(costs), rows + 1), np.inf, dtype=np.float32)  # [i + j, matrix, i]
    for k, cost in enumerate(costs):
        i, j = np.indices(cost.shape) + 1
        skewed[i + j, k, i] = cost
    trace = np.zeros(skewed.shape, dtype=np.int8)
    before, last = np.full((2, len(costs), rows + 1), np.inf, dtype=np.float32)
    before[:, 0] = 0
    for step in range(2, rows + columns + 1):
        diagonal, up, left = before[:, :-1], last[:, :-1], last[:, 1:]
        take_diagonal = (diagonal < up) & (diagonal < left)
        take_up = (up < diagonal) & (up < left)  # comparisons with NaN are false, so then it is left
        best = np.where(take_diagonal, diagonal, np.where(take_up, up, left))
        trace[step, :, 1:] = 2 - 2 * take_diagonal - take_up
        before, last = last, skewed[step].copy()
        last[:, 1:] += best
    return [_backtrace(trace[:, k], *cost.shape) for k, cost in enumerate(costs)]


def _backtrace(trace: np.ndarray, i: int, j: int) -> tuple[np.ndarray, np.ndarray]:
    """trace [i + j, i] : 0 where a step came diagonally, 1 from above, 2 from the left"""
    path = []
    while i > 0 or j > 0:
        path.append((i - 1, j - 1))
        came = 2 if i == 0 else 1 if j == 0 else int(trace[i + j, i])
        i, j = i - (came != 2), j - (came != 1)
    rows, columns = np.array(path[::-1], dtype=np.int64).reshape(-1, 2).T
    return rows, columns


def _timings(
    words: tuple[list[str], list[list[int]]], path: tuple[np.ndarray, np.ndarray], probabilities: np.ndarray
) -> list[WordTiming]:
    """Times where the path enters a word's first token and the one after its last; eot, the last word, is left out."""
    rows, columns = path
    jumps = columns[np.diff(rows, prepend=-1) > 0] / TOKENS_PER_SECOND
    bounds = np.cumsum([0, *map(len, words[1][:-1])]).tolist()
    return [
        WordTiming(word, tuple(tokens), float(jumps[i]), float(jumps[j]), float(np.mean(probabilities[i:j])))
        for word, tokens, i, j in zip(*words, bounds, bounds[1:], strict=False)
    ]


# --- words in their segments -----------------------------------------------------------------------------------------


def place_words(
    segments: Sequence[Segment], timings: list[WordTiming], *, offset: float, last_speech: float, tokenizer: Tokenizer
) -> list[Segment]:
    """The segments of one window with their words, and their start and end moved (openai/whisper
    `add_word_timestamps`).

    segments : in seconds of the recording; `tokens` may hold timestamps and special tokens
    timings : of the text tokens of all segments, one after the other
    offset : where the window starts, in seconds
    last_speech : the end of the words before this window (0 at first): words that follow a pause are kept short

    Numbers are upstream's: words are rounded to 2 decimals and `Word.text` keeps its leading space, which
    `is_anomalous` needs. Give the result to `get_end` for the next window, and words to `tidy` when all is done.
    """
    durations = [timing.end - timing.start for timing in timings if timing.end != timing.start]
    median = min(0.7, float(np.median(durations))) if durations else 0.0
    if durations:
        timings = _shorten(timings, 2 * median)
    rest, placed = merge_punctuations(timings)[::-1], []
    for segment in segments:
        missing, words = sum(token < tokenizer.eot for token in segment.tokens), []
        while rest and missing > 0:
            timing = rest.pop()
            missing -= len(timing.tokens)
            start, end = (float(np.round(offset + time, 2)) for time in (timing.start, timing.end))
            words.append(Word(start, end, timing.word, score=timing.probability))
        segment = replace(segment, words=tuple(words))
        if words:
            segment = _settle(segment, last_speech, median)
            last_speech = segment.end
        placed.append(segment)
    return placed


def merge_punctuations(
    timings: Sequence[WordTiming], prepended: str = PREPEND_PUNCTUATIONS, appended: str = APPEND_PUNCTUATIONS
) -> list[WordTiming]:
    """Opening punctuation joins the word after it, other punctuation the word before (openai/whisper
    `merge_punctuations`, less the words that it empties). The word's own time stays."""
    merged: list[WordTiming] = []  # from the last to the first
    for timing in reversed(timings):
        if merged and timing.word.startswith(" ") and timing.word.strip() in prepended:
            after = merged[-1]
            merged[-1] = replace(after, word=timing.word + after.word, tokens=timing.tokens + after.tokens)
        else:
            merged.append(timing)
    result: list[WordTiming] = []
    for timing in reversed(merged):
        if result and not result[-1].word.endswith(" ") and timing.word in appended:
            before = result[-1]
            result[-1] = replace(before, word=before.word + timing.word, tokens=before.tokens + timing.tokens)
        else:
            result.append(timing)
    return result


def _shorten(timings: Sequence[WordTiming], longest: float) -> list[WordTiming]:
    """No sentence's last mark, and no word after it, is longer than `longest`: the pause between them is neither's."""
    result = list(timings[:1])
    for previous, timing in pairwise(timings):
        if timing.end - timing.start > longest:
            if timing.word in SENTENCE_END_MARKS:
                timing = replace(timing, end=timing.start + longest)
            elif previous.word in SENTENCE_END_MARKS:
                timing = replace(timing, start=timing.end - longest)
        result.append(timing)
    return result


def _settle(segment: Segment, last_speech: float, median: float) -> Segment:
    """Words after a pause made short, and the segment's bounds and those of its words reconciled."""
    starts, ends = [word.start for word in segment.words], [word.end for word in segment.words]
    longest = 2 * median
    long = ends[0] - starts[0] > longest or (len(ends) > 1 and ends[1] - starts[0] > 2 * longest)
    if ends[0] - last_speech > 4 * median and long:
        if len(ends) > 1 and ends[1] - starts[1] > longest:
            ends[0] = starts[1] = max(ends[1] / 2, ends[1] - longest)
        starts[0] = max(0.0, ends[0] - longest)
    start, end = segment.start, segment.end
    if start < ends[0] and start - 0.5 > starts[0]:
        starts[0] = max(0.0, min(ends[0] - median, start))
    else:
        start = starts[0]
    if end > starts[-1] and end + 0.5 < ends[-1]:
        ends[-1] = max(starts[-1] + median, end)
    else:
        end = ends[-1]
    words = zip(segment.words, starts, ends, strict=True)
    return replace(segment, start=start, end=end, words=tuple(replace(w, start=s, end=e) for w, s, e in words))


def get_end(segments: Sequence[Segment]) -> float | None:
    """The end of the last word, or of the last segment where none has words (openai/whisper `utils.get_end`)."""
    words = (word.end for segment in reversed(segments) for word in reversed(segment.words))
    return next(words, segments[-1].end if segments else None)


def tidy(words: Sequence[Word], start: float, end: float) -> tuple[Word, ...]:
    """Words as users get them: inside start..end, none before the one before it ends, without surrounding spaces, and
    none that is only a space."""
    result = []
    for word in words:
        start = min(max(start, word.start), end)
        finish = min(max(start, word.end), end)
        if word.text.strip():
            result.append(replace(word, start=start, end=finish, text=word.text.strip()))
            start = finish
    return tuple(result)


def tidy_segments(segments: Sequence[Segment], start: float, end: float) -> list[Segment]:
    """Segments as users get them, with their words: inside start..end, none before the one before it ends, all of some
    length. `place_words` lets them leave what was heard, and overlap; one that would be left without time takes a
    little of that of its neighbours.

    start, end : seconds, of which the first is the smaller
    """
    shortest = min(SHORTEST, (end - start) / max(1, len(segments)))
    times: list[tuple[float, float]] = []
    low = start
    for segment in segments:
        begin = min(max(low, segment.start), end)
        low = max(begin + shortest, min(segment.end, end))
        times.append((begin, low))
    high = end
    for k in range(len(times) - 1, -1, -1):
        begin, finish = times[k]
        finish = min(finish, high)
        begin = max(start, min(begin, finish - shortest))
        times[k] = begin, finish
        high = begin
    result: list[Segment] = []
    for segment, (begin, finish) in zip(segments, times, strict=True):
        result.append(replace(segment, start=begin, end=finish, words=tidy(segment.words, begin, finish)))
    return result


# --- hallucinations --------------------------------------------------------------------------------------------------


def anomaly_score(word: Word) -> float:
    """How unlike a spoken word it is: improbable, very short or very long (openai/whisper `word_anomaly_score`)."""
    duration = word.end - word.start
    improbable = 1.0 if word.score < 0.15 else 0.0
    return improbable + max(0.0, 0.133 - duration) * 15 + max(0.0, duration - 2.0)


def is_anomalous(segment: Segment | None) -> bool:
    """Whether a segment of `place_words` may be a hallucination, by its first eight words that are no punctuation
    (openai/whisper `is_segment_anomaly`); one without words, or None, is not."""
    if segment is None or not segment.words:
        return False
    words = [word for word in segment.words if word.text not in PREPEND_PUNCTUATIONS + APPEND_PUNCTUATIONS][:8]
    score = sum(map(anomaly_score, words))
    return score >= 3 or score + 0.01 >= len(words)


def next_words_segment(segments: Sequence[Segment]) -> Segment | None:
    """The first segment that has words (openai/whisper `next_words_segment`)."""
    return next((segment for segment in segments if segment.words), None)
