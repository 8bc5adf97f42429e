"""Speakers of sound that is still coming in: in the end those of the recording, and names that stay with whom they
were given to."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from conftest import real
from hypothesis import given, settings
from hypothesis import strategies as st

import mlx_speech
from mlx_speech import load_audio, package_data, steps
from mlx_speech.errors import OptionError
from mlx_speech.models.diarization_pipeline import Model
from mlx_speech.sound_buffer import SoundBuffer
from mlx_speech.stages import diarize as stage
from mlx_speech.stages.cluster import HostPLDA
from mlx_speech.stages.diarize import diarize
from mlx_speech.stages.growing import NOBODY, Change, GrowingDiarization, matched
from mlx_speech.stages.window_cache import Rows
from mlx_speech.transcript import Diarization, Turn

RATE = 16_000


pytestmark = pytest.mark.usefixtures("shared_cache")


@pytest.fixture(scope="module")
def demo() -> Model:
    """WeSpeaker hears every window by itself."""
    return mlx_speech.load(package_data.DEMO / "diarization")  # type: ignore[return-value]


@pytest.fixture(scope="module")
def bundled() -> Model:
    """CAM++ hears a minute of windows together."""
    return mlx_speech.load(package_data.BUNDLED[package_data.SPEAKERS])  # type: ignore[return-value]


@pytest.fixture(scope="module")
def conversation() -> np.ndarray:
    return load_audio(package_data.DEMO / "conversation.flac")[: 24 * RATE + 4321]


def blocks(audio: np.ndarray, seed: int) -> list[np.ndarray]:
    """The samples in pieces of any length, some empty."""
    rng = np.random.default_rng(seed)
    pieces: list[np.ndarray] = []
    begin = 0
    while begin < len(audio):
        length = int(rng.choice([0, 1, 400, 16_000, 40_000, 200_000]) * rng.uniform(0.5, 1.5))
        pieces.append(audio[begin : begin + length])
        begin += length
    return pieces


class Listener:
    """What somebody knows who is told every change."""

    def __init__(self) -> None:
        self.frames: dict[int, str | None] = {}

    def hear(self, changes: tuple[Change, ...]) -> None:
        for change in changes:
            assert change.before != change.after
            for frame in range(round(change.start / 0.016875), round(change.end / 0.016875)):
                assert self.frames.get(frame) == change.before
                self.frames[frame] = change.after
        assert list(changes) == sorted(changes, key=lambda change: change.start)

    def believes(self, turns: tuple[Turn, ...]) -> bool:
        """Whether these are the exclusive turns, so far as frames can say."""
        expected: dict[int, str] = {}
        for turn in turns:
            for frame in range(round(turn.start / 0.016875), round(turn.end / 0.016875)):
                expected[frame] = turn.speaker
        return expected == {frame: name for frame, name in self.frames.items() if name is not None}


def live(model: Model, pieces: list[np.ndarray], **numbers: int) -> tuple[Diarization, GrowingDiarization, Listener]:
    """The whole session: everything that is due is done at once."""
    growing = GrowingDiarization(model, **numbers)
    listener = Listener()
    for piece in pieces:
        steps.run(growing.add(piece))
        listener.hear(growing.provisional())
        if growing.due:
            listener.hear(growing.take(growing.snapshot()()))
            assert not growing.due and growing.until > 0
    result, changes = steps.run(growing.end())
    listener.hear(changes)
    assert listener.believes(result.exclusive) and set(result.embeddings) <= set(growing.names)
    return result, growing, listener


def same_but_for_names(one: Diarization, other: Diarization) -> None:
    names: dict[str, str] = {}
    for mine, theirs in ((one.turns, other.turns), (one.exclusive, other.exclusive)):
        assert [(turn.start, turn.end) for turn in mine] == [(turn.start, turn.end) for turn in theirs]
        for a, b in zip(mine, theirs, strict=True):
            assert names.setdefault(a.speaker, b.speaker) == b.speaker
    assert len(set(names.values())) == len(names) and set(one.embeddings) == set(names)
    assert one.embedding_model == other.embedding_model
    for label, vector in one.embeddings.items():
        expected = np.array(other.embeddings[names[label]])
        assert np.abs(vector - expected).max() <= 1e-4 * np.abs(expected).max()


# --- the same as offline ---------------------------------------------------------------------------------------------


def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """How many windows go through the models at every call."""
    heard: dict[str, list[int]] = {"segment": [], "embed": [], "embed_stretches": []}

    def watch(name: str) -> None:
        original = getattr(stage, name)

        def watched(audio: np.ndarray, model: object, starts: list[int], *rest: object) -> Iterator[np.ndarray]:
            heard[name].append(len(starts))
            return original(audio, model, starts, *rest)

        monkeypatch.setattr(stage, name, watched)

    for name in heard:
        watch(name)
    return heard


@pytest.mark.parametrize("seed", range(2))
def test_in_the_end_it_is_the_recordings(
    seed: int, demo: Model, conversation: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline = diarize(conversation, demo)
    assert len(offline.embeddings) >= 2
    heard = counted(monkeypatch)
    pieces = blocks(conversation, seed)
    result, _, _ = live(demo, pieces)
    same_but_for_names(result, offline)
    count = 16  # 24.3 s: 15 windows, and one that is filled up
    before_the_first = [0 < sum(map(len, pieces[: k + 1])) < 10 * RATE for k in range(len(pieces))]
    assert sum(heard["segment"]) == count + sum(before_the_first)
    assert sum(heard["embed"]) <= count and not heard["embed_stretches"]


def test_voices_of_a_stretch_are_heard_together_in_the_end(bundled: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    audio = load_audio(real("data/diar/ami_debug/dev00.wav"))[: 20 * RATE]
    monkeypatch.setattr(bundled, "embedding_stretch", 14.0)  # five windows
    offline = diarize(audio, bundled)
    assert len(offline.turns) >= 2
    heard = counted(monkeypatch)
    result, _, _ = live(bundled, [audio[k : k + RATE] for k in range(0, len(audio), RATE)])
    same_but_for_names(result, offline)
    assert max(heard["embed_stretches"]) == 5 and not heard["embed"]
    # once by itself, once in its stretch
    assert sum(heard["embed_stretches"]) <= 2 * 11


def test_scores_of_a_multilabel_model_are_kept(
    demo: Model, conversation: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They decide between speakers, and are not the classes: here the loudness of a frame."""

    def loudness(
        audio: np.ndarray, model: object, starts: list[int], size: int, batch_size: int
    ) -> Iterator[np.ndarray]:
        for start in starts:
            window = np.zeros(589 * 272, dtype=np.float32)
            samples = audio[start : start + size]
            window[: len(samples)] = samples
            frames = np.sqrt((window.reshape(589, 272) ** 2).mean(axis=1))
            yield np.stack([frames * 8, frames[::-1] * 3, frames * 6], axis=1)[None].clip(0, 1)

    monkeypatch.setattr(stage, "segment", loudness)
    monkeypatch.setattr(demo.segmentation.args, "powerset_max_classes", None)
    audio = conversation[: 15 * RATE + 77]
    offline = diarize(audio, demo)
    assert offline.turns
    result, _, _ = live(demo, [audio[k : k + 2 * RATE] for k in range(0, len(audio), 2 * RATE)])
    same_but_for_names(result, offline)


