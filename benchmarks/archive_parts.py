"""What parts of an archive cost by themselves: the driver, a manifest, decoding sound.

    python -m benchmarks.archive_parts

The driver hands out files whose text is written in them, and which a scripted pipeline gives back at once. A manifest
is read, its recordings are named, and each file is looked at. A minute of the conversation that comes with the package
is decoded from what archives hold it in.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.archive import MEGABYTE, memory_of_processes
from mlx_speech.transcript import Segment, Transcript, Word

DRIVEN, PROCESSES = 10_000, 2  # files
LAST = 1000  # files, of which the last and the first are compared
LISTED = 200_000  # lines of a manifest
CODECS = {"wav": "pcm_s16le", "flac": "flac", "mp3": "libmp3lame", "ogg": "libopus"}
DECODED = 60.0  # seconds
REPEATS = 5
WORD_SECONDS = 0.3


class Written:
    """A pipeline that hears in a file what is written there."""

    def transcribe(self, recordings: Iterable[str], **options: Any) -> Iterator[tuple[str, Transcript]]:
        for path in recordings:
            text = Path(path).read_text(encoding="utf-8")
            words = [Word(WORD_SECONDS * k, WORD_SECONDS * (k + 1), word, 0.9) for k, word in enumerate(text.split())]
            seconds = WORD_SECONDS * len(words)
            yield path, Transcript((Segment(0.0, seconds, text, tuple(words)),), "en", duration=seconds)


def driver(folder: Path) -> str:
    """How long a file takes from end to end, and what the driver holds, at the beginning and in the end."""
    from mlx_speech import archive

    (folder / "in").mkdir()
    for k in range(DRIVEN):
        (folder / "in" / f"{k:05d}.wav").write_text(f"this is what was said in the recording of number {k}")
    seen: list[tuple[int, float, int]] = []  # files, when, bytes of the driver

    def watch(progress: archive.Progress) -> None:
        new = progress.files - (seen[-1][0] if seen else 0)
        if new >= LAST or (new and progress.files in (1, DRIVEN)):
            seen.append((progress.files, time.perf_counter(), memory_of_processes()[0]))

    archive.transcribe(
        folder / "in",
        folder / "out",
        pipeline="benchmarks.archive_parts:Written",
        on_progress=watch,
        plan=archive.Plan(processes=PROCESSES, cores=1),
    )
    each = [1000 * (later[1] - one[1]) / (later[0] - one[0]) for one, later in pairwise(seen)]
    all_of_it = 1000 * (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0])
    first, last = (f"{seen[k][2] / MEGABYTE:.0f} MB" for k in (0, -1))
    return (
        f"{DRIVEN} files of a scripted pipeline, {PROCESSES} processes: {all_of_it:.2f} ms a file; of about {LAST} "
        f"files the first {each[0]:.2f} ms, the last {each[-1]:.2f} ms; the driver has {first}, in the end {last}"
    )


def manifest(folder: Path) -> str:
    """What is done before anything is transcribed."""
    from mlx_speech.archive.manifest import read_manifest
    from mlx_speech.archive.naming import names_of
    from mlx_speech.archive.storage import Storage

    with (folder / "list.jsonl").open("w") as file:
        for k in range(LISTED):
            (folder / f"{k:06d}.wav").touch()
            file.write(f'{{"audio_filepath": "{k:06d}.wav", "duration": 12.5, "text": "recording of number {k}"}}\n')
    before, begun = memory_of_processes()[0], time.perf_counter()
    storage = Storage()
    entries = read_manifest(folder / "list.jsonl", storage)
    names = names_of(entries, {})
    states = storage.states(entry.source for entry in entries)
    seconds, grown = time.perf_counter() - begun, memory_of_processes()[0] - before
    assert len(names) == len(states) == LISTED
    return (
        f"a manifest of {LISTED} lines: {seconds:.1f} s and {grown / MEGABYTE:.0f} MB, "
        f"{1e6 * seconds / LISTED:.0f} µs and {grown / LISTED / 1000:.1f} kB a file"
    )


def decoding(folder: Path) -> str:
    """How many times faster than it lasts sound is decoded, on one core."""
    from mlx_speech import load_audio
    from mlx_speech.package_data import DEMO
    from mlx_speech.samples import SAMPLE_RATE

    samples = np.resize(load_audio(DEMO / "conversation.flac"), round(DECODED * SAMPLE_RATE))
    said = []
    for suffix, codec in CODECS.items():
        path = folder / f"talk.{suffix}"
        encode(path, samples, codec)
        times = []
        for _ in range(REPEATS):
            begun = time.perf_counter()
            load_audio(path)
            times.append(time.perf_counter() - begun)
        size = path.stat().st_size / DECODED / 1000
        said.append(f"{codec} {DECODED / statistics.median(times):.0f} × real time, {size:.1f} kB a second")
    return f"a minute of sound is decoded: {'; '.join(said)}"


def encode(path: Path, samples: np.ndarray, codec: str) -> None:
    """samples : (samples,) at 16 kHz"""
    import av

    from mlx_speech.samples import SAMPLE_RATE

    whole = (samples.clip(-1, 1) * 32767).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=SAMPLE_RATE, layout="mono")
        for start in range(0, whole.size, SAMPLE_RATE):
            frame = av.AudioFrame.from_ndarray(whole[None, start : start + SAMPLE_RATE], format="s16", layout="mono")
            frame.sample_rate = SAMPLE_RATE
            frame.pts = start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def main() -> None:
    for part in (decoding, manifest, driver):
        with tempfile.TemporaryDirectory() as place:
            print(part(Path(place)), flush=True)


if __name__ == "__main__":
    main()
