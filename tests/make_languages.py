"""Makes tests/data/languages/*.opus: `python tests/make_languages.py`, with espeak-ng 1.51.

Synthetic speech, a sentence each in the languages of which no recording is at hand, for the detection of languages. The
sentences are the project's own.
"""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import av
import numpy as np

from mlx_speech.audio import load_audio

FOLDER = Path(__file__).parent / "data" / "languages"
RATE = 16_000
SENTENCES = {
    "de": "Guten Morgen, heute scheint die Sonne, und wir gehen mit den Kindern in den Garten.",
    "es": "Buenos días, hoy hace mucho sol y vamos con los niños a la playa.",
    "it": "Buongiorno, oggi fa molto caldo e andiamo al mare con i bambini.",
}


def speak(language: str, text: str) -> np.ndarray:
    call = ["espeak-ng", "-v", language, "-s", "150", "--stdout", text]
    return load_audio(io.BytesIO(subprocess.run(call, capture_output=True, check=True).stdout))


def write(path: Path, samples: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libopus", rate=RATE, layout="mono")
        stream.bit_rate = 24_000
        frame = av.AudioFrame.from_ndarray((samples[None] * 32767).astype(np.int16), format="s16", layout="mono")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for language, text in SENTENCES.items():
        write(FOLDER / f"{language}.opus", speak(language, text))
