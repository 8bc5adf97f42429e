"""Which model a result names, and when models are let go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlx_speech import load, load_audio
from mlx_speech.package_data import DEMO
from mlx_speech.pipeline import Pipeline

OPTIONS = {"word_timestamps": None, "temperature": 0.0}


@pytest.fixture(scope="module")
def _shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models are converted once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cache(_own_cache: None, _shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_SPEECH_CACHE", str(_shared_cache))


@pytest.fixture
def sound() -> np.ndarray:
    return load_audio(DEMO / "pauses.flac")[: 16_000 * 4]


def test_a_result_names_the_model_that_detected_speech(sound: np.ndarray) -> None:
    """Whatever ran before on the same pipeline."""
    pipeline = Pipeline.demo()
    diarization = str(DEMO / "diarization")
    for method, name in (("silero", "silero_vad"), ("pyannote", diarization), ("silero", "silero_vad")):
        assert pipeline(sound, vad_method=method, **OPTIONS).models == {"vad": name, "whisper": str(DEMO / "whisper")}
    found = pipeline(sound, vad_method="pyannote", diarize=True, **OPTIONS)
    assert found.models["vad"] == found.models["diarization"] == diarization
    assert "vad" not in pipeline(sound, vad=False, **OPTIONS).models


def test_a_given_model_of_speech_detection_is_named(sound: np.ndarray) -> None:
    place = DEMO / "diarization" / "segmentation"
    pipeline = Pipeline.demo(vad_model=place)
    assert pipeline(sound, vad_method="pyannote", **OPTIONS).models["vad"] == str(place)
    pipeline = Pipeline.demo(vad_model=load(place))
    assert pipeline(sound, vad_method="pyannote", **OPTIONS).models["vad"] == "mlx_speech.models.pyannet"
    pipeline = Pipeline.demo(vad_model=load("silero_vad"))
    assert pipeline(sound, **OPTIONS).models["vad"] == "mlx_speech.models.silero_vad"


@pytest.mark.parametrize("seconds", [0.01, 0.2, 3.0, 12.0])
def test_nobody_speaks_in_silence(seconds: float) -> None:
    """By trained models; what random ones hear there depends on how a CPU rounds."""
    pipeline = Pipeline.demo()
    silence = np.zeros(int(seconds * 16_000), np.float32)
    assert pipeline.diarize(silence).turns == ()
    found = pipeline(silence, diarize=True, **OPTIONS)
    assert found.segments == () and found.diarization is not None and found.diarization.turns == ()


def test_with_little_memory_nothing_stays(sound: np.ndarray) -> None:
    pipeline = Pipeline.demo(low_memory=True)
    turns = pipeline.diarize(sound).turns
    assert turns and not pipeline.models.loaded()
    for method in ("silero", "pyannote"):
        assert pipeline(sound, vad_method=method, **OPTIONS).segments and not pipeline.models.loaded()
    with pytest.raises(RuntimeError, match="the caller's"):
        pipeline.diarize(sound, on_progress=_stop)
    assert pipeline(sound, **OPTIONS).segments and not pipeline.models.loaded()
    usual = Pipeline.demo()
    assert usual.diarize(sound).turns == turns and usual.models.loaded()


def _stop(*_: object) -> None:
    raise RuntimeError("the caller's")


def test_several_languages_with_models_of_one(sound: np.ndarray) -> None:
    """The demo's own language is not taken for one that the caller named."""
    pipeline = Pipeline.demo()
    plain, found = pipeline(sound, **OPTIONS), pipeline(sound, multilingual=True, **OPTIONS)
    assert found.text == plain.text and found.language == "en"
