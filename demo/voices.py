"""Voices of espeak-ng: variants, accents, and the speakers made of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ACCENTS = ("en-us", "en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-029", "en-us-nyc")
# never heard in training; their near-twins (steph2, steph3, klatt2) are not used at all
HELD_OUT = ("f3", "m4", "m7", "Andy", "Alicia", "steph", "klatt3", "Mike", "linda", "gustave")
# all others that are neither robots nor whispers nor other oddities
TRAIN = tuple(
    "Alex Andrea Annie Denis Diogo Gene Gene2 Henrique Hugo Jacky Lee Marco Mario Michael Nguyen RicishayMax adam "
    "anika announcer antonio aunty belinda benjamin boris caleb david ed edward edward2 f1 f2 f4 f5 grandma grandpa "
    "iven iven2 iven3 iven4 john kaukovalta klatt klatt4 klatt5 klatt6 m1 m2 m3 m5 m6 m8 marcelo max michel miguel "
    "norbert pablo paul pedro quincy rob robert sandro shelby travis victor zac".split()
)
# of these, the ones that the speaker embedding does not learn either: its statistics and the pipeline's settings come
# from voices that are as new to it as those of a user
DEVELOPMENT = tuple("Denis Jacky Lee antonio belinda david f4 grandpa klatt5 m5 paul shelby".split())


@dataclass(frozen=True)
class Voice:
    """One way to speak. pitch, range : 0 to 100; rate : words a minute; gap : between words, in units of 10 ms;
    factor : how much faster the sound is played, which moves pitch, formants and tempo together."""

    variant: str
    accent: str
    pitch: int
    range: int
    rate: int
    gap: int
    factor: float

    @property
    def name(self) -> str:
        return f"{self.accent}+{self.variant} {self.pitch} {self.range} {self.rate} {self.factor:.3f}"


def random_voice(rng: np.random.Generator, held_out: bool = False) -> Voice:
    variants = HELD_OUT if held_out else TRAIN
    return Voice(
        variant=variants[rng.integers(len(variants))],
        accent=ACCENTS[rng.integers(len(ACCENTS))],
        pitch=int(rng.integers(25, 76)),
        range=int(rng.integers(30, 71)),
        rate=int(rng.integers(140, 211)),
        gap=int(rng.integers(0, 3)),
        factor=round(float(rng.uniform(0.9, 1.12)), 3),
    )


def speaker(number: int, held_out: bool = False) -> Voice:
    """The speaker of that number: a voice whose pitch, rate and resampling never change. Variants take turns."""
    variants = HELD_OUT if held_out else TRAIN
    rng = np.random.default_rng([number, held_out, 7])
    order = np.random.default_rng([number // len(variants), held_out, 8]).permutation(len(variants))
    voice = random_voice(rng, held_out)
    return Voice(**{**vars(voice), "variant": variants[order[number % len(variants)]]})
