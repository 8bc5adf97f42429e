"""`mlx_speech speakers`, and names in what other commands give: with the demo's diarization, on its conversation."""

from __future__ import annotations

import json
import wave
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_speech import cli, load, load_audio
from mlx_speech.errors import AudioError
from mlx_speech.models import diarization_pipeline
from mlx_speech.package_data import DEMO
from mlx_speech.pipeline import Pipeline
from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.stages.voiceprints import voiceprint
from mlx_speech.voices import SpeakerStore
from mlx_speech.voices.enrolments import pcm

SECONDS = 24  # of the conversation
MODEL = ["--diarize-model", str(DEMO / "diarization")]
# in which somebody speaks alone, by the conversation's truth, in seconds
STRETCHES = {"Ann": ("19.1", "22.8"), "Bob": ("10.6", "13.0"), "Carl": ("0.4", "3.3")}


pytestmark = pytest.mark.usefixtures("shared_cache")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The beginning of the conversation, in which all three speak."""
    path = tmp_path_factory.mktemp("recording") / "conversation.wav"
    samples = load_audio(DEMO / "conversation.flac")[: SECONDS * SAMPLE_RATE]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(pcm(samples))
    return str(path)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of every test's own; known voices are every test's own."""
    monkeypatch.setenv("MLX_SPEECH_DATA", str(tmp_path / "known"))


@pytest.fixture(scope="module")
def model(shared_cache: None) -> diarization_pipeline.Model:
    loaded = load(DEMO / "diarization")
    assert isinstance(loaded, diarization_pipeline.Model)
    return loaded


def speakers(*words: str) -> int:
    return cli.main(["speakers", *words])


def enrol(recording: str, *names: str) -> None:
    for name in names:
        start, end = STRETCHES[name]
        assert speakers("add", name, recording, "--from", start, "--to", end, *MODEL) == 0


