"""The names of the files that results are written to."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

TAG_LENGTH = 8  # hexadecimal digits that tell shortened names apart


def unique_stems(sources: Sequence[str | PathLike[str]]) -> list[str]:
    """For each source the name of its results, without extension; no two alike, even where case does not count.

    Usually the stem, "stdin" for "-". Of sources with the same stem each gets its extension too ("meeting-mp3"), and,
    where that is not enough, a number ("meeting-mp3-2").
    """
    paths = [Path("stdin" if source == "-" else source) for source in sources]
    stems = [path.stem or "audio" for path in paths]
    counts = Counter(folded(stem) for stem in stems)
    taken = {folded for folded, count in counts.items() if count == 1}
    names: list[str] = []
    for path, stem in zip(paths, stems, strict=True):
        if counts[folded(stem)] == 1:
            names.append(stem)
            continue
        name = _free_name(stem, path.suffix, taken)
        taken.add(folded(name))
        names.append(name)
    return names


def _free_name(stem: str, suffix: str, taken: set[str]) -> str:
    """The stem with its extension, and with a number where that is taken. taken : names as `folded` gives them"""
    base = f"{stem}-{suffix[1:]}" if suffix else stem
    name = base
    number = 1
    while folded(name) in taken:
        number += 1
        name = f"{base}-{number}"
    return name


def folded(name: str) -> str:
    """What a file system that ignores case, and how letters are composed, tells names apart by."""
    composed = unicodedata.normalize("NFC", name)
    return unicodedata.normalize("NFC", composed.casefold())


def shortened(name: str, room: int) -> str:
    """A name of at most `room` bytes: of a longer one what fits, and a part of its SHA-256, to tell them apart."""
    data = os.fsencode(name)
    if len(data) <= room:
        return name
    tag = hashlib.sha256(data).hexdigest()[:TAG_LENGTH]
    # as the name of a file it may hold bytes that are no text; a letter that is cut in two is left out
    kept = data[: max(room - TAG_LENGTH - 1, 0)].decode("utf-8", "ignore")
    return f"{kept}-{tag}"
