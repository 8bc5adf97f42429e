"""Utterances on disk: one file of samples, memory-mapped, and one of words, times and speakers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from demo import RATE, WORK

PEAK = 0.5
MARGIN = 0.05  # seconds kept around the speech
# espeak-ng's names in all accents used, "_" for silence
PHONES: tuple[str, ...] = tuple(
    "_ ; 0 3 3: @ @- @L A: A@ D E I I# I2 IR N O2 O: O@ S T U U@ V VR a a# aI aI2 aI3 aI@ aU aa b d dZ e@ eI f g h i "
    "i: i@ i@3 j k l m n o@ oU p r s t t# tS t[ u: v w w# z".split()
)


@dataclass(frozen=True)
class Utterance:
    """A sentence, its sound and its times.

    samples : (n,) float32 at 16 kHz, clean, its peak at 0.5, at most 50 ms of silence at both ends
    words : lower case; starts, ends : (words,) in seconds
    exact : (words,) False where the synthesizer gave two words one event
    phones : (p,) index into PHONES, phone_starts : (p,) in seconds; both empty for synthesizers that do not tell
    speaker : name of the identity that speaks
    """

    samples: np.ndarray
    words: tuple[str, ...]
    starts: np.ndarray
    ends: np.ndarray
    exact: np.ndarray
    phones: np.ndarray
    phone_starts: np.ndarray
    speaker: str

    @property
    def duration(self) -> float:
        return self.samples.size / RATE


def finished(
    samples: np.ndarray,
    words: Iterable[str],
    starts: np.ndarray,
    ends: np.ndarray,
    exact: np.ndarray,
    phones: Iterable[tuple[float, str]],
    speaker: str,
) -> Utterance:
    """An utterance out of what a synthesizer gave: silence cut from its ends, and from its times; its peak at 0.5."""
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    first = max(0, min(loud[0], int(starts[0] * RATE)) - int(MARGIN * RATE))
    last = min(samples.size, max(loud[-1], int(ends[-1] * RATE)) + int(MARGIN * RATE))
    samples = samples[first:last] * (PEAK / np.abs(samples).max())
    shift, limit = first / RATE, (last - first) / RATE
    known = [(time, PHONES.index(name)) for time, name in phones if name in PHONES]
    times = np.array([time for time, _ in known], np.float32)
    return Utterance(
        samples=samples.astype(np.float32),
        words=tuple(words),
        starts=np.clip(starts - shift, 0, limit).astype(np.float32),
        ends=np.clip(ends - shift, 0, limit).astype(np.float32),
        exact=exact,
        phones=np.array([number for _, number in known], np.uint8),
        phone_starts=np.clip(times - shift, 0, limit).astype(np.float32),
        speaker=speaker,
    )


class Corpus:
    """Utterances by number. `durations` : (utterances,) seconds; `speakers` : a name for each; `digest` : of all."""

    def __init__(self, folder: Path) -> None:
        with np.load(folder / "index.npz") as index:
            self._index = {name: index[name] for name in index.files}
        self._audio = np.memmap(folder / "audio.i16", np.int16, mode="r")
        self._words = str(self._index["words"]).split(" ")
        self.speakers: list[str] = str(self._index["speakers"]).split("\n")
        self.durations: np.ndarray = np.diff(self._index["samples"]) / RATE
        self.digest = str(self._index["digest"])

    @classmethod
    def open(cls, name: str) -> Corpus:
        """Raises `FileNotFoundError` where `python -m demo` has not made it yet."""
        return cls(WORK / "corpus" / name)

    def __len__(self) -> int:
        return len(self.speakers)

    def words(self, i: int) -> tuple[str, ...]:
        first, last = self._index["word_counts"][i : i + 2]
        return tuple(self._words[first:last])

    def __getitem__(self, i: int) -> Utterance:
        index = self._index
        (a, b), (w, x), (p, q) = (index[name][i : i + 2] for name in ("samples", "word_counts", "phone_counts"))
        return Utterance(
            samples=self._audio[a:b].astype(np.float32) / 32768,
            words=tuple(self._words[w:x]),
            starts=index["starts"][w:x],
            ends=index["ends"][w:x],
            exact=index["exact"][w:x],
            phones=index["phones"][p:q],
            phone_starts=index["phone_starts"][p:q],
            speaker=self.speakers[i],
        )

    @staticmethod
    def write(name: str, utterances: Iterable[Utterance]) -> None:
        """The index is written last: a corpus without one is not there."""
        folder = WORK / "corpus" / name
        folder.mkdir(parents=True, exist_ok=True)
        done: list[Utterance] = []
        digest = hashlib.sha256()
        with (folder / "audio.i16").open("wb") as file:
            for utterance in utterances:
                data = np.clip(np.round(utterance.samples * 32768), -32768, 32767).astype(np.int16).tobytes()
                file.write(data)
                digest.update(data)
                done.append(Utterance(**{**vars(utterance), "samples": np.zeros(len(data) // 2, np.int8)}))

        def offsets(counts: Iterable[int]) -> np.ndarray:
            return np.cumsum([0, *counts])

        def joined(field: str) -> np.ndarray:
            return np.concatenate([getattr(utterance, field) for utterance in done])

        np.savez(
            folder / "index.npz",
            samples=offsets(utterance.samples.size for utterance in done),
            word_counts=offsets(len(utterance.words) for utterance in done),
            phone_counts=offsets(utterance.phones.size for utterance in done),
            words=" ".join(word for utterance in done for word in utterance.words),
            speakers="\n".join(utterance.speaker for utterance in done),
            digest=digest.hexdigest(),
            **{field: joined(field) for field in ("starts", "ends", "exact", "phones", "phone_starts")},
        )
