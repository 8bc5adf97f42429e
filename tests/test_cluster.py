"""Windows and clustering against pyannote.audio's own functions, brute force, and properties."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pyannote.audio.core.inference import Inference
from pyannote.audio.pipelines.clustering import AgglomerativeClustering, VBxClustering
from pyannote.audio.utils.signal import Binarize, binarize
from pyannote.audio.utils.vbx import cluster_vbx
from pyannote.core import SlidingWindow, SlidingWindowFeature

from mlx_speech.errors import ConfigError, OptionError
from mlx_speech.stages import cluster, windows
from mlx_speech.stages.windows import Windows

# --- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(24))
def test_overlap_add_is_the_originals(seed: int) -> None:
    rng = np.random.default_rng(seed)
    duration, frame = float(rng.choice([1.0, 5.0, 10.0])), (0.0619375, 0.016875)
    step = duration * float(rng.choice([0.1, 0.25, 1.0, 0.333]))
    size = int((duration * 16000 - 991) // 270 + 1)
    scores = rng.normal(size=(int(rng.integers(1, 12)), size, int(rng.integers(1, 5)))).astype(np.float32)
    if seed % 2:
        scores[rng.random(scores.shape) < 0.1] = np.nan
        scores[rng.random(scores.shape[0]) < 0.3, :, 0] = np.nan
    options: dict[str, Any] = {
        "hamming": bool(seed % 3),
        "warm_up": [(0.0, 0.0), (0.1 * duration, 0.2 * duration), (0.6 * duration, 0.6 * duration)][seed % 5 % 3],
        "skip_average": seed % 4 == 3,
        "missing": [0.0, -1.0][seed // 2 % 2],
    }
    theirs = Inference.aggregate(
        SlidingWindowFeature(scores.copy(), SlidingWindow(start=0.0, duration=duration, step=step)),
        SlidingWindow(start=0.0, duration=frame[0], step=frame[1]),
        **options,
    ).data
    ours = windows.aggregate(iter(scores), len(scores), Windows(duration, step), Windows(*frame), **options)
    assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)


SCORES = hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(1, 3)), elements=st.sampled_from(
    [0.0, 0.2, 0.3, 0.363, 0.4, 0.5, 0.6, 0.75, 1.0]
))  # fmt: skip
THRESHOLDS = st.sampled_from([(0.5, 0.5), (0.5, 0.363), (0.75, 0.3), (0.6, 0.2)])


@settings(max_examples=200, deadline=None)
@given(SCORES, THRESHOLDS)
def test_hysteresis_is_the_originals(scores: np.ndarray, thresholds: tuple[float, float]) -> None:
    onset, offset = thresholds
    feature = SlidingWindowFeature(scores[None], SlidingWindow(start=0.0, duration=1.0, step=0.1))
    theirs = binarize(feature, onset=onset, offset=offset, initial_state=False).data[0]
    assert np.array_equal(windows.binarize(scores, onset, offset), theirs)


def annotated(binarizer: Any, scores: np.ndarray) -> list[tuple[float, float, int]]:
    frames = SlidingWindow(start=0.0, duration=0.0619375, step=0.016875)
    found = binarizer(SlidingWindowFeature(scores, frames))
    return sorted((s.start, s.end, int(label)) for s, _, label in found.itertracks(yield_label=True))


@settings(max_examples=200, deadline=None)
@given(SCORES, THRESHOLDS, st.sampled_from([0.0, 0.03, 0.1]))
def test_stretches_are_the_originals(scores: np.ndarray, thresholds: tuple[float, float], min_off: float) -> None:
    assume(len(scores) > 1)
    onset, offset = thresholds
    theirs = annotated(Binarize(onset=onset, offset=offset, min_duration_off=min_off), scores)
    frames, ours = Windows(0.0619375, 0.016875), []
    for k, active in enumerate(windows.binarize(scores, onset, offset).T):
        stretches = [(frames.middle(a), frames.middle(b)) for a, b in windows.runs(active)]
        ours += [(start, end, k) for start, end in windows.fill(stretches, min_off)]
    assert len(ours) == len(theirs) and np.allclose(sorted(ours), theirs, rtol=0, atol=1e-9)


def test_what_was_cut_is_not_joined_again() -> None:
    pieces = [(0.0, 2.0), (2.0, 3.0), (3.1, 4.0), (9.0, 9.5)]
    assert windows.fill(pieces, 0.5) == [(0.0, 2.0), (2.0, 4.0), (9.0, 9.5)]
    assert windows.fill(pieces, 0.5, max_duration=1.5) == pieces
    assert windows.fill(pieces, 0.0) == pieces and windows.fill([], 1.0) == []


@settings(max_examples=300, deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(2, 60), elements=st.floats(0, 1, width=32)),
    st.integers(3, 25),
    st.sampled_from([0.1, 0.3]),
)
def test_long_stretches_are_cut_where_whisperx_cuts(scores: np.ndarray, limit: int, offset: float) -> None:
    from whisperx.vads.pyannote import Binarize as WhisperXBinarize

    limit_frames = limit + 0.5
    runs = windows.runs(windows.binarize(scores[:, None], 0.5, offset)[:, 0])
    pieces = [piece for run in runs for piece in windows.cut(scores, run, limit_frames)]
    assert all(b - a <= limit_frames for a, b in pieces)
    assert sum(b - a for a, b in pieces) == sum(b - a for a, b in runs)
    # WhisperX overlooks an end in the very frame where speech becomes too long
    for run in runs:
        last = windows.cut(scores, run, limit_frames)[-2:]
        assume(len(last) < 2 or not any(run[1] == a + limit + 1 for a, _ in last[:1]))
    theirs = annotated(
        WhisperXBinarize(onset=0.5, offset=offset, max_duration=limit_frames * 0.016875), scores[:, None]
    )
    frames = Windows(0.0619375, 0.016875)
    assert np.allclose(
        [(frames.middle(a), frames.middle(b)) for a, b in pieces], [t[:2] for t in theirs] or [], atol=1e-9
    )


@pytest.mark.parametrize(
    ("samples", "expected"),
    [(1, [0]), (9, [0]), (10, [0]), (11, [0, 3]), (13, [0, 3]), (14, [0, 3, 6]), (16, [0, 3, 6]), (17, [0, 3, 6, 9])],
)
def test_windows_cover_everything(samples: int, expected: list[int]) -> None:
    assert windows.starts(samples, 10, 3) == expected


@pytest.mark.parametrize(("samples", "batch_size"), [(1, 4), (95, 1), (95, 4), (95, 8), (95, 32), (100, 3)])
def test_a_sliding_model_sees_every_window_once(samples: int, batch_size: int) -> None:
    audio, seen = np.arange(1, samples + 1, dtype=np.float32), []
    starts = windows.starts(samples, 10, 3)

    def compute(batch: windows.Batch, rows: slice) -> Any:
        waveforms = batch.waveforms()
        stretch, places = batch.stretch()
        for place, waveform in zip(places, waveforms, strict=True):
            assert np.array_equal(stretch[place : place + 10], waveform)
        seen.append((waveforms.shape[0], rows))
        return waveforms

    result = np.concatenate(list(windows.slide(audio, starts, 10, compute, batch_size)))
    padded = np.concatenate([audio, np.zeros(10, np.float32)])
    assert np.array_equal(result, np.stack([padded[s : s + 10] for s in starts]))
    assert [k for _, rows in seen for k in range(rows.start, rows.stop)] == list(range(len(starts)))
    assert len({size for size, _ in seen}) <= 2 and max(size for size, _ in seen) <= batch_size


# --- agglomerative clustering ----------------------------------------------------------------------------------------


def voices(speakers: int, count: int, seed: int, noise: float = 0.5, dimension: int = 16) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(speakers, dimension))
    own = rng.choice(speakers, size=count, p=rng.dirichlet(np.full(speakers, 2.0)))
    return (centres[own] + noise * rng.normal(size=(count, dimension))).astype(np.float32)


LIMITS = [{}, {"num_speakers": 2}, {"num_speakers": 5}, {"min_speakers": 4}, {"max_speakers": 2}]
LIMITS += [{"min_speakers": 3, "max_speakers": 6}, {"num_speakers": 9}]


@pytest.mark.parametrize("seed", range(40))
def test_agglomerative_clustering_is_the_originals(seed: int, capsys: pytest.CaptureFixture) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.choice([2, 3, 5, 12, 25, 45, 150]))
    vectors = voices(int(rng.integers(1, 9)), count, seed, noise=float(rng.choice([0.2, 0.6, 1.0])))
    threshold, size = float(rng.choice([0.3, 0.7, 1.0])), int(rng.choice([1, 2, 12]))
    theirs = AgglomerativeClustering().instantiate(
        {"method": "centroid", "threshold": threshold, "min_cluster_size": size}
    )
    for limits in LIMITS:
        numbers = [limits.get(f"{name}_speakers") for name in ("num", "min", "max")]
        num, low, high = theirs.set_num_clusters(count, *numbers)
        if high < 2:
            continue
        expected = theirs.cluster(vectors.copy(), low, high, num)
        bounds = cluster.speaker_bounds(**limits).within(count)
        assert (bounds.num, bounds.low, bounds.high) == (num, low, high)
        assert np.array_equal(cluster.agglomerate(vectors, bounds, threshold, size), expected)


# --- VBx -------------------------------------------------------------------------------------------------------------


def speakers_in_noise(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Initial labels, features and phi of four speakers."""
    rng = np.random.default_rng(seed)
    count, dimension, initial = int(rng.integers(2, 200)), int(rng.integers(2, 130)), int(rng.integers(1, 9))
    phi = np.sort(rng.exponential(3, size=dimension))[::-1]
    own = rng.integers(0, 4, size=count)
    features = rng.normal(size=(4, dimension))[own] * np.sqrt(phi) + rng.normal(size=(count, dimension))
    labels = np.concatenate([np.arange(initial), rng.integers(0, initial, size=count)])[:count]
    return np.unique(labels, return_inverse=True)[1], features, phi


