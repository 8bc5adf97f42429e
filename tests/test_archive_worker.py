"""What runs in a process of an archive, here in this one: pieces of recordings, and whose chunks share a batch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_speech import audio, load_audio
from mlx_speech.archive import pieces
from mlx_speech.archive.items import Entry, Failed, Heard, Item, Outcome
from mlx_speech.archive.worker import Setup, Worker
from mlx_speech.errors import AudioError
from mlx_speech.package_data import DEMO
from mlx_speech.transcript import Segment, Transcript

TALK = str(DEMO / "conversation.flac")
RATE = 16_000


def digest(samples: np.ndarray) -> str:
    return f"{samples.size} {hashlib.sha256(samples.tobytes()).hexdigest()}"


class Listener:
    """Says which samples it has heard."""

    def transcribe(self, recordings: Any, **options: Any) -> Iterator[Any]:
        for samples in recordings:
            yield samples, Transcript((Segment(0.0, 1.0, digest(samples)),), "en")


@pytest.fixture
def listener() -> Worker:
    worker = Worker(Setup(pipeline="test_archive_worker:Listener"))
    assert worker.prepare() is None
    return worker


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were opened to be decoded."""
    opened: list[str] = []
    original = audio.blocks

    def blocks(path: str, **options: Any) -> Iterator[Any]:
        opened.append(path)
        return original(path, **options)

    monkeypatch.setattr(audio, "blocks", blocks)
    return opened


def pieces_of(source: str, spans: list[tuple[float, float | None]]) -> list[Item]:
    return [Item(f"piece{k}", Entry(source, offset, duration)) for k, (offset, duration) in enumerate(spans)]


def text_of(outcome: Outcome) -> str:
    assert isinstance(outcome, Heard)
    return json.loads(outcome.texts[""])["segments"][0]["text"]


def test_pieces_are_cut_as_arrays_are_cut_and_their_file_is_decoded_once(listener: Worker, decoded: list[str]) -> None:
    samples = load_audio(TALK)
    spans = [(0.0, 1.0), (29.5, 1.25), (29.9, 0.5), (59.0, 5.0), (3.0, 40.0), (7.0, 0.0), (31.0, None), (500.0, 1.0)]
    items = pieces_of(TALK, spans)
    outcomes = {outcome.name: outcome for outcome in listener.transcribe(items)}
    for item in items[:-1]:
        first = round((item.entry.offset or 0.0) * RATE)
        last = None if item.entry.duration is None else first + round(item.entry.duration * RATE)
        assert text_of(outcomes[item.name]) == digest(samples[first:last])
    failed = outcomes[items[-1].name]
    assert isinstance(failed, Failed) and failed.kind == "sound"
    assert failed.reason.startswith(f"{TALK}: ends at 59.7 s, and the piece begins at 500 s")
    assert decoded == [TALK] * 3  # those that have a length, and each of the others


def test_a_piece_without_samples_is_one(decoded: list[str]) -> None:
    for entries in ([Entry(TALK, 0.0, 0.0)], [Entry(TALK, 30.0, 0.0), Entry(TALK, 1.0, 2.0)]):
        piece = pieces.cut(TALK, entries)[0]
        assert isinstance(piece, np.ndarray) and piece.size == 0


def test_no_more_is_decoded_than_to_the_end_of_the_last_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    original = audio.blocks

    def blocks(path: str, **options: Any) -> Iterator[Any]:
        for start, block in original(path, **options):
            ends.append(start + block.size / RATE)
            yield start, block

    monkeypatch.setattr(audio, "blocks", blocks)
    pieces.cut(TALK, [Entry(TALK, 2.0, 1.0), Entry(TALK, 1.0, 3.0)])
    assert ends == [pieces.BLOCK_SECONDS]


def test_what_lies_before_a_fault_is_heard(listener: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = load_audio(TALK)
    original = audio.blocks

    def blocks(path: str, **options: Any) -> Iterator[Any]:
        yield next(original(path, **options))
        raise AudioError(f"{path}: breaks off at 30 s: fetch it again")

    monkeypatch.setattr(audio, "blocks", blocks)
    items = pieces_of(TALK, [(1.0, 2.0), (29.0, 2.0), (28.0, 2.0), (40.0, None)])
    outcomes = {outcome.name: outcome for outcome in listener.transcribe(items)}
    assert text_of(outcomes["piece0"]) == digest(samples[RATE : 3 * RATE])
    assert text_of(outcomes["piece2"]) == digest(samples[28 * RATE : 30 * RATE])
    for name in ("piece1", "piece3"):
        failed = outcomes[name]
        assert isinstance(failed, Failed) and failed.kind == "sound" and "breaks off at 30 s" in failed.reason


def test_a_copy_is_named_by_where_it_is_from(listener: Worker, decoded: list[str]) -> None:
    import fsspec

    fsspec.filesystem("memory").pipe_file("/talks/talk.flac", Path(TALK).read_bytes())
    source = "memory://talks/talk.flac"
    outcomes = {outcome.name: outcome for outcome in listener.transcribe(pieces_of(source, [(1.0, 2.0), (99.0, 1.0)]))}
    assert text_of(outcomes["piece0"]) == digest(load_audio(TALK)[RATE : 3 * RATE])
    failed = outcomes["piece1"]
    assert isinstance(failed, Failed) and failed.reason.startswith(f"{source}: ends at 59.7 s")
    assert len(decoded) == 1 and not Path(decoded[0]).exists()


def test_nobody_hears_of_a_file_that_is_not_there(listener: Worker) -> None:
    items = [*pieces_of("/none.wav", [(1.0, 2.0), (4.0, 1.0)]), Item("good", Entry(TALK, 1.0, 1.0))]
    outcomes = {outcome.name: outcome for outcome in listener.transcribe(items)}
    assert set(outcomes) == {"piece0", "piece1", "good"} and isinstance(outcomes["good"], Heard)
    for name in ("piece0", "piece1"):
        failed = outcomes[name]
        assert isinstance(failed, Failed) and failed.kind == "sound" and "/none.wav" in failed.reason


def test_files_of_a_task_share_a_batch(monkeypatch: pytest.MonkeyPatch, shared_cache: None) -> None:
    monkeypatch.setenv("MLX_SPEECH_CACHE", os.environ["MLX_SPEECH_CACHE"])
    setup = Setup(
        pipeline="mlx_speech.pipeline:Pipeline.demo",
        keywords={"batch_size": 4},
        options={"word_timestamps": None},
    )
    worker = Worker(setup)
    assert worker.prepare() is None
    items = pieces_of(TALK, [(0.0, 9.0), (10.0, 9.0), (20.0, 9.0), (30.0, 9.0)])
    assert all(isinstance(outcome, Heard) for outcome in worker.transcribe(items))
    worker._pipeline.close()
    workload = worker._pipeline._batches.workload
    assert workload.turn_fills / sum(workload.turns) > 0.5  # one by one they would fill a quarter
