"""Sound tracks that hold a speaker each → who speaks when.

Programs that record a call often keep one side a track: the microphone in one, what came over the line in another.
Then the speech in a track is one speaker's, which is surer than any clustering. Other files have tracks that are the
same scene again (another language, a commentary, all microphones mixed), of which this is not true.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, pairwise

import numpy as np

from mlx_speech.sample_file import let_go
from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.steps import Steps
from mlx_speech.transcript import Diarization, Region, Turn

LEAST_SPEECH = 1.0  # seconds; a track with less has no speaker
MOST_OVERLAP = 0.5  # of the speech of the track that has less: people talk by turns, and copies at once
MOST_LIKENESS = 0.3  # correlation of two tracks; more means that one hears the other
SAMPLES_PER_BLOCK = 1 << 17  # that are correlated at once
MAX_DELAY = 1 << 13  # samples that one track may be late: half a second
SILENCE = 1e-20  # energy below any sound's, for the division


def speakers_of_tracks(
    tracks: Sequence[np.ndarray], detect: Callable[[np.ndarray], Steps[list[Region]]], fewest: int, most: float
) -> Steps[Diarization | None]:
    """Who speaks when, where the tracks hold a speaker each; else None. In steps of `detect`.

    tracks : (samples,) each, at 16 kHz, on one timeline
    detect : where somebody speaks in a track
    fewest, most : how many speakers there may be
    """
    regions: list[list[Region]] = []
    for track in tracks:
        regions.append((yield from detect(track)))
    if fewest <= len(speaking(regions)) <= most and speakers_apart(tracks, regions):
        return turns_of_tracks(tracks, regions)
    return None


def speaking(regions: Sequence[Sequence[Region]]) -> list[int]:
    """The indices of the tracks in which somebody speaks. regions : of speech, of every track"""
    return [k for k, track_regions in enumerate(regions) if _duration(track_regions) >= LEAST_SPEECH]


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
        less = min(_duration(regions[one]), _duration(regions[other]))
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
    exclusive: list[Turn] = []
    for piece in _pieces(turns):
        active = [k for k in chosen if any(_holds(region, piece) for region in regions[k])]
        if not active:
            continue
        loudness = {k: _energy(tracks[k], [piece]) / max(levels[k], SILENCE) for k in active}
        speaker = names[max(active, key=loudness.__getitem__)]
        before = exclusive[-1] if exclusive else None
        if before is not None and before.speaker == speaker and before.end == piece.start:
            exclusive[-1] = Turn(before.start, piece.end, speaker)
        else:
            exclusive.append(Turn(piece.start, piece.end, speaker))
    turns.sort(key=lambda turn: (turn.start, turn.end))
    return Diarization(tuple(turns), tuple(exclusive))


def _pieces(turns: Sequence[Turn]) -> list[Region]:
    """The time from each start or end of a turn to the next."""
    edges: set[float] = set()
    for turn in turns:
        edges.add(turn.start)
        edges.add(turn.end)
    return [Region(start, end) for start, end in pairwise(sorted(edges))]


def _holds(region: Region, piece: Region) -> bool:
    """Whether the piece lies within the region."""
    return region.start <= piece.start and piece.end <= region.end


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """How much two tracks are the same sound, 0..1: their correlation, at the delay of up to half a second at which it
    is greatest. one, other : (samples,)"""
    size = min(one.size, other.size)
    cross = np.zeros(SAMPLES_PER_BLOCK + 1, np.complex128)  # the spectrum of the correlation
    energy_of_one = 0.0
    energy_of_other = 0.0
    for start in range(0, size, SAMPLES_PER_BLOCK):
        stop = min(start + SAMPLES_PER_BLOCK, size)
        block_of_one = np.asarray(one[start:stop], np.float64)
        block_of_other = np.asarray(other[start:stop], np.float64)
        # twice as long, with zeros: the correlation of a block must not go round its end
        spectrum_of_one = np.fft.rfft(block_of_one, 2 * SAMPLES_PER_BLOCK)
        spectrum_of_other = np.fft.rfft(block_of_other, 2 * SAMPLES_PER_BLOCK)
        cross += spectrum_of_one * spectrum_of_other.conj()
        energy_of_one += float(np.dot(block_of_one, block_of_one))
        energy_of_other += float(np.dot(block_of_other, block_of_other))
        let_go(one)
        let_go(other)
    if not energy_of_one or not energy_of_other:
        return 0.0
    correlation = np.abs(np.fft.irfft(cross))
    nearest = max(correlation[:MAX_DELAY].max(), correlation[-MAX_DELAY:].max())
    return float(nearest / np.sqrt(energy_of_one * energy_of_other))


def _duration(regions: Sequence[Region]) -> float:
    """Seconds of all of them."""
    return sum(region.duration for region in regions)


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
        let_go(track)
    return total / max(1, count)
