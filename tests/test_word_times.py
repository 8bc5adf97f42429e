"""Word times from the cross-attention: openai/whisper's, run side by side on the same weights, tokens and numbers."""

from __future__ import annotations

import ast
import inspect
import math
from dataclasses import replace
from functools import lru_cache
from itertools import product
from typing import Any

import mlx.core as mx
import numpy as np
import originals as make
import pytest
import torch
import whisper.timing
import whisper.tokenizer
import whisper.utils
from conftest import real
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_speech.blas import on_cpu
from mlx_speech.errors import OptionError
from mlx_speech.models.whisper import Model, ModelArgs
from mlx_speech.ops.alignment_matrix import (
    alignment_matrix,
    alignment_matrix_graph,
    alignment_matrix_numpy,
    median_filter,
)
from mlx_speech.stages.whisper import word_times
from mlx_speech.stages.whisper.decode import DecodingOptions, Job, decode
from mlx_speech.stages.whisper.time_warping import dtw
from mlx_speech.stages.whisper.tokenizer import Tokenizer
from mlx_speech.stages.whisper.word_times import WordTiming
from mlx_speech.transcript import Segment, Word

HEADS = [[1, 0], [3, 2], [2, 1], [3, 0]]
DIMS = {"n_mels": 80, "n_audio_ctx": 1500, "n_audio_state": 64, "n_audio_head": 4, "n_audio_layer": 1}
DIMS |= {"n_text_ctx": 448, "n_text_state": 64, "n_text_head": 4, "n_text_layer": 4}
VOCABULARIES = {"english": 51864, "multilingual": 51865, "v3": 51866}


