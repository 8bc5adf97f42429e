"""A job as the server's database holds it, and as clients see it."""

from __future__ import annotations

import re
import secrets
from base64 import b32encode
from dataclasses import dataclass
from typing import Any

RANDOM_BYTES = 16
PATTERN = re.compile(r"job_[a-z2-7]{26}")
WAITING = ("queued", "running")
ENDED = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Job:
    """status : "queued", "running", "succeeded", "failed" or "cancelled"
    stage, progress : of the work: "vad", "transcribe" …, and 0..1 of all of it
    options : keywords of `Pipeline.submit`
    created_at, expires_at : seconds since 1970
    error : as `ApiError.body` has it
    revision : of the result; 0 before there is one, and one more with every correction
    """

    id: str
    owner: str
    filename: str
    media_type: str
    model: str
    options: dict[str, Any]
    response_format: str
    status: str
    stage: str
    progress: float
    audio_seconds: float
    attempts: int
    created_at: float
    expires_at: float
    error: dict[str, Any] | None
    corrected: bool
    revision: int

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in ENDED

    def body(self, queue_position: int | None = None) -> dict[str, Any]:
        """What clients see. queue_position : jobs that come before it"""
        return {
            "id": self.id,
            "object": "audio.job",
            "status": self.status,
            "stage": self.stage,
            "progress": round(self.progress, 3),
            "created_at": int(self.created_at),
            "expires_at": int(self.expires_at),
            "filename": self.filename,
            "model": self.model,
            "audio_seconds": round(self.audio_seconds, 3),
            "queue_position": queue_position,
            "corrected": self.corrected,
            "revision": self.revision,
            "error": self.error,
        }


def new_id() -> str:
    """128 random bits: who does not know an id cannot guess it."""
    return "job_" + b32encode(secrets.token_bytes(RANDOM_BYTES)).decode().rstrip("=").lower()
