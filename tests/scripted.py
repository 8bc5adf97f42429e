"""Decoders that follow a script, for openai/whisper's code and for ours: what to say next is a seeded function of the
window of audio and of the tokens so far.

Random weights repeat a token for ever. A script says varied text, and on its way meets timestamps (also forbidden
ones), ends of text, ties, suppressed tokens and blanks; by its mood it repeats itself, is unsure or hears silence, so
that the thresholds of the fallback are crossed.

    script = Script(seed=3)                      # multilingual; Script(seed=3, multilingual=False) for English only
    theirs = openai_model(script, monkeypatch)   # whisper.transcribe(theirs, audio) and whisper.decode(theirs, ...) run
    ours = ScriptedModel(script)                 # .args .encoder .decoder, as the stages use them

Both encoders give a window of mel a number (`Windows`, shared by the script: equal up to the differences of two
spectrograms), which is all that the encoded audio says; `encoded(number)` makes one directly.
Sampling takes its noise from `noise` on both sides, if `openai_model` was given monkeypatch.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
import whisper.decoding
from whisper.model import ModelDimensions
from whisper.tokenizer import get_tokenizer

from mlx_speech.models.whisper import ModelArgs
from mlx_speech.stages.whisper import fallback, search
from mlx_speech.stages.whisper.decode import DecodingResult, Job

WIDTH = 4  # of the encoded audio
MOODS = ("plain", "plain", "sure", "sure", "loop", "unsure", "silent")


class Windows:
    """Numbers for windows of mel, in the order in which they are first seen."""

    def __init__(self, tolerance: float = 0.02):
        self.tolerance, self.seen = tolerance, []

    def number(self, mel: np.ndarray) -> int:
        """mel (frames, bins), whoever computed it."""
        for number, known in enumerate(self.seen):
            if np.abs(known - mel).max() < self.tolerance:
                return number
        self.seen.append(np.array(mel))
        return len(self.seen) - 1


class Script:
    """What is said, in logits.

    mood : one of MOODS for every window; None: each window has its own
    length : about how many tokens before the end of text becomes likely
    context : n_text_ctx
    """

    def __init__(
        self,
        seed: int,
        multilingual: bool = True,
        mood: str | None = None,
        length: int = 12,
        context: int = 448,
        n_mels: int = 80,
    ):
        self.seed, self.mood, self.length, self.windows = seed, mood, length, Windows()
        self.multilingual = multilingual
        ids = get_tokenizer(multilingual, num_languages=99)
        self.ids, self.vocab = ids, 51865 if multilingual else 51864
        self.dims = ModelDimensions(n_mels, 1500, WIDTH, 1, 1, self.vocab, context, WIDTH, 1, 1)
        self.args = ModelArgs(**vars(self.dims))
        rng = np.random.default_rng(seed)
        self.floor = rng.uniform(-14, -12, self.vocab).astype(np.float32)
        self.words = rng.choice(np.arange(1000, 40000), 400, replace=False)
        self.annoying = [*ids.non_speech_tokens, ids.sot, ids.sot_prev, ids.no_speech, ids.no_timestamps]
        self.languages = np.array(sorted(ids.all_language_tokens))  # its own order changes from process to process

    def mood_of(self, window: int) -> str:
        """The mood of a window."""
        return self.mood or MOODS[_hash(self.seed, window, 1) % len(MOODS)]

    def logits(self, window: int, tokens: Sequence[int]) -> np.ndarray:
        """After `tokens`, those of the prompt among them: (vocabulary,)"""
        ids, mood = self.ids, self.mood_of(window)
        tokens = list(tokens)
        said = tokens[tokens.index(ids.sot) + 1 :]
        rng = np.random.default_rng(_hash(self.seed, window, *(tokens[-1:] if mood == "loop" else tokens)))
        values = self.floor.copy()
        if not said:  # at <|startoftranscript|>
            values[self.languages] = rng.normal(0, 2, len(self.languages))
            values[ids.no_speech] = 9 if mood == "silent" else rng.normal(-3, 3)
            if self.multilingual:
                return values
        values[rng.choice(self.words, 12)] = rng.normal(2, 1.5, 12)
        if rng.random() < 0.4:
            values[rng.choice(self.annoying, 3)] = rng.normal(4, 1, 3)
        if rng.random() < 0.3:
            values[ids.encode(" ")] = rng.normal(3, 2)
        if len(said) < 4 and rng.random() < 0.5:  # a temptation to say nothing
            values[ids.eot] = rng.normal(3, 2) if self.length < 50 else 9 * (len(said) == len(ids.sot_sequence) - 1)
        times = [token - ids.timestamp_begin for token in said if token >= ids.timestamp_begin]
        since = next((n for n, token in enumerate(reversed(said)) if token >= ids.timestamp_begin), 99)
        near = (times[-1] if times else 20) + rng.integers(-40, 120, 8)
        near = near[(near >= 0) & (near <= 1500)]
        values[ids.timestamp_begin + near] = rng.normal(since / 2 - 1, 1.5, len(near))
        over = len(said) - self.length
        values[ids.eot] = max(values[ids.eot], rng.normal(over / 3, 1.0)) if over > -6 else values[ids.eot]
        if mood == "loop":  # a phrase of a few words, and no end; sampling may find the way out
            values[self.words[_hash(self.seed, window, *tokens) % 400]] = 8.5
            values[self.words[(tokens[-1] * 7 + window) % 3]] = 9
            values[ids.eot] = min(values[ids.eot], 0) if over < 60 else 12
        if rng.random() < 0.15:  # the most probable word has an equal
            values[rng.choice(self.words, 2)] = values[: ids.eot].max()
        sharpness = {"sure": 3.0, "unsure": 0.35, "silent": 0.35}.get(mood, 1.0)
        return values * np.float32(sharpness)

    def encoded(self, window: int) -> np.ndarray:
        """The encoded audio of a window by its number, (1500, width)."""
        return np.full((1500, WIDTH), window, dtype=np.float32)


def _hash(*numbers: int) -> int:
    return zlib.crc32(np.array(numbers, dtype=np.int64).tobytes())


@lru_cache(maxsize=4096)
def _noise(step: int, sample: int, vocab: int) -> np.ndarray:
    return np.random.default_rng([step, sample]).gumbel(size=vocab).astype(np.float32)


def noise(step: np.ndarray, vocab: int) -> np.ndarray:
    """step (jobs, group) → (jobs, group, vocab): what sampling adds, the same for every job."""
    return np.stack([np.stack([_noise(int(s), g, vocab) for g, s in enumerate(row)]) for row in step])


# --- openai/whisper ---------------------------------------------------------------------------------------------------


class _Positions:
    """Logits of which only the positions that are asked for are computed: `[:, position]`."""

    def __init__(self, script: Script, tokens: torch.Tensor, encoded: torch.Tensor):
        self.script, self.tokens = script, tokens.tolist()
        self.windows = [round(float(row[0, 0])) for row in encoded]
        self.windows *= len(self.tokens) // len(self.windows)

    def __getitem__(self, key: tuple[slice, int]) -> torch.Tensor:
        end = key[1] + 1 or None
        rows = [self.script.logits(w, t[:end]) for w, t in zip(self.windows, self.tokens, strict=True)]
        return torch.from_numpy(np.stack(rows))


class _Inference(whisper.decoding.Inference):
    def __init__(self, model: Any, initial_token_length: int):
        self.script = model.script

    def logits(self, tokens: torch.Tensor, audio_features: torch.Tensor) -> Any:
        return _Positions(self.script, tokens, audio_features)

    def rearrange_kv_cache(self, source_indices: Any) -> None:
        pass


class OpenAIModel:
    """What `whisper.transcribe` and `whisper.decode` ask of a model."""

    def __init__(self, script: Script):
        self.script, self.dims, self.device = script, script.dims, torch.device("cpu")
        self.is_multilingual, self.num_languages = script.multilingual, 99
        self.decode = partial(whisper.decoding.decode, self)
        self.detect_language = partial(whisper.decoding.detect_language, self)

    def encoder(self, mel: torch.Tensor) -> torch.Tensor:
        numbers = [self.script.windows.number(window.numpy().T) for window in mel]
        return torch.from_numpy(np.stack([self.script.encoded(number) for number in numbers]))

    def logits(self, tokens: torch.Tensor, encoded: torch.Tensor) -> Any:
        return _Positions(self.script, tokens, encoded)


def openai_model(script: Script, monkeypatch: pytest.MonkeyPatch) -> OpenAIModel:
    """The script for openai/whisper, which is patched to ask it, to take equal candidates in the order of their ids, as
    ours does, and to sample with `noise`; so is our decoder."""

    def topk(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        row = values.numpy()
        best = np.sort(np.argpartition(-row, 40)[:40])
        best = best[row[best] > -np.inf]
        best = best[np.argsort(-row[best], kind="stable")][:k]
        if len(best) < k:
            best = np.concatenate([best, np.flatnonzero(row == -np.inf)[: k - len(best)]])
        return values[best], torch.from_numpy(best)

    monkeypatch.setattr(whisper.decoding, "PyTorchInference", _Inference)
    monkeypatch.setattr(torch.Tensor, "topk", topk)
    same_noise(monkeypatch)
    return OpenAIModel(script)


def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both decoders sample with `noise`."""
    clock = SimpleNamespace(step=0)

    class Sampling(whisper.decoding.GreedyDecoder):
        def reset(self) -> None:
            clock.step = 0

    class Categorical:
        def __init__(self, logits: torch.Tensor):
            self.logits = logits

        def sample(self) -> torch.Tensor:
            drawn = noise(np.full((1, len(self.logits)), clock.step), self.logits.shape[-1])[0]
            clock.step += 1
            return (self.logits + torch.from_numpy(drawn)).argmax(dim=-1)

    monkeypatch.setattr(whisper.decoding, "GreedyDecoder", Sampling)
    monkeypatch.setattr(whisper.decoding, "Categorical", Categorical)
    monkeypatch.setattr(search, "gumbel", lambda keys, step, vocab: mx.array(noise(np.array(step), vocab)))


