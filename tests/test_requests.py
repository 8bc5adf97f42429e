"""One pipeline that many ask: threads, asyncio, turns, cancelling, its end; the results are those of asking alone."""

from __future__ import annotations

import asyncio
import queue
import random
import subprocess
import sys
import threading
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import tiny
from conftest import real
from patience import in_time

from mlx_speech import Pipeline, Transcript, load_audio
from mlx_speech.errors import OptionError, PipelineClosed, SourceError
from mlx_speech.request import Heard, Progress

LIMIT = 120  # seconds for what must not hang
GREEDY: dict[str, Any] = {"language": "en", "temperature": 0.0}
ATTENTION: dict[str, Any] = {**GREEDY, "word_timestamps": "attention"}


def pipeline(**keywords: Any) -> Pipeline:
    place = tiny.folder()
    models = {"align_model": place / "wav2vec2", "diarize_model": place / "diarization"}
    return Pipeline(place / "whisper", **{**models, **keywords})


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return pipeline(batch_size=4)


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return load_audio(real("data/audio/en/jfk.flac"))


def plain(result: Transcript) -> list[Any]:
    """What has to be the same in any batch; scores differ in their last digits."""
    words = [[(word.start, word.end, word.text) for word in segment.words] for segment in result.segments]
    texts = [(segment.start, segment.end, segment.text, segment.language) for segment in result.segments]
    speakers = [segment.speaker for segment in result.segments]
    return [texts, words, speakers, result.language]


# --- threads ---------------------------------------------------------------------------------------------------------


def test_a_generator_may_be_advanced_from_any_thread(pipe: Pipeline, speech: np.ndarray) -> None:
    """Each `next` from a thread of its own, which ends behind it."""
    recordings = [speech[: 16_000 * seconds] for seconds in (2, 4, 6, 3)]
    expected = [plain(pipe(recording, **ATTENTION)) for recording in recordings]
    results = pipe.transcribe(recordings, **ATTENTION)
    found: list[Any] = []

    def advance() -> None:
        found.append(next(results))

    for _ in recordings:
        thread = threading.Thread(target=advance)
        thread.start()
        thread.join(LIMIT)
    assert not list(results)
    places = {id(recording): k for k, recording in enumerate(recordings)}
    assert {places[id(source)]: plain(result) for source, result in found} == dict(enumerate(expected))


def test_unevaluated_samples_of_mlx_are_taken(pipe: Pipeline, speech: np.ndarray) -> None:
    """They belong to the thread that made them."""
    expected = plain(pipe(speech, **GREEDY))
    assert plain(pipe(mx.array(speech) * 1, **GREEDY)) == expected
    assert plain(pipe.submit(mx.array(speech) * 1, **GREEDY).result(LIMIT)) == expected
    ((_, result),) = pipe.transcribe([(mx.array(speech) * 1, 16_000)], **GREEDY)
    assert plain(result) == expected


def test_callbacks_are_called_in_the_callers_thread(pipe: Pipeline, speech: np.ndarray) -> None:
    threads = set()
    pipe(speech, on_progress=lambda *_: threads.add(threading.current_thread()), **GREEDY)
    pipe.diarize(speech, on_progress=lambda *_: threads.add(threading.current_thread()))
    assert threads == {threading.current_thread()}


