"""What an archive costs beside the plain pipeline, on this machine: overhead a file, two processes or one, memory.

    python -m benchmarks.archive [--sets 20] [--files 500]

Recordings of 2 to 20 s are cut from the conversation that comes with the package, and heard by its small models. Every
set of files is heard by the plain pipeline and by each kind of archive, in processes of their own. The clock begins
when models are loaded, and ends with the last result on the disk; who begins changes from set to set; what counts is
the ratio within one. What is measured is kept, by the state of the code: the same command again goes on. Prints the
tables of archive.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import models, report

SHORTEST, LONGEST = 2.0, 20.0  # seconds
RATE = 16_000
SAMPLE_SECONDS = 0.5  # between two looks at memory
MEGABYTE = 1e6
# name → processes, and cores of each
ARCHIVES = {"one process, two threads": (1, 2), "two processes, a thread each": (2, 1)}
PLAIN = "plain pipeline, two threads"
EVERY = {PLAIN: 1, "one process, two threads": 1, "two processes, a thread each": 4}  # in one of so many sets


@dataclass(frozen=True)
class Measured:
    """A run.

    seconds : without start, and `files` that were done in them: a process may have done some before all were ready
    start : seconds until all models are loaded; sound : seconds of all files
    memory : of all processes over time, bytes, of the driver and of those that transcribe
    """

    seconds: float
    files: int
    start: float
    sound: float
    memory: list[tuple[int, int]]

    @property
    def each(self) -> float:
        """Seconds a file."""
        return self.seconds / self.files


Runs = dict[str, Measured]  # of one set, by name


def cut(folder: Path, files: int, seed: int) -> float:
    """Write recordings of random lengths; returns their seconds. seed : of chance"""
    from mlx_speech import load_audio
    from mlx_speech.package_data import DEMO

    samples = load_audio(DEMO / "conversation.flac")
    chance = random.Random(seed)
    total = 0.0
    for k in range(files):
        count = int(chance.uniform(SHORTEST, LONGEST) * RATE)
        start = chance.randrange(samples.size - count)
        total += count / RATE
        with wave.open(str(folder / f"{k:05d}.wav"), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes((samples[start : start + count] * 32767).astype("<i2").tobytes())
    return total


def plain(folder: Path) -> dict[str, Any]:
    """One pipeline for all files, whose results are written as an archive's are."""
    from mlx_speech import Pipeline, blas
    from mlx_speech.archive.items import Entry, Item
    from mlx_speech.archive.results import Folder, heard

    blas.keep_memory()
    begun = time.perf_counter()
    pipeline = Pipeline.demo()
    list(pipeline.transcribe([]))
    ready = time.perf_counter()
    out = Folder(folder / "plain")
    out.make()
    for source, result in pipeline.transcribe([str(path) for path in sorted((folder / "in").iterdir())]):
        if isinstance(result, Exception):
            raise result
        item = Item(Path(source).stem, Entry(source))
        out.write(item.name, heard(item, result, (), {}).texts)
    pipeline.close()
    seconds, files = time.perf_counter() - ready, len(list((folder / "in").iterdir()))
    return {"seconds": seconds, "files": files, "start": ready - begun, "memory": []}


def archived(folder: Path, processes: int, cores: int) -> dict[str, Any]:
    """An archive on a cluster of this machine alone."""
    from mlx_speech import archive

    memory: list[tuple[int, int]] = []
    over = threading.Event()
    begun = time.perf_counter()
    moments: dict[str, float] = {}

    def watch(progress: archive.Progress) -> None:
        if progress.processes == processes and "ready" not in moments:
            moments["ready"], moments["before"] = time.perf_counter(), progress.files
        if progress.files == progress.of_files:
            moments.setdefault("done", time.perf_counter())

    def look() -> None:
        while not over.wait(SAMPLE_SECONDS):
            if "ready" in moments:
                memory.append(memory_of_processes())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        outcome = archive.transcribe(
            folder / "in",
            folder / "out",
            formats=(),
            pipeline="mlx_speech.pipeline:Pipeline.demo",
            on_progress=watch,
            plan=archive.Plan(processes=processes, cores=cores),
        )
    finally:
        over.set()
        looking.join()
    if outcome.failed:
        raise SystemExit(f"failed: {outcome.failed}")
    return {
        "seconds": moments["done"] - moments["ready"],
        "files": outcome.files - int(moments["before"]),
        "start": moments["ready"] - begun,
        "memory": memory,
    }


