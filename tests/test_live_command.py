"""`mlx_speech live` on the command line, with a session that follows a script."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scripted_live import ScriptedPipeline, ScriptedSession, final, partial, speakers

from mlx_speech import cli
from mlx_speech.audio import load_audio
from mlx_speech.cli import live
from mlx_speech.cli.live_run import Feeding
from mlx_speech.errors import AudioError, DeviceLost
from mlx_speech.live import microphone
from mlx_speech.live.events import Block, Gap
from mlx_speech.live.journal import Journal, read_journal
from mlx_speech.live.microphone import Device
from mlx_speech.live.saved import SavedSound

SECOND = b"\x00\x40" * 16000
SCRIPT = [
    (0.5, partial(0, "one tw", 1)),
    (1.0, final(0, 0.0, "one two")),
    (2.0, final(1, 1.0, "three four")),
]


def run(monkeypatch: pytest.MonkeyPatch, session: ScriptedSession, *arguments: str | Path, sound: bytes = b"") -> int:
    """The command, whose pipeline gives this session, with so much at standard input."""
    made: dict[str, Any] = {}

    def pipeline(given: dict[str, Any], say: object) -> ScriptedPipeline:
        for name in ("device", "model_dir", "model_cache_only", "hf_token"):
            made[name] = given.pop(name)
        given.pop("model", None)
        return ScriptedPipeline(session)

    monkeypatch.setattr(live, "make_pipeline", pipeline)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(sound)))
    return cli.main(["live", *map(str, arguments)])


def folder_of(tmp_path: Path) -> set[str]:
    return {path.name for path in tmp_path.iterdir()}


# --- what comes out --------------------------------------------------------------------------------------------------


def test_finals_are_shown_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    session = ScriptedSession(SCRIPT)
    assert run(monkeypatch, session, "-", sound=3 * SECOND) == 0
    said = capsys.readouterr()
    assert said.out == "[00:00.0] one two\n[00:01.0] three four\n" and said.err == ""
    assert folder_of(tmp_path) == set() and session.heard == 3.0 and not session.cancelled
    assert session.reason == "the sound came to its end"
    assert np.concatenate([block.samples for block in session.fed], axis=1).mean() == 0.5


def test_files_are_written_and_the_journal_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    sound = tmp_path / "sound.wav"
    flags = ("-o", tmp_path, "-f", "txt,json", "--name", "talk", "--save-audio", sound, "--quiet")
    assert run(monkeypatch, ScriptedSession(SCRIPT), "-", *flags, sound=3 * SECOND) == 0
    assert folder_of(tmp_path) == {"talk.txt", "talk.json", "sound.wav"}
    assert (tmp_path / "talk.txt").read_text() == "one two\nthree four\n"
    heard = load_audio(sound)
    assert heard.size == 48000 and (heard == 0.5).all()
    said = capsys.readouterr()
    assert said.out == "" and "talk.{txt,json}" in said.err
    # the next session does not overwrite it
    assert run(monkeypatch, ScriptedSession(), "-", *flags) == 2
    assert "talk.txt: is there already, of another session: choose another --name" in capsys.readouterr().err


def test_events_as_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    session = ScriptedSession([*SCRIPT, (2.5, Gap(2.5, 2.0, 2.5, "x"))])
    assert run(monkeypatch, session, "-", "--json", sound=3 * SECOND) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["type"] for line in lines] == ["partial", "final", "final", "gap", "end"]
    assert lines[0]["firm_text"] == "one" and lines[1]["segments"][0]["words"][1]["text"] == "two"
    assert [word["word"] for word in lines[-1]["transcript"]["word_segments"]] == ["one", "two", "three", "four"]


def test_options_reach_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    session = ScriptedSession()
    flags = "--step 1 --max-pause 0.4 --language de --num-speakers 2 --vad-onset 0.3 --chunk-size 10 --beam-size 3"
    assert run(monkeypatch, session, "-", *flags.split()) == 0
    keywords = session.keywords
    assert (keywords["step"], keywords["max_pause"], keywords["chunk_size"]) == (1.0, 0.4, 10.0)
    assert keywords["language"] == "de" and keywords["num_speakers"] == 2 and keywords["beam_size"] == 3
    assert keywords["vad_options"] == {"threshold": 0.3} and "partials" not in keywords
    session = ScriptedSession()
    assert run(monkeypatch, session, "-", "--no-partials", "--finals", "window") == 0
    assert session.keywords["partials"] is False and session.keywords["finals"] == "window"


def test_raw_samples_of_another_form(monkeypatch: pytest.MonkeyPatch) -> None:
    session = ScriptedSession()
    sound = np.tile(np.array([[0.5, -0.5]], "<f4"), (8000, 1)).tobytes()
    assert run(monkeypatch, session, "-", "--rate", "8000", "--format", "f32le", "--channels", "2", sound=sound) == 0
    assert session.heard == 1.0 and session.fed[0].samples[:, 0].tolist() == [0.5, -0.5]


def test_a_file_that_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "talk.wav"
    SavedSound(path).add(Block(np.full(48000, 0.5, np.float32)))
    session = ScriptedSession(SCRIPT)
    assert run(monkeypatch, session, "--follow", path, "--idle", "0.1", "-o", tmp_path, "-f", "srt,html") == 0
    assert (
        session.heard == pytest.approx(3.0)
        and session.reason is not None
        and "has not grown for 0.1 s" in session.reason
    )
    assert folder_of(tmp_path) == {"talk.wav", "talk.srt", "talk.html"}
    assert 'talk.wav"' in (tmp_path / "talk.html").read_text()


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("talk.wav", "talk.wav: only standard input (-) can be named here: mlx_speech transcribe talk.wav reads it"),
        ("- --follow a.wav", "- and --follow conflict"),
        ("--follow a.wav --rate 8000", "--rate is of standard input (-): leave it out"),
        ("- --idle 3", "--idle is of a file (--follow)"),
        ("- --input 3", "--input is of a microphone"),
        ("- --rate 3", "--rate is 3: give Hz"),
        ("- --channels 0", "--channels is 0: give a number"),
        ("--follow a.wav --idle 0", "--idle is 0.0: give a number of seconds above 0"),
        ("- --step 0", "--step is 0.0: it has to be from 0.1 to 30"),
        ("- --step 1 --no-partials", "--step and --no-partials conflict"),
        ("- --max-pause -1", "--max-pause -1.0: give a number"),
        ("- --max-pause 1 --finals window", "--max-pause and --finals window conflict"),
        ("- --device Desk", "--device Desk: models run on cpu or gpu: a microphone is named by --input"),
        ("- -f txt", "need --output-dir"),
        ("- -o OUT --name a/b", "--name a/b: give a name of files without folders"),
        ("- -o OUT -f rttm", "--output-format rttm holds speakers: add --diarize"),
        ("- -o OUT -f txt --embed-audio", "--embed-audio needs --output-format html"),
        ("- -o OUT -f html --embed-audio", "--embed-audio needs --save-audio"),
        ("- --save-audio nowhere/a.wav", "nowhere/a.wav: cannot be written"),
        ("--recover nowhere.live.jsonl", "there is no such file"),
        ("- --recover a", "- and --recover conflict"),
        ("--follow nowhere.wav", "nowhere.wav: cannot be read"),
    ],
)
def test_mistakes_take_a_line(
    flags: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, ScriptedSession(), *flags.replace("OUT", str(tmp_path)).split()) == 2
    said = capsys.readouterr()
    assert message in said.err and len(said.err.splitlines()) == 1 and said.out == ""
    assert folder_of(tmp_path) == set()


def test_an_error_of_the_session_leaves_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    session = ScriptedSession(SCRIPT, error=AudioError("the samples are strange: check them"))
    assert run(monkeypatch, session, "-", "-o", tmp_path, sound=3 * SECOND) == 2
    assert "the samples are strange" in capsys.readouterr().err
    assert folder_of(tmp_path) == {"live.live.jsonl"}
    # the same command goes on with it, and the transcript has both
    session = ScriptedSession([(1.0, final(0, 0.5, "five six"))])
    assert run(monkeypatch, session, "-", "-o", tmp_path, "-f", "json", sound=2 * SECOND) == 0
    content = json.loads((tmp_path / "live.json").read_text())
    assert [segment["text"] for segment in content["segments"]] == ["one two", "three four", "five six"]
    assert content["segments"][2]["start"] == 2.5 and content["duration"] == 4.0
    assert "2.0 s are there already" in capsys.readouterr().err and folder_of(tmp_path) == {"live.json"}


@pytest.mark.parametrize("when", ["it comes", "it is closed"])
def test_a_full_disk_for_the_sound_leaves_the_transcript(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def write(sound: SavedSound, _: object) -> None:
        raise sound._unwritable(OSError(errno.ENOSPC, "No space left on device"))

    def write_header(sound: SavedSound, size: int | None) -> None:
        if size is not None:
            write(sound, None)

    if when == "it comes":
        monkeypatch.setattr(SavedSound, "_write", write)
    else:
        monkeypatch.setattr(SavedSound, "_write_header", write_header)
    flags = ("-o", tmp_path / "out", "-f", "txt,html", "--save-audio", tmp_path / "sound.wav")
    assert run(monkeypatch, ScriptedSession(SCRIPT), "-", *flags, sound=3 * SECOND) == 2
    assert folder_of(tmp_path / "out") == {"live.txt", "live.html"}
    assert (tmp_path / "out" / "live.txt").read_text() == "one two\nthree four\n"
    assert "sound.wav: cannot be written (No space left on device)" in capsys.readouterr().err


def test_files_of_a_journal_that_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    script = [*SCRIPT, (2.0, speakers(2.0, [(0.0, 2.0, None, "SPEAKER_00")], 2.0))]
    session = ScriptedSession(script, error=AudioError("strange"))
    assert run(monkeypatch, session, "-", "-o", tmp_path, "--name", "talk", sound=3 * SECOND) == 2
    capsys.readouterr()
    journal, out = tmp_path / "talk.live.jsonl", tmp_path / "out"
    assert cli.main(["live", "--recover", str(journal), "-o", str(out), "-f", "txt,rttm"]) == 0
    assert folder_of(out) == {"talk.txt", "talk.rttm"} and journal.exists()
    assert (out / "talk.txt").read_text() == "[SPEAKER_00]: one two\n[SPEAKER_00]: three four\n"
    assert "talk.{txt,rttm}" in capsys.readouterr().out


class CountingSession(ScriptedSession):
    """Every second of sound is a chunk, which says the hundredths of its first sample."""

    def __init__(self) -> None:
        super().__init__()
        self.chunks = 0

    def feed(self, sound: np.ndarray | Block) -> None:
        super().feed(sound)
        samples = np.concatenate([block.samples[0] for block in self.fed])
        while self.chunks + 1 <= samples.size / 16000:
            value = round(100 * float(samples[16000 * self.chunks]))
            self._tell(final(self.chunks, float(self.chunks), f"at {value}"))
            self.chunks += 1


def counting(first: int, last: int) -> np.ndarray:
    """A second of each of these hundredths."""
    return np.repeat(np.arange(first, last + 1) / 100, 16000).astype(np.float32)


KILLED = """
import sys
import test_live_command
from mlx_speech import cli
from mlx_speech.cli import live
from scripted_live import ScriptedPipeline

