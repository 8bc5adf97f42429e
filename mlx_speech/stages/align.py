"""Segments → their words with times, by forced alignment with a wav2vec2 CTC model.

The characters of a segment are laid along the frames of its sound by CTC's own Viterbi (`stages.viterbi`). WhisperX's
`align` has a trellis without repeated labels, where blanks count for the character before them and a word reaches to
the next label however long the pause. Here a character is scored by its own frames, and ends where the next label
begins or `TAIL_FRAMES` after its last own frame.
"""

from __future__ import annotations

import math
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech import steps
from mlx_speech.blas import on_cpu
from mlx_speech.errors import OptionError, in_range
from mlx_speech.features import SAMPLE_RATE, normalize, one_channel
from mlx_speech.languages import UNSPACED
from mlx_speech.stages.spelling import clusters, is_mark, split_words, spoken
from mlx_speech.stages.viterbi import viterbi
from mlx_speech.steps import Steps
from mlx_speech.transcript import Char, Segment, Word

METHODS = ("nearest", "linear", "ignore")
WILDCARD = -1  # in place of a label: a character that is spoken, but is not in the vocabulary
DELIMITER = -1  # in place of a piece: the label is a space between two words
# A wildcard has the log-probability of each frame's likeliest label less this: with blanks among them, one wildcard
# covers a whole unknown word; without, it would cover a single spike of it.
WILDCARD_PENALTY = 0.2
WILDCARD_COLUMN = 1  # of an utterance's log-probabilities; column 0 is the blank
TAIL_FRAMES = 3  # that a character sounds on after its own: CTC's labels are spikes, far shorter than what they label
SECONDS_PER_INTERPOLATED_WORD = 0.02  # where there is room
MIN_COVERAGE = 0.1  # of a text's letters; with fewer, the model is one of another script
PADDING_SAMPLES = SAMPLE_RATE  # batches are padded to whole seconds, so that few shapes occur
# Batches of longer segments have fewer rows, and on a CPU no batch holds more than that.
SAMPLES_PER_ROW = 30 * SAMPLE_RATE
BYTES_PER_VITERBI = 1 << 26  # of back-pointers and log-probabilities that wait for one Viterbi

