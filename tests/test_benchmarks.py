"""How contenders of the benchmarks are timed, and how their texts are compared."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest

from benchmarks.rows import whisper_checks as checks
from benchmarks.suite import OURS, Row, Work, measure, ratios

SHORT, LONG = 0.002, 0.02  # seconds


def waiting(seconds: float) -> Any:
    """A contender that is ready at once, and whose call takes so long."""
    return partial(partial, time.sleep, seconds)


def row(**more: Any) -> Row:
    return Row("wait", "waits", {OURS: waiting(SHORT), "slow": waiting(LONG), "none": waiting_for_nothing()}, **more)


def waiting_for_nothing() -> Any:
    """A contender that is not installed."""
    return partial(__import__, "a_package_that_is_not_installed")


def test_all_take_the_same_turns() -> None:
    found = measure(row(most=3, count=lambda _: 7.0, work=lambda _: Work(1.0, 2.0)))
    assert [len(found["contenders"][name]["times"]) for name in (OURS, "slow")] == [3, 3]
    assert "a_package_that_is_not_installed" in found["contenders"]["none"]["problem"]
    assert found["count"] == 7.0 and found["work"] == {"operations": 1.0, "bytes": 2.0}
    median, least, most = ratios(found, "slow") or (0.0, 0.0, 0.0)
    assert 1 < least <= median <= most
    assert ratios(found, "none") is None


def test_a_slow_one_takes_one_turn() -> None:
    found = measure(row(most=3, once=("slow",)))
    assert [len(found["contenders"][name]["times"]) for name in (OURS, "slow")] == [3, 1]
    median, least, most = ratios(found, "slow") or (0.0, 0.0, 0.0)
    assert median == least == most > 1


def test_outputs_that_disagree_are_not_timed() -> None:
    def disagree(outputs: dict[str, Any]) -> str:
        raise AssertionError(f"{sorted(outputs)} disagree")

    with pytest.raises(AssertionError, match="disagree"):
        measure(row(agree=disagree))


def test_tokens_in_common() -> None:
    ours = [([1, 2, 3, 4], 0.0), ([5, 6], 0.0)]
    parted = {OURS: ours, "other": [([1, 2, 9, 4, 5], 0.0), ([5, 6], 0.0)]}
    assert "other 67% of 7" in checks.agree_speech(parted, exact=False)
    with pytest.raises(AssertionError, match="4 of 6 tokens as ours"):
        checks.agree_speech(parted, exact=True)
    assert checks.lengths(ours) == [5, 3]


def test_work_of_a_batch_is_that_of_its_chunks() -> None:
    """But for the weights, which are read once a step for all."""
    dims = {"n_text_state": 8, "n_text_layer": 2, "n_audio_ctx": 10, "n_vocab": 50}
    alone = [checks.decoder_work(dims, [steps], 4) for steps in (3, 5)]
    together = checks.decoder_work(dims, [3, 5], 4)
    assert together.operations == sum(work.operations for work in alone)
    weights = 2 * 14 * 8**2 + 50 * 8
    shared = 4 * (3 * weights + 2 * 2 * 8**2)
    assert together.bytes == sum(work.bytes for work in alone) - shared
