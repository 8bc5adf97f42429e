"""All scores of a recording, and of several together. What does not apply is left out: without speakers on both sides
there is no cpWER, without times of words no error of them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mlx_speech.errors import MissingDependency
from mlx_speech.evaluation import speaker_words
from mlx_speech.evaluation.accounts import Account, Pair
from mlx_speech.evaluation.bootstrap import Figure, Interval, draws_recordings, interval, together
from mlx_speech.evaluation.boundaries import boundary_errors
from mlx_speech.evaluation.normalisers import INSTALL, in_characters, normaliser
from mlx_speech.evaluation.options import EvaluationOptions, NormaliserName
from mlx_speech.evaluation.speaker_errors import DiarizationErrors, SpeakerErrors, diarization_errors
from mlx_speech.evaluation.word_errors import (
    AlignedSegment,
    WordErrors,
    aligned_segments,
    errors_of_characters,
    errors_of_words,
    spoken,
)
from mlx_speech.transcript import Region

Unit = Literal["rate", "seconds"]


@dataclass(frozen=True)
class Score:
    """One figure: the lower, the better.

    name : a short one, for reading
    figure : what it is made of, by unit that can be drawn
    unit : "rate" of errors, 1 = 100 %, or "seconds"
    counts : what was counted, which may be added over recordings
    """

    name: str
    figure: Figure
    unit: Unit
    counts: Mapping[str, float]

    @property
    def value(self) -> float:
        """NaN where it is not defined, as an error rate where nothing was said."""
        return self.figure.value()

    @property
    def interval(self) -> Interval | None:
        """With 95 % confidence; None where there is too little to draw from."""
        return interval(self.figure)


Scores = dict[str, Score]  # by key, in the order in which they are shown


@dataclass(frozen=True)
class Evaluation:
    """The scores of one recording.

    alignment : what was heard for what, by segment of the reference; empty without text
    speakers : of the reference, where DER applies
    counts_characters : whether word errors are of characters, as in scripts without spaces
    language : as it was taken; None where nobody knows it, and Whisper's normaliser is the one for all languages
    """

    name: str
    scores: Scores
    alignment: tuple[AlignedSegment, ...] = ()
    speakers: tuple[SpeakerErrors, ...] = ()
    counts_characters: bool = False
    language: str | None = None
    notes: tuple[str, ...] = ()


def check_packages() -> None:
    """Raises `MissingDependency` where a package that counts is not installed: before hours of work."""
    normaliser("whisper", None, characters=False)
    for package in ("jiwer", "meeteval", "pyannote.metrics"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingDependency(f"no scores ({error}): {INSTALL}") from error


def evaluate(
    pair: Pair, options: EvaluationOptions | None = None, stretches: Sequence[Region] | None = None
) -> Evaluation:
    """The scores of a recording. stretches : what is scored (UEM), by default all of it

    Raises `MissingDependency` where a package that a score needs is not installed.
    """
    options = options or EvaluationOptions()
    heard = pair.heard if stretches is None else pair.heard.within(stretches)
    said = pair.said if stretches is None else pair.said.within(stretches)
    language = options.language or said.language or heard.language
    characters = in_characters(said.text)
    scores: Scores = {}
    notes: list[str] = []
    alignment: tuple[AlignedSegment, ...] = ()
    if said.segments is not None and heard.segments is not None:
        scores |= _text_scores(said, heard, language, characters)
        normalise = normaliser(options.normaliser, language, characters)
        words = spoken(said.segments, normalise)
        alignment = tuple(aligned_segments(said.segments, words, normalise(heard.text).split()))
        scores |= _speaker_word_scores(said, heard, options, language, characters, notes)
    speakers: tuple[SpeakerErrors, ...] = ()
    if said.turns is not None and heard.turns is not None and (said.turns or heard.turns):
        found = diarization_errors(said.turns, heard.turns, stretches, options.collar, options.skip_overlap)
        scores |= _diarization_scores(found)
        speakers = found.speakers
    if said.segments is not None and heard.segments is not None:
        scores |= _boundary_scores(said, heard)
    return Evaluation(pair.name, scores, alignment, speakers, characters, language, tuple(notes))


def _text_scores(said: Account, heard: Account, language: str | None, characters: bool) -> Scores:
    """WER and CER behind both normalisers; in scripts without spaces CER alone."""
    scores: Scores = {}
    segments = said.segments or ()
    names: tuple[tuple[NormaliserName, str], ...] = (("whisper", ""), ("plain", "_plain"))
    for name, ending in names:
        normalise = normaliser(name, language, characters)
        words = spoken(segments, normalise)
        others = normalise(heard.text).split()
        label = "" if name == "whisper" else ", plain"
        if characters:
            scores[f"cer{ending}"] = _word_score(f"CER{label}", errors_of_words(words, others))
            continue
        scores[f"wer{ending}"] = _word_score(f"WER{label}", errors_of_words(words, others))
        scores[f"cer{ending}"] = _word_score(f"CER{label}", errors_of_characters(words, others))
    order = ("wer", "wer_plain", "cer", "cer_plain")
    return {key: scores[key] for key in order if key in scores}


def _speaker_word_scores(
    said: Account,
    heard: Account,
    options: EvaluationOptions,
    language: str | None,
    characters: bool,
    notes: list[str],
) -> Scores:
    """Those that need speakers on both sides; a hypothesis without any text needs to name none."""
    if not said.names_speakers or not (heard.names_speakers or not heard.text):
        return {}
    normalise = normaliser(options.normaliser, language, characters)
    reference = speaker_words.talk(said.utterances, normalise)
    hypothesis = speaker_words.talk(heard.utterances, normalise)
    scores: Scores = {}
    can_be_assigned = speaker_words.can_be_assigned(reference, hypothesis)
    if can_be_assigned:
        scores["cpwer"] = _word_score("cpWER", speaker_words.cpwer(reference, hypothesis))
    else:
        notes.append(f"no cpWER and no tcpWER where one side has more than {speaker_words.MAX_SPEAKERS} speakers")
    if can_be_assigned and said.is_timed and (heard.is_timed or not heard.text):
        errors = speaker_words.tcpwer(reference, hypothesis, options.word_collar)
        scores["tcpwer"] = _word_score("tcpWER", errors)
    if not speaker_words.can_be_searched(hypothesis):
        notes.append(f"no ORC-WER where more than {speaker_words.MAX_STREAMS} speakers were heard")
        return scores
    scores["orcwer"] = _word_score("ORC-WER", speaker_words.orcwer(reference, hypothesis))
    if not speaker_words.is_searched_whole(reference, hypothesis):
        notes.append("ORC-WER by meeteval's greedy search: the exact one would take too long")
    return scores


def _word_score(name: str, errors: WordErrors) -> Score:
    counts = {
        "substitutions": errors.substitutions,
        "deletions": errors.deletions,
        "insertions": errors.insertions,
        "total": errors.total,
    }
    return Score(name, errors.rate, "rate", counts)


def _diarization_scores(found: DiarizationErrors) -> Scores:
    seconds = {
        "missed": found.missed,
        "false_alarm": found.false_alarm,
        "confusion": found.confusion,
        "total": found.total,
    }
    return {
        "der": Score("DER", found.der, "rate", seconds),
        "jer": Score("JER", found.jer, "rate", {"speakers": len(found.speakers)}),
        "jer_framed": Score("JER, dscore's frames", found.framed_jer, "rate", {"speakers": len(found.speakers)}),
    }


def _boundary_scores(said: Account, heard: Account) -> Scores:
    found = boundary_errors(said.segments or (), heard.segments or ())
    if found is None:
        return {}
    counts = {"words": found.words}
    return {
        "boundary": Score("word boundaries, median error", found.distances, "seconds", counts),
        "late_starts": Score("word starts more than 50 ms off", found.late_starts, "rate", counts),
    }


def summed(evaluations: Sequence[Evaluation]) -> Scores:
    """The scores of recordings together: errors of all by what was said in all, of those that a score applies to."""
    keys: dict[str, None] = {}
    for evaluation in evaluations:
        keys |= dict.fromkeys(evaluation.scores)
    scores: Scores = {}
    for key in keys:
        found = [evaluation.scores[key] for evaluation in evaluations if key in evaluation.scores]
        counts: dict[str, float] = {}
        for score in found:
            for kind, number in score.counts.items():
                counts[kind] = counts.get(kind, 0) + number
        figure = together([score.figure for score in found])
        scores[key] = Score(found[0].name, figure, found[0].unit, counts)
    return scores


def drawn_unit(recordings: int) -> str:
    """What the intervals of so many recordings together are drawn from, in words."""
    return f"{recordings} recordings" if draws_recordings(recordings) else "reference segments"
