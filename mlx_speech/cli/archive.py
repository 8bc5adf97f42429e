"""`mlx_speech transcribe --ray`: the same recordings and options, on the machines of a Ray cluster."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mlx_speech.cli.screen import Say
from mlx_speech.cli.setup import VARIABLES, device_of, pipeline_keywords, prepare
from mlx_speech.errors import OptionError

if TYPE_CHECKING:
    from mlx_speech.archive import Failed, Progress, Report

CORPORA = ("jsonl", "parquet")  # formats of all results together
FLAGS = ("processes", "cores", "retry_failed", "again")
SECONDS_WATCHED = 0.25  # between two lines of progress on a terminal
SECONDS_LOGGED = 60.0  # and elsewhere
MAX_LISTED = 20  # failures that are listed; all are in a file
MINUTE = 60.0
HOUR = 3600.0
DAY = 24 * HOUR


def add_machines(group: Any) -> None:
    """The flags of archives."""
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="on the machines of a Ray cluster; auto: of the one that runs here, or else this machine alone. "
        "Recordings may then be folders, patterns, manifests (jsonl, csv) and addresses (s3:// …), and -f jsonl and "
        "parquet. The same command again goes on where it ended",
    )
    group.add_argument("--processes", type=int, metavar="N", help="on each machine without a GPU (default 1)")
    group.add_argument("--cores", type=int, metavar="N", help="of each of them (default: those of the machine)")
    group.add_argument("--retry-failed", action="store_true", help="try again what was given up")
    group.add_argument("--again", action="store_true", help="transcribe also what is done")


@dataclass(frozen=True)
class Machines:
    """What the flags say of machines, and of the pipelines on them."""

    plan: Mapping[str, Any]
    keywords: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def prepared(self, given: dict[str, Any], say: Say) -> Machines:
        """With what the pipelines are made of; it is taken out of `given`. Raises `OptionError`."""
        device = given.pop("device")
        prepare(
            say,
            device=None,  # this machine's does not matter
            model_dir=given.pop("model_dir"),
            model_cache_only=given.pop("model_cache_only"),
            hf_token=given.pop("hf_token"),
        )
        keywords = pipeline_keywords(given)
        if device is not None:
            keywords["device"] = device_of(device)
        environment = {name: os.environ[name] for name in VARIABLES if name in os.environ}
        return replace(self, keywords=keywords, environment=environment)

    def transcribe(
        self,
        audio: list[str],
        folder: Path,
        formats: Sequence[str],
        layout: Mapping[str, Any],
        keywords: Mapping[str, Any],
        watched: bool,
        quiet: bool,
        say: Say,
    ) -> int:
        """Transcribe recordings into a folder; 1 where one of them failed. keywords : of `Options.of`"""
        from mlx_speech.archive import Plan, transcribe

        if "-" in audio:
            raise OptionError("- and --ray conflict: give files")
        with Line(sys.stderr, watched=watched, quiet=quiet) as line:
            report = transcribe(
                audio,
                folder,
                formats=formats,
                keywords=self.keywords,
                layout=layout,
                environment=self.environment,
                on_progress=line,
                plan=Plan(**self.plan),
                **keywords,
            )
        if not quiet:
            say(summary(report, folder))
        for message in listed(report.failed, folder):
            say(message)
        return 1 if report.failed else 0


def machines_of(given: dict[str, Any]) -> Machines | None:
    """What the flags say of machines, taken out of `given`; None where this one is meant. Raises `OptionError`."""
    address = given.pop("ray", None)
    plan = {name: given.pop(name) for name in FLAGS if name in given}
    if address is None:
        for name in plan:
            raise OptionError(f"{name} needs ray: give both, or neither")
        return None
    return Machines({"address": address, **plan})


class Line:
    """The line that says how far it is: one that changes, on a terminal; elsewhere a new one now and then.

    stream : where it is shown; watched : whether that is a terminal; quiet : no line at all
    clock : seconds
    """

    def __init__(
        self, stream: TextIO, *, watched: bool, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._watched = watched
        self._quiet = quiet
        self._clock = clock
        self._shown = clock()
        self._width = 0

    def __call__(self, progress: Progress) -> None:
        """Show it, if it is time."""
        now = self._clock()
        if self._quiet or now - self._shown < (SECONDS_WATCHED if self._watched else SECONDS_LOGGED):
            return
        self._shown = now
        text = f"mlx_speech: {described(progress)}"
        if self._watched:
            # what else is said then begins at the start of the line
            self._stream.write(f"{text.ljust(self._width)}\r")
            self._width = len(text)
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._width:
            self._stream.write(f"{' ' * self._width}\r")
            self._stream.flush()


def described(progress: Progress) -> str:
    """How far it is, in words."""
    words = [f"{progress.files} of {progress.of_files} files", f"{progress.hours:.1f} of {progress.of_hours:.1f} h"]
    if not progress.processes:
        words.append("models are loading")
    elif progress.left is not None:
        words += [f"{progress.rate:.0f} h an hour", f"{lasting(progress.left)} left"]
    if progress.failed:
        words.append(f"{progress.failed} failed")
    return ", ".join(words)


def lasting(seconds: float) -> str:
    """A time in the two largest units that it has."""
    if seconds < MINUTE:
        return f"{seconds:.0f} s"
    if seconds < HOUR:
        return f"{int(seconds / MINUTE)} min"
    if seconds < DAY:
        hours, rest = divmod(seconds, HOUR)
        return f"{hours:.0f} h {int(rest / MINUTE)} min"
    days, rest = divmod(seconds, DAY)
    return f"{days:.0f} d {int(rest / HOUR)} h"


def summary(report: Report, folder: Path) -> str:
    """What a run has come to, in a line."""
    done = report.files - report.before - len(report.failed)
    words = [f"{done} of {report.files} files transcribed", f"{report.before} were before"]
    if report.failed:
        words.append(f"{len(report.failed)} failed")
    rate = report.hours / report.seconds * HOUR if report.seconds else 0.0
    words.append(f"{report.hours:.2f} h of sound in {lasting(report.seconds)} ({rate:.0f} h an hour)")
    return f"{folder}: {', '.join(words)}"


def listed(failed: Mapping[str, Failed], folder: Path) -> list[str]:
    """What failed, a line each; of many the first, and where the others are."""
    lines = [f"{name}: {failure.reason}" for name, failure in list(failed.items())[:MAX_LISTED]]
    if failed:
        more = f"and {len(failed) - MAX_LISTED} more: " if len(failed) > MAX_LISTED else ""
        lines.append(f"{more}{folder / 'failures.jsonl'} has all that failed")
    return lines