class Encoded(torch.nn.Module):
    """An encoder whose input is encoded already."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def converted(original: Any, dims: dict[str, int], **options: Any) -> Model:
    """Only its decoder."""
    model = Model(ModelArgs(**dims, **options))
    state = original.decoder.state_dict()
    weights = {name.replace("mlp.0", "mlp1").replace("mlp.2", "mlp2"): mx.array(t.numpy()) for name, t in state.items()}
    model.decoder.load_weights(list(weights.items()))
    return model


def set_heads(original: Any, heads: list[list[int]]) -> None:
    mask = torch.zeros(original.dims.n_text_layer, original.dims.n_text_head, dtype=torch.bool)
    mask[tuple(torch.tensor(heads).T)] = True
    original.register_buffer("alignment_heads", mask.to_sparse(), persistent=False)


@lru_cache(maxsize=3)
def pair(kind: str) -> tuple[Any, Model, Tokenizer]:
    """An original whose decoder looks where the audio is like its own position, the same in MLX, and the tokenizer."""
    dims = {**DIMS, "n_vocab": VOCABULARIES[kind]}
    original = make.whisper_openai(dims, seed=len(kind))
    for block in original.decoder.blocks:
        block.cross_attn.key.load_state_dict({"weight": block.cross_attn.query.weight})
        make.scale(block.cross_attn.query.weight, 6.0)
    make.scale(original.decoder.token_embedding.weight, 0.5)
    original.encoder = Encoded()
    set_heads(original, HEADS)
    model = converted(original, dims, alignment_heads=HEADS)
    return original, model, Tokenizer.find(None, dims["n_vocab"])


def encodings(batch: int, seed: int = 0, original: Any = None, steps: int = 100, num_frames: int = 3000) -> np.ndarray:
    """(batch, 1500, width): noise that changes slowly, and the decoder's positions in a walk at uneven speed."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(batch, 64, 1509))
    smooth = np.apply_along_axis(lambda row: np.convolve(row, np.ones(10) / 10, "valid"), 2, noise).transpose(0, 2, 1)
    if original is not None:
        walk = np.cumsum(rng.exponential(size=1500) ** 3)
        place = np.minimum(walk / walk[num_frames // 2 - 1] * steps, 447).astype(int)
        smooth = smooth + original.decoder.positional_embedding.detach().numpy()[place]
    return smooth.astype(np.float32)


def theirs(
    original: Any, encoded: np.ndarray, text: list[int], num_frames: int, language: str | None, task: str = "transcribe"
) -> list[whisper.timing.WordTiming]:
    tokenizer = whisper.tokenizer.get_tokenizer(
        original.is_multilingual, num_languages=original.num_languages, language=language, task=task
    )
    return whisper.timing.find_alignment(original, tokenizer, text, torch.from_numpy(encoded), num_frames)


def ours(
    model: Model, tokenizer: Tokenizer, encoded: np.ndarray, texts: list, num_frames: list[int], languages: list, **more
) -> list[list[WordTiming]]:
    return word_times.find_alignment(
        mx.array(encoded), texts, model, tokenizer, languages=languages, num_frames=num_frames, **more
    )


def same(found: list[WordTiming], expected: list[whisper.timing.WordTiming]) -> None:
    assert [w.word for w in found] == [w.word for w in expected]
    assert [list(w.tokens) for w in found] == [w.tokens for w in expected]
    assert [(w.start, w.end) for w in found] == [(w.start, w.end) for w in expected]
    np.testing.assert_allclose([w.probability for w in found], [w.probability for w in expected], rtol=1e-4)


TEXTS = {
    "plain": " And so, my fellow Americans: ask not what your country can do for you. Ask (if you can) what 'you' can!",
    "short": " Yes.",
    "quotes": ' He said, "I won\'t go there" -- and left... 1,234.50 dollars? ¿Qué? [noise]',
    "long": " The quick brown fox, which is quick, jumps over the lazy dog." * 12,
    "accents": " Größe, naïve façade – déjà vu; Ψυχή и мир. 🙂🙃",
}
CJK = {"zh": "今天天气很好，我们去公园散步吧。你好！", "ja": "こんにちは、世界。今日は「とても」良い天気です。"}


# --- find_alignment --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "num_frames"),
    [
        ("english", "plain", 3000),
        ("english", "short", 120),
        ("english", "long", 2999),
        ("english", "quotes", 1771),
        ("english", "accents", 640),
        ("multilingual", "plain", 1200),
        ("multilingual", "accents", 3000),
        ("v3", "quotes", 2222),
        ("v3", "long", 400),
    ],
)
def test_words_and_times_are_those_of_openai(kind: str, name: str, num_frames: int) -> None:
    original, model, tokenizer = pair(kind)
    language = None if kind == "english" else "de"
    text = tokenizer.encode(TEXTS[name])
    encoded = encodings(1, len(text), original, len(text), num_frames)
    expected = theirs(original, encoded[0], text, num_frames, language)
    found = ours(model, tokenizer, encoded, [text], [num_frames], [language])[0]
    same(found, expected)
    if name != "short":  # or the times pile up, and equality says little
        assert len({w.start for w in found}) > min(0.6 * len(found), num_frames / 10)
    assert "".join(w.word for w in found) == TEXTS[name]


@pytest.mark.parametrize("language", ["zh", "ja"])
@pytest.mark.parametrize("task", ["transcribe", "translate"])
def test_languages_without_spaces(language: str, task: str) -> None:
    original, model, tokenizer = pair("v3")
    text = tokenizer.encode(CJK[language])
    encoded = encodings(1, seed=5)
    expected = theirs(original, encoded[0], text, 1400, language, task)
    same(ours(model, tokenizer, encoded, [text], [1400], [language], task=task)[0], expected)
    assert len(expected) > 12


def test_a_batch_gives_what_its_rows_give_alone() -> None:
    original, model, tokenizer = pair("multilingual")
    texts = [tokenizer.encode(TEXTS[name]) for name in ("plain", "short", "long", "quotes")]
    texts = [*texts[:2], [], *texts[2:], tokenizer.encode(CJK["zh"])]
    languages, frames = ["en", "de", "en", "fr", "es", "zh"], [3000, 90, 1000, 2400, 1333, 700]
    encoded = encodings(6, 11, original)
    found = ours(model, tokenizer, encoded, texts, frames, languages)
    assert found[2] == []
    for row, (text, language, count) in enumerate(zip(texts, languages, frames, strict=True)):
        same(found[row], theirs(original, encoded[row], text, count, language))
        alone = ours(model, tokenizer, encoded[row : row + 1], [text], [count], [language])[0]
        assert [replace(w, probability=0) for w in alone] == [replace(w, probability=0) for w in found[row]]


def test_nothing_to_align() -> None:
    _, model, tokenizer = pair("english")
    assert ours(model, tokenizer, encodings(2), [[], []], [3000, 3000], [None, None]) == [[], []]


@pytest.mark.parametrize("num_frames", [0, 1, 2, 3, 4, 6, 7, 8, 9, 14])
@pytest.mark.filterwarnings("ignore:std_mean")
def test_windows_of_a_few_frames(num_frames: int) -> None:
    """Ten milliseconds hold no position of the encoder: upstream's words are then 0.02 s before the window."""
    original, model, tokenizer = pair("english")
    text, encoded = tokenizer.encode(TEXTS["plain"]), encodings(1, seed=2)
    found = ours(model, tokenizer, encoded, [text], [num_frames], [None])[0]
    same(found, theirs(original, encoded[0], text, num_frames, None))
    words = [Word(w.start, w.end, w.word, score=w.probability) for w in found]
    tidied = word_times.tidy(words, 0.0, num_frames / 100)
    assert len(tidied) == len(words) and all(0 <= w.start <= w.end <= num_frames / 100 for w in tidied)


def test_tokens_that_are_no_whole_characters() -> None:
    original, model, tokenizer = pair("multilingual")
    text = tokenizer.encode(" ok 🙃🙂 好")[:-1]  # half of a character at the end
    encoded = encodings(1, seed=3)
    same(
        ours(model, tokenizer, encoded, [text], [800], ["en"])[0],
        theirs(original, encoded[0], text, 800, "en"),
    )
    for token in text:
        expected = theirs(original, encoded[0], [token], 800, "en")
        same(ours(model, tokenizer, encoded, [[token]], [800], ["en"])[0], expected)


def test_a_text_beyond_the_context() -> None:
    _, model, tokenizer = pair("english")
    fits = [tokenizer.encode(" a")[0]] * 445  # with sot, notimestamps and eot
    assert len(ours(model, tokenizer, encodings(1), [fits], [3000], [None])[0]) == 445
    with pytest.raises(OptionError, match="449 tokens: this decoder takes 448"):
        ours(model, tokenizer, encodings(1), [fits + fits[:1]], [3000], [None])


def test_the_decoder_gives_the_logits_it_always_gives() -> None:
    _, model, _ = pair("english")
    tokens, encoded = mx.array([[50257, 50362, 11, 400, 13]]), mx.array(encodings(1))
    states, scores = model.decoder.cross_attention(tokens, model.decoder.read_audio(encoded), [(0, 1), (3, 3)])
    assert [(layer.shape, layer.dtype) for layer in scores] == [((1, 1, 5, 1500), mx.float32)] * 2
    cache = model.decoder.new_cache(1, 1)
    last, third = model.decoder.prefill(cache, [0], encoded, tokens.tolist(), [2])  # as text is decoded
    expected = model.decoder.token_embedding.as_linear(states)
    np.testing.assert_allclose(np.array(last), np.array(expected[:, -1]), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.array(third), np.array(expected[:, 2]), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not on_cpu(), reason="a GPU keeps the order of every other key")
@pytest.mark.parametrize("rows", [1, 2])
def test_what_is_attended_to_of_the_audio_lies_in_the_order_of_a_step(rows: int) -> None:
    _, model, _ = pair("english")
    decoder = model.decoder
    encoded = mx.array(encodings(rows))
    cache = decoder.new_cache(rows, 1)
    decoder.prefill(cache, list(range(rows)), encoded, [[50257, 50362]] * rows, [0] * rows)
    for block, in_cache, read in zip(decoder.blocks, cache.audio, decoder.read_audio(encoded), strict=True):
        wanted = block.cross_attn.keys_values(encoded.flatten(0, 1), rows)
        for of_rows, found, expected in zip(in_cache, read, wanted, strict=True):
            np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-4, atol=1e-4)
            for row, array in enumerate(of_rows):
                assert np.array_equal(array, np.array(found[row]).swapaxes(1, 2)) and array.flags.c_contiguous
            assert not any(np.shares_memory(of_rows[0], other) for other in of_rows[1:])
    # a row that leaves gives its memory back, whoever entered beside it
    held = cache.audio[0][0][0]
    while isinstance(held.base, np.ndarray):
        held = held.base
    assert held.nbytes == cache.audio[0][0][0].nbytes


