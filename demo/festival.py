"""Festival's three English voices (Debian: festival, festvox-*), with the word times that festival itself gives."""

from __future__ import annotations

import itertools
import math
import shutil
import subprocess
import tempfile
import wave
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from demo import RATE
from demo.corpus import MARGIN, Utterance, finished

BATCH = 200  # sentences per process
PACKAGES = {
    "kal_diphone": "festvox-kallpc16k",
    "ked_diphone": "festvox-kdlpc16k",
    "cmu_us_slt_arctic_hts": "festvox-us-slt-hts",
}
_FOLDER = Path("/usr/share/festival/voices")
VOICES = tuple(voice for voice in PACKAGES if any(_FOLDER.glob(f"*/{voice}")))  # those installed

# prints "word start end" for each word, then a line "done path" when the sound is written
_SCHEME = """
(voice_{voice})
(define (speak text path)
  (let ((u (utt.synth (eval (list 'Utterance 'Text text)))))
    (utt.save.wave u path 'riff)
    (mapcar
      (lambda (w) (format t "%s %f %f\\n" (item.name w) (item.feat w "word_start") (item.feat w "word_end")))
      (utt.relation.items u 'Word))
    (format t "done %s\\n" path)))
"""


def speak_many(
    sentences: Iterable[list[str]], voice: str, rng: np.random.Generator | None = None
) -> Iterator[Utterance]:
    """Each sentence (lower-case words) said by a festival voice, resampled by a factor of 0.85 to 1.2 drawn from `rng`.

    The factor moves pitch, formants and tempo together, and the times with them; without `rng` it is 1. A sentence
    whose words festival reads otherwise (numbers, abbreviations) is left out.
    """
    if voice not in VOICES or not shutil.which("festival"):
        raise RuntimeError(
            f"festival's voice {voice!r} is not installed: apt-get install festival {' '.join(PACKAGES.values())}"
        )
    rest = iter(sentences)
    while batch := list(itertools.islice(rest, BATCH)):
        with tempfile.TemporaryDirectory() as folder:
            for words, (samples, rate, found) in zip(batch, _synthesize(batch, voice, Path(folder)), strict=True):
                # in fortieths, so that the ratio of the rates has small terms
                factor = 1.0 if rng is None else int(rng.integers(34, 49)) / 40
                if [name for name, _, _ in found] != words:
                    continue
                times = np.array([(start, end) for _, start, end in found]) / factor
                yield utterance(words, times, resample(samples, rate, factor), f"festival {voice} {factor:.3f}")


def _synthesize(
    sentences: list[list[str]], voice: str, folder: Path
) -> Iterator[tuple[np.ndarray, int, list[tuple[str, float, float]]]]:
    """Per sentence the samples (n,) float32, their rate and the words with start and end in seconds."""
    lines = [_SCHEME.format(voice=voice)]
    for i, words in enumerate(sentences):
        if not all(word.replace("'", "").isalpha() for word in words):
            raise ValueError(f"festival is given words of letters only, not {words}")
        lines.append(f'(speak "{" ".join(words)}." "{folder / str(i)}.wav")')
    script = folder / "script.scm"
    script.write_text("\n".join(lines))
    command = ["festival", "--batch", str(script)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: list[tuple[str, float, float]] = []
    for line in printed.splitlines():
        fields = line.split()
        if fields[0] == "done":
            yield *_read(Path(fields[1])), found
            found = []
        else:
            found.append((fields[0].lower(), float(fields[1]), float(fields[2])))


def _read(path: Path) -> tuple[np.ndarray, int]:
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return samples.astype(np.float32) / 32768, file.getframerate()


def resample(samples: np.ndarray, rate: int, factor: float = 1.0) -> np.ndarray:
    """(n,) at `rate` hertz to 16 kHz; pitch and tempo rise by `factor`, a multiple of 1/40."""
    up, down = 40 * RATE, round(rate * factor * 40)
    common = math.gcd(up, down)
    return samples if up == down else resample_poly(samples, up // common, down // common)


def utterance(words: list[str], times: np.ndarray, samples: np.ndarray, speaker: str) -> Utterance:
    """times: (words, 2) start and end in seconds of `samples`, at 16 kHz.

    The closure of a stop that begins the sentence, or the release that ends it, is silence: the first word starts and
    the last word ends within 40 dB of the peak. What hums before and after them (kal's recordings do) is cut.
    """
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    starts, ends = np.clip(times, loud[0] / RATE, (loud[-1] + 1) / RATE).T
    first, last = max(0, int((starts[0] - MARGIN) * RATE)), int((ends[-1] + MARGIN) * RATE)
    return finished(
        samples[first:last], words, starts - first / RATE, ends - first / RATE, np.ones(len(words), bool), (), speaker
    )
