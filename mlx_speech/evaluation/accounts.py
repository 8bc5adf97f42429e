"""What one side says of a recording, the hypothesis or the reference; read from files of any format, and paired."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from mlx_speech import writers
from mlx_speech.errors import CorruptFile, OptionError, SourceError, SourceNotFound, shorten
from mlx_speech.evaluation import references, subtitles
from mlx_speech.tensors import reading
from mlx_speech.transcript import Region, Segment, Transcript, Turn

MAX_BYTES = 1 << 30  # of a file
_STRETCH = re.compile(r"(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Account:
    """Who said what, when, as one side has it.

    segments : None where it has no text, as RTTM
    turns : None where it has no speakers
    language : a code, None where nobody says
    """

    segments: tuple[Segment, ...] | None = None
    turns: tuple[Turn, ...] | None = None
    language: str | None = None

    @cached_property
    def is_timed(self) -> bool:
        """Whether the text has times; plain text has none."""
        return any(segment.end > 0 for segment in self.segments or ())

    @cached_property
    def text(self) -> str:
        """All of it, with spaces between segments."""
        return " ".join(segment.text for segment in self.segments or ())

    @cached_property
    def utterances(self) -> tuple[Segment, ...]:
        """The segments, parted where the speaker of their words changes; a speaker that nobody names is ""."""
        parts: list[Segment] = []
        for segment in self.segments or ():
            parts += _by_speaker(segment)
        return tuple(parts)

    @cached_property
    def names_speakers(self) -> bool:
        """Whether somebody is named as speaker of a text."""
        return any(utterance.speaker for utterance in self.utterances)

    def within(self, stretches: Sequence[Region]) -> Account:
        """Without the segments that lie outside of all stretches, as meeteval has it; turns are left to be cut."""
        if not self.is_timed or self.segments is None:
            return self
        kept: list[Segment] = []
        for segment in self.segments:
            if any(part.start <= segment.end and segment.start <= part.end for part in stretches):
                kept.append(segment)
        return replace(self, segments=tuple(kept))


def _by_speaker(segment: Segment) -> list[Segment]:
    """The stretches of a segment in which the words have one speaker; words without one have the segment's."""
    text, spans = segment.placed()
    starts = [0]  # of words, where another speaker begins
    speakers = [word.speaker or segment.speaker or "" for word in segment.words]
    for index in range(1, len(speakers)):
        if speakers[index] != speakers[index - 1]:
            starts.append(index)
    if len(starts) == 1:
        speaker = speakers[0] if speakers else segment.speaker or ""
        return [replace(segment, speaker=speaker)]
    parts: list[Segment] = []
    ends = [*starts[1:], len(speakers)]
    for start, end in zip(starts, ends, strict=True):
        words = segment.words[start:end]
        spoken = text[spans[start][0] : spans[end - 1][1]]
        parts.append(Segment(words[0].start, words[-1].end, spoken, words, speakers[start]))
    return parts


def account_of(transcript: Transcript) -> Account:
    """What a transcript says; its turns are those of the diarization, or else of the segments with their speakers."""
    account = Account(transcript.segments, language=transcript.language)
    diarization = transcript.diarization
    if diarization is not None and (diarization.turns or not account.names_speakers):
        return replace(account, turns=diarization.turns)  # WhisperX's has vectors, and no turns
    if account.is_timed and account.names_speakers:
        named = [segment for segment in account.utterances if segment.speaker]
        turns = tuple(Turn(segment.start, segment.end, segment.speaker or "") for segment in named)
        return replace(account, turns=turns)
    return account


# --- files ------------------------------------------------------------------------------------------------------------


def _from_json(path: Path, text: str) -> dict[str, Account]:
    truth = references.read_truth(path)  # of the demo's recordings
    return {path.stem: account_of(truth or writers.read_json(text))}


def _from_rttm(path: Path, text: str) -> dict[str, Account]:
    return {recording: Account(turns=turns) for recording, turns in references.read_rttm(text).items()}


def _from_stm(path: Path, text: str) -> dict[str, Account]:
    return {recording: account_of(found) for recording, found in references.read_stm(text).items()}


def _from_ctm(path: Path, text: str) -> dict[str, Account]:
    return {recording: account_of(found) for recording, found in references.read_ctm(text).items()}


def _from_textgrid(path: Path, text: str) -> dict[str, Account]:
    return {path.stem: account_of(references.transcript_of_tiers(references.read_textgrid(text)))}


def _from_subtitles(path: Path, text: str) -> dict[str, Account]:
    return {path.stem: account_of(subtitles.read_subtitles(text))}


def _from_text(path: Path, text: str) -> dict[str, Account]:
    return {path.stem: account_of(subtitles.read_text(text))}


# by extension in lower case; where a folder has a recording in several, the first gives the text
READERS: dict[str, Callable[[Path, str], dict[str, Account]]] = {
    ".json": _from_json,
    ".stm": _from_stm,
    ".textgrid": _from_textgrid,
    ".ctm": _from_ctm,
    ".vtt": _from_subtitles,
    ".srt": _from_subtitles,
    ".txt": _from_text,
    ".rttm": _from_rttm,
}