@pytest.mark.parametrize("heads", [[(0, 1)], [(0, 0), (2, 3)], [(1, 2), (3, 0), (3, 3)]])
def test_the_scores_alone_are_those_beside_the_states(heads: list[tuple[int, int]]) -> None:
    _, model, _ = pair("english")
    tokens, encoded = mx.array([[50257, 50362, 11, 400, 13]] * 2), mx.array(encodings(2))
    _, expected = model.decoder.cross_attention(tokens, model.decoder.read_audio(encoded), heads)
    found = model.decoder.cross_attention_scores(tokens, model.decoder.read_audio(encoded), heads)
    assert len(found) == len(expected) == len({layer for layer, _ in heads})
    for own, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.array(own), np.array(wanted), rtol=1e-5, atol=1e-5)


def test_words_without_probabilities_stand_where_they_stand_with_them() -> None:
    original, model, tokenizer = pair("english")
    texts = [tokenizer.encode(TEXTS["plain"]), [], tokenizer.encode(TEXTS["short"])]
    encoded = encodings(3, original=original)
    with_them = ours(model, tokenizer, encoded, texts, [3000, 3000, 120], [None] * 3)
    without = ours(model, tokenizer, encoded, texts, [3000, 3000, 120], [None] * 3, probabilities=False)
    assert all(math.isnan(word.probability) for words in without for word in words)
    for words, expected in zip(without, with_them, strict=True):
        assert [(w.word, w.tokens, w.start, w.end) for w in words] == [
            (w.word, w.tokens, w.start, w.end) for w in expected
        ]


