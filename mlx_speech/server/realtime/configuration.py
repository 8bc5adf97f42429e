"""What a client may set of a session: checked, kept, told back.

An update says what is to change: of the session's own fields, what it leaves out stays, null is the default, or off
where something can be off.
Source: `openai.types.realtime.realtime_transcription_session_create_request`, and, of the older messages,
`openai.types.beta.realtime.transcription_session_update`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from mlx_speech.errors import OptionError
from mlx_speech.options import Options
from mlx_speech.server.errors import ApiError
from mlx_speech.server.fields import MAX_PROMPT
from mlx_speech.server.realtime.fields import Fields
from mlx_speech.server.realtime.finder import TurnDetection
from mlx_speech.server.realtime.g711 import RATE as G711_RATE
from mlx_speech.server.realtime.recognition import RecognitionSettings
from mlx_speech.server.realtime.sound import Coding, Format
from mlx_speech.server.service import Service

# OpenAI's names of models that live sessions alone are asked for; they stand for the first of ours, too
REALTIME_NAMES = ("gpt-realtime-whisper", "gpt-live-transcribe")
CODINGS: tuple[Coding, ...] = ("audio/pcm", "audio/pcmu", "audio/pcma")
OLDER_FORMATS: dict[str, Format] = {
    "pcm16": Format("audio/pcm", 24_000),
    "g711_ulaw": Format("audio/pcmu", G711_RATE),
    "g711_alaw": Format("audio/pcma", G711_RATE),
}
LOWEST_RATE = 8_000  # Hz
HIGHEST_RATE = 48_000
# how long text may be held back → seconds between two looks at a turn that is open; None: text comes at its end
STEPS: dict[str, float | None] = {"minimal": 0.25, "low": 0.5, "medium": 1.0, "high": 2.0, "xhigh": None}
USUAL_DELAY = "low"
NOISES = ("near_field", "far_field")
INCLUDED = "item.input_audio_transcription.logprobs"
LONGEST_PADDING = 5_000  # milliseconds
SHORTEST_SILENCE = 50
LONGEST_SILENCE = 10_000


@dataclass(frozen=True)
class Transcription:
    """How a session is transcribed.

    model : as the client calls it
    delay : how long text may be held back to be sure of it, of `STEPS`; that of turns that are over never is
    """

    model: str
    language: str | None = None
    languages: tuple[str, ...] = ()
    prompt: str | None = None
    keywords: tuple[str, ...] = ()
    delay: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """As `TranscribeOptions`."""
        options: dict[str, Any] = {}
        if self.language is not None:
            options["language"] = self.language
        elif len(self.languages) == 1:
            options["language"] = self.languages[0]
        elif self.languages:
            options["languages"] = self.languages
        if self.prompt:
            options["initial_prompt"] = self.prompt
        if self.keywords:
            options["hotwords"] = ", ".join(self.keywords)
        return options

    @property
    def step(self) -> float | None:
        """As `RecognitionSettings` has it."""
        return STEPS[self.delay or USUAL_DELAY]

    def as_json(self) -> dict[str, object]:
        """As the client wrote it."""
        return {
            "model": self.model,
            "language": self.language,
            "languages": list(self.languages) or None,
            "prompt": self.prompt,
            "keywords": list(self.keywords) or None,
            "delay": self.delay,
        }


@dataclass(frozen=True)
class Configuration:
    """All that can be set of a session."""

    transcription: Transcription
    format: Format = field(default_factory=Format)
    detection: TurnDetection | None = field(default_factory=TurnDetection)

    def recognition_settings(self, service: Service) -> RecognitionSettings:
        """What the recogniser has to know. Raises `ApiError`, naming the field, for what it cannot do."""
        options = self.transcription.options
        try:
            Options.of(**options)
        except OptionError as error:
            raise ApiError(400, "invalid_value", str(error), "session.audio.input.transcription") from error
        pipeline = service.pipeline(model_name(service, self.transcription.model))
        return RecognitionSettings(pipeline, options, self.detection, self.transcription.step)

    def updated(self, session: object) -> Configuration:
        """With what the `session` of a `session.update` changes. Raises `ApiError`, naming the field."""
        update = Fields(session, "session")
        update.allow("type", "audio", "include", "id", "object", "expires_at")
        update.choice("type", ("transcription",), "transcription")
        _check_included(update)
        sound = update.inner("audio")
        sound.allow("input")
        given = sound.inner("input")
        given.allow("format", "noise_reduction", "transcription", "turn_detection")
        _check_noise_reduction(given.inner("noise_reduction"))
        result = self
        if given.has("format"):
            result = replace(result, format=_format(given.inner("format")))
        return result._with_hearing(given, "transcription")

    def updated_by_older(self, session: object) -> Configuration:
        """As `updated`, of a `transcription_session.update`."""
        update = Fields(session, "session")
        update.allow(
            "input_audio_format",
            "input_audio_noise_reduction",
            "input_audio_transcription",
            "turn_detection",
            "include",
            "modalities",
            "client_secret",
        )
        _check_included(update)
        _check_noise_reduction(update.inner("input_audio_noise_reduction"))
        result = self
        if update.has("input_audio_format"):
            name = update.choice("input_audio_format", tuple(OLDER_FORMATS), "pcm16")
            result = replace(result, format=OLDER_FORMATS[name])
        return result._with_hearing(update, "input_audio_transcription")

    def _with_hearing(self, given: Fields, transcription: str) -> Configuration:
        result = self
        if given.has(transcription):
            changed = _transcription(given.inner(transcription), self.transcription.model)
            result = replace(result, transcription=changed)
        if given.has("turn_detection"):
            result = replace(result, detection=_detection(given, "turn_detection"))
        return result

    def as_json(self) -> dict[str, object]:
        """`audio` and the like, as they are in force: there is no noise reduction, whoever asks for it."""
        sound: dict[str, object] = {"type": self.format.coding}
        if self.format.coding == "audio/pcm":
            sound["rate"] = self.format.rate
        detection: dict[str, object] | None = None
        if self.detection is not None:
            detection = {"type": "server_vad", **vars(self.detection)}
        given = {
            "format": sound,
            "noise_reduction": None,
            "transcription": self.transcription.as_json(),
            "turn_detection": detection,
        }
        return {"type": "transcription", "audio": {"input": given}, "include": []}

    def as_older_json(self) -> dict[str, object]:
        """The same as an older client knows it."""
        names = {value.coding: name for name, value in OLDER_FORMATS.items()}
        transcription = self.transcription
        detection: dict[str, object] | None = None
        if self.detection is not None:
            detection = {"type": "server_vad", **vars(self.detection)}
        return {
            "input_audio_format": names[self.format.coding],
            "input_audio_transcription": {
                "model": transcription.model,
                "language": transcription.language,
                "prompt": transcription.prompt or "",
            },
            "turn_detection": detection,
            "modalities": ["text"],
        }


def default_configuration(service: Service, model: str | None = None) -> Configuration:
    """Of a session of which nothing was set. model : as the client calls it. Raises as `model_name`."""
    name = model_name(service, model)
    return Configuration(Transcription(model or name))


def model_name(service: Service, name: str | None) -> str:
    """Our name of the model that a client asks for; the first without a name.

    Raises `ApiError` 404 for another one, and 400 for one that tells speakers apart.
    """
    if name is None or name in REALTIME_NAMES:
        return next(iter(service.pipelines))
    if name not in service.pipelines and name.endswith("-diarize"):
        advice = "send the recording to /v1/audio/transcriptions, or choose a model without -diarize"
        raise ApiError(400, "invalid_value", f"a live session does not tell speakers apart: {advice}", "model")
    return service.model(name)


def _format(given: Fields) -> Format:
    given.allow("type", "rate")
    coding: Coding = given.choice("type", CODINGS, CODINGS[0])
    if coding == "audio/pcm":
        return Format(coding, given.integer("rate", LOWEST_RATE, HIGHEST_RATE, Format().rate))
    return Format(coding, given.integer("rate", G711_RATE, G711_RATE, G711_RATE))


def _transcription(given: Fields, model: str) -> Transcription:
    given.allow("model", "language", "languages", "prompt", "keywords", "delay")
    delay = None
    if given.value("delay") is not None:
        delay = given.choice("delay", tuple(STEPS), USUAL_DELAY)
    return Transcription(
        given.text("model") or model,
        given.text("language") or None,
        given.texts("languages"),
        given.text("prompt", MAX_PROMPT) or None,
        given.texts("keywords"),
        delay,
    )


def _detection(parent: Fields, name: str) -> TurnDetection | None:
    if parent.value(name) is None:
        return None
    given = parent.inner(name)
    # the last four are of conversations: there is no answer that could be made or broken off
    given.allow(
        "type",
        "threshold",
        "prefix_padding_ms",
        "silence_duration_ms",
        "create_response",
        "interrupt_response",
        "idle_timeout_ms",
        "eagerness",
    )
    given.choice("type", ("server_vad",), "server_vad")
    usual = TurnDetection()
    return TurnDetection(
        given.number("threshold", 0, 1, usual.threshold),
        given.integer("prefix_padding_ms", 0, LONGEST_PADDING, usual.prefix_padding_ms),
        given.integer("silence_duration_ms", SHORTEST_SILENCE, LONGEST_SILENCE, usual.silence_duration_ms),
    )


def _check_noise_reduction(given: Fields) -> None:
    """It is accepted, since it changes nothing that a client could rely on."""
    given.allow("type", "strength")
    given.choice("type", NOISES, NOISES[0])


def _check_included(given: Fields) -> None:
    included = given.texts("include")
    if INCLUDED in included:
        problem = "log-probabilities are not told in a live session: leave include out"
        raise ApiError(400, "invalid_value", problem, "session.include")
    if included:
        raise given.wrong("include", included, "leave it out")
