"""The five steps of a port, once for all families: recognise, read, fold and rename, lay out, check. Then arrays flow.

A family's file says whether weights are its own, and what to make of them (`families.Converter`). Everything else is
here. Nothing is read while a conversion is planned; `Plan.arrays` reads, casts and quantizes one tensor after another.
"""

from __future__ import annotations

from mlx_speech import backend as backend  # isort: skip  (before MLX)

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_speech import checkpoint, models
from mlx_speech.convert.families import converter
from mlx_speech.convert.quantize import Dtype, LayerQuantization, Options, choose
from mlx_speech.convert.read import Source
from mlx_speech.convert.recipe import Drop, Recipe, Table
from mlx_speech.errors import OptionError, UnknownFamily, WeightsMismatch, brief, shorten
from mlx_speech.models.base import BaseModel
from mlx_speech.tensors import FLOATS, Layout, Tensor, itemsize


@dataclass
class Plan:
    """A conversion that is ready to run: every tensor of the result and where it comes from. Nothing is read yet.

    family : one of `models.FAMILIES`
    model : of the right shapes and dtypes, quantized where the result is, its arrays never computed
    tensors : name in the result → tensor, before casting and quantization
    dropped : name in the source → why it is left out
    dtypes : name in the result → dtype before quantization
    quantized : paths of the layers to be quantized now → their parameters
    config : config.json of the result, without where it comes from
    notes : what the user should know, a line each
    """

    family: str
    source: Source
    recipe: Recipe
    model: BaseModel
    tensors: dict[str, Tensor]
    dropped: dict[str, str]
    dtypes: dict[str, str]
    quantized: dict[str, LayerQuantization]
    config: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def layout(self) -> Layout:
        """Name → shape and dtype of every array of the result, sorted by name."""
        layout: Layout = {}
        for name, array in sorted(self.model.arrays().items()):
            layout[name] = (tuple(array.shape), str(array.dtype).rpartition(".")[2])
        return layout

    def arrays(self) -> Iterator[tuple[str, mx.array | np.ndarray]]:
        """Read, cast and quantize one tensor after the other; every array comes evaluated."""
        for name, tensor in self.tensors.items():
            path, _, leaf = name.rpartition(".")
            is_quantized = leaf == "weight" and path in self.quantized
            if not is_quantized and "bfloat16" not in (tensor.dtype, self.dtypes[name]):
                # NumPy casts where the values lie, without a copy; and GPUs have no float64
                with np.errstate(over="ignore"):
                    yield name, tensor.raw().astype(self.dtypes[name], copy=False)
                continue
            array = tensor.mlx().astype(getattr(mx, self.dtypes[name]))
            if is_quantized:
                yield from _quantized(path, array, self.quantized[path])
            else:
                mx.eval(array)
                yield name, array

    def build(self) -> BaseModel:
        """The converted model itself, in memory, evaluated."""
        arrays: list[tuple[str, mx.array]] = []
        for name, array in self.arrays():
            if isinstance(array, np.ndarray):
                array = mx.array(array, dtype=getattr(mx, self.dtypes[name]))
            arrays.append((name, array))
        self.model.load_weights(arrays)
        return self.model.materialise()

    def changed(self) -> bool:
        """Whether the result has other values than the source: quantized, or cast to another dtype."""
        cast = any(tensor.dtype != self.dtypes[name] for name, tensor in self.tensors.items())
        return cast or bool(self.config.get("quantization"))

    def parameters(self) -> int:
        """How many weights the model has (a quantized layer counts what it stands for)."""
        packed = checkpoint.quantized_layers(self.config, set(self.tensors))
        total = 0
        for name, tensor in self.tensors.items():
            path, _, leaf = name.rpartition(".")
            if path in packed and leaf == "weight":
                total += tensor.size * 32 // packed[path]["bits"]  # numbers of some bits, in words of 32
            elif leaf not in ("scales", "biases"):
                total += tensor.size
        return total

    def nbytes(self) -> int:
        """Bytes of all arrays of the result."""
        return sum(int(np.prod(shape)) * itemsize(dtype) for shape, dtype in self.layout().values())

    def describe(self) -> str:
        """One line for every tensor of the source: where it goes, in which shape and dtype, or why it is dropped."""
        lines = []
        for name, tensor in self.tensors.items():
            path, _, leaf = name.rpartition(".")
            line = f"{' + '.join(tensor.sources) or '(computed)'} → {name} {list(tensor.shape)} {self.dtypes[name]}"
            if leaf == "weight" and path in self.quantized:
                chosen = self.quantized[path]
                line += f" → {chosen['bits']} bits {chosen['mode']}, groups of {chosen['group_size']}"
            lines.append(line)
        for name, reason in self.dropped.items():
            lines.append(f"{name} → dropped: {reason}")
        return "\n".join(lines)


