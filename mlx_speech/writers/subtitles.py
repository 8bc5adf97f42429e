"""Subtitles: SubRip and WebVTT, which share their cues (`cues`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlx_speech.transcript import Transcript
from mlx_speech.writers.cues import Layout, LayoutKeywords, cues

if TYPE_CHECKING:
    from typing_extensions import Unpack


def to_srt(transcript: Transcript, *, uri: str = "", **layout: Unpack[LayoutKeywords]) -> str:
    """SubRip subtitles. layout : fields of `cues.Layout`. Raises `OptionError` for a wrong one."""
    blocks: list[str] = []
    for number, (start, end, text) in enumerate(cues(transcript, Layout(**layout)), start=1):
        blocks.append(f"{number}\n{_srt_clock(start)} --> {_srt_clock(end)}\n{text}\n\n")
    return "".join(blocks)


def to_vtt(transcript: Transcript, *, uri: str = "", **layout: Unpack[LayoutKeywords]) -> str:
    """WebVTT subtitles. layout : fields of `cues.Layout`. Raises `OptionError` for a wrong one."""
    blocks = ["WEBVTT\n\n"]
    for start, end, text in cues(transcript, Layout(**layout), _escape_vtt):
        blocks.append(f"{_vtt_clock(start)} --> {_vtt_clock(end)}\n{text}\n\n")
    return "".join(blocks)


def _escape_vtt(text: str) -> str:
    """Text in which nothing is taken for a tag or a character reference."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _srt_clock(milliseconds: int) -> str:
    return _clock(milliseconds, ",")


def _vtt_clock(milliseconds: int) -> str:
    return _clock(milliseconds, ".").removeprefix("00:")  # WebVTT may do without hours


def _clock(milliseconds: int, marker: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{marker}{rest:03d}"
