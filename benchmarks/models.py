"""What is measured with: models in every contender's form, and recordings. Made once, then cached.

What a decoder says, and so how long it takes, depends on its weights: Whisper base and tiny.en and pyannote's
segmentation-3.0 have those that were published, where `tests/real_weights.py` has fetched them, and hear real speech of
the test data. Other models have random weights, on which time does not depend. Every form of a model has the same
values. `making.py` makes them, in a process of its own: the peak memory that the system gives for a child begins
with its parent's, so the caller has to stay small.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
from filelock import FileLock

ROOT = Path(__file__).parents[1]
VERSION = "3"  # of what is made: another number, and all of it is made again
RATE = 16_000
CORE = "MLX_SPEECH_BENCH_CORE"  # variable of the environment: the kind of CPU that OpenBLAS serves


class Whisper(NamedTuple):
    """float32. With random weights: "tiny" or "small", multilingual; with OpenAI's: "base" or "tiny.en"."""

    openai: Path  # the .pt of openai-whisper, {"dims", "model_state_dict"}
    transformers: Path  # a folder as on the hub, with tokenizer.json: for CTranslate2's converter, mlx-audio
    mlx_whisper: Path  # a folder: weights.safetensors and config.json
    ours: Path
    ctranslate2: Path | None = None  # a folder, as faster-whisper has it; None: to be made of transformers'
    ggml: Path | None = None  # the file of whisper.cpp

    @property
    def is_real(self) -> bool:
        """Whether its weights are OpenAI's."""
        return self.ctranslate2 is not None

    @property
    def sizes(self) -> dict[str, int]:
        """By the names that openai-whisper has for them."""
        return json.loads((self.mlx_whisper / "config.json").read_text())


class Spoken(NamedTuple):
    """Speech whose words are known. samples : (samples,) float32 at 16 kHz"""

    samples: np.ndarray
    text: str


class Pair(NamedTuple):
    """Of wav2vec2 a transformers folder; of diarization a folder in the layout of pyannote's community-1."""

    original: Path
    ours: Path


class Narrow(NamedTuple):
    """Converted models so narrow that what is around them shows; the Whisper writes two sentences into each chunk."""

    whisper: Path
    wav2vec2: Path
    diarization: Path


def use_mlx(device: str, ours: bool = True) -> None:
    """What a contender that uses MLX does before it imports it: OpenBLAS, as we load it, or, for others, by hand, told
    of the same CPU; the device; and of ours, that freed memory is kept, as on the command line."""
    if ours:
        from mlx_speech import configure

        configure(keep_freed_memory=True)
    elif sys.platform.startswith("linux"):
        told = {"OPENBLAS_CORETYPE": os.environ[CORE]} if CORE in os.environ else {}
        with contextlib.suppress(OSError), mock.patch.dict(os.environ, told):
            ctypes.CDLL("libopenblas.so.0", ctypes.RTLD_GLOBAL)
    import mlx.core as mx

    mx.set_default_device(mx.cpu if device == "cpu" else mx.gpu)


def cache_folder() -> Path:
    place = os.environ.get("MLX_SPEECH_BENCH")
    return (Path(place) if place else Path.home() / ".cache" / "mlx_speech-bench") / VERSION


def whisper(size: str, quick: bool = False) -> Whisper:
    folder = _made("whisper", "quick" if quick else size)
    return Whisper(folder / "openai.pt", folder / "transformers", folder / "mlx_whisper", folder / "ours")


def real_whisper(name: str) -> Whisper:
    """OpenAI's base or tiny.en; in transformers' form only base. Raises `RuntimeError` where they were not fetched."""
    folder = _made("real_whisper", name)
    names = ("openai.pt", "transformers", "mlx_whisper", "ours", "ctranslate2", "ggml.bin")
    return Whisper(*(folder / name for name in names))


