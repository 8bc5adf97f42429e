"""The language of the corpus: 270 words, fourteen patterns of sentences, and strings of random words.

A third of the sentences are random strings, so that no model can lean on the patterns. `perplexity` is that of the
true distribution, which no recogniser can undercut: e to the mean of -ln P(word | the words before it).
"""

from __future__ import annotations

import itertools
import math
import re
import zlib
from collections.abc import Sequence

import numpy as np

SLOTS: dict[str, tuple[str, ...]] = {
    name: tuple(words.split())
    for name, words in {
        "DIGIT": "zero one two three four five six seven eight nine",
        "TEEN": "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen",
        "TENS": "twenty thirty forty fifty sixty seventy eighty ninety",
        "LARGE": "hundred thousand",
        "NAME": "anna ben clara david emma frank grace henry isabel jack karen leo maria nora oscar paul quentin rosa "
        "simon tina victor wendy yusuf zoe",
        "CITY": "berlin boston cairo dublin london madrid oslo paris rome tokyo",
        "DAY": "monday tuesday wednesday thursday friday saturday sunday",
        "MONTH": "january february march april may june july august september october november december",
        "NOUN": "apple basket boat book bottle box bridge bus camera candle car castle cat chair clock coat cup desk "
        "doctor dog door engine farmer flower garden guitar hammer horse house key kitchen ladder lamp letter map "
        "mirror mountain orange painter pencil piano picture river school shirt table teacher ticket train tree window",
        "PLURAL": "apples boats books bottles boxes cars chairs dogs flowers horses keys letters maps pencils pictures "
        "shirts tables tickets trees windows",
        "ADJECTIVE": "big small old young green yellow black white happy sad heavy light quick slow clean dirty warm "
        "cold quiet loud empty broken famous gentle narrow simple purple silver",
        "DID": "bought sold found lost painted carried opened closed moved washed counted brought wanted needed "
        "visited watched helped called followed answered remembered borrowed repaired studied finished started covered "
        "offered admired hidden chosen dropped",
        "DO": "bring take give open close find call",
        "WHEN": "today tomorrow yesterday always never often slowly quickly again early later together",
        "WHERE": "in on under behind beside near from with before after between across about without",
        "THE": "the a my your her his this that every",
        "BE": "is was are were",
        "OTHER": "and but has have will please there some many",
    }.items()
}
# (…) is said half of the time
PATTERNS = (
    "NAME DID NUMBER ADJECTIVE PLURAL (WHERE THE THING) (on DAY)",
    "THE ADJECTIVE THING BE WHERE THE (ADJECTIVE) THING (WHEN)",
    "please DO THE ADJECTIVE THING WHERE ANY (WHERE ANY) (WHEN)",
    "NAME and ANY DID THE THING WHERE ANY (WHEN)",
    "there BE NUMBER ADJECTIVE PLURAL WHERE THE (ADJECTIVE) THING WHERE THE THING",
    "THE THING has NUMBER PLURAL and NUMBER PLURAL (WHEN)",
    "WHERE ANY THE THING BE ADJECTIVE but WHEN ADJECTIVE",
    "NAME will DO NUMBER hundred NUMBER PLURAL (WHERE ANY) (in MONTH)",
    "DO NAME WHEN WHERE NUMBER NUMBER NUMBER (NUMBER) (NUMBER) (NUMBER)",
    "WHERE MONTH many ADJECTIVE PLURAL BE DID WHERE ANY",
    "THE (ADJECTIVE) THING WHERE ANY DID some ADJECTIVE PLURAL (WHEN)",
    "NAME WHEN DID THE (ADJECTIVE) THING WHERE THE (ADJECTIVE) THING",
    "MONTH NUMBER and MONTH NUMBER BE ADJECTIVE (and ADJECTIVE)",
    "DIGIT thousand DIGIT hundred NUMBER ADJECTIVE PLURAL BE DID WHERE ANY",
)
SLOTS["NUMBER"] = SLOTS["DIGIT"] + SLOTS["TEEN"] + SLOTS["TENS"]
SLOTS["THING"] = SLOTS["NOUN"] + SLOTS["PLURAL"]
SLOTS["ANY"] = SLOTS["NAME"] + SLOTS["CITY"] + SLOTS["DAY"] + SLOTS["MONTH"]
WORDS = tuple(dict.fromkeys(itertools.chain.from_iterable(SLOTS.values())))
CAPITAL = frozenset(itertools.chain.from_iterable(SLOTS[name] for name in ("NAME", "CITY", "DAY", "MONTH")))
RANDOM = 1 / 3  # the share of random strings
SHORTEST, LONGEST = 5, 15


def _expansions(pattern: str) -> list[tuple[tuple[str, ...], ...]]:
    """All ways to say or leave out the parts in brackets; each a choice of words a place."""
    parts = re.findall(r"\(([^)]*)\)|(\S+)", pattern)
    options = [[optional.split(), []] if optional else [[plain]] for optional, plain in parts]
    flat = [list(itertools.chain.from_iterable(choice)) for choice in itertools.product(*options)]
    return [tuple(SLOTS.get(name, (name,)) for name in names) for names in flat]


_PATTERNS = tuple(_expansions(pattern) for pattern in PATTERNS)


def sentence(rng: np.random.Generator) -> list[str]:
    """5 to 15 lower-case words."""
    if rng.random() < RANDOM:
        count = rng.integers(SHORTEST, LONGEST + 1)
        return [WORDS[i] for i in rng.integers(len(WORDS), size=count)]
    expansions = _PATTERNS[rng.integers(len(_PATTERNS))]
    places = expansions[rng.integers(len(expansions))]
    return [words[rng.integers(len(words))] for words in places]


def probability(words: Sequence[str]) -> float:
    """Of drawing exactly these words."""
    total = 0.0
    if SHORTEST <= len(words) <= LONGEST:
        total = RANDOM / (LONGEST - SHORTEST + 1) / len(WORDS) ** len(words)
    for expansions in _PATTERNS:
        for places in expansions:
            if len(places) == len(words) and all(word in place for word, place in zip(words, places, strict=True)):
                total += (1 - RANDOM) / len(_PATTERNS) / len(expansions) / math.prod(len(place) for place in places)
    return total


def perplexity(sentences: int = 10_000, seed: int = 0) -> float:
    """Per word, the end of a sentence counted as one more word."""
    rng = np.random.default_rng(seed)
    drawn = [sentence(rng) for _ in range(sentences)]
    return math.exp(-sum(math.log(probability(words)) for words in drawn) / sum(len(words) + 1 for words in drawn))


def reserved(words: Sequence[str]) -> bool:
    """Whether a sentence is kept for tests: training never draws it."""
    return zlib.crc32(" ".join(words).encode()) % 16 == 0


def written(words: Sequence[str]) -> str:
    """As a sentence is written: "Anna sold seven boats on Monday." """
    cased = [word.capitalize() if word in CAPITAL or not i else word for i, word in enumerate(words)]
    return " ".join(cased) + "."
