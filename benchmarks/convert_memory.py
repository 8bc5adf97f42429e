"""Peak memory and time of converting a checkpoint of large-v3's shapes (1.5 B parameters, random values).

    python benchmarks/convert_memory.py [FOLDER FOR THE CHECKPOINTS, 20 GB]

Each conversion runs in a process of its own; the peak is the operating system's (resident set, which counts the pages
of the mapped source too). The bound: 1.3 × the larger of source and output, plus 300 MB. Exits 1 where it is exceeded.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mlx_speech.tensors import write_safetensors

MB = 1e6


def shapes() -> tuple[dict[str, tuple[int, ...]], dict]:
    """Names and shapes of openai/whisper-large-v3 in transformers' form, and its config."""
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=51866,
        num_mel_bins=128,
        d_model=1280,
        encoder_layers=32,
        encoder_attention_heads=20,
        decoder_layers=32,
        decoder_attention_heads=20,
        encoder_ffn_dim=5120,
        decoder_ffn_dim=5120,
    )
    with torch.device("meta"):
        state = WhisperForConditionalGeneration(config).state_dict()
    names = {name: tuple(tensor.shape) for name, tensor in state.items() if name != "proj_out.weight"}
    return names, {**config.to_dict(), "model_type": "whisper"}


def values(names: dict[str, tuple[int, ...]], dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    block = (0.02 * np.random.default_rng(0).standard_normal(1 << 22)).astype(dtype)
    for name, shape in names.items():
        yield name, np.resize(block, shape)


def make_safetensors(folder: Path, dtype: str) -> Path:
    """A folder as on the hub."""
    import json

    names, config = shapes()
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", {n: (s, dtype) for n, s in names.items()}, values(names, dtype))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def make_bin(folder: Path) -> Path:
    """The same as pytorch_model.bin."""
    import json

    import torch

    names, config = shapes()
    folder.mkdir()
    torch.save(
        {name: torch.from_numpy(array) for name, array in values(names, "float16")}, folder / "pytorch_model.bin"
    )
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def run(source: Path, target: Path, *flags: str) -> tuple[float, float, int]:
    """Seconds, peak bytes, bytes written of one conversion."""
    command = [sys.executable, "-m", "mlx_speech.convert", "--model", str(source), "--mlx-path", str(target), *flags]
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as report:
        process = subprocess.Popen(
            [sys.executable, "-c", WATCH, *command], stdout=report, stderr=subprocess.STDOUT, cwd=target.parent
        )
        if process.wait():
            report.seek(0)
            raise SystemExit(report.read())
        report.seek(0)
        peak = int(report.read().rsplit("peak=", 1)[1])
    return time.perf_counter() - start, peak, size(target)


# runs a command and prints the peak of its resident set, in bytes
WATCH = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
unit = 1 if sys.platform == "darwin" else 1024
print("peak=" + str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit))
sys.exit(code)
"""


def main() -> int:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        folder = Path(name)
        print("| source | flags | seconds | peak MB | bound MB | output MB |\n|---|---|---|---|---|---|")
        exceeded = 0
        for title, make in (
            ("float16 safetensors", lambda: make_safetensors(folder / "source", "float16")),
            ("float16 pytorch_model.bin", lambda: make_bin(folder / "source")),
            ("float32 safetensors", lambda: make_safetensors(folder / "source", "float32")),
        ):
            source = make()
            for flags in ((), ("-q",), ("--dtype", "float32") if "float16" in title else ("--dtype", "float16")):
                seconds, peak, written = run(source, folder / "target", *flags)
                bound = 1.3 * max(size(source), written) + 300 * MB
                exceeded += peak > bound
                print(
                    f"| {title}, {size(source) / MB:.0f} MB | {' '.join(flags) or '(none)'} | {seconds:.1f} | "
                    f"{peak / MB:.0f} | {bound / MB:.0f} | {written / MB:.0f} |",
                    flush=True,
                )
                for path in (folder / "target").iterdir():
                    path.unlink()
                (folder / "target").rmdir()
            for path in source.iterdir():
                path.unlink()
            source.rmdir()
    return 1 if exceeded else 0


if __name__ == "__main__":
    sys.exit(main())