# Latin letters that Unicode does not take apart, and marks that stand for an apostrophe
_LIGATURES = str.maketrans({"œ": "oe", "æ": "ae", "þ": "th"})
_STROKED_LETTERS = str.maketrans("øłđıðħŋ", "oldidhn")
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ`´′＇", "'"))
_PLAIN = _LIGATURES | _STROKED_LETTERS | _APOSTROPHES
_TURKIC_CASES = str.maketrans("Iİ", "ıi")
_TURKIC = ("tr", "az")  # languages in which the capital of ı is I, and that of i is İ
_SPOKEN_SYMBOLS = "%‰@#&+=×÷±"  # beside the currencies


@dataclass(frozen=True)
class Piece:
    """Characters [start, end) of a word and the labels they are spoken as: one character, or a number spelled out."""

    word: int
    start: int
    end: int
    labels: tuple[int, ...]


class Labels:
    """The characters that a model's outputs stand for, and how text is written in them.

    args : the arguments of a wav2vec2 with a vocabulary
    language : a code; whether the model hears spaces between words, and how numbers are read

    Raises `OptionError` for a model without a vocabulary.
    """

    def __init__(self, args: Any, language: str):
        if not args.vocab:
            raise OptionError("the alignment model has no vocabulary: convert it from a folder that has vocab.json")
        self.language = language
        self.blank = args.blank_id
        self.delimiter = None
        if args.word_delimiter in args.vocab:
            self.delimiter = args.vocab.index(args.word_delimiter)
        self.between: list[int] = []  # the labels between two words
        if self.delimiter is not None and language not in UNSPACED:
            self.between = [self.delimiter]
        self._index: dict[str, int] = {}  # in the vocabulary's own case: two labels never become one
        for index, label in enumerate(args.vocab):
            character = unicodedata.normalize("NFC", label)
            if len(character) == 1 and index not in (self.blank, self.delimiter):
                self._index.setdefault(character, index)

    def of(self, cluster: str) -> tuple[int, ...]:
        """The labels of a character with its marks; (WILDCARD,) where it is spoken but unknown, () if it is mute.

        As written, in the other case, then without accents and ligatures, which all lose marks that have no label.
        """
        text = cluster
        if self.language in _TURKIC:
            text = cluster.translate(_TURKIC_CASES)
        text = unicodedata.normalize("NFC", text)
        plain = unicodedata.normalize("NFKD", text.lower().translate(_PLAIN))
        for form in (text, text.lower(), text.upper(), text.casefold(), plain, plain.upper()):
            labels = self._written(form)
            if labels and WILDCARD not in labels:
                return labels
        category = unicodedata.category(cluster[0])
        is_spoken = category[0] in "LN" or category == "Sc" or cluster[0] in _SPOKEN_SYMBOLS
        return (WILDCARD,) if is_spoken else ()

    def _written(self, form: str) -> tuple[int, ...]:
        """The labels of the characters, WILDCARD for those that have none; marks that have none are left out."""
        labels: list[int] = []
        for character in form:
            if character in self._index:
                labels.append(self._index[character])
            elif not is_mark(character):
                labels.append(WILDCARD)
        return tuple(labels)

    def _sounds(self, word: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """Each character of word[start:end] that is spoken, and its labels; punctuation only between letters."""
        for first, last in clusters(word, start, end):
            labels = self.of(word[first:last])
            if not labels:
                continue
            between_letters = word[first - 1 : first].isalnum() and word[last : last + 1].isalnum()
            is_punctuation = unicodedata.category(word[first])[0] == "P"
            if between_letters or labels == (WILDCARD,) or not is_punctuation:
                yield first, last, labels

    def pieces(self, word: str, index: int) -> Iterator[Piece]:
        """The parts of a word that are spoken. index : of the word, which the pieces keep"""
        for start, end, text in spoken(word, self.language):
            if text and any(WILDCARD in self.of(character) for character in word[start:end]):
                yield Piece(index, start, end, self._spelled(text))
            else:
                for first, last, labels in self._sounds(word, start, end):
                    yield Piece(index, first, last, labels)

    def _spelled(self, text: str) -> tuple[int, ...]:
        """The labels of a number that is written out."""
        labels: list[int] = []
        for word in text.replace("-", " ").split():
            if labels:
                labels += self.between
            for _, _, sound in self._sounds(word):
                labels += sound
        return tuple(labels) or (WILDCARD,)

    def coverage(self, text: str) -> float:
        """The share of the letters of `text` that have labels, 0..1; 1 where it has none."""
        letters = [text[first:last] for first, last in clusters(text) if text[first].isalpha()]
        if not letters:
            return 1.0
        return sum(WILDCARD not in self.of(letter) for letter in letters) / len(letters)


# --- the stage -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Utterance:
    """A segment that can be aligned.

    index : of the segment
    audio : (samples,), its sound
    target : (labels,), what is spoken; WILDCARD among them
    owners : the piece of each label, or DELIMITER
    """

    index: int
    audio: np.ndarray
    pieces: list[Piece]
    target: np.ndarray
    owners: list[int]


@dataclass(frozen=True, eq=False)
class _Heard:
    """What the model says of an utterance.

    log_probs : (frames, columns): blank, wildcard, then labels that occur in the batch
    target : (labels,), their columns
    """

    utterance: _Utterance
    log_probs: np.ndarray
    target: np.ndarray

    @property
    def viterbi_bytes(self) -> int:
        """What it takes in a Viterbi: its back-pointers and its log-probabilities."""
        states = 2 * (len(self.target) + 1)
        return len(self.log_probs) * states + self.log_probs.nbytes


def align(
    segments: Sequence[Segment],
    audio: np.ndarray,
    model: Any,
    *,
    language: str,
    batch_size: int = 8,
    return_char_alignments: bool = False,
    interpolate_method: str = "nearest",
    on_progress: Callable[[float], None] | None = None,
) -> tuple[Segment, ...]:
    """The segments with their words (WhisperX's `align`); nothing else of them changes.

    audio : (samples,) of the whole recording at 16 kHz
    model : a wav2vec2 with a vocabulary
    language : a code; says whether the model hears spaces between words, and how numbers are read
    batch_size : segments per pass of the model
    return_char_alignments : fill `Word.chars`
    interpolate_method : where words without a time of their own go (`aligned=False`): "nearest" to the nearest word
        that has one, "linear" spread over the gap; "ignore" leaves them out
    on_progress : called with the seconds of sound done so far, after each batch

    Words are in order and inside their segment. A segment whose sound is too short for its text, or which the model
    has no labels for, gets words spread evenly over it; a text all in another script raises a `UserWarning`.
    Raises `OptionError` and `AudioError` for what cannot be used.
    """
    work = align_steps(
        segments,
        audio,
        model,
        language=language,
        batch_size=batch_size,
        return_char_alignments=return_char_alignments,
        interpolate_method=interpolate_method,
    )
    return steps.run(work, on_progress)


def align_steps(
    segments: Sequence[Segment],
    audio: np.ndarray,
    model: Any,
    *,
    language: str,
    batch_size: int = 8,
    return_char_alignments: bool = False,
    interpolate_method: str = "nearest",
    audio_start: int = 0,
) -> Steps[tuple[Segment, ...]]:
    """`align` in steps of a batch: yields the seconds of sound done, returns the segments with their words.

    audio_start : the first of `audio`'s samples is so many samples from the start of the recording

    Raises what `align` raises, at the first step.
    """
    if interpolate_method not in METHODS:
        raise OptionError(f"interpolate_method is {interpolate_method!r}: it has to be one of {', '.join(METHODS)}")
    in_range(1, math.inf, batch_size=batch_size)
    samples = one_channel(audio, "words are aligned")
    labels = Labels(model.args, language)
    texts = [split_words(segment.text) for segment in segments]
    if labels.coverage("".join(segment.text for segment in segments)) < MIN_COVERAGE:
        advice = "so word times are only interpolated: choose a model for the language as align_model"
        message = f"the alignment model has no labels for the script of this text ({language}), {advice}"
        warnings.warn(message, stacklevel=4)  # behind `steps.run` and `align`
    utterances: list[_Utterance] = []
    for k, segment in enumerate(segments):
        start = max(0, int(max(0.0, segment.start) * SAMPLE_RATE) - audio_start)
        end = max(0, int(max(0.0, segment.end) * SAMPLE_RATE) - audio_start)
        utterance = _utterance(k, segment, texts[k], samples[start:end], labels, model)
        if utterance is not None:
            utterances.append(utterance)

    aligned: dict[int, dict[int, Word]] = {}  # by segment, the words that have labels by their index
    batches = _batches(utterances, batch_size)
    waiting: list[_Heard] = []
    seconds_done = 0.0
    for number, batch in enumerate(batches):
        waiting += _listen(batch, model, labels)
        # As many batches as there is memory for share one Viterbi, whose time hardly grows with its rows.
        is_last = number + 1 == len(batches)
        if is_last or sum(heard.viterbi_bytes for heard in waiting) > BYTES_PER_VITERBI:
            for heard, path in _paths(waiting):
                k = heard.utterance.index
                aligned[k] = _words(heard, path, segments[k], texts[k], model.args, return_char_alignments)
            waiting = []
        seconds_done += sum(utterance.audio.size for utterance in batch) / SAMPLE_RATE
        yield seconds_done

    result: list[Segment] = []
    for k, segment in enumerate(segments):
        words = _complete(texts[k], aligned.get(k, {}), segment, interpolate_method)
        result.append(replace(segment, words=words))
    return tuple(result)


def _utterance(
    index: int, segment: Segment, words: list[str], sound: np.ndarray, labels: Labels, model: Any
) -> _Utterance | None:
    """The labels of a segment in order, a delimiter between words; None where there are none or too few frames.

    sound : (samples,) of the segment
    """
    pieces: list[Piece] = []
    for k, word in enumerate(words):
        pieces += labels.pieces(word, k)
    if not pieces or not sound.size or labels.coverage(segment.text) < MIN_COVERAGE:
        return None
    target: list[int] = []
    owners: list[int] = []
    for k, piece in enumerate(pieces):
        if k > 0 and piece.word != pieces[k - 1].word:
            target += labels.between
            owners += [DELIMITER] * len(labels.between)
        target += piece.labels
        owners += [k] * len(piece.labels)
    field, _ = _hearing(model.args)
    if model.num_frames(max(sound.size, field)) < len(target):
        return None
    return _Utterance(index, sound, pieces, np.array(target), owners)


def _hearing(args: Any) -> tuple[int, int]:
    """How many samples a frame hears, and how many there are from one frame to the next: 400 and 320."""
    field = 1
    hop = 1
    for kernel, stride in zip(reversed(args.conv_kernel), reversed(args.conv_stride), strict=True):
        field = (field - 1) * stride + kernel
        hop *= stride
    return field, hop


def _batches(utterances: list[_Utterance], batch_size: int) -> list[list[_Utterance]]:
    """The longest first, so that those of a batch are about as long."""
    ordered = sorted(utterances, key=lambda utterance: -utterance.audio.size)
    rows_of_longest = 1 if on_cpu() else batch_size
    batches: list[list[_Utterance]] = []
    while ordered:
        rows = min(batch_size, rows_of_longest * SAMPLES_PER_ROW // ordered[0].audio.size)
        rows = max(1, rows)
        batches.append(ordered[:rows])
        ordered = ordered[rows:]
    return batches


def _paths(waiting: list[_Heard]) -> Iterator[tuple[_Heard, np.ndarray]]:
    """Those that have a path, with it, (frames,)."""
    log_probs = [heard.log_probs for heard in waiting]
    targets = [heard.target for heard in waiting]
    paths, _ = viterbi(log_probs, targets, wildcard=WILDCARD_COLUMN)
    for heard, path in zip(waiting, paths, strict=True):
        if path is not None:
            yield heard, path


def log_probabilities(waveforms: Sequence[np.ndarray], model: Any) -> tuple[mx.array, list[int]]:
    """What a CTC model says of each waveform: (batch, frames, vocabulary) natural logarithms in float32, and how many
    frames each row has; those behind are padding.

    waveforms : (samples,) each, of any length; normalised here where the model was trained on normalised sound
    """
    sizes = [waveform.size for waveform in waveforms]
    shortest, _ = _hearing(model.args)
    longest = max(*sizes, shortest)
    padded = math.ceil(longest / PADDING_SAMPLES) * PADDING_SAMPLES
    batch = np.zeros((len(sizes), padded), np.float32)
    for row, waveform in enumerate(waveforms):
        batch[row, : waveform.size] = waveform
    sound = mx.array(batch)
    if model.args.do_normalize:
        sound = normalize(sound, mx.array(sizes))
    lengths = [max(size, shortest) for size in sizes]
    logits = model(sound, mx.array(lengths)).astype(mx.float32)
    frames = [model.num_frames(length) for length in lengths]
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True), frames


def _listen(batch: list[_Utterance], model: Any, labels: Labels) -> list[_Heard]:
    """The log-probabilities of what each utterance needs: blank, wildcard, then the labels that occur in the batch."""
    log_probs, frames = log_probabilities([utterance.audio for utterance in batch], model)
    occurring = np.unique(np.concatenate([utterance.target for utterance in batch]))
    occurring = occurring[occurring != WILDCARD]
    blank = log_probs[..., labels.blank, None]
    if labels.delimiter is not None and not labels.between:  # the model hears spaces that nobody writes
        blank = mx.logaddexp(blank, log_probs[..., labels.delimiter, None])
    wildcard = log_probs.max(axis=-1, keepdims=True) - WILDCARD_PENALTY
    chosen = mx.take(log_probs, mx.array(occurring), axis=-1)
    columns = np.array(mx.concatenate([blank, wildcard, chosen], axis=-1))
    result: list[_Heard] = []
    for row, utterance in enumerate(batch):
        target = np.searchsorted(occurring, utterance.target) + WILDCARD_COLUMN + 1
        target[utterance.target == WILDCARD] = WILDCARD_COLUMN
        result.append(_Heard(utterance, columns[row, : frames[row]], target))
    return result


# --- words -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Span:
    """Where a piece is heard: frames [first, until), `count` of them its labels' own, with `total` probability."""

    first: int
    until: int
    count: int
    total: float

    @property
    def score(self) -> float:
        """The mean probability of its own frames."""
        return round(min(1.0, self.total / self.count), 3)

    def joined(self, following: _Span) -> _Span:
        """The two as one."""
        return _Span(self.first, following.until, self.count + following.count, self.total + following.total)


def _spans(heard: _Heard, path: np.ndarray) -> list[_Span]:
    """Of each piece. path : (frames,), as of `viterbi`"""
    frames = np.flatnonzero(path & 1)  # those of labels
    label = path[frames] >> 1
    count = np.bincount(label)  # of each label
    first = frames[np.cumsum(count) - count]
    following = np.append(first[1:], len(path))
    until = np.minimum(following, first + count + TAIL_FRAMES)
    probabilities = np.exp(heard.log_probs[frames, heard.target[label]])
    total = np.bincount(label, weights=probabilities)
    spans: dict[int, _Span] = {}
    for k, owner in enumerate(heard.utterance.owners):
        span = _Span(int(first[k]), int(until[k]), int(count[k]), float(total[k]))
        if owner in spans:
            span = spans[owner].joined(span)
        spans[owner] = span
    return [spans[k] for k in range(len(heard.utterance.pieces))]


def _words(
    heard: _Heard, path: np.ndarray, segment: Segment, texts: list[str], args: Any, with_chars: bool
) -> dict[int, Word]:
    """The words that have labels, by their index. texts : of all words"""
    field, hop = _hearing(args)

    def seconds(frame: float) -> float:
        """A frame stands for one hop in the middle of what it hears."""
        sample = frame * hop + (field - hop) / 2
        return _inside(segment.start + sample / SAMPLE_RATE, segment)

    words: dict[int, Word] = {}
    pieces = zip(heard.utterance.pieces, _spans(heard, path), strict=True)
    for index, group in groupby(pieces, key=lambda pair: pair[0].word):
        parts = list(group)
        span = parts[0][1]
        for _, following in parts[1:]:
            span = span.joined(following)
        chars: tuple[Char, ...] = ()
        if with_chars:
            chars = _chars(texts[index], parts, seconds)
        words[index] = Word(seconds(span.first), seconds(span.until), texts[index], score=span.score, chars=chars)
    return words


def _chars(word: str, parts: list[tuple[Piece, _Span]], seconds: Callable[[float], float]) -> tuple[Char, ...]:
    """Every character of a word: those of a piece share its time, and mute ones have none (score 0)."""
    chars: list[Char] = []
    time = seconds(parts[0][1].first)
    place = 0  # in the word, behind the characters so far
    for piece, span in parts:
        chars += [Char(time, time, text, 0.0) for text in word[place : piece.start]]
        edges = np.linspace(span.first, span.until, piece.end - piece.start + 1).tolist()
        times = [seconds(edge) for edge in edges]
        for text, start, end in zip(word[piece.start : piece.end], times, times[1:], strict=False):
            chars.append(Char(start, end, text, span.score))
        time = times[-1]
        place = piece.end
    chars += [Char(time, time, text, 0.0) for text in word[place:]]
    return tuple(chars)


def _complete(texts: list[str], aligned: dict[int, Word], segment: Segment, method: str) -> tuple[Word, ...]:
    """All words of a segment: those that are aligned, and between them the others as `method` says."""
    words: list[Word] = []
    for is_aligned, group in groupby(range(len(texts)), key=aligned.__contains__):
        run = list(group)
        if is_aligned:
            words += [aligned[k] for k in run]
        elif method != "ignore":
            before = aligned.get(run[0] - 1)
            after = aligned.get(run[-1] + 1)
            words += _interpolated([texts[k] for k in run], before, after, segment, method)
    return tuple(words)


def _interpolated(
    texts: list[str], before: Word | None, after: Word | None, segment: Segment, method: str
) -> list[Word]:
    """Words between two that are aligned, or between one and an end of the segment."""
    start = before.end if before else segment.start
    end = after.start if after else segment.end
    if method == "linear" or (before is None and after is None):
        return _spread(texts, start, end, segment)
    if before is None:
        count = 0  # of those that are nearest to the word before
    elif after is None:
        count = len(texts)
    else:
        count = (len(texts) + 1) // 2
    middle = min(end, start + SECONDS_PER_INTERPOLATED_WORD * count)
    rest = max(middle, end - SECONDS_PER_INTERPOLATED_WORD * (len(texts) - count))
    return _spread(texts[:count], start, middle, segment) + _spread(texts[count:], rest, end, segment)


def _spread(texts: list[str], start: float, end: float, segment: Segment) -> list[Word]:
    """Words over [start, end], each as long as it has characters."""
    total = max(1, sum(len(text) for text in texts))
    edges = [_inside(start, segment)]
    characters = 0
    for text in texts:
        characters += len(text)
        edges.append(_inside(start + (end - start) * characters / total, segment))
    return [Word(*time, text, aligned=False) for time, text in zip(pairwise(edges), texts, strict=True)]


def _inside(time: float, segment: Segment) -> float:
    """Rounded to milliseconds, but never out of the segment."""
    return min(max(round(time, 3), segment.start), segment.end)
