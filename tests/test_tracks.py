"""Speakers that have a sound track each, and what the pipeline and the commands make of tracks, quiet and nothing."""

from __future__ import annotations

import json
import shutil
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny
from test_audio import EMPTY
from test_media import film

from mlx_speech import cli, load_audio
from mlx_speech.audio import mix
from mlx_speech.errors import AudioError, OptionError
from mlx_speech.options import Options
from mlx_speech.package_data import DEMO
from mlx_speech.pipeline import Pipeline
from mlx_speech.stages.tracks import likeness, speakers_apart, speaking, turns_of_tracks
from mlx_speech.transcript import Diarization, Region

RATE = 16_000
GREEDY = {"language": "en", "temperature": 0.0, "word_timestamps": None}


def hum(seconds: float, seed: int = 0, level: float = 0.2) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-level, level, round(seconds * RATE)).astype(np.float32)


def spoken(regions: list[Region], seed: int, seconds: float = 20.0, level: float = 0.2) -> np.ndarray:
    """Noise where somebody speaks."""
    sound = np.zeros(round(seconds * RATE), np.float32)
    for k, region in enumerate(regions):
        start = round(region.start * RATE)
        part = hum(region.duration, 100 * seed + k, level)
        sound[start : start + part.size] = part
    return sound


ONE = [Region(0, 4), Region(8, 12)]
TWO = [Region(3.5, 7.5), Region(13, 18)]


def test_tracks_with_a_speaker_each():
    tracks = [spoken(ONE, 1), spoken(TWO, 2)]
    assert speakers_apart(tracks, [ONE, TWO])
    assert speakers_apart([tracks[0], np.zeros(100, np.float32), tracks[1]], [ONE, [], TWO])
    assert speaking([ONE, [], [Region(0, 0.5)], TWO]) == [0, 3]


def test_tracks_that_are_the_same_scene():
    one = spoken(ONE, 1)
    assert not speakers_apart([one], [ONE])
    assert not speakers_apart([one, np.zeros_like(one)], [ONE, []])
    assert not speakers_apart([one, one], [ONE, ONE])
    assert not speakers_apart([one, spoken(ONE, 2)], [ONE, ONE])  # the same scene dubbed
    late = np.concatenate([np.zeros(3000, np.float32), one])
    assert not speakers_apart([one, 0.1 * late], [ONE, [Region(4, 8)]])  # one hears the other
    everything = mix([one, spoken(TWO, 2)])
    assert not speakers_apart([one, everything], [ONE, [Region(0, 7.5), Region(8, 12), Region(13, 18)]])


def test_likeness():
    long = hum(30, 1)
    assert likeness(long, long) == pytest.approx(1)
    assert likeness(long, -0.01 * np.roll(long, 5000)) == pytest.approx(1, abs=0.05)
    assert likeness(long, hum(30, 2)) < 0.02
    assert likeness(long, hum(30, 2) + 0.5 * long) == pytest.approx(0.447, abs=0.02)
    assert likeness(long, np.zeros_like(long)) == likeness(long, long[:0]) == 0


def test_turns_of_tracks():
    tracks = [spoken(ONE, 1), np.zeros(20 * RATE, np.float32), spoken(TWO, 2, level=0.002)]
    found = turns_of_tracks(tracks, [ONE, [], TWO])
    assert [(turn.start, turn.end, turn.speaker) for turn in found.turns] == [
        (0, 4, "SPEAKER_00"),
        (3.5, 7.5, "SPEAKER_01"),
        (8, 12, "SPEAKER_00"),
        (13, 18, "SPEAKER_01"),
    ]
    bounds = [(turn.start, turn.end) for turn in found.exclusive]
    assert all(before[1] <= after[0] for before, after in pairwise(bounds))
    assert sum(end - start for start, end in bounds) == pytest.approx(16.5)  # all that is spoken, once
    assert {turn.speaker for turn in found.exclusive} == {"SPEAKER_00", "SPEAKER_01"}
    assert turns_of_tracks(tracks, [[], [], []]) == Diarization()


def test_where_both_speak_it_is_the_louder_for_its_track():
    """A whisper into a close microphone leaks into the other one's."""
    one, two = [Region(0, 10)], [Region(0, 2), Region(12, 20)]
    tracks = [spoken(one, 1, level=0.3), spoken([Region(12, 20)], 2, level=0.1)]
    tracks[1][: 2 * RATE] += 0.01 * hum(2, 5)
    found = turns_of_tracks(tracks, [one, two]).exclusive
    assert [(turn.start, turn.end, turn.speaker) for turn in found] == [(0, 10, "SPEAKER_00"), (12, 20, "SPEAKER_01")]


