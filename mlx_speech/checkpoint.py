"""The folder of a converted model: `config.json` and `model.safetensors`, strictly loaded, and `load`, which finds it.

Quantized layers are stated as mlx_lm states them: `quantization` (and `quantization_config`) with group_size, bits
and mode, and an entry per layer where layers differ.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_speech import blas, models
from mlx_speech.errors import ConfigError, CorruptFile, OptionError, OutputError, WeightsMismatch, brief, shorten
from mlx_speech.models.base import BaseModel
from mlx_speech.tensors import read_safetensors, reading

FORMAT_VERSION = 1
PIPELINE = "diarization_pipeline"  # model_type of a folder that holds several models
MAX_JSON = 64 * 1024 * 1024  # bytes; the largest tokenizers have 10
PARTS = ("segmentation", "embedding", "plda")
_HOST = re.sub(r"[^A-Za-z0-9]", "", platform.node())[:32]
ASSETS = Path(__file__).parent / "assets"
BUNDLED = {"silero_vad": ASSETS / "silero_vad"}  # converted models that come with the package
DEMO = ASSETS / "demo"  # small originals, and recordings


def load(
    path_or_repo: str | os.PathLike[str],
    *,
    revision: str | None = None,
    language: str | None = None,
    dtype: str | None = None,
    q_bits: int | None = None,
) -> BaseModel:
    """A model, ready to call, from a converted folder, an original (file or folder), or a hub repository of either.

    An original is converted once into the cache (`$MLX_SPEECH_CACHE`, or mlx_speech in the user's cache folder);
    repositories in MLX's own layout (mlx-community) are converted in memory. On the CPU, where MLX's half-precision
    and quantized products are 20 to 80 times slower, half precision and quantized layers are brought to float32;
    `dtype` ("float16", "bfloat16", "float32") says otherwise. The model works from any thread.

    path_or_repo : "silero_vad" is the converted VAD that comes with the package
    revision : of a hub repository; language : of an MMS model, the adapter to put in (ISO 639-3)
    q_bits : quantize an original to so many bits; what is quantized or converted already must have as many
    Raises `SourceError` in one line naming the source and what to do, and `ForkedProcess`.
    """
    blas.check_process()
    if dtype is not None and dtype not in ("float16", "bfloat16", "float32"):
        raise OptionError(f"dtype={dtype!r}: choose from float16, bfloat16, float32")
    path = expand(path_or_repo)
    path = BUNDLED.get(str(path_or_repo), path) if not is_converted(path) else path
    if not is_converted(path):
        from mlx_speech import convert  # lazily: the only thing at run time that may need it

        source = convert.locate(str(path_or_repo), revision, language)
        path = source.path
        if not is_converted(path):
            found = convert.resolve(source, language, q_bits)
            return load_folder(found, dtype) if isinstance(found, Path) else finish(found, dtype)
    check_language(read_config(path), language)
    if q_bits is not None and quantized_bits(path) != q_bits:
        bits = f"to {quantized_bits(path)} bits" if quantized_bits(path) else "unquantized"
        raise OptionError(f"q_bits={q_bits}: {path} is converted already, {bits}: convert the original again")
    return load_folder(path, dtype)


def is_converted(folder: Path) -> bool:
    """Whether `folder` was written by this package."""
    return has(folder, "config.json") and "format_version" in read_config(folder)


def check_language(config: dict[str, Any], language: str | None) -> None:
    """Raises `OptionError` where a converted model is not that of `language`."""
    if language is not None and config.get("language") != language:
        found = config.get("language") or "no language of its own"
        raise OptionError(f"language={language}: this converted model has {brief(found)}: convert the original again")


def quantized_bits(folder: Path) -> int | None:
    """Bits of the quantization that config.json of `folder` states, None where there is none."""
    stated = _quantization(read_config(folder) if has(folder, "config.json") else {})
    return stated.get("bits") if isinstance(stated, dict) else None


def _quantization(config: dict[str, Any]) -> Any:
    return config.get("quantization") or config.get("quantization_config") or {}


def has(folder: Path, name: str) -> bool:
    """Whether there is a file of that name; not where `folder` may not be looked into."""
    return os.path.isfile(folder / name)  # noqa: PTH113 - Path.is_file raises PermissionError


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of `folder`. Raises `SourceError`."""
    return read_json(folder / "config.json")


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object. Raises `CorruptFile` or `SourceNotFound`."""
    with reading(path):
        try:
            if path.stat().st_size > MAX_JSON:
                raise CorruptFile(f"{path.stat().st_size} bytes are too many for a configuration")
            value = json.loads(path.read_text(encoding="utf-8"))
            json.dumps(value, ensure_ascii=False).encode()  # lone surrogates could not be written again
        except (ValueError, RecursionError) as error:
            raise CorruptFile(f"not valid JSON ({error}): fetch it again") from error
        if not isinstance(value, dict):
            raise CorruptFile("holds no JSON object: fetch it again")
        return value


def load_folder(folder: Path, dtype: str | None = None) -> BaseModel:
    """The model of a converted folder. Raises `SourceError`; nothing is guessed."""
    config = read_config(folder)
    with reading(folder):
        if config.get("format_version") != FORMAT_VERSION:
            found = brief(config.get("format_version"))
            raise ConfigError(f"format_version {found} is not {FORMAT_VERSION}: convert it again")
        if config.get("model_type") == PIPELINE:
            parts = {name: load_folder(folder / name, dtype) for name in part_names(folder)}
            model: BaseModel = models.module(PIPELINE).Model(config, **parts)
        else:
            model = finish(_model(folder, config), dtype)
    model.folder = folder
    return model


def _model(folder: Path, config: dict[str, Any]) -> BaseModel:
    family = config.get("model_type")
    if str(family) not in models.FAMILIES:
        raise ConfigError(f"model_type {brief(family)} is not one of {', '.join(models.FAMILIES)}")
    module = models.module(str(family))
    model: BaseModel = module.Model(module.ModelArgs.from_dict(config))
    tensors = read_safetensors(folder / "model.safetensors")
    quantize_layers(model, config, set(tensors))
    wanted = {name: tuple(array.shape) for name, array in model.arrays().items()}
    wrong = sorted(n for n in wanted.keys() | tensors.keys() if n not in tensors or wanted.get(n) != tensors[n].shape)
    if wrong:
        raise WeightsMismatch(f"model.safetensors does not fit config.json: {shorten(wrong)}: convert the model again")
    model.load_weights([(name, tensor.mlx()) for name, tensor in tensors.items()])
    return model


def part_names(folder: Path) -> list[str]:
    """The parts that a converted pipeline has. Raises `SourceNotFound` where one that it needs is missing."""
    for name in ("segmentation", "embedding"):
        read_config(folder / name)
    return [name for name in PARTS if (folder / name).is_dir()]


def finish(model: BaseModel, dtype: str | None) -> BaseModel:
    """Bring a loaded model to the dtype asked for, or to what its device computes well, and evaluate all of it."""
    if dtype is None and mx.default_device().type == mx.DeviceType.cpu:
        dequantize_layers(model)
        dtype = "float32"
    if dtype is not None:
        arrays = model.arrays()
        for name, array in arrays.items():
            is_float = array.dtype in (mx.float16, mx.bfloat16, mx.float32)
            if is_float and (dtype == "float32" or model.cast_predicate(name)):
                arrays[name] = array.astype(getattr(mx, dtype))
        model.load_weights(list(arrays.items()))
    model.eval()
    return model.materialise()


def quantized_layers(config: dict[str, Any], names: set[str]) -> dict[str, dict[str, Any]]:
    """The layers that have scales among `names`, each with group_size, bits and mode. Raises `ConfigError`."""
    paths = sorted(name.removesuffix(".scales") for name in names if name.endswith(".scales"))
    stated, result = _quantization(config), {}
    if paths and not isinstance(stated, dict):
        raise ConfigError(f"config.json: quantization is {brief(stated)}")
    for path in paths:
        entry = {**stated, **stated[path]} if isinstance(stated.get(path), dict) else stated
        chosen = {"group_size": entry.get("group_size"), "bits": entry.get("bits"), "mode": entry.get("mode", "affine")}
        whole = all(type(chosen[key]) is int and 0 < chosen[key] <= 1024 for key in ("group_size", "bits"))
        if not whole or chosen["mode"] not in ("affine", "mxfp4", "nvfp4", "mxfp8"):
            raise ConfigError(f"config.json: {path} is quantized, but quantization says {brief(chosen)}")
        result[path] = chosen
    return result


def quantize_layers(model: nn.Module, config: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Make the layers quantized that have scales among `names`; the quantization entry of `config`, or {}."""
    layers = quantized_layers(config, names)
    if not layers:
        return {}
    try:
        nn.quantize(model, class_predicate=lambda path, _: layers.get(path, False))
    except ValueError as error:
        raise ConfigError(f"config.json: quantization does not fit the layers ({error})") from error
    return {**next(iter(layers.values())), **_quantization(config)}  # mlx-community's repositories state no mode


def dequantize_layers(model: nn.Module) -> None:
    """Turn quantized layers into plain ones, in place."""
    plain: list[tuple[str, nn.Module]] = []
    for path, layer in model.named_modules():
        if isinstance(layer, (nn.QuantizedLinear, nn.QuantizedEmbedding)):
            how = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
            embedding = isinstance(layer, nn.QuantizedEmbedding)
            new = nn.Embedding(1, 1) if embedding else nn.Linear(1, 1, bias="bias" in layer)
            new.weight = mx.dequantize(layer.weight, layer.scales, layer.get("biases"), **how)
            if "bias" in layer:
                new.update({"bias": layer.bias})
            plain.append((path, new))
    model.update_modules(tree_unflatten(plain))


def expand(path: str | os.PathLike[str]) -> Path:
    """`path` with its ~ expanded. Raises `OptionError` where there is no such user, or where the user has no home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise OptionError(f"{path}: there is no such home folder: write it without ~") from error


def cache_folder() -> Path:
    """Where converted originals are kept. Raises `OptionError` where the user has no home folder to keep them in."""
    if "MLX_SPEECH_CACHE" in os.environ:
        return expand(os.environ["MLX_SPEECH_CACHE"])
    if sys.platform != "darwin" and os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "mlx_speech"
    try:
        home = Path.home()
    except RuntimeError as error:
        advice = "set HOME, or MLX_SPEECH_CACHE to a folder that can be written"
        raise OptionError(f"no home folder to keep converted models in: {advice}") from error
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "mlx_speech"


@contextlib.contextmanager
def staged(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A new folder beside `target` that becomes `target` when the block ends well, and vanishes when it does not.

    Raises `OutputError` where `target` exists and is not to be overwritten, or is no converted model, or where the
    place cannot be written.
    """
    check_target(target, overwrite)
    made = [folder for folder in target.parents if not folder.exists()]  # innermost first
    stage = old = None
    try:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            _sweep(target)
            stage = Path(tempfile.mkdtemp(prefix=f"{_prefix(target)}{os.getpid()}-", dir=target.parent))
            yield stage
            stage.chmod(0o755)
            check_target(target, overwrite)
            if target.exists():
                old = target.rename(stage.with_name(stage.name + ".old"))
            stage.rename(target)
    finally:
        if old is not None and not target.exists():
            old.rename(target)
        for leftover in filter(None, (stage, old)):
            shutil.rmtree(leftover, ignore_errors=True)
        for folder in made if not target.exists() else ():
            with contextlib.suppress(OSError):  # not made after all, or another process has put something in
                folder.rmdir()


@contextlib.contextmanager
def writing(target: Path, advice: str = "choose another mlx_path or make room") -> Iterator[None]:
    """Raises `OutputError` for what the system says inside."""
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError) or not error.strerror:
            raise
        raise OutputError(f"{target}: cannot be written ({error.strerror}): {advice}") from error


def check_target(target: Path, overwrite: bool) -> None:
    """Raises `OutputError` where `target` must not be replaced."""
    with writing(target):  # a name that is too long, a folder that may not be looked into
        if not target.exists() and not target.is_symlink():
            return
    if not overwrite:
        raise OutputError(f"{target}: exists already: choose another mlx_path, or pass overwrite=True")
    if target.is_symlink() or not target.is_dir() or not is_converted(target):
        raise OutputError(f"{target}: is not a converted model, so it is not overwritten: choose another mlx_path")


def _prefix(target: Path) -> str:
    return f".{target.name}.partial-{_HOST}-"  # another host's processes cannot be asked


def _sweep(target: Path) -> None:
    """Clear away what processes that were killed left beside `target`; a model they had moved aside comes back."""
    for leftover in target.parent.glob(f"{glob.escape(_prefix(target))}*"):
        pid = leftover.name.removeprefix(_prefix(target)).split("-")[0]
        if pid.isdecimal() and len(pid) < 10 and not _alive(int(pid)):
            if leftover.suffix == ".old" and not target.exists():
                leftover.rename(target)
            else:
                shutil.rmtree(leftover, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # another user's
    return True
