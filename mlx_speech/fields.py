"""Fields of option dataclasses. What is to say of an option is said with its field, and read from there by all others.

    @dataclass(frozen=True)
    class Example:
        beam_size: int | None = option(None, "beams at temperature 0", unset="greedy", low=1, high=100)

        def __post_init__(self) -> None:
            check(self)

`check` validates the values by type, choices and range; the command line makes its flags and their help of
`options_of`. Choices are the `Literal` of a field's type. Nothing here imports MLX or NumPy: help has to be quick.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, Union

from mlx_speech.errors import OptionError, brief, in_range

Value = TypeVar("Value")
_METADATA = "mlx_speech"  # the key of a field's metadata that holds its `About`
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "True or False", type(None): "None"}


@dataclass(frozen=True)
class About:
    """What is said of an option beside its name, type and default.

    help : what it does; a name in backquotes is another option
    unset : what happens where the value is None, or empty
    low, high : the range of numbers, bounds included; no range where `low` is None
    advice : what a message says to do, where the one made of type and range would not do
    read : turns other spellings into the type of the field, given the name and the value; raises `OptionError`
    accepts : the type with those spellings, by default the field's own
    """

    help: str
    unset: str | None = None
    low: float | None = None
    high: float = math.inf
    advice: str | None = None
    read: Callable[[str, Any], Any] | None = None
    accepts: Any = None


def option(
    default: Value,
    help: str,
    *,
    unset: str | None = None,
    low: float | None = None,
    high: float = math.inf,
    advice: str | None = None,
    read: Callable[[str, Any], Any] | None = None,
    accepts: Any = None,
) -> Value:
    """A field of a dataclass that is an option; arguments as of `About`."""
    about = About(help, unset, low, high, advice, read, accepts)
    return dataclasses.field(default=default, metadata={_METADATA: about})


@dataclass(frozen=True)
class Option:
    """An option as a dataclass declares it.

    hint : the type of its field, resolved
    kinds : the types in it, of `Literal` none; choices : the values of its `Literal`
    """

    name: str
    hint: Any
    default: Any
    about: About

    @property
    def accepts(self) -> Any:
        """The type of the values that it may be given."""
        return self.hint if self.about.accepts is None else self.about.accepts

    @property
    def kinds(self) -> tuple[type, ...]:
        members = [member for member in _members(self.hint) if typing.get_origin(member) is not Literal]
        return tuple(typing.get_origin(member) or member for member in members)

    @property
    def _element(self) -> Callable[[Any], float]:
        """What makes a number an element of the field's tuple: int or float."""
        for member in _members(self.hint):
            if typing.get_origin(member) is tuple:
                return typing.get_args(member)[0]
        raise TypeError(f"{self.name} is no tuple")

    @property
    def choices(self) -> tuple[str, ...]:
        for member in _members(self.hint):
            if typing.get_origin(member) is Literal:
                return typing.get_args(member)
        return ()

    @property
    def optional(self) -> bool:
        """Whether it may be None."""
        return type(None) in self.kinds

    def checked(self, value: Any) -> Any:
        """`value` as the field holds it. Raises `OptionError` where its type, choice or range is another one."""
        value = _plain(value)
        if self.about.read is not None:
            value = self.about.read(self.name, value)
        value = self._typed(value)
        self._check_range(value)
        return value

    def _typed(self, value: Any) -> Any:
        if isinstance(value, str) and value in self.choices:
            return value
        if value is None and self.optional:
            return None
        if isinstance(value, bool):  # Python takes True for 1
            if bool in self.kinds:
                return value
        elif int in self.kinds and isinstance(value, Integral):
            return int(value)
        elif float in self.kinds and isinstance(value, Real):
            return float(value)
        elif str in self.kinds and isinstance(value, str):
            return value
        elif tuple in self.kinds and isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)):
            numbers = [_plain(number) for number in value]
            if all(isinstance(number, Real) and not isinstance(number, bool) for number in numbers):
                return tuple(self._element(number) for number in numbers)
        raise OptionError(f"{self.name} is {brief(value)}: {self._advice()}")

    def _check_range(self, value: Any) -> None:
        if self.about.low is None:
            return
        numbers = value if isinstance(value, tuple) else (value,)
        for number in numbers:
            if isinstance(number, str):
                continue
            try:
                in_range(self.about.low, self.about.high, **{self.name: number})
            except OptionError as error:
                if self.about.advice is None:
                    raise
                raise OptionError(f"{self.name} is {number}: {self.about.advice}") from error

    def _advice(self) -> str:
        if self.about.advice is not None:
            return self.about.advice
        if self.choices:
            choices = [*self.choices, "None"] if self.optional else self.choices
            return f"choose from {', '.join(choices)}"
        return f"give {' or '.join(_WORDS[kind] for kind in self.kinds)}"


def options_of(declared: Any) -> dict[str, Option]:
    """The options that a dataclass, or an instance of it, declares: name → option, in their order."""
    kind = declared if isinstance(declared, type) else type(declared)
    hints = typing.get_type_hints(kind)
    options: dict[str, Option] = {}
    for field in dataclasses.fields(kind):
        if _METADATA in field.metadata:
            options[field.name] = Option(field.name, hints[field.name], field.default, field.metadata[_METADATA])
    return options


def check(options: Any) -> None:
    """Check the options of a frozen dataclass and put each into the type of its field: for `__post_init__`.

    NumPy's numbers are numbers; text and bool are none. Raises `OptionError`, one line that names the option.
    """
    for name, declared in options_of(options).items():
        object.__setattr__(options, name, declared.checked(getattr(options, name)))


def _members(hint: Any) -> tuple[Any, ...]:
    """The types that a union is of; another type alone."""
    is_union = typing.get_origin(hint) in (Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _plain(value: Any) -> Any:
    """Python's number for one of NumPy or of an array without dimensions."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    return value