@pytest.mark.skipif(not on_cpu(), reason="a GPU keeps no audio beside its cache")
@pytest.mark.parametrize("options", [DecodingOptions(sample_len=3), DecodingOptions(sample_len=3, beam_size=2)])
def test_words_of_the_audio_that_a_result_brings_are_those_of_the_encoded(options: DecodingOptions) -> None:
    """Rows are entered again and given up; one text that brings no audio, and all are made of what was encoded."""
    original, model, tokenizer = pair("english")
    encoded = encodings(5, original=original)
    texts = [tokenizer.encode(TEXTS["plain"]), tokenizer.encode(TEXTS["quotes"]), [], tokenizer.encode(TEXTS["short"])]
    texts.append(tokenizer.encode(TEXTS["accents"]))
    jobs = [Job(mx.array(row), "en", key=place) for place, row in enumerate(encoded)]
    results = {job.key: result for job, result in decode(jobs, model, tokenizer, options, batch_size=2)}
    audio = [results[place].audio for place in range(5)]
    frames, languages = [3000] * 5, [None] * 5
    expected = ours(model, tokenizer, encoded, texts, frames, languages)
    nothing = np.zeros_like(encoded)
    for some in (audio, [*audio[:2], None, *audio[3:]]):  # no text, no audio
        found = ours(model, tokenizer, nothing, texts, frames, languages, audio=some)
        assert [len(words) for words in found] == [len(words) for words in expected]
        for words, wanted in zip(found, expected, strict=True):
            assert [(w.word, w.tokens, w.start, w.end) for w in words] == [
                (w.word, w.tokens, w.start, w.end) for w in wanted
            ]
            np.testing.assert_allclose([w.probability for w in words], [w.probability for w in wanted], rtol=1e-4)
    assert ours(model, tokenizer, encoded, texts, frames, languages, audio=[None, *audio[1:]]) == expected


