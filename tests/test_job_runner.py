"""Jobs, done: in turn, with what the pipeline gives, cancelled and stopped at any moment."""

from __future__ import annotations

import asyncio
import json
import math
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from scripted_jobs import (
    BROKEN,
    KEEP,
    LIMIT,
    MISTAKE,
    Clock,
    ScriptedPipeline,
    add,
    ended,
    heard,
    run,
    runner_of,
    segments_of,
    sounds,
    told,
    transcript_of,
)

from mlx_speech import Pipeline, Transcript
from mlx_speech.errors import OptionError
from mlx_speech.options import Options
from mlx_speech.package_data import DEMO
from mlx_speech.request import Progress
from mlx_speech.server.errors import ApiError
from mlx_speech.server.events import SIGN_OF_LIFE, alive
from mlx_speech.server.fields import KnownSpeaker
from mlx_speech.server.forms import shown
from mlx_speech.server.jobs import journal
from mlx_speech.server.jobs import runner as job_runner
from mlx_speech.server.jobs.journal import maker_of
from mlx_speech.server.jobs.progress import Tracker
from mlx_speech.server.jobs.records import Job, JobEvent
from mlx_speech.server.jobs.routes import lines_of
from mlx_speech.server.jobs.store import Store
from mlx_speech.stages.voiceprints import Voiceprint


def test_jobs_are_done_with_their_options_and_told_of(tmp_path: Path) -> None:
    async def work() -> None:
        pipeline = ScriptedPipeline()
        runner = runner_of(tmp_path, pipeline)
        async with runner.running():
            options = {"language": "de", "diarize": True, "temperature": (0.0, 0.5)}
            job = await add(runner, tmp_path, b"abc", options=options)
            assert (job.status, job.progress, job.stage) == ("queued", 0.0, None)
            events = [event async for event in runner.events(job.id)]
            job = runner.store.get(job.id, "")
            assert job.status == "succeeded" and job.progress == 1 and job.audio_seconds == pytest.approx(10)
            _, content = runner.store.result(job.id, "")
            assert Transcript.from_dict(json.loads(content)) == transcript_of(b"abc")
            assert pipeline.options == [{**options, "temperature": [0.0, 0.5]}]
            texts = [json.loads(e.data)["text"] for e in events if e.name == "segment"]
            assert texts == [segment.text for segment in segments_of(b"abc")][::-1]
            assert events[-1].name == "done"
            shares = [json.loads(e.data)["progress"] for e in events if e.name == "progress"]
            assert shares == sorted(shares) and all(0 <= share < 1 for share in shares)

    run(work())


def test_jobs_are_counted(tmp_path: Path) -> None:
    async def work() -> None:
        pipeline = ScriptedPipeline()
        runner = runner_of(tmp_path, pipeline)
        assert runner.counts() == {}
        async with runner.running():
            for sound in (b"a", BROKEN, b"b"):
                job = await add(runner, tmp_path, sound)
                await ended(runner, job)
            await runner.delete(job.id, "")  # it has ended: nothing is cancelled
            pipeline.hold.set()
            running = await add(runner, tmp_path, b"c")
            waiting = await add(runner, tmp_path, b"d")
            while len(pipeline.requests) < 4:
                await asyncio.sleep(0.001)
            assert runner.counts() == {"queued": 1, "running": 1, "succeeded": 1, "failed": 1}
            for one in (waiting, running):
                await runner.delete(one.id, "")
        value = runner._service.metrics._registry.get_sample_value
        counts = {
            status: value("mlx_speech_jobs_total", {"status": status})
            for status in ("succeeded", "failed", "cancelled")
        }
        assert counts == {"succeeded": 2, "failed": 1, "cancelled": 2}
        assert value("mlx_speech_cancelled_total", {"reason": "user"}) == 2
        assert runner.counts() == {}

    run(work())


def test_wrong_options_are_refused_before_the_sound_is_taken(tmp_path: Path) -> None:
    async def work() -> None:
        runner = runner_of(tmp_path, ScriptedPipeline())
        with pytest.raises(ApiError) as caught:
            await add(runner, tmp_path, b"a")
        assert caught.value.status == 503
        async with runner.running():
            with pytest.raises(OptionError, match="beam_size"):
                await add(runner, tmp_path, b"a", options={"beam_size": "5"})
            assert runner.store.jobs_of("", 5) == ([], False) and not sounds(tmp_path)

    run(work())


