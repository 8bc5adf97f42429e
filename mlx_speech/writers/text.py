"""Formats of one line a region, a turn, a segment or a word: plain text, tables, labels, RTTM, CTM; and the screen."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mlx_speech.transcript import Region, Segment, Transcript, Turn, Word
from mlx_speech.writers.cues import LayoutKeywords
from mlx_speech.writers.pieces import one_line

if TYPE_CHECKING:
    from typing_extensions import Unpack

TENTHS_PER_MINUTE = 600
TENTHS_PER_HOUR = 36_000


def regions_to_text(regions: Iterable[Region], decimals: int = 3) -> str:
    """One line a region: its start and its end in seconds, with a tab between them."""
    return "".join(f"{region.start:.{decimals}f}\t{region.end:.{decimals}f}\n" for region in regions)


def regions_to_json(regions: Iterable[Region], decimals: int = 3) -> str:
    """A JSON list of `{"start": seconds, "end": seconds}`, one region a line."""
    lines: list[str] = []
    for region in regions:
        times = {"start": round(region.start, decimals), "end": round(region.end, decimals)}
        lines.append(json.dumps(times))
    if not lines:
        return "[]\n"
    return "[\n  " + ",\n  ".join(lines) + "\n]\n"


def regions_to_rttm(regions: Iterable[Region], uri: str) -> str:
    """RTTM, one SPEAKER line a region, with its speaker if it is a turn, else "speech"; times in seconds, to the
    millisecond.

    uri : names the recording. RTTM separates its fields by white space, so white space in it becomes "_".

    The format: NIST, "2009 Rich Transcription evaluation plan", appendix A.
    """
    return "".join(_rttm_line(region, uri) for region in regions)


def to_txt(transcript: Transcript, *, uri: str = "", **layout: Unpack[LayoutKeywords]) -> str:
    """A line a segment, `[speaker]: text`; nothing for a segment without text."""
    lines: list[str] = []
    for segment in transcript.segments:
        text = one_line(segment.text)
        if text and segment.speaker:
            lines.append(f"[{one_line(segment.speaker)}]: {text}\n")
        elif text:
            lines.append(f"{text}\n")
    return "".join(lines)


def to_tsv(transcript: Transcript, *, uri: str = "", **layout: Unpack[LayoutKeywords]) -> str:
    """Tab-separated start, end (whole milliseconds) and text of every segment, under a header."""
    lines = ["start\tend\ttext\n"]
    for segment in transcript.segments:
        lines.append(f"{round(1000 * segment.start)}\t{round(1000 * segment.end)}\t{one_line(segment.text)}\n")
    return "".join(lines)


def to_aud(transcript: Transcript, *, uri: str = "", **layout: Unpack[LayoutKeywords]) -> str:
    """Labels for Audacity: tab-separated start, end (seconds) and `[[speaker]]text` of every segment."""
    lines: list[str] = []
    for segment in transcript.segments:
        label = one_line(segment.text)
        if segment.speaker:
            label = f"[[{one_line(segment.speaker)}]]{label}"
        lines.append(f"{round(segment.start, 3)}\t{round(segment.end, 3)}\t{label}\n")
    return "".join(lines)


def to_rttm(transcript: Transcript, *, uri: str = "", **layout: Unpack[LayoutKeywords]) -> str:
    """RTTM (`regions_to_rttm`) of the speakers' turns, which may overlap; empty where speakers were not asked for."""
    if transcript.diarization is None:
        return ""
    return regions_to_rttm(transcript.diarization.turns, uri)


def to_ctm(transcript: Transcript, *, uri: str = "", **layout: Unpack[LayoutKeywords]) -> str:
    """CTM, a line a word: recording, channel 1, start, duration, word, score. NIST, "sclite", appendix on file formats.

    What the text writes as one word, such as the "$43" and ",000" of Whisper's tokens, is one here. White space in a
    field becomes "_". Empty where there are no words.
    """
    recording = _field(uri)
    lines: list[str] = []
    for segment in transcript.segments:
        for parts in segment.whole_words():
            word = _join_parts(parts)
            if one_line(word.text):
                times = f"{word.start:.3f} {word.duration:.3f}"
                lines.append(f"{recording} 1 {times} {_field(word.text)} {word.score:.3f}\n")
    return "".join(lines)


def to_screen(transcript: Transcript) -> str:
    """For reading along: `[mm:ss.s] speaker: text`, a line a segment; a word where there is nothing."""
    if not transcript.segments:
        return "(no speech)\n"
    return "".join(_screen_line(segment) for segment in transcript.segments)


def _screen_line(segment: Segment) -> str:
    text = one_line(segment.text)
    if segment.speaker:
        text = f"{segment.speaker}: {text}"
    return f"[{screen_clock(segment.start)}] {text}\n"


def screen_clock(seconds: float) -> str:
    """Minutes, seconds and tenths; hours before them where there are any."""
    hours, tenths = divmod(round(10 * seconds), TENTHS_PER_HOUR)
    minutes, tenths = divmod(tenths, TENTHS_PER_MINUTE)
    clock = f"{minutes:02d}:{tenths // 10:02d}.{tenths % 10}"
    if hours:
        return f"{hours}:{clock}"
    return clock


def _rttm_line(region: Region, uri: str) -> str:
    speaker = region.speaker if isinstance(region, Turn) else "speech"
    times = f"{region.start:.3f} {region.duration:.3f}"
    return f"SPEAKER {_field(uri)} 1 {times} <NA> <NA> {_field(speaker)} <NA> <NA>\n"


def _join_parts(parts: Sequence[Word]) -> Word:
    """One word of several; its score is their mean, each counted by its length."""
    if len(parts) == 1:
        return parts[0]
    text = "".join(part.text for part in parts)
    score = sum(part.score * len(part.text) for part in parts) / len(text)
    return replace(parts[0], end=max(part.end for part in parts), text=text, score=score)


def _field(text: str) -> str:
    """`text` as one field among others that white space separates; undecodable bytes of a file's name become "?"."""
    encodable = one_line(text).encode("utf-8", "replace").decode()
    return "_".join(encodable.split()) or "_"
