"""Archives on a local cluster of three Ray nodes, and what is left when something is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from scripted_archive import Scripted, begun, notes, seconds_between, write_recordings

from benchmarks.archive_simulation import Machines, Simulation
from mlx_speech import Pipeline, archive, cli, load_audio, writers
from mlx_speech.errors import ClusterError, Notice, OptionError
from mlx_speech.package_data import DEMO
from mlx_speech.transcript import Transcript

TESTS = Path(__file__).parent
SECONDS = 60.0  # that anything here may take at most
PATIENT = archive.Plan(retry_wait=0.05, shard_files=5)
SCRIPTED = "scripted_archive:Scripted"
# a machine that is gone is noticed within a second, not in half a minute
SOON = {"health_check_period_ms": 200, "health_check_timeout_ms": 500, "health_check_failure_threshold": 2}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes of a core each."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        # what processes on the nodes import
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        config = {**SOON, "health_check_initial_delay_ms": 0}
        head = {"num_cpus": 1, "num_gpus": 0, "include_dashboard": False, "_system_config": config}
        made = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(2):
                made.add_node(num_cpus=1, num_gpus=0)
            made.wait_for_nodes()
            ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


def run(sources: Any, out: Path, marks: Path, plan: archive.Plan = PATIENT, **more: Any) -> archive.Report:
    keywords = {"marks": str(marks), **more.pop("keywords", {})}
    more.setdefault("pipeline", SCRIPTED)
    return archive.transcribe(sources, out, keywords=keywords, plan=plan, **more)


def meanwhile(condition: Callable[[], bool], action: Callable[[], object]) -> threading.Thread:
    """Do something as soon as a condition holds."""

    def wait() -> None:
        end = time.monotonic() + SECONDS
        while not condition():
            if time.monotonic() > end:
                return
            time.sleep(0.01)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@contextmanager
def one_more_machine(cluster: Any, **resources: int) -> Iterator[Any]:
    """Its node, which is gone at the end of the block."""
    import ray

    before = sum(entry["Alive"] for entry in ray.nodes())
    node = cluster.add_node(**resources)
    cluster.wait_for_nodes()
    try:
        yield node
    finally:
        cluster.remove_node(node, allow_graceful=False)
        end = time.monotonic() + SECONDS
        while sum(entry["Alive"] for entry in ray.nodes()) > before and time.monotonic() < end:
            time.sleep(0.05)


def begun_twice(marks: Path) -> set[str]:
    counts = Counter(begun(marks))
    return {name for name, count in counts.items() if count > 1}


def deaths(out: Path) -> int:
    """How many files the journal suspects of having ended their process."""
    lines = (out / ".archive" / "journal.jsonl").read_text().splitlines()
    return sum(json.loads(line)["type"] == "death" for line in lines)


def check_whole(files: list[Path], out: Path, marks: Path) -> None:
    """Every file has its result exactly once, that of the plain pipeline."""
    plain = Scripted(str(marks))
    expected = {}
    for file in files:
        expected[file.stem] = plain.transcript(json.loads(file.read_text()), None)
    found = list(archive.results(out))
    assert {result.name: result.transcript for result in found} == expected
    assert len(found) == len(expected)
    rows = [json.loads(line) for shard in sorted(out.glob("corpus-*.jsonl")) for line in shard.open()]
    assert sorted(row["name"] for row in rows) == sorted(expected)
    assert {row["name"]: row["text"] for row in rows} == {name: found.text for name, found in expected.items()}
    assert max(Counter(begun(marks)).values()) <= 2


def said(transcript: Transcript) -> list[Any]:
    """Words with times, scores and speakers. Probabilities of segments are left out: batches of others round their last
    digits in another way."""
    return [(segment.start, segment.end, segment.text, segment.words) for segment in transcript.segments]


def test_the_results_are_those_of_the_pipeline(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_cache: None
) -> None:
    """With the demo's models: whole files, pieces of one, and what cannot be read."""
    monkeypatch.setenv("MLX_SPEECH_CACHE", os.environ["MLX_SPEECH_CACHE"])
    talk, pauses = DEMO / "conversation.flac", DEMO / "pauses.flac"
    manifest = tmp_path / "manifest.jsonl"
    lines = [
        {"audio_filepath": str(pauses), "text": "as it was read", "channel": 3},
        {"audio_filepath": str(talk), "offset": 3.0, "duration": 7.5},
        {"audio_filepath": "none.wav"},
    ]
    manifest.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    models = {"model": "whisper", "align_model": "wav2vec2", "diarize_model": "diarization"}
    flags = [flag for name, folder in models.items() for flag in (f"--{name.replace('_', '-')}", str(DEMO / folder))]
    flags += ["--language", "en", "--diarize", "-f", "srt,jsonl", "-o", str(tmp_path / "out")]
    assert cli.main(["transcribe", str(manifest), "--ray", cluster.address, *flags]) == 1
    with Pipeline.demo() as pipeline:
        options: Any = {"diarize": True, "temperature": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)}
        whole = pipeline(pauses, **options)
        piece = pipeline(load_audio(talk)[48_000:168_000], **options)
    found = {result.entry.offset: result for result in archive.results(tmp_path / "out")}
    assert said(found[None].transcript) == said(whole) and found[None].entry.reference == "as it was read"
    assert said(found[3.0].transcript) == said(piece) and said(piece)
    assert found[3.0].transcript.diarization == piece.diarization
    name = found[None].name
    assert (tmp_path / "out" / f"{name}.srt").read_text() == writers.to_srt(whole, uri="pauses")
    (failure,) = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").open()]
    assert failure["kind"] == "sound" and failure["audio_filepath"] == str(tmp_path / "none.wav")


