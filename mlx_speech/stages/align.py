"""Segments → their words with times, by forced alignment with a wav2vec2 CTC model.

The characters of a segment are laid along the frames of its sound by CTC's own Viterbi (Graves et al. 2006, with the
states of torchaudio's `forced_align`): blanks between labels are optional, but not between two equal ones. WhisperX's
`align` has a trellis without repeated labels, where blanks count for the character before them and a word reaches to
the next label however long the pause. Here a character is scored by its own frames, and ends where the next label
begins or `TAIL` frames after its last own frame.
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

from mlx_speech.blas import on_cpu
from mlx_speech.errors import OptionError, in_range
from mlx_speech.features import SAMPLE_RATE, normalize, one_channel
from mlx_speech.languages import UNSPACED
from mlx_speech.stages.spelling import clusters, is_mark, split_words, spoken
from mlx_speech.transcript import Char, Segment, Word

METHODS = ("nearest", "linear", "ignore")
WILDCARD = -1  # in place of a label: a character that is spoken, but is not in the vocabulary
# A wildcard has the log-probability of each frame's likeliest label less this: with blanks among them, one wildcard
PENALTY = 0.2  # covers a whole unknown word; without, it would cover a single spike of it
TAIL = 3  # frames that a character sounds on after its own: CTC's labels are spikes, far shorter than what they label
FRAME = 0.02  # seconds that an interpolated word gets where there is room
MIN_COVERAGE = 0.1  # of a text's letters; with fewer, the model is one of another script
BUCKET = SAMPLE_RATE  # batches are padded to whole seconds, so that few shapes occur
LONGEST = 30 * SAMPLE_RATE  # batches of longer segments have fewer rows, and on a CPU no batch holds more than that
CELLS = 1 << 26  # bytes of back-pointers and log-probabilities that wait for one Viterbi
BLOCK = 1 << 17  # numbers of which the Viterbi keeps a few arrays while it goes through some frames

# Latin letters that Unicode does not take apart, and marks that stand for an apostrophe
_PLAIN = str.maketrans({"œ": "oe", "æ": "ae", "þ": "th"}) | str.maketrans("øłđıðħŋ’‘ʼ`´′＇", "oldidhn'''''''")
_DOTLESS = str.maketrans("Iİ", "ıi")  # Turkish and Azerbaijani


@dataclass(frozen=True)
class Piece:
    """Characters [start, end) of a word and the labels they are spoken as: one character, or a number spelled out."""

    word: int
    start: int
    end: int
    labels: tuple[int, ...]


class Labels:
    """The characters that a model's outputs stand for, and how text is written in them."""

    def __init__(self, args: Any, language: str):
        if not args.vocab:
            raise OptionError("the alignment model has no vocabulary: convert it from a folder that has vocab.json")
        self.language, self.blank = language, args.blank_id
        self.delimiter = args.vocab.index(args.word_delimiter) if args.word_delimiter in args.vocab else None
        self.between = [] if self.delimiter is None or language in UNSPACED else [self.delimiter]
        self._index: dict[str, int] = {}  # in the vocabulary's own case: two labels never become one
        for index, label in enumerate(args.vocab):
            if len(character := unicodedata.normalize("NFC", label)) == 1 and index not in (self.blank, self.delimiter):
                self._index.setdefault(character, index)

    def of(self, cluster: str) -> tuple[int, ...]:
        """The labels of a character with its marks; (WILDCARD,) where it is spoken but unknown, () if it is mute.

        As written, in the other case, then without accents and ligatures, which all lose marks that have no label.
        """
        text = cluster.translate(_DOTLESS) if self.language in ("tr", "az") else cluster
        text, plain = unicodedata.normalize("NFC", text), unicodedata.normalize("NFKD", text.lower().translate(_PLAIN))
        for form in (text, text.lower(), text.upper(), text.casefold(), plain, plain.upper()):
            labels = [self._index.get(part, WILDCARD) for part in form if part in self._index or not is_mark(part)]
            if labels and WILDCARD not in labels:
                return tuple(labels)
        category = unicodedata.category(cluster[0])
        return (WILDCARD,) if category[0] in "LN" or category == "Sc" or cluster[0] in "%‰@#&+=×÷±" else ()

    def _sounds(self, word: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """Each character of word[start:end] that is spoken, and its labels; punctuation only between letters."""
        for first, last in clusters(word, start, end):
            labels, inside = self.of(word[first:last]), word[first - 1 : first].isalnum() and word[last:][:1].isalnum()
            if labels and (inside or labels == (WILDCARD,) or unicodedata.category(word[first])[0] != "P"):
                yield first, last, labels

    def pieces(self, word: str, index: int) -> Iterator[Piece]:
        """The parts of a word that are spoken."""
        for start, end, text in spoken(word, self.language):
            if text and any(WILDCARD in self.of(character) for character in word[start:end]):
                yield Piece(index, start, end, self._spelled(text))
            else:
                yield from (Piece(index, *sound) for sound in self._sounds(word, start, end))

    def _spelled(self, text: str) -> tuple[int, ...]:
        labels: list[int] = []
        for word in text.replace("-", " ").split():
            labels += self.between if labels else []
            labels += [label for *_, found in self._sounds(word) for label in found]
        return tuple(labels) or (WILDCARD,)

    def coverage(self, text: str) -> float:
        """The share of the letters of `text` that have labels, 0..1; 1 where it has none."""
        letters = [text[first:last] for first, last in clusters(text) if text[first].isalpha()]
        return sum(WILDCARD not in self.of(letter) for letter in letters) / len(letters) if letters else 1.0


def viterbi(
    log_probs: Sequence[np.ndarray], targets: Sequence[np.ndarray], *, blank: int = 0, wildcard: int | None = None
) -> tuple[list[np.ndarray | None], np.ndarray]:
    """The likeliest CTC path of each target, all of them at once.

    log_probs : (frames, columns) each; targets : (labels,) each, columns other than `blank`, at least one
    wildcard : a column that may follow itself without a blank, as different unknown characters do
    Returns the states of each path, (frames,): 2k + 1 in the frames of label k, 2k in those of the blank before it, or
    None where there is no path (too few frames, or log-probabilities that are not numbers), and the paths'
    log-probabilities, (rows,).
    """
    order = sorted(range(len(targets)), key=lambda row: -len(log_probs[row]))  # rows that end drop out at the bottom
    # with each frame's largest taken off, the best path stays near zero, where float32 is finest
    relative = [log_probs[row] - log_probs[row].max(axis=1, keepdims=True) for row in order]
    frames, sizes = (np.array([len(rows[row]) for row in order]) for rows in (log_probs, targets))
    longest, width = int(frames[0]), 2 * int(sizes.max()) + 1
    skips = np.full((len(order), width), -np.inf, np.float32)  # 0 where the blank before a label may be left out
    for place, row in enumerate(order):
        after = targets[row][1:]
        skips[place, 3 : 2 * len(after) + 2 : 2][(after != targets[row][:-1]) | (after == wildcard)] = 0
    columns = np.full((len(order), width), blank)  # what each state emits
    for place, row in enumerate(order):
        columns[place, 1 : 2 * sizes[place] : 2] = targets[row]
    block = min(longest, max(8, BLOCK // columns.size))
    # the best paths to each state, behind two that are none; row 0 is the frame before the block
    scores = np.full((block + 1, len(order), width + 2), -np.inf, np.float32)
    scores[0, :, 2] = 0
    emitted = np.zeros((len(order), block, width), np.float32)
    back = np.zeros((longest, len(order), width), np.uint8)
    last, totals = 2 * sizes, np.zeros(len(order))
    for start in range(0, longest, block):
        n, count = np.count_nonzero(frames > start), min(block, longest - start)
        for place in range(n):
            part = relative[place][start : start + count]
            np.take(part, columns[place], axis=1, out=emitted[place, : len(part)], mode="clip")
        back[start : start + count, :n] = _advance(
            scores[: count + 1, :n], skips[:n], emitted[:n, :count].transpose(1, 0, 2)
        )
        for place in np.flatnonzero((frames[:n] > start) & (frames[:n] <= start + count)):
            label, quiet = scores[frames[place] - start, place, last[place] + 1 : last[place] + 3]
            last[place] -= label > quiet
            totals[place] = np.maximum(label, quiet) + log_probs[order[place]].max(axis=1).sum(dtype=np.float64)
        scores[0] = scores[count]
    found = {row: (totals[k], _trace(back[: frames[k], k], int(last[k]))) for k, row in enumerate(order)}
    paths = [path if np.isfinite(total) else None for total, path in (found[row] for row in range(len(order)))]
    return paths, np.array([found[row][0] for row in range(len(order))])


def _advance(scores: np.ndarray, skips: np.ndarray, emitted: np.ndarray) -> np.ndarray:
    """Fill all but the first row of scores (frames + 1, rows, states + 2); returns (frames, rows, states) how many
    states each came from below, 0 to 2. Equals stay where they are."""
    for before, after, own in zip(scores[:-1], scores[1:, :, 2:], emitted, strict=True):
        np.add(before[:, :-2], skips, out=after)
        np.maximum(after, before[:, 1:-1], out=after)
        np.maximum(after, before[:, 2:], out=after)
        np.add(after, own, out=after)
    step, stay = scores[:-1, :, 1:-1], scores[:-1, :, 2:]
    stepped, skipped = step > stay, scores[:-1, :, :-2] + skips > np.maximum(step, stay)
    return np.maximum(stepped.view(np.uint8), skipped.view(np.uint8) << 1)


def _trace(back: np.ndarray, state: int) -> np.ndarray:
    """back (frames, states) → the states (frames,) that lead to the last one."""
    states = np.zeros(len(back), np.int32)
    flat, width = back.tobytes(), back.shape[1]
    for frame in range(len(back) - 1, -1, -1):
        states[frame] = state
        state -= flat[frame * width + state]
    return states


@dataclass(eq=False)
class _Job:
    """A segment that can be aligned. `_listen` gives it log-probabilities and puts `target` in their columns."""

    index: int
    audio: np.ndarray
    pieces: list[Piece]
    target: np.ndarray
    owners: list[int]  # the piece of each label; -1 for a word delimiter
    log_probs: Any = None


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
    if interpolate_method not in METHODS:
        raise OptionError(f"interpolate_method is {interpolate_method!r}: it has to be one of {', '.join(METHODS)}")
    in_range(1, math.inf, batch_size=batch_size)
    samples = one_channel(audio, "words are aligned")
    labels = Labels(model.args, language)
    words = [split_words(segment.text) for segment in segments]
    if labels.coverage("".join(segment.text for segment in segments)) < MIN_COVERAGE:
        advice = "so word times are only interpolated: choose a model for the language as align_model"
        message = f"the alignment model has no labels for the script of this text ({language}), {advice}"
        warnings.warn(message, stacklevel=2)
    jobs = [job for k, segment in enumerate(segments) if (job := _job(k, segment, words[k], samples, labels, model))]
    found: dict[int, dict[int, Word]] = {}
    for job, path in _paths(jobs, model, labels, batch_size, on_progress):
        found[job.index] = _words(job, path, segments[job.index], words[job.index], model.args, return_char_alignments)
    complete = [_complete(words[k], found.get(k, {}), own, interpolate_method) for k, own in enumerate(segments)]
    return tuple(replace(segment, words=own) for segment, own in zip(segments, complete, strict=True))


def _job(index: int, segment: Segment, words: list[str], audio: np.ndarray, labels: Labels, model: Any) -> _Job | None:
    """The labels of a segment in order, a delimiter between words; None where there are none or too few frames."""
    start, end = (int(max(0.0, time) * SAMPLE_RATE) for time in (segment.start, segment.end))
    sound, pieces = audio[start:end], [piece for k, word in enumerate(words) for piece in labels.pieces(word, k)]
    if not pieces or not sound.size or labels.coverage(segment.text) < MIN_COVERAGE:
        return None
    target, owners = [], []
    for k, piece in enumerate(pieces):
        between = labels.between if k and piece.word != pieces[k - 1].word else []
        target += [*between, *piece.labels]
        owners += [-1] * len(between) + [k] * len(piece.labels)
    if model.num_frames(max(sound.size, _hearing(model.args)[0])) < len(target):
        return None
    return _Job(index, sound, pieces, np.array(target), owners)


def _hearing(args: Any) -> tuple[int, int]:
    """How many samples a frame hears, and how many there are from one frame to the next: 400 and 320."""
    field, hop = 1, 1
    for kernel, stride in zip(reversed(args.conv_kernel), reversed(args.conv_stride), strict=True):
        field, hop = (field - 1) * stride + kernel, hop * stride
    return field, hop


def _paths(
    jobs: list[_Job], model: Any, labels: Labels, batch_size: int, on_progress: Callable[[float], None] | None
) -> Iterator[tuple[_Job, np.ndarray]]:
    """The jobs that have a path, with it. As many batches as fit in `CELLS` share one Viterbi; the longest first."""
    jobs = sorted(jobs, key=lambda job: -job.audio.size)
    waiting, weight, done = [], 0, 0.0
    most = LONGEST * (1 if on_cpu() else batch_size)
    while jobs:
        rows = max(1, min(batch_size, most // jobs[0].audio.size))
        batch, jobs = jobs[:rows], jobs[rows:]
        _listen(batch, model, labels)
        waiting += batch
        weight += sum(len(job.log_probs) * (2 * len(job.target) + 1) + job.log_probs.nbytes for job in batch)
        if weight > CELLS or not jobs:
            paths, _ = viterbi([job.log_probs for job in waiting], [job.target for job in waiting], wildcard=1)
            yield from ((job, path) for job, path in zip(waiting, paths, strict=True) if path is not None)
            waiting, weight = [], 0
        done += sum(job.audio.size for job in batch) / SAMPLE_RATE
        if on_progress:
            on_progress(done)


def log_probabilities(waveforms: Sequence[np.ndarray], model: Any) -> tuple[mx.array, list[int]]:
    """What a CTC model says of each waveform: (batch, frames, vocabulary) natural logarithms in float32, and how many
    frames each row has; those behind are padding.

    waveforms : (samples,) each, of any length; normalised here where the model was trained on normalised sound
    """
    sizes, shortest = [waveform.size for waveform in waveforms], _hearing(model.args)[0]
    batch = np.zeros((len(sizes), -(-max(*sizes, shortest) // BUCKET) * BUCKET), np.float32)
    for row, waveform in enumerate(waveforms):
        batch[row, : waveform.size] = waveform
    sound = normalize(mx.array(batch), mx.array(sizes)) if model.args.do_normalize else mx.array(batch)
    lengths = [max(size, shortest) for size in sizes]
    logits = model(sound, mx.array(lengths)).astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True), [model.num_frames(length) for length in lengths]


def _listen(batch: list[_Job], model: Any, labels: Labels) -> None:
    """Give each job the log-probabilities of its labels: blank, wildcard, then those that occur in the batch."""
    found, frames = log_probabilities([job.audio for job in batch], model)
    wanted = np.unique(np.concatenate([job.target for job in batch]))
    wanted = wanted[wanted != WILDCARD]
    blank = found[..., labels.blank, None]
    if labels.delimiter is not None and not labels.between:  # the model hears spaces that nobody writes
        blank = mx.logaddexp(blank, found[..., labels.delimiter, None])
    chosen = mx.take(found, mx.array(wanted), axis=-1)
    columns = np.array(mx.concatenate([blank, found.max(axis=-1, keepdims=True) - PENALTY, chosen], axis=-1))
    for row, job in enumerate(batch):
        job.log_probs = columns[row, : frames[row]]
        job.target = np.where(job.target == WILDCARD, 1, np.searchsorted(wanted, job.target) + 2)


@dataclass
class _Span:
    """Where a piece is heard: frames [first, until), `count` of them its labels' own, with `total` probability."""

    first: int
    until: int = 0
    count: int = 0
    total: float = 0.0

    @property
    def score(self) -> float:
        return round(min(1.0, self.total / self.count), 3)


def _spans(job: _Job, path: np.ndarray) -> list[_Span]:
    """Of each piece."""
    own = np.flatnonzero(path & 1)
    label = path[own] >> 1
    count = np.bincount(label)
    first = own[np.cumsum(count) - count]
    until = np.minimum(np.append(first[1:], len(path)), first + count + TAIL)
    total = np.bincount(label, weights=np.exp(job.log_probs[own, job.target[label]]))
    spans: dict[int, _Span] = {}
    for k, owner in enumerate(job.owners):
        span = spans.setdefault(owner, _Span(int(first[k])))
        span.until, span.count, span.total = int(until[k]), span.count + int(count[k]), span.total + float(total[k])
    return [spans[k] for k in range(len(job.pieces))]


def _words(
    job: _Job, path: np.ndarray, segment: Segment, texts: list[str], args: Any, with_chars: bool
) -> dict[int, Word]:
    """The words that have labels, by their index."""
    field, hop = _hearing(args)

    def seconds(frame: float) -> float:  # a frame stands for one hop in the middle of what it hears
        return _inside(segment.start + (frame * hop + (field - hop) / 2) / SAMPLE_RATE, segment)

    found = {}
    for index, group in groupby(zip(job.pieces, _spans(job, path), strict=True), key=lambda pair: pair[0].word):
        own = list(group)
        count, total = sum(span.count for _, span in own), sum(span.total for _, span in own)
        whole = _Span(own[0][1].first, own[-1][1].until, count, total)
        chars = _chars(texts[index], own, seconds) if with_chars else ()
        found[index] = Word(seconds(whole.first), seconds(whole.until), texts[index], score=whole.score, chars=chars)
    return found


def _chars(word: str, own: list[tuple[Piece, _Span]], seconds: Callable[[float], float]) -> tuple[Char, ...]:
    """Every character of a word: those of a piece share its time, and mute ones have none (score 0)."""
    chars: list[Char] = []
    time, place = seconds(own[0][1].first), 0
    for piece, span in own:
        chars += [Char(time, time, text, 0.0) for text in word[place : piece.start]]
        edges = [seconds(edge) for edge in np.linspace(span.first, span.until, piece.end - piece.start + 1).tolist()]
        shares = zip(pairwise(edges), word[piece.start : piece.end], strict=True)
        chars += [Char(*share, text, span.score) for share, text in shares]
        time, place = edges[-1], piece.end
    return (*chars, *(Char(time, time, text, 0.0) for text in word[place:]))


def _complete(texts: list[str], found: dict[int, Word], segment: Segment, method: str) -> tuple[Word, ...]:
    """All words of a segment: those found, and between them the others as `method` says."""
    words: list[Word] = []
    for aligned, group in groupby(range(len(texts)), key=found.__contains__):
        run = list(group)
        if aligned or method == "ignore":
            words += [found[k] for k in run if aligned]
            continue
        left, right = found.get(run[0] - 1), found.get(run[-1] + 1)
        start, end = left.end if left else segment.start, right.start if right else segment.end
        if method == "linear" or not (left or right):
            words += _spread([texts[k] for k in run], start, end, segment)
            continue
        near = 0 if not left else len(run) if not right else (len(run) + 1) // 2  # how many belong to the left
        middle = min(end, start + FRAME * near)
        words += _spread([texts[k] for k in run[:near]], start, middle, segment)
        words += _spread([texts[k] for k in run[near:]], max(middle, end - FRAME * (len(run) - near)), end, segment)
    return tuple(words)


def _spread(texts: list[str], start: float, end: float, segment: Segment) -> list[Word]:
    """Words over [start, end], each as long as it has characters."""
    edges = np.cumsum([0, *(len(text) for text in texts)]).tolist()
    times = pairwise(_inside(start + (end - start) * edge / max(1, edges[-1]), segment) for edge in edges)
    return [Word(*time, text, aligned=False) for time, text in zip(times, texts, strict=True)]


def _inside(time: float, segment: Segment) -> float:
    """Rounded to milliseconds, but never out of the segment."""
    return min(max(round(time, 3), segment.start), segment.end)
