"""Word and character error rates, and which word was heard for which. jiwer counts.

Texts are compared as a whole, as jiwer's own functions do; the errors are then given to the reference's segments: an
added word to that of the word before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mlx_speech.errors import MissingDependency
from mlx_speech.evaluation.bootstrap import Rate
from mlx_speech.evaluation.normalisers import INSTALL, Normaliser
from mlx_speech.transcript import Segment

if TYPE_CHECKING:
    from jiwer.process import AlignmentChunk


class Edit(NamedTuple):
    """What became of a word: the places of the one that was said and of the one that was heard; None where there is
    none."""

    said: int | None
    heard: int | None


@dataclass(frozen=True)
class WordErrors:
    """Errors of words or characters, by kind, and by reference segment as a `Rate`."""

    rate: Rate
    total: int
    substitutions: int
    deletions: int
    insertions: int


@dataclass(frozen=True)
class Spoken:
    """Words as they are compared, each with the segment that it is of. segment_of_word : (words,)"""

    words: tuple[str, ...]
    segment_of_word: tuple[int, ...]
    segments: int


def spoken(segments: Sequence[Segment], normalise: Normaliser) -> Spoken:
    """The words of segments, normalised as one text: a number may be written across two of them."""
    words = normalise(" ".join(segment.text for segment in segments)).split()
    own_words: list[str] = []  # segment by segment
    owners: list[int] = []
    for index, segment in enumerate(segments):
        own = normalise(segment.text).split()
        own_words += own
        owners += [index] * len(own)
    if own_words != words:
        owners = _carried_over(owners, own_words, words)
    return Spoken(tuple(words), tuple(owners), max(1, len(segments)))


def _carried_over(owners: Sequence[int], own_words: Sequence[str], words: Sequence[str]) -> list[int]:
    """The segments of `words`, given those of nearly the same words."""
    carried: list[int] = []
    owner = owners[0] if owners else 0
    for edit in word_edits(own_words, words):
        if edit.said is not None:
            owner = owners[edit.said]
        if edit.heard is not None:
            carried.append(owner)
    return carried


def word_edits(said: Sequence[str], heard: Sequence[str]) -> list[Edit]:
    """The alignment of two lists of words with the fewest errors, in order. Raises `MissingDependency`."""
    try:
        import jiwer
    except ImportError as error:
        raise MissingDependency(f"no scores ({error}): {INSTALL}") from error
    found = jiwer.process_words(" ".join(said), " ".join(heard))
    return list(_edits_of(found.alignments[0]))


def character_edits(said: str, heard: str) -> list[Edit]:
    """As `word_edits`, of the characters of two texts; spaces count. Raises `MissingDependency`."""
    try:
        import jiwer
    except ImportError as error:
        raise MissingDependency(f"no scores ({error}): {INSTALL}") from error
    return list(_edits_of(jiwer.process_characters(said, heard).alignments[0]))


def _edits_of(chunks: Iterable[AlignmentChunk]) -> Iterator[Edit]:
    for chunk in chunks:
        said = range(chunk.ref_start_idx, chunk.ref_end_idx)
        heard = range(chunk.hyp_start_idx, chunk.hyp_end_idx)
        for offset in range(max(len(said), len(heard))):
            yield Edit(
                said=said[offset] if offset < len(said) else None,
                heard=heard[offset] if offset < len(heard) else None,
            )


def errors_of_words(said: Spoken, heard: Sequence[str]) -> WordErrors:
    """Errors of words. Raises `MissingDependency`."""
    edits = word_edits(said.words, heard)
    return count_errors(edits, said.words, heard, said.segment_of_word, said.segments)


def errors_of_characters(said: Spoken, heard: Sequence[str]) -> WordErrors:
    """Errors of characters, the spaces between words among them. Raises `MissingDependency`."""
    said_text = " ".join(said.words)
    heard_text = " ".join(heard)
    owners: list[int] = []
    for word, owner in zip(said.words, said.segment_of_word, strict=True):
        owners += [owner] * (len(word) + 1)
    edits = character_edits(said_text, heard_text)
    return count_errors(edits, said_text, heard_text, owners, said.segments)


def count_errors(
    edits: Iterable[Edit], said: Sequence[str], heard: Sequence[str], owners: Sequence[int], units: int
) -> WordErrors:
    """Errors of an alignment. owners : the unit of everything that was said; units : how many there are"""
    errors = np.zeros(units)
    totals = np.zeros(units)
    kinds = {"substitutions": 0, "deletions": 0, "insertions": 0}
    unit = owners[0] if owners else 0
    for edit in edits:
        if edit.said is not None:
            unit = owners[edit.said]
            totals[unit] += 1
        kind = _kind_of(edit, said, heard)
        if kind is not None:
            errors[unit] += 1
            kinds[kind] += 1
    return WordErrors(Rate(errors, totals), int(totals.sum()), **kinds)


def _kind_of(edit: Edit, said: Sequence[str], heard: Sequence[str]) -> str | None:
    """None of what was heard rightly."""
    if edit.said is None:
        return "insertions"
    if edit.heard is None:
        return "deletions"
    return "substitutions" if said[edit.said] != heard[edit.heard] else None


# --- to be read -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AlignedSegment:
    """A segment of the reference, and what was heard for its words.

    words : (said, heard), in order; None where there was none
    """

    start: float
    end: float
    speaker: str | None
    words: tuple[tuple[str | None, str | None], ...]

    @property
    def errors(self) -> int:
        """How many words differ."""
        return sum(said != heard for said, heard in self.words)


def aligned_segments(segments: Sequence[Segment], said: Spoken, heard: Sequence[str]) -> list[AlignedSegment]:
    """The alignment of a recording by the reference's segments. said : the words of `segments`"""
    edits = word_edits(said.words, heard)
    starts = [0]  # of segments, among the edits; what is added before the first word stands with it
    for place, edit in enumerate(edits):
        if edit.said and said.segment_of_word[edit.said] != said.segment_of_word[edit.said - 1]:
            starts.append(place)
    rows: list[AlignedSegment] = []
    for start, end in pairwise([*starts, len(edits)]):
        row = edits[start:end]
        words: list[tuple[str | None, str | None]] = []
        owners: list[int] = []
        for edit in row:
            if edit.said is not None:
                owners.append(said.segment_of_word[edit.said])
            said_word = None if edit.said is None else said.words[edit.said]
            heard_word = None if edit.heard is None else heard[edit.heard]
            words.append((said_word, heard_word))
        if owners:
            segment = segments[owners[0]]
            rows.append(AlignedSegment(segment.start, segment.end, segment.speaker, tuple(words)))
        elif words:  # nothing was said at all
            rows.append(AlignedSegment(0.0, 0.0, None, tuple(words)))
    return rows
