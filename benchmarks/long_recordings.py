"""Memory and time of very long recordings: `python -m benchmarks.long_recordings [HOURS …] [--only chain|speakers]`.

The demo's conversation, again and again, is written to a WAV file piece by piece. Every length goes through the whole
chain with the demo's models, and through diarization alone with the models that come with the package, each in a
process of its own, as the command line runs it. Lines to stderr say how far it is; a row is printed as soon as it is
there, so that a run that was ended keeps what it has. Linux only: memory is what /proc says of the process.

peak : all memory of the process, files that are mapped into it as well (VmHWM)
anonymous : what the process has allocated, files apart (the largest RssAnon of five looks a second)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
import wave
from pathlib import Path

import mlx_speech
from mlx_speech.package_data import DEMO
from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.stages.diarize import SHARE_BEHIND_EMBEDDINGS, SHARE_BEHIND_SEGMENTATION

KINDS = ("chain", "speakers")
SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_BETWEEN_LINES = 60.0
MB = 1e6
BOUND = 2000.0  # MB


def status() -> dict[str, float]:
    """MB of this process, by the names that /proc gives them."""
    found: dict[str, float] = {}
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            found[name] = 1024 * int(value.split()[0]) / MB
    return found


class Watch:
    """Looks at the memory of the process in a thread of its own, and now and then says how far the work is."""

    def __init__(self, title: str) -> None:
        self.anonymous = 0.0  # MB, the most that was seen
        self.at = "opening"  # where the work is
        self._title = title
        self._begun = time.perf_counter()
        threading.Thread(target=self._look, daemon=True).start()

    def progress(self, stage: str, done: float, total: float, source: object) -> None:
        """As a pipeline tells it."""
        self.at = f"{stage} {done / total:.1%}" if total else stage

    def _look(self) -> None:
        said = 0.0
        while True:
            found = status()
            self.anonymous = max(self.anonymous, found["RssAnon"])
            elapsed = time.perf_counter() - self._begun
            if elapsed - said >= SECONDS_BETWEEN_LINES:
                said = elapsed
                memory = f"{found['VmRSS']:.0f} MB, {found['RssAnon']:.0f} of them anonymous"
                print(f"{self._title}: {elapsed:.0f} s: {self.at}: {memory}", file=sys.stderr, flush=True)
            time.sleep(SECONDS_BETWEEN_LOOKS)


def write(path: Path, hours: float) -> None:
    """The conversation, repeated."""
    once = (32767 * mlx_speech.load_audio(DEMO / "conversation.flac")).astype("<i2")
    left = round(3600 * hours * SAMPLE_RATE)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        while left > 0:
            piece = once[:left]
            file.writeframes(piece.tobytes())
            left -= piece.size


def chain(path: Path, watch: Watch) -> tuple[dict[str, float], str]:
    """The whole pipeline. Returns the seconds of its stages, and what came out."""
    pipeline = mlx_speech.Pipeline.demo()
    found = pipeline(path, diarize=True, on_progress=watch.progress)
    words = sum(len(segment.words) for segment in found.segments)
    turns = found.diarization.turns if found.diarization else ()
    return found.seconds, f"{words} words, {len({turn.speaker for turn in turns})} speakers, {len(turns)} turns"


def speakers(path: Path, watch: Watch) -> tuple[dict[str, float], str]:
    """Diarization alone, as `chain`."""
    ends: dict[str, float] = {}

    def progress(stage: str, done: float, total: float, source: object) -> None:
        watch.progress(stage, done, total, source)
        now = time.perf_counter()
        ends.setdefault("audio", now)
        if done / total <= SHARE_BEHIND_SEGMENTATION:
            ends["segmentation"] = now
        if done / total <= SHARE_BEHIND_EMBEDDINGS:
            ends["embedding"] = now

    pipeline = mlx_speech.Pipeline(diarize_model="pyannet_campplus")
    begun = time.perf_counter()
    found = pipeline.diarize(path, on_progress=progress)
    ends["clustering"] = time.perf_counter()
    seconds: dict[str, float] = {}
    for name, end in ends.items():
        seconds[name] = end - begun
        begun = end
    return seconds, f"{len(found.embeddings)} speakers, {len(found.turns)} turns"


def run(kind: str, path: Path, hours: float) -> None:
    """One measurement; prints it as JSON."""
    mlx_speech.configure(keep_freed_memory=True)  # as the command line does
    watch = Watch(f"{kind}, {hours:g} h")
    begun = time.perf_counter()
    seconds, result = chain(path, watch) if kind == "chain" else speakers(path, watch)
    elapsed = time.perf_counter() - begun
    measured = {"seconds": elapsed, "anonymous": watch.anonymous, "peak": status()["VmHWM"]}
    print(json.dumps({**measured, "stages": seconds, "result": result}))


def main() -> int:
    """Print the table; 1 where a process had more than `BOUND`."""
    summary, _, more = (__doc__ or "").partition("\n\n")
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=summary, epilog=more, formatter_class=formatter)
    parser.add_argument("hours", nargs="*", type=float, default=[1.0], help="of sound; default: 1")
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--run", nargs=2, metavar=("KIND", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run is not None:
        run(arguments.run[0], Path(arguments.run[1]), arguments.hours[0])
        return 0
    print("| hours | what | anonymous | peak | seconds | by stage | result |")
    print("|---|---|---|---|---|---|---|", flush=True)
    most = 0.0
    for hours in arguments.hours:
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "long.wav"
            write(path, hours)
            for kind in [arguments.only] if arguments.only else KINDS:
                command = [sys.executable, "-m", "benchmarks.long_recordings", str(hours), "--run", kind, str(path)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                row = json.loads(done.stdout.splitlines()[-1])
                stages = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in row["stages"].items())
                memory = f"{row['anonymous']:.0f} MB | {row['peak']:.0f} MB"
                print(
                    f"| {hours:g} | {kind} | {memory} | {row['seconds']:.0f} | {stages} | {row['result']} |", flush=True
                )
                most = max(most, row["peak"])
    print(f"\n{most:.0f} MB at most (bound {BOUND:.0f}).")
    return int(most > BOUND)


if __name__ == "__main__":
    sys.exit(main())
