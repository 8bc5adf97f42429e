"""Messages of the server, as OpenAI's Realtime API has them. None is invented: its client knows all of these types.

Source: `openai.types.realtime`; the order of the messages of an item is server.md's and OpenAI's guide's.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import TypeAlias

from mlx_speech.server.errors import ApiError
from mlx_speech.server.realtime.configuration import Configuration
from mlx_speech.server.realtime.recognition import (
    Cleared,
    Committed,
    Completed,
    Failed,
    Happening,
    Refused,
    SpeechStarted,
    SpeechStopped,
    Text,
)

Event: TypeAlias = dict[str, object]

TRANSCRIPTION = "conversation.item.input_audio_transcription"
CONTENT = 0  # the index of an item's only content


def new_id(kind: str) -> str:
    """An id that nobody can guess. kind : what it begins with: "item", "event", "sess" …"""
    return f"{kind}_{secrets.token_hex(12)}"


def event(kind: str, **fields: object) -> Event:
    """A message of a type, with an id of its own."""
    return {"type": kind, "event_id": new_id("event"), **fields}


def to_text(message: Event) -> str:
    """JSON, in ASCII: a client's own words may hold halves of characters."""
    return json.dumps(message, allow_nan=False, separators=(",", ":"))


def session_of(configuration: Configuration, expires_at: float, identity: str | None = None) -> Event:
    """All of a session. expires_at : by the clock of `time.time`; identity : its id, by default a new one"""
    return {
        "id": identity or new_id("sess"),
        "object": "realtime.transcription_session",
        "expires_at": int(expires_at),
        **configuration.as_json(),
    }


def session_created(session: Mapping[str, object]) -> Event:
    """The first message."""
    return event("session.created", session=session)


def session_updated(session: Mapping[str, object]) -> Event:
    """All of the session, as it is now."""
    return event("session.updated", session=session)


def error(problem: ApiError, event_id: str | None = None) -> Event:
    """event_id : of the client's message that is to blame"""
    return event("error", error={**_details(problem), "event_id": event_id})


def events_of(happening: Happening) -> list[Event]:
    """The messages that tell what has happened, in order."""
    if isinstance(happening, SpeechStarted):
        milliseconds = round(1000 * happening.at)
        return [event("input_audio_buffer.speech_started", item_id=happening.item, audio_start_ms=milliseconds)]
    if isinstance(happening, SpeechStopped):
        milliseconds = round(1000 * happening.at)
        return [event("input_audio_buffer.speech_stopped", item_id=happening.item, audio_end_ms=milliseconds)]
    if isinstance(happening, Committed):
        place: Event = {"previous_item_id": happening.previous}
        return [
            event("input_audio_buffer.committed", item_id=happening.item, **place),
            event("conversation.item.added", item=_item(happening.item, "in_progress"), **place),
        ]
    if isinstance(happening, Text):
        return [_of_item("delta", happening.item, delta=happening.text)]
    if isinstance(happening, Completed):
        usage = {"type": "duration", "seconds": round(happening.seconds, 3)}
        item = _item(happening.item, "completed", happening.text)
        return [
            _of_item("completed", happening.item, transcript=happening.text, usage=usage),
            event("conversation.item.done", item=item, previous_item_id=happening.previous),
        ]
    if isinstance(happening, Failed):
        item = _item(happening.item, "incomplete")
        return [
            _of_item("failed", happening.item, error=_details(happening.error)),
            event("conversation.item.done", item=item, previous_item_id=happening.previous),
        ]
    if isinstance(happening, Cleared):
        return [event("input_audio_buffer.cleared")]
    if isinstance(happening, Refused):
        return [error(happening.error, happening.event_id)]
    return [error(happening.error)]


def _of_item(kind: str, item: str, **fields: object) -> Event:
    """About the text of an item."""
    return event(f"{TRANSCRIPTION}.{kind}", item_id=item, content_index=CONTENT, **fields)


def _item(item: str, status: str, transcript: str | None = None) -> Event:
    """A turn as an item of a conversation."""
    content = {"type": "input_audio", "transcript": transcript}
    return {
        "id": item,
        "object": "realtime.item",
        "type": "message",
        "status": status,
        "role": "user",
        "content": [content],
    }


def _details(problem: ApiError) -> Event:
    return {"type": problem.type, "code": problem.code, "message": problem.message, "param": problem.param}
