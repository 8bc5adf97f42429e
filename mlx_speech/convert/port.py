"""The five steps of a port, once for all families: recognise, read, fold and rename, lay out, check. Then arrays flow.

A family's file says `recognise(source)`, whether the weights are its own, and `recipe(source, language)`, its
configuration, its tensors folded, and the table of their new names. Everything else is here.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_speech import checkpoint, models
from mlx_speech.convert.quantize import Options, choose
from mlx_speech.convert.read import Source
from mlx_speech.errors import ConfigError, OptionError, UnknownFamily, WeightsMismatch, brief, shorten
from mlx_speech.models.base import BaseModel
from mlx_speech.tensors import FLOATS, Layout, Tensor, itemsize


class Drop(str):
    """In a table, why a tensor is knowingly left out."""


Table = dict[str, str | Drop]


def same(*names: str, path: str = "") -> Table:
    """Entries of a table for tensors or modules that keep their names, all below `path`."""
    return {f"{path}{name}": f"{path}{name}" for name in names}


@dataclass
class Recipe:
    """What a family makes of a source.

    config : the arguments of its `ModelArgs`
    tensors : after folding
    table : new names. A key is a tensor's name, or its module's path (weight, bias, scales … follow); `{}` stands for
        a number. A tensor that no key covers is an error.
    mlx_layout : the weights have MLX's layout already
    original : who can run the source: "transformers", "openai-whisper", "torchaudio", "pyannote.audio", "silero-vad"
    companions : names, or patterns of names, of files beside the weights that go along unchanged (tokenizer …)
    documents : JSON files written anew
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    table: Table
    original: str
    mlx_layout: bool = False
    companions: tuple[str, ...] = ()
    documents: dict[str, Any] = field(default_factory=dict)


@dataclass
class Plan:
    """A conversion that is ready to run: every tensor of the result and where it comes from. Nothing is read yet.

    model : of the right shapes and dtypes, quantized where the result is, its arrays never computed
    tensors : target → tensor, before casting and quantization
    quantized : paths of the layers to be quantized now → their parameters
    """

    family: str
    source: Source
    recipe: Recipe
    model: BaseModel
    tensors: dict[str, Tensor]
    dropped: dict[str, str]
    dtypes: dict[str, str]
    quantized: dict[str, dict[str, Any]]
    config: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def layout(self) -> Layout:
        """Name → shape and dtype of every array of the result, sorted by name."""
        arrays = sorted(self.model.arrays().items())
        return {name: (tuple(array.shape), str(array.dtype).rpartition(".")[2]) for name, array in arrays}

    def arrays(self) -> Iterator[tuple[str, mx.array | np.ndarray]]:
        """Read, cast and quantize one tensor after the other; every array comes evaluated."""
        for name, tensor in self.tensors.items():
            if tensor.dtype == self.dtypes[name] == "float64":
                yield name, tensor.raw()
                continue
            array = tensor.mlx().astype(getattr(mx, self.dtypes[name]))
            path, _, leaf = name.rpartition(".")
            if leaf == "weight" and path in self.quantized:
                parts = mx.quantize(array, **self.quantized[path])
                mx.eval(parts)
                yield from zip((name, f"{path}.scales", f"{path}.biases"), parts, strict=False)
            else:
                mx.eval(array)
                yield name, array

    def build(self) -> BaseModel:
        """The converted model itself, in memory."""
        arrays = [(n, mx.array(a, dtype=mx.float64) if a.dtype == np.float64 else a) for n, a in self.arrays()]
        self.model.load_weights(arrays)  # type: ignore[arg-type]
        return self.model.materialise()

    def changed(self) -> bool:
        """Whether the result has other values than the source: quantized, or cast to another dtype."""
        cast = any(tensor.dtype != self.dtypes[name] for name, tensor in self.tensors.items())
        return cast or bool(self.config.get("quantization"))

    def parameters(self) -> int:
        """How many weights the model has (a quantized layer counts what it stands for)."""
        return sum(t.size for name, t in self.tensors.items() if not name.endswith((".scales", ".biases")))

    def nbytes(self) -> int:
        return sum(int(np.prod(shape)) * itemsize(dtype) for shape, dtype in self.layout().values())

    def describe(self) -> str:
        """One line for every tensor of the source: where it goes, in which shape and dtype, or why it is dropped."""
        lines = []
        for name, tensor in self.tensors.items():
            path, _, leaf = name.rpartition(".")
            what = f"{list(tensor.shape)} {self.dtypes[name]}"
            if leaf == "weight" and path in self.quantized:
                chosen = self.quantized[path]
                what += f" → {chosen['bits']} bits {chosen['mode']}, groups of {chosen['group_size']}"
            lines.append(f"{' + '.join(tensor.sources) or '(computed)'} → {name} {what}")
        lines += [f"{name} → dropped: {reason}" for name, reason in self.dropped.items()]
        return "\n".join(lines)


