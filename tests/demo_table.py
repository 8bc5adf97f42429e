"""How well the demo models do on recordings that training never saw. `python tests/demo_table.py` writes the README's
table; `test_demo.py` holds the figures to their bars."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from pyannote.core import Annotation, Segment, Timeline
from pyannote.metrics.detection import DetectionErrorRate

import mlx_speech
from mlx_speech import detect_speech, load_audio
from mlx_speech.evaluation.references import read_truth
from mlx_speech.evaluation.scores import Scores, score
from mlx_speech.pipeline import Pipeline
from mlx_speech.transcript import Region, Transcript

DATA = Path(__file__).parent / "data" / "demo"
README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- demo: python tests/demo_table.py -->", "<!-- /demo -->"
SETS = {"espeak": "unheard voices of espeak-ng", "flite": "an unheard synthesizer, flite"}
HEAD = "| recordings | length | words | WER | DER | words with their speaker | word starts within 50 ms |"
HEAD += " word boundaries, median | speech/non-speech |"


def truths(kind: str, most: int | None = None) -> dict[Path, Transcript]:
    """The recordings of a set, or the first of them, and what was said there."""
    found = {path: read_truth(path.with_suffix(".json")) for path in sorted(DATA.glob(f"{kind}-*.opus"))[:most]}
    assert found and all(found.values()), f"no recordings of {kind}"
    return {path: truth for path, truth in found.items() if truth is not None}


def speech_error(given: dict[Path, Transcript]) -> float:
    """Part of the time in which Silero takes silence for speech or speech for silence."""
    metric, model, seconds = DetectionErrorRate(), mlx_speech.load("silero_vad"), 0.0
    for path, truth in given.items():
        turns = truth.diarization.turns if truth.diarization else ()
        heard = Timeline([Segment(0, truth.duration)])
        metric(_speech(turns), _speech(detect_speech(load_audio(path), model)), uem=heard)
        seconds += truth.duration
    return (metric["miss"] + metric["false alarm"]) / seconds


def _speech(regions: tuple[Region, ...] | list[Region]) -> Annotation:
    return Annotation.from_records((Segment(r.start, r.end), k, "speech") for k, r in enumerate(regions))


@dataclass(frozen=True)
class Measured:
    """A set of recordings with one precision of Whisper; `speech` : error of the speech detection, None: not asked."""

    kind: str
    bits: int | None
    minutes: float
    words: int
    scores: Scores
    speech: float | None

    def __str__(self) -> str:
        s = self.scores
        if self.speech is None:  # only the words can be another
            return f"| the same, Whisper in {self.bits} bits | | | {s.wer:.1%} | | | | | |"
        said = (f"{self.minutes:.1f} min", self.words, f"{s.wer:.1%}", f"{s.der:.1%}", f"{s.attributed:.1%}")
        said += (f"{s.starts:.1%}", f"{1000 * s.boundary:.0f} ms", f"{self.speech:.1%}")
        return f"| {SETS[self.kind]} | {' | '.join(map(str, said))} |"


def measure(kind: str, bits: int | None = None, most: int | None = None) -> Measured:
    """Run the whole pipeline, or, for a quantized Whisper, what comes before the speakers."""
    given, whole = truths(kind, most), bits is None
    pipeline = Pipeline.demo(dtype="float32" if whole else None, q_bits=bits)
    pairs = []
    for path, result in pipeline.transcribe(given, diarize=whole):
        if isinstance(result, Exception):
            raise result
        pairs.append((result, given[path]))
    minutes, words = (
        sum(part) for part in zip(*((t.duration / 60, len(t.words)) for t in given.values()), strict=True)
    )
    return Measured(kind, bits, minutes, words, score(pairs), speech_error(given) if whole else None)


def table(measured: list[Measured]) -> str:
    """In Markdown."""
    return "\n".join([HEAD, "|" + "---|" * HEAD.count(" |"), *map(str, measured)])


def main() -> None:
    found = table([measure("espeak"), measure("espeak", 8), measure("espeak", 4), measure("flite")])
    print(found)
    text = README.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        sys.exit(f"{README} has no place for the table: {BEGIN} {END}")
    README.write_text(f"{before}{begin}\n{found}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
