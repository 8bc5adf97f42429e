"""The models of a pipeline: found by name, loaded when first used, let go where memory is short."""

from __future__ import annotations

from mlx_speech import backend as backend  # isort: skip  (before MLX)

import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import mlx.core as mx
import mlx.nn as nn

from mlx_speech import blas, hub, names
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
from mlx_speech.errors import HubError, MLXSpeechError, Notice, OptionError, SourceError, SourceNotFound
from mlx_speech.folders import cache_folder, expand
from mlx_speech.forks import check_process
from mlx_speech.models import diarization_pipeline, pyannet, silero_vad, wav2vec2, whisper
from mlx_speech.models.base import BaseModel
from mlx_speech.package_data import BUNDLED, SPEAKERS
from mlx_speech.stages.whisper.tokenizer import Tokenizer

DIARIZATION = "pyannote/speaker-diarization-community-1"
AUTO = "auto"  # as diarize_model: the pipeline above where it can be had, else the one that comes with the package
WHICH_SPEAKERS = (
    "speakers are told apart by segmentation-3.0 and CAM++, which come with the package; "
    f"{DIARIZATION} is used instead where it can be had: accept its conditions at "
    f"https://huggingface.co/{DIARIZATION}, then run: hf auth login"
)
BATCHES = (1, 2, 4, 8, 16, 24)  # beyond these, a larger batch gains little and costs memory
MAX_CPU_BATCH = 8
HUB_SECONDS = 60.0  # until a model is asked for again that could not be fetched


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

    path_or_repo : or a name: "silero_vad" is the converted VAD that comes with the package, and those of
        `names.WHISPER` ("tiny", "small-q4" …) stand for what `Pipeline` takes them for, where no file is called so
    revision : of a hub repository; language : of an MMS model, the adapter to put in (ISO 639-3)
    q_bits : quantize an original to so many bits; what is quantized or converted already must have as many
    Raises `SourceError` in one line naming the source and what to do, and `ForkedProcess`.
    """
    check_process()
    if dtype is not None and dtype not in ("float16", "bfloat16", "float32"):
        raise OptionError(f"dtype={dtype!r}: choose from float16, bfloat16, float32")
    if names.is_short_name(str(path_or_repo)) and revision is None and language is None:
        return _load_whisper(str(path_or_repo), dtype, q_bits)
    return _load(path_or_repo, revision=revision, language=language, dtype=dtype, q_bits=q_bits)


def _load(
    path_or_repo: str | os.PathLike[str],
    *,
    revision: str | None = None,
    language: str | None = None,
    dtype: str | None = None,
    q_bits: int | None = None,
) -> BaseModel:
    """`load` of what is no short name."""
    path = expand(path_or_repo)
    if not is_converted(path):
        path = BUNDLED.get(str(path_or_repo), path)
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


Given: TypeAlias = "str | os.PathLike[str] | BaseModel"  # a model's name, its place, or itself
Kind = TypeVar("Kind", bound=BaseModel)


class Slot(Generic[Kind]):
    """The place of one model in a pipeline: what stands for it, and the model once it is loaded.

    keyword : the argument that names it, for messages
    kind : the class that it has to be of
    find : gives the model that a name or a place stands for
    name : of the model that was last got, as it was given
    """

    def __init__(self, keyword: str, kind: type[Kind], find: Callable[[str | os.PathLike[str]], BaseModel]) -> None:
        self.keyword = keyword
        self.kind = kind
        self.find = find
        self.name = ""
        self._model: Kind | None = None

    def get(self, given: Given) -> Kind:
        """The model that `given` stands for. Raises `SourceError` where it cannot be had, or is of another kind."""
        name = type(given).__module__ if isinstance(given, BaseModel) else str(given)
        if isinstance(given, BaseModel):
            self._model = self._checked(given, given)
        elif self._model is None or name != self.name:
            self._model = None  # so that there are never two of them in memory
            self._model = self._checked(self.find(given), given)
        self.name = name
        return self._model

    def _checked(self, model: BaseModel, given: Given) -> Kind:
        if isinstance(model, self.kind):
            return model
        found = type(model).__module__.rpartition(".")[2]
        wanted = self.kind.__module__.rpartition(".")[2]
        raise SourceError(f"{self.keyword}={given}: is a {found} model, where a {wanted} model is needed")

    def release(self) -> None:
        """Let go of the model; it is loaded again when it is asked for again."""
        self._model = None

    @property
    def loaded(self) -> bool:
        """Whether the model is held."""
        return self._model is not None


class Models:
    """What each stage computes with. A name is a hub repository, a folder, a file, or one of `names`' table; a model
    that is loaded already may stand for it.

    names : of those in use, by stage: "whisper", "vad", "align", "diarization"
    """

    def __init__(
        self,
        model: Given | None = None,
        align_model: Given | None = None,
        vad_model: Given | None = None,
        diarize_model: Given | None = None,
        dtype: str | None = None,
        q_bits: int | None = None,
    ) -> None:
        on_gpu = mx.default_device().type == mx.DeviceType.gpu
        self._model: Given = model or (names.DEFAULT_GPU if on_gpu else names.DEFAULT_CPU)
        self._align_model = align_model
        self._vad_model = vad_model
        self._diarize_model: Given = diarize_model or AUTO
        self._dtype = dtype or ("float16" if on_gpu else None)
        self._q_bits = q_bits
        self._whisper = Slot("model", whisper.Model, self._load_whisper)
        self._silero = Slot("vad_model", silero_vad.Model, load)
        self._pyannet = Slot("vad_model", pyannet.Model, load)
        self._aligner = Slot("align_model", wav2vec2.Model, load)
        self._kept_aligners: dict[str, Slot[wav2vec2.Model]] = {}  # by the names of the models
        self._diarization = Slot("diarize_model", diarization_pipeline.Model, _load_diarization)
        self._tokenizer: Tokenizer | None = None
        self._without_aligner: dict[str, float] = {}  # language → until when (monotonic); the user has been told
        self.names: dict[str, str] = {}

    def whisper(self) -> Recogniser:
        """Whisper. Raises `SourceError` where it cannot be had, or is another kind of model."""
        model = self._whisper.get(self._model)
        self.names["whisper"] = self._whisper.name
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.find(model.folder, model.args.n_vocab)
        return Recogniser(model, self._tokenizer)

    @property
    def whisper_source(self) -> str:
        """What Whisper was given as: a name or a place; of a loaded one the module of its class."""
        return type(self._model).__module__ if isinstance(self._model, BaseModel) else str(self._model)

    def silero(self) -> silero_vad.Model:
        """Silero VAD, by default the one that comes with the package. Raises `SourceError`."""
        model = self._silero.get(self._vad_model or "silero_vad")
        self.names["vad"] = self._silero.name
        return model

    def pyannet(self) -> pyannet.Model:
        """A PyanNet that detects speech, by default the one of the diarization. Raises `SourceError`."""
        if self._vad_model is None:
            segmentation = self.diarization().segmentation
            if not isinstance(segmentation, pyannet.Model):
                raise SourceError(f"diarize_model={self._diarization.name}: its segmentation is no pyannet model")
            self.names["vad"] = self._diarization.name
            return segmentation
        model = self._pyannet.get(self._vad_model)
        self.names["vad"] = self._pyannet.name
        return model

    def aligner(self, language: str) -> wav2vec2.Model | None:
        """The wav2vec2 of a language, or None (with a warning) where there is none, or it cannot be had.

        One is held at a time, since recordings of one language come together, beside those of `keep_aligner`. Raises
        `SourceError` where the caller's own model cannot be had.
        """
        if self._align_model is not None:
            model = self._aligner.get(self._align_model)
            self.names["align"] = self._aligner.name
            return model
        if time.monotonic() < self._without_aligner.get(language, 0.0):
            return None
        source = names.align_source(language)
        reason = "align_model names one"
        until = math.inf
        if source is not None:
            slot = self._kept_aligners.get(source, self._aligner)
            try:
                model = slot.get(source)
            except SourceError as error:
                reason = str(error)
                if isinstance(error, HubError):  # it may be reached again
                    until = time.monotonic() + HUB_SECONDS
            else:
                self.names["align"] = slot.name
                return model
        self._without_aligner[language] = until
        instead = "words get their times from Whisper's attention"
        warnings.warn(f"no alignment model for {language!r}: {instead} ({reason})", stacklevel=2)
        return None

    def keep_aligner(self, language: str) -> None:
        """Have the wav2vec2 of a language, once it is loaded, stay where that of another one is wanted."""
        source = names.align_source(language)
        if source is not None:
            self._kept_aligners.setdefault(source, Slot("align_model", wav2vec2.Model, load))

    @property
    def align_is_given(self) -> bool:
        """Whether one model aligns all languages: the caller's."""
        return self._align_model is not None

    def has_aligner(self, language: str) -> bool:
        """Whether there is a name for one; it may turn out that it cannot be had."""
        return self._align_model is not None or names.align_source(language) is not None

    def diarization(self) -> diarization_pipeline.Model:
        """The diarization; where none was given, the best that can be had, with a `Notice` where that is not the gated
        one. Raises `SourceError` that says which page to accept and what to run, where a gated model is not here."""
        if self._diarize_model == AUTO:
            self._diarize_model = self._choose_diarization()
        model = self._diarization.get(self._diarize_model)
        self.names["diarization"] = self._diarization.name
        return model

    def _choose_diarization(self) -> str:
        """The gated pipeline where there is a copy of it, or a token that lets it be had; else that of the package."""
        if not _in_reach(DIARIZATION):
            warnings.warn(WHICH_SPEAKERS, Notice, stacklevel=2)
            return SPEAKERS
        try:
            self._diarization.get(DIARIZATION)
        except SourceError as error:
            warnings.warn(f"{WHICH_SPEAKERS} ({error})", Notice, stacklevel=2)
            return SPEAKERS
        return DIARIZATION

    def release(self, *stages: str) -> None:
        """Let go of the models of these stages ("whisper", "vad", "align", "diarization")."""
        for stage in stages:
            for slot in self._slots()[stage]:
                slot.release()
        if "whisper" in stages:
            self._tokenizer = None
        mx.clear_cache()
        blas.give_back()

    def loaded(self) -> set[str]:
        """The stages whose models are held."""
        return {stage for stage, slots in self._slots().items() if any(slot.loaded for slot in slots)}

    def _slots(self) -> dict[str, tuple[Slot[Any], ...]]:
        return {
            "whisper": (self._whisper,),
            "vad": (self._silero, self._pyannet),
            "align": (self._aligner, *self._kept_aligners.values()),
            "diarization": (self._diarization,),
        }

    def batch_size(self, limit: int | None) -> int:
        """Rows that fit in half of the memory beside the weights.

        limit : bytes that MLX may use, None for what the device has
        """
        model = self.whisper().model
        args = model.args
        weights = sum(array.nbytes for array in model.arrays().values())
        size = model.decoder.positional_embedding.dtype.size
        keys_and_values = 2 * args.n_text_layer * (args.n_audio_ctx + args.n_text_ctx) * args.n_text_state * size
        activations = 12 * args.n_audio_ctx * args.n_audio_state * size + 16 * args.n_vocab
        scores = 0
        if blas.on_cpu() and size < 4:  # attention is not fused there
            scores = args.n_audio_head * args.n_audio_ctx**2 * size
        free = ((limit or device_memory()) - weights) / 2
        fitting = [batch for batch in BATCHES if batch * (keys_and_values + activations + 2 * scores) <= free]
        largest = MAX_CPU_BATCH if blas.on_cpu() else BATCHES[-1]
        return min(max(fitting, default=1), largest)

    def _load_whisper(self, model: str | os.PathLike[str]) -> BaseModel:
        return _load_whisper(str(model), self._dtype, self._q_bits)