ALL = [(layer, head) for layer in (2, 3) for head in range(4)]


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (None, ALL),
        ([], ALL),
        ([[4, 0]], ALL),
        ([[1, 0], [25, 6]], ALL),  # a teacher's
        ([[0, 4]], ALL),
        ([[1]], ALL),
        ([[3, 1], [0, 2], [3, 1]], [(0, 2), (3, 1)]),
    ],
)
def test_alignment_heads(heads: list | None, expected: list) -> None:
    args = ModelArgs(**DIMS, n_vocab=51864, alignment_heads=heads)
    assert word_times.alignment_heads(args) == expected


def test_heads_that_do_not_exist_fall_back_to_those_of_openai() -> None:
    original, model, tokenizer = pair("english")
    set_heads(original, [list(pair) for pair in ALL])
    model.args.alignment_heads = [[7, 0], [10, 17]]
    try:
        text, encoded = tokenizer.encode(TEXTS["plain"]), encodings(1, seed=9)
        found = ours(model, tokenizer, encoded, [text], [2000], [None])[0]
        same(found, theirs(original, encoded[0], text, 2000, None))
    finally:
        set_heads(original, HEADS)
        model.args.alignment_heads = HEADS


def test_the_real_tiny_en() -> None:
    """Trained weights on the encoding of a recording; only the token embedding is random."""
    from safetensors.torch import load_file
    from whisper.model import ModelDimensions, Whisper

    folder = real("weights/whisper-tiny.en-partial")
    state = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    generator = torch.Generator().manual_seed(3)
    state["decoder.token_embedding.weight"] = 0.05 * torch.randn((51864, 384), generator=generator)
    dims = {**make.TINY, "n_vocab": 51864}
    original = Whisper(ModelDimensions(**dims)).eval()
    original.load_state_dict({"encoder.positional_embedding": original.encoder.positional_embedding, **state})
    original.encoder = Encoded()
    heads = [[1, 0], [2, 0], [2, 5], [3, 0], [3, 1], [3, 2], [3, 3], [3, 4]]
    set_heads(original, heads)
    golden = np.load(folder / "golden_jfk_encoder.npz")
    encoded = next(golden[name] for name in golden.files if golden[name].shape[-1] == 384).reshape(1, 1500, 384)
    tokenizer = Tokenizer.find(None, 51864)
    text = tokenizer.encode(TEXTS["plain"])
    found = ours(converted(original, dims, alignment_heads=heads), tokenizer, encoded, [text], [1100], [None])[0]
    same(found, theirs(original, encoded[0], text, 1100, None))


# --- its parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5, 6, 7, 8, 50])
def test_median_filter(length: int) -> None:
    rng = np.random.default_rng(length)
    x = rng.integers(0, 9, size=(3, 4, length)).astype(np.float32)  # with ties
    for values in (x, rng.normal(size=x.shape).astype(np.float32), np.where(rng.random(x.shape) < 0.2, np.nan, x)):
        expected = whisper.timing.median_filter(torch.from_numpy(values), 7)
        np.testing.assert_array_equal(np.array(median_filter(mx.array(values), mx)), expected.numpy())
        np.testing.assert_array_equal(median_filter(values, np), expected.numpy())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(1, 1, 20), (3, 2, 2), (8, 40, 700)])
def test_both_alignment_matrices_agree(shape: tuple[int, ...]) -> None:
    scores = np.random.default_rng(1).normal(size=shape, scale=3).astype(np.float32)
    graph = np.array(alignment_matrix_graph(mx.array(scores)))
    for found in (alignment_matrix_numpy(scores), np.array(alignment_matrix(mx.array(scores)))):
        np.testing.assert_allclose(found, graph, rtol=1e-4, atol=1e-5)
    assert graph.shape == shape[1:] and np.isnan(graph).all() == (shape[1] == 1)


