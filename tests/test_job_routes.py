"""Jobs over HTTP: their states, events, results, corrections and sound."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from patience import until
from scripted_jobs import (
    Clock,
    ScriptedPipeline,
    add,
    runner_of,
    segments_of,
    transcript_of,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from mlx_speech import Transcript
from mlx_speech.server.errors import ApiError
from mlx_speech.server.jobs import routes as job_routes
from mlx_speech.server.jobs.records import new_id
from mlx_speech.server.jobs.runner import Runner
from mlx_speech.writers import read_json, to_json

JOBS = "/v1/audio/jobs"


class Owned:
    """Who asks is whom the header says: in the server a key tells."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            scope.setdefault("state", {})["owner"] = headers.get(b"x-owner", b"").decode()
        await self.app(scope, receive, send)


def answer(transcript: Transcript, response_format: str, names: tuple[str, ...]) -> Response:
    if response_format == "names":
        return JSONResponse(names)
    if response_format == "whisperx_json":
        return Response(to_json(transcript), media_type="application/json")
    if response_format == "text":
        return Response(transcript.text)
    raise ApiError(400, "invalid_value", f"{response_format} is no format", "response_format")


def client_of(runner: Runner, folder: Path) -> TestClient:
    """A client of a server whose new jobs are the bodies of requests, as they are."""

    async def post(request: Request) -> Response:
        query = request.query_params
        owner = request.state.owner
        key = request.headers.get("Idempotency-Key")
        sound = await request.body()
        job = await add(runner, folder, sound, owner, response_format=query.get("format", "text"), idempotency_key=key)
        return JSONResponse(job.body(), 202)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with runner.running():
            yield

    service = runner._service
    routes = [*job_routes.routes(service, runner, answer), Route(JOBS, post, methods=["POST"])]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={ApiError: refused})
    return TestClient(Owned(app))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pipeline() -> ScriptedPipeline:
    return ScriptedPipeline()


@pytest.fixture
def client(tmp_path: Path, pipeline: ScriptedPipeline, clock: Clock) -> Iterator[TestClient]:
    with client_of(runner_of(tmp_path, pipeline, clock), tmp_path) as client:
        yield client
    pipeline.go.set()


def read_events(text: str) -> list[tuple[int, str, Any]]:
    """Server-sent events: number, name, data."""
    found = []
    for block in text.split("\n\n"):
        if block and not block.startswith(":"):
            number, name, data = block.split("\n")
            assert number.startswith("id: ") and name.startswith("event: ") and data.startswith("data: ")
            found.append((int(number[4:]), name[7:], json.loads(data[6:])))
    return found


def done(client: TestClient, sound: bytes = b"abc", **headers: str) -> str:
    """The id of a job that has ended."""
    job_id = client.post(JOBS, content=sound, headers=headers).json()["id"]
    client.get(f"{JOBS}/{job_id}/events", headers=headers)
    return job_id


def error_of(response: Any) -> tuple[int, str]:
    content = response.json()
    assert set(content) == {"error"} and set(content["error"]) == {"message", "type", "param", "code"}
    return response.status_code, content["error"]["code"]


def test_a_job_from_its_beginning_to_its_end(client: TestClient, pipeline: ScriptedPipeline, clock: Clock) -> None:
    pipeline.hold.set()
    body = client.post(JOBS, content=b"abc").json()
    assert body["object"] == "audio.job" and body["status"] == "queued" and body["progress"] == 0
    assert body["created_at"] == int(clock.now) and body["filename"] == "a.wav"
    job_id = body["id"]
    second = client.post(JOBS, content=b"d").json()
    until(lambda: client.get(f"{JOBS}/{job_id}").json()["stage"] == "align", "the alignment")
    running = client.get(f"{JOBS}/{job_id}")
    assert running.headers["Retry-After"] == "2" and running.json()["status"] == "running"
    assert 0.5 < running.json()["progress"] < 1 and running.json()["audio_seconds"] == 10
    assert client.get(f"{JOBS}/{second['id']}").json()["queue_position"] == 1
    assert error_of(client.get(f"{JOBS}/{job_id}/result")) == (409, "job_running")
    assert client.get(f"{JOBS}/{job_id}/result").headers["x-should-retry"] == "false"
    assert error_of(client.put(f"{JOBS}/{job_id}/result", content=to_json(Transcript()))) == (409, "job_running")
    pipeline.hold.clear()
    events = client.get(f"{JOBS}/{job_id}/events")
    assert events.headers["Content-Type"].startswith("text/event-stream")
    assert events.headers["Cache-Control"] == "no-store" and events.headers["X-Accel-Buffering"] == "no"
    told = read_events(events.text)
    assert told[-1][1:] == ("done", {"id": job_id, "status": "succeeded"})
    texts = [data["text"] for _, name, data in told if name == "segment"]
    assert texts == [segment.text for segment in reversed(segments_of(b"abc"))]  # as they were heard
    finished = client.get(f"{JOBS}/{job_id}").json()
    assert finished["status"] == "succeeded" and finished["progress"] == 1 and finished["error"] is None
    result = client.get(f"{JOBS}/{job_id}/result")
    assert result.text == transcript_of(b"abc").text and result.headers["ETag"] == '"1"'
    whisperx = client.get(f"{JOBS}/{job_id}/result?response_format=whisperx_json")
    assert whisperx.text == to_json(transcript_of(b"abc"))
    assert error_of(client.get(f"{JOBS}/{job_id}/result?response_format=x")) == (400, "invalid_value")
    assert client.delete(f"{JOBS}/{job_id}").status_code == 204
    for path in ("", "/result", "/events", "/audio"):
        assert error_of(client.get(f"{JOBS}/{job_id}{path}")) == (404, "not_found")


