"""Conversion: a checkpoint as on the hub → half precision on disk, beside what one would write in torch."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import models
from benchmarks.suite import OURS, Call, Row, Work

TORCH = "torch: load, cast, save"
FILE = "model.safetensors"
# a tensor that both sides keep as it is: theirs, ours
SAMPLES = {
    "wav2vec2": ("lm_head.weight", "lm_head.weight"),
    "large_v3": ("model.decoder.embed_tokens.weight", "decoder.token_embedding.weight"),
}


def rows(device: str, quick: bool) -> list[Row]:
    found = []
    for name, source, dtype, title in (
        ("wav2vec2", models.wav2vec2(quick).original, "float16", "wav2vec2-base, float32 to float16"),
        (
            "large_v3",
            models.large_v3(quick),
            "bfloat16",
            "a checkpoint of large-v3's shapes, float16 to bfloat16",
        ),
    ):
        size = (source / FILE).stat().st_size
        written = size / 2 if name == "wav2vec2" else size
        title = f"{title}, {size / 1e6:.0f} MB to {written / 1e6:.0f} MB, disk to disk"
        arguments = {"source": source, "dtype": dtype, "sample": SAMPLES[name]}
        work = Work(0, size + written)
        found.append(Row(f"convert/{name}", title, {OURS: ours, TORCH: in_torch}, arguments, agree, work=work))
    return found


def ours(source: Path, dtype: str, sample: tuple[str, str]) -> Call:
    from mlx_speech.convert import convert

    place = tempfile.TemporaryDirectory(dir=models.cache_folder(), prefix="converting-")
    target = Path(place.name) / "ours"

    def call() -> dict[str, Any]:
        assert place.name
        convert(str(source), target, dtype=dtype, overwrite=True)
        return written(target, sample[1])

    return call


def in_torch(source: Path, dtype: str, sample: tuple[str, str]) -> Call:
    import torch
    from safetensors.torch import load_file, save_file

    place = tempfile.TemporaryDirectory(dir=models.cache_folder(), prefix="converting-")

    def call() -> dict[str, Any]:
        weights = load_file(source / FILE)
        save_file({name: weights[name].to(getattr(torch, dtype)) for name in weights}, Path(place.name) / FILE)
        return written(Path(place.name), sample[0])

    return call


def written(folder: Path, name: str) -> dict[str, Any]:
    """The size of a file of weights, and the start of a tensor as its bytes are on disk."""
    with (folder / FILE).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
        file.seek(8 + length + entry["data_offsets"][0])
        return {"size": (folder / FILE).stat().st_size, "dtype": entry["dtype"], "start": file.read(1000)}


def agree(outputs: dict[str, dict[str, Any]]) -> str:
    mine, theirs = outputs[OURS], outputs.get(TORCH)
    if theirs is None:
        return ""
    assert mine["start"] == theirs["start"] and mine["dtype"] == theirs["dtype"], "different values"
    assert abs(mine["size"] / theirs["size"] - 1) < 0.03, f"{mine['size']} and {theirs['size']} bytes"
    return f"{mine['size'] / 1e6:.0f} and {theirs['size'] / 1e6:.0f} MB written; a tensor of both is equal bit for bit."
