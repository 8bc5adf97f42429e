"""Probabilities of speech, window after window → where turns begin and end.

A turn begins with a window at or above the threshold, and ends with a silence that is long enough: one in which all
windows are below a second threshold, as Silero's own detector has it. What lies between the two changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.stages.vad import WINDOW_SAMPLES
from mlx_speech.stages.vad_options import silence_threshold

WINDOW = WINDOW_SAMPLES[SAMPLE_RATE]  # that a probability stands for
CUT_WITHIN = 1 / 3  # of a turn that is too long: it is cut in its last third


@dataclass(frozen=True)
class TurnDetection:
    """How turns are found; OpenAI's names and defaults of `server_vad`.

    threshold : probability of speech
    prefix_padding_ms : sound before the speech that belongs to the turn
    silence_duration_ms : silence that ends it, and belongs to it
    """

    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500


@dataclass(frozen=True)
class Edge:
    """Where a turn begins or ends, in samples from the start of the sound."""

    position: int
    begins: bool


@dataclass
class TurnFinder:
    """Fed window by window, it tells the edges of turns as soon as they are known.

    longest : samples of a turn that is found
    position : samples from the start of the sound: of the next window
    earliest : where a turn may begin: what lies before is taken
    start : of the turn that is open
    last_speech : where the speech of the open turn ends, so far
    """

    detection: TurnDetection
    longest: int
    position: int = 0
    earliest: int = 0
    start: int | None = None
    last_speech: int = 0
    _silence: int | None = None  # since when it has been silent in the open turn
    _probabilities: list[float] = field(default_factory=list)  # of the windows of the open turn

    def step(self, probability: float) -> list[Edge]:
        """What the next window shows. probability : of speech in it"""
        edges: list[Edge] = []
        is_silent = probability < silence_threshold(self.detection.threshold)
        if probability >= self.detection.threshold:
            self._silence = None
            if self.start is None:
                edges.append(self._begin())
        if self.start is not None:
            self._probabilities.append(probability)
            if is_silent and self._silence is None:
                self._silence = self.position
        self.position += WINDOW
        if self.start is not None and self._silence is None:
            self.last_speech = self.position
        if is_silent and self._is_long_silence():
            edges.append(self._end(self.position))
        elif self.start is not None and self.position + WINDOW - self.start > self.longest:
            edges += self._cut()
        return edges

    @property
    def needed(self) -> int:
        """The first sample that a turn may still need."""
        if self.start is not None:
            return self.start
        return max(self.earliest, self.position - self._padding)

    @property
    def _padding(self) -> int:
        return self.detection.prefix_padding_ms * SAMPLE_RATE // 1000

    def _begin(self) -> Edge:
        self.start = max(self.earliest, self.position - self._padding)
        return Edge(self.start, begins=True)

    def _is_long_silence(self) -> bool:
        if self._silence is None:
            return False
        return self.position - self._silence >= self.detection.silence_duration_ms * SAMPLE_RATE // 1000

    def _end(self, position: int) -> Edge:
        self.earliest = position
        self.start = None
        self._silence = None
        self._probabilities = []
        return Edge(position, begins=False)

    def _cut(self) -> list[Edge]:
        """End a turn that would grow too long, where speech is least likely, and begin another one there."""
        count = max(1, int(len(self._probabilities) * CUT_WITHIN))
        last = self._probabilities[-count:]
        index = min(range(count), key=lambda k: last[k])
        behind = last[index + 1 :]
        cut = self.position - WINDOW * len(behind)
        silence = self._silence
        end = self._end(cut)
        self.start = cut
        self._probabilities = behind
        if silence is not None:
            self._silence = max(silence, cut)
        return [end, Edge(cut, begins=True)]
