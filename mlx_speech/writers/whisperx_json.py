"""Transcripts as JSON in the shape of whisperx's results, written and read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlx_speech.errors import CorruptFile
from mlx_speech.json_objects import JsonObject
from mlx_speech.transcript import Char, Diarization, Region, Segment, Transcript, Turn, Word, read_matches
from mlx_speech.writers.cues import Layout, LayoutKeywords

if TYPE_CHECKING:
    from typing_extensions import Unpack

MAX_CHARACTERS = 1 << 28  # of a document that is read: a week of speech with the times of all its characters
MAX_DIGITS = 30  # of a whole number
MAX_SECONDS = 1e9  # thirty years


def to_json(transcript: Transcript, *, uri: str = "", **layout: Unpack[LayoutKeywords]) -> str:
    """`as_dict` as JSON, in one line. layout : fields of `cues.Layout`. Raises `OptionError` for a wrong one."""
    content = as_dict(transcript, speaker_embeddings=Layout(**layout).speaker_embeddings)
    return json.dumps(content, ensure_ascii=False) + "\n"


def as_dict(transcript: Transcript, *, speaker_embeddings: bool = False) -> dict[str, Any]:
    """The transcript as dicts and lists in the shape of whisperx's result, for those who read that; times to the ms.

    Keys besides whisperx's: duration, language_probability, turns (where there is a diarization), embedding_model (of
    the embeddings), speaker_matches (where known voices were heard), models, seconds; of a segment its language where
    it is not the recording's; of a word `"aligned": False` where its time is a guess.
    What it leaves out (tokens, the decoding's figures, silences), and times as they are, are in `Transcript.to_dict`.
    """
    has_words = any(segment.words for segment in transcript.segments)
    content: dict[str, Any] = {
        "segments": [_segment(segment, transcript.language, has_words) for segment in transcript.segments],
        "word_segments": [_word(word) for word in transcript.words],
        "language": transcript.language,
        "language_probability": round(transcript.language_probability, 3),
        "duration": round(transcript.duration, 3),
    }
    if transcript.diarization is not None:
        content["turns"] = [{**_times(turn), "speaker": turn.speaker} for turn in transcript.diarization.turns]
        if speaker_embeddings:
            vectors = transcript.diarization.embeddings
            content["speaker_embeddings"] = {speaker: list(vector) for speaker, vector in vectors.items()}
            if transcript.diarization.embedding_model is not None:
                content["embedding_model"] = transcript.diarization.embedding_model
        if transcript.diarization.matches:
            content["speaker_matches"] = _matches(transcript.diarization)
    content["models"] = dict(transcript.models)
    content["seconds"] = {stage: round(seconds, 3) for stage, seconds in transcript.seconds.items()}
    return content


def _matches(diarization: Diarization) -> dict[str, Any]:
    """The known voices that speakers sound like, by label."""
    content: dict[str, Any] = {}
    for speaker, match in diarization.matches.items():
        content[speaker] = {"name": match.name, "score": round(match.score, 3), "doubtful": match.doubtful}
    return content


def _segment(segment: Segment, language: str | None, has_words: bool) -> dict[str, Any]:
    """language : the recording's; has_words : whether any of its segments has words"""
    content: dict[str, Any] = {**_times(segment), "text": segment.text}
    if has_words:  # whisperx's readers take the key for a sign that there are some
        content["words"] = [_word(word) for word in segment.words]
    if any(word.chars for word in segment.words):
        content["chars"] = _chars(segment)
    if segment.speaker is not None:
        content["speaker"] = segment.speaker
    if segment.language is not None and segment.language != language:
        content["language"] = segment.language
    content["avg_logprob"] = round(segment.avg_logprob, 4)
    return content


def _chars(segment: Segment) -> list[dict[str, Any]]:
    """Those of all words; what the text has between the words, such as spaces, has no time."""
    text, spans = segment.placed()
    chars: list[dict[str, Any]] = []
    last_end = 0
    for word, (start, end) in zip(segment.words, spans, strict=True):
        chars += [{"char": char} for char in text[last_end:start]]
        chars += [_char(char) for char in word.chars]
        last_end = end
    chars += [{"char": char} for char in text[last_end:]]
    return chars


def _char(char: Char) -> dict[str, Any]:
    return {"char": char.text, **_times(char), "score": round(char.score, 3)}


def _word(word: Word) -> dict[str, Any]:
    content: dict[str, Any] = {"word": word.text, **_times(word), "score": round(word.score, 3)}
    if word.speaker is not None:
        content["speaker"] = word.speaker
    if not word.aligned:
        content["aligned"] = False
    return content


def _times(region: Region) -> dict[str, float]:
    return {"start": round(region.start, 3), "end": round(region.end, 3)}


# --- reading ----------------------------------------------------------------------------------------------------------


def read_json(text: str) -> Transcript:
    """The transcript in a JSON document: of `to_json`, of whisperx's results, or of `Transcript.to_dict`, exactly.

    What a document does not say has its default, but for these: the duration is where the last segment ends, and the
    language of a segment is the recording's. Words without a time share the time between their neighbours, by their
    length; they, and words without a score, are not `aligned`. NaN, which pandas writes, counts as missing.

    Raises `CorruptFile`, in one line, for any other text, for times that cannot be, and for more than
    `MAX_CHARACTERS`.
    """
    try:
        transcript = _read_document(_parse(text))
        _check_times(transcript)
    except CorruptFile as error:
        raise CorruptFile(f"no transcript of mlx_speech or whisperx ({error}): write it anew") from error
    return transcript


def _parse(text: str) -> Any:
    """What `json.loads` gives, with finite numbers only and text that can be encoded. Raises `CorruptFile`."""
    if len(text) > MAX_CHARACTERS:
        raise CorruptFile(f"{len(text)} characters are too many")
    try:
        content = json.loads(
            text.removeprefix("\ufeff"), parse_int=_parse_int, parse_float=_parse_float, parse_constant=_parse_constant
        )
        json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair could not be written again
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"not valid JSON: {error}") from error
    return content


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:  # old versions of Python take minutes for very long ones
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _parse_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number that is too large")
    return number


