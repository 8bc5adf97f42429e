"""Segments with words → sentences, by punctuation, letter case and pauses.

WhisperX cuts at the sentences that NLTK's Punkt finds in each segment. Here nothing is downloaded, a sentence may go on
in the next segment, and where a full stop is ambiguous ("U.S. Army", "3. Oktober") the pause behind it decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from mlx_speech.languages import is_torn, unspaced
from mlx_speech.package_data import table
from mlx_speech.transcript import Segment, Word, space_between

MAX_GAP = 1.0  # seconds between segments of one sentence
PAUSE = 0.25  # seconds behind a full stop that may belong to an abbreviation, from which it ends the sentence
MAX_DURATION = 30.0  # seconds; a longer sentence is cut at its longest pause
LEAST_WEIGHT = 1e-6  # of a word in a mean, in seconds, so that words of no length count alike

_TERMINAL = ".!?…。！？｡．‼⁇⁈⁉؟۔।॥։።፧။។៕།"
_GREEK_TERMINAL = _TERMINAL + ";\u037e"  # its question mark is a semicolon
_CLOSING = "\"'”’»›)]}」』）】》〉〕｣＂"
_OPENING = "\"'“‘„‚«‹([{¿¡「『（【《〈〔｢—–-"
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")  # "J", "U.S", without the last full stop
LONGEST_ORDINAL = 2  # digits: "31. Oktober"; behind a longer number a sentence ends

# abbreviations in small letters, without their last full stop
_ABBREVIATIONS = table("abbreviations")
_TITLES: dict[str, list[str]] = _ABBREVIATIONS["titles"]  # code → those that never end a sentence
_SOMETIMES_LAST = frozenset(_ABBREVIATIONS["sometimes_last"])  # of any language: a sentence may end behind these
_BEFORE_NUMBERS = frozenset(_ABBREVIATIONS["before_numbers"])  # ends a sentence, but where a number follows
_ORDINAL_POINTS = frozenset(_ABBREVIATIONS["ordinal_points"])  # languages that write "3. Oktober"


@dataclass(frozen=True)
class _Piece:
    """A word, the text that stands before and behind it up to the next one, and the segment it comes from."""

    word: Word
    before: str
    behind: str
    segment: Segment


def split_sentences(segments: Sequence[Segment], language: str) -> tuple[Segment, ...]:
    """The segments as sentences, made of their words.

    segments : in order, with words; one without any stays as it is
    language : code, of segments that do not say their own

    A sentence goes on in the next segment where that has the same language and speaker and follows within `MAX_GAP`.
    Its times are those of its words, its `avg_logprob` and the like means over them; it has no tokens.
    """
    sentences: list[Segment] = []
    for run in _runs(segments):
        if not run[0].words:
            sentences += run
            continue
        code = run[0].language or language
        pieces = _pieces(run)
        cased = any(_first_letter(piece.word.text).isupper() for piece in pieces)
        start = 0
        for stop in range(1, len(pieces) + 1):
            if stop == len(pieces) or _ends(pieces[start:stop], pieces[stop], code, cased):
                sentences += [_sentence(part) for part in _short(pieces[start:stop])]
                start = stop
    return tuple(sentences)


def _runs(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Segments that may share sentences; none do where there is no punctuation at all."""
    run: list[Segment] = []
    for segment in segments:
        if run and not _continues(run[-1], segment):
            yield from _punctuated(run)
            run = []
        run.append(segment)
    yield from _punctuated(run)


def _continues(last: Segment, segment: Segment) -> bool:
    """Whether a sentence may go on from one segment to the next."""
    if not last.words or not segment.words:
        return False
    if last.language != segment.language or last.speaker != segment.speaker:
        return False
    before = last.words[-1]
    after = segment.words[0]
    return before.speaker == after.speaker and after.start - before.end <= MAX_GAP


def _punctuated(run: list[Segment]) -> list[list[Segment]]:
    """The run, or its segments one by one where it has no punctuation."""
    if any(set(_TERMINAL) & set(segment.text) for segment in run):
        return [run]
    return [[segment] for segment in run]


def _pieces(run: list[Segment]) -> list[_Piece]:
    """The words of segments with the text around them as these have it."""
    pieces: list[_Piece] = []
    last_text = ""  # of the segment before
    for segment in run:
        text, spans = segment.placed()
        before = " " if segment.spaced and not pieces else space_between(last_text, segment)
        place = 0
        for word, (start, end) in zip(segment.words, spans, strict=True):
            behind = ""
            if word is segment.words[-1] and end == spans[-1][1]:
                behind = text[end:]
            pieces.append(_Piece(word, before + text[place:start], behind, segment))
            before = ""
            place = end
        last_text = text
    return pieces


