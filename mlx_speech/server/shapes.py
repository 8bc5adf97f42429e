"""Transcripts in the shapes of OpenAI's audio API. Pure functions, as the writers are.

Source: openai `types.audio` and openai-openapi `CreateTranscriptionResponse*`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Protocol

from starlette.responses import Response

from mlx_speech import writers
from mlx_speech.languages import LANGUAGES
from mlx_speech.server.fields import FORMATS, KnownSpeaker, Task, Work, wrong
from mlx_speech.transcript import Diarization, Segment, Transcript, Word, space_between
from mlx_speech.voices.enrolments import is_unnamed

FRAMES_PER_SECOND = 100  # of Whisper's spectrogram, in which `seek` counts
DECIMALS = 3  # of seconds
LETTERS = 26
PLAIN = "text/plain; charset=utf-8"
NEEDS = {"ctm": "times of words", "rttm": "speakers"}  # without which a format has nothing to say
MEDIA_TYPES = {"vtt": "text/vtt; charset=utf-8", "whisperx_json": "application/json"}


class Coder(Protocol):
    """What is needed of Whisper's tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Text → tokens."""
        ...

    def decode(self, tokens: Iterable[int]) -> str:
        """Tokens → text."""
        ...


def answer(transcript: Transcript, work: Work, coder: Coder | None = None) -> Response:
    """The whole answer to a request.

    coder : Whisper's tokenizer; without it segments that are sentences have no tokens
    """
    if work.response_format in ("json", "verbose_json", "diarized_json"):
        return json_response(body(transcript, work, coder))
    return in_format(transcript, work.response_format)


def in_format(transcript: Transcript, response_format: str) -> Response:
    """A format that is text."""
    media_type = MEDIA_TYPES.get(response_format, PLAIN)
    if response_format == "text":
        return Response(running_text(transcript.segments) + "\n", media_type=media_type)
    name = "json" if response_format == "whisperx_json" else response_format
    return Response(writers.FORMATS[name](transcript, uri="audio"), media_type=media_type)


def stored(
    transcript: Transcript, response_format: str, names: tuple[str, ...] = (), coder: Coder | None = None
) -> Response:
    """A transcript of earlier in any format: verbose_json with all that it has.

    names : of speakers who came with its request
    Raises `ApiError` for no format, and for one of words or speakers where nobody had asked for these.
    """
    if response_format not in FORMATS:
        raise wrong("response_format", response_format, f"give one of {', '.join(FORMATS)}")
    granularities = ("segment", "word") if transcript.words else ("segment",)
    work = Work(
        model="",
        task="transcribe",
        options={},
        response_format=response_format,
        granularities=granularities,
        known_speakers=tuple(KnownSpeaker(name, b"") for name in names),
    )
    response = answer(transcript, work, coder)
    if response_format in NEEDS and transcript.segments and not response.body:
        needed = NEEDS[response_format]
        raise wrong("response_format", response_format, f"there are no {needed}: send the recording again with it")
    return response


def json_response(content: object) -> Response:
    """JSON without NaN, which no other program reads."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    return Response(text, media_type="application/json")


def body(transcript: Transcript, work: Work, coder: Coder | None = None) -> dict[str, Any]:
    """What JSON holds in the format that is asked for."""
    if work.response_format == "verbose_json":
        return _verbose(transcript, work.task, work.granularities, coder)
    if work.response_format == "diarized_json":
        return _diarized(transcript, known_names(work))
    content: dict[str, Any] = {"text": running_text(transcript.segments)}
    if work.task == "translate":
        return content
    content.update(languages(transcript))
    if work.logprobs:
        content["logprobs"] = logprobs(transcript.segments, coder)
    content["usage"] = usage(transcript)
    return content


def languages(transcript: Transcript) -> dict[str, Any]:
    """`languages` of an answer that has it; nothing where the language is not known."""
    return {} if transcript.language is None else {"languages": [{"code": transcript.language}]}


def usage(transcript: Transcript) -> dict[str, Any]:
    """What a request is billed by: here seconds of sound, always."""
    return {"type": "duration", "seconds": round(transcript.duration, DECIMALS)}


def running_text(segments: Iterable[Segment]) -> str:
    """All text in one line, with a space between segments where the script has one."""
    text = ""
    for segment in segments:
        text += space_between(text, segment) + one_line(segment.text)
    return text


def one_line(text: str) -> str:
    """A segment's text without breaks of lines."""
    return " ".join(text.split("\n"))


def known_names(work: Work) -> tuple[str, ...]:
    """The names that came with the request."""
    return tuple(known.name for known in work.known_speakers)


