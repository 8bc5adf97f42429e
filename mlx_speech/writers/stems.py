"""The names of the files that results are written to."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from os import PathLike
from pathlib import Path


def unique_stems(sources: Sequence[str | PathLike[str]]) -> list[str]:
    """For each source the name of its results, without extension; no two alike, even where case does not count.

    Usually the stem, "stdin" for "-". Of sources with the same stem each gets its extension too ("meeting-mp3"), and,
    where that is not enough, a number ("meeting-mp3-2").
    """
    paths = [Path("stdin" if source == "-" else source) for source in sources]
    stems = [path.stem or "audio" for path in paths]
    counts = Counter(_folded(stem) for stem in stems)
    taken = {folded for folded, count in counts.items() if count == 1}
    names: list[str] = []
    for path, stem in zip(paths, stems, strict=True):
        if counts[_folded(stem)] == 1:
            names.append(stem)
            continue
        name = _free_name(stem, path.suffix, taken)
        taken.add(_folded(name))
        names.append(name)
    return names


def _free_name(stem: str, suffix: str, taken: set[str]) -> str:
    """The stem with its extension, and with a number where that is taken. taken : names as `_folded` gives them"""
    base = f"{stem}-{suffix[1:]}" if suffix else stem
    name = base
    number = 1
    while _folded(name) in taken:
        number += 1
        name = f"{base}-{number}"
    return name


def _folded(name: str) -> str:
    """What a file system that ignores case, and how letters are composed, tells names apart by."""
    composed = unicodedata.normalize("NFC", name)
    return unicodedata.normalize("NFC", composed.casefold())