def test_sound_is_forgotten(demo: Model, bundled: Model, conversation: np.ndarray) -> None:
    for model, most in ((demo, 10.0), (bundled, 14.0)):
        with pytest.MonkeyPatch.context() as patch:
            if model is bundled:
                patch.setattr(model, "embedding_stretch", 14.0)
            growing = GrowingDiarization(model)
            for begin in range(0, 18 * RATE, 3 * RATE):
                steps.run(growing.add(conversation[begin : begin + 3 * RATE]))
                assert growing.seconds_kept <= most
            steps.run(growing.end())
            assert growing.seconds_kept == 0


def test_less_than_a_window(demo: Model, conversation: np.ndarray) -> None:
    """The names are the recording's, as no clustering was told before; what was told is a part of what is said."""
    audio = conversation[: 6 * RATE]
    result, growing, _ = live(demo, [audio[:RATE], audio[RATE:]])
    assert result == diarize(audio, demo) and result.turns and growing.until == 10.0


def test_nothing_at_all(demo: Model) -> None:
    result, growing, listener = live(demo, [np.zeros(0, np.float32)] * 2)
    assert result == Diarization() and not growing.names and not listener.frames
    assert live(demo, [np.zeros(12 * RATE, np.float32)])[0] == Diarization()
    with pytest.warns(UserWarning, match="^0 speakers are found where 2 were asked for"):
        live(demo, [np.zeros(100, np.float32)], num_speakers=2)
    with pytest.raises(OptionError, match="min_speakers"):
        GrowingDiarization(demo, min_speakers=0)


