"""Makes mlx_speech/assets/pyannet_campplus, the diarization that comes with the package:
`python tests/make_speakers.py [folder]`, after `python tests/real_weights.py`.

pyannote/segmentation-3.0 in float32 and CAM++ in float16, each converted and verified beside its original, and a PLDA
for VBx that says one thing alone: which part of an embedding's variance is the speaker's.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from mlx_speech.convert.run import convert

sys.path.insert(0, str(Path(__file__).parent))
import real_weights

FOLDER = Path(__file__).parents[1] / "mlx_speech" / "assets" / "pyannet_campplus"
EMBEDDING_SIZE = 192
# Two embeddings of one voice, of some seconds each, have about this cosine; 0.4 to 0.6 give the same speakers.
SPEAKERS_PART = 0.5
CONFIG = {
    "format_version": 1,
    "model_type": "diarization_pipeline",
    "segmentation": "segmentation",
    "embedding": "embedding",
    "plda": "plda",
    "clustering": "VBxClustering",
    "embedding_exclude_overlap": True,
    "embedding_stretch": 60.0,
    "min_active_ratio": 0.2,
    "segmentation_step": 0.1,
    "params": {
        "clustering": {"threshold": 0.8, "Fa": 0.15, "Fb": 0.4},
        "segmentation": {"min_duration_off": 0.0},
    },
}


def plda(folder: Path) -> Path:
    """Files of a PLDA whose space is that of unit embeddings, alike in all directions: within a speaker the variance is
    1, between speakers psi."""
    size = EMBEDDING_SIZE
    zeros = np.zeros(size)
    np.savez(folder / "xvec_transform.npz", mean1=zeros, mean2=zeros, lda=np.eye(size))
    transform = np.eye(size) / np.sqrt(1 - SPEAKERS_PART)
    psi = np.full(size, SPEAKERS_PART / (1 - SPEAKERS_PART))
    np.savez(folder / "plda.npz", mu=zeros, tr=transform, psi=psi)
    return folder


def make(folder: Path = FOLDER, verify: bool = True) -> None:
    """Write the models and the configuration; README.md and NOTICE are kept as they are.

    verify : whether the models are measured beside their originals, and their configurations say how near they are
    """
    weights = real_weights.folder()
    sources = {
        "segmentation": (weights / "segmentation-3.0" / "pytorch_model.bin", "float32"),
        "embedding": (weights / "campplus" / "campplus_cn_en_common.pt", "float16"),
    }
    for part, (source, dtype) in sources.items():
        convert(str(source), folder / part, dtype=dtype, verify=verify, overwrite=True)
    with tempfile.TemporaryDirectory() as temporary:
        convert(str(plda(Path(temporary))), folder / "plda", overwrite=True)
    for part in ("segmentation", "embedding", "plda"):
        (folder / part / "README.md").unlink(missing_ok=True)  # the folder's says it all
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    make(target)
    print(f"{target}: {sum(path.stat().st_size for path in target.rglob('*') if path.is_file())} bytes")
