"""The speech that the demo's models are made and scored with: its language, voices, times, and the shipped recordings.

What needs a synthesizer is skipped where that is not installed; no parity rests on it.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import correlate

sys.path.insert(0, str(Path(__file__).parents[1]))  # for demo/, which is not installed

from demo import RATE, espeak, evaluation, festival, flite, grammar, voices
from demo.augment import augment
from demo.conversations import GAP, variant
from demo.corpus import Utterance
from mlx_speech.audio import load_audio

SHIPPED = [*sorted(evaluation.FOLDER.glob("*-??.json")), evaluation.ASSETS / "conversation.json"]
SENTENCE = ["please", "bring", "some", "cold", "bottles", "from", "london", "before", "friday"]


def edges(samples: np.ndarray, below: float = 35) -> tuple[float, float]:
    """Where the level of 5 ms frames first comes, and last is, within so many dB of the loudest, in seconds."""
    frames = samples[: samples.size // 80 * 80].reshape(-1, 80)
    level = 10 * np.log10((frames**2).mean(1) + 1e-12)
    loud = np.flatnonzero(level > level.max() - below)
    return loud[0] / 200, (loud[-1] + 1) / 200


# --- the language -----------------------------------------------------------------------------------------------------


def test_the_language_is_not_small() -> None:
    assert len(grammar.WORDS) == len(set(grammar.WORDS)) >= 250
    assert all(word.isascii() and word.isalpha() and word.islower() for word in grammar.WORDS)
    assert grammar.perplexity(1500) >= 40


def test_sentences_have_5_to_15_words_and_a_third_of_them_are_random() -> None:
    rng = np.random.default_rng(8)
    sentences = [grammar.sentence(rng) for _ in range(1500)]
    assert {len(words) for words in sentences} == set(range(5, 16))
    assert {word for words in sentences for word in words} <= set(grammar.WORDS)
    lengths = grammar.LONGEST - grammar.SHORTEST + 1
    random = [
        # no pattern adds to the probability
        math.isclose(grammar.probability(words), grammar.RANDOM / lengths / len(grammar.WORDS) ** len(words))
        for words in sentences
    ]
    assert abs(np.mean(random) - 1 / 3) < 4 * math.sqrt(2 / 9 / 1500)


def test_written() -> None:
    assert grammar.written(["the", "boat", "sold", "anna", "in", "may"]) == "The boat sold Anna in May."


def test_a_sixteenth_of_the_sentences_is_kept_for_tests() -> None:
    rng = np.random.default_rng(9)
    reserved = np.mean([grammar.reserved(grammar.sentence(rng)) for _ in range(4000)])
    assert abs(reserved - 1 / 16) < 4 * math.sqrt(15 / 256 / 4000)


# --- voices and sound -------------------------------------------------------------------------------------------------


def test_held_out_voices_are_never_trained_on() -> None:
    assert len(set(voices.TRAIN)) >= 60 and not set(voices.TRAIN) & set(voices.HELD_OUT)
    rng = np.random.default_rng(0)
    for held_out, names in ((False, voices.TRAIN), (True, voices.HELD_OUT)):
        assert {voices.random_voice(rng, held_out).variant for _ in range(200)} <= set(names)
        assert {voices.speaker(i, held_out).variant for i in range(len(names))} == set(names)
    assert voices.speaker(3) == voices.speaker(3) != voices.speaker(4)


@pytest.mark.parametrize("seed", range(6))
def test_augmentation_moves_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bursts = (np.arange(2 * RATE) // 3000 % 3 == 1) * rng.standard_normal(2 * RATE)
    samples = (0.1 * bursts).astype(np.float32)
    heard = augment(samples, rng)
    assert heard.shape == samples.shape and heard.dtype == np.float32 and np.abs(heard).max() <= 1
    assert not np.array_equal(heard, samples)
    assert np.argmax(np.abs(correlate(heard, samples, method="fft"))) == samples.size - 1
    assert np.array_equal(augment(samples, np.random.default_rng(seed), 0.0), samples)


def check(spoken: Utterance, words: list[str], tolerance: float) -> None:
    """Its times are in order, and its ends are where its sound ends."""
    assert list(spoken.words) == words and spoken.samples.dtype == np.float32
    assert abs(np.abs(spoken.samples).max() - 0.5) < 1e-3
    assert (np.diff(spoken.starts) > 0).all() and (spoken.ends > spoken.starts).all()
    assert (spoken.ends[:-1] <= spoken.starts[1:] + 1e-3).all()
    assert spoken.starts[0] <= 0.06 and spoken.duration - 0.06 <= spoken.ends[-1] <= spoken.duration
    first, last = edges(spoken.samples)
    assert abs(spoken.starts[0] - first) < tolerance and abs(spoken.ends[-1] - last) < tolerance


@pytest.mark.parametrize("number", range(0, 60, 7))
def test_espeak_says_when(number: int) -> None:
    try:
        spoken = espeak.speak(SENTENCE, voices.speaker(number))
    except OSError as error:
        pytest.skip(str(error))
    check(spoken, SENTENCE, 0.03)
    assert spoken.exact.all() and spoken.phones.size > 25 and (np.diff(spoken.phone_starts) >= 0).all()


def test_espeak_says_which_words_it_runs_together() -> None:
    words = ["the", "letters", "of", "the", "painter"]
    try:
        spoken = espeak.speak(words, voices.speaker(0))
    except OSError as error:
        pytest.skip(str(error))
    assert spoken.exact.tolist() == [True, True, False, False, True]
    check(spoken, words, 0.03)


@pytest.mark.parametrize("voice", flite.VOICES)
def test_flite_says_when(voice: str) -> None:
    ctypes.CDLL(None).srand(1)  # flite's breath is C's chance, whose state other tests move
    try:
        spoken = flite.speak(SENTENCE, voice)
    except RuntimeError as error:
        pytest.skip(str(error))
    check(spoken, SENTENCE, 0.06)


@pytest.mark.parametrize("voice", festival.PACKAGES)
def test_festival_says_when(voice: str) -> None:
    if voice not in festival.VOICES:
        pytest.skip(f"festival has no voice {voice} here")
    sentences = [SENTENCE, ["monday", "ten", "and", "may", "six", "was", "narrow"]]
    plain = list(festival.speak_many(sentences, voice))
    for spoken, words in zip(plain, sentences, strict=True):
        check(spoken, words, 0.06)
    varied = next(festival.speak_many([SENTENCE], voice, np.random.default_rng(1)))
    factor = float(varied.speaker.split()[-1])
    assert factor != 1
    np.testing.assert_allclose(np.diff(varied.starts[1:]) * factor, np.diff(plain[0].starts[1:]), atol=1e-3)


def test_festival_says_what_to_install() -> None:
    with pytest.raises(RuntimeError, match="apt-get install festival festvox"):
        next(festival.speak_many([SENTENCE], "nobody"))


# --- the shipped recordings -------------------------------------------------------------------------------------------


def test_there_are_enough_recordings_and_they_are_small() -> None:
    names = [path.stem for path in SHIPPED]
    assert names == [*(f"espeak-{i:02}" for i in range(10)), *(f"flite-{i:02}" for i in range(3)), "conversation"]
    assert sum(path.stat().st_size for path in evaluation.FOLDER.iterdir()) < 6e6


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_recording_is_what_its_json_says(path: Path) -> None:
    truth = json.loads(path.read_text(encoding="utf-8"))
    samples = load_audio(path.with_name(truth["file"]))
    words, turns, speakers = truth["words"], truth["turns"], list(truth["voices"])
    assert truth["sample_rate"] == RATE and abs(samples.size / RATE - truth["duration"]) < 1e-3
    assert 2 <= len(speakers) <= 4 and {turn["speaker"] for turn in turns} == set(speakers)
    # no two speakers with one voice, all held out
    variants = [variant(name) for name in truth["voices"].values()]
    assert len(set(variants)) == len(variants)
    assert set(variants) <= {*voices.HELD_OUT, *(f"flite {name}" for name in flite.VOICES)}
    for spans in (words, turns, truth["utterances"]):
        assert [span["start"] for span in spans] == sorted(span["start"] for span in spans)
        assert all(0 <= span["start"] < span["end"] <= truth["duration"] for span in spans)
    for utterance in truth["utterances"]:
        own = [word for word in words if inside(word, utterance)]
        assert grammar.written([word["text"] for word in own]) == utterance["text"]
        pieces = [turn for turn in turns if inside(turn, utterance)]
        assert all(sum(inside(word, turn) for turn in pieces) == 1 for word in own)
        assert {piece["start"] for piece in pieces} <= {word["start"] for word in own}
        assert {piece["end"] for piece in pieces} <= {word["end"] for word in own}
        assert all(after["start"] - before["end"] > GAP for before, after in itertools.pairwise(pieces))
    assert sum(word["exact"] for word in words) >= 0.95 * len(words)
    # the sound agrees: loud where someone speaks, silent elsewhere, and less so with all turns moved
    louder = [contrast(samples, turns, moved) for moved in (-0.1, 0.0, 0.1)]
    assert louder[1] > 10 and louder[1] == max(louder)


def contrast(samples: np.ndarray, turns: list[dict], moved: float) -> float:
    """How much louder the turns are than the rest, in dB, if they are moved by so many seconds."""
    spoken = np.zeros(samples.size, bool)
    for turn in turns:
        spoken[max(0, round((turn["start"] + moved) * RATE)) : round((turn["end"] + moved) * RATE)] = True
    return 10 * math.log10(np.mean(samples[spoken] ** 2) / np.mean(samples[~spoken] ** 2))


def inside(inner: dict, outer: dict) -> bool:
    same = inner["speaker"] == outer["speaker"]
    return same and outer["start"] - 1e-6 <= inner["start"] and inner["end"] <= outer["end"] + 1e-6


def test_some_changes_of_speaker_overlap() -> None:
    changes, overlaps = 0, []
    for path in SHIPPED:
        for before, after in itertools.pairwise(json.loads(path.read_text(encoding="utf-8"))["utterances"]):
            if before["speaker"] != after["speaker"]:
                changes += 1
                overlaps += [before["end"] - after["start"]] if after["start"] < before["end"] else []
    assert changes > 100 and 0.08 < len(overlaps) / changes < 0.25
    assert min(overlaps) > 0.05 and 0.4 < max(overlaps) < 1


def test_no_sentence_is_near_one_of_training() -> None:
    index = json.loads((evaluation.FOLDER / "index.json").read_text(encoding="utf-8"))
    listed = sorted((one["file"], one["text"]) for one in index["sentences"])
    shipped = [json.loads(path.read_text(encoding="utf-8")) for path in SHIPPED]
    assert listed == sorted((one["file"], said["text"]) for one in shipped for said in one["utterances"])
    sentences = [tuple(text.rstrip(".").lower().split()) for _, text in listed]
    assert all(grammar.reserved(words) for words in sentences)
    assert index["training"]["different sentences"] > 20_000
    assert index["nearest"] == min(one["nearest"] for one in index["sentences"]) >= evaluation.NEAR
    table = evaluation._table(sentences)
    for i, words in enumerate(sentences):
        edits, distance = evaluation.nearest(table[i, : len(words)], np.delete(table, i, 0))
        assert edits > 1 and distance >= evaluation.NEAR, " ".join(words)


def test_distances_of_sentences() -> None:
    rng = np.random.default_rng(2)
    known = [tuple(rng.choice(grammar.WORDS[:6], size=rng.integers(3, 9))) for _ in range(30)]
    for words in known[:10]:
        words = words[1:] + words[:1]
        distances = [levenshtein(words, other) for other in known]
        ratios = [distance / max(len(words), len(other)) for distance, other in zip(distances, known, strict=True)]
        row = evaluation._table([words])[0]
        assert evaluation.nearest(row, evaluation._table(known)) == (min(distances), pytest.approx(min(ratios)))


def levenshtein(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    if not a or not b:
        return len(a) + len(b)
    previous = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        current = [i]
        for j, y in enumerate(b, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (x != y)))
        previous = current
    return previous[-1]


def test_the_corpora_here_keep_off_the_sentences() -> None:
    try:
        corpora = [evaluation.Corpus.open(name) for name in evaluation.TRAINING]
    except FileNotFoundError:
        pytest.skip("the training corpora are not made here: python -m demo.build")
    index = json.loads((evaluation.FOLDER / "index.json").read_text(encoding="utf-8"))
    training = evaluation.Sentences(corpus.words(i) for corpus in corpora for i in range(len(corpus)))
    if training.digest == index["training"]["sha256"]:
        return  # compared when the recordings were made
    for said in index["sentences"]:
        words = tuple(said["text"].rstrip(".").lower().split())
        edits, distance = evaluation.nearest(evaluation._table([words])[0], training.known)
        assert edits > 1 and distance >= evaluation.NEAR, said["text"]