@pytest.mark.parametrize(
    "sound, model, code, said",
    [
        (BROKEN, "whisper", "invalid_audio", "a.wav: is no recording"),
        (MISTAKE, "whisper", "internal_error", "the server's log has it"),
        (b"a", "of yesterday", "model_not_found", "there is no model of this name here"),
    ],
)
def test_what_goes_wrong_ends_one_job_alone(tmp_path: Path, sound: bytes, model: str, code: str, said: str) -> None:
    async def work() -> None:
        runner = runner_of(tmp_path, ScriptedPipeline())
        async with runner.running():
            job = await add(runner, tmp_path, sound, model=model)
            other = await add(runner, tmp_path, b"good")
            events = [event async for event in runner.events(job.id)]
            job = runner.store.get(job.id, "")
            assert job.status == "failed" and job.error is not None
            assert job.error["code"] == code and said in job.error["message"]
            assert str(tmp_path) not in job.error["message"] and "secret" not in job.error["message"]
            assert json.loads(events[-1].data) == job.error
            assert (await ended(runner, other)).status == "succeeded"
            with pytest.raises(ApiError) as caught:
                runner.store.result(job.id, "")
            assert (caught.value.status, caught.value.code) == (409, "job_failed")

    run(work())


def test_a_job_that_turns_out_too_long_fails(tmp_path: Path) -> None:
    """Its file has stated no length: it is told once it is decoded, not when the work is done."""

    async def work() -> None:
        pipeline = ScriptedPipeline()
        pipeline.hold.set()
        runner = runner_of(tmp_path, pipeline, max_job_duration=7.0)
        async with runner.running():
            failed = await add(runner, tmp_path, b"abc")  # 10 s
            while not failed.has_ended and failed.stage != "align":
                await asyncio.sleep(0.001)
                failed = runner.store.get(failed.id, "")
            assert failed.status == "failed" and failed.error is not None
            assert failed.error["code"] == "audio_too_long" and failed.error["message"].endswith("h: cut it")
            assert pipeline.requests[0].cancelled()
            pipeline.hold.clear()
            assert (await ended(runner, await add(runner, tmp_path, b"ab"))).status == "succeeded"

    run(work())


@pytest.mark.parametrize("at_once", [1, 3])
def test_so_many_jobs_at_once(tmp_path: Path, at_once: int) -> None:
    async def work() -> None:
        pipeline = ScriptedPipeline()
        pipeline.hold.set()
        runner = runner_of(tmp_path, pipeline, jobs_at_once=at_once)
        async with runner.running():
            jobs = [await add(runner, tmp_path, bytes([65 + k])) for k in range(5)]
            while len(pipeline.requests) < at_once:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)
            assert len(pipeline.requests) == at_once
            assert runner.store.get(jobs[4].id, "").position == 4
            pipeline.hold.clear()
            for job in jobs:
                assert (await ended(runner, job)).status == "succeeded"
        assert sorted(pipeline.sounds) == [b"A", b"B", b"C", b"D", b"E"]

    run(work())


def test_deleting_cancels_at_any_moment(tmp_path: Path) -> None:
    """Before its turn, between turn and engine, in the engine, at the end."""

    async def work() -> None:
        chance = random.Random(1)
        pipeline = ScriptedPipeline(0.001)
        runner = runner_of(tmp_path, pipeline)
        async with runner.running():
            for _ in range(20):
                job = await add(runner, tmp_path, b"abc")
                listening = asyncio.create_task(told(runner.events(job.id)))
                await asyncio.sleep(chance.choice([0, 0.002, 0.01, 0.02]))
                await runner.delete(job.id, "")
                events = await listening
                assert events[-1].name in ("cancelled", "done")
                with pytest.raises(ApiError):
                    runner.store.get(job.id, "")
            while runner._requests:
                await asyncio.sleep(0.001)
            assert all(request.done() for request in pipeline.requests)
            assert not sounds(tmp_path) and not runner._listeners
            last = await add(runner, tmp_path, b"z")
            assert (await ended(runner, last)).status == "succeeded"

    run(work())


def test_deleting_ends_what_says_nothing(tmp_path: Path) -> None:
    """At once, not when the pipeline tells something the next time."""

    async def work() -> None:
        pipeline = ScriptedPipeline()
        pipeline.hold.set()
        runner = runner_of(tmp_path, pipeline)
        async with runner.running():
            job = await add(runner, tmp_path, b"a")
            while runner.store.get(job.id, "").stage != "align":
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.02)
            await runner.delete(job.id, "")
            assert pipeline.requests[0].cancelled()

    run(work())


