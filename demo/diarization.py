"""The diarization pipeline of the three models: its settings, tuned on conversations, and its scores on others.

`python -m demo.diarization` writes config.yaml, in the layout of pyannote's community-1, and prints the scores.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pyannote.audio import Model
from pyannote.core import Annotation, Segment, Timeline
from pyannote.metrics.diarization import DiarizationErrorRate

import mlx_speech
from demo import ASSETS, RATE, WORK, plda, pyannet, wespeaker
from demo.conversations import Conversation, by_speaker, compose, variant
from demo.corpus import Corpus
from mlx_speech.convert import convert
from mlx_speech.stages import diarize as stage
from mlx_speech.stages import windows
from mlx_speech.transcript import Diarization

FOLDER = ASSETS / "diarization"
TUNED_ON, SCORED_ON, SECONDS = 20, 20, 60  # conversations, and their length
GRID = {
    "threshold": (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    "Fa": (0.03, 0.07, 0.15, 0.3),
    "Fb": (0.4, 0.8, 1.6, 3.0, 6.0, 12.0),
}
CONFIG = """dependencies:
  pyannote.audio: 4.0.0
pipeline:
  name: pyannote.audio.pipelines.SpeakerDiarization
  params:
    clustering: VBxClustering
    segmentation: $model/segmentation
    segmentation_batch_size: 32
    embedding: $model/embedding
    embedding_batch_size: 32
    embedding_exclude_overlap: true
    plda: $model/plda
params:
  clustering:
    threshold: {threshold}
    Fa: {Fa}
    Fb: {Fb}
  segmentation:
    min_duration_off: 0.0
"""


def write_config(threshold: float, Fa: float, Fb: float) -> None:
    (FOLDER / "config.yaml").write_text(CONFIG.format(threshold=threshold, Fa=Fa, Fb=Fb), encoding="utf-8")


def pipeline() -> Any:
    """The folder, converted."""
    convert(str(FOLDER), WORK / "diarization", overwrite=True)
    return mlx_speech.load(WORK / "diarization")


def conversations(corpus: Corpus, seed: int, count: int, names: list[str] | None = None) -> list[Conversation]:
    """Of two to four speakers."""
    rng = np.random.default_rng(seed)
    return [compose(corpus, rng, SECONDS, 2 + i % 3, names=names) for i in range(count)]


# --- scores ----------------------------------------------------------------------------------------------------------


def annotation(turns: Iterable[tuple[float, float, Any]]) -> Annotation:
    found = Annotation(uri="conversation")
    for number, (start, end, speaker) in enumerate(turns):
        found[Segment(start, end), number] = str(speaker)
    return found


def error_rate(pairs: Iterable[tuple[Conversation, Diarization]]) -> dict[str, float]:
    """Diarization error rate and its parts, of all conversations together: no collar, overlap counts."""
    metric = DiarizationErrorRate(collar=0.0, skip_overlap=False)
    for truth, found in pairs:
        turns = [(turn.start, turn.end, turn.speaker) for turn in found.turns]
        metric(annotation(truth.turns), annotation(turns), uem=Timeline([Segment(0, truth.duration)]))
    return _parts(metric)


def local_error_rate(model: Any, truth: Sequence[Conversation]) -> dict[str, float]:
    """The same of the segmentation alone, in windows of ten seconds whose voices are matched window by window."""
    metric = DiarizationErrorRate(collar=0.0, skip_overlap=False)
    size = pyannet.SECONDS * RATE
    for made in truth:
        starts = list(range(0, made.samples.size - size + 1, size // 2))
        found = np.concatenate(list(stage.segment(made.samples, model.segmentation, starts, size, 8)))
        for start, voices in zip(starts, found, strict=True):
            heard = Segment(start / RATE, (start + size) / RATE)
            turns = [
                (heard.start + stage.FRAMES.middle(a), heard.start + stage.FRAMES.middle(b), k)
                for k in range(voices.shape[1])
                for a, b in windows.runs(voices[:, k] > 0)
            ]
            metric(annotation(made.turns).crop(heard), annotation(turns), uem=Timeline([heard]))
    return _parts(metric)


def _parts(metric: DiarizationErrorRate) -> dict[str, float]:
    names = {"false alarm": "false alarm", "missed": "missed detection", "confusion": "confusion"}
    return {"error": abs(metric), **{name: metric[part] / metric["total"] for name, part in names.items()}}


def equal_error_rates(model: torch.nn.Module, corpus: Corpus, seconds: float) -> tuple[float, float]:
    """Of cosine similarity between augmented crops: all pairs, and without those of two identities of one voice."""
    rng = np.random.default_rng(30)
    vectors, names = [], []
    for name, numbers in by_speaker(corpus).items():
        for _ in numbers:
            heard = wespeaker.crop(corpus, numbers, rng, round(seconds * RATE))
            with torch.no_grad():
                vectors.append(model(torch.from_numpy(heard)[None, None])[0].numpy())
            names.append(name)
    units = np.stack(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
    first, second = np.triu_indices(len(names), 1)
    similarity = (units @ units.T)[first, second]
    same = np.array(names)[first] == np.array(names)[second]
    voices = np.array([variant(name) for name in names])
    apart = same | (voices[first] != voices[second])
    return _equal_error_rate(similarity, same), _equal_error_rate(similarity[apart], same[apart])


def _equal_error_rate(scores: np.ndarray, same: np.ndarray) -> float:
    from sklearn.metrics import roc_curve

    wrong, right, _ = roc_curve(same, scores)
    return float((wrong + 1 - right)[np.abs(wrong - (1 - right)).argmin()] / 2)


def evaluate(truth: Sequence[Conversation]) -> dict[str, float]:
    """The whole pipeline on conversations; prints and returns the error rate and its parts."""
    model = pipeline()
    parts = error_rate((made, stage.diarize(made.samples, model)) for made in truth)
    print("pipeline:", _written(parts), flush=True)
    print("segmentation alone, in 10 s:", _written(local_error_rate(model, truth)), flush=True)
    return parts


def _written(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {100 * value:.1f} %" for name, value in parts.items())


# --- settings --------------------------------------------------------------------------------------------------------


def said(model: Any, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the models say of every window: segmentations (chunks, frames, voices), embeddings (chunks, voices, size)"""
    size = pyannet.SECONDS * RATE
    starts = windows.starts(samples.size, size, round(model.segmentation_step * size))
    found = np.concatenate(list(stage.segment(samples, model.segmentation, starts, size, 8)))
    masks = stage.voice_masks(found, size, model.embedding_exclude_overlap)
    return found, np.concatenate(list(stage.embed(samples, model.embedding, starts, size, masks, 1)))


