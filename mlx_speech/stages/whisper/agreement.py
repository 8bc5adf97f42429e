"""Hypotheses of a chunk that grows → the words that can be shown as firm.

A word is firm when two hypotheses in a row agree on it (LocalAgreement-2: Macháček et al. 2023, "Turning Whisper into
Real-Time Transcription System"), and Whisper's attention has left it behind by some distance from the end of the sound
(AlignAtt: Papi et al. 2023): either alone is revised more often. What is firm begins every later hypothesis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_speech.stages.whisper.word_times import WordTiming, merge_punctuations

GUARD = 0.2  # seconds between a firm word and the end of the sound
ROUNDS = 2  # hypotheses that have to agree


@dataclass(frozen=True)
class Policy:
    """What makes a word firm.

    rounds : hypotheses in a row that have to have it; 1 or 2
    guard : seconds that it has to end before the sound does
    """

    rounds: int = ROUNDS
    guard: float = GUARD


class Agreement:
    """The words of one chunk, hypothesis after hypothesis.

    firm : those that stay, in order
    loose : the rest of the last hypothesis
    """

    def __init__(self, policy: Policy | None = None) -> None:
        self.policy = policy or Policy()
        self.firm: list[WordTiming] = []
        self.loose: list[WordTiming] = []

    @property
    def tokens(self) -> tuple[int, ...]:
        """Of the firm words: the next hypothesis has to begin with them."""
        return tuple(token for word in self.firm for token in word.tokens)

    def update(self, words: Sequence[WordTiming], end: float) -> None:
        """Take in a hypothesis.

        words : behind the firm ones, in seconds of the chunk; punctuation may be apart
        end : of the sound that was heard, in seconds of the chunk
        """
        merged = merge_punctuations(words)
        agreed = len(merged) if self.policy.rounds == 1 else _common(merged, self.loose)
        count = 0
        while count < agreed and merged[count].end < end - self.policy.guard:
            count += 1
        self.firm += merged[:count]
        self.loose = merged[count:]


def normalised(word: str) -> str:
    """A word without case and marks, as it is compared; one of marks alone stays."""
    letters = "".join(character for character in word.casefold() if character.isalnum())
    return letters or word.strip()


def _common(words: Sequence[WordTiming], before: Sequence[WordTiming]) -> int:
    """How many of the first words two hypotheses have in common."""
    count = 0
    for word, other in zip(words, before, strict=False):
        if normalised(word.word) != normalised(other.word):
            break
        count += 1
    return count
