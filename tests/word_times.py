"""When words are said, on real recordings whose times are known: ours beside openai-whisper's, on the same weights.

    python tests/word_times.py     # measure, and put the table into README.md

The known times are machine-made themselves: a TextGrid that comes with the Montreal Forced Aligner's tests, and two
alignments by PocketSphinx.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import hearing
import numpy as np
import originals
import real_weights
from whisper import _ALIGNMENT_HEADS

from mlx_speech import Pipeline, load_audio
from mlx_speech.evaluation.references import read_textgrid
from mlx_speech.package_data import DEMO
from mlx_speech.transcript import Word

BEGIN, END = "<!-- times: python tests/word_times.py -->", "<!-- /times -->"
ENGLISH = hearing.DATA / "data" / "audio" / "en"
ALIGNED = ("librivox_sns_0880", "librivox_sns_0920")
SILENCE = ("<sil>", "<s>", "</s>", "[NOISE]", "")


@dataclass(frozen=True)
class Timed:
    """A word without marks, in small letters; start, end in seconds."""

    word: str
    start: float
    end: float


def plain(word: str) -> str:
    return re.sub(r"[^a-z0-9']", "", word.lower())


def read_pocketsphinx(path: Path) -> list[Timed]:
    """The words of a PocketSphinx alignment: `b` begin, `d` duration, `t` text, whose "(2)" names a pronunciation."""
    words = []
    for entry in json.loads(path.read_text())["w"]:
        if entry["t"] not in SILENCE:
            text = re.sub(r"\(\d+\)$", "", entry["t"])
            words.append(Timed(plain(text), entry["b"], entry["b"] + entry["d"]))
    return words


def timed(words: Iterable[Word]) -> list[Timed]:
    """Without those that are silence."""
    return [Timed(plain(word.text), word.start, word.end) for word in words if word.text not in SILENCE]


def truths() -> dict[Path, list[Timed]]:
    """The recordings and when their words are said."""
    found = {
        ENGLISH / f"{name}.wav": read_pocketsphinx(ENGLISH / f"{name}.pocketsphinx_align.json") for name in ALIGNED
    }
    tiers = read_textgrid((ENGLISH / "acoustic_corpus.TextGrid").read_text())
    found[ENGLISH / "acoustic_corpus.wav"] = timed(next(words for name, words in tiers.items() if "words" in name))
    return found


def matched(truth: Sequence[Timed], heard: Sequence[Timed]) -> list[tuple[Timed, Timed]]:
    """The words that both have, in order."""
    matcher = SequenceMatcher(None, [one.word for one in truth], [one.word for one in heard], autojunk=False)
    pairs = []
    for block in matcher.get_matching_blocks():
        pairs += zip(truth[block.a : block.a + block.size], heard[block.b : block.b + block.size], strict=True)
    return pairs


def row(name: str, pairs: Iterable[tuple[Timed, Timed]]) -> str:
    """A line of the table: median and 90th percentile of the errors of starts and ends, and shares of all of them."""
    pairs = list(pairs)
    starts = np.array([abs(known.start - found.start) for known, found in pairs])
    ends = np.array([abs(known.end - found.end) for known, found in pairs])
    both = np.concatenate([starts, ends])
    cells = [f"{len(pairs)}"]
    for errors in (starts, ends):
        cells.append(f"{1000 * np.median(errors):.0f}, {1000 * np.percentile(errors, 90):.0f} ms")
    cells += [f"{np.mean(both <= limit):.0%}" for limit in (0.0501, 0.1001)]
    return f"| {name} | {' | '.join(cells)} |"


def table() -> str:
    folder = real_weights.folder() / "whisper-base"
    known = truths()

    def ours(pipeline: Pipeline, kind: str) -> list[tuple[Timed, Timed]]:
        pairs = []
        for path, truth in known.items():
            words = pipeline(path, word_timestamps=kind, language="en").words
            pairs += matched(truth, [Timed(plain(word.text), word.start, word.end) for word in words])
        return pairs

    demo = Pipeline(folder, align_model=DEMO / "wav2vec2")
    model = originals.whisper_from_ctranslate2(folder / "model.bin")
    model.set_alignment_heads(_ALIGNMENT_HEADS["base"])
    theirs = []
    for path, truth in known.items():
        result = model.transcribe(load_audio(path), fp16=False, verbose=None, language="en", word_timestamps=True)
        words = [word for segment in result["segments"] for word in segment["words"]]
        theirs += matched(truth, [Timed(plain(word["word"]), word["start"], word["end"]) for word in words])
    lines = [
        "| | words | starts: median, 90th percentile | ends | within 50 ms | within 100 ms |",
        "|---|---|---|---|---|---|",
        row("ours, Whisper's attention", ours(Pipeline(folder), "attention")),
        row("openai-whisper", theirs),
        row(
            "ours, the demo's wav2vec2 (never heard a human)",
            ours(demo, "ctc"),
        ),
    ]
    return "\n".join(lines)


def main() -> None:
    warnings.simplefilter("ignore")
    found = table()
    print(found)
    text = hearing.README.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, behind = rest.partition(END)
    hearing.README.write_text(f"{before}{BEGIN}\n{found}\n{END}{behind}")


if __name__ == "__main__":
    main()
