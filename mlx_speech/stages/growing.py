"""Who speaks when in sound that is still coming in.

The windows are those of `stages.diarize`, each heard once, as soon as its last sample is there. What the models said of
them is kept, and clustered as a whole again and again: speakers that are only ever compared with those before come out
several times worse. The clusters of one time are matched with those told before, so that a speaker keeps the name. At
the end the result is that of `diarize` on all of the sound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from mlx_speech.features import SAMPLE_RATE, one_channel
from mlx_speech.models.diarization_pipeline import Model
from mlx_speech.sound_buffer import SoundBuffer
from mlx_speech.stages import cluster, diarize, windows
from mlx_speech.stages.cluster import HostPLDA, speaker_bounds
from mlx_speech.stages.window_cache import Cache, Heard
from mlx_speech.stages.windows import Windows
from mlx_speech.steps import Steps
from mlx_speech.transcript import Diarization, Turn

# A clustering is due this long after the one before, in seconds, or in parts of all that was clustered then: what all
# of them cost together then grows as what the last one costs.
LEAST_INTERVAL = 15.0
GROWTH = 1.1
# Somebody new calls for one earlier: a voice that is alone for some seconds, further from all speakers than this cosine
# distance, in some windows in a row. It calls once only until the sound has grown by a part of it.
NEW_SECONDS = 1.0
NEW_DISTANCE = 0.65
NEW_WINDOWS = 3
NEW_GROWTH = 1.02
NOBODY = -1


class Change(NamedTuple):
    """From `start` to `end`, in seconds, somebody else speaks than was told before; None is nobody."""

    start: float
    end: float
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Clustering:
    """Who speaks when in the first `windows` windows, with names of its own."""

    windows: int
    diarization: Diarization


class GrowingDiarization:
    """Who speaks when, told while the sound comes in. All methods are for one thread, that of the models; what
    `snapshot` gives may run in another.

    num_speakers, min_speakers, max_speakers : as of `stages.diarize.diarize`
    batch_size : windows that go through the models at once, where that many are there

    Raises `OptionError` and `ConfigError` as `diarize` does.
    """

    def __init__(
        self,
        model: Model,
        *,
        num_speakers: int | None = None,
        min_speakers: int | None = None,
        max_speakers: int | None = None,
        batch_size: int = 8,
    ) -> None:
        self._bounds = speaker_bounds(num_speakers, min_speakers, max_speakers)
        diarize.check(model)
        self._model = model
        self._batch_size = batch_size
        self._size, self._step = diarize.window_sizes(model)
        self._settings = diarize.settings_of(model)
        self._frames = self._settings["frames"]
        self._chunks = Windows(self._settings["duration"], self._step / SAMPLE_RATE)
        self._sound = SoundBuffer()
        self._cache = Cache(model)
        self._open: int | None = None  # the first window of a stretch that is not whole yet
        self._loose: dict[int, np.ndarray] = {}  # its windows, in order → vectors of their voices

        self._told = np.full(0, NOBODY, dtype=np.int16)  # of every frame, the number of the name told
        self._name_count = 0
        self._asked = 0  # windows of the latest snapshot
        self._clustered = 0  # windows of the latest clustering that was taken
        self._shown = 0  # windows whose voices were told, clustered or not
        self._centroids = np.zeros((0, model.embedding.args.embedding_size))
        self._centroid_names = np.zeros(0, dtype=int)
        self._looked_at = 0  # windows in which new voices were looked for
        self._new_in_a_row = 0

    # --- what is told -----------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """All that were told, in the order in which they were."""
        return tuple(name_of(number) for number in range(self._name_count))

    @property
    def until(self) -> float:
        """Seconds before which speakers were told apart by a clustering; what lies behind is provisional."""
        return self._end_of(self._clustered)

    def turns(self, start: float, end: float) -> tuple[Turn, ...]:
        """Who was told to speak between two moments, in seconds; never two at once."""
        first = max(0, self._frames.closest(start))
        labels = self._told[first : max(0, self._frames.closest(end)) + 1]
        turns: list[Turn] = []
        for begin, behind in _stretches(labels, labels):
            if labels[begin] != NOBODY:
                seconds = (self._frames.middle(first + begin), self._frames.middle(first + behind))
                turns.append(Turn(*seconds, name_of(int(labels[begin]))))
        return tuple(turns)

    @property
    def seconds_kept(self) -> float:
        """Of sound that is in memory."""
        return len(self._sound) / SAMPLE_RATE

    @property
    def due(self) -> bool:
        """Whether it is time for a snapshot: after the first window, then at intervals that grow, or for new voices."""
        count = len(self._cache.classes)
        if count <= self._asked:
            return False
        if self._asked == 0:
            return True
        now = self._end_of(count)
        last = self._end_of(self._asked)
        if now >= max(last + LEAST_INTERVAL, GROWTH * last):
            return True
        is_new = self._new_in_a_row >= NEW_WINDOWS and self._asked == self._clustered
        return is_new and now >= NEW_GROWTH * last

    # --- the sound --------------------------------------------------------------------------------------------------

    def add(self, samples: np.ndarray) -> Steps[None]:
        """Take in the next samples (n,) at 16 kHz, floats in [-1, 1], in steps of a batch of windows that are whole
        now: yields the seconds of sound up to the end of the last.

        Raises `AudioError` for samples of another shape.
        """
        self._sound.add(one_channel(samples, "speakers are told apart"))
        while True:
            first = len(self._cache.classes)
            whole = (self._sound.end - self._size) // self._step + 1
            last = min(whole, first + self._batch_size)
            if last <= first:
                return
            self._hear(first, last)
            self._forget_sound()
            yield self._end_of(last)

    def provisional(self) -> tuple[Change, ...]:
        """Tell who speaks behind the last clustering: the voices of each window are taken for the nearest speakers.
        Before the first whole window, one that is filled up with zeros is heard at every call, and not kept.

        Returns what is new or other than told before, in order of time.
        """
        count = len(self._cache.classes)
        if count == 0:
            return self._tell_the_beginning()
        if self._clustered == 0:  # a clustering is due, or under way
            return ()
        self._look_for_new_voices()
        fresh = max(self._clustered, self._shown)
        if fresh >= count:
            return ()
        self._shown = count
        # frames from the first fresh window on, in which earlier ones are heard, too
        first = max(self._clustered, fresh - math.ceil(self._size / self._step))
        heard = self._heard(first, count)
        clusters = self._nearest(heard.vectors_of_windows(), heard.speaking())
        labels = self._labels(heard, clusters)
        begin = self._first_frame(first)
        told_from = max(self._first_frame(fresh), self._frame_count(self._clustered))
        return self._tell(told_from, labels[told_from - begin :])

    def snapshot(self) -> Callable[[], Clustering]:
        """The clustering of all windows so far, to be run in any thread while sound is added: it needs NumPy alone.
        `take` its result. Where voices are heard in stretches, those of a stretch that goes on are heard first."""
        count = len(self._cache.classes)
        self._look_for_new_voices()
        self._asked = count
        self._new_in_a_row = 0
        heard = self._heard(0, count)
        settings = self._settings.copy()
        if settings["plda"] is not None:
            settings["plda"] = HostPLDA.of(settings["plda"])
        bounds = self._bounds

        def run() -> Clustering:
            return Clustering(count, diarize.told_apart(heard, bounds, **settings))

        return run

    def take(self, result: Clustering) -> tuple[Change, ...]:
        """Tell what a clustering has found, unless a later one has been taken already.

        Returns what is new or other than told before, in order of time.
        """
        if result.windows <= self._clustered:
            return ()
        self._clustered = result.windows
        self._shown = result.windows
        self._looked_at = result.windows
        self._new_in_a_row = 0
        changes, names = self._tell_all(result.diarization, self._frame_count(result.windows))
        # who only speaks while others do has zeros
        vectors = {label: vector for label, vector in result.diarization.embeddings.items() if any(vector)}
        self._centroids = np.array([*vectors.values()]).reshape(-1, self._centroids.shape[1])
        self._centroid_names = np.array([names[label] for label in vectors], dtype=int)
        return changes

    def end(self) -> Steps[tuple[Diarization, tuple[Change, ...]]]:
        """All of the sound has been added: hear what is left of it, in steps of a batch of windows, and tell speakers
        apart for the last time. Yields as `add` does.

        Returns what `diarize` gives for all of the sound, with the names that were told, and what is new or other than
        told before. Where no clustering was taken before, names are `diarize`'s. Warns as `diarize` does.
        """
        total = self._sound.end
        count = len(windows.starts(total, self._size, self._step)) if total else 0
        for first in range(len(self._cache.classes), count, self._batch_size):
            last = min(count, first + self._batch_size)
            self._hear(first, last)
            yield min(self._end_of(last), total / SAMPLE_RATE)
        if self._open is not None:
            self._close_stretch(count)
        self._sound.drop_before(total)
        if not self._cache.vectors.count:
            changes, _ = self._tell_all(Diarization(), len(self._told))
            return diarize.without_turns(self._bounds), changes
        result = diarize.from_cache(self._heard(0, count), self._bounds, self._settings)
        result = replace(result, embedding_model=self._model.embedding.identity)
        keeps_names = self._clustered > 0
        changes, numbers = self._tell_all(result, max(len(self._told), self._frame_count(count)), keeps_names)
        self._clustered = count
        return _renamed(result, numbers), changes

    # --- the windows ------------------------------------------------------------------------------------------------

    def _hear(self, first: int, last: int) -> None:
        """What the models say of windows `first` to before `last`, into the cache."""
        starts = self._starts(first, last)
        batches = diarize.segment(self._sound.samples, self._model.segmentation, starts, self._size, len(starts))
        scores = np.concatenate(list(batches))
        classes = diarize.speaking(scores, self._model)
        self._cache.append(classes, scores)
        if self._model.embedding_stretch is None:
            self._cache.append_vectors(self._embedded(first, classes))
            return
        longest = round(self._model.embedding_stretch * SAMPLE_RATE)
        for window in range(first, last):
            if self._open is not None and (window - self._open) * self._step + self._size > longest:
                self._close_stretch(window)
            if self._open is None and classes[window - first].any():
                self._open = window

    def _embedded(self, first: int, classes: np.ndarray) -> np.ndarray:
        """Vectors of the voices that speak in windows from `first` on, (voices, dimension): at first those of the first
        window. classes : theirs, (windows, frames, speakers)"""
        active = np.asarray(classes.any(axis=1))
        voiced = np.flatnonzero(active.any(axis=1))
        masks = diarize.voice_masks(classes, self._size, self._model.embedding_exclude_overlap)[voiced]
        starts = self._starts(first, first + len(classes))
        voiced_starts = [starts[window] for window in voiced]
        rows = [np.zeros((0, *active.shape[1:], self._centroids.shape[1]), dtype=np.float32)]
        rows += diarize.embed_voices(self._sound.samples, self._model, voiced_starts, masks, max(1, len(voiced)))
        return np.concatenate(rows)[active[voiced]]

    def _close_stretch(self, last: int) -> None:
        """Hear the voices of the stretch together, which ends before window `last`."""
        first = self._cache.whole
        self._cache.append_vectors(self._embedded(first, self._cache.classes_of(first, last)))
        self._open = None
        self._loose.clear()

    def _hear_loose(self) -> None:
        """The voices of a stretch that is not whole yet: of every window once, together with those that are as new.
        The whole stretch would be heard again and again otherwise."""
        first = self._cache.whole + len(self._loose)
        last = len(self._cache.classes)
        if first == last:
            return
        classes = self._cache.classes_of(first, last)
        vectors = self._embedded(first, classes)
        voices = classes.any(axis=1).sum(axis=1)
        for window, own in enumerate(np.split(vectors, np.cumsum(voices)[:-1])):
            self._loose[first + window] = own

    def _heard(self, first: int, last: int) -> Heard:
        """Of windows `first` to before `last`, as it is now."""
        self._hear_loose()
        loose = [vectors for window, vectors in self._loose.items() if first <= window < last]
        return self._cache.heard(first, last, loose)

    def _forget_sound(self) -> None:
        """What no window and no stretch needs any more."""
        needed = len(self._cache.classes) if self._open is None else self._open
        self._sound.drop_before(needed * self._step)

    def _starts(self, first: int, last: int) -> list[int]:
        """The first samples of windows, in what is kept of the sound."""
        return [window * self._step - self._sound.start for window in range(first, last)]

    def _end_of(self, count: int) -> float:
        """Seconds to the end of the first `count` windows."""
        if count == 0:
            return 0.0
        return ((count - 1) * self._step + self._size) / SAMPLE_RATE

    # --- speakers ---------------------------------------------------------------------------------------------------

    def _nearest(self, vectors: np.ndarray, active: np.ndarray) -> np.ndarray:
        """Of voices (windows, speakers, dimension), the names of the nearest speakers, (windows, speakers); `NONE` for
        who is silent, cannot be compared, or is left over. active : (windows, speakers)"""
        comparable = active & np.isfinite(vectors).all(axis=2)
        if not len(self._centroids) or not comparable.any():
            return np.full(active.shape, cluster.NONE)
        nearest = cluster.constrained_argmax(2 - self._distances(vectors), active)
        names = self._centroid_names[np.maximum(nearest, 0)]
        return np.where(comparable & (nearest != cluster.NONE), names, cluster.NONE)

    def _distances(self, vectors: np.ndarray) -> np.ndarray:
        """Cosine distances from the speakers, (…, dimension) → (…, speakers)."""
        from scipy.spatial.distance import cdist

        flat = vectors.reshape(-1, vectors.shape[-1])
        return cdist(flat, self._centroids, metric="cosine").reshape(*vectors.shape[:-1], len(self._centroids))

    def _look_for_new_voices(self) -> None:
        """Count the windows in a row that have a voice which is nobody's."""
        count = len(self._cache.classes)
        first = self._looked_at
        if self._clustered == 0 or first >= count:
            return
        heard = self._heard(first, count)
        vectors = heard.vectors_of_windows()
        is_long = heard.alone() * self._frames.step >= NEW_SECONDS  # (windows, speakers)
        is_far = np.isfinite(vectors).all(axis=2)
        if len(self._centroids):
            is_far &= self._distances(vectors).min(axis=2) > NEW_DISTANCE
        for has_new in np.asarray((is_long & is_far).any(axis=1)):
            if has_new:
                self._new_in_a_row += 1
            else:
                self._new_in_a_row = 0
        self._looked_at = count

    # --- frames and names -------------------------------------------------------------------------------------------

    def _first_frame(self, window: int) -> int:
        """Of a window, among all frames."""
        return self._frames.closest(window * self._chunks.step + 0.5 * self._frames.duration)

    def _frame_count(self, count: int) -> int:
        """Of the first `count` windows."""
        if count == 0:
            return 0
        return self._frames.closest(self._end_of(count) + 0.5 * self._frames.duration) + 1

    def _labels(self, heard: Heard, clusters: np.ndarray) -> np.ndarray:
        """Who speaks, one at most, in every frame from the first of these windows on, (frames,); or `NOBODY`."""
        count = diarize.speakers_at_once(heard, self._chunks, self._frames)
        if clusters.max() < 0:
            return np.full(len(count), NOBODY)
        activations = np.concatenate(list(diarize.activity(heard, clusters, self._chunks, self._frames)))
        someone = (count > 0) & (activations.max(axis=1) > 0)
        return np.where(someone, activations.argmax(axis=1), NOBODY)

    def _tell_the_beginning(self) -> tuple[Change, ...]:
        """Who speaks in sound that is shorter than a window: its voices are the speakers."""
        if self._sound.end == 0:
            return ()
        batches = diarize.segment(self._sound.samples, self._model.segmentation, [0], self._size, 1)
        scores = np.concatenate(list(batches))
        classes = diarize.speaking(scores, self._model)
        voices = np.where(classes.any(axis=1), np.arange(classes.shape[2]), cluster.NONE)
        vectors = np.zeros((1, classes.shape[2], 0))
        labels = self._labels(Heard.of(classes, vectors, scores), voices)
        labels = labels[: max(0, self._frames.closest(self._sound.end / SAMPLE_RATE))]
        appearing = np.unique(labels[labels >= 0])
        if len(appearing):
            labels = np.where(labels >= 0, np.searchsorted(appearing, labels), NOBODY)
            names, self._name_count = matched(labels, self._told, len(appearing), self._name_count)
            labels = np.where(labels >= 0, names[labels], NOBODY)
        return self._tell(0, labels)

    def _tell_all(
        self, found: Diarization, count: int, keeps_names: bool = True
    ) -> tuple[tuple[Change, ...], dict[str, int]]:
        """Tell who speaks in the first `count` frames. Returns the changes, and the names' numbers by label."""
        clusters = {label: number for number, label in enumerate(found.embeddings)}
        labels = np.full(count, NOBODY)
        for turn in found.exclusive:
            labels[self._frames.closest(turn.start) : self._frames.closest(turn.end)] = clusters[turn.speaker]
        if keeps_names:
            told = self._told[:count]
            numbers, self._name_count = matched(labels, told, len(clusters), self._name_count)
        else:
            numbers = np.arange(len(clusters))
            self._name_count = max(self._name_count, len(clusters))
        if len(clusters):
            labels = np.where(labels >= 0, numbers[labels], NOBODY)
        names = {label: int(numbers[number]) for label, number in clusters.items()}
        return self._tell(0, labels), names

    def _tell(self, first: int, labels: np.ndarray) -> tuple[Change, ...]:
        """Tell the names' numbers (frames,) from a frame on; returns the changes."""
        last = first + len(labels)
        if last > len(self._told):
            self._told = np.concatenate([self._told, np.full(last - len(self._told), NOBODY, dtype=np.int16)])
        before = self._told[first:last].copy()
        self._told[first:last] = labels
        changes: list[Change] = []
        for start, end in _stretches(before, labels):
            if before[start] != labels[start]:
                seconds = (self._frames.middle(first + start), self._frames.middle(first + end))
                changes.append(Change(*seconds, _said(before[start]), _said(labels[start])))
        return tuple(changes)