@pytest.mark.parametrize("ends", ["deleted", "stopped"])
def test_what_ends_between_its_turn_and_the_engine(tmp_path: Path, ends: str, monkeypatch: pytest.MonkeyPatch) -> None:
    may_begin = threading.Event()
    is_there = threading.Event()
    segments = Store.segments

    def segments_later(self: Store, job_id: str) -> list[str]:
        is_there.set()
        may_begin.wait(LIMIT)
        return segments(self, job_id)

    monkeypatch.setattr(Store, "segments", segments_later)

    async def work() -> None:
        pipeline = ScriptedPipeline()
        pipeline.hold.set()
        runner = runner_of(tmp_path, pipeline)
        await runner.start()
        job = await add(runner, tmp_path, b"a")
        while not is_there.is_set():
            await asyncio.sleep(0.001)
        if ends == "deleted":
            sound = runner.store.sound(job.id)
            content = sound.read_bytes()
            await runner.delete(job.id, "")
            sound.write_bytes(content)  # as where it was opened just before
            may_begin.set()
            while not pipeline.requests or not pipeline.requests[0].cancelled():
                await asyncio.sleep(0.001)
            await runner.stop()
            return
        stopping = asyncio.create_task(runner.stop())
        await asyncio.sleep(0.01)
        may_begin.set()
        await stopping
        assert not pipeline.requests
        store = Store(tmp_path, keep=KEEP)
        assert (store.get(job.id, "").status, store.get(job.id, "").attempts) == ("queued", 0)
        store.close()

    run(work())


def test_a_listener_that_reads_while_the_store_closes_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        pipeline = ScriptedPipeline()
        pipeline.hold.set()
        runner = runner_of(tmp_path, pipeline)
        async with runner.running():
            job = await add(runner, tmp_path, b"ab")
            store = runner.store
            events = store.events

            def read_too_late(job_id: str, after: int) -> tuple[Job | None, list[JobEvent]]:
                runner._stopping.set()
                store.close()
                return events(job_id, after)

            with monkeypatch.context() as patched:
                patched.setattr(store, "events", read_too_late)
                assert await told(runner.events(job.id)) == []
            with pytest.raises(ApiError) as caught:
                store.events(job.id, 0)
            assert caught.value.status == 503

    run(work())


def test_stopping_leaves_jobs_in_the_line(tmp_path: Path) -> None:
    async def work() -> None:
        pipeline = ScriptedPipeline()
        pipeline.hold.set()
        runner = runner_of(tmp_path, pipeline)
        async with runner.running():
            jobs = [await add(runner, tmp_path, sound) for sound in (b"ab", b"cd")]
            listening = asyncio.create_task(told(runner.events(jobs[0].id)))
            while not runner.store.segments(jobs[0].id):
                await asyncio.sleep(0.001)
        events = await listening  # it lets go of them, without an end of the job
        assert events and {event.name for event in events} <= {"progress", "segment"}
        assert pipeline.requests[0].cancelled() and pipeline.known[0] == []
        pipeline = ScriptedPipeline()
        runner = runner_of(tmp_path, pipeline)
        async with runner.running():
            done = [await ended(runner, job) for job in jobs]
            assert [(job.status, job.attempts) for job in done] == [("succeeded", 1), ("succeeded", 1)]
            more = await told(runner.events(jobs[0].id, events[-1].sequence))
            texts = [event.data for event in [*events, *more] if event.name == "segment"]
            assert len(texts) == len(set(texts)) == 2  # nothing is told twice
            assert more[-1].name == "done"
            segments = [event for event in events if event.name == "segment"]
            assert len(pipeline.known[0]) >= len(segments) >= 1 and pipeline.known[1] == []
            assert runner.store.chunks(jobs[0].id, maker_of(pipeline)) == []  # it has ended

    run(work())


def test_chunks_of_another_whisper_or_version_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stop_in_the_middle(pipeline: ScriptedPipeline) -> int:
        """How many chunks it was given that are known; then it recognises some more."""
        pipeline.hold.set()
        runner = runner_of(tmp_path, pipeline)
        async with runner.running():
            if not runner.store.jobs_of("", 1)[0]:
                await add(runner, tmp_path, b"ab")
            (job,), _ = runner.store.jobs_of("", 1)
            while not pipeline.known or len(runner.store.chunks(job.id, maker_of(pipeline))) < 2:
                await asyncio.sleep(0.001)
        return len(pipeline.known[0])

    async def work() -> None:
        first, same, other, newer = (ScriptedPipeline() for _ in range(4))
        other.models.whisper_source = "another"
        assert [await stop_in_the_middle(pipeline) for pipeline in (first, same, other)] == [0, 2, 0]
        monkeypatch.setattr(journal, "__version__", "next")
        assert await stop_in_the_middle(newer) == 0

    run(work())