def test_events_go_on_where_they_broke_off(client: TestClient) -> None:
    job_id = done(client, b"abcde")
    told = read_events(client.get(f"{JOBS}/{job_id}/events").text)
    numbers = [number for number, _, _ in told]
    assert len(told) == 6 and numbers == sorted(set(numbers))
    for place, number in enumerate(numbers[:-1]):
        for given in ({"headers": {"Last-Event-ID": str(number)}}, {"params": {"after": str(number)}}):
            rest = client.get(f"{JOBS}/{job_id}/events", **given)
            assert read_events(rest.text) == told[place + 1 :]
    over = client.get(f"{JOBS}/{job_id}/events", headers={"Last-Event-ID": str(numbers[-1])})
    assert over.status_code == 204  # an EventSource comes back for ever otherwise
    strange = client.get(f"{JOBS}/{job_id}/events", headers={"Last-Event-ID": str(10**14)})
    assert read_events(strange.text) == told
    for wrong in ("-1", "1e3", "x", "9" * 30, "²"):
        response = client.get(f"{JOBS}/{job_id}/events", params={"after": wrong})
        assert error_of(response) == (400, "invalid_value"), wrong


def test_two_owners(client: TestClient) -> None:
    me = {"x-owner": "me"}
    job_id = done(client, **me)
    for stranger in ({}, {"x-owner": "you"}):
        for path in ("", "/result", "/events", "/audio"):
            assert error_of(client.get(f"{JOBS}/{job_id}{path}", headers=stranger)) == (404, "not_found")
        correction = to_json(Transcript())
        assert client.put(f"{JOBS}/{job_id}/result", content=correction, headers=stranger).status_code == 404
        assert client.delete(f"{JOBS}/{job_id}/result", headers=stranger).status_code == 404
        assert client.delete(f"{JOBS}/{job_id}", headers=stranger).status_code == 404
        assert client.get(JOBS, headers=stranger).json() == {"object": "list", "data": [], "has_more": False}
    assert [job["id"] for job in client.get(JOBS, headers=me).json()["data"]] == [job_id]


def test_pages_of_the_list(client: TestClient) -> None:
    ids = [client.post(JOBS, content=b"a").json()["id"] for _ in range(5)][::-1]
    first = client.get(JOBS, params={"limit": 2}).json()
    assert [job["id"] for job in first["data"]] == ids[:2] and first["has_more"]
    rest = client.get(JOBS, params={"limit": 3, "after": ids[1]}).json()
    assert [job["id"] for job in rest["data"]] == ids[2:] and not rest["has_more"]
    for limit in ("0", "101", "x", "-1"):
        assert error_of(client.get(JOBS, params={"limit": limit})) == (400, "invalid_value")
    assert error_of(client.get(JOBS, params={"after": "x"})) == (400, "invalid_value")
    assert error_of(client.get(JOBS, params={"after": new_id()})) == (404, "not_found")


@pytest.mark.parametrize("job_id", ["x", "job_", "..%2F..%2Fjobs.sqlite3", "job_" + "A" * 26, "job_" + "a" * 27, "%00"])
def test_ids_are_looked_at_before_they_are_used(client: TestClient, job_id: str) -> None:
    for path in ("", "/result", "/events", "/audio"):
        assert client.get(f"{JOBS}/{job_id}{path}").status_code == 404
    assert client.delete(f"{JOBS}/{job_id}").status_code == 404


