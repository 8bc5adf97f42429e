"""The audio API: what it answers to OpenAI's client, to other clients, and to whoever means it ill."""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import json
import logging
import math
import os
import socket
import stat
import tempfile
import threading
import urllib.request
import weakref
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import openai
import pydantic
import pytest
from asgi import BOUNDARY, Answer, ask, form, post, request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types import audio
from patience import PATIENCE, in_time, until
from prometheus_client.parser import text_string_to_metric_families
from serving import Scripted, app_of, running, said, wav
from starlette.responses import Response

import mlx_speech
from mlx_speech import hub, loading, names, writers
from mlx_speech.cli import build_parser, main, serve
from mlx_speech.engine import WAITING
from mlx_speech.errors import HubError, OptionError, PipelineClosed
from mlx_speech.evaluation.references import read_truth
from mlx_speech.package_data import DEMO
from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.server import health, shapes
from mlx_speech.server.app import create_app
from mlx_speech.server.errors import ApiError
from mlx_speech.server.events import alive
from mlx_speech.server.fields import FORMATS, MAX_KEYWORDS, OPENAI_FORMATS, KnownSpeaker
from mlx_speech.server.guard import Guard
from mlx_speech.server.idempotency import OVERHEAD, Answers
from mlx_speech.server.known import voiceprint_of
from mlx_speech.server.listening import listen_at
from mlx_speech.server.realtime.tokens import SECONDS, Secrets
from mlx_speech.server.settings import Settings
from mlx_speech.server.watchdog import watched
from mlx_speech.transcript import Diarization, Transcript, Turn

SOUND = DEMO / "conversation.flac"
PATH = "/v1/audio/transcriptions"
MANY = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def parts(*extra: tuple[str, Any, str | None], sound: bytes = b"sound", **fields: str) -> bytes:
    """A form as the official client sends it: fields, then the file."""
    given = {"model": "scripted", **fields}
    return form([*((name, value, None) for name, value in given.items()), *extra, ("file", sound, "a.wav")])


@pytest.fixture
def pipeline() -> Scripted:
    transcript = said("Hello there.", "Who is it?", speakers=("SPEAKER_01", "SPEAKER_00"))
    return Scripted(replace(transcript, seconds={"transcribe": 0.25}))


@pytest.fixture
def app(pipeline: Scripted, tmp_path: Path) -> Any:
    return app_of(pipeline, tmp_path)


def answer_to(app: Any, scope: dict[str, Any], body: bytes = b"", **how: Any) -> Answer:
    return in_time(ask(app, scope, body, **how))


# --- the official client, and the demo's models -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo() -> Iterator[mlx_speech.Pipeline]:
    with mlx_speech.Pipeline.demo() as made:
        yield made


