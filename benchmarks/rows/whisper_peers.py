"""Whisper as the peers load it: the same weights, in float32 on a CPU and float16 on a GPU, on all cores."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import models

WINDOW = 30  # seconds
SPOKEN = 600  # seconds of real speech, of which the first windows are taken

Files = models.Whisper


def threads() -> int:
    """For those that would not take all cores by themselves."""
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


def precision(device: str) -> str:
    return "float32" if device == "cpu" else "float16"


def chunks(files: Files, windows: int) -> np.ndarray:
    """(windows, samples) of speech, real for real weights: from the second window on, as little is said in the first"""
    size = WINDOW * models.RATE
    samples = models.spoken(SPOKEN).samples[size:] if files.is_real else models.speech(WINDOW * windows)
    return samples[: windows * size].reshape(windows, size)


def mlx(device: str, ours: bool = False) -> Any:
    """MLX, for us and for those built on it."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    models.use_mlx(device, ours)
    import mlx.core as mx

    return mx


def plain(array: Any) -> np.ndarray:
    import mlx.core as mx

    return np.array(array.astype(mx.float32))


def mlx_mel(files: Files, windows: int, device: str, ours: bool) -> Any:
    """(windows, 3000, n_mels), as we make it, or as all others that are built on MLX do, one by one"""
    mx = mlx(device, ours)
    n_mels = files.sizes["n_mels"]
    if ours:
        from mlx_speech.features import log_mel

        mel = log_mel(mx.array(chunks(files, windows)), n_mels)
    else:
        from mlx_whisper.audio import log_mel_spectrogram

        mel = mx.stack([log_mel_spectrogram(chunk, n_mels) for chunk in chunks(files, windows)])
    mel = mel.astype(getattr(mx, precision(device)))
    mx.eval(mel)
    return mel


def ours(files: Files, device: str) -> Any:
    mlx(device, ours=True)
    import mlx_speech

    return mlx_speech.load(files.ours, dtype=precision(device))


def mlx_whisper(files: Files, device: str) -> Any:
    mx = mlx(device)
    from mlx_whisper.transcribe import ModelHolder  # where its `transcribe` looks for the model

    dtype = getattr(mx, precision(device))
    model = ModelHolder.get_model(str(files.mlx_whisper), dtype)
    model.set_dtype(dtype)
    return model


def mlx_audio(files: Files, device: str) -> Any:
    """As its `load` does it, which knows float16 only."""
    mx = mlx(device)
    from mlx_audio.stt.models.whisper.whisper import Model, ModelDimensions

    folder = files.transformers
    sizes = ModelDimensions.from_dict(json.loads((folder / "config.json").read_text()))
    model = Model(sizes, getattr(mx, precision(device)))
    model.load_weights(list(model.sanitize(mx.load(str(folder / "model.safetensors"))).items()))
    mx.eval(model.parameters())
    return Model.post_load_hook(model, folder)


def openai(files: Files, device: str) -> Any:
    """On Metal it runs on the CPU: PyTorch lacks there what it needs."""
    import torch
    import whisper

    torch.set_num_threads(threads())
    return whisper.load_model(str(files.openai), device="cuda" if device == "cuda" else "cpu")


def openai_mel(files: Files, model: Any, windows: int) -> Any:
    """(windows, n_mels, 3000); one by one, as in its `transcribe`: the loudest sets the floor"""
    import torch
    import whisper

    rows = [whisper.log_mel_spectrogram(chunk, model.dims.n_mels) for chunk in chunks(files, windows)]
    mel = torch.stack(rows).to(model.device)
    return mel if model.device.type == "cpu" else mel.half()


def faster_whisper(files: Files, device: str, kind: str) -> Any:
    """kind : "float" or "int8". CTranslate2 has no Metal: there it runs on the CPU."""
    from faster_whisper import WhisperModel

    gpu = device == "cuda"
    compute = {"float": "float16" if gpu else "float32", "int8": "int8_float16" if gpu else "int8_float32"}[kind]
    place = "cuda" if gpu else "cpu"
    return WhisperModel(str(_converted(files)), device=place, compute_type=compute, cpu_threads=threads())


def whisper_cpp(files: Files) -> Any:
    """whisper.cpp as its package for Python has it, which is built for CPUs."""
    from pywhispercpp.model import Model

    # its log tells of every model that is loaded
    return Model(str(files.ggml), n_threads=threads(), print_progress=False, redirect_whispercpp_logs_to=None)


def faster_mel(files: Files, model: Any, windows: int) -> np.ndarray:
    """(windows, n_mels, 3000), of the very samples: unlike in its `transcribe`, nothing is added at their end"""
    rows = [model.feature_extractor(chunk, padding=0) for chunk in chunks(files, windows)]
    return np.stack([row[:, : 100 * WINDOW] for row in rows])


def plain_ctranslate2(array: Any) -> np.ndarray:
    import ctranslate2

    if array.device == "cuda":
        array = array.to_device(ctranslate2.Device.cpu)
    return np.array(array.to(ctranslate2.DataType.float32))


def _converted(files: Files) -> Path:
    """By CTranslate2's own converter, once; real weights come in its form."""
    if files.ctranslate2 is not None:
        return files.ctranslate2
    folder = files.transformers.with_name("ctranslate2")
    if not folder.exists():
        part = folder.with_name(f".{folder.name}-{os.getpid()}")
        command = [sys.executable, "-m", "ctranslate2.converters.transformers", "--model", str(files.transformers)]
        command += ["--output_dir", str(part), "--copy_files", "tokenizer.json", "preprocessor_config.json"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"CTranslate2 could not convert {files.transformers}\n{done.stderr}")
        try:
            part.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(part)
    return folder
