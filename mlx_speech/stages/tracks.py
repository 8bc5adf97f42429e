"""Sound tracks that hold a speaker each → who speaks when.

Programs that record a call often keep one side a track: the microphone in one, what came over the line in another.
Then the speech in a track is one speaker's, which is surer than any clustering. Other files have tracks that are the
same scene again (another language, a commentary, all microphones mixed), of which this is not true.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np

from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.transcript import Diarization, Region, Turn

LEAST_SPEECH = 1.0  # seconds; a track with less has no speaker
MOST_OVERLAP = 0.5  # of the speech of the track that has less: people talk by turns, and copies at once
MOST_LIKENESS = 0.3  # correlation of two tracks; more means that one hears the other
BLOCK = 1 << 17  # samples that are correlated at once
REACH = 1 << 13  # samples that one track may be late: half a second


def speaking(regions: Sequence[Sequence[Region]]) -> list[int]:
    """The indices of the tracks in which somebody speaks. regions : of speech, of every track"""
    return [k for k, own in enumerate(regions) if sum(region.duration for region in own) >= LEAST_SPEECH]


def speakers_apart(tracks: Sequence[np.ndarray], regions: Sequence[Sequence[Region]]) -> bool:
    """Whether the tracks hold a speaker each: at least two have speech, mostly at different times, and no two of those
    sound alike.

    tracks : (samples,) each, at 16 kHz, on one timeline
    regions : of speech, of every track
    """
    chosen = speaking(regions)
    if len(chosen) < 2:
        return False
    for one, other in combinations(chosen, 2):
        less = min(sum(region.duration for region in regions[k]) for k in (one, other))
        if _overlap(regions[one], regions[other]) > MOST_OVERLAP * less:
            return False
        if likeness(tracks[one], tracks[other]) > MOST_LIKENESS:
            return False
    return True


def turns_of_tracks(tracks: Sequence[np.ndarray], regions: Sequence[Sequence[Region]]) -> Diarization:
    """The speech of every track as the turns of a speaker, named in the order of the tracks. Where several speak, the
    exclusive turns are those of the one who is loudest for a track of that level.

    tracks, regions : as of `speakers_apart`
    """
    chosen = speaking(regions)
    levels = {k: _energy(tracks[k], regions[k]) for k in chosen}
    names = {k: f"SPEAKER_{number:02d}" for number, k in enumerate(chosen)}
    turns = [Turn(region.start, region.end, names[k]) for k in chosen for region in regions[k]]
    edges = sorted({edge for turn in turns for edge in (turn.start, turn.end)})
    exclusive: list[Turn] = []
    for start, end in pairwise(edges):
        piece = Region(start, end)
        active = [k for k in chosen if any(own.start <= start and end <= own.end for own in regions[k])]
        if not active:
            continue
        loudest = max(active, key=lambda k: _energy(tracks[k], [piece]) / max(levels[k], 1e-20))
        before = exclusive[-1] if exclusive else None
        if before is not None and before.speaker == names[loudest] and before.end == start:
            exclusive[-1] = Turn(before.start, end, before.speaker)
        else:
            exclusive.append(Turn(start, end, names[loudest]))
    return Diarization(tuple(sorted(turns, key=lambda turn: (turn.start, turn.end))), tuple(exclusive))


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """How much two tracks are the same sound, 0..1: their correlation, at the delay of up to half a second at which it
    is greatest. one, other : (samples,)"""
    size = min(one.size, other.size)
    cross = np.zeros(BLOCK + 1, np.complex128)
    energies = np.zeros(2)
    for start in range(0, size, BLOCK):
        parts = [np.asarray(track[start : min(start + BLOCK, size)], np.float64) for track in (one, other)]
        spectra = [np.fft.rfft(part, 2 * BLOCK) for part in parts]
        cross += spectra[0] * spectra[1].conj()
        energies += [float(np.dot(part, part)) for part in parts]
    if not energies.all():
        return 0.0
    correlation = np.abs(np.fft.irfft(cross))
    nearest = max(correlation[:REACH].max(), correlation[-REACH:].max())
    return float(nearest / np.sqrt(energies.prod()))


def _overlap(one: Sequence[Region], other: Sequence[Region]) -> float:
    """Seconds in which both have speech. Each list is in order and does not overlap itself."""
    total = 0.0
    first = 0
    for region in one:
        while first < len(other) and other[first].end <= region.start:
            first += 1
        for candidate in other[first:]:
            if candidate.start >= region.end:
                break
            total += min(region.end, candidate.end) - max(region.start, candidate.start)
    return total


def _energy(track: np.ndarray, regions: Sequence[Region]) -> float:
    """Mean square of the track within the regions."""
    total = 0.0
    count = 0
    for region in regions:
        part = track[round(region.start * SAMPLE_RATE) : round(region.end * SAMPLE_RATE)]
        total += float(np.dot(part, part))
        count += part.size
    return total / max(1, count)
