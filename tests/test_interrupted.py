"""Clients that go and send again, jobs that are begun again: what was heard for them is not heard once more."""

from __future__ import annotations

import asyncio
import io
import json
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asgi import Answer, ask, form, post
from patience import in_time
from scripted_jobs import Clock, add, ended, runner_of
from serving import Scripted, app_of, wav

import mlx_speech
from mlx_speech.batches import Batches
from mlx_speech.package_data import DEMO
from mlx_speech.request import Heard
from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.server.interrupted import KEEP, Interrupted, size_of
from mlx_speech.server.jobs.journal import from_json, maker_of
from mlx_speech.transcript import Chunk, Segment, Transcript

SECONDS = 15  # of the demo's conversation
PATH = "/v1/audio/transcriptions"
LIMIT = 60.0  # seconds for what must not hang
RETRY = {"x-stainless-retry-count": "1"}
SHORT: dict[str, Any] = {"chunk_size": 3.0, "temperature": 0.0}


@pytest.fixture(scope="module")
def demo() -> Iterator[mlx_speech.Pipeline]:
    with mlx_speech.Pipeline.demo(batch_size=1) as made:
        yield made


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return mlx_speech.load_audio(DEMO / "conversation.flac")[: SECONDS * SAMPLE_RATE]


@pytest.fixture
def recognised(monkeypatch: pytest.MonkeyPatch) -> list[Chunk]:
    """The chunks that Whisper is given."""
    given: list[Chunk] = []
    add_chunk = Batches.add_chunk

    def counted(self: Batches, recording: Any, place: int, *others: Any) -> None:
        given.append(recording.chunks[place])
        add_chunk(self, recording, place, *others)

    monkeypatch.setattr(Batches, "add_chunk", counted)
    return given


def without_times(transcript: Transcript) -> Transcript:
    return replace(transcript, seconds={})


# --- the pipeline -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["none", "attention", "ctc"])
def test_known_chunks_are_not_recognised_again(
    demo: mlx_speech.Pipeline, speech: np.ndarray, recognised: list[Chunk], words: Any
) -> None:
    """Whichever they are: all, none, some; the transcript is the same, and all of them are told of."""
    options = {**SHORT, "word_timestamps": words}
    first = demo.submit(speech, **options)
    expected = without_times(first.result(LIMIT))
    heard = [event for event in first.events_so_far() if isinstance(event, Heard)]
    chunks = {one.chunk for one in heard}
    assert len(chunks) == len(heard) > 3 and set(recognised) == chunks
    some = random.Random(words).sample(heard, 2)
    for known in (heard, some):
        recognised.clear()
        again = demo.submit(speech, known=known, **options)
        assert without_times(again.result(LIMIT)) == expected
        assert set(recognised) == chunks - {one.chunk for one in known}
        told = [event for event in again.events_so_far() if isinstance(event, Heard)]
        assert sorted(told, key=lambda one: one.place) == sorted(heard, key=lambda one: one.place)


def test_chunks_of_another_cut_are_not_known(
    demo: mlx_speech.Pipeline, speech: np.ndarray, recognised: list[Chunk]
) -> None:
    first = demo.submit(speech, **{**SHORT, "chunk_size": 4.0})
    first.result(LIMIT)
    heard = [event for event in first.events_so_far() if isinstance(event, Heard)]
    expected = without_times(demo(speech, **SHORT))
    recognised.clear()
    again = demo.submit(speech, known=heard, **SHORT)
    assert without_times(again.result(LIMIT)) == expected
    assert len(recognised) > 1


# --- the server -------------------------------------------------------------------------------------------------------


def parts(sound: bytes = b"sound", **fields: str) -> bytes:
    given = {"model": "scripted", **fields}
    return form([*((name, value, None) for name, value in given.items()), ("file", sound, "a.wav")])


async def until(happens: Any) -> None:
    while not happens():
        await asyncio.sleep(0.001)