def require(config: dict[str, Any], what: str, **ported: Any) -> None:
    """Raises `ConfigError` where `config` says something else than the only values that were ported."""
    odd = [f"{key}={brief(config[key])}" for key, value in ported.items() if config.get(key, value) != value]
    if odd:
        raise ConfigError(f"{what} with {', '.join(odd)}, which is not supported")


def recognise(source: Source) -> str:
    """The one family whose weights these are, told by configuration and tensor names. Raises `UnknownFamily`."""
    if source.config.get("format_version") is not None:
        family = str(source.config.get("model_type"))
        if family not in models.FAMILIES or source.config["format_version"] != checkpoint.FORMAT_VERSION:
            raise UnknownFamily(f"converted, but of unknown type or version {brief(family)}: a newer one may know it")
        return family
    found = [family for family in models.FAMILIES if converter(family).recognise(source)]
    if len(found) == 1:
        return found[0]
    what = f"could be {' or '.join(found)}" if found else "a model of no known family"
    raise UnknownFamily(f"{what} (saw {source.seen()}); known are {', '.join(models.FAMILIES)}")


def converter(family: str) -> Any:
    """The file in convert/ that knows the family's sources."""
    return importlib.import_module(f"mlx_speech.convert.families.{family}")


def plan(source: Source, options: Options, language: str | None = None) -> Plan:
    """Plan the conversion of `source`. Raises `SourceError` or `OptionError`."""
    family = recognise(source)
    if language is not None and family != "wav2vec2":
        raise OptionError(f"language={language}: only wav2vec2 models have languages to choose from, not {family}")
    ours = source.config.get("format_version") is not None
    if ours:  # every tensor keeps its name
        checkpoint.check_language(source.config, language)
        companions = getattr(converter(family), "COMPANIONS", ())
        recipe = Recipe(source.config, source.tensors, {}, "", mlx_layout=True, companions=companions)
    else:
        recipe = converter(family).recipe(source, language)
    module = models.module(family)
    model: BaseModel = module.Model(module.ModelArgs.from_dict({**recipe.config, "model_type": family}))
    model.eval()
    tensors, dropped, unknown = rename(recipe.tensors, recipe.table) if recipe.table else (recipe.tensors, {}, [])
    tensors = dequantized(tensors, source.config) if options.dequantize else tensors
    earlier = {} if options.dequantize else checkpoint.quantize_layers(model, source.config, set(tensors))
    tensors = tensors if recipe.mlx_layout else lay_out(tensors, model)
    check(tensors, model, unknown)
    if earlier and options.quantize:
        raise OptionError("quantized already: dequantize it first (dequantize=True), or leave out quantize=True")

    dtypes = {name: _dtype(name, tensor, model, options.dtype) for name, tensor in tensors.items()}
    with mx.stream(mx.cpu):  # the (uncomputed) parameters too, so that quantization shows its own; others lack float64
        model.load_weights([(name, array.astype(getattr(mx, dtypes[name]))) for name, array in model.arrays().items()])
    quantized, notes, stated = {}, [], earlier
    if options.dtype is not None and options.dtype not in dtypes.values():
        notes.append(f"{family} models are not written in {options.dtype} (small, and precision decides)")
    if options.quantize and not model.quantizable:
        notes.append(f"{family} models are not quantized (small, and precision decides); written as they are")
    elif options.quantize:
        quantized, stated = choose(model, options)
        nn.quantize(model, class_predicate=lambda path, _: quantized.get(path, False))
    # the floating dtype that most weights have
    main = max(FLOATS, key=lambda dtype: sum(t.size for name, t in tensors.items() if dtypes[name] == dtype))
    config = {**dataclasses.asdict(model.args), "model_type": family, "dtype": main}
    config["format_version"] = checkpoint.FORMAT_VERSION
    if stated:
        config["quantization"] = config["quantization_config"] = stated
    return Plan(family, source, recipe, model, tensors, dropped, dtypes, quantized, config, notes)


