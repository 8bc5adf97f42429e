"""What all families share: arguments read from a configuration, and the hooks of a model."""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_speech.errors import ConfigError, brief

if TYPE_CHECKING:
    from pathlib import Path

# No speech model comes near these; a configuration beyond them is broken or hostile and must not be built.
MAX_SIZE = 1 << 20
MAX_LAYERS = 512

Args = TypeVar("Args", bound="BaseModelArgs")
Self = TypeVar("Self", bound="BaseModel")


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
        """Raises `ConfigError` naming every value that is missing, of the wrong type, or absurd."""
        hints, fields, wrong = typing.get_type_hints(cls), dataclasses.fields(cls), []
        values = {field.name: config[field.name] for field in fields if field.name in config}
        for field in fields:
            if field.name in values:
                problem = _problem(values[field.name], hints[field.name], field.metadata)
                wrong += [f"{field.name} {problem}"] if problem else []
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                wrong.append(f"{field.name} is missing")
        args = None if wrong else cls(**values)
        wrong = args.conflicts() if args is not None else wrong
        if args is None or wrong:
            family = cls.__module__.rpartition(".")[2]
            raise ConfigError(f"config.json of a {family} model: {'; '.join(wrong)}: fetch it again")
        return args

    def conflicts(self) -> list[str]:
        """What is wrong with values that are sound each by itself; a family with such rules overrides it."""
        return []


def _problem(value: Any, hint: Any, limits: typing.Mapping[str, int]) -> str | None:
    """What is wrong with `value`, or None. Lists are checked element by element."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        if not isinstance(value, list):
            return f"is {brief(value)}, not a list"
        if len(value) > limits.get("length", MAX_SIZE):
            return f"has {len(value)} entries"
        found = (_problem(item, arguments[0], limits) for item in value)
        return next((problem for problem in found if problem), None)
    if origin is not None and type(None) in arguments:  # X | None
        return None if value is None else _problem(value, arguments[0], limits)
    if hint is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not abs(value) <= MAX_SIZE:  # NaN too
            return f"is {brief(value)}, not a sound number"
        return None if value > limits.get("above", -math.inf) else f"is {value}, not above {limits['above']}"
    if hint is int:
        if not isinstance(value, int) or isinstance(value, bool):
            return f"is {brief(value)}, not a whole number"
        low, high = limits.get("min", 0), limits.get("max", MAX_SIZE)
        return None if low <= value <= high else f"is {brief(value)}, not within {low} to {high}"
    if hint in (str, bool, dict):
        return None if isinstance(value, hint) else f"is {brief(value)}, not {hint.__name__}"
    return None


class BaseModel(nn.Module):
    """A model of any family. What a family may quantize and cast is said by the two predicates."""

    quantizable = False
    args: Any
    folder: Path | None = None  # where `load` found it, and what lies beside the weights

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
        mx.eval([value for module in self.modules() for value in module.values() if isinstance(value, mx.array)])
        return self
