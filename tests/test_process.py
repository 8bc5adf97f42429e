"""What the package does to the process it runs in, and what becomes of it there: settings, memory, forks, threads."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import mlx_speech
from mlx_speech import blas, cli, forks, whisperx
from mlx_speech.errors import ForkedProcess, MLXSpeechError
from mlx_speech.package_data import DEMO
from mlx_speech.pipeline import Pipeline

SILENCE = np.zeros(8_000, np.float32)
LIMIT = 60.0  # seconds that a child may take; it should take milliseconds


@pytest.fixture(scope="module", autouse=True)
def _shared_cache(tmp_path_factory: pytest.TempPathFactory):
    """The demo's models are converted once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cache(_own_cache: None, _shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_SPEECH_CACHE", str(_shared_cache))


def in_a_fork(function: Callable[[], object]) -> str:
    """What a forked child says of a call: the error's name and text, "fine" without one, "hangs" after `LIMIT`."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python too warns of forks beside threads
        child = os.fork()
    if child == 0:
        said = "fine"
        try:
            function()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    deadline = time.monotonic() + LIMIT
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(read)
            return "hangs"
        time.sleep(0.01)
    with os.fdopen(read) as file:
        return file.read()


# --- forks -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_is_told_what_to_do() -> None:
    pipeline = Pipeline.demo()
    assert pipeline(SILENCE).text == ""
    vad = mlx_speech.load("silero_vad")
    aligner, metadata = whisperx.load_align_model("en", model_name=DEMO / "wav2vec2")
    segment = {"start": 0.0, "end": 0.5, "text": "a"}
    uses: list[Callable[[], object]] = [
        lambda: pipeline(SILENCE),
        lambda: list(pipeline.transcribe([SILENCE])),
        lambda: pipeline.diarize(SILENCE),
        lambda: Pipeline.demo()(SILENCE),  # MLX itself was used before
        lambda: mlx_speech.load("silero_vad"),
        lambda: mlx_speech.detect_speech(SILENCE, vad),
        lambda: whisperx.align([segment], aligner, metadata, SILENCE),
    ]
    for use in uses:
        said = in_a_fork(use)
        assert said.startswith("ForkedProcess: ") and "spawn" in said and "\n" not in said
    assert issubclass(ForkedProcess, MLXSpeechError)
    assert pipeline(SILENCE).text == ""  # here it goes on


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_work_that_is_under_way_does_not_keep_the_child_from_saying_so() -> None:
    """The child has not the thread that does it."""
    pipeline = Pipeline.demo()
    request = pipeline.submit(np.zeros(16_000 * 600, np.float32), vad=False)
    next(request.events())
    assert in_a_fork(lambda: pipeline(SILENCE)).startswith("ForkedProcess: ")
    assert in_a_fork(lambda: pipeline.submit(SILENCE)).startswith("ForkedProcess: ")
    assert request.cancel()
    assert pipeline(SILENCE).text == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_generator_that_was_begun_before_the_fork() -> None:
    results = Pipeline.demo().transcribe([SILENCE, SILENCE])
    next(results)
    assert in_a_fork(lambda: next(results)).startswith("ForkedProcess: ")
    assert next(results)[1].text == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_what_is_made_before_a_fork_and_not_used_works_after_it() -> None:
    """As a server does that imports its application before it forks its workers."""
    script = """
import os, sys, numpy as np, mlx_speech
pipeline = mlx_speech.Pipeline.demo()
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(repr(pipeline(np.zeros(8000, np.float32)).text))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0 and done.stdout == "''\n", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forks_at_any_moment_leave_the_work_alone() -> None:
    """OpenBLAS ends its threads before a fork: in the midst of a product that would be the end of the work."""
    script = """
import os, threading, time, numpy as np, mlx_speech
pipeline, vad = mlx_speech.Pipeline.demo(), mlx_speech.load("silero_vad")
silence = np.zeros(16_000 * 600, np.float32)
pipeline(silence[:8_000])
for moment in range(15):
    request = pipeline.submit(silence, vad=False)
    detecting = threading.Thread(target=mlx_speech.detect_speech, args=(silence[:480_000], vad))
    next(request.events())
    detecting.start()
    time.sleep(0.02 * moment)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert request.cancel()
    detecting.join()
    pipeline(silence[:8_000])
print(repr(pipeline(silence[:8_000]).text), end="")
os._exit(0)
"""
    command = [sys.executable, "-W", "ignore", "-c", script]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2"}  # tests have one each, which nothing ends
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False, env=environment)
    assert done.stdout == "''", done.stderr


