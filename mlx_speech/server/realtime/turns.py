"""Live sound, a turn after the other: each is found by Silero VAD or told by the client, and recognised as a recording.
While it is open, the words that are firm are told.

Sound waits in a queue, with what the client asks for between its blocks. Where it waits too long, its oldest part is
dropped, and the client is told.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from mlx_speech.errors import MLXSpeechError
from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.server.errors import ApiError, api_error
from mlx_speech.server.outcomes import outcome_of, result_of
from mlx_speech.server.realtime.events import new_id
from mlx_speech.server.realtime.finder import WINDOW, Edge, TurnDetection, TurnFinder
from mlx_speech.server.realtime.limits import Limits
from mlx_speech.server.realtime.recognition import (
    Broken,
    Cleared,
    Committed,
    Completed,
    Failed,
    RecognitionSettings,
    Refused,
    SpeechStarted,
    SpeechStopped,
    Tell,
    Text,
)
from mlx_speech.server.realtime.words import Words, untold
from mlx_speech.sound_buffer import SoundBuffer
from mlx_speech.transcript import Segment, space_between

if TYPE_CHECKING:
    from mlx_speech.models.silero_vad import State

WINDOWS_AT_ONCE = 30 * SAMPLE_RATE // WINDOW  # that go through the detector in one step, so that others have turns
SMALL_BLOCK = 8_000  # samples: smaller blocks are joined, or a queue of them would take more memory than their sound
OVERFLOW = "input_audio_buffer_overflow"  # the code of the error
LEAST_GAP = 1.0  # seconds that are dropped at once, so that a busy server does not complain with every block

LOG = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class _Commit:
    event_id: str | None


@dataclass(frozen=True)
class _Clear:
    pass


@dataclass(frozen=True)
class _Gap:
    """Sound that was dropped. count : samples"""

    count: int


_Operation: TypeAlias = np.ndarray | _Commit | _Clear | _Gap | RecognitionSettings


@dataclass(frozen=True)
class _Turn:
    """A turn on its way through the pipeline.

    samples : (samples,) at 16 kHz
    found : whether it was found, and not told by the client
    told : what was told of it while it was open
    """

    item: str
    previous: str | None
    samples: np.ndarray
    settings: RecognitionSettings
    found: bool
    told: str

    @property
    def seconds(self) -> float:
        return self.samples.size / SAMPLE_RATE

    @property
    def options(self) -> dict[str, Any]:
        """`TranscribeOptions`. What was taken for speech, however short, should not be overheard then."""
        options: dict[str, Any] = {"word_timestamps": None, **self.settings.options}
        if self.found and self.settings.detection is not None:
            options["vad_options"] = {"threshold": self.settings.detection.threshold, "min_speech_duration_ms": 0.0}
        return options


class Turns:
    """A `Recogniser`. settings : how it hears at first; tell : is called with all that happens"""

    def __init__(self, settings: RecognitionSettings, tell: Tell, limits: Limits) -> None:
        self._tell = tell
        self._limits = limits
        self._queue: deque[_Operation] = deque()
        self._queued = 0  # samples
        self._due = 0.0  # when all that has come would have been said, had it not come faster than it was said
        self._changed = asyncio.Event()
        self._turns: set[asyncio.Task[None]] = set()
        self._bug: BaseException | None = None  # that ended a turn

        self._settings = settings
        self._buffer = SoundBuffer()
        self._finder: TurnFinder | None = None
        self._state: State | None = None
        self._item: str | None = None  # of the turn that is open
        self._previous: str | None = None
        self._words: Words | None = None  # of the turn that is open
        self._round: asyncio.Task[None] | None = None  # in which they are heard
        self._restart()

    # --- what the client wants ---------------------------------------------------------------------------------------

    def feed(self, samples: np.ndarray) -> None:
        """The next sound. samples : (samples,) float32 in [-1, 1] at 16 kHz"""
        if not samples.size:
            return
        now = time.monotonic()
        self._due = max(self._due, now) + samples.size / SAMPLE_RATE
        self._queued += samples.size
        last = self._queue[-1] if self._queue else None
        if isinstance(last, np.ndarray) and last.size < SMALL_BLOCK:
            self._queue[-1] = np.concatenate([last, samples])
        else:
            self._queue.append(samples)
        self._drop_what_is_late(now)
        self._changed.set()

    def commit(self, event_id: str | None) -> None:
        """What was fed and not committed is a turn."""
        self._add(_Commit(event_id))

    def clear(self) -> None:
        """What was fed and not committed is forgotten."""
        self._add(_Clear())

    def configure(self, settings: RecognitionSettings) -> None:
        """Hear otherwise from now on. A turn that is open ends here, unless turns are found as before."""
        self._add(settings)

    def close(self) -> None:
        """Compute nothing more."""
        self._leave_words()
        for turn in self._turns:
            turn.cancel()

    @property
    def lag(self) -> float:
        """Seconds of sound that came no faster than it was said, and wait to be heard. From any thread."""
        return max(0.0, self._late(time.monotonic()))

    def _add(self, operation: _Commit | _Clear | RecognitionSettings) -> None:
        if len(self._queue) >= self._limits.waiting_events:
            self._tell(Refused(ApiError(429, "queue_full", "too many messages wait to be done: send fewer of them")))
            return
        self._queue.append(operation)
        self._changed.set()

    def _drop_what_is_late(self, now: float) -> None:
        excess = max(self._late(now) - self._limits.late, self._queued / SAMPLE_RATE - self._limits.unheard)
        if excess <= 0:
            return
        dropped = self._drop(round(max(excess, LEAST_GAP) * SAMPLE_RATE))
        self._tell(Refused(_overflow(dropped)))

    def _late(self, now: float) -> float:
        """Seconds of the sound that waits. What came faster than it was said is not late before its time."""
        return self._queued / SAMPLE_RATE - max(0.0, self._due - now)

    def _drop(self, count: int) -> int:
        """Let gaps stand for the oldest sound that waits; returns how many samples were dropped."""
        dropped = 0
        gap = 0
        kept: deque[_Operation] = deque()
        for operation in self._queue:
            if isinstance(operation, np.ndarray) and dropped < count:
                size = min(operation.size, count - dropped)
                dropped += size
                gap += size
                operation = operation[size:]
                if not operation.size:
                    continue
            elif isinstance(operation, _Gap):
                gap += operation.count
                continue
            if gap:
                kept.append(_Gap(gap))
                gap = 0
            kept.append(operation)
        if gap:
            kept.append(_Gap(gap))
        self._queue = kept
        self._queued -= dropped
        return dropped

    # --- in order, one after the other -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Hear, until it is cancelled, or `Broken` was told."""
        while True:
            if self._bug is not None:
                raise self._bug
            if not self._queue:
                self._changed.clear()
                await self._changed.wait()
                continue
            try:
                await self._do(self._queue.popleft())
            except MLXSpeechError as error:
                self._tell(Broken(api_error(error)))
                return

    async def _do(self, operation: _Operation) -> None:
        if isinstance(operation, np.ndarray):
            self._queued -= operation.size
            self._buffer.add(operation)
            if self._finder is not None:
                await self._find_turns(self._finder)
            if not self._finds_turns:
                self._bound_buffer()
            self._hear_words()
        elif isinstance(operation, _Commit):
            await self._commit(operation.event_id)
        elif isinstance(operation, _Clear):
            self._forget()
            self._tell(Cleared())
        elif isinstance(operation, _Gap):
            await self._end_turn(self._buffer.end)
            self._skip(operation.count)
        else:
            await self._configure(operation)

    @property
    def _finds_turns(self) -> bool:
        """Whether it does, or the client says what a turn is."""
        return self._settings.detection is not None

    async def _find_turns(self, finder: TurnFinder) -> None:
        """Step the detector as far as there are whole windows. Where the client says what a turn is, it tells where the
        speech begins, and whether somebody goes on to speak."""
        while finder.position + WINDOW <= self._buffer.end:
            count = min((self._buffer.end - finder.position) // WINDOW, WINDOWS_AT_ONCE)
            windows = self._buffer.between(finder.position, finder.position + count * WINDOW)
            request = self._settings.pipeline.submit_speech(windows, self._state)
            probabilities, self._state = await result_of(request)
            for probability in probabilities.tolist():
                for edge in finder.step(probability):
                    await self._turn_edge(edge)
            if self._finds_turns:
                self._buffer.drop_before(finder.needed)

    async def _turn_edge(self, edge: Edge) -> None:
        if not self._finds_turns:
            if edge.begins and self._words is None:
                self._words = Words(new_id("item"), edge.position)
        elif edge.begins:
            self._item = new_id("item")
            self._words = Words(self._item, edge.position)
            self._tell(SpeechStarted(self._item, edge.position / SAMPLE_RATE))
            self._buffer.drop_before(edge.position)
        else:
            await self._end_turn(edge.position)

    async def _end_turn(self, end: int) -> None:
        """The turn that was found, if one is open, ends here. end : place of the session"""
        if self._item is None:
            return
        self._tell(SpeechStopped(self._item, end / SAMPLE_RATE))
        await self._recognise(self._buffer.between(self._buffer.start, end), found=True)
        self._buffer.drop_before(end)

    async def _commit(self, event_id: str | None) -> None:
        """What the client says is a turn."""
        count = len(self._buffer)
        if self._finds_turns and self._item is None:
            self._tell(Refused(_nothing("no speech was found behind the last turn"), event_id))
        elif count < self._limits.shortest_turn * SAMPLE_RATE:
            milliseconds = 1000 * self._limits.shortest_turn
            problem = f"the buffer holds {1000 * count / SAMPLE_RATE:.0f} ms of sound, less than {milliseconds:.0f}"
            self._tell(Refused(_nothing(problem), event_id))
        else:
            samples = self._buffer.between(self._buffer.start, self._buffer.end)
            await self._recognise(samples, found=self._finds_turns)
            self._forget()

    async def _configure(self, settings: RecognitionSettings) -> None:
        same_turns = settings.detection == self._settings.detection and settings.pipeline is self._settings.pipeline
        if not same_turns:
            await self._end_turn(self._buffer.end)
            self._leave_words()
        same_steps = settings.step == self._settings.step
        self._settings = settings
        if not same_turns or not (same_steps or self._finds_turns):
            self._restart()

    def _forget(self) -> None:
        """What is not committed."""
        self._leave_words()
        self._item = None
        self._buffer.drop_before(self._buffer.end)
        self._restart()

    def _skip(self, count: int) -> None:
        """Sound is missing: what comes is another piece of it."""
        if self._finds_turns:
            self._forget()
        self._buffer.skip(count)
        self._restart()

    def _restart(self) -> None:
        """The detector begins with the first sample that is held."""
        self._state = None
        self._finder = None
        start = self._buffer.start
        if self._settings.detection is not None:
            longest = round(self._limits.longest_turn * SAMPLE_RATE)
            self._finder = TurnFinder(self._settings.detection, longest, position=start, earliest=start)
        elif self._settings.step is not None:
            longest = round(self._limits.unheard * SAMPLE_RATE)
            self._finder = TurnFinder(TurnDetection(), longest, position=start, earliest=start)

    def _bound_buffer(self) -> None:
        """A client that never commits."""
        excess = len(self._buffer) - round(self._limits.unheard * SAMPLE_RATE)
        if excess > 0:
            count = min(len(self._buffer), max(excess, round(LEAST_GAP * SAMPLE_RATE)))
            self._buffer.drop_before(self._buffer.start + count)
            self._tell(Refused(_overflow(count)))

    # --- words of the turn that is open ------------------------------------------------------------------------------

    def _hear_words(self) -> None:
        """Ask what the open turn says so far, unless that is being asked, or other work of the session comes first."""
        words = self._words
        step = self._settings.step
        if words is None or self._finder is None or step is None:
            return
        if self._round is not None or self._turns or self._queue:
            return
        place = words.due(self._buffer.end, step)
        if place is None or self._finder.last_speech <= words.asked or words.start < self._buffer.start:
            return
        samples = self._buffer.between(words.start, place)
        self._round = asyncio.create_task(self._hear_round(words, samples))
        self._round.add_done_callback(self._round_ended)

    async def _hear_round(self, words: Words, samples: np.ndarray) -> None:
        """samples : (samples,), of the turn so far"""
        text = await outcome_of(words.hear(samples, self._settings))
        if isinstance(text, Exception):
            words.give_up()  # what is wrong is told when all of the turn is recognised
            if not isinstance(text, MLXSpeechError):
                LOG.error("the words of a turn could not be heard", exc_info=text)
        elif text:
            words.text += text
            self._tell(Text(words.item, text))

    def _round_ended(self, task: asyncio.Task[None]) -> None:
        if task is self._round:
            self._round = None
            self._hear_words()

    def _leave_words(self) -> None:
        """Nothing more is told of the words of the open turn before it is over."""
        self._words = None
        if self._round is not None:
            self._round.cancel()
            self._round = None

    # --- turns at once -----------------------------------------------------------------------------------------------

    async def _recognise(self, samples: np.ndarray, found: bool) -> None:
        """Hand a turn over, as soon as not too many are under way. samples : (samples,)"""
        words = self._words or Words(self._item or new_id("item"), self._buffer.start)
        item = words.item
        self._item = None
        self._leave_words()
        turn = _Turn(item, self._previous, samples, self._settings, found, words.text)
        self._tell(Committed(item, self._previous))
        self._previous = item
        while len(self._turns) >= self._limits.turns_at_once:
            await asyncio.wait(self._turns, return_when=asyncio.FIRST_COMPLETED)
        task = asyncio.create_task(self._transcribe(turn))
        self._turns.add(task)
        task.add_done_callback(self._turn_ended)

    async def _transcribe(self, turn: _Turn) -> None:
        """A turn → what is told of it."""
        try:
            request = turn.settings.pipeline.submit(turn.samples, sample_rate=SAMPLE_RATE, **turn.options)
        except MLXSpeechError as error:
            self._tell(Failed(turn.item, api_error(error), turn.previous))
            return
        transcript = await outcome_of(result_of(request))
        if isinstance(transcript, Exception):
            if not isinstance(transcript, MLXSpeechError):
                LOG.error("a turn could not be recognised", exc_info=transcript)
            self._tell(Failed(turn.item, api_error(transcript), turn.previous))
            return
        said = pieces(transcript.segments)
        for piece in untold(said, turn.told):
            self._tell(Text(turn.item, piece))
        self._tell(Completed(turn.item, "".join(said), turn.seconds, turn.previous))

    def _turn_ended(self, task: asyncio.Task[None]) -> None:
        self._turns.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._bug = task.exception()
        self._changed.set()
        self._hear_words()


def pieces(segments: Sequence[Segment]) -> list[str]:
    """The text of segments, each with what parts it from the one before it: joined, they are all of it."""
    parts: list[str] = []
    text = ""
    for segment in segments:
        part = space_between(text, segment) + segment.text
        if part:
            parts.append(part)
            text += part
    return parts


def _nothing(problem: str) -> ApiError:
    return ApiError(400, "input_audio_buffer_commit_empty", f"{problem}: append sound before you commit it")


def _overflow(count: int) -> ApiError:
    """count : samples that were dropped"""
    seconds = count / SAMPLE_RATE
    advice = "send it no faster than it is heard, or commit more often"
    message = f"{seconds:.1f} s of sound waited too long and were dropped, the oldest first: {advice}"
    return ApiError(503, OVERFLOW, message)
