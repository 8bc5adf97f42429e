"""Regions of speech → chunks for recognition, cut at pauses."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from mlx_speech.errors import in_range
from mlx_speech.sample_file import pieces_of
from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.transcript import Chunk, Region

LOUD_RMS = 0.01  # -40 dBFS; a recording above it is expected to hold speech
LEAST_SHARE_OF_SPEECH = 0.1  # of a loud recording; less is worth a warning
CHUNK_PAD = 0.3  # seconds that are heard before and behind the speech of a chunk
ROUNDING_ERROR = 1e-9  # of the quotient of two durations, which must not add a part


def cut_chunks(
    regions: Sequence[Region], *, duration: float, chunk_size: float = 30.0, max_pause: float | None = None
) -> list[Chunk]:
    """Slices of the recording for recognition, cut at pauses: in order, apart, and together holding all regions.

    regions : of speech; what lies outside the recording, or overlaps the region before, is left out
    duration : of the recording, in seconds
    chunk_size : longest slice, in seconds; a region that is longer is divided evenly
    max_pause : seconds; a longer pause is in no chunk. None: any is, where there is room

    As whisperx.vads.vad.Vad.merge_chunks: regions join the chunk, pauses and all, for as long as it stays short enough.
    Raises `OptionError` for a chunk_size below a second, and for a max_pause below zero.
    """
    in_range(1, math.inf, chunk_size=chunk_size)
    in_range(0, math.inf, max_pause=max_pause)
    longest_pause = math.inf if max_pause is None else max_pause
    groups: list[list[Region]] = []
    end = 0.0  # of the regions so far
    for region in sorted(regions, key=lambda region: (region.start, region.end)):
        start = max(region.start, end)
        end = max(end, min(region.end, duration))
        for piece in _divided(start, end, chunk_size):
            if groups and _joins(piece, groups[-1], chunk_size, longest_pause):
                groups[-1].append(piece)
            else:
                groups.append([piece])
    return [Chunk(group[0].start, group[-1].end, tuple(group)) for group in groups]


def speech_and_pad(chunk_size: float) -> tuple[float, float]:
    """How many seconds of speech a chunk of `chunk_size` seconds may hold, and what it is widened by on both sides."""
    speech = max(1.0, chunk_size - 2 * CHUNK_PAD)
    return speech, min(CHUNK_PAD, (chunk_size - speech) / 2)


def _joins(piece: Region, group: Sequence[Region], chunk_size: float, max_pause: float) -> bool:
    """Whether a region may be of the chunk that begins with those of the group."""
    fits = piece.end - group[0].start <= chunk_size
    return fits and piece.start - group[-1].end <= max_pause


def widened(chunks: Sequence[Chunk], *, pad: float, duration: float) -> list[Chunk]:
    """Chunks that also hold what is heard before and behind their speech; their regions stay as they are.

    pad : seconds on both sides; where two chunks would meet, each gets half of the pause between them
    duration : of the recording, in seconds

    Raises `OptionError` for a pad below zero.
    """
    in_range(0, math.inf, pad=pad)
    result: list[Chunk] = []
    for k, chunk in enumerate(chunks):
        earliest = 0.0
        if k > 0:
            earliest = (chunks[k - 1].end + chunk.start) / 2
        latest = duration
        if k + 1 < len(chunks):
            latest = (chunk.end + chunks[k + 1].start) / 2
        start = max(chunk.start - pad, earliest)
        end = min(chunk.end + pad, latest)
        result.append(Chunk(start, end, chunk.regions))
    return result


def fixed_chunks(duration: float, chunk_size: float = 30.0) -> list[Chunk]:
    """The whole recording in the fewest equal slices of at most `chunk_size` seconds, wherever that cuts.

    Raises `OptionError` for a chunk_size below a second.
    """
    return cut_chunks([Region(0.0, duration)], duration=duration, chunk_size=chunk_size)


def _divided(start: float, end: float, size: float) -> list[Region]:
    """In equal parts, none longer than `size` but for a rounding error, which is no reason to cut. None if empty."""
    if end <= start:
        return []
    count = max(1, math.ceil((end - start) / size - ROUNDING_ERROR))
    edges = [start + (end - start) * k / count for k in range(count)]
    edges.append(end)
    return [Region(*part) for part in pairwise(edges)]


def warn_if_silent(audio: np.ndarray, regions: Sequence[Region], name: str = "the recording") -> bool:
    """Warn, and give True, where less than a tenth of a loud recording counts as speech: some may have been missed.

    audio : (samples,) at 16 kHz; loud is an RMS above -40 dBFS
    """
    if not audio.size:
        return False
    energy = sum(float(np.dot(piece, piece)) for piece in pieces_of(audio))
    rms = math.sqrt(energy / audio.size)
    if rms <= LOUD_RMS:
        return False
    speech = sum(region.duration for region in regions)
    share = min(1.0, SAMPLE_RATE * speech / audio.size)
    if share >= LEAST_SHARE_OF_SPEECH:
        return False
    advice = "if more is missing, lower the threshold of the voice activity detection or do without it"
    warnings.warn(f"{name}: it is loud, yet only {share:.1%} counts as speech: {advice}", stacklevel=2)
    return True
