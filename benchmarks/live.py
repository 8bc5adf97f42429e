"""How late words of live sound come: `python -m benchmarks.live --model FOLDER --data FOLDER [--sessions 1 2 4 8]`.

A clock is simulated: sound arrives as it would from a microphone, and where the machine counts, the seconds that it
really computes pass on that clock, so that sound piles up behind it as it would. Without it computing takes no time,
which is what the policy alone costs.

Latency of a word is from its end, by the attention of Whisper in the final, to the moment at which it is first shown,
is firm, is final. Where a word is never shown or never firm before the final, the final is that moment. Firm words that
the final does not have count as changed. live.md has what it printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np

from mlx_speech import Pipeline
from mlx_speech.audio import load_audio
from mlx_speech.live.events import Final, LiveEvent, Partial
from mlx_speech.live.session import LiveSession
from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.stages.whisper.agreement import Policy, normalised

BLOCK = 0.1  # seconds that arrive at once
PAUSE = 1.0  # seconds between recordings
SOUNDS = (".wav", ".flac", ".mp3")
NO_GUARD = -60.0  # seconds: no word is too near the end
# Each with whose rule it is. All are written here and run on our decoder: they do not tell how fast those programs are.
POLICIES = {
    "agreement and guard (ours)": Policy(),
    "LocalAgreement-2 (whisper_streaming's rule)": Policy(rounds=2, guard=NO_GUARD),
    "guard of 0.5 s (WhisperLiveKit's AlignAtt, f = 25)": Policy(rounds=1, guard=0.5),
    "guard of 0.2 s": Policy(rounds=1, guard=0.2),
    "none: the latest hypothesis": Policy(rounds=1, guard=NO_GUARD),
}


@dataclass
class Latencies:
    """Seconds behind the ends of words, and counts of words."""

    shown: list[float] = field(default_factory=list)
    firm: list[float] = field(default_factory=list)
    final: list[float] = field(default_factory=list)
    chunk_final: list[float] = field(default_factory=list)  # behind the last word of a chunk
    never_shown: int = 0
    firm_words: int = 0
    changed: int = 0  # firm words that are not in the final

    def add(self, chunk: Final, now: float, partials: Sequence[tuple[float, Partial]]) -> None:
        """A chunk's final at a moment, and its partials with theirs."""
        words = [word for segment in chunk.segments for word in segment.words]
        texts = [normalised(word.text) for word in words]
        shown = [now] * len(words)
        firm = [now] * len(words)
        for moment, partial in partials:
            heard = [normalised(word.text) for word in partial.words]
            for ours, theirs in _common(texts, heard):
                shown[ours] = min(shown[ours], moment)
                if theirs < partial.firm:
                    firm[ours] = min(firm[ours], moment)
        if partials:
            last = partials[-1][1]
            kept = [normalised(word.text) for word in last.words[: last.firm]]
            self.firm_words += len(kept)
            self.changed += len(kept) - len(_common(texts, kept))
        for k, word in enumerate(words):
            self.shown.append(shown[k] - word.end)
            self.firm.append(firm[k] - word.end)
            self.final.append(now - word.end)
            self.never_shown += shown[k] == now
        if words:
            self.chunk_final.append(now - words[-1].end)


def _common(ours: Sequence[str], theirs: Sequence[str]) -> list[tuple[int, int]]:
    """Places of words that two texts have in common, in order."""
    pairs: list[tuple[int, int]] = []
    for a, b, size in SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks():
        pairs += [(a + k, b + k) for k in range(size)]
    return pairs


@dataclass
class Run:
    """What came of some sessions.

    seconds : of sound in each; computing : seconds that all took together
    """

    latencies: Latencies
    seconds: float
    computing: float
    longest_lag: float


def run(pipeline: Pipeline, sounds: Sequence[np.ndarray], *, counts: bool, step: float, policy: Policy) -> Run:
    """Sessions that hear (samples,) each at the same time.

    counts : whether computing takes time on the clock
    """
    sessions: list[LiveSession] = []
    for _ in sounds:
        session = pipeline.session(
            step=step, policy=policy, every_partial=not counts, language="en", word_timestamps="attention"
        )
        sessions.append(session)
    latencies = Latencies()
    partials: dict[tuple[int, int], list[tuple[float, Partial]]] = {}
    duration = max(sound.size for sound in sounds) / SAMPLE_RATE
    fed = 0.0
    now = 0.0
    computing = 0.0
    longest_lag = 0.0
    while fed < duration:
        if counts and now < fed + BLOCK:
            time.sleep(fed + BLOCK - now)  # what is begun while nobody waits for it goes on in that time
        now = max(now, fed + BLOCK)
        until = min(now, duration) if counts else fed + BLOCK
        longest_lag = max(longest_lag, until - fed)
        for session, sound in zip(sessions, sounds, strict=True):
            session.feed(sound[round(fed * SAMPLE_RATE) : round(until * SAMPLE_RATE)])
        fed = until
        start = time.perf_counter()
        events = _heard(sessions)
        elapsed = time.perf_counter() - start
        computing += elapsed
        if counts:
            now += elapsed
        _note(events, now, partials, latencies)
    for session in sessions:
        session.end()
    start = time.perf_counter()
    events = [(place, event) for place, session in enumerate(sessions) for event in session.events()]
    elapsed = time.perf_counter() - start
    _note(events, now + elapsed if counts else now, partials, latencies)
    return Run(latencies, duration, computing + elapsed, longest_lag)


