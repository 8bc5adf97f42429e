"""`mlx_speech serve` from outside: a whole story with its page, the ends that it may come to, and hostile clients."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import h11
import httpx2
import numpy as np
import openai
import pytest
import uvicorn
import websockets.sync.client
from asgi import BOUNDARY, form
from patience import PATIENCE, until
from serve_process import COMMAND, PROGRAM, Serving, environment, rest_of, served
from serving import wav
from starlette.responses import PlainTextResponse
from test_writers import parse_srt
from uvicorn.server import ServerState
from websockets.exceptions import ConnectionClosed

import mlx_speech
from mlx_speech.package_data import DEMO
from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.server.connections import Connection, room_for_connections

SOUND = DEMO / "conversation.flac"
PATH = "/v1/audio/transcriptions"
CONTENT_TYPE = f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
GRACE = 2.0  # seconds
MEBIBYTE = 1 << 20


def beginning_of(seconds: float) -> bytes:
    """Of the demo's conversation."""
    return wav(mlx_speech.load_audio(SOUND)[: round(seconds * SAMPLE_RATE)])


@pytest.fixture(scope="module")
def short() -> bytes:
    return beginning_of(9.0)


def head(method: str, path: str, more: str = "", version: str = "1.1") -> bytes:
    return f"{method} {path} HTTP/{version}\r\nHost: 127.0.0.1\r\n{more}\r\n".encode()


