"""A first answer in under a minute, without torch: what has to work before anything else is worth a look.

`make quick` runs these tests and the rules of the house with nothing but the package, its `demo` extra and pytest. They
run in `make test`, too. A file beside this one must not need tests/conftest.py, which `make quick` leaves out.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openblas  # noqa: F401
import pytest

import mlx_speech
from mlx_speech import cli, writers
from mlx_speech.convert import convert
from mlx_speech.errors import AudioError, OptionError, SourceError
from mlx_speech.evaluation.references import read_truth
from mlx_speech.evaluation.scores import score
from mlx_speech.transcript import Diarization, Segment, Transcript, Turn, Word

ROOT = Path(mlx_speech.__file__).parent
DEMO = ROOT / "assets" / "demo"
SENTENCE = "ABOUT|OCTOBER|MANY|LOUD|HORSES|ARE|MOVED|AFTER|FEBRUARY"
SENTENCE_END = 3.6  # seconds into the conversation, behind its first sentence


@pytest.fixture(scope="module", autouse=True)
def _shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The demo's models are converted once, and not into the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_SPEECH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _own_cache() -> None:
    """In place of every test's own."""


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True, timeout=60, check=False)


# --- import and command line -----------------------------------------------------------------------------------------


def test_every_module_is_imported_without_a_framework() -> None:
    """Only the module that runs the originals, for `--verify`, needs them."""
    script = """
import importlib, pkgutil, sys
for framework in ("torch", "torchaudio", "transformers", "whisper", "silero_vad", "lightning", "omegaconf"):
    sys.modules[framework] = None  # importing it fails
import mlx_speech
for module in pkgutil.walk_packages(mlx_speech.__path__, "mlx_speech."):
    if not module.name.endswith(("__main__", "parity.originals")):
        importlib.import_module(module.name)
"""
    done = run_python("-c", script)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["", "transcribe", "diarize", "vad", "convert", "demo"])
