"""What all families share: arguments read from a configuration, and the hooks of a model."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_speech.errors import ConfigError, brief

if TYPE_CHECKING:
    from pathlib import Path

# No speech model comes near these; a configuration beyond them is broken or hostile and must not be built.
MAX_SIZE = 1 << 20
MAX_LAYERS = 512
IDENTITY_DIGITS = 16  # hexadecimal; enough to tell the weights that anybody has from each other

Args = TypeVar("Args", bound="BaseModelArgs")
Self = TypeVar("Self", bound="BaseModel")
Limits: TypeAlias = typing.Mapping[str, int]  # of a field: its metadata


def layers(default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that counts layers (bounded by `MAX_LAYERS`)."""
    return dataclasses.field(default=default, metadata={"max": MAX_LAYERS})


def positive(default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field of a size that must be at least one."""
    return dataclasses.field(default=default, metadata={"min": 1})


def above_zero(default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field of a duration or the like, greater than zero."""
    return dataclasses.field(default=default, metadata={"above": 0})


@dataclass
class BaseModelArgs:
    """Arguments of a model, from the keys of its configuration; unknown keys are ignored, as mlx_lm does."""

    @classmethod
    def from_dict(cls: type[Args], config: dict[str, Any]) -> Args:
        """Read the arguments from a `config.json`.

        Raises `ConfigError` naming every value that is missing, of the wrong type, or absurd.
        """
        hints = typing.get_type_hints(cls)
        values: dict[str, Any] = {}
        problems: list[str] = []
        for field in dataclasses.fields(cls):
            if field.name in config:
                values[field.name] = config[field.name]
                problem = _problem(config[field.name], hints[field.name], field.metadata)
                if problem is not None:
                    problems.append(f"{field.name} {problem}")
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                problems.append(f"{field.name} is missing")
        if not problems:
            args = cls(**values)
            problems = args.conflicts()
            if not problems:
                return args
        family = cls.__module__.rpartition(".")[2]
        raise ConfigError(f"config.json of a {family} model: {'; '.join(problems)}: fetch it again")

    def conflicts(self) -> list[str]:
        """What is wrong with values that are sound each by itself; a family with such rules overrides it."""
        return []


def _problem(value: Any, hint: Any, limits: Limits) -> str | None:
    """What is wrong with the value of a field of type `hint`, or None."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is list:
        return _problem_of_list(value, arguments[0], limits)
    if type(None) in arguments:  # X | None
        return None if value is None else _problem(value, arguments[0], limits)
    if hint is float:
        return _problem_of_float(value, limits)
    if hint is int:
        return _problem_of_int(value, limits)
    if hint in (str, bool, dict) and not isinstance(value, hint):
        return f"is {brief(value)}, not {hint.__name__}"
    return None


def _problem_of_list(value: Any, hint: Any, limits: Limits) -> str | None:
    """The same of a list whose elements are of type `hint` and have the limits of the field."""
    if not isinstance(value, list):
        return f"is {brief(value)}, not a list"
    if len(value) > limits.get("length", MAX_SIZE):
        return f"has {len(value)} entries"
    for item in value:
        problem = _problem(item, hint, limits)
        if problem is not None:
            return problem
    return None


def _problem_of_float(value: Any, limits: Limits) -> str | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not abs(value) <= MAX_SIZE:  # NaN too
        return f"is {brief(value)}, not a sound number"
    if value <= limits.get("above", -math.inf):
        return f"is {value}, not above {limits['above']}"
    return None


def _problem_of_int(value: Any, limits: Limits) -> str | None:
    if not isinstance(value, int) or isinstance(value, bool):
        return f"is {brief(value)}, not a whole number"
    low = limits.get("min", 0)
    high = limits.get("max", MAX_SIZE)
    if not low <= value <= high:
        return f"is {brief(value)}, not within {low} to {high}"
    return None


class BaseModel(nn.Module):
    """A model of any family. What a family may quantize and cast is said by the two predicates."""

    quantizable = False
    args: Any
    folder: Path | None = None  # where `load` found it, and what lies beside the weights
    origin: str | None = None  # a digest, in hexadecimal, of the files that it was converted from, where they are known

    @property
    def identity(self) -> str:
        """Tells these weights from others, whatever their dtype: family and digest, "wespeaker:0123456789abcdef".

        The digest is that of the original's files or, where nobody has said what they were, of the arrays.
        """
        if self.origin is None:
            digest = hashlib.sha256()
            for name, array in sorted(self.arrays().items()):
                digest.update(f"{name} {array.shape}".encode())
                digest.update(np.array(array.astype(mx.float32)).tobytes())
            self.origin = digest.hexdigest()
        family = type(self).__module__.rpartition(".")[2]
        return f"{family}:{self.origin[:IDENTITY_DIGITS]}"

    def arrays(self) -> dict[str, mx.array]:
        """Every parameter by its dotted name."""
        return dict(tree_flatten(self.parameters()))  # type: ignore[arg-type]

    def quant_predicate(self, path: str, module: nn.Module) -> bool:
        """Whether the layer at `path` may be quantized."""
        return False

    def quant_recipe(self, path: str) -> str:
        """The part a layer plays in a mixed recipe: "low" (robust, most of the weights) or "high" (sensitive)."""
        return "low"

    def cast_predicate(self, path: str) -> bool:
        """Whether the parameter at `path` may leave float32 when a smaller dtype is asked for."""
        return True

    def materialise(self: Self) -> Self:
        """Evaluate every array, private ones too: in MLX a lazy array can only be used by the thread that made it."""
        arrays = []
        for module in self.modules():
            arrays += [value for value in module.values() if isinstance(value, mx.array)]
        mx.eval(arrays)
        return self


class SpeakerEmbedding(BaseModel):
    """A model that gives each voice of a recording a vector; the voices of one speaker have vectors that are alike.

    `args` of such a family have `embedding_size` and `sample_rate`.
    """

    def embed(self, waveforms: mx.array, masks: np.ndarray | None = None) -> mx.array:
        """waveforms (batch, samples) in -1..1 → (batch, embedding), not normalised

        masks : (batch, speakers, mask_frames) of 0 and 1, from the first sample to the last: the frames in which each
            speaker is to be heard; the result is (batch, speakers, embedding) then. Further waveforms without masks may
            follow. What a speaker with too few frames gets differs by family, and may be NaN.
        """
        raise NotImplementedError
