"""The demo models beside their originals: trained weights, in the classes of openai-whisper, transformers and
pyannote.audio, on recordings that training never saw."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import tiktoken
import torch
import whisper.audio
import whisper.decoding
import whisper.timing
import whisper.tokenizer
from scripted import same_noise
from test_diarize import same as same_speakers
from test_longform import _text, openai, same
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC, WhisperForConditionalGeneration
from whisper.model import ModelDimensions, Whisper

sys.path.insert(0, str(Path(__file__).parents[1]))  # demo/ has the class of the narrow WeSpeaker

import mlx_speech
from mlx_speech import load_audio, package_data
from mlx_speech.languages import LANGUAGES
from mlx_speech.stages.align import align, log_probabilities
from mlx_speech.stages.chunks import cut_chunks
from mlx_speech.stages.diarize import diarize
from mlx_speech.stages.vad import detect_speech
from mlx_speech.stages.whisper import batched, decode, word_times
from mlx_speech.stages.whisper.decode import DecodingOptions, Job
from mlx_speech.stages.whisper.longform import transcribe_sequential
from mlx_speech.stages.whisper.time_warping import dtw
from mlx_speech.stages.whisper.tokenizer import Tokenizer
from mlx_speech.transcript import Segment

RECORDINGS = sorted((Path(__file__).parent / "data" / "demo").glob("espeak-*.opus"))
CONFIG = json.loads((package_data.DEMO / "whisper" / "config.json").read_text(encoding="utf-8"))
WINDOW = 0.02 * CONFIG["max_source_positions"]  # seconds
PIECES = 20
# transformers' names → openai-whisper's, in this order
NAMES = (
    *(("model.", ""), ("layers.", "blocks."), ("encoder_attn_layer_norm", "cross_attn_ln")),
    *(("self_attn_layer_norm", "attn_ln"), ("encoder_attn", "cross_attn"), ("self_attn", "attn")),
    *(("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "out"), ("fc1", "mlp.0")),
    *(("fc2", "mlp.2"), ("final_layer_norm", "mlp_ln"), ("encoder.layer_norm", "encoder.ln_post")),
    *(("decoder.layer_norm", "decoder.ln"), ("embed_positions.weight", "positional_embedding")),
    ("embed_tokens", "token_embedding"),
)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


pytestmark = pytest.mark.usefixtures("shared_cache")


@pytest.fixture(scope="module")
def pieces() -> list[np.ndarray]:
    """Of at most a window, cut at pauses: (samples,) each."""
    found: list[np.ndarray] = []
    vad = mlx_speech.load("silero_vad")
    for path in RECORDINGS:
        audio = load_audio(path)
        regions = detect_speech(audio, vad, max_speech_duration_s=WINDOW)
        chunks = cut_chunks(regions, duration=audio.size / 16000, chunk_size=WINDOW)
        found += [batched.samples_of(audio, chunk) for chunk in chunks]
        if len(found) >= PIECES:
            return found[:PIECES]
    raise AssertionError("too few recordings")


# --- Whisper ---------------------------------------------------------------------------------------------------------


class _Whisper(Whisper):
    """openai-whisper tells by the size of the vocabulary what a model knows; that of the demo is its own."""

    is_multilingual, num_languages = True, 99


@dataclass
class Pair:
    theirs: Any
    ours: Any
    tokenizer: Tokenizer
    encoding: tiktoken.Encoding


@pytest.fixture(scope="module")
def pair() -> Pair:
    folder = package_data.DEMO / "whisper"
    source = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    config, state = source.config, {}
    for name, tensor in source.state_dict().items():
        for old, new in NAMES:
            name = name.replace(old, new)
        state[name] = tensor
    del state["proj_out.weight"]
    sizes = (config.num_mel_bins, config.max_source_positions, config.d_model, config.encoder_attention_heads)
    text = (config.max_target_positions, config.d_model, config.decoder_attention_heads, config.decoder_layers)
    theirs = _Whisper(ModelDimensions(*sizes, config.encoder_layers, config.vocab_size, *text))
    theirs.load_state_dict(state)
    heads = torch.zeros(config.decoder_layers, config.decoder_attention_heads, dtype=torch.bool)
    for layer, head in source.generation_config.alignment_heads:
        heads[layer, head] = True
    theirs.register_buffer("alignment_heads", heads.to_sparse(), persistent=False)
    ours = mlx_speech.load(folder, dtype="float32")
    assert batched.samples_per_window(ours) == round(16000 * WINDOW) < 16000 * 30
    return Pair(theirs.eval(), ours, Tokenizer.find(ours.folder, ours.args.n_vocab), _encoding(folder))


def _encoding(folder: Path) -> tiktoken.Encoding:
    """tokenizer.json as openai-whisper keeps vocabularies: every token's bytes and rank."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable} | {chr(256 + k): byte for k, byte in enumerate(others)}
    ranks = {bytes(alphabet[letter] for letter in token): k for token, k in content["model"]["vocab"].items()}
    special = {token["content"]: token["id"] for token in content["added_tokens"]}
    return tiktoken.Encoding("demo", pat_str=GPT2, mergeable_ranks=ranks, special_tokens=special)