def tune(truth: Sequence[Conversation]) -> dict[str, float]:
    """The settings of `GRID` with the smallest error, to which half of their neighbours' mean is added."""
    write_config(0.6, 0.07, 0.8)
    model = pipeline()
    known = [said(model, made.samples) for made in truth]
    errors = np.zeros([len(values) for values in GRID.values()])
    for place, values in zip(np.ndindex(errors.shape), itertools.product(*GRID.values()), strict=True):
        settings = {"clustering": dict(zip(GRID, values, strict=True))}
        given: dict[str, Any] = {"duration": float(pyannet.SECONDS), "plda": model.plda, "params": settings}
        found = [stage.from_stages(*one, **given) for one in known]
        errors[place] = error_rate(zip(truth, found, strict=True))["error"]
    padded = np.pad(errors, 1, mode="edge")
    around = [padded[tuple(slice(k, k + n) for k, n in zip(corner, errors.shape, strict=True))] for corner in CORNERS]
    best = np.unravel_index(np.argmin(errors + 0.5 * np.mean(around, axis=0)), errors.shape)
    chosen = {name: values[k] for (name, values), k in zip(GRID.items(), best, strict=True)}
    print(f"tuned: {chosen}, error {100 * errors[best]:.1f} % (smallest {100 * errors.min():.1f} %)", flush=True)
    return chosen


CORNERS = list(itertools.product(range(3), repeat=len(GRID)))


def main() -> None:
    torch.set_num_threads(1)
    write_config(**tune(conversations(plda.corpus(), 40, TUNED_ON, plda.identities()[plda.ESTIMATED :])))
    unheard = Corpus.open("speakers-test")
    evaluate(conversations(unheard, 41, SCORED_ON))
    model = Model.from_pretrained(wespeaker.FILE).eval()
    for seconds in (1.5, 3.0):
        rates = [f"{100 * rate:.1f} %" for rate in equal_error_rates(model, unheard, seconds)]
        print(f"equal error rate, {seconds} s: {rates[0]}, of different voices {rates[1]}", flush=True)


if __name__ == "__main__":
    main()
