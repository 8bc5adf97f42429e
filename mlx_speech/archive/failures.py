"""Why recordings fail, and which of them are tried again.

| kind | what it was | tried again |
|---|---|---|
| reading | the network, a server, a disk | up to three times, later each time; and by the next run |
| memory | too little of it | up to three times, by itself; and by the next run |
| died | the process that heard it was killed, or crashed | once, by itself; a second time sets it aside |
| sound | broken, empty, not there, no sound at all | no |
| options | what was asked cannot be done with it | no |
| error | a fault of this package | no |

What is not tried again is not by later runs either, unless the file changes or `retry_failed` says so.
"""

from __future__ import annotations

from mlx_speech.archive.items import Kind
from mlx_speech.errors import AudioError, HubError, MLXSpeechError, OptionError, SourceError

MAX_ATTEMPTS = 3
MAX_DEATHS = 2  # of processes, by one file
TRANSIENT: tuple[Kind, ...] = ("reading", "memory")
_NEVER_THERE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


def kind_of(error: Exception, *, fetching: bool) -> Kind:
    """What an error means for its recording. fetching : whether it came while the file was fetched"""
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, HubError):
        return "reading"
    if isinstance(error, (AudioError, *_NEVER_THERE)):
        return "sound"
    if isinstance(error, (OptionError, SourceError)):
        return "options"
    if isinstance(error, MLXSpeechError):
        return "error"
    if fetching or isinstance(error, OSError):
        return "reading"
    return "error"


def reason_of(error: Exception) -> str:
    """An error as one line, for a list of them."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MLXSpeechError):
        return message
    return f"{type(error).__name__}: {message}"
