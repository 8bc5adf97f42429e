"""What an archive is made of: recordings, or pieces of them, and what became of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# why a recording failed: what fetched it, its sound, too little memory, its process died, what was asked, anything else
Kind = Literal["reading", "sound", "memory", "died", "options", "error"]


@dataclass(frozen=True)
class Entry:
    """A line of a manifest, or a file of a folder.

    source : a path, or an address that fsspec opens
    offset, duration : in seconds; without an offset all of the file is meant, and its duration is only known earlier
    language : its code; None where it is to be detected
    reference : its text, as somebody wrote it
    fields : what else the manifest says, in the types of JSON
    """

    source: str
    offset: float | None = None
    duration: float | None = None
    language: str | None = None
    reference: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Item:
    """An entry that is to be transcribed.

    name : of its results, without ending; unique, and folders may be in it
    size : of the file, in bytes; None where nobody has looked
    stamp : another one when the file has changed; empty where nobody knows
    """

    name: str
    entry: Entry
    size: int | None = None
    stamp: str = ""


@dataclass(frozen=True)
class Heard:
    """A recording's result.

    texts : kind of a file, "" for the transcript that all others are made of → its content
    seconds : of sound
    warnings : what its process has warned of since its last result, of this recording or of one that it hears beside
    """

    name: str
    texts: Mapping[str, str]
    seconds: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failed:
    """Why a recording has no result. reason : one line, for the user"""

    name: str
    kind: Kind
    reason: str


Outcome = Heard | Failed