class Gate:
    """Whisper is held when it is about to give back the third chunk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self._count = 0
        self._deliver = Batches._deliver
        monkeypatch.setattr(Batches, "_deliver", lambda *values: self._delivered(*values))

    def _delivered(self, *values: Any) -> None:
        self._count += 1
        if self._count == 3:
            self.reached.set()
            assert self.opened.wait(LIMIT)
        self._deliver(*values)


@pytest.mark.parametrize("stream", ["false", "true"])
def test_a_client_that_comes_again_goes_on(
    demo: mlx_speech.Pipeline,
    speech: np.ndarray,
    recognised: list[Chunk],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stream: str,
) -> None:
    app = app_of(demo, tmp_path)
    body = parts(wav(speech), chunk_size="3", stream=stream)

    async def visits() -> None:
        whole = await ask(app, post(PATH), body)
        total = len(recognised)
        gate = Gate(monkeypatch)
        gone = asyncio.Event()
        leaving = asyncio.create_task(ask(app, post(PATH), body, gone=gone))
        await until(gate.reached.is_set)
        gone.set()
        await leaving
        gate.opened.set()
        (kept,) = app.state.service.interrupted._kept.values()
        recognised.clear()
        again = await ask(app, post(PATH, **RETRY), body)
        assert whole.status == again.status == 200 and again.body == whole.body
        assert len(kept.heard) >= 1 and len(recognised) == total - len(kept.heard)
        assert not {one.chunk for one in kept.heard} & set(recognised)

    in_time(visits())


def test_a_job_goes_on_behind_a_stop(
    demo: mlx_speech.Pipeline,
    speech: np.ndarray,
    recognised: list[Chunk],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sound = wav(speech)
    expected = without_times(demo(io.BytesIO(sound), **SHORT))
    total = len(recognised)

    async def work() -> None:
        gate = Gate(monkeypatch)
        runner = runner_of(tmp_path, demo)
        async with runner.running():
            job = await add(runner, tmp_path, sound, options=SHORT)
            await until(gate.reached.is_set)
            await until(lambda: runner.store.chunks(job.id, maker_of(demo)))
            kept = runner.store.chunks(job.id, maker_of(demo))
        gate.opened.set()
        recognised.clear()
        runner = runner_of(tmp_path, demo)
        async with runner.running():
            assert (await ended(runner, job)).status == "succeeded"
            _, content = runner.store.result(job.id, "")
        assert without_times(mlx_speech.Transcript.from_dict(json.loads(content))) == expected
        assert len(recognised) <= total - len(kept)
        assert not {from_json(one).chunk for one in kept} & set(recognised)

    in_time(work())


class Visits:
    """A server whose work does not end until it is told to, and clients that leave it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.pipeline = Scripted()
        self.app = app_of(self.pipeline, folder, **settings)
        self.clock = Clock()
        self.app.state.service.interrupted = Interrupted(clock=self.clock)

    @property
    def known(self) -> int:
        """Chunks that the last request brought."""
        return len(self.pipeline.known[-1])

    async def leave(self, body: bytes, path: str = PATH, **headers: str) -> None:
        """Send, and go when the pipeline has told of two chunks."""
        self.pipeline.holds = threading.Event()
        gone = asyncio.Event()
        count = len(self.pipeline.requests)
        asking = asyncio.create_task(ask(self.app, post(path, **headers), body, gone=gone))
        await until(lambda: len(self.pipeline.requests) > count)
        request = self.pipeline.requests[-1]
        await until(lambda: len(request.events_so_far()) == 3)
        gone.set()
        await asking
        self.pipeline.holds.set()

    async def come(self, body: bytes, path: str = PATH, **headers: str) -> Answer:
        return await ask(self.app, post(path, **headers), body)


