"""How many words are wrong with Whisper's real weights on real recordings: ours, openai-whisper, faster-whisper.

    python tests/hearing.py             # measure what is missing; the figures are kept in hearing.json
    python tests/hearing.py --again     # measure all of it anew
    python tests/hearing.py --table     # put the tables of the figures into README.md

The recordings are those of MLX_SPEECH_TEST_DATA (`manifest.json` has their texts), and three of them joined.
Errors are counted by jiwer behind Whisper's own text normaliser; in Japanese and Chinese they are characters.
`test_real_speech.py` holds ours to the figures of the others.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import originals
import real_weights

from mlx_speech import Pipeline, load_audio
from mlx_speech.convert import convert
from mlx_speech.errors import MLXSpeechError

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("MLX_SPEECH_TEST_DATA", ROOT.parent / "shared"))
FIGURES = Path(__file__).parent / "data" / "hearing.json"
README = ROOT / "README.md"

RATE = 16_000
MEGABYTE = 1e6
CHARACTERS = ("ja", "zh")  # languages whose errors are counted in characters
SET_NAMES = {"recordings": "single recordings", "joined": "three with pauses"}
LANGUAGES = {"en": "English", "sv": "Swedish", "ja": "Japanese", "zh": "Chinese"}


@dataclass(frozen=True)
class Sample:
    """A recording whose words are known.

    audio : (samples,) at 16 kHz
    """

    name: str
    language: str
    audio: np.ndarray
    text: str


@dataclass(frozen=True)
class Errors:
    """Word errors against `words` of the truth, as jiwer counts them."""

    words: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def total(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        return self.total / self.words if self.words else 0.0

    @property
    def kept(self) -> float:
        """The share of the words for which there is some word."""
        return 1 - self.deletions / self.words if self.words else 1.0

    def __add__(self, other: Errors) -> Errors:
        return Errors(
            self.words + other.words,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )


# --- recordings -------------------------------------------------------------------------------------------------------


@cache
def recordings() -> tuple[Sample, ...]:
    """Every recording of the test data whose text is known. Raises `FileNotFoundError` where there is no test data."""
    samples = []
    for entry in json.loads((DATA / "data" / "manifest.json").read_text()):
        if not entry.get("text") or not entry["file"].startswith("data/audio/"):
            continue
        path = DATA / entry["file"]
        samples.append(Sample(path.name, path.parent.name, load_audio(path), entry["text"]))
    return tuple(samples)


def joined(count: int = 24, seed: int = 3) -> list[Sample]:
    """Three English recordings in one, with pauses of 0.5 to 8 s between them: digital silence, or hiss."""
    english = [sample for sample in recordings() if sample.language == "en" and sample.audio.size < 12 * RATE]
    dice = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        chosen = [english[k] for k in dice.choice(len(english), 3, replace=False)]
        loudness = 0.003 if number % 2 else 0.0
        parts = [chosen[0].audio]
        for sample, seconds in zip(chosen[1:], dice.uniform(0.5, 8, 2), strict=True):
            parts += [noise(seconds, loudness, dice), sample.audio]
        text = " ".join(sample.text for sample in chosen)
        samples.append(Sample(f"joined {number}", "en", np.concatenate(parts), text))
    return samples


def noise(seconds: float, loudness: float, dice: np.random.Generator) -> np.ndarray:
    """White noise of a root mean square of `loudness`, (samples,)."""
    return (dice.standard_normal(round(seconds * RATE)) * loudness).astype(np.float32)


SETS: dict[str, Callable[[], Iterable[Sample]]] = {"recordings": recordings, "joined": joined}


# --- counting ---------------------------------------------------------------------------------------------------------


@cache
def normaliser(language: str) -> Callable[[str], str]:
    """Whisper's own, of the openai-whisper package; behind it, words that are spelled alike are alike."""
    from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

    return EnglishTextNormalizer() if language == "en" else BasicTextNormalizer(split_letters=language in CHARACTERS)


def count(sample: Sample, text: str) -> Errors:
    """The errors of `text` as a transcript of the sample."""
    import jiwer

    normalise = normaliser(sample.language)
    truth, heard = normalise(sample.text).strip(), normalise(text).strip()
    if not heard:
        words = len(truth.split())
        return Errors(words, deletions=words)
    found = jiwer.process_words(truth, heard)
    words = found.hits + found.substitutions + found.deletions
    return Errors(words, found.substitutions, found.deletions, found.insertions)


