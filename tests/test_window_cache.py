"""Windows of a diarization, packed: nothing of what is looked at is lost, and blocks join without a seam."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import mlx_speech
from mlx_speech import load_audio, package_data
from mlx_speech.models.diarization_pipeline import Model
from mlx_speech.stages import diarize as stage
from mlx_speech.stages import window_cache, windows
from mlx_speech.stages.cluster import NONE, SpeakerBounds
from mlx_speech.stages.diarize import diarize, from_stages
from mlx_speech.stages.window_cache import Cache, Heard
from mlx_speech.stages.windows import Windows

RATE = 16_000
FRAMES = Windows(0.0619375, 0.016875)
CHUNKS = Windows(10.0, 1.0)
AHC = "AgglomerativeClustering"

pytestmark = pytest.mark.usefixtures("shared_cache")


@pytest.fixture(scope="module")
def bundled() -> Model:
    return mlx_speech.load(package_data.BUNDLED[package_data.SPEAKERS])  # type: ignore[return-value]


@pytest.fixture(scope="module")
def demo() -> Model:
    return mlx_speech.load(package_data.DEMO / "diarization")  # type: ignore[return-value]


def said(seed: int, count: int, frames: int = 589, dimension: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of some windows with three voices each, some of them silent: scores, classes, and vectors of two speakers."""
    rng = np.random.default_rng(seed)
    scores = rng.random((count, frames // 19 + 1, 3)).repeat(19, axis=1)[:, :frames].astype(np.float32)
    scores *= rng.random((count, 1, 3)) < 0.6
    classes = (scores > 0.5).astype(np.int8)
    vectors = rng.normal(size=(2, dimension))[rng.integers(2, size=(count, 3))]
    vectors = (vectors + 0.1 * rng.normal(size=vectors.shape)).astype(np.float32)
    vectors[~classes.any(axis=1)] = np.nan
    return scores, classes, vectors


# --- packed ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 9), st.integers(1, 40), st.integers(1, 4))
def test_what_is_packed_comes_back(seed: int, count: int, frames: int, rows_per_block: int) -> None:
    scores, classes, vectors = said(seed, count, frames)
    active = classes.any(axis=1)
    heard = Heard.of(classes, vectors, scores)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window_cache, "ROWS_PER_BLOCK", rows_per_block)
        assert len(heard) == count and np.array_equal(heard.speaking(), active)
        assert np.array_equal(np.concatenate([np.zeros((0, frames, 3)), *heard.blocks()]), classes)
        assert heard.flat_vectors().tobytes() == vectors[active].tobytes()
        assert np.array_equal(heard.vectors_of_windows(), vectors, equal_nan=True)
        alone = classes * (classes.sum(axis=2, keepdims=True) == 1)
        assert np.array_equal(heard.alone(), alone.sum(axis=1))
        for window, (found, expected) in enumerate(zip(heard.windows(), scores, strict=True)):
            assert np.array_equal(found, np.where(active[window], expected, 0))
        for found, expected in zip(Heard.of(classes, vectors).windows(), classes, strict=True):
            assert np.array_equal(found, expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 4), max_size=5))
def test_a_cache_that_grows_has_what_was_put_in(seed: int, batches: list[int]) -> None:
    """Vectors come later than classes, and some not at all yet."""
    scores, classes, vectors = said(seed, sum(batches), dimension=4)
    active = classes.any(axis=1)
    model: Any = mock_model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window_cache, "ROWS_PER_BLOCK", 3)
        cache = Cache(model)
        done = 0
        for size in batches:
            rows = slice(done, done + size)
            if size:
                cache.append(classes[rows], scores[rows])
            done += size
        first = done // 3
        late = [vectors[window][active[window]] for window in range(first, done)]
        assert cache.whole == next((window for window in range(done) if active[window].any()), done)
        cache.append_vectors(vectors[:first][active[:first]])
        assert cache.whole == next((window for window in range(first, done) if active[window].any()), done)
        if not done:
            return
        whole = cache.heard(0, done, late)
        assert whole.flat_vectors().tobytes() == vectors[active].tobytes()
        part = cache.heard(first, done, late)
        assert np.array_equal(part.vectors_of_windows(), vectors[first:], equal_nan=True)
        assert np.array_equal(cache.classes_of(first, done), classes[first:])
        for window, found in enumerate(part.windows(), first):
            assert np.array_equal(found, np.where(active[window], scores[window], 0))


def mock_model() -> Any:
    """The sizes of a multilabel pipeline with vectors of four numbers."""
    from types import SimpleNamespace

    segmentation = SimpleNamespace(args=SimpleNamespace(powerset_max_classes=None))
    return SimpleNamespace(segmentation=segmentation, embedding=SimpleNamespace(args=SimpleNamespace(embedding_size=4)))


