"""Whether a live session's memory stays flat: `python -m benchmarks.endurance [--hours 8] [--diarize]`.

The demo's conversation, again and again, with the demo's models, as fast as it goes: in blocks of a second, with a
partial every 5 s and a minute of silence now and then. Prints the memory of the process for every half an hour of
sound, and at the end with the transcript of all of it; exits with 1 where the last before the end is more than 5 % over
that of the first hour, by which all models are loaded. live.md has what it printed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import mlx_speech
from mlx_speech.live.events import Ended, Final
from mlx_speech.package_data import DEMO
from mlx_speech.samples import SAMPLE_RATE

HALF_AN_HOUR = 1800.0  # seconds
MOST_GROWTH = 1.05
MINUTES_BETWEEN_SILENCES = 10
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> float:
    """MB of this process in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 1e6


def sound(hours: float) -> Iterator[np.ndarray]:
    """Seconds of it, (16000,) each."""
    conversation = mlx_speech.load_audio(DEMO / "conversation.flac")
    seconds = conversation.size // SAMPLE_RATE
    for second in range(round(3600 * hours)):
        if second // 60 % MINUTES_BETWEEN_SILENCES == MINUTES_BETWEEN_SILENCES - 1:
            yield np.zeros(SAMPLE_RATE, np.float32)
        else:
            start = second % seconds * SAMPLE_RATE
            yield conversation[start : start + SAMPLE_RATE]


def main() -> None:
    """Print the table."""
    summary, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=summary, epilog=more)
    parser.add_argument("--hours", type=float, default=8.0, help="of sound; default: 8")
    parser.add_argument("--diarize", action="store_true", help="tell speakers apart, too")
    parser.add_argument("--no-partials", action="store_true")
    arguments = parser.parse_args()
    print("| hours of sound | chunks | MB | × real time |")
    print("|---|---|---|---|")
    begun = time.perf_counter()
    measured: list[float] = []
    chunks = 0
    words = 0
    with mlx_speech.Pipeline.demo() as pipeline:
        keywords = {"step": 5.0, "partials": not arguments.no_partials, "diarize": arguments.diarize or None}
        for event in pipeline.live(sound(arguments.hours), **keywords):
            chunks += isinstance(event, Final)
            if isinstance(event, Ended):
                words = len(event.transcript.words)
            elif event.at >= HALF_AN_HOUR * (len(measured) + 1):
                measured.append(resident())
                speed = event.at / (time.perf_counter() - begun)
                print(f"| {event.at / 3600:.1f} | {chunks} | {measured[-1]:.0f} | {speed:.0f} |", flush=True)
    print(f"\n{words} words; at the end {resident():.0f} MB")
    sys.exit(1 if len(measured) > 2 and measured[-1] > MOST_GROWTH * measured[1] else 0)


if __name__ == "__main__":
    main()