# --- ours -------------------------------------------------------------------------------------------------------------


class _Cache:
    """The tokens of every hypothesis."""

    def __init__(self, jobs: int, group: int, is_in_numpy: bool):
        self.is_in_numpy = is_in_numpy
        self.windows = [0] * jobs
        self.tokens: list[list[list[int]]] = [[[] for _ in range(group)] for _ in range(jobs)]
        self.group = group

    def reorder(self, sources: list[list[int]]) -> None:
        rows = zip(self.tokens, sources, strict=True)
        self.tokens = [[list(group[source]) for source in chosen] for group, chosen in rows]

    def keep(self, jobs: list[int]) -> None:
        self.tokens, self.windows = [self.tokens[job] for job in jobs], [self.windows[job] for job in jobs]

    def leave(self, job: int) -> None:
        self.tokens[job] = [[] for _ in range(self.group)]

    def audio_of(self, job: int) -> None:
        """A script attends to nothing."""


class _Decoder:
    def __init__(self, script: Script, in_numpy: bool):
        self.script, self.in_numpy = script, in_numpy

    def __call__(self, tokens: mx.array, encoded: mx.array) -> mx.array:
        rows = zip(np.array(tokens).tolist(), np.array(encoded), strict=True)
        logits = [[self.script.logits(round(float(e[0, 0])), t[: n + 1]) for n in range(len(t))] for t, e in rows]
        return mx.array(np.array(logits))

    def new_cache(self, jobs: int, group: int) -> _Cache:
        return _Cache(jobs, group, self.in_numpy)

    def prefill(self, cache: _Cache, jobs: list[int], encoded: mx.array, prompts: Any, at: list[int]) -> Any:
        last, asked = [], []
        for job, row, prompt, index in zip(jobs, np.array(encoded), prompts, at, strict=True):
            cache.windows[job] = round(float(row[0, 0]))
            cache.tokens[job] = [list(prompt) for _ in range(cache.group)]
            last.append(self.script.logits(cache.windows[job], prompt))
            asked.append(self.script.logits(cache.windows[job], prompt[: index + 1]))
        return mx.array(np.stack(last)), mx.array(np.stack(asked))

    def step(self, cache: _Cache, tokens: mx.array) -> mx.array:
        return mx.array(self.step_in_numpy(cache, np.array(tokens)))

    def step_in_numpy(self, cache: _Cache, tokens: np.ndarray) -> np.ndarray:
        logits = np.zeros((*tokens.shape, self.script.vocab), dtype=np.float32)
        for job, group in enumerate(tokens.tolist()):
            for index, token in enumerate(group):
                said = cache.tokens[job][index]
                said.append(token)
                if self.script.ids.sot in said:  # in rows that were never entered there is nobody
                    logits[job, index] = self.script.logits(cache.windows[job], said)
        return logits