def test_a_clustering_in_numpy_is_the_models(demo: Model) -> None:
    import mlx.core as mx

    assert demo.plda is not None
    vectors = np.random.default_rng(0).normal(size=(50, demo.embedding.args.embedding_size)).astype(np.float32)
    with mx.stream(mx.cpu):
        theirs = np.array(demo.plda(mx.array(vectors, dtype=mx.float64)))
    assert np.allclose(HostPLDA.of(demo.plda).features(vectors), theirs, rtol=0, atol=1e-9)


# --- when it is due, and what is told in between ---------------------------------------------------------------------


def test_when_a_clustering_is_due(demo: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    growing = GrowingDiarization(demo)

    def silent(audio: np.ndarray, model: object, starts: list[int], *_: object) -> Iterator[np.ndarray]:
        yield np.zeros((len(starts), 589, 3), dtype=np.int8)

    monkeypatch.setattr(stage, "segment", silent)
    times: list[int] = []
    for second in range(1, 221):
        steps.run(growing.add(np.zeros(RATE, np.float32)))
        if growing.due:
            times.append(second)
            growing.take(growing.snapshot()())
    expected = [10, 25, 40, 55, 70, 85, 100, 115, 130, 145, 160, 176, 194, 214]
    assert times == expected


def test_a_new_voice_calls_for_a_clustering(demo: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """One speaker for 22 windows, another from then on."""
    size = demo.embedding.args.embedding_size

    def one_voice(audio: np.ndarray, model: object, starts: list[int], *_: object) -> Iterator[np.ndarray]:
        classes = np.zeros((len(starts), 589, 3), dtype=np.int8)
        classes[:, :200, 0] = 1
        yield classes

    heard = 0

    def vectors(audio: np.ndarray, model: object, starts: list[int], *_: object) -> Iterator[np.ndarray]:
        nonlocal heard
        result = np.zeros((len(starts), 3, size), dtype=np.float32)
        for row in range(len(starts)):
            result[row, :, 0 if heard < 22 else 1] = 1.0
            heard += 1
        yield result

    monkeypatch.setattr(stage, "segment", one_voice)
    monkeypatch.setattr(stage, "embed", vectors)
    growing = GrowingDiarization(demo)
    times: list[int] = []
    for second in range(1, 36):
        steps.run(growing.add(np.zeros(RATE, np.float32)))
        growing.provisional()
        if growing.due:
            times.append(second)
            result = growing.snapshot()()
            growing.take(result)
    assert times == [10, 25, 34]  # the first three with the other voice are those of 32 to 34 s


def test_an_older_clustering_is_not_told(demo: Model, conversation: np.ndarray) -> None:
    growing = GrowingDiarization(demo)
    steps.run(growing.add(conversation[: 11 * RATE]))
    older = growing.snapshot()
    steps.run(growing.add(conversation[11 * RATE : 13 * RATE]))
    newer = growing.snapshot()
    assert growing.take(newer()) and growing.until == 13.0
    assert growing.take(older()) == () and growing.until == 13.0


def test_what_is_behind_a_clustering_is_told_at_once(demo: Model, conversation: np.ndarray) -> None:
    growing = GrowingDiarization(demo)
    steps.run(growing.add(conversation[: 15 * RATE]))
    growing.take(growing.snapshot()())
    steps.run(growing.add(conversation[15 * RATE : 22 * RATE]))
    changes = growing.provisional()
    assert changes and all(change.start >= 15.0 for change in changes) and growing.until == 15.0
    assert {change.after for change in changes} - {None} <= set(growing.names)
    assert growing.provisional() == ()
    offline = diarize(conversation, demo)
    speech = sum(max(0.0, min(turn.end, 22.0) - max(turn.start, 15.0)) for turn in offline.exclusive)
    told = sum(change.end - change.start for change in changes if change.after is not None)
    assert told == pytest.approx(speech, abs=1.0)


# --- names -----------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000))
def test_no_name_is_given_to_two(seed: int) -> None:
    """Clusters split, merge, and are numbered anew; the sound grows."""
    rng = np.random.default_rng(seed)
    told = np.full(0, NOBODY)
    name_count = 0
    gone: set[int] = set()
    clusters = rng.integers(-1, 4, size=50)
    for _ in range(6):
        count = int(clusters.max(initial=-1)) + 1
        names, name_count = matched(clusters, told, count, name_count)
        assert len(set(names.tolist())) == len(names) and not gone & set(names.tolist())
        assert np.all((names >= 0) & (names < name_count))
        new = np.where(clusters >= 0, names[clusters], NOBODY) if count else clusters
        gone |= set(told[told >= 0].tolist()) - set(new[new >= 0].tolist())
        told = new
        order = rng.permutation(count + 1)  # another numbering, one more or one less
        moved = np.where(clusters >= 0, order[np.minimum(clusters, count)], NOBODY)
        if rng.random() < 0.5:
            moved[rng.random(len(moved)) < 0.3] = rng.integers(0, count + 2)
        clusters = np.concatenate([moved, rng.integers(-1, count + 1, size=20)])
        clusters = np.where(clusters >= 0, np.unique(clusters, return_inverse=True)[1] - (clusters.min() < 0), NOBODY)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_equal_partitions_keep_their_names(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    clusters = rng.integers(-1, count, size=200)
    clusters[:count] = np.arange(count)
    names, name_count = matched(clusters, clusters[:0], count, 0)
    told = np.where(clusters >= 0, names[clusters], NOBODY)
    # in order of first appearance
    assert names.tolist() == list(range(count)) and name_count == count
    order = rng.permutation(count)
    again = np.where(clusters >= 0, order[clusters], NOBODY)
    renamed, later_count = matched(again, told, count, name_count)
    assert np.array_equal(renamed[order], names) and later_count == name_count


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_rows_stay_where_they_are() -> None:
    rng = np.random.default_rng(0)
    rows = Rows(3, np.float32)
    everything = rng.normal(size=(5000, 3)).astype(np.float32)
    taken = []
    begin = 0
    while begin < len(everything):
        end = min(len(everything), begin + int(rng.integers(0, 700)))
        rows.append(everything[begin:end])
        begin = end
        taken.append((end, rows.rows(end // 2, end)))
    for end, pieces in taken:
        assert np.array_equal(np.concatenate(pieces), everything[end // 2 : end])


def test_sound_that_is_dropped_is_given_back() -> None:
    rng = np.random.default_rng(1)
    sound = SoundBuffer()
    everything = np.arange(20_000_000, dtype=np.float32)
    end = 0
    for length in [1, 0, 500, 12_000_000, 100, 100, 3000]:
        sound.add(everything[end : end + length])
        end += length
        sound.drop_before(end - int(rng.integers(0, 200)))
        assert np.array_equal(sound.samples, everything[sound.start : end]) and sound.end == end
        assert len(sound.samples) <= 200 and len(sound._buffer) < 1 << 22
