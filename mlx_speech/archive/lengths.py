"""How long recordings are, before anybody has opened them: by their manifest, or by their size."""

from __future__ import annotations

from pathlib import PurePosixPath

from mlx_speech.archive.items import Item

UNKNOWN = 60.0  # seconds of a recording of which nobody knows even the size
# bytes a second of the usual recordings; what is heard of an archive's own corrects it
_USUAL = {".wav": 32_000.0, ".aif": 32_000.0, ".aiff": 32_000.0, ".au": 16_000.0, ".flac": 18_000.0, ".mp4": 150_000.0}
_COMPRESSED = 12_000.0


class Lengths:
    """Seconds of sound of items, better guessed with every file that was heard."""

    def __init__(self) -> None:
        self._bytes: dict[str, int] = {}
        self._seconds: dict[str, float] = {}

    def of(self, item: Item) -> float:
        """Seconds, at least a little."""
        entry = item.entry
        if entry.duration is not None:
            return max(entry.duration, 0.01)
        if item.size is None:
            return UNKNOWN
        return max(item.size / self._rate(_suffix(item)), 0.01)

    def learn(self, item: Item, seconds: float) -> None:
        """A whole file turned out to be so long."""
        if item.entry.offset is not None or item.size is None or seconds <= 0:
            return
        suffix = _suffix(item)
        self._bytes[suffix] = self._bytes.get(suffix, 0) + item.size
        self._seconds[suffix] = self._seconds.get(suffix, 0.0) + seconds

    def _rate(self, suffix: str) -> float:
        """Bytes a second of files with this ending."""
        if suffix in self._seconds:
            return max(self._bytes[suffix] / self._seconds[suffix], 1.0)
        return _USUAL.get(suffix, _COMPRESSED)


def _suffix(item: Item) -> str:
    return PurePosixPath(item.entry.source.lower().partition("?")[0]).suffix
