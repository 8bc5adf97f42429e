"""Regions and chunks of sound that is still coming in are those of all of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_speech.options import SileroOptions
from mlx_speech.stages.chunks import cut_chunks, widened
from mlx_speech.stages.chunks_online import OnlineChunks
from mlx_speech.stages.vad import SpeechTracker, speech_timestamps
from mlx_speech.stages.vad_online import OnlineRegions
from mlx_speech.transcript import Chunk, Region

RATE = 16_000
WINDOW = 512


def track(seed: int, count: int) -> np.ndarray:
    """(count,) probabilities: speech and silence of random lengths, some of a window or two, some in between."""
    generator = np.random.default_rng(seed)
    probabilities: list[float] = []
    while len(probabilities) < count:
        length = int(generator.choice([1, 2, 3, 5, 8, 20, 60, 300]))
        level = generator.choice([0.02, 0.34, 0.36, 0.49, 0.5, 0.98])
        probabilities += [float(level)] * length
    return np.array(probabilities[:count], np.float32)


def online(
    probabilities: np.ndarray, blocks: list[int], num_samples: int, options: dict[str, Any], longest: float, **cut: Any
) -> tuple[list[tuple[int, int]], list[Chunk], list[int]]:
    """Regions, chunks, and at which sample each chunk was known."""
    finder = OnlineRegions(SpeechTracker.of(SileroOptions(**options), longest))
    cutter = OnlineChunks(**cut)
    regions: list[tuple[int, int]] = []
    chunks: list[Chunk] = []
    known: list[int] = []
    expected: Chunk | None = None
    start = 0
    for size in blocks:
        new = finder.add(probabilities[start : start + size])
        start += size
        regions += new
        ahead = finder.ahead()
        end = None if ahead.end is None else ahead.end / RATE
        complete = cutter.add([Region(a / RATE, b / RATE) for a, b in new], ahead.start / RATE, end)
        if expected is not None and end is None and not new and complete:
            assert complete == [expected], "nobody has spoken again"
        chunks += complete
        expected = cutter.expected(ahead.start / RATE, end)
        assert expected is None or expected.end <= ahead.start / RATE
        known += [finder.position] * len(complete)
    last = finder.finish(num_samples, probabilities[start:])
    regions += last
    complete = cutter.finish([Region(a / RATE, b / RATE) for a, b in last], num_samples / RATE)
    chunks += complete
    known += [num_samples] * len(complete)
    return regions, chunks, known


def blocks_of(generator: np.random.Generator, count: int) -> list[int]:
    blocks: list[int] = []
    while sum(blocks) < count:
        blocks.append(min(int(generator.choice([0, 1, 2, 7, 94])), count - sum(blocks)))
    return blocks


@settings(max_examples=300, deadline=None)
# speech that is too short by the samples that the last window lacks
@example(seed=265, count=265, short_of=96, longest=7.0, pad=30.0, min_speech=250.0, max_pause=None)
@given(
    seed=st.integers(0, 1 << 30),
    count=st.integers(0, 1500),
    short_of=st.integers(0, WINDOW - 1),
    longest=st.sampled_from([1.0, 2.0, 7.0, 14.4, 29.4, math.inf]),
    pad=st.sampled_from([0.0, 30.0, 31.3, 200.0]),
    min_speech=st.sampled_from([0.0, 250.0, 1000.0]),
    max_pause=st.sampled_from([None, 0.0, 0.2, 0.6, 3.0]),
)
def test_equal_to_those_of_all_of_it(
    seed: int, count: int, short_of: int, longest: float, pad: float, min_speech: float, max_pause: float | None
) -> None:
    probabilities = track(seed, count)
    num_samples = max(0, count * WINDOW - short_of)
    options = {"speech_pad_ms": pad, "min_speech_duration_ms": min_speech}
    if longest * 1000 < 2 * pad + 40:
        longest = 2.0
    size = 30.0 if longest == math.inf else longest
    blocks = blocks_of(np.random.default_rng(seed), num_samples // WINDOW)
    regions, chunks, known = online(
        probabilities, blocks, num_samples, options, longest, chunk_size=size, max_pause=max_pause, pad=0.3
    )
    expected = speech_timestamps(probabilities, num_samples=num_samples, max_speech_duration_s=longest, **options)
    assert regions == expected
    duration = num_samples / RATE
    cut = cut_chunks(
        [Region(a / RATE, b / RATE) for a, b in expected], duration=duration, chunk_size=size, max_pause=max_pause
    )
    assert chunks == widened(cut, pad=0.3, duration=duration)
    for chunk, position in zip(chunks, known, strict=True):
        assert round(chunk.end * RATE) <= position, "its sound was there"


@pytest.mark.parametrize("max_pause", [0.0, 0.3, 0.6, 1.5])
def test_a_chunk_is_known_soon_behind_its_pause(max_pause: float) -> None:
    """30 ms of margin, 0.3 s that a chunk is widened by on both sides, and windows of 32 ms."""
    probabilities = np.concatenate([np.full(n, p, np.float32) for n, p in ((40, 0.0), (60, 0.9), (300, 0.0))])
    options: dict[str, Any] = {}
    num_samples = len(probabilities) * WINDOW
    blocks = [1] * len(probabilities)
    _, chunks, known = online(
        probabilities, blocks, num_samples, options, 14.4, chunk_size=14.4, max_pause=max_pause, pad=0.3
    )
    assert len(chunks) == 1
    behind = known[0] / RATE - chunks[0].regions[-1].end
    assert behind <= max(max_pause, 0.6) + 0.03 + 2 * WINDOW / RATE


def test_a_chunk_that_is_full_is_known_before_the_next_one_ends() -> None:
    parts = [(100, 0.9), (10, 0.0), (300, 0.9), (10, 0.0), (200, 0.9)]  # 3.2 s, 9.6 s, 6.4 s with 0.3 s between
    probabilities = np.concatenate([np.full(count, level, np.float32) for count, level in parts])
    blocks = [1] * len(probabilities)
    _, chunks, known = online(
        probabilities, blocks, len(probabilities) * WINDOW, {}, 14.4, chunk_size=14.4, max_pause=0.6, pad=0.3
    )
    assert len(chunks) == 2 and len(chunks[0].regions) == 2
    assert known[0] / RATE <= chunks[0].regions[0].start + 14.4 + 2 * WINDOW / RATE