@pytest.mark.filterwarnings("error")
def test_a_frame_that_no_token_looks_at_spoils_its_neighbours_only() -> None:
    scores = np.random.default_rng(1).normal(size=(8, 40, 700), scale=3).astype(np.float32)
    scores[..., 300] -= 100
    expected = np.array(alignment_matrix_graph(mx.array(scores)))
    found = alignment_matrix_numpy(scores)
    assert np.isfinite(found[:, :297]).all() and np.isfinite(found[:, 304:]).all()
    for frames in (slice(0, 297), slice(304, None)):
        np.testing.assert_allclose(found[:, frames], expected[:, frames], rtol=1e-4, atol=1e-5)


def _matrices() -> Any:
    values = st.sampled_from([0.0, 0.0, 1.0, 2.0, -1.0, 0.5, float("nan")])
    shapes = st.tuples(st.integers(1, 7), st.integers(0, 9))
    return shapes.flatmap(
        lambda shape: st.lists(values, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]).map(
            lambda flat: np.array(flat, dtype=np.float64).reshape(shape)
        )
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(_matrices(), min_size=1, max_size=4))
def test_dtw_takes_the_path_of_openai(costs: list[np.ndarray]) -> None:
    for cost, path in zip(costs, dtw(costs), strict=True):
        np.testing.assert_array_equal(path, whisper.timing.dtw_cpu(cost))


def test_dtw_of_a_large_matrix() -> None:
    cost = np.random.default_rng(0).normal(size=(180, 1500)).astype(np.float32).astype(np.float64)
    np.testing.assert_array_equal(dtw([cost])[0], whisper.timing.dtw_cpu(cost))


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 1), (2, 3), (3, 3), (4, 3), (3, 5)])
def test_dtw_finds_the_cheapest_path(shape: tuple[int, int]) -> None:
    def cheapest(i: int, j: int) -> float:
        if i < 0 or j < 0:
            return np.inf
        before = min(cheapest(i - 1, j - 1), cheapest(i - 1, j), cheapest(i, j - 1)) if i or j else 0.0
        return float(cost[i, j]) + before

    for seed in range(20):
        cost = np.random.default_rng(seed).normal(size=shape).astype(np.float32)  # no ties
        rows, columns = dtw([cost])[0]
        assert (rows[0], columns[0]) == (0, 0) and (rows[-1] + 1, columns[-1] + 1) == shape
        steps = set(zip(np.diff(rows), np.diff(columns), strict=True))
        assert steps <= {(0, 1), (1, 0), (1, 1)}
        assert cost[rows, columns].sum() == pytest.approx(cheapest(shape[0] - 1, shape[1] - 1), abs=1e-5)


# --- words in their segments -----------------------------------------------------------------------------------------

WORDS = [
    " hello",
    " world",
    "ing",
    ".",
    ",",
    "?",
    "。",
    "！",
    ' "',
    '"',
    " (",
    ")",
    " [",
    " -",
    "-",
    "你",
    "好",
    " ",
    ' "¿',
]
WORDS += [" ¿", "'", " '", "a ", " .", "...", "、"]
TIMESTAMP = 50363
EOT = 50256


def _timings() -> Any:
    duration = st.sampled_from([0.0, 0.02, 0.1, 0.14, 0.2, 0.2, 0.3, 0.3, 0.46, 0.9, 1.6, 3.0, 7.5])
    one = st.tuples(st.sampled_from(WORDS), st.integers(1, 3), duration, duration, st.sampled_from([0.05, 0.4, 0.9]))
    return st.lists(one, max_size=14)


