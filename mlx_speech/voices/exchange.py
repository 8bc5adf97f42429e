"""Enrolments as one JSON document, to carry them elsewhere; the kept sound stays where it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

import numpy as np

from mlx_speech.errors import CorruptFile, OptionError, brief
from mlx_speech.json_objects import JsonObject
from mlx_speech.voices.enrolments import Enrolment

FORMAT = "mlx_speech speakers"
FORMAT_VERSION = 1


def to_json(enrolments: Iterable[Enrolment]) -> str:
    """Names, vectors, models, seconds and days as JSON; `from_dict` reads it."""
    speakers: dict[str, list[dict[str, Any]]] = {}
    for enrolment in enrolments:
        entry = {
            "model": enrolment.model,
            "seconds": enrolment.seconds,
            "day": enrolment.day.isoformat(),
            "vector": enrolment.vector.tolist(),
        }
        speakers.setdefault(enrolment.name, []).append(entry)
    entries = [{"name": name, "enrolments": found} for name, found in speakers.items()]
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, "speakers": entries}
    return json.dumps(content, ensure_ascii=False) + "\n"


def from_dict(content: Mapping[str, Any]) -> list[Enrolment]:
    """The enrolments of such a document, as `json.loads` gives it. Raises `CorruptFile` for anything else."""
    document = JsonObject(content)
    if document.optional_text("format") != FORMAT:
        raise CorruptFile("is no export of speakers: give a file that mlx_speech speakers export wrote")
    version = document.number("format_version")
    if version != FORMAT_VERSION:
        raise CorruptFile(f"format_version is {version:g} and not {FORMAT_VERSION}: update mlx_speech to read it")
    enrolments: list[Enrolment] = []
    sizes: dict[str, int] = {}  # of vectors, by model
    for speaker in document.entries("speakers"):
        for entry in speaker.entries("enrolments"):
            enrolment = _read(speaker.text("name"), entry)
            size = sizes.setdefault(enrolment.model, enrolment.vector.size)
            if enrolment.vector.size != size:
                raise CorruptFile(f"vectors of {brief(enrolment.model)} differ in length: export them again")
            enrolments.append(enrolment)
    return enrolments


def _read(name: str, entry: JsonObject) -> Enrolment:
    day = entry.text("day")
    try:
        return Enrolment(
            name=name,
            vector=np.array(entry.numbers("vector")),
            seconds=entry.number("seconds"),
            model=entry.text("model"),
            day=date.fromisoformat(day),
        )
    except OptionError as error:
        raise CorruptFile(str(error)) from error
    except ValueError as error:
        raise CorruptFile(f"day is {brief(day)}: expected a date such as 2026-01-31") from error