def memory_of_processes() -> tuple[int, int]:
    """Bytes in memory of this process, and of those that transcribe."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,rss=,args="], capture_output=True, text=True, check=True)
    here = working = 0
    for line in listed.stdout.splitlines():
        number, kilobytes, command = line.split(maxsplit=2)
        if int(number) == os.getpid():
            here = int(kilobytes) * 1024
        elif command.startswith("ray::Worker"):
            working += int(kilobytes) * 1024
    return here, working


def measure(folder: Path, name: str) -> dict[str, Any]:
    """A run in a process of its own: `Measured` but for its sound."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.archive", "--run", name, str(folder)]
    # Ray's processes stand back (nice 15) behind others of the machine; here the plain pipeline would not
    equal = {"RAY_worker_niceness": "0", "OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    environment = {**os.environ, **equal}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def run(name: str, folder: Path) -> None:
    """A run; prints what was measured as JSON."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        (Path(place) / "in").symlink_to(folder / "in")
        measured = plain(Path(place)) if name == PLAIN else archived(Path(place), *ARCHIVES[name])
    print(json.dumps(measured))


# --- sets ------------------------------------------------------------------------------------------------------------


def measured_sets(sets: int, files: int) -> list[Runs]:
    """All sets, those that an earlier command has measured as they were kept."""
    kept, state = models.cache_folder() / "archive.json", f"{report.commit()}, {report.machine()}"
    known: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}
    found: list[Runs] = []
    for number in range(sets):
        key = f"{state}, {files} files, set {number}"
        if key not in known:
            known[key] = measured_set(number, files)
            report.write(kept, json.dumps(known))
        found.append({name: Measured(**values) for name, values in known[key].items()})
        print(f"set {number}: {_ratios([found[-1]])}", file=sys.stderr, flush=True)
    return found


def measured_set(number: int, files: int) -> dict[str, Any]:
    """One set of files, heard by all."""
    names = [name for name in (PLAIN, *ARCHIVES) if number % EVERY[name] == 0]
    first = number % len(names)
    runs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "in").mkdir()
        sound = cut(folder / "in", files, seed=number)
        for name in names[first:] + names[:first]:
            runs[name] = {**measure(folder, name), "sound": sound}
    return runs


def _ratios(sets: Sequence[Runs]) -> dict[str, list[float]]:
    """How many times as long as the plain pipeline a file took, by set."""
    return {name: [runs[name].each / runs[PLAIN].each for runs in sets if name in runs] for name in ARCHIVES}


# --- tables ----------------------------------------------------------------------------------------------------------


def tables(files: int, sets: Sequence[Runs]) -> str:
    """Markdown. files : of each set"""
    lines = [
        "| | files | start | ms a file | × real time | beside the plain pipeline: median, range |",
        "|---|---|---|---|---|---|",
    ]
    ratios = _ratios(sets)
    for name in (PLAIN, *ARCHIVES):
        own = [runs[name] for runs in sets if name in runs]
        each = statistics.mean(run.each for run in own)
        start = statistics.median(run.start for run in own)
        speed = sum(run.sound for run in own) / (each * files * len(own))
        cells = [name, f"{files * len(own)}", f"{start:.1f} s", f"{1000 * each:.0f}", f"{speed:.1f}"]
        cells.append(_as_overhead(ratios[name]) if name in ratios else "")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| memory, MB | first third of a set | second third | last third |", "|---|---|---|---|"]
    for name in ARCHIVES:
        for column, who in enumerate(("the driver", "transcribing")):
            own = [runs[name].memory for runs in sets if name in runs]
            thirds = [_thirds([sample[column] / MEGABYTE for sample in memory]) for memory in own]
            cells = [f"{statistics.median(third):.0f}" for third in zip(*thirds, strict=True)]
            lines.append(f"| {name}: {who} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _as_overhead(ratios: Sequence[float]) -> str:
    least, most = min(ratios), max(ratios)
    return f"{statistics.median(ratios) - 1:+.1%} ({least - 1:+.1%} to {most - 1:+.1%})"


def _thirds(values: Sequence[float]) -> list[float]:
    """The medians of three parts of what was seen one after the other."""
    third = max(len(values) // 3, 1)
    parts = [values[:third], values[third : 2 * third] or values, values[2 * third :] or values]
    return [statistics.median(part) for part in parts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=20)
    parser.add_argument("--files", type=int, default=500, help="of each set")
    parser.add_argument("--run", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run is not None:
        run(given.run[0], Path(given.run[1]))
        return
    sets = measured_sets(given.sets, given.files)
    hours = sum(runs[PLAIN].sound for runs in sets) / 3600
    print(f"{given.files * given.sets} files in {given.sets} sets, {hours:.2f} h, commit {report.commit()}\n")
    print(tables(given.files, sets))


if __name__ == "__main__":
    main()
