"""Word error rates that ask who said a word: cpWER, tcpWER and ORC-WER. meeteval counts.

    cpWER    the words of each speaker in a row, under the best assignment of speakers (Watanabe et al., 2020)
    tcpWER   the same, where a word is right only near the time at which it was said (von Neumann et al., 2023)
    ORC-WER  each segment may be in any speaker's words: who is who does not count (Sklyar et al., 2021)

Texts are normalised segment by segment, as meeteval does. Its errors are given to the reference's segments by aligning
under the assignment that it found; what a speaker says whom the reference does not have is given by its time.
"""

from __future__ import annotations

import logging
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict, cast

import numpy as np

from mlx_speech.errors import MissingDependency
from mlx_speech.evaluation.bootstrap import Rate
from mlx_speech.evaluation.normalisers import INSTALL, Normaliser
from mlx_speech.evaluation.word_errors import WordErrors, word_edits
from mlx_speech.transcript import Segment

if TYPE_CHECKING:
    from meeteval.io.seglst import SegLST, SegLstSegment
    from meeteval.wer.wer.cp import CPErrorRate
    from meeteval.wer.wer.error_rate import ErrorRate

MAX_CELLS = 100_000_000  # of the exact search for ORC-WER: about a second, 200 MB
MAX_SPEAKERS = 20  # of a side, beyond which meeteval assigns none
MAX_STREAMS = 10  # speakers who were heard, beyond which meeteval finds no ORC-WER


class Entry(TypedDict):
    """A segment in meeteval's form. unit : its place among all of its side"""

    session_id: str
    speaker: str
    start_time: float
    end_time: float
    words: str
    unit: int


@dataclass(frozen=True)
class Talk:
    """One side of a recording for meeteval. units : how many segments it has, the silent ones among them"""

    entries: tuple[Entry, ...]
    units: int

    @property
    def speakers(self) -> list[str]:
        """In the order of their first segment."""
        return list(dict.fromkeys(entry["speaker"] for entry in self.entries))

    def of_speaker(self, speaker: str | None) -> list[Entry]:
        """Their segments in the order of time; none of nobody."""
        return [entry for entry in self.entries if entry["speaker"] == speaker]

    @property
    def words(self) -> int:
        """How many."""
        return sum(len(entry["words"].split()) for entry in self.entries)


def talk(utterances: Sequence[Segment], normalise: Normaliser) -> Talk:
    """The utterances that have words, by their start."""
    entries: list[Entry] = []
    ordered = sorted(utterances, key=lambda utterance: utterance.start)
    for unit, utterance in enumerate(ordered):
        words = normalise(utterance.text)
        if words:
            speaker = utterance.speaker or ""
            entries.append(
                Entry(
                    session_id="recording",
                    speaker=speaker,
                    start_time=utterance.start,
                    end_time=utterance.end,
                    words=words,
                    unit=unit,
                )
            )
    return Talk(tuple(entries), max(1, len(utterances)))


def cpwer(said: Talk, heard: Talk) -> WordErrors:
    """Concatenated minimum-permutation word errors, where `can_be_assigned`. Raises `MissingDependency`."""
    if not said.entries or not heard.entries:
        return _one_sided(said, heard)
    try:
        from meeteval.wer.wer.cp import cp_word_error_rate
    except ImportError as error:
        raise _missing(error) from error
    with _quiet():
        found = cp_word_error_rate(_seglst(said.entries), _seglst(heard.entries))
    units = _Units(said)
    for speaker, theirs in _assignment(found):
        units.add(said.of_speaker(speaker), heard.of_speaker(theirs))
    return _errors(found, units)


def tcpwer(said: Talk, heard: Talk, collar: float) -> WordErrors:
    """Time-constrained cpWER, where `can_be_assigned`.

    collar : seconds by which a word may be off; words of a segment share its time by their length, as on meeteval's
        command line

    Raises `MissingDependency`.
    """
    if not said.entries or not heard.entries:
        return _one_sided(said, heard)
    try:
        from meeteval.wer.wer.time_constrained import align, tcp_word_error_rate
    except ImportError as error:
        raise _missing(error) from error
    units = _Units(said)
    with _quiet():
        found = tcp_word_error_rate(_seglst(said.entries), _seglst(heard.entries), collar=collar)
        for speaker, theirs in _assignment(found):
            ours = said.of_speaker(speaker)
            others = heard.of_speaker(theirs)
            if ours and others:
                units.add_aligned(align(_seglst(ours), _seglst(others), collar=collar, style="seglst"))
            else:
                units.add(ours, others)
    return _errors(found, units)


