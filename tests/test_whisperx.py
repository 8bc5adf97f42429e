"""The stand-in for WhisperX: its signatures, its own defaults, and a word about what has no meaning here."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import absent

from mlx_speech import load, load_audio, whisperx
from mlx_speech.errors import OptionError, SourceError
from mlx_speech.package_data import DEMO

RECORDING = str(DEMO / "pauses.flac")


@pytest.fixture(scope="module")
def _shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models are converted once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cache(_own_cache: None, _shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_SPEECH_CACHE", str(_shared_cache))


def original(file: str) -> ast.Module:
    """The source of an installed WhisperX; importing it would import torch, CTranslate2 and a lot more."""
    spec = importlib.util.find_spec("whisperx")
    if spec is None or spec.origin is None:
        absent("whisperx is not installed")
    return ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8"))


def signature(tree: ast.Module, name: str) -> list[tuple[str, Any]]:
    """Arguments in order with their defaults; those of a class are its __init__'s."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == name.split(".")[0]:
            return signature(ast.Module(node.body, []), name.partition(".")[2] or "__init__")
        if isinstance(node, ast.FunctionDef) and node.name == name:
            given = [argument.arg for argument in node.args.args]
            defaults = [ast.literal_eval(value) for value in node.args.defaults]
            missing = len(given) - len(defaults)
            return list(zip(given, [inspect.Parameter.empty] * missing + defaults, strict=True))
    raise LookupError(name)


@pytest.mark.parametrize(
    "file, theirs, ours",
    [
        ("asr.py", "load_model", whisperx.load_model),
        ("asr.py", "FasterWhisperPipeline.transcribe", whisperx.Recogniser.transcribe),
        ("alignment.py", "load_align_model", whisperx.load_align_model),
        ("alignment.py", "align", whisperx.align),
        ("diarize.py", "DiarizationPipeline", whisperx.DiarizationPipeline.__init__),
        ("diarize.py", "DiarizationPipeline.__call__", whisperx.DiarizationPipeline.__call__),
        ("diarize.py", "assign_word_speakers", whisperx.assign_word_speakers),
    ],
)
def test_arguments_and_their_order_are_those_of_whisperx(file: str, theirs: str, ours: Any) -> None:
    expected = signature(original(file), theirs)
    found = inspect.signature(ours).parameters
    assert list(found) == [name for name, _ in expected]
    for name, default in expected:
        if default is not inspect.Parameter.empty and name not in ("device", "vad_method"):  # said in the docstring
            assert found[name].default == default, name


def defaults(variable: str) -> dict[str, Any]:
    """What WhisperX assigns to a variable; what it asks the model for ("is it multilingual?") is True."""
    for node in ast.walk(original("asr.py")):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Dict)
            and ast.unparse(node.targets[0]) == variable
        ):
            entries = zip(node.value.keys, node.value.values, strict=True)
            return {
                ast.literal_eval(key): True if isinstance(value, ast.Attribute) else ast.literal_eval(value)
                for key, value in entries
                if key is not None
            }
    raise LookupError(variable)


def test_all_of_its_own_options_pass() -> None:
    """Each as WhisperX sets it when nobody says anything; the text is that of no options."""
    asr, vad = defaults("default_asr_options"), defaults("default_vad_options")
    assert asr["multilingual"] is True and len(asr) > 25 and set(vad) == {"chunk_size", "vad_onset", "vad_offset"}
    samples = load_audio(RECORDING)[: 16_000 * 5]
    plain = whisperx.load_model(DEMO / "whisper", "cpu", language="en").transcribe(samples)
    assert plain["segments"] and plain["language"] == "en"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = whisperx.load_model(DEMO / "whisper", "cpu", 0, "default", asr, "en", None, "silero", vad)
        assert model.transcribe(samples) == plain
        for name, value in asr.items():
            assert whisperx._asr_options({name: value}).keys() <= {whisperx.RENAMED.get(name, name)}


