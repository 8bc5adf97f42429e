"""What the stages hand to each other: frozen dataclasses with every time in seconds from the start of the recording.

Recording → `Region`s of speech → `Chunk`s for recognition → `Segment`s of text → their `Word`s; `Turn`s of speakers;
together a `Transcript`. Samples and frames stay inside a stage. A result is never changed; `dataclasses.replace` makes
the next one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mlx_speech.errors import CorruptFile, OptionError, brief, shorten
from mlx_speech.json_objects import JsonObject, to_plain
from mlx_speech.languages import is_torn, joint, unspaced

FORMAT_VERSION = 1  # of the dictionaries of `Transcript.to_dict`

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
    token_logprobs : the natural logarithm of the probability of each of `tokens`; empty where nobody knows
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
    token_logprobs: tuple[float, ...] = ()

    def placed(self) -> tuple[str, list[tuple[int, int]]]:
        """The text, and where in it each word begins and ends, one behind the other.

        Where the text lacks some of the words, the words joined: by what the text has between those that it knows.
        """
        text = ""
        spans: list[tuple[int, int]] = []
        behind = 0  # the place in the segment's own text behind the words so far
        last_known = True  # whether that text has the last word
        for word in self.words:
            start = _find_word(word.text, self.text, behind)
            if start is not None and last_known:
                text += self.text[behind:start]
            else:
                text += joint(text, word.text)
            spans.append((len(text), len(text) + len(word.text)))
            text += word.text
            last_known = start is not None
            if start is not None:
                behind = start + len(word.text)
        if last_known:
            text += self.text[behind:]
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


def _find_word(word: str, text: str, start: int) -> int | None:
    """Where `text` has the word, from `start` on; None where it has not.

    Where the word is not the next thing that is said, it is looked for as a word of its own, so that "other" is not
    found in "another"; only if it never occurs as one, anywhere.
    """
    first = text.find(word, start)
    if first < 0:
        return None
    if not text[start:first].strip():
        return first
    place = first
    while place >= 0:
        if not _is_inside_word(text, place, place + len(word)):
            return place
        place = text.find(word, place + 1)
    return first


def _is_inside_word(text: str, start: int, end: int) -> bool:
    """Whether letters touch this piece of a text, in scripts that part words by spaces."""
    before = text[max(0, start - 1) : start]
    after = text[end : end + 1]
    return _is_one_word(before, text[start]) or _is_one_word(after, text[end - 1])


def _is_one_word(outer: str, inner: str) -> bool:
    """Whether a letter, or nothing, is of the word that the character next to it is at the edge of."""
    if not _LETTER.match(outer):
        return False
    return not unspaced(outer) and not unspaced(inner)


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
class Match:
    """The known voice that a speaker was compared with (`mlx_speech.voices`).

    name : of the voice
    score : cosine of the two, -1..1
    doubtful : the speaker sounds like it, and not so much that they were given its name
    """

    name: str
    score: float
    doubtful: bool = False


@dataclass(frozen=True)
class Diarization:
    """Who speaks when.

    turns : of every speaker, which may overlap
    exclusive : never two speakers at once; words take their speakers from these
    embeddings : one vector per speaker, as the clustering found it
    embedding_model : the weights that made them (`checkpoint.identity`); only vectors of the same can be compared
    matches : of speakers who sound like a known voice, by their label here
    """

    turns: tuple[Turn, ...] = ()
    exclusive: tuple[Turn, ...] = ()
    embeddings: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    embedding_model: str | None = None
    matches: Mapping[str, Match] = field(default_factory=dict)

    @property
    def speakers(self) -> tuple[str, ...]:
        """Labels of all who have a turn or an embedding, in alphabetical order."""
        labels = {turn.speaker for turn in (*self.turns, *self.exclusive)}
        return tuple(sorted(labels | self.embeddings.keys()))

    @property
    def seconds(self) -> dict[str, float]:
        """How long each speaker speaks, alone where that is known: label → seconds."""
        seconds = dict.fromkeys(self.speakers, 0.0)
        for turn in self.exclusive or self.turns:
            seconds[turn.speaker] += turn.duration
        return seconds

    def rename(self, names: Mapping[str, str], *, merge: bool = False) -> Diarization:
        """The same with other names for speakers; names, merge : as of `Transcript.rename`. Raises `OptionError`."""
        _check_names(names, self.speakers, merge)
        groups: dict[str, list[str]] = {}
        for label in self.speakers:
            groups.setdefault(names.get(label, label), []).append(label)
        merged = {name for name, labels in groups.items() if len(labels) > 1}
        embeddings: dict[str, tuple[float, ...]] = {}
        for label in self.embeddings:
            name = names.get(label, label)
            if name not in embeddings:
                embeddings[name] = self._mean_embedding(groups[name])
        matches: dict[str, Match] = {}
        for label, match in self.matches.items():
            name = names.get(label, label)
            if name not in matches or match.score > matches[name].score:
                matches[name] = match
        return replace(
            self,
            turns=_renamed_turns(self.turns, names, merged),
            exclusive=_renamed_turns(self.exclusive, names, merged),
            embeddings=embeddings,
            matches=matches,
        )

    def _mean_embedding(self, labels: list[str]) -> tuple[float, ...]:
        """Of speakers who are one, each counted by their seconds; of a single speaker theirs, exactly."""
        known = [label for label in labels if label in self.embeddings]
        vectors = [self.embeddings[label] for label in known]
        if len(vectors) == 1:
            return vectors[0]
        seconds = self.seconds
        weights = [seconds[label] for label in known]
        total = sum(weights)
        if total == 0:
            weights = [1.0] * len(vectors)
            total = float(len(vectors))
        mean: list[float] = []
        for values in zip(*vectors, strict=True):
            weighted = sum(weight * value for weight, value in zip(weights, values, strict=True))
            mean.append(weighted / total)
        return tuple(mean)


def _check_names(names: Mapping[str, str], known: Iterable[str], merge: bool) -> None:
    """Raises `OptionError` for new names of speakers who do not exist, and for two speakers who would become one."""
    labels = set(known)
    unknown = sorted(names.keys() - labels)
    if unknown:
        speakers = shorten(sorted(labels)) or "none"
        raise OptionError(f"nobody here is called {brief(unknown[0])}: the speakers are {speakers}")
    holders: dict[str, str] = {}
    for label in sorted(labels):
        name = names.get(label, label)
        if not name.strip():
            raise OptionError(f"the new name of {label} is empty: give one")
        if name in holders and not merge:
            both = f"{holders[name]} and {label}"
            raise OptionError(f"{both} would both be {brief(name)}: pass merge=True if they are one, or another name")
        holders[name] = label


def _renamed_turns(turns: Iterable[Turn], names: Mapping[str, str], merged: set[str]) -> tuple[Turn, ...]:
    """Turns under other names. merged : names of speakers who were several, whose turns are joined where they touch"""
    renamed: list[Turn] = []
    last: dict[str, int] = {}  # the place in `renamed` of the last turn of a merged speaker
    for turn in turns:
        name = names.get(turn.speaker, turn.speaker)
        place = last.get(name)
        if place is not None and renamed[place].start <= turn.start <= renamed[place].end:
            end = max(renamed[place].end, turn.end)
            renamed[place] = replace(renamed[place], end=end)
            continue
        if name in merged:
            last[name] = len(renamed)
        renamed.append(replace(turn, speaker=name))
    return tuple(renamed)


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

    @property
    def speakers(self) -> tuple[str, ...]:
        """Labels of all who have a word, a segment, a turn or an embedding, in alphabetical order."""
        labels = set(self.diarization.speakers) if self.diarization is not None else set()
        for spoken in (*self.segments, *self.words):
            if spoken.speaker is not None:
                labels.add(spoken.speaker)
        return tuple(sorted(labels))

    def rename(self, names: Mapping[str, str], *, merge: bool = False) -> Transcript:
        """The same with other names for speakers, wherever they stand: segments, words, turns, embeddings, matches.

        names : label → new name, all at once, so that two may change theirs; who is not in it keeps theirs
        merge : several may become one, whose turns are joined and whose embedding is the mean by seconds

        Raises `OptionError` for a label that there is not, and for several that become one without `merge`.
        """
        _check_names(names, self.speakers, merge)
        segments: list[Segment] = []
        for segment in self.segments:
            words = tuple(replace(word, speaker=_new_name(word.speaker, names)) for word in segment.words)
            segments.append(replace(segment, words=words, speaker=_new_name(segment.speaker, names)))
        diarization = self.diarization
        if diarization is not None:
            there = {label: name for label, name in names.items() if label in diarization.speakers}
            diarization = diarization.rename(there, merge=merge)
        return replace(self, segments=tuple(segments), diarization=diarization)

    def to_dict(self) -> dict[str, Any]:
        """All of it, exactly, in the types of JSON: `Transcript.from_dict` gives an equal transcript again.

        Keys are the names of the fields, and "format_version". `writers.as_dict` has whisperx's keys and rounds.
        """
        return {"format_version": FORMAT_VERSION, **to_plain(self)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Transcript:
        """The transcript that `to_dict` has described, also after JSON; what it says is not judged, but its types are.

        Raises `CorruptFile` where a value is missing or of another type, or the version is another one.
        """
        source = JsonObject(content)
        version = source.number("format_version")
        if version != FORMAT_VERSION:
            raise CorruptFile(f"format_version is {version:g} and not {FORMAT_VERSION}: update mlx_speech to read it")
        diarization = None
        if source.has("diarization"):
            diarization = _read_diarization(source.entry("diarization"))
        models = source.entry("models")
        seconds = source.entry("seconds")
        return cls(
            segments=tuple(_read_segment(segment) for segment in source.entries("segments")),
            language=source.optional_text("language"),
            language_probability=source.number("language_probability", 1.0),
            duration=source.number("duration", 0.0),
            diarization=diarization,
            models={stage: models.text(stage) for stage in models.names()},
            seconds={stage: seconds.number(stage) for stage in seconds.names()},
            silences=tuple(_read_region(region) for region in source.entries("silences")),
        )


def _new_name(label: str | None, names: Mapping[str, str]) -> str | None:
    return None if label is None else names.get(label, label)


def _read_segment(source: JsonObject) -> Segment:
    return Segment(
        start=source.number("start"),
        end=source.number("end"),
        text=source.text("text"),
        words=tuple(_read_word(word) for word in source.entries("words")),
        speaker=source.optional_text("speaker"),
        language=source.optional_text("language"),
        tokens=source.integers("tokens"),
        temperature=source.number("temperature", 0.0),
        avg_logprob=source.number("avg_logprob", 0.0),
        compression_ratio=source.number("compression_ratio", 0.0),
        no_speech_prob=source.number("no_speech_prob", 0.0),
        spaced=source.flag("spaced", False),
        token_logprobs=source.numbers("token_logprobs"),
    )


def _read_word(source: JsonObject) -> Word:
    return Word(
        start=source.number("start"),
        end=source.number("end"),
        text=source.text("text"),
        score=source.number("score", 0.0),
        speaker=source.optional_text("speaker"),
        aligned=source.flag("aligned", True),
        chars=tuple(_read_char(char) for char in source.entries("chars")),
    )


def _read_char(source: JsonObject) -> Char:
    return Char(
        start=source.number("start"),
        end=source.number("end"),
        text=source.text("text"),
        score=source.number("score"),
    )


def _read_region(source: JsonObject) -> Region:
    return Region(start=source.number("start"), end=source.number("end"))


def _read_turn(source: JsonObject) -> Turn:
    return Turn(start=source.number("start"), end=source.number("end"), speaker=source.text("speaker"))


def _read_diarization(source: JsonObject) -> Diarization:
    embeddings = source.entry("embeddings")
    return Diarization(
        turns=tuple(_read_turn(turn) for turn in source.entries("turns")),
        exclusive=tuple(_read_turn(turn) for turn in source.entries("exclusive")),
        embeddings={speaker: embeddings.numbers(speaker) for speaker in embeddings.names()},
        embedding_model=source.optional_text("embedding_model"),
        matches=read_matches(source.entry("matches")),
    )


def read_matches(source: JsonObject) -> dict[str, Match]:
    """Matches as `to_plain` writes them, by label. Raises `CorruptFile`."""
    matches: dict[str, Match] = {}
    for speaker in source.names():
        match = source.entry(speaker)
        matches[speaker] = Match(match.text("name"), match.number("score"), match.flag("doubtful", False))
    return matches