def test_the_same_command_again_goes_on(cluster: Any, tmp_path: Path) -> None:
    files, out, marks = write_recordings(tmp_path / "in", 12), tmp_path / "out", tmp_path / "marks"
    told: list[archive.Progress] = []
    first = run(tmp_path / "in", out, marks, on_progress=told.append)
    assert (first.files, first.before, first.failed) == (12, 0, {})
    check_whole(files, out, marks)
    seconds = sum(json.loads(file.read_text())["seconds"] for file in files)
    assert (told[-1].files, told[-1].of_files, told[-1].failed) == (12, 12, 0)
    assert told[-1].left == pytest.approx(0.0, abs=1e-6)
    assert told[-1].hours == pytest.approx(seconds / 3600) and told[-1].rate > 0
    assert 1 <= max(progress.processes for progress in told) <= 3
    again = run(tmp_path / "in", out, marks)
    assert (again.files, again.before) == (12, 12) and len(begun(marks)) == 12

    # a new format is made of what is there; a file that has changed, or is new, is heard
    files[3].write_text(json.dumps({"text": "something else", "seconds": 2.0}))
    files += write_recordings(tmp_path / "in" / "more", 1)
    with pytest.warns(Notice, match=r"since they have changed: .*talk03.wav"):
        later = run(tmp_path / "in", out, marks, formats=("jsonl", "srt"))
    assert later.before == 11 and begun(marks)[12:].count("talk03.wav") == 1 and len(begun(marks)) == 14
    results = {result.name: result.transcript for result in archive.results(out)}
    assert results["talk03"].text == "something else" and len(results) == 13
    for name, transcript in results.items():
        assert (out / f"{name}.srt").read_text() == writers.to_srt(transcript, uri=name.rpartition("/")[2])
    rows = [json.loads(line) for shard in out.glob("corpus-*.jsonl") for line in shard.open()]
    assert sorted(row["name"] for row in rows) == sorted(results)
    assert {row["name"]: row["text"] for row in rows}["talk03"] == "something else"

    # what was written of the file before it changed counts no more
    files[5].write_text(json.dumps({"text": "new words", "seconds": 2.0}))
    with pytest.warns(Notice, match="since they have changed"):
        run(tmp_path / "in", out, marks)
    run(tmp_path / "in", out, marks, formats=("jsonl", "srt"))
    results = {result.name: result.transcript for result in archive.results(out)}
    assert results["talk05"].text == "new words"
    assert (out / "talk05.srt").read_text() == writers.to_srt(results["talk05"], uri="talk05")

    # another layout is made of what is there as well, and no file is touched that is the user's own
    (out / "talk00.txt").write_text("mine")
    relaid = run(tmp_path / "in", out, marks, layout={"max_line_width": 10})
    assert relaid.before == 13 and len(begun(marks)) == 15 and (out / "talk00.txt").read_text() == "mine"
    for name, transcript in results.items():
        narrow = writers.to_srt(transcript, uri=name.rpartition("/")[2], max_line_width=10)
        assert (out / f"{name}.srt").read_text() == narrow
    assert narrow != writers.to_srt(transcript, uri=name.rpartition("/")[2])

    # other options are noticed, and taken if that is meant
    with pytest.raises(OptionError, match=r"other options .*model was None and is 'other'"):
        run(tmp_path / "in", out, marks, keywords={"model": "other"})
    plan = archive.Plan(again=True)
    anew = run(tmp_path / "in", out, marks, plan, keywords={"model": "other"})
    assert anew.before == 0 and len(begun(marks)) == 28
    assert {result.transcript.models["whisper"] for result in archive.results(out)} == {"other"}

    # a file that cannot be seen now, as on a disk that is not there, has not changed
    files[1].unlink()
    later = run([str(file) for file in files], out, marks, keywords={"model": "other"})
    assert (later.before, later.failed) == (13, {}) and len(begun(marks)) == 28


