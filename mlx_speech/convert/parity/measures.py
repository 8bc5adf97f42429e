"""Parity: the PyTorch original and the converted model on the same input, measured against a bar per family.

A family's file builds the original from the same source and compares (`ParityCase`); `models.FAMILIES` names it. The
tests use the same measures. The bars hold for float32; half precision and quantized models are reported without one.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import mlx.core as mx
import numpy as np

from mlx_speech import checkpoint, models, package_data
from mlx_speech.convert.port import Plan
from mlx_speech.errors import MissingDependency, ParityError, install

if TYPE_CHECKING:
    from mlx_speech.convert.parity import campplus, plda, pyannet, silero_vad, wav2vec2, wespeaker, whisper

MIN_SPREAD = 1e-3  # of embeddings around their mean
MAX_OWN_ROUNDING = 2e-3  # by which an original may differ from itself in float64


@dataclass(frozen=True)
class Row:
    """One figure of a parity table: it holds when `value` is at most `bar`, or at least, where `at_least`."""

    measure: str
    value: float
    bar: float
    at_least: bool = False

    @property
    def ok(self) -> bool:
        """Whether it holds; NaN never does."""
        return bool(self.value >= self.bar if self.at_least else self.value <= self.bar)


@dataclass(frozen=True)
class Inputs:
    """What both sides are fed.

    audio : (samples,) at 16 kHz, at least 10 s
    sequences : how many random token sequences the Whisper decoder gets
    varied : refuse outputs of less variety than the bars ask for (5 labels, 4 powerset classes, 30 tokens);
        otherwise only outputs that are one and the same throughout
    seed : of what is drawn by chance
    judged : whether the figures are held to their bars. Those of half precision and of quantized weights are not, and
        a bar that has to be computed is not computed for them
    """

    audio: np.ndarray
    sequences: int = 8
    varied: bool = False
    seed: int = 0
    judged: bool = True


class ParityCase(Protocol):
    """What the parity file of a family has; a module is one. It imports frameworks inside its functions alone."""

    @property
    def ORIGINALS(self) -> Mapping[str, tuple[str, ...]]:
        """The originals that its recipes name (`Recipe.original`) → the packages that have to be installed."""
        ...

    def build(self, plan: Plan) -> Any:
        """The original of a plan's source, with its weights, as `measure` takes it."""
        ...

    def measure(self, original: Any, model: Any, inputs: Inputs) -> list[Row]:
        """Both on the same inputs, one row a figure. Raises `ParityError` for outputs that would prove nothing."""
        ...


def parity_case(family: str) -> ParityCase:
    """The parity file of `family`, one of `models.FAMILIES`."""
    return cast(ParityCase, importlib.import_module(models.FAMILIES[family].parity))


if TYPE_CHECKING:  # the registry names modules, which no type checker can follow: here it looks at those of the package
    _CASES: tuple[ParityCase, ...] = (campplus, plda, pyannet, silero_vad, wav2vec2, wespeaker, whisper)


def measure(family: str, original: Any, model: Any, inputs: Inputs) -> list[Row]:
    """Compare `original` (a torch module, or what stands for it) with `model`, both of `family`.

    Raises `ParityError` for degenerate outputs, which would prove nothing.
    """
    import torch

    with torch.no_grad():
        return parity_case(family).measure(original, model, inputs)


def verified(plan: Plan, folder: Path, dtype: str, judged: bool = True) -> list[Row]:
    """Parity of the model in `folder` with the original of its plan, on a recording that comes with the package.

    dtype : in which the model is computed
    judged : as of `Inputs`
    """
    from mlx_speech.audio import load_audio

    audio = load_audio(package_data.DEMO / "pauses.flac")
    model = checkpoint.load_folder(folder, dtype=dtype)
    return measure(plan.family, original(plan), model, Inputs(audio, judged=judged))


