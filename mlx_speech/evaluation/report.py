"""Scores for reading: tables, alignments, and what `--json` prints."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mlx_speech.evaluation.bootstrap import DRAWS, SEED, Interval, draws_recordings
from mlx_speech.evaluation.comparison import Difference
from mlx_speech.evaluation.measures import Evaluation, Score, Scores, drawn_unit, summed
from mlx_speech.evaluation.speaker_errors import SpeakerErrors
from mlx_speech.evaluation.word_errors import AlignedSegment
from mlx_speech.writers.pieces import columns, one_line

MAX_NAME = 32  # columns of a name at the start of a line
MAX_COLUMN = 16  # columns of a name over others
WIDTH = 80  # columns of an alignment
MARKS = {"substituted": "S", "deleted": "D", "inserted": "I"}
LEGEND = "S: heard otherwise; D: not heard; I: heard, though not said."
GAP = "*"  # fills the place of a word that is on one side only
UNDEFINED = "–"

# --- tables -----------------------------------------------------------------------------------------------------------


def table(evaluations: Sequence[Evaluation]) -> str:
    """A line a score; of several recordings a line each, score by score, before those of all together."""
    if len(evaluations) == 1:
        only = evaluations[0]
        rows = [_row(score.name, score, only.counts_characters) for score in only.scores.values()]
        return _lines([_HEAD, *rows]) + _footer(1)
    sums = summed(evaluations)
    rows = [_HEAD]
    for key, total in sums.items():
        rows.append([total.name, "", "", ""])
        for evaluation in evaluations:
            if key in evaluation.scores:
                rows.append(_row(f"  {evaluation.name}", evaluation.scores[key], evaluation.counts_characters))
    rows.append([f"all {len(evaluations)} recordings", "", "", ""])
    characters = any(evaluation.counts_characters for evaluation in evaluations)
    for key, total in sums.items():
        scored = sum(key in evaluation.scores for evaluation in evaluations)
        name = total.name if scored == len(evaluations) else f"{total.name} (of {scored})"
        rows.append(_row(name, total, characters))
    return _lines(rows) + _footer(len(evaluations))


_HEAD = ["", "", "95 % interval", ""]


def _footer(recordings: int) -> str:
    each = ""
    if draws_recordings(recordings):
        each = "; of a single recording, over its reference segments"
    return f"Intervals: bootstrap over {drawn_unit(recordings)}{each}; {DRAWS} draws, seed {SEED}.\n"


def _row(name: str, score: Score, characters: bool) -> list[str]:
    return [name, _value(score.value, score.unit), _interval(score.interval, score.unit), _counted(score, characters)]


def _lines(rows: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first and the last to the left, the others to the right."""
    shortened = [[_fitted(row[0]), *row[1:]] for row in rows]
    widths = [max(columns(row[place]) for row in shortened) for place in range(len(shortened[0]))]
    lines: list[str] = []
    for row in shortened:
        cells = [row[0] + " " * (widths[0] - columns(row[0]))]
        for place in range(1, len(row) - 1):
            cells.append(" " * (widths[place] - columns(row[place])) + row[place])
        cells.append(row[-1])
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)


def _fitted(name: str, width: int = MAX_NAME) -> str:
    """A name of more columns than `width` is cut in its middle."""
    indent = name[: len(name) - len(name.lstrip())]
    name = indent + one_line(name)
    half = (width - 1) // 2
    while columns(name) > width:
        name = f"{name[:half]}…{name[len(name) - half :]}"
        half -= 1
    return name


def _value(value: float, unit: str) -> str:
    if math.isnan(value):
        return UNDEFINED
    return f"{1000 * value:.0f} ms" if unit == "seconds" else f"{100 * value:.1f} %"


def _interval(found: Interval | None, unit: str) -> str:
    if found is None:
        return UNDEFINED
    if unit == "seconds":
        return f"{1000 * found.low:.0f} to {1000 * found.high:.0f}"
    return f"{100 * found.low:.1f} to {100 * found.high:.1f}"


def _counted(score: Score, characters: bool) -> str:
    """What a score is made of, in words."""
    counts = score.counts
    if "substitutions" in counts:
        errors = counts["substitutions"] + counts["deletions"] + counts["insertions"]
        noun = "characters" if characters or score.name.startswith("CER") else "words"
        kinds = f"{counts['substitutions']} S, {counts['deletions']} D, {counts['insertions']} I"
        return f"{errors} of {counts['total']} {noun}: {kinds}"
    if "missed" in counts:
        kinds = f"{counts['missed']:.1f} missed, {counts['false_alarm']:.1f} added, {counts['confusion']:.1f} confused"
        return f"of {counts['total']:.1f} s: {kinds}"
    if "speakers" in counts:
        return f"mean of {counts['speakers']:.0f} speaker{'' if counts['speakers'] == 1 else 's'}"
    return f"{counts['words']:.0f} words"


def speaker_table(speakers: Iterable[SpeakerErrors]) -> str:
    """A line a speaker of the reference: seconds they speak, seconds missed and added, Jaccard error rate."""
    rows = [["speaker", "heard as", "speaks", "missed", "added", "JER", ""]]
    for found in speakers:
        seconds = [f"{value:.1f} s" for value in (found.said, found.missed, found.added)]
        heard_as = UNDEFINED if found.heard_as is None else one_line(found.heard_as)
        rows.append([found.speaker, heard_as, *seconds, f"{100 * found.jaccard:.1f} %", ""])
    return _lines(rows)


