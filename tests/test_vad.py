"""Speech timestamps against the original's, and the demo recording against its truth."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import warnings
from pathlib import Path

import make_pauses
import mlx.core as mx
import numpy as np
import pytest
import silero_vad
import torch
from conftest import absent, real

import mlx_speech
from mlx_speech.audio import load_audio
from mlx_speech.errors import AudioError, OptionError
from mlx_speech.stages.vad import detect_speech, in_seconds, speech_timestamps
from mlx_speech.transcript import Region
from mlx_speech.writers import regions_to_json, regions_to_rttm, regions_to_text

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("MLX_SPEECH_TEST_DATA", ROOT / ".." / "shared")) / "data"
DEMO = ROOT / "mlx_speech" / "assets" / "demo"
WINDOWS = {16_000: 512, 8_000: 256}
OPTIONS = (
    {},
    {"max_speech_duration_s": 3},
    {"max_speech_duration_s": 3, "use_max_poss_sil_at_max_speech": False},
    {"min_silence_duration_ms": 2000, "speech_pad_ms": 400, "max_speech_duration_s": 10},
    {"threshold": 0.3, "neg_threshold": 0.1, "min_speech_duration_ms": 0},
)


class Scripted:
    """A model for the original's function that gives `probabilities` one after another, whatever it hears."""

    def __init__(self, probabilities: np.ndarray) -> None:
        self.probabilities = torch.from_numpy(np.asarray(probabilities, np.float32))
        self.given = 0

    def reset_states(self) -> None:
        self.given = 0

    def __call__(self, chunk: torch.Tensor, sampling_rate: int) -> torch.Tensor:
        assert len(chunk) == WINDOWS[sampling_rate]
        self.given += 1
        return self.probabilities[self.given - 1]


def upstream(probabilities: np.ndarray, num_samples: int, rate: int, **options) -> list[tuple[float, float]]:
    model = Scripted(probabilities)
    found = silero_vad.get_speech_timestamps(torch.zeros(num_samples), model, sampling_rate=rate, **options)
    assert model.given == len(probabilities)
    return [(speech["start"], speech["end"]) for speech in found]


def random_options(dice: np.random.Generator) -> dict:
    """Options of which many coincide with whole windows, where off-by-one errors show."""
    options: dict = {}

    def maybe(name: str, values: tuple) -> None:
        if dice.random() < 0.5:
            options[name] = values[dice.integers(len(values))]

    maybe("threshold", (0.35, 0.5, 0.6, 0.05, 0.1, 0.9, 1.0))
    maybe("min_speech_duration_ms", (0, 32, 64, 100, 250, 256, 1000))
    maybe("max_speech_duration_s", (0.1, 0.3, 0.5, 0.512, 0.8, 1.0, 1.024, 2.0, 5))
    maybe("min_silence_duration_ms", (0, 32, 64, 96, 98, 100, 128, 500, 2000))
    maybe("speech_pad_ms", (0, 16, 30, 30.3, 32, 64, 100, 400))
    maybe("min_silence_at_max_speech", (0, 32, 64, 96, 98, 100, 128))
    maybe("use_max_poss_sil_at_max_speech", (True, False))
    if dice.random() < 0.2:
        options["neg_threshold"] = float(dice.choice([0.0, 0.05, 0.5, 1.0])) * options.get("threshold", 0.5)
    return options


def random_probabilities(dice: np.random.Generator, options: dict) -> np.ndarray:
    """Between 0 and 100 windows: a walk, runs of speech and silence, values at the thresholds, all speech, noise."""
    count = int(dice.integers(0, 100))
    high = options.get("threshold", 0.5)
    low = options.get("neg_threshold", max(high - 0.15, 0.01))
    kind = dice.integers(5)
    if kind == 0:
        return np.clip(0.5 + np.cumsum(dice.normal(0, 0.15, count)), 0, 1)
    if kind == 1:
        runs = dice.integers(1, 9, count + 1)
        return np.repeat(np.arange(count + 1) % 2, runs)[:count].astype(float)
    if kind == 2:
        edges = [np.float32(edge) for edge in (high, low)]
        near = [np.nextafter(edge, np.float32(side)) for edge in edges for side in (-1, 2)]
        return np.clip(dice.choice([*edges, *near, high, low, 0.0, 1.0], count), 0, 1)
    if kind == 3:
        return np.where(dice.random(count) < 0.05, (high + low) / 2, 1.0)
    return dice.random(count)


