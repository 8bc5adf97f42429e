"""The ways that a GPU takes, taken on a CPU: what they give is what the CPU's give, and in float16 nearly so."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlx_speech
from mlx_speech import Pipeline, load_audio, names
from mlx_speech.blas import as_on_gpu
from mlx_speech.features import log_mel
from mlx_speech.loading import Models
from mlx_speech.package_data import ASSETS, DEMO
from mlx_speech.stages.align import log_probabilities
from mlx_speech.stages.whisper import search
from mlx_speech.stages.whisper.batched import encode
from mlx_speech.stages.whisper.decode import DecodingOptions, Job
from mlx_speech.stages.whisper.fallback import decode_with_fallback
from mlx_speech.stages.whisper.tokenizer import Tokenizer

SECONDS = 10  # of the demo's conversation
SAME = 1e-4  # largest difference of float32, in standard deviations of what is compared
NEARLY = 0.04  # the same of float16; 0.02 is reached


pytestmark = pytest.mark.usefixtures("shared_cache")


@pytest.fixture(autouse=True)
def _own_cache() -> None:
    """In place of every test's own."""


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return load_audio(DEMO / "conversation.flac")[: SECONDS * 16_000]


def outputs(dtype: str, speech: np.ndarray) -> dict[str, np.ndarray]:
    """What the package's models say of some seconds."""
    whisper: Any = mlx_speech.load(str(DEMO / "whisper"), dtype=dtype)
    window = whisper.args.n_audio_ctx * 320
    encoded = whisper.encoder(log_mel(mx.array(speech), whisper.args.n_mels, samples=window)[None])
    cache = whisper.decoder.new_cache(2, 1)
    prompts = [[1, 2, 3], [4, 5]]
    logits, _ = whisper.decoder.prefill(cache, [0, 1], mx.concatenate([encoded, encoded]), prompts, [0, 0])
    steps = [logits]
    for token in range(5):
        steps.append(whisper.decoder.step(cache, mx.array([[token], [token + 3]]))[:, 0])
    wav2vec2: Any = mlx_speech.load(str(DEMO / "wav2vec2"), dtype=dtype)
    emissions, frames = log_probabilities([speech[:80_000], speech[:50_000]], wav2vec2)
    diarization: Any = mlx_speech.load(str(DEMO / "diarization"), dtype=dtype)
    campplus: Any = mlx_speech.load(str(ASSETS / "pyannet_campplus"), dtype=dtype)
    masks = np.zeros((1, 2, 589), np.int8)
    masks[0, 0, :300] = 1
    masks[0, 1, 250:] = 1
    sound = mx.array(speech)[None]
    weights = [whisper.encoder.conv1.weight, wav2vec2.lm_head.weight, diarization.segmentation.lstm[0].Wx]
    weights += [diarization.embedding.conv1.weight, campplus.embedding.head.conv1.weight]
    assert {str(array.dtype) for array in weights} == {f"mlx.core.{dtype}"}
    found = {
        "encoder": encoded,
        "decoder": mx.stack(steps),
        "alignment": mx.concatenate([mx.exp(emissions[0]), mx.exp(emissions[1, : frames[1]])]),
        "segmentation": mx.exp(diarization.segmentation(sound)),
        "wespeaker": diarization.embedding.embed(sound, masks),
        "campplus": campplus.embedding.embed(sound, masks),
    }
    return {name: np.array(array.astype(mx.float32)) for name, array in found.items()}


def test_every_model_says_the_same_and_in_float16_nearly(speech: np.ndarray) -> None:
    expected = outputs("float32", speech)
    with as_on_gpu():
        whole = outputs("float32", speech)
        half = outputs("float16", speech)
    for name, values in expected.items():
        assert np.isfinite(values).all() and values.std() > 0, name
        assert np.abs(whole[name] - values).max() <= SAME * values.std(), name
        difference = np.abs(half[name] - values).max()
        assert 0 < difference <= NEARLY * values.std(), name


