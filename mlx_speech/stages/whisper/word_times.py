"""When words are said, from where Whisper's decoder looks: cross-attention, and time warping.

Source: openai/whisper `timing.py`, and the word rules of `transcribe.py`; the same words and times.
A window goes

    timings = find_alignment(encoded, [tokens], model, tokenizer, languages=["en"],
    num_frames=[3000])[0] segments = place_words(segments, timings, offset=…, last_speech=…,
    tokenizer=tokenizer) last_speech = get_end(segments)             # for the window that follows
    words = tidy(segment.words, segment.start, segment.end)

Until `tidy`, words are upstream's in every respect: their text keeps its leading space, and they
may overlap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

import mlx.core as mx
import numpy as np

from mlx_speech.models.whisper import Model, ModelArgs
from mlx_speech.models.whisper_cache import Audio
from mlx_speech.ops.alignment_matrix import alignment_matrix
from mlx_speech.ops.log_sum_exp import log_sum_exp
from mlx_speech.stages.whisper.time_warping import dtw
from mlx_speech.stages.whisper.tokenizer import Tokenizer
from mlx_speech.transcript import Segment, Word

TOKENS_PER_SECOND = 50  # positions of the encoder
FRAMES_PER_POSITION = 2  # of 10 ms
SHORTEST = 1 / TOKENS_PER_SECOND  # seconds that a segment lasts, as from one timestamp to the next

MAX_MEDIAN = 0.7  # seconds; a longer median of the words' durations tells nothing
FIRST_WORDS = 8  # of a segment, by which it is judged
IMPROBABLE = 0.15  # the probability below which a word is suspicious
SHORT_WORD = 0.133  # seconds
LONG_WORD = 2.0  # seconds

PREPEND_PUNCTUATIONS = "\"'“¿([{-"
APPEND_PUNCTUATIONS = "\"'.。,，!！?？:：”)]}、"
SENTENCE_END_MARKS = ".。!！?？"


@dataclass(frozen=True)
class WordTiming:
    """A word and its tokens; start, end in seconds of the window; probability 0..1, NaN where nobody asked."""

    word: str
    tokens: tuple[int, ...]
    start: float
    end: float
    probability: float


# --- where the decoder looks ----------------------------------------------------------------------


def find_alignment(
    encoded: mx.array,
    texts: Sequence[Sequence[int]],
    model: Model,
    tokenizer: Tokenizer,
    *,
    languages: Sequence[str | None],
    task: str = "transcribe",
    num_frames: Sequence[int],
    probabilities: bool = True,
    audio: Sequence[Audio | None] = (),
) -> list[list[WordTiming]]:
    """The words of each text and their times, in one pass of the decoder (openai/whisper
    `find_alignment`).

    encoded : (batch, positions, width), of the windows
    texts : text tokens of each (no timestamps, no special ones); an empty one gives no words
    languages, num_frames : of each; frames of 10 ms that hold its audio, without the padding to a
        whole window
    probabilities : whether the words get theirs, for which all logits are computed
    audio : of each, `DecodingResult.audio` of its text. Empty, or None for one of them: they are made of `encoded`

    Raises `OptionError` for a text that does not fit the decoder's context.
    """
    result: list[list[WordTiming]] = [[] for _ in texts]
    rows = [row for row, text in enumerate(texts) if text]
    if not rows:
        return result
    starts = [tokenizer.sot_sequence(languages[row], task) for row in rows]
    inputs = []
    for row, start in zip(rows, starts, strict=True):
        inputs.append([*start, tokenizer.no_timestamps, *texts[row], tokenizer.eot])
    longest = max(map(len, inputs))  # the causal mask hides the padding
    tokens = mx.array([row + [tokenizer.eot] * (longest - len(row)) for row in inputs])
    audio_of_layers = _audio_of_layers(rows, encoded, audio, model)
    heads = alignment_heads(model.args)
    if probabilities:
        states, layers = model.decoder.cross_attention(tokens, audio_of_layers, heads)
    else:
        states = None
        layers = model.decoder.cross_attention_scores(tokens, audio_of_layers, heads)
    scores = mx.concatenate(layers, axis=1)

    matrices = []
    token_probabilities = []
    for place, row in enumerate(rows):
        # from <|notimestamps|>, which says when the first word begins, to the last token of the
        # text
        first = len(starts[place])
        last = len(inputs[place]) - 1
        frames = num_frames[row] // FRAMES_PER_POSITION
        matrices.append(alignment_matrix(scores[place, :, : last + 1, :frames])[first:last])
        if states is None:
            token_probabilities.append(mx.full(len(texts[row]), mx.nan))
        else:
            logits = model.decoder.token_embedding.as_linear(states[place, first : last - 1])
            text_logits = logits.astype(mx.float32)[:, : tokenizer.eot]
            token_probabilities.append(_probabilities(text_logits, mx.array(list(texts[row]))))
    mx.eval(matrices, token_probabilities)

    paths = dtw([-np.array(matrix) for matrix in matrices])
    for row, path, probability in zip(rows, paths, token_probabilities, strict=True):
        text = [*texts[row], tokenizer.eot]
        words, tokens_of_words = tokenizer.split_to_word_tokens(text, languages[row])
        result[row] = _timings(words, tokens_of_words, path, np.array(probability, np.float64))
    return result


def _audio_of_layers(
    rows: Sequence[int], encoded: mx.array, audio: Sequence[Audio | None], model: Model
) -> Iterator[tuple[mx.array, mx.array]]:
    """What the decoder attends to in these rows, as `TextDecoder.read_audio` gives it."""
    known = [audio[row] for row in rows] if audio else []
    known = [of_row for of_row in known if of_row is not None]
    if len(known) < len(rows):
        if len(rows) < encoded.shape[0]:
            encoded = encoded[mx.array(list(rows))]
        yield from model.decoder.read_audio(encoded)
        return
    for of_rows in zip(*known, strict=True):
        keys = [mx.array(row_keys[None]) for row_keys, _ in of_rows]
        values = [mx.array(row_values[None]) for _, row_values in of_rows]
        yield mx.concatenate(keys).swapaxes(2, 3), mx.concatenate(values).swapaxes(2, 3)


def alignment_heads(args: ModelArgs) -> list[tuple[int, int]]:
    """The (layer, head) pairs whose cross-attention follows the audio, sorted.

    Those of the configuration where all of them exist (distilled models may carry their teacher's),
    else all heads of the second half of the layers, as openai/whisper has it.
    """
    layers = args.n_text_layer
    known = [pair for pair in args.alignment_heads or [] if len(pair) == 2]
    known = [pair for pair in known if pair[0] < layers and pair[1] < args.n_text_head]
    if known and len(known) == len(args.alignment_heads or []):
        return sorted({(layer, head) for layer, head in known})
    return list(product(range(layers // 2, layers), range(args.n_text_head)))


def _probabilities(logits: mx.array, tokens: mx.array) -> mx.array:
    """The probability of each token, from its logits: (n, vocabulary), (n,) → (n,)."""
    chosen = mx.take_along_axis(logits, tokens[:, None], axis=-1)
    return mx.exp(chosen - log_sum_exp(logits))[:, 0]


def _timings(
    words: Sequence[str],
    tokens_of_words: Sequence[Sequence[int]],
    path: tuple[np.ndarray, np.ndarray],
    probabilities: np.ndarray,
) -> list[WordTiming]:
    """Times where the path enters a word's first token and the one after its last; eot, the last
    word, is left out.

    path : rows and columns, (steps,) each
    probabilities : of the text tokens, (n,)
    """
    rows, columns = path
    entered = columns[np.diff(rows, prepend=-1) > 0] / TOKENS_PER_SECOND  # seconds, of each token
    timings = []
    first = 0
    for word, tokens in zip(words[:-1], tokens_of_words[:-1], strict=True):
        end = first + len(tokens)
        timing = WordTiming(
            word=word,
            tokens=tuple(tokens),
            start=float(entered[first]),
            end=float(entered[end]),
            probability=float(np.mean(probabilities[first:end])),
        )
        timings.append(timing)
        first = end
    return timings


# --- words in their segments ----------------------------------------------------------------------


def place_words(
    segments: Sequence[Segment], timings: list[WordTiming], *, offset: float, last_speech: float, tokenizer: Tokenizer
) -> list[Segment]:
    """The segments of one window with their words, and their start and end moved (openai/whisper
    `add_word_timestamps`).

    segments : in seconds of the recording; `tokens` may hold timestamps and special tokens
    timings : of the text tokens of all segments, one after the other
    offset : where the window starts, in seconds
    last_speech : the end of the words before this window (0 at first): words that follow a pause
        are kept short

    Numbers are upstream's: words are rounded to 2 decimals and `Word.text` keeps its leading space,
    which `is_anomalous` needs. Give the result to `get_end` for the next window, and words to
    `tidy` when all is done.
    """
    durations = [timing.end - timing.start for timing in timings if timing.end != timing.start]
    median = 0.0
    if durations:
        median = min(MAX_MEDIAN, float(np.median(durations)))
        timings = _shorten(timings, 2 * median)
    waiting = deque(merge_punctuations(timings))
    placed = []
    for segment in segments:
        missing = sum(token < tokenizer.eot for token in segment.tokens)
        words = []
        while waiting and missing > 0:
            timing = waiting.popleft()
            missing -= len(timing.tokens)
            start = float(np.round(offset + timing.start, 2))
            end = float(np.round(offset + timing.end, 2))
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
    """Opening punctuation joins the word after it, other punctuation the word before
    (openai/whisper `merge_punctuations`, less the words that it empties). The word's own time
    stays."""
    merged: list[WordTiming] = []  # from the last to the first
    for timing in reversed(timings):
        if merged and timing.word.startswith(" ") and timing.word.strip() in prepended:
            after = merged[-1]
            tokens = timing.tokens + after.tokens
            merged[-1] = replace(after, word=timing.word + after.word, tokens=tokens)
        else:
            merged.append(timing)
    result: list[WordTiming] = []
    for timing in reversed(merged):
        if result and not result[-1].word.endswith(" ") and timing.word in appended:
            before = result[-1]
            tokens = before.tokens + timing.tokens
            result[-1] = replace(before, word=before.word + timing.word, tokens=tokens)
        else:
            result.append(timing)
    return result


def _shorten(timings: Sequence[WordTiming], longest: float) -> list[WordTiming]:
    """No sentence's last mark, and no word after it, is longer than `longest`: the pause between
    them is neither's."""
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
    """Words after a pause are made short; the bounds of the segment and its words agree."""
    starts = [word.start for word in segment.words]
    ends = [word.end for word in segment.words]
    longest = 2 * median
    is_long = ends[0] - starts[0] > longest
    if len(ends) > 1:
        is_long = is_long or ends[1] - starts[0] > 2 * longest
    if ends[0] - last_speech > 4 * median and is_long:
        if len(ends) > 1 and ends[1] - starts[1] > longest:
            boundary = max(ends[1] / 2, ends[1] - longest)
            ends[0] = boundary
            starts[1] = boundary
        starts[0] = max(0.0, ends[0] - longest)
    start = segment.start
    if start < ends[0] and start - 0.5 > starts[0]:
        starts[0] = max(0.0, min(ends[0] - median, start))
    else:
        start = starts[0]
    end = segment.end
    if end > starts[-1] and end + 0.5 < ends[-1]:
        ends[-1] = max(starts[-1] + median, end)
    else:
        end = ends[-1]
    words = []
    for word, word_start, word_end in zip(segment.words, starts, ends, strict=True):
        words.append(replace(word, start=word_start, end=word_end))
    return replace(segment, start=start, end=end, words=tuple(words))


def get_end(segments: Sequence[Segment]) -> float | None:
    """The end of the last word, or of the last segment where none has words (openai/whisper
    `utils.get_end`)."""
    for segment in reversed(segments):
        if segment.words:
            return segment.words[-1].end
    return segments[-1].end if segments else None


def tidy(words: Sequence[Word], start: float, end: float) -> tuple[Word, ...]:
    """Words as users get them: inside start..end, none before the one before it ends, without
    surrounding spaces, and none that is only a space."""
    result = []
    for word in words:
        start = min(max(start, word.start), end)
        finish = min(max(start, word.end), end)
        if word.text.strip():
            result.append(replace(word, start=start, end=finish, text=word.text.strip()))
            start = finish
    return tuple(result)


def tidy_segments(segments: Sequence[Segment], start: float, end: float) -> list[Segment]:
    """Segments as users get them, with their words: inside start..end, none before the one before
    it ends, all of some length. `place_words` lets them leave what was heard, and overlap; one that
    would be left without time takes a little of that of its neighbours.

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
        words = tidy(segment.words, begin, finish)
        result.append(replace(segment, start=begin, end=finish, words=words))
    return result


# --- hallucinations -------------------------------------------------------------------------------


def anomaly_score(word: Word) -> float:
    """How unlike a spoken word it is: improbable, very short or very long (openai/whisper
    `word_anomaly_score`)."""
    duration = word.end - word.start
    score = 1.0 if word.score < IMPROBABLE else 0.0
    score += max(0.0, SHORT_WORD - duration) * 15
    score += max(0.0, duration - LONG_WORD)
    return score


def is_anomalous(segment: Segment | None) -> bool:
    """Whether a segment of `place_words` may be a hallucination, by its first eight words that are
    no punctuation (openai/whisper `is_segment_anomaly`); one without words, or None, is not."""
    if segment is None or not segment.words:
        return False
    marks = PREPEND_PUNCTUATIONS + APPEND_PUNCTUATIONS
    words = [word for word in segment.words if word.text not in marks]
    words = words[:FIRST_WORDS]
    score = sum(anomaly_score(word) for word in words)
    return score >= 3 or score + 0.01 >= len(words)


def next_words_segment(segments: Sequence[Segment]) -> Segment | None:
    """The first segment that has words (openai/whisper `next_words_segment`)."""
    return next((segment for segment in segments if segment.words), None)