@pytest.mark.parametrize("elements", [1, 100, 1 << 22], ids=["rows", "some rows", "all at once"])
@pytest.mark.parametrize("seed", range(10))
def test_variational_bayes_is_the_originals(seed: int, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original has all responsibilities in memory; here they are made in blocks of rows."""
    monkeypatch.setattr(cluster, "ELEMENTS_PER_BLOCK", elements)
    labels, features, phi = speakers_in_noise(seed)
    rng = np.random.default_rng(seed)
    Fa, Fb = float(rng.choice([0.07, 0.4, 1.0])), float(rng.choice([0.1, 0.8, 12.0]))
    gamma, prior = cluster_vbx(labels, features, phi, Fa=Fa, Fb=Fb, maxIters=20)
    weights, priors = cluster.vbx(labels, features, phi, Fa=Fa, Fb=Fb)
    left = prior > cluster.MIN_PRIOR
    assert np.allclose(weights, gamma[:, left], rtol=0, atol=1e-9)
    assert np.allclose(priors, prior[left], rtol=0, atol=1e-9)


def test_variational_bayes_of_vectors_that_are_clusters_of_their_own() -> None:
    rng = np.random.default_rng(3)
    phi = np.linspace(4, 0.1, 32)
    features = rng.normal(size=(5, 32))[rng.integers(0, 5, size=300)] * np.sqrt(phi) + rng.normal(size=(300, 32))
    gamma, prior = cluster_vbx(np.arange(300), features, phi, Fa=0.07, Fb=0.8, maxIters=20)
    weights, _ = cluster.vbx(np.arange(300), features, phi, Fa=0.07, Fb=0.8)
    assert np.allclose(weights, gamma[:, prior > cluster.MIN_PRIOR], rtol=0, atol=1e-9)


# --- assignment ------------------------------------------------------------------------------------------------------


def best_total(scores: np.ndarray) -> float:
    """Of all ways to give as many rows as possible a column of their own."""
    rows, columns = scores.shape
    if rows <= columns:
        return max(
            sum(scores[r, c] for r, c in enumerate(chosen)) for chosen in itertools.permutations(range(columns), rows)
        )
    return best_total(scores.T)


@pytest.mark.parametrize("clusters", [1, 2, 3, 5])
def test_constrained_assignment_by_brute_force(clusters: int) -> None:
    rng = np.random.default_rng(clusters)
    similarity = rng.normal(size=(150, 3, clusters))
    active = rng.random((150, 3)) < 0.7
    active[0] = True
    hard = cluster.constrained_argmax(similarity, active)
    for scores, speaks, own in zip(similarity, active, hard, strict=True):
        given = [(s, k) for s, k in enumerate(own) if speaks[s] and k != cluster.NONE]
        assert len({k for _, k in given}) == len(given) == min(clusters, speaks.sum())
        if given:
            assert sum(scores[s, k] for s, k in given) == pytest.approx(best_total(scores[speaks]))


@pytest.mark.parametrize("clusters", [1, 2, 3, 5])
def test_constrained_assignment_is_the_originals(clusters: int) -> None:
    rng = np.random.default_rng(clusters)
    similarity = rng.normal(size=(150, 3, clusters))
    active = rng.random((150, 3)) < 0.7
    scores = similarity.copy()
    scores[~active] = scores.min() - 1.0
    theirs = VBxClustering(plda=None).constrained_argmax(scores)
    assert np.array_equal(
        np.where(active, cluster.constrained_argmax(similarity, active), 0), np.where(active, theirs, 0)
    )


def test_a_voice_without_an_embedding_comes_after_those_that_have_one() -> None:
    similarity = np.array([[[0.9, 0.1], [np.nan, np.nan], [0.2, 0.8]], [[np.nan, np.nan], [0.3, 0.7], [0.0, 0.0]]])
    active = np.array([[True, True, True], [True, True, False]])
    assert cluster.constrained_argmax(similarity, active).tolist() == [[0, cluster.NONE, 1], [0, 1, cluster.NONE]]


# --- what a user may ask for -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["num_speakers", "min_speakers", "max_speakers"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2", float("nan")])
def test_numbers_of_speakers_are_checked(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"^{name} is .*whole number"):
        cluster.speaker_bounds(**{name: value})


@pytest.mark.parametrize(
    ("numbers", "names"),
    [
        ({"min_speakers": 3, "max_speakers": 2}, ("min_speakers is 3", "max_speakers is 2")),
        ({"num_speakers": 2, "min_speakers": 3}, ("num_speakers is 2", "min_speakers is 3")),
        ({"num_speakers": 4, "max_speakers": 3}, ("num_speakers is 4", "max_speakers is 3")),
    ],
)
def test_contradictions_name_both_options(numbers: dict[str, int], names: tuple[str, str]) -> None:
    with pytest.raises(OptionError) as caught:
        cluster.speaker_bounds(**numbers)
    assert all(name in str(caught.value) for name in names) and "\n" not in str(caught.value)


def test_bounds_that_meet_are_a_number() -> None:
    assert cluster.speaker_bounds(min_speakers=3, max_speakers=3) == cluster.SpeakerBounds(3, 3, 3)
    assert cluster.speaker_bounds(2, 1, 5) == cluster.SpeakerBounds(2, 2, 2)
    assert [cluster.speaker_bounds().target(k) for k in (1, 7)] == [None, None]
    assert [cluster.speaker_bounds(None, 2, 4).target(k) for k in (1, 2, 4, 9)] == [2, None, None, 4]


@pytest.mark.parametrize(
    ("clustering", "params", "says"),
    [
        ("KMeansClustering", {}, "KMeansClustering"),
        ("AgglomerativeClustering", {"method": "ward"}, "method"),
        ("AgglomerativeClustering", {"Fa": 0.1}, "Fa"),
        ("AgglomerativeClustering", {"threshold": "high"}, "threshold"),
        ("AgglomerativeClustering", {"threshold": float("nan")}, "threshold"),
        ("VBxClustering", {}, "PLDA"),
    ],
)
def test_settings_that_are_not_supported(clustering: str, params: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        cluster.check(clustering, params, None)


def test_kmeans_never_makes_more_clusters_than_there_are_different_vectors() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(set(cluster.kmeans(vectors, 7))) == 3


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(0, 12))
def test_every_active_voice_has_a_cluster(seed: int, speakers: int, chunks: int) -> None:
    rng = np.random.default_rng(seed)
    segmentations = (rng.random((chunks, 20, 3)) < rng.choice([0.0, 0.1, 0.6], size=(chunks, 1, 3))).astype(np.int8)
    embeddings = voices(speakers, chunks * 3, seed).reshape(chunks, 3, 16)
    active = segmentations.any(axis=1)
    embeddings[~active] = np.nan
    hard, centroids = cluster.cluster(
        embeddings, segmentations, cluster.speaker_bounds(), clustering="AgglomerativeClustering"
    )
    assert hard.shape == (chunks, 3) and np.array_equal(hard == cluster.NONE, ~active)
    assert np.isfinite(centroids).all() and hard.max(initial=0) < len(centroids)
