"""How a live session goes about its work; what it hears by are `Options`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from mlx_speech.errors import OptionError, in_range
from mlx_speech.fields import check, option
from mlx_speech.live.defaults import CHUNK_SIZE, MAX_PAUSE, MAX_STEP, MIN_STEP, STEP
from mlx_speech.options import Options
from mlx_speech.stages.whisper.agreement import Policy


@dataclass(frozen=True)
class LiveSettings:
    """Raises `OptionError`, naming what is out of range."""

    step: float = option(STEP, "seconds between two partials")
    partials: bool = option(True, "tell what a chunk seems to say while it grows")
    finals: Literal["pause", "window"] = option(
        "pause", f"pause: a chunk ends at a pause of {MAX_PAUSE:g} s, or at {CHUNK_SIZE:g} s; window: as in a file"
    )
    every_partial: bool = option(False, "also those that newer sound has overtaken")
    policy: Policy = field(default_factory=Policy)  # what makes words firm

    @classmethod
    def taken(cls, **keywords: Any) -> tuple[LiveSettings, dict[str, Any]]:
        """Keywords that are of a session, and the others."""
        own = {field.name: keywords.pop(field.name) for field in fields(cls) if field.name in keywords}
        return cls(**own), keywords

    def __post_init__(self) -> None:
        check(self)
        in_range(MIN_STEP, MAX_STEP, step=self.step)


def check_live(options: Options) -> None:
    """Raises `OptionError` for what needs all of a recording."""
    reasons = {
        "sequential": options.longform.sequential,
        "vad=False": not options.detection.vad,
        'vad_method "pyannote"': options.detection.vad_method != "silero",
        "audio_track": options.audio_track is not None,
    }
    for name, is_given in reasons.items():
        if is_given:
            raise OptionError(f"{name} is for recordings, and not for sound that is still coming in: leave it out")