@pytest.fixture
def _vocabulary(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """openai-whisper with the demo's vocabulary and its window, which its constants say."""
    monkeypatch.setattr(whisper.tokenizer, "get_encoding", lambda **_: pair.encoding)
    monkeypatch.setattr(openai, "N_FRAMES", round(100 * WINDOW))
    monkeypatch.setattr(openai, "N_SAMPLES", round(16000 * WINDOW))
    monkeypatch.setattr(whisper.decoding, "CHUNK_LENGTH", WINDOW)
    whisper.tokenizer.get_tokenizer.cache_clear()
    yield
    whisper.tokenizer.get_tokenizer.cache_clear()


@pytest.mark.usefixtures("_vocabulary")
def test_the_vocabulary_is_read_alike(pair: Pair) -> None:
    theirs = whisper.tokenizer.get_tokenizer(True, num_languages=99, language="en", task="transcribe")
    ours, text = pair.tokenizer, " Anna sold seven boats on Monday. Unheard-of words, 42 é!"
    assert ours.encode(text) == theirs.encode(text) and ours.decode(ours.encode(text)) == text
    assert ours.non_speech_tokens == theirs.non_speech_tokens
    assert ours.sot_sequence("en", "transcribe") == theirs.sot_sequence
    for name in ("eot", "sot", "sot_prev", "no_speech", "no_timestamps", "timestamp_begin"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert list(ours.languages) == list(LANGUAGES)[:99]


@pytest.mark.usefixtures("_vocabulary")
@pytest.mark.parametrize("beams", [None, 5], ids=["greedy", "beam"])
def test_decoding_is_that_of_openai(beams: int | None, pair: Pair, pieces: list[np.ndarray]) -> None:
    options = DecodingOptions(temperature=(0.0,), beam_size=beams)
    encoded = batched.encode(pieces, pair.ours)
    jobs = [Job(row, "en", key=key) for key, row in enumerate(encoded)]
    found = {job.key: result for job, result in decode.decode(jobs, pair.ours, pair.tokenizer, options)}
    for key, piece in enumerate(pieces):
        mel = whisper.audio.log_mel_spectrogram(whisper.audio.pad_or_trim(piece, round(16000 * WINDOW)), 80)
        with torch.no_grad():
            audio = pair.theirs.encoder(mel[None])
            theirs = whisper.DecodingOptions(language="en", beam_size=beams, fp16=False)
            expected = whisper.decode(pair.theirs, audio[0], theirs)
        assert np.abs(np.array(encoded[key]) - audio[0].numpy()).max() <= 1e-3
        assert found[key].tokens == tuple(expected.tokens)
        assert found[key].avg_logprob == pytest.approx(expected.avg_logprob, abs=1e-4)
        assert found[key].no_speech_prob == pytest.approx(expected.no_speech_prob, abs=1e-4)
    assert sum(len(result.tokens) for result in found.values()) > 5 * PIECES


def _both(pair: Pair, audio: np.ndarray, **options: Any) -> tuple[Segment, ...]:
    """The segments, which are the same."""
    with torch.no_grad():
        expected = openai.transcribe(pair.theirs, audio, language="en", fp16=False, **options)
    own = {name: options.pop(name) for name in ("word_timestamps", "condition_on_previous_text") if name in options}
    found = transcribe_sequential(audio, pair.ours, pair.tokenizer, DecodingOptions(**options), language="en", **own)
    spoken = [segment for segment in expected["segments"] if segment["tokens"] and segment["text"].strip()]
    same(found, spoken, audio.size / 16_000)
    return found


@pytest.fixture
def _alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream writes special tokens into the text whose compression it measures; its words are not tidied."""
    monkeypatch.setattr(whisper.tokenizer.Tokenizer, "decode", _text)
    monkeypatch.setattr(word_times, "tidy", lambda words, start, end: tuple(words))
    monkeypatch.setattr(whisper.timing, "dtw", lambda x: np.stack(dtw([x.numpy()])[0]))  # takes long to compile
    same_noise(monkeypatch)


@pytest.mark.usefixtures("_vocabulary", "_alike")
def test_fallback_is_that_of_openai(pair: Pair, pieces: list[np.ndarray]) -> None:
    """With a threshold that half of the pieces miss."""
    sure = [_both(pair, piece, temperature=(0.0,)) for piece in pieces[:10]]
    threshold = float(np.median([segment.avg_logprob for segments in sure for segment in segments]))
    options = {"temperature": (0.0, 0.4, 0.8), "best_of": 2, "logprob_threshold": threshold}
    found = [segment for piece in pieces for segment in _both(pair, piece, **options)]
    temperatures = [segment.temperature for segment in found]
    assert temperatures.count(0.0) > 3 and len(found) - temperatures.count(0.0) > 3


@pytest.mark.usefixtures("_vocabulary", "_alike")
@pytest.mark.parametrize("prompted, words", [(False, False), (True, False), (False, True)])
def test_whole_recordings_are_those_of_openai(prompted: bool, words: bool, pair: Pair) -> None:
    """prompted : by the text so far, which the model was not trained for"""
    options = {"temperature": (0.0,), "condition_on_previous_text": prompted, "word_timestamps": words}
    for path in RECORDINGS[:2] if not (prompted or words) else RECORDINGS[2:3]:
        found = _both(pair, load_audio(path), **options)
        assert all(bool(segment.words) == words for segment in found)
        assert prompted or (len(found) > 5 and found[-1].end > 50)


# --- wav2vec2 --------------------------------------------------------------------------------------------------------


class _Emissions:
    """transformers' model in place of ours."""

    def __init__(self, original: Any, ours: Any) -> None:
        self.original, self.args, self.num_frames = original, ours.args, ours.num_frames

    def __call__(self, sound: mx.array, lengths: mx.array) -> mx.array:
        frames = self.num_frames(sound.shape[1])
        result = np.zeros((sound.shape[0], frames, self.args.vocab_size), np.float32)
        for row, samples, length in zip(result, np.array(sound), lengths.tolist(), strict=True):
            with torch.no_grad():
                logits = self.original(torch.from_numpy(samples[None, :length])).logits[0].numpy()
            row[: len(logits)] = logits
        return mx.array(result)


def test_alignment_is_that_of_transformers(pieces: list[np.ndarray]) -> None:
    """Logits, and the times of words by them."""
    folder = package_data.DEMO / "wav2vec2"
    original = Wav2Vec2ForCTC.from_pretrained(folder, dtype=torch.float32).eval()
    prepare = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    ours: Any = mlx_speech.load(folder, dtype="float32")
    found, frames = log_probabilities(pieces, ours)
    scale, furthest = [], 0.0
    for k, piece in enumerate(pieces):
        with torch.no_grad():
            sound = prepare(piece, sampling_rate=16000, return_tensors="pt").input_values
            logits = original(sound).logits[0].log_softmax(dim=-1).numpy()
        assert logits.shape[0] == frames[k]
        furthest = max(furthest, float(np.abs(np.array(found[k, : frames[k]]) - logits).max()))
        scale.append(logits.std())
    assert furthest <= 1e-3 * np.mean(scale)

    texts = ["Anna sold seven boats on Monday and eighty eight more", "Please bring some cold bottles from London"]
    for k, piece in enumerate(pieces):
        segments = [Segment(0.0, piece.size / 16000, texts[k % 2])]
        ((segment,), (expected,)) = (
            align(segments, piece, m, language="en") for m in (ours, _Emissions(original, ours))
        )
        assert [(w.text, w.start, w.end) for w in segment.words] == [(w.text, w.start, w.end) for w in expected.words]
        np.testing.assert_allclose([w.score for w in segment.words], [w.score for w in expected.words], atol=2e-3)


# --- diarization -----------------------------------------------------------------------------------------------------


def test_diarization_is_that_of_pyannote() -> None:
    from pyannote.audio import Pipeline

    folder = package_data.DEMO / "diarization"
    original, ours, speakers = Pipeline.from_pretrained(folder), mlx_speech.load(folder, dtype="float32"), set()
    for path in RECORDINGS[:3]:
        audio = load_audio(path)[: 25 * 16000]
        expected = original({"waveform": torch.from_numpy(audio)[None], "sample_rate": 16000, "uri": path.stem})
        found = diarize(audio, ours)
        same_speakers(found, expected, tolerance=1e-3)
        speakers.add(len(found.embeddings))
    assert max(speakers) > 1