# --- the pipeline ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    place = tiny.folder()
    return Pipeline(place / "whisper", align_model=place / "wav2vec2", diarize_model=place / "diarization")


@pytest.fixture(scope="module")
def voices() -> list[tuple[np.ndarray, list[Region]]]:
    """The conversation that comes with the package, its first half minute: two of its speakers, each alone."""
    sound = load_audio(DEMO / "conversation.flac")[: 30 * RATE]
    truth = json.loads((DEMO / "conversation.json").read_text())["utterances"]
    found = []
    for speaker in ("speaker 0", "speaker 1"):
        own = [Region(u["start"], u["end"]) for u in truth if u["speaker"] == speaker and u["end"] < 30]
        track = np.zeros_like(sound)
        for region in own:
            part = slice(round(region.start * RATE), round(region.end * RATE))
            track[part] = sound[part]
        found.append((track, own))
    return found


def two_tracks(tmp_path: Path, *tracks: np.ndarray) -> Path:
    path = tmp_path / "call.mkv"
    path.write_bytes(film("matroska", "pcm_s16le", *([(0.0, track)] for track in tracks)))
    return path


def test_speakers_by_their_tracks(tmp_path, pipe, voices):
    path = two_tracks(tmp_path, voices[0][0], voices[1][0])
    with pytest.warns(UserWarning, match="call.mkv: 2 of its sound tracks hold a speaker each") as caught:
        result = pipe(path, audio_track="all", diarize=True, vad=False, **GREEDY)  # heard once: it says the same always
    assert len(caught) == 1
    for number, (_, truth) in enumerate(voices):
        turns = [turn for turn in result.diarization.turns if turn.speaker == f"SPEAKER_{number:02d}"]
        spoken_here = sum(region.duration for region in truth)
        common = sum(max(0, min(t.end, r.end) - max(t.start, r.start)) for t in turns for r in truth)
        assert common > 0.8 * spoken_here
        assert sum(turn.duration for turn in turns) < 1.2 * spoken_here
    assert result.segments and {segment.speaker for segment in result.segments} <= {"SPEAKER_00", "SPEAKER_01"}
    assert "diarization" not in result.models
    with pytest.warns(UserWarning, match="hold a speaker each"):
        alone = pipe.diarize(path, audio_track="all")
    assert alone == result.diarization


def test_tracks_that_do_not_tell_the_speakers(tmp_path, pipe, voices):
    both = mix([track for track, _ in voices])
    path = two_tracks(tmp_path, both, voices[0][0])
    with pytest.warns(UserWarning, match="call.mkv: its sound tracks hold no speaker each"):
        found = pipe.diarize(path, audio_track="all")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found == pipe.diarize(load_audio(path, audio_track="all"))
    apart = two_tracks(tmp_path, voices[0][0], voices[1][0])
    with pytest.warns(UserWarning, match="hold no speaker each"):  # a third one is in one of them
        pipe.diarize(apart, audio_track="all", min_speakers=3)