def forked() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_waits_for_who_computes_and_keeps_others_waiting() -> None:
    said: list[str] = []
    began, may_leave = threading.Event(), threading.Event()

    def compute() -> None:
        with forks.computing(), forks.computing():
            began.set()
            may_leave.wait(LIMIT)
            said.append("left")
        with forks.computing():
            said.append("again")
            forks.give_way()

    def fork() -> None:
        forked()
        said.append("forked")

    computing, forking = threading.Thread(target=compute), threading.Thread(target=fork)
    computing.start()
    assert began.wait(LIMIT)
    forking.start()
    forking.join(0.2)
    assert not said and forks._GATES[0].forks == 1  # it waits
    may_leave.set()
    for thread in (computing, forking):
        thread.join(LIMIT)
        assert not thread.is_alive()
    assert said[0] == "left" and sorted(said) == ["again", "forked", "left"]


def test_what_failed_on_the_device_does_not_end_the_thread_that_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(mx, "synchronize", fail)
    with forks.computing(), forks.resting():
        assert not forks._GATES[0].computing
    assert not forks._GATES[0].computing


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_happens_where_work_rests_or_gives_way() -> None:
    done = threading.Event()

    def fork() -> None:
        forked()
        done.set()

    with forks.computing():
        forked()  # who forks in the midst of its own work does not wait for itself
        forking = threading.Thread(target=fork)
        forking.start()
        assert not done.wait(0.2)
        with forks.resting():
            assert done.wait(LIMIT)
        done.clear()
        forking = threading.Thread(target=fork)
        forking.start()
        end = time.monotonic() + LIMIT
        while not done.is_set() and time.monotonic() < end:
            forks.give_way()
        forking.join(LIMIT)
    assert done.is_set()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_of_a_process_that_was_forked_does_not_wait() -> None:
    """For a thread that only its parent has; nor does the parent wait for ever, where work waits for the fork."""
    leave = threading.Event()
    began = threading.Event()

    def compute() -> None:
        with forks.computing():
            began.set()
            leave.wait(LIMIT)

    thread = threading.Thread(target=compute)
    thread.start()
    assert began.wait(LIMIT)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(forks, "SECONDS_TO_WAIT", 0.1)
            assert in_a_fork(forked) == "fine"
    finally:
        leave.set()
        thread.join(LIMIT)
    assert not forks._GATES[0].forks and not forks._GATES[0].computing