def logprobs(segments: Iterable[Segment], coder: Coder | None) -> list[dict[str, Any]]:
    """Of every token that was sampled; none without a coder."""
    content: list[dict[str, Any]] = []
    if coder is None:
        return content
    for segment in segments:
        for token, logprob in zip(segment.tokens, segment.token_logprobs, strict=False):
            text = coder.decode([token])
            content.append({"token": text, "bytes": list(text.encode()), "logprob": logprob})
    return content


# --- verbose_json -----------------------------------------------------------------------------------------------------


def _verbose(transcript: Transcript, task: Task, granularities: tuple[str, ...], coder: Coder | None) -> dict[str, Any]:
    language = "en" if task == "translate" else transcript.language
    content: dict[str, Any] = {
        "task": task,
        "language": LANGUAGES.get(language or "", ""),
        "duration": round(transcript.duration, DECIMALS),
        "text": running_text(transcript.segments),
    }
    if "segment" in granularities:
        segments: list[dict[str, Any]] = []
        for number, segment in enumerate(transcript.segments):
            segments.append(_segment(number, segment, coder))
        content["segments"] = segments
    if "word" in granularities:
        content["words"] = [_word(word) for word in transcript.words]
    if task == "transcribe":
        content["usage"] = usage(transcript)
    return content


def _segment(number: int, segment: Segment, coder: Coder | None) -> dict[str, Any]:
    """The tokens of a sentence are those of its text, and not those that were sampled."""
    text = f" {segment.text}"
    content: dict[str, Any] = {
        "id": number,
        "seek": round(segment.start * FRAMES_PER_SECOND),
        **_times(segment.start, segment.end),
        "text": text,
        "tokens": _tokens(segment, text, coder),
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
    }
    if segment.speaker is not None:
        content["speaker"] = segment.speaker
    return content


def _tokens(segment: Segment, text: str, coder: Coder | None) -> list[int]:
    if segment.tokens or coder is None:
        return list(segment.tokens)
    return coder.encode(text)


def _word(word: Word) -> dict[str, Any]:
    content: dict[str, Any] = {"word": word.text, **_times(word.start, word.end)}
    if word.speaker is not None:
        content["speaker"] = word.speaker
    return content


def _times(start: float, end: float) -> dict[str, float]:
    return {"start": round(start, DECIMALS), "end": round(end, DECIMALS)}


# --- diarized_json ----------------------------------------------------------------------------------------------------


def _diarized(transcript: Transcript, names: tuple[str, ...]) -> dict[str, Any]:
    segments = speaker_segments(transcript, names)
    lines = [f"{segment['speaker']}: {segment['text']}" for segment in segments]
    return {
        "task": "transcribe",
        "duration": round(transcript.duration, DECIMALS),
        "text": "\n".join(lines),
        "segments": segments,
        "usage": usage(transcript),
    }


def speaker_segments(transcript: Transcript, names: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The segments of diarized_json. names : of speakers whom the request knows"""
    letters = letters_of(transcript, names)
    segments: list[dict[str, Any]] = []
    for number, segment in enumerate(transcript.segments, 1):
        segments.append(
            {
                "type": "transcript.text.segment",
                "id": f"seg_{number:03d}",
                **_times(segment.start, segment.end),
                "text": segment.text,
                "speaker": letters[segment.speaker],
            }
        )
    return segments


def letters_of(transcript: Transcript, names: tuple[str, ...] = ()) -> dict[str | None, str]:
    """Our labels → A, B, … in the order in which they first speak; who has a name keeps it: one that came with the
    request (names), that is known by the voice, or that a person has put in.

    Words without a speaker are nobody's: the letter behind the last.
    """
    names = (*names, *(speaker for speaker in transcript.speakers if not is_unnamed(speaker)))
    letters: dict[str | None, str] = {}
    taken = 0
    for segment in transcript.segments:
        if segment.speaker in letters:
            continue
        if segment.speaker is not None and segment.speaker in names:
            letters[segment.speaker] = segment.speaker
            continue
        letter = _letter(taken)
        while letter in names:
            taken += 1
            letter = _letter(taken)
        letters[segment.speaker] = letter
        taken += 1
    return letters


def _letter(number: int) -> str:
    """0 → A, 25 → Z, 26 → AA, as the columns of a table."""
    letters = ""
    number += 1
    while number:
        number, place = divmod(number - 1, LETTERS)
        letters = chr(ord("A") + place) + letters
    return letters


# --- diarizations -----------------------------------------------------------------------------------------------------


def diarization_answer(diarization: Diarization, response_format: str) -> Response:
    """Speakers alone, as JSON or RTTM."""
    if response_format == "rttm":
        return Response(writers.regions_to_rttm(diarization.turns, "audio"), media_type=PLAIN)
    turns: list[dict[str, Any]] = []
    for turn in diarization.turns:
        turns.append({"speaker": turn.speaker, **_times(turn.start, turn.end)})
    return json_response({"speakers": list(diarization.speakers), "segments": turns})
