"""What the stages hand to each other: frozen dataclasses with every time in seconds from the start of the recording.

Recording → `Region`s of speech → `Chunk`s for recognition → `Segment`s of text → their `Word`s; `Turn`s of speakers;
together a `Transcript`. Samples and frames stay inside a stage. A result is never changed; `dataclasses.replace` makes
the next one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from mlx_speech.languages import is_torn, joint, unspaced

_LETTER = re.compile(r"\w")


@dataclass(frozen=True)
class Region:
    """A stretch of the recording in which somebody speaks.

    start, end : seconds from the start of the recording, 0 <= start <= end
    """

    start: float
    end: float

    @property
    def duration(self) -> float:
        """Seconds from start to end."""
        return self.end - self.start


@dataclass(frozen=True)
class Chunk(Region):
    """A contiguous slice of the recording that is recognised at once; pauses between its `regions` are part of it."""

    regions: tuple[Region, ...] = ()


@dataclass(frozen=True)
class Char(Region):
    """One character of a word.

    score : its mean probability in the frames it was aligned to, 0..1
    """

    text: str
    score: float


@dataclass(frozen=True)
class Word(Region):
    """One word, without surrounding spaces.

    score : its mean probability, 0..1; 0 where it was not aligned
    aligned : False where its time is not found in the sound but put between those of its neighbours
    chars : its characters, where they were asked for
    """

    text: str
    score: float = 0.0
    speaker: str | None = None
    aligned: bool = True
    chars: tuple[Char, ...] = ()


@dataclass(frozen=True)
class Segment(Region):
    """A piece of text: a chunk, a stretch between two of Whisper's timestamps, or a sentence.

    text : as recognised, without surrounding spaces
    tokens : Whisper's, without special ones; empty for a sentence
    spaced : whether a space was recognised before the text; False also where nobody knows
    temperature, avg_logprob, compression_ratio, no_speech_prob : of the decoding that gave it (openai/whisper's names)
    """

    text: str
    words: tuple[Word, ...] = ()
    speaker: str | None = None
    language: str | None = None
    tokens: tuple[int, ...] = ()
    temperature: float = 0.0
    avg_logprob: float = 0.0
    compression_ratio: float = 0.0
    no_speech_prob: float = 0.0
    spaced: bool = False

    def placed(self) -> tuple[str, list[tuple[int, int]]]:
        """The text, and where in it each word begins and ends, one behind the other.

        Where the text lacks some of the words, the words joined: by what the text has between those that it knows.
        """
        text, spans = "", []
        place = 0  # in the segment's own text, behind the words so far
        last_known = True  # whether it has the last word
        for word in self.words:
            found = _find(word.text, self.text, place)
            if found is not None and last_known:
                text += self.text[place:found]
            else:
                text += joint(text, word.text)
            spans.append((len(text), len(text) + len(word.text)))
            text += word.text
            last_known = found is not None
            if found is not None:
                place = found + len(word.text)
        if last_known:
            text += self.text[place:]
        return text, spans

    def whole_words(self) -> list[list[Word]]:
        """The words, those together that the text writes as one: "$43" and ",000", or parts of one character."""
        text, spans = self.placed()
        groups: list[list[Word]] = []
        last_end = 0
        for word, (start, end) in zip(self.words, spans, strict=True):
            if groups and start == last_end and is_torn(text[:start], text[start:]):
                groups[-1].append(word)
            else:
                groups.append([word])
            last_end = end
        return groups


def _find(word: str, text: str, start: int) -> int | None:
    """Where `text` has the word from `start` on. Where it is not the next thing that is said, as a word of its own if
    it occurs as one: "other" is not looked for in "another"."""
    first = text.find(word, start)
    if first < 0:
        return None
    if not text[start:first].strip():
        return first
    found = first
    while found >= 0:
        if not _is_inside_word(text, found, found + len(word)):
            return found
        found = text.find(word, found + 1)
    return first


def _is_inside_word(text: str, start: int, end: int) -> bool:
    """Whether letters touch this piece of a text, in scripts that part words by spaces."""
    edges = ((text[max(0, start - 1) : start], text[start]), (text[end : end + 1], text[end - 1]))
    return any(_LETTER.match(beside) and not unspaced(beside) and not unspaced(own) for beside, own in edges)


def space_between(before: str, segment: Segment) -> str:
    """What belongs between a text and the segment that follows it: a space where one was recognised, or where words of
    the script at the joint are parted by spaces; else nothing."""
    if segment.spaced and before and segment.text:
        return " "
    return joint(before, segment.text)


@dataclass(frozen=True)
class Turn(Region):
    """A stretch in which one speaker speaks."""

    speaker: str


@dataclass(frozen=True)
class Diarization:
    """Who speaks when.

    turns : of every speaker, which may overlap
    exclusive : never two speakers at once; words take their speakers from these
    embeddings : one vector per speaker, as the clustering found it
    """

    turns: tuple[Turn, ...] = ()
    exclusive: tuple[Turn, ...] = ()
    embeddings: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Transcript:
    """All that is known of a recording.

    duration : seconds
    language : the code of the language ("en"); with several, that of most of the speech
    language_probability : as detected; 1 where the language was given
    models : the model of each stage that ran; seconds : how long each took
    silences : what the detector calls speech and Whisper, on a second hearing as well, does not
    """

    segments: tuple[Segment, ...] = ()
    language: str | None = None
    language_probability: float = 1.0
    duration: float = 0.0
    diarization: Diarization | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    silences: tuple[Region, ...] = ()

    @property
    def text(self) -> str:
        """All of it, a segment a line."""
        return "\n".join(segment.text for segment in self.segments)

    @property
    def words(self) -> tuple[Word, ...]:
        """Of all segments, in order."""
        return tuple(word for segment in self.segments for word in segment.words)