def test_only_the_same_again_goes_on(tmp_path: Path) -> None:
    """The same recording, fields, path and key, by a client that says that it sends again."""
    visits = Visits(tmp_path, keys=("one", "two"))
    mine = {"authorization": "Bearer one"}
    others: list[tuple[bytes, str, dict[str, str]]] = [
        (parts(), PATH, mine),
        (parts(), PATH, {**mine, "x-stainless-retry-count": "0"}),
        (parts(), PATH, {**mine, "x-stainless-retry-count": "-1"}),
        (parts(), PATH, {**mine, "x-stainless-retry-count": "many"}),
        (parts(), PATH, {**RETRY, "authorization": "Bearer two"}),
        (parts(b"other"), PATH, {**mine, **RETRY}),
        (parts(language="en"), PATH, {**mine, **RETRY}),
        (parts(), "/v1/audio/translations", {**mine, **RETRY}),
    ]

    async def work() -> None:
        await visits.leave(parts(), **mine)
        for body, path, headers in others:
            assert (await visits.come(body, path, **headers)).status == 200
            assert visits.known == 0
        assert (await visits.come(parts(), **mine, **RETRY)).status == 200
        assert visits.known == 2
        assert (await visits.come(parts(), **mine, **RETRY)).status == 200
        assert visits.known == 0  # what has come to its end is not kept

    in_time(work())


def test_who_leaves_again_may_come_again(tmp_path: Path) -> None:
    visits = Visits(tmp_path)

    async def work() -> None:
        await visits.leave(parts())
        for count in ("1", "2", "17"):
            await visits.leave(parts(), **{"x-stainless-retry-count": count})
            assert visits.known == 2

    in_time(work())


def test_it_is_kept_for_a_while(tmp_path: Path) -> None:
    visits = Visits(tmp_path)

    async def work() -> None:
        for seconds, known in ((KEEP - 0.1, 2), (KEEP, 0)):
            await visits.leave(parts())
            visits.clock.now += seconds
            await visits.come(parts(), **RETRY)
            assert visits.known == known

    in_time(work())


def test_nothing_outlasts_the_server(tmp_path: Path) -> None:
    visits = Visits(tmp_path)

    async def work() -> None:
        async with visits.app.router.lifespan_context(visits.app):
            await until(lambda: visits.app.state.service.state == "ready")
            await visits.leave(parts())
            assert visits.app.state.service.interrupted._kept
        assert not visits.app.state.service.interrupted._kept

    in_time(work())


def test_what_fails_or_is_too_long_is_not_kept(tmp_path: Path) -> None:
    visits = Visits(tmp_path, max_duration=1.5)  # the scripted pipeline tells of two seconds

    async def work() -> None:
        for body, status in ((parts(), 413), (parts(b"bad"), 400)):
            assert (await visits.come(body)).status == status
        assert not visits.app.state.service.interrupted._kept

    in_time(work())


# --- how much is kept -------------------------------------------------------------------------------------------------


def spoken(text: str, place: int = 0) -> Heard:
    segment = Segment(0.0, 1.0, text, tokens=tuple(range(len(text))))
    return Heard((segment,), place, Chunk(0.0, 1.0))


@pytest.mark.parametrize("most", [{"most_requests": 2}, {"most_bytes": 2 * size_of(spoken("abc"))}])
def test_the_oldest_goes_first(most: dict[str, int]) -> None:
    async def work() -> None:
        kept = Interrupted(**most)
        for name in (b"a", b"b", b"a", b"c"):
            kept.keep("", name, [spoken("abc")])
        assert kept.take("", b"b") == []
        assert kept.take("", b"a") == kept.take("", b"c") == [spoken("abc")]
        assert kept.take("", b"a") == []

    in_time(work())


def test_what_is_larger_than_all_is_not_kept() -> None:
    async def work() -> None:
        kept = Interrupted(most_bytes=size_of(spoken("abc")))
        kept.keep("", b"a", [spoken("abcd")])
        kept.keep("", b"b", [])
        assert not kept._kept

    in_time(work())


def test_memory_is_given_back_where_nobody_comes() -> None:
    async def work() -> None:
        clock = Clock()
        kept = Interrupted(keep=0.01, clock=clock)
        kept.keep("", b"a", [spoken("abc")])
        clock.now += 1.0
        await until(lambda: not kept._kept)

    in_time(work())
