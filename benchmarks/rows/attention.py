"""Row 4, the part of Whisper: what words' times by cross-attention and dynamic time warping cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks import models
from benchmarks.rows.whisper_checks import OFF, OPTIONS, TOKENS, special
from benchmarks.suite import OURS, Call, Row

TORCH = {"cpu": "cpu", "metal": "mps", "cuda": "cuda"}
MLX_WHISPER = "mlx-whisper, word_timestamps=True"


def row(device: str, quick: bool) -> Row:
    windows = 1 if quick else 4
    return Row(
        "words/attention",
        f"Whisper tiny with word times, {windows} × 30 s, {TOKENS} tokens each, greedy; beside it the same without",
        {
            OURS: attention_ours,
            f"{OURS}, no word times": attention_ours_without,
            MLX_WHISPER: attention_mlx_whisper,
        },
        {"device": device, "quick": quick, "windows": windows},
        agree_attention,
        seconds=30 * windows,
        count=TOKENS * windows,
        targets={f"{OURS}, no word times": 1 / 1.25},
        most=5 if device != "cpu" else 3,
        once=() if device != "cpu" else (MLX_WHISPER,),
    )


def attention_ours(device: str, quick: bool, windows: int, words: bool = True) -> Call:
    models.use_mlx(device)
    import mlx_speech
    from mlx_speech.options import Options
    from mlx_speech.stages.whisper import batched
    from mlx_speech.stages.whisper.tokenizer import Tokenizer
    from mlx_speech.transcript import Chunk

    folder = models.whisper("tiny", quick).ours
    model = mlx_speech.load(folder, dtype="float32" if device == "cpu" else "float16")
    tokenizer, audio = Tokenizer.find(folder, model.args.n_vocab), models.speech(30 * windows)
    options = Options.of(temperature=0.0, suppress_tokens=special(models.whisper("tiny", quick)), **OPTIONS, **OFF)

    def call() -> list[Any]:
        chunks = [Chunk(30.0 * k, 30.0 * (k + 1)) for k in range(windows)]
        tasks = [
            batched.Task(k, chunk, batched.samples_of(audio, chunk), "en", words) for k, chunk in enumerate(chunks)
        ]
        results = batched.transcribe(tasks, model, tokenizer, options.decoding, batch_size=windows)
        found = {task.key: own for task, own in results}
        return [_plain(found[k], 30.0 * k) for k in range(windows)]

    return call


def _plain(segments: Any, start: float) -> tuple[list[int], list[float]]:
    """Tokens of a window, and when its words begin."""
    tokens = [token for segment in segments for token in segment.tokens]
    return tokens, [word.start - start for segment in segments for word in segment.words]


def attention_ours_without(**arguments: Any) -> Call:
    return attention_ours(**arguments, words=False)


def attention_mlx_whisper(device: str, quick: bool, windows: int) -> Call:
    """What its `transcribe` does with a window; that itself would read on from the last word, so more windows."""
    models.use_mlx(device, ours=False)
    import mlx.core as mx
    from mlx_whisper import audio, decoding, load_models, timing, tokenizer

    dtype = mx.float32 if device == "cpu" else mx.float16
    model = load_models.load_model(str(models.whisper("tiny", quick).mlx_whisper), dtype)
    heads = json.loads((models.whisper("tiny", quick).ours / "config.json").read_text())["alignment_heads"]
    model.alignment_heads = mx.array(heads)  # its weights name none, so it would take half of all
    known = tokenizer.get_tokenizer(True, num_languages=model.num_languages, language="en", task="transcribe")
    options = decoding.DecodingOptions(
        language="en", suppress_tokens=special(models.whisper("tiny", quick)), fp16=device != "cpu", **OPTIONS
    )
    samples = models.speech(30 * windows).reshape(windows, -1)

    def window(own: np.ndarray) -> tuple[list[int], list[float]]:
        mel = audio.log_mel_spectrogram(own, n_mels=model.dims.n_mels)[: audio.N_FRAMES].astype(dtype)
        result = decoding.decode(model, mel, options)
        segment: dict[str, Any] = {"seek": 0, "start": 0.0, "end": 30.0, "tokens": result.tokens, "words": []}
        timing.add_word_timestamps(segments=[segment], model=model, tokenizer=known, mel=mel,
            num_frames=audio.N_FRAMES, last_speech_timestamp=0.0)  # fmt: skip
        return list(result.tokens), [word["start"] for word in segment["words"]]

    return lambda: [window(own) for own in samples]


def agree_attention(outputs: Mapping[str, list[tuple[list[int], list[float]]]]) -> str:
    ours = outputs[OURS]
    assert {len(tokens) for own in outputs.values() for tokens, _ in own} == {TOKENS}
    same, close = [], []
    for other in outputs.values():
        for (tokens, starts), (their_tokens, their_starts) in zip(ours, other, strict=True):
            same.append(tokens == their_tokens)
            if their_starts and same[-1]:
                assert len(starts) == len(their_starts), (len(starts), len(their_starts))
                close.append(np.abs(np.array(starts) - np.array(their_starts)) <= 0.021)  # one frame
    share = float(np.concatenate(close).mean())
    assert np.mean(same) >= 0.7 and share >= 0.95, (same, share)
    return f"{sum(same)} of {len(same)} texts equal, {100 * share:.1f} % of their words begin within a frame"
