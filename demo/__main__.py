"""`python -m demo`: corpora, models, evaluation set, one after the other; stopped at any time, it goes on from there.

Everything happens on one core, or on a GPU where there is one. Steps that do not need each other may run side by side:
`python -m demo.whisper` beside `python -m demo.wav2vec2`.
"""

from __future__ import annotations

import subprocess
import sys
import time

STEPS = (
    "build",  # corpora
    "wav2vec2",  # word times
    "wespeaker",  # speaker embedding
    "plda",  # its statistics
    "pyannet",  # who speaks when, in windows of 10 s
    "diarization",  # the pipeline of the three
    "whisper",
    "evaluation",  # recordings of voices and sentences that were not trained on
)


def main() -> None:
    for step in sys.argv[1:] or STEPS:
        start = time.perf_counter()
        print(f"demo.{step}", flush=True)
        subprocess.run([sys.executable, "-m", f"demo.{step}"], check=True)
        print(f"demo.{step}: {(time.perf_counter() - start) / 60:.1f} min", flush=True)


if __name__ == "__main__":
    main()
