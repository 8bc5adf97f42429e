"""Row 2: Whisper's encoder, and its decoder at batch 1, 4, 8 and 16.

The decoder starts from audio that is encoded already; how it decodes, see `whisper_checks`.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from benchmarks import models
from benchmarks.rows import whisper_checks as checks
from benchmarks.rows import whisper_peers as peers
from benchmarks.suite import OURS, Call, Row

BY_ONE, BATCHED = "mlx_speech, one by one", "mlx-whisper, batched"
REAL = (("tiny.en", 1), ("tiny.en", 8), ("base", 1), ("base", 4), ("base", 8), ("base", 16))  # decoders, batches
RANDOM = (("tiny", 1), ("tiny", 4), ("tiny", 8), ("tiny", 16))
# On a CPU, where those that do no better with a batch are timed; at the others it would be a multiple of that.
ON_CPU = {("base", 1, "mlx-whisper"), ("base", 1, "mlx-audio"), ("base", 4, BATCHED)}
ON_CPU |= {("base", 8, BY_ONE), ("base", 8, "mlx-whisper")}
SAMPLE = np.s_[:, ::100]  # of the encoder's positions, to compare

Files = models.Whisper


def rows(device: str, quick: bool) -> list[Row]:
    if quick:
        return [_encoder("tiny", 2, device, quick), *(_decoder("tiny", n, device, quick) for n in (1, 2))]
    gpu, real = device != "cpu", models.are_at_hand()
    found = [
        _encoder("base" if real else "tiny", 16 if gpu else 4, device),
        _encoder("small", 16 if gpu else 1, device),
    ]
    found += [_decoder(size, batch, device) for size, batch in (REAL if real else RANDOM)]
    return found + [_decoder("small", batch, device) for batch in ((1, 4, 8, 16) if gpu else ())]


def _files(size: str, quick: bool) -> Files:
    """With OpenAI's weights, or random ones."""
    return models.real_whisper(size) if size in ("base", "tiny.en") else models.whisper(size, quick)


def _encoder(size: str, windows: int, device: str, quick: bool = False) -> Row:
    files, gpu = _files(size, quick), device != "cpu"
    contenders: dict[str, Any] = {OURS: ours_encoder, "mlx-whisper": mlx_whisper_encoder}
    contenders |= {"mlx-audio": mlx_audio_encoder} if gpu or size == "tiny" else {}  # on a CPU as slow as mlx-whisper
    contenders |= {"openai-whisper": openai_encoder}
    contenders |= {"faster-whisper": faster_encoder, "faster-whisper int8": faster_int8_encoder}
    return Row(
        name=f"whisper/encoder-{size}",
        title=f"Whisper {size}, encoder, {windows} × 30 s at once",
        contenders=contenders,
        arguments={"files": files, "windows": windows, "device": device},
        agree=functools.partial(checks.agree_encoded, tolerance=5e-2 if gpu else 1e-3),
        seconds=30.0 * windows,
        work=checks.encoder_work(files.sizes, windows, 2 if gpu else 4),
        targets={"openai-whisper": 1.0} | ({} if gpu else {"mlx-whisper": 1.3, "faster-whisper": 1.0}),
        most=5 if gpu else 3,
        once=() if gpu else ("mlx-whisper",),
    )


def _decoder(size: str, batch: int, device: str, quick: bool = False) -> Row:
    files, gpu = _files(size, quick), device != "cpu"
    contenders: dict[str, Any] = {OURS: ours_decoder}
    contenders |= {name: ready for name, ready in SLOW.items() if gpu or quick or (size, batch, name) in ON_CPU}
    if batch == 1:
        contenders = {name: ready for name, ready in contenders.items() if name not in (BY_ONE, BATCHED)}
    if not files.transformers.exists():
        contenders.pop("mlx-audio", None)
    contenders |= {"openai-whisper": openai_decoder}
    contenders |= {"faster-whisper": faster_decoder, "faster-whisper int8": faster_int8_decoder}
    targets = {8: {BY_ONE: 2.5, "mlx-whisper": 3.5}} if not gpu else {16: {BY_ONE: 8.0, "openai-whisper": 1.0}}
    wanted = targets.get(batch, {}) | {"faster-whisper": 1.0}
    how = "real speech, each chunk to its end" if files.is_real else f"{checks.TOKENS} tokens each"
    return Row(
        name=f"whisper/decode-{size}-{batch}",
        title=f"Whisper {size}, decoder, batch {batch}, {how}",
        contenders=contenders,
        arguments={"files": files, "windows": batch, "device": device},
        agree=functools.partial(checks.agree_speech if files.is_real else checks.agree_tokens, exact=not gpu),
        count=lambda decoded: float(sum(checks.lengths(decoded))),
        work=lambda decoded: checks.decoder_work(files.sizes, checks.lengths(decoded), 2 if gpu else 4),
        targets={name: factor for name, factor in wanted.items() if name in contenders},
        most=5 if gpu else 3,
        once=() if gpu else ("mlx-whisper", BATCHED, "mlx-audio"),
    )


# --- contenders: the encoder ------------------------------------------------------------------------------------------


def ours_encoder(files: Files, windows: int, device: str) -> Call:
    return _mlx_encoder(peers.ours(files, device), files, windows, device)


def mlx_whisper_encoder(files: Files, windows: int, device: str) -> Call:
    return _mlx_encoder(peers.mlx_whisper(files, device), files, windows, device)


def mlx_audio_encoder(files: Files, windows: int, device: str) -> Call:
    return _mlx_encoder(peers.mlx_audio(files, device), files, windows, device)


def _mlx_encoder(model: Any, files: Files, windows: int, device: str) -> Call:
    mel = _mel(model, files, windows, device)
    return lambda: peers.plain(model.encoder(mel)[SAMPLE])