def _heard(sessions: Sequence[LiveSession]) -> list[tuple[int, LiveEvent]]:
    """The events of all that was fed, each with the place of its session."""
    events: list[tuple[int, LiveEvent]] = []
    for place, session in enumerate(sessions):
        session.wait_until_heard()
        events += [(place, event) for event in session.told()]
    return events


def _note(
    events: Sequence[tuple[int, LiveEvent]],
    now: float,
    partials: dict[tuple[int, int], list[tuple[float, Partial]]],
    latencies: Latencies,
) -> None:
    for place, event in events:
        if isinstance(event, Partial):
            partials.setdefault((place, event.chunk), []).append((now, event))
        if isinstance(event, Final):
            latencies.add(event, now, partials.pop((place, event.chunk), []))


def recordings(folder: Path, seconds: float) -> np.ndarray:
    """(samples,): the recordings of a folder one behind the other, with pauses, from the first again until there are
    `seconds`."""
    pieces: list[np.ndarray] = []
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in SOUNDS]
    if not files:
        raise SystemExit(f"{folder} holds no {', '.join(SOUNDS)}")
    pause = np.zeros(round(PAUSE * SAMPLE_RATE), np.float32)
    for path in files:
        pieces += [load_audio(path), pause]
    sound = np.concatenate(pieces)
    repeats = max(1, int(np.ceil(seconds * SAMPLE_RATE / sound.size)))
    return np.tile(sound, repeats)[: round(seconds * SAMPLE_RATE)]


def main() -> None:
    """Print the tables."""
    summary, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=summary, epilog=more)
    parser.add_argument("--model", required=True, help="a Whisper's folder")
    parser.add_argument("--data", type=Path, required=True, help="a folder of recordings in English")
    parser.add_argument("--seconds", type=float, default=150.0, help="of sound; default: 150")
    parser.add_argument("--step", type=float, nargs="*", default=[0.5, 1.0], help="seconds; default: 0.5 1.0")
    parser.add_argument("--sessions", type=int, nargs="*", default=[1, 2, 4, 8], help="default: 1 2 4 8")
    parser.add_argument("--no-policies", action="store_true", help="only the clock on which computing counts")
    arguments = parser.parse_args()
    sound = recordings(arguments.data, arguments.seconds)
    with Pipeline(arguments.model) as pipeline:
        pipeline(sound[: 5 * SAMPLE_RATE], language="en", word_timestamps="attention")  # what is made once
        if not arguments.no_policies:
            for line in _policies(pipeline, sound, arguments.step):
                print(line, flush=True)
        for line in _loads(pipeline, sound, arguments.step, arguments.sessions):
            print(line, flush=True)


def _policies(pipeline: Pipeline, sound: np.ndarray, steps: Sequence[float]) -> Iterator[str]:
    yield "| policy, computing takes no time | step | shown | firm | final | firm words changed | never shown before |"
    yield "|---|---|---|---|---|---|---|"
    for step in steps:
        for name, policy in POLICIES.items():
            one = run(pipeline, [sound], counts=False, step=step, policy=policy).latencies
            changed = f"{one.changed} of {one.firm_words} ({100 * one.changed / max(1, one.firm_words):.1f} %)"
            never = f"{one.never_shown} of {len(one.final)}"
            latencies = " | ".join(_both(values) for values in (one.shown, one.firm, one.final))
            yield f"| {name} | {step:g} | {latencies} | {changed} | {never} |"
    yield ""


def _loads(pipeline: Pipeline, sound: np.ndarray, steps: Sequence[float], sessions: Sequence[int]) -> Iterator[str]:
    yield "| sessions | step | shown | firm | final | end of a chunk | computing, of real time | furthest behind |"
    yield "|---|---|---|---|---|---|---|---|"
    for step in steps:
        for count in sessions:
            # each begins elsewhere, so that their chunks do not end together
            sounds = [np.roll(sound, -k * sound.size // count) for k in range(count)]
            one = run(pipeline, sounds, counts=True, step=step, policy=Policy())
            found = one.latencies
            columns = [found.shown, found.firm, found.final, found.chunk_final]
            latencies = " | ".join(_both(values) for values in columns)
            load = one.computing / one.seconds
            yield f"| {count} | {step:g} | {latencies} | {load:.2f} | {one.longest_lag:.1f} s |"
    yield ""


def _both(values: Sequence[float]) -> str:
    """Median and 90th percentile, in seconds."""
    if not values:
        return ""
    return f"{statistics.median(values):.2f} ({np.percentile(values, 90):.2f})"


if __name__ == "__main__":
    main()