def test_failures_are_retried_by_rule(cluster: Any, tmp_path: Path) -> None:
    files, out, marks = write_recordings(tmp_path / "in", 6), tmp_path / "out", tmp_path / "marks"
    scripts = (
        {"act": "broken"},
        {"act": "memory", "times": 1},
        {"act": "network", "times": 2},
        {"act": "network", "times": 99},
        {"act": "broken"},
    )
    for file, script in zip(files, scripts, strict=False):
        file.write_text(json.dumps({"text": "heard", **script}))
    report = run(files, out, marks)
    kinds = {name: failed.kind for name, failed in report.failed.items()}
    assert kinds == {"talk00": "sound", "talk03": "reading", "talk04": "sound"}
    assert "is no recording" in report.failed["talk00"].reason
    times = {name: begun(marks).count(name) for name in {file.name for file in files}}
    assert times == {
        "talk00.wav": 1,
        "talk01.wav": 2,
        "talk02.wav": 3,
        "talk03.wav": 3,
        "talk04.wav": 1,
        "talk05.wav": 1,
    }
    listed = [json.loads(line) for line in (out / "failures.jsonl").open()]
    assert {line["name"] for line in listed} == set(report.failed)

    # the next run asks the server once more; what is broken it leaves alone until it changes, or it is told to try
    files[4].write_text(json.dumps({"text": "heard"}))
    report = run(files, out, marks)
    assert set(report.failed) == {"talk00", "talk03"} and begun(marks).count("talk00.wav") == 1
    assert begun(marks).count("talk03.wav") == 6 and begun(marks).count("talk04.wav") == 2
    report = run([files[0]], out, marks, archive.Plan(retry_failed=True))
    assert set(report.failed) == {"talk00"} and begun(marks).count("talk00.wav") == 2
    assert not run([files[1]], out, marks).failed and not (out / "failures.jsonl").exists()


def test_warnings_of_recordings_are_told(cluster: Any, tmp_path: Path) -> None:
    """Once for each, wherever it was heard."""
    files = write_recordings(tmp_path / "in", 3) + write_recordings(tmp_path / "in" / "odd", 2, act="warn")
    with pytest.warns(UserWarning) as told:
        run(files, tmp_path / "out", tmp_path / "marks")
    assert sorted(str(one.message) for one in told) == [f"{file}: breaks off at 1 s" for file in files[3:]]


