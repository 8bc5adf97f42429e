"""Chunks of many owners in one recognition: turns, cancelling, and the same results as alone, whatever the schedule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from scripted import WIDTH, Script, ScriptedModel

from mlx_speech.errors import OptionError
from mlx_speech.models.whisper import ModelArgs
from mlx_speech.stages.whisper import batched
from mlx_speech.stages.whisper.batched import Recognised, Recognition, Task
from mlx_speech.stages.whisper.decode import DecodingOptions
from mlx_speech.stages.whisper.tokenizer import TASKS, TIMESTAMPS, Tokenizer, Vocabulary, _byte_alphabet
from mlx_speech.stages.whisper.turns import Turns
from mlx_speech.stages.whisper.workload import FILLS, Workload
from mlx_speech.transcript import Chunk, Region, Segment, Word

OFF = {"compression_ratio_threshold": None, "logprob_threshold": None, "no_speech_threshold": None}
GREEDY = DecodingOptions(temperature=(0.0,), sample_len=8, **OFF)
FALLBACK = DecodingOptions(temperature=(0.0, 0.5, 1.0), best_of=2, sample_len=6, suppress_tokens="")
SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", *TASKS, *TIMESTAMPS)
# letters, and no words, so that a step takes no time
LETTERS = {letter: index for index, letter in enumerate(_byte_alphabet())}
VOCABULARY = Tokenizer(Vocabulary(LETTERS, [], {name: index for index, name in enumerate(SPECIAL, 256)}, True))


class Short(Script):
    """Says a few letters. Its windows are of four kinds, by number: plain, unsure, silent, in German."""

    def __init__(self, seed: int):
        self.seed, self.ids, self.vocab, self.multilingual = seed, VOCABULARY, VOCABULARY.n_vocab, True
        sizes = {"n_audio_ctx": 1500, "n_audio_state": WIDTH, "n_audio_head": 1, "n_audio_layer": 1}
        sizes |= {"n_text_ctx": 448, "n_text_state": WIDTH, "n_text_head": 1, "n_text_layer": 1}
        self.args = ModelArgs(n_mels=80, n_vocab=self.vocab, **sizes)

    def logits(self, window: int, tokens: Sequence[int]) -> np.ndarray:
        spoken = list(tokens[tokens.index(VOCABULARY.sot) + 1 :])
        dice = np.random.default_rng([self.seed, window, *tokens])
        values = np.full(self.vocab, -20, np.float32)
        values[dice.integers(65, 90, 8)] = dice.normal(2, 0.1 if window % 3 == 1 else 2, 8)
        time = 25 * len(spoken) + dice.integers(0, 25)
        values[VOCABULARY.timestamp_begin + time] = dice.normal(2, 2)
        values[VOCABULARY.eot] = len(spoken) - 5 + dice.normal()
        values[VOCABULARY.no_speech] = 9 if window % 7 == 6 else -5
        values[VOCABULARY.languages["en"]] = 5
        values[VOCABULARY.languages["de"]] = 6 if window % 2 else 4
        return values


@pytest.fixture(autouse=True)
def _planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of a window is the value of its samples, and words share the time of their segment."""

    def encode(audios: Sequence[np.ndarray], model: Any) -> mx.array:
        return mx.array(np.stack([np.full((1500, WIDTH), audio[0]) for audio in audios]).astype(np.float32))

    def with_words(batch: Sequence[batched.DecodedStretch], *_: Any) -> Iterator[tuple[Any, list[Segment]]]:
        for heard in batch:
            yield heard.stretch, [with_word(segment) for segment in heard.segments]

    monkeypatch.setattr(batched, "encode", encode)
    monkeypatch.setattr(batched, "_with_words", with_words)


def with_word(segment: Segment) -> Segment:
    return replace(segment, words=(Word(segment.start, segment.end, segment.text),))


def task(number: int, owner: Any = None, **options: Any) -> Task:
    """Of some kind, by its number: with words or without, with regions or without, too short, of unknown language."""
    seconds = (3.0, 9.0, 20.0, 0.01, 6.0)[number % 5]
    regions = (Region(1.0, 1.0 + seconds / 3), Region(1.0 + seconds / 2, 1.0 + seconds)) if number % 2 else ()
    audio = np.full(round(seconds * 16_000), number, np.float32)
    language = ("en", None)[number % 4 == 1]
    options = {"words": number % 3 == 0, "multilingual": number % 11 == 3, "seed": number, **options}
    return Task(number, Chunk(1.0, 1.0 + seconds, regions), audio, language, owner=owner, **options)