class ScriptedModel:
    """The script as the stages see a Whisper: `args`, `encoder` and `decoder`.

    in_numpy : whether its steps are NumPy's, as a CPU's in float32 are
    """

    def __init__(self, script: Script, in_numpy: bool = True):
        self.script, self.args, self.decoder = script, script.args, _Decoder(script, in_numpy)
        self.folder = None

    def encoder(self, mel: mx.array) -> mx.array:
        """mel (batch, 3000, n_mels)"""
        numbers = [self.script.windows.number(window) for window in np.array(mel)]
        return mx.array(np.stack([self.script.encoded(number) for number in numbers]))


# --- results that need no decoder -------------------------------------------------------------------------------------


class AtOnce:
    """Stands for `FallbackDecoder`: every job has its result as soon as it is asked for."""

    def __init__(self, answer: Callable[..., Iterator[tuple[Job, DecodingResult]]], batch_size: int):
        self.answer, self.batch_size, self.jobs = answer, batch_size, []

    def room(self, owner: Any = None) -> int:
        return self.batch_size - len(self.jobs)

    def enter(self, jobs: Sequence[Job]) -> None:
        self.jobs += jobs

    def drop(self, owner: Any) -> None:
        self.jobs = [job for job in self.jobs if job.owner != owner]

    def advance(self, expected: Any = ()) -> list[tuple[Job, DecodingResult]]:
        jobs, self.jobs = self.jobs, []
        return list(self.answer(jobs, batch_size=self.batch_size))


def answer_at_once(answer: Callable[..., Iterator[tuple[Job, DecodingResult]]], monkeypatch: Any) -> None:
    """Chunks are recognised by `answer`, which takes jobs and batch_size=… and gives each job with its result."""
    monkeypatch.setattr(fallback, "FallbackDecoder", lambda *_, batch_size, workload: AtOnce(answer, batch_size))