def _load_whisper(name: str, dtype: str | None, q_bits: int | None) -> BaseModel:
    """The Whisper of that name, from the first of its repositories that can be had (`names.whisper_sources`).

    Raises `SourceError`, of the first repository.
    """
    first_error: MLXSpeechError | None = None
    if q_bits is not None and name in names.WHISPER:
        name = f"{name}-q{q_bits}"
    for source in names.whisper_sources(name):
        bits = source.q_bits or q_bits
        folder = Path(source.repo)
        try:
            if bits is None or not is_converted(folder) or read_config(folder).get("quantization"):
                return _load(source.repo, dtype=dtype, q_bits=bits)
            return _quantized(_load(source.repo, dtype=dtype), bits)
        except (SourceNotFound, HubError) as error:  # the next repository may have it, or the cache
            first_error = first_error or error
    raise first_error or SourceNotFound(f"{name}: no such model")


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


def _in_reach(repo: str) -> bool:
    """Whether a gated repository can be asked for: there is a token, or a copy in one of the caches."""
    from huggingface_hub import get_token

    if get_token() is not None or hub.is_cached(repo):
        return True
    return any(_converted_copies(repo))


def _converted_copies(repo: str) -> Iterator[Path]:
    """Folders with a pipeline that was converted from this repository, the newest of the cache leading."""
    short = repo.rpartition("/")[2]
    cached: list[Path] = []
    with suppress(OptionError):  # no home, so no cache
        cached = sorted(cache_folder().glob(f"{short}-*"), reverse=True)
    for folder in (Path("mlx_models") / short, *cached):
        config = read_config(folder) if is_converted(folder) else {}
        origin = config.get("source")
        if config.get("model_type") == PIPELINE and isinstance(origin, dict) and origin.get("repo") == repo:
            yield folder


def _load_diarization(source: str | os.PathLike[str]) -> BaseModel:
    name = str(source)
    try:
        return load(name)
    except HubError as error:
        copy = next(_converted_copies(name), None)
        if copy is not None:
            return load(copy)
        advice = f"mlx_speech convert --model {name} (or give a converted folder as diarize_model)"
        page = f"its conditions are accepted at https://huggingface.co/{name}"
        raise HubError(f"{error}; {page}; then this command again, or once and for all: {advice}") from error
