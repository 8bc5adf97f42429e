"""Batches that there is too little memory for: every chunk comes back once, from a smaller one."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

import mlx_speech
from mlx_speech import batches
from mlx_speech.batches import Batches
from mlx_speech.errors import OutOfMemory
from mlx_speech.options import Options
from mlx_speech.package_data import DEMO
from mlx_speech.recording import Recording
from mlx_speech.stages.whisper.batched import Recognised, Recognition, Task
from mlx_speech.transcript import Chunk, Segment

OPTIONS = Options.of(word_timestamps="none")


class Tight:
    """Stands for a `Recognition` with memory for so many chunks, which gives them back in any order.

    most : chunks at once; made : the sizes of all that were made; added : all tasks, as often as they were queued
    """

    most = 1
    made: ClassVar[list[int]] = []
    added: ClassVar[list[Task]] = []
    chance = random.Random(0)

    def __init__(self, model: Any, tokenizer: Any, options: Any, *, batch_size: int, workload: Any) -> None:
        self.size = batch_size
        self.tasks: list[Task] = []
        self.made.append(batch_size)

    @property
    def decoding(self) -> int:
        return min(self.size, len(self.tasks))

    def add(self, task: Task) -> None:
        self.tasks.append(task)
        self.added.append(task)

    def cancel(self, owner: Any) -> None:
        self.tasks = [task for task in self.tasks if task.owner is not owner]

    def advance(self) -> list[Recognised]:
        rows = self.tasks[: self.size]
        if len(rows) > self.most:
            if self.chance.random() < 0.5:  # a row may be done before the others want too much
                return self._done(rows[:1])
            raise MemoryError
        return self._done(self.chance.sample(rows, self.chance.randint(0, len(rows))))

    def _done(self, tasks: list[Task]) -> list[Recognised]:
        self.tasks = [task for task in self.tasks if task not in tasks]
        return [Recognised(task, (segment_of(task),), ()) for task in tasks]


def segment_of(task: Task) -> Segment:
    return Segment(task.chunk.start, task.chunk.end, f"{task.seed} {task.audio[0]:g}")


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Tight]]:
    monkeypatch.setattr(batches, "Recognition", Tight)
    monkeypatch.setattr(Tight, "chance", random.Random(7))
    monkeypatch.setattr(Tight, "made", [])
    monkeypatch.setattr(Tight, "added", [])
    yield Tight


def recording_of(count: int) -> Recording:
    """A second a chunk, whose samples are its number."""
    recording = Recording(None, OPTIONS)
    recording.chunks = [Chunk(float(place), place + 1.0) for place in range(count)]
    recording.audio = np.repeat(np.arange(count, dtype=np.float32), 16_000)
    recording.language = "en"
    return recording


def batches_without_models() -> Batches:
    models: Any = SimpleNamespace(whisper=lambda: SimpleNamespace(model=None, tokenizer=None))
    return Batches(models)


def check_heard(recording: Recording) -> None:
    """Every chunk came back once, with its own seed and sound."""
    assert recording.pending == 0
    assert sorted(heard.place for heard in recording.news) == list(range(len(recording.chunks)))
    for heard in recording.news:
        assert [segment.text for segment in heard.segments] == [f"{heard.place} {heard.place}"]


def halvings(size: int) -> list[int]:
    """It, its half, … 1."""
    sizes = [size]
    while sizes[-1] > 1:
        sizes.append(sizes[-1] // 2)
    return sizes


def hear(shared: Batches, recordings: list[Recording], size: int) -> int:
    """All chunks of the recordings; how many warnings there were."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for recording in recordings:
            shared.add(recording, size)
        while shared.advance():
            pass
    return len(told)


@pytest.mark.parametrize("counts", [(1,), (9,), (3, 5), (4, 1, 7)])
def test_every_chunk_comes_back_once(tight: type[Tight], counts: tuple[int, ...]) -> None:
    for size, most in itertools.product(range(1, 10), range(1, 10)):
        tight.most = most
        tight.made.clear()
        shared = batches_without_models()
        recordings = [recording_of(count) for count in counts]
        warned = hear(shared, recordings, size)
        for recording in recordings:
            assert recording.error is None
            check_heard(recording)
        assert tight.made == halvings(size)[: len(tight.made)]
        needed = min(size, sum(counts))
        assert len(tight.made) == 1 or needed > most
        assert warned == (len(tight.made) > 1)


