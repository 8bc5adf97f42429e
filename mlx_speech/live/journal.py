"""The journal of a live session, `NAME.live.jsonl`: what is final is on the disk before anybody could lose it.

A record is a line of JSON. The first is a header; then `Final`s, `Speakers` and `Gap`s follow, as they are told. A line
that breaks off at the end was being written when the process was killed, and counts as not there.

A session that finds a journal goes on with it. It writes another header, whose `offset` says how many seconds were
taken in before, and all its events are moved behind that (`Continued`): times by the offset, numbers of chunks and
speakers by how many there were. So all times of a journal are on one line. Who speaks cannot be carried over: voices of
a later part have labels of their own, unless they are known by name.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from mlx_speech import transcript
from mlx_speech.errors import CorruptFile, OutputError, SourceError, SourceNotFound
from mlx_speech.json_objects import JsonObject, to_plain
from mlx_speech.live.defaults import JOURNAL_SUFFIX
from mlx_speech.live.events import Ended, Final, Gap, LiveEvent, Partial, Relabelled, Silence, Speakers, Speech
from mlx_speech.transcript import Diarization, Segment, Transcript, Turn, Word
from mlx_speech.version import __version__

FORMAT_VERSION = 1
SYNC_SECONDS = 2.0  # between two times that the disk is told to keep what was written
_LABEL = re.compile(r"SPEAKER_(\d+)")  # of somebody who is not known by name


# --- moving behind what was there ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Continued:
    """Moves a session's events behind those of the sessions before it.

    offset : seconds
    chunks, speakers : how many there were
    before : what was final
    """

    offset: float = 0.0
    chunks: int = 0
    speakers: int = 0
    before: Transcript = field(default_factory=Transcript)

    @property
    def is_first(self) -> bool:
        """Whether nothing was there."""
        return not (self.offset or self.chunks)

    def event(self, event: LiveEvent) -> LiveEvent:
        """The event with times, chunks and speakers of the whole; `Ended` has the transcript of the whole."""
        if self.is_first:
            return event
        at = event.at + self.offset
        match event:
            case Speech():
                return replace(event, at=at, start=event.start + self.offset)
            case Silence() | Gap():
                return replace(event, at=at, start=event.start + self.offset, end=event.end + self.offset)
            case Partial():
                words = tuple(self._word(word) for word in event.words)
                return replace(event, at=at, chunk=event.chunk + self.chunks, words=words)
            case Final():
                return Final(
                    at=at,
                    chunk=event.chunk + self.chunks,
                    start=event.start + self.offset,
                    end=event.end + self.offset,
                    segments=self._segments(event.segments),
                )
            case Speakers():
                changes = tuple(self._change(change) for change in event.changes)
                names = tuple(self.label(name) for name in event.names)
                return Speakers(at=at, changes=changes, names=names, until=event.until + self.offset)
            case Ended():
                return replace(event, at=at, transcript=self.joined(event.transcript))
        return replace(event, at=at)

    def label(self, label: str) -> str:
        """The label of a speaker of this session in the whole: SPEAKER_00 behind two others is SPEAKER_02."""
        match = _LABEL.fullmatch(label)
        if match is None:
            return label
        return f"SPEAKER_{int(match[1]) + self.speakers:02d}"

    def joined(self, transcript: Transcript) -> Transcript:
        """What was final, and behind it this session's transcript."""
        diarization = self._joined_diarization(transcript.diarization)
        language = transcript.language
        if language is None:
            language = self.before.language
        return replace(
            transcript,
            segments=self.before.segments + self._segments(transcript.segments),
            language=language,
            duration=self.offset + transcript.duration,
            diarization=diarization,
            silences=tuple(self._region(region) for region in transcript.silences),
        )

    def _joined_diarization(self, diarization: Diarization | None) -> Diarization | None:
        before = self.before.diarization
        if diarization is None:
            return before
        earlier = before or Diarization()
        return replace(
            diarization,
            turns=earlier.turns + tuple(self._turn(turn) for turn in diarization.turns),
            exclusive=earlier.exclusive + tuple(self._turn(turn) for turn in diarization.exclusive),
            embeddings={self.label(name): vector for name, vector in diarization.embeddings.items()},
            matches={self.label(name): match for name, match in diarization.matches.items()},
        )

    def _optional_label(self, label: str | None) -> str | None:
        return None if label is None else self.label(label)

    def _segments(self, segments: Iterable[Segment]) -> tuple[Segment, ...]:
        moved: list[Segment] = []
        for segment in segments:
            words = tuple(self._word(word) for word in segment.words)
            moved.append(replace(self._region(segment), words=words, speaker=self._optional_label(segment.speaker)))
        return tuple(moved)

    def _word(self, word: Word) -> Word:
        chars = tuple(self._region(char) for char in word.chars)
        return replace(self._region(word), speaker=self._optional_label(word.speaker), chars=chars)

    def _turn(self, turn: Turn) -> Turn:
        return replace(self._region(turn), speaker=self.label(turn.speaker))

    def _change(self, change: Relabelled) -> Relabelled:
        return Relabelled(
            start=change.start + self.offset,
            end=change.end + self.offset,
            before=self._optional_label(change.before),
            speaker=self._optional_label(change.speaker),
        )

    def _region(self, region: Any) -> Any:
        return replace(region, start=region.start + self.offset, end=region.end + self.offset)