def pipeline(given, say):
    for name in ("device", "model_dir", "model_cache_only", "hf_token"):
        given.pop(name)
    return ScriptedPipeline(test_live_command.CountingSession())

live.make_pipeline = pipeline
cli.main(["live", *sys.argv[1:]])
"""


def test_a_file_is_followed_from_where_a_killed_session_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    script, path, sound, out = tmp_path / "run.py", tmp_path / "talk.wav", tmp_path / "sound.wav", tmp_path / "out"
    script.write_text(KILLED)
    recorder = SavedSound(path)
    recorder.add(Block(counting(1, 6)[: 5 * 16000 + 4000]))  # the last quarter of a second will not be final
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    flags = ["--follow", str(path), "-o", str(out), "-f", "json", "--save-audio", str(sound)]
    process = subprocess.Popen(
        [sys.executable, str(script), *flags, "--idle", "600"], env=environment, stdout=subprocess.PIPE
    )
    limit = threading.Timer(60, process.kill)
    limit.start()
    try:
        assert process.stdout is not None
        with process.stdout:
            lines = [process.stdout.readline() for _ in range(5)]
        assert lines[-1] == b"[00:04.0] at 5\n"
    finally:
        limit.cancel()
        process.kill()
        process.wait(timeout=30)
    assert folder_of(out) == {"talk.live.jsonl"} and load_audio(sound).size >= 5 * 16000
    recorder.add(Block(np.concatenate([counting(6, 6)[4000:], counting(7, 9)])))
    session = CountingSession()
    assert run(monkeypatch, session, *flags, "--idle", "0.1") == 0
    content = json.loads((out / "talk.json").read_text())
    assert [segment["text"] for segment in content["segments"]] == [f"at {k}" for k in range(1, 10)]
    assert [segment["start"] for segment in content["segments"]] == list(range(9)) and content["duration"] == 9.0
    assert session.heard == 4.0 and load_audio(sound).tolist() == load_audio(path).tolist()
    assert "5.0 s are there already" in capsys.readouterr().err and folder_of(out) == {"talk.json"}
    # its sound is not saved in itself, which would cut it
    assert run(monkeypatch, CountingSession(), "--follow", path, "--save-audio", path) == 2
    assert "is the file that is followed" in capsys.readouterr().err


def test_a_session_that_fails_at_once_leaves_nothing_and_guards_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    flags = ("-o", tmp_path / "out", "-f", "txt", "--save-audio", tmp_path / "sound.wav")
    failing = ScriptedSession(error=AudioError("the model is missing: fetch it"))
    assert run(monkeypatch, failing, "-", *flags) == 2
    assert folder_of(tmp_path) == {"out"} and folder_of(tmp_path / "out") == set()
    # where only the header is left, by a process that was killed, files of others are not overwritten either
    journal = Journal(tmp_path / "out" / "live.live.jsonl")
    journal.begin({})
    (tmp_path / "copy").write_bytes(journal.path.read_bytes())
    journal.close()
    (tmp_path / "copy").rename(journal.path)
    (tmp_path / "out" / "live.txt").write_text("of another session")
    capsys.readouterr()
    assert run(monkeypatch, ScriptedSession(SCRIPT), "-", *flags, sound=SECOND) == 2
    assert "live.txt: is there already, of another session" in capsys.readouterr().err
    assert (tmp_path / "out" / "live.txt").read_text() == "of another session"


# --- microphones -----------------------------------------------------------------------------------------------------


class Spoken:
    """A source of blocks that then raises, or ends."""

    def __init__(self, blocks: list[Block], error: Exception | None = None) -> None:
        self._blocks = blocks
        self._error = error
        self.closed = False

    def __iter__(self) -> Iterator[Block]:
        yield from self._blocks
        if self._error is not None:
            raise self._error

    def __next__(self) -> Block:
        raise StopIteration

    def close(self) -> None:
        self.closed = True


def test_a_lost_microphone_is_code_3_and_everything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    chosen: list[object] = []
    blocks = [Block(np.ones(16000, np.float32))] * 2
    source = Spoken(blocks, DeviceLost("Desk: the microphone is gone"))

    def opened(name: object, on_loss: str) -> Spoken:
        chosen.extend((name, on_loss))
        return source

    monkeypatch.setattr(microphone, "microphone", opened)
    session = ScriptedSession(SCRIPT)
    flags = ("--input", "3", "--on-loss", "stop", "-o", tmp_path, "-f", "txt")
    assert run(monkeypatch, session, *flags) == 3
    assert chosen == [3, "stop"] and session.reason == "Desk: the microphone is gone" and source.closed
    assert (tmp_path / "live.txt").read_text() == "one two\nthree four\n"
    assert "Desk: the microphone is gone" in capsys.readouterr().err


def test_devices_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(microphone, "list_devices", lambda: [Device(4, "Desk", 48000, 1, True)])
    assert cli.main(["live", "--list-devices"]) == 0
    assert capsys.readouterr().out == "*  4  Desk  (48000 Hz, 1 channels)\n"


# --- feeding ---------------------------------------------------------------------------------------------------------


def test_a_pipe_waits_until_it_is_heard() -> None:
    answers = iter([31.0, 31.0, 30.0, 0.0, 40.0, 1.0])
    session = ScriptedSession(waiting=lambda _: next(answers))
    blocks = [Block(np.zeros(160, np.float32))] * 3
    Feeding(Spoken(blocks), session, saved=None, drops=False, offset=0.0).run()
    assert len(session.fed) == 3 and next(answers, None) is None
    assert all(block.start is None for block in session.fed)


def test_a_microphone_does_not_wait_and_what_is_left_out_is_a_gap() -> None:
    # a gap lasts until half of what waited is heard, and what waits may then be more again
    answers = iter([0.0, 31.0, 40.0, 29.0, 16.0, 14.0, 29.0, 31.0])
    session = ScriptedSession(waiting=lambda _: next(answers))
    blocks = [Block(np.zeros(1600, np.float32))] * 8
    Feeding(Spoken(blocks), session, saved=None, drops=True, offset=0.0).run()
    assert [block.start for block in session.fed] == [None, pytest.approx(0.5), None] and next(answers, None) is None


def test_a_machine_that_is_a_little_too_slow_has_few_gaps() -> None:
    waiting = 0.0
    session = ScriptedSession(waiting=lambda session: waiting)
    feeding = Feeding(Spoken([]), session, saved=None, drops=True, offset=0.0)
    for _ in range(20 * 3600):  # an hour, of which it hears 54 minutes
        fed = len(session.fed)
        feeding._feed(Block(np.zeros(800, np.float32)))
        waiting = max(0.0, waiting + 0.05 * (len(session.fed) - fed) - 0.045)
    gaps = [block.start for block in session.fed if block.start is not None]
    assert 1 <= len(gaps) <= 25 and len(session.fed) > 0.89 * 20 * 3600


def test_feeding_stops_while_it_waits() -> None:
    asked = threading.Event()

    def waiting(_: ScriptedSession) -> float:
        asked.set()
        return 100.0

    session = ScriptedSession(waiting=waiting)
    source = Spoken([Block(np.zeros(160, np.float32))] * 3)
    feeding = Feeding(source, session, saved=None, drops=False, offset=0.0)
    thread = threading.Thread(target=feeding.run)
    thread.start()
    assert asked.wait(timeout=30)
    feeding.stop()
    thread.join(timeout=30)
    assert not thread.is_alive() and source.closed and session.reason == "it was interrupted"


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------

PROCESS = """
import sys
from scripted_live import ScriptedPipeline, ScriptedSession, final
from mlx_speech import cli
from mlx_speech.cli import live