def by_language(samples: Iterable[Sample], texts: Iterable[str]) -> dict[str, Errors]:
    errors: dict[str, Errors] = {}
    for sample, text in zip(samples, texts, strict=True):
        errors[sample.language] = errors.get(sample.language, Errors()) + count(sample, text)
    return errors


# --- contenders -------------------------------------------------------------------------------------------------------

Hear = Callable[[Iterable[Sample]], Iterator[str]]


def ours(model: Any, **options: Any) -> Hear:
    """The pipeline; `model` and `dtype`, `q_bits` are its own, the rest are options of the call."""
    own = {name: options.pop(name) for name in ("dtype", "q_bits") if name in options}

    return lambda samples: iter(texts(Pipeline(model, batch_size=8, **own), samples, **options))


def texts(pipeline: Pipeline, samples: Iterable[Sample], **options: Any) -> list[str]:
    """What the pipeline hears in each sample."""
    given = [sample.audio for sample in samples]
    found: dict[int, str] = {}
    for audio, result in pipeline.transcribe(given, word_timestamps=None, **options):
        if isinstance(result, Exception):
            raise result
        found[id(audio)] = result.text.replace("\n", " ")
    return [found[id(audio)] for audio in given]


def openai_whisper(folder: Path) -> Hear:
    """`transcribe` of openai/whisper with its defaults, on the same weights."""
    model = originals.whisper_from_ctranslate2(folder / "model.bin")
    return lambda samples: (model.transcribe(sample.audio, fp16=False, verbose=None)["text"] for sample in samples)


def faster_whisper(folder: Path) -> Hear:
    """faster-whisper's batches with its defaults, but greedy, in float32."""
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    pipeline = BatchedInferencePipeline(WhisperModel(str(folder), device="cpu", compute_type="float32"))

    def hear(samples: Iterable[Sample]) -> Iterator[str]:
        for sample in samples:
            segments, _ = pipeline.transcribe(sample.audio, batch_size=8, beam_size=1)
            yield " ".join(segment.text for segment in segments)

    return hear


def converted(folder: Path, **options: Any) -> Path:
    """Our model of the original in `folder`, as `convert` writes it with these options; kept until the end."""
    target = Path(tempfile.mkdtemp(prefix="mlx_speech_hearing")) / "mlx"
    atexit.register(shutil.rmtree, target.parent, ignore_errors=True)
    convert(str(folder), target, **options)
    return target


@dataclass(frozen=True)
class Contender:
    """Who hears; `make` is called when it is its turn.

    options : of the conversion, where ours hears with the converted model: its size is kept as well
    """

    make: Callable[[Path], Hear]
    options: dict[str, Any] | None = None


OURS = "ours"
BESIDE = {
    OURS: Contender(ours),
    "faster-whisper, batched": Contender(faster_whisper),
    "openai-whisper": Contender(openai_whisper),
    "ours, `beam_size=5`": Contender(partial(ours, beam_size=5)),
    "ours, `sequential`": Contender(partial(ours, sequential=True)),
}
SMALLER = {
    "float16, as OpenAI's": Contender(ours, {}),
    "the same, computed in float16": Contender(partial(ours, dtype="float16"), {}),
    "8 bits: `-q --q-bits 8`": Contender(ours, {"quantize": True, "q_bits": 8}),
    "6 bits: `-q --q-bits 6`": Contender(ours, {"quantize": True, "q_bits": 6}),
    "4 bits: `-q`": Contender(ours, {"quantize": True}),
}


# --- figures ----------------------------------------------------------------------------------------------------------


@dataclass
class Figures:
    """What was measured of a contender.

    errors : set → language → errors
    bytes : of its weights on the disk, where it was converted for this
    """

    errors: dict[str, dict[str, Errors]] = field(default_factory=dict)
    bytes: int | None = None


def read_figures() -> dict[str, Figures]:
    """By contender, as they were measured last."""
    if not FIGURES.exists():
        return {}
    figures = {}
    for name, kept in json.loads(FIGURES.read_text()).items():
        errors = {
            kind: {code: Errors(**found) for code, found in languages.items()}
            for kind, languages in kept["errors"].items()
        }
        figures[name] = Figures(errors, kept["bytes"])
    return figures