def wav2vec2(quick: bool = False) -> Pair:
    """Base: 12 layers of 768, group norm, letters; English."""
    folder = _made("wav2vec2", "quick" if quick else "base")
    return Pair(folder / "original", folder / "ours")


def diarization(quick: bool = False) -> Pair:
    """pyannote's segmentation-3.0 where it was fetched, else a random PyanNet of its shapes (10 s, 3 speakers,
    powerset); ResNet34 of full width and a PLDA, random; VBx clustering, step 0.1."""
    folder = _made("diarization", "quick" if quick else "real" if are_at_hand() else "full")
    return Pair(folder / "original", folder / "ours")


def large_v3(quick: bool = False) -> Path:
    """A transformers folder of large-v3's shapes, float16 as it is published: 3.1 GB."""
    return _made("large_v3", "quick" if quick else "full") / "original"


def narrow() -> Narrow:
    folder = _made("narrow", "quick")
    return Narrow(folder / "whisper", folder / "wav2vec2", folder / "diarization")


def speech(seconds: float) -> np.ndarray:
    """(samples,) float32 at 16 kHz: the package's recordings over and over, with noise at -66 dBFS, so that no window
    is equal to another. The same for everyone; better called by each contender than sent to it."""
    once = np.load(_made("speech", "all") / "speech.npy")
    return _with_noise(np.resize(once, round(seconds * RATE)))


def _with_noise(samples: np.ndarray) -> np.ndarray:
    """Noise at -66 dBFS is added to (samples,) in place."""
    rng = np.random.default_rng(1)
    for block in np.array_split(samples, max(1, samples.size >> 20)):
        block += 5e-4 * rng.standard_normal(block.size, dtype=np.float32)
    return samples


def spoken(seconds: float) -> Spoken:
    """English recordings of the test data one behind the other, for at least so long. Raises `RuntimeError` without."""
    folder = _made("spoken", f"{seconds:g}")
    return Spoken(np.load(folder / "samples.npy"), (folder / "text.txt").read_text(encoding="utf-8"))


def meeting(seconds: float) -> np.ndarray:
    """(samples,) of real meetings over and over, as `speech`; this itself where there is no test data."""
    if not are_at_hand():
        return speech(seconds)
    return _with_noise(np.resize(np.load(_made("meeting", "all") / "samples.npy"), round(seconds * RATE)))


@cache
def are_at_hand() -> bool:
    """Whether there are the published weights and the recordings of the test data."""
    know_tests()
    import real_weights

    data = Path(os.environ.get("MLX_SPEECH_TEST_DATA", ROOT.parent / "shared"))
    needed = [real_weights.folder() / name for name in ("whisper-base", "whisper-tiny.en", "segmentation-3.0")]
    return all(path.exists() for path in [*needed, data / "data" / "manifest.json"])


def know_tests() -> None:
    """Let the tests' modules be imported."""
    tests = str(ROOT / "tests")
    if tests not in sys.path:
        sys.path.insert(0, tests)


def speech_wav(seconds: float) -> Path:
    """The same as a 16-bit wav file."""
    import wave

    path = _made("speech", "all") / f"{seconds:g}.wav"
    if not path.exists():
        with wave.open(str(path.with_suffix(".part")), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes((speech(seconds).clip(-1, 1) * 32767).astype("<i2").tobytes())
        path.with_suffix(".part").rename(path)
    return path


def _made(name: str, size: str) -> Path:
    folder = cache_folder() / f"{name}-{size}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):  # contenders ask for it at the same time
        if not folder.exists():
            _make(folder, name, size)
    return folder


def _make(folder: Path, name: str, size: str) -> None:
    print(f"making {folder}", file=sys.stderr, flush=True)
    part = folder.with_name(f".{folder.name}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    command = [sys.executable, "-m", "benchmarks.making", str(part), name, size]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} {size} could not be made; make test installs what it takes\n{done.stderr}")
    part.rename(folder)
