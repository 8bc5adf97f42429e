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
from mlx_speech.transcript import Segment, Word, space_between

MAX_GAP = 1.0  # seconds between segments of one sentence
PAUSE = 0.25  # seconds behind a full stop that may belong to an abbreviation, from which it ends the sentence
MAX_DURATION = 30.0  # seconds; a longer sentence is cut at its longest pause

_TERMINAL = ".!?…。！？｡．‼⁇⁈⁉؟۔।॥։።፧။។៕།"
_CLOSING = "\"'”’»›)]}」』）】》〉〕｣＂"
_OPENING = "\"'“‘„‚«‹([{¿¡「『（【《〈〔｢—–-"
# without their last full stop: these never end a sentence
_TITLES: str = (
    "en mr mrs ms dr prof st mt gen col sgt capt lt rev hon gov sen rep vs e.g i.e cf approx dept"
    "|de hr fr dr prof z.b d.h u.a v.a bzw ca st evtl ggf inkl vgl sog|fr m mm mme mlle dr p.ex cf env"
    "|es sr sra srta dr dra d ud uds p.ej|it sig sig.ra dott dr prof avv ing p.es|pt sr sra dr dra prof p.ex"
    "|nl dhr mevr dr drs prof ir bijv d.w.z o.a m.n t.a.v|sv t.ex bl.a dvs d.v.s s.k f.d ca dr prof"
    "|da f.eks bl.a dvs ca dr hr fr|no f.eks bl.a dvs ca dr|fi esim ns mm dr|pl np m.in tzn tj dr prof ul"
    "|cs např tj mj dr ing mgr|ru т.е т.к т.н г ул им проф"
)
_SOMETIMES = ("etc", "jr", "sr", "inc", "ltd", "co", "corp", "usw", "usf", "osv", "m.m", "atd", "itd")  # these may
_BEFORE_NUMBERS = ("no", "nos", "nr", "fig", "vol", "p", "pp", "art", "ch", "sec")  # these do, but for a number behind
_ORDINALS = frozenset({"de", "da", "no", "nn", "fi", "cs", "sk", "pl", "hu", "hr", "sl", "sr", "et", "lv", "tr", "is"})


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
        code, start = run[0].language or language, 0
        pieces = _pieces(run)
        cased = any(piece.word.text.lstrip(_OPENING)[:1].isupper() for piece in pieces)
        for k in range(len(pieces)):
            if k + 1 == len(pieces) or _ends(pieces[start : k + 1], pieces[k + 1], code, cased):
                sentences += [_sentence(part) for part in _short(pieces[start : k + 1])]
                start = k + 1
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
    if not last.words or not segment.words or last.language != segment.language or last.speaker != segment.speaker:
        return False
    before, after = last.words[-1], segment.words[0]
    return before.speaker == after.speaker and after.start - before.end <= MAX_GAP


def _punctuated(run: list[Segment]) -> list[list[Segment]]:
    return [run] if any(set(_TERMINAL) & set(segment.text) for segment in run) else [[segment] for segment in run]


def _pieces(run: list[Segment]) -> list[_Piece]:
    """The words of segments with the text around them as these have it."""
    pieces: list[_Piece] = []
    last_text = ""  # of the segment before
    for segment in run:
        text, spans = segment.placed()
        before = " " if segment.spaced and not pieces else space_between(last_text, segment)
        place = 0
        for word, (start, end) in zip(segment.words, spans, strict=True):
            behind = text[end:] if end == spans[-1][1] and word is segment.words[-1] else ""
            pieces.append(_Piece(word, before + text[place:start], behind, segment))
            before, place = "", end
        last_text = text
    return pieces


def _ends(pieces: list[_Piece], next_piece: _Piece, language: str, cased: bool) -> bool:
    """Whether a sentence is over behind these words.

    cased : whether words of this text begin with capitals at all
    """
    following = next_piece.word
    if not pieces[-1].behind + next_piece.before and is_torn(pieces[-1].word.text, following.text):
        return False  # the point in "3.5"
    if not following.text.strip(_CLOSING + _TERMINAL):  # « Oui. »
        return False
    *before, core = (piece.word.text.rstrip(_CLOSING) for piece in pieces[-2:])
    core = core or "".join(before)
    if not core or core[-1] not in _TERMINAL + (";\u037e" if language == "el" else ""):
        return False
    start = following.text.lstrip(_OPENING)[:1]
    if cased and start.islower():
        return False
    if core[-1] != "." or core.endswith("..") or unspaced(core[-2:-1]):
        return True
    name = core[:-1].lstrip(_OPENING)
    known = name.lower()
    titles = _titles(language)
    if known in titles or (known in _BEFORE_NUMBERS and start.isdecimal()):
        return False
    if name.isdecimal() and len(pieces) == 1:  # the number of a list's item
        return False
    initials = re.fullmatch(r"(?:[^\W\d_]\.)*[^\W\d_]", name) is not None
    if initials or known in _SOMETIMES or (name.isdecimal() and len(name) <= 2 and language in _ORDINALS):
        return following.start - pieces[-1].word.end >= PAUSE
    return True


def _titles(language: str) -> list[str]:
    """Those of English for a language that has none: what is said in it may be translated, or be English."""
    titles = dict(entry.split(" ", 1) for entry in _TITLES.split("|"))
    return titles.get(language, titles["en"]).split()


def _short(pieces: list[_Piece]) -> list[list[_Piece]]:
    """Cut at the longest pause, of equals that nearest the middle, until nothing is longer than `MAX_DURATION`."""
    parts, waiting = [], [pieces]
    while waiting:
        part = waiting.pop()
        if len(part) < 2 or part[-1].word.end - part[0].word.start <= MAX_DURATION:
            parts.append(part)
            continue
        pauses = [round(after.word.start - before.word.end, 3) for before, after in pairwise(part)]
        cut = max(range(1, len(part)), key=lambda k: (pauses[k - 1], -abs(2 * k - len(part))))
        waiting += [part[cut:], part[:cut]]
    return parts


def _sentence(pieces: list[_Piece]) -> Segment:
    words = tuple(piece.word for piece in pieces)
    text = "".join(piece.before + piece.word.text + piece.behind for piece in pieces).strip()
    weights = np.array([piece.word.duration for piece in pieces]) + 1e-6  # words of no length count alike

    def mean(name: str) -> float:
        return float(np.average([getattr(piece.segment, name) for piece in pieces], weights=weights))

    means = {name: mean(name) for name in ("temperature", "avg_logprob", "compression_ratio", "no_speech_prob")}
    first = pieces[0].segment
    spaced = pieces[0].before[:1].isspace()
    times = {"start": words[0].start, "end": words[-1].end}
    return replace(first, **times, text=text, words=words, tokens=(), spaced=spaced, **means)