def test_whisper_is_in_float16_by_default_where_there_is_a_gpu() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu, 0))
        named, found, asked = Models(), Models(DEMO / "whisper"), Models(DEMO / "whisper", dtype="float32")
    assert named.whisper_source == names.DEFAULT_GPU and Models().whisper_source == names.DEFAULT_CPU
    for models, dtype in ((found, mx.float16), (asked, mx.float32), (Models(DEMO / "whisper"), mx.float32)):
        assert models.whisper().model.encoder.conv1.weight.dtype == dtype


def test_the_whole_pipeline_in_float16_hears_the_same(speech: np.ndarray) -> None:
    with Pipeline.demo(dtype="float32") as pipeline:
        expected = pipeline(speech, diarize=True)
    with as_on_gpu(), Pipeline.demo(dtype="float16") as pipeline:
        found = pipeline(speech, diarize=True)
    assert found.text == expected.text and len(expected.text.split()) > 15
    words = [word for segment in expected.segments for word in segment.words]
    same = [word for segment in found.segments for word in segment.words]
    assert [(word.text, word.speaker) for word in same] == [(word.text, word.speaker) for word in words]
    for word, other in zip(words, same, strict=True):
        assert other.start == pytest.approx(word.start, abs=0.04)  # two frames
        assert other.end == pytest.approx(word.end, abs=0.04)


# --- decoding ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def heard(speech: np.ndarray) -> tuple[Any, Tokenizer, list[Job]]:
    """The demo's Whisper, its tokenizer, and stretches of speech of many lengths to decode."""
    whisper: Any = mlx_speech.load(str(DEMO / "whisper"), dtype="float32")
    tokenizer = Tokenizer.find(whisper.folder, whisper.args.n_vocab)
    jobs = []
    for place, seconds in enumerate([5, 1, 3, 2, 6, 4, 1, 5]):
        sound = speech[place * 8000 : place * 8000 + seconds * 16_000]
        jobs.append(Job(encode([sound], whisper)[0], "en", key=place, seed=place))
    return whisper, tokenizer, jobs


OPTIONS = [
    DecodingOptions(temperature=(0.0,)),
    DecodingOptions(temperature=(0.0,), without_timestamps=True, sample_len=9),
    DecodingOptions(temperature=(0.7,), best_of=3, seed=4),
    DecodingOptions(temperature=(0.0, 0.5), best_of=2, logprob_threshold=-0.05),  # most are tried again
    DecodingOptions(temperature=(0.0,), beam_size=3),
]


def decoded(heard: tuple[Any, Tokenizer, list[Job]], options: DecodingOptions, batch_size: int = 3) -> dict[int, Any]:
    whisper, tokenizer, jobs = heard
    return {
        job.key: result
        for job, result in decode_with_fallback(jobs, whisper, tokenizer, options, batch_size=batch_size)
    }


@pytest.mark.parametrize("options", OPTIONS)
def test_texts_are_those_of_the_cpu(heard: tuple[Any, Tokenizer, list[Job]], options: DecodingOptions) -> None:
    expected = decoded(heard, options)
    with as_on_gpu():
        found = decoded(heard, options)
    assert found.keys() == expected.keys()
    assert len({len(result.tokens) for result in expected.values()}) > 1  # rows end at different steps
    for key, result in expected.items():
        other = found[key]
        assert (other.tokens, other.text, other.temperature) == (result.tokens, result.text, result.temperature)
        assert other.token_logprobs == pytest.approx(result.token_logprobs, abs=1e-3)
        assert other.avg_logprob == pytest.approx(result.avg_logprob, abs=1e-4)
        assert other.no_speech_prob == pytest.approx(result.no_speech_prob, abs=1e-5)


@pytest.mark.parametrize("steps", [0, 1, 50])
def test_how_often_the_host_looks_changes_nothing(
    heard: tuple[Any, Tokenizer, list[Job]], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with as_on_gpu():
        expected = decoded(heard, OPTIONS[0])
        monkeypatch.setattr(search, "CHECK_EVERY_ON_GPU", steps)
        found = decoded(heard, OPTIONS[0])
    assert {key: result.tokens for key, result in found.items()} == {
        key: result.tokens for key, result in expected.items()
    }