def _first_letter(word: str) -> str:
    """Behind quotes and brackets; "" where there is none."""
    return word.lstrip(_OPENING)[:1]


def _ends(pieces: list[_Piece], next_piece: _Piece, language: str, cased: bool) -> bool:
    """Whether a sentence is over behind these words.

    cased : whether words of this text begin with capitals at all
    """
    last = pieces[-1]
    following = next_piece.word
    touches = not last.behind + next_piece.before
    if touches and is_torn(last.word.text, following.text):
        return False  # the point in "3.5"
    if not following.text.strip(_CLOSING + _TERMINAL):  # « Oui. »
        return False
    core = last.word.text.rstrip(_CLOSING)
    if not core and len(pieces) > 1:  # a closing mark alone
        core = pieces[-2].word.text.rstrip(_CLOSING)
    terminal = _GREEK_TERMINAL if language == "el" else _TERMINAL
    if not core or core[-1] not in terminal:
        return False
    if cased and _first_letter(following.text).islower():
        return False
    is_full_stop = core[-1] == "." and not core.endswith("..") and not unspaced(core[-2:-1])
    if not is_full_stop:
        return True
    name = core[:-1].lstrip(_OPENING)
    if _belongs_to_abbreviation(name, following.text, language):
        return False
    if name.isdecimal() and len(pieces) == 1:  # the number of a list's item
        return False
    if _may_belong_to_abbreviation(name, language):
        return following.start - last.word.end >= PAUSE
    return True


def _belongs_to_abbreviation(name: str, following: str, language: str) -> bool:
    """Whether the full stop behind a word never ends a sentence. name : the word without it"""
    known = name.lower()
    # English for a language that has none: what is said in it may be translated, or be English.
    titles = _TITLES.get(language, _TITLES["en"])
    if known in titles:
        return True
    return known in _BEFORE_NUMBERS and _first_letter(following).isdecimal()


def _may_belong_to_abbreviation(name: str, language: str) -> bool:
    """Whether the full stop behind a word may be that of initials, an abbreviation or an ordinal number."""
    if _INITIALS.fullmatch(name) or name.lower() in _SOMETIMES_LAST:
        return True
    return name.isdecimal() and len(name) <= LONGEST_ORDINAL and language in _ORDINAL_POINTS


def _short(pieces: list[_Piece]) -> list[list[_Piece]]:
    """Cut at the longest pause, of equals that nearest the middle, until nothing is longer than `MAX_DURATION`."""
    parts: list[list[_Piece]] = []
    waiting = [pieces]
    while waiting:
        part = waiting.pop()
        if len(part) < 2 or part[-1].word.end - part[0].word.start <= MAX_DURATION:
            parts.append(part)
            continue
        cut = _longest_pause(part)
        waiting.append(part[cut:])
        waiting.append(part[:cut])
    return parts


def _longest_pause(pieces: list[_Piece]) -> int:
    """The piece before which it is; of equals, that nearest the middle."""
    pauses = [round(after.word.start - before.word.end, 3) for before, after in pairwise(pieces)]

    def rank(k: int) -> tuple[float, int]:
        return pauses[k - 1], -abs(2 * k - len(pieces))

    return max(range(1, len(pieces)), key=rank)


def _sentence(pieces: list[_Piece]) -> Segment:
    """The pieces as a segment; its figures are means over theirs, weighed by the duration of the words."""
    words = tuple(piece.word for piece in pieces)
    text = "".join(piece.before + piece.word.text + piece.behind for piece in pieces)
    weights = np.array([word.duration for word in words]) + LEAST_WEIGHT

    def mean(values: list[float]) -> float:
        return float(np.average(values, weights=weights))

    return replace(
        pieces[0].segment,
        start=words[0].start,
        end=words[-1].end,
        text=text.strip(),
        words=words,
        tokens=(),
        token_logprobs=(),
        spaced=pieces[0].before[:1].isspace(),
        temperature=mean([piece.segment.temperature for piece in pieces]),
        avg_logprob=mean([piece.segment.avg_logprob for piece in pieces]),
        compression_ratio=mean([piece.segment.compression_ratio for piece in pieces]),
        no_speech_prob=mean([piece.segment.no_speech_prob for piece in pieces]),
    )
