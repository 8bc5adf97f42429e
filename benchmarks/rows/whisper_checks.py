"""What the rows of Whisper share: how all decode, what there is to do at least, and whether all come to the same.

All decode greedily, without thresholds and timestamps. With real weights each chunk ends where the model says so. With
random ones every special token is suppressed and so the end of text: each chunk gets exactly `TOKENS` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import models
from benchmarks.suite import OURS, Work

TOKENS = 100
PROMPT = 4  # tokens: start, language, task, no timestamps
DISTINCT = 30  # random weights may say the same again and again
END = 50257  # the end of text; tokens below are text, those above special
OPTIONS: dict[str, Any] = {"without_timestamps": True, "suppress_blank": False, "sample_len": TOKENS}
OFF = dict.fromkeys(("compression_ratio_threshold", "logprob_threshold", "no_speech_threshold"))

Files = models.Whisper
Decoded = tuple[list[int], float]  # tokens, and the mean of their log-probabilities


def special(files: Files) -> list[int]:
    """A list of its own for each: mlx-whisper adds to it."""
    return list(range(END, files.sizes["n_vocab"]))


def openai_options(files: Files) -> dict[str, Any]:
    """Keywords of the `DecodingOptions` of openai-whisper, and of those who follow it."""
    found: dict[str, Any] = {"language": "en", "temperature": 0.0, "without_timestamps": True}
    return found if files.is_real else found | OPTIONS | {"suppress_tokens": special(files)}


def our_options(files: Files) -> dict[str, Any]:
    """Keywords of our `DecodingOptions`."""
    found: dict[str, Any] = {**OFF, "temperature": (0.0,), "without_timestamps": True}
    return found if files.is_real else found | OPTIONS | {"suppress_tokens": tuple(special(files))}


def encoder_work(dims: dict[str, int], windows: int, size: int) -> Work:
    """Of a batch. Read: the weights once, and the spectrograms; written: what is encoded. size : bytes of a number"""
    width, layers, steps = dims["n_audio_state"], dims["n_audio_layer"], dims["n_audio_ctx"]
    front = 3 * width * (2 * steps * dims["n_mels"] + steps * width)
    multiplications = front + layers * (12 * steps * width**2 + 2 * steps**2 * width)
    weights = 3 * width * (dims["n_mels"] + width) + layers * 12 * width**2
    ends = steps * (2 * dims["n_mels"] + width)
    return Work(2.0 * multiplications * windows, float(size * (weights + windows * ends)))


def decoder_work(dims: dict[str, int], tokens: Sequence[int], size: int) -> Work:
    """Of a batch of chunks that are as many steps long as `tokens` says. Every step reads all weights once for the
    whole batch, of the embedding as the output layer too, and of each chunk that goes on the keys and values of the
    audio and of the tokens so far. size : bytes of a number"""
    width, layers, audio = dims["n_text_state"], dims["n_text_layer"], dims["n_audio_ctx"]
    blocks, output = layers * 14 * width**2, dims["n_vocab"] * width  # without the keys and values of the audio
    keys = layers * 2 * audio * width  # of a chunk, and their values
    operations = 0
    read = max(tokens) * (blocks + output) + layers * 2 * width**2
    for steps in tokens:
        past = layers * 2 * width * sum(PROMPT + step for step in range(steps))  # read over all steps
        entered = steps + PROMPT - 1  # the prompt is the first step's
        operations += keys * width + entered * blocks + steps * output + entered * keys + past
        read += audio * width + keys + steps * keys + past  # what is encoded; keys and values written, then read
    return Work(2.0 * operations, float(size * read))


# --- agreement --------------------------------------------------------------------------------------------------------


def agree_encoded(outputs: dict[str, Any], tolerance: float) -> str:
    """Largest difference from ours, by the largest value; of int8 it is only told."""
    ours, said = outputs[OURS], []
    for name, output in outputs.items():
        if name != OURS:
            off = float(np.abs(output - ours).max() / np.abs(ours).max())
            assert output.shape == ours.shape, f"{name}: {output.shape}, not {ours.shape}"
            assert off <= tolerance or "int8" in name, f"{name}: off by {off:.1e} of the largest value"
            said.append(f"{name} {off:.0e}")
    return "differences, of the largest value: " + ", ".join(said)


def agree_tokens(outputs: dict[str, list[Decoded]], exact: bool, share: float = 0.9, tolerance: float = 1e-3) -> str:
    """That all have as many tokens; where `exact`, that these and their probabilities are ours.

    A tie of two tokens may fall the other way, and what follows it is another text: of the tokens up to there `share`
    have to be the same, and of the chunks that are the same throughout the mean log-probability.
    """
    ours, said = outputs[OURS], []
    distinct = min(len(set(tokens)) for tokens, _ in ours)
    assert distinct >= DISTINCT, f"a chunk has {distinct} different tokens: that others have them too says nothing"
    for name, output in outputs.items():
        counts = [len(tokens) for tokens, _ in output]
        assert counts == [TOKENS] * len(ours), f"{name}: {counts} tokens, not {TOKENS} in each of {len(ours)}"
        if name == OURS:
            continue
        held = exact and "int8" not in name
        same, total = 0, TOKENS * len(ours)
        for (tokens, mean), (expected, expected_mean) in zip(output, ours, strict=True):
            others = [k for k in range(TOKENS) if tokens[k] != expected[k]]
            same += others[0] if others else TOKENS
            off = 0.0 if others else abs(mean - expected_mean)
            assert not held or off <= tolerance, f"{name}: log-probability off by {off:.1e}"
        assert not held or same >= share * total, f"{name}: {same} of {total} tokens as ours"
        said.append(f"{name} {same / total:.0%}")
    first = f"{TOKENS} tokens a chunk from all, at least {distinct} of them different"
    return f"{first}; as ours up to the first other one: {', '.join(said)}"


def agree_speech(outputs: dict[str, list[Decoded]], exact: bool, share: float = 0.95) -> str:
    """That all say the same, each to its own end; where `exact`, `share` of our tokens, up to the first other one."""
    ours, said = outputs[OURS], []
    total = sum(len(tokens) for tokens, _ in ours)
    for name, output in outputs.items():
        assert len(output) == len(ours), f"{name}: {len(output)} chunks, not {len(ours)}"
        if name == OURS:
            continue
        same = sum(_in_common(tokens, expected) for (tokens, _), (expected, _) in zip(output, ours, strict=True))
        written = sum(len(tokens) for tokens, _ in output)
        held = exact and "int8" not in name
        assert not held or same >= share * total, f"{name}: {same} of {total} tokens as ours"
        said.append(f"{name} {same / total:.0%} of {written}")
    longest = max(len(tokens) for tokens, _ in ours)
    return f"{total} tokens, at most {longest} a chunk; as ours up to the first other one: {', '.join(said)}"


def _in_common(tokens: Sequence[int], others: Sequence[int]) -> int:
    """Tokens before the first that is another one."""
    pairs = zip(tokens, others, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(tokens), len(others)))


def lengths(output: list[Decoded]) -> list[int]:
    """Steps of each chunk; the end of text is one."""
    return [len(tokens) + 1 for tokens, _ in output]