def test_a_file_that_ends_its_process_twice_is_set_aside(cluster: Any, tmp_path: Path) -> None:
    files, out, marks = write_recordings(tmp_path / "in", 9), tmp_path / "out", tmp_path / "marks"
    files[4].write_text(json.dumps({"text": "never heard", "act": "kill"}))
    report = run(tmp_path / "in", out, marks)
    assert {name: failed.kind for name, failed in report.failed.items()} == {"talk04": "died"}
    assert begun(marks).count("talk04.wav") == 2
    assert {result.name for result in archive.results(out)} == {file.stem for file in files} - {"talk04"}
    before = len(begun(marks))
    assert set(run(tmp_path / "in", out, marks).failed) == {"talk04"} and len(begun(marks)) == before


def test_a_process_that_is_killed(cluster: Any, tmp_path: Path) -> None:
    files, out, marks = write_recordings(tmp_path / "in", 16, sleep=0.05), tmp_path / "out", tmp_path / "marks"
    files[9].write_text(json.dumps({"text": "heard at the second time", "act": "kill", "times": 1}))
    report = run(tmp_path / "in", out, marks)
    assert not report.failed and deaths(out) > 0
    check_whole(files, out, marks)
    killed = next(process for what, name, process in notes(marks) if name == files[9].name)
    of_the_killed = {name for what, name, process in notes(marks) if what == "began" and process == killed}
    assert files[9].name in begun_twice(marks) and begun_twice(marks) <= of_the_killed


