"""Short names of models → the repositories they come from.

Whisper's are those of openai/whisper and Distil-Whisper, alone or with -4bit (-q4) or -8bit (-q8) behind them. The
alignment models are WhisperX's, but for English, French, German, Spanish and Italian, where it takes torchaudio's
bundles, which are not on the hub.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from mlx_speech.errors import OptionError, brief
from mlx_speech.package_data import table

DEFAULT_GPU = "large-v3-turbo"
DEFAULT_CPU = "small"
SUFFIX = re.compile(r"-(?:q(\d)|(\d)bit)$")
MLX_COMMUNITY = "mlx-community"

ALIGN: dict[str, str] = table("align")  # language → repository


@dataclass(frozen=True)
class Source:
    """A repository, folder or file; q_bits: quantize the original to so many bits, None leaves it as it is."""

    repo: str
    q_bits: int | None = None


@dataclass(frozen=True)
class Whisper:
    """A size of Whisper.

    original : repository of the PyTorch weights
    millions : of parameters
    use : what it is for
    mlx : mlx-community's repository in MLX's layout and float16, if there is one
    quantized : what that name has behind it where the weights are quantized
    """

    original: str
    millions: float
    use: str
    mlx: str | None = None
    quantized: tuple[str, ...] = ()

    def megabytes(self, q_bits: int | None = None) -> float:
        """Of the weights, to download and in memory: float16, or quantized, two float16 to a group of 64."""
        bytes_per_weight = 2.0 if q_bits is None else (q_bits + 0.5) / 8
        return self.millions * bytes_per_weight


ENGLISH = "English only"
DISTIL = "English only, a short decoder"
TURBO = "the default on a GPU; does not translate"
BITS = ("-4bit", "-8bit")
WHISPER = {
    "tiny": Whisper("openai/whisper-tiny", 37.8, "trying things out", "whisper-tiny-mlx", ("-q4", "-8bit")),
    "tiny.en": Whisper("openai/whisper-tiny.en", 37.8, ENGLISH, "whisper-tiny.en-mlx", BITS),
    "base": Whisper("openai/whisper-base", 72.6, "clear speech, little memory", "whisper-base-mlx", BITS),
    "base.en": Whisper("openai/whisper-base.en", 72.6, ENGLISH, "whisper-base.en-mlx", BITS),
    "small": Whisper("openai/whisper-small", 241.7, "the default on a CPU", "whisper-small-mlx", BITS),
    "small.en": Whisper("openai/whisper-small.en", 241.7, ENGLISH, "whisper-small.en-mlx", BITS),
    "medium": Whisper("openai/whisper-medium", 763.9, "translation", "whisper-medium-mlx", ("-q4", "-8bit")),
    "medium.en": Whisper("openai/whisper-medium.en", 763.9, ENGLISH, "whisper-medium.en-mlx", BITS),
    "large-v1": Whisper("openai/whisper-large", 1543.3, "earlier results", "whisper-large-v1-mlx", BITS),
    "large-v2": Whisper("openai/whisper-large-v2", 1543.3, "earlier results", "whisper-large-v2-mlx", BITS),
    "large-v3": Whisper("openai/whisper-large-v3", 1543.5, "rarer languages", "whisper-large-v3-mlx", BITS),
    "large-v3-turbo": Whisper("openai/whisper-large-v3-turbo", 808.9, TURBO, "whisper-large-v3-turbo", ("-q4",)),
    "distil-small.en": Whisper("distil-whisper/distil-small.en", 166.1, DISTIL),
    "distil-medium.en": Whisper("distil-whisper/distil-medium.en", 394.4, DISTIL),
    "distil-large-v2": Whisper("distil-whisper/distil-large-v2", 756.2, DISTIL),
    "distil-large-v3": Whisper("distil-whisper/distil-large-v3", 756.4, DISTIL, "distil-whisper-large-v3"),
    "distil-large-v3.5": Whisper("distil-whisper/distil-large-v3.5", 756.4, DISTIL),
}
WHISPER["large"] = WHISPER["large-v3"]
WHISPER["turbo"] = WHISPER["large-v3-turbo"]


def whisper_sources(name: str) -> list[Source]:
    """Where the Whisper of that name comes from, best place leading: mlx-community, then the original.

    name : one of `WHISPER` (a folder of the same name is written ./small), or a hub repository, a folder or a file,
        which is then the only source. Raises `OptionError` for other names, with similar ones.
    """
    size = SUFFIX.sub("", name)
    if size in WHISPER:
        return _sources_of_size(WHISPER[size], _bits(name))
    if "/" in name or "\\" in name or exists(name):
        return [Source(name)]
    suffix = name[len(size) :]
    similar = [match + suffix for match in difflib.get_close_matches(size.lower(), WHISPER, 3)]
    advice = f"did you mean {' or '.join(similar)}?" if similar else f"choose from {', '.join(WHISPER)}"
    raise OptionError(f"no model {brief(name)}, nor a file or folder of that name: {advice}")


def is_short_name(name: str) -> bool:
    """Whether it stands for a Whisper ("tiny", "small-q4"); not where there is a file or folder that is called so."""
    return SUFFIX.sub("", name) in WHISPER and not exists(name)


def _sources_of_size(model: Whisper, q_bits: int | None) -> list[Source]:
    sources = []
    if model.mlx is not None:
        for ending in ("", *model.quantized):
            if _bits(ending) == q_bits:
                sources.append(Source(f"{MLX_COMMUNITY}/{model.mlx}{ending}"))
    return [*sources, Source(model.original, q_bits)]


def original(name: str) -> str:
    """The repository of the PyTorch weights that a short name of a Whisper stands for; other names as they are.

    Raises `OptionError` for a short name with a suffix (-4bit, -q8): how weights are stored is a matter of options.
    """
    size = SUFFIX.sub("", name)
    if size not in WHISPER:
        return name
    if size != name:
        advice = f"give model={size!r} with quantize=True, q_bits={_bits(name)}"
        raise OptionError(f"{name} is a quantized model, and originals are not: {advice}")
    return WHISPER[size].original


def align_source(language: str) -> str | None:
    """The alignment model of a language (Whisper's code), None where there is none."""
    return ALIGN.get(language)


def exists(name: str) -> bool:
    """Whether there is a file or folder of that name."""
    try:
        return bool(name) and Path(name).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long a name, no such user, a NUL
        return False


def _bits(name: str) -> int | None:
    """The bits that the end of a name speaks of."""
    match = SUFFIX.search(name)
    return int(match[1] or match[2]) if match is not None else None
