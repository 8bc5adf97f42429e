"""Results as text in the usual formats. Pure functions: they take results and give a string, and touch no file.

What writes a transcript can be called the same way for every format: `FORMATS[name](transcript, uri=…, **layout)`, with
the fields of `cues.Layout` as keywords.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_speech.transcript import Region, Segment, Transcript, Turn, Word
from mlx_speech.writers.cues import Layout, LayoutKeywords, cues, one_line

if TYPE_CHECKING:
    from typing_extensions import Unpack


def regions_to_text(regions: Iterable[Region], decimals: int = 3) -> str:
    """One line a region: its start and its end in seconds, with a tab between them."""
    return "".join(f"{region.start:.{decimals}f}\t{region.end:.{decimals}f}\n" for region in regions)


def regions_to_json(regions: Iterable[Region], decimals: int = 3) -> str:
    """A JSON list of `{"start": seconds, "end": seconds}`, one region a line."""
    rounded = [{"start": round(region.start, decimals), "end": round(region.end, decimals)} for region in regions]
    lines = [json.dumps(region) for region in rounded]
    return "[\n  " + ",\n  ".join(lines) + "\n]\n" if lines else "[]\n"


def regions_to_rttm(regions: Iterable[Region], uri: str) -> str:
    """RTTM, one SPEAKER line a region, with its speaker if it is a turn, else "speech"; times in seconds, to the
    millisecond.

    uri : names the recording. RTTM separates its fields by white space, so white space in it becomes "_".

    The format: NIST, "2009 Rich Transcription evaluation plan", appendix A.
    """
    return "".join(_rttm(region, uri) for region in regions)


def to_txt(transcript: Transcript, *, uri: str = "", **layout: Unpack[LayoutKeywords]) -> str:
    """A line a segment, `[speaker]: text`; nothing for a segment without text."""
    lines = [(f"[{one_line(s.speaker)}]: " if s.speaker else "", one_line(s.text)) for s in transcript.segments]
    return "".join(f"{speaker}{text}\n" for speaker, text in lines if text)


def to_srt(transcript: Transcript, *, uri: str = "", **layout: Unpack[LayoutKeywords]) -> str:
    """SubRip subtitles. layout : fields of `cues.Layout`"""
    found = enumerate(cues(transcript, Layout(**layout)), start=1)
    return "".join(f"{k}\n{_clock(a, ',')} --> {_clock(b, ',')}\n{text}\n\n" for k, (a, b, text) in found)


def to_vtt(transcript: Transcript, *, uri: str = "", **layout: Unpack[LayoutKeywords]) -> str:
    """WebVTT subtitles. layout : fields of `cues.Layout`"""

    def escape(text: str) -> str:
        return text.replace("&", "&amp;").replace("<", "&lt;")

    found = cues(transcript, Layout(**layout), escape)
    return "WEBVTT\n\n" + "".join(f"{_clock(a, '.')} --> {_clock(b, '.')}\n{text}\n\n" for a, b, text in found)


def to_tsv(transcript: Transcript, *, uri: str = "", **layout: Unpack[LayoutKeywords]) -> str:
    """Tab-separated start, end (whole milliseconds) and text of every segment, under a header."""
    rows = [f"{round(1000 * s.start)}\t{round(1000 * s.end)}\t{one_line(s.text)}\n" for s in transcript.segments]
    return "start\tend\ttext\n" + "".join(rows)


def to_aud(transcript: Transcript, *, uri: str = "", **layout: Unpack[LayoutKeywords]) -> str:
    """Labels for Audacity: tab-separated start, end (seconds) and `[[speaker]]text` of every segment."""
    rows = [(s, f"[[{one_line(s.speaker)}]]" if s.speaker else "") for s in transcript.segments]
    return "".join(f"{round(s.start, 3)}\t{round(s.end, 3)}\t{who}{one_line(s.text)}\n" for s, who in rows)


def to_json(transcript: Transcript, *, uri: str = "", **layout: Unpack[LayoutKeywords]) -> str:
    """`as_dict` as JSON, in one line. layout : fields of `cues.Layout`"""
    content = as_dict(transcript, speaker_embeddings=Layout(**layout).speaker_embeddings)
    return json.dumps(content, ensure_ascii=False) + "\n"


def to_rttm(transcript: Transcript, *, uri: str = "", **layout: Unpack[LayoutKeywords]) -> str:
    """RTTM (`regions_to_rttm`) of the speakers' turns, which may overlap; empty where speakers were not asked for."""
    return regions_to_rttm(transcript.diarization.turns if transcript.diarization else (), uri)


def to_screen(transcript: Transcript) -> str:
    """For reading along: `[mm:ss.s] speaker: text`, a line a segment; a word where there is nothing."""

    def clock(seconds: float) -> str:
        hours, rest = divmod(round(seconds * 10), 36_000)
        return (f"{hours}:" if hours else "") + f"{rest // 600:02d}:{rest // 10 % 60:02d}.{rest % 10}"

    def line(segment: Segment) -> str:
        speaker = f"{segment.speaker}: " if segment.speaker else ""
        return f"[{clock(segment.start)}] {speaker}{one_line(segment.text)}\n"

    return "".join(map(line, transcript.segments)) or "(no speech)\n"


