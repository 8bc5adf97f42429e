"""What a job is: as it is handed in, as it is kept, and as clients see it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mlx_speech.json_objects import to_plain
from mlx_speech.server.fields import KnownSpeaker

Status = Literal["queued", "running", "succeeded", "failed"]
Version = Literal["corrected", "first"]

ID = re.compile(r"job_[a-z2-7]{26}")
ID_BYTES = 16  # random; 26 characters of base32


@dataclass(frozen=True)
class Order:
    """A job as it is handed in, but for its sound.

    filename : the client's name of the recording, which is only shown
    model : the pipeline's name
    options : `TranscribeOptions`
    response_format : of the result, where its reader asks for no other
    owner : the hash of a key, "" where there are none
    audio_seconds : of the recording, where its header tells
    idempotency_key : of the client's: a second order with the same one is the first
    sha256 : of the recording
    known_speakers : whose voices are looked for in it
    """

    filename: str
    model: str
    options: Mapping[str, Any]
    response_format: str
    owner: str
    audio_seconds: float | None = None
    idempotency_key: str | None = None
    sha256: str = ""
    known_speakers: tuple[KnownSpeaker, ...] = ()

    @property
    def options_json(self) -> str:
        """The options as JSON."""
        return json.dumps(to_plain(self.options))

    @property
    def fingerprint(self) -> bytes:
        """Of all that makes the result: 32 bytes."""
        content: list[str] = [self.sha256, self.model, self.options_json, self.response_format]
        for speaker in self.known_speakers:
            content += [speaker.name, hashlib.sha256(speaker.sound).hexdigest()]
        return hashlib.sha256(json.dumps(content).encode()).digest()


@dataclass(frozen=True)
class Job:
    """A job as it is kept.

    stage : "audio", "vad", "transcribe", "align" or "diarize"; None before and behind them
    progress : of the whole, 0..1, estimated
    created_at, expires_at, started_at, ended_at : seconds since 1970; it is kept until `expires_at`, or longer where it
        has not ended by then
    attempts : how often it was begun without being handed back
    error : as in an answer: message, type, param, code
    revision : of the result: 0 without one; every correction counts
    corrected : whether there is a corrected version beside the first
    position : in the line, of a job that waits: how many come before it, those under way among them
    known_names : of the speakers who came with it
    """

    id: str
    owner: str
    filename: str
    model: str
    options: dict[str, Any]
    response_format: str
    status: Status
    stage: str | None
    progress: float
    audio_seconds: float | None
    created_at: float
    expires_at: float
    started_at: float | None
    ended_at: float | None
    attempts: int
    error: dict[str, Any] | None
    revision: int
    corrected: bool
    position: int | None
    known_names: tuple[str, ...]

    @property
    def has_ended(self) -> bool:
        """Whether nothing happens to it any more."""
        return self.status in ("succeeded", "failed")

    @property
    def etag(self) -> str:
        """Of the result, for HTTP."""
        return f'"{self.revision}"'

    def body(self) -> dict[str, Any]:
        """The job as JSON has it. Times are whole seconds, as OpenAI's."""
        return {
            "id": self.id,
            "object": "audio.job",
            "status": self.status,
            "stage": self.stage,
            "progress": round(self.progress, 4),
            "filename": self.filename,
            "model": self.model,
            "response_format": self.response_format,
            "audio_seconds": _rounded(self.audio_seconds),
            "queue_position": self.position,
            "created_at": int(self.created_at),
            "started_at": _whole(self.started_at),
            "ended_at": _whole(self.ended_at),
            "expires_at": int(self.expires_at),
            "corrected": self.corrected,
            "error": self.error,
        }


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job.

    sequence : counts the events of the job, from 1
    name : "progress", "segment", "done", "failed" or "cancelled"
    data : as JSON
    """

    sequence: int
    name: str
    data: str


def new_id() -> str:
    """An id that nobody can guess."""
    digits = base64.b32encode(secrets.token_bytes(ID_BYTES)).decode().rstrip("=").lower()
    return f"job_{digits}"


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
