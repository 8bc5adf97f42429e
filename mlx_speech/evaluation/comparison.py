"""Two hypotheses beside each other on the same recordings, and whether the difference is more than chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mlx_speech.evaluation.bootstrap import Interval, paired_interval
from mlx_speech.evaluation.measures import Evaluation, Score, summed

Verdict = Literal["better", "worse", "same"]


@dataclass(frozen=True)
class Difference:
    """One score of both. difference : of the second less the first; interval : 95 %, paired; None where there is too
    little to draw from"""

    first: Score
    second: Score
    interval: Interval | None

    @property
    def difference(self) -> float:
        """Below 0 where the second is better."""
        return self.second.value - self.first.value

    @property
    def verdict(self) -> Verdict:
        """Of the second: better or worse where the interval does not touch 0, else the same as far as one can tell."""
        if self.interval is None or self.interval.low <= 0 <= self.interval.high:
            return "same"
        return "better" if self.interval.high < 0 else "worse"


def compare(first: Sequence[Evaluation], second: Sequence[Evaluation]) -> dict[str, Difference]:
    """The differences of all scores that both have. first, second : the same recordings, in the same order"""
    shared: tuple[list[Evaluation], list[Evaluation]] = ([], [])
    for ours, theirs in zip(first, second, strict=True):
        keys = [key for key in ours.scores if key in theirs.scores]
        for side, evaluation in zip(shared, (ours, theirs), strict=True):
            scores = {key: evaluation.scores[key] for key in keys}
            side.append(Evaluation(evaluation.name, scores))
    left = summed(shared[0])
    right = summed(shared[1])
    differences: dict[str, Difference] = {}
    for key in left:
        paired = paired_interval(left[key].figure, right[key].figure)
        differences[key] = Difference(left[key], right[key], paired)
    return differences


def sentence(first: str, second: str, differences: dict[str, Difference]) -> str:
    """What the first score says, in a sentence. first, second : names of the two"""
    if not differences:
        return f"{first} and {second} have no score in common."
    found = next(iter(differences.values()))
    name = found.first.name
    if math.isnan(found.difference):
        return f"{name} is not defined here: nothing was said."
    unit = found.first.unit
    if found.interval is None:
        return (
            f"{name} differs by {_amount(found.difference, unit)}: too little was said to tell whether that is chance."
        )
    low, high = found.interval
    if found.verdict == "same":
        bounds = f"{_amount(low, unit)} {_direction(low)} to {_amount(high, unit)} {_direction(high)}"
        return f"{first} and {second} cannot be told apart on these data: {name} of {second} is {bounds} (95 %)."
    least, most = sorted((abs(low), abs(high)))
    bounds = f"{_amount(least, unit).split()[0]} to {_amount(most, unit)} {_direction(low)}"
    return f"{second} is {found.verdict} than {first}: its {name} is {bounds} (95 %)."


def _amount(difference: float, unit: str) -> str:
    """How large a difference is, in words."""
    if unit == "seconds":
        return f"{1000 * abs(difference):.0f} ms"
    return f"{100 * abs(difference):.1f} points"


def _direction(difference: float) -> str:
    return "lower" if difference < 0 else "higher"