def test_help(command: str) -> None:
    done = run_python("-m", "mlx_speech", *command.split(), "--help")
    assert done.returncode == 0 and "usage: mlx_speech" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "options, message",
    [
        ({"beam_sise": 5}, "did you mean beam_size"),
        ({"beam_size": "5"}, "give a whole number"),
        ({"vad_method": "none"}, "choose from silero"),
        ({"min_speakers": 3, "max_speakers": 2}, "speakers"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        mlx_speech.Pipeline.demo()(np.zeros(16000, np.float32), **options)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["vad", str(tmp_path / "none.wav")]) != 0
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(AudioError):
        mlx_speech.load_audio(tmp_path / "none.wav")
    with pytest.raises(SourceError):
        mlx_speech.load(str(tmp_path / "none"))


# --- models ----------------------------------------------------------------------------------------------------------


def test_speech_is_found() -> None:
    """Silero VAD on utterances between silences, whose times are known."""
    truth = json.loads((DEMO / "pauses.json").read_text(encoding="utf-8"))["regions"]
    audio = mlx_speech.load_audio(DEMO / "pauses.flac")
    regions = mlx_speech.detect_speech(audio, mlx_speech.load("silero_vad"))
    assert len(regions) == len(truth)
    for region, true in zip(regions, truth, strict=True):
        assert region.start == pytest.approx(true["start"], abs=0.15)
        assert region.end == pytest.approx(true["end"], abs=0.15)


def recognised(folder: Path) -> str:
    """What a converted wav2vec2 hears in the first sentence of the conversation: the likeliest letter of each frame."""
    import mlx.core as mx  # behind mlx_speech, which brings OpenBLAS for it

    model = mlx_speech.load(str(folder))
    samples = mlx_speech.load_audio(DEMO / "conversation.flac")[: round(16000 * SENTENCE_END)]
    audio = mlx_speech.features.normalize(mx.array(samples)[None])
    labels = np.array(mx.argmax(model(audio), axis=-1))[0]
    vocabulary = model.args.vocab
    text = ""
    previous = model.args.blank_id
    for label in labels:
        if label != previous and label != model.args.blank_id:
            text += vocabulary[label]
        previous = label
    return text.strip("|")


@pytest.mark.parametrize("quantized", [{}, {"quantize": True, "q_bits": 8, "q_group_size": 32}])
def test_an_original_is_converted_and_loaded(quantized: dict, tmp_path: Path) -> None:
    report = convert(str(DEMO / "wav2vec2"), tmp_path / "model", **quantized)
    assert report.family == "wav2vec2" and report.path == tmp_path / "model"
    assert {"config.json", "model.safetensors", "README.md"} <= {file.name for file in report.path.iterdir()}
    assert recognised(report.path) == SENTENCE


# --- the pipeline ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def conversation(_shared_cache: None) -> Transcript:
    """What the pipeline makes of the demo's conversation."""
    return mlx_speech.Pipeline.demo()(DEMO / "conversation.flac", diarize=True)


def test_the_conversation_is_understood(conversation: Transcript) -> None:
    truth = read_truth(DEMO / "conversation.json")
    assert truth is not None
    scores = score([(conversation, truth)])
    assert scores.wer < 0.06 and scores.der < 0.08, f"\n{scores}"
    assert scores.attributed > 0.88 and scores.starts > 0.95 and scores.boundary < 0.02, f"\n{scores}"


def test_times_run_forward(conversation: Transcript) -> None:
    words = conversation.words
    assert words and all(0 <= word.start < word.end <= conversation.duration for word in words)
    starts = [segment.start for segment in conversation.segments]
    assert starts == sorted(starts)


# --- writers ---------------------------------------------------------------------------------------------------------

WORDS = (Word(0.5, 0.9, "Good", 0.9, "A"), Word(1.0, 1.75, "morning.", 0.8, "A"))
TRANSCRIPT = Transcript(
    (Segment(0.5, 1.75, "Good morning.", WORDS, "A"), Segment(3662.0, 3663.5, "Yes.", (), "B")),
    language="en",
    duration=3700.0,
    diarization=Diarization((Turn(0.5, 1.75, "A"), Turn(3662.0, 3663.5, "B"))),
)
EXPECTED = {
    "txt": "[A]: Good morning.\n[B]: Yes.\n",
    "srt": "1\n00:00:00,500 --> 00:00:01,750\n[A]: Good morning.\n\n2\n01:01:02,000 --> 01:01:03,500\n[B]: Yes.\n\n",
    "vtt": "WEBVTT\n\n00:00.500 --> 00:01.750\n[A]: Good morning.\n\n01:01:02.000 --> 01:01:03.500\n[B]: Yes.\n\n",
    "tsv": "start\tend\ttext\n500\t1750\tGood morning.\n3662000\t3663500\tYes.\n",
    "rttm": ("SPEAKER talk 1 0.500 1.250 <NA> <NA> A <NA> <NA>\nSPEAKER talk 1 3662.000 1.500 <NA> <NA> B <NA> <NA>\n"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_written_as_text(name: str) -> None:
    assert writers.FORMATS[name](TRANSCRIPT, uri="talk") == EXPECTED[name]


def test_written_as_json() -> None:
    content = json.loads(writers.FORMATS["json"](TRANSCRIPT, uri="talk"))
    first = content["segments"][0]
    assert (first["start"], first["end"], first["text"], first["speaker"]) == (0.5, 1.75, "Good morning.", "A")
    assert [word["word"] for word in first["words"]] == ["Good", "morning."]


def test_the_command_writes_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["vad", str(DEMO / "pauses.flac"), "--format", "rttm"]) == 0
    assert capsys.readouterr().out.count("SPEAKER pauses 1 ") == 6
    assert cli.main(["convert", "--model", str(DEMO / "whisper"), "--mlx-path", str(tmp_path / "whisper")]) == 0
    command = ["transcribe", str(DEMO / "pauses.flac"), "--model", str(tmp_path / "whisper"), "--language", "en"]
    assert cli.main([*command, "--word-timestamps", "attention", "-o", str(tmp_path), "-f", "srt,json"]) == 0
    content = json.loads((tmp_path / "pauses.json").read_text(encoding="utf-8"))
    cues = (tmp_path / "pauses.srt").read_text(encoding="utf-8").split("\n\n")
    assert content["segments"] and len(cues) > 5