# --- writing ---------------------------------------------------------------------------------------------------------


class Journal:
    """An open journal: of a new session, or of one that goes on.

    path : of the file, which is made where it is missing; another process cannot have it at the same time
    clock : seconds, for tests
    recovered : what was there

    Raises `OutputError` where it cannot be written, and `CorruptFile` where the file is no journal.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock
        self._unsynced = False
        self._synced = clock()
        self._file = _locked(path)
        try:
            self.recovered = read_journal(path)
            self._drop_torn_line()
        except SourceError:
            self._file.close()
            raise
        self._says_something = self.recovered.says_something

    @property
    def says_something(self) -> bool:
        """Whether it has more than headers: something that would be lost with it."""
        return self._says_something

    def begin(self, options: Mapping[str, Any], *, offset: float = 0.0, started: float | None = None) -> Continued:
        """Write the header, before the first sample. Returns what moves the session's events behind what was there.

        options : of the session, for those who read the file
        offset : seconds that were taken in before, where more is known of them than what the journal says
        started : in seconds since 1970; by default now
        """
        recovered = self.recovered
        offset = max(offset, recovered.seconds)
        return self._begin(options, offset, started)

    def begin_again(self, options: Mapping[str, Any]) -> Continued:
        """As `begin`, for sound that comes again from the end of what is final: nothing between is missing."""
        return self._begin(options, self.recovered.final_until, None)

    def _begin(self, options: Mapping[str, Any], offset: float, started: float | None) -> Continued:
        begun = time.time() if started is None else started
        header = {
            "type": "header",
            "format_version": FORMAT_VERSION,
            "version": __version__,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begun)),
            "offset": offset,
            "options": options,
        }
        self._write(header)
        recovered = read_journal(self.path)  # without what is told again
        return Continued(offset, recovered.chunks, recovered.speakers, recovered.transcript)

    def add(self, event: LiveEvent) -> None:
        """Write what is final of a session: `Final`, `Speakers` and `Gap`; other events are not kept.

        Raises `OutputError`.
        """
        match event:
            case Final():
                kind = "final"
            case Speakers():
                kind = "speakers"
            case Gap():
                kind = "gap"
            case _:
                return
        self._write({"type": kind, **to_plain(event)})
        self._says_something = True

    def sync(self) -> None:
        """Have the disk keep what was written, where that is due: call it now and then. Raises `OutputError`."""
        if self._unsynced and self._clock() - self._synced >= SYNC_SECONDS:
            self._sync()

    def close(self) -> None:
        """Close it, for a later session to go on; one that says nothing is removed. Raises `OutputError`."""
        if self._file.closed:
            return
        try:
            if self._says_something:
                self._sync()
            else:
                self.path.unlink(missing_ok=True)
        finally:
            self._file.close()

    def remove(self) -> None:
        """Delete it and close it: the results are written."""
        self.path.unlink(missing_ok=True)  # while it is locked: what is there afterwards may be another session's
        self._file.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        try:
            written = self._file.write(line)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror}): make room there") from error
        if written != len(line):
            raise OutputError(f"{self.path}: cannot be written (the disk is full): make room there")
        self._unsynced = True
        self.sync()

    def _sync(self) -> None:
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror}): make room there") from error
        self._synced = self._clock()
        self._unsynced = False

    def _drop_torn_line(self) -> None:
        """What is written next has to begin a line."""
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._file.fileno(), whole)


def _locked(path: Path) -> BinaryIO:
    """The file, opened to append to and this process's alone. Raises `OutputError`."""
    while True:
        try:
            file = path.open("ab", buffering=0)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror}): choose another folder") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):
                return file
        except BlockingIOError as error:
            file.close()
            raise OutputError(f"{path}: another session writes it: choose another name") from error
        except OSError as error:
            file.close()
            raise OutputError(f"{path}: cannot be written ({error.strerror}): choose another folder") from error
        file.close()  # another session removed it between the two steps


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether the open file is the one that has this path."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file.fileno()), there)


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recovered:
    """What a journal says.

    transcript : of what is final, in the order in which it came
    seconds : of sound that were taken in until the last record, at least
    final_until : seconds from the beginning to the end of the last final; what lies behind may have been heard in part
    chunks, speakers : how many there are, of the latter those without a name
    sessions : how many wrote it
    says_something : whether there is more than headers
    """

    transcript: Transcript
    seconds: float
    final_until: float
    chunks: int
    speakers: int
    sessions: int
    says_something: bool


