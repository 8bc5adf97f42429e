"""Row 7: how time and memory grow with the recording, the batch, and the number of voices to cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import models
from benchmarks.rows.whisper_checks import END, OFF, OPTIONS, TOKENS
from benchmarks.suite import OURS, Call, Row, Work, peak_memory

MOST = 10.5  # times the time of a tenth of the recording
SCIPY = "SciPy's linkage, as pyannote.audio"
DIMENSION = 256
A_SECOND = 2  # voices: a window begins every second, and of its up to three voices some two speak for long enough
SPEAKERS = 12
CUTS = (0.4, 0.5, 0.6, 0.7, 0.8, 1.0)  # heights at which trees are compared


def rows(device: str, quick: bool) -> list[Row]:
    first, second, third = (0.25, 0.5, 1) if quick else (1, 10, 100)
    found = [_longer(device, second, first, None if quick else 1 / MOST)]
    found.append(_longer(device, third, second, None if quick else 1 / MOST))
    found += [_batch(device, batch) for batch in ((1, 2) if quick else (1, 2, 4, 8, 16, 32))]
    if quick:
        return [*found, _clustering("few", 400, True)]
    found.append(_clustering("4000", 4000, True))
    for hours in (1, 3, 6):
        found.append(_clustering(f"{hours}h", hours * 3600 * A_SECOND, hours < 6, f"{hours} h of audio"))
    return found


# --- the recording ---------------------------------------------------------------------------------------------------


def _longer(device: str, minutes: float, less: float, target: float | None) -> Row:
    shorter = f"{OURS}, {less:g} min"
    return Row(
        f"growth/{minutes:g}min",
        f"the whole chain with narrow models, {minutes:g} min; beside it {less:g} min",
        {OURS: long, shorter: short},
        {"device": device, "minutes": minutes, "less": less},
        agree_growth,
        targets={shorter: target} if target else {},
        most=1 if minutes == 100 else 3,
    )


def long(device: str, minutes: float, less: float) -> Call:
    models.use_mlx(device)
    from mlx_speech.pipeline import Pipeline

    own = models.narrow()
    pipeline = Pipeline(
        own.whisper, align_model=own.wav2vec2, diarize_model=own.diarization, batch_size=4, max_duration=1e6
    )
    path = _recording(60 * minutes)

    def call() -> dict[str, Any]:
        result = pipeline(path, language="en", temperature=0.0, num_speakers=2)
        found = {"minutes": minutes, "segments": len(result.segments), "turns": len(result.diarization.turns)}
        return found | {"peak": peak_memory(), "stages": dict(result.seconds)}

    return call


def short(device: str, minutes: float, less: float) -> Call:
    return long(device, less, less)


def _recording(seconds: float) -> Path:
    """Written by another process: the samples must not count as this one's."""
    command = "import sys; from benchmarks import models; print(models.speech_wav(float(sys.argv[1])))"
    done = subprocess.run(
        [sys.executable, "-c", command, str(seconds)], cwd=models.ROOT, capture_output=True, text=True, check=True
    )
    return Path(done.stdout.splitlines()[-1])


def agree_growth(outputs: Mapping[str, dict[str, Any]]) -> str:
    """Segments and turns grow with the recording, or something was left out."""
    said, beyond, density = [], [], []
    for output in outputs.values():
        samples = 4 * output["minutes"] * 60 * models.RATE
        beyond.append(output["peak"] - samples)
        density.append(output["segments"] / output["minutes"])
        stages = ", ".join(f"{stage} {seconds:.2g}" for stage, seconds in output["stages"].items())
        real = 60 * output["minutes"] / sum(output["stages"].values())
        said.append(
            f"{output['minutes']:g} min: {beyond[-1] / 1e6:.0f} MB beyond {samples / 1e6:.0f} MB of samples, "
            f"{output['segments']} segments, {output['turns']} turns, {real:.0f} × real time, seconds: {stages}"
        )
    assert 0.2 < density[0] / density[-1] < 5, density  # pauses are not spread evenly
    return f"{beyond[0] / beyond[-1]:.2f} × the memory beyond the samples; {'; '.join(said)}"


# --- the batch -------------------------------------------------------------------------------------------------------


def _batch(device: str, batch: int) -> Row:
    return Row(
        f"growth/batch-{batch}",
        f"tokens of a narrow Whisper, {batch} chunk{'s' * (batch > 1)} at once, {TOKENS} tokens each, already encoded",
        {OURS: decode},
        {"device": device, "batch": batch},
        agree_count,
        count=TOKENS * batch,
    )