def said(done: Recognised) -> Any:
    texts = [(s.start, s.end, s.text, s.tokens, s.language, s.temperature, s.words) for s in done.segments]
    return texts, done.silences


def finish(recognition: Recognition, most: int = 2000) -> list[Recognised]:
    done = []
    for _ in range(most):
        if recognition.idle:
            return done
        done += recognition.advance()
    raise AssertionError("it does not come to an end")


def own(options: DecodingOptions, number: int) -> DecodingOptions | None:
    """Options of the same group, of which some tasks have others."""
    if number % 4 == 0:
        return None
    more = [
        {"sample_len": 4, "seed": 7},
        {"initial_prompt": "HELLO", "length_penalty": 0.5, "logprob_threshold": -0.2},
        {"prefix": "AB", "no_speech_threshold": None, "compression_ratio_threshold": 0.5},
    ]
    return replace(options, **more[number % 4 - 1])


@cache
def alone(seed: int, number: int, options: DecodingOptions) -> Any:
    recognition = Recognition(ScriptedModel(Short(seed)), VOCABULARY, options, batch_size=1)
    recognition.add(task(number, options=own(options, number)))
    (done,) = finish(recognition)
    return said(done)


# --- any schedule ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", range(8))
def test_results_do_not_depend_on_the_schedule(part: int) -> None:
    """Tasks are added, owners cancelled and steps taken in any order: each task comes once, as it does alone, and
    nothing of those that were cancelled."""
    for seed in range(part * 13, part * 13 + 13):
        check_schedule(seed)


def check_schedule(seed: int) -> None:
    dice = np.random.default_rng(seed)
    options = (GREEDY, FALLBACK, FALLBACK, replace(GREEDY, beam_size=2))[seed % 4]
    recognition = Recognition(ScriptedModel(Short(seed % 3)), VOCABULARY, options, batch_size=int(dice.integers(1, 5)))
    expected: dict[Task, Any] = {}
    for _ in range(40):
        action = dice.integers(0, 10)
        if action < 3:
            number = int(dice.integers(0, 30))
            added = task(number, owner=int(dice.integers(0, 3)), options=own(options, number))
            expected[added] = alone(seed % 3, added.key, options)
            recognition.add(added)
        elif action == 3 and dice.random() < 0.4:
            owner = int(dice.integers(0, 3))
            recognition.cancel(owner)
            expected = {other: text for other, text in expected.items() if other.owner != owner}
            assert all(job.owner != owner for job in recognition._decoder.jobs)
        else:
            for done in recognition.advance():
                assert said(done) == expected.pop(done.task), seed
    for done in finish(recognition):
        assert said(done) == expected.pop(done.task), seed
    assert not expected and not recognition.waiting and recognition.advance() == []


def test_schedules_have_all_that_matters() -> None:
    """What the test above rests on: several temperatures, silence, second hearings, languages, words."""
    results = [alone(seed, number, FALLBACK) for seed in range(3) for number in range(30)]
    segments = [segment for texts, _ in results for segment in texts]
    assert {segment[5] for segment in segments} == {0.0, 0.5, 1.0}
    assert {segment[4] for segment in segments} == {"en", "de"}
    assert {bool(segment[6]) for segment in segments} == {True, False}
    assert any(silences for _, silences in results) and any(not texts for texts, _ in results)


# --- cancelled -------------------------------------------------------------------------------------------------------

FAILS = replace(FALLBACK, logprob_threshold=0.0, no_speech_threshold=None)


def waits(recognition: Recognition) -> bool:
    return recognition.waiting > 0 and not recognition._decoder.jobs


def is_in_a_row(recognition: Recognition) -> bool:
    return bool(recognition._decoder._first.jobs)


def has_failed(recognition: Recognition) -> bool:
    return bool(recognition._decoder._failures)


def is_tried_again(recognition: Recognition) -> bool:
    return recognition._decoder._again is not None and bool(recognition._decoder._again.jobs)


def waits_for_words(recognition: Recognition) -> bool:
    return bool(recognition._untimed)


