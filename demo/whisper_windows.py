"""What the demo Whisper trains on: windows of at most 7 s, with their text, and labels for their frames.

A window is one sentence, or, as the pipeline's chunks of a conversation, some utterances of several voices with pauses
and overlaps, now and then cut at its ends between two words. Frames are those of the encoder's output, 20 ms apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from demo import RATE
from demo.augment import augment, noise_of
from demo.corpus import Corpus, Utterance
from demo.grammar import CAPITAL, WORDS, written
from demo.vocabulary import encoded, ids

FRAME = 0.02  # seconds
LENGTH = 7.0  # seconds of a window: a sentence, two if they are short
WIDER = 0.06  # seconds by which attention may miss a word
UNKNOWN = -100  # the label of frames that are not scored
NUMBERS = {word: k for k, word in enumerate(WORDS, 1)}  # 0 is no word


@dataclass
class Part:
    """An utterance, or a piece of it, `at` seconds into the window."""

    utterance: Utterance
    at: float
    begins: bool = True  # with the first word of its sentence
    ends: bool = True

    @property
    def text(self) -> str:
        words = self.utterance.words
        text = written(words) if self.ends else written(words)[:-1]
        return " " + (text if self.begins or words[0] in CAPITAL else text[0].lower() + text[1:])


@dataclass
class Window:
    samples: np.ndarray  # (n,) float32
    parts: list[Part]  # none: noise alone


def words_of(utterance: Utterance, first: int, last: int) -> Utterance:
    """Words `first` up to `last`, with their sound; cut between words, or 20 ms from them."""
    u = utterance
    start = 0 if first == 0 else max(0.0, u.starts[first] - FRAME)
    end = u.duration if last == len(u.words) else min(u.ends[last - 1] + FRAME, u.duration)
    a, b = round(start * RATE), round(end * RATE)
    keep = (u.phone_starts < end) & (np.append(u.phone_starts[1:], u.duration) > start)
    return Utterance(
        samples=u.samples[a:b],
        words=u.words[first:last],
        starts=np.maximum(u.starts[first:last] - start, 0),
        ends=np.minimum(u.ends[first:last] - start, (b - a) / RATE),
        exact=u.exact[first:last],
        phones=u.phones[keep],
        phone_starts=np.maximum(u.phone_starts[keep] - start, 0),
        speaker=u.speaker,
    )


def resampled(utterance: Utterance, factor: float) -> Utterance:
    """Faster and higher by `factor`."""
    u = utterance
    samples = np.interp(np.arange(0, u.samples.size - 1, factor), np.arange(u.samples.size), u.samples)
    scaled = {name: getattr(u, name) / factor for name in ("starts", "ends", "phone_starts")}
    return Utterance(**{**vars(u), "samples": samples.astype(np.float32), **scaled})


def drawn(corpus: Corpus, rng: np.random.Generator, number: int) -> Utterance:
    utterance = corpus[number]
    return resampled(utterance, rng.uniform(0.88, 1.14)) if rng.random() < 0.5 else utterance


def single(corpus: Corpus, rng: np.random.Generator, seconds: float, lengths: np.ndarray) -> list[Window]:
    """Sentences of about the same length, together of about `seconds`. lengths : the utterances from the shortest."""
    at = rng.integers(len(lengths))
    near = lengths[max(0, at - len(lengths) // 50) : at + len(lengths) // 50 + 1]
    count = max(1, round(seconds / (corpus.durations[near[-1]] + 0.2)))
    windows = []
    for number in rng.choice(near, count):
        utterance = drawn(corpus, rng, number)
        before, after = rng.uniform(0, 0.2, 2)
        samples = np.pad(utterance.samples, (round(before * RATE), round(after * RATE)))
        samples = augment(samples, rng) if rng.random() < 0.7 else samples
        windows.append(Window(samples[: round(LENGTH * RATE)], [Part(utterance, round(before * RATE) / RATE)]))
    return windows


def composed(corpus: Corpus, rng: np.random.Generator) -> Window:
    """One to three utterances in at most 7 s."""
    parts: list[Part] = []
    end = rng.uniform(0, 0.5)
    for _ in range(rng.choice([1, 2, 3], p=[0.35, 0.5, 0.15])):
        utterance = drawn(corpus, rng, rng.integers(len(corpus)))
        begins, ends = bool(parts) or rng.random() > 0.12, True
        if not begins:
            first = int(rng.integers(1, len(utterance.words)))
            utterance = words_of(utterance, first, len(utterance.words))
        at = end
        if parts:
            shared = min(rng.uniform(0.1, 0.8), utterance.duration / 2, parts[-1].utterance.duration / 2)
            at += -shared if rng.random() < 0.35 else rng.uniform(0.05, 1.2)
        at = round(at * RATE) / RATE
        fit = int(np.sum(at + utterance.ends + FRAME < LENGTH))
        if fit < len(utterance.words) or at + utterance.duration > LENGTH:
            if fit == 0 or (parts and rng.random() > 0.35):
                break
            ends = fit == len(utterance.words)
            utterance = words_of(utterance, 0, fit)
        parts.append(Part(utterance, at, begins, ends))
        end = at + utterance.duration
        if not ends:
            break
    samples = np.zeros(min(round((end + rng.uniform(0, 0.5)) * RATE), round(LENGTH * RATE)), np.float32)
    for part in parts:
        a = round(part.at * RATE)
        piece = part.utterance.samples[: samples.size - a] * 10 ** (rng.uniform(-6, 0) / 20)
        samples[a : a + piece.size] += piece
    return Window(augment(samples, rng) if rng.random() < 0.85 else samples, parts)


def silent(rng: np.random.Generator) -> Window:
    """Noise without speech, or nothing."""
    size = int(rng.uniform(0.5, LENGTH) * RATE)
    return Window(noise_of(size, rng) * rng.choice([0, 0.001, 0.01, 0.05]), [])


def frame_labels(window: Window, frames: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Phone and word of every frame, (frames,); UNKNOWN where they cannot be told, and after the end."""
    phones, words = np.zeros(frames, np.int64), np.zeros(frames, np.int64)
    last = 0
    for part in window.parts:
        u = part.utterance
        a, b = round(part.at / FRAME), min(frames, round((part.at + u.duration) / FRAME))
        times = np.arange(a, b) * FRAME - part.at
        index = np.searchsorted(u.starts, times, "right") - 1
        said = np.array([NUMBERS[word] for word in u.words])
        inside = (index >= 0) & (times < u.ends[index])
        words[a:b] = np.where(inside, said[index], 0)
        index = np.searchsorted(u.phone_starts, times, "right") - 1
        phones[a:b] = np.where(index >= 0, u.phones[index], 0) if u.phones.size else UNKNOWN
        if a < last:
            phones[a:last] = words[a:last] = UNKNOWN
        last = max(last, b)
    over = min(frames, round(window.samples.size / RATE / FRAME) + 10)
    phones[over:] = words[over:] = UNKNOWN
    return phones, words