def original(plan: Plan) -> Any:
    """The PyTorch original of a plan's source, in the form that the family's measure takes.

    Raises `MissingDependency` where it cannot be run.
    """
    check_installed(plan)
    import torch

    torch.set_grad_enabled(False)
    return parity_case(plan.family).build(plan)


def check_installed(plan: Plan) -> None:
    """Raises `MissingDependency` where the original of a plan's source cannot be run."""
    packages = parity_case(plan.family).ORIGINALS.get(plan.recipe.original)
    if packages is None:
        raise MissingDependency("verify=True needs an original to compare with, and this source is a converted model")
    missing = [name for name in packages if not _installed(name)]
    if missing:
        names = ", ".join(missing)
        advice = install("test")
        if "speakerlab" in missing:  # what it asks for is a training toolkit, and an older NumPy
            advice += "; pip install --no-deps speakerlab==0.0.6"
        raise MissingDependency(f"verify=True needs {names}, missing here: {advice}")


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # its parent package is missing
        return False


def table(rows: list[Row], bars: bool = True) -> str:
    """The rows as a Markdown table; without bars where they do not hold (half precision, quantized)."""
    lines = ["| measure | value | bar |", "|---|---|---|"] if bars else ["| measure | value |", "|---|---|"]
    for row in rows:
        value = f"{row.value:.7g}" if row.at_least else f"{row.value:.3g}"
        line = f"| {row.measure} | {value} |"
        if bars:
            line += f" {'≥' if row.at_least else '≤'} {row.bar:g} |"
        lines.append(line)
    return "\n".join(lines)


# --- what the families' measures share -------------------------------------------------------------------------------


def refuse_degenerate(kind: str, winners: np.ndarray, least: int, varied: bool) -> None:
    """Raises `ParityError` where fewer than `least` (or, unless `varied`, two) different values win.

    kind : of the values, for the message
    """
    different = len(np.unique(winners))
    if different < (least if varied else 2):
        raise ParityError(f"degenerate outputs: {different} different {kind} win; they would prove nothing")


def as_numpy(array: mx.array) -> np.ndarray:
    """In float32."""
    return np.array(array.astype(mx.float32))


def largest_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Of two arrays of one shape; NaN where there is one in either."""
    return float(np.abs(one - other).max())


def embedding_rows(name: str, expected: np.ndarray, embeddings: np.ndarray, bar: float) -> list[Row]:
    """How far apart embeddings are, (…, size), by their direction and by their largest difference beside the norm.

    bar : of the largest difference
    Raises `ParityError` where the original's are all the same.
    """
    size = expected.shape[-1]
    expected = expected.reshape(-1, size).astype(np.float64)
    embeddings = embeddings.reshape(-1, size).astype(np.float64)
    norms = np.linalg.norm(expected, axis=1)
    spread = np.linalg.norm(expected - expected.mean(axis=0), axis=1) / norms
    if not spread.max() > MIN_SPREAD:  # NaN, too
        raise ParityError("degenerate outputs: one embedding for every input; they would prove nothing")
    cosine = (expected * embeddings).sum(axis=1) / (norms * np.linalg.norm(embeddings, axis=1))
    difference = (np.abs(expected - embeddings).max(axis=1) / norms).max()
    return [
        Row(f"{name}, least cosine", float(cosine.min()), 0.999999, at_least=True),
        Row(f"{name}, max difference / norm", float(difference), bar),
    ]


def beside_rounding(name: str, own_rounding: float) -> tuple[str, float]:
    """The name and the bar of a row whose original differs by `own_rounding` from itself in float64.

    Raises `ParityError` where that is so much that nothing is proven.
    """
    if own_rounding > MAX_OWN_ROUNDING:
        reason = f"the original in float32 is {own_rounding:.1e} from itself in float64"
        raise ParityError(f"{reason}: this input proves nothing")
    return f"{name} (the original's own rounding: {own_rounding:.1e})", 3 * own_rounding
