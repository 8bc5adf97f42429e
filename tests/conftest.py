"""Shared by all tests: one thread per library, the folders of real data and weights, and what parity tests measured:
it is compared with parity.md, or written there and into the README where `make tables` runs them."""

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
from parity_table import differences, put_into_readme, read, render, updated
from real_weights import folder as weights_folder

import mlx_speech

mlx_speech.configure()  # OpenBLAS, before anything imports mlx
ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("MLX_SPEECH_TEST_DATA", ROOT.parent / "shared"))
RESULTS = ROOT / ".parity"
WRITING = False  # whether `make tables` runs the tests


def real(name: str) -> Path:
    """A file or folder of the real test data; skips with a reason where it is absent, but fails in CI."""
    path = DATA / name
    if not path.exists():
        absent(f"{name} is not here: set MLX_SPEECH_TEST_DATA to the folder that has it")
    return path


def real_weights(name: str) -> Path:
    """A file or folder of tests/real_weights.py; skips with a reason where it was not fetched, but fails in CI."""
    path = weights_folder() / name
    if not path.exists():
        absent(f"{path} is not here: python tests/real_weights.py fetches it")
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

    global WRITING
    torch.set_num_threads(1)
    WRITING = config.getoption("--tables")
    if WRITING and not hasattr(config, "workerinput"):
        RESULTS.mkdir(exist_ok=True)
        for old in RESULTS.glob("*.json"):
            old.unlink()


def record(case: str, original: str, precision: str, rows: list) -> None:
    """Compare a case's figures with those of parity.md, or keep them for it. Figures that miss their bar are left to
    the test."""
    measured = {"case": case, "original": original, "precision": precision}
    measured["rows"] = [[row.measure, row.value, row.bar, row.at_least] for row in rows]
    if WRITING:
        (RESULTS / f"{case} {precision}.json".replace("/", "-")).write_text(json.dumps(measured))
        return
    if precision != "float32" or all(row.ok for row in rows):
        said = differences(measured, read((ROOT / "parity.md").read_text(encoding="utf-8")))
        assert not said, "\n".join([*said, "make tables writes what was measured"])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tables", action="store_true", help="write parity.md and the README's table")
    parser.addoption("--shots", metavar="FOLDER", help="where test_page.py leaves pictures of the page")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Merge what the workers recorded into parity.md and the README."""
    if hasattr(session.config, "workerinput") or not WRITING:
        return
    from test_parity import CASES
    from test_real_parity import NAMES

    measured = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    names = {case.name for case in CASES} | set(NAMES)
    table = ROOT / "parity.md"
    cases = updated(read(table.read_text(encoding="utf-8")), measured, names)
    table.write_text(render(cases), encoding="utf-8")
    readme = ROOT / "README.md"
    readme.write_text(put_into_readme(readme.read_text(encoding="utf-8"), cases), encoding="utf-8")


SLOW = ("real_whisper", "real_pyannet", "Whisper base", "Whisper tiny", "wav2vec2-base")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no worker is left alone with them at the end."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in SLOW))