def is_recording(path: Path) -> bool:
    """Whether a file is none that `READERS` read, and so one to be transcribed."""
    return path.suffix.lower() not in READERS


def files_of(source: str | Path) -> dict[str, list[Path]]:
    """The files of a source by recording: itself, or those in it if it is a folder, by their names without extension.

    A folder without any that `READERS` read is one of recordings. Hidden files count as none. Raises `SourceNotFound`.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise SourceNotFound(f"{path}: there is no such file or folder: is the path right?")
    if not path.is_dir():
        return {path.stem: [path]}
    present = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    readable = [file for file in present if not is_recording(file)]
    files: dict[str, list[Path]] = {}
    for file in readable or present:
        files.setdefault(file.stem, []).append(file)
    if not files:
        raise SourceNotFound(f"{path}: an empty folder: give one with transcripts or recordings")
    return files


def read_accounts(files: Mapping[str, Sequence[Path]]) -> dict[str, Account]:
    """What files say, by recording. A file of one recording, such as RTTM, is of that by whose name it goes; one of
    several names them. Raises `SourceError`."""
    accounts: dict[str, Account] = {}
    for name, paths in files.items():
        for path in sorted(paths, key=_rank):
            found = read_file(path)
            if len(found) == 1:
                found = {name: next(iter(found.values()))}
            for recording, account in found.items():
                accounts[recording] = _merged(accounts.get(recording), account, path)
    return accounts


def _rank(path: Path) -> int:
    return list(READERS).index(path.suffix.lower())


def _merged(known: Account | None, more: Account, path: Path) -> Account:
    """The first text, and the turns of an RTTM file before those that come with a text."""
    if known is None:
        return more
    is_rttm = path.suffix.lower() == ".rttm"
    return Account(
        segments=more.segments if known.segments is None else known.segments,
        turns=more.turns if known.turns is None or is_rttm else known.turns,
        language=known.language or more.language,
    )


def read_file(path: Path) -> dict[str, Account]:
    """What one file says, by recording. Raises `SourceError`, in one line with the path."""
    with reading(path):
        if path.stat().st_size > MAX_BYTES:
            raise CorruptFile(f"{path.stat().st_size} bytes are too many for a transcript")
        return READERS[path.suffix.lower()](path, _text_of(path))


def _text_of(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 where it begins so, as Praat's may. Raises `CorruptFile`."""
    data = path.read_bytes()
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise CorruptFile("is no text in UTF-8: convert it") from error


def read_stretches(uem: str, recordings: Sequence[str]) -> dict[str, tuple[Region, ...]]:
    """What is to be scored, by recording. uem : "START:END" in seconds, for all; or a UEM file

    Where both have one recording, names do not matter. Raises `OptionError` or `SourceError`.
    """
    match = _STRETCH.fullmatch(uem)
    if match is not None:
        stretch = Region(float(match[1]), float(match[2]))
        if stretch.end <= stretch.start:
            raise OptionError(f"uem is {uem}: the end has to be behind the start")
        return dict.fromkeys(recordings, (stretch,))
    path = Path(uem).expanduser()
    if not path.exists():
        raise SourceNotFound(f"{path}: there is no such file: give one of UEM, or START:END in seconds")
    with reading(path):
        stretches = references.read_uem(_text_of(path))
    if len(stretches) == 1 and len(recordings) == 1:
        return {recordings[0]: next(iter(stretches.values()))}
    missing = [name for name in recordings if name not in stretches]
    if missing:
        raise OptionError(f"uem is {uem}: it has no stretch of {shorten(missing)}: add them")
    return {name: stretches[name] for name in recordings}


# --- pairs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A recording: what was heard, and what was said. name : the reference's"""

    name: str
    heard: Account
    said: Account


def paired(heard: Mapping[str, Account], said: Mapping[str, Account]) -> list[Pair]:
    """Both sides of every recording that both have; one and one are paired whatever their names. Raises `SourceError`
    where there are none."""
    if len(heard) == 1 and len(said) == 1:
        name = next(iter(said))
        return [Pair(name, next(iter(heard.values())), said[name])]
    pairs = [Pair(name, heard[name], account) for name, account in said.items() if name in heard]
    if not pairs:
        ours = shorten(list(heard), 3)
        theirs = shorten(list(said), 3)
        raise SourceError(f"hypothesis ({ours}) and reference ({theirs}) have no recording in common: rename them")
    return pairs


def unpaired(heard: Mapping[str, Account], said: Mapping[str, Account]) -> str:
    """The recordings that only one side has, in a line; "" where there are none."""
    if len(heard) == 1 and len(said) == 1:
        return ""
    parts: list[str] = []
    only_heard = [name for name in heard if name not in said]
    only_said = [name for name in said if name not in heard]
    if only_heard:
        parts.append(f"without a reference: {shorten(only_heard)}")
    if only_said:
        parts.append(f"without a hypothesis: {shorten(only_said)}")
    return "; ".join(parts)
