"""Regions → chunks: nothing lost, nothing twice, nothing too long; whisperx's merging beside ours."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from conftest import absent
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_speech.errors import OptionError
from mlx_speech.stages.chunks import cut_chunks, fixed_chunks, warn_if_silent
from mlx_speech.transcript import Chunk, Region

QUICK = settings(max_examples=200, deadline=None, derandomize=True)
SLACK = 1e-6  # seconds; a sample lasts 6e-5


@st.composite
def recordings(draw: st.DrawFn) -> tuple[list[Region], float, float]:
    """Disjoint regions in order, duration, chunk size; most times on a grid, so that exact fits occur."""
    grid = draw(st.sampled_from([0.5, 0.1, 1 / 16_000]))
    edges = draw(st.lists(st.integers(0, int(200 / grid)), unique=True, max_size=40).map(sorted))
    regions = [Region(a * grid, b * grid) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    end = regions[-1].end if regions else 0.0
    return regions, end + draw(st.sampled_from([0.0, 0.3, 20.0])), draw(st.sampled_from([1.0, 5.0, 29.97, 30.0]))


def union(regions: list[Region]) -> list[tuple[float, float]]:
    """Regions that touch as one."""
    joined: list[tuple[float, float]] = []
    for region in sorted(regions, key=lambda region: region.start):
        if joined and region.start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], region.end)
        else:
            joined.append((region.start, region.end))
    return joined


def check(chunks: list[Chunk], size: float, duration: float) -> None:
    for before, after in pairwise(chunks):
        assert before.end <= after.start
    for chunk in chunks:
        assert 0 <= chunk.start < chunk.end <= duration
        assert chunk.duration <= size + SLACK
        assert chunk.start == chunk.regions[0].start and chunk.end == chunk.regions[-1].end
        for before, after in pairwise(chunk.regions):
            assert before.end <= after.start


@QUICK
@given(recordings())
def test_chunks_hold_all_regions_and_no_more(recording: tuple[list[Region], float, float]) -> None:
    regions, duration, size = recording
    chunks = cut_chunks(regions, duration=duration, chunk_size=size)
    check(chunks, size, duration)
    assert union([piece for chunk in chunks for piece in chunk.regions]) == union(regions)
    if all(region.duration <= size for region in regions):  # then none is cut
        assert [piece for chunk in chunks for piece in chunk.regions] == regions


@QUICK
@given(recordings())
def test_no_two_neighbours_would_fit_one_chunk(recording: tuple[list[Region], float, float]) -> None:
    """Greedy: the first region of a chunk would not have fitted the chunk before."""
    regions, duration, size = recording
    chunks = cut_chunks(regions, duration=duration, chunk_size=size)
    for before, after in pairwise(chunks):
        assert after.regions[0].end - before.start > size


@QUICK
@given(recordings())
def test_merges_as_whisperx(recording: tuple[list[Region], float, float]) -> None:
    upstream = _whisperx()
    regions, duration, size = recording
    regions = [region for region in regions if region.duration <= size]
    ours = cut_chunks(regions, duration=duration, chunk_size=size)
    theirs = upstream.Vad.merge_chunks([_Theirs(r) for r in regions], size, 0.5, None) if regions else []
    assert [(c.start, c.end, [(r.start, r.end) for r in c.regions]) for c in ours] == [
        (c["start"], c["end"], c["segments"]) for c in theirs
    ]


class _Theirs:
    def __init__(self, region: Region) -> None:
        self.start, self.end, self.speaker = region.start, region.end, "UNKNOWN"


def _whisperx():
    try:
        import whisperx.vads.vad as upstream
    except ImportError:
        absent("whisperx is not installed")
    return upstream


@QUICK
@given(
    st.lists(st.tuples(st.floats(-50, 150), st.floats(-50, 150)).map(lambda pair: Region(*sorted(pair))), max_size=12),
    st.floats(0, 120),
)
def test_disorder_and_overlap_do_no_harm(regions: list[Region], duration: float) -> None:
    chunks = cut_chunks(regions, duration=duration)
    check(chunks, 30.0, duration)
    inside = [Region(max(r.start, 0.0), min(r.end, duration)) for r in regions if r.end > 0 and r.start < duration]
    wanted = union([region for region in inside if region.duration > 0])
    assert union([piece for chunk in chunks for piece in chunk.regions]) == wanted


def test_what_just_fits_is_one_chunk() -> None:
    assert len(cut_chunks([Region(1, 11), Region(21, 31)], duration=60)) == 1
    assert len(cut_chunks([Region(1, 11), Region(21, 31.1)], duration=60)) == 2
    start = 17 / 7
    assert start + 30 - start > 30  # by a rounding error
    assert len(cut_chunks([Region(start, start + 30)], duration=60)) == 1


def test_a_long_region_is_divided_evenly_and_its_rest_joins_what_follows() -> None:
    chunks = cut_chunks([Region(5, 75), Region(76, 80)], duration=100)
    assert len(chunks) == 3
    assert [chunk.start for chunk in chunks] == pytest.approx([5, 5 + 70 / 3, 5 + 140 / 3])
    assert chunks[1].start == chunks[0].end and chunks[-1].end == 80
    assert chunks[-1].regions[-1] == Region(76, 80)


@QUICK
@given(st.floats(0, 7200), st.sampled_from([1.0, 15.0, 30.0, math.inf]))
@example(60.0, 30.0)
def test_fixed_chunks_cover_everything(duration: float, size: float) -> None:
    chunks = fixed_chunks(duration, size)
    assert len(chunks) == (0 if not duration else max(1, math.ceil(duration / size)))
    check(chunks, size, duration)
    assert union(list(chunks)) == ([(0.0, duration)] if duration else [])


@pytest.mark.parametrize("size", [0, -1, 0.5, math.nan])
def test_chunk_size_is_checked(size: float) -> None:
    for call in (lambda: cut_chunks([], duration=1.0, chunk_size=size), lambda: fixed_chunks(1.0, size)):
        with pytest.raises(OptionError, match="chunk_size"):
            call()


def test_silence_in_loud_recordings_is_worth_a_warning() -> None:
    loud = np.full(160_000, 0.02, np.float32)  # 10 s at -34 dBFS
    assert not warn_if_silent(loud, [Region(2.0, 3.1)])
    assert not warn_if_silent(loud / 4, [])  # -46 dBFS
    assert not warn_if_silent(loud[:0], [])
    with pytest.warns(UserWarning, match=r"^meeting.mp3: it is loud, yet only 9.0% counts as speech"):
        assert warn_if_silent(loud, [Region(2.0, 2.9)], "meeting.mp3")
