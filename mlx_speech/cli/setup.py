"""The process as a command needs it, and afterwards as it was; and the `Pipeline` that a command's flags ask for."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from mlx_speech.cli.outputs import expanded
from mlx_speech.cli.screen import Say, say_hint
from mlx_speech.errors import OptionError
from mlx_speech.options import COMPUTE_TYPES

if TYPE_CHECKING:
    from mlx_speech.pipeline import Pipeline

INTERRUPTED = 130  # exit code, as shells have it: 128 and the number of the signal
VARIABLES = ("HF_HUB_CACHE", "MLX_SPEECH_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN")  # of the environment, that flags set
GPU_NAMES = ("gpu", "cuda", "mps", "metal")
PIPELINE_KEYWORDS = (
    "model",
    "align_model",
    "vad_model",
    "diarize_model",
    "speakers",
    "dtype",
    "q_bits",
    "batch_size",
    "low_memory",
    "memory_limit",
    "max_duration",
)
COMPUTE_FLAGS = ("default", "float16", "float32", "int8", "int4")  # the values of --compute-type


@contextmanager
def settings() -> Iterator[None]:
    """Signals, streams, warnings and environment as a command needs them, and afterwards as they were."""
    environment = {name: os.environ.get(name) for name in VARIABLES}
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    handling = [(stream, stream.errors) for stream in streams]
    terminated: Any = None
    if threading.current_thread() is threading.main_thread():  # no other may handle signals
        # so that a half-written folder is cleared away
        terminated = signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in streams:
        stream.reconfigure(errors="replace")  # a terminal that cannot show every letter
    try:
        with warnings.catch_warnings():
            yield
    finally:
        if terminated is not None:
            signal.signal(signal.SIGTERM, terminated)
        for stream, errors in handling:
            if not stream.closed:
                stream.reconfigure(errors=errors)
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def discard_unwritable() -> None:
    """What standard output or error cannot take goes nowhere: it would fail again at the end of the process."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


@contextmanager
def same_device() -> Iterator[None]:
    """MLX's default device is afterwards as it was."""
    import mlx.core as mx

    device = mx.default_device()
    try:
        yield
    finally:
        mx.set_default_device(device)


def prepare(
    say: Say, *, device: str | None, model_dir: str | None, model_cache_only: bool, hf_token: str | None
) -> None:
    """Tell the libraries what has to be said before they are used. Raises `OptionError`."""
    if model_dir is not None:
        folder = expanded(model_dir)
        os.environ["HF_HUB_CACHE"] = str(folder / "hub")
        os.environ["MLX_SPEECH_CACHE"] = str(folder / "converted")
    if model_cache_only:
        os.environ["HF_HUB_OFFLINE"] = "1"
    if hf_token is not None:
        os.environ["HF_TOKEN"] = hf_token
    if device is not None:
        _choose_device(device)
    say_hint(say)


def device_of(device: str) -> Literal["cpu", "gpu"]:
    """MLX's name of a device. device : as PyTorch and WhisperX name it, too ("cuda:0"). Raises `OptionError`."""
    name = device.split(":")[0]
    if name == "cpu":
        return "cpu"
    if name not in GPU_NAMES:
        raise OptionError(f"--device {device}: choose cpu or gpu")
    return "gpu"


def _choose_device(device: str) -> None:
    """device : as of `device_of`"""
    import mlx.core as mx

    if device_of(device) == "cpu":
        mx.set_default_device(mx.Device(mx.cpu))
    elif not (mx.metal.is_available() or mx.cuda.is_available()):
        raise OptionError(f"--device {device}: MLX finds no GPU here: leave --device out")
    else:
        mx.set_default_device(mx.Device(mx.gpu))


def make_pipeline(given: dict[str, Any], say: Say) -> Pipeline:
    """The `Pipeline` of its own keywords, and of those of `prepare`; all are taken out of `given`."""
    prepare(
        say,
        device=given.pop("device"),
        model_dir=given.pop("model_dir"),
        model_cache_only=given.pop("model_cache_only"),
        hf_token=given.pop("hf_token"),
    )
    from mlx_speech.pipeline import Pipeline

    return Pipeline(**pipeline_keywords(given))


def pipeline_keywords(given: dict[str, Any]) -> dict[str, Any]:
    """The keywords of `Pipeline`, but for the device, that flags ask for; they are taken out of `given`."""
    chosen = {name: given.pop(name) for name in PIPELINE_KEYWORDS if name in given}
    chosen["batch_size"] = _batch_size(chosen.get("batch_size", "auto"))
    chosen.update(_precision(given, chosen))
    return chosen


def _batch_size(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdecimal():
        raise OptionError(f'--batch-size {text}: give a number, or "auto"')
    return int(text)


def _precision(given: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """The dtype or q_bits that --compute-type and --no-fp16 stand for; both are taken out of `given`."""
    compute_type = given.pop("compute_type", "default")
    half = given.pop("fp16", True)
    if not half and compute_type == "default":
        compute_type = "float32"
    if compute_type == "default":
        return {}
    if "dtype" in chosen or "q_bits" in chosen:
        raise OptionError("--compute-type conflicts with --dtype and --q-bits: leave it out")
    dtype, bits = COMPUTE_TYPES[compute_type]
    return {"dtype": dtype, "q_bits": bits}