def test_corrections_of_two_windows(client: TestClient) -> None:
    job_id = done(client)
    place = f"{JOBS}/{job_id}/result"
    document = json.loads(client.get(place, params={"response_format": "whisperx_json"}).text)
    document["segments"][0]["text"] = "corrected"
    text = json.dumps(document)
    saved = client.put(place, content=text, headers={"If-Match": '"1"'})
    assert saved.status_code == 200 and saved.json()["corrected"] and saved.headers["ETag"] == '"2"'
    for stale in ('"1"', '"0", "1"', "2x", ""):
        conflict = client.put(place, content=text, headers={"If-Match": stale})
        assert error_of(conflict) == (412, "revision_conflict") and conflict.headers["ETag"] == '"2"'
    got = client.get(place, params={"response_format": "whisperx_json"})
    assert got.text == to_json(read_json(text)) and got.headers["ETag"] == '"2"'
    assert client.get(place, params={"version": "first"}).text == transcript_of(b"abc").text
    for number, tag in enumerate(('"2"', 'W/"3"', '"1", "4"', "*"), 3):
        assert client.put(place, content=text, headers={"If-Match": tag}).headers["ETag"] == f'"{number}"'
    assert client.put(place, content=text).headers["ETag"] == '"7"'  # whoever names none means any
    assert error_of(client.delete(place, headers={"If-Match": '"6"'})) == (412, "revision_conflict")
    dropped = client.delete(place, headers={"If-Match": '"7"'})
    assert not dropped.json()["corrected"] and dropped.headers["ETag"] == '"8"'
    assert client.get(place).text == transcript_of(b"abc").text
    assert error_of(client.get(place, params={"version": "corrected"})) == (404, "not_found")
    assert error_of(client.get(place, params={"version": "second"})) == (400, "invalid_value")


def test_corrections_that_are_none(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    place = f"{JOBS}/{done(client)}/result"
    wrong = [b"", b"{}", b"[" * 100_000, b"\xff\xfe", b'{"segments": 5}', b'{"segments": [{"start": 1e999}]}', b"null"]
    for content in wrong:
        response = client.put(place, content=content)
        assert error_of(response) == (400, "invalid_value") and "\n" not in response.json()["error"]["message"]
    monkeypatch.setattr(job_routes, "MAX_CORRECTION", 1000)
    assert error_of(client.put(place, content=b" " * 1001)) == (413, "transcript_too_large")

    def blocks() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * 100

    assert error_of(client.put(place, content=blocks())) == (413, "transcript_too_large")
    assert client.get(place).headers["ETag"] == '"1"'


@pytest.mark.parametrize(
    "head, media_type",
    [
        (b"RIFF\0\0\0\0WAVEfmt ", "audio/wav"),
        (b"fLaC\0", "audio/flac"),
        (b"OggS\0", "audio/ogg"),
        (b"\x1a\x45\xdf\xa3", "audio/webm"),
        (b"\0\0\0\x20ftypM4A ", "audio/mp4"),
        (b"<html><script>alert(1)</script>", "audio/mpeg"),
        (b"", "audio/mpeg"),
    ],
)
def test_sound_is_never_a_page(client: TestClient, head: bytes, media_type: str) -> None:
    sound = head + bytes(range(100)) if head else b""
    job_id = client.post(JOBS, content=sound).json()["id"]
    place = f"{JOBS}/{job_id}/audio"
    whole = client.get(place)
    assert whole.content == sound and whole.headers["Content-Type"] == media_type
    assert (
        whole.headers["X-Content-Type-Options"] == "nosniff" and "sandbox" in whole.headers["Content-Security-Policy"]
    )
    assert whole.headers["Accept-Ranges"] == "bytes" and whole.headers["Cache-Control"] == "no-store"
    if not sound:
        return
    part = client.get(place, headers={"Range": "bytes=3-7"})
    assert part.status_code == 206 and part.content == sound[3:8]
    assert part.headers["Content-Range"] == f"bytes 3-7/{len(sound)}" and part.headers["Content-Type"] == media_type
    assert client.get(place, headers={"Range": "bytes=-4"}).content == sound[-4:]
    assert client.get(place, headers={"Range": f"bytes={len(sound)}-"}).status_code == 416
    assert client.head(place).headers["Content-Length"] == str(len(sound))


def test_sound_that_somebody_has_deleted(client: TestClient, tmp_path: Path) -> None:
    job_id = done(client)
    (tmp_path / "audio" / job_id).unlink()
    assert error_of(client.get(f"{JOBS}/{job_id}/audio")) == (404, "sound_missing")
    assert client.get(f"{JOBS}/{job_id}/result").status_code == 200
