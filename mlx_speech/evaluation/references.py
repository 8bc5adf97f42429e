"""Reading of references: who said what, when, as those who know it have written it down.

What takes text touches no file. All raise `CorruptFile`, in one line that says where, for text of another format.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from mlx_speech.checkpoint import read_json
from mlx_speech.errors import CorruptFile, SourceError, brief
from mlx_speech.json_objects import JsonObject
from mlx_speech.transcript import Diarization, Region, Segment, Transcript, Turn, Word

RTTM_FIELDS = 9  # of a SPEAKER line; a tenth may follow
STM_FIELDS = 5  # before the text: recording, channel, speaker, start, end
CTM_FIELDS = 5  # recording, channel, start, duration, word; a score may follow
UEM_FIELDS = 4  # recording, channel, start, end
COMMENT = ";;"
PAUSE = 0.5  # seconds of silence that part the segments of words that come without any
STM_IGNORED = "ignore_time_segment_in_scoring"  # the text of a stretch that is not to be scored

# What Praat reads of a TextGrid, short or long: texts in quotes, flags, and numbers that stand by themselves.
_TEXTGRID_TOKEN = re.compile(r'"((?:[^"]|"")*)"|(<\w+>)|(?<!\S)([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)(?!\S)')


# --- turns and segments by recording ----------------------------------------------------------------------------------


def read_rttm(text: str) -> dict[str, tuple[Turn, ...]]:
    """The turns of an RTTM file (its SPEAKER lines), in order, by recording.

    The format: NIST, "2009 Rich Transcription evaluation plan", appendix A.
    """
    turns: dict[str, list[Turn]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields or fields[0] != "SPEAKER":
            continue
        if len(fields) < RTTM_FIELDS:
            raise CorruptFile(f"line {number}: {len(fields)} fields: expected {RTTM_FIELDS}, as RTTM has")
        start = _seconds(fields[3], number)
        duration = _seconds(fields[4], number)
        turns.setdefault(fields[1], []).append(Turn(start, start + duration, fields[7]))
    return {recording: tuple(found) for recording, found in turns.items()}


def read_stm(text: str) -> dict[str, Transcript]:
    """The segments of an STM file with their speakers, and their turns, by recording; none that scoring shall ignore.

    The format: NIST, "sclite", appendix on file formats.
    """
    segments: dict[str, list[Segment]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith(COMMENT):
            continue
        fields = line.split(maxsplit=STM_FIELDS)
        if len(fields) < STM_FIELDS:
            raise CorruptFile(f"line {number}: {len(fields)} fields: expected {STM_FIELDS} and a text, as STM has")
        recording, _, speaker, start, end = fields[:STM_FIELDS]
        spoken = fields[STM_FIELDS].strip() if len(fields) > STM_FIELDS else ""
        label = re.match(r"<[^>]*>\s*", spoken)  # of conditions, such as "<o,f0,male>"
        if label is not None:
            spoken = spoken[label.end() :]
        segment = Segment(_seconds(start, number), _seconds(end, number), spoken, speaker=speaker)
        if segment.end < segment.start:
            raise CorruptFile(f"line {number}: it ends before it starts")
        if spoken.lower() != STM_IGNORED:
            segments.setdefault(recording, []).append(segment)
    return {recording: _transcript_of(found) for recording, found in segments.items()}


def read_ctm(text: str) -> dict[str, Transcript]:
    """The words of a CTM file, in segments between pauses, by recording.

    The format: NIST, "sclite", appendix on file formats; without its alternatives.
    """
    words: dict[str, list[Word]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields or line.startswith(COMMENT):
            continue
        if len(fields) < CTM_FIELDS:
            raise CorruptFile(f"line {number}: {len(fields)} fields: expected {CTM_FIELDS}, as CTM has")
        start = _seconds(fields[2], number)
        end = start + _seconds(fields[3], number)
        score = _seconds(fields[5], number) if len(fields) > CTM_FIELDS and fields[5] != "NA" else 1.0
        words.setdefault(fields[0], []).append(Word(start, end, fields[4], score))
    return {recording: transcript_of_words(found) for recording, found in words.items()}


def read_uem(text: str) -> dict[str, tuple[Region, ...]]:
    """The stretches of an UEM file, which are to be scored, by recording.

    The format: NIST, "2009 Rich Transcription evaluation plan", on unpartitioned evaluation maps.
    """
    regions: dict[str, list[Region]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields or line.startswith(COMMENT):
            continue
        if len(fields) < UEM_FIELDS:
            raise CorruptFile(f"line {number}: {len(fields)} fields: expected {UEM_FIELDS}, as UEM has")
        region = Region(_seconds(fields[2], number), _seconds(fields[3], number))
        if region.end <= region.start:
            raise CorruptFile(f"line {number}: it ends before it starts")
        regions.setdefault(fields[0], []).append(region)
    return {recording: tuple(found) for recording, found in regions.items()}


def transcript_of_words(words: Iterable[Word]) -> Transcript:
    """Words that come without segments: one ends at a pause, and where the speaker changes."""
    groups: list[list[Word]] = []
    for word in sorted(words, key=lambda word: word.start):
        last = groups[-1][-1] if groups else None
        if last is None or word.start - last.end >= PAUSE or word.speaker != last.speaker:
            groups.append([])
        groups[-1].append(word)
    segments: list[Segment] = []
    for group in groups:
        end = max(word.end for word in group)
        text = " ".join(word.text for word in group)
        segments.append(Segment(group[0].start, end, text, tuple(group), group[0].speaker))
    duration = max((segment.end for segment in segments), default=0.0)
    return Transcript(tuple(segments), duration=duration)


def _transcript_of(segments: list[Segment]) -> Transcript:
    """A transcript of segments that have speakers."""
    turns = tuple(Turn(segment.start, segment.end, str(segment.speaker)) for segment in segments)
    duration = max(segment.end for segment in segments)
    return Transcript(tuple(segments), duration=duration, diarization=Diarization(turns, ()))


def _seconds(field: str, line: int) -> float:
    try:
        seconds = float(field)
    except ValueError as error:
        raise CorruptFile(f"line {line}: {brief(field)}: expected seconds") from error
    if not 0 <= seconds < float("inf"):  # NaN neither
        raise CorruptFile(f"line {line}: {brief(field)}: expected seconds")
    return seconds


# --- words of a TextGrid ----------------------------------------------------------------------------------------------


def read_textgrid(text: str) -> dict[str, tuple[Word, ...]]:
    """The intervals of a TextGrid that have a text, by the name of their tier; of tiers of points, nothing.

    The short form and the long one, which says the same with names of what follows: "TextGrid file formats" in Praat's
    manual.
    """
    tokens = _textgrid_tokens(text)
    try:
        if next(tokens) != "ooTextFile" or next(tokens) != "TextGrid":
            raise CorruptFile("no TextGrid: it begins otherwise")
        next(tokens)  # where it starts
        next(tokens)  # where it ends
        if next(tokens) != "<exists>":
            return {}
        tiers: dict[str, tuple[Word, ...]] = {}
        for _ in range(_count(next(tokens))):
            kind = next(tokens)
            name = str(next(tokens))
            next(tokens)  # where the tier starts
            next(tokens)  # where it ends
            count = _count(next(tokens))
            if kind == "IntervalTier":
                tiers[name] = tiers.get(name, ()) + tuple(_intervals(tokens, count))
            elif kind == "TextTier":
                for _ in range(2 * count):  # a time and a mark each
                    next(tokens)
            else:
                raise CorruptFile(f"a tier of the class {brief(kind)}: expected IntervalTier or TextTier")
    except StopIteration:
        raise CorruptFile("a TextGrid that ends too early: fetch it again") from None
    return tiers


def transcript_of_tiers(tiers: dict[str, tuple[Word, ...]]) -> Transcript:
    """A TextGrid as a transcript: tiers of words as the Montreal Forced Aligner names them ("words", "Ann - words"),
    with their speakers; where there are none, each tier is a speaker, and its intervals are segments."""
    words: list[Word] = []
    for name, found in tiers.items():
        speaker, dash, kind = name.rpartition(" - ")
        if kind.lower() in ("word", "words"):
            words += [replace(word, speaker=speaker if dash else None) for word in found]
    if words:
        return transcript_of_words(words)
    segments: list[Segment] = []
    for name, intervals in tiers.items():
        if name.rpartition(" - ")[2].lower() not in ("phone", "phones"):
            segments += [Segment(part.start, part.end, part.text, speaker=name) for part in intervals]
    segments.sort(key=lambda segment: segment.start)
    duration = max((segment.end for segment in segments), default=0.0)
    return Transcript(tuple(segments), duration=duration)


def _textgrid_tokens(text: str) -> Iterator[str | float]:
    """Texts, flags ("<exists>") and numbers; not the names between them."""
    for token in _TEXTGRID_TOKEN.finditer(text.removeprefix("\ufeff")):
        quoted, flag, number = token.groups()
        if quoted is not None:
            yield quoted.replace('""', '"')
        elif flag is not None:
            yield flag
        else:
            yield float(number)


def _intervals(tokens: Iterator[str | float], count: int) -> list[Word]:
    """Those of the next intervals that have a text."""
    words: list[Word] = []
    for _ in range(count):
        start = next(tokens)
        end = next(tokens)
        text = next(tokens)
        if not isinstance(start, float) or not isinstance(end, float) or not isinstance(text, str):
            raise CorruptFile(f"an interval of {brief(start)}, {brief(end)} and {brief(text)}: expected seconds, text")
        if text.strip():
            words.append(Word(start, end, text.strip(), score=1.0))
    return words


def _count(token: str | float) -> int:
    if not isinstance(token, float) or token < 0 or not token.is_integer():
        raise CorruptFile(f"{brief(token)}: expected a number of tiers or intervals")
    return int(token)


# --- what was said in the demo's recordings ---------------------------------------------------------------------------


def read_truth(path: Path) -> Transcript | None:
    """What was said: segments with words (`aligned` where their times are exact), and turns. None where `path` does not
    say it, whole.

    path : JSON with "duration", and lists "utterances", "words" and "turns" of objects with "start", "end", "speaker"
        and, but for turns, "text"; "exact" of a word is false where its times are guessed
    """
    try:
        document = JsonObject(read_json(path))
        if not all(document.has(name) for name in ("utterances", "words", "turns")):
            return None
        turns: list[Turn] = []
        for entry in document.entries("turns"):
            turns.append(Turn(entry.number("start"), entry.number("end"), entry.text("speaker")))
        return Transcript(
            segments=_read_utterances(document),
            duration=document.number("duration"),
            diarization=Diarization(tuple(turns)),
        )
    except SourceError:
        return None


def _read_utterances(document: JsonObject) -> tuple[Segment, ...]:
    """The utterances in the order of their starts, with their words. Raises `CorruptFile` for a word of none."""
    segments: list[Segment] = []
    for entry in document.entries("utterances"):
        speaker = entry.text("speaker")
        segments.append(Segment(entry.number("start"), entry.number("end"), entry.text("text"), speaker=speaker))
    segments.sort(key=lambda segment: segment.start)
    for entry in document.entries("words"):
        word = Word(
            start=entry.number("start"),
            end=entry.number("end"),
            text=entry.text("text"),
            speaker=entry.text("speaker"),
            aligned=entry.flag("exact"),
        )
        index = _utterance_of(word, segments)
        segments[index] = replace(segments[index], words=(*segments[index].words, word))
    return tuple(segments)


def _utterance_of(word: Word, segments: list[Segment]) -> int:
    """The last segment of the word's speaker that has begun in the middle of the word. Raises `CorruptFile`."""
    middle = (word.start + word.end) / 2
    for index in range(len(segments) - 1, -1, -1):
        if segments[index].speaker == word.speaker and segments[index].start <= middle:
            return index
    raise CorruptFile(f"the word {brief(word.text)} at {word.start:g} s: in no utterance of its speaker")
