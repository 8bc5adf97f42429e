"""Pieces of a recording, as manifests name them by offset and duration: cut out of it while it is decoded once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mlx_speech import audio
from mlx_speech.archive.items import Entry
from mlx_speech.engine import Failure, attempt
from mlx_speech.errors import AudioError
from mlx_speech.samples import SAMPLE_RATE

BLOCK_SECONDS = 30.0  # that are decoded at once


class _Span(NamedTuple):
    """Samples of a file from `first` to `last`, or to its end."""

    first: int
    last: float

    @classmethod
    def of(cls, entry: Entry) -> _Span:
        offset = entry.offset or 0.0
        last = math.inf if entry.duration is None else round((offset + entry.duration) * SAMPLE_RATE)
        return cls(round(offset * SAMPLE_RATE), last)


def cut(path: str, entries: Sequence[Entry]) -> list[np.ndarray | Exception]:
    """The pieces of a file that entries name, (samples,) each at 16 kHz, in one pass that ends with the last of them.

    In the place of a piece that cannot be read stands why: what `audio.blocks` raises before its end, or `AudioError`
    where the file ends before it begins.
    """
    spans = [_Span.of(entry) for entry in entries]
    parts: list[list[np.ndarray]] = [[] for _ in spans]
    last = max(span.last for span in spans)
    end = 0
    problem: Exception | None = None
    blocks = audio.blocks(path, block_seconds=BLOCK_SECONDS)
    while end < last:
        step = attempt(lambda: next(blocks, None))
        if isinstance(step, Failure):
            problem = step.error
            break
        if step is None:
            break
        start, block = step
        place = round(start * SAMPLE_RATE)
        end = place + block.size
        for span, own in zip(spans, parts, strict=True):
            if span.first < end and span.last > place:
                part = block[max(span.first - place, 0) : min(span.last - place, block.size)]
                own.append(part.copy())  # which does not keep all of the block in memory
    return [_joined(path, span, own, end, problem) for span, own in zip(spans, parts, strict=True)]


def _joined(
    path: str, span: _Span, parts: list[np.ndarray], end: int, problem: Exception | None
) -> np.ndarray | Exception:
    """A piece, or why there is none. end : samples that could be decoded; problem : with what comes behind them"""
    if problem is not None and span.last > end:
        return problem
    if span.first >= end and span.last > span.first:
        ends, begins = f"{end / SAMPLE_RATE:.1f} s", f"{span.first / SAMPLE_RATE:g} s"
        return AudioError(f"{path}: ends at {ends}, and the piece begins at {begins}: correct it")
    return np.concatenate([np.zeros(0, np.float32), *parts])