def to_ctm(transcript: Transcript, *, uri: str = "", **layout: Unpack[LayoutKeywords]) -> str:
    """CTM, a line a word: recording, channel 1, start, duration, word, score. NIST, "sclite", appendix on file formats.

    What the text writes as one word, such as the "$43" and ",000" of Whisper's tokens, is one here. White space in a
    field becomes "_". Empty where there are no words.
    """
    words = [_put_together(parts) for segment in transcript.segments for parts in segment.whole_words()]
    words = [word for word in words if one_line(word.text)]
    return "".join(f"{_field(uri)} 1 {w.start:.3f} {w.duration:.3f} {_field(w.text)} {w.score:.3f}\n" for w in words)


FORMATS: dict[str, Callable[..., str]] = {
    to.__name__.removeprefix("to_"): to for to in (to_txt, to_srt, to_vtt, to_tsv, to_json, to_rttm, to_ctm, to_aud)
}


def as_dict(transcript: Transcript, *, speaker_embeddings: bool = False) -> dict[str, Any]:
    """The transcript as dicts and lists in the shape of whisperx's result, for those who read that; times to the ms.

    Keys besides whisperx's: duration, language_probability, turns (where there is a diarization), models, seconds; of a
    segment its language where it is not the recording's; of a word `"aligned": False` where its time is a guess.
    """
    has_words = any(segment.words for segment in transcript.segments)
    segments = [_segment(segment, transcript.language, has_words) for segment in transcript.segments]
    words = [_word(word) for word in transcript.words]
    content: dict[str, Any] = {"segments": segments, "word_segments": words, "language": transcript.language}
    content["language_probability"] = round(transcript.language_probability, 3)
    content["duration"] = round(transcript.duration, 3)
    if transcript.diarization:
        content["turns"] = [{**_times(turn), "speaker": turn.speaker} for turn in transcript.diarization.turns]
        if speaker_embeddings:
            vectors = transcript.diarization.embeddings.items()
            content["speaker_embeddings"] = {speaker: list(vector) for speaker, vector in vectors}
    content["models"] = dict(transcript.models)
    content["seconds"] = {stage: round(seconds, 3) for stage, seconds in transcript.seconds.items()}
    return content


def unique_stems(sources: Sequence[str | PathLike[str]]) -> list[str]:
    """For each source the name of its results, without extension; no two alike, even where case does not count.

    Usually the stem, "stdin" for "-". Of sources with the same stem each gets its extension too ("meeting-mp3"), and,
    where that is not enough, a number ("meeting-mp3-2").
    """
    paths = [Path("stdin" if source == "-" else source) for source in sources]
    stems = [path.stem or "audio" for path in paths]
    counts = Counter(map(_folded, stems))
    taken = {stem for stem, count in counts.items() if count == 1}
    names = []
    for path, stem in zip(paths, stems, strict=True):
        name = stem
        if counts[_folded(stem)] > 1:
            name = base = f"{stem}-{path.suffix[1:]}" if path.suffix else stem
            number = 1
            while _folded(name) in taken:
                number += 1
                name = f"{base}-{number}"
            taken.add(_folded(name))
        names.append(name)
    return names


def _segment(segment: Segment, language: str | None, has_words: bool) -> dict[str, Any]:
    content: dict[str, Any] = {**_times(segment), "text": segment.text}
    if has_words:  # whisperx's readers take the key for a sign that there are some
        content["words"] = [_word(word) for word in segment.words]
    if any(word.chars for word in segment.words):
        content["chars"] = _chars(segment)
    if segment.speaker is not None:
        content["speaker"] = segment.speaker
    if segment.language not in (None, language):
        content["language"] = segment.language
    return {**content, "avg_logprob": round(segment.avg_logprob, 4)}


def _chars(segment: Segment) -> list[dict[str, Any]]:
    """Those of all words; what the text has between the words, such as spaces, has no time."""
    text, spans = segment.placed()
    chars: list[dict[str, Any]] = []
    place = 0
    for word, (start, end) in zip(segment.words, spans, strict=True):
        chars += [{"char": char} for char in text[place:start]]
        chars += [{"char": char.text, **_times(char), "score": round(char.score, 3)} for char in word.chars]
        place = end
    return chars + [{"char": char} for char in text[place:]]


def _put_together(parts: Sequence[Word]) -> Word:
    """One word of several; its score is their mean, each counted by its length."""
    if len(parts) == 1:
        return parts[0]
    text = "".join(part.text for part in parts)
    score = sum(part.score * len(part.text) for part in parts) / len(text)
    return replace(parts[0], end=max(part.end for part in parts), text=text, score=score)


def _word(word: Word) -> dict[str, Any]:
    content: dict[str, Any] = {"word": word.text, **_times(word), "score": round(word.score, 3)}
    if word.speaker is not None:
        content["speaker"] = word.speaker
    if not word.aligned:
        content["aligned"] = False
    return content


def _times(region: Region) -> dict[str, float]:
    return {"start": round(region.start, 3), "end": round(region.end, 3)}


def _rttm(region: Region, uri: str) -> str:
    speaker = region.speaker if isinstance(region, Turn) else "speech"
    times = f"{region.start:.3f} {region.duration:.3f}"
    return f"SPEAKER {_field(uri)} 1 {times} <NA> <NA> {_field(speaker)} <NA> <NA>\n"


def _field(text: str) -> str:
    """`text` as one field among others that white space separates; undecodable bytes of a file's name become "?"."""
    return "_".join(one_line(text).encode("utf-8", "replace").decode().split()) or "_"


def _clock(milliseconds: int, marker: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    text = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{marker}{rest:03d}"
    return text.removeprefix("00:") if marker == "." else text  # WebVTT may do without hours


def _folded(name: str) -> str:
    """What a file system that ignores case, and how letters are composed, tells names apart by."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
