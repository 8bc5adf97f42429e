"""Makes mlx_speech/assets/demo/pauses.flac and pauses.json: `python tests/make_pauses.py [folder]`.

Synthetic speech (espeak-ng 1.51, several voices) with pauses of known length between the utterances, under low white
noise, 16 kHz mono 16 bit. Each utterance is cut where its level first and last comes within 40 dB of its peak, so
that the truth in pauses.json is exact by construction: where the cut utterances were placed. The sentences and the
noise are the project's own. The same version of espeak-ng gives the same samples.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from mlx_speech.audio import load_audio

RATE = 16_000
FOLDER = Path(__file__).parents[1] / "mlx_speech" / "assets" / "demo"
LEAD = 1.2  # seconds before the first utterance
NOISE = 0.0002  # standard deviation of the noise, -74 dBFS
PEAK = 0.2
SEED = 20
# voice, text, seconds of pause behind it; no commas, so that no utterance pauses within
UTTERANCES = (
    ("en-us", "The lighthouse keeper counted nine boats before breakfast", 0.9),
    ("en-gb-x-rp+f2", "Somebody left a blue bicycle in the middle of the library", 1.5),
    ("en-gb-scotland+m3", "We roasted the chestnuts until the kitchen smelled of autumn", 2.2),
    ("en-029+m5", "A slow train carried the orchestra over the mountain", 0.5),
    ("en-gb+f3", "Nobody expected the clock tower to ring at noon", 1.1),
    ("en-us+m7", "The baker wrote tomorrow's weather on the window with flour", 1.6),
)


def speak(voice: str, text: str) -> np.ndarray:
    """(samples,) float32: the utterance without the silence around it, its peak at `PEAK`."""
    command = ["espeak-ng", "-v", voice, "-s", "165", "-g", "0", "--stdout", text]
    sound = load_audio(io.BytesIO(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout), sample_rate=RATE)
    loud = np.flatnonzero(np.abs(sound) >= 0.01 * np.abs(sound).max())
    sound = sound[loud[0] : loud[-1] + 1]
    return sound * (PEAK / np.abs(sound).max())


def make() -> tuple[np.ndarray, dict[str, object]]:
    """The recording, (samples,) int16, and what pauses.json says of it."""
    pieces, regions, position = [np.zeros(round(LEAD * RATE), np.float32)], [], round(LEAD * RATE)
    for voice, text, pause in UTTERANCES:
        sound, silence = speak(voice, text), np.zeros(round(pause * RATE), np.float32)
        end = position + sound.size
        regions.append({"start": position / RATE, "end": end / RATE, "voice": voice, "text": text})
        pieces += [sound, silence]
        position = end + silence.size
    clean = np.concatenate(pieces)
    noise = np.random.default_rng(SEED).standard_normal(clean.size) * NOISE
    samples = np.round((clean + noise) * 32768).astype(np.int16)
    truth: dict[str, object] = {
        "file": "pauses.flac",
        "sample_rate": RATE,
        "samples": samples.size,
        "made": "tests/make_pauses.py: espeak-ng 1.51 speech cut 40 dB below its peak, white noise at -74 dBFS",
        "regions": regions,
    }
    return samples, truth


def write_flac(path: Path, samples: np.ndarray) -> None:
    """(samples,) int16 as a FLAC file."""
    with av.open(str(path), "w", format="flac") as container:
        stream = container.add_stream("flac", rate=RATE, layout="mono", options={"compression_level": "12"})
        for start in range(0, samples.size, 4096):
            frame = av.AudioFrame.from_ndarray(samples[None, start : start + 4096], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    samples, truth = make()
    write_flac(folder / "pauses.flac", samples)
    (folder / "pauses.json").write_text(json.dumps(truth, indent=2) + "\n")
    print(f"{folder}/pauses.flac: {samples.size / RATE:.1f} s, {(folder / 'pauses.flac').stat().st_size} bytes")


if __name__ == "__main__":
    main()