@st.composite
def windows(draw: Any) -> tuple[list[WordTiming], list[dict[str, Any]], float, int]:
    timings, time, count = [], 0.0, 0
    for word, tokens, pause, duration, probability in draw(_timings()):
        start = time + (pause if draw(st.booleans()) else 0.0)
        time = start + duration
        timings.append(WordTiming(word, tuple(range(count, count + tokens)), start, time, probability))
        count += tokens
    bounds = sorted(draw(st.lists(st.integers(0, count), max_size=3)))
    seek = draw(st.sampled_from([0, 137, 3000, 12345]))
    segments = []
    for first, last in zip([0, *bounds], [*bounds, count], strict=True):
        start, length = draw(st.sampled_from([0.0, 0.3, 1.0, 2.5, 4.0])), draw(st.sampled_from([0.0, 0.5, 1.0, 6.0]))
        start += seek / 100
        tokens = [TIMESTAMP, *range(first, last), TIMESTAMP + 10]
        segments.append({"seek": seek, "start": start, "end": start + length, "tokens": tokens})
    return timings, segments, draw(st.sampled_from([0.0, 0.5, 1.5])) + seek / 100 - 0.5, seek


def upstream(timings: list[WordTiming]) -> list[whisper.timing.WordTiming]:
    return [
        whisper.timing.WordTiming(w.word, list(w.tokens), np.float64(w.start), np.float64(w.end), w.probability)
        for w in timings
    ]


@settings(max_examples=400, deadline=None)
@given(windows())
def test_words_are_placed_as_openai_places_them(window: Any) -> None:
    timings, segments, last_speech, seek = window
    tokenizer: Any = type("T", (), {"eot": EOT})()
    mine = [Segment(s["start"], s["end"], "", tokens=tuple(s["tokens"])) for s in segments]
    found = word_times.place_words(
        mine, timings, offset=seek * 160 / 16000, last_speech=last_speech, tokenizer=tokenizer
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whisper.timing, "find_alignment", lambda *_, **__: upstream(timings))
        nothing: Any = None
        whisper.timing.add_word_timestamps(
            segments=segments, model=nothing, tokenizer=tokenizer, mel=nothing, num_frames=0,
            last_speech_timestamp=last_speech,
        )  # fmt: skip
    assert [(s.start, s.end) for s in found] == [(s["start"], s["end"]) for s in segments]
    assert [[(w.start, w.end, w.text, w.score) for w in s.words] for s in found] == [
        [(w["start"], w["end"], w["word"], w["probability"]) for w in s["words"]] for s in segments
    ]
    assert word_times.get_end(found) == whisper.utils.get_end(segments)
    judges = upstream_judges()
    for mine_, theirs_ in zip(found, segments, strict=True):
        assert word_times.is_anomalous(mine_) == judges["is_segment_anomaly"](theirs_)
    later = judges["next_words_segment"](segments)
    assert word_times.next_words_segment(found) is (None if later is None else found[segments.index(later)])


@settings(max_examples=200, deadline=None)
@given(windows())
def test_punctuation_is_merged_as_openai_merges_it(window: Any) -> None:
    expected = upstream(window[0])
    whisper.timing.merge_punctuations(expected, word_times.PREPEND_PUNCTUATIONS, word_times.APPEND_PUNCTUATIONS)
    assert [(w.word, list(w.tokens), w.start, w.end) for w in word_times.merge_punctuations(window[0])] == [
        (w.word, w.tokens, w.start, w.end) for w in expected if w.word
    ]


def test_the_punctuation_is_that_of_openai() -> None:
    defaults = inspect.signature(whisper.timing.add_word_timestamps).parameters
    assert defaults["prepend_punctuations"].default == word_times.PREPEND_PUNCTUATIONS
    assert defaults["append_punctuations"].default == word_times.APPEND_PUNCTUATIONS


def test_no_segments() -> None:
    tokenizer: Any = None
    assert word_times.place_words([], [], offset=0, last_speech=0, tokenizer=tokenizer) == []
    assert word_times.get_end([]) is None and whisper.utils.get_end([]) is None


@lru_cache(maxsize=1)
def upstream_judges() -> dict[str, Any]:
    """openai/whisper has them inside `transcribe`."""
    tree = ast.parse(inspect.getsource(inspect.getmodule(whisper.transcribe)))
    names = ("word_anomaly_score", "is_segment_anomaly", "next_words_segment")
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in names]
    marks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "punctuation"
    ]
    module = ast.parse("from typing import List, Optional")
    module.body += [*marks, *found]
    scope: dict[str, Any] = {}
    exec(compile(module, "transcribe", "exec"), scope)
    return scope