def test_a_recording_in_two_batches(tight: type[Tight]) -> None:
    """As of a live session whose pipeline gets another batch size: it leaves each with its last chunk there."""
    tight.most = 9
    shared = batches_without_models()
    recording = recording_of(6)
    for place, size in enumerate((2, 2, 4, 4, 4, 2)):
        start = place * 16_000
        shared.add_chunk(recording, place, recording.audio[start : start + 16_000], size)
    steps = 0
    while shared.advance():
        steps += 1
        assert steps < 1000
    check_heard(recording)
    assert not shared._batches and recording.seconds["transcribe"] > 0


def test_rows_in_use_are_told(tight: type[Tight]) -> None:
    tight.most = 9
    shared = batches_without_models()
    recordings = [recording_of(30), recording_of(30)]
    shared.add(recordings[0], 4)
    shared.add(recordings[1], 3)  # a batch of its own
    rows: list[int] = []
    while shared.advance():
        rows.append(shared.workload.rows)
    assert max(rows) == 4 + 3 and rows[-1] == 0
    shared.add(recording_of(5), 4)
    while not shared.workload.rows:
        shared.advance()
    for batch in list(shared._batches.values()):
        shared.cancel(batch.recordings[0])
    shared.advance()
    assert shared.workload.rows == 0


@pytest.mark.parametrize("size", range(1, 10))
def test_where_not_even_one_has_room_all_hear_of_it(tight: type[Tight], size: int, monkeypatch: Any) -> None:
    tight.most = 0
    monkeypatch.setattr(tight.chance, "random", lambda: 1.0)
    shared = batches_without_models()
    recordings = [recording_of(2), recording_of(3)]
    warned = hear(shared, recordings, size)
    assert tight.made == halvings(size) and warned == (size > 1)
    for recording in recordings:
        assert isinstance(recording.error, OutOfMemory) and not recording.news


def test_what_is_cancelled_is_not_begun_again(tight: type[Tight], monkeypatch: Any) -> None:
    tight.most = 2
    monkeypatch.setattr(tight.chance, "random", lambda: 1.0)
    shared = batches_without_models()
    gone = recording_of(3)
    stays = recording_of(3)
    shared.add(gone, 4)
    shared.add(stays, 4)
    shared.cancel(gone)
    tight.added.clear()
    with pytest.warns(UserWarning, match="too little memory for 4 chunks at once: goes on with 2; give batch_size=2"):
        while shared.advance():
            pass
    check_heard(stays)
    assert {task.owner for task in tight.added} == {stays} and not gone.news


def test_the_next_batch_has_its_full_size_again(tight: type[Tight]) -> None:
    shared = batches_without_models()
    for most in (1, 4):
        tight.most = most
        recording = recording_of(8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shared.add(recording, 4)
            while shared.advance():
                pass
        check_heard(recording)
    assert tight.made[-1] == 4 and len(tight.made) > 2


def test_warnings_that_are_errors_end_the_recordings_alone(tight: type[Tight]) -> None:
    shared = batches_without_models()
    tight.most = 1
    recording = recording_of(9)
    shared.add(recording, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while shared.advance():
            pass
    assert isinstance(recording.error, UserWarning)


def test_a_transcript_does_not_depend_on_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the demo's models; the temperature makes it depend on the seeds. Log-probabilities are rounded otherwise."""

    def told(segment: Segment) -> tuple[Any, ...]:
        return segment.start, segment.end, segment.text, segment.tokens, segment.temperature

    class Failing(Recognition):
        """Has steps enough to give chunks back before the memory is too little."""

        steps = 0

        def advance(self) -> list[Recognised]:
            self.steps += 1
            if self._batch_size > 2 and self.steps > 12:
                raise MemoryError
            return super().advance()

    sound = DEMO / "conversation.flac"
    options: dict[str, Any] = {"word_timestamps": "none", "language": "en", "temperature": 0.7}
    with mlx_speech.Pipeline.demo(device="cpu", batch_size=8) as pipe:
        expected = pipe(sound, **options)
        monkeypatch.setattr(batches, "Recognition", Failing)
        with pytest.warns(UserWarning, match="too little memory for 8 chunks at once: goes on with 4"):
            found = pipe(sound, **options)
    assert found.text and [told(segment) for segment in found.segments] == [told(one) for one in expected.segments]
