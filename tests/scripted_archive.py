"""A pipeline for tests of archives: its recordings are small texts that say what happens when they are heard.

A file is JSON: `text` is what is heard, in `seconds` of sound; hearing it takes `sleep` seconds. `act` "kill" ends the
process, "broken" fails as broken sound does, "memory" and "network" fail, each as often as `times` says or always;
"warn" warns; "gone", when `after` files have begun before, ends the machine whose Ray process is `machine`, or waits
for its end where it is heard on another. What happens is noted in `marks`, a line each: "began", "ended" or "gone", the
file's name, the id of the process, and when. "stick", for the first time, ends its process, and no process is ready
from then on: pipelines that `may_stick` note that they are "made", and the file waits for three of them.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_speech.errors import AudioError, OptionError, OutOfMemory
from mlx_speech.transcript import Segment, Transcript, Word

PATIENCE = 60.0  # seconds that a file waits for the end of a machine, or for pipelines


class Scripted:
    """marks : the file of notes

    one_by_one : two tasks of a process share what computes, as they do in a pipeline
    together : nothing is heard before so many processes have something to hear
    """

    _computing = threading.Lock()

    def __init__(
        self,
        marks: str,
        model: str = "scripted",
        may_stick: bool = False,
        one_by_one: bool = False,
        together: int = 1,
    ) -> None:
        self._marks = Path(marks)
        self._model = model
        self._together = together
        self._alone = self._computing if one_by_one else contextlib.nullcontext()
        if may_stick:
            self._note("made", "-")
            while any(what == "stuck" for what, *_ in notes(self._marks)):
                time.sleep(PATIENCE)

    def transcribe(self, recordings: Iterable[Any], *, language: str | None = None, **options: Any) -> Iterator[Any]:
        if options.get("prefix") == "refused":
            raise OptionError("prefix is refused: leave it out")
        for recording in recordings:
            if self._together > 1:
                self._note("came", "-")
                self._wait_until(lambda: len(processes_that("came", self._marks)) >= self._together)
            script = json.loads(Path(recording).read_text(encoding="utf-8"))
            name = script.get("name") or Path(recording).name
            self._note("began", name)
            with self._alone:
                time.sleep(script.get("sleep", 0.0))
            yield recording, self._outcome(recording, name, script, language)
            self._note("ended", name)

    def _outcome(self, recording: str, name: str, script: dict[str, Any], language: str | None) -> Any:
        hearings = begun(self._marks)
        happens = hearings.count(name) <= script.get("times", math.inf)
        match script.get("act"):
            case "kill" if happens:
                os.kill(os.getpid(), signal.SIGKILL)
            case "stick" if hearings.count(name) == 1:
                self._wait_until(lambda: sum(what == "made" for what, *_ in notes(self._marks)) == 3)
                self._note("stuck", name)
                os.kill(os.getpid(), signal.SIGKILL)
            case "gone" if len(hearings) > script["after"]:
                self._end_machine(script["machine"], name)
            case "broken":
                return AudioError(f"{recording}: is no recording: is the file whole?")
            case "warn":
                warnings.warn(f"{recording}: breaks off at 1 s", stacklevel=2)
            case "memory" if happens:
                return OutOfMemory("out of memory: lower batch_size")
            case "network" if happens:
                return ConnectionResetError("the server has hung up")
        return self.transcript(script, language)

    def _end_machine(self, raylet: int, name: str) -> None:
        """Kill all processes of a machine, this one last, or wait until that is done on that machine."""
        this = os.getpid()
        if os.getppid() == raylet:
            self._note("gone", name)
            for process in [raylet, *sorted(children(raylet), key=lambda child: child == this)]:
                with contextlib.suppress(ProcessLookupError):  # it has followed the first by itself
                    os.kill(process, signal.SIGKILL)
        self._wait_until(lambda: any(what == "gone" for what, *_ in notes(self._marks)))

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and not condition():
            time.sleep(0.02)

    def transcript(self, script: dict[str, Any], language: str | None) -> Transcript:
        """What is heard in a file."""
        seconds = script.get("seconds", 1.0)
        words = tuple(Word(0.0, seconds, text, 0.5) for text in script["text"].split())
        segment = Segment(0.0, seconds, script["text"], words, language=language or "en")
        return Transcript((segment,), language or "en", duration=seconds, models={"whisper": self._model})

    def _note(self, what: str, name: str) -> None:
        line = f"{what} {name} {os.getpid()} {time.monotonic()}\n".encode()
        file = os.open(self._marks, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(file, line)
        finally:
            os.close(file)


class Placed(Scripted):
    """Its results say where they were heard."""

    def transcript(self, script: dict[str, Any], language: str | None) -> Transcript:
        accelerator = os.environ.get("CUDA_VISIBLE_DEVICES") or "none"
        place = f"GPU {accelerator}, threads {os.environ['OMP_NUM_THREADS']}, process {os.getpid()}"
        return replace(super().transcript(script, language), models={"whisper": place})


def children(process: int) -> list[int]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [line.split() for line in listed.splitlines()]
    return [int(child) for child, parent in pairs if int(parent) == process]


def notes(marks: Path) -> list[tuple[str, str, int]]:
    """What happened: "began", "ended" or "gone", the file's name, and the id of the process."""
    if not marks.exists():
        return []
    lines = marks.read_text(encoding="utf-8").splitlines()
    return [(what, name, int(process)) for what, name, process, _ in (line.split() for line in lines)]


def processes_that(did: str, marks: Path) -> set[int]:
    return {process for what, _, process in notes(marks) if what == did}


def seconds_between(marks: Path) -> float:
    """From the first beginning to the last end."""
    lines = [line.split() for line in marks.read_text(encoding="utf-8").splitlines()]
    moments = [float(moment) for what, _, _, moment in lines if what in ("began", "ended")]
    return max(moments) - min(moments)


def begun(marks: Path) -> list[str]:
    """The names of files that were begun, once for each time."""
    return [name for what, name, _ in notes(marks) if what == "began"]


def write_recordings(folder: Path, count: int, **script: Any) -> list[Path]:
    """Files to be heard, of different lengths. script : what all of them say"""
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for k in range(count):
        file = folder / f"talk{k:02d}.wav"
        file.write_text(json.dumps({"text": f"this is talk {k}", "seconds": 1.0 + k % 7, **script}))
        files.append(file)
    return files
