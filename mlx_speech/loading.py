"""The models of a pipeline: found by name, loaded when first used, let go where memory is short."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_speech import blas, names
from mlx_speech.checkpoint import (
    PIPELINE,
    check_language,
    dequantize_layers,
    finish,
    is_converted,
    load_folder,
    quantized_bits,
    read_config,
)
from mlx_speech.errors import HubError, MLXSpeechError, OptionError, SourceError, SourceNotFound
from mlx_speech.folders import cache_folder, expand
from mlx_speech.models import diarization_pipeline, pyannet, silero_vad, wav2vec2, whisper
from mlx_speech.models.base import BaseModel
from mlx_speech.package_data import BUNDLED
from mlx_speech.stages.whisper.tokenizer import Tokenizer

DIARIZATION = "pyannote/speaker-diarization-community-1"
BATCHES = (1, 2, 4, 8, 16, 24)  # beyond these, a larger batch gains little and costs memory
MAX_CPU_BATCH = 8


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
        from mlx_speech import convert  # lazily: nothing else at run time may need it

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


@dataclass(frozen=True)
class Recogniser:
    """Whisper and the tokenizer of its vocabulary."""

    model: whisper.Model
    tokenizer: Tokenizer


class Models:
    """What each stage computes with. A name is a hub repository, a folder, a file, or one of `names`' table; a model
    that is loaded already may stand for it.

    names : of those in use, by stage: "whisper", "vad", "align", "diarization"
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | BaseModel | None = None,
        align_model: str | os.PathLike[str] | BaseModel | None = None,
        vad_model: str | os.PathLike[str] | BaseModel | None = None,
        diarize_model: str | os.PathLike[str] | BaseModel | None = None,
        dtype: str | None = None,
        q_bits: int | None = None,
    ) -> None:
        on_gpu = mx.default_device().type == mx.DeviceType.gpu
        self._model = model or (names.DEFAULT_GPU if on_gpu else names.DEFAULT_CPU)
        self._align, self._vad, self._diarize = align_model, vad_model, diarize_model or DIARIZATION
        self._dtype, self._q_bits = dtype or ("float16" if on_gpu else None), q_bits
        self._loaded: dict[str, Any] = {}
        self._sources: dict[str, str] = {}  # where those came from
        self.names: dict[str, str] = {}

    def whisper(self) -> Recogniser:
        """Raises `SourceError` where it cannot be had, or is another kind of model."""
        if "whisper" not in self._loaded:
            model = self._get("whisper model", self._model, whisper.Model, "model", find=self._load_whisper)
            self._loaded["whisper"] = Recogniser(model, Tokenizer.find(model.folder, model.args.n_vocab))
        return self._loaded["whisper"]

    def vad(self, method: str) -> Any:
        """Silero VAD, or a PyanNet: by default the one of the diarization. Raises `SourceError`."""
        if method == "silero":
            return self._get("vad silero", self._vad or "silero_vad", silero_vad.Model, "vad_model")
        if self._vad is not None:
            return self._get("vad pyannote", self._vad, pyannet.Model, "vad_model")
        model = self.diarization().segmentation
        self.names["vad"] = self.names["diarization"]
        return model

    def aligner(self, language: str) -> wav2vec2.Model | None:
        """The wav2vec2 of a language, or None (with a warning) where there is none, or it cannot be had."""
        source = self._align or names.align_source(language)
        key = f"align {language if self._align is None else ''}"
        if key not in self._loaded:
            self.release("align")  # one at a time is enough: recordings of one language come together
            reason = "align_model names one"
            try:
                if source:
                    return self._get(key, source, wav2vec2.Model, "align_model")
            except SourceError as error:
                if self._align is not None:
                    raise
                reason = str(error)
            instead = "words get their times from Whisper's attention"
            warnings.warn(f"no alignment model for {language!r}: {instead} ({reason})", stacklevel=2)
            self._loaded[key] = None
        return self._loaded[key]

    @property
    def align_is_given(self) -> bool:
        """Whether one model aligns all languages: the caller's."""
        return self._align is not None

    def has_aligner(self, language: str) -> bool:
        """Whether there is a name for one; it may turn out that it cannot be had."""
        return bool(self._align or names.align_source(language))

    def diarization(self) -> diarization_pipeline.Model:
        """Raises `SourceError` that says which page to accept and what to run, where a gated model is not here."""
        kind = diarization_pipeline.Model
        return self._get("diarization", self._diarize, kind, "diarize_model", find=_load_diarization)

    def release(self, *stages: str) -> None:
        """Let go of the models of these stages; they are loaded again when they are used again."""
        for key in [key for key in self._loaded if key.split()[0] in stages]:
            del self._loaded[key]
        mx.clear_cache()
        blas.give_back()

    def batch_size(self, limit: int | None) -> int:
        """Rows that fit in half of the memory beside the weights; limit : bytes, None for what the device has."""
        model = self.whisper().model
        args, weights = model.args, sum(array.nbytes for _, array in tree_flatten(model.parameters()))  # type: ignore[arg-type]
        size = model.decoder.positional_embedding.dtype.size
        keys = 2 * args.n_text_layer * (args.n_audio_ctx + args.n_text_ctx) * args.n_text_state * size
        encoder = 12 * args.n_audio_ctx * args.n_audio_state * size + 16 * args.n_vocab
        scores = args.n_audio_head * args.n_audio_ctx**2 * size if blas.on_cpu() and size < 4 else 0  # not fused there
        free = ((limit or device_memory()) - weights) / 2
        fitting = [batch for batch in BATCHES if batch * (keys + encoder + 2 * scores) <= free]
        return min(max(fitting, default=1), MAX_CPU_BATCH if blas.on_cpu() else BATCHES[-1])

    def _load_whisper(self, model: str | os.PathLike[str]) -> BaseModel:
        first: MLXSpeechError | None = None
        name = str(model)
        if self._q_bits is not None and name in names.WHISPER:
            name = f"{name}-q{self._q_bits}"
        for source in names.whisper_sources(name):
            try:
                q_bits = source.q_bits or self._q_bits
                folder = Path(source.repo)
                if q_bits is None or not is_converted(folder) or read_config(folder).get("quantization"):
                    return load(source.repo, dtype=self._dtype, q_bits=q_bits)
                return _quantized(load(source.repo, dtype=self._dtype), q_bits)
            except (SourceNotFound, HubError) as error:  # the next repository may have it, or the cache
                first = first or error
        raise first or SourceNotFound(f"{model}: no such model")

    def _get(self, key: str, source: Any, kind: type, keyword: str, find: Callable[[Any], BaseModel] = load) -> Any:
        """The model that `source` stands for; of another kind it is refused. key : the stage, and what else tells it
        from others; from now on it is the stage's model
        """
        if key not in self._loaded:
            given = isinstance(source, BaseModel)
            model = source if given else find(source)
            if not isinstance(model, kind):
                found, wanted = (name.rpartition(".")[2] for name in (type(model).__module__, kind.__module__))
                raise SourceError(f"{keyword}={source}: is a {found} model, where a {wanted} model is needed")
            self._loaded[key] = model
            self._sources[key] = type(source).__module__ if given else str(source)
        self.names[key.split()[0]] = self._sources[key]
        return self._loaded[key]