@pytest.mark.parametrize("rate", [16_000, 8_000])
@pytest.mark.parametrize("part", range(4))
def test_timestamps_are_the_originals(rate, part):
    """12000 random sequences, with the default options in some of them."""
    dice = np.random.default_rng([rate, part])
    stretches = 0
    for _ in range(1500):
        options = random_options(dice)
        probabilities = random_probabilities(dice, options)
        missing = int(dice.integers(0, WINDOWS[rate])) if len(probabilities) else 0
        length = len(probabilities) * WINDOWS[rate] - missing
        found = speech_timestamps(probabilities, num_samples=length, sampling_rate=rate, **options)
        assert found == upstream(probabilities, length, rate, **options), (options, probabilities.tolist())
        assert all(type(time) is int for pair in found for time in pair)
        stretches += len(found)
    assert stretches > 1500


@pytest.mark.parametrize("silent", range(1, 8))
@pytest.mark.parametrize("longest", [True, False])
@pytest.mark.parametrize("rate", [16_000, 8_000])
def test_pauses_of_every_length_at_a_cut(rate, silent, longest):
    """Speech that is too long, with a pause of `silent` windows of 32 ms; 96 and 128 ms are whole windows."""
    probabilities = np.concatenate([np.ones(9), np.zeros(silent), np.ones(9), np.zeros(3), np.full(60, 0.7)])
    length = len(probabilities) * WINDOWS[rate]
    for least in (0, 64, 96, 98, 100, 128):
        options = {
            "max_speech_duration_s": 1,
            "min_silence_duration_ms": 224,
            "min_silence_at_max_speech": least,
            "use_max_poss_sil_at_max_speech": longest,
        }
        found = speech_timestamps(probabilities, num_samples=length, sampling_rate=rate, **options)
        assert found == upstream(probabilities, length, rate, **options)
        assert len(found) > 1


def test_probabilities_are_compared_as_float32():
    """The float32 next to 0.35 lies below 0.35: as a double the same number would not end the speech."""
    probabilities = np.concatenate([np.ones(10), np.full(10, 0.35), np.ones(10)])
    length = 30 * 512
    expected = upstream(probabilities, length, 16_000)
    assert len(expected) == 2
    for given in (probabilities, probabilities.tolist(), probabilities.astype(np.float32)):
        assert speech_timestamps(given, num_samples=length) == expected


@pytest.mark.parametrize("decimals", [0, 1, 3])
def test_seconds_are_rounded_as_the_original_does(decimals):
    dice = np.random.default_rng(decimals)
    for _ in range(50):
        probabilities = random_probabilities(dice, {})
        length = max(0, len(probabilities) * 512 - int(dice.integers(0, 512)))
        found = speech_timestamps(probabilities, num_samples=length)
        expected = upstream(probabilities, length, 16_000, return_seconds=True, time_resolution=decimals)
        assert in_seconds(found, num_samples=length, time_resolution=decimals) == expected


def test_no_audio_and_all_speech():
    assert speech_timestamps([], num_samples=0) == []
    assert speech_timestamps(np.zeros(100), num_samples=51_200) == []
    assert speech_timestamps(np.ones(100), num_samples=51_111) == [(0, 51_111)]
    pieces = speech_timestamps(np.ones(1000), num_samples=512_000, max_speech_duration_s=5)
    assert len(pieces) > 6 and all(end - start <= 5 * 16_000 for start, end in pieces)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("threshold", (-0.1, 1.1, float("nan"))),
        ("neg_threshold", (-0.1, 0.6, float("nan"))),
        ("min_speech_duration_ms", (-1, float("nan"), float("inf"))),
        ("max_speech_duration_s", (-1, float("nan"))),
        ("min_silence_duration_ms", (-1, float("inf"))),
        ("speech_pad_ms", (-1, float("inf"))),
        ("min_silence_at_max_speech", (-1, float("nan"))),
        ("sampling_rate", (44_100, 0)),
        ("num_samples", (512, 1025, 2000)),
    ],
)
def test_options_out_of_range(option, values):
    for value in values:
        with pytest.raises(OptionError, match=option) as caught:
            speech_timestamps([0.5, 0.5], **{"num_samples": 1024, option: value})
        assert "\n" not in str(caught.value)