def orcwer(said: Talk, heard: Talk) -> WordErrors:
    """Optimal reference combination word errors, where `can_be_searched`; by meeteval's greedy search where the exact
    one would take too long (`is_searched_whole`). Raises `MissingDependency`."""
    if not said.entries or not heard.entries:
        return _one_sided(said, heard)
    try:
        from meeteval.wer.wer.orc import greedy_orc_word_error_rate, orc_word_error_rate
    except ImportError as error:
        raise _missing(error) from error
    search = orc_word_error_rate if is_searched_whole(said, heard) else greedy_orc_word_error_rate
    with _quiet():
        found = search(_seglst(said.entries), _seglst(heard.entries))
    streams: dict[str, list[Entry]] = {speaker: [] for speaker in heard.speakers}
    assigned = cast("Sequence[str]", found.assignment)  # a speaker who was heard for each segment that was said
    for entry, speaker in zip(said.entries, assigned, strict=True):
        streams[speaker].append(entry)
    units = _Units(said)
    for speaker, entries in streams.items():
        units.add(entries, heard.of_speaker(speaker))
    return _errors(found, units)


def can_be_assigned(said: Talk, heard: Talk) -> bool:
    """Whether there are few enough speakers for cpWER and tcpWER."""
    return max(len(said.speakers), len(heard.speakers)) <= MAX_SPEAKERS


def can_be_searched(heard: Talk) -> bool:
    """Whether few enough speakers were heard for ORC-WER."""
    return len(heard.speakers) <= MAX_STREAMS


def is_searched_whole(said: Talk, heard: Talk) -> bool:
    """Whether ORC-WER is searched exactly: the work grows with the product of the lengths of all streams."""
    cells = said.words
    for speaker in heard.speakers:
        cells *= 1 + sum(len(entry["words"].split()) for entry in heard.of_speaker(speaker))
    return cells <= MAX_CELLS


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what meeteval says where segments of one speaker overlap: their words are then in the order of the
    segments, which is what is wanted."""
    logger = logging.getLogger("preprocess")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _one_sided(said: Talk, heard: Talk) -> WordErrors:
    """Where one side has no words."""
    units = _Units(said)
    units.add(list(said.entries), [])
    units.add([], list(heard.entries))
    return WordErrors(units.rate(), said.words, 0, said.words, heard.words)


def _missing(error: ImportError) -> MissingDependency:
    return MissingDependency(f"no word errors by speaker ({error}): {INSTALL}")


def _seglst(entries: Iterable[Entry]) -> SegLST:
    """Segments as meeteval takes them."""
    from meeteval.io.seglst import SegLST

    return SegLST(cast("list[SegLstSegment]", list(entries)))


def _assignment(found: CPErrorRate) -> Sequence[tuple[str | None, str | None]]:
    """The speakers who were said and heard, in pairs; None for nobody."""
    return cast("Sequence[tuple[str | None, str | None]]", found.assignment)


def _errors(found: ErrorRate, units: _Units) -> WordErrors:
    return WordErrors(units.rate(), found.length, found.substitutions, found.deletions, found.insertions)


class _Units:
    """Collects errors and words by segment of the reference."""

    def __init__(self, said: Talk) -> None:
        self._errors = np.zeros(said.units)
        self._totals = np.zeros(said.units)
        self._starts = [entry["start_time"] for entry in said.entries]
        self._units = [entry["unit"] for entry in said.entries]

    def rate(self) -> Rate:
        """What was collected."""
        return Rate(self._errors, self._totals)

    def add(self, said: Sequence[Entry], heard: Sequence[Entry]) -> None:
        """The words of two streams, one of which may be empty."""
        if not said:
            for entry in heard:
                self._errors[self._unit_at(entry["start_time"])] += len(entry["words"].split())
            return
        words: list[str] = []
        owners: list[int] = []
        for entry in said:
            own = entry["words"].split()
            words += own
            owners += [entry["unit"]] * len(own)
        others = [word for entry in heard for word in entry["words"].split()]
        unit = owners[0]
        for edit in word_edits(words, others):
            if edit.said is not None:
                unit = owners[edit.said]
                self._totals[unit] += 1
            if edit.said is None or edit.heard is None or words[edit.said] != others[edit.heard]:
                self._errors[unit] += 1

    def add_aligned(self, alignment: Sequence[tuple[Entry | None, Entry | None]]) -> None:
        """alignment : of words in meeteval's form, in order; words keep the unit of their segment"""
        unit = next(said["unit"] for said, _ in alignment if said is not None)
        for said, heard in alignment:
            if said is not None:
                unit = said["unit"]
                self._totals[unit] += 1
            if said is None or heard is None or said["words"] != heard["words"]:
                self._errors[unit] += 1

    def _unit_at(self, time: float) -> int:
        """The last segment of the reference that has begun; the first before it."""
        if not self._units:
            return 0
        return self._units[max(0, bisect_right(self._starts, time) - 1)]
