"""Peak memory and time of the whole pipeline over the length of the recording, with narrow models (random weights).

    python benchmarks/pipeline_memory.py [MINUTES ...]        (default: 10 100)

Every length runs in a process of its own; the peak is the operating system's resident set. The recording repeats the
one that comes with the package. Exits 1 where the peak beyond the samples that are in memory (4 bytes, 16 000 a second;
none of a recording of more than half an hour) grows by more than 15 % from the first length to the last.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
BOUND = 1.15


def make(folder: Path) -> None:
    """Narrow originals, converted: whisper, wav2vec2, diarization."""
    import originals
    import tiny

    from mlx_speech.convert import convert

    sources = folder / "sources"
    (sources / "pipeline").mkdir(parents=True)
    convert(str(originals.save_openai(tiny.planted_whisper(), sources / "tiny.pt")), folder / "whisper")
    aligner = originals.wav2vec2_transformers("group", **originals.W2V_NARROW)
    convert(str(originals.save_wav2vec2(aligner, sources / "wav2vec2")), folder / "wav2vec2")
    for name in ("segmentation", "embedding"):
        (sources / "pipeline" / name).mkdir()
    segmentation = originals.pyannet(lstm={"hidden_size": 16, "num_layers": 1, "bidirectional": True})
    originals.save_lightning(segmentation, sources / "pipeline" / "segmentation" / "pytorch_model.bin")
    embedding = originals.wespeaker([1, 1, 1, 1], channels=4)
    path = sources / "pipeline" / "embedding" / "pytorch_model.bin"
    originals.save_lightning(embedding, path, hyper_parameters=False)
    (sources / "pipeline" / "config.yaml").write_text(tiny.CONFIG, encoding="utf-8")
    convert(str(sources / "pipeline"), folder / "diarization")


def run(folder: Path, minutes: float) -> None:
    """One recording; prints what was measured as JSON."""
    import mlx_speech
    from mlx_speech.audio import LONGEST_IN_MEMORY, load_audio
    from mlx_speech.pipeline import Pipeline

    mlx_speech.configure(keep_freed_memory=True)  # as the command line does
    once = load_audio(Path(mlx_speech.__file__).parent / "assets" / "demo" / "pauses.flac")
    samples = int(minutes * 60 * 16_000)
    with wave.open(str(folder / "long.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        for start in range(0, samples, once.size):
            file.writeframes((once[: samples - start] * 32767).astype("<i2").tobytes())
    pipeline = Pipeline(
        folder / "whisper",
        align_model=folder / "wav2vec2",
        diarize_model=folder / "diarization",
        batch_size=4,
        max_duration=1e6,
    )
    start = time.perf_counter()
    result = pipeline(folder / "long.wav", language="en", temperature=0.0, num_speakers=2)
    elapsed = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    in_memory = 4 * samples if 60 * minutes <= LONGEST_IN_MEMORY else 0
    found = {"minutes": minutes, "seconds": elapsed, "peak": peak, "samples": in_memory, "stages": result.seconds}
    print(json.dumps({**found, "segments": len(result.segments), "turns": len(result.diarization.turns)}))


def main() -> int:
    if len(sys.argv) == 4 and sys.argv[1] == "--run":
        run(Path(sys.argv[2]), float(sys.argv[3]))
        return 0
    lengths = [float(word) for word in sys.argv[1:]] or [10.0, 100.0]
    with tempfile.TemporaryDirectory() as name:
        make(Path(name))
        rows = []
        for minutes in lengths:
            command = [sys.executable, __file__, "--run", name, str(minutes)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], file=sys.stderr)
    print("| minutes | segments | turns | peak | samples | peak beyond the samples | time | by stage |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        beyond = (row["peak"] - row["samples"]) / 1e6
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in row["stages"].items())
        print(
            f"| {row['minutes']:g} | {row['segments']} | {row['turns']} | {row['peak'] / 1e6:.0f} MB "
            f"| {row['samples'] / 1e6:.0f} MB | {beyond:.0f} MB | {row['seconds']:.0f} s | {stages} |"
        )
    grown = (rows[-1]["peak"] - rows[-1]["samples"]) / (rows[0]["peak"] - rows[0]["samples"])
    print(f"\nBeyond the samples: {grown:.2f} × from the first to the last (bound {BOUND}).")
    return int(grown > BOUND)


if __name__ == "__main__":
    sys.exit(main())
