"""Every error a user can cause. Each message is one line: what is wrong with which file, and what to do.

MLXSpeechError
├── SourceError            what was given to convert, load or open cannot be used
│   ├── SourceNotFound     no such file, folder or repository
│   ├── HubError           the hub refused, or could not be reached
│   ├── CorruptFile        truncated, malformed or unsafe file
│   ├── UnknownFamily      weights of a model that is not supported
│   ├── WeightsMismatch    tensors missing, left over or of the wrong shape
│   └── ConfigError        a configuration with missing or absurd values
├── OptionError            an option that is wrong, or two that conflict
├── OutputError            the result cannot be written
├── AudioError             a recording cannot be decoded
│   └── DeviceLost         the microphone is gone, and did not come back
├── ClusterError           the machines of an archive cannot be reached, or are gone
├── OutOfMemory            the models do not fit beside the recording
├── PipelineClosed         the pipeline was closed before
├── ForkedProcess          MLX was used before this process was forked
├── MissingDependency      something optional has to be installed first
├── InstallationError      files of another distribution are among the package's own
└── ParityError            a converted model disagrees with its original
"""

from __future__ import annotations

import reprlib
from numbers import Real

MAX_SHOWN_NAME = 120  # characters of a name in a list of them
MAX_SHOWN_VALUE = 80  # characters of a text or another value
MAX_SHOWN_BITS = 128  # of a whole number


class MLXSpeechError(Exception):
    """Base of all errors raised on purpose; `mlx_speech` prints it as one line and exits with `exit_code`."""

    exit_code = 2


class SourceError(MLXSpeechError):
    """The given model cannot be used."""


class SourceNotFound(SourceError):
    """There is no such file, folder or repository."""


class HubError(SourceError):
    """The hub refused access or could not be reached."""


class CorruptFile(SourceError):
    """A file is truncated, malformed, or asks for something unsafe."""


class UnknownFamily(SourceError):
    """The weights belong to no supported family, or to more than one."""


class WeightsMismatch(SourceError):
    """Tensors are missing, left over, or have another shape than the configuration says."""


class ConfigError(SourceError):
    """A configuration value is missing, of the wrong type, or absurd."""


class OptionError(MLXSpeechError, ValueError):
    """An option has a wrong value, or conflicts with another one."""


class OutputError(MLXSpeechError, OSError):
    """The result cannot be written: it exists already, the disk is full, or the place is read-only."""


class AudioError(MLXSpeechError):
    """A recording cannot be opened or decoded."""


class DeviceLost(AudioError):
    """A microphone that was heard is gone; what was heard until then is whole."""

    exit_code = 3


class ClusterError(MLXSpeechError, RuntimeError):
    """The machines that are to transcribe an archive cannot be reached, or none of them is left."""


class OutOfMemory(MLXSpeechError, MemoryError):
    """MLX could not get the memory it asked for; the message names the options that help."""


class PipelineClosed(MLXSpeechError, RuntimeError):
    """The pipeline was closed, and is asked for more."""


class ForkedProcess(MLXSpeechError, RuntimeError):
    """Models were loaded, and then this process was forked off: MLX's threads did not come along."""


class MissingDependency(MLXSpeechError, ImportError):
    """Something optional is not installed; the message names the command that installs it."""


class InstallationError(MLXSpeechError, ImportError):
    """Another distribution has written into the package's folder; the message says how to install it anew."""


class ParityError(MLXSpeechError):
    """A converted model does not give what its original gives."""

    exit_code = 1


def in_range(low: float, high: float, **options: float | None) -> None:
    """Raises `OptionError`, naming the option, where one is neither a number in low..high nor None."""
    for option, value in options.items():
        if value is None:
            continue
        if not isinstance(value, Real):
            raise OptionError(f"{option} is {brief(value)}: give a number")
        if not low <= value <= high:  # NaN too
            raise OptionError(f"{option} is {value}: it has to be from {low:g} to {high:g}")


def install(extra: str) -> str:
    """What installs an extra of this package, for the end of a message."""
    return f"pip install 'mlx-speech-toolkit[{extra}]', or in a clone '.[{extra}]'"


def shorten(names: list[str], limit: int = 8) -> str:
    """`names` as one line for a message: all of them, or the first `limit` and how many more."""
    shown: list[str] = []
    for name in names[:limit]:
        if len(name) > MAX_SHOWN_NAME:
            shown.append(f"{name[:MAX_SHOWN_NAME]}…")
        else:
            shown.append(name)
    line = ", ".join(shown)
    if len(names) > limit:
        return f"{line} and {len(names) - limit} more"
    return line


class _Brief(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = MAX_SHOWN_VALUE
        self.maxother = MAX_SHOWN_VALUE

    def repr_int(self, x: int, level: int) -> str:  # Python refuses to spell out very long ones
        if x.bit_length() > MAX_SHOWN_BITS:
            return f"a number of {x.bit_length()} bits"
        return repr(x)


def brief(value: object) -> str:
    """`value` as a message may quote it: cut short, however long, deep or self-referring it is."""
    return _Brief().repr(value)


class Notice(UserWarning):
    """Nothing is wrong: what was chosen where the caller left it open, and how to choose otherwise."""