class Voices:
    """Stands for `voiceprint_of`: all sound alike, and as the speaker of `transcript_of`.

    heard : names; ends : nobody's voice is known before it is set
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.heard: list[str] = []
        self.ends = threading.Event()
        monkeypatch.setattr(job_runner, "voiceprint_of", self.voiceprint_of)

    def voiceprint_of(self, speaker: KnownSpeaker, place: int, pipeline: Any) -> Voiceprint:
        assert isinstance(pipeline, ScriptedPipeline)
        self.heard.append(f"{place} {speaker.name} {speaker.sound.decode()}")
        assert self.ends.wait(LIMIT)
        if speaker.sound == b"two people":
            raise ApiError(400, "invalid_audio", "two", f"known_speaker_references[{place}]")
        return Voiceprint((1.0, float(place)), 3.0, "scripted")

    async def begin(self) -> None:
        while not self.heard:
            await asyncio.sleep(0.001)


ADA = KnownSpeaker("Ada", b"a")
BOB = KnownSpeaker("Bob", b"b")


def test_known_speakers_get_their_names_also_behind_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which waits for one voice and not for all."""
    voices = Voices(monkeypatch)

    async def work() -> None:
        runner = runner_of(tmp_path, ScriptedPipeline())
        async with runner.running():
            job = await add(runner, tmp_path, b"xy", known_speakers=(ADA, BOB))
            await voices.begin()
            runner.wind_down()
            voices.ends.set()
        assert voices.heard == ["0 Ada a"]
        runner = runner_of(tmp_path, ScriptedPipeline())
        async with runner.running():
            done = await ended(runner, job)
            assert (done.status, done.attempts) == ("succeeded", 1) and done.known_names == ("Ada", "Bob")
            _, content = runner.store.result(job.id, "")
            found = Transcript.from_dict(json.loads(content))
            assert found.segments == transcript_of(b"xy").rename({"SPEAKER_00": "Ada"}).segments
            assert found.speakers == ("Ada",)
        assert voices.heard[1:] == ["0 Ada a", "1 Bob b"]

    run(work())


def test_a_voice_that_is_none_ends_its_job_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    voices = Voices(monkeypatch)
    voices.ends.set()

    async def work() -> None:
        pipeline = ScriptedPipeline()
        runner = runner_of(tmp_path, pipeline)
        async with runner.running():
            wrong = await add(runner, tmp_path, b"x", known_speakers=(ADA, KnownSpeaker("Both", b"two people")))
            other = await add(runner, tmp_path, b"y")
            failed = await ended(runner, wrong)
            assert failed.status == "failed" and failed.error is not None
            assert (failed.error["code"], failed.error["param"]) == ("invalid_audio", "known_speaker_references[1]")
            assert (await ended(runner, other)).status == "succeeded"
        assert pipeline.sounds == [b"y"]

    run(work())


def test_a_job_that_is_deleted_while_a_voice_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    voices = Voices(monkeypatch)

    async def work() -> None:
        pipeline = ScriptedPipeline()
        runner = runner_of(tmp_path, pipeline)
        async with runner.running():
            gone = await add(runner, tmp_path, b"x", known_speakers=(ADA, BOB))
            await voices.begin()
            await runner.delete(gone.id, "")
            voices.ends.set()
            other = await add(runner, tmp_path, b"y")
            assert (await ended(runner, other)).status == "succeeded"
        assert voices.heard == ["0 Ada a"] and pipeline.sounds == [b"y"]

    run(work())


def test_a_pipeline_that_is_closed_loses_no_job(tmp_path: Path) -> None:
    async def work() -> None:
        pipeline = ScriptedPipeline()
        pipeline.closed = True
        runner = runner_of(tmp_path, pipeline)
        async with runner.running():
            job = await add(runner, tmp_path, b"a")
            await asyncio.wait_for(runner._stopping.wait(), LIMIT)
        pipeline.closed = False
        runner = runner_of(tmp_path, pipeline)
        async with runner.running():
            assert (await ended(runner, job)).status == "succeeded"

    run(work())