class Loudness:
    """A model for `detect_speech`: the level of each window as its probability."""

    def __init__(self) -> None:
        self.rates: list[int] = []
        self.heard = np.zeros(0, np.float32)

    def __call__(self, audio: mx.array, sample_rate: int = 16_000, state: object = None) -> mx.array:
        assert isinstance(audio, mx.array)
        self.rates.append(sample_rate)
        self.heard = np.array(audio)
        window = WINDOWS[sample_rate]
        padded = np.pad(np.array(audio), (0, -audio.size % window))
        return mx.array(np.abs(padded).reshape(-1, window).mean(axis=1))


@pytest.mark.parametrize("rate", [8_000, 16_000, 32_000, 48_000])
def test_detect_speech_is_the_originals_at_every_rate(rate):
    dice = np.random.default_rng(rate)
    audio = np.repeat(dice.choice([0.0, 0.4, 0.9], 40), rate // 10)[: -rate // 7].astype(np.float32)
    audio *= dice.uniform(0.9, 1.1, audio.size).astype(np.float32)
    model = Loudness()
    regions = detect_speech(audio, model, sample_rate=rate, min_speech_duration_ms=50)
    low = min(rate, 16_000)
    assert model.rates == [low] and np.array_equal(model.heard, audio[:: rate // low])
    probabilities = np.array(model(mx.array(audio[:: rate // low]), low))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it decimates
        model = Scripted(probabilities)
        expected = silero_vad.get_speech_timestamps(
            torch.from_numpy(audio), model, sampling_rate=rate, min_speech_duration_ms=50
        )
    assert len(expected) > 2
    assert regions == [Region(speech["start"] / rate, speech["end"] / rate) for speech in expected]


def test_detect_speech_refuses_before_it_works():
    def model(*_: object, **__: object) -> mx.array:
        raise RuntimeError("the model was run")

    for wrong in (0, -16_000, 44_100, 24_000):
        with pytest.raises(OptionError, match="sample rate"):
            detect_speech(np.zeros(1000), model, sample_rate=wrong)
    with pytest.raises(OptionError, match="threshold"):
        detect_speech(np.zeros(1000), model, threshold=2)
    with pytest.raises(AudioError, match="shape"):
        detect_speech(np.zeros((2, 1000)), model)
    assert detect_speech(np.zeros(0), model) == []


@pytest.fixture(scope="module")
def original() -> torch.nn.Module:
    return silero_vad.load_silero_vad()


def originals_probabilities(model: torch.nn.Module, audio: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model.audio_forward(torch.from_numpy(audio)[None], 16_000)[0].numpy()


@pytest.mark.parametrize("name", ["vad/silero_test.wav", "en/jfk.flac", "en/acoustic_corpus.wav"])
def test_real_recordings(original, name):
    """The original's own probabilities, and its function run on the sound."""
    path = DATA / "audio" / name
    if not path.exists():
        absent(f"{path} is not here: set MLX_SPEECH_TEST_DATA")
    audio = load_audio(path, max_duration=600)[: 40 * 16_000]
    probabilities = originals_probabilities(original, audio)
    direct = silero_vad.get_speech_timestamps(torch.from_numpy(audio), original)
    assert upstream(probabilities, audio.size, 16_000) == [(speech["start"], speech["end"]) for speech in direct]
    for options in OPTIONS:
        found = speech_timestamps(probabilities, num_samples=audio.size, **options)
        assert found and found == upstream(probabilities, audio.size, 16_000, **options)


def test_the_demo_and_its_truth(original):
    """What the original hears in the demo lies within 0.15 s of where the utterances were put."""
    audio = load_audio(DEMO / "pauses.flac")
    truth = json.loads((DEMO / "pauses.json").read_text())
    assert audio.size == truth["samples"]
    assert (DEMO / "pauses.flac").stat().st_size < 400_000
    probabilities = originals_probabilities(original, audio)
    regions = detect_speech(audio, lambda *_, **__: mx.array(probabilities))
    assert len(regions) == len(truth["regions"]) >= 5
    for region, known in zip(regions, truth["regions"], strict=True):
        assert abs(region.start - known["start"]) < 0.15
        assert abs(region.end - known["end"]) < 0.15
        inside = audio[round(known["start"] * 16_000) : round(known["end"] * 16_000)]
        assert np.abs(inside[[0, -1]]).max() < 0.01 * np.abs(inside).max() + 0.005
    for before, after in zip(truth["regions"], truth["regions"][1:], strict=False):
        pause = audio[round(before["end"] * 16_000) : round(after["start"] * 16_000)]
        assert np.abs(pause).max() < 0.002


def test_the_demo_can_be_made_again():
    """To the last bit but one: the resampling differs between processors."""
    if not shutil.which("espeak-ng") or "1.51" not in subprocess.getoutput("espeak-ng --version"):
        pytest.skip("espeak-ng 1.51 is not installed")
    samples, truth = make_pauses.make()
    assert truth == json.loads((DEMO / "pauses.json").read_text())
    assert np.abs(samples - load_audio(DEMO / "pauses.flac") * 32768).max() <= 1


REGIONS = [Region(0, 1.23456), Region(10.5, 3723.0004)]


def test_writers():
    assert Region(1.5, 2.0).duration == 0.5
    assert regions_to_text(REGIONS) == "0.000\t1.235\n10.500\t3723.000\n"
    assert json.loads(regions_to_json(REGIONS)) == [{"start": 0, "end": 1.235}, {"start": 10.5, "end": 3723.0}]
    assert json.loads(regions_to_json([])) == []
    assert regions_to_text([]) == regions_to_rttm([], "a") == ""
    lines = regions_to_rttm(REGIONS, "my recording\t1").splitlines()
    assert lines[0] == "SPEAKER my_recording_1 1 0.000 1.235 <NA> <NA> speech <NA> <NA>"
    assert all(len(line.split()) == 10 for line in lines)
    assert len(regions_to_rttm(REGIONS, " \n").split()) == 20


@pytest.mark.parametrize("rate, seconds", [(16_000, 10.0), (8_000, 9.99)])
def test_long_recordings_go_block_by_block(monkeypatch: pytest.MonkeyPatch, rate: int, seconds: float) -> None:
    from mlx_speech import steps
    from mlx_speech.stages import vad

    audio = load_audio(real("data/audio/vad/silero_test.wav"), sample_rate=rate)[: int(seconds * rate)]
    model = mlx_speech.load("silero_vad")
    whole = steps.run(vad._probability_steps(audio, model, rate))
    monkeypatch.setattr(vad, "SECONDS_PER_BLOCK", 1.024)
    done: list[float] = []
    blocks = steps.run(vad._probability_steps(audio, model, rate), done.append)
    assert done == sorted(done) and len(done) == 10 and done[-1] == audio.size / rate
    assert blocks.shape == whole.shape and np.abs(blocks - whole).max() < 1e-6
    assert len(vad.detect_speech(audio, model, sample_rate=rate)) > 1


def test_detection_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_speech import steps
    from mlx_speech.stages import vad

    audio = load_audio(real("data/audio/vad/silero_test.wav"))
    model = mlx_speech.load("silero_vad")
    seconds: list[float] = []
    regions = steps.run(vad.detect_speech_steps(audio, model), seconds.append)
    assert seconds == [pytest.approx(30, abs=0.1), 60.0]
    monkeypatch.setattr(vad, "SECONDS_PER_BLOCK", 1e9)
    assert regions == detect_speech(audio, model)
