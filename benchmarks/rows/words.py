"""Row 4: word times, by forced alignment (emissions of wav2vec2-base, CTC Viterbi) and by Whisper's attention."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import models
from benchmarks.rows import attention
from benchmarks.rows.attention import TORCH
from benchmarks.suite import OURS, Call, Row, Work

BLANK = 0
LABELS = 32  # wav2vec2-base-960h's: letters, an apostrophe, the delimiter and five that are not spoken


def rows(device: str, quick: bool) -> list[Row]:
    seconds, frames, characters = (3, 150, 30) if quick else (30, 1500, 300)
    emissions = Row(
        "words/emissions",
        f"log-probabilities of wav2vec2-base, one segment of {seconds} s, float32",
        {OURS: emissions_ours, "transformers": emissions_transformers},
        {"device": device, "quick": quick, "seconds": seconds},
        agree_emissions,
        seconds=seconds,
        work=wav2vec2_work(seconds) if not quick else None,
        targets={"transformers": 1.0} if device != "cpu" else {},
    )
    found = [emissions]
    for segments, target in ((1, 8.0), (4 if quick else 64, 20.0)):
        states = 2 * characters + 1
        found.append(
            Row(
                f"words/viterbi-{segments}",
                f"CTC Viterbi of {segments} × ({frames} frames × {characters} characters), on the CPU",
                {OURS: viterbi_ours, "WhisperX": viterbi_whisperx},
                {"segments": segments, "frames": frames, "characters": characters},
                agree_viterbi,
                seconds=segments * frames / 50,
                # two additions and two maxima a state; read what it emits, write where it came from
                work=Work(4.0 * segments * frames * states, 5.0 * segments * frames * states),
                targets={"WhisperX": target},
            )
        )
    return [*found, attention.row(device, quick)]


# --- emissions -------------------------------------------------------------------------------------------------------


def wav2vec2_work(seconds: float) -> Work:
    """Of base: seven convolutions of 512, one over 128 positions in 16 groups, 12 layers of 768."""
    operations, width, length, weights = 0.0, 1, seconds * 16_000, 0
    for kernel, stride in zip((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), strict=True):
        length /= stride
        operations += 2 * length * 512 * width * kernel
        weights, width = weights + 512 * width * kernel, 512
    inner = 512 * 768 + 768 * 48 * 128 + 12 * (4 * 768**2 + 2 * 768 * 3072)
    operations += 2 * length * inner + 12 * 4 * length**2 * 768
    return Work(operations, 4.0 * (weights + inner + seconds * 16_000 + length * LABELS))


def emissions_ours(device: str, quick: bool, seconds: float) -> Call:
    models.use_mlx(device)
    import mlx_speech
    from mlx_speech.stages.align import log_probabilities

    model, audio = mlx_speech.load(models.wav2vec2(quick).ours, dtype="float32"), models.speech(seconds)

    def call() -> np.ndarray:
        found, frames = log_probabilities([audio], model)
        return np.array(found)[0, : frames[0]]

    return call


def emissions_transformers(device: str, quick: bool, seconds: float) -> Call:
    import torch
    from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    folder = models.wav2vec2(quick).original
    model = Wav2Vec2ForCTC.from_pretrained(folder).to(TORCH[device]).eval()
    front, audio = Wav2Vec2FeatureExtractor.from_pretrained(folder), models.speech(seconds)

    def call() -> np.ndarray:
        with torch.inference_mode():
            sound = front(audio, sampling_rate=16_000, return_tensors="pt").input_values.to(TORCH[device])
            return torch.log_softmax(model(sound).logits, dim=-1)[0].cpu().numpy()

    return call


def agree_emissions(outputs: Mapping[str, np.ndarray]) -> str:
    ours = outputs[OURS]
    worst = 0.0
    for theirs in outputs.values():
        assert theirs.shape == ours.shape, (theirs.shape, ours.shape)
        worst = max(worst, float(np.abs(np.exp(theirs) - np.exp(ours)).max()))
    assert worst < 1e-3, worst
    return f"probabilities within {worst:.0e}"


# --- Viterbi ---------------------------------------------------------------------------------------------------------


def _spoken(segments: int, frames: int, characters: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Log-probabilities (frames, labels) as of a trained model, which says each label in one frame, and the labels."""
    rng = np.random.default_rng(4)
    log_probs, targets = [], []
    for _ in range(segments):
        target = rng.integers(1, LABELS, characters)
        onsets = np.sort(rng.choice(frames // 2, characters, replace=False)) * 2  # a blank between any two
        logits = rng.normal(size=(frames, LABELS)).astype(np.float32)
        logits[:, BLANK] += 8
        logits[onsets, BLANK] -= 8
        logits[onsets, target] += 8
        log_probs.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
        targets.append(target)
    return log_probs, targets


def viterbi_ours(segments: int, frames: int, characters: int) -> Call:
    from mlx_speech.stages.viterbi import viterbi

    log_probs, targets = _spoken(segments, frames, characters)

    def call() -> list[np.ndarray]:
        paths, _ = viterbi(log_probs, targets, blank=BLANK)
        return [np.searchsorted(path, 2 * np.arange(characters) + 1) for path in paths]  # states never go back

    return call


def whisperx_functions() -> dict[str, Any]:
    """`get_trellis` and `backtrack` of WhisperX, from its file: importing it takes all that WhisperX needs."""
    import dataclasses

    import torch

    spec = importlib.util.find_spec("whisperx")
    if spec is None or spec.origin is None:
        raise ImportError("whisperx")
    file = Path(spec.origin).with_name("alignment.py")
    wanted = ("get_trellis", "backtrack", "Point")
    body = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if getattr(node, "name", "") in wanted]
    namespace: dict[str, Any] = {"torch": torch, "dataclass": dataclasses.dataclass, "__name__": "whisperx_alignment"}
    exec(compile(ast.Module(body, type_ignores=[]), str(file), "exec", dont_inherit=True), namespace)
    return namespace


def viterbi_whisperx(segments: int, frames: int, characters: int) -> Call:
    import torch

    functions = whisperx_functions()
    log_probs, targets = _spoken(segments, frames, characters)
    emissions, tokens = [torch.from_numpy(array) for array in log_probs], [target.tolist() for target in targets]

    def call() -> list[np.ndarray]:
        found = []
        for emission, own in zip(emissions, tokens, strict=True):
            trellis = functions["get_trellis"](emission, own, BLANK)
            path = functions["backtrack"](trellis, emission, own, BLANK)
            first = {point.token_index: point.time_index for point in reversed(path)}
            found.append(np.array([first[k] for k in range(characters)]))
        return found

    return call


def agree_viterbi(outputs: Mapping[str, list[np.ndarray]]) -> str:
    ours = np.array(outputs[OURS])
    shares = [float((np.abs(np.array(theirs) - ours) <= 1).mean()) for theirs in outputs.values()]
    assert min(shares) >= 0.95, shares
    return f"{100 * min(shares):.1f} % of the characters begin within a frame"
