"""How many words are wrong with Whisper's real weights on real recordings: ours, openai-whisper, faster-whisper.

    python tests/hearing.py             # measure what is missing; the figures are kept in hearing.json
    python tests/hearing.py --again     # measure all of it anew
    python tests/hearing.py --table     # put the tables of the figures into README.md

The recordings are those of MLX_SPEECH_TEST_DATA (`manifest.json` has their texts), and three of them joined.
Errors are counted by jiwer behind Whisper's own text normaliser, digits as words; in Japanese and Chinese they are
characters.
`test_real_speech.py` holds ours to the figures of the others.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from itertools import count
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
SET_NAMES = {"recordings": "single recordings", "joined": "three with pauses", "long": "1, 3 and 10 min in noise"}
LONG = {1: 0.0, 3: 0.002, 10: 0.005}  # minutes → root mean square of the noise
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


def long(seed: int = 4) -> list[Sample]:
    """1, 3 and 10 minutes in noise."""
    return [in_turn(60 * minutes, loudness, seed) for minutes, loudness in LONG.items()]


def in_turn(seconds: float, loudness: float, seed: int) -> Sample:
    """English recordings one after the other, with pauses of 0.2 to 6 s, until it lasts so long; white noise of a root
    mean square of `loudness` over all of it."""
    english = [sample for sample in recordings() if sample.language == "en"]
    dice = np.random.default_rng((seed, round(seconds)))
    turns = (english[index] for _ in count() for index in dice.permutation(len(english)))
    parts: list[np.ndarray] = []
    said: list[str] = []
    while sum(part.size for part in parts) < seconds * RATE:
        sample = next(turns)
        parts += [sample.audio, noise(dice.uniform(0.2, 6), 0.0, dice)]
        said.append(sample.text)
    audio = np.concatenate(parts)
    audio += noise(audio.size / RATE, loudness, dice)[: audio.size]
    return Sample(f"{seconds:g} s in noise of {loudness:g}", "en", audio, " ".join(said))


def noise(seconds: float, loudness: float, dice: np.random.Generator) -> np.ndarray:
    """White noise of a root mean square of `loudness`, (samples,)."""
    return (dice.standard_normal(round(seconds * RATE)) * loudness).astype(np.float32)


SETS: dict[str, Callable[[], Iterable[Sample]]] = {"recordings": recordings, "joined": joined, "long": long}


# --- counting ---------------------------------------------------------------------------------------------------------


@cache
def normaliser(language: str) -> Callable[[str], str]:
    """Whisper's own, of the openai-whisper package; behind it, words that are spelled alike are alike. It knows numbers
    in English only; elsewhere digits are spelled out before it, or whoever writes "1, 2" has heard nothing right."""
    from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

    if language == "en":
        return EnglishTextNormalizer()
    basic = BasicTextNormalizer(split_letters=language in CHARACTERS)
    return basic if language in CHARACTERS else lambda text: basic(without_digits(text, language))


def without_digits(text: str, language: str) -> str:
    """Whole numbers as words."""
    from num2words import num2words

    return re.sub(r"\d+", lambda number: num2words(int(number[0]), lang=language), text)


def errors_of(sample: Sample, text: str) -> Errors:
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
        errors[sample.language] = errors.get(sample.language, Errors()) + errors_of(sample, text)
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
    sets : which it hears
    """

    make: Callable[[Path], Hear]
    options: dict[str, Any] | None = None
    sets: tuple[str, ...] = tuple(SETS)


OURS = "ours"
BESIDE = {
    OURS: Contender(ours),
    "faster-whisper, batched": Contender(faster_whisper),
    "openai-whisper": Contender(openai_whisper),
    "ours, `beam_size=5`": Contender(partial(ours, beam_size=5)),
    "ours, `sequential`": Contender(partial(ours, sequential=True)),
}
SHORT = ("recordings", "joined")
MIXED = {"quantize": True, "quant_predicate": "mixed_4_8"}
SMALLER = {
    "float16, as OpenAI's": Contender(ours, {}, SHORT),
    "8 bits: `-q --q-bits 8`": Contender(ours, {"quantize": True, "q_bits": 8}, SHORT),
    "6 bits: `-q --q-bits 6`": Contender(ours, {"quantize": True, "q_bits": 6}, SHORT),
    "mixed: `-q --quant-predicate mixed_4_8`": Contender(ours, MIXED, SHORT),
    "4 bits: `-q`": Contender(ours, {"quantize": True}, SHORT),
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


def missing_sets(contender: Contender, kept: Figures | None) -> list[str]:
    """The sets that the contender has not heard yet."""
    return [kind for kind in contender.sets if kept is None or kind not in kept.errors]


def measure(again: bool, only: list[str]) -> None:
    """Measure what has no figures yet, one set after the other; each is kept as soon as it is there."""
    figures = {} if again else read_figures()
    contenders = BESIDE | SMALLER
    for name in only or contenders:
        kept = figures.setdefault(name, Figures())
        contender = contenders[name]
        missing = missing_sets(contender, kept)
        if not missing:
            continue
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
    figures = read_figures()
    counted = figures[OURS].errors
    heads = [f"{name}, {_words(counted['recordings'], code)}" for code, name in LANGUAGES.items()]
    heads += [f"{SET_NAMES[kind]}, {_words(counted[kind], 'en')}" for kind in ("joined", "long")]
    lines = [f"| | {' | '.join(heads)} | words kept |", "|" + "---|" * (len(heads) + 2)]
    for name in BESIDE:
        errors = figures[name].errors
        cells = [errors["recordings"][code].rate for code in LANGUAGES]
        cells += [errors[kind]["en"].rate for kind in ("joined", "long")]
        cells.append((errors["joined"]["en"] + errors["long"]["en"]).kept)
        label = f"**{name}**" if name == OURS else name
        lines.append(f"| {label} | {' | '.join(f'{cell:.1%}' for cell in cells)} |")
    return "\n".join(lines)


def table_smaller() -> str:
    """What smaller weights cost: size and word error rates in per cent."""
    figures = read_figures()
    heads = ["size", f"{SET_NAMES['recordings']}, English", "the same, all languages", SET_NAMES["joined"]]
    lines = [f"| | {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 1)]
    for name in SMALLER:
        kept = figures[name]
        rates = [f"{kept.errors['recordings']['en'].rate:.1%}", f"{total(kept.errors['recordings']).rate:.1%}"]
        rates.append(f"{kept.errors['joined']['en'].rate:.1%}")
        lines.append(f"| {name} | {(kept.bytes or 0) / MEGABYTE:.0f} MB | {' | '.join(rates)} |")
    return "\n".join(lines)


TABLES = {"hearing": (table_beside, BESIDE), "smaller": (table_smaller, SMALLER)}


def _words(errors: dict[str, Errors], code: str) -> str:
    return f"{errors[code].words} {'characters' if code in CHARACTERS else 'words'}"


def put_tables_into_readme() -> None:
    """Those of whose contenders all are measured."""
    figures = read_figures()
    text = README.read_text()
    for name, (table, contenders) in TABLES.items():
        if any(missing_sets(contender, figures.get(who)) for who, contender in contenders.items()):
            print(f"the table of {name} waits for more figures")
            continue
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
