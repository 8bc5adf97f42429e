"""Makes the recordings that the tests score: `python -m demo.evaluation`, after the training corpora are there.

Voices and sentences that training never saw: conversations of held-out espeak-ng voices, and of flite's voices, which
no corpus for training has. Beside each lies a .json that says what was spoken, by whom and when; index.json says how
far each sentence is from the nearest sentence of the training corpora.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from scipy.signal import correlate

from demo import ASSETS, RATE, ROOT, espeak, flite, grammar, voices
from demo.augment import augment
from demo.conversations import Conversation, compose
from demo.corpus import Corpus, Utterance
from mlx_speech.audio import load_audio

FOLDER = ROOT / "tests" / "data" / "demo"
SEED = 3
TRAINING = ("recognition", "speakers")  # no sentence may be near one of these corpora
NEAR = 0.2  # of the longer sentence's words: a smaller distance, or a single edit, is a near-copy
SENTENCES = 16  # per speaker; not all are said
STRENGTH = 0.6  # of the room and the noise
BITS = 48_000  # per second of Ogg Opus
SPEAKERS = (2, 3, 4, 2, 3, 4, 2, 3, 2, 3)  # of the conversations of espeak-ng's voices
FIRST = 100  # number of the first speaker: "speakers-test" has lower ones


# --- sentences that training never saw --------------------------------------------------------------------------------


class Sentences:
    """Sentences of `grammar` that are no near-copy of a known one: of the training corpora, or drawn before."""

    def __init__(self, known: Iterable[tuple[str, ...]]) -> None:
        unique = sorted(set(known))
        self.count = len(unique)
        self.digest = hashlib.sha256("\n".join(" ".join(words) for words in unique).encode()).hexdigest()
        self.known = _table(unique)
        self.drawn: dict[tuple[str, ...], float] = {}  # → distance to the nearest training sentence
        self.rejected = 0

    def draw(self, rng: np.random.Generator) -> list[str]:
        while True:
            words = grammar.sentence(rng)
            if not grammar.reserved(words):  # training may have it
                continue
            row = _table([tuple(words)])[0, : len(words)]
            edits, distance = nearest(row, self.known)
            edits_drawn, distance_drawn = nearest(row, _table(list(self.drawn)))
            if min(edits, edits_drawn) > 1 and min(distance, distance_drawn) >= NEAR:
                self.drawn[tuple(words)] = distance
                return words
            self.rejected += 1


_NUMBERS = {word: i for i, word in enumerate(grammar.WORDS)}


def _table(sentences: list[tuple[str, ...]]) -> np.ndarray:
    """(sentences, most words) numbers of the words, -1 behind the last."""
    table = np.full((len(sentences), max((len(words) for words in sentences), default=0)), -1, np.int16)
    for row, words in zip(table, sentences, strict=True):
        row[: len(words)] = [_NUMBERS[word] for word in words]
    return table


def nearest(words: np.ndarray, known: np.ndarray) -> tuple[int, float]:
    """The smallest word edit distance of `words` (n,) to a row of `known`, as `_table` has them, and the smallest
    when each is divided by the number of words of the longer of the two."""
    if not len(known):
        return len(words), 1.0
    lengths = (known >= 0).sum(1)
    row = np.tile(np.arange(known.shape[1] + 1, dtype=np.int16), (len(known), 1)).T.copy()
    for i, word in enumerate(words, 1):  # Levenshtein's table row by row, of all known sentences at once
        best = np.minimum(row[:-1] + (word != known.T), row[1:] + 1)
        row[0] = i
        for j in range(len(best)):
            np.minimum(best[j], row[j] + 1, out=row[j + 1])
    edits = row[lengths, np.arange(len(known))]
    return int(edits.min()), float((edits / np.maximum(lengths, len(words))).min())


# --- conversations ----------------------------------------------------------------------------------------------------


class Spoken(Corpus):
    """A corpus in memory."""

    def __init__(self, utterances: list[Utterance]) -> None:
        self._utterances = utterances
        self.speakers = [utterance.speaker for utterance in utterances]
        self.durations = np.array([utterance.duration for utterance in utterances])

    def __getitem__(self, i: int) -> Utterance:
        return self._utterances[i]


def conversation(
    speak: list[Callable[[list[str]], Utterance]],
    sentences: Sentences,
    rng: np.random.Generator,
    seconds: float,
    strength: float,
) -> Conversation:
    """At most `seconds` long; `speak` has a function for each speaker."""
    spoken = Spoken([say(sentences.draw(rng)) for say in speak for _ in range(SENTENCES)])
    clean = compose(spoken, rng, seconds, len(speak), augmented=False)
    return Conversation(augment(clean.samples, rng, strength), clean.placed)


def description(made: Conversation, file: str, how: str) -> dict[str, object]:
    """What the .json beside a recording says; all times are in seconds."""
    names = dict(sorted({placed.speaker: placed.utterance.speaker for placed in made.placed}.items()))
    return {
        "file": file,
        "sample_rate": RATE,
        "duration": round(made.duration, 4),
        "made": how,
        "voices": {f"speaker {number}": name for number, name in names.items()},
        "utterances": [
            {
                "start": round(placed.first, 4),
                "end": round(placed.last, 4),
                "speaker": f"speaker {placed.speaker}",
                "text": grammar.written(placed.utterance.words),
            }
            for placed in made.placed
        ],
        "turns": [
            {"start": round(start, 4), "end": round(end, 4), "speaker": f"speaker {speaker}"}
            for start, end, speaker in made.turns
        ],
        "words": [
            {
                "text": word,
                "start": round(start, 4),
                "end": round(end, 4),
                "speaker": f"speaker {speaker}",
                "exact": exact,
            }
            for start, end, word, speaker, exact in made.words
        ],
    }


# --- files ------------------------------------------------------------------------------------------------------------


def write_audio(path: Path, samples: np.ndarray) -> None:
    """(n,) float32 as 16-bit FLAC or as Ogg Opus, by the name's end. Raises `RuntimeError` if decoding shifts it."""
    codec, options = ("libopus", {}) if path.suffix == ".opus" else ("flac", {"compression_level": "12"})
    data = np.clip(np.round(samples * 32768), -32768, 32767).astype(np.int16)
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=RATE, layout="mono", options=options)
        if codec == "libopus":
            stream.bit_rate = BITS
        for start in range(0, data.size, 4096):
            frame = av.AudioFrame.from_ndarray(data[None, start : start + 4096], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    decoded = load_audio(path)
    if decoded.size != samples.size or shift(decoded, samples):
        raise RuntimeError(f"{path}: {decoded.size - samples.size} samples more, moved by {shift(decoded, samples)}")


def shift(first: np.ndarray, second: np.ndarray) -> int:
    """By how many samples `first` comes later than `second`: the lag of the peak of their cross-correlation."""
    return int(np.argmax(correlate(first, second, method="fft"))) - (second.size - 1)


def _write(folder: Path, name: str, made: Conversation, how: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    write_audio(path, made.samples)
    path.with_suffix(".json").write_text(json.dumps(description(made, name, how), indent=1) + "\n")
    speakers = len({placed.speaker for placed in made.placed})
    print(f"{name}: {made.duration:.1f} s, {speakers} speakers, {len(made.words)} words, {path.stat().st_size} bytes")


def main(folder: Path = FOLDER, assets: Path = ASSETS) -> None:
    """Raises `FileNotFoundError` where the training corpora are not made yet."""
    corpora = [Corpus.open(name) for name in TRAINING]
    sentences = Sentences(corpus.words(i) for corpus in corpora for i in range(len(corpus)))
    said: list[dict[str, object]] = []

    def make(where: Path, name: str, number: int, speak: list, seconds: float, strength: float, by: str) -> None:
        made = conversation(speak, sentences, np.random.default_rng([SEED, number]), seconds, strength)
        how = (
            f"python -m demo.evaluation: {by}, seed {SEED}, {number}; room, noise and equaliser of strength {strength}"
        )
        _write(where, name, made, how)
        said.extend(
            {"file": name, "text": grammar.written(placed.utterance.words), "nearest": sentences.drawn[words]}
            for placed in made.placed
            for words in [placed.utterance.words]
        )

    for i, count in enumerate(SPEAKERS):
        # ten numbers are ten variants
        held_out = [voices.speaker(FIRST + 10 * i + k, held_out=True) for k in range(count)]
        make(folder, f"espeak-{i:02}.opus", i, _espeak(held_out), 60, STRENGTH, "held-out voices of espeak-ng")
    for i in range(3):
        speak = [lambda words, voice=voice: flite.speak(words, voice) for voice in flite.VOICES]
        make(folder, f"flite-{i:02}.opus", 100 + i, speak, 45, STRENGTH, "flite's voices")
    held_out = [voices.speaker(FIRST + 10 * len(SPEAKERS) + k, held_out=True) for k in range(3)]
    make(assets, "conversation.flac", 200, _espeak(held_out), 60, 0.5, "held-out voices of espeak-ng")

    index = {
        "seed": SEED,
        "training": {"corpora": TRAINING, "different sentences": sentences.count, "sha256": sentences.digest},
        "near": f"a word edit distance of 1, or of less than {NEAR} of the longer sentence's words",
        "rejected": sentences.rejected,
        "nearest": min(one["nearest"] for one in said),
        "sentences": said,
    }
    (folder / "index.json").write_text(json.dumps(index, indent=1) + "\n")
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(
        f"{len(said)} sentences, {sentences.rejected} rejected as near-copies of others or of "
        f"{sentences.count} training sentences; nearest {index['nearest']:.2f}; {size} bytes"
    )


def _espeak(speakers: list[voices.Voice]) -> list[Callable[[list[str]], Utterance]]:
    return [lambda words, voice=voice: espeak.speak(words, voice) for voice in speakers]


if __name__ == "__main__":
    main()