def target(
    window: Window, rng: np.random.Generator, timestamps: bool, shift: float
) -> tuple[list[int], list[int], np.ndarray]:
    """Tokens that the decoder is given, those that it should say after each, and where it should listen then.

    shift : seconds that the timestamps are ahead
    Returns (n,), (n,) with UNKNOWN where anything goes, and spans (n, 2) in seconds, -1 where it may listen anywhere.
    """
    token = ids()
    end, none = token["<|endoftext|>"], token["<|notimestamps|>"]
    given = [token[f"<|{name}|>"] for name in ("startoftranscript", "en", "transcribe")]
    if not window.parts:
        spans = np.full((4, 2), -1.0)
        return [*given, none], [token["<|nospeech|>"], UNKNOWN, UNKNOWN, end], spans
    said = given[1:]
    spans = [(-1.0, -1.0)] * 2
    if not timestamps:
        said.append(none)
        spans.append((-1.0, -1.0))
    previous = 0.0
    for part in window.parts:
        u = part.utterance
        times = [(part.at + a - WIDER, part.at + b + WIDER) for a, b in zip(u.starts, u.ends, strict=True)]
        text = encoded(part.text)
        start, stop = part.at + float(u.starts[0]), part.at + float(u.ends[-1])
        if len(text) > len(times):
            times.append((stop - 0.15, stop + 0.25))
        if timestamps:
            start, stop = max(start, previous), max(stop, start + FRAME, previous)
            text = [token["<|0.00|>"] + round((time + shift) / FRAME) for time in (start, stop)]
            text[1:1] = encoded(part.text)
            times = [(start - 0.1, start + 0.1), *times, (stop - 0.1, stop + 0.1)]
            previous = stop
        said += text
        spans += times
    return [given[0], *said], [*said, end], np.array([*spans, (-1.0, -1.0)])


def prompt(corpus: Corpus, rng: np.random.Generator) -> list[int]:
    """What was said before, as a decoder is told it: up to 63 tokens."""
    numbers = rng.integers(len(corpus), size=rng.integers(1, 5))
    text = [token for number in numbers for token in encoded(" " + written(corpus.words(int(number))))]
    return [ids()["<|startofprev|>"], *text[-63:]]
