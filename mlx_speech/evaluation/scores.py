"""How good transcripts are, beside what was said: words, their times and their speakers.

Counted by jiwer and pyannote.metrics (the `demo` extra), which are imported when they are needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mlx_speech.errors import MissingDependency, install
from mlx_speech.evaluation.boundaries import NEAR, letters, same_words
from mlx_speech.evaluation.speaker_errors import annotation
from mlx_speech.transcript import Transcript, Turn, Word


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


def score(pairs: Iterable[tuple[Transcript, Transcript]]) -> Scores:
    """pairs : what was found in a recording, and what was said. Raises `MissingDependency`."""
    try:
        import jiwer
        from pyannote.core import Segment as Span
        from pyannote.core import Timeline
        from pyannote.metrics.diarization import DiarizationErrorRate
    except ImportError as error:
        raise MissingDependency(f"no scores ({error}): {install('demo')}") from error

    diarization = DiarizationErrorRate(collar=0.0, skip_overlap=False)
    errors = 0
    total = 0
    attributed = 0
    offsets: list[tuple[float, float]] = []  # seconds by which starts and ends are late
    for result, truth in pairs:
        heard = _spoken_words(result)
        said = _spoken_words(truth)
        alignment = jiwer.process_words(_spelled(said), _spelled(heard))
        errors += alignment.substitutions + alignment.deletions + alignment.insertions
        total += len(said)
        matches = [(heard[ours], said[theirs]) for theirs, ours in same_words(said, heard)]
        attributed += _same_speaker_count(matches)
        for ours, theirs in matches:
            if theirs.aligned:
                offsets.append((ours.start - theirs.start, ours.end - theirs.end))
        diarization(annotation(_turns(truth)), annotation(_turns(result)), uem=Timeline([Span(0, truth.duration)]))
    distances = np.abs(np.array(offsets or [(np.inf, np.inf)]))
    return Scores(
        wer=errors / max(total, 1),  # as jiwer counts an empty truth
        der=abs(diarization),
        attributed=attributed / total if total else 1.0,
        starts=float(np.mean(distances[:, 0] <= NEAR)),
        boundary=float(np.median(distances)),
    )


def _spoken_words(transcript: Transcript) -> list[Word]:
    """Its words that are more than punctuation, segment after segment."""
    return [word for word in transcript.words if letters(word)]


def _spelled(words: Iterable[Word]) -> str:
    """As they are compared, with spaces between them."""
    return " ".join(letters(word) for word in words)


def _turns(transcript: Transcript) -> tuple[Turn, ...]:
    return transcript.diarization.turns if transcript.diarization is not None else ()


def _same_speaker_count(pairs: list[tuple[Word, Word]]) -> int:
    """How many pairs have one speaker, if every speaker found stands for the one said that suits all pairs best."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics.cluster import contingency_matrix

    if not pairs:
        return 0
    found = [str(ours.speaker) for ours, _ in pairs]
    said = [str(theirs.speaker) for _, theirs in pairs]
    counts = contingency_matrix(said, found)
    return int(counts[linear_sum_assignment(-counts)].sum())
