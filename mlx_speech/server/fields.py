"""Fields of a form → what is asked of a pipeline, and in which shape the answer is wanted.

Source: openai `types.audio.TranscriptionCreateParams`, `TranslationCreateParams`; beside OpenAI's fields some options
of ours are taken under their own names.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mlx_speech.errors import OptionError, brief
from mlx_speech.languages import to_language_code
from mlx_speech.options import Options
from mlx_speech.server.errors import ApiError, api_error
from mlx_speech.server.forms import Fields, shown, single
from mlx_speech.server.service import Service

Task = Literal["transcribe", "translate"]

OPENAI_FORMATS = ("json", "text", "srt", "verbose_json", "vtt", "diarized_json")
OWN_FORMATS = ("whisperx_json", "rttm", "tsv", "txt", "ctm", "aud")
FORMATS = (*OPENAI_FORMATS, *OWN_FORMATS)
JSON_FORMATS = ("json", "verbose_json", "diarized_json", "whisperx_json")
STREAMED = ("json", "text", "diarized_json")
WITH_SPEAKERS = ("diarized_json", "rttm")
WITH_WORDS = ("srt", "vtt", "whisperx_json", "ctm")  # better, or only, where words have times
GRANULARITIES = ("word", "segment")
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
MAX_PROMPT = 10_000  # characters
MAX_KEYWORDS = 1_000  # words
MAX_KNOWN = 16  # speakers
MAX_REFERENCE = 3 << 20  # bytes of a known speaker's voice
# chunking_strategy's own names → those of `stages.vad_options`
TURN_DETECTION = {
    "threshold": "threshold",
    "prefix_padding_ms": "speech_pad_ms",
    "silence_duration_ms": "min_silence_duration_ms",
}
_DATA_URL = re.compile(r"data:[^,;]*(?:;[^,;]*)*;base64,")


@dataclass(frozen=True)
class KnownSpeaker:
    """A voice whose name is given with the request.

    sound : the bytes of a recording of it
    """

    name: str
    sound: bytes


@dataclass(frozen=True)
class Work:
    """What a form asks for.

    model : our name of it
    options : keywords of `Pipeline.submit`, in the types of JSON
    granularities : what verbose_json has: words, segments, or both
    logprobs : of every token, with json
    stream : as server-sent events
    """

    model: str
    task: Task
    options: dict[str, Any]
    response_format: str = "json"
    granularities: tuple[str, ...] = ("segment",)
    logprobs: bool = False
    stream: bool = False
    known_speakers: tuple[KnownSpeaker, ...] = ()


@dataclass
class _Reader:
    """The fields of a form, each of which is read once; what is left over at the end is unknown."""

    fields: Fields
    read: set[str] = field(default_factory=set)

    def text(self, name: str) -> str | None:
        """The value; None where absent or empty."""
        self.read.add(name)
        return single(self.fields, name)

    def required(self, name: str) -> str:
        """The value. Raises `ApiError` where there is none."""
        value = self.text(name)
        if value is None:
            raise ApiError(400, "missing_value", f"there is no {name}: name one", name)
        return value

    def all(self, name: str) -> list[str]:
        """All values that are not empty."""
        self.read.add(name)
        return [value for value in self.fields.get(name, []) if value]

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        """One of the choices. Raises `ApiError` for another value."""
        value = self.text(name)
        if value is None:
            return default
        if value not in choices:
            raise wrong(name, value, f"give one of {', '.join(choices)}")
        return value

    def flag(self, name: str) -> bool | None:
        """Raises `ApiError` for what is neither true nor false."""
        value = self.text(name)
        if value is None:
            return None
        if value.lower() not in ("true", "false", "1", "0"):
            raise wrong(name, value, "give true or false")
        return value.lower() in ("true", "1")

    def number(self, name: str, kind: Callable[[str], float]) -> Any:
        """Raises `ApiError` for what is no number, or an infinite one."""
        value = self.text(name)
        if value is None:
            return None
        try:
            number = kind(value)
            if not abs(number) < 1e9:
                raise ValueError(value)
        except (ValueError, OverflowError):
            raise wrong(name, value, "give a number") from None
        return number

    def check_all_read(self) -> None:
        """Raises `ApiError` for a field that nothing answers to."""
        for name in self.fields:
            if name not in self.read:
                raise ApiError(400, "unknown_field", _unknown(shown(name), self.read), shown(name))


def wrong(name: str, value: str, advice: str) -> ApiError:
    """A field with a value that it cannot have."""
    return ApiError(400, "invalid_value", f"{name} is {brief(value)}: {advice}", name)


def _unknown(name: str, known: set[str]) -> str:
    import difflib

    similar = difflib.get_close_matches(name, sorted(known), 1)
    advice = f"did you mean {similar[0]}?" if similar else "leave it out"
    return f"there is no field {name!r}: {advice}"


def transcription(fields: Fields, service: Service) -> Work:
    """What a form of /v1/audio/transcriptions asks for. Raises `ApiError`, naming the field."""
    reader = _Reader(fields)
    asked = reader.required("model")
    model = service.model(asked)
    response_format = reader.choice("response_format", FORMATS, "json")
    granularities = _granularities(reader, response_format)
    known = _known_speakers(reader)
    options = _own_options(reader)
    options.update(_openai_options(reader))
    options.update(_languages(reader, options))
    if options.get("initial_prompt") and asked.endswith("-diarize"):
        raise ApiError(400, "invalid_value", f"{asked} takes no prompt: leave it out", "prompt")
    if response_format in WITH_SPEAKERS or asked.endswith("-diarize") or known:
        if options.get("diarize") is False:
            raise ApiError(400, "invalid_value", f"diarize is false, and {response_format} has speakers", "diarize")
        options["diarize"] = True
    needs_words = "word" in granularities or response_format in WITH_WORDS or options.get("diarize")
    if "word_timestamps" not in options and not needs_words:
        options["word_timestamps"] = "none"
    if "word" in granularities and options.get("word_timestamps") == "none":
        raise ApiError(400, "invalid_value", "word_timestamps is none, and words are asked for", "word_timestamps")
    logprobs = _logprobs(reader, response_format, options)
    stream = bool(reader.flag("stream"))
    if stream and response_format not in STREAMED:
        raise wrong("stream", "true", f"{response_format} comes whole: only {', '.join(STREAMED)} can be streamed")
    reader.check_all_read()
    work = Work(
        model=model,
        task="transcribe",
        options=options,
        response_format=response_format,
        granularities=granularities,
        logprobs=logprobs,
        stream=stream,
        known_speakers=known,
    )
    _check_options(work.options)
    return work


# Fields that are right or wrong together with others, which may come behind the recording.
TOGETHER = ("known_speaker_", "chunking_strategy[", "include")


def early_check(service: Service, read: Callable[[Fields, Service], Work] = transcription) -> Callable[[Fields], None]:
    """For the fields that come before a recording: wrong ones are refused before it is read."""

    def check(given: Fields) -> None:
        if "model" in given:  # where the recording comes first, it may come behind that
            read({name: values for name, values in given.items() if not name.startswith(TOGETHER)}, service)

    return check


def translation(fields: Fields, service: Service) -> Work:
    """What a form of /v1/audio/translations asks for. Raises `ApiError`, naming the field."""
    reader = _Reader(fields)
    asked = reader.required("model")
    model = service.model(asked)
    if not service.translates(model):
        able = [name for name in service.pipelines if service.translates(name)]
        advice = f"name {' or '.join(able)}" if able else "this server has no model that can"
        raise ApiError(400, "invalid_value", f"{model} cannot translate: {advice}", "model")
    response_format = reader.choice("response_format", OPENAI_FORMATS[:-1], "json")
    options: dict[str, Any] = {"task": "translate", "word_timestamps": "none"}
    options.update(_openai_options(reader))
    reader.check_all_read()
    _check_options(options)
    return Work(model=model, task="translate", options=options, response_format=response_format)


@dataclass(frozen=True)
class Diarizing:
    """What a form of /v1/audio/diarizations asks for.

    numbers : keywords of `Pipeline.diarize`
    """

    model: str
    numbers: dict[str, int]
    response_format: str


def diarization(fields: Fields, service: Service) -> Diarizing:
    """Raises `ApiError`, naming the field."""
    reader = _Reader(fields)
    asked = reader.text("model")
    model = next(iter(service.pipelines)) if asked is None else service.model(asked)
    response_format = reader.choice("response_format", ("json", "rttm"), "json")
    numbers = _numbers_of_speakers(reader)
    reader.check_all_read()
    _check_options(numbers)
    return Diarizing(model, numbers, response_format)


def _check_options(options: Mapping[str, Any]) -> None:
    try:
        Options.of(**options)
    except OptionError as error:
        raise api_error(error) from error


def _openai_options(reader: _Reader) -> dict[str, Any]:
    """language, prompt, temperature, chunking_strategy."""
    options: dict[str, Any] = {}
    language = reader.text("language")
    if language is not None:
        options["language"] = _language(language, "language")
    prompt = reader.text("prompt")
    if prompt is not None:
        if len(prompt) > MAX_PROMPT:
            raise ApiError(400, "invalid_value", f"prompt has more than {MAX_PROMPT} characters", "prompt")
        options["initial_prompt"] = prompt
    temperature = reader.number("temperature", float)
    if temperature is not None and not 0 <= temperature <= 1:
        raise wrong("temperature", str(temperature), "give a number from 0 to 1")
    if temperature:
        options["temperature"] = temperature
    else:
        options["temperature"] = list(TEMPERATURES)
    options.update(_chunking(reader))
    return options


def _language(name: str, param: str) -> str:
    try:
        return to_language_code(name)
    except OptionError as error:
        raise ApiError(400, "invalid_value", str(error), param) from error


def _languages(reader: _Reader, options: Mapping[str, Any]) -> dict[str, Any]:
    """The languages that may be spoken. One of them alone is the language."""
    codes = tuple(_language(name, "languages") for name in reader.all("languages"))
    if codes and "language" in options:
        raise ApiError(400, "invalid_value", "language and languages conflict: leave one of them out", "languages")
    if len(codes) == 1:
        return {"language": codes[0]}
    return {"languages": list(codes)} if codes else {}


def _chunking(reader: _Reader) -> dict[str, Any]:
    """chunking_strategy: "auto", JSON, or a field for each of its entries, as the official client sends it."""
    entries: dict[str, str] = {}
    for name in ("type", *TURN_DETECTION):
        value = reader.text(f"chunking_strategy[{name}]")
        if value is not None:
            entries[name] = value
    whole = reader.text("chunking_strategy")
    if whole is not None and whole not in ("auto", "null"):
        entries.update(_chunking_json(whole))
    if not entries:
        return {}
    if entries.get("type") != "server_vad":
        kind = entries.get("type", "nothing")
        raise wrong("chunking_strategy", kind, 'give "auto", or an object of type server_vad')
    options: dict[str, float] = {}
    for name, ours in TURN_DETECTION.items():
        if name in entries:
            options[ours] = _chunking_number(name, entries[name])
    return {"vad_options": options} if options else {}


def _chunking_json(text: str) -> dict[str, str]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise wrong("chunking_strategy", text, 'give "auto", or an object of type server_vad')
    for name in content:
        if name not in ("type", *TURN_DETECTION):
            raise wrong("chunking_strategy", name, "it has type, threshold, prefix_padding_ms, silence_duration_ms")
    return {name: str(value) for name, value in content.items()}


def _chunking_number(name: str, text: str) -> float:
    try:
        number = float(text) if name == "threshold" else int(text)
    except (ValueError, OverflowError):
        raise wrong(f"chunking_strategy[{name}]", text, "give a number") from None
    highest = 1.0 if name == "threshold" else 60_000
    if not 0 <= number <= highest:
        raise wrong(f"chunking_strategy[{name}]", text, f"give a number from 0 to {highest:g}")
    return number


def _granularities(reader: _Reader, response_format: str) -> tuple[str, ...]:
    """What verbose_json is to have; of other formats it says nothing."""
    asked = reader.all("timestamp_granularities")
    for value in asked:
        if value not in GRANULARITIES:
            raise wrong("timestamp_granularities", value, "give word, segment, or both")
    if response_format != "verbose_json" or not asked:
        return ("segment",)
    return tuple(sorted(set(asked)))


def _logprobs(reader: _Reader, response_format: str, options: Mapping[str, Any]) -> bool:
    asked = reader.all("include")
    for value in asked:
        if value != "logprobs":
            raise wrong("include", value, "only logprobs can be included")
    if asked and response_format != "json":
        raise ApiError(400, "invalid_value", f"include needs response_format json, not {response_format}", "include")
    if asked and options.get("word_timestamps") != "none":
        message = "include needs no speakers and no word_timestamps: sentences have no tokens of their own"
        raise ApiError(400, "invalid_value", message, "include")
    return bool(asked)


def _own_options(reader: _Reader) -> dict[str, Any]:
    """Options of ours, by their own names."""
    options: dict[str, Any] = dict(_numbers_of_speakers(reader))
    diarize = reader.flag("diarize")
    if diarize is not None:
        options["diarize"] = diarize
    beam_size = reader.number("beam_size", int)
    if beam_size is not None:
        options["beam_size"] = beam_size
    chunk_size = reader.number("chunk_size", float)
    if chunk_size is not None:
        options["chunk_size"] = chunk_size
    hotwords = reader.text("hotwords")
    keywords = reader.all("keywords")
    if hotwords is not None and keywords:
        raise ApiError(400, "invalid_value", "hotwords and keywords conflict: leave one of them out", "keywords")
    if len(keywords) > MAX_KEYWORDS or sum(map(len, keywords)) > MAX_PROMPT:
        raise ApiError(400, "invalid_value", "keywords are too many", "keywords")
    if hotwords is not None and len(hotwords) > MAX_PROMPT:
        raise ApiError(400, "invalid_value", f"hotwords has more than {MAX_PROMPT} characters", "hotwords")
    if keywords:
        options["hotwords"] = ", ".join(keywords)
    if hotwords is not None:
        options["hotwords"] = hotwords
    timestamps = reader.text("word_timestamps")
    if timestamps is not None:
        if timestamps not in ("ctc", "attention", "none"):
            raise wrong("word_timestamps", timestamps, "give ctc, attention or none")
        options["word_timestamps"] = timestamps
    return options


def _numbers_of_speakers(reader: _Reader) -> dict[str, int]:
    numbers: dict[str, int] = {}
    for name in ("num_speakers", "min_speakers", "max_speakers"):
        value = reader.number(name, int)
        if value is not None:
            numbers[name] = value
    return numbers


def _known_speakers(reader: _Reader) -> tuple[KnownSpeaker, ...]:
    """Names and their voices. Raises `ApiError` where they are not as many, or no recordings."""
    names = reader.all("known_speaker_names")
    references = reader.all("known_speaker_references")
    if len(names) != len(references):
        counts = f"{len(names)} names and {len(references)} references"
        raise ApiError(400, "invalid_value", f"known speakers: {counts}: give as many", "known_speaker_references")
    if len(names) > MAX_KNOWN:
        raise ApiError(400, "invalid_value", f"known speakers: at most {MAX_KNOWN}", "known_speaker_names")
    if len(set(names)) != len(names):
        raise ApiError(400, "invalid_value", "known_speaker_names: a name is given twice", "known_speaker_names")
    speakers: list[KnownSpeaker] = []
    for place, (name, reference) in enumerate(zip(names, references, strict=True)):
        speakers.append(KnownSpeaker(name, _sound_of(reference, f"known_speaker_references[{place}]")))
    return tuple(speakers)


def _sound_of(url: str, param: str) -> bytes:
    """The bytes of a data URL. No other URL is ever opened."""
    advice = "give a data URL: data:audio/wav;base64,…"
    header = _DATA_URL.match(url[:200])
    if header is None:
        raise ApiError(400, "invalid_value", f"{param} is no data URL in base64: {advice}", param)
    coded = url[header.end() :]
    if len(coded) > MAX_REFERENCE * 4 // 3 + 4:
        raise ApiError(400, "invalid_value", f"{param} is larger than {MAX_REFERENCE >> 20} MiB", param)
    try:
        return base64.b64decode(coded, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "invalid_value", f"{param} is not base64: {advice}", param) from None