def test_one_track_of_several(tmp_path, pipe, voices):
    path = two_tracks(tmp_path, voices[0][0], voices[1][0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = pipe(path, audio_track=2, **GREEDY)
        assert second.segments == pipe(load_audio(path, audio_track=2), **GREEDY).segments
        together = pipe(path, audio_track="all", **GREEDY)
        assert together.segments == pipe(load_audio(path, audio_track="all"), **GREEDY).segments
    assert together.duration == second.duration
    with pytest.raises(AudioError, match="has no sound track 3"):
        pipe(path, audio_track=3, **GREEDY)
    with pytest.raises(OptionError, match="audio_track is for files"):
        pipe(np.zeros(RATE, np.float32), audio_track=1, **GREEDY)
    with pytest.raises(OptionError, match="audio_track is 'two'"):
        Options.of(audio_track="two")


def test_very_quiet_speech_is_heard(pipe, voices):
    """As the same speech is at an ordinary level; noise at that level stays unheard, and true silence unmentioned."""
    sound = mix([track for track, _ in voices])
    sound = 0.3 * sound / np.abs(sound).max()
    aloud = pipe(sound, **GREEDY)
    assert aloud.segments
    for level in (0.01, 0.003):
        with pytest.warns(UserWarning, match="is very quiet.*it is made louder to be heard") as caught:
            quiet = pipe(np.float32(level) * sound, **GREEDY)
        assert len(caught) == 1
        assert [(s.start, s.end) for s in quiet.segments] == [(s.start, s.end) for s in aloud.segments]
    dice = np.random.default_rng(0)
    slow = np.cumsum(dice.standard_normal(20 * RATE))
    for noise in (dice.standard_normal(20 * RATE), slow - np.linspace(slow[0], slow[-1], slow.size)):
        for level in (0.005, 0.0005, 0.0001):
            with pytest.warns(UserWarning, match="is very quiet"):
                assert not pipe(np.float32(level * noise / np.abs(noise).max()), **GREEDY).segments
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not pipe(np.zeros(20 * RATE, np.float32), **GREEDY).segments


@pytest.mark.parametrize("name", ["wave", "film", "mp4"])
def test_a_recording_without_samples_is_an_empty_transcript(tmp_path, pipe, name):
    path = tmp_path / "nothing.mkv"
    path.write_bytes(EMPTY[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options in ({}, {"diarize": True}, {"sequential": True}, {"vad": False}, {"audio_track": "all"}):
            result = pipe(path, temperature=0.0, **options)
            assert not result.segments and result.duration == 0 and result.text == ""
        assert pipe.diarize(path) == Diarization()


# --- the commands ----------------------------------------------------------------------------------------------------


def run(command: str, *arguments: object) -> int:
    place = tiny.folder()
    models = {"transcribe": ["--model", place / "whisper", "--no-align", "--language", "en"], "vad": []}
    models["diarize"] = ["--diarize-model", place / "diarization"]
    return cli.main([command, *map(str, arguments), *map(str, models[command])])


def test_commands_take_a_track(tmp_path, voices, capsys):
    path = two_tracks(tmp_path, voices[0][0], voices[1][0])
    for track, expected in ((1, voices[0]), (2, voices[1])):
        assert run("vad", path, "--audio-track", track) == 0
        said = capsys.readouterr()
        assert not said.err
        found = [float(line.split()[0]) for line in said.out.splitlines()]
        assert found[0] == pytest.approx(expected[1][0].start, abs=0.3)
    assert run("vad", path) == 0
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "has 2 sound tracks, 1, 2: track 1 is read" in said.err
    assert run("vad", path, "--audio-track", "all") == 0
    assert len(capsys.readouterr().out.splitlines()) >= len(voices[0][1])
    assert run("diarize", path, "--audio-track", "all") == 0
    said = capsys.readouterr()
    assert {line.split()[7] for line in said.out.splitlines()} == {"SPEAKER_00", "SPEAKER_01"}
    assert "hold a speaker each" in said.err
    assert run("transcribe", path, "--audio_track", "2", "-o", tmp_path, "-f", "txt", "--quiet") == 0
    assert not capsys.readouterr().err
    for command in ("transcribe", "diarize", "vad"):
        with pytest.raises(SystemExit) as stopped:
            run(command, path, "--audio-track", "some")
        assert stopped.value.code == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "'some' is no sound track: give a number from 1" in said
    assert run("vad", path, "--audio-track", "3") == 1
    assert "has no sound track 3: its tracks are 1, 2" in capsys.readouterr().err
    assert run("vad", path, "--audio-track", "0") == 2
    assert "track is 0" in capsys.readouterr().err


def test_commands_on_a_recording_without_samples(tmp_path, capsys):
    path = tmp_path / "nothing.wav"
    path.write_bytes(EMPTY["wave"])
    assert run("vad", path) == run("diarize", path) == 0
    assert run("transcribe", path, "-o", tmp_path, "-f", "srt,json", "--quiet") == 0
    assert capsys.readouterr().err == ""
    assert (tmp_path / "nothing.srt").read_text() == ""
    assert json.loads((tmp_path / "nothing.json").read_text())["segments"] == []
    (tmp_path / "really.wav").write_bytes(b"")
    assert run("vad", tmp_path / "really.wav") == 1
    assert "is empty: record or copy it again" in capsys.readouterr().err


def test_the_vad_command_hears_quiet_speech(tmp_path, capsys):
    path = tmp_path / "loud.flac"
    shutil.copy(DEMO / "conversation.flac", path)
    assert run("vad", path) == 0
    loud = capsys.readouterr().out
    quiet = load_audio(path)
    sound = 0.003 * quiet / np.abs(quiet).max()
    (tmp_path / "quiet.mkv").write_bytes(film("matroska", "pcm_s16le", [(0.0, sound.astype(np.float32))]))
    assert run("vad", tmp_path / "quiet.mkv") == 0
    said = capsys.readouterr()
    assert "quiet.mkv: is very quiet (its peak is -50 dBFS): it is made louder to be heard" in said.err
    assert abs(len(said.out.splitlines()) - len(loud.splitlines())) <= 2 < len(loud.splitlines())
