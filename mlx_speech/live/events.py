"""What a live session is given, and what it tells. Seconds count from the session's first sample.

Of every chunk come any number of `Partial`s, and then one `Final`; chunks come in order. `Ended` is the last event.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.transcript import Segment, Transcript, Word


@dataclass(frozen=True, eq=False)
class Block:
    """The next sound.

    samples : (samples,) or (channels, samples), floats in [-1, 1]; none are silence of no length
    sample_rate : of them, in Hz
    start : where they begin, in seconds, if what came before is not all of the sound until then; the missing sound is
        taken for silence, and told as a `Gap`
    """

    samples: np.ndarray
    sample_rate: int = SAMPLE_RATE
    start: float | None = None


@dataclass(frozen=True)
class LiveEvent:
    """Something that happened in a live session.

    at : seconds of sound that had been taken in when it was made
    """

    at: float


@dataclass(frozen=True)
class Speech(LiveEvent):
    """Somebody speaks, and for long enough to count. start : seconds; a `Silence` with the same follows"""

    start: float


@dataclass(frozen=True)
class Silence(LiveEvent):
    """A stretch of speech is over. start, end : of the speech, in seconds"""

    start: float
    end: float


@dataclass(frozen=True)
class Partial(LiveEvent):
    """What a chunk seems to say so far. It takes the place of the partial before it, and its chunk's `Final` its own.

    chunk : number of the chunk, from 0
    words : with times from Whisper's attention
    firm : how many of the first words are firm: later partials of this chunk begin with the same ones
    text : all of it, with the spaces and marks between the words
    firm_text : as much of `text` as is firm
    """

    chunk: int
    words: tuple[Word, ...]
    firm: int
    text: str
    firm_text: str


@dataclass(frozen=True)
class Final(LiveEvent):
    """What a chunk says. Nothing of it changes any more but the speakers, and where a sentence ends: one that goes on
    in the next chunk is joined in the transcript.

    chunk : number of the chunk, from 0
    start, end : of the chunk, in seconds
    segments : with words; none where nothing was said
    """

    chunk: int
    start: float
    end: float
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Relabelled:
    """From `start` to `end` somebody else speaks than was told before; None is nobody.

    start, end : seconds
    """

    start: float
    end: float
    before: str | None
    speaker: str | None


@dataclass(frozen=True)
class Speakers(LiveEvent):
    """Who speaks when, as far as it is known now.

    changes : in order of time, what is new, or other than before
    names : all speakers so far, in the order in which they were first heard
    until : seconds before which speakers were told apart over all of the session; what lies behind is provisional
    """

    changes: tuple[Relabelled, ...]
    names: tuple[str, ...]
    until: float


@dataclass(frozen=True)
class Gap(LiveEvent):
    """Sound is missing, and silence stands for it. start, end : seconds; reason : in words"""

    start: float
    end: float
    reason: str


@dataclass(frozen=True)
class Lag(LiveEvent):
    """The session falls behind, or has caught up.

    behind : seconds of sound that wait to be heard
    step : seconds between two partials now; None where there are none until it has caught up
    """

    behind: float
    step: float | None


@dataclass(frozen=True)
class Ended(LiveEvent):
    """The end.

    transcript : of all the sound, as of a recording of it
    reason : why it ended, in words
    """

    transcript: Transcript
    reason: str = field(default="the sound came to its end")