def test_a_full_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work is not lost: the result is written as soon as there is room."""
    monkeypatch.setattr(job_runner, "RETRY_INTERVAL", 0.005)
    finish = Store.finish
    failures = [ApiError(507, "disk_full", "full")] * 3

    def finish_later(self: Store, job_id: str, transcript: Transcript) -> bool:
        if failures:
            raise failures.pop()
        return finish(self, job_id, transcript)

    monkeypatch.setattr(Store, "finish", finish_later)

    async def work() -> None:
        pipeline = ScriptedPipeline()
        runner = runner_of(tmp_path, pipeline)
        async with runner.running():
            job = await add(runner, tmp_path, b"a")
            assert (await ended(runner, job)).status == "succeeded"
        assert not failures and len(pipeline.sounds) == 1

    run(work())


def test_what_has_expired_is_gone(tmp_path: Path) -> None:
    clock = Clock()

    async def work() -> None:
        pipeline = ScriptedPipeline()
        runner = runner_of(tmp_path, pipeline, clock, sweep_interval=0.002, keep_results=KEEP)
        async with runner.running():
            job = await ended(runner, await add(runner, tmp_path, b"a"))
            pipeline.hold.set()
            waiting = await add(runner, tmp_path, b"b")
            assert job.expires_at == clock.now + KEEP and job.body()["expires_at"] == int(clock.now + KEEP)
            clock.now += KEEP - 1
            await asyncio.sleep(0.02)
            assert runner.store.get(job.id, "").status == "succeeded"
            clock.now += 1
            while sounds(tmp_path) != {waiting.id}:
                await asyncio.sleep(0.002)
            assert [job.id for job in runner.store.jobs_of("", 9)[0]] == [waiting.id]
            pipeline.hold.clear()
            done = await ended(runner, waiting)  # what has not ended does not expire, and is kept from its end on
            assert done.status == "succeeded" and done.expires_at == clock.now + KEEP

    run(work())


def test_listeners_are_shown_that_the_server_is_alive(tmp_path: Path) -> None:
    async def work() -> None:
        pipeline = ScriptedPipeline()
        pipeline.hold.set()
        runner = runner_of(tmp_path, pipeline)
        async with runner.running():
            job = await add(runner, tmp_path, b"a")
            signs = 0
            async for text in alive(lines_of(runner, job.id, 0), 0.01):
                signs += text == SIGN_OF_LIFE
                if signs == 3:
                    pipeline.hold.clear()
            assert signs >= 3 and text.startswith("id: ") and "event: done" in text

    run(work())


def test_progress_moves_on_evenly_and_never_back() -> None:
    options = Options.of(diarize=True)
    tracker = Tracker(options, [])
    shares = []
    for stage in ("vad", "transcribe", "align", "align", "diarize"):
        for done in (0.0, 2.5, 5.0):
            tracker.take_in(Progress(stage, done, 5.0))
            shares.append(tracker.progress)
    assert shares == sorted(shares) and shares[-1] == pytest.approx(0.99)
    tracker = Tracker(Options.of(word_timestamps=False, vad=False), [])
    tracker.take_in(Progress("transcribe", 0.0, 0.0))  # of a recording in which nobody speaks
    assert 0 < tracker.progress < 1 and math.isfinite(tracker.progress) and tracker.news() == ([], [])
    tracker.take_in(heard(segments_of(b"ab"), 0))
    tracker.take_in(heard(segments_of(b"ab"), 0))
    assert [len(news) for news in tracker.news()] == [2, 2] and not tracker.has_news()


def test_names_are_fit_to_be_shown() -> None:
    assert shown("  ") == shown("\0\u202e") == "upload"
    assert shown("ä" * 300) == "ä" * 100 and shown("a\r\nb") == "ab"


# --- the real pipeline ------------------------------------------------------------------------------------------------


def test_a_real_recording_gives_what_the_pipeline_gives(tmp_path: Path) -> None:
    options: dict[str, Any] = {"diarize": True, "language": "en"}
    sound = DEMO / "pauses.flac"

    def plain(transcript: Transcript) -> tuple[Any, ...]:
        return transcript.segments, transcript.diarization, transcript.language, transcript.silences

    with Pipeline.demo(device="cpu") as pipe:
        expected = pipe(sound, **options)

        async def work() -> None:
            runner = runner_of(tmp_path, pipe)
            async with runner.running():
                job = await add(runner, tmp_path, sound.read_bytes(), options=options, filename="pauses.flac")
                events = await told(runner.events(job.id))
                assert events[-1].name == "done", events[-1]
                _, content = runner.store.result(job.id, "")
                found = Transcript.from_dict(json.loads(content))
                assert plain(found) == plain(expected) and found.text
                texts = [json.loads(event.data)["text"] for event in events if event.name == "segment"]
                assert sorted(" ".join(texts).split()) == sorted(found.text.split())
                cancelled = await add(runner, tmp_path, sound.read_bytes(), options=options)
                while cancelled.id not in runner._requests:
                    await asyncio.sleep(0.001)
                await runner.delete(cancelled.id, "")
                assert [job.id for job in runner.store.jobs_of("", 9)[0]] == [job.id]

        run(work())
