"""How well speakers are told apart, and how fast: `python -m benchmarks.speakers [--minutes 60]`.

Real excerpts of the test data with their RTTM, and synthetic conversations: pieces of real recordings and sentences of
espeak-ng, which take turns in one room, under one noise, and sometimes at once. `--minutes` makes one long conversation
instead. The error rate has no collar, and overlap counts (pyannote.metrics). speakers.md has what it printed.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.signal import fftconvolve

import mlx_speech
from benchmarks.voices import DATA, RECORDINGS
from mlx_speech.audio import load_audio
from mlx_speech.evaluation.references import read_rttm
from mlx_speech.package_data import SPEAKERS
from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.transcript import Turn

LEVEL = 0.05  # root mean square of a voice before its own gain
GAINS = (-6.0, 3.0)  # dB, of the voices
REVERBERATION = (0.15, 0.45)  # seconds until a room is 60 dB quieter
DIRECT_SOUND = (3.0, 14.0)  # dB above the room's
NOISE = (15.0, 35.0)  # dB below speech
MEAN_PAUSE = 0.6  # seconds between turns
OVERLAP = (0.3, 1.5)  # seconds
OVERLAPPING = 0.15  # the part of changes of speaker at which the next begins before the last has ended
GOES_ON = 0.35  # the part of turns after which the same speaker goes on
PIECE = (1.0, 4.0)  # seconds of a turn out of a real recording
WORDS = (3, 14)  # of a synthetic turn
VOCABULARY = (
    "water harbour evening garden letter window yellow travel morning seven number people quiet river station market "
    "winter paper table bridge music answer better carry follow between under never always together another remember"
).split()


@dataclass(frozen=True)
class Conversation:
    """samples (samples,) at 16 kHz; who speaks when."""

    name: str
    samples: np.ndarray
    turns: tuple[Turn, ...]

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


@dataclass(frozen=True)
class Plan:
    """A synthetic conversation: its seconds, and how many voices of people and of espeak-ng take part."""

    seconds: float
    people: int
    synthetic: int


PLANS = (
    Plan(120, 2, 0),
    Plan(120, 1, 2),
    Plan(120, 2, 2),
    Plan(120, 0, 4),
    Plan(120, 3, 3),
    Plan(120, 0, 1),
    Plan(150, 5, 3),
    Plan(240, 8, 4),
)


# --- the conversations ------------------------------------------------------------------------------------------------


def excerpts() -> Iterator[Conversation]:
    """The two meetings of the test data, and the recording that comes with pyannote.audio."""
    meetings = DATA / "diar" / "ami_debug"
    references = read_rttm((meetings / "debug.development.rttm").read_text(encoding="utf-8"))
    for name in ("dev00", "dev01"):
        yield Conversation(f"AMI {name}", load_audio(meetings / f"{name}.wav"), references[name])
    import pyannote.audio

    sample = Path(next(iter(pyannote.audio.__path__))) / "sample"
    references = read_rttm((sample / "sample.rttm").read_text(encoding="utf-8"))
    yield Conversation("pyannote's sample", load_audio(sample / "sample.wav"), references["sample"])


class Speaker:
    """Somebody who has always something to say: pieces of recordings, or sentences of espeak-ng."""

    def __init__(self, name: str, recordings: list[np.ndarray] | None, voice: int, rng: np.random.Generator):
        self.name = name
        self._rng = rng
        self._voice = voice
        self._pieces: list[np.ndarray] = []
        for recording in recordings or []:
            self._pieces += pieces(recording, rng)
        self._next = 0

    def speak(self) -> np.ndarray:
        """The next turn, (samples,), at `LEVEL`."""
        if self._pieces:
            spoken = self._pieces[self._next % len(self._pieces)]
            self._next += 1
        else:
            from demo.espeak import speak
            from demo.voices import speaker

            words = self._rng.choice(VOCABULARY, int(self._rng.integers(*WORDS)))
            spoken = trimmed(speak([str(word) for word in words], speaker(self._voice)).samples)
        return spoken * (LEVEL / root_mean_square(spoken))


def pieces(recording: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """A recording in turns of `PIECE` seconds, cut where it is quiet."""
    samples = trimmed(recording)
    least = round(0.7 * SAMPLE_RATE)
    result: list[np.ndarray] = []
    start = 0
    while start < len(samples):
        end = start + round(rng.uniform(*PIECE) * SAMPLE_RATE)
        if end > len(samples) - least:
            end = len(samples)
        else:
            first = max(start + least, end - SAMPLE_RATE // 4)
            energy = np.convolve(samples[first : end + SAMPLE_RATE // 4] ** 2, np.ones(800), "same")
            end = first + int(energy.argmin())
        result.append(samples[start:end])
        start = end
    return result


def trimmed(samples: np.ndarray) -> np.ndarray:
    """Without the silence at both ends."""
    energy = np.convolve(samples**2, np.ones(400), "same")
    loud = np.flatnonzero(energy > 1e-3 * energy.max())
    return samples[loud[0] : loud[-1] + 1]


def root_mean_square(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(samples**2)) + 1e-9)


def conversation(name: str, plan: Plan, seed: int) -> Conversation:
    """Speakers who take turns: each once, then as chance has it."""
    rng = np.random.default_rng(seed)
    speakers: list[Speaker] = []
    for person in rng.permutation(list(RECORDINGS))[: plan.people]:
        recordings = [load_audio(DATA / "audio" / file) for file in RECORDINGS[str(person)]]
        speakers.append(Speaker(str(person), recordings, 0, rng))
    for number in range(plan.synthetic):
        speakers.append(Speaker(f"espeak {number}", None, 1000 * seed + number, rng))
    gains = 10 ** (rng.uniform(*GAINS, len(speakers)) / 20)
    samples = np.zeros(round((plan.seconds + 30) * SAMPLE_RATE), np.float32)
    turns: list[Turn] = []
    waiting = list(rng.permutation(len(speakers)))
    last = -1
    end = 0.0  # of what was said so far
    single_from = 0.0  # before it two may speak at once already
    while end < plan.seconds:
        number = int(waiting.pop(0)) if waiting else _next_speaker(len(speakers), last, rng)
        spoken = speakers[number].speak() * gains[number]
        start = end + rng.exponential(MEAN_PAUSE)
        if number != last and last >= 0 and rng.random() < OVERLAPPING:
            start = max(single_from, end - rng.uniform(*OVERLAP))
        place = round(start * SAMPLE_RATE)
        spoken = spoken[: len(samples) - place]
        samples[place : place + len(spoken)] += spoken
        turns.append(Turn(start, start + len(spoken) / SAMPLE_RATE, speakers[number].name))
        single_from = max(single_from, min(end, turns[-1].end))
        end = max(end, turns[-1].end)
        last = number
    samples = samples[: round((end + 0.5) * SAMPLE_RATE)]
    return Conversation(name, in_a_room(samples, rng), tuple(turns))


def _next_speaker(count: int, last: int, rng: np.random.Generator) -> int:
    if count == 1 or rng.random() < GOES_ON:
        return last
    others = [number for number in range(count) if number != last]
    return int(rng.choice(others))


def in_a_room(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With the reverberation of a room, and noise."""
    length = round(rng.uniform(*REVERBERATION) * SAMPLE_RATE)
    decay = np.exp(-6.9 * np.arange(length) / length)
    room = rng.normal(size=length) * decay
    room[0] = np.sqrt(np.sum(room[1:] ** 2)) * 10 ** (rng.uniform(*DIRECT_SOUND) / 20)
    heard = fftconvolve(samples, room)[: len(samples)]
    heard *= LEVEL / root_mean_square(heard)
    heard += rng.normal(size=len(heard)) * LEVEL * 10 ** (-rng.uniform(*NOISE) / 20)
    return (0.7 * heard / np.abs(heard).max()).astype(np.float32)


