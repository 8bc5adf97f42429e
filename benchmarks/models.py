"""What is measured with: models of random weights in every contender's form, and a recording. Made once, then cached.

No checkpoint is needed from anywhere: time does not depend on the values of weights. Every form of a model has the
same values. `making.py` makes them, in a process of its own: the peak memory that the system gives for a child begins
with its parent's, so the caller has to stay small.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np

ROOT = Path(__file__).parents[1]
VERSION = "2"  # of what is made: another number, and all of it is made again
RATE = 16_000
CORE = "MLX_SPEECH_BENCH_CORE"  # variable of the environment: the kind of CPU that OpenBLAS serves


class Whisper(NamedTuple):
    """Multilingual, float32; of sizes "tiny" or "small"."""

    openai: Path  # the .pt of openai-whisper, {"dims", "model_state_dict"}
    transformers: Path  # a folder as on the hub, with tokenizer.json: for CTranslate2's converter, mlx-audio
    mlx_whisper: Path  # a folder: weights.safetensors and config.json
    ours: Path


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


def cache() -> Path:
    place = os.environ.get("MLX_SPEECH_BENCH")
    return (Path(place) if place else Path.home() / ".cache" / "mlx_speech-bench") / VERSION


def whisper(size: str, quick: bool = False) -> Whisper:
    folder = _made("whisper", "quick" if quick else size)
    return Whisper(folder / "openai.pt", folder / "transformers", folder / "mlx_whisper", folder / "ours")


def wav2vec2(quick: bool = False) -> Pair:
    """Base: 12 layers of 768, group norm, letters; English."""
    folder = _made("wav2vec2", "quick" if quick else "base")
    return Pair(folder / "original", folder / "ours")


def diarization(quick: bool = False) -> Pair:
    """PyanNet for 10 s and 3 speakers (powerset), ResNet34 of full width, a PLDA; VBx clustering, step 0.1."""
    folder = _made("diarization", "quick" if quick else "full")
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
    samples = np.resize(once, round(seconds * RATE))
    rng = np.random.default_rng(1)
    for block in np.array_split(samples, max(1, samples.size >> 20)):
        block += 5e-4 * rng.standard_normal(block.size, dtype=np.float32)
    return samples


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
    folder = cache() / f"{name}-{size}"
    if not folder.exists():
        print(f"making {folder}", file=sys.stderr, flush=True)
        part = folder.with_name(f".{folder.name}-{os.getpid()}")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        command = [sys.executable, "-m", "benchmarks.making", str(part), name, size]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{name} {size} could not be made; make test installs what it takes\n{done.stderr}")
        if folder.exists():  # another process was faster
            shutil.rmtree(part)
        else:
            part.rename(folder)
    return folder
