"""The corpora: `python -m demo.build [name …]` synthesizes those that are not there yet, and prints what they hold."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator

import numpy as np

from demo import WORK, espeak, festival, flite
from demo.corpus import Corpus, Utterance
from demo.grammar import WORDS, perplexity, reserved, sentence
from demo.voices import DEVELOPMENT, HELD_OUT, TRAIN, random_voice, speaker

RECOGNITION, FESTIVAL = 26_000, 1_200  # utterances of espeak-ng, and of each of festival's voices
SPEAKERS, UTTERANCES = 276, 24  # four identities of every voice
TEST_SPEAKERS, TEST_UTTERANCES = 24, 20
IDENTITIES, IDENTITY_UTTERANCES = 600, 14  # of the speaker embedding
DEVELOPED, DEVELOPMENT_UTTERANCES = 340, 10  # for its statistics, and the settings of the pipeline


def sentences(seed: int, count: int, held_out: bool = False) -> Iterator[list[str]]:
    """Those that are reserved for tests, or only the others."""
    rng = np.random.default_rng([seed, held_out])
    while count:
        words = sentence(rng)
        if reserved(words) == held_out:
            count -= 1
            yield words


def recognition() -> Iterator[Utterance]:
    """Every utterance in another voice."""
    rng = np.random.default_rng(1)
    for words in sentences(1, RECOGNITION):
        yield espeak.speak(words, random_voice(rng))
    for number, voice in enumerate(festival.VOICES):
        yield from festival.speak_many(sentences(10 + number, FESTIVAL), voice, np.random.default_rng([2, number]))


def recognition_test() -> Iterator[Utterance]:
    rng = np.random.default_rng(3)
    for words in sentences(3, 300, held_out=True):
        yield espeak.speak(words, random_voice(rng, held_out=True))


def speakers() -> Iterator[Utterance]:
    """Voices that keep their pitch, rate and resampling, and say many sentences."""
    for number in range(SPEAKERS):
        for words in sentences(100 + number, UTTERANCES):
            yield espeak.speak(words, speaker(number))


def identities(count: int, utterances: int, development: bool) -> Iterator[Utterance]:
    """As many speakers beyond those of `speakers`, of the voices for development or only of the others."""
    others = itertools.count(SPEAKERS)
    numbers = (number for number in others if (speaker(number).variant in DEVELOPMENT) == development)
    for number in itertools.islice(numbers, count):
        for words in sentences(100 + number % SPEAKERS, utterances):  # those of `speakers`
            yield espeak.speak(words, speaker(number))


def speakers_test() -> Iterator[Utterance]:
    for number in range(TEST_SPEAKERS):
        for words in sentences(100 + number, TEST_UTTERANCES, held_out=True):
            yield espeak.speak(words, speaker(number, held_out=True))


def flite_test() -> Iterator[Utterance]:
    """The synthesizer that training never hears."""
    for number, voice in enumerate(flite.VOICES):
        for words in sentences(50 + number, 60, held_out=True):
            yield flite.speak(words, voice)


CORPORA = {
    "speakers": speakers,
    "identities": lambda: identities(IDENTITIES, IDENTITY_UTTERANCES, development=False),
    "development": lambda: identities(DEVELOPED, DEVELOPMENT_UTTERANCES, development=True),
    "speakers-test": speakers_test,
    "recognition": recognition,
    "recognition-test": recognition_test,
    "flite": flite_test,
}


def main() -> None:
    print(f"{len(WORDS)} words, perplexity {perplexity():.1f} a word; {len(TRAIN)} voices, {len(HELD_OUT)} held out")
    for name in sys.argv[1:] or CORPORA:
        if not (WORK / "corpus" / name / "index.npz").exists():
            Corpus.write(name, CORPORA[name]())
        corpus = Corpus.open(name)
        hours = corpus.durations.sum() / 3600
        speakers = len(set(corpus.speakers))
        print(f"{name}: {len(corpus)} utterances, {hours:.2f} h, {speakers} speakers, {corpus.digest[:12]}")


if __name__ == "__main__":
    main()
