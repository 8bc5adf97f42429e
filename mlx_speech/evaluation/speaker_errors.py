"""Who speaks when: diarization and Jaccard error rates, together and by speaker. pyannote.metrics counts.

dscore, from which the Jaccard error rate comes (DIHARD), counts frames of 10 ms. Its figure stands beside
pyannote's: the same count, on turns whose ends are put onto these frames first.

A recording is resampled in stretches, each from where some turns of the reference begin to where the next ones do.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np

from mlx_speech.errors import MissingDependency
from mlx_speech.evaluation.bootstrap import Array, Rate, SpeakerMean
from mlx_speech.evaluation.normalisers import INSTALL
from mlx_speech.transcript import Region, Turn

if TYPE_CHECKING:
    from pyannote.core import Annotation, Timeline

FRAME = 0.01  # seconds, of dscore
MAX_STRETCHES = 200  # of a recording: pyannote.metrics takes some milliseconds for one

Stretch = TypeVar("Stretch", bound=Region)


@dataclass(frozen=True)
class SpeakerErrors:
    """Of one speaker of the reference. All but `jaccard` in seconds.

    heard_as : the speaker of the hypothesis that stands for them, None where there is none
    said : how long they speak
    missed : of that, what `heard_as` has not
    added : what `heard_as` has and they have not
    jaccard : their Jaccard error rate, 0..1
    """

    speaker: str
    heard_as: str | None
    said: float
    missed: float
    added: float
    jaccard: float


@dataclass(frozen=True)
class DiarizationErrors:
    """Of one recording. der : by stretch; missed, false_alarm, confusion, total : in seconds, as pyannote.metrics has
    them; jer, framed_jer : by stretch and speaker, as pyannote.metrics and as dscore have it"""

    der: Rate
    missed: float
    false_alarm: float
    confusion: float
    total: float
    jer: SpeakerMean
    framed_jer: SpeakerMean
    speakers: tuple[SpeakerErrors, ...]


def annotation(turns: Iterable[Turn]) -> Annotation:
    """Turns as pyannote has them. Raises `MissingDependency`."""
    try:
        from pyannote.core import Annotation
        from pyannote.core import Segment as Span
    except ImportError as error:
        raise _missing(error) from error
    records = [(Span(turn.start, turn.end), track, turn.speaker) for track, turn in enumerate(turns)]
    return Annotation.from_records(iter(records))


def diarization_errors(
    said: Sequence[Turn],
    heard: Sequence[Turn],
    stretches: Sequence[Region] | None = None,
    collar: float = 0.0,
    skip_overlap: bool = False,
) -> DiarizationErrors:
    """How far the turns that were heard are from those that were said.

    stretches : what is scored, by default from the first turn of either side to the end of the last
    collar, skip_overlap : as in pyannote.metrics: seconds around each boundary of the reference that do not count, half
        of them to either side; whether speech of several speakers at once does not count

    Raises `MissingDependency`.
    """
    try:
        from pyannote.core import Segment as Span
        from pyannote.core import Timeline
        from pyannote.metrics.diarization import DiarizationErrorRate
    except ImportError as error:
        raise _missing(error) from error
    if stretches is None:
        stretches = [_extent([*said, *heard])]
    metric = DiarizationErrorRate(collar=collar, skip_overlap=skip_overlap)
    uem = Timeline([Span(stretch.start, stretch.end) for stretch in stretches]).support()
    total = metric.compute_components(annotation(said), annotation(heard), uem=uem)
    scored = metric.extrude(uem, annotation(said), collar, skip_overlap)
    reference = annotation(said).crop(scored)
    hypothesis = annotation(heard).crop(scored)
    edges = _edges(said, scored)
    jer, speakers = _jaccard_errors(reference, hypothesis, edges)

    framed = Timeline([Span(stretch.start, stretch.end) for stretch in _on_frames(stretches)]).support()
    framed_said = annotation(_on_frames(said))
    framed = metric.extrude(framed, framed_said, collar, skip_overlap)
    framed_heard = annotation(_on_frames(heard)).crop(framed)
    framed_edges = [*edges[:-1], max(edges[-1], framed.extent().end)]
    framed_jer, _ = _jaccard_errors(framed_said.crop(framed), framed_heard, framed_edges)
    return DiarizationErrors(
        der=_stretch_errors(reference, hypothesis, scored, edges),
        missed=total["missed detection"],
        false_alarm=total["false alarm"],
        confusion=total["confusion"],
        total=total["total"],
        jer=jer,
        framed_jer=framed_jer,
        speakers=speakers,
    )


def _stretch_errors(reference: Annotation, hypothesis: Annotation, scored: Timeline, edges: Sequence[float]) -> Rate:
    """Diarization errors between each two edges, speakers assigned as over the whole. scored : what counts"""
    from pyannote.core import Segment as Span
    from pyannote.metrics.diarization import DiarizationErrorRate
    from pyannote.metrics.identification import IdentificationErrorRate

    stands_for = DiarizationErrorRate().optimal_mapping(reference, hypothesis)
    names: dict[Hashable, tuple[str, Hashable]] = {}  # no speaker is called alike on both sides, but by the assignment
    for speaker in hypothesis.labels():
        if speaker in stands_for:
            names[speaker] = ("said", stands_for[speaker])
        else:
            names[speaker] = ("heard", speaker)
    renamed = hypothesis.rename_labels(names)
    original = reference.rename_labels({speaker: ("said", speaker) for speaker in reference.labels()})
    identification = IdentificationErrorRate()
    errors = np.zeros(len(edges) - 1)
    totals = np.zeros(len(edges) - 1)
    for index in range(len(edges) - 1):
        part = cast("Timeline", scored.crop(Span(edges[index], edges[index + 1])))
        found = identification.compute_components(original, renamed, uem=part)
        errors[index] = found["missed detection"] + found["false alarm"] + found["confusion"]
        totals[index] = found["total"]
    return Rate(errors, totals)


def _jaccard_errors(
    reference: Annotation, hypothesis: Annotation, edges: Sequence[float]
) -> tuple[SpeakerMean, tuple[SpeakerErrors, ...]]:
    """Jaccard errors of the speakers of the reference: by stretch between two edges, and over the whole."""
    from pyannote.core import Timeline
    from pyannote.metrics.diarization import JaccardErrorRate

    counterparts = JaccardErrorRate().optimal_mapping(hypothesis, reference)  # speaker said → heard
    labels = reference.labels()
    errors = np.zeros((len(edges) - 1, len(labels)))
    totals = np.zeros((len(edges) - 1, len(labels)))
    speakers: list[SpeakerErrors] = []
    for column, speaker in enumerate(labels):
        heard_as = counterparts.get(speaker)
        ours = reference.label_timeline(speaker)
        theirs = Timeline() if heard_as is None else hypothesis.label_timeline(heard_as)
        either = _durations(ours.union(theirs), edges)
        both = _durations(ours, edges) + _durations(theirs, edges) - either
        errors[:, column] = either - both
        totals[:, column] = either
        length = ours.support().duration()
        shared = float(both.sum())
        speakers.append(
            SpeakerErrors(
                speaker=str(speaker),
                heard_as=None if heard_as is None else str(heard_as),
                said=length,
                missed=length - shared,
                added=theirs.support().duration() - shared,
                jaccard=float(errors[:, column].sum() / totals[:, column].sum()),
            )
        )
    return SpeakerMean(errors, totals), tuple(speakers)


def _missing(error: ImportError) -> MissingDependency:
    return MissingDependency(f"no errors of speakers ({error}): {INSTALL}")


def _extent(turns: Sequence[Turn]) -> Region:
    """From the start of the first to the end of the last."""
    start = min((turn.start for turn in turns), default=0.0)
    return Region(start, max((turn.end for turn in turns), default=0.0))


def _on_frames(stretches: Sequence[Stretch]) -> list[Stretch]:
    """Stretches from the first frame that begins in them to the first behind them; none of those without a frame."""
    end = max((stretch.end for stretch in stretches), default=0.0)
    starts = FRAME * np.arange(int(end / FRAME) + 2)
    framed: list[Stretch] = []
    for stretch in stretches:
        first, last = np.searchsorted(starts, (stretch.start, stretch.end))
        if first < last:
            framed.append(replace(stretch, start=float(starts[first]), end=float(starts[last])))
    return framed


def _edges(turns: Sequence[Turn], scored: Timeline) -> list[float]:
    """Where the stretches that are drawn begin, and where the last one ends. But for the ends of all they depend on the
    reference alone, so that two hypotheses can be compared stretch by stretch."""
    starts = sorted({turn.start for turn in turns})
    step = max(1, -(-len(starts) // MAX_STRETCHES))
    inner = starts[step::step]
    outer = scored.extent()
    first = min([outer.start, *starts])
    last = max([outer.end, *inner])
    return [first, *inner, last]


def _durations(timeline: Timeline, edges: Sequence[float]) -> Array:
    """Seconds of a timeline between each two edges."""
    bounds = np.array(edges)
    until = np.zeros(len(edges))
    for segment in timeline.support():
        until += np.clip(bounds - segment.start, 0.0, segment.duration)
    return np.diff(until)
