"""Shared by all tests: one thread per library, the folder of real data, and parity.md, which the run writes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NoReturn

# two workers on two cores: libraries that start a thread per core would fight for them
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PYANNOTE_METRICS_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

import mlx_speech  # noqa: F401  (before anything imports mlx)

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("MLX_SPEECH_TEST_DATA", ROOT.parent / "shared"))
RESULTS = ROOT / ".parity"


def real(name: str) -> Path:
    """A file or folder of the real test data; skips with a reason where it is absent, but fails in CI."""
    path = DATA / name
    if not path.exists():
        absent(f"{name} is not here: set MLX_SPEECH_TEST_DATA to the folder that has it")
    return path


def absent(reason: str) -> NoReturn:
    """Skip a parity test for want of its original; in CI that is a failure."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; in CI every parity test has to run")
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_SPEECH_CACHE", str(tmp_path / "cache"))


def pytest_configure(config: pytest.Config) -> None:
    import torch

    torch.set_num_threads(1)
    if not hasattr(config, "workerinput"):
        RESULTS.mkdir(exist_ok=True)
        for old in RESULTS.glob("*.json"):
            old.unlink()


def record(case: str, original: str, precision: str, rows: list) -> None:
    """Keep a case's figures for parity.md."""
    content = {"case": case, "original": original, "precision": precision}
    content["rows"] = [[row.measure, row.value, row.bar, row.at_least] for row in rows]
    (RESULTS / f"{case} {precision}.json".replace("/", "-")).write_text(json.dumps(content))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Merge what the workers recorded into parity.md, if this run measured everything."""
    if hasattr(session.config, "workerinput") or not any(RESULTS.glob("*.json")):
        return
    from parity_table import complete, put_into_readme, render

    cases = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    if complete(cases):
        (ROOT / "parity.md").write_text(render(cases))
        readme = ROOT / "README.md"
        readme.write_text(put_into_readme(readme.read_text(), cases))


SLOW = ("Whisper base", "Whisper tiny", "wav2vec2-base", "tiny_en")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no worker is left alone with them at the end."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in SLOW))
