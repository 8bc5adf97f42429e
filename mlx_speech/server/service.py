"""What all routes of a server share: its settings, its models, how much it has taken on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from anyio import CapacityLimiter
from starlette.requests import HTTPConnection

from mlx_speech.pipeline import Pipeline
from mlx_speech.server.admission import Admission
from mlx_speech.server.collectors import DecodingCollector
from mlx_speech.server.errors import ApiError
from mlx_speech.server.idempotency import Answers
from mlx_speech.server.interrupted import Interrupted
from mlx_speech.server.metrics import Metrics
from mlx_speech.server.settings import Settings

# OpenAI's names of models, each of which stands for the first of ours
OPENAI_NAMES = (
    "whisper-1",
    "gpt-transcribe",
    "gpt-4o-transcribe",
    "gpt-4o-mini-transcribe",
    "gpt-4o-mini-transcribe-2025-12-15",
    "gpt-4o-transcribe-diarize",
)

VOICES_AT_ONCE = 4  # requests whose known speakers are heard


class OpenSession(Protocol):
    """A live session."""

    @property
    def lag(self) -> float:
        """Seconds of sound that came no faster than it was said, and wait to be heard. From any thread."""
        ...

    def leave(self) -> None:
        """End because the server does."""


@dataclass
class Service:
    """pipelines : a name that requests may give → what answers; the first answers OpenAI's names, too
    aliases : further names → names of pipelines
    state : "loading", "ready", "not loaded" or "shutting down"
    live : sessions that are open
    answers : that may be asked for again
    interrupted : what requests had heard whose clients went
    """

    settings: Settings
    pipelines: Mapping[str, Pipeline]
    aliases: Mapping[str, str] = field(default_factory=dict)
    state: str = "loading"
    waiting_for_voices: CapacityLimiter = field(init=False)
    live: set[OpenSession] = field(default_factory=set)
    answers: Answers = field(default_factory=Answers)
    interrupted: Interrupted = field(default_factory=Interrupted)
    admission: Admission = field(init=False)
    metrics: Metrics = field(init=False)

    def __post_init__(self) -> None:
        self.admission = Admission(self.settings)
        self.waiting_for_voices = CapacityLimiter(VOICES_AT_ONCE)  # or they would take the threads of all others
        self.metrics = Metrics(self.settings.data_dir, self.pipelines, lambda: self.stalled_for)
        self.metrics.live_sessions.set_function(lambda: len(self.live))
        self.metrics.live_lag.set_function(lambda: max((session.lag for session in list(self.live)), default=0.0))
        self.metrics.add(DecodingCollector(self.pipelines.values()))

    @property
    def uploads(self) -> Path:
        """The folder of recordings that are being sent, or wait for their turn."""
        return self.settings.data_dir / "uploads"

    def backlog(self) -> tuple[int, float]:
        """Requests that wait or are under way, and seconds of their sound. From any thread."""
        return self.admission.waiting, self.admission.seconds

    def live_backlog(self) -> tuple[int, float]:
        """Live sessions that are open, and seconds of their sound that wait to be heard. From any thread."""
        sessions = list(self.live)
        return len(sessions), sum(session.lag for session in sessions)

    @property
    def stalled_for(self) -> float:
        """Seconds that the longest step has been under way in any of the pipelines; 0 where all are idle."""
        return max((pipeline.stalled_for for pipeline in self.pipelines.values()), default=0.0)

    def model(self, name: str) -> str:
        """Our name of the model that a request names. Raises `ApiError` 404 for any other."""
        if name in self.pipelines:
            return name
        if name in self.aliases:
            return self.aliases[name]
        if name in OPENAI_NAMES:
            return next(iter(self.pipelines))
        known = ", ".join(self.pipelines)
        raise ApiError(404, "model_not_found", f"there is no model of this name here: give one of {known}", "model")

    def translates(self, name: str) -> bool:
        """Whether a pipeline's Whisper was trained to; turbo was not."""
        weights = self.pipelines[name].models.names.get("whisper", name)
        return "turbo" not in weights

    def pipeline(self, name: str) -> Pipeline:
        """What answers for a model. Raises as `model`."""
        return self.pipelines[self.model(name)]


def owner_of(connection: HTTPConnection) -> str:
    """Whose request it is: the hash of its key, "" where no keys are needed."""
    return getattr(connection.state, "owner", "")