@pytest.mark.parametrize(
    ("duration", "score"), list(product([0.0, 0.1, 0.132, 0.133, 0.5, 2.0, 2.5, 9.0], [0, 0.1, 0.149, 0.15, 1]))
)
def test_anomaly_score(duration: float, score: float) -> None:
    theirs_ = {"word": " a", "start": 3.0, "end": 3.0 + duration, "probability": score}
    found = word_times.anomaly_score(Word(3.0, 3.0 + duration, " a", score=score))
    assert found == upstream_judges()["word_anomaly_score"](theirs_)


def test_anomalous_segments() -> None:
    good, bad = Word(0.0, 0.3, " good", score=0.9), Word(0.0, 3.5, " bad", score=0.1)
    mark = Word(0.0, 0.0, "!", score=0.0)
    assert not word_times.is_anomalous(None) and not word_times.is_anomalous(Segment(0, 1, "good"))
    assert not word_times.is_anomalous(Segment(0, 1, "good", words=(good, good, mark, mark)))
    assert word_times.is_anomalous(Segment(0, 1, "bad", words=(bad, bad, good, good)))
    assert not word_times.is_anomalous(Segment(0, 1, "late", words=(good,) * 8 + (bad,) * 3))


times = st.floats(-5, 20, allow_nan=False)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(times, times, st.sampled_from([" a", "b", " ", "c d "]))), st.floats(0, 5), st.floats(0, 9))
def test_tidy_words_stay_inside_and_in_order(rows: list, start: float, length: float) -> None:
    end = start + length
    words = [Word(a, b, text, score=0.5) for a, b, text in rows]
    found = word_times.tidy(words, start, end)
    assert [w.text for w in found] == [w.text.strip() for w in words if w.text.strip()]
    edges = [time for w in found for time in (w.start, w.end)]
    assert edges == sorted(edges) and all(start <= time <= end for time in edges)
    assert word_times.tidy(found, start, end) == found


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(times, times, st.lists(st.tuples(times, times), max_size=3)), max_size=8), st.floats(0.01, 9))
def test_tidy_segments_all_last_and_are_in_order(rows: list, length: float) -> None:
    start, end = 2.0, 2.0 + length
    segments = [Segment(a, b, f"s{k}", tuple(Word(*w, "w") for w in words)) for k, (a, b, words) in enumerate(rows)]
    found = word_times.tidy_segments(segments, start, end)
    assert [(s.text, len(s.words)) for s in found] == [(s.text, len(s.words)) for s in segments]
    edges = [time for segment in found for time in (segment.start, segment.end)]
    assert edges == sorted(edges) and all(start <= time <= end for time in edges)
    shortest = min(0.02, length / max(1, len(segments)))
    assert all(segment.end - segment.start > 0.9 * shortest for segment in found)
    spoken = [time for segment in found for word in segment.words for time in (word.start, word.end)]
    assert spoken == sorted(spoken)
    assert all(s.start <= word.start <= word.end <= s.end for s in found for word in s.words)


def test_tidy_segments_leaves_good_ones_alone_and_makes_room_for_others() -> None:
    good = [Segment(1.0, 2.0, "a", (Word(1.0, 1.5, "a"),)), Segment(2.0, 2.02, "b"), Segment(2.5, 3.0, "c")]
    assert word_times.tidy_segments(good, 1.0, 3.0) == good
    after = [Segment(1.0, 3.4, "a"), Segment(3.3, 3.2, "b", (Word(3.3, 3.5, "b"),))]
    assert word_times.tidy_segments(after, 1.0, 3.0) == [
        Segment(1.0, 2.98, "a"),
        Segment(2.98, 3.0, "b", (Word(3.0, 3.0, "b"),)),
    ]


def test_tidy_leaves_good_words_alone() -> None:
    words = (Word(1.0, 1.2, "a", score=0.3), Word(1.2, 1.2, "b"), Word(1.5, 2.0, "c"))
    assert word_times.tidy(words, 1.0, 2.0) == words