def test_a_process_whose_successor_is_never_ready(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was under way is heard elsewhere, and the run comes to its end."""
    monkeypatch.setattr("mlx_speech.archive.fleet.START_SECONDS", 5.0)
    files, out, marks = write_recordings(tmp_path / "in", 12, sleep=0.05), tmp_path / "out", tmp_path / "marks"
    files[6].write_text(json.dumps({"text": "heard at the second time", "act": "stick"}))
    with pytest.warns(Notice, match="a process is not ready after 5 s: 1 of the CPU's cores may not be free"):
        report = run(tmp_path / "in", out, marks, keywords={"may_stick": True})
    assert not report.failed and deaths(out) > 0
    check_whole(files, out, marks)


def test_a_machine_that_is_gone(cluster: Any, tmp_path: Path) -> None:
    """In the midst of a file, when others are done."""
    with one_more_machine(cluster, num_cpus=1, num_gpus=0) as node:
        (raylet,) = [process.process.pid for process in node.all_processes["raylet"]]
        script = {"sleep": 0.1, "act": "gone", "machine": raylet, "after": 4}
        files, out, marks = write_recordings(tmp_path / "in", 24, **script), tmp_path / "out", tmp_path / "marks"
        report = run(tmp_path / "in", out, marks)
        assert not report.failed and begun_twice(marks) and deaths(out) == 0
        check_whole(files, out, marks)


def places_of(out: Path) -> Counter[str]:
    """Where processes were that have heard something: how many at each kind of place."""
    places = {result.transcript.models["whisper"] for result in archive.results(out)}
    return Counter(place.rpartition(", process")[0] for place in places)


PLACED = "scripted_archive:Placed"


def test_a_process_for_each_accelerator(cluster: Any, tmp_path: Path) -> None:
    files, plan = write_recordings(tmp_path / "in", 30, sleep=0.05), archive.Plan(task_files=1)
    with one_more_machine(cluster, num_cpus=4, num_gpus=2):
        run(files, tmp_path / "out", tmp_path / "marks", plan, pipeline=PLACED, keywords={"together": 5})
    assert places_of(tmp_path / "out") == {"GPU 0, threads 2": 1, "GPU 1, threads 2": 1, "GPU none, threads 1": 3}


@pytest.mark.parametrize("cores, threads", [(None, 2), (1, 1)])
def test_several_processes_on_a_machine(cluster: Any, tmp_path: Path, cores: int | None, threads: int) -> None:
    """Of the four cores of one, and of the single core of each of the others."""
    files = write_recordings(tmp_path / "in", 30, sleep=0.05)
    plan = archive.Plan(task_files=1, processes=2, cores=cores)
    with one_more_machine(cluster, num_cpus=4, num_gpus=0):
        run(files, tmp_path / "out", tmp_path / "marks", plan, pipeline=PLACED, keywords={"together": 5})
    places = Counter({"GPU none, threads 1": 3})
    places[f"GPU none, threads {threads}"] += 2
    assert places_of(tmp_path / "out") == places


ALONE = """
import ray
init = ray.init
def no_cluster(address, **keywords):
    if address == "auto":
        raise ConnectionError("no cluster is running")
    return init(address=address, **keywords)
ray.init = no_cluster
"""


@pytest.mark.parametrize("is_alone", [False, True], ids=["the cluster that runs here", "this machine alone"])
def test_an_address_that_is_found(cluster: Any, tmp_path: Path, is_alone: bool) -> None:
    files, out, marks = write_recordings(tmp_path / "in", 6), tmp_path / "out", tmp_path / "marks"
    script = (ALONE if is_alone else "") + DRIVER
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    arguments = ["auto", str(tmp_path / "in"), str(out), str(marks)]
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True, timeout=2 * SECONDS)
    assert done.returncode == 0, done.stderr
    assert ("no Ray cluster is running here: this machine is alone" in done.stderr) is is_alone
    check_whole(files, out, marks)


DRIVER = """
import sys
from mlx_speech import archive
address, folder, out, marks = sys.argv[1:]
plan = archive.Plan(address=address, shard_files=5)
archive.transcribe(folder, out, pipeline="scripted_archive:Scripted", keywords={"marks": marks}, plan=plan)
"""


def test_a_driver_that_is_killed(cluster: Any, tmp_path: Path) -> None:
    files, out, marks = write_recordings(tmp_path / "in", 20, sleep=0.1), tmp_path / "out", tmp_path / "marks"
    arguments = [cluster.address, str(tmp_path / "in"), str(out), str(marks)]
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, *arguments], cwd=TESTS, stderr=subprocess.DEVNULL)
    thread = meanwhile(lambda: len(notes(marks)) >= 14 or driver.poll() is not None, driver.kill)
    driver.wait(SECONDS)
    thread.join()
    assert driver.returncode == -signal.SIGKILL
    done = [result.name for result in archive.results(out)]
    assert 0 < len(done) < 20
    report = run(tmp_path / "in", out, marks)
    assert report.before == len(done) and not report.failed
    check_whole(files, out, marks)
    assert not begun_twice(marks) & {f"{name}.wav" for name in done}
    assert not list((out / ".archive" / "unfinished").iterdir())


def test_recordings_in_a_bucket(cluster: Any, tmp_path: Path) -> None:
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        storage = {"endpoint_url": f"http://{host}:{port}", "key": "testing", "secret": "testing"}
        bucket = s3fs.S3FileSystem(**storage)
        bucket.mkdir("talks")
        files = write_recordings(tmp_path / "in", 4, name="talk")
        for file, folder in zip(files, ("a", "a", "b", "b/c"), strict=True):
            bucket.put_file(str(file), f"talks/{folder}/{file.name}")
        bucket.pipe_file("talks/list.csv", b"path,text\na/talk00.wav,first\nb/talk02.wav,\nb/none.wav,\n")
        out, marks = tmp_path / "out", tmp_path / "marks"
        assert not run("s3://talks/**/*.wav", out, marks, storage=storage).failed
        results = {result.name: result for result in archive.results(out)}
        assert set(results) == {"a/talk00", "a/talk01", "b/talk02", "b/c/talk03"}
        assert [results[name].transcript.text for name in sorted(results)] == [
            f"this is talk {k}" for k in (0, 1, 3, 2)
        ]

        # the list names one that has changed meanwhile, one that is done, and one that is not there
        bucket.pipe_file("talks/a/talk00.wav", json.dumps({"text": "anew", "name": "talk"}).encode())
        with pytest.warns(Notice, match=r"have changed: s3://talks/a/talk00.wav"):
            report = run("s3://talks/list.csv", out, marks, storage=storage)
        assert report.before == 1 and [failed.kind for failed in report.failed.values()] == ["sound"]
        assert {result.name: result.transcript.text for result in archive.results(out)}["a/talk00"] == "anew"
        assert len(begun(marks)) == 5
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()


def test_recordings_of_a_web_server(cluster: Any, tmp_path: Path) -> None:
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    write_recordings(tmp_path / "in", 3)
    lines = [{"audio_filepath": f"talk{k:02d}.wav", "text": f"was read {k}"} for k in range(3)]
    lines.append({"audio_filepath": "none.wav"})
    (tmp_path / "in" / "list.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "in"))

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        report = run(f"{address}/list.jsonl", tmp_path / "out", tmp_path / "marks")
        server.shutdown()
    assert [failed.kind for failed in report.failed.values()] == ["sound"]
    results = {result.entry.source: result for result in archive.results(tmp_path / "out")}
    assert set(results) == {f"{address}/talk{k:02d}.wav" for k in range(3)}
    for k in range(3):
        result = results[f"{address}/talk{k:02d}.wav"]
        assert (result.transcript.text, result.entry.reference) == (f"this is talk {k}", f"was read {k}")


@pytest.mark.parametrize("lanes", [1, 2], ids=["tasks share a process", "tasks side by side"])
def test_the_simulation_predicts_the_cluster(cluster: Any, tmp_path: Path, lanes: int) -> None:
    """Processes that sleep: the order nearly, and the time within what a busy machine adds."""
    from scipy.stats import spearmanr

    chance = random.Random(5)
    speed = 40.0  # seconds of sound that are slept through in one
    files, out, marks = write_recordings(tmp_path / "in", 40), tmp_path / "out", tmp_path / "marks"
    lengths = [chance.choice([2.0, 5.0, 10.0, 20.0]) * chance.uniform(0.8, 1.2) for _ in files]
    manifest = []
    for file, length in zip(files, lengths, strict=True):
        file.write_text(json.dumps({"text": "slept through", "seconds": length, "sleep": length / speed}))
        manifest.append({"audio_filepath": str(file), "duration": length})
    plan = archive.Plan(task_seconds=40.0, task_files=4)
    assert not run(manifest, out, marks, plan, keywords={"one_by_one": lanes == 1, "together": 3}).failed
    machines = Machines(3, speed, lanes=lanes)
    predicted = Simulation(lengths, machines, task_seconds=40.0, task_files=4).run()
    places = {place: position for position, place in enumerate(predicted.begun)}
    expected = [places[int(Path(name).stem.removeprefix("talk"))] for name in begun(marks)]
    assert spearmanr(expected, range(len(expected))).statistic > 0.85
    assert predicted.seconds >= sum(lengths) / speed / (3 * lanes)
    assert 0.9 * predicted.seconds < seconds_between(marks) < 1.25 * predicted.seconds + 1.0


def test_mistakes_are_found_before_anything_runs(cluster: Any, tmp_path: Path) -> None:
    files, out, marks = write_recordings(tmp_path / "in", 2), tmp_path / "out", tmp_path / "marks"
    with pytest.raises(OptionError, match="no option 'beem_size'"):
        run(files, out, marks, beem_size=5)
    with pytest.raises(OptionError, match="html needs the sound"):
        run(files, out, marks, formats=("html",))
    with pytest.raises(OptionError, match="processes is 0"):
        archive.Plan(processes=0)
    with (
        pytest.warns(Notice, match="a machine cannot transcribe: prefix is refused"),
        pytest.raises(ClusterError, match=r"no machine is left .*prefix is refused"),
    ):
        run(files, out, marks, prefix="refused")
    assert not begun(marks)
