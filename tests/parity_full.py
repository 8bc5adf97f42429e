"""`make parity-full`: parity at the sizes that are too large for every test run. Takes about 30 minutes on two cores
and 16 GB; a run that was cut off goes on where it stopped.

Random weights in the real shapes of Whisper small and large-v3-turbo, XLSR large, and MMS with adapters. The table is
kept in benchmarks/parity_full.md.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

import originals as make
import torch
from conftest import ROOT
from test_parity import _mms, _openai, _transformers, _wav2vec2, audio

import mlx_speech
from mlx_speech import backend as backend  # before anything imports MLX
from mlx_speech import checkpoint
from mlx_speech.convert import convert
from mlx_speech.convert.parity import measures

LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
CASES = [
    ("Whisper small", "whisper", partial(_openai, dims=make.SMALL), 200, {}),
    ("Whisper large-v3-turbo", "whisper", partial(_transformers, dims=make.TURBO), 40, {}),
    ("wav2vec2 XLSR large", "wav2vec2", partial(_wav2vec2, kind="layer", **LARGE), 0, {}),
    ("MMS large, adapters of 16", "wav2vec2", partial(_mms, **LARGE), 0, {"language": "deu"}),
]


def measured(name: str, family: str, build: partial, sequences: int, options: dict) -> dict:
    """One case, from the file that an earlier run left, or now."""
    kept = ROOT / ".parity" / "full" / f"{name}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    start, folder = time.perf_counter(), Path(tempfile.mkdtemp())
    try:
        source, original = build(folder)
        convert(str(source), folder / "mlx", **options)
        model = checkpoint.load_folder(folder / "mlx")
        rows = measures.measure(family, original, model, measures.Inputs(audio(), sequences=sequences, varied=True))
    finally:
        shutil.rmtree(folder)
    print(f"{name}: {time.perf_counter() - start:.0f} s\n{measures.table(rows)}", flush=True)
    case = {"case": name, "rows": [[row.measure, row.value, row.bar, row.at_least, row.ok] for row in rows]}
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(case))
    return case


def main() -> None:
    torch.set_grad_enabled(False)
    lines = [f"# Parity at full size\n\nmlx_speech {mlx_speech.__version__}, CPU, float32, random weights.\n"]
    lines += ["| case | measure | value | bar |", "|---|---|---|---|"]
    failed = 0
    for name, family, build, sequences, options in CASES:
        for what, value, bar, at_least, ok in measured(name, family, build, sequences, options)["rows"]:
            said = f"{value:.7g} | ≥ {bar:g}" if at_least else f"{value:.1e} | ≤ {bar:g}"
            lines.append(f"| {name} | {what} | {said} |")
            failed += not ok
    (ROOT / "benchmarks" / "parity_full.md").write_text("\n".join(lines) + "\n")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
