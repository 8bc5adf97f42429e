"""The command line: flags in both spellings, files that are written, exit codes, one line for every mistake."""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiny
from conftest import real
from test_writers import parse_srt, parse_vtt

from mlx_speech import cli, names, writers
from mlx_speech.cli import archive, outputs, parser, screen, transcribe
from mlx_speech.fields import options_of
from mlx_speech.options import DETECTORS, PUNCTUATIONS, flat_options
from mlx_speech.package_data import DEMO
from mlx_speech.pipeline import Pipeline
from mlx_speech.writers.cues import Layout

COMMAND = (sys.executable, "-m", "mlx_speech", "transcribe", "--no-align", "--language", "en", "--temperature", "0")
PAUSES = DEMO / "pauses.flac"
FORMATS = ("txt", "srt", "vtt", "tsv", "json", "rttm", "ctm", "aud", "html")


def run(*arguments: str) -> int:
    """The command with tiny models; flags as they are given."""
    place = tiny.folder()
    models = [
        "--model",
        place / "whisper",
        "--align-model",
        place / "wav2vec2",
        "--diarize-model",
        place / "diarization",
    ]
    return cli.main(["transcribe", *map(str, arguments), *map(str, models)])


@pytest.fixture
def meeting(tmp_path: Path) -> Path:
    path = tmp_path / "meeting.wav"
    shutil.copy(real("data/diar/ami_debug/dev00.wav"), path)
    return path


def test_every_format_is_written_and_read_back(meeting: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    flags = (
        "--diarize",
        "--language",
        "en",
        "--temperature",
        "0",
        "-f",
        ",".join(FORMATS),
        "--speaker-embeddings",
        "-v",
    )
    assert run(str(meeting), "-o", str(out), *flags) == 0
    texts = {kind: (out / f"meeting.{kind}").read_text(encoding="utf-8") for kind in FORMATS}
    assert {path.name for path in out.iterdir()} == {f"meeting.{kind}" for kind in FORMATS}
    found = json.loads(texts["json"])
    assert set(found) >= {"segments", "word_segments", "language", "duration", "turns", "models", "seconds"}
    words = [word for segment in found["segments"] for word in segment["words"]]
    assert words == found["word_segments"] and {"word", "start", "end", "score"} <= set(words[0])
    assert set(found["speaker_embeddings"]) == {turn["speaker"] for turn in found["turns"]}
    assert len(next(iter(found["speaker_embeddings"].values()))) == 256
    for cues in (parse_srt(texts["srt"]), parse_vtt(texts["vtt"])):
        shown = re.sub(r"\[SPEAKER_\d+\]: ", "", " ".join(" ".join(cue.lines) for cue in cues))
        assert shown.startswith("Hello there, Dr. Smith.")
    assert len(texts["txt"].splitlines()) == len(found["segments"]) == len(texts["aud"].splitlines())
    assert texts["tsv"].splitlines()[0] == "start\tend\ttext" and len(texts["ctm"].splitlines()) == len(words)
    assert len(texts["rttm"].splitlines()) == len(found["turns"])
    said = capsys.readouterr()
    assert "Dr. Smith." in said.out and "transcribe" in said.err and "× real time" in said.err


def test_all_formats_leave_rttm_out_without_speakers(meeting: Path, tmp_path: Path) -> None:
    assert run(str(meeting), "-o", str(tmp_path / "out"), "--language", "en", "--temperature", "0", "--quiet") == 0
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".txt", ".srt", ".vtt", ".tsv", ".json"}