def _quantized(path: str, weight: mx.array, how: LayerQuantization) -> Iterator[tuple[str, mx.array]]:
    """The arrays of a quantized layer: packed weights, scales and, in affine mode, biases."""
    parts = mx.quantize(weight, **how)
    mx.eval(parts)
    yield from zip((f"{path}.weight", f"{path}.scales", f"{path}.biases"), parts, strict=False)


def recognise(source: Source) -> str:
    """The one family whose weights these are, told by configuration and tensor names. Raises `UnknownFamily`."""
    if source.converted:
        family = str(source.config.get("model_type"))
        if family not in models.FAMILIES or source.config["format_version"] != checkpoint.FORMAT_VERSION:
            raise UnknownFamily(f"converted, but of unknown type or version {brief(family)}: a newer one may know it")
        return family
    families = [family for family in models.FAMILIES if converter(family).recognise(source)]
    if len(families) == 1:
        return families[0]
    verdict = f"could be {' or '.join(families)}" if families else "a model of no known family"
    raise UnknownFamily(f"{verdict} (saw {source.seen()}); known are {', '.join(models.FAMILIES)}")


def plan(source: Source, options: Options, language: str | None = None) -> Plan:
    """Plan the conversion of `source`. Raises `SourceError` or `OptionError`."""
    family = recognise(source)
    _check_language(source, family, language)
    recipe = _recipe(source, family, language)
    architecture = models.module(family)
    model = architecture.Model(architecture.ModelArgs.from_dict({**recipe.config, "model_type": family}))
    model.eval()

    renamed = rename(recipe.tensors, recipe.table) if recipe.table else Renamed(dict(recipe.tensors))
    tensors = renamed.tensors
    quantization: dict[str, Any] = {}
    if options.dequantize:
        tensors = dequantized(tensors, source.config)
    else:
        quantization = checkpoint.quantize_layers(model, source.config, set(tensors))
    if not recipe.mlx_layout:
        tensors = lay_out(tensors, model)
    check(tensors, model, renamed.unknown)
    if quantization and options.quantize:
        raise OptionError("quantized already: dequantize it first (dequantize=True), or leave out quantize=True")

    dtypes = {name: _dtype(name, tensor, model, options.dtype) for name, tensor in tensors.items()}
    _cast_uncomputed(model, dtypes)
    quantized: dict[str, LayerQuantization] = {}
    notes = _notes(family, model, options, dtypes)
    if options.quantize and model.quantizable:
        quantized, quantization = choose(model, options)
        nn.quantize(model, class_predicate=lambda path, _: quantized.get(path, False))
    config = {
        **dataclasses.asdict(model.args),
        "model_type": family,
        "dtype": _main_dtype(tensors, dtypes),
    }
    config["format_version"] = checkpoint.FORMAT_VERSION
    if quantization:
        config["quantization"] = quantization
        config["quantization_config"] = quantization
    return Plan(family, source, recipe, model, tensors, renamed.dropped, dtypes, quantized, config, notes)


