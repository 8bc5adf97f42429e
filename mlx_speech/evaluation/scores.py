"""How good transcripts are, beside what was said: words, their times and their speakers.

Counted by jiwer and pyannote.metrics (the `demo` extra), which are imported when they are needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mlx_speech.checkpoint import read_json
from mlx_speech.errors import MissingDependency, SourceError
from mlx_speech.transcript import Diarization, Segment, Transcript, Turn, Word

NEAR = 0.05  # seconds by which the start of a word may be off


@dataclass(frozen=True)
class Scores:
    """Of all recordings together.

    wer : word error rate, without case and punctuation; where nothing was said, the number of words found
    der : diarization error rate, without a collar, overlap included
    attributed : part of the words said that were recognised, with the right speaker; 1 where nothing was said
    starts : part of the recognised words whose start is within 50 ms of the truth; 0 where there are none
    boundary : seconds, median distance of their starts and ends from the truth; infinite where there are none
    """

    wer: float
    der: float
    attributed: float
    starts: float
    boundary: float

    def __str__(self) -> str:
        """A line each."""
        rows = {
            "word error rate (WER)": f"{self.wer:.1%}",
            "diarization error rate (DER)": f"{self.der:.1%}",
            "words recognised, with their speaker": f"{self.attributed:.1%}",
            "word starts within 50 ms": f"{self.starts:.1%}",
            "word boundaries, median error": f"{1000 * self.boundary:.0f} ms",
        }
        return "\n".join(f"{name:38}{value:>8}" for name, value in rows.items())


def read_truth(path: Path) -> Transcript | None:
    """What was said: segments with words (`aligned` where their times are exact), and turns. None where `path` does not
    say it, whole.

    path : JSON with "duration", and lists "utterances", "words" and "turns" of objects with "start", "end", "speaker"
        and, but for turns, "text"; "exact" of a word is false where its times are guessed
    """
    try:
        said = read_json(path)
        spans = sorted(said["utterances"], key=lambda span: span["start"])
        segments = [Segment(s["start"], s["end"], s["text"], speaker=s["speaker"]) for s in spans]
        for w in said["words"]:  # of the last utterance of its speaker that has begun
            word = Word(w["start"], w["end"], w["text"], speaker=w["speaker"], aligned=w["exact"])
            middle = (word.start + word.end) / 2
            *_, k = (k for k, s in enumerate(segments) if s.speaker == word.speaker and s.start <= middle)
            segments[k] = replace(segments[k], words=(*segments[k].words, word))
        turns = tuple(Turn(turn["start"], turn["end"], turn["speaker"]) for turn in said["turns"])
        return Transcript(tuple(segments), duration=said["duration"], diarization=Diarization(turns))
    except (SourceError, KeyError, TypeError, ValueError):
        return None


def score(pairs: Iterable[tuple[Transcript, Transcript]]) -> Scores:
    """pairs : what was found in a recording, and what was said. Raises `MissingDependency`."""
    try:
        import jiwer
        from pyannote.core import Annotation, Timeline
        from pyannote.core import Segment as Span
        from pyannote.metrics.diarization import DiarizationErrorRate
    except ImportError as error:
        raise MissingDependency(f"no scores ({error}): pip install 'mlx-speech-toolkit[demo]'") from error

    def annotation(transcript: Transcript) -> Any:
        turns = transcript.diarization.turns if transcript.diarization is not None else ()
        return Annotation.from_records((Span(t.start, t.end), k, t.speaker) for k, t in enumerate(turns))

    diarization = DiarizationErrorRate(collar=0.0, skip_overlap=False)
    errors = total = right = 0
    off: list[tuple[float, float]] = []
    for found, truth in pairs:
        ours, theirs = _plain(found), _plain(truth)
        counted = jiwer.process_words(" ".join(map(_letters, theirs)), " ".join(map(_letters, ours)))
        errors += counted.substitutions + counted.deletions + counted.insertions
        total += len(theirs)
        same = [
            (theirs[chunk.ref_start_idx + k], ours[chunk.hyp_start_idx + k])
            for chunk in counted.alignments[0]
            if chunk.type == "equal"
            for k in range(chunk.ref_end_idx - chunk.ref_start_idx)
        ]
        right += _same_speaker(same) if same else 0
        off += [(ours.start - theirs.start, ours.end - theirs.end) for theirs, ours in same if theirs.aligned]
        diarization(annotation(truth), annotation(found), uem=Timeline([Span(0, truth.duration)]))
    distances = np.abs(np.array(off or [(np.inf, np.inf)]))
    near, middle = float(np.mean(distances[:, 0] <= NEAR)), float(np.median(distances))
    wer = errors / max(total, 1)  # as jiwer counts an empty truth
    attributed = right / total if total else 1.0
    return Scores(wer, abs(diarization), attributed, near, middle)


def _letters(word: Word) -> str:
    return "".join(letter for letter in word.text.lower() if letter.isalnum() or letter == "'")


def _plain(transcript: Transcript) -> list[Word]:
    """Its words that are more than punctuation, segment after segment."""
    return [word for word in transcript.words if _letters(word)]


def _same_speaker(pairs: list[tuple[Word, Word]]) -> int:
    """How many pairs have one speaker, if every speaker found stands for the one said that suits all pairs best."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics.cluster import contingency_matrix

    counts = contingency_matrix(*([str(word.speaker) for word in side] for side in zip(*pairs, strict=True)))
    return int(counts[linear_sum_assignment(-counts)].sum())