def matched(clusters: np.ndarray, told: np.ndarray, cluster_count: int, name_count: int) -> tuple[np.ndarray, int]:
    """The names of clusters: those of whom was told where they speak, as many frames as can be, none twice. The others
    get new names in order of first appearance, so that a name that nobody has any more is not given again.

    clusters : of every frame (frames,), from 0 to before `cluster_count`, or `NOBODY`
    told : the same of names, from 0 to before `name_count`; it may be shorter

    Returns the name of every cluster (clusters,), and how many names there are then.
    """
    from scipy.optimize import linear_sum_assignment

    names = np.full(cluster_count, NOBODY)
    common = min(len(clusters), len(told))
    both = (clusters[:common] >= 0) & (told[:common] >= 0)
    pairs = clusters[:common][both].astype(int) * name_count + told[:common][both]
    shared = np.bincount(pairs, minlength=cluster_count * name_count).reshape(cluster_count, name_count)
    for own, name in zip(*linear_sum_assignment(shared, maximize=True), strict=True):
        if shared[own, name] > 0:
            names[own] = name
    appearing, first = np.unique(clusters[clusters >= 0], return_index=True)
    in_order = appearing[np.argsort(first)].tolist()
    silent = [own for own in range(cluster_count) if own not in set(in_order)]  # who only speaks while others do
    for own in in_order + silent:
        if names[own] == NOBODY:
            names[own] = name_count
            name_count += 1
    return names, name_count


def name_of(number: int) -> str:
    """A name by its number."""
    return f"SPEAKER_{number:02d}"


def _said(number: int) -> str | None:
    """The same, or None for `NOBODY`."""
    return None if number == NOBODY else name_of(number)


def _renamed(found: Diarization, numbers: dict[str, int]) -> Diarization:
    """With the names told. numbers : of the names, by label"""
    names = {label: name_of(number) for label, number in numbers.items()}

    def with_names(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
        return tuple(replace(turn, speaker=names[turn.speaker]) for turn in turns)

    embeddings = {names[label]: vector for label, vector in found.embeddings.items()}
    return replace(
        found,
        turns=with_names(found.turns),
        exclusive=with_names(found.exclusive),
        embeddings=dict(sorted(embeddings.items())),
    )


def _stretches(one: np.ndarray, other: np.ndarray) -> list[tuple[int, int]]:
    """(first, behind the last) of the stretches of frames in which neither changes."""
    if not len(one):
        return []
    edges = np.flatnonzero((np.diff(one) != 0) | (np.diff(other) != 0)) + 1
    return list(pairwise([0, *edges.tolist(), len(one)]))
