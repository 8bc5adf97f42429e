"""Answers in JSON that take long: white space ahead of them, where that is wanted."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from asgi import BOUNDARY, Answer, ask, form, post, request
from patience import in_time
from serving import Scripted, app_of, running

from mlx_speech.errors import AudioError
from mlx_speech.server import keep_alive

PATH = "/v1/audio/transcriptions"
LIMIT = 60.0  # seconds for what must not hang


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep_alive, "SECONDS_OF_SILENCE", 0.01)


@pytest.fixture
def pipeline() -> Scripted:
    made = Scripted()
    made.holds = threading.Event()
    return made


@pytest.fixture
def app(pipeline: Scripted, tmp_path: Path) -> Any:
    return app_of(pipeline, tmp_path, keep_alive_json=True)


def parts(**fields: str) -> bytes:
    given = {"model": "scripted", **fields}
    return form([*((name, value, None) for name, value in given.items()), ("file", b"sound", "a.wav")])


def visit(
    app: Any, body: bytes, when_alive: Callable[[asyncio.Event], None], path: str = PATH, **headers: str
) -> Answer:
    """Send a form; `when_alive` is called at the second space, with what makes the client go."""
    gone = asyncio.Event()

    def see(answered: bytes) -> None:
        if answered == b"  ":
            when_alive(gone)

    asking = ask(app, post(path, **headers), body, gone=gone, see=see)
    return in_time(asking)


@pytest.mark.parametrize("fields", [{}, {"response_format": "verbose_json"}, {"response_format": "diarized_json"}])
@pytest.mark.parametrize("headers", [{}, {"idempotency-key": "k"}])
def test_spaces_come_ahead_of_a_late_answer(
    app: Any, pipeline: Scripted, tmp_path: Path, fields: dict[str, str], headers: dict[str, str]
) -> None:
    answer = visit(app, parts(**fields), lambda gone: pipeline.holds.set(), **headers)
    assert answer.status == 200 and answer.headers["content-type"] == "application/json"
    usual = in_time(ask(app_of(Scripted(), tmp_path), post(PATH), parts(**fields)))
    assert answer.body.lstrip(b" ") == usual.body and answer.body.startswith(b"  ")
    assert app.state.service.admission.waiting == 0


def test_speakers_alone_too(app: Any, pipeline: Scripted) -> None:
    answer = visit(app, parts(), lambda gone: pipeline.holds.set(), "/v1/audio/diarizations")
    assert answer.body.startswith(b"  ") and "segments" in answer.json


def test_a_soon_answer_is_as_ever(app: Any, pipeline: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep_alive, "SECONDS_OF_SILENCE", LIMIT)
    pipeline.holds = None
    answer = in_time(ask(app, post(PATH), parts()))
    assert answer.body.startswith(b"{") and "content-length" in answer.headers
    assert in_time(ask(app, post(PATH), parts(model="none"))).status == 404


@pytest.mark.parametrize(
    ("error", "code"), [(AudioError("a.wav: is broken"), "invalid_audio"), (KeyError("secret"), "internal_error")]
)
def test_a_late_failure_is_told_counted_and_logged(
    app: Any, pipeline: Scripted, error: Exception, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "mlx_speech.server"):
        answer = visit(app, parts(), lambda gone: pipeline.requests[-1]._fail(error))
    pipeline.holds.set()
    assert answer.status == 200 and answer.body.startswith(b"  ") and answer.error["code"] == code
    metrics = in_time(ask(app, request("GET", "/metrics"))).body.decode()
    if code == "internal_error":
        assert "req_" in caplog.text and "KeyError" in caplog.text and "secret" not in answer.body.decode()
    else:
        assert f'mlx_speech_rejected_total{{reason="{code}"}} 1.0' in metrics and not caplog.text


def test_who_goes_then_is_not_waited_for(app: Any, pipeline: Scripted) -> None:
    visit(app, parts(), lambda gone: gone.set())
    assert pipeline.requests[-1].cancelled()
    assert app.state.service.admission.waiting == 0
    metrics = in_time(ask(app, request("GET", "/metrics"))).body.decode()
    assert 'mlx_speech_cancelled_total{reason="disconnect"} 1.0' in metrics


@pytest.mark.parametrize("wanted", [True, False])
def test_other_answers_are_not_touched(tmp_path: Path, wanted: bool) -> None:
    """Text, subtitles; and nothing at all where nobody has asked for it."""
    made = Scripted()
    made.holds = threading.Event()
    app = app_of(made, tmp_path, keep_alive_json=wanted)

    async def run(fields: dict[str, str]) -> Answer:
        asking = asyncio.create_task(ask(app, post(PATH), parts(**fields)))
        count = len(made.requests)
        while len(made.requests) == count:
            await asyncio.sleep(0.001)
        await asyncio.sleep(5 * keep_alive.SECONDS_OF_SILENCE)
        made.requests[-1]._finish(made.transcript)
        return await asking

    for fields in [{"response_format": "text"}, {"response_format": "srt"}, *([] if wanted else [{}])]:
        answer = in_time(run(fields))
        assert answer.status == 200 and not answer.body.startswith(b" ") and "content-length" in answer.headers


def test_clients_take_it(app: Any, pipeline: Scripted) -> None:
    """The official one, and one that reads byte by byte, over a socket."""
    with running(app) as origin, openai.OpenAI(api_key="none", base_url=f"{origin}/v1", max_retries=0) as client:
        asking = client.audio.transcriptions.with_streaming_response.create(model="whisper-1", file=("a.wav", b"a"))
        with asking as answer:  # its head has come
            pipeline.holds.set()
            assert answer.parse().text == "Hello there. Who is it?"
        pipeline.holds = threading.Event()
        connection = http.client.HTTPConnection(urlsplit(origin).netloc, timeout=LIMIT)
        connection.request("POST", PATH, parts(), {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"})
        plain = connection.getresponse()
        assert plain.read(3) == b"   "
        pipeline.holds.set()
        assert json.loads(plain.read())["text"] == "Hello there. Who is it?"