@pytest.mark.parametrize("others", [0, 3])
@pytest.mark.parametrize("state", [waits, is_in_a_row, has_failed, is_tried_again, waits_for_words])
def test_what_is_cancelled_leaves_at_once(state: Any, others: int) -> None:
    options = FALLBACK if state is waits_for_words else FAILS
    recognition = Recognition(ScriptedModel(Short(1)), VOCABULARY, options, batch_size=3)
    kept = [task(number, owner="other", options=own(options, number)) for number in range(others)]
    for number in (0, 6, 12, 18):
        recognition.add(task(number, owner="mine"))
    done: list[Recognised] = []
    for _ in range(500):
        if state(recognition):
            break
        done += recognition.advance()
    else:
        raise AssertionError("it is never so")
    for one in kept:
        recognition.add(one)
    done.clear()
    recognition.cancel("mine")
    assert all(job.owner == "other" for job in recognition._decoder.jobs)
    assert recognition.waiting == len([one for one in kept if one.audio.size > 320])
    assert recognition.idle is not bool(kept)
    done += finish(recognition)
    assert {one.task for one in done} == set(kept) and len(done) == len(kept)
    recognition.add(task(0, owner="mine"))  # and it may come again
    assert len(finish(recognition)) == 1


def test_owners_that_are_not_there_may_be_cancelled() -> None:
    recognition = Recognition(ScriptedModel(Short(1)), VOCABULARY, GREEDY, batch_size=2)
    recognition.cancel("nobody")
    assert recognition.idle and recognition.advance() == []


# --- turns -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [0, 2, 9])
@pytest.mark.parametrize("options", [GREEDY, FAILS])
def test_a_short_recording_does_not_wait_behind_a_long_one(options: DecodingOptions, late: int) -> None:
    """Not even where all of the long one fails."""
    recognition = Recognition(ScriptedModel(Short(1)), VOCABULARY, options, batch_size=3)
    easy = replace(options, logprob_threshold=None, compression_ratio_threshold=None)
    for _ in range(20):
        recognition.add(task(10, owner="long"))
    done = [done for _ in range(late) for done in recognition.advance()]
    before = len(done)
    for _ in range(2):
        recognition.add(task(16, owner="short", options=easy))
    owners = []
    while owners.count("short") < 2:
        owners += [done.task.owner for done in recognition.advance()]
    assert owners.count("long") <= 9 and before < 10  # what was under way, and turn by turn
    assert len(finish(recognition)) == 20 - before - owners.count("long")


def test_a_failure_is_tried_again_when_its_owner_waits_for_nothing_else() -> None:
    """And does not wait for the end of the others, who never fail."""
    recognition = Recognition(ScriptedModel(Short(1)), VOCABULARY, FALLBACK, batch_size=4)
    easy = replace(FALLBACK, logprob_threshold=None, compression_ratio_threshold=None)
    for _ in range(30):
        recognition.add(task(10, owner="long", options=easy))
    recognition.add(task(15, owner="short", options=FAILS))
    owners: list[Any] = []
    while "short" not in owners:
        owners += [done.task.owner for done in recognition.advance()]
    assert len(owners) < 25


def test_two_caches_at_most_and_few_tasks_are_held() -> None:
    recognition = Recognition(ScriptedModel(Short(1)), VOCABULARY, FAILS, batch_size=3)
    for number in range(30):
        recognition.add(task(10, owner=number % 2))
    most = 0
    while not recognition.idle:
        recognition.advance()
        most = max(most, len(recognition._decoder.jobs))
    assert 3 < most <= 2 * 2 * 3  # of each owner 2·batch_size


@pytest.mark.parametrize("in_numpy", [True, False])
@pytest.mark.parametrize("options", [GREEDY, FAILS, replace(GREEDY, beam_size=2)])
@pytest.mark.parametrize("size", [1, 4])
def test_the_work_of_the_decoder_is_counted(
    options: DecodingOptions, size: int, in_numpy: bool, monkeypatch: Any
) -> None:
    model = ScriptedModel(Short(1), in_numpy)
    step = model.decoder.step_in_numpy
    steps: list[int] = []

    def counted(*arguments: Any) -> np.ndarray:
        steps.append(1)
        return step(*arguments)

    monkeypatch.setattr(model.decoder, "step_in_numpy", counted)  # which `step` calls as well
    workload = Workload()
    recognition = Recognition(model, VOCABULARY, options, batch_size=size, workload=workload)  # type: ignore[arg-type]
    for _ in range(3):
        recognition.add(task(10))  # of one stretch
    rows: list[int] = []
    while not recognition.idle:
        recognition.advance()
        rows.append(recognition.decoding)
    assert workload.steps == len(steps) > 0
    assert workload.fallbacks == 3 * (len(options.temperature) - 1)
    assert max(rows) <= size and rows[-1] == 0
    if size == 1:  # it is full, or there is none
        assert workload.turns[FILLS.index(1.0)] == sum(workload.turns) == workload.turn_fills > 0
    else:
        assert 0 < workload.turn_fills <= 0.75 * sum(workload.turns)
        assert sum(workload.turns[FILLS.index(1.0) :]) == 0