# --- the measure ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """Rates are parts of the reference's speech. speed : seconds of sound a second"""

    name: str
    seconds: float
    error: float
    missed: float
    added: float
    confused: float
    speakers: int
    found: int
    speed: float


def measure(pipeline: mlx_speech.Pipeline, recording: Conversation) -> Result:
    from pyannote.core import Annotation, Segment, Timeline
    from pyannote.metrics.diarization import DiarizationErrorRate

    def annotation(turns: tuple[Turn, ...]) -> Annotation:
        return Annotation.from_records((Segment(turn.start, turn.end), k, turn.speaker) for k, turn in enumerate(turns))

    begin = time.perf_counter()
    found = pipeline.diarize(recording.samples).turns
    elapsed = time.perf_counter() - begin
    metric = DiarizationErrorRate(collar=0.0, skip_overlap=False)
    whole = Timeline([Segment(0, recording.seconds)])
    rates = metric(annotation(recording.turns), annotation(found), uem=whole, detailed=True)
    assert isinstance(rates, dict)
    total = rates["total"]
    return Result(
        recording.name,
        recording.seconds,
        rates["diarization error rate"],
        rates["missed detection"] / total,
        rates["false alarm"] / total,
        rates["confusion"] / total,
        len({turn.speaker for turn in recording.turns}),
        len({turn.speaker for turn in found}),
        recording.seconds / elapsed,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--diarize-model", default=SPEAKERS, help="default: the one that comes with the package")
    parser.add_argument("--minutes", type=float, help="only one synthetic conversation of that length, of 8 speakers")
    arguments = parser.parse_args()
    pipeline = mlx_speech.Pipeline(diarize_model=arguments.diarize_model)
    pipeline.diarize(np.zeros(SAMPLE_RATE, np.float32))  # loads the models
    recordings: Iterator[Conversation]
    if arguments.minutes is not None:
        plan = Plan(60 * arguments.minutes, 5, 3)
        recordings = iter([conversation(f"{arguments.minutes:g} min", plan, 300)])
        print(f"memory: {_most_memory():.1f} GB at most for the making of it\n")
    else:
        recordings = _all_short()
    print("| recording | s | DER | missed | added | confused | speakers found, of | × real time |")
    print("|---|---|---|---|---|---|---|---|")
    for recording in recordings:
        row = measure(pipeline, recording)
        rates = " | ".join(f"{100 * rate:.1f}" for rate in (row.error, row.missed, row.added, row.confused))
        line = f"| {row.name} | {row.seconds:.0f} | {rates} | {row.found} of {row.speakers} | {row.speed:.1f} |"
        print(line, flush=True)
    print(f"\nmemory: {_most_memory():.1f} GB at most")


def _most_memory() -> float:
    """GB that this process has had (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def _all_short() -> Iterator[Conversation]:
    yield from excerpts()
    for number, plan in enumerate(PLANS):
        name = f"{plan.people} people, {plan.synthetic} of espeak-ng"
        yield conversation(name, plan, seed=100 + number)


if __name__ == "__main__":
    main()
