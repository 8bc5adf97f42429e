"""What an archive costs beside the plain pipeline, on this machine: overhead a file, two processes or one, memory.

    python -m benchmarks.archive [--files 200] [--rounds 2]

Recordings of 2 to 20 s are cut from the conversation that comes with the package, and heard by its small models. Every
run is in processes of its own; the clock begins when models are loaded, and ends with the last result on the disk. In
turns, so that what else the machine does falls on all. Prints the tables of archive.md.
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

SHORTEST, LONGEST = 2.0, 20.0  # seconds
SEED = 17
RATE = 16_000
SAMPLE_SECONDS = 0.5  # between two looks at memory
MEGABYTE = 1e6
# name → processes, and cores of each
ARCHIVES = {"one process, two threads": (1, 2), "two processes, a thread each": (2, 1)}
PLAIN = "plain pipeline, two threads"


@dataclass(frozen=True)
class Measured:
    """A run. seconds : without start; start : seconds until models are loaded; memory : of all processes over time,
    bytes, of the driver and of those that transcribe"""

    seconds: float
    start: float
    memory: list[tuple[int, int]]


def cut(folder: Path, files: int) -> float:
    """Write recordings of random lengths; returns their seconds."""
    from mlx_speech import load_audio
    from mlx_speech.package_data import DEMO

    samples = load_audio(DEMO / "conversation.flac")
    chance = random.Random(SEED)
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
    return {"seconds": time.perf_counter() - ready, "start": ready - begun, "memory": []}


def archived(folder: Path, processes: int, cores: int) -> dict[str, Any]:
    """An archive on a cluster of this machine alone."""
    from mlx_speech import archive

    memory: list[tuple[int, int]] = []
    over = threading.Event()
    begun = time.perf_counter()
    moments: dict[str, float] = {}

    def watch(progress: archive.Progress) -> None:
        if progress.processes == processes:
            moments.setdefault("ready", time.perf_counter())
        if progress.files == progress.of_files:
            moments.setdefault("done", time.perf_counter())

    def look() -> None:
        while not over.wait(SAMPLE_SECONDS):
            if "ready" in moments:
                memory.append(_memory())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        report = archive.transcribe(
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
    if report.failed:
        raise SystemExit(f"failed: {report.failed}")
    return {"seconds": moments["done"] - moments["ready"], "start": moments["ready"] - begun, "memory": memory}


def _memory() -> tuple[int, int]:
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


def measure(folder: Path, name: str) -> Measured:
    """A run in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.archive", "--run", name, str(folder)]
    # Ray's processes stand back (nice 15) behind others of the machine; here the plain pipeline would not
    equal = {"RAY_worker_niceness": "0", "OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    environment = {**os.environ, **equal}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def run(name: str, folder: Path) -> None:
    """A run; prints what was measured as JSON."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        (Path(place) / "in").symlink_to(folder / "in")
        measured = plain(Path(place)) if name == PLAIN else archived(Path(place), *ARCHIVES[name])
    print(json.dumps(measured))


def table(files: int, seconds: float, runs: dict[str, list[Measured]]) -> str:
    """Markdown."""
    lines = [
        "| | seconds | start | ms a file | beside the plain pipeline | × real time |",
        "|---|---|---|---|---|---|",
    ]
    base = statistics.median(run.seconds for run in runs[PLAIN])
    for name, measured in runs.items():
        median = statistics.median(run.seconds for run in measured)
        start = statistics.median(run.start for run in measured)
        cells = [name, f"{median:.1f}", f"{start:.1f}", f"{1000 * median / files:.0f}"]
        cells += [f"{100 * (median / base - 1):+.1f} %", f"{seconds / median:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| memory, MB | first third | second third | last third |", "|---|---|---|---|"]
    for name in ARCHIVES:
        memory = max(runs[name], key=lambda run: len(run.memory)).memory
        for column, who in enumerate(("the driver", "transcribing")):
            values = [sample[column] / MEGABYTE for sample in memory]
            cells = [f"{statistics.median(part):.0f}" for part in _thirds(values)]
            lines.append(f"| {name}: {who} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _thirds(values: Sequence[float]) -> list[Sequence[float]]:
    third = max(len(values) // 3, 1)
    return [values[:third], values[third : 2 * third] or values, values[2 * third :] or values]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--run", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run is not None:
        run(given.run[0], Path(given.run[1]))
        return
    runs: dict[str, list[Measured]] = {PLAIN: [], **{name: [] for name in ARCHIVES}}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "in").mkdir()
        seconds = cut(folder / "in", given.files)
        for _ in range(given.rounds):
            for name, measured in runs.items():
                measured.append(measure(folder, name))
    print(f"{given.files} files, {seconds / 3600:.2f} h\n")
    print(table(given.files, seconds, runs))


if __name__ == "__main__":
    main()
