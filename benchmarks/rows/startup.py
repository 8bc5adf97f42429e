"""Start-up: whole processes, from the interpreter's start to its end, with warm caches."""

from __future__ import annotations

import importlib.metadata
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.suite import OURS, Call, Row

RECORDING = Path(__file__).parents[2] / "mlx_speech" / "assets" / "demo" / "pauses.flac"
PIPELINE = f"{OURS}, Pipeline"
# by contender: what the interpreter is given; others are named as their packages are
IMPORTS = {
    OURS: ("-c", "import mlx_speech"),
    PIPELINE: ("-c", "from mlx_speech import Pipeline"),
    "mlx-whisper": ("-c", "import mlx_whisper"),
    "mlx-audio": ("-c", "from mlx_audio.stt.utils import load_model"),
    "faster-whisper": ("-c", "import faster_whisper"),
    "openai-whisper": ("-c", "import whisper"),
    "pyannote.audio": ("-c", "import pyannote.audio"),
    "python": ("-c", "pass"),
}
HELP = {
    OURS: ("-m", "mlx_speech", "--help"),
    "mlx-whisper": ("-m", "mlx_whisper.cli", "--help"),
    "openai-whisper": ("-m", "whisper", "--help"),
}
TRANSCRIPT = "import sys, mlx_speech; print(mlx_speech.Pipeline.demo()(sys.argv[1], diarize=len(sys.argv) > 2).text)"
FIRST = {OURS: ("-c", TRANSCRIPT, str(RECORDING))}
SPEAKERS = {OURS: ("-c", TRANSCRIPT, str(RECORDING), "speakers")}


def rows(device: str, quick: bool) -> list[Row]:
    """Short enough as they are for `quick`; `device` is MLX's own choice."""
    return [
        _row("import", "A process that imports the package (ours loads its parts when they are used)", IMPORTS, 0.2),
        _row("help", "A process that prints its help", HELP, 0.4),
        _row("transcript", "A process that transcribes 27 s of speech, with the package's small models", FIRST),
        _row("speakers", "The same, and tells the speakers apart", SPEAKERS),
    ]


def _row(name: str, title: str, commands: dict[str, tuple[str, ...]], target: float | None = None) -> Row:
    contenders = {other: partial(process, other, words) for other, words in commands.items()}
    agree, targets = (transcribed, {}) if target is None else (peaks, {OURS: target})
    return Row(f"startup/{name}", title, contenders, agree=agree, targets=targets)


def process(name: str, words: tuple[str, ...]) -> Call:
    """A call starts an interpreter that is given `words`."""
    if not name.startswith(OURS) and name != "python":
        importlib.metadata.version(name)  # raises ImportError

    def call() -> dict[str, Any]:
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().rpartition("\n")[2])
        unit = 1 if sys.platform == "darwin" else 1024
        return {"said": done.stdout, "peak": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit}

    return call


def peaks(outputs: dict[str, dict[str, Any]]) -> str:
    found = ", ".join(f"{name} {output['peak'] / 1e6:.0f} MB" for name, output in outputs.items())
    return f"Peak memory of the processes (above it is that of the process that starts them): {found}."


def transcribed(outputs: dict[str, dict[str, Any]]) -> str:
    words = len(outputs[OURS]["said"].split())
    assert words > 20, outputs[OURS]["said"]
    return f"{words} words. {peaks(outputs)}"