def rename(tensors: dict[str, Tensor], table: Table) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """Tensors under their new names, the dropped ones with the reason, and names that the table lacks."""
    keys = {key: re.compile(re.escape(key).replace(r"\{\}", r"(\d+)") + r"(\.[^.]*)?") for key in table}  # with a leaf
    result, dropped, unknown = {}, {}, []
    for name, tensor in tensors.items():
        matches = ((table[key], pattern.fullmatch(name)) for key, pattern in keys.items())
        target, match = next((pair for pair in matches if pair[1]), ("", None))
        if match is None:
            unknown.append(name)
        elif isinstance(target, Drop):
            dropped[" + ".join(tensor.sources) or name] = str(target)
        else:
            *numbers, leaf = match.groups(default="")
            result[target.format(*numbers) + leaf] = tensor
    return result, dropped, unknown


def lay_out(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Torch's layout into MLX's: the type of the target module decides, not the spelling of its name."""
    modules = dict(model.named_modules())
    result = dict(tensors)
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        owner, rank = modules.get(path), len(tensor.shape)
        if leaf == "weight" and isinstance(owner, {3: nn.Conv1d, 4: nn.Conv2d}.get(rank, ())):
            shape = (tensor.shape[0], *tensor.shape[2:], tensor.shape[1])
            result[name] = tensor.map(lambda array: np.moveaxis(array, 1, -1), shape)
        elif leaf == "weight" and isinstance(owner, nn.Linear) and tensor.shape[2:] == (1,):
            result[name] = tensor.map(lambda array: array[..., 0], tensor.shape[:2])  # a convolution of one step
    return result


def check(tensors: dict[str, Tensor], model: BaseModel, unknown: list[str]) -> None:
    """Every parameter has its tensor, of its shape and kind, and there are no others; raises, listing all that differ.

    unknown : names in the source that stand for nothing
    """
    wanted = model.arrays()
    missing = sorted(set(wanted) - set(tensors))
    extra = sorted(set(tensors) - set(wanted)) + sorted(unknown)
    present = [(name, tensors[name], array) for name, array in sorted(wanted.items()) if name in tensors]
    wrong = [f"{n} {list(t.shape)} for {list(a.shape)}" for n, t, a in present if t.shape != tuple(a.shape)]
    odd = [f"{n} {t.dtype}" for n, t, a in present if (t.dtype in FLOATS) != mx.issubdtype(a.dtype, mx.floating)]
    found = {"missing": missing, "unexpected": extra, "of the wrong shape": wrong, "of the wrong type": odd}
    said = [f"{len(names)} tensors {what}: {shorten(names)}" for what, names in found.items() if names]
    if said:
        raise WeightsMismatch("; ".join(said))


def dequantized(tensors: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """Quantized layers back as plain weights. Raises `OptionError` where nothing is quantized."""
    layers = checkpoint.quantized_layers(config, set(tensors))
    if not layers:
        raise OptionError("nothing here is quantized: leave out dequantize=True")
    result = dict(tensors)
    for path, parameters in layers.items():
        parts = [result.pop(f"{path}.{leaf}") for leaf in ("weight", "scales", "biases") if f"{path}.{leaf}" in result]
        packed, scales = parts[:2]
        ranks = [len(part.shape) for part in parts]
        if ranks != [2] * (3 if parameters["mode"] == "affine" else 2) or packed.dtype != "uint32":
            raise WeightsMismatch(f"{path}: not the parts of a quantized layer")
        shape = (packed.shape[0], packed.shape[1] * 32 // parameters["bits"])
        if (shape[0], shape[1] // parameters["group_size"]) != scales.shape or shape[1] % parameters["group_size"]:
            raise WeightsMismatch(f"{path}: quantized otherwise than config.json says")
        dtype = scales.dtype if scales.dtype in FLOATS else "float32"

        def raw(parts: list[Tensor] = parts, parameters: dict[str, Any] = parameters, dtype: str = dtype) -> np.ndarray:
            packed: list[Any] = [part.mlx() for part in parts]
            array = mx.dequantize(*packed, **parameters).astype(getattr(mx, dtype))
            return np.array(array.view(mx.uint16) if dtype == "bfloat16" else array)

        result[f"{path}.weight"] = Tensor(shape, dtype, raw, tuple(name for part in parts for name in part.sources))
    return result


def _dtype(name: str, tensor: Tensor, model: BaseModel, asked: str | None) -> str:
    if tensor.dtype not in FLOATS or tensor.dtype == "float64" or asked is None:
        return tensor.dtype
    return asked if model.cast_predicate(name) else "float32"
