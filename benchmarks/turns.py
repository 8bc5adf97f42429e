"""How long a short recording waits behind a long one, and whether callers in parallel get what they get alone.

    python -m benchmarks.turns MODEL SHORT LONG              # how long SHORT waits behind LONG, and its time alone
    python -m benchmarks.turns MODEL RECORDING … --schedules 200

MODEL is a Whisper (tiny.en, say); words get their times from attention, so that no other model is needed. With
`--schedules` two callers at once ask for recordings under random options; some are cancelled, some are files that
cannot be read. Every text has to be the one that is given alone. Prints a line a measurement; 1 where a text differs.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import threading
import time
from typing import Any

from mlx_speech import Pipeline, Transcript, load_audio

SECONDS_BEHIND = 2.0  # that the short recording comes after the long one
TIMES = 5
OPTIONS: list[dict[str, Any]] = [
    {"word_timestamps": "attention"},
    {"word_timestamps": None},
    {"word_timestamps": None, "temperature": 0.0},
    {"word_timestamps": None, "beam_size": 3},
    {"word_timestamps": None, "without_timestamps": True},
    {"word_timestamps": None, "initial_prompt": "Listen:"},
    {"word_timestamps": None, "sequential": True},
]


def wait_behind(pipeline: Pipeline, short: str, long: str) -> None:
    """Print the seconds of the short recording alone, and behind the long one."""
    options: dict[str, Any] = {"word_timestamps": "attention"}
    expected = pipeline(short, **options).text
    alone = [_seconds(pipeline, short, options, expected) for _ in range(TIMES)]
    behind = []
    for _ in range(TIMES):
        request = pipeline.submit(long, **options)
        time.sleep(SECONDS_BEHIND)
        behind.append(_seconds(pipeline, short, options, expected))
        if request.done():
            raise SystemExit("the long recording was done before the short one: take a longer one")
        request.cancel()
    ratio = statistics.median(behind) / statistics.median(alone)
    print(f"alone {statistics.median(alone):.2f} s, behind {statistics.median(behind):.2f} s: {ratio:.1f} times")


def _seconds(pipeline: Pipeline, recording: str, options: dict[str, Any], expected: str) -> float:
    start = time.perf_counter()
    result = pipeline(recording, **options)
    if result.text != expected:
        raise SystemExit(f"another text: {result.text!r}, where {expected!r} is heard alone")
    return time.perf_counter() - start


def schedules(pipeline: Pipeline, recordings: list[str], count: int) -> int:
    """Two callers at once, `count` times; returns how many results differ from those that are got alone."""
    samples = [load_audio(recording) for recording in recordings]
    alone: dict[tuple[int, int], Any] = {}
    differing = 0
    fates: dict[str, int] = {"whole": 0, "cancelled": 0, "failing": 0}
    for seed in range(count):
        dice = random.Random(seed)
        plans = []
        for _ in range(2):
            place = (dice.randrange(len(samples)), dice.randrange(len(OPTIONS)))
            fate = dice.choice(["whole", "whole", "cancelled", "failing"])
            plans.append((place, fate, dice.uniform(0, 1), dice.uniform(0, 0.5)))
            fates[fate] += 1
            if place not in alone:
                alone[place] = _plain(pipeline(samples[place[0]], **OPTIONS[place[1]]))
        found: list[tuple[tuple[int, int], Any]] = []

        def call(
            place: tuple[int, int],
            fate: str,
            patience: float,
            delay: float,
            found: list[tuple[tuple[int, int], Any]] = found,
        ) -> None:
            time.sleep(delay)
            source: Any = "no such file.wav" if fate == "failing" else samples[place[0]]
            request = pipeline.submit(source, **OPTIONS[place[1]])
            if fate == "whole":
                found.append((place, _plain(request.result())))
            elif fate == "cancelled":
                time.sleep(patience)
                request.cancel()
            elif request.exception() is None:
                found.append((place, "a result of a file that is not there"))

        threads = [threading.Thread(target=call, args=plan) for plan in plans]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for place, result in found:
            if result != alone[place]:
                differing += 1
                print(f"seed {seed}: {recordings[place[0]]}, {OPTIONS[place[1]]}: {result}, alone {alone[place]}")
    print(f"{count} schedules ({fates}): {differing} results differ")
    return differing


def _plain(result: Transcript) -> list[tuple[float, float, str]]:
    """Texts and their times; probabilities differ in their last digits with what else is in a batch."""
    return [(segment.start, segment.end, segment.text) for segment in result.segments]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("recordings", nargs="+")
    parser.add_argument("--schedules", type=int, default=0)
    arguments = parser.parse_args()
    with Pipeline(arguments.model) as pipeline:
        if arguments.schedules:
            return 1 if schedules(pipeline, arguments.recordings, arguments.schedules) else 0
        short, long = arguments.recordings
        wait_behind(pipeline, short, long)
    return 0


if __name__ == "__main__":
    sys.exit(main())
