"""The chunks of all sessions that still grow, heard in batches: work that the sessions share in the engine's thread."""

from __future__ import annotations

from mlx_speech import backend as backend  # isort: skip  (before MLX)

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from mlx_speech.engine import WAITING, Failure, Job, attempt
from mlx_speech.loading import Models
from mlx_speech.stages.whisper import partials
from mlx_speech.stages.whisper.options import DecodingOptions
from mlx_speech.stages.whisper.partials import Round
from mlx_speech.stages.whisper.word_times import WordTiming
from mlx_speech.stages.whisper.workload import Workload

MOST_AT_ONCE = 16  # rounds in a batch
LONGEST_WAIT = 1.0  # seconds that a round waits for chunks that are complete


@dataclass(eq=False)
class Asked:
    """A round that a session waits for.

    options : as of `partials.partial_options`
    words : what came of it, once it is `done`; None where it says nothing
    error : what went wrong
    """

    round: Round
    options: DecodingOptions
    since: float
    done: bool = False
    words: list[WordTiming] | None = None
    error: Exception | None = None


class Rounds:
    """Rounds wait here until chunks that are complete leave time for them.

    workload : where the decoder's steps are counted; its batches are those of chunks that are complete
    """

    def __init__(self, models: Models, workload: Workload) -> None:
        self._models = models
        self._workload = workload
        self._waiting: list[Asked] = []

    def ask(self, one: Round, options: DecodingOptions) -> Asked:
        """Queue a round; what it returns is changed when it is done."""
        asked = Asked(one, options, time.monotonic())
        self._waiting.append(asked)
        return asked

    def heard(self, one: Round, options: DecodingOptions) -> Job[list[WordTiming] | None]:
        """Wait for a round, as a job does; returns its words. Raises what went wrong."""
        asked = self.ask(one, options)
        try:
            while not asked.done:
                yield WAITING
        finally:
            self.forget(asked)
        if asked.error is not None:
            raise asked.error
        return asked.words

    def forget(self, asked: Asked) -> None:
        """Nobody waits for it any more."""
        if asked in self._waiting:
            self._waiting.remove(asked)

    def share(self, others: Callable[[], bool]) -> bool:
        """A unit of the work of others or, where they have none or rounds have waited for long, of this; whether there
        was any. others : does a unit of their work; gives whether there was any"""
        is_overdue = bool(self._waiting) and time.monotonic() - self._waiting[0].since > LONGEST_WAIT
        if is_overdue:
            return self.advance()
        return others() or self.advance()

    def advance(self) -> bool:
        """Hear those that can share a batch; whether there were any."""
        if not self._waiting:
            return False
        group: Hashable = self._waiting[0].options.group
        together = [asked for asked in self._waiting if asked.options.group == group][:MOST_AT_ONCE]
        self._waiting = [asked for asked in self._waiting if asked not in together]
        options = together[0].options
        if isinstance(self._hear(together, options), Failure) and len(together) > 1:
            for asked in together:  # one must not end the others
                self._hear([asked], options)
        return True

    def _hear(self, together: list[Asked], options: DecodingOptions) -> Failure | list[list[WordTiming] | None]:
        """Hear rounds in a batch, and note what came of them."""
        whisper = self._models.whisper()
        rounds = [asked.round for asked in together]
        own = Workload()
        heard = attempt(lambda: partials.hear(rounds, whisper.model, whisper.tokenizer, options, own))
        self._workload.steps += own.steps
        for place, asked in enumerate(together):
            asked.done = True
            asked.error = heard.error if isinstance(heard, Failure) else None
            asked.words = None if isinstance(heard, Failure) else heard[place]
        return heard
