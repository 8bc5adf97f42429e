"""Parity: the PyTorch original and the converted model on the same input, measured against a bar per family.

`original(plan)` builds the original from the same source; `measure(family, original, model, …)` compares. The tests use
the same measures. The bars hold for float32; half precision and quantized models are reported without one.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech import checkpoint, features, package_data
from mlx_speech.convert.port import Plan
from mlx_speech.errors import MissingDependency, ParityError
from mlx_speech.stages.vad import speech_timestamps

NEEDED = {
    "openai-whisper": ("torch", "whisper"),
    "transformers": ("torch", "transformers"),
    "torchaudio": ("torch", "torchaudio"),
    "pyannote.audio": ("torch", "pyannote.audio", "torchaudio"),
    "silero-vad": ("torch", "silero_vad"),
}


MOST_ROUNDING = 2e-3  # by which an original may differ from itself in float64


@dataclass(frozen=True)
class Row:
    """One figure of a parity table: it holds when `value` is at most `bar`, or at least, where `at_least`."""

    measure: str
    value: float
    bar: float
    at_least: bool = False

    @property
    def ok(self) -> bool:
        return bool(self.value >= self.bar if self.at_least else self.value <= self.bar)


@dataclass(frozen=True)
class Inputs:
    """What both sides are fed.

    audio : (samples,) at 16 kHz, at least 10 s
    sequences : how many random token sequences the Whisper decoder gets
    varied : refuse outputs of less variety than the bars ask for (5 labels, 4 powerset classes, 30 tokens);
        otherwise only outputs that are one and the same throughout
    """

    audio: np.ndarray
    sequences: int = 8
    varied: bool = False
    seed: int = 0


def table(rows: list[Row], bars: bool = True) -> str:
    """The rows as a Markdown table; without bars where they do not hold (half precision, quantized)."""
    head = "| measure | value | bar |\n|---|---|---|\n" if bars else "| measure | value |\n|---|---|\n"
    lines = []
    for row in rows:
        bar = f" {'≥' if row.at_least else '≤'} {row.bar:g} |" if bars else ""
        value = f"{row.value:.7g}" if row.at_least else f"{row.value:.3g}"
        lines.append(f"| {row.measure} | {value} |{bar}")
    return head + "\n".join(lines)


def check_installed(original: str) -> None:
    """Raises `MissingDependency` where the original cannot be run."""
    missing = [name for name in NEEDED.get(original, ()) if not _installed(name)]
    if not NEEDED.get(original):
        raise MissingDependency("verify=True needs an original to compare with, and this source is a converted model")
    if missing:
        names = ", ".join(missing)
        raise MissingDependency(f"verify=True needs {names}, missing here: pip install 'mlx-speech-toolkit[test]'")


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # its parent package is missing
        return False


def verified(part: Plan, folder: Path, dtype: str) -> list[Row]:
    """Parity of the model in `folder` with the original of its plan, on a recording that comes with the package."""
    from mlx_speech.audio import load_audio

    audio, model = load_audio(package_data.DEMO / "pauses.flac"), checkpoint.load_folder(folder, dtype=dtype)
    return measure(part.family, original(part), model, Inputs(audio))


def measure(family: str, original: Any, model: Any, inputs: Inputs) -> list[Row]:
    """Compare `original` (a torch module, or what stands for it) with `model`. Raises `ParityError` for degenerate
    outputs, which would prove nothing."""
    import torch

    with torch.no_grad():
        return MEASURES[family](original, model, inputs)


def refuse_degenerate(what: str, winners: np.ndarray, least: int, varied: bool) -> None:
    """Raises `ParityError` where fewer than `least` (or, unless `varied`, two) different values win."""
    found = len(np.unique(winners))
    if found < (least if varied else 2):
        raise ParityError(f"degenerate outputs: {found} different {what} win; they would prove nothing")


def _numpy(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32))


def _beside_rounding(name: str, own: float) -> tuple[str, float]:
    """The name and bar of a row whose original differs by `own` from itself in float64. Raises `ParityError` where that
    is so much that nothing is proven."""
    if own > MOST_ROUNDING:
        raise ParityError(f"the original in float32 is {own:.1e} from itself in float64: this input proves nothing")
    return f"{name} (the original's own rounding: {own:.1e})", 3 * own


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference."""
    return float(np.abs(one - other).max())