def test_many_files_a_broken_one_and_the_same_stem(
    meeting: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    broken, twin = tmp_path / "broken.mp3", tmp_path / "other" / "meeting.flac"
    broken.write_bytes(b"not a recording")
    twin.parent.mkdir()
    shutil.copy(real("data/audio/en/jfk.flac"), twin)
    out = tmp_path / "out"
    flags = ("-o", str(out), "-f", "txt", "--language", "en", "--temperature", "0")
    assert run(str(meeting), str(broken), str(twin), *flags) == 1
    assert {path.name for path in out.iterdir()} == {"meeting-wav.txt", "meeting-flac.txt"}
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "broken.mp3" in line and line.startswith("mlx_speech: ")]
    # again: only the broken one is tried
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run(str(meeting), str(broken), str(twin), *flags, "--skip-existing") == 1
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_what_cannot_be_written_is_found_before_anything_is_transcribed(
    meeting: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    (out / "meeting.txt").mkdir(parents=True)  # in the way
    flags = ("-f", "txt", "--language", "en", "--temperature", "0", "--no-align")
    assert run(str(real("data/audio/en/jfk.flac")), str(meeting), "-o", str(out), *flags) == 2
    said = capsys.readouterr()
    assert "meeting.txt: cannot be written (it is a folder)" in said.err and not said.out
    assert [path.name for path in out.iterdir()] == ["meeting.txt"]
    recording = meeting.rename(tmp_path / "meeting.txt")
    assert run(str(recording), "-o", str(tmp_path), *flags) == 2
    assert "meeting.txt: is the recording itself: choose another --output-dir" in capsys.readouterr().err
    limit = os.pathconf("/", "PC_PATH_MAX") - 6  # of folders that can be made, and whose files' paths are too long
    deep = str(tmp_path)
    while len(deep) < limit:
        deep += "/" + "d" * min(200, limit - len(deep) - 1)
    assert run(str(recording), "-o", deep, *flags) == 2
    assert "meeting.txt: cannot be written (File name too long)" in capsys.readouterr().err


def test_what_turns_out_not_to_be_writable_is_reported_and_the_rest_is_kept(
    meeting: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    check = outputs.check_paths

    def then_in_the_way(files: Any) -> None:
        check(files)
        (out / "meeting.txt").mkdir()

    monkeypatch.setattr(outputs, "check_paths", then_in_the_way)
    flags = ("-o", str(out), "-f", "txt", "--language", "en", "--temperature", "0", "--no-align")
    assert run(str(meeting), str(meeting), str(real("data/audio/en/jfk.flac")), *flags) == 1
    assert (out / "jfk.txt").is_file() and "meeting.txt: cannot be written" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == ["jfk.txt", "meeting.txt"]


def test_hallucinations_are_skipped_in_order(meeting: Path, tmp_path: Path) -> None:
    flags = ("--hallucination-silence-threshold", "2", "--language", "en", "--temperature", "0", "-f", "json")
    for more in (["--sequential"], [], ["--no-align"]):
        assert run(str(meeting), "-o", str(tmp_path / "out"), *flags, *more) == 0
        found = json.loads((tmp_path / "out" / "meeting.json").read_text(encoding="utf-8"))
        assert bool(found["word_segments"]) == bool(found["segments"] and "--no-align" not in more)


# a file name of 255 bytes: with the ending of results it is longer, and letters may have several bytes
LONG = ["x" * 251, "ü" * 125 + "y", "講演" * 41 + "abcde", "e\u0301" * 83 + "zz"]


@pytest.mark.parametrize("stem", LONG)
def test_results_of_a_name_that_is_too_long(
    stem: str, meeting: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    recording = meeting.rename(tmp_path / f"{stem}.wav")
    out = tmp_path / "out"
    flags = ("-o", str(out), "--language", "en", "--temperature", "0", "--no-align", "--quiet")
    assert run(str(recording), *flags) == 0
    said = capsys.readouterr().err
    (name,) = {path.stem for path in out.iterdir()}
    assert {path.suffix for path in out.iterdir()} == {".txt", ".srt", ".vtt", ".tsv", ".json"}
    assert len(f"{name}.json".encode()) <= 255 and name.startswith(stem[:60]) and f"are called {name}\n" in said
    assert run(str(recording), *flags, "--skip-existing") == 0 and len(list(out.iterdir())) == 5  # the same name again


def test_long_names_that_begin_alike_stay_apart(meeting: Path, tmp_path: Path) -> None:
    recordings = [str(shutil.copy(meeting, tmp_path / f"{'x' * 250}{end}.wav")) for end in "ab"]
    out = tmp_path / "out"
    flags = ("-o", str(out), "-f", "json", "--language", "en", "--temperature", "0", "--no-align", "--quiet")
    assert run(*recordings, *flags) == 0
    assert len(list(out.iterdir())) == 2
    assert run(recordings[1], *flags) == 0 and len(list(out.iterdir())) == 2  # alone it has the name that it had


def test_with_nothing_left_to_do_no_model_is_loaded(
    meeting: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    flags = ("-o", str(out), "-f", "txt,srt", "--language", "en", "--temperature", "0", "--no-align")
    assert run(str(meeting), *flags) == 0
    capsys.readouterr()

    def load(*_: Any) -> None:
        raise AssertionError("a model was loaded")

    with monkeypatch.context() as patch:
        patch.setattr("mlx_speech.loading.Models.whisper", load)
        assert run(str(meeting), *flags, "--skip-existing") == 0
        said = capsys.readouterr()
        last = said.err.splitlines()[-1]
        assert not said.out and last == f"mlx_speech: nothing to do: what was asked for is in {out} already"
        with pytest.raises(AssertionError, match="a model was loaded"):
            run(str(meeting), *flags, "-f", "txt,vtt", "--skip-existing")
    assert run(str(meeting), *flags, "--skip-existing", "--beam-size", "0") == 2  # a mistake is one still


def test_a_wrong_option_leaves_no_folder(meeting: Path, tmp_path: Path) -> None:
    for flags in (("--beam-size", "0"), ("-f", "docx"), ("--language", "klingon"), ("--max-duration", "0")):
        assert run(str(meeting), "-o", str(tmp_path / "out" / "new"), *flags) == 2
        assert not (tmp_path / "out").exists()


def test_names_after_two_dashes(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are files, whatever they look like."""
    monkeypatch.chdir(tmp_path)
    names = ["--batch_size", "--fp16=True", "my_file.wav", "True"]
    for name in names:
        shutil.copy(PAUSES, name)
    assert cli.main(["vad", "--format", "json", "--", *names]) == 0
    assert list(json.loads(capsys.readouterr().out)) == names
    flags = ["-o", "out", "-f", "txt", "--language", "en", "--temperature", "0", "--no_align"]
    model = str(tiny.folder() / "whisper")
    assert cli.main(["transcribe", "--model", model, *flags, "--", *names]) == 0
    stems = {"--batch_size", "--fp16=True", "my_file", "True"}
    assert {path.stem for path in Path("out").iterdir()} == stems


def test_standard_input_has_a_name(tmp_path: Path) -> None:
    place = tiny.folder()
    with real("data/audio/en/jfk.flac").open("rb") as file:
        done = subprocess.run(
            [*COMMAND, "-", "--model", place / "whisper", "-o", tmp_path, "-f", "srt"],
            stdin=file,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert parse_srt((tmp_path / "stdin.srt").read_text(encoding="utf-8"))
    assert "█" not in done.stderr and "%" not in done.stderr  # no bars where nobody watches


def test_interrupted_leaves_whole_files(meeting: Path, tmp_path: Path) -> None:
    place = tiny.folder()
    files = []
    for k in range(40):
        files.append(tmp_path / f"{k}.wav")
        shutil.copy(meeting, files[-1])
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*COMMAND, *files, "--model", place / "whisper", "-o", out, "-f", "json,txt", "--batch-size", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 100
    while not list(out.glob("*.json")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said.splitlines()[-1].startswith("mlx_speech: interrupted"), said
    written = list(out.iterdir())
    assert written and len(written) < 80 and {path.suffix for path in written} <= {".json", ".txt"}
    for path in out.glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))


def test_speakers_as_rttm(meeting: Path, capsys: pytest.CaptureFixture) -> None:
    flags = ["--diarize-model", str(tiny.folder() / "diarization")]
    assert cli.main(["diarize", str(meeting), *flags, "--num-speakers", "2"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert len(lines) > 2 and all(line[:3] == ["SPEAKER", "meeting", "1"] and len(line) == 10 for line in lines)
    assert {line[7] for line in lines} == {"SPEAKER_00", "SPEAKER_01"}
    assert cli.main(["diarize", str(meeting), "none.wav", *flags, "--exclusive"]) == 1
    said = capsys.readouterr()
    turns = sorted((float(line.split()[3]), float(line.split()[4])) for line in said.out.splitlines())
    assert all(a + d <= b + 2e-3 for (a, d), (b, _) in pairwise(turns))
    assert "none.wav: there is no such file" in said.err


# --- vad -------------------------------------------------------------------------------------------------------------


def test_one_bad_recording_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_text("no recording")
    for kind in ("text", "rttm", "json"):
        assert cli.main(["vad", str(bad), str(PAUSES), "missing.wav", "--format", kind]) == 1
        said = capsys.readouterr()
        first, second = said.err.splitlines()
        assert first.startswith(f"mlx_speech: {bad}: ") and second.startswith("mlx_speech: missing.wav: ")
        assert "pauses" in said.out and "bad" not in said.out
        if kind == "json":
            assert list(json.loads(said.out)) == [str(PAUSES)]
    assert cli.main(["vad", str(bad), "missing.wav", "--format", "json"]) == 1
    assert json.loads(capsys.readouterr().out) == {}


def test_recordings_of_one_name_have_names_of_their_own_in_rttm(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(PAUSES, tmp_path / folder / "x.flac")
    shutil.copy(PAUSES, tmp_path / "a" / "x.wav")
    recordings = [str(tmp_path / name) for name in ("a/x.flac", "b/x.flac", "a/x.wav", "a/x.flac")]
    for command in (["vad", "--format", "rttm"], ["diarize", "--diarize-model", str(DEMO / "diarization")]):
        assert cli.main([*command, *recordings]) == 0
        names = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
        assert list(dict.fromkeys(names)) == ["x-flac", "x-flac-2", "x-wav"] == writers.unique_stems(recordings[:3])
        counts = {names.count(name) for name in names}
        assert len(counts) == 1  # the one that is named twice is heard once


# --- flags -----------------------------------------------------------------------------------------------------------


def flags(command: str) -> dict[str, Any]:
    """dest → action of a command's flags."""
    group = next(action for action in cli.build_parser()._actions if action.choices)
    return {action.dest: action for action in group.choices[command]._actions}  # type: ignore[index]


def test_every_flag_is_a_keyword() -> None:
    import inspect

    fields = {*flat_options(), "vad_options"}
    own = set(inspect.signature(Pipeline.__init__).parameters) - {"self"}
    detectors = {flag for method in transcribe.DETECTOR_FLAGS.values() for flag in method}
    of_the_terminal = {"help", "audio", "output_dir", "output_format", "skip_existing", "quiet", "verbose", "fp16"}
    of_the_terminal |= {
        "embed_audio",
        "print_progress",
        "device",
        "model_dir",
        "model_cache_only",
        "hf_token",
        "compute_type",
        "ray",
        *archive.FLAGS,
    }
    of_the_terminal |= {"temperature_increment_on_fallback", *transcribe.MEANINGLESS, *PUNCTUATIONS}
    given = set(flags("transcribe"))
    assert given - of_the_terminal - detectors - set(transcribe.LAYOUT) - own <= fields
    # and every keyword a flag
    assert fields - given == {"vad_options", "suppress_blank"} and own <= given
    for method, mapping in transcribe.DETECTOR_FLAGS.items():
        assert set(mapping.values()) == set(options_of(DETECTORS[method]))


def test_flags_are_those_of_the_fields() -> None:
    found = flags("transcribe")
    for name, option in {**flat_options(), **options_of(Layout)}.items():
        if name in ("temperature", "suppress_blank", "word_timestamps"):
            continue
        action = found[name]
        assert action.help == parser.help_of(option)
        assert isinstance(action, argparse.BooleanOptionalAction) == (bool in option.kinds)
        if option.choices and name != "audio_track":
            assert tuple(action.choices) == option.choices
    assert found["beam_size"].help == "beams at temperature 0 (1 to 100; default: greedy)"
    assert found["patience"].help.startswith("of beam search, with --beam-size (0 to 100")
    assert found["vad_offset"].help.endswith("(default: silero, 0.15 lower, at least 0.01; pyannote, 0.363)")
    assert found["min_duration_on"].help.startswith(
        "pyannote: shorter speech is dropped, in seconds (from 0; default 0"
    )


@pytest.mark.parametrize("output", ["a pipe that is closed", "/dev/full"])
def test_output_that_nobody_takes(output: str, tmp_path: Path) -> None:
    """Also where Python writes it only when the process ends."""
    (tmp_path / "talk.json").write_text(json.dumps({"segments": [{"start": 0, "end": 1, "text": "so"}]}))
    command = [sys.executable, "-m", "mlx_speech", "write", "talk.json", "-f", "txt", "-o", "out"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    if output == "/dev/full":
        writing = os.open(output, os.O_WRONLY)
    else:
        reading, writing = os.pipe()
        os.close(reading)
    try:
        how: dict[str, Any] = {"cwd": tmp_path, "env": environment, "text": True, "check": False}
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, **how)
    finally:
        os.close(writing)
    assert (tmp_path / "out" / "talk.txt").read_text() == "so\n"
    if output == "/dev/full":
        said = "mlx_speech: cannot write to standard output (No space left on device): make room there\n"
        assert (done.returncode, done.stderr) == (2, said)
    else:
        assert (done.returncode, done.stderr) == (141, "")


def every_parser(parser: Any) -> Iterator[Any]:
    """Of a command, and of all commands in it."""
    yield parser
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for inner in action.choices.values():
                yield from every_parser(inner)


def test_help_says_percent_once() -> None:
    """argparse formats the help of flags, but a description only where it has the program's name."""
    texts = [" ".join(parser.format_help().split()) for parser in every_parser(cli.build_parser())]
    assert len(texts) > 10
    assert any("95 % interval" in text for text in texts)
    assert not [text for text in texts if "%%" in text]


def test_help_is_quick() -> None:
    """It loads nothing that is slow to load; the time is the process's own, whatever else the machine does."""
    script = "import sys; from mlx_speech.cli import main\ntry: main(['transcribe', '--help'])\nfinally: "
    script += "print(sorted({'mlx', 'numpy', 'scipy', 'av', 'tqdm', 'huggingface_hub'} & set(sys.modules)))"
    seconds = []
    for _ in range(3):
        before = os.times()
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        after = os.times()
        seconds.append(after.children_user - before.children_user)
        assert done.stdout.splitlines()[-1] == "[]"
    assert statistics.median(seconds) < 0.4


def test_whisperx_command_lines_are_understood(meeting: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    line = (
        "--batch_size 4 --compute_type default --vad_method silero --vad_onset 0.5 --vad_offset 0.363 --chunk_size 30"
    )
    line += " --highlight_words True --max_line_width 30 --max_line_count 2 --condition_on_previous_text False --task"
    line += " transcribe --language en --interpolate_method nearest --segment_resolution sentence --suppress_tokens -1"
    line += " --temperature 0 --best_of 5 --fp16 True --temperature_increment_on_fallback None"
    line += " --compression_ratio_threshold 2.4 --logprob_threshold -1.0 --no_speech_threshold 0.6 --threads 0"
    line += " --print_progress False --verbose False --device cpu --device_index 0 --return_char_alignments"
    line += " --min_speakers 1 --max_speakers 2 --diarize --output_format all --model_cache_only False"
    assert run(str(meeting), "--output_dir", str(out), *line.split()) == 0
    assert {path.suffix for path in out.iterdir()} == {".txt", ".srt", ".vtt", ".tsv", ".json", ".rttm"}
    assert "<u>" in (out / "meeting.srt").read_text(encoding="utf-8")
    said = capsys.readouterr().err
    for flag in ("--device-index", "--threads"):
        assert f"mlx_speech: {flag} has no meaning here" in said


def test_every_flag_of_whisperx_is_known() -> None:
    found = importlib.metadata.distribution("whisperx").locate_file("whisperx/__main__.py")
    theirs = set(re.findall(r'add_argument\("(--[a-z_-]+)"', Path(str(found)).read_text(encoding="utf-8")))
    assert len(theirs) > 40
    ours = {name for action in flags("transcribe").values() for name in action.option_strings}
    assert {parser.normal([flag])[0] for flag in theirs} - ours == {"--version", "--python-version"}


@pytest.mark.parametrize(
    "given, expected",
    [
        (["--batch_size=8"], ["--batch-size=8"]),
        (["--highlight_words", "True"], ["--highlight-words"]),
        (["--fp16", "False", "x_y.wav"], ["--no-fp16", "x_y.wav"]),
        (["--fp16=True", "--suppress_tokens=-1,5"], ["--fp16", "--suppress-tokens=-1,5"]),
        (["--no_align", "False"], []),
        (["--initial_prompt", "True"], ["--initial-prompt", "True"]),
        (["--hotwords", "a_b"], ["--hotwords", "a_b"]),
        (["--no_align", "--", "--batch_size", "--fp16=True"], ["--no-align", "--", "--batch_size", "--fp16=True"]),
        (["--fp16", "--", "True"], ["--fp16", "--", "True"]),
    ],
)
def test_spellings(given: list[str], expected: list[str]) -> None:
    assert parser.normal(given) == expected


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--language", "klingon"], "klingon"),
        (["--num-speakers", "2", "--min-speakers", "3"], "--num-speakers is 2, but --min-speakers is 3"),
        (["--min-speakers", "3", "--max-speakers", "2"], "--min-speakers is 3, but --max-speakers is 2"),
        (["--vad-method", "pyannote", "--speech-pad-ms", "3"], "--speech-pad-ms conflicts with --vad-method pyannote"),
        (["-f", "docx"], "'docx' is not one of"),
        (["-f", "rttm"], "add --diarize"),
        (["--batch-size", "x"], "--batch-size x"),
        (["--compute-type", "int8", "--dtype", "float16"], "--compute-type conflicts with --dtype"),
        (["--no-align", "--return-char-alignments"], "--return-char-alignments and --no-align conflict"),
        (["--no-align", "--highlight-words"], "--highlight-words and --no-align conflict"),
        (["--max-line-count", "2"], "--max-line-count needs --max-line-width"),
        (["--max-cue-duration", "0"], "--max-cue-duration is 0"),
        (["--clip-timestamps", "a", "--sequential"], "--clip-timestamps is 'a'"),
        (["--temperature-increment-on-fallback", "0"], "--temperature-increment-on-fallback 0"),
        (["--model", "smal"], "did you mean small"),
        (["--device", "tpu"], "--device tpu"),
        (["--frobnicate"], "--frobnicate"),
        (["--beam-size", "two"], "--beam-size"),
        (["-o", "/dev/null/x"], "--output-dir"),
        (["-o", "/proc"], "--output-dir"),
        (["--vad-onset", "2"], "--vad-onset is 2.0"),
        (["--chunk-size", "None"], "--chunk-size"),
        (["--hallucination-silence-threshold", "-2"], "--hallucination-silence-threshold is -2.0"),
        (["--sequential", "--clip-timestamps", "5,2"], "--clip-timestamps is (5.0, 2.0)"),
        (["--sequential", "--carry-initial-prompt"], "--carry-initial-prompt needs --initial-prompt"),
        (["--align-model", "/nonexistent/x", "--language", "en"], "/nonexistent/x"),
        (["--align-model", "/nonexistent/x", "--low-memory"], "/nonexistent/x"),
        (["--language", "zh-CN"], "did you mean zh?"),
        (["--language", "pt_BR"], "did you mean pt?"),
        (["--temperature", "nan"], "--temperature is nan"),
        (["--memory-limit", "-1"], "--memory-limit is -1.0"),
        (["--max-duration", "nan"], "--max-duration is nan"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--multilingual", "--language", "en"], "--multilingual and --language conflict"),
        (["--no-vad", "--vad-onset", "0.4"], "--no-vad and --vad-onset conflict"),
        (["--sequential", "--speech-pad-ms", "9"], "--sequential and --speech-pad-ms conflict"),
        (["--clip-timestamps", "0,2"], "--clip-timestamps needs --sequential"),
        (["--word-timestamps", "False", "--highlight-words"], "--highlight-words and --no-align conflict"),
        (["--task", "translate", "--highlight-words"], "--highlight-words and --task translate conflict"),
        (["--prefix", "and so " * 400], "--prefix is 800 tokens long"),
        (["--suppress-tokens", "999999"], "--suppress-tokens has 999999"),
        (["-o", "~no-such-user/x"], "~no-such-user/x: there is no such home folder"),
        (["--model-dir", "~no-such-user/x"], "~no-such-user/x: there is no such home folder"),
        (["--task", "translate", "--return-char-alignments"], "translate and --return-char-alignments conflict"),
    ],
)
def test_mistakes_take_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    recording = str(real("data/audio/en/jfk.flac"))
    models = [] if "--model" in arguments else ["--model", str(tiny.folder() / "whisper")]
    where = [] if "-o" in arguments else ["-o", str(tmp_path)]
    capsys.readouterr()  # what was said while the models were made
    try:
        code = cli.main(["transcribe", recording, *models, *where, *arguments])
    except SystemExit as stopped:
        code = stopped.code
    found = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and len(found) == 1 and said in found[0] and found[0].startswith("mlx_speech: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--speaker-embeddings"], "--speaker-embeddings has no meaning without --diarize"),
        (["--no-align", "--segment-resolution", "sentence"], "--segment-resolution has no meaning without times"),
        (["--word-timestamps", "attention", "--interpolate-method", "linear"], "without --word-timestamps ctc"),
        (["--sequential", "--vad-method", "pyannote"], "--vad-method has no meaning without speech detection"),
        (["--no-vad", "--vad-model", "silero_vad"], "--vad-model has no meaning without speech detection"),
    ],
)
def test_what_nothing_answers_to_is_said(arguments: list[str], said: str, tmp_path: Path, capsys: Any) -> None:
    missing = str(tmp_path / "missing.wav")
    assert run(missing, "-o", str(tmp_path), "--language", "en", "--temperature", "0", *arguments) == 1
    assert said in capsys.readouterr().err


def test_a_result_beside_a_recording_that_may_not_be_looked_at_stops_nothing(
    tmp_path: Path, meeting: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def samefile(self: Path, other: Any) -> bool:
        if "locked" in str(other):
            raise PermissionError(13, "Permission denied", str(other))
        return self == Path(other)

    monkeypatch.setattr(Path, "samefile", samefile)
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.txt").write_text("old")
    locked = str(tmp_path / "locked" / "a.wav")
    flags = ("-o", str(out), "-f", "txt", "--language", "en", "--temperature", "0", "--no-align", "--quiet")
    assert run(locked, str(meeting), *flags) == 1
    assert (out / "meeting.txt").exists()
    assert locked in capsys.readouterr().err


def test_messages_name_flags_on_the_command_line_and_keywords_in_python() -> None:
    group = next(action for action in cli.build_parser()._actions if action.choices)
    commands: Any = group.choices
    flags = screen.flags_of(commands["transcribe"], transcribe.RENAMED)
    for message, expected in (
        ("batch_size is 0: give a number", "--batch-size is 0: give a number"),
        ("raise max_duration to read it", "raise --max-duration to read it"),
        ("lower batch_size, pass low_memory=True, or choose", "lower --batch-size, pass --low-memory, or choose"),
        ("model=/a/model_dir/x: is a wav2vec2 model", "--model=/a/model_dir/x: is a wav2vec2 model"),
        ("vad=False and vad_options conflict", "--no-vad and vad_options conflict"),
        ("neg_threshold is 2.0", "--vad-offset is 2.0"),
        ("onset is 2.0", "--vad-onset is 2.0"),
        ("multilingual and language conflict", "--multilingual and --language conflict"),
        # names that are no options
        ("the model is one, and language counts", "the model is one, and language counts"),
        ("/tmp/batch_size/model: fetch it again", "/tmp/batch_size/model: fetch it again"),
        ("batch_size: there is no such file", "batch_size: there is no such file"),
        ("batch_size.wav: there is no such file", "batch_size.wav: there is no such file"),
        ("there is no option 'batch_sise'", "there is no option 'batch_sise'"),
    ):
        assert screen.in_flags(message, flags) == expected
    convert = screen.flags_of(commands["convert"], {})
    message = "q_bits, q_group_size, q_mode and quant_predicate need quantize=True"
    assert (
        screen.in_flags(message, convert) == "--q-bits, --q-group-size, --q-mode and --quant-predicate need --quantize"
    )


def test_no_message_of_the_library_names_a_flag() -> None:
    """Only the command line's own files do."""
    root = Path(cli.__file__).parent.parent
    wrong = []
    for file in root.rglob("*.py"):
        if file.parent.name == "cli":
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        raised = [node for node in ast.walk(tree) if isinstance(node, (ast.Raise, ast.Call))]
        for node in raised:
            if isinstance(node, ast.Call) and not ast.unparse(node.func).endswith(("warn", "Error")):
                continue
            for text in ast.walk(node):
                said = text.value if isinstance(text, ast.Constant) else ""
                if isinstance(said, str) and re.search(r"(^|[ (])--?[a-z][a-z-]*", said):
                    wrong.append(f"{file.name}: {said}")
    assert not [line for line in wrong if "mlx_speech convert --model" not in line]  # a command in full is one


def test_without_a_token_it_stops_before_anything_is_transcribed(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    recording, model = str(real("data/audio/en/jfk.flac")), str(tiny.folder() / "whisper")
    gated = ["--diarize-model", "pyannote/speaker-diarization-community-1"]
    assert cli.main(["transcribe", recording, "--model", model, "-o", str(tmp_path), "--diarize", *gated]) == 2
    said = capsys.readouterr()
    assert not said.out and "mlx_speech convert --model pyannote/speaker-diarization-community-1" in said.err
    assert "https://huggingface.co/pyannote/speaker-diarization-community-1" in said.err
    assert not list(tmp_path.iterdir())


# --- WhisperX's functions --------------------------------------------------------------------------------------------


def test_the_example_of_whisperx_runs_with_only_its_import_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    metadata = importlib.metadata.metadata("whisperx")
    readme = metadata.get_payload() or metadata["Description"]  # type: ignore[attr-defined]
    blocks = re.findall(r"```python\n(.*?)```", str(readme), re.DOTALL)
    script = next(block for block in blocks if "import whisperx" in block and "DiarizationPipeline" in block)
    changed = script.replace("import whisperx\n", "from mlx_speech import whisperx\n")
    changed = changed.replace("from whisperx.diarize import", "from mlx_speech.whisperx import")
    assert sum(a != b for a, b in zip(script.splitlines(), changed.splitlines(), strict=True)) == 2
    place = tiny.folder()
    # what stands for the names in the example, and for the access to the gated model
    monkeypatch.setattr(names, "whisper_sources", lambda name: [names.Source(str(place / "whisper"))])
    monkeypatch.setattr(names, "align_source", lambda language: str(place / "wav2vec2"))
    monkeypatch.setattr("mlx_speech.loading.DIARIZATION", str(place / "diarization"))
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.chdir(tmp_path)
    shutil.copy(real("data/diar/ami_debug/dev00.wav"), tmp_path / "audio.mp3")
    space: dict[str, Any] = {"YOUR_HF_TOKEN": "hf_none"}
    exec(compile(changed, "example", "exec"), space)
    result = space["result"]
    assert result["segments"] and result["word_segments"]
    assert {"start", "end", "text", "words", "speaker"} <= set(result["segments"][0])
    assert {"word", "start", "end", "score", "speaker"} <= set(result["segments"][0]["words"][0])
    assert {"start", "end", "speaker", "label"} <= set(space["diarize_segments"][0])
    assert "before alignment" in script and "Hello there" in capsys.readouterr().out


def test_writers_of_the_package_are_those_of_the_command_line() -> None:
    assert tuple(writers.FORMATS) == outputs.FORMATS == FORMATS
