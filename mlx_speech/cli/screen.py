"""What a user sees while a command runs: messages, in the command line's words, and bars."""

from __future__ import annotations

import argparse
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_speech.blas import hint
from mlx_speech.cli.parser import flag_of
from mlx_speech.errors import MLXSpeechError

if TYPE_CHECKING:
    from mlx_speech.transcript import Diarization, Transcript

Say = Callable[[str], None]  # tells the user a line


def in_flags(message: str, flags: Mapping[str, str]) -> str:
    """A message of the library, which names keywords, as the command line says it.

    flags : keyword → flag, and "keyword=False" → the flag that says so

    A name of several words is a keyword wherever it stands by itself. One that is a word like any other ("model") is
    so only before "=", where the message begins with it, and where it conflicts. Paths and quotes are left alone.
    """
    names = "|".join(map(re.escape, flags))
    several = "|".join(re.escape(name) for name in flags if "_" in name and "=" not in name)
    before = r"(?<![\w./\\'\"-])"
    after = r"(?![\w/\\'\"=-]|\.\w)"
    file = rf"(?!\A(?:{several}):)"  # a message that begins with a name and a colon is about a file

    def flag(match: re.Match[str]) -> str:
        return flags.get(match["name"], match["name"])

    for pattern in (
        rf"{before}(?P<name>{names})=True\b",
        rf"{before}(?P<name>\w+=False)\b",
        rf"{before}(?P<name>{names})(?==)",
        rf"{before}{file}(?P<name>{several}){after}",
        rf"^(?P<name>{names})(?= (is|and|needs|conflicts) )",
        rf"(?<= needs )(?P<name>{names})(?=:)",
        rf"(?<= and )(?P<name>{names})(?= conflict)",
    ):
        message = re.sub(pattern, flag, message)
    return message


def flags_of(parser: argparse.ArgumentParser, renamed: Mapping[str, str]) -> dict[str, str]:
    """The flags of a command's parser, by the keywords that messages name.

    renamed : keyword → dest, for keywords whose flag has another name
    """
    flags = {name: flag_of(dest) for name, dest in renamed.items()}
    for action in parser._actions:
        for text in action.option_strings:
            if text.startswith("--no-"):
                flags[f"{action.dest}=False"] = text
            elif text.startswith("--"):
                flags.setdefault(action.dest, text)
    return flags


def say_hint(say: Say) -> None:
    """Tell the user what would make this computer faster, if anything would."""
    message = hint()
    if message:
        say(message)


def failure(source: str, error: Exception, verbose: bool) -> str:
    """What is said of a recording that failed. verbose : print the traceback, too"""
    if verbose:
        traceback.print_exception(error)
    message = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, MLXSpeechError):
        advice = "(-v shows where; this should not happen: please report it)"
        message = f"{source}: {type(error).__name__}: {message} {advice}"
    if source in message or source == "-":
        return message
    return f"{source}: {message}"


def say_matches(diarization: Diarization | None, say: Say) -> None:
    """Tell the user who was recognised, and who only might have been, with the scores."""
    if diarization is None:
        return
    for label, match in diarization.matches.items():
        if match.doubtful:
            say(f"{label} may be {match.name}: score {match.score:.2f}, too little to be sure")
        else:
            say(f"{label} is known: score {match.score:.2f}")


def timing(result: Transcript) -> str:
    """How long every stage took, in a line."""
    total = sum(result.seconds.values())
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in result.seconds.items())
    speed = f" ({result.duration / total:.1f} × real time)" if total else ""
    return f"mlx_speech: {stages}; {result.duration:.1f} s of audio in {total:.1f} s{speed}"


class Bars:
    """A bar for every stage of every recording that is under way: seconds of audio, and how many of them a second.

    shown : whether there are bars; None: where somebody watches, unless it is to be `quiet`
    """

    def __init__(self, shown: bool | None, quiet: bool = False) -> None:
        self.shown = sys.stderr.isatty() and not quiet if shown is None else shown
        self._bars: dict[tuple[str, str], Any] = {}

    def __call__(self, stage: str, done: float, total: float, source: Any) -> None:
        """Show how far a stage of a recording is: as `on_progress` of `Pipeline`."""
        if not self.shown:
            return
        key = (str(source), stage)
        if key not in self._bars:
            from tqdm import tqdm

            form = "{desc} {percentage:3.0f}% |{bar}| {n:.0f} of {total:.0f} s, {rate_noinv_fmt}"
            name = f"{Path(str(source)).name}: {stage}"
            self._bars[key] = tqdm(total=total, desc=name, unit=" s", bar_format=form, leave=False)
        self._bars[key].update(max(0.0, done - self._bars[key].n))
        if done >= total:
            self._bars.pop(key).close()

    def close(self, source: Any = None) -> None:
        """Take away the bars of a recording, or all of them."""
        for key in list(self._bars):
            if source is None or key[0] == str(source):
                self._bars.pop(key).close()