def test_enrol_recognise_correct_learn_forget(recording: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    enrol(recording, "Ann", "Bob")
    said = capsys.readouterr()
    assert "Ann: 3." in said.out and "1 enrolled" in said.out and not said.err
    enrol(recording, "Ann")
    assert "0 enrolled, 1 known already" in capsys.readouterr().out
    assert speakers("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith("Ann  3.") and "; wespeaker:" in lines[0]

    out = tmp_path / "out"
    models = ["--model", str(DEMO / "whisper"), "--language", "en", "--no-align"]
    flags = [*models, *MODEL, "--num-speakers", "3", "--speakers", "--speaker-embeddings", "-f", "json,rttm"]
    assert cli.main(["transcribe", recording, *flags, "-o", str(out)]) == 0
    said = capsys.readouterr()
    assert "] Ann: " in said.out and "] Bob: " in said.out and "Ann is known: score 0." in said.err
    written = (out / "conversation.json").read_text(encoding="utf-8")
    content = json.loads(written)
    labels = {"Ann", "Bob", "SPEAKER_00"}
    assert {turn["speaker"] for turn in content["turns"]} == labels == set(content["speaker_embeddings"])
    assert content["embedding_model"].startswith("wespeaker:")
    assert content["speaker_matches"]["Ann"]["score"] > 0.6 and not content["speaker_matches"]["Ann"]["doubtful"]
    assert " Ann <NA>" in (out / "conversation.rttm").read_text(encoding="utf-8")

    corrected = out / "corrected.json"
    corrected.write_text(written.replace("SPEAKER_00", "Carl"), encoding="utf-8")
    assert speakers("learn", str(corrected)) == 0
    assert "Ann, Bob, Carl: 3 enrolled" in capsys.readouterr().out
    assert cli.main(["diarize", recording, *MODEL, "--num-speakers", "3", "--speakers"]) == 0
    turns = capsys.readouterr().out.splitlines()
    assert {turn.split()[7] for turn in turns} == {"Ann", "Bob", "Carl"}

    exported = tmp_path / "voices.json"
    assert speakers("export", str(exported)) == 0
    assert speakers("import", str(exported), "--db", str(tmp_path / "other.sqlite")) == 0
    assert "5 enrolled; in" in capsys.readouterr().out
    assert SpeakerStore(tmp_path / "other.sqlite").enrolments() == SpeakerStore().enrolments()
    assert speakers("rename", "Carl", "Charles") == 0 and speakers("remove", "Ann", "Bob") == 0
    assert [speaker.name for speaker in SpeakerStore().speakers()] == ["Charles"]


def test_only_enrolled_voices_get_names(recording: str, model: diarization_pipeline.Model) -> None:
    enrol(recording, "Carl")
    audio = load_audio(recording)[: 18 * SAMPLE_RATE]
    plain = Pipeline(diarize_model=model).diarize(audio, num_speakers=3)
    named = Pipeline(diarize_model=model, speakers=True).diarize(audio, num_speakers=3)
    assert plain.speakers == ("SPEAKER_00", "SPEAKER_01", "SPEAKER_02") and not plain.matches
    (label,) = set(plain.speakers) - set(named.speakers)
    assert set(named.speakers) - set(plain.speakers) == {"Carl"}
    assert named.matches["Carl"].score > 0.6
    back = named.rename({"Carl": label})
    assert back.turns == plain.turns and back.exclusive == plain.exclusive and back.embeddings == plain.embeddings


def test_a_voice_and_its_sound(recording: str, model: diarization_pipeline.Model, tmp_path: Path) -> None:
    start, end = STRETCHES["Ann"]
    command = ["add", "Ann", recording, "--from", start, "--to", end, "--keep-audio", *MODEL]
    assert speakers(*command) == 0
    samples = load_audio(recording)[round(float(start) * SAMPLE_RATE) : round(float(end) * SAMPLE_RATE)]
    (enrolment,) = SpeakerStore().enrolments()
    assert enrolment.audio is not None
    kept = np.frombuffer(enrolment.audio, dtype="<i2") / 32767
    assert kept.size == samples.size and np.abs(kept - samples).max() <= 0.5 / 32767 + 1e-7
    found = voiceprint(samples, model)
    assert np.array_equal(np.array(found.vector, "<f4"), enrolment.vector) and found.model == enrolment.model

    other = SpeakerStore(tmp_path / "other.sqlite")
    assert speakers("enrol-again", "--db", str(other.path), *MODEL) == 2  # there is nobody yet
    other.add_all([replace(enrolment, vector=np.ones(3), model="another:0")])
    assert speakers("enrol-again", "--db", str(other.path), *MODEL) == 0
    (again,) = [enrolment for enrolment in other.enrolments() if enrolment.model != "another:0"]
    cosine = again.vector @ enrolment.vector / np.linalg.norm(again.vector) / np.linalg.norm(enrolment.vector)
    assert (again.name, again.model, again.audio) == ("Ann", enrolment.model, None) and cosine > 0.9999


def test_several_people_are_not_one(recording: str, model: diarization_pipeline.Model) -> None:
    audio = load_audio(recording)[: 6 * SAMPLE_RATE]
    with pytest.raises(AudioError) as raised:
        voiceprint(audio, model, offset=100.0)
    said = str(raised.value)
    assert "people speak: SPEAKER_" in said and "choose a stretch of one of them, such as start=1" in said
    start, end = (float(part.split("=")[1]) - 100 for part in said.split()[-2:])
    stretch = audio[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
    assert voiceprint(stretch, model).seconds == pytest.approx(end - start, abs=0.3)  # it takes its own advice


@pytest.mark.parametrize("seconds", [0.0, 0.05, 3.0])
def test_nobody_and_a_word_are_too_little(recording: str, model: diarization_pipeline.Model, seconds: float) -> None:
    with pytest.raises(AudioError, match=r"0\.0 s of speech are too little to know a voice by: give 1 s or more"):
        voiceprint(np.zeros(round(seconds * SAMPLE_RATE), np.float32), model)
    with pytest.raises(AudioError, match=r"0\.\d s of speech are too little"):
        voiceprint(load_audio(recording)[: round(0.9 * SAMPLE_RATE)], model)


def test_weights_are_told_apart_in_every_dtype(model: diarization_pipeline.Model) -> None:
    half = load(DEMO / "diarization", dtype="float16")
    assert isinstance(half, diarization_pipeline.Model)
    assert half.embedding.identity == model.embedding.identity
    assert half.embedding.identity.startswith("wespeaker:")
    assert model.segmentation.identity != model.embedding.identity
    family = type(model.embedding)
    one, other = family(model.embedding.args), family(model.embedding.args)  # of no folder, with random weights
    other.update(one.parameters())
    assert one.identity == other.identity != model.embedding.identity
    changed = family(model.embedding.args)
    changed.update(one.parameters())
    changed.seg_1.bias = changed.seg_1.bias + mx.array(1e-3)
    assert changed.identity != one.identity


@pytest.mark.parametrize(
    "command, said",
    [
        (["list"], "there is no such database of speakers: enrol somebody"),
        (["remove", "Ann"], "there is no such database"),
        (["rename", "Ann", "Bob"], "there is no such database"),
        (["export"], "there is no such database"),
        (["enrol-again"], "there is no such database"),
        (["add", "SPEAKER_01", "RECORDING"], "is what a speaker without a name is called"),
        (["add", "Ann", "RECORDING", "--from", "5", "--to", "3"], "--to 3 is not after --from 5"),
        (["add", "Ann", "RECORDING", "--from", "-1"], "--from is -1.0: it has to be from 0"),
        (["add", "Ann", "RECORDING", "none.wav", "--to", "1"], "--from and --to are for one recording"),
        (["add", "Ann", "RECORDING", "--from", "99", *MODEL], "lasts 24.0 s, and --from is 99"),
        (["add", "Ann", "none.wav", *MODEL], "none.wav"),
        (["add", "Ann", "RECORDING", "--to", "6", *MODEL], "choose a stretch of one of them, such as --from="),
        (["learn", "none.json"], "none.json: there is no such file"),
        (["import", "none.json"], "none.json"),
    ],
)
def test_mistakes_take_one_line(
    recording: str,
    command: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert speakers(*(recording if word == "RECORDING" else word for word in command)) in (1, 2)
    found = capsys.readouterr()
    assert not found.out and len(found.err.splitlines()) == 1
    assert said in found.err
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_is_none_stops_before_anything_is_heard(
    recording: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_speech.loading.load", lambda *_, **__: pytest.fail("a model was loaded"))
    for path, said in ((recording, "is no database of speakers"), (str(tmp_path / "none"), "there is no such")):
        assert cli.main(["diarize", recording, "--speakers", path]) == 2
        assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