def silero_vad(original: Any, model: Any, inputs: Inputs) -> list[Row]:
    """original : the TorchScript model of the silero-vad package"""
    import silero_vad as upstream
    import torch

    rows = []
    for rate in model.args.sample_rates:
        audio = inputs.audio[:: 16000 // rate].astype(np.float32)
        window = 512 * rate // 16000
        original.reset_states()
        padded = np.pad(audio, (0, -len(audio) % window)).reshape(-1, window)
        expected = np.array([original(torch.from_numpy(w.copy()), rate).item() for w in padded], np.float32)
        found = np.array(model(mx.array(audio), rate))
        refuse_degenerate("probabilities", expected > 0.5, 2, inputs.varied)
        rows.append(Row(f"{rate} Hz: probability, max difference", _apart(expected, found), 1e-5))
        theirs = upstream.get_speech_timestamps(torch.from_numpy(audio.copy()), original, sampling_rate=rate)
        ours = speech_timestamps(found, num_samples=len(audio), sampling_rate=rate)
        same = [(t["start"], t["end"]) for t in theirs] == [(int(a), int(b)) for a, b in ours]
        rows.append(Row(f"{rate} Hz: {len(theirs)} speech timestamps identical", float(same), 1.0, at_least=True))
    return rows


def pyannet(original: Any, model: Any, inputs: Inputs) -> list[Row]:
    """original : pyannote.audio's PyanNet"""
    import torch

    size = int(model.args.duration * model.args.sample_rate)
    count = max(2, min(24, 2 * len(inputs.audio) // size))
    starts = np.linspace(0, max(0, len(inputs.audio) - size), count).astype(int)
    chunks = np.stack([np.resize(inputs.audio[start : start + size], size) for start in starts]).astype(np.float32)
    expected = original(torch.from_numpy(chunks)[:, None]).numpy()
    found = np.array(model(mx.array(chunks)))
    powerset = model.args.powerset_max_classes is not None
    classes, ours = (output.argmax(-1) if powerset else output > 0.5 for output in (expected, found))
    patterns = classes if powerset else classes @ (1 << np.arange(classes.shape[2]))
    refuse_degenerate("powerset classes" if powerset else "activity patterns", patterns, 4, inputs.varied)
    single = np.concatenate([np.array(model(mx.array(chunk[None]))) for chunk in chunks])
    # A filter that hears next to nothing is amplified by its norm, rounding and all: on some recordings the original in
    # float32 is further from itself in float64 than the bar is wide. Nothing can be nearer to it than that.
    exact = copy.deepcopy(original).double()(torch.from_numpy(chunks).double()[:, None]).numpy()
    own, name, bar, between = _apart(expected, exact), "output, max difference", 1e-4, 1e-4
    if own > bar:
        name, bar = _beside_rounding(name, own)
        between = 2 * bar  # products of another size are rounded another way, and either may be `bar` from the original
    return [
        Row(name, _apart(expected, found), bar),
        Row("same class, share of frames", float((classes == ours).mean()), 0.999, at_least=True),
        Row("batch and singles, max difference", _apart(single, found), between),
    ]


def wespeaker(original: Any, model: Any, inputs: Inputs) -> list[Row]:
    """original : pyannote.audio's WeSpeaker model (its `resnet` may be of any size)"""
    import torch

    rng, size = np.random.default_rng(inputs.seed), 3 * 16000
    starts = np.linspace(0, len(inputs.audio) - size, 3).astype(int)
    audio = np.stack([inputs.audio[start : start + size] for start in starts]).astype(np.float32)
    fbank = original.compute_fbank(torch.from_numpy(audio)[:, None])
    args = model.args
    options = {"num_mel_bins": args.num_mel_bins, "frame_length": args.frame_length, "frame_shift": args.frame_shift}
    ours = features.speaker_fbank(mx.array(audio), args.fbank_centering_span, args.sample_rate, **options)
    apart = np.abs(fbank.numpy() - np.array(ours))
    masks = (rng.random((3, 3, 177)) > 0.5).astype(np.float32)
    masks[0, 2] = 0  # nobody: the bias alone
    rows = [
        Row("filterbank, max difference", float(apart.max()), 2e-3),
        Row("filterbank, share within 1e-3", float((apart <= 1e-3).mean()), 0.9999, at_least=True),
    ]
    frames = original.resnet.forward_frames(fbank.clone())
    for name, weights in (("", None), (" with masks", masks)):
        torch_weights = None if weights is None else torch.from_numpy(weights)
        expected = original.resnet.forward_embedding(frames, weights=torch_weights)[1].numpy()
        found = _numpy(model(ours, None if weights is None else mx.array(weights)))
        expected, found = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (expected, found))
        spread = np.linalg.norm(expected - expected.mean(axis=0), axis=1) / np.linalg.norm(expected, axis=1)
        if not spread.max() > 1e-3:
            raise ParityError("degenerate outputs: one embedding for every input; they would prove nothing")
        norms = np.linalg.norm(expected, axis=1)
        cosine = (expected * found).sum(axis=1) / (norms * np.linalg.norm(found, axis=1))
        rows.append(Row(f"embedding{name}, least cosine", float(cosine.min()), 0.999999, at_least=True))
        difference = (np.abs(expected - found).max(axis=1) / norms).max()
        rows.append(Row(f"embedding{name}, max difference / norm", float(difference), 1e-3))
    return rows


def wav2vec2(original: Any, model: Any, inputs: Inputs) -> list[Row]:
    """original : (batch, samples) torch tensor → logits"""
    import torch

    lengths = [len(inputs.audio) // 2 // 7 * k for k in (7, 4, 2)]
    rows = [inputs.audio[n : 2 * n].astype(np.float32) for n in lengths]
    if model.args.do_normalize:
        rows = [np.array(features.normalize(mx.array(row)[None]))[0] for row in rows]
    expected = np.concatenate([original(torch.from_numpy(row)[None]).numpy()[0] for row in rows])
    refuse_degenerate("labels", expected.argmax(-1), 5, inputs.varied)
    single = [_numpy(model(mx.array(row)[None]))[0] for row in rows]
    padded = np.stack([np.pad(row, (0, lengths[0] - len(row)), constant_values=0.1) for row in rows])
    together = _numpy(model(mx.array(padded), mx.array(lengths)))
    together = [found[: len(s)] for found, s in zip(together, single, strict=True)]
    single, together = np.concatenate(single), np.concatenate(together)
    apart, batched, deviation = _apart(expected, single), _apart(single, together), float(expected.std())
    same = expected.argmax(-1) == single.argmax(-1)
    return [
        Row("logits, max difference / deviation", apart / deviation, 1e-3),
        Row("same label, share of frames", float(same.mean()), 0.999, at_least=True),
        Row("padded batch and singles, max difference / deviation", batched / deviation, 1e-3),
    ]


@dataclass(frozen=True)
class WhisperOriginal:
    """Either of the two originals: mel (batch, n_mels, frames) → encoded; tokens, encoded → logits; and the same
    original that computes in float64."""

    encode: Callable[[Any], Any]
    decode: Callable[[Any, Any], Any]
    in_float64: Callable[[], WhisperOriginal]


def encoder_row(original: WhisperOriginal, mel: Any, expected: Any, found: np.ndarray) -> Row:
    """What the two encoders make of the same mel, (batch, n_mels, frames).

    Trained Whispers have frames in which one channel is a hundred times the others, and the last norm divides by it:
    there the original's float32 may be further from its float64 than the bar is wide.
    """
    name, bar, apart = "encoder, max difference", 1e-3, _apart(expected.numpy(), found)
    if apart <= bar:
        return Row(name, apart, bar)
    own = _own_rounding(original.encode, original.in_float64().encode, mel)
    if own <= bar / 3:
        return Row(name, apart, bar)
    name, bar = _beside_rounding(name, own)
    return Row(name, apart, bar)


def _own_rounding(run: Callable[[Any], Any], exact: Callable[[Any], Any], x: Any, times: int = 4) -> float:
    """How far float32 may be from float64 on `x`: the most over inputs that float32 can hardly tell from each other. A
    single one may, by chance, be a third of that."""
    import torch

    expected = exact(x.double())
    dice = torch.Generator().manual_seed(0)
    inputs = [x]
    for _ in range(times - 1):
        ulps = torch.rand(x.shape, generator=dice) - 0.5
        inputs.append(x * (1 + ulps * torch.finfo(torch.float32).eps))
    return max(_apart(run(moved).numpy(), expected.numpy()) for moved in inputs)


def whisper(original: WhisperOriginal, model: Any, inputs: Inputs) -> list[Row]:
    """original : openai-whisper's model or transformers', in the form that stands for both"""
    import torch

    args, rng = model.args, np.random.default_rng(inputs.seed)
    samples = args.n_audio_ctx * 320
    pieces = (inputs.audio, inputs.audio[len(inputs.audio) // 2 :])
    mel = mx.stack([features.log_mel(mx.array(piece), args.n_mels, samples) for piece in pieces])
    their_mel = torch.from_numpy(np.array(mel)).transpose(1, 2).contiguous()
    expected = original.encode(their_mel)
    encoded = model.encoder(mel)
    # the decoders get the same (the original's) audio, so that each half is measured alone
    shared = mx.array(expected.numpy()).astype(encoded.dtype)
    # a few lengths from the shortest to the longest, each with many rows
    lengths = np.unique(np.geomspace(1, args.n_text_ctx, max(2, inputs.sequences // 8)).astype(int))
    rows_each, worst, same, deviation, winners = -(-inputs.sequences // len(lengths)), 0.0, [], [], []
    for length in lengths:
        tokens = rng.integers(0, args.n_vocab, (rows_each, int(length)))
        which = np.arange(rows_each) % 2
        theirs = original.decode(torch.from_numpy(tokens), expected[which]).numpy()
        ours = np.array(model.decoder(mx.array(tokens), shared[mx.array(which)]))
        worst = float(np.maximum(worst, _apart(theirs, ours)))  # NaN stays
        deviation.append(theirs.std())
        winners.append(theirs.argmax(-1).ravel())
        same.append(winners[-1] == ours.argmax(-1).ravel())
    refuse_degenerate("tokens", np.concatenate(winners), 30, inputs.varied)
    scale = float(np.mean(deviation))
    tokens = mx.array(rng.integers(0, args.n_vocab, (2, min(32, args.n_text_ctx))))
    whole = np.array(model.decoder(tokens, shared))
    cache = model.decoder.new_cache(2, 1)
    first, _ = model.decoder.prefill(cache, [0, 1], shared, tokens[:, :1].tolist(), [0, 0])
    steps = [first[:, None], *(model.decoder.step(cache, tokens[:, k : k + 1]) for k in range(1, tokens.shape[1]))]
    stepwise = np.array(mx.concatenate(steps, axis=1))
    single = np.concatenate([np.array(model.decoder(tokens[k : k + 1], shared[k : k + 1])) for k in range(2)])
    return [
        encoder_row(original, their_mel, expected, _numpy(encoded)),
        Row(f"decoder, {inputs.sequences} sequences: logits, max difference / deviation", worst / scale, 1e-3),
        Row("same next token, share", float(np.concatenate(same).mean()), 0.999, at_least=True),
        Row("step by step, max difference / deviation", _apart(stepwise, whole) / scale, 1e-3),
        Row("batch and singles, max difference / deviation", _apart(single, whole) / scale, 1e-3),
    ]


def plda(original: Any, model: Any, inputs: Inputs) -> list[Row]:
    """original : pyannote.audio's PLDA"""
    x = np.random.default_rng(inputs.seed).normal(size=(64, model.args.embedding_size))
    expected = original(x)
    with mx.stream(mx.cpu):
        found, psi = np.array(model(mx.array(x, dtype=mx.float64))), np.array(model.psi)
    signs = np.sign((expected * found).sum(axis=0))  # a row of the transform may come with either sign
    difference = _apart(expected, found * signs) / np.abs(expected).max()
    return [
        Row("transform, max difference / largest", float(difference), 1e-9),
        Row("psi, max difference / largest", float(_apart(original.phi, psi) / psi.max()), 1e-9),
    ]


MEASURES: dict[str, Callable[[Any, Any, Inputs], list[Row]]] = {
    measure.__name__: measure for measure in (silero_vad, pyannet, wespeaker, wav2vec2, whisper, plda)
}


def original(plan: Plan) -> Any:
    """The PyTorch original of a plan's source, in the form that the family's measure takes."""
    check_installed(plan.recipe.original)
    return importlib.import_module("mlx_speech.convert.parity.originals").build(plan)