def _parse_constant(name: str) -> None:
    """NaN and Infinity, which JSON has not, are nothing."""


def _read_document(content: Any) -> Transcript:
    """Either of the two forms. content : of `json.loads`"""
    document = JsonObject(content)
    if document.has("format_version"):
        return Transcript.from_dict(content)
    if not document.has("segments"):
        raise CorruptFile("it has no segments")
    language = document.optional_text("language")
    segments = tuple(_read_segment(entry, language) for entry in document.entries("segments"))
    last_end = max((segment.end for segment in segments), default=0.0)
    models = document.entry("models")
    seconds = document.entry("seconds")
    return Transcript(
        segments=segments,
        language=language,
        language_probability=document.number("language_probability", 1.0),
        duration=document.number("duration", last_end),
        diarization=_read_diarization(document),
        models={stage: models.text(stage) for stage in models.names()},
        seconds={stage: seconds.number(stage) for stage in seconds.names()},
    )


def _read_diarization(document: JsonObject) -> Diarization | None:
    """Turns are there in ours only; embeddings in whisperx's, too."""
    if not document.has("turns") and not document.has("speaker_embeddings"):
        return None
    turns: list[Turn] = []
    for entry in document.entries("turns"):
        turns.append(Turn(entry.number("start"), entry.number("end"), entry.text("speaker")))
    vectors = document.entry("speaker_embeddings")
    embeddings = {speaker: vectors.numbers(speaker) for speaker in vectors.names()}
    return Diarization(
        turns=tuple(turns),
        embeddings=embeddings,
        embedding_model=document.optional_text("embedding_model"),
        matches=read_matches(document.entry("speaker_matches")),
    )


