"""Figures that can be resampled, and how sure one may be of them: 95 % intervals by bootstrap.

A figure is counted by unit, a reference segment or a recording. A draw takes as many units as there are, with
replacement; the interval holds the middle 95 % of the figures of all draws. Two systems are compared by the same draws.

The percentile bootstrap of Bisani and Ney, 2004, "Bootstrap estimates for confidence intervals in ASR performance
evaluation".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
SEED = 0
COVERAGE = 0.95
MIN_RECORDINGS = 5  # from so many on recordings are drawn; fewer say too little, and reference segments are drawn
MIN_UNITS = 2  # of one unit all draws are alike

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """The bounds of a 95 % interval."""

    low: float
    high: float


class Figure(Protocol):
    """What is counted by unit. NaN stands for a figure that is not defined, such as an error rate of no words."""

    @property
    def units(self) -> int:
        """How many there are."""
        ...

    def value(self) -> float:
        """Of all units."""
        ...

    def resampled(self, weights: Array) -> Array:
        """weights : (draws, units), how often each unit was drawn. Returns the figures of the draws, (draws,)."""
        ...

    def as_one(self) -> Figure:
        """The same figure with all of it in one unit: of a recording."""
        ...

    def joined(self, others: Sequence[Figure]) -> Figure:
        """The figure of the units of this and of others of its kind. Raises `TypeError` for another kind."""
        ...


FigureKind = TypeVar("FigureKind", bound=Figure)


@dataclass(frozen=True)
class Rate:
    """Errors per what there was. errors, totals : (units,)"""

    errors: Array
    totals: Array

    @property
    def units(self) -> int:
        """How many there are."""
        return len(self.errors)

    def value(self) -> float:
        """All errors by all that there was."""
        total = float(self.totals.sum())
        return float(self.errors.sum()) / total if total > 0 else math.nan

    def resampled(self, weights: Array) -> Array:
        """As `Figure` says."""
        return _divided(weights @ self.errors, weights @ self.totals)

    def as_one(self) -> Rate:
        """As `Figure` says."""
        return Rate(self.errors.sum(keepdims=True), self.totals.sum(keepdims=True))

    def joined(self, others: Sequence[Figure]) -> Rate:
        """As `Figure` says."""
        rates = _of_kind(self, others)
        errors = np.concatenate([rate.errors for rate in rates])
        return Rate(errors, np.concatenate([rate.totals for rate in rates]))


@dataclass(frozen=True)
class SpeakerMean:
    """The mean of the error rates of speakers. errors, totals : (units, speakers)"""

    errors: Array
    totals: Array

    @property
    def units(self) -> int:
        """How many there are."""
        return len(self.errors)

    def value(self) -> float:
        """Every speaker counts the same."""
        return float(self.resampled(np.ones((1, self.units)))[0])

    def resampled(self, weights: Array) -> Array:
        """As `Figure` says; of a draw in which a speaker is not heard, that speaker is not part."""
        rates = _divided(weights @ self.errors, weights @ self.totals)
        heard = ~np.isnan(rates)
        return _divided(np.where(heard, rates, 0.0).sum(axis=1), heard.sum(axis=1).astype(np.float64))

    def as_one(self) -> Rate:
        """As `Figure` says; a recording counts as many times as it has speakers."""
        rates = _divided(self.errors.sum(axis=0), self.totals.sum(axis=0))
        heard = ~np.isnan(rates)
        return Rate(np.array([rates[heard].sum()]), np.array([float(heard.sum())]))

    def joined(self, others: Sequence[Figure]) -> SpeakerMean:
        """As `Figure` says; no speaker is in two of them."""
        means = _of_kind(self, others)
        units = sum(mean.units for mean in means)
        speakers = sum(mean.errors.shape[1] for mean in means)
        errors = np.zeros((units, speakers))
        totals = np.zeros((units, speakers))
        row = 0
        column = 0
        for mean in means:
            rows = slice(row, row + mean.units)
            columns = slice(column, column + mean.errors.shape[1])
            errors[rows, columns] = mean.errors
            totals[rows, columns] = mean.totals
            row = rows.stop
            column = columns.stop
        return SpeakerMean(errors, totals)


@dataclass(frozen=True)
class Median:
    """The median of values. values : (values,); unit_of_value : (values,), the unit each is of; units : how many"""

    values: Array
    unit_of_value: NDArray[np.int64]
    units: int

    def value(self) -> float:
        """Of all values."""
        return float(np.median(self.values)) if self.values.size else math.nan

    def resampled(self, weights: Array) -> Array:
        """As `Figure` says."""
        medians = np.full(len(weights), math.nan)
        for draw, weight in enumerate(weights):
            drawn = np.repeat(self.values, weight[self.unit_of_value].astype(np.int64))
            if drawn.size:
                medians[draw] = np.median(drawn)
        return medians

    def as_one(self) -> Median:
        """As `Figure` says."""
        return Median(self.values, np.zeros_like(self.unit_of_value), 1)

    def joined(self, others: Sequence[Figure]) -> Median:
        """As `Figure` says."""
        units = 0
        values: list[Array] = []
        unit_of_value: list[NDArray[np.int64]] = []
        for median in _of_kind(self, others):
            values.append(median.values)
            unit_of_value.append(median.unit_of_value + units)
            units += median.units
        return Median(np.concatenate(values), np.concatenate(unit_of_value), units)


def _of_kind(first: FigureKind, others: Sequence[Figure]) -> list[FigureKind]:
    """All of them. Raises `TypeError` where one is of another kind."""
    found = [first]
    for other in others:
        if not isinstance(other, type(first)):
            raise TypeError(f"a {type(other).__name__} cannot be joined to a {type(first).__name__}")
        found.append(other)
    return found


def _divided(errors: Array, totals: Array) -> Array:
    """NaN where the total is 0."""
    return np.divide(errors, totals, out=np.full(np.shape(errors), math.nan), where=totals > 0)


# --- recordings together ----------------------------------------------------------------------------------------------


def draws_recordings(recordings: int) -> bool:
    """Whether there are enough of them to draw; otherwise reference segments are drawn."""
    return recordings >= MIN_RECORDINGS


def together(figures: Sequence[Figure]) -> Figure:
    """The figure of several recordings, by the unit that is drawn. figures : at least one, all of one kind"""
    if draws_recordings(len(figures)):
        figures = [figure.as_one() for figure in figures]
    return figures[0].joined(figures[1:])


# --- intervals --------------------------------------------------------------------------------------------------------


def interval(figure: Figure) -> Interval | None:
    """Where the figure lies with 95 % confidence; None where there are too few units, or it is not defined."""
    if figure.units < MIN_UNITS or math.isnan(figure.value()):
        return None
    return _middle(figure.resampled(_weights(figure.units)))


def paired_interval(first: Figure, second: Figure) -> Interval | None:
    """Where second less first lies with 95 % confidence, both drawn alike; None as of `interval`.

    first, second : of the same units. Raises `ValueError` where they are not as many.
    """
    if first.units != second.units:
        raise ValueError(f"{first.units} and {second.units} units cannot be paired")
    if first.units < MIN_UNITS or math.isnan(first.value()) or math.isnan(second.value()):
        return None
    weights = _weights(first.units)
    return _middle(second.resampled(weights) - first.resampled(weights))


@lru_cache(maxsize=4)  # all scores of a recording draw the same units
def _weights(units: int) -> Array:
    """How often each unit is drawn, (draws, units); the same every time."""
    dice = np.random.default_rng(SEED)
    weights = dice.multinomial(units, np.full(units, 1 / units), size=DRAWS).astype(np.float64)
    weights.flags.writeable = False
    return weights


def _middle(figures: Array) -> Interval | None:
    """The bounds of the middle 95 % of those that are defined."""
    defined = figures[~np.isnan(figures)]
    if not defined.size:
        return None
    outside = (1 - COVERAGE) / 2
    low, high = np.quantile(defined, [outside, 1 - outside])
    return Interval(float(low), float(high))