def test_turns() -> None:
    turns: Turns[int, int] = Turns()
    for owner, items in {"a": (1, 2, 3), "b": (4,), "c": (5, 6)}.items():
        for item in items:
            turns.add(owner, item)
    turns.add_first("a", 0)
    assert turns.owners == ["a", "b", "c"] and len(turns) == 7
    assert turns.take_raw(["a", "c"], 3) == [0, 5, 1]
    turns.add_ready("a", 10)
    turns.add_ready("c", 15)
    assert [turns.take_ready(owner) for owner in ("a", "c")] == [10, 15]
    assert turns.owners == ["b", "a", "c"] and len(turns) == 4
    turns.drop("b")
    assert turns.owners == ["a", "c"] and turns.ready("b") == turns.ready("a") == 0


# --- what it takes ---------------------------------------------------------------------------------------------------


def test_what_may_share_a_batch() -> None:
    alike = {"sample_len": 3, "length_penalty": 1.0, "initial_prompt": "x", "prefix": "y", "hotwords": "z", "seed": 3}
    alike |= {"compression_ratio_threshold": None, "logprob_threshold": None, "no_speech_threshold": None}
    apart = {"task": "translate", "temperature": (0.0,), "best_of": 2, "beam_size": 3, "suppress_tokens": "5"}
    apart |= {"suppress_blank": False, "suppress_numerals": True, "without_timestamps": True}
    apart |= {"max_initial_timestamp": None, "patience": 2.0}
    assert {*alike, *apart} == set(DecodingOptions.__dataclass_fields__)
    beams = DecodingOptions(beam_size=2)
    for name, value in alike.items():
        assert replace(beams, **{name: value}).group == beams.group
    for name, value in apart.items():
        assert replace(beams, **{name: value}).group != beams.group
    assert DecodingOptions(suppress_tokens="3,4").group == DecodingOptions(suppress_tokens=(3, 4)).group
    recognition = Recognition(ScriptedModel(Short(1)), VOCABULARY, GREEDY, batch_size=2)
    with pytest.raises(ValueError, match="group"):
        recognition.add(task(0, options=FALLBACK))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"options": replace(GREEDY, prefix="A" * 500, sample_len=None)}, "prefix is 501 tokens long"),
        ({"language": "xx"}, "xx"),
        ({"audio": np.zeros(480_161, np.float32)}, "choose a smaller chunk_size"),
    ],
)
def test_a_task_that_cannot_be_done_harms_no_other(wrong: dict[str, Any], said: str) -> None:
    recognition = Recognition(ScriptedModel(Short(1)), VOCABULARY, GREEDY, batch_size=2)
    recognition.add(task(0))
    with pytest.raises(OptionError, match=said):
        recognition.add(replace(task(2), **wrong))
    assert len(finish(recognition)) == 1


@pytest.mark.parametrize(("on_cpu", "sizes"), [(True, {1}), (False, {4})])
def test_a_piece_of_work_is_small(on_cpu: bool, sizes: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, where chunks take as long one by one; on a GPU a batch is encoded at once."""
    encoded: list[int] = []
    encode = batched.encode
    monkeypatch.setattr(batched, "encode", lambda audios, model: encoded.append(len(audios)) or encode(audios, model))
    monkeypatch.setattr(batched, "on_cpu", lambda: on_cpu)
    recognition = Recognition(ScriptedModel(Short(1)), VOCABULARY, GREEDY, batch_size=4)
    for _ in range(8):
        recognition.add(task(10))
    assert len(finish(recognition)) == 8
    assert set(encoded) == sizes and sum(encoded) == 8