def comparison_table(first: str, second: str, differences: Mapping[str, Difference], recordings: int) -> str:
    """A line a score: both, the difference, its paired interval and what it says of the second."""
    names = [_fitted(name, MAX_COLUMN) for name in (first, second)]
    rows = [["", *names, "difference", "95 % interval", f"{names[1]} is"]]
    words = {"better": "better", "worse": "worse", "same": "not to be told apart"}
    for found in differences.values():
        unit = found.first.unit
        difference = UNDEFINED
        if not math.isnan(found.difference):
            scale, decimals = (1000, 0) if unit == "seconds" else (100, 1)
            difference = f"{scale * found.difference:+.{decimals}f}"
        values = [_value(found.first.value, unit), _value(found.second.value, unit)]
        verdict = words[found.verdict]
        if found.interval is None:
            verdict = UNDEFINED
        elif found.interval == (0, 0):
            verdict = "the same"
        rows.append([found.first.name, *values, difference, _interval(found.interval, unit), verdict])
    footer = f"Differences: points of a per cent, or ms. Paired bootstrap over {drawn_unit(recordings)}; {DRAWS} draws"
    return _lines(rows) + f"{footer}, seed {SEED}.\n"


# --- alignments -------------------------------------------------------------------------------------------------------


def alignment(segments: Iterable[AlignedSegment], width: int = WIDTH) -> str:
    """What was heard for what, in the segments that have errors: the reference over the hypothesis, errors marked S
    (substituted), D (deleted) and I (inserted). width : columns"""
    blocks: list[str] = []
    right = 0
    for segment in segments:
        if not segment.errors:
            right += 1
            continue
        blocks.append(_heading(segment) + _aligned_lines(segment, width))
    noun = "segment" if right == 1 else "segments"
    blocks.append(f"{right} {noun} without an error. {LEGEND}\n")
    return "\n".join(blocks)


def _heading(segment: AlignedSegment) -> str:
    """When and by whom a segment was said, where that is known."""
    parts: list[str] = []
    if segment.end > 0:
        parts.append(f"{_clock(segment.start)} to {_clock(segment.end)}")
    if segment.speaker:
        parts.append(one_line(segment.speaker))
    return f"{', '.join(parts)}\n" if parts else ""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(10 * seconds), 600)
    return f"{minutes:02d}:{rest / 10:04.1f}"


def _aligned_lines(segment: AlignedSegment, width: int) -> str:
    """Three lines, as often as the width asks for."""
    labels = ("said   ", "heard  ", "       ")
    rows: list[str] = list(labels)
    blocks: list[tuple[str, ...]] = []
    for said, heard in segment.words:
        cells = _cells(said, heard)
        if columns(rows[0]) + columns(cells[0]) > width and rows[0] != labels[0]:
            blocks.append(tuple(rows))
            rows = list(labels)
        for line, cell in enumerate(cells):
            rows[line] += f"{cell} "
    blocks.append(tuple(rows))
    lines: list[str] = []
    for block in blocks:
        lines += [line.rstrip() + "\n" for line in block if line.strip()]
    return "".join(lines)


def _cells(said: str | None, heard: str | None) -> tuple[str, str, str]:
    """A word over what was heard for it and a mark, all of one width."""
    mark = ""
    if said is None:
        mark = MARKS["inserted"]
    elif heard is None:
        mark = MARKS["deleted"]
    elif said != heard:
        mark = MARKS["substituted"]
    width = max(columns(said or ""), columns(heard or ""))
    above = GAP * width if said is None else said + " " * (width - columns(said))
    below = GAP * width if heard is None else heard + " " * (width - columns(heard))
    return above, below, mark + " " * (width - len(mark))


# --- JSON -------------------------------------------------------------------------------------------------------------


def as_dict(evaluations: Sequence[Evaluation], with_alignment: bool = False) -> dict[str, Any]:
    """All scores in the types of JSON, at full precision: rates as fractions, times in seconds; null is undefined."""
    recordings: list[dict[str, Any]] = []
    for evaluation in evaluations:
        content: dict[str, Any] = {
            "name": evaluation.name,
            "language": evaluation.language,
            "unit": "characters" if evaluation.counts_characters else "words",
            "scores": _scores(evaluation.scores),
        }
        if evaluation.speakers:
            content["speakers"] = [asdict(speaker) for speaker in evaluation.speakers]
        if evaluation.notes:
            content["notes"] = list(evaluation.notes)
        if with_alignment:
            content["alignment"] = [asdict(segment) for segment in evaluation.alignment]
        recordings.append(content)
    return {
        "recordings": recordings,
        "all": _scores(summed(evaluations)),
        "bootstrap": _bootstrap(len(evaluations)),
    }


def comparison_as_dict(
    first: str, second: str, differences: Mapping[str, Difference], recordings: int, conclusion: str
) -> dict[str, Any]:
    """A comparison in the types of JSON, as `as_dict`."""
    scores: dict[str, Any] = {}
    for key, found in differences.items():
        scores[key] = {
            "first": _number(found.first.value),
            "second": _number(found.second.value),
            "difference": _number(found.difference),
            "interval": None if found.interval is None else list(found.interval),
            "verdict": found.verdict,
        }
    return {
        "first": first,
        "second": second,
        "scores": scores,
        "conclusion": conclusion,
        "bootstrap": _bootstrap(recordings),
    }


def _bootstrap(recordings: int) -> dict[str, Any]:
    return {"over": drawn_unit(recordings), "draws": DRAWS, "seed": SEED, "coverage": 0.95}


def _scores(scores: Scores) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, score in scores.items():
        found = score.interval
        content[key] = {
            "value": _number(score.value),
            "interval": None if found is None else list(found),
            **score.counts,
        }
    return content


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