def device_memory() -> int:
    """Bytes that models may use: what Metal recommends, or the GPU's or the machine's memory."""
    info = mx.device_info() if mx.default_device().type == mx.DeviceType.gpu else {}
    found = info.get("max_recommended_working_set_size") or info.get("memory_size") or info.get("total_memory")
    return int(found) if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _quantized(model: BaseModel, q_bits: int) -> BaseModel:
    """A model that was converted in full precision, with fewer bits; on the CPU only its values are those of them."""

    def wanted(path: str, module: nn.Module) -> bool:
        weight = module.get("weight")
        fits = hasattr(module, "to_quantized") and weight is not None and weight.shape[-1] % 64 == 0
        return fits and model.quant_predicate(path, module)

    nn.quantize(model, bits=q_bits, class_predicate=wanted)
    if blas.on_cpu():
        dequantize_layers(model)
    return model.materialise()


def _load_diarization(source: str | os.PathLike[str]) -> BaseModel:
    name = str(source)
    try:
        return load(name)
    except HubError as error:
        short = name.rpartition("/")[2]
        cached: list[Path] = []
        with suppress(OptionError):  # no home, so no cache
            cached = sorted(cache_folder().glob(f"{short}-*"), reverse=True)
        for folder in (Path("mlx_models") / short, *cached):
            config = read_config(folder) if is_converted(folder) else {}
            origin = config.get("source")
            if config.get("model_type") == PIPELINE and isinstance(origin, dict) and origin.get("repo") == name:
                return load(folder)
        advice = f"mlx_speech convert --model {name} (or give a converted folder as diarize_model)"
        page = f"its conditions are accepted at https://huggingface.co/{name}"
        raise HubError(f"{error}; {page}; then this command again, or once and for all: {advice}") from error
