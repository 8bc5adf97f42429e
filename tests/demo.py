"""`make demo`: convert Silero VAD from its original file, find the speech in a recording, compare with the truth."""

from __future__ import annotations

import importlib.util
import json
import tempfile
import time
from pathlib import Path

import mlx_speech
from mlx_speech.convert import convert

DEMO = Path(mlx_speech.__file__).parent / "assets" / "demo"


def main() -> None:
    spec = importlib.util.find_spec("silero_vad")
    if spec is None or spec.origin is None:
        raise SystemExit("the original is missing: pip install --no-deps silero-vad")
    original = Path(spec.origin).parent / "data" / "silero_vad.jit"
    with tempfile.TemporaryDirectory() as folder:
        print(f"Converting {original.name}, read without torch:")
        print(f"  {convert(str(original), Path(folder) / 'silero-vad')}")
        model = mlx_speech.load(Path(folder) / "silero-vad")
        audio = mlx_speech.load_audio(DEMO / "pauses.flac")
        start = time.perf_counter()
        regions = mlx_speech.detect_speech(audio, model)
        took = time.perf_counter() - start
    truth = json.loads((DEMO / "pauses.json").read_text())["regions"]
    print(
        f"\nSpeech in {DEMO.name}/pauses.flac ({len(audio) / 16000:.1f} s, found in {took:.2f} s), beside the truth:\n"
    )
    print("   found            truth            start    end")
    for region, known in zip(regions, truth, strict=False):
        start_off, end_off = region.start - known["start"], region.end - known["end"]
        print(
            f"  {region.start:6.2f} – {region.end:6.2f}  {known['start']:6.2f} – {known['end']:6.2f}"
            f"  {start_off * 1000:+5.0f} ms {end_off * 1000:+5.0f} ms"
        )
    print(f"\n{len(regions)} of {len(truth)} utterances found; Silero pads every region by 30 ms on both sides.")
    if len(regions) != len(truth):
        raise SystemExit("the regions are not those of the truth")


if __name__ == "__main__":
    main()
