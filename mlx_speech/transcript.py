"""What the stages hand to each other: frozen dataclasses with every time in seconds from the start of the recording.

Recording → `Region`s of speech → `Chunk`s for recognition → `Segment`s of text → their `Word`s; `Turn`s of speakers;
together a `Transcript`. Samples and frames stay inside a stage. A result is never changed; `dataclasses.replace` makes
the next one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

UNSPACED = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km", "bo"})  # languages written without spaces


def separator(language: str | None) -> str:
    """What stands between the words of a language: a space or nothing."""
    return "" if language in UNSPACED else " "


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

    @property
    def places(self) -> list[int]:
        """Where in the text each word begins, one behind the other; with a -1 among them where the text has others."""
        places, place = [], 0
        for word in self.words:
            places.append(self.text.find(word.text, place))
            place = max(place, places[-1] + len(word.text))
        return places


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
    """

    segments: tuple[Segment, ...] = ()
    language: str | None = None
    language_probability: float = 1.0
    duration: float = 0.0
    diarization: Diarization | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """All of it, a segment a line."""
        return "\n".join(segment.text for segment in self.segments)

    @property
    def words(self) -> tuple[Word, ...]:
        """Of all segments, in order."""
        return tuple(word for segment in self.segments for word in segment.words)