def _check_language(source: Source, family: str, language: str | None) -> None:
    """Raises `OptionError` where a language is given that nothing can be made of."""
    if language is None:
        return
    if not converter(family).TAKES_LANGUAGE:
        able = [name for name in models.FAMILIES if converter(name).TAKES_LANGUAGE]
        choosers = " and ".join(able)
        raise OptionError(f"language={language}: only {choosers} models have languages to choose from, not {family}")
    if source.converted:
        checkpoint.check_language(source.config, language)


def _recipe(source: Source, family: str, language: str | None) -> Recipe:
    """The family's; for a model that this package wrote, one by which every tensor keeps its name and layout."""
    if not source.converted:
        return converter(family).recipe(source, language)
    companions = tuple(converter(family).COMPANIONS)
    return Recipe(source.config, source.tensors, {}, "", mlx_layout=True, companions=companions)


def _notes(family: str, model: BaseModel, options: Options, dtypes: dict[str, str]) -> list[str]:
    """What was asked for and is not done."""
    notes = []
    if options.dtype is not None and options.dtype not in dtypes.values():
        notes.append(f"{family} models are not written in {options.dtype} (small, and precision decides)")
    if options.quantize and not model.quantizable:
        notes.append(f"{family} models are not quantized (small, and precision decides); written as they are")
    return notes


def _dtype(name: str, tensor: Tensor, model: BaseModel, asked: Dtype | None) -> str:
    """The dtype in which a tensor is written, before quantization."""
    if tensor.dtype not in FLOATS or tensor.dtype == "float64" or asked is None:
        return tensor.dtype
    return asked if model.cast_predicate(name) else "float32"


def _cast_uncomputed(model: BaseModel, dtypes: dict[str, str]) -> None:
    """Give the model's parameters, which are never computed, the dtypes of the result, so that quantization shows its
    own. On the CPU, since other devices lack float64."""
    with mx.stream(mx.cpu):
        cast = [(name, array.astype(getattr(mx, dtypes[name]))) for name, array in model.arrays().items()]
        model.load_weights(cast)


def _main_dtype(tensors: dict[str, Tensor], dtypes: dict[str, str]) -> str:
    """The floating dtype that most weights have."""
    weights: dict[str, int] = dict.fromkeys(FLOATS, 0)
    for name, tensor in tensors.items():
        if dtypes[name] in weights:
            weights[dtypes[name]] += tensor.size
    return max(FLOATS, key=weights.__getitem__)


@dataclass
class Renamed:
    """Tensors under their new names.

    dropped : name in the source → why it is left out
    unknown : names that the table lacks
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def rename(tensors: dict[str, Tensor], table: Table) -> Renamed:
    """`tensors` under the names that `table` has for them. Of several keys that cover a name, the first counts."""
    patterns = {key: _pattern(key) for key in table}
    renamed = Renamed()
    for name, tensor in tensors.items():
        for key, pattern in patterns.items():
            match = pattern.fullmatch(name)
            if match is None:
                continue
            target = table[key]
            if isinstance(target, Drop):
                renamed.dropped[" + ".join(tensor.sources) or name] = str(target)
            else:
                *numbers, leaf = match.groups(default="")
                renamed.tensors[target.format(*numbers) + leaf] = tensor
            break
        else:
            renamed.unknown.append(name)
    return renamed


def _pattern(key: str) -> re.Pattern[str]:
    """What a key of a table covers: its numbers are groups, and so is the leaf (".weight") behind it, if any."""
    return re.compile(re.escape(key).replace(r"\{\}", r"(\d+)") + r"(\.[^.]*)?")


def lay_out(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Torch's layout into MLX's: the type of the target module decides, not the spelling of its name."""
    modules = dict(model.named_modules())
    result = dict(tensors)
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        if leaf != "weight":
            continue
        owner = modules.get(path)
        rank = len(tensor.shape)
        if (isinstance(owner, nn.Conv1d) and rank == 3) or (isinstance(owner, nn.Conv2d) and rank == 4):
            shape = (tensor.shape[0], *tensor.shape[2:], tensor.shape[1])
            result[name] = tensor.map(_channels_last, shape)
        elif isinstance(owner, nn.Linear) and tensor.shape[2:] == (1,):  # a convolution of one step
            result[name] = tensor.map(_without_step, tensor.shape[:2])
    return result