@pytest.fixture(scope="module")
def client(demo: mlx_speech.Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    app = app_of(demo, tmp_path_factory.mktemp("server"))
    with running(app) as origin, openai.OpenAI(api_key="none", base_url=f"{origin}/v1", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def alone(demo: mlx_speech.Pipeline) -> Transcript:
    """What the pipeline gives of the recording without a server."""
    return demo(SOUND)


def test_every_format_is_what_the_pipeline_gives(client: openai.OpenAI, alone: Transcript) -> None:
    def ask_for(response_format: Any, **more: Any) -> Any:
        with SOUND.open("rb") as file:
            return client.audio.transcriptions.create(
                model="whisper-1", file=file, response_format=response_format, **more
            )

    text = shapes.running_text(alone.segments)
    assert ask_for("json").text == text
    assert ask_for("text") == text + "\n"
    assert ask_for("srt") == writers.to_srt(alone)
    assert ask_for("vtt") == writers.to_vtt(alone)
    verbose = ask_for("verbose_json", timestamp_granularities=["segment", "word"])
    assert type(verbose).__name__ == "TranscriptionVerbose"
    assert verbose.text == text and verbose.language == "english" and verbose.words and verbose.segments
    assert [(w.word, w.start, w.end) for w in verbose.words] == [
        (w.text, round(w.start, 3), round(w.end, 3)) for w in alone.words
    ]
    assert [segment.text.strip() for segment in verbose.segments] == [segment.text for segment in alone.segments]
    for segment in verbose.segments:
        assert segment.tokens and segment.seek == pytest.approx(100 * segment.start, abs=0.51)
    segments_alone = ask_for("verbose_json")
    assert segments_alone.words is None and segments_alone.segments
    assert ask_for("verbose_json", timestamp_granularities=["word"]).segments is None
    tokens = ask_for("json", include=["logprobs"]).logprobs
    assert tokens and all(
        token.logprob <= 0 and bytes(map(int, token.bytes)).decode() == token.token for token in tokens
    )
    ours = ask_for("whisperx_json").model_extra
    assert ours["segments"][0]["words"][0]["word"] == alone.words[0].text


def test_a_stream_has_the_text_in_order(client: openai.OpenAI, alone: Transcript) -> None:
    with SOUND.open("rb") as file:
        stream = client.audio.transcriptions.create(model="whisper-1", file=file, stream=True)
        events = list(stream)
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert len(deltas) > 3 and events[-1].type == "transcript.text.done"
    assert "".join(deltas) == events[-1].text == shapes.running_text(alone.segments)
    assert {event.type for event in events} == {"transcript.text.delta", "transcript.text.done"}


def test_a_stream_has_the_log_probabilities_of_an_answer(client: openai.OpenAI) -> None:
    sound = wav(mlx_speech.load_audio(SOUND)[: 16 * SAMPLE_RATE])

    def ask_for(**more: Any) -> Any:
        return client.audio.transcriptions.create(
            model="whisper-1", file=("a.wav", sound), include=["logprobs"], extra_body={"chunk_size": 4}, **more
        )

    whole = [token.to_dict() for token in ask_for().logprobs]
    *deltas, done = list(ask_for(stream=True))
    assert [token.to_dict() for token in done.logprobs] == whole
    assert [token.to_dict() for delta in deltas for token in delta.logprobs] == whole and len(deltas) > 1


def test_the_async_client_gets_speakers_and_the_name_of_one(client: openai.OpenAI, demo: mlx_speech.Pipeline) -> None:
    """Of the first seconds; the voice is what somebody says later on."""
    samples = mlx_speech.load_audio(SOUND)
    beginning = samples[: 16 * SAMPLE_RATE]
    truth = read_truth(SOUND.with_suffix(".json"))
    assert truth is not None and truth.diarization is not None
    first, *others = truth.diarization.turns
    later = next(turn for turn in others if turn.speaker == first.speaker and turn.start > 16)
    voice = wav(samples[round(later.start * SAMPLE_RATE) : round(later.end * SAMPLE_RATE)])
    url = "data:audio/wav;base64," + base64.b64encode(voice).decode()

    async def diarized(**known: Any) -> Any:
        async with openai.AsyncOpenAI(api_key="none", base_url=str(client.base_url), max_retries=0) as made:
            return await made.audio.transcriptions.create(
                model="gpt-4o-transcribe-diarize",
                file=("beginning.wav", wav(beginning)),
                response_format="diarized_json",
                **known,
            )

    found = in_time(diarized())
    assert type(found).__name__ == "TranscriptionDiarized"
    assert found.segments[0].speaker == "A" and found.segments[0].id == "seg_001"
    named = in_time(diarized(known_speaker_names=["Ada"], known_speaker_references=[url]))
    known = {"known_speaker_names[]": "Ada", "known_speaker_references[]": url}
    of_job = result_of_job(client, wav(beginning), model="gpt-4o-transcribe-diarize", **known)
    assert of_job == named.model_dump(mode="json", exclude_none=True)
    letters = {segment.speaker for segment in found.segments}
    assert {segment.speaker for segment in named.segments} == {"Ada", *sorted(letters)[:-1]}
    assert [segment.speaker == "Ada" for segment in named.segments] == [s.speaker == "A" for s in found.segments]


def test_a_pipeline_that_is_closed_while_it_hears_a_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a job whose voice it was waits for the next start."""
    with mlx_speech.Pipeline.demo() as pipe:
        began = threading.Event()

        def work(recording: Any) -> Iterator[Any]:
            began.set()
            while True:
                yield WAITING

        monkeypatch.setattr(pipe, "_diarize", work)
        threading.Thread(target=lambda: began.wait(60) and pipe.close(), daemon=True).start()
        with pytest.raises(PipelineClosed):
            voiceprint_of(KnownSpeaker("Ada", SOUND.with_name("pauses.flac").read_bytes()), 0, pipe)


def result_of_job(client: openai.OpenAI, sound: bytes, **fields: str) -> Any:
    """A job from its form to its end, in diarized_json."""
    origin = str(client.base_url).removesuffix("/v1/")
    body = parts(response_format="diarized_json", sound=sound, **fields)
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    sent = urllib.request.Request(f"{origin}/v1/audio/jobs", body, headers)
    with urllib.request.urlopen(sent, timeout=60) as answer:
        assert answer.status == 202
        place = origin + answer.headers["Location"]
    with urllib.request.urlopen(f"{place}/events", timeout=60) as answer:
        assert b"event: done" in answer.read()
    with urllib.request.urlopen(f"{place}/result", timeout=60) as answer:
        return json.load(answer)


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["scripted", "other"]
    assert client.models.retrieve("whisper-1").id == "whisper-1"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("a/b")


def test_a_translation_is_english(app: Any, pipeline: Scripted) -> None:
    answer = answer_to(app, post("/v1/audio/translations"), parts(response_format="verbose_json"))
    assert answer.json["language"] == "english" and answer.json["task"] == "translate"
    assert "usage" not in answer.json and pipeline.asked[0]["task"] == "translate"
    assert answer_to(app, post("/v1/audio/translations"), parts()).json == {"text": "Hello there. Who is it?"}
    refused = answer_to(app, post("/v1/audio/translations"), parts(language="de", stream="true"))
    assert refused.status == 400 and refused.error["param"] == "stream"


TOO_MUCH = {"chunking_strategy[type]": "server_vad", "chunking_strategy[threshold]": "7"}


def test_a_turbo_model_does_not_translate(tmp_path: Path) -> None:
    models = {"large-v3-turbo": Scripted(), "small": Scripted()}
    app = create_app(models, Settings(data_dir=tmp_path, disk_reserve=0))  # type: ignore[arg-type]
    for model, status in (("large-v3-turbo", 400), ("whisper-1", 400), ("small", 200)):
        answer = answer_to(app, post("/v1/audio/translations"), parts(model=model))
        assert answer.status == status
    models["small"].names["whisper"] = "openai/whisper-large-v3-turbo"  # whatever the server calls it
    assert answer_to(app, post("/v1/audio/translations"), parts(model="small")).status == 400
    models["small"].names.clear()
    refused = answer_to(app, post("/v1/audio/translations"), parts(model="whisper-1"))
    assert refused.error["param"] == "model" and "name small" in refused.error["message"]


# --- fields -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, param, words",
    [
        ({"model": "none"}, "model", "give one of scripted"),
        ({"response_format": "yaml"}, "response_format", "give one of json"),
        ({"temperature": "1.5"}, "temperature", "from 0 to 1"),
        ({"temperature": "nan"}, "temperature", "give a number"),
        ({"language": "klingon"}, "language", "klingon"),
        ({"response_format": "a/srt"}, "response_format", "'a/srt'"),
        ({"hotwords": "a" * 10_001}, "hotwords", "10000"),
        ({"timestamp_granularities[]": "char"}, "timestamp_granularities", "word, segment"),
        ({"stream": "maybe"}, "stream", "true or false"),
        ({"stream": "true", "response_format": "srt"}, "stream", "comes whole"),
        ({"include[]": "logprobs", "response_format": "text"}, "include", "response_format json"),
        ({"include[]": "logprobs", "diarize": "true"}, "include", "no speakers"),
        ({"chunking_strategy": "often"}, "chunking_strategy", "server_vad"),
        ({"chunking_strategy": "[" * 9000}, "chunking_strategy", "server_vad"),
        (
            {"chunking_strategy[type]": "server_vad", "chunking_strategy[threshold]": "7"},
            "chunking_strategy[threshold]",
            "from 0 to 1",
        ),
        ({"known_speaker_names[]": "Ada"}, "known_speaker_references", "as many"),
        ({"num_speakers": "0"}, None, "num_speakers"),
        ({"beam_size": "1e9"}, "beam_size", "a number"),
        ({"prompt": "a" * 10_001}, "prompt", "10000"),
        ({"model": "gpt-4o-transcribe-diarize", "prompt": "Ada"}, "prompt", "no prompt"),
        ({"langauge": "en"}, "langauge", "did you mean language?"),
        ({"diarize": "false", "response_format": "diarized_json"}, "diarize", "has speakers"),
        ({"languages[]": "de", "language": "en"}, "languages", "conflict"),
    ],
)
def test_a_wrong_field_is_named(app: Any, pipeline: Scripted, fields: dict[str, str], param: str, words: str) -> None:
    answer = answer_to(app, post(PATH), parts(**fields))
    assert answer.status == (404 if fields.get("model") == "none" else 400)
    assert answer.error["param"] == param and words in answer.error["message"]
    assert set(answer.error) == {"message", "type", "param", "code"}
    assert not pipeline.asked


@pytest.mark.parametrize("reference", ["http://example.org/a.wav", "data:audio/wav,abc", "data:audio/wav;base64,%%%"])
def test_a_reference_is_a_data_url(app: Any, reference: str) -> None:
    fields = {"known_speaker_names[]": "Ada", "known_speaker_references[]": reference}
    answer = answer_to(app, post(PATH), parts(**fields))
    assert answer.status == 400 and answer.error["param"] == "known_speaker_references[0]"


def reference(loudness: float) -> str:
    """Two seconds of a voice, as a data URL."""
    return "data:audio/wav;base64," + base64.b64encode(wav(np.full(2 * SAMPLE_RATE, loudness, np.float32))).decode()


class Listening(Scripted):
    """It hears known speakers, too.

    voices : of each the loudness
    listeners : the threads that waited for them
    may_end : no voice is known before it is set
    """

    def __init__(self) -> None:
        super().__init__()
        self.voices: list[float] = []
        self.listeners: list[threading.Thread] = []
        self.may_end = threading.Event()

    def diarize(self, samples: np.ndarray) -> Diarization:
        self.voices.append(round(float(samples.max()), 1))
        self.listeners.append(threading.current_thread())
        assert self.may_end.wait(PATIENCE)
        turns = (Turn(0.0, 2.0, "SPEAKER_00"),)
        return Diarization(turns, turns, embeddings={"SPEAKER_00": (1.0, self.voices[-1])})


@pytest.mark.parametrize("stream", ["false", "true"])
@pytest.mark.parametrize("goes", [False, True])
def test_known_speakers_are_heard_one_after_the_other(tmp_path: Path, stream: str, goes: bool) -> None:
    """Where the client has gone, no further ones."""
    pipeline = Listening()
    app = app_of(pipeline, tmp_path)
    known: list[tuple[str, Any, str | None]] = []
    for name, loudness in (("Ada", 0.2), ("Bob", 0.4), ("Eve", 0.6)):
        known += [("known_speaker_names[]", name, None), ("known_speaker_references[]", reference(loudness), None)]
    gone = asyncio.Event()

    async def run() -> None:
        asking = asyncio.ensure_future(ask(app, post(PATH), parts(*known, stream=stream), gone=gone))
        while not pipeline.voices:
            await asyncio.sleep(0.001)
        if goes:
            gone.set()
            await asking
        pipeline.may_end.set()
        answer = await asking
        assert goes or answer.status == 200

    in_time(run())
    pipeline.listeners[0].join(PATIENCE)  # which ends with the event loop, once it has done what it had to
    assert pipeline.voices == ([0.2] if goes else [0.2, 0.4, 0.6])
    assert len(pipeline.asked) == (0 if goes else 1)


NAME = ("known_speaker_names[]", "Ada", None)
VOICE = ("known_speaker_references[]", reference(0.5), None)
KIND = ("chunking_strategy[type]", "server_vad", None)
THRESHOLD = ("chunking_strategy[threshold]", "0.3", None)
TOO_HIGH = ("chunking_strategy[threshold]", "7", None)
LOGPROBS = ("include[]", "logprobs", None)
SPEAKERS = ("diarize", "true", None)
NO_WORDS = ("word_timestamps", "none", None)


@pytest.mark.parametrize(
    "before, behind, wrong",
    [
        ([NAME], [VOICE], None),
        ([VOICE], [NAME], None),
        ([KIND], [THRESHOLD], None),
        ([THRESHOLD], [KIND], None),
        ([LOGPROBS, SPEAKERS], [NO_WORDS], None),
        ([NAME], [], "known_speaker_references"),
        ([NAME], [VOICE, VOICE], "known_speaker_references"),
        ([THRESHOLD], [], "chunking_strategy"),
        ([TOO_HIGH], [KIND], "chunking_strategy[threshold]"),
        ([LOGPROBS, SPEAKERS], [], "include"),
    ],
)
def test_fields_that_belong_together_may_stand_on_both_sides_of_the_file(
    tmp_path: Path, before: list[Any], behind: list[Any], wrong: str | None
) -> None:
    pipeline = Listening()
    pipeline.may_end.set()
    app = app_of(pipeline, tmp_path)
    file = ("file", b"s" * 1000, "a.wav")  # longer than a piece, so that what is before it comes alone
    body = form([("model", "scripted", None), *before, file, *behind])
    answer = answer_to(app, post(PATH), body, size=500)
    assert answer.status == (200 if wrong is None else 400), answer.body
    assert len(pipeline.asked) == (1 if wrong is None else 0)
    if wrong is not None:
        assert answer.error["param"] == wrong


def test_every_keyword_may_be_a_part_of_its_own(app: Any, pipeline: Scripted) -> None:
    words = [f"word{number}" for number in range(MAX_KEYWORDS)]
    keywords = [("keywords[]", word, None) for word in words]
    assert answer_to(app, post(PATH), parts(*keywords)).status == 200
    assert pipeline.asked[0]["hotwords"].split(", ") == words
    refused = answer_to(app, post(PATH), parts(*keywords, ("keywords[]", "more", None)))
    assert refused.status == 400 and refused.error["param"] == "keywords"


def test_fields_become_options(app: Any, pipeline: Scripted) -> None:
    extra = [
        ("keywords[]", "Ada", None),
        ("keywords[]", "Lovelace", None),
        ("languages[]", "de", None),
        ("languages[]", "English", None),
        ("chunking_strategy[type]", "server_vad", None),
        ("chunking_strategy[silence_duration_ms]", "300", None),
    ]
    fields = {"prompt": "About engines.", "temperature": "0.4", "max_speakers": "3", "response_format": "verbose_json"}
    answer = answer_to(app, post(PATH), parts(*extra, **fields))
    assert answer.status == 200
    (asked,) = pipeline.asked
    assert asked == {
        "hotwords": "Ada, Lovelace",
        "languages": ["de", "en"],
        "vad_options": {"min_silence_duration_ms": 300},
        "initial_prompt": "About engines.",
        "temperature": 0.4,
        "max_speakers": 3,
        "word_timestamps": "none",
    }
    assert pipeline.heard == [b"sound"]


@pytest.mark.parametrize("response_format", FORMATS)
def test_every_format_is_answered(app: Any, response_format: str) -> None:
    answer = answer_to(app, post(PATH), parts(response_format=response_format))
    assert answer.status == 200 and answer.body
    assert answer.headers["x-content-type-options"] == "nosniff" and "html" not in answer.headers["content-type"]
    assert answer.headers["x-request-id"].startswith("req_")
    if response_format == "diarized_json":
        assert answer.json["text"] == "A: Hello there.\nB: Who is it?"
    if response_format not in OPENAI_FORMATS:
        assert answer.headers["content-type"].startswith(
            "application/json" if response_format == "whisperx_json" else "text/plain"
        )


SHAPES: dict[str, type[pydantic.BaseModel]] = {
    "json": audio.Transcription,
    "verbose_json": audio.TranscriptionVerbose,
    "diarized_json": audio.TranscriptionDiarized,
}
EVENTS: dict[str, type[pydantic.BaseModel]] = {
    "transcript.text.delta": audio.TranscriptionTextDeltaEvent,
    "transcript.text.segment": audio.TranscriptionTextSegmentEvent,
    "transcript.text.done": audio.TranscriptionTextDoneEvent,
}
OUR_KEYS = {"task", "speaker"}  # `task` stands in OpenAI's documents, not in its client


def check_shape(model: Any, content: Any, where: str = "") -> None:
    """Every value of its type, as OpenAI's client declares it, and no key that it does not know."""
    made = model.model_validate(content, strict=True)
    check_keys(made, where)


def check_keys(made: Any, where: str) -> None:
    if isinstance(made, list):
        for item in made:
            check_keys(item, where)
    if isinstance(made, pydantic.BaseModel):
        assert set(made.model_extra or {}) <= OUR_KEYS, where
        for name in type(made).model_fields:
            check_keys(getattr(made, name), f"{where}.{name}")


@pytest.mark.parametrize("response_format", SHAPES)
@pytest.mark.parametrize("granularity", ["word", "segment"])
def test_answers_have_openais_shapes(app: Any, response_format: str, granularity: str) -> None:
    fields = {"response_format": response_format, "timestamp_granularities[]": granularity}
    check_shape(SHAPES[response_format], answer_to(app, post(PATH), parts(**fields)).json)
    if response_format != "verbose_json":
        stream = answer_to(app, post(PATH), parts(stream="true", **fields)).body.decode()
        events = [json.loads(line.removeprefix("data: ")) for line in stream.split("\n\n") if line]
        for event in events:
            check_shape(EVENTS[event["type"]], event)
        assert events[-1]["type"] == "transcript.text.done"
        kinds = {event["type"] for event in events}
        assert kinds == set(EVENTS) - (set() if response_format == "diarized_json" else {"transcript.text.segment"})


def test_translations_and_models_have_openais_shapes(app: Any) -> None:
    check_shape(audio.Translation, answer_to(app, post("/v1/audio/translations"), parts()).json)
    verbose = answer_to(app, post("/v1/audio/translations"), parts(response_format="verbose_json")).json
    check_shape(audio.TranslationVerbose, verbose)
    for model in answer_to(app, request("GET", "/v1/models")).json["data"]:
        check_shape(openai.types.Model, model)


def test_no_speech_is_no_error(tmp_path: Path) -> None:
    app = app_of(Scripted(Transcript(duration=3.0)), tmp_path)
    for response_format in FORMATS:
        assert answer_to(app, post(PATH), parts(response_format=response_format)).status == 200
    assert answer_to(app, post(PATH), parts()).json == {"text": "", "usage": {"type": "duration", "seconds": 3.0}}


def test_a_stored_transcript_has_the_formats_of_a_new_one() -> None:
    transcript = said("Hello there.", speakers=("SPEAKER_00",))
    for response_format in FORMATS:
        assert shapes.stored(transcript, response_format).status_code == 200
    alike = said("A", "B", speakers=("SPEAKER_00", "SPEAKER_01"))
    named = json.loads(bytes(shapes.stored(alike, "diarized_json", ("SPEAKER_01", "A")).body))
    assert [segment["speaker"] for segment in named["segments"]] == ["B", "SPEAKER_01"]
    for other in ("html", "yaml"):
        with pytest.raises(ApiError) as caught:
            shapes.stored(transcript, other)
        assert (caught.value.status, caught.value.param) == (400, "response_format")


@pytest.mark.parametrize(("response_format", "lacks"), [("rttm", "speakers"), ("ctm", "times of words")])
def test_a_format_that_would_be_empty_says_what_it_lacks(response_format: str, lacks: str) -> None:
    bare = replace(said("Hello."), segments=(replace(said("Hello.").segments[0], words=()),))
    with pytest.raises(ApiError) as refused:
        shapes.stored(bare, response_format)
    assert refused.value.status == 400 and f"there are no {lacks}" in refused.value.message
    assert shapes.stored(replace(bare, segments=()), response_format).body == b""  # nobody spoke
    assert shapes.stored(said("Hello.", speakers=("SPEAKER_00",)), response_format).body


def test_more_speakers_than_letters() -> None:
    names = tuple(f"SPEAKER_{number:02d}" for number in range(30))
    letters = shapes.letters_of(said(*names, speakers=names), ("SPEAKER_02", "D"))
    assert [letters[name] for name in names[:5]] == ["A", "B", "SPEAKER_02", "C", "E"]
    assert letters[names[29]] == "AD"


def test_who_has_a_name_keeps_it() -> None:
    """Whoever gave it: a database of voices, or a person who corrected a job."""
    transcript = said("Yes.", "No.", "So.", "But.", speakers=("SPEAKER_00", "Ann", "B", "SPEAKER_01"))
    assert [segment["speaker"] for segment in shapes.speaker_segments(transcript)] == ["A", "Ann", "B", "C"]


# --- forms ------------------------------------------------------------------------------------------------------------


@MANY
@given(st.data())
def test_a_form_is_read_in_any_order_and_pieces(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    pipeline = Scripted()
    app = app_of(pipeline, tmp_path_factory.mktemp("form"))
    sound = data.draw(st.binary(max_size=300)) + f"\r\n--{BOUNDARY}".encode()[: data.draw(st.integers(0, 12))]
    fields = [
        ("model", "scripted", None),
        ("language", "en", None),
        ("prompt", "é\r\n ü", None),
        ("file", sound, 'ä;".wav'),
    ]
    body = form(data.draw(st.permutations(fields)))
    answer = answer_to(app, post(PATH), body, size=data.draw(st.sampled_from([1, 2, 7, 64, 1 << 16])))
    assert answer.status == (400 if sound.startswith(b"bad") else 200)
    assert pipeline.heard == [sound] and pipeline.asked[0]["initial_prompt"] == "é\r\n ü"
    uploads = app.state.service.uploads
    assert not list(uploads.iterdir())


@pytest.mark.parametrize(
    "body, status, code",
    [
        (b"", 400, "invalid_form"),
        (b"nothing like a form", 400, "invalid_form"),
        (parts()[:-20], 400, "invalid_form"),
        (form([("model", "scripted", None)]), 400, "missing_value"),
        (form([("file", b"sound", "a.wav")]), 400, "missing_value"),
        (form([("model", "scripted", None), ("file", b"a", "a"), ("file", b"b", "b")]), 400, "invalid_value"),
        (form([("model", b"\xff\xfe", None)]), 400, "invalid_value"),
        (form([("model", "scripted", "m.txt")]), 400, "invalid_form"),
        (form([("", "scripted", None)] * 1101), 400, "too_many_fields"),
        (parts(sound=b"bad"), 400, "invalid_audio"),
    ],
)
def test_what_is_no_form_is_refused(app: Any, tmp_path: Path, body: bytes, status: int, code: str) -> None:
    answer = answer_to(app, post(PATH), body)
    assert (answer.status, answer.error["code"]) == (status, code)
    assert not list((tmp_path / "uploads").iterdir())


def test_a_name_of_a_file_is_only_shown(app: Any, tmp_path: Path) -> None:
    body = form([("model", "scripted", None), ("file", b"bad", "../../etc/pass\0wd\u202e" + "x" * 300)])
    answer = answer_to(app, post(PATH), body)
    assert answer.status == 400 and "passwd" in answer.error["message"]
    for hidden in ("/", "\0", "\u202e", str(tmp_path)):
        assert hidden not in answer.error["message"]
    assert len(answer.error["message"]) < 250


def test_a_wrong_option_is_told_before_the_recording_is_sent(app: Any) -> None:
    """The official client sends its fields first: of a large recording next to nothing is taken in."""
    head = parts(model="none").partition(b"sound")[0]
    taken = 0

    async def run() -> int:
        scope = post(PATH)
        statuses: list[int] = []

        async def receive() -> dict[str, Any]:
            nonlocal taken
            taken += 1
            return {"type": "http.request", "body": head if taken == 1 else b"x" * 65536, "more_body": True}

        async def send(message: dict[str, Any]) -> None:
            statuses.append(message.get("status", 0))

        await app(scope, receive, send)
        return statuses[0]

    assert in_time(run()) == 404 and taken <= 2


@pytest.mark.parametrize(
    "settings, body, headers, status, code",
    [
        ({"max_upload": 100}, parts(sound=b"s" * 101), {}, 413, "file_too_large"),
        ({"max_upload": 100}, parts(), {"content-length": "99999999999"}, 413, "file_too_large"),
        ({"max_field": 50}, parts(prompt="a" * 51), {}, 413, "field_too_large"),
        ({"max_fields": 50}, parts(prompt="a" * 26, hotwords="a" * 26), {}, 413, "field_too_large"),
        ({"disk_reserve": 1 << 60}, parts(), {}, 507, "disk_full"),
        ({"max_uploads": 0, "upload_patience": 0.01}, parts(), {}, 429, "queue_full"),
        ({"max_queue": 0}, parts(), {}, 429, "queue_full"),
        ({"keys": ("secret",)}, parts(), {}, 401, "invalid_api_key"),
        ({"keys": ("secret",)}, parts(), {"authorization": "Bearer secre"}, 401, "invalid_api_key"),
    ],
)
def test_limits(
    tmp_path: Path, settings: dict[str, Any], body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    app = app_of(Scripted(), tmp_path, **settings)
    answer = answer_to(app, post(PATH, **headers), body)
    assert (answer.status, answer.error["code"]) == (status, code)
    if status == 429:
        assert 1 <= int(answer.headers["retry-after"]) <= 120
    assert not list((tmp_path / "uploads").iterdir())


def test_fields_that_are_too_large_together_are_no_fault_of_the_last(tmp_path: Path) -> None:
    app = app_of(Scripted(), tmp_path, max_field=50, max_fields=100)
    together = answer_to(app, post(PATH), parts(prompt="a" * 50, hotwords="a" * 50))
    assert together.error["message"] == "the fields have more than 100 bytes together"
    alone = answer_to(app, post(PATH), parts(prompt="a" * 51))
    assert alone.error["message"] == "prompt is too long"


def test_what_comes_behind_a_form_counts_too(tmp_path: Path) -> None:
    app = app_of(Scripted(), tmp_path, max_upload=1000, max_fields=1000)
    answer = answer_to(app, post(PATH), parts() + b"x" * 2000, size=100)
    assert (answer.status, answer.error["code"]) == (413, "file_too_large")


def test_a_recording_that_is_too_long_is_told_before_it_is_heard(tmp_path: Path) -> None:
    pipeline = Scripted()
    app = app_of(pipeline, tmp_path, max_duration=30.0)
    answer = answer_to(app, post(PATH), parts(sound=SOUND.read_bytes()))
    assert (answer.status, answer.error["code"]) == (413, "audio_too_long") and not pipeline.asked


@pytest.mark.parametrize("rate", [0.0, 1e9])
def test_a_slow_form_is_given_up(tmp_path: Path, rate: float) -> None:
    """Both where nothing comes, and where too little does."""
    app = app_of(Scripted(), tmp_path, upload_window=0.05, min_upload_rate=max(rate, 1.0))
    body = parts(sound=b"s" * 1000)

    async def run(path: str) -> int:
        statuses: list[int] = []
        place = 0

        async def receive() -> dict[str, Any]:
            nonlocal place
            await asyncio.sleep(10 if rate == 0 and place else 0.02)
            place += 50
            return {"type": "http.request", "body": body[place - 50 : place], "more_body": True}

        async def send(message: dict[str, Any]) -> None:
            statuses.append(message.get("status", 0))

        await app(post(path), receive, send)
        return statuses[0]

    for path in (PATH, "/v1/realtime/client_secrets"):
        assert asyncio.run(asyncio.wait_for(run(path), 5)) == 408


# --- clients that go, and many at once --------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["false", "true"])
def test_work_ends_where_the_client_goes(
    app: Any, pipeline: Scripted, tmp_path: Path, stream: str, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline.holds = threading.Event()
    answer_to(app, post(PATH), parts(stream=stream), goes=0.1)
    until(lambda: pipeline.cancelled, "the work to be cancelled", seconds=5)
    service = app.state.service
    assert pipeline.cancelled == 1
    assert service.admission.waiting == 0 and service.admission.seconds == 0 and not service.admission.uploads
    assert not list((tmp_path / "uploads").iterdir())
    assert 'mlx_speech_cancelled_total{reason="disconnect"} 1.0' in metrics_of(app)
    gc.collect()  # asyncio tells of errors that nobody has looked at when it forgets them
    assert not caplog.records


@pytest.mark.parametrize("path", [PATH, "/v1/audio/diarizations"])
def test_an_upload_is_over_when_the_recording_is_there(app: Any, pipeline: Scripted, tmp_path: Path, path: str) -> None:
    """However long it is heard then."""
    pipeline.holds = threading.Event()

    async def run() -> Answer:
        answering = asyncio.ensure_future(
            ask(app, post(path), form([("model", "scripted", None), ("file", b"a", "a")]))
        )
        while not pipeline.heard:
            await asyncio.sleep(0.005)
        assert app.state.service.admission.waiting == 1 and not app.state.service.admission.uploads
        assert not list((tmp_path / "uploads").iterdir())
        pipeline.holds.set()  # type: ignore[union-attr]
        return await answering

    assert in_time(run()).status == 200


@pytest.mark.parametrize("path", [PATH, "/v1/audio/diarizations"])
def test_a_recording_that_does_not_say_its_length_may_not_be_too_long(tmp_path: Path, path: str) -> None:
    """It is told once it is decoded; the scripted pipeline tells of two seconds."""
    pipeline = Scripted()
    app = app_of(pipeline, tmp_path, max_duration=1.5)
    answer = answer_to(app, post(path), form([("model", "scripted", None), ("file", b"a", "a")]))
    assert (answer.status, answer.error["code"]) == (413, "audio_too_long")


def test_a_stream_of_too_long_a_recording_ends_with_an_error(tmp_path: Path) -> None:
    pipeline = Scripted()
    pipeline.holds = threading.Event()
    app = app_of(pipeline, tmp_path, max_duration=1.5)
    answer = answer_to(app, post(PATH), parts(stream="true"))
    last = [line for line in answer.body.decode().split("\n\n") if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "audio_too_long"


@pytest.mark.parametrize("keys, most", [((), 16), (("secret",), 4)])
def test_sixty_four_clients_and_a_bad_one(tmp_path: Path, keys: tuple[str, ...], most: int) -> None:
    """Nothing of them is lost, though fewer are read at once."""
    app = app_of(Scripted(), tmp_path, keys=keys)
    uploads = app.state.service.admission.uploads
    seen: list[int] = []

    async def run() -> list[Answer]:
        bodies = [parts(sound=b"bad" if number == 7 else f"sound {number}".encode()) for number in range(64)]
        scope = {"authorization": "Bearer secret"}
        asking = asyncio.gather(*(ask(app, post(PATH, **scope), body, size=40) for body in bodies))
        while not asking.done():
            seen.append(uploads.total())
            await asyncio.sleep(0)
        return list(await asking)

    statuses = [answer.status for answer in in_time(run())]
    assert statuses == [400 if number == 7 else 200 for number in range(64)]
    assert max(seen) == most and not uploads


def test_a_key_that_sends_slowly_does_not_keep_others_out(tmp_path: Path) -> None:
    """Its further uploads wait, and are refused in the end; another key's do not."""
    app = app_of(Scripted(), tmp_path, keys=("slow", "other"), upload_patience=0.05)

    async def run() -> tuple[Answer, Answer]:
        async with AsyncExitStack() as stack:
            for _ in range(4):
                owner = hashlib.sha256(b"slow").hexdigest()
                await stack.enter_async_context(app.state.service.admission.upload(owner))
            slow = await ask(app, post(PATH, authorization="Bearer slow"), parts())
            return slow, await ask(app, post(PATH, authorization="Bearer other"), parts())

    slow, other = in_time(run())
    assert (slow.status, slow.error["code"]) == (429, "queue_full") and slow.headers["retry-after"]
    assert other.status == 200


def test_a_silent_stream_shows_that_it_lives() -> None:
    closed: list[bool] = []

    async def slow() -> Any:
        try:
            yield "one"
            await asyncio.sleep(0.12)
            yield "two"
        finally:
            closed.append(True)

    async def run() -> list[str]:
        return [text async for text in alive(slow(), seconds=0.05)]

    texts = in_time(run())
    assert texts[0] == "one" and texts[-1] == "two" and texts[1].startswith(": ") and closed == [True]


def test_a_stream_that_fails_says_so(app: Any) -> None:
    answer = answer_to(app, post(PATH), parts(stream="true", sound=b"bad"))
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.body.decode().split("\n\n") if line]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "invalid_audio"
    assert 'mlx_speech_rejected_total{reason="invalid_audio"} 1.0' in metrics_of(app)


def test_a_bug_in_a_stream_is_in_the_log(app: Any, pipeline: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    pipeline.holds = threading.Event()

    async def run() -> Answer:
        asking = asyncio.create_task(ask(app, post(PATH), parts(stream="true")))
        while not pipeline.requests:
            await asyncio.sleep(0.001)
        pipeline.requests[-1]._fail(ZeroDivisionError("a secret of ours"))
        return await asking

    answer = in_time(run())
    assert b'"internal_error"' in answer.body and b"secret" not in answer.body
    assert answer.headers["x-request-id"] in caplog.text and "ZeroDivisionError" in caplog.text


def test_a_closed_pipeline_is_no_fault_of_the_client(tmp_path: Path) -> None:
    pipeline = mlx_speech.Pipeline.demo()
    app = app_of(pipeline, tmp_path)
    pipeline.close()
    answer = answer_to(app, post(PATH), parts(sound=SOUND.read_bytes()))
    assert (answer.status, answer.error["code"]) == (503, "shutting_down") and "retry-after" in answer.headers


# --- who may ask ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host, allowed",
    [
        ("127.0.0.1:8000", True),
        ("localhost", True),
        ("LOCALHOST:99", True),
        ("[::1]:8000", True),
        ("studio.local:8000", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
        ("localhost:8000@evil.example", False),
        ("evil.example:127.0.0.1", False),
    ],
)
def test_the_host_has_to_be_ours(tmp_path: Path, host: str, allowed: bool) -> None:
    app = app_of(Scripted(), tmp_path, allowed_hosts=("studio.local",))
    answer = answer_to(app, request("GET", "/health", {"host": host}))
    assert answer.status == (200 if allowed else 403)


@pytest.mark.parametrize(
    "origin, allowed",
    [
        ("http://127.0.0.1:8000", True),
        ("https://app.example", True),
        ("http://127.0.0.1:9000", False),
        ("https://evil.example", False),
        ("null", False),
        ("", False),
        ("http://[", False),
        ("file://127.0.0.1:8000", False),
        ("https://app.example.evil.example", False),
    ],
)
def test_the_origin_has_to_be_ours(tmp_path: Path, origin: str, allowed: bool) -> None:
    app = app_of(Scripted(), tmp_path, cors=("https://app.example",))
    answer = answer_to(app, post(PATH, origin=origin), parts())
    assert answer.status == (200 if allowed else 403)
    if allowed:
        assert answer.headers["access-control-allow-origin"] == origin
        assert "access-control-allow-credentials" not in answer.headers
    else:
        assert "access-control-allow-origin" not in answer.headers


def test_an_allowed_page_can_read_why_it_was_refused(tmp_path: Path) -> None:
    app = app_of(Scripted(), tmp_path, keys=("secret",), cors=("https://app.example",))
    answer = answer_to(app, post(PATH, origin="https://app.example"), parts())
    assert answer.status == 401 and answer.headers["access-control-allow-origin"] == "https://app.example"
    text = answer_to(app, request("GET", "/metrics", {"authorization": "Bearer secret"})).body.decode()
    assert 'mlx_speech_rejected_total{reason="invalid_api_key"} 1.0' in text


@pytest.mark.parametrize("keys", [(), ("secret",)])
def test_a_key_of_a_session_is_known_with_and_without_others(tmp_path: Path, keys: tuple[str, ...]) -> None:
    owners: list[str] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        owners.append(scope["state"]["owner"])
        await Response()(scope, receive, send)

    guarded = Guard(inner, Settings(data_dir=tmp_path, keys=keys), redeem=lambda key: key == "ek_1")
    for path, key, status in (
        ("/v1/realtime", "ek_1", 200),
        ("/v1/models", "ek_1", 401 if keys else 200),
        ("/v1/realtime", "ek_2", 401),
    ):
        answer = answer_to(guarded, request("GET", path, {"authorization": f"Bearer {key}"}))
        assert answer.status == status
    assert owners[0] == hashlib.sha256(b"ek_1").hexdigest() and not any(owners[1:])


@pytest.mark.parametrize(("keys", "lasting"), [((), "none"), (("ek_lasting",), "ek_lasting")])
def test_a_key_of_a_session_that_is_used_or_too_old_is_refused(
    tmp_path: Path, keys: tuple[str, ...], lasting: str
) -> None:
    """Also where every other key is let in."""
    now = 1_000.0
    secrets = Secrets(clock=lambda: now)
    used, old = (secrets.issue(Mock())[0] for _ in range(2))
    guarded = Guard(Response(), Settings(data_dir=tmp_path, keys=keys), redeem=secrets.redeem)

    def opened_with(key: str) -> Answer:
        return answer_to(guarded, request("GET", "/v1/realtime", {"authorization": f"Bearer {key}"}))

    assert opened_with(used).status == 200
    now += SECONDS
    for key in (used, old):
        answer = opened_with(key)
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert "ask for another one" in answer.error["message"]
    assert opened_with(lasting).status == 200


def test_a_preflight_needs_no_key(tmp_path: Path) -> None:
    app = app_of(Scripted(), tmp_path, keys=("secret",), cors=("https://app.example",))
    headers = {"origin": "https://app.example", "access-control-request-method": "POST"}
    answer = answer_to(app, request("OPTIONS", PATH, headers))
    assert answer.status == 204 and "Authorization" in answer.headers["access-control-allow-headers"]
    headers["access-control-request-headers"] = "authorization, x-stainless-os"
    answer = answer_to(app, request("OPTIONS", PATH, headers))
    assert answer.headers["access-control-allow-headers"] == "authorization, x-stainless-os"
    headers["origin"] = "https://evil.example"
    assert answer_to(app, request("OPTIONS", PATH, headers)).status == 403


def test_keys(tmp_path: Path) -> None:
    app = app_of(Scripted(), tmp_path, keys=("first", "sécond"))
    for key, status in (("first", 200), ("sécond", 401), ("third", 401), ("", 401)):
        answer = answer_to(app, post(PATH, authorization=f"Bearer {key}"), parts())
        assert answer.status == status, key
    utf8 = "sécond".encode().decode("latin-1")  # as clients send it
    assert answer_to(app, post(PATH, authorization=f"Bearer {utf8}"), parts()).status == 200
    for path, status in (("/health", 200), ("/", 200), ("/metrics", 401), ("/v1/models", 401)):
        assert answer_to(app, request("GET", path)).status == status


def test_a_key_is_compared_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key with every guess, by a comparison whose time tells nothing of where they differ."""
    from mlx_speech.server import guard

    compared: list[tuple[bytes, bytes]] = []
    real = guard.hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr(guard.hmac, "compare_digest", compare)
    app = app_of(Scripted(), tmp_path, keys=("first", "second"))
    for guess in ("first", "f", "x"):
        answer_to(app, request("GET", "/v1/models", {"authorization": f"Bearer {guess}"}))
    assert compared == [(key, guess) for guess in (b"first", b"f", b"x") for key in (b"first", b"second")]


def test_an_address_that_others_reach_needs_a_key(tmp_path: Path) -> None:
    with pytest.raises(mlx_speech.errors.OptionError, match="api_key_file"):
        Settings(host="0.0.0.0", data_dir=tmp_path)
    assert Settings(host="0.0.0.0", keys=("k",), data_dir=tmp_path).host == "0.0.0.0"
    assert Settings(host="0.0.0.0", no_auth=True, data_dir=tmp_path).no_auth
    with pytest.raises(mlx_speech.errors.OptionError, match="wyoming is '99999'"):
        Settings(wyoming="99999", data_dir=tmp_path)
    with pytest.raises(mlx_speech.errors.OptionError, match="api_key_file"):
        Settings(cors=("*",), data_dir=tmp_path)
    assert build_parser().parse_args(["serve", "--host", "0.0.0.0", "--no-auth"]).no_auth is True


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("max_upload", -1),
        ("max_duration", math.nan),
        ("max_queue", -1),
        ("jobs_at_once", 0),
        ("keep_results", -1.0),
        ("keep_results", math.inf),
        ("max_live", -1),
        ("grace", math.inf),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(name: str, number: float) -> None:
    with pytest.raises(OptionError, match=f"^{name} is {number}.*: give a number from [01]$"):
        Settings(**{name: number})  # type: ignore[arg-type]
    Settings(**{name: 1})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1048576", 1 << 20), ("3K", 3072), ("500M", 500 << 20), ("2g", 2 << 30), ("0G", 0)],
)
def test_sizes_have_units(text: str, size: int) -> None:
    assert build_parser().parse_args(["serve", "--max-upload", text]).max_upload == size


@pytest.mark.parametrize("text", ["", "M", "2T", "2GB", "-1", "1.5G", "²", "M2", "2 G"])
def test_what_is_no_size_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(["serve", f"--max-upload={text}"])
    assert caught.value.code == 2
    assert f"{text!r} is no size: give bytes, or a number and K, M or G, as 500M" in capsys.readouterr().err


@pytest.mark.parametrize("hours", ["-1", "nan", "inf", "-0.5"])
def test_hours_are_refused_as_hours(hours: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--demo", f"--keep-results={hours}"]) == 2
    said = capsys.readouterr().err
    assert said == f"mlx_speech: --keep-results is {hours}: give a number of hours from 0\n"


@pytest.mark.parametrize(
    "flags, problem",
    [
        (["--preload", "en,xx"], "--preload is 'xx': give languages that Whisper knows, as en,de"),
        (["--forwarded-allow-ips", "10.0.0.0/8,proxy"], "--forwarded-allow-ips proxy: is no address"),
        (["--forwarded-allow-ips", "10.0.0.1/8"], "--forwarded-allow-ips 10.0.0.1/8: is no address"),
    ],
)
def test_flags_are_refused_before_anything_is_loaded(flags: list[str], problem: str, capsys: Any) -> None:
    assert main(["serve", "--demo", *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"mlx_speech: {problem}") and said.count("\n") == 1


def test_the_demo_takes_the_flags_of_a_pipeline() -> None:
    machine: dict[str, Any] = {"device": None, "model_dir": None, "model_cache_only": False, "hf_token": None}
    given = {**machine, "batch_size": "2", "compute_type": "float32"}
    made = serve._pipelines([], True, given, Mock())
    with made["demo"] as pipe:
        assert pipe.batch_size == 2
    with pytest.raises(OptionError, match="--batch-size few"):
        serve._pipelines([], True, {**machine, "batch_size": "few"}, Mock())


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o755), (0o007, 0o770), (0o077, 0o700)])
def test_the_umask_says_who_may_connect_to_a_unix_socket(short_folder: Path, umask: int, mode: int) -> None:
    path = short_folder / "s"
    before = os.umask(umask)
    try:
        listener = listen_at(path)
    finally:
        os.umask(before)
    with listener:
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_unix_socket_takes_only_a_place_that_is_free(short_folder: Path) -> None:
    path = short_folder / "s"
    with listen_at(path), pytest.raises(OptionError, match="is taken"):
        listen_at(path)
    with listen_at(path) as listener, socket.socket(socket.AF_UNIX) as client:  # nobody listened at it any more
        client.connect(str(path))
        listener.accept()[0].close()
    path.unlink()
    path.write_text("kept")
    with pytest.raises(OptionError, match="is taken"):
        listen_at(path)
    assert path.read_text() == "kept"
    for wrong in (short_folder / "missing" / "s", short_folder / ("s" * 200)):
        with pytest.raises(OptionError, match=r"cannot be listened at .*: give another uds"):
            listen_at(wrong)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Names of sockets may have a hundred characters, which pytest's own folders can exceed."""
    with tempfile.TemporaryDirectory(prefix="mlx") as folder:
        yield Path(folder)


@pytest.mark.parametrize(
    ("address", "page", "command"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/", "curl http://127.0.0.1:8000/v1/"),
        ("http://0.0.0.0:8000", "http://127.0.0.1:8000/", "curl http://127.0.0.1:8000/v1/"),
        ("https://[::]:8000", "https://[::1]:8000/", "curl https://[::1]:8000/v1/"),
        ("unix:/run/a b", "", "curl --unix-socket '/run/a b' http://localhost/v1/"),
    ],
)
def test_the_greeting_says_how_the_server_is_asked(address: str, page: str, command: str) -> None:
    """By a name that the server answers to: that of every address is none."""
    text = serve.greeting(address, ["my model"], ("k",))
    assert text.startswith(f"mlx_speech: listening at {address} (my model; with a key)\n")
    assert [line for line in text.splitlines() if "page: " in line] == ([f"  page: {page}"] if page else [])
    assert f"  {command}audio/transcriptions -H" in text and "-F model='my model' " in text


# --- small things -----------------------------------------------------------------------------------------------------


def test_errors_have_one_shape(app: Any) -> None:
    for scope, status, code in (
        (request("GET", "/nothing"), 404, "not_found"),
        (request("GET", PATH), 405, "method_not_allowed"),
        (post(PATH, content_type="application/json"), 415, "unsupported_media_type"),
        (request("GET", "/v1/models/x"), 404, "model_not_found"),
    ):
        answer = answer_to(app, scope, b"{}")
        assert (answer.status, answer.error["code"]) == (status, code)
        assert set(answer.error) == {"message", "type", "param", "code"}


def test_a_bug_is_told_without_its_trace(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Scripted):
        def submit(self, audio: Any, **options: Any) -> Any:
            raise ZeroDivisionError("a secret of ours")

    app = app_of(Broken(), tmp_path)
    with running(app) as origin, caplog.at_level(logging.CRITICAL):
        client = openai.OpenAI(api_key="k", base_url=f"{origin}/v1")
        with pytest.raises(openai.InternalServerError) as caught:
            client.audio.transcriptions.create(model="scripted", file=("a.wav", b"sound"))
        client.close()
    assert "secret" not in str(caught.value) and caught.value.code == "internal_error"
    assert caught.value.response.headers["x-request-id"].startswith("req_")
    figures = answer_to(app, request("GET", "/metrics")).body.decode()
    assert f'mlx_speech_http_requests_total{{code="500",route="{PATH}"}}' in figures
    assert "mlx_speech_cancelled_total{" not in figures


def test_the_log_has_no_texts(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mlx_speech.server"):
        answer_to(app, post(PATH), parts(prompt="a secret prompt"))
    (record,) = [record for record in caplog.records if record.name == "mlx_speech.server.requests"]
    line = json.loads(record.getMessage())
    assert line["route"] == PATH and line["status"] == 200 and line["seconds"] >= 0
    assert line["bytes"] == 5 and line["audio_seconds"] == 2 and "cancelled" not in line
    assert line["stages"] == {"transcribe": 0.25}
    for hidden in ("secret", "a.wav", "Hello"):
        assert hidden not in caplog.text


@pytest.mark.parametrize("stream", ["false", "true"])
def test_the_log_says_whose_client_has_gone(
    app: Any, pipeline: Scripted, stream: str, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline.holds = threading.Event()
    with caplog.at_level(logging.INFO, "mlx_speech.server"):
        answer_to(app, post(PATH), parts(stream=stream), goes=0.1)
    (record,) = [record for record in caplog.records if record.name == "mlx_speech.server.requests"]
    line = json.loads(record.getMessage())
    assert line["cancelled"] is True and line["bytes"] == 5 and "audio_seconds" not in line
    pipeline.holds.set()


def test_texts_are_in_the_log_where_that_is_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mlx_speech.server"):
        answer_to(app_of(Scripted(), tmp_path, log_text=True), post(PATH), parts())
    assert '{"text": "Hello there. Who is it?"}' in caplog.text


def test_metrics_count(app: Any) -> None:
    answer_to(app, post(PATH), parts())
    answer_to(app, request("GET", "/v1/models/a%2Fb"))
    answer_to(app, request("GET", "/v1/models/1"))
    answer_to(app, request("GET", "/v1/models/"))
    text = answer_to(app, request("GET", "/metrics")).body.decode()
    assert f'mlx_speech_http_requests_total{{code="200",route="{PATH}"}} 1.0' in text
    assert 'mlx_speech_audio_seconds_total{kind="request"} 2.0' in text and "mlx_speech_upload_bytes_total 5.0" in text
    assert 'mlx_speech_queue_wait_seconds_count{class="request"} 1.0' in text
    for stage in ("upload", "transcribe", "write"):
        assert f'mlx_speech_stage_seconds_count{{stage="{stage}"}} 1.0' in text
    build = f'mlx="{metadata.version("mlx")}",model="scripted",version="{mlx_speech.__version__}"'
    assert f'mlx_speech_build_info{{device="cpu",{build}}} 1.0' in text or f'{{device="gpu",{build}}} 1.0' in text
    assert 'mlx_speech_rejected_total{reason="model_not_found"} 3.0' in text
    assert 'code="404",route="/v1/models/{name}"} 3.0' in text
    assert "a/b" not in text and "a%2Fb" not in text  # names of routes, not what was asked for


def test_metrics_of_decoders_and_of_jobs(tmp_path: Path) -> None:
    pipelines = {"one": Scripted(), "two": Scripted()}
    for pipeline in pipelines.values():
        pipeline.workload.rows = 3
        pipeline.workload.fallbacks = 2
        for rows, steps in ((1, 4), (4, 4), (5, 2)):
            pipeline.workload.see_turn(rows, 4, steps)
    app = create_app(pipelines, Settings(data_dir=tmp_path, disk_reserve=0))  # type: ignore[arg-type]

    async def figures() -> str:
        async with app.router.lifespan_context(app):
            assert (await ask(app, post("/v1/audio/jobs"), parts(model="one"))).status == 202
            while True:
                text = (await ask(app, request("GET", "/metrics"))).body.decode()
                if 'jobs_total{status="succeeded"}' in text:
                    return text

    found: dict[str, float] = {}
    for family in text_string_to_metric_families(in_time(figures())):
        for sample in family.samples:
            label = "".join(sample.labels.values())
            found[f"{sample.name.removeprefix('mlx_speech_')} {label}".strip()] = sample.value
    assert found["batch_rows"] == 6 and found["decode_steps_total"] == 20 and found["fallbacks_total"] == 4
    fills = {
        bound: found[f"batch_fill_ratio_bucket {bound}"] for bound in ("0.125", "0.25", "0.75", "1.0", "2.0", "+Inf")
    }
    assert fills == {"0.125": 0, "0.25": 2, "0.75": 2, "1.0": 4, "2.0": 6, "+Inf": 6}
    assert found["batch_fill_ratio_count"] == 6 and found["batch_fill_ratio_sum"] == 5
    jobs = {status: found[f"jobs {status}"] for status in ("queued", "running", "succeeded", "failed")}
    assert jobs == {"queued": 0, "running": 0, "succeeded": 1, "failed": 0} and found["jobs_total succeeded"] == 1


def test_metrics_of_what_waits(tmp_path: Path) -> None:
    """Of each class of work; here a request and two jobs, one behind the other, that do not end until they may."""
    pipeline = Scripted()
    app = app_of(pipeline, tmp_path)
    sound = wav(np.zeros(SAMPLE_RATE * 3 // 2, np.float32))

    async def figure(name: str, **labels: str) -> float:
        text = (await ask(app, request("GET", "/metrics"))).body.decode()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return sum(one.value for one in samples if one.name == f"mlx_speech_{name}" and one.labels == labels)

    async def waiting(kind: str) -> tuple[float, float]:
        return await figure("queue_requests", **{"class": kind}), await figure("queue_audio_seconds", **{"class": kind})

    async def run() -> None:
        async with app.router.lifespan_context(app):
            while app.state.service.state != "ready":
                await asyncio.sleep(0.005)
            pipeline.holds = threading.Event()
            begun = len(pipeline.asked)
            for _ in range(2):
                assert (await ask(app, post("/v1/audio/jobs"), parts(sound=sound))).status == 202
            asking = asyncio.create_task(ask(app, post(PATH), parts(sound=sound)))
            app.state.service.live.add(Mock(lag=0.5))
            while len(pipeline.asked) < begun + 2:
                await asyncio.sleep(0.005)
            assert await waiting("request") == (1, 1.5)
            assert await waiting("job") == (2, 3.0)
            assert await waiting("live") == (1, 0.5)
            assert await figure("queue_wait_seconds_count", **{"class": "job"}) == 1
            app.state.service.live.clear()
            pipeline.holds.set()
            assert (await asking).status == 200
            while await figure("jobs_total", status="succeeded") < 2:
                await asyncio.sleep(0.005)
            assert [await waiting(kind) for kind in ("request", "job", "live")] == [(0, 0)] * 3
            assert await figure("queue_wait_seconds_count", **{"class": "job"}) == 2
            assert await figure("audio_seconds_total", kind="job") == 4  # two scripted seconds each
            assert await figure("audio_seconds_total", kind="request") == 2
            assert await figure("audio_processed_ratio_count") == 3

    in_time(run())


def test_speakers_alone_are_sound_that_was_heard(app: Any) -> None:
    answer = answer_to(app, post("/v1/audio/diarizations"), form([("file", b"sound", "a")]))
    assert answer.status == 200
    assert 'mlx_speech_audio_seconds_total{kind="request"} 2.0' in metrics_of(app)
    assert 'mlx_speech_queue_wait_seconds_count{class="request"} 1.0' in metrics_of(app)


def test_not_ready_while_a_step_does_not_end(demo: mlx_speech.Pipeline, tmp_path: Path, monkeypatch: Any) -> None:
    """A job that hangs in the engine, and the same for a server in front of it."""
    monkeypatch.setattr(health, "LONGEST_STEP", 0.0)
    app = create_app({"demo": demo, "other": Scripted()}, Settings(data_dir=tmp_path))  # type: ignore[dict-item]
    app.state.service.state = "ready"
    began = threading.Event()
    ends = threading.Event()

    def job() -> Iterator[None]:
        began.set()
        assert ends.wait(60)
        yield

    request_of_job = demo._engine.submit(job())  # type: ignore[arg-type]
    try:
        assert began.wait(60)
        answer = answer_to(app, request("GET", "/ready"))
        assert (answer.status, answer.error["code"]) == (503, "stalled") and answer.headers["retry-after"]
        assert "a step of its work has been under way for" in answer.error["message"]
        assert answer_to(app, request("GET", "/health")).status == 200
        assert figure_of(app, "mlx_speech_engine_step_seconds") > 0
    finally:
        ends.set()
    request_of_job.result(60)
    until(lambda: not demo.stalled_for, "the step's end")
    assert demo._engine._thread is not None and demo._engine._thread.is_alive()
    assert answer_to(app, request("GET", "/ready")).status == 200
    assert figure_of(app, "mlx_speech_engine_step_seconds") == 0


def test_a_step_that_does_not_end_is_in_the_log_once(app: Any, pipeline: Scripted, caplog: Any) -> None:
    service = app.state.service
    ends = threading.Event()

    def hanging_step() -> None:
        assert ends.wait(60)

    thread = threading.Thread(target=hanging_step, name="the engine")

    def complaints() -> list[str]:
        return [text for text in caplog.messages if "under way for" in text]

    async def run() -> None:
        async with watched(service, longest=5.0, interval=0.001):
            for stall in (1, 2):
                pipeline.stalled_for = 5.1
                while len(complaints()) < stall:
                    await asyncio.sleep(0.001)
                for _ in range(20):  # more looks at the same stall
                    await asyncio.sleep(0.001)
                pipeline.stalled_for = 5.0
                await asyncio.sleep(0.05)

    thread.start()
    try:
        in_time(run())
    finally:
        ends.set()
        thread.join()
    assert len(complaints()) == 2
    first = complaints()[0]
    assert "under way for 5 s" in first and "thread the engine:\n" in first and "hanging_step\n" in first
    assert "thread MainThread:\n" in first


@pytest.mark.parametrize("seconds, status", [(0.0, 200), (59.9, 200), (60.1, 503), (3600.0, 503)])
def test_a_minute_is_too_long_for_a_step(app: Any, pipeline: Scripted, seconds: float, status: int) -> None:
    app.state.service.state = "ready"
    pipeline.stalled_for = seconds
    assert answer_to(app, request("GET", "/ready")).status == status
    assert figure_of(app, "mlx_speech_engine_step_seconds") == seconds


def metrics_of(app: Any) -> str:
    return answer_to(app, request("GET", "/metrics")).body.decode()


def figure_of(app: Any, name: str) -> float:
    """One of /metrics."""
    lines = answer_to(app, request("GET", "/metrics")).body.decode().splitlines()
    found = [line.split() for line in lines if line.startswith(f"{name} ")]
    return float(found[0][1])


def test_ready_when_the_models_are_there(tmp_path: Path) -> None:
    pipeline = Scripted()
    pipeline.holds = threading.Event()
    app = app_of(pipeline, tmp_path)

    async def run() -> list[int]:
        async with app.router.lifespan_context(app):
            statuses = [(await ask(app, request("GET", "/ready"))).status]
            pipeline.holds.set()  # type: ignore[union-attr]
            for _ in range(400):
                answer = await ask(app, request("GET", "/ready"))
                if answer.status == 200:
                    break
                await asyncio.sleep(0.01)
            statuses.append(answer.status)
        return [*statuses, (await ask(app, request("GET", "/ready"))).status]

    assert in_time(run()) == [503, 200, 503]
    assert pipeline.closed


@pytest.mark.parametrize(
    "preload, asked", [(None, []), ((), [{"diarize": True}]), (("de",), [{"diarize": True}, {"language": "de"}])]
)
def test_what_is_loaded_before_the_first_request(tmp_path: Path, preload: Any, asked: list[Any]) -> None:
    pipeline = Scripted()
    wait_until_ready(app_of(pipeline, tmp_path, preload=preload))
    assert pipeline.asked == [{"vad": False}, *asked]


def test_all_that_a_request_needs_can_be_loaded_at_once(tmp_path: Path) -> None:
    pipeline = mlx_speech.Pipeline.demo()
    app = create_app(pipeline, Settings(data_dir=tmp_path, preload=()))
    assert wait_until_ready(app, pipeline.models.loaded) == {"whisper", "vad", "align", "diarization"}


def test_what_times_words_of_the_languages_that_were_named_stays(tmp_path: Path, monkeypatch: Any) -> None:
    """Of the others, the last one."""
    places = {language: tmp_path / language for language in ("en", "de", "fr", "es")}
    for place in places.values():
        place.symlink_to(DEMO / "wav2vec2")
    monkeypatch.setattr(names, "ALIGN", {language: str(place) for language, place in places.items()})
    loaded: list[str] = []
    load = loading.load

    def counted(name: Any, **keywords: Any) -> Any:
        loaded.append(Path(name).name)
        return load(name, **keywords)

    monkeypatch.setattr(loading, "load", counted)
    pipeline = mlx_speech.Pipeline(DEMO / "whisper", diarize_model=DEMO / "diarization")
    app = create_app(pipeline, Settings(data_dir=tmp_path / "data", preload=("German", "en")))

    def loaded_for(*languages: str) -> list[str]:
        loaded.clear()
        for language in languages:
            pipeline(np.zeros(SAMPLE_RATE, np.float32), language=language)
        return list(loaded)

    def look() -> tuple[list[str], list[str]]:
        first = [name for name in loaded if name in places]
        return first, loaded_for("en", "de", "fr", "en", "fr", "es", "de", "fr", "en")

    first, later = wait_until_ready(app, look)
    assert sorted(first) == ["de", "en"] and later == ["fr", "es", "fr"]
    assert not pipeline.models.loaded()  # it is closed with the server


def test_offline_the_hub_is_not_asked_once_the_models_are_there(tmp_path: Path, monkeypatch: Any) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody is there
    for offline in (False, True):
        seen = wait_until_ready(app_of(Scripted(), tmp_path, offline=offline), lambda: constants.HF_HUB_OFFLINE)
        assert seen == offline and constants.HF_HUB_OFFLINE is False
    with hub.offline(), pytest.raises(HubError, match="not to be asked"):
        hub.fetch("somebody/something")


def wait_until_ready(app: Any, look: Callable[[], Any] = lambda: None) -> Any:
    """Start an application, look at something once it is ready, and end it."""

    async def run() -> Any:
        async with app.router.lifespan_context(app):
            while (await ask(app, request("GET", "/ready"))).status != 200:
                await asyncio.sleep(0.01)
            return look()

    return in_time(run())


# --- what is sent again -----------------------------------------------------------------------------------------------


def all_answers(app: Any, *asked: tuple[str, bytes, str | None], **headers: str) -> list[Answer]:
    """One after the other, with a key each."""

    async def run() -> list[Answer]:
        answers: list[Answer] = []
        for path, body, key in asked:
            given = {**headers, **({} if key is None else {"idempotency-key": key})}
            answers.append(await ask(app, post(path, **given), body))
        return answers

    return in_time(run())


@pytest.mark.parametrize(
    "fields", [{}, {"response_format": "srt"}, {"response_format": "verbose_json"}, {"prompt": "x"}]
)
def test_the_same_key_and_form_get_the_first_answer(app: Any, pipeline: Scripted, fields: dict[str, str]) -> None:
    body = parts(**fields)
    first, again, without, other = all_answers(
        app, (PATH, body, "k"), (PATH, body, "k"), (PATH, body, None), (PATH, body, "l")
    )
    assert first.status == again.status == 200 and again.body == first.body == without.body == other.body
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert len(pipeline.asked) == 3


def test_the_same_key_with_something_else_is_a_conflict(tmp_path: Path, pipeline: Scripted) -> None:
    app = app_of(pipeline, tmp_path, keys=("one", "two"))
    others = [(PATH, parts(sound=b"other")), (PATH, parts(language="en")), ("/v1/audio/translations", parts())]
    asked = [(PATH, parts(), "k"), *((path, body, "k") for path, body in others)]
    first, *refused = all_answers(app, *asked, authorization="Bearer one")
    assert first.status == 200
    for answer in refused:
        assert (answer.status, answer.error["code"]) == (409, "idempotency_conflict")
        assert answer.headers["x-should-retry"] == "false"
    (mine,) = all_answers(app, (PATH, parts(sound=b"other"), "k"), authorization="Bearer two")
    assert mine.status == 200 and len(pipeline.asked) == 2


def test_a_key_that_is_none_is_refused_before_the_form_is_read(app: Any, pipeline: Scripted) -> None:
    for key in ("", "k" * 256):
        (answer,) = all_answers(app, (PATH, b"no form", key))
        assert (answer.status, answer.error["param"]) == (400, "Idempotency-Key")


def test_failures_and_streams_are_not_kept(app: Any, pipeline: Scripted) -> None:
    bad = parts(sound=b"bad")
    assert [answer.status for answer in all_answers(app, (PATH, bad, "k"), (PATH, bad, "k"))] == [400, 400]
    stream = parts(stream="true")
    first, again = all_answers(app, (PATH, stream, "l"), (PATH, stream, "l"))
    assert first.body == again.body and b"transcript.text.done" in again.body
    assert len(pipeline.asked) == 4


@pytest.mark.parametrize("path", [PATH, "/v1/audio/diarizations"])
def test_work_with_a_key_goes_on_without_its_client(app: Any, pipeline: Scripted, path: str) -> None:
    pipeline.holds = threading.Event()
    scope = post(path, **{"idempotency-key": "k"})

    async def run() -> list[Answer]:
        await ask(app, scope, parts(), goes=0.01)
        assert app.state.service.admission.waiting == 1  # it is still heard
        waiting = [asyncio.create_task(ask(app, scope, parts())) for _ in range(2)]
        while app.state.service.admission.waiting < 3:
            await asyncio.sleep(0.001)
        pipeline.holds.set()  # type: ignore[union-attr]
        return [*await asyncio.gather(*waiting), await ask(app, scope, parts())]

    answers = in_time(run())
    assert {answer.status for answer in answers} == {200} and len({answer.body for answer in answers}) == 1
    assert len(pipeline.asked) == 1 and pipeline.cancelled == 0
    assert app.state.service.admission.waiting == 0 and app.state.service.admission.seconds == 0


def test_answers_are_not_kept_without_end() -> None:
    made: list[str] = []

    async def answer(text: str) -> Response:
        made.append(text)
        return Response(text)

    async def run() -> None:
        answers = Answers(most=3 * (OVERHEAD + 1))
        for text in "abcdbc":
            await answers.once("", text, b"", lambda text=text: answer(text))
        assert "".join(made) == "abcd"
        await answers.once("", "a", b"", lambda: answer("a"))  # the oldest, which had to go
        assert "".join(made) == "abcda"
        brief = Answers(keep=0.0)
        await brief.once("", "k", b"", lambda: answer("k"))
        while brief._kept:
            await asyncio.sleep(0)
        await answers.close()
        assert not answers._kept

    in_time(run())


def test_an_answer_that_makes_room_is_let_go_at_once() -> None:
    """And the others where the server ends."""
    made: dict[str, weakref.ref[Response]] = {}

    async def answer(text: str) -> Response:
        response = Response(text)
        made[text] = weakref.ref(response)
        return response

    def held() -> str:
        gc.collect()
        return "".join(text for text, one in made.items() if one() is not None)

    async def run() -> None:
        answers = Answers(most=2 * (OVERHEAD + 1))
        for text in "abcd":
            await answers.once("", text, b"", lambda text=text: answer(text))
        assert held() == "cd"
        await answers.close()
        await asyncio.sleep(0)  # the loop itself holds what it has just waited for
        assert held() == ""

    in_time(run())


def test_the_end_of_a_server_is_that_of_work_with_a_key(pipeline: Scripted, tmp_path: Path) -> None:
    app = app_of(pipeline, tmp_path)

    async def run() -> None:
        async with app.router.lifespan_context(app):
            while (await ask(app, request("GET", "/ready"))).status != 200:
                await asyncio.sleep(0.01)
            pipeline.holds = threading.Event()
            await ask(app, post(PATH, **{"idempotency-key": "k"}), parts(), goes=0.01)

    in_time(run())
    until(lambda: pipeline.cancelled, "the work to be cancelled")
    assert app.state.service.admission.waiting == 0


# --- whoever means it ill ---------------------------------------------------------------------------------------------

JUNK = st.text(max_size=40) | st.sampled_from(
    ["", "0", "-1", "1e400", "true", "null", "{}", "[[[[", "\0", "../../x", "é" * 200]
)
NAMES = st.sampled_from(
    [
        "model",
        "language",
        "languages[]",
        "prompt",
        "response_format",
        "temperature",
        "timestamp_granularities[]",
        "include[]",
        "stream",
        "chunking_strategy",
        "chunking_strategy[type]",
        "known_speaker_names[]",
        "known_speaker_references[]",
        "num_speakers",
        "beam_size",
        "chunk_size",
        "word_timestamps",
        "file",
    ]
) | st.text(max_size=12)
PATHS = st.sampled_from([PATH, "/v1/audio/translations", "/v1/audio/diarizations", "/v1/audio/jobs"])


def mutated(draw: Callable[..., Any]) -> bytes:
    """A form with junk in it, and then some bytes changed, cut out or doubled."""
    fields: list[tuple[str, Any, str | None]] = [("model", "scripted", None)]
    for _ in range(draw(st.integers(0, 4))):
        fields.append((draw(NAMES), draw(JUNK).encode("utf-8", "replace"), None))
    fields.append(("file", b"sound", draw(st.none() | st.text(max_size=20))))
    body = bytearray()
    for name, content, filename in fields:
        body += form([(name.replace("\r", "").replace("\n", ""), content, filename)])[: -len(BOUNDARY) - 6]
    body += f"--{BOUNDARY}--\r\n".encode()
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(body)))
        change = draw(st.sampled_from(["cut", "double", "byte"]))
        if change == "cut":
            del body[place : place + draw(st.integers(0, 30))]
        elif change == "double":
            body[place:place] = body[place : place + draw(st.integers(0, 60))]
        else:
            body[place : place + 1] = bytes([draw(st.integers(0, 255))])
    return bytes(body)


@pytest.fixture(scope="module")
def sturdy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return app_of(Scripted(), tmp_path_factory.mktemp("sturdy"))


@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_mutated_requests_are_no_bugs(sturdy: Any, data: st.DataObject) -> None:
    """2 000 of them: an answer of 200 or 4xx in OpenAI's shape, and nothing left behind."""
    scope = post(data.draw(PATHS))
    body = mutated(data.draw)
    answer = answer_to(sturdy, scope, body, size=data.draw(st.sampled_from([16, 1 << 16])))
    without_runner = scope["path"].endswith("/jobs") and answer.status == 503
    assert answer.status == 200 or 400 <= answer.status < 500 or without_runner, answer.body
    if answer.status >= 400:
        assert set(answer.error) == {"message", "type", "param", "code"} and "Traceback" not in answer.body.decode()
    service = sturdy.state.service
    assert not list(service.uploads.iterdir()) and service.admission.waiting == 0