# --- the whole story --------------------------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Sequence[str]]:
    """The command mlx_speech: that of the tests; in CI that of a fresh clone, in an environment of its own."""
    if not os.environ.get("CI"):
        yield PROGRAM
        return
    clone = tmp_path / "clone"
    python = tmp_path / "venv" / "bin" / "python"
    extras = "cpu,server" if sys.platform == "linux" else "server"
    source = Path(__file__).parent.parent.as_uri()
    # CI may check out as another user than the one that runs the tests
    steps = [
        ["git", "-c", "safe.directory=*", "clone", "--quiet", "--depth", "1", source, clone],
        [sys.executable, "-m", "venv", tmp_path / "venv"],
        [python, "-m", "pip", "install", "--quiet", f"{clone}[{extras}]"],
    ]
    program = (str(python.with_name("mlx_speech")),)
    for step in steps:
        done = subprocess.run(step, cwd=tmp_path, env=environment(program), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    yield program
    shutil.rmtree(tmp_path / "venv")  # half a gigabyte, which pytest would keep


def test_a_recording_from_the_upload_to_the_corrected_subtitles(
    browser: Any, short: bytes, program: Sequence[str], tmp_path: Path
) -> None:
    from browser import watched_page
    from page_desk import expect

    folder = tmp_path / "data"
    with served(folder, program=program) as server:
        with openai.OpenAI(api_key="none", base_url=f"{server.origin}/v1", max_retries=0) as client:
            text = client.audio.transcriptions.create(model="whisper-1", file=("a.wav", short)).text
            stream = client.audio.transcriptions.create(model="whisper-1", file=("a.wav", short), stream=True)
            deltas = [event.delta for event in stream if event.type == "transcript.text.delta"]
        assert text and "".join(deltas) == text
        server.client.get("/v1/models", headers={"X-Forwarded-For": "203.0.113.9"})  # which no proxy has sent
        address = server.post_job(short, diarize="true", min_speakers="2", max_speakers="2")
        job = server.done(address)
        first = server.client.get(f"{address}/result", params={"response_format": "json"}).json()["text"]
        with watched_page(browser, server.origin) as page:
            page.goto(f"{server.origin}/#/{job['id']}")
            expect(page.locator(".segment").first).to_be_visible()
            page.locator(".word").first.click()
            page.keyboard.press("e")
            page.keyboard.press("Control+a")
            page.keyboard.type("Corrected")
            page.keyboard.press("Enter")
            page.get_by_role("button", name=re.compile("^SPEAKER_00, ")).click()
            page.fill("#speaker-name", "Ada")
            page.keyboard.press("Enter")
            expect(page.locator("#speakers")).to_contain_text("Ada")
            page.keyboard.press("Control+s")
            expect(page.locator("#said")).to_have_text("Saved")
        assert server.stop(signal.SIGTERM) < 5 and server.process.returncode == 0, server.said
        assert "203.0.113.9" not in "".join(server.said)

    with served(folder, program=program) as server:
        assert server.job(address)["corrected"]
        results: dict[str, str] = {}
        for name in ("txt", "srt", "vtt", "json", "verbose_json", "diarized_json", "whisperx_json"):
            response = server.client.get(f"{address}/result", params={"response_format": name.replace("txt", "text")})
            assert response.status_code == 200, (name, response.text)
            results[name] = response.text
        assert all("Corrected" in content for content in results.values()), results
        for name in ("srt", "whisperx_json", "diarized_json"):
            assert "Ada" in results[name], (name, results[name])
        wanted = {"version": "first", "response_format": "json"}
        assert server.client.get(f"{address}/result", params=wanted).json()["text"] == first
        with watched_page(browser, server.origin) as page:
            page.goto(f"{server.origin}/#/{job['id']}")
            expect(page.locator(".word").first).to_have_text("Corrected")
            expect(page.locator("#speakers")).to_contain_text("Ada")

    (tmp_path / "talk.json").write_text(results["whisperx_json"], encoding="utf-8")
    write = [*program, "write", tmp_path / "talk.json", "-o", tmp_path / "out", "-f", "srt"]
    subprocess.run(write, check=True, capture_output=True, env=environment(program))
    subtitles = (tmp_path / "out" / "talk.srt").read_text(encoding="utf-8")
    assert parse_srt(subtitles) and "Corrected" in subtitles and "Ada" in subtitles


# --- its ends ---------------------------------------------------------------------------------------------------------


def test_ends_under_load_and_jobs_go_on_behind_each(tmp_path: Path) -> None:
    """SIGTERM, a crash, two signals; a minute of sound with speakers is more than the grace leaves time for."""
    whole = SOUND.read_bytes()
    with served(tmp_path, "--grace", str(GRACE)) as server, ThreadPoolExecutor() as pool:
        fields = {"model": "demo", "diarize": "true", "response_format": "diarized_json"}
        files = {"file": ("a.flac", whole)}
        first = server.post_job(whole, diarize="true")
        until(lambda: server.job(first)["status"] == "running", "a job that runs")
        asked = [
            pool.submit(httpx2.post, server.origin + PATH, data={**fields, **more}, files=files, timeout=PATIENCE)
            for more in ({}, {"stream": "true"})
        ]
        live = websockets.sync.client.connect(f"ws://127.0.0.1:{server.port}/v1/realtime")
        with live, server.client.stream("GET", f"{first}/events") as events:
            assert json.loads(live.recv(PATIENCE))["type"] == "session.created"
            assert events.status_code == 200
            time.sleep(0.5)
            seconds = server.stop(signal.SIGTERM)
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    live.recv(PATIENCE)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1001
        said = "".join(server.said)
        assert server.process.returncode == 0 and seconds < GRACE + 5, (seconds, said)
        assert "Traceback" not in said
        answer, stream = (future.result() for future in asked)
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "shutting_down"
        assert answer.headers["retry-after"]
        assert stream.status_code == 200 and '"code": "shutting_down"' in stream.text

    with served(tmp_path) as server:
        assert server.done(first)["audio_seconds"] > 30
        second = server.post_job(beginning_of(15.0), diarize="true")
        until(lambda: server.job(second)["status"] == "running", "a job that runs")
        server.stop(signal.SIGKILL)

    with served(tmp_path) as server:
        server.done(second)
        events = server.client.get(f"{second}/events").text
        heard = [line for line in events.splitlines() if line.startswith("data:") and '"text"' in line]
        assert heard and len(set(heard)) == len(heard) and events.count("event: done") == 1
        assert {server.job(address)["status"] for address in (first, second)} == {"succeeded"}
        server.post_job(whole, diarize="true")
        stuck = server.connect(head("POST", PATH, f"{CONTENT_TYPE}Content-Length: 1000\r\n"))
        with stuck:
            assert server.stop(signal.SIGTERM, signal.SIGINT) < 3
        assert server.process.returncode == -signal.SIGINT


def test_what_cannot_be_served_is_one_line(tmp_path: Path) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = str(taken.getsockname()[1])
    file = tmp_path / "file"
    file.touch()
    blocked = "import sys; sys.modules['uvicorn'] = None; from mlx_speech.cli import main; sys.exit(main(['serve']))"
    data_dir = ["--data-dir", str(tmp_path / "data")]
    cases = [
        ([*COMMAND, "--demo", "--port", port, *data_dir], f"127.0.0.1:{port}: is taken", "another port"),
        ([*COMMAND, "--demo", "--port", "65536", *data_dir], "--port is 65536", "give 0 to 65535"),
        ([*COMMAND, "--demo", "--port", "0", "--data-dir", str(file)], str(file), "give a --data-dir"),
        ([*COMMAND, "--demo", "--port", "0", "--api-key-file", str(tmp_path / "keys")], "keys", "is it there"),
        ([*COMMAND, "--demo", "--port", "0", "--wyoming", port, *data_dir], f":{port}: is taken", "another port"),
        ([sys.executable, "-c", blocked], "uvicorn is missing", "[server]"),
    ]
    with taken, ThreadPoolExecutor(2) as pool:
        runs = pool.map(
            lambda case: subprocess.run(case[0], capture_output=True, text=True, timeout=PATIENCE, env=environment()),
            cases,
        )
        for (_, problem, advice), done in zip(cases, runs, strict=True):
            assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
            assert problem in done.stderr and advice in done.stderr, done.stderr


def test_a_unix_socket_is_there_while_it_is_served(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="mlx") as folder:  # names of sockets may have a hundred characters
        path = Path(folder) / "s"
        command = [*COMMAND, "--demo", "--uds", str(path), "--data-dir", str(tmp_path / "data")]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as process:
            lines = process.stderr
            assert lines is not None
            try:
                until(lambda: f"listening at unix:{path}" in lines.readline(), "an address")
                with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(path)), timeout=PATIENCE) as client:
                    assert client.get("http://localhost/health").json() == {"status": "ok"}
                process.send_signal(signal.SIGTERM)
                assert process.wait(PATIENCE) == 0
            finally:
                process.kill()
        assert not path.exists()