def _channels_last(kernel: np.ndarray) -> np.ndarray:
    return np.moveaxis(kernel, 1, -1)


def _without_step(kernel: np.ndarray) -> np.ndarray:
    return kernel[..., 0]


def check(tensors: dict[str, Tensor], model: BaseModel, unknown: list[str]) -> None:
    """Every parameter has its tensor, of its shape and kind, and there are no others.

    unknown : names in the source that stand for nothing
    Raises `WeightsMismatch`, which lists all that differ.
    """
    parameters = model.arrays()
    missing = sorted(set(parameters) - set(tensors))
    unexpected = sorted(set(tensors) - set(parameters)) + sorted(unknown)
    misshapen = []
    mistyped = []
    for name in sorted(set(parameters) & set(tensors)):
        tensor = tensors[name]
        array = parameters[name]
        if tensor.shape != tuple(array.shape):
            misshapen.append(f"{name} {list(tensor.shape)} for {list(array.shape)}")
        if (tensor.dtype in FLOATS) != mx.issubdtype(array.dtype, mx.floating):
            mistyped.append(f"{name} {tensor.dtype}")
    problems = {
        "missing": missing,
        "unexpected": unexpected,
        "of the wrong shape": misshapen,
        "of the wrong type": mistyped,
    }
    lines = [f"{len(names)} tensors {problem}: {shorten(names)}" for problem, names in problems.items() if names]
    if lines:
        raise WeightsMismatch("; ".join(lines))


def dequantized(tensors: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """Quantized layers back as plain weights. Raises `OptionError` where nothing is quantized."""
    layers = checkpoint.quantized_layers(config, set(tensors))
    if not layers:
        raise OptionError("nothing here is quantized: leave out dequantize=True")
    result = dict(tensors)
    for path, how in layers.items():
        names = [f"{path}.{leaf}" for leaf in ("weight", "scales", "biases")]
        parts = [result.pop(name) for name in names if name in result]
        result[f"{path}.weight"] = _dequantized_layer(path, parts, how)
    return result


def _dequantized_layer(path: str, parts: list[Tensor], how: LayerQuantization) -> Tensor:
    """The plain weight of the layer at `path`. parts : packed weights, scales and, in affine mode, biases"""
    count = 3 if how["mode"] == "affine" else 2
    if [len(part.shape) for part in parts] != [2] * count or parts[0].dtype != "uint32":
        raise WeightsMismatch(f"{path}: not the parts of a quantized layer")
    packed, scales = parts[:2]
    rows = packed.shape[0]
    columns = packed.shape[1] * 32 // how["bits"]
    if (rows, columns // how["group_size"]) != scales.shape or columns % how["group_size"]:
        raise WeightsMismatch(f"{path}: quantized otherwise than config.json says")
    dtype = scales.dtype if scales.dtype in FLOATS else "float32"  # the scales of mxfp4 and the like are bytes
    sources = tuple(name for part in parts for name in part.sources)
    return Tensor((rows, columns), dtype, partial(_dequantize, parts, how, dtype), sources)


def _dequantize(parts: list[Tensor], how: LayerQuantization, dtype: str) -> np.ndarray:
    arrays: list[Any] = [part.mlx() for part in parts]
    weight = mx.dequantize(*arrays, **how).astype(getattr(mx, dtype))
    return np.array(weight.view(mx.uint16) if dtype == "bfloat16" else weight)
