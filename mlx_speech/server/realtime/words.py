"""Words of a turn while it is spoken, and what is left to be told once all of it was recognised.

At every step of its sound the turn is heard from its beginning, and what is firm then (`Agreement`) is told. A turn
that is over is recognised anew: there the words that were told may be other ones, and they are not told again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlx_speech.languages import clusters, unspaced
from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.server.outcomes import result_of
from mlx_speech.server.realtime.recognition import RecognitionSettings
from mlx_speech.stages.whisper.agreement import Agreement, normalised

LEAST_SOUND = 0.6  # seconds of a turn, before it is heard for the first time


class Words:
    """The firm words of one turn that is open, as long as it is no longer than what Whisper hears at once.

    item : its id
    start : where it begins, in samples of the session
    text : that was told so far: whoever tells what is new adds it
    asked : how far the last round has heard, in samples of the session
    """

    def __init__(self, item: str, start: int) -> None:
        self.item = item
        self.start = start
        self.text = ""
        self.asked = start
        self._agreement = Agreement()
        self._gave_up = False

    def due(self, end: int, step: float) -> int | None:
        """How far the next round should hear: always whole steps, and the last of them that there is; None for now.

        end : of the sound that has come; step : seconds
        """
        samples = round(step * SAMPLE_RATE)
        length = (end - self.start) // samples * samples
        if self._gave_up or self.start + length <= self.asked or length < LEAST_SOUND * SAMPLE_RATE:
            return None
        return self.start + length

    async def hear(self, samples: np.ndarray, settings: RecognitionSettings) -> str:
        """A round; returns the text that has become firm. samples : (samples,), of the turn so far. Raises as
        `Pipeline.submit_partial`."""
        agreement = self._agreement
        self.asked = self.start + samples.size
        words = await result_of(settings.pipeline.submit_partial(samples, agreement.tokens, **settings.options))
        if words is None:
            return ""
        agreement.update(words, samples.size / SAMPLE_RATE)
        firm = "".join(word.word for word in agreement.firm).lstrip()
        return firm[len(self.text) :]

    def give_up(self) -> None:
        """Hear no more of this turn before it is over."""
        self._gave_up = True


def untold(pieces: Sequence[str], told: str) -> list[str]:
    """Of the pieces of a text those, or what is left of them, that were not told while it was spoken."""
    text = "".join(pieces)
    known = len(text) - len(rest_of(text, told))
    rest: list[str] = []
    for piece in pieces:
        if known < len(piece):
            rest.append(piece[known:])
        known = max(0, known - len(piece))
    return rest


def rest_of(text: str, told: str) -> str:
    """What a text says behind what was told of it: of words that differ each counts, and what comes nearest to the
    words that were told was told."""
    if text.startswith(told):
        return text[len(told) :]
    words = _words(text)
    distances = _distances([word.text for word in _words(told)], [word.text for word in words])
    start = 0
    for count, distance in enumerate(distances):
        if count > 0 and distance == min(distances):
            start = words[count - 1].end
    return text[start:]


@dataclass
class _Word:
    """text : as it is compared; end : where it ends among the characters of its text"""

    text: str
    end: int


def _words(text: str) -> list[_Word]:
    """What lies between spaces; a character of a script without spaces stands for itself."""
    words: list[_Word] = []
    begins = True  # whether a word does
    end = 0
    for cluster in clusters(text):
        end += len(cluster)
        alone = unspaced(cluster[0])
        if cluster.isspace():
            begins = True
        elif begins or alone:
            words.append(_Word(cluster, end))
            begins = alone
        else:
            words[-1].text += cluster
            words[-1].end = end
    for word in words:
        word.text = normalised(word.text)
    return words


def _distances(words: Sequence[str], others: Sequence[str]) -> list[int]:
    """Levenshtein's distances between all of the words and the first 0, 1, … of the others."""
    row = list(range(len(others) + 1))
    for word in words:
        above = row
        row = [above[0] + 1]
        for place, other in enumerate(others):
            changed = above[place] + (word != other)
            row.append(min(changed, above[place + 1] + 1, row[place] + 1))
    return row