def _mel(model: Any, files: Files, windows: int, device: str) -> Any:
    return peers.mlx_mel(files, windows, device, type(model).__module__.startswith(OURS))


def openai_encoder(files: Files, windows: int, device: str) -> Call:
    import torch

    model = peers.openai(files, device)
    mel = peers.openai_mel(files, model, windows)
    return torch.no_grad()(lambda: model.encoder(mel)[SAMPLE].float().cpu().numpy())


def faster_encoder(files: Files, windows: int, device: str, kind: str = "float") -> Call:
    model = peers.faster_whisper(files, device, kind)
    mel = peers.faster_mel(files, model, windows)
    return lambda: peers.plain_ctranslate2(model.encode(mel))[SAMPLE]


def faster_int8_encoder(files: Files, windows: int, device: str) -> Call:
    return faster_encoder(files, windows, device, "int8")


# --- contenders: the decoder ------------------------------------------------------------------------------------------


def ours_decoder(files: Files, windows: int, device: str, batch: int | None = None) -> Call:
    model = peers.ours(files, device)
    from mlx_speech.stages.whisper import decode, fallback
    from mlx_speech.stages.whisper.tokenizer import Tokenizer

    tokenizer = Tokenizer.find(model.folder, model.args.n_vocab)
    options = decode.DecodingOptions(**checks.our_options(files))
    jobs = [decode.Job(row, "en", key=k) for k, row in enumerate(_mlx_encoded(model, files, windows, device))]

    def call() -> list[checks.Decoded]:
        found = fallback.decode_with_fallback(jobs, model, tokenizer, options, batch_size=batch or windows)
        results = {job.key: result for job, result in found}
        return _decoded([results[k] for k in range(windows)])

    return call


def ours_by_one(files: Files, windows: int, device: str) -> Call:
    return ours_decoder(files, windows, device, batch=1)


def mlx_whisper_decoder(files: Files, windows: int, device: str) -> Call:
    model = peers.mlx_whisper(files, device)
    from mlx_whisper.decoding import DecodingOptions

    return _one_window(model, DecodingOptions, files, windows, device)


def mlx_audio_decoder(files: Files, windows: int, device: str) -> Call:
    model = peers.mlx_audio(files, device)
    from mlx_audio.stt.models.whisper.decoding import DecodingOptions

    return _one_window(model, DecodingOptions, files, windows, device)


def _one_window(model: Any, kind: Any, files: Files, windows: int, device: str) -> Call:
    """As their users have it: their `transcribe` decodes one window at a time."""
    encoded = _mlx_encoded(model, files, windows, device)
    options = kind(**checks.openai_options(files), fp16=device != "cpu")
    return lambda: _decoded([model.decode(row, options) for row in encoded])


def mlx_whisper_batched(files: Files, windows: int, device: str) -> Call:
    """Its `decode` takes several windows, though its `transcribe` never gives it more than one."""
    model = peers.mlx_whisper(files, device)
    import mlx.core as mx
    from mlx_whisper.decoding import DecodingOptions

    encoded = mx.stack(_mlx_encoded(model, files, windows, device))
    options = DecodingOptions(**checks.openai_options(files), fp16=device != "cpu")
    return lambda: _decoded(model.decode(encoded, options))


def _decoded(results: list[Any]) -> list[checks.Decoded]:
    return [(list(result.tokens), result.avg_logprob) for result in results]


def _mlx_encoded(model: Any, files: Files, windows: int, device: str) -> list[Any]:
    import mlx.core as mx

    rows = [row * 1 for row in model.encoder(_mel(model, files, windows, device))]
    mx.eval(rows)
    return rows


def openai_decoder(files: Files, windows: int, device: str) -> Call:
    import torch
    from whisper import DecodingOptions

    model = peers.openai(files, device)
    with torch.no_grad():
        encoded = model.encoder(peers.openai_mel(files, model, windows))
    options = DecodingOptions(**checks.openai_options(files), fp16=model.device.type != "cpu")
    return lambda: _decoded(model.decode(encoded, options))


def faster_decoder(files: Files, windows: int, device: str, kind: str = "float") -> Call:
    """CTranslate2's `generate` with what faster-whisper gives it for a batch; it writes half of `max_length`."""
    model = peers.faster_whisper(files, device, kind)
    from faster_whisper.tokenizer import Tokenizer
    from faster_whisper.transcribe import get_suppressed_tokens

    encoded = model.encode(peers.faster_mel(files, model, windows))
    multilingual = model.model.is_multilingual
    tokenizer = Tokenizer(model.hf_tokenizer, multilingual=multilingual, task="transcribe", language="en")
    prompt = model.get_prompt(tokenizer, [], without_timestamps=True)
    options: dict[str, Any] = {"return_scores": True, "return_no_speech_prob": True, "beam_size": 1}
    if files.is_real:
        options |= {"suppress_tokens": get_suppressed_tokens(tokenizer, [-1]), "max_length": model.max_length}
    else:
        options |= {"suppress_blank": False, "suppress_tokens": checks.special(files), "max_length": 2 * checks.TOKENS}

    def call() -> list[checks.Decoded]:
        found = model.model.generate(encoded, [prompt] * windows, **options)
        mean = checks.TOKENS / (checks.TOKENS + 1)  # it counts no end of text
        return [(result.sequences_ids[0], result.scores[0] * mean) for result in found]

    return call


def faster_int8_decoder(files: Files, windows: int, device: str) -> Call:
    return faster_decoder(files, windows, device, "int8")


SLOW: dict[str, Any] = {BY_ONE: ours_by_one, "mlx-whisper": mlx_whisper_decoder, "mlx-audio": mlx_audio_decoder}
SLOW |= {BATCHED: mlx_whisper_batched}
