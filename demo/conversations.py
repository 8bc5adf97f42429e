"""Conversations put together from utterances, with their exact words, times and speakers."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from demo import RATE
from demo.augment import augment
from demo.corpus import Corpus, Utterance

GAP = 0.25  # seconds: a turn is split where its speaker is silent for longer
GOES_ON = 0.2  # how often the same speaker goes on after a pause
OVERLAP = (0.1, 0.8)  # seconds
LEVELS = (-6.0, 0.0)  # dB of the speakers
PEAK = 0.7
EDGE = (0.2, 0.8)  # seconds before the first word and after the last


@dataclass(frozen=True)
class Placed:
    """An utterance of speaker number `speaker`, whose samples begin `start` seconds into the conversation."""

    utterance: Utterance
    start: float
    speaker: int

    @property
    def first(self) -> float:
        return self.start + float(self.utterance.starts[0])

    @property
    def last(self) -> float:
        return self.start + float(self.utterance.ends[-1])


@dataclass(frozen=True)
class Conversation:
    """samples : (n,) float32 at 16 kHz; placed : in order of their start"""

    samples: np.ndarray
    placed: tuple[Placed, ...]

    @property
    def duration(self) -> float:
        return self.samples.size / RATE

    @property
    def turns(self) -> list[tuple[float, float, int]]:
        """(start, end, speaker) in seconds, in order: an utterance's words, split where it pauses."""
        found = []
        for placed in self.placed:
            starts, ends = placed.utterance.starts, placed.utterance.ends
            cuts = np.flatnonzero(starts[1:] - ends[:-1] > GAP) + 1
            for a, b in zip([0, *cuts], [*cuts, len(starts)], strict=True):
                found.append((placed.start + float(starts[a]), placed.start + float(ends[b - 1]), placed.speaker))
        return sorted(found)

    @property
    def words(self) -> list[tuple[float, float, str, int, bool]]:
        """(start, end, word, speaker, exact) in seconds, in order."""
        found = []
        for placed in self.placed:
            spoken = placed.utterance
            times = zip(spoken.starts, spoken.ends, spoken.words, spoken.exact, strict=True)
            for start, end, word, exact in times:
                found.append(
                    (placed.start + float(start), placed.start + float(end), word, placed.speaker, bool(exact))
                )
        return sorted(found)


def variant(speaker: str) -> str:
    """Of an identity, the synthesizer's voice: "en+f3 50 40 170 1.000" → "f3", "flite awb" → "flite awb"."""
    name = speaker.split("+", 1)[1].split()[:1] if "+" in speaker else speaker.split()[:2]
    return " ".join(name)


_numbers: weakref.WeakKeyDictionary[Corpus, dict[str, np.ndarray]] = weakref.WeakKeyDictionary()


def by_speaker(corpus: Corpus) -> Mapping[str, np.ndarray]:
    """The numbers of every speaker's utterances."""
    if corpus not in _numbers:
        names, inverse = np.unique(corpus.speakers, return_inverse=True)
        order = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
        _numbers[corpus] = {str(name): numbers for name, numbers in zip(names, order, strict=True)}
    return _numbers[corpus]


def choose(names: list[str], rng: np.random.Generator, count: int) -> list[str]:
    """`count` of the speakers, no two with the same voice. Raises `ValueError` where there are too few voices."""
    chosen: dict[str, str] = {}
    for i in rng.permutation(len(names)):
        chosen.setdefault(variant(names[i]), names[i])
        if len(chosen) == count:
            return list(chosen.values())
    raise ValueError(f"{count} speakers, but there are {len(chosen)} voices")


def compose(
    corpus: Corpus,
    rng: np.random.Generator,
    seconds: float,
    speakers: int,
    *,
    overlap: float = 0.15,
    pause: tuple[float, float] = (0.1, 1.2),
    augmented: bool = True,
    names: list[str] | None = None,
) -> Conversation:
    """A conversation whose last word comes before `seconds`, if not in its first utterance; none comes twice.

    overlap : the part of the changes of speaker at which the next begins before the last has ended
    pause : seconds between two utterances, where they do not overlap
    augmented : one room, one microphone and one noise for all
    names : the speakers to choose from, by default all of the corpus
    """
    numbers = by_speaker(corpus)
    chosen = choose(names or list(numbers), rng, speakers)
    order = list(rng.permutation(speakers))  # everyone's first turn, before chance decides who speaks
    used: set[int] = set()
    placed: list[Placed] = []
    while True:
        last = placed[-1].speaker if placed else -1
        if order:
            speaker = int(order.pop(0))
        elif speakers == 1 or rng.random() < GOES_ON:
            speaker = last
        else:
            speaker = int(rng.choice([k for k in range(speakers) if k != last]))
        free = [i for i in numbers[chosen[speaker]] if i not in used]
        if not free:
            break
        number = int(rng.choice(free))
        utterance = corpus[number]
        first = rng.uniform(*EDGE) if not placed else placed[-1].last + rng.uniform(*pause)
        if placed and speaker != last and rng.random() < overlap:
            # never three at once, and the last word of the two is the second's
            shared = min(rng.uniform(*OVERLAP), (placed[-1].last - placed[-1].first) / 2, _spoken(utterance) / 2)
            earliest = max((before.last for before in placed[:-1]), default=0.0)
            first = max(placed[-1].last - shared, earliest + 0.05)
        start = max(0.0, first - float(utterance.starts[0]))
        if placed and start + utterance.duration > seconds:
            break
        used.add(number)
        placed.append(Placed(utterance, round(start * RATE) / RATE, speaker))
    samples = _mixed(placed, rng)
    return Conversation(augment(samples, rng) if augmented else samples, tuple(placed))


def _spoken(utterance: Utterance) -> float:
    return float(utterance.ends[-1] - utterance.starts[0])


def _mixed(placed: list[Placed], rng: np.random.Generator) -> np.ndarray:
    end = max(one.start + one.utterance.duration for one in placed) + rng.uniform(*EDGE)
    samples = np.zeros(round(end * RATE), np.float32)
    levels = 10 ** (rng.uniform(*LEVELS, size=1 + max(one.speaker for one in placed)) / 20)
    for one in placed:
        start = round(one.start * RATE)
        samples[start : start + one.utterance.samples.size] += levels[one.speaker] * one.utterance.samples
    return (samples * (PEAK / np.abs(samples).max())).astype(np.float32)