# --- hostile clients --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One for all that follows; it has to be well at the end."""
    folder = tmp_path_factory.mktemp("served")
    with served(folder, "--max-queue", "64", "--forwarded-allow-ips", "10.0.0.0/8,127.0.0.1") as made:
        yield made
        until(lambda: not list((folder / "uploads").iterdir()), "uploads that are deleted")
        assert made.client.get("/ready").status_code == 200
        assert made.stop(signal.SIGTERM) < 10 and made.process.returncode == 0
        assert "Traceback" not in "".join(made.said)


def test_a_proxy_that_is_known_says_whose_request_it_is(server: Serving) -> None:
    forwarded = {"X-Forwarded-For": "203.0.113.9"}
    server.client.get("/v1/models", headers=forwarded)
    until(lambda: '"client": "203.0.113.9"' in "".join(server.said), "a line of the log")
    server.client.get("/v1/models/demo")
    until(lambda: '"client": "127.0.0.1"' in "".join(server.said), "a line of the log")


def test_strange_requests(server: Serving, short: bytes) -> None:
    closing = "Connection: close\r\n"
    for long in (head("GET", "/" + "a" * MEBIBYTE), head("GET", "/health", f"X: {'a' * MEBIBYTE}\r\n")):
        connection = server.connect()
        with connection:
            try:
                connection.sendall(long)
            except OSError:
                continue  # refused before all of it was there
            assert rest_of(connection)[:12] in (b"HTTP/1.1 400", b"")
    with server.connect(head("GET", "/health", version="1.0")) as connection:
        answer = rest_of(connection)
        assert b" 200 " in answer.splitlines()[0] and answer.endswith(b'{"status":"ok"}')
    with server.connect(
        head("GET", "/health") + head("GET", "/v1/models") + head("GET", "/none", closing)
    ) as connection:
        statuses = re.findall(rb"HTTP/1.1 (\d+)", rest_of(connection))
        assert statuses == [b"200", b"200", b"404"]

    body = form([("model", "demo", None), ("file", short, "a.wav")])
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:90], body[90:]))
    chunked = head("POST", PATH, f"{CONTENT_TYPE}Transfer-Encoding: chunked\r\n{closing}") + chunks + b"0\r\n\r\n"
    with server.connect(chunked) as connection:
        text = json.loads(rest_of(connection).split(b"\r\n\r\n", 1)[1].splitlines()[-1])["text"]
    expecting = f"{CONTENT_TYPE}Content-Length: {len(body)}\r\nExpect: 100-continue\r\n{closing}"
    with server.connect(head("POST", PATH, expecting)) as connection:
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert text and json.loads(rest_of(connection).split(b"\r\n\r\n", 1)[1])["text"] == text
    # refused without its body
    with server.connect(head("POST", PATH, expecting.replace("multipart/form-data", "text/plain"))) as connection:
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 415 ")