def write_figures(figures: dict[str, Figures]) -> None:
    FIGURES.write_text(json.dumps({name: asdict(kept) for name, kept in figures.items()}, indent=1) + "\n")


def total(languages: dict[str, Errors]) -> Errors:
    return sum(languages.values(), Errors())


def measure(again: bool, only: list[str]) -> None:
    """Measure what has no figures yet, one set after the other; each is kept as soon as it is there."""
    figures = {} if again else read_figures()
    contenders = BESIDE | SMALLER
    for name in only or contenders:
        kept = figures.setdefault(name, Figures())
        missing = [kind for kind in SETS if kind not in kept.errors]
        if not missing:
            continue
        contender = contenders[name]
        folder = real_weights.folder() / "whisper-base"
        if contender.options is not None:
            folder = converted(folder, **contender.options)
            kept.bytes = (folder / "model.safetensors").stat().st_size
        hear = contender.make(folder)
        for kind in missing:
            samples = list(SETS[kind]())
            found = by_language(samples, hear(samples))
            kept.errors[kind] = found
            write_figures(figures)
            said = ", ".join(f"{code} {errors.total} of {errors.words}" for code, errors in found.items())
            print(f"{name}, {SET_NAMES[kind]}: {said}; {total(found).rate:.1%}", flush=True)


# --- tables -----------------------------------------------------------------------------------------------------------


def table_beside() -> str:
    """Word error rates in per cent, a contender a line."""
    figures = {name: kept for name, kept in read_figures().items() if name in BESIDE}
    counted = figures[OURS].errors
    heads = [f"{name}, {_words(counted['recordings'], code)}" for code, name in LANGUAGES.items()]
    heads.append(f"{SET_NAMES['joined']}, {_words(counted['joined'], 'en')}")
    lines = [f"| | {' | '.join(heads)} | words kept |", "|" + "---|" * (len(heads) + 2)]
    for name in BESIDE:
        errors = figures[name].errors
        cells = [f"{errors['recordings'][code].rate:.1%}" for code in LANGUAGES]
        cells.append(f"{errors['joined']['en'].rate:.1%}")
        label = f"**{name}**" if name == OURS else name
        lines.append(f"| {label} | {' | '.join(cells)} | {errors['joined']['en'].kept:.1%} |")
    return "\n".join(lines)


def table_smaller() -> str:
    """What smaller weights cost: size and word error rates, English and all."""
    figures = read_figures()
    heads = ["size", f"{SET_NAMES['recordings']}, English", "the same, all languages", SET_NAMES["joined"]]
    lines = [f"| | {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 1)]
    for name in SMALLER:
        kept = figures[name]
        size = f"{kept.bytes / MEGABYTE:.0f} MB"
        rates = [kept.errors["recordings"]["en"], total(kept.errors["recordings"]), kept.errors["joined"]["en"]]
        lines.append(f"| {name} | {size} | {' | '.join(f'{errors.rate:.1%}' for errors in rates)} |")
    return "\n".join(lines)


TABLES = {"hearing": table_beside, "smaller": table_smaller}


def _words(errors: dict[str, Errors], code: str) -> str:
    return f"{errors[code].words} {'characters' if code in CHARACTERS else 'words'}"


def put_tables_into_readme() -> None:
    text = README.read_text()
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: python tests/hearing.py --table -->", f"<!-- /{name} -->"
        before, _, rest = text.partition(begin)
        _, _, behind = rest.partition(end)
        text = f"{before}{begin}\n{table()}\n{end}{behind}"
    README.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/hearing.py", description=__doc__.split("\n")[0])
    parser.add_argument("contender", nargs="*", help="of these only (default: all)")
    parser.add_argument("--again", action="store_true", help="measure everything anew")
    parser.add_argument("--table", action="store_true", help="only put the tables into README.md")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if not arguments.table:
        measure(arguments.again, arguments.contender)
    put_tables_into_readme()


if __name__ == "__main__":
    try:
        main()
    except (MLXSpeechError, FileNotFoundError) as error:
        raise SystemExit(f"hearing: {error}") from error
