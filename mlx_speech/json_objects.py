"""Values as JSON has them, and checked access to the objects of a document that somebody else may have written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

from mlx_speech.errors import CorruptFile, brief

MAX_SHOWN_KEY = 40  # characters that a message has of a key


def to_plain(value: Any) -> Any:
    """`value` in the types of JSON: objects for dataclasses and mappings, lists for tuples, Python's own numbers."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Mapping):
        return {str(name): to_plain(entry) for name, entry in value.items()}
    if isinstance(value, Sequence):
        return [to_plain(entry) for entry in value]
    return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}


class JsonObject:
    """An object of a JSON document. A key whose value is null counts as missing; unknown keys are not looked at.

    content : as `json.loads` gives it
    place : of the object in the document, for messages ("segments[3]"); "" for the document itself

    All methods raise `CorruptFile`, in one line that names the place, where a value is missing or of another type.
    """

    def __init__(self, content: object, place: str = "") -> None:
        if not isinstance(content, Mapping):
            raise CorruptFile(f"{place or 'the document'} is {brief(content)}: expected a JSON object")
        self._content: Mapping[str, object] = content
        self._place = place

    def has(self, name: str) -> bool:
        """Whether the object has a value for this key."""
        return self._content.get(name) is not None

    def value(self, name: str) -> object:
        """What the object has for this key, of any type; None where it is missing."""
        return self._content.get(name)

    def text(self, name: str, default: str | None = None) -> str:
        """A string; `default` where it is missing."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self._unexpected(name, value, "text")
        return value

    def optional_text(self, name: str) -> str | None:
        """A string, or None where it is missing."""
        if not self.has(name):
            return None
        return self.text(name)

    def number(self, name: str, default: float | None = None) -> float:
        """A number; `default` where it is missing."""
        return _to_float(self._value(name, default), self._path(name))

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or false; `default` where it is missing."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self._unexpected(name, value, "true or false")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers; none where it is missing."""
        path = self._path(name)
        return tuple(_to_float(value, path) for value in self._list(name))

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers; none where it is missing."""
        integers: list[int] = []
        for value in self._list(name):
            if not isinstance(value, int) or isinstance(value, bool):
                raise self._unexpected(name, value, "whole numbers")
            integers.append(value)
        return tuple(integers)

    def entry(self, name: str) -> JsonObject:
        """An object; an empty one where it is missing."""
        return JsonObject(self._value(name, {}), self._path(name))

    def entries(self, name: str) -> list[JsonObject]:
        """A list of objects; none where it is missing."""
        path = self._path(name)
        return [JsonObject(value, f"{path}[{index}]") for index, value in enumerate(self._list(name))]

    def names(self) -> list[str]:
        """The keys, in the order of the document."""
        for name in self._content:
            if not isinstance(name, str):
                raise CorruptFile(f"{self._place or 'the document'} has the key {brief(name)}: expected text")
        return list(self._content)

    def _value(self, name: str, default: Any) -> Any:
        """What the object has for this key, or else the default. Raises where both are missing."""
        value = self._content.get(name)
        if value is not None:
            return value
        if default is None:
            raise CorruptFile(f"{self._path(name)} is missing")
        return default

    def _list(self, name: str) -> Sequence[object]:
        value = self._value(name, [])
        if not isinstance(value, (list, tuple)):
            raise self._unexpected(name, value, "a list")
        return value

    def _path(self, name: str) -> str:
        """Where in the document the value of a key is. A key may be anything, also long or of several lines."""
        shown = name if name.isidentifier() and len(name) <= MAX_SHOWN_KEY else brief(name)
        if not self._place:
            return shown
        return f"{self._place}.{shown}"

    def _unexpected(self, name: str, value: object, expected: str) -> CorruptFile:
        return CorruptFile(f"{self._path(name)} is {brief(value)}: expected {expected}")


def _to_float(value: object, path: str) -> float:
    """A number of JSON as a float. path : of the number in the document. Raises `CorruptFile`."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise CorruptFile(f"{path} is {brief(value)}: expected a number")
    try:
        return float(value)
    except OverflowError as error:
        raise CorruptFile(f"{path} is {brief(value)}: too large a number") from error