def test_many_at_once_of_whom_some_leave(server: Serving) -> None:
    body = form([("model", "demo", None), ("file", beginning_of(2.0), "a.wav")])
    whole = head("POST", PATH, f"{CONTENT_TYPE}Content-Length: {len(body)}\r\nConnection: close\r\n") + body

    def ask(number: int) -> bytes:
        leaves = number % 10 == 0
        with server.connect(whole[: len(whole) // 2] if leaves else whole) as connection:
            return b"" if leaves else rest_of(connection)

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(ask, range(50)))
    for number, answer in enumerate(answers):
        if number % 10:  # uploads at once are bounded, and who is too many waits
            assert answer.startswith(b"HTTP/1.1 200"), answer[:200]


def test_a_large_upload_is_not_held_in_memory(server: Serving, short: bytes) -> None:
    if not Path("/proc").exists():
        pytest.skip("the memory of another process is read from /proc, which is Linux's")
    server.client.post(PATH, data={"model": "demo"}, files={"file": ("a.wav", short)})
    before = server.resident()
    size = 300 * MEBIBYTE
    with server.connect(head("POST", PATH, f"{CONTENT_TYPE}Content-Length: {size + 10_000}\r\n")) as connection:
        beginning = form([("model", "demo", None), ("file", short[:44], "a.wav")])
        connection.sendall(beginning.rpartition(b"\r\n--")[0])
        block = bytes(MEBIBYTE)
        most = before
        for number in range(300):
            connection.sendall(block)
            if number % 10 == 0:
                most = max(most, server.resident())
    assert most - before < 50 * MEBIBYTE


class Impatient(Connection):
    seconds_for_head = 0.4
    seconds_to_read = 0.6
    seconds_to_stop = 0.3


@contextlib.contextmanager
def listening(protocol: type[Connection]) -> Iterator[tuple[int, uvicorn.Server]]:
    """The port and the server; /long is more than the system takes in for a client that does not read."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        content = "a" * (64 * MEBIBYTE if scope["path"] == "/long" else 1)
        await PlainTextResponse(content)(scope, receive, send)

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(answer, http=protocol, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1], running
        until(lambda: not running.server_state.connections and not running.server_state.tasks, "its connections' end")
    finally:
        running.should_exit = True
        thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.mark.parametrize("beginning", [b"", b"GET / HT", head("GET", "/") + b"GET /"])
def test_a_head_that_comes_slowly_is_not_waited_for(beginning: bytes) -> None:
    with (
        listening(Impatient) as (port, _),
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection,
    ):
        connection.sendall(beginning)
        start = time.monotonic()
        closed = threading.Event()

        def drip() -> None:
            while not closed.wait(0.1):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        answer = rest_of(connection)
        closed.set()
        dripping.join()
    assert time.monotonic() - start < 10
    assert answer.count(b"HTTP/1.1 200") == beginning.count(b"\r\n\r\n")


def test_a_client_that_does_not_read_is_not_waited_for() -> None:
    with (
        listening(Impatient) as (port, running),
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection,
    ):
        connection.sendall(head("GET", "/long"))
        received = len(connection.recv(1))
        until(lambda: not running.server_state.connections, "the server to give the client up")
        assert received + len(rest_of(connection)) < 64 * MEBIBYTE


BODY = "Content-Length: 1000000000\r\n"


def test_a_client_that_is_answered_early_may_take_the_answer() -> None:
    """It sends on, and looks at the answer late; its connection ends, and not before."""
    with (
        listening(Impatient) as (port, running),
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection,
    ):
        connection.sendall(head("POST", "/", BODY))
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 1_000_000_000:
                sent += connection.send(bytes(1 << 16))
        assert sent < 100 * MEBIBYTE  # what the system takes in, and one that is read away
        assert b"HTTP/1.1 200" in rest_of(connection)
        until(lambda: not running.server_state.connections, "the server to give the client up")


def test_a_client_that_is_answered_early_and_ends_its_body_goes_on() -> None:
    with (
        listening(Connection) as (port, _),
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection,
    ):
        for closing in ("", "Connection: close\r\n"):
            connection.sendall(head("POST", "/", f"Content-Length: 3\r\n{closing}"))
            answer = b""
            while not answer.endswith(b"\r\n\r\na"):
                more = connection.recv(1 << 16)
                assert more, answer
                answer += more
            assert answer.count(b"HTTP/1.1 200") == 1
            if not closing:
                connection.sendall(b"abc")


def test_little_is_read_away_and_not_for_long() -> None:
    loop, transport = Mock(), Mock()
    transport.is_closing.return_value = False
    connection = Connection(uvicorn.Config(Mock(), log_config=None), ServerState(), {}, loop)
    connection.connection_made(transport)
    connection.conn = Mock(their_state=h11.SEND_BODY, our_state=h11.DONE)
    connection.conn.next_event.return_value = h11.NEED_DATA
    loop.call_later = Mock()
    connection.on_response_complete()
    loop.call_later.assert_called_with(1.0, transport.close)
    for size in (MEBIBYTE, 1):
        transport.pause_reading.assert_not_called()
        connection.data_received(bytes(size))
    transport.pause_reading.assert_called_once_with()
    connection.conn.their_state = h11.DONE
    connection.data_received(b"a")
    loop.call_later.return_value.cancel.assert_called()


def test_memory_is_not_written_to_a_disk() -> None:
    program = "import resource; from mlx_speech.server.run import without_core_dumps; "
    program += "resource.setrlimit(resource.RLIMIT_CORE, (4096, resource.getrlimit(resource.RLIMIT_CORE)[1])); "
    program += "without_core_dumps(); print(resource.getrlimit(resource.RLIMIT_CORE)[0])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["0"]


def test_a_server_has_no_core_dumps_and_room_for_connections(server: Serving) -> None:
    limits = Path(f"/proc/{server.process.pid}/limits").read_text(encoding="ascii")
    assert re.search(r"Max core file size +0 ", limits)
    files = re.search(r"Max open files +(\d+) +(\d+)", limits)
    assert files is not None and int(files[1]) >= min(2000, int(files[2]))


def test_a_connection_too_many_is_told_so() -> None:
    class Narrow(Connection):
        most_connections = 2

    with listening(Narrow) as (port, running), contextlib.ExitStack() as open_ones:

        def connect() -> socket.socket:
            connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
            return open_ones.enter_context(connection)

        first, _ = connect(), connect()
        until(lambda: len(running.server_state.connections) == 2, "both to be taken")
        head_of_it, _, content = rest_of(connect()).partition(b"\r\n\r\n")
        assert head_of_it.startswith(b"HTTP/1.1 503") and b"retry-after: 5" in head_of_it.lower()
        assert json.loads(content)["error"]["code"] == "too_many_connections"
        first.close()
        until(lambda: len(running.server_state.connections) == 1, "one to go")
        third = connect()
        third.sendall(head("GET", "/", "Connection: close\r\n"))
        assert rest_of(third).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("soft", "hard", "asked", "most"),
    [
        (256, resource.RLIM_INFINITY, 2000, 1000),  # a Mac
        (1024, 524_288, 2000, 1000),
        (1024, 1024, None, 512),
        (160, 1500, 1500, 750),
        (4096, 4096, None, 1000),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None, 1000),
    ],
)
def test_connections_leave_files_for_others(
    soft: int, hard: int, asked: int | None, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = Mock()
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", limit)
    assert room_for_connections() == most
    assert limit.call_args_list == ([] if asked is None else [call(resource.RLIMIT_NOFILE, (asked, hard))])
    limit.side_effect = OSError
    assert room_for_connections() == min(1000, soft // 2 if soft != resource.RLIM_INFINITY else 1000)


def test_a_client_that_begins_late_to_read_gets_all() -> None:
    with (
        listening(Connection) as (port, _),
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection,
    ):
        connection.sendall(head("GET", "/long", "Connection: close\r\n"))
        time.sleep(0.5)
        assert len(rest_of(connection)) > 64 * MEBIBYTE


def test_each_time_that_a_client_reads_its_time_begins_anew() -> None:
    loop, transport = Mock(), Mock()
    connection = Connection(uvicorn.Config(Mock(), log_config=None), ServerState(), {}, loop)
    connection.connection_made(transport)
    for _ in range(3):
        loop.call_later = Mock()
        connection.pause_writing()
        loop.call_later.assert_called_once_with(60.0, transport.abort)
        connection.resume_writing()
        loop.call_later.return_value.cancel.assert_called_once_with()


def test_a_full_disk(tmp_path: Path) -> None:
    from serving import Scripted, app_of
    from starlette.testclient import TestClient

    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only the superuser may mount a small disk")
    try:
        app = app_of(Scripted(), folder, disk_reserve=0)
        with TestClient(app, base_url="http://127.0.0.1") as client:
            for path in (PATH, "/v1/audio/jobs"):
                data = {"model": "scripted"}
                unsaid = form([("model", "scripted", None), ("file", np.zeros(6 * MEBIBYTE, "u1").tobytes(), "a.wav")])
                blocks = (unsaid[start : start + MEBIBYTE] for start in range(0, len(unsaid), MEBIBYTE))
                # its length is not told before, so that it is the writing that fails
                kind = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
                refused = client.post(path, content=blocks, headers=kind)
                assert refused.status_code == 507 and refused.json()["error"]["code"] == "disk_full"
                assert not list((folder / "uploads").iterdir())
                small = client.post(path, data=data, files={"file": ("a.wav", b"sound")})
                assert small.status_code in (200, 202), small.text
            until(lambda: client.get("/v1/audio/jobs").json()["data"][0]["status"] == "succeeded", "a job")
    finally:
        subprocess.run(["umount", str(folder)], check=True)