def _read_segment(entry: JsonObject, language: str | None) -> Segment:
    """language : the recording's"""
    region = Region(entry.number("start"), entry.number("end"))
    text = entry.text("text")
    words = _read_words(entry.entries("words"), region)
    return Segment(
        start=region.start,
        end=region.end,
        text=text.strip(),
        words=_with_chars(words, _read_chars(entry.entries("chars"))),
        speaker=entry.optional_text("speaker"),
        language=entry.optional_text("language") or language,
        avg_logprob=entry.number("avg_logprob", 0.0),
        spaced=text[:1].isspace(),
    )


def _read_words(entries: Iterable[JsonObject], segment: Region) -> list[Word]:
    """The words of a segment, all of them with times."""
    words: list[Word] = []
    untimed: list[Word] = []  # those behind the last word that has a time
    last_end = segment.start
    for entry in entries:
        text = entry.text("word").strip()
        speaker = entry.optional_text("speaker")
        if not _is_timed(entry):
            untimed.append(Word(0.0, 0.0, text, speaker=speaker, aligned=False))
            continue
        word = Word(
            start=entry.number("start"),
            end=entry.number("end"),
            text=text,
            score=entry.number("score", 0.0),
            speaker=speaker,
            aligned=entry.flag("aligned", entry.has("score")),
        )
        words += _spread(untimed, last_end, word.start)
        words.append(word)
        untimed = []
        last_end = word.end
    words += _spread(untimed, last_end, segment.end)
    return words


def _is_timed(entry: JsonObject) -> bool:
    return entry.has("start") and entry.has("end")


def _spread(words: Sequence[Word], start: float, end: float) -> list[Word]:
    """The words over [start, end], each as long as it has characters."""
    total = sum(len(word.text) for word in words)
    duration = max(0.0, end - start)
    spread: list[Word] = []
    characters = 0
    last_end = start
    for word in words:
        characters += len(word.text)
        word_end = start + duration * characters / max(1, total)
        spread.append(replace(word, start=last_end, end=word_end))
        last_end = word_end
    return spread


def _read_chars(entries: Iterable[JsonObject]) -> list[Char]:
    """Those that have a time; spaces have none."""
    chars: list[Char] = []
    for entry in entries:
        text = entry.text("char")
        if _is_timed(entry):
            chars.append(Char(entry.number("start"), entry.number("end"), text, entry.number("score", 0.0)))
    return chars


def _with_chars(words: Sequence[Word], chars: Sequence[Char]) -> tuple[Word, ...]:
    """The words with their characters: of those that come next, as many as are of the word's text and in its time."""
    completed: list[Word] = []
    taken = 0
    for word in words:
        while taken < len(chars) and chars[taken].start < word.start:
            taken += 1  # of no word
        first = taken
        place = 0
        while word.aligned and taken < len(chars) and chars[taken].end <= word.end:
            found = word.text.find(chars[taken].text, place)
            if found < 0:
                break
            place = found + len(chars[taken].text)
            taken += 1
        completed.append(replace(word, chars=tuple(chars[first:taken])))
    return tuple(completed)


def _check_times(transcript: Transcript) -> None:
    """Raises `CorruptFile` where something ends before it starts, or is at no time that a recording has."""
    regions: list[Region] = [*transcript.segments, *transcript.words, *transcript.silences]
    for word in transcript.words:
        regions += word.chars
    if transcript.diarization is not None:
        regions += [*transcript.diarization.turns, *transcript.diarization.exclusive]
    for region in regions:
        if not 0 <= region.start <= region.end <= MAX_SECONDS:
            kind = type(region).__name__.lower()
            raise CorruptFile(f"a {kind} from {region.start:g} to {region.end:g} s: expected seconds, in order")
    if not 0 <= transcript.duration <= MAX_SECONDS:
        raise CorruptFile(f"a duration of {transcript.duration:g} s")
