"""Reading of subtitles, SubRip and WebVTT, and of plain text, as `mlx_speech.writers`, WhisperX and others write them.

Nothing here touches a file.
"""

from __future__ import annotations

import html
import re
from dataclasses import replace

from mlx_speech.errors import CorruptFile, brief
from mlx_speech.transcript import Segment, Transcript

ARROW = "-->"
JOINED = 0.002  # seconds between cues that show one text, of which each underlines another word
_CLOCK = r"(?:(\d+):)?(\d{1,2}):(\d{2})[.,](\d{3})"
_TIMES = re.compile(rf"\s*{_CLOCK}\s*{ARROW}\s*{_CLOCK}(?:\s|$)")
_VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]+)>")  # WebVTT's name of a speaker
_TAG = re.compile(r"</?[A-Za-z\d][^>]*>|\{\\[^}]*\}")  # of HTML and WebVTT, and those of SubStation within SubRip
_SPEAKER = re.compile(r"\[([^\]]+)\]:\s*")


def read_subtitles(text: str) -> Transcript:
    """The cues of SubRip or WebVTT as segments; with speakers where they are named ("[Ann]: yes", "<v Ann>yes").

    Cues that differ only in what they underline are one. Raises `CorruptFile` in one line.
    """
    segments: list[Segment] = []
    lines = text.removeprefix("\ufeff").splitlines()
    underlined = False  # whether a word is, in the cues that make the last segment
    place = 0
    while place < len(lines):
        if ARROW not in lines[place]:  # a number or name of a cue, a header, a note, an empty line
            place += 1
            continue
        start, end = _cue_times(lines[place], place + 1)
        place += 1
        shown: list[str] = []
        while place < len(lines) and lines[place].strip() and ARROW not in lines[place]:
            shown.append(lines[place].strip())
            place += 1
        text_shown = " ".join(shown)
        has_underlined = "<u>" in text_shown
        said = _cue(start, end, text_shown)
        last = segments[-1] if segments else None
        if last is not None and (underlined or has_underlined) and len(said) == 1 and _is_same(last, said[0]):
            segments[-1] = replace(last, end=end)
            underlined = True
        elif said:
            segments += said
            underlined = has_underlined
    if not segments and ARROW not in text and text.strip() and not text.lstrip("\ufeff").startswith("WEBVTT"):
        raise CorruptFile(f"no subtitles: no line has {ARROW}")
    return Transcript(tuple(segments), duration=max((segment.end for segment in segments), default=0.0))


def _cue_times(line: str, number: int) -> tuple[float, float]:
    """Seconds. number : of the line"""
    match = _TIMES.match(line)
    if match is None:
        raise CorruptFile(f"line {number}: {brief(line.strip())}: expected two times, as 00:00:01,000 --> 00:00:02,000")
    groups = match.groups()
    start = _seconds_of(groups[:4])
    end = _seconds_of(groups[4:])
    if end < start:
        raise CorruptFile(f"line {number}: it ends before it starts")
    return start, end


def _seconds_of(clock: tuple[str | None, ...]) -> float:
    """clock : hours, which may be missing, minutes, seconds, milliseconds"""
    hours, minutes, seconds, milliseconds = (int(digits or 0) for digits in clock)
    return 3600 * hours + 60 * minutes + seconds + milliseconds / 1000


def _cue(start: float, end: float, shown: str) -> list[Segment]:
    """What is said in a cue, a segment for each voice, all with the cue's times. shown : the text with its tags"""
    first, *voices = _VOICE.split(shown)  # what is ahead of all voices, then of each its name and its text
    said = [_segment(start, end, first, None)]
    for name, text in zip(voices[::2], voices[1::2], strict=True):
        said.append(_segment(start, end, text, html.unescape(name).strip()))
    return [segment for segment in said if segment.text]


def _segment(start: float, end: float, shown: str, voice: str | None) -> Segment:
    """shown : text with tags, which may begin with a speaker as well. voice : a speaker's name that counts more"""
    speaker, text = split_speaker(html.unescape(_TAG.sub("", shown)).strip())
    return Segment(start, end, text, speaker=voice or speaker)


def _is_same(last: Segment, segment: Segment) -> bool:
    """Whether a cue shows the last one's text, behind it without a pause."""
    same = segment.text == last.text and segment.speaker == last.speaker
    return same and segment.start - last.end <= JOINED


def read_text(text: str) -> Transcript:
    """Plain text, a segment a line, without times (0 to 0); "[Ann]: yes" names a speaker."""
    segments: list[Segment] = []
    for line in text.removeprefix("\ufeff").splitlines():
        speaker, spoken = split_speaker(line.strip())
        if spoken:
            segments.append(Segment(0.0, 0.0, spoken, speaker=speaker))
    return Transcript(tuple(segments))


def split_speaker(line: str) -> tuple[str | None, str]:
    """The speaker that a line begins with, and what follows: "[Ann]: yes" → "Ann", "yes"."""
    match = _SPEAKER.match(line)
    if match is None:
        return None, line
    return match[1], line[match.end() :].strip()
