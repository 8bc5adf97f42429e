"""Flags from options: name, type, choices, range, default and help of a flag are those of the field that it sets.

What only the command line has (folders, formats, WhisperX's spellings) is said where a command is.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from mlx_speech.fields import Option, options_of
from mlx_speech.options import flat_options
from mlx_speech.stages.vad_options import LONGEST
from mlx_speech.writers.cues import Layout

SWITCH = argparse.BooleanOptionalAction
LONGEST_RECORDING = "longest recording read (default 24 h)"
DIARIZE_MODEL = "default: auto, which is pyannote's community-1 where a token or a copy lets it be had, else our own"
# flags of the command line's own that may be followed by True or False, as WhisperX's are
SWITCHES = ("--model-cache-only", "--fp16", "--print-progress", "--verbose", "--low-memory", "--no-align")
# `None` is no value of these flags, though the keyword takes it: leaving the flag out says so already
NEVER_NONE = ("chunk_size",)


class Parser(argparse.ArgumentParser):
    """A parser whose errors take one line, as all errors here."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"mlx_speech: {message}: see {self.prog} --help\n")


def flag_of(name: str) -> str:
    """The flag of a keyword: `batch_size` → `--batch-size`."""
    return f"--{name.replace('_', '-')}"


def add_command(
    group: Any,
    run: Callable[..., int],
    name: str,
    help: str,
    description: str,
    *,
    only_given: bool = False,
    renamed: Mapping[str, str] | None = None,
) -> argparse.ArgumentParser:
    """A subcommand that calls `run`, by default with every flag; with `only_given` with those that the user gave.

    renamed : keyword → flag's name, for keywords whose flag has another name
    """
    default = argparse.SUPPRESS if only_given else None
    parser = group.add_parser(name, help=help, description=description, argument_default=default)
    parser.set_defaults(run=run, parser=parser, renamed=renamed or {})
    return parser


def add_options(group: Any, options: Iterable[Option]) -> None:
    """A flag for each option; those that are not given leave no trace in what is parsed."""
    for option in options:
        add_option(group, option)


def add_option(group: Any, option: Option, *, flag: str | None = None, help: str | None = None) -> None:
    """A flag for an option. flag, help : where they are not those of the option itself"""
    arguments: dict[str, Any] = {"default": argparse.SUPPRESS, "help": help or help_of(option)}
    if bool in option.kinds:
        arguments["action"] = SWITCH
    elif int in option.kinds or float in option.kinds:
        arguments.update(_number_arguments(option))
    elif option.choices:
        arguments["choices"] = option.choices
    else:
        arguments["metavar"] = "TEXT"
    group.add_argument(flag or flag_of(option.name), **arguments)


def _number_arguments(option: Option) -> dict[str, Any]:
    """Type and placeholder of a flag that takes a number."""
    if option.name == "audio_track":
        return {"type": _track, "metavar": "N|all"}
    kind = int if int in option.kinds else float
    with_none = option.optional and option.name not in NEVER_NONE
    return {"type": number_or_none(kind) if with_none else kind, "metavar": kind.__name__.upper()}


def number_or_none(kind: type) -> Callable[[str], Any]:
    """Reads a number, or "None", as WhisperX's command line has it."""

    def read(text: str) -> Any:
        return None if text == "None" else kind(text)

    read.__name__ = kind.__name__  # argparse says it in messages
    return read


def _track(text: str) -> int | str:
    """Reads the number of a sound track, or "all"."""
    if text == "all":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'{text!r} is no sound track: give a number from 1, or "all"') from error


def help_of(option: Option) -> str:
    """What an option does, its range and its default; names in backquotes become flags."""
    text = re.sub(r"`(\w+)`", lambda name: flag_of(name[1]), option.about.help)
    notes = [note for note in (range_of(option), default_of(option)) if note]
    if notes:
        text = f"{text} ({'; '.join(notes)})"
    return text.replace("%", "%%")


def range_of(option: Option) -> str:
    """The range of an option in words; nothing where every number will do."""
    low, high = option.about.low, option.about.high
    if low is None or option.choices:
        return ""
    if math.isinf(high) or high >= LONGEST:
        return f"from {low:g}"
    return f"{low:g} to {high:g}"


def default_of(option: Option) -> str:
    """The default of an option in words; nothing where its help goes without saying it."""
    if option.default is None or option.default == ():
        return f"default: {option.about.unset}" if option.about.unset else ""
    if isinstance(option.default, bool):
        return ""
    if isinstance(option.default, (int, float)):
        return f"default {option.default:g}"
    return f"default: {option.default}"


def add_audio(parser: Any) -> None:
    """The recordings of a command."""
    parser.add_argument("audio", nargs="+", help="any audio or video file; - is standard input")


def add_models(group: Any, longest: str = LONGEST_RECORDING) -> None:
    """Flags of commands that load models of diarization, too. longest : help of --max-duration"""
    group.add_argument("--diarize-model", metavar="NAME", help=DIARIZE_MODEL)
    add_machine(group, longest)


def add_speakers(group: Any) -> None:
    """The flag for the database of known voices."""
    group.add_argument(
        "--speakers",
        nargs="?",
        const=True,
        metavar="FILE",
        help="known voices get their names (mlx_speech speakers add); without FILE those of the user's own database",
    )


def add_machine(group: Any, longest: str = LONGEST_RECORDING) -> None:
    """Flags of commands that load models: what they run on, and where models come from. longest : as of `add_models`"""
    add_places(group)
    group.add_argument("--max-duration", type=float, metavar="SECONDS", help=longest)
    group.add_argument("--print-progress", action=SWITCH, default=None, help="bars also where nobody watches")
    add_verbose(group)


def add_verbose(group: Any) -> None:
    """The flag of commands that have stages."""
    group.add_argument("-v", "--verbose", action=SWITCH, default=False, help="seconds per stage, tracebacks of errors")


def add_places(group: Any) -> None:
    """Flags for what models run on, and where they come from."""
    group.add_argument("--device", default=None, help="cpu or gpu (cuda, mps) (default: MLX's)")
    group.add_argument("--model-dir", default=None, metavar="FOLDER", help="where models are kept")
    group.add_argument("--model-cache-only", action=SWITCH, default=False, help="download nothing")
    group.add_argument("--hf-token", default=None, help="of the model hub (or HF_TOKEN, or hf auth login)")


def switches() -> set[str]:
    """The flags that may be followed by True or False."""
    options = [*flat_options().values(), *options_of(Layout).values()]
    return {*SWITCHES, *(flag_of(option.name) for option in options if bool in option.kinds)}


def normal(arguments: list[str]) -> list[str]:
    """Command lines in WhisperX's spelling: `--batch_size 8`, `--highlight_words True`, `--fp16 False`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)  # what follows are names of files
    known = switches()
    words: list[str] = []
    for argument in arguments[:end]:
        flag, equals, value = argument.partition("=")
        if argument.startswith("--"):
            flag = flag.replace("_", "-")
        if flag in known and equals:
            words += [flag, value]
        else:
            words.append(f"{flag}{equals}{value}")
    result: list[str] = []
    for word in words:
        if word in ("True", "False") and result and result[-1] in known:
            if word == "False":
                result[-1] = f"--no-{result[-1][2:]}"
        else:
            result.append(word)
    return [word for word in result if word != "--no-no-align"] + arguments[end:]