def decode(device: str, batch: int) -> Call:
    models.use_mlx(device)
    import mlx.core as mx

    import mlx_speech
    from mlx_speech.stages.whisper import batched
    from mlx_speech.stages.whisper.decode import DecodingOptions, Job
    from mlx_speech.stages.whisper.fallback import decode_with_fallback
    from mlx_speech.stages.whisper.tokenizer import Tokenizer

    folder = models.narrow().whisper
    model = mlx_speech.load(folder, dtype="float32" if device == "cpu" else "float16")
    tokenizer = Tokenizer.find(folder, model.args.n_vocab)
    options = DecodingOptions(temperature=(0.0,), suppress_tokens=(END,), **OPTIONS, **OFF)
    encoded = batched.encode(list(models.speech(30 * batch).reshape(batch, -1)), model)
    mx.eval(encoded)

    def call() -> list[int]:
        jobs = [Job(row, "en") for row in encoded]
        found = decode_with_fallback(jobs, model, tokenizer, options, batch_size=batch)
        return [len(result.tokens) for _, result in found]

    return call


def agree_count(outputs: Mapping[str, list[int]]) -> str:
    counts = set(outputs[OURS])
    assert counts == {TOKENS}, counts
    return ""


# --- clustering ------------------------------------------------------------------------------------------------------


def _clustering(name: str, count: int, beside: bool, worth: str = "") -> Row:
    said = f"centroid linkage of N = {count} vectors of {DIMENSION}"
    said += f", {A_SECOND} for each second of {worth}" if worth else ""
    targets = {"1h": {OURS: 3.0}, "3h": {SCIPY: 1.0}}.get(name, {})
    return Row(
        f"growth/clustering-{name}",
        said,
        {OURS: linkage_ours} | ({SCIPY: linkage_scipy} if beside else {}),
        {"count": count},
        agree_parts,
        seconds=count / A_SECOND,
        # the distance of every two, once; and vectors and tree
        work=Work(float(count) ** 2 * DIMENSION, 8.0 * count * (DIMENSION + 4)),
        targets=targets,
        most=1 if name in ("3h", "6h") else 5,
    )


def _vectors(count: int) -> np.ndarray:
    """Unit vectors of some speakers, of whom one speaks for a while: windows overlap, so what follows is alike."""
    rng = np.random.default_rng(11)
    centres = rng.standard_normal((SPEAKERS, DIMENSION))
    who = np.repeat(rng.integers(SPEAKERS, size=count // 10 + 1), 10)[:count]
    spread = rng.uniform(0.3, 1.0, (count, 1))
    vectors = spread * rng.standard_normal((count, DIMENSION))
    for k in range(1, 4):  # as much of it is shared with the windows before
        vectors[k:] += 0.3 * spread[k:] * rng.standard_normal((count, DIMENSION))[:-k]
    vectors += centres[who]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def linkage_ours(count: int) -> Call:
    from mlx_speech.stages.linkage import centroid_linkage

    vectors = _vectors(count)
    return lambda: _parts(centroid_linkage(vectors))


def linkage_scipy(count: int) -> Call:
    from scipy.cluster.hierarchy import linkage

    pairs = 8 * count * (count - 1) // 2
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 2 * pairs > 0.8 * memory:  # all distances, and a copy of them to work in
        raise MemoryError(f"it needs {2 * pairs / 1e9:.0f} GB of {memory / 1e9:.0f}")
    vectors = _vectors(count)
    return lambda: _parts(linkage(vectors, method="centroid"))


def _parts(tree: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The heights, and the parts at some of them; the time for it is nothing beside that of the tree."""
    from scipy.cluster.hierarchy import fcluster

    return tree[:, 2].astype(np.float32), [fcluster(tree, cut, "distance").astype(np.int32) for cut in CUTS]


def agree_parts(outputs: Mapping[str, tuple[np.ndarray, list[np.ndarray]]]) -> str:
    heights, mine = outputs[OURS]
    sizes = [int(labels.max()) for labels in mine]
    for name, (others, theirs) in outputs.items():
        assert np.allclose(heights, others, rtol=0, atol=1e-5), name
        for cut, a, b in zip(CUTS, mine, theirs, strict=True):
            pairs = len(np.unique(np.stack([a, b]), axis=1).T)
            assert pairs == a.max() == b.max(), (name, cut)
    said = "the same parts as SciPy's" if len(outputs) > 1 else "parts"
    return f"{said} at heights {', '.join(f'{cut:g} ({size})' for cut, size in zip(CUTS, sizes, strict=True))}"