def test_what_is_unknown_is_an_error() -> None:
    with pytest.raises(TypeError, match="frobnicate"):
        whisperx.load_model(DEMO / "whisper", "cpu", frobnicate=True)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="frobnicate"):
        whisperx.load_align_model("en", "cpu", frobnicate=True)  # type: ignore[call-arg]
    for options, said in (
        ({"asr_options": {"frobnicate": 1}}, "there is no option 'frobnicate'"),
        ({"asr_options": {"beam_size": "5"}}, "beam_size is '5'"),
        ({"asr_options": {"repetition_penalty": 1.2}}, "repetition_penalty=1.2 has no meaning here"),
        ({"vad_options": {"frobnicate": 1}}, "frobnicate is no option of vad_method 'silero'"),
        ({"vad_options": {"vad_onset": "0.5"}}, "threshold is '0.5'"),
        ({"vad_method": "webrtc"}, "vad_method is 'webrtc'"),
        ({"compute_type": "int3"}, "compute_type is 'int3': choose from default"),
        ({"language": "pt-BR"}, "did you mean pt"),
    ):
        with pytest.raises(OptionError, match=said):
            whisperx.load_model(DEMO / "whisper", "cpu", **options)


@pytest.mark.parametrize(
    "given, instead",
    [
        ({"device_index": 1}, "MLX has one GPU"),
        ({"threads": 8}, "OPENBLAS_NUM_THREADS"),
        ({"download_root": "/models"}, "HF_HUB_CACHE"),
        ({"local_files_only": True}, "HF_HUB_OFFLINE=1"),
        ({"asr_options": {"word_timestamps": True}}, "whisperx.align"),
    ],
)
def test_what_has_no_meaning_says_so(given: dict[str, Any], instead: str) -> None:
    with pytest.warns(UserWarning, match=f"has no meaning here: .*{instead}") as said:
        whisperx.load_model(DEMO / "whisper", "cpu", **given)
    assert len(said) == 1


def test_a_given_model_of_speech_detection(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    silero, segmentation = load("silero_vad"), load(DEMO / "diarization" / "segmentation")
    for vad_model, method in (
        (silero, "silero"),
        (segmentation, "pyannote"),
        (str(DEMO / "diarization" / "segmentation"), "pyannote"),
    ):
        model = whisperx.load_model(DEMO / "whisper", "cpu", 0, "default", None, "en", vad_model)
        assert model._options["vad_method"] == method
        found = model.transcribe(load_audio(RECORDING))
        seen.append([(segment["start"], segment["end"]) for segment in found["segments"]])
    assert seen[0] and seen[1] == seen[2] != seen[0]
    with pytest.raises(SourceError, match="is no Silero VAD and no PyanNet"):
        whisperx.load_model(DEMO / "whisper", "cpu", vad_model=DEMO / "wav2vec2")


def test_progress_and_transcript_are_printed(capsys: pytest.CaptureFixture) -> None:
    samples = load_audio(RECORDING)
    told: list[float] = []
    model = whisperx.load_model(DEMO / "whisper", "cpu", language="en")
    result = model.transcribe(samples, 2, 0, None, None, 30, True, True, True, told.append)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-len(result["segments"]) :] == [
        f"Transcript: [{s['start']} --> {s['end']}] {s['text']}" for s in result["segments"]
    ]
    assert lines[0] == "Progress: 0.00%..." and "Progress: 50.00%..." in lines and told[-1] == 100
    aligner, metadata = whisperx.load_align_model("en", "cpu", DEMO / "wav2vec2")
    aligned = whisperx.align(result["segments"], aligner, metadata, samples, "cpu", "nearest", False, True, True)
    shown = [float(line[10:-4]) for line in capsys.readouterr().out.splitlines()]
    assert shown == sorted(shown) and shown[0] >= 50 and shown[-1] == 100
    assert not model.transcribe(np.zeros(16_000, np.float32))["segments"] and not capsys.readouterr().out
    whisperx.assign_word_speakers([{"start": 0.0, "end": 1e6, "speaker": "Ann"}], aligned)
    assert {word["speaker"] for word in aligned["word_segments"]} == {"Ann"}  # the same words as in the segments