# --- blocks ----------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(0, 25),
    step=st.sampled_from([0.1, 0.5, 1.0, 12.0]),
    frames_per_block=st.integers(1, 150),
    options=st.fixed_dictionaries(
        {
            "warm_up": st.sampled_from([(0.0, 0.0), (0.2, 0.1)]),
            "hamming": st.booleans(),
            "missing": st.sampled_from([0.0, np.nan]),
            "skip_average": st.booleans(),
        }
    ),
)
def test_blocks_of_frames_join(seed: int, count: int, step: float, frames_per_block: int, options: Any) -> None:
    assume(count > 0 or step <= 1.0)
    scores = np.random.default_rng(seed).normal(size=(count, 58, 2)).astype(np.float32)
    scores[scores > 1.5] = np.nan
    arguments = (count, Windows(1.0, step), FRAMES)
    whole = windows.aggregate(iter(scores), *arguments, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "FRAMES_PER_BLOCK", frames_per_block)
        blocks = list(windows.aggregate_in_blocks(iter(scores), *arguments, **options))
    assert np.concatenate(blocks).tobytes() == whole.tobytes()
    assert len(whole) == windows.frame_count(*arguments)
    assert max(map(len, blocks)) <= frames_per_block + 58 + step / FRAMES.step + 2


@pytest.mark.parametrize("with_scores", [False, True])
@pytest.mark.parametrize("numbers", [{}, {"max_speakers": 1}, {"num_speakers": 3}])
@pytest.mark.filterwarnings("ignore:.*speakers? (is|are) found")
def test_the_turns_do_not_depend_on_the_blocks(
    with_scores: bool, numbers: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, classes, vectors = said(5, 70)
    given: dict[str, Any] = {"duration": 10.0, "clustering": AHC, **numbers}
    if with_scores:
        given["scores"] = scores
    expected = from_stages(classes, vectors, **given)
    assert len(expected.turns) > 50
    monkeypatch.setattr(windows, "FRAMES_PER_BLOCK", 100)
    monkeypatch.setattr(window_cache, "ROWS_PER_BLOCK", 7)
    assert from_stages(classes, vectors, **given) == expected


def test_the_speakers_of_a_frame_by_brute_force() -> None:
    """Counts and activities frame by frame, as the definitions have them."""
    scores, classes, vectors = said(9, 12)
    clusters = np.random.default_rng(1).integers(0, 3, size=(12, 3))
    clusters[~classes.any(axis=1)] = NONE
    heard = Heard.of(classes, vectors, scores)
    total = windows.frame_count(12, CHUNKS, FRAMES)
    counts = np.zeros((total, 2))  # sum, windows
    expected = np.zeros((total, 3), np.float32)
    for window in range(12):
        begin = FRAMES.closest(window * CHUNKS.step + 0.5 * FRAMES.duration)
        for frame in range(589):
            counts[begin + frame] += classes[window, frame].sum(), 1
            for cluster in range(3):
                own = scores[window, frame][clusters[window] == cluster]
                expected[begin + frame, cluster] += own.max(initial=0)
    assert np.array_equal(np.concatenate(list(stage.activity(heard, clusters, CHUNKS, FRAMES))), expected)
    rounded = np.rint(counts[:, 0] / np.maximum(counts[:, 1], 1)).astype(int)
    assert np.array_equal(stage.speakers_at_once(heard, CHUNKS, FRAMES), rounded)


@pytest.mark.parametrize("exclude_overlap", [False, True])
def test_masks_are_made_when_they_are_asked_for(exclude_overlap: bool) -> None:
    scores, classes, _ = said(2, 40)
    classes[[0, 7, 8, 39]] = 0
    cache = Cache(mock_model())
    cache.append(classes, scores)
    masks = stage.VoiceMasks(cache, 10 * RATE, exclude_overlap)
    voiced = np.flatnonzero(classes.any(axis=(1, 2)))
    expected = stage.voice_masks(classes, 10 * RATE, exclude_overlap)[voiced]
    assert masks.shape == expected.shape and np.array_equal(masks.voiced, voiced)
    assert np.array_equal(masks.speaking, classes.any(axis=1)[voiced])
    for rows in (slice(0, 1), slice(3, 20), slice(0, None), slice(30, 99)):
        assert np.array_equal(masks[rows], expected[rows])


@pytest.mark.parametrize("which", ["demo", "bundled"])
def test_a_recording_does_not_depend_on_the_blocks(
    which: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Model = request.getfixturevalue(which)
    conversation = load_audio(package_data.DEMO / "conversation.flac")
    audio = np.concatenate([conversation[: 11 * RATE], np.zeros(12 * RATE, np.float32), conversation[: 3 * RATE]])
    expected = diarize(audio, model)
    assert len(expected.embeddings) >= 2
    monkeypatch.setattr(windows, "FRAMES_PER_BLOCK", 200)
    monkeypatch.setattr(window_cache, "ROWS_PER_BLOCK", 3)
    assert diarize(audio, model) == expected


def test_memory_of_many_windows() -> None:
    """Two hours and a half of windows: unpacked, 16 MB of classes and 43 MB of how many speak at once."""
    _, classes, vectors = said(0, 60)
    some = Heard.of(classes[:20], vectors[:20])  # how many vectors are clustered is not the matter
    silent = Heard.of(np.zeros_like(classes), vectors)
    heard = Heard(some.classes + 150 * silent.classes, None, some.vectors, some.shape)
    tracemalloc.start()
    try:
        found = stage.told_apart(heard, SpeakerBounds(), duration=10.0, clustering=AHC)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.turns and len(heard) == 9020
    assert peak < 30e6