def test_a_callback_that_raises_ends_its_own_request_alone(pipe: Pipeline, speech: np.ndarray) -> None:
    expected = plain(pipe(speech, **GREEDY))
    outcomes: dict[str, Any] = {}

    def fail(stage: str, done: float, total: float, source: Any) -> None:
        if stage == "transcribe" and done:
            raise InterruptedError("enough")

    def good() -> None:
        outcomes["good"] = plain(pipe(speech, **GREEDY))

    def bad() -> None:
        try:
            pipe(speech, on_progress=fail, **GREEDY)
        except InterruptedError as error:
            outcomes["bad"] = str(error)

    threads = [threading.Thread(target=work) for work in (good, bad, good)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert outcomes == {"good": expected, "bad": "enough"}


def test_a_callback_may_ask_the_same_pipeline(pipe: Pipeline, speech: np.ndarray) -> None:
    inner: list[Any] = []

    def ask(stage: str, done: float, total: float, source: Any) -> None:
        if not inner:
            inner.append(pipe(speech[:32_000], **GREEDY))

    pipe(speech, on_progress=ask, **GREEDY)
    assert plain(inner[0]) == plain(pipe(speech[:32_000], **GREEDY))


# --- requests --------------------------------------------------------------------------------------------------------


def test_a_request_gives_what_a_call_gives(pipe: Pipeline, speech: np.ndarray) -> None:
    options: dict[str, Any] = {**GREEDY, "diarize": True}
    request = pipe.submit(speech, **options)
    events = list(request.events())
    assert plain(request.result(LIMIT)) == plain(pipe(speech, **options))
    progress = [event for event in events if isinstance(event, Progress)]
    assert {event.stage for event in progress} == {"vad", "transcribe", "align", "diarize"}
    heard = [segment for event in events if isinstance(event, Heard) for segment in event.segments]
    spoken = " ".join(segment.text for segment in heard).split()
    assert spoken == " ".join(segment.text for segment in request.result().segments).split()


def test_requests_fail_as_calls_do(pipe: Pipeline, speech: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="beem_size"):
        pipe.submit(speech, beem_size=5)  # type: ignore[call-arg]
    with pytest.raises(OptionError, match="klingon"):
        pipe.submit(speech, language="klingon")
    for broken in (tmp_path / "none.wav", Path(__file__)):
        request = pipe.submit(broken, **GREEDY)
        with pytest.raises(Exception, match=broken.name) as found:
            pipe(broken, **GREEDY)
        assert type(request.exception(LIMIT)) is found.type and str(request.exception(LIMIT)) == str(found.value)
    unknown = pipeline(diarize_model=tmp_path / "nowhere").submit(speech, diarize=True, **GREEDY)
    assert isinstance(unknown.exception(LIMIT), SourceError)


def test_requests_under_asyncio(pipe: Pipeline, speech: np.ndarray) -> None:
    async def work() -> list[Transcript]:
        requests = [pipe.submit(speech[: 16_000 * seconds], **GREEDY) for seconds in (2, 4, 6)]
        stages = [event.stage async for event in requests[0] if isinstance(event, Progress)]
        assert stages[0] == "vad"
        return list(await asyncio.gather(*requests))

    found = in_time(work())
    assert [plain(one) for one in found] == [plain(pipe(speech[: 16_000 * seconds], **GREEDY)) for seconds in (2, 4, 6)]


@pytest.mark.parametrize("stage", ["vad", "transcribe", "align", "diarize"])
def test_cancelling_at_every_stage(pipe: Pipeline, speech: np.ndarray, stage: str) -> None:
    """What it had in the batches is gone, and others get what they get alone."""
    long = np.tile(speech, 6)
    other = pipe.submit(speech, **GREEDY)
    request = pipe.submit(long, diarize=True, **GREEDY)
    for event in request.events():
        if isinstance(event, Progress) and event.stage == stage:
            assert request.cancel()
    assert request.cancelled()
    with pytest.raises(CancelledError):
        request.result(LIMIT)
    assert plain(other.result(LIMIT)) == plain(pipe(speech, **GREEDY))
    assert not pipe._batches._batches


def test_an_abandoned_generator_is_cancelled(pipe: Pipeline, speech: np.ndarray) -> None:
    results = pipe.transcribe([speech, np.tile(speech, 20), np.tile(speech, 20)], **GREEDY)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert pipe(speech[:16_000], **GREEDY).duration == 1.0
    assert not pipe._batches._batches


def test_a_transcript_is_aligned_and_diarized_anew(pipe: Pipeline, speech: np.ndarray) -> None:
    read = Transcript(pipe(speech, word_timestamps=None, **GREEDY).segments, language="en")
    aligned = pipe.align(read, speech)
    assert [segment.text for segment in aligned.segments] == [segment.text for segment in read.segments]
    assert all(segment.words for segment in aligned.segments) and aligned.duration == 11.0
    named = Transcript(tuple(replace(segment, speaker="Anna") for segment in read.segments), language="en")
    kept = pipe.align(named, speech)
    assert {word.speaker for word in kept.words} == {"Anna"}
    found = pipe.align(named, speech, num_speakers=2)
    assert found.diarization == pipe.diarize(speech, num_speakers=2)
    assert {word.speaker for word in found.words} <= {turn.speaker for turn in found.diarization.turns}
    assert pipe.align(Transcript(), speech).segments == ()


# --- turns -----------------------------------------------------------------------------------------------------------


def test_a_short_recording_does_not_wait_for_a_long_one(pipe: Pipeline, speech: np.ndarray) -> None:
    """Told by the order in which they come, not by a clock."""
    order: queue.SimpleQueue[str] = queue.SimpleQueue()
    long = pipe.submit(np.tile(speech, 30), **ATTENTION)
    for event in long.events():
        if isinstance(event, Heard):
            break
    short = pipe.submit(speech, **ATTENTION)
    for name, request in (("short", short), ("long", long)):
        request._future.add_done_callback(lambda _, name=name: order.put(name))
    assert plain(short.result(LIMIT)) == plain(pipe(speech, **ATTENTION))
    assert order.get(timeout=LIMIT) == "short"
    long.cancel()


OPTIONS: list[dict[str, Any]] = [
    GREEDY,
    ATTENTION,
    {"temperature": 0.0},
    {"temperature": 0.0, "language": "de", "word_timestamps": None},
    {**GREEDY, "beam_size": 2, "sample_len": 8},
    {**GREEDY, "without_timestamps": True, "initial_prompt": "Well,"},
    {**GREEDY, "task": "translate", "word_timestamps": None},
    {**GREEDY, "sequential": True, "sample_len": 8, "word_timestamps": None},
    {"language": "en", "temperature": (0.0, 0.8), "sample_len": 8, "best_of": 2, "logprob_threshold": -0.01},
    {**GREEDY, "diarize": True},
]


def test_schedules(pipe: Pipeline, speech: np.ndarray, tmp_path: Path) -> None:
    """Random ones: two callers at once, of other languages and options, some cancelled, some failing.

    `python -m benchmarks.turns … --schedules 200` goes through as many with real models.
    """
    recordings = [speech[: 16_000 * seconds] for seconds in (1, 3, 6)]
    alone = {
        (length, number): plain(pipe(recordings[length], **options))
        for length in range(len(recordings))
        for number, options in enumerate(OPTIONS)
    }
    for seed in range(60):
        dice = random.Random(seed)
        wrong: list[Any] = []

        def call(dice: random.Random = dice, wrong: list[Any] = wrong) -> None:
            length = dice.randrange(len(recordings))
            number = dice.randrange(len(OPTIONS))
            fate = dice.choice(["whole", "whole", "cancelled", "failing"])
            if fate == "failing":
                error = pipe.submit(tmp_path / "none.wav", **OPTIONS[number]).exception(LIMIT)
                if "none.wav" not in str(error):
                    wrong.append(error)
                return
            request = pipe.submit(recordings[length], **OPTIONS[number])
            if fate == "cancelled":
                events = dice.randrange(8)
                for count, _ in enumerate(request.events()):
                    if count == events:
                        break
                request.cancel()
                return
            found = plain(request.result(LIMIT))
            if found != alone[length, number]:
                wrong.append((length, number, found))

        threads = [threading.Thread(target=call) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        assert not wrong, f"seed {seed}"
    assert not pipe._batches._batches


@pytest.mark.parametrize("options", [{"beam_size": 3}, {"sequential": True}, {"without_timestamps": True}, {}])
def test_results_have_the_log_probability_of_every_token(
    pipe: Pipeline, speech: np.ndarray, options: dict[str, Any]
) -> None:
    given = {"word_timestamps": None, "segment_resolution": "chunk", "sample_len": 30, **GREEDY, **options}
    segments = pipe(np.tile(speech, 4), **given).segments
    assert segments
    for segment in segments:
        assert len(segment.token_logprobs) == len(segment.tokens) > 0
        assert all(logprob <= 1e-6 for logprob in segment.token_logprobs)
    sentences = pipe(speech, **ATTENTION).segments
    assert all(len(segment.token_logprobs) == len(segment.tokens) for segment in sentences)


# --- the end ---------------------------------------------------------------------------------------------------------


def test_a_closed_pipeline_says_so(speech: np.ndarray) -> None:
    with pipeline() as closed:
        under_way = closed.submit(np.tile(speech, 30), **GREEDY)
    assert under_way.cancelled() and not closed.models.loaded()
    for use in (
        lambda: closed(speech, **GREEDY),
        lambda: list(closed.transcribe([speech], **GREEDY)),
        lambda: closed.submit(speech, **GREEDY),
        lambda: closed.diarize(speech),
    ):
        with pytest.raises(PipelineClosed, match="make another one"):
            use()
    closed.close()


def test_a_pipeline_that_is_let_go_ends_its_thread(speech: np.ndarray) -> None:
    before = {thread for thread in threading.enumerate() if thread.name == "mlx_speech"}
    let_go = pipeline()
    let_go(speech[:16_000], **GREEDY)
    (thread,) = {thread for thread in threading.enumerate() if thread.name == "mlx_speech"} - before
    del let_go
    thread.join(LIMIT)
    assert not thread.is_alive()


SCRIPT = """
import sys, threading, numpy as np
from mlx_speech import Pipeline
pipe = Pipeline.demo()
noise = np.random.default_rng(0).normal(size=16_000 * 60).astype(np.float32) / 10
"""


@pytest.mark.parametrize(
    "end",
    [
        "pipe(noise[:16_000])",
        "request = pipe.submit(noise, vad=False)",
        "request = pipe.submit(noise, vad=False); next(request.events())",
        "results = pipe.transcribe([noise, noise], vad=False); next(iter(pipe.submit(noise).events()))",
        "with pipe: pipe.submit(noise, vad=False)",
        "threading.Thread(target=pipe, args=(noise[:16_000],)).start()",
        "threading.Thread(target=pipe.submit, args=(noise,), daemon=True).start()",
        "del pipe",
    ],
)
def test_the_interpreter_ends(end: str) -> None:
    """Whatever is under way: it neither hangs nor aborts, and says nothing."""
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT + end]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_device_by_name() -> None:
    before = mx.default_device()
    assert pipeline(device="cpu")(np.zeros(16_000, np.float32), **GREEDY).text == ""
    assert mx.default_device() == before
    with pytest.raises(OptionError, match="device is 'tpu'"):
        pipeline(device="tpu")
    if not (mx.metal.is_available() or mx.cuda.is_available()):
        with pytest.raises(OptionError, match="MLX finds none here"):
            pipeline(device="gpu")
