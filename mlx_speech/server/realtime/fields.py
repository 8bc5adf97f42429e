"""Checked access to what clients send as JSON. Errors name the field, and are answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NoReturn, TypeVar, cast

from mlx_speech.errors import brief
from mlx_speech.server.errors import ApiError

MOST_TEXTS = 1_000  # in a list
USUAL_LENGTH = 200  # characters of a text

Choice = TypeVar("Choice", bound=str)


def parsed(text: str) -> object:
    """JSON → as Python has it. Raises `ApiError` 400 for what is none, NaN and depths beyond Python's included."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "invalid_json", "this is not JSON: send one object") from error


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


class Fields:
    """An object of a client's message. content : as `json.loads` gives it; null is an empty one

    All methods raise `ApiError` 400, naming the field.
    """

    def __init__(self, content: object, place: str) -> None:
        self._place = place
        if content is None:
            content = {}
        if not isinstance(content, Mapping):
            raise ApiError(400, "invalid_type", f"{place} is {brief(content)}: give an object", place)
        self._content = cast("Mapping[str, object]", content)

    def allow(self, *names: str) -> None:
        """Check that there is nothing else."""
        for name in self._content:
            if name not in names:
                advice = f"choose from {', '.join(names)}"
                raise ApiError(400, "unknown_parameter", f"{self._place} has no {brief(name)}: {advice}", self._place)

    def has(self, name: str) -> bool:
        """Whether it is named, null included."""
        return name in self._content

    def value(self, name: str) -> object:
        """As it is; None where it is missing."""
        return self._content.get(name)

    def inner(self, name: str) -> Fields:
        """An object in it; an empty one where it is missing."""
        return Fields(self._content.get(name), f"{self._place}.{name}")

    def choice(self, name: str, choices: Sequence[Choice], default: Choice) -> Choice:
        """One of `choices`."""
        value = self._content.get(name)
        if value is None:
            return default
        for choice in choices:
            if value == choice:
                return choice
        raise self.wrong(name, value, f"choose from {', '.join(choices)}")

    def number(self, name: str, low: float, high: float, default: float) -> float:
        """A number within bounds."""
        value = self._content.get(name)
        if value is None:
            return default
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            raise self.wrong(name, value, f"give a number from {low:g} to {high:g}")
        return float(value)

    def integer(self, name: str, low: int, high: int, default: int) -> int:
        """A whole number within bounds."""
        value = self.number(name, low, high, default)
        if value != int(value):
            raise self.wrong(name, value, "give a whole number")
        return int(value)

    def text(self, name: str, longest: int = USUAL_LENGTH) -> str | None:
        """Text of so many characters; None where it is missing."""
        value = self._content.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or len(value) > longest or not _is_unicode(value):
            raise self.wrong(name, value, f"give text of at most {longest} characters")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of short texts; none where it is missing."""
        value = self._content.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or len(value) > MOST_TEXTS:
            raise self.wrong(name, value, f"give a list of at most {MOST_TEXTS} texts")
        for index in range(len(value)):
            Fields({name: value[index]}, self._place).text(name)
            if value[index] is None:
                raise self.wrong(name, value, "give a list of texts")
        return tuple(value)

    def wrong(self, name: str, value: object, advice: str) -> ApiError:
        """An error that names the field."""
        place = f"{self._place}.{name}"
        return ApiError(400, "invalid_value", f"{place} is {brief(value)}: {advice}", place)


def _is_unicode(text: str) -> bool:
    """Whether it can be written down: JSON may hold halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