def read_journal(path: Path) -> Recovered:
    """What a journal says; a last line without an end is not looked at, and a file without a line says nothing.

    Raises `SourceNotFound`, `SourceError` where it cannot be read, and `CorruptFile` where it is no journal.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise SourceNotFound(f"{path}: there is no such file: is the path right?") from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}): give a file {JOURNAL_SUFFIX}") from error
    lines = content.split(b"\n")[:-1]  # behind the last end of line nothing follows, or what was torn
    history = _History()
    for number, line in enumerate(lines, start=1):
        try:
            history.add(json.loads(line))
        except (ValueError, CorruptFile) as error:
            raise CorruptFile(
                f"{path}: line {number} is none of a journal ({error}): give a file {JOURNAL_SUFFIX}"
            ) from error
    return history.recovered()


class _History:
    """Records, one behind the other."""

    def __init__(self) -> None:
        self._segments: list[Segment] = []
        self._speakers = _Timeline()
        self._seconds = 0.0
        self._final_until = 0.0
        self._chunks = 0
        self._labels = 0
        self._sessions = 0
        self._says_something = False

    def add(self, content: Any) -> None:
        """The next one. content : as `json.loads` gives it. Raises `CorruptFile`."""
        record = JsonObject(content)
        kind = record.text("type")
        if kind != "header" and not self._sessions:
            raise CorruptFile("no header comes before it")
        match kind:
            case "header":
                self._add_header(record)
            case "final":
                self._add_final(record, content)
            case "speakers":
                self._add_speakers(record)
            case "gap":
                self._hear(record.number("end"))
        if kind != "header":
            self._hear(record.number("at"))
            self._says_something = True

    def recovered(self) -> Recovered:
        """All of it."""
        segments = tuple(self._segments)
        diarization = self._speakers.diarization()
        if diarization is not None:
            from mlx_speech.stages.assign import assign_speakers

            segments = assign_speakers(segments, diarization)
        told = Transcript(
            segments=segments,
            language=_commonest_language(segments),
            duration=self._seconds,
            diarization=diarization,
        )
        return Recovered(
            transcript=told,
            seconds=self._seconds,
            final_until=self._final_until,
            chunks=self._chunks,
            speakers=self._labels,
            sessions=self._sessions,
            says_something=self._says_something,
        )

    def _hear(self, seconds: float) -> None:
        self._seconds = max(self._seconds, seconds)

    def _add_header(self, record: JsonObject) -> None:
        version = record.number("format_version")
        if version != FORMAT_VERSION:
            raise CorruptFile(f"format_version is {version:g} and not {FORMAT_VERSION}: update mlx_speech to read it")
        offset = record.number("offset")
        self._hear(offset)
        self._speakers.cut(offset)
        self._sessions += 1

    def _add_final(self, record: JsonObject, content: Mapping[str, Any]) -> None:
        # a final's segments are written as a transcript's
        segments = Transcript.from_dict({**content, "format_version": transcript.FORMAT_VERSION}).segments
        self._segments += segments
        self._chunks = max(self._chunks, int(record.number("chunk")) + 1)
        end = record.number("end")
        self._final_until = max(self._final_until, end)
        self._hear(end)
        for segment in segments:
            self._count(segment.speaker)

    def _add_speakers(self, record: JsonObject) -> None:
        for change in record.entries("changes"):
            speaker = change.optional_text("speaker")
            self._speakers.paint(change.number("start"), change.number("end"), speaker)
            self._count(speaker)

    def _count(self, label: str | None) -> None:
        match = _LABEL.fullmatch(label or "")
        if match is not None:
            self._labels = max(self._labels, int(match[1]) + 1)


class _Timeline:
    """Who speaks when, one at a time."""

    def __init__(self) -> None:
        self._turns: list[Turn] = []
        self._told = False

    def paint(self, start: float, end: float, speaker: str | None) -> None:
        """From `start` to `end` it is this one, whoever it was before."""
        self._told = True
        if not start < end:
            return
        # of the turns, which are in order and do not overlap, those that touch the stretch
        first = bisect_right(self._turns, start, key=lambda turn: turn.end)
        last = bisect_left(self._turns, end, key=lambda turn: turn.start)
        turns: list[Turn] = []
        for turn in self._turns[first:last]:
            if turn.start < start:
                turns.append(replace(turn, end=start))
        if speaker is not None:
            turns.append(Turn(start, end, speaker))
        for turn in self._turns[first:last]:
            if turn.end > end:
                turns.append(replace(turn, start=end))
        self._turns[first:last] = turns

    def cut(self, end: float) -> None:
        """Nobody behind `end`: a session that goes on from there tells who speaks."""
        if self._told:
            self.paint(end, math.inf, None)

    def diarization(self) -> Diarization | None:
        """None where nobody was told apart."""
        if not self._told:
            return None
        joined: list[Turn] = []
        for turn in self._turns:
            if joined and joined[-1].speaker == turn.speaker and joined[-1].end == turn.start:
                joined[-1] = replace(joined[-1], end=turn.end)
            else:
                joined.append(turn)
        return Diarization(turns=tuple(joined), exclusive=tuple(joined))


def _commonest_language(segments: Iterable[Segment]) -> str | None:
    """The language of most of the speech."""
    seconds: dict[str, float] = {}
    for segment in segments:
        if segment.language is not None:
            seconds[segment.language] = seconds.get(segment.language, 0.0) + segment.duration
    if not seconds:
        return None
    return max(seconds, key=lambda language: seconds[language])