class Session(ScriptedSession):
    def end(self, reason="over"):
        if sys.argv[1] == "ends":
            super().end(reason)

def pipeline(given, say):
    for name in ("device", "model_dir", "model_cache_only", "hf_token"):
        given.pop(name)
    return ScriptedPipeline(Session([(0.5, final(0, 0.0, "one two"))]))

live.make_pipeline = pipeline
sys.exit(cli.main(["live", "-", "-o", sys.argv[2], "-f", "txt"]))
"""


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("ends", [True, False])
def test_interrupted_once_and_twice(tmp_path: Path, kind: signal.Signals, ends: bool) -> None:
    script, out = tmp_path / "run.py", tmp_path / "out"
    script.write_text(PROCESS)
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    process = subprocess.Popen(
        [sys.executable, str(script), "ends" if ends else "hangs", str(out)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    limit = threading.Timer(60, process.kill)  # no line would come, and nobody would wait for less
    limit.start()
    try:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(SECOND)
        process.stdin.flush()
        assert process.stdout.readline() == b"[00:00.0] one two\n"
        process.send_signal(kind)
        assert process.stderr.readline() == b"mlx_speech: ending: Ctrl-C once more stops at once\n"
        if ends:
            assert process.wait(timeout=30) == 0
            assert folder_of(out) == {"live.txt"} and (out / "live.txt").read_text() == "one two\n"
        else:
            process.send_signal(kind)
            assert process.wait(timeout=30) == 130
            assert b"stopped; what is final is in" in process.stderr.read()
            assert folder_of(out) == {"live.live.jsonl"}
            assert read_journal(out / "live.live.jsonl").transcript.text == "one two"
    finally:
        limit.cancel()
        process.kill()
        process.wait(timeout=30)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def test_help_has_the_flags_that_mean_something(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        cli.main(["live", "--help"])
    text = capsys.readouterr().out
    for flag in ("--rate", "--follow", "--idle", "--input", "--list-devices", "--step", "--max-pause", "--recover"):
        assert flag in text
    for flag in (
        "--audio-track",
        "--sequential",
        "--clip-timestamps",
        "--max-duration",
        "--vad-method",
        "--low-memory",
    ):
        assert flag not in text