# --- what importing and using do to the process ----------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="about Linux")
@pytest.mark.parametrize(
    "script, environment, loaded",
    [
        ("import mlx_speech", {}, False),
        ("import mlx_speech; mlx_speech.load_audio", {}, False),
        ("import mlx_speech; mlx_speech.Pipeline", {}, True),
        ("from mlx_speech import load", {}, True),
        ("import mlx_speech; mlx_speech.Pipeline", {"MLX_SPEECH_OPENBLAS": "0"}, False),
        ("import mlx_speech; mlx_speech.configure(openblas=False); mlx_speech.Pipeline", {}, False),
        ("import mlx_speech; mlx_speech.configure(); import mlx.core", {}, True),
        ("from mlx_speech.pipeline import Pipeline", {}, True),
        ("from mlx_speech.models import whisper", {}, True),
        ("import mlx_speech.audio, mlx_speech.writers", {}, False),
        ("from mlx_speech.checkpoint import DEMO", {}, True),
        ("from mlx_speech.stages import align", {}, True),
        ("import mlx_speech; import mlx.core", {"MLX_SPEECH_OPENBLAS": "1"}, True),
    ],
)
def test_openblas_comes_with_the_first_use_or_as_it_is_told(
    script: str, environment: dict[str, str], loaded: bool
) -> None:
    look = "from mlx_speech import blas; print(blas.core() is not None)"
    command = [sys.executable, "-c", f"{script}\n{look}"]
    found = {name: value for name, value in os.environ.items() if name != "MLX_SPEECH_OPENBLAS"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**found, **environment})
    assert done.stdout.strip() == str(loaded and mlx_speech.blas.core() is not None)


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="about glibc")
@pytest.mark.parametrize("first, kept", [("", False), ("blas.keep_memory()", True)])
def test_freed_memory_is_kept_only_where_that_was_asked_for(first: str, kept: bool) -> None:
    """A large array of the application's own, that has nothing to do with MLX."""
    script = f"""
import os, numpy as np, mlx_speech
from mlx_speech import blas
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
{first}
mlx_speech.load("silero_vad")
before = resident()
large = np.ones(50_000_000); held = resident() - before
del large; print(held, resident() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    held, left = map(float, done.stdout.split())
    assert held > 390
    assert (left > 390) if kept else (left < 50), done.stdout


def test_the_command_line_asks_for_it_only_where_the_process_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(blas, "keep_memory", lambda: asked.append(True))
    assert cli.main(["vad", str(DEMO / "pauses.flac")]) == 0 and not asked
    monkeypatch.setattr(sys, "argv", ["mlx_speech", "vad", str(DEMO / "pauses.flac")])
    assert cli.main() == 0 and asked == [True]


# --- settings --------------------------------------------------------------------------------------------------------


def test_the_command_line_leaves_the_process_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def own(*_: object) -> None: ...

    def settings() -> tuple[object, ...]:
        streams = [getattr(stream, "errors", None) for stream in (sys.stdout, sys.stderr)]
        filters = warnings.showwarning, list(warnings.filters)
        return filters, signal.getsignal(signal.SIGTERM), dict(os.environ), mx.default_device(), streams

    handler = signal.signal(signal.SIGTERM, own)
    device = mx.default_device()
    mx.set_default_device(mx.Device(mx.cpu, 1))  # not the one that a flag chooses
    try:
        before = settings()
        flags = ["--model-dir", str(tmp_path / "models"), "--model-cache-only", "--hf-token", "none", "--device", "cpu"]
        models = ["--diarize-model", str(DEMO / "diarization")]
        assert cli.main(["diarize", str(DEMO / "pauses.flac"), *flags, *models]) == 0
        assert settings() == before
        mx.set_default_device(device)
        before = settings()
        assert cli.main(["vad", "missing.wav"]) == 1
        assert cli.main(["diarize", "missing.wav", "--device", "tpu"]) == 2
        with pytest.raises(SystemExit):
            cli.main(["vad", "--nonsense"])
        assert settings() == before
    finally:
        signal.signal(signal.SIGTERM, handler)
        mx.set_default_device(device)


def test_the_command_line_runs_in_any_thread(capsys: pytest.CaptureFixture) -> None:
    codes: list[int] = []

    def work() -> None:
        codes.append(cli.main(["vad", str(DEMO / "pauses.flac")]))
        mx.clear_streams()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert codes == [0] and capsys.readouterr().out


# --- a user without a home -------------------------------------------------------------------------------------------


def homeless(folder: Path, *arguments: object, **env: str) -> subprocess.CompletedProcess:
    """The command in a process whose user has no home folder, as in a container: no HOME, and no entry to look up."""
    script = """
import pwd, sys
def unknown(user): raise KeyError(user)
pwd.getpwuid = pwd.getpwnam = unknown
from mlx_speech.cli import main
sys.exit(main(sys.argv[1:]))
"""
    left = ("HOME", "XDG_CACHE_HOME", "MLX_SPEECH_CACHE", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
    kept = {name: value for name, value in os.environ.items() if name not in left}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    root = str(Path(mlx_speech.__file__).parents[1])
    environment = {**kept, "PYTHONPATH": root, **env}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_without_a_home_one_line_says_what_to_set(tmp_path: Path) -> None:
    recording = DEMO / "pauses.flac"
    whisper = ("--model", DEMO / "whisper", "--no-align", "--language", "en")
    for arguments, wanted in (
        (("transcribe", recording, *whisper), "set HOME, or MLX_SPEECH_CACHE to a folder that can be written"),
        (("demo",), "set HOME, or MLX_SPEECH_CACHE to a folder that can be written"),
        (("diarize", recording, "--diarize-model", "org/name"), "set HOME, or HF_HOME to a folder"),
        (("transcribe", recording, *whisper, "-o", "~/x"), "~/x: there is no such home folder"),
    ):
        done = homeless(tmp_path, *arguments)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and wanted in done.stderr, done.stderr
        assert not list(tmp_path.iterdir())
    assert homeless(tmp_path, "vad", recording).returncode == 0  # it needs none
    cache = shutil.copytree(os.environ["MLX_SPEECH_CACHE"], tmp_path / "cache")
    done = homeless(tmp_path, "transcribe", recording, *whisper, "-f", "txt", "-o", "out", MLX_SPEECH_CACHE=str(cache))
    assert done.returncode == 0 and (tmp_path / "out" / "pauses.txt").is_file(), done.stderr
